//! Single rules of revisions, compaction and history, each where it is easy to get wrong.

use std::sync::Arc;

use bytes::Bytes;
use daymark_storage::backend::{Backend, Family, MemBackend, WriteBatch};
use daymark_storage::mvcc::{EventKind, KeyRange, Keyspace, RangeOptions, ReadError, TxnOptions, Writer};
use daymark_storage::{LogId, StorageError};

fn b(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn id(index: u64) -> LogId {
    LogId { term: 1, index }
}

fn new() -> (Arc<MemBackend>, Arc<Keyspace>, Writer) {
    let backend = MemBackend::new();
    let (keyspace, writer) = Keyspace::open(backend.clone()).unwrap();
    (backend, keyspace, writer)
}

fn put(writer: &mut Writer, key: &'static str, value: &'static str) -> i64 {
    let mut txn = writer.begin();
    txn.put(b(key), b(value), 0).unwrap();
    txn.finish().revision
}

fn delete(writer: &mut Writer, key: &'static str) -> i64 {
    let mut txn = writer.begin();
    txn.delete(key.as_bytes()).unwrap();
    txn.finish().revision
}

fn commit(writer: &mut Writer, index: u64) {
    writer.commit(id(index)).unwrap();
    writer.publish();
}

#[test]
fn empty_store_is_at_revision_1_and_the_first_write_makes_2() {
    let (_, keyspace, mut writer) = new();
    assert_eq!((keyspace.current_revision(), keyspace.compact_revision()), (1, -1));
    assert_eq!((keyspace.applied(), keyspace.durable_applied().unwrap()), (None, None));
    assert_eq!(put(&mut writer, "a", "1"), 2);
    commit(&mut writer, 1);
    assert_eq!(keyspace.current_revision(), 2);
}

#[test]
fn what_is_read_ahead_is_what_a_put_would_have_read() {
    let (_, keyspace, mut writer) = new();
    put(&mut writer, "a", "1");
    put(&mut writer, "b", "1");
    commit(&mut writer, 1);
    let version = |writer: &mut Writer, key: &'static str| {
        let mut txn = writer.begin();
        let previous = txn.put(b(key), b("2"), 0).unwrap();
        txn.finish();
        previous.map_or(0, |kv| kv.version)
    };
    // The last but one is not asked for; a key may come twice; what the batch has changed meanwhile wins.
    writer.read_ahead(["b", "new", "a", "b", "x", "a"].map(b).into_iter()).unwrap();
    delete(&mut writer, "a");
    let seen: Vec<i64> = ["b", "new", "a", "b", "a"].map(|key| version(&mut writer, key)).into();
    assert_eq!(seen, [1, 0, 0, 2, 1]);
    commit(&mut writer, 2);
    // Read before a commit, it is not believed after it.
    writer.read_ahead(["b", "b"].map(b).into_iter()).unwrap();
    assert_eq!(version(&mut writer, "b"), 3);
    commit(&mut writer, 3);
    assert_eq!(version(&mut writer, "b"), 4);
    commit(&mut writer, 4);
    assert_eq!(keyspace.current_revision(), 11);
}

#[test]
fn what_is_known_is_not_read_ahead() {
    let (backend, _, mut writer) = new();
    for round in 1..4 {
        put(&mut writer, "hot", "1");
        commit(&mut writer, round);
    }
    put(&mut writer, "under way", "1");
    let before = backend.looked_up();
    writer.read_ahead(["hot", "new", "under way", "hot"].map(b).into_iter()).unwrap();
    assert_eq!(backend.looked_up() - before, 1, "only the key that neither the batch nor the cache knows");
    for (key, replaces) in [("hot", true), ("new", false), ("under way", true), ("hot", true)] {
        let mut txn = writer.begin();
        assert_eq!(txn.put(b(key), b("2"), 0).unwrap().is_some(), replaces, "{key}");
        txn.finish();
    }
    assert_eq!(backend.looked_up() - before, 1, "each of them was known by then");
}

#[test]
fn history_is_dropped_though_a_flush_is_seen_late() {
    let (backend, keyspace, mut writer) = new();
    put(&mut writer, "a", "1");
    put(&mut writer, "a", "2");
    writer.compact(3).unwrap();
    commit(&mut writer, 1);
    backend.flush().unwrap();
    put(&mut writer, "a", "3");
    writer.compact(4).unwrap();
    commit(&mut writer, 2);
    backend.show_flushes_late(10);
    keyspace.drop_history().unwrap();
    assert_eq!(keyspace.durable_applied().unwrap(), Some(id(2)));
}

