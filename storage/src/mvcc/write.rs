//! The write side: change sets, one new revision each, gathered into one write batch. Belongs to the apply thread
//! alone; what is visible when is decided by its owner through `commit` and `publish`.

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::cache::{Cache, KeyRef, Keys, Overlay, TxnMark};
use super::event::{Event, EventKind, KeyValue};
use super::layout::{self, Meta, Op, Position, Record, UndoRecord};
use super::range::{KeyRange, RangeOptions, RangeResult};
use super::revision::Revision;
use super::rewind::{self, Source};
use super::{Keyspace, ReadError, Shared, hash, read};
use crate::backend::{Direction, Family, Span, VisitRow, first_bytes};
use crate::error::{Result, StorageError};
use crate::log_id::LogId;

/// The only one that changes a keyspace.
///
/// Changes gather in a write batch: transactions, compactions and table rows. `commit` hands the batch with the
/// applied id to the backend; `publish` then lets readers see it. Between the two, reads meet newer records than their
/// revision and undo them.
///
/// Invariants: `published <= committed <= latest`, for the revision, the compact revision and the applied id alike;
/// `compact revision <= revision`. A transaction that is dropped leaves nothing in the batch.
pub struct Writer {
    keyspace: Arc<Keyspace>,
    /// What it writes: the keyspace's, unless that has been replaced since.
    shared: Arc<Shared>,
    cache: Cache,
    overlay: Overlay,
    /// With everything in the batch; `applied` as of the last commit.
    latest: Position,
    committed: Position,
    /// Of the latest state, see [`hash`].
    hash: u128,
    /// A batch could not be written, so the state in the backend is not the one known here.
    failed: Option<StorageError>,
    ahead: Ahead,
    // Buffers, to be reused.
    found: Vec<u8>,
    record: Vec<u8>,
    undo: Vec<u8>,
    hashed: Vec<u8>,
}

/// How a change set is made.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnOptions {
    /// Leaves [`TxnChanges::events`] empty: nobody watches, and each event keeps two pairs in memory.
    pub without_events: bool,
}

/// What a finished transaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TxnChanges {
    /// The revision it made, or the one before if it changed nothing.
    pub revision: i64,
    /// Its changes in order, unless it was begun without events.
    pub events: Vec<Event>,
    /// Bytes of keys and values that were put.
    pub put_bytes: u64,
}

/// One change set in the making. Reads see its own writes. Dropped without [`WriteTxn::finish`] it never was.
pub struct WriteTxn<'a> {
    writer: &'a mut Writer,
    mark: TxnMark,
    main: i64,
    /// Changes so far.
    changes: i64,
    /// What they add to the hash.
    hash: u128,
    /// One for each change, or none at all.
    events: Vec<Event>,
    put_bytes: u64,
    options: TxnOptions,
    finished: bool,
}

/// How many keys in a row may not be asked for, though they were read.
const LOOK_AHEAD_MAX: usize = 8;

/// Records read before they are asked for, in the order in which that is expected.
#[derive(Default)]
struct Ahead {
    keys: Keys,
    records: Vec<(KeyRef, Option<Bytes>)>,
    next: usize,
}

impl Ahead {
    /// What was read of `key`, if that is asked for next or soon: others may have been given up before they were.
    fn take(&mut self, key: &[u8]) -> Option<Option<Bytes>> {
        let soon = self.records[self.next..].iter_mut().take(LOOK_AHEAD_MAX);
        let (passed, (_, record)) = soon.enumerate().find(|(_, (at, _))| self.keys.get(*at) == key)?;
        self.next += passed + 1;
        Some(record.take())
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.records.clear();
        self.next = 0;
    }
}

/// A key's state, owned.
enum State {
    None,
    Stub(Revision),
    Live(Meta, KeyValue),
}

