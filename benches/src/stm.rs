//! `daymark bench stm`: optimistic transactions as clients build them out of reads and one conditional transaction, begun
//! again when something they have read was changed meanwhile. The isolation levels are those of etcd's clients.

use std::{collections::HashMap, sync::Arc};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use daymark_api::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};
use http::request::Parts;
use prost::Message;
use serde_json::json;

use crate::{
    cli::CommonArgs,
    driver::{self, Caller, Done, Operation},
    h2_client::{CallError, frame},
    report::Report,
    txn_put,
    workload::{Values, choose},
};

/// Flags of `bench stm`.
#[derive(Args, Clone, Debug)]
pub struct StmArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Read committed (c): what was read may have changed at the commit. Repeatable reads (r): it may not. Serializable
    /// (s): and all of it is of one revision. Serializable snapshot (ss): and what is written has not changed since.
    #[arg(long, value_enum, default_value_t = Isolation::RepeatableReads)]
    isolation: Isolation,
    /// Different keys of the load.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Keys that a transaction reads.
    #[arg(long, default_value_t = 1)]
    keys_per_txn: u32,
    /// How many of them in a hundred it also writes.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    txn_wr_percent: u32,
    /// Bytes of a value; values are random and cannot be compressed.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    val_size: u32,
}

/// What a transaction promises its caller.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    #[value(name = "c")]
    ReadCommitted,
    #[value(name = "r")]
    RepeatableReads,
    #[value(name = "s")]
    Serializable,
    #[value(name = "ss")]
    SerializableSnapshot,
}

impl Isolation {
    /// Whether all reads are at the revision of the first one.
    fn reads_one_revision(self) -> bool {
        matches!(self, Self::Serializable | Self::SerializableSnapshot)
    }
}

struct Stm {
    isolation: Isolation,
    keys: u64,
    keys_per_txn: usize,
    /// How many of them are written.
    writes: usize,
    values: Values,
    seed: u64,
}

/// One attempt: what has been read so far.
#[derive(Debug, Default)]
struct Attempt {
    /// Of the first read.
    revision: i64,
    /// Keys and when they were changed last; 0: they do not exist.
    reads: Vec<(Bytes, i64)>,
}

/// A range answer as far as it is looked at; decoding skips the rest.
#[derive(Clone, PartialEq, Message)]
struct RangeAnswer {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    keys: Vec<Key>,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Key {
    #[prost(int64, tag = "3")]
    mod_revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct TxnAnswer {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(bool, tag = "2")]
    succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    responses: Vec<ResponseOp>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    range: Option<RangeAnswer>,
}

/// What one client keeps: the heads of its calls.
struct Heads {
    range: Parts,
    txn: Parts,
}

impl Operation for Stm {
    type Client = Heads;

    async fn open(&self, _number: u32, caller: &mut Caller) -> Result<Heads, CallError> {
        Ok(Heads { range: caller.head("/etcdserverpb.KV/Range"), txn: caller.head(txn_put::PATH) })
    }

    async fn perform(&self, heads: &mut Heads, caller: &mut Caller, op: u64) -> Result<Done, CallError> {
        let keys = choose(self.seed, op, self.keys_per_txn, self.keys);
        let keys: Vec<_> = keys.into_iter().map(|number| Bytes::from(format!("stm/{number:012}"))).collect();
        let (mut done, mut fresh) = (Done::default(), Attempt::default());
        loop {
            let attempt = self.read(heads, caller, &keys, fresh, &mut done).await?;
            let answer = caller.unary(&heads.txn, frame(&self.commit(&attempt, op))).await?;
            done.bytes += answer.len() as u64;
            let answer =
                TxnAnswer::decode(answer).map_err(|_| CallError::Protocol("transaction's answer cannot be decoded"))?;
            if answer.header.is_none() {
                return Err(CallError::Protocol("transaction answered without a header"));
            }
            if answer.succeeded {
                return Ok(done);
            }
            done.retries += 1;
            fresh = self.refused(&keys, answer)?;
        }
    }
}

impl Stm {
    /// Reads the keys that `attempt` does not know yet.
    async fn read(
        &self,
        heads: &Heads,
        caller: &mut Caller,
        keys: &[Bytes],
        mut attempt: Attempt,
        done: &mut Done,
    ) -> Result<Attempt, CallError> {
        for key in &keys[attempt.reads.len()..] {
            let mut range = RangeRequest { key: key.clone(), ..Default::default() };
            if self.isolation.reads_one_revision() && attempt.revision > 0 {
                (range.revision, range.serializable) = (attempt.revision, true);
            }
            let answer = caller.unary(&heads.range, frame(&range)).await?;
            done.bytes += answer.len() as u64;
            let answer =
                RangeAnswer::decode(answer).map_err(|_| CallError::Protocol("range answer cannot be decoded"))?;
            let header = answer.header.ok_or(CallError::Protocol("range answered without a header"))?;
            if attempt.revision == 0 {
                attempt.revision = header.revision;
            }
            done.keys += answer.keys.len() as u64;
            attempt.reads.push((key.clone(), answer.keys.first().map_or(0, |key| key.mod_revision)));
        }
        Ok(attempt)
    }

