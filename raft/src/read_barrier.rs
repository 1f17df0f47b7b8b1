//! Linearizable reads: from which log index on may a read be answered? Either at once, for a lone voter that leads, or by
//! one ReadIndex that all callers of the moment share. Waiting until the state has reached the index is the server's.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::batch::ProposeError;
use crate::config::limits;
use crate::runtime::{self, Instant};

/// The fast way, for a lone voter that leads: one atomic load.
///
/// # Why it is linearizable
///
/// The gate shows the index `b` of the blank entry that opened this leadership, once that entry is committed. Take a
/// write that was acknowledged before the read began.
///
/// - It was acknowledged in this leadership: only this member acknowledges (it is the only one that applies with
///   waiters), and it publishes a write before it acknowledges it. What is published is enough.
/// - It was acknowledged in an earlier leadership: it was in the log of this member, the only voter, before `b` was
///   appended, so a state that has applied `b` contains it.
///
/// So a published state that has reached `b` contains every acknowledged write, and waiting for `b` is only ever needed
/// in the moments after a start. Nobody else can lead meanwhile: an election needs the vote of this member, and nobody
/// else acknowledges. That ends with the first log entry that names another member, with a vote or without: whoever takes
/// entries may show and acknowledge one before this member does. Therefore [`distrust`](Self::distrust) is called before
/// such an entry is appended.
///
/// The way back is a committed membership of this member alone: whatever others have acknowledged stands before its
/// entry, so the gate then shows that entry's index, if it is above `b`.
#[derive(Default)]
pub struct ReadGate {
    /// Index of the blank entry + 1; 0 while closed.
    open_from: AtomicU64,
    /// Index of the last entry that named another member + 1; 0 if there was none.
    distrusted: AtomicU64,
}

impl ReadGate {
    /// This member leads, `blank_index` is committed, and it is alone since the committed entry `membership_index`.
    pub(crate) fn open(&self, blank_index: u64, membership_index: u64) {
        let is_trusted = || membership_index >= self.distrusted.load(Ordering::SeqCst);
        if is_trusted() {
            self.open_from.store(blank_index.max(membership_index) + 1, Ordering::SeqCst);
            // `distrust` may have run between the two lines above; its store must win.
            if !is_trusted() {
                self.close();
            }
        }
    }

    pub(crate) fn close(&self) {
        self.open_from.store(0, Ordering::SeqCst);
    }

    /// An entry that names another member is about to enter the log at `index`: closed until a later one leaves this
    /// member alone.
    pub(crate) fn distrust(&self, index: u64) {
        self.distrusted.fetch_max(index + 1, Ordering::SeqCst);
        self.close();
    }

    pub(crate) fn index(&self) -> Option<u64> {
        self.open_from.load(Ordering::Acquire).checked_sub(1)
    }
}

type Reply = oneshot::Sender<Result<u64, ProposeError>>;

/// Somebody who waits for a read index, and until when.
pub(crate) struct Caller {
    reply: Reply,
    deadline: Instant,
}

/// How long the caller with the least time still waits.
pub(crate) fn patience(callers: &[Caller]) -> Duration {
    let first = callers.iter().map(|caller| caller.deadline).min();
    first.map_or(Duration::ZERO, |deadline| deadline.saturating_duration_since(runtime::now()))
}

/// Answers everybody.
pub(crate) fn answer(callers: &mut Vec<Caller>, answer: Result<u64, ProposeError>) {
    for caller in callers.drain(..) {
        // A caller that has gone away needs no answer.
        let _ = caller.reply.send(answer);
    }
}

/// Tells those whose time is over, and forgets those who have gone.
pub(crate) fn expire(callers: &mut Vec<Caller>, why: ProposeError) {
    let now = runtime::now();
    let (over, left): (Vec<Caller>, Vec<Caller>) =
        std::mem::take(callers).into_iter().partition(|caller| caller.deadline <= now || caller.reply.is_closed());
    *callers = left;
    for caller in over {
        let _ = caller.reply.send(Err(why));
    }
}

/// Callers that wait for the next ReadIndex. Those that come while one is under way share the next one: the one under
/// way may have looked at the commit index before they asked.
pub(crate) struct ReadQueue {
    timeout: Duration,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    callers: Vec<Caller>,
    closed: bool,
}

impl ReadQueue {
    /// `timeout` bounds how long a caller waits.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, waiting: Mutex::default(), wake: Notify::new() }
    }

    /// Joins the next ReadIndex.
    pub(crate) async fn join(&self) -> Result<u64, ProposeError> {
        let (reply, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return Err(ProposeError::Stopped);
            }
            if waiting.callers.len() >= limits::READ_WAITERS_MAX {
                return Err(ProposeError::TooManyRequests);
            }
            waiting.callers.push(Caller { reply, deadline: runtime::now() + self.timeout });
            if waiting.callers.len() == 1 {
                self.wake.notify_one();
            }
        }
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// Waits for a caller.
    pub(crate) async fn wait(&self) {
        while self.waiting.lock().callers.is_empty() {
            self.wake.notified().await;
        }
    }

    /// Takes all that are there.
    pub(crate) fn join_all(&self, callers: &mut Vec<Caller>) {
        callers.append(&mut self.waiting.lock().callers);
    }

    /// Tells everybody, and everybody who comes later, that this member stops.
    pub(crate) fn close(&self) {
        let mut callers = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            mem::take(&mut waiting.callers)
        };
        answer(&mut callers, Err(ProposeError::Stopped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_stays_shut_once_another_member_was_named_until_it_has_gone() {
        let gate = ReadGate::default();
        assert_eq!(gate.index(), None);
        gate.open(0, 0);
        assert_eq!(gate.index(), Some(0));
        gate.close();
        assert_eq!(gate.index(), None);
        gate.open(4, 0);
        gate.distrust(6);
        assert_eq!(gate.index(), None);
        for membership_index in [0, 6] {
            gate.open(5, membership_index);
            assert_eq!(gate.index(), None);
        }
        gate.open(5, 9);
        assert_eq!(gate.index(), Some(9), "what others acknowledged stands before the entry that removed them");
    }

    #[tokio::test]
    async fn callers_of_one_moment_share_and_later_ones_do_not() {
        let queue = ReadQueue::new(Duration::from_secs(5));
        let (first, second, batch) = tokio::join!(queue.join(), queue.join(), async {
            queue.wait().await;
            let mut batch = Vec::new();
            queue.join_all(&mut batch);
            let count = batch.len();
            expire(&mut batch, ProposeError::TimedOut);
            assert_eq!((batch.len(), patience(&batch) > Duration::from_secs(4)), (count, true));
            answer(&mut batch, Ok(41));
            count
        });
        assert_eq!((first, second, batch), (Ok(41), Ok(41), 2));
        queue.close();
        assert_eq!(queue.join().await, Err(ProposeError::Stopped));
    }
}
