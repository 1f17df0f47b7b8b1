//! The queue behind locks and elections: keys under a name, one a lease, in the order in which they were created. The
//! first has its turn; every other waits until the one before it is deleted, so that a deletion wakes one waiter and not
//! all. The keys are ordinary keys, and may as well be those of clients that keep such a queue by themselves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use bytes::{Bytes, BytesMut};
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use daymark_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use daymark_api::etcdserverpb::request_op::Request as Op;
use daymark_api::etcdserverpb::response_op::Response;
use daymark_api::etcdserverpb::watch_create_request::FilterType;
use hashbrown::HashMap;

use super::{Door, inner_watch::InnerWatch};
use crate::error::Error;
use crate::request::{Context, Reply, Request};

/// TTL of a lease that is granted because the caller named none, as in etcd. Nobody keeps it alive.
const SESSION_TTL_SECS: i64 = 60;

/// A key in the queue of a name.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// What all keys of the queue begin with.
    pub prefix: Bytes,
    pub key: Bytes,
    pub lease: i64,
}

impl Candidate {
    /// The key that `lease` has in the queue of `name`: the id as Go prints it.
    pub fn new(name: &[u8], lease: i64) -> Self {
        let prefix = prefix(name);
        let sign = if lease < 0 { "-" } else { "" };
        let key = [&prefix[..], format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into();
        Self { prefix, key, lease }
    }
}

/// What the keys of a queue begin with.
pub(super) fn prefix(name: &[u8]) -> Bytes {
    [name, b"/"].concat().into()
}

/// Every key of a queue.
pub(super) fn everybody(prefix: &Bytes) -> pb::RangeRequest {
    let mut end = BytesMut::from(&prefix[..]);
    *end.last_mut().expect("a prefix ends with a slash") += 1;
    pb::RangeRequest { key: prefix.clone(), range_end: end.freeze(), ..Default::default() }
}

/// The key of a queue that was created first.
pub(super) fn first(prefix: &Bytes) -> pb::RangeRequest {
    let (sort_order, sort_target) = (SortOrder::Ascend as i32, SortTarget::Create as i32);
    pb::RangeRequest { limit: 1, sort_order, sort_target, ..everybody(prefix) }
}

/// A candidate that is in its queue.
#[derive(Debug)]
pub(super) struct Entered {
    pub header: pb::ResponseHeader,
    /// What gives it its place.
    pub create_revision: i64,
    /// It was there before, with this value.
    pub found: Option<Bytes>,
}

/// A key that is before another one in its queue.
struct Ahead {
    key: Bytes,
    create_revision: i64,
    /// It existed at this revision.
    seen_at: i64,
}

/// The candidates that wait on this thread, by queue and create revision. A hint: whoever comes later waits for the one
/// just before it without reading the whole queue, which would cost the square of its length. Whether that key is there
/// still is looked up; one that is not here is found by reading.
#[derive(Default)]
pub(super) struct Waiting(RefCell<HashMap<Bytes, BTreeMap<i64, Bytes>>>);

impl Waiting {
    fn add(&self, prefix: &Bytes, create_revision: i64, key: &Bytes) {
        self.0.borrow_mut().entry(prefix.clone()).or_default().insert(create_revision, key.clone());
    }

    fn last_before(&self, prefix: &Bytes, create_revision: i64) -> Option<(i64, Bytes)> {
        let queues = self.0.borrow();
        let (before, key) = queues.get(prefix)?.range(..create_revision).next_back()?;
        Some((*before, key.clone()))
    }

    fn remove(&self, prefix: &Bytes, create_revision: i64) {
        let mut queues = self.0.borrow_mut();
        let Some(queue) = queues.get_mut(prefix) else { return };
        queue.remove(&create_revision);
        if queue.is_empty() {
            queues.remove(prefix);
        }
    }
}

/// A candidate's place in [`Waiting`], given back when its wait ends.
struct Place<'a> {
    waiting: &'a Waiting,
    prefix: &'a Bytes,
    create_revision: i64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.remove(self.prefix, self.create_revision);
    }
}

/// Takes a candidate out of its queue if the call that entered it is dropped: its caller has gone.
pub(super) struct Withdrawal {
    door: Weak<Door>,
    context: Context,
    request: Option<Request>,
}

