//! What the operations of one thread gave: latencies, throughput by second, errors by text. Merged at the end.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Finest and largest latency that are told apart; both far outside of what occurs.
const NANOS_MIN: u64 = 1_000;
const NANOS_MAX: u64 = 3_600_000_000_000;

/// Results of one thread, or of all of them.
#[derive(Clone, Debug)]
pub struct Recorder {
    latency: Histogram<u64>,
    /// Successful operations by the second in which they ended.
    pub seconds: Vec<u64>,
    pub succeeded: u64,
    pub errors: BTreeMap<String, u64>,
    /// Message bytes of the answers.
    pub answer_bytes: u64,
    /// Keys in the answers, as far as the load looks at them.
    pub answer_keys: u64,
    /// How often operations were begun again.
    pub retries: u64,
    /// The longest latency of the operations that ended in a second.
    pub slowest: Vec<u64>,
    /// Latencies by kind, where a load has several.
    kinds: BTreeMap<&'static str, Histogram<u64>>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KindLatency {
    pub succeeded: u64,
    pub latency_micros: Latency,
}

impl Recorder {
    pub fn new() -> Self {
        Self {
            latency: histogram(),
            seconds: Vec::new(),
            succeeded: 0,
            errors: BTreeMap::new(),
            answer_bytes: 0,
            answer_keys: 0,
            retries: 0,
            slowest: Vec::new(),
            kinds: BTreeMap::new(),
        }
    }

    /// Counts a successful operation that took `latency` and ended `at` after the start.
    pub fn succeed(&mut self, latency: Duration, at: Duration) {
        let nanos = latency.as_nanos().try_into().unwrap_or(u64::MAX);
        self.latency.saturating_record(nanos);
        self.succeeded += 1;
        let second = at.as_secs() as usize;
        if second >= self.seconds.len() {
            self.seconds.resize(second + 1, 0);
            self.slowest.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
        self.slowest[second] = self.slowest[second].max(nanos);
    }

    /// Counts the latency once more, with those of its kind.
    pub fn note_kind(&mut self, kind: &'static str, latency: Duration) {
        let nanos = latency.as_nanos().try_into().unwrap_or(u64::MAX);
        self.kinds.entry(kind).or_insert_with(histogram).saturating_record(nanos);
    }

    /// Number and latencies of each kind.
    pub fn by_kind(&self) -> BTreeMap<&'static str, KindLatency> {
        let of =
            |histogram: &Histogram<u64>| KindLatency { succeeded: histogram.len(), latency_micros: read(histogram) };
        self.kinds.iter().map(|(kind, histogram)| (*kind, of(histogram))).collect()
    }

    pub fn fail(&mut self, text: impl Into<String>) {
        *self.errors.entry(text.into()).or_default() += 1;
    }

    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    pub fn merge(&mut self, other: &Self) {
        self.latency.add(&other.latency).expect("bounds are the same everywhere");
        self.succeeded += other.succeeded;
        self.answer_bytes += other.answer_bytes;
        self.answer_keys += other.answer_keys;
        self.retries += other.retries;
        if self.seconds.len() < other.seconds.len() {
            self.seconds.resize(other.seconds.len(), 0);
            self.slowest.resize(other.seconds.len(), 0);
        }
        for (slowest, nanos) in self.slowest.iter_mut().zip(&other.slowest) {
            *slowest = (*slowest).max(*nanos);
        }
        for (kind, latency) in &other.kinds {
            self.kinds.entry(kind).or_insert_with(histogram).add(latency).expect("bounds are the same everywhere");
        }
        for (sum, count) in self.seconds.iter_mut().zip(&other.seconds) {
            *sum += count;
        }
        for (text, count) in &other.errors {
            *self.errors.entry(text.clone()).or_default() += count;
        }
    }

    pub fn latency(&self) -> Latency {
        read(&self.latency)
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(NANOS_MIN, NANOS_MAX, 3).expect("constant bounds are valid")
}

fn read(histogram: &Histogram<u64>) -> Latency {
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let at = |quantile: f64| micros(histogram.value_at_quantile(quantile));
    Latency {
        mean: histogram.mean() / 1e3,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: micros(histogram.max()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_threads_give_what_one_thread_would_have_given() {
        let (mut left, mut right, mut one) = (Recorder::new(), Recorder::new(), Recorder::new());
        for i in 1..=1000_u64 {
            let (latency, at) = (Duration::from_micros(i * 10), Duration::from_millis(i * 3));
            let half = if i % 3 == 0 { &mut left } else { &mut right };
            for recorder in [half, &mut one] {
                recorder.succeed(latency, at);
                recorder.note_kind(if i % 2 == 0 { "read" } else { "write" }, latency);
            }
        }
        left.fail("broken");
        right.fail("broken");
        right.fail("slow");
        left.merge(&right);
        assert_eq!(left.succeeded, 1000);
        assert_eq!(left.seconds, one.seconds);
        assert_eq!(left.slowest, one.slowest);
        assert_eq!(left.by_kind()["read"].succeeded, 500);
        assert_eq!(format!("{:?}", left.by_kind()), format!("{:?}", one.by_kind()));
        assert_eq!(left.failed(), 3);
        assert_eq!(left.errors["broken"], 2);
        assert_eq!(format!("{:?}", left.latency()), format!("{:?}", one.latency()));
        let p99 = left.latency().p99;
        assert!((9_900.0..9_920.0).contains(&p99), "{p99}");
    }

    #[test]
    fn nothing_recorded_reports_zeros() {
        assert_eq!(Recorder::new().latency().max, 0.0);
    }
}
