//! `daymark bench watch-get`: reads of one key while many watchers, all of which start in the past, catch up. The run ends
//! when each of them has seen every event.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use clap::Args;
use daymark_api::etcdserverpb::{
    PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};
use daymark_client::dial::Dialer;
use http::request::Parts;
use prost::Message;
use serde_json::json;
use tokio::{runtime, task::JoinSet, time};

use crate::{
    cli::CommonArgs,
    driver::{self, Caller, Done, Operation},
    h2_client::{CallError, Connection, frame},
    histogram::Recorder,
    report::{Report, WatchReport},
    target,
    watchers::{self, Answer},
};

/// How often it is looked whether watchers still receive.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Flags of `bench watch-get`.
#[derive(Args, Clone, Debug)]
pub struct WatchGetArgs {
    /// --conns and --clients are those of the reads; as many of them are done as fit, --total is not looked at.
    #[command(flatten)]
    common: CommonArgs,
    /// Watchers in all, spread over the streams.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    watchers: u32,
    /// Watch streams in all, spread over the connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    /// Connections for the streams.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    watch_conns: u32,
    /// Events that each watcher is to catch up with.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// The key that is watched. Nobody else may write it during the run.
    #[arg(long, default_value = "bench-watch-get")]
    watched_key: String,
}

/// What readers and watchers share.
struct Race {
    /// The reads have begun.
    begun: AtomicBool,
    /// The watchers have everything, or get nothing more.
    over: AtomicBool,
    /// Events received by all watchers.
    received: AtomicU64,
}

/// Serializable reads of a key beside the watched one.
struct Gets {
    race: Arc<Race>,
    request: Bytes,
}

impl Operation for Gets {
    type Client = Parts;
    const ENDS_BY_ITSELF: bool = true;

    async fn open(&self, _number: u32, caller: &mut Caller) -> Result<Parts, CallError> {
        Ok(caller.head("/etcdserverpb.KV/Range"))
    }

    async fn perform(&self, head: &mut Parts, caller: &mut Caller, _op: u64) -> Result<Done, CallError> {
        self.race.begun.store(true, Ordering::Relaxed);
        let answer = caller.unary(head, self.request.clone()).await?;
        if answer.is_empty() {
            return Err(CallError::Protocol("range answered without a header"));
        }
        Ok(Done { bytes: answer.len() as u64, ..Done::default() })
    }

    fn is_over(&self) -> bool {
        self.race.over.load(Ordering::Relaxed)
    }
}

/// The watchers and what they wait for.
#[derive(Clone)]
struct Plan {
    addresses: Vec<Dialer>,
    connections: usize,
    streams: usize,
    watchers: usize,
    key: Bytes,
    /// Events from this revision on, this many.
    first_revision: i64,
    events: u64,
    stall_timeout: Duration,
}

/// What one watcher has got.
#[derive(Default)]
struct Progress {
    events: u64,
    last_revision: i64,
}

