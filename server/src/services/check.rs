//! What can be said of a request without looking at any state, in etcd's order. Its op limit and its size limit are the
//! only configuration.

use std::collections::BTreeMap;
use std::ops::Bound;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use daymark_api::etcdserverpb::request_op::Request as Op;
use hashbrown::HashSet;
use prost::Message;
use rustc_hash::FxBuildHasher;

use crate::config::values;
use crate::error::Error;
use crate::limits;
use crate::query::{contains_put, contains_write};
use crate::request::{Request, StreamRequest};
use crate::views::Room;

/// Whether the request is refused for want of room on disk.
pub fn room(request: &Request, room: Room) -> Result<(), Error> {
    let refused = match room {
        Room::Ample => false,
        Room::Scarce => adds_data(request),
        Room::Spent => writes(request),
    };
    if refused { Err(Error::NoSpace) } else { Ok(()) }
}

/// Whether it may add data to the store.
fn adds_data(request: &Request) -> bool {
    match request {
        Request::Put(_) | Request::LeaseGrant(_) => true,
        Request::Txn(txn) => contains_put(txn),
        _ => false,
    }
}

/// Whether it may add to history. What a delete frees comes only with a compaction.
fn writes(request: &Request) -> bool {
    match request {
        Request::DeleteRange(_) | Request::LeaseRevoke(_) => true,
        Request::Txn(txn) => contains_write(txn),
        request => adds_data(request),
    }
}

/// Whether a learner answers it, as in etcd: what may be out of date.
pub fn is_for_learners(request: &Request) -> bool {
    match request {
        Request::Status(_) => true,
        Request::Range(range) => range.serializable,
        _ => false,
    }
}

/// Empty key, then sort order, then sort target.
pub fn range(request: &pb::RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(Error::InvalidSortOption);
    }
    Ok(())
}

/// What a call that is answered with a stream needs, as far as it can be seen without state.
pub fn stream(request: &StreamRequest) -> Result<(), Error> {
    match request {
        StreamRequest::RangeStream(request) => range_stream(request),
        StreamRequest::Observe(_) | StreamRequest::Snapshot(_) => Ok(()),
    }
}

/// As for a Range, then what only a whole answer can have: an order of its own, and bounds on revisions. (With no order
/// a target other than the key counts as the default, as in etcd.)
fn range_stream(request: &pb::RangeRequest) -> Result<(), Error> {
    range(request)?;
    let by_key = request.sort_target == SortTarget::Key as i32;
    let ascends = by_key && request.sort_order == SortOrder::Ascend as i32;
    if request.sort_order != SortOrder::None as i32 && !ascends {
        return Err(Error::StreamSortOrder);
    }
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    if bounds.iter().any(|bound| *bound != 0) { Err(Error::StreamRevisionFilters) } else { Ok(()) }
}

