//! The same log gives the same state and the same answers: however its entries are grouped into write batches, and
//! after a crash that has lost what was not flushed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use daymark_api::etcdserverpb as pb;
use daymark_raft::{Applied, AppliedProgress, Apply, Committed, EntryBody, MemberInfo};
use daymark_server::apply::Applier;
use daymark_server::mailbox::{CommandResult, Mailbox, ReplyTo};
use daymark_server::state::lease;
use daymark_server::state::members::MEMBERSHIP;
use daymark_server::views::Views;
use daymark_storage::backend::{Family, MemBackend, Span};
use daymark_storage::disk::RealDisk;
use daymark_storage::mvcc::Keyspace;
use daymark_storage::snapshot::{Have, SnapshotStore};
use daymark_storage::{LogId, StorageError};
use proptest::prelude::*;

use crate::commands::{Generated, command, command_of_somebody, with_users};

/// Apply without its thread, and what it needs.
struct Machine {
    backend: Arc<MemBackend>,
    mailbox: Arc<Mailbox>,
    views: Arc<Views>,
    applier: Applier,
}

type Rows = BTreeMap<(u8, Vec<u8>), Vec<u8>>;

impl Machine {
    fn open(backend: Arc<MemBackend>) -> Self {
        let mailbox = Mailbox::new(1 << 20);
        let (keyspace, writer) = Keyspace::open(backend.clone()).expect("the keyspace opens");
        let views = Views::new(keyspace, 1, 1, vec![mailbox.clone()]);
        let applier = Applier::open(writer, views.clone(), AppliedProgress::default()).expect("the state opens");
        Self { backend, mailbox, views, applier }
    }

    /// Entry `index` carries `commands`.
    fn entry(&self, index: u64, commands: &[Generated]) -> Committed {
        let mut bytes = BytesMut::new();
        commands.iter().for_each(|command| command.append(&mut bytes));
        let waiter = Box::new(ReplyTo { mailbox: self.mailbox.clone(), batch: index });
        let body = EntryBody::Commands { bytes: bytes.freeze(), waiter: Some(waiter) };
        Committed { id: LogId { term: 1, index }, body }
    }

    fn answers(&self) -> Vec<CommandResult> {
        let mut answers = Vec::new();
        while let Some(replies) = self.mailbox.pop_replies() {
            answers.extend(replies.results.expect("nothing fails").into_iter().map(CommandResult::from));
        }
        answers
    }

    /// Every row but the position, which names the log entry.
    fn rows(&self) -> Rows {
        let mut rows = Rows::new();
        for family in Family::ALL {
            let span = Span { start: b"", end: None };
            let visit = &mut |key: &[u8], value: &[u8]| {
                rows.insert((family as u8, key.to_vec()), value.to_vec());
                ControlFlow::Continue(())
            };
            let backend = self.views.keyspace.backend();
            daymark_storage::backend::for_each(&*backend, family, span, visit).expect("maps can be read");
        }
        rows.remove(&(Family::Meta as u8, daymark_storage::mvcc::layout::POSITION_KEY.to_vec()));
        rows
    }

    /// A key's lease and the lease's keys say the same.
    fn check_attachments(&self) {
        let keyspace = &self.views.keyspace;
        let read = keyspace.read(0).expect("the current revision");
        let mut by_key = BTreeSet::new();
        let all = daymark_storage::mvcc::KeyRange::all();
        read.for_each(&all, &mut |key, kv| {
            if kv.lease != 0 {
                by_key.insert((kv.lease, Bytes::copy_from_slice(key)));
            }
            ControlFlow::Continue(())
        })
        .expect("it can be read");
        let mut by_lease = BTreeSet::new();
        let mut ids = Vec::new();
        lease::scan_records(keyspace, &mut |fact| ids.push(fact.id)).expect("records");
        for id in ids {
            let keys = lease::attached_keys(keyspace, id, usize::MAX).expect("rows").expect("no bound");
            by_lease.extend(keys.into_iter().map(|key| (id, key)));
        }
        assert_eq!(by_key, by_lease);
        let rows =
            self.rows().into_keys().filter(|(family, key)| *family == Family::Lease as u8 && key[0] == 1).count();
        assert_eq!(rows, by_lease.len(), "attachments of leases that do not exist");
    }
}

