//! The keyspace alone, on RocksDB: no raft, no log, no wire. First the main job's share (a million puts, with CPU time
//! of all threads and memory), then single operations.
//!
//! `cargo bench -p daymark-benches --bench mvcc`; a number after `--load` changes the million, `--load 0` skips it.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use daymark_storage::LogId;
use daymark_storage::backend::{RocksBackend, RocksOptions};
use daymark_storage::mvcc::{KeyRange, Keyspace, RangeEnd, RangeOptions, Writer};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

#[global_allocator]
static ALLOCATOR: daymark_storage::Jemalloc = daymark_storage::Jemalloc;

const VALUE_BYTES: usize = 256;
/// Commands in one write batch: what a thousand clients give under load.
const BATCH: usize = 250;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let load = arguments.iter().position(|argument| argument == "--load");
    let count = load.map_or(1_000_000, |place| arguments[place + 1].parse().expect("--load takes a number"));
    if count > 0 {
        load_report(count);
    }
    if load.is_none() {
        let mut criterion = Criterion::default().configure_from_args();
        single_operations(&mut criterion);
        criterion.final_summary();
    }
}

struct Store {
    _dir: tempfile::TempDir,
    keyspace: Arc<Keyspace>,
    writer: Writer,
    random: SmallRng,
    index: u64,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the store");
        let backend = RocksBackend::open(RocksOptions::new(dir.path())).expect("the store opens");
        let (keyspace, writer) = Keyspace::open(backend).expect("the keyspace opens");
        Self { _dir: dir, keyspace, writer, random: SmallRng::seed_from_u64(1), index: 0 }
    }

    fn value(&mut self) -> Bytes {
        let mut value = vec![0; VALUE_BYTES];
        self.random.fill_bytes(&mut value);
        value.into()
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        let mut txn = self.writer.begin();
        txn.put(key, value, 0).expect("the put succeeds");
        black_box(txn.finish());
    }

    fn commit(&mut self) {
        self.index += 1;
        self.writer.commit(LogId { term: 1, index: self.index }).expect("the batch is written");
        self.writer.publish();
    }

    fn put_all(&mut self, keys: impl Iterator<Item = Bytes>) {
        for (place, key) in keys.enumerate() {
            let value = self.value();
            self.put(key, value);
            if place % BATCH == BATCH - 1 {
                self.commit();
            }
        }
        self.commit();
    }
}

fn random_key(random: &mut SmallRng) -> Bytes {
    Bytes::copy_from_slice(&random.random::<[u8; 8]>())
}

fn load_report(count: usize) {
    let mut store = Store::new();
    let mut random = SmallRng::seed_from_u64(7);
    let keys: Vec<Bytes> = (0..count).map(|_| random_key(&mut random)).collect();
    let own = measured("the generator alone", count, || {
        keys.iter().for_each(|key| drop(black_box((key.clone(), store.value()))));
    });
    let new = measured("puts of new keys", count, || store.put_all(keys.iter().cloned()));
    let updated: Vec<Bytes> = (0..count).map(|_| keys[random.random_range(0..count)].clone()).collect();
    let updates = measured("updates", count, || store.put_all(updated.iter().cloned()));
    let flushed = measured("flush", 1, || store.keyspace.flush().expect("the flush succeeds"));
    let size = store.keyspace.size().expect("the size is known");
    println!(
        "per put of a new key {:.2} us CPU, per update {:.2} us CPU; flush {:.0} ms; on disk {} MB, resident {} MB",
        (new - own) * 1e6 / count as f64,
        (updates - own) * 1e6 / count as f64,
        flushed * 1e3,
        size.on_disk_bytes >> 20,
        resident_bytes() >> 20,
    );
}

