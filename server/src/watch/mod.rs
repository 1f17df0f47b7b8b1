//! What a net thread owns of watches: streams, groups, watchers and a cursor, and one turn of its loop. Knows no
//! transport, no raft and no clock.
//!
//! Reading order: [`ring`] and [`watcher`] (what there is), [`matcher`] and [`encode`] (from a change to bytes),
//! [`Engine`] (streams and requests), [`deliver`] (live watchers), [`catch_up`] (the others), [`progress`].

pub mod arena;
pub mod catch_up;
pub mod deliver;
pub mod encode;
pub mod matcher;
pub mod progress;
pub mod ring;
pub mod watcher;

#[cfg(test)]
#[allow(clippy::disallowed_types, reason = "a model for tests")]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::watch_request::RequestUnion;
use daymark_storage::mvcc::Keyspace;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use tokio::sync::Notify;

use crate::error::Error;
use crate::limits;
use crate::mailbox::Mailbox;
use crate::request::Sink;

use arena::{Arena, Key};
use catch_up::{CatchUp, Pool};
use encode::Headers;
use ring::{AppliedBatch, Ring};
use watcher::{Flags, Groups, Interest, Stand, Watcher};

/// What the loop of a net thread calls. After each wake: [`WatchTurn::handle_applied`] for each applied batch in the
/// mailbox, then [`WatchTurn::turn`] once; and a turn from time to time without a wake. A turn that leaves work behind
/// wakes the mailbox itself, so the loop has to give other tasks their share between two turns.
pub trait WatchTurn {
    /// Moves the cursor and serves live watchers.
    fn handle_applied(&mut self, batch: Arc<AppliedBatch>);
    /// Serves those that are behind, within a budget.
    fn turn(&mut self);
}

/// Names a stream of one engine.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(Key);

/// Bounds and intervals.
#[derive(Clone, Debug)]
pub struct Options {
    /// Applied batches kept for watchers that fall behind a little.
    pub ring_bytes_max: usize,
    /// Responses that reach it are split for watchers that ask for fragments: `max_request_bytes` + 512 KiB.
    pub fragment_bytes: usize,
    /// Time between periodic progress responses, to which up to a tenth is added.
    pub progress_interval: Duration,
}

/// Numbers for metrics.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub streams: usize,
    pub watchers: usize,
    pub groups: usize,
    /// Watchers that wait for their turn, for a scan or for credit.
    pub behind: usize,
    /// Revision up to which live watchers have got everything.
    pub cursor: i64,
    /// Events handed to streams since the start, each once for each watcher.
    pub events_sent: u64,
}

/// The watches of one net thread.
///
/// ```text
///   mailbox -> handle_applied -> ring
///                    |            |
///                  live        behind, recent          behind, old
///                    |            |                        |
///                    v            v                        v
///                  sink  <-  served from the ring  <-  scans of history on the pool
/// ```
///
/// One thread owns cursor and watchers. A watcher goes live in the same call in which everything up to the cursor has
/// been handed to its stream, and falls behind in the same call in which its stream refuses a revision: there is no
/// moment between, so no gap and no repeat.
///
/// Invariants:
/// - `cursor <= published revision`, and it only grows while there are watchers;
/// - a live watcher's stream has been given every matching event up to the cursor;
/// - the mailbox wants events if and only if there are watchers.
pub struct Engine {
    // Fixed.
    keyspace: Arc<Keyspace>,
    mailbox: Arc<Mailbox>,
    headers: Headers,
    options: Options,
    // Owned.
    cursor: i64,
    ring: Ring,
    streams: Arena<StreamState>,
    watchers: Arena<Watcher>,
    groups: Groups,
    catch_up: CatchUp,
    /// A published revision above the cursor whose batch has not come, and for how many turns now.
    unexplained: Option<(i64, u32)>,
    /// What all watchers take, as `limits` counts it.
    watchers_bytes: usize,
    /// Events handed to streams, each once for each watcher.
    events_sent: u64,
    // Shared with the call-backs of sinks, on the same thread.
    signals: Rc<Signals>,
}

struct StreamState {
    sink: Sink,
    /// Told when credit returns and when the stream ends, for whoever serves it.
    changed: Rc<Notify>,
    watchers: HashMap<i64, Key>,
    /// What they take, as `limits` counts it.
    watchers_bytes: usize,
    next_id: i64,
    /// Watchers that wait for credit, among names of some that are gone.
    parked: Vec<Key>,
    requires_leader: bool,
}

