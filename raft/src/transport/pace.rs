//! How fast a snapshot is sent: as fast as it may, as long as nobody else is hurt. Slower while the leader's log takes longer
//! to sync than it does on average, or its thread is woken late: both are what clients wait for.

use std::time::Duration;

use daymark_storage::wal::{Wal, WalStats};

use crate::config::limits;
use crate::runtime::{self, Instant};

/// The rate of one transfer, and how far it is.
pub(super) struct Pace<'a> {
    log: Option<&'a Wal>,
    peer: &'a str,
    total: u64,
    sent: u64,
    /// When progress was told last.
    told: Instant,
    /// When the next bytes may go.
    due: Instant,
    rate: Rate,
    looked: Instant,
    /// Syncs up to then.
    syncs: Syncs,
    /// The latest wake since.
    late: Duration,
}

/// Number and sum of syncs of the log.
#[derive(Copy, Clone, Debug, Default)]
struct Syncs {
    count: u64,
    total: Duration,
}

/// Bytes a second.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Rate(u64);

impl<'a> Pace<'a> {
    /// For a transfer of so many bytes to `peer`, beside this log.
    pub(super) fn new(total: u64, peer: &'a str, log: Option<&'a Wal>) -> Self {
        let now = runtime::now();
        let syncs = log.map(|log| Syncs::of(&log.stats())).unwrap_or_default();
        let rate = Rate(limits::SNAPSHOT_BYTES_PER_SEC);
        Self { log, peer, total, sent: 0, told: now, due: now, rate, looked: now, syncs, late: Duration::ZERO }
    }

    /// Waits until so many bytes may go.
    pub(super) async fn wait(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        let now = runtime::now();
        // Time that was lost is not made up for: a burst would hurt.
        self.due = self.due.max(now.checked_sub(limits::SNAPSHOT_PACE_INTERVAL).unwrap_or(now));
        if self.due > now {
            runtime::sleep(self.due - now).await;
            self.late = self.late.max(runtime::now().saturating_duration_since(self.due));
        }
        self.due += self.rate.time_of(bytes);
        self.look();
        if self.told.elapsed() >= limits::SNAPSHOT_PROGRESS_INTERVAL {
            self.told = runtime::now();
            let (peer, sent, of, bytes_per_sec) = (self.peer, self.sent, self.total, self.rate.0);
            tracing::info!(peer, sent, of, bytes_per_sec, "sending a snapshot");
        }
    }

    fn look(&mut self) {
        if self.looked.elapsed() < limits::SNAPSHOT_PACE_INTERVAL {
            return;
        }
        let now = self.log.map(|log| Syncs::of(&log.stats())).unwrap_or_default();
        let hurts = now.are_slower_since(self.syncs) || self.late > limits::SNAPSHOT_WAKE_LATE_MAX;
        self.rate = if hurts { self.rate.slower() } else { self.rate.faster() };
        (self.looked, self.syncs, self.late) = (runtime::now(), now, Duration::ZERO);
    }
}

impl Syncs {
    fn of(stats: &WalStats) -> Self {
        Self { count: stats.sync_count, total: stats.sync_total }
    }

    /// Whether those after `before` took long, beside the average of all before.
    fn are_slower_since(self, before: Self) -> bool {
        let mean = |count: u64, total: Duration| total.checked_div(u32::try_from(count).unwrap_or(u32::MAX));
        let (usual, recent) =
            (mean(before.count, before.total), mean(self.count - before.count, self.total - before.total));
        let most = usual.unwrap_or_default() * limits::SNAPSHOT_SYNC_GROWTH_MAX;
        recent.is_some_and(|recent| recent > most.max(limits::SNAPSHOT_SYNC_HURT_MIN))
    }
}

impl Rate {
    fn time_of(self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.0 as f64)
    }

    fn slower(self) -> Self {
        Self((self.0 / 2).max(limits::SNAPSHOT_BYTES_PER_SEC_MIN))
    }

    fn faster(self) -> Self {
        Self((self.0 + self.0 / 8).min(limits::SNAPSHOT_BYTES_PER_SEC))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_falls_fast_rises_slowly_and_stays_within_its_bounds() {
        let mut rate = Rate(limits::SNAPSHOT_BYTES_PER_SEC);
        assert_eq!(rate.faster(), rate);
        assert_eq!(rate.slower().0, rate.0 / 2);
        (0..50).for_each(|_| rate = rate.slower());
        assert_eq!(rate.0, limits::SNAPSHOT_BYTES_PER_SEC_MIN);
        let steps = (0..200).take_while(|_| {
            rate = rate.faster();
            rate.0 < limits::SNAPSHOT_BYTES_PER_SEC
        });
        assert!((10..40).contains(&steps.count()));
    }

    #[test]
    fn syncs_hurt_when_they_take_longer_than_on_average() {
        let micros = |count, total| Syncs { count, total: Duration::from_micros(total) };
        for (before, now, hurts) in [
            // On average 0.2 ms; below a millisecond nothing counts.
            (micros(100, 20_000), micros(110, 28_000), false),
            (micros(100, 20_000), micros(110, 35_000), true),
            // A disk that always takes 4 ms is not hurt by 6, but by 10.
            (micros(100, 400_000), micros(110, 460_000), false),
            (micros(100, 400_000), micros(110, 500_000), true),
            (micros(100, 400_000), micros(100, 400_000), false),
            (micros(0, 0), micros(0, 0), false),
        ] {
            assert_eq!(now.are_slower_since(before), hurts, "{before:?} {now:?}");
        }
    }

    /// Only from below: a busy machine may be slower.
    #[tokio::test]
    async fn bytes_go_no_faster_than_the_rate_and_lost_time_is_not_made_up_for() {
        let mut pace = Pace::new(1 << 30, "7", None);
        let (pieces, piece) = (48, limits::SNAPSHOT_PIECE_BYTES);
        let least = Duration::from_secs_f64(((pieces - 1) * piece) as f64 / limits::SNAPSHOT_BYTES_PER_SEC as f64);
        for lost in [Duration::ZERO, limits::SNAPSHOT_PACE_INTERVAL] {
            runtime::sleep(5 * lost).await;
            let begun = runtime::now();
            for _ in 0..pieces {
                pace.wait(piece).await;
            }
            let took = begun.elapsed();
            assert!(took + lost >= least * 9 / 10, "{took:?} after a loss, {least:?} without");
        }
    }
}