/// CPU seconds of all threads that `work` took, RocksDB's included.
fn measured(what: &str, count: usize, work: impl FnOnce()) -> f64 {
    let (cpu, began) = (cpu_time(), Instant::now());
    work();
    let (cpu, took) = (cpu_time() - cpu, began.elapsed());
    let rate = count as f64 / took.as_secs_f64();
    println!(
        "{what}: {count} in {:.2} s ({rate:.0}/s), CPU {:.2} s, resident {} MB",
        took.as_secs_f64(),
        cpu.as_secs_f64(),
        resident_bytes() >> 20
    );
    cpu.as_secs_f64()
}

/// User and system time of this process, in the kernel's ticks of 10 ms.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).expect("a number");
    pages * 4096
}

fn ordered_key(number: u64) -> Bytes {
    format!("/registry/pods/default/{number:010}").into()
}

/// A hundred thousand keys, three quarters of which are changed after the old revision.
fn single_operations(criterion: &mut Criterion) {
    const KEYS: u64 = 100_000;
    let mut store = Store::new();
    store.put_all((0..KEYS).map(ordered_key));
    let old = store.keyspace.current_revision();
    store.put_all((0..KEYS).filter(|number| number % 4 != 0).map(ordered_key));
    store.keyspace.flush().expect("the flush succeeds");
    // In this order: the writes would lengthen the way back to the old revision.
    reads(criterion, &store, KEYS, old);
    writes(criterion, &mut store, KEYS);
}

fn writes(criterion: &mut Criterion, store: &mut Store, keys: u64) {
    let mut group = criterion.benchmark_group("mvcc/write");
    group.throughput(Throughput::Elements(BATCH as u64));
    let value = store.value();
    let mut random = SmallRng::seed_from_u64(11);
    group.bench_function("put_new_batch", |b| {
        let new = || (0..BATCH).map(|_| random_key(&mut random)).collect::<Vec<_>>();
        b.iter_batched(new, |keys| batch(store, keys, &value), BatchSize::SmallInput);
    });
    let mut random = SmallRng::seed_from_u64(12);
    group.bench_function("put_update_batch", |b| {
        let known = || (0..BATCH).map(|_| ordered_key(random.random_range(0..keys))).collect::<Vec<_>>();
        b.iter_batched(known, |keys| batch(store, keys, &value), BatchSize::SmallInput);
    });
    group.bench_function("put_hot_batch", |b| {
        let hot = || (0..BATCH as u64).map(|place| ordered_key(place % 50)).collect::<Vec<_>>();
        b.iter_batched(hot, |keys| batch(store, keys, &value), BatchSize::SmallInput);
    });
    group.finish();
}

fn batch(store: &mut Store, keys: Vec<Bytes>, value: &Bytes) {
    keys.into_iter().for_each(|key| store.put(key, value.clone()));
    store.commit();
}

fn reads(criterion: &mut Criterion, store: &Store, keys: u64, old: i64) {
    let mut group = criterion.benchmark_group("mvcc/read");
    for (name, revision) in [("current", 0), ("old", old)] {
        let mut random = SmallRng::seed_from_u64(13);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("get_{name}"), |b| {
            b.iter(|| {
                let key = ordered_key(random.random_range(0..keys));
                let read = store.keyspace.read(revision).expect("the revision is readable");
                read.get(&key).expect("the read succeeds").expect("the key exists")
            });
        });
        group.throughput(Throughput::Elements(100));
        group.bench_function(format!("count_all_{name}"), |b| {
            b.iter(|| store.keyspace.read(revision).expect("readable").count(&KeyRange::all()).expect("counted"));
        });
        group.bench_function(format!("range_100_{name}"), |b| {
            b.iter(|| {
                let first = random.random_range(0..keys - 100);
                let range = KeyRange { start: ordered_key(first), end: RangeEnd::Before(ordered_key(first + 100)) };
                let read = store.keyspace.read(revision).expect("the revision is readable");
                let found = read.range(&range, &RangeOptions::default()).expect("the read succeeds");
                assert_eq!(found.kvs.len(), 100);
                found
            });
        });
    }
    group.finish();
}
