//! A power cut at every operation of a scripted workload, with several fates of what was not synced: what was
//! acknowledged is there, what was not appears only as it was submitted and in order, and life goes on; then a second
//! power cut, while life goes on.

use std::sync::Arc;

use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{Done, EntryKind, LogEntry, StepOutcome, Vote, Wal, WalWorker};
use daymark_storage::{LogId, Result};
use parking_lot::Mutex;

use super::support::*;

/// The log as it should be after some of the submitted operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naive {
    pub vote: Option<Vote>,
    pub released: Option<LogId>,
    pub last: Option<LogId>,
    pub entries: Vec<LogEntry>,
}

impl Naive {
    fn content(&self) -> Content {
        let Self { vote, released, last, entries } = self.clone();
        Content { vote, released, last, entries }
    }
}

/// What was submitted, as the state after each single step, and how far it was acknowledged.
///
/// A step is one entry, vote, truncation or release: a power cut may keep a part of an append.
#[derive(Clone, Default)]
struct History {
    states: Vec<Naive>,
    acknowledged: Arc<Mutex<usize>>,
    /// Last index, term and state of the script.
    term: u64,
}

impl History {
    fn beginning_with(state: Naive) -> Self {
        let term = state.last.map_or(1, |last| last.term).max(state.vote.as_ref().map_or(1, |vote| vote.term));
        Self { states: vec![state], acknowledged: Arc::default(), term }
    }

    fn now(&self) -> &Naive {
        self.states.last().expect("begins with one")
    }

    fn push(&mut self, change: impl FnOnce(&mut Naive)) {
        let mut next = self.now().clone();
        change(&mut next);
        self.states.push(next);
    }

    /// A `Done` that acknowledges everything submitted so far.
    fn done(&self) -> Done {
        let (acknowledged, upto) = (self.acknowledged.clone(), self.states.len() - 1);
        Box::new(move |result| {
            if result.is_ok() {
                let mut acknowledged = acknowledged.lock();
                assert!(*acknowledged <= upto, "acknowledged out of order");
                *acknowledged = upto;
            }
        })
    }

    fn append(&mut self, wal: &Wal, count: u64, length: usize) -> Result<()> {
        let first = self.now().last.map_or(0, |last| last.index + 1);
        let entries: Vec<_> = (first..first + count).map(|index| entry(self.term, index, length)).collect();
        for one in &entries {
            self.push(|state| {
                state.last = Some(one.id);
                state.entries.push(one.clone());
            });
        }
        wal.append(entries, self.done())
    }

    fn vote(&mut self, wal: &Wal) -> Result<()> {
        self.term += 1;
        let new = vote(self.term, Some(self.term % 3), self.term.is_multiple_of(2));
        self.push(|state| state.vote = Some(new.clone()));
        wal.save_vote(new, self.done())
    }

    /// Removes up to `count` entries from the end, and goes on in a new term.
    fn truncate(&mut self, wal: &Wal, count: usize) -> Result<()> {
        self.term += 1;
        let keep = self.now().entries.len().saturating_sub(count);
        let kept = match keep {
            0 => self.now().released,
            keep => Some(self.now().entries[keep - 1].id),
        };
        self.push(|state| {
            state.entries.truncate(keep);
            state.last = kept;
        });
        wal.truncate_after(kept, self.done())
    }

    /// Releases all but the last `count` entries.
    fn release(&mut self, wal: &Wal, count: usize) -> Result<()> {
        let gone = self.now().entries.len().saturating_sub(count);
        if gone == 0 {
            return Ok(());
        }
        let up_to = self.now().entries[gone - 1].id;
        self.push(|state| {
            state.entries.drain(..gone);
            state.released = Some(up_to);
        });
        wal.release(up_to)
    }

    /// The state that was recovered must be one that was submitted, and not older than what was acknowledged.
    fn check(&self, found: &Content, what: &str) -> Naive {
        let acknowledged = *self.acknowledged.lock();
        let allowed = &self.states[acknowledged..];
        match allowed.iter().find(|state| state.content() == *found) {
            Some(state) => state.clone(),
            None => panic!(
                "{what}: found {:?} {:?} {:?} with {} entries; acknowledged {:?}, submitted {:?}",
                found.vote,
                found.released,
                found.last,
                found.entries.len(),
                brief(&self.states[acknowledged]),
                allowed.iter().map(brief).collect::<Vec<_>>()
            ),
        }
    }
}

fn brief(state: &Naive) -> String {
    format!("{:?} {:?} {:?} {}", state.vote, state.released, state.last, state.entries.len())
}

/// A workload that rolls over, recycles, truncates, votes, and has batches of several operations.
fn script(wal: &Wal, worker: &mut WalWorker, history: &mut History, seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed);
    for _ in 0..14 {
        for _ in 0..1 + dice.below(3) {
            match dice.below(10) {
                0 => history.vote(wal)?,
                1 => history.truncate(wal, dice.below(4) as usize)?,
                2 | 3 => history.release(wal, dice.below(6) as usize)?,
                _ => {
                    let count = 1 + dice.below(4);
                    history.append(wal, count, dice.below(900) as usize)?;
                }
            }
        }
        worker.step()?;
    }
    drain(worker)?;
    wal.stop(history.done());
    assert_eq!(worker.step()?, StepOutcome::Stopped);
    Ok(())
}

