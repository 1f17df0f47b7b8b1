//! TLS over real sockets: who is let in and as whom, which protocols are spoken inside, and files that change.

use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::tls::Tls;
use super::*;
use crate::config::tls::{CertificateSource, SERVED_SUITES, TlsOptions, Versions};

/// A certificate and its key, PEM.
struct Pair {
    certificate: String,
    key: String,
}

/// An authority and what it issues.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("key");
        let certificate = parameters.self_signed(&key).expect("authority").pem();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut parameters = CertificateParams::new(["127.0.0.1".into(), "localhost".into()]).expect("names");
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut parameters);
        let key = KeyPair::generate().expect("key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("certificate").pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// A list of revoked serial numbers, PEM.
    fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(2020, 2, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("list").pem().expect("PEM")
    }
}

/// Files in a directory of their own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes aside and moves into place, as those do who rotate certificates.
    fn put(&self, name: &str, text: &str) -> PathBuf {
        let aside = self.path("aside");
        std::fs::write(&aside, text).expect("write");
        std::fs::rename(&aside, self.path(name)).expect("rename");
        self.path(name)
    }

    fn options(&self, server: &Pair) -> TlsOptions {
        let (certificate, key) = (self.put("cert", &server.certificate), self.put("key", &server.key));
        TlsOptions {
            certificate: CertificateSource::Files { certificate, key },
            trusted_ca: None,
            names_are_users: false,
            revocations: None,
            allowed_hostnames: Vec::new(),
            allowed_common_names: Vec::new(),
            cipher_suites: Vec::new(),
            versions: Versions { tls12: true, tls13: true },
        }
    }
}

fn serve(options: &TlsOptions) -> Server {
    let tls = Tls::open(options).expect("good files");
    Server::start_on(&["https://127.0.0.1:0"], Server::transport(), Vec::new(), Some(tls))
}

/// How a client connects.
#[derive(Clone)]
struct Connect<'a> {
    trusts: &'a str,
    shows: Option<&'a Pair>,
    protocols: &'a [&'a str],
    versions: &'a [&'static rustls::SupportedProtocolVersion],
    suite: Option<&'a str>,
}

impl<'a> Connect<'a> {
    fn new(authority: &'a Authority) -> Self {
        let versions = rustls::ALL_VERSIONS;
        Self { trusts: &authority.certificate, shows: None, protocols: &["h2"], versions, suite: None }
    }

    fn showing(self, pair: &'a Pair) -> Self {
        Self { shows: Some(pair), ..self }
    }

