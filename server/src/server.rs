//! The only wiring: builds one member, starts its threads in order and stops them in reverse. Decides nothing about
//! requests.
//!
//! ```text
//! start: listeners bound -> data directory locked -> log -> backend -> apply -> raft -> upkeep -> net threads -> accept
//! stop:  net threads -> upkeep -> raft (and with it log and apply) -> backend flushed
//! ```

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use daymark_api::etcdserverpb as pb;
use daymark_raft::{AppliedProgress, Handle, PeerOptions, RaftOptions};
use daymark_storage::LogId;
use daymark_storage::backend::rocks::{RocksBackend, RocksOptions};
use daymark_storage::disk::{DirLock, Disk, RealDisk};
use daymark_storage::mvcc::Keyspace;
use daymark_storage::snapshot::{self, SnapshotStore};
use daymark_storage::wal::{self, Identity, Recovered, Wal, WalOptions, WalStats};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::apply::{self, Applier};
use crate::auth::password::PasswordPool;
use crate::auth::token::Tokens;
use crate::budget::Budget;
use crate::command::MemberAttributes;
use crate::config::Config;
use crate::config::gates::{FeatureGates, Gate};
use crate::config::tls::CertificateSource;
use crate::config::values::Url;
use crate::error::Error;
use crate::founding::{self, Founding};
use crate::limits::{self, MemorySplit};
use crate::mailbox::Mailbox;
use crate::metrics::{HistogramSample, Metrics, Sample};
use crate::net::accept::{self, Bound, Role};
use crate::net::peers::{Addresses, PeerDialer, PeerDoor, Strangers};
use crate::net::tls::Tls;
use crate::net::{Condition, FrontDoor, NetOptions, NetThreads, PeerTls, RaftCondition};
use crate::peers;
use crate::peers::serve::Question;
use crate::policy::corruption::{self, Depth};
use crate::policy::fences::FenceKeeper;
use crate::policy::room::{Directory, RoomWatch};
use crate::policy::upkeep::Upkeep;
use crate::policy::{compactor, lessor, timer};
use crate::request::{Context, Reply, Request, RequestStream, Sink, StreamRequest};
use crate::services::reclaim::LongWork;
use crate::services::reconfigure::Reconfigure;
use crate::services::snapshot::Snapshots;
use crate::services::watch::Permission;
use crate::services::{self, Door, Member, Settings};
use crate::start_error::{REPLACE, StartError};
use crate::state::members::MEMBERSHIP;
use crate::views::Views;
use crate::watch::{Engine, Options as WatchOptions};

/// What ends the member when it must not go on: called with the facts, at most once a cause, from any thread.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// One running member.
pub struct Server {
    net: NetThreads,
    timers: [timer::Running; 3],
    raft: Handle,
    wal_thread: JoinHandle<()>,
    apply_thread: JoinHandle<()>,
    keyspace: Arc<Keyspace>,
    /// Held as long as anything may touch the directory.
    _lock: DirLock,
}

