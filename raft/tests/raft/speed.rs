//! What one voter costs: time from proposing a batch to its hand-over to apply, durable, on a real disk; and CPU time of
//! the threads "raft" and "wal" per entry. Prints figures (`--nocapture`); asserts only what must hold on any machine.
//!
//! `cargo test --release -p daymark-raft --test raft speed -- --nocapture --test-threads 1`

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use daymark_storage::disk::RealDisk;

use crate::support::{Member, State};

struct Run {
    outstanding: u64,
    entries: u64,
    latencies: Vec<Duration>,
    wall: Duration,
    /// Of the threads "raft" and "wal".
    cpu: [Duration; 2],
    syncs: u64,
    sync_mean: Duration,
}

/// CPU time so far of this process's threads of that name. One run at a time: run this file alone for exact figures.
fn cpu_of(name: &str) -> Duration {
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let dir = task.unwrap().path();
        // A thread may end between listing and reading.
        let Ok(comm) = std::fs::read_to_string(dir.join("comm")) else { continue };
        let Ok(times) = std::fs::read_to_string(dir.join("schedstat")) else { continue };
        if comm.trim_end() == name {
            sum += Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap());
        }
    }
    sum
}

/// Closed loop: a told batch is followed by the next one.
fn run(outstanding: u64, entries: u64) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let mut member = Member::start(Arc::new(RealDisk::new()), dir.path(), State::default());
    let payload = Bytes::from(vec![7; 300]);
    let before = member.wal.stats();
    let cpu = [cpu_of("raft"), cpu_of("wal")];
    let began = Instant::now();
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
    let after = member.wal.stats();
    let syncs = after.sync_count - before.sync_count;
    let run = Run {
        outstanding,
        entries,
        latencies,
        wall: began.elapsed(),
        // Threads of tests that run beside this one may have ended meanwhile.
        cpu: [cpu_of("raft").saturating_sub(cpu[0]), cpu_of("wal").saturating_sub(cpu[1])],
        syncs,
        sync_mean: (after.sync_total - before.sync_total) / u32::try_from(syncs).unwrap(),
    };
    member.stop();
    run
}

impl Run {
    fn report(mut self) -> Self {
        self.latencies.sort_unstable();
        let at = |share: f64| self.latencies[((self.entries - 1) as f64 * share) as usize];
        println!(
            "{:>4} outstanding: {:>8.0} entries/s, p50 {:?}, p99 {:?}, CPU an entry: raft {:.1} us, wal {:.1} us; {:.1} entries a sync of {:?}",
            self.outstanding,
            self.entries as f64 / self.wall.as_secs_f64(),
            at(0.5),
            at(0.99),
            self.cpu[0].as_secs_f64() * 1e6 / self.entries as f64,
            self.cpu[1].as_secs_f64() * 1e6 / self.entries as f64,
            self.entries as f64 / self.syncs as f64,
            self.sync_mean,
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
