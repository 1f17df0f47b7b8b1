//! Who may do what: every method, every kind of caller, keys at every border, against an oracle that is proved on etcd
//! first; and tokens of both kinds.

mod auth {
    pub mod ask;
    pub mod cases;
    pub mod clients;
    pub mod gateway;
    pub mod oracle;
    pub mod world;
}

use std::{path::Path, time::Duration};

use auth::{
    ask::{Admin, Ask},
    cases, clients, gateway,
    oracle::{Refusal, Who},
    world::{Caller, Tokens, World},
};
use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_client::{Client, Config, config::Tls, dial::Dialer};
use daymark_tests::{
    connection::{Connection, Shape},
    etcd,
    pki::Authority,
    process::{Dialect, Program, Server},
    wire::runtime,
};
use prost::Message;
use tokio::time::sleep;

/// Hashing passwords is not what is tested here.
const CHEAP: &str = "--bcrypt-cost=4";
/// The fewest cases that count as a proof.
const CASES_MIN: usize = 1500;

/// A server for the tables: etcd need not wait for the disk.
fn start(program: &Program, extra: &[&str]) -> Server {
    let mut flags = vec![CHEAP];
    if program.dialect != Dialect::Daymark {
        flags.push("--unsafe-no-fsync");
    }
    flags.extend(extra);
    Server::start(program, &flags)
}

async fn world(server: &Server, program: &Program, tokens: &Tokens) -> World {
    let connection = Connection::open(&server.endpoint()).await;
    let mut world = World::build(connection, &format!("http://{}", server.peer_endpoint()), tokens).await;
    world.model.open_watch_is_one_key = program.dialect != Dialect::Daymark;
    world.model.observe_is_silent = program.dialect != Dialect::Daymark;
    world
}

/// What was asked, and how the answers differed from what the oracle expects.
#[derive(Default)]
struct Findings {
    cases: usize,
    wrong: Vec<String>,
}

impl Findings {
    async fn try_all(&mut self, world: &World, caller: &Caller, asks: &[Ask]) {
        for ask in asks {
            let expected = world.model.expect(&caller.who, ask);
            if expected.is_ok() && matches!(ask, Ask::Admin(Admin::AuthDisable)) {
                continue;
            }
            let answer = world.ask(&caller.headers, ask).await;
            self.look_at(world, caller, ask, answer, expected).await;
        }
    }

    /// The same through the gateway, as far as it goes: a token stands in another header there.
    async fn try_as_json(&mut self, world: &World, endpoint: &str, caller: &Caller, asks: impl Iterator<Item = &Ask>) {
        let token = caller.headers.first().map(|(_, token)| token);
        for ask in asks {
            let expected = world.model.expect(&caller.who, ask);
            if expected.is_ok() && matches!(ask, Ask::Admin(Admin::AuthDisable)) {
                continue;
            }
            if let Some(answer) = gateway::ask(endpoint, token, ask, &world.peer_url) {
                self.look_at(world, caller, ask, answer, expected).await;
            }
        }
    }

    async fn look_at(
        &mut self,
        world: &World,
        caller: &Caller,
        ask: &Ask,
        answer: Result<(), Refusal>,
        expected: Result<(), Refusal>,
    ) {
        self.cases += 1;
        if answer.is_ok() || expected.is_ok() {
            world.restore(ask).await;
        }
        if answer != expected {
            self.wrong.push(format!("{}: {ask:?}\n    expected {expected:?}\n    answered {answer:?}", caller.name));
        }
    }

    fn report(&self, what: &str) {
        println!("{what}: {} cases, {} wrong", self.cases, self.wrong.len());
        assert!(
            self.wrong.is_empty(),
            "{what}: {} of {} cases:\n{}",
            self.wrong.len(),
            self.cases,
            self.wrong.join("\n")
        );
    }
}

/// The oracle itself is tried on etcd first, then Daymark by the oracle.
fn proved(test: &str, try_on: impl Fn(&Program) -> Findings) -> usize {
    if let Some(etcd) = etcd::oracle_or_skip(&format!("{test} (the oracle itself, on etcd)")) {
        try_on(&etcd).report("the oracle on etcd");
    }
    let ours = Program::daymark();
    let findings = try_on(&ours);
    findings.report(&format!("the server under test ({})", ours.binary.display()));
    findings.cases
}

#[test]
fn every_caller_may_do_exactly_what_the_rules_say() {
    let cases = proved("every_caller_may_do_exactly_what_the_rules_say", |program| {
        let server = start(program, &[]);
        runtime().block_on(async {
            let mut world = world(&server, program, &Tokens::Simple).await;
            let mut findings = Findings::default();
            let (all, few) = (cases::all(), cases::for_strangers());
            for caller in &world.callers {
                let known = matches!(caller.who, Who::User(_));
                findings.try_all(&world, caller, if known { &all } else { &few }).await;
            }
            world.end_most_leases().await;
            for caller in &world.callers {
                findings.try_all(&world, caller, &[Ask::LeaseLeases]).await;
            }
            findings
        })
    });
    assert!(cases >= CASES_MIN, "only {cases} cases");
}

