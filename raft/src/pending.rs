//! Sealed batches that wait for their apply, by id, and what they are told if it stays unknown. Also admission: how far
//! commit runs ahead of apply. Does not retry anything.
//!
//! Only the thread "raft" takes the lock in normal running (batches enter when the inbox is emptied, leave when their
//! entry is committed), so it is not contended; apply reports through one atomic and takes no lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::OptionalSend;
use openraft::raft::responder::Responder;
use parking_lot::Mutex;

use crate::batch::{BatchId, Proposal, ProposeError, Waiter};
use crate::config::limits;
use crate::executor;
use crate::runtime::{self, Instant};
use crate::transport::{Held, Outbox, refuse};
use crate::types::{RaftLogId, SealedBatch, TypeConfig};

/// How far apply has come, as told by the apply thread: one store per applied batch, no lock, no wake. The server makes
/// it, hands one clone to [`RaftOptions`](crate::RaftOptions) and one to its apply thread.
///
/// It must be moved: commands that were committed and are not covered by it count against
/// [`COMMANDS_AHEAD_MAX`](limits::COMMANDS_AHEAD_MAX), and replay after a restart pauses on it.
#[derive(Clone, Default)]
pub struct AppliedProgress {
    /// Applied index + 1; 0 before the first entry.
    next_index: Arc<AtomicU64>,
}

impl AppliedProgress {
    /// Everything up to `index` is applied. Calls with a lower index than before have no effect.
    pub fn set(&self, index: u64) {
        self.next_index.fetch_max(index + 1, Ordering::Release);
    }

    /// The first log index that is not known to be applied.
    pub(crate) fn next_index(&self) -> u64 {
        self.next_index.load(Ordering::Acquire)
    }
}

/// The table of waiting batches.
pub(crate) struct Pending {
    member_id: u64,
    timeout: Duration,
    applied: AppliedProgress,
    table: Mutex<Table>,
    /// Batches that wait for a leader.
    pub(crate) held: Held,
}

/// # Invariants
///
/// - `slots[i]` belongs to sequence `first + i` (wrapping); the first slot is never empty.
/// - Deadlines do not fall from front to back, because all batches have the same time-out.
/// - `commands_ahead` is the sum over `committed`.
struct Table {
    first: u64,
    slots: VecDeque<Option<Slot>>,
    bytes: usize,
    /// Index and count of commands of each committed entry that had a waiter here and may not be applied yet.
    committed: VecDeque<(u64, u32)>,
    commands_ahead: u64,
    stopped: bool,
}

struct Slot {
    waiter: Box<dyn Waiter>,
    /// The term of the leader it was given to; 0 while it is held.
    sent_term: u64,
    /// The connection that it went on; 0 if there was none.
    sent_on: u64,
    /// What to give to another leader if this one has certainly not proposed it.
    batch: Option<SealedBatch>,
    count: u32,
    bytes: usize,
    deadline: Instant,
}

impl Pending {
    /// `first` is the random start of the sequence; see [`BatchId`].
    pub(crate) fn new(member_id: u64, first: u64, timeout: Duration, applied: AppliedProgress) -> Self {
        let table = Table {
            first,
            slots: VecDeque::new(),
            bytes: 0,
            committed: VecDeque::new(),
            commands_ahead: 0,
            stopped: false,
        };
        Self { member_id, timeout, applied, table: Mutex::new(table), held: Held::default() }
    }

    /// Gives the batch its id and keeps its waiter, or tells the waiter why not. `sent_term` is the term of the leader that
    /// it is given to at once, 0 if it is held until there is one; `is_alone` says that there are no others to give it to.
    pub(crate) fn admit(&self, proposal: Proposal, sent_term: u64, is_alone: bool) -> Option<SealedBatch> {
        let mut table = self.table.lock();
        table.forget_applied(self.applied.next_index());
        if let Some(why) = table.refusal(proposal.payload_bytes()) {
            drop(table);
            proposal.fail(why);
            return None;
        }
        let sequence = table.first.wrapping_add(table.slots.len() as u64);
        let (payload, count, waiter) = proposal.into_parts();
        let deadline = runtime::now() + self.timeout;
        let bytes = payload.len();
        let sealed = Proposal::seal(payload, BatchId { member_id: self.member_id, sequence });
        let batch = (!is_alone).then(|| sealed.clone());
        table.bytes += bytes;
        table.slots.push_back(Some(Slot { waiter, sent_term, sent_on: 0, batch, count, bytes, deadline }));
        Some(sealed)
    }

