//! `daymark bench range`: reads of single keys that an earlier `bench put` wrote, or of one given range, at once or page by
//! page.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use daymark_api::etcdserverpb::RangeRequest;
use prost::Message;
use serde_json::json;

use crate::{
    cli::{CommonArgs, KeyArgs},
    driver::{self, Workload},
    h2_client::{CallError, frame},
    list::Lists,
    report::Report,
    workload::Keys,
};

/// Flags of `bench range`.
#[derive(Args, Clone, Debug)]
pub struct RangeArgs {
    /// The key to read every time, or the first one of the range. Without it random keys of the key space are read,
    /// those that `bench put` wrote with the same --key-space-size (or that many as --total), --key-size and --seed.
    #[arg(id = "first_key", value_name = "KEY")]
    key: Option<String>,
    /// Read the range from the key up to this one.
    range_end: Option<String>,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    keys: KeyArgs,
    /// Read all keys that begin with the key; with an empty key (''): all keys there are.
    #[arg(long, requires = "first_key", conflicts_with = "range_end")]
    prefix: bool,
    /// Read the range in pages of this many keys, at the revision of the first one, as lists of Kubernetes are read. An
    /// operation is a whole list then. 0: the range is read at once.
    #[arg(long, default_value_t = 0, requires = "first_key", conflicts_with_all = ["limit", "count_only"],
          value_parser = clap::value_parser!(i64).range(0..))]
    page_size: i64,
    /// Linearizable (l): as new as the cluster; serializable (s): what the asked member has.
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    consistency: Consistency,
    /// Most keys in an answer; 0: all.
    #[arg(long, default_value_t = 0)]
    limit: i64,
    /// Ask for the number of keys only.
    #[arg(long)]
    count_only: bool,
    /// Ask for keys without values.
    #[arg(long)]
    keys_only: bool,
    /// An answer without any key counts as an error.
    #[arg(long)]
    must_exist: bool,
}

/// What a read promises.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    #[value(name = "l", alias = "linearizable")]
    Linearizable,
    #[value(name = "s", alias = "serializable")]
    Serializable,
}

struct Range {
    keys: Keys,
    /// The framed request when it is always the same one.
    fixed: Option<Bytes>,
    template: RangeRequest,
    must_exist: bool,
}

/// A range answer of which only the count is of interest; decoding skips the rest.
#[derive(Clone, PartialEq, Message)]
struct CountOnly {
    #[prost(int64, tag = "4")]
    count: i64,
}

impl Workload for Range {
    fn path(&self) -> &'static str {
        "/etcdserverpb.KV/Range"
    }

    fn request(&self, op: u64) -> Bytes {
        match &self.fixed {
            Some(framed) => framed.clone(),
            None => frame(&RangeRequest { key: self.keys.for_op(op), ..self.template.clone() }),
        }
    }

    fn check(&self, _op: u64, answer: Bytes) -> Result<u64, CallError> {
        let count = CountOnly::decode(answer).map_err(|_| CallError::Protocol("range answer cannot be decoded"))?.count;
        if self.must_exist && count == 0 {
            return Err(CallError::Protocol("key does not exist"));
        }
        Ok(count.unsigned_abs())
    }
}

pub fn run(args: &RangeArgs) -> Result<()> {
    let common = &args.common;
    let mut key_args = args.keys.clone();
    if args.key.is_none() && key_args.key_space_size == 0 {
        ensure!(common.total > 0, "random keys need --key-space-size or --total");
        key_args.key_space_size = common.total;
    }
    let (key, range_end) = bounds(args);
    let template = RangeRequest {
        key,
        range_end,
        limit: if args.page_size > 0 { args.page_size } else { args.limit },
        serializable: args.consistency == Consistency::Serializable,
        count_only: args.count_only,
        keys_only: args.keys_only,
        ..Default::default()
    };
    let settings = json!({
        "key": args.key,
        "range_end": args.range_end,
        "prefix": args.prefix,
        "page_size": args.page_size,
        "key_size": key_args.key_size,
        "key_space_size": key_args.key_space_size,
        "serializable": args.consistency == Consistency::Serializable,
        "limit": args.limit,
        "count_only": args.count_only,
        "keys_only": args.keys_only,
    });
    if args.page_size > 0 {
        let outcome = driver::run_operation(common, Arc::new(Lists { template, must_exist: args.must_exist }))?;
        return Report::new("range", common, settings, outcome).publish(common);
    }
    let range = Range {
        keys: Keys::new(&key_args, common.seed),
        fixed: args.key.is_some().then(|| frame(&template)),
        template,
        must_exist: args.must_exist,
    };
    let outcome = driver::run(common, Arc::new(range))?;
    Report::new("range", common, settings, outcome).publish(common)
}

/// First key and end of the range to read.
fn bounds(args: &RangeArgs) -> (Bytes, Bytes) {
    let key = Bytes::from(args.key.clone().unwrap_or_default());
    match (args.prefix, &args.range_end) {
        // In etcd's words: from the first key there is, without an end.
        (true, _) if key.is_empty() => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
        (true, _) => (key.clone(), after_prefix(&key)),
        (false, end) => (key, Bytes::from(end.clone().unwrap_or_default())),
    }
}

/// The first key behind all that begin with `prefix`; etcd's word for "no end" where there is none.
pub fn after_prefix(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|&byte| byte < u8::MAX).map_or(0, |last| last + 1);
    let mut end = prefix[..kept].to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(&after_prefix(b"a/")[..], b"a0");
        assert_eq!(&after_prefix(&[1, 0xff, 0xff])[..], [2]);
        assert_eq!(&after_prefix(&[0xff])[..], [0], "nothing is behind it: no end");
    }
}
