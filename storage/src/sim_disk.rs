//! A simulated disk: seeded, in memory, and as unkind as a real one may be. It forgets what was not synced, sector by
//! sector and name by name, fails where told to, fills up, and stops at any chosen operation. Same seed and same
//! operations, same disk. Not a mock: code on it does the same as on the real disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::disk::{DirLock, Disk, DiskFile, OpenMode};
use crate::{Result, StorageError};

/// What a power cut keeps or loses, mostly as one: rarely it meets a sector half written.
pub const SECTOR_BYTES: usize = 512;

/// The simulated disk. Clones are the same disk.
///
/// What is written goes to a cache, which all reads see. A sync brings it to the platter; so does, now and then, the
/// disk by itself. A power cut leaves the platter, and of what was not synced any sectors and any names.
#[derive(Clone)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Clone)]
struct Inner {
    random: Random,
    files: HashMap<u64, Content>,
    next_file: u64,
    dirs: BTreeSet<PathBuf>,
    /// Names as reads see them, names on the platter, and the steps between the two.
    names: BTreeMap<PathBuf, u64>,
    platter_names: BTreeMap<PathBuf, u64>,
    pending: Vec<NameStep>,
    locks: BTreeSet<PathBuf>,
    operations: u64,
    crash_at: Option<u64>,
    fail_at: Option<u64>,
    crashed: bool,
    capacity: u64,
}

/// One file: cache, platter, and which sectors of the cache are not on the platter.
#[derive(Clone, Default)]
struct Content {
    cache: Vec<u8>,
    platter: Vec<u8>,
    dirty: BTreeSet<usize>,
}

#[derive(Clone)]
enum NameStep {
    Create(PathBuf, u64),
    /// From, to, and which file: a rename that survives names that file, whatever became of earlier steps.
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
    RenameDir(PathBuf, PathBuf),
}

/// What happens to an operation.
#[derive(Copy, Clone, PartialEq, Eq)]
enum Fate {
    Pass,
    Fail,
    /// The power goes while it runs.
    Crash,
}

impl SimDisk {
    /// An empty disk; `seed` decides what happens to what was not synced.
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            random: Random::new(seed),
            files: HashMap::new(),
            next_file: 0,
            dirs: BTreeSet::new(),
            names: BTreeMap::new(),
            platter_names: BTreeMap::new(),
            pending: Vec::new(),
            locks: BTreeSet::new(),
            operations: 0,
            crash_at: None,
            fail_at: None,
            crashed: false,
            capacity: u64::MAX,
        };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The disk fills up at so many bytes.
    pub fn set_capacity(&self, bytes: u64) {
        self.inner.lock().capacity = bytes;
    }

    /// Operations so far that change something: writes, syncs, allocations, names.
    pub fn operations(&self) -> u64 {
        self.inner.lock().operations
    }

    /// The power goes during the operation with that number (counted from 1), and nothing works afterwards.
    pub fn crash_at(&self, operation: u64) {
        self.inner.lock().crash_at = Some(operation);
    }

    /// The operation with that number fails. A failed write leaves a part; a failed sync loses what it likes and
    /// calls the rest clean, as Linux does.
    pub fn fail_at(&self, operation: u64) {
        self.inner.lock().fail_at = Some(operation);
    }

    /// Whether the power has gone.
    pub fn crashed(&self) -> bool {
        self.inner.lock().crashed
    }

    /// The disk as it is found after a power cut now; `seed` decides what survives. This one is left as it is.
    pub fn after_power_cut(&self, seed: u64) -> SimDisk {
        let mut inner = self.inner.lock().clone();
        inner.random = Random::new(seed);
        inner.lose_unsynced();
        Self::reset(inner)
    }

    /// The disk as it is found after the process has died now: what it has written is in the cache.
    pub fn after_process_exit(&self) -> SimDisk {
        Self::reset(self.inner.lock().clone())
    }

    fn reset(mut inner: Inner) -> SimDisk {
        inner.locks.clear();
        inner.crashed = false;
        inner.crash_at = None;
        inner.fail_at = None;
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// All files as reads see them.
    pub fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let inner = self.inner.lock();
        inner.names.iter().map(|(path, file)| (path.clone(), inner.files[file].cache.clone())).collect()
    }

    /// Puts a file there as if it had always been; `None` takes it away.
    pub fn set_content(&self, path: &Path, bytes: Option<Vec<u8>>) {
        let mut inner = self.inner.lock();
        let Some(bytes) = bytes else {
            inner.names.remove(path);
            inner.platter_names.remove(path);
            return;
        };
        let file = inner.next_file;
        inner.next_file += 1;
        inner.files.insert(file, Content { cache: bytes.clone(), platter: bytes, dirty: BTreeSet::new() });
        inner.names.insert(path.into(), file);
        inner.platter_names.insert(path.into(), file);
    }

    /// Flips a bit, in cache and on the platter.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) {
        let mut inner = self.inner.lock();
        let Some(file) = inner.names.get(path).copied() else { return };
        let Some(content) = inner.files.get_mut(&file) else { return };
        for bytes in [&mut content.cache, &mut content.platter] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= 1 << bit;
            }
        }
    }

    /// Counts an operation and says what happens to it.
    fn begin(&self, path: &Path) -> Result<(parking_lot::MutexGuard<'_, Inner>, Fate)> {
        let mut inner = self.inner.lock();
        inner.check_power(path)?;
        inner.operations += 1;
        let fate = match inner.operations {
            now if inner.crash_at == Some(now) => Fate::Crash,
            now if inner.fail_at == Some(now) => Fate::Fail,
            _ => Fate::Pass,
        };
        inner.crashed = fate == Fate::Crash;
        Ok((inner, fate))
    }

    /// A change of names. A failed one does nothing; one that the power cut meets may survive.
    fn change_name(&self, path: &Path, step: impl FnOnce(&mut Inner) -> Result<NameStep>) -> Result<()> {
        let (mut inner, fate) = self.begin(path)?;
        if fate != Fate::Fail {
            let step = step(&mut inner)?;
            apply_name(&mut inner.names, &step);
            if let NameStep::RenameDir(from, to) = &step {
                inner.dirs = inner.dirs.iter().map(|path| moved(path, from, to)).collect();
                move_pending(&mut inner.pending, from, to);
            }
            inner.pending.push(step);
        }
        outcome(fate, path)
    }
}

