//! Locks: who is first in the queue of a name holds its lock. A client of the other services, as in etcd: every step is a
//! request with the caller's identity, and what fails inside leaves with code `Unknown`.

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};

use super::Door;
use super::queue::Candidate;
use crate::error::Error;
use crate::request::{Context, Reply, Request};

impl Door {
    /// Waits for the lock as long as the caller does. A caller that goes away gives its place in the queue back.
    pub(super) async fn lock(&self, context: &Context, request: LockRequest) -> Result<LockResponse, Error> {
        let lease = self.session(context, request.lease).await?;
        let candidate = Candidate::new(&request.name, lease);
        let entered = self.enter(context, &candidate, Bytes::new()).await?;
        let withdrawal = self.withdrawal(context, &candidate.key, entered.create_revision);
        let header = match self.wait_for_turn(context, &candidate, &entered).await {
            Ok(false) => Ok(Some(Some(entered.header))),
            Ok(true) => self.header_if_exists(context, &candidate.key).await,
            Err(error) => Err(error),
        };
        match header {
            Ok(header) => {
                withdrawal.cancel();
                let header = header.ok_or(Error::SessionExpired)?;
                Ok(LockResponse { header, key: candidate.key })
            }
            Err(error) => {
                withdrawal.run().await;
                Err(error)
            }
        }
    }

    pub(super) async fn unlock(&self, context: &Context, request: UnlockRequest) -> Result<UnlockResponse, Error> {
        let delete = pb::DeleteRangeRequest { key: request.key, ..Default::default() };
        match self.ask(context, Request::DeleteRange(delete)).await? {
            Reply::DeleteRange(deleted) => Ok(UnlockResponse { header: deleted.header }),
            other => unreachable!("a delete is answered by one, not by {other:?}"),
        }
    }

    /// The header of a read that found the key; the lease may have ended while its lock was waited for.
    async fn header_if_exists(
        &self,
        context: &Context,
        key: &Bytes,
    ) -> Result<Option<Option<pb::ResponseHeader>>, Error> {
        let range = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let range = self.ask_range(context, range).await?;
        Ok((!range.kvs.is_empty()).then_some(range.header))
    }
}