/// Who shows a certificate is whom it names, unless a token says somebody else. Each has a connection of their own.
#[test]
fn names_of_certificates_count_like_tokens() {
    let authority = Authority::new();
    authority.issue("server", "server");
    let file = |name: &str| authority.file(name);
    let flags = [
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", file("ca.pem")),
        format!("--cert-file={}", file("server.pem")),
        format!("--key-file={}", file("server.key")),
        CHEAP.to_owned(),
    ];
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let cases = proved("names_of_certificates_count_like_tokens", |program| {
        let server = Server::start_secure_too(program, &flags);
        runtime().block_on(async {
            let mut world = world(&server, program, &Tokens::Simple).await;
            let mut findings = Findings::default();
            let (all, few) = (cases::all(), cases::for_strangers());
            for (name, caller) in world.callers_with_certificates() {
                world.connection = over_tls(&authority, &server, &name).await;
                let is_known = matches!(caller.who, Who::User(_)) && caller.headers.is_empty();
                findings.try_all(&world, &caller, if is_known { &all } else { &few }).await;
            }
            findings
        })
    });
    assert!(cases >= CASES_MIN, "only {cases} cases");
}

/// The gateway asks with the rights of whoever asks it. Everybody asks for a third of the table, each for another one.
#[test]
fn who_asks_through_the_gateway_may_do_the_same() {
    let cases = proved("who_asks_through_the_gateway_may_do_the_same", |program| {
        let server = start(program, &[]);
        runtime().block_on(async {
            let world = world(&server, program, &Tokens::Simple).await;
            let mut findings = Findings::default();
            let (all, few) = (cases::all(), cases::for_strangers());
            let simple = |caller: &&Caller| match &caller.headers[..] {
                [] => true,
                [(name, token)] => *name == "token" && !token.is_empty(),
                _ => false,
            };
            for (number, caller) in world.callers.iter().filter(simple).enumerate() {
                let asks = if matches!(caller.who, Who::User(_)) { &all } else { &few };
                let some = asks.iter().skip(number % 3).step_by(3);
                findings.try_as_json(&world, &server.endpoint(), caller, some).await;
            }
            findings
        })
    });
    assert!(cases >= CASES_MIN, "only {cases} cases");
}

/// A connection on which this name's certificate is shown.
async fn over_tls(authority: &Authority, server: &Server, name: &str) -> Connection {
    authority.issue("caller", name);
    let tls = Tls {
        cacert: Some(authority.path("ca.pem")),
        cert: Some(authority.path("caller.pem")),
        key: Some(authority.path("caller.key")),
        ..Tls::default()
    };
    let dialer = Dialer::new(&format!("https://{}", server.endpoint()), Some(&tls)).expect("a valid endpoint");
    Connection::over(dialer.connect().await.expect("the certificate is good")).await
}

#[test]
fn signed_tokens_count_until_they_expire_or_users_change() {
    let secret = b"a secret that only the servers know".to_vec();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("secret");
    std::fs::write(&file, &secret).expect("a file");
    let flag = format!("--auth-token=jwt,sign-method=HS256,priv-key={},ttl=10m", file.display());
    let cases = proved("signed_tokens_count_until_they_expire_or_users_change", |program| {
        let server = start(program, &[&flag]);
        runtime().block_on(async {
            let world = world(&server, program, &Tokens::Signed(secret.clone())).await;
            let mut findings = Findings::default();
            let (some, few) = (cases::for_revisions(), cases::for_strangers());
            for caller in &world.callers {
                let unknown = caller.who == Who::Invalid;
                findings.try_all(&world, caller, if unknown { &few } else { &some }).await;
            }
            findings
        })
    });
    assert!(cases >= CASES_MIN, "only {cases} cases");
}

#[test]
fn a_simple_token_that_is_over_counts_no_more() {
    proved("a_simple_token_that_is_over_counts_no_more", |program| {
        let server = start(program, &["--auth-token-ttl=2"]);
        runtime().block_on(async {
            let mut world = world(&server, program, &Tokens::Simple).await;
            // etcd looks once a second.
            sleep(Duration::from_millis(4500)).await;
            world.renew_root().await;
            let mut findings = Findings::default();
            let few = cases::for_strangers();
            for mut caller in std::mem::take(&mut world.callers) {
                if matches!(caller.who, Who::User(_)) {
                    caller.who = Who::Invalid;
                    caller.name.insert_str(0, "expired ");
                    findings.try_all(&world, &caller, &few).await;
                }
            }
            findings
        })
    });
}

