//! A member with TLS as a process: etcdctl with certificates of every kind, names as users, files that rotate under load,
//! connections that never get anywhere, unix sockets and listeners apart. The parts are tested in `server/src/net`.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use daymark_client::{Client, Config, config::Tls};
use daymark_tests::{
    ctl::{Answer, Etcdctl},
    etcd,
    pki::{self, Authority},
    ports,
    process::{Program, Server, http_get},
    skip,
    wire::runtime,
};

/// A member that also speaks TLS on its port, with this certificate.
fn secure(authority: &Authority, extra: &[&str]) -> Server {
    let (certificate, key) = (authority.file("server.pem"), authority.file("server.key"));
    let given = ["--cert-file", &certificate, "--key-file", &key];
    Server::start_secure_too(&Program::daymark(), &[&given, extra].concat())
}

/// The newest etcdctl that is there, or nothing after saying so.
fn etcdctl(test: &str) -> Option<Etcdctl> {
    etcd::etcdctls(test).pop()
}

fn run(ctl: &Etcdctl, endpoint: &str, flags: &[&str], command: &str) -> Answer {
    let fixed = ["--dial-timeout=2s", "--command-timeout=2s"];
    let args = fixed.iter().copied().chain(flags.iter().copied()).chain(command.split(' '));
    ctl.run(endpoint, &args.map(str::to_owned).collect::<Vec<_>>(), "")
}

/// Flags of etcdctl that show this certificate.
fn showing(authority: &Authority, file: &str) -> [String; 3] {
    let file = |ending: &str| authority.file(&format!("{file}.{ending}"));
    [
        format!("--cacert={}", authority.file("ca.pem")),
        format!("--cert={}", file("pem")),
        format!("--key={}", file("key")),
    ]
}

fn texts(flags: &[String]) -> Vec<&str> {
    flags.iter().map(String::as_str).collect()
}

#[test]
fn etcdctl_is_let_in_by_good_certificates_only() {
    let Some(ctl) = etcdctl("etcdctl_is_let_in_by_good_certificates_only") else { return };
    let (authority, other) = (Authority::new(), Authority::new());
    authority.issue("server", "server");
    authority.issue("alice", "alice");
    authority.issue_expired("expired", "alice");
    authority.issue_numbered("revoked", "alice", 4711);
    authority.revoke("crl", &[1, 4711]);
    other.issue("alice", "alice");
    let (ca, crl) = (authority.file("ca.pem"), authority.file("crl"));
    let server = secure(&authority, &["--client-cert-auth", "--trusted-ca-file", &ca, "--client-crl-file", &crl]);
    let endpoint = format!("https://{}", server.endpoint());
    let alice = showing(&authority, "alice");
    let put = run(&ctl, &endpoint, &texts(&alice), "put key value");
    assert_eq!((put.code, put.stdout.trim()), (Some(0), "OK"), "{put:?}");
    let mut foreign = showing(&other, "alice");
    foreign[0].clone_from(&alice[0]);
    for (what, flags) in [
        ("no certificate", vec![alice[0].clone()]),
        ("expired", showing(&authority, "expired").to_vec()),
        ("revoked", showing(&authority, "revoked").to_vec()),
        ("of another authority", foreign.to_vec()),
        ("a server of an authority that is not trusted", vec![format!("--cacert={}", other.file("ca.pem"))]),
    ] {
        let answer = run(&ctl, &endpoint, &texts(&flags), "get key");
        assert_eq!((answer.code, answer.stdout.as_str()), (Some(1), ""), "{what}: {answer:?}");
    }
    let log = server.log().to_lowercase();
    for word in ["rejected connection on client endpoint", "revoked", "expired", "badsignature"] {
        assert!(log.contains(word), "the log does not say {word:?}:\n{log}");
    }
}

#[test]
fn names_of_certificates_are_users() {
    let Some(ctl) = etcdctl("names_of_certificates_are_users") else { return };
    let authority = Authority::new();
    for name in ["server", "root", "alice"] {
        authority.issue(name, name);
    }
    let ca = authority.file("ca.pem");
    let server = secure(&authority, &["--client-cert-auth", "--trusted-ca-file", &ca, "--bcrypt-cost=4"]);
    let endpoint = format!("https://{}", server.endpoint());
    let ask = |name: &str, command: &str| run(&ctl, &endpoint, &texts(&showing(&authority, name)), command);
    for command in [
        "user add root:secret",
        "role add root",
        "user grant-role root root",
        "user add alice --no-password",
        "role add reader",
        "role grant-permission reader read shared",
        "user grant-role alice reader",
        "auth enable",
        "put shared value",
    ] {
        let answer = ask("root", command);
        assert_eq!(answer.code, Some(0), "{command}: {answer:?}");
    }
    let read = ask("alice", "get shared");
    assert_eq!((read.code, read.stdout.as_str()), (Some(0), "shared\nvalue\n"), "{read:?}");
    for refused in ["put shared other", "get secret"] {
        let answer = ask("alice", refused);
        assert!(answer.code != Some(0) && answer.stderr.contains("permission denied"), "{refused}: {answer:?}");
    }
    // Whoever the certificate names, a password counts first.
    let flags = showing(&authority, "alice");
    let as_root = [texts(&flags), vec!["--user=root:secret"]].concat();
    assert_eq!(run(&ctl, &endpoint, &as_root, "put shared other").code, Some(0));
}

