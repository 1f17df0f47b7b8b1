//! Configuration: the low form (flags and environment, or a file; texts as given) and the high form, [`Config`], values
//! as used. Checks everything that can be checked without touching disk or network; only keys of
//! tokens are read here.

pub mod env;
pub mod file;
pub mod flags;
pub mod gates;
pub mod log;
pub mod table;
pub mod tls;
pub mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::auth::password;
use crate::auth::token::TokenSpec;
use crate::limits;
use flags::{Given, Source};
use gates::FeatureGates;
pub use log::{LogLevel, LogOptions, LogOutput, LogRotation};
use table::Handling;
use tls::{PeerTlsOptions, TlsOptions};
use values::{Url, parse_bool, parse_duration, parse_signed, parse_unsigned, parse_urls};

/// How one member runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub name: String,
    pub data_dir: PathBuf,
    /// Directory of the log, if it is not inside `data_dir`.
    pub wal_dir: Option<PathBuf>,

    pub listen_client: Vec<Url>,
    pub listen_peer: Vec<Url>,
    /// For HTTP alone; if there are any, those for clients serve gRPC alone.
    pub listen_client_http: Vec<Url>,
    pub listen_metrics: Vec<Url>,
    pub advertise_client: Vec<Url>,
    pub advertise_peer: Vec<Url>,
    pub socket: SocketOptions,
    /// `None`: no certificate, and so no secure URL among those that are listened on.
    pub client_tls: Option<TlsOptions>,
    /// The same between members.
    pub peer_tls: Option<PeerTlsOptions>,

    /// Founding members: name and peer URLs, both in order. Whether this member is one of them matters to its first start
    /// only.
    pub initial_cluster: Vec<(String, Vec<Url>)>,
    pub cluster_is_new: bool,
    pub cluster_token: String,

    pub heartbeat: Duration,
    pub election: Duration,
    /// `None`: no quota.
    pub quota_backend_bytes: Option<u64>,
    pub max_txn_ops: usize,
    pub max_request_bytes: usize,
    pub transport: TransportOptions,
    pub unsafe_no_fsync: bool,
    pub auto_compaction: AutoCompaction,
    pub watch_progress_interval: Duration,
    pub warning_unary_request: Duration,
    /// `ZERO`: every command is slow.
    pub warning_apply: Duration,
    /// Distance of hash comparisons between members; `None`: never.
    pub corrupt_check_interval: Option<Duration>,
    pub compact_hash_check_interval: Duration,
    pub downgrade_check_interval: Duration,
    pub learners_max: usize,
    /// Whether changes of members that endanger the quorum are refused.
    pub strict_changes: bool,
    pub force_new_cluster: bool,
    pub gates: FeatureGates,

    /// Kind of the tokens that logins get, and life of simple ones.
    pub auth_token: TokenSpec,
    pub auth_token_ttl: Duration,
    /// What hashing a password costs, as bcrypt counts.
    pub bcrypt_cost: u32,

    /// Allowed origins and Host names; empty: all.
    pub cors: Vec<String>,
    pub host_whitelist: Vec<String>,
    /// Whether the API is served as JSON, too.
    pub gateway: bool,

    pub log: LogOptions,
    /// Also the histogram of each method's duration.
    pub metrics_extensive: bool,

    pub memory_budget_bytes: u64,
    pub net_threads: usize,
}

/// How listeners are opened.
#[derive(Copy, Clone, Debug, Default)]
pub struct SocketOptions {
    pub reuse_port: bool,
}

/// How connections of clients are kept.
#[derive(Copy, Clone, Debug)]
pub struct TransportOptions {
    pub max_concurrent_streams: u32,
    /// Largest message that is received.
    pub message_bytes_max: usize,
    /// `None`: the server never pings.
    pub keepalive_interval: Option<Duration>,
    pub keepalive_timeout: Duration,
    /// Clients may ping this often while they have a call open; zero: grpc-go's default.
    pub keepalive_min_time: Duration,
    pub http2_server: Http2Server,
}

/// What serves HTTP/2.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Http2Server {
    /// Our own, which does what gRPC needs.
    #[default]
    Lean,
    /// The library h2.
    H2,
}

/// What is compacted without being asked for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    Off,
    /// Keep this much time.
    Periodic(Duration),
    /// Keep this many revisions.
    Revision(i64),
}

