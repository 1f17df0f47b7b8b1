//! `daymark bench txn-put`: transactions of several puts, without a condition.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args;
use daymark_api::etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request};
use serde_json::json;

use crate::{
    cli::{CommonArgs, KeyArgs},
    driver::{self, Workload},
    h2_client::{CallError, frame},
    report::Report,
    workload::{Keys, Values},
};

/// gRPC path of transactions.
pub const PATH: &str = "/etcdserverpb.KV/Txn";

/// Flags of `bench txn-put`.
#[derive(Args, Clone, Debug)]
pub struct TxnPutArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// The transactions go round over the key space, so that none holds a key twice.
    #[command(flatten)]
    keys: KeyArgs,
    /// Bytes of a value; values are random and cannot be compressed.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    val_size: u32,
    /// Puts in a transaction.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    txn_ops: u64,
}

struct TxnPut {
    keys: Keys,
    values: Values,
    ops: u64,
}

impl Workload for TxnPut {
    fn path(&self) -> &'static str {
        PATH
    }

    fn request(&self, op: u64) -> Bytes {
        let success = (op * self.ops..(op + 1) * self.ops).map(|number| {
            let put =
                PutRequest { key: self.keys.in_turn(number), value: self.values.for_op(number), ..Default::default() };
            RequestOp { request: Some(Request::RequestPut(put)) }
        });
        frame(&TxnRequest { success: success.collect(), ..Default::default() })
    }

    fn check(&self, _op: u64, answer: Bytes) -> Result<u64, CallError> {
        // Without a header the server has not said what it did.
        if answer.is_empty() { Err(CallError::Protocol("transaction answered without a header")) } else { Ok(0) }
    }
}

pub fn run(args: &TxnPutArgs) -> Result<()> {
    let TxnPutArgs { common, keys, val_size, txn_ops } = args;
    ensure!(
        keys.key_space_size == 0 || keys.key_space_size >= *txn_ops,
        "--key-space-size must be 0 or at least --txn-ops: a transaction may put a key only once"
    );
    let load = TxnPut {
        keys: Keys::new(keys, common.seed),
        values: Values::new(*val_size as usize, common.seed),
        ops: *txn_ops,
    };
    let outcome = driver::run(common, Arc::new(load))?;
    let settings = json!({
        "key_size": keys.key_size,
        "val_size": val_size,
        "key_space_size": keys.key_space_size,
        "txn_ops": txn_ops,
    });
    Report::new("txn-put", common, settings, outcome).publish(common)
}
