//! The flags of the command line as one table, etcd's and a few of our own, and the rules by which they are read: the
//! low form, texts as given. Knows nothing of what values mean together; see the high form in [`super::Config`].

use std::collections::BTreeMap;

use super::values::{parse_bool, parse_duration, parse_urls};

/// What a flag's value looks like.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`; the bare flag means `true`.
    Bool,
    /// Digits.
    Unsigned,
    /// Digits, perhaps with a sign.
    Signed,
    /// Go's notation: `5s`, `1m30s`, `100ms`.
    Duration,
    /// URLs to listen on or to tell others, comma list.
    Urls,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Anything.
    Text,
}

/// What becomes of a flag here.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Handling {
    /// It does what it says.
    Used,
    /// Taken and forgotten; one warning says so when it was set to something else than its default.
    Accepted,
    /// Taken and forgotten without a word: very old, or harmless.
    Silent,
    /// Not served (yet): the member does not start when it is set to something else than its default.
    Refused,
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

macro_rules! flags {
    ($($handling:ident $kind:ident $(($choices:expr))? $name:literal = $default:literal, $meaning:literal;)*) => {
        /// Every flag.
        pub const FLAGS: &[Flag] = &[$(Flag {
            name: $name, kind: Kind::$kind$((&$choices))?, default: $default, meaning: $meaning, handling: Handling::$handling,
        },)*];
    };
}

