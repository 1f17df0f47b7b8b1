//! What the scripts about users and rights cannot show: what happens between the look at the rights and the answer,
//! callers that wait, and what is written where.

use std::rc::Rc;
use std::sync::mpsc;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_server::error::Error;
use daymark_server::limits;
use daymark_server::request::{Context, Reply, Request, Sink, StreamRequest, Taken};
use daymark_server::services::{Door, Settings};
use futures_util::FutureExt;
use futures_util::future::join_all;
use std::task::Waker;

use crate::language;
use crate::member::TestMember;

/// Cheap logins.
fn member() -> TestMember {
    TestMember::with_settings(Settings { bcrypt_cost: 4, ..Settings::default() })
}

async fn ask(door: &Rc<Door>, context: &Context, line: &str) -> Result<Reply, Error> {
    door.call(context, language::request(line).expect("a request")).await
}

async fn all(door: &Rc<Door>, context: &Context, lines: &[&str]) {
    for line in lines {
        ask(door, context, line).await.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}

async fn login(door: &Rc<Door>, name: &str, password: &str) -> Result<Context, Error> {
    match ask(door, &Context::default(), &format!("auth login {name} {password}")).await? {
        Reply::Authenticate(reply) => Ok(Context { token: Some(reply.token.into()), ..Context::default() }),
        other => panic!("{other:?}"),
    }
}

/// Root and bob, who may read what begins with `list/`, with authentication enabled; their contexts.
async fn users(door: &Rc<Door>) -> [Context; 2] {
    let lines = [
        "user add root rootpw",
        "user grant root root",
        "user add bob bobpw",
        "role add r",
        "role grant r read list/ list0",
        "user grant bob r",
        "auth enable",
    ];
    all(door, &Context::default(), &lines).await;
    [login(door, "root", "rootpw").await.expect("root"), login(door, "bob", "bobpw").await.expect("bob")]
}

/// More than is read on the net thread.
async fn put_long_list(door: &Rc<Door>) {
    let context = &Context::default();
    let puts = (0..3 * limits::RANGE_INLINE_BYTES_MAX / 1000).map(|n| {
        let put =
            pb::PutRequest { key: format!("list/{n:04}").into(), value: vec![b'v'; 1000].into(), ..Default::default() };
        door.call(context, Request::Put(put))
    });
    assert!(join_all(puts).await.iter().all(Result::is_ok));
}

/// What is read after the rights were looked at may be newer than they are.
#[test]
fn a_read_is_not_answered_once_rights_have_changed_under_it() {
    let member = member();
    member.wait(async |door| {
        put_long_list(&door).await;
        let [root, bob] = users(&door).await;
        let range = pb::RangeRequest { key: "list/".into(), range_end: "list0".into(), ..Default::default() };
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range.clone())) };
        let txn = pb::TxnRequest { success: vec![op], ..Default::default() };
        let reads = [Request::Range(range.clone()), Request::Txn(txn)];
        for read in reads {
            assert!(door.call(&bob, read.clone()).await.is_ok(), "he may");
            let (release, held) = mpsc::channel::<()>();
            let occupied = tokio::task::spawn_blocking(move || held.recv());
            let mut answer = Box::pin(door.call(&bob, read));
            assert!((&mut answer).now_or_never().is_none(), "it is read on the pool");
            all(&door, &root, &["user revoke bob r", "user grant bob r"]).await;
            release.send(()).expect("it is held");
            assert_eq!(answer.await.err(), Some(Error::OldAuthRevision));
            occupied.await.expect("no panic").expect("released");
        }
    });
    member.stop();
}

/// Apply remembers that bob has a right to all keys of a lease. It must not do so any longer than it is true.
#[test]
fn a_right_to_all_keys_of_a_lease_ends_with_any_of_them() {
    let member = member();
    member.wait(async |door| {
        let [root, bob] = users(&door).await;
        let denied = async |context: &Context, line: &str| {
            assert_eq!(ask(&door, context, line).await.err(), Some(Error::PermissionDenied), "{line}");
        };
        all(&door, &root, &["role grant r readwrite w/ w0", "role grant r readwrite x", "grant 7 100"]).await;
        all(&door, &bob, &["put w/1 v lease=7", "put w/2 v lease=7", "put x v lease=7", "put w/3 v lease=7"]).await;
        // Somebody else attaches a key that is not his.
        all(&door, &root, &["put z v lease=7"]).await;
        denied(&bob, "put w/4 v lease=7").await;
        denied(&bob, "revoke 7").await;
        all(&door, &root, &["del z"]).await;
        all(&door, &bob, &["put w/4 v lease=7", "put w/5 v lease=7"]).await;
        // A right to one of the keys goes, and comes back.
        all(&door, &root, &["role revoke r x"]).await;
        denied(&bob, "put w/6 v lease=7").await;
        all(&door, &root, &["role grant r readwrite x"]).await;
        all(&door, &bob, &["put w/6 v lease=7", "put w/7 v lease=7"]).await;
        // Nobody is looked at for a while.
        all(&door, &root, &["auth disable"]).await;
        all(&door, &Context::default(), &["put z v lease=7", "auth enable"]).await;
        let bob = login(&door, "bob", "bobpw").await.expect("bob");
        denied(&bob, "put w/8 v lease=7").await;
    });
    member.stop();
}

