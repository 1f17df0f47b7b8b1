//! A member that needs entries which nobody has in a log any more gets a snapshot: three members in one process, with real
//! keyspaces, whose third is cut off while the others go on and release their logs. And what a crash may leave of that.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;

use daymark_raft::{
    Applied, AppliedProgress, Apply, Bootstrap, CommandBatch, Committed, EntryBody, Handle, Installed, MemberInfo,
    PeerOptions, RaftOptions, StartError,
};
use daymark_storage::backend::{CopyUse, Family, MemBackend};
use daymark_storage::disk::{Disk, RealDisk};
use daymark_storage::mvcc::{Keyspace, Writer};
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::snapshot::{Received, SnapshotStore};
use daymark_storage::wal::{Identity, Wal, WalOptions};
use daymark_storage::{LogId, StorageError};

use crate::net::Net;
use crate::support::{Client, PATIENCE, Told, eventually, open_log};

const CLUSTER: u64 = 0xc2;
const ROW: &[u8] = b"raft/membership";

/// Last entries of the snapshots that were installed.
type Snapshots = Arc<Mutex<Vec<LogId>>>;

/// A state whose every command is a key.
struct KvState {
    keyspace: Arc<Keyspace>,
    writer: Writer,
    progress: AppliedProgress,
    installed: Snapshots,
}

impl Apply for KvState {
    fn applied(&mut self) -> Result<Applied, StorageError> {
        let installed = self.installed.lock().unwrap().last().copied();
        let membership = self.keyspace.meta(ROW)?.map(Bytes::from);
        Ok(Applied { id: self.keyspace.applied(), membership, installed })
    }

    fn submit(&mut self, entries: Vec<Committed>) -> Result<(), StorageError> {
        for Committed { id, body } in entries {
            let mut waiting = None;
            match body {
                EntryBody::Blank => {}
                EntryBody::Membership(bytes) => self.writer.table_put(Family::Meta, ROW, &bytes),
                EntryBody::Commands { bytes, waiter } => {
                    let mut txn = self.writer.begin();
                    txn.put(bytes.slice(..8), bytes, 0)?;
                    txn.finish();
                    waiting = waiter;
                }
            }
            self.writer.commit(id)?;
            self.writer.publish();
            self.progress.set(id.index);
            if let Some(waiter) = waiting {
                let client = waiter.into_any().downcast::<Client>().expect("all waiters here are clients");
                let _ = client.tell.send((client.number, Ok(id)));
            }
        }
        Ok(())
    }

    fn install(&mut self, received: Received, done: Installed) -> Result<(), StorageError> {
        let applied = received.manifest().applied;
        let live = self.keyspace.backend().open_copy(&received.install()?, CopyUse::Live)?;
        self.writer = self.keyspace.replace(live)?;
        self.installed.lock().unwrap().push(applied);
        self.progress.set(applied.index);
        done(Ok(()));
        Ok(())
    }
}

struct Member {
    handle: Handle,
    wal: Wal,
    worker: Option<std::thread::JoinHandle<()>>,
    keyspace: Arc<Keyspace>,
    fatal: mpsc::Receiver<String>,
}

struct World {
    net: Net,
    dir: tempfile::TempDir,
    disks: BTreeMap<u64, SimDisk>,
    keyspaces: BTreeMap<u64, (Arc<Keyspace>, Snapshots)>,
    members: BTreeMap<u64, Member>,
    runtime: tokio::runtime::Runtime,
    clients: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    next: u64,
}