/// Runs the script from `before` on until the power goes at `crash_at`. The disk it leaves, and what was promised.
fn run_until(disk: &SimDisk, before: &Naive, seed: u64, crash_at: u64) -> History {
    let mut history = History::beginning_with(before.clone());
    disk.crash_at(crash_at);
    let ran = open(disk).and_then(|(wal, mut worker, _)| {
        assert_eq!(content(&wal).unwrap(), before.content());
        script(&wal, &mut worker, &mut history, seed)
    });
    assert_eq!(ran.is_err(), disk.crashed(), "only the power cut fails anything: {ran:?}");
    history
}

/// What is found after the cut.
fn recovered(disk: &SimDisk, history: &History, what: &str) -> Naive {
    let (wal, _worker, _) = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    history.check(&content(&wal).unwrap_or_else(|error| panic!("{what}: {error}")), what)
}

fn operations_of(disk: &SimDisk, before: &Naive, seed: u64) -> u64 {
    let start = disk.operations();
    run_until(disk, before, seed, u64::MAX);
    disk.operations() - start
}

#[test]
fn a_power_cut_anywhere_loses_nothing_acknowledged() {
    let mut cuts = 0;
    for seed in seeds(24) {
        let _repeat = Repeat(seed, "a_power_cut_anywhere");
        let all = operations_of(&SimDisk::new(seed), &Naive::default(), seed);
        for crash_at in 1..=all {
            let disk = SimDisk::new(seed);
            let history = run_until(&disk, &Naive::default(), seed, crash_at);
            for survival in 0..6 {
                let what = format!("seed {seed}, cut at operation {crash_at}, survival {survival}");
                let found = disk.after_power_cut(seed * 1000 + survival);
                let first = recovered(&found.after_process_exit(), &history, &what);
                cuts += 1;
                if survival < 2 {
                    second_cut(&found, &first, seed + 100 + crash_at * 7 + survival, &what);
                }
            }
        }
    }
    assert!(cuts > 1000 || std::env::var("DAYMARK_SEED").is_ok(), "only {cuts} cuts");
}

/// Goes on after the first cut, and cuts again at some places: stale frames behind the first cut must stay dead.
fn second_cut(found: &SimDisk, before: &Naive, seed: u64, what: &str) {
    let all = operations_of(&found.after_process_exit(), before, seed);
    let mut dice = Dice::new(seed);
    for _ in 0..3 {
        let disk = found.after_process_exit();
        let crash_at = disk.operations() + 1 + dice.below(all);
        let history = run_until(&disk, before, seed, crash_at);
        let again = disk.after_power_cut(dice.below(1 << 40));
        recovered(&again, &history, &format!("{what}; then seed {seed}, cut at {crash_at}"));
    }
}

#[test]
fn a_dead_process_leaves_a_log_that_opens() {
    for seed in seeds(12) {
        let _repeat = Repeat(seed, "a_dead_process");
        let all = operations_of(&SimDisk::new(seed), &Naive::default(), seed);
        for crash_at in 1..=all {
            let disk = SimDisk::new(seed);
            let history = run_until(&disk, &Naive::default(), seed, crash_at);
            let what = format!("seed {seed}, dead at operation {crash_at}");
            let found = disk.after_process_exit();
            let first = recovered(&found, &history, &what);
            // What has been seen once must survive the next power cut: opening has made it durable.
            let cut = found.after_power_cut(seed ^ crash_at);
            let seen = History::beginning_with(first);
            recovered(&cut, &seen, &format!("{what}, then a power cut"));
        }
    }
}

/// A frame is torn: its header survives, a sector of its payload does not. It is cut. Then another frame with the same
/// payload is written to the same place, and torn the other way round: the platter now holds the whole first frame.
#[test]
fn a_frame_that_was_cut_never_comes_back() {
    let long = |term| LogEntry { id: id(term, 2), kind: EntryKind::Commands, payload: vec![9; 1400].into() };
    let torn_append = |disk: &SimDisk, wal: &Wal, worker: &mut WalWorker, entry| {
        wal.append(vec![entry], ignore()).unwrap();
        disk.crash_at(disk.operations() + 2);
        drain(worker).unwrap_err();
    };
    let mut torn = 0;
    for survival in 0..150 {
        let disk = SimDisk::new(1);
        let (wal, mut worker, _) = open(&disk).unwrap();
        append(&wal, &mut worker, vec![entry(1, 1, 100)]);
        torn_append(&disk, &wal, &mut worker, long(1));
        let found = disk.after_power_cut(survival);
        let (wal, mut worker, first) = open(&found).unwrap();
        if first.cut.is_none() {
            continue;
        }
        assert_eq!(first.last, Some(id(1, 1)));
        torn += 1;
        torn_append(&found, &wal, &mut worker, long(2));
        for survival in 0..60 {
            let (wal, _worker, second) = open(&found.after_power_cut(survival)).unwrap();
            let newer = wal.entries(2, 3, u64::MAX).unwrap();
            assert!(newer.is_empty() || newer == [long(2)], "a dead frame came back: {:?}", second.last);
        }
    }
    assert!(torn > 10, "only {torn} torn tails were seen");
}

#[test]
fn making_a_log_can_be_cut_off_anywhere() {
    let whole = SimDisk::new(3);
    drop(open(&whole).unwrap());
    for crash_at in 1..=whole.operations() {
        for survival in 0..12 {
            let disk = SimDisk::new(3);
            disk.crash_at(crash_at);
            assert!(open(&disk).is_err());
            let found = disk.after_power_cut(survival);
            let (wal, mut worker, recovered) = open(&found).unwrap_or_else(|error| panic!("{crash_at}: {error}"));
            assert_eq!((recovered.last, recovered.vote), (None, None));
            append(&wal, &mut worker, vec![entry(1, 0, 10)]);
            stop(wal, worker);
            assert_eq!(open(&found).unwrap().2.last, Some(id(1, 0)));
        }
    }
}