impl Server {
    /// Starts a member and returns once it serves. Ports are taken and flags are checked before the data directory is
    /// touched.
    pub fn start(config: &Config, on_fatal: OnFatal) -> Result<Self, StartError> {
        let listeners = Listeners::bind(config)?;
        let for_peers = accept::bind(&config.listen_peer, Role::Peer, config.socket)?;
        let mut tls = open_tls(config, |source| matches!(source, CertificateSource::Files { .. }))?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
        let mut ask = |urls: &[String]| peers::ask::introduction(urls, config);
        let Founding { identity, anew, known } = founding::found(config, &*disk, &wal_dir(config), &mut ask)?;
        let lock = lock_data_dir(&*disk, &config.data_dir)?;
        let net_threads = net_threads(config.net_threads);
        let memory = limits::split_memory(memory_budget(config), net_threads);
        log_start(config);
        if tls.is_none() {
            tls = open_tls(config, |source| matches!(source, CertificateSource::SelfMade { .. }))?;
        }
        let peer_tls = config.peer_tls.as_ref().map(PeerTls::open).transpose()?;
        let storage = Storage::open(config, disk.clone(), identity, &memory)?;

        let mailboxes: Vec<_> = (0..net_threads).map(|_| Mailbox::new(limits::APPLIED_BYTES_MAX)).collect();
        let (cluster_id, member_id) = (identity.cluster_id, identity.member_id);
        let tokens = Tokens::new(config.auth_token.clone(), config.auth_token_ttl);
        let views = Views::with_tokens(storage.keyspace.clone(), cluster_id, member_id, mailboxes, tokens);
        let progress = AppliedProgress::default();
        let mut applier = Applier::open(storage.writer, views.clone(), progress.clone())?;
        applier.warn_above(config.warning_apply);
        applier.began_as(storage.installed);
        refuse_if_removed(&views)?;
        let thread_failed = |error: std::io::Error| StartError::new(error, "raise the limit of threads of this user");
        let (queue, apply_thread) = apply::start(applier, fatal(&on_fatal, "apply")).map_err(thread_failed)?;
        let wal_fatal = fatal(&on_fatal, "log");
        let wal_thread = wal::run(storage.worker, move |error| wal_fatal(error.to_string()));
        let (calls, asked) = peers::serve::calls(views.clone());
        let options = RaftOptions {
            identity,
            wal: storage.wal.clone(),
            heartbeat: config.heartbeat,
            election: config.election,
            bootstrap: founding::bootstrap(config, &storage.recovered, anew),
            applied: progress,
            peers: PeerOptions {
                dialer: Arc::new(PeerDialer::new(addresses(&views), peer_tls.clone())),
                calls,
                version: crate::VERSION.into(),
            },
            snapshots: Some(state_snapshots(config, &disk, cluster_id, &storage.keyspace)),
        };
        let raft = daymark_raft::start(options, Box::new(queue), fatal(&on_fatal, "raft"))?;
        // After a crash the state may be older than the log: without the others nobody could tell what of it is committed.
        views.know_before(founding::known_at_start(known, raft.members()));
        let strangers = Strangers::default();
        open_to_peers(&raft, peer_tls, strangers.clone(), for_peers);
        let room = room_watch(config, &views, disk.clone(), storage.wal.clone())?;
        // Known before the first request.
        room.step()?;
        let look = move || room.step();
        let room =
            timer::start("room", limits::ROOM_INTERVAL, look, fatal(&on_fatal, "room")).map_err(thread_failed)?;
        let mut upkeep = Upkeep::new(views.clone(), raft.clone());
        // Known before the first request, too.
        upkeep.step()?;
        let look = move || upkeep.step();
        let upkeep =
            timer::start("upkeep", limits::UPKEEP_INTERVAL, look, fatal(&on_fatal, "upkeep")).map_err(thread_failed)?;
        let mut fences = FenceKeeper::new(storage.keyspace.clone());
        let look = move || fences.step();
        let fences =
            timer::start("fences", limits::FENCES_INTERVAL, look, fatal(&on_fatal, "fences")).map_err(thread_failed)?;
        if config.gates.open(Gate::InitialCorruptCheck) {
            initial_check(&views, &raft, config.election)?;
        }
        let parts = Parts {
            config,
            views: &views,
            raft: &raft,
            wal: storage.wal.clone(),
            ring_bytes: memory.ring_bytes,
            disk: disk.clone(),
            tls,
            asked: Mutex::new(Some(asked)),
            on_fatal: on_fatal.clone(),
        };
        let net = start_net(parts).map_err(thread_failed)??;
        // Set once: it was made here.
        let _ = strangers.set(Box::new(net.taker()));
        tracing::info!("ready to serve client requests");
        listeners.open(&net);
        tracing::info!(
            "local-member-id" = format!("{member_id:x}"),
            "listen-peer-urls" = ?texts(&config.listen_peer),
            "advertise-client-urls" = ?texts(&config.advertise_client),
            "listen-client-urls" = ?texts(&config.listen_client),
            "listen-metrics-urls" = ?texts(&config.listen_metrics),
            "now serving peer/client/metrics"
        );
        Ok(Self {
            net,
            timers: [fences, upkeep, room],
            raft,
            wal_thread,
            apply_thread,
            keyspace: storage.keyspace,
            _lock: lock,
        })
    }

    /// Stops: no new calls, those under way end, everything acknowledged is in the log, the state is flushed so that the
    /// next start has nothing to replay.
    pub fn stop(self) {
        tracing::info!("closing etcd server");
        hand_over(&self.raft);
        let mut fine = self.net.stop();
        self.timers.into_iter().for_each(timer::Running::stop);
        match current_thread_runtime() {
            Ok(runtime) => runtime.block_on(self.raft.stop()),
            Err(error) => tracing::error!(%error, "raft is not stopped in order"),
        }
        for thread in [self.apply_thread, self.wal_thread] {
            fine &= thread.join().is_ok();
        }
        if let Err(error) = self.keyspace.flush() {
            tracing::error!(%error, "the state is not flushed; the next start replays the log");
        }
        if !fine {
            tracing::error!("a thread had panicked");
        }
        tracing::info!("closed etcd server");
    }
}

