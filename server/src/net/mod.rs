//! Net threads: each a current-thread runtime that owns its connections from the first byte to the last. Turns wire
//! into [`Request`] and [`Reply`] and back; never sees raft, storage or state, never blocks, shares no lock with apply.
//!
//! Thread 0 also accepts, and hands each connection to the thread that has fewest. After that a connection never moves.

pub mod accept;
mod authority;
mod body;
#[allow(clippy::disallowed_types, reason = "the order of revoked numbers is not seen")]
mod client_certs;
mod compression;
mod connection;
mod debug;
mod dispatch;
mod frames;
mod gateway;
pub(crate) mod grpc;
mod halves;
mod handshake;
mod http;
mod http2;
mod io;
mod lean;
mod newcomers;
mod peer_tls;
mod peer_trust;
pub mod peers;
mod pings;
mod reflection;
mod self_made;
pub mod tls;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daymark_api::etcdserverpb as pb;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::LocalSet;

use crate::budget::Budget;
use crate::config::TransportOptions;
use crate::error::Error;
use crate::limits;
use crate::metrics::{Metrics, NetCounters};
use crate::request::{Context, Reply, Request, RequestStream, Sink, StreamRequest};
use accept::{Accepted, Bound};
pub use peer_tls::PeerTls;

/// What a net thread needs of the services. One on each net thread, not shared between threads.
pub trait FrontDoor: 'static {
    /// Serves a unary call. Dropped when the caller has gone or its deadline has passed.
    fn call<'a>(
        self: &'a Rc<Self>,
        context: &'a Context,
        request: Request,
    ) -> impl Future<Output = Result<Reply, Error>> + use<'a, Self>;

    /// Serves a watch stream until it is dropped or returns; messages and the call's end go through `sink`.
    fn watch(
        self: &Rc<Self>,
        context: Context,
        requests: RequestStream<pb::WatchRequest>,
        sink: Sink,
    ) -> impl Future<Output = ()>;

    /// Serves a keepalive stream, like [`FrontDoor::watch`].
    fn lease_keep_alive(
        self: &Rc<Self>,
        context: Context,
        requests: RequestStream<pb::LeaseKeepAliveRequest>,
        sink: Sink,
    ) -> impl Future<Output = ()>;

    /// Serves a call with one request and a stream of answers, like [`FrontDoor::watch`].
    fn stream(self: &Rc<Self>, context: Context, request: StreamRequest, sink: Sink) -> impl Future<Output = ()>;

    /// Reads something, as root, to see whether reads work; through a read barrier unless `serializable`.
    fn probe(self: &Rc<Self>, serializable: bool) -> impl Future<Output = Result<(), Error>>;

    /// What health checks look at.
    fn condition(&self) -> Condition;
}

/// The state of a member as far as plain HTTP is concerned.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    /// Active alarms of all members.
    pub alarms: Vec<pb::AlarmMember>,
    pub has_leader: bool,
    pub is_learner: bool,
    /// Whether callers must say who they are.
    pub auth_enabled: bool,
    pub raft: RaftCondition,
}

/// The same as far as raft is concerned.
#[derive(Copy, Clone, Debug, Default)]
pub struct RaftCondition {
    pub member_id: u64,
    pub term: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    /// 0: none is known.
    pub leader: u64,
    pub is_leader: bool,
}

/// How net threads serve; fixed for the life of the member.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// Counts answers that wait to be sent.
    pub answers: Arc<Budget>,
    pub threads: usize,
    pub transport: TransportOptions,
    /// Unary requests that take longer are logged.
    pub warning_unary_request: Duration,
    /// A read that takes longer is logged and counted.
    pub warning_apply: Duration,
    /// Allowed origins and Host names of plain HTTP; empty: all.
    pub cors: Vec<String>,
    pub host_whitelist: Vec<String>,
    /// Whether the API is served as JSON.
    pub gateway: bool,
    /// How long calls under way may take to end when the member stops.
    pub grace: Duration,
    /// What secure listeners need; `None` where there are none.
    pub tls: Option<Arc<tls::Tls>>,
}

/// What the connections of one net thread share.
pub(crate) struct Thread<D> {
    pub door: Rc<D>,
    pub options: Arc<NetOptions>,
    pub metrics: Arc<Metrics>,
    pub counters: Arc<NetCounters>,
    /// Turns true once: no new calls, streams end.
    pub stopping: watch::Receiver<bool>,
    /// Held by the gateway's request bodies.
    pub gateway_bytes: Rc<Cell<usize>>,
    pub newcomers: Rc<newcomers::Newcomers>,
    pub handshake_log: handshake::FailureLog,
    pub buffers: lean::Buffers,
    /// When the thread began.
    pub begun: Instant,
    connections: Cell<usize>,
    idle: Notify,
}

