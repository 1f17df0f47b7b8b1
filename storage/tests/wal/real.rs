//! The log on the machine's disk, with its threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use daymark_storage::StorageError;
use daymark_storage::disk::RealDisk;
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{Wal, WalOptions, run};

use super::support::*;

fn real_options(dir: &std::path::Path) -> WalOptions {
    WalOptions { segment_bytes: 256 * 1024, tail_bytes_max: 64 * 1024, ..WalOptions::new(dir.join("wal"), IDENTITY) }
}

/// Stops the log and waits for its thread.
fn stop_thread(wal: Wal, thread: std::thread::JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel();
    wal.stop(Box::new(move |result| sender.send(result).expect("the test waits")));
    receiver.recv().expect("told").expect("stopped");
    thread.join().expect("the thread ends");
}

#[test]
fn it_recycles_and_reopens_with_its_threads() {
    let temporary = tempfile::tempdir().unwrap();
    let options = real_options(temporary.path());
    let mut next = 0;
    for round in 0..3 {
        let (wal, worker, recovered) = Wal::open(Arc::new(RealDisk::new()), options.clone()).unwrap();
        assert_eq!((recovered.last.map_or(0, |last| last.index + 1), recovered.cut), (next, None), "round {round}");
        if next > 0 {
            assert_eq!(content(&wal).unwrap().entries.len(), 100);
        }
        let thread = run(worker, |error| panic!("{error}"));
        let durable = Arc::new(AtomicU64::new(0));
        for _ in 0..3000 {
            let told = durable.clone();
            let index = next;
            let done = Box::new(move |result: daymark_storage::Result<()>| {
                result.expect("durable");
                told.store(index, Ordering::Release);
            });
            wal.append(vec![entry(1 + round, index, 300)], done).unwrap();
            next += 1;
            let behind = durable.load(Ordering::Acquire).saturating_sub(100);
            if index % 16 == 0 && behind > 0 && wal.log_id(behind).is_some() {
                wal.release(wal.log_id(behind).unwrap()).unwrap();
            }
        }
        wal.save_vote(vote(1 + round, Some(3), true), ignore()).unwrap();
        wal.release(id(1 + round, next - 101)).unwrap();
        stop_thread(wal, thread);
    }
    let (wal, mut worker, _) = Wal::open(Arc::new(RealDisk::new()), options.clone()).unwrap();
    drain(&mut worker).unwrap();
    let files = std::fs::read_dir(&options.dir).unwrap().count();
    assert!(files <= 6, "{files} files: lock, superblock, at most two segments and two spares");
    assert_eq!(wal.vote(), Some(vote(3, Some(3), true)));
}

#[test]
fn many_threads_append_and_read() {
    let temporary = tempfile::tempdir().unwrap();
    let (wal, worker, _) = Wal::open(Arc::new(RealDisk::new()), real_options(temporary.path())).unwrap();
    let thread = run(worker, |error| panic!("{error}"));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let writer = wal.clone();
        scope.spawn(move || {
            for index in 0..2000 {
                let sender = sender.clone();
                let done = Box::new(move |result: daymark_storage::Result<()>| {
                    sender.send((index, result.is_ok())).expect("the test waits");
                });
                writer.append(vec![entry(1, index, 300)], done).unwrap();
            }
        });
        for reader in 0..2u64 {
            let wal = wal.clone();
            scope.spawn(move || {
                let mut from = reader;
                while from < 2000 {
                    let some = wal.entries(from, 2000, 4000).unwrap();
                    for (index, found) in (from..).zip(&some) {
                        assert_eq!(*found, entry(1, index, 300));
                    }
                    from += some.len() as u64;
                }
            });
        }
    });
    let told: Vec<_> = receiver.iter().take(2000).collect();
    assert!(told.iter().enumerate().all(|(at, (index, ok))| at as u64 == *index && *ok), "in order, all durable");
    let stats = wal.stats();
    assert!(stats.sync_count < 2000 && stats.sync_classes.iter().sum::<u64>() == stats.sync_count, "{stats:?}");
    stop_thread(wal, thread);
}