impl Withdrawal {
    /// Nothing to take back any more.
    pub fn cancel(mut self) {
        self.request = None;
    }

    /// Now, rather than when the call is dropped. A failure leaves the key to the end of its lease.
    pub async fn run(mut self) {
        if let (Some(door), Some(request)) = (self.door.upgrade(), self.request.take()) {
            Box::pin(withdraw(door, self.context.clone(), request)).await;
        }
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let (Some(door), Some(request)) = (self.door.upgrade(), self.request.take()) {
            tokio::task::spawn_local(withdraw(door, std::mem::take(&mut self.context), request));
        }
    }
}

async fn withdraw(door: Rc<Door>, context: Context, request: Request) {
    if let Err(error) = door.call(&context, request).await {
        tracing::debug!(%error, "a candidate stays in its queue until its lease ends");
    }
}

impl Door {
    /// One request inside of another, with the identity of its caller.
    pub(super) async fn ask(&self, context: &Context, request: Request) -> Result<Reply, Error> {
        // Boxed, because the services that ask are among those that answer.
        Box::pin(self.answer(context, request)).await
    }

    /// The lease that a candidate lives by: the one that is named, or a new one.
    pub(super) async fn session(&self, context: &Context, lease: i64) -> Result<i64, Error> {
        if lease != 0 {
            return Ok(lease);
        }
        let grant = pb::LeaseGrantRequest { ttl: SESSION_TTL_SECS, id: 0 };
        let Reply::LeaseGrant(granted) = self.ask(context, Request::LeaseGrant(grant)).await? else { unreachable!() };
        Ok(granted.id)
    }

