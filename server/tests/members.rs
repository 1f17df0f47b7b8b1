//! Changes of members as one of them sees them, which leads: the others are not there. With others: the tests of real
//! processes.

use daymark_api::etcdserverpb as pb;
use daymark_server::error::Error;
use daymark_server::request::{Context, Reply, Request};
use daymark_server::services::Settings;

use crate::member::{MEMBER, TestMember};

fn add(member: &TestMember, url: &str, is_learner: bool) -> Result<pb::Member, Error> {
    let request = pb::MemberAddRequest { peer_ur_ls: vec![url.into()], is_learner };
    match member.call(Request::MemberAdd(request))? {
        Reply::MemberAdd(reply) => {
            let added = reply.member.expect("a member");
            assert!(reply.members.contains(&added));
            Ok(added)
        }
        other => panic!("{other:?}"),
    }
}

fn remove(member: &TestMember, id: u64) -> Result<Vec<pb::Member>, Error> {
    match member.call(Request::MemberRemove(pb::MemberRemoveRequest { id }))? {
        Reply::MemberRemove(reply) => Ok(reply.members),
        other => panic!("{other:?}"),
    }
}

fn list(member: &TestMember) -> Vec<(bool, String)> {
    match member.call(Request::MemberList(pb::MemberListRequest { linearizable: true })) {
        Ok(Reply::MemberList(reply)) => {
            let mut members: Vec<_> =
                reply.members.into_iter().map(|member| (member.is_learner, member.peer_ur_ls.concat())).collect();
            members.sort();
            members
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn members_are_added_and_removed_and_removed_ids_are_remembered_for_ever() {
    // Nobody else is there to have started.
    let settings = Settings { strict_changes: false, ..Settings::default() };
    let mut member = TestMember::with_settings(settings);
    let learner = add(&member, "http://b:1", true).expect("added");
    assert!(learner.is_learner && learner.name.is_empty() && learner.client_ur_ls.is_empty());
    assert_eq!(add(&member, "http://c:1", true).err(), Some(Error::TooManyLearners));
    assert_eq!(add(&member, "http://peer:2380", false).err(), Some(Error::PeerUrlsExist));
    let voter = add(&member, "http://c:1", false).expect("added");
    assert!(!voter.is_learner, "although its vote has to wait");
    let all = [(false, "http://c:1".to_owned()), (false, "http://peer:2380".into()), (true, "http://b:1".into())];
    assert_eq!(list(&member), all);

    member.flush();
    member = member.kill();
    assert_eq!(list(&member), all, "after a restart");
    let left = remove(&member, learner.id).expect("removed");
    assert_eq!(left.iter().map(|member| member.id).filter(|id| *id == learner.id).count(), 0);
    assert_eq!(remove(&member, learner.id).err(), Some(Error::MemberNotFound));
    remove(&member, voter.id).expect("removed");
    for flushes in [false, true] {
        if flushes {
            member.flush();
        }
        member = member.kill();
        let list = member.door.views().members.load_full();
        let removed: Vec<u64> = list.removed.iter().copied().collect();
        let mut expected = vec![learner.id, voter.id];
        expected.sort_unstable();
        assert_eq!((removed, list.members.len(), list.members[0].id), (expected, 1, MEMBER));
        assert_eq!(member.door.views().peer_urls(voter.id), Vec::<String>::new(), "nobody is dialled there");
    }
    assert!(member.door.member().raft.read_barrier_now().is_some(), "alone again: reads are fast");
    member.stop();
}

/// One that has been added and has not started counts as one that is missing.
#[test]
fn what_would_endanger_the_quorum_is_refused() {
    let member = TestMember::new();
    member.wait(async |door| {
        let attributes =
            daymark_server::command::MemberAttributes { id: MEMBER, name: "a".into(), client_urls: vec![] };
        door.publish_attributes(&attributes).await.expect("published");
    });
    let second = add(&member, "http://b:1", false).expect("a lone member may always get a second");
    assert_eq!(add(&member, "http://c:1", false).err(), Some(Error::NotEnoughStartedMembers));
    assert_eq!(add(&member, "http://c:1", true).err(), Some(Error::Unhealthy), "the second does not answer");
    assert_eq!(remove(&member, MEMBER).err(), Some(Error::NotEnoughStartedMembers));
    let promote = Request::MemberPromote(pb::MemberPromoteRequest { id: second.id });
    assert_eq!(member.call(promote).err(), Some(Error::LearnerNotReady), "it has its vote when it has caught up");
    remove(&member, second.id).expect("one that is down may go");
    let learner = add(&member, "http://d:1", true).expect("added");
    // However far the log is: this one has nothing of it.
    let promote = Request::MemberPromote(pb::MemberPromoteRequest { id: learner.id });
    assert_eq!(member.call(promote).err(), Some(Error::LearnerNotReady));
    assert_eq!(member.door.views().promotions.values(), (0, [2, 0, 0, 0, 0]));
    member.stop();
}

#[test]
fn a_member_that_is_not_known_is_not_moved_to() {
    let member = TestMember::new();
    let request = |target_id| Request::MoveLeader(pb::MoveLeaderRequest { target_id });
    assert_eq!(member.call(request(0x77)).err(), Some(Error::BadLeaderTransferee));
    assert!(member.call(request(MEMBER)).is_ok(), "it leads already");
    assert!(!member.door.is_learner());
    assert!(member.wait(async |door| door.check_stream_context(&Context::default())).is_ok());
    member.stop();
}
