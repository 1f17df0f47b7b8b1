//! One engine, what feeds it, and clients of it, all on one thread and only moved by the test.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::watch_request::RequestUnion;
use daymark_api::mvccpb;
use daymark_storage::LogId;
use daymark_storage::backend::mem::MemBackend;
use daymark_storage::mvcc::{Event, Keyspace, Writer};
use futures_util::FutureExt;
use prost::Message;

use crate::error::Error;
use crate::mailbox::Mailbox;
use crate::request::{Sink, Taken};
use crate::watch::catch_up::Pool;
use crate::watch::ring::AppliedBatch;
use crate::watch::{Engine, Options, StreamId, WatchTurn};

type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs when told.
#[derive(Default)]
pub struct HandPool {
    jobs: RefCell<VecDeque<Job>>,
}

impl Pool for HandPool {
    fn run(&self, job: Job) {
        self.jobs.borrow_mut().push_back(job);
    }
}

/// Bounds of a world; the default ones are never met.
pub struct Bounds {
    pub ring_bytes_max: usize,
    pub mailbox_bytes_max: usize,
    pub fragment_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { ring_bytes_max: 1 << 20, mailbox_bytes_max: 1 << 20, fragment_bytes: 2 << 20 }
    }
}

pub struct World {
    pub keyspace: Arc<Keyspace>,
    pub mailbox: Arc<Mailbox>,
    pub engine: Rc<RefCell<Engine>>,
    pub pool: Rc<HandPool>,
    writer: Writer,
    log_index: u64,
}

/// One change: put with a value, or delete.
pub type Change<'a> = (&'a str, Option<&'a str>);

impl World {
    pub fn new() -> Self {
        Self::with(Bounds::default())
    }

    pub fn with(bounds: Bounds) -> Self {
        let (keyspace, writer) = Keyspace::open(MemBackend::new()).expect("an empty keyspace");
        let mailbox = Mailbox::new(bounds.mailbox_bytes_max);
        let pool = Rc::new(HandPool::default());
        let options = Options {
            ring_bytes_max: bounds.ring_bytes_max,
            fragment_bytes: bounds.fragment_bytes,
            progress_interval: Duration::from_secs(600),
        };
        let engine = Engine::new(keyspace.clone(), mailbox.clone(), 77, 88, || 9, options, pool.clone());
        Self { keyspace, mailbox, engine, pool, writer, log_index: 0 }
    }

    /// One write batch of several transactions: visible, then watched.
    pub fn write(&mut self, txns: &[&[Change<'_>]]) -> Vec<Event> {
        let batch = self.commit(txns);
        self.announce(batch)
    }

    /// The first half of [`World::write`]: the batch is published, but not in the mailbox.
    pub fn commit(&mut self, txns: &[&[Change<'_>]]) -> AppliedBatch {
        let first_revision = self.writer.latest_revision() + 1;
        let mut events = Vec::new();
        for changes in txns {
            let mut txn = self.writer.begin();
            for (key, value) in *changes {
                match value {
                    Some(value) => {
                        let (key, value) =
                            (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
                        txn.put(key, value, 0).expect("put");
                    }
                    None => _ = txn.delete(key.as_bytes()).expect("delete"),
                }
            }
            events.extend(txn.finish().events);
        }
        self.publish();
        let bytes = events.iter().map(|event| event.byte_len() + 64).sum();
        AppliedBatch { first_revision, last_revision: self.writer.latest_revision(), events, bytes }
    }

    /// The second half.
    pub fn announce(&mut self, batch: AppliedBatch) -> Vec<Event> {
        let events = batch.events.clone();
        if batch.first_revision <= batch.last_revision && self.mailbox.push_applied(&Arc::new(batch)) {
            self.mailbox.wake();
        }
        events
    }

    pub fn put(&mut self, key: &str, value: &str) {
        self.write(&[&[(key, Some(value))]]);
    }

    pub fn delete(&mut self, key: &str) {
        self.write(&[&[(key, None)]]);
    }

    pub fn compact(&mut self, revision: i64) {
        self.writer.compact(revision).expect("a revision that can be compacted");
        self.publish();
        self.keyspace.drop_history().expect("history is dropped");
    }

    /// A snapshot of `later`, which has the same history, takes the place of the state.
    pub fn replace_by(&mut self, later: World) {
        self.writer = self.keyspace.replace(later.keyspace.backend()).expect("a later state");
        self.log_index = later.log_index;
        if self.mailbox.leave_out(self.keyspace.current_revision()) {
            self.mailbox.wake();
        }
    }

    fn publish(&mut self) {
        self.log_index += 1;
        self.writer.commit(LogId { term: 1, index: self.log_index }).expect("commit");
        self.writer.publish();
    }

    /// What the net thread does after a wake.
    pub fn turn(&mut self) {
        let mut engine = self.engine.borrow_mut();
        while let Some(batch) = self.mailbox.pop_applied() {
            engine.handle_applied(batch);
        }
        engine.turn();
    }

    pub fn is_woken(&self) -> bool {
        self.mailbox.wait().now_or_never().is_some()
    }

    /// Runs one job of the pool.
    pub fn run_job(&mut self) -> bool {
        let job = self.pool.jobs.borrow_mut().pop_front();
        job.map(|job| job()).is_some()
    }

    /// Forgets the jobs of the pool, as a pool that stops does.
    pub fn drop_jobs(&mut self) {
        self.pool.jobs.borrow_mut().clear();
    }

    /// Lets thread and pool run until nobody has asked for more: that only wakes lead to turns is part of the test.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            let is_woken = self.is_woken();
            if is_woken {
                self.turn();
            }
            if !self.run_job() && !is_woken {
                return;
            }
        }
        panic!("the engine keeps waking itself");
    }

    /// As [`World::settle`], and then the turns that come without a wake.
    pub fn settle_and_tick(&mut self) {
        for _ in 0..4 {
            self.settle();
            self.turn();
        }
        self.settle();
    }

    pub fn open(&self) -> Client {
        self.open_with(1 << 30)
    }

    /// A stream that holds `bytes_max` bytes until the client reads.
    pub fn open_with(&self, bytes_max: usize) -> Client {
        let sink = Sink::new(bytes_max);
        let stream = self.engine.borrow_mut().open(sink.clone());
        Client { engine: self.engine.clone(), stream, sink }
    }
}

/// The other end of a stream.
pub struct Client {
    engine: Rc<RefCell<Engine>>,
    pub stream: StreamId,
    pub sink: Sink,
}

impl Client {
    pub fn create(&self, create: pb::WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(create));
    }

    pub fn cancel(&self, watch_id: i64) {
        self.ask(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id }));
    }

