//! What it costs a cluster with many keys to get a member back, and to get one more: how long the member takes, and what
//! clients of the leader notice meanwhile. A measurement with a large `DAYMARK_JOIN_KEYS` on a machine that does nothing else;
//! with the default a test that it works. `TMPDIR` says on which file system.

use std::{
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use daymark_client::{Client, Config, kv::PutOptions, txn::Op, txn::Txn};
use daymark_tests::{changing::Cluster, ctl::Etcdctl, etcd, process::Program, setting, wire::runtime};
use futures_util::{StreamExt, stream};
use tokio::{sync::oneshot, time::MissedTickBehavior};

/// From here on it is a measurement, and held to the bounds below.
const MEASURED_KEYS: u64 = 1_000_000;
const RESTART_MAX: Duration = Duration::from_secs(2);
/// A leader that has its hands full sends slowly.
const JOIN_MAX: Duration = Duration::from_secs(600);
/// How much p99 may grow while a member joins.
const GROWTH_MAX: f64 = 2.0;

const VALUE_BYTES: usize = 256;
const KEYS_PER_TXN: u64 = 100;
const TXNS_AT_ONCE: usize = 8;
/// Writes of the load: so many each tick, whether earlier ones were answered or not.
const TICK: Duration = Duration::from_millis(2);
const WRITES_PER_TICK: u64 = 4;
const CONNECTIONS: usize = 4;

fn etcdctl(test: &str) -> Option<Etcdctl> {
    etcd::etcdctls(test).pop()
}

fn fill(endpoint: &str, keys: u64) {
    runtime().block_on(async {
        let client = Client::new(Config::new([endpoint])).expect("a valid endpoint");
        let txns = (0..keys.div_ceil(KEYS_PER_TXN)).map(|n| {
            let kv = client.kv();
            let range = n * KEYS_PER_TXN..((n + 1) * KEYS_PER_TXN).min(keys);
            let put = |key: u64| Op::put(format!("keys/{key:010}"), value(key), PutOptions::default());
            async move { kv.txn(Txn::new().then(range.map(put))).await.expect("a healthy cluster") }
        });
        stream::iter(txns).buffer_unordered(TXNS_AT_ONCE).for_each(|_| async {}).await;
    });
}

/// Differs from key to key, so that it does not compress to nothing.
fn value(key: u64) -> Vec<u8> {
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(VALUE_BYTES);
    while bytes.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

/// When a write was due, and how long after that it was answered.
type Sample = (Instant, Duration);

/// Writes at a fixed rate to one member, from a thread of its own.
struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: Option<oneshot::Sender<()>>,
    worker: Option<JoinHandle<()>>,
}

impl Load {
    fn start(endpoint: &str) -> Self {
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        let (stop, stopped) = oneshot::channel();
        let (endpoint, theirs) = (endpoint.to_owned(), samples.clone());
        let worker = thread::spawn(move || {
            runtime().block_on(async {
                tokio::select! {
                    () = write(&endpoint, theirs) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { samples, stop: Some(stop), worker: Some(worker) }
    }

    /// Of what was due in between, in order of latency.
    fn between(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let samples = self.samples.lock().expect("no holder panics");
        let mut found: Vec<_> =
            samples.iter().filter(|(due, _)| (from..to).contains(due)).map(|(_, took)| *took).collect();
        found.sort();
        found
    }

    fn end(mut self) {
        drop(self.stop.take());
        self.worker.take().expect("joined once").join().expect("the writer does not panic");
    }
}

async fn write(endpoint: &str, samples: Arc<Mutex<Vec<Sample>>>) {
    let connect = |_| Client::new(Config::new([endpoint])).expect("a valid endpoint");
    let clients: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    let mut turn = tokio::time::interval(TICK);
    turn.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0_u64.. {
        let due = turn.tick().await.into_std();
        for write in number * WRITES_PER_TICK..(number + 1) * WRITES_PER_TICK {
            let (kv, samples) = (clients[write as usize % CONNECTIONS].kv(), samples.clone());
            tokio::spawn(async move {
                kv.put(format!("load/{:04}", write % 5000), value(write)).await.expect("every write is taken");
                samples.lock().expect("no holder panics").push((due, due.elapsed()));
            });
        }
    }
}

fn percentile(sorted: &[Duration], thousandths: usize) -> Duration {
    assert!(!sorted.is_empty(), "nothing was written");
    sorted[(sorted.len() * thousandths).div_ceil(1000).clamp(1, sorted.len()) - 1]
}

/// One line for all of it, and p99 of each second.
fn describe(load: &Load, what: &str, from: Instant, to: Instant) -> Vec<Duration> {
    let all = load.between(from, to);
    let [p50, p99, p999] = [500, 990, 999].map(|thousandths| percentile(&all, thousandths));
    println!(
        "{what}: {} writes in {:.1?}, p50 {p50:.1?} p99 {p99:.1?} p99.9 {p999:.1?} most {:.1?}",
        all.len(),
        to - from,
        percentile(&all, 1000)
    );
    let mut seconds = Vec::new();
    let mut second = from;
    while second < to {
        let end = (second + Duration::from_secs(1)).min(to);
        let those = load.between(second, end);
        if !those.is_empty() {
            seconds.push(format!("{:.1}", percentile(&those, 990).as_secs_f64() * 1000.0));
        }
        second = end;
    }
    println!("  p99 by second, ms: {}", seconds.join(" "));
    all
}

/// `DAYMARK_JOIN_KEYS` (20000); from a million on held to its bounds.
#[test]
fn a_member_comes_back_and_another_joins_beside_many_keys_under_load() {
    let Some(ctl) = etcdctl("a_member_comes_back_and_another_joins") else { return };
    let keys = setting("DAYMARK_JOIN_KEYS", 20_000);
    let is_measured = keys >= MEASURED_KEYS;
    let window = Duration::from_secs(if is_measured { 20 } else { 3 });
    let mut cluster = Cluster::start(&Program::daymark(), 3, &["--quota-backend-bytes=8589934592"]);
    let present = [0, 1, 2];
    let leader = cluster.wait_leader(&ctl, &present);
    let follower = (leader + 1) % 3;
    let begun = Instant::now();
    fill(&cluster.endpoint(leader), keys);
    println!("{keys} keys of {VALUE_BYTES} bytes written in {:.1?}", begun.elapsed());

    cluster.kill(follower);
    let back = cluster.restart(follower);
    println!("a follower that was killed serves {back:.2?} after its start");
    // Flushed, so that the log is released, and with it what a new member would need of it.
    let defrag = cluster.ctl(&ctl, &present, "defrag --command-timeout=120s");
    assert_eq!(defrag.code, Some(0), "{}", defrag.stderr);

    let load = Load::start(&cluster.endpoint(leader));
    thread::sleep(Duration::from_secs(2));
    let from = Instant::now();
    thread::sleep(window);
    let before = describe(&load, "before", from, Instant::now());
    let joiner = cluster.prepare_joiner(&present);
    let (name, url) = (cluster.name(joiner).to_owned(), cluster.peer_url(joiner));
    cluster.change(&ctl, &present, &format!("member add {name} --peer-urls={url}"));
    let from = Instant::now();
    cluster.spawn(joiner);
    while !cluster.is_healthy(joiner) {
        assert!(cluster.runs(joiner), "it has ended: {}", cluster.log(joiner));
        assert!(from.elapsed() < JOIN_MAX, "it has not caught up: {}", cluster.log(joiner));
        thread::sleep(Duration::from_millis(20));
    }
    let took = from.elapsed();
    let during = describe(&load, "while it joins", from, Instant::now());
    println!("the new member had caught up {took:.2?} after its start");
    thread::sleep(window / 4);
    load.end();
    assert!(cluster.log(joiner).contains("installed a snapshot"), "it was not sent the log");
    assert_eq!(cluster.wait_leader(&ctl, &[0, 1, 2, joiner]), leader, "the leader has stayed");
    let count = cluster.ctl(&ctl, &[joiner], "get keys/ --prefix --count-only --write-out=fields").stdout;
    assert!(count.contains(&format!("\"Count\" : {keys}")), "{count}");
    if is_measured {
        assert!(back <= RESTART_MAX, "a follower serves only after {back:?}");
        let (before, during) = (percentile(&before, 990), percentile(&during, 990));
        assert!(during.as_secs_f64() <= GROWTH_MAX * before.as_secs_f64(), "p99 {before:?} became {during:?}");
    }
}
