//! The loads of `daymark bench` against a server whose answers the test decides: what they send, what they count, and
//! which wrong answers they notice.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use daymark_api::{
    etcdserverpb::{
        LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, ResponseOp, TxnRequest, TxnResponse, WatchRequest, WatchResponse,
        compare::TargetUnion, request_op::Request, response_op::Response, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};

use crate::fake_server::{Call, FakeServer};
use crate::{answer_status, bench, header, run_words};

/// A server that keeps keys, with the revision of their last change, and answers as etcd does as far as the loads ask.
#[derive(Clone, Default)]
struct Store {
    keys: Arc<Mutex<BTreeMap<Bytes, i64>>>,
    revision: Arc<AtomicU64>,
    calls: Arc<Mutex<HashMap<String, u64>>>,
}

impl Store {
    fn revision(&self) -> i64 {
        self.revision.load(Ordering::Relaxed) as i64
    }

    fn put(&self, key: Bytes) -> i64 {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) as i64 + 1;
        self.keys.lock().expect("not poisoned").insert(key, revision);
        revision
    }

    fn range(&self, range: &RangeRequest) -> RangeResponse {
        let keys = self.keys.lock().expect("not poisoned");
        let inside = |key: &Bytes| match &range.range_end[..] {
            [] => *key == range.key,
            [0] => *key >= range.key,
            end => *key >= range.key && key[..] < *end,
        };
        let found: Vec<_> = keys.iter().filter(|(key, _)| inside(key)).collect();
        let limit = if range.limit == 0 { found.len() } else { range.limit as usize };
        let pair = |(key, mod_revision): &(&Bytes, &i64)| KeyValue {
            key: (*key).clone(),
            mod_revision: **mod_revision,
            ..Default::default()
        };
        let kvs = if range.count_only { Vec::new() } else { found.iter().take(limit).map(pair).collect() };
        RangeResponse { header: header(self.revision()), more: found.len() > limit, count: found.len() as i64, kvs }
    }

    fn txn(&self, txn: &TxnRequest) -> TxnResponse {
        let succeeded = txn.compare.iter().all(|compare| {
            let Some(TargetUnion::ModRevision(asked)) = compare.target_union else { panic!("compares revisions") };
            let is = self.keys.lock().expect("not poisoned").get(&compare.key).copied().unwrap_or(0);
            // Equal is 0, less is 2.
            if compare.result == 0 { is == asked } else { is < asked }
        });
        let branch = if succeeded { &txn.success } else { &txn.failure };
        let responses = branch.iter().map(|op| match op.request.as_ref().expect("an operation") {
            Request::RequestPut(put) => {
                self.put(put.key.clone());
                Response::ResponsePut(PutResponse::default())
            }
            Request::RequestRange(range) => Response::ResponseRange(self.range(range)),
            other => panic!("not sent by any load: {other:?}"),
        });
        let responses = responses.map(|response| ResponseOp { response: Some(response) }).collect();
        TxnResponse { header: header(self.revision()), succeeded, responses }
    }

    async fn serve(self, mut call: Call) {
        *self.calls.lock().expect("not poisoned").entry(call.path.clone()).or_default() += 1;
        match call.path.as_str() {
            "/etcdserverpb.KV/Put" => {
                let put: PutRequest = call.incoming.message().await.expect("a put");
                let revision = self.put(put.key);
                call.answer(&PutResponse { header: header(revision), prev_kv: None });
            }
            "/etcdserverpb.KV/Range" => {
                let range: RangeRequest = call.incoming.message().await.expect("a range");
                call.answer(&self.range(&range));
            }
            "/etcdserverpb.KV/Txn" => {
                let txn: TxnRequest = call.incoming.message().await.expect("a transaction");
                call.answer(&self.txn(&txn));
            }
            _ => answer_status(call),
        }
    }

    fn start(&self) -> FakeServer {
        let store = self.clone();
        FakeServer::start(move |call| store.clone().serve(call))
    }

    fn with_keys(count: u32) -> Self {
        let store = Self::default();
        (0..count).for_each(|number| _ = store.put(format!("list/{number:06}").into()));
        store.put("other".into());
        store
    }

    fn calls(&self, path: &str) -> u64 {
        self.calls.lock().expect("not poisoned").get(path).copied().unwrap_or(0)
    }
}

