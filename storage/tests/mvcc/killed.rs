//! A process killed while it writes, flushes, merges and drops history on its own schedule: what the next one finds is
//! exactly the state after some entry, with all of its readable history. The process is this test binary again.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use daymark_storage::LogId;
use daymark_storage::backend::{RocksBackend, RocksOptions};
use daymark_storage::mvcc::{EventKind, KeyRange, Keyspace, RangeOptions, Writer};

const DIR_VARIABLE: &str = "DAYMARK_KILLED_DIR";
const ROUNDS: u64 = 12;
const KEYS: i64 = 40;
/// Every so many entries the history up to as many revisions ago is compacted.
const COMPACT_EVERY: i64 = 300;

#[test]
fn what_a_killed_process_leaves_is_the_state_after_an_entry() {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        write_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut furthest, mut recoveries) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "mvcc::killed::what_a_killed_process_leaves_is_the_state_after_an_entry"])
            .env(DIR_VARIABLE, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(250 + 61 * round));
        assert_eq!(child.try_wait().unwrap(), None, "it writes until it is killed");
        child.kill().unwrap();
        child.wait().unwrap();
        let found = check(dir.path());
        assert!(found >= furthest, "what was durable before is not lost: {found} after {furthest}");
        recoveries += u32::from(found > furthest);
        furthest = found;
    }
    assert!(recoveries > ROUNDS as u32 / 3, "most rounds flush something: {recoveries}, entry {furthest}");
}

fn open(dir: &Path) -> (Arc<Keyspace>, Writer) {
    let options = RocksOptions { memory_budget_bytes: 16 << 20, ..RocksOptions::new(dir) };
    Keyspace::open(RocksBackend::open(options).unwrap()).unwrap()
}

/// Entry `n` makes revision `n + 1`, in which each key whose turn it is gets the revision as its value, or goes.
fn apply(writer: &mut Writer, entry: i64) {
    let mut txn = writer.begin();
    for key in (0..KEYS).filter(|key| turn(*key, entry + 1)) {
        match value_at(key, entry + 1) {
            Some(value) => drop(txn.put(name(key), value, 0).unwrap()),
            None => drop(txn.delete(&name(key)).unwrap()),
        }
    }
    assert_eq!(txn.finish().revision, entry + 1);
    if entry % COMPACT_EVERY == 0 && entry > COMPACT_EVERY {
        writer.compact(entry - COMPACT_EVERY).unwrap();
    }
}

fn compact_after(entry: i64) -> i64 {
    let last = entry / COMPACT_EVERY * COMPACT_EVERY;
    if last > COMPACT_EVERY { last - COMPACT_EVERY } else { -1 }
}

fn name(key: i64) -> Bytes {
    format!("key{key:03}").into()
}

/// Key 0 changes always, the others more and more rarely.
fn turn(key: i64, revision: i64) -> bool {
    revision % (key + 1) == 0
}

/// The value that `revision`, whose turn it is, gives `key`; every fifth time the key goes, but key 0 never.
fn value_at(key: i64, revision: i64) -> Option<Bytes> {
    let goes = key > 0 && revision / (key + 1) % 5 == 0;
    (!goes).then(|| format!("{revision:0>300}").into())
}

fn state_at(key: i64, revision: i64) -> Option<Bytes> {
    let last = revision / (key + 1) * (key + 1);
    if last < 2 { None } else { value_at(key, last) }
}

fn write_until_killed(dir: &Path) -> ! {
    let (keyspace, mut writer) = open(dir);
    let dropper = keyspace.clone();
    thread::spawn(move || {
        loop {
            dropper.drop_history().unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
    let mut entry = keyspace.applied().map_or(0, |applied| applied.index as i64);
    loop {
        for _ in 0..1 + entry % 4 {
            entry += 1;
            apply(&mut writer, entry);
        }
        writer.commit(LogId { term: 1, index: entry as u64 }).unwrap();
        writer.publish();
    }
}

/// Compares all that can be read with what the entries so far must have led to; returns the last entry.
fn check(dir: &Path) -> i64 {
    let (keyspace, _writer) = open(dir);
    let entry = keyspace.applied().map_or(0, |applied| applied.index as i64);
    let compact = compact_after(entry);
    assert_eq!((keyspace.current_revision(), keyspace.compact_revision()), (entry + 1, compact));
    for revision in [compact.max(1), (compact.max(1) + entry + 1) / 2, entry + 1] {
        let found = keyspace.read(revision).unwrap().range(&KeyRange::all(), &RangeOptions::default()).unwrap();
        let found: Vec<_> = found.kvs.into_iter().map(|kv| (kv.key, kv.value)).collect();
        let expected = (0..KEYS).filter_map(|key| Some((name(key), state_at(key, revision)?)));
        assert_eq!(found, expected.collect::<Vec<_>>(), "at {revision} after entry {entry}");
    }
    let from = compact.max(2);
    let chunk = keyspace.history(from, i64::MAX, None, true, usize::MAX).unwrap();
    assert_eq!(chunk.next_revision, (entry + 2).max(from));
    for (revision, events) in chunk.events_by_revision {
        // A delete of a key that does not exist yet changes nothing.
        let exists = |key: &i64| value_at(*key, revision).is_some() || state_at(*key, revision - 1).is_some();
        let turns = (0..KEYS).filter(|key| turn(*key, revision)).filter(exists).collect::<Vec<_>>();
        assert_eq!(events.len(), turns.len(), "at {revision}");
        for (event, key) in events.into_iter().zip(turns) {
            assert_eq!(event.kv.key, name(key));
            let value = (event.kind == EventKind::Put).then_some(event.kv.value);
            assert_eq!(value, value_at(key, revision), "key {key} at {revision}");
            if revision > compact && event.kv.create_revision != revision {
                assert_eq!(event.prev.map(|kv| kv.value), state_at(key, revision - 1));
            }
        }
    }
    entry
}