/// Well below the time that somebody waits.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A token of a login that this member has not applied yet waits for it, and is refused if it turns out not to exist.
#[test]
fn a_token_from_the_future_waits() {
    let test = "a_token_from_the_future_waits";
    for program in etcd::oracle_or_skip(&format!("{test} (on etcd)")).into_iter().chain([Program::daymark()]) {
        let server = start(&program, &[]);
        runtime().block_on(async {
            let world = world(&server, &program, &Tokens::Simple).await;
            let root = world.login("root").await;
            let status = world.connection.ask("/etcdserverpb.Maintenance/Status", Shape::Unary, &root, &[]).await;
            let applied = pb::StatusResponse::decode(status.expect("root may")).expect("a response").raft_applied_index;
            let headers = vec![("token", Bytes::from(format!("abcdefghijklmnop.{}", applied + 5)))];
            let asked = Ask::Range(auth::ask::at("d"));
            let ask = world.ask(&headers, &asked);
            tokio::pin!(ask);
            let waited = tokio::time::timeout(Duration::from_millis(500), &mut ask).await;
            assert!(waited.is_err(), "{:?}: not applied yet, but answered {waited:?}", program.dialect);
            for _ in 0..6 {
                let put = Ask::Put { key: auth::ask::at("d"), prev_kv: false, lease: 0 };
                world.ask(&root, &put).await.expect("root may");
            }
            assert_eq!(ask.await, Err((16, "etcdserver: invalid auth token".to_owned())));
            // One that will never be applied is given up by whoever asked, and hurts nobody.
            let headers = vec![("token", Bytes::from_static(b"abcdefghijklmnop.18446744073709551615"))];
            let forever = tokio::time::timeout(Duration::from_millis(300), world.ask(&headers, &asked)).await;
            assert!(forever.is_err(), "answered {forever:?}");
            if program.dialect == Dialect::Daymark {
                // Nor may they pile up: each needs no password, and its request waits with it.
                let many = (0..100).map(|_| tokio::time::timeout(AT_ONCE, world.ask(&headers, &asked)));
                let many = futures_util::future::join_all(many).await;
                let refused = many.iter().filter(|answer| answer.is_ok()).count();
                assert!((20..100).contains(&refused), "{refused} of 100 are refused at once");
            }
            world.ask(&root, &asked).await.expect("others go on");
        });
    }
}

/// A token that one of etcd and Daymark has signed is taken by the other, with every method that needs a key pair.
#[test]
fn signed_tokens_are_taken_by_etcd_and_daymark_alike() {
    let Some(etcd) = etcd::oracle_or_skip("signed_tokens_are_taken_by_etcd_and_daymark_alike") else { return };
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("server/tests/keys");
    let methods = [
        ("RS256", "rsa-pkcs1.pem", "rsa.crt.pem"),
        ("RS512", "rsa.pem", "rsa-pkcs1.pub.pem"),
        ("PS384", "rsa.pem", "rsa.pub.pem"),
        ("ES256", "p256.pem", "p256.pub.pem"),
        ("ES384", "p384-sec1.pem", "p384.crt.pem"),
        ("ES512", "p521.pem", "p521.pub.pem"),
        ("EdDSA", "ed25519.pem", "ed25519.pub.pem"),
    ];
    for (method, private, public) in methods {
        let (private, public) = (keys.join(private), keys.join(public));
        let key = format!("pub-key={},priv-key={}", public.display(), private.display());
        let flag = format!("--auth-token=jwt,sign-method={method},{key},ttl=10m");
        let servers = [&etcd, &Program::daymark()].map(|program| start(program, &[&flag]));
        runtime().block_on(async {
            let mut tokens = Vec::new();
            for server in &servers {
                tokens.push(sign_in(&server.endpoint()).await);
            }
            for server in &servers {
                let connection = Connection::open(&server.endpoint()).await;
                for token in &tokens {
                    let headers = [("token", Bytes::from(token.clone()))];
                    let range =
                        pb::RangeRequest { key: Bytes::from_static(b"k"), ..Default::default() }.encode_to_vec();
                    let answer = connection.ask("/etcdserverpb.KV/Range", Shape::Unary, &headers, &range).await;
                    assert!(answer.is_ok(), "{method}: {answer:?} for {token}");
                }
            }
        });
    }
}

/// Makes root, switches auth on and logs in. Takes the same steps on every server, so that their auth revisions agree.
async fn sign_in(endpoint: &str) -> String {
    let client = Client::new(Config::new([endpoint])).expect("valid");
    client.auth().user_add("root", "of all").await.expect("a user");
    client.auth().user_grant_role("root", "root").await.expect("a user");
    client.auth().enable().await.expect("root is there");
    let connection = Connection::open(endpoint).await;
    let login = pb::AuthenticateRequest { name: "root".into(), password: "of all".into() };
    let answer = connection.ask("/etcdserverpb.Auth/Authenticate", Shape::Unary, &[], &login.encode_to_vec()).await;
    pb::AuthenticateResponse::decode(answer.expect("the right password")).expect("a response").token
}

#[test]
fn a_client_logs_in_and_gets_new_tokens_by_itself() {
    let test = "a_client_logs_in_and_gets_new_tokens_by_itself";
    for program in etcd::oracle_or_skip(&format!("{test} (on etcd)")).into_iter().chain([Program::daymark()]) {
        // Tokens that are soon over.
        let server = start(&program, &["--auth-token-ttl=1"]);
        runtime().block_on(clients::log_in_and_renew(&server.endpoint()));
    }
}