/// Empty key, then a value that is to be ignored, then a lease that is.
pub fn put(request: &pb::PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Empty key.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// The peer addresses of a member that is to be added.
pub fn member_add(request: &pb::MemberAddRequest) -> Result<(), Error> {
    let urls = &request.peer_ur_ls;
    let bounded = urls.len() <= limits::PEER_URLS_MAX && urls.iter().all(|url| url.len() <= limits::PEER_URL_BYTES_MAX);
    let valid = bounded && urls.iter().all(|url| values::parse_url(url.trim()).is_ok());
    if urls.is_empty() || !valid { Err(Error::MemberUrlsInvalid) } else { Ok(()) }
}

/// Structure first (number of operations, compares, operations), then overlaps in each branch.
pub fn txn(request: &pb::TxnRequest, ops_max: usize) -> Result<(), Error> {
    structure(request, ops_max)?;
    overlaps(&request.success)?;
    overlaps(&request.failure)?;
    Ok(())
}

/// Size of a command as etcd counts it: the message in its envelope, which carries a request id.
pub fn size(message: &impl Message, bytes_max: usize) -> Result<(), Error> {
    /// Header field with an id of eight or nine varint bytes, and the field that holds the message.
    const ENVELOPE_BYTES: usize = 14;
    let length = message.encoded_len();
    let encoded = ENVELOPE_BYTES + prost::encoding::encoded_len_varint(length as u64) + length;
    if encoded > bytes_max { Err(Error::RequestTooLarge) } else { Ok(()) }
}

/// Size of a request that becomes a command as it is.
pub fn request_size(request: &Request, bytes_max: usize) -> Result<(), Error> {
    match request {
        Request::Put(put) => size(put, bytes_max),
        Request::DeleteRange(delete) => size(delete, bytes_max),
        Request::Txn(txn) => size(txn, bytes_max),
        _ => Ok(()),
    }
}

/// Whether a request is answered from a state that holds everything acknowledged before. What is replicated needs no
/// such thing, and a local read does without.
pub fn reads_what_is_current(request: &Request) -> bool {
    match request {
        Request::Range(range) => !range.serializable,
        Request::Txn(txn) => is_read_only(txn) && !is_serializable(txn),
        Request::Authenticate(_) | Request::AuthStatus(_) => true,
        Request::UserGet(_) | Request::UserList(_) | Request::RoleGet(_) | Request::RoleList(_) => true,
        _ => false,
    }
}

/// As [`reads_what_is_current`] for calls that are answered with a stream.
pub fn streams_what_is_current(request: &StreamRequest) -> bool {
    match request {
        StreamRequest::RangeStream(range) => !range.serializable,
        StreamRequest::Observe(_) | StreamRequest::Snapshot(_) => false,
    }
}

/// Whether a request becomes a command whose rights apply looks at, whatever is done before, and which it may refuse for
/// another reason first. What is answered from a read is none of these.
pub fn is_write_to_keys(request: &Request) -> bool {
    match request {
        Request::Put(_) | Request::DeleteRange(_) => true,
        Request::Txn(txn) => !is_read_only(txn),
        _ => false,
    }
}

/// Whether apply has the last word on a request.
pub fn is_decided_by_apply(request: &Request) -> bool {
    is_write_to_keys(request)
        || matches!(
            request,
            Request::AuthEnable(_)
                | Request::AuthDisable(_)
                | Request::UserAdd(_)
                | Request::UserDelete(_)
                | Request::UserChangePassword(_)
                | Request::UserGrantRole(_)
                | Request::UserRevokeRole(_)
                | Request::RoleAdd(_)
                | Request::RoleDelete(_)
                | Request::RoleGrantPermission(_)
                | Request::RoleRevokePermission(_)
        )
}

/// Whether a transaction is answered without replication: only ranges, directly in its branches.
pub fn is_read_only(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).all(|op| matches!(op.request, Some(Op::RequestRange(_))))
}

/// Whether it needs no leader either. True for one without operations, which so is a local, perhaps stale, read.
pub fn is_serializable(request: &pb::TxnRequest) -> bool {
    let serializable = |op: &pb::RequestOp| matches!(&op.request, Some(Op::RequestRange(range)) if range.serializable);
    request.success.iter().chain(&request.failure).all(serializable)
}

/// Levels share the budget of their parent.
fn structure(request: &pb::TxnRequest, ops_max: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max {
        return Err(Error::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Op::RequestRange(request)) => range(request)?,
            Some(Op::RequestPut(request)) => put(request)?,
            Some(Op::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Op::RequestTxn(nested)) => structure(nested, ops_max - ops)?,
            None => return Err(Error::KeyNotFound),
        }
    }
    Ok(())
}

/// Keys put and intervals deleted in a branch, nested ones included.
#[derive(Default)]
struct Touched<'a> {
    puts: HashSet<&'a [u8], FxBuildHasher>,
    deleted_keys: HashSet<&'a [u8], FxBuildHasher>,
    /// Start to end, half-open, disjoint. One zero byte as end is taken literally, as etcd does: such a delete covers
    /// nothing here.
    deleted_ranges: BTreeMap<&'a [u8], &'a [u8]>,
}

/// A key may be put once in a branch, and not be put and deleted. The order of the steps is etcd's, including what it
/// lets through: deletes of a later nested transaction are not held against puts of an earlier one.
fn overlaps(ops: &[pb::RequestOp]) -> Result<Touched<'_>, Error> {
    let mut touched = Touched::default();
    for op in ops {
        if let Some(Op::RequestDeleteRange(delete)) = &op.request {
            touched.add_delete(&delete.key, &delete.range_end);
        }
    }
    for op in ops {
        let Some(Op::RequestTxn(nested)) = &op.request else { continue };
        let (success, failure) = (overlaps(&nested.success)?, overlaps(&nested.failure)?);
        for key in &success.puts {
            touched.add_put(key)?;
        }
        for key in &failure.puts {
            // The two branches exclude each other.
            if !success.puts.contains(key) {
                touched.add_put(key)?;
            }
        }
        touched.add_deletes(success);
        touched.add_deletes(failure);
    }
    for op in ops {
        if let Some(Op::RequestPut(put)) = &op.request {
            touched.add_put(&put.key)?;
        }
    }
    Ok(touched)
}

impl<'a> Touched<'a> {
    fn add_put(&mut self, key: &'a [u8]) -> Result<(), Error> {
        if self.deletes(key) || !self.puts.insert(key) {
            return Err(Error::DuplicateKey);
        }
        Ok(())
    }