impl Writer {
    pub(super) fn new(
        keyspace: Arc<Keyspace>,
        shared: Arc<Shared>,
        position: Position,
        hash: u128,
        cache_bytes_max: usize,
    ) -> Self {
        Self {
            keyspace,
            shared,
            cache: Cache::new(cache_bytes_max),
            overlay: Overlay::default(),
            latest: position,
            committed: position,
            hash,
            failed: None,
            ahead: Ahead::default(),
            found: Vec::new(),
            record: Vec::new(),
            undo: Vec::new(),
            hashed: Vec::new(),
        }
    }

    /// The keyspace that is written.
    pub fn keyspace(&self) -> &Arc<Keyspace> {
        &self.keyspace
    }

    /// Newest revision, that of changes not yet committed included.
    pub fn latest_revision(&self) -> i64 {
        self.latest.current_revision
    }

    /// Compact revision, that of compactions not yet committed included.
    pub fn latest_compact_revision(&self) -> i64 {
        self.latest.compact_revision
    }

    /// Bytes in the write batch so far.
    pub fn batch_bytes(&self) -> usize {
        self.overlay.batch.byte_len()
    }

    /// Reads what puts of these keys, in this order, are going to ask for and what is not known without the backend: many at
    /// once cost less than one after the other.
    /// Puts of other keys, or in another order, read for themselves. What was read is forgotten with the next commit.
    pub fn read_ahead(&mut self, keys: impl Iterator<Item = impl AsRef<[u8]>>) -> Result<()> {
        self.ahead.clear();
        let Ahead { keys: ahead, records, .. } = &mut self.ahead;
        let mut wanted: Vec<(u64, u32)> = Vec::new();
        for key in keys {
            let key = key.as_ref();
            if self.overlay.newest(key).is_none() && !self.cache.has(key) {
                wanted.push((first_bytes(key), records.len() as u32));
                records.push((ahead.push(key), None));
            }
        }
        let key = |place: u32| ahead.get(records[place as usize].0);
        wanted.sort_unstable_by(|(a_first, a), (b_first, b)| a_first.cmp(b_first).then_with(|| key(*a).cmp(key(*b))));
        let sorted: Vec<&[u8]> = wanted.iter().map(|(_, place)| key(*place)).collect();
        self.shared.backend.get_many(Family::Cur, &sorted, &mut |place, record| {
            records[wanted[place].1 as usize].1 = record.map(Bytes::copy_from_slice);
        })
    }

