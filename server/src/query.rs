//! Range requests and compares, answered from any view of the keyspace: the published one that net threads read, or the
//! transaction that apply is in. Does not know which, and knows no revisions' headers.

use bytes::{BufMut, Bytes, BytesMut};
use daymark_storage::mvcc::{KeyRange, KeyValue, RangeEnd, RangeOptions, RangeResult, ReadError, ReadTxn, WriteTxn};

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use daymark_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use daymark_api::etcdserverpb::request_op::Request as Op;
use daymark_api::mvccpb;

use crate::error::Error;
use crate::limits;

/// What a query is answered from.
pub trait View {
    /// The pair of `key`.
    fn get(&mut self, key: &[u8]) -> Result<Option<KeyValue>, ReadError>;
    /// The pairs of `range`.
    fn range(&mut self, range: &KeyRange, options: &RangeOptions) -> Result<RangeResult, ReadError>;
    /// The number of keys in `range`.
    fn count(&mut self, range: &KeyRange) -> Result<i64, ReadError> {
        let options = RangeOptions { count_only: true, ..RangeOptions::default() };
        Ok(self.range(range, &options)?.count)
    }
    /// The same if it is known without counting.
    fn known_count(&self, range: &KeyRange) -> Option<i64> {
        let _ = range;
        None
    }
}

/// Who pays for an answer while it is built.
pub trait Meter {
    /// One pair more, of so many encoded bytes; an error ends the read.
    fn charge(&mut self, bytes: usize) -> Result<(), Error>;
    /// A pair that was charged for is not needed after all.
    fn give_back(&mut self, bytes: usize);
    /// Between two pieces: an error ends the read.
    fn check(&self) -> Result<(), Error>;
}

impl View for ReadTxn {
    fn get(&mut self, key: &[u8]) -> Result<Option<KeyValue>, ReadError> {
        ReadTxn::get(self, key)
    }

    fn range(&mut self, range: &KeyRange, options: &RangeOptions) -> Result<RangeResult, ReadError> {
        ReadTxn::range(self, range, options)
    }

    fn known_count(&self, range: &KeyRange) -> Option<i64> {
        ReadTxn::known_count(self, range)
    }
}

/// A write transaction as of now (revision 0), or as of a revision before it.
pub struct InTxn<'a, 'w> {
    pub txn: &'a mut WriteTxn<'w>,
    pub revision: i64,
}

impl View for InTxn<'_, '_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<KeyValue>, ReadError> {
        if self.revision == 0 {
            return Ok(self.txn.get(key)?);
        }
        let range = KeyRange::point(Bytes::copy_from_slice(key));
        Ok(self.txn.range(&range, &RangeOptions::default(), self.revision)?.kvs.pop())
    }

    fn range(&mut self, range: &KeyRange, options: &RangeOptions) -> Result<RangeResult, ReadError> {
        self.txn.range(range, options, self.revision)
    }
}

/// What a Range request asks of the keyspace, and what is left to do with the result.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the keyspace does.
    pub options: RangeOptions,
    /// Sorting by something other than the key: by what, and whether descending.
    sort: Option<(SortTarget, bool)>,
    /// Pairs to keep after sorting; 0 for all.
    sorted_limit: usize,
    /// Values were only needed for sorting.
    blank_values: bool,
    /// Keys-only answers carry no lease, as etcd's since 3.7, which come from its index.
    blank_leases: bool,
}

