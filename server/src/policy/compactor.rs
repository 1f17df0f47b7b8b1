//! Compaction without being asked: keeps the last so many revisions, or what is younger than a period. Proposes like any
//! client, while this member leads. The plan is pure: it is told time and revision.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use daymark_raft::Handle;
use daymark_storage::mvcc::Keyspace;

use crate::config::AutoCompaction;
use crate::error::Error;

/// How often the revision mode compacts, as in etcd.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// Periodic compactions are at most this far apart, as in etcd.
const PERIODIC_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// Samples of the revision in one period, as in etcd.
const SAMPLES: u32 = 10;

/// Runs `plan` while this member leads; `compact` replicates a compaction. Never returns.
pub async fn run(
    mut plan: Plan,
    keyspace: &Keyspace,
    raft: Handle,
    compact: impl AsyncFn(i64) -> std::result::Result<(), Error>,
) {
    loop {
        tokio::time::sleep(plan.interval()).await;
        // Sampled on every member, so that a new leader knows the period before it.
        let Some(revision) = plan.on_sample(Instant::now(), keyspace.current_revision()) else { continue };
        if revision <= keyspace.compact_revision() || !raft.status().is_leader {
            continue;
        }
        match compact(revision).await {
            Ok(()) => tracing::info!(revision, "finished scheduled compaction"),
            Err(Error::Compacted) => {}
            Err(error) => tracing::warn!(revision, %error, "the scheduled compaction failed, to be tried again"),
        }
    }
}

/// When to compact, and at which revision.
#[derive(Debug)]
pub enum Plan {
    /// Keep that many revisions.
    Revision { keep: i64 },
    /// Keep what is younger than `period`: samples of (time, revision), oldest first, at most a period of them.
    Periodic { period: Duration, samples: VecDeque<(Instant, i64)>, next: Option<Instant> },
}

impl Plan {
    /// The plan of a configuration; none if it is off.
    pub fn of(config: AutoCompaction) -> Option<Self> {
        match config {
            AutoCompaction::Off => None,
            AutoCompaction::Revision(keep) => Some(Self::Revision { keep }),
            AutoCompaction::Periodic(period) => Some(Self::Periodic { period, samples: VecDeque::new(), next: None }),
        }
    }

    /// Time between two samples.
    pub fn interval(&self) -> Duration {
        match self {
            Self::Revision { .. } => REVISION_INTERVAL,
            Self::Periodic { period, .. } => (*period).min(PERIODIC_INTERVAL_MAX) / SAMPLES,
        }
    }

    /// What to compact at, if it is time.
    pub fn on_sample(&mut self, now: Instant, revision: i64) -> Option<i64> {
        match self {
            Self::Revision { keep } => Some(revision - *keep).filter(|revision| *revision > 0),
            Self::Periodic { period, samples, next } => {
                samples.push_back((now, revision));
                let next = next.get_or_insert(now + *period);
                if now < *next {
                    return None;
                }
                *next += (*period).min(PERIODIC_INTERVAL_MAX);
                let mut oldest = None;
                while samples.front().is_some_and(|(at, _)| now.duration_since(*at) >= *period) {
                    oldest = samples.pop_front();
                }
                oldest.map(|(_, revision)| revision)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_revisions_is_kept() {
        let mut plan = Plan::of(AutoCompaction::Revision(100)).expect("it is on");
        assert_eq!(plan.interval(), Duration::from_secs(300));
        assert_eq!(plan.on_sample(Instant::now(), 100), None);
        assert_eq!(plan.on_sample(Instant::now(), 101), Some(1));
        assert_eq!(plan.on_sample(Instant::now(), 1000), Some(900));
    }

    #[test]
    fn off_is_no_plan() {
        assert!(Plan::of(AutoCompaction::Off).is_none());
    }

    /// The first compaction comes after a whole period and then one each period; each leaves all that is younger.
    #[test]
    fn a_period_is_kept() {
        for (period_secs, step_secs) in [(600, 60), (3600, 360), (36_000, 360)] {
            let period = Duration::from_secs(period_secs);
            let mut plan = Plan::of(AutoCompaction::Periodic(period)).expect("it is on");
            assert_eq!(plan.interval(), Duration::from_secs(step_secs));
            let start = Instant::now();
            let mut compactions = Vec::new();
            for second in (0..=2 * period_secs).step_by(step_secs as usize) {
                // The revision tells the second at which it was made.
                let revision = 1 + second as i64;
                if let Some(at) = plan.on_sample(start + Duration::from_secs(second), revision) {
                    assert!(at - 1 <= second as i64 - period_secs as i64, "{at} is younger than the period");
                    assert!(at - 1 > second as i64 - period_secs as i64 - step_secs as i64, "{at} is too old");
                    compactions.push(second);
                }
            }
            assert_eq!(compactions.first(), Some(&period_secs));
            let gaps: Vec<_> = compactions.windows(2).map(|pair| pair[1] - pair[0]).collect();
            assert!(gaps.iter().all(|gap| *gap == period_secs.min(3600)), "{gaps:?}");
        }
    }
}
