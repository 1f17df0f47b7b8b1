//! The thread "raft": one current-thread runtime that owns openraft, and the loops that feed it. Starting and stopping.
//! Never syncs a file, never calls the backend.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;
use std::{io, thread};

use arc_swap::ArcSwap;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResult;
use openraft::{Raft, ReadPolicy};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};

use daymark_storage::LogId;
use daymark_storage::snapshot::SnapshotStore;
use daymark_storage::wal::{Identity, Wal};

use crate::alone;
use crate::batch::{Inbox, ProposeError};
use crate::bootstrap::{self, Bootstrap};
use crate::changes::{self, ChangeQueue};
use crate::config::{self, limits};
use crate::executor::Executor;
use crate::handle::{Handle, Metrics, TransferError};
use crate::log_store::LogStore;
use crate::pending::{AppliedProgress, BatchResponder, Pending};
use crate::read_barrier::{self, ReadGate, ReadQueue};
use crate::runtime::{self, Instant, Tasks};
use crate::state_machine::{Applied, Apply, StateMachine};
use crate::status::{self, Published};
use crate::transport::{Factory, PeerOptions, Peers, deliver, read_index as read_index_of_leader, snapshot};
use crate::types::{SealedBatch, SnapshotMeta, TypeConfig, log_id};

pub(crate) type DaymarkRaft = Raft<TypeConfig, StateMachine>;

/// What a member's raft is started with.
pub struct RaftOptions {
    /// Cluster and member id, as in the log's superblock.
    pub identity: Identity,
    /// The log. Its worker must be running already: the first membership waits for a sync.
    pub wal: Wal,
    /// How often a leader shows that it lives.
    pub heartbeat: Duration,
    /// A leader is given up after one to two of these.
    pub election: Duration,
    /// New or restarted.
    pub bootstrap: Bootstrap,
    /// Moved by the apply thread after each applied batch.
    pub applied: AppliedProgress,
    /// How it reaches other members, and what it answers them.
    pub peers: PeerOptions,
    /// Makes and takes snapshots of the state; without it no member that needs one can join.
    pub snapshots: Option<Arc<SnapshotStore>>,
}

/// Why raft did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Times that do not fit together.
    #[error("heartbeat and election times do not fit together: {0}")]
    Config(String),
    /// No thread or no runtime.
    #[error("starting the thread \"raft\" failed: {0}")]
    Thread(#[from] io::Error),
    /// Log or state cannot be used.
    #[error("{0}")]
    Open(String),
    /// The state has lost what the log no longer has.
    #[error("the state ends at log id {} but the log begins behind {released}", applied.map_or("none".to_string(), |id| id.to_string()))]
    StateBehindLog { applied: Option<LogId>, released: LogId },
    /// The log has lost what was applied, and perhaps more that was acknowledged after it.
    #[error("the log ends at log id {} but the state has applied {applied}", last.map_or("none".to_string(), |id| id.to_string()))]
    LogBehindState { applied: LogId, last: Option<LogId> },
    /// A vote is on disk before the first entry of its term: it is an older one that was put back, and the votes since are
    /// forgotten.
    #[error("the vote is of term {voted} but the log holds entries of term {}: the superblock is older than the log", last.term)]
    VoteBehindLog { voted: u64, last: LogId },
    /// Asked to begin a cluster on a log that has one.
    #[error("the log already belongs to a running cluster: start it as restarted, or use an empty data directory")]
    NotNew,
    /// Asked to go on with an empty log.
    #[error("the log is empty: nothing to go on with")]
    NotInitialized,
    /// A member begins a cluster only as one of its founders, who all vote.
    #[error("member {member_id:x} is not among the founders of the cluster, or one of them has no vote")]
    Members { member_id: u64 },
}

/// What the thread "raft" shares with handles, the log's callbacks and the state machine shim.
pub struct Shared {
    // Fixed.
    pub(crate) member_id: u64,
    pub(crate) election: Duration,
    pub(crate) propose_timeout: Duration,

