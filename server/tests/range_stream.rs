//! RangeStream through the front door: its pieces together are the answer of a Range, of one revision, and no more of it
//! is in memory than its caller has room for.

use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_server::budget::Budget;
use daymark_server::error::{Code, Error};
use daymark_server::limits;
use daymark_server::request::{Context, Reply, Request, Sink, StreamRequest, Taken};
use daymark_server::services::Door;
use futures_util::future::join_all;
use prost::Message;

use crate::member::TestMember;

const KEYS: usize = 400;

async fn call(door: &Rc<Door>, request: Request) -> Reply {
    door.call(&Context::default(), request).await.expect("an answer")
}

async fn fill(door: &Rc<Door>) {
    let puts = (0..KEYS).map(|n| {
        let value = vec![b'v'; 5000 + n].into();
        let put = pb::PutRequest { key: format!("k{n:04}").into(), value, ..Default::default() };
        call(door, Request::Put(put))
    });
    join_all(puts).await;
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
}

fn serve(door: &Rc<Door>, request: pb::RangeRequest) -> Sink {
    let sink = Sink::new(limits::STREAM_QUEUE_BYTES_MAX);
    let (door, to) = (door.clone(), sink.clone());
    let request = StreamRequest::RangeStream(request);
    tokio::task::spawn_local(async move { door.serve_stream(Context::default(), request, to).await });
    sink
}

/// The next message as bytes, or how the call ended.
async fn next(sink: &Sink) -> Result<Option<Bytes>, Error> {
    std::future::poll_fn(|context| match sink.take(context.waker()) {
        Taken::Message(parts) => std::task::Poll::Ready(Ok(Some(parts.concat().into()))),
        Taken::End(end) => std::task::Poll::Ready(end.map(|()| None)),
        Taken::Pending => std::task::Poll::Pending,
    })
    .await
}

async fn pieces(door: &Rc<Door>, request: pb::RangeRequest) -> Result<Vec<pb::RangeResponse>, Error> {
    let (sink, mut pieces) = (serve(door, request), Vec::new());
    while let Some(bytes) = next(&sink).await? {
        pieces.push(pb::RangeStreamResponse::decode(bytes).expect("a piece").range_response.expect("a part"));
    }
    Ok(pieces)
}

#[test]
fn the_pieces_together_are_the_answer_of_a_range() {
    let member = TestMember::new();
    member.wait(async |door| {
        fill(&door).await;
        let mut requests = vec![
            pb::RangeRequest { key: "k0007".into(), ..Default::default() },
            pb::RangeRequest { key: "none".into(), ..Default::default() },
            pb::RangeRequest { key: "l".into(), range_end: "k".into(), ..Default::default() },
            pb::RangeRequest { count_only: true, ..all() },
            pb::RangeRequest { keys_only: true, ..all() },
            pb::RangeRequest { revision: 50, ..all() },
            pb::RangeRequest { sort_order: 1, serializable: true, ..all() },
            pb::RangeRequest { range_end: Bytes::from_static(&[0]), ..all() },
        ];
        requests.extend([-1, 1, 9, 10, 11, 399, 400, 401].map(|limit| pb::RangeRequest { limit, ..all() }));
        requests.push(all());
        for request in requests {
            let Reply::Range(expected) = call(&door, Request::Range(request.clone())).await else { panic!("a range") };
            let pieces = pieces(&door, request.clone()).await.expect("pieces");
            let (last, others) = pieces.split_last().expect("at least one");
            for piece in others {
                assert!(piece.header.is_none() && piece.count == 0 && !piece.more && !piece.kvs.is_empty());
                assert!(piece.encoded_len() <= limits::RANGE_PIECE_BYTES + (64 << 10), "{}", piece.encoded_len());
            }
            assert!(pieces[0].kvs.len() <= limits::STREAM_FIRST_PAIRS);
            assert!(last.header.as_ref().is_some_and(|header| header.member_id != 0));
            let bytes: Vec<u8> = pieces.iter().flat_map(Message::encode_to_vec).collect();
            assert_eq!(pb::RangeResponse::decode(&bytes[..]).expect("merged"), expected, "{request:?}");
        }
    });
    member.stop();
}