flags! {
    // Member.
    Used     Text     "name" = "default", "name of this member; key in --initial-cluster";
    Used     Text     "data-dir" = "", "directory of the state; empty: <name>.etcd";
    Used     Text     "wal-dir" = "", "directory of the log; empty: inside the data directory";
    Used     Urls     "listen-peer-urls" = "http://localhost:2380", "where to listen for other members";
    Used     Urls     "listen-client-urls" = "http://localhost:2379", "where to listen for clients (gRPC and HTTP)";
    Refused  Text     "listen-client-http-urls" = "", "separate listeners for HTTP";
    Used     Text     "listen-metrics-urls" = "", "further listeners for metrics and health";
    Accepted Unsigned "max-wals" = "5", "log files kept; Daymark keeps what members still need";
    Accepted Unsigned "max-snapshots" = "5", "snapshot files kept (etcd up to 3.7)";
    Accepted Unsigned "snapshot-count" = "10000", "applied entries between raft snapshots; Daymark decides by bytes";
    Accepted Unsigned "snapshot-catchup-entries" = "5000", "entries kept for slow followers; Daymark decides by bytes";
    Used     Unsigned "heartbeat-interval" = "100", "heartbeat of the leader, in milliseconds";
    Used     Unsigned "election-timeout" = "1000", "election timeout in milliseconds; at least 5 heartbeats, at most 50000";
    Accepted Bool     "initial-election-tick-advance" = "true", "shorten the first wait for an election";
    Accepted Bool     "pre-vote" = "true", "ask before campaigning; always on";
    Used     Signed   "quota-backend-bytes" = "0", "size limit of the data; 0: 2 GiB, negative: none";
    Accepted Text     "backend-bbolt-freelist-type" = "", "no meaning here: there is no bbolt";
    Accepted Duration "backend-batch-interval" = "0s", "no meaning here: each batch is committed when applied";
    Accepted Signed   "backend-batch-limit" = "0", "no meaning here: each batch is committed when applied";
    Used     Unsigned "max-txn-ops" = "128", "most operations in one transaction";
    Used     Unsigned "max-request-bytes" = "1572864", "largest request";
    Used     Unsigned "max-concurrent-streams" = "4294967295", "most streams of one client connection";
    Accepted Duration "grpc-keepalive-min-time" = "5s", "least distance of a client's pings; any distance is allowed";
    Used     Duration "grpc-keepalive-interval" = "2h", "idle time after which the server pings; 0: never";
    Used     Duration "grpc-keepalive-timeout" = "20s", "how long the server waits for the answer to a ping";
    Used     Bool     "socket-reuse-port" = "false", "set SO_REUSEPORT on listeners";
    Accepted Bool     "socket-reuse-address" = "false", "set SO_REUSEADDR on listeners; always set";
    Accepted Duration "raft-read-timeout" = "5s", "read limit of a connection between members";
    Accepted Duration "raft-write-timeout" = "5s", "write limit of a connection between members";
    Accepted Bool     "memory-mlock" = "false", "lock pages in memory; Daymark bounds its memory instead";
    Accepted Unsigned "bootstrap-defrag-threshold-megabytes" = "0", "no meaning here: there is nothing to defragment";
    Accepted Duration "warning-apply-duration" = "100ms", "log a slow apply; commands are applied in batches and not timed";
    Used     Duration "warning-unary-request-duration" = "300ms", "a request that takes longer is logged";
    Used     Bool     "unsafe-no-fsync" = "false", "do not sync the log: a power cut loses acknowledged writes";
    Refused  Bool     "force-new-cluster" = "false", "restart as a cluster of one member that keeps its data";
    Used     Text     "feature-gates" = "", "Name=true,Other=false";
    Refused  Text     "config-file" = "", "read settings from a YAML file";
    Used     Bool     "version" = "false", "print versions and leave";

    // Cluster.
    Used     Urls     "initial-advertise-peer-urls" = "http://localhost:2380", "peer URLs told to other members";
    Used     Urls     "advertise-client-urls" = "http://localhost:2379", "client URLs told to others; needed with --listen-client-urls";
    Used     Text     "initial-cluster" = "default=http://localhost:2380", "first members: name=url,name=url";
    Used     Choice(["new", "existing"]) "initial-cluster-state" = "new", "new or existing";
    Used     Text     "initial-cluster-token" = "etcd-cluster", "mixed into the ids of cluster and members";
    Accepted Bool     "strict-reconfig-check" = "true", "refuse membership changes that endanger the quorum; always on";
    Accepted Unsigned "max-learners" = "1", "most learners";
    Refused  Text     "discovery" = "", "v2 discovery (etcd up to 3.6)";
    Refused  Text     "discovery-proxy" = "", "v2 discovery (etcd up to 3.6)";
    Refused  Text     "discovery-endpoints" = "", "discovery servers";
    Refused  Text     "discovery-token" = "", "discovery token";
    Accepted Duration "discovery-dial-timeout" = "2s", "discovery client";
    Accepted Duration "discovery-request-timeout" = "5s", "discovery client";
    Accepted Duration "discovery-keepalive-time" = "2s", "discovery client";
    Accepted Duration "discovery-keepalive-timeout" = "6s", "discovery client";
    Accepted Bool     "discovery-insecure-transport" = "true", "discovery client";
    Accepted Bool     "discovery-insecure-skip-tls-verify" = "false", "discovery client";
    Accepted Text     "discovery-cert" = "", "discovery client";
    Accepted Text     "discovery-key" = "", "discovery client";
    Accepted Text     "discovery-cacert" = "", "discovery client";
    Accepted Text     "discovery-user" = "", "discovery client";
    Accepted Text     "discovery-password" = "", "discovery client";
    Accepted Choice(["exit", "proxy"]) "discovery-fallback" = "exit", "exit or proxy";
    Refused  Text     "discovery-srv" = "", "bootstrap by DNS SRV";
    Refused  Text     "discovery-srv-name" = "", "bootstrap by DNS SRV";

    // Security.
    Refused  Text     "cert-file" = "", "certificate for clients";
    Refused  Text     "key-file" = "", "key for clients";
    Refused  Text     "client-cert-file" = "", "certificate that the server uses as a client";
    Refused  Text     "client-key-file" = "", "key that the server uses as a client";
    Refused  Bool     "client-cert-auth" = "false", "demand client certificates";
    Refused  Text     "trusted-ca-file" = "", "CA of client certificates";
    Refused  Text     "client-crl-file" = "", "revoked client certificates";
    Refused  Text     "client-cert-allowed-hostname" = "", "allowed names in client certificates";
    Refused  Bool     "auto-tls" = "false", "self-made certificate for clients";
    Refused  Text     "peer-cert-file" = "", "certificate for members";
    Refused  Text     "peer-key-file" = "", "key for members";
    Refused  Text     "peer-client-cert-file" = "", "certificate that the server uses towards members";
    Refused  Text     "peer-client-key-file" = "", "key that the server uses towards members";
    Refused  Bool     "peer-client-cert-auth" = "false", "demand certificates of members";
    Refused  Text     "peer-trusted-ca-file" = "", "CA of members' certificates";
    Refused  Text     "peer-crl-file" = "", "revoked members' certificates";
    Refused  Bool     "peer-auto-tls" = "false", "self-made certificate for members";
    Refused  Text     "peer-cert-allowed-cn" = "", "allowed common name of members";
    Refused  Text     "peer-cert-allowed-hostname" = "", "allowed names of members";
    Refused  Bool     "peer-skip-client-san-verification" = "false", "no check of names in members' certificates";
    Accepted Unsigned "self-signed-cert-validity" = "1", "years";
    Refused  Text     "cipher-suites" = "", "TLS suites, IANA names";
    Accepted Text     "tls-min-version" = "TLS1.2", "TLS1.2 or TLS1.3";
    Accepted Text     "tls-max-version" = "", "TLS1.2 or TLS1.3";
    Used     Text     "cors" = "*", "allowed origins, comma list";
    Used     Text     "host-whitelist" = "*", "allowed Host names of plain HTTP, comma list";
    Used     Text     "auth-token" = "simple", "kind of tokens: simple";
    Accepted Unsigned "auth-token-ttl" = "300", "life of a simple token in seconds";
    Accepted Unsigned "bcrypt-cost" = "10", "cost of hashing a password";

    // Logging, metrics, tracing.
    Used     Choice(["zap"]) "logger" = "zap", "only zap";
    Used     Text     "log-outputs" = "default", "default, stdout, stderr or file paths, comma list";
    Used     Text     "log-level" = "info", "debug, info, warn, error, panic or fatal";
    Used     Choice(["json", "console"]) "log-format" = "json", "json or console";
    Refused  Bool     "enable-log-rotation" = "false", "rotate the log file";
    Accepted Text     "log-rotation-config-json" = "{\"maxsize\":100,\"maxage\":0,\"maxbackups\":0,\"localtime\":false,\"compress\":false}", "how to rotate";
    Accepted Choice(["basic", "extensive"]) "metrics" = "basic", "basic or extensive; both show the same metrics";
    Accepted Bool     "enable-pprof" = "false", "no meaning here: pprof is Go's";
    Refused  Bool     "enable-distributed-tracing" = "false", "send traces by OTLP";
    Accepted Text     "distributed-tracing-address" = "localhost:4317", "where to send traces";
    Accepted Text     "distributed-tracing-service-name" = "etcd", "service name in traces";
    Accepted Text     "distributed-tracing-instance-id" = "", "instance id in traces";
    Accepted Unsigned "distributed-tracing-sampling-rate" = "0", "samples per million";

    // Background work.
    Used     Choice(["periodic", "revision"]) "auto-compaction-mode" = "periodic", "periodic or revision";
    Used     Text     "auto-compaction-retention" = "0", "0: off; periodic: hours or a duration, revision: a number";
    Accepted Unsigned "compaction-batch-limit" = "0", "no meaning here: compaction drops whole files";
    Accepted Duration "compaction-sleep-interval" = "0s", "no meaning here: compaction does not pause";
    Accepted Duration "corrupt-check-time" = "0s", "distance of hash comparisons between members; 0: off";
    Accepted Duration "compact-hash-check-time" = "1m0s", "distance of compact hash comparisons";
    Used     Duration "watch-progress-notify-interval" = "0s", "distance of progress bookmarks; 0: 10 minutes, at least 100ms";
    Accepted Duration "downgrade-check-time" = "5s", "distance of downgrade checks";
    Accepted Bool     "enable-grpc-gateway" = "true", "serve /v3 as JSON; not served yet";

    // Names of etcd up to 3.6.
    Accepted Unsigned "experimental-bootstrap-defrag-threshold-megabytes" = "0", "old name";
    Accepted Bool     "experimental-compact-hash-check-enabled" = "false", "old name";
    Accepted Duration "experimental-compact-hash-check-time" = "1m0s", "old name";
    Accepted Unsigned "experimental-compaction-batch-limit" = "0", "old name";
    Accepted Duration "experimental-compaction-sleep-interval" = "0s", "old name";
    Accepted Duration "experimental-corrupt-check-time" = "0s", "old name";
    Accepted Text     "experimental-distributed-tracing-address" = "localhost:4317", "old name";
    Accepted Text     "experimental-distributed-tracing-instance-id" = "", "old name";
    Accepted Unsigned "experimental-distributed-tracing-sampling-rate" = "0", "old name";
    Accepted Text     "experimental-distributed-tracing-service-name" = "etcd", "old name";
    Accepted Duration "experimental-downgrade-check-time" = "5s", "old name";
    Refused  Bool     "experimental-enable-distributed-tracing" = "false", "old name";
    Accepted Bool     "experimental-enable-lease-checkpoint" = "false", "old name";
    Accepted Bool     "experimental-enable-lease-checkpoint-persist" = "false", "old name";
    Accepted Bool     "experimental-initial-corrupt-check" = "false", "old name";
    Accepted Bool     "experimental-memory-mlock" = "false", "old name";
    Refused  Bool     "experimental-peer-skip-client-san-verification" = "false", "old name";
    Accepted Unsigned "experimental-snapshot-catch-up-entries" = "5000", "old name";
    Accepted Unsigned "experimental-snapshot-catchup-entries" = "5000", "old name";
    Accepted Bool     "experimental-stop-grpc-service-on-defrag" = "false", "old name";
    Accepted Bool     "experimental-txn-mode-write-with-shared-buffer" = "true", "old name";
    Accepted Duration "experimental-warning-apply-duration" = "100ms", "old name of --warning-apply-duration";
    Used     Duration "experimental-warning-unary-request-duration" = "300ms", "old name of --warning-unary-request-duration";
    Used     Duration "experimental-watch-progress-notify-interval" = "0s", "old name of --watch-progress-notify-interval";
    Accepted Text     "v2-deprecation" = "", "etcd up to 3.7";

    // Taken and ignored by etcd, too.
    Silent Text "cluster-active-size" = "", "ignored";
    Silent Text "cluster-remove-delay" = "", "ignored";
    Silent Text "cluster-sync-interval" = "", "ignored";
    Silent Text "config" = "", "ignored";
    Silent Text "force" = "", "ignored";
    Silent Text "max-result-buffer" = "", "ignored";
    Silent Text "max-retry-attempts" = "", "ignored";
    Silent Text "peer-heartbeat-interval" = "", "ignored";
    Silent Text "peer-election-timeout" = "", "ignored";
    Silent Text "retry-interval" = "", "ignored";
    Silent Text "snapshot" = "", "ignored";
    Silent Text "v" = "", "ignored";
    Silent Text "vv" = "", "ignored";
    Silent Text "test.coverprofile" = "", "ignored";
    Silent Text "test.outputdir" = "", "ignored";

    // Our own.
    Used Unsigned "daymark-memory-budget-bytes" = "0", "memory for caches and buffers in all; 0: a quarter of the machine, at most 384 MiB";
    Used Unsigned "daymark-net-threads" = "0", "threads that serve connections; 0: one per core";
}

