//! Leases as clients ask for them. The table is replicated, their time is the lessor's.

use std::pin::pin;
use std::time::Duration;

use daymark_api::etcdserverpb as pb;
use futures_util::{Stream, StreamExt};
use prost::Message;
use smallvec::smallvec;
use tokio::time::Instant;

use super::identity::Right;
use super::pool::Caller;
use super::{Door, header};
use crate::auth::authorize::Streaming;
use crate::command::{Identity, Kind};
use crate::error::Error;
use crate::limits;
use crate::policy::lessor::{self, Proposal, Renewal};
use crate::request::{Context, Reply, Sink};
use crate::state::lease;

/// How often a renewal of a lease that is over looks whether its end has been replicated.
const OVER_POLL: Duration = Duration::from_millis(50);

impl Door {
    /// Chooses the id if there is none and raises the TTL to the minimum: apply knows neither chance nor configuration.
    pub(super) async fn lease_grant(
        &self,
        identity: Option<Identity>,
        mut request: pb::LeaseGrantRequest,
    ) -> Result<Reply, Error> {
        while request.id == 0 {
            request.id = (rand::random::<u64>() >> 1) as i64;
        }
        request.ttl = request.ttl.max(self.member().settings.lease_ttl_secs_min());
        let reply = self.propose(Kind::LeaseGrant, identity, &request).await?;
        // The lease's time begins now, not when the lessor looks next.
        let status = self.member().raft.status();
        self.member().lessor.look(status.is_leader.then_some(status.term))?;
        Ok(reply)
    }

    pub(super) async fn lease_time_to_live(
        &self,
        caller: Option<&Identity>,
        request: &pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Error> {
        let term = self.lead().await?;
        let mut response = pb::LeaseTimeToLiveResponse { id: request.id, ttl: -1, ..Default::default() };
        if let Some(left) = self.member().lessor.remaining(request.id, term)? {
            (response.ttl, response.granted_ttl) = (left.remaining_secs, left.granted_secs);
            if request.keys {
                let (keyspace, id) = (self.member().views.keyspace.clone(), request.id);
                let keys = move |_: &Caller| Ok(lease::attached_keys(&keyspace, id, limits::LEASE_KEYS_BYTES_MAX)?);
                let bytes_max = limits::LEASE_KEYS_BYTES_MAX;
                let keys = self.pool.run(keys).await?.ok_or(Error::ResponseTooLarge(bytes_max, bytes_max))?;
                self.permit_keys(caller, Right::Read, keys.iter().map(|key| &key[..]))?;
                response.keys = keys;
            }
        }
        response.header = header(self.keyspace().current_revision());
        Ok(response)
    }

    pub(super) async fn lease_leases(&self, caller: Option<&Identity>) -> Result<pb::LeaseLeasesResponse, Error> {
        self.permit_list_of_leases(caller).await?;
        // There may be a million, which are put in order.
        let lessor = self.member().lessor.clone();
        let ids = self.pool.run(move |_| Ok(lessor.list()?)).await?;
        let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(pb::LeaseLeasesResponse { header: header(self.keyspace().current_revision()), leases })
    }

    /// Serves a keep-alive stream: an answer for each request, in order. Ends well when the client has ended its half.
    pub async fn lease_keep_alive(
        &self,
        context: Context,
        requests: impl Stream<Item = Result<pb::LeaseKeepAliveRequest, Error>>,
        sink: Sink,
    ) {
        let served = async {
            self.check_context(&context)?;
            let mut requests = pin!(requests);
            while let Some(request) = requests.next().await {
                let response = self.keep_alive(&context, request?).await?;
                sink.push(smallvec![response.encode_to_vec().into()]);
                // A client that does not read gets no more answers queued than the sink has room for.
                sink.wait_for_credit().await;
            }
            Ok(())
        };
        let end = served.await;
        if let Err(Error::Internal(facts)) = &end {
            (self.member().on_fatal)(facts);
        }
        sink.finish(end);
    }

    /// Renews a lease: one message of the keep-alive stream. A lease that is unknown or over is answered with TTL 0;
    /// an error ends the stream.
    pub async fn keep_alive(
        &self,
        context: &Context,
        request: pb::LeaseKeepAliveRequest,
    ) -> Result<pb::LeaseKeepAliveResponse, Error> {
        let header = Some(self.header(self.keyspace().current_revision()));
        let term = self.lead().await?;
        let caller = self.admit_stream(context, Streaming::LeaseKeepAlive).await?;
        self.permit_renewal(caller.as_ref(), request.id)?;
        let lessor = &self.member().lessor;
        if let Some(stale) = lessor.stale_checkpoint(request.id)? {
            self.propose_own(Kind::LeaseCheckpoint, &stale).await?;
        }
        let ttl = match lessor.renew(request.id, term)? {
            Renewal::Renewed { ttl_secs } => ttl_secs,
            Renewal::Unknown => 0,
            Renewal::Over => {
                let deadline = Instant::now() + self.member().settings.request_timeout();
                while lessor.contains(request.id)? {
                    if Instant::now() >= deadline {
                        return Err(Error::TimedOut);
                    }
                    tokio::time::sleep(OVER_POLL).await;
                }
                0
            }
        };
        Ok(pb::LeaseKeepAliveResponse { header, id: request.id, ttl })
    }

    /// Ends leases whose time is over, while this member leads. One of the member's net threads runs it, beside
    /// [`Door::run`].
    pub async fn run_lessor(&self) {
        let member = self.member();
        let propose = async |proposal: Proposal| {
            let done = match proposal {
                Proposal::Expire(expire) => self.propose_own(Kind::LeaseExpire, &expire).await,
                Proposal::Checkpoint(checkpoint) => self.propose_own(Kind::LeaseCheckpoint, &checkpoint).await,
            };
            done.map(|_| ())
        };
        lessor::run(member.lessor.clone(), member.raft.clone(), propose, member.on_fatal.clone()).await;
    }

    /// Confirms that this member leads and returns the term; the state is then as new as any answer given before. Other
    /// members will be asked once there are some.
    async fn lead(&self) -> Result<u64, Error> {
        self.read_barrier().await?;
        let raft = &self.member().raft;
        match raft.read_barrier_now() {
            Some(_) => Ok(raft.term()),
            None => {
                let status = raft.status();
                if status.is_leader { Ok(status.term) } else { Err(Error::NotPrimaryLessor) }
            }
        }
    }
}