impl Plan {
    /// The request must have passed the checks of sort order and target.
    pub fn new(request: &pb::RangeRequest) -> Self {
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let by_value = request.sort_target == SortTarget::Value as i32;
        let mut plan = Self {
            options: RangeOptions {
                limit,
                keys_only: request.keys_only && !by_value,
                count_only: request.count_only,
                min_mod: request.min_mod_revision,
                max_mod: request.max_mod_revision,
                min_create: request.min_create_revision,
                max_create: request.max_create_revision,
                ..RangeOptions::default()
            },
            sort: None,
            sorted_limit: 0,
            blank_values: request.keys_only && by_value,
            blank_leases: request.keys_only && !by_value,
        };
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        match (target, SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None)) {
            (SortTarget::Key, order) => plan.options.descending = order == SortOrder::Descend,
            (target, SortOrder::None) => {
                // etcd picks the first limit + 1 in key order and sorts only these, unless a filter is set.
                plan.sort = Some((target, false));
                plan.sorted_limit = limit;
                plan.options.limit = if limit == 0 || plan.has_filters() { 0 } else { limit + 1 };
            }
            (target, order) => {
                plan.sort = Some((target, order == SortOrder::Descend));
                plan.sorted_limit = limit;
                plan.options.limit = 0;
            }
        }
        plan
    }

    /// Whether the pairs are returned as they are met, so that a scan may end with the limit.
    pub fn is_plain(&self) -> bool {
        self.sort.is_none() && !self.options.descending && !self.options.count_only && !self.has_filters()
    }

    /// The answer, but for its header.
    pub fn finish(&self, mut result: RangeResult) -> pb::RangeResponse {
        if let Some((target, descending)) = self.sort {
            sort(&mut result.kvs, target, descending);
            result.more = self.sorted_limit > 0 && result.kvs.len() > self.sorted_limit;
            if result.more {
                result.kvs.truncate(self.sorted_limit);
            }
        }
        let kvs = result.kvs.into_iter().map(|kv| self.pair(kv)).collect();
        pb::RangeResponse { header: None, kvs, more: result.more, count: result.count }
    }

    /// Whether the pair passes the filters.
    pub fn admits(&self, kv: &KeyValue) -> bool {
        let options = &self.options;
        let within = |revision: i64, min: i64, max: i64| (min == 0 || revision >= min) && (max == 0 || revision <= max);
        within(kv.mod_revision, options.min_mod, options.max_mod)
            && within(kv.create_revision, options.min_create, options.max_create)
    }

    /// What is read at once when `found` pairs have been. Filters are applied to pieces, not by the keyspace: a piece in
    /// which nothing passes them must end, too.
    fn piece(&self, found: usize) -> RangeOptions {
        let limit = self.options.limit;
        RangeOptions {
            // One more than is wanted tells whether there is more.
            limit: if limit == 0 || self.has_filters() { 0 } else { (limit - found).saturating_add(1) },
            keys_only: self.options.keys_only,
            descending: self.options.descending,
            bytes_max: limits::RANGE_PIECE_BYTES,
            without_count: true,
            ..RangeOptions::default()
        }
    }

    /// Of pairs that are sorted with a limit, drops those that cannot be among the first, now and then. One more than the
    /// limit stays, to tell that there is more.
    fn keep_first(&self, kvs: &mut Vec<KeyValue>, meter: &mut impl Meter) {
        let Some((target, descending)) = self.sort else { return };
        let keep = self.sorted_limit.saturating_add(1);
        if self.sorted_limit == 0 || self.options.limit != 0 || kvs.len() < keep.saturating_mul(2).max(SORTED_AT_LEAST)
        {
            return;
        }
        // Stable, so that of equal pairs the first in key order stay, as if all had been sorted at once.
        sort(kvs, target, descending);
        kvs.drain(keep..).for_each(|kv| meter.give_back(encoded_len(&kv)));
    }

    fn pair(&self, kv: KeyValue) -> mvccpb::KeyValue {
        let mut kv = pair(kv);
        if self.blank_values {
            kv.value = Bytes::new();
        }
        if self.blank_leases {
            kv.lease = 0;
        }
        kv
    }

    /// Whether some pairs are left out by their revisions.
    pub fn has_filters(&self) -> bool {
        let options = &self.options;
        [options.min_mod, options.max_mod, options.min_create, options.max_create].iter().any(|bound| *bound != 0)
    }
}

/// The answer to `plan` about `range` but for its header, read in pieces: so that a range which is too long for its meter
/// is not read to the end, and what is sorted by something else than the key keeps no more than is asked for.
pub fn range_in_pieces(
    view: &mut impl View,
    range: KeyRange,
    plan: &Plan,
    meter: &mut impl Meter,
) -> Result<pb::RangeResponse, Error> {
    range_from(view, range, plan, meter, Vec::new())
}

/// As [`range_in_pieces`], for who has read the first pairs of `whole` already; only a plain plan has first ones.
pub fn range_from(
    view: &mut impl View,
    whole: KeyRange,
    plan: &Plan,
    meter: &mut impl Meter,
    begun: Vec<KeyValue>,
) -> Result<pb::RangeResponse, Error> {
    let mut range = whole.clone();
    if let Some(last) = begun.last() {
        range.start = successor(&last.key);
        begun.iter().try_for_each(|kv| meter.charge(encoded_len(kv)))?;
    }
    let mut found = RangeResult { count: begun.len() as i64, kvs: begun, ..RangeResult::default() };
    if plan.options.count_only {
        found.count = view.count(&range)?;
        meter.check()?;
        return Ok(plan.finish(found));
    }
    loop {
        meter.check()?;
        let piece = view.range(&range, &plan.piece(found.kvs.len()))?;
        let next = piece.kvs.last().filter(|_| piece.more).map(|last| last.key.clone());
        found.count += piece.kvs.len() as i64;
        for kv in piece.kvs.into_iter().filter(|kv| plan.admits(kv)) {
            found.more |= plan.options.limit > 0 && found.kvs.len() == plan.options.limit;
            if found.more {
                break;
            }
            meter.charge(encoded_len(&kv))?;
            found.kvs.push(kv);
        }
        plan.keep_first(&mut found.kvs, meter);
        let Some(next) = next else { return Ok(plan.finish(found)) };
        match plan.options.descending {
            false => range.start = successor(&next),
            true => range.end = RangeEnd::Before(next),
        }
        if found.more {
            found.count = match view.known_count(&whole) {
                Some(count) => count,
                None => found.count + view.count(&range)?,
            };
            meter.check()?;
            return Ok(plan.finish(found));
        }
    }
}

