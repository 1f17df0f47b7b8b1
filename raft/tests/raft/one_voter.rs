//! One voter on a real disk: what is proposed is applied in order by whoever proposed it, and what a restart keeps.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use daymark_raft::{Bootstrap, ChangeError, MemberChange, PeerOptions, ProposeError, RaftOptions, StartError, limits};
use daymark_storage::disk::RealDisk;
use daymark_storage::{LogId, StorageError};

use crate::support::{IDENTITY, MEMBER, Member, PATIENCE, State, eventually, open_log, wal_options};

fn start(dir: &tempfile::TempDir, state: State) -> Member {
    Member::start(Arc::new(RealDisk::new()), dir.path(), state)
}

fn number_bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

#[test]
fn batches_are_applied_in_order_each_with_its_waiter() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = start(&dir, State::default());
    (0..1000).for_each(|number| member.propose(number, number_bytes(number)));
    let told = member.expect_applied(1000);
    assert!(told.iter().map(|(number, _)| *number).eq(0..1000), "answered in the order of the log");
    assert!(told.is_sorted_by(|before, after| before.1 < after.1), "one entry each");
    assert!(member.state.payloads().into_iter().eq((0..1000).map(number_bytes)), "commands arrive unchanged");
    let entries = member.state.volatile().entries;
    assert!(entries.iter().map(|id| id.index).eq(0..entries.len() as u64), "no gap, membership first");
    member.stop();
}

#[test]
fn what_was_acknowledged_survives_a_restart_and_the_term_rises() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&dir, State::default());
    (0..100).for_each(|number| first.propose(number, number_bytes(number)));
    first.expect_applied(100);
    let before = first.handle.status();
    assert_eq!((before.is_leader, before.leader, before.term), (true, Some(MEMBER), 1));
    assert_eq!((&*before.voters, &*before.learners), (&[MEMBER][..], &[][..]));
    first.stop();
    let vote = first.wal.vote().unwrap();
    drop(first.wal);

    // The state forgot everything: the log brings all of it back, membership included, without waiters.
    let mut second = start(&dir, State::default());
    let after = second.handle.status();
    assert!(after.term > before.term && vote.term == before.term, "a restarted leader is elected anew");
    assert_eq!(after.voters, before.voters, "membership comes from the log");
    assert!(second.state.payloads().into_iter().eq((0..100).map(number_bytes)));
    assert!(second.told.try_recv().is_err(), "an earlier run's batches have no waiter in this one");
    second.propose(7, number_bytes(100));
    assert_eq!(second.next_told().1.unwrap().term, after.term);
    second.stop();
}

#[test]
fn replay_begins_behind_the_durable_applied_id() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&dir, State::default());
    (0..50).for_each(|number| first.propose(number, number_bytes(number)));
    first.expect_applied(50);
    let durable = first.state.flush();
    (50..80).for_each(|number| first.propose(number, number_bytes(number)));
    first.expect_applied(30);
    first.stop();
    let survived = first.state.after_crash();
    drop(first.wal);

    let mut second = Member::start_unready(Arc::new(RealDisk::new()), dir.path(), survived);
    second.handle.release_log(durable);
    tokio_timeout(&second, second.handle.wait_ready()).unwrap();
    eventually("release of what was durable at start", || second.wal.released() == Some(durable));
    let entries = second.state.volatile().entries;
    let replayed: Vec<LogId> = entries.into_iter().filter(|id| *id > durable).collect();
    assert_eq!(replayed.first().unwrap().index, durable.index + 1, "exactly what was not durable");
    assert!(second.state.payloads().into_iter().eq((0..80).map(number_bytes)), "each once");
    second.stop();
}

