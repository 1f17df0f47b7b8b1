//! Command batches of one net thread: commands of one tick go into one log entry, and their answers find back to the
//! callers. Knows no command but its bytes, and never proposes anything twice.
//!
//! ```text
//! submit -> open batch -- end of tick, or full --> in flight (at most K) --> replies --> callers
//!                 ^___________ more than K in flight: what arrives joins _______|
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use daymark_raft::CommandBatch;
use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::command::{self, Identity, Kind};
use crate::error::Error;
use crate::limits;
use crate::mailbox::{Answer, BatchReplies, CommandResult, Mailbox, ReplyTo};

/// Gives a sealed batch to raft.
pub type Propose = Box<dyn Fn(CommandBatch)>;

/// The batches of one net thread.
pub struct Batcher {
    propose: Propose,
    mailbox: Arc<Mailbox>,
    timeout: Duration,
    revokes_first: bool,
    state: Rc<RefCell<Batches>>,
    /// There is something to seal.
    work: Notify,
}

/// Invariants: `in_flight` has at most `COMMAND_BATCHES_IN_FLIGHT_MAX` batches; a slot that is not free is named by
/// exactly one batch while it waits, and by its caller until that takes the result or goes away.
#[derive(Default)]
struct Batches {
    slots: Slots,
    open: Batch,
    /// Closed because they were full, waiting for their turn.
    full: VecDeque<Batch>,
    waiting_bytes: usize,
    in_flight: VecDeque<InFlight>,
    next_number: u64,
    /// When the first command of this tick came: commands of one tick share a look at the clock.
    tick: Option<Instant>,
}

#[derive(Default)]
struct Batch {
    bytes: BytesMut,
    /// Slots of the callers, in the order of their commands.
    callers: Vec<u32>,
    /// When the first command came.
    since: Option<Instant>,
}

struct InFlight {
    number: u64,
    callers: Vec<u32>,
    since: Option<Instant>,
}

impl Batcher {
    /// `timeout` bounds the time from the first command of a batch to its answer.
    pub fn new(mailbox: Arc<Mailbox>, timeout: Duration, propose: Propose) -> Self {
        Self { propose, mailbox, timeout, revokes_first: false, state: Rc::default(), work: Notify::new() }
    }

    /// Whether commands that revoke leases are taken when others are refused, within a bound of their own.
    pub fn with_revokes_first(self, revokes_first: bool) -> Self {
        Self { revokes_first, ..self }
    }

    /// Adds a command to the tick's batch. The result is what apply answered; if the caller goes away before, the
    /// command still takes effect.
    pub fn submit(&self, kind: Kind, identity: Option<&Identity>, message: &impl Message) -> Result<Submitted, Error> {
        let mut state = self.state.borrow_mut();
        let revokes = matches!(kind, Kind::LeaseRevoke | Kind::LeaseExpire);
        let max = match self.revokes_first && revokes {
            true => limits::REVOKES_WAITING_BYTES_MAX,
            false => limits::COMMANDS_WAITING_BYTES_MAX,
        };
        if state.waiting_bytes > max {
            return Err(Error::TooManyRequests);
        }
        let slot = state.slots.take();
        let since = *state.tick.get_or_insert_with(|| {
            // Ends with the tick.
            self.work.notify_one();
            Instant::now()
        });
        let open = &mut state.open;
        open.since.get_or_insert(since);
        let before = open.bytes.len();
        command::append(&mut open.bytes, kind, identity, message);
        open.callers.push(slot);
        let added = open.bytes.len() - before;
        let is_full = open.bytes.len() >= limits::COMMAND_BATCH_BYTES_MAX
            || open.callers.len() >= limits::COMMAND_BATCH_COUNT_MAX;
        state.waiting_bytes += added;
        if is_full {
            let batch = std::mem::take(&mut state.open);
            state.full.push_back(batch);
        }
        drop(state);
        if is_full {
            self.seal(false);
        }
        Ok(Submitted { state: self.state.clone(), slot: Some(slot), since })
    }