#[test]
fn calls_with_a_deadline_say_what_is_left_of_it() {
    let timeouts = Arc::new(Mutex::new(Vec::new()));
    let seen = timeouts.clone();
    let server = FakeServer::start(move |call: Call| {
        let seen = seen.clone();
        async move {
            if call.path != "/etcdserverpb.KV/Put" {
                return answer_status(call);
            }
            seen.lock().expect("not poisoned").push(call.timeout.clone());
            call.answer(&PutResponse { header: header(2), ..Default::default() });
        }
    });
    let (outcome, _) = bench(&server, "put --total 100");
    outcome.expect("a good run");
    assert!(timeouts.lock().expect("not poisoned").drain(..).all(|timeout| timeout.is_none()));
    let (outcome, _) = bench(&server, "put --total 100 --call-timeout 5");
    outcome.expect("a good run");
    let left = timeouts.lock().expect("not poisoned").clone();
    let micros = |left: &Option<String>| left.as_ref()?.strip_suffix('u')?.parse::<u64>().ok();
    assert!(
        left.iter().all(|left| micros(left).is_some_and(|left| (4_999_900..=5_000_000).contains(&left))),
        "{left:?}"
    );
    assert!(left.iter().collect::<HashSet<_>>().len() > 10, "they differ: {left:?}");
}

#[test]
fn transactions_of_several_puts_never_hold_a_key_twice() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = keys.clone();
    let server = FakeServer::start(move |mut call: Call| {
        let seen = seen.clone();
        async move {
            if call.path != "/etcdserverpb.KV/Txn" {
                return answer_status(call);
            }
            let txn: TxnRequest = call.incoming.message().await.expect("a transaction");
            let mut own = HashSet::new();
            for op in txn.success {
                let Some(Request::RequestPut(put)) = op.request else { panic!("a put") };
                assert_eq!(put.value.len(), 32);
                assert!(own.insert(put.key.clone()), "a key twice");
                seen.lock().expect("not poisoned").push(put.key);
            }
            assert_eq!(own.len(), 7);
            call.answer(&TxnResponse { header: header(2), succeeded: true, ..Default::default() });
        }
    });
    let words = "txn-put --total 100 --clients 5 --txn-ops 7 --val-size 32 --key-space-size 10";
    let (outcome, report) = bench(&server, words);
    outcome.expect("no errors");
    assert_eq!(report["succeeded"], 100);
    let keys = keys.lock().expect("not poisoned");
    assert_eq!((keys.len(), keys.iter().collect::<HashSet<_>>().len()), (700, 10));
}

#[test]
fn a_mixture_has_the_ratio_asked_for_and_tells_reads_from_writes() {
    let store = Store::with_keys(20);
    let words = "txn-mixed --total 2000 --clients 5 --rw-ratio 4 --limit 3 --key-space-size 10";
    let (outcome, report) = bench(&store.start(), words);
    outcome.expect("no errors");
    let (reads, writes) = (&report["kinds"]["read"]["succeeded"], &report["kinds"]["write"]["succeeded"]);
    let reads = reads.as_u64().expect("reads");
    assert!((1500..1700).contains(&reads), "{reads} of 2000 instead of four of five");
    assert_eq!(writes.as_u64(), Some(2000 - reads));
    assert_eq!(report["answer_keys"].as_u64(), Some(3 * reads), "each read is limited to 3 keys");
}

#[test]
fn a_transaction_answered_with_the_wrong_thing_is_an_error() {
    let server = FakeServer::start(|mut call: Call| async move {
        if call.path != "/etcdserverpb.KV/Txn" {
            return answer_status(call);
        }
        let _: TxnRequest = call.incoming.message().await.expect("a transaction");
        let responses = vec![ResponseOp { response: Some(Response::ResponsePut(PutResponse::default())) }];
        call.answer(&TxnResponse { header: header(2), succeeded: true, responses });
    });
    let (outcome, report) = bench(&server, "txn-mixed --total 100 --rw-ratio 1");
    outcome.expect_err("reads are answered with puts");
    assert_eq!(report["failed"], report["errors"]["protocol: transaction's answer does not fit its operation"]);
    assert!(report["failed"].as_u64() > Some(20) && report["succeeded"].as_u64() > Some(20));
}

