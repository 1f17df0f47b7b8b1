//! The member list. Changing it is a later issue.

use daymark_api::etcdserverpb as pb;

use super::{Door, header};
use crate::error::Error;

impl Door {
    pub(super) async fn member_list(&self, request: &pb::MemberListRequest) -> Result<pb::MemberListResponse, Error> {
        if request.linearizable {
            self.read_barrier().await?;
        }
        let members = self.views().members.load().to_vec();
        // As in etcd, whose cluster answers carry no revision.
        Ok(pb::MemberListResponse { header: header(0), members })
    }
}
