//! A member to test with: a log in a directory with its worker thread, a state that survives a restart of the member as
//! far as it was flushed, and waiters that report over a channel. Not a mock of raft: everything under test is real.

use std::any::Any;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;

use daymark_raft::{
    Applied, AppliedProgress, Apply, Bootstrap, CommandBatch, Committed, EntryBody, Handle, MemberInfo, PeerOptions,
    ProposeError, RaftOptions, Waiter,
};
use daymark_storage::disk::Disk;
use daymark_storage::wal::{self, Identity, Recovered, Wal, WalOptions};
use daymark_storage::{LogId, StorageError};

pub const MEMBER: u64 = 0x5a;
pub const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: MEMBER };

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a waiter was told: the number of its batch, and the entry or the reason.
pub type Told = (u64, Result<LogId, ProposeError>);

pub struct Client {
    pub number: u64,
    pub tell: mpsc::Sender<Told>,
}

impl Waiter for Client {
    fn fail(self: Box<Self>, why: ProposeError) {
        // A test that does not listen any more is at its end.
        let _ = self.tell.send((self.number, Err(why)));
    }
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// What a state has seen. `durable` is what a restart begins with.
#[derive(Clone, Default)]
pub struct Contents {
    pub applied: Applied,
    pub commands: Vec<(LogId, Bytes)>,
    pub entries: Vec<LogId>,
}

#[derive(Clone, Default)]
pub struct State {
    inner: Arc<Mutex<(Contents, Contents)>>,
    pub progress: AppliedProgress,
    /// Set to leave `progress` behind.
    pub lazy: Arc<std::sync::atomic::AtomicBool>,
}

impl State {
    pub fn volatile(&self) -> Contents {
        self.inner.lock().unwrap().0.clone()
    }

    /// Makes everything applied durable and says up to where.
    pub fn flush(&self) -> LogId {
        let mut inner = self.inner.lock().unwrap();
        inner.1 = inner.0.clone();
        inner.1.applied.id.expect("something was applied")
    }

    /// What a restart finds.
    pub fn after_crash(&self) -> Self {
        let durable = self.inner.lock().unwrap().1.clone();
        Self { inner: Arc::new(Mutex::new((durable.clone(), durable))), ..Self::default() }
    }

    /// Payloads in order of the log.
    pub fn payloads(&self) -> Vec<Bytes> {
        self.volatile().commands.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

impl Apply for State {
    fn applied(&mut self) -> Result<Applied, StorageError> {
        Ok(self.inner.lock().unwrap().1.applied.clone())
    }

    fn submit(&mut self, entries: Vec<Committed>) -> Result<(), StorageError> {
        let mut inner = self.inner.lock().unwrap();
        let contents = &mut inner.0;
        for Committed { id, body } in entries {
            assert!(contents.applied.id < Some(id), "entries arrive in log order, each once");
            contents.applied.id = Some(id);
            contents.entries.push(id);
            match body {
                EntryBody::Blank => {}
                EntryBody::Membership(bytes) => contents.applied.membership = Some(bytes),
                EntryBody::Commands { bytes, waiter } => {
                    contents.commands.push((id, bytes));
                    if let Some(waiter) = waiter {
                        let client = waiter.into_any().downcast::<Client>().expect("all waiters here are clients");
                        let _ = client.tell.send((client.number, Ok(id)));
                    }
                }
            }
            if !self.lazy.load(std::sync::atomic::Ordering::Relaxed) {
                self.progress.set(id.index);
            }
        }
        Ok(())
    }
}

/// A started member.
pub struct Member {
    pub handle: Handle,
    pub wal: Wal,
    pub worker: Option<JoinHandle<()>>,
    pub state: State,
    pub fatal: mpsc::Receiver<String>,
    pub clients: mpsc::Sender<Told>,
    pub told: mpsc::Receiver<Told>,
    pub runtime: tokio::runtime::Runtime,
}

pub fn wal_options(dir: &std::path::Path) -> WalOptions {
    WalOptions {
        dir: dir.to_path_buf(),
        segment_bytes: 1 << 20,
        tail_bytes_max: 4 << 20,
        queue_bytes_max: 64 << 20,
        identity: IDENTITY,
        unsafe_no_fsync: false,
    }
}

pub fn open_log(disk: Arc<dyn Disk>, options: WalOptions) -> (Wal, JoinHandle<()>, Recovered) {
    let (wal, worker, recovered) = Wal::open(disk, options).unwrap();
    // Raft learns of the log's failure by itself; that is part of what is tested.
    (wal, wal::run(worker, |_| ()), recovered)
}

impl Member {
    /// Opens the log in `dir` and starts; new or restarted as the log says.
    pub fn start(disk: Arc<dyn Disk>, dir: &std::path::Path, state: State) -> Self {
        let member = Self::start_unready(disk, dir, state);
        member.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, member.handle.wait_ready()).await.expect("ready in time").unwrap();
        });
        member
    }