/// The flag of that name.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Values by flag, as given.
#[derive(Debug, Default)]
pub struct Given {
    values: BTreeMap<&'static str, String>,
}

impl Given {
    /// Whether somebody set the flag.
    pub fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// The value of a flag, its default if nobody set it.
    ///
    /// # Panics
    /// If there is no such flag, a mistake in this crate.
    pub fn text(&self, name: &str) -> &str {
        let flag = find(name).unwrap_or_else(|| panic!("no flag is named {name}"));
        self.values.get(name).map_or(flag.default, String::as_str)
    }

    /// Sets a value after a check of its form; the last one wins.
    pub fn set(&mut self, flag: &'static Flag, value: String) -> Result<(), String> {
        well_formed(flag.kind, &value)
            .map_err(|why| format!("invalid value {value:?} for flag -{}: {why}", flag.name))?;
        self.values.insert(flag.name, value);
        Ok(())
    }

    /// Flags that are set to something else than their default.
    pub fn changed(&self) -> impl Iterator<Item = &'static Flag> {
        FLAGS.iter().filter(|flag| self.values.get(flag.name).is_some_and(|value| !same(flag, value)))
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Start a member.
    Start(Given),
    Help,
    Version,
}

/// Why a command line is not one, by exit code.
#[derive(Debug, PartialEq, Eq)]
pub enum ParseError {
    /// An unknown flag or a bad value: exit code 2.
    Flag(String),
    /// A stray argument: exit code 1.
    Positional(String),
}

