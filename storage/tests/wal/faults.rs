//! Failing writes and syncs, a full disk, and what the worker's owner is told.

use std::sync::{Arc, mpsc};

use daymark_storage::StorageError;
use daymark_storage::disk::{DirLock, Disk, DiskFile, OpenMode};
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{Wal, run};

use super::support::*;

/// A failed operation ends the worker for ever; nobody is told that it worked.
#[test]
fn a_failed_write_or_sync_stops_for_ever() {
    for failing in 1..=2 {
        let disk = SimDisk::new(1);
        let (wal, mut worker, _) = open(&disk).unwrap();
        append(&wal, &mut worker, vec![entry(1, 0, 100)]);
        let told = Told::default();
        wal.append(vec![entry(1, 1, 100)], told.done(1)).unwrap();
        wal.truncate_after(Some(id(1, 0)), told.done(2)).unwrap();
        wal.save_vote(vote(2, None, false), told.done(3)).unwrap();
        wal.append(vec![entry(2, 1, 100)], told.done(4)).unwrap();
        disk.fail_at(disk.operations() + failing);
        assert!(matches!(worker.step(), Err(StorageError::Io { .. })));
        assert_eq!(told.all().len(), 4, "those in the queue are told as well");
        assert_eq!(told.successes(), [] as [u64; 0]);
        let operations = disk.operations();
        assert!(matches!(worker.step(), Err(StorageError::Io { .. })));
        assert!(matches!(wal.append(vec![entry(2, 2, 1)], ignore()), Err(StorageError::Io { .. })));
        assert!(matches!(wal.save_vote(vote(9, None, false), ignore()), Err(StorageError::Io { .. })));
        wal.stop(told.done(5));
        assert_eq!(told.successes(), [] as [u64; 0]);
        drop(worker);
        assert_eq!(disk.operations(), operations, "nothing is tried again");
        let (wal, _worker, _) = open(&disk.after_power_cut(failing)).unwrap();
        assert!(wal.log_id(0).is_some(), "what was acknowledged before is there");
        assert_eq!(wal.vote(), None);
    }
}

/// After a failed sync the system takes the pages for clean: a restart reads them, and must not trust them.
#[test]
fn what_a_failed_sync_has_left_in_the_cache_is_written_again() {
    let mut read_back = 0;
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        let (wal, mut worker, _) = open(&disk).unwrap();
        append(&wal, &mut worker, vec![entry(1, 1, 100)]);
        wal.append(vec![entry(1, 2, 1200)], ignore()).unwrap();
        disk.fail_at(disk.operations() + 2);
        worker.step().unwrap_err();
        let restarted = disk.after_process_exit();
        let (_wal, _worker, first) = open(&restarted).unwrap();
        assert_eq!(first.last, Some(id(1, 2)), "the cache still has it");
        let (wal, _worker, second) = open(&restarted.after_power_cut(seed)).unwrap();
        assert_eq!(second.last, first.last, "seed {seed}");
        read_back += u64::from(wal.entries(2, 3, 1).unwrap() == [entry(1, 2, 1200)]);
    }
    assert_eq!(read_back, 40);
}

#[test]
fn every_failing_operation_is_told_and_survived() {
    for seed in seeds(2) {
        let _repeat = Repeat(seed, "every_failing_operation");
        for failing in 1.. {
            let disk = SimDisk::new(seed);
            let Ok((wal, mut worker, _)) = open(&disk) else { panic!("nothing fails yet") };
            disk.fail_at(disk.operations() + failing);
            let told = Told::default();
            let mut index = 0;
            let ran = (0..60).try_for_each(|_| {
                wal.append(vec![entry(1, index, 250)], told.done(index))?;
                index += 1;
                if index > 10 {
                    wal.release(id(1, index - 10))?;
                }
                if index % 9 == 0 {
                    wal.save_vote(vote(index, None, false), ignore())?;
                }
                worker.step().map(|_| ())
            });
            let (acknowledged, vote) = (told.successes().last().copied(), wal.vote());
            drop((wal, worker));
            let (_, _, recovered) = open(&disk.after_power_cut(failing)).unwrap();
            for found in [disk.after_power_cut(failing), disk.after_process_exit()] {
                let (wal, _worker, recovered) = open(&found).unwrap();
                assert!(recovered.last.map(|last| last.index) >= acknowledged, "seed {seed}, failing {failing}");
                content(&wal).unwrap();
            }
            if ran.is_ok() {
                assert!(recovered.vote == vote && failing > 100, "the fault was never met: {failing}");
                break;
            }
        }
    }
}

/// The disk fills up: said before an append can fail in the worker, and over once there is room.
#[test]
fn a_full_disk_refuses_before_an_append_fails() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    let used: usize = disk.contents().values().map(Vec::len).sum();
    disk.set_capacity(used as u64 + 4096 + 100);
    let mut index = 0;
    let mut warned = None;
    let refused = loop {
        if wal.check_room().is_err() && warned.is_none() {
            warned = Some(index);
        }
        match wal.append(vec![entry(1, index, 200)], ignore()) {
            Ok(()) => index += 1,
            Err(error) => break error,
        }
        drain(&mut worker).expect("the worker is never surprised");
        assert!(index < 100, "never refused");
    };
    assert!(matches!(refused, StorageError::Full { .. }), "{refused}");
    assert!(warned.is_some_and(|warned| warned + 4 < index), "warned at {warned:?}, refused at {index}");
    assert!(wal.stats().full);
    // Smaller writes still fit; then room comes, by recycling.
    wal.save_vote(vote(2, None, false), ignore()).unwrap();
    wal.release(id(1, index - 1)).unwrap();
    drain(&mut worker).unwrap();
    worker.step().unwrap();
    wal.check_room().expect("the released segment is the spare");
    append(&wal, &mut worker, vec![entry(2, index, 200)]);
    let before = content(&wal).unwrap();
    stop(wal, worker);
    assert_eq!(content(&open(&disk).unwrap().0).unwrap(), before);
}

