//! Positions in keyspace history. Not raft's log ids.

use std::fmt;

/// A position in keyspace history: `main` grows by one with each change set, `sub` orders the changes within it.
/// Clients see `main` only.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Revision {
    /// The change set, from 2 on; 1 is the empty store.
    pub main: i64,
    /// The change within it, from 0 on.
    pub sub: i64,
}

impl Revision {
    /// The first change of a change set.
    pub fn first_of(main: i64) -> Self {
        Self { main, sub: 0 }
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}
