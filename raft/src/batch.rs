//! From a command batch to a log entry: the inbox between net threads and the thread "raft", the batch id, and what a
//! proposer leaves behind. One batch becomes one entry. Does not know what a command is, and does not gather commands:
//! net threads do that, per tick.

use std::any::Any;
use std::mem;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::config::limits;
use crate::types::SealedBatch;

/// Why a batch has no result. Only [`TooManyRequests`](Self::TooManyRequests) and [`NoLeader`](Self::NoLeader) mean that
/// it was not proposed; after any other the commands may still take effect, so nothing is ever retried here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// No leader is known, or this member is not the leader.
    #[error("no leader")]
    NoLeader,
    /// Leadership moved while the batch waited.
    #[error("leader changed")]
    LeaderChanged,
    /// It waited too long.
    #[error("request timed out")]
    TimedOut,
    /// The connection to the leader was lost after the batch had been sent there, and it was not applied soon after.
    #[error("the connection to the leader was lost")]
    ConnectionLost,
    /// A queue is full, or apply is too far behind.
    #[error("too many requests")]
    TooManyRequests,
    /// This member stops.
    #[error("server stopped")]
    Stopped,
}

/// What a proposer left behind for its batch. It rides on the committed entry into apply, or is told why not. Exactly
/// one of the two happens, once.
pub trait Waiter: Send + 'static {
    /// The batch has no result here. Called on any thread; must not block.
    fn fail(self: Box<Self>, why: ProposeError);
    /// Gives apply its own type back.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// Commands of one net thread and one tick, encoded by the server.
pub struct CommandBatch {
    /// The commands, opaque here.
    pub bytes: Bytes,
    /// How many they are, for admission.
    pub count: u32,
    /// Who waits for them.
    pub waiter: Box<dyn Waiter>,
}

/// Names a batch across the cluster and across restarts.
///
/// `sequence` starts at a random number with every start of a member and then counts up. An entry of an earlier run that
/// is replayed after a restart therefore never meets a waiter of this run, which would be a false acknowledgement: two
/// runs of 2^40 batches each overlap with a probability below 2^-22.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchId {
    /// The member that was asked, and whose apply answers.
    pub member_id: u64,
    /// Unique within that member.
    pub sequence: u64,
}

/// Bytes of a batch id in front of the commands. Frozen.
pub(crate) const BATCH_HEADER_BYTES: usize = 16;

impl BatchId {
    pub(crate) fn decode(header: &[u8; BATCH_HEADER_BYTES]) -> Self {
        let (member_id, sequence) = header.split_at(8);
        Self {
            member_id: u64::from_le_bytes(member_id.try_into().expect("half of sixteen bytes")),
            sequence: u64::from_le_bytes(sequence.try_into().expect("half of sixteen bytes")),
        }
    }

    fn encode(self) -> [u8; BATCH_HEADER_BYTES] {
        let mut header = [0; BATCH_HEADER_BYTES];
        header[..8].copy_from_slice(&self.member_id.to_le_bytes());
        header[8..].copy_from_slice(&self.sequence.to_le_bytes());
        header
    }
}

/// A batch on its way to the thread "raft": room for the id is left in front, so that the one copy of the commands is
/// made by the net thread.
pub(crate) struct Proposal {
    payload: BytesMut,
    count: u32,
    /// Present until it is told or handed on; see `Drop`.
    waiter: Option<Box<dyn Waiter>>,
}

impl Proposal {
    fn new(batch: CommandBatch) -> Self {
        let mut payload = BytesMut::with_capacity(BATCH_HEADER_BYTES + batch.bytes.len());
        payload.put_bytes(0, BATCH_HEADER_BYTES);
        payload.put_slice(&batch.bytes);
        Self { payload, count: batch.count, waiter: Some(batch.waiter) }
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload.len()
    }

    pub(crate) fn seal(mut payload: BytesMut, id: BatchId) -> SealedBatch {
        payload[..BATCH_HEADER_BYTES].copy_from_slice(&id.encode());
        SealedBatch::from_payload(payload.freeze()).expect("the header was reserved")
    }

    /// Not proposed.
    pub(crate) fn fail(mut self, why: ProposeError) {
        if let Some(waiter) = self.waiter.take() {
            waiter.fail(why);
        }
    }

    pub(crate) fn into_parts(mut self) -> (BytesMut, u32, Box<dyn Waiter>) {
        let waiter = self.waiter.take().expect("only taken by functions that consume the proposal");
        (mem::take(&mut self.payload), self.count, waiter)
    }
}

