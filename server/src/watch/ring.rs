//! Applied batches as watchers see them, and the bounded window of them that a net thread keeps. Not history: what has
//! left the window is read from disk.

use std::collections::VecDeque;
use std::sync::Arc;

use daymark_storage::mvcc::Event;

/// What one write batch changed: every event of the revisions `first_revision..=last_revision`, in order of revision
/// and sub. `prev` of each event is filled where there was one.
#[derive(Debug)]
pub struct AppliedBatch {
    pub first_revision: i64,
    pub last_revision: i64,
    pub events: Vec<Event>,
    /// Approximate size in memory, for bounds.
    pub bytes: usize,
}

/// The newest applied batches of one net thread, consecutive in revisions, at most `bytes_max` bytes (but the newest
/// always stays).
pub struct Ring {
    batches: VecDeque<Arc<AppliedBatch>>,
    bytes: usize,
    bytes_max: usize,
}

impl Ring {
    /// An empty ring.
    pub fn new(bytes_max: usize) -> Self {
        Self { batches: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the next batch. A gap to the newest one empties the ring first: what is kept is always consecutive.
    pub fn push(&mut self, batch: Arc<AppliedBatch>) {
        if self.batches.back().is_some_and(|newest| newest.last_revision + 1 != batch.first_revision) {
            self.clear();
        }
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
        while self.bytes > self.bytes_max && self.batches.len() > 1 {
            if let Some(oldest) = self.batches.pop_front() {
                self.bytes -= oldest.bytes;
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    /// First revision that the ring holds.
    pub fn first_revision(&self) -> Option<i64> {
        self.batches.front().map(|batch| batch.first_revision)
    }

    /// Last revision that the ring holds.
    pub fn last_revision(&self) -> Option<i64> {
        self.batches.back().map(|batch| batch.last_revision)
    }

    /// Batches that hold `revision` or later ones, oldest first; `None` if some of that has left the ring.
    pub fn from(&self, revision: i64) -> Option<impl Iterator<Item = &Arc<AppliedBatch>>> {
        if self.first_revision()? > revision {
            return None;
        }
        let start = self.batches.partition_point(|batch| batch.last_revision < revision);
        Some(self.batches.iter().skip(start))
    }
}