pub fn run(args: &WatchGetArgs) -> Result<()> {
    ensure!(args.streams <= args.watchers, "--streams needs at least as many --watchers");
    let common = CommonArgs { total: 0, ..args.common.clone() };
    let addresses = target::addresses(&common)?;
    let plan = Plan {
        first_revision: put_events(&addresses[0], args)?,
        addresses,
        connections: args.watch_conns as usize,
        streams: args.streams as usize,
        watchers: args.watchers as usize,
        key: args.watched_key.clone().into(),
        events: args.events.into(),
        stall_timeout: common.stall_timeout,
    };
    let race =
        Arc::new(Race { begun: AtomicBool::new(false), over: AtomicBool::new(false), received: AtomicU64::new(0) });
    let recorder = Arc::new(Mutex::new(Recorder::new()));
    let (ready, is_ready) = mpsc::channel();
    let watchers = {
        let (plan, race, recorder) = (plan.clone(), race.clone(), recorder.clone());
        let body = move || watch(&plan, &race, &recorder, &ready);
        thread::Builder::new().name("watchers".to_owned()).spawn(body)?
    };
    is_ready.recv().context("the watchers ended before they were connected")??;
    let request = frame(&RangeRequest { key: "abc".into(), serializable: true, ..Default::default() });
    let gets = driver::run_operation(&common, Arc::new(Gets { race: race.clone(), request }));
    // Also when the reads failed: the watchers wait for their begin and their end.
    race.begun.store(true, Ordering::Relaxed);
    if gets.is_err() {
        race.over.store(true, Ordering::Relaxed);
    }
    let caught_up_in = watchers.join().map_err(|_| anyhow!("the watchers panicked"))?;
    let mut outcome = gets?;
    let seen = recorder.lock().expect("no watcher panicked").clone();
    let expected = plan.events * plan.watchers as u64;
    let (received, repeated) = (race.received.load(Ordering::Relaxed), seen.retries);
    for (text, count) in
        [("events missing", expected.saturating_sub(received)), ("events repeated or out of order", repeated)]
    {
        if count > 0 {
            *outcome.recorder.errors.entry(text.to_owned()).or_default() += count;
        }
    }
    for (text, count) in &seen.errors {
        *outcome.recorder.errors.entry(text.clone()).or_default() += count;
    }
    let watch = WatchReport {
        watchers: args.watchers,
        streams: args.streams,
        connections: args.watch_conns,
        prefixes: 1,
        created_in_seconds: caught_up_in.as_secs_f64(),
        events: received,
        events_expected: expected,
        events_missing: expected.saturating_sub(received),
        events_repeated: repeated,
        events_per_second: received as f64 / caught_up_in.as_secs_f64().max(1e-9),
        server_cpu_micros_per_event: outcome.cost.server_cpu_seconds() * 1e6 / received.max(1) as f64,
        latency_is: "caught up",
        latency_micros: seen.latency(),
    };
    let settings = json!({ "events": args.events });
    Report { watch: Some(watch), ..Report::new("watch-get", &common, settings, outcome) }.publish(&common)
}

/// Puts the key as often as there are to be events; returns the revision of the first put.
fn put_events(address: &Dialer, args: &WatchGetArgs) -> Result<i64> {
    #[derive(Clone, PartialEq, Message)]
    struct PutAnswer {
        #[prost(message, optional, tag = "1")]
        header: Option<Header>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Header {
        #[prost(int64, tag = "3")]
        revision: i64,
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connection = Connection::open(address).await.with_context(|| format!("cannot connect to {address}"))?;
        let (head, mut sender) = (connection.head("/etcdserverpb.KV/Put"), connection.sender().await);
        let mut first = None;
        for number in 0..args.events {
            let (key, value) = (args.watched_key.clone().into(), number.to_string().into());
            let put = PutRequest { key, value, ..Default::default() };
            let answer = sender.unary(&head, frame(&put)).await.context("cannot put the watched key")?;
            let header = PutAnswer::decode(answer)?.header.context("put answered without a header")?;
            first.get_or_insert(header.revision);
        }
        first.context("no events")
    })
}

/// Connects, says so, waits for the reads to begin, and watches until everything has come or nothing more comes. Returns
/// how long that took.
fn watch(plan: &Plan, race: &Arc<Race>, recorder: &Arc<Mutex<Recorder>>, ready: &mpsc::Sender<Result<()>>) -> Duration {
    let fail = |error: anyhow::Error| recorder.lock().expect("not poisoned").fail(format!("{error:#}"));
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop_into(ready, error.into()),
    };
    let connections = match runtime.block_on(connect(plan)) {
        Ok(connections) => connections,
        Err(error) => return drop_into(ready, error),
    };
    // Whoever does not wait for it has failed already and says why.
    let _ = ready.send(Ok(()));
    while !race.begun.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
    let begin = Instant::now();
    if let Err(error) = runtime.block_on(receive_all(plan, race, recorder, connections, begin)) {
        fail(error);
    }
    race.over.store(true, Ordering::Relaxed);
    begin.elapsed()
}

