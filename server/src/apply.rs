//! Apply: committed entries -> state -> one write batch -> views, applied batches, replies. Fills raft's trait; never
//! proposes and waits for nobody. It looks at a clock only to measure itself: nothing that it does depends on one.
//!
//! ```text
//!  raft --submit--> queue --> thread "apply": State::apply for each command
//!                                             commit   one backend write, applied id included
//!                                             publish  visible, then watched, then answered
//!                                             one wake for each net thread that got something
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use crossbeam_queue::SegQueue;
use daymark_raft::{Applied, AppliedProgress, Apply, Committed, EntryBody, Installed, Waiter};
use daymark_storage::backend::CopyUse;
use daymark_storage::mvcc::{Event, Keyspace, Writer};
use daymark_storage::snapshot::Received;
use daymark_storage::{LogId, Result, StorageError};
use parking_lot::Mutex;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::response_op::Response;

use crate::auth::table::AuthTable;
use crate::command::{self, AuthCommand, Command, Identity};
use crate::error::Error;
use crate::limits;
use crate::mailbox::{BatchReplies, Mailbox, ReplyTo};
use crate::metrics::applied::Operation;
use crate::metrics::{AppliedCounters, Counter};
use crate::request::Reply;
use crate::state::State;
use crate::state::auth::TokenChange;
use crate::state::lease::LeaseChange;
use crate::views::Views;
use crate::watch::ring::AppliedBatch;

/// The work of the thread "apply", without the thread: a simulator calls [`Applier::step`] itself.
///
/// Invariants: what is published is committed; what is answered or shown to watchers is published; entries are
/// applied in log order, each once.
pub struct Applier {
    // Fixed.
    views: Arc<Views>,
    progress: AppliedProgress,
    /// A write batch that takes longer is logged and counted.
    warning: Duration,
    // Owned.
    writer: Writer,
    state: State,
    /// Last entry in the write batch or before it.
    last: Option<LogId>,
    /// Last entry of the snapshot that the state began as.
    installed: Option<LogId>,
    // The write batch in progress.
    is_dirty: bool,
    begun: Instant,
    commands: u64,
    bytes: u64,
    base_revision: i64,
    replies: Vec<(Box<ReplyTo>, BatchReplies)>,
    /// Room for the commands of an entry; empty between entries.
    decoded: Vec<(Option<Identity>, Command)>,
    /// By number of the net thread: whether it has to be woken.
    wakes: Vec<bool>,
}

impl Applier {
    /// Takes over the write side of the keyspace and publishes what it holds.
    pub fn open(writer: Writer, views: Arc<Views>, progress: AppliedProgress) -> Result<Self> {
        let state = State::open(writer.keyspace())?;
        views.auth.store(Arc::new(state.auth().clone()));
        show_tables(&views, &state);
        let last = writer.keyspace().applied();
        if let Some(last) = last {
            views.set_applied(last);
            progress.set(last.index);
        }
        let (base_revision, wakes) = (writer.latest_revision(), vec![false; views.mailboxes.len()]);
        Ok(Self {
            views,
            progress,
            warning: Duration::MAX,
            writer,
            state,
            last,
            installed: None,
            is_dirty: false,
            begun: Instant::now(),
            commands: 0,
            bytes: 0,
            base_revision,
            replies: Vec::new(),
            decoded: Vec::new(),
            wakes,
        })
    }

    /// Sets how long a write batch may take before it is logged.
    pub fn warn_above(&mut self, warning: Duration) {
        self.warning = warning;
    }

    /// Says that the state began as a snapshot with that last entry.
    pub fn began_as(&mut self, installed: Option<LogId>) {
        self.installed = installed;
    }

    /// What the state holds in order, for raft: a fresh start finds only what is durable.
    pub fn applied(&self) -> Applied {
        Applied { id: self.last, membership: self.state.members().membership(), installed: self.installed }
    }