    /// The entry at `index` carries batch `id` and is committed: hands out its waiter, if it is ours and still waits.
    pub(crate) fn commit(&self, id: BatchId, index: u64) -> Option<Box<dyn Waiter>> {
        if id.member_id != self.member_id {
            return None;
        }
        let mut table = self.table.lock();
        let slot = table.remove(id.sequence)?;
        table.forget_applied(self.applied.next_index());
        table.committed.push_back((index, slot.count));
        table.commands_ahead += u64::from(slot.count);
        Some(slot.waiter)
    }

    /// The batch is about to be given to the leader of `term`, on the connection with that number, 0 if that is this
    /// member; false if nobody waits for it any more.
    pub(crate) fn mark_sent(&self, sequence: u64, term: u64, connection: u64) -> bool {
        let mut table = self.table.lock();
        let slot = table.slot(sequence);
        slot.map(|slot| (slot.sent_term, slot.sent_on) = (term, connection)).is_some()
    }

    /// Tells one batch why it has no result, if it still waits.
    pub(crate) fn fail(&self, sequence: u64, why: ProposeError) {
        let slot = self.table.lock().remove(sequence);
        if let Some(slot) = slot {
            slot.waiter.fail(why);
        }
    }

    /// Whoever was given a batch has not proposed it. If that was for not leading, it is held for whoever does.
    pub(crate) fn refused(self: &Arc<Self>, sequence: u64, why: ProposeError) {
        let again = (why == ProposeError::NoLeader).then(|| self.table.lock().take_back(sequence)).flatten();
        let Some(batch) = again else { return self.fail(sequence, why) };
        let pending = self.clone();
        executor::spawn(async move {
            // Not in a circle with one that has only just lost or won an election.
            runtime::sleep(limits::REFUSAL_PAUSE).await;
            pending.held.push(batch);
        });
    }

    /// Tells those whose batch was given to a leader of a term before `term`.
    pub(crate) fn fail_sent_before(&self, term: u64, why: ProposeError) {
        let slots = self.table.lock().remove_where(|slot| (1..term).contains(&slot.sent_term));
        slots.into_iter().for_each(|slot| slot.waiter.fail(why));
    }

    /// Whether somebody waits for a batch that went on that connection.
    pub(crate) fn has_sent_on(&self, connection: u64) -> bool {
        self.table.lock().slots.iter().flatten().any(|slot| slot.sent_on == connection)
    }

    /// Tells those whose batch went on that connection.
    pub(crate) fn fail_sent_on(&self, connection: u64, why: ProposeError) {
        let slots = self.table.lock().remove_where(|slot| slot.sent_on == connection);
        slots.into_iter().for_each(|slot| slot.waiter.fail(why));
    }

    /// Tells everybody, and everybody who comes later, that this member stops.
    pub(crate) fn stop(&self) {
        let slots: Vec<Slot> = {
            let mut table = self.table.lock();
            table.stopped = true;
            table.drain().collect()
        };
        slots.into_iter().for_each(|slot| slot.waiter.fail(ProposeError::Stopped));
    }

    /// Tells those who waited too long. Cost: those, plus one look.
    pub(crate) fn expire(&self) {
        let now = runtime::now();
        loop {
            let slot = self.table.lock().remove_expired(now);
            let Some(slot) = slot else { return };
            slot.waiter.fail(ProposeError::TimedOut);
        }
    }

    /// The state was opened with everything up to `index` in it.
    pub(crate) fn note_applied(&self, index: u64) {
        self.applied.set(index);
    }

    /// The first log index that apply has not reported.
    pub(crate) fn applied_next_index(&self) -> u64 {
        self.applied.next_index()
    }
}

impl Table {
    fn refusal(&self, bytes: usize) -> Option<ProposeError> {
        if self.stopped {
            return Some(ProposeError::Stopped);
        }
        let full = self.commands_ahead > limits::COMMANDS_AHEAD_MAX
            || self.slots.len() >= limits::PENDING_BATCHES_MAX
            || self.bytes + bytes > limits::PENDING_BYTES_MAX;
        full.then_some(ProposeError::TooManyRequests)
    }

    fn remove(&mut self, sequence: u64) -> Option<Slot> {
        let place = usize::try_from(sequence.wrapping_sub(self.first)).ok()?;
        let slot = self.slots.get_mut(place)?.take()?;
        self.bytes -= slot.bytes;
        self.trim();
        Some(slot)
    }

    fn slot(&mut self, sequence: u64) -> Option<&mut Slot> {
        let place = usize::try_from(sequence.wrapping_sub(self.first)).ok()?;
        self.slots.get_mut(place)?.as_mut()
    }

