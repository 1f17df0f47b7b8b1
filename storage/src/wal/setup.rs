//! Everything that opening a log changes on disk: making it, or going on behind the last valid frame. Decides nothing
//! about what was found: that is `recovery`.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::Result;
use crate::disk::{Disk, OpenMode};

use super::recovery::Found;
use super::segment::{self, Segment, SegmentHeader};
use super::spare::Spares;
use super::superblock::{Superblock, SuperblockFile};
use super::tail::Tail;
use super::{CutTail, WalOptions, invariant};

/// Everything that opening changes on disk.
pub struct Setup {
    disk: Arc<dyn Disk>,
    options: WalOptions,
    /// The stock of spare segments.
    pub spares: Spares,
    /// Set while the disk has no room for a spare.
    pub full: Arc<AtomicBool>,
}

/// A log that can be written.
pub struct Begun {
    /// As it now stands on disk.
    pub superblock: Superblock,
    /// Its file.
    pub superblock_file: SuperblockFile,
    /// Segments that are still needed, oldest first, and the greatest index of an entry in each; at least one.
    pub held: VecDeque<(Arc<Segment>, Option<u64>)>,
    /// What can be read.
    pub tail: Tail,
    /// Position where the next frame goes; everything before is durable.
    pub end: u64,
    /// Checksum that the next frame links to.
    pub chain: u32,
    /// What was torn.
    pub cut: Option<CutTail>,
}

impl Setup {
    /// For the log in `options.dir`.
    pub fn new(disk: Arc<dyn Disk>, options: WalOptions) -> Result<Self> {
        let full = Arc::new(AtomicBool::new(false));
        let spares = spares_of(&disk, &options, Vec::new(), &full);
        Ok(Self { disk, options, spares, full })
    }

    /// The very first open. The superblock comes first, so that segments without one are always a fault.
    pub fn create(&mut self) -> Result<Begun> {
        let superblock = Superblock { epoch: 1, ..Superblock::new(self.options.identity) };
        let superblock_file = SuperblockFile::create(&*self.disk, &self.options.dir, &superblock, self.sync())?;
        self.with_first_segment(superblock, superblock_file)
    }

    /// Goes on behind the last valid frame, in a new epoch: what a cut has left behind there is of an older one and
    /// never passes again.
    pub fn reopen(&mut self, mut found: Found) -> Result<Begun> {
        if let Some((segment, _)) = found.segments.back() {
            self.rewrite_end(segment, &found)?;
        }
        let spares = self.tidy(&found)?;
        self.spares = spares_of(&self.disk, &self.options, spares, &self.full);
        found.superblock.write_number += 1;
        found.superblock.epoch += 1;
        found.superblock.epoch_start = found.end;
        found.superblock.durable_floor = found.end;
        found.superblock_file.store(&found.superblock, self.sync())?;
        if found.segments.is_empty() {
            return self.with_first_segment(found.superblock, found.superblock_file);
        }
        Ok(Begun {
            superblock: found.superblock,
            superblock_file: found.superblock_file,
            held: found.segments,
            tail: found.tail,
            end: found.end,
            chain: found.chain,
            cut: found.cut,
        })
    }

    fn with_first_segment(&mut self, mut superblock: Superblock, mut superblock_file: SuperblockFile) -> Result<Begun> {
        let header = SegmentHeader {
            sequence: 1,
            identity: superblock.identity,
            base: 0,
            segment_bytes: self.options.segment_bytes,
            previous_end: 0,
            link: 0,
            epoch: superblock.epoch,
            last: None,
        };
        let segment = write_segment(&*self.disk, &self.options, &mut self.spares, header)?;
        let (end, chain) = (segment.frames_start(), segment.header_crc);
        superblock.last_segment = 1;
        superblock.durable_floor = end;
        superblock.epoch_start = end;
        superblock.write_number += 1;
        superblock_file.store(&superblock, self.sync())?;
        let held = VecDeque::from([(Arc::new(segment), None)]);
        let tail = Tail::new(self.options.tail_bytes_max);
        Ok(Begun { superblock, superblock_file, held, tail, end, chain, cut: None })
    }

    /// Makes the last frames durable. They were read, but maybe only from the cache of the system, which even takes
    /// pages for clean whose sync has failed: so they are written once more.
    fn rewrite_end(&self, segment: &Segment, found: &Found) -> Result<()> {
        let start = found.durable_before.max(segment.frames_start());
        if found.end <= found.superblock.durable_floor || start >= found.end {
            return Ok(());
        }
        let mut bytes = vec![0; (found.end - start) as usize];
        let offset = start - segment.header.base;
        if segment.file.read_at(&mut bytes, offset)? < bytes.len() {
            return Err(invariant(format!("{} became shorter while it was open", segment.path.display())));
        }
        segment.file.write_at(&bytes, offset)?;
        match self.sync() {
            true => segment.file.sync_data(),
            false => Ok(()),
        }
    }

    /// Puts leftovers away; returns the names of the spares that fit.
    fn tidy(&self, found: &Found) -> Result<Vec<String>> {
        let mut spares = Vec::new();
        for name in &found.spares {
            let path = self.options.dir.join(name);
            if self.disk.open(&path, OpenMode::Read)?.len()? == self.options.segment_bytes {
                spares.push(name.clone());
            } else {
                self.disk.remove(&path)?;
            }
        }
        for name in &found.leftovers {
            self.disk.remove(&self.options.dir.join(name))?;
        }
        if self.sync() {
            self.disk.sync_dir(&self.options.dir)?;
        }
        Ok(spares)
    }

    fn sync(&self) -> bool {
        !self.options.unsafe_no_fsync
    }
}

fn spares_of(disk: &Arc<dyn Disk>, options: &WalOptions, ready: Vec<String>, full: &Arc<AtomicBool>) -> Spares {
    let sync = !options.unsafe_no_fsync;
    Spares::new(disk.clone(), &options.dir, options.segment_bytes, sync, ready, full.clone())
}

/// Makes a spare file that segment: durable on return, with name and header.
pub fn write_segment(
    disk: &dyn Disk,
    options: &WalOptions,
    spares: &mut Spares,
    header: SegmentHeader,
) -> Result<Segment> {
    let name = segment::file_name(header.sequence);
    let path: PathBuf = options.dir.join(&name);
    spares.take(&name)?;
    let file = disk.open(&path, OpenMode::Write)?;
    let (bytes, header_crc) = header.encode();
    file.write_at(&bytes, 0)?;
    if !options.unsafe_no_fsync {
        file.sync_data()?;
        disk.sync_dir(&options.dir)?;
    }
    Ok(Segment { header, header_crc, path, file })
}
