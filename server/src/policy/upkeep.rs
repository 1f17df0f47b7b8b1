//! What keeps a restart short and the disk small: flushes the backend when a replay would take long, tells raft how
//! much of the log is not needed any more, and frees history below the compact revision. Its own thread, because all
//! of this may wait for the disk. How much room is left is looked at elsewhere, for the same reason.

use std::collections::VecDeque;
use std::sync::Arc;

use daymark_raft::Handle;
use daymark_storage::{LogId, Result};

use crate::limits;
use crate::views::Views;

/// The work, without the thread.
pub struct Upkeep {
    views: Arc<Views>,
    raft: Handle,
    replay: ReplayEstimate,
    /// The same of bytes that go to the backend.
    unflushed: ReplayEstimate,
    released: Option<LogId>,
}

impl Upkeep {
    /// Work on what `views` shows.
    pub fn new(views: Arc<Views>, raft: Handle) -> Self {
        Self { views, raft, replay: ReplayEstimate::default(), unflushed: ReplayEstimate::default(), released: None }
    }

    /// One look.
    pub fn step(&mut self) -> Result<()> {
        let keyspace = self.views.keyspace.clone();
        // Bytes first: they may count less than the index covers, never more.
        let bytes = self.views.applied_bytes();
        let written = keyspace.written_bytes();
        let applied = self.views.applied_index();
        self.replay.sample(applied, bytes);
        self.unflushed.sample(applied, written);
        let mut durable = keyspace.durable_applied()?;
        if self.replay.bytes_behind(durable) > limits::REPLAY_BYTES_MAX {
            keyspace.flush()?;
            durable = keyspace.durable_applied()?;
        }
        if let Some(durable) = durable.filter(|durable| self.released != Some(*durable)) {
            self.raft.release_log(durable);
            self.released = Some(durable);
        }
        if keyspace.has_history_to_drop() {
            keyspace.drop_history()?;
        }
        self.views.size.measure(&keyspace, self.unflushed.bytes_behind(durable))
    }
}

/// How many bytes of commands a crash would make us replay: samples of (applied index, bytes applied so far).
///
/// Invariant: both numbers grow from front to back.
#[derive(Default)]
struct ReplayEstimate {
    samples: VecDeque<(u64, u64)>,
}

impl ReplayEstimate {
    fn sample(&mut self, index: u64, bytes: u64) {
        if self.samples.back().is_none_or(|(last, _)| *last < index) {
            self.samples.push_back((index, bytes));
        }
    }

    /// Forgets what `durable` covers.
    fn bytes_behind(&mut self, durable: Option<LogId>) -> u64 {
        let durable = durable.map_or(0, |id| id.index);
        // The newest sample that is covered stays as the base.
        while self.samples.get(1).is_some_and(|(index, _)| *index <= durable) {
            self.samples.pop_front();
        }
        match (self.samples.front(), self.samples.back()) {
            (Some((index, base)), Some((_, newest))) if *index <= durable => newest - base,
            (_, Some((_, newest))) => *newest,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable(index: u64) -> Option<LogId> {
        Some(LogId { term: 1, index })
    }

    #[test]
    fn bytes_behind_the_durable_index_are_counted_from_the_sample_before_it() {
        let mut replay = ReplayEstimate::default();
        assert_eq!(replay.bytes_behind(None), 0);
        replay.sample(10, 100);
        assert_eq!(replay.bytes_behind(None), 100, "nothing is durable: everything since the start");
        replay.sample(20, 250);
        replay.sample(20, 250);
        replay.sample(30, 300);
        assert_eq!(replay.bytes_behind(durable(5)), 300);
        assert_eq!(replay.bytes_behind(durable(10)), 200);
        assert_eq!(replay.bytes_behind(durable(29)), 50, "from 20 on");
        assert_eq!(replay.bytes_behind(durable(30)), 0);
        replay.sample(40, 900);
        assert_eq!(replay.bytes_behind(durable(30)), 600);
        assert_eq!(replay.samples.len(), 2);
    }
}
