//! What one event costs a net thread with many watchers: matching, encoding, and a push to each stream that gets it.
//! Streams are emptied between measurements, so that nobody falls behind. No transport, no disk.
//!
//! `cargo bench -p daymark-benches --bench watch`

use std::cell::RefCell;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::watch_request::RequestUnion;
use daymark_server::mailbox::Mailbox;
use daymark_server::request::{Sink, Taken};
use daymark_server::watch::catch_up::Pool;
use daymark_server::watch::ring::AppliedBatch;
use daymark_server::watch::{Engine, Options, WatchTurn};
use daymark_storage::backend::mem::MemBackend;
use daymark_storage::mvcc::{Event, EventKind, KeyRange, KeyValue, Keyspace, RangeEnd};

#[global_allocator]
static ALLOCATOR: daymark_storage::Jemalloc = daymark_storage::Jemalloc;

/// Events in a batch, each of its own revision.
const BATCH: usize = 64;
const VALUE_BYTES: usize = 256;
const WATCHERS_A_STREAM: usize = 100;

/// Nobody is behind here.
struct NoPool;

impl Pool for NoPool {
    fn run(&self, _: Box<dyn FnOnce() + Send>) {
        panic!("no watcher may fall behind");
    }
}

struct Bench {
    engine: Rc<RefCell<Engine>>,
    sinks: Vec<Sink>,
    revision: i64,
}

impl Bench {
    fn new(ranges: impl Iterator<Item = KeyRange>, watchers_a_stream: usize) -> Self {
        let (keyspace, _writer) = Keyspace::open(MemBackend::new()).expect("an empty keyspace");
        let options =
            Options { ring_bytes_max: 16 << 20, fragment_bytes: 2 << 20, progress_interval: Duration::from_secs(600) };
        let revision = keyspace.current_revision();
        let mailbox = Mailbox::new(1 << 20);
        let engine = Engine::new(keyspace, mailbox, 1 << 60, 1 << 61, || 7, options, Rc::new(NoPool));
        let mut sinks = Vec::new();
        let mut stream = None;
        for (number, range) in ranges.enumerate() {
            if number % watchers_a_stream == 0 {
                let sink = Sink::new(1 << 30);
                stream = Some(engine.borrow_mut().open(sink.clone()));
                sinks.push(sink);
            }
            let range_end = match range.end {
                RangeEnd::Point => Bytes::new(),
                RangeEnd::Before(end) => end,
                RangeEnd::Open => Bytes::from_static(&[0]),
            };
            let create = pb::WatchCreateRequest { key: range.start, range_end, ..Default::default() };
            let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
            engine.borrow_mut().handle_request(stream.expect("opened with the first watcher"), request);
        }
        let mut bench = Self { engine, sinks, revision };
        bench.empty_sinks();
        bench
    }

    fn batch(&mut self, key: impl Fn(usize) -> String) -> Arc<AppliedBatch> {
        let first_revision = self.revision + 1;
        let events: Vec<Event> = (0..BATCH)
            .map(|number| {
                self.revision += 1;
                let kv = KeyValue {
                    key: key(number).into(),
                    create_revision: 2,
                    mod_revision: self.revision,
                    version: 3,
                    lease: 0,
                    value: vec![b'v'; VALUE_BYTES].into(),
                };
                Event { kind: EventKind::Put, kv, prev: None, sub: 0 }
            })
            .collect();
        let bytes = events.iter().map(Event::byte_len).sum();
        Arc::new(AppliedBatch { first_revision, last_revision: self.revision, events, bytes })
    }

    /// Takes what has been pushed; the number of messages.
    fn empty_sinks(&mut self) -> u64 {
        let mut messages = 0;
        for sink in &self.sinks {
            while let Taken::Message(parts) = sink.take(Waker::noop()) {
                black_box(parts);
                messages += 1;
            }
        }
        messages
    }

    /// Time for `rounds` batches, without making them and without reading the streams.
    fn run(&mut self, rounds: u64, messages_a_batch: u64, key: impl Fn(usize) -> String) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..rounds {
            let batch = self.batch(&key);
            let start = Instant::now();
            self.engine.borrow_mut().handle_applied(batch);
            spent += start.elapsed();
            assert_eq!(self.empty_sinks(), messages_a_batch);
        }
        spent
    }
}

fn distinct_prefixes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch/events, one of N prefixes hit");
    group.throughput(Throughput::Elements(BATCH as u64));
    for watchers in [1, 10_000, 100_000] {
        let ranges = (0..watchers).map(|number| KeyRange::prefix(format!("/registry/{number:06}/").as_bytes()));
        let mut bench = Bench::new(ranges, WATCHERS_A_STREAM);
        group.bench_function(BenchmarkId::from_parameter(watchers), |bencher| {
            let key = |number: usize| format!("/registry/{:06}/object", number * 7919 % watchers);
            bencher.iter_custom(|rounds| bench.run(rounds, BATCH as u64, key));
        });
    }
    group.finish();
}

fn general_intervals(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch/events, one of N intervals hit");
    group.throughput(Throughput::Elements(BATCH as u64));
    let watchers = 10_000;
    let before = |end: String| RangeEnd::Before(end.into());
    let ranges = (0..watchers).map(|number| KeyRange {
        start: format!("/registry/{number:06}/a").into(),
        end: before(format!("/registry/{number:06}/q")),
    });
    let mut bench = Bench::new(ranges, WATCHERS_A_STREAM);
    group.bench_function(BenchmarkId::from_parameter(watchers), |bencher| {
        let key = |number: usize| format!("/registry/{:06}/object", number * 7919 % watchers);
        bencher.iter_custom(|rounds| bench.run(rounds, BATCH as u64, key));
    });
    group.finish();
}

fn one_group(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch/deliveries, one group of N watchers");
    let watchers = 1000;
    group.throughput(Throughput::Elements((BATCH * watchers) as u64));
    for (name, watchers_a_stream) in [("a stream each", 1), ("100 a stream", 100)] {
        let mut bench = Bench::new((0..watchers).map(|_| KeyRange::prefix(b"/registry/")), watchers_a_stream);
        group.bench_function(BenchmarkId::new(name, watchers), |bencher| {
            let key = |number: usize| format!("/registry/{number:06}/object");
            bencher.iter_custom(|rounds| bench.run(rounds, (BATCH * watchers) as u64, key));
        });
    }
    group.finish();
}

fn nobody_interested(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch/events, none of N prefixes hit");
    group.throughput(Throughput::Elements(BATCH as u64));
    let watchers = 10_000;
    let ranges = (0..watchers).map(|number| KeyRange::prefix(format!("/registry/{number:06}/").as_bytes()));
    let mut bench = Bench::new(ranges, WATCHERS_A_STREAM);
    group.bench_function(BenchmarkId::from_parameter(watchers), |bencher| {
        bencher.iter_custom(|rounds| bench.run(rounds, 0, |number| format!("/elsewhere/{number:06}/object")));
    });
    group.finish();
}

criterion_group!(benches, distinct_prefixes, general_intervals, one_group, nobody_interested);
criterion_main!(benches);
