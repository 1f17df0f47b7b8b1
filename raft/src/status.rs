//! What the rest of the member may know about raft: term, leader, indexes, members. Published when something other than
//! an index changes, so that a commit costs nothing here; indexes are read where they live when somebody asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{Instant, Raft, ServerState};
use tokio::sync::watch;

use daymark_storage::LogId;

use crate::batch::ProposeError;
use crate::config;
use crate::driver::{self, Shared};
use crate::executor;
use crate::membership::{is_alone, is_sole_voter, stored_id};
use crate::runtime;
use crate::state_machine::StateMachine;
use crate::transport::Peers;
use crate::types::{TypeConfig, log_id};

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
    /// How long the leader has been known and heard of without a break.
    pub leader_for: Option<Duration>,
    /// Before that nobody else led: contact with the same leader was lost for a while.
    pub leader_came_back: bool,
    /// How often this member saw a new leader since it started.
    pub leader_changes_seen: u64,
}

/// What changes seldom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Known, and heard of a moment ago; of itself a leader has to hear from a quorum.
    pub(crate) leader: Option<u64>,
    /// The same, also after it fell silent.
    last_leader: Option<u64>,
    pub(crate) leader_since: Option<runtime::Instant>,
    pub(crate) leader_came_back: bool,
    pub(crate) is_leader: bool,
    /// openraft's view: it leads also after it lost its quorum, until it learns of another leader.
    pub(crate) holds_office: bool,
    pub(crate) term: u64,
    pub(crate) sole_voter: bool,
    /// Nobody else takes part, not even without a vote.
    pub(crate) alone: bool,
    /// The entry that brought the membership.
    pub(crate) membership: Option<LogId>,
    pub(crate) voters: Arc<[u64]>,
    pub(crate) learners: Arc<[u64]>,
    pub(crate) leader_changes_seen: u64,
}

/// Looks at what has fallen silent, in one election time-out.
const LOOKS: u32 = 8;

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
pub(crate) async fn follow(raft: &Raft<TypeConfig, StateMachine>, shared: &Arc<Shared>, peers: &Peers) {
    let mut server = raft.server_metrics();
    let mut blank = shared.blank.subscribe();
    let mut disk = DiskWatch::default();
    loop {
        let before = shared.published.view();
        server.borrow_and_update();
        let committed_blank = *blank.borrow_and_update();
        let now = View::new(&raft.metrics().borrow_watched(), &before, shared);
        react(shared, &before, &now, committed_blank);
        if !now.holds_office {
            shared.note_handed_over();
        }
        if now != *before {
            if now.voters != before.voters || now.learners != before.learners {
                peers.keep_only(&[&now.voters[..], &now.learners[..]].concat());
            }
            log_leader(&before, &now);
            shared.published.replace(now.clone());
        }
        if now.is_leader && !now.sole_voter {
            disk.look(raft, shared);
        }
        // What does not come and is therefore not told: a quorum's answers, a leader's appends.
        let silence = async {
            match now.sole_voter {
                true => std::future::pending().await,
                false => runtime::sleep(shared.election / LOOKS).await,
            }
        };
        tokio::select! {
            changed = server.changed() => if changed.is_err() { return },
            _ = blank.changed() => {}
            () = shared.heard_anew.notified() => {}
            () = silence => {}
        }
    }
}

/// Looks whether the log of a leader still becomes durable. Followers take its entries and its heartbeats all the same, so
/// that nobody would replace it; but one whose disk hangs commits only as long as all others are there, and cannot vote.
#[derive(Default)]
struct DiskWatch {
    durable: Option<LogId>,
    /// Since when that has not moved, though there is more.
    since: Option<runtime::Instant>,
}

