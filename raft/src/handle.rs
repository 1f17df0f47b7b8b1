//! All that the server may ask of raft. Cheap to clone, usable from any thread; no openraft type shows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use tokio::sync::watch;

use daymark_storage::LogId;
use daymark_storage::wal::Wal;

use crate::batch::{CommandBatch, ProposeError};
use crate::changes::{ChangeError, MemberChange};
use crate::driver::{self, Shared};
use crate::executor::Executor;
use crate::membership::{self, MemberInfo};
use crate::runtime;
use crate::status::RaftStatus;
use crate::transport::{BoxFuture, CallError, PeerStream, PeerTraffic, Peers};
use crate::types::TypeConfig;

pub(crate) type Metrics = openraft::alias::WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// A member's raft.
#[derive(Clone)]
pub struct Handle {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    wal: Wal,
    metrics: Metrics,
    executor: Arc<Executor>,
    peers: Arc<Peers>,
}

impl Drop for Inner {
    /// Nobody can ask for anything any more, so the thread ends even if nobody called `stop`.
    fn drop(&mut self) {
        self.shared.request_stop();
    }
}

impl Handle {
    pub(crate) fn new(
        shared: Arc<Shared>,
        wal: Wal,
        metrics: Metrics,
        executor: Arc<Executor>,
        peers: Arc<Peers>,
    ) -> Self {
        Self { inner: Arc::new(Inner { shared, wal, metrics, executor, peers }) }
    }

    /// Hands a batch to the thread "raft"; it becomes one log entry. Does not block. The outcome reaches the waiter
    /// only: by apply, or by [`Waiter::fail`](crate::Waiter::fail), which may be called before this returns.
    pub fn propose(&self, batch: CommandBatch) {
        self.inner.shared.inbox.push(batch);
    }

    /// Like [`Self::propose`], for a caller that has nothing else to do: where possible the work of the threads "raft",
    /// "wal" and "apply" is done on the calling thread, so that for a lone voter the outcome may be there on return. It
    /// then has waited for the disk.
    pub fn propose_here(&self, batch: CommandBatch) {
        let Inner { shared, executor, .. } = &*self.inner;
        match shared.read_gate.index() {
            Some(_) => executor.run_here(|| shared.inbox.push(batch)),
            None => shared.inbox.push(batch),
        }
    }

    /// For a lone voter that leads: the index that the published state must have reached for a linearizable read. That
    /// is the case from moments after a start, so this costs one atomic load. `None`: use [`Self::read_barrier`].
    pub fn read_barrier_now(&self) -> Option<u64> {
        self.inner.shared.read_gate.index()
    }

    /// The index that the published state must have reached for a linearizable read that was asked for before this
    /// call. All callers of one moment share one ReadIndex.
    pub async fn read_barrier(&self) -> Result<u64, ProposeError> {
        match self.read_barrier_now() {
            Some(index) => Ok(index),
            None => self.inner.shared.read_queue.join().await,
        }
    }

