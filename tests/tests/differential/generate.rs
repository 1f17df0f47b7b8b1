//! Requests out of a seed. Keys, values and leases come from small sets, so that requests meet each other. Knows nothing
//! of what the right answers are.

use bytes::Bytes;
use daymark_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest,
    PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, compare::TargetUnion,
    request_op::Request as Op,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Revisions above this one mean "so far from the present": the sequence is made before revisions are known.
const PRESENT: i64 = 1 << 60;
const NESTED_MAX: u32 = 3;
const LEASES: i64 = 6;
const WATCHES_MAX: i64 = 60;

/// One request of a sequence.
#[derive(Clone, Debug)]
pub enum Request {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
    Grant(LeaseGrantRequest),
    Revoke(LeaseRevokeRequest),
    TimeToLive(LeaseTimeToLiveRequest),
    Leases,
    KeepAlive(i64),
    WatchCreate(WatchCreateRequest),
    WatchCancel(i64),
}

impl Request {
    /// The request with its relative revisions counted from `current`.
    pub fn resolve(&self, current: i64) -> Self {
        let mut request = self.clone();
        match &mut request {
            Self::Range(range) => resolve_range(range, current),
            Self::Txn(txn) => resolve_txn(txn, current),
            Self::Compact(compaction) => resolve(&mut compaction.revision, current),
            Self::WatchCreate(create) => resolve(&mut create.start_revision, current),
            _ => {}
        }
        request
    }
}

fn resolve(revision: &mut i64, current: i64) {
    if *revision > PRESENT / 2 {
        *revision = (*revision - PRESENT + current).max(1);
    }
}

fn resolve_range(range: &mut RangeRequest, current: i64) {
    let fields = [
        &mut range.revision,
        &mut range.min_mod_revision,
        &mut range.max_mod_revision,
        &mut range.min_create_revision,
        &mut range.max_create_revision,
    ];
    fields.into_iter().for_each(|field| resolve(field, current));
}

fn resolve_txn(txn: &mut TxnRequest, current: i64) {
    for compare in &mut txn.compare {
        if let Some(TargetUnion::CreateRevision(revision) | TargetUnion::ModRevision(revision)) =
            &mut compare.target_union
        {
            resolve(revision, current);
        }
    }
    for op in txn.success.iter_mut().chain(&mut txn.failure) {
        match &mut op.request {
            Some(Op::RequestRange(range)) => resolve_range(range, current),
            Some(Op::RequestTxn(txn)) => resolve_txn(txn, current),
            _ => {}
        }
    }
}

/// A sequence of requests.
pub fn generate(seed: u64, count: usize) -> Vec<Request> {
    let mut generator = Generator { rng: StdRng::seed_from_u64(seed), watches: 0 };
    (0..count).map(|_| generator.request()).collect()
}

struct Generator {
    rng: StdRng,
    watches: i64,
}

impl Generator {
    fn request(&mut self) -> Request {
        match self.rng.random_range(0..1000) {
            0..300 => Request::Put(self.put(true)),
            300..500 => Request::Range(self.range(true)),
            500..600 => Request::Delete(self.delete(true)),
            600..850 => Request::Txn(self.txn()),
            850..855 => Request::Compact(CompactionRequest { revision: self.past(), physical: self.one_in(4) }),
            855..890 => Request::Grant(LeaseGrantRequest { ttl: self.rng.random_range(1000..9000), id: self.lease() }),
            890..910 => Request::Revoke(LeaseRevokeRequest { id: self.lease() }),
            910..940 => Request::TimeToLive(LeaseTimeToLiveRequest { id: self.lease(), keys: self.one_in(2) }),
            940..955 => Request::Leases,
            955..975 => Request::KeepAlive(self.lease()),
            975..995 if self.watches < WATCHES_MAX => Request::WatchCreate(self.watch()),
            _ if self.watches > 0 => Request::WatchCancel(self.rng.random_range(1..=self.watches)),
            _ => Request::Leases,
        }
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    /// Short keys of few bytes, among them the smallest and the largest; now and then none at all.
    fn key(&mut self) -> Bytes {
        if self.one_in(200) {
            return Bytes::new();
        }
        const BYTES: &[u8] = b"\x00aabbcc/\xff";
        let length = self.rng.random_range(1..=3);
        (0..length).map(|_| BYTES[self.rng.random_range(0..BYTES.len())]).collect()
    }

    fn range_end(&mut self, key: &Bytes, from_key: bool) -> Bytes {
        match self.rng.random_range(0..10) {
            0..5 => Bytes::new(),
            5 if from_key => Bytes::from_static(b"\0"),
            5 | 6 => self.key(),
            _ => prefix_end(key),
        }
    }

    fn value(&mut self) -> Bytes {
        match self.rng.random_range(0..20) {
            0 => Bytes::new(),
            1 => vec![b'x'; self.rng.random_range(1..20_000)].into(),
            n => format!("v{n}").into(),
        }
    }

    fn lease(&mut self) -> i64 {
        self.rng.random_range(1..=LEASES)
    }

    /// Mostly near the present, sometimes ahead of it, sometimes long gone.
    fn past(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => PRESENT + self.rng.random_range(1..5),
            1 => self.rng.random_range(1..50),
            2 => -1,
            _ => PRESENT - self.rng.random_range(0..60),
        }
    }

