//! Runs one kind of operation many times: threads, connections, clients, in closed or open loop. Knows neither what the
//! operations mean nor how results are shown.
//!
//! A client is one task that loops. A thread is a current-thread runtime with its share of connections and clients; all
//! draw operation numbers from one counter.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use daymark_client::dial::Dialer;
use http::request::Parts;
use tokio::{runtime, sync::Semaphore, task::JoinSet, time};

use crate::{
    cli::CommonArgs,
    h2_client::{CallError, Connection, Duplex, Sender},
    histogram::Recorder,
    pacing::{Schedule, Timer},
    proc::Sample,
    progress::{PERIOD, Progress},
    report::Cost,
    target,
};

/// One kind of operation, of any number of calls.
pub trait Operation: Send + Sync + 'static {
    /// What one client keeps from one of its operations to the next.
    type Client: Send + 'static;
    /// Whether it knows by itself when the run is over.
    const ENDS_BY_ITSELF: bool = false;
    /// Makes client number `number` ready; before the run, and again after its connection broke.
    fn open(&self, number: u32, caller: &mut Caller) -> impl Future<Output = Result<Self::Client, CallError>> + Send;
    /// Does operation number `op`.
    fn perform(
        &self,
        client: &mut Self::Client,
        caller: &mut Caller,
        op: u64,
    ) -> impl Future<Output = Result<Done, CallError>> + Send;
    /// Whether the run is over before its total and its duration.
    fn is_over(&self) -> bool {
        false
    }
    /// Waits for what goes on after the last answer and still belongs to the run.
    fn settle(&self) {}
}

/// What an operation that succeeded has to tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Message bytes of its answers.
    pub bytes: u64,
    /// Keys in its answers.
    pub keys: u64,
    /// How often it was begun again before it succeeded.
    pub retries: u64,
    /// Its kind, where a load has several whose latencies are told apart.
    pub kind: Option<&'static str>,
}

/// One client's access to its connection.
pub struct Caller {
    connection: Arc<Connection>,
    sender: Sender,
    /// What each unary call may take.
    timeout: Option<Duration>,
}

impl Caller {
    async fn new(connection: Arc<Connection>, timeout: Option<Duration>) -> Self {
        let sender = connection.sender().await;
        Self { connection, sender, timeout }
    }

    /// The head of every call of one method, to be kept.
    pub fn head(&self, path: &str) -> Parts {
        self.connection.head(path)
    }

    /// Sends a framed message and returns the one that answers it.
    pub async fn unary(&mut self, head: &Parts, framed: Bytes) -> Result<Bytes, CallError> {
        match self.timeout {
            None => self.sender.unary(head, framed).await,
            Some(timeout) => self.sender.unary(&with_deadline(head, timeout), framed).await,
        }
    }

    /// Opens a stream in both directions.
    pub async fn stream(&mut self, head: &Parts, first: Bytes) -> Result<Duplex, CallError> {
        self.sender.stream(head, first).await
    }
}

/// The head of a call that says how much time is left, to the microsecond. Some of it has gone when a client sends the call: here
/// up to 63 us, rarely as much as for the call before.
fn with_deadline(head: &Parts, timeout: Duration) -> Parts {
    let gone = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos() % 64);
    let left = timeout.saturating_sub(Duration::from_micros(gone.into()));
    let left = match left.as_micros() {
        micros @ 1..=99_999_999 => format!("{micros}u"),
        _ => format!("{}S", left.as_secs().clamp(1, 99_999_999)),
    };
    let mut head = head.clone();
    head.headers.insert("grpc-timeout", left.try_into().expect("digits and a letter"));
    head
}

/// An operation of one unary call.
pub trait Workload: Send + Sync + 'static {
    /// gRPC path of the method.
    fn path(&self) -> &'static str;
    /// The framed request of operation number `op`.
    fn request(&self, op: u64) -> Bytes;
    /// Looks at the answer to `op`: keys in it, or what is wrong with it.
    fn check(&self, op: u64, answer: Bytes) -> Result<u64, CallError>;
    /// The kind of operation `op`, where there are several.
    fn kind(&self, _op: u64) -> Option<&'static str> {
        None
    }
    /// Waits for what goes on after the last answer and still belongs to the run.
    fn settle(&self) {}
}

/// Makes a [`Workload`] an [`Operation`].
struct Unary<W>(Arc<W>);

impl<W: Workload> Operation for Unary<W> {
    type Client = Parts;

    async fn open(&self, _number: u32, caller: &mut Caller) -> Result<Parts, CallError> {
        Ok(caller.head(self.0.path()))
    }