    /// Seals at the end of each tick that has brought commands. Never returns.
    pub async fn run(&self) {
        loop {
            self.work.notified().await;
            // Tasks that are ready now, and what their sockets hold already, belong to the same tick.
            tokio::task::yield_now().await;
            self.state.borrow_mut().tick = None;
            self.seal(true);
        }
    }

    /// Takes the answers of one batch. Those of a batch that is not known any more are late: their callers were told.
    pub fn handle_replies(&self, replies: BatchReplies) {
        let mut state = self.state.borrow_mut();
        let Some(place) = state.in_flight.iter().position(|batch| batch.number == replies.batch) else { return };
        let batch = state.in_flight.remove(place).expect("found just now");
        match replies.results {
            Ok(answers) => {
                assert_eq!(answers.len(), batch.callers.len(), "apply answers every command of a batch");
                for (slot, answer) in batch.callers.into_iter().zip(answers) {
                    state.slots.fill(slot, answer);
                }
            }
            Err(error) => state.slots.fill_all(batch.callers, &error),
        }
        if !state.open.callers.is_empty() || !state.full.is_empty() {
            self.work.notify_one();
        }
    }

    /// Tells callers that waited too long at `now`; what was proposed may still take effect.
    pub fn expire(&self, now: Instant) {
        let mut state = self.state.borrow_mut();
        let is_late =
            |since: Option<Instant>| since.is_some_and(|since| now.saturating_duration_since(since) > self.timeout);
        while state.in_flight.front().is_some_and(|batch| is_late(batch.since)) {
            let batch = state.in_flight.pop_front().expect("looked at just now");
            state.slots.fill_all(batch.callers, &Error::TimedOut);
        }
        while state.full.front().is_some_and(|batch| is_late(batch.since)) {
            let batch = state.full.pop_front().expect("looked at just now");
            state.waiting_bytes -= batch.bytes.len();
            state.slots.fill_all(batch.callers, &Error::TimedOut);
        }
        if is_late(state.open.since) {
            let batch = std::mem::take(&mut state.open);
            state.waiting_bytes -= batch.bytes.len();
            state.slots.fill_all(batch.callers, &Error::TimedOut);
        }
        // Whatever is left may have room now.
        if !state.open.callers.is_empty() || !state.full.is_empty() {
            self.work.notify_one();
        }
    }

    /// Takes the open batch without waiting for the end of the tick, if it is one command and nothing else is in flight.
    /// The caller proposes it.
    pub fn take_lone(&self) -> Option<CommandBatch> {
        let mut state = self.state.borrow_mut();
        let is_lone = state.open.callers.len() == 1 && state.in_flight.is_empty() && state.full.is_empty();
        let (number, bytes, count) = is_lone.then(|| state.seal(true)).flatten()?;
        state.tick = None;
        drop(state);
        Some(self.command_batch(number, bytes, count))
    }

    /// Proposes full batches and, at the end of a tick, the open one, as far as there is room.
    fn seal(&self, ends_tick: bool) {
        loop {
            let sealed = self.state.borrow_mut().seal(ends_tick);
            let Some((number, bytes, count)) = sealed else { return };
            (self.propose)(self.command_batch(number, bytes, count));
        }
    }

    fn command_batch(&self, number: u64, bytes: BytesMut, count: u32) -> CommandBatch {
        let waiter = Box::new(ReplyTo { mailbox: self.mailbox.clone(), batch: number });
        CommandBatch { bytes: bytes.freeze(), count, waiter }
    }
}

