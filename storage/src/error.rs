//! Every way in which storage fails. One enum for the crate; cheap to clone, so that one failure can be told to
//! everybody who waits. Not the client's errors: those are decided by whoever calls.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What storage returns.
pub type Result<T> = std::result::Result<T, StorageError>;

/// Why storage failed. Each message says cause and, where there is one, remedy.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused an operation.
    #[error("{what} failed on {}: {source}", path.display())]
    Io { what: &'static str, path: PathBuf, source: Arc<io::Error> },
    /// Bytes on disk are not what was written, and it is not the torn end of a log.
    #[error("corrupt data in {} at offset {offset}: {what}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: String },
    /// No room left. Retryable once space is freed.
    #[error("no space left for {}: free space on its file system", path.display())]
    Full { path: PathBuf },
    /// One entry is larger than the log can hold. Nothing was appended.
    #[error("an entry of {bytes} bytes does not fit into a log segment (at most {bytes_max}): split it")]
    TooLarge { bytes: u64, bytes_max: u64 },
    /// The log's queue is at its bound. Nothing was appended; retryable once the worker has caught up.
    #[error("the log's queue holds {bytes} bytes already: the disk is slower than the writers")]
    QueueFull { bytes: u64 },
    /// The key-value engine reported an error.
    #[error("backend: {what}")]
    Backend { what: String },
    /// Another process holds the directory.
    #[error("{} is in use by another process", path.display())]
    InUse { path: PathBuf },
    /// The directory or file is of another program or format version.
    #[error("{} is not usable: {what}", path.display())]
    Format { path: PathBuf, what: String },
    /// A rule of this crate does not hold; carries the facts.
    #[error("broken invariant: {what}")]
    Invariant { what: String },
    /// The worker has ended; nothing more is written.
    #[error("storage has stopped")]
    Stopped,
}

impl StorageError {
    /// Wraps an operating system error; a full file system becomes [`StorageError::Full`].
    pub fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path: path.into() },
            _ => Self::Io { what, path: path.into(), source: Arc::new(source) },
        }
    }

    /// Shorthand for [`StorageError::Corrupt`].
    pub fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), offset, what: what.into() }
    }
}
