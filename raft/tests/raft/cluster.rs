//! Three members in one process, on simulated disks and a network with switches: they elect, replicate, forward, survive
//! the loss of a leader and cuts in either direction, and nothing that was acknowledged is ever lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use daymark_raft::{
    Bootstrap, CallError, CallReply, Calls, CommandBatch, Handle, MemberInfo, PeerOptions, ProposeError, RaftOptions,
    TransferError, ask,
};
use daymark_storage::LogId;
use daymark_storage::disk::{Disk, RealDisk};
use daymark_storage::sim_disk::SimDisk;
use daymark_storage::wal::{Identity, Wal, WalOptions};

use crate::faults::HeldDisk;
use crate::net::Net;
use crate::support::{Client, PATIENCE, State, Told, eventually, open_log};

const CLUSTER: u64 = 0xc1;
const HEARTBEAT: Duration = Duration::from_millis(40);
const ELECTION: Duration = Duration::from_millis(400);
const DIR: &str = "/member/wal";

/// Answers with what it was asked, or not at all; members it calls removed are.
#[derive(Default)]
struct Echo {
    removed: Mutex<Vec<u64>>,
    /// Calls that nobody answers yet.
    open: Mutex<Vec<CallReply>>,
}

impl Calls for Echo {
    fn serve(&self, from: u64, request: Bytes, reply: CallReply) {
        match &request[..] {
            b"hold" => self.open.lock().unwrap().push(reply),
            b"drop" => drop(reply),
            _ => reply.send([&from.to_le_bytes()[..], &request].concat().into()),
        }
    }
    fn ask(&self, request: Bytes, reply: CallReply) {
        reply.send([b"asked ", &request[..]].concat().into());
    }
    fn is_removed(&self, member_id: u64) -> bool {
        self.removed.lock().unwrap().contains(&member_id)
    }
}

struct Member {
    id: u64,
    handle: Handle,
    wal: Wal,
    worker: Option<std::thread::JoinHandle<()>>,
    state: State,
    fatal: mpsc::Receiver<String>,
    clients: mpsc::Sender<Told>,
    told: mpsc::Receiver<Told>,
    calls: Arc<Echo>,
}

struct Cluster {
    net: Net,
    disks: BTreeMap<u64, SimDisk>,
    members: BTreeMap<u64, Member>,
    runtime: tokio::runtime::Runtime,
    next: u64,
}

impl Cluster {
    fn start(seed: u64) -> Self {
        let mut cluster = Self::stopped(seed);
        (1..=3).for_each(|id| cluster.start_member(id, State::default()));
        cluster
    }

