//! What operators do to a running member, with etcd's own tools: snapshots that etcd goes on from, and a member that is full
//! and is emptied again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use daymark_api::etcdserverpb::{
    self as pb, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
};
use daymark_api::mvccpb::KeyValue;
use daymark_tests::{
    ctl::{Answer, Etcdctl},
    etcd,
    process::{Program, Server, http_get},
    wire::runtime,
};
use tonic::transport::Channel;

type Kv = KvClient<Channel>;

async fn channel(server: &Server) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.endpoint())).expect("an address");
    endpoint.connect().await.expect("the server listens")
}

async fn put(kv: &mut Kv, key: String, value: Vec<u8>, lease: i64) -> i64 {
    let put = pb::PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() };
    kv.put(put).await.expect("put").into_inner().header.expect("a header").revision
}

/// Everything at a revision, or how the question is refused.
async fn everything(kv: &mut Kv, revision: i64) -> Result<Vec<KeyValue>, String> {
    let range = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
    kv.range(range).await.map(|answer| answer.into_inner().kvs).map_err(|status| status.message().to_owned())
}

fn run(ctl: &Etcdctl, server: &Server, command: &str) -> Answer {
    let args: Vec<_> = command.split(' ').map(str::to_owned).collect();
    let answer = ctl.run(&server.endpoint(), &args, "");
    assert_eq!(answer.code, Some(0), "{command}: {answer:?}");
    answer
}