impl DiskWatch {
    fn look(&mut self, raft: &Raft<TypeConfig, StateMachine>, shared: &Arc<Shared>) {
        let durable = raft.watch_log_progress().get().and_then(|flushed| flushed.last_log_id).map(|id| log_id(&id));
        let hangs = durable < shared.last_log_id() && durable == self.durable;
        self.durable = durable;
        if !hangs {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert_with(runtime::now);
        let hung = runtime::now().duration_since(since);
        if hung < shared.election / 2 || shared.is_handing_over() {
            return;
        }
        if let Some(to) = driver::most_advanced(raft, shared) {
            let hung_ms = hung.as_millis() as u64;
            tracing::warn!(hung_ms, to = format!("{to:x}"), "the disk of the log hangs: handing leadership over");
            executor::spawn(driver::hand_over(raft.clone(), shared.clone(), to));
        }
    }
}

/// This member no longer takes part.
pub(crate) fn retire(shared: &Shared) {
    let before = shared.published.view();
    shared.published.replace(View { leader: None, is_leader: false, holds_office: false, ..(*before).clone() });
}

fn log_leader(before: &View, now: &View) {
    if now.leader == before.leader && now.term == before.term {
        return;
    }
    match now.leader {
        Some(leader) => tracing::info!(leader = format!("{leader:x}"), term = now.term, "a leader is known"),
        None if before.leader.is_some() => tracing::warn!(term = now.term, "no leader is known any more"),
        None => {}
    }
}

fn react(shared: &Shared, before: &View, now: &View, blank: Option<LogId>) {
    // Nothing is known any more about entries of a leadership that has ended, only that they may still commit.
    let left_office = before.holds_office && (!now.holds_office || now.term != before.term);
    if left_office {
        shared.pending.fail_sent_before(before.term + 1, ProposeError::LeaderChanged);
    }
    if now.leader.is_some() && (now.leader, now.term) != (before.leader, before.term) {
        shared.pending.fail_sent_before(now.term, ProposeError::LeaderChanged);
    }
    // The blank entry of the own term is committed and handed over: so is everything that was in the log before it.
    let recovered = blank.filter(|blank| now.is_leader && blank.term == now.term);
    let is_committed = |membership: &LogId| shared.committed_index() >= Some(membership.index);
    let alone_since = now.membership.filter(|membership| now.alone && is_committed(membership));
    match (recovered, alone_since) {
        (Some(blank), Some(since)) => {
            shared.read_gate.open(blank.index, since.index);
        }
        _ => shared.read_gate.close(),
    }
    if let Some(blank) = recovered {
        shared.ready.send_if_modified(|ready| ready.replace(blank.index) != Some(blank.index));
    }
}

impl View {
    /// From the metrics that carry the term in memory: the server metrics only have the vote that is on disk, which lags
    /// behind an election. They change less often, though, so they are the ones that are waited on.
    fn new(metrics: &RaftMetrics<TypeConfig>, before: &View, shared: &Shared) -> Self {
        let membership = metrics.membership_config.membership();
        let sole_voter = is_sole_voter(membership, metrics.id);
        let holds_office = metrics.state == ServerState::Leader;
        // As long as openraft accepts proposals.
        let lease = config::leader_lease(shared.election);
        let has_quorum = || metrics.last_quorum_acked.is_some_and(|at| at.elapsed() < lease);
        let may_lead = holds_office && !shared.is_handing_over();
        let is_leader = may_lead && (sole_voter || has_quorum());
        let leader = match metrics.current_leader {
            Some(leader) if leader == metrics.id => is_leader.then_some(leader),
            other => other.filter(|leader| shared.hears(*leader)),
        };
        let is_new_leader = leader.is_some() && leader != before.last_leader;
        let (leader_since, leader_came_back) = match leader == before.leader {
            true => (before.leader_since, before.leader_came_back),
            false => (leader.map(|_| runtime::now()), leader.is_some() && !is_new_leader),
        };
        Self {
            leader,
            leader_since,
            leader_came_back,
            last_leader: leader.or(before.last_leader),
            is_leader,
            holds_office,
            term: metrics.current_term,
            sole_voter,
            alone: is_alone(membership, metrics.id),
            membership: stored_id(&metrics.membership_config),
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
        let membership = Some(LogId { term: 0, index: 0 });
        let view = View { leader: Some(1), is_leader: true, holds_office: true, term, ..View::default() };
        View { sole_voter: true, alone: true, membership, ..view }
    }

    fn shared() -> Shared {
        Shared::new(1, Duration::from_secs(1), AppliedProgress::default())
    }

    #[tokio::test]
    async fn who_waits_is_told_when_leadership_ends_or_begins_anew() {
        let follower = View { leader: Some(2), is_leader: false, holds_office: false, sole_voter: false, ..leading(4) };
        let deposed = View { leader: None, holds_office: false, is_leader: false, ..leading(3) };
        let without_quorum = View { leader: None, is_leader: false, ..leading(3) };
        for (now, lost) in
            [(leading(3), false), (leading(4), true), (follower, true), (deposed, true), (without_quorum, false)]
        {
            let (shared, told) = (shared(), Arc::default());
            let waiter = Box::new(Note(Arc::clone(&told)));
            shared.inbox.push(CommandBatch { bytes: Bytes::from_static(b"put"), count: 1, waiter });
            let proposal = shared.inbox.take(Vec::new()).await.pop().unwrap();
            shared.pending.admit(proposal, 3, true).unwrap();
            react(&shared, &leading(3), &now, None);
            assert_eq!(*told.lock() == [ProposeError::LeaderChanged], lost, "{now:?}");
        }
    }

    #[test]
    fn reads_are_fast_only_for_a_member_that_is_alone_and_leads_and_has_committed_in_its_term() {
        let blank = Some(LogId { term: 3, index: 8 });
        let with_peer = View { sole_voter: false, alone: false, ..leading(3) };
        let with_learner = View { alone: false, ..leading(3) };
        let deposed = View { is_leader: false, ..leading(3) };
        let alone_since = |index| View { membership: Some(LogId { term: 3, index }), ..leading(3) };
        for (now, blank, open) in [
            (leading(3), blank, Some(8)),
            (leading(3), None, None),
            (leading(4), blank, None),
            (with_peer, blank, None),
            (with_learner, blank, None),
            (deposed, blank, None),
            (alone_since(9), blank, Some(9)),
            (alone_since(10), blank, None),
        ] {
            let shared = shared();
            shared.note_committed(LogId { term: 3, index: 9 });
            shared.read_gate.open(1, 0);
            react(&shared, &leading(3), &now, blank);
            assert_eq!(shared.read_gate.index(), open, "{now:?} {blank:?}");
            assert_eq!(shared.may_wait_for_disk(), open.is_some(), "nor does the thread wait for the disk");
        }
    }
}