    /// Puts a snapshot, which is a later state of the same history, in the place of the state: on disk, from where a start
    /// finds it whatever happens, and then for readers, watchers and everybody else who looks at views. Who reads the old
    /// state goes on to do so. Watchers find in history what they have missed, or that it is compacted.
    pub fn install(&mut self, received: Received) -> Result<()> {
        self.finish()?;
        let begun = Instant::now();
        let keyspace = self.writer.keyspace().clone();
        let before = keyspace.current_revision();
        let live = keyspace.backend().open_copy(&received.install()?, CopyUse::Live)?;
        // Aside at first: rights are published before the data that was written under them.
        let (aside, writer) = Keyspace::open(live.clone())?;
        self.state = State::open(&aside)?;
        drop((aside, writer));
        let auth = self.state.auth();
        if auth.revision() != self.views.auth.load().revision() {
            // Some may have been dropped meanwhile; which ones is not part of the state.
            self.views.tokens.drop_all();
        }
        self.views.auth.store(Arc::new(auth.clone()));
        self.writer = keyspace.replace(live)?;
        show_tables(&self.views, &self.state);
        (self.last, self.installed) = (keyspace.applied(), keyspace.applied());
        if let Some(last) = self.last {
            self.views.set_applied(last);
            self.progress.set(last.index);
        }
        let revision = keyspace.current_revision();
        self.base_revision = revision;
        for mailbox in &self.views.mailboxes {
            mailbox.leave_out(revision);
            mailbox.wake();
        }
        let took_ms = begun.elapsed().as_millis() as u64;
        tracing::info!(before, revision, took_ms, "the state was replaced by a snapshot");
        Ok(())
    }

    /// Applies `entries` in as few write batches as their size allows. An error stops the member: nothing of the write
    /// batch in progress is answered or shown.
    pub fn step(&mut self, entries: impl IntoIterator<Item = Committed>) -> Result<()> {
        for entry in entries {
            self.apply_entry(entry)?;
            if self.writer.batch_bytes() >= limits::WRITE_BATCH_BYTES_MAX {
                self.finish()?;
            }
        }
        self.finish()
    }

    fn apply_entry(&mut self, entry: Committed) -> Result<()> {
        // Raft begins behind what `applied` told it. A gap would lose what was acknowledged, a repeat would do it twice;
        // which entry comes first in an empty state is raft's own affair.
        if let Some(last) = self.last.filter(|last| entry.id.index != last.index + 1) {
            let what = format!("apply was given entry {} after entry {last}", entry.id);
            return Err(StorageError::Invariant { what });
        }
        if !self.is_dirty {
            self.begin();
        }
        match entry.body {
            EntryBody::Blank => {}
            EntryBody::Membership(bytes) => self.state.set_membership(&mut self.writer, bytes)?,
            EntryBody::Commands { bytes, waiter } => self.apply_commands(entry.id, bytes, waiter)?,
        }
        self.last = Some(entry.id);
        Ok(())
    }