#[test]
fn an_entry_that_does_not_follow_the_last_one_stops_the_member() {
    let mut machine = Machine::open(MemBackend::new());
    machine.applier.step([7, 8].map(|index| machine.entry(index, &[]))).expect("any index may be the first");
    let revision = machine.views.keyspace.current_revision();
    for index in [10, 8, 7] {
        let error = machine.applier.step([machine.entry(index, &[])]).expect_err("it does not follow");
        let named = [8, index].map(|index| LogId { term: 1, index }.to_string());
        assert!(matches!(error, StorageError::Invariant { .. }), "{error:?}");
        assert!(named.iter().all(|id| error.to_string().contains(id)), "{error}");
    }
    assert_eq!((machine.views.applied_index(), machine.views.keyspace.current_revision()), (8, revision));
}

fn text(answers: &[CommandResult]) -> Vec<String> {
    answers.iter().map(|answer| format!("{answer:?}")).collect()
}

/// Every command an entry and a write batch of its own, against entries of many and write batches of several.
fn check_grouping(commands: &[Generated], cuts: Vec<(usize, bool)>) -> Result<(), TestCaseError> {
    let mut one_by_one = Machine::open(MemBackend::new());
    for (index, command) in commands.iter().enumerate() {
        let entry = one_by_one.entry(index as u64 + 1, std::slice::from_ref(command));
        one_by_one.applier.step([entry]).expect("applied");
    }
    let mut grouped = Machine::open(MemBackend::new());
    let (mut rest, mut index, mut entries) = (commands, 0, Vec::new());
    for (count, ends_step) in cuts {
        let (group, behind) = rest.split_at(count.min(rest.len()));
        (rest, index) = (behind, index + 1);
        entries.push(grouped.entry(index, group));
        if ends_step || rest.is_empty() {
            grouped.applier.step(entries.drain(..)).expect("applied");
        }
    }
    prop_assert!(rest.is_empty() && entries.is_empty());
    prop_assert_eq!(text(&one_by_one.answers()), text(&grouped.answers()));
    prop_assert_eq!(one_by_one.rows(), grouped.rows());
    let (a, b) = (&one_by_one.views, &grouped.views);
    prop_assert_eq!(a.keyspace.current_revision(), b.keyspace.current_revision());
    prop_assert_eq!(a.keyspace.compact_revision(), b.keyspace.compact_revision());
    prop_assert_eq!(users(a), users(b));
    grouped.check_attachments();
    Ok(())
}

/// What is published of users and roles, in order.
fn users(views: &Views) -> String {
    let table = views.auth.load();
    let users: Vec<_> = table.user_names().iter().map(|name| format!("{:?}", table.user(name.as_bytes()))).collect();
    let roles: Vec<_> = table.role_names().iter().map(|name| format!("{:?}", table.role(name.as_bytes()))).collect();
    format!("{} {} {users:?} {roles:?}", table.is_enabled(), table.revision())
}