fn outcome(fate: Fate, path: &Path) -> Result<()> {
    match fate {
        Fate::Pass => Ok(()),
        Fate::Fail => Err(failed(path, "simulated fault")),
        Fate::Crash => Err(failed(path, "simulated power cut")),
    }
}

fn failed(path: &Path, what: &'static str) -> StorageError {
    StorageError::io("simulated disk", path, io::Error::other(what))
}

fn not_found(path: &Path) -> StorageError {
    StorageError::io("opening", path, io::ErrorKind::NotFound.into())
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        let mut inner = self.inner.lock();
        inner.check_power(dir)?;
        for dir in dir.ancestors() {
            inner.dirs.insert(dir.into());
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let inner = self.inner.lock();
        inner.check_power(dir)?;
        let inside = inner.names.keys().chain(&inner.dirs).filter(|path| path.parent() == Some(dir));
        let names: BTreeSet<_> = inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect();
        Ok(names.into_iter().collect())
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let inner = self.inner.lock();
        inner.check_power(path)?;
        Ok(inner.names.contains_key(path) || inner.dirs.contains(path))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        if mode == OpenMode::CreateNew {
            self.change_name(path, |inner| inner.create(path))?;
        }
        let inner = self.inner.lock();
        inner.check_power(path)?;
        let file = *inner.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(Arc::new(SimFile { disk: self.clone(), file, path: path.into() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change_name(from, |inner| match inner.names.get(from) {
            Some(file) => Ok(NameStep::Rename(from.into(), to.into(), *file)),
            None if !inner.dirs.contains(from) => Err(not_found(from)),
            None if inner.dirs.contains(to) => {
                Err(StorageError::io("renaming", from, io::ErrorKind::DirectoryNotEmpty.into()))
            }
            None => Ok(NameStep::RenameDir(from.into(), to.into())),
        })
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.change_name(path, |inner| match inner.names.contains_key(path) {
            true => Ok(NameStep::Remove(path.into())),
            false => Err(not_found(path)),
        })
    }

    fn remove_dir(&self, dir: &Path) -> Result<()> {
        let inside: Vec<PathBuf> = {
            let inner = self.inner.lock();
            inner.check_power(dir)?;
            inner.names.keys().filter(|path| path.starts_with(dir)).cloned().collect()
        };
        for path in inside {
            self.remove(&path)?;
        }
        let (mut inner, fate) = self.begin(dir)?;
        if fate != Fate::Fail {
            // As with a new directory, it counts as durable at once; names in it are kept apart.
            inner.dirs.retain(|path| !path.starts_with(dir));
        }
        outcome(fate, dir)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        let (mut inner, fate) = self.begin(dir)?;
        if fate == Fate::Pass {
            let (synced, rest) = std::mem::take(&mut inner.pending).into_iter().partition(|step| step.is_in(dir));
            inner.pending = rest;
            let synced: Vec<NameStep> = synced;
            for step in synced {
                apply_name(&mut inner.platter_names, &step);
            }
        }
        outcome(fate, dir)
    }

    fn free_bytes(&self, dir: &Path) -> Result<u64> {
        let inner = self.inner.lock();
        inner.check_power(dir)?;
        Ok(inner.capacity.saturating_sub(inner.used()))
    }

    fn lock(&self, dir: &Path) -> Result<DirLock> {
        let mut inner = self.inner.lock();
        inner.check_power(dir)?;
        if !inner.locks.insert(dir.into()) {
            return Err(StorageError::InUse { path: dir.into() });
        }
        Ok(DirLock::new(HeldLock { disk: self.clone(), dir: dir.into() }))
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.operations())
    }
}

struct HeldLock {
    disk: SimDisk,
    dir: PathBuf,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.disk.inner.lock().locks.remove(&self.dir);
    }
}

impl Inner {
    fn check_power(&self, path: &Path) -> Result<()> {
        match self.crashed {
            true => Err(failed(path, "simulated power cut")),
            false => Ok(()),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[file].cache.len() as u64).sum()
    }

    fn create(&mut self, path: &Path) -> Result<NameStep> {
        if !path.parent().is_some_and(|dir| self.dirs.contains(dir)) {
            return Err(not_found(path));
        }
        if self.names.contains_key(path) {
            return Err(StorageError::io("creating", path, io::ErrorKind::AlreadyExists.into()));
        }
        let file = self.next_file;
        self.next_file += 1;
        self.files.insert(file, Content::default());
        Ok(NameStep::Create(path.into(), file))
    }

    /// Makes a file at least `len` bytes long.
    fn grow(&mut self, file: u64, len: usize, path: &Path) -> Result<()> {
        let before = self.files[&file].cache.len();
        if len <= before {
            return Ok(());
        }
        if self.used() + (len - before) as u64 > self.capacity {
            return Err(StorageError::io("writing", path, io::ErrorKind::StorageFull.into()));
        }
        let content = self.content(file);
        content.cache.resize(len, 0);
        content.dirty.extend(before / SECTOR_BYTES..len.div_ceil(SECTOR_BYTES));
        Ok(())
    }

    fn content(&mut self, file: u64) -> &mut Content {
        self.files.get_mut(&file).expect("an open file is never forgotten")
    }

    /// Now and then the disk brings something to the platter without being asked.
    fn write_back_by_itself(&mut self) {
        if !self.random.one_in(4) {
            return;
        }
        let mut random = self.random.clone();
        let mut files: Vec<_> = self.files.iter_mut().collect();
        files.sort_unstable_by_key(|(file, _)| **file);
        for (_, content) in files {
            content.persist(|| random.one_in(2).then_some(SECTOR_BYTES));
        }
        self.random = random;
    }

    /// The power cut: of what was not synced, any part survives.
    fn lose_unsynced(&mut self) {
        let mut random = self.random.clone();
        // Nothing, everything, or each sector and name with one of three chances.
        let keep_one_in = [0, 1, 2, 8][random.below(4) as usize];
        for step in std::mem::take(&mut self.pending) {
            if random.keeps(keep_one_in) {
                apply_name(&mut self.platter_names, &step);
            } else if let NameStep::RenameDir(from, to) = &step {
                self.dirs = self.dirs.iter().map(|path| moved(path, to, from)).collect();
            }
        }
        let mut files: Vec<_> = self.files.iter_mut().collect();
        files.sort_unstable_by_key(|(file, _)| **file);
        for (_, content) in files {
            content.persist(|| match random.keeps(keep_one_in) {
                true if keep_one_in > 1 && random.one_in(4) => Some(random.below(SECTOR_BYTES as u64) as usize),
                kept => kept.then_some(SECTOR_BYTES),
            });
            content.dirty.clear();
            content.cache = content.platter.clone();
        }
        self.names = self.platter_names.clone();
        self.random = random;
    }
}

impl Content {
    /// Brings those unsynced sectors to the platter that `keep` picks, up to so many bytes of each.
    fn persist(&mut self, mut keep: impl FnMut() -> Option<usize>) {
        let picked: Vec<(usize, usize)> = self.dirty.iter().filter_map(|sector| Some((*sector, keep()?))).collect();
        for (sector, bytes) in picked {
            let start = sector * SECTOR_BYTES;
            let end = (start + bytes).min(self.cache.len());
            if self.platter.len() < end {
                self.platter.resize(end, 0);
            }
            self.platter[start..end].copy_from_slice(&self.cache[start..end]);
            self.dirty.remove(&sector);
        }
    }
}

impl NameStep {
    fn is_in(&self, dir: &Path) -> bool {
        let (Self::Create(path, _) | Self::Rename(_, path, _) | Self::Remove(path) | Self::RenameDir(_, path)) = self;
        path.parent() == Some(dir)
    }
}

fn apply_name(names: &mut BTreeMap<PathBuf, u64>, step: &NameStep) {
    match step {
        NameStep::Create(path, file) => {
            names.insert(path.clone(), *file);
        }
        NameStep::Rename(from, to, file) => {
            if names.get(from) == Some(file) {
                names.remove(from);
            }
            names.insert(to.clone(), *file);
        }
        NameStep::Remove(path) => {
            names.remove(path);
        }
        NameStep::RenameDir(from, to) => {
            *names = std::mem::take(names).into_iter().map(|(path, file)| (moved(&path, from, to), file)).collect();
        }
    }
}

/// Where `path` is once the directory `from` is called `to`.
fn moved(path: &Path, from: &Path, to: &Path) -> PathBuf {
    match path.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.into(),
        Ok(rest) => to.join(rest),
        Err(_) => path.into(),
    }
}