    fn apply_commands(&mut self, id: LogId, bytes: Bytes, waiter: Option<Box<dyn Waiter>>) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.state.begin_entry(id);
        let broken = |error: Error| StorageError::Invariant { what: format!("entry {id}: {error}") };
        let mut commands = std::mem::take(&mut self.decoded);
        for command in command::commands(bytes) {
            commands.push(command.map_err(broken)?);
        }
        let mut results = Vec::with_capacity(if waiter.is_some() { commands.len() } else { 0 });
        let puts = commands.iter().filter_map(|(_, command)| match command {
            Command::Put(put) => Some(&put.key),
            _ => None,
        });
        self.writer.read_ahead(puts)?;
        let mut last = Instant::now();
        for (identity, command) in commands.drain(..) {
            let operation = operation(&command);
            let result = self.state.apply(&mut self.writer, identity.as_ref(), command)?;
            let now = Instant::now();
            self.commands += 1;
            let counters = &self.views.counters;
            counters.applied(operation, result.is_ok(), now - last);
            match &result {
                Ok(Reply::Compact(_)) => counters.compacted(now - last, unix_secs()),
                Ok(reply) => count(counters, reply),
                Err(_) => {}
            }
            last = now;
            if waiter.is_some() {
                results.push(result.into());
            }
        }
        self.decoded = commands;
        let Some(waiter) = waiter else { return Ok(()) };
        match waiter.into_any().downcast::<ReplyTo>() {
            Ok(to) => {
                let batch = to.batch;
                self.replies.push((to, BatchReplies { batch, results: Ok(results) }));
                Ok(())
            }
            Err(_) => Err(StorageError::Invariant { what: format!("entry {id} has a waiter that is not ours") }),
        }
    }

    /// Commits, publishes, shows, answers, wakes: in this order.
    fn finish(&mut self) -> Result<()> {
        let (true, Some(last)) = (self.is_dirty, self.last) else { return Ok(()) };
        let committing = Instant::now();
        self.writer.commit(last)?;
        let effects = self.state.take_effects();
        self.publish_auth(effects.auth, effects.tokens);
        self.writer.publish();
        self.measure(committing, effects.put_bytes);
        self.views.counters.deletes.add(effects.keys_revoked);
        if let Some(alarms) = effects.alarms {
            self.views.alarms.store(alarms);
        }
        if let Some(members) = effects.members {
            self.views.publish_members(members);
        }
        for change in effects.leases {
            let counters = &self.views.counters;
            match change {
                LeaseChange::Granted(lease) => counters.granted(lease.ttl_secs),
                LeaseChange::Revoked(_) => counters.leases_revoked.add(1),
                LeaseChange::Checkpointed(_) => {}
            }
            self.views.leases.push(change);
        }
        self.views.add_applied_bytes(self.bytes);
        self.views.set_applied(last);
        self.progress.set(last.index);
        self.show(effects.events);
        self.answer();
        self.is_dirty = false;
        Ok(())
    }

    /// Rights before the data that was written under them; a token that has gone before the table under whose revision
    /// it would count.
    fn publish_auth(&self, table: Option<Arc<AuthTable>>, changes: Vec<TokenChange>) {
        let tokens = &self.views.tokens;
        for change in changes {
            match change {
                TokenChange::Assigned { token, user } => tokens.assign_simple(&token, &user),
                TokenChange::UserDropped(user) => tokens.drop_user(&user),
                TokenChange::AllDropped => tokens.drop_all(),
            }
        }
        if let Some(table) = table {
            self.views.auth.store(table);
        }
    }

    /// Counts a write batch, and says so if it took long. Never what is in it: it may hold what is secret.
    fn measure(&self, committing: Instant, put_bytes: u64) {
        let (counters, now) = (&self.views.counters, Instant::now());
        counters.put_bytes.add(put_bytes);
        counters.committed(now - committing);
        let took = now - self.begun;
        if took > self.warning {
            counters.slow.add(1);
            let (commands, bytes, commit) = (self.commands, self.bytes, now - committing);
            tracing::warn!(
                ?took, "expected-duration" = ?self.warning, commands, bytes, ?commit, "apply request took too long"
            );
        }
    }

    /// Begins the next write batch. Events are gathered only if somebody watches: who begins to watch meanwhile finds
    /// them in history.
    fn begin(&mut self) {
        self.is_dirty = true;
        self.begun = Instant::now();
        self.commands = 0;
        self.bytes = 0;
        self.base_revision = self.writer.latest_revision();
        self.state.want_events(self.views.mailboxes.iter().any(|mailbox| mailbox.wants_events()));
    }

    fn show(&mut self, events: Vec<Event>) {
        let last_revision = self.writer.latest_revision();
        let batch = (!events.is_empty()).then(|| {
            let bytes = events.iter().map(|event| event.byte_len() + size_of::<Event>()).sum();
            Arc::new(AppliedBatch { first_revision: self.base_revision + 1, last_revision, events, bytes })
        });
        let changed = last_revision > self.base_revision;
        for (mailbox, wake) in self.views.mailboxes.iter().zip(&mut self.wakes) {
            *wake = mailbox.wants_applied();
            *wake |= match &batch {
                Some(batch) => mailbox.push_applied(batch),
                // Somebody has begun to watch since the batch began.
                None => changed && mailbox.leave_out(last_revision),
            };
        }
    }

    fn answer(&mut self) {
        for (to, replies) in self.replies.drain(..) {
            to.mailbox.push_replies(replies);
            match self.views.mailboxes.iter().position(|mailbox| Arc::ptr_eq(mailbox, &to.mailbox)) {
                Some(thread) => self.wakes[thread] = true,
                None => to.mailbox.wake(),
            }
        }
        let woken = self.views.mailboxes.iter().zip(&self.wakes).filter(|(_, wake)| **wake);
        woken.for_each(|(mailbox, _): (&Arc<Mailbox>, _)| mailbox.wake());
    }
}