#[test]
fn a_self_made_certificate_is_enough_to_be_encrypted() {
    let Some(ctl) = etcdctl("a_self_made_certificate_is_enough_to_be_encrypted") else { return };
    let server = Server::start_secure_too(&Program::daymark(), &["--auto-tls"]);
    let endpoint = format!("https://{}", server.endpoint());
    let made = server.data_dir().join("fixtures/client/cert.pem");
    let trusted = format!("--cacert={}", made.display());
    for flags in [vec!["--insecure-skip-tls-verify"], vec![trusted.as_str()]] {
        let put = run(&ctl, &endpoint, &flags, "put key value");
        assert_eq!(put.code, Some(0), "{flags:?}: {put:?}");
    }
}

/// Clients that connect anew for every few calls, while certificate and key are replaced, one after the other.
#[test]
fn certificates_rotate_under_load_without_a_failed_request() {
    let authority = Authority::new();
    authority.issue("server", "server");
    authority.issue("client", "client");
    let ca = authority.file("ca.pem");
    let server = secure(&authority, &["--client-cert-auth", "--trusted-ca-file", &ca]);
    let tls = Tls {
        cacert: Some(authority.path("ca.pem")),
        cert: Some(authority.path("client.pem")),
        key: Some(authority.path("client.key")),
        ..Tls::default()
    };
    let config = Config::new([format!("https://{}", server.endpoint())]).with_tls(tls);
    // A read that fails is not repeated, so that a failure is seen.
    let config = Config { read_retries: 0, connect_timeout: Duration::from_secs(10), ..config };
    let (stop, requests, connections) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let rotations = 30;
    let failures = runtime().block_on(async {
        let clients: Vec<_> = (0..8)
            .map(|number| {
                let (config, stop) = (config.clone(), stop.clone());
                let (requests, connections) = (requests.clone(), connections.clone());
                tokio::spawn(async move {
                    let mut failures = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let client = Client::new(config.clone()).expect("a valid configuration");
                        connections.fetch_add(1, Ordering::Relaxed);
                        for _ in 0..3 {
                            let put = client.kv().put(format!("key{number}"), "value").await.err();
                            let get = client.kv().get(format!("key{number}")).await.err();
                            failures.extend([put, get].into_iter().flatten().map(|error| error.to_string()));
                            requests.fetch_add(2, Ordering::Relaxed);
                        }
                    }
                    failures
                })
            })
            .collect();
        for rotation in 0..rotations {
            let before = requests.load(Ordering::Relaxed);
            let (certificate, key) = authority.make("server", |_| {});
            pki::replace(&authority.path("server.pem"), certificate);
            tokio::time::sleep(Duration::from_millis(30)).await;
            pki::replace(&authority.path("server.key"), key);
            // Until it is taken, and clients have connected with it.
            for _ in 0..500 {
                let reloads = server.log().matches("reloaded TLS certificates").count();
                if reloads > rotation && requests.load(Ordering::Relaxed) >= before + 100 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let mut failures = Vec::new();
        for client in clients {
            failures.extend(client.await.expect("no panic"));
        }
        failures
    });
    let reloads = server.log().matches("reloaded TLS certificates").count();
    let (requests, connections) = (requests.load(Ordering::Relaxed), connections.load(Ordering::Relaxed));
    println!("{requests} requests on {connections} connections, {reloads} reloads: {} failures", failures.len());
    assert_eq!(failures, Vec::<String>::new());
    assert!(reloads >= rotations, "{reloads} reloads for {rotations} rotations");
    assert!(connections >= 8 * 10, "{connections} connections are no load");
}

#[test]
fn a_thousand_half_open_connections_hinder_nobody_and_handshakes_end() {
    let authority = Authority::new();
    authority.issue("server", "server");
    let server = secure(&authority, &[]);
    let begun = Instant::now();
    let silent: Vec<_> = (0..1000)
        .map(|number| {
            let mut stream = TcpStream::connect(server.endpoint()).expect("connect");
            if number % 2 == 0 {
                // The beginning of a client's first words that never go on.
                stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).expect("write");
            }
            stream
        })
        .collect();
    let tls = Tls { cacert: Some(authority.path("ca.pem")), ..Tls::default() };
    let config = Config::new([format!("https://{}", server.endpoint())]).with_tls(tls);
    runtime().block_on(async {
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let asked = Instant::now();
            let client = Client::new(config.clone()).expect("a valid configuration");
            client.kv().put("key", "value").await.expect("put beside half-open connections");
            slowest = slowest.max(asked.elapsed());
        }
        println!("slowest connection and put beside 1000 half-open connections: {slowest:?}");
    });
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("timeout");
        let mut rest = Vec::new();
        // An alert may come first; a reset is an end as well.
        let ended = stream.read_to_end(&mut rest);
        assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{ended:?}");
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(25), "half-open connections were closed after {took:?} only");
}

