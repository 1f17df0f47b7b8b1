//! Data directories made out of snapshot files: of an etcd 3.7.1, which is how a cluster moves to Daymark, and of Daymark's
//! own. What was asked before is asked again and compared; files that are damaged or not what they should be are refused.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use daymark_api::etcdserverpb::{
    self as pb, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    watch_client::WatchClient,
};
use daymark_api::mvccpb::{Event, KeyValue};
use daymark_tests::{
    etcd,
    process::{Program, Server},
    wire::runtime,
};
use futures_util::StreamExt;
use tonic::transport::Channel;

async fn channel(server: &Server) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.endpoint())).expect("an address");
    endpoint.connect().await.expect("the server listens")
}

fn daymark(args: &[&str]) -> Output {
    Command::new(Program::daymark().binary).arg("snapshot").args(args).output().expect("daymark runs")
}

fn succeeds(args: &[&str]) -> String {
    let output = daymark(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What is said of a refusal, which must be one.
fn fails(args: &[&str]) -> String {
    let output = daymark(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn save(server: &Server, file: &Path) {
    succeeds(&["save", path(file), "--endpoints", &server.endpoint()]);
}

/// A member that goes on from a file.
fn restored(file: &Path, data_dir: &Path, extra: &[&str]) -> Server {
    let mut server = Server::prepare(&Program::daymark(), data_dir, &[]);
    let peer = format!("http://{}", server.peer_endpoint());
    let cluster = format!("default={peer}");
    let place = ["restore", path(file), "--data-dir", path(data_dir), "--initial-cluster", &cluster];
    succeeds(&[&place[..], &["--initial-advertise-peer-urls", &peer], extra].concat());
    server.restart();
    server
}

/// Everything that clients can ask of a store's content.
#[derive(Debug, PartialEq)]
struct Content {
    revision: i64,
    by_revision: Vec<Result<Vec<KeyValue>, String>>,
    events: Vec<Event>,
    leases: Vec<(i64, i64, Vec<Vec<u8>>)>,
    users: Vec<String>,
    alarms: usize,
}

/// Puts, updates, deletes, several changes in one revision, values over pages, leases, users, a compaction.
async fn fill(server: &Server) -> i64 {
    let channel = channel(server).await;
    let (mut kv, mut lease) = (KvClient::new(channel.clone()), LeaseClient::new(channel.clone()));
    for id in [7, 9, i64::MAX] {
        lease.lease_grant(pb::LeaseGrantRequest { id, ttl: 10_000 + (id & 7) }).await.expect("granted");
    }
    let put = |key: String, value: Vec<u8>, lease: i64| pb::PutRequest {
        key: key.into(),
        value: value.into(),
        lease,
        ..Default::default()
    };
    for n in 0..400_usize {
        let lease = [0, 7, 9][n % 3];
        kv.put(put(format!("key/{:03}", n % 150), vec![n as u8; n * n % 9000], lease)).await.expect("put");
    }
    kv.put(put("large".into(), vec![1; 1_200_000], 0)).await.expect("put");
    let delete = pb::DeleteRangeRequest { key: "key/050".into(), range_end: "key/060".into(), prev_kv: false };
    kv.delete_range(delete.clone()).await.expect("deleted");
    let deleted = kv.delete_range(pb::DeleteRangeRequest { key: "key/001".into(), ..Default::default() }).await;
    let compact = deleted.expect("deleted").into_inner().header.expect("a header").revision;
    kv.compact(pb::CompactionRequest { revision: compact, physical: true }).await.expect("compacted");
    for n in 0..60_usize {
        let op = |request| pb::RequestOp { request: Some(request) };
        let success = vec![
            op(pb::request_op::Request::RequestPut(put(format!("key/{n:03}"), vec![n as u8; 100], 0))),
            op(pb::request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: format!("key/{:03}", n + 61).into(),
                ..Default::default()
            })),
            op(pb::request_op::Request::RequestPut(put(format!("other/{n:03}"), Vec::new(), 9))),
        ];
        kv.txn(pb::TxnRequest { success, ..Default::default() }).await.expect("done");
    }
    kv.delete_range(delete).await.expect("deleted");
    let mut auth = pb::auth_client::AuthClient::new(channel);
    let user = pb::AuthUserAddRequest { name: "somebody".into(), password: "secret".into(), ..Default::default() };
    auth.user_add(user).await.expect("added");
    compact
}

async fn content(server: &Server, compact: i64) -> Content {
    let channel = channel(server).await;
    let mut kv = KvClient::new(channel.clone());
    let all =
        |revision| pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
    let revision = kv.range(all(0)).await.expect("read").into_inner().header.expect("a header").revision;
    let mut by_revision = Vec::new();
    for revision in (compact - 1..=revision).step_by(7).chain([compact, compact + 1, revision, revision + 1]) {
        let answer = kv.range(all(revision)).await;
        by_revision.push(answer.map(|answer| answer.into_inner().kvs).map_err(|status| status.message().to_owned()));
    }
    let create = pb::WatchCreateRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        start_revision: compact,
        prev_kv: true,
        ..Default::default()
    };
    let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let requests = futures_util::stream::iter([request]).chain(futures_util::stream::pending());
    let mut stream = WatchClient::new(channel.clone()).watch(requests).await.expect("a stream").into_inner();
    let mut events: Vec<Event> = Vec::new();
    while events.last().and_then(|event| event.kv.as_ref()).is_none_or(|kv| kv.mod_revision < revision) {
        events.extend(stream.message().await.expect("open").expect("more").events);
    }
    let mut lease = LeaseClient::new(channel.clone());
    let ids = lease.lease_leases(pb::LeaseLeasesRequest {}).await.expect("listed").into_inner().leases;
    let mut leases = Vec::new();
    for id in ids.into_iter().map(|lease| lease.id) {
        let request = pb::LeaseTimeToLiveRequest { id, keys: true };
        let told = lease.lease_time_to_live(request).await.expect("known").into_inner();
        let mut keys: Vec<_> = told.keys.iter().map(|key| key.to_vec()).collect();
        keys.sort();
        leases.push((id, told.granted_ttl, keys));
    }
    leases.sort();
    let users = pb::auth_client::AuthClient::new(channel.clone()).user_list(pb::AuthUserListRequest {}).await;
    let users = users.expect("listed").into_inner().users;
    let alarms = MaintenanceClient::new(channel).alarm(pb::AlarmRequest::default()).await.expect("listed");
    Content { revision, by_revision, events, leases, users, alarms: alarms.into_inner().alarms.len() }
}

/// That of the whole keyspace and of a revision in the middle.
async fn hashes(server: &Server, revision: i64) -> (u32, u32) {
    let mut maintenance = MaintenanceClient::new(channel(server).await);
    let mut hash =
        async |revision| maintenance.hash_kv(pb::HashKvRequest { revision }).await.expect("hashed").into_inner().hash;
    (hash(0).await, hash(revision).await)
}

fn same_content(program: &Program) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snapshot");
    let first = Server::start(program, &[]);
    runtime().block_on(async {
        let compact = fill(&first).await;
        save(&first, &file);
        let expected = content(&first, compact).await;
        assert!(expected.events.len() > 170 && expected.by_revision.len() > 10);
        let mut second = restored(&file, &dir.path().join("second"), &[]);
        assert_eq!(content(&second, compact).await, expected);
        // What a restart finds, with what was written meanwhile.
        let mut kv = KvClient::new(channel(&second).await);
        kv.put(pb::PutRequest { key: "more".into(), ..Default::default() }).await.expect("put");
        second.kill();
        second.restart();
        let mut kv = KvClient::new(channel(&second).await);
        let more = kv.range(pb::RangeRequest { key: "more".into(), ..Default::default() }).await.expect("read");
        assert_eq!(more.into_inner().kvs[0].mod_revision, expected.revision + 1);
        // Keys go with their lease, which was restored with them.
        let mut lease = LeaseClient::new(channel(&second).await);
        lease.lease_revoke(pb::LeaseRevokeRequest { id: 9 }).await.expect("revoked");
        let others = pb::RangeRequest { key: "other/".into(), range_end: "other0".into(), ..Default::default() };
        assert!(kv.range(others).await.expect("read").into_inner().kvs.is_empty());
        // And once more through a file of ours.
        let again = dir.path().join("again");
        save(&second, &again);
        let middle = compact + 30;
        let expected = (content(&second, compact).await, hashes(&second, middle).await);
        let third = restored(&again, &dir.path().join("third"), &[]);
        assert_eq!((content(&third, compact).await, hashes(&third, middle).await), expected);
    });
}