#[test]
fn conflicting_transactions_are_tried_until_they_succeed() {
    for isolation in ["r", "s", "ss"] {
        let store = Store::default();
        let words = "stm --total 300 --clients 10 --keys 3 --keys-per-txn 2 --txn-wr-percent 100 --isolation";
        let (outcome, report) = bench(&store.start(), &format!("{words} {isolation}"));
        outcome.expect("no errors");
        let retries = report["retries"].as_u64().expect("a number");
        assert!(retries > 0, "ten clients write three keys: some must collide");
        assert_eq!(store.calls("/etcdserverpb.KV/Txn"), 300 + retries, "a commit for each attempt");
        assert_eq!(store.revision(), 600, "each transaction has put its two keys exactly once");
    }
    // Who does not care for what was changed meanwhile never collides.
    let store = Store::default();
    let words = "stm --total 300 --clients 10 --keys 3 --keys-per-txn 2 --txn-wr-percent 50 --isolation c";
    let (outcome, report) = bench(&store.start(), words);
    outcome.expect("no errors");
    assert_eq!((&report["retries"], store.revision()), (&0.into(), 300));
}

#[test]
fn lists_follow_their_pages_to_the_end() {
    let store = Store::with_keys(105);
    let server = store.start();
    let (outcome, report) = bench(&server, "range list/ --prefix --page-size 10 --total 4 --clients 2 --must-exist");
    outcome.expect("no errors");
    assert_eq!((&report["succeeded"], &report["answer_keys"]), (&4.into(), &420.into()));
    assert_eq!(store.calls("/etcdserverpb.KV/Range"), 44, "eleven pages each");
    let (outcome, report) = bench(&server, "range '' --prefix --page-size 1000 --total 1");
    outcome.expect("no errors");
    assert_eq!(report["answer_keys"], 106, "the list of everything has the other key, too");
    let (outcome, report) = bench(&server, "range list/ --prefix --count-only --total 3");
    outcome.expect("no errors");
    assert_eq!(report["answer_keys"], 315);
    bench(&server, "range nothing/ --prefix --page-size 10 --total 1 --must-exist").0.expect_err("no such key");
}

/// A page that leaves out a key, one that repeats its last key, and one that goes back.
#[test]
fn incomplete_and_disordered_lists_are_errors() {
    let broken = |wrong: fn(&mut RangeResponse)| {
        let store = Store::with_keys(30);
        let server = FakeServer::start(move |mut call: Call| {
            let store = store.clone();
            async move {
                if call.path != "/etcdserverpb.KV/Range" {
                    return answer_status(call);
                }
                let range: RangeRequest = call.incoming.message().await.expect("a range");
                let mut answer = store.range(&range);
                if range.revision > 0 {
                    wrong(&mut answer);
                }
                call.answer(&answer);
            }
        });
        let (outcome, report) = bench(&server, "range list/ --prefix --page-size 10 --total 1");
        outcome.expect_err("a broken list");
        report["errors"].as_object().expect("errors").keys().next().expect("one").clone()
    };
    assert_eq!(broken(|page| drop(page.kvs.remove(5))), "protocol: list with more or fewer keys than announced");
    assert_eq!(broken(|page| page.kvs.insert(0, page.kvs[0].clone())), "protocol: list out of order");
    assert_eq!(broken(|page| page.kvs[0].key = Bytes::from_static(b"list/")), "protocol: list out of order");
    assert_eq!(broken(|page| page.kvs.clear()), "protocol: empty page, and more behind it");
}

