//! What apply counts, and what seldom goes wrong anywhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Counter;
use super::histogram::{self, Histogram, HistogramSample};
use crate::error::Error;

macro_rules! operations {
    ($($variant:ident $name:literal;)*) => {
        /// What a command is called in metrics, by etcd's names.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Operation { $($variant,)* }

        impl Operation {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The label.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

operations! {
    Put "Put";
    DeleteRange "DeleteRange";
    Txn "Txn";
    Compaction "Compaction";
    LeaseGrant "LeaseGrant";
    LeaseRevoke "LeaseRevoke";
    LeaseCheckpoint "LeaseCheckpoint";
    Alarm "Alarm";
    MemberAttributes "ClusterMemberAttrSet";
    ClusterVersion "ClusterVersionSet";
    Authenticate "Authenticate";
    AuthEnable "AuthEnable";
    AuthDisable "AuthDisable";
    UserAdd "AuthUserAdd";
    UserDelete "AuthUserDelete";
    UserChangePassword "AuthUserChangePassword";
    UserGrantRole "AuthUserGrantRole";
    UserRevokeRole "AuthUserRevokeRole";
    RoleAdd "AuthRoleAdd";
    RoleDelete "AuthRoleDelete";
    RoleGrantPermission "AuthRoleGrantPermission";
    RoleRevokePermission "AuthRoleRevokePermission";
    Other "Other";
}

/// What became of requests to promote a learner.
#[derive(Debug, Default)]
pub struct PromotionCounters {
    succeeded: AtomicU64,
    /// By etcd's text of the reason, in the order of [`PROMOTION_FAILURES`].
    failed: [AtomicU64; PROMOTION_FAILURES.len()],
}

/// Reasons that are told apart; the last one is for all others.
pub const PROMOTION_FAILURES: [&str; 5] = [
    "etcdserver: can only promote a learner member which is in sync with leader",
    "etcdserver: can only promote a learner member",
    "etcdserver: member not found",
    "etcdserver: re-configuration failed due to not enough started members",
    "other",
];

impl PromotionCounters {
    /// One more, with why it failed if it has.
    pub fn count(&self, error: Option<&Error>) {
        let counter = match error {
            None => &self.succeeded,
            Some(error) => {
                let text = error.text();
                let place = PROMOTION_FAILURES.iter().position(|known| *known == text);
                &self.failed[place.unwrap_or(PROMOTION_FAILURES.len() - 1)]
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Successes, and failures in the order of [`PROMOTION_FAILURES`].
    pub fn values(&self) -> (u64, [u64; PROMOTION_FAILURES.len()]) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.succeeded), std::array::from_fn(|place| load(&self.failed[place])))
    }
}

/// What apply has done since the start; only its thread counts.
#[derive(Debug)]
pub struct AppliedCounters {
    pub puts: Counter,
    pub deletes: Counter,
    pub ranges: Counter,
    /// Transactions of more than one operation.
    pub txns: Counter,
    pub leases_granted: Counter,
    /// However they ended.
    pub leases_revoked: Counter,
    /// Keys and values that were put.
    pub put_bytes: Counter,
    /// Write batches that took longer than the member is told to warn of.
    pub slow: Counter,
    /// Time to live of leases as granted.
    lease_ttls: Histogram,
    /// By operation: refused, done.
    operations: Vec<[Histogram; 2]>,
    /// Writes of a batch to the backend.
    commits: Histogram,
    /// Compactions, and when the last one was, in seconds since 1970.
    compactions: Histogram,
    last_compaction: AtomicU64,
}

impl Default for AppliedCounters {
    fn default() -> Self {
        let pair = || [Histogram::new(&histogram::TENTHS), Histogram::new(&histogram::TENTHS)];
        Self {
            puts: Counter::default(),
            deletes: Counter::default(),
            ranges: Counter::default(),
            txns: Counter::default(),
            leases_granted: Counter::default(),
            leases_revoked: Counter::default(),
            put_bytes: Counter::default(),
            slow: Counter::default(),
            lease_ttls: Histogram::new(&histogram::TTLS),
            operations: Operation::ALL.iter().map(|_| pair()).collect(),
            commits: Histogram::new(&histogram::MILLIS),
            compactions: Histogram::new(&histogram::COMPACTIONS),
            last_compaction: AtomicU64::new(0),
        }
    }
}

impl AppliedCounters {
    /// Counts one command.
    pub fn applied(&self, operation: Operation, succeeded: bool, took: Duration) {
        self.operations[operation as usize][usize::from(succeeded)].observe_duration(took);
    }

    /// Counts a write of a batch.
    pub fn committed(&self, took: Duration) {
        self.commits.observe_duration(took);
    }

    /// Counts a lease.
    pub fn granted(&self, ttl_secs: i64) {
        self.leases_granted.add(1);
        self.lease_ttls.observe(u64::try_from(ttl_secs).unwrap_or(0));
    }

    /// Counts a compaction.
    pub fn compacted(&self, took: Duration, unix_secs: u64) {
        self.compactions.observe_duration(took);
        self.last_compaction.store(unix_secs, Ordering::Relaxed);
    }

    /// As it stands.
    pub fn sample(&self) -> AppliedSample {
        let mut operations = Vec::new();
        for operation in Operation::ALL {
            for succeeded in [false, true] {
                let histogram = &self.operations[*operation as usize][usize::from(succeeded)];
                if histogram.count() > 0 {
                    operations.push((operation.name(), succeeded, histogram.sample()));
                }
            }
        }
        AppliedSample {
            operations,
            puts: self.puts.value(),
            deletes: self.deletes.value(),
            ranges: self.ranges.value(),
            txns: self.txns.value(),
            leases_granted: self.leases_granted.value(),
            leases_revoked: self.leases_revoked.value(),
            put_bytes: self.put_bytes.value(),
            slow: self.slow.value(),
            lease_ttls: self.lease_ttls.sample(),
            commits: self.commits.sample(),
            compactions: self.compactions.sample(),
            last_compaction_secs: self.last_compaction.load(Ordering::Relaxed),
        }
    }
}

/// The same as numbers. Operations are listed with whether they succeeded.
#[derive(Clone, Debug, Default)]
pub struct AppliedSample {
    pub operations: Vec<(&'static str, bool, HistogramSample)>,
    pub puts: u64,
    pub deletes: u64,
    /// Ranges in transactions that write.
    pub ranges: u64,
    /// Transactions of more than one operation that write.
    pub txns: u64,
    pub leases_granted: u64,
    pub leases_revoked: u64,
    pub put_bytes: u64,
    pub slow: u64,
    pub lease_ttls: HistogramSample,
    pub commits: HistogramSample,
    pub compactions: HistogramSample,
    pub last_compaction_secs: u64,
}

/// What seldom goes wrong; any thread counts.
#[derive(Debug, Default)]
pub struct FailureCounters {
    proposals: AtomicU64,
    read_indexes: AtomicU64,
    slow_read_indexes: AtomicU64,
}

impl FailureCounters {
    /// Counts commands that did not get as far as apply, or not in time.
    pub fn proposal(&self) {
        self.proposals.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a read barrier that nobody confirmed.
    pub fn read_index(&self) {
        self.read_indexes.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a read barrier that took long.
    pub fn slow_read_index(&self) {
        self.slow_read_indexes.fetch_add(1, Ordering::Relaxed);
    }

    /// Proposals failed, read barriers failed, read barriers that took long.
    pub fn values(&self) -> [u64; 3] {
        [&self.proposals, &self.read_indexes, &self.slow_read_indexes].map(|count| count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_operations_that_were_seen_are_shown() {
        let counters = AppliedCounters::default();
        counters.applied(Operation::Put, true, Duration::from_micros(3));
        counters.applied(Operation::Txn, false, Duration::from_millis(1));
        counters.granted(60);
        counters.compacted(Duration::from_millis(5), 7);
        let sample = counters.sample();
        let seen: Vec<_> = sample.operations.iter().map(|(name, succeeded, _)| (*name, *succeeded)).collect();
        assert_eq!(seen, [("Put", true), ("Txn", false)]);
        assert_eq!(sample.operations[0].2.cumulative[0], (0.0001, 1));
        assert_eq!((sample.lease_ttls.sum, sample.compactions.count, sample.last_compaction_secs), (60.0, 1, 7));
    }
}
