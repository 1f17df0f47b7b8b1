//! A whole member without sockets: log on a simulated disk, raft, apply, the front door. Its state is in the model
//! backend, which forgets at a crash what was not flushed.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use daymark_raft::{AppliedProgress, Bootstrap, MemberInfo, PeerOptions, RaftOptions};
use daymark_server::apply::{self, Applier};
use daymark_server::auth::password::PasswordPool;
use daymark_server::budget::Budget;
use daymark_server::command::MemberAttributes;
use daymark_server::error::Error;
use daymark_server::mailbox::Mailbox;
use daymark_server::policy::lessor::Lessor;
use daymark_server::request::{Context, Reply, Request};
use daymark_server::services::snapshot::Snapshots;
use daymark_server::services::{Door, Member, Settings};
use daymark_server::views::Views;
use daymark_server::watch::{Engine, Options as WatchOptions};
use daymark_storage::backend::{Family, MemBackend, Span, for_each};
use daymark_storage::mvcc::Keyspace;
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{self, Identity, Wal, WalOptions};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

pub const CLUSTER: u64 = 0xc1;
pub const MEMBER: u64 = 0xa1;
const IDENTITY: Identity = Identity { cluster_id: CLUSTER, member_id: MEMBER };
/// Nothing here takes nearly as long; a test that waits this long hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The running member.
pub struct TestMember {
    disk: SimDisk,
    backend: Arc<MemBackend>,
    pub door: Rc<Door>,
    /// Watches, which locks and elections wait by.
    pub engine: Rc<RefCell<Engine>>,
    threads: Vec<JoinHandle<()>>,
    fatal: mpsc::Receiver<String>,
    runtime: Runtime,
    net: LocalSet,
}

impl TestMember {
    /// A new member with nothing in it.
    pub fn new() -> Self {
        Self::with_settings(Settings::default())
    }

    /// As [`TestMember::new`], with other values of the configuration.
    pub fn with_settings(settings: Settings) -> Self {
        Self::start(SimDisk::new(1), MemBackend::new(), settings)
    }

    /// As [`TestMember::new`], with so much memory for answers to reads.
    pub fn with_answers(answers: Arc<Budget>) -> Self {
        Self::start_with(SimDisk::new(1), MemBackend::new(), Settings::default(), answers)
    }

    fn start(disk: SimDisk, backend: Arc<MemBackend>, settings: Settings) -> Self {
        Self::start_with(disk, backend, settings, Arc::default())
    }

    fn start_with(disk: SimDisk, backend: Arc<MemBackend>, settings: Settings, answers: Arc<Budget>) -> Self {
        let (fatal_out, fatal) = mpsc::channel();
        let on_fatal = || {
            let out = fatal_out.clone();
            // A member that was let go does not listen any more.
            Box::new(move |facts: String| drop(out.send(facts)))
        };
        let options = WalOptions { segment_bytes: 4 << 20, ..WalOptions::new("/data/log", IDENTITY) };
        let (log, worker, recovered) = Wal::open(Arc::new(disk.clone()), options).expect("the log opens");
        let log_fatal = on_fatal();
        let log_thread = wal::run(worker, move |error| log_fatal(error.to_string()));
        let (keyspace, writer) = Keyspace::open(backend.clone()).expect("the keyspace opens");
        let views = Views::new(keyspace, CLUSTER, MEMBER, vec![Mailbox::new(1 << 20)]);
        let progress = AppliedProgress::default();
        let applier = Applier::open(writer, views.clone(), progress.clone()).expect("the state opens");
        let (queue, apply_thread) = apply::start(applier, on_fatal()).expect("a thread");
        let me = MemberInfo {
            id: MEMBER,
            name: String::new(),
            peer_urls: vec!["http://peer:2380".into()],
            client_urls: Vec::new(),
            is_learner: false,
            has_vote: true,
        };
        let options = RaftOptions {
            identity: IDENTITY,
            wal: log,
            heartbeat: Duration::from_millis(100),
            election: settings.election,
            bootstrap: Bootstrap::from_recovered(&recovered, Bootstrap::New { members: vec![me] }),
            applied: progress,
            peers: PeerOptions::none(),
            snapshots: None,
        };
        let raft = daymark_raft::start(options, Box::new(queue), on_fatal()).expect("raft starts");
        let snapshots = Snapshots::new(Arc::new(disk.clone()), "/data".into(), 0);
        let lessor = Lessor::new(views.clone(), settings.election);
        let passwords = PasswordPool::start().expect("threads");
        let facts_out = fatal_out.clone();
        let on_fatal = Arc::new(move |facts: &str| drop(facts_out.send(facts.to_string())));
        let door = Door::new(
            Arc::new(Member {
                views,
                raft,
                lessor,
                passwords,
                settings,
                answers,
                reclaim: Default::default(),
                exports: Default::default(),
                snapshots,
                reconfigure: Default::default(),
                on_fatal,
            }),
            0,
        );
        // One thread for the pool: a test that occupies it decides when reads there begin.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(1)
            .build()
            .expect("a runtime");
        let watch = WatchOptions {
            ring_bytes_max: 1 << 20,
            fragment_bytes: 2 << 20,
            progress_interval: Duration::from_secs(600),
        };
        let (views, pool) = (door.views(), Rc::new(runtime.handle().clone()));
        let (keyspace, mailbox) = (views.keyspace.clone(), views.mailboxes[0].clone());
        let engine = Engine::new(keyspace, mailbox, CLUSTER, MEMBER, || 1, watch, pool);
        door.attach_watch(engine.clone());
        let net = LocalSet::new();
        let running = door.clone();
        net.spawn_local(async move { running.run().await });
        let member = Self { disk, backend, door, engine, threads: vec![log_thread, apply_thread], fatal, runtime, net };
        member.wait(async |door| door.wait_joined().await.expect("it leads"));
        member
    }

