//! Starting and stopping: a member that cannot start says why and what to do in one line, quickly, and leaves its directory
//! as it was; one that can says when it is ready, and ends cleanly when asked to.

use std::{
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use daymark_client::{Client, Config};
use daymark_tests::{
    etcd,
    powercut::LoopDisk,
    process::{Ended, Program, Server, http_get},
    tree::Tree,
    wire::runtime,
};
use tempfile::TempDir;

const REFUSE_MAX: Duration = Duration::from_secs(2);
/// Until a refusal that takes too long is broken off.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The lines that are no log of something ordinary: what an operator reads.
fn complaints(ended: &Ended) -> Vec<&str> {
    let ordinary =
        |line: &&str| ["debug", "info", "warn"].iter().any(|level| line.contains(&format!("\"level\":\"{level}\"")));
    ended.stderr.lines().filter(|line| !line.trim().is_empty() && !ordinary(line)).collect()
}

/// Asserts a quick refusal in one line that holds each of `words`; a word may offer choices, `a|b`.
fn assert_refused(what: &str, ended: &Ended, words: &[&str]) {
    assert!(!ended.status.success(), "{what}: exit status says success");
    assert!(ended.status.code().is_some(), "{what}: ended by a signal: {ended:?}");
    assert!(ended.took <= REFUSE_MAX, "{what}: took {:?}", ended.took);
    let mut complaints = complaints(ended);
    // As with etcd, how to use the flags may follow what is wrong with them.
    complaints.retain(|line| !line.starts_with(' ') && *line != "Usage:");
    assert_eq!(complaints.len(), 1, "{what}: one line says it:\n{}", ended.stderr);
    let line = complaints[0].to_lowercase();
    for word in words {
        let found = word.split('|').any(|choice| line.contains(&choice.to_lowercase()));
        assert!(found, "{what}: the line does not say {word:?}: {line}");
    }
}

fn assert_unchanged(what: &str, before: &Tree, dir: &Path) {
    assert_eq!(before.differences(&Tree::read(dir)), Vec::<PathBuf>::new(), "{what}: the directory was changed");
}

/// A data directory with a key in it, of a member that was stopped.
fn used_directory(program: &Program, dir: &Path) -> Server {
    let mut server = Server::start_on(program, dir, &[]);
    runtime().block_on(put(&server, "kept"));
    server.terminate();
    server
}

async fn put(server: &Server, value: &'static str) {
    let client = Client::new(Config::new([server.endpoint()])).expect("a valid endpoint");
    client.kv().put("key", value).await.expect("put");
}

async fn value(server: &Server) -> String {
    let client = Client::new(Config::new([server.endpoint()])).expect("a valid endpoint");
    let answer = client.kv().get("key").await.expect("get");
    answer.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).unwrap_or_default()
}

#[test]
fn bad_flags_are_named_and_nothing_is_created() {
    let program = Program::daymark();
    for (args, words) in [
        (&["--no-such-flag"][..], &["no-such-flag", "--help|unknown|not defined"][..]),
        (&["--heartbeat-interval=soon"], &["heartbeat-interval", "soon"]),
        (&["--election-timeout=10"], &["election-timeout", "heartbeat"]),
        (&["--election-timeout=99999999"], &["election-timeout", "50000"]),
        (&["--listen-client-urls=nonsense"], &["listen-client-urls|url", "nonsense"]),
        (&["--listen-client-urls=http://example.org:1"], &["listen-client-urls|url", "example.org"]),
        (&["--quota-backend-bytes=much"], &["quota-backend-bytes", "much"]),
        (&["--log-level=loud"], &["log-level", "loud"]),
        (&["--initial-cluster=other=http://127.0.0.1:1"], &["initial-cluster|initial cluster", "default"]),
        (&["--feature-gates=Nonsense=true"], &["feature-gates|feature gate", "Nonsense"]),
        (&["--auto-compaction-mode=never"], &["auto-compaction-mode", "never"]),
        (&["stray"], &["stray"]),
    ] {
        let home = TempDir::new().expect("a directory");
        let dir = home.path().join("data");
        let ended = Server::prepare(&program, &dir, args).refuse(WAIT_MAX);
        assert_refused(&format!("{args:?}"), &ended, words);
        assert!(!dir.exists(), "{args:?}: the data directory was created");
    }
}

#[test]
fn a_data_directory_in_use_is_refused() {
    let program = Program::daymark();
    let server = Server::start(&program, &[]);
    runtime().block_on(put(&server, "of the first"));
    let before = Tree::read(server.data_dir());
    let ended = Server::prepare(&program, server.data_dir(), &[]).refuse(WAIT_MAX);
    let dir = server.data_dir().to_string_lossy().into_owned();
    assert_refused("directory in use", &ended, &[&dir, "in use", "stop|another"]);
    assert_unchanged("directory in use", &before, server.data_dir());
    assert_eq!(runtime().block_on(value(&server)), "of the first", "the first one goes on");
}

