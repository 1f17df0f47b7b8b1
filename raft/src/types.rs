//! What is openraft's and what is ours: the type configuration, and the translation between openraft's log ids, votes
//! and entries and the write-ahead log's. Bytes are explained in `docs/formats/raft-entries.md`.

use std::fmt;
use std::io;

use bytes::Bytes;
use openraft::entry::EntryPayload;
use openraft::impls::leader_id_std;
use openraft::vote::RaftLeaderId;
use openraft::{OptionalSend, RaftTypeConfig};

use daymark_storage::LogId;
use daymark_storage::wal::{EntryKind, LogEntry, Vote};

use crate::batch::{BATCH_HEADER_BYTES, BatchId};
use crate::membership::{self, MemberNode};
use crate::pending::BatchResponder;
use crate::runtime::Runtime;

/// The types openraft works with here. Leader ids are of the standard kind: one leader a term, so that a term and an
/// index name an entry.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = SealedBatch;
    type R = ();
    type NodeId = u64;
    type Node = MemberNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::Vote<LeaderId>;
    type Payload = EntryPayload<SealedBatch, u64, MemberNode>;
    type Entry = openraft::Entry<<LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = BatchResponder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, u64>;
pub(crate) type RaftLogId = openraft::alias::LogIdOf<TypeConfig>;
pub type RaftVote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type RaftEntry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type RaftMembership = openraft::Membership<u64, MemberNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A command batch with its id in front: exactly the payload of a log entry of kind `Commands`, so that neither writing
/// nor reading the log copies it.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedBatch {
    payload: Bytes,
}

impl SealedBatch {
    /// `payload` begins with the batch id's 16 bytes.
    pub(crate) fn from_payload(payload: Bytes) -> Option<Self> {
        (payload.len() >= BATCH_HEADER_BYTES).then_some(Self { payload })
    }

    pub(crate) fn id(&self) -> BatchId {
        let header = self.payload.first_chunk().expect("from_payload checked the length");
        BatchId::decode(header)
    }

    pub(crate) fn commands(&self) -> Bytes {
        self.payload.slice(BATCH_HEADER_BYTES..)
    }

    /// Id and commands, as in the log.
    pub(crate) fn payload(&self) -> Bytes {
        self.payload.clone()
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload.len()
    }
}

impl fmt::Debug for SealedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedBatch({self})")
    }
}

impl fmt::Display for SealedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id();
        write!(f, "{:x}/{:x} {} B", id.member_id, id.sequence, self.payload.len() - BATCH_HEADER_BYTES)
    }
}

pub(crate) fn raft_log_id(id: LogId) -> RaftLogId {
    RaftLogId::new(openraft::alias::CommittedLeaderIdOf::<TypeConfig>::new(id.term), id.index)
}

pub(crate) fn log_id(id: &RaftLogId) -> LogId {
    LogId { term: **id.committed_leader_id(), index: id.index }
}

/// A vote of openraft always names somebody; a record without a name is from no version of ours.
pub(crate) fn raft_vote(vote: Vote) -> io::Result<RaftVote> {
    let voted_for = vote.voted_for.ok_or_else(|| io::Error::other("the log's vote names no member"))?;
    let leader_id = LeaderId { term: vote.term, voted_for };
    Ok(RaftVote { leader_id, committed: vote.committed })
}

pub(crate) fn wal_vote(vote: &RaftVote) -> Vote {
    Vote { term: vote.leader_id.term, voted_for: Some(vote.leader_id.voted_for), committed: vote.committed }
}

pub(crate) fn wal_entry(entry: RaftEntry) -> LogEntry {
    let id = log_id(&entry.log_id);
    let (kind, payload) = match entry.payload {
        EntryPayload::Blank => (EntryKind::Blank, Bytes::new()),
        EntryPayload::Normal(batch) => (EntryKind::Commands, batch.payload),
        EntryPayload::Membership(members) => (EntryKind::Membership, membership::encode(&members)),
    };
    LogEntry { id, kind, payload }
}

pub(crate) fn raft_entry(entry: LogEntry) -> io::Result<RaftEntry> {
    let payload = match entry.kind {
        EntryKind::Blank => EntryPayload::Blank,
        EntryKind::Commands => EntryPayload::Normal(
            SealedBatch::from_payload(entry.payload)
                .ok_or_else(|| io::Error::other(format!("log entry {} is shorter than a batch id", entry.id)))?,
        ),
        EntryKind::Membership => EntryPayload::Membership(
            membership::decode(&entry.payload)
                .map_err(|e| io::Error::other(format!("membership in log entry {}: {e}", entry.id)))?,
        ),
    };
    Ok(RaftEntry { log_id: raft_log_id(entry.id), payload })
}