    async fn perform(&self, head: &mut Parts, caller: &mut Caller, op: u64) -> Result<Done, CallError> {
        let answer = caller.unary(head, self.0.request(op)).await?;
        let bytes = answer.len() as u64;
        let (keys, kind) = (self.0.check(op, answer)?, self.0.kind(op));
        Ok(Done { bytes, keys, kind, ..Done::default() })
    }

    fn settle(&self) {
        self.0.settle();
    }
}

/// What a run gave.
pub struct Outcome {
    pub recorder: Recorder,
    pub elapsed: Duration,
    pub cost: Cost,
    /// The servers at the end of each second.
    pub samples: Vec<Sample>,
}

/// What all threads share.
struct Shared {
    total: u64,
    deadline: Option<Duration>,
    /// Next operation number to draw.
    next: AtomicU64,
    /// Operations that have ended, for the progress bar.
    ended: AtomicU64,
    /// Those of them that the server answered, with success or an error: when they stop growing the run is given up.
    answered: AtomicU64,
    /// Set when the run is given up.
    give_up: AtomicBool,
    /// Set when the operation says that the run is over.
    stopped: AtomicBool,
}

/// Runs a load of unary calls.
pub fn run<W: Workload>(args: &CommonArgs, workload: Arc<W>) -> Result<Outcome> {
    run_operation(args, Arc::new(Unary(workload)))
}

/// Runs a load.
pub fn run_operation<O: Operation>(args: &CommonArgs, operation: Arc<O>) -> Result<Outcome> {
    ensure!(args.total > 0 || args.duration.is_some() || O::ENDS_BY_ITSELF, "--total 0 needs --duration");
    ensure!(args.rate >= 0.0 && args.rate.is_finite(), "--rate must not be negative");
    ensure!(
        args.threads <= args.conns && args.threads <= args.clients,
        "--threads needs as many --conns and --clients"
    );
    let addresses = target::addresses(args)?;
    let shared = Arc::new(Shared {
        total: if args.total == 0 { u64::MAX } else { args.total },
        deadline: args.duration,
        next: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        answered: AtomicU64::new(0),
        give_up: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
    });
    let (ready, are_ready) = mpsc::channel();
    let (done, are_done) = mpsc::channel();
    let mut threads = Vec::new();
    for number in 0..args.threads {
        let (go, wait) = mpsc::channel();
        let load = ThreadLoad {
            shared: shared.clone(),
            operation: operation.clone(),
            addresses: share(args.conns, args.threads, number)
                .map(|conn| addresses[conn as usize % addresses.len()].clone())
                .collect(),
            clients: share(args.clients, args.threads, number).collect(),
            rate: args.rate / f64::from(args.threads),
            call_timeout: args.call_timeout,
        };
        let (ready, done) = (ready.clone(), done.clone());
        let name = format!("load {number}");
        thread::Builder::new().name(name).spawn(move || load.run(ready, &wait, done))?;
        threads.push(go);
    }
    // Only the threads hold them now, so that one that panics is noticed.
    drop((ready, done));
    for _ in &threads {
        are_ready.recv().context("a load thread ended before it was ready")??;
    }
    let cost = Cost::before(&args.pid)?;
    let start = Instant::now();
    for go in &threads {
        go.send(start).context("a load thread ended before the start")?;
    }
    let mut recorder = Recorder::new();
    let (results, samples) = watch_over(args, &shared, &are_done, start)?;
    for results in results {
        recorder.merge(&results?);
    }
    let elapsed = start.elapsed();
    operation.settle();
    if shared.give_up.load(Ordering::Relaxed) {
        recorder.fail(format!("given up: nothing was answered for {:?}", args.stall_timeout));
    }
    let cost = cost.after(recorder.succeeded)?;
    // The threads live until here, so that their context switches are still there to be counted.
    drop(threads);
    Ok(Outcome { recorder, elapsed, cost, samples })
}

/// The numbers out of `0..all` that belong to thread `number`.
fn share(all: u32, threads: u32, number: u32) -> impl Iterator<Item = u32> {
    (number..all).step_by(threads as usize)
}