    fn stopped(seed: u64) -> Self {
        println!("seed {seed}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let disks = (1..=3).map(|id| (id, SimDisk::new(seed + id))).collect();
        Self { net: Net::default(), disks, members: BTreeMap::new(), runtime, next: 0 }
    }

    fn start_member(&mut self, id: u64, state: State) {
        let disk = Arc::new(self.disks[&id].clone());
        self.start_member_on(disk, Path::new(DIR), id, state);
    }

    fn start_member_on(&mut self, disk: Arc<dyn Disk>, dir: &Path, id: u64, state: State) {
        let identity = Identity { cluster_id: CLUSTER, member_id: id };
        let options = WalOptions { segment_bytes: 1 << 20, ..WalOptions::new(dir, identity) };
        let (wal, worker, recovered) = open_log(disk, options);
        let founder = |id| MemberInfo {
            id,
            name: format!("m{id}"),
            peer_urls: vec![format!("memory://{id}")],
            client_urls: vec![],
            is_learner: false,
            has_vote: true,
        };
        let calls = Arc::new(Echo::default());
        let options = RaftOptions {
            identity,
            wal: wal.clone(),
            heartbeat: HEARTBEAT,
            election: ELECTION,
            bootstrap: Bootstrap::from_recovered(
                &recovered,
                Bootstrap::New { members: (1..=3).map(founder).collect() },
            ),
            applied: state.progress.clone(),
            peers: PeerOptions { dialer: self.net.dialer(id), calls: calls.clone(), version: "test".into() },
            snapshots: None,
        };
        let (fatal_out, fatal) = mpsc::channel();
        let on_fatal = Box::new(move |why| drop(fatal_out.send(why)));
        let handle = daymark_raft::start(options, Box::new(state.clone()), on_fatal).unwrap();
        self.net.join(id, handle.clone());
        let (clients, told) = mpsc::channel();
        let worker = Some(worker);
        self.members.insert(id, Member { id, handle, wal, worker, state, fatal, clients, told, calls });
    }

    /// Stops a member; its disk stays, its state forgets what was not flushed.
    fn stop_member(&mut self, id: u64) -> State {
        let mut member = self.members.remove(&id).unwrap();
        self.net.leave(id);
        self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, member.handle.stop()).await.expect("stops in time");
        });
        member.worker.take().unwrap().join().unwrap();
        member.state.after_crash()
    }

    /// The leader that all of these members know of.
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

    fn others(&self, id: u64) -> [u64; 2] {
        let others: Vec<u64> = (1..=3).filter(|other| *other != id).collect();
        others.try_into().unwrap()
    }

    fn propose(&mut self, id: u64) -> u64 {
        self.propose_bytes(id, 8)
    }

    fn propose_bytes(&mut self, id: u64, bytes: usize) -> u64 {
        let number = self.next;
        self.next += 1;
        let member = &self.members[&id];
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(bytes, number as u8);
        let waiter = Box::new(Client { number, tell: member.clients.clone() });
        member.handle.propose(CommandBatch { bytes: payload.into(), count: 1, waiter });
        number
    }

    fn next_told(&self, id: u64) -> Told {
        self.members[&id].told.recv_timeout(PATIENCE).expect("somebody is told in time")
    }

    /// Proposes on a member until one batch is applied there; what was told before is not looked at.
    fn write(&mut self, id: u64) -> (u64, LogId) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let number = self.propose(id);
            loop {
                let (told, outcome) = self.next_told(id);
                match outcome {
                    Ok(entry) if told == number => return (number, entry),
                    Err(_) if told == number => break,
                    _ => {}
                }
            }
            assert!(Instant::now() < give_up, "nothing can be written on member {id}");
        }
    }

    fn read(&self, id: u64) -> Result<u64, ProposeError> {
        let handle = &self.members[&id].handle;
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, handle.read_barrier()).await.expect("in time") })
    }

    fn numbers(&self, id: u64) -> Vec<u64> {
        let number = |bytes: Bytes| u64::from_le_bytes(bytes[..8].try_into().unwrap());
        self.members[&id].state.payloads().into_iter().map(number).collect()
    }

    /// All members have applied the same entries, among them these.
    fn expect_same(&self, acknowledged: &[u64]) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        eventually("all members have the same", || {
            let last = |id: &u64| self.members[id].state.volatile().applied.id;
            ids.iter().all(|id| last(id).is_some() && last(id) == last(&ids[0]))
                && ids.iter().any(|id| self.members[id].handle.status().last_index == last(id).map(|id| id.index))
        });
        let all = self.numbers(ids[0]);
        for id in &ids {
            assert_eq!(self.numbers(*id), all, "member {id}");
            assert!(self.members[id].fatal.try_recv().is_err());
        }
        assert!(acknowledged.iter().all(|number| all.contains(number)), "what was acknowledged is there");
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), all.len(), "each once");
    }

    fn stop(mut self) {
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.stop_member(id);
        }
    }
}

#[test]
fn three_members_elect_and_replicate_and_everyone_takes_writes_and_reads() {
    let mut cluster = Cluster::start(1);
    let leader = cluster.leader_of(&[1, 2, 3]);
    for member in cluster.members.values() {
        let ready =
            cluster.runtime.block_on(async { tokio::time::timeout(PATIENCE, member.handle.wait_ready()).await });
        ready.expect("ready in time").unwrap();
        assert_eq!(*member.handle.status().voters, [1, 2, 3]);
        assert_eq!(member.handle.read_barrier_now(), None, "not alone");
    }
    let mut acknowledged = Vec::new();
    for id in [1, 2, 3] {
        let numbers: Vec<u64> = (0..200).map(|_| cluster.propose(id)).collect();
        let mut last = None;
        for number in numbers {
            let (told, outcome) = cluster.next_told(id);
            let entry = outcome.unwrap();
            assert_eq!(told, number, "answered in order by the own apply of member {id}");
            assert!(Some(entry) > last);
            last = Some(entry);
            acknowledged.push(number);
        }
        for reader in [1, 2, 3] {
            let index = cluster.read(reader).unwrap();
            assert!(index >= last.unwrap().index, "a read on {reader} sees what was written on {id}");
        }
    }
    cluster.expect_same(&acknowledged);
    let terms: Vec<u64> = cluster.members.values().map(|member| member.handle.term()).collect();
    assert!(terms.iter().all(|term| *term == terms[0]));
    let status = cluster.members[&leader].handle.status();
    assert!(status.is_leader && status.quorum_age.unwrap() < ELECTION);
    cluster.stop();
}

