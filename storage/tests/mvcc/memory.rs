//! What one large deletion takes of memory. The process measured is this test binary again, alone with its store.

use std::fs;
use std::path::Path;
use std::process::Command;

use daymark_storage::LogId;
use daymark_storage::backend::{RocksBackend, RocksOptions};
use daymark_storage::mvcc::{KeyRange, Keyspace, TxnOptions, Writer};

/// Names the directory of the store, in the process that is measured.
const DIR_VARIABLE: &str = "DAYMARK_MEMORY_DIR";
/// Set to another number of keys to measure with.
const KEYS_VARIABLE: &str = "DAYMARK_MEMORY_KEYS";
const KEYS: usize = 100_000;
const VALUE_BYTES: usize = 256;
/// A value in the write batch, in what RocksDB is handed and in its memtable, with what belongs to each; a batch is
/// not split, so the three meet.
const BYTES_PER_KEY_MAX: usize = 1500;

#[test]
fn a_ranged_delete_nobody_watches_takes_bounded_memory() {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        return delete_everything(Path::new(&dir), key_count());
    }
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "mvcc::memory::a_ranged_delete_nobody_watches_takes_bounded_memory", "--nocapture"])
        .env(DIR_VARIABLE, dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}");
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    let taken = said.lines().find_map(|line| line.strip_prefix("bytes per key: ")).unwrap();
    let taken: usize = taken.parse().unwrap();
    assert!(taken < BYTES_PER_KEY_MAX, "{taken} bytes for each key of {VALUE_BYTES} bytes");
}

fn key_count() -> usize {
    std::env::var(KEYS_VARIABLE).map_or(KEYS, |keys| keys.parse().unwrap())
}

fn delete_everything(dir: &Path, keys: usize) {
    let options = RocksOptions { memory_budget_bytes: 16 << 20, ..RocksOptions::new(dir) };
    let (keyspace, mut writer) = Keyspace::open(RocksBackend::open(options).unwrap()).unwrap();
    let mut index = 0;
    let mut commit = |writer: &mut Writer| {
        index += 1;
        writer.commit(LogId { term: 1, index }).unwrap();
        writer.publish();
    };
    for number in 0..keys {
        let mut txn = writer.begin();
        // Values that do not compress.
        let seed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let value: Vec<u8> = (0..VALUE_BYTES as u64 / 8)
            .flat_map(|n| seed.wrapping_mul(2 * n + 1).rotate_left(29).to_le_bytes())
            .collect();
        txn.put(format!("key{number:09}").into(), value.into(), 0).unwrap();
        txn.finish();
        if number % 250 == 249 {
            commit(&mut writer);
        }
    }
    commit(&mut writer);
    keyspace.flush().unwrap();
    // The peak so far is forgotten.
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status_bytes("VmRSS:");
    let began = std::time::Instant::now();
    let mut txn = writer.begin_with(TxnOptions { without_events: true });
    let deleted = txn.delete_each(&KeyRange::all(), &mut drop).unwrap();
    assert!(txn.finish().events.is_empty());
    println!("prepared after {:?}, peak {} MB", began.elapsed(), status_bytes("VmHWM:") >> 20);
    commit(&mut writer);
    println!("committed after {:?}", began.elapsed());
    let peak = status_bytes("VmHWM:");
    assert_eq!(deleted, keys as i64);
    println!("before {} MB, peak {} MB", before >> 20, peak >> 20);
    println!("bytes per key: {}", (peak - before) / keys);
}

fn status_bytes(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}
