//! How long writes pause when a leader is lost, beside etcd in the same run.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use daymark_client::{Client, Config};
use daymark_tests::{cluster::Cluster, etcd, links::Cut, process::Program, setting};

/// How often each survivor is written to.
const EVERY: Duration = Duration::from_millis(5);
/// How long the gap may last that is looked for.
const LOOK: Duration = Duration::from_secs(6);
const SETTLE: Duration = Duration::from_millis(800);
const HEAL_MAX: Duration = Duration::from_secs(60);

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Loss {
    Kill,
    Pause,
    Isolate,
    Terminate,
}

/// Times of acknowledgements.
type Answers = Arc<Mutex<Vec<Instant>>>;

/// Writes to a member all the time, each write on its own, so that one that waits holds up no other.
async fn write(endpoint: String, answers: Answers) {
    let config = Config { request_timeout: Some(LOOK), read_retries: 0, ..Config::new([&endpoint]) };
    let client = Client::new(config).expect("a valid endpoint");
    let mut turn = tokio::time::interval(EVERY);
    for n in 0_u64.. {
        turn.tick().await;
        let (client, answers) = (client.clone(), answers.clone());
        tokio::spawn(async move {
            if client.kv().put(format!("pause/{n}"), "x").await.is_ok() {
                answers.lock().expect("no holder panics").push(Instant::now());
            }
        });
    }
}

/// The longest time without an answer from the loss on, until answers come again.
async fn pause_of(cluster: &mut Cluster, loss: Loss) -> Duration {
    let leader = cluster.wait_leader().await;
    let answers = Answers::default();
    let survivors = (0..cluster.size()).filter(|place| *place != leader);
    let writers: Vec<_> =
        survivors.map(|place| tokio::spawn(write(cluster.endpoint(place), answers.clone()))).collect();
    tokio::time::sleep(SETTLE).await;
    let lost = Instant::now();
    match loss {
        Loss::Kill => cluster.kill(leader),
        Loss::Pause => cluster.pause(leader),
        Loss::Isolate => cluster.isolate(leader, Cut::Silent),
        Loss::Terminate => cluster.terminate(leader).await,
    }
    let pause = longest_gap(&answers, lost).await;
    writers.iter().for_each(tokio::task::JoinHandle::abort);
    match loss {
        Loss::Kill | Loss::Terminate => cluster.restart(leader),
        Loss::Pause => cluster.resume(leader),
        Loss::Isolate => cluster.links.heal_all(),
    }
    for place in 0..cluster.size() {
        cluster.wait_healthy(place, HEAL_MAX).await;
    }
    pause
}

async fn longest_gap(answers: &Answers, lost: Instant) -> Duration {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let after: Vec<_> = answers.lock().expect("no holder panics").iter().copied().filter(|at| *at > lost).collect();
        let mut before = lost;
        let mut gaps = Vec::new();
        for at in after {
            gaps.push(at.saturating_duration_since(before));
            before = before.max(at);
        }
        let longest = gaps.into_iter().max().unwrap_or_default();
        // Steady answers end it: leaders are given up later than that only by a fault.
        let is_steady = before.duration_since(lost) > longest + Duration::from_secs(1);
        if is_steady || lost.elapsed() > LOOK {
            return longest.max(Instant::now().duration_since(before));
        }
    }
}

fn percentile(sorted: &[Duration], hundredths: usize) -> Duration {
    sorted[(sorted.len() * hundredths).div_ceil(100).clamp(1, sorted.len()) - 1]
}

async fn pauses(program: &Program, rounds: usize) -> Vec<(Loss, Vec<Duration>)> {
    let mut cluster = Cluster::start(program, 3, &[]).await;
    let mut all = Vec::new();
    for loss in [Loss::Kill, Loss::Pause, Loss::Isolate, Loss::Terminate] {
        let mut each = Vec::new();
        for _ in 0..rounds {
            each.push(pause_of(&mut cluster, loss).await);
        }
        each.sort();
        let name = program.binary.file_name().unwrap_or_default().to_string_lossy();
        println!("{name} {loss:?}: p50 {:?} p99 {:?} of {rounds}", percentile(&each, 50), percentile(&each, 99));
        all.push((loss, each));
    }
    all
}

/// `DAYMARK_PAUSE_ROUNDS` (2) losses of each kind; from 10 on they are compared with etcd's by p50 and p99.
#[tokio::test]
async fn writes_pause_no_longer_than_etcds_when_a_leader_is_lost() {
    let rounds = setting("DAYMARK_PAUSE_ROUNDS", 2) as usize;
    let is_measured = rounds >= 10;
    let ours = pauses(&Program::daymark(), rounds).await;
    for (loss, each) in &ours {
        let most = match (loss, is_measured) {
            (Loss::Terminate, true) => Duration::from_millis(150),
            // Beside other tests only an election that did not happen is told from a handover.
            (Loss::Terminate, false) => Duration::from_millis(900),
            _ => Duration::from_secs(4),
        };
        let p99 = percentile(each, 99);
        assert!(p99 <= most, "writes pause for {p99:?} after {loss:?}, at most {most:?} is allowed: {each:?}");
    }
    if !is_measured {
        return;
    }
    let Some(oracle) = etcd::any_oracle_or_skip("writes_pause_no_longer_than_etcds_when_a_leader_is_lost") else {
        return;
    };
    let theirs = pauses(&oracle, rounds).await;
    for ((loss, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        for hundredths in [50, 99] {
            let (ours, theirs) = (percentile(ours, hundredths), percentile(theirs, hundredths));
            assert!(ours <= theirs, "after {loss:?}: p{hundredths} {ours:?}, etcd {theirs:?}");
        }
    }
}
