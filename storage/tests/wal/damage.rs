//! Damage that no crash explains: always reported with file and offset, never repaired by guessing, nothing changed.

use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::Wal;
use daymark_storage::{LogId, StorageError};

use super::support::*;

/// A log over several segments that ended in the middle of work, everything acknowledged.
fn busy_log() -> (SimDisk, Content) {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    for index in 0..40 {
        append(&wal, &mut worker, vec![entry(1, index, 300)]);
    }
    let content = content(&wal).unwrap();
    let found = disk.after_process_exit();
    (found, content)
}

fn bytes_of(disk: &SimDisk, path: &std::path::Path) -> Vec<u8> {
    disk.contents()[path].clone()
}

/// Offset of the frame that holds that entry, and its segment, found by looking for a frame header of that entry.
fn place_of(disk: &SimDisk, wanted: LogId) -> (std::path::PathBuf, usize) {
    for sequence in 1..20 {
        let path = segment_path(sequence);
        let Some(bytes) = disk.contents().remove(&path) else { continue };
        for at in (512..bytes.len() - 48).step_by(8) {
            let field = |from: usize| u64::from_le_bytes(bytes[at + from..at + from + 8].try_into().unwrap());
            if field(16) == wanted.term && field(24) == wanted.index && (1..4).contains(&bytes[at + 8]) {
                return (path, at);
            }
        }
    }
    panic!("entry {wanted} is in no segment")
}

#[test]
fn a_flipped_bit_in_any_frame_but_the_last_is_found() {
    let (disk, _) = busy_log();
    for index in 0..39 {
        let (path, offset) = place_of(&disk, id(1, index));
        for place in [0, 5, 8, 13, 20, 30, 35, 41, 45, 60] {
            let damaged = disk.after_process_exit();
            damaged.flip_bit(&path, offset + place, 3);
            let blank_has_none = index % 7 == 1 && place == 60;
            if blank_has_none {
                continue;
            }
            let case = format!("entry {index}, byte {place}");
            assert_eq!(assert_corrupt(&damaged, &case), (path.clone(), offset as u64), "{case}");
        }
    }
}

#[test]
fn after_a_clean_stop_the_last_frame_is_protected_too() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    append(&wal, &mut worker, vec![entry(1, 2, 100)]);
    append(&wal, &mut worker, vec![entry(1, 3, 100)]);
    let without = disk.after_process_exit();
    stop(wal, worker);
    let (path, offset) = place_of(&disk, id(1, 3));
    disk.flip_bit(&path, offset + 50, 0);
    assert_eq!(assert_corrupt(&disk, "stopped"), (path.clone(), offset as u64));
    // Without the stop this is what a torn write looks like, and nothing can tell.
    without.flip_bit(&path, offset + 50, 0);
    let (wal, _worker, recovered) = open(&without).unwrap();
    let cut = recovered.cut.unwrap();
    assert_eq!((cut.path, cut.offset, cut.bytes), (path, offset as u64, 48 + 104));
    assert_eq!(wal.last(), Some(id(1, 2)));
}

/// The whole last write may be lost, in any part; what was durable before must not be.
#[test]
fn only_the_last_write_can_be_a_torn_tail() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    append(&wal, &mut worker, vec![entry(1, 2, 100), entry(1, 3, 100)]);
    append(&wal, &mut worker, vec![entry(1, 4, 100), entry(1, 5, 100), entry(1, 6, 100)]);
    for (index, survives) in [(2, None), (3, None), (4, Some(3)), (5, Some(4)), (6, Some(5))] {
        let damaged = disk.after_process_exit();
        let (path, offset) = place_of(&disk, id(1, index));
        damaged.flip_bit(&path, offset + 60, 7);
        match survives {
            None => assert_eq!(assert_corrupt(&damaged, "durable before the last write"), (path, offset as u64)),
            Some(last) => {
                let (wal, _worker, recovered) = open(&damaged).unwrap();
                assert_eq!(recovered.last, Some(id(1, last)));
                assert_eq!(recovered.cut.unwrap().offset, offset as u64);
                assert_eq!(wal.entries(2, 7, u64::MAX).unwrap().len() as u64, last - 1);
                drop((wal, _worker));
                let again = open(&damaged).unwrap().2;
                assert_eq!((again.last, again.cut), (Some(id(1, last)), None), "cut once, then gone for good");
            }
        }
    }
}