/// With the gate `InitialCorruptCheck`, before anybody is served.
fn initial_check(views: &Views, raft: &Handle, election: Duration) -> Result<(), StartError> {
    let remedy = "compare the members; take this one out of the cluster, remove its data directory and add it again";
    let failed =
        |why: &dyn fmt::Display| StartError::new(format!("the initial corruption check failed: {why}"), remedy);
    tracing::info!("starting initial corruption check");
    let runtime = current_thread_runtime().map_err(|error| failed(&error))?;
    let check = services::corruption::check_at_start(views, raft, limits::HASH_WAIT + 2 * election);
    runtime.block_on(check).map_err(|why| failed(&why))?;
    tracing::info!("initial corruption checking passed; no corruption");
    Ok(())
}

/// A leader that stops lets another member lead first, so that nobody has to miss it.
fn hand_over(raft: &Handle) {
    let status = raft.status();
    if !status.is_leader || status.voters.len() < 2 {
        return;
    }
    let handed = current_thread_runtime().map(|runtime| runtime.block_on(raft.transfer_leader(None)));
    match handed {
        Ok(Ok(leader)) => tracing::info!(leader = format!("{leader:x}"), "handed leadership over"),
        Ok(Err(error)) => tracing::warn!(%error, "leadership was not handed over: the others elect a leader"),
        Err(error) => tracing::warn!(%error, "leadership was not handed over: the others elect a leader"),
    }
}

/// Open ports that nobody is accepted on yet.
struct Listeners(Vec<Bound>);

impl Listeners {
    fn bind(config: &Config) -> Result<Self, StartError> {
        let apart = !config.listen_client_http.is_empty();
        let of_clients = if apart { Role::ClientGrpc } else { Role::Client };
        let mut bound = accept::bind(&config.listen_client, of_clients, config.socket)?;
        bound.extend(accept::bind(&config.listen_client_http, Role::ClientHttp, config.socket)?);
        bound.extend(accept::bind(&config.listen_metrics, Role::Metrics, config.socket)?);
        Ok(Self(bound))
    }

    fn open(self, net: &NetThreads) {
        for listener in &self.0 {
            let address = listener.address();
            // Tools wait for these lines.
            let traffic = match listener.role() {
                Role::Client => "grpc+http",
                Role::ClientGrpc => "grpc",
                Role::ClientHttp => "http",
                // Opened before all others.
                Role::Peer => continue,
                Role::Metrics => {
                    tracing::info!(address, "serving metrics");
                    continue;
                }
            };
            if listener.is_plain() {
                tracing::info!(traffic, address, "serving client traffic insecurely; this is strongly discouraged!");
            }
            if listener.is_secure() {
                tracing::info!(traffic, address, "serving client traffic securely");
            }
        }
        net.listen(self.0);
    }
}

/// Where members are reached, as the replicated list says.
fn addresses(views: &Arc<Views>) -> Addresses {
    let views = views.clone();
    Arc::new(move |id| views.peer_urls(id))
}

/// From here on other members are heard.
fn open_to_peers(raft: &Handle, tls: Option<Arc<PeerTls>>, strangers: Strangers, bound: Vec<Bound>) {
    for listener in &bound {
        let address = listener.address();
        match listener.is_secure() {
            true => tracing::info!(address, "serving peer traffic securely"),
            false => tracing::info!(address, "serving peer traffic insecurely"),
        }
    }
    PeerDoor::new(raft.clone(), tls, strangers).listen(bound);
}

/// TLS where a listener needs it and the certificate comes from such a source. One that is made here needs the data
/// directory; files are read before that is touched.
fn open_tls(config: &Config, is_due: impl Fn(&CertificateSource) -> bool) -> Result<Option<Arc<Tls>>, StartError> {
    let options = config.client_tls.as_ref().filter(|options| config.needs_tls() && is_due(&options.certificate));
    Ok(options.map(Tls::open).transpose()?)
}

