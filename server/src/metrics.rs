//! Every metric, declared once, under etcd's names. Counted by the thread that sees the event, summed when scraped:
//! nothing here is locked or shared between writers. What does not exist here, or nothing counts, is left out: a zero
//! would be a claim. What is left out, and why, is in docs/operations.md.

pub mod applied;
pub mod histogram;
pub(crate) mod process;
mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter as CounterValue, Gauge, Histogram as HistogramValue, LabelPair, Metric, MetricFamily, MetricType,
};

use daymark_api::etcdserverpb as pb;

use crate::config::gates::FeatureGates;
use crate::rpc::{Rpc, RpcKind};

pub use applied::{AppliedCounters, AppliedSample, FailureCounters, PROMOTION_FAILURES, PromotionCounters};
use histogram::Histogram;
pub use histogram::HistogramSample;
use process::Process;

/// gRPC codes by number, as metrics spell them.
pub const CODE_NAMES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// A count that one thread writes and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts. Only one thread may call it: a load and a store are cheaper than an atomic addition.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Durations that any thread sees now and then, in buckets of a first bound x 2^i.
#[derive(Debug)]
pub struct SharedDurations {
    first: Duration,
    buckets: Box<[AtomicU64]>,
    count: AtomicU64,
    nanos: AtomicU64,
}