    async fn to(&self, server: &Server) -> std::io::Result<TlsStream<TcpStream>> {
        let mut provider = rustls::crypto::ring::default_provider();
        provider.cipher_suites.retain(|suite| self.suite.is_none_or(|wanted| format!("{:?}", suite.suite()) == wanted));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.trusts.as_bytes()).expect("PEM")).expect("authority");
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider));
        let builder = builder.with_protocol_versions(self.versions).map_err(std::io::Error::other)?;
        let builder = builder.with_root_certificates(roots);
        let mut config = match self.shows {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(chain, key).expect("a pair")
            }
        };
        config.alpn_protocols = self.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = TcpStream::connect(server.address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::from(server.address.ip()), stream).await
    }

    /// Why there is no connection.
    async fn refusal(&self, server: &Server) -> String {
        match self.to(server).await {
            Err(error) => error.to_string(),
            // With TLS 1.3 a client is through before the server has looked at its certificate.
            Ok(mut stream) => stream.read(&mut [0; 1]).await.expect_err("let in").to_string(),
        }
    }

    /// What the service sees as the name of the certificate, or why there is no answer.
    async fn name(&self, server: &Server, extra: &[(&'static str, &str)]) -> Result<String, String> {
        let stream = self.to(server).await.map_err(|error| error.to_string())?;
        let client = Client::over(stream).await;
        let answer = client.raw("/etcdserverpb.KV/Put", extra, frame(&put_request("who"))).await;
        answer.map(|answer| answer.text).map_err(|error| error.to_string())
    }
}

fn run<F: Future<Output = ()>>(server: Server, test: impl FnOnce(Rc<Server>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let server = Rc::new(server);
    runtime.block_on(test(server.clone()));
    assert!(Rc::into_inner(server).expect("the test is over").threads.stop(), "a net thread panicked");
}

#[test]
fn calls_and_plain_http_are_served_over_either_version_of_http() {
    let authority = Authority::new("ca");
    let files = Files::new();
    let server = serve(&files.options(&authority.issue("server", |_| {})));
    run(server, |server| async move {
        let connect = Connect::new(&authority);
        let stream = connect.to(&server).await.expect("handshake");
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let client = Client::over(stream).await;
        assert_eq!(client.put("k").await.code, 0);
        let head = ::http::Request::get("https://localhost/version").body(()).expect("request");
        let (response, _) = client.send.clone().ready().await.expect("ready").send_request(head, true).expect("send");
        let response = response.await.expect("plain HTTP beside gRPC");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"application/json".parse().expect("value"))
        );
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            text.extend_from_slice(&data.expect("data"));
        }
        assert!(text.starts_with(b"{\"etcdserver\""), "{}", String::from_utf8_lossy(&text));
        for (protocols, chosen) in
            [(&["http/1.1"][..], Some(&b"http/1.1"[..])), (&[], None), (&["http/1.1", "h2"], Some(b"h2"))]
        {
            let mut stream = Connect { protocols, ..connect.clone() }.to(&server).await.expect("handshake");
            assert_eq!(stream.get_ref().1.alpn_protocol(), chosen, "{protocols:?}");
            if chosen != Some(b"h2") {
                let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
                stream.write_all(request).await.expect("write");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("a proper end");
                assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\"reason\":\"\"}"), "{answer}");
            }
        }
        // Unencrypted bytes are no handshake.
        let mut plain = TcpStream::connect(server.address).await.expect("connect");
        plain.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("write");
        let mut answer = Vec::new();
        plain.read_to_end(&mut answer).await.expect("an alert, perhaps, and the end");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
        // The server may count after the other end has seen the end.
        let counted = |text: &str| {
            text.contains("daymark_tls_handshake_failures_total 1\n")
                && text.contains("daymark_tls_handshakes_total 4\n")
        };
        for _ in 0..500 {
            if counted(&server.metrics.text()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("not counted: {}", server.metrics.text());
    });
}

#[test]
fn only_good_certificates_are_let_in_and_their_names_are_users() {
    let (authority, other) = (Authority::new("ca"), Authority::new("other"));
    let files = Files::new();
    let mut options = files.options(&authority.issue("server", |_| {}));
    options.trusted_ca = Some(files.put("ca", &authority.certificate));
    options.revocations = Some(files.put("crl", &authority.revoke(&[77, 300])));
    options.names_are_users = true;
    run(serve(&options), |server| async move {
        let connect = Connect::new(&authority);
        let alice = authority.issue("alice", |_| {});
        assert_eq!(connect.clone().showing(&alice).name(&server, &[]).await.as_deref(), Ok("alice"));
        let through_gateway = [("grpcgateway-accept", "application/json")];
        assert_eq!(connect.clone().showing(&alice).name(&server, &through_gateway).await.as_deref(), Ok("nobody"));
        let nameless = authority.issue("", |_| {});
        assert_eq!(connect.clone().showing(&nameless).name(&server, &[]).await.as_deref(), Ok("nobody"));
        let tls12 = Connect { versions: &[&rustls::version::TLS12], ..connect.clone().showing(&alice) };
        assert_eq!(tls12.name(&server, &[]).await.as_deref(), Ok("alice"));
        let expired = |p: &mut CertificateParams| p.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let early = |p: &mut CertificateParams| p.not_before = rcgen::date_time_ymd(2100, 1, 1);
        let of_server = |p: &mut CertificateParams| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let revoked = |p: &mut CertificateParams| p.serial_number = Some(SerialNumber::from(300_u64));
        for (what, pair, words) in [
            ("of another authority", other.issue("alice", |_| {}), "UnknownCA"),
            ("expired", authority.issue("alice", expired), "CertificateExpired"),
            ("not valid yet", authority.issue("alice", early), "CertificateExpired"),
            ("for servers only", authority.issue("alice", of_server), "BadCertificate|UnsupportedCertificate"),
            ("revoked", authority.issue("alice", revoked), "CertificateRevoked"),
        ] {
            let error = connect.clone().showing(&pair).refusal(&server).await;
            assert!(words.split('|').any(|word| error.contains(word)), "{what}: {error}");
        }
        let error = connect.refusal(&server).await;
        assert!(error.contains("CertificateRequired"), "{error}");
    });
}

