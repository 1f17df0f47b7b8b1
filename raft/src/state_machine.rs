//! The seam to the replicated state, trait [`Apply`], and the shim that hands it committed entries together with whoever
//! waits for them. Only enqueues: the state itself, and the thread that works on it, are the server's.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::entry::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use daymark_storage::snapshot::Received;
use daymark_storage::{LogId, StorageError};

use crate::batch::{ProposeError, Waiter};
use crate::config::limits;
use crate::driver::Shared;
use crate::log_store::io_error;
use crate::membership;
use crate::runtime;
use crate::transport::{RaftSnapshot, StateAsSnapshot};
use crate::types::{RaftEntry, RaftLogId, SnapshotMeta, StoredMembership, TypeConfig, log_id, raft_log_id};

/// What a committed entry holds.
pub enum EntryBody {
    /// A leader's first entry. Nothing to do but to count it as applied.
    Blank,
    /// A command batch, and who waits for it if it was proposed here.
    Commands { bytes: Bytes, waiter: Option<Box<dyn Waiter>> },
    /// A membership, in raft's own bytes: to be kept, latest only, and given back by [`Apply::applied`].
    Membership(Bytes),
}

/// A committed entry.
pub struct Committed {
    /// Its place in the log.
    pub id: LogId,
    /// What it holds.
    pub body: EntryBody,
}

/// Up to where the state is, durably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The last entry whose effect is on disk, with everything before it.
    pub id: Option<LogId>,
    /// The bytes of the last [`EntryBody::Membership`] up to there.
    pub membership: Option<Bytes>,
    /// The last entry of the snapshot that the state began as, if it did: a log that was not reset to it yet may end before.
    pub installed: Option<LogId>,
}

/// Told once a snapshot is the state, published and durable, or why it is not.
pub type Installed = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// The replicated state, as raft sees it. Filled by the server.
pub trait Apply: Send + 'static {
    /// What the state holds durably. Asked at start only, before the first `submit`.
    fn applied(&mut self) -> Result<Applied, StorageError>;
    /// Takes over committed entries, in log order and without gaps. Only enqueues; an error stops the member.
    fn submit(&mut self, entries: Vec<Committed>) -> Result<(), StorageError>;
    /// Like [`Apply::submit`], but the calling thread has nothing better to do: the entries may be applied here.
    fn submit_or_apply(&mut self, entries: Vec<Committed>) -> Result<(), StorageError> {
        self.submit(entries)
    }
    /// Replaces the state by a snapshot, which is a later one, after everything that was submitted before. Only enqueues;
    /// an error, here or told, stops the member.
    fn install(&mut self, _snapshot: Received, _done: Installed) -> Result<(), StorageError> {
        Err(StorageError::Invariant { what: "this state takes no snapshots".into() })
    }
}

/// openraft's state machine over an [`Apply`].
pub struct StateMachine {
    /// Behind a lock only because openraft wants `Sync`; never contended.
    apply: Mutex<Box<dyn Apply>>,
    shared: Arc<Shared>,
    /// Memberships handed to apply that may matter to a snapshot: those above the last one built, and the one before.
    memberships: Vec<StoredMembership>,
    built: Option<SnapshotMeta>,
    submitted: Submitted,
}

/// What was handed to apply and is perhaps not applied yet: bounds a replay. Not a limit on clients, that is admission.
#[derive(Default)]
struct Submitted {
    /// Last index and payload bytes of each chunk.
    chunks: VecDeque<(u64, u64)>,
    bytes: u64,
}

#[derive(Default)]
struct Chunk {
    entries: Vec<Committed>,
    responders: Vec<ApplyResponder<TypeConfig>>,
    bytes: usize,
    blank: Option<LogId>,
    brings_membership: bool,
}

impl StateMachine {
    /// `shared` belongs to the member whose state `apply` is.
    pub fn new(apply: Box<dyn Apply>, shared: Arc<Shared>) -> Self {
        Self { apply: Mutex::new(apply), shared, memberships: Vec::new(), built: None, submitted: Submitted::default() }
    }