impl Drop for Proposal {
    /// The thread "raft" may be stopped between taking a batch and giving it its id.
    fn drop(&mut self) {
        if let Some(waiter) = self.waiter.take() {
            waiter.fail(ProposeError::Stopped);
        }
    }
}

/// Batches handed over by net threads and not yet taken by the thread "raft". Bounded by count and bytes; one wake per
/// burst, because only the first batch of an empty inbox wakes.
#[derive(Default)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Default)]
struct Queue {
    proposals: Vec<Proposal>,
    bytes: usize,
    closed: bool,
}

impl Inbox {
    /// Puts a batch in, or tells its waiter at once why not.
    pub(crate) fn push(&self, batch: CommandBatch) {
        let proposal = Proposal::new(batch);
        let mut queue = self.queue.lock();
        let bytes = queue.bytes + proposal.payload_bytes();
        let full = queue.proposals.len() >= limits::INBOX_BATCHES_MAX
            || bytes > limits::INBOX_BYTES_MAX
            || proposal.payload_bytes() > limits::BATCH_BYTES_MAX;
        if queue.closed || full {
            let why = if queue.closed { ProposeError::Stopped } else { ProposeError::TooManyRequests };
            drop(queue);
            proposal.fail(why);
            return;
        }
        let wake = queue.proposals.is_empty();
        queue.bytes = bytes;
        queue.proposals.push(proposal);
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
    }

    /// Whether nothing waits to be taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().proposals.is_empty()
    }

    /// Waits until there is something and takes all of it. `spare` is an empty vector whose memory is used next.
    pub(crate) async fn take(&self, spare: Vec<Proposal>) -> Vec<Proposal> {
        let mut spare = Some(spare);
        loop {
            {
                let mut queue = self.queue.lock();
                if !queue.proposals.is_empty() {
                    queue.bytes = 0;
                    return mem::replace(&mut queue.proposals, spare.take().unwrap_or_default());
                }
            }
            self.wake.notified().await;
        }
    }

    /// Refuses everything from now on, and what is still inside.
    pub(crate) fn close(&self) {
        let left = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.bytes = 0;
            mem::take(&mut queue.proposals)
        };
        for proposal in left {
            proposal.fail(ProposeError::Stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    type Told = Arc<Mutex<Vec<ProposeError>>>;

    struct Note(Told);

    impl Waiter for Note {
        fn fail(self: Box<Self>, why: ProposeError) {
            self.0.lock().push(why);
        }
        fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
            self
        }
    }

    fn batch(bytes: impl Into<Bytes>, told: &Told) -> CommandBatch {
        CommandBatch { bytes: bytes.into(), count: 1, waiter: Box::new(Note(told.clone())) }
    }

    #[tokio::test]
    async fn a_burst_is_taken_whole_and_in_order() {
        let (inbox, told) = (Inbox::default(), Told::default());
        ["a", "b", "c"].into_iter().for_each(|bytes| inbox.push(batch(bytes, &told)));
        let id = BatchId { member_id: 3, sequence: 4 };
        let seal = |proposal: Proposal| Proposal::seal(proposal.into_parts().0, id);
        let sealed: Vec<SealedBatch> = inbox.take(Vec::new()).await.into_iter().map(seal).collect();
        assert!(sealed.iter().all(|batch| batch.id() == id));
        assert!(sealed.iter().map(SealedBatch::commands).eq(["a", "b", "c"].map(Bytes::from)));
    }

    #[test]
    fn what_does_not_fit_is_refused_at_once() {
        let (inbox, told) = (Inbox::default(), Told::default());
        inbox.push(batch(vec![0; limits::BATCH_BYTES_MAX], &told));
        assert_eq!(*told.lock(), [ProposeError::TooManyRequests], "a batch too large for the log");
        told.lock().clear();
        (0..limits::INBOX_BATCHES_MAX).for_each(|_| inbox.push(batch("x", &told)));
        assert!(told.lock().is_empty());
        inbox.push(batch("x", &told));
        assert_eq!(*told.lock(), [ProposeError::TooManyRequests]);
    }

    #[tokio::test]
    async fn whoever_is_left_behind_is_told() {
        let (inbox, told) = (Inbox::default(), Told::default());
        inbox.push(batch("taken and dropped", &told));
        drop(inbox.take(Vec::new()).await);
        inbox.push(batch("still inside", &told));
        inbox.close();
        inbox.push(batch("too late", &told));
        assert_eq!(*told.lock(), [ProposeError::Stopped; 3]);
    }

    #[test]
    fn the_bytes_of_a_batch_id_are_frozen() {
        let id = BatchId { member_id: 0x0807_0605_0403_0201, sequence: 9 };
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((id.encode(), BatchId::decode(&bytes)), (bytes, id));
    }
}
