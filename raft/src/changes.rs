//! Changes of who takes part: one at a time, each one log entry, proposed by the leader on top of the membership that its
//! caller has looked at. A member that is added as a voter takes entries first and gets its vote when it has caught up,
//! so that no change makes a quorum harder to reach. Which changes are wise is the server's to say.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::sync::Arc;

use openraft::Raft;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::entry::EntryPayload;
use openraft::errors::{ChangeMembershipError, ClientWriteError, Fatal, RaftError};
use openraft::raft::Precondition;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use daymark_storage::LogId;

use crate::config::limits;
use crate::driver::Shared;
use crate::membership::{self, MemberNode};
use openraft::Instant as _;

use crate::runtime::{self, Instant, Runtime};
use crate::state_machine::StateMachine;
use crate::types::{RaftMembership, TypeConfig, log_id, raft_log_id};

type DaymarkRaft = Raft<TypeConfig, StateMachine>;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A member that takes entries and has no vote.
    AddLearner { id: u64, peer_urls: Vec<String> },
    /// A member that gets its vote by itself once it has caught up.
    AddVoter { id: u64, peer_urls: Vec<String> },
    /// A vote for a member that has none.
    Promote { id: u64 },
    /// Never again; the server remembers the id.
    Remove { id: u64 },
}

/// Why a change was not made, or is not known to have been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This member does not lead. Nothing was proposed.
    #[error("this member does not lead")]
    NotLeader,
    /// The membership is not the one that the change was meant for. Nothing was proposed.
    #[error("the membership has changed")]
    Stale,
    /// Another change is under way, or the leader is too new. Nothing was proposed.
    #[error("another change is under way")]
    Busy,
    /// It cannot be made: an unknown member, one that is there already, the last voter. Nothing was proposed.
    #[error("the change does not fit the membership")]
    Unfit,
    /// Leadership moved while it was under way; it may still take effect.
    #[error("leader changed")]
    LeaderChanged,
    /// It took too long; it may still take effect.
    #[error("timed out")]
    TimedOut,
    /// This member stops.
    #[error("server stopped")]
    Stopped,
}

type Answer = Result<LogId, ChangeError>;

struct Asked {
    change: MemberChange,
    based_on: LogId,
    answer: oneshot::Sender<Answer>,
}

/// Changes on their way to the thread "raft".
#[derive(Default)]
pub(crate) struct ChangeQueue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    asked: VecDeque<Asked>,
    closed: bool,
}

impl ChangeQueue {
    /// Asks for a change of the membership of entry `based_on`; the answer is the entry that has brought it, committed
    /// and handed to apply.
    pub(crate) async fn ask(&self, change: MemberChange, based_on: LogId) -> Answer {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(ChangeError::Stopped);
            }
            if waiting.asked.len() >= limits::CHANGES_WAITING_MAX {
                return Err(ChangeError::Busy);
            }
            waiting.asked.push_back(Asked { change, based_on, answer });
            self.wake.notify_one();
        }
        answered.await.unwrap_or(Err(ChangeError::Stopped))
    }

    async fn take(&self) -> Asked {
        loop {
            if let Some(asked) = self.waiting.lock().asked.pop_front() {
                return asked;
            }
            self.wake.notified().await;
        }
    }

    pub(crate) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        // Whoever waits sees its sender go.
        drop(mem::take(&mut waiting.asked));
    }
}

/// Makes the changes that are asked for, one after the other, until openraft ends.
pub(crate) async fn run(raft: DaymarkRaft, shared: Arc<Shared>) -> String {
    loop {
        let Asked { change, based_on, answer } = shared.changes.take().await;
        let result = make(&raft, &shared, &change, based_on).await;
        match &result {
            Ok(id) => tracing::info!(?change, entry = %id, "changed the membership"),
            Err(error) => tracing::warn!(?change, %error, "did not change the membership"),
        }
        // A caller that has gone away needs no answer.
        let _ = answer.send(result);
    }
}

async fn make(raft: &DaymarkRaft, shared: &Shared, change: &MemberChange, based_on: LogId) -> Answer {
    let (id, membership) = effective(raft);
    if id != Some(based_on) {
        return Err(ChangeError::Stale);
    }
    let next = next_membership(&membership, change).ok_or(ChangeError::Unfit)?;
    append(raft, shared, next, based_on).await
}