    /// Begins a change set at the revision after the latest.
    pub fn begin(&mut self) -> WriteTxn<'_> {
        self.begin_with(TxnOptions::default())
    }

    /// As [`Writer::begin`], with options. They change nothing of what is written.
    pub fn begin_with(&mut self, options: TxnOptions) -> WriteTxn<'_> {
        let mark = self.overlay.begin();
        let main = self.latest.current_revision + 1;
        let (changes, hash, put_bytes) = (0, 0, 0);
        WriteTxn { writer: self, mark, main, changes, hash, events: Vec::new(), put_bytes, options, finished: false }
    }

    /// Raises the compact revision, as part of the batch. History goes later, see [`Keyspace::drop_history`].
    pub fn compact(&mut self, revision: i64) -> std::result::Result<(), ReadError> {
        // In etcd's order of checks.
        if revision <= self.latest.compact_revision {
            return Err(ReadError::Compacted);
        }
        if revision > self.latest.current_revision {
            return Err(ReadError::Future);
        }
        self.latest.compact_revision = revision;
        Ok(())
    }

    /// Sets a row of another owner's table, in the same batch. Keys of `meta` that begin with `mvcc/` are not theirs.
    pub fn table_put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        check_table(family, key);
        self.overlay.table_change(family, key, Some(value));
    }

    /// Removes a row.
    pub fn table_delete(&mut self, family: Family, key: &[u8]) {
        check_table(family, key);
        self.overlay.table_change(family, key, None);
    }

    /// A row, with the changes of this batch.
    pub fn table_get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some(row) = self.overlay.table_row(family, key) {
            return Ok(row.map(<[u8]>::to_vec));
        }
        let mut value = Vec::new();
        Ok(self.shared.backend.get(family, key, &mut value)?.then_some(value))
    }

    /// Calls `visit` for each row from `start` up to `end` (empty: to the last) in key order until it breaks, with the
    /// changes of this batch.
    pub fn table_scan(&self, family: Family, start: &[u8], end: &[u8], visit: &mut VisitRow<'_>) -> Result<()> {
        let end = (!end.is_empty()).then_some(end);
        let own = self.overlay.table_rows(family, start, end);
        let cursor = self.shared.backend.iterate(family, Span { start, end }, Direction::Forward)?;
        rewind::merge(cursor, &own, Direction::Forward, &mut |key, value| Ok::<_, StorageError>(visit(key, value)))
    }

    /// Writes the batch with the id of the last log entry in it. Durable only after a flush, so that after a crash the
    /// log is replayed from what [`Keyspace::durable_applied`] says. After a failure nothing can be written any more.
    pub fn commit(&mut self, applied: LogId) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.committed.applied.is_some_and(|before| before.index > applied.index) {
            return Err(StorageError::Invariant {
                what: format!("entry {applied} is applied after {:?}", self.committed.applied),
            });
        }
        self.latest.applied = Some(applied);
        let position = layout::encode_position(&self.latest);
        self.overlay.batch.put(Family::Meta, layout::POSITION_KEY, &position);
        if self.latest.current_revision != self.committed.current_revision {
            let hash = layout::encode_hash(self.latest.current_revision, self.hash);
            self.overlay.batch.put(Family::Meta, layout::HASH_KEY, &hash);
        }
        // First, so that of a large batch only its bytes are left when the backend adds what it makes of them.
        self.overlay.finish(&mut self.cache);
        self.ahead.clear();
        let bytes = self.overlay.batch.byte_len() as u64;
        if let Err(error) = self.shared.backend.write(&mut self.overlay.batch) {
            self.failed = Some(error.clone());
            return Err(error);
        }
        self.keyspace.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        // Before it is published: who reads the new revision finds it.
        self.shared.fences.feed().push(self.latest.current_revision, &mut self.overlay.turnover);
        self.committed = self.latest;
        Ok(())
    }

    /// Lets readers see what was committed.
    pub fn publish(&mut self) {
        self.shared.publish(&self.committed);
    }

    fn state(&mut self, key: &Bytes) -> Result<State> {
        let ahead = self.ahead.take(key);
        if let Some(record) = self.overlay.newest(key) {
            return own_state(&self.shared, key, record, Bytes::copy_from_slice);
        }
        if let Some(record) = self.cache.get(key) {
            return own_state(&self.shared, key, record, |value| record.slice_ref(value));
        }
        match ahead {
            Some(Some(record)) => return own_state(&self.shared, key, &record, |value| record.slice_ref(value)),
            Some(None) => return Ok(State::None),
            None => {}
        }
        if !self.shared.backend.get(Family::Cur, key, &mut self.found)? {
            return Ok(State::None);
        }
        own_state(&self.shared, key, &self.found, Bytes::copy_from_slice)
    }
}

