//! Clients that others wrote, in four languages, find what they expect: each runs its checks against etcd 3.7.1 first, which
//! proves the checks, and then against Daymark. The checks themselves are in `tests/clients`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use daymark_tests::{
    certificates::Certificates,
    ctl::Etcdctl,
    etcd,
    process::{Program, Server, clear_settings},
    skip,
};

/// The checks of one stage take at most this long.
const STAGE_MAX: Duration = Duration::from_secs(150);

type Stage = (&'static str, &'static [&'static str]);

/// A client, the program with its checks, and what that must say for each stage.
struct Client {
    test: &'static str,
    command: Vec<PathBuf>,
    environment: Vec<(&'static str, PathBuf)>,
    stages: &'static [Stage],
    remedy: &'static str,
}

const ETCDCTL: &[Stage] = &[
    ("basic", &["kv", "txn", "watch", "lease", "keepalive", "lock", "election"]),
    ("maintenance", &["maintenance"]),
    ("auth", &["login", "permissions", "wrong-password", "no-user", "auth-management"]),
    ("tls", &["tls-kv", "tls-without-certificate"]),
    ("tls-auth", &["tls-login", "certificate-identity"]),
];
const GO: &[Stage] = &[
    (
        "basic",
        &[
            "kv",
            "range-stream",
            "txn",
            "watch",
            "watch-resume",
            "watch-compacted",
            "lease",
            "keepalive",
            "mutex",
            "election",
            "stm",
            "cluster",
        ],
    ),
    ("maintenance", &["maintenance"]),
    ("auth", &["login", "permissions", "wrong-password", "no-user", "auth-management", "token-renewal"]),
    ("tls", &["tls-kv", "tls-without-certificate"]),
    ("tls-auth", &["tls-login", "certificate-identity"]),
];
const RUST: &[Stage] = &[
    ("basic", &["kv", "txn", "watch", "watch-resume", "watch-compacted", "lease", "keepalive", "lock", "election"]),
    ("maintenance", &["maintenance"]),
    ("auth", &["login", "permissions", "wrong-password", "no-user", "auth-management"]),
    ("tls", &["tls-kv", "tls-without-certificate"]),
    ("tls-auth", &["tls-login", "certificate-identity"]),
];
// Its gRPC library sends passwords and tokens over TLS only.
const PYTHON_ETCD3: &[Stage] = &[
    ("basic", &["kv", "txn", "watch", "watch-resume", "watch-compacted", "lease", "keepalive", "lock"]),
    ("maintenance", &["maintenance"]),
    ("auth", &["no-user"]),
    ("tls", &["tls-kv", "tls-without-certificate"]),
    ("tls-auth", &["login", "permissions", "wrong-password", "auth-management", "certificate-identity"]),
];
const PYTHON_ETCD3GW: &[Stage] = &[
    (
        "basic",
        &["kv", "txn", "watch", "watch-resume", "lease", "keepalive", "lock", "lock-service", "status", "errors"],
    ),
    ("auth", &["login", "wrong-password", "no-user"]),
    ("tls", &["tls-kv", "tls-without-certificate"]),
    ("tls-auth", &["certificate-is-no-identity"]),
];
const NODE: &[Stage] = &[
    ("basic", &["kv", "txn", "stm", "watch", "watch-resume", "lease", "keepalive", "lock", "election", "maintenance"]),
    ("auth", &["login", "permissions", "wrong-password", "no-user", "auth-management"]),
    ("tls", &["tls-kv", "tls-without-certificate"]),
    ("tls-auth", &["tls-login"]),
];

/// Runs every stage of a client against etcd, where it is installed, and Daymark.
fn client_passes(client: &Client) {
    // What is run is the last of the command's words that is a file: the program itself, or the script of an interpreter.
    let needed = client.command.iter().chain(client.environment.iter().map(|(_, path)| path));
    if let Some(missing) = needed.filter(|path| path.is_absolute()).find(|path| !path.exists()) {
        return skip::missing_tool(client.test, &missing.display().to_string(), client.remedy);
    }
    let ours = Program::daymark();
    let oracle = etcd::oracle_or_skip(&format!("{} (against etcd 3.7.1)", client.test));
    let programs = oracle.into_iter().chain([ours]);
    let failures: Vec<String> = thread::scope(|scope| {
        let runs: Vec<_> = programs.map(|program| scope.spawn(move || stages(client, &program))).collect();
        runs.into_iter().flat_map(|run| run.join().expect("a run does not panic")).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn stages(client: &Client, program: &Program) -> Vec<String> {
    let mut failures = Vec::new();
    for (stage, expected) in client.stages {
        let expected: String = expected.iter().map(|check| format!("ok {check}\n")).collect();
        let said = run(client, stage, program);
        if said.0 != expected {
            failures.push(format!(
                "{} against {:?}, stage {stage}: expected\n{expected}got\n{}{}",
                client.test, program.dialect, said.0, said.1
            ));
        }
    }
    failures
}

/// What the checks of a stage print to standard output and standard error.
fn run(client: &Client, stage: &str, program: &Program) -> (String, String) {
    let secure = stage.starts_with("tls");
    let certificates = Certificates::new();
    let mut flags = if secure { certificates.server_flags() } else { Vec::new() };
    // Hashing passwords has the lowest priority in Daymark: on a busy machine a login must not outlast the clients' patience.
    flags.push("--bcrypt-cost=4".to_owned());
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let server = if secure { Server::start_secure(program, &flags) } else { Server::start(program, &flags) };
    if stage.ends_with("auth") {
        prepare_users(&server, secure.then_some(&certificates));
    }
    let mut command = Command::new(&client.command[0]);
    clear_settings(&mut command);
    // Python's requests would trust these instead of what it is told to.
    command.env_remove("REQUESTS_CA_BUNDLE").env_remove("CURL_CA_BUNDLE");
    command.args(&client.command[1..]).arg(stage).envs(client.environment.iter().cloned());
    command.env("ENDPOINT", server.endpoint()).env("CA", certificates.path("ca.crt"));
    command.env("CERT", certificates.path("client.crt")).env("KEY", certificates.path("client.key"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start {:?}: {e}", client.command));
    let started = Instant::now();
    while child.try_wait().expect("wait for the client").is_none() && started.elapsed() < STAGE_MAX {
        thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let out = child.wait_with_output().expect("collect what it said");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&out.stdout), text(&out.stderr))
}

/// `root`, and `alice` who may do everything below `alice/`; then authentication on.
fn prepare_users(server: &Server, secure: Option<&Certificates>) {
    let ctl = etcd::etcdctls("users of the clients' tests").into_iter().next().expect("an etcdctl");
    for command in [
        &["user", "add", "root:root's password"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "alice:alice's password"],
        &["role", "add", "alice"],
        &["role", "grant-permission", "alice", "--prefix=true", "readwrite", "alice/"],
        &["user", "grant-role", "alice", "alice"],
        &["auth", "enable"],
    ] {
        ask(&ctl, server, secure, command);
    }
}

fn ask(ctl: &Etcdctl, server: &Server, secure: Option<&Certificates>, command: &[&str]) {
    let mut args: Vec<String> = command.iter().map(ToString::to_string).collect();
    let mut endpoint = server.endpoint();
    if let Some(certificates) = secure {
        let files = [("cacert", "ca.crt"), ("cert", "client.crt"), ("key", "client.key")];
        args.extend(files.map(|(flag, file)| format!("--{flag}={}", certificates.path(file).display())));
        endpoint = format!("https://{endpoint}");
    }
    let answer = ctl.run(&endpoint, &args, "");
    assert_eq!(answer.code, Some(0), "{command:?}: {answer:?}");
}

fn checks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn tool(path: &str) -> PathBuf {
    etcd::tools_directory().join(path)
}

const TEST_SH: &str = "run ./test.sh, which installs it";

fn etcdctl(test: &'static str, version: &str) {
    let Some(ctl) = etcd::etcdctls(test).into_iter().find(|ctl| ctl.version == version) else { return };
    let environment = vec![("ETCDCTL", ctl.binary)];
    let command = vec![checks().join("etcdctl/checks.sh")];
    client_passes(&Client { test, command, environment, stages: ETCDCTL, remedy: TEST_SH });
}

#[test]
fn etcdctl_3_4() {
    etcdctl("etcdctl_3_4", "3.4");
}

#[test]
fn etcdctl_3_5_1() {
    etcdctl("etcdctl_3_5_1", "3.5.1");
}

#[test]
fn etcdctl_3_7_1() {
    etcdctl("etcdctl_3_7_1", "3.7.1");
}

#[test]
fn go_clientv3() {
    let test = "go_clientv3";
    if etcd::go().is_none() {
        return skip::unable(test, "there is no Go to build it with");
    }
    let command = vec![tool("client-go/checks")];
    client_passes(&Client { test, command, environment: Vec::new(), stages: GO, remedy: TEST_SH });
}

#[test]
fn rust_etcd_client() {
    let command = vec![tool("client-rust/target/release/daymark-client-checks")];
    let test = "rust_etcd_client";
    client_passes(&Client { test, command, environment: Vec::new(), stages: RUST, remedy: TEST_SH });
}

fn python(test: &'static str, script: &str, stages: &'static [Stage]) {
    let command = vec!["python3".into(), checks().join("python").join(script)];
    let environment = vec![("PYTHONPATH", tool("client-python")), ("PYTHONDONTWRITEBYTECODE", "1".into())];
    client_passes(&Client { test, command, environment, stages, remedy: TEST_SH });
}

#[test]
fn python_etcd3() {
    python("python_etcd3", "etcd3_checks.py", PYTHON_ETCD3);
}

#[test]
fn python_etcd3gw() {
    python("python_etcd3gw", "etcd3gw_checks.py", PYTHON_ETCD3GW);
}

#[test]
fn node_etcd3() {
    let command = vec!["node".into(), checks().join("node/checks.js")];
    let environment = vec![("NODE_PATH", tool("client-node/node_modules"))];
    client_passes(&Client { test: "node_etcd3", command, environment, stages: NODE, remedy: TEST_SH });
}