/// Publishes what is not read from the keyspace itself; the lessor reads its table anew.
fn show_tables(views: &Views, state: &State) {
    views.alarms.store(state.alarms().list());
    views.publish_members(state.members().list());
    views.leases.begin();
}

fn unix_secs() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a command is called in metrics.
fn operation(command: &Command) -> Operation {
    match command {
        Command::Put(_) => Operation::Put,
        Command::DeleteRange(_) => Operation::DeleteRange,
        Command::Txn(_) => Operation::Txn,
        Command::Compact(_) => Operation::Compaction,
        Command::LeaseGrant(_) => Operation::LeaseGrant,
        Command::LeaseRevoke(_) | Command::LeaseExpire(_) => Operation::LeaseRevoke,
        Command::Alarm(_) => Operation::Alarm,
        Command::MemberAttributes(_) => Operation::MemberAttributes,
        Command::Auth(command) => match command {
            AuthCommand::Enable => Operation::AuthEnable,
            AuthCommand::Disable => Operation::AuthDisable,
            AuthCommand::AssignToken(_) => Operation::Authenticate,
            AuthCommand::UserAdd(_) => Operation::UserAdd,
            AuthCommand::UserDelete(_) => Operation::UserDelete,
            AuthCommand::UserChangePassword(_) => Operation::UserChangePassword,
            AuthCommand::UserGrantRole(_) => Operation::UserGrantRole,
            AuthCommand::UserRevokeRole(_) => Operation::UserRevokeRole,
            AuthCommand::RoleAdd(_) => Operation::RoleAdd,
            AuthCommand::RoleDelete(_) => Operation::RoleDelete,
            AuthCommand::RoleGrantPermission(_) => Operation::RoleGrantPermission,
            AuthCommand::RoleRevokePermission(_) => Operation::RoleRevokePermission,
        },
        _ => Operation::Other,
    }
}

/// Counts what a command has done, as its answer tells.
fn count(counters: &AppliedCounters, reply: &Reply) {
    match reply {
        Reply::Put(_) => counters.puts.add(1),
        Reply::DeleteRange(_) => counters.deletes.add(1),
        Reply::Txn(response) => {
            let operations = count_operations(counters, response);
            counters.txns.add(u64::from(operations > 1));
        }
        _ => {}
    }
}

/// The number of operations that a transaction has done, nested ones included.
fn count_operations(counters: &AppliedCounters, response: &pb::TxnResponse) -> usize {
    let one = |counter: &Counter| {
        counter.add(1);
        1
    };
    let operations = response.responses.iter().map(|operation| match &operation.response {
        Some(Response::ResponsePut(_)) => one(&counters.puts),
        Some(Response::ResponseDeleteRange(_)) => one(&counters.deletes),
        Some(Response::ResponseRange(_)) => one(&counters.ranges),
        Some(Response::ResponseTxn(nested)) => count_operations(counters, nested),
        None => 0,
    });
    operations.sum()
}

/// What the thread "apply" is given.
enum Work {
    Entries(Vec<Committed>),
    Install(Received, Installed),
}

/// Work on its way to the thread "apply". Bounded by admission and by raft, which pauses a replay.
struct Queue {
    chunks: SegQueue<Work>,
    /// No more will come.
    closed: AtomicBool,
    /// Apply has stopped with an error.
    failed: AtomicBool,
    /// The thread is about to sleep, or sleeps.
    asleep: AtomicBool,
}

/// Raft's end of the queue.
pub struct ApplyQueue {
    queue: Arc<Queue>,
    /// Locked by the thread "apply" while it works.
    applier: Arc<Mutex<Applier>>,
    thread: Thread,
    applied: Applied,
}

impl Apply for ApplyQueue {
    fn applied(&mut self) -> Result<Applied> {
        Ok(self.applied.clone())
    }

