//! What one caller cannot show: many at once, callers that go away, time.

use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use daymark_api::etcdserverpb as pb;
use daymark_server::error::Error;
use daymark_server::limits;
use daymark_server::request::{Context, Reply, Request, Sink, Taken};
use daymark_server::services::{Door, Settings};
use daymark_server::views::Room;
use futures_util::FutureExt;
use futures_util::future::join_all;
use futures_util::stream;
use prost::Message;
use std::task::Waker;

use crate::member::TestMember;

fn put(key: String) -> Request {
    Request::Put(pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() })
}

async fn revision(door: &Rc<Door>, request: Request) -> i64 {
    match door.call(&Context::default(), request).await {
        Ok(Reply::Put(put)) => put.header.expect("a header").revision,
        other => panic!("{other:?}"),
    }
}

/// More than a Range reads on the net thread.
const LONG: usize = 3 * limits::RANGE_INLINE_BYTES_MAX / 1000;

async fn put_long_list(door: &Rc<Door>, fill: u8) -> i64 {
    let puts = (0..LONG).map(|n| {
        let put =
            pb::PutRequest { key: format!("list/{n:04}").into(), value: vec![fill; 1000].into(), ..Default::default() };
        revision(door, Request::Put(put))
    });
    join_all(puts).await.into_iter().max().expect("some")
}

fn long_list() -> pb::RangeRequest {
    pb::RangeRequest { key: "list/".into(), range_end: "list0".into(), ..Default::default() }
}

/// Runs `meanwhile` after `read` has been asked for and before the pool gets to it.
async fn while_it_waits_for_the_pool(
    door: &Rc<Door>,
    read: Request,
    meanwhile: impl AsyncFnOnce(),
) -> Result<Reply, Error> {
    let (release, held) = mpsc::channel::<()>();
    let occupied = tokio::task::spawn_blocking(move || held.recv());
    let context = Context::default();
    let mut read = Box::pin(door.call(&context, read));
    assert!((&mut read).now_or_never().is_none(), "it is read on the pool");
    meanwhile().await;
    release.send(()).expect("it is held");
    let answer = read.await;
    occupied.await.expect("no panic").expect("released");
    answer
}

/// Who lists goes on to watch from the header's revision + 1.
#[test]
fn a_list_shows_everything_up_to_the_revision_in_its_header() {
    let member = TestMember::new();
    member.wait(async |door| {
        let listed = put_long_list(&door, b'a').await;
        let requests = [
            long_list(),
            pb::RangeRequest { limit: 5, ..long_list() },
            pb::RangeRequest { count_only: true, ..long_list() },
            pb::RangeRequest { revision: listed, ..long_list() },
        ];
        for (round, request) in requests.into_iter().enumerate() {
            let (before, key) = (door.views().keyspace.current_revision(), format!("list/new{round}"));
            let answer = while_it_waits_for_the_pool(&door, Request::Range(request.clone()), async || {
                revision(&door, put(key)).await;
            });
            let Ok(Reply::Range(list)) = answer.await else { panic!("{request:?}") };
            assert_eq!(list.header.expect("a header").revision, before, "{request:?}");
            let keys = LONG + if request.revision > 0 { 0 } else { round };
            assert_eq!(list.count, keys as i64, "{request:?}");
        }
    });
    member.stop();
}

