//! The load harness against a server that misbehaves: everything that goes wrong must show in the report.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use daymark_api::{
    etcdserverpb::{
        PutRequest, PutResponse, RangeRequest, RangeResponse, WatchRequest, WatchResponse, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::fake_server::{Call, FakeServer, Outgoing};
use crate::{answer_status, bench, header, run_words};

fn put_answer() -> PutResponse {
    PutResponse { header: header(1), prev_kv: None }
}

/// A server whose answer to put number `n` (from 0) is up to the test.
fn put_server<F, Fut>(handler: F) -> FakeServer
where
    F: Fn(u64, PutRequest, Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let puts = Arc::new(AtomicU64::new(0));
    FakeServer::start(move |mut call: Call| {
        let (handler, puts) = (handler.clone(), puts.clone());
        async move {
            if call.path != "/etcdserverpb.KV/Put" {
                return answer_status(call);
            }
            let request: PutRequest = call.incoming.message().await.expect("a put");
            let number = puts.fetch_add(1, Ordering::Relaxed);
            handler(number, request, call).await;
        }
    })
}

#[test]
fn every_put_is_sent_once_with_its_own_key() {
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = keys.clone();
    let server = put_server(move |_, request, call| {
        let seen = seen.clone();
        async move {
            assert_eq!((request.key.len(), request.value.len()), (8, 100));
            seen.lock().expect("not poisoned").push(request.key);
            call.answer(&put_answer());
        }
    });
    let words = "put --total 5000 --conns 4 --clients 50 --threads 2 --val-size 100";
    let (outcome, report) = bench(&server, words);
    outcome.expect("no errors");
    let keys = keys.lock().expect("not poisoned");
    assert_eq!(keys.len(), 5000);
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), 5000);
    assert_eq!((&report["succeeded"], &report["failed"]), (&5000.into(), &0.into()));
    let by_second = report["succeeded_by_second"].as_array().expect("a list");
    assert_eq!(by_second.iter().filter_map(Value::as_u64).sum::<u64>(), 5000);
    assert_eq!(report["members"][0]["version"], "3.6.0");
}

#[test]
fn errors_are_counted_by_text_and_fail_the_run() {
    let server = put_server(|number, _, call| async move {
        match number % 10 {
            3 => call.refuse(8, "etcdserver: mvcc: database space exceeded"),
            7 => call.answer(&PutResponse::default()),
            _ => call.answer(&put_answer()),
        }
    });
    let (outcome, report) = bench(&server, "put --total 100 --clients 5");
    assert_eq!(outcome.expect_err("errors").to_string(), "20 of 100 operations failed");
    assert_eq!(report["errors"]["etcdserver: mvcc: database space exceeded (code 8)"], 10);
    assert_eq!(report["errors"]["protocol: put answered without a header"], 10);
    let (outcome, report) = bench(&server, "put --total 100 --clients 5 --allow-errors");
    outcome.expect("errors are allowed");
    assert_eq!(report["failed"], 20);
}

#[test]
fn broken_streams_are_errors_and_the_run_goes_on() {
    let server = put_server(|number, _, call| async move {
        match number {
            5 => call.open().reset(),
            _ => call.answer(&put_answer()),
        }
    });
    let (outcome, report) = bench(&server, "put --total 50 --clients 2 --conns 2");
    outcome.expect_err("one error");
    assert_eq!((&report["succeeded"], &report["failed"]), (&49.into(), &1.into()));
}

