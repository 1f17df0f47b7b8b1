//! Watchers that are behind: served from the ring while it reaches back far enough, else from history, which is read on
//! the pool. Those at nearby revisions share one scan. Not live delivery.

use std::collections::BTreeSet;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_queue::SegQueue;
use daymark_storage::StorageError;
use daymark_storage::mvcc::{Event, HistoryChunk, KeyRange, Keyspace, RangeEnd, ReadError};

use super::Engine;
use super::arena::Key;
use super::encode::{EventBytes, Payload, Prefixes};
use super::watcher::{Flags, Groups, Interest, Stand};
use crate::error::Error;
use crate::mailbox::Mailbox;

/// Bounds of one turn's catching up, so that live watchers and requests come soon again.
mod bounds {
    /// Watchers served from the ring in a turn, or by one scan.
    pub const WATCHERS_MAX: usize = 512;
    /// Bytes of applied batches looked at in a turn (one batch may pass it), and of events that one scan returns.
    pub const EVENT_BYTES_MAX: usize = 1 << 20;
    /// Watchers whose next revisions are at most this far apart share a scan.
    pub const SCAN_REVISIONS: i64 = 1000;
    /// Distinct revisions in one response, as in etcd.
    pub const RESPONSE_REVISIONS_MAX: usize = 1000;
    /// A response is not filled up beyond it with further revisions.
    pub const RESPONSE_BYTES: usize = 256 << 10;
}

/// Runs what may wait for a disk, off the net thread.
pub trait Pool {
    /// Runs `job` on another thread, some time.
    fn run(&self, job: Box<dyn FnOnce() + Send>);
}

/// The blocking pool of a tokio runtime.
impl Pool for tokio::runtime::Handle {
    fn run(&self, job: Box<dyn FnOnce() + Send>) {
        self.spawn_blocking(job);
    }
}

/// Who is behind, and the scan that runs for some of them.
pub struct CatchUp {
    pool: Rc<dyn Pool>,
    /// Watchers that wait for their turn, by next revision.
    queue: BTreeSet<(i64, Key)>,
    /// Where the last scan ended: the next one begins with a watcher behind that, so that one that is far behind does
    /// not keep the others waiting until it has caught up.
    scanned_to: i64,
    /// At most one scan runs.
    scans: bool,
    results: Arc<SegQueue<Scan>>,
}

/// What a scan has read.
struct Scan {
    watchers: Vec<Key>,
    result: Result<HistoryChunk, ReadError>,
}

impl CatchUp {
    pub(super) fn new(pool: Rc<dyn Pool>) -> Self {
        Self { pool, queue: BTreeSet::new(), scanned_to: 0, scans: false, results: Arc::default() }
    }

    pub(super) fn enqueue(&mut self, next_revision: i64, watcher: Key) {
        self.queue.insert((next_revision, watcher));
    }

    pub(super) fn dequeue(&mut self, next_revision: i64, watcher: Key) {
        let found = self.queue.remove(&(next_revision, watcher));
        assert!(found, "a queued watcher is in the queue under its next revision");
    }

    /// Nobody waits in the queue.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes watchers out whose next revisions lie in `from..to`, as many as one round serves.
    fn take(&mut self, from: i64, to: i64) -> Vec<Key> {
        let taken: Vec<_> =
            self.queue.range((from, Key::LEAST)..(to, Key::LEAST)).take(bounds::WATCHERS_MAX).copied().collect();
        taken.iter().for_each(|entry| _ = self.queue.remove(entry));
        taken.into_iter().map(|(_, key)| key).collect()
    }

    /// The least next revision in `from..to`.
    fn first(&self, from: i64, to: i64) -> Option<i64> {
        if from >= to {
            return None;
        }
        self.queue.range((from, Key::LEAST)..(to, Key::LEAST)).next().map(|(revision, _)| *revision)
    }
}

impl Engine {
    /// One turn for those behind.
    pub(super) fn catch_up(&mut self) {
        self.serve_from_ring();
        self.start_scan();
        if self.first_in_ring().is_some() {
            self.mailbox.wake();
        }
    }

    /// Revisions that the ring can serve now: up to the cursor.
    fn ring_span(&self) -> Option<(i64, i64)> {
        let (first, last) = (self.ring.first_revision()?, self.ring.last_revision()?);
        Some((first, last.min(self.cursor)))
    }

    fn first_in_ring(&self) -> Option<i64> {
        let (first, last) = self.ring_span()?;
        self.catch_up.first(first, last + 1)
    }

    fn serve_from_ring(&mut self) {
        let Some(from) = self.first_in_ring() else { return };
        let Some((_, last)) = self.ring_span() else { return };
        let watchers = self.catch_up.take(from, last + 1);
        let watchers = self.admit(watchers);
        if watchers.is_empty() {
            return;
        }
        let mut batches = Vec::new();
        let mut bytes = 0;
        for batch in self.ring.from(from).into_iter().flatten() {
            bytes += batch.bytes;
            batches.push(batch.clone());
            if bytes >= bounds::EVENT_BYTES_MAX {
                break;
            }
        }
        let Some(end) = batches.last() else { return };
        let up_to = end.last_revision.min(last);
        let compact_revision = self.keyspace.compact_revision();
        let in_span = |event: &&Event| (from..=up_to).contains(&event.kv.mod_revision);
        let events = batches.iter().flat_map(|batch| &batch.events).filter(in_span);
        self.hand_out(watchers, events, up_to, compact_revision);
    }