impl WriteTxn<'_> {
    /// The revision before the transaction.
    pub fn base_revision(&self) -> i64 {
        self.main - 1
    }

    /// Whether it has changed anything so far.
    pub fn changed(&self) -> bool {
        self.changes > 0
    }

    /// The pair of `key` as of now, own writes included.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<KeyValue>> {
        match self.writer.state(&Bytes::copy_from_slice(key))? {
            State::Live(_, kv) => Ok(Some(kv)),
            State::Stub(_) | State::None => Ok(None),
        }
    }

    /// The pairs of `range`: as of now, own writes included, for a `revision` of 0 or less, else as of that revision,
    /// which must not be above the one before the transaction.
    pub fn range(
        &mut self,
        range: &KeyRange,
        options: &RangeOptions,
        revision: i64,
    ) -> std::result::Result<RangeResult, ReadError> {
        let revision = match revision {
            ..=0 => self.main,
            _ if revision > self.base_revision() => return Err(ReadError::Future),
            _ if revision < self.writer.latest.compact_revision => return Err(ReadError::Compacted),
            _ => revision,
        };
        self.writer.overlay.order();
        read::read_range(&self.source(), range, options, revision)
    }

    /// Creates or overwrites `key`; returns the pair it replaces, which may be of this very transaction.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Result<Option<KeyValue>> {
        assert!(!key.is_empty(), "keys are checked before they are proposed");
        let state = self.writer.state(&key)?;
        let modified = self.next_revision();
        let (create_revision, version) = match &state {
            State::Live(meta, _) => (meta.create_revision, meta.version + 1),
            State::Stub(_) | State::None => (modified.main, 1),
        };
        let meta = Meta { modified, create_revision, version, lease };
        self.put_bytes += (key.len() + value.len()) as u64;
        self.change(&key, Record::Live(meta, &value), Op::Put(meta), &state);
        let previous = state.into_pair();
        if !self.options.without_events {
            let kv = KeyValue { key, create_revision, mod_revision: modified.main, version, lease, value };
            self.push_event(EventKind::Put, kv, modified.sub, previous.clone());
        }
        Ok(previous)
    }

    /// Deletes `key`; returns the pair that is gone, or none if there was nothing to delete.
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<KeyValue>> {
        let key = Bytes::copy_from_slice(key);
        let state = self.writer.state(&key)?;
        Ok(self.delete_state(key, state))
    }

    /// Deletes every key of `range`, in key order; returns the pairs that are gone.
    pub fn delete_range(&mut self, range: &KeyRange) -> Result<Vec<KeyValue>> {
        let mut gone = Vec::new();
        self.delete_each(range, &mut |kv| gone.push(kv))?;
        Ok(gone)
    }

    /// Deletes every key of `range`, in key order, and shows `visit` each pair that is gone; returns their number. Keeps
    /// neither pairs nor keys, so that a large range costs little more than its records in the batch.
    pub fn delete_each(&mut self, range: &KeyRange, visit: &mut dyn FnMut(KeyValue)) -> Result<i64> {
        let before = self.changes;
        let Some(span) = range.span() else {
            self.delete(&range.start)?.into_iter().for_each(visit);
            return Ok(self.changes - before);
        };
        if span.is_empty() {
            return Ok(0);
        }
        // Keys as they are now, in the batch and in the backend: the deletions add none.
        self.writer.overlay.order();
        let own: Vec<Bytes> = self.writer.overlay.keys_in(range).cloned().collect();
        let own: Vec<_> = own.iter().map(|key| (&key[..], Some(&[][..]))).collect();
        let shared = self.writer.shared.clone();
        let cursor = shared.backend.iterate(Family::Cur, span, Direction::Forward)?;
        rewind::merge(cursor, &own, Direction::Forward, &mut |key, stored| {
            let key = Bytes::copy_from_slice(key);
            // For a key of the batch `stored` is nothing or an older record.
            let record = self.writer.overlay.newest(&key).unwrap_or(stored);
            let state = own_state(&shared, &key, record, Bytes::copy_from_slice)?;
            self.delete_state(key, state).into_iter().for_each(&mut *visit);
            Ok::<_, StorageError>(ControlFlow::Continue(()))
        })?;
        Ok(self.changes - before)
    }

    /// Makes the changes part of the batch.
    pub fn finish(mut self) -> TxnChanges {
        self.finished = true;
        if self.changed() {
            self.writer.latest.current_revision = self.main;
            self.writer.hash = self.writer.hash.wrapping_add(self.hash);
        }
        let (revision, put_bytes) = (self.writer.latest.current_revision, self.put_bytes);
        TxnChanges { revision, events: mem::take(&mut self.events), put_bytes }
    }

    fn source(&self) -> Source<'_> {
        Source::new(&self.writer.shared, Some(&self.writer.overlay))
    }

    /// Deletes `key`, which is in that state.
    fn delete_state(&mut self, key: Bytes, state: State) -> Option<KeyValue> {
        let State::Live(..) = state else { return None };
        let modified = self.next_revision();
        self.change(&key, Record::Stub(modified), Op::Delete, &state);
        let previous = state.into_pair();
        if !self.options.without_events {
            let kv = KeyValue { key, mod_revision: modified.main, ..KeyValue::default() };
            self.push_event(EventKind::Delete, kv, modified.sub, previous.clone());
        }
        previous
    }

    fn next_revision(&self) -> Revision {
        Revision { main: self.main, sub: self.changes }
    }

    fn change(&mut self, key: &Bytes, newest: Record<'_>, op: Op, state: &State) {
        let Writer { overlay, record, undo, hashed, .. } = &mut *self.writer;
        let modified = newest.modified().expect("a change leads to a live key or a stub");
        let previous = state.as_record();
        record.clear();
        layout::encode_record(&newest, record);
        undo.clear();
        let previous_at = layout::encode_undo(&UndoRecord { key, op, previous }, undo);
        if let Record::Live(..) = newest {
            self.hash = self.hash.wrapping_add(hash::of_record(key, record, hashed));
        }
        if let Record::Live(..) = previous {
            self.hash = self.hash.wrapping_sub(hash::of_record(key, &undo[previous_at..], hashed));
        }
        overlay.change(key, modified, record, undo, !matches!(state, State::None));
        match (state, op) {
            (State::Live(..), Op::Delete) => overlay.turnover.note(modified.main, key, -1),
            (State::None | State::Stub(_), Op::Put(_)) => overlay.turnover.note(modified.main, key, 1),
            _ => {}
        }
        if let State::Live(meta, _) = state {
            let [from, to] = [meta.modified, modified].map(layout::revision_key);
            overlay.batch.put(Family::Fwd, &from, &to);
        }
        self.changes += 1;
    }

    fn push_event(&mut self, kind: EventKind, kv: KeyValue, sub: i64, replaced: Option<KeyValue>) {
        let mut prev = replaced;
        if prev.as_ref().is_some_and(|prev| prev.mod_revision == self.main) {
            // Changed before in this revision: the first of these changes knows the pair of the revision before.
            prev = self.events.iter().find(|event| event.kv.key == kv.key).and_then(|event| event.prev.clone());
        }
        let mut event = Event { kind, kv, prev, sub };
        if event.is_create() {
            event.prev = None;
        }
        self.events.push(event);
    }
}

