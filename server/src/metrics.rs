//! Every metric, declared once, under etcd's names. Counted by the thread that sees the event, summed when scraped:
//! nothing here is locked or shared between writers. What does not exist here, or nothing counts, is left out: a zero
//! would be a claim.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter as CounterValue, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use daymark_api::etcdserverpb as pb;

use crate::rpc::{Rpc, RpcKind};

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

/// Upper bounds of etcd's usual duration histogram, in microseconds: 1 ms times 2^i.
const REQUEST_BUCKETS: usize = 14;

/// Durations seen by one thread, in buckets of 1 ms x 2^i.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [Counter; REQUEST_BUCKETS],
    count: Counter,
    nanos: Counter,
}

impl Durations {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let millis = duration.as_micros().div_ceil(1000).max(1) as u64;
        let bucket = (u64::BITS - (millis - 1).leading_zeros()) as usize;
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add(1);
        }
        self.count.add(1);
        self.nanos.add(duration.as_nanos() as u64);
    }

    fn sum(all: &[&Self]) -> HistogramSample {
        let mut cumulative = 0;
        let buckets = (0..REQUEST_BUCKETS).map(|i| {
            cumulative += all.iter().map(|one| one.buckets[i].value()).sum::<u64>();
            (0.001 * f64::from(1_u32 << i), cumulative)
        });
        HistogramSample {
            cumulative: buckets.collect(),
            count: all.iter().map(|one| one.count.value()).sum(),
            sum: all.iter().map(|one| one.nanos.value()).sum::<u64>() as f64 / 1e9,
        }
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

/// What apply has done since the start; only its thread counts.
#[derive(Debug, Default)]
pub struct AppliedCounters {
    pub puts: Counter,
    pub deletes: Counter,
    pub ranges: Counter,
    /// Transactions of more than one operation.
    pub txns: Counter,
    pub leases_granted: Counter,
    /// However they ended.
    pub leases_revoked: Counter,
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
    /// Unary requests, by whether they succeeded.
    pub succeeded: Durations,
    pub failed: Durations,
    /// Connections open now.
    pub connections: AtomicU64,
    /// TLS handshakes of clients.
    pub handshakes: Counter,
    pub handshake_failures: Counter,
}

impl NetCounters {
    /// All zero.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            rpcs: Rpc::ALL.iter().map(|_| RpcCounters::default()).collect(),
            client_requests: Default::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            health_success: Counter::default(),
            health_failures: Counter::default(),
            succeeded: Durations::default(),
            failed: Durations::default(),
            connections: AtomicU64::new(0),
            handshakes: Counter::default(),
            handshake_failures: Counter::default(),
        })
    }

    /// The counters of one method.
    pub fn rpc(&self, rpc: Rpc) -> &RpcCounters {
        &self.rpcs[rpc as usize]
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

/// A histogram as it stands: upper bounds with cumulative counts, in ascending order.
#[derive(Clone, Debug, Default)]
pub struct HistogramSample {
    pub cumulative: Vec<(f64, u64)>,
    pub count: u64,
    pub sum: f64,
}

/// What the rest of the member knows when it is asked. Times in seconds, sizes in bytes.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub member_id: u64,
    pub has_leader: bool,
    pub is_leader: bool,
    pub is_learner: bool,
    pub leader_changes: u64,
    pub proposals_committed: u64,
    pub proposals_applied: u64,
    pub proposals_pending: u64,
    /// Negative: none.
    pub quota_bytes: i64,
    pub lease_expired: u64,
    pub lease_granted: u64,
    pub lease_revoked: u64,
    pub lease_renewed: u64,

    /// Operations that apply has done, those in transactions included.
    pub puts: u64,
    pub deletes: u64,
    /// Ranges in transactions that write.
    pub ranges_applied: u64,
    /// Transactions of more than one operation that write.
    pub txns: u64,
    pub current_revision: i64,
    pub auth_revision: u64,
    pub compact_revision: i64,
    pub db_bytes: u64,
    pub db_bytes_in_use: u64,
    pub alarms: Arc<Vec<pb::AlarmMember>>,
    pub watch_streams: u64,
    pub watchers: u64,
    pub slow_watchers: u64,

    pub defrag_inflight: bool,
    pub defrag: HistogramSample,
    pub hash: HistogramSample,
    pub hash_rev: HistogramSample,
    pub snapshot: HistogramSample,

    pub wal_fsync: HistogramSample,
    pub wal_write_bytes: u64,
}