/// What a net thread is told by others.
pub(crate) enum Job {
    Connection(Accepted),
    Listen(Bound),
}

/// The running net threads.
pub struct NetThreads {
    jobs: Vec<mpsc::Sender<Job>>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    metrics: Arc<Metrics>,
}

impl NetThreads {
    /// Starts the threads. `build` makes the front door of a thread, on that thread and within its runtime. Nothing is
    /// accepted before [`NetThreads::listen`].
    pub fn start<D: FrontDoor>(
        options: NetOptions,
        metrics: Arc<Metrics>,
        build: impl Fn(usize) -> Rc<D> + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let (stop, stopping) = watch::channel(false);
        let (options, build) = (Arc::new(options), Arc::new(build));
        let channels: Vec<_> = (0..options.threads).map(|_| mpsc::channel(limits::ACCEPTED_QUEUE_MAX)).collect();
        let (jobs, inboxes): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
        let mut threads = Vec::new();
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let (options, metrics, build) = (options.clone(), metrics.clone(), build.clone());
            let (jobs, stopping) = (jobs.clone(), stopping.clone());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(limits::POOL_THREADS)
                .build()?;
            let body = move || {
                let local = LocalSet::new();
                let turn = async move {
                    let counters = metrics.net(number).clone();
                    let (connections, idle) = (Cell::new(0), Notify::new());
                    let door = build(number);
                    let gateway_bytes = Rc::default();
                    let (newcomers, handshake_log) = (Rc::default(), handshake::FailureLog::default());
                    let thread = Thread {
                        door,
                        options,
                        metrics,
                        counters,
                        stopping,
                        newcomers,
                        handshake_log,
                        gateway_bytes,
                        buffers: lean::Buffers::default(),
                        begun: Instant::now(),
                        connections,
                        idle,
                    };
                    run(Rc::new(thread), inbox, jobs).await;
                };
                local.block_on(&runtime, turn);
                // Whoever still waited has gone with it, and tells the pool so; what does not listen is left behind.
                drop(local);
                runtime.shutdown_timeout(limits::POOL_STOP_TIMEOUT);
            };
            threads.push(std::thread::Builder::new().name(format!("net-{number}")).spawn(body)?);
        }
        Ok(Self { jobs, stop, threads, metrics })
    }

    /// Begins to accept connections.
    pub fn listen(&self, listeners: Vec<Bound>) {
        for listener in listeners {
            // The queue of thread 0 is empty before the first listener; a thread that has gone is noticed at the stop.
            let _ = self.jobs[0].blocking_send(Job::Listen(listener));
        }
    }

    /// Takes single connections that somebody else has accepted.
    pub fn taker(&self) -> impl Fn(Accepted) + Send + Sync + use<> {
        let (jobs, metrics) = (self.jobs.clone(), self.metrics.clone());
        move |accepted| accept::hand_out(accepted, &jobs, &metrics)
    }

    /// Stops accepting, lets calls under way end within the grace, ends the threads. Returns false if one panicked.
    pub fn stop(self) -> bool {
        self.stop.send_replace(true);
        self.threads.into_iter().map(JoinHandle::join).fold(true, |fine, result| fine & result.is_ok())
    }
}

/// One net thread: serves what it is given until the member stops.
async fn run<D: FrontDoor>(thread: Rc<Thread<D>>, mut inbox: mpsc::Receiver<Job>, jobs: Vec<mpsc::Sender<Job>>) {
    let mut stopping = thread.stopping.clone();
    loop {
        let job = tokio::select! {
            job = inbox.recv() => job,
            _ = stopping.wait_for(|stop| *stop) => None,
        };
        match job {
            Some(Job::Connection(accepted)) => thread.serve(accepted),
            Some(Job::Listen(bound)) => {
                let (metrics, stopping) = (thread.metrics.clone(), thread.stopping.clone());
                tokio::task::spawn_local(accept::run(bound, jobs.clone(), metrics, stopping));
            }
            None => break,
        }
    }
    let drained = async {
        while thread.connections.get() > 0 {
            thread.idle.notified().await;
        }
    };
    if tokio::time::timeout(thread.options.grace, drained).await.is_err() {
        tracing::warn!(connections = thread.connections.get() as u64, "closing connections whose calls have not ended");
    }
}

impl<D: FrontDoor> Thread<D> {
    fn serve(self: &Rc<Self>, accepted: Accepted) {
        self.connections.set(self.connections.get() + 1);
        let thread = self.clone();
        tokio::task::spawn_local(async move {
            connection::serve(thread.clone(), accepted).await;
            // Counted up by the acceptor, which looks for the thread that has fewest.
            thread.counters.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            thread.connections.set(thread.connections.get() - 1);
            thread.idle.notify_one();
        });
    }
}

#[cfg(test)]
mod tests;
