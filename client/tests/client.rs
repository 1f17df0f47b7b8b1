//! The client library against a server that misbehaves: what is repeated, what is not, and how a watch goes on.

mod fake_server;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use daymark_api::{
    etcdserverpb::{
        AuthenticateRequest, AuthenticateResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutResponse,
        RangeResponse, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion,
    },
    mvccpb::{Event, KeyValue},
};
use daymark_client::{
    Client, ClientError, Config, KeyRange,
    watch::{Update, WatchOptions},
};
use fake_server::{Call, FakeServer, Outgoing};

const UNAVAILABLE: u32 = 14;

fn client(server: &FakeServer) -> Client {
    let backoff_min = Duration::from_millis(1);
    let config = Config { backoff_min, ..Config::new([server.address()]) };
    Client::new(config).expect("valid configuration")
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn event(key: &'static str, mod_revision: i64) -> Event {
    Event { kv: Some(KeyValue { key: key.into(), mod_revision, ..Default::default() }), ..Default::default() }
}

fn events(revision: i64, events: Vec<Event>) -> WatchResponse {
    WatchResponse { header: header(revision), events, ..Default::default() }
}

fn created(revision: i64) -> WatchResponse {
    WatchResponse { header: header(revision), created: true, ..Default::default() }
}

/// Answers a call with "unavailable" twice and then with `answer`; counts the calls.
async fn third_time_lucky(call: Call, calls: Arc<AtomicU32>, answer: impl prost::Message) {
    match calls.fetch_add(1, Ordering::Relaxed) {
        0 | 1 => call.refuse(UNAVAILABLE, "etcdserver: leader changed"),
        _ => call.answer(&answer),
    }
}

#[tokio::test]
async fn a_read_is_repeated_while_unavailable() {
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    let server = FakeServer::start(move |call| {
        third_time_lucky(call, counter.clone(), RangeResponse { count: 7, ..Default::default() })
    });
    let answer = client(&server).kv().get("k").await.expect("the third attempt succeeds");
    assert_eq!(answer.count, 7);
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_write_is_attempted_once() {
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    let server = FakeServer::start(move |call| third_time_lucky(call, counter.clone(), PutResponse::default()));
    let error = client(&server).kv().put("k", "v").await.expect_err("not repeated");
    assert!(matches!(&error, ClientError::Unavailable(text) if text == "etcdserver: leader changed"), "{error}");
    assert!(error.outcome_unknown());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_call_without_answer_times_out() {
    let server = FakeServer::start(|call| async move {
        std::future::pending::<()>().await;
        drop(call);
    });
    let config = Config { request_timeout: Some(Duration::from_millis(50)), ..Config::new([server.address()]) };
    let error = Client::new(config).expect("valid").kv().put("k", "v").await.expect_err("no answer");
    assert!(matches!(error, ClientError::TimedOut(_)), "{error}");
}

/// Gives out the tokens `1`, `2` and so on, the first after a refusal for being busy, and takes only the newest.
#[tokio::test]
async fn many_calls_with_an_old_token_share_one_login() {
    let (logins, valid) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(1)));
    let counters = (logins.clone(), valid.clone());
    let server = FakeServer::start(move |mut call| {
        let (logins, valid) = counters.clone();
        async move {
            if call.path == "/etcdserverpb.Auth/Authenticate" {
                let login: AuthenticateRequest = call.incoming.message().await.expect("a login");
                assert_eq!((login.name.as_str(), login.password.as_str()), ("alice", "secret"));
                match logins.fetch_add(1, Ordering::Relaxed) {
                    0 => call.refuse(2, "etcdserver: too many requests"),
                    number => call.answer(&AuthenticateResponse { header: header(1), token: number.to_string() }),
                }
            } else if call.token == Some(valid.load(Ordering::Relaxed).to_string()) {
                call.answer(&PutResponse::default());
            } else {
                call.refuse(16, "etcdserver: invalid auth token");
            }
        }
    });
    let config = Config { backoff_min: Duration::from_millis(1), ..Config::new([server.address()]) };
    let kv = Client::new(config.with_user("alice", "secret")).expect("valid configuration").kv();
    let put_many = || futures_util::future::join_all((0..50).map(|_| kv.put("k", "v")));
    for round in 1..=3 {
        valid.store(round, Ordering::Relaxed);
        assert!(put_many().await.iter().all(Result::is_ok), "round {round}");
        assert_eq!(logins.load(Ordering::Relaxed), round + 1, "one login a round, and the refused one");
    }
    // No token helps any more: each call says so after one more attempt, and none goes on for ever.
    valid.store(u32::MAX, Ordering::Relaxed);
    assert!(put_many().await.iter().all(|put| matches!(put, Err(ClientError::Refused { .. }))));
    assert!(logins.load(Ordering::Relaxed) <= 4 + 50);
}

/// Serves watch streams: `script` gets the number of the stream, its create request, and the stream.
fn watch_server<F, Fut>(script: F) -> FakeServer
where
    F: Fn(usize, WatchCreateRequest, Outgoing) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let streams = Arc::new(Mutex::new(0));
    FakeServer::start(move |mut call| {
        let (script, streams) = (script.clone(), streams.clone());
        async move {
            assert_eq!(call.path, "/etcdserverpb.Watch/Watch");
            let request: WatchRequest = call.incoming.message().await.expect("a watch begins with a request");
            let Some(RequestUnion::CreateRequest(create)) = request.request_union else {
                panic!("a watch begins with its creation")
            };
            let number = std::mem::replace(&mut *streams.lock().expect("not poisoned"), usize::MAX);
            *streams.lock().expect("not poisoned") = number + 1;
            script(number, create, call.open()).await;
        }
    })
}

