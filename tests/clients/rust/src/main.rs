//! Exercises a server through etcd-client. Prints "ok NAME" for each check and ends with 1 at the first that fails.
//! Argument: the stage (basic, maintenance, auth, tls or tls-auth). Environment: ENDPOINT; for TLS also CA, CERT, KEY.

use std::{env, error::Error, fmt::Debug, fs, time::Duration};

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, EventType, GetOptions, Identity,
    LockOptions, Permission, PutOptions, SortOrder, SortTarget, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use tokio::time::{sleep, timeout};

type Checked = Result<(), Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let stage = env::args().nth(1).expect("a stage");
    let names: &[&str] = match stage.as_str() {
        "basic" => &["kv", "txn", "watch", "watch-resume", "watch-compacted", "lease", "keepalive", "lock", "election"],
        "maintenance" => &["maintenance"],
        "auth" => &["login", "permissions", "wrong-password", "no-user", "auth-management"],
        "tls" => &["tls-kv", "tls-without-certificate"],
        "tls-auth" => &["tls-login", "certificate-identity"],
        other => panic!("no stage {other}"),
    };
    for name in names {
        let done = timeout(Duration::from_secs(30), check(name)).await.unwrap_or_else(|_| Err("no end in 30 s".into()));
        if let Err(error) = done {
            println!("FAILED {name}: {error}");
            std::process::exit(1);
        }
        println!("ok {name}");
    }
}

async fn check(name: &str) -> Checked {
    match name {
        "kv" => kv().await,
        "txn" => txn().await,
        "watch" => watch().await,
        "watch-resume" => watch_resume().await,
        "watch-compacted" => watch_compacted().await,
        "lease" => lease().await,
        "keepalive" => keepalive().await,
        "lock" => lock().await,
        "election" => election().await,
        "maintenance" => maintenance().await,
        "login" => login().await,
        "permissions" => permissions().await,
        "wrong-password" => wrong_password().await,
        "no-user" => no_user().await,
        "auth-management" => auth_management().await,
        "tls-kv" => tls_kv().await,
        "tls-without-certificate" => tls_without_certificate().await,
        "tls-login" => tls_login().await,
        "certificate-identity" => certificate_identity().await,
        other => panic!("no check {other}"),
    }
}

async fn connect(options: Option<ConnectOptions>) -> Result<Client, etcd_client::Error> {
    Client::connect([env::var("ENDPOINT").expect("an endpoint")], options).await
}

async fn plain() -> Result<Client, etcd_client::Error> {
    connect(None).await
}

async fn as_user(name: &str, password: &str) -> Result<Client, etcd_client::Error> {
    connect(Some(ConnectOptions::new().with_user(name, password))).await
}

fn want<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Checked {
    if got == expected { Ok(()) } else { Err(format!("{what} is {got:?} instead of {expected:?}").into()) }
}

/// The text of the gRPC error that a call must end in.
fn refusal<T>(answer: Result<T, etcd_client::Error>) -> String {
    match answer {
        Ok(_) => "an answer".to_owned(),
        Err(etcd_client::Error::GRpcStatus(status)) => status.message().to_owned(),
        Err(error) => format!("not a status: {error}"),
    }
}

async fn kv() -> Checked {
    let mut c = plain().await?;
    c.put("rs/kv/a", "1", None).await?;
    let old = c.put("rs/kv/a", "2", Some(PutOptions::new().with_prev_key())).await?;
    want("previous value", old.prev_key().map(|kv| kv.value().to_vec()), Some(b"1".to_vec()))?;
    c.put("rs/kv/b", "3", None).await?;
    let sorted = GetOptions::new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend);
    let all = c.get("rs/kv/", Some(sorted)).await?;
    let keys: Vec<_> = all.kvs().iter().map(|kv| kv.key()).collect();
    want("keys", keys, vec![b"rs/kv/b".as_slice(), b"rs/kv/a"])?;
    let gone = c.delete("rs/kv/", Some(DeleteOptions::new().with_prefix())).await?;
    want("deleted", gone.deleted(), 2)?;
    want("empty key", refusal(c.put("", "1", None).await), "etcdserver: key is not provided".to_owned())
}

async fn txn() -> Checked {
    let mut c = plain().await?;
    let absent = || Compare::create_revision("rs/txn", CompareOp::Equal, 0);
    let inner = Txn::new().when([absent()]).and_then([TxnOp::put("rs/txn/inner", "2", None)]);
    let ops = [TxnOp::put("rs/txn", "1", None), TxnOp::txn(inner), TxnOp::get("rs/txn", None)];
    let answer = c.txn(Txn::new().when([absent()]).and_then(ops)).await?;
    want("succeeded", answer.succeeded(), true)?;
    let responses = answer.op_responses();
    let Some(TxnOpResponse::Get(seen)) = responses.get(2) else { return Err("no range in the answer".into()) };
    want("seen inside", seen.kvs()[0].value(), b"1")?;
    let again = c.txn(Txn::new().when([absent()]).or_else([TxnOp::delete("rs/txn", None)])).await?;
    want("succeeded", again.succeeded(), false)
}