#[test]
fn large_batches_go_through_and_keep_heartbeats_going() {
    let mut cluster = Cluster::start(2);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let term = cluster.members[&leader].handle.term();
    let follower = cluster.others(leader)[0];
    let numbers: Vec<u64> = (0..60).map(|n| cluster.propose_bytes([leader, follower][n % 2], 500_000)).collect();
    for id in [leader, follower] {
        (0..30).for_each(|_| assert!(cluster.next_told(id).1.is_ok()));
    }
    cluster.expect_same(&numbers);
    assert_eq!(cluster.members[&leader].handle.term(), term, "no election meanwhile");
    cluster.stop();
}

#[test]
fn the_loss_of_a_leader_costs_an_election_and_nothing_else() {
    let mut cluster = Cluster::start(3);
    let first = cluster.leader_of(&[1, 2, 3]);
    let others = cluster.others(first);
    let mut acknowledged = vec![cluster.write(first).0, cluster.write(others[0]).0];
    let term = cluster.members[&others[0]].handle.term();
    let state = cluster.stop_member(first);

    // Proposed while nobody leads: held until somebody does.
    let held = cluster.propose(others[0]);
    let (told, outcome) = cluster.next_told(others[0]);
    assert_eq!(told, held);
    match outcome {
        Ok(_) => acknowledged.push(held),
        Err(why) => assert!(
            matches!(why, ProposeError::LeaderChanged | ProposeError::ConnectionLost),
            "{why}: it may have been given to the one that stopped"
        ),
    }
    let second = cluster.leader_of(&others);
    assert!(cluster.members[&second].handle.term() > term);
    acknowledged.push(cluster.write(others[1]).0);
    cluster.start_member(first, state);
    acknowledged.push(cluster.write(first).0);
    cluster.expect_same(&acknowledged);
    assert_eq!(cluster.leader_of(&[1, 2, 3]), second, "who comes back does not disturb");
    cluster.stop();
}

#[test]
fn a_leader_whose_process_ends_is_replaced_before_any_time_out() {
    let mut cluster = Cluster::start(13);
    let mut acknowledged = Vec::new();
    for _ in 0..3 {
        let leader = cluster.leader_of(&[1, 2, 3]);
        let others = cluster.others(leader);
        acknowledged.push(cluster.write(others[0]).0);
        cluster.expect_same(&acknowledged);
        let begun = Instant::now();
        let state = cluster.stop_member(leader);
        let stopped = begun.elapsed();
        let next = cluster.leader_of(&others);
        acknowledged.push(cluster.write(next).0);
        let took = begun.elapsed();
        println!("stopped after {stopped:?}, written after {took:?}");
        assert!(took < ELECTION * 13 / 20, "no follower gives a silent leader up so early: {took:?}");
        cluster.start_member(leader, state);
        acknowledged.push(cluster.write(leader).0);
    }
    cluster.expect_same(&acknowledged);
    cluster.stop();
}

#[test]
fn a_leader_that_one_member_takes_for_dead_stays() {
    let mut cluster = Cluster::start(14);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let others = cluster.others(leader);
    let mut acknowledged = vec![cluster.write(others[0]).0];
    let term = cluster.members[&leader].handle.term();
    let dialed = cluster.net.dialed();
    cluster.net.break_between(leader, others[0]);
    let give_up = Instant::now() + 3 * ELECTION;
    while Instant::now() < give_up {
        acknowledged.push(cluster.write(leader).0);
        acknowledged.push(cluster.write(others[1]).0);
        std::thread::sleep(ELECTION / 20);
    }
    assert!(cluster.net.dialed() > dialed, "somebody tried to reach the other");
    assert_eq!(cluster.leader_of(&[leader, others[1]]), leader);
    assert_eq!(cluster.members[&leader].handle.term(), term, "nobody was elected meanwhile");
    cluster.net.heal();
    acknowledged.push(cluster.write(others[0]).0);
    cluster.expect_same(&acknowledged);
    assert_eq!(cluster.leader_of(&[1, 2, 3]), leader);
    cluster.stop();
}

