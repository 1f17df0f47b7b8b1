//! A server with users, roles, leases and callers of every kind, and the same as a model for the oracle. What a case
//! changes is put right afterwards, so that every case meets the same world.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use daymark_api::{authpb, etcdserverpb as pb};
use daymark_tests::connection::{Answer, Connection, Shape};
use prost::Message;
use ring::hmac;

use super::{
    ask::{Ask, IDLE_LEASE, NOBODY, Span, Txn, TxnOp, at, prefix, span},
    oracle::{Model, Refusal, Right, Who},
};

/// Roles and what each is granted; a user of the same name has each.
fn roles() -> Vec<(&'static str, Vec<(Right, Span)>)> {
    use Right::{Both, Read, Write};
    vec![
        ("reader", vec![(Read, span("g", "k"))]),
        ("writer", vec![(Write, span("g", "k"))]),
        ("both", vec![(Both, span("g", "k"))]),
        ("exact", vec![(Both, at("m"))]),
        ("neighbours", vec![(Read, at("m")), (Both, at("m\0"))]),
        ("range", vec![(Both, span("c", "f"))]),
        ("adjoining", vec![(Both, span("c", "e")), (Both, span("e", "g"))]),
        ("gap", vec![(Both, span("c", "e")), (Both, span("f", "h"))]),
        ("overlap", vec![(Read, span("c", "f")), (Write, span("d", "g"))]),
        ("prefix", vec![(Both, prefix("p/"))]),
        ("open", vec![(Both, span("t", "\0"))]),
        ("everything", vec![(Both, span("\0", "\0"))]),
        ("orphan", vec![(Both, span("\0", "\0"))]),
    ]
}

/// Leases and the keys attached to them.
const LEASES: [(i64, &[&str]); 4] = [(1001, &["d1"]), (1002, &["d2", "m"]), (1003, &["p/1", "t1"]), (IDLE_LEASE, &[])];

/// What tokens a server hands out.
#[derive(Clone, Debug)]
pub enum Tokens {
    Simple,
    /// JSON web tokens, HS256 with this secret.
    Signed(Vec<u8>),
}

/// Under which somebody leads an election from the beginning.
pub const OBSERVED: &str = "p/observed";

/// Who asks, and by what the server recognises them.
pub struct Caller {
    pub name: String,
    pub who: Who,
    pub headers: Vec<(&'static str, Bytes)>,
}

/// A server in its initial state, and who may call it.
pub struct World {
    pub connection: Connection,
    pub model: Model,
    pub callers: Vec<Caller>,
    pub peer_url: String,
    root: Vec<(&'static str, Bytes)>,
}

impl World {
    /// Fills an empty server, enables auth and logs everybody in.
    pub async fn build(connection: Connection, peer_url: &str, tokens: &Tokens) -> Self {
        let mut world = Self {
            connection,
            model: Model::default(),
            callers: Vec::new(),
            peer_url: peer_url.to_owned(),
            root: Vec::new(),
        };
        world.fill().await;
        world.auth("AuthEnable", &pb::AuthEnableRequest {}).await;
        // A token from before auth was off for a moment.
        let retired = world.login("everything").await;
        world.root = world.login("root").await;
        world.auth("AuthDisable", &pb::AuthDisableRequest {}).await;
        world.auth("AuthEnable", &pb::AuthEnableRequest {}).await;
        world.root = world.login("root").await;
        match tokens {
            Tokens::Simple => {
                world.admit("retired", Who::Invalid, retired);
                world.admit_users().await;
                world.change_users().await;
                for gone in ["deleted", "repassworded"] {
                    world.caller(gone).who = Who::Invalid;
                }
                world.admit_strangers().await;
            }
            Tokens::Signed(secret) => {
                world.admit("retired", Who::Outdated("everything".into()), retired);
                world.admit_users().await;
                world.change_users().await;
                for caller in &mut world.callers {
                    caller.who = Who::Outdated(caller.name.clone());
                    caller.name.insert_str(0, "outdated ");
                }
                world.callers[0].who = Who::Outdated("everything".into());
                world.root = world.login("root").await;
                world.admit_users().await;
                world.admit_forgers(secret).await;
            }
        }
        world
    }

    async fn fill(&mut self) {
        for (role, grants) in roles() {
            self.add_role(role, &grants).await;
            self.add_user(role, &[role]).await;
        }
        self.add_user("mixed", &["exact", "range"]).await;
        self.add_user("norole", &[]).await;
        self.add_user("root", &["root"]).await;
        self.add_user("admin", &["root", "reader"]).await;
        for doomed in ["deleted", "repassworded", "stripped"] {
            self.add_user(doomed, &["everything"]).await;
        }
        for (id, keys) in LEASES {
            self.model.leases.insert(id, keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect());
        }
        for (id, _) in LEASES {
            self.restore_lease(id).await;
        }
        let leader = at(format!("{OBSERVED}/1"));
        self.expect_ok(&Ask::Put { key: leader, prev_kv: false, lease: 0 }).await;
    }