    // Queues into the thread.
    pub(crate) inbox: Inbox,
    pub(crate) read_queue: ReadQueue,
    /// The leader that was last heard of, and when.
    heard: Mutex<Option<(u64, Instant)>>,
    /// Told when that is news.
    pub(crate) heard_anew: Notify,
    /// Leadership is being handed to another member: nothing is proposed here.
    handing_over: AtomicBool,
    /// The log, for how far it is behind; set at start.
    log: OnceLock<Wal>,
    /// The member that has told this one that it was removed.
    removed_by: watch::Sender<Option<u64>>,
    pub(crate) changes: ChangeQueue,
    /// Up to where the state is durable, as told by the release policy, and the wake for it.
    durable: Mutex<Option<LogId>>,
    durable_moved: Notify,
    pub(crate) snapshots: Option<Arc<SnapshotStore>>,
    /// On a leader: the last entry that every peer has, if the log is to be kept for those that are behind.
    peers_have: Mutex<Option<LogId>>,
    /// How large the log may become for them.
    log_kept_bytes: AtomicU64,
    stopping: watch::Sender<bool>,

    // Published by the thread.
    pub(crate) pending: Arc<Pending>,
    pub(crate) read_gate: ReadGate,
    pub(crate) published: Published,
    /// On a leader: since when each other member has answered without a break.
    pub(crate) answering: ArcSwap<BTreeMap<u64, runtime::Instant>>,
    /// Index of the last entry handed to apply, or found applied at start, + 1.
    committed_next: AtomicU64,
    /// The last blank entry handed to apply.
    pub(crate) blank: watch::Sender<Option<LogId>>,
    pub(crate) ready: watch::Sender<Option<u64>>,
    /// Everybody is told `Stopped` from here on, by request or by a fatal error.
    pub(crate) closed: watch::Sender<bool>,
    pub(crate) finished: watch::Sender<bool>,
}

impl Shared {
    /// `election` is that of the member's options.
    pub fn new(member_id: u64, election: Duration, applied: AppliedProgress) -> Self {
        let propose_timeout = config::propose_timeout(election);
        let pending = Pending::new(member_id, runtime::random_u64(), propose_timeout, applied);
        Self {
            member_id,
            election,
            propose_timeout,
            inbox: Inbox::default(),
            read_queue: ReadQueue::new(propose_timeout),
            heard: Mutex::new(None),
            heard_anew: Notify::new(),
            handing_over: AtomicBool::new(false),
            log: OnceLock::new(),
            removed_by: watch::Sender::new(None),
            changes: ChangeQueue::default(),
            durable: Mutex::new(None),
            durable_moved: Notify::new(),
            snapshots: None,
            peers_have: Mutex::new(None),
            log_kept_bytes: AtomicU64::new(limits::LOG_KEPT_FOR_PEERS_BYTES),
            stopping: watch::Sender::new(false),
            pending: Arc::new(pending),
            read_gate: ReadGate::default(),
            published: Published::default(),
            answering: ArcSwap::default(),
            committed_next: AtomicU64::new(0),
            blank: watch::Sender::new(None),
            ready: watch::Sender::new(None),
            closed: watch::Sender::new(false),
            finished: watch::Sender::new(false),
        }
    }

    /// A membership was committed: the fast way of reading may open again.
    pub(crate) fn look_at_membership(&self) {
        self.blank.send_modify(|_| ());
    }

    /// Told before the entry is handed to apply, so that apply never knows more than this says.
    pub(crate) fn note_committed(&self, last: LogId) {
        self.committed_next.store(last.index + 1, Ordering::Release);
    }

    pub(crate) fn committed_index(&self) -> Option<u64> {
        self.committed_next.load(Ordering::Acquire).checked_sub(1)
    }

    pub(crate) fn set_durable(&self, durable: LogId) {
        let handed_over = self.committed_index().is_some_and(|committed| durable.index <= committed);
        if !handed_over {
            tracing::error!(%durable, "asked to release log entries that were not applied");
            return;
        }
        let mut known = self.durable.lock();
        // Also for what is known already: openraft drops the wish for a snapshot while it makes one.
        if *known <= Some(durable) {
            *known = Some(durable);
            drop(known);
            self.durable_moved.notify_one();
        }
    }

