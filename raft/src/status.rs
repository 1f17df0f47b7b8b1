//! What the rest of the member may know about raft: term, leader, indexes, members. Published when something other than
//! an index changes, so that a commit costs nothing here; indexes are read where they live when somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{Raft, ServerState};
use tokio::sync::watch;

use daymark_storage::LogId;

use crate::batch::ProposeError;
use crate::driver::Shared;
use crate::membership::is_sole_voter;
use crate::state_machine::StateMachine;
use crate::types::TypeConfig;

/// A picture of raft at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// This member.
    pub member_id: u64,
    /// The leader this member knows of.
    pub leader: Option<u64>,
    /// Whether that is this member.
    pub is_leader: bool,
    /// The current term.
    pub term: u64,
    /// Newest entry in the log, perhaps not durable yet.
    pub last_index: Option<u64>,
    /// Newest committed entry that was handed to apply.
    pub committed_index: Option<u64>,
    /// Members with a vote, sorted.
    pub voters: Arc<[u64]>,
    /// Members without, sorted.
    pub learners: Arc<[u64]>,
    /// On a leader: how long ago a quorum last confirmed it; zero for a lone voter.
    pub quorum_age: Option<Duration>,
    /// How often this member saw a new leader since it started.
    pub leader_changes_seen: u64,
}

/// What changes seldom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) leader: Option<u64>,
    pub(crate) is_leader: bool,
    pub(crate) term: u64,
    pub(crate) sole_voter: bool,
    pub(crate) voters: Arc<[u64]>,
    pub(crate) learners: Arc<[u64]>,
    pub(crate) leader_changes_seen: u64,
}

/// The published view: written by the thread "raft", read by anybody.
pub(crate) struct Published {
    view: ArcSwap<View>,
    /// Copies of what response headers and admission look at for every request.
    term: AtomicU64,
    version: watch::Sender<u64>,
}

impl Default for Published {
    fn default() -> Self {
        Self { view: ArcSwap::default(), term: AtomicU64::new(0), version: watch::Sender::new(0) }
    }
}

impl Published {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    pub(crate) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn replace(&self, view: View) {
        self.term.store(view.term, Ordering::Relaxed);
        self.view.store(Arc::new(view));
        self.version.send_modify(|version| *version += 1);
    }
}

/// Follows openraft until it ends: publishes the view, opens and closes the fast way of reading, and tells those who
/// wait when leadership is lost.
pub(crate) async fn follow(raft: &Raft<TypeConfig, StateMachine>, shared: &Shared) {
    let mut server = raft.server_metrics();
    let mut blank = shared.blank.subscribe();
    loop {
        let before = shared.published.view();
        server.borrow_and_update();
        let now = View::new(&raft.metrics().borrow_watched(), &before);
        let committed_blank = *blank.borrow_and_update();
        react(shared, &before, &now, committed_blank);
        if now != *before {
            shared.published.replace(now);
        }
        tokio::select! {
            changed = server.changed() => if changed.is_err() { return },
            _ = blank.changed() => {}
        }
    }
}

/// This member no longer takes part.
pub(crate) fn retire(shared: &Shared) {
    let before = shared.published.view();
    shared.published.replace(View { leader: None, is_leader: false, ..(*before).clone() });
}

fn react(shared: &Shared, before: &View, now: &View, blank: Option<LogId>) {
    // Nothing is known any more about entries of a leadership that has ended, only that they may still commit.
    if before.is_leader && (!now.is_leader || now.term != before.term) {
        shared.pending.fail_all(ProposeError::LeaderChanged);
    }
    // The blank entry of the own term is committed and handed over: so is everything that was in the log before it.
    let recovered = blank.filter(|blank| now.is_leader && blank.term == now.term);
    match recovered {
        Some(blank) if now.sole_voter => shared.read_gate.open(blank.index),
        _ => shared.read_gate.close(),
    }
    if let Some(blank) = recovered {
        shared.ready.send_if_modified(|ready| ready.replace(blank.index) != Some(blank.index));
    }
}

impl View {
    /// From the metrics that carry the term in memory: the server metrics only have the vote that is on disk, which lags
    /// behind an election. They change less often, though, so they are the ones that are waited on.
    fn new(metrics: &RaftMetrics<TypeConfig>, before: &View) -> Self {
        let membership = metrics.membership_config.membership();
        let leader = metrics.current_leader;
        let is_new_leader = leader.is_some() && leader != before.leader;
        Self {
            leader,
            is_leader: metrics.state == ServerState::Leader,
            term: metrics.current_term,
            sole_voter: is_sole_voter(membership, metrics.id),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            leader_changes_seen: before.leader_changes_seen + u64::from(is_new_leader),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use bytes::Bytes;
    use parking_lot::Mutex;

    use super::*;
    use crate::batch::{CommandBatch, Waiter};
    use crate::pending::AppliedProgress;

    struct Note(Arc<Mutex<Vec<ProposeError>>>);

    impl Waiter for Note {
        fn fail(self: Box<Self>, why: ProposeError) {
            self.0.lock().push(why);
        }
        fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
            self
        }
    }

    fn leading(term: u64) -> View {
        View { leader: Some(1), is_leader: true, term, sole_voter: true, ..View::default() }
    }

    fn shared() -> Shared {
        Shared::new(1, Duration::from_secs(5), AppliedProgress::default())
    }

    #[tokio::test]
    async fn who_waits_is_told_when_leadership_ends_or_begins_anew() {
        let follower = View { leader: Some(2), is_leader: false, sole_voter: false, ..leading(4) };
        for (now, lost) in [(leading(3), false), (leading(4), true), (follower, true)] {
            let (shared, told) = (shared(), Arc::default());
            let waiter = Box::new(Note(Arc::clone(&told)));
            shared.inbox.push(CommandBatch { bytes: Bytes::from_static(b"put"), count: 1, waiter });
            let proposal = shared.inbox.take(Vec::new()).await.pop().unwrap();
            shared.pending.admit(proposal).unwrap();
            react(&shared, &leading(3), &now, None);
            assert_eq!(*told.lock() == [ProposeError::LeaderChanged], lost, "{now:?}");
        }
    }

    #[test]
    fn reads_are_fast_only_for_a_lone_voter_that_leads_and_has_committed_in_its_term() {
        let blank = Some(LogId { term: 3, index: 8 });
        let with_peer = View { sole_voter: false, ..leading(3) };
        let deposed = View { is_leader: false, ..leading(3) };
        for (now, blank, open) in [
            (leading(3), blank, Some(8)),
            (leading(3), None, None),
            (leading(4), blank, None),
            (with_peer, blank, None),
            (deposed, blank, None),
        ] {
            let shared = shared();
            shared.read_gate.open(1);
            react(&shared, &leading(3), &now, blank);
            assert_eq!(shared.read_gate.index(), open, "{now:?} {blank:?}");
        }
    }
}