#[test]
fn a_released_log_restarts_from_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&dir, State::default());
    (0..300).for_each(|number| first.propose(number, number_bytes(number)));
    first.expect_applied(300);
    let durable = first.state.flush();
    first.handle.release_log(durable);
    eventually("release", || first.wal.released() == Some(durable));
    first.handle.release_log(LogId { index: durable.index + 1, ..durable });
    first.propose(300, number_bytes(300));
    first.expect_applied(1);
    assert_eq!(first.wal.released(), Some(durable), "what was not applied is never released");
    first.stop();
    let survived = first.state.after_crash();
    drop(first.wal);

    let mut second = start(&dir, survived);
    assert_eq!(&*second.handle.status().voters, &[MEMBER], "membership comes from the state");
    assert!(second.state.payloads().into_iter().eq((0..301).map(number_bytes)));
    let durable = second.state.flush();
    second.handle.release_log(durable);
    eventually("release after a restart", || second.wal.released() == Some(durable));
    second.stop();
}

#[test]
fn a_released_log_without_its_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&dir, State::default());
    first.propose(0, number_bytes(0));
    first.expect_applied(1);
    let durable = first.state.flush();
    first.handle.release_log(durable);
    eventually("release", || first.wal.released() == Some(durable));
    first.stop();
    drop(first.wal);

    let (wal, worker, recovered) = open_log(Arc::new(RealDisk::new()), wal_options(dir.path()));
    let lost = State::default();
    let error = daymark_raft::start(
        options(wal.clone(), Bootstrap::from_recovered(&recovered, nobody()), &lost),
        Box::new(lost),
        Box::new(|_| ()),
    )
    .err()
    .expect("a state that is behind the released log cannot be brought up to date");
    let behind = StartError::StateBehindLog { applied: None, released: durable };
    assert_eq!(error.to_string(), behind.to_string());
    drop(wal);
    worker.join().unwrap();
}

#[test]
fn a_log_that_ends_before_its_state_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&dir, State::default());
    first.propose(0, number_bytes(0));
    first.expect_applied(1);
    let durable = first.state.flush();
    first.stop();
    let survived = first.state.after_crash();

    let elsewhere = tempfile::tempdir().unwrap();
    let (wal, worker, recovered) = open_log(Arc::new(RealDisk::new()), wal_options(elsewhere.path()));
    let bootstrap = Bootstrap::from_recovered(&recovered, nobody());
    let error = daymark_raft::start(options(wal.clone(), bootstrap, &survived), Box::new(survived), Box::new(|_| ()));
    let behind = StartError::LogBehindState { applied: durable, last: None };
    assert_eq!(error.err().unwrap().to_string(), behind.to_string());
    assert_eq!((wal.released(), wal.last(), wal.vote()), (None, None, None), "nothing was written");
    drop(wal);
    worker.join().unwrap();
}

#[test]
fn beginning_twice_or_going_on_with_nothing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, worker, _) = open_log(Arc::new(RealDisk::new()), wal_options(dir.path()));
    let state = State::default();
    let refuse = |bootstrap: Bootstrap| {
        daymark_raft::start(options(wal.clone(), bootstrap, &state), Box::new(state.clone()), Box::new(|_| ()))
            .err()
            .expect("refused")
    };
    assert!(matches!(refuse(Bootstrap::Restarted), StartError::NotInitialized));
    assert!(matches!(refuse(nobody()), StartError::Members { member_id: MEMBER }));
    assert_eq!(wal.last(), None, "nothing was written");
    drop(wal);
    worker.join().unwrap();

    let mut member = start(&dir, State::default());
    member.stop();
    drop(member.wal);
    let (wal, worker, _) = open_log(Arc::new(RealDisk::new()), wal_options(dir.path()));
    let error = daymark_raft::start(options(wal, nobody(), &state), Box::new(state), Box::new(|_| ()));
    assert!(matches!(error.err(), Some(StartError::NotNew)));
    worker.join().unwrap();
}

fn nobody() -> Bootstrap {
    Bootstrap::New { members: Vec::new() }
}

fn options(wal: daymark_storage::wal::Wal, bootstrap: Bootstrap, state: &State) -> RaftOptions {
    RaftOptions {
        identity: IDENTITY,
        wal,
        heartbeat: std::time::Duration::from_millis(100),
        election: std::time::Duration::from_millis(1000),
        bootstrap,
        applied: state.progress.clone(),
        peers: PeerOptions::none(),
        snapshots: None,
    }
}