/// Sends a document to the gateway over HTTP/2: status and body, of a stream its first piece.
async fn post(client: &Client, path: &str, document: &'static str) -> (u16, String) {
    let head = ::http::Request::post(format!("https://localhost{path}")).header("content-type", "application/json");
    let mut send = client.send.clone().ready().await.expect("ready");
    let (response, mut stream) = send.send_request(head.body(()).expect("request"), false).expect("send");
    stream.send_data(document.into(), true).expect("data");
    let response = response.await.expect("an answer");
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let piece = body.data().await.expect("a body").expect("data");
    (status, String::from_utf8_lossy(&piece).into_owned())
}

#[test]
fn at_the_gateway_the_name_of_a_certificate_stands_for_nobody() {
    let authority = Authority::new("ca");
    let files = Files::new();
    let mut options = files.options(&authority.issue("server", |_| {}));
    options.trusted_ca = Some(files.put("ca", &authority.certificate));
    options.names_are_users = true;
    run(serve(&options), |server| async move {
        let pairs = [authority.issue("alice", |_| {}), authority.issue("", |_| {})];
        for (auth, status) in [(0, [500, 500]), (1, [400, 500])] {
            server.seen.auth.store(auth, Ordering::SeqCst);
            for (pair, status) in pairs.iter().zip(status) {
                let stream = Connect::new(&authority).showing(pair).to(&server).await.expect("handshake");
                let client = Client::over(stream).await;
                let (seen, text) = post(&client, "/v3/kv/put", r#"{"key":"d2hv"}"#).await;
                assert_eq!(seen, status, "{text}");
                let is_nobody = text == r#"{"code":13,"message":"nobody"}"#;
                assert!(is_nobody || text.contains("will be ignored"), "{text}");
            }
        }
        server.seen.auth.store(0, Ordering::SeqCst);
        let client =
            Client::over(Connect::new(&authority).showing(&pairs[0]).to(&server).await.expect("handshake")).await;
        let (status, line) = post(&client, "/v3/lease/keepalive", r#"{"ID":7}"#).await;
        assert_eq!((status, &*line), (200, "{\"result\":{\"ID\":\"7\",\"TTL\":\"5\"}}\n"), "streams, too");
    });
}

#[test]
fn a_name_is_no_user_unless_it_was_asked_for_and_must_be_allowed_where_some_are() {
    let authority = Authority::new("ca");
    let files = Files::new();
    let mut options = files.options(&authority.issue("server", |_| {}));
    options.trusted_ca = Some(files.put("ca", &authority.certificate));
    options.allowed_hostnames = vec!["a.example".into(), "a.b.example".into(), "10.0.0.7".into()];
    let authority = Rc::new(authority);
    let issuer = authority.clone();
    run(serve(&options), |server| async move {
        let authority = issuer;
        for (name, expected) in [("a.example", true), ("*.b.example", true), ("10.0.0.7", true), ("c.example", false)] {
            let names = CertificateParams::new([name.to_owned()]).expect("name").subject_alt_names;
            let pair = authority.issue("alice", |parameters| parameters.subject_alt_names = names);
            let seen = Connect::new(&authority).showing(&pair).name(&server, &[]).await;
            assert_eq!(seen.as_deref().ok(), expected.then_some("nobody"), "{name}: {seen:?}");
        }
    });
    options.allowed_hostnames = Vec::new();
    options.allowed_common_names = vec!["alice".into(), "bob".into()];
    run(serve(&options), |server| async move {
        for (name, expected) in [("alice", true), ("bob", true), ("alice2", false), ("", false)] {
            let pair = authority.issue(name, |_| {});
            let seen = Connect::new(&authority).showing(&pair).name(&server, &[]).await;
            assert_eq!(seen.is_ok(), expected, "{name}: {seen:?}");
        }
    });
}

#[test]
fn versions_and_suites_are_as_configured() {
    let authority = Authority::new("ca");
    let files = Files::new();
    let pair = authority.issue("server", |_| {});
    let (tls12, tls13) = (&[&rustls::version::TLS12][..], &[&rustls::version::TLS13][..]);
    let only = |tls12, tls13| TlsOptions { versions: Versions { tls12, tls13 }, ..files.options(&pair) };
    let suites = |names: &[&'static str]| TlsOptions { cipher_suites: names.to_vec(), ..files.options(&pair) };
    let [_, aes256, ..] = SERVED_SUITES;
    let chacha = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    for (options, accepted, refused) in [
        (only(true, false), vec![(tls12, None)], vec![(tls13, None)]),
        (only(false, true), vec![(tls13, None)], vec![(tls12, None)]),
        // Suites are of TLS 1.2; TLS 1.3 keeps its own.
        (suites(&[aes256]), vec![(tls12, Some(aes256)), (tls13, None)], vec![(tls12, Some(chacha))]),
        (suites(&[aes256, chacha]), vec![(tls12, Some(aes256)), (tls12, Some(chacha))], vec![]),
    ] {
        run(serve(&options), |server| {
            let authority = &authority;
            async move {
                for (cases, expected) in [(accepted, true), (refused, false)] {
                    for (versions, suite) in cases {
                        let connect = Connect { versions, suite, ..Connect::new(authority) };
                        let seen = connect.name(&server, &[]).await;
                        assert_eq!(seen.is_ok(), expected, "{versions:?} {suite:?}: {seen:?}");
                    }
                }
            }
        });
    }
}

#[test]
fn one_port_serves_encrypted_and_unencrypted_connections() {
    let authority = Authority::new("ca");
    let files = Files::new();
    let tls = Tls::open(&files.options(&authority.issue("server", |_| {}))).expect("good files");
    let urls = ["http://127.0.0.1:0", "https://127.0.0.1:0"];
    let server = Server::start_on(&urls, Server::transport(), Vec::new(), Some(tls));
    run(server, |server| async move {
        assert_eq!(Connect::new(&authority).name(&server, &[]).await.as_deref(), Ok("nobody"));
        assert_eq!(server.connect().await.put("k").await.code, 0);
        let asked = server.clone();
        assert_eq!(asked.http1("GET /health").0, "200");
    });
}

#[test]
fn changed_files_count_from_the_next_handshake_on() {
    let (authority, later) = (Authority::new("ca"), Authority::new("later"));
    let files = Files::new();
    let mut options = files.options(&authority.issue("server", |_| {}));
    options.trusted_ca = Some(files.put("ca", &authority.certificate));
    options.revocations = Some(files.put("crl", &authority.revoke(&[1])));
    options.names_are_users = true;
    run(serve(&options), |server| async move {
        let alice = authority.issue("alice", |p| p.serial_number = Some(SerialNumber::from(9_u64)));
        let as_alice = Connect::new(&authority).showing(&alice);
        assert_eq!(as_alice.name(&server, &[]).await.as_deref(), Ok("alice"));
        // A certificate whose key has not come yet, and one that is cut off: the old ones go on serving.
        let next = later.issue("server", |_| {});
        files.put("cert", &next.certificate);
        assert_eq!(as_alice.name(&server, &[]).await.as_deref(), Ok("alice"));
        files.put("cert", &next.certificate[..100]);
        assert_eq!(as_alice.name(&server, &[]).await.as_deref(), Ok("alice"));
        files.put("cert", &next.certificate);
        files.put("key", &next.key);
        let error = as_alice.refusal(&server).await;
        assert!(error.contains("UnknownIssuer"), "{error}");
        let as_alice = Connect::new(&later).showing(&alice);
        assert_eq!(as_alice.name(&server, &[]).await.as_deref(), Ok("alice"));
        // In place, with the same size.
        std::fs::write(files.path("crl"), authority.revoke(&[9])).expect("write");
        let error = as_alice.refusal(&server).await;
        assert!(error.contains("CertificateRevoked"), "{error}");
        std::fs::remove_file(files.path("crl")).expect("remove");
        assert!(
            as_alice.refusal(&server).await.contains("CertificateRevoked"),
            "a list that is gone revokes as before"
        );
        files.put("crl", &authority.revoke(&[]));
        assert_eq!(as_alice.name(&server, &[]).await.as_deref(), Ok("alice"));
        files.put("ca", &later.certificate);
        assert!(as_alice.refusal(&server).await.contains("UnknownCA"), "signed by nobody who is trusted now");
    });
}

#[test]
fn what_cannot_be_used_is_refused_with_its_file() {
    let authority = Authority::new("ca");
    let files = Files::new();
    let (one, two) = (authority.issue("one", |_| {}), authority.issue("two", |_| {}));
    let good = files.options(&one);
    let with = |certificate: &str, key: &str| TlsOptions {
        certificate: CertificateSource::Files { certificate: files.path(certificate), key: files.path(key) },
        ..good.clone()
    };
    files.put("other-key", &two.key);
    files.put("empty", "");
    for (options, words) in [
        (with("missing", "key"), ["cert-file", "missing"]),
        (with("cert", "missing"), ["key-file", "missing"]),
        (with("empty", "key"), ["cert-file", "no certificate"]),
        (with("cert", "other-key"), ["other-key", "match"]),
        (TlsOptions { trusted_ca: Some(files.path("empty")), ..good.clone() }, ["trusted-ca-file", "empty"]),
        (
            TlsOptions {
                trusted_ca: Some(files.put("ca", &authority.certificate)),
                revocations: Some(files.path("ca")),
                ..good.clone()
            },
            ["client-crl-file", "ca"],
        ),
    ] {
        let error = Tls::open(&options).expect_err(words[0]).to_string();
        assert!(words.iter().all(|word| error.to_lowercase().contains(word)), "{words:?}: {error}");
    }
}

#[test]
fn a_self_made_certificate_is_kept_and_good_for_its_hosts() {
    let files = Files::new();
    let directory = files.path("fixtures");
    let source = |hosts: &[&str]| CertificateSource::SelfMade {
        directory: directory.clone(),
        hosts: hosts.iter().map(ToString::to_string).collect(),
        validity_years: 1,
    };
    let authority = Authority::new("ca");
    let made = TlsOptions { certificate: source(&["127.0.0.1"]), ..files.options(&authority.issue("unused", |_| {})) };
    let server = serve(&made);
    let text = std::fs::read_to_string(directory.join("cert.pem")).expect("kept");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(directory.join("key.pem")).expect("kept").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the key is for this user alone");
    run(server, |server| async move {
        // The certificate vouches for itself.
        let connect = Connect { trusts: &text, ..Connect::new(&authority) };
        assert_eq!(connect.name(&server, &[]).await.as_deref(), Ok("nobody"));
        Tls::open(&made).expect("again");
        assert_eq!(std::fs::read_to_string(directory.join("cert.pem")).expect("kept"), text, "not made anew");
    });
}

#[test]
fn half_open_connections_make_room_for_those_that_mean_it() {
    let authority = Authority::new("ca");
    let files = Files::new();
    let server = serve(&files.options(&authority.issue("server", |_| {})));
    run(server, |server| async move {
        let mut silent = Vec::new();
        for number in 0..2500 {
            let mut stream = TcpStream::connect(server.address).await.expect("connect");
            if number % 2 == 0 {
                // The beginning of a handshake that never goes on.
                stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).await.expect("write");
            }
            silent.push(stream);
            if number % 500 == 0 {
                assert_eq!(Connect::new(&authority).name(&server, &[]).await.as_deref(), Ok("nobody"), "{number}");
            }
        }
        let open = || (0..2).map(|n| server.metrics.net(n).connections.load(Ordering::Relaxed)).sum::<u64>();
        eventually("the oldest have gone", || open() <= 2 * limits::NEWCOMERS_MAX as u64).await;
        assert_eq!(Connect::new(&authority).name(&server, &[]).await.as_deref(), Ok("nobody"));
    });
}