    fn deletes(&self, key: &[u8]) -> bool {
        let range = self.last_range_from(key);
        self.deleted_keys.contains(key) || range.is_some_and(|(_, end)| key < end)
    }

    fn add_delete(&mut self, key: &'a [u8], range_end: &'a [u8]) {
        if range_end.is_empty() {
            self.deleted_keys.insert(key);
        } else if key < range_end {
            self.add_range(key, range_end);
        }
    }

    /// Merges with what it touches, so that looking a key up stays cheap whatever a client sends.
    fn add_range(&mut self, mut start: &'a [u8], mut end: &'a [u8]) {
        while let Some((other_start, other_end)) = self.last_range_from(end) {
            if other_end < start {
                break;
            }
            self.deleted_ranges.remove(other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.deleted_ranges.insert(start, end);
    }

    /// The last range that starts at or before `key`.
    fn last_range_from(&self, key: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        self.deleted_ranges.range::<[u8], _>(up_to).next_back().map(|(start, end)| (*start, *end))
    }

    fn add_deletes(&mut self, other: Touched<'a>) {
        self.deleted_keys.extend(other.deleted_keys);
        for (start, end) in other.deleted_ranges {
            self.add_range(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn op(request: Op) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_op(key: &str) -> pb::RequestOp {
        op(Op::RequestPut(pb::PutRequest { key: key.to_owned().into(), ..Default::default() }))
    }

    fn delete_op(key: &str, range_end: &str) -> pb::RequestOp {
        let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
        op(Op::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false }))
    }

    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Op::RequestTxn(pb::TxnRequest { compare: Vec::new(), success, failure }))
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), Error> {
        let forward = pb::TxnRequest { success, ..Default::default() };
        let backward = pb::TxnRequest { failure: forward.success.clone(), ..Default::default() };
        assert_eq!(txn(&forward, 128), txn(&backward, 128), "both branches follow the same rule");
        txn(&forward, 128)
    }

    #[test]
    fn duplicate_keys() {
        let duplicate = Err(Error::DuplicateKey);
        assert_eq!(check(vec![put_op("a"), put_op("b")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), duplicate);
        assert_eq!(check(vec![put_op("a"), nested(vec![put_op("a")], vec![])]), duplicate);
        assert_eq!(check(vec![nested(vec![], vec![put_op("a")]), nested(vec![put_op("a")], vec![])]), duplicate);
        assert_eq!(check(vec![nested(vec![put_op("a")], vec![put_op("a")])]), Ok(()), "they exclude each other");
        assert_eq!(check(vec![put_op("a"), delete_op("a", "")]), duplicate);
        assert_eq!(check(vec![delete_op("a", ""), put_op("a")]), duplicate, "in whatever order");
        assert_eq!(check(vec![delete_op("a", "c"), put_op("b")]), duplicate);
        assert_eq!(check(vec![delete_op("a", "c"), put_op("c")]), Ok(()), "the end does not belong to it");
        assert_eq!(check(vec![delete_op("a", "c"), nested(vec![put_op("b")], vec![])]), duplicate);
        assert_eq!(check(vec![nested(vec![delete_op("a", "c")], vec![]), put_op("b")]), duplicate);
        assert_eq!(check(vec![delete_op("a", "c"), delete_op("b", "d"), delete_op("b", "")]), Ok(()));
    }

    /// What etcd lets through, which clients may rely on.
    #[test]
    fn quirks_of_the_duplicate_rule() {
        assert_eq!(check(vec![delete_op("a", "\0"), put_op("b")]), Ok(()), "from-key deletes cover nothing");
        let (puts, deletes) = (|| nested(vec![put_op("b")], vec![]), || nested(vec![delete_op("a", "c")], vec![]));
        assert_eq!(check(vec![puts(), deletes()]), Ok(()), "deletes of a later sibling do not count");
        assert_eq!(check(vec![deletes(), puts()]), Err(Error::DuplicateKey));
    }

    #[test]
    fn structure_is_checked_before_overlaps_and_in_order() {
        let many = |count: usize| (0..count).map(|n| put_op(&n.to_string())).collect::<Vec<_>>();
        assert_eq!(check(many(128)), Ok(()));
        assert_eq!(check(many(129)), Err(Error::TooManyOps));
        let empty_compare = pb::TxnRequest {
            compare: vec![pb::Compare::default()],
            success: vec![pb::RequestOp { request: None }],
            ..Default::default()
        };
        assert_eq!(txn(&empty_compare, 128), Err(Error::EmptyKey));
        assert_eq!(txn(&empty_compare, 0), Err(Error::TooManyOps), "the number comes first");
        assert_eq!(check(vec![pb::RequestOp { request: None }]), Err(Error::KeyNotFound));
        assert_eq!(check(vec![put_op("a"), put_op("a"), put_op("")]), Err(Error::EmptyKey), "before duplicates");
    }

    #[test]
    fn nested_transactions_share_the_budget_of_their_parent() {
        let with_nested = |own: usize, inner: usize| {
            let mut ops: Vec<_> = (1..own).map(|n| put_op(&n.to_string())).collect();
            ops.push(nested((0..inner).map(|n| put_op(&format!("n{n}"))).collect(), vec![]));
            check(ops)
        };
        assert_eq!(with_nested(100, 28), Ok(()));
        assert_eq!(with_nested(100, 29), Err(Error::TooManyOps));
        assert_eq!(with_nested(128, 1), Err(Error::TooManyOps));
    }

    #[test]
    fn single_operations() {
        let range_with = |sort_order, sort_target, key: &'static str| {
            range(&pb::RangeRequest { key: key.into(), sort_order, sort_target, ..Default::default() })
        };
        assert_eq!(range_with(2, 4, "k"), Ok(()));
        assert_eq!(range_with(3, 0, "k"), Err(Error::InvalidSortOption));
        assert_eq!(range_with(0, 5, "k"), Err(Error::InvalidSortOption));
        assert_eq!(range_with(3, 5, ""), Err(Error::EmptyKey));
        let (value, lease) = ("v".into(), 7);
        let both = pb::PutRequest { value, lease, ignore_value: true, ignore_lease: true, ..Default::default() };
        assert_eq!(put(&both), Err(Error::EmptyKey));
        let both = pb::PutRequest { key: "k".into(), ..both };
        assert_eq!(put(&both), Err(Error::ValueProvided));
        let lease_only = pb::PutRequest { value: Default::default(), ..both.clone() };
        assert_eq!(put(&lease_only), Err(Error::LeaseProvided));
        assert_eq!(put(&pb::PutRequest { lease: 0, ..lease_only }), Ok(()));
    }

    /// Which requests each shortage of room refuses, in etcd's words.
    #[test]
    fn what_is_refused_for_want_of_room() {
        let txn = |op: pb::RequestOp| {
            let inner = pb::TxnRequest { failure: vec![op], ..Default::default() };
            let success = vec![pb::RequestOp { request: Some(Op::RequestTxn(inner)) }];
            Request::Txn(pb::TxnRequest { success, ..Default::default() })
        };
        let range_op = op(Op::RequestRange(pb::RangeRequest::default()));
        let (served, refused) = (Ok(()), Err(Error::NoSpace));
        for (request, scarce, spent) in [
            (Request::Put(Default::default()), &refused, &refused),
            (Request::LeaseGrant(Default::default()), &refused, &refused),
            (txn(put_op("k")), &refused, &refused),
            (Request::DeleteRange(Default::default()), &served, &refused),
            (Request::LeaseRevoke(Default::default()), &served, &refused),
            (txn(delete_op("k", "")), &served, &refused),
            (txn(range_op), &served, &served),
            (Request::Range(Default::default()), &served, &served),
            (Request::Compact(Default::default()), &served, &served),
            (Request::Alarm(Default::default()), &served, &served),
        ] {
            assert_eq!(room(&request, Room::Ample), served, "{request:?}");
            assert_eq!(&room(&request, Room::Scarce), scarce, "{request:?}");
            assert_eq!(&room(&request, Room::Spent), spent, "{request:?}");
        }
    }

    #[test]
    fn the_size_limit_counts_the_envelope() {
        let with_value =
            |bytes: usize| pb::PutRequest { key: "k".into(), value: vec![0; bytes].into(), ..Default::default() };
        let limit = 1_572_864;
        assert_eq!(size(&with_value(limit - 64), limit), Ok(()));
        assert_eq!(size(&with_value(limit - 8), limit), Err(Error::RequestTooLarge));
    }

    proptest! {
        /// Merged ranges against the list of them.
        #[test]
        fn merged_ranges_cover_what_the_single_ones_cover(
            ranges in prop::collection::vec(("[a-d]{1,2}", "[a-d]{1,2}"), 0..12),
            keys in prop::collection::vec("[a-d]{1,3}", 0..20),
        ) {
            let mut touched = Touched::default();
            for (start, end) in &ranges {
                touched.add_delete(start.as_bytes(), end.as_bytes());
            }
            for key in &keys {
                let covered = ranges.iter().any(|(start, end)| start <= key && key < end);
                prop_assert_eq!(touched.deletes(key.as_bytes()), covered, "{}", key);
            }
        }
    }
}