impl World {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (clients, told) = mpsc::channel();
        let mut world = Self {
            net: Net::default(),
            dir: tempfile::tempdir().unwrap(),
            disks: BTreeMap::new(),
            keyspaces: BTreeMap::new(),
            members: BTreeMap::new(),
            runtime,
            clients,
            told,
            next: 0,
        };
        for id in 1..=3 {
            world.disks.insert(id, SimDisk::new(id));
            let (keyspace, _) = Keyspace::open(MemBackend::new()).unwrap();
            world.keyspaces.insert(id, (keyspace, Arc::default()));
            world.start_member(id).unwrap();
        }
        world
    }

    /// Starts a member on its disk, with what its state holds.
    fn start_member(&mut self, id: u64) -> Result<(), StartError> {
        let identity = Identity { cluster_id: CLUSTER, member_id: id };
        let options = WalOptions { segment_bytes: 1 << 20, ..WalOptions::new(Path::new("/member/wal"), identity) };
        let (wal, worker, recovered) = open_log(Arc::new(self.disks[&id].clone()), options);
        let founder = |id| MemberInfo {
            id,
            name: format!("m{id}"),
            peer_urls: vec![format!("memory://{id}")],
            client_urls: vec![],
            is_learner: false,
            has_vote: true,
        };
        let (before, installed) = self.keyspaces[&id].clone();
        let (keyspace, writer) = Keyspace::open(before.backend()).unwrap();
        self.keyspaces.insert(id, (keyspace.clone(), installed.clone()));
        let progress = AppliedProgress::default();
        let state = KvState { keyspace: keyspace.clone(), writer, progress: progress.clone(), installed };
        let disk = Arc::new(RealDisk::new());
        let dir = self.dir.path().join(format!("m{id}"));
        disk.create_dir_all(&dir).unwrap();
        let options = RaftOptions {
            identity,
            wal: wal.clone(),
            heartbeat: Duration::from_millis(40),
            election: Duration::from_millis(400),
            bootstrap: Bootstrap::from_recovered(
                &recovered,
                Bootstrap::New { members: (1..=3).map(founder).collect() },
            ),
            applied: progress,
            peers: PeerOptions { dialer: self.net.dialer(id), ..PeerOptions::none() },
            snapshots: Some(SnapshotStore::new(disk, dir, CLUSTER, keyspace.clone(), ROW, 0)),
        };
        let (fatal_out, fatal) = mpsc::channel();
        let on_fatal = Box::new(move |why| drop(fatal_out.send(why)));
        let handle = match daymark_raft::start(options, Box::new(state), on_fatal) {
            Ok(handle) => handle,
            Err(error) => {
                wal.stop(Box::new(|_| ()));
                worker.join().unwrap();
                return Err(error);
            }
        };
        // Nobody is waited for: who is behind gets a snapshot.
        handle.keep_log_for_peers(0);
        self.net.join(id, handle.clone());
        self.members.insert(id, Member { handle, wal, worker: Some(worker), keyspace, fatal });
        Ok(())
    }

    fn stop_member(&mut self, id: u64) {
        let mut member = self.members.remove(&id).unwrap();
        self.net.leave(id);
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, member.handle.stop()).await.expect("stops in time");
        });
        member.worker.take().unwrap().join().unwrap();
    }

    fn leader_of(&self, ids: &[u64]) -> u64 {
        let mut leader = None;
        eventually("a leader that all know", || {
            let mut known = ids.iter().map(|id| self.members[id].handle.status().leader);
            let first = known.next().flatten();
            leader = first.filter(|id| ids.contains(id) && known.all(|other| other == first));
            leader.is_some()
        });
        leader.unwrap()
    }

    fn write(&mut self, id: u64, count: u64) -> LogId {
        for number in self.next..self.next + count {
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(2000, number as u8);
            let waiter = Box::new(Client { number, tell: self.clients.clone() });
            self.members[&id].handle.propose(CommandBatch { bytes: payload.into(), count: 1, waiter });
        }
        self.next += count;
        let told = (0..count).map(|_| self.told.recv_timeout(PATIENCE).expect("told in time").1.expect("applied"));
        told.max().unwrap()
    }

    /// Has everything applied flushed and the log released up to there.
    fn release(&self, id: u64) {
        let member = &self.members[&id];
        eventually("the log is released", || {
            member.keyspace.flush().unwrap();
            let durable = member.keyspace.durable_applied().unwrap().expect("something is applied");
            member.handle.release_log(durable);
            std::thread::sleep(Duration::from_millis(5));
            member.handle.released_log() == Some(durable)
        });
    }

    fn expect_same(&self, last: LogId) {
        eventually("all members have applied it", || {
            self.members.values().all(|member| member.keyspace.applied() >= Some(last))
        });
        let hashes: Vec<_> = self.members.values().map(|member| member.keyspace.hash(0, &|| false).unwrap()).collect();
        assert!(hashes.iter().all(|hash| hash.as_ref().map(|hash| hash.sum) == hashes[0].as_ref().map(|h| h.sum)));
        for member in self.members.values() {
            assert_eq!(member.fatal.try_recv().ok(), None);
        }
    }
}

#[test]
fn a_member_that_was_away_while_the_log_was_released_gets_a_snapshot_and_goes_on() {
    let mut world = World::start();
    let leader = world.leader_of(&[1, 2, 3]);
    let first = world.write(leader, 50);
    world.expect_same(first);
    let away = (1..=3).find(|id| *id != leader).unwrap();
    let stays = 6 - leader - away;
    [leader, stays].iter().for_each(|id| world.net.cut_both(away, *id));
    let left_at = world.members[&away].keyspace.applied().unwrap();
    let missed = world.write(leader, 1500);
    world.release(leader);
    assert!(world.members[&leader].handle.released_log() > Some(left_at), "what it misses is in no log any more");
    let before = world.disks[&away].after_process_exit();

    world.net.heal();
    // Under load: the log goes on from where the snapshot ends.
    for _ in 0..20 {
        let leader = world.leader_of(&[leader, stays]);
        world.write(leader, 20);
        world.release(leader);
    }
    let leader = world.leader_of(&[1, 2, 3]);
    let last = world.write(leader, 10);
    world.expect_same(last);
    let installed = world.keyspaces[&away].1.lock().unwrap().clone();
    assert!(!installed.is_empty() && installed[0] >= missed, "{installed:?}, {missed}");
    assert!(world.members[&away].wal.released() >= Some(installed[0]), "its log begins behind the snapshot");

    // It may be stopped and started, and lead.
    world.stop_member(away);
    world.start_member(away).unwrap();
    let leader = world.leader_of(&[1, 2, 3]);
    if leader != away {
        let handle = world.members[&leader].handle.clone();
        world.runtime.block_on(handle.transfer_leader(Some(away))).expect("it is up to date");
    }
    assert_eq!(world.leader_of(&[1, 2, 3]), away);
    let last = world.write(away, 10);
    world.expect_same(last);

    // A crash after the swap and before the log was reset to it: the state is the snapshot, the log is as it was before.
    world.stop_member(away);
    let swapped = world.keyspaces[&away].0.applied().unwrap();
    world.disks.insert(away, before);
    let refused = world.start_member(away).unwrap_err();
    assert!(matches!(refused, StartError::LogBehindState { .. }), "entries were applied since the snapshot: {refused}");
    world.keyspaces[&away].1.lock().unwrap().push(swapped);
    world.start_member(away).unwrap();
    assert!(world.members[&away].wal.released() >= Some(swapped), "the reset is made up for");
    let leader = world.leader_of(&[1, 2, 3]);
    let last = world.write(leader, 10);
    world.expect_same(last);
    for id in 1..=3 {
        world.stop_member(id);
    }
}
