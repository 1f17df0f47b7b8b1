//! Locks and elections through the front door: who waits for whom, what a caller that goes away leaves behind, what goes
//! on the wire when something fails inside.

use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ResignRequest,
};
use daymark_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use daymark_server::error::{Code, Error};
use daymark_server::request::{Context, Reply, Request, Sink, StreamRequest, Taken};
use daymark_server::services::Door;
use futures_util::FutureExt;
use futures_util::future::join_all;
use prost::Message;

use crate::member::TestMember;

async fn call(door: &Rc<Door>, request: Request) -> Result<Reply, Error> {
    door.call(&Context::default(), request).await
}

async fn grant(door: &Rc<Door>, id: i64) {
    let granted = call(door, Request::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 600 })).await;
    assert!(matches!(granted, Ok(Reply::LeaseGrant(_))), "{granted:?}");
}

async fn lock(door: Rc<Door>, lease: i64) -> Result<LockResponse, Error> {
    match call(&door, Request::Lock(LockRequest { name: "l".into(), lease })).await? {
        Reply::Lock(response) => Ok(response),
        other => panic!("{other:?}"),
    }
}

async fn unlock(door: &Rc<Door>, key: Bytes) -> i64 {
    match call(door, Request::Unlock(UnlockRequest { key })).await {
        Ok(Reply::Unlock(response)) => response.header.expect("a header").revision,
        other => panic!("{other:?}"),
    }
}

async fn keys(door: &Rc<Door>) -> Vec<Bytes> {
    let range = pb::RangeRequest { key: "l/".into(), range_end: "l0".into(), ..Default::default() };
    match call(door, Request::Range(range)).await {
        Ok(Reply::Range(range)) => range.kvs.into_iter().map(|kv| kv.key).collect(),
        other => panic!("{other:?}"),
    }
}

/// Lets everything run that can.
async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

#[test]
fn a_lock_is_handed_on_in_the_order_in_which_it_was_asked_for() {
    let member = TestMember::new();
    member.wait(async |door| {
        for lease in [0x1a, -0x1b, 0x1c] {
            grant(&door, lease).await;
        }
        let first = lock(door.clone(), 0x1a).await.expect("free");
        assert_eq!((&first.key[..], first.header.as_ref().expect("a header").revision), (&b"l/1a"[..], 2));
        assert_ne!(first.header.expect("a header").member_id, 0);
        let again = lock(door.clone(), 0x1a).await.expect("the holder asks again");
        assert_eq!((&again.key[..], again.header.expect("a header").revision), (&b"l/1a"[..], 2));

        let mut second = tokio::task::spawn_local(lock(door.clone(), -0x1b));
        settle().await;
        let mut third = tokio::task::spawn_local(lock(door.clone(), 0x1c));
        settle().await;
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        assert_eq!(keys(&door).await, ["l/-1b", "l/1a", "l/1c"]);

        let released = unlock(&door, first.key).await;
        let second = second.await.expect("no panic").expect("its turn");
        assert_eq!((&second.key[..], second.header.expect("a header").revision), (&b"l/-1b"[..], released));
        settle().await;
        assert!((&mut third).now_or_never().is_none());
        unlock(&door, second.key).await;
        assert_eq!(&third.await.expect("no panic").expect("its turn").key[..], b"l/1c");
    });
    member.stop();
}

#[test]
fn a_caller_that_goes_away_leaves_the_queue_and_nobody_else_does() {
    let member = TestMember::new();
    let engine = member.engine.clone();
    member.wait(async |door| {
        for lease in 1..=3 {
            grant(&door, lease).await;
        }
        let first = lock(door.clone(), 1).await.expect("free");
        let second = tokio::task::spawn_local(lock(door.clone(), 2));
        settle().await;
        let third = tokio::task::spawn_local(lock(door.clone(), 3));
        settle().await;
        second.abort();
        settle().await;
        assert_eq!(keys(&door).await, ["l/1", "l/3"]);
        assert_eq!(engine.borrow().stats().watchers, 1, "the third waits for the first now");
        unlock(&door, first.key).await;
        assert_eq!(&third.await.expect("no panic").expect("its turn").key[..], b"l/3");
        assert_eq!(engine.borrow().stats().streams, 0);
    });
    member.stop();
}

#[test]
fn who_loses_its_key_while_it_waits_is_told() {
    let member = TestMember::new();
    member.wait(async |door| {
        grant(&door, 1).await;
        grant(&door, 2).await;
        let first = lock(door.clone(), 1).await.expect("free");
        let second = tokio::task::spawn_local(lock(door.clone(), 2));
        settle().await;
        call(&door, Request::LeaseRevoke(pb::LeaseRevokeRequest { id: 2 })).await.expect("revoked");
        unlock(&door, first.key).await;
        let error = second.await.expect("no panic").expect_err("its lease is gone");
        assert_eq!((error.code(), &error.text()[..]), (Code::Unknown, "mutex: session is expired"));

        let error = lock(door.clone(), 77).await.expect_err("no such lease");
        assert_eq!((error.code(), &error.text()[..]), (Code::Unknown, "etcdserver: requested lease not found"));
    });
    member.stop();
}