/// A server that keeps lease ids, and renews those.
fn lease_server(leases: &Arc<Mutex<HashSet<i64>>>) -> FakeServer {
    let leases = leases.clone();
    FakeServer::start(move |mut call: Call| {
        let leases = leases.clone();
        async move {
            match call.path.as_str() {
                "/etcdserverpb.Lease/LeaseGrant" => {
                    let grant: LeaseGrantRequest = call.incoming.message().await.expect("a grant");
                    assert!(grant.id > 0, "an id of its own choice");
                    assert!(leases.lock().expect("not poisoned").insert(grant.id), "an id twice");
                    let answer =
                        LeaseGrantResponse { header: header(1), id: grant.id, ttl: grant.ttl, ..Default::default() };
                    call.answer(&answer);
                }
                "/etcdserverpb.Lease/LeaseKeepAlive" => {
                    let mut stream = call.open();
                    while let Some(LeaseKeepAliveRequest { id }) = stream.incoming.message().await {
                        let ttl = if leases.lock().expect("not poisoned").contains(&id) { 100 } else { 0 };
                        stream.send(&LeaseKeepAliveResponse { header: header(1), id, ttl });
                    }
                }
                _ => answer_status(call),
            }
        }
    })
}

#[test]
fn leases_are_renewed_and_missing_ones_noticed() {
    let leases = Arc::default();
    let server = lease_server(&leases);
    bench(&server, "lease-grant --total 500 --clients 20 --seed 3").0.expect("no errors");
    assert_eq!(leases.lock().expect("not poisoned").len(), 500);
    let (outcome, report) = bench(&server, "lease-keepalive --leases 500 --total 2000 --clients 20 --seed 3");
    outcome.expect("no errors");
    assert_eq!(report["succeeded"], 2000);
    // Each client's own lease.
    bench(&server, "lease-keepalive --total 100 --clients 20 --seed 4").0.expect("no errors");
    assert_eq!(leases.lock().expect("not poisoned").len(), 520);
    // More than were made: some of those that are renewed do not exist. The first ones do, with which the streams begin.
    let (outcome, report) = bench(&server, "lease-keepalive --leases 600 --total 3000 --clients 20 --seed 3");
    outcome.expect_err("a hundred leases do not exist");
    let missing = report["errors"]["protocol: the lease does not exist (any more)"].as_u64().expect("noticed");
    assert!((400..600).contains(&missing), "{missing} of 3000 instead of about one of six");
}

/// Answers each create with the whole past of the key, `copies` times.
fn past_server(copies: fn(i64) -> usize) -> FakeServer {
    let store = Store::default();
    FakeServer::start(move |call: Call| {
        let store = store.clone();
        async move {
            if call.path != "/etcdserverpb.Watch/Watch" {
                return store.serve(call).await;
            }
            let mut stream = call.open();
            let mut watch_id = 0;
            while let Some(request) = stream.incoming.message::<WatchRequest>().await {
                let Some(RequestUnion::CreateRequest(create)) = request.request_union else { panic!("a create") };
                stream.send(&WatchResponse { watch_id, created: true, header: header(1), ..Default::default() });
                for revision in create.start_revision..=store.revision() {
                    let kv = KeyValue { key: create.key.clone(), mod_revision: revision, ..Default::default() };
                    let events = vec![Event { kv: Some(kv), ..Default::default() }; copies(revision)];
                    stream.send(&WatchResponse { watch_id, events, header: header(1), ..Default::default() });
                }
                watch_id += 1;
            }
        }
    })
}

const CATCH_UP: &str = "watch-get --watchers 60 --streams 3 --watch-conns 2 --events 5 --stall-timeout 0.5";

#[test]
fn reads_go_on_until_every_watcher_has_caught_up() {
    let (outcome, report) = bench(&past_server(|_| 1), CATCH_UP);
    outcome.expect("no errors");
    let watch = &report["watch"];
    assert_eq!((&watch["events"], &watch["events_expected"]), (&300.into(), &300.into()));
    assert!(report["succeeded"].as_u64() > Some(0), "nothing was read meanwhile");
    assert_eq!(watch["latency_is"], "caught up");
}

#[test]
fn watchers_that_never_catch_up_end_the_run() {
    let (outcome, report) = bench(&past_server(|revision| usize::from(revision != 3)), CATCH_UP);
    outcome.expect_err("an event is missing");
    assert_eq!(report["errors"]["events missing"], 60);
    let (outcome, report) = bench(&past_server(|revision| if revision == 3 { 2 } else { 1 }), CATCH_UP);
    outcome.expect_err("an event came twice");
    assert_eq!(report["errors"]["events repeated or out of order"], 60);
}