#[test]
fn open_loop_counts_the_waiting_that_a_pause_causes() {
    let pause = Duration::from_millis(300);
    let until = Arc::new(Mutex::new(None));
    let server = put_server(move |number, _, call| {
        let until = until.clone();
        async move {
            // From put 200 on nothing is answered for a while: with 2 clients only 2 puts are sent into that pause.
            let end = {
                let mut until = until.lock().expect("not poisoned");
                if number == 200 {
                    *until = Some(tokio::time::Instant::now() + pause);
                }
                *until
            };
            if let Some(end) = end {
                tokio::time::sleep_until(end).await;
            }
            call.answer(&put_answer());
        }
    });
    let (outcome, report) = bench(&server, "put --total 1000 --rate 1000 --clients 2");
    outcome.expect("no errors");
    // 300 of 1000 puts were due during the pause and waited 150 ms on average; a closed loop would have seen 2.
    let p90 = report["latency_micros"]["p90"].as_f64().expect("a number");
    assert!(p90 > 100_000.0, "p90 of {p90} us hides the pause");
    let p50 = report["latency_micros"]["p50"].as_f64().expect("a number");
    assert!(p50 < 100_000.0, "p50 of {p50} us: the run never caught up");
}

#[test]
fn open_loop_ends_with_its_duration() {
    let server = put_server(|_, _, call| async move { call.answer(&put_answer()) });
    let (outcome, report) = bench(&server, "put --total 0 --duration 0.5 --rate 500 --clients 3 --stall-timeout 5");
    outcome.expect("no errors");
    let (took, done) = (report["elapsed_seconds"].as_f64(), report["succeeded"].as_u64());
    assert!(took < Some(2.0), "{took:?} s instead of half a second");
    assert!((200..=251).contains(&done.expect("a number")), "{done:?} of 250 operations");
}

#[test]
fn a_server_that_stops_answering_ends_the_run() {
    let server = put_server(|number, _, call| async move {
        if number >= 20 {
            std::future::pending::<()>().await;
        }
        call.answer(&put_answer());
    });
    let (outcome, report) = bench(&server, "put --total 1000 --clients 2 --stall-timeout 0.3");
    outcome.expect_err("given up");
    assert_eq!(report["succeeded"], 20);
    assert_eq!(report["errors"]["given up: nothing was answered for 300ms"], 1);
}

/// Operations that fail because nobody is there are no answers, however many there are.
#[test]
fn a_server_that_only_breaks_streams_ends_the_run() {
    let server = put_server(|number, _, call| async move {
        match number {
            ..20 => call.answer(&put_answer()),
            _ => call.open().reset(),
        }
    });
    let (outcome, report) = bench(&server, "put --total 100000000 --clients 2 --stall-timeout 0.3");
    outcome.expect_err("given up");
    assert_eq!(report["succeeded"], 20);
    assert_eq!(report["errors"]["given up: nothing was answered for 300ms"], 1);
}

#[test]
fn ranges_read_the_keys_that_puts_wrote() {
    let keys = Arc::new(Mutex::new(HashSet::new()));
    let server = FakeServer::start(move |mut call: Call| {
        let keys = keys.clone();
        async move {
            match call.path.as_str() {
                "/etcdserverpb.KV/Put" => {
                    let put: PutRequest = call.incoming.message().await.expect("a put");
                    keys.lock().expect("not poisoned").insert(put.key);
                    call.answer(&put_answer());
                }
                "/etcdserverpb.KV/Range" => {
                    let range: RangeRequest = call.incoming.message().await.expect("a range");
                    assert!(range.serializable);
                    let count = i64::from(keys.lock().expect("not poisoned").contains(&range.key));
                    call.answer(&RangeResponse { header: header(1), count, ..Default::default() });
                }
                _ => answer_status(call),
            }
        }
    });
    bench(&server, "put --total 300 --seed 9").0.expect("no errors");
    let words = "range --total 1000 --key-space-size 300 --consistency s --must-exist --seed";
    let (outcome, report) = bench(&server, &format!("{words} 9"));
    outcome.expect("all keys exist");
    assert_eq!(report["answer_keys"], 1000);
    let (outcome, report) = bench(&server, &format!("{words} 10"));
    outcome.expect_err("other keys do not");
    assert_eq!(report["errors"]["protocol: key does not exist"], 1000);
}