#[test]
fn truncated_segments_are_found() {
    let (disk, _) = busy_log();
    let newest = (1..20).rfind(|sequence| disk.contents().contains_key(&segment_path(*sequence))).unwrap();
    for sequence in [1, 2, newest] {
        for length in [0, 100, 512, 513, 2000, 4095] {
            let damaged = disk.after_process_exit();
            let path = segment_path(sequence);
            damaged.set_content(&path, Some(bytes_of(&disk, &path)[..length].to_vec()));
            let (named, offset) = assert_corrupt(&damaged, &format!("segment {sequence} cut to {length}"));
            assert_eq!((named, offset), (path, if length < 512 { 0 } else { length as u64 }));
        }
        let damaged = disk.after_process_exit();
        let mut longer = bytes_of(&disk, &segment_path(sequence));
        longer.push(0);
        damaged.set_content(&segment_path(sequence), Some(longer));
        assert_eq!(assert_corrupt(&damaged, "longer").0, segment_path(sequence));
    }
}

#[test]
fn missing_and_swapped_segments_are_found() {
    let (disk, _) = busy_log();
    let newest = (1..20).rfind(|sequence| disk.contents().contains_key(&segment_path(*sequence))).unwrap();
    assert!(newest >= 4);
    for sequence in 1..=newest {
        let damaged = disk.after_process_exit();
        damaged.set_content(&segment_path(sequence), None);
        assert_eq!(assert_corrupt(&damaged, "missing"), (segment_path(sequence), 0));
    }
    let swapped = disk.after_process_exit();
    swapped.set_content(&segment_path(2), Some(bytes_of(&disk, &segment_path(3))));
    swapped.set_content(&segment_path(3), Some(bytes_of(&disk, &segment_path(2))));
    assert_eq!(assert_corrupt(&swapped, "swapped"), (segment_path(2), 16));
    let doubled = disk.after_process_exit();
    doubled.set_content(&segment_path(newest + 1), Some(bytes_of(&disk, &segment_path(newest))));
    open(&doubled).expect("a file beyond the newest that is not that segment was never begun");
    let beyond = disk.after_process_exit();
    beyond.set_content(&segment_path(newest + 2), Some(bytes_of(&disk, &segment_path(newest))));
    assert_eq!(assert_corrupt(&beyond, "beyond"), (segment_path(newest + 2), 0));
}

#[test]
fn segments_of_another_log_are_found() {
    let (disk, _) = busy_log();
    let other = SimDisk::new(9);
    let (wal, mut worker, _) = open(&other).unwrap();
    for index in 0..40 {
        append(&wal, &mut worker, vec![entry(2, index, 300)]);
    }
    for sequence in 2..=3 {
        let mixed = disk.after_process_exit();
        mixed.set_content(&segment_path(sequence), Some(bytes_of(&other, &segment_path(sequence))));
        assert_corrupt(&mixed, "same identity, other content");
    }
    let foreign = disk.after_process_exit();
    let mut bytes = bytes_of(&disk, &segment_path(2));
    bytes[..8].copy_from_slice(b"\x7fELFabcd");
    foreign.set_content(&segment_path(2), Some(bytes));
    assert_eq!(assert_corrupt(&foreign, "foreign"), (segment_path(2), 0));
}

#[test]
fn superblock_damage_is_found_or_bridged() {
    let (disk, before) = busy_log();
    for (case, copies) in [("first", &[0][..]), ("second", &[1]), ("both", &[0, 1])] {
        let damaged = disk.after_process_exit();
        for copy in copies {
            damaged.flip_bit(&superblock_path(), copy * 16384 + 50, 1);
        }
        if copies.len() == 2 {
            assert_eq!(assert_corrupt(&damaged, case), (superblock_path(), 0));
        } else {
            let (wal, _worker, _) = open(&damaged).unwrap();
            assert_eq!(content(&wal).unwrap(), before, "{case} copy");
        }
    }
    let gone = disk.after_process_exit();
    gone.set_content(&superblock_path(), None);
    assert_eq!(assert_corrupt(&gone, "no superblock"), (superblock_path(), 0));
    let short = disk.after_process_exit();
    short.set_content(&superblock_path(), Some(Vec::new()));
    assert_eq!(assert_corrupt(&short, "empty superblock"), (superblock_path(), 0));
    let foreign = disk.after_process_exit();
    foreign.set_content(&superblock_path(), Some(b"something else entirely".repeat(2000)));
    assert_eq!(assert_corrupt(&foreign, "foreign superblock"), (superblock_path(), 0));
    assert!(matches!(Wal::identity_on_disk(&foreign, DIR.as_ref()), Err(StorageError::Corrupt { .. })));
}

