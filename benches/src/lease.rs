//! `daymark bench lease-grant` and `lease-keepalive`: making leases, and renewing them over streams that stay open.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use daymark_api::etcdserverpb::{LeaseGrantRequest, LeaseKeepAliveRequest};
use prost::Message;
use serde_json::json;

use crate::{
    cli::CommonArgs,
    driver::{self, Caller, Done, Operation, Workload},
    h2_client::{CallError, Duplex, frame},
    report::Report,
    workload::{choose, lease_id},
};

const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// Leases that clients of `lease-keepalive` make for themselves have numbers from here on.
const OWN_LEASES: u64 = 1 << 40;

/// Flags of `bench lease-grant`.
#[derive(Args, Clone, Debug)]
pub struct GrantArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Time to live of the leases, in seconds.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(i64).range(1..=9_000_000_000))]
    ttl: i64,
}

/// Flags of `bench lease-keepalive`.
#[derive(Args, Clone, Debug)]
pub struct KeepaliveArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Renew the leases that an earlier `lease-grant` made with this --total and the same --seed, at random. 0: each client
    /// makes one for itself and renews that.
    #[arg(long, default_value_t = 0)]
    leases: u64,
    /// Time to live of the leases that clients make, in seconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=9_000_000_000))]
    ttl: i64,
}

/// The answer to a grant or to a keepalive, as far as it is looked at; decoding skips the rest.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int64, tag = "2")]
    id: i64,
    #[prost(int64, tag = "3")]
    ttl: i64,
}

struct Grants {
    ttl: i64,
    seed: u64,
}

impl Workload for Grants {
    fn path(&self) -> &'static str {
        GRANT
    }

    fn request(&self, op: u64) -> Bytes {
        frame(&LeaseGrantRequest { ttl: self.ttl, id: lease_id(self.seed, op) })
    }

    fn check(&self, op: u64, answer: Bytes) -> Result<u64, CallError> {
        let answer = Answer::decode(answer).map_err(|_| CallError::Protocol("grant's answer cannot be decoded"))?;
        if answer.id != lease_id(self.seed, op) {
            return Err(CallError::Protocol("another lease was granted than asked for"));
        }
        Ok(0)
    }
}

struct Keepalives {
    leases: u64,
    ttl: i64,
    seed: u64,
}

/// One client's open stream.
struct Renewing {
    stream: Duplex,
    own: i64,
}

impl Operation for Keepalives {
    type Client = Renewing;

    async fn open(&self, number: u32, caller: &mut Caller) -> Result<Renewing, CallError> {
        let own = match self.leases {
            0 => lease_id(self.seed, OWN_LEASES + u64::from(number)),
            leases => lease_id(self.seed, u64::from(number) % leases),
        };
        if self.leases == 0 {
            let request = LeaseGrantRequest { ttl: self.ttl, id: own };
            match caller.unary(&caller.head(GRANT), frame(&request)).await {
                // Of an earlier run, or of this one before the connection broke.
                Err(CallError::Status { message, .. }) if message.contains("lease already exists") => {}
                outcome => drop(outcome?),
            }
        }
        // A server may begin its answer only with the first message: so there is one.
        let mut stream = caller.stream(&caller.head(KEEP_ALIVE), frame(&LeaseKeepAliveRequest { id: own })).await?;
        check(stream.next().await?, own)?;
        Ok(Renewing { stream, own })
    }

    async fn perform(&self, client: &mut Renewing, _caller: &mut Caller, op: u64) -> Result<Done, CallError> {
        let id = match self.leases {
            0 => client.own,
            leases => lease_id(self.seed, choose(self.seed, op, 1, leases)[0]),
        };
        client.stream.send(frame(&LeaseKeepAliveRequest { id }))?;
        let bytes = check(client.stream.next().await?, id)?;
        Ok(Done { bytes, ..Done::default() })
    }
}

/// Whether a lease was renewed; the bytes of the answer.
fn check(answer: Option<Bytes>, id: i64) -> Result<u64, CallError> {
    let answer = answer.ok_or_else(|| CallError::Broken("the server ended the keepalive stream".to_owned()))?;
    let bytes = answer.len() as u64;
    let answer = Answer::decode(answer).map_err(|_| CallError::Protocol("keepalive's answer cannot be decoded"))?;
    if answer.id != id {
        return Err(CallError::Protocol("another lease was renewed than asked for"));
    }
    if answer.ttl <= 0 {
        return Err(CallError::Protocol("the lease does not exist (any more)"));
    }
    Ok(bytes)
}

pub fn grant(args: &GrantArgs) -> Result<()> {
    let GrantArgs { common, ttl } = args;
    let outcome = driver::run(common, Arc::new(Grants { ttl: *ttl, seed: common.seed }))?;
    Report::new("lease-grant", common, json!({ "ttl": ttl }), outcome).publish(common)
}

pub fn keepalive(args: &KeepaliveArgs) -> Result<()> {
    let KeepaliveArgs { common, leases, ttl } = args;
    let load = Keepalives { leases: *leases, ttl: *ttl, seed: common.seed };
    let outcome = driver::run_operation(common, Arc::new(load))?;
    Report::new("lease-keepalive", common, json!({ "leases": leases, "ttl": ttl }), outcome).publish(common)
}
