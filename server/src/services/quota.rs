//! The size limit of the data: what a request costs, and how a member refuses what does not fit any more. The size is an
//! estimate that is kept up to date elsewhere; looking at it costs a few loads. Room on the disk is another matter.

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::alarm_request::AlarmAction;
use daymark_api::etcdserverpb::request_op::Request as Op;

use super::Door;
use crate::command::Kind;
use crate::error::Error;
use crate::request::Request;

/// What a key with its value takes beside their bytes, as etcd estimates it.
const PUT_BYTES: u64 = 256;
/// What a lease takes, likewise.
const LEASE_BYTES: u64 = 64;

/// What a request may add to the data, in bytes; 0 for one that is never refused.
pub fn cost(request: &Request) -> u64 {
    match request {
        Request::Put(put) => put_cost(put),
        Request::Txn(txn) => txn_cost(txn),
        Request::LeaseGrant(_) => LEASE_BYTES,
        _ => 0,
    }
}

fn put_cost(put: &pb::PutRequest) -> u64 {
    PUT_BYTES + put.key.len() as u64 + put.value.len() as u64
}

/// That of the larger branch, nested ones included.
fn txn_cost(txn: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| ops.iter().map(op_cost).sum::<u64>();
    branch(&txn.success).max(branch(&txn.failure))
}

fn op_cost(op: &pb::RequestOp) -> u64 {
    match &op.request {
        Some(Op::RequestPut(put)) => put_cost(put),
        Some(Op::RequestTxn(nested)) => txn_cost(nested),
        _ => 0,
    }
}

impl Door {
    /// Refuses what does not fit, and raises the alarm that then refuses it on every member until an operator has made
    /// room and disarmed it.
    pub(super) async fn refuse_for_quota(&self) -> Error {
        self.raise_no_space().await;
        Error::NoSpace
    }

    /// Whether the data may grow by `cost`. Looked at before anything else of a request, and with 0 after a write.
    pub(super) fn fits(&self, cost: u64) -> bool {
        let quota = self.member().settings.quota_bytes;
        u64::try_from(quota).map_or(true, |quota| self.views().size.bytes(self.keyspace()) + cost < quota)
    }

    /// Once: while the alarm is active nobody asks for it again. What failed now is asked for with the next refusal.
    async fn raise_no_space(&self) {
        let alarm = pb::AlarmMember { member_id: self.views().member_id, alarm: pb::AlarmType::Nospace as i32 };
        if self.views().alarms.load().contains(&alarm) {
            return;
        }
        let quota_bytes = self.member().settings.quota_bytes;
        tracing::warn!(quota_bytes, size = self.views().size.bytes(self.keyspace()), "the data has reached its quota");
        let action = AlarmAction::Activate as i32;
        let request = pb::AlarmRequest { action, member_id: alarm.member_id, alarm: alarm.alarm };
        if let Err(error) = self.propose_own(Kind::Alarm, &request).await {
            tracing::warn!(%error, "the alarm about the quota could not be raised, to be tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str, value: &'static str) -> pb::PutRequest {
        pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() }
    }

    fn op(request: Op) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    #[test]
    fn costs_are_etcds() {
        assert_eq!(cost(&Request::Put(put("ab", "cde"))), 261);
        assert_eq!(cost(&Request::LeaseGrant(Default::default())), 64);
        assert_eq!(cost(&Request::DeleteRange(Default::default())), 0);
        assert_eq!(cost(&Request::Compact(Default::default())), 0);
        let nested = pb::TxnRequest {
            success: vec![op(Op::RequestPut(put("a", "")))],
            failure: vec![op(Op::RequestPut(put("a", ""))), op(Op::RequestPut(put("b", "c")))],
            ..Default::default()
        };
        let txn = |success: Vec<Op>, failure: Vec<Op>| {
            let [success, failure] = [success, failure].map(|ops| ops.into_iter().map(op).collect());
            Request::Txn(pb::TxnRequest { success, failure, ..Default::default() })
        };
        let range = || Op::RequestRange(Default::default());
        assert_eq!(cost(&txn(vec![range()], vec![Op::RequestDeleteRange(Default::default())])), 0);
        assert_eq!(cost(&txn(vec![range()], vec![Op::RequestPut(put("a", "b"))])), 258, "the larger branch");
        assert_eq!(cost(&txn(vec![Op::RequestTxn(nested)], vec![Op::RequestPut(put("a", "b"))])), 257 + 258);
    }
}