    /// Whether the thread "raft" may do other threads' work instead of waking them: a lone voter has nobody to talk to
    /// meanwhile and no election to miss, and nothing else waits to be proposed.
    pub(crate) fn may_wait_for_disk(&self) -> bool {
        self.read_gate.index().is_some() && self.inbox.is_empty()
    }

    /// Up to where the log may be released: what is durable, but not what a peer still needs, be it because it is behind
    /// or because it gets a snapshot that the log has to go on from.
    pub(crate) fn releasable(&self) -> Option<LogId> {
        let durable = (*self.durable.lock())?;
        let snapshot = self.snapshots.as_ref().and_then(|snapshots| snapshots.oldest_in_use());
        let needed = [snapshot, *self.peers_have.lock()].into_iter().flatten().min();
        Some(needed.map_or(durable, |needed| needed.min(durable)))
    }

    /// A snapshot whose files are there.
    pub(crate) fn made_snapshot(&self) -> Option<SnapshotMeta> {
        let manifest = self.snapshots.as_ref()?.newest_made()?;
        snapshot::meta_of(&manifest).ok()
    }

    /// An append or a heartbeat of this leader was accepted.
    pub(crate) fn note_leader_heard(&self, leader: u64) {
        let now = runtime::now();
        let before = self.heard.lock().replace((leader, now));
        let is_news = before.is_none_or(|(of, at)| of != leader || now.duration_since(at) > self.silence_max());
        if is_news {
            self.heard_anew.notify_one();
        }
    }

    /// Whether this leader was heard of a moment ago.
    pub(crate) fn hears(&self, leader: u64) -> bool {
        let heard = *self.heard.lock();
        heard.is_some_and(|(of, at)| of == leader && runtime::now().duration_since(at) <= self.silence_max())
    }

    /// A leader that was not heard of for so long is given up; elections begin a little before or after.
    fn silence_max(&self) -> Duration {
        self.election * 3 / 2
    }

    /// Waits until a leader is known: who it is, and its term.
    pub(crate) async fn wait_for_leader(&self) -> (u64, u64) {
        let mut version = self.published.version();
        loop {
            version.borrow_and_update();
            let view = self.published.view();
            if let Some(leader) = view.leader {
                return (leader, view.term);
            }
            // The sender is ours: it cannot be gone.
            let _ = version.changed().await;
        }
    }

    /// Waits for news about leadership, but not longer than `pause`.
    pub(crate) async fn leader_changes_or(&self, pause: Duration) {
        let mut version = self.published.version();
        runtime::timeout(pause, version.changed()).await;
    }

    pub(crate) fn log(&self) -> Option<&Wal> {
        self.log.get()
    }

    /// The newest entry of the log, perhaps not durable yet.
    pub(crate) fn last_log_id(&self) -> Option<LogId> {
        self.log.get().and_then(Wal::last)
    }

    /// Whether so much waits for the log's thread that new batches are refused.
    pub(crate) fn log_is_behind(&self) -> bool {
        self.log.get().is_some_and(|log| log.stats().queue_bytes > limits::LOG_QUEUE_BYTES_MAX)
    }