    /// Waits until this member leads and everything that was in its log before was handed to apply, or knows up to where
    /// another leader had committed. The result is the index of the last of it: serve nobody before the published applied id has reached it, else a read could see a
    /// state older than one that was seen before the restart.
    pub async fn wait_ready(&self) -> Result<u64, ProposeError> {
        let shared = &self.inner.shared;
        let mut ready = shared.ready.subscribe();
        let mut closed = shared.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(ProposeError::Stopped),
            index = ready.wait_for(Option::is_some) => {
                index.ok().and_then(|index| *index).ok_or(ProposeError::Stopped)
            }
        }
    }

    /// A picture of this moment. Costs an allocation; for every request there are [`Self::term`] and
    /// [`Self::read_barrier_now`].
    pub fn status(&self) -> Arc<RaftStatus> {
        let Inner { shared, wal, metrics, .. } = &*self.inner;
        let view = shared.published.view();
        let quorum_age = match (view.is_leader, view.sole_voter) {
            (false, _) => None,
            (true, true) => Some(Duration::ZERO),
            (true, false) => metrics.borrow_watched().last_quorum_acked.map(|at| at.elapsed()),
        };
        Arc::new(RaftStatus {
            member_id: shared.member_id,
            leader: view.leader,
            is_leader: view.is_leader,
            term: view.term,
            last_index: wal.last().map(|last| last.index),
            committed_index: shared.committed_index(),
            voters: view.voters.clone(),
            learners: view.learners.clone(),
            quorum_age,
            leader_for: view.leader_since.map(|since| runtime::now().saturating_duration_since(since)),
            leader_came_back: view.leader_came_back,
            leader_changes_seen: view.leader_changes_seen,
        })
    }

    /// The current term: one atomic load.
    pub fn term(&self) -> u64 {
        self.inner.shared.published.term()
    }

    /// Changes who takes part, on a leader. `based_on` is the entry of the membership that the caller has looked at; one
    /// that has gone by refuses the change. The answer is the entry of the new one, committed and handed to apply.
    pub async fn change_members(&self, change: MemberChange, based_on: LogId) -> Result<LogId, ChangeError> {
        self.inner.shared.changes.ask(change, based_on).await
    }

    /// Everybody who takes part by the newest membership in the log, committed or not. At a start the state may not know
    /// them yet.
    pub fn members(&self) -> Vec<MemberInfo> {
        membership::members_in(self.inner.metrics.borrow_watched().membership_config.membership())
    }

    /// On a leader: the last log entry that the member is known to have. None on others, and for an unknown member.
    pub fn matched_index(&self, member_id: u64) -> Option<u64> {
        let metrics = self.inner.metrics.borrow_watched();
        let replication = metrics.replication.as_ref()?;
        Some(replication.get(&member_id)?.as_ref().map_or(0, |matched| matched.index))
    }

    /// On a leader: how long the member has been answering without a break. None for one that does not.
    pub fn answering_for(&self, member_id: u64) -> Option<Duration> {
        let answering = self.inner.shared.answering.load();
        answering.get(&member_id).map(|since| runtime::now().saturating_duration_since(*since))
    }

    /// Changes with every change of leader, term or membership; not with every commit.
    pub fn status_changed(&self) -> watch::Receiver<u64> {
        self.inner.shared.published.version()
    }

    /// The state is durable up to `durable`: the log up to there is not needed by this member any more. Raft releases it
    /// once no peer needs it either; whoever finds it not released after a while asks again. Asks before `durable` was handed to apply are a broken invariant of the caller and
    /// are ignored.
    pub fn release_log(&self, durable: LogId) {
        self.inner.shared.set_durable(durable);
    }

    /// While the log is no larger than this, none of it is released that a peer still needs; one that is further behind gets
    /// a snapshot. [`LOG_KEPT_FOR_PEERS_BYTES`](crate::limits::LOG_KEPT_FOR_PEERS_BYTES) if nothing is said.
    pub fn keep_log_for_peers(&self, bytes: u64) {
        self.inner.shared.keep_log_for_peers(bytes);
    }

    /// The last log entry that has been released.
    pub fn released_log(&self) -> Option<LogId> {
        self.inner.wal.released()
    }

    /// Takes over a connection that another member has opened; what comes of it is logged. The stream must have been made
    /// on the thread "raft" (see [`Self::spawn_io`]) or need no runtime.
    pub fn accept_peer(&self, stream: PeerStream) {
        let peers = self.inner.peers.clone();
        self.inner.executor.spawn(peers.accept(stream));
    }

    /// Runs something on the thread "raft", whose runtime has the sockets to other members: listeners of peers and their
    /// handshakes. It ends with raft, at the latest. It must not block.
    pub fn spawn_io(&self, work: BoxFuture<()>) {
        self.inner.executor.spawn(work);
    }

    /// Asks a member something beside raft; its [`Calls`](crate::Calls) answer. Asking this member itself is answered here.
    pub async fn call(&self, member_id: u64, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let Inner { shared, executor, peers, .. } = &*self.inner;
        if shared.is_closed() {
            return Err(CallError::Stopped);
        }
        let peers = peers.clone();
        let asked = executor.spawn(async move { peers.call(member_id, request, timeout).await });
        asked.await.unwrap_or(Err(CallError::Stopped))
    }

    /// Hands leadership to a voter, the most advanced one if `to` names none, and waits until somebody else leads. The
    /// result is who that is. While it is under way writes wait.
    pub async fn transfer_leader(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let Inner { shared, executor, peers, .. } = &*self.inner;
        let raft = peers.raft().ok_or(TransferError::Stopped)?;
        let view = shared.published.view();
        if !view.is_leader {
            return Err(TransferError::NotLeader);
        }
        let to = match to {
            Some(own) if own == shared.member_id => return Ok(own),
            Some(to) if !view.voters.contains(&to) => return Err(TransferError::NotVoter { member_id: to }),
            Some(to) => to,
            None => driver::most_advanced(&raft, shared).ok_or(TransferError::NoTarget)?,
        };
        let handing_over = executor.spawn(driver::hand_over(raft, shared.clone(), to));
        handing_over.await.unwrap_or(Err(TransferError::Stopped))
    }

    /// The traffic with each other member since this one started.
    pub fn peer_traffic(&self) -> Vec<PeerTraffic> {
        self.inner.peers.traffic()
    }

    /// Stops: nothing new is accepted, who waits is told [`ProposeError::Stopped`], openraft ends, [`Apply`](crate::Apply)
    /// is dropped, and the log is stopped with everything enqueued before on disk. Safe to call more than once.
    pub async fn stop(&self) {
        self.inner.shared.request_stop();
        let mut finished = self.inner.shared.finished.subscribe();
        // An error means that the thread is gone, which is what was asked for.
        let _ = finished.wait_for(|finished| *finished).await;
    }
}

