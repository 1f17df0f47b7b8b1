//! The other members, as seen from here: the links to them, what is known of them, and what comes in over theirs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::WriteHalf;
use tokio::sync::oneshot;

use daymark_storage::wal::Identity;

use super::frame::{ENTRY_FRAME_BYTES_MAX, FrameReader};
use super::hello::{Hello, Kind, PROTOCOL, Refusal};
use super::link::{self, Link, OpenError};
use super::message::tag;
use super::seam::{CallError, CallReply, PeerOptions, PeerStream};
use super::serve;
use super::stats::{PeerStats, PeerTraffic};
use crate::config::limits;
use crate::driver::{DaymarkRaft, Shared};
use crate::pending::Pending;
use crate::runtime;

/// Largest payload of a frame, on any kind of connection.
pub(crate) const FRAME_BYTES_MAX: usize = ENTRY_FRAME_BYTES_MAX;

/// What all connections of this member share.
pub(crate) struct Context {
    // Fixed.
    pub(crate) identity: Identity,
    pub(crate) options: PeerOptions,
    pub(crate) shared: Arc<Shared>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) election: Duration,
    /// How long a connection may move nothing.
    pub(crate) silence_max: Duration,

    /// What the last attempt to reach a member ended with, so that each cause is logged once.
    failures: Mutex<HashMap<u64, String>>,
    /// A peer has told this member that it was removed.
    was_removed: AtomicBool,
    /// Connections that this member has opened.
    opened: AtomicU64,
}

/// All connections of this member.
pub(crate) struct Peers {
    pub(crate) context: Arc<Context>,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    pub(crate) incoming: AtomicUsize,
    /// Somebody finds out whether the leader's process is still there.
    pub(crate) looks_for_leader: AtomicBool,
    /// Empty before raft is open and after it was closed: it and the connections hold each other.
    raft: Mutex<Option<DaymarkRaft>>,
}

/// One other member.
pub(crate) struct Peer {
    pub(crate) id: u64,
    pub(crate) stats: Arc<PeerStats>,
    pub(crate) append: Arc<Link>,
    pub(crate) control: Arc<Link>,
    pub(crate) forward: Arc<Link>,
    pub(crate) call: Arc<Link>,
    acknowledged: Mutex<Acknowledged>,
}

/// How much of this leader's log another member has said to have.
#[derive(Default)]
struct Acknowledged {
    /// Of the leader.
    term: u64,
    /// Behind the last entry.
    next_index: u64,
}

impl Context {
    /// A greeted connection of its own, not kept by any link.
    pub(crate) async fn open(
        &self,
        target: u64,
        kind: Kind,
    ) -> Result<(FrameReader, WriteHalf<PeerStream>), OpenError> {
        let opening = async {
            let stream = self.options.dialer.dial(target).await.map_err(OpenError::Dial)?;
            let (reader, writer, _) = link::greet(stream, &link::hello(self, target, kind)).await?;
            Ok((reader, writer))
        };
        let limit = 2 * self.election;
        runtime::timeout(limit, opening).await.unwrap_or(Err(OpenError::TimedOut(limit)))
    }

    /// A number for the next connection; never 0.
    pub(crate) fn next_connection(&self) -> u64 {
        self.opened.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// How long to leave a member alone after so many failures: doubles up to an election time-out, up to half of it by
    /// chance, so that members that lost each other do not meet in step.
    pub(crate) fn pause(&self, first: Duration, failures: u32) -> Duration {
        let whole = first.saturating_mul(1 << failures.min(16)).min(self.election);
        whole / 2 + runtime::random_part(whole / 2)
    }

    pub(crate) fn note_failure(&self, target: u64, error: &OpenError) {
        if let OpenError::Refused { refusal: Refusal::Removed, member_id, cluster_id, .. } = error
            && (*member_id, *cluster_id) == (target, self.identity.cluster_id)
            && !self.was_removed.swap(true, Ordering::Relaxed)
        {
            self.shared.note_removed(target);
        }
        let text = error.to_string();
        let is_new = self.failures.lock().insert(target, text.clone()).as_ref() != Some(&text);
        if is_new {
            tracing::warn!(peer = format!("{target:x}"), error = text, "cannot reach a member");
        }
    }

    pub(crate) fn note_open(&self, target: u64, stats: &PeerStats) {
        if stats.open.fetch_add(1, Ordering::Relaxed) == 0 {
            self.failures.lock().remove(&target);
            tracing::info!(peer = format!("{target:x}"), "reached a member");
        }
    }

    pub(crate) fn note_lost(&self, target: u64, kind: Kind, stats: &PeerStats, why: &str) {
        if stats.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            stats.losses.fetch_add(1, Ordering::Relaxed);
        }
        if !self.shared.is_closed() {
            let (peer, connection) = (format!("{target:x}"), kind.name());
            tracing::warn!(peer, connection, error = why, "lost a connection to a member");
        }
    }
}

impl Peer {
    fn new(context: &Arc<Context>, id: u64) -> Arc<Self> {
        let stats = Arc::new(PeerStats::default());
        let link = |kind| Link::new(context.clone(), stats.clone(), id, kind);
        let (append, control) = (link(Kind::Append), link(Kind::Control));
        let (forward, call) = (link(Kind::Forward), link(Kind::Call));
        Arc::new(Self { id, append, control, forward, call, stats, acknowledged: Mutex::default() })
    }

    /// It has all entries of the leader of `term` before `next_index`.
    pub(crate) fn note_acknowledged(&self, term: u64, next_index: u64) {
        let mut known = self.acknowledged.lock();
        if known.term != term {
            *known = Acknowledged { term, next_index: 0 };
        }
        known.next_index = known.next_index.max(next_index);
    }