/// Once nothing that a user could have got wrong is left, so that a refused start is one line.
fn log_start(config: &Config) {
    tracing::info!(
        "etcd-version" = crate::ETCD_VERSION,
        "daymark-version" = crate::VERSION,
        "git-sha" = crate::version::git_sha(),
        name = config.name,
        "data-dir" = %config.data_dir.display(),
        "listen-client-urls" = ?texts(&config.listen_client),
        "listen-peer-urls" = ?texts(&config.listen_peer),
        "advertise-client-urls" = ?texts(&config.advertise_client),
        "initial-cluster-token" = config.cluster_token,
        "quota-backend-bytes" = config.quota_backend_bytes.unwrap_or(0),
        "unsafe-no-fsync" = config.unsafe_no_fsync,
        "starting an etcd server"
    );
}

/// Everything below apply and raft.
struct Storage {
    keyspace: Arc<Keyspace>,
    writer: daymark_storage::mvcc::Writer,
    wal: Wal,
    worker: wal::WalWorker,
    recovered: Recovered,
    /// Last entry of the snapshot that the state began as.
    installed: Option<LogId>,
}

impl Storage {
    /// The log first: if it is damaged, nothing is changed on disk.
    fn open(
        config: &Config,
        disk: Arc<dyn Disk>,
        identity: Identity,
        memory: &MemorySplit,
    ) -> Result<Self, StartError> {
        let begun = Instant::now();
        let options = WalOptions {
            segment_bytes: limits::WAL_SEGMENT_BYTES,
            tail_bytes_max: memory.wal_tail_bytes,
            queue_bytes_max: limits::WAL_QUEUE_BYTES_MAX,
            unsafe_no_fsync: config.unsafe_no_fsync,
            ..WalOptions::new(wal_dir(config), identity)
        };
        let (wal, worker, recovered) = Wal::open(disk.clone(), options)?;
        if let Some(cut) = &recovered.cut {
            let (path, offset, bytes) = (cut.path.display(), cut.offset, cut.bytes);
            tracing::warn!(%path, offset, bytes, "cut the torn end of the log: writes that were never acknowledged");
        }
        let log_ms = begun.elapsed().as_millis() as u64;
        let place = snapshot::recover(&*disk, &config.data_dir.join("member"))?;
        let backend = RocksBackend::open(RocksOptions {
            memory_budget_bytes: memory.backend_bytes as usize,
            ..RocksOptions::new(place.dir)
        })?;
        let (keyspace, writer) = Keyspace::open_with(backend, memory.record_cache_bytes as usize)?;
        check_belong_together(&keyspace, &recovered, place.installed)?;
        let (revision, state_ms) = (keyspace.current_revision(), begun.elapsed().as_millis() as u64 - log_ms);
        tracing::info!(revision, log_ms, state_ms, "opened log and state");
        Ok(Self { keyspace, writer, wal, worker, recovered, installed: place.installed })
    }
}

fn wal_dir(config: &Config) -> PathBuf {
    config.wal_dir.clone().unwrap_or_else(|| config.data_dir.join("member").join("wal"))
}

/// A log that ends before the state was lost in part; applied entries are always in it unless they were released. Or the
/// state is a snapshot as it was installed, and a crash came before the log was reset to it.
fn check_belong_together(
    keyspace: &Keyspace,
    recovered: &Recovered,
    installed: Option<LogId>,
) -> Result<(), StartError> {
    let Some(applied) = keyspace.applied() else { return Ok(()) };
    let end = recovered.last.max(recovered.released);
    if end.is_some_and(|end| end.index >= applied.index) || installed == Some(applied) {
        return Ok(());
    }
    let end = end.map_or("empty".to_owned(), |end: LogId| format!("at {end}"));
    Err(StartError::new(
        format!("the state holds entry {applied} but the log ends before it ({end})"),
        format!("log and state do not belong together: restore the data directory as a whole; else {REPLACE}"),
    ))
}

/// Makes the directory if it is missing and takes its lock. A directory of etcd itself is left alone.
fn lock_data_dir(disk: &dyn Disk, dir: &Path) -> Result<DirLock, StartError> {
    if disk.exists(&dir.join("member").join("snap"))? {
        return Err(StartError::new(
            format!("{} is a data directory of etcd, whose format Daymark does not read", dir.display()),
            "choose another --data-dir",
        ));
    }
    disk.create_dir_all(dir)?;
    Ok(disk.lock(dir)?)
}

fn refuse_if_removed(views: &Views) -> Result<(), StartError> {
    if views.was_removed() { Err(removed(views)) } else { Ok(()) }
}

/// Why a member does not run any more.
fn removed(views: &Views) -> StartError {
    StartError::new(
        format!(
            "the member has been permanently removed from the cluster: its id {:x} never comes back",
            views.member_id
        ),
        "to take part again, delete its data directory, add it with `etcdctl member add` and start it with \
         --initial-cluster-state=existing",
    )
}

fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(Url::to_string).collect()
}

/// How many net threads there are: one a core, unless `asked` says otherwise.
pub fn net_threads(asked: usize) -> usize {
    match asked {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get()).min(limits::NET_THREADS_MAX),
        given => given,
    }
}

fn memory_budget(config: &Config) -> u64 {
    limits::memory_budget(config.memory_budget_bytes, machine_bytes())
}

fn machine_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    machine.totalram as u64 * u64::from(machine.mem_unit)
}

fn fatal(on_fatal: &OnFatal, part: &'static str) -> Box<dyn FnOnce(String) + Send> {
    let on_fatal = on_fatal.clone();
    Box::new(move |facts| on_fatal(&format!("{part}: {facts}")))
}

fn current_thread_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Looks at the volumes of all directories that this member writes to.
fn room_watch(config: &Config, views: &Arc<Views>, disk: Arc<dyn Disk>, wal: Wal) -> Result<RoomWatch, StartError> {
    let mut directories = Vec::new();
    for path in config.written_directories() {
        let volume = rustix::fs::statvfs(&path).map_err(|error| {
            StartError::new(
                format!("the size of the volume of {} is not known: {error}", path.display()),
                "see its mount",
            )
        })?;
        directories.push(Directory::on_volume(path, volume.f_blocks * volume.f_frsize));
    }
    let free_bytes = Box::new(move |path: &Path| disk.free_bytes(path));
    Ok(RoomWatch {
        views: views.clone(),
        directories,
        free_bytes,
        log_has_room: Box::new(move || wal.check_room().is_ok()),
    })
}

/// What raft sends to members that are far behind, and takes from others if this one is.
fn state_snapshots(
    config: &Config,
    disk: &Arc<dyn Disk>,
    cluster_id: u64,
    keyspace: &Arc<Keyspace>,
) -> Arc<SnapshotStore> {
    let reserve_bytes = Directory::on_volume(config.data_dir.clone(), volume_bytes(&config.data_dir)).reserve_bytes;
    let dir = config.data_dir.join("member");
    SnapshotStore::new(disk.clone(), dir, cluster_id, keyspace.clone(), MEMBERSHIP, reserve_bytes)
}

fn volume_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(u64::MAX, |volume| volume.f_blocks * volume.f_frsize)
}

/// Made beside the data, as far as its volume has room beyond the reserve for it.
fn snapshots(config: &Config, disk: Arc<dyn Disk>) -> Snapshots {
    let dir = config.data_dir.clone();
    let reserve_bytes = Directory::on_volume(dir.clone(), volume_bytes(&dir)).reserve_bytes;
    // What is written until the next look must not reach the reserve.
    Snapshots::new(disk, dir, reserve_bytes + 4 * limits::EXPORT_PIECE_BYTES as u64)
}

/// What the net threads are built from.
struct Parts<'a> {
    config: &'a Config,
    views: &'a Arc<Views>,
    raft: &'a Handle,
    wal: Wal,
    ring_bytes: u64,
    disk: Arc<dyn Disk>,
    tls: Option<Arc<Tls>>,
    /// What other members ask; taken by the first net thread.
    asked: Mutex<Option<mpsc::Receiver<Question>>>,
    on_fatal: OnFatal,
}