    fn read_applied(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.apply.get_mut().applied().map_err(io_error)?;
        let membership = match applied.membership {
            None => StoredMembership::default(),
            Some(bytes) => membership::decode_stored(&bytes)
                .map_err(|e| io::Error::other(format!("the membership kept in the state is unreadable: {e}")))?,
        };
        Ok((applied.id, membership))
    }

    fn add(&mut self, chunk: &mut Chunk, entry: RaftEntry, responder: Option<ApplyResponder<TypeConfig>>) {
        let id = log_id(&entry.log_id);
        let body = match entry.payload {
            EntryPayload::Blank => {
                chunk.blank = Some(id);
                EntryBody::Blank
            }
            EntryPayload::Normal(batch) => {
                chunk.bytes += batch.payload_bytes();
                EntryBody::Commands {
                    bytes: batch.commands(),
                    waiter: self.shared.pending.commit(batch.id(), id.index),
                }
            }
            EntryPayload::Membership(members) => {
                chunk.brings_membership = true;
                let bytes = membership::encode_stored(id, &members);
                self.memberships.push(StoredMembership::new(Some(entry.log_id), members));
                EntryBody::Membership(bytes)
            }
        };
        chunk.entries.push(Committed { id, body });
        chunk.responders.extend(responder);
    }

    /// Hands a chunk over and answers openraft at once: the answer to the client rides on the entry.
    async fn submit(&mut self, mut chunk: Chunk) -> io::Result<()> {
        let Some(last) = chunk.entries.last().map(|entry| entry.id) else { return Ok(()) };
        self.pause_while_apply_is_far_behind().await;
        self.submitted.chunks.push_back((last.index, chunk.bytes as u64));
        self.submitted.bytes += chunk.bytes as u64;
        self.shared.note_committed(last);
        let (apply, entries) = (self.apply.get_mut(), mem::take(&mut chunk.entries));
        let submitted = match self.shared.may_wait_for_disk() {
            true => apply.submit_or_apply(entries),
            false => apply.submit(entries),
        };
        submitted.map_err(io_error)?;
        if chunk.blank.is_some() {
            self.shared.blank.send_replace(chunk.blank);
        } else if chunk.brings_membership {
            self.shared.look_at_membership();
        }
        chunk.responders.drain(..).for_each(|responder| responder.send(()));
        Ok(())
    }

    async fn pause_while_apply_is_far_behind(&mut self) {
        loop {
            let next_index = self.shared.pending.applied_next_index();
            self.submitted.forget_applied(next_index);
            if self.submitted.bytes <= limits::SUBMIT_AHEAD_BYTES_MAX || self.shared.is_closed() {
                return;
            }
            runtime::sleep(limits::SUBMIT_PAUSE).await;
        }
    }

    /// Describes the state on disk as a snapshot, so that the log before it may go.
    fn describe(&mut self, durable: LogId, membership: StoredMembership) -> SnapshotMeta {
        let meta = SnapshotMeta { last_log_id: Some(raft_log_id(durable)), last_membership: membership };
        self.built = Some(meta.clone());
        meta
    }

    /// The last membership at or before `durable`; what is older is dropped.
    fn membership_at(&mut self, durable: LogId) -> Option<StoredMembership> {
        let reached = |stored: &StoredMembership| membership::stored_id(stored) <= Some(durable);
        let place = self.memberships.iter().rposition(reached)?;
        self.memberships.drain(..place);
        self.memberships.first().cloned()
    }
}

impl Drop for Chunk {
    /// The thread "raft" may be stopped while a hand-over pauses.
    fn drop(&mut self) {
        for entry in self.entries.drain(..) {
            if let EntryBody::Commands { waiter: Some(waiter), .. } = entry.body {
                waiter.fail(ProposeError::Stopped);
            }
        }
    }
}