    /// It lacks the entry at `index` of the leader of `term`. If it had acknowledged that one it has lost it; raft sends all
    /// of it again, but nothing can be said for what it has promised to others.
    pub(crate) fn note_lacking(&self, term: u64, index: u64) {
        let mut known = self.acknowledged.lock();
        if known.term != term || index >= known.next_index {
            return;
        }
        let (peer, acknowledged) = (format!("{:x}", self.id), known.next_index - 1);
        *known = Acknowledged { term, next_index: 0 };
        tracing::error!(
            peer,
            acknowledged,
            lacking = index,
            remedy = "it gets them again; if an older copy of its data directory was put back, or its disk forgets what was \
                      synced, its votes are lost as well: remove it from the cluster and add it with an empty data directory",
            "a member has lost log entries that it had acknowledged"
        );
    }

    fn links(&self) -> [&Arc<Link>; 4] {
        [&self.append, &self.control, &self.forward, &self.call]
    }
}

impl Peers {
    pub(crate) fn new(identity: Identity, options: PeerOptions, shared: Arc<Shared>) -> Arc<Self> {
        let election = shared.election;
        let context = Context {
            identity,
            options,
            pending: shared.pending.clone(),
            shared,
            election,
            silence_max: election,
            failures: Mutex::default(),
            was_removed: AtomicBool::new(false),
            opened: AtomicU64::new(0),
        };
        Arc::new(Self {
            context: Arc::new(context),
            peers: Mutex::default(),
            incoming: AtomicUsize::new(0),
            looks_for_leader: AtomicBool::new(false),
            raft: Mutex::default(),
        })
    }

    pub(crate) fn peer(&self, id: u64) -> Arc<Peer> {
        self.peers.lock().entry(id).or_insert_with(|| Peer::new(&self.context, id)).clone()
    }

    /// Forgets members that are not in `members` any more and closes connections to them.
    pub(crate) fn keep_only(&self, members: &[u64]) {
        let mut gone = Vec::new();
        self.peers.lock().retain(|id, peer| {
            let keep = members.contains(id);
            if !keep {
                gone.push(peer.clone());
            }
            keep
        });
        for peer in gone {
            peer.links().iter().for_each(|link| link.close("it is no member any more"));
        }
    }

    /// A member has opened a connection: there is a way between us, so that no pause is needed.
    pub(crate) fn note_heard(&self, id: u64) {
        let known = self.peers.lock().get(&id).cloned();
        if let Some(peer) = known {
            peer.links().iter().for_each(|link| link.try_again());
        }
    }

    /// Counters of a member; nothing is kept for strangers.
    pub(crate) fn stats_of_member(&self, id: u64) -> Option<Arc<PeerStats>> {
        let view = self.context.shared.published.view();
        let is_member = view.voters.contains(&id) || view.learners.contains(&id);
        is_member.then(|| self.peer(id).stats.clone())
    }

    pub(crate) fn traffic(&self) -> Vec<PeerTraffic> {
        let mut traffic: Vec<_> = self.peers.lock().iter().map(|(id, peer)| peer.stats.read(*id)).collect();
        traffic.sort_by_key(|peer| peer.member_id);
        traffic
    }

    /// Serves a connection that another member has opened, until it ends.
    pub(crate) async fn accept(self: Arc<Self>, stream: PeerStream) {
        let raft = self.raft();
        let mut closed = self.context.shared.closed.subscribe();
        tokio::select! {
            () = serve::accept(&self, raft, stream) => {}
            _ = closed.wait_for(|closed| *closed) => {}
        }
    }

    pub(crate) fn raft(&self) -> Option<DaymarkRaft> {
        self.raft.lock().clone()
    }

    pub(crate) fn set_raft(&self, raft: Option<DaymarkRaft>) {
        let before = std::mem::replace(&mut *self.raft.lock(), raft);
        drop(before);
    }

    pub(crate) async fn call(&self, member_id: u64, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        if member_id == self.context.identity.member_id {
            return self.call_self(request, timeout).await;
        }
        let calling = async {
            let unreachable = |why| CallError::Unreachable { member_id, why };
            let connection = self.peer(member_id).call.connection().await.map_err(unreachable)?;
            if connection.requests_waiting() >= limits::CALLS_MAX {
                return Err(CallError::Busy);
            }
            let answer = connection.request(tag::CALL, request).await.map_err(|_| CallError::TimedOut)?;
            serve::call_answer(answer)
        };
        runtime::timeout(timeout, calling).await.unwrap_or(Err(CallError::TimedOut))
    }

    async fn call_self(&self, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        let (reply, answer) = oneshot::channel();
        let own = self.context.identity.member_id;
        self.context.options.calls.serve(own, request, CallReply(reply));
        match runtime::timeout(timeout, answer).await {
            Some(answered) => answered.map_err(|_| CallError::NotServed),
            None => Err(CallError::TimedOut),
        }
    }
}

/// Asks a member of some cluster something without being a member oneself; its [`Calls::ask`](super::Calls::ask) answers.
/// For a member that is about to join. Runs on any runtime of tokio that drives the stream and has timers.
pub async fn ask(stream: PeerStream, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
    let unreachable = |why: String| CallError::Unreachable { member_id: 0, why };
    let asking = async {
        let hello = Hello {
            protocol: PROTOCOL,
            kind: Ok(Kind::Ask),
            cluster_id: 0,
            sender: 0,
            target: 0,
            version: String::new(),
        };
        let (mut reader, writer, _) = link::greet(stream, &hello).await.map_err(|e| unreachable(e.to_string()))?;
        serve::ask_once(&mut reader, writer, request).await
    };
    runtime::timeout(timeout, asking).await.unwrap_or(Err(CallError::TimedOut))
}
