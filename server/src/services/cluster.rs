//! The member list and its changes, as far as one member goes: etcd's rules are checked in etcd's order, what they allow
//! and one member cannot do is refused. A change of peer addresses is replicated.

use daymark_api::etcdserverpb as pb;

use super::{Door, header};
use crate::command::{Identity, Kind, MemberPeerUrls};
use crate::error::Error;
use crate::limits;
use crate::request::Reply;

impl Door {
    pub(super) async fn member_list(&self, request: &pb::MemberListRequest) -> Result<pb::MemberListResponse, Error> {
        if request.linearizable {
            self.read_barrier().await?;
        }
        let members = self.views().members.load().to_vec();
        // As in etcd, whose cluster answers carry no revision.
        Ok(pb::MemberListResponse { header: header(0), members })
    }

    /// Why no member can be added. A second member would be a vote that nobody can give yet.
    pub(super) fn member_add(&self, request: &pb::MemberAddRequest) -> Error {
        let taken = |member: &pb::Member| {
            request.peer_ur_ls.iter().any(|url| member.peer_ur_ls.iter().any(|own| own == url.trim()))
        };
        if self.views().members.load().iter().any(taken) {
            return Error::PeerUrlsExist;
        }
        Error::SecondMember
    }

    /// Why no member can be removed: there is only one, and a cluster without a vote decides nothing any more.
    pub(super) fn member_remove(&self, request: &pb::MemberRemoveRequest) -> Error {
        match self.member_by_id(request.id) {
            Some(_) => Error::NotEnoughStartedMembers,
            None => Error::MemberNotFound,
        }
    }

    /// Why no member can be promoted: there is no learner.
    pub(super) fn member_promote(&self, request: &pb::MemberPromoteRequest) -> Error {
        match self.member_by_id(request.id) {
            Some(_) => Error::MemberNotLearner,
            None => Error::MemberNotFound,
        }
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

    fn member_by_id(&self, id: u64) -> Option<pb::Member> {
        self.views().members.load().iter().find(|member| member.id == id).cloned()
    }
}