/// Keeps a stream open until the client leaves.
async fn linger(mut stream: Outgoing) {
    while stream.incoming.message::<WatchRequest>().await.is_some() {}
}

#[tokio::test]
async fn a_broken_watch_goes_on_behind_the_last_event() {
    let server = watch_server(|number, create, mut stream| async move {
        match number {
            0 => {
                assert_eq!(create.start_revision, 0);
                stream.send(&created(10));
                stream.send(&events(12, vec![event("a", 11), event("b", 12)]));
                // Half of revision 13: lost with the stream, and to be sent again.
                stream.send(&WatchResponse { fragment: true, ..events(13, vec![event("a", 13)]) });
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.reset();
            }
            1 => stream.reset(),
            _ => {
                assert_eq!(create.start_revision, 13);
                stream.send(&created(20));
                stream.send(&WatchResponse { fragment: true, ..events(20, vec![event("a", 13)]) });
                stream.send(&events(20, vec![event("b", 13)]));
                linger(stream).await;
            }
        }
    });
    let mut watcher = client(&server).watch().start(KeyRange::All, WatchOptions::default()).await.expect("created");
    assert_eq!(watcher.next_revision(), 11);
    let first = watcher.next().await.expect("events");
    assert_eq!(first, Some(Update::Events(vec![event("a", 11), event("b", 12)])));
    let second = watcher.next().await.expect("events after the break");
    assert_eq!(second, Some(Update::Events(vec![event("a", 13), event("b", 13)])), "each once, fragments joined");
    assert_eq!(watcher.next_revision(), 14);
}

#[tokio::test]
async fn only_progress_reports_move_an_idle_watch() {
    let server = watch_server(|number, create, mut stream| async move {
        if number == 0 {
            assert_eq!(create.start_revision, 5);
            stream.send(&created(90));
            // The header of an answer with events may be ahead of the watcher.
            stream.send(&events(90, vec![event("a", 6)]));
            stream.send(&WatchResponse { watch_id: -1, ..events(40, vec![]) });
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.reset();
        } else {
            assert_eq!(create.start_revision, 41);
            stream.send(&created(90));
            stream.send(&events(90, vec![event("a", 50)]));
            linger(stream).await;
        }
    });
    let options = WatchOptions { start_revision: 5, ..Default::default() };
    let mut watcher = client(&server).watch().start(KeyRange::All, options).await.expect("created");
    assert_eq!(watcher.next().await.expect("events"), Some(Update::Events(vec![event("a", 6)])));
    assert_eq!(watcher.next_revision(), 7);
    assert_eq!(watcher.next().await.expect("progress"), Some(Update::Progress(40)));
    assert_eq!(watcher.next().await.expect("events"), Some(Update::Events(vec![event("a", 50)])));
}

#[tokio::test]
async fn compaction_and_refusals_end_a_watch() {
    let server = watch_server(|_, create, mut stream| async move {
        if create.start_revision == 1 {
            stream.send(&created(90));
            stream.send(&WatchResponse { canceled: true, compact_revision: 30, ..Default::default() });
        } else {
            let cancel_reason = "etcdserver: permission denied".to_owned();
            stream.send(&WatchResponse { canceled: true, watch_id: -1, cancel_reason, ..created(90) });
        }
        linger(stream).await;
    });
    let watch = client(&server).watch();
    let options = WatchOptions { start_revision: 1, ..Default::default() };
    let mut behind = watch.start(KeyRange::All, options).await.expect("created first");
    let error = behind.next().await.expect_err("compacted");
    assert!(matches!(error, ClientError::Compacted { compact_revision: 30 }), "{error}");
    let refused = watch.start(KeyRange::All, WatchOptions::default()).await.expect_err("refused");
    assert!(matches!(&refused, ClientError::WatchCanceled(why) if why.ends_with("permission denied")), "{refused}");
}

#[tokio::test]
async fn a_canceled_watch_ends() {
    let server = watch_server(|_, _, mut stream| async move {
        stream.send(&WatchResponse { watch_id: 3, ..created(10) });
        let request: WatchRequest = stream.incoming.message().await.expect("a cancel");
        let Some(RequestUnion::CancelRequest(cancel)) = request.request_union else { panic!("a cancel") };
        stream.send(&WatchResponse { watch_id: cancel.watch_id, canceled: cancel.watch_id == 3, ..events(10, vec![]) });
        linger(stream).await;
    });
    let mut watcher = client(&server).watch().start("k", WatchOptions::default()).await.expect("created");
    watcher.cancel().await;
    assert_eq!(watcher.next().await.expect("a clean end"), None);
}

#[tokio::test]
async fn a_keeper_reports_a_lease_that_is_gone() {
    let server = FakeServer::start(|call: Call| async move {
        let mut stream = call.open();
        let mut renewals = 0;
        while let Some(request) = stream.incoming.message::<LeaseKeepAliveRequest>().await {
            renewals += 1;
            // The first stream only proves that the lease is there; the keeper's own loses it at its second renewal.
            let ttl = if renewals < 2 { 1 } else { 0 };
            stream.send(&LeaseKeepAliveResponse { id: request.id, ttl, ..Default::default() });
        }
    });
    let mut keeper = client(&server).lease().keep_alive(9).await.expect("the lease is there");
    let lost = keeper.lost().await;
    assert!(matches!(lost, ClientError::LeaseNotFound(9)), "{lost}");
}
