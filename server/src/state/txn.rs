//! A transaction: every compare on the taken path is evaluated against the state before the transaction, then every
//! operation of that path is checked against it, then they run in order. So a refusal comes before the first write.

use std::vec;

use daymark_storage::mvcc::{KeyRange, RangeEnd, WriteTxn};

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::request_op::Request as Op;
use daymark_api::etcdserverpb::response_op::Response;

use super::lease::{LeaseMove, LeaseTable};
use super::{AnswerRoom, Failure, check_put, do_delete, do_put, header};
use crate::error::Error;
use crate::query::{self, InTxn, Meter, Plan};

/// Runs `request` in `txn`; the answer's header is left to the caller. After a failure the caller drops `txn`.
pub(super) fn execute(
    txn: &mut WriteTxn<'_>,
    request: pb::TxnRequest,
    leases: &LeaseTable,
    compact_revision: i64,
    moves: &mut Vec<LeaseMove>,
) -> Result<pb::TxnResponse, Failure> {
    let mut path = Vec::new();
    evaluate(txn, &request, &mut path)?;
    check(txn, &request, leases, compact_revision, &mut path.clone().into_iter())?;
    run(txn, request, &mut path.into_iter(), moves, &mut AnswerRoom::default())
}

/// Outcomes of the compares of each transaction on the taken path, in the order in which the path meets them.
type Path = vec::IntoIter<bool>;

fn evaluate(txn: &mut WriteTxn<'_>, request: &pb::TxnRequest, path: &mut Vec<bool>) -> Result<(), Failure> {
    let succeeded = query::all_hold(&mut InTxn { txn, revision: 0 }, &request.compare)?;
    path.push(succeeded);
    for op in taken(request, succeeded) {
        if let Some(Op::RequestTxn(nested)) = &op.request {
            evaluate(txn, nested, path)?;
        }
    }
    Ok(())
}

fn check(
    txn: &mut WriteTxn<'_>,
    request: &pb::TxnRequest,
    leases: &LeaseTable,
    compact_revision: i64,
    path: &mut Path,
) -> Result<(), Failure> {
    let succeeded = path.next().expect("evaluated before");
    for op in taken(request, succeeded) {
        match &op.request {
            Some(Op::RequestRange(range)) => {
                query::check_revision_in_txn(range.revision, txn.base_revision(), compact_revision)?;
            }
            Some(Op::RequestPut(put)) => check_put(leases, txn, put)?,
            Some(Op::RequestTxn(nested)) => check(txn, nested, leases, compact_revision, path)?,
            Some(Op::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

fn run(
    txn: &mut WriteTxn<'_>,
    request: pb::TxnRequest,
    path: &mut Path,
    moves: &mut Vec<LeaseMove>,
    room: &mut AnswerRoom,
) -> Result<pb::TxnResponse, Failure> {
    let succeeded = path.next().expect("evaluated before");
    let ops = if succeeded { request.success } else { request.failure };
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match op.request {
            Some(Op::RequestRange(range)) => {
                let mut response = read(txn, &range, room)?;
                response.header = header(revision_now(txn));
                Response::ResponseRange(response)
            }
            Some(Op::RequestPut(put)) => {
                let wants_prev = put.prev_kv;
                let previous = do_put(txn, put, moves)?;
                room.charge(previous.as_ref().filter(|_| wants_prev).map_or(0, query::encoded_len))?;
                let prev_kv = if wants_prev { previous.map(query::pair) } else { None };
                Response::ResponsePut(pb::PutResponse { header: header(revision_now(txn)), prev_kv })
            }
            Some(Op::RequestDeleteRange(delete)) => {
                let mut response = do_delete(txn, &delete, moves, room)?;
                response.header = header(revision_now(txn));
                Response::ResponseDeleteRange(response)
            }
            Some(Op::RequestTxn(nested)) => {
                let mut response = run(txn, nested, path, moves, room)?;
                response.header = header(0);
                Response::ResponseTxn(response)
            }
            // Refused before it is proposed; the same answer here keeps apply total.
            None => return Err(Failure::Client(Error::KeyNotFound)),
        };
        responses.push(pb::ResponseOp { response: Some(response) });
    }
    Ok(pb::TxnResponse { header: None, succeeded, responses })
}

/// A range inside of the transaction, in pieces, as far as there is room for its answer.
fn read(
    txn: &mut WriteTxn<'_>,
    request: &pb::RangeRequest,
    room: &mut AnswerRoom,
) -> Result<pb::RangeResponse, Failure> {
    let mut view = InTxn { txn, revision: request.revision };
    let range = KeyRange::from_wire(&request.key, &request.range_end);
    if range.end == RangeEnd::Point {
        let response = query::range(&mut view, request)?;
        room.charge(response.kvs.iter().map(prost::Message::encoded_len).sum())?;
        return Ok(response);
    }
    Ok(query::range_in_pieces(&mut view, range, &Plan::new(request), room)?)
}

fn taken(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

/// What an operation's header shows: the revision that the transaction makes, once it has written something.
fn revision_now(txn: &WriteTxn<'_>) -> i64 {
    txn.base_revision() + i64::from(txn.changed())
}