    pub fn ask_progress(&self) {
        self.ask(RequestUnion::ProgressRequest(pb::WatchProgressRequest {}));
    }

    pub fn ask(&self, union: RequestUnion) {
        self.engine.borrow_mut().handle_request(self.stream, pb::WatchRequest { request_union: Some(union) });
    }

    pub fn on_progress_timeout(&self) {
        self.engine.borrow_mut().on_progress_timeout(self.stream);
    }

    /// The next response.
    pub fn next(&self) -> Option<pb::WatchResponse> {
        match self.sink.take(Waker::noop()) {
            Taken::Message(parts) => Some(decode(&parts)),
            Taken::End(_) | Taken::Pending => None,
        }
    }

    /// How the call has ended.
    pub fn end(&self) -> Option<Result<(), Error>> {
        match self.sink.take(Waker::noop()) {
            Taken::End(end) => Some(end),
            Taken::Message(_) | Taken::Pending => None,
        }
    }

    /// Everything there is to read, a line a response.
    pub fn read(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).map(|response| line(&response)).collect()
    }
}

pub fn decode(parts: &[Bytes]) -> pb::WatchResponse {
    pb::WatchResponse::decode(&parts.concat()[..]).expect("a watch response")
}

/// A create request for one key.
pub fn on_key(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }
}

/// A create request for an interval.
pub fn on_range(key: &str, range_end: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { range_end: Bytes::copy_from_slice(range_end.as_bytes()), ..on_key(key) }
}

/// A response as a line: what it is, the watch id, `@` and the header's revision, then what it holds.
pub fn line(response: &pb::WatchResponse) -> String {
    let header = response.header.as_ref().expect("every response has a header");
    assert_eq!((header.cluster_id, header.member_id, header.raft_term), (77, 88, 9));
    let place = format!("{} @{}", response.watch_id, header.revision);
    match (response.created, response.canceled) {
        (true, false) => format!("created {place}"),
        (true, true) => format!("refused {place}: {}", response.cancel_reason),
        (false, true) if response.compact_revision > 0 => {
            assert_eq!(response.cancel_reason, "");
            format!("compacted {place}: {}", response.compact_revision)
        }
        (false, true) => format!("canceled {place}"),
        (false, false) if response.events.is_empty() => format!("progress {place}"),
        (false, false) => {
            let events: Vec<String> = response.events.iter().map(event_words).collect();
            let mark = if response.fragment { " fragment" } else { "" };
            format!("events {place}{mark}: {}", events.join(", "))
        }
    }
}

fn event_words(event: &mvccpb::Event) -> String {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let kv = event.kv.as_ref().expect("every event has a pair");
    let what = match event.r#type() {
        mvccpb::event::EventType::Put => format!("{}={}", text(&kv.key), text(&kv.value)),
        mvccpb::event::EventType::Delete => format!("del {}", text(&kv.key)),
    };
    let prev = event.prev_kv.as_ref().map(|prev| format!(" was {}", text(&prev.value)));
    format!("{what} #{}{}", kv.mod_revision, prev.unwrap_or_default())
}