    async fn admit_users(&mut self) {
        let names: Vec<String> = self.model.users.keys().cloned().collect();
        for name in names {
            let headers = match &name[..] {
                "repassworded" if self.callers.iter().any(|caller| caller.name.starts_with("outdated")) => continue,
                _ => self.login(&name).await,
            };
            self.admit(&name, Who::User(name.clone()), headers);
        }
    }

    /// Changes something about users who have logged in.
    async fn change_users(&mut self) {
        self.auth("UserDelete", &pb::AuthUserDeleteRequest { name: "deleted".into() }).await;
        self.model.users.remove("deleted");
        let change = pb::AuthUserChangePasswordRequest {
            name: "repassworded".into(),
            password: "another".into(),
            hashed_password: String::new(),
        };
        self.auth("UserChangePassword", &change).await;
        let revoke = pb::AuthUserRevokeRoleRequest { name: "stripped".into(), role: "everything".into() };
        self.auth("UserRevokeRole", &revoke).await;
        self.model.users.insert("stripped".into(), BTreeSet::new());
        self.auth("RoleDelete", &pb::AuthRoleDeleteRequest { role: "orphan".into() }).await;
        self.model.roles.remove("orphan");
        self.model.users.insert("orphan".into(), BTreeSet::new());
    }

    /// Tokens in forms that nobody has been given, and one in the form that gateways use.
    async fn admit_strangers(&mut self) {
        self.admit("none", Who::Nobody, Vec::new());
        let real = self.login("everything").await[0].1.clone();
        let letters = real.split(|byte| *byte == b'.').next().expect("never empty").to_vec();
        let with = |tail: &[u8]| Bytes::from([&letters[..], tail].concat());
        let forms = [
            ("garbage", Bytes::from_static(b"garbage")),
            ("empty token", Bytes::new()),
            ("unknown token", Bytes::from_static(b"abcdefghijklmnop.1")),
            ("another index", with(b".1")),
            ("letters only", with(b"")),
            ("longer", Bytes::from([&real[..], b".1"].concat())),
        ];
        for (name, token) in forms {
            self.admit(name, Who::Invalid, vec![("token", token)]);
        }
        let bearer = Bytes::from([b"Bearer ", &real[..]].concat());
        self.admit("bearer", Who::User("everything".into()), vec![("authorization", bearer)]);
        let both = vec![("authorization", real), ("token", Bytes::from_static(b"garbage"))];
        self.admit("token before authorization", Who::Invalid, both);
    }

