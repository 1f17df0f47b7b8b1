//! Locks that the server keeps: who holds one, holds a key that lives as long as a lease.

use bytes::Bytes;
use daymark_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_client::LockClient};

use crate::{channel::Pool, error::Result, retry};

/// Locks.
#[derive(Clone, Debug)]
pub struct Lock {
    pool: Pool,
}

impl Lock {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Waits for the lock `name`, however long that takes: dropping the call gives the place in the queue back. The lock
    /// is held as long as `lease` lives; 0 lets the server grant one of 60 seconds, which nobody keeps alive. The same
    /// lease gets the same lock again at once.
    pub async fn lock(&self, name: impl Into<Bytes>, lease: i64) -> Result<LockResponse> {
        let request = self.pool.request(LockRequest { name: name.into(), lease });
        Ok(LockClient::new(self.pool.next()).lock(request).await?.into_inner())
    }

    /// Releases a lock, named by the key that [`Lock::lock`] returned.
    pub async fn unlock(&self, key: impl Into<Bytes>) -> Result<UnlockResponse> {
        let request = self.pool.request(UnlockRequest { key: key.into() });
        retry::once(&self.pool, LockClient::new(self.pool.next()).unlock(request)).await
    }
}