impl Drop for WriteTxn<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.writer.overlay.abort(self.mark);
        }
    }
}

impl State {
    fn as_record(&self) -> Record<'_> {
        match self {
            State::None => Record::None,
            State::Stub(revision) => Record::Stub(*revision),
            State::Live(meta, kv) => Record::Live(*meta, &kv.value),
        }
    }

    fn into_pair(self) -> Option<KeyValue> {
        match self {
            State::Live(_, kv) => Some(kv),
            State::Stub(_) | State::None => None,
        }
    }
}

fn own_state(shared: &Shared, key: &Bytes, record: &[u8], own: impl FnOnce(&[u8]) -> Bytes) -> Result<State> {
    let record = layout::decode_record(record);
    let record = record.ok_or_else(|| rewind::undecodable(shared, "record of", key))?;
    Ok(match record {
        Record::None => State::None,
        Record::Stub(revision) => State::Stub(revision),
        Record::Live(meta, value) => {
            let kv = KeyValue {
                key: key.clone(),
                create_revision: meta.create_revision,
                mod_revision: meta.modified.main,
                version: meta.version,
                lease: meta.lease,
                value: own(value),
            };
            State::Live(meta, kv)
        }
    })
}

fn check_table(family: Family, key: &[u8]) {
    assert!(matches!(family, Family::Lease | Family::Meta), "{family:?} holds no tables of others");
    let reserved = family == Family::Meta && key.starts_with(layout::RESERVED_PREFIX);
    assert!(!reserved, "keys of meta that begin with mvcc/ belong to the keyspace");
}
