//! Why a member does not start: cause and remedy of everything that keeps it from it. Knows the errors of the crates below,
//! and decides nothing.

use std::fmt;

use daymark_storage::StorageError;

use crate::net::accept::BindError;
use crate::net::tls::TlsError;

/// Why a member did not start: cause and remedy, a sentence each.
#[derive(Debug)]
pub struct StartError {
    pub cause: String,
    pub remedy: String,
}

impl StartError {
    pub(crate) fn new(cause: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { cause: cause.to_string(), remedy: remedy.to_string() }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

impl std::error::Error for StartError {}

impl From<BindError> for StartError {
    fn from(error: BindError) -> Self {
        Self::new(&error, error.remedy())
    }
}

impl From<TlsError> for StartError {
    fn from(error: TlsError) -> Self {
        Self::new(error.cause, error.remedy)
    }
}

impl From<StorageError> for StartError {
    fn from(error: StorageError) -> Self {
        let remedy = match &error {
            StorageError::InUse { .. } => "stop the other process or choose another --data-dir",
            StorageError::Full { .. } => "free space on the file system",
            StorageError::Io { .. } => "make the directory readable and writable for this user",
            StorageError::Format { .. } => "choose another --data-dir or the version that wrote this one",
            _ => return Self::new(error, format!("nothing is repaired by guessing: {REPLACE}")),
        };
        Self::new(error, remedy)
    }
}

/// What to do about a member whose disk has lost something: the others have it all.
pub(crate) const REPLACE: &str = "replace this member: find its id with `etcdctl member list`, remove it with `etcdctl member \
                                  remove`, delete its data directory, add it with `etcdctl member add` and start it with the \
                                  flags that the answer shows; a member that was alone is restored from a snapshot";

impl From<daymark_raft::StartError> for StartError {
    fn from(error: daymark_raft::StartError) -> Self {
        use daymark_raft::StartError as Raft;
        match &error {
            Raft::StateBehindLog { .. } | Raft::LogBehindState { .. } | Raft::VoteBehindLog { .. } => {
                Self::new(&error, format!("restore the data directory as a whole, as it was last; else {REPLACE}"))
            }
            _ => Self::new(&error, "choose a data directory that belongs to this member"),
        }
    }
}
