//! What compaction gives back on real files.

use std::sync::Arc;

use daymark_storage::LogId;
use daymark_storage::backend::{Backend, Direction, Family, RocksBackend, RocksOptions, Span};
use daymark_storage::mvcc::{Keyspace, Writer};

struct Store {
    _dir: tempfile::TempDir,
    backend: Arc<RocksBackend>,
    keyspace: Arc<Keyspace>,
    writer: Writer,
    index: u64,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = RocksOptions { memory_budget_bytes: 16 << 20, ..RocksOptions::new(dir.path()) };
        let backend = RocksBackend::open(options).unwrap();
        let (keyspace, writer) = Keyspace::open(backend.clone()).unwrap();
        Self { _dir: dir, backend, keyspace, writer, index: 0 }
    }

    fn commit(&mut self) {
        self.index += 1;
        self.writer.commit(LogId { term: 1, index: self.index }).unwrap();
        self.writer.publish();
    }

    /// Changes each of some keys, with values that do not compress.
    fn round(&mut self, round: u64) {
        for number in 0..1000u64 {
            let seed = (round * 1000 + number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let value: Vec<u8> =
                (1..=60).flat_map(|n| seed.wrapping_mul(2 * n + 1).rotate_left(29).to_le_bytes()).collect();
            let mut txn = self.writer.begin();
            txn.put(format!("key{number:04}").into(), value.into(), 0).unwrap();
            txn.finish();
        }
        self.commit();
    }

    fn compact(&mut self) {
        self.writer.compact(self.writer.latest_revision()).unwrap();
        self.commit();
        self.keyspace.flush().unwrap();
        self.backend.settle().unwrap();
        self.keyspace.drop_history().unwrap();
        self.backend.settle().unwrap();
    }

    fn on_disk(&self) -> u64 {
        self.keyspace.size().unwrap().on_disk_bytes
    }

    fn rows(&self, family: Family) -> usize {
        let everything = Span { start: b"", end: None };
        let mut cursor = self.backend.iterate(family, everything, Direction::Forward).unwrap();
        let mut rows = 0;
        while cursor.item().is_some() {
            rows += 1;
            cursor.advance().unwrap();
        }
        rows
    }
}

#[test]
fn dropped_history_gives_its_files_back() {
    let mut store = Store::new();
    (0..120).for_each(|round| store.round(round));
    store.keyspace.flush().unwrap();
    store.backend.settle().unwrap();
    let (before, records) = (store.on_disk(), store.rows(Family::Log));
    assert_eq!(records, 120_000);
    assert!(before > 50 << 20, "{before}");
    store.compact();
    // What is left lies in files too young to have been moved down from where they were flushed to.
    let (after, left) = (store.on_disk(), store.rows(Family::Log));
    assert!(after < before / 3 && left < records / 3, "{before} to {after} bytes, {records} to {left} records");
}

#[test]
fn deleted_keys_leave_nothing_behind() {
    let mut store = Store::new();
    store.round(0);
    let mut txn = store.writer.begin();
    assert_eq!(txn.delete_range(&daymark_storage::mvcc::KeyRange::prefix(b"key")).unwrap().len(), 1000);
    txn.finish();
    store.commit();
    assert_eq!(store.rows(Family::Cur), 1000, "stubs");
    store.compact();
    store.backend.merge_newest();
    assert_eq!(store.rows(Family::Cur), 0);
}