/// What was given: the flags and the environment, or, where one of them names a file, that alone. Warnings beside.
pub fn gather(
    mut given: Given,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<(Given, Vec<String>), String> {
    let variables: Vec<_> = variables.collect();
    let of_environment = variables.iter().find(|(name, _)| name == env::CONFIG_FILE).map(|(_, path)| path.as_str());
    let path = match given.text("config-file") {
        "" => of_environment.unwrap_or_default(),
        path => path,
    };
    if path.is_empty() {
        let warnings = env::merge(&mut given, variables.into_iter())?;
        return Ok((given, warnings));
    }
    let (read, mut warnings) = file::read(Path::new(path))?;
    let ignored: Vec<_> = given.names().filter(|name| *name != "config-file").map(|name| format!("--{name}")).collect();
    if !ignored.is_empty() {
        let ignored = ignored.join(", ");
        warnings.push(format!("flags and environment are ignored beside --config-file: {ignored}"));
    }
    Ok((read, warnings))
}

impl Config {
    /// Turns what was given into values, or says what is wrong and what to do. The texts returned beside are warnings,
    /// to be logged once logging stands.
    pub fn from_given(given: &Given) -> Result<(Self, Vec<String>), String> {
        let mut warnings = refuse_and_warn(given)?;
        // First what etcd looks at first, so that of two mistakes both name the same.
        let log = LogOptions::from_given(given, &mut warnings)?;
        let name = given.text("name").to_owned();
        let gates = FeatureGates::parse(given.text("feature-gates"))?;
        gates.check()?;
        warnings.extend(gates.warnings());
        let advertise_peer = advertised(given, "initial-advertise-peer-urls")?;
        let initial_cluster = initial_cluster(given, &name, &advertise_peer)?;
        let (heartbeat, election) = raft_times(given)?;
        let max_request_bytes = max_request_bytes(given, &mut warnings)?;
        let data_dir = match given.text("data-dir") {
            "" => PathBuf::from(format!("{name}.etcd")),
            directory => PathBuf::from(directory),
        };
        let listen_client = listen_urls(given, "listen-client-urls")?;
        let listen_client_http = listen_urls(given, "listen-client-http-urls")?;
        let listen_metrics = listen_urls(given, "listen-metrics-urls")?;
        check_listeners(&listen_client, &listen_client_http)?;
        let for_clients: Vec<_> = listen_client.iter().chain(&listen_client_http).collect();
        let client_tls = tls::client_tls(given, &for_clients, &data_dir, &mut warnings)?;
        if client_tls.is_none() && listen_metrics.iter().any(|url| url.scheme.is_secure()) {
            return Err("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url".into());
        }
        let listen_peer = listen_urls(given, "listen-peer-urls")?;
        let for_peers: Vec<_> = listen_peer.iter().collect();
        let peer_tls = tls::peer_tls(given, &for_peers, &data_dir, &mut warnings)?;
        let config = Self {
            data_dir,
            wal_dir: Some(given.text("wal-dir")).filter(|dir| !dir.is_empty()).map(PathBuf::from),
            listen_client,
            listen_client_http,
            listen_peer,
            peer_tls,
            listen_metrics,
            client_tls,
            advertise_client: advertise_client(given, &mut warnings)?,
            advertise_peer,
            socket: SocketOptions { reuse_port: truth(given, "socket-reuse-port") },
            initial_cluster,
            cluster_is_new: given.text("initial-cluster-state") == "new",
            cluster_token: given.text("initial-cluster-token").to_owned(),
            heartbeat,
            election,
            quota_backend_bytes: quota(given)?,
            max_txn_ops: number(given, "max-txn-ops")? as usize,
            max_request_bytes,
            transport: transport(given, max_request_bytes)?,
            unsafe_no_fsync: truth(given, "unsafe-no-fsync"),
            auto_compaction: auto_compaction(given)?,
            watch_progress_interval: match either(given, "watch-progress-notify-interval") {
                Duration::ZERO => limits::WATCH_PROGRESS_INTERVAL,
                interval => interval.max(limits::WATCH_PROGRESS_INTERVAL_MIN),
            },
            warning_unary_request: match either(given, "warning-unary-request-duration") {
                // As in etcd.
                Duration::ZERO => limits::WARNING_UNARY_REQUEST,
                duration => duration,
            },
            warning_apply: either(given, "warning-apply-duration"),
            corrupt_check_interval: Some(duration(given, "corrupt-check-time")).filter(|interval| !interval.is_zero()),
            compact_hash_check_interval: compact_hash_check_interval(given)?,
            downgrade_check_interval: duration(given, "downgrade-check-time"),
            learners_max: usize::try_from(signed(given, "max-learners")?).unwrap_or(0),
            strict_changes: truth(given, "strict-reconfig-check"),
            force_new_cluster: truth(given, "force-new-cluster"),
            gates,
            auth_token: auth_token(given)?,
            auth_token_ttl: Duration::from_secs(number(given, "auth-token-ttl")?),
            bcrypt_cost: bcrypt_cost(given, &mut warnings)?,
            cors: values::parse_origins(given.text("cors"))?,
            host_whitelist: list_or_all(given.text("host-whitelist")),
            gateway: truth(given, "enable-grpc-gateway"),
            log,
            metrics_extensive: given.text("metrics") == "extensive",
            memory_budget_bytes: number(given, "daymark-memory-budget-bytes")?,
            net_threads: number(given, "daymark-net-threads")?.min(limits::NET_THREADS_MAX as u64) as usize,
            name,
        };
        Ok((config, warnings))
    }
}

impl Config {
    /// Whether any listener is secure.
    pub fn needs_tls(&self) -> bool {
        let all = [&self.listen_client, &self.listen_client_http, &self.listen_metrics];
        all.into_iter().flatten().any(|url| url.scheme.is_secure())
    }

    /// Directories that are written to. They may be on different volumes.
    pub fn written_directories(&self) -> Vec<PathBuf> {
        std::iter::once(&self.data_dir).chain(&self.wal_dir).cloned().collect()
    }
}

/// Refuses what is not served, and warns of what has no effect.
fn refuse_and_warn(given: &Given) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    for flag in given.changed() {
        match flag.handling {
            Handling::Used | Handling::Silent => {}
            Handling::Accepted(why) => warnings.push(format!("flag --{} has no effect: {why}", flag.name)),
            Handling::Refused(remedy) => return Err(format!("--{} is not served: {remedy}", flag.name)),
        }
    }
    Ok(warnings)
}