fn tool(binary: &Path, args: &[&str]) -> String {
    let output = Command::new(binary).args(args).output().expect("the tool runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An etcd 3.7.1 that goes on from a snapshot, and the revision that it should be at.
fn restored(oracle: &Program, snapshot: &Path, data_dir: &Path) -> (Server, i64) {
    let etcdutl = etcd::tool("etcdutl");
    let file = snapshot.to_str().expect("UTF-8");
    // Also checks the whole tree of pages.
    let status: serde_json::Value =
        serde_json::from_str(&tool(&etcdutl, &["snapshot", "status", file, "-w", "json"])).expect("JSON");
    assert_eq!(status["version"], "3.7.0");
    let mut server = Server::prepare(oracle, data_dir, &[]);
    let peer = format!("http://{}", server.peer_endpoint());
    let cluster = format!("default={peer}");
    let data_dir = data_dir.to_str().expect("UTF-8");
    let restore = ["snapshot", "restore", file, "--data-dir", data_dir, "--name", "default"];
    let member = ["--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peer];
    tool(&etcdutl, &[&restore[..], &member].concat());
    server.restart();
    (server, status["revision"].as_i64().expect("a revision"))
}

/// Puts, updates, deletes, several changes of a key in one revision, values over pages, leases, a compaction.
async fn fill(server: &Server) -> i64 {
    let channel = channel(server).await;
    let (mut kv, mut lease) = (Kv::new(channel.clone()), LeaseClient::new(channel));
    for id in [7, -1, i64::MAX] {
        lease.lease_grant(pb::LeaseGrantRequest { id, ttl: 10_000 + (id & 7) }).await.expect("granted");
    }
    for n in 0..300_usize {
        let lease = [0, 7, -1][n % 3];
        put(&mut kv, format!("key/{:03}", n % 120), vec![n as u8; n * n % 9000], lease).await;
    }
    put(&mut kv, "large".into(), vec![1; 1_200_000], 0).await;
    let delete = pb::DeleteRangeRequest { key: "key/050".into(), range_end: "key/060".into(), prev_kv: false };
    kv.delete_range(delete.clone()).await.expect("deleted");
    let compact = put(&mut kv, "at the compact revision".into(), b"1".to_vec(), 0).await;
    kv.delete_range(pb::DeleteRangeRequest { key: "key/001".into(), ..Default::default() }).await.expect("deleted");
    kv.compact(pb::CompactionRequest { revision: compact + 1, physical: true }).await.expect("compacted");
    for n in 0..50_usize {
        put(&mut kv, format!("key/{n:03}"), vec![n as u8; 100], 0).await;
    }
    kv.delete_range(delete).await.expect("nothing is left there");
    compact + 1
}

#[test]
fn etcd_goes_on_from_a_snapshot_with_the_same_keys_history_and_leases() {
    let test = "etcd_goes_on_from_a_snapshot_with_the_same_keys_history_and_leases";
    let Some(oracle) = etcd::oracle_or_skip(test) else { return };
    let ours = Server::start(&Program::daymark(), &[]);
    let dir = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let compact = fill(&ours).await;
        for ctl in etcd::etcdctls(test) {
            let file = dir.path().join(ctl.version);
            run(&ctl, &ours, &format!("snapshot save {}", file.display()));
            let length = file.metadata().expect("a file").len();
            assert_eq!(length % 512, 32, "{length}");
        }
        let (theirs, revision) = restored(&oracle, &dir.path().join("3.7.1"), &dir.path().join("restored"));
        let (a, b) = (channel(&ours).await, channel(&theirs).await);
        let (mut our_kv, mut their_kv) = (Kv::new(a.clone()), Kv::new(b.clone()));
        for at in [0, compact - 1].into_iter().chain(compact..=revision + 1) {
            let (left, right) = (everything(&mut our_kv, at).await, everything(&mut their_kv, at).await);
            assert!(left == right, "at {at}");
        }
        assert!(everything(&mut our_kv, 0).await.expect("served").len() > 100);
        let leases = async |channel: Channel| {
            let mut client = LeaseClient::new(channel);
            let list = client.lease_leases(pb::LeaseLeasesRequest {}).await.expect("listed").into_inner();
            let mut leases = BTreeMap::new();
            for pb::LeaseStatus { id } in list.leases {
                let ask = pb::LeaseTimeToLiveRequest { id, keys: true };
                let mut lease = client.lease_time_to_live(ask).await.expect("known").into_inner();
                // etcd has no order of them.
                lease.keys.sort_unstable();
                leases.insert(id, (lease.granted_ttl, lease.keys));
            }
            leases
        };
        let (ours_found, theirs_found) = (leases(a).await, leases(b).await);
        assert_eq!(ours_found.len(), 3);
        assert!(ours_found == theirs_found);
        assert_eq!(put(&mut their_kv, "after".into(), b"1".to_vec(), 7).await, revision + 1, "it goes on");
    });
}

/// The snapshot is of one moment, however much is written and compacted while it is made.
#[test]
fn a_snapshot_taken_under_load_holds_exactly_what_was_acknowledged_up_to_its_revision() {
    let test = "a_snapshot_taken_under_load_holds_exactly_what_was_acknowledged_up_to_its_revision";
    let Some(oracle) = etcd::oracle_or_skip(test) else { return };
    let Some(ctl) = etcd::etcdctls(test).into_iter().find(|ctl| ctl.version == "3.7.1") else { return };
    let ours = Arc::new(Server::start(&Program::daymark(), &[]));
    let stop = Arc::new(AtomicBool::new(false));
    let (server, stopping) = (ours.clone(), stop.clone());
    // Acknowledged puts by revision; one writer, so that the history is known.
    let writer = thread::spawn(move || {
        runtime().block_on(async {
            let mut kv = Kv::new(channel(&server).await);
            let mut written = Vec::new();
            while !stopping.load(Ordering::SeqCst) {
                let n = written.len();
                let key = format!("key/{:04}", n * 7 % 2000);
                let revision = put(&mut kv, key.clone(), vec![n as u8; 2000], 0).await;
                written.push((revision, key, n as u8));
                if n % 500 == 499 {
                    kv.compact(pb::CompactionRequest { revision, physical: false }).await.expect("compacted");
                }
            }
            written
        })
    });
    thread::sleep(Duration::from_millis(1500));
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("snapshot");
    run(&ctl, &ours, &format!("snapshot save {}", file.display()));
    stop.store(true, Ordering::SeqCst);
    let written = writer.join().expect("the writer ends well");
    let (theirs, revision) = restored(&oracle, &file, &dir.path().join("restored"));
    let mut expected = BTreeMap::new();
    for (at, key, byte) in written.iter().filter(|(at, _, _)| *at <= revision) {
        expected.insert(key.clone(), (*at, vec![*byte; 2000]));
    }
    let newest = written.last().expect("some").0;
    println!("{test}: {} keys at revision {revision} of {newest}", expected.len());
    let found = runtime().block_on(async { everything(&mut Kv::new(channel(&theirs).await), 0).await });
    let pair = |kv: KeyValue| (String::from_utf8_lossy(&kv.key).into_owned(), (kv.mod_revision, kv.value.to_vec()));
    let found: BTreeMap<_, _> = found.expect("served").into_iter().map(pair).collect();
    assert!(found == expected);
    assert_eq!(ours.data_dir().read_dir().expect("listed").filter(is_temporary).count(), 0);
}

#[allow(clippy::ptr_arg, reason = "a filter gets references to what is iterated")]
fn is_temporary(entry: &std::io::Result<std::fs::DirEntry>) -> bool {
    entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().ends_with(".tmp"))
}