#[test]
fn an_error_half_way_through_a_list_is_the_error_of_the_list() {
    let store = Store::with_keys(30);
    let server = FakeServer::start(move |mut call: Call| {
        let store = store.clone();
        async move {
            if call.path != "/etcdserverpb.KV/Range" {
                return answer_status(call);
            }
            let range: RangeRequest = call.incoming.message().await.expect("a range");
            match range.revision {
                0 => call.answer(&store.range(&range)),
                _ => call.refuse(11, "etcdserver: mvcc: required revision has been compacted"),
            }
        }
    });
    let (outcome, report) = bench(&server, "range list/ --prefix --page-size 10 --total 3");
    outcome.expect_err("no list was whole");
    assert_eq!(report["errors"]["etcdserver: mvcc: required revision has been compacted (code 11)"], 3);
}

#[test]
fn a_keepalive_stream_that_breaks_is_opened_again() {
    let renewals = Arc::new(AtomicU64::new(0));
    let server = FakeServer::start(move |mut call: Call| {
        let renewals = renewals.clone();
        async move {
            match call.path.as_str() {
                "/etcdserverpb.Lease/LeaseGrant" => {
                    let LeaseGrantRequest { id, ttl } = call.incoming.message().await.expect("a grant");
                    call.answer(&LeaseGrantResponse { header: header(1), id, ttl, ..Default::default() });
                }
                "/etcdserverpb.Lease/LeaseKeepAlive" => {
                    let mut stream = call.open();
                    while let Some(LeaseKeepAliveRequest { id }) = stream.incoming.message().await {
                        if renewals.fetch_add(1, Ordering::Relaxed) == 20 {
                            return stream.reset();
                        }
                        stream.send(&LeaseKeepAliveResponse { header: header(1), id, ttl: 7 });
                    }
                }
                _ => answer_status(call),
            }
        }
    });
    let (outcome, report) = bench(&server, "lease-keepalive --total 50 --clients 2 --conns 2");
    outcome.expect_err("one error");
    assert_eq!((&report["succeeded"], &report["failed"]), (&49.into(), &1.into()));
}

/// The page is made of the files that the loads write, and says so where a file is of another kind.
#[test]
fn reports_become_a_page_with_figures() {
    let store = Store::default();
    let server = store.start();
    let dir = tempfile::tempdir().expect("a directory");
    let (_, report) = bench(&server, &format!("put --total 0 --duration 2.2 --clients 2 --pid {}", std::process::id()));
    let (run_file, compared) = (dir.path().join("my-run.json"), dir.path().join("compare.json"));
    std::fs::write(&run_file, report.to_string()).expect("written");
    let figures =
        r#"{"p50_us": {"etcd": [228.0], "daymark": [167.0]}, "resident_mb": {"etcd": [561], "daymark": [292]}}"#;
    let series = r#"{"puts": {"etcd": [100, 200, 300], "daymark": [400, 500, 30]}}"#;
    let text = format!(
        r#"{{"compare": {{"rounds": 1, "etcd": "3.4.23"}}, "loads": {{"puts": {figures}}}, "series": {series}}}"#
    );
    std::fs::write(&compared, text).expect("written");
    let page = |files: &[&std::path::Path], out: &std::path::Path| {
        let files = files.iter().map(|file| file.to_str().expect("plain"));
        run_words(["report", "--out", out.to_str().expect("plain")].into_iter().chain(files))
    };
    let out = dir.path().join("page");
    page(&[&run_file, &compared], &out).expect("a page");
    let html = std::fs::read_to_string(out.join("index.html")).expect("a page");
    for text in ["my-run", "beside etcd 3.4.23", "0.732", "puts: operations per second", "Memory of the servers"] {
        assert!(html.contains(text), "{text} is not in it");
    }
    for figure in ["etcd-daymark-p50-us", "puts-over-time", "runs-throughput", "runs-memory", "runs-latency"] {
        let svg = std::fs::read_to_string(out.join(format!("{figure}.svg"))).expect(figure);
        assert!(svg.starts_with("<svg ") && svg.contains("</svg>"), "{figure}");
    }
    let stray = dir.path().join("stray.json");
    std::fs::write(&stray, "{}").expect("written");
    let error = page(&[&stray], &out).expect_err("no measurement");
    assert!(format!("{error:#}").contains("neither of scripts/compare.py"), "{error:#}");
}