/// The newest membership in the log, committed or not, and its entry.
fn effective(raft: &DaymarkRaft) -> (Option<LogId>, RaftMembership) {
    let stored = raft.metrics().borrow_watched().membership_config.clone();
    (membership::stored_id(&stored), stored.membership().clone())
}

/// The membership after a change; none if it cannot be made.
fn next_membership(membership: &RaftMembership, change: &MemberChange) -> Option<RaftMembership> {
    let [voters] = &membership.get_joint_config()[..] else { return None };
    let mut voters: BTreeSet<u64> = voters.clone();
    let mut nodes: BTreeMap<u64, MemberNode> = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
    let add = |nodes: &mut BTreeMap<u64, MemberNode>, id: u64, peer_urls: &[String], joins_as_voter| {
        nodes.insert(id, MemberNode { peer_urls: peer_urls.to_vec(), joins_as_voter }).is_none()
    };
    let fits = match change {
        MemberChange::AddLearner { id, peer_urls } => add(&mut nodes, *id, peer_urls, false),
        MemberChange::AddVoter { id, peer_urls } => add(&mut nodes, *id, peer_urls, true),
        MemberChange::Promote { id } => nodes.contains_key(id) && voters.insert(*id),
        MemberChange::Remove { id } => {
            voters.remove(id);
            nodes.remove(id).is_some() && !voters.is_empty()
        }
    };
    if !fits {
        return None;
    }
    RaftMembership::new(vec![voters], nodes).ok()
}

/// One entry on top of `based_on`.
async fn append(raft: &DaymarkRaft, shared: &Shared, next: RaftMembership, based_on: LogId) -> Answer {
    let precondition = Precondition::LastMembershipLogId { last_membership_log_id: Some(raft_log_id(based_on)) };
    let appending = raft.append_membership(next, EntryPayload::Blank, [precondition]);
    match runtime::timeout(shared.propose_timeout, appending).await {
        None => Err(ChangeError::TimedOut),
        Some(Ok(written)) => Ok(log_id(&written.log_id)),
        Some(Err(error)) => Err(reason(error)),
    }
}

fn reason(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ChangeError {
    match error {
        RaftError::Fatal(Fatal::Stopped | Fatal::StorageError(_) | Fatal::Panicked) => ChangeError::Stopped,
        RaftError::APIError(ClientWriteError::ForwardToLeader(_)) => ChangeError::NotLeader,
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ChangeError::LeaderChanged,
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => ChangeError::Stale,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => ChangeError::Busy,
            _ => ChangeError::Unfit,
        },
    }
}

/// While this member leads: gives members their vote that are to have one and have caught up, and notes since when each
/// of the others has answered without a break. Runs until openraft ends.
pub(crate) async fn look_after_members(raft: DaymarkRaft, shared: Arc<Shared>) -> String {
    let mut answering = BTreeMap::new();
    loop {
        runtime::sleep(limits::MEMBERS_INTERVAL).await;
        let view = shared.published.view();
        if !view.is_leader {
            if !answering.is_empty() {
                answering.clear();
                shared.answering.store(Arc::default());
            }
            continue;
        }
        if view.voters.len() + view.learners.len() > 1 {
            note_answers(&raft, &shared, &mut answering);
            if let Some((id, based_on)) = caught_up(&raft, &shared) {
                let change = MemberChange::Promote { id };
                match make(&raft, &shared, &change, based_on).await {
                    Ok(entry) => tracing::info!(member = format!("{id:x}"), %entry, "a new member has its vote"),
                    Err(error) => {
                        tracing::info!(member = format!("{id:x}"), %error, "a new member gets its vote later")
                    }
                }
            }
        }
    }
}

/// A silence of an election time-out is a break.
fn note_answers(raft: &DaymarkRaft, shared: &Shared, answering: &mut BTreeMap<u64, Instant>) {
    let answers = raft.metrics().borrow_watched().heartbeat.clone().unwrap_or_default();
    let now = runtime::now();
    let silence = |at: <Runtime as openraft::AsyncRuntime>::Instant| at.elapsed();
    let is_there = |id: &u64| answers.get(id).is_some_and(|at| at.is_some_and(|at| silence(*at) <= shared.election));
    answering.retain(|id, _| is_there(id));
    for id in answers.keys().filter(|id| is_there(id)) {
        answering.entry(*id).or_insert(now);
    }
    shared.answering.store(Arc::new(answering.clone()));
}

