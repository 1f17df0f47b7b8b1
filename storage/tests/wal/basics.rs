//! What callers may rely on while nothing goes wrong.

use daymark_storage::StorageError;
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{StepOutcome, Wal};

use super::support::*;

#[test]
fn a_new_log_is_empty_and_says_whose_it_is() {
    let disk = SimDisk::new(1);
    assert_eq!(Wal::identity_on_disk(&disk, DIR.as_ref()).unwrap(), None);
    let (wal, worker, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.vote, recovered.last, recovered.released, recovered.cut), (None, None, None, None));
    assert_eq!(content(&wal).unwrap().entries, []);
    stop(wal, worker);
    assert_eq!(Wal::identity_on_disk(&disk, DIR.as_ref()).unwrap(), Some(IDENTITY));
}

#[test]
fn entries_are_readable_at_once_and_told_after_one_sync() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    let told = Told::default();
    let entries: Vec<_> = (0..9).map(|index| entry(1, index, 40)).collect();
    for (number, one) in entries.iter().enumerate() {
        wal.append(vec![one.clone()], told.done(number as u64)).unwrap();
    }
    assert_eq!(wal.entries(0, 9, u64::MAX).unwrap(), entries);
    assert!(told.all().is_empty());
    let before = disk.operations();
    assert_eq!(worker.step().unwrap(), StepOutcome::Worked(9));
    assert_eq!(disk.operations() - before, 2, "one write and one sync");
    assert_eq!(told.successes(), (0..9).collect::<Vec<_>>());
    assert_eq!(worker.step().unwrap(), StepOutcome::Idle);
    assert_eq!(wal.stats().sync_count, 1);
}

#[test]
fn everything_is_there_after_a_stop() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    for index in 0..60 {
        append(&wal, &mut worker, vec![entry(1 + index / 20, index, 200)]);
    }
    wal.save_vote(vote(4, Some(2), true), ignore()).unwrap();
    wal.truncate_after(Some(id(3, 54)), ignore()).unwrap();
    wal.append(vec![entry(4, 55, 10)], ignore()).unwrap();
    wal.release(id(1, 5)).unwrap();
    let before = content(&wal).unwrap();
    assert_eq!(before.entries.len(), 50);
    drain(&mut worker).unwrap();
    assert_eq!(content(&wal).unwrap(), before, "most of it read from files now");
    stop(wal, worker);
    let (wal, _worker, recovered) = open(&disk).unwrap();
    assert_eq!(content(&wal).unwrap(), before);
    assert_eq!(recovered.cut, None);
    assert_eq!((recovered.vote, recovered.last), (before.vote, before.last));
}

#[test]
fn released_segments_are_used_again() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    let mut most = 0;
    for index in 0..400 {
        append(&wal, &mut worker, vec![entry(1, index, 200)]);
        if index >= 20 {
            wal.release(id(1, index - 20)).unwrap();
        }
        most = most.max(disk.contents().len());
    }
    assert!(most <= 7, "{most} files: segments were not recycled");
    assert!(wal.stats().live_bytes <= 4 * 4096);
    let before = content(&wal).unwrap();
    assert_eq!(before.entries.len(), 20);
    stop(wal, worker);
    let (wal, _worker, _) = open(&disk).unwrap();
    assert_eq!(content(&wal).unwrap(), before);
}

#[test]
fn a_log_may_begin_anywhere_after_a_snapshot() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    append(&wal, &mut worker, vec![entry(1, 0, 10), entry(1, 1, 10)]);
    wal.release(id(7, 1000)).unwrap();
    assert_eq!(wal.last(), Some(id(7, 1000)));
    append(&wal, &mut worker, vec![entry(7, 1001, 10)]);
    stop(wal, worker);
    let (wal, _worker, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.released, recovered.last), (Some(id(7, 1000)), Some(id(7, 1001))));
    assert_eq!(wal.entries(1001, 1002, 1).unwrap(), [entry(7, 1001, 10)]);
    assert_eq!(wal.entries(1000, 1002, 1).unwrap(), [], "released");
}