#[test]
fn nobody_waits_for_the_old_leader_once_there_is_another() {
    let mut cluster = Cluster::start(15);
    let old = cluster.leader_of(&[1, 2, 3]);
    let others = cluster.others(old);
    let mut acknowledged: Vec<u64> = others.iter().map(|other| cluster.write(*other).0).collect();
    others.iter().for_each(|other| cluster.net.cut_both(old, *other));
    // All the time something is on its way to who leads, and on a new connection once the old one is given up.
    let new = loop {
        for other in others {
            cluster.propose(other);
        }
        std::thread::sleep(ELECTION / 40);
        let known = others.map(|other| cluster.members[&other].handle.status().leader);
        if known[0] == known[1] && known[0].is_some_and(|leader| leader != old) {
            break known[0].unwrap();
        }
    };
    let begun = Instant::now();
    acknowledged.extend(others.iter().map(|other| cluster.write(*other).0));
    let took = begun.elapsed();
    println!("{new} leads, written after {took:?}");
    assert!(took < ELECTION, "two election time-outs, as a connection may take, are not waited for: {took:?}");
    cluster.net.heal();
    cluster.expect_same(&acknowledged);
    cluster.stop();
}

#[test]
fn a_leader_without_quorum_says_so_and_the_others_go_on() {
    let mut cluster = Cluster::start(4);
    let old = cluster.leader_of(&[1, 2, 3]);
    let others = cluster.others(old);
    let mut acknowledged = vec![cluster.write(others[0]).0];
    others.iter().for_each(|other| cluster.net.cut_both(old, *other));
    let lost = cluster.propose(old);
    let begun = Instant::now();
    eventually("the old leader knows", || cluster.members[&old].handle.status().leader.is_none());
    println!("noticed after {:?}", begun.elapsed());
    assert!(!cluster.members[&old].handle.status().is_leader);
    let new = cluster.leader_of(&others);
    acknowledged.extend([cluster.write(new).0, cluster.write(others[0]).0]);
    assert_eq!(cluster.members[&old].state.payloads().len(), 1, "the minority applies nothing");

    cluster.net.heal();
    assert_eq!(cluster.leader_of(&[1, 2, 3]), new);
    let (told, outcome) = cluster.next_told(old);
    assert_eq!((told, outcome), (lost, Err(ProposeError::LeaderChanged)), "its outcome was unknown");
    acknowledged.push(cluster.write(old).0);
    cluster.expect_same(&acknowledged);
    assert!(!cluster.numbers(old).contains(&lost), "it never was in a quorum");
    cluster.stop();
}

#[test]
fn a_follower_that_was_cut_off_comes_back_without_an_election() {
    let mut cluster = Cluster::start(5);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let [away, stays] = cluster.others(leader);
    let mut acknowledged = vec![cluster.write(away).0];
    let term = cluster.members[&leader].handle.term();
    cluster.net.cut_both(away, leader);
    cluster.net.cut_both(away, stays);
    eventually("it gives the leader up", || cluster.members[&away].handle.status().leader.is_none());
    // Several elections would have been tried by now.
    std::thread::sleep(4 * ELECTION);
    acknowledged.extend([cluster.write(leader).0, cluster.write(stays).0]);
    cluster.net.heal();
    acknowledged.push(cluster.write(away).0);
    cluster.expect_same(&acknowledged);
    for member in cluster.members.values() {
        assert_eq!((member.handle.term(), member.handle.status().leader), (term, Some(leader)), "pre-vote");
    }
    cluster.stop();
}

