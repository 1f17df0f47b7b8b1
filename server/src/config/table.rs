//! Every flag: etcd's, those of its older releases that scripts still pass, and a few of our own. One row each, in the
//! groups of `--help`. A table and nothing else; how flags are read is in `flags.rs`.

use super::flags::Kind::{
    self, Bool, Choice, Duration, Gates, Ignored, Level, Signed, Text, Unsigned, Unsigned32, Urls, UrlsOrAny,
};

/// What becomes of a flag here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Handling {
    /// It does what it says.
    Used,
    /// Taken and forgotten. One warning says so, with the reason, when it is set to something else than its default.
    Accepted(&'static str),
    /// Taken and forgotten without a word, as etcd does: very old.
    Silent,
    /// The member does not start when it is set to something else than its default; the reason says what to do.
    Refused(&'static str),
}

/// One flag.
#[derive(Debug)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    pub kind: Kind,
    /// As a user would write it.
    pub default: &'static str,
    /// For `--help`.
    pub meaning: &'static str,
    pub handling: Handling,
}

/// A heading of `--help` and what stands below it.
pub struct Group {
    pub title: &'static str,
    pub flags: &'static [Flag],
}

const fn used(name: &'static str, kind: Kind, default: &'static str, meaning: &'static str) -> Flag {
    Flag { name, kind, default, meaning, handling: Handling::Used }
}

/// Without effect: the reason why follows the meaning.
const fn taken(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    meaning: &'static str,
    why: &'static str,
) -> Flag {
    Flag { name, kind, default, meaning, handling: Handling::Accepted(why) }
}

/// Refused: what to do instead follows the meaning.
const fn refused(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    meaning: &'static str,
    remedy: &'static str,
) -> Flag {
    Flag { name, kind, default, meaning, handling: Handling::Refused(remedy) }
}

const fn silent(name: &'static str) -> Flag {
    Flag { name, kind: Ignored, default: "", meaning: "ignored, as by etcd", handling: Handling::Silent }
}

/// A name of etcd up to 3.6 whose present name does the work.
const fn old(name: &'static str, kind: Kind, default: &'static str) -> Flag {
    Flag {
        name,
        kind,
        default,
        meaning: "name of the same flag without experimental- up to etcd 3.6",
        handling: Handling::Used,
    }
}

const NO_BBOLT: &str = "there is no bbolt here";
const BATCHES: &str = "each batch is committed when it is applied";
const BY_BYTES: &str = "the log is kept by bytes and by what members still need";
const COMPACTION: &str = "compaction drops whole files and does not pause";
const NOT_COMPARED: &str = "give it without experimental-: then it counts";
const NO_DOWNGRADE: &str = "no earlier version could read the data";
const NO_TRACING: &str = "traces are not sent; nothing else depends on it";
const OWN_CALL: &str = "the gateway does not connect to its own server";
const NO_DISCOVERY: &str = "there is no discovery; name the members in --initial-cluster";
const DISCOVERY: &str = "there is no discovery";
const OLD_GATE: &str = "it is a feature gate now, see --feature-gates";

