//! Whole states on their way between real processes: an empty member gets a snapshot under load, also when it is killed
//! again and again meanwhile; a cluster of three is restored from a file; and a member that holds something else than the
//! others is found.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use daymark_client::{Client, Config};
use daymark_tests::{
    changing::{Cluster, eventually},
    ctl::Etcdctl,
    etcd,
    process::{Program, Server},
    wire::runtime,
};

fn etcdctl(test: &str) -> Option<Etcdctl> {
    etcd::etcdctls(test).pop()
}

fn daymark(args: &[&str]) {
    let output = Command::new(Program::daymark().binary).arg("snapshot").args(args).output().expect("daymark runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ok(cluster: &Cluster, ctl: &Etcdctl, members: &[usize], line: &str) -> String {
    let answer = cluster.ctl(ctl, members, line);
    assert_eq!(answer.code, Some(0), "{line}: {}", answer.stderr);
    answer.stdout
}

/// The hashes of the keyspace, which must be the same on all these members.
fn same_hashes(cluster: &Cluster, ctl: &Etcdctl, members: &[usize]) -> bool {
    let hashes: Vec<_> = members.iter().map(|member| cluster.ctl(ctl, &[*member], "endpoint hashkv")).collect();
    // Of the lines "endpoint, hash, revision" everything but the first.
    let tails: Vec<_> = hashes.iter().map(|answer| answer.stdout.split_once(", ").map(|(_, tail)| tail)).collect();
    tails.iter().all(|tail| tail.is_some() && *tail == tails[0])
}

#[test]
fn an_empty_member_gets_a_snapshot_under_load_however_often_it_is_killed() {
    let Some(ctl) = etcdctl("an_empty_member_gets_a_snapshot_under_load") else { return };
    let mut cluster = Cluster::start(&Program::daymark(), 3, &[]);
    let present = [0, 1, 2];
    let endpoint = format!("http://{}", cluster.endpoint(0));
    runtime().block_on(async {
        let kv = Client::new(Config::new([&endpoint])).expect("a client").kv();
        for number in 0..6000_u32 {
            kv.put(format!("key {number:05}"), vec![number as u8; 2000]).await.expect("put");
        }
    });
    // Flushed, so that the log is released, and with it what a new member would need of it.
    ok(&cluster, &ctl, &present, "defrag");
    thread::sleep(Duration::from_secs(2));
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let load = thread::spawn(move || {
        runtime().block_on(async {
            let (kv, mut written) = (Client::new(Config::new([&endpoint])).expect("a client").kv(), 0_u32);
            while !stopping.load(Ordering::Relaxed) {
                kv.put(format!("load {:03}", written % 500), written.to_string()).await.expect("put");
                written += 1;
            }
            written
        })
    });
    thread::sleep(Duration::from_secs(1));
    let joiner = cluster.prepare_joiner(&present);
    let (name, url) = (cluster.name(joiner).to_owned(), cluster.peer_url(joiner));
    ok(&cluster, &ctl, &present, &format!("member add {name} --peer-urls={url}"));
    for pause in [40, 90, 150, 230, 320] {
        cluster.spawn(joiner);
        thread::sleep(Duration::from_millis(pause));
        cluster.kill(joiner);
    }
    cluster.restart(joiner);
    thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let written = load.join().expect("every write is taken");
    let all = [0, 1, 2, joiner];
    eventually("all have the same", || same_hashes(&cluster, &ctl, &all));
    let state = cluster.data_dir(joiner).join("member");
    let names: Vec<_> =
        std::fs::read_dir(state).expect("a directory").flatten().map(|entry| entry.file_name()).collect();
    // A later generation is there: the log does not always say so, as the kill may come between.
    assert!(names.iter().any(|name| name.to_string_lossy().starts_with("db-")), "no snapshot was installed: {names:?}");
    assert!(names.iter().all(|name| name != "snapshot-in" && name != "db"), "{names:?}");
    let newest = ok(
        &cluster,
        &ctl,
        &[joiner],
        "get load --prefix --print-value-only --sort-by=MODIFY --order=DESCEND --limit=1",
    );
    assert_eq!(newest.trim(), (written - 1).to_string());
    // It serves watches over the history that came with the snapshot.
    let first = ok(&cluster, &ctl, &[joiner], "get key --prefix --keys-only --limit=1 --rev=2");
    assert_eq!(first.trim(), "key 00000");
}

/// Data directories of three members out of one file each.
fn restore_three(cluster: &Cluster, files: [&Path; 3]) {
    let everybody = cluster.initial_cluster(&[0, 1, 2]);
    for (number, file) in files.iter().enumerate() {
        let (data_dir, url) = (cluster.data_dir(number), cluster.peer_url(number));
        let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
        let (file, data_dir) = (path(file), path(&data_dir));
        let args = ["restore", &file, "--data-dir", &data_dir, "--name", cluster.name(number)];
        let member = ["--initial-cluster", &everybody, "--initial-advertise-peer-urls", &url];
        daymark(&[&args[..], &member, &["--initial-cluster-token", "restored"]].concat());
    }
}

fn saved(ctl: &Etcdctl, file: &Path, values: &[&str]) {
    let server = Server::start(&Program::daymark(), &[]);
    for (number, value) in values.iter().enumerate() {
        let put = ["put".to_owned(), format!("k{number}"), value.to_string()];
        assert_eq!(ctl.run(&server.endpoint(), &put, "").code, Some(0));
    }
    daymark(&["save", file.to_str().expect("UTF-8"), "--endpoints", &server.endpoint()]);
}

#[test]
fn three_members_are_restored_from_one_file() {
    let Some(ctl) = etcdctl("three_members_are_restored_from_one_file") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    saved(&ctl, &file, &["a", "b", "c"]);
    let mut cluster = Cluster::prepare(&Program::daymark(), 3, &[]);
    cluster.set_token("restored");
    restore_three(&cluster, [&file; 3]);
    cluster.start_all();
    for member in 0..3 {
        assert_eq!(ok(&cluster, &ctl, &[member], "get k --prefix --print-value-only"), "a\nb\nc\n");
        ok(&cluster, &ctl, &[member], &format!("put new{member} x"));
    }
    assert!(ok(&cluster, &ctl, &[0], "member list").lines().count() == 3);
    eventually("all have the same", || same_hashes(&cluster, &ctl, &[0, 1, 2]));
}

/// A member whose data is another's, though its log says the same: what nothing but a comparison can find.
#[test]
fn a_member_that_holds_something_else_is_found_and_named() {
    let Some(ctl) = etcdctl("a_member_that_holds_something_else_is_found_and_named") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let [right, wrong] = ["right", "wrong"].map(|name| dir.path().join(name));
    saved(&ctl, &right, &["a", "b", "c"]);
    saved(&ctl, &wrong, &["a", "x", "c"]);
    let checks: [&[&str]; 2] =
        [&["--corrupt-check-time=1s"], &["--feature-gates=CompactHashCheck=true", "--compact-hash-check-time=1s"]];
    for check in checks {
        let mut cluster = Cluster::prepare(&Program::daymark(), 3, check);
        cluster.set_token("restored");
        restore_three(&cluster, [&right, &right, &wrong]);
        cluster.start_all();
        let corrupt = cluster.member_id(&ctl, 2);
        eventually("the alarm", || {
            let listed = cluster.ctl(&ctl, &[0], "alarm list").stdout;
            listed.lines().count() == 1 && listed.contains(&corrupt.to_string()) && listed.contains("CORRUPT")
        });
        let refused = cluster.ctl(&ctl, &[0], "put k v");
        assert!(refused.stderr.contains("etcdserver: corrupt cluster"), "{}", refused.stderr);
        assert_eq!(ok(&cluster, &ctl, &[1], "get k1 --print-value-only"), "b\n", "reads are served");

        cluster.terminate(2);
        cluster.set_extra(&["--feature-gates=InitialCorruptCheck=true"]);
        let refused = cluster.refuse(2);
        assert_eq!(refused.status.code(), Some(1));
        assert!(refused.stderr.contains("found data inconsistency with peers"), "{}", refused.stderr);
        // The others start with the same check, and the one that differs is replaced.
        ok(&cluster, &ctl, &[0], "alarm disarm");
        // As soon as the two that are left have seen each other for a while.
        let remove = format!("member remove {corrupt:x}");
        eventually("it is removed", || cluster.ctl(&ctl, &[0], &remove).code == Some(0));
        cluster.terminate(1);
        cluster.restart(1);
        ok(&cluster, &ctl, &[0, 1], "put k v");
    }
}
