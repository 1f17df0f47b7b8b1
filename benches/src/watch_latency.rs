//! `daymark bench watch-latency`: one key that is put at a steady rate, watched by several streams; how long its events
//! take. `bench watch` with the flags of etcd's tool.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use crate::{cli::CommonArgs, watch};

/// Bytes that follow the padding in a key.
const KEY_SUFFIX_BYTES: u32 = "000000/00000000".len() as u32;

/// Flags of `bench watch-latency`.
#[derive(Args, Clone, Debug)]
pub struct WatchLatencyArgs {
    /// --conns is the number of connections of the streams; --total and --rate are here called --put-total and --put-rate.
    #[command(flatten)]
    common: CommonArgs,
    /// Watch streams in all, spread over the connections.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    streams: u32,
    /// Watchers on each stream.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    watchers_per_stream: u32,
    /// Ask for the previous pair with each event.
    #[arg(long)]
    prevkv: bool,
    /// Puts in all.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    put_total: u64,
    /// Puts per second.
    #[arg(long, default_value_t = 100.0)]
    put_rate: f64,
    /// Bytes of the key.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    key_size: u32,
    /// Bytes of a value, 16 or more.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(16..=16_777_216))]
    val_size: u32,
}

pub fn run(args: &WatchLatencyArgs) -> Result<()> {
    ensure!(args.common.rate == 0.0, "--rate is called --put-rate here");
    let watch_conns = args.common.conns;
    let common = CommonArgs { conns: 1, total: args.put_total, rate: args.put_rate, ..args.common.clone() };
    watch::load(
        "watch-latency",
        &watch::WatchArgs {
            common,
            watchers: args.streams * args.watchers_per_stream,
            streams: args.streams,
            watch_conns,
            prefixes: 1,
            keys_per_prefix: 1,
            key_prefix: "w".repeat((args.key_size - KEY_SUFFIX_BYTES) as usize),
            prev_kv: args.prevkv,
            val_size: args.val_size,
            settle_timeout: Duration::from_secs(10),
        },
    )
}