#[test]
fn releasing_what_was_never_there_does_nothing() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    append(&wal, &mut worker, vec![entry(1, 5, 10), entry(1, 6, 10)]);
    wal.release(id(1, 2)).unwrap();
    assert_eq!((wal.released(), wal.log_id(5)), (None, Some(id(1, 5))));
    wal.release(id(1, 5)).unwrap();
    wal.release(id(1, 5)).unwrap();
    stop(wal, worker);
    let (_, _, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.released, recovered.last), (Some(id(1, 5)), Some(id(1, 6))));
}

#[test]
fn what_breaks_the_rules_is_refused_and_changes_nothing() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    append(&wal, &mut worker, vec![entry(2, 0, 10), entry(2, 1, 10)]);
    wal.release(id(2, 0)).unwrap();
    wal.save_vote(vote(3, None, false), ignore()).unwrap();
    let before = content(&wal).unwrap();
    let broken = [
        wal.append(vec![entry(2, 3, 10)], ignore()),
        wal.append(vec![entry(1, 2, 10)], ignore()),
        wal.truncate_after(None, ignore()),
        wal.truncate_after(Some(id(1, 1)), ignore()),
        wal.truncate_after(Some(id(2, 2)), ignore()),
        wal.save_vote(vote(2, None, false), ignore()),
    ];
    for (case, result) in broken.into_iter().enumerate() {
        assert!(matches!(result, Err(StorageError::Invariant { .. })), "case {case}: {result:?}");
    }
    let large = wal.append(vec![entry(2, 2, 4096)], ignore());
    assert!(matches!(large, Err(StorageError::TooLarge { bytes: 4096, bytes_max: 3536 })), "{large:?}");
    assert_eq!(content(&wal).unwrap(), before);
    wal.append(vec![entry(2, 2, 3536)], ignore()).unwrap();
    drain(&mut worker).unwrap();
    stop(wal.clone(), worker);
    assert!(matches!(wal.append(vec![entry(2, 3, 1)], ignore()), Err(StorageError::Stopped)));
}

#[test]
fn the_queue_is_bounded() {
    let disk = SimDisk::new(1);
    let mut few = options();
    few.queue_bytes_max = 1000;
    let (wal, mut worker, _) = Wal::open(std::sync::Arc::new(disk.clone()), few).unwrap();
    wal.append(vec![entry(1, 0, 2000)], ignore()).expect("the first is always taken");
    let refused = wal.append(vec![entry(1, 1, 0)], ignore());
    assert!(matches!(refused, Err(StorageError::QueueFull { .. })), "{refused:?}");
    drain(&mut worker).unwrap();
    wal.append(vec![entry(1, 1, 0)], ignore()).unwrap();
}

#[test]
fn a_directory_has_one_owner_and_one_member() {
    let disk = SimDisk::new(1);
    let (wal, worker, _) = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(StorageError::InUse { .. })));
    drop((wal, worker));
    let mut other = options();
    other.identity.member_id = 0xb;
    let before = disk.contents();
    let refused = Wal::open(std::sync::Arc::new(disk.clone()), other);
    assert!(matches!(refused, Err(StorageError::Format { .. })));
    assert_same(&before, &disk.contents(), "another member");
}

#[test]
fn the_worker_stops_when_the_last_handle_is_gone() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    let told = Told::default();
    wal.append(vec![entry(1, 0, 10)], told.done(1)).unwrap();
    drop(wal);
    assert_eq!(worker.step().unwrap(), StepOutcome::Stopped);
    assert_eq!(told.successes(), [1]);
}

#[test]
fn segments_of_another_size_stay_readable() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    for index in 0..40 {
        append(&wal, &mut worker, vec![entry(1, index, 300)]);
    }
    stop(wal, worker);
    let mut larger = options();
    larger.segment_bytes = 8192;
    let (wal, mut worker, _) = Wal::open(std::sync::Arc::new(disk.clone()), larger).unwrap();
    for index in 40..90 {
        append(&wal, &mut worker, vec![entry(1, index, 300)]);
    }
    wal.release(id(1, 60)).unwrap();
    drain(&mut worker).unwrap();
    let before = content(&wal).unwrap();
    assert_eq!(before.entries.len(), 29);
    stop(wal, worker);
    let (wal, _worker, _) = open(&disk).unwrap();
    assert_eq!(content(&wal).unwrap(), before);
}