    /// Starts on a disk that may fail; comes back when the member is ready or has told why not.
    pub fn try_start(disk: Arc<dyn Disk>, dir: &std::path::Path, state: State) -> Option<Self> {
        let (wal, worker, recovered) = Wal::open(disk, wal_options(dir)).ok()?;
        let member = Self::start_on(wal, wal::run(worker, |_| ()), recovered, state);
        // Ready or stopped: both are an answer, and the test looks which one it is.
        let _ = member.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, member.handle.wait_ready()).await.expect("an answer in time")
        });
        Some(member)
    }

    pub fn start_unready(disk: Arc<dyn Disk>, dir: &std::path::Path, state: State) -> Self {
        let (wal, worker, recovered) = open_log(disk, wal_options(dir));
        Self::start_on(wal, worker, recovered, state)
    }

    fn start_on(wal: Wal, worker: JoinHandle<()>, recovered: Recovered, state: State) -> Self {
        let me = MemberInfo {
            id: MEMBER,
            name: "default".into(),
            peer_urls: vec!["http://127.0.0.1:2380".into()],
            client_urls: vec![],
            is_learner: false,
            has_vote: true,
        };
        let options = RaftOptions {
            identity: IDENTITY,
            wal: wal.clone(),
            heartbeat: Duration::from_millis(100),
            election: Duration::from_millis(1000),
            bootstrap: Bootstrap::from_recovered(&recovered, Bootstrap::New { members: vec![me] }),
            applied: state.progress.clone(),
            peers: PeerOptions::none(),
            snapshots: None,
        };
        let (fatal_out, fatal) = mpsc::channel();
        let on_fatal = move |why| fatal_out.send(why).unwrap();
        let handle = daymark_raft::start(options, Box::new(state.clone()), Box::new(on_fatal)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (clients, told) = mpsc::channel();
        Self { handle, wal, worker: Some(worker), state, fatal, clients, told, runtime }
    }

    pub fn propose(&self, number: u64, bytes: impl Into<Bytes>) {
        self.propose_many(number, bytes, 1);
    }

    /// A batch that says it holds `count` commands.
    pub fn propose_many(&self, number: u64, bytes: impl Into<Bytes>, count: u32) {
        let waiter = Box::new(Client { number, tell: self.clients.clone() });
        self.handle.propose(CommandBatch { bytes: bytes.into(), count, waiter });
    }

    pub fn next_told(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("somebody is told in time")
    }

    /// The entries of `count` batches, by number.
    pub fn expect_applied(&self, count: usize) -> Vec<(u64, LogId)> {
        let applied = |(number, outcome): Told| (number, outcome.expect("applied"));
        (0..count).map(|_| applied(self.next_told())).collect()
    }

    pub fn stop(&mut self) {
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, self.handle.stop()).await.expect("stops in time");
        });
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
    }
}

/// Waits for something that another thread does, without a fixed sleep.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < give_up, "{what} did not happen");
        std::thread::yield_now();
    }
}
