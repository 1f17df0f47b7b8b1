//! The hash of the keyspace: what it is made of, and what becomes of one that does not fit.

use std::sync::Arc;

use daymark_storage::LogId;
use daymark_storage::backend::{Backend, Family, MemBackend, WriteBatch};
use daymark_storage::mvcc::hash::{self, verify};
use daymark_storage::mvcc::{Keyspace, ReadError, Writer, layout};

fn put(writer: &mut Writer, key: &str, value: &str) {
    let mut txn = writer.begin();
    txn.put(key.to_owned().into(), value.to_owned().into(), 0).unwrap();
    txn.finish();
}

fn commit(writer: &mut Writer, index: u64) {
    writer.commit(LogId { term: 1, index }).unwrap();
    writer.publish();
}

fn stored(index: u64) -> Arc<MemBackend> {
    let backend = MemBackend::new();
    let (_, mut writer) = Keyspace::open(backend.clone()).unwrap();
    put(&mut writer, "a", "1");
    put(&mut writer, "b", "2");
    commit(&mut writer, index);
    backend
}

/// Members of one cluster compare these: they must never change.
#[test]
fn the_hash_of_a_record_is_frozen() {
    assert_eq!(hash::of_record(b"key", b"record", &mut vec![1, 2, 3]), FROZEN);
    assert_ne!(hash::of_record(b"keyr", b"ecord", &mut Vec::new()), FROZEN, "the key ends where it ends");
}

const FROZEN: u128 = 0x1847_8109_c7ce_786d_00c2_cd03_8ced_8247;

#[test]
fn who_has_the_same_pairs_has_the_same_hash() {
    let hash = |order: [&str; 3]| {
        let (keyspace, mut writer) = Keyspace::open(MemBackend::new()).unwrap();
        // In one revision, so that only the order within it differs.
        let mut txn = writer.begin();
        for key in order {
            txn.put(key.to_owned().into(), "v".into(), 0).unwrap();
        }
        txn.finish();
        commit(&mut writer, 1);
        verify(&keyspace, 0).unwrap()
    };
    assert_eq!(hash(["a", "b", "c"]), hash(["a", "b", "c"]));
    assert_ne!(hash(["a", "b", "c"]).to_u32(), hash(["b", "a", "c"]).to_u32(), "the place within a revision counts");
    let (empty, _writer) = Keyspace::open(MemBackend::new()).unwrap();
    assert_eq!((verify(&empty, 0).unwrap().sum, verify(&empty, 1).unwrap().revision), (0, 1));
}

/// Written by another version: the row is gone, or is of an older revision than the data.
#[test]
fn a_missing_or_outdated_hash_is_made_anew() {
    for row in [None, Some(layout::encode_hash(2, 77))] {
        let backend = stored(1);
        let (keyspace, _) = Keyspace::open(backend.clone()).unwrap();
        let right = verify(&keyspace, 0).unwrap();
        let mut batch = WriteBatch::default();
        match row {
            Some(row) => drop(batch.put(Family::Meta, layout::HASH_KEY, &row)),
            None => batch.delete(Family::Meta, layout::HASH_KEY),
        }
        backend.write(&mut batch).unwrap();
        let (keyspace, mut writer) = Keyspace::open(backend.clone()).unwrap();
        assert_eq!(keyspace.hash(0, &|| false).unwrap(), Some(right));
        put(&mut writer, "a", "3");
        commit(&mut writer, 2);
        verify(&keyspace, 0).unwrap();
        assert_eq!(verify(&keyspace, right.revision).unwrap(), right);
    }
}

/// What the full check is for.
#[test]
fn a_changed_record_is_found() {
    let backend = stored(1);
    let (keyspace, _writer) = Keyspace::open(backend.clone()).unwrap();
    verify(&keyspace, 0).unwrap();
    let mut record = Vec::new();
    assert!(backend.get(Family::Cur, b"a", &mut record).unwrap());
    *record.last_mut().unwrap() ^= 1;
    let mut batch = WriteBatch::default();
    batch.put(Family::Cur, b"a", &record);
    backend.write(&mut batch).unwrap();
    assert!(matches!(verify(&keyspace, 0), Err(ReadError::Storage(_))));
    assert!(keyspace.hash(0, &|| false).unwrap().is_some(), "it is not read for the hash that is kept");
}

#[test]
fn a_hash_of_everything_ends_when_it_is_given_up() {
    let (keyspace, _writer) = Keyspace::open(stored(1)).unwrap();
    let all = keyspace.hash_everything(&|| false).unwrap().unwrap();
    assert_eq!(keyspace.hash_everything(&|| false).unwrap(), Some(all));
    let given_up = || true;
    assert_eq!(keyspace.hash_everything(&given_up).unwrap(), None);
    assert_eq!(keyspace.hash(1, &given_up).unwrap(), None);
    let (other, _writer) = Keyspace::open(stored(2)).unwrap();
    assert_ne!(other.hash_everything(&|| false).unwrap(), Some(all), "another log index");
}