#[test]
fn a_transaction_without_change_takes_no_revision() {
    let (_, _, mut writer) = new();
    put(&mut writer, "a", "1");
    let mut txn = writer.begin();
    assert_eq!(txn.delete(b"missing").unwrap(), None);
    assert!(txn.delete_range(&KeyRange::prefix(b"z")).unwrap().is_empty() && !txn.changed());
    let changes = txn.finish();
    assert_eq!((changes.revision, changes.events.len()), (2, 0));
    assert_eq!(put(&mut writer, "b", "1"), 3);
}

#[test]
fn compact_0_works_once_on_a_new_store_and_the_same_revision_never_twice() {
    let (_, keyspace, mut writer) = new();
    writer.compact(0).unwrap();
    assert!(matches!(writer.compact(0), Err(ReadError::Compacted)));
    assert!(matches!(writer.compact(2), Err(ReadError::Future)));
    writer.compact(1).unwrap();
    commit(&mut writer, 1);
    keyspace.drop_history().unwrap();
    assert_eq!(keyspace.compact_revision(), 1);
    assert!(keyspace.read(1).is_ok());
}

#[test]
fn a_delete_at_the_compact_revision_is_still_seen_by_a_watch_that_starts_there() {
    let (backend, keyspace, mut writer) = new();
    put(&mut writer, "a", "1");
    let deleted = delete(&mut writer, "a");
    writer.compact(deleted).unwrap();
    put(&mut writer, "b", "1");
    commit(&mut writer, 1);
    keyspace.drop_history().unwrap();
    keyspace.flush().unwrap();
    let mut found = Vec::new();
    assert!(!backend.get(Family::Cur, b"a", &mut found).unwrap(), "the stub is forgotten");
    let chunk = keyspace.history(deleted, i64::MAX, None, true, usize::MAX).unwrap();
    let (revision, events) = &chunk.events_by_revision[0];
    assert_eq!((*revision, events[0].kind, &events[0].prev), (deleted, EventKind::Delete, &None));
    assert_eq!(keyspace.read(deleted).unwrap().get(b"a").unwrap(), None);
}

#[test]
fn a_stub_above_the_compact_revision_stays_because_reads_rewind_through_it() {
    let (backend, keyspace, mut writer) = new();
    let created = put(&mut writer, "a", "1");
    delete(&mut writer, "a");
    writer.compact(created).unwrap();
    commit(&mut writer, 1);
    keyspace.drop_history().unwrap();
    keyspace.flush().unwrap();
    let mut found = Vec::new();
    assert!(backend.get(Family::Cur, b"a", &mut found).unwrap());
    assert_eq!(keyspace.read(created).unwrap().get(b"a").unwrap().unwrap().value, b("1"));
    assert_eq!(keyspace.read(0).unwrap().get(b"a").unwrap(), None);
}

#[test]
fn a_key_made_again_is_read_through_its_stub() {
    let (_, keyspace, mut writer) = new();
    let revisions =
        [put(&mut writer, "a", "1"), put(&mut writer, "a", "2"), delete(&mut writer, "a"), put(&mut writer, "a", "3")];
    commit(&mut writer, 1);
    let values = revisions.map(|at| keyspace.read(at).unwrap().get(b"a").unwrap().map(|kv| (kv.value, kv.version)));
    assert_eq!(values, [Some((b("1"), 1)), Some((b("2"), 2)), None, Some((b("3"), 1))]);
}

#[test]
fn a_key_changed_twice_in_a_revision_shows_both_events_and_the_pair_before_the_revision() {
    let (_, keyspace, mut writer) = new();
    put(&mut writer, "a", "old");
    let mut txn = writer.begin();
    assert_eq!(txn.put(b("a"), b("x"), 0).unwrap().unwrap().value, b("old"));
    assert_eq!(txn.put(b("a"), b("y"), 0).unwrap().unwrap().value, b("x"), "the reply shows the transaction's own");
    let changes = txn.finish();
    commit(&mut writer, 1);
    let prevs: Vec<_> = changes.events.iter().map(|event| event.prev.as_ref().unwrap().value.clone()).collect();
    assert_eq!(prevs, ["old", "old"]);
    let chunk = keyspace.history(3, 3, None, true, 0).unwrap();
    assert_eq!(chunk.events_by_revision, [(3, changes.events)]);
    assert_eq!(keyspace.read(2).unwrap().get(b"a").unwrap().unwrap().value, b("old"));
}