    pub(crate) fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::Relaxed)
    }

    fn note_handing_over(&self) {
        self.handing_over.store(true, Ordering::Relaxed);
        self.heard_anew.notify_one();
    }

    pub(crate) fn note_handed_over(&self) {
        self.handing_over.store(false, Ordering::Relaxed);
    }

    /// The term in which this member leads and may propose, 0 if it does not lead or others wait to be delivered first.
    fn term_to_propose_in(&self) -> u64 {
        if self.read_gate.index().is_some() {
            return self.published.term();
        }
        let view = self.published.view();
        if view.is_leader && self.pending.held.is_empty() { view.term } else { 0 }
    }

    /// Another member says that this one was removed.
    pub(crate) fn note_removed(&self, by: u64) {
        self.removed_by.send_replace(Some(by));
    }

    pub(crate) fn keep_log_for_peers(&self, bytes: u64) {
        self.log_kept_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn request_stop(&self) {
        self.stopping.send_replace(true);
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// From here on everybody is told `Stopped`.
    fn close(&self) {
        self.closed.send_replace(true);
        self.read_gate.close();
        self.inbox.close();
        self.pending.stop();
        self.read_queue.close();
        self.changes.close();
        status::retire(self);
    }
}

/// Starts the thread "raft". `on_fatal` is called at most once, on that thread, with the facts; the server then stops
/// the member. It must not block: neither [`Handle::stop`] nor the log's worker end before it has returned.
///
/// An error means that nothing was begun; the log is left running for the caller to stop.
pub fn start(
    options: RaftOptions,
    apply: Box<dyn Apply>,
    on_fatal: Box<dyn FnOnce(String) + Send>,
) -> Result<Handle, StartError> {
    let Identity { cluster_id, member_id } = options.identity;
    let config = config::openraft_config(cluster_id, options.heartbeat, options.election)
        .map_err(|e| StartError::Config(e.to_string()))?;
    let mut shared = Shared::new(member_id, options.election, options.applied);
    shared.snapshots = options.snapshots;
    let shared = Arc::new(shared);
    let wal = options.wal;
    // The first and only time.
    let _ = shared.log.set(wal.clone());
    let peers = Peers::new(options.identity, options.peers, shared.clone());
    let (opened, answer) = mpsc::sync_channel(1);
    let member = Member {
        shared: shared.clone(),
        wal: wal.clone(),
        peers: peers.clone(),
        config: Arc::new(config),
        bootstrap: options.bootstrap,
        opened,
    };
    let runtime = runtime::build()?;
    let executor = Executor::new(runtime.handle().clone());
    let theirs = executor.clone();
    thread::Builder::new().name("raft".into()).spawn(move || run(member, &runtime, theirs, apply, on_fatal))?;
    let gone = || StartError::Open("the thread \"raft\" ended while it started".into());
    let metrics = answer.recv().map_err(|_| gone())??;
    Ok(Handle::new(shared, wal, metrics, executor, peers))
}

struct Member {
    shared: Arc<Shared>,
    wal: Wal,
    peers: Arc<Peers>,
    config: Arc<openraft::Config>,
    bootstrap: Bootstrap,
    opened: mpsc::SyncSender<Result<Metrics, StartError>>,
}

/// The thread. `finished` is told last, when openraft and with it [`Apply`] are gone.
fn run(
    member: Member,
    runtime: &tokio::runtime::Runtime,
    executor: Arc<Executor>,
    apply: Box<dyn Apply>,
    on_fatal: Box<dyn FnOnce(String) + Send>,
) {
    let shared = member.shared.clone();
    let mut on_fatal = Some(on_fatal);
    let mut fatal = |why: String| {
        if let Some(on_fatal) = on_fatal.take() {
            on_fatal(why);
        }
    };
    let work = runtime::drive(executor, member.run(apply, &mut fatal));
    let ran = catch_unwind(AssertUnwindSafe(|| runtime.block_on(work)));
    if ran.is_err() {
        shared.close();
        fatal("the thread \"raft\" panicked".into());
    }
    shared.finished.send_replace(true);
}

impl Member {
    async fn run(self, apply: Box<dyn Apply>, fatal: &mut impl FnMut(String)) {
        let raft = match self.open(apply).await {
            Ok(raft) => raft,
            // The starter that asked waits for this answer; if it is gone, there is nobody to tell.
            Err(error) => return drop(self.opened.send(Err(error))),
        };
        let Self { shared, wal, peers, bootstrap, opened, .. } = self;
        if opened.send(Ok(raft.metrics())).is_err() {
            return;
        }
        let mut stopping = shared.stopping.subscribe();
        let mut removed = shared.removed_by.subscribe();
        let mut loops = spawn_loops(&raft, &shared, &peers, &wal, bootstrap);
        peers.set_raft(Some(raft.clone()));
        let ended = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => None,
            by = removed.wait_for(Option::is_some) => Some(Ok(was_removed(by.ok().and_then(|by| *by)))),
            ended = loops.first_to_end() => Some(ended),
        };
        shared.close();
        peers.set_raft(None);
        if let Some(ended) = ended {
            let seen = ended.unwrap_or_else(|error| error.to_string());
            fatal(cause(&raft).unwrap_or(seen));
        }
        drop(loops);
        if let Err(error) = raft.shutdown().await {
            tracing::error!(%error, "openraft did not end cleanly");
        }
        // After a fatal error the log is stopped when the server asks for it, like everything else.
        let _ = stopping.wait_for(|stopping| *stopping).await;
        stop_log(&wal).await;
    }

    async fn open(&self, mut apply: Box<dyn Apply>) -> Result<DaymarkRaft, StartError> {
        let state = apply.applied().map_err(|error| StartError::Open(error.to_string()))?;
        check_state_meets_log(&self.wal, &state)?;
        check_vote_meets_log(&self.wal)?;
        if let Bootstrap::Alone = self.bootstrap {
            alone::make(&self.wal, &state, self.shared.member_id).await.map_err(StartError::Open)?;
        }
        let applied = state.id;
        if let Some(applied) = applied {
            self.shared.note_committed(applied);
            self.shared.pending.note_applied(applied.index);
        }
        let log_store = LogStore::new(self.wal.clone(), self.shared.clone());
        let state_machine = StateMachine::new(apply, self.shared.clone());
        let raft = Raft::new(
            self.shared.member_id,
            self.config.clone(),
            Factory(self.peers.clone()),
            log_store,
            state_machine,
        )
        .await
        .map_err(|fatal| StartError::Open(fatal.to_string()))?;
        bootstrap::check(&raft, &self.bootstrap, self.shared.member_id).await?;
        Ok(raft)
    }
}