impl SharedDurations {
    /// `buckets` bounds from `first` on.
    pub fn new(first: Duration, buckets: usize) -> Self {
        let buckets = (0..buckets).map(|_| AtomicU64::new(0)).collect();
        Self { first, buckets, count: AtomicU64::new(0), nanos: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let bucket = (0..self.buckets.len()).find(|i| duration <= self.first * (1 << i));
        if let Some(bucket) = bucket {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }

    /// As it stands.
    pub fn sample(&self) -> HistogramSample {
        let mut cumulative = 0;
        let buckets = self.buckets.iter().enumerate().map(|(i, bucket)| {
            cumulative += bucket.load(Ordering::Relaxed);
            (self.first.as_secs_f64() * f64::from(1_u32 << i), cumulative)
        });
        HistogramSample {
            cumulative: buckets.collect(),
            count: self.count.load(Ordering::Relaxed),
            sum: self.nanos.load(Ordering::Relaxed) as f64 / 1e9,
        }
    }
}

/// How long maintenance took, in etcd's buckets.
#[derive(Debug)]
pub struct MemberDurations {
    pub defrag: SharedDurations,
    /// Of everything.
    pub hash: SharedDurations,
    /// Of the keys at a revision.
    pub hash_rev: SharedDurations,
    pub snapshot: SharedDurations,
}

impl Default for MemberDurations {
    fn default() -> Self {
        let of = |millis, buckets| SharedDurations::new(Duration::from_millis(millis), buckets);
        Self { defrag: of(100, 13), hash: of(10, 15), hash_rev: of(10, 15), snapshot: of(10, 17) }
    }
}

/// What one method has seen on one thread.
#[derive(Debug, Default)]
pub struct RpcCounters {
    pub started: Counter,
    pub received: Counter,
    pub sent: Counter,
    /// By code number.
    pub handled: [Counter; CODE_NAMES.len()],
}

/// Versions `3.0` to `3.9` are told apart in a label, all others are `unknown`: a label must not grow with what
/// clients send.
const API_VERSIONS: usize = 11;

/// Methods whose requests are timed, with etcd's names for them.
const REQUESTS: &[(Rpc, &str)] = &[
    (Rpc::Range, "Range"),
    (Rpc::Put, "Put"),
    (Rpc::DeleteRange, "DeleteRange"),
    (Rpc::Txn, "Txn"),
    (Rpc::Compact, "Compaction"),
    (Rpc::LeaseGrant, "LeaseGrant"),
    (Rpc::LeaseRevoke, "LeaseRevoke"),
    (Rpc::Alarm, "Alarm"),
    (Rpc::Authenticate, "Authenticate"),
    (Rpc::AuthEnable, "AuthEnable"),
    (Rpc::AuthDisable, "AuthDisable"),
    (Rpc::AuthStatus, "AuthStatus"),
    (Rpc::UserAdd, "AuthUserAdd"),
    (Rpc::UserDelete, "AuthUserDelete"),
    (Rpc::UserGet, "AuthUserGet"),
    (Rpc::UserChangePassword, "AuthUserChangePassword"),
    (Rpc::UserGrantRole, "AuthUserGrantRole"),
    (Rpc::UserRevokeRole, "AuthUserRevokeRole"),
    (Rpc::UserList, "AuthUserList"),
    (Rpc::RoleList, "AuthRoleList"),
    (Rpc::RoleAdd, "AuthRoleAdd"),
    (Rpc::RoleDelete, "AuthRoleDelete"),
    (Rpc::RoleGet, "AuthRoleGet"),
    (Rpc::RoleGrantPermission, "AuthRoleGrantPermission"),
    (Rpc::RoleRevokePermission, "AuthRoleRevokePermission"),
];
/// Transactions that only read; behind the others.
const READ_ONLY_TXN: &str = "ReadonlyTxn";

/// Health checks by name.
pub const CHECKS: [&str; 4] = ["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

/// One health check on one thread.
#[derive(Debug, Default)]
struct CheckCounters {
    succeeded: Counter,
    failed: Counter,
}

/// What one net thread counts.
#[derive(Debug)]
pub struct NetCounters {
    rpcs: Vec<RpcCounters>,
    /// By unary or stream, and by client API version.
    client_requests: [[Counter; API_VERSIONS]; 2],
    pub received_bytes: Counter,
    pub sent_bytes: Counter,
    pub health_success: Counter,
    pub health_failures: Counter,
    /// Requests by kind of [`REQUESTS`]: failed, succeeded.
    requests: Vec<[Histogram; 2]>,
    /// Ranges: failed, succeeded.
    ranges: [Histogram; 2],
    /// From begin to end of each method's calls; only if they are wanted.
    handling: Option<Vec<Histogram>>,
    /// Reads that took longer than the member is told to warn of.
    pub slow_reads: Counter,
    /// Health checks: `livez` or `readyz`, and which of [`CHECKS`].
    checks: [[CheckCounters; CHECKS.len()]; 2],
    /// Answers to scrapes.
    pub scrapes: Counter,
    /// Connections open now.
    pub connections: AtomicU64,
    /// TLS handshakes of clients.
    pub handshakes: Counter,
    pub handshake_failures: Counter,
}

impl NetCounters {
    /// All zero. `handling`: whether calls are timed by method.
    pub fn new(handling: bool) -> Arc<Self> {
        let pair = |bounds| [Histogram::new(bounds), Histogram::new(bounds)];
        let calls = || Rpc::ALL.iter().map(|_| Histogram::new(&histogram::USUAL)).collect();
        Arc::new(Self {
            rpcs: Rpc::ALL.iter().map(|_| RpcCounters::default()).collect(),
            client_requests: Default::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            health_success: Counter::default(),
            health_failures: Counter::default(),
            requests: (0..=REQUESTS.len()).map(|_| pair(&histogram::MILLIS)).collect(),
            ranges: pair(&histogram::TENTHS),
            handling: handling.then(calls),
            slow_reads: Counter::default(),
            checks: Default::default(),
            scrapes: Counter::default(),
            connections: AtomicU64::new(0),
            handshakes: Counter::default(),
            handshake_failures: Counter::default(),
        })
    }

    /// The counters of one method.
    pub fn rpc(&self, rpc: Rpc) -> &RpcCounters {
        &self.rpcs[rpc as usize]
    }

    /// Counts how long a request took, if its method is one that is timed.
    pub fn request(&self, rpc: Rpc, is_read_only_txn: bool, succeeded: bool, took: Duration) {
        let found = REQUESTS.iter().position(|(timed, _)| *timed == rpc);
        let Some(kind) = found.map(|kind| if is_read_only_txn { REQUESTS.len() } else { kind }) else { return };
        self.requests[kind][usize::from(succeeded)].observe_duration(took);
        if rpc == Rpc::Range {
            self.ranges[usize::from(succeeded)].observe_duration(took);
        }
    }

    /// Whether calls are timed by method.
    pub fn times_calls(&self) -> bool {
        self.handling.is_some()
    }

    /// Counts how long a call took from its begin to its end.
    pub fn call(&self, rpc: Rpc, took: Duration) {
        if let Some(handling) = &self.handling {
            handling[rpc as usize].observe_duration(took);
        }
    }

    /// Counts a health check, by its name in [`CHECKS`].
    pub fn check(&self, is_readyz: bool, name: &str, succeeded: bool) {
        let Some(check) = CHECKS.iter().position(|check| *check == name) else { return };
        let counters = &self.checks[usize::from(is_readyz)][check];
        if succeeded { counters.succeeded.add(1) } else { counters.failed.add(1) }
    }

    /// Counts a request by kind and by the client's API version.
    pub fn client_request(&self, kind: RpcKind, version: Option<&str>) {
        let known = version.and_then(|version| match version.as_bytes() {
            [b'3', b'.', minor @ b'0'..=b'9'] => Some(usize::from(minor - b'0')),
            _ => None,
        });
        self.client_requests[usize::from(kind != RpcKind::Unary)][known.unwrap_or(API_VERSIONS - 1)].add(1);
    }
}

/// What the rest of the member knows when it is asked. Times in seconds, sizes in bytes.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub member_id: u64,
    pub has_leader: bool,
    pub is_leader: bool,
    pub is_learner: bool,
    pub leader_changes: u64,
    /// Learners promoted, and refused by reason.
    pub promotions: (u64, [u64; PROMOTION_FAILURES.len()]),
    pub proposals_committed: u64,
    pub proposals_applied: u64,
    pub proposals_pending: u64,
    /// Negative: none.
    pub quota_bytes: i64,
    /// Proposals failed, read barriers failed, read barriers that took long.
    pub failures: [u64; 3],
    pub lease_expired: u64,
    pub lease_renewed: u64,
    pub gates: FeatureGates,
    /// Every member's id, this one's too.
    pub members: Vec<u64>,
    /// The traffic with the others.
    pub peers: Vec<daymark_raft::PeerTraffic>,

    pub applied: AppliedSample,
    pub current_revision: i64,
    pub auth_revision: u64,
    pub compact_revision: i64,
    pub db_bytes: u64,
    pub db_bytes_in_use: u64,
    pub alarms: Arc<Vec<pb::AlarmMember>>,
    pub watch_streams: u64,
    pub watchers: u64,
    pub slow_watchers: u64,
    /// Events handed to watchers, and revisions that threads with watchers have not looked at yet.
    pub events_sent: u64,
    pub events_pending: u64,

    pub defrag_inflight: bool,
    pub defrag: HistogramSample,
    pub hash: HistogramSample,
    pub hash_rev: HistogramSample,
    pub snapshot: HistogramSample,

    pub wal_fsync: HistogramSample,
    pub wal_write: HistogramSample,
    pub wal_write_bytes: u64,
    pub log_lines_dropped: u64,
}

/// Asks the rest of the member for its numbers; called once a scrape, on a net thread.
pub type Source = Arc<dyn Fn() -> Sample + Send + Sync>;

/// All counters of one member. Shared by its net threads; each writes only its own.
pub struct Metrics {
    net: Vec<Arc<NetCounters>>,
    source: Source,
    /// Last result of each health check, of whichever thread: 1 is good.
    check_states: [[AtomicU8; CHECKS.len()]; 2],
    start: SystemTime,
    server_version: &'static str,
    cluster_version: &'static str,
}

impl Metrics {
    /// Metrics of a member with that many net threads.
    pub fn new(net_threads: usize, source: Source) -> Arc<Self> {
        Self::build(net_threads, source, false)
    }

    /// The same with the duration of each method's calls.
    pub fn extensive(net_threads: usize, source: Source) -> Arc<Self> {
        Self::build(net_threads, source, true)
    }

    fn build(net_threads: usize, source: Source, handling: bool) -> Arc<Self> {
        let net = (0..net_threads).map(|_| NetCounters::new(handling)).collect();
        let (server_version, cluster_version) = (crate::ETCD_VERSION, crate::CLUSTER_VERSION);
        let check_states = Default::default();
        Arc::new(Self { net, source, check_states, start: SystemTime::now(), server_version, cluster_version })
    }

    /// Keeps the result of a health check.
    pub fn set_check(&self, is_readyz: bool, name: &str, succeeded: bool) {
        if let Some(check) = CHECKS.iter().position(|check| *check == name) {
            self.check_states[usize::from(is_readyz)][check].store(u8::from(succeeded), Ordering::Relaxed);
        }
    }

    /// The counters of one net thread.
    pub fn net(&self, thread: usize) -> &Arc<NetCounters> {
        &self.net[thread]
    }

    /// Everything in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut families = Families::default();
        let sample = (self.source)();
        self.server(&mut families, &sample);
        self.requests(&mut families, &sample);
        self.checks(&mut families);
        features(&mut families, &sample.gates);
        peers(&mut families, &sample);
        traffic::families(&mut families, &sample);
        let ranges = self.net.iter().map(|net| net.rpc(Rpc::Range).handled[0].value()).sum::<u64>();
        families.counter("etcd_mvcc_range_total", "ranges", ranges + sample.applied.ranges);
        storage(&mut families, &sample);
        self.network(&mut families);
        self.process(&mut families);
        let encoder = TextEncoder::new();
        let mut text = String::new();
        // Only a family without metrics could be refused, and none is built.
        match encoder.encode_utf8(&families.0, &mut text) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }

    fn server(&self, families: &mut Families, s: &Sample) {
        let flag = |set: bool| f64::from(u8::from(set));
        families.gauge("etcd_server_has_leader", "whether a leader exists", flag(s.has_leader));
        families.gauge("etcd_server_is_leader", "whether this member leads", flag(s.is_leader));
        families.gauge("etcd_server_is_learner", "whether this member is a learner", flag(s.is_learner));
        families.counter("etcd_server_leader_changes_seen_total", "leader changes seen", s.leader_changes);
        families.gauge("etcd_server_proposals_committed_total", "committed log index", s.proposals_committed as f64);
        families.gauge("etcd_server_proposals_applied_total", "applied log index", s.proposals_applied as f64);
        families.gauge("etcd_server_proposals_pending", "proposals under way", s.proposals_pending as f64);
        families.gauge("etcd_server_quota_backend_bytes", "size limit of the data", s.quota_bytes as f64);
        let alarms: Vec<_> = s.alarms.iter().map(|alarm| (format!("{:x}", alarm.member_id), alarm.alarm())).collect();
        let rows =
            alarms.iter().map(|(id, alarm)| (vec![("alarm_type", alarm.as_str_name()), ("server_id", &**id)], 1.0));
        families.labelled("etcd_debugging_server_alarms", "active alarms", MetricType::GAUGE, rows);
        let id = format!("{:x}", s.member_id);
        families.labelled("etcd_server_id", "id of this member", MetricType::GAUGE, [(vec![("server_id", &*id)], 1.0)]);
        let version = [(vec![("server_version", self.server_version)], 1.0)];
        families.labelled("etcd_server_version", "version of the API served", MetricType::GAUGE, version);
        let version = [(vec![("cluster_version", self.cluster_version)], 1.0)];
        families.labelled("etcd_cluster_version", "version of the cluster", MetricType::GAUGE, version);
        let health = |count: fn(&NetCounters) -> &Counter| self.net.iter().map(|net| count(net).value()).sum();
        families.counter("etcd_server_health_success", "health checks passed", health(|net| &net.health_success));
        families.counter("etcd_server_health_failures", "health checks failed", health(|net| &net.health_failures));
        families.counter("etcd_debugging_server_lease_expired_total", "leases expired", s.lease_expired);
        families.counter("etcd_debugging_lease_granted_total", "leases granted", s.applied.leases_granted);
        families.counter("etcd_debugging_lease_revoked_total", "leases revoked", s.applied.leases_revoked);
        families.counter("etcd_debugging_lease_renewed_total", "leases renewed", s.lease_renewed);
        families.histogram("etcd_debugging_lease_ttl_total", "time to live of leases, seconds", &s.applied.lease_ttls);
        let [proposals, read_indexes, slow_read_indexes] = s.failures;
        families.counter("etcd_server_proposals_failed_total", "commands that were not applied in time", proposals);
        families.counter("etcd_server_read_indexes_failed_total", "read barriers not confirmed", read_indexes);
        families.counter("etcd_server_slow_read_indexes_total", "read barriers that took long", slow_read_indexes);
        let slow_reads = self.net.iter().map(|net| net.slow_reads.value()).sum::<u64>();
        let help = "write batches and reads above --warning-apply-duration";
        families.counter("etcd_server_slow_apply_total", help, s.applied.slow + slow_reads);
        families.counter("daymark_log_lines_dropped_total", "log lines given up", s.log_lines_dropped);
    }

    /// How long requests took: by kind, ranges, and what apply did.
    fn requests(&self, families: &mut Families, s: &Sample) {
        let names = REQUESTS.iter().map(|(_, name)| *name).chain([READ_ONLY_TXN]);
        let kinds = names.enumerate().flat_map(|(kind, name)| [(kind, name, false), (kind, name, true)]);
        let rows = kinds.filter_map(|(kind, name, succeeded)| {
            let sample = HistogramSample::sum(self.net.iter().map(|net| &net.requests[kind][usize::from(succeeded)]));
            (sample.count > 0)
                .then(|| histogram_metric(&sample, vec![label("success", truth(succeeded)), label("type", name)]))
        });
        let name = "etcd_server_request_duration_seconds";
        families.add(name, "duration of requests", MetricType::HISTOGRAM, rows.collect());
        let rows = [false, true].into_iter().filter_map(|succeeded| {
            let sample = HistogramSample::sum(self.net.iter().map(|net| &net.ranges[usize::from(succeeded)]));
            (sample.count > 0).then(|| histogram_metric(&sample, vec![label("success", truth(succeeded))]))
        });
        let name = "etcd_server_range_duration_seconds";
        families.add(name, "duration of ranges", MetricType::HISTOGRAM, rows.collect());
        let rows = s.applied.operations.iter().map(|(name, succeeded, sample)| {
            let labels = [("op", *name), ("success", truth(*succeeded)), ("version", "v3")];
            histogram_metric(sample, labels.map(|(name, value)| label(name, value)).to_vec())
        });
        let name = "etcd_server_apply_duration_seconds";
        families.add(name, "duration of applying a command", MetricType::HISTOGRAM, rows.collect());
    }

    fn checks(&self, families: &mut Families) {
        let mut totals = Vec::new();
        let mut last = Vec::new();
        for (place, kind) in ["livez", "readyz"].into_iter().enumerate() {
            for (check, name) in CHECKS.into_iter().enumerate() {
                let sum = |count: fn(&CheckCounters) -> &Counter| -> u64 {
                    self.net.iter().map(|net| count(&net.checks[place][check]).value()).sum()
                };
                let (succeeded, failed) = (sum(|check| &check.succeeded), sum(|check| &check.failed));
                for (status, count) in [("error", failed), ("success", succeeded)] {
                    if count > 0 {
                        totals.push((vec![("name", name), ("status", status), ("type", kind)], count as f64));
                    }
                }
                let state = self.check_states[place][check].load(Ordering::Relaxed);
                if succeeded + failed > 0 {
                    last.push((vec![("name", name), ("type", kind)], f64::from(state)));
                }
            }
        }
        families.labelled("etcd_server_healthcheck", "last result of each health check", MetricType::GAUGE, last);
        let help = "health checks by result";
        families.labelled("etcd_server_healthchecks_total", help, MetricType::COUNTER, totals);
    }

    fn network(&self, families: &mut Families) {
        let sum = |count: fn(&NetCounters) -> &Counter| self.net.iter().map(|net| count(net).value()).sum();
        let received = sum(|net| &net.received_bytes);
        families.counter("etcd_network_client_grpc_received_bytes_total", "bytes of requests", received);
        families.counter("etcd_network_client_grpc_sent_bytes_total", "bytes of responses", sum(|net| &net.sent_bytes));
        let connections = self.net.iter().map(|net| net.connections.load(Ordering::Relaxed)).sum::<u64>();
        families.gauge("daymark_net_connections", "open client connections", connections as f64);
        let handshakes = sum(|net| &net.handshakes);
        families.counter("daymark_tls_handshakes_total", "TLS handshakes of clients", handshakes);
        let failures = sum(|net| &net.handshake_failures);
        families.counter("daymark_tls_handshake_failures_total", "TLS handshakes of clients that failed", failures);
        self.client_requests(families);
        self.rpcs(families);
        let scrapes = self.net.iter().map(|net| net.scrapes.value()).sum::<u64>();
        let rows = [("200", scrapes), ("500", 0), ("503", 0)].map(|(code, count)| (vec![("code", code)], count as f64));
        families.labelled("promhttp_metric_handler_requests_total", "scrapes by code", MetricType::COUNTER, rows);
        families.gauge("promhttp_metric_handler_requests_in_flight", "scrapes under way, this one", 1.0);
    }

    fn client_requests(&self, families: &mut Families) {
        let mut rows = Vec::new();
        for (kind, name) in ["unary", "stream"].into_iter().enumerate() {
            for version in 0..API_VERSIONS {
                let count: u64 = self.net.iter().map(|net| net.client_requests[kind][version].value()).sum();
                let version = if version + 1 == API_VERSIONS { "unknown".into() } else { format!("3.{version}") };
                if count > 0 {
                    rows.push((name, version, count));
                }
            }
        }
        let rows = rows.iter().map(|(name, version, count)| {
            (vec![("client_api_version", version.as_str()), ("type", *name)], *count as f64)
        });
        families.labelled("etcd_server_client_requests_total", "requests by client version", MetricType::COUNTER, rows);
    }

    fn rpcs(&self, families: &mut Families) {
        let sum = |rpc: Rpc, count: &dyn Fn(&RpcCounters) -> u64| -> f64 {
            self.net.iter().map(|net| count(net.rpc(rpc))).sum::<u64>() as f64
        };
        type Count = fn(&RpcCounters) -> &Counter;
        let plain: [(&str, &str, Count); 3] = [
            ("grpc_server_started_total", "calls begun", |rpc| &rpc.started),
            ("grpc_server_msg_received_total", "messages received", |rpc| &rpc.received),
            ("grpc_server_msg_sent_total", "messages sent", |rpc| &rpc.sent),
        ];
        for (name, help, count) in plain {
            let rows = Rpc::ALL.iter().map(|rpc| (rpc_labels(*rpc), sum(*rpc, &|rpc| count(rpc).value())));
            families.labelled(name, help, MetricType::COUNTER, rows);
        }
        let rows = Rpc::ALL.iter().flat_map(|rpc| {
            CODE_NAMES.iter().enumerate().map(move |(code, name)| {
                let mut labels = rpc_labels(*rpc);
                labels.insert(0, ("grpc_code", *name));
                (labels, sum(*rpc, &|rpc| rpc.handled[code].value()))
            })
        });
        families.labelled("grpc_server_handled_total", "calls ended, by code", MetricType::COUNTER, rows);
        let rows = Rpc::ALL.iter().filter_map(|rpc| {
            let sample =
                HistogramSample::sum(self.net.iter().filter_map(|net| net.handling.as_ref()?.get(*rpc as usize)));
            let labels = rpc_labels(*rpc).into_iter().map(|(name, value)| label(name, value)).collect();
            (!sample.cumulative.is_empty()).then(|| histogram_metric(&sample, labels))
        });
        let rows = rows.collect();
        families.add("grpc_server_handling_seconds", "duration of calls", MetricType::HISTOGRAM, rows);
    }

    fn process(&self, families: &mut Families) {
        let process = Process::read();
        families.gauge("process_resident_memory_bytes", "resident memory", process.resident_bytes as f64);
        families.gauge("process_virtual_memory_bytes", "virtual memory", process.virtual_bytes as f64);
        families.gauge("process_virtual_memory_max_bytes", "limit of virtual memory", process.virtual_bytes_max);
        let (received, sent) = (process.received_bytes, process.sent_bytes);
        families.counter("process_network_receive_bytes_total", "bytes received in this network namespace", received);
        families.counter("process_network_transmit_bytes_total", "bytes sent in this network namespace", sent);
        families.gauge("process_open_fds", "open files", process.open_files as f64);
        families.gauge("process_max_fds", "limit of open files", process.files_max as f64);
        families.gauge("os_fd_used", "open files", process.open_files as f64);
        families.gauge("os_fd_limit", "limit of open files", process.files_max as f64);
        families.value("process_cpu_seconds_total", "CPU time", MetricType::COUNTER, process.cpu_seconds);
        families.gauge("process_threads", "threads", process.threads as f64);
        let start = self.start.duration_since(UNIX_EPOCH).unwrap_or_default();
        families.gauge("process_start_time_seconds", "start, seconds since 1970", start.as_secs_f64());
    }
}

fn storage(families: &mut Families, s: &Sample) {
    families.counter("etcd_mvcc_put_total", "puts", s.applied.puts);
    families.counter("etcd_mvcc_delete_total", "deletes", s.applied.deletes);
    families.counter("etcd_mvcc_txn_total", "transactions", s.applied.txns);
    let name = "etcd_debugging_mvcc_total_put_size_in_bytes";
    families.gauge(name, "keys and values put", s.applied.put_bytes as f64);
    families.counter("etcd_debugging_mvcc_events_total", "events handed to watchers", s.events_sent);
    let help = "revisions that watchers have not been looked at for";
    families.gauge("etcd_debugging_mvcc_pending_events_total", help, s.events_pending as f64);
    let last = s.applied.last_compaction_secs as f64;
    families.gauge("etcd_debugging_mvcc_db_compaction_last", "last compaction, seconds since 1970", last);
    let name = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds";
    families.histogram(name, "duration of compactions", &s.applied.compactions);
    families.histogram("etcd_disk_backend_commit_duration_seconds", "writes of a batch", &s.applied.commits);
    families.histogram("etcd_disk_wal_write_duration_seconds", "writes of the log", &s.wal_write);
    families.gauge("etcd_mvcc_db_total_size_in_bytes", "size on disk", s.db_bytes as f64);
    families.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "size in use", s.db_bytes_in_use as f64);
    families.gauge("etcd_debugging_mvcc_current_revision", "current revision", s.current_revision as f64);
    families.gauge("etcd_debugging_auth_revision", "revision of users and roles", s.auth_revision as f64);
    families.gauge("etcd_debugging_mvcc_compact_revision", "compact revision", s.compact_revision as f64);
    families.gauge("etcd_debugging_mvcc_watch_stream_total", "watch streams", s.watch_streams as f64);
    families.gauge("etcd_debugging_mvcc_watcher_total", "watchers", s.watchers as f64);
    families.gauge("etcd_debugging_mvcc_slow_watcher_total", "watchers behind", s.slow_watchers as f64);
    families.histogram("etcd_disk_wal_fsync_duration_seconds", "syncs of the log", &s.wal_fsync);
    families.gauge(
        "etcd_disk_defrag_inflight",
        "whether space is being given back",
        f64::from(u8::from(s.defrag_inflight)),
    );
    families.histogram("etcd_disk_backend_defrag_duration_seconds", "giving back space", &s.defrag);
    families.histogram("etcd_disk_backend_snapshot_duration_seconds", "making and sending of snapshots", &s.snapshot);
    families.histogram("etcd_mvcc_hash_duration_seconds", "hashing of everything", &s.hash);
    families.histogram("etcd_mvcc_hash_rev_duration_seconds", "hashing of the keys at a revision", &s.hash_rev);
    families.gauge("etcd_disk_wal_write_bytes_total", "bytes written to the log", s.wal_write_bytes as f64);
}

