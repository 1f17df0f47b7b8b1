//! Reading a log as a crash or a clean stop left it: finds where it ends, and refuses everything that a crash cannot
//! explain. Changes nothing on disk; the worker does that, after all of it has passed.
//!
//! The torn tail rule. A bad place at position X is a torn tail, and is cut, if X is not below the superblock's
//! durable floor and no valid frame behind X says that more than X was durable when it was written. A power cut may
//! keep any sectors of the one write that was not synced yet: valid frames of that same write may stand behind the
//! tear, and prove nothing, because what was durable before them ends at or before X. Only the newest segment can have
//! such a place: the next one is begun only after everything before it is durable.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, LOCK_FILE, OpenMode};
use crate::{Result, StorageError};

use super::frame::{FRAME_ALIGNMENT, FRAME_HEADER_BYTES, FrameType, frame_bytes};
use super::segment::{self, FrameReader, Segment};
use super::spare;
use super::superblock::{SUPERBLOCK_FILE, SUPERBLOCK_TMP_FILE, Superblock, SuperblockFile};
use super::tail::Tail;
use super::{CutTail, Identity, WalOptions, corrupt};

/// A log as found on disk.
pub struct Found {
    /// The newer valid superblock.
    pub superblock: Superblock,
    /// Its file.
    pub superblock_file: SuperblockFile,
    /// Segments that are still needed, oldest first, with the greatest index of an entry in each.
    pub segments: VecDeque<(Arc<Segment>, Option<u64>)>,
    /// Entries that are not released, none of them in memory.
    pub tail: Tail,
    /// Position behind the last valid frame.
    pub end: u64,
    /// Checksum of the last valid frame, or else of the last segment's header.
    pub chain: u32,
    /// Position before which the last valid frame says that all was durable.
    pub durable_before: u64,
    /// What was torn, if it left traces.
    pub cut: Option<CutTail>,
    /// Names of files that no longer belong to the log: older segments, one that was never begun, temporary files.
    pub leftovers: Vec<String>,
    /// Names of spare files.
    pub spares: Vec<String>,
}

/// Names in the log's directory, sorted by what they are. Names of others are left alone.
#[derive(Default)]
struct Names {
    superblock: bool,
    segments: BTreeSet<u64>,
    spares: Vec<String>,
    temporary: Vec<String>,
}

impl Names {
    fn read(disk: &dyn Disk, dir: &Path) -> Result<Self> {
        let mut names = Self::default();
        for name in disk.list(dir)? {
            match name.as_str() {
                LOCK_FILE => {}
                SUPERBLOCK_FILE => names.superblock = true,
                SUPERBLOCK_TMP_FILE | spare::SPARE_TMP_FILE => names.temporary.push(name),
                _ if spare::is_spare_name(&name) => names.spares.push(name),
                _ => names.segments.extend(segment::parse_file_name(&name)),
            }
        }
        Ok(names)
    }
}

/// Reads and checks the log in `options.dir`. `None` if there is none yet.
pub fn recover(disk: &dyn Disk, options: &WalOptions) -> Result<Option<Found>> {
    let dir = &options.dir;
    let names = Names::read(disk, dir)?;
    if !names.superblock {
        return no_superblock(dir, &names).map(|()| None);
    }
    let (superblock_file, superblock) = SuperblockFile::load(disk, dir, OpenMode::Write)?;
    check_identity(dir, superblock.identity, options.identity)?;
    let mut leftovers = names.temporary.clone();
    leftovers.extend(check_names(disk, dir, &superblock, &names)?);
    let mut found = Found {
        tail: Tail::new(options.tail_bytes_max),
        segments: open_segments(disk, dir, &superblock)?,
        end: 0,
        chain: 0,
        durable_before: 0,
        cut: None,
        leftovers,
        spares: names.spares,
        superblock_file,
        superblock,
    };
    found.replay()?;
    Ok(Some(found))
}

/// Without a superblock there may be nothing but what the very first open leaves when it is interrupted.
fn no_superblock(dir: &Path, names: &Names) -> Result<()> {
    let segment = names.segments.first().map(|first| segment::file_name(*first));
    let Some(left) = segment.or_else(|| names.spares.first().cloned()) else { return Ok(()) };
    let what = format!("the superblock is missing, but log files exist ({left})");
    Err(corrupt(&dir.join(SUPERBLOCK_FILE), 0, what))
}

fn check_identity(dir: &Path, found: Identity, wanted: Identity) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let what = format!(
        "it is the log of member {:x} of cluster {:x}, not of member {:x} of cluster {:x}: use the directory of this \
         member",
        found.member_id, found.cluster_id, wanted.member_id, wanted.cluster_id
    );
    Err(StorageError::Format { path: dir.into(), what })
}

