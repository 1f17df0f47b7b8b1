//! The disk seam and the real disk. Beside the simulated disk and the RocksDB backend, the only file of this crate
//! that touches `std::fs`. Knows nothing of what the files mean.

#![allow(clippy::disallowed_methods, reason = "this is the disk seam")]

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FlockOperation};

use crate::{Result, StorageError};

/// Name of the file that [`Disk::lock`] takes its lock on.
pub const LOCK_FILE: &str = "LOCK";

/// How [`Disk::open`] opens a file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A file that must not exist yet, to read and write.
    CreateNew,
}

/// Directories and names. What a crash may undo: names made, renamed or removed since the last
/// [`sync_dir`](Disk::sync_dir) of their directory.
pub trait Disk: Send + Sync + 'static {
    /// Makes `dir` and what is missing above it; durable on return.
    fn create_dir_all(&self, dir: &Path) -> Result<()>;
    /// Names in `dir`, sorted.
    fn list(&self, dir: &Path) -> Result<Vec<String>>;
    /// Whether there is a file or directory of that name.
    fn exists(&self, path: &Path) -> Result<bool>;
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>>;
    /// Renames a file, replacing what has the new name; or a directory, whose new name must be free.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> Result<()>;
    /// Removes a directory with all that is in it; a crash may leave some of it.
    fn remove_dir(&self, dir: &Path) -> Result<()>;
    /// Makes the names in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    /// Bytes that may still be written to the file system of `dir`.
    fn free_bytes(&self, dir: &Path) -> Result<u64>;
    /// Takes the exclusive lock of `dir`, held until dropped; [`StorageError::InUse`] at once if another holds it.
    fn lock(&self, dir: &Path) -> Result<DirLock>;
    /// Monotonic time, to measure how long operations take. The simulated disk counts operations instead.
    fn now(&self) -> Duration;
}

/// Makes a file without a name in `dir`: it goes away with the last who holds it, also when the process is killed.
pub fn unnamed_file(disk: &dyn Disk, dir: &Path) -> Result<Arc<dyn DiskFile>> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("unnamed-{}-{number}.tmp", std::process::id()));
        // Left by a process of the same number that died between the two steps.
        if !disk.exists(&path)? {
            let file = disk.open(&path, OpenMode::CreateNew)?;
            disk.remove(&path)?;
            return Ok(file);
        }
    }
}

/// An open file. What a crash may undo: writes and length changes since the last sync, sector by sector.
pub trait DiskFile: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Reads at `offset` until `buf` is full or the file ends; returns the count.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize>;
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Makes content and length durable.
    fn sync_data(&self) -> Result<()>;
    /// Makes content, length and all attributes durable.
    fn sync_all(&self) -> Result<()>;
    /// Reserves room for `len` bytes and makes the file at least that long; new bytes read as zeros.
    fn allocate(&self, len: u64) -> Result<()>;
}

/// The lock of a directory; dropping it gives the lock back.
pub struct DirLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DirLock {
    /// A lock that is held as long as `held` lives.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Box::new(held) }
    }
}

/// The machine's file systems.
#[derive(Debug)]
pub struct RealDisk {
    started: Instant,
}

impl RealDisk {
    /// The machine's file systems.
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for RealDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.create_dir_all(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            other => other.map_err(|error| StorageError::io("making the directory", dir, error))?,
        }
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        let failed = |error| StorageError::io("listing the directory", dir, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        fs::exists(path).map_err(|error| StorageError::io("looking for the file", path, error))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(mode != OpenMode::Read)
            .create_new(mode == OpenMode::CreateNew)
            .open(path)
            .map_err(|error| StorageError::io("opening", path, error))?;
        Ok(Arc::new(RealFile { file, path: path.into() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|error| StorageError::io("renaming", from, error))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|error| StorageError::io("removing", path, error))
    }

    fn remove_dir(&self, dir: &Path) -> Result<()> {
        fs::remove_dir_all(dir).map_err(|error| StorageError::io("removing the directory", dir, error))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        File::open(dir)
            .and_then(|opened| opened.sync_all())
            .map_err(|error| StorageError::io("syncing the directory", dir, error))
    }

    fn free_bytes(&self, dir: &Path) -> Result<u64> {
        let found =
            rustix::fs::statvfs(dir).map_err(|error| StorageError::io("asking for space", dir, error.into()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn lock(&self, dir: &Path) -> Result<DirLock> {
        let path = dir.join(LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| StorageError::io("opening the lock", &path, error))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DirLock::new(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StorageError::InUse { path: dir.into() }),
            Err(error) => Err(StorageError::io("locking", &path, error.into())),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A file of the machine, with its path for messages.
struct RealFile {
    file: File,
    path: PathBuf,
}

impl RealFile {
    fn failed(&self, what: &'static str, error: impl Into<io::Error>) -> StorageError {
        StorageError::io(what, &self.path, error.into())
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(|error| self.failed("asking for the length", error))?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("reading", error)),
            }
        }
        Ok(done)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|error| self.failed("writing", error))
    }

    fn sync_data(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| self.failed("syncing", error))
    }

    fn sync_all(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed("syncing", error))
    }

    fn allocate(&self, len: u64) -> Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // A file system without reservations: the length alone; the caller's own writes then find out.
            Err(rustix::io::Errno::OPNOTSUPP) if self.len()? < len => {
                self.file.set_len(len).map_err(|error| self.failed("growing", error))
            }
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(self.failed("reserving space", error)),
        }
    }
}
