//! What operators meet, beside a real etcd 3.7.1: flags, environment, configuration file, start-up errors, metrics, limits
//! and automatic compaction. What may differ is listed here with its reason, and told to users in docs/operations.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use daymark_client::{
    Client, Config,
    error::ClientError,
    kv::{GetOptions, PutOptions},
    txn::{Op, Txn},
    watch::WatchOptions,
};
use daymark_tests::{
    etcd, ports,
    process::{Ended, Program, Server, clear_settings, http_get, run_to_end},
    skip,
    wire::runtime,
};
use tempfile::TempDir;

/// Until a refusal that does not come is broken off.
const REFUSE_MAX: Duration = Duration::from_secs(10);

/// Daymark and etcd 3.7.1, or nothing after saying that `test` is skipped.
fn both(test: &str) -> Option<[Program; 2]> {
    Some([Program::daymark(), etcd::oracle_or_skip(test)?])
}

fn client(server: &Server) -> Client {
    Client::new(Config::new([server.endpoint()])).expect("a valid endpoint")
}

// Flags.

/// Flags whose default etcd's help shows otherwise than etcd's code has it, or not as a value.
const SHOWN_OTHERWISE: &[(&str, &str)] = &[
    ("data-dir", "a form, not a value"),
    ("backend-bbolt-freelist-type", "empty in the code, which means map"),
    ("backend-batch-interval", "shown as empty: 0s"),
    ("compaction-batch-limit", "0 in the code, which means 1000"),
    ("max-concurrent-streams", "the name of a number"),
    ("watch-progress-notify-interval", "0s in the code, which means 10m"),
    ("v2-deprecation", "ignored by etcd, too; empty here"),
];

/// Names and defaults out of a help text: lines of two blanks, two dashes, a name, and perhaps a default in quotes.
fn flags_of(help: &str) -> BTreeMap<String, Option<String>> {
    let lines = help.lines().filter_map(|line| line.strip_prefix("  --"));
    let flags = lines.map(|line| {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let default = rest.trim().trim_matches('\'');
        (name.to_owned(), (!rest.trim().is_empty()).then(|| default.to_owned()))
    });
    flags.collect()
}

/// `1m` and `1m0s` are the same default.
fn plain(default: &str) -> String {
    default.replace("m0s", "m").replace("0s", "0")
}

