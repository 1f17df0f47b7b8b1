//! A Range that may be long, as a thread of the pool reads it: in pieces, so that it ends soon after its caller has gone,
//! and with a bound on the answer. Does not know which thread it is on.

use daymark_storage::mvcc::{KeyRange, KeyValue, RangeOptions, RangeResult, ReadError, ReadTxn};

use daymark_api::etcdserverpb as pb;

use super::pool::Caller;
use crate::budget::Share;
use crate::error::Error;
use crate::limits;
use crate::query::{self, Meter, Plan, View};

/// What is asked for: a plan about a range, of which the first pairs may be there already.
pub struct Scan {
    pub range: KeyRange,
    pub plan: Plan,
    pub begun: Vec<KeyValue>,
}

/// The answer, but for its header. `bytes_max` bounds the encoded pairs, `share` the memory.
pub fn range(
    view: &ReadTxn,
    scan: Scan,
    bytes_max: usize,
    share: &mut Share,
    caller: &Caller,
) -> Result<pb::RangeResponse, Error> {
    let mut meter = Asked { caller, share, bytes: 0, bytes_max };
    query::range_from(&mut Watched { view, caller }, scan.range, &scan.plan, &mut meter, scan.begun)
}

/// A view whose counts end early when nobody waits for them any more.
struct Watched<'a> {
    view: &'a ReadTxn,
    caller: &'a Caller,
}

impl View for Watched<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<KeyValue>, ReadError> {
        self.view.get(key)
    }

    fn range(&mut self, range: &KeyRange, options: &RangeOptions) -> Result<RangeResult, ReadError> {
        self.view.range(range, options)
    }

    fn known_count(&self, range: &KeyRange) -> Option<i64> {
        self.view.known_count(range)
    }

    fn count(&mut self, range: &KeyRange) -> Result<i64, ReadError> {
        // Without one the caller has gone, which whoever asked finds out next.
        Ok(self.view.count_while(range, &mut || !self.caller.has_gone())?.unwrap_or_default())
    }
}

/// What an answer takes, on behalf of whoever asked for it.
struct Asked<'a> {
    caller: &'a Caller,
    share: &'a mut Share,
    bytes: usize,
    bytes_max: usize,
}

impl Meter for Asked<'_> {
    fn charge(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > self.bytes_max {
            return Err(Error::ResponseTooLarge(self.bytes, self.bytes_max));
        }
        self.share.grow(memory(bytes))
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.share.shrink(memory(bytes));
    }

    fn check(&self) -> Result<(), Error> {
        self.caller.check()
    }
}

/// What a pair takes: once as it is read, and once encoded.
fn memory(bytes: usize) -> usize {
    2 * bytes + limits::PAIR_OVERHEAD_BYTES
}

/// Number of keys in `range`.
pub fn count(view: &ReadTxn, range: &KeyRange, caller: &Caller) -> Result<i64, Error> {
    let count = Watched { view, caller }.count(range)?;
    caller.check()?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use daymark_storage::LogId;
    use daymark_storage::backend::MemBackend;
    use daymark_storage::mvcc::Keyspace;
    use prost::Message;

    use super::*;
    use crate::budget::Budget;

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
        let mut share = Budget::new(usize::MAX, usize::MAX).share();
        range(&view, whole(interval, request), bytes_max, &mut share, &Caller::waits())
    }

    fn whole(range: KeyRange, request: &pb::RangeRequest) -> Scan {
        Scan { range, plan: Plan::new(request), begun: Vec::new() }
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
            let mut share = Budget::new(usize::MAX, usize::MAX).share();
            let asked = whole(interval.clone(), &request);
            let answer = range(&view, asked, usize::MAX, &mut share, &Caller::gone());
            assert_eq!(answer, Err(Error::Canceled));
        }
    }

    #[test]
    fn an_answer_that_needs_too_much_memory_is_refused_while_it_is_built() {
        let keyspace = keyspace();
        let view = keyspace.read(0).expect("the current revision");
        let interval = KeyRange::from_wire(&all().key, &all().range_end);
        let budget = Budget::new(1 << 30, 4 * limits::RANGE_PIECE_BYTES);
        let mut share = budget.share();
        let answer = range(&view, whole(interval.clone(), &all()), usize::MAX, &mut share, &Caller::waits());
        assert_eq!(answer, Err(Error::AnswerTooLarge(4 * limits::RANGE_PIECE_BYTES)));
        drop(share);
        let keys = whole(interval, &pb::RangeRequest { keys_only: true, ..all() });
        assert!(range(&view, keys, usize::MAX, &mut budget.share(), &Caller::waits()).is_ok());
        assert_eq!(budget.used(), 0);
    }
}
