//! The flags of `daymark bench`, named like those of etcd's benchmark tool where that has them.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use daymark_client::config::Tls;

use crate::{floor, lease, page, put, range, stm, txn_mixed, txn_put, watch, watch_get, watch_latency};

/// Where servers are looked for unless --endpoints says otherwise.
pub const DEFAULT_ENDPOINT: &str = "127.0.0.1:2379";

/// `daymark bench`: load a server and report throughput, latency and the server's cost per operation.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Clone, Debug)]
enum Command {
    /// Put keys.
    Put(put::PutArgs),
    /// Read keys or ranges.
    Range(range::RangeArgs),
    /// Put several keys in one transaction.
    TxnPut(txn_put::TxnPutArgs),
    /// Mix transactions that read and others that write.
    TxnMixed(txn_mixed::TxnMixedArgs),
    /// Read some keys and write some of them if they have not changed, again and again until it succeeds.
    Stm(stm::StmArgs),
    /// Make leases.
    LeaseGrant(lease::GrantArgs),
    /// Renew leases.
    LeaseKeepalive(lease::KeepaliveArgs),
    /// Read a key while many watchers catch up with the past.
    WatchGet(watch_get::WatchGetArgs),
    /// Put one key at a steady rate and time its events.
    WatchLatency(watch_latency::WatchLatencyArgs),
    /// Put keys into a server that keeps nothing: what the transport alone costs.
    Floor(floor::FloorArgs),
    /// Make a page with figures out of measurements.
    Report(page::ReportArgs),
    /// Put keys under watched prefixes and time their events.
    Watch(watch::WatchArgs),
}

/// Flags that every load has.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Client addresses of the servers, separated by commas: host:port, with http:// or https:// before it, or
    /// unix:path. Connections are dealt out to them in turn. An etcd may be measured as well as a Daymark.
    #[arg(long, value_delimiter = ',', default_value = DEFAULT_ENDPOINT)]
    pub endpoints: Vec<String>,
    /// Authorities that vouch for the servers, PEM: connections are encrypted then.
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Certificate to show to the servers, PEM, with --key.
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Key of --cert, PEM.
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Encrypt, and believe any server.
    #[arg(long)]
    pub insecure_skip_tls_verify: bool,
    /// HTTP/2 connections in all.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub conns: u32,
    /// Clients in all, spread over the connections. Each has one operation under way at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Operations to do in all; 0: as many as fit into --duration.
    #[arg(long, default_value_t = 10_000)]
    pub total: u64,
    /// Stop after this many seconds even if operations are left.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Operations per second, sent on schedule whether or not earlier ones have been answered (open loop); latency then
    /// counts from the scheduled time. Needs enough --clients to have that many under way. 0: each client sends its
    /// next operation when the last one is answered (closed loop).
    #[arg(long, default_value_t = 0.0)]
    pub rate: f64,
    /// Threads of the harness. One is right unless the report says that the harness was the bottleneck.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Start of all random choices: the same seed gives the same keys and values.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Processes of the servers on this machine, separated by commas: adds their CPU time per operation, memory and
    /// context switches to the report.
    #[arg(long, value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Also write the report, with the throughput of every second, as JSON into this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Succeed even if operations failed; they are reported all the same.
    #[arg(long)]
    pub allow_errors: bool,
    /// Seconds that each call may take, as clients of gRPC say with a deadline: then the head of every call differs from the one
    /// before in the time that is left. Calls of streams have none.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub call_timeout: Option<Duration>,
    /// Give up when no operation has been answered for this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub stall_timeout: Duration,
}

impl CommonArgs {
    /// What connections are encrypted with, if the flags name something.
    pub fn tls(&self) -> Option<Tls> {
        let insecure_skip_verify = self.insecure_skip_tls_verify;
        let tls =
            Tls { cacert: self.cacert.clone(), cert: self.cert.clone(), key: self.key.clone(), insecure_skip_verify };
        Some(tls).filter(|tls| *tls != Tls::default())
    }
}

/// Flags that say which keys and values are used.
#[derive(Args, Clone, Debug)]
pub struct KeyArgs {
    /// Bytes of a key.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub key_size: u32,
    /// Number of different keys, of which each operation picks one at random; 0: as many as --total, each used once.
    /// Equal --key-space-size, --key-size and --seed mean the same keys in every sub-command.
    #[arg(long, default_value_t = 0)]
    pub key_space_size: u64,
    /// Use the keys in their order instead of random keys in random order.
    #[arg(long)]
    pub sequential_keys: bool,
}

/// Runs the load that the flags describe.
///
/// # Errors
/// Bad flags, no connection, a server that stopped answering, or failed operations without --allow-errors.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Put(args) => put::run(args),
        Command::Range(args) => range::run(args),
        Command::TxnPut(args) => txn_put::run(args),
        Command::TxnMixed(args) => txn_mixed::run(args),
        Command::Stm(args) => stm::run(args),
        Command::LeaseGrant(args) => lease::grant(args),
        Command::LeaseKeepalive(args) => lease::keepalive(args),
        Command::WatchGet(args) => watch_get::run(args),
        Command::WatchLatency(args) => watch_latency::run(args),
        Command::Report(args) => page::run(args),
        Command::Floor(args) => floor::run(args),
        Command::Watch(args) => watch::run(args),
    }
}

/// A time in seconds, more than 0.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than 0 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Command;

    use super::*;

    /// clap looks for this itself, but not in release builds; the later of two flags would read the value of the other.
    #[test]
    fn no_command_has_a_flag_twice() {
        let bench = BenchArgs::augment_args(Command::new("bench"));
        let mut commands = 0;
        for command in bench.get_subcommands() {
            let (mut ids, mut names) = (HashSet::new(), HashSet::new());
            for argument in command.get_arguments() {
                assert!(ids.insert(argument.get_id()), "{}: {} twice", command.get_name(), argument.get_id());
                let name = argument.get_long();
                assert!(name.is_none_or(|name| names.insert(name)), "{}: {name:?} twice", command.get_name());
            }
            commands += 1;
        }
        assert!(commands > 10, "{commands} commands");
    }
}