/// `released <= applied <= last`, else something that was acknowledged is missing. openraft would mend the second case
/// by releasing the log up to the applied id, and with it hide that entries behind that id may be lost as well. That is
/// right for one state only: one that is a snapshot as it was installed, to which the log was not reset before a crash.
/// Nothing can have been added to such a log, because the reset comes before everything that follows it.
fn check_state_meets_log(wal: &Wal, state: &Applied) -> Result<(), StartError> {
    let (released, last, applied) = (wal.released(), wal.last(), state.id);
    match (released, applied) {
        (Some(released), applied) if applied < Some(released) => Err(StartError::StateBehindLog { applied, released }),
        (_, Some(applied)) if last < Some(applied) && state.installed == Some(applied) => {
            tracing::warn!(%applied, ?last, "the log is reset to a snapshot that was installed before a crash");
            Ok(())
        }
        (_, Some(applied)) if last < Some(applied) => Err(StartError::LogBehindState { applied, last }),
        _ => Ok(()),
    }
}

fn check_vote_meets_log(wal: &Wal) -> Result<(), StartError> {
    let voted = wal.vote().map_or(0, |vote| vote.term);
    match wal.last().max(wal.released()) {
        Some(last) if last.term > voted => Err(StartError::VoteBehindLog { voted, last }),
        _ => Ok(()),
    }
}

async fn stop_log(wal: &Wal) {
    let (done, stopped) = oneshot::channel();
    let report = move |result| {
        // `stopped` is awaited below, on this same thread.
        let _ = done.send(result);
    };
    wal.stop(Box::new(report));
    match stopped.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the log did not stop cleanly"),
        Err(_) => tracing::error!("the log's thread was gone before it was stopped"),
    }
}

/// Each loop runs until openraft ends and then says what it saw.
fn spawn_loops(
    raft: &DaymarkRaft,
    shared: &Arc<Shared>,
    peers: &Arc<Peers>,
    wal: &Wal,
    bootstrap: Bootstrap,
) -> Tasks<String> {
    let mut loops = Tasks::new();
    loops.spawn(follow(raft.clone(), shared.clone(), peers.clone(), bootstrap));
    loops.spawn(propose(raft.clone(), shared.clone()));
    loops.spawn(deliver(raft.clone(), shared.clone(), peers.clone()));
    loops.spawn(confirm_reads(raft.clone(), shared.clone(), peers.clone()));
    loops.spawn(catch_up_once(shared.clone()));
    loops.spawn(changes::run(raft.clone(), shared.clone()));
    loops.spawn(changes::look_after_members(raft.clone(), shared.clone()));
    loops.spawn(release(raft.clone(), shared.clone(), wal.clone()));
    loops.spawn(tidy_snapshots(shared.clone()));
    loops.spawn(expire(shared.clone()));
    loops
}