/// Draws the progress bar, and looks at the servers each second, until all threads have handed in their results. Has them
/// give up when nothing is answered any more.
fn watch_over(
    args: &CommonArgs,
    shared: &Shared,
    done: &mpsc::Receiver<Result<Recorder>>,
    start: Instant,
) -> Result<(Vec<Result<Recorder>>, Vec<Sample>)> {
    let mut progress = Progress::new(args.total);
    let (mut results, mut samples) = (Vec::new(), Vec::new());
    let (mut answered_last, mut since) = (0, Instant::now());
    while results.len() < args.threads as usize {
        match done.recv_timeout(PERIOD) {
            Ok(result) => results.push(result),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("a load thread panicked"),
        }
        progress.update(shared.ended.load(Ordering::Relaxed));
        if !args.pid.is_empty() && start.elapsed().as_secs() > samples.len() as u64 {
            samples.push(Sample::take(&args.pid, start.elapsed())?);
        }
        let answered = shared.answered.load(Ordering::Relaxed);
        if answered != answered_last {
            (answered_last, since) = (answered, Instant::now());
        }
        if since.elapsed() > args.stall_timeout {
            shared.give_up.store(true, Ordering::Relaxed);
        }
    }
    progress.finish();
    Ok((results, samples))
}

/// The part of one thread.
struct ThreadLoad<O> {
    shared: Arc<Shared>,
    operation: Arc<O>,
    /// An address for each connection.
    addresses: Vec<Dialer>,
    /// Numbers of its clients.
    clients: Vec<u32>,
    /// Operations per second; 0: closed loop.
    rate: f64,
    call_timeout: Option<Duration>,
}

impl<O: Operation> ThreadLoad<O> {
    /// Connects, reports that, waits for the start, runs, hands in the results, and stays until it is dismissed.
    fn run(
        self,
        ready: mpsc::Sender<Result<()>>,
        wait: &mpsc::Receiver<Instant>,
        done: mpsc::Sender<Result<Recorder>>,
    ) {
        let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error.into()))),
        };
        let clients = match runtime.block_on(self.prepare()) {
            Ok(clients) => clients,
            Err(error) => return drop(ready.send(Err(error))),
        };
        // Whoever does not wait for a message here has failed already and says why.
        let _ = ready.send(Ok(()));
        let Ok(start) = wait.recv() else { return };
        let _ = done.send(runtime.block_on(self.drive(clients, start)));
        drop(done);
        let _ = wait.recv();
    }

    async fn connect(&self) -> Result<Vec<Arc<Connection>>> {
        let mut connections = Vec::with_capacity(self.addresses.len());
        for address in &self.addresses {
            let opened = Connection::open(address).await;
            connections.push(opened.with_context(|| format!("cannot connect to {address}"))?);
        }
        Ok(connections)
    }

    /// Opens the connections, and on them, all at once, the clients.
    async fn prepare(&self) -> Result<Vec<(u32, Caller, O::Client)>> {
        let connections = self.connect().await?;
        let mut opening = JoinSet::new();
        for (place, &number) in self.clients.iter().enumerate() {
            let connection = connections[place % connections.len()].clone();
            let operation = self.operation.clone();
            let timeout = self.call_timeout;
            opening.spawn(async move {
                let mut caller = Caller::new(connection, timeout).await;
                let client = operation.open(number, &mut caller).await?;
                Ok::<_, CallError>((number, caller, client))
            });
        }
        let mut clients = Vec::with_capacity(self.clients.len());
        while let Some(opened) = opening.join_next().await {
            clients.push(opened.context("a client panicked")?.context("cannot make a client ready")?);
        }
        Ok(clients)
    }

    async fn drive(self, clients: Vec<(u32, Caller, O::Client)>, start: Instant) -> Result<Recorder> {
        let recorder = Arc::new(Mutex::new(Recorder::new()));
        let pace = (self.rate > 0.0).then(|| Arc::new(Pace::new(self.rate)));
        let mut tasks = JoinSet::new();
        let count = clients.len();
        for (number, caller, client) in clients {
            let client = LoadClient {
                number,
                shared: self.shared.clone(),
                operation: self.operation.clone(),
                client,
                caller,
                recorder: recorder.clone(),
                pace: pace.clone(),
                start,
            };
            tasks.spawn(client.run());
        }
        if let Some(pace) = pace {
            tasks.spawn(pace.release(self.shared.clone(), count, start));
        }
        let mut look = time::interval(PERIOD);
        loop {
            tokio::select! {
                ended = tasks.join_next() => match ended {
                    Some(outcome) => outcome.context("a client panicked")?,
                    None => break,
                },
                _ = look.tick() => if self.shared.give_up.load(Ordering::Relaxed) { break },
            }
        }
        let mut results = recorder.lock().expect("no client panicked");
        Ok(std::mem::replace(&mut results, Recorder::new()))
    }
}

/// Hands out operations when they are due.
struct Pace {
    schedule: Schedule,
    /// One permit for each operation that is due and not yet begun.
    due: Semaphore,
    /// Operations of this thread that have begun.
    begun: AtomicU64,
}