/// Starts the net threads and waits until this member's name and client addresses are replicated.
fn start_net(parts: Parts<'_>) -> std::io::Result<Result<NetThreads, StartError>> {
    let Parts { config, views, raft, asked, .. } = parts;
    let net_threads = views.mailboxes.len();
    let settings = Settings {
        max_request_bytes: config.max_request_bytes,
        response_bytes_max: limits::RESPONSE_BYTES_MAX,
        max_txn_ops: config.max_txn_ops,
        election: config.election,
        quota_bytes: config.quota_backend_bytes.map_or(-1, |bytes| bytes as i64),
        bcrypt_cost: config.bcrypt_cost,
        revokes_first: config.gates.open(Gate::PriorityRequest),
        learners_max: config.learners_max,
        strict_changes: config.strict_changes,
    };
    let checkpoints = config.gates.open(Gate::LeaseCheckpoint).then_some(limits::LEASE_CHECKPOINT_INTERVAL);
    let lessor = lessor::Lessor::with_checkpoints(views.clone(), config.election, checkpoints);
    let (answers_max, answer_max) = limits::answer_budget(machine_bytes());
    let answers = Budget::new(answers_max, answer_max);
    let member = Arc::new(Member {
        answers: answers.clone(),
        views: views.clone(),
        raft: raft.clone(),
        lessor,
        passwords: PasswordPool::start()?,
        settings,
        reclaim: LongWork::default(),
        exports: LongWork::default(),
        snapshots: snapshots(config, parts.disk.clone()),
        reconfigure: Reconfigure::default(),
        on_fatal: parts.on_fatal.clone(),
    });
    let watched: Arc<[WatchGauges]> = (0..net_threads).map(|_| WatchGauges::default()).collect();
    let source = sample_source(member.clone(), parts.wal.clone(), watched.clone(), config.gates);
    let metrics = match config.metrics_extensive {
        true => Metrics::extensive(net_threads, source),
        false => Metrics::new(net_threads, source),
    };
    let attributes = MemberAttributes {
        id: views.member_id,
        name: config.name.clone(),
        client_urls: texts(&config.advertise_client),
    };
    let (published, publication) = std_mpsc::sync_channel(1);
    let watch = WatchOptions {
        ring_bytes_max: parts.ring_bytes as usize,
        fragment_bytes: config.max_request_bytes + limits::MESSAGE_OVERHEAD_BYTES,
        progress_interval: config.watch_progress_interval,
    };
    let options = NetOptions {
        answers,
        threads: net_threads,
        transport: config.transport,
        warning_unary_request: config.warning_unary_request,
        warning_apply: config.warning_apply,
        cors: config.cors.clone(),
        host_whitelist: config.host_whitelist.clone(),
        gateway: config.gateway,
        grace: member.settings.request_timeout(),
        tls: parts.tls.clone(),
    };
    let auto_compaction = config.auto_compaction;
    let of_records = config.corrupt_check_interval.map(|interval| (interval, Depth::Records));
    let of_kept =
        config.gates.open(Gate::CompactHashCheck).then_some((config.compact_hash_check_interval, Depth::Kept));
    let corruption_checks: Vec<_> = of_records.into_iter().chain(of_kept).collect();
    let net = NetThreads::start(options, metrics, move |number| {
        let front = Front::new(member.clone(), number, watch.clone(), watched.clone());
        if number == 0 {
            tokio::task::spawn_local(first_thread_work(front.clone(), attributes.clone(), published.clone()));
            if let Some(asked) = asked.lock().take() {
                tokio::task::spawn_local(peers::serve::run(front.door.clone(), asked));
            }
            if let Some(plan) = compactor::Plan::of(auto_compaction) {
                tokio::task::spawn_local(compact_by(plan, front.clone()));
            }
            for (interval, depth) in corruption_checks.iter().copied() {
                let cluster = services::corruption::Checked(front.door.clone());
                tokio::task::spawn_local(corruption::run(cluster, interval, depth));
            }
        }
        front
    })?;
    Ok(match publication.recv() {
        Ok(Ok(())) => {
            let (member, cluster) = (format!("{:x}", views.member_id), format!("{:x}", views.cluster_id));
            let (name, client_urls) = (&config.name, texts(&config.advertise_client));
            tracing::info!(member, cluster, name, ?client_urls, "published local member to cluster through raft");
            Ok(net)
        }
        Ok(Err(error)) => Err(StartError::new(format!("publishing this member failed: {error}"), "start it again")),
        Err(_) => Err(StartError::new("a net thread ended while it started", "see the log lines above")),
    })
}

/// What only one net thread does.
async fn first_thread_work(
    front: Rc<Front>,
    attributes: MemberAttributes,
    published: std_mpsc::SyncSender<Result<(), Error>>,
) {
    // Nobody listens any more only if the start has been given up.
    let _ = published.send(join_cluster(&front.door, &attributes).await);
    front.door.run_lessor().await;
}

/// Waits until this member has seen what the cluster knows, and tells it who it is; as often as it takes.
async fn join_cluster(door: &Door, attributes: &MemberAttributes) -> Result<(), Error> {
    door.wait_joined().await?;
    loop {
        match door.publish_attributes(attributes).await {
            Err(error) if error != Error::Stopped => {
                tracing::warn!(%error, "failed to publish local member to cluster through raft, to be tried again");
                tokio::time::sleep(limits::PUBLISH_RETRY_PAUSE).await;
            }
            published => return published,
        }
    }
}

