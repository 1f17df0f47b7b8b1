//! Histograms that one thread writes and any thread reads, in etcd's buckets. Knows no names.

use std::time::Duration;

use super::Counter;

/// Nanoseconds of a second: the unit of durations.
const SECOND: u64 = 1_000_000_000;

/// `N` bounds from `first` on, each twice the one before.
const fn doubling<const N: usize>(first: u64) -> [u64; N] {
    let mut bounds = [first; N];
    let mut i = 1;
    while i < N {
        bounds[i] = 2 * bounds[i - 1];
        i += 1;
    }
    bounds
}

/// Where the buckets of a histogram end, and what one second (or one of whatever is observed) is in these numbers.
#[derive(Debug)]
pub struct Bounds {
    ends: &'static [u64],
    unit: u64,
}

/// Requests, syncs and commits: 1 ms x 2^i.
pub static MILLIS: Bounds = Bounds { ends: &doubling::<14>(1_000_000), unit: SECOND };
/// What is usually short: 0.1 ms x 2^i.
pub static TENTHS: Bounds = Bounds { ends: &doubling::<20>(100_000), unit: SECOND };
/// Time to live in seconds: 1 s x 2^i.
pub static TTLS: Bounds = Bounds { ends: &doubling::<24>(1), unit: 1 };
/// What compactions take, in milliseconds: 100 ms x 2^i.
pub static COMPACTIONS: Bounds = Bounds { ends: &doubling::<14>(100_000_000), unit: SECOND / 1000 };
/// The bounds that Prometheus' libraries take where nobody says any.
pub static USUAL: Bounds = Bounds {
    ends: &[
        SECOND / 200,
        SECOND / 100,
        SECOND / 40,
        SECOND / 20,
        SECOND / 10,
        SECOND / 4,
        SECOND / 2,
        SECOND,
        SECOND * 5 / 2,
        SECOND * 5,
        SECOND * 10,
    ],
    unit: SECOND,
};

/// Counts of one thread.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static Bounds,
    buckets: Box<[Counter]>,
    count: Counter,
    sum: Counter,
}

impl Histogram {
    /// Nothing observed yet.
    pub fn new(bounds: &'static Bounds) -> Self {
        let buckets = bounds.ends.iter().map(|_| Counter::default()).collect();
        Self { bounds, buckets, count: Counter::default(), sum: Counter::default() }
    }

    /// Counts a number in the unit of the bounds. Only one thread may call it.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.ends.partition_point(|end| *end < value);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add(1);
        }
        self.count.add(1);
        self.sum.add(value);
    }

    /// Counts a duration. Only one thread may call it.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How much was observed.
    pub fn count(&self) -> u64 {
        self.count.value()
    }

    /// As it stands.
    pub fn sample(&self) -> HistogramSample {
        HistogramSample::sum([self])
    }
}

/// A histogram as it stands: upper bounds with cumulative counts, in ascending order.
#[derive(Clone, Debug, Default)]
pub struct HistogramSample {
    pub cumulative: Vec<(f64, u64)>,
    pub count: u64,
    pub sum: f64,
}

impl HistogramSample {
    /// What several threads have counted, all with the same bounds.
    pub fn sum<'a>(all: impl IntoIterator<Item = &'a Histogram>) -> Self {
        let all: Vec<&Histogram> = all.into_iter().collect();
        let Some(Bounds { ends, unit }) = all.first().map(|one| one.bounds) else { return Self::default() };
        let mut cumulative = 0;
        let buckets = ends.iter().enumerate().map(|(i, end)| {
            cumulative += all.iter().map(|one| one.buckets[i].value()).sum::<u64>();
            (*end as f64 / *unit as f64, cumulative)
        });
        Self {
            cumulative: buckets.collect(),
            count: all.iter().map(|one| one.count.value()).sum(),
            sum: all.iter().map(|one| one.sum.value()).sum::<u64>() as f64 / *unit as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_observed_falls_into_the_bucket_that_bounds_it() {
        let durations = Histogram::new(&MILLIS);
        for micros in [1, 1000, 1001, 2000, 8_192_000, 9_000_000] {
            durations.observe_duration(Duration::from_micros(micros));
        }
        let sample = durations.sample();
        let counts: Vec<u64> = sample.cumulative.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts[0], 2, "up to 1 ms");
        assert_eq!(counts[1], 4, "up to 2 ms");
        assert_eq!(counts[13], 5, "up to 8.192 s");
        assert_eq!(sample.count, 6);
        assert!((sample.sum - 17.196_002).abs() < 1e-6, "{}", sample.sum);
    }

    #[test]
    fn bounds_are_etcds() {
        let ends = |bounds: &'static Bounds| -> Vec<f64> {
            Histogram::new(bounds).sample().cumulative.iter().map(|(end, _)| *end).collect()
        };
        assert_eq!(ends(&MILLIS)[0], 0.001);
        assert_eq!(*ends(&MILLIS).last().expect("bounds"), 8.192);
        assert_eq!(ends(&TENTHS)[0], 0.0001);
        assert_eq!(*ends(&TENTHS).last().expect("bounds"), 52.4288);
        assert_eq!(*ends(&TTLS).last().expect("bounds"), 8_388_608.0);
        assert_eq!(ends(&COMPACTIONS)[0], 100.0);
        assert_eq!(*ends(&COMPACTIONS).last().expect("bounds"), 819_200.0);
        assert_eq!(ends(&USUAL), [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]);
    }
}
