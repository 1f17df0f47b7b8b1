//! A storm of TLS handshakes, whose sums are the dearest thing that a stranger can ask a server for, and what a writer on
//! the same port notices of it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use daymark_client::{Config, config::Tls, dial::Dialer};
use daymark_tests::process::Server;
use tokio::time::sleep;

use super::{
    threads::far_away,
    writes::{Comparison, Writers},
};

/// The storm comes in so many gusts, with an idle window before each.
const GUSTS: usize = 5;
const IDLE: Duration = Duration::from_secs(2);
/// A gust goes on for so long: who is through comes again.
const GUST: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_secs(1);

/// What was seen.
pub struct Seen {
    pub writes: Comparison,
    /// Handshakes that came to their end, and those that did not.
    pub done: u64,
    pub failed: u64,
    /// How long the gusts were, together.
    pub took: Duration,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {} handshakes in {:.1?}, {} failed", self.writes, self.done, self.took, self.failed)
    }
}

/// Storms a server that speaks both on its port; the writer does not encrypt.
pub async fn storm(server: &Server, tls: Tls, at_a_time: usize) -> Seen {
    let writers = Writers::start(Config::new([server.endpoint()]));
    sleep(WARM_UP).await;
    let (mut idle, mut crowded) = (Vec::new(), Vec::new());
    let (done, failed) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    for _ in 0..GUSTS {
        let begun = Instant::now();
        sleep(IDLE).await;
        idle.push(begun..Instant::now());
        let begun = Instant::now();
        let dialer = Dialer::new(&format!("https://{}", server.endpoint()), Some(&tls)).expect("a valid endpoint");
        far_away(gust(dialer, at_a_time, done.clone(), failed.clone())).join().expect("no panic");
        crowded.push(begun..Instant::now());
    }
    let took = crowded.iter().map(|window| window.end - window.start).sum();
    let writes = writers.stop().compare(&idle, &crowded);
    Seen { writes, took, done: done.load(Ordering::Relaxed), failed: failed.load(Ordering::Relaxed) }
}

async fn gust(dialer: Dialer, at_a_time: usize, done: Arc<AtomicU64>, failed: Arc<AtomicU64>) {
    let begun = Instant::now();
    let callers = (0..at_a_time).map(|_| async {
        while begun.elapsed() < GUST {
            match dialer.connect().await {
                Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                Err(_) => failed.fetch_add(1, Ordering::Relaxed),
            };
        }
    });
    futures_util::future::join_all(callers).await;
}
