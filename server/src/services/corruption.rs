//! What a check for corruption needs of a member: hashes of its own and of others, and the alarm. When to compare and what
//! differs is `policy/corruption.rs`'s to say.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::alarm_request::AlarmAction;
use daymark_raft::Handle;
use daymark_storage::mvcc::{ReadError, hash};
use tokio::time::Instant;

use super::Door;
use crate::command::Kind;
use crate::error::Error;
use crate::limits;
use crate::peers::{PeerReply, PeerRequest, ask_member};
use crate::policy::corruption::{Cluster, Depth, MemberHash};
use crate::views::Views;

impl Door {
    /// This member's hash at a revision, or at the newest for 0. One that is not there yet is waited for a little.
    pub(crate) async fn member_hash(&self, revision: i64, depth: Depth) -> Result<MemberHash, Error> {
        let keyspace = self.views().keyspace.clone();
        let give_up = Instant::now() + limits::HASH_WAIT;
        while keyspace.current_revision() < revision && Instant::now() < give_up {
            tokio::time::sleep(limits::LEADER_POLL).await;
        }
        let hashed = match depth {
            Depth::Kept => {
                let keyspace = keyspace.clone();
                self.pool.run(move |caller| Ok(keyspace.hash(revision, &|| caller.has_gone())?)).await?
            }
            Depth::Records => {
                let (keyspace, gone) = (keyspace.clone(), Arc::new(AtomicBool::new(false)));
                let _waits = SetOnDrop(gone.clone());
                let work = move || Ok(hash::of_records(&keyspace, revision, &|| gone.load(Ordering::Relaxed))?);
                self.member().exports.run(work).await?
            }
        };
        let hashed = hashed.ok_or(Error::Canceled)?;
        let (compact_revision, current_revision) = (keyspace.compact_revision(), keyspace.current_revision());
        Ok(MemberHash { revision: hashed.revision, current_revision, compact_revision, sum: hashed.sum })
    }
}

/// Before a member serves: what it holds is what was written, and is what the others hold that answer.
pub(crate) async fn check_at_start(views: &Views, raft: &Handle, patience: Duration) -> Result<(), String> {
    let unread = |error: ReadError| format!("this member's records cannot be read: {error}");
    let own = hash::verify(&views.keyspace, 0).map_err(unread)?;
    let question = PeerRequest::Hash { revision: own.revision, depth: Depth::Kept };
    let mut differ = Vec::new();
    for peer in views.members.load().members.iter().filter(|member| member.id != views.member_id) {
        let id = format!("{:x}", peer.id);
        match ask_member(raft, peer.id, &question, Instant::now() + patience).await {
            Ok(PeerReply::Hash(hash)) if hash.sum == own.sum => {}
            Ok(PeerReply::Hash(hash)) => {
                let (revision, ours, theirs) = (own.revision, own.sum, hash.sum);
                tracing::error!(member = id, revision, ours, theirs, "found different hash values from remote peer");
                differ.push(id);
            }
            Ok(other) => return Err(other.unexpected().to_string()),
            // Behind, ahead beyond a compaction, or not there.
            Err(error) => tracing::warn!(member = id, %error, "cannot fetch hash from remote peer"),
        }
    }
    match differ.is_empty() {
        true => Ok(()),
        false => Err(format!("found data inconsistency with peers {}", differ.join(", "))),
    }
}

/// Tells a thread that nobody waits for its result any more.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The cluster as the member sees it whose first net thread checks it.
pub struct Checked(pub Rc<Door>);

impl Cluster for Checked {
    fn peers(&self) -> Vec<u64> {
        let members = self.0.views().members.load();
        members.members.iter().map(|member| member.id).filter(|id| *id != self.member_id()).collect()
    }

    fn member_id(&self) -> u64 {
        self.0.views().member_id
    }

    fn leads(&self) -> bool {
        self.0.member().raft.status().is_leader
    }

    async fn own(&self, revision: i64, depth: Depth) -> Result<MemberHash, Error> {
        self.0.member_hash(revision, depth).await
    }

    async fn of(&self, member_id: u64, revision: i64, depth: Depth) -> Result<MemberHash, Error> {
        let patience = match depth {
            Depth::Kept => self.0.member().settings.request_timeout(),
            Depth::Records => limits::HASH_RECORDS_WAIT,
        };
        let question = PeerRequest::Hash { revision, depth };
        match self.0.ask_member(member_id, &question, Instant::now() + patience).await? {
            PeerReply::Hash(hash) => Ok(hash),
            other => Err(other.unexpected()),
        }
    }

    async fn barrier(&self) -> Result<(), Error> {
        self.0.read_barrier().await
    }

    async fn raise(&self, member_id: u64) -> Result<(), Error> {
        let (action, alarm) = (AlarmAction::Activate as i32, pb::AlarmType::Corrupt as i32);
        if self.0.views().alarms.load().iter().any(|active| (active.member_id, active.alarm) == (member_id, alarm)) {
            return Ok(());
        }
        self.0.propose_own(Kind::Alarm, &pb::AlarmRequest { action, member_id, alarm }).await.map(|_| ())
    }
}