/// Only who names a revision can find it compacted.
#[test]
fn a_read_of_what_is_current_is_not_told_that_it_has_been_compacted() {
    let member = TestMember::new();
    member.wait(async |door| {
        let range = pb::request_op::Request::RequestRange(long_list());
        let txn =
            pb::TxnRequest { success: vec![pb::RequestOp { request: Some(range.clone()) }], ..Default::default() };
        let mut old = put_long_list(&door, b'a').await;
        for (fill, read) in [(b'b', Request::Range(long_list())), (b'c', Request::Txn(txn))] {
            let changed = async || {
                old = put_long_list(&door, fill).await;
                let compact = pb::CompactionRequest { revision: old, physical: false };
                door.call(&Context::default(), Request::Compact(compact)).await.expect("compacted");
                door.views().keyspace.drop_history().expect("dropped");
            };
            let list = match while_it_waits_for_the_pool(&door, read, changed).await {
                Ok(Reply::Range(list)) => list,
                Ok(Reply::Txn(mut txn)) => match txn.responses.pop().and_then(|response| response.response) {
                    Some(pb::response_op::Response::ResponseRange(list)) => list,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            };
            assert_eq!(list.header.expect("a header").revision, old);
            assert!(list.kvs.len() == LONG && list.kvs.iter().all(|kv| kv.value[0] == fill));
        }
        let named = pb::RangeRequest { revision: old - 1, ..long_list() };
        assert_eq!(door.call(&Context::default(), Request::Range(named)).await.err(), Some(Error::Compacted));
    });
    member.stop();
}

#[test]
fn many_callers_share_log_entries_and_each_gets_its_own_revision() {
    let member = TestMember::new();
    let before = member.door.views().applied_index();
    let mut revisions = member.wait(async |door| {
        join_all((0..3000).map(|n| {
            let door = door.clone();
            async move { revision(&door, put(format!("k{n:04}"))).await }
        }))
        .await
    });
    let in_order = revisions.is_sorted();
    revisions.sort_unstable();
    assert_eq!(revisions, (2..3002).collect::<Vec<_>>());
    assert!(in_order, "commands of one thread are applied in the order in which they were given");
    let entries = member.door.views().applied_index() - before;
    assert!(entries < 20, "3000 puts took {entries} log entries");
    member.stop();
}

#[test]
fn a_caller_that_goes_away_changes_nothing_for_the_others() {
    let member = TestMember::new();
    let last = member.wait(async |door| {
        // Fewer than a lone writer's run, after which the first look would find the answer.
        for round in 0..20 {
            let context = Context::default();
            let mut gone = Box::pin(door.call(&context, put(format!("gone{round}"))));
            assert!((&mut gone).now_or_never().is_none(), "it has to be committed first");
            let stays = revision(&door, put("stays".into()));
            drop(gone);
            assert_eq!(stays.await, 3 + 2 * round, "what has gone was proposed before and still takes effect");
        }
        revision(&door, put("last".into())).await
    });
    assert_eq!(last, 42);
    member.stop();
}

#[test]
fn headers_name_the_cluster_the_member_and_the_term() {
    let member = TestMember::new();
    let header = member.wait(async |door| match door.call(&Context::default(), put("k".into())).await {
        Ok(Reply::Put(put)) => put.header,
        other => panic!("{other:?}"),
    });
    let header = header.expect("a header");
    assert_eq!((header.cluster_id, header.member_id), (crate::member::CLUSTER, crate::member::MEMBER));
    assert!(header.raft_term > 0);
    member.stop();
}

/// With the next one, the only test here that waits for a clock: the shortest lease lives two seconds.
#[test]
fn a_full_disk_puts_deletes_and_the_end_of_leases_off_and_no_more() {
    let member = TestMember::new();
    member.wait(async |door| {
        let call = async |request| door.call(&Context::default(), request).await.map(|_| ());
        call(Request::LeaseGrant(pb::LeaseGrantRequest { id: 1, ttl: 2 })).await.expect("a lease");
        revision(&door, put("k".into())).await;
        let delete = || Request::DeleteRange(pb::DeleteRangeRequest { key: "k".into(), ..Default::default() });
        let views = door.views().clone();
        views.set_room(Room::Spent);
        assert_eq!(call(put("k".into())).await, Err(Error::NoSpace));
        assert_eq!(call(delete()).await, Err(Error::NoSpace));
        let compact = pb::CompactionRequest { revision: 2, physical: true };
        assert_eq!(call(Request::Compact(compact)).await, Ok(()));
        assert_eq!(call(Request::Range(long_list())).await, Ok(()));
        let kept = door.keep_alive(&Context::default(), pb::LeaseKeepAliveRequest { id: 1 }).await;
        assert_eq!(kept.expect("it leads").ttl, 2);
        let leases = async || match door.call(&Context::default(), Request::LeaseLeases(Default::default())).await {
            Ok(Reply::LeaseLeases(reply)) => reply.leases.len(),
            other => panic!("{other:?}"),
        };
        let over = async {
            // Longer than its time, a grace and a look of the lessor.
            tokio::time::sleep(Duration::from_millis(4200)).await;
            assert_eq!(leases().await, 1, "its end would add to history");
            views.set_room(Room::Scarce);
            while leases().await > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(call(delete()).await, Ok(()));
            assert_eq!(call(put("k".into())).await, Err(Error::NoSpace));
            views.set_room(Room::Ample);
            assert_eq!(call(put("k".into())).await, Ok(()));
        };
        tokio::select! {
            () = over => {}
            () = door.run_lessor() => panic!("the lessor has stopped"),
        }
    });
    member.stop();
}

#[test]
fn a_transaction_of_reads_shares_one_bound_of_its_answer() {
    let settings =
        Settings { response_bytes_max: limits::MESSAGE_OVERHEAD_BYTES + 3 * LONG * 1050, ..Settings::default() };
    let member = TestMember::with_settings(settings);
    member.wait(async |door| {
        put_long_list(&door, b'a').await;
        let read = async |times: usize| {
            let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(long_list())) };
            let txn = pb::TxnRequest { success: vec![op; times], ..Default::default() };
            door.call(&Context::default(), Request::Txn(txn)).await.map(|_| ())
        };
        assert_eq!(read(3).await, Ok(()));
        assert!(matches!(read(4).await, Err(Error::ResponseTooLarge(..))));
    });
    member.stop();
}

