//! What is counted of the traffic with one other member.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets of round trips, upper bounds in units of 100 us, each twice the one before: the edges of etcd's histogram.
const FIRST_BUCKET: Duration = Duration::from_micros(100);
/// As many as etcd has.
pub const ROUND_TRIP_BUCKETS: usize = 16;

/// Counters of one peer; written on the thread "raft", read by anybody.
#[derive(Debug, Default)]
pub(crate) struct PeerStats {
    pub(crate) sent_bytes: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    pub(crate) sent_failures: AtomicU64,
    pub(crate) received_failures: AtomicU64,
    pub(crate) heartbeat_failures: AtomicU64,
    /// Connections of ours that are open.
    pub(crate) open: AtomicU64,
    /// Times that the last open connection was lost.
    pub(crate) losses: AtomicU64,
    round_trips: [AtomicU64; ROUND_TRIP_BUCKETS + 1],
    round_trip_micros: AtomicU64,
}

/// The traffic with one other member since this one started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerTraffic {
    /// The other member.
    pub member_id: u64,
    /// Bytes written to it, on connections that this member opened.
    pub sent_bytes: u64,
    /// Bytes read from it, on connections of either.
    pub received_bytes: u64,
    /// Messages that did not reach it.
    pub sent_failures: u64,
    /// Connections of it that ended with an error.
    pub received_failures: u64,
    /// Heartbeats that were not answered in time.
    pub heartbeat_failures: u64,
    /// Whether a connection to it is open.
    pub is_active: bool,
    /// Times that the last open connection to it was lost.
    pub losses: u64,
    /// Round trips of heartbeats, by bucket (see [`round_trip_bounds`]), the last one without bound.
    pub round_trips: [u64; ROUND_TRIP_BUCKETS + 1],
    /// Their sum.
    pub round_trip_sum: Duration,
}

/// Upper bounds of the buckets of [`PeerTraffic::round_trips`].
pub fn round_trip_bounds() -> [Duration; ROUND_TRIP_BUCKETS] {
    std::array::from_fn(|place| FIRST_BUCKET * (1 << place))
}

impl PeerStats {
    pub(crate) fn note_round_trip(&self, took: Duration) {
        let place = round_trip_bounds().iter().position(|bound| took <= *bound).unwrap_or(ROUND_TRIP_BUCKETS);
        self.round_trips[place].fetch_add(1, Ordering::Relaxed);
        self.round_trip_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, member_id: u64) -> PeerTraffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerTraffic {
            member_id,
            sent_bytes: read(&self.sent_bytes),
            received_bytes: read(&self.received_bytes),
            sent_failures: read(&self.sent_failures),
            received_failures: read(&self.received_failures),
            heartbeat_failures: read(&self.heartbeat_failures),
            is_active: read(&self.open) > 0,
            losses: read(&self.losses),
            round_trips: std::array::from_fn(|place| read(&self.round_trips[place])),
            round_trip_sum: Duration::from_micros(read(&self.round_trip_micros)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_fall_into_their_buckets() {
        let stats = PeerStats::default();
        for micros in [50, 100, 101, 3_276_800, 3_276_801] {
            stats.note_round_trip(Duration::from_micros(micros));
        }
        let traffic = stats.read(7);
        assert_eq!((traffic.round_trips[0], traffic.round_trips[1]), (2, 1));
        assert_eq!((traffic.round_trips[15], traffic.round_trips[16]), (1, 1));
        assert_eq!(traffic.round_trip_sum, Duration::from_micros(50 + 100 + 101 + 3_276_800 + 3_276_801));
    }
}