/// Asks the rest of the member for its numbers; called once a scrape, on a net thread.
pub type Source = Arc<dyn Fn() -> Sample + Send + Sync>;

/// All counters of one member. Shared by its net threads; each writes only its own.
pub struct Metrics {
    net: Vec<Arc<NetCounters>>,
    source: Source,
    start: SystemTime,
    server_version: &'static str,
    cluster_version: &'static str,
}

impl Metrics {
    /// Metrics of a member with that many net threads.
    pub fn new(net_threads: usize, source: Source) -> Arc<Self> {
        let net = (0..net_threads).map(|_| NetCounters::new()).collect();
        let (server_version, cluster_version) = (crate::ETCD_VERSION, crate::CLUSTER_VERSION);
        Arc::new(Self { net, source, start: SystemTime::now(), server_version, cluster_version })
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
        let ranges = self.net.iter().map(|net| net.rpc(Rpc::Range).handled[0].value()).sum::<u64>();
        families.counter("etcd_mvcc_range_total", "ranges", ranges + sample.ranges_applied);
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
        families.counter("etcd_debugging_lease_granted_total", "leases granted", s.lease_granted);
        families.counter("etcd_debugging_lease_revoked_total", "leases revoked", s.lease_revoked);
        families.counter("etcd_debugging_lease_renewed_total", "leases renewed", s.lease_renewed);
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
        let durations = [("true", Durations::sum(&self.net.iter().map(|net| &net.succeeded).collect::<Vec<_>>()))];
        let failed = [("false", Durations::sum(&self.net.iter().map(|net| &net.failed).collect::<Vec<_>>()))];
        let both = durations.into_iter().chain(failed).map(|(success, sample)| {
            histogram_metric(&sample, vec![label("success", success), label("type", "unary")])
        });
        families.add(
            "etcd_server_request_duration_seconds",
            "duration of requests",
            MetricType::HISTOGRAM,
            both.collect(),
        );
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
    }

    fn process(&self, families: &mut Families) {
        let process = Process::read();
        families.gauge("process_resident_memory_bytes", "resident memory", process.resident_bytes as f64);
        families.gauge("process_virtual_memory_bytes", "virtual memory", process.virtual_bytes as f64);
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
    families.counter("etcd_mvcc_put_total", "puts", s.puts);
    families.counter("etcd_mvcc_delete_total", "deletes", s.deletes);
    families.counter("etcd_mvcc_txn_total", "transactions", s.txns);
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
    let mut histogram = Histogram::default();
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

/// What the operating system says of this process; zeros where it says nothing.
#[derive(Debug, Default)]
struct Process {
    resident_bytes: u64,
    virtual_bytes: u64,
    cpu_seconds: f64,
    threads: u64,
    open_files: u64,
    files_max: u64,
}

impl Process {
    fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        // Lines like `VmRSS:      1234 kB`: see proc(5).
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self {
            resident_bytes: field("VmRSS:") * 1024,
            virtual_bytes: field("VmSize:") * 1024,
            cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
            threads: field("Threads:"),
            open_files: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
            files_max: limit.current.unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Arc<Metrics> {
        let fsync = HistogramSample { cumulative: vec![(0.001, 3), (0.002, 4)], count: 5, sum: 0.25 };
        let sample = Sample {
            member_id: 0xab,
            has_leader: true,
            wal_fsync: fsync,
            puts: 7,
            ranges_applied: 3,
            ..Sample::default()
        };
        Metrics::new(2, Arc::new(move || sample.clone()))
    }

    /// Every line is a comment or `name{labels} number`, every family is announced once, before its values.
    #[test]
    fn the_text_parses() {
        let text = metrics().text();
        let mut announced = std::collections::HashSet::new();
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
    fn the_process_says_what_it_uses() {
        let process = Process::read();
        assert!(process.resident_bytes > 1 << 20 && process.virtual_bytes >= process.resident_bytes, "{process:?}");
        assert!(process.threads >= 1 && process.open_files >= 3 && process.files_max >= process.open_files);
    }

    #[test]
    fn durations_fall_into_the_bucket_that_bounds_them() {
        let durations = Durations::default();
        for micros in [1, 1000, 1001, 2000, 8_192_000, 9_000_000] {
            durations.observe(Duration::from_micros(micros));
        }
        let sample = Durations::sum(&[&durations]);
        let counts: Vec<u64> = sample.cumulative.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts[0], 2, "up to 1 ms");
        assert_eq!(counts[1], 4, "up to 2 ms");
        assert_eq!(counts[13], 5, "up to 8.192 s");
        assert_eq!(sample.count, 6);
    }
}
