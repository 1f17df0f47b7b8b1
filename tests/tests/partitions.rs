//! Members that are cut off or stop listening: streams that want a leader end, what may be old is still answered, and what
//! waits for a member that does not answer takes no more memory than its bound.

use std::time::{Duration, Instant};

use daymark_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
    kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient, watch_request::RequestUnion,
};
use daymark_client::{Client, Config};
use daymark_tests::{cluster::Cluster, links::Cut, process::Program, process::resident_bytes};
use futures_util::{StreamExt, stream};
use tokio::time::timeout;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// etcd gives a leader up after three election time-outs without it; ours takes one and a half and its next look.
const NOTICED_MAX: Duration = Duration::from_secs(10);

fn wanting<T>(message: T, requires_leader: bool) -> Request<T> {
    let mut request = Request::new(message);
    if requires_leader {
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    }
    request
}

async fn connect(endpoint: &str) -> Channel {
    Endpoint::from_shared(format!("http://{endpoint}")).expect("an address").connect().await.expect("connect")
}

/// A watch of everything on one member, created.
async fn watch(endpoint: &str, requires_leader: bool) -> Streaming<WatchResponse> {
    let mut client = WatchClient::new(connect(endpoint).await);
    let create = WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    // The caller's half stays open.
    let requests = stream::iter([create]).chain(stream::pending());
    let answer = client.watch(wanting(requests, requires_leader)).await.expect("a stream");
    let mut events = answer.into_inner();
    let created = events.message().await.expect("an answer").expect("an answer");
    assert!(created.created, "{created:?}");
    events
}

/// What a stream ends with; it must not bring anything before.
async fn end_of<T: std::fmt::Debug>(stream: &mut Streaming<T>) -> Status {
    let ended = timeout(NOTICED_MAX, stream.message()).await.expect("it ends in time");
    ended.expect_err("it ends with an error")
}

async fn put(endpoint: &str, key: &'static str) -> bool {
    let config = Config { request_timeout: Some(PATIENCE), ..Config::new([endpoint]) };
    Client::new(config).expect("a valid endpoint").kv().put(key, "v").await.is_ok()
}

async fn expect_streams_end(cluster: &mut Cluster, place: usize, how: Cut) {
    let endpoint = cluster.endpoint(place);
    let mut wants = watch(&endpoint, true).await;
    let mut does_not = watch(&endpoint, false).await;
    let mut leases = LeaseClient::new(connect(&endpoint).await);
    let lease = leases.lease_grant(LeaseGrantRequest { ttl: 600, id: 0 }).await.expect("grant").into_inner().id;
    let requests = stream::iter([LeaseKeepAliveRequest { id: lease }]).chain(stream::pending());
    let mut kept = leases.lease_keep_alive(wanting(requests, true)).await.expect("a stream").into_inner();
    kept.message().await.expect("an answer").expect("renewed");

    cluster.isolate(place, how);
    let begun = Instant::now();
    let ends = [end_of(&mut wants).await, end_of(&mut kept).await];
    println!("{how:?}: streams ended {:?} after the cut", begun.elapsed());
    for end in ends {
        assert_eq!((end.code(), end.message()), (Code::Unavailable, "etcdserver: no leader"), "{end:?}");
    }
    let mut kv = KvClient::new(connect(&endpoint).await);
    let range = RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
    let refused = kv.range(wanting(range.clone(), true)).await.expect_err("it has no leader");
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));
    kv.range(wanting(range, false)).await.expect("what may be old is answered");
    let other = (place + 1) % cluster.size();
    assert!(put(&cluster.endpoint(other), "meanwhile").await, "the others go on");

    cluster.links.heal_all();
    cluster.wait_healthy(place, PATIENCE).await;
    // Who wants no leader has waited, and misses nothing.
    let answer = timeout(PATIENCE, does_not.message()).await.expect("in time").expect("it stands").expect("events");
    let keys: Vec<_> = answer.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| &kv.key[..]).collect();
    assert_eq!(keys, [b"meanwhile"]);
}

#[tokio::test]
async fn streams_that_want_a_leader_end_on_a_member_that_is_cut_off() {
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]).await;
    for how in [Cut::Silent, Cut::Loud] {
        let leader = cluster.wait_leader().await;
        expect_streams_end(&mut cluster, (leader + 1) % 3, how).await;
        let leader = cluster.wait_leader().await;
        expect_streams_end(&mut cluster, leader, how).await;
    }
}

const VALUE_BYTES: usize = 512 << 10;
const VALUES: usize = 400;
/// What the leader may hold beside what it holds with everybody there: appends in flight, and the same once more.
const GROWTH_BYTES_MAX: u64 = 96 << 20;

/// Writes over the same few keys; the most memory that process `pid` holds meanwhile.
async fn fill(endpoint: &str, pid: u32) -> u64 {
    let config = Config { request_timeout: Some(PATIENCE), ..Config::new([endpoint]) };
    let kv = Client::new(config).expect("a valid endpoint").kv();
    let mut most = 0;
    for number in 0..VALUES {
        kv.put(format!("bulk/{}", number % 8), vec![number as u8; VALUE_BYTES]).await.expect("put");
        most = most.max(resident_bytes(pid));
    }
    most
}

/// 200 MB that a stopped member does not take wait on the leader's disk, not in its memory; then they are sent while
/// heartbeats pass, so that nobody is elected.
#[tokio::test]
async fn what_waits_for_a_member_that_does_not_answer_is_bounded() {
    let budget = "--daymark-memory-budget-bytes=134217728";
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[budget]).await;
    let leader = cluster.wait_leader().await;
    let away = (leader + 1) % 3;
    let (endpoint, pid) = (cluster.endpoint(leader), cluster.pid(leader).expect("it runs"));
    // Twice, so that caches are as full as they get.
    fill(&endpoint, pid).await;
    let before = fill(&endpoint, pid).await;
    cluster.pause(away);
    let during = fill(&endpoint, pid).await;
    println!("{} MiB with everybody there, {} MiB while one is stopped", before >> 20, during >> 20);
    assert!(during <= before + GROWTH_BYTES_MAX, "{before} bytes became {during}");
    let term = cluster.status(leader).await.expect("it answers").term;
    cluster.resume(away);
    let begun = Instant::now();
    cluster.wait_healthy(away, PATIENCE).await;
    println!("caught up after {:?}", begun.elapsed());
    let status = cluster.status(leader).await.expect("it answers");
    assert_eq!((status.leader, status.term), (status.id, term), "nobody was elected meanwhile");
}
