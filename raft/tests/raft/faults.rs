//! A disk that fails and a power that goes, under one voter: nothing that was not durable is ever acknowledged, what was
//! acknowledged is there after a restart, and the member says why it ended. The disk is simulated and seeded.

use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use daymark_raft::ProposeError;
use daymark_storage::disk::{DirLock, Disk, DiskFile, OpenMode, RealDisk};
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::{LogId, Result};

use crate::support::{Member, State, eventually};

const DIR: &str = "/member/wal";

fn start(disk: &SimDisk, state: State) -> Member {
    Member::start(Arc::new(disk.clone()), Path::new(DIR), state)
}

/// Proposes one batch after the other until somebody is told that it failed; returns what was acknowledged.
fn propose_until_failure(member: &Member) -> Vec<LogId> {
    let mut acknowledged = Vec::new();
    loop {
        member.propose(acknowledged.len() as u64, vec![9; 100]);
        match member.next_told().1 {
            Ok(id) => acknowledged.push(id),
            Err(why) => {
                assert_eq!(why, ProposeError::Stopped);
                return acknowledged;
            }
        }
    }
}

#[test]
fn a_failed_write_or_sync_is_fatal_once_and_never_acknowledged() {
    for distance in 1..=8 {
        let disk = SimDisk::new(distance);
        let mut member = start(&disk, State::default());
        member.propose(0, vec![1; 100]);
        let first = member.expect_applied(1)[0].1;
        disk.fail_at(disk.operations() + distance);
        let mut acknowledged = propose_until_failure(&member);
        acknowledged.push(first);

        let why = member.fatal.recv_timeout(crate::support::PATIENCE).unwrap();
        assert!(why.contains("simulated") || why.contains(DIR), "the facts are passed on: {why}");
        assert_eq!(member.handle.read_barrier_now(), None, "a stopped member answers no reads");
        assert!(!member.handle.status().is_leader);
        member.propose(99, vec![2; 100]);
        assert_eq!(member.next_told(), (99, Err(ProposeError::Stopped)));
        member.stop();
        assert!(member.fatal.try_recv().is_err(), "told once");
        let applied = member.state.volatile().entries;
        drop(member.wal);

        let mut again = start(&disk.after_power_cut(distance), State::default());
        let survived = again.state.volatile().entries;
        assert!(acknowledged.iter().all(|id| survived.contains(id)), "acknowledged entries survive");
        assert!(applied.iter().all(|id| survived.contains(id)), "nothing was applied that was not durable");
        again.stop();
    }
}

#[test]
fn a_power_cut_at_any_operation_loses_nothing_that_was_acknowledged() {
    for distance in 1..=60 {
        let disk = SimDisk::new(distance);
        let member = start(&disk, State::default());
        let term = member.handle.term();
        disk.crash_at(disk.operations() + distance);
        let acknowledged = propose_until_failure(&member);
        assert!(disk.crashed());
        member.fatal.recv_timeout(crate::support::PATIENCE).unwrap();

        let mut again = start(&disk.after_power_cut(distance), State::default());
        let survived = again.state.volatile().entries;
        assert!(acknowledged.iter().all(|id| survived.contains(id)), "cut {distance} operations after the start");
        eventually("a new term", || again.handle.term() > term);
        again.propose(0, vec![3; 100]);
        again.expect_applied(1);
        again.stop();
    }
}

#[test]
fn a_power_cut_while_the_cluster_begins_leaves_a_directory_that_starts() {
    let whole = {
        let disk = SimDisk::new(0);
        let mut member = start(&disk, State::default());
        member.stop();
        disk.operations()
    };
    let mut cut_before_ready = 0;
    for operation in 1..=whole {
        let disk = SimDisk::new(operation);
        disk.crash_at(operation);
        // Where the log itself cannot be opened any more there is no member to look at.
        if let Some(mut member) = Member::try_start(Arc::new(disk.clone()), Path::new(DIR), State::default()) {
            cut_before_ready += u64::from(member.fatal.try_recv().is_ok());
            member.stop();
        }
        let mut again = start(&disk.after_power_cut(operation), State::default());
        again.propose(0, vec![4; 100]);
        again.expect_applied(1);
        again.stop();
    }
    assert!(cut_before_ready > 0, "some cuts must fall between the log's opening and the first leadership");
}

/// A real disk whose syncs can be held back, to look at the moment before one has ended.
pub struct HeldDisk {
    pub disk: RealDisk,
    pub held: Arc<RwLock<()>>,
}

struct HeldFile {
    file: Arc<dyn DiskFile>,
    held: Arc<RwLock<()>>,
}

impl Disk for HeldDisk {
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn exists(&self, path: &Path) -> Result<bool> {
        self.disk.exists(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HeldFile { file: self.disk.open(path, mode)?, held: self.held.clone() }))
    }
    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, dir: &Path) -> Result<()> {
        self.disk.remove_dir(dir)
    }
    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.disk.sync_dir(dir)
    }
    fn free_bytes(&self, dir: &Path) -> Result<u64> {
        self.disk.free_bytes(dir)
    }
    fn lock(&self, dir: &Path) -> Result<DirLock> {
        self.disk.lock(dir)
    }
    fn now(&self) -> Duration {
        self.disk.now()
    }
}

impl DiskFile for HeldFile {
    fn len(&self) -> Result<u64> {
        self.file.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize> {
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file.write_at(bytes, offset)
    }
    fn sync_data(&self) -> Result<()> {
        let _held = self.held.read().unwrap();
        self.file.sync_data()
    }
    fn sync_all(&self) -> Result<()> {
        let _held = self.held.read().unwrap();
        self.file.sync_all()
    }
    fn allocate(&self, len: u64) -> Result<()> {
        self.file.allocate(len)
    }
}

#[test]
fn nobody_is_told_before_the_sync_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let held = Arc::new(RwLock::new(()));
    let disk = HeldDisk { disk: RealDisk::new(), held: held.clone() };
    let mut member = Member::start(Arc::new(disk), dir.path(), State::default());
    member.propose(0, vec![1; 100]);
    member.expect_applied(1);
    let (applied, syncs) = (member.state.volatile().applied, member.wal.stats().sync_count);

    let hold = held.write().unwrap();
    (1..=100).for_each(|number| member.propose(number, vec![2; 100]));
    eventually("all are in the log", || member.wal.last().unwrap().index == applied.id.unwrap().index + 100);
    // The log's thread is at its sync, or will be: in either case none has ended since.
    assert!(member.told.recv_timeout(Duration::from_millis(50)).is_err(), "told without a sync");
    assert_eq!((member.state.volatile().applied, member.wal.stats().sync_count), (applied, syncs));
    assert!(member.handle.status().is_leader && member.handle.read_barrier_now().is_some(), "reads go on");
    drop(hold);

    assert_eq!(member.expect_applied(100).len(), 100);
    let shared = member.wal.stats().sync_count - syncs;
    assert!(shared < 50, "what has gathered meanwhile shares syncs, {shared}");
    member.stop();
}
