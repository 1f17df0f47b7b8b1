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
    release: Release,
}

impl Upkeep {
    /// Work on what `views` shows.
    pub fn new(views: Arc<Views>, raft: Handle) -> Self {
        let (replay, unflushed) = (ReplayEstimate::default(), ReplayEstimate::default());
        Self { views, raft, replay, unflushed, release: Release::default() }
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
        if let Some(durable) = durable.filter(|durable| self.release.asks(*durable, self.raft.released_log())) {
            self.raft.release_log(durable);
        }
        if keyspace.has_history_to_drop() {
            keyspace.drop_history()?;
        }
        self.views.size.measure(&keyspace, self.unflushed.bytes_behind(durable))
    }
}

/// When raft is asked to release the log: once for each id that has become durable, and again while the log is not
/// released up to there. Raft may have been busy with the last request, and then forgets the new one.
#[derive(Default)]
struct Release {
    asked: Option<LogId>,
    /// Looks since then.
    looks: u32,
}

impl Release {
    fn asks(&mut self, durable: LogId, released: Option<LogId>) -> bool {
        self.looks += 1;
        let is_new = self.asked != Some(durable);
        let is_forgotten = released < Some(durable) && self.looks >= limits::RELEASE_LOOKS;
        if is_new || is_forgotten {
            (self.asked, self.looks) = (Some(durable), 0);
        }
        is_new || is_forgotten
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
    fn raft_is_asked_again_until_the_log_is_released() {
        let id = |index| LogId { term: 1, index };
        let mut release = Release::default();
        assert!(release.asks(id(7), None));
        for round in 0..3 {
            for look in 1..limits::RELEASE_LOOKS {
                assert!(!release.asks(id(7), Some(id(5))), "{round}, {look}");
            }
            assert!(release.asks(id(7), Some(id(5))), "{round}: it was forgotten");
        }
        for _ in 0..10 * limits::RELEASE_LOOKS {
            assert!(!release.asks(id(7), Some(id(7))), "it is done");
        }
        assert!(release.asks(id(8), Some(id(7))));
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