fn features(families: &mut Families, gates: &FeatureGates) {
    let rows = gates.all().map(|(gate, open)| (gate.name, gate.stage, open));
    // The groups themselves have no state here.
    let rows = [("AllAlpha", "ALPHA", false), ("AllBeta", "BETA", false)].into_iter().chain(rows);
    let rows = rows.map(|(name, stage, open)| (vec![("name", name), ("stage", stage)], f64::from(u8::from(open))));
    families.labelled("etcd_server_feature_enabled", "feature gates: 1 is open", MetricType::GAUGE, rows);
}

/// Members as this one knows them, itself included, as in etcd. What is counted between members is zero as long as
/// there is only one.
fn peers(families: &mut Families, s: &Sample) {
    let local = format!("{:x}", s.member_id);
    let remotes: Vec<String> = s.members.iter().map(|id| format!("{id:x}")).collect();
    let rows = remotes.iter().map(|remote| (vec![("Local", &*local), ("Remote", &**remote)], 1.0));
    families.labelled("etcd_network_known_peers", "members known", MetricType::GAUGE, rows);
    let (promoted, failed) = &s.promotions;
    families.counter("etcd_server_learner_promote_successes", "learners promoted", *promoted);
    let failed = PROMOTION_FAILURES.iter().zip(failed).filter(|(_, count)| **count > 0);
    let rows = failed.map(|(reason, count)| (vec![("Reason", *reason)], *count as f64));
    families.labelled("etcd_server_learner_promote_failures", "learners not promoted", MetricType::COUNTER, rows);
    if s.members.len() == 1 {
        families.gauge("etcd_server_snapshot_apply_in_progress_total", "snapshots being installed", 0.0);
    }
}