async fn watch() -> Checked {
    let mut c = plain().await?;
    let mut stream = c.watch("rs/watch/", Some(WatchOptions::new().with_prefix().with_prev_key())).await?;
    c.put("rs/watch/a", "1", None).await?;
    c.delete("rs/watch/a", None).await?;
    let mut kinds = Vec::new();
    let (mut previous, mut id) = (None, 0);
    while kinds.len() < 2 {
        let answer = stream.message().await?.ok_or("the stream ended")?;
        id = answer.watch_id();
        kinds.extend(answer.events().iter().map(|event| event.event_type()));
        previous = answer.events().last().and_then(|event| event.prev_kv()).map(|kv| kv.value().to_vec());
    }
    stream.cancel(id).await?;
    want("kinds", kinds, vec![EventType::Put, EventType::Delete])?;
    want("previous value", previous, Some(b"1".to_vec()))
}

/// A watcher that comes back with the revision after the last one it saw misses nothing and sees nothing twice.
async fn watch_resume() -> Checked {
    let mut c = plain().await?;
    let mut revisions = Vec::new();
    for i in 0..10 {
        let put = c.put("rs/resume", i.to_string(), None).await?;
        revisions.push(put.header().ok_or("no header")?.revision());
    }
    let mut stream = c.watch("rs/resume", Some(WatchOptions::new().with_start_revision(revisions[3] + 1))).await?;
    let mut seen = Vec::new();
    while seen.len() < 6 {
        let answer = stream.message().await?.ok_or("the stream ended")?;
        for event in answer.events() {
            seen.push(event.kv().ok_or("no pair")?.value_str()?.to_owned());
        }
    }
    want("values", seen.join(" "), "4 5 6 7 8 9".to_owned())
}

async fn watch_compacted() -> Checked {
    let mut c = plain().await?;
    let mut revisions = Vec::new();
    for i in 0..4 {
        let put = c.put("rs/compacted", i.to_string(), None).await?;
        revisions.push(put.header().ok_or("no header")?.revision());
    }
    c.compact(revisions[2], None).await?;
    let mut stream = c.watch("rs/compacted", Some(WatchOptions::new().with_start_revision(revisions[0]))).await?;
    loop {
        let answer = stream.message().await?.ok_or("the stream ended")?;
        if answer.canceled() {
            return want("compact revision", answer.compact_revision(), revisions[2]);
        }
    }
}

async fn lease() -> Checked {
    let mut c = plain().await?;
    let granted = c.lease_grant(60, None).await?;
    c.put("rs/lease", "1", Some(PutOptions::new().with_lease(granted.id()))).await?;
    let left = c.lease_time_to_live(granted.id(), Some(etcd_client::LeaseTimeToLiveOptions::new().with_keys())).await?;
    want("granted", left.granted_ttl(), 60)?;
    want("keys", left.keys().to_vec(), vec![b"rs/lease".to_vec()])?;
    c.lease_revoke(granted.id()).await?;
    want("keys after the revoke", c.get("rs/lease", None).await?.count(), 0)?;
    let again = c.lease_revoke(granted.id()).await;
    want("second revoke", refusal(again), "etcdserver: requested lease not found".to_owned())
}

/// A lease outlives its time to live while it is kept alive, and its keys go when that ends.
async fn keepalive() -> Checked {
    let mut c = plain().await?;
    let granted = c.lease_grant(2, None).await?;
    c.put("rs/alive", "1", Some(PutOptions::new().with_lease(granted.id()))).await?;
    let (mut keeper, mut answers) = c.lease_keep_alive(granted.id()).await?;
    for _ in 0..5 {
        keeper.keep_alive().await?;
        want("renewed", answers.message().await?.ok_or("the stream ended")?.ttl(), 2)?;
        sleep(Duration::from_secs(1)).await;
    }
    want("keys while alive", c.get("rs/alive", None).await?.count(), 1)?;
    sleep(Duration::from_secs(4)).await;
    want("keys afterwards", c.get("rs/alive", None).await?.count(), 0)
}

async fn lock() -> Checked {
    let (mut c, mut other) = (plain().await?, plain().await?);
    let lease = c.lease_grant(20, None).await?.id();
    let held = c.lock("rs-lock", Some(LockOptions::new().with_lease(lease))).await?;
    let waiting = other.lock("rs-lock", None);
    tokio::pin!(waiting);
    want("waits", timeout(Duration::from_millis(300), &mut waiting).await.is_err(), true)?;
    c.unlock(held.key()).await?;
    let second = waiting.await?;
    plain().await?.unlock(second.key()).await?;
    Ok(())
}