fn check_replay(commands: &[Generated], flushed: usize) -> Result<(), TestCaseError> {
    let mut machine = Machine::open(MemBackend::new());
    let flushed = flushed.min(commands.len());
    for (index, command) in commands.iter().enumerate() {
        if index == flushed {
            machine.views.keyspace.flush().expect("flushed");
        }
        let entry = machine.entry(index as u64 + 1, std::slice::from_ref(command));
        machine.applier.step([entry]).expect("applied");
    }
    let before = machine.rows();
    let answers = machine.answers();

    let mut again = Machine::open(machine.backend.crash());
    let durable = again.applier.applied().id.map_or(0, |id| id.index) as usize;
    if flushed < commands.len() {
        prop_assert_eq!(durable, flushed);
    }
    for (index, command) in commands.iter().enumerate().skip(durable) {
        let entry = again.entry(index as u64 + 1, std::slice::from_ref(command));
        again.applier.step([entry]).expect("applied");
    }
    prop_assert_eq!(again.rows(), before);
    prop_assert_eq!(text(&again.answers()), text(&answers[durable..]));
    prop_assert_eq!(&**again.views.alarms.load(), &**machine.views.alarms.load());
    prop_assert_eq!(again.views.keyspace.current_revision(), machine.views.keyspace.current_revision());
    prop_assert_eq!(users(&again.views), users(&machine.views));
    again.check_attachments();
    // And from what is stored alone.
    again.views.keyspace.flush().expect("flushed");
    let stored = Machine::open(again.backend.crash());
    prop_assert_eq!(users(&stored.views), users(&machine.views));
    Ok(())
}

/// The state of one member is replaced by that of another which is further, and then both go on: as if it had applied
/// everything itself.
fn check_replacement(commands: &[Generated], behind: usize, at: usize) -> Result<(), TestCaseError> {
    let at = at.min(commands.len());
    let behind = behind.min(at.saturating_sub(1));
    let dir = tempfile::tempdir().expect("a directory");
    let store = |name: &str, machine: &Machine| {
        let dir = dir.path().join(name);
        std::fs::create_dir(&dir).expect("made");
        SnapshotStore::new(Arc::new(RealDisk::new()), dir, 1, machine.views.keyspace.clone(), MEMBERSHIP, 0)
    };
    let [mut ahead, mut follower] = [0, 1].map(|_| Machine::open(MemBackend::new()));
    let me = MemberInfo {
        id: 1,
        name: String::new(),
        peer_urls: vec![],
        client_urls: vec![],
        is_learner: false,
        has_vote: true,
    };
    let membership = daymark_raft::encode_members(LogId { term: 1, index: 1 }, &[me]);
    for machine in [&mut ahead, &mut follower] {
        let first = Committed { id: LogId { term: 1, index: 1 }, body: EntryBody::Membership(membership.clone()) };
        machine.applier.step([first]).expect("applied");
    }
    let apply = |machine: &mut Machine, from: usize, to: usize| {
        for (index, command) in commands.iter().enumerate().take(to).skip(from) {
            let entry = machine.entry(index as u64 + 2, std::slice::from_ref(command));
            machine.applier.step([entry]).expect("applied");
        }
    };
    apply(&mut ahead, 0, at);
    apply(&mut follower, 0, behind);
    follower.mailbox.want_events(true);
    while follower.views.leases.pop().is_some() {}
    follower.views.leases.take_overflow();

    let (from, to) = (store("ahead", &ahead), store("follower", &follower));
    let made = from.snapshot(None, 7).expect("made");
    let (turn, _) = to.receive(made.manifest.clone()).expect("begun");
    for (number, file) in made.manifest.files.iter().enumerate() {
        let place = Have { file: number as u32, offset: 0 };
        to.write(turn, place, &made.read(place, file.bytes as usize).expect("read")).expect("written");
    }
    let received = to.complete(turn).and_then(|received| to.check(received)).expect("whole");
    follower.applier.install(received).expect("installed");
    prop_assert_eq!(follower.views.applied_index(), at as u64 + 1);
    prop_assert_eq!(
        follower.applier.applied(),
        Applied { installed: made.manifest.applied.into(), ..ahead.applier.applied() }
    );
    prop_assert_eq!(follower.mailbox.left_out(), follower.views.keyspace.current_revision(), "watchers have to look");
    prop_assert!(follower.views.leases.take_overflow(), "the lessor has to look");
    check_same(&ahead, &follower)?;
    ahead.answers();
    follower.answers();
    apply(&mut ahead, at, commands.len());
    apply(&mut follower, at, commands.len());
    prop_assert_eq!(text(&follower.answers()), text(&ahead.answers()));
    check_same(&ahead, &follower)?;
    follower.check_attachments();
    Ok(())
}