#[test]
fn reads_wait_for_the_own_terms_first_entry_and_then_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = start(&dir, State::default());
    let entries = member.state.volatile().entries;
    let blank = entries.iter().find(|id| id.term == 1).unwrap().index;
    eventually("the gate opens", || member.handle.read_barrier_now() == Some(blank));
    member.propose(0, number_bytes(0));
    member.expect_applied(1);
    assert_eq!(member.handle.read_barrier_now(), Some(blank), "later writes were published before their answer");
    assert_eq!(member.runtime.block_on(member.handle.read_barrier()), Ok(blank));
    assert_eq!(member.runtime.block_on(member.handle.wait_ready()), Ok(blank));
    member.stop();
    assert_eq!(member.handle.read_barrier_now(), None);
    assert_eq!(member.runtime.block_on(member.handle.read_barrier()), Err(ProposeError::Stopped));
}

#[test]
fn status_changes_are_announced_and_commits_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = start(&dir, State::default());
    let mut changed = member.handle.status_changed();
    eventually("leadership shows", || member.handle.status().is_leader);
    changed.mark_unchanged();
    (0..100).for_each(|number| member.propose(number, number_bytes(number)));
    let last = member.expect_applied(100).last().unwrap().1;
    assert!(!changed.has_changed().unwrap());
    let status = member.handle.status();
    assert_eq!((status.last_index, status.committed_index), (Some(last.index), Some(last.index)));
    assert_eq!((status.leader_changes_seen, status.quorum_age), (1, Some(std::time::Duration::ZERO)));
    assert_eq!(member.handle.term(), last.term);
    member.stop();
    assert!(!member.handle.status().is_leader);
    assert!(changed.has_changed().unwrap());
}

#[test]
fn commands_too_far_ahead_of_apply_are_refused_until_it_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = start(&dir, State::default());
    member.state.lazy.store(true, Ordering::Relaxed);
    let many = u32::try_from(limits::COMMANDS_AHEAD_MAX).unwrap() + 1;
    member.propose_many(0, number_bytes(0), many);
    let entry = member.expect_applied(1)[0].1;
    member.propose(1, number_bytes(1));
    assert_eq!(member.next_told(), (1, Err(ProposeError::TooManyRequests)));
    member.state.progress.set(entry.index);
    member.propose(2, number_bytes(2));
    assert_eq!(member.expect_applied(1)[0].0, 2);
    member.stop();
    assert!(member.state.payloads().into_iter().eq([number_bytes(0), number_bytes(2)]), "refused means not proposed");
}

#[test]
fn everybody_is_told_once_when_the_member_stops() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = start(&dir, State::default());
    (0..2000).for_each(|number| member.propose(number, number_bytes(number)));
    member.stop();
    member.propose(2000, number_bytes(2000));
    let told: Vec<_> = (0..=2000).map(|_| member.next_told()).collect();
    assert!(member.told.try_recv().is_err(), "nobody is told twice");
    let mut numbers: Vec<u64> = told.iter().map(|(number, _)| *number).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..=2000), "everybody is told");
    let outcomes = told.iter().map(|(_, outcome)| outcome);
    assert!(outcomes.clone().all(|outcome| matches!(outcome, Ok(_) | Err(ProposeError::Stopped))));
    assert_eq!(told.last().unwrap().1, Err(ProposeError::Stopped));
    let applied: Vec<LogId> = outcomes.filter_map(|outcome| outcome.ok()).collect();
    let stopped_log = member.wal.append(vec![], Box::new(|_| ()));
    assert!(matches!(stopped_log, Err(StorageError::Stopped)));
    assert!(member.fatal.try_recv().is_err(), "stopping is not fatal");
    drop(member.wal);

    // What was acknowledged before the stop is there afterwards.
    let mut again = start(&dir, State::default());
    let entries = again.state.volatile().entries;
    assert!(applied.iter().all(|id| entries.contains(id)));
    again.stop();
}