/// etcd's own advice for a full member: compact, defragment, disarm.
#[test]
fn a_full_member_is_emptied_as_operators_are_used_to() {
    let test = "a_full_member_is_emptied_as_operators_are_used_to";
    let Some(ctl) = etcd::etcdctls(test).into_iter().next() else { return };
    let quota: i64 = 4 << 20;
    let server = Server::start(&Program::daymark(), &[&format!("--quota-backend-bytes={quota}")]);
    let port = server.endpoint().rsplit_once(':').expect("host and port").1.parse().expect("a port");
    let fill = async |kv: &mut Kv, key: &str| {
        // Not to be compressed away.
        let value =
            |n: u64| (0..40_000_u64).map(move |i| ((i ^ n << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8);
        for n in 0..10_000 {
            let put = pb::PutRequest { key: key.to_owned().into(), value: value(n).collect(), ..Default::default() };
            if let Err(status) = kv.put(put).await {
                return (n, status.message().to_owned());
            }
        }
        panic!("it is never full");
    };
    runtime().block_on(async {
        let channel = channel(&server).await;
        let (mut kv, mut maintenance) = (Kv::new(channel.clone()), MaintenanceClient::new(channel));
        for round in 0..3 {
            let (count, message) = fill(&mut kv, "key").await;
            println!("{test}: round {round}: {count} puts of 40 kB into a quota of {quota}");
            assert_eq!(message, "etcdserver: mvcc: database space exceeded");
            assert!(count > 20, "{count}");
            assert!(run(&ctl, &server, "alarm list").stdout.contains("alarm:NOSPACE"));
            let (status, body) = http_get(port, "/health").expect("health");
            assert_eq!((status, body.trim_end()), (503, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}"));
            let (_, metrics) = http_get(port, "/metrics").expect("metrics");
            assert!(metrics.contains("etcd_debugging_server_alarms{alarm_type=\"NOSPACE\""), "{metrics}");
            let all = pb::DeleteRangeRequest { key: "key".into(), ..Default::default() };
            let header = kv.delete_range(all).await.expect("deletes go on").into_inner().header.expect("a header");
            run(&ctl, &server, &format!("compaction {}", header.revision));
            run(&ctl, &server, "defrag");
            let status = maintenance.status(pb::StatusRequest {}).await.expect("status").into_inner();
            assert!(status.db_size < quota / 4, "{} bytes are left", status.db_size);
            assert!(status.db_size_in_use <= status.db_size);
            assert_eq!((status.db_size_quota, status.errors.len()), (quota, 1));
            run(&ctl, &server, "alarm disarm");
            assert_eq!(http_get(port, "/health").expect("health").0, 200);
        }
    });
}
