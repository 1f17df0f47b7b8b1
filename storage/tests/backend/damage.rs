//! Damaged and foreign directories: an error that says what is wrong, never a store with fewer keys.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use daymark_storage::backend::{Backend, RocksBackend, RocksOptions};
use daymark_storage::mvcc::{KeyRange, Keyspace, RangeOptions, ReadError};
use daymark_storage::{LogId, StorageError};

const KEYS: u32 = 3000;

fn open(dir: &Path) -> Result<std::sync::Arc<RocksBackend>, StorageError> {
    RocksBackend::open(RocksOptions { memory_budget_bytes: 16 << 20, ..RocksOptions::new(dir) })
}

/// A closed store with some tables of keys, half of them changed twice.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (keyspace, mut writer) = Keyspace::open(open(dir.path()).unwrap()).unwrap();
    for (index, part) in [0..KEYS, 0..KEYS / 2].into_iter().enumerate() {
        for number in part {
            let mut txn = writer.begin();
            txn.put(format!("key{number:05}").into(), format!("{index}/{number:0>60}").into(), 0).unwrap();
            txn.finish();
        }
        writer.commit(LogId { term: 1, index: index as u64 }).unwrap();
        writer.publish();
        keyspace.flush().unwrap();
    }
    drop((keyspace, writer));
    dir
}

/// Everything that can be asked of a store: its newest state, an old one, and history.
fn read_all(dir: &Path) -> Result<(BTreeMap<Bytes, Bytes>, i64, usize), ReadError> {
    let (keyspace, _writer) = Keyspace::open(open(dir)?)?;
    let all = KeyRange::all();
    let mut newest = BTreeMap::new();
    keyspace.read(0)?.for_each(&all, &mut |key, kv| {
        newest.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(kv.value));
        ControlFlow::Continue(())
    })?;
    for key in newest.keys() {
        assert!(keyspace.read(0)?.get(key)?.is_some());
    }
    let old = keyspace.read(i64::from(KEYS) + 1)?.range(&all, &RangeOptions::default())?;
    let history = keyspace.history(2, i64::MAX, None, true, usize::MAX)?;
    Ok((newest, old.count, history.events_by_revision.len()))
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    found
}

#[test]
fn a_flipped_byte_in_a_table_is_an_error_and_not_fewer_keys() {
    let dir = filled();
    let whole = read_all(dir.path()).unwrap();
    assert_eq!((whole.0.len() as u32, whole.1 as u32, whole.2 as u32), (KEYS, KEYS, KEYS + KEYS / 2));
    let (mut found, mut located) = (0, 0);
    let tables = files(dir.path(), "sst");
    assert!(tables.len() > 4);
    for table in &tables {
        let bytes = fs::read(table).unwrap();
        for part in 0..8 {
            let place = (bytes.len() - 1) * part / 7;
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x10;
            fs::write(table, &damaged).unwrap();
            // Some bytes say nothing about keys (a name, a statistic): then all must be there.
            match read_all(dir.path()) {
                Ok(read) => assert!(read == whole, "byte {place} of {} hides keys", table.display()),
                Err(ReadError::Storage(StorageError::Corrupt { path, offset, .. })) => {
                    found += 1;
                    located += usize::from(path == *table && offset <= place as u64);
                }
                Err(error) => panic!("byte {place} of {}: {error}", table.display()),
            }
        }
        fs::write(table, &bytes).unwrap();
    }
    assert!(found >= tables.len() * 4, "only {found} of {} noticed", tables.len() * 8);
    assert!(located * 2 > found, "{located} of {found} name file and offset");
    assert!(read_all(dir.path()).unwrap() == whole);
}

#[test]
fn a_missing_or_shortened_table_is_an_error() {
    let dir = filled();
    for table in files(dir.path(), "sst") {
        let bytes = fs::read(&table).unwrap();
        fs::write(&table, &bytes[..bytes.len() / 2]).unwrap();
        assert!(read_all(dir.path()).is_err());
        fs::remove_file(&table).unwrap();
        assert!(read_all(dir.path()).is_err());
        fs::write(&table, &bytes).unwrap();
    }
    read_all(dir.path()).unwrap();
}

#[test]
fn a_flipped_byte_in_the_manifest_is_an_error() {
    let dir = filled();
    let whole = read_all(dir.path()).unwrap();
    let list = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    let manifest = list.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("MANIFEST")).max();
    let manifest = manifest.unwrap();
    let bytes = fs::read(&manifest).unwrap();
    for part in 0..6 {
        let mut damaged = bytes.clone();
        damaged[bytes.len() * part / 7] ^= 0x10;
        fs::write(&manifest, &damaged).unwrap();
        assert!(read_all(dir.path()).is_err_and(|error| matches!(error, ReadError::Storage(_))));
        fs::write(&manifest, &bytes).unwrap();
    }
    assert!(read_all(dir.path()).unwrap() == whole);
}

#[test]
fn without_current_a_store_is_not_taken_for_a_new_one() {
    let dir = filled();
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let Err(StorageError::Format { what, .. }) = open(dir.path()) else { panic!("not refused") };
    assert!(what.contains("CURRENT"), "{what}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _held = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(StorageError::InUse { .. })));
}

#[test]
fn a_checkpoint_is_a_store_with_everything_written() {
    let dir = tempfile::tempdir().unwrap();
    let (keyspace, mut writer) = Keyspace::open(open(&dir.path().join("a")).unwrap()).unwrap();
    let mut txn = writer.begin();
    txn.put("k".into(), "v".into(), 0).unwrap();
    txn.finish();
    writer.commit(LogId { term: 2, index: 5 }).unwrap();
    keyspace.backend().checkpoint(&dir.path().join("b")).unwrap();
    let copy = open(&dir.path().join("b")).unwrap();
    assert!(copy.size().unwrap().on_disk_bytes > 0);
    let (copy, _writer) = Keyspace::open(copy).unwrap();
    assert_eq!(copy.applied(), Some(LogId { term: 2, index: 5 }));
    assert_eq!(copy.read(0).unwrap().get(b"k").unwrap().unwrap().value, "v");
}