/// Streams whose sinks have called back since the last turn.
struct Signals {
    mailbox: Arc<Mailbox>,
    streams: RefCell<Vec<Key>>,
}

impl Signals {
    fn raise(&self, stream: Key) {
        let mut streams = self.streams.borrow_mut();
        if streams.is_empty() {
            self.mailbox.wake();
        }
        streams.push(stream);
    }
}

impl Engine {
    /// An engine without streams. `term` is what headers say; `pool` runs what may wait for a disk.
    pub fn new(
        keyspace: Arc<Keyspace>,
        mailbox: Arc<Mailbox>,
        cluster_id: u64,
        member_id: u64,
        term: impl Fn() -> u64 + 'static,
        options: Options,
        pool: Rc<dyn Pool>,
    ) -> Rc<RefCell<Self>> {
        let engine = Self {
            headers: Headers { cluster_id, member_id, term: Rc::new(term) },
            cursor: keyspace.current_revision(),
            ring: Ring::new(options.ring_bytes_max),
            streams: Arena::default(),
            watchers: Arena::default(),
            groups: Groups::default(),
            catch_up: CatchUp::new(pool),
            unexplained: None,
            watchers_bytes: 0,
            events_sent: 0,
            signals: Rc::new(Signals { mailbox: mailbox.clone(), streams: RefCell::default() }),
            keyspace,
            mailbox,
            options,
        };
        Rc::new(RefCell::new(engine))
    }

    /// Adds a stream without watchers. Its responses go to `sink`, whose call-back this takes.
    pub fn open(&mut self, sink: Sink) -> StreamId {
        let changed = Rc::new(Notify::new());
        let stream = self.streams.insert(StreamState {
            sink: sink.clone(),
            changed: changed.clone(),
            watchers: HashMap::new(),
            watchers_bytes: 0,
            next_id: 0,
            parked: Vec::new(),
            requires_leader: false,
        });
        let signals = self.signals.clone();
        sink.on_credit(Rc::new(move || {
            changed.notify_one();
            signals.raise(stream);
        }));
        StreamId(stream)
    }

    /// The stream is to end when this member has no leader, see [`Engine::cut_leaderless`].
    pub fn require_leader(&mut self, stream: StreamId) {
        if let Some(state) = self.streams.get_mut(stream.0) {
            state.requires_leader = true;
        }
    }

    /// Notified when the stream's credit returns and when it ends. `None` if it has ended.
    pub fn changed(&self, stream: StreamId) -> Option<Rc<Notify>> {
        Some(self.streams.get(stream.0)?.changed.clone())
    }

    /// Forgets a stream and its watchers. What is queued in the sink stays there.
    pub fn close(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(stream.0) else { return };
        state.changed.notify_one();
        let watchers = std::mem::take(&mut state.watchers);
        for watcher in watchers.into_values() {
            self.drop_watcher(watcher);
        }
        self.streams.remove(stream.0);
    }

    /// Ends streams that want a leader. The policy calls it when there has been none for three election timeouts.
    pub fn cut_leaderless(&mut self) {
        let streams: Vec<Key> = self.streams.keys().filter(|key| self.streams[*key].requires_leader).collect();
        for stream in streams {
            self.end(stream, Err(Error::NoLeader));
        }
    }

    /// Ends all streams, with `error` as the last word.
    pub fn end_all(&mut self, error: &Error) {
        let streams: Vec<Key> = self.streams.keys().collect();
        for stream in streams {
            self.end(stream, Err(error.clone()));
        }
    }

    /// Numbers for metrics.
    pub fn stats(&self) -> Stats {
        let live = |group: Key| self.groups.rows[group].live.len();
        let live: usize = self.groups.rows.keys().map(live).sum();
        Stats {
            streams: self.streams.len(),
            watchers: self.watchers.len(),
            groups: self.groups.rows.len(),
            behind: self.watchers.len() - live,
            cursor: self.cursor,
            events_sent: self.events_sent,
        }
    }

    /// How often periodic progress is due on a stream.
    pub fn progress_interval(&self) -> Duration {
        self.options.progress_interval
    }

