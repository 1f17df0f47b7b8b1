//! Snapshots of the state: made, carried over piece by piece, put in the state's place; broken off, damaged and crashed at
//! every step on the way. Real backends where their files matter, the simulated disk where crashes do.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use daymark_storage::backend::{Backend, CopyUse, Family, MemBackend};
use daymark_storage::codec::crc32c;
use daymark_storage::disk::{Disk, OpenMode, RealDisk};
use daymark_storage::mvcc::{KeyRange, Keyspace, ReadError, Writer};
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::snapshot::{Have, MADE_MAX, MANIFEST_FILE, Manifest, SnapshotFile, SnapshotStore, recover};
use daymark_storage::{LogId, StorageError};

const CLUSTER: u64 = 0xc1;
const ROW: &[u8] = b"raft/membership";
const PIECE: usize = 1000;

fn log_id(index: u64) -> LogId {
    LogId { term: 3, index }
}

/// Puts `count` keys, each in a revision of its own.
fn fill(writer: &mut Writer, from: u64, count: u64) {
    for number in from..from + count {
        let mut txn = writer.begin();
        txn.put(Bytes::from(format!("key {number:05}")), Bytes::from(vec![number as u8; 100]), 0).unwrap();
        txn.finish();
        writer.table_put(Family::Meta, ROW, b"the members");
        writer.commit(log_id(number)).unwrap();
        writer.publish();
    }
}

fn store(dir: &Path, keyspace: &Arc<Keyspace>) -> Arc<SnapshotStore> {
    let disk = Arc::new(RealDisk::new());
    disk.create_dir_all(dir).unwrap();
    SnapshotStore::new(disk, dir, CLUSTER, keyspace.clone(), ROW, 0)
}

/// Carries `pieces` pieces of a snapshot over, beginning where the receiver says; true once all of it is there.
fn carry(from: &SnapshotStore, to: &SnapshotStore, pieces: usize) -> (u64, bool) {
    let made = from.snapshot(None, 7).unwrap();
    let (turn, mut at) = to.receive(made.manifest.clone()).unwrap();
    for _ in 0..pieces {
        let Some(file) = made.manifest.files.get(at.file as usize) else { return (turn, true) };
        if at.offset >= file.bytes {
            at = Have { file: at.file + 1, offset: 0 };
            continue;
        }
        let bytes = made.read(at, PIECE).unwrap();
        to.write(turn, at, &bytes).unwrap();
        at.offset += bytes.len() as u64;
    }
    (turn, (at.file as usize) >= made.manifest.files.len())
}

