//! `daymark bench watch`: many watchers, puts under their prefixes, the time from sending a put to receiving its event;
//! and whether each watcher got each event exactly once. The puts are an ordinary load of `driver`; the watchers live on
//! a thread of their own.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::Args;
use daymark_api::etcdserverpb::PutRequest;
use serde_json::json;
use tokio::sync::oneshot;

use crate::{
    cli::CommonArgs,
    driver::{self, Workload},
    h2_client::{CallError, frame},
    histogram::Recorder,
    report::{Report, WatchReport},
    target,
    watchers::{self, Watchers},
    workload::Values,
};

/// What a value begins with: time sent, in nanoseconds since the origin of the run, and operation number.
pub const MARK_BYTES: usize = 16;

/// How often settling looks whether all events have come.
const SETTLE_PERIOD: Duration = Duration::from_millis(2);

/// Flags of `bench watch`.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// --conns, --clients, --total and --rate are those of the puts.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Watchers in all, spread over the streams and over the prefixes.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub watchers: u32,
    /// Watch streams in all, spread over the connections.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// Connections for the streams.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub watch_conns: u32,
    /// Different prefixes that are watched; the puts go round over them.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefixes: u32,
    /// Different keys under each prefix.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys_per_prefix: u64,
    /// What all keys begin with. Nobody else may write there during the run.
    #[arg(long, default_value = "bench-watch/")]
    pub key_prefix: String,
    /// Ask for the previous pair with each event.
    #[arg(long)]
    pub prev_kv: bool,
    /// Bytes of a value, 16 or more.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    pub val_size: u32,
    /// After the last put, wait for events until none has come for this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = crate::cli::seconds, default_value = "10")]
    pub settle_timeout: Duration,
}

/// What puts and watchers share.
pub struct Board {
    /// Zero of all times in values.
    pub origin: Instant,
    pub prefixes: Vec<Prefix>,
    /// Events received by all watchers.
    pub received: AtomicU64,
}

/// One watched prefix and what has been put under it.
pub struct Prefix {
    pub text: String,
    pub watchers: u64,
    acknowledged: AtomicU64,
    /// Wrapping sum of the digests of the acknowledged operations: tells which they were.
    digest: AtomicU64,
}

struct MarkedPut {
    board: Arc<Board>,
    values: Values,
    keys_per_prefix: u64,
    settle_timeout: Duration,
}

impl Board {
    fn prefix_of(&self, op: u64) -> &Prefix {
        &self.prefixes[(op % self.prefixes.len() as u64) as usize]
    }

    /// Events that must come if every watcher gets every acknowledged put.
    fn expected(&self) -> u64 {
        self.prefixes.iter().map(|p| p.watchers * p.acknowledged.load(Ordering::Relaxed)).sum()
    }

    /// Nanoseconds since the origin.
    pub fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).expect("runs are shorter than 500 years")
    }
}

impl Workload for MarkedPut {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Put"
    }

    fn request(&self, op: u64) -> Bytes {
        let round = op / self.board.prefixes.len() as u64;
        let key = format!("{}{:08}", self.board.prefix_of(op).text, round % self.keys_per_prefix);
        let filler = self.values.for_op(op);
        let mut value = BytesMut::with_capacity(MARK_BYTES + filler.len());
        value.put_u64(self.board.now());
        value.put_u64(op);
        value.put(filler);
        frame(&PutRequest { key: key.into(), value: value.freeze(), ..Default::default() })
    }

    fn check(&self, op: u64, _answer: Bytes) -> Result<u64, CallError> {
        let prefix = self.board.prefix_of(op);
        prefix.digest.fetch_add(digest(op), Ordering::Relaxed);
        prefix.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(0)
    }

    /// Waits until all events have come, or no more come.
    fn settle(&self) {
        let mut last = (self.board.received.load(Ordering::Relaxed), Instant::now());
        while last.0 < self.board.expected() && last.1.elapsed() < self.settle_timeout {
            thread::sleep(SETTLE_PERIOD);
            let received = self.board.received.load(Ordering::Relaxed);
            if received != last.0 {
                last = (received, Instant::now());
            }
        }
    }
}