#[test]
fn a_follower_that_hears_nothing_does_not_disturb_those_that_hear_it() {
    let mut cluster = Cluster::start(6);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let [deaf, other] = cluster.others(leader);
    let mut acknowledged = vec![cluster.write(deaf).0];
    let term = cluster.members[&leader].handle.term();
    // It hears the other follower, which refuses its pre-vote, because that one has a leader.
    cluster.net.cut(leader, deaf);
    eventually("it gives the leader up", || cluster.members[&deaf].handle.status().leader.is_none());
    let until = Instant::now() + 4 * ELECTION;
    while Instant::now() < until {
        acknowledged.extend([cluster.write(leader).0, cluster.write(other).0]);
        std::thread::sleep(HEARTBEAT);
    }
    assert_eq!(cluster.members[&other].handle.term(), term);
    assert_eq!(cluster.members[&leader].handle.status().leader, Some(leader));
    cluster.net.heal();
    acknowledged.push(cluster.write(deaf).0);
    cluster.expect_same(&acknowledged);
    assert_eq!(cluster.members[&deaf].handle.term(), term);
    cluster.stop();
}

/// The cut that hurts: its heartbeats arrive and keep the others from electing, but it commits nothing.
#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    let mut cluster = Cluster::start(7);
    let old = cluster.leader_of(&[1, 2, 3]);
    let others = cluster.others(old);
    let mut acknowledged = vec![cluster.write(others[1]).0];
    others.iter().for_each(|other| cluster.net.cut(*other, old));
    let begun = Instant::now();
    eventually("the deaf leader knows", || cluster.members[&old].handle.status().leader.is_none());
    let new = cluster.leader_of(&others);
    println!("replaced after {:?}", begun.elapsed());
    assert!(begun.elapsed() < 20 * ELECTION);
    acknowledged.extend([cluster.write(new).0, cluster.write(others[0]).0]);
    cluster.net.heal();
    acknowledged.push(cluster.write(old).0);
    cluster.expect_same(&acknowledged);
    cluster.stop();
}

#[test]
fn a_leader_that_nobody_hears_is_replaced() {
    let mut cluster = Cluster::start(8);
    let old = cluster.leader_of(&[1, 2, 3]);
    let others = cluster.others(old);
    let mut acknowledged = vec![cluster.write(old).0];
    others.iter().for_each(|other| cluster.net.cut(old, *other));
    let new = cluster.leader_of(&others);
    assert_ne!(new, old);
    acknowledged.push(cluster.write(new).0);
    cluster.net.heal();
    acknowledged.push(cluster.write(old).0);
    cluster.expect_same(&acknowledged);
    cluster.stop();
}

/// More than the wires and the window of appends hold gets stuck on the way to one member: what is small passes it, so
/// that the member still hears who leads and still votes.
#[test]
fn votes_and_heartbeats_pass_a_link_that_is_full_of_appends() {
    let mut cluster = Cluster::start(16);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let [clogged, next] = cluster.others(leader);
    let mut acknowledged = vec![cluster.write(clogged).0];
    cluster.net.clog(clogged);
    let numbers: Vec<u64> = (0..60).map(|_| cluster.propose_bytes(leader, 500_000)).collect();
    for _ in &numbers {
        assert!(cluster.next_told(leader).1.is_ok(), "two of three are enough");
    }
    acknowledged.extend(numbers);
    let term = cluster.members[&leader].handle.term();
    std::thread::sleep(4 * ELECTION);
    assert_eq!(cluster.leader_of(&[1, 2, 3]), leader, "it hears the leader");
    assert_eq!(cluster.members[&clogged].handle.term(), term);
    assert!(cluster.numbers(clogged).len() < acknowledged.len(), "it did not get all of it");

    // The other two are cut off from each other: whoever leads next needs its vote.
    cluster.net.cut_both(leader, next);
    cluster.net.cut_both(leader, clogged);
    assert_eq!(cluster.leader_of(&[next, clogged]), next, "the one that has everything, by the vote of the other");
    cluster.net.heal();
    acknowledged.push(cluster.write(clogged).0);
    cluster.expect_same(&acknowledged);
    cluster.stop();
}