#[test]
fn a_snapshot_of_etcd_becomes_a_member_with_the_same_content() {
    let test = "a_snapshot_of_etcd_becomes_a_member_with_the_same_content";
    if let Some(oracle) = etcd::oracle_or_skip(test) {
        same_content(&oracle);
    }
}

#[test]
fn a_snapshot_of_daymark_becomes_a_member_with_the_same_content() {
    same_content(&Program::daymark());
}

#[test]
fn the_status_of_a_file_is_what_etcdutl_says() {
    let Some(oracle) = etcd::oracle_or_skip("the_status_of_a_file_is_what_etcdutl_says") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    for (name, program) in [("etcd", oracle), ("daymark", Program::daymark())] {
        let file = dir.path().join(name);
        let server = Server::start(&program, &[]);
        runtime().block_on(fill(&server));
        save(&server, &file);
        for form in ["simple", "json", "table"] {
            let args = ["snapshot", "status", path(&file), "-w", form];
            let theirs = Command::new(etcd::tool("etcdutl")).args(args).output().expect("etcdutl runs");
            assert_eq!(succeeds(&args[1..]), String::from_utf8_lossy(&theirs.stdout), "{name}, {form}");
        }
    }
}

#[test]
fn a_raised_revision_counts_as_compacted() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snapshot");
    let first = Server::start(&Program::daymark(), &[]);
    runtime().block_on(async {
        let compact = fill(&first).await;
        save(&first, &file);
        let before = content(&first, compact).await;
        let bump = ["--bump-revision", "1000000", "--mark-compacted"];
        let mut second = restored(&file, &dir.path().join("second"), &bump);
        second.kill();
        second.restart();
        let mut kv = KvClient::new(channel(&second).await);
        let all = |revision| pb::RangeRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            revision,
            ..Default::default()
        };
        let now = kv.range(all(0)).await.expect("read").into_inner();
        let raised = before.revision + 1_000_000;
        assert_eq!(now.header.expect("a header").revision, raised);
        let last = before.by_revision[before.by_revision.len() - 2].as_ref().expect("the newest revision");
        assert_eq!(&now.kvs, last);
        let gone = kv.range(all(raised - 1)).await.expect_err("compacted");
        assert_eq!(gone.message(), "etcdserver: mvcc: required revision has been compacted");
        assert_eq!(kv.range(all(raised)).await.expect("read").into_inner().kvs, now.kvs);
        // A watcher from the raised revision on sees what comes next, and nothing else.
        kv.put(pb::PutRequest { key: "next".into(), ..Default::default() }).await.expect("put");
        let seen = content(&second, raised).await.events;
        assert_eq!(seen.iter().map(|event| &event.kv.as_ref().expect("a key").key[..]).collect::<Vec<_>>(), [b"next"]);
        second.kill();
        second.restart();
        assert_eq!(content(&second, raised).await.events, seen);
    });
}