async fn follow(raft: DaymarkRaft, shared: Arc<Shared>, peers: Arc<Peers>, bootstrap: Bootstrap) -> String {
    let begun = bootstrap::begin(&raft, bootstrap, shared.member_id).await;
    if let Err(why) = begun {
        return why;
    }
    status::follow(&raft, &shared, &peers).await;
    "openraft ended".into()
}

/// Takes all batches that are there per wake and hands each to openraft as one entry; where somebody else leads, or
/// nobody, they are held for [`deliver`]. openraft gathers what is in its channel into one append.
async fn propose(raft: DaymarkRaft, shared: Arc<Shared>) -> String {
    let mut burst = Vec::new();
    loop {
        burst = shared.inbox.take(burst).await;
        let log_is_behind = shared.log_is_behind();
        let (sent_term, is_alone) = (shared.term_to_propose_in(), shared.read_gate.index().is_some());
        for proposal in burst.drain(..) {
            if log_is_behind {
                proposal.fail(ProposeError::TooManyRequests);
                continue;
            }
            let Some(sealed) = shared.pending.admit(proposal, sent_term, is_alone) else { continue };
            if sent_term == 0 {
                shared.pending.held.push(sealed);
            } else if let Err(fatal) = propose_sealed(&raft, &shared, sealed).await {
                return fatal;
            }
        }
    }
}

/// Hands one batch of this member to openraft; an error is fatal.
pub(crate) async fn propose_sealed(raft: &DaymarkRaft, shared: &Shared, sealed: SealedBatch) -> Result<(), String> {
    let responder = BatchResponder::new(shared.pending.clone(), sealed.id().sequence, why_without_result);
    raft.client_write_ff(sealed, Some(responder)).await.map_err(|fatal| fatal.to_string())
}

pub(crate) fn why_without_result(result: ClientWriteResult<TypeConfig>) -> Option<ProposeError> {
    match result {
        Ok(_) => None,
        Err(ClientWriteError::ForwardToLeader(_)) => Some(ProposeError::NoLeader),
        Err(_) => Some(ProposeError::LeaderChanged),
    }
}

/// One ReadIndex after the other, each for all callers that came before it was asked for.
async fn confirm_reads(raft: DaymarkRaft, shared: Arc<Shared>, peers: Arc<Peers>) -> String {
    let mut callers = Vec::new();
    loop {
        if callers.is_empty() {
            shared.read_queue.wait().await;
        }
        shared.read_queue.join_all(&mut callers);
        // No longer than the first caller has time.
        let patience = read_barrier::patience(&callers);
        let asked = runtime::timeout(patience, read_index_of_leader(&raft, &shared, &peers)).await;
        match asked.unwrap_or(Err(ProposeError::TimedOut)) {
            // Whoever comes meanwhile may share the next try.
            Err(why @ (ProposeError::NoLeader | ProposeError::LeaderChanged)) => {
                read_barrier::expire(&mut callers, why);
                shared.leader_changes_or(limits::READ_RETRY_PAUSE).await;
            }
            Err(ProposeError::TimedOut) => {
                read_barrier::expire(&mut callers, ProposeError::TimedOut);
                shared.leader_changes_or(limits::READ_RETRY_PAUSE).await;
            }
            answer => read_barrier::answer(&mut callers, answer),
        }
    }
}

/// The read index of this member, which must lead: confirmed by a round of heartbeats.
pub(crate) async fn read_index(raft: &DaymarkRaft) -> Result<u64, ProposeError> {
    match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => Ok(linearizer.read_log_id().index()),
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(ProposeError::NoLeader),
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(ProposeError::TimedOut),
        Err(RaftError::Fatal(_)) => Err(ProposeError::Stopped),
    }
}

/// A member that does not lead is ready once it knows up to where a leader had committed after the start.
async fn catch_up_once(shared: Arc<Shared>) -> String {
    let mut ready = shared.ready.subscribe();
    let by_leading = async {
        // The sender is ours: it cannot be gone.
        let _ = ready.wait_for(Option::is_some).await;
    };
    let by_following = async {
        loop {
            let (leader, _) = shared.wait_for_leader().await;
            if leader == shared.member_id {
                // The first entry of the own term tells.
                shared.leader_changes_or(shared.election).await;
            } else if let Ok(index) = shared.read_queue.join().await {
                shared.ready.send_if_modified(|ready| {
                    let is_first = ready.is_none();
                    ready.get_or_insert(index);
                    is_first
                });
                return;
            }
        }
    };
    tokio::select! {
        () = by_leading => {}
        () = by_following => {}
    }
    std::future::pending().await
}