#[test]
fn a_unix_socket_is_served_and_its_file_cleaned_up() {
    let Some(ctl) = etcdctl("a_unix_socket_is_served_and_its_file_cleaned_up") else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("daymark.sock");
    let socket = format!("unix://{}", path.display());
    let http = format!("http://127.0.0.1:{}", ports::free());
    let mut server = Server::start_also_on(&Program::daymark(), &socket, &[]);
    let put = run(&ctl, &socket, &[], "put key value");
    assert_eq!(put.code, Some(0), "{put:?}");
    runtime().block_on(async {
        let client = Client::new(Config::new([socket.clone()])).expect("a valid endpoint");
        assert_eq!(client.kv().get("key").await.expect("get").kvs.len(), 1);
    });
    server.kill();
    assert!(path.exists(), "nobody has cleaned up");
    server.restart();
    assert_eq!(run(&ctl, &socket, &[], "get key").stdout, "key\nvalue\n", "the dead socket was replaced");
    let second = ["--listen-client-urls", &format!("{http},{socket}"), "--advertise-client-urls", &http];
    let mut second = Server::prepare(&Program::daymark(), &directory.path().join("second"), &second);
    let refused = second.refuse(Duration::from_secs(10));
    assert!(refused.stderr.contains("in use"), "a live socket is not taken away: {}", refused.stderr);
    assert_eq!(run(&ctl, &socket, &[], "get key").code, Some(0));
    server.terminate();
    assert!(!path.exists(), "the file is removed at the end");
}

#[test]
fn http_and_grpc_are_served_apart_where_that_is_wanted() {
    let Some(ctl) = etcdctl("http_and_grpc_are_served_apart_where_that_is_wanted") else { return };
    let authority = Authority::new();
    authority.issue("server", "server");
    let (grpc, metrics) = (ports::free(), ports::free());
    let (certificate, key) = (authority.file("server.pem"), authority.file("server.key"));
    let server = Server::start_http_apart(
        &Program::daymark(),
        &format!("http://127.0.0.1:{grpc}"),
        &[
            &format!("--listen-metrics-urls=https://127.0.0.1:{metrics}"),
            "--cert-file",
            &certificate,
            "--key-file",
            &key,
        ],
    );
    let http: u16 = server.endpoint().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    assert_eq!(http_get(http, "/version").expect("HTTP").0, 200);
    assert!(!matches!(http_get(grpc, "/version"), Ok((200, _))), "the port of gRPC speaks nothing else");
    assert_eq!(run(&ctl, &format!("127.0.0.1:{grpc}"), &[], "put key value").code, Some(0));
    assert_ne!(run(&ctl, &format!("127.0.0.1:{http}"), &[], "get key").code, Some(0), "the port of HTTP likewise");
    let tls = Tls { cacert: Some(authority.path("ca.pem")), ..Tls::default() };
    let dialer = daymark_client::dial::Dialer::new(&format!("https://127.0.0.1:{metrics}"), Some(&tls));
    let dialer = dialer.expect("a valid endpoint");
    runtime().block_on(async {
        // It speaks HTTP/2, which the client asks for; gRPC is not what it serves.
        let (mut send, connection) =
            h2::client::handshake(dialer.connect().await.expect("connect")).await.expect("HTTP/2");
        tokio::spawn(connection);
        for (path, expected) in [("/metrics", 200), ("/health", 200), ("/version", 404)] {
            let request = http::Request::get(format!("https://localhost{path}")).body(()).expect("a request");
            let response = send.send_request(request, true).expect("send").0.await.expect("an answer");
            assert_eq!(response.status().as_u16(), expected, "{path}");
        }
    });
    let log = server.log();
    for (traffic, port) in [("\"grpc\"", grpc), ("\"http\"", http)] {
        let line = log.lines().find(|line| {
            line.contains("serving client traffic insecurely") && line.contains(&format!("127.0.0.1:{port}"))
        });
        assert!(line.is_some_and(|line| line.contains(&format!("\"traffic\":{traffic}"))), "{line:?}");
    }
}