/// Reads the key files that it names.
fn auth_token(given: &Given) -> Result<TokenSpec, String> {
    let text = given.text("auth-token");
    text.parse().map_err(|error| format!("invalid value {text:?} for flag -auth-token: {error}"))
}

/// As etcd does, an impossible cost is replaced.
fn bcrypt_cost(given: &Given, warnings: &mut Vec<String>) -> Result<u32, String> {
    let cost = number(given, "bcrypt-cost")?;
    let effective = password::effective_cost(u32::try_from(cost).unwrap_or(u32::MAX));
    if u64::from(effective) != cost {
        warnings.push(format!("--bcrypt-cost {cost} is out of bounds: {effective} is used"));
    }
    Ok(effective)
}

fn truth(given: &Given, flag: &str) -> bool {
    parse_bool(given.text(flag)).unwrap_or_default()
}

fn number(given: &Given, flag: &str) -> Result<u64, String> {
    parse_unsigned(given.text(flag)).map_err(|error| format!("--{flag}: {error:?}"))
}

fn signed(given: &Given, flag: &str) -> Result<i64, String> {
    parse_signed(given.text(flag)).map_err(|error| format!("--{flag}: {error:?}"))
}

fn duration(given: &Given, flag: &str) -> Duration {
    parse_duration(given.text(flag)).unwrap_or_default()
}

/// A duration under its name, or under the one it had until etcd 3.6.
fn either(given: &Given, flag: &str) -> Duration {
    let old = format!("experimental-{flag}");
    if given.has(&old) && !given.has(flag) { duration(given, &old) } else { duration(given, flag) }
}

fn list_or_all(text: &str) -> Vec<String> {
    let items: Vec<String> =
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect();
    if items.iter().any(|item| item == "*") { Vec::new() } else { items }
}

fn urls(given: &Given, flag: &str) -> Result<Vec<Url>, String> {
    if given.text(flag).is_empty() {
        return Ok(Vec::new());
    }
    parse_urls(given.text(flag)).map_err(|error| format!("invalid --{flag}: {error}"))
}

/// An address serves gRPC or HTTP alone, or both, but not one of them twice.
fn check_listeners(client: &[Url], http: &[Url]) -> Result<(), String> {
    match http.iter().find(|url| client.iter().any(|other| other.address == url.address)) {
        Some(url) => {
            Err(format!("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"))
        }
        None => Ok(()),
    }
}

