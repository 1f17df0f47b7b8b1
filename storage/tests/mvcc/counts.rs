//! What counting reads: the ends of a range, and not what lies between, whatever happened before. That the numbers are
//! right is shown by the generated sequences.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use daymark_storage::LogId;
use daymark_storage::backend::{Backend, Family, MemBackend};
use daymark_storage::mvcc::{KeyRange, Keyspace, RangeEnd, Writer, layout};

struct Store {
    backend: Arc<MemBackend>,
    keyspace: Arc<Keyspace>,
    writer: Writer,
    index: u64,
}

fn key(number: u64) -> Bytes {
    format!("k{number:06}").into()
}

impl Store {
    fn new() -> Self {
        Self::open(MemBackend::new())
    }

    fn open(backend: Arc<MemBackend>) -> Self {
        let (keyspace, writer) = Keyspace::open(backend.clone()).unwrap();
        let index = keyspace.applied().map_or(0, |applied| applied.index);
        Self { backend, keyspace, writer, index }
    }

    /// As a power cut leaves it.
    fn crash(self) -> Self {
        Self::open(self.backend.crash())
    }

    fn commit(&mut self) {
        self.index += 1;
        self.writer.commit(LogId { term: 1, index: self.index }).unwrap();
        self.writer.publish();
    }

    fn put(&mut self, numbers: Range<u64>) {
        for number in numbers {
            let mut txn = self.writer.begin();
            txn.put(key(number), "v".into(), 0).unwrap();
            txn.finish();
        }
        self.commit();
    }

    fn delete(&mut self, numbers: Range<u64>) {
        let mut txn = self.writer.begin();
        txn.delete_range(&KeyRange { start: key(numbers.start), end: RangeEnd::Before(key(numbers.end)) }).unwrap();
        txn.finish();
        self.commit();
    }

    fn tend(&self) {
        while self.keyspace.tend_fences(4096).unwrap() {}
        assert_eq!(self.keyspace.fences_mended(), 0);
    }

    /// The count, and how many thousand keys were read for it.
    fn count(&self, range: &KeyRange, revision: i64) -> (i64, u32) {
        let mut asked = 0;
        let mut goes_on = || {
            asked += 1;
            true
        };
        let count = self.keyspace.read(revision).unwrap().count_while(range, &mut goes_on).unwrap();
        (count.unwrap(), asked)
    }
}

fn all() -> KeyRange {
    KeyRange::prefix(b"k")
}

fn part(numbers: Range<u64>) -> KeyRange {
    KeyRange { start: key(numbers.start), end: RangeEnd::Before(key(numbers.end)) }
}

#[test]
fn nothing_is_read_while_keys_come_and_go_nor_at_older_revisions() {
    let mut store = Store::new();
    store.put(0..20_000);
    assert_eq!(store.count(&KeyRange::all(), 0), (20_000, 0), "nobody has tended the fences yet");
    store.tend();
    let before = store.keyspace.current_revision();
    assert_eq!(store.count(&all(), 0), (20_000, 0));
    assert_eq!(store.count(&part(7..19_993), 0), (19_986, 0));
    store.delete(5_000..6_000);
    store.put(30_000..30_010);
    store.put(0..10);
    assert_eq!(store.count(&all(), 0), (19_010, 0), "deleted and created ones, not changed ones");
    assert_eq!(store.count(&all(), before), (20_000, 0));
    store.tend();
    assert_eq!(store.count(&all(), before), (20_000, 0), "from newer fences");
    store.put(30_010..40_000);
    assert_eq!(store.count(&KeyRange::all(), 0), (29_000, 0));
    store.tend();
    for start in (0..40_000).step_by(997) {
        let (_, asked) = store.count(&KeyRange { start: key(start), end: RangeEnd::Open }, 0);
        assert_eq!(asked, 0, "what has grown is cut up");
    }
    store.delete(0..40_000);
    store.tend();
    assert_eq!(store.count(&all(), 0), (0, 0));
}