impl Pace {
    fn new(rate: f64) -> Self {
        Self { schedule: Schedule::new(rate), due: Semaphore::new(0), begun: AtomicU64::new(0) }
    }

    /// Waits for the next operation; returns when it was due, relative to the start.
    async fn next(&self) -> Duration {
        self.due.acquire().await.expect("never closed").forget();
        self.schedule.due(self.begun.fetch_add(1, Ordering::Relaxed))
    }

    /// Releases operations on schedule until the run is over, and then each client once more so that it notices.
    async fn release(self: Arc<Self>, shared: Arc<Shared>, clients: usize, start: Instant) {
        let mut timer = Timer::new().expect("the kernel has timers");
        let mut released = 0_u64;
        while !shared.over(start.elapsed()) {
            let now = start.elapsed();
            let mut count = 0;
            while self.schedule.due(released) <= now {
                released += 1;
                count += 1;
            }
            self.due.add_permits(count);
            timer.wait_until(start + self.schedule.due(released)).await.expect("the timer works");
        }
        self.due.add_permits(clients);
    }
}

impl Shared {
    /// Whether no further operation may begin.
    fn over(&self, elapsed: Duration) -> bool {
        self.next.load(Ordering::Relaxed) >= self.total
            || self.deadline.is_some_and(|deadline| elapsed >= deadline)
            || self.stopped.load(Ordering::Relaxed)
    }

    fn draw(&self, elapsed: Duration) -> Option<u64> {
        if self.over(elapsed) {
            return None;
        }
        let op = self.next.fetch_add(1, Ordering::Relaxed);
        (op < self.total).then_some(op)
    }
}

/// One client: an operation after the other.
struct LoadClient<O: Operation> {
    number: u32,
    shared: Arc<Shared>,
    operation: Arc<O>,
    client: O::Client,
    caller: Caller,
    recorder: Arc<Mutex<Recorder>>,
    pace: Option<Arc<Pace>>,
    start: Instant,
}

impl<O: Operation> LoadClient<O> {
    async fn run(mut self) {
        let mut now = self.start.elapsed();
        loop {
            let due = match &self.pace {
                Some(pace) => {
                    let due = pace.next().await;
                    // It may be over since the last answer: who draws once more then waits for a release that never comes.
                    now = self.start.elapsed();
                    due
                }
                None => now,
            };
            let Some(op) = self.shared.draw(now) else { return };
            let outcome = self.operation.perform(&mut self.client, &mut self.caller, op).await;
            now = self.start.elapsed();
            let broken = matches!(outcome, Err(CallError::Broken(_)));
            if !broken {
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            self.record(outcome, due, now);
            if broken && let Err(error) = self.mend().await {
                self.recorder.lock().expect("no client panicked").fail(format!("reconnecting: {error}"));
            }
            if self.operation.is_over() {
                self.shared.stopped.store(true, Ordering::Relaxed);
            }
        }
    }

    async fn mend(&mut self) -> Result<(), CallError> {
        self.caller.connection.reopen(&mut self.caller.sender).await?;
        self.client = self.operation.open(self.number, &mut self.caller).await?;
        Ok(())
    }

    fn record(&self, outcome: Result<Done, CallError>, due: Duration, now: Duration) {
        self.shared.ended.fetch_add(1, Ordering::Relaxed);
        let mut recorder = self.recorder.lock().expect("no client panicked");
        match outcome {
            Ok(done) => {
                let latency = now.saturating_sub(due);
                recorder.succeed(latency, now);
                recorder.answer_bytes += done.bytes;
                recorder.answer_keys += done.keys;
                recorder.retries += done.retries;
                if let Some(kind) = done.kind {
                    recorder.note_kind(kind, latency);
                }
            }
            Err(error) => recorder.fail(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_and_client_belongs_to_one_thread() {
        let mut all: Vec<_> = (0..3).flat_map(|number| share(10, 3, number)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).collect::<Vec<_>>());
        assert_eq!(share(10, 3, 2).count(), 3);
    }

    #[test]
    fn operations_are_drawn_up_to_the_total_and_the_deadline() {
        let shared = |total, deadline| Shared {
            total,
            deadline,
            next: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            give_up: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        };
        let counted = shared(3, None);
        assert_eq!((0..5).filter_map(|_| counted.draw(Duration::ZERO)).collect::<Vec<_>>(), [0, 1, 2]);
        let timed = shared(u64::MAX, Some(Duration::from_secs(1)));
        assert_eq!(timed.draw(Duration::from_millis(999)), Some(0));
        assert_eq!(timed.draw(Duration::from_secs(1)), None);
    }
}
