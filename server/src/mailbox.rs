//! What apply hands to a net thread: answers to the commands it sent, applied batches for its watchers, and the word
//! that the applied index has moved. One wake for all of it per applied batch. Not a lock: apply never waits here.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use crossbeam_queue::SegQueue;
use daymark_api::etcdserverpb as pb;
use daymark_raft::{ProposeError, Waiter};
use tokio::sync::Notify;

use crate::error::Error;
use crate::request::Reply;
use crate::watch::ring::AppliedBatch;

/// The answer to one command. Headers hold the revision only: ids and term are filled in by the net thread.
pub type CommandResult = Result<Reply, Error>;

/// The same on its way from apply to the caller. Small, because it goes from one core to another: nearly all answers are
/// a revision.
pub struct Answer(Result<Small, Error>);

enum Small {
    /// A put at this revision that does not return what it replaced.
    Put(i64),
    Other(Box<Reply>),
}

impl From<CommandResult> for Answer {
    fn from(result: CommandResult) -> Self {
        Self(result.map(|reply| match reply {
            Reply::Put(pb::PutResponse {
                header: Some(pb::ResponseHeader { cluster_id: 0, member_id: 0, revision, raft_term: 0 }),
                prev_kv: None,
            }) => Small::Put(revision),
            reply => Small::Other(Box::new(reply)),
        }))
    }
}

impl From<Answer> for CommandResult {
    fn from(Answer(result): Answer) -> Self {
        result.map(|small| match small {
            Small::Put(revision) => {
                let header = Some(pb::ResponseHeader { revision, ..Default::default() });
                Reply::Put(pb::PutResponse { header, prev_kv: None })
            }
            Small::Other(reply) => *reply,
        })
    }
}

/// The answers to one command batch, in the order of its commands.
pub struct BatchReplies {
    /// Number that the net thread gave to the batch.
    pub batch: u64,
    /// One a command; or one error for all of them.
    pub results: Result<Vec<Answer>, Error>,
}

/// What a net thread leaves behind for a command batch: where its answers go.
pub struct ReplyTo {
    pub mailbox: Arc<Mailbox>,
    /// Number that the net thread gave to the batch.
    pub batch: u64,
}

impl Waiter for ReplyTo {
    fn fail(self: Box<Self>, why: ProposeError) {
        let results = Err(Error::from(why));
        self.mailbox.push_replies(BatchReplies { batch: self.batch, results });
        self.mailbox.wake();
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
        self
    }
}

/// The inbox of one net thread. Apply (and raft, for batches that fail) push; the net thread drains.
pub struct Mailbox {
    replies: SegQueue<BatchReplies>,
    applied: SegQueue<Arc<AppliedBatch>>,
    /// Bytes in `applied`; at most `applied_bytes_max` plus one batch.
    applied_bytes: AtomicUsize,
    applied_bytes_max: usize,
    /// Last revision of the newest batch that is not in `applied` although it was wanted; 0: none so far.
    left_out: AtomicI64,
    /// The thread has watchers: it wants applied batches.
    wants_events: AtomicBool,
    /// The thread has readers that wait for an applied index.
    wants_applied: AtomicBool,
    /// The thread will look by itself, see [`Mailbox::without_wakes`].
    is_awake: AtomicBool,
    wake: Notify,
}