async fn compact_by(plan: compactor::Plan, front: Rc<Front>) {
    let member = front.door.member().clone();
    let compact = async |revision| {
        let request = pb::CompactionRequest { revision, physical: false };
        front.door.propose_own(crate::command::Kind::Compact, &request).await.map(|_| ())
    };
    compactor::run(plan, &member.views.keyspace, member.raft.clone(), compact).await;
}

/// The services of one net thread as its transport sees them.
struct Front {
    door: Rc<Door>,
    engine: Rc<RefCell<Engine>>,
}

impl Front {
    fn new(member: Arc<Member>, thread: usize, watch: WatchOptions, gauges: Arc<[WatchGauges]>) -> Rc<Self> {
        let door = Door::new(member.clone(), thread);
        let (views, raft) = (&member.views, member.raft.clone());
        let engine = Engine::new(
            views.keyspace.clone(),
            views.mailboxes[thread].clone(),
            views.cluster_id,
            views.member_id,
            move || raft.term(),
            watch,
            Rc::new(tokio::runtime::Handle::current()),
        );
        door.attach_watch(engine.clone());
        let front = Rc::new(Self { door, engine });
        let running = front.clone();
        tokio::task::spawn_local(async move { running.door.run().await });
        tokio::task::spawn_local(front.clone().look_after_streams(gauges, thread));
        front
    }

    /// Ends streams that want a leader when there has been none for three election timeouts; shows what is watched.
    async fn look_after_streams(self: Rc<Self>, gauges: Arc<[WatchGauges]>, thread: usize) {
        let election = self.door.member().settings.election;
        let mut led = Instant::now();
        loop {
            tokio::time::sleep(limits::STREAM_CHECK_INTERVAL).await;
            gauges[thread].store(&self.engine.borrow().stats());
            if thread == 0 && self.door.views().was_removed() {
                tokio::time::sleep(limits::REMOVED_GRACE).await;
                let why = removed(self.door.views());
                (self.door.member().on_fatal)(&format!("{}; {}", why.cause, why.remedy));
            }
            if self.door.has_leader() {
                led = Instant::now();
            } else if led.elapsed() >= 3 * election {
                self.door.end_leaderless();
            }
        }
    }
}

impl FrontDoor for Front {
    fn call<'a>(
        self: &'a Rc<Self>,
        context: &'a Context,
        request: Request,
    ) -> impl Future<Output = Result<Reply, Error>> + use<'a> {
        self.door.call(context, request)
    }

    async fn watch(self: &Rc<Self>, context: Context, requests: RequestStream<pb::WatchRequest>, sink: Sink) {
        match self.door.check_stream_context(&context) {
            Ok(()) => {
                let door = self.door.clone();
                let permission: Rc<Permission> = Rc::new(move |context, create| {
                    let door = door.clone();
                    Box::pin(async move { door.admit_watch(context, create).await })
                });
                services::watch::serve_permitted(self.engine.clone(), context, requests, sink, permission).await;
            }
            Err(error) => sink.finish(Err(error)),
        }
    }

    async fn lease_keep_alive(
        self: &Rc<Self>,
        context: Context,
        requests: RequestStream<pb::LeaseKeepAliveRequest>,
        sink: Sink,
    ) {
        match self.door.check_stream_context(&context) {
            Ok(()) => self.door.lease_keep_alive(context, requests, sink).await,
            Err(error) => sink.finish(Err(error)),
        }
    }

    async fn stream(self: &Rc<Self>, context: Context, request: StreamRequest, sink: Sink) {
        self.door.serve_stream(context, request, sink).await;
    }

    async fn probe(self: &Rc<Self>, serializable: bool) -> Result<(), Error> {
        self.door.probe(serializable).await
    }

    fn condition(&self) -> Condition {
        let (views, raft) = (self.door.views(), self.door.member().raft.status());
        Condition {
            alarms: views.alarms.load().as_ref().clone(),
            has_leader: self.door.has_leader(),
            is_learner: self.door.is_learner(),
            auth_enabled: views.auth.load().is_enabled(),
            raft: RaftCondition {
                member_id: raft.member_id,
                term: raft.term,
                committed_index: raft.committed_index.unwrap_or(0),
                applied_index: views.applied_index(),
                leader: raft.leader.unwrap_or(0),
                is_leader: raft.is_leader,
            },
        }
    }
}

/// What one net thread watches, for metrics.
#[derive(Default)]
struct WatchGauges {
    streams: AtomicU64,
    watchers: AtomicU64,
    behind: AtomicU64,
    events_sent: AtomicU64,
    /// Revision up to which live watchers have got everything; 0 if nobody watches.
    cursor: AtomicU64,
}