/// Losing the newest vote to a damaged copy would let the member vote twice.
#[test]
fn one_damaged_copy_never_brings_an_older_vote_back() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    for term in 1..6 {
        wal.save_vote(vote(term, Some(term), false), ignore()).unwrap();
        drain(&mut worker).unwrap();
        for copy in 0..2 {
            let damaged = disk.after_power_cut(term);
            damaged.flip_bit(&superblock_path(), copy * 16384 + 80, 0);
            assert_eq!(open(&damaged).unwrap().2.vote, Some(vote(term, Some(term), false)));
        }
    }
}

/// With one copy damaged, the other is all there is: it must stand until the damaged one is whole again.
#[test]
fn repairing_a_copy_never_risks_the_other() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    wal.save_vote(vote(7, Some(1), false), ignore()).unwrap();
    drain(&mut worker).unwrap();
    for copy in 0..2 {
        let damaged = disk.after_process_exit();
        damaged.flip_bit(&superblock_path(), copy * 16384 + 80, 0);
        let whole = damaged.after_process_exit();
        drop(open(&whole).unwrap());
        for crash_at in damaged.operations() + 1..=whole.operations() {
            for survival in 0..500 {
                let crashed = damaged.after_process_exit();
                crashed.crash_at(crash_at);
                assert!(open(&crashed).is_err());
                let (_, _, recovered) = open(&crashed.after_power_cut(survival)).unwrap();
                assert_eq!(recovered.vote, Some(vote(7, Some(1), false)));
            }
        }
    }
}

/// Every single bit of a small, cleanly stopped log: the same content, or refused.
#[test]
fn no_flipped_bit_is_ever_taken_for_other_content() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    for index in 0..14 {
        append(&wal, &mut worker, vec![entry(1, index, 250)]);
    }
    wal.save_vote(vote(3, Some(1), true), ignore()).unwrap();
    wal.truncate_after(Some(id(1, 11)), ignore()).unwrap();
    wal.append(vec![entry(3, 12, 40)], ignore()).unwrap();
    wal.release(id(1, 1)).unwrap();
    drain(&mut worker).unwrap();
    let before = content(&wal).unwrap();
    stop(wal, worker);
    let (mut refused, mut same) = (0, 0);
    for (path, bytes) in disk.contents() {
        for bit in 0..bytes.len() * 8 {
            // Behind the end of the log there is nothing to damage: some places stand for all.
            let unused = bytes[(bit / 8).saturating_sub(600)..(bit / 8 + 600).min(bytes.len())].iter().all(|b| *b == 0);
            if unused && bit % 997 != 0 {
                continue;
            }
            let damaged = disk.after_process_exit();
            damaged.flip_bit(&path, bit / 8, (bit % 8) as u8);
            match open(&damaged) {
                Ok((wal, _worker, recovered)) => {
                    assert_eq!(content(&wal).unwrap(), before, "{} bit {bit}", path.display());
                    assert_eq!(recovered.cut, None);
                    same += 1;
                }
                Err(StorageError::Corrupt { path: named, .. }) => {
                    assert_eq!(named, path, "bit {bit}");
                    refused += 1;
                }
                Err(other) => panic!("{} bit {bit}: {other}", path.display()),
            }
        }
    }
    assert!(refused > 8 * 4000 && same > 8 * 512, "refused {refused}, same {same}");
}

/// Damage that comes while the log is open is found when the entry is read again.
#[test]
fn reading_verifies_checksums() {
    let disk = SimDisk::new(1);
    let (wal, mut worker, _) = open(&disk).unwrap();
    for index in 0..30 {
        append(&wal, &mut worker, vec![entry(1, index, 300)]);
    }
    let (path, offset) = place_of(&disk, id(1, 4));
    disk.flip_bit(&path, offset + 100, 2);
    assert_eq!(wal.entries(0, 4, u64::MAX).unwrap().len(), 4);
    match wal.entries(0, 5, u64::MAX) {
        Err(StorageError::Corrupt { path: named, offset: at, .. }) => assert_eq!((named, at), (path, offset as u64)),
        other => panic!("{other:?}"),
    }
}
