//! `daymark bench txn-mixed`: transactions that read a range, and others that put a key, mixed in a given ratio. The
//! latencies of both are reported apart.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args;
use daymark_api::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request};
use prost::Message;
use serde_json::json;

use crate::{
    cli::{CommonArgs, KeyArgs},
    driver::{self, Workload},
    h2_client::{CallError, frame},
    range::Consistency,
    report::Report,
    txn_put::PATH,
    workload::{Keys, Values, fraction},
};

/// Flags of `bench txn-mixed`.
#[derive(Args, Clone, Debug)]
pub struct TxnMixedArgs {
    /// First key of the range that is read; without it the first key there is.
    #[arg(id = "first_key", value_name = "KEY")]
    key: Option<String>,
    /// The range is read up to this key; without it up to the last one.
    #[arg(long)]
    end_key: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    keys: KeyArgs,
    /// Bytes of a value; values are random and cannot be compressed.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    val_size: u32,
    /// Most keys in an answer; 0: all.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i64).range(0..))]
    limit: i64,
    /// Linearizable (l) or serializable (s) reads.
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// Reads for each write.
    #[arg(long, default_value_t = 1.0)]
    rw_ratio: f64,
}

struct TxnMixed {
    keys: Keys,
    values: Values,
    /// The framed transaction that reads.
    read: Bytes,
    /// Of all operations.
    share_of_reads: f64,
    seed: u64,
}

/// The answer to a transaction of one operation, as far as it is looked at; decoding skips the rest.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(bool, tag = "2")]
    succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    responses: Vec<ResponseOp>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    range: Option<RangeAnswer>,
    #[prost(message, optional, tag = "2")]
    put: Option<PutAnswer>,
}

#[derive(Clone, PartialEq, Message)]
struct RangeAnswer {
    #[prost(message, repeated, tag = "2")]
    keys: Vec<PutAnswer>,
}

/// Whatever is in it.
#[derive(Clone, PartialEq, Message)]
struct PutAnswer {}

impl TxnMixed {
    fn reads(&self, op: u64) -> bool {
        fraction(self.seed, op) < self.share_of_reads
    }
}

impl Workload for TxnMixed {
    fn path(&self) -> &'static str {
        PATH
    }

    fn request(&self, op: u64) -> Bytes {
        if self.reads(op) {
            return self.read.clone();
        }
        let put = PutRequest { key: self.keys.for_op(op), value: self.values.for_op(op), ..Default::default() };
        frame(&one(Request::RequestPut(put)))
    }

    fn check(&self, op: u64, answer: Bytes) -> Result<u64, CallError> {
        let answer =
            Answer::decode(answer).map_err(|_| CallError::Protocol("transaction's answer cannot be decoded"))?;
        match answer.responses.as_slice() {
            [ResponseOp { range: Some(range), .. }] if self.reads(op) => Ok(range.keys.len() as u64),
            [ResponseOp { put: Some(_), .. }] if !self.reads(op) => Ok(0),
            _ => Err(CallError::Protocol("transaction's answer does not fit its operation")),
        }
    }

    fn kind(&self, op: u64) -> Option<&'static str> {
        Some(if self.reads(op) { "read" } else { "write" })
    }
}

fn one(request: Request) -> TxnRequest {
    TxnRequest { success: vec![RequestOp { request: Some(request) }], ..Default::default() }
}

pub fn run(args: &TxnMixedArgs) -> Result<()> {
    let common = &args.common;
    ensure!(args.rw_ratio >= 0.0 && args.rw_ratio.is_finite(), "--rw-ratio must not be negative");
    // A key or an end of one zero byte is etcd's word for "the first" and "no end".
    let bound = |key: &Option<String>| key.clone().map_or(Bytes::from_static(&[0]), Bytes::from);
    let read = RangeRequest {
        key: bound(&args.key),
        range_end: bound(&args.end_key),
        limit: args.limit,
        serializable: args.consistency == Consistency::Serializable,
        ..Default::default()
    };
    let load = TxnMixed {
        keys: Keys::new(&args.keys, common.seed),
        values: Values::new(args.val_size as usize, common.seed),
        read: frame(&one(Request::RequestRange(read))),
        share_of_reads: args.rw_ratio / (1.0 + args.rw_ratio),
        seed: common.seed,
    };
    let outcome = driver::run(common, Arc::new(load))?;
    let settings = json!({
        "key_size": args.keys.key_size,
        "val_size": args.val_size,
        "key_space_size": args.keys.key_space_size,
        "limit": args.limit,
        "serializable": args.consistency == Consistency::Serializable,
        "rw_ratio": args.rw_ratio,
    });
    Report::new("txn-mixed", common, settings, outcome).publish(common)
}