/// The pieces that are out are out; nothing follows them.
#[test]
fn a_streamed_range_ends_once_rights_have_changed_under_it() {
    let member = member();
    member.wait(async |door| {
        put_long_list(&door).await;
        let [root, bob] = users(&door).await;
        let range = || pb::RangeRequest { key: "list/".into(), range_end: "list0".into(), ..Default::default() };
        let outside = pb::RangeRequest { range_end: "m".into(), ..range() };
        let sink = Sink::new(1);
        door.serve_stream(bob.clone(), StreamRequest::RangeStream(outside), sink.clone()).await;
        assert!(matches!(sink.take(Waker::noop()), Taken::End(Err(Error::PermissionDenied))));
        let sink = Sink::new(1);
        let mut stream = Box::pin(door.serve_stream(bob.clone(), StreamRequest::RangeStream(range()), sink.clone()));
        assert!((&mut stream).now_or_never().is_none(), "nobody reads it");
        all(&door, &root, &["role grant r read x"]).await;
        let mut messages = 0;
        let end = loop {
            match sink.take(Waker::noop()) {
                Taken::Message(_) => messages += 1,
                Taken::End(end) => break end,
                Taken::Pending => assert!((&mut stream).now_or_never().is_some() || messages < 100),
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(end, Err(Error::OldAuthRevision));
        assert_eq!(messages, 1);
    });
    member.stop();
}

#[test]
fn a_token_of_a_log_index_that_is_to_come_holds_up_nobody_else() {
    let member = member();
    member.wait(async |door| {
        let [root, _] = users(&door).await;
        let token = Some(Bytes::from_static(b"abcdefghijklmnop.99999999"));
        let waits = Context { token, ..Context::default() };
        let mut waiting: Vec<_> = (0..1000).map(|_| Box::pin(ask(&door, &waits, "get a"))).collect();
        for _ in 0..3 {
            // The index may come, but no more than these wait for it.
            waiting.retain_mut(|call| match call.now_or_never() {
                None => true,
                Some(answer) => {
                    assert_eq!(answer.err(), Some(Error::InvalidAuthToken));
                    false
                }
            });
            assert_eq!(waiting.len(), limits::TOKEN_WAITS_MAX);
            all(&door, &root, &["put a 1", "get a"]).await;
        }
        let known = Some(Bytes::from_static(b"abcdefghijklmnop.1"));
        let unknown = ask(&door, &Context { token: known, ..Context::default() }, "get a").await;
        assert_eq!(unknown.err(), Some(Error::InvalidAuthToken));
    });
    member.stop();
}

#[test]
fn no_file_and_no_row_holds_a_password_and_no_printed_request_does() {
    const SECRETS: [&str; 4] = ["correct-horse", "battery-staple", "in-spite-of-none", "never-right"];
    let member = member();
    member.wait(async |door| {
        let lines = [
            "user add root correct-horse",
            "user grant root root",
            "user add bob correct-horse",
            "user add cert in-spite-of-none no_password",
            "user passwd bob battery-staple",
            "user passwd cert in-spite-of-none",
            "auth enable",
        ];
        for line in lines {
            let request = language::request(line).expect("a request");
            let printed = format!("{request:?}");
            assert!(SECRETS.iter().all(|secret| !printed.contains(secret)), "{printed}");
            door.call(&Context::default(), request).await.expect(line);
        }
        assert_eq!(login(&door, "bob", "never-right").await.err(), Some(Error::AuthenticationFailed));
        let bob = login(&door, "bob", "battery-staple").await.expect("his password");
        let token = String::from_utf8(bob.token.clone().expect("a token").to_vec()).expect("letters");
        assert!(!format!("{bob:?}").contains(&token), "{bob:?}");
    });
    let bytes = member.everything_written();
    let holds = |what: &str| bytes.windows(what.len()).any(|window| window == what.as_bytes());
    assert!(holds("auth/user/bob") && holds("$2a$04$"), "this looks where it has to");
    for secret in SECRETS {
        assert!(!holds(secret), "{secret}");
    }
    member.stop();
}

/// Rights of users that were changed through one net thread hold for every request that comes after the answer.
#[test]
fn what_is_granted_or_revoked_counts_from_the_answer_on() {
    let member = member();
    member.wait(async |door| {
        let [root, bob] = users(&door).await;
        for round in 0..20 {
            let key = format!("own/{round}");
            assert_eq!(ask(&door, &bob, &format!("put {key} 1")).await.err(), Some(Error::PermissionDenied));
            all(&door, &root, &[&format!("role grant r readwrite {key}")]).await;
            all(&door, &bob, &[&format!("put {key} 1"), &format!("get {key}")]).await;
            all(&door, &root, &[&format!("role revoke r {key}")]).await;
            assert_eq!(ask(&door, &bob, &format!("get {key}")).await.err(), Some(Error::PermissionDenied));
        }
        let entries = door.views().applied_index();
        let refused = (0..50).map(|_| ask(&door, &bob, "put own/0 1"));
        assert!(join_all(refused).await.iter().all(|answer| answer.as_ref().err() == Some(&Error::PermissionDenied)));
        assert_eq!(door.views().applied_index(), entries, "what is refused for sure costs no log entry");
    });
    member.stop();
}

/// Commands that were on their way while rights changed are refused by apply.
#[test]
fn a_command_meets_the_rights_of_the_state_it_is_applied_to() {
    let member = member();
    member.wait(async |door| {
        let [root, bob] = users(&door).await;
        all(&door, &root, &["role grant r readwrite k", "put k 1"]).await;
        // One command batch: the change first.
        let change = ask(&door, &root, "role revoke r k");
        let write = ask(&door, &bob, "put k 2");
        let (changed, written) = futures_util::future::join(change, write).await;
        assert!(changed.is_ok());
        assert_eq!(written.err(), Some(Error::OldAuthRevision));
        match ask(&door, &root, "get k").await {
            Ok(Reply::Range(range)) => assert_eq!(range.kvs[0].value, "1"),
            other => panic!("{other:?}"),
        }
    });
    member.stop();
}
