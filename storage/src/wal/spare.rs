//! Spare segment files, filled with zeros ahead of need: a write into a file whose blocks are already written lets
//! each fdatasync skip the file system's metadata. Knows nothing of frames.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, thread};

use parking_lot::{Condvar, Mutex};

use crate::disk::{Disk, DiskFile, OpenMode};
use crate::{Result, StorageError};

/// Name of a spare file while it is filled.
pub const SPARE_TMP_FILE: &str = "spare.tmp";

/// Suffix of spare files that are ready.
const SPARE_SUFFIX: &str = ".spare";

/// Spare files kept; further recycled segments are removed.
const SPARES_MAX: usize = 2;

/// Zeros synced at once: few, so that the log's own syncs never wait long behind them.
const FILL_BYTES: u64 = 1024 * 1024;

/// Zeros written at once. The page cache keeps a file in pieces (folios) as large as the writes that made them, and each later
/// write and sync looks through the whole piece, whatever little of it has changed.
const WRITE_BYTES: u64 = 16 * 1024;

/// Pause before a spare is tried again after the disk was full.
const FULL_RETRY: Duration = Duration::from_secs(1);

static ZEROS: [u8; WRITE_BYTES as usize] = [0; WRITE_BYTES as usize];

/// Name of a spare file; numbers only keep them apart.
fn spare_name(number: u64) -> String {
    format!("{number:016x}{SPARE_SUFFIX}")
}

/// Whether a file of that name is a spare.
pub fn is_spare_name(name: &str) -> bool {
    name.strip_suffix(SPARE_SUFFIX)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .is_some_and(|number| spare_name(number) == name)
}

/// Fills one file after the other, a piece at a time.
pub struct SpareMaker {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segment_bytes: u64,
    sync: bool,
    /// The file in progress and how much of it is filled.
    file: Option<(Arc<dyn DiskFile>, u64)>,
}

impl SpareMaker {
    /// Writes the next piece. True once the temporary file is whole and durable.
    fn step(&mut self) -> Result<bool> {
        let result = self.fill_next();
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn fill_next(&mut self) -> Result<bool> {
        let (file, filled) = match self.file.take() {
            Some(started) => started,
            None => (self.start()?, 0),
        };
        let end = self.segment_bytes.min(filled + FILL_BYTES);
        for at in (filled..end).step_by(WRITE_BYTES as usize) {
            file.write_at(&ZEROS[..WRITE_BYTES.min(end - at) as usize], at)?;
        }
        if self.sync {
            file.sync_data()?;
        }
        let whole = end == self.segment_bytes;
        if whole && self.sync {
            file.sync_all()?;
        }
        self.file = Some((file, end));
        Ok(whole)
    }

    fn start(&self) -> Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(SPARE_TMP_FILE);
        if self.disk.exists(&path)? {
            self.disk.remove(&path)?;
        }
        if self.disk.free_bytes(&self.dir)? < self.segment_bytes {
            return Err(StorageError::io("reserving space", &path, io::ErrorKind::StorageFull.into()));
        }
        let file = self.disk.open(&path, OpenMode::CreateNew)?;
        if let Err(error) = file.allocate(self.segment_bytes) {
            let _ = self.disk.remove(&path);
            return Err(error);
        }
        Ok(file)
    }