#[test]
fn a_transaction_without_events_writes_the_same() {
    let written = |options: TxnOptions| {
        let (_, keyspace, mut writer) = new();
        put(&mut writer, "a", "committed");
        put(&mut writer, "c", "committed");
        put(&mut writer, "e", "old");
        delete(&mut writer, "e");
        commit(&mut writer, 1);
        put(&mut writer, "b", "in the batch");
        put(&mut writer, "c", "in the batch");
        delete(&mut writer, "a");
        let mut txn = writer.begin_with(options);
        assert!(!txn.changed());
        txn.put(b("d"), b("own"), 0).unwrap();
        txn.put(b("d"), b("own again"), 0).unwrap();
        assert!(txn.changed());
        let mut gone = Vec::new();
        assert_eq!(txn.delete_each(&KeyRange::all(), &mut |kv| gone.push((kv.key, kv.value))).unwrap(), 3);
        assert_eq!(gone, [(b("b"), b("in the batch")), (b("c"), b("in the batch")), (b("d"), b("own again"))]);
        assert_eq!(txn.delete_each(&KeyRange::all(), &mut |kv| panic!("{kv:?} is there again")).unwrap(), 0);
        assert_eq!(txn.delete_each(&KeyRange::point(b("c")), &mut |kv| panic!("{kv:?} is there again")).unwrap(), 0);
        txn.put(b("f"), b("own"), 0).unwrap();
        let point = KeyRange::point(b("f"));
        assert_eq!(txn.delete_each(&point, &mut |kv| assert_eq!(kv.value, b("own"))).unwrap(), 1);
        let changes = txn.finish();
        commit(&mut writer, 2);
        (changes, keyspace.history(2, i64::MAX, None, true, usize::MAX).unwrap().events_by_revision)
    };
    let (with, history) = written(TxnOptions::default());
    let (without, same_history) = written(TxnOptions { without_events: true });
    assert_eq!(history, same_history);
    assert_eq!(history.last().unwrap(), &(with.revision, with.events));
    assert_eq!((without.revision, without.events), (with.revision, Vec::new()));
}

#[test]
fn an_open_read_is_told_when_its_history_is_dropped() {
    let (_, keyspace, mut writer) = new();
    put(&mut writer, "a", "1");
    put(&mut writer, "a", "2");
    commit(&mut writer, 1);
    let read = keyspace.read(2).unwrap();
    writer.compact(3).unwrap();
    commit(&mut writer, 2);
    assert_eq!(read.get(b"a").unwrap().unwrap().value, b("1"), "only logically compacted: still right");
    keyspace.drop_history().unwrap();
    assert!(matches!(read.get(b"a"), Err(ReadError::Compacted)));
    assert!(matches!(read.range(&KeyRange::all(), &RangeOptions::default()), Err(ReadError::Compacted)));
    assert!(matches!(keyspace.read(2), Err(ReadError::Compacted)));
}

#[test]
fn a_read_of_the_current_revision_is_not_told_of_compactions() {
    let (_, keyspace, mut writer) = new();
    put(&mut writer, "a", "1");
    commit(&mut writer, 1);
    let mut index = 1;
    // A write and a compaction at its revision, history gone with it.
    let mut compact = || {
        index += 1;
        let revision = put(&mut writer, "a", "newer");
        writer.compact(revision).unwrap();
        commit(&mut writer, index);
        keyspace.drop_history().unwrap();
    };
    let mut seen = Vec::new();
    let found = keyspace.read_current(|read| {
        seen.push((read.revision(), read.is_outrun()));
        (seen.len() < 3).then(&mut compact);
        Ok((read.revision(), read.get(b"a")?.unwrap().value))
    });
    assert_eq!(found.unwrap(), (4, b("newer")));
    assert_eq!(seen, [(2, false), (3, false), (4, false)]);

    let mut reads = 0;
    let outrun = keyspace.read_current(|read| {
        reads += 1;
        compact();
        assert!(read.is_outrun());
        read.count(&KeyRange::all())
    });
    assert!(matches!(outrun, Err(ReadError::Compacted)));
    assert_eq!(reads, Keyspace::READ_CURRENT_TRIES);

    // What is asked for beside it may well be compacted.
    reads = 0;
    let older = keyspace.read_current(|_| {
        reads += 1;
        keyspace.read(2)?.get(b"a")
    });
    assert!(matches!(older, Err(ReadError::Compacted)) && reads == 1);
}

#[test]
fn history_is_dropped_only_below_a_durable_compact_revision() {
    let (backend, keyspace, mut writer) = new();
    put(&mut writer, "a", "1");
    put(&mut writer, "a", "2");
    commit(&mut writer, 1);
    keyspace.flush().unwrap();
    writer.compact(3).unwrap();
    commit(&mut writer, 2);
    keyspace.drop_history().unwrap();
    let (keyspace, _writer) = Keyspace::open(backend.crash()).unwrap();
    assert_eq!((keyspace.compact_revision(), keyspace.applied()), (3, Some(id(2))));
    assert_eq!(keyspace.read(3).unwrap().get(b"a").unwrap().unwrap().value, b("2"));
}