    /// The transaction that writes, if nothing that matters has changed; and else tells what is there now.
    fn commit(&self, attempt: &Attempt, op: u64) -> TxnRequest {
        let compare = |key: &Bytes, result: CompareResult, revision: i64| Compare {
            result: result as i32,
            target: CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Default::default()
        };
        let written = &attempt.reads[..self.writes];
        let mut compares = Vec::new();
        if self.isolation != Isolation::ReadCommitted {
            compares.extend(attempt.reads.iter().map(|(key, revision)| compare(key, CompareResult::Equal, *revision)));
        }
        if self.isolation == Isolation::SerializableSnapshot {
            compares.extend(written.iter().map(|(key, _)| compare(key, CompareResult::Less, attempt.revision + 1)));
        }
        let put = |key: &Bytes| {
            let value = self.values.for_op(op);
            Request::RequestPut(PutRequest { key: key.clone(), value, ..Default::default() })
        };
        let get = |key: &Bytes| Request::RequestRange(RangeRequest { key: key.clone(), ..Default::default() });
        let ops = |reads: &[(Bytes, i64)], make: &dyn Fn(&Bytes) -> Request| {
            reads.iter().map(|(key, _)| RequestOp { request: Some(make(key)) }).collect()
        };
        let failure = match self.isolation.reads_one_revision() {
            true => ops(&attempt.reads, &get),
            false => Vec::new(),
        };
        TxnRequest { compare: compares, success: ops(written, &put), failure }
    }

    /// What a refused commit has told about the keys: enough to try again, where all reads are of one revision.
    fn refused(&self, keys: &[Bytes], answer: TxnAnswer) -> Result<Attempt, CallError> {
        if !self.isolation.reads_one_revision() {
            return Ok(Attempt::default());
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        let told: HashMap<_, _> = keys.iter().zip(answer.responses).collect();
        let reads = keys.iter().map(|key| {
            let range = told.get(key)?.range.as_ref()?;
            Some((key.clone(), range.keys.first().map_or(0, |key| key.mod_revision)))
        });
        let reads: Option<Vec<_>> = reads.collect();
        let reads = reads.ok_or(CallError::Protocol("transaction's answer does not fit its operations"))?;
        Ok(Attempt { revision, reads })
    }
}

pub fn run(args: &StmArgs) -> Result<()> {
    let common = &args.common;
    ensure!(u64::from(args.keys_per_txn) <= args.keys, "--keys-per-txn must be at most --keys");
    let stm = Stm {
        isolation: args.isolation,
        keys: args.keys,
        keys_per_txn: args.keys_per_txn as usize,
        writes: (args.keys_per_txn * args.txn_wr_percent / 100) as usize,
        values: Values::new(args.val_size as usize, common.seed),
        seed: common.seed,
    };
    let outcome = driver::run_operation(common, Arc::new(stm))?;
    let settings = json!({
        "isolation": format!("{:?}", args.isolation),
        "keys": args.keys,
        "keys_per_txn": args.keys_per_txn,
        "txn_wr_percent": args.txn_wr_percent,
        "val_size": args.val_size,
    });
    Report::new("stm", common, settings, outcome).publish(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stm(isolation: Isolation) -> Stm {
        Stm { isolation, keys: 10, keys_per_txn: 2, writes: 1, values: Values::new(8, 1), seed: 1 }
    }

    fn attempt() -> Attempt {
        Attempt { revision: 20, reads: vec![("a".into(), 7), ("b".into(), 0)] }
    }

    #[test]
    fn each_isolation_compares_what_it_promises() {
        let compared = |isolation| {
            let txn = stm(isolation).commit(&attempt(), 1);
            assert_eq!(txn.success.len(), 1, "one of two keys is written");
            let compare = |c: Compare| (c.key, c.result == CompareResult::Less as i32, c.target_union);
            txn.compare.into_iter().map(compare).collect::<Vec<_>>()
        };
        let unchanged = [("a", 7), ("b", 0)];
        let unchanged: Vec<_> =
            unchanged.map(|(key, at)| (key.into(), false, Some(TargetUnion::ModRevision(at)))).into();
        assert_eq!(compared(Isolation::ReadCommitted), []);
        assert_eq!(compared(Isolation::RepeatableReads), unchanged);
        assert_eq!(compared(Isolation::Serializable), unchanged);
        let mut with_written = unchanged;
        with_written.push(("a".into(), true, Some(TargetUnion::ModRevision(21))));
        assert_eq!(compared(Isolation::SerializableSnapshot), with_written);
    }

    #[test]
    fn a_refused_commit_tells_what_to_try_next() {
        let keys = ["a".into(), "b".into()];
        let range = |revision: Option<i64>| {
            let keys = revision.map(|mod_revision| Key { mod_revision }).into_iter().collect();
            ResponseOp { range: Some(RangeAnswer { keys, ..Default::default() }) }
        };
        let mut answer = TxnAnswer { header: Some(Header { revision: 30 }), ..Default::default() };
        answer.responses = vec![range(Some(25)), range(None)];
        let next = stm(Isolation::Serializable).refused(&keys, answer.clone()).expect("fits");
        assert_eq!((next.revision, next.reads), (30, vec![("a".into(), 25), ("b".into(), 0)]));
        let next = stm(Isolation::RepeatableReads).refused(&keys, answer.clone()).expect("reads anew");
        assert!(next.reads.is_empty());
        answer.responses.pop();
        assert!(stm(Isolation::Serializable).refused(&keys, answer).is_err());
    }
}