/// Reads a command line (without the program's name) by the rules of Go's flag package.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Parsed, ParseError> {
    let mut given = Given::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let dashes = argument.len() - argument.trim_start_matches('-').len();
        if argument == "--" {
            return match arguments.next() {
                Some(stray) => Err(ParseError::Positional(stray)),
                None => Ok(Parsed::Start(given)),
            };
        }
        if dashes == 0 || argument == "-" {
            return Err(ParseError::Positional(argument));
        }
        let body = &argument[dashes.min(2)..];
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        if name.is_empty() || dashes > 2 {
            return Err(ParseError::Flag(format!("bad flag syntax: {argument}")));
        }
        if name == "h" || name == "help" {
            return Ok(Parsed::Help);
        }
        let Some(flag) = find(name) else {
            return Err(ParseError::Flag(format!("flag provided but not defined: -{name}")));
        };
        let value = match inline {
            Some(value) => value,
            None if flag.kind == Kind::Bool => "true".to_owned(),
            None => arguments.next().ok_or(ParseError::Flag(format!("flag needs an argument: -{name}")))?,
        };
        given.set(flag, value).map_err(ParseError::Flag)?;
    }
    if parse_bool(given.text("version")) == Some(true) {
        return Ok(Parsed::Version);
    }
    Ok(Parsed::Start(given))
}