/// The shortest lease lives two seconds.
#[test]
fn a_lease_that_is_not_renewed_ends_with_its_keys_and_one_that_is_renewed_stays() {
    let member = TestMember::new();
    member.wait(async |door| {
        for id in [1, 2] {
            let grant = pb::LeaseGrantRequest { id, ttl: 2 };
            door.call(&Context::default(), Request::LeaseGrant(grant)).await.expect("a lease");
            let put = pb::PutRequest { key: format!("k{id}").into(), lease: id, ..Default::default() };
            revision(&door, Request::Put(put)).await;
        }
        let begin = Instant::now();
        let renewed = async {
            let mut ended_after = None;
            while begin.elapsed() < Duration::from_secs(5) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let request = pb::LeaseKeepAliveRequest { id: 2 };
                let kept = door.keep_alive(&Context::default(), request).await.expect("it leads");
                assert_eq!(kept.ttl, 2);
                let get = pb::RangeRequest { key: "k1".into(), range_end: "k3".into(), ..Default::default() };
                let Ok(Reply::Range(left)) = door.call(&Context::default(), Request::Range(get)).await else {
                    panic!("no answer")
                };
                let keys: Vec<_> = left.kvs.iter().map(|kv| kv.key.clone()).collect();
                assert!(keys.contains(&"k2".into()), "renewed, and gone after {:?}", begin.elapsed());
                if keys.len() == 1 && ended_after.is_none() {
                    ended_after = Some(begin.elapsed());
                }
            }
            ended_after.expect("the lease that nobody renews has ended")
        };
        let ended_after = tokio::select! {
            ended_after = renewed => ended_after,
            () = door.run_lessor() => panic!("the lessor has stopped"),
        };
        // Leadership began before the lease was granted, so no grace; the lessor looks every half second.
        assert!(ended_after >= Duration::from_millis(1950), "{ended_after:?}");
        assert!(ended_after < Duration::from_millis(4000), "{ended_after:?}");
        let request = pb::LeaseKeepAliveRequest { id: 1 };
        assert_eq!(door.keep_alive(&Context::default(), request).await.expect("it leads").ttl, 0);
    });
    member.stop();
}