#[test]
fn dropping_the_last_handle_stops_the_member() {
    let dir = tempfile::tempdir().unwrap();
    let member = start(&dir, State::default());
    drop(member.handle);
    let worker = member.worker.unwrap();
    eventually("the log ends", || worker.is_finished());
    worker.join().unwrap();
}

#[test]
fn a_long_log_is_replayed_in_order_while_apply_is_slow() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start(&dir, State::default());
    // More than is handed to apply at once and more than the log keeps in memory.
    let payload = |number: u64| [&number.to_le_bytes()[..], &vec![number as u8; 200_000]].concat();
    (0..120).for_each(|number| first.propose(number, payload(number)));
    first.expect_applied(120);
    first.stop();
    drop(first.wal);

    let slow = State::default();
    slow.lazy.store(true, Ordering::Relaxed);
    let mut second = Member::start_unready(Arc::new(RealDisk::new()), dir.path(), slow.clone());
    eventually("all is replayed", || {
        if let Some(id) = slow.volatile().applied.id {
            slow.progress.set(id.index);
        }
        slow.volatile().commands.len() == 120
    });
    assert!(slow.payloads().into_iter().zip(0..).all(|(bytes, number)| bytes == payload(number)));
    let ready = tokio_timeout(&second, second.handle.wait_ready());
    assert!(ready.is_ok());
    second.stop();
}

fn tokio_timeout<T>(member: &Member, future: impl Future<Output = T>) -> T {
    member.runtime.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("in time") })
}

/// Nobody else is there to be reached: what is looked at is the membership, and what it does to the fast way of reading.
#[test]
fn reads_are_fast_while_nobody_else_takes_part_and_again_when_they_have_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut member = start(&dir, State::default());
    assert!(member.handle.read_barrier_now().is_some());
    let urls = || vec!["http://127.0.0.1:1".to_string()];
    let change =
        |change: MemberChange, based_on: LogId| member.runtime.block_on(member.handle.change_members(change, based_on));

    let founding = LogId { term: 0, index: 0 };
    let wrong = LogId { term: 1, index: 9 };
    assert_eq!(change(MemberChange::AddLearner { id: 7, peer_urls: urls() }, wrong), Err(ChangeError::Stale));
    assert_eq!(change(MemberChange::Remove { id: MEMBER }, founding), Err(ChangeError::Unfit));
    assert_eq!(change(MemberChange::Promote { id: 7 }, founding), Err(ChangeError::Unfit));
    assert!(member.handle.read_barrier_now().is_some(), "what was refused has no effect");

    let with_learner = change(MemberChange::AddLearner { id: 7, peer_urls: urls() }, founding).unwrap();
    assert_eq!(member.handle.read_barrier_now(), None, "a learner may show a write before this member does");
    let with_both = change(MemberChange::AddVoter { id: 8, peer_urls: urls() }, with_learner).unwrap();
    let status = member.handle.status();
    assert_eq!((&*status.voters, &*status.learners), (&[MEMBER][..], &[7, 8][..]), "no vote before it has caught up");
    member.propose(1, number_bytes(1));
    assert!(member.next_told().1.is_ok(), "the quorum is what it was");
    assert!(member.runtime.block_on(member.handle.read_barrier()).is_ok());

    let without_one = change(MemberChange::Remove { id: 8 }, with_both).unwrap();
    assert_eq!(member.handle.read_barrier_now(), None);
    assert_eq!(
        change(MemberChange::Remove { id: 7 }, with_both),
        Err(ChangeError::Stale),
        "based on an old membership"
    );
    let alone = change(MemberChange::Remove { id: 7 }, without_one).unwrap();
    eventually("reads are fast again", || member.handle.read_barrier_now() == Some(alone.index));
    member.stop();
    drop(member.wal);

    let mut again = start(&dir, State::default());
    assert!(again.handle.read_barrier_now() > Some(alone.index));
    again.stop();
}