    /// Gives the finished file its name.
    fn finish(&mut self, name: &str) -> Result<()> {
        self.file = None;
        self.disk.rename(&self.dir.join(SPARE_TMP_FILE), &self.dir.join(name))?;
        if self.sync {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    /// Gives the space of an unfinished file back, as far as the disk still lets us.
    fn abandon(&mut self) {
        self.file = None;
        let _ = self.disk.remove(&self.dir.join(SPARE_TMP_FILE));
    }
}

/// What the log worker and the maker's thread share.
///
/// Invariant: a spare is wanted only while none is ready.
struct Desk {
    ready: VecDeque<String>,
    /// The worker wants a spare made.
    wanted: bool,
    /// Why the last attempt failed.
    failed: Option<StorageError>,
    ended: bool,
    next_number: u64,
}

impl Desk {
    /// A full disk may have room again; any other failure stays.
    fn forget_full(&mut self) {
        if matches!(self.failed, Some(StorageError::Full { .. })) {
            self.failed = None;
        }
    }
}

/// The stock of spare files: the worker's side.
pub struct Spares {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    shared: Arc<(Mutex<Desk>, Condvar)>,
    /// The disk had no room for a spare when last tried.
    full: Arc<AtomicBool>,
    /// Present as long as no thread of its own makes spares.
    maker: Option<SpareMaker>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Spares {
    /// The stock, beginning with the files `ready` in `dir`.
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: &Path,
        segment_bytes: u64,
        sync: bool,
        ready: Vec<String>,
        full: Arc<AtomicBool>,
    ) -> Self {
        let numbers = ready.iter().filter_map(|name| u64::from_str_radix(name.strip_suffix(SPARE_SUFFIX)?, 16).ok());
        let next_number = numbers.max().map_or(0, |greatest| greatest + 1);
        let desk = Desk { ready: ready.into(), wanted: false, failed: None, ended: false, next_number };
        let maker = SpareMaker { disk: disk.clone(), dir: dir.into(), segment_bytes, sync, file: None };
        Self {
            disk,
            dir: dir.into(),
            shared: Arc::new((Mutex::new(desk), Condvar::new())),
            full,
            maker: Some(maker),
            thread: None,
        }
    }

    /// Moves the making of spares to a thread of its own.
    pub fn start_thread(&mut self) -> io::Result<()> {
        let Some(maker) = self.maker.take() else { return Ok(()) };
        let (shared, full) = (self.shared.clone(), self.full.clone());
        let name = "wal-spare".to_string();
        self.thread = Some(thread::Builder::new().name(name).spawn(move || make_spares(maker, &shared, &full))?);
        Ok(())
    }

    /// Says that a spare will be needed before long.
    pub fn want(&self) {
        // Held by the maker only while it finishes one: asking again at the next step is soon enough.
        let Some(mut desk) = self.shared.0.try_lock() else { return };
        if desk.ready.is_empty() && !desk.wanted {
            desk.wanted = true;
            self.shared.1.notify_all();
        }
    }

    /// Without a thread: makes a piece of the spare that is wanted. A full disk is noted, not returned.
    pub fn step(&mut self) -> Result<()> {
        let Some(maker) = &mut self.maker else { return Ok(()) };
        let mut desk = self.shared.0.lock();
        if !desk.wanted {
            return Ok(());
        }
        match maker.step() {
            Ok(false) => {}
            Ok(true) => finish(maker, &mut desk)?,
            Err(error @ StorageError::Full { .. }) => desk.failed = Some(error),
            Err(error) => return Err(error),
        }
        self.full.store(desk.failed.is_some(), Ordering::Relaxed);
        Ok(())
    }

    /// Renames a spare to `name`, waiting for one to be made if there is none.
    pub fn take(&mut self, name: &str) -> Result<()> {
        let mut desk = self.shared.0.lock();
        desk.forget_full();
        while desk.ready.is_empty() {
            if let Some(error) = desk.failed.clone() {
                return Err(error);
            }
            desk.wanted = true;
            if let Some(maker) = &mut self.maker {
                while !maker.step()? {}
                finish(maker, &mut desk)?;
            } else {
                self.shared.1.notify_all();
                self.shared.1.wait(&mut desk);
            }
        }
        let spare = desk.ready.pop_front().expect("checked above");
        self.disk.rename(&self.dir.join(&spare), &self.dir.join(name))
    }

    /// Takes a segment file that is no longer needed: as a spare, or away. The caller syncs the directory.
    pub fn recycle(&mut self, name: &str) -> Result<()> {
        let mut desk = self.shared.0.lock();
        if desk.ready.len() >= SPARES_MAX {
            return self.disk.remove(&self.dir.join(name));
        }
        let spare = spare_name(desk.next_number);
        self.disk.rename(&self.dir.join(name), &self.dir.join(&spare))?;
        desk.next_number += 1;
        desk.ready.push_back(spare);
        desk.wanted = false;
        desk.forget_full();
        self.full.store(false, Ordering::Relaxed);
        self.shared.1.notify_all();
        Ok(())
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.shared.0.lock().ended = true;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic over there has been reported by its own thread already.
            let _ = thread.join();
        }
    }
}

/// Puts the whole temporary file into the stock, or away if a recycled segment came first.
fn finish(maker: &mut SpareMaker, desk: &mut Desk) -> Result<()> {
    if desk.ready.is_empty() {
        let name = spare_name(desk.next_number);
        maker.finish(&name)?;
        desk.next_number += 1;
        desk.ready.push_back(name);
    } else {
        maker.abandon();
    }
    desk.wanted = false;
    desk.forget_full();
    Ok(())
}

/// The thread "wal-spare". The lock is not held while a piece is written.
fn make_spares(mut maker: SpareMaker, shared: &(Mutex<Desk>, Condvar), full: &AtomicBool) {
    let (desk, changed) = shared;
    let mut locked = desk.lock();
    while !locked.ended {
        if !locked.wanted {
            if maker.file.is_some() {
                maker.abandon();
            }
            changed.wait(&mut locked);
            continue;
        }
        let step = parking_lot::MutexGuard::unlocked(&mut locked, || maker.step());
        let outcome = match step {
            Ok(false) => continue,
            Ok(true) => finish(&mut maker, &mut locked),
            // A recycled segment came while the lock was open, and nobody would take back that the disk is full.
            Err(StorageError::Full { .. }) if !locked.wanted || !locked.ready.is_empty() => Ok(()),
            Err(error) => Err(error),
        };
        let pause = matches!(outcome, Err(StorageError::Full { .. }));
        full.store(pause, Ordering::Relaxed);
        locked.failed = outcome.err();
        changed.notify_all();
        if pause && !locked.ended {
            changed.wait_for(&mut locked, FULL_RETRY);
        } else if locked.failed.is_some() {
            // Nothing is tried again after an error; the worker finds it when it needs the spare.
            locked.wanted = false;
        }
    }
    if maker.file.is_some() {
        maker.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;
    use crate::disk::DirLock;
    use crate::sim_disk::SimDisk;

    /// The simulated disk, on which the question for free space waits to be told its answer.
    struct AskedForSpace {
        disk: SimDisk,
        asked: Sender<()>,
        answers: Mutex<Receiver<u64>>,
    }

    impl Disk for AskedForSpace {
        fn create_dir_all(&self, dir: &Path) -> Result<()> {
            self.disk.create_dir_all(dir)
        }
        fn list(&self, dir: &Path) -> Result<Vec<String>> {
            self.disk.list(dir)
        }
        fn exists(&self, path: &Path) -> Result<bool> {
            self.disk.exists(path)
        }
        fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
            self.disk.open(path, mode)
        }
        fn rename(&self, from: &Path, to: &Path) -> Result<()> {
            self.disk.rename(from, to)
        }
        fn remove(&self, path: &Path) -> Result<()> {
            self.disk.remove(path)
        }
        fn remove_dir(&self, dir: &Path) -> Result<()> {
            self.disk.remove_dir(dir)
        }
        fn sync_dir(&self, dir: &Path) -> Result<()> {
            self.disk.sync_dir(dir)
        }
        fn free_bytes(&self, _: &Path) -> Result<u64> {
            self.asked.send(()).expect("the test waits");
            Ok(self.answers.lock().recv().expect("the test answers"))
        }
        fn lock(&self, dir: &Path) -> Result<DirLock> {
            self.disk.lock(dir)
        }
        fn now(&self) -> Duration {
            self.disk.now()
        }
    }

    /// Lets the maker find the disk full, after `meanwhile` has run; returns whether that is what is said in the end.
    fn full_after(meanwhile: impl FnOnce(&mut Spares)) -> bool {
        let sim = SimDisk::new(1);
        let dir = Path::new("/log");
        sim.create_dir_all(dir).unwrap();
        sim.set_content(&dir.join("segment"), Some(vec![7; 4096]));
        let (asked, was_asked) = channel();
        let (answer, answers) = channel();
        let disk = Arc::new(AskedForSpace { disk: sim, asked, answers: Mutex::new(answers) });
        let full = Arc::new(AtomicBool::new(false));
        let mut spares = Spares::new(disk, dir, 4096, true, Vec::new(), full.clone());
        spares.want();
        spares.start_thread().unwrap();
        was_asked.recv().unwrap();
        meanwhile(&mut spares);
        answer.send(0).unwrap();
        // Ends the thread, but not before it has dealt with the answer.
        drop(spares);
        full.load(Ordering::Relaxed)
    }

    #[test]
    fn a_full_disk_is_said() {
        assert!(full_after(|_| {}));
    }

    #[test]
    fn a_full_disk_is_not_said_if_a_recycled_segment_came_meanwhile() {
        assert!(!full_after(|spares| spares.recycle("segment").unwrap()));
    }
}