/// A number for an operation whose sums tell sets of operations apart.
pub fn digest(op: u64) -> u64 {
    (op + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// Time sent and operation number out of a value.
pub fn read_mark(mut value: &[u8]) -> Option<(u64, u64)> {
    (value.len() >= MARK_BYTES).then(|| (value.get_u64(), value.get_u64()))
}

pub fn run(args: &WatchArgs) -> Result<()> {
    load("watch", args)
}

/// Runs the load; the report names it `command`.
pub fn load(command: &'static str, args: &WatchArgs) -> Result<()> {
    let common = &args.common;
    ensure!(args.streams <= args.watchers, "--streams needs at least as many --watchers");
    let plan = Watchers {
        addresses: target::addresses(common)?,
        connections: args.watch_conns as usize,
        streams: args.streams as usize,
        watchers: args.watchers as usize,
        prev_kv: args.prev_kv,
    };
    let prefixes = (0..args.prefixes as usize).map(|number| Prefix {
        text: format!("{}{number:06}/", args.key_prefix),
        watchers: (0..plan.watchers).filter(|&w| plan.prefix_of(w, args.prefixes as usize) == number).count() as u64,
        acknowledged: AtomicU64::new(0),
        digest: AtomicU64::new(0),
    });
    let board = Arc::new(Board { origin: Instant::now(), prefixes: prefixes.collect(), received: AtomicU64::new(0) });

    let recorder = Arc::new(Mutex::new(Recorder::new()));
    let (ready, is_ready) = mpsc::channel();
    let (stop, stopped) = oneshot::channel();
    let thread = {
        let (board, recorder) = (board.clone(), recorder.clone());
        thread::Builder::new()
            .name("watchers".to_owned())
            .spawn(move || watchers::run(&plan, &board, &recorder, &ready, stopped))?
    };
    let created_in = is_ready.recv().context("the watchers ended before they stood")??;
    let put = MarkedPut {
        board: board.clone(),
        values: Values::new(args.val_size as usize - MARK_BYTES, common.seed),
        keys_per_prefix: args.keys_per_prefix,
        settle_timeout: args.settle_timeout,
    };
    let mut outcome = driver::run(common, Arc::new(put))?;
    // The thread may have ended by itself when all streams broke; its result says so.
    let _ = stop.send(());
    let watched = thread.join().map_err(|_| anyhow!("the watchers panicked"))??;

    let seen = recorder.lock().expect("no watcher panicked").clone();
    let faults = judge(&board, &watched);
    for (text, count) in [("events missing", faults.missing), ("events repeated or out of order", faults.repeated)] {
        if count > 0 {
            *outcome.recorder.errors.entry(text.to_owned()).or_default() += count;
        }
    }
    if faults.confused > 0 {
        let text = "watchers with the right number of events but the wrong ones".to_owned();
        outcome.recorder.errors.insert(text, faults.confused);
    }
    for (text, count) in &seen.errors {
        *outcome.recorder.errors.entry(text.clone()).or_default() += count;
    }
    let server_cpu = outcome.cost.server_cpu_seconds();
    let watch = WatchReport {
        watchers: args.watchers,
        streams: args.streams,
        connections: args.watch_conns,
        prefixes: args.prefixes,
        created_in_seconds: created_in.as_secs_f64(),
        events: seen.succeeded,
        events_expected: board.expected(),
        events_missing: faults.missing,
        events_repeated: faults.repeated,
        events_per_second: seen.succeeded as f64 / outcome.elapsed.as_secs_f64(),
        server_cpu_micros_per_event: server_cpu * 1e6 / seen.succeeded.max(1) as f64,
        latency_is: "put to event",
        latency_micros: seen.latency(),
    };
    let settings = json!({
        "val_size": args.val_size,
        "keys_per_prefix": args.keys_per_prefix,
        "prev_kv": args.prev_kv,
    });
    Report { watch: Some(watch), ..Report::new(command, common, settings, outcome) }.publish(common)
}

/// What one watcher got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    pub prefix: usize,
    /// Revision of the last event.
    pub last_revision: i64,
    /// Events, each counted once.
    pub events: u64,
    /// Events whose revision was not above the last one's.
    pub repeated: u64,
    /// Wrapping sum of the digests of the events' operations.
    pub digest: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Faults {
    missing: u64,
    repeated: u64,
    /// Watchers whose number of events is right but which events is not.
    confused: u64,
}

/// Compares what the watchers got with what has been acknowledged. Puts with an unknown outcome may have caused more
/// events than expected, which is no fault of the watch.
fn judge(board: &Board, watched: &[Watched]) -> Faults {
    let mut faults = Faults::default();
    for watcher in watched {
        let prefix = &board.prefixes[watcher.prefix];
        let acknowledged = prefix.acknowledged.load(Ordering::Relaxed);
        faults.missing += acknowledged.saturating_sub(watcher.events);
        faults.repeated += watcher.repeated;
        if watcher.events == acknowledged && watcher.digest != prefix.digest.load(Ordering::Relaxed) {
            faults.confused += 1;
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        let prefix = |text: &str| Prefix {
            text: text.to_owned(),
            watchers: 2,
            acknowledged: AtomicU64::new(0),
            digest: AtomicU64::new(0),
        };
        let prefixes = vec![prefix("a/"), prefix("b/")];
        Board { origin: Instant::now(), prefixes, received: AtomicU64::new(0) }
    }

    fn acknowledged(ops: std::ops::Range<u64>) -> Arc<Board> {
        let board = Arc::new(board());
        let values = Values::new(4, 1);
        let put =
            MarkedPut { board: board.clone(), values, keys_per_prefix: 10, settle_timeout: Duration::from_millis(1) };
        for op in ops {
            put.check(op, Bytes::new()).expect("always accepted");
        }
        board
    }

    fn got(prefix: usize, ops: &[u64]) -> Watched {
        let digest = ops.iter().fold(0_u64, |sum, &op| sum.wrapping_add(digest(op)));
        Watched { prefix, events: ops.len() as u64, digest, ..Watched::default() }
    }

    #[test]
    fn missing_and_wrong_events_are_told() {
        let board = acknowledged(0..6);
        assert_eq!(board.expected(), 12);
        assert_eq!(judge(&board, &[got(0, &[0, 2, 4]), got(1, &[5, 3, 1])]), Faults::default());
        let faults = judge(&board, &[got(0, &[0, 4]), got(1, &[1, 3, 3])]);
        assert_eq!(faults, Faults { missing: 1, repeated: 0, confused: 1 });
    }

    #[test]
    fn a_put_carries_its_mark_under_its_prefix() {
        let put = MarkedPut {
            board: Arc::new(board()),
            values: Values::new(4, 1),
            keys_per_prefix: 10,
            settle_timeout: Duration::from_millis(1),
        };
        let framed = put.request(41);
        let request = <PutRequest as prost::Message>::decode(&framed[5..]).expect("a put");
        assert_eq!(request.key, Bytes::from_static(b"b/00000000"), "operation 41 is the 20th of the second prefix");
        assert_eq!(request.value.len(), MARK_BYTES + 4);
        assert_eq!(read_mark(&request.value).map(|(_, op)| op), Some(41));
        assert_eq!(read_mark(b"short"), None);
    }
}