/// URLs to listen on; none if the flag is empty.
fn listen_urls(given: &Given, flag: &str) -> Result<Vec<Url>, String> {
    if given.text(flag).is_empty() {
        return Ok(Vec::new());
    }
    let urls = urls(given, flag)?;
    for url in &urls {
        let bindable = |host: &str| host == "localhost" || host.is_empty() || host.parse::<std::net::IpAddr>().is_ok();
        if url.host_and_port().is_some_and(|(host, _)| !bindable(host)) {
            return Err(format!("--{flag}: expected IP in URL for binding ({url})"));
        }
    }
    Ok(urls)
}

/// URLs told to others, which need a host.
fn advertised(given: &Given, flag: &str) -> Result<Vec<Url>, String> {
    let urls = urls(given, flag)?;
    match urls.iter().find(|url| url.host_and_port().is_some_and(|(host, _)| host.is_empty())) {
        Some(url) => {
            Err(format!("--{flag} {:?} must be \"host:port\" (unexpected empty host ({url}))", given.text(flag)))
        }
        None => Ok(urls),
    }
}

fn compact_hash_check_interval(given: &Given) -> Result<Duration, String> {
    match duration(given, "compact-hash-check-time") {
        Duration::ZERO => {
            let text = given.text("compact-hash-check-time");
            Err(format!("--compact-hash-check-time must be >0 (set to {text})"))
        }
        interval => Ok(interval),
    }
}

fn advertise_client(given: &Given, warnings: &mut Vec<String>) -> Result<Vec<Url>, String> {
    // A file may leave it out, in etcd, too.
    let named = given.source() == Source::File || given.has("advertise-client-urls");
    if given.has("listen-client-urls") && !named {
        return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".into());
    }
    let urls = advertised(given, "advertise-client-urls")?;
    for url in urls.iter().filter(|url| url.host_and_port().is_some_and(|(host, _)| host == "0.0.0.0")) {
        warnings.push(format!("--advertise-client-urls: {url} is no address that clients on other machines can use"));
    }
    Ok(urls)
}

/// `name=url,name=url`; a name may repeat. Without the flag this member alone is the cluster.
fn initial_cluster(given: &Given, name: &str, advertised: &[Url]) -> Result<Vec<(String, Vec<Url>)>, String> {
    if !given.has("initial-cluster") {
        return Ok(vec![(name.to_owned(), advertised.to_vec())]);
    }
    let mut members = std::collections::BTreeMap::<String, Vec<Url>>::new();
    for part in given.text("initial-cluster").split(',').map(str::trim) {
        let (member, url) = part.split_once('=').unwrap_or(("", part));
        if member.is_empty() {
            return Err(format!("invalid --initial-cluster: {part:?} is not of the form name=url"));
        }
        let url = values::parse_url(url).map_err(|error| format!("invalid --initial-cluster: {error}"))?;
        members.entry(member.to_owned()).or_default().push(url);
    }
    for urls in members.values_mut() {
        urls.sort_by_key(Url::to_string);
    }
    Ok(members.into_iter().collect())
}