#[test]
fn what_is_durable_follows_the_flush() {
    let (backend, keyspace, mut writer) = new();
    put(&mut writer, "a", "1");
    commit(&mut writer, 7);
    assert_eq!((keyspace.applied(), keyspace.durable_applied().unwrap()), (Some(id(7)), None));
    keyspace.flush().unwrap();
    put(&mut writer, "a", "2");
    commit(&mut writer, 8);
    assert_eq!(keyspace.durable_applied().unwrap(), Some(id(7)));
    let (keyspace, _writer) = Keyspace::open(backend.crash()).unwrap();
    assert_eq!((keyspace.applied(), keyspace.current_revision()), (Some(id(7)), 2));
}

#[test]
fn the_log_does_not_go_back() {
    let (_, _, mut writer) = new();
    commit(&mut writer, 7);
    assert!(matches!(writer.commit(id(6)), Err(StorageError::Invariant { .. })));
}

#[test]
fn an_unknown_format_version_is_refused_and_named() {
    for (bytes, named) in [(&2u32.to_le_bytes()[..], "format version is 2"), (b"?", "cannot be read")] {
        let backend = MemBackend::new();
        let mut batch = WriteBatch::default();
        batch.put(Family::Meta, b"mvcc/format", bytes);
        backend.write(&mut batch).unwrap();
        let Err(StorageError::Format { what, .. }) = Keyspace::open(backend).map(|_| ()) else { panic!("not refused") };
        assert!(what.contains(named), "{what}");
    }
    let backend = MemBackend::new();
    let mut batch = WriteBatch::default();
    batch.put(Family::Cur, b"a", b"?");
    backend.write(&mut batch).unwrap();
    assert!(matches!(Keyspace::open(backend), Err(StorageError::Format { .. })));
}

#[test]
fn lost_history_is_an_error_and_not_a_gap() {
    let (backend, keyspace, mut writer) = new();
    let revisions = [put(&mut writer, "a", "1"), put(&mut writer, "a", "2"), put(&mut writer, "a", "3")];
    commit(&mut writer, 1);
    let mut batch = WriteBatch::default();
    let key: Vec<u8> = (revisions[1] as u64).to_be_bytes().into_iter().chain([0; 4]).collect();
    batch.delete(Family::Log, &key);
    backend.write(&mut batch).unwrap();
    let broken = |error: ReadError| matches!(error, ReadError::Storage(StorageError::Invariant { .. }));
    assert!(broken(keyspace.read(revisions[0]).unwrap().get(b"a").unwrap_err()));
    assert!(broken(keyspace.history(2, 4, None, false, usize::MAX).unwrap_err()));
    assert!(broken(keyspace.history(3, 3, None, false, usize::MAX).unwrap_err()));
}

#[test]
fn a_history_scan_that_finds_nothing_pauses() {
    let (_, keyspace, mut writer) = new();
    for _ in 0..1000 {
        put(&mut writer, "other", "a value of some length");
    }
    commit(&mut writer, 1);
    let range = KeyRange::point(b("wanted"));
    let chunk = keyspace.history(2, i64::MAX, Some(&range), false, 100).unwrap();
    assert!(chunk.events_by_revision.is_empty());
    assert!((3..100).contains(&chunk.next_revision), "{}", chunk.next_revision);
}

#[test]
fn a_pin_keeps_what_could_be_read_when_it_was_made_and_nothing_longer() {
    let (keyspace, mut writer) = Keyspace::open(MemBackend::new()).unwrap();
    let mut index = 0;
    let mut put = |writer: &mut Writer, value: &str| {
        let mut txn = writer.begin();
        txn.put(Bytes::from_static(b"k"), value.to_owned().into(), 0).unwrap();
        txn.finish();
        index += 1;
        writer.commit(LogId { term: 1, index }).unwrap();
        writer.publish();
    };
    put(&mut writer, "2");
    put(&mut writer, "3");
    writer.compact(2).unwrap();
    put(&mut writer, "4");
    let pin = keyspace.pin();
    let (position, tables) = (keyspace.current_revision(), pin.tables().unwrap());
    assert_eq!((tables.current_revision(), tables.compact_revision()), (position, 2));
    put(&mut writer, "5");
    writer.compact(5).unwrap();
    put(&mut writer, "6");
    assert_eq!(tables.current_revision(), position, "the tables are of one moment");
    keyspace.drop_history().unwrap();
    assert_eq!((keyspace.history_floor(), keyspace.has_history_to_drop()), (2, false));
    assert_eq!(pin.read(2).get(b"k").unwrap().unwrap().value, "2");
    assert_eq!(pin.history(2, 4, usize::MAX).unwrap().events_by_revision.len(), 3);
    assert!(matches!(keyspace.read(4), Err(ReadError::Compacted)), "others are not served longer");
    drop(tables);
    drop(pin);
    assert!(keyspace.has_history_to_drop());
    keyspace.drop_history().unwrap();
    assert_eq!(keyspace.history_floor(), 5);
}
