//! The members of the cluster, as one of them knows them.

use daymark_api::etcdserverpb::{MemberListRequest, MemberListResponse, cluster_client::ClusterClient};

use crate::{channel::Pool, error::Result, retry};

/// The members of the cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    pool: Pool,
}

impl Cluster {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// All members. `linearizable` asks the whole cluster, else the member that is asked answers from what it knows.
    pub async fn member_list(&self, linearizable: bool) -> Result<MemberListResponse> {
        retry::read(&self.pool, |channel| {
            let request = self.pool.request(MemberListRequest { linearizable });
            async move { ClusterClient::new(channel).member_list(request).await }
        })
        .await
    }
}
