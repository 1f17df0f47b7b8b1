//! A Range that may be long, as a thread of the pool reads it: in pieces, so that it ends soon after its caller has gone,
//! and with a bound on the answer. Does not know which thread it is on.

use daymark_storage::mvcc::{KeyRange, RangeEnd, RangeOptions, RangeResult, ReadTxn};

use daymark_api::etcdserverpb as pb;

use super::pool::Caller;
use crate::error::Error;
use crate::limits;
use crate::query::{self, Plan};

/// The answer to `plan` about `range`, but for its header. `bytes_max` bounds the encoded pairs.
pub fn range(
    view: &ReadTxn,
    mut range: KeyRange,
    plan: &Plan,
    bytes_max: usize,
    caller: &Caller,
) -> Result<pb::RangeResponse, Error> {
    let mut found = RangeResult::default();
    if plan.options.count_only {
        found.count = count(view, &range, caller)?;
        return Ok(plan.finish(found));
    }
    let mut bytes = 0;
    loop {
        caller.check()?;
        let piece = view.range(&range, &piece(plan, found.kvs.len()))?;
        let next = piece.kvs.last().filter(|_| piece.more).map(|last| last.key.clone());
        found.count += piece.kvs.len() as i64;
        for kv in piece.kvs.into_iter().filter(|kv| plan.admits(kv)) {
            found.more |= plan.options.limit > 0 && found.kvs.len() == plan.options.limit;
            if found.more {
                break;
            }
            bytes += query::encoded_len(&kv);
            if bytes > bytes_max {
                return Err(Error::ResponseTooLarge(bytes, bytes_max));
            }
            found.kvs.push(kv);
        }
        let Some(next) = next else { return Ok(plan.finish(found)) };
        match plan.options.descending {
            false => range.start = query::successor(&next),
            true => range.end = RangeEnd::Before(next),
        }
        if found.more {
            found.count += count(view, &range, caller)?;
            return Ok(plan.finish(found));
        }
    }
}

/// Number of keys in `range`.
pub fn count(view: &ReadTxn, range: &KeyRange, caller: &Caller) -> Result<i64, Error> {
    let count = view.count_while(range, &mut || !caller.has_gone())?;
    caller.check()?;
    Ok(count.expect("a caller that waits lets it go on to the end"))
}

/// What is read at once. Filters are applied here: a piece in which nothing passes them must end, too.
fn piece(plan: &Plan, found: usize) -> RangeOptions {
    let limit = plan.options.limit;
    RangeOptions {
        // One more than is wanted tells whether there is more.
        limit: if limit == 0 || plan.has_filters() { 0 } else { (limit - found).saturating_add(1) },
        keys_only: plan.options.keys_only,
        descending: plan.options.descending,
        bytes_max: limits::RANGE_PIECE_BYTES,
        without_count: true,
        ..RangeOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use daymark_storage::LogId;
    use daymark_storage::backend::MemBackend;
    use daymark_storage::mvcc::{Keyspace, ReadError};
    use prost::Message;

    use super::*;

    const KEYS: i64 = 40;

    /// Several pieces: key `kNN` has version 1, and revision and length of its value say how old it is.
    fn keyspace() -> Arc<Keyspace> {
        let (keyspace, mut writer) = Keyspace::open(MemBackend::new()).expect("an empty keyspace");
        for n in 0..KEYS {
            let mut txn = writer.begin();
            let value = vec![b'v'; limits::RANGE_PIECE_BYTES / 8 + (n as usize * 7) % 5];
            txn.put(format!("k{:02}", (n * 11) % KEYS).into(), value.into(), 0).expect("put");
            let _changes = txn.finish();
        }
        writer.commit(LogId { term: 1, index: 1 }).expect("committed");
        writer.publish();
        keyspace
    }

    fn all() -> pb::RangeRequest {
        pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
    }

    fn scan(keyspace: &Keyspace, request: &pb::RangeRequest, bytes_max: usize) -> Result<pb::RangeResponse, Error> {
        let view = keyspace.read(0).expect("the current revision");
        let interval = KeyRange::from_wire(&request.key, &request.range_end);
        range(&view, interval, &Plan::new(request), bytes_max, &Caller::waits())
    }

    /// The keyspace reads all at once; so does a transaction.
    fn at_once(keyspace: &Keyspace, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ReadError> {
        query::range(&mut keyspace.read(0).expect("the current revision"), request)
    }

    #[test]
    fn in_pieces_the_answer_is_what_it_is_at_once() {
        let keyspace = keyspace();
        for limit in [0, 1, 7, 8, 9, 39, 40, 41, i64::MAX] {
            for (sort_order, sort_target) in [(0, 0), (1, 0), (2, 0), (0, 3), (1, 3), (2, 4), (2, 2)] {
                for (min_mod_revision, max_mod_revision) in [(0, 0), (20, 0), (0, 9), (12, 15), (99, 0)] {
                    for (keys_only, count_only) in [(false, false), (true, false), (false, true)] {
                        let request = pb::RangeRequest {
                            limit,
                            sort_order,
                            sort_target,
                            min_mod_revision,
                            max_mod_revision,
                            keys_only,
                            count_only,
                            ..all()
                        };
                        let expected = at_once(&keyspace, &request).expect("an answer");
                        assert_eq!(scan(&keyspace, &request, usize::MAX), Ok(expected), "{request:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_answer_that_cannot_be_sent_is_refused_while_it_is_built() {
        let keyspace = keyspace();
        let length = at_once(&keyspace, &all()).expect("an answer").encoded_len();
        // The rest is the number of keys.
        let pairs = length - pb::RangeResponse { count: KEYS, ..Default::default() }.encoded_len();
        assert!(scan(&keyspace, &all(), pairs).is_ok());
        let error = scan(&keyspace, &all(), pairs - 1).expect_err("too large");
        assert_eq!(error, Error::ResponseTooLarge(pairs, pairs - 1));
        assert_eq!(error.code(), crate::error::Code::ResourceExhausted);
        let words = format!("grpc: trying to send message larger than max ({pairs} vs. {})", pairs - 1);
        assert_eq!(error.text(), words);
        assert!(scan(&keyspace, &pb::RangeRequest { keys_only: true, ..all() }, 2000).is_ok());
    }

    #[test]
    fn nothing_more_is_read_for_a_caller_that_has_gone() {
        let keyspace = keyspace();
        let view = keyspace.read(0).expect("the current revision");
        let interval = KeyRange::from_wire(&all().key, &all().range_end);
        for request in [all(), pb::RangeRequest { count_only: true, ..all() }] {
            let answer = range(&view, interval.clone(), &Plan::new(&request), usize::MAX, &Caller::gone());
            assert_eq!(answer, Err(Error::Canceled));
        }
    }
}