    /// One request of a stream. Answered at once, whatever the sink's credit: the caller reads no further requests
    /// while there is none.
    pub fn handle_request(&mut self, stream: StreamId, request: pb::WatchRequest) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.handle_create(stream, &create),
            Some(RequestUnion::CancelRequest(cancel)) => self.handle_cancel(stream, cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.handle_progress(stream),
            None => {}
        }
    }

    /// Answers a create request that is refused, with the text that clients see.
    pub fn refuse(&mut self, stream: StreamId, reason: impl Into<String>) {
        let header = self.headers.at(self.keyspace.current_revision());
        self.respond(
            stream.0,
            pb::WatchResponse {
                header: Some(header),
                watch_id: NO_ID,
                created: true,
                canceled: true,
                cancel_reason: reason.into(),
                ..Default::default()
            },
        );
    }

    fn handle_create(&mut self, stream: StreamId, create: &pb::WatchCreateRequest) {
        if create.start_revision < 0 {
            return self.refuse(stream, Error::Compacted.text());
        }
        let Ok(interest) = Interest::from_request(create) else {
            return self.refuse(stream, "mvcc: watcher range is empty");
        };
        let Some(watch_id) = self.choose_id(stream.0, create.watch_id) else {
            return self.refuse(stream, "mvcc: duplicate watch ID provided on the WatchStream");
        };
        let bytes = interest.bytes();
        let Some(state) = self.streams.get_mut(stream.0) else { return };
        if state.watchers_bytes + bytes > limits::WATCHERS_OF_STREAM_BYTES_MAX
            || self.watchers_bytes + bytes > limits::WATCHERS_OF_THREAD_BYTES_MAX
        {
            let error = Error::TooManyWatchers;
            return self.refuse(stream, format!("rpc error: code = {:?} desc = {error}", error.code()));
        }
        state.watchers_bytes += bytes;
        self.watchers_bytes += bytes;
        if self.watchers.is_empty() {
            self.subscribe();
        }
        let current = self.keyspace.current_revision();
        let header = self.headers.at(current);
        let created = pb::WatchResponse { header: Some(header), watch_id, created: true, ..Default::default() };
        self.respond(stream.0, created);

        let mut flags = Flags::default();
        flags.set(Flags::PROGRESS, create.progress_notify);
        flags.set(Flags::QUIET, true);
        flags.set(Flags::FUTURE, create.start_revision > current);
        let next_revision = if create.start_revision == 0 { current + 1 } else { create.start_revision };
        let group = self.groups.join(interest);
        // Parked names no structure that it would have to be taken out of.
        let stand = Stand::Parked;
        let watcher = Watcher { stream: stream.0, group, watch_id, next_revision, stand, flags };
        let watcher = self.watchers.insert(watcher);
        self.streams[stream.0].watchers.insert(watch_id, watcher);
        if next_revision < self.keyspace.compact_revision() {
            self.cancel_compacted(watcher);
        } else {
            self.settle(watcher);
        }
        if !self.catch_up.is_idle() {
            self.mailbox.wake();
        }
    }

    /// The id a new watcher gets: the one asked for, or the next free one. `None` if it is taken.
    fn choose_id(&mut self, stream: Key, asked: i64) -> Option<i64> {
        let Some(state) = self.streams.get_mut(stream) else { return Some(asked) };
        if asked != 0 {
            return (!state.watchers.contains_key(&asked)).then_some(asked);
        }
        while state.watchers.contains_key(&state.next_id) {
            state.next_id += 1;
        }
        state.next_id += 1;
        Some(state.next_id - 1)
    }

    fn handle_cancel(&mut self, stream: StreamId, watch_id: i64) {
        // As in etcd, what was acknowledged before the client cancelled still comes first.
        self.take_applied();
        let Some(state) = self.streams.get_mut(stream.0) else { return };
        let Entry::Occupied(watcher) = state.watchers.entry(watch_id) else { return };
        let watcher = watcher.remove();
        self.drop_watcher(watcher);
        let header = self.headers.at(self.keyspace.current_revision());
        let canceled = pb::WatchResponse { header: Some(header), watch_id, canceled: true, ..Default::default() };
        self.respond(stream.0, canceled);
    }

    /// Tells a watcher that history it needs is gone. Its id stays taken until the client cancels it, as in etcd. The
    /// watcher is in no structure when this is called.
    fn cancel_compacted(&mut self, key: Key) {
        let watcher = &mut self.watchers[key];
        watcher.stand = Stand::Compacted;
        let response = pb::WatchResponse {
            header: Some(self.headers.at(0)),
            watch_id: watcher.watch_id,
            canceled: true,
            compact_revision: self.keyspace.compact_revision(),
            ..Default::default()
        };
        let stream = watcher.stream;
        self.respond(stream, response);
    }

    fn respond(&self, stream: Key, response: pb::WatchResponse) {
        if let Some(state) = self.streams.get(stream) {
            state.sink.push(encode::message(&response));
        }
    }

    /// Ends a call and forgets its stream.
    fn end(&mut self, stream: Key, end: Result<(), Error>) {
        if let Some(state) = self.streams.get(stream) {
            state.sink.finish(end);
            self.close(StreamId(stream));
        }
    }

    /// Finds the place of a watcher that is in no structure: live, parked, cancelled or queued.
    fn settle(&mut self, key: Key) {
        let watcher = &mut self.watchers[key];
        if watcher.next_revision > self.cursor {
            let live = &mut self.groups.rows[watcher.group].live;
            watcher.stand = Stand::Live { place: live.len() as u32 };
            live.push(key);
            return;
        }
        watcher.flags.set(Flags::FUTURE, false);
        let stream = &mut self.streams[watcher.stream];
        if stream.sink.credit() == 0 {
            watcher.stand = Stand::Parked;
            stream.parked.push(key);
        } else if watcher.next_revision < self.keyspace.compact_revision() {
            self.cancel_compacted(key);
        } else {
            watcher.stand = Stand::Queued;
            self.catch_up.enqueue(watcher.next_revision, key);
        }
    }

    /// Handles what has come since the loop looked.
    fn take_applied(&mut self) {
        while let Some(batch) = self.mailbox.pop_applied() {
            self.handle_applied(batch);
        }
    }

    fn drop_watcher(&mut self, key: Key) {
        let Some(watcher) = self.watchers.get(key) else { return };
        match watcher.stand {
            Stand::Live { .. } => deliver::leave_live(&mut self.groups, &mut self.watchers, key),
            Stand::Queued => self.catch_up.dequeue(watcher.next_revision, key),
            // Scans and parked lists look whether the name is still in use.
            Stand::Scanned | Stand::Parked | Stand::Compacted => {}
        }
        let watcher = self.watchers.remove(key).expect("it was there");
        let bytes = self.groups.rows[watcher.group].interest.bytes();
        self.watchers_bytes -= bytes;
        self.streams[watcher.stream].watchers_bytes -= bytes;
        self.groups.leave(watcher.group);
        if self.watchers.is_empty() {
            self.mailbox.want_events(false);
            self.ring.clear();
        }
    }

    /// Begins to listen to apply. A batch published after the flag is set comes through the mailbox, one published
    /// before is covered by the revision loaded here; one that is both is older than the cursor and left out.
    fn subscribe(&mut self) {
        self.mailbox.want_events(true);
        self.cursor = self.cursor.max(self.keyspace.current_revision());
        self.ring.clear();
        self.unexplained = None;
    }

    /// Looks at the streams whose sinks have called back: some have gone, the others have credit again.
    fn handle_signals(&mut self) {
        let streams = std::mem::take(&mut *self.signals.streams.borrow_mut());
        for stream in streams {
            let Some(state) = self.streams.get_mut(stream) else { continue };
            if state.sink.is_closed() {
                self.close(StreamId(stream));
                continue;
            }
            for watcher in std::mem::take(&mut state.parked) {
                if self.watchers.get(watcher).is_some_and(|watcher| watcher.stand == Stand::Parked) {
                    self.settle(watcher);
                }
            }
        }
    }
}

impl WatchTurn for Engine {
    fn handle_applied(&mut self, batch: Arc<AppliedBatch>) {
        if self.watchers.is_empty() || batch.first_revision > batch.last_revision {
            return;
        }
        self.unexplained = None;
        self.ring.push(batch.clone());
        if batch.first_revision > self.cursor + 1 {
            self.skip_to(batch.first_revision - 1);
        }
        self.deliver(&batch);
        self.cursor = self.cursor.max(batch.last_revision);
    }

    fn turn(&mut self) {
        self.take_applied();
        self.handle_signals();
        self.notice_gap();
        self.handle_scans();
        self.catch_up();
    }
}

/// The watch id of refusals, and of progress of a whole stream.
const NO_ID: i64 = -1;
