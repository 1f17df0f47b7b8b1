//! A place in raft's log. Not a position in keyspace history: that is a revision.

use std::fmt;

/// Term and index of one log entry. Leader ids are of the standard kind (one leader a term, Raft thesis 3.4), so the
/// term alone names the leader that made the entry.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct LogId {
    /// Term of the leader that made the entry.
    pub term: u64,
    /// Place in the log, counted from 0 (the entry that holds the first membership).
    pub index: u64,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.index)
    }
}