#[rustfmt::skip] // A table reads by its columns.
const MEMBER: &[Flag] = &[
    used   ("name", Text, "default", "name of this member; key in --initial-cluster"),
    used   ("data-dir", Text, "", "directory of the state; empty: <name>.etcd"),
    used   ("wal-dir", Text, "", "directory of the log; empty: inside the data directory"),
    taken  ("snapshot-count", Unsigned, "10000", "applied entries between raft snapshots", BY_BYTES),
    used   ("heartbeat-interval", Unsigned, "100", "heartbeat of the leader, in milliseconds"),
    used   ("election-timeout", Unsigned, "1000", "election timeout in milliseconds; at least 5 heartbeats, at most 50000"),
    taken  ("initial-election-tick-advance", Bool, "true", "shorten the first wait for an election", "of several founders one campaigns at once"),
    used   ("listen-peer-urls", Urls, "http://localhost:2380", "where to listen for other members"),
    used   ("listen-client-urls", Urls, "http://localhost:2379", "where to listen for clients (gRPC and HTTP)"),
    used   ("listen-client-http-urls", Urls, "", "separate listeners for HTTP; those for clients then speak gRPC only"),
    taken  ("max-snapshots", Unsigned, "5", "snapshot files kept; gone in etcd 3.8", BY_BYTES),
    taken  ("max-wals", Unsigned, "5", "log files kept", BY_BYTES),
    taken  ("memory-mlock", Bool, "false", "lock pages in memory", "caches are bounded by --daymark-memory-budget-bytes instead"),
    used   ("quota-backend-bytes", Signed, "0", "size limit of the data; 0: 2 GiB, negative: none"),
    taken  ("backend-bbolt-freelist-type", Text, "", "array or map", NO_BBOLT),
    taken  ("backend-batch-interval", Duration, "0s", "time between commits of the backend", BATCHES),
    taken  ("backend-batch-limit", Signed, "0", "operations between commits of the backend", BATCHES),
    used   ("max-txn-ops", Unsigned, "128", "most operations in one transaction"),
    used   ("max-request-bytes", Unsigned, "1572864", "largest request"),
    used   ("max-concurrent-streams", Unsigned32, "4294967295", "most streams of one client connection"),
    used   ("grpc-keepalive-min-time", Duration, "5s", "least distance of a client's pings; after three that come sooner its connection is closed"),
    used   ("grpc-keepalive-interval", Duration, "2h", "idle time after which the server pings; 0: never"),
    used   ("grpc-keepalive-timeout", Duration, "20s", "how long the server waits for the answer to a ping"),
    used   ("socket-reuse-port", Bool, "false", "set SO_REUSEPORT on listeners"),
    used   ("socket-reuse-address", Bool, "false", "set SO_REUSEADDR on listeners; always set here, as Go does"),
    used   ("enable-grpc-gateway", Bool, "true", "serve /v3 as JSON"),
    taken  ("raft-read-timeout", Duration, "5s", "read limit of a connection between members", "it follows the election time-out"),
    taken  ("raft-write-timeout", Duration, "5s", "write limit of a connection between members", "it follows the election time-out"),
    used   ("feature-gates", Gates, "", "Name=true,Other=false"),
    used   ("config-file", Text, "", "read all settings from this YAML file; other flags and the environment are ignored then"),
    used   ("version", Bool, "false", "print versions and leave"),
];