/// Room that comes from elsewhere is found too.
#[test]
fn a_full_disk_is_tried_again() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    let used: usize = disk.contents().values().map(Vec::len).sum();
    disk.set_capacity(used as u64 + 100);
    for index in 0..12 {
        append(&wal, &mut worker, vec![entry(1, index, 200)]);
    }
    assert!(wal.check_room().is_err());
    disk.set_capacity(u64::MAX);
    worker.step().unwrap();
    wal.check_room().unwrap();
}

#[test]
fn the_thread_tells_its_owner_once() {
    let disk = SimDisk::new(1);
    let (wal, worker, _) = open(&disk).unwrap();
    let (sender, receiver) = mpsc::channel();
    disk.fail_at(disk.operations() + 2);
    let thread = run(worker, move |error| sender.send(error).expect("the test waits"));
    let told = Told::default();
    wal.append(vec![entry(1, 0, 10)], told.done(1)).unwrap();
    let error = receiver.recv().unwrap();
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
    thread.join().unwrap();
    assert!(receiver.recv().is_err(), "only once");
    assert!(matches!(told.all()[..], [(1, Err(StorageError::Io { .. }))]));
}

/// A `Done` that panics takes the worker with it; those behind it are told, and so is the owner.
#[test]
fn a_panic_on_the_thread_is_told() {
    let disk = SimDisk::new(1);
    let (wal, worker, _) = open(&disk).unwrap();
    let told = Told::default();
    wal.append(vec![entry(1, 0, 10)], Box::new(|_| panic!("this panic is part of the test"))).unwrap();
    wal.append(vec![entry(1, 1, 10)], told.done(1)).unwrap();
    let (sender, receiver) = mpsc::channel();
    let thread = run(worker, move |error| sender.send(error).expect("the test waits"));
    assert!(matches!(receiver.recv().unwrap(), StorageError::Invariant { .. }));
    thread.join().unwrap();
    assert!(matches!(told.all()[..], [(1, Err(StorageError::Invariant { .. }))]));
    assert!(wal.append(vec![entry(1, 2, 10)], ignore()).is_err());
}

/// A disk on which nothing is ever synced may be asked for; then nothing is.
#[test]
fn unsafe_no_fsync_never_syncs() {
    /// The simulated disk, on which every sync fails.
    struct NoSync(SimDisk);
    struct NoSyncFile(Arc<dyn DiskFile>);
    impl DiskFile for NoSyncFile {
        fn len(&self) -> daymark_storage::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> daymark_storage::Result<usize> {
            self.0.read_at(buf, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> daymark_storage::Result<()> {
            self.0.write_at(bytes, offset)
        }
        fn sync_data(&self) -> daymark_storage::Result<()> {
            panic!("synced")
        }
        fn sync_all(&self) -> daymark_storage::Result<()> {
            panic!("synced")
        }
        fn allocate(&self, len: u64) -> daymark_storage::Result<()> {
            self.0.allocate(len)
        }
    }
    impl Disk for NoSync {
        fn create_dir_all(&self, dir: &std::path::Path) -> daymark_storage::Result<()> {
            self.0.create_dir_all(dir)
        }
        fn list(&self, dir: &std::path::Path) -> daymark_storage::Result<Vec<String>> {
            self.0.list(dir)
        }
        fn exists(&self, path: &std::path::Path) -> daymark_storage::Result<bool> {
            self.0.exists(path)
        }
        fn open(&self, path: &std::path::Path, mode: OpenMode) -> daymark_storage::Result<Arc<dyn DiskFile>> {
            Ok(Arc::new(NoSyncFile(self.0.open(path, mode)?)))
        }
        fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> daymark_storage::Result<()> {
            self.0.rename(from, to)
        }
        fn remove(&self, path: &std::path::Path) -> daymark_storage::Result<()> {
            self.0.remove(path)
        }
        fn remove_dir(&self, dir: &std::path::Path) -> daymark_storage::Result<()> {
            self.0.remove_dir(dir)
        }
        fn sync_dir(&self, _: &std::path::Path) -> daymark_storage::Result<()> {
            panic!("synced")
        }
        fn free_bytes(&self, dir: &std::path::Path) -> daymark_storage::Result<u64> {
            self.0.free_bytes(dir)
        }
        fn lock(&self, dir: &std::path::Path) -> daymark_storage::Result<DirLock> {
            self.0.lock(dir)
        }
        fn now(&self) -> std::time::Duration {
            self.0.now()
        }
    }
    let mut unsafe_options = options();
    unsafe_options.unsafe_no_fsync = true;
    let disk = SimDisk::new(1);
    for round in 0..2 {
        let (wal, mut worker, _) = Wal::open(Arc::new(NoSync(disk.clone())), unsafe_options.clone()).unwrap();
        for index in 0..30 {
            append(&wal, &mut worker, vec![entry(1, round * 30 + index, 300)]);
        }
        wal.save_vote(vote(round, None, false), ignore()).unwrap();
        wal.release(id(1, round * 30 + 20)).unwrap();
        stop(wal, worker);
    }
    assert_eq!(open(&disk.after_process_exit()).unwrap().2.last, Some(id(1, 59)));
}