/// Why leadership was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This member does not lead.
    #[error("not leader")]
    NotLeader,
    /// The member that should lead has no vote, or is none.
    #[error("member {member_id:x} has no vote")]
    NotVoter { member_id: u64 },
    /// There is no other voter.
    #[error("there is no other voter")]
    NoTarget,
    /// Nobody else has taken over in time; this member may still lead.
    #[error("nobody has taken over in time")]
    TimedOut,
    /// This member stops.
    #[error("server stopped")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use daymark_storage::StorageError;
    use daymark_storage::sim_disk::SimDisk;
    use daymark_storage::wal::{Identity, WalOptions, run};

    use super::*;
    use crate::pending::AppliedProgress;
    use crate::state_machine::{Applied, Apply, Committed};
    use crate::{Bootstrap, MemberInfo, PeerOptions, RaftOptions, start};

    struct Ignore(AppliedProgress);

    impl Apply for Ignore {
        fn applied(&mut self) -> Result<Applied, StorageError> {
            Ok(Applied::default())
        }
        fn submit(&mut self, entries: Vec<Committed>) -> Result<(), StorageError> {
            self.0.set(entries.last().expect("never called without entries").id.index);
            Ok(())
        }
    }

    /// What a leader with peers does for every read, done by a lone one that was told to distrust the fast way.
    #[tokio::test]
    async fn without_the_fast_way_callers_get_a_read_index() {
        let identity = Identity { cluster_id: 1, member_id: 2 };
        let (wal, worker, _) = Wal::open(Arc::new(SimDisk::new(0)), WalOptions::new("/wal", identity)).unwrap();
        run(worker, |error| panic!("{error}"));
        let me = MemberInfo {
            id: 2,
            name: String::new(),
            peer_urls: vec![],
            client_urls: vec![],
            is_learner: false,
            has_vote: true,
        };
        let applied = AppliedProgress::default();
        let options = RaftOptions {
            identity,
            wal,
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1000),
            bootstrap: Bootstrap::New { members: vec![me] },
            applied: applied.clone(),
            peers: PeerOptions::none(),
            snapshots: None,
        };
        let handle = start(options, Box::new(Ignore(applied)), Box::new(|why| panic!("{why}"))).unwrap();
        let ready = handle.wait_ready().await.unwrap();
        assert_eq!(handle.read_barrier_now(), Some(ready));
        handle.inner.shared.read_gate.distrust(0);
        assert_eq!(handle.read_barrier_now(), None);
        let (one, other) = tokio::join!(handle.read_barrier(), handle.read_barrier());
        assert_eq!((one, other), (Ok(ready), Ok(ready)), "nothing was committed after the blank entry");
        handle.stop().await;
        assert_eq!(handle.read_barrier().await, Err(ProposeError::Stopped));
    }
}