#[test]
fn the_first_count_after_a_start_reads_nothing() {
    let mut store = Store::new();
    store.put(0..20_000);
    store.tend();
    store.keyspace.flush().unwrap();
    store.put(20_000..21_000);
    store.delete(3_000..4_000);
    let mut store = Store::open(store.backend);
    assert_eq!(store.count(&all(), 0), (20_000, 0), "the stored ones, and what history says has changed since");
    store.put(0..30_000);
    let store = store.crash();
    assert_eq!(store.count(&all(), 0), (20_000, 0), "as of the last flush");
}

/// Fences that are older than what is kept of history would be of no use.
#[test]
fn dropping_history_does_not_take_the_fences_with_it() {
    let mut store = Store::new();
    store.put(0..20_000);
    store.tend();
    store.keyspace.flush().unwrap();
    store.put(20_000..25_000);
    store.writer.compact(store.writer.latest_revision()).unwrap();
    store.commit();
    // The compact revision is durable, the fences of that time are not.
    store.backend.flush().unwrap();
    store.keyspace.drop_history().unwrap();
    let store = store.crash();
    assert_eq!(store.keyspace.history_floor(), store.keyspace.current_revision());
    assert_eq!(store.count(&all(), 0), (25_000, 0));
}

#[test]
fn a_store_without_fences_gets_them_piece_by_piece_and_counts_meanwhile() {
    let mut store = Store::new();
    store.put(0..20_000);
    let mut batch = daymark_storage::backend::WriteBatch::default();
    batch.delete(Family::Meta, layout::FENCES_KEY);
    store.backend.write(&mut batch).unwrap();
    let mut store = Store::open(store.backend);
    assert_eq!(store.count(&all(), 0), (20_000, 19), "they are read");
    assert!(store.keyspace.tend_fences(4096).unwrap());
    store.put(20_000..21_000);
    store.delete(0..1_000);
    assert_eq!(store.count(&all(), 0).0, 20_000);
    store.tend();
    assert_eq!(store.count(&all(), 0), (20_000, 0));
    let mut nobody = || false;
    assert_eq!(store.keyspace.read(0).unwrap().count_while(&part(100..900), &mut nobody).unwrap(), Some(0));
}

#[test]
fn a_change_that_is_too_large_to_be_told_of_is_looked_up_in_history() {
    let mut store = Store::new();
    store.put(0..1_000);
    store.tend();
    let long = |number: u64| Bytes::from(format!("{}{number:06}", "l".repeat(250)));
    let mut txn = store.writer.begin();
    (0..20_000).for_each(|number| drop(txn.put(long(number), "v".into(), 0).unwrap()));
    txn.finish();
    store.commit();
    let before = store.keyspace.current_revision();
    store.put(1_000..2_000);
    assert_eq!(store.count(&KeyRange::all(), 0).0, 22_000, "by reading, as nobody has looked history up");
    assert_eq!(store.count(&KeyRange::all(), before - 1), (1_000, 0), "what came before the gap is known");
    store.tend();
    assert_eq!(store.count(&KeyRange::all(), 0), (22_000, 0));
    assert_eq!(store.count(&KeyRange::all(), before), (21_000, 0));
    let mut txn = store.writer.begin();
    txn.delete_range(&KeyRange::prefix(b"l")).unwrap();
    txn.finish();
    store.commit();
    store.tend();
    assert_eq!(store.count(&KeyRange::all(), 0), (2_000, 0), "the last thing that happened");
}

#[test]
fn nobody_who_gave_up_is_answered() {
    let store = Store::new();
    let mut store = Store::open(store.backend);
    store.put(0..5_000);
    // One interval, not cut up yet.
    let mut nobody = || false;
    assert_eq!(store.keyspace.read(0).unwrap().count_while(&part(100..4_900), &mut nobody).unwrap(), None);
}

#[test]
fn a_noted_count_is_of_one_revision() {
    let mut store = Store::new();
    store.put(0..10);
    let read = store.keyspace.read(0).unwrap();
    assert_eq!(read.known_count(&all()), None);
    read.note_count(&all(), 10);
    assert_eq!(read.known_count(&all()), Some(10));
    store.put(10..11);
    assert_eq!(store.keyspace.read(0).unwrap().known_count(&all()), None);
    assert_eq!(read.known_count(&all()), Some(10));
}