    fn take_back(&mut self, sequence: u64) -> Option<SealedBatch> {
        let slot = self.slot(sequence)?;
        let batch = slot.batch.clone()?;
        (slot.sent_term, slot.sent_on) = (0, 0);
        Some(batch)
    }

    fn remove_where(&mut self, is_meant: impl Fn(&Slot) -> bool) -> Vec<Slot> {
        let is_meant = |slot: &Option<Slot>| slot.as_ref().is_some_and(&is_meant);
        let removed: Vec<Slot> = self.slots.iter_mut().filter(|slot| is_meant(slot)).filter_map(Option::take).collect();
        self.bytes -= removed.iter().map(|slot| slot.bytes).sum::<usize>();
        self.trim();
        removed
    }

    fn remove_expired(&mut self, now: Instant) -> Option<Slot> {
        let expired = self.slots.front()?.as_ref().is_some_and(|slot| slot.deadline <= now);
        if expired { self.remove(self.first) } else { None }
    }

    fn drain(&mut self) -> impl Iterator<Item = Slot> + use<> {
        self.first = self.first.wrapping_add(self.slots.len() as u64);
        self.bytes = 0;
        std::mem::take(&mut self.slots).into_iter().flatten()
    }

    fn trim(&mut self) {
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    fn forget_applied(&mut self, next_index: u64) {
        while let Some((index, count)) = self.committed.front().copied() {
            if index >= next_index {
                return;
            }
            self.committed.pop_front();
            self.commands_ahead -= u64::from(count);
        }
    }
}

/// What openraft calls when an entry ends early. Success needs nothing: the apply of the member that was asked has taken
/// the waiter by then, or will.
pub struct BatchResponder<T> {
    origin: Origin,
    sequence: u64,
    /// Only known where `T` is known; openraft wants one responder type for every `T`.
    why: fn(T) -> Option<ProposeError>,
}

/// Where a batch came from.
enum Origin {
    Own(Arc<Pending>),
    /// Another member, by the connection it came on.
    Other(Arc<Outbox>),
}

impl<T> BatchResponder<T> {
    pub(crate) fn new(pending: Arc<Pending>, sequence: u64, why: fn(T) -> Option<ProposeError>) -> Self {
        Self { origin: Origin::Own(pending), sequence, why }
    }