async fn election() -> Checked {
    let mut c = plain().await?;
    let lease = c.lease_grant(20, None).await?.id();
    let elected = c.campaign("rs-election", "me", lease).await?;
    let key = elected.leader().ok_or("no leader key")?.clone();
    let leader = c.leader("rs-election").await?;
    want("leader", leader.kv().map(|kv| kv.value().to_vec()), Some(b"me".to_vec()))?;
    let options = || etcd_client::ProclaimOptions::new().with_leader(key.clone());
    c.proclaim("still me", Some(options())).await?;
    let mut seen = c.observe("rs-election").await?;
    let first = seen.message().await?.ok_or("the stream ended")?;
    want("observed", first.kv().map(|kv| kv.value().to_vec()), Some(b"still me".to_vec()))?;
    c.resign(Some(etcd_client::ResignOptions::new().with_leader(key.clone()))).await?;
    want("nobody leads", refusal(c.leader("rs-election").await), "election: no leader".to_owned())?;
    want("stale", refusal(c.proclaim("again", Some(options())).await), "election: not leader".to_owned())
}

async fn maintenance() -> Checked {
    let mut c = plain().await?;
    want("version", c.status().await?.version().to_owned(), "3.7.1".to_owned())?;
    want("members", c.member_list().await?.members().len(), 1)?;
    want("hash", c.hash_kv(0).await?.hash() > 0, true)?;
    c.defragment().await?;
    let mut snapshot = c.snapshot().await?;
    let mut bytes = 0;
    while let Some(part) = snapshot.message().await? {
        bytes += part.blob().len();
    }
    want("snapshot size modulo 512", bytes % 512, 32)
}

async fn login() -> Checked {
    let mut c = as_user("alice", "alice's password").await?;
    c.put("alice/rs", "1", None).await?;
    want("keys", c.get("alice/rs", None).await?.count(), 1)
}

async fn permissions() -> Checked {
    let mut c = as_user("alice", "alice's password").await?;
    let denied = || "etcdserver: permission denied".to_owned();
    want("put", refusal(c.put("bob/rs", "1", None).await), denied())?;
    want("get", refusal(c.get("bob/rs", None).await), denied())?;
    let inner = Txn::new().and_then([TxnOp::get("bob/rs", None)]);
    want("nested", refusal(c.txn(Txn::new().and_then([TxnOp::txn(inner)])).await), denied())?;
    want("compact", refusal(c.compact(1, None).await), denied())
}

async fn wrong_password() -> Checked {
    let text = "etcdserver: authentication failed, invalid user ID or password";
    want("text", refusal(as_user("alice", "wrong").await), text.to_owned())
}

async fn no_user() -> Checked {
    let answer = plain().await?.get("alice/rs", None).await;
    want("text", refusal(answer), "etcdserver: user name is empty".to_owned())
}

async fn auth_management() -> Checked {
    let mut root = as_user("root", "root's password").await?;
    root.role_add("rs-role").await?;
    root.role_grant_permission("rs-role", Permission::read("rs/").with_prefix()).await?;
    root.user_add("rs-user", "first", None).await?;
    root.user_grant_role("rs-user", "rs-role").await?;
    want("roles", root.user_get("rs-user").await?.roles().to_vec(), vec!["rs-role".to_owned()])?;
    want("permissions", root.role_get("rs-role").await?.permissions().len(), 1)?;
    let mut c = as_user("rs-user", "first").await?;
    c.get("rs/x", None).await?;
    want("put", refusal(c.put("rs/x", "1", None).await), "etcdserver: permission denied".to_owned())?;
    root.user_delete("rs-user").await?;
    root.role_delete("rs-role").await?;
    want("text", refusal(root.user_get("rs-user").await), "etcdserver: user name not found".to_owned())
}

fn certificate_authority() -> TlsOptions {
    let pem = fs::read(env::var("CA").expect("a file")).expect("readable");
    TlsOptions::new().ca_certificate(Certificate::from_pem(pem)).domain_name("localhost")
}

fn with_certificate() -> TlsOptions {
    let read = |name| fs::read(env::var(name).expect("a file")).expect("readable");
    certificate_authority().identity(Identity::from_pem(read("CERT"), read("KEY")))
}

async fn tls_kv() -> Checked {
    let mut c = connect(Some(ConnectOptions::new().with_tls(with_certificate()))).await?;
    c.put("rs/tls", "1", None).await?;
    want("keys", c.get("rs/tls", None).await?.count(), 1)
}

async fn tls_without_certificate() -> Checked {
    let options = ConnectOptions::new().with_tls(certificate_authority()).with_timeout(Duration::from_secs(3));
    let Ok(mut c) = connect(Some(options)).await else { return Ok(()) };
    want("served", c.get("rs/tls", None).await.is_ok(), false)
}

async fn tls_login() -> Checked {
    let options = ConnectOptions::new().with_tls(with_certificate()).with_user("root", "root's password");
    let mut c = connect(Some(options)).await?;
    c.put("anything", "1", None).await?;
    Ok(())
}

/// Without a token the common name of the certificate is the user.
async fn certificate_identity() -> Checked {
    let mut c = connect(Some(ConnectOptions::new().with_tls(with_certificate()))).await?;
    c.put("alice/rs", "1", None).await?;
    want("put", refusal(c.put("bob/rs", "1", None).await), "etcdserver: permission denied".to_owned())
}
