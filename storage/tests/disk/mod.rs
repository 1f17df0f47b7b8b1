//! The disk seam: both disks keep the same promises, and the simulated one breaks all that is not promised.

use std::collections::BTreeSet;
use std::path::Path;

use daymark_storage::StorageError;
use daymark_storage::disk::{Disk, OpenMode, RealDisk};
use daymark_storage::sim_disk::{SECTOR_BYTES, SimDisk};

/// What every disk must do, told from an empty directory.
fn keeps_its_promises(disk: &dyn Disk, root: &Path) {
    let dir = root.join("a/b");
    disk.create_dir_all(&dir).unwrap();
    disk.create_dir_all(&dir).unwrap();
    let (one, two) = (dir.join("one"), dir.join("two"));
    assert!(matches!(disk.open(&one, OpenMode::Read), Err(StorageError::Io { .. })));
    let file = disk.open(&one, OpenMode::CreateNew).unwrap();
    assert!(disk.open(&one, OpenMode::CreateNew).is_err(), "exists already");
    assert!(file.is_empty().unwrap());
    file.allocate(1000).unwrap();
    assert_eq!(file.len().unwrap(), 1000);
    file.allocate(10).unwrap();
    assert_eq!(file.len().unwrap(), 1000, "allocation never shortens");
    file.write_at(b"hello", 998).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    let mut bytes = [0xff; 10];
    assert_eq!(file.read_at(&mut bytes, 996).unwrap(), 7);
    assert_eq!(&bytes[..7], b"\0\0hello");
    assert_eq!(file.read_at(&mut bytes, 5000).unwrap(), 0);
    disk.rename(&one, &two).unwrap();
    disk.sync_dir(&dir).unwrap();
    assert_eq!(disk.list(&dir).unwrap(), ["two"]);
    assert!(disk.exists(&two).unwrap() && !disk.exists(&one).unwrap());
    assert_eq!(disk.open(&two, OpenMode::Read).unwrap().len().unwrap(), 1003);
    assert!(disk.free_bytes(&dir).unwrap() > 0);
    disk.remove(&two).unwrap();
    assert!(disk.remove(&two).is_err());
    let held = disk.lock(&dir).unwrap();
    assert!(matches!(disk.lock(&dir), Err(StorageError::InUse { .. })));
    drop(held);
    disk.lock(&dir).unwrap();
}

#[test]
fn both_disks_keep_their_promises() {
    let temporary = tempfile::tempdir().unwrap();
    keeps_its_promises(&RealDisk::new(), temporary.path());
    keeps_its_promises(&SimDisk::new(1), Path::new("/sim"));
}

/// A disk with one file of 8 synced sectors of 1s, overwritten with 2s and not synced.
fn half_written(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all("/d".as_ref()).unwrap();
    let file = disk.open("/d/f".as_ref(), OpenMode::CreateNew).unwrap();
    file.write_at(&[1; 8 * SECTOR_BYTES], 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir("/d".as_ref()).unwrap();
    file.write_at(&[2; 8 * SECTOR_BYTES], 0).unwrap();
    disk
}

#[test]
fn a_power_cut_keeps_any_unsynced_sectors_and_all_synced_ones() {
    let (mut outcomes, mut halves) = (BTreeSet::new(), 0);
    for seed in 0..400 {
        let content = half_written(7).after_power_cut(seed).contents();
        let bytes = &content[Path::new("/d/f")];
        assert_eq!(bytes.len(), 8 * SECTOR_BYTES);
        for sector in bytes.chunks(SECTOR_BYTES) {
            let new = sector.iter().take_while(|byte| **byte == 2).count();
            assert!(sector[new..].iter().all(|byte| *byte == 1), "new bytes, then old ones");
            halves += u32::from(new > 0 && new < SECTOR_BYTES);
        }
        outcomes.insert(bytes.iter().step_by(SECTOR_BYTES).copied().collect::<Vec<_>>());
    }
    assert!(outcomes.contains(&vec![1; 8]) && outcomes.contains(&vec![2; 8]));
    assert!(halves > 10, "{halves} sectors half written");
    let reordered = outcomes.iter().any(|sectors| sectors[0] == 1 && sectors[7] == 2);
    assert!(reordered && outcomes.len() > 40, "{} outcomes", outcomes.len());
    let again = || half_written(7).after_power_cut(5).contents();
    assert_eq!(again(), again(), "the same seed gives the same disk");
}

#[test]
fn a_process_exit_keeps_what_was_written() {
    let content = half_written(7).after_process_exit().contents();
    assert_eq!(content[Path::new("/d/f")], [2; 8 * SECTOR_BYTES]);
}

#[test]
fn names_are_lost_unless_their_directory_is_synced() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..40 {
        let disk = half_written(seed);
        disk.rename("/d/f".as_ref(), "/d/g".as_ref()).unwrap();
        let found = disk.after_power_cut(seed);
        match found.exists("/d/g".as_ref()).unwrap() {
            true => kept += 1,
            false => lost += 1,
        }
        assert_ne!(found.exists("/d/f".as_ref()).unwrap(), found.exists("/d/g".as_ref()).unwrap());
        disk.sync_dir("/d".as_ref()).unwrap();
        assert!(disk.after_power_cut(seed).exists("/d/g".as_ref()).unwrap());
    }
    assert!(kept > 0 && lost > 0, "kept {kept}, lost {lost}");
}

#[test]
fn operations_fail_or_crash_where_told() {
    let disk = half_written(1);
    let file = disk.open("/d/f".as_ref(), OpenMode::Write).unwrap();
    disk.fail_at(disk.operations() + 1);
    assert!(file.sync_data().is_err());
    file.sync_data().expect("the next one says all is well, and it is not");
    let kept: BTreeSet<u8> = (0..20).map(|seed| disk.after_power_cut(seed).contents()[Path::new("/d/f")][0]).collect();
    assert_eq!(kept.len(), 1, "what a failed sync lost stays lost");
    disk.crash_at(disk.operations() + 1);
    assert!(file.write_at(b"x", 0).is_err());
    assert!(disk.crashed() && file.len().is_err() && disk.list("/d".as_ref()).is_err());
}

#[test]
fn it_fills_up() {
    let disk = half_written(1);
    disk.set_capacity(9 * SECTOR_BYTES as u64);
    assert_eq!(disk.free_bytes("/d".as_ref()).unwrap(), SECTOR_BYTES as u64);
    let file = disk.open("/d/g".as_ref(), OpenMode::CreateNew).unwrap();
    assert!(matches!(file.allocate(2 * SECTOR_BYTES as u64), Err(StorageError::Full { .. })));
    file.write_at(&[3; SECTOR_BYTES], 0).unwrap();
    assert!(matches!(file.write_at(&[3], SECTOR_BYTES as u64), Err(StorageError::Full { .. })));
    disk.open("/d/f".as_ref(), OpenMode::Write).unwrap().write_at(&[4; 9], 0).expect("what is there can be written");
}
