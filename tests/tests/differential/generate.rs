//! Requests out of a seed. Keys, values, leases and users come from small sets, so that requests meet each other. Knows
//! nothing of what the right answers are.

use bytes::Bytes;
use daymark_api::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, compare::TargetUnion,
    request_op::Request as Op,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{call::Call, known};

/// Revisions above this one mean "so far from the present": the sequence is made before revisions are known.
const PRESENT: i64 = 1 << 60;
const NESTED_MAX: u32 = 3;
const LEASES: i64 = 6;
const WATCHES_MAX: i64 = 60;
/// Puts of 20 kB in one transaction: with previous values more than one response holds.
const BULK_PUTS: usize = 60;
const BULK_BYTES: usize = 20_000;

/// What a sequence may hold.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Repertoire {
    /// Keys, transactions, leases, watches: what etcd 3.5.1 answers as present etcd does.
    Old,
    /// Everything.
    Full,
}

/// Who sends a request. The tokens are those of the last successful login.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Root,
    Alice,
    Bob,
    /// A token that nobody was given.
    Garbage,
}

impl Who {
    /// The name to log in with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Alice => "alice",
            Self::Bob => "bob",
            Self::Garbage => "nobody",
        }
    }
}

/// One request of a sequence.
#[derive(Clone, Debug)]
pub enum Request {
    Range(RangeRequest),
    RangeStream(RangeRequest),
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
    /// A watch on a stream of its own, for its first answer.
    WatchOnce(WatchCreateRequest),
    /// Any other unary method.
    Call(Call),
    /// The alarm of the member that is asked.
    Alarm(AlarmRequest),
    /// With the name and the key of this lease: nobody else waits there, so that the answer comes at once.
    Lock(i64),
    Unlock(i64),
    Campaign(i64, Bytes),
    /// With the key that the last campaign of this lease was answered with.
    Proclaim(i64, Bytes),
    Resign(i64),
    Login(Who, &'static str),
    As(Who, Box<Request>),
}

impl Request {
    /// The request with its relative revisions counted from `current`.
    pub fn resolve(&self, current: i64) -> Self {
        let mut request = self.clone();
        match &mut request {
            Self::Range(range) | Self::RangeStream(range) => resolve_range(range, current),
            Self::Txn(txn) => resolve_txn(txn, current),
            Self::Compact(compaction) => resolve(&mut compaction.revision, current),
            Self::WatchCreate(create) | Self::WatchOnce(create) => resolve(&mut create.start_revision, current),
            Self::As(_, inner) => **inner = inner.resolve(current),
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
pub fn generate(seed: u64, count: usize, repertoire: Repertoire) -> Vec<Request> {
    let mut generator = Generator { rng: StdRng::seed_from_u64(seed), watches: 0, bulk: 0, users_count: false };
    let mut requests = Vec::with_capacity(count);
    while requests.len() < count {
        match generator.rng.random_range(0..2000) {
            0 if repertoire == Repertoire::Full => generator.users(&mut requests),
            1 if repertoire == Repertoire::Full => generator.alarm(&mut requests),
            2 if repertoire == Repertoire::Full => requests.push(generator.bulk_puts()),
            3..200 if repertoire == Repertoire::Full => requests.push(generator.newer()),
            _ => requests.push(generator.request()),
        }
    }
    requests.truncate(count);
    requests
}

struct Generator {
    rng: StdRng,
    watches: i64,
    bulk: usize,
    /// Users count: see `known.rs` for what is not asked then.
    users_count: bool,
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

    /// What 3.5.1 answers differently, or not at all.
    fn newer(&mut self) -> Request {
        match self.rng.random_range(0..100) {
            0..40 => {
                let range = self.range(true);
                let range = known::streamable(range);
                // Mostly in the order that a stream can have.
                let plain = RangeRequest {
                    sort_target: 0,
                    sort_order: range.sort_order % 2,
                    min_mod_revision: 0,
                    max_mod_revision: 0,
                    min_create_revision: 0,
                    max_create_revision: 0,
                    ..range.clone()
                };
                Request::RangeStream(if self.one_in(10) { range } else { plain })
            }
            40..70 => self.concurrency(),
            70..90 => self.maintenance(),
            _ => self.auth_call(),
        }
    }

    fn concurrency(&mut self) -> Request {
        let lease = self.lease();
        let value = self.value();
        match self.rng.random_range(0..7) {
            0 => Request::Lock(lease),
            1 => Request::Unlock(lease),
            2 | 3 => Request::Campaign(lease, value),
            4 => Request::Proclaim(lease, value),
            5 => Request::Resign(lease),
            _ => Request::Call(Call::leader(format!("e{lease}").into())),
        }
    }

    fn maintenance(&mut self) -> Request {
        const VERSIONS: [&str; 7] = ["3.6", "3.6.0", "3.5", "3.7", "3.8.1", "abc", "3"];
        let unknown = 0x1234_5678;
        Request::Call(match self.rng.random_range(0..12) {
            0..3 => Call::status(),
            3 => Call::alarm(AlarmRequest { action: 0, member_id: 0, alarm: self.rng.random_range(0..3) }),
            4 => Call::alarm(AlarmRequest { action: 2, member_id: unknown, alarm: self.rng.random_range(0..3) }),
            5 | 6 => Call::downgrade(0, VERSIONS[self.rng.random_range(0..VERSIONS.len())]),
            7 => Call::move_leader(unknown),
            8 => Call::member_remove(unknown),
            9 => Call::member_update(unknown),
            10 => Call::member_promote(unknown),
            _ => Call::member_list(self.one_in(2)),
        })
    }

    /// Of users and roles out of small sets; `root` stays whole, or nobody could end it.
    fn auth_call(&mut self) -> Request {
        const USERS: [&str; 4] = ["alice", "bob", "carol", ""];
        const ROLES: [&str; 4] = ["reader", "writer", "none", ""];
        const PASSWORDS: [&str; 3] = ["first", "second", ""];
        let user = USERS[self.rng.random_range(0..USERS.len())];
        let role = ROLES[self.rng.random_range(0..ROLES.len())];
        let password = PASSWORDS[self.rng.random_range(0..PASSWORDS.len())];
        let key = self.key();
        let end = known::end_of_right(&key);
        let kind = self.rng.random_range(0..3);
        Request::Call(match self.rng.random_range(0..40) {
            0..3 => Call::user_add(user, password, self.one_in(6)),
            3..6 => Call::user_get(user),
            6..8 => Call::user_list(),
            8 => Call::user_delete(user),
            9 | 10 => Call::user_change_password(user, password),
            11..15 => Call::user_grant_role(user, if self.one_in(8) { "root" } else { role }),
            15..17 => Call::user_revoke_role(user, role),
            17..19 => Call::role_add(role),
            19..22 => Call::role_get(if self.one_in(6) { "root" } else { role }),
            22..24 => Call::role_list(),
            24 => Call::role_delete(role),
            25..33 => Call::role_grant(role, (!self.one_in(20)).then_some((kind, key, end))),
            33..35 => Call::role_revoke(role, key, end),
            35 => Call::user_revoke_role("root", "root"),
            _ => Call::auth_status(),
        })
    }

    /// Some dozen requests while users count, by different ones; `root` ends it.
    fn users(&mut self, requests: &mut Vec<Request>) {
        let calls = [
            Call::user_add("root", "first", false),
            Call::role_add("root"),
            Call::user_grant_role("root", "root"),
            Call::user_add("alice", "first", false),
            Call::user_add("bob", "second", false),
            Call::role_add("reader"),
            Call::role_add("writer"),
            Call::user_grant_role("alice", "reader"),
            Call::user_grant_role("bob", "writer"),
        ];
        requests.extend(calls.map(Request::Call));
        for (role, kind) in [("reader", 0), ("writer", 1), ("writer", 2)] {
            let key = self.key();
            let end = known::end_of_right(&key);
            requests.push(Request::Call(Call::role_grant(role, Some((kind, key, end)))));
        }
        requests.push(Request::Login(Who::Root, "first"));
        requests.push(Request::Call(Call::auth_enable()));
        for (who, password) in [(Who::Root, "first"), (Who::Alice, "first"), (Who::Bob, "second")] {
            requests.push(Request::Login(who, password));
        }
        self.users_count = true;
        for _ in 0..self.rng.random_range(50..250) {
            let request = self.while_users_count();
            requests.push(request);
        }
        self.users_count = false;
        requests.push(Request::Login(Who::Root, "first"));
        requests.push(Request::As(Who::Root, Box::new(Request::Call(Call::auth_disable()))));
    }

    fn while_users_count(&mut self) -> Request {
        let who = match self.rng.random_range(0..20) {
            0 => return self.request(),
            1 => Who::Garbage,
            2..6 => Who::Root,
            6..13 => Who::Alice,
            _ => Who::Bob,
        };
        let request = match self.rng.random_range(0..20) {
            0 => {
                let login = [(Who::Alice, "first"), (Who::Alice, "second"), (Who::Bob, "second"), (Who::Bob, "wrong")];
                let (who, password) = login[self.rng.random_range(0..login.len())];
                return Request::Login(who, password);
            }
            1..4 => self.newer(),
            4..7 => self.auth_call(),
            7 => {
                let watch = self.watch();
                Request::WatchOnce(WatchCreateRequest { watch_id: 1, ..watch })
            }
            _ => self.request(),
        };
        match request {
            // The stream of the watchers is nobody's, and stays so.
            Request::WatchCreate(_) | Request::WatchCancel(_) => request,
            request => Request::As(who, Box::new(request)),
        }
    }

    /// Some requests while an alarm is active.
    fn alarm(&mut self, requests: &mut Vec<Request>) {
        let alarm = self.rng.random_range(1..3);
        requests.push(Request::Alarm(AlarmRequest { action: 1, member_id: 0, alarm }));
        for _ in 0..self.rng.random_range(5..40) {
            let request = if self.one_in(5) { self.newer() } else { self.request() };
            requests.push(request);
        }
        requests.push(Request::Alarm(AlarmRequest { action: 2, member_id: 0, alarm }));
    }

    fn bulk_puts(&mut self) -> Request {
        self.bulk += 1;
        let put = |n| PutRequest {
            key: format!("a/{n:02}").into(),
            value: vec![b'a' + u8::try_from(self.bulk % 26).expect("small"); BULK_BYTES].into(),
            ..Default::default()
        };
        let success = (0..BULK_PUTS).map(|n| RequestOp { request: Some(Op::RequestPut(put(n))) }).collect();
        Request::Txn(TxnRequest { success, ..Default::default() })
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
        let end = match self.rng.random_range(0..10) {
            0..5 => Bytes::new(),
            5 if from_key => Bytes::from_static(b"\0"),
            5 | 6 => self.key(),
            _ => prefix_end(key),
        };
        if self.users_count && known::is_without_keys(key, &end) { Bytes::new() } else { end }
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
            fragment: self.one_in(4),
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