fn drop_into(ready: &mpsc::Sender<Result<()>>, error: anyhow::Error) -> Duration {
    let _ = ready.send(Err(error));
    Duration::ZERO
}

async fn connect(plan: &Plan) -> Result<Vec<Arc<Connection>>> {
    let mut connections = Vec::new();
    for number in 0..plan.connections {
        let address = &plan.addresses[number % plan.addresses.len()];
        let opened = Connection::open(address).await;
        connections.push(opened.with_context(|| format!("cannot connect to {address}"))?);
    }
    Ok(connections)
}

async fn receive_all(
    plan: &Plan,
    race: &Arc<Race>,
    recorder: &Arc<Mutex<Recorder>>,
    connections: Vec<Arc<Connection>>,
    begin: Instant,
) -> Result<()> {
    let mut tasks = JoinSet::new();
    for stream in 0..plan.streams {
        let connection = connections[stream % connections.len()].clone();
        let watchers = (stream..plan.watchers).step_by(plan.streams).count();
        tasks.spawn(one_stream(plan.clone(), race.clone(), recorder.clone(), connection, watchers, begin));
    }
    let mut look = time::interval(LOOK_PERIOD);
    let mut last = (0, Instant::now());
    loop {
        tokio::select! {
            ended = tasks.join_next() => match ended {
                Some(outcome) => outcome.context("a watch stream panicked")??,
                None => return Ok(()),
            },
            _ = look.tick() => {
                let received = race.received.load(Ordering::Relaxed);
                if received != last.0 {
                    last = (received, Instant::now());
                }
                ensure!(!race.over.load(Ordering::Relaxed), "the reads ended before the watchers had everything");
                ensure!(last.1.elapsed() <= plan.stall_timeout, "no event came for {:?}", plan.stall_timeout);
            }
        }
    }
}

/// Creates the watchers of a stream and receives until each of them has all events.
async fn one_stream(
    plan: Plan,
    race: Arc<Race>,
    recorder: Arc<Mutex<Recorder>>,
    connection: Arc<Connection>,
    watchers: usize,
    begin: Instant,
) -> Result<()> {
    let create =
        WatchCreateRequest { key: plan.key.clone(), start_revision: plan.first_revision, ..Default::default() };
    let create = frame(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) });
    let mut sender = connection.sender().await;
    let head = connection.head(watchers::PATH);
    let mut stream = sender.stream(&head, create.clone()).await.context("cannot open a watch stream")?;
    for _ in 1..watchers {
        stream.send(create.clone()).context("cannot create a watch")?;
    }
    let (mut watches, mut unfinished) = (HashMap::with_capacity(watchers), watchers);
    while unfinished > 0 {
        let message = stream.next().await.context("watch stream")?.context("watch stream ended")?;
        let answer = Answer::decode(message).context("watch answer cannot be decoded")?;
        if answer.canceled {
            bail!("watch canceled: {}", answer.cancel_reason);
        }
        if answer.created {
            watches.insert(answer.watch_id, Progress::default());
        }
        let Some(progress) = watches.get_mut(&answer.watch_id) else { bail!("event for a watch that does not exist") };
        let before = progress.events;
        let repeated = take(progress, &answer);
        race.received.fetch_add(progress.events - before, Ordering::Relaxed);
        let finished = before < plan.events && progress.events >= plan.events;
        if finished || repeated > 0 {
            let mut recorder = recorder.lock().expect("not poisoned");
            recorder.retries += repeated;
            if finished {
                unfinished -= 1;
                recorder.succeed(begin.elapsed(), begin.elapsed());
            }
        }
    }
    Ok(())
}

/// Counts the events of an answer; returns how many of them were not behind the ones before.
fn take(progress: &mut Progress, answer: &Answer) -> u64 {
    let mut repeated = 0;
    for event in &answer.events {
        let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        if revision <= progress.last_revision {
            repeated += 1;
        } else {
            progress.last_revision = revision;
            progress.events += 1;
        }
    }
    repeated
}