/// A member that is to have a vote, has none and lacks little of the log; and the membership that says so.
fn caught_up(raft: &DaymarkRaft, shared: &Shared) -> Option<(u64, LogId)> {
    let (id, membership) = effective(raft);
    let based_on = id?;
    // Only what is committed is built upon.
    let committed = shared.committed_index().filter(|committed| *committed >= based_on.index)?;
    let waiting = membership.nodes().filter(|(_, node)| node.joins_as_voter).map(|(id, _)| *id);
    let mut waiting = waiting.filter(|id| !membership.voter_ids().any(|voter| voter == *id));
    let replication = raft.metrics().borrow_watched().replication.clone()?;
    let is_near = |id: &u64| {
        let matched = replication.get(id).and_then(|matched| matched.as_ref()).map(|matched| matched.index);
        matched.is_some_and(|matched| matched >= based_on.index && matched + limits::PROMOTION_LAG_MAX >= committed)
    };
    waiting.find(is_near).map(|id| (id, based_on))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(url: &str, joins_as_voter: bool) -> MemberNode {
        MemberNode { peer_urls: vec![url.into()], joins_as_voter }
    }

    fn membership(voters: &[u64], nodes: &[(u64, bool)]) -> RaftMembership {
        let nodes = nodes.iter().map(|(id, joins)| (*id, node(&format!("u{id}"), *joins)));
        RaftMembership::new(vec![voters.iter().copied().collect()], nodes.collect::<BTreeMap<_, _>>()).unwrap()
    }

    #[test]
    fn each_change_moves_at_most_one_vote() {
        let three = membership(&[1, 2, 3], &[(1, false), (2, false), (3, false)]);
        let urls = || vec!["u4".to_string()];
        let added = |joins| membership(&[1, 2, 3], &[(1, false), (2, false), (3, false), (4, joins)]);
        let with_four = membership(&[1, 2, 3, 4], &[(1, false), (2, false), (3, false), (4, true)]);
        for (before, change, after) in [
            (&three, MemberChange::AddLearner { id: 4, peer_urls: urls() }, Some(added(false))),
            (&three, MemberChange::AddVoter { id: 4, peer_urls: urls() }, Some(added(true))),
            (&three, MemberChange::AddVoter { id: 3, peer_urls: urls() }, None),
            (&added(true), MemberChange::Promote { id: 4 }, Some(with_four.clone())),
            (&with_four, MemberChange::Promote { id: 4 }, None),
            (&three, MemberChange::Promote { id: 4 }, None),
            (&added(false), MemberChange::Remove { id: 4 }, Some(three.clone())),
            (&three, MemberChange::Remove { id: 9 }, None),
            (&three, MemberChange::Remove { id: 3 }, Some(membership(&[1, 2], &[(1, false), (2, false)]))),
            (&membership(&[1], &[(1, false), (2, false)]), MemberChange::Remove { id: 1 }, None),
        ] {
            assert_eq!(next_membership(before, &change), after, "{change:?}");
        }
    }

    #[test]
    fn no_change_begins_while_the_voters_change() {
        let nodes: BTreeMap<u64, MemberNode> = BTreeMap::from([(1, node("a", false)), (2, node("b", false))]);
        let joint = RaftMembership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], nodes).unwrap();
        assert_eq!(next_membership(&joint, &MemberChange::Remove { id: 2 }), None);
    }

    #[tokio::test]
    async fn whoever_asks_too_late_or_too_much_is_told() {
        let queue = ChangeQueue::default();
        let based_on = LogId { term: 1, index: 1 };
        let mut waiting = Vec::new();
        for id in 0..limits::CHANGES_WAITING_MAX as u64 {
            let mut ask = Box::pin(queue.ask(MemberChange::Remove { id }, based_on));
            assert!(futures_util::poll!(&mut ask).is_pending());
            waiting.push(ask);
        }
        assert_eq!(queue.ask(MemberChange::Remove { id: 99 }, based_on).await, Err(ChangeError::Busy));
        assert_eq!(queue.take().await.change, MemberChange::Remove { id: 0 }, "in order");
        queue.close();
        for ask in waiting {
            assert_eq!(ask.await, Err(ChangeError::Stopped));
        }
        assert_eq!(queue.ask(MemberChange::Remove { id: 1 }, based_on).await, Err(ChangeError::Stopped));
    }
}