#[test]
fn a_batch_is_told_at_once_when_the_connection_that_it_went_on_is_lost() {
    let mut cluster = Cluster::start(15);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let [follower, other] = cluster.others(leader);
    let mut acknowledged = vec![cluster.write(follower).0];
    let term = cluster.members[&leader].handle.term();
    // What it sends gets stuck on the way; then the way is gone, with what was on it.
    cluster.net.cut(follower, leader);
    let lost = cluster.propose(follower);
    std::thread::sleep(HEARTBEAT);
    cluster.net.break_between(follower, leader);
    let begun = Instant::now();
    assert_eq!(cluster.next_told(follower), (lost, Err(ProposeError::ConnectionLost)));
    println!("told {:?} after the connection was lost", begun.elapsed());
    assert!(begun.elapsed() < ELECTION, "not by a time-out");
    cluster.net.heal();
    acknowledged.extend([cluster.write(follower).0, cluster.write(other).0]);
    assert_eq!(cluster.leader_of(&[1, 2, 3]), leader, "the leader has stayed");
    assert_eq!(cluster.members[&leader].handle.term(), term);
    cluster.expect_same(&acknowledged);
    assert!(!cluster.numbers(leader).contains(&lost), "nothing is sent again");
    cluster.stop();
}

#[test]
fn a_cluster_without_quorum_answers_nothing_and_recovers() {
    let mut cluster = Cluster::start(9);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let before = cluster.write(leader).0;
    let others = cluster.others(leader);
    let states: Vec<State> = others.iter().map(|id| cluster.stop_member(*id)).collect();
    eventually("it knows", || cluster.members[&leader].handle.status().leader.is_none());
    let held = cluster.propose(leader);
    assert!(cluster.members[&leader].told.recv_timeout(2 * ELECTION).is_err(), "held, not refused and not applied");
    for (id, state) in others.into_iter().zip(states) {
        cluster.start_member(id, state);
    }
    let (told, outcome) = cluster.next_told(leader);
    assert_eq!((told, outcome.is_ok()), (held, true), "brought to the next leader");
    cluster.expect_same(&[before, held]);
    cluster.stop();
}

#[test]
fn leadership_is_handed_over_and_writes_go_on() {
    let mut cluster = Cluster::start(10);
    let old = cluster.leader_of(&[1, 2, 3]);
    let [to, other] = cluster.others(old);
    let mut acknowledged = vec![cluster.write(other).0];
    let transfer = |cluster: &Cluster, id: u64, to: Option<u64>| {
        cluster.runtime.block_on(cluster.members[&id].handle.transfer_leader(to))
    };
    assert_eq!(transfer(&cluster, other, Some(to)), Err(TransferError::NotLeader));
    assert_eq!(transfer(&cluster, old, Some(99)), Err(TransferError::NotVoter { member_id: 99 }));
    assert_eq!(transfer(&cluster, old, Some(old)), Ok(old));
    let begun = Instant::now();
    assert_eq!(transfer(&cluster, old, Some(to)), Ok(to));
    println!("handed over in {:?}", begun.elapsed());
    assert!(begun.elapsed() < ELECTION, "without waiting for a time-out");
    assert_eq!(cluster.leader_of(&[1, 2, 3]), to);
    acknowledged.extend([cluster.write(old).0, cluster.write(to).0, cluster.write(other).0]);
    let chosen = transfer(&cluster, to, None).unwrap();
    assert_ne!(chosen, to);
    assert_eq!(cluster.leader_of(&[1, 2, 3]), chosen);
    acknowledged.push(cluster.write(to).0);
    cluster.expect_same(&acknowledged);
    cluster.stop();
}