#[test]
fn a_taken_port_is_named() {
    let program = Program::daymark();
    let home = TempDir::new().expect("a directory");
    let dir = home.path().join("data");
    let mut server = used_directory(&program, &dir);
    let before = Tree::read(&dir);
    for of in ["client", "peer"] {
        let taken = if of == "client" { server.endpoint() } else { server.peer_endpoint() };
        let listener = TcpListener::bind(&taken).expect("take the port");
        let ended = server.refuse(WAIT_MAX);
        assert_refused(&format!("{of} port taken"), &ended, &[&taken, "in use", "urls|stop|free|choose|another"]);
        assert_unchanged(&format!("{of} port taken"), &before, &dir);
        drop(listener);
    }
    server.restart();
    assert_eq!(runtime().block_on(value(&server)), "kept", "it starts once the ports are free");
}

#[test]
fn a_read_only_directory_is_refused() {
    let Some(mut disk) = LoopDisk::mount_or_skip("a_read_only_directory_is_refused", 1 << 30) else { return };
    let program = Program::daymark();
    let used = disk.root().join("used");
    let stopped = used_directory(&program, &used);
    disk.make_read_only();
    let new = disk.root().join("new");
    for mut server in [stopped, Server::prepare(&program, &new, &[])] {
        let dir = server.data_dir().to_path_buf();
        let before = Tree::read(&dir);
        let ended = server.refuse(WAIT_MAX);
        let text = dir.to_string_lossy().into_owned();
        assert_refused("read-only", &ended, &[&text, "read-only", "writable|data-dir|remount|write"]);
        assert_unchanged("read-only", &before, &dir);
    }
}

#[test]
fn a_data_directory_of_etcd_is_refused() {
    let Some(oracle) = etcd::any_oracle_or_skip("a_data_directory_of_etcd_is_refused") else { return };
    let home = TempDir::new().expect("a directory");
    let dir = home.path().join("data");
    used_directory(&oracle, &dir);
    let before = Tree::read(&dir);
    let ended = Server::prepare(&Program::daymark(), &dir, &[]).refuse(WAIT_MAX);
    assert_refused("directory of etcd", &ended, &[&dir.to_string_lossy(), "etcd|another program", "data-dir|migrate"]);
    assert_unchanged("directory of etcd", &before, &dir);
}

#[test]
fn sigterm_ends_with_that_signal_and_loses_nothing() {
    let mut server = Server::start(&Program::daymark(), &[]);
    assert!(server.log().contains("ready to serve client requests"), "says when it is ready:\n{}", server.log());
    runtime().block_on(put(&server, "kept"));
    let status: ExitStatus = server.terminate();
    assert!(status.signal() == Some(15) || status.code() == Some(143), "a shell sees 143: {status:?}");
    let port = server.endpoint().rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
    assert!(http_get(port, "/health").is_err(), "nobody listens any more");
    let took = server.restart();
    println!("healthy {took:?} after the restart");
    assert_eq!(runtime().block_on(value(&server)), "kept");
}

/// As in etcd, the flags of a cluster's foundation have no effect on a member that has been founded.
#[test]
fn a_founded_member_ignores_founding_flags() {
    let home = TempDir::new().expect("a temporary directory");
    let dir = home.path().join("data");
    let program = Program::daymark();
    drop(used_directory(&program, &dir));
    let founded = runtime().block_on(member_id(&Server::start_on(&program, &dir, &["--initial-cluster-token=other"])));
    let server = Server::start_on(&program, &dir, &[]);
    assert_eq!(runtime().block_on(member_id(&server)), founded, "the same member");
    assert_eq!(runtime().block_on(value(&server)), "kept");
}

async fn member_id(server: &Server) -> u64 {
    let client = Client::new(Config::new([server.endpoint()])).expect("a valid endpoint");
    client.kv().get("key").await.expect("get").header.expect("a header").member_id
}

#[test]
fn version_and_help_are_printed_and_succeed() {
    let binary = Program::daymark().binary;
    let run = |flag: &str| std::process::Command::new(&binary).arg(flag).output().expect("runs");
    let version = run("--version");
    let first = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
    assert!(version.status.success() && first.starts_with("etcd Version: "), "tools parse the first line: {first:?}");
    let help = run("--help");
    assert!(help.status.success(), "help is no error");
    assert!(String::from_utf8_lossy(&help.stdout).contains("--listen-client-urls"), "every flag is listed");
}
