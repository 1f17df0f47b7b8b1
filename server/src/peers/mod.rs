//! What members ask each other beside raft: followers pass on to the leader what only it can do, and whoever joins asks who
//! takes part. The bytes are frozen, see `docs/formats/peer-calls.md`. How they get there is raft's.
//!
//! Reading order: this file (questions and answers), `wire` (their bytes), `serve` (who answers).

pub mod ask;
pub mod serve;
mod wire;

use daymark_api::etcdserverpb as pb;
use daymark_raft::{CallError, Handle};
use tokio::time::Instant;

use crate::error::Error;
use crate::policy::corruption::{Depth, MemberHash};
use crate::services::Door;
use crate::services::reconfigure::{Change, Changed};

/// What a member asks another.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerRequest {
    /// A lease begins anew.
    LeaseRenew { id: i64 },
    /// The time a lease has left.
    LeaseTimeToLive { id: i64, keys: bool },
    /// A change of members, allowed by the rules or not.
    Change(Change),
    /// The hash of the keyspace at a revision, which the member waits for a little.
    Hash { revision: i64, depth: Depth },
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerReply {
    /// As the client would be told.
    Refused(Error),
    /// The TTL; 0: there is no such lease.
    LeaseRenewed {
        ttl_secs: i64,
    },
    /// What is left, or less than 0: there is no such lease.
    LeaseTime {
        ttl_secs: i64,
        granted_secs: i64,
        keys: Vec<bytes::Bytes>,
    },
    Changed(Changed),
    Hash(MemberHash),
}

impl PeerReply {
    /// The answer to another question.
    pub fn unexpected(self) -> Error {
        tracing::error!(reply = ?self, "a member answered something else than it was asked");
        Error::TimedOut
    }
}

/// Who takes part, as told to somebody who is no member yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Introduction {
    pub cluster_id: u64,
    pub members: Vec<pb::Member>,
    pub removed: Vec<u64>,
}

impl Door {
    /// Asks a member something that it answers by [`serve`]. [`Error::NotLeader`] means that it has not been done and may
    /// be asked again, perhaps of somebody else.
    pub(crate) async fn ask_member(
        &self,
        member_id: u64,
        request: &PeerRequest,
        deadline: Instant,
    ) -> Result<PeerReply, Error> {
        ask_member(&self.member().raft, member_id, request, deadline).await
    }

    /// Waits until this member knows a leader.
    pub(crate) async fn wait_leader(&self, deadline: Instant) -> Result<u64, Error> {
        let raft = &self.member().raft;
        if raft.read_barrier_now().is_some() {
            return Ok(self.views().member_id);
        }
        loop {
            if let Some(leader) = raft.status().leader {
                return Ok(leader);
            }
            if Instant::now() >= deadline {
                return Err(Error::NoLeader);
            }
            tokio::time::sleep(crate::limits::LEADER_POLL).await;
        }
    }
}

/// As [`Door::ask_member`], before there is a door.
pub(crate) async fn ask_member(
    raft: &Handle,
    member_id: u64,
    request: &PeerRequest,
    deadline: Instant,
) -> Result<PeerReply, Error> {
    let timeout = deadline.saturating_duration_since(Instant::now());
    let asked = raft.call(member_id, wire::encode_request(request), timeout).await;
    let reply = asked.map_err(|error| match error {
        CallError::Unreachable { .. } | CallError::Busy | CallError::NotServed => Error::NotLeader,
        CallError::TimedOut => Error::TimedOut,
        CallError::Stopped => Error::Stopped,
    })?;
    match wire::decode_reply(reply) {
        Ok(PeerReply::Refused(error)) => Err(error),
        Ok(reply) => Ok(reply),
        Err(why) => {
            tracing::error!(member = format!("{member_id:x}"), why, "a member's answer cannot be read");
            Err(Error::TimedOut)
        }
    }
}
