//! Everything that must be refused: requests that are malformed, oversized, unknown or against the rules, each with the
//! code and the text that clients recognise. The table is proved on etcd first; then Daymark must say the same.

use std::time::Duration;

use bytes::Bytes;
use daymark_api::{
    etcdserverpb::{
        CompactionRequest, Compare, DeleteRangeRequest, DowngradeRequest, LeaseGrantRequest, LeaseRevokeRequest,
        MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest,
        PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, request_op::Request as Op,
    },
    v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest},
    v3lockpb::{LockRequest, UnlockRequest},
};
use daymark_tests::{
    process::Dialect,
    wire::{self, Call, Outcome, frame},
};

use prost::Message;

use super::{generate::Request, side::Side};

/// Who answers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// etcd 3.5.1, which refuses less.
    Etcd35,
    /// etcd 3.7.1: what is expected is what it does.
    Etcd,
    /// Daymark, which must do the same.
    Daymark,
}

impl From<Dialect> for Who {
    fn from(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Daymark => Self::Daymark,
            Dialect::Etcd => Self::Etcd,
            Dialect::Etcd35 => Self::Etcd35,
        }
    }
}

/// Which of them refuse so.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Since {
    /// All.
    Old,
    /// All but 3.5.1.
    Newer,
    /// All but 3.7.1, which is more lenient; the row says why Daymark is not.
    NotNewer,
}

impl Since {
    /// Whether this one refuses so.
    pub fn concerns(self, who: Who) -> bool {
        match self {
            Self::Old => true,
            Self::Newer => who != Who::Etcd35,
            Self::NotNewer => who != Who::Etcd,
        }
    }
}