    /// Of watchers taken from the queue, those that can be served. The others are parked or cancelled.
    fn admit(&mut self, watchers: Vec<Key>) -> Vec<Key> {
        let compact_revision = self.keyspace.compact_revision();
        let mut admitted = Vec::with_capacity(watchers.len());
        for key in watchers {
            let watcher = &mut self.watchers[key];
            let has_credit = self.streams[watcher.stream].sink.credit() > 0;
            if has_credit && watcher.next_revision >= compact_revision {
                watcher.stand = Stand::Scanned;
                admitted.push(key);
            } else {
                self.settle(key);
            }
        }
        admitted
    }

    /// Starts reading history for those whom the ring does not reach, unless that is going on.
    fn start_scan(&mut self) {
        while !self.catch_up.scans {
            let Some(from) = self.choose_scan() else { return };
            let watchers = self.catch_up.take(from, from + bounds::SCAN_REVISIONS);
            let watchers = self.admit(watchers);
            let Some(from) = watchers.iter().map(|key| self.watchers[*key].next_revision).min() else { continue };
            self.catch_up.scanned_to = from;
            self.catch_up.scans = true;
            let interests = watchers.iter().map(|key| &self.groups.rows[self.watchers[*key].group].interest);
            let (range, with_prev) = cover(interests);
            let answer = Answer {
                scan: Some(Scan { watchers, result: Err(ReadError::Storage(StorageError::Stopped)) }),
                results: self.catch_up.results.clone(),
                mailbox: self.mailbox.clone(),
            };
            let (keyspace, to) = (self.keyspace.clone(), self.cursor);
            self.catch_up.pool.run(Box::new(move || answer.read(&keyspace, from, to, &range, with_prev)));
        }
    }

    /// Where the next scan begins: at the first watcher behind the end of the last one, then around.
    fn choose_scan(&self) -> Option<i64> {
        let (first, last) = self.ring_span().unwrap_or((i64::MAX, i64::MAX - 1));
        let queue = &self.catch_up;
        queue
            .first((queue.scanned_to + 1).min(first), first)
            .or_else(|| queue.first(i64::MIN, first))
            .or_else(|| queue.first(last + 1, i64::MAX))
    }

    /// Takes what scans have read.
    pub(super) fn handle_scans(&mut self) {
        while let Some(Scan { mut watchers, result }) = self.catch_up.results.pop() {
            self.catch_up.scans = false;
            watchers.retain(|key| self.watchers.get(*key).is_some());
            match result {
                Ok(chunk) => {
                    let up_to = chunk.next_revision - 1;
                    self.catch_up.scanned_to = chunk.next_revision;
                    let events = chunk.events_by_revision.iter().flat_map(|(_, events)| events);
                    self.hand_out(watchers, events, up_to, i64::MIN);
                }
                Err(ReadError::Compacted) => watchers.into_iter().for_each(|key| self.settle(key)),
                Err(error) => self.fail(watchers, &error),
            }
        }
    }

    /// History cannot be read: nothing may be left out silently, so the streams end with the facts.
    fn fail(&mut self, watchers: Vec<Key>, error: &ReadError) {
        tracing::error!(%error, watchers = watchers.len(), "history for watchers cannot be read");
        for key in watchers {
            if let Some(watcher) = self.watchers.get(key) {
                let stream = watcher.stream;
                self.end(stream, Err(Error::Internal(error.to_string())));
            }
        }
    }

