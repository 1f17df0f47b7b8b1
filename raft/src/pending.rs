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
use crate::runtime::{self, Instant};
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
        Self { member_id, timeout, applied, table: Mutex::new(table) }
    }

    /// Gives the batch its id and keeps its waiter, or tells the waiter why not.
    pub(crate) fn admit(&self, proposal: Proposal) -> Option<SealedBatch> {
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
        table.bytes += payload.len();
        table.slots.push_back(Some(Slot { waiter, count, bytes: payload.len(), deadline }));
        drop(table);
        Some(Proposal::seal(payload, BatchId { member_id: self.member_id, sequence }))
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

    /// Tells one batch why it has no result, if it still waits.
    fn fail(&self, sequence: u64, why: ProposeError) {
        let slot = self.table.lock().remove(sequence);
        if let Some(slot) = slot {
            slot.waiter.fail(why);
        }
    }

    /// Tells everybody who waits.
    pub(crate) fn fail_all(&self, why: ProposeError) {
        let slots: Vec<Slot> = self.table.lock().drain().collect();
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

/// What openraft calls when an entry of ours ends early. Success needs nothing: apply has taken the waiter by then.
pub struct BatchResponder<T> {
    pending: Arc<Pending>,
    sequence: u64,
    /// Only known where `T` is known; openraft wants one responder type for every `T`.
    why: fn(T) -> Option<ProposeError>,
}

impl<T> BatchResponder<T> {
    pub(crate) fn new(pending: Arc<Pending>, sequence: u64, why: fn(T) -> Option<ProposeError>) -> Self {
        Self { pending, sequence, why }
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for BatchResponder<T> {
    fn on_commit(&mut self, _log_id: RaftLogId) {}

    fn on_complete(self, result: T) {
        if let Some(why) = (self.why)(result) {
            self.pending.fail(self.sequence, why);
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
        let ids: Vec<BatchId> = (0..4).map(|n| pending.admit(proposal(n, 1, &told)).unwrap().id()).collect();
        assert_eq!(ids[3], BatchId { member_id: 9, sequence: 1 });
        for place in [2, 0, 3] {
            let waiter = pending.commit(ids[place], place as u64).unwrap().into_any().downcast::<Note>().unwrap();
            assert_eq!(waiter.0 as usize, place);
            assert!(pending.commit(ids[place], 9).is_none(), "taken once");
        }
        pending.fail_all(ProposeError::LeaderChanged);
        assert_eq!(*told.lock(), [(1, ProposeError::LeaderChanged)]);
        assert_eq!(pending.table.lock().bytes, 0);
    }

    #[test]
    fn batches_of_other_members_and_of_earlier_runs_have_no_waiter_here() {
        let told = Told::default();
        let pending = pending(&AppliedProgress::default());
        let id = pending.admit(proposal(0, 1, &told)).unwrap().id();
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
        let id = pending.admit(proposal(0, 5_001, &told)).unwrap().id();
        assert!(pending.admit(proposal(1, 1, &told)).is_some(), "not committed yet");
        pending.commit(id, 7).unwrap();
        assert!(pending.admit(proposal(2, 1, &told)).is_none());
        applied.set(6);
        assert!(pending.admit(proposal(3, 1, &told)).is_none());
        applied.set(7);
        assert!(pending.admit(proposal(4, 1, &told)).is_some());
        let refused = ProposeError::TooManyRequests;
        assert_eq!(*told.lock(), [(2, refused), (3, refused)]);
    }

    #[test]
    fn a_stopped_table_tells_who_waits_and_who_comes_later() {
        let told = Told::default();
        let pending = pending(&AppliedProgress::default());
        let id = pending.admit(proposal(0, 1, &told)).unwrap().id();
        pending.stop();
        assert!(pending.commit(id, 0).is_none());
        assert!(pending.admit(proposal(1, 1, &told)).is_none());
        assert_eq!(*told.lock(), [(0, ProposeError::Stopped), (1, ProposeError::Stopped)]);
    }

    #[test]
    fn only_batches_past_their_deadline_time_out() {
        let told = Told::default();
        let pending = Pending::new(9, 0, Duration::ZERO, AppliedProgress::default());
        pending.admit(proposal(0, 1, &told)).unwrap();
        pending.expire();
        assert_eq!(*told.lock(), [(0, ProposeError::TimedOut)]);
        let patient = self::pending(&AppliedProgress::default());
        patient.admit(proposal(1, 1, &told)).unwrap();
        patient.expire();
        assert_eq!(told.lock().len(), 1);
    }
}
