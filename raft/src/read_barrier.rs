//! Linearizable reads: from which log index on may a read be answered? Either at once, for a lone voter that leads, or by
//! one ReadIndex that all callers of the moment share. Waiting until the state has reached the index is the server's.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::batch::ProposeError;
use crate::config::limits;

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
/// in the moments after a start. Nobody else can lead meanwhile: an election needs the vote of this member. That ends
/// with the first log entry that names another voter, therefore [`distrust`](Self::distrust) is called before such an
/// entry is appended, and there is no way back in this run.
#[derive(Default)]
pub struct ReadGate {
    /// Index of the blank entry + 1; 0 while closed.
    open_from: AtomicU64,
    distrusted: AtomicBool,
}

impl ReadGate {
    pub(crate) fn open(&self, blank_index: u64) {
        if !self.distrusted.load(Ordering::SeqCst) {
            self.open_from.store(blank_index + 1, Ordering::SeqCst);
            // `distrust` may have run between the two lines above; its store must win.
            if self.distrusted.load(Ordering::SeqCst) {
                self.close();
            }
        }
    }

    pub(crate) fn close(&self) {
        self.open_from.store(0, Ordering::SeqCst);
    }

    /// Another voter is about to enter the log: closed for the rest of this run.
    pub(crate) fn distrust(&self) {
        self.distrusted.store(true, Ordering::SeqCst);
        self.close();
    }

    pub(crate) fn index(&self) -> Option<u64> {
        self.open_from.load(Ordering::Acquire).checked_sub(1)
    }
}

type Reply = oneshot::Sender<Result<u64, ProposeError>>;

/// Callers that wait for the next ReadIndex. Those that come while one is under way share the next one: the one under
/// way may have looked at the commit index before they asked.
#[derive(Default)]
pub(crate) struct ReadQueue {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    callers: Vec<Reply>,
    closed: bool,
}

impl ReadQueue {
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
            waiting.callers.push(reply);
            if waiting.callers.len() == 1 {
                self.wake.notify_one();
            }
        }
        answer.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// Waits for a caller and takes all that are there.
    pub(crate) async fn take(&self) -> Vec<Reply> {
        loop {
            let callers = mem::take(&mut self.waiting.lock().callers);
            if !callers.is_empty() {
                return callers;
            }
            self.wake.notified().await;
        }
    }

    /// Tells everybody, and everybody who comes later, that this member stops.
    pub(crate) fn close(&self) {
        let callers = {
            let mut waiting = self.waiting.lock();
            waiting.closed = true;
            mem::take(&mut waiting.callers)
        };
        for caller in callers {
            // A caller that has gone away needs no answer.
            let _ = caller.send(Err(ProposeError::Stopped));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_stays_shut_once_another_voter_was_named() {
        let gate = ReadGate::default();
        assert_eq!(gate.index(), None);
        gate.open(0);
        assert_eq!(gate.index(), Some(0));
        gate.close();
        assert_eq!(gate.index(), None);
        gate.open(4);
        gate.distrust();
        gate.open(5);
        assert_eq!(gate.index(), None);
    }

    #[tokio::test]
    async fn callers_of_one_moment_share_and_later_ones_do_not() {
        let queue = ReadQueue::default();
        let (first, second, batch) = tokio::join!(queue.join(), queue.join(), async {
            let batch = queue.take().await;
            let count = batch.len();
            batch.into_iter().for_each(|reply| reply.send(Ok(41)).unwrap());
            count
        });
        assert_eq!((first, second, batch), (Ok(41), Ok(41), 2));
        queue.close();
        assert_eq!(queue.join().await, Err(ProposeError::Stopped));
    }
}