#[test]
fn what_only_a_whole_answer_can_have_is_refused() {
    let member = TestMember::new();
    member.wait(async |door| {
        let order = "RangeStream does not support custom sort orders";
        let filters = "RangeStream does not support revision filters";
        let refusals = [
            (pb::RangeRequest { sort_order: 2, ..all() }, Code::Unimplemented, order),
            (pb::RangeRequest { sort_order: 1, sort_target: 3, ..all() }, Code::Unimplemented, order),
            (pb::RangeRequest { min_mod_revision: 1, ..all() }, Code::Unimplemented, filters),
            (pb::RangeRequest { max_create_revision: -1, ..all() }, Code::Unimplemented, filters),
            (pb::RangeRequest { sort_order: 2, max_mod_revision: 1, ..all() }, Code::Unimplemented, order),
            (pb::RangeRequest { sort_order: 9, ..all() }, Code::InvalidArgument, "etcdserver: invalid sort option"),
            (pb::RangeRequest::default(), Code::InvalidArgument, "etcdserver: key is not provided"),
            (
                pb::RangeRequest { revision: 9, ..all() },
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
        ];
        for (request, code, text) in refusals {
            let error = pieces(&door, request.clone()).await.expect_err("refused");
            assert_eq!((error.code(), &error.text()[..]), (code, text), "{request:?}");
        }
        assert!(pieces(&door, pb::RangeRequest { sort_target: 3, ..all() }).await.is_ok());
    });
    member.stop();
}

/// Written while it is read: not seen. Compacted while it is read: told.
#[test]
fn a_stream_reads_one_revision_until_that_is_compacted() {
    let member = TestMember::new();
    member.wait(async |door| {
        fill(&door).await;
        let current = door.views().keyspace.current_revision();
        for compacts in [false, true] {
            let sink = serve(&door, all());
            let first = next(&sink).await.expect("no error").expect("a piece");
            let put = pb::PutRequest { key: "k9".into(), ..Default::default() };
            call(&door, Request::Put(put)).await;
            if compacts {
                let revision = door.views().keyspace.current_revision();
                call(&door, Request::Compact(pb::CompactionRequest { revision, physical: false })).await;
            }
            let mut bytes = vec![first];
            let end = loop {
                match next(&sink).await {
                    Ok(Some(piece)) => bytes.push(piece),
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            assert_eq!(end, compacts.then_some(Error::Compacted));
            let last = pb::RangeStreamResponse::decode(bytes.pop().expect("some")).expect("a piece");
            if !compacts {
                let last = last.range_response.expect("a part");
                assert_eq!((last.header.expect("a header").revision, last.count), (current, KEYS as i64));
            }
        }
    });
    member.stop();
}

#[test]
fn a_caller_that_does_not_read_is_not_read_for() {
    let member = TestMember::new();
    member.wait(async |door| {
        fill(&door).await;
        let sink = serve(&door, all());
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(sink.credit(), 0);
        let mut queued = 0;
        while let Taken::Message(parts) = sink.take(Waker::noop()) {
            queued += parts.iter().map(Bytes::len).sum::<usize>();
        }
        let most = limits::STREAM_QUEUE_BYTES_MAX + limits::RANGE_PIECE_BYTES + (64 << 10);
        assert!(queued > 0 && queued <= most, "{queued} of {} bytes", KEYS * 5200);
        assert!(next(&sink).await.is_ok_and(|piece| piece.is_some()), "it goes on once there is room");
    });
    member.stop();
}

/// Longer than what is kept while a sorted answer is built: the limit picks from all of it.
#[test]
fn a_sorted_range_with_a_limit_is_the_beginning_of_the_whole_one() {
    let member = TestMember::new();
    member.wait(async |door| {
        const MANY: usize = 5000;
        let puts = (0..MANY).map(|n| {
            // Neither keys nor values come in the order of revisions; many values are the same.
            let key = format!("s{:04}", n * 2477 % MANY).into();
            let put = pb::PutRequest { key, value: format!("{:02}", n * 31 % 97).into(), ..Default::default() };
            call(&door, Request::Put(put))
        });
        join_all(puts).await;
        for (sort_order, sort_target) in [(1, 3), (2, 3), (1, 4), (2, 4), (2, 2), (1, 1)] {
            let sorted = pb::RangeRequest {
                key: "s".into(),
                range_end: "t".into(),
                sort_order,
                sort_target,
                min_mod_revision: 9,
                ..Default::default()
            };
            let Reply::Range(whole) = call(&door, Request::Range(sorted.clone())).await else { panic!("a range") };
            assert_eq!((whole.kvs.len(), whole.count), (MANY - 7, MANY as i64));
            for limit in [1, 7, 600, 4000, MANY as i64] {
                let request = Request::Range(pb::RangeRequest { limit, ..sorted.clone() });
                let Reply::Range(part) = call(&door, request).await else { panic!("a range") };
                let some = whole.kvs.len().min(limit as usize);
                assert_eq!(part.kvs, whole.kvs[..some], "{sort_order} {sort_target} {limit}");
                assert_eq!((part.more, part.count), (some < whole.kvs.len(), MANY as i64));
            }
        }
    });
    member.stop();
}

/// Apply builds these answers while everything else waits.
#[test]
fn a_transaction_that_writes_answers_within_bounds_or_does_nothing() {
    let member = TestMember::new();
    member.wait(async |door| {
        let value = vec![b'v'; 1 << 20];
        for n in 0..70 {
            let put =
                pb::PutRequest { key: format!("k{n:02}").into(), value: value.clone().into(), ..Default::default() };
            call(&door, Request::Put(put)).await;
        }
        let before = door.views().keyspace.current_revision();
        let op = |request| pb::RequestOp { request: Some(request) };
        let put = pb::PutRequest { key: "other".into(), ..Default::default() };
        let put = op(pb::request_op::Request::RequestPut(put));
        let range = |limit| op(pb::request_op::Request::RequestRange(pb::RangeRequest { limit, ..all() }));
        let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true };
        let refused = [
            Request::Txn(pb::TxnRequest { success: vec![put.clone(), range(0)], ..Default::default() }),
            Request::Txn(pb::TxnRequest { success: vec![put.clone(), range(40), range(40)], ..Default::default() }),
            Request::DeleteRange(delete.clone()),
        ];
        for request in refused {
            let error = door.call(&Context::default(), request).await.expect_err("too large");
            assert_eq!(error, Error::AnswerTooLarge(limits::TXN_ANSWER_BYTES_MAX));
            assert_eq!(door.views().keyspace.current_revision(), before);
        }
        call(&door, Request::Txn(pb::TxnRequest { success: vec![put, range(60)], ..Default::default() })).await;
        let delete = pb::DeleteRangeRequest { prev_kv: false, ..delete };
        let Reply::DeleteRange(deleted) = call(&door, Request::DeleteRange(delete)).await else { panic!("a delete") };
        assert_eq!(deleted.deleted, 70);
    });
    member.stop();
}

/// One answer may take so much, and all of them together; who is refused is told what to do, and others go on.
#[test]
fn answers_are_bounded_in_memory_each_and_together() {
    let budget = Budget::new(6 << 20, 5 << 20);
    let member = TestMember::with_answers(budget.clone());
    member.wait(async |door| {
        fill(&door).await;
        let ask = async |request: Request| door.call(&Context::default(), request).await;
        let range = |limit| pb::RangeRequest { limit, ..all() };
        // Two megabytes of pairs count as a bit more than four: as they are read, and as they are sent.
        assert!(ask(Request::Range(all())).await.is_ok());
        assert_eq!(budget.used(), 0);
        // A transaction answers all of its ranges at once.
        let op = |request| pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(request)) };
        let txn = pb::TxnRequest { success: vec![op(range(0)), op(range(0))], ..Default::default() };
        let error = ask(Request::Txn(txn)).await.expect_err("it needs too much");
        assert_eq!((&error, error.code()), (&Error::AnswerTooLarge(5 << 20), Code::ResourceExhausted));
        assert!(error.text().contains("ask for less, with a limit or with RangeStream"), "{}", error.text());
        assert_eq!(budget.used(), 0, "what was taken is given back");
        let mut held = budget.share();
        held.grow(4 << 20).expect("nothing else is taken");
        let error = ask(Request::Range(all())).await.expect_err("the others take it");
        assert_eq!(error, Error::AnswersTooLarge(6 << 20));
        assert!(ask(Request::Range(range(20))).await.is_ok(), "there is room for less");
        let keys = pb::RangeRequest { keys_only: true, ..all() };
        assert!(ask(Request::Range(keys)).await.is_ok());
        drop(held);
        assert!(ask(Request::Range(all())).await.is_ok());
    });
    member.stop();
}