impl Batches {
    fn seal(&mut self, ends_tick: bool) -> Option<(u64, BytesMut, u32)> {
        if self.in_flight.len() >= limits::COMMAND_BATCHES_IN_FLIGHT_MAX {
            return None;
        }
        let batch = match self.full.pop_front() {
            Some(batch) => batch,
            None if ends_tick && !self.open.callers.is_empty() => std::mem::take(&mut self.open),
            None => return None,
        };
        let Batch { bytes, callers, since } = batch;
        self.waiting_bytes -= bytes.len();
        let (number, count) = (self.next_number, callers.len() as u32);
        self.next_number += 1;
        self.in_flight.push_back(InFlight { number, callers, since });
        Some((number, bytes, count))
    }
}

/// A command on its way; resolves to its result.
pub struct Submitted {
    state: Rc<RefCell<Batches>>,
    /// None once the result was taken.
    slot: Option<u32>,
    since: Instant,
}

impl Submitted {
    /// When the first command of its tick came.
    pub fn since(&self) -> Instant {
        self.since
    }
}

impl Future for Submitted {
    type Output = CommandResult;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<CommandResult> {
        let slot = self.slot.expect("polled after it was ready");
        let polled = self.state.borrow_mut().slots.poll(slot, context.waker());
        if polled.is_ready() {
            self.slot = None;
        }
        polled
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.state.borrow_mut().slots.abandon(slot);
        }
    }
}

/// Where callers wait, reused.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

enum Slot {
    Free,
    Waiting(Option<Waker>),
    Filled(Answer),
    /// The caller has gone; the result will be dropped.
    Abandoned,
}