    /// Publishes what a member says of itself.
    pub fn publish(&self, name: &str) -> Result<(), Error> {
        let client_urls = vec!["http://client:2379".into()];
        let attributes = MemberAttributes { id: MEMBER, name: name.into(), client_urls };
        self.wait(async |door| door.publish_attributes(&attributes).await)
    }

    /// One call through the front door.
    pub fn call(&self, request: Request) -> Result<Reply, Error> {
        self.call_as(Context::default(), request)
    }

    /// As [`TestMember::call`], with what the transport says of the caller.
    pub fn call_as(&self, context: Context, request: Request) -> Result<Reply, Error> {
        self.wait(async |door| door.call(&context, request).await)
    }

    /// Runs `work` while the thread's loop runs beside it.
    pub fn wait<T>(&self, work: impl AsyncFnOnce(Rc<Door>) -> T) -> T {
        let work = async { tokio::time::timeout(PATIENCE, work(self.door.clone())).await };
        let done = self.runtime.block_on(self.net.run_until(work));
        done.unwrap_or_else(|_| panic!("no answer; the member said {:?}", self.fatal.try_recv()))
    }

    /// The bytes of every file of the log and of every row of the backend.
    pub fn everything_written(&self) -> Vec<u8> {
        let mut bytes = self.disk.contents().into_values().flatten().collect::<Vec<u8>>();
        for family in Family::ALL {
            let visit = &mut |key: &[u8], value: &[u8]| {
                bytes.extend([key, value].concat());
                ControlFlow::Continue(())
            };
            for_each(&*self.backend, family, Span { start: b"", end: None }, visit).expect("maps can be read");
        }
        bytes
    }

    /// Everything written is durable in the backend.
    pub fn flush(&self) {
        self.door.views().keyspace.flush().expect("the model backend flushes");
    }

    /// The process dies now and is started again: the backend is as of its last flush, the log has what it was given.
    pub fn kill(self) -> Self {
        let (disk, backend) = (self.disk.after_process_exit(), self.backend.crash());
        let settings = self.door.member().settings.clone();
        self.stop();
        Self::start(disk, backend, settings)
    }

    /// The power goes now and comes back.
    pub fn cut_power(self, seed: u64) -> Self {
        let (disk, backend) = (self.disk.after_power_cut(seed), self.backend.crash());
        let settings = self.door.member().settings.clone();
        self.stop();
        Self::start(disk, backend, settings)
    }

    /// Ends every thread of it.
    pub fn stop(self) {
        self.wait(async |door| door.member().raft.stop().await);
        for thread in self.threads {
            thread.join().expect("threads end well");
        }
        assert_eq!(self.fatal.try_recv().ok(), None);
    }
}