    /// For a batch that another member has forwarded.
    pub(crate) fn of_guest(outbox: Arc<Outbox>, sequence: u64, why: fn(T) -> Option<ProposeError>) -> Self {
        Self { origin: Origin::Other(outbox), sequence, why }
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for BatchResponder<T> {
    fn on_commit(&mut self, _log_id: RaftLogId) {}

    fn on_complete(self, result: T) {
        let Some(why) = (self.why)(result) else { return };
        match self.origin {
            Origin::Own(pending) => pending.refused(self.sequence, why),
            Origin::Other(outbox) => refuse(&outbox, self.sequence, why),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::any::Any;

    use bytes::Bytes;

    use super::*;
    use crate::batch::{CommandBatch, Inbox};

    type Told = Arc<Mutex<Vec<(u32, ProposeError)>>>;

    struct Note(u32, Told);

    impl Waiter for Note {
        fn fail(self: Box<Self>, why: ProposeError) {
            self.1.lock().push((self.0, why));
        }
        fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
            self
        }
    }

    fn proposal(number: u32, count: u32, told: &Told) -> Proposal {
        let inbox = Inbox::default();
        let waiter = Box::new(Note(number, told.clone()));
        inbox.push(CommandBatch { bytes: Bytes::from_static(b"put"), count, waiter });
        let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
        rt.block_on(inbox.take(Vec::new())).pop().unwrap()
    }

    fn pending(applied: &AppliedProgress) -> Pending {
        Pending::new(9, u64::MAX - 1, Duration::from_secs(5), applied.clone())
    }

    #[test]
    fn waiters_leave_in_any_order_and_the_sequence_wraps() {
        let told = Told::default();
        let pending = pending(&AppliedProgress::default());
        let ids: Vec<BatchId> = (0..4).map(|n| pending.admit(proposal(n, 1, &told), 1, true).unwrap().id()).collect();
        assert_eq!(ids[3], BatchId { member_id: 9, sequence: 1 });
        for place in [2, 0, 3] {
            let waiter = pending.commit(ids[place], place as u64).unwrap().into_any().downcast::<Note>().unwrap();
            assert_eq!(waiter.0 as usize, place);
            assert!(pending.commit(ids[place], 9).is_none(), "taken once");
        }
        pending.fail_sent_before(2, ProposeError::LeaderChanged);
        assert_eq!(*told.lock(), [(1, ProposeError::LeaderChanged)]);
        assert_eq!(pending.table.lock().bytes, 0);
    }

    #[test]
    fn batches_of_other_members_and_of_earlier_runs_have_no_waiter_here() {
        let told = Told::default();
        let pending = pending(&AppliedProgress::default());
        let id = pending.admit(proposal(0, 1, &told), 1, true).unwrap().id();
        assert!(pending.commit(BatchId { member_id: 8, ..id }, 0).is_none());
        assert!(pending.commit(BatchId { sequence: id.sequence - 1, ..id }, 0).is_none());
        assert!(pending.commit(BatchId { sequence: id.sequence.wrapping_add(1), ..id }, 0).is_none());
        assert!(pending.commit(id, 0).is_some());
    }

    #[test]
    fn batches_are_refused_while_commit_is_too_far_ahead_of_apply() {
        let told = Told::default();
        let applied = AppliedProgress::default();
        let pending = pending(&applied);
        let id = pending.admit(proposal(0, 5_001, &told), 1, true).unwrap().id();
        assert!(pending.admit(proposal(1, 1, &told), 1, true).is_some(), "not committed yet");
        pending.commit(id, 7).unwrap();
        assert!(pending.admit(proposal(2, 1, &told), 1, true).is_none());
        applied.set(6);
        assert!(pending.admit(proposal(3, 1, &told), 1, true).is_none());
        applied.set(7);
        assert!(pending.admit(proposal(4, 1, &told), 1, true).is_some());
        let refused = ProposeError::TooManyRequests;
        assert_eq!(*told.lock(), [(2, refused), (3, refused)]);
    }

    #[test]
    fn a_stopped_table_tells_who_waits_and_who_comes_later() {
        let told = Told::default();
        let pending = pending(&AppliedProgress::default());
        let id = pending.admit(proposal(0, 1, &told), 1, true).unwrap().id();
        pending.stop();
        assert!(pending.commit(id, 0).is_none());
        assert!(pending.admit(proposal(1, 1, &told), 1, true).is_none());
        assert_eq!(*told.lock(), [(0, ProposeError::Stopped), (1, ProposeError::Stopped)]);
    }

    #[test]
    fn a_new_leader_ends_what_was_given_to_others_and_nothing_else() {
        let told = Told::default();
        let pending = pending(&AppliedProgress::default());
        let held = pending.admit(proposal(0, 1, &told), 0, true).unwrap().id();
        pending.admit(proposal(1, 1, &told), 3, true).unwrap();
        let current = pending.admit(proposal(2, 1, &told), 4, true).unwrap().id();
        pending.fail_sent_before(4, ProposeError::LeaderChanged);
        assert_eq!(*told.lock(), [(1, ProposeError::LeaderChanged)]);
        assert!(pending.mark_sent(held.sequence, 4, 0) && !pending.mark_sent(held.sequence.wrapping_add(1), 4, 0));
        assert!(pending.commit(current, 0).is_some() && pending.commit(held, 1).is_some());
        assert_eq!(pending.table.lock().bytes, 0);
    }

    #[test]
    fn a_lost_connection_ends_what_went_on_it_and_nothing_else() {
        let told = Told::default();
        let pending = pending(&AppliedProgress::default());
        let ids: Vec<BatchId> = (0..4).map(|n| pending.admit(proposal(n, 1, &told), 0, false).unwrap().id()).collect();
        for (id, connection) in ids.iter().zip([7, 8, 7, 0]) {
            assert!(pending.mark_sent(id.sequence, 3, connection));
        }
        pending.commit(ids[2], 1).unwrap();
        assert!(pending.has_sent_on(7) && !pending.has_sent_on(9));
        pending.fail_sent_on(7, ProposeError::ConnectionLost);
        assert_eq!(*told.lock(), [(0, ProposeError::ConnectionLost)]);
        assert!(!pending.has_sent_on(7) && pending.commit(ids[1], 2).is_some() && pending.commit(ids[3], 3).is_some());
    }

    #[test]
    fn only_batches_past_their_deadline_time_out() {
        let told = Told::default();
        let pending = Pending::new(9, 0, Duration::ZERO, AppliedProgress::default());
        pending.admit(proposal(0, 1, &told), 1, true).unwrap();
        pending.expire();
        assert_eq!(*told.lock(), [(0, ProposeError::TimedOut)]);
        let patient = self::pending(&AppliedProgress::default());
        patient.admit(proposal(1, 1, &told), 1, true).unwrap();
        patient.expire();
        assert_eq!(told.lock().len(), 1);
    }
}
