//! The seam for time, tasks and randomness: tokio today, a seeded runtime once whole clusters are simulated. No other
//! file of this crate asks for the time, starts a task or draws a random number by itself.

#![allow(clippy::disallowed_methods, reason = "this is the seam of clock and randomness")]

use std::io;
use std::time::Duration;

use rand::RngExt;

/// The runtime that openraft spawns, sleeps and draws election timeouts with.
pub(crate) type Runtime = openraft::impls::TokioRuntime;

/// Tasks that end together: openraft's feeders on the thread "raft".
pub(crate) type Tasks<T> = tokio::task::JoinSet<T>;

/// A point in time, for deadlines only.
pub(crate) type Instant = tokio::time::Instant;

/// The runtime of the thread "raft": it and everything openraft spawns stay on that one thread.
pub(crate) fn build() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().build()
}

pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// Where a member's batch sequence starts; see [`BatchId`](crate::batch::BatchId).
pub(crate) fn random_u64() -> u64 {
    rand::rng().random()
}
