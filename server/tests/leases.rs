//! Leases over the life of a member: an end that comes too late for its lease, and time that survives a restart.

use std::time::Duration;

use daymark_api::etcdserverpb as pb;
use daymark_server::command::{Kind, LeaseCheckpoint, LeaseExpire};
use daymark_server::request::{Context, Reply, Request};
use daymark_server::state::lease::{self, LeaseFact};

use crate::member::TestMember;

fn grant(member: &TestMember, id: i64, ttl: i64) {
    member.call(Request::LeaseGrant(pb::LeaseGrantRequest { id, ttl })).expect("granted");
}

fn put(member: &TestMember, key: &'static str, lease: i64) {
    let put = pb::PutRequest { key: key.into(), lease, ..Default::default() };
    member.call(Request::Put(put)).expect("put");
}

fn exists(member: &TestMember, key: &'static str) -> bool {
    match member.call(Request::Range(pb::RangeRequest { key: key.into(), ..Default::default() })) {
        Ok(Reply::Range(range)) => range.count == 1,
        other => panic!("{other:?}"),
    }
}

fn fact(member: &TestMember, wanted: i64) -> Option<LeaseFact> {
    let mut found = None;
    let keyspace = &member.door.views().keyspace;
    let visit = &mut |fact: LeaseFact| found = found.or((fact.id == wanted).then_some(fact));
    lease::scan_records(keyspace, visit).expect("records");
    found
}

fn expire(member: &TestMember, ids: Vec<i64>, grants: Vec<u64>) {
    let expire = LeaseExpire { ids, grants, term: 0 };
    member.wait(async |door| door.propose_own(Kind::LeaseExpire, &expire).await).expect("applied");
}

/// Its end was proposed, then the lease was revoked and its id granted again, then the end is applied.
#[test]
fn an_end_on_its_way_does_not_end_a_later_lease_with_the_same_id() {
    let mut member = TestMember::new();
    grant(&member, 7, 100);
    let first = fact(&member, 7).expect("it is there").grant;
    member.call(Request::LeaseRevoke(pb::LeaseRevokeRequest { id: 7 })).expect("revoked");
    // The number is not given twice, whatever was forgotten meanwhile.
    member.flush();
    member = member.kill();
    grant(&member, 7, 100);
    put(&member, "k", 7);
    let second = fact(&member, 7).expect("it is there").grant;
    assert!(second > first, "{second} after {first}");
    expire(&member, vec![7], vec![first]);
    assert!(exists(&member, "k") && fact(&member, 7).is_some());
    let before = member.door.views().keyspace.current_revision();
    expire(&member, vec![7, 8], vec![second, 9]);
    assert!(!exists(&member, "k") && fact(&member, 7).is_none());
    assert_eq!(member.door.views().keyspace.current_revision(), before + 1);
    member.stop();
}

#[test]
fn the_time_left_at_a_checkpoint_survives_a_restart_until_the_lease_is_renewed() {
    let mut member = TestMember::new();
    grant(&member, 7, 1000);
    grant(&member, 8, 1000);
    let checkpoint = LeaseCheckpoint {
        ids: vec![7, 8, 9],
        grants: vec![fact(&member, 7).expect("it is there").grant, 99, 1],
        remaining_secs: vec![400, 300, 200],
        term: 0,
    };
    member.wait(async |door| door.propose_own(Kind::LeaseCheckpoint, &checkpoint).await).expect("applied");
    assert_eq!(fact(&member, 8).expect("another grant").remaining_secs, 0);
    member = member.kill();
    let left = |member: &TestMember, id| match member
        .call(Request::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id, keys: false }))
    {
        Ok(Reply::LeaseTimeToLive(left)) => (left.ttl, left.granted_ttl),
        other => panic!("{other:?}"),
    };
    let (ttl, granted) = left(&member, 7);
    assert!((390..=402).contains(&ttl) && granted == 1000, "{ttl} of {granted}");
    assert!((990..=1002).contains(&left(&member, 8).0));
    let renew = pb::LeaseKeepAliveRequest { id: 7 };
    let renewed = member.wait(async |door| door.keep_alive(&Default::default(), renew).await).expect("renewed");
    assert_eq!(renewed.ttl, 1000);
    assert_eq!(fact(&member, 7).expect("it is there").remaining_secs, 0, "the checkpoint is void");
    member = member.kill();
    assert!((990..=1002).contains(&left(&member, 7).0));
    member.stop();
}

#[test]
fn many_leases_end_together_and_each_in_a_revision_of_its_own() {
    const LEASES: i64 = 1200;
    let member = TestMember::new();
    member.wait(async |door| {
        let grants = (1..=LEASES).map(|id| {
            let door = door.clone();
            async move {
                let grant = Request::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 1 });
                door.call(&Context::default(), grant).await.expect("granted");
                for name in ["a", "b"] {
                    let key = format!("{name}{id}").into();
                    let put = Request::Put(pb::PutRequest { key, lease: id, ..Default::default() });
                    door.call(&Context::default(), put).await.expect("put");
                }
            }
        });
        futures_util::future::join_all(grants).await;
        let before = door.views().keyspace.current_revision();
        let lessor = door.clone();
        let lessor = tokio::task::spawn_local(async move { lessor.run_lessor().await });
        let all = pb::RangeRequest { key: "a".into(), range_end: "c".into(), count_only: true, ..Default::default() };
        loop {
            match door.call(&Context::default(), Request::Range(all.clone())).await {
                Ok(Reply::Range(range)) if range.count == 0 => break,
                Ok(Reply::Range(range)) => assert_eq!(range.count % 2, 0, "both keys of a lease go at once"),
                other => panic!("{other:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(door.views().keyspace.current_revision(), before + LEASES);
        assert!(door.member().lessor.list().expect("it can be read").is_empty());
        lessor.abort();
    });
    member.stop();
}

/// Whoever led then kept the time; whoever leads now may have renewed the lease meanwhile.
#[test]
fn what_a_leader_of_another_term_says_of_time_has_no_effect() {
    let mut member = TestMember::new();
    let led = member.door.member().raft.term();
    grant(&member, 7, 1000);
    member = member.kill();
    let leads = member.door.member().raft.term();
    assert!(leads > led);
    let (ids, grants) = (vec![7], vec![fact(&member, 7).expect("it is there").grant]);
    let expire = |term| LeaseExpire { ids: ids.clone(), grants: grants.clone(), term };
    let checkpoint = |term| LeaseCheckpoint { ids: ids.clone(), grants: grants.clone(), remaining_secs: vec![5], term };
    for (term, left) in [(led, 0), (leads, 5)] {
        let note = checkpoint(term);
        member.wait(async |door| door.propose_own(Kind::LeaseCheckpoint, &note).await).expect("applied");
        assert_eq!(fact(&member, 7).expect("it is there").remaining_secs, left, "term {term}");
    }
    for (term, ended) in [(led, false), (leads, true)] {
        let end = expire(term);
        member.wait(async |door| door.propose_own(Kind::LeaseExpire, &end).await).expect("applied");
        assert_eq!(fact(&member, 7).is_none(), ended, "term {term}");
    }
    member.stop();
}
