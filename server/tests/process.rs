//! The binary as a process: what it prints, which code it leaves with, and what it leaves behind. Not what it serves.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn daymark(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_daymark"));
    command.current_dir(directory).args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the end, which must come within two seconds, and must leave the directory as it was.
fn refused(directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let before = names(directory);
    let begun = Instant::now();
    let Output { status, stderr, .. } =
        daymark(directory, arguments).envs(variables.iter().copied()).output().expect("runs");
    assert!(begun.elapsed() < Duration::from_secs(2), "{arguments:?} took {:?}", begun.elapsed());
    assert_eq!(names(directory), before, "{arguments:?} changed the directory");
    (status.code().expect("an exit code"), String::from_utf8(stderr).expect("text"))
}

fn names(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).expect("directory") {
        let entry = entry.expect("entry");
        let path = entry.path();
        names.push(path.display().to_string());
        if path.is_dir() {
            names.extend(self::names(&path));
        }
    }
    names.sort();
    names
}

/// The last line, which must be a fatal one with cause and remedy.
fn fatal(stderr: &str) -> serde_json::Value {
    let line: serde_json::Value = serde_json::from_str(stderr.lines().last().expect("a line")).expect("JSON");
    assert_eq!(line["level"], "fatal", "{line}");
    assert!(line["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{line}");
    line
}

/// Flags of a member on ports that the system chooses.
const ANYWHERE: &[&str] = &[
    "--listen-client-urls=http://127.0.0.1:0",
    "--advertise-client-urls=http://127.0.0.1:0",
    "--listen-peer-urls=http://127.0.0.1:0",
];

#[test]
fn version_and_help_go_to_standard_output() {
    let directory = tempfile::tempdir().expect("directory");
    let version = daymark(directory.path(), &["--version"]).output().expect("runs");
    let text = String::from_utf8(version.stdout).expect("text");
    assert!(version.status.success());
    assert!(text.starts_with("etcd Version: 3.7.1\nGit SHA: "), "{text}");
    assert!(text.ends_with("\nDaymark Version: 0.1.0\n"), "{text}");
    let help = daymark(directory.path(), &["-h"]).output().expect("runs");
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("--listen-client-urls"));
}

#[test]
fn bad_command_lines_are_refused_with_etcds_exit_codes() {
    let directory = tempfile::tempdir().expect("directory");
    let (code, stderr) = refused(directory.path(), &["--nonsense"], &[]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("flag provided but not defined: -nonsense; see daymark --help"), "{stderr}");
    for argument in ["--heartbeat-interval=x", "--initial-cluster-state=old", "--listen-client-urls=nonsense"] {
        assert_eq!(refused(directory.path(), &[argument], &[]).0, 2, "{argument}");
    }
    for (arguments, variables, cause) in [
        (&["stray"][..], &[][..], "'stray' is not a valid flag"),
        (&["--name=a"], &[("ETCD_NAME", "a")], "is shadowed by corresponding command-line flag"),
        (&[], &[("ETCD_LOG_FORMAT", "x")], "supported values json, console"),
        (&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")], "invalid value \"x\" for ETCD_HEARTBEAT_INTERVAL"),
        (&["--config-file=missing.yml"], &[], "missing.yml"),
        (&["--name=ignored"], &[("ETCD_CONFIG_FILE", "missing.yml")], "missing.yml"),
        (&["--election-timeout=200"], &[], "at least as 5 times"),
        (&["--peer-cert-file=x"], &[], "--peer-cert-file and --peer-key-file must both be present"),
        (&["--log-outputs=missing/file"], &[], "cannot open the log output"),
    ] {
        let (code, stderr) = refused(directory.path(), arguments, variables);
        assert_eq!(code, 1, "{arguments:?}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(fatal(&stderr)["error"].as_str().expect("error").contains(cause), "{stderr}");
    }
}

#[test]
fn a_taken_port_and_a_directory_of_etcd_are_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("http://{}", taken.local_addr().expect("address"));
    let (listen, advertise) = (format!("--listen-client-urls={url}"), format!("--advertise-client-urls={url}"));
    let (code, stderr) = refused(directory.path(), &["--data-dir=d", &listen, &advertise], &[]);
    assert_eq!(code, 1);
    assert!(fatal(&stderr)["error"].as_str().expect("error").contains("in use"), "{stderr}");

    std::fs::create_dir_all(directory.path().join("d/member/snap")).expect("directory");
    std::fs::write(directory.path().join("d/member/snap/db"), b"bbolt").expect("file");
    let arguments = [&["--data-dir=d"], ANYWHERE].concat();
    let (code, stderr) = refused(directory.path(), &arguments, &[]);
    assert_eq!(code, 1);
    assert!(fatal(&stderr)["error"].as_str().expect("error").contains("data directory of etcd"), "{stderr}");
}

