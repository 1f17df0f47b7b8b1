//! What the log's tests share: opening, entries, acknowledgements, content, seeds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{
    Done, EntryKind, Identity, LogEntry, Recovered, StepOutcome, Vote, Wal, WalOptions, WalWorker,
};
use daymark_storage::{LogId, Result, StorageError};
use parking_lot::Mutex;

pub const DIR: &str = "/data/wal";
pub const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: 0xa };

/// Small segments, so that short scripts roll over and recycle.
pub fn options() -> WalOptions {
    WalOptions { segment_bytes: 4096, tail_bytes_max: 1024, ..WalOptions::new(DIR, IDENTITY) }
}

pub fn open(disk: &SimDisk) -> Result<(Wal, WalWorker, Recovered)> {
    Wal::open(Arc::new(disk.clone()), options())
}

pub fn id(term: u64, index: u64) -> LogId {
    LogId { term, index }
}

/// An entry whose payload follows from its id and length.
pub fn entry(term: u64, index: u64, length: usize) -> LogEntry {
    let kind = match index % 7 {
        0 => EntryKind::Membership,
        1 => EntryKind::Blank,
        _ => EntryKind::Commands,
    };
    let length = if kind == EntryKind::Blank { 0 } else { length };
    let payload: Vec<u8> = (0..length).map(|at| (term * 31 + index * 7 + at as u64) as u8).collect();
    LogEntry { id: id(term, index), kind, payload: Bytes::from(payload) }
}

pub fn vote(term: u64, voted_for: Option<u64>, committed: bool) -> Vote {
    Vote { term, voted_for, committed }
}

/// The number given to a `Done`, and what it was told.
pub type Report = (u64, Result<()>);

/// Results that `Done`s were told, in the order of telling.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<Report>>>);

impl Told {
    pub fn done(&self, number: u64) -> Done {
        let told = self.0.clone();
        Box::new(move |result| told.lock().push((number, result)))
    }

    pub fn all(&self) -> Vec<Report> {
        self.0.lock().clone()
    }

    /// Numbers told of success; fails if any was told out of order.
    pub fn successes(&self) -> Vec<u64> {
        let told = self.all();
        assert!(told.windows(2).all(|pair| pair[0].0 < pair[1].0), "told out of order: {told:?}");
        told.into_iter().filter(|(_, result)| result.is_ok()).map(|(number, _)| number).collect()
    }
}

pub fn ignore() -> Done {
    Box::new(|_| {})
}

/// Steps until the queue is empty.
pub fn drain(worker: &mut WalWorker) -> Result<()> {
    while let StepOutcome::Worked(_) = worker.step()? {}
    Ok(())
}

pub fn append(wal: &Wal, worker: &mut WalWorker, entries: Vec<LogEntry>) {
    wal.append(entries, ignore()).expect("append");
    drain(worker).expect("step");
}

/// Stops cleanly.
pub fn stop(wal: Wal, mut worker: WalWorker) {
    let told = Told::default();
    wal.stop(told.done(1));
    while worker.step().expect("step") != StepOutcome::Stopped {}
    assert_eq!(told.successes(), [1]);
}

/// All that a log says, read through its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub vote: Option<Vote>,
    pub released: Option<LogId>,
    pub last: Option<LogId>,
    pub entries: Vec<LogEntry>,
}

pub fn content(wal: &Wal) -> Result<Content> {
    let last = wal.last();
    let first = wal.released().map_or(0, |released| released.index + 1);
    let end = last.map_or(0, |last| last.index + 1);
    let mut entries: Vec<LogEntry> = Vec::new();
    let mut from = (first..end).find(|index| wal.log_id(*index).is_some()).unwrap_or(end);
    while from < end {
        let some = wal.entries(from, end, 700)?;
        assert!(!some.is_empty(), "entry {from} must be readable");
        from += some.len() as u64;
        entries.extend(some);
    }
    Ok(Content { vote: wal.vote(), released: wal.released(), last, entries })
}

/// Opens a disk whose log must be found corrupt: returns file and offset, and checks that nothing was changed.
pub fn assert_corrupt(disk: &SimDisk, case: &str) -> (PathBuf, u64) {
    let before = disk.contents();
    let error = match open(disk) {
        Ok((_, _, recovered)) => panic!("{case}: opened as if nothing were wrong: {recovered:?}"),
        Err(error) => error,
    };
    assert_same(&before, &disk.contents(), case);
    match error {
        StorageError::Corrupt { path, offset, what } => {
            assert!(what.contains("nothing was changed; restore"), "{case}: no remedy in {what:?}");
            (path, offset)
        }
        other => panic!("{case}: not reported as corrupt but as {other}"),
    }
}

pub fn assert_same(before: &BTreeMap<PathBuf, Vec<u8>>, after: &BTreeMap<PathBuf, Vec<u8>>, case: &str) {
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(before), names(after), "{case}: files");
    for (path, bytes) in before {
        assert!(after[path] == *bytes, "{case}: {} was changed", path.display());
    }
}

pub fn segment_path(sequence: u64) -> PathBuf {
    Path::new(DIR).join(format!("{sequence:016x}.wal"))
}

pub fn superblock_path() -> PathBuf {
    Path::new(DIR).join("superblock")
}

/// Small seeded generator for scripts.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}

/// Seeds of a randomized test: `count` from 0 on, or only the one in `DAYMARK_SEED`.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("DAYMARK_SEED") {
        Ok(seed) => vec![seed.parse().expect("DAYMARK_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

/// Prints how to repeat a seed if the test fails while it runs.
pub struct Repeat(pub u64, pub &'static str);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(seed, test) = self;
            eprintln!("repeat with: DAYMARK_SEED={seed} cargo test --release -p daymark-storage {test}");
        }
    }
}