/// The text of `--help`.
pub fn help() -> String {
    let mut text = format!("{USAGE}\nFlags:\n");
    for flag in FLAGS.iter().filter(|flag| flag.handling != Handling::Silent) {
        let note = match flag.handling {
            Handling::Used | Handling::Silent => "",
            Handling::Accepted => " [accepted, without effect]",
            Handling::Refused => " [not served yet]",
        };
        let default = if flag.default.is_empty() { "''" } else { flag.default };
        text.push_str(&format!("  --{} {default}\n      {}{note}\n", flag.name, flag.meaning));
    }
    text
}

/// What is printed when flags are wrong.
pub const USAGE: &str = "Usage:
  daymark [flags]            start a member
  daymark bench <load> ...   load a server and measure it
  daymark --version          show versions
  daymark -h | --help        show all flags
";

fn well_formed(kind: Kind, value: &str) -> Result<(), String> {
    let fine = match kind {
        Kind::Bool => parse_bool(value).is_some(),
        Kind::Unsigned => value.parse::<u64>().is_ok(),
        Kind::Signed => value.parse::<i64>().is_ok(),
        Kind::Duration => parse_duration(value).is_some(),
        Kind::Urls => return parse_urls(value).map(|_| ()),
        Kind::Choice(choices) if !choices.contains(&value) => {
            return Err(format!("must be one of {}", choices.join(", ")));
        }
        Kind::Choice(_) | Kind::Text => true,
    };
    if fine { Ok(()) } else { Err("parse error".into()) }
}