#[test]
fn a_dead_member_is_dialed_with_pauses_and_found_again() {
    let mut cluster = Cluster::start(13);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let dead = cluster.others(leader)[0];
    let state = cluster.stop_member(dead);
    std::thread::sleep(2 * ELECTION);
    let before = cluster.net.dialed();
    std::thread::sleep(5 * ELECTION);
    let dialed = cluster.net.dialed() - before;
    // Two kinds of connection are wanted all the time, with pauses of half an election time-out to a whole one.
    assert!((4..=24).contains(&dialed), "dialed {dialed} times");
    cluster.start_member(dead, state);
    let written = cluster.write(dead).0;
    cluster.expect_same(&[written]);
    let traffic = cluster.members[&leader].handle.peer_traffic();
    let of_dead = traffic.iter().find(|traffic| traffic.member_id == dead).unwrap();
    assert!(of_dead.is_active && of_dead.losses >= 1 && of_dead.sent_failures > 0 && of_dead.sent_bytes > 0);
    assert!(of_dead.round_trips.iter().sum::<u64>() > 0);
    cluster.stop();
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_before_anybody_misses_it() {
    let mut cluster = Cluster::stopped(14);
    let (dir, held) = (tempfile::tempdir().unwrap(), Arc::new(RwLock::new(())));
    let disk = HeldDisk { disk: RealDisk::new(), held: held.clone() };
    cluster.start_member_on(Arc::new(disk), dir.path(), 1, State::default());
    [2, 3].into_iter().for_each(|id| cluster.start_member(id, State::default()));
    let mut acknowledged = vec![cluster.write(1).0];
    let leader = cluster.leader_of(&[1, 2, 3]);
    if leader != 1 {
        cluster.runtime.block_on(cluster.members[&leader].handle.transfer_leader(Some(1))).unwrap();
    }
    assert_eq!(cluster.leader_of(&[1, 2, 3]), 1);
    acknowledged.push(cluster.write(2).0);

    let hold = held.write().unwrap();
    let begun = Instant::now();
    let written = cluster.propose(3);
    let new = cluster.leader_of(&[2, 3]);
    println!("{new} leads {:?} after the disk hung", begun.elapsed());
    assert!(begun.elapsed() < 5 * ELECTION / 4, "sooner than by a time-out");
    acknowledged.extend([cluster.write(2).0, cluster.write(3).0]);
    drop(hold);
    acknowledged.push(cluster.write(1).0);
    let told: Vec<u64> = cluster.members[&3].told.try_iter().map(|(number, _)| number).collect();
    assert!(!told.contains(&written), "its outcome was told while others were waited for");
    cluster.expect_same(&acknowledged);
    cluster.stop();
}

#[test]
fn members_call_each_other() {
    let cluster = Cluster::start(11);
    cluster.leader_of(&[1, 2, 3]);
    let call = |from: u64, to: u64, request: &'static [u8], timeout: Duration| {
        let handle = &cluster.members[&from].handle;
        cluster.runtime.block_on(handle.call(to, Bytes::from_static(request), timeout))
    };
    let long = Duration::from_secs(5);
    for (from, to) in [(1u64, 2), (2, 1), (3, 3)] {
        let expected = [&from.to_le_bytes()[..], b"hallo"].concat();
        assert_eq!(call(from, to, b"hallo", long).unwrap(), expected);
    }
    assert_eq!(call(1, 2, b"drop", long), Err(CallError::NotServed));
    assert_eq!(call(1, 2, b"hold", Duration::from_millis(50)), Err(CallError::TimedOut));
    assert!(matches!(call(1, 9, b"hallo", long), Err(CallError::Unreachable { member_id: 9, .. })));
    // Somebody who belongs to no cluster yet.
    let (near, far) = cluster.net.wires(77, 2);
    cluster.members[&2].handle.accept_peer(far);
    let asked = cluster.runtime.block_on(ask(near, Bytes::from_static(b"who are you"), long));
    assert_eq!(asked.unwrap(), "asked who are you");
    cluster.stop();
}

#[test]
fn a_member_that_was_removed_is_told_and_stops() {
    let mut cluster = Cluster::start(12);
    let leader = cluster.leader_of(&[1, 2, 3]);
    let [removed, other] = cluster.others(leader);
    let state = cluster.stop_member(removed);
    for id in [leader, other] {
        cluster.members[&id].calls.removed.lock().unwrap().push(removed);
    }
    cluster.start_member(removed, state);
    // It hears nothing, campaigns, and is told.
    cluster.net.cut(leader, removed);
    cluster.net.cut(other, removed);
    std::thread::sleep(ELECTION);
    cluster.net.heal();
    let member = &cluster.members[&removed];
    cluster.runtime.block_on(async { drop(member.handle.call(leader, Bytes::new(), PATIENCE).await) });
    let why = member.fatal.recv_timeout(PATIENCE).expect("it stops");
    assert!(why.contains("was removed") && why.contains("empty data directory"), "{why}");
    assert_eq!(member.id, removed);
    assert!(member.wal.last().is_some());
    cluster.stop();
}
