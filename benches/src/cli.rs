//! The flags of `daymark bench`, named like those of etcd's benchmark tool where that has them.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use daymark_client::config::Tls;

use crate::{put, range, watch};

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
    /// Put keys under watched prefixes and time their events.
    Watch(watch::WatchArgs),
}

/// Flags that every load has.
#[derive(Args, Clone, Debug)]
pub struct CommonArgs {
    /// Client addresses of the servers, separated by commas: host:port, with http:// or https:// before it, or
    /// unix:path. Connections are dealt out to them in turn. An etcd may be measured as well as a Daymark.
    #[arg(long, value_delimiter = ',', default_value = "127.0.0.1:2379")]
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
