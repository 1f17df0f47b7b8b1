//! What may differ between etcd and Daymark, taken out of answers before they are compared: the one list, each entry with
//! its reason. Whatever is not here must be equal.

use std::cmp::Ordering;

use bytes::Bytes;
use daymark_api::{
    etcdserverpb::{self as pb, RangeRequest, RangeResponse, TxnResponse, response_op::Response as OpResponse},
    mvccpb::KeyValue,
};
use prost::Message;
use tonic::Status;

use super::{
    call::{Shown, show},
    generate::Request,
};

/// Numbers that are each server's own, by their names in an answer's text: identities are derived from addresses, terms
/// count elections, positions count entries, sizes are those of different engines.
const OWN_NUMBERS: &[&str] = &[
    "cluster_id: ",
    "member_id: ",
    "raft_term: ",
    "raft_index: ",
    "raft_applied_index: ",
    "db_size: ",
    "db_size_in_use: ",
];

/// An answer's text without such numbers, and with a word for the member's id and its addresses.
pub fn text(text: &str, names: &[(String, &'static str)]) -> String {
    let mut text = text.to_owned();
    for (name, word) in names {
        text = text.replace(name, word);
    }
    OWN_NUMBERS.iter().fold(text, |text, name| without_number(&text, name))
}

fn without_number(text: &str, name: &str) -> String {
    let mut pieces = text.split(name);
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        out.push_str(name);
        out.push('#');
        out.push_str(piece.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    out
}

/// A role: its permissions are in the order of their keys, and those of one key in no order that is promised (etcd's sort is
/// not stable).
pub fn role(bytes: &[u8]) -> Shown {
    let mut role = pb::AuthRoleGetResponse::decode(bytes).unwrap_or_default();
    let sorted = role.perm.windows(2).all(|pair| pair[0].key <= pair[1].key);
    role.perm.sort_by(|a, b| (&a.key, &a.range_end).cmp(&(&b.key, &b.range_end)));
    let (text, revision) = show::<pb::AuthRoleGetResponse>(&role.encode_to_vec());
    (format!("in order: {sorted} {text}"), revision)
}

/// The end of a role's right that begins at this key: always the same one. With several rights that begin at one key etcd may
/// look at another one of them when a right is given anew, and then keeps both the old and the new one. Daymark
/// replaces the old one.
pub fn end_of_right(key: &[u8]) -> Bytes {
    match key {
        [] | [_, _, _] => Bytes::new(),
        [b'a' | b'b'] => Bytes::from_static(b"\0"),
        [.., last] if *last < 0xff => [&key[..key.len() - 1], &[last + 1]].concat().into(),
        // No keys: refused.
        _ => Bytes::from_static(b"a"),
    }
}

/// Whether a range has no keys by its very form. While users count such ranges are not asked: whether etcd refuses them to a
/// user who may read around them depends on the shape of its tree of permissions, which depends on the order in which
/// they were given. Daymark goes by the key.
pub fn is_without_keys(key: &[u8], range_end: &[u8]) -> bool {
    !range_end.is_empty() && range_end != [0] && range_end <= key
}

/// A stream without an order but with a target other than the key is not asked for: etcd sorts each of its chunks by that
/// target, and then takes the last key of a chunk, which is not the largest one, for the place to go on from, so that keys
/// come twice or never. Daymark streams in the order of keys.
pub fn streamable(range: RangeRequest) -> RangeRequest {
    let sort_target = if range.sort_order == 0 { 0 } else { range.sort_target };
    RangeRequest { sort_target, ..range }
}

/// Only of etcd 3.5.1 (`old`): A transaction of which several steps are impossible: 3.5.1 looks at its puts first and at keys before leases, present
/// etcd goes by the order of the steps and looks at leases first. One mistake at a time is in the refusals.
pub fn error(request: &Request, status: &Status, old: bool) -> String {
    const IMPOSSIBLE: [&str; 4] = [
        "etcdserver: key not found",
        "etcdserver: requested lease not found",
        "etcdserver: mvcc: required revision has been compacted",
        "etcdserver: mvcc: required revision is a future revision",
    ];
    if old && matches!(request, Request::Txn(_)) && IMPOSSIBLE.contains(&status.message()) {
        return "a step is impossible".to_owned();
    }
    format!("{:?}: {}", status.code(), status.message())
}

/// Equal elements of a sorted answer come in any order, and a limit picks any of them. Of `old` etcd 3.5.1 only: it reads
/// the record for a range of keys and shows the lease, where 3.7 answers from its index, without.
pub fn range(request: &RangeRequest, answer: &mut RangeResponse, old: bool) {
    if old && request.keys_only {
        answer.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
    let target = request.sort_target;
    if target == 0 {
        return;
    }
    let limited = request.limit > 0 && answer.more;
    let order = |a: &KeyValue, b: &KeyValue| match target {
        1 => a.version.cmp(&b.version),
        2 => a.create_revision.cmp(&b.create_revision),
        3 => a.mod_revision.cmp(&b.mod_revision),
        _ => a.value.cmp(&b.value),
    };
    if request.keys_only && target == 4 {
        // Sorted by values that are not in the answer.
        answer.kvs.sort_by(|a, b| a.key.cmp(&b.key));
        if limited {
            answer.kvs.iter_mut().for_each(|kv| *kv = KeyValue::default());
        }
        return;
    }
    let mut from = 0;
    while from < answer.kvs.len() {
        let first = &answer.kvs[from];
        let equal = answer.kvs[from..].iter().take_while(|kv| order(first, kv) == Ordering::Equal).count();
        let group = &mut answer.kvs[from..from + equal];
        group.sort_by(|a, b| a.key.cmp(&b.key));
        if limited && from + equal == answer.kvs.len() {
            answer.kvs[from..].iter_mut().for_each(|kv| erase_identity(kv, target));
        }
        from += equal;
    }
}

/// Leaves of a pair only what it was sorted by.
fn erase_identity(kv: &mut KeyValue, target: i32) {
    let old = std::mem::take(kv);
    match target {
        1 => kv.version = old.version,
        2 => kv.create_revision = old.create_revision,
        3 => kv.mod_revision = old.mod_revision,
        _ => kv.value = old.value,
    }
}

pub fn txn(request: &pb::TxnRequest, answer: &mut TxnResponse, old: bool) {
    let branch = if answer.succeeded { &request.success } else { &request.failure };
    for (op, response) in branch.iter().zip(&mut answer.responses) {
        match (&op.request, &mut response.response) {
            (Some(pb::request_op::Request::RequestRange(range)), Some(OpResponse::ResponseRange(answer))) => {
                self::range(range, answer, old);
            }
            (Some(pb::request_op::Request::RequestTxn(txn)), Some(OpResponse::ResponseTxn(answer))) => {
                self::txn(txn, answer, old);
            }
            _ => {}
        }
    }
}