#[test]
fn every_flag_of_etcd_is_known_with_its_default() {
    let Some([daymark, oracle]) = both("every_flag_of_etcd_is_known_with_its_default") else { return };
    let help = |program: &Program| {
        let output = Command::new(&program.binary).arg("--help").output().expect("runs");
        assert!(output.status.success(), "help is no error");
        flags_of(&String::from_utf8_lossy(&output.stdout))
    };
    let (ours, theirs) = (help(&daymark), help(&oracle));
    assert!(theirs.len() > 100, "etcd's help was not understood: {theirs:?}");
    let mut wrong = Vec::new();
    for (name, default) in &theirs {
        // Stands for commands in etcd's usage.
        if ["version", "config-file"].contains(&name.as_str()) {
            continue;
        }
        match (ours.get(name), default) {
            (None, _) => wrong.push(format!("--{name} is missing")),
            (Some(Some(our)), Some(their)) => {
                let known = SHOWN_OTHERWISE.iter().any(|(known, _)| known == name);
                if !known && plain(our) != plain(their) {
                    wrong.push(format!("--{name}: {our:?} instead of {their:?}"));
                }
            }
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

// Start-up errors.

/// Arguments, the exit code of both, and what both say.
const REFUSED: &[(&[&str], i32, &[&str])] = &[
    (&["--nonsense"], 2, &["flag provided but not defined: -nonsense"]),
    (&["--name"], 2, &["flag needs an argument: -name"]),
    (&["---name=x"], 2, &["bad flag syntax: ---name=x"]),
    (&["stray"], 1, &["stray", "is not a valid flag"]),
    (&["--v", "3"], 1, &["is not a valid flag"]),
    (&["--heartbeat-interval=x"], 2, &["invalid value \"x\" for flag -heartbeat-interval: parse error"]),
    (&["--heartbeat-interval=-1"], 2, &["invalid value \"-1\" for flag -heartbeat-interval: parse error"]),
    (&["--pre-vote=maybe"], 2, &["invalid boolean value \"maybe\" for -pre-vote: parse error"]),
    (&["--grpc-keepalive-min-time=5"], 2, &["invalid value \"5\" for flag -grpc-keepalive-min-time: parse error"]),
    (&["--quota-backend-bytes=99999999999999999999"], 2, &["-quota-backend-bytes: value out of range"]),
    (&["--max-concurrent-streams=4294967296"], 2, &["-max-concurrent-streams: ", "value out of range"]),
    (&["--initial-cluster-state=old"], 2, &["invalid value \"old\" for flag -initial-cluster-state: invalid value"]),
    (&["--discovery-fallback=x"], 2, &["invalid value \"x\" for flag -discovery-fallback: invalid value"]),
    (&["--feature-gates=X=true"], 2, &["-feature-gates: unrecognized feature gate: X"]),
    (&["--feature-gates=AllBeta"], 2, &["-feature-gates: missing bool value for AllBeta"]),
    (&["--feature-gates=AllBeta=x"], 2, &["-feature-gates: invalid value of AllBeta=x"]),
    (
        &["--cors=foo"],
        2,
        &["invalid value \"foo\" for flag -cors: URL scheme must be http, https, unix, or unixs: foo"],
    ),
    (&["--listen-client-urls=http://localhost"], 2, &["URL address does not have the form \"host:port\""]),
    (&["--listen-client-urls=http://localhost:1/x"], 2, &["URL must not contain a path"]),
    (&["--log-level=loud"], 2, &["unrecognized level"]),
    (&["--log-format=x"], 1, &["unknown log format: x, supported values json, console"]),
    (&["--logger=x"], 1, &["unknown logger option", "x"]),
    (&["--log-outputs=default,stdout"], 1, &["multi logoutput for", "default", "is not supported yet"]),
    (&["--log-outputs=missing/file"], 1, &["missing/file", "o such file or directory"]),
    (&["--enable-log-rotation"], 1, &["--log-outputs requires a single file path"]),
    (&["--auto-compaction-mode=never"], 1, &["unknown auto-compaction-mode"]),
    (&["--auto-compaction-mode="], 1, &["undefined auto-compaction-mode"]),
    (&["--auto-compaction-retention=soon"], 1, &["soon"]),
    (
        &["--election-timeout=200"],
        1,
        &["--election-timeout[200ms] should be at least as 5 times as --heartbeat-interval"],
    ),
    (
        &["--election-timeout=60000"],
        1,
        &["--election-timeout[60000ms] is too long, and should be set less than 50000ms"],
    ),
    (&["--discovery-fallback=proxy"], 1, &["v2 proxy is deprecated, and --discovery-fallback can't be configured as"]),
    (
        &["--listen-client-urls=http://0.0.0.0:2"],
        1,
        &["--advertise-client-urls is required when --listen-client-urls is set"],
    ),
    (&["--listen-peer-urls=http://example.org:1"], 1, &["expected IP in URL for binding (http://example.org:1)"]),
    (&["--advertise-client-urls=http://:1"], 1, &["--advertise-client-urls", "unexpected empty host (http://:1)"]),
    (&["--compact-hash-check-time=0s"], 1, &["--compact-hash-check-time must be >0"]),
    (&["--tls-min-version=x"], 1, &["unexpected TLS version"]),
    (&["--auth-token=foo"], 1, &["auth"]),
    (&["--feature-gates=LeaseCheckpointPersist=true"], 1, &["requires enabling feature gate LeaseCheckpoint"]),
    (&["--initial-cluster=other=http://127.0.0.1:1"], 1, &["couldn't find local name", "default"]),
    (&["--config-file=missing.yml"], 1, &["missing.yml", "o such file or directory"]),
];

fn run(program: &Program, directory: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(&program.binary);
    clear_settings(&mut command);
    command.current_dir(directory).args(arguments).envs(variables.iter().copied());
    run_to_end(&mut command, REFUSE_MAX)
}

/// Free ports for what gets as far as listening, so that nothing but the argument in question is wrong.
fn free_ports(arguments: &[&str]) -> Vec<String> {
    let given = |flag: &str| arguments.iter().any(|argument| argument.starts_with(flag));
    let mut ports = Vec::new();
    if !given("--listen-client-urls") && !given("--advertise-client-urls") {
        let client = ports::free();
        ports.push(format!("--listen-client-urls=http://127.0.0.1:{client}"));
        ports.push(format!("--advertise-client-urls=http://127.0.0.1:{client}"));
    }
    if !given("--listen-peer-urls") {
        ports.push(format!("--listen-peer-urls=http://127.0.0.1:{}", ports::free()));
    }
    ports
}

#[test]
fn bad_command_lines_fail_as_with_etcd() {
    let Some(programs) = both("bad_command_lines_fail_as_with_etcd") else { return };
    let mut wrong = Vec::new();
    for (arguments, code, words) in REFUSED {
        let own_ports = free_ports(arguments);
        let all: Vec<&str> = own_ports.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        for program in &programs {
            let directory = TempDir::new().expect("a directory");
            let ended = run(program, directory.path(), &all, &[]);
            // Quotes are escaped in JSON.
            let said = ended.stderr.replace("\\\"", "\"");
            if ended.status.code() != Some(*code) || words.iter().any(|word| !said.contains(word)) {
                let last = said.lines().find(|line| !line.contains("\"info\"")).unwrap_or_default().to_owned();
                wrong.push(format!("{:?} {arguments:?}: {:?}: {last}", program.dialect, ended.status.code()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn environment_and_flags_go_together_as_with_etcd() {
    let Some(programs) = both("environment_and_flags_go_together_as_with_etcd") else { return };
    for (arguments, variables, words) in [
        (
            &["--name=a"][..],
            &[("ETCD_NAME", "a")][..],
            &["ETCD_NAME", "is shadowed by corresponding command-line flag"][..],
        ),
        (&["--name=a"], &[("ETCD_NAME", "")], &["is shadowed by corresponding command-line flag"]),
        (&[], &[("ETCD_HEARTBEAT_INTERVAL", "x")], &["invalid value \"x\" for ETCD_HEARTBEAT_INTERVAL: parse error"]),
        (&[], &[("ETCD_CONFIG_FILE", "missing.yml")], &["missing.yml"]),
        (&["--name=a"], &[("ETCD_CONFIG_FILE", "missing.yml"), ("ETCD_NAME", "b")], &["missing.yml"]),
    ] {
        for program in &programs {
            let directory = TempDir::new().expect("a directory");
            let ended = run(program, directory.path(), arguments, variables);
            let said = ended.stderr.replace("\\\"", "\"");
            assert_eq!(ended.status.code(), Some(1), "{:?} {arguments:?} {variables:?}: {said}", program.dialect);
            for word in words {
                assert!(said.contains(word), "{:?} {arguments:?} {variables:?}: {said}", program.dialect);
            }
        }
    }
}

// Configuration file.

/// Lines of a configuration file that are wrong, and what both name.
const BAD_LINES: &[(&str, &[&str])] = &[
    ("heartbeat-interval: 100ms", &["heartbeat-interval"]),
    ("watch-progress-notify-interval: 10m", &["watch-progress-notify-interval"]),
    ("pre-vote: \"true\"", &["pre-vote"]),
    ("pre-vote: 1", &["pre-vote"]),
    ("quota-backend-bytes: \"5\"", &["quota-backend-bytes"]),
    ("auto-compaction-retention: 1", &["auto-compaction-retention"]),
    ("log-outputs: stderr", &["log-outputs"]),
    ("client-transport-security: x", &["client-transport-security"]),
    ("peer-transport-security:\n  allowed-cn: a", &["allowed-cn"]),
    ("initial-cluster-state: old", &["old"]),
    ("feature-gates: X=true", &["unrecognized feature gate: X"]),
    ("log-format: x", &["unknown log format: x"]),
    ("election-timeout: 200", &["--election-timeout[200ms]"]),
    ("[a", &["yaml"]),
];

#[test]
fn bad_configuration_files_fail_as_with_etcd() {
    let Some(programs) = both("bad_configuration_files_fail_as_with_etcd") else { return };
    let mut wrong = Vec::new();
    for (lines, words) in BAD_LINES {
        for program in &programs {
            let directory = TempDir::new().expect("a directory");
            fs::write(directory.path().join("c.yml"), lines).expect("written");
            let ended = run(program, directory.path(), &["--config-file=c.yml"], &[]);
            let said = ended.stderr.to_lowercase();
            if ended.status.code() != Some(1) || words.iter().any(|word| !said.contains(&word.to_lowercase())) {
                wrong.push(format!("{:?} {lines:?}: {:?}: {said}", program.dialect, ended.status.code()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_configuration_file_is_all_that_counts() {
    let Some(programs) = both("a_configuration_file_is_all_that_counts") else { return };
    for program in &programs {
        let directory = TempDir::new().expect("a directory");
        let (file, data) = (directory.path().join("c.yml"), directory.path().join("data"));
        let path = file.display().to_string();
        // The flags that `prepare` adds name another data directory: ignored.
        let mut server =
            Server::prepare(program, &directory.path().join("ignored"), &["--config-file", &path, "--name=ignored"]);
        let (client_url, peer_url) =
            (format!("http://{}", server.endpoint()), format!("http://{}", server.peer_endpoint()));
        let text = format!(
            "name: of-file\ndata-dir: {}\nlisten-client-urls: {client_url}\nadvertise-client-urls: {client_url}\n\
             listen-peer-urls: {peer_url}\ninitial-advertise-peer-urls: {peer_url}\n\
             initial-cluster: of-file={peer_url}\nsnapshot-count: 10000\nwal-dir:\ncors:\npre-vote: yes\n\
             heartbeat-interval: 0x64\nwatch-progress-notify-interval: 60000000000\nnonsense: 1\n\
             log-outputs: [stderr]\nlog-level: info\nauto-compaction-retention: \"0\"\n\
             client-transport-security:\n  cert-file: ''\n  client-cert-auth: false\n\
             peer-transport-security:\n  allowed-cn:\n",
            data.display()
        );
        fs::write(&file, text).expect("written");
        server.restart();
        let members =
            runtime().block_on(async { client(&server).cluster().member_list(false).await.expect("listed").members });
        assert_eq!(members[0].name, "of-file", "{:?}", program.dialect);
        assert_eq!(members[0].client_ur_ls, [client_url]);
        assert!(data.is_dir() && !directory.path().join("ignored").exists(), "{:?}", program.dialect);
    }
}

// Metrics.

/// Metrics of etcd that are not there, by the begin of their names.
const ABSENT: &[(&str, &str)] = &[
    ("go_", "Go's runtime; there is none"),
    ("etcd_server_go_version", "Go's version; there is none"),
    ("etcd_debugging_disk_backend_commit_", "steps of bbolt; a commit is one write here"),
    ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", "there is no index to compact"),
    ("etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds", "compaction does not pause"),
    ("etcd_debugging_mvcc_db_compaction_keys_total", "compaction drops whole files without counting keys"),
    ("etcd_debugging_mvcc_keys_total", "keys are not counted yet; a scan would be needed"),
    (
        "etcd_debugging_server_watch_send_loop_",
        "there is no loop for each stream: events go out in the turn of a net thread",
    ),
    ("etcd_debugging_snap_save_", "raft snapshots are not files of their own here"),
    ("etcd_snap_", "raft snapshots are not files of their own here"),
    ("etcd_debugging_store_", "the store of etcd's v2 API"),
    ("etcd_grpc_proxy_", "of etcd's gRPC proxy, which is another program"),
    ("etcd_mvcc_db_open_read_transactions", "readers hold nothing open"),
];

/// A family as its text tells: type, names of labels, and the bounds of its buckets.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    labels: BTreeSet<String>,
    bounds: BTreeSet<String>,
}

fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and type");
            families.entry(name.into()).or_default().kind = kind.into();
        } else if !line.starts_with('#') {
            let (series, _) = line.rsplit_once(' ').expect("series and value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let suffixes = ["_bucket", "_sum", "_count"];
            let of_histogram = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
            let name = of_histogram.filter(|name| families.contains_key(*name)).unwrap_or(name);
            let family = families.get_mut(name).expect("announced");
            for label in labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once("=\"").expect("name and value");
                match label {
                    "le" => {
                        let bound: f64 = value.trim_end_matches('"').parse().expect("a number");
                        family.bounds.insert(format!("{bound}"));
                    }
                    _ => {
                        family.labels.insert(label.to_owned());
                    }
                }
            }
        }
    }
    families
}

/// The metrics of a server, by HTTP/1.0, in which an answer comes in one piece.
fn scrape(endpoint: &str) -> String {
    let mut stream = TcpStream::connect(endpoint).expect("connected");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer.split_once("\r\n\r\n").expect("a body").1.to_owned()
}

/// Something of everything, so that what is counted by label is there.
async fn use_it(server: &Server) {
    let client = client(server);
    let mut watcher = client.watch().start("key", WatchOptions::default()).await.expect("watched");
    let lease = client.lease().grant(60, 0).await.expect("granted").id;
    client.kv().put_with("key", "value", PutOptions { lease, ..PutOptions::default() }).await.expect("put");
    client.kv().get("key").await.expect("got");
    let read = Txn::new().then([Op::get("key", GetOptions::default())]);
    client.kv().txn(read).await.expect("read");
    let write = Txn::new().then([Op::put("a", "b", PutOptions::default()), Op::put("c", "d", PutOptions::default())]);
    let revision = client.kv().txn(write).await.expect("written").header.expect("a header").revision;
    watcher.next().await.expect("an event");
    client.kv().delete("a").await.expect("deleted");
    client.lease().revoke(lease).await.expect("revoked");
    client.kv().compact(revision, true).await.expect("compacted");
}

#[test]
fn metrics_are_etcds() {
    let Some(programs) = both("metrics_are_etcds") else { return };
    let texts = programs.map(|program| {
        let server = Server::start(&program, &["--metrics=extensive"]);
        runtime().block_on(use_it(&server));
        let port = server.endpoint().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        assert_eq!(http_get(port, "/readyz").expect("answered").0, 200);
        // What is watched is shown a moment later.
        thread::sleep(Duration::from_millis(600));
        scrape(&server.endpoint())
    });
    let [ours, theirs] = [families(&texts[0]), families(&texts[1])];
    assert!(theirs.len() > 120, "etcd's metrics were not understood: {}", theirs.len());
    let (mut wrong, mut absent) = (Vec::new(), BTreeSet::new());
    for (name, their) in &theirs {
        let Some(our) = ours.get(name) else {
            match ABSENT.iter().find(|(begin, _)| name.starts_with(begin)) {
                Some((begin, _)) => {
                    absent.insert(*begin);
                }
                None => wrong.push(format!("{name} is missing")),
            }
            continue;
        };
        if our.kind != their.kind {
            wrong.push(format!("{name}: {} instead of {}", our.kind, their.kind));
        }
        if our.labels != their.labels {
            wrong.push(format!("{name}: labels {:?} instead of {:?}", our.labels, their.labels));
        }
        if our.bounds != their.bounds {
            wrong.push(format!("{name}: bounds {:?} instead of {:?}", our.bounds, their.bounds));
        }
    }
    wrong.extend(
        ABSENT.iter().filter(|(begin, _)| !absent.contains(begin)).map(|(begin, _)| format!("{begin} is there now")),
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
    counted_alike(&texts);
}

/// Series that a known use brings to the same values on both.
fn counted_alike(texts: &[String; 2]) {
    for series in [
        "etcd_mvcc_put_total ",
        "etcd_mvcc_delete_total ",
        "etcd_debugging_lease_granted_total ",
        "etcd_debugging_lease_revoked_total ",
        "etcd_debugging_lease_ttl_total_sum ",
        "etcd_debugging_mvcc_total_put_size_in_bytes ",
        "etcd_debugging_mvcc_current_revision ",
        "etcd_debugging_mvcc_compact_revision ",
        "etcd_server_has_leader ",
        "etcd_server_is_leader ",
        "etcd_server_quota_backend_bytes ",
        "etcd_server_proposals_failed_total ",
        "etcd_server_version{",
        "etcd_cluster_version{",
        "etcd_server_feature_enabled{name=\"FastLeaseKeepAlive\"",
        "etcd_server_healthchecks_total{name=\"linearizable_read\",status=\"success\",type=\"readyz\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Txn\"}",
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"ReadonlyTxn\"}",
        "etcd_server_apply_duration_seconds_count{op=\"LeaseGrant\",success=\"true\",version=\"v3\"}",
        "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",",
        "grpc_server_handled_total{grpc_code=\"Unavailable\",grpc_method=\"Put\",",
        "grpc_server_handling_seconds_count{grpc_method=\"Txn\",",
    ] {
        let [ours, theirs] = texts.each_ref().map(|text| text.lines().find(|line| line.starts_with(series)));
        assert!(theirs.is_some(), "etcd has no {series}");
        let value = |line: Option<&str>| line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        assert_eq!(value(ours), value(theirs), "{ours:?} instead of {theirs:?}");
    }
}

// Limits.

async fn refusal<T: std::fmt::Debug>(call: impl Future<Output = Result<T, ClientError>>) -> String {
    match call.await {
        Err(ClientError::Refused { code, message }) => format!("{code:?}: {message}"),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn limits_are_etcds() {
    let Some(programs) = both("limits_are_etcds") else { return };
    let answers = programs.map(|program| {
        let server = Server::start(&program, &["--max-txn-ops=2", "--max-request-bytes=1000"]);
        runtime().block_on(async {
            let kv = client(&server).kv();
            let puts = |count: usize| (0..count).map(|n| Op::put(format!("k{n}"), "v", PutOptions::default()));
            kv.txn(Txn::new().then(puts(2))).await.expect("two are allowed");
            kv.put("k", vec![b'x'; 900]).await.expect("so many bytes are allowed");
            [refusal(kv.txn(Txn::new().then(puts(3)))).await, refusal(kv.put("k", vec![b'x'; 1100])).await]
        })
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[1][0].contains("too many operations in txn request"), "{answers:?}");
    assert!(answers[1][1].contains("request is too large"), "{answers:?}");
}

// Automatic compaction.

/// Waits until the first revision is compacted; returns how long it took and the revisions that were kept.
fn wait_compacted(server: &Server, limit: Duration) -> Duration {
    let begun = Instant::now();
    runtime().block_on(async {
        let kv = client(server).kv();
        while begun.elapsed() < limit {
            kv.put("key", "value").await.expect("put");
            let old = kv.get_with("key", GetOptions { revision: 2, ..GetOptions::default() }).await;
            match old {
                Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => {
                    assert!(error.to_string().contains("required revision has been compacted"), "{error}");
                    return;
                }
            }
        }
        panic!("nothing was compacted within {limit:?}");
    });
    begun.elapsed()
}

#[test]
fn a_period_is_compacted_as_by_etcd() {
    let Some(programs) = both("a_period_is_compacted_as_by_etcd") else { return };
    for program in &programs {
        let server = Server::start(program, &["--auto-compaction-mode=periodic", "--auto-compaction-retention=3s"]);
        let took = wait_compacted(&server, Duration::from_secs(30));
        assert!(took >= Duration::from_secs(2), "{:?}: what is young is kept: {took:?}", program.dialect);
        println!("{:?}: after {took:?}", program.dialect);
    }
}

/// etcd looks every five minutes, so this takes as long: run on request.
#[test]
fn a_number_of_revisions_is_kept_as_by_etcd() {
    const TEST: &str = "a_number_of_revisions_is_kept_as_by_etcd";
    if std::env::var_os("DAYMARK_SLOW_TESTS").is_none() {
        return skip::unable(TEST, "it takes five minutes: set DAYMARK_SLOW_TESTS=1");
    }
    let Some(programs) = both(TEST) else { return };
    let servers = programs
        .map(|program| Server::start(&program, &["--auto-compaction-mode=revision", "--auto-compaction-retention=10"]));
    for server in &servers {
        let took = wait_compacted(server, Duration::from_secs(330));
        println!("{}: after {took:?}", server.endpoint());
    }
}