#[rustfmt::skip] // A table reads by its columns.
const CLUSTER: &[Flag] = &[
    used   ("initial-advertise-peer-urls", Urls, "http://localhost:2380", "peer URLs told to other members"),
    used   ("initial-cluster", Text, "default=http://localhost:2380", "first members: name=url,name=url"),
    used   ("initial-cluster-state", Choice(&["new", "existing"]), "new", "new or existing"),
    used   ("initial-cluster-token", Text, "etcd-cluster", "mixed into the ids of cluster and members"),
    used   ("advertise-client-urls", Urls, "http://localhost:2379", "client URLs told to others; needed with --listen-client-urls"),
    used   ("strict-reconfig-check", Bool, "true", "refuse membership changes that endanger the quorum"),
    taken  ("pre-vote", Bool, "true", "ask before campaigning", "it is always on"),
    used   ("max-learners", Signed, "1", "most learners"),
    refused("discovery", Text, "", "v2 discovery, etcd up to 3.6", NO_DISCOVERY),
    refused("discovery-proxy", Text, "", "v2 discovery, etcd up to 3.6", NO_DISCOVERY),
    refused("discovery-endpoints", Text, "", "discovery servers", NO_DISCOVERY),
    refused("discovery-token", Text, "", "discovery token", NO_DISCOVERY),
    taken  ("discovery-dial-timeout", Duration, "2s", "discovery client", DISCOVERY),
    taken  ("discovery-request-timeout", Duration, "5s", "discovery client", DISCOVERY),
    taken  ("discovery-keepalive-time", Duration, "2s", "discovery client", DISCOVERY),
    taken  ("discovery-keepalive-timeout", Duration, "6s", "discovery client", DISCOVERY),
    taken  ("discovery-insecure-transport", Bool, "true", "discovery client", DISCOVERY),
    taken  ("discovery-insecure-skip-tls-verify", Bool, "false", "discovery client", DISCOVERY),
    taken  ("discovery-cert", Text, "", "discovery client", DISCOVERY),
    taken  ("discovery-key", Text, "", "discovery client", DISCOVERY),
    taken  ("discovery-cacert", Text, "", "discovery client", DISCOVERY),
    taken  ("discovery-user", Text, "", "discovery client", DISCOVERY),
    taken  ("discovery-password", Text, "", "discovery client", DISCOVERY),
    refused("discovery-fallback", Choice(&["exit", "proxy"]), "exit", "exit or proxy", "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"; leave it out"),
    refused("discovery-srv", Text, "", "bootstrap by DNS SRV", NO_DISCOVERY),
    refused("discovery-srv-name", Text, "", "bootstrap by DNS SRV", NO_DISCOVERY),
];

#[rustfmt::skip] // A table reads by its columns.
const SECURITY: &[Flag] = &[
    used   ("cert-file", Text, "", "certificate for clients"),
    used   ("key-file", Text, "", "key for clients"),
    used   ("client-cert-auth", Bool, "false", "demand client certificates; their common names are users"),
    taken  ("client-cert-file", Text, "", "certificate that the server uses as a client", OWN_CALL),
    taken  ("client-key-file", Text, "", "key that the server uses as a client", OWN_CALL),
    used   ("client-crl-file", Text, "", "revoked client certificates"),
    used   ("client-cert-allowed-hostname", Text, "", "allowed names in client certificates, comma list"),
    used   ("trusted-ca-file", Text, "", "CAs of client certificates, which are demanded then"),
    used   ("auto-tls", Bool, "false", "self-made certificate for clients, in <data-dir>/fixtures/client"),
    used   ("peer-cert-file", Text, "", "certificate for members"),
    used   ("peer-key-file", Text, "", "key for members"),
    used   ("peer-client-cert-auth", Bool, "false", "demand certificates of members"),
    used   ("peer-client-cert-file", Text, "", "certificate that the server uses towards members"),
    used   ("peer-client-key-file", Text, "", "key that the server uses towards members"),
    used   ("peer-trusted-ca-file", Text, "", "CA of members' certificates"),
    used   ("peer-cert-allowed-cn", Text, "", "allowed common names of members, comma list"),
    used   ("peer-cert-allowed-hostname", Text, "", "allowed names of members, comma list"),
    used   ("peer-auto-tls", Bool, "false", "self-made certificate for members"),
    used   ("peer-crl-file", Text, "", "revoked members' certificates"),
    used   ("peer-skip-client-san-verification", Bool, "false", "no check of names in members' certificates"),
    used   ("self-signed-cert-validity", Unsigned, "1", "years of self-made certificates"),
    used   ("cipher-suites", Text, "", "suites of TLS 1.2, IANA names, comma list"),
    used   ("tls-min-version", Text, "TLS1.2", "TLS1.2 or TLS1.3"),
    used   ("tls-max-version", Text, "", "TLS1.2 or TLS1.3"),
    used   ("cors", UrlsOrAny, "*", "allowed origins, comma list"),
    used   ("host-whitelist", Text, "*", "allowed Host names of plain HTTP, comma list"),
];

#[rustfmt::skip] // A table reads by its columns.
const AUTH: &[Flag] = &[
    used   ("auth-token", Text, "simple", "kind of tokens: simple, or jwt with sign-method=, pub-key=, priv-key=, ttl="),
    used   ("bcrypt-cost", Unsigned, "10", "cost of hashing a password, 4 to 31"),
    used   ("auth-token-ttl", Unsigned, "300", "life of a simple token in seconds, from its last use"),
];

#[rustfmt::skip] // A table reads by its columns.
const OBSERVATION: &[Flag] = &[
    used   ("logger", Text, "zap", "zap only"),
    used   ("log-outputs", Text, "default", "default, stdout, stderr or file paths, comma list"),
    used   ("log-level", Level, "info", "debug, info, warn, error, panic or fatal"),
    used   ("log-format", Text, "json", "json or console"),
    used   ("enable-log-rotation", Bool, "false", "put the log file aside when it is large; needs one file in --log-outputs"),
    used   ("log-rotation-config-json", Text, LOG_ROTATION, "size in MB, age in days and number of log files that are kept"),
    used   ("warning-unary-request-duration", Duration, "300ms", "a request that takes longer is logged"),
    used   ("warning-apply-duration", Duration, "100ms", "commands or a read that take longer are logged"),
    used   ("metrics", Text, "basic", "basic, or extensive: with the duration of each method's calls"),
    used   ("listen-metrics-urls", Urls, "", "further listeners for metrics and health"),
    taken  ("enable-pprof", Bool, "false", "serve /debug/pprof", "pprof is Go's; use perf"),
    refused("enable-distributed-tracing", Bool, "false", "send traces by OTLP", "traces are not sent; leave it out"),
    taken  ("distributed-tracing-address", Text, "localhost:4317", "where to send traces", NO_TRACING),
    taken  ("distributed-tracing-service-name", Text, "etcd", "service name in traces", NO_TRACING),
    taken  ("distributed-tracing-instance-id", Text, "", "instance id in traces", NO_TRACING),
    taken  ("distributed-tracing-sampling-rate", Signed, "0", "samples per million", NO_TRACING),
];

/// The default of `--log-rotation-config-json`.
pub const LOG_ROTATION: &str =
    r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#;

#[rustfmt::skip] // A table reads by its columns.
const BACKGROUND: &[Flag] = &[
    used   ("auto-compaction-mode", Text, "periodic", "periodic or revision"),
    used   ("auto-compaction-retention", Text, "0", "0: off; periodic: hours or a duration, revision: a number"),
    taken  ("compaction-batch-limit", Signed, "0", "revisions per step of a compaction", COMPACTION),
    taken  ("compaction-sleep-interval", Duration, "0s", "pause between steps of a compaction", COMPACTION),
    used   ("corrupt-check-time", Duration, "0s", "distance of comparisons of all records between members; 0: off"),
    used   ("compact-hash-check-time", Duration, "1m0s", "distance of hash comparisons, with the gate CompactHashCheck"),
    used   ("watch-progress-notify-interval", Duration, "0s", "distance of progress bookmarks; 0: 10 minutes, at least 100ms"),
    taken  ("bootstrap-defrag-threshold-megabytes", Unsigned, "0", "defragment at start if that much is saved", "there is nothing to defragment"),
    taken  ("downgrade-check-time", Duration, "5s", "distance of downgrade checks", NO_DOWNGRADE),
    taken  ("snapshot-catchup-entries", Unsigned, "5000", "entries kept for slow followers", BY_BYTES),
];

#[rustfmt::skip] // A table reads by its columns.
const UNSAFE: &[Flag] = &[
    used   ("force-new-cluster", Bool, "false", "restart as a cluster of one member that keeps its data; the others are removed"),
    used   ("unsafe-no-fsync", Bool, "false", "do not sync the log: a power cut loses acknowledged writes"),
];

#[rustfmt::skip] // A table reads by its columns.
const OURS: &[Flag] = &[
    used   ("daymark-http2-server", Choice(&["lean", "h2"]), "lean", "what serves gRPC: our own HTTP/2, or the library h2"),
    used   ("daymark-memory-budget-bytes", Unsigned, "0", "memory of the member in all, of which three fifths are caches; 0: a quarter of the machine, at most 400 MiB"),
    used   ("daymark-net-threads", Unsigned, "0", "threads that serve connections; 0: one per core"),
];

#[rustfmt::skip] // A table reads by its columns.
const OLDER: &[Flag] = &[
    taken  ("experimental-bootstrap-defrag-threshold-megabytes", Unsigned, "0", "old name", "there is nothing to defragment"),
    taken  ("experimental-compact-hash-check-enabled", Bool, "false", "old name", OLD_GATE),
    taken  ("experimental-compact-hash-check-time", Duration, "1m0s", "old name", NOT_COMPARED),
    taken  ("experimental-compaction-batch-limit", Signed, "0", "old name", COMPACTION),
    taken  ("experimental-compaction-sleep-interval", Duration, "0s", "old name", COMPACTION),
    taken  ("experimental-corrupt-check-time", Duration, "0s", "old name", NOT_COMPARED),
    taken  ("experimental-distributed-tracing-address", Text, "localhost:4317", "old name", NO_TRACING),
    taken  ("experimental-distributed-tracing-instance-id", Text, "", "old name", NO_TRACING),
    taken  ("experimental-distributed-tracing-sampling-rate", Signed, "0", "old name", NO_TRACING),
    taken  ("experimental-distributed-tracing-service-name", Text, "etcd", "old name", NO_TRACING),
    taken  ("experimental-downgrade-check-time", Duration, "5s", "old name", NO_DOWNGRADE),
    refused("experimental-enable-distributed-tracing", Bool, "false", "old name", "traces are not sent; leave it out"),
    taken  ("experimental-enable-lease-checkpoint", Bool, "false", "old name", OLD_GATE),
    taken  ("experimental-enable-lease-checkpoint-persist", Bool, "false", "old name", OLD_GATE),
    taken  ("experimental-initial-corrupt-check", Bool, "false", "old name", OLD_GATE),
    taken  ("experimental-memory-mlock", Bool, "false", "old name", "caches are bounded by --daymark-memory-budget-bytes instead"),
    used   ("experimental-peer-skip-client-san-verification", Bool, "false", "old name"),
    taken  ("experimental-snapshot-catch-up-entries", Unsigned, "5000", "old name", BY_BYTES),
    taken  ("experimental-snapshot-catchup-entries", Unsigned, "5000", "old name", BY_BYTES),
    taken  ("experimental-stop-grpc-service-on-defrag", Bool, "false", "old name", OLD_GATE),
    taken  ("experimental-txn-mode-write-with-shared-buffer", Bool, "true", "old name", OLD_GATE),
    old    ("experimental-warning-apply-duration", Duration, "100ms"),
    old    ("experimental-warning-unary-request-duration", Duration, "300ms"),
    old    ("experimental-watch-progress-notify-interval", Duration, "0s"),
    taken  ("v2-deprecation", Choice(&["", "write-only", "write-only-skip-check", "write-only-drop-data", "gone"]), "", "gone in etcd 3.8", "there is no v2 store; etcd, too, ignores it"),
];

const IGNORED: &[Flag] = &[
    silent("cluster-active-size"),
    silent("cluster-remove-delay"),
    silent("cluster-sync-interval"),
    silent("config"),
    silent("force"),
    silent("max-result-buffer"),
    silent("max-retry-attempts"),
    silent("peer-heartbeat-interval"),
    silent("peer-election-timeout"),
    silent("retry-interval"),
    silent("snapshot"),
    silent("v"),
    silent("vv"),
    silent("test.coverprofile"),
    silent("test.outputdir"),
];

/// All flags by group, in the order of `--help`.
pub const GROUPS: &[Group] = &[
    Group { title: "Member", flags: MEMBER },
    Group { title: "Clustering", flags: CLUSTER },
    Group { title: "Security", flags: SECURITY },
    Group { title: "Auth", flags: AUTH },
    Group { title: "Logging, monitoring and tracing", flags: OBSERVATION },
    Group { title: "Background work", flags: BACKGROUND },
    Group { title: "Unsafe", flags: UNSAFE },
    Group { title: "Daymark's own", flags: OURS },
    Group { title: "Of older releases of etcd", flags: OLDER },
    Group { title: "Ignored", flags: IGNORED },
];

/// Settings that have a place in a configuration file and no flag, as in etcd. Named like the flag they would be.
const FILE_ONLY: &[Flag] = &[used("client-cert-allowed-cn", Text, "", "allowed common names of clients, comma list")];

/// Every flag.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}

/// The flag of that name.
pub fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

/// The setting of that name, whether or not it can be given as a flag.
pub fn find_setting(name: &str) -> Option<&'static Flag> {
    find(name).or_else(|| FILE_ONLY.iter().find(|flag| flag.name == name))
}
