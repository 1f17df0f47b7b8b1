//! The member list and its changes. A change is made by the leader, whoever is asked; the answer comes when the member
//! that was asked has applied it. A change of peer addresses is a command like any other.

use std::sync::Arc;

use daymark_api::etcdserverpb as pb;
use tokio::time::Instant;

use super::reconfigure::{Change, Changed};
use super::{Door, header};
use crate::command::{Identity, Kind, MemberPeerUrls};
use crate::error::Error;
use crate::limits;
use crate::peers::{PeerReply, PeerRequest};
use crate::request::Reply;
use crate::state::members::MemberList;

impl Door {
    pub(super) async fn member_list(&self, request: &pb::MemberListRequest) -> Result<pb::MemberListResponse, Error> {
        if request.linearizable {
            self.read_barrier().await?;
        }
        let members = self.views().members.load().members.clone();
        // As in etcd, whose cluster answers carry no revision.
        Ok(pb::MemberListResponse { header: header(0), members })
    }

    /// The addresses have been looked at. They are kept in order, as in etcd.
    pub(super) async fn member_add(&self, request: pb::MemberAddRequest) -> Result<Reply, Error> {
        let mut peer_urls: Vec<String> = request.peer_ur_ls.iter().map(|url| url.trim().to_owned()).collect();
        peer_urls.sort();
        let change = Change::Add { peer_urls, is_learner: request.is_learner };
        let (changed, list) = self.change_members(&change).await?;
        // Gone again only if somebody has removed it meanwhile.
        let member = list.get(changed.id).cloned();
        Ok(Reply::MemberAdd(pb::MemberAddResponse { header: header(0), member, members: list.members.clone() }))
    }

    pub(super) async fn member_remove(&self, request: &pb::MemberRemoveRequest) -> Result<Reply, Error> {
        let (_, list) = self.change_members(&Change::Remove { id: request.id }).await?;
        Ok(Reply::MemberRemove(pb::MemberRemoveResponse { header: header(0), members: list.members.clone() }))
    }

    pub(super) async fn member_promote(&self, request: &pb::MemberPromoteRequest) -> Result<Reply, Error> {
        let promoted = self.change_members(&Change::Promote { id: request.id }).await;
        self.views().promotions.count(promoted.as_ref().err());
        let (_, list) = promoted?;
        Ok(Reply::MemberPromote(pb::MemberPromoteResponse { header: header(0), members: list.members.clone() }))
    }

    /// Addresses are taken as they are given, as in etcd.
    pub(super) async fn member_update(
        &self,
        identity: Option<Identity>,
        request: pb::MemberUpdateRequest,
    ) -> Result<Reply, Error> {
        let peer_urls = request.peer_ur_ls;
        if peer_urls.len() > limits::PEER_URLS_MAX || peer_urls.iter().any(|url| url.len() > limits::PEER_URL_BYTES_MAX)
        {
            return Err(Error::MemberUrlsInvalid);
        }
        self.propose(Kind::MemberUpdate, identity, &MemberPeerUrls { id: request.id, peer_urls }).await
    }

    /// Whether this member sees what a change was to bring, now or in a moment. Of a new member nobody else can tell.
    async fn has_been_made(&self, change: &Change) -> Option<Changed> {
        let deadline = Instant::now() + limits::CHANGE_SEEN_TIMEOUT;
        loop {
            let list = self.views().members.load_full();
            let made = match change {
                Change::Add { .. } => return None,
                Change::Remove { id } => list.removed.contains(id).then_some(*id),
                Change::Promote { id } => list.get(*id).filter(|member| !member.is_learner).map(|member| member.id),
            };
            if let Some(id) = made {
                return Some(Changed { id, index: list.based_on.map_or(0, |entry| entry.index) });
            }
            if Instant::now() >= deadline {
                return None;
            }
            tokio::time::sleep(limits::CHANGE_RETRY_PAUSE).await;
        }
    }

    /// By the leader, and seen by this member.
    async fn change_members(&self, change: &Change) -> Result<(Changed, Arc<MemberList>), Error> {
        let deadline = Instant::now() + self.member().settings.request_timeout();
        let changed = loop {
            let made = match self.wait_leader(deadline).await? {
                leader if leader == self.views().member_id => self.lead_change(change).await,
                leader => match self.ask_member(leader, &PeerRequest::Change(change.clone()), deadline).await {
                    Ok(PeerReply::Changed(changed)) => Ok(changed),
                    Ok(other) => Err(other.unexpected()),
                    Err(error) => Err(error),
                },
            };
            match made {
                // Nothing was proposed: whoever leads by now is asked.
                Err(Error::NotLeader) if Instant::now() < deadline => {
                    tokio::time::sleep(limits::CHANGE_RETRY_PAUSE).await;
                }
                Err(Error::NotLeader) => return Err(Error::TimedOut),
                // It may have been made, by a leader that removes itself for example, whose answer nobody waits for.
                Err(error @ (Error::TimedOut | Error::LeaderChanged)) => match self.has_been_made(change).await {
                    Some(changed) => break changed,
                    None => return Err(error),
                },
                made => break made?,
            }
        };
        let me = self.views().member_id;
        if *change == (Change::Remove { id: me }) {
            // It may never hear of its own end from the log: nobody sends it entries any more.
            let mut list = MemberList::clone(&self.views().members.load());
            list.members.retain(|member| member.id != me);
            return Ok((changed, Arc::new(list)));
        }
        self.wait_applied(changed.index).await;
        Ok((changed, self.views().members.load_full()))
    }
}