    /// Puts a candidate into its queue, unless it is there. Refused before that to those who may not read the queue.
    pub(super) async fn enter(&self, context: &Context, candidate: &Candidate, value: Bytes) -> Result<Entered, Error> {
        self.admit(context, &Request::Range(everybody(&candidate.prefix))).await?;
        let (key, lease) = (candidate.key.clone(), candidate.lease);
        let own = pb::RangeRequest { key: key.clone(), ..Default::default() };
        let txn = pb::TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![op(Op::RequestPut(pb::PutRequest { key, value, lease, ..Default::default() }))],
            failure: vec![op(Op::RequestRange(own))],
        };
        let (header, mut found) = self.ask_txn(context, txn).await?;
        let found = found.kvs.pop();
        let create_revision = found.as_ref().map_or(header.revision, |kv| kv.create_revision);
        Ok(Entered { header, create_revision, found: found.map(|kv| kv.value) })
    }

    /// Deletes the key of a candidate, if it is still the one that was created at that revision.
    pub(super) fn withdrawal(&self, context: &Context, key: &Bytes, create_revision: i64) -> Withdrawal {
        let request = Some(Request::Txn(leave(key, create_revision)));
        Withdrawal { door: self.this(), context: context.clone(), request }
    }

    /// Waits until no key of the queue was created before the candidate's. Returns whether there was one.
    pub(super) async fn wait_for_turn(
        &self,
        context: &Context,
        candidate: &Candidate,
        entered: &Entered,
    ) -> Result<bool, Error> {
        let (prefix, create_revision) = (&candidate.prefix, entered.create_revision);
        self.waiting.add(prefix, create_revision, &candidate.key);
        let _place = Place { waiting: &self.waiting, prefix, create_revision };
        let mut waited = false;
        // At first as of the revision in the header of the answer: if nobody was there then, it tells the truth.
        let mut revision = entered.header.revision;
        loop {
            let ahead = match self.waiting_ahead(prefix, create_revision)? {
                Some(ahead) => ahead,
                None => match self.last_ahead(context, prefix, create_revision, revision).await {
                    Ok(Some(ahead)) => ahead,
                    Ok(None) => return Ok(waited),
                    Err(Error::Compacted) if revision > 0 => {
                        (waited, revision) = (true, 0);
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            (waited, revision) = (true, 0);
            self.wait_until_deleted(&ahead).await;
            self.waiting.remove(prefix, ahead.create_revision);
        }
    }

    /// The one just before among those that wait on this thread.
    fn waiting_ahead(&self, prefix: &Bytes, create_revision: i64) -> Result<Option<Ahead>, Error> {
        while let Some((before, key)) = self.waiting.last_before(prefix, create_revision) {
            let (seen_at, found) = self.keyspace().read_current(|view| Ok((view.revision(), view.get(&key)?)))?;
            if found.is_some_and(|kv| kv.create_revision == before) {
                return Ok(Some(Ahead { key, create_revision: before, seen_at }));
            }
            self.waiting.remove(prefix, before);
        }
        Ok(None)
    }

    /// The one just before in the whole queue, at `revision` (0: now). What this member has applied is enough: it holds
    /// the candidate itself and so every key before it, unless it has been deleted.
    async fn last_ahead(
        &self,
        context: &Context,
        prefix: &Bytes,
        create_revision: i64,
        revision: i64,
    ) -> Result<Option<Ahead>, Error> {
        let request = pb::RangeRequest {
            limit: 1,
            revision,
            sort_order: SortOrder::Descend as i32,
            sort_target: SortTarget::Create as i32,
            serializable: true,
            keys_only: true,
            max_create_revision: create_revision - 1,
            ..everybody(prefix)
        };
        let mut range = self.ask_range(context, request).await?;
        let current = range.header.take().map_or(0, |header| header.revision);
        let seen_at = if revision > 0 { revision } else { current };
        Ok(range.kvs.pop().map(|kv| Ahead { key: kv.key, create_revision: kv.create_revision, seen_at }))
    }

    /// Returns early if the history since then is gone: the caller looks again.
    async fn wait_until_deleted(&self, ahead: &Ahead) {
        let create = pb::WatchCreateRequest {
            key: ahead.key.clone(),
            start_revision: ahead.seen_at + 1,
            filters: vec![FilterType::Noput as i32],
            ..Default::default()
        };
        let watch = InnerWatch::open(self.engine(), create);
        // Whatever comes is a deletion.
        watch.next().await;
    }

    pub(super) async fn ask_range(
        &self,
        context: &Context,
        request: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, Error> {
        match self.ask(context, Request::Range(request)).await? {
            Reply::Range(range) => Ok(range),
            other => unreachable!("a range is answered by one, not by {other:?}"),
        }
    }

    /// The header, and the first range of the answer if there is one.
    async fn ask_txn(
        &self,
        context: &Context,
        txn: pb::TxnRequest,
    ) -> Result<(pb::ResponseHeader, pb::RangeResponse), Error> {
        let Reply::Txn(txn) = self.ask(context, Request::Txn(txn)).await? else {
            unreachable!("a transaction's answer")
        };
        let range = match txn.responses.into_iter().next().and_then(|response| response.response) {
            Some(Response::ResponseRange(range)) => range,
            _ => pb::RangeResponse::default(),
        };
        Ok((txn.header.unwrap_or_default(), range))
    }

    /// Runs `then` if `key` is the one that was created at that revision; whether it was, and the header.
    pub(super) async fn ask_if_created_at(
        &self,
        context: &Context,
        txn: pb::TxnRequest,
    ) -> Result<(bool, Option<pb::ResponseHeader>), Error> {
        let Reply::Txn(txn) = self.ask(context, Request::Txn(txn)).await? else {
            unreachable!("a transaction's answer")
        };
        Ok((txn.succeeded, txn.header))
    }
}

/// Sets `key` if it is still the one that was created at that revision.
pub(super) fn proclaim(key: &Bytes, create_revision: i64, lease: i64, value: Bytes) -> pb::TxnRequest {
    let put = pb::PutRequest { key: key.clone(), value, lease, ..Default::default() };
    let (compare, success) = (vec![created_at(key, create_revision)], vec![op(Op::RequestPut(put))]);
    pb::TxnRequest { compare, success, failure: Vec::new() }
}

/// Deletes `key` if it is still the one that was created at that revision.
pub(super) fn leave(key: &Bytes, create_revision: i64) -> pb::TxnRequest {
    let delete = pb::DeleteRangeRequest { key: key.clone(), ..Default::default() };
    let (compare, success) = (vec![created_at(key, create_revision)], vec![op(Op::RequestDeleteRange(delete))]);
    pb::TxnRequest { compare, success, failure: Vec::new() }
}

fn created_at(key: &Bytes, create_revision: i64) -> pb::Compare {
    pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(create_revision)),
        ..Default::default()
    }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}