    fn submit(&mut self, entries: Vec<Committed>) -> Result<()> {
        if self.queue.failed.load(Ordering::Acquire) {
            return Err(StorageError::Stopped);
        }
        self.queue.chunks.push(Work::Entries(entries));
        self.wake();
        Ok(())
    }

    /// Applies a few bytes at once if the thread "apply" has nothing to do. Saves a lone writer the way there.
    fn submit_or_apply(&mut self, entries: Vec<Committed>) -> Result<()> {
        if payload_bytes(&entries) <= limits::APPLY_HERE_BYTES_MAX
            && let Some(mut applier) = self.applier.clone().try_lock()
            // Entries are put in by this caller only, and taken out under the lock: none is ahead of these.
            && self.queue.chunks.is_empty()
            && !self.queue.failed.load(Ordering::Acquire)
        {
            return applier.step(entries);
        }
        self.submit(entries)
    }

    fn install(&mut self, snapshot: Received, done: Installed) -> Result<()> {
        if self.queue.failed.load(Ordering::Acquire) {
            return Err(StorageError::Stopped);
        }
        self.queue.chunks.push(Work::Install(snapshot, done));
        self.wake();
        Ok(())
    }
}

fn payload_bytes(entries: &[Committed]) -> usize {
    let bytes = |entry: &Committed| match &entry.body {
        EntryBody::Commands { bytes, .. } | EntryBody::Membership(bytes) => bytes.len(),
        EntryBody::Blank => 0,
    };
    entries.iter().map(bytes).sum()
}

impl ApplyQueue {
    fn wake(&self) {
        // Pairs with `Queue::wait`: either the thread sees the chunk, or this sees that it sleeps.
        if self.queue.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

impl Drop for ApplyQueue {
    fn drop(&mut self) {
        self.queue.closed.store(true, Ordering::SeqCst);
        self.wake();
    }
}

impl Queue {
    /// Waits until there is something to take; false once nothing will come any more.
    fn wait(&self) -> bool {
        loop {
            if !self.chunks.is_empty() {
                return true;
            }
            let closed = self.closed.load(Ordering::SeqCst);
            self.asleep.store(true, Ordering::SeqCst);
            if self.chunks.is_empty() {
                if closed {
                    return false;
                }
                if !self.closed.load(Ordering::SeqCst) {
                    thread::park();
                }
            }
            self.asleep.store(false, Ordering::SeqCst);
        }
    }

    /// What is there now; what comes meanwhile belongs to the next write batch, so that nobody waits for it.
    fn work(&self, applier: &mut Applier) -> Result<()> {
        let mut snapshot = None;
        let chunks = (0..self.chunks.len()).map_while(|_| match self.chunks.pop()? {
            Work::Entries(entries) => Some(entries),
            Work::Install(received, done) => {
                snapshot = Some((received, done));
                None
            }
        });
        applier.step(chunks.flatten())?;
        let Some((received, done)) = snapshot else { return Ok(()) };
        let installed = applier.install(received);
        done(installed.clone());
        installed
    }
}

/// Starts the thread "apply". It ends when raft drops the queue and everything in it is applied, or with an error,
/// which is given to `on_fatal`.
pub fn start(
    applier: Applier,
    on_fatal: Box<dyn FnOnce(String) + Send>,
) -> std::io::Result<(ApplyQueue, JoinHandle<()>)> {
    let queue = Arc::new(Queue {
        chunks: SegQueue::new(),
        closed: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        asleep: AtomicBool::new(false),
    });
    let (applied, ours) = (applier.applied(), queue.clone());
    let applier = Arc::new(Mutex::new(applier));
    let shared = applier.clone();
    let join = thread::Builder::new().name("apply".into()).spawn(move || {
        let worked = catch_unwind(AssertUnwindSafe(|| {
            while ours.wait() {
                ours.work(&mut shared.lock())?;
            }
            Ok::<_, StorageError>(())
        }));
        let facts = match worked {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("apply panicked: {}", panic_text(&*panic)),
        };
        ours.failed.store(true, Ordering::Release);
        on_fatal(facts);
    })?;
    let thread = join.thread().clone();
    Ok((ApplyQueue { queue, applier, thread, applied }, join))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