impl Submitted {
    fn forget_applied(&mut self, next_index: u64) {
        while let Some((index, bytes)) = self.chunks.front().copied() {
            if index >= next_index {
                return;
            }
            self.chunks.pop_front();
            self.bytes -= bytes;
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = StateAsSnapshot;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        let (applied, membership) = self.read_applied()?;
        if self.memberships.is_empty() && membership.log_id().is_some() {
            self.memberships.push(membership.clone());
        }
        Ok((applied.map(raft_log_id), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunk = Chunk::default();
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            self.add(&mut chunk, entry, responder);
            if chunk.bytes >= limits::SUBMIT_CHUNK_BYTES {
                self.submit(mem::take(&mut chunk)).await?;
            }
        }
        self.submit(chunk).await
    }

    /// `force` is openraft's wish at start, when the log's prefix is released and it wants to know what covers it: then
    /// the state as opened. Otherwise what [`Handle::release_log`](crate::Handle::release_log) said is durable.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let described = if force {
            self.read_applied().map(|(applied, membership)| applied.map(|id| self.describe(id, membership)))
        } else {
            let built = self.built.as_ref().and_then(|meta| meta.last_log_id.as_ref().map(log_id));
            let durable = self.shared.releasable().filter(|id| built < Some(*id));
            Ok(durable.and_then(|id| self.membership_at(id).map(|membership| self.describe(id, membership))))
        };
        match described {
            Ok(None) if !force => None,
            // Only the suite asks: a member with a released log and an empty state does not get here, it is not started.
            Ok(None) => Some(SnapshotBuilder(Ok(SnapshotMeta::default()))),
            Ok(Some(meta)) => Some(SnapshotBuilder(Ok(meta))),
            Err(error) => Some(SnapshotBuilder(Err(error.to_string()))),
        }
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let refused = || SnapshotBuilder(Err("nothing is durable yet".into()));
        self.try_create_snapshot_builder(true).await.unwrap_or_else(refused)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: StateAsSnapshot) -> io::Result<()> {
        let no_files = || io::Error::other("a snapshot without files cannot be installed");
        let received = snapshot.into_received().ok_or_else(no_files)?;
        let last = received.manifest().applied;
        if meta.last_log_id != Some(raft_log_id(last)) {
            return Err(io::Error::other(format!(
                "a snapshot up to {last} is called one up to {:?}",
                meta.last_log_id
            )));
        }
        // Told before, as with entries: apply never knows more than this says.
        self.shared.note_committed(last);
        let (told, done) = oneshot::channel();
        let tell = move |result| {
            // The core only goes away when the member stops; nobody is left to be told then.
            let _ = told.send(result);
        };
        self.apply.get_mut().install(received, Box::new(tell)).map_err(io_error)?;
        done.await.unwrap_or(Err(StorageError::Stopped)).map_err(io_error)?;
        self.memberships = vec![meta.last_membership.clone()];
        self.built = Some(meta.clone());
        Ok(())
    }

    /// What the log's prefix was released for, or a newer snapshot if there are files of one: then what a peer gets is known
    /// exactly. Files are made when they are sent.
    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        let made = self.shared.made_snapshot().filter(|made| {
            let built = self.built.as_ref().and_then(|built| built.last_log_id.as_ref());
            made.last_log_id.as_ref() > built
        });
        let meta = made.or_else(|| self.built.clone());
        Ok(meta.map(|meta| RaftSnapshot { meta, snapshot: StateAsSnapshot::default() }))
    }
}

/// Gives openraft the description that was made when it asked. There is nothing to build: the state on disk is it.
pub struct SnapshotBuilder(Result<SnapshotMeta, String>);

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = StateAsSnapshot;

    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        let meta = self.0.clone().map_err(io::Error::other)?;
        Ok(RaftSnapshot { meta, snapshot: StateAsSnapshot::default() })
    }
}
