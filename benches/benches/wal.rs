//! Appending to the log: with its sync on a real file system (`TMPDIR`, or /tmp), and the processor's share without
//! any sync. Times are of one batch; the throughput line is per entry.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use daymark_storage::LogId;
use daymark_storage::disk::{Disk, OpenMode, RealDisk};
use daymark_storage::wal::{EntryKind, Identity, LogEntry, Wal, WalOptions, WalWorker};

/// About one command batch of a single small put.
const PAYLOAD_BYTES: usize = 300;

/// The same as a frame: 48 bytes of header, and padding.
const FRAME_BYTES: usize = 352;

/// Length of the file that is written without a log.
const FILE_BYTES: usize = 64 << 20;

/// Entries of the log that is read back: about 32 MB.
const ENTRIES: u64 = 90_000;

/// Entries between two releases, so that segments are recycled as in service.
const RELEASE_EVERY: u64 = 100_000;

struct Log {
    wal: Wal,
    worker: WalWorker,
    next: u64,
    payload: Bytes,
}

impl Log {
    fn open(dir: &Path, unsafe_no_fsync: bool) -> Self {
        let options = WalOptions { unsafe_no_fsync, ..WalOptions::new(dir.join("wal"), Identity::default()) };
        let (wal, worker, _) = Wal::open(Arc::new(RealDisk::new()), options).expect("a fresh directory");
        Self { wal, worker, next: 0, payload: Bytes::from(vec![7; PAYLOAD_BYTES]) }
    }

    /// What one turn of the raft thread and one step of the log's worker do.
    fn append(&mut self, count: u64) {
        for _ in 0..count {
            let id = LogId { term: 1, index: self.next };
            self.next += 1;
            let entry = LogEntry { id, kind: EntryKind::Commands, payload: self.payload.clone() };
            self.wal.append(vec![entry], Box::new(|result| result.expect("durable"))).expect("accepted");
        }
        black_box(self.worker.step().expect("written"));
        if self.next / RELEASE_EVERY != (self.next - count) / RELEASE_EVERY {
            self.wal.release(LogId { term: 1, index: self.next - 1 }).expect("accepted");
        }
    }
}

fn append(c: &mut Criterion) {
    for (name, unsafe_no_fsync) in [("append_and_sync", false), ("append_without_sync", true)] {
        let mut group = c.benchmark_group(name);
        for count in [1, 16, 256] {
            group.throughput(Throughput::Elements(count));
            group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                let dir = tempfile::tempdir().expect("a temporary directory");
                let mut log = Log::open(dir.path(), unsafe_no_fsync);
                bencher.iter(|| log.append(count));
            });
        }
        group.finish();
    }
}

/// What the same bytes cost without a log: the floor that the file system sets, in the same run.
fn bare(c: &mut Criterion) {
    let mut group = c.benchmark_group("bare_write_and_sync");
    for count in [1, 16, 256] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let file = RealDisk::new().open(&dir.path().join("file"), OpenMode::CreateNew).expect("created");
            file.write_at(&vec![0; FILE_BYTES], 0).and_then(|()| file.sync_all()).expect("filled");
            let (bytes, mut offset) = (vec![7; count as usize * FRAME_BYTES], 0);
            bencher.iter(|| {
                offset = if offset + bytes.len() > FILE_BYTES { 0 } else { offset };
                file.write_at(&bytes, offset as u64).and_then(|()| file.sync_data()).expect("written");
                offset += bytes.len();
            });
        });
    }
    group.finish();
}

/// Reading the whole log back: entries from files, verified, and opening it.
fn read(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut log = Log::open(dir.path(), true);
    while log.next < ENTRIES {
        log.append(500);
    }
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(10_000));
    drop(log);
    let options = WalOptions { unsafe_no_fsync: true, ..WalOptions::new(dir.path().join("wal"), Identity::default()) };
    group.bench_function("entries_from_files", |bencher| {
        // A log that has just been opened holds no entry in memory.
        let (wal, _worker, _) = Wal::open(Arc::new(RealDisk::new()), options.clone()).expect("reopens");
        bencher.iter(|| assert_eq!(wal.entries(10_000, 20_000, u64::MAX).expect("readable").len(), 10_000));
    });
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("open", |bencher| {
        bencher.iter(|| {
            let opened = Wal::open(Arc::new(RealDisk::new()), options.clone()).expect("reopens");
            assert_eq!(opened.2.last.map(|last| last.index), Some(ENTRIES - 1));
        });
    });
    group.finish();
}

criterion_group!(benches, bare, append, read);
criterion_main!(benches);