fn check_same(ahead: &Machine, follower: &Machine) -> Result<(), TestCaseError> {
    prop_assert_eq!(follower.rows(), ahead.rows());
    let (a, b) = (&ahead.views, &follower.views);
    prop_assert_eq!(&**a.alarms.load(), &**b.alarms.load());
    prop_assert_eq!(&**a.members.load(), &**b.members.load());
    prop_assert_eq!(users(a), users(b));
    let read = |views: &Views| (views.keyspace.current_revision(), views.keyspace.compact_revision());
    prop_assert_eq!(read(a), read(b));
    let hash = |views: &Views| views.keyspace.hash(0, &|| false).expect("hashed");
    prop_assert_eq!(hash(a), hash(b));
    Ok(())
}

fn after(mut first: Vec<Generated>, rest: Vec<Generated>) -> Vec<Generated> {
    first.extend(rest);
    first
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn state_and_answers_do_not_depend_on_how_commands_are_grouped(
        commands in prop::collection::vec(command(), 1..60),
        cuts in prop::collection::vec((1..6usize, any::<bool>()), 60),
    ) {
        check_grouping(&commands, cuts)?;
    }

    #[test]
    fn nor_do_they_with_users_and_rights(
        commands in prop::collection::vec(command_of_somebody(), 1..60),
        cuts in prop::collection::vec((1..6usize, any::<bool>()), 70),
    ) {
        check_grouping(&after(with_users(), commands), cuts)?;
    }

    #[test]
    fn a_replay_after_a_crash_gives_what_was_there_before(
        commands in prop::collection::vec(command(), 1..60),
        flushed in 0..60usize,
    ) {
        check_replay(&commands, flushed)?;
    }

    #[test]
    fn a_replay_gives_users_and_rights_as_well(
        commands in prop::collection::vec(command_of_somebody(), 1..60),
        flushed in 0..70usize,
    ) {
        check_replay(&after(with_users(), commands), flushed)?;
    }
}

proptest! {
    // Each case writes and syncs a few files.
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_state_that_a_snapshot_has_replaced_is_the_one_that_it_would_have_become(
        commands in prop::collection::vec(command_of_somebody(), 1..60),
        (behind, at) in (0..60usize, 1..70usize),
    ) {
        check_replacement(&after(with_users(), commands), behind, at)?;
    }
}

fn put(number: u64) -> Generated {
    Generated::Put(pb::PutRequest { key: "k".into(), value: number.to_string().into(), ..Default::default() })
}

/// A few bytes for an idle apply are applied by whoever brings them; everything else in order by its thread.
#[test]
fn entries_are_applied_by_whoever_is_free_and_in_order() {
    let machine = Machine::open(MemBackend::new());
    let entries: Vec<_> = (1..=400).map(|index| machine.entry(index, &[put(index)])).collect();
    let Machine { mailbox, views, applier, .. } = machine;
    let (mut queue, thread) = daymark_server::apply::start(applier, Box::new(|why| panic!("{why}"))).expect("a thread");
    let mut at_once = 0;
    for (number, entry) in entries.into_iter().enumerate() {
        let index = entry.id.index;
        match number % 5 {
            4 => queue.submit(vec![entry]).expect("taken"),
            _ => queue.submit_or_apply(vec![entry]).expect("taken"),
        }
        at_once += usize::from(number % 5 != 4 && views.applied_index() == index);
    }
    drop(queue);
    thread.join().expect("it ends when all is applied");
    assert_eq!(views.applied_index(), 400);
    assert!(at_once > 0, "an idle apply is not woken");
    let mut batches = Vec::new();
    while let Some(replies) = mailbox.pop_replies() {
        batches.push(replies.batch);
    }
    assert_eq!(batches, (1..=400).collect::<Vec<u64>>(), "answered in order");
}