impl Mailbox {
    /// An empty mailbox that holds at most about `applied_bytes_max` bytes of applied batches.
    pub fn new(applied_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            replies: SegQueue::new(),
            applied: SegQueue::new(),
            applied_bytes: AtomicUsize::new(0),
            applied_bytes_max,
            left_out: AtomicI64::new(0),
            wants_events: AtomicBool::new(false),
            wants_applied: AtomicBool::new(false),
            is_awake: AtomicBool::new(false),
            wake: Notify::new(),
        })
    }

    /// Apply or raft: answers for one batch. The caller wakes once after all pushes.
    pub fn push_replies(&self, replies: BatchReplies) {
        self.replies.push(replies);
    }

    /// Apply, after publishing: what has been applied. Returns whether the thread has to be woken. A batch that does
    /// not fit is left out; the thread notices the gap in revisions and reads history instead.
    pub fn push_applied(&self, batch: &Arc<AppliedBatch>) -> bool {
        // Pairs with `want_events`: either apply sees the flag, or the thread sees the published revision.
        if !self.wants_events.load(Ordering::SeqCst) {
            return false;
        }
        if self.applied_bytes.load(Ordering::Relaxed) >= self.applied_bytes_max {
            return self.leave_out(batch.last_revision);
        }
        self.applied_bytes.fetch_add(batch.bytes, Ordering::Relaxed);
        self.applied.push(batch.clone());
        true
    }

    /// Apply, after publishing: there is no batch with the events up to `last_revision`, as nobody wanted them when it
    /// began. Returns whether the thread has to be woken, because somebody does now and has to read history.
    pub fn leave_out(&self, last_revision: i64) -> bool {
        if !self.wants_events.load(Ordering::SeqCst) {
            return false;
        }
        self.left_out.store(last_revision, Ordering::Release);
        true
    }

    /// Apply: whether the thread wants applied batches.
    pub fn wants_events(&self) -> bool {
        self.wants_events.load(Ordering::SeqCst)
    }

    /// Apply: whether somebody on the thread waits for an applied index.
    pub fn wants_applied(&self) -> bool {
        self.wants_applied.load(Ordering::SeqCst)
    }

    /// Wakes the net thread; many wakes before it runs count as one.
    pub fn wake(&self) {
        // Pairs with `without_wakes`: what was pushed before this load is seen by who looks after that store.
        if !self.is_awake.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Net thread: does something during which it need not be woken. Afterwards it has to drain everything, as after a
    /// wake.
    pub fn without_wakes(&self, work: impl FnOnce()) {
        self.is_awake.store(true, Ordering::SeqCst);
        work();
        self.is_awake.store(false, Ordering::SeqCst);
    }

    /// Net thread: declares whether applied batches are wanted. After setting it the thread must load the published
    /// revision before it decides where its cursor stands.
    pub fn want_events(&self, want: bool) {
        self.wants_events.store(want, Ordering::SeqCst);
    }

    /// Net thread: declares whether readers wait. After setting it the thread must look at the applied index again.
    pub fn want_applied(&self, want: bool) {
        self.wants_applied.store(want, Ordering::SeqCst);
    }

    /// Net thread: next answers.
    pub fn pop_replies(&self) -> Option<BatchReplies> {
        self.replies.pop()
    }

    /// Net thread: next applied batch.
    pub fn pop_applied(&self) -> Option<Arc<AppliedBatch>> {
        let batch = self.applied.pop()?;
        self.applied_bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        Some(batch)
    }

    /// Net thread, after taking all applied batches: the revision up to which some have been left out.
    pub fn left_out(&self) -> i64 {
        self.left_out.load(Ordering::Acquire)
    }

    /// Net thread: waits for a wake.
    pub async fn wait(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use daymark_api::mvccpb::KeyValue;

    use super::*;

    fn put(prev_kv: Option<KeyValue>, raft_term: u64) -> Reply {
        let header = Some(pb::ResponseHeader { revision: 7, raft_term, ..Default::default() });
        Reply::Put(pb::PutResponse { header, prev_kv })
    }

    #[test]
    fn answers_arrive_as_they_were_given() {
        let previous = KeyValue { key: "k".into(), value: "before".into(), ..Default::default() };
        let replies = [
            put(None, 0),
            put(None, 3),
            put(Some(previous), 0),
            Reply::Put(pb::PutResponse { header: None, prev_kv: None }),
            Reply::Compact(pb::CompactionResponse::default()),
        ];
        for reply in replies {
            let sent = format!("{reply:?}");
            let arrived = CommandResult::from(Answer::from(Ok(reply))).expect("it was a success");
            assert_eq!(format!("{arrived:?}"), sent);
        }
        let error = CommandResult::from(Answer::from(Err(Error::LeaderChanged)));
        assert!(matches!(error, Err(Error::LeaderChanged)));
    }

    #[test]
    fn answers_are_small() {
        assert!(size_of::<Answer>() <= 32, "{}", size_of::<Answer>());
    }
}
