//! Keeps what makes counting quick up to date, a little at a time, and less while clients write: counts are right without
//! it. On its own thread, because it reads the disk.

use std::sync::Arc;

use daymark_storage::Result;
use daymark_storage::mvcc::Keyspace;

use crate::limits;

/// The work, without the thread.
pub struct FenceKeeper {
    keyspace: Arc<Keyspace>,
    /// At the last look.
    revision: i64,
}

impl FenceKeeper {
    /// For the fences of `keyspace`.
    pub fn new(keyspace: Arc<Keyspace>) -> Self {
        let revision = keyspace.current_revision();
        Self { keyspace, revision }
    }

    /// One look.
    pub fn step(&mut self) -> Result<()> {
        let revision = self.keyspace.current_revision();
        let is_busy = revision - self.revision > limits::FENCES_BUSY_REVISIONS;
        self.revision = revision;
        let reads_max = if is_busy { limits::FENCE_READS_BUSY } else { limits::FENCE_READS_IDLE };
        self.keyspace.tend_fences(reads_max).map(|_| ())
    }
}