    fn put(&mut self, may_ignore: bool) -> PutRequest {
        let ignore_value = may_ignore && self.one_in(15);
        let ignore_lease = may_ignore && self.one_in(15);
        PutRequest {
            key: self.key(),
            value: if ignore_value && !self.one_in(10) { Bytes::new() } else { self.value() },
            lease: if self.one_in(5) && (!ignore_lease || self.one_in(10)) { self.lease() } else { 0 },
            prev_kv: self.one_in(3),
            ignore_value,
            ignore_lease,
        }
    }

    fn range(&mut self, any_order: bool) -> RangeRequest {
        let key = self.key();
        let mut revision = |chance| if self.one_in(chance) { self.past() } else { 0 };
        let (at, min_mod, max_mod) = (revision(4), revision(12), revision(12));
        let (min_create, max_create) = (revision(12), revision(12));
        RangeRequest {
            range_end: self.range_end(&key, true),
            key,
            limit: if self.one_in(3) { self.rng.random_range(-1..6) } else { 0 },
            revision: at,
            sort_order: self.rng.random_range(0..3),
            sort_target: if any_order && self.one_in(3) { self.rng.random_range(0..5) } else { 0 },
            serializable: self.one_in(3),
            keys_only: self.one_in(6),
            count_only: self.one_in(8),
            min_mod_revision: min_mod,
            max_mod_revision: max_mod,
            min_create_revision: min_create,
            max_create_revision: max_create,
        }
    }

    fn delete(&mut self, from_key: bool) -> DeleteRangeRequest {
        let key = self.key();
        // Seldom everything from a key on, or little would ever be there.
        let from_key = from_key && self.one_in(5);
        DeleteRangeRequest { range_end: self.range_end(&key, from_key), key, prev_kv: self.one_in(2) }
    }

    /// etcd crashes on some transactions that delete and keep the value or lease of the same key: one has either.
    fn txn(&mut self) -> TxnRequest {
        let deletes = self.one_in(2);
        let depth = if self.one_in(3) { self.rng.random_range(1..=NESTED_MAX) } else { 0 };
        self.txn_of(depth, deletes)
    }

    fn txn_of(&mut self, depth: u32, deletes: bool) -> TxnRequest {
        let sizes = [0; 3].map(|_: i32| self.rng.random_range(0..4));
        TxnRequest {
            compare: (0..sizes[0] / 2).map(|_| self.compare()).collect(),
            success: (0..sizes[1]).map(|_| self.op(depth, deletes)).collect(),
            failure: (0..sizes[2]).map(|_| self.op(depth, deletes)).collect(),
        }
    }

    fn op(&mut self, depth: u32, deletes: bool) -> RequestOp {
        let request = match self.rng.random_range(0..10) {
            0..3 => Op::RequestRange(self.range(false)),
            3..5 if deletes => Op::RequestDeleteRange(self.delete(true)),
            5..8 if depth > 0 => Op::RequestTxn(self.txn_of(depth - 1, deletes)),
            _ => Op::RequestPut(self.put(!deletes)),
        };
        RequestOp { request: (!self.one_in(300)).then_some(request) }
    }

    fn compare(&mut self) -> Compare {
        let key = self.key();
        let target = self.rng.random_range(0..5);
        let union = match target {
            0 => TargetUnion::Version(self.rng.random_range(0..4)),
            1 => TargetUnion::CreateRevision(self.past().max(0)),
            2 => TargetUnion::ModRevision(self.past().max(0)),
            3 => TargetUnion::Value(self.value()),
            _ => TargetUnion::Lease(self.rng.random_range(0..LEASES)),
        };
        Compare {
            result: self.rng.random_range(0..4),
            target,
            range_end: if self.one_in(4) { self.range_end(&key, true) } else { Bytes::new() },
            key,
            target_union: (!self.one_in(20)).then_some(union),
        }
    }

    fn watch(&mut self) -> WatchCreateRequest {
        self.watches += 1;
        let key = self.key();
        WatchCreateRequest {
            range_end: self.range_end(&key, true),
            key,
            // Below zero 3.5.1 and present etcd differ; see the refusals.
            start_revision: if self.one_in(2) { self.past().max(0) } else { 0 },
            prev_kv: self.one_in(2),
            filters: if self.one_in(4) { vec![self.rng.random_range(0..2)] } else { Vec::new() },
            watch_id: self.watches,
            ..Default::default()
        }
    }
}

/// The first key after all that begin with `key`; everything when there is none.
fn prefix_end(key: &Bytes) -> Bytes {
    let mut end = key.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}
