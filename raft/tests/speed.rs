//! What one voter costs: time from proposing a batch to its hand-over to apply, durable, on a real disk; and CPU time of
//! the whole process per entry. Prints figures (`--nocapture`); asserts only what must hold on any machine.
//!
//! `cargo test --release -p daymark-raft --test main speed -- --nocapture --test-threads 1`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};

use daymark_storage::disk::RealDisk;

use crate::support::{Member, State};

struct Run {
    outstanding: u64,
    entries: u64,
    latencies: Vec<Duration>,
    wall: Duration,
    cpu: Duration,
    syncs: u64,
}

fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Closed loop: a told batch is followed by the next one.
fn run(outstanding: u64, entries: u64) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::start(Arc::new(RealDisk::new()), dir.path(), State::default());
    let payload = Bytes::from(vec![7; 300]);
    let syncs = member.wal.stats().sync_count;
    let (began, cpu) = (Instant::now(), process_cpu());
    let mut proposed: Vec<Instant> = Vec::with_capacity(entries as usize);
    let propose = |proposed: &mut Vec<Instant>| {
        proposed.push(Instant::now());
        member.propose(proposed.len() as u64 - 1, payload.clone());
    };
    (0..outstanding).for_each(|_| propose(&mut proposed));
    let mut latencies = Vec::with_capacity(entries as usize);
    while latencies.len() < entries as usize {
        let (number, outcome) = member.next_told();
        outcome.unwrap();
        latencies.push(proposed[number as usize].elapsed());
        if proposed.len() < entries as usize {
            propose(&mut proposed);
        }
    }
    let run = Run {
        outstanding,
        entries,
        latencies,
        wall: began.elapsed(),
        cpu: process_cpu() - cpu,
        syncs: member.wal.stats().sync_count - syncs,
    };
    member.stop();
    run
}

impl Run {
    fn report(mut self) -> Self {
        self.latencies.sort_unstable();
        let at = |share: f64| self.latencies[((self.entries - 1) as f64 * share) as usize];
        println!(
            "{:>4} outstanding: {:>8.0} entries/s, p50 {:?}, p99 {:?}, {:.1} us CPU an entry, {:.1} entries a sync",
            self.outstanding,
            self.entries as f64 / self.wall.as_secs_f64(),
            at(0.5),
            at(0.99),
            self.cpu.as_secs_f64() * 1e6 / self.entries as f64,
            self.entries as f64 / self.syncs as f64,
        );
        self
    }
}

#[test]
fn one_client_waits_for_one_sync_and_many_share_it() {
    let one = run(1, 2_000).report();
    assert!(one.syncs >= one.entries, "each entry of a lone client is synced before it is told");
    let many = run(256, 100_000).report();
    assert!(many.syncs * 8 < many.entries, "concurrent batches share syncs");
}

#[test]
fn a_restarted_voter_leads_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::start(Arc::new(RealDisk::new()), dir.path(), State::default());
    (0..10_000).for_each(|number| member.propose(number, vec![1; 300]));
    member.expect_applied(10_000);
    let state = member.state.clone();
    state.flush();
    member.stop();
    drop(member.wal);

    let began = Instant::now();
    let mut member = Member::start(Arc::new(RealDisk::new()), dir.path(), state.after_crash());
    let ready = began.elapsed();
    println!("restart until ready: {ready:?}");
    assert!(ready < Duration::from_millis(1000), "an election time-out was waited for: {ready:?}");
    member.stop();
}