#[test]
fn what_cannot_be_served_is_refused_at_the_start() {
    let authority = Authority::new();
    authority.issue("server", "server");
    authority.issue("other", "server");
    let file = |name: &str| authority.file(name);
    let https = format!("https://127.0.0.1:{}", ports::free());
    let url = [format!("--listen-client-urls={https}"), format!("--advertise-client-urls={https}")];
    let certificate =
        |key: &str| vec![format!("--cert-file={}", file("server.pem")), format!("--key-file={}", file(key))];
    for (flags, words) in [
        (url.to_vec(), vec!["--cert-file, --key-file", https.as_str()]),
        ([&url[..], &certificate("missing.key")].concat(), vec!["--key-file", "missing.key"]),
        ([&url[..], &certificate("other.key")].concat(), vec!["other.key", "KeyMismatch"]),
        ([&url[..], &certificate("server.key"), &["--client-cert-auth".into()]].concat(), vec!["--trusted-ca-file"]),
        (vec![format!("--cert-file={}", file("server.pem"))], vec!["--key-file"]),
        (vec!["--cipher-suites=TLS_NONSENSE".into()], vec!["unexpected TLS cipher suite \\\"TLS_NONSENSE\\\""]),
        (vec!["--tls-min-version=TLS1.1".into()], vec!["unexpected TLS version \\\"TLS1.1\\\""]),
        (
            vec!["--tls-min-version=TLS1.3".into(), "--tls-max-version=TLS1.2".into()],
            vec!["min version (TLS1.3) is greater than max version (TLS1.2)"],
        ),
        (
            vec!["--tls-min-version=TLS1.3".into(), "--cipher-suites=TLS_AES_128_GCM_SHA256".into()],
            vec!["cipher suites cannot be configured when only TLS1.3 is enabled"],
        ),
        (vec!["--listen-metrics-urls=https://127.0.0.1:1".into()], vec!["must be provided for metrics secure url"]),
    ] {
        let home = tempfile::tempdir().expect("a directory");
        let data = home.path().join("data");
        let ended = refusal(&data, &flags);
        for word in words {
            assert!(ended.contains(word), "{flags:?} does not say {word:?}: {ended}");
        }
        assert!(!data.exists(), "{flags:?}: the data directory was created");
    }
}

fn refusal(data: &Path, flags: &[String]) -> String {
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let ended = Server::prepare(&Program::daymark(), data, &flags).refuse(Duration::from_secs(10));
    assert!(!ended.status.success(), "{flags:?}: {ended:?}");
    ended.stderr
}

/// What others than us check a server of HTTP/2 for, without three cases: a preface that is none is taken for HTTP/1 and
/// answered as that (3.5); and the tool takes it for granted that nothing is answered before it has made its mistake, or
/// has asked a hundred times (5.1.2 and 8.1).
const RULES: &str = "generic http2/3.5/1 http2/4 http2/5.1/1 http2/5.1/2 http2/5.1/3 http2/5.1/4 http2/5.1/5 http2/5.1/6 \
                     http2/5.1/7 http2/5.1/8 http2/5.1/9 http2/5.1/10 http2/5.1/11 http2/5.1/12 http2/5.1/13 \
                     http2/5.1.1 http2/5.3 http2/5.4 http2/6 http2/7 http2/8.1.2 http2/8.2 hpack";

/// Over TLS, where there is something that answers with data. An answer that comes before the mistake is no fault: what
/// fails once has to pass in one of the next rounds.
#[test]
fn the_rules_of_http2_are_kept() {
    let tool = etcd::tools_directory().join("h2spec/h2spec");
    if !tool.exists() {
        let remedy = "install Go, then run scripts/install-test-tools.sh";
        return skip::missing_tool("the_rules_of_http2_are_kept", &tool.display().to_string(), remedy);
    }
    let authority = Authority::new();
    authority.issue("server", "server");
    for http2_server in ["lean", "h2"] {
        let server = secure(&authority, &["--daymark-http2-server", http2_server]);
        let mut failing = failing_rules(&tool, &server);
        for _ in 0..20 {
            if failing.is_empty() {
                break;
            }
            let again = failing_rules(&tool, &server);
            failing.retain(|rule| again.contains(rule));
        }
        assert!(failing.is_empty(), "{http2_server}: {failing:?}");
    }
}

/// The rules that h2spec finds broken in one round.
fn failing_rules(tool: &Path, server: &Server) -> BTreeSet<String> {
    let endpoint = server.endpoint();
    let (host, port) = endpoint.rsplit_once(':').expect("a port");
    let mut command = Command::new(tool);
    command.args(["--tls", "--insecure", "--path", "/version", "--timeout", "2", "--host", host, "--port", port]);
    let output = command.args(RULES.split(' ')).output().expect("run h2spec");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("140 tests, "), "all of them are run: {said}");
    said.lines().filter_map(|line| line.trim().strip_prefix('\u{d7}')).map(str::to_owned).collect()
}