/// Compares the segments that are there with those that the superblock knows; returns the names of those not needed.
fn check_names(disk: &dyn Disk, dir: &Path, superblock: &Superblock, names: &Names) -> Result<Vec<String>> {
    let (first, last) = (superblock.first_segment, superblock.last_segment);
    for sequence in first..=last {
        if !names.segments.contains(&sequence) {
            let what = format!("the segment is missing; segments {first:x} to {last:x} must exist");
            return Err(corrupt(&dir.join(segment::file_name(sequence)), 0, what));
        }
    }
    let beyond = names.segments.iter().filter(|sequence| **sequence > last);
    for sequence in beyond {
        let path = dir.join(segment::file_name(*sequence));
        let begun = *sequence == last + 1 && !holds_frames(disk, &path, *sequence)?;
        if !begun {
            let what = format!("the segment is newer than the superblock, which knows segments up to {last:x}");
            return Err(corrupt(&path, 0, what));
        }
    }
    let unneeded = names.segments.iter().filter(|sequence| **sequence < first || **sequence > last);
    Ok(unneeded.map(|sequence| segment::file_name(*sequence)).collect())
}

/// Whether the file is that segment and has a valid frame. The superblock names a segment before its first frame.
fn holds_frames(disk: &dyn Disk, path: &Path, sequence: u64) -> Result<bool> {
    let Ok(opened) = Segment::open(disk.open(path, OpenMode::Read)?, path)? else { return Ok(false) };
    if opened.header.sequence != sequence {
        return Ok(false);
    }
    let start = opened.frames_start();
    Ok(FrameReader::new(Arc::new(opened)).frame(start)?.is_ok())
}

/// Opens the segments that are needed and checks that each continues the one before.
fn open_segments(
    disk: &dyn Disk,
    dir: &Path,
    superblock: &Superblock,
) -> Result<VecDeque<(Arc<Segment>, Option<u64>)>> {
    let mut segments: VecDeque<(Arc<Segment>, Option<u64>)> = VecDeque::new();
    for sequence in superblock.first_segment..=superblock.last_segment {
        let path = dir.join(segment::file_name(sequence));
        let opened = Segment::open(disk.open(&path, OpenMode::Write)?, &path)?;
        let opened = opened.map_err(|what| corrupt(&path, 0, what))?;
        check_segment(&opened, sequence, superblock)?;
        if let Some((before, _)) = segments.back() {
            check_continues(before, &opened)?;
        }
        segments.push_back((Arc::new(opened), None));
    }
    Ok(segments)
}

fn check_segment(opened: &Segment, sequence: u64, superblock: &Superblock) -> Result<()> {
    let (header, path) = (&opened.header, &opened.path);
    if header.sequence != sequence {
        let what = format!("the file holds segment {:x}: files were swapped or renamed", header.sequence);
        return Err(corrupt(path, 16, what));
    }
    if header.identity != superblock.identity {
        let what = format!("the segment is of member {:x}", header.identity.member_id);
        return Err(corrupt(path, 24, what));
    }
    if header.epoch > superblock.epoch {
        return Err(corrupt(path, 68, "the segment is newer than the superblock"));
    }
    let length = opened.file.len()?;
    if length != header.segment_bytes {
        let what = format!("the file is {length} bytes long, it must be {}: it was truncated", header.segment_bytes);
        return Err(corrupt(path, length.min(header.segment_bytes), what));
    }
    Ok(())
}

fn check_continues(before: &Segment, next: &Segment) -> Result<()> {
    let fits = next.header.base == before.limit()
        && (before.frames_start()..=before.limit()).contains(&next.header.previous_end);
    if fits {
        return Ok(());
    }
    let what = format!("the segment does not continue {}", before.path.display());
    Err(corrupt(&next.path, 40, what))
}

impl Found {
    /// Walks all frames of all segments, in order.
    fn replay(&mut self) -> Result<()> {
        if let Some((first, _)) = self.segments.front() {
            self.tail.begin_after(first.header.last);
            self.chain = first.header.link;
        }
        for at in 0..self.segments.len() {
            let segment = self.segments[at].0.clone();
            let next = self.segments.get(at + 1).map(|(next, _)| next.clone());
            self.begin_segment(&segment, at == 0)?;
            let mut reader = FrameReader::new(segment);
            match next {
                Some(next) => self.walk_full(&mut reader, at, &next)?,
                None => self.walk_last(&mut reader, at)?,
            }
        }
        if let Some(released) = self.superblock.released {
            self.tail.release(released);
        }
        match self.segments.front() {
            Some((first, _)) => self.tail.check_start().map_err(|what| corrupt(&first.path, 0, what)),
            None => Ok(()),
        }
    }

    fn begin_segment(&mut self, segment: &Segment, is_first: bool) -> Result<()> {
        let header = &segment.header;
        if header.link != self.chain || (header.last != self.tail.last() && !is_first) {
            return Err(corrupt(&segment.path, 64, "the segment does not continue the frames before it"));
        }
        self.chain = segment.header_crc;
        self.end = segment.frames_start();
        self.durable_before = self.end;
        Ok(())
    }