/// A server that sends put number `n` as event `copies(n)` times, and its streams' watches only those under their prefix.
fn watch_server(copies: fn(u64) -> usize) -> FakeServer {
    let streams = Arc::new(Mutex::new(Vec::<mpsc::UnboundedSender<_>>::new()));
    let puts = Arc::new(AtomicU64::new(0));
    FakeServer::start(move |mut call: Call| {
        let (streams, puts) = (streams.clone(), puts.clone());
        async move {
            match call.path.as_str() {
                "/etcdserverpb.KV/Put" => {
                    let put: PutRequest = call.incoming.message().await.expect("a put");
                    let number = puts.fetch_add(1, Ordering::Relaxed);
                    for stream in &*streams.lock().expect("not poisoned") {
                        // The stream may be gone, as at the end of a run.
                        let _ = stream.send((number, put.clone()));
                    }
                    call.answer(&put_answer());
                }
                "/etcdserverpb.Watch/Watch" => {
                    let (sender, receiver) = mpsc::unbounded_channel();
                    streams.lock().expect("not poisoned").push(sender);
                    serve_watches(call.open(), receiver, copies).await;
                }
                _ => answer_status(call),
            }
        }
    })
}

async fn serve_watches(
    mut stream: Outgoing,
    mut puts: mpsc::UnboundedReceiver<(u64, PutRequest)>,
    copies: fn(u64) -> usize,
) {
    let mut prefixes = Vec::new();
    loop {
        tokio::select! {
            request = stream.incoming.message::<WatchRequest>() => {
                let Some(request) = request else { return };
                let Some(RequestUnion::CreateRequest(create)) = request.request_union else { panic!("a create") };
                let watch_id = prefixes.len() as i64;
                prefixes.push(create.key);
                stream.send(&WatchResponse { watch_id, created: true, header: header(1), ..Default::default() });
            }
            Some((number, put)) = puts.recv() => {
                let mod_revision = number as i64 + 2;
                let kv = KeyValue { key: put.key.clone(), value: put.value, mod_revision, ..Default::default() };
                let answer = WatchResponse {
                    events: vec![Event { kv: Some(kv), ..Default::default() }],
                    header: header(1),
                    ..Default::default()
                };
                for (watch_id, _) in prefixes.iter().enumerate().filter(|(_, prefix)| put.key.starts_with(prefix)) {
                    let answer = WatchResponse { watch_id: watch_id as i64, ..answer.clone() };
                    (0..copies(number)).for_each(|_| stream.send(&answer));
                }
            }
        }
    }
}

const WATCH: &str = "watch --total 200 --clients 4 --watchers 12 --streams 3 --prefixes 4 --settle-timeout 0.3";

#[test]
fn every_watcher_gets_each_event_once() {
    let (outcome, report) = bench(&watch_server(|_| 1), WATCH);
    outcome.expect("no errors");
    // 12 watchers of 4 prefixes: each put is seen by 3 of them.
    let watch = &report["watch"];
    assert_eq!((&watch["events"], &watch["events_expected"]), (&600.into(), &600.into()));
    assert!(watch["latency_micros"]["p50"].as_f64() > Some(0.0));
}

#[test]
fn a_lost_event_is_noticed_by_every_watcher() {
    let (outcome, report) = bench(&watch_server(|number| usize::from(number != 77)), WATCH);
    outcome.expect_err("an event is missing");
    assert_eq!(report["errors"]["events missing"], 3);
    assert_eq!(report["watch"]["events"], 597);
}

#[test]
fn a_repeated_event_is_noticed_by_every_watcher() {
    let (outcome, report) = bench(&watch_server(|number| if number == 77 { 2 } else { 1 }), WATCH);
    outcome.expect_err("an event came twice");
    assert_eq!(report["errors"]["events repeated or out of order"], 3);
    assert_eq!(report["watch"]["events_missing"], 0);
}

#[test]
fn no_server_is_an_error_that_names_it() {
    let error = run_words(["put", "--endpoints", "127.0.0.1:1"]).expect_err("nobody listens there");
    assert_eq!(error.to_string(), "cannot connect to 127.0.0.1:1");
    for bad in ["put --rate -1", "put --total 0", "put --threads 2", "put --endpoints nowhere"] {
        assert!(run_words(bad.split_whitespace()).is_err(), "{bad} was accepted");
    }
}