fn keys(keyspace: &Keyspace) -> i64 {
    let txn = keyspace.read(0).unwrap();
    let mut count = 0;
    txn.for_each(&KeyRange::all(), &mut |_, _| {
        count += 1;
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    count
}

/// On either backend: a member's state becomes that of another while somebody reads the old one.
fn replaced(leader: Arc<dyn Backend>, follower: Arc<dyn Backend>, dirs: [PathBuf; 2]) {
    let (source, mut writer) = Keyspace::open(leader).unwrap();
    fill(&mut writer, 1, 500);
    writer.compact(300).unwrap();
    writer.commit(log_id(501)).unwrap();
    writer.publish();
    let (target, mut behind) = Keyspace::open(follower).unwrap();
    fill(&mut behind, 1, 20);
    let [from, to] = [(&dirs[0], &source), (&dirs[1], &target)].map(|(dir, keyspace)| store(dir, keyspace));

    let (_, done) = carry(&from, &to, 3);
    assert!(!done, "the first connection breaks early");
    // Written meanwhile: not part of what goes on.
    fill(&mut writer, 502, 3);
    let (turn, done) = carry(&from, &to, usize::MAX);
    assert!(done);
    let received = to.check(to.complete(turn).unwrap()).unwrap();
    assert_eq!((received.manifest().applied, received.manifest().revision), (log_id(501), 501));

    let old = target.read(0).unwrap();
    let live = target.backend().open_copy(&received.install().unwrap(), CopyUse::Live).unwrap();
    let mut replaced = target.replace(live).unwrap();
    drop(behind);
    assert_eq!((target.current_revision(), target.compact_revision(), target.applied()), (501, 300, Some(log_id(501))));
    assert_eq!(
        (keys(&target), target.durable_applied().unwrap()),
        (500, Some(log_id(501))),
        "nothing waits to be flushed"
    );
    assert!(matches!(target.read(100).map(|_| ()), Err(ReadError::Compacted)));
    assert_eq!(target.hash(400, &|| false).unwrap(), source.hash(400, &|| false).unwrap());
    assert_eq!(
        target.history(400, 500, None, true, usize::MAX).unwrap(),
        source.history(400, 500, None, true, usize::MAX).unwrap()
    );
    let mut seen = 0;
    old.for_each(&KeyRange::all(), &mut |_, _| {
        seen += 1;
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((old.revision(), seen), (21, 20), "who has begun to read the old state ends there");
    fill(&mut replaced, 502, 10);
    assert_eq!((keys(&target), target.current_revision()), (510, 511));
}

#[test]
fn a_state_in_memory_is_replaced_under_its_readers() {
    let dir = tempfile::tempdir().unwrap();
    replaced(MemBackend::new(), MemBackend::new(), [dir.path().join("a"), dir.path().join("b")]);
}

#[cfg(feature = "rocksdb")]
#[test]
fn a_state_in_rocksdb_is_replaced_under_its_readers_and_its_files_go_with_them() {
    use daymark_storage::backend::{RocksBackend, RocksOptions};
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let open = |member: &Path| RocksBackend::open(RocksOptions::new(member.join("db"))).unwrap();
    replaced(open(&a), open(&b), [a.clone(), b.clone()]);
    let names = || RealDisk::new().list(&b).unwrap();
    assert_eq!(names(), ["db-0000000000000001"], "nobody reads the old state any more");
    let place = recover(&RealDisk::new(), &b).unwrap();
    assert_eq!((place.dir.clone(), place.installed), (b.join("db-0000000000000001"), Some(log_id(501))));
    let (keyspace, _writer) = Keyspace::open(RocksBackend::open(RocksOptions::new(place.dir)).unwrap()).unwrap();
    assert_eq!(keyspace.applied(), Some(log_id(511)), "closing has flushed what came after");
    assert_eq!(recover(&RealDisk::new(), &a).unwrap().installed, None);
    assert_eq!(RealDisk::new().list(&a).unwrap(), ["db"], "what was made to be sent is gone");
}

#[test]
fn an_older_state_is_refused() {
    let (keyspace, mut writer) = Keyspace::open(MemBackend::new()).unwrap();
    fill(&mut writer, 1, 5);
    let older = keyspace.replace(MemBackend::new()).map(|_| ()).unwrap_err();
    assert!(older.to_string().contains("it is older"), "{older}");
    assert_eq!(keys(&keyspace), 5);
}

/// Content of a snapshot that no backend reads.
fn made_up() -> (Manifest, Vec<Vec<u8>>) {
    let contents = vec![vec![1; 2500], vec![], (0..1700).map(|n| n as u8).collect()];
    let files = ["000007.sst", "CURRENT", "MANIFEST-000004"].iter().zip(&contents);
    let files = files.map(|(name, bytes)| SnapshotFile {
        name: name.to_string(),
        bytes: bytes.len() as u64,
        crc: crc32c(bytes),
    });
    let membership = Bytes::from_static(b"the members");
    let manifest =
        Manifest { id: 9, cluster_id: CLUSTER, applied: log_id(77), revision: 50, membership, files: files.collect() };
    (manifest, contents)
}

fn member() -> &'static Path {
    Path::new("/data/member")
}

fn sim_store(disk: &SimDisk) -> Arc<SnapshotStore> {
    let (keyspace, _writer) = Keyspace::open(MemBackend::new()).unwrap();
    SnapshotStore::new(Arc::new(disk.clone()), member(), CLUSTER, keyspace, ROW, 0)
}

/// A member with a state, on a disk on which nothing is pending.
fn sim_member(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(&member().join("db")).unwrap();
    disk.set_content(&member().join("db").join("CURRENT"), Some(b"old".to_vec()));
    disk
}

fn receive_all(disk: &SimDisk) -> Result<(), StorageError> {
    let (manifest, contents) = made_up();
    let store = sim_store(disk);
    let (turn, mut at) = store.receive(manifest)?;
    while let Some(content) = contents.get(at.file as usize) {
        let rest = &content[at.offset as usize..];
        if rest.is_empty() {
            at = Have { file: at.file + 1, offset: 0 };
            continue;
        }
        let piece = &rest[..rest.len().min(PIECE)];
        store.write(turn, at, piece)?;
        at.offset += piece.len() as u64;
    }
    store.complete(turn)?.install().map(|_| ())
}

fn read_file(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let file = disk.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// The old state as it was, or all of the new one, and nothing else.
fn check_whole(disk: &SimDisk) -> bool {
    let place = recover(disk, member()).unwrap();
    let name = place.dir.file_name().unwrap().to_str().unwrap().to_string();
    assert_eq!(disk.list(member()).unwrap(), std::slice::from_ref(&name), "leftovers are gone");
    if name == "db" {
        assert_eq!((place.installed, read_file(disk, &place.dir.join("CURRENT"))), (None, b"old".to_vec()));
        return false;
    }
    let (manifest, contents) = made_up();
    assert_eq!(place.installed, Some(manifest.applied));
    for (file, content) in manifest.files.iter().zip(contents) {
        assert_eq!(read_file(disk, &place.dir.join(&file.name)), content, "{}", file.name);
    }
    true
}

/// Power cuts and deaths of the process at every operation, with several fates of what was not synced.
#[test]
fn a_crash_at_any_point_leaves_the_old_state_or_the_new_one() {
    let whole = sim_member(0);
    receive_all(&whole).unwrap();
    let operations = whole.operations();
    assert!(check_whole(&whole) && operations > 15, "{operations}");
    let (mut old, mut new) = (0, 0);
    for crash_at in 1..=operations {
        for seed in 0..12 {
            let disk = sim_member(seed);
            disk.crash_at(crash_at);
            receive_all(&disk).unwrap_err();
            for found in [disk.after_power_cut(seed), disk.after_process_exit()] {
                let is_new = check_whole(&found);
                (old, new) = (old + u32::from(!is_new), new + u32::from(is_new));
                assert!(!is_new || crash_at >= operations - 1, "new before the swap");
                // Whatever was found: it can be tried again.
                receive_all(&found).unwrap();
                assert!(check_whole(&found));
            }
        }
    }
    // A crash during the clean-up of a finished swap is one, too.
    for crash_at in 1..4 {
        let disk = sim_member(3);
        receive_all(&disk).unwrap();
        disk.crash_at(disk.operations() + crash_at);
        let _ = recover(&disk, member());
        assert!(check_whole(&disk.after_power_cut(crash_at)), "a finished swap stays");
    }
    assert!(old > 100 && new > 5, "{old} {new}");
}

#[test]
fn failing_operations_are_errors_and_leave_the_state() {
    let whole = sim_member(0);
    receive_all(&whole).unwrap();
    for fail_at in 1..=whole.operations() {
        let disk = sim_member(1);
        disk.fail_at(fail_at);
        // What fails after the rename is the caller's to stop for; the next start finds one of the two.
        receive_all(&disk).unwrap_err();
        check_whole(&disk.after_process_exit());
    }
}

#[test]
fn damage_on_the_way_is_found_before_the_swap() {
    let (manifest, contents) = made_up();
    for (place, content) in contents.iter().enumerate() {
        for at in (0..content.len()).step_by(611) {
            let disk = sim_member(1);
            let store = sim_store(&disk);
            let (turn, _) = store.receive(manifest.clone()).unwrap();
            for (number, content) in contents.iter().enumerate().filter(|(_, content)| !content.is_empty()) {
                let mut content = content.clone();
                let flipped = at.min(content.len() - 1);
                content[flipped] ^= u8::from(number == place) << 3;
                store.write(turn, Have { file: number as u32, offset: 0 }, &content).unwrap();
            }
            let error = store.complete(turn).map(|_| ()).unwrap_err();
            assert!(matches!(&error, StorageError::Corrupt { .. }), "{error}");
            assert!(!check_whole(&disk));
        }
    }
}

#[test]
fn a_transfer_goes_on_where_it_was_and_only_for_the_last_who_asked() {
    let disk = sim_member(1);
    let store = sim_store(&disk);
    let (manifest, contents) = made_up();
    let (first, at) = store.receive(manifest.clone()).unwrap();
    assert_eq!(at, Have::default());
    store.write(first, at, &contents[0][..1234]).unwrap();
    let (second, at) = store.receive(manifest.clone()).unwrap();
    assert_eq!(at, Have { file: 0, offset: 1234 });
    let stale = store.write(first, at, b"late").unwrap_err();
    assert!(matches!(stale, StorageError::Stopped), "{stale}");
    let skipped = store.write(second, Have { file: 0, offset: 1300 }, b"gap").unwrap_err();
    assert!(skipped.to_string().contains("were due"), "{skipped}");
    let long = store.write(second, at, &[0; 2000]).unwrap_err();
    assert!(long.to_string().contains("were due"), "{long}");
    let early = store.complete(second).map(|_| ()).unwrap_err();
    assert!(early.to_string().contains("called whole"), "{early}");
    // Another snapshot begins anew.
    let (_, at) = store.receive(Manifest { id: 10, ..manifest.clone() }).unwrap();
    assert_eq!(at, Have::default());
    let stranger = store.receive(Manifest { cluster_id: 5, ..manifest }).unwrap_err();
    assert!(stranger.to_string().contains("of cluster 5"), "{stranger}");
}

#[test]
fn a_snapshot_is_not_received_where_there_is_no_room() {
    let disk = sim_member(1);
    disk.set_capacity(4000);
    let error = sim_store(&disk).receive(made_up().0).map(|_| ()).unwrap_err();
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
}

#[test]
fn snapshots_to_be_sent_are_few_and_kept_only_while_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (keyspace, mut writer) = Keyspace::open(MemBackend::new()).unwrap();
    let store = store(dir.path(), &keyspace);
    let nothing = store.snapshot(None, 1).map(|_| ()).unwrap_err();
    assert!(nothing.to_string().contains("without entries"), "{nothing}");
    let made = |writer: &mut Writer, index| {
        fill(writer, index, 1);
        store.snapshot(Some(log_id(index)), index)
    };
    let first = made(&mut writer, 1).unwrap();
    assert!(Arc::ptr_eq(&first, &store.snapshot(None, 99).unwrap()), "one serves many");
    let second = made(&mut writer, 2).unwrap();
    assert_eq!((store.oldest_in_use(), store.newest_made()), (Some(log_id(1)), Some(second.manifest.clone())));
    let full = made(&mut writer, 3).map(|_| ()).unwrap_err();
    assert!(full.to_string().contains("are being sent already"), "{full}");
    drop(first);
    let third = made(&mut writer, 4).unwrap();
    assert_eq!((store.oldest_in_use(), store.oldest_kept()), (Some(log_id(2)), Some(log_id(2))));
    assert_eq!((MADE_MAX, RealDisk::new().list(dir.path()).unwrap().len()), (2, 2));
    drop((second, third));
    assert_eq!((store.oldest_in_use(), store.oldest_kept()), (None, Some(log_id(2))));
    store.tidy();
    assert_eq!(RealDisk::new().list(dir.path()).unwrap().len(), 2, "somebody may come back for the rest");
    drop(store);
    assert!(RealDisk::new().list(dir.path()).unwrap().is_empty());
}

#[test]
fn every_cut_and_every_flipped_bit_of_a_manifest_is_noticed() {
    let (manifest, _) = made_up();
    let bytes = manifest.encode();
    assert_eq!(Manifest::decode(&bytes), Ok(manifest));
    for length in 0..bytes.len() {
        Manifest::decode(&bytes[..length]).unwrap_err();
    }
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        Manifest::decode(&flipped).unwrap_err();
    }
}

/// The checksum is no defence: whoever sends a manifest makes it.
#[test]
fn names_that_lead_elsewhere_are_refused() {
    let (manifest, _) = made_up();
    let with = |names: &[&str]| {
        let files = names.iter().map(|name| SnapshotFile { name: name.to_string(), bytes: 1, crc: 0 }).collect();
        Manifest::decode(&Manifest { files, ..manifest.clone() }.encode())
    };
    assert!(with(&["000001.sst", "OPTIONS-000002"]).is_ok());
    for names in [
        &["../x"][..],
        &["/etc"],
        &["a/b"],
        &[""],
        &["."],
        &[".."],
        &[MANIFEST_FILE],
        &["b", "a"],
        &["a", "a"],
        &["a\0"],
    ] {
        with(names).unwrap_err();
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_without_panic(mut bytes: Vec<u8>) {
        let _ = Manifest::decode(&bytes);
        let crc = crc32c(&bytes);
        bytes.splice(0..0, *b"DMRKSNAP\x01");
        bytes.extend(crc.to_le_bytes());
        let _ = Manifest::decode(&bytes);
        let crc = crc32c(&bytes);
        bytes.extend(crc.to_le_bytes());
        let _ = Manifest::decode(&bytes);
    }
}