#[test]
fn a_directory_in_use_is_refused_at_once() {
    let temporary = tempfile::tempdir().unwrap();
    let options = real_options(temporary.path());
    let (_wal, _worker, _) = Wal::open(Arc::new(RealDisk::new()), options.clone()).unwrap();
    let refused = Wal::open(Arc::new(RealDisk::new()), options).map(|_| ());
    assert!(matches!(refused, Err(StorageError::InUse { .. })), "{refused:?}");
}

#[test]
fn a_large_entry_fits_with_the_default_segments() {
    let temporary = tempfile::tempdir().unwrap();
    let options = WalOptions { unsafe_no_fsync: true, ..WalOptions::new(temporary.path().join("wal"), IDENTITY) };
    let (wal, mut worker, _) = Wal::open(Arc::new(RealDisk::new()), options.clone()).unwrap();
    let large: Vec<_> = (0..20).map(|index| entry(1, index + 2, 5 << 20)).collect();
    for one in &large {
        append(&wal, &mut worker, vec![one.clone()]);
    }
    stop(wal, worker);
    let (wal, _worker, _) = Wal::open(Arc::new(RealDisk::new()), options).unwrap();
    assert!(wal.entries(2, 22, u64::MAX).unwrap() == large);
}

/// Appends of a caller that may wait for the disk, beside others: each is written by whoever is free, in order.
#[test]
fn a_caller_may_write_by_itself() {
    let temporary = tempfile::tempdir().unwrap();
    let (wal, worker, _) = Wal::open(Arc::new(RealDisk::new()), real_options(temporary.path())).unwrap();
    let thread = run(worker, |error| panic!("{error}"));
    let told = Told::default();
    let caller = std::thread::current().id();
    let by_caller = Arc::new(AtomicU64::new(0));
    let count: u64 = 2000;
    for index in 0..count {
        let (report, by_caller) = (told.done(index), by_caller.clone());
        let done = Box::new(move |result| {
            by_caller.fetch_add(u64::from(std::thread::current().id() == caller), Ordering::Relaxed);
            report(result);
        });
        // Some come one after the other, as a lone writer's do, and some while the worker's thread has something to do.
        while index % 10 >= 5 && told.all().len() < index as usize {
            std::thread::yield_now();
        }
        match index % 10 {
            3 => wal.append(vec![entry(1, index, 200)], done).unwrap(),
            _ => wal.append_here(vec![entry(1, index, 200)], done).unwrap(),
        }
    }
    stop_thread(wal, thread);
    assert_eq!(told.successes(), (0..count).collect::<Vec<_>>(), "told in the order of the calls");
    assert!(by_caller.load(Ordering::Relaxed) > 0, "an idle worker is not woken");
    let (wal, _worker, _) = Wal::open(Arc::new(RealDisk::new()), real_options(temporary.path())).unwrap();
    let entries = wal.entries(0, count, u64::MAX).unwrap();
    assert!(entries == (0..count).map(|index| entry(1, index, 200)).collect::<Vec<_>>(), "the log has them in order");
}

#[test]
fn a_failed_write_by_a_caller_is_told_once_by_the_worker_s_thread() {
    let disk = SimDisk::new(1);
    let (wal, worker, _) = open(&disk).unwrap();
    let (sender, receiver) = mpsc::channel();
    let thread = run(worker, move |error| sender.send(error).unwrap());
    let told = Told::default();
    for index in 0..20 {
        wal.append_here(vec![entry(1, index, 100)], told.done(index)).unwrap();
        // The worker's thread may be the one that writes.
        while told.all().len() <= index as usize {
            std::thread::yield_now();
        }
    }
    disk.fail_at(disk.operations() + 1);
    wal.append_here(vec![entry(1, 20, 100)], told.done(20)).unwrap();
    let fatal = receiver.recv().expect("told");
    assert!(matches!(fatal, StorageError::Io { .. }), "{fatal}");
    thread.join().unwrap();
    assert!(receiver.recv().is_err(), "told once");
    assert_eq!(told.all().iter().filter(|(_, result)| result.is_err()).count(), 1);
    assert_eq!(told.successes().len(), 20);
    assert!(wal.append_here(vec![entry(1, 21, 1)], ignore()).is_err());
}
