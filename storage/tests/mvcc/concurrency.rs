//! Readers at published revisions while the writer commits, compacts and drops history. What a reader may see is a
//! function of its revision alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use bytes::Bytes;
use daymark_storage::LogId;
use daymark_storage::backend::{Backend, MemBackend};
use daymark_storage::mvcc::{EventKind, KeyRange, Keyspace, RangeEnd, RangeOptions, ReadError, Writer};

const KEYS: usize = 7;
const READERS: u64 = 3;

#[test]
fn mem_readers_see_whole_revisions() {
    run(MemBackend::new(), 3_000);
}

#[cfg(feature = "rocksdb")]
#[test]
fn rocks_readers_see_whole_revisions() {
    use daymark_storage::backend::{RocksBackend, RocksOptions};
    let dir = tempfile::tempdir().unwrap();
    let options = RocksOptions { memory_budget_bytes: 16 << 20, ..RocksOptions::new(dir.path()) };
    run(RocksBackend::open(options).unwrap(), 40_000);
}

/// Revision `r` gives every key the value `r`, but every eleventh one deletes them all.
fn deletes(revision: i64) -> bool {
    revision % 11 == 0
}

fn value_at(revision: i64) -> Option<Bytes> {
    // Padded, so that memtables fill up and files are written during the test.
    (revision >= 2 && !deletes(revision)).then(|| format!("{revision:0>200}").into())
}

fn run(backend: Arc<dyn Backend>, revisions: i64) {
    let (keyspace, writer) = Keyspace::open(backend).unwrap();
    keyspace.set_keys_per_fence(2);
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..READERS {
            let (keyspace, done, reads) = (&keyspace, &done, &reads);
            scope.spawn(move || {
                let mut round = reader;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    check_read(keyspace, round);
                    check_history(keyspace, round);
                    check_count(keyspace, round);
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                keyspace.tend_fences(3).unwrap();
                thread::yield_now();
            }
        });
        // Also ends the readers if the writer fails.
        let ended = Ended(&done);
        write(&keyspace, writer, revisions);
        drop(ended);
    });
    assert!(reads.load(Ordering::Relaxed) > 100);
    assert_eq!(keyspace.fences_mended(), 0);
}

struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn write(keyspace: &Keyspace, mut writer: Writer, revisions: i64) {
    let mut index = 0;
    while writer.latest_revision() < revisions {
        for _ in 0..1 + index % 5 {
            let mut txn = writer.begin();
            let revision = txn.base_revision() + 1;
            match value_at(revision) {
                Some(value) => {
                    for key in 0..KEYS {
                        txn.put(format!("key{key}").into(), value.clone(), 0).unwrap();
                    }
                }
                None => drop(txn.delete_range(&KeyRange::all()).unwrap()),
            }
            assert_eq!(txn.finish().revision, revision);
        }
        if index % 50 == 49 {
            writer.compact(writer.latest_revision() - 100).unwrap();
        }
        index += 1;
        writer.commit(LogId { term: 1, index }).unwrap();
        writer.publish();
        match index % 200 {
            60 => keyspace.drop_history().unwrap(),
            150 => keyspace.flush().unwrap(),
            _ => {}
        }
    }
}

fn check_read(keyspace: &Keyspace, round: u64) {
    let asked = if round.is_multiple_of(3) { keyspace.current_revision() - (round % 90) as i64 } else { 0 };
    let read = match keyspace.read(asked) {
        Ok(read) => read,
        Err(ReadError::Compacted) => return assert!(asked > 0 && asked < keyspace.compact_revision()),
        Err(error) => panic!("{error}"),
    };
    let expected = value_at(read.revision());
    let options = RangeOptions { descending: round.is_multiple_of(2), ..RangeOptions::default() };
    match read.range(&KeyRange::prefix(b"key"), &options) {
        Ok(found) => {
            assert_eq!(found.count, if expected.is_some() { KEYS as i64 } else { 0 }, "at {}", read.revision());
            assert!(found.kvs.iter().all(|kv| Some(&kv.value) == expected.as_ref()), "at {}", read.revision());
        }
        Err(ReadError::Compacted) => return assert!(read.revision() < keyspace.compact_revision()),
        Err(error) => panic!("{error}"),
    }
    match read.get(b"key3") {
        Ok(found) => assert_eq!(found.map(|kv| kv.value), expected),
        Err(ReadError::Compacted) => assert!(read.revision() < keyspace.compact_revision()),
        Err(error) => panic!("{error}"),
    }
}

fn check_count(keyspace: &Keyspace, round: u64) {
    let asked = if round.is_multiple_of(3) { keyspace.current_revision() - (round % 90) as i64 } else { 0 };
    let Ok(read) = keyspace.read(asked) else { return };
    let range = KeyRange { start: format!("key{}", round % 3).into(), end: RangeEnd::Open };
    match read.count(&range) {
        Ok(count) => {
            let inside = if value_at(read.revision()).is_some() { KEYS as i64 - (round % 3) as i64 } else { 0 };
            assert_eq!(count, inside, "at {}", read.revision());
        }
        Err(ReadError::Compacted) => assert!(read.revision() < keyspace.compact_revision()),
        Err(error) => panic!("{error}"),
    }
}

fn check_history(keyspace: &Keyspace, round: u64) {
    let current = keyspace.current_revision();
    let from = (current - (round % 40) as i64).max(2);
    let chunk = match keyspace.history(from, current, None, true, 20_000) {
        Ok(chunk) => chunk,
        Err(ReadError::Compacted) => return assert!(from < keyspace.compact_revision()),
        Err(error) => panic!("{error}"),
    };
    let mut revision = from;
    for (main, events) in &chunk.events_by_revision {
        if deletes(revision) && value_at(revision - 1).is_none() {
            revision += 1;
        }
        assert_eq!(*main, revision);
        let expected = value_at(revision);
        assert_eq!(events.len(), KEYS);
        let mut seen = BTreeMap::new();
        for event in events {
            assert_eq!(event.kind == EventKind::Put, expected.is_some());
            assert_eq!(event.kv.value, expected.clone().unwrap_or_default());
            if revision > keyspace.compact_revision() {
                assert_eq!(event.prev.as_ref().map(|kv| kv.value.clone()), value_at(revision - 1));
            }
            seen.insert(event.kv.key.clone(), event.sub);
        }
        assert_eq!(seen.len(), KEYS);
        revision += 1;
    }
    assert_eq!(revision, chunk.next_revision);
}
