//! From a follower to the leader: sealed command batches, and read barriers. Nothing is sent twice: once a batch may have
//! been proposed its outcome is told by its apply, a refusal of the leader, a new leader, or its time-out.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::connection::Connection;
use super::frame::{Frame, FrameError, Outbox};
use super::message::{self, tag};
use super::peers::Peers;
use super::serve::{Guest, numbered};
use crate::batch::ProposeError;
use crate::config::limits;
use crate::driver::{self, DaymarkRaft, Shared};
use crate::pending::BatchResponder;
use crate::runtime;
use crate::types::SealedBatch;

/// How long to wait after a failure before the leader is tried again, unless something changes before.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Batches that wait for a leader, or for room on the connection to it. As many as wait for their apply, at most.
#[derive(Default)]
pub(crate) struct Held {
    queue: Mutex<VecDeque<SealedBatch>>,
    wake: Notify,
}

impl Held {
    pub(crate) fn push(&self, batch: SealedBatch) {
        let mut queue = self.queue.lock();
        queue.push_back(batch);
        if queue.len() == 1 {
            self.wake.notify_one();
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.lock().is_empty()
    }

    fn pop(&self) -> Option<SealedBatch> {
        self.queue.lock().pop_front()
    }

    fn push_back_again(&self, batch: SealedBatch) {
        self.queue.lock().push_front(batch);
    }

    async fn wait(&self) {
        while self.is_empty() {
            self.wake.notified().await;
        }
    }
}

/// Brings held batches to whoever leads. Ends with raft.
pub(crate) async fn deliver(raft: DaymarkRaft, shared: Arc<Shared>, peers: Arc<Peers>) -> String {
    loop {
        shared.pending.held.wait().await;
        let (leader, term) = shared.wait_for_leader().await;
        if leader == shared.member_id {
            while let Some(batch) = shared.pending.held.pop() {
                if shared.pending.mark_sent(batch.id().sequence, term, 0)
                    && let Err(fatal) = driver::propose_sealed(&raft, &shared, batch).await
                {
                    return fatal;
                }
            }
            continue;
        }
        match connect(&shared, &peers, leader, term).await {
            Some(Ok(connection)) => send(&shared, &connection, leader, term).await,
            Some(Err(_)) => shared.leader_changes_or(RETRY_PAUSE).await,
            None => {}
        }
    }
}

/// The connection to a leader, or why there is none; `None` as soon as he does not lead any more: what does not answer
/// takes two election time-outs until it is given up, and by then there is another leader.
async fn connect(shared: &Shared, peers: &Peers, leader: u64, term: u64) -> Option<Result<Arc<Connection>, String>> {
    let mut version = shared.published.version();
    let peer = peers.peer(leader);
    let mut connecting = pin!(peer.forward.connection());
    loop {
        version.borrow_and_update();
        let view = shared.published.view();
        if view.leader != Some(leader) || view.term != term {
            return None;
        }
        tokio::select! {
            biased;
            connection = &mut connecting => return Some(connection),
            // The sender is ours: it cannot be gone.
            _ = version.changed() => {}
        }
    }
}

/// Sends what is held while `leader` leads and the connection lasts.
async fn send(shared: &Shared, connection: &Connection, leader: u64, term: u64) {
    while let Some(batch) = shared.pending.held.pop() {
        connection.outbox.wait_for_room(limits::FORWARD_BYTES_MAX).await;
        let view = shared.published.view();
        if !connection.is_open() || view.leader != Some(leader) || view.term != term {
            return shared.pending.held.push_back_again(batch);
        }
        // One that has timed out meanwhile is not proposed behind its client's back.
        let sequence = batch.id().sequence;
        if shared.pending.mark_sent(sequence, term, connection.number)
            && !connection.outbox.push(tag::PROPOSE, &[batch.payload()])
        {
            // It has ended this moment: nothing has left.
            shared.pending.mark_sent(sequence, 0, 0);
            return shared.pending.held.push_back_again(batch);
        }
    }
}

/// The read index of whoever leads, asked again until there is an answer: a read may be asked twice.
pub(crate) async fn read_index(raft: &DaymarkRaft, shared: &Shared, peers: &Peers) -> Result<u64, ProposeError> {
    let (leader, term) = shared.wait_for_leader().await;
    if leader == shared.member_id {
        return driver::read_index(raft).await;
    }
    let connection = connect(shared, peers, leader, term).await.ok_or(ProposeError::LeaderChanged)?;
    let connection = connection.map_err(|_| ProposeError::NoLeader)?;
    let asking = connection.request(tag::READ, Bytes::new());
    let answer = runtime::timeout(peers.context.election, asking).await;
    let answer = answer.ok_or(ProposeError::TimedOut)?.map_err(|_| ProposeError::NoLeader)?;
    message::decode_read_at(answer).unwrap_or_else(|error| {
        connection.close(&error.to_string());
        Err(ProposeError::NoLeader)
    })
}

/// A frame of a follower.
pub(crate) async fn take(guest: &Arc<Guest>, frame: Frame) -> Result<(), FrameError> {
    match frame.tag {
        tag::PROPOSE => propose(guest, frame.payload).await,
        tag::READ => {
            let (number, _) = numbered(frame.payload)?;
            let theirs = guest.clone();
            let taken = guest.work(limits::CONTROLS_MAX, async move {
                let answer = driver::read_index(&theirs.raft).await;
                theirs.answer(tag::READ_AT, number, &message::encode_read_at(answer));
            });
            if !taken {
                guest.answer(tag::READ_AT, number, &message::encode_read_at(Err(ProposeError::TooManyRequests)));
            }
            Ok(())
        }
        _ => Err(FrameError::Malformed("a request of an unknown kind")),
    }
}

async fn propose(guest: &Arc<Guest>, payload: Bytes) -> Result<(), FrameError> {
    if payload.len() > limits::BATCH_BYTES_MAX {
        return Err(FrameError::Malformed("a command batch that is too large"));
    }
    // A copy: the log keeps it longer than what else came with it.
    let batch = SealedBatch::from_payload(Bytes::copy_from_slice(&payload));
    let batch = batch.ok_or(FrameError::Malformed("a command batch without its id"))?;
    let id = batch.id();
    if id.member_id != guest.from {
        return Err(FrameError::Malformed("a command batch of another member"));
    }
    if guest.context.shared.log_is_behind() {
        refuse(&guest.outbox, id.sequence, ProposeError::TooManyRequests);
        return Ok(());
    }
    let responder = BatchResponder::of_guest(guest.outbox.clone(), id.sequence, driver::why_without_result);
    if guest.raft.client_write_ff(batch, Some(responder)).await.is_err() {
        refuse(&guest.outbox, id.sequence, ProposeError::LeaderChanged);
    }
    Ok(())
}

/// A forwarded batch has no result here.
pub(crate) fn refuse(outbox: &Outbox, sequence: u64, why: ProposeError) {
    outbox.push_small(tag::REFUSED, message::encode_refused(sequence, why));
}
