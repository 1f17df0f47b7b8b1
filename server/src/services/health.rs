//! What health checks ask of this member. How they are named and told is up to the transports.

use daymark_api::etcdserverpb as pb;

use super::Door;
use crate::error::Error;

impl Door {
    /// Reads something that need not exist, as nobody in particular; through a read barrier unless `serializable`.
    pub async fn probe(&self, serializable: bool) -> Result<(), Error> {
        let request = pb::RangeRequest { key: "a".into(), limit: 1, serializable, ..Default::default() };
        if !serializable {
            self.read_barrier().await?;
        }
        self.range(&request).await.map(|_| ())
    }

    /// Whether this member knows a leader.
    pub fn has_leader(&self) -> bool {
        self.member().raft.read_barrier_now().is_some() || self.member().raft.status().leader.is_some()
    }

    /// Whether this member is a learner.
    pub fn is_learner(&self) -> bool {
        self.views().is_learner()
    }
}