/// Steps inside a directory that was renamed before they became durable: they follow it.
fn move_pending(pending: &mut [NameStep], from: &Path, to: &Path) {
    for step in pending {
        match step {
            NameStep::Create(path, _) | NameStep::Remove(path) => *path = moved(path, from, to),
            NameStep::Rename(old, new, _) => (*old, *new) = (moved(old, from, to), moved(new, from, to)),
            NameStep::RenameDir(..) => {}
        }
    }
}

/// An open file of the simulated disk.
struct SimFile {
    disk: SimDisk,
    file: u64,
    path: PathBuf,
}

impl DiskFile for SimFile {
    fn len(&self) -> Result<u64> {
        let inner = self.disk.inner.lock();
        inner.check_power(&self.path)?;
        Ok(inner.files[&self.file].cache.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let inner = self.disk.inner.lock();
        inner.check_power(&self.path)?;
        let bytes = &inner.files[&self.file].cache;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let (mut inner, fate) = self.disk.begin(&self.path)?;
        inner.write_back_by_itself();
        let count = match fate {
            Fate::Fail => inner.random.below(bytes.len() as u64 + 1) as usize,
            Fate::Pass | Fate::Crash => bytes.len(),
        };
        let (start, end) = (offset as usize, offset as usize + count);
        inner.grow(self.file, end, &self.path)?;
        let content = inner.content(self.file);
        content.cache[start..end].copy_from_slice(&bytes[..count]);
        if count > 0 {
            content.dirty.extend(start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
        }
        outcome(fate, &self.path)
    }

    fn sync_data(&self) -> Result<()> {
        let (mut inner, fate) = self.disk.begin(&self.path)?;
        match fate {
            Fate::Pass => inner.content(self.file).persist(|| Some(SECTOR_BYTES)),
            Fate::Crash => {}
            Fate::Fail => {
                let mut random = inner.random.clone();
                let content = inner.content(self.file);
                content.persist(|| random.one_in(2).then_some(SECTOR_BYTES));
                content.dirty.clear();
                inner.random = random;
            }
        }
        outcome(fate, &self.path)
    }

    fn sync_all(&self) -> Result<()> {
        self.sync_data()
    }

    fn allocate(&self, len: u64) -> Result<()> {
        let (mut inner, fate) = self.disk.begin(&self.path)?;
        if fate != Fate::Fail {
            inner.grow(self.file, len as usize, &self.path)?;
        }
        outcome(fate, &self.path)
    }
}

/// SplitMix64: small, and the same on every machine.
#[derive(Clone)]
struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True with that chance; 0 means never.
    fn keeps(&mut self, one_in: u64) -> bool {
        one_in != 0 && self.one_in(one_in)
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}