    /// A segment with another one behind it: its frames end exactly where the next one's header says.
    fn walk_full(&mut self, reader: &mut FrameReader, at: usize, next: &Segment) -> Result<()> {
        while self.end < next.header.previous_end {
            if let Err(fault) = self.take_frame(reader, at)? {
                let segment = reader.segment();
                let what =
                    format!("{fault}; frames continue up to offset {}", next.header.previous_end - segment.header.base);
                return Err(corrupt(&segment.path, self.end - segment.header.base, what));
            }
        }
        if self.end == next.header.previous_end {
            return Ok(());
        }
        let segment = reader.segment();
        let what = format!("frames reach beyond the end that {} names", next.path.display());
        Err(corrupt(&segment.path, next.header.previous_end - segment.header.base, what))
    }

    /// The newest segment: walks to the first bad place and applies the torn tail rule to it.
    fn walk_last(&mut self, reader: &mut FrameReader, at: usize) -> Result<()> {
        let fault = loop {
            if let Err(fault) = self.take_frame(reader, at)? {
                break fault;
            }
        };
        let segment = reader.segment().clone();
        let offset = self.end - segment.header.base;
        if self.end < self.superblock.durable_floor {
            let floor = self.superblock.durable_floor - segment.header.base;
            let what = format!("{fault}; the superblock says that everything before offset {floor} was durable");
            return Err(corrupt(&segment.path, offset, what));
        }
        let traces = self.scan_behind(reader, fault)?;
        if traces > self.end {
            self.cut = Some(CutTail { path: segment.path.clone(), offset, bytes: traces - self.end });
        }
        Ok(())
    }

    /// Takes the frame at `end`, if it is valid and continues the chain. The inner error says what is wrong with it.
    fn take_frame(&mut self, reader: &mut FrameReader, at: usize) -> Result<std::result::Result<(), &'static str>> {
        let position = self.end;
        let frame = match reader.frame(position)? {
            Ok(frame) => frame,
            Err(fault) => return Ok(Err(fault)),
        };
        let (header, crc, bytes) = (frame.header, frame.crc, frame.bytes);
        if header.link != self.chain {
            return Ok(Err("the frame does not continue the one before it"));
        }
        let of_this_epoch = header.epoch == self.superblock.epoch;
        if of_this_epoch != (position >= self.superblock.epoch_start) || header.epoch > self.superblock.epoch {
            return Ok(Err("the frame is of another opening of the log"));
        }
        if header.durable_before > position {
            return Ok(Err("the frame contradicts its position"));
        }
        let path = reader.segment().path.clone();
        self.apply(&path, position - reader.segment().header.base, at, header)?;
        self.chain = crc;
        self.end = position + bytes;
        self.durable_before = header.durable_before;
        Ok(Ok(()))
    }

    fn apply(&mut self, path: &Path, offset: u64, at: usize, header: super::frame::FrameHeader) -> Result<()> {
        let id = header.id;
        match header.frame_type {
            FrameType::Blank | FrameType::Commands | FrameType::Membership => {
                if Tail::check_next(self.tail.last(), id).is_err() {
                    let what = format!("entry {id} does not follow {:?}", self.tail.last());
                    return Err(corrupt(path, offset, what));
                }
                self.tail.push_placed(id, self.end);
                let greatest = &mut self.segments[at].1;
                *greatest = (*greatest).max(Some(id.index));
            }
            FrameType::TruncateAfter => self.tail.truncate_after(Some(id)),
            FrameType::TruncateAll => self.tail.truncate_after(None),
            FrameType::Released => self.tail.release(id),
        }
        Ok(())
    }

    /// Looks at every place behind the bad one for a frame that proves that more was durable. Returns where traces of
    /// the torn write end, or `end` if there are none.
    fn scan_behind(&mut self, reader: &mut FrameReader, fault: &str) -> Result<u64> {
        let (epoch, bad) = (self.superblock.epoch, self.end);
        let mut traces = bad;
        let mut position = bad;
        while position + FRAME_HEADER_BYTES as u64 <= reader.segment().limit() {
            if let Ok(header) = reader.header(position)?
                && header.epoch == epoch
                && header.durable_before <= position
            {
                if position == bad {
                    traces = bad + frame_bytes(header.length as usize) as u64;
                } else if let Ok(frame) = reader.frame(position)? {
                    traces = traces.max(position + frame.bytes);
                    if header.durable_before > bad {
                        let segment = reader.segment();
                        let proof = position - segment.header.base;
                        let what = format!("{fault}; the frame at offset {proof} shows that this place was durable");
                        return Err(corrupt(&segment.path, bad - segment.header.base, what));
                    }
                }
            }
            position += FRAME_ALIGNMENT as u64;
        }
        Ok(traces)
    }
}

/// The identity in the superblock of `dir`. `None` if there is no log yet.
pub fn identity_on_disk(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>> {
    let path: PathBuf = dir.join(SUPERBLOCK_FILE);
    if disk.exists(&path)? {
        return Ok(Some(SuperblockFile::load(disk, dir, OpenMode::Read)?.1.identity));
    }
    if disk.exists(dir)? {
        no_superblock(dir, &Names::read(disk, dir)?)?;
    }
    Ok(None)
}
