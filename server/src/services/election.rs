//! Elections: who is first in the queue of a name leads, with a value that the leader may change. A client of the other
//! services, as in etcd: every step is a request with the caller's identity, and what fails inside leaves with code
//! `Unknown`.

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::mvccpb;
use daymark_api::mvccpb::event::EventType;
use daymark_api::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
    ResignRequest, ResignResponse,
};
use prost::Message;
use smallvec::smallvec;

use super::Door;
use super::inner_watch::InnerWatch;
use super::queue::{self, Candidate};
use crate::error::Error;
use crate::request::{Context, Sink};

impl Door {
    /// Waits for leadership as long as the caller does. A caller that goes away gives its place in the queue back.
    pub(super) async fn campaign(
        &self,
        context: &Context,
        request: CampaignRequest,
    ) -> Result<CampaignResponse, Error> {
        let lease = self.session(context, request.lease).await?;
        let candidate = Candidate::new(&request.name, lease);
        let entered = self.enter(context, &candidate, request.value.clone()).await?;
        let (key, rev) = (candidate.key.clone(), entered.create_revision);
        let withdrawal = self.withdrawal(context, &key, rev);
        if entered.found.as_ref().is_some_and(|value| *value != request.value)
            && let Err(error) = self.proclaim_value(context, &key, rev, lease, request.value).await
        {
            withdrawal.run().await;
            return Err(error);
        }
        let turn = self.wait_for_turn(context, &candidate, &entered).await;
        // After an error the candidate stays in the queue, as in etcd: the caller may try again from its place.
        withdrawal.cancel();
        turn?;
        let leader = LeaderKey { name: request.name, key, rev, lease };
        Ok(CampaignResponse { header: Some(entered.header), leader: Some(leader) })
    }

    pub(super) async fn proclaim(
        &self,
        context: &Context,
        request: ProclaimRequest,
    ) -> Result<ProclaimResponse, Error> {
        let leader = request.leader.ok_or(Error::LeaderMissing)?;
        let lease = self.session(context, leader.lease).await?;
        let header = self.proclaim_value(context, &leader.key, leader.rev, lease, request.value).await?;
        Ok(ProclaimResponse { header })
    }

    /// A success also if the leader has gone meanwhile: what was asked for is so.
    pub(super) async fn resign(&self, context: &Context, request: ResignRequest) -> Result<ResignResponse, Error> {
        let leader = request.leader.ok_or(Error::LeaderMissing)?;
        let (_, header) = self.ask_if_created_at(context, queue::leave(&leader.key, leader.rev)).await?;
        Ok(ResignResponse { header })
    }

    pub(super) async fn leader(&self, context: &Context, request: LeaderRequest) -> Result<LeaderResponse, Error> {
        let mut range = self.ask_range(context, queue::first(&queue::prefix(&request.name))).await?;
        let kv = range.kvs.pop().ok_or(Error::ElectionNoLeader)?;
        Ok(LeaderResponse { header: range.header, kv: Some(kv) })
    }

    /// Tells who leads, and every change, until the caller goes. Each leader and each of its values once; values of a
    /// leader that has gone before it was told of are left out.
    pub(super) async fn observe(&self, context: &Context, request: LeaderRequest, sink: &Sink) -> Result<(), Error> {
        let prefix = queue::prefix(&request.name);
        loop {
            let mut range = self.ask_range(context, queue::first(&prefix)).await?;
            let header = range.header.take().unwrap_or_default();
            let (header, kv) = match range.kvs.pop() {
                Some(kv) => (header, kv),
                None => match self.wait_for_candidate(&prefix, header.revision + 1).await {
                    Some(found) => found,
                    None => continue,
                },
            };
            let next = header.revision + 1;
            let key = kv.key.clone();
            tell(sink, header, kv).await;
            self.follow_leader(key, next, sink).await;
            if sink.is_closed() {
                return Ok(());
            }
        }
    }

    /// The first key put into a queue from `revision` on, with a header as of then. None if history is gone.
    async fn wait_for_candidate(
        &self,
        prefix: &Bytes,
        revision: i64,
    ) -> Option<(pb::ResponseHeader, mvccpb::KeyValue)> {
        let pb::RangeRequest { key, range_end, .. } = queue::everybody(prefix);
        let create = pb::WatchCreateRequest { key, range_end, start_revision: revision, ..Default::default() };
        let watch = InnerWatch::open(self.engine(), create);
        loop {
            let response = watch.next().await?;
            let put = response.events.into_iter().find(|event| event.r#type == EventType::Put as i32);
            if let Some(kv) = put.and_then(|event| event.kv) {
                let header = pb::ResponseHeader { revision: kv.mod_revision, ..response.header.unwrap_or_default() };
                return Some((header, kv));
            }
        }
    }

    /// Tells every value of the leader with that key from `revision` on, until it is deleted or history is gone.
    async fn follow_leader(&self, key: Bytes, revision: i64, sink: &Sink) {
        let create = pb::WatchCreateRequest { key, start_revision: revision, ..Default::default() };
        let watch = InnerWatch::open(self.engine(), create);
        while let Some(response) = watch.next().await {
            for event in response.events {
                if event.r#type == EventType::Delete as i32 || sink.is_closed() {
                    return;
                }
                tell(sink, response.header.unwrap_or_default(), event.kv.unwrap_or_default()).await;
            }
        }
    }

    async fn proclaim_value(
        &self,
        context: &Context,
        key: &Bytes,
        create_revision: i64,
        lease: i64,
        value: Bytes,
    ) -> Result<Option<pb::ResponseHeader>, Error> {
        let txn = queue::proclaim(key, create_revision, lease, value);
        match self.ask_if_created_at(context, txn).await? {
            (true, header) => Ok(header),
            (false, _) => Err(Error::ElectionNotLeader),
        }
    }
}

/// Queues one answer once the caller has read what was told before.
async fn tell(sink: &Sink, header: pb::ResponseHeader, kv: mvccpb::KeyValue) {
    sink.wait_for_credit().await;
    let response = LeaderResponse { header: Some(header), kv: Some(kv) };
    sink.push(smallvec![response.encode_to_vec().into()]);
}