    /// Gives watchers what a scan has found for them: all matching events from their next revisions up to `up_to`, as
    /// far as their credit goes. Previous pairs of revisions at or below `prev_floor` are left out.
    fn hand_out<'a>(
        &mut self,
        mut watchers: Vec<Key>,
        events: impl Iterator<Item = &'a Event>,
        up_to: i64,
        prev_floor: i64,
    ) {
        watchers.sort_unstable_by_key(|key| (self.watchers[*key].group, self.watchers[*key].next_revision));
        for key in &watchers {
            self.groups.rows[self.watchers[*key].group].scanned.get_or_insert_default();
        }
        self.sort_out(events, prev_floor);
        let mut prefixes = self.headers.prefixes(self.keyspace.current_revision());
        let like = |one: &Key, next: &Key| {
            let (one, next) = (&self.watchers[*one], &self.watchers[*next]);
            (one.group, one.next_revision) == (next.group, next.next_revision)
        };
        let runs: Vec<Vec<Key>> = watchers.chunk_by(like).map(<[Key]>::to_vec).collect();
        for run in runs {
            let first = &self.watchers[run[0]];
            let group = first.group;
            let scanned = self.groups.rows[group].scanned.as_deref().unwrap_or_default();
            let start = scanned.partition_point(|(revision, _)| *revision < first.next_revision);
            let responses = pack(&scanned[start..], self.fragment_bytes(group));
            for key in run {
                self.send(key, &responses, up_to, &mut prefixes);
            }
        }
        for key in watchers {
            if let Some(group) = self.groups.rows.get_mut(self.watchers[key].group) {
                group.scanned = None;
            }
            self.settle(key);
        }
    }

    /// Encodes each event for the groups that take part.
    fn sort_out<'a>(&mut self, events: impl Iterator<Item = &'a Event>, prev_floor: i64) {
        let Groups { rows, matcher, .. } = &mut self.groups;
        for event in events {
            let mut bytes = EventBytes::new(event);
            let revision = event.kv.mod_revision;
            matcher.find(&event.kv.key, |key| {
                let Interest { flags, .. } = rows[key].interest;
                if let Some(scanned) = rows[key].scanned.as_mut().filter(|_| flags.admits(event.kind)) {
                    let with_prev = flags.has(Flags::PREV_KV) && revision > prev_floor;
                    scanned.push((revision, bytes.get(with_prev)));
                }
            });
        }
    }

    fn send(&mut self, key: Key, responses: &[Response], up_to: i64, prefixes: &mut Prefixes) {
        let fragment_bytes = self.fragment_bytes(self.watchers[key].group);
        let watcher = &mut self.watchers[key];
        let sink = &self.streams[watcher.stream].sink;
        for response in responses {
            if sink.credit() == 0 {
                watcher.next_revision = response.first_revision;
                return;
            }
            watcher.flags.set(Flags::QUIET, false);
            let prefix = prefixes.get(watcher.watch_id);
            self.events_sent += response.payload.len() as u64;
            response.payload.fragments(prefix, fragment_bytes, |parts| sink.push(parts));
        }
        watcher.next_revision = watcher.next_revision.max(up_to + 1);
    }
}

/// Events of consecutive revisions that go out together.
struct Response {
    first_revision: i64,
    payload: Payload,
}

/// Cuts events into responses, between revisions only.
fn pack(events: &[(i64, Bytes)], fragment_bytes: usize) -> Vec<Response> {
    let mut responses: Vec<Response> = Vec::new();
    let mut revisions = 0;
    for of_revision in events.chunk_by(|one, next| one.0 == next.0) {
        let bytes: usize = of_revision.iter().map(|(_, event)| event.len()).sum();
        let fits = |last: &Response| {
            let len = last.payload.byte_len() + bytes;
            revisions < bounds::RESPONSE_REVISIONS_MAX && len <= bounds::RESPONSE_BYTES
        };
        if !responses.last().is_some_and(fits) {
            responses.push(Response { first_revision: of_revision[0].0, payload: Payload::default() });
            revisions = 0;
        }
        revisions += 1;
        if let Some(response) = responses.last_mut() {
            of_revision.iter().for_each(|(_, event)| response.payload.push(event.clone()));
        }
    }
    for response in responses.iter_mut().filter(|response| response.payload.byte_len() < fragment_bytes) {
        response.payload.join();
    }
    responses
}

/// The least interval that covers all, and whether somebody wants previous pairs.
fn cover<'a>(interests: impl Iterator<Item = &'a Interest>) -> (KeyRange, bool) {
    let mut with_prev = false;
    let mut cover: Option<KeyRange> = None;
    for interest in interests {
        with_prev |= interest.flags.has(Flags::PREV_KV);
        cover = Some(match cover {
            None => interest.range.clone(),
            Some(cover) if cover == interest.range => cover,
            Some(cover) => union(cover, &interest.range),
        });
    }
    (cover.unwrap_or_else(KeyRange::all), with_prev)
}

fn union(one: KeyRange, other: &KeyRange) -> KeyRange {
    let end = match (end_of(&one), end_of(other)) {
        (Some(one), Some(other)) => RangeEnd::Before(one.max(other)),
        _ => RangeEnd::Open,
    };
    KeyRange { start: one.start.min(other.start.clone()), end }
}

/// First key behind an interval, if there is any.
fn end_of(range: &KeyRange) -> Option<Bytes> {
    match &range.end {
        RangeEnd::Point => Some([&range.start[..], &[0]].concat().into()),
        RangeEnd::Before(end) => Some(end.clone()),
        RangeEnd::Open => None,
    }
}

/// Brings a scan's result home, whatever happens: a job that is dropped or dies says that the pool has stopped.
struct Answer {
    scan: Option<Scan>,
    results: Arc<SegQueue<Scan>>,
    mailbox: Arc<Mailbox>,
}

impl Answer {
    fn read(mut self, keyspace: &Keyspace, from: i64, to: i64, range: &KeyRange, with_prev: bool) {
        let result = keyspace.history(from, to, Some(range), with_prev, bounds::EVENT_BYTES_MAX);
        if let Some(scan) = &mut self.scan {
            scan.result = result;
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(scan) = mem::take(&mut self.scan) {
            self.results.push(scan);
            self.mailbox.wake();
        }
    }
}
