//! Transactions: comparisons, and what to do when all of them hold or one does not.

use bytes::Bytes;
use daymark_api::etcdserverpb::{
    self as pb, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op,
};

use crate::{
    key_range::KeyRange,
    kv::{DeleteOptions, GetOptions, PutOptions, delete_request, put_request, range_request},
};

/// A comparison with what a key, or every key of a range, is when the transaction runs.
#[derive(Clone, Debug)]
pub struct Compare(pb::Compare);

/// How the key's side stands to the given value.
pub use daymark_api::etcdserverpb::compare::CompareResult as Is;

impl Compare {
    /// Compares the value.
    pub fn value(range: impl Into<KeyRange>, is: Is, value: impl Into<Bytes>) -> Self {
        Self::new(range.into(), is, CompareTarget::Value, TargetUnion::Value(value.into()))
    }

    /// Compares the number of changes since the key's creation; 0: it does not exist.
    pub fn version(range: impl Into<KeyRange>, is: Is, version: i64) -> Self {
        Self::new(range.into(), is, CompareTarget::Version, TargetUnion::Version(version))
    }

    /// Compares the revision of the key's creation; 0: it does not exist.
    pub fn create_revision(range: impl Into<KeyRange>, is: Is, revision: i64) -> Self {
        Self::new(range.into(), is, CompareTarget::Create, TargetUnion::CreateRevision(revision))
    }

    /// Compares the revision of the key's last change; 0: it does not exist.
    pub fn mod_revision(range: impl Into<KeyRange>, is: Is, revision: i64) -> Self {
        Self::new(range.into(), is, CompareTarget::Mod, TargetUnion::ModRevision(revision))
    }

    /// Compares the attached lease; 0: none.
    pub fn lease(range: impl Into<KeyRange>, is: Is, lease: i64) -> Self {
        Self::new(range.into(), is, CompareTarget::Lease, TargetUnion::Lease(lease))
    }

    /// Holds while the key does not exist.
    pub fn missing(key: impl Into<Bytes>) -> Self {
        Self::create_revision(KeyRange::Key(key.into()), CompareResult::Equal, 0)
    }

    fn new(range: KeyRange, is: Is, target: CompareTarget, value: TargetUnion) -> Self {
        let (key, range_end) = range.into_wire();
        Self(pb::Compare { result: is.into(), target: target.into(), key, range_end, target_union: Some(value) })
    }
}

/// One step of a branch.
#[derive(Clone, Debug)]
pub struct Op(request_op::Request);

impl Op {
    /// Reads a key or range.
    pub fn get(range: impl Into<KeyRange>, options: GetOptions) -> Self {
        Self(request_op::Request::RequestRange(range_request(range.into(), options)))
    }

    /// Sets a key.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>, options: PutOptions) -> Self {
        Self(request_op::Request::RequestPut(put_request(key.into(), value.into(), options)))
    }

    /// Removes a key or range.
    pub fn delete(range: impl Into<KeyRange>, options: DeleteOptions) -> Self {
        Self(request_op::Request::RequestDeleteRange(delete_request(range.into(), options)))
    }

    /// Runs a transaction inside this one.
    pub fn txn(txn: Txn) -> Self {
        Self(request_op::Request::RequestTxn(txn.into_wire()))
    }
}

/// A transaction: `when` all comparisons hold `then` one branch, `or_else` the other; all of it at one revision.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    message: TxnRequest,
}

impl Txn {
    /// A transaction without comparisons, whose `then` branch runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds comparisons; all must hold.
    #[must_use]
    pub fn when(mut self, compares: impl IntoIterator<Item = Compare>) -> Self {
        self.message.compare.extend(compares.into_iter().map(|c| c.0));
        self
    }

    /// Adds steps of the branch taken when all comparisons hold.
    #[must_use]
    pub fn then(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.message.success.extend(ops.into_iter().map(wire_op));
        self
    }

    /// Adds steps of the branch taken when a comparison does not hold.
    #[must_use]
    pub fn or_else(mut self, ops: impl IntoIterator<Item = Op>) -> Self {
        self.message.failure.extend(ops.into_iter().map(wire_op));
        self
    }

    pub(crate) fn into_wire(self) -> TxnRequest {
        self.message
    }
}

fn wire_op(op: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(op.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_if_missing_in_wire_form() {
        let txn = Txn::new()
            .when([Compare::missing("k")])
            .then([Op::put("k", "v", PutOptions::default())])
            .or_else([Op::get("k", GetOptions::default())])
            .into_wire();
        let compare = &txn.compare[0];
        assert_eq!((compare.result(), compare.target()), (CompareResult::Equal, CompareTarget::Create));
        assert_eq!(compare.target_union, Some(TargetUnion::CreateRevision(0)));
        assert!(matches!(txn.success[0].request, Some(request_op::Request::RequestPut(_))));
        assert!(matches!(txn.failure[0].request, Some(request_op::Request::RequestRange(_))));
    }
}
