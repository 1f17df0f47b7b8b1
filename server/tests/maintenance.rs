//! Maintenance as a member does it by itself: the size limit of the data.

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::alarm_request::AlarmAction;
use daymark_server::error::Error;
use daymark_server::request::{Reply, Request};
use daymark_server::services::Settings;

use crate::member::{MEMBER, TestMember};

fn put(key: &str, bytes: usize) -> Request {
    Request::Put(pb::PutRequest { key: key.to_owned().into(), value: vec![0; bytes].into(), ..Default::default() })
}

fn alarm(action: AlarmAction) -> Request {
    let (action, alarm) = (action as i32, pb::AlarmType::Nospace as i32);
    Request::Alarm(pb::AlarmRequest { action, member_id: MEMBER, alarm })
}

fn alarms(member: &TestMember) -> Vec<(u64, i32)> {
    match member.call(alarm(AlarmAction::Get)).expect("alarms") {
        Reply::Alarm(response) => response.alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect(),
        other => panic!("{other:?}"),
    }
}

fn member(quota_bytes: i64) -> TestMember {
    TestMember::with_settings(Settings { quota_bytes, ..Settings::default() })
}

/// The whole way: full, refused, alarm, emptied, still refused, disarmed, served again.
#[test]
fn a_full_member_refuses_what_adds_data_until_it_is_emptied_and_disarmed() {
    let member = member(200_000);
    let accepted = (0..100).take_while(|n| member.call(put(&format!("k{n}"), 10_000)).is_ok()).count();
    assert!((5..20).contains(&accepted), "{accepted}");
    assert_eq!(alarms(&member), [(MEMBER, 1)]);
    assert_eq!(member.call(put("k", 1)).err(), Some(Error::NoSpace));
    let grant = Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 100, id: 5 });
    assert_eq!(member.call(grant.clone()).err(), Some(Error::NoSpace));
    let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let Ok(Reply::DeleteRange(deleted)) = member.call(Request::DeleteRange(delete)) else { panic!("refused") };
    let revision = deleted.header.expect("a header").revision;
    member.call(Request::Compact(pb::CompactionRequest { revision, physical: true })).expect("compacted");
    assert_eq!(member.call(put("k", 1)).err(), Some(Error::NoSpace), "the space is not given back yet");
    member.call(Request::Defragment(pb::DefragmentRequest {})).expect("given back");
    assert_eq!(member.call(put("k", 1)).err(), Some(Error::NoSpace), "the alarm is still active");
    member.call(alarm(AlarmAction::Deactivate)).expect("disarmed");
    member.call(put("k", 10_000)).expect("there is room");
    member.call(grant).expect("there is room");
    assert_eq!(alarms(&member), []);
    member.stop();
}

/// The write that passes the limit stays, and whoever sent it is told that it did.
#[test]
fn a_write_that_passes_the_limit_stays_and_is_answered_with_an_error() {
    let member = member(50_000);
    member.call(put("k", 20_000)).expect("there is room");
    // Fits by its own cost, not with what it replaces, which history keeps.
    assert_eq!(member.call(put("k", 29_000)).err(), Some(Error::NoSpace));
    let Ok(Reply::Range(range)) =
        member.call(Request::Range(pb::RangeRequest { key: "k".into(), ..Default::default() }))
    else {
        panic!("reads go on");
    };
    assert_eq!(range.kvs[0].value.len(), 29_000);
    assert_eq!(alarms(&member), [(MEMBER, 1)]);
    member.stop();
}

/// Comes before the request's own checks, costs nothing for what adds nothing, and can be switched off.
#[test]
fn the_limit_is_looked_at_first_and_may_be_absent() {
    let full = member(1);
    assert_eq!(full.call(put("", 0)).err(), Some(Error::NoSpace));
    assert_eq!(full.call(Request::DeleteRange(Default::default())).err(), Some(Error::EmptyKey));
    assert_eq!(full.call(Request::Txn(Default::default())).err(), None);
    full.stop();
    let unlimited = member(-1);
    unlimited.call(put("k", 100_000)).expect("served");
    let Ok(Reply::Status(status)) = unlimited.call(Request::Status(pb::StatusRequest {})) else { panic!("no status") };
    assert_eq!(status.db_size_quota, -1);
    assert!(status.db_size >= 100_000 && status.db_size_in_use <= status.db_size);
    unlimited.stop();
}