fn same(flag: &Flag, value: &str) -> bool {
    match flag.kind {
        Kind::Bool => parse_bool(value) == parse_bool(flag.default),
        Kind::Duration => parse_duration(value) == parse_duration(flag.default),
        Kind::Unsigned | Kind::Signed | Kind::Urls | Kind::Choice(_) | Kind::Text => value == flag.default,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Parsed, ParseError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn given(line: &str) -> Given {
        match parse_line(line) {
            Ok(Parsed::Start(given)) => given,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn one_dash_or_two_and_three_ways_to_give_a_value() {
        let given = given("-name a --data-dir=b --pre-vote=false --socket-reuse-port --unsafe-no-fsync=1");
        assert_eq!(given.text("name"), "a");
        assert_eq!(given.text("data-dir"), "b");
        assert_eq!(given.text("pre-vote"), "false");
        assert_eq!(given.text("socket-reuse-port"), "true");
        assert_eq!(parse_bool(given.text("unsafe-no-fsync")), Some(true));
        assert_eq!(given.text("max-txn-ops"), "128", "not given: the default");
        assert!(!given.has("max-txn-ops"));
    }

    #[test]
    fn the_last_of_repeated_flags_wins() {
        assert_eq!(given("--name a --name b").text("name"), "b");
    }

    #[test]
    fn a_boolean_takes_no_separate_value() {
        assert_eq!(parse_line("--pre-vote false").unwrap_err(), ParseError::Positional("false".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, message) in [
            ("--nonsense", "flag provided but not defined: -nonsense"),
            ("--name", "flag needs an argument: -name"),
            ("--heartbeat-interval=fast", "invalid value \"fast\" for flag -heartbeat-interval: parse error"),
            ("--pre-vote=maybe", "invalid value \"maybe\" for flag -pre-vote: parse error"),
            ("--grpc-keepalive-min-time=5", "invalid value \"5\" for flag -grpc-keepalive-min-time: parse error"),
            ("--log-format=x", "invalid value \"x\" for flag -log-format: must be one of json, console"),
            (
                "--listen-client-urls=localhost:1",
                "invalid value \"localhost:1\" for flag -listen-client-urls: URL scheme must be http, https, unix, or \
                 unixs: localhost:1",
            ),
            ("---name=a", "bad flag syntax: ---name=a"),
            ("--=a", "bad flag syntax: --=a"),
        ] {
            assert_eq!(parse_line(line).unwrap_err(), ParseError::Flag(message.into()), "{line}");
        }
        assert_eq!(parse_line("--name a stray").unwrap_err(), ParseError::Positional("stray".into()));
    }

    #[test]
    fn help_and_version_win_over_the_rest() {
        assert!(matches!(parse_line("-h"), Ok(Parsed::Help)));
        assert!(matches!(parse_line("--name a --help"), Ok(Parsed::Help)));
        assert!(matches!(parse_line("--version --name a"), Ok(Parsed::Version)));
        assert!(matches!(parse_line("--version=false"), Ok(Parsed::Start(_))));
    }

    #[test]
    fn names_are_unique_and_defaults_are_well_formed() {
        for (position, flag) in FLAGS.iter().enumerate() {
            assert_eq!(well_formed(flag.kind, flag.default), Ok(()), "{}", flag.name);
            assert!(FLAGS[..position].iter().all(|other| other.name != flag.name), "{} twice", flag.name);
            assert!(!flag.meaning.is_empty(), "{}", flag.name);
        }
    }

    /// The names of etcd 3.8's flags with their defaults, written down independently of the table.
    #[test]
    fn every_flag_of_etcd_is_there_with_its_default() {
        let expected = include_str!("etcd_flags.txt");
        let mut count = 0;
        for line in expected.lines().filter(|line| !line.starts_with('#')) {
            let (name, default) = line.split_once(' ').unwrap_or((line, ""));
            let flag = find(name).unwrap_or_else(|| panic!("--{name} is missing"));
            assert!(same(flag, default), "--{name}: {} instead of {default}", flag.default);
            count += 1;
        }
        assert!(count > 120, "only {count} names in the list");
    }

    #[test]
    fn help_names_every_flag_that_is_not_silent() {
        let help = help();
        for flag in FLAGS.iter().filter(|flag| flag.handling != Handling::Silent) {
            assert!(help.contains(&format!("--{} ", flag.name)), "{}", flag.name);
        }
    }
}
