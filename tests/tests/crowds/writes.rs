//! Writes at a steady pace, timed from when each was due, and what they took in idle and in crowded windows.

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use daymark_client::{Client, Config};
use daymark_tests::wire::runtime;

/// Distance between the writes of one writer.
const PACE: Duration = Duration::from_millis(10);
const WRITERS: usize = 4;
/// Fewer tell nothing about a 99th percentile.
const WRITES_MIN: usize = 300;

/// One write.
#[derive(Copy, Clone, Debug)]
struct Write {
    due: Instant,
    took: Duration,
}

/// Writers on a thread of their own.
pub struct Writers {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Write>>,
}

impl Writers {
    /// Begins to write keys below `w/`.
    pub fn start(config: Config) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        let thread = thread::spawn(move || runtime().block_on(write(config, &until)));
        Self { over, thread }
    }

    /// Ends them.
    pub fn stop(self) -> Writes {
        self.over.store(true, Ordering::Relaxed);
        Writes(self.thread.join().expect("every write is answered"))
    }
}

async fn write(config: Config, over: &AtomicBool) -> Vec<Write> {
    let client = Client::new(config).expect("a valid configuration");
    let begun = Instant::now();
    let writers = (0..WRITERS).map(|number| {
        let kv = client.kv();
        async move {
            let mut writes = Vec::new();
            // Out of step with one another. A write that comes late because of an earlier one counts as late.
            let mut due = begun + PACE.mul_f64(number as f64 / WRITERS as f64);
            while !over.load(Ordering::Relaxed) {
                tokio::time::sleep_until(due.into()).await;
                kv.put(format!("w/{number}"), "value").await.expect("the writer may write");
                writes.push(Write { due, took: due.elapsed() });
                due += PACE;
            }
            writes
        }
    });
    futures_util::future::join_all(writers).await.concat()
}

/// Everything that was written.
pub struct Writes(Vec<Write>);

impl Writes {
    /// What writes took that were due in these windows.
    pub fn compare(&self, idle: &[Range<Instant>], crowded: &[Range<Instant>]) -> Comparison {
        let measure = |windows: &[Range<Instant>]| windows.iter().map(|window| self.p99(window)).collect();
        Comparison { idle: measure(idle), crowded: measure(crowded) }
    }

    fn p99(&self, window: &Range<Instant>) -> Duration {
        let mut times: Vec<_> =
            self.0.iter().filter(|write| window.contains(&write.due)).map(|write| write.took).collect();
        assert!(times.len() >= WRITES_MIN, "{} writes in a window of {:?}", times.len(), window.end - window.start);
        times.sort_unstable();
        times[times.len() * 99 / 100]
    }
}

/// The 99th percentile of each window.
pub struct Comparison {
    idle: Vec<Duration>,
    crowded: Vec<Duration>,
}

impl Comparison {
    /// The median of the crowded windows, in medians of the idle ones.
    pub fn ratio(&self) -> f64 {
        median(&self.crowded).as_secs_f64() / median(&self.idle).as_secs_f64()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (idle, crowded) = (median(&self.idle), median(&self.crowded));
        write!(f, "p99 of writes {crowded:?}, idle {idle:?}, ratio {:.2}", self.ratio())?;
        write!(f, " (windows {:?}, idle {:?})", self.crowded, self.idle)
    }
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times[times.len() / 2]
}
