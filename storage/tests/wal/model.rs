//! Random sequences of operations, reopening included, against a naive model.

use daymark_storage::LogId;
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{LogEntry, Vote};

use super::support::*;

#[derive(Default)]
struct Model {
    vote: Option<Vote>,
    released: Option<LogId>,
    last: Option<LogId>,
    entries: Vec<LogEntry>,
    term: u64,
}

impl Model {
    fn content(&self) -> Content {
        let (vote, entries) = (self.vote.clone(), self.entries.clone());
        Content { vote, released: self.released, last: self.last, entries }
    }
}

#[test]
fn random_operations_match_the_model() {
    for seed in seeds(150) {
        let _repeat = Repeat(seed, "random_operations");
        one_run(seed);
    }
}

fn one_run(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut disk = SimDisk::new(seed);
    let (mut wal, mut worker, _) = open(&disk).unwrap();
    let mut model = Model { term: 1, ..Model::default() };
    for step in 0..120 {
        match dice.below(20) {
            0..=8 => {
                model.term += u64::from(dice.below(8) == 0);
                let first = model.last.map_or(0, |last| last.index + 1);
                let longest = if dice.below(10) == 0 { 3400 } else { 300 };
                let length = dice.below(longest) as usize;
                let batch: Vec<_> = (0..dice.below(5)).map(|at| entry(model.term, first + at, length)).collect();
                model.last = batch.last().map(|last| last.id).or(model.last);
                model.entries.extend(batch.iter().cloned());
                wal.append(batch, ignore()).unwrap();
            }
            9 | 10 => {
                let keep = dice.below(model.entries.len() as u64 + 1) as usize;
                let kept = if keep == 0 { model.released } else { Some(model.entries[keep - 1].id) };
                model.entries.truncate(keep);
                model.last = kept;
                wal.truncate_after(kept, ignore()).unwrap();
            }
            11 | 12 => {
                if let Some(up_to) = model.entries.get(dice.below(30) as usize).map(|entry| entry.id) {
                    model.entries.retain(|entry| entry.id.index > up_to.index);
                    model.released = Some(up_to);
                    wal.release(up_to).unwrap();
                }
            }
            13 => {
                let beyond = id(model.term, model.last.map_or(0, |last| last.index) + 1 + dice.below(9));
                if dice.below(4) == 0 {
                    (model.entries, model.released, model.last) = (Vec::new(), Some(beyond), Some(beyond));
                    wal.release(beyond).unwrap();
                }
            }
            14 => {
                model.term += 1;
                let voted_for = (dice.below(2) == 0).then(|| dice.below(5));
                model.vote = Some(vote(model.term, voted_for, dice.below(2) == 0));
                wal.save_vote(model.vote.clone().unwrap(), ignore()).unwrap();
            }
            15..=17 => {
                worker.step().unwrap();
            }
            _ => {
                if dice.below(2) == 0 {
                    stop(wal, worker);
                } else {
                    drain(&mut worker).unwrap();
                    drop((wal, worker));
                }
                disk = match dice.below(2) {
                    0 => disk.after_power_cut(dice.below(1000)),
                    _ => disk.after_process_exit(),
                };
                let (new_wal, new_worker, recovered) =
                    open(&disk).unwrap_or_else(|error| panic!("step {step}: {error}"));
                (wal, worker) = (new_wal, new_worker);
                assert_eq!((recovered.last, recovered.cut), (model.last, None), "step {step}");
            }
        }
        assert_eq!(content(&wal).unwrap(), model.content(), "seed {seed}, step {step}");
    }
}