#[test]
fn what_must_not_be_restored_is_refused_with_cause_and_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snapshot");
    let server = Server::start(&Program::daymark(), &[]);
    runtime().block_on(fill(&server));
    save(&server, &file);
    let target = dir.path().join("target");
    let restore = |file: &Path, extra: &[&str]| {
        let said = fails(&[&["restore", path(file), "--data-dir", path(&target)][..], extra].concat());
        assert!(!target.join("member").join("db").exists(), "{said}");
        // A try that got as far as making it leaves a directory, which is not used again by mistake.
        let _ = fs::remove_dir_all(&target);
        said
    };
    let whole = fs::read(&file).expect("a file");
    let other = dir.path().join("other");
    let with = |bytes: &[u8]| fs::write(&other, bytes).expect("written");

    with(&whole[..whole.len() - 32]);
    assert!(restore(&other, &[]).contains("snapshot missing hash but --skip-hash-check=false"));
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    with(&flipped);
    assert!(restore(&other, &[]).contains("expected sha256"));
    with(&whole[..whole.len() / 2 / 4096 * 4096]);
    assert!(restore(&other, &["--skip-hash-check"]).contains("it is cut short"));
    with(b"no snapshot at all");
    assert!(restore(&other, &["--skip-hash-check"]).contains("it is no snapshot of etcd's form"));
    assert!(fails(&["status", path(&other)]).contains("it is no snapshot of etcd's form"));
    assert!(restore(&file, &["--mark-compacted"]).contains("--mark-compacted required if --bump-revision > 0"));
    assert!(restore(&file, &["--bump-revision", "5"]).contains("--mark-compacted required if --bump-revision > 0"));
    assert!(restore(&file, &["--name", "nobody"]).contains("nobody"));
    assert!(restore(&dir.path().join("missing"), &[]).contains("No such file"));

    let used = dir.path().join("used");
    fs::create_dir(&used).expect("made");
    fs::write(used.join("precious"), b"data").expect("written");
    let said = fails(&["restore", path(&file), "--data-dir", path(&used)]);
    assert!(said.contains("not empty or could not be read"), "{said}");
    let said = fails(&["restore", path(&file), "--data-dir", path(&target), "--wal-dir", path(&used)]);
    assert!(said.contains("exists"), "{said}");
    assert_eq!(fs::read_dir(&used).expect("read").count(), 1, "nothing was touched");

    // A restore that was killed before its end leaves what no member starts with.
    fs::create_dir_all(target.join("member").join("db.restoring")).expect("made");
    assert!(fails(&["restore", path(&file), "--data-dir", path(&target)]).contains("not empty"));
}
