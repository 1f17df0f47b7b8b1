//! Leases, and a keeper that renews one in the background until it is dropped.

use std::time::Duration;

use daymark_api::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
    lease_client::LeaseClient,
};
use futures_util::stream;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tonic::Streaming;

use crate::{
    channel::Pool,
    error::{ClientError, Result},
    retry,
};

/// Leases.
#[derive(Clone, Debug)]
pub struct Lease {
    pool: Pool,
}

impl Lease {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// A new lease of `ttl_secs` seconds, which the server may raise. `id` 0 lets the server choose.
    pub async fn grant(&self, ttl_secs: i64, id: i64) -> Result<LeaseGrantResponse> {
        retry::write(&self.pool, |channel| {
            let request = self.pool.request(LeaseGrantRequest { ttl: ttl_secs, id });
            async move { LeaseClient::new(channel).lease_grant(request).await }
        })
        .await
    }

    /// Ends a lease; its keys are deleted.
    pub async fn revoke(&self, id: i64) -> Result<LeaseRevokeResponse> {
        retry::write(&self.pool, |channel| {
            let request = self.pool.request(LeaseRevokeRequest { id });
            async move { LeaseClient::new(channel).lease_revoke(request).await }
        })
        .await
    }

    /// What remains of a lease, with its keys if asked for. An unknown lease has a TTL of -1.
    pub async fn time_to_live(&self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse> {
        retry::read(&self.pool, |channel| {
            let request = self.pool.request(LeaseTimeToLiveRequest { id, keys });
            async move { LeaseClient::new(channel).lease_time_to_live(request).await }
        })
        .await
    }

    /// All leases.
    pub async fn list(&self) -> Result<LeaseLeasesResponse> {
        retry::read(&self.pool, |channel| {
            let request = self.pool.request(LeaseLeasesRequest {});
            async move { LeaseClient::new(channel).lease_leases(request).await }
        })
        .await
    }

    /// Renews a lease once; returns its full TTL in seconds.
    ///
    /// # Errors
    /// [`ClientError::LeaseNotFound`] when it does not exist any more.
    pub async fn renew(&self, id: i64) -> Result<i64> {
        let limit = self.pool.config().request_timeout.unwrap_or(Duration::MAX);
        let attempt = async { Renewals::open(&self.pool, id).await.map(|(_, ttl_secs)| ttl_secs) };
        tokio::time::timeout(limit, attempt).await.map_err(|_| ClientError::TimedOut(limit))?
    }

    /// Renews a lease at once, and then in the background at a third of its TTL until the keeper is dropped.
    ///
    /// # Errors
    /// When the first renewal fails.
    pub async fn keep_alive(&self, id: i64) -> Result<Keeper> {
        let sent = Instant::now();
        let ttl_secs = self.renew(id).await?;
        let (tell, lost) = oneshot::channel();
        let pool = self.pool.clone();
        let task = tokio::spawn(async move {
            let error = keep(pool, id, ttl_secs, sent).await;
            // The keeper may have been dropped, then nobody asks.
            let _ = tell.send(error);
        });
        Ok(Keeper { id, lost, task })
    }
}

/// Keeps one lease alive while it exists. Dropping it stops the renewals, not the lease.
#[derive(Debug)]
pub struct Keeper {
    id: i64,
    lost: oneshot::Receiver<ClientError>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// The lease that is kept.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Waits until the lease is lost: it is gone, or it could not be renewed within its TTL and must be taken as gone.
    pub async fn lost(&mut self) -> ClientError {
        (&mut self.lost).await.unwrap_or_else(|_| ClientError::Unavailable("lease keeper ended".to_owned()))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One keepalive stream.
struct Renewals {
    id: i64,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl Renewals {
    /// Opens a stream, which renews the lease once; returns the TTL too.
    async fn open(pool: &Pool, id: i64) -> Result<(Self, i64)> {
        retry::with_token(pool, || Self::try_open(pool, id)).await
    }

    async fn try_open(pool: &Pool, id: i64) -> Result<(Self, i64)> {
        let (requests, mut queue) = mpsc::channel(1);
        requests
            .try_send(LeaseKeepAliveRequest { id })
            .map_err(|_| ClientError::Protocol("no room for the first request"))?;
        let outgoing = pool.request(stream::poll_fn(move |cx| queue.poll_recv(cx)));
        let answers = LeaseClient::new(pool.next()).lease_keep_alive(outgoing).await?.into_inner();
        let mut renewals = Self { id, requests, answers };
        let ttl_secs = renewals.answer().await?;
        Ok((renewals, ttl_secs))
    }

    async fn renew(&mut self) -> Result<i64> {
        let sent = self.requests.send(LeaseKeepAliveRequest { id: self.id }).await;
        sent.map_err(|_| ClientError::Unavailable("keepalive stream ended".to_owned()))?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<i64> {
        let answer = self.answers.message().await?;
        match answer.map(|answer| answer.ttl) {
            Some(ttl_secs) if ttl_secs > 0 => Ok(ttl_secs),
            Some(_) => Err(ClientError::LeaseNotFound(self.id)),
            None => Err(ClientError::Unavailable("keepalive stream ended".to_owned())),
        }
    }
}

/// Renews until the lease is lost; returns why.
async fn keep(pool: Pool, id: i64, mut ttl_secs: i64, mut renewed: Instant) -> ClientError {
    let mut renewals: Option<Renewals> = None;
    let mut failures = 0;
    loop {
        let ttl = Duration::from_secs(ttl_secs.unsigned_abs());
        let pause = if failures == 0 { ttl / 3 } else { pool.backoff(failures) };
        tokio::time::sleep(pause).await;
        // The server counts from when it heard of the last renewal, which was not before it was sent.
        let sent = Instant::now();
        match tokio::time::timeout_at(renewed + ttl, attempt(&pool, id, &mut renewals)).await {
            Ok(Ok(ttl_now)) => {
                (ttl_secs, renewed, failures) = (ttl_now, sent, 0);
            }
            Ok(Err(error @ ClientError::LeaseNotFound(_))) => return error,
            Ok(Err(error)) if Instant::now() >= renewed + ttl => return error,
            Ok(Err(_)) => {
                renewals = None;
                failures += 1;
            }
            Err(_) => return ClientError::TimedOut(ttl),
        }
    }
}

async fn attempt(pool: &Pool, id: i64, renewals: &mut Option<Renewals>) -> Result<i64> {
    if let Some(renewals) = renewals {
        return renewals.renew().await;
    }
    let (opened, ttl_secs) = Renewals::open(pool, id).await?;
    *renewals = Some(opened);
    Ok(ttl_secs)
}
