//! `daymark bench put`: puts of single keys.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use daymark_api::etcdserverpb::PutRequest;
use serde_json::json;

use crate::{
    cli::{CommonArgs, KeyArgs},
    driver::{self, Workload},
    h2_client::{CallError, frame},
    report::Report,
    workload::{Keys, Values},
};

/// Flags of `bench put`.
#[derive(Args, Clone, Debug)]
pub struct PutArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    #[command(flatten)]
    keys: KeyArgs,
    /// Bytes of a value; values are random and cannot be compressed.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    val_size: u32,
    /// Attach the keys to this lease (decimal).
    #[arg(long, default_value_t = 0)]
    lease: i64,
}

struct Put {
    keys: Keys,
    values: Values,
    lease: i64,
}

impl Workload for Put {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Put"
    }

    fn request(&self, op: u64) -> Bytes {
        let (key, value) = (self.keys.for_op(op), self.values.for_op(op));
        frame(&PutRequest { key, value, lease: self.lease, ..Default::default() })
    }

    fn check(&self, _op: u64, answer: Bytes) -> Result<u64, CallError> {
        // An acknowledged put carries a header; without one the server has not said what it did.
        if answer.is_empty() { Err(CallError::Protocol("put answered without a header")) } else { Ok(0) }
    }
}

pub fn run(args: &PutArgs) -> Result<()> {
    load("put", args)
}

/// Runs the load; the report names it `command`.
pub fn load(command: &'static str, args: &PutArgs) -> Result<()> {
    let PutArgs { common, keys, val_size, lease } = args;
    let put =
        Put { keys: Keys::new(keys, common.seed), values: Values::new(*val_size as usize, common.seed), lease: *lease };
    let outcome = driver::run(common, Arc::new(put))?;
    let settings = json!({
        "key_size": keys.key_size,
        "val_size": val_size,
        "key_space_size": keys.key_space_size,
        "sequential_keys": keys.sequential_keys,
    });
    Report::new(command, common, settings, outcome).publish(common)
}