impl Slots {
    fn take(&mut self) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Slot::Waiting(None);
        slot
    }

    fn fill(&mut self, slot: u32, answer: Answer) {
        let place = &mut self.slots[slot as usize];
        match std::mem::replace(place, Slot::Filled(answer)) {
            Slot::Waiting(waker) => {
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Slot::Abandoned => self.release(slot),
            Slot::Free | Slot::Filled(_) => unreachable!("a command is answered once"),
        }
    }

    fn fill_all(&mut self, slots: Vec<u32>, error: &Error) {
        slots.into_iter().for_each(|slot| self.fill(slot, Err(error.clone()).into()));
    }

    fn poll(&mut self, slot: u32, waker: &Waker) -> Poll<CommandResult> {
        let place = &mut self.slots[slot as usize];
        match place {
            Slot::Waiting(waiting) => {
                match waiting {
                    Some(waiting) => waiting.clone_from(waker),
                    None => *waiting = Some(waker.clone()),
                }
                Poll::Pending
            }
            Slot::Filled(_) => {
                let Slot::Filled(answer) = std::mem::replace(place, Slot::Free) else { unreachable!("matched") };
                self.free.push(slot);
                Poll::Ready(answer.into())
            }
            Slot::Free | Slot::Abandoned => unreachable!("the caller holds the slot"),
        }
    }

    fn abandon(&mut self, slot: u32) {
        let place = &mut self.slots[slot as usize];
        match place {
            Slot::Waiting(_) => *place = Slot::Abandoned,
            Slot::Filled(_) => self.release(slot),
            Slot::Free | Slot::Abandoned => unreachable!("the caller holds the slot"),
        }
    }

    fn release(&mut self, slot: u32) {
        self.slots[slot as usize] = Slot::Free;
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use daymark_api::etcdserverpb as pb;
    use daymark_raft::ProposeError;
    use futures_util::FutureExt;

    use super::*;
    use crate::request::Reply;

    type Sent = Rc<RefCell<Vec<CommandBatch>>>;

    const TIMEOUT: Duration = Duration::from_secs(7);

    fn batcher() -> (Rc<Batcher>, Arc<Mailbox>, Sent) {
        let (mailbox, sent) = (Mailbox::new(1 << 20), Sent::default());
        let to = sent.clone();
        let propose = Box::new(move |batch| to.borrow_mut().push(batch));
        (Rc::new(Batcher::new(mailbox.clone(), TIMEOUT, propose)), mailbox, sent)
    }

    fn submit(batcher: &Batcher, value_bytes: usize) -> Submitted {
        let put = pb::PutRequest { key: "k".into(), value: vec![0; value_bytes].into(), ..Default::default() };
        batcher.submit(Kind::Put, None, &put).expect("admitted")
    }

    fn replies(batch: u64, revisions: &[i64]) -> BatchReplies {
        let reply = |revision: &i64| {
            let header = Some(pb::ResponseHeader { revision: *revision, ..Default::default() });
            Answer::from(Ok(Reply::Put(pb::PutResponse { header, prev_kv: None })))
        };
        BatchReplies { batch, results: Ok(revisions.iter().map(reply).collect()) }
    }

    fn revision(result: Option<CommandResult>) -> Option<i64> {
        match result? {
            Ok(Reply::Put(put)) => put.header.map(|header| header.revision),
            other => panic!("{other:?}"),
        }
    }

    /// Drives what the net thread's loop would: one tick.
    async fn tick() {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    }

    fn run(test: impl AsyncFnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(tokio::task::LocalSet::new().run_until(test()));
    }

    #[test]
    fn commands_of_one_tick_share_a_batch_and_get_their_own_answers() {
        run(async || {
            let (batcher, _mailbox, sent) = batcher();
            let running = batcher.clone();
            tokio::task::spawn_local(async move { running.run().await });
            tick().await;
            let (mut a, mut b) = (submit(&batcher, 1), submit(&batcher, 2));
            assert_eq!(sent.borrow().len(), 0, "not before the end of the tick");
            tick().await;
            assert_eq!(sent.borrow().iter().map(|batch| batch.count).collect::<Vec<_>>(), [2]);
            assert!((&mut a).now_or_never().is_none());
            batcher.handle_replies(replies(0, &[5, 6]));
            assert_eq!(revision((&mut b).now_or_never()), Some(6));
            assert_eq!(revision((&mut a).now_or_never()), Some(5));
        });
    }

    #[test]
    fn batches_grow_while_as_many_as_allowed_are_in_flight() {
        run(async || {
            let (batcher, _mailbox, sent) = batcher();
            let running = batcher.clone();
            tokio::task::spawn_local(async move { running.run().await });
            let mut callers = Vec::new();
            for _ in 0..limits::COMMAND_BATCHES_IN_FLIGHT_MAX + 3 {
                callers.push(submit(&batcher, 1));
                tick().await;
            }
            assert_eq!(sent.borrow().len(), limits::COMMAND_BATCHES_IN_FLIGHT_MAX);
            batcher.handle_replies(replies(0, &[2]));
            tick().await;
            assert_eq!(sent.borrow().last().map(|batch| batch.count), Some(3));
        });
    }

    #[test]
    fn a_full_batch_does_not_wait_for_the_end_of_the_tick() {
        let (batcher, _mailbox, sent) = batcher();
        let _big: Vec<_> = (0..5).map(|_| submit(&batcher, 300 << 10)).collect();
        assert_eq!(sent.borrow().iter().map(|batch| batch.count).collect::<Vec<_>>(), [4]);
        let _many: Vec<_> = (0..limits::COMMAND_BATCH_COUNT_MAX).map(|_| submit(&batcher, 1)).collect();
        assert_eq!(sent.borrow().last().map(|batch| batch.count), Some(limits::COMMAND_BATCH_COUNT_MAX as u32));
    }

    #[test]
    fn callers_that_go_away_leave_nothing_behind() {
        let (batcher, _mailbox, _sent) = batcher();
        for round in 0..100 {
            let (gone, mut stays) = (submit(&batcher, 1), submit(&batcher, 1));
            assert!((&mut stays).now_or_never().is_none());
            drop(gone);
            batcher.seal(true);
            batcher.handle_replies(replies(round, &[2, 3]));
            match round % 2 {
                0 => assert_eq!(revision((&mut stays).now_or_never()), Some(3)),
                _ => drop(stays),
            }
        }
        let state = batcher.state.borrow();
        assert_eq!((state.slots.slots.len(), state.slots.free.len()), (2, 2));
        assert_eq!((state.waiting_bytes, state.in_flight.len()), (0, 0));
    }

    #[test]
    fn a_batch_that_raft_fails_tells_every_caller_why() {
        let (batcher, mailbox, sent) = batcher();
        let (mut a, mut b) = (submit(&batcher, 1), submit(&batcher, 1));
        batcher.seal(true);
        sent.borrow_mut().pop().expect("proposed").waiter.fail(ProposeError::LeaderChanged);
        batcher.handle_replies(mailbox.pop_replies().expect("told"));
        for caller in [&mut a, &mut b] {
            assert!(matches!(caller.now_or_never(), Some(Err(Error::LeaderChanged))));
        }
    }

    #[test]
    fn who_waits_too_long_is_told_and_a_late_answer_is_dropped() {
        let (batcher, _mailbox, _sent) = batcher();
        let begin = Instant::now();
        let (mut proposed, mut waiting) = (submit(&batcher, 1), submit(&batcher, 1));
        batcher.expire(begin + TIMEOUT);
        assert!((&mut waiting).now_or_never().is_none(), "just in time");
        batcher.seal(true);
        batcher.expire(Instant::now() + TIMEOUT * 2);
        assert!(matches!((&mut proposed).now_or_never(), Some(Err(Error::TimedOut))));
        batcher.handle_replies(replies(0, &[2, 3]));
        assert!(matches!((&mut waiting).now_or_never(), Some(Err(Error::TimedOut))));
        let mut never_sealed = submit(&batcher, 1);
        batcher.expire(Instant::now() + TIMEOUT * 2);
        assert!(matches!((&mut never_sealed).now_or_never(), Some(Err(Error::TimedOut))));
        let state = batcher.state.borrow();
        assert_eq!((state.waiting_bytes, state.in_flight.len(), state.slots.free.len()), (0, 0, 2));
    }

    #[test]
    fn too_many_waiting_bytes_are_refused() {
        let (batcher, _mailbox, _sent) = batcher();
        let mut callers = Vec::new();
        let put = pb::PutRequest { key: "k".into(), value: Bytes::from(vec![0; 1 << 20]), ..Default::default() };
        let refused = loop {
            match batcher.submit(Kind::Put, None, &put) {
                Ok(caller) => callers.push(caller),
                Err(error) => break error,
            }
            assert!(callers.len() < 100);
        };
        assert_eq!(refused, Error::TooManyRequests);
        let revoke = pb::LeaseRevokeRequest { id: 1 };
        let refused = batcher.submit(Kind::LeaseRevoke, None, &revoke).err();
        assert_eq!(refused, Some(Error::TooManyRequests), "no better than the others");
    }

    #[test]
    fn revokes_are_taken_when_others_are_refused_if_the_member_says_so_but_not_for_ever() {
        let batcher = Batcher::new(Mailbox::new(1 << 20), TIMEOUT, Box::new(|_| {})).with_revokes_first(true);
        let mut callers = Vec::new();
        let put = pb::PutRequest { key: "k".into(), value: Bytes::from(vec![0; 1 << 20]), ..Default::default() };
        while let Ok(caller) = batcher.submit(Kind::Put, None, &put) {
            callers.push(caller);
            assert!(callers.len() < 100);
        }
        let revoke = pb::LeaseRevokeRequest { id: 1 };
        let first = batcher.submit(Kind::LeaseRevoke, None, &revoke);
        assert!(first.is_ok(), "a revoke passes");
        assert!(batcher.submit(Kind::Put, None, &put).is_err(), "nothing else does");
        batcher.state.borrow_mut().waiting_bytes += limits::REVOKES_WAITING_BYTES_MAX;
        assert!(batcher.submit(Kind::LeaseRevoke, None, &revoke).is_err(), "bounded as well");
    }
}