impl WatchGauges {
    fn store(&self, stats: &crate::watch::Stats) {
        self.streams.store(stats.streams as u64, Ordering::Relaxed);
        self.watchers.store(stats.watchers as u64, Ordering::Relaxed);
        self.behind.store(stats.behind as u64, Ordering::Relaxed);
        self.events_sent.store(stats.events_sent, Ordering::Relaxed);
        let cursor = if stats.watchers == 0 { 0 } else { stats.cursor.max(0) as u64 };
        self.cursor.store(cursor, Ordering::Relaxed);
    }

    /// Revisions that watchers have not been looked at for, a moment ago.
    fn pending(&self, revision: i64) -> u64 {
        match self.cursor.load(Ordering::Relaxed) {
            0 => 0,
            cursor => (revision.max(0) as u64).saturating_sub(cursor),
        }
    }
}

fn sample_source(
    member: Arc<Member>,
    wal: Wal,
    watched: Arc<[WatchGauges]>,
    gates: FeatureGates,
) -> crate::metrics::Source {
    Arc::new(move || {
        let (views, raft) = (&member.views, member.raft.status());
        let (stats, revision) = (wal.stats(), views.keyspace.current_revision());
        let sum = |gauge: fn(&WatchGauges) -> &AtomicU64| -> u64 {
            watched.iter().map(|thread| gauge(thread).load(Ordering::Relaxed)).sum()
        };
        Sample {
            member_id: views.member_id,
            has_leader: raft.leader.is_some(),
            is_leader: raft.is_leader,
            is_learner: views.is_learner(),
            leader_changes: raft.leader_changes_seen,
            promotions: views.promotions.values(),
            proposals_committed: raft.committed_index.unwrap_or(0),
            proposals_applied: views.applied_index(),
            proposals_pending: raft.committed_index.unwrap_or(0).saturating_sub(views.applied_index()),
            quota_bytes: member.settings.quota_bytes,
            current_revision: revision,
            compact_revision: views.keyspace.compact_revision(),
            auth_revision: views.auth.load().revision(),
            db_bytes: views.size.bytes(&views.keyspace),
            db_bytes_in_use: views.size.bytes_in_use(&views.keyspace),
            alarms: views.alarms.load_full(),
            watch_streams: sum(|gauges| &gauges.streams),
            watchers: sum(|gauges| &gauges.watchers),
            slow_watchers: sum(|gauges| &gauges.behind),
            defrag_inflight: member.reclaim.is_busy(),
            defrag: views.durations.defrag.sample(),
            hash: views.durations.hash.sample(),
            hash_rev: views.durations.hash_rev.sample(),
            snapshot: views.durations.snapshot.sample(),
            events_sent: sum(|gauges| &gauges.events_sent),
            events_pending: watched.iter().map(|thread| thread.pending(revision)).sum(),
            wal_fsync: class_histogram(&stats.sync_classes, stats.sync_total),
            wal_write: class_histogram(&stats.write_classes, stats.write_total),
            log_lines_dropped: crate::logging::dropped_lines(),
            failures: views.failures.values(),
            gates,
            members: views.members.load().members.iter().map(|member| member.id).collect(),
            peers: member.raft.peer_traffic(),
            applied: views.counters.sample(),
            wal_write_bytes: stats.bytes_written_total,
            lease_expired: member.lessor.expired(),
            lease_renewed: member.lessor.renewed(),
        }
    })
}

/// Durations of the log by etcd's bounds, from 1 ms on; the log tells shorter ones apart as well.
fn class_histogram(classes: &[u64], total: Duration) -> HistogramSample {
    const FIRST_BOUND: Duration = Duration::from_millis(1);
    let mut count = 0;
    let mut cumulative = Vec::new();
    for (class, seen) in classes.iter().enumerate() {
        count += seen;
        if let Some(bound) = WalStats::sync_class_bound(class).filter(|bound| *bound >= FIRST_BOUND) {
            cumulative.push((bound.as_secs_f64(), count));
        }
    }
    HistogramSample { cumulative, count, sum: total.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The task of a call is copied several times before it runs: at 15 kB that was a fifth of what a put costs here.
    #[test]
    fn the_task_of_a_call_is_small() {
        let bytes = crate::net::grpc::task_bytes::<Front>();
        assert!(bytes <= 2048, "{bytes} bytes: what is rare belongs into a box");
    }
}