    /// Web tokens that somebody has written who knows the secret or does not.
    async fn admit_forgers(&mut self, secret: &[u8]) {
        let status = self.call("/etcdserverpb.Auth/AuthStatus", &self.root, &[]).await.expect("anybody may");
        let revision = pb::AuthStatusResponse::decode(status).expect("a response").auth_revision;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let (soon, past) = (now + 600, now - 10);
        let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
        let good = format!(r#"{{"username":"everything","revision":{revision},"exp":{soon}}}"#);
        let expired = format!(r#"{{"username":"everything","revision":{revision},"exp":{past}}}"#);
        let too_early = format!(r#"{{"username":"everything","revision":{revision},"exp":{soon},"nbf":{soon}}}"#);
        let endless = format!(r#"{{"username":"everything","revision":{revision}}}"#);
        let nobodys = format!(r#"{{"revision":{revision},"exp":{soon}}}"#);
        let without_revision = format!(r#"{{"username":"everything","exp":{soon}}}"#);
        let unsigned =
            |header: &str| sign(b"", header, &good).rsplit_once('.').expect("three pieces").0.to_owned() + ".";
        let readers = String::from_utf8(self.login("reader").await[0].1.to_vec()).expect("ASCII");
        let roots = String::from_utf8(self.root[0].1.to_vec()).expect("ASCII");
        let pieces = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
        let (reader, root) = (pieces(&readers), pieces(&roots));
        let known = [("own claims", sign(secret, hs256, &good)), ("without expiry", sign(secret, hs256, &endless))];
        for (name, token) in known {
            self.admit(name, Who::User("everything".into()), vec![("token", token.into())]);
        }
        let bad = [
            ("nothing signed", unsigned(r#"{"alg":"none","typ":"JWT"}"#)),
            ("signature left out", unsigned(hs256)),
            ("another secret", sign(b"guessed", hs256, &good)),
            ("another method", sign(secret, r#"{"alg":"HS512","typ":"JWT"}"#, &good)),
            ("expired", sign(secret, hs256, &expired)),
            ("not yet valid", sign(secret, hs256, &too_early)),
            ("claims without a user", sign(secret, hs256, &nobodys)),
            ("claims without a revision", sign(secret, hs256, &without_revision)),
            ("root's claims, a reader's signature", format!("{}.{}.{}", root[0], root[1], reader[2])),
            ("simple token", "abcdefghijklmnop.1".to_owned()),
            ("empty token", String::new()),
        ];
        for (name, token) in bad {
            self.admit(name, Who::Invalid, vec![("token", token.into())]);
        }
    }

    /// Names for certificates, and as whom their bearers call: every user, somebody who is none, and those who say with
    /// a header that they are somebody else.
    pub fn callers_with_certificates(&self) -> Vec<(String, Caller)> {
        let token_of = |name: &str| {
            let caller = self.callers.iter().find(|caller| caller.name == name).expect("admitted");
            caller.headers.clone()
        };
        let strangers = ["deleted", NOBODY].map(str::to_owned);
        let names = self.model.users.keys().cloned().chain(strangers);
        let mut callers: Vec<_> = names
            .map(|name| {
                let who = Who::User(name.clone());
                (name.clone(), Caller { name: format!("certificate of {name}"), who, headers: Vec::new() })
            })
            .collect();
        let with_header = |name: &str, of: &str, who: Who, headers| {
            (of.to_owned(), Caller { name: format!("{name}, certificate of {of}"), who, headers })
        };
        let invalid = vec![("token", Bytes::from_static(b"nobodys.1"))];
        let gateway = vec![("grpcgateway-accept", Bytes::from_static(b"*/*"))];
        callers.extend([
            with_header("token of reader", "root", Who::User("reader".into()), token_of("reader")),
            with_header("token of root", "reader", Who::User("root".into()), token_of("root")),
            with_header("bad token", "root", Who::Invalid, invalid),
            with_header("through a gateway", "root", Who::Nobody, gateway),
        ]);
        callers
    }

    fn admit(&mut self, name: &str, who: Who, headers: Vec<(&'static str, Bytes)>) {
        self.callers.push(Caller { name: name.to_owned(), who, headers });
    }

    fn caller(&mut self, name: &str) -> &mut Caller {
        self.callers.iter_mut().find(|caller| caller.name == name).expect("admitted")
    }

    async fn add_role(&mut self, name: &str, grants: &[(Right, Span)]) {
        self.auth("RoleAdd", &pb::AuthRoleAddRequest { name: name.into() }).await;
        for (right, span) in grants {
            let perm_type = match right {
                Right::Read => authpb::permission::Type::Read,
                Right::Write => authpb::permission::Type::Write,
                Right::Both => authpb::permission::Type::Readwrite,
            };
            let perm =
                authpb::Permission { perm_type: perm_type.into(), key: span.key.clone(), range_end: span.end.clone() };
            let grant = pb::AuthRoleGrantPermissionRequest { name: name.into(), perm: Some(perm) };
            self.auth("RoleGrantPermission", &grant).await;
        }
        self.model.roles.insert(name.to_owned(), grants.to_vec());
    }

    async fn add_user(&mut self, name: &str, roles: &[&str]) {
        let add = pb::AuthUserAddRequest { name: name.into(), password: password(name), ..Default::default() };
        self.auth("UserAdd", &add).await;
        for role in roles {
            let grant = pb::AuthUserGrantRoleRequest { user: name.into(), role: (*role).into() };
            self.auth("UserGrantRole", &grant).await;
        }
        self.model.users.insert(name.to_owned(), roles.iter().map(ToString::to_string).collect());
    }

    /// The headers by which a user is known after a login.
    pub async fn login(&self, name: &str) -> Vec<(&'static str, Bytes)> {
        let login = pb::AuthenticateRequest { name: name.into(), password: password(name) };
        let answer = self.call("/etcdserverpb.Auth/Authenticate", &[], &login.encode_to_vec()).await;
        let answer = answer.unwrap_or_else(|error| panic!("login of {name}: {error:?}"));
        let answer = pb::AuthenticateResponse::decode(answer).expect("a response");
        vec![("token", answer.token.into())]
    }

    /// Root logs in again.
    pub async fn renew_root(&mut self) {
        self.root = self.login("root").await;
    }

    /// Root changes users or roles.
    pub async fn auth(&self, method: &str, message: &impl Message) {
        let path = format!("/etcdserverpb.Auth/{method}");
        let answer = self.call(&path, &self.root, &message.encode_to_vec()).await;
        assert!(answer.is_ok(), "{method}: {answer:?}");
    }

    async fn call(&self, path: &str, headers: &[(&'static str, Bytes)], message: &[u8]) -> Answer {
        self.connection.ask(path, Shape::Unary, headers, message).await
    }

    /// Asks as somebody; yes, or the refusal.
    pub async fn ask(&self, headers: &[(&'static str, Bytes)], ask: &Ask) -> Result<(), Refusal> {
        let (path, shape, message) = ask.encode(&self.peer_url);
        let answer = self.connection.ask(path, shape, headers, &message).await?;
        match ask {
            Ask::Watch(_) => {
                let answer = pb::WatchResponse::decode(answer).expect("a response");
                if answer.canceled { Err((0, answer.cancel_reason)) } else { Ok(()) }
            }
            Ask::Observe(_) if answer.is_empty() => Err((0, "ended".to_owned())),
            _ => Ok(()),
        }
    }

    async fn expect_ok(&self, ask: &Ask) {
        let answer = self.ask(&self.root, ask).await;
        assert_eq!(answer, Ok(()), "{ask:?}");
    }

    /// Root puts right what a successful request has changed and another case may look at.
    pub async fn restore(&self, ask: &Ask) {
        match ask {
            Ask::LeaseRevoke(id) if self.model.leases.contains_key(id) => self.restore_lease(*id).await,
            Ask::Put { key, lease, .. } => self.restore_spans(std::slice::from_ref(key), *lease != 0).await,
            Ask::Delete { span, .. } => self.restore_spans(std::slice::from_ref(span), false).await,
            Ask::Txn(txn) => self.restore_spans(&written(txn), true).await,
            Ask::Unlock(key) => self.restore_spans(std::slice::from_ref(key), false).await,
            Ask::Lock { name, .. } | Ask::Campaign { name, .. } => {
                let span = prefix(&format!("{name}/"));
                self.expect_ok(&Ask::Delete { span: span.clone(), prev_kv: false }).await;
                self.restore_spans(&[span], false).await;
            }
            _ => {}
        }
    }

    /// Detaches what was written if it may hang on a lease, and attaches again what should.
    async fn restore_spans(&self, spans: &[Span], detach: bool) {
        for span in spans.iter().filter(|span| detach && span.end.is_empty()) {
            self.expect_ok(&Ask::Put { key: span.clone(), prev_kv: false, lease: 0 }).await;
        }
        for (id, keys) in &self.model.leases {
            for key in keys.iter().filter(|key| spans.iter().any(|span| is_within(span, key))) {
                self.expect_ok(&Ask::Put { key: at(key), prev_kv: false, lease: *id }).await;
            }
        }
        let leader = at(format!("{OBSERVED}/1"));
        if spans.iter().any(|span| is_within(span, &leader.key)) {
            self.expect_ok(&Ask::Put { key: leader, prev_kv: false, lease: 0 }).await;
        }
    }

    async fn restore_lease(&self, id: i64) {
        let grant = pb::LeaseGrantRequest { ttl: 3600, id };
        let granted = self.call("/etcdserverpb.Lease/LeaseGrant", &self.root, &grant.encode_to_vec()).await;
        assert!(granted.is_ok(), "{granted:?}");
        for key in &self.model.leases[&id] {
            self.expect_ok(&Ask::Put { key: at(key), prev_kv: false, lease: id }).await;
        }
    }

    /// Ends all leases but those that hold nothing or only `d1`, for whom more callers may list them.
    pub async fn end_most_leases(&mut self) {
        for id in [1002, 1003] {
            self.expect_ok(&Ask::LeaseRevoke(id)).await;
            self.model.leases.remove(&id);
        }
    }
}

/// A web token whose signature is HMAC with SHA-256, whatever its header says.
fn sign(secret: &[u8], header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn password(name: &str) -> String {
    format!("password of {name}")
}

fn is_within(span: &Span, key: &[u8]) -> bool {
    let below_end = match &span.end[..] {
        [] => key == &span.key[..],
        [0] => true,
        end => key < end,
    };
    key >= &span.key[..] && below_end
}

fn written(txn: &Txn) -> Vec<Span> {
    let ops = txn.success.iter().chain(&txn.failure);
    ops.flat_map(|op| match op {
        TxnOp::Put { key: span, .. } | TxnOp::Delete { span, .. } => vec![span.clone()],
        TxnOp::Txn(txn) => written(txn),
        TxnOp::Range(_) | TxnOp::Nothing => Vec::new(),
    })
    .collect()
}