/// Each waits for one other, and a release wakes one.
#[test]
fn thousands_of_waiters_are_served_one_by_one() {
    const WAITERS: i64 = 3000;
    let member = TestMember::new();
    let engine = member.engine.clone();
    member.wait(async |door| {
        let grants = (1..=WAITERS).map(|id| {
            let door = door.clone();
            async move { grant(&door, id).await }
        });
        join_all(grants).await;
        let mut waiting: Vec<_> = (1..=WAITERS).map(|id| tokio::task::spawn_local(lock(door.clone(), id))).collect();
        while keys(&door).await.len() < WAITERS as usize || engine.borrow().stats().watchers < WAITERS as usize - 1 {
            settle().await;
        }
        let stats = engine.borrow().stats();
        assert_eq!((stats.watchers, stats.groups), (WAITERS as usize - 1, WAITERS as usize - 1));
        let mut revision = 0;
        for held in 0..WAITERS as usize {
            let got = (&mut waiting[held]).await.expect("no panic").expect("its turn");
            let now = got.header.expect("a header").revision;
            assert!(now > revision, "{held}: {now} after {revision}");
            if let Some(next) = waiting.get_mut(held + 1) {
                assert!(next.now_or_never().is_none(), "{held} holds it");
            }
            revision = unlock(&door, got.key).await - 1;
        }
        assert_eq!(engine.borrow().stats().streams, 0);
    });
    member.stop();
}

async fn campaign(door: Rc<Door>, lease: i64, value: &'static str) -> Result<LeaderKey, Error> {
    let request = CampaignRequest { name: "l".into(), lease, value: value.into() };
    match call(&door, Request::Campaign(request)).await? {
        Reply::Campaign(response) => Ok(response.leader.expect("a leader")),
        other => panic!("{other:?}"),
    }
}

async fn leader(door: &Rc<Door>) -> Result<Bytes, Error> {
    match call(door, Request::Leader(LeaderRequest { name: "l".into() })).await? {
        Reply::Leader(response) => Ok(response.kv.expect("a pair").value),
        other => panic!("{other:?}"),
    }
}

async fn proclaim(door: &Rc<Door>, leader: Option<LeaderKey>, value: &'static str) -> Result<Reply, Error> {
    call(door, Request::Proclaim(ProclaimRequest { leader, value: value.into() })).await
}

fn told(sink: &Sink) -> Vec<(i64, Bytes)> {
    let mut told = Vec::new();
    while let Taken::Message(parts) = sink.take(Waker::noop()) {
        let response = LeaderResponse::decode(Bytes::from(parts.concat())).expect("a response");
        told.push((response.header.expect("a header").revision, response.kv.expect("a pair").value));
    }
    told
}

#[test]
fn an_election_has_one_leader_whose_values_everybody_sees() {
    let member = TestMember::new();
    member.wait(async |door| {
        grant(&door, 1).await;
        grant(&door, 2).await;
        let error = leader(&door).await.expect_err("nobody");
        assert_eq!((error.code(), &error.text()[..]), (Code::Unknown, "election: no leader"));
        let sink = Sink::new(1 << 20);
        let observe = StreamRequest::Observe(LeaderRequest { name: "l".into() });
        let (observer, observed) = (door.clone(), sink.clone());
        tokio::task::spawn_local(async move { observer.serve_stream(Context::default(), observe, observed).await });
        settle().await;
        assert_eq!(told(&sink), []);

        let first = campaign(door.clone(), 1, "one").await.expect("alone");
        assert_eq!((&first.key[..], first.rev, first.lease), (&b"l/1"[..], 2, 1));
        let second = tokio::task::spawn_local(campaign(door.clone(), 2, "two"));
        settle().await;
        assert_eq!(leader(&door).await, Ok("one".into()));
        assert!(proclaim(&door, Some(first.clone()), "one again").await.is_ok());
        assert_eq!(campaign(door.clone(), 1, "once more").await.expect("it leads").rev, 2);
        assert!(call(&door, Request::Resign(ResignRequest { leader: Some(first.clone()) })).await.is_ok());
        let second = second.await.expect("no panic").expect("its turn");
        assert_eq!((leader(&door).await, second.rev), (Ok("two".into()), 3));
        settle().await;
        let seen = told(&sink);
        let values: Vec<_> = seen.iter().map(|(_, value)| &value[..]).collect();
        assert_eq!(values, [&b"one"[..], b"one again", b"once more", b"two"]);
        assert!(seen.is_sorted_by_key(|(revision, _)| *revision));

        let error = proclaim(&door, Some(first.clone()), "late").await.expect_err("it has resigned");
        assert_eq!((error.code(), &error.text()[..]), (Code::Unknown, "election: not leader"));
        assert!(call(&door, Request::Resign(ResignRequest { leader: Some(first) })).await.is_ok());
        let error = proclaim(&door, None, "").await.expect_err("whose?");
        assert_eq!((error.code(), &error.text()[..]), (Code::Unknown, "\"leader\" field must be provided"));
    });
    member.stop();
}