fn truth(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

fn rpc_labels(rpc: Rpc) -> Vec<(&'static str, &'static str)> {
    vec![("grpc_method", rpc.method()), ("grpc_service", rpc.service()), ("grpc_type", rpc.kind().label())]
}

/// Metric families under construction.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn add(&mut self, name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) {
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.into());
        family.set_help(help.into());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    fn labelled<'a>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        rows: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
    ) {
        let metrics = rows.into_iter().map(|(labels, value)| {
            let labels = labels.into_iter().map(|(name, value)| label(name, value)).collect();
            number_metric(kind, value, labels)
        });
        self.add(name, help, kind, metrics.collect());
    }

    fn value(&mut self, name: &str, help: &str, kind: MetricType, value: f64) {
        self.add(name, help, kind, vec![number_metric(kind, value, Vec::new())]);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.value(name, help, MetricType::GAUGE, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.value(name, help, MetricType::COUNTER, value as f64);
    }

    fn histogram(&mut self, name: &str, help: &str, sample: &HistogramSample) {
        self.add(name, help, MetricType::HISTOGRAM, vec![histogram_metric(sample, Vec::new())]);
    }
}

fn label(name: &str, value: &str) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name.into());
    pair.set_value(value.into());
    pair
}

fn number_metric(kind: MetricType, value: f64, labels: Vec<LabelPair>) -> Metric {
    let mut metric = Metric::from_label(labels);
    match kind {
        MetricType::COUNTER => {
            let mut counter = CounterValue::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        _ => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }
    metric
}

fn histogram_metric(sample: &HistogramSample, labels: Vec<LabelPair>) -> Metric {
    let mut metric = Metric::from_label(labels);
    let mut histogram = HistogramValue::default();
    histogram.set_sample_count(sample.count);
    histogram.set_sample_sum(sample.sum);
    let buckets = sample.cumulative.iter().map(|(bound, count)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound);
        bucket.set_cumulative_count(*count);
        bucket
    });
    histogram.set_bucket(buckets.collect());
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Arc<Metrics> {
        let fsync = HistogramSample { cumulative: vec![(0.001, 3), (0.002, 4)], count: 5, sum: 0.25 };
        let sample = Sample {
            member_id: 0xab,
            has_leader: true,
            promotions: (0, [0; PROMOTION_FAILURES.len()]),
            wal_fsync: fsync,
            applied: AppliedSample { puts: 7, ranges: 3, ..AppliedSample::default() },
            members: vec![0xab],
            ..Sample::default()
        };
        Metrics::new(2, Arc::new(move || sample.clone()))
    }

    /// Every line is a comment or `name{labels} number`, every family is announced once, before its values.
    #[test]
    fn the_text_parses() {
        let text = metrics().text();
        let mut announced = std::collections::BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                assert!(announced.insert(rest.split(' ').next().expect("name").to_owned()), "{line} twice");
                continue;
            }
            if line.starts_with('#') {
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect("series and value");
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            let name = series.split('{').next().expect("name");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let known = announced.contains(name) || family.is_some_and(|family| announced.contains(family));
            assert!(known, "{line} is not announced");
        }
        assert!(announced.len() > 45, "{}", announced.len());
    }

    #[test]
    fn threads_are_summed_and_combinations_start_at_zero() {
        let metrics = metrics();
        for thread in 0..2 {
            metrics.net(thread).rpc(Rpc::Put).started.add(2);
            metrics.net(thread).rpc(Rpc::Put).handled[8].add(1);
            metrics.net(thread).rpc(Rpc::Range).handled[0].add(1);
            metrics.net(thread).client_request(RpcKind::Unary, Some("3.7"));
            metrics.net(thread).client_request(RpcKind::BidiStream, Some("../../etc"));
        }
        let text = metrics.text();
        let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        for line in [
            &format!("grpc_server_started_total{{{put}}} 4"),
            &format!("grpc_server_handled_total{{grpc_code=\"ResourceExhausted\",{put}}} 2"),
            &format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}} 0"),
            "etcd_server_client_requests_total{client_api_version=\"3.7\",type=\"unary\"} 2",
            "etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"stream\"} 2",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.002\"} 4",
            "etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"} 5",
            "etcd_server_id{server_id=\"ab\"} 1",
            "etcd_server_has_leader 1",
            "etcd_mvcc_put_total 7",
            "etcd_mvcc_range_total 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing");
        }
    }

    #[test]
    fn requests_are_timed_by_kind_and_calls_only_if_wanted() {
        let metrics = metrics();
        let took = Duration::from_micros(1500);
        metrics.net(0).request(Rpc::Txn, true, true, took);
        metrics.net(1).request(Rpc::Txn, false, false, took);
        metrics.net(1).request(Rpc::Range, false, true, took);
        metrics.net(1).request(Rpc::MemberList, false, true, took);
        metrics.net(0).call(Rpc::Put, took);
        metrics.net(0).check(true, "non_learner", false);
        metrics.set_check(true, "non_learner", false);
        let text = metrics.text();
        for line in [
            "etcd_server_request_duration_seconds_bucket{success=\"true\",type=\"ReadonlyTxn\",le=\"0.002\"} 1",
            "etcd_server_request_duration_seconds_count{success=\"false\",type=\"Txn\"} 1",
            "etcd_server_range_duration_seconds_bucket{success=\"true\",le=\"0.0016\"} 1",
            "etcd_server_healthcheck{name=\"non_learner\",type=\"readyz\"} 0",
            "etcd_server_healthchecks_total{name=\"non_learner\",status=\"error\",type=\"readyz\"} 1",
            "etcd_server_feature_enabled{name=\"FastLeaseKeepAlive\",stage=\"BETA\"} 1",
            "etcd_network_known_peers{Local=\"ab\",Remote=\"ab\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
        assert!(!text.contains("MemberList\"} 1") && !text.contains("grpc_server_handling_seconds"));
        let extensive = Metrics::extensive(1, Arc::new(Sample::default));
        extensive.net(0).call(Rpc::Put, took);
        let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        let text = extensive.text();
        assert!(text.contains(&format!("grpc_server_handling_seconds_bucket{{{put},le=\"0.005\"}} 1")), "{text}");
    }
}