#[test]
fn a_keep_alive_stream_answers_each_message_and_ends_with_its_requests() {
    let member = TestMember::new();
    let sink = Sink::new(1 << 20);
    member.wait(async |door| {
        let grant = pb::LeaseGrantRequest { id: 7, ttl: 60 };
        door.call(&Context::default(), Request::LeaseGrant(grant)).await.expect("a lease");
        let requests = [7, 8, 7].map(|id| Ok(pb::LeaseKeepAliveRequest { id }));
        door.lease_keep_alive(Context::default(), stream::iter(requests), sink.clone()).await;
    });
    for (id, ttl) in [(7, 60), (8, 0), (7, 60)] {
        let Taken::Message(parts) = sink.take(Waker::noop()) else { panic!("an answer is missing") };
        let response = pb::LeaseKeepAliveResponse::decode(&parts.concat()[..]).expect("a response");
        assert_eq!((response.id, response.ttl), (id, ttl));
        assert!(response.header.is_some_and(|header| header.member_id == crate::member::MEMBER));
    }
    assert!(matches!(sink.take(Waker::noop()), Taken::End(Ok(()))));
    member.stop();
}

/// A client must not be able to stop the member: `stop` fails if the member was given a reason to.
#[test]
fn what_a_caller_does_wrong_on_a_keep_alive_stream_ends_that_stream_only() {
    let member = TestMember::new();
    for error in [
        Error::Protocol("unexpected EOF".into()),
        Error::Malformed("bits".into()),
        Error::MessageTooLarge(2, 1),
        Error::Canceled,
    ] {
        let sink = Sink::new(1 << 20);
        let requests = stream::iter([Err(error.clone())]);
        member.wait(async |door| door.lease_keep_alive(Context::default(), requests, sink.clone()).await);
        assert!(matches!(sink.take(Waker::noop()), Taken::End(Err(end)) if end == error));
    }
    member.stop();
}

#[test]
fn the_time_of_a_lease_begins_when_its_grant_is_answered() {
    let member = TestMember::new();
    member.wait(async |door| {
        let left = async || {
            let ask = pb::LeaseTimeToLiveRequest { id: 7, keys: false };
            match door.call(&Context::default(), Request::LeaseTimeToLive(ask)).await {
                Ok(Reply::LeaseTimeToLive(left)) => left.ttl,
                other => panic!("{other:?}"),
            }
        };
        // The leadership has begun, with its grace for leases that are older.
        assert_eq!(left().await, -1);
        let grant = pb::LeaseGrantRequest { id: 7, ttl: 60 };
        door.call(&Context::default(), Request::LeaseGrant(grant)).await.expect("a lease");
        // The lessor's clock has steps of a millisecond. Nobody else has looked at leases meanwhile.
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(left().await, 59, "60 s less what has passed, rounded down");
    });
    member.stop();
}

#[test]
fn what_apply_and_the_lessor_have_done_is_counted() {
    let member = TestMember::new();
    member.wait(async |door| {
        let call = async |request| door.call(&Context::default(), request).await.expect("it is served");
        call(put("a".into())).await;
        let ops = [
            pb::request_op::Request::RequestPut(pb::PutRequest { key: "b".into(), ..Default::default() }),
            pb::request_op::Request::RequestRange(pb::RangeRequest { key: "a".into(), ..Default::default() }),
            pb::request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: "a".into(),
                ..Default::default()
            }),
        ];
        let success = ops.map(|op| pb::RequestOp { request: Some(op) }).to_vec();
        call(Request::Txn(pb::TxnRequest { success, ..Default::default() })).await;
        for id in [1, 2] {
            call(Request::LeaseGrant(pb::LeaseGrantRequest { id, ttl: 60 })).await;
        }
        call(Request::LeaseRevoke(pb::LeaseRevokeRequest { id: 2 })).await;
        for id in [1, 2] {
            let request = pb::LeaseKeepAliveRequest { id };
            door.keep_alive(&Context::default(), request).await.expect("it leads");
        }
        let counters = &door.views().counters;
        let counts = [&counters.puts, &counters.deletes, &counters.ranges, &counters.txns].map(|one| one.value());
        assert_eq!(counts, [2, 1, 1, 1], "puts, deletes, ranges, transactions");
        assert_eq!((counters.leases_granted.value(), counters.leases_revoked.value()), (2, 1));
        assert_eq!(door.member().lessor.renewed(), 1);
    });
    member.stop();
}