/// Answers a Range request at once, header not included.
pub fn range(view: &mut impl View, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ReadError> {
    let plan = Plan::new(request);
    let range = KeyRange::from_wire(&request.key, &request.range_end);
    let result = view.range(&range, &plan.options)?;
    Ok(plan.finish(result))
}

/// Whether a range inside of a transaction may read at `revision`. A negative one counts as compacted here, whereas a
/// Range outside of transactions takes it for the current one. (But -1 passes on a store that was never compacted, since
/// its compact revision is -1; etcd is the same.)
pub fn check_revision_in_txn(revision: i64, current_revision: i64, compact_revision: i64) -> Result<(), ReadError> {
    match revision {
        0 => Ok(()),
        revision if revision > current_revision => Err(ReadError::Future),
        revision if revision < compact_revision => Err(ReadError::Compacted),
        _ => Ok(()),
    }
}

/// Whether any branch, at any depth, holds a put.
pub fn contains_put(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Op::RequestPut(_)) => true,
        Some(Op::RequestTxn(nested)) => contains_put(nested),
        _ => false,
    })
}

/// Whether any branch, at any depth, holds a put or a delete.
pub fn contains_write(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match &op.request {
        Some(Op::RequestPut(_) | Op::RequestDeleteRange(_)) => true,
        Some(Op::RequestTxn(nested)) => contains_write(nested),
        _ => false,
    })
}

/// A pair as it goes on the wire.
pub fn pair(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Bytes that a pair takes in an answer.
pub fn encoded_len(kv: &KeyValue) -> usize {
    let varint = |value: u64| prost::encoding::encoded_len_varint(value);
    let bytes = |bytes: &Bytes| if bytes.is_empty() { 0 } else { 1 + varint(bytes.len() as u64) + bytes.len() };
    let number = |value: i64| if value == 0 { 0 } else { 1 + varint(value as u64) };
    let numbers = [kv.create_revision, kv.mod_revision, kv.version, kv.lease].into_iter().map(number).sum::<usize>();
    let length = bytes(&kv.key) + bytes(&kv.value) + numbers;
    1 + varint(length as u64) + length
}

/// The first key after `key`.
pub fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

/// Whether every compare holds; no compares hold.
pub fn all_hold(view: &mut impl View, compares: &[pb::Compare]) -> Result<bool, ReadError> {
    for compare in compares {
        if !holds(view, compare)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Pairs that a compare of a range looks at in one piece.
const COMPARE_CHUNK_BYTES: usize = 1 << 20;

fn holds(view: &mut impl View, compare: &pb::Compare) -> Result<bool, ReadError> {
    let mut range = KeyRange::from_wire(&compare.key, &compare.range_end);
    if range.end == RangeEnd::Point {
        return Ok(match view.get(&compare.key)? {
            Some(kv) => holds_for(compare, &kv),
            None => holds_for_missing(compare),
        });
    }
    let options = RangeOptions { bytes_max: COMPARE_CHUNK_BYTES, without_count: true, ..RangeOptions::default() };
    let mut found_any = false;
    loop {
        let result = view.range(&range, &options)?;
        found_any |= !result.kvs.is_empty();
        if !result.kvs.iter().all(|kv| holds_for(compare, kv)) {
            return Ok(false);
        }
        match result.kvs.last() {
            Some(last) if result.more => range.start = successor(&last.key),
            _ => return Ok(found_any || holds_for_missing(compare)),
        }
    }
}

/// Numbers of a missing key are 0; its value is never equal, greater, less or different.
fn holds_for_missing(compare: &pb::Compare) -> bool {
    compare.target != CompareTarget::Value as i32 && holds_for(compare, &KeyValue::default())
}

fn holds_for(compare: &pb::Compare, kv: &KeyValue) -> bool {
    // A union that is unset, or set for another target, counts as 0 or empty.
    let union = &compare.target_union;
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => {
            kv.version.cmp(&if let Some(TargetUnion::Version(given)) = union { *given } else { 0 })
        }
        Ok(CompareTarget::Create) => {
            kv.create_revision.cmp(&if let Some(TargetUnion::CreateRevision(given)) = union { *given } else { 0 })
        }
        Ok(CompareTarget::Mod) => {
            kv.mod_revision.cmp(&if let Some(TargetUnion::ModRevision(given)) = union { *given } else { 0 })
        }
        Ok(CompareTarget::Lease) => kv.lease.cmp(&if let Some(TargetUnion::Lease(given)) = union { *given } else { 0 }),
        Ok(CompareTarget::Value) => {
            kv.value[..].cmp(if let Some(TargetUnion::Value(given)) = union { &given[..] } else { &[] })
        }
        Err(_) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

/// Pairs below which it is not worth while to drop some.
const SORTED_AT_LEAST: usize = 1024;

/// Stable, so that every member answers the same where etcd leaves the order open.
fn sort(kvs: &mut [KeyValue], target: SortTarget, descending: bool) {
    let compare = |a: &KeyValue, b: &KeyValue| match target {
        SortTarget::Key => a.key.cmp(&b.key),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    };
    match descending {
        true => kvs.sort_by(|a, b| compare(b, a)),
        false => kvs.sort_by(compare),
    }
}