#[test]
fn a_member_becomes_ready_keeps_its_directory_and_ends_by_the_signal_it_is_sent() {
    let directory = tempfile::tempdir().expect("directory");
    let arguments = [&["--data-dir=d"], ANYWHERE].concat();
    for (number, name) in [(libc::SIGTERM, "terminated"), (libc::SIGINT, "interrupt")] {
        let mut member = daymark(directory.path(), &arguments).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(member.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
        let ready = lines.by_ref().any(|line| line.contains("\"msg\":\"ready to serve client requests\""));
        assert!(ready, "ended before it was ready");

        let (code, stderr) = refused(directory.path(), &arguments, &[]);
        assert_eq!(code, 1, "a second process on the same directory");
        assert!(fatal(&stderr)["error"].as_str().expect("error").contains("in use"), "{stderr}");

        // SAFETY: takes plain numbers; the process is ours and has not been waited for.
        assert_eq!(unsafe { libc::kill(member.id() as i32, number) }, 0);
        let rest: Vec<String> = lines.collect();
        assert!(rest.iter().any(|line| line.contains("received signal") && line.contains(name)), "{rest:?}");
        assert_eq!(member.wait().expect("ends").signal(), Some(number));
    }
}

/// Starts a member, does `work` once it is ready, and ends it in order.
fn run_once(directory: &Path, arguments: &[&str], work: impl FnOnce()) {
    let mut member = daymark(directory, arguments).stderr(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(member.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    assert!(lines.by_ref().any(|line| line.contains("\"msg\":\"ready to serve client requests\"")), "not ready");
    work();
    // SAFETY: takes plain numbers; the process is ours and has not been waited for.
    assert_eq!(unsafe { libc::kill(member.id() as i32, libc::SIGTERM) }, 0);
    lines.for_each(drop);
    assert_eq!(member.wait().expect("ends").signal(), Some(libc::SIGTERM));
}

/// Starts a member that is to be refused. None if it serves instead; then it is ended in order.
fn start_refused(directory: &Path, arguments: &[&str]) -> Option<(Option<i32>, String)> {
    let mut member = daymark(directory, arguments).stderr(Stdio::piped()).spawn().expect("starts");
    let (mut stderr, mut serves) = (String::new(), false);
    for line in BufReader::new(member.stderr.take().expect("piped")).lines() {
        let line = line.expect("text");
        if line.contains("\"msg\":\"ready to serve client requests\"") {
            serves = true;
            // SAFETY: takes plain numbers; the process is ours and has not been waited for.
            assert_eq!(unsafe { libc::kill(member.id() as i32, libc::SIGTERM) }, 0);
        }
        stderr += &(line + "\n");
    }
    let status = member.wait().expect("ends");
    (!serves).then_some((status.code(), stderr))
}

/// Raft refuses when log and apply have their threads already: these end with the process, and have nothing to say.
#[test]
fn a_start_that_is_given_up_half_way_is_one_fatal_line_and_exit_code_1() {
    let directory = tempfile::tempdir().expect("directory");
    let arguments = [&["--data-dir=d"], ANYWHERE].concat();
    // The state is durable as of each stop, so that the next member releases the log up to there, some time.
    let release = || run_once(directory.path(), &arguments, || std::thread::sleep(Duration::from_millis(600)));
    run_once(directory.path(), &arguments, || {});
    release();
    let mut refused = 0;
    for _ in 0..50 {
        std::fs::remove_dir_all(directory.path().join("d/member/db")).expect("removed");
        let begun = Instant::now();
        let Some((code, stderr)) = start_refused(directory.path(), &arguments) else {
            // The whole log was still there, and has made the state again.
            release();
            continue;
        };
        refused += 1;
        assert_eq!(code, Some(1), "{stderr}");
        assert!(begun.elapsed() < Duration::from_secs(5), "it took {:?}", begun.elapsed());
        let text = fatal(&stderr)["error"].as_str().expect("error").to_owned();
        assert!(text.contains("the log begins behind"), "{text}");
        assert_eq!(stderr.matches("\"level\":\"fatal\"").count(), 1, "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
    assert!(refused >= 30, "only {refused} starts were refused");
}

/// The load generator's floor: it starts the echo server, loads it, reports its cost, and leaves nothing behind.
#[test]
fn the_floor_of_puts_is_measured_on_a_server_of_its_own() {
    let directory = tempfile::tempdir().expect("directory");
    let words = ["bench", "floor", "--total=2000", "--clients=20", "--conns=2", "--net-threads=1", "--json=floor.json"];
    let output = daymark(directory.path(), &words).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = std::fs::read(directory.path().join("floor.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(
        (&report["command"], &report["succeeded"], &report["failed"]),
        (&"floor".into(), &2000.into(), &0.into())
    );
    let server = &report["servers"][0];
    assert!(server["resident_bytes_after"].as_u64() > Some(0), "{server}");
    let pid = server["pid"].as_u64().expect("a process");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the echo server outlived its load");
    let refused = daymark(directory.path(), &["bench", "floor", "--endpoints=127.0.0.1:1"]).output().expect("runs");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("starts a server of its own"));
}

/// Who started the echo server may be killed: it goes with its standard input.
#[test]
fn the_echo_server_ends_with_its_standard_input() {
    let directory = tempfile::tempdir().expect("directory");
    let mut child = daymark(directory.path(), &["echo-server"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let address = line.trim().strip_prefix("listening ").expect("where it listens");
    std::net::TcpStream::connect(address).expect("it listens");
    drop(child.stdin.take());
    let begun = Instant::now();
    assert!(child.wait().expect("ends").success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}