/// What must come back.
pub enum Expect {
    /// This code and exactly this text.
    Text(u16, String),
    /// This code and a text that begins so: the rest are the decoder's own words.
    Begins(u16, &'static str),
    /// Some code that is not "ok": the texts are those of a gRPC library, and change with its version.
    Refused,
    /// Not a gRPC answer at all: this HTTP status, or a broken stream.
    Http(u16),
}

/// A call, and how it must be refused.
pub struct Row {
    pub name: &'static str,
    pub call: Call,
    pub expect: Expect,
    pub since: Since,
}

pub const UNKNOWN: u16 = 2;
pub const INVALID: u16 = 3;
pub const NOT_FOUND: u16 = 5;
pub const EXHAUSTED: u16 = 8;
pub const PRECONDITION: u16 = 9;
pub const DENIED: u16 = 7;
const OUT_OF_RANGE: u16 = 11;
const UNIMPLEMENTED: u16 = 12;
const INTERNAL: u16 = 13;
pub const DATA_LOSS: u16 = 15;
pub const UNAUTHENTICATED: u16 = 16;

/// Default limits: on the replicated request, and on what is received at all.
const REQUEST_BYTES_MAX: usize = 1_572_864;
const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + 512 * 1024;

/// Asks a server every row; what was not as expected.
pub async fn failures(endpoint: &str, who: Who) -> Vec<String> {
    prepare(endpoint).await;
    let mut failures = Vec::new();
    for row in rows() {
        if !row.since.concerns(who) {
            continue;
        }
        let outcome = wire::call(endpoint, &row.call).await;
        if let Some(expected) = mismatch(&row.expect, &outcome) {
            failures.push(format!("{}: {outcome:?} instead of {expected}", row.name));
        }
        let alive = wire::call(endpoint, &Call::new("KV.Put", &put("alive", "yes"))).await;
        if alive.code != Some(0) {
            failures.push(format!("after {}: the server does not go on: {alive:?}", row.name));
        }
    }
    failures
}

/// Keys `a` and `b`, history up to revision 5 compacted at 4, lease 7.
async fn prepare(endpoint: &str) {
    let mut side = Side::connect(endpoint, false).await;
    for request in [
        Request::Put(put("a", "1")),
        Request::Put(put("a", "2")),
        Request::Put(put("a", "3")),
        Request::Put(put("b", "1")),
        Request::Compact(CompactionRequest { revision: 4, physical: true }),
        Request::Grant(LeaseGrantRequest { ttl: 1000, id: 7 }),
    ] {
        let answer = side.ask(&request).await;
        assert!(answer.contains("header: Some"), "{request:?}: {answer}");
    }
}

/// What was expected, if this is not it.
pub fn mismatch(expect: &Expect, outcome: &Outcome) -> Option<String> {
    let (met, expected) = match expect {
        Expect::Text(code, text) => {
            (outcome.code == Some(*code) && outcome.message == *text, format!("{code} {text:?}"))
        }
        Expect::Begins(code, text) => {
            (outcome.code == Some(*code) && outcome.message.starts_with(text), format!("{code} {text:?}..."))
        }
        Expect::Refused => (outcome.code.is_some_and(|code| code != 0), "some gRPC error".to_owned()),
        Expect::Http(status) => {
            (outcome.http == *status || outcome.http == 0, format!("HTTP {status} or a broken stream"))
        }
    };
    (!met).then_some(expected)
}

/// All rows.
pub fn rows() -> Vec<Row> {
    [keys(), txns(), revisions(), streams(), leases(), concurrency(), members(), maintenance(), sizes(), transport()]
        .into_iter()
        .flatten()
        .collect()
}

fn keys() -> Vec<Row> {
    let empty = "key is not provided";
    vec![
        row("range without a key", Call::new("KV.Range", &RangeRequest::default()), INVALID, empty),
        row("put without a key", Call::new("KV.Put", &put("", "v")), INVALID, empty),
        row("delete without a key", Call::new("KV.DeleteRange", &DeleteRangeRequest::default()), INVALID, empty),
        row(
            "put that keeps the value of a missing key",
            Call::new("KV.Put", &PutRequest { ignore_value: true, ..put("no", "") }),
            INVALID,
            "key not found",
        ),
        row(
            "put that keeps the lease of a missing key",
            Call::new("KV.Put", &PutRequest { ignore_lease: true, ..put("no", "v") }),
            INVALID,
            "key not found",
        ),
        row(
            "put that keeps the value and has one",
            Call::new("KV.Put", &PutRequest { ignore_value: true, ..put("a", "v") }),
            INVALID,
            "value is provided",
        ),
        row(
            "put that keeps the lease and has one",
            Call::new("KV.Put", &PutRequest { ignore_lease: true, lease: 7, ..put("a", "v") }),
            INVALID,
            "lease is provided",
        ),
        newer(row(
            "range in an unknown order",
            Call::new("KV.Range", &RangeRequest { sort_order: 99, ..range("a") }),
            INVALID,
            "invalid sort option",
        )),
        newer(row(
            "range sorted by something unknown",
            Call::new("KV.Range", &RangeRequest { sort_target: 99, ..range("a") }),
            INVALID,
            "invalid sort option",
        )),
    ]
}

fn txns() -> Vec<Row> {
    let (empty, many, twice) =
        ("key is not provided", "too many operations in txn request", "duplicate key given in txn request");
    let compare = |key: &'static str| Compare { key: key.into(), ..Default::default() };
    let of = |success: Vec<Op>| txn(Vec::new(), success, Vec::new());
    let everything = DeleteRangeRequest { key: "a".into(), range_end: "c".into(), prev_kv: false };
    let ranges = |n| vec![Op::RequestRange(range("a")); n];
    let nested = |n| of(vec![Op::RequestRange(range("a")), Op::RequestTxn(of(ranges(n)))]);
    vec![
        row("txn with an empty put", call(of(vec![Op::RequestPut(put("", "v"))])), INVALID, empty),
        row("txn with an empty range", call(of(vec![Op::RequestRange(range(""))])), INVALID, empty),
        row("txn with an empty compare", call(txn(vec![compare("")], vec![], vec![])), INVALID, empty),
        row(
            "txn with an empty op in the branch not taken",
            call(txn(vec![], vec![], vec![Op::RequestPut(put("", "v"))])),
            INVALID,
            empty,
        ),
        row(
            "txn with an unset op",
            call(TxnRequest { success: vec![RequestOp { request: None }], ..of(vec![]) }),
            INVALID,
            "key not found",
        ),
        row("129 compares", call(txn(vec![compare("a"); 129], vec![], vec![])), INVALID, many),
        row("129 ops", call(of(ranges(129))), INVALID, many),
        row("129 ops in the branch not taken", call(txn(vec![], vec![], ranges(129))), INVALID, many),
        row("nested ops beyond what the parent leaves", call(nested(127)), INVALID, many),
        row(
            "two puts of a key",
            call(of(vec![Op::RequestPut(put("x", "1")), Op::RequestPut(put("x", "2"))])),
            INVALID,
            twice,
        ),
        row(
            "put and delete of a key",
            call(of(vec![Op::RequestDeleteRange(everything.clone()), Op::RequestPut(put("b", "2"))])),
            INVALID,
            twice,
        ),
        row(
            "put here and in a nested txn",
            call(of(vec![Op::RequestPut(put("x", "1")), Op::RequestTxn(of(vec![Op::RequestPut(put("x", "2"))]))])),
            INVALID,
            twice,
        ),
        row(
            "txn with an unknown lease",
            call(of(vec![Op::RequestPut(PutRequest { lease: 99, ..put("x", "1") })])),
            NOT_FOUND,
            "requested lease not found",
        ),
        row(
            "txn that keeps the value of a missing key",
            call(of(vec![Op::RequestPut(PutRequest { ignore_value: true, ..put("no", "") })])),
            INVALID,
            "key not found",
        ),
    ]
}

fn revisions() -> Vec<Row> {
    let (past, future) = ("mvcc: required revision has been compacted", "mvcc: required revision is a future revision");
    let at = |revision| RangeRequest { revision, ..range("a") };
    let in_txn = |revision| call(txn(vec![], vec![Op::RequestRange(at(revision))], vec![]));
    let writing =
        |revision| call(txn(vec![], vec![Op::RequestPut(put("x", "1")), Op::RequestRange(at(revision))], vec![]));
    let compact = |revision| Call::new("KV.Compact", &CompactionRequest { revision, physical: false });
    vec![
        row("range below the compact revision", Call::new("KV.Range", &at(3)), OUT_OF_RANGE, past),
        row("range in the future", Call::new("KV.Range", &at(1_000_000)), OUT_OF_RANGE, future),
        row("range in a txn below the compact revision", in_txn(3), OUT_OF_RANGE, past),
        row("range in a txn in the future", in_txn(1_000_000), OUT_OF_RANGE, future),
        row("range in a writing txn below the compact revision", writing(3), OUT_OF_RANGE, past),
        row("range in a writing txn in the future", writing(1_000_000), OUT_OF_RANGE, future),
        row("negative revision in a txn", writing(-1), OUT_OF_RANGE, past),
        row("compaction at the compact revision", compact(4), OUT_OF_RANGE, past),
        row("compaction below it", compact(2), OUT_OF_RANGE, past),
        row("compaction in the future", compact(1_000_000), OUT_OF_RANGE, future),
    ]
}

fn streams() -> Vec<Row> {
    let stream = |request: RangeRequest| Call::new("KV.RangeStream", &request);
    let all = || RangeRequest { range_end: "z".into(), ..range("a") };
    let (order, bounds) =
        ("RangeStream does not support custom sort orders", "RangeStream does not support revision filters");
    let (past, future) = ("mvcc: required revision has been compacted", "mvcc: required revision is a future revision");
    let descending = || RangeRequest { sort_order: 2, ..all() };
    let raw = |name, request, text: &str| {
        newer(Row {
            name,
            call: stream(request),
            expect: Expect::Text(UNIMPLEMENTED, text.to_owned()),
            since: Since::Old,
        })
    };
    vec![
        newer(row("stream without a key", stream(range("")), INVALID, "key is not provided")),
        newer(row(
            "stream in an unknown order",
            stream(RangeRequest { sort_order: 9, ..all() }),
            INVALID,
            "invalid sort option",
        )),
        raw("descending stream", descending(), order),
        raw("stream sorted by value", RangeRequest { sort_order: 1, sort_target: 4, ..all() }, order),
        raw("stream from a modification on", RangeRequest { min_mod_revision: 1, ..all() }, bounds),
        raw("stream up to a modification", RangeRequest { max_mod_revision: 1, ..all() }, bounds),
        raw("stream from a creation on", RangeRequest { min_create_revision: 1, ..all() }, bounds),
        raw("stream up to a creation", RangeRequest { max_create_revision: 1, ..all() }, bounds),
        raw("descending stream with bounds", RangeRequest { min_mod_revision: 1, ..descending() }, order),
        newer(row("stream of the past", stream(RangeRequest { revision: 3, ..all() }), OUT_OF_RANGE, past)),
        newer(row("stream of the future", stream(RangeRequest { revision: 1_000_000, ..all() }), OUT_OF_RANGE, future)),
    ]
}

/// Locks and elections: everything that fails inside of them is of unknown kind.
fn concurrency() -> Vec<Row> {
    let lock = |method: &str, message: &[u8]| Call::at(&format!("v3lockpb.Lock.{method}"), message.to_vec());
    let election = |method: &str, message: Vec<u8>| Call::at(&format!("v3electionpb.Election.{method}"), message);
    let raw =
        |name, call, text: &str| Row { name, call, expect: Expect::Text(UNKNOWN, text.to_owned()), since: Since::Old };
    let name = || Bytes::from_static(b"nobody");
    let candidate = CampaignRequest { name: name(), lease: 99, value: Bytes::new() };
    let stale = LeaderKey { name: name(), key: "nobody/63".into(), rev: 1, lease: 99 };
    let proclaim = |leader: Option<LeaderKey>| ProclaimRequest { leader, value: "x".into() }.encode_to_vec();
    let resign = |leader: Option<LeaderKey>| ResignRequest { leader }.encode_to_vec();
    let missing = "\"leader\" field must be provided";
    vec![
        raw(
            "lock with an unknown lease",
            lock("Lock", &LockRequest { name: "lock".into(), lease: 99 }.encode_to_vec()),
            "etcdserver: requested lease not found",
        ),
        raw(
            "candidate with an unknown lease",
            election("Campaign", candidate.encode_to_vec()),
            "etcdserver: requested lease not found",
        ),
        raw(
            "unlock of nothing",
            lock("Unlock", &UnlockRequest::default().encode_to_vec()),
            "etcdserver: key is not provided",
        ),
        raw(
            "leader of no election",
            election("Leader", LeaderRequest { name: name() }.encode_to_vec()),
            "election: no leader",
        ),
        raw("proclamation by nobody", election("Proclaim", proclaim(Some(stale))), "election: not leader"),
        raw("proclamation without a leader", election("Proclaim", proclaim(None)), missing),
        raw("resignation without a leader", election("Resign", resign(None)), missing),
    ]
}

fn leases() -> Vec<Row> {
    let grant = |ttl, id| Call::new("Lease.LeaseGrant", &LeaseGrantRequest { ttl, id });
    let unknown = "requested lease not found";
    vec![
        row(
            "put with an unknown lease",
            Call::new("KV.Put", &PutRequest { lease: 99, ..put("x", "1") }),
            NOT_FOUND,
            unknown,
        ),
        row(
            "revoke of an unknown lease",
            Call::new("Lease.LeaseRevoke", &LeaseRevokeRequest { id: 99 }),
            NOT_FOUND,
            unknown,
        ),
        row("grant of a present lease", grant(100, 7), PRECONDITION, "lease already exists"),
        row("grant for longer than is possible", grant(9_000_000_001, 8), OUT_OF_RANGE, "too large lease TTL"),
    ]
}

/// Of a cluster of one. What only Daymark refuses is in the scripts of the server.
fn members() -> Vec<Row> {
    let add = |urls: &[&str]| {
        let peer_ur_ls = urls.iter().map(ToString::to_string).collect();
        Call::new("Cluster.MemberAdd", &MemberAddRequest { peer_ur_ls, is_learner: false })
    };
    let (invalid, unknown) = ("given member URLs are invalid", "member not found");
    let update = MemberUpdateRequest { id: 0x1234, peer_ur_ls: vec!["http://127.0.0.1:1".into()] };
    vec![
        row("member without addresses", add(&[]), INVALID, invalid),
        row("member with an address that is none", add(&["foo"]), INVALID, invalid),
        row("member with an address without a port", add(&["http://127.0.0.1"]), INVALID, invalid),
        row("member with a path in its address", add(&["http://127.0.0.1:1/x"]), INVALID, invalid),
        row("member with one bad address of two", add(&["http://127.0.0.1:1", "ftp://127.0.0.1:1"]), INVALID, invalid),
        row(
            "removal of an unknown member",
            Call::new("Cluster.MemberRemove", &MemberRemoveRequest { id: 0x1234 }),
            NOT_FOUND,
            unknown,
        ),
        row("update of an unknown member", Call::new("Cluster.MemberUpdate", &update), NOT_FOUND, unknown),
        row(
            "promotion of an unknown member",
            Call::new("Cluster.MemberPromote", &MemberPromoteRequest { id: 0x1234 }),
            NOT_FOUND,
            unknown,
        ),
    ]
}

fn maintenance() -> Vec<Row> {
    let downgrade = |action, version: &str| {
        Call::new("Maintenance.Downgrade", &DowngradeRequest { action, version: version.into() })
    };
    let (format, target) = ("wrong downgrade target version format", "invalid downgrade target version");
    vec![
        row(
            "leadership for an unknown member",
            Call::new("Maintenance.MoveLeader", &MoveLeaderRequest { target_id: 0x1234 }),
            PRECONDITION,
            "bad leader transferee",
        ),
        row("downgrade to a version that is none", downgrade(0, "abc"), INVALID, format),
        row("downgrade to a major version", downgrade(1, "3"), INVALID, format),
        newer(row("downgrade by two", downgrade(0, "3.5"), INVALID, target)),
        newer(row("downgrade to the same", downgrade(1, "3.7.0"), INVALID, target)),
        newer(row("downgrade to a newer version", downgrade(1, "3.8"), INVALID, target)),
        row("unknown action of a downgrade", downgrade(7, "3.6"), UNKNOWN, "unknown method"),
    ]
}

fn sizes() -> Vec<Row> {
    let message = |length: usize| {
        let of = |value_length| {
            let value = Bytes::from(vec![b'x'; value_length]);
            Call::new("KV.Put", &PutRequest { key: "big".into(), value, ..Default::default() })
        };
        // The key takes 5 bytes, the value's head 4 or 5, the frame around all of it 5.
        let call = [9, 10].map(|overhead| of(length - overhead)).into_iter().find(|call| call.body.len() == length + 5);
        call.expect("one of the two heads fits")
    };
    let refused = format!("grpc: received message larger than max ({} vs. {MESSAGE_BYTES_MAX})", MESSAGE_BYTES_MAX + 1);
    vec![
        row("request over the limit", message(REQUEST_BYTES_MAX + 1), INVALID, "request is too large"),
        row("largest message that is received", message(MESSAGE_BYTES_MAX), INVALID, "request is too large"),
        Row {
            name: "message over the limit",
            call: message(MESSAGE_BYTES_MAX + 1),
            expect: Expect::Text(EXHAUSTED, refused),
            since: Since::Old,
        },
    ]
}

fn transport() -> Vec<Row> {
    let get = Call::new("KV.Range", &range("a"));
    let garbage = "grpc: error unmarshalling request: ";
    let at = |path: &str| Call { path: path.to_owned(), ..get.clone() };
    let text =
        |name, call, code, text: &str| Row { name, call, expect: Expect::Text(code, text.into()), since: Since::Old };
    let begins = |name, call, code, text| Row { name, call, expect: Expect::Begins(code, text), since: Since::Old };
    let refused = |name, call| Row { name, call, expect: Expect::Refused, since: Since::Old };
    let http = |name, call, status| Row { name, call, expect: Expect::Http(status), since: Since::Old };
    vec![
        begins("length beyond the message", Call::raw("KV.Put", &b"\x0a\x64a"[..]), INTERNAL, garbage),
        begins("unknown wire type", Call::raw("KV.Put", &b"\x0f\x01"[..]), INTERNAL, garbage),
        // 3.7.1 takes such a field for one that it does not know, and would put what the caller did not mean.
        Row {
            since: Since::NotNewer,
            ..begins("wrong wire type of a known field", Call::raw("KV.Put", &b"\x08\x01"[..]), INTERNAL, garbage)
        },
        begins("field number zero", Call::raw("KV.Put", &b"\x02\x01a"[..]), INTERNAL, garbage),
        begins("unended number", Call::raw("KV.Put", &b"\x18\xff\xff\xff"[..]), INTERNAL, garbage),
        text(
            "unknown method",
            at("/etcdserverpb.KV/Nothing"),
            UNIMPLEMENTED,
            "unknown method Nothing for service etcdserverpb.KV",
        ),
        text("unknown service", at("/nobody.Knows/It"), UNIMPLEMENTED, "unknown service nobody.Knows"),
        newer(text("path without a method", at("/nothing"), UNIMPLEMENTED, "malformed method name: \"/nothing\"")),
        text(
            "unknown compression",
            get.clone().header("grpc-encoding", "zip").body(frame(1, b"abc")),
            UNIMPLEMENTED,
            "grpc: Decompressor is not installed for grpc-encoding \"zip\"",
        ),
        text(
            "compressed without saying how",
            get.clone().body(frame(1, b"abc")),
            INTERNAL,
            "grpc: compressed flag set with identity or empty encoding",
        ),
        refused("body that ends inside the frame", get.clone().body(&b"\0\0\0\0\x64abc"[..])),
        refused("no message at all", get.clone().body(Bytes::new())),
        http("wrong content type", get.clone().header("content-type", "text/plain"), 415),
        newer(row(
            "client version that is no text",
            get.header("client-api-version", &b"\xff\xfe"[..]),
            INVALID,
            "invalid client api version",
        )),
    ]
}

/// Problems of one watcher are told on the stream, which lives on; what such a stream says, in order.
pub async fn watch_refusals(endpoint: &str) -> Vec<String> {
    prepare(endpoint).await;
    let mut side = Side::connect(endpoint, false).await;
    let create = |watch_id, key: &'static str, end: &'static str, start_revision| {
        let (key, range_end) = (key.into(), end.into());
        Request::WatchCreate(WatchCreateRequest { key, range_end, start_revision, watch_id, ..Default::default() })
    };
    for request in [
        create(5, "a", "", 0),
        create(5, "b", "", 0),
        create(6, "b", "a", 0),
        create(8, "b", "b", 0),
        create(10, "a", "", 2),
        create(11, "a", "", 4),
        create(-3, "a", "\0", 0),
        create(12, "a", "b", 1_000_000),
        Request::WatchCancel(77),
        Request::WatchCancel(5),
        Request::Put(put("a", "seen by those that are left")),
    ] {
        side.ask(&request).await;
    }
    side.told().await
}

/// What a lock is answered with whose key vanishes while it waits.
pub async fn lost_place_in_a_queue(endpoint: &str) -> Outcome {
    let lock = |lease| Call::at("v3lockpb.Lock.Lock", LockRequest { name: "queue".into(), lease }.encode_to_vec());
    for id in [21, 22] {
        let granted = wire::call(endpoint, &Call::new("Lease.LeaseGrant", &LeaseGrantRequest { ttl: 1000, id })).await;
        assert_eq!(granted.code, Some(0), "{granted:?}");
    }
    assert_eq!(wire::call(endpoint, &lock(21)).await.code, Some(0), "the first one holds it");
    let waiting = lock(22);
    let lose_and_free = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for id in [22, 21] {
            wire::call(endpoint, &Call::new("Lease.LeaseRevoke", &LeaseRevokeRequest { id })).await;
        }
    };
    futures_util::future::join(wire::call(endpoint, &waiting), lose_and_free).await.0
}

/// What a watcher is told that starts before everything. Present etcd refuses it; 3.5.1 creates it and then cancels it.
pub async fn watch_from_below_zero(endpoint: &str) -> Vec<String> {
    let mut side = Side::connect(endpoint, false).await;
    let create = WatchCreateRequest { key: "a".into(), start_revision: -1, ..Default::default() };
    side.ask(&Request::WatchCreate(create)).await;
    side.told().await
}

/// A row with one of etcd's own texts.
pub fn row(name: &'static str, call: Call, code: u16, text: &str) -> Row {
    Row { name, call, expect: Expect::Text(code, format!("etcdserver: {text}")), since: Since::Old }
}

fn newer(row: Row) -> Row {
    Row { since: Since::Newer, ..row }
}

fn call(txn: TxnRequest) -> Call {
    Call::new("KV.Txn", &txn)
}

fn txn(compare: Vec<Compare>, success: Vec<Op>, failure: Vec<Op>) -> TxnRequest {
    let ops = |ops: Vec<Op>| ops.into_iter().map(|op| RequestOp { request: Some(op) }).collect();
    TxnRequest { compare, success: ops(success), failure: ops(failure) }
}

pub fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

pub fn range(key: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), ..Default::default() }
}