fn raft_times(given: &Given) -> Result<(Duration, Duration), String> {
    let heartbeat = number(given, "heartbeat-interval")?;
    let election = number(given, "election-timeout")?;
    if heartbeat == 0 || election == 0 {
        return Err("--heartbeat-interval and --election-timeout must be greater than 0 (ms)".into());
    }
    if heartbeat.saturating_mul(5) > election {
        return Err(format!(
            "--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        ));
    }
    if election > 50_000 {
        return Err(format!("--election-timeout[{election}ms] is too long, and should be set less than 50000ms"));
    }
    Ok((Duration::from_millis(heartbeat), Duration::from_millis(election)))
}

fn quota(given: &Given) -> Result<Option<u64>, String> {
    Ok(match signed(given, "quota-backend-bytes")? {
        0 => Some(limits::QUOTA_BYTES),
        bytes => u64::try_from(bytes).ok(),
    })
}

/// What one log entry can hold, and a word of warning for what is long before that a burden.
fn max_request_bytes(given: &Given, warnings: &mut Vec<String>) -> Result<usize, String> {
    let (bytes, max) = (number(given, "max-request-bytes")?, limits::REQUEST_BYTES_MAX);
    if bytes > max as u64 {
        return Err(format!(
            "--max-request-bytes={bytes} is more than one log entry takes; set at most {max} (30 MiB)"
        ));
    }
    let recommended = limits::REQUEST_BYTES_RECOMMENDED;
    if bytes > recommended as u64 {
        warnings.push(format!(
            "exceeded recommended request limit: --max-request-bytes={bytes}, recommended at most {recommended} (10 MiB)"
        ));
    }
    Ok(bytes as usize)
}

fn transport(given: &Given, max_request_bytes: usize) -> Result<TransportOptions, String> {
    let streams = number(given, "max-concurrent-streams")?;
    Ok(TransportOptions {
        max_concurrent_streams: streams.min(u64::from(limits::STREAMS_PER_CONNECTION_MAX)) as u32,
        message_bytes_max: max_request_bytes.saturating_add(limits::MESSAGE_OVERHEAD_BYTES),
        keepalive_interval: Some(duration(given, "grpc-keepalive-interval")).filter(|interval| !interval.is_zero()),
        keepalive_timeout: duration(given, "grpc-keepalive-timeout"),
        keepalive_min_time: duration(given, "grpc-keepalive-min-time"),
        http2_server: if given.text("daymark-http2-server") == "h2" { Http2Server::H2 } else { Http2Server::Lean },
    })
}

/// A plain number means hours or revisions, by the mode; anything else is a duration, of which the mode `revision` takes
/// the nanoseconds, as etcd does.
fn auto_compaction(given: &Given) -> Result<AutoCompaction, String> {
    let revisions = match given.text("auto-compaction-mode") {
        "revision" => true,
        "periodic" => false,
        "" => return Err("undefined auto-compaction-mode; set --auto-compaction-mode to periodic or revision".into()),
        other => return Err(format!("unknown auto-compaction-mode {other:?}; set it to periodic or revision")),
    };
    let text = given.text("auto-compaction-retention");
    let time = match text.parse::<u32>() {
        Ok(count) if revisions => return Ok(revisions_or_off(i64::from(count))),
        Ok(hours) => Some(Duration::from_secs(u64::from(hours) * 3600)),
        Err(_) => parse_duration(text),
    };
    match time {
        Some(Duration::ZERO) => Ok(AutoCompaction::Off),
        Some(time) if revisions => Ok(revisions_or_off(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))),
        Some(time) => Ok(AutoCompaction::Periodic(time)),
        None => Err(format!("--auto-compaction-retention: neither a number nor a duration: {text:?}")),
    }
}

fn revisions_or_off(count: i64) -> AutoCompaction {
    if count == 0 { AutoCompaction::Off } else { AutoCompaction::Revision(count) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Result<(Config, Vec<String>), String> {
        match flags::parse(line.split_whitespace().map(str::to_owned)) {
            Ok(flags::Parsed::Start(given)) => Config::from_given(&given),
            Err(flags::ParseError::Flag(error)) => Err(error),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn defaults_are_etcds() {
        let (config, warnings) = config("").expect("defaults");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
        assert_eq!(config.listen_client[0].to_string(), "http://localhost:2379");
        assert_eq!(config.transport.message_bytes_max, 2_097_152);
        assert_eq!(config.quota_backend_bytes, Some(2 << 30));
        assert_eq!(config.watch_progress_interval, Duration::from_secs(600));
        assert_eq!(config.election, Duration::from_secs(1));
        assert_eq!(config.auto_compaction, AutoCompaction::Off);
        assert!(config.cluster_is_new);
        assert_eq!(config.initial_cluster[0].0, "default");
    }

    #[test]
    fn the_cluster_follows_the_name_unless_it_is_given() {
        let (config, _) = config("--name a --initial-advertise-peer-urls http://h:1").expect("named");
        assert_eq!(config.initial_cluster[0].0, "a");
        assert_eq!(config.initial_cluster[0].1[0].to_string(), "http://h:1");
    }

    #[test]
    fn contradictions_are_refused_in_etcds_words() {
        for (line, words) in [
            ("--listen-client-urls http://0.0.0.0:2379", "--advertise-client-urls is required"),
            ("--listen-peer-urls http://host.example:1", "expected IP in URL for binding"),
            ("--listen-peer-urls http://localhost:1/x", "must not contain a path"),
            ("--listen-metrics-urls https://localhost:1", "must be provided for metrics secure url"),
            ("--listen-peer-urls https://localhost:1", "must be provided for peer url"),
            ("--election-timeout 400", "at least as 5 times"),
            ("--election-timeout 60000", "is too long"),
            ("--heartbeat-interval 0", "must be greater than 0"),
            ("--initial-cluster http://localhost:9", "not of the form name=url"),
            ("--feature-gates Nonsense=true", "unrecognized feature gate: Nonsense"),
            ("--feature-gates AllBeta", "missing bool value"),
            ("--feature-gates LeaseCheckpointPersist=true", "requires enabling feature gate LeaseCheckpoint"),
            ("--auth-token jwt,pub-key=x", "for flag -auth-token"),
            ("--auth-token sandwich", "is no kind of token"),
            ("--advertise-client-urls http://:1", "unexpected empty host"),
            ("--compact-hash-check-time 0s", "--compact-hash-check-time must be >0 (set to 0s)"),
            ("--auto-compaction-mode never", "unknown auto-compaction-mode \"never\""),
            ("--logger x", "unknown logger option"),
            ("--log-level loud", "unrecognized level"),
            ("--auto-compaction-retention soon", "neither a number nor a duration"),
            ("--auto-compaction-mode revision --auto-compaction-retention -5", "neither a number nor a duration"),
            ("--peer-cert-file x", "must both be present or both absent"),
            ("--peer-cert-file x --peer-key-file y", "add --peer-trusted-ca-file"),
            ("--max-request-bytes 31457281", "set at most 31457280"),
        ] {
            let error = config(line).expect_err(line);
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn retention_is_hours_a_duration_or_revisions() {
        let retention = |line: &str| config(line).expect(line).0.auto_compaction;
        assert_eq!(retention("--auto-compaction-retention 2"), AutoCompaction::Periodic(Duration::from_secs(7200)));
        assert_eq!(retention("--auto-compaction-retention 5m"), AutoCompaction::Periodic(Duration::from_secs(300)));
        let revisions =
            |text: &str| retention(&format!("--auto-compaction-mode revision --auto-compaction-retention {text}"));
        assert_eq!(revisions("1000"), AutoCompaction::Revision(1000));
        assert_eq!(revisions("0"), AutoCompaction::Off);
        assert_eq!(revisions("5us"), AutoCompaction::Revision(5000), "nanoseconds, as etcd takes them");
    }

    #[test]
    fn what_has_no_effect_is_warned_of_only_when_changed() {
        let (_, warnings) = config("--snapshot-count 10000 --max-wals 7 --v=3").expect("accepted");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("--max-wals has no effect"));
    }

    #[test]
    fn an_address_that_others_cannot_use_is_advertised_with_a_warning() {
        let line = "--listen-client-urls http://0.0.0.0:2379 --advertise-client-urls http://0.0.0.0:2379";
        let (config, warnings) = config(line).expect("etcd starts with it");
        assert_eq!(config.advertise_client[0].to_string(), "http://0.0.0.0:2379");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("--advertise-client-urls: http://0.0.0.0:2379 "), "{warnings:?}");
    }

    /// Of a command batch that is closed once it is full, the last command may be a request of any allowed size.
    #[test]
    fn the_largest_request_fits_into_an_entry_and_a_large_one_is_warned_of() {
        let fullest = limits::COMMAND_BATCH_BYTES_MAX + limits::REQUEST_BYTES_MAX + 64 * 1024;
        assert!(fullest <= daymark_raft::limits::BATCH_BYTES_MAX);
        let (config, warnings) = config("--max-request-bytes 31457280").expect("allowed");
        assert_eq!(config.max_request_bytes, 30 << 20);
        assert!(warnings[0].starts_with("exceeded recommended request limit"), "{warnings:?}");
        assert!(self::config("--max-request-bytes 10485760").expect("allowed").1.is_empty());
    }

    #[test]
    fn a_separate_directory_of_the_log_is_written_to_as_well() {
        let written = |line: &str| config(line).expect("directories").0.written_directories();
        assert_eq!(written("--data-dir d"), [PathBuf::from("d")]);
        assert_eq!(written("--data-dir d --wal-dir w"), ["d", "w"].map(PathBuf::from));
    }

    #[test]
    fn values_are_bounded() {
        let (config, _) = config("--watch-progress-notify-interval 1ms --quota-backend-bytes -1").expect("bounded");
        assert_eq!(config.watch_progress_interval, Duration::from_millis(100));
        assert_eq!(config.quota_backend_bytes, None);
        assert_eq!(config.transport.max_concurrent_streams, limits::STREAMS_PER_CONNECTION_MAX);
    }

    #[test]
    fn an_old_name_counts_where_the_new_one_is_not_given() {
        let (config, _) = config("--experimental-warning-unary-request-duration 7ms").expect("old name");
        assert_eq!(config.warning_unary_request, Duration::from_millis(7));
    }
}
