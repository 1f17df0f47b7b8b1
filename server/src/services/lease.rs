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
use crate::peers::{PeerReply, PeerRequest};
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
        let question = PeerRequest::LeaseTimeToLive { id: request.id, keys: request.keys };
        let answer = self.by_leader(question, async || self.time_to_live(request.id, request.keys).await).await?;
        let PeerReply::LeaseTime { ttl_secs, granted_secs, keys } = answer else { return Err(answer.unexpected()) };
        if request.keys && ttl_secs >= 0 {
            self.permit_keys(caller, Right::Read, keys.iter().map(|key| &key[..]))?;
        }
        let header = header(self.keyspace().current_revision());
        Ok(pb::LeaseTimeToLiveResponse { header, id: request.id, ttl: ttl_secs, granted_ttl: granted_secs, keys })
    }

    /// As leader.
    async fn time_to_live(&self, id: i64, wants_keys: bool) -> Result<PeerReply, Error> {
        let term = self.lead().await?;
        let Some(left) = self.member().lessor.remaining(id, term)? else {
            return Ok(PeerReply::LeaseTime { ttl_secs: -1, granted_secs: 0, keys: Vec::new() });
        };
        let mut keys = Vec::new();
        if wants_keys {
            let keyspace = self.member().views.keyspace.clone();
            let read = move |_: &Caller| Ok(lease::attached_keys(&keyspace, id, limits::LEASE_KEYS_BYTES_MAX)?);
            let bytes_max = limits::LEASE_KEYS_BYTES_MAX;
            keys = self.pool.run(read).await?.ok_or(Error::ResponseTooLarge(bytes_max, bytes_max))?;
        }
        Ok(PeerReply::LeaseTime { ttl_secs: left.remaining_secs, granted_secs: left.granted_secs, keys })
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
        let end = if context.requires_leader { self.while_led(served).await } else { served.await };
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
        let (header, id) = (Some(self.header(self.keyspace().current_revision())), request.id);
        let renewal = async || {
            let term = self.lead().await?;
            self.permit_keep_alive(context, id).await?;
            self.renew(id, term).await
        };
        let answer = match self.leads() {
            true => renewal().await,
            false => {
                self.permit_keep_alive(context, id).await?;
                self.by_leader(PeerRequest::LeaseRenew { id }, renewal).await
            }
        };
        match answer? {
            PeerReply::LeaseRenewed { ttl_secs } => Ok(pb::LeaseKeepAliveResponse { header, id, ttl: ttl_secs }),
            other => Err(other.unexpected()),
        }
    }

    async fn permit_keep_alive(&self, context: &Context, id: i64) -> Result<(), Error> {
        let caller = self.admit_stream(context, Streaming::LeaseKeepAlive).await?;
        self.permit_renewal(caller.as_ref(), id).await
    }

    /// As leader of `term`.
    async fn renew(&self, id: i64, term: u64) -> Result<PeerReply, Error> {
        let lessor = &self.member().lessor;
        if let Some(stale) = lessor.stale_checkpoint(id)? {
            self.propose_own(Kind::LeaseCheckpoint, &stale).await?;
        }
        let ttl_secs = match lessor.renew(id, term)? {
            Renewal::Renewed { ttl_secs } => ttl_secs,
            Renewal::Unknown => 0,
            Renewal::Over => {
                let deadline = Instant::now() + self.member().settings.request_timeout();
                while lessor.contains(id)? {
                    if Instant::now() >= deadline {
                        return Err(Error::TimedOut);
                    }
                    tokio::time::sleep(OVER_POLL).await;
                }
                0
            }
        };
        Ok(PeerReply::LeaseRenewed { ttl_secs })
    }

    /// What another member asks of this one, which may have stopped leading meanwhile.
    pub(crate) async fn answer_member(&self, request: PeerRequest) -> Result<PeerReply, Error> {
        let answer = match request {
            PeerRequest::LeaseRenew { id } => match self.lead().await {
                Ok(term) => self.renew(id, term).await,
                Err(error) => Err(error),
            },
            PeerRequest::LeaseTimeToLive { id, keys } => self.time_to_live(id, keys).await,
            PeerRequest::Change(change) => self.lead_change(&change).await.map(PeerReply::Changed),
            PeerRequest::Hash { revision, depth } => self.member_hash(revision, depth).await.map(PeerReply::Hash),
        };
        answer.map_err(|error| if error == Error::NotPrimaryLessor { Error::NotLeader } else { error })
    }

    /// Does it here if this member leads, and asks the leader else. Whatever changes meanwhile, until the request's time
    /// is over: it may be done twice.
    async fn by_leader(
        &self,
        question: PeerRequest,
        here: impl AsyncFn() -> Result<PeerReply, Error>,
    ) -> Result<PeerReply, Error> {
        let deadline = Instant::now() + self.member().settings.request_timeout();
        loop {
            let leader = self.wait_leader(deadline).await?;
            let answer = match leader == self.views().member_id {
                true => here().await,
                false => self.ask_member(leader, &question, deadline).await,
            };
            match answer {
                Err(Error::NotLeader | Error::NotPrimaryLessor | Error::NoLeader | Error::LeaderChanged)
                    if Instant::now() < deadline =>
                {
                    tokio::time::sleep(OVER_POLL).await;
                }
                Err(Error::NotLeader) => return Err(Error::TimedOut),
                answer => return answer,
            }
        }
    }

    fn leads(&self) -> bool {
        let raft = &self.member().raft;
        raft.read_barrier_now().is_some() || raft.status().is_leader
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

    /// Confirms that this member leads and returns the term; the state is then as new as any answer given before.
    pub(super) async fn lead(&self) -> Result<u64, Error> {
        let raft = &self.member().raft;
        if raft.read_barrier_now().is_some() {
            self.read_barrier().await?;
            return Ok(raft.term());
        }
        let before = raft.status();
        if !before.is_leader {
            return Err(Error::NotPrimaryLessor);
        }
        // A leader that cannot confirm that it leads is none.
        self.read_barrier().await.map_err(|error| match error {
            Error::NoLeader | Error::LeaderChanged | Error::TimedOut => Error::NotPrimaryLessor,
            error => error,
        })?;
        let after = raft.status();
        // Confirmed for one and the same term, by whoever the barrier came from.
        if after.is_leader && after.term == before.term { Ok(after.term) } else { Err(Error::NotPrimaryLessor) }
    }
}