/// Hands leadership to `to` and waits until somebody else is heard of as leader. Writes of this member are held meanwhile.
/// openraft stays quiet after that, so that somebody takes over even if that one does not.
pub(crate) async fn hand_over(raft: DaymarkRaft, shared: Arc<Shared>, to: u64) -> Result<u64, TransferError> {
    let mut version = shared.published.version();
    shared.note_handing_over();
    raft.trigger().transfer_leader(to).await.map_err(|_| TransferError::Stopped)?;
    let taken_over = async {
        loop {
            version.borrow_and_update();
            match shared.published.view().leader {
                Some(leader) if leader != shared.member_id => return leader,
                // The sender is ours: it cannot be gone.
                _ => drop(version.changed().await),
            }
        }
    };
    let leader = runtime::timeout(2 * shared.election, taken_over).await;
    shared.note_handed_over();
    leader.ok_or(TransferError::TimedOut)
}

/// The voter that has the most of the log, as far as a leader knows; among equals the one that answered last.
pub(crate) fn most_advanced(raft: &DaymarkRaft, shared: &Shared) -> Option<u64> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let view = shared.published.view();
    let replicated = |id: &u64| metrics.replication.as_ref().and_then(|matching| matching.get(id).copied().flatten());
    let heard = |id: &u64| metrics.heartbeat.as_ref().and_then(|heard| heard.get(id).copied().flatten());
    let others = view.voters.iter().copied().filter(|id| *id != shared.member_id);
    others.max_by_key(|id| (replicated(id), heard(id).map(|at| *at)))
}

fn was_removed(by: Option<u64>) -> String {
    let by = by.unwrap_or_default();
    format!(
        "member {by:x} says that this member was removed from the cluster: to take part again, add it as a new member \
         and start it with an empty data directory"
    )
}

/// Tells openraft that a new snapshot exists, namely the state on disk; it then purges the log before it.
async fn release(raft: DaymarkRaft, shared: Arc<Shared>, wal: Wal) -> String {
    loop {
        shared.durable_moved.notified().await;
        *shared.peers_have.lock() = what_peers_have(&raft, &shared, &wal);
        if let Err(fatal) = raft.trigger().snapshot().await {
            return fatal.to_string();
        }
    }
}

/// The last entry that every other member has, as their leader knows; none if the log need not be kept for them: then one
/// that is behind gets a snapshot.
fn what_peers_have(raft: &DaymarkRaft, shared: &Shared, wal: &Wal) -> Option<LogId> {
    if wal.stats().live_bytes > shared.log_kept_bytes.load(Ordering::Relaxed) {
        return None;
    }
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let peers = metrics.replication.iter().flatten().filter(|(id, _)| **id != shared.member_id);
    let matched = peers.map(|(_, matched)| matched.as_ref().map_or(LogId::default(), log_id));
    matched.chain(shared.snapshots.as_ref().and_then(|snapshots| snapshots.oldest_kept())).min()
}

async fn tidy_snapshots(shared: Arc<Shared>) -> String {
    loop {
        runtime::sleep(limits::SNAPSHOT_TIDY_INTERVAL).await;
        let Some(snapshots) = shared.snapshots.clone() else { continue };
        if let Err(error) = runtime::blocking(move || snapshots.tidy()).await {
            return format!("looking after snapshots failed: {error}");
        }
    }
}

async fn expire(shared: Arc<Shared>) -> String {
    loop {
        runtime::sleep(limits::EXPIRY_INTERVAL).await;
        shared.pending.expire();
    }
}

/// What openraft itself says it ended with.
fn cause(raft: &DaymarkRaft) -> Option<String> {
    match &raft.metrics().borrow_watched().running_state {
        Ok(()) | Err(Fatal::Stopped) => None,
        Err(fatal) => Some(fatal.to_string()),
    }
}
