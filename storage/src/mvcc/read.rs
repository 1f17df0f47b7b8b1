//! Reads at a revision. Never on the apply thread's way: a read takes no lock that the writer takes, and what the
//! writer lands meanwhile is undone key by key.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::event::KeyValue;
use super::fences::GoesOn;
use super::layout::Meta;
use super::range::{KeyRange, RangeOptions, RangeResult};
use super::rewind::Source;
use super::{ReadError, Shared};
use crate::backend::Direction;

/// Reads of the keyspace as it was at one revision. Cheap to make; holds nothing of the backend open.
///
/// The revision stays readable until its history is dropped, which follows a compaction above it: then reads answer
/// [`ReadError::Compacted`], also for a revision that was the current one when the transaction was opened. Who wants
/// the current one, whichever that is, reads with [`Keyspace::read_current`](super::Keyspace::read_current).
#[derive(Clone)]
pub struct ReadTxn {
    shared: Arc<Shared>,
    revision: i64,
}

/// A pair that is looked at in place.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct KvRef<'a> {
    /// As in [`KeyValue`], here and below.
    pub create_revision: i64,
    /// Last change.
    pub mod_revision: i64,
    /// Place of that change within its revision.
    pub sub: i64,
    /// Changes since creation.
    pub version: i64,
    /// Lease, or 0.
    pub lease: i64,
    /// The value.
    pub value: &'a [u8],
}

impl<'a> KvRef<'a> {
    fn new(meta: &Meta, value: &'a [u8]) -> Self {
        Self {
            create_revision: meta.create_revision,
            mod_revision: meta.modified.main,
            sub: meta.modified.sub,
            version: meta.version,
            lease: meta.lease,
            value,
        }
    }

    /// A copy that stands for itself.
    pub fn to_pair(&self, key: &[u8]) -> KeyValue {
        pair(Bytes::copy_from_slice(key), self, Bytes::copy_from_slice(self.value))
    }
}

impl ReadTxn {
    pub(super) fn new(shared: Arc<Shared>, revision: i64) -> Self {
        Self { shared, revision }
    }

    /// The revision that is read.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Whether history that this revision needs has been dropped since the transaction was opened: reads now answer
    /// [`ReadError::Compacted`], and only a transaction at a newer revision can do better.
    pub fn is_outrun(&self) -> bool {
        self.shared.check_floor(self.revision).is_err()
    }

    /// The pair of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, ReadError> {
        get(&self.source(), key, self.revision)
    }

    /// The pairs of `range`, as `options` ask for them.
    pub fn range(&self, range: &KeyRange, options: &RangeOptions) -> Result<RangeResult, ReadError> {
        read_range(&self.source(), range, options, self.revision)
    }

    /// Number of keys in `range`. Reads no more of it than its ends, unless its fences are not made yet.
    pub fn count(&self, range: &KeyRange) -> Result<i64, ReadError> {
        count(&self.source(), range, self.revision)
    }

    /// As [`ReadTxn::count`], but gives up, with none, when `goes_on` says so: it is asked every now and then.
    pub fn count_while(&self, range: &KeyRange, goes_on: GoesOn<'_>) -> Result<Option<i64>, ReadError> {
        count_while(&self.source(), range, self.revision, goes_on)
    }

    /// The number of keys in `range` if somebody has [noted](ReadTxn::note_count) it lately.
    pub fn known_count(&self, range: &KeyRange) -> Option<i64> {
        self.shared.fences.known(range, self.revision)
    }

    /// Remembers the number of keys in `range` for a while, for who reads on there at the same revision.
    pub fn note_count(&self, range: &KeyRange, count: i64) {
        self.shared.fences.note(range, self.revision, count);
    }

    /// Calls `visit` for each pair of `range` in key order until it breaks. What it was shown is right only if the
    /// call succeeds in the end.
    pub fn for_each(
        &self,
        range: &KeyRange,
        visit: &mut dyn FnMut(&[u8], KvRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        scan(&self.source(), range, Direction::Forward, self.revision, visit)
    }

    fn source(&self) -> Source<'_> {
        Source::new(&self.shared, None)
    }
}

/// The pair of `key` at `revision`.
pub(super) fn get(source: &Source<'_>, key: &[u8], revision: i64) -> Result<Option<KeyValue>, ReadError> {
    let mut newest = Vec::new();
    let mut found = None;
    if source.newest(key, &mut newest)? {
        let mut scratch = Vec::new();
        let state = source.at_revision(key, &newest, revision, &mut scratch)?;
        found = state.map(|(meta, value)| KvRef::new(&meta, value).to_pair(key));
    }
    source.shared.check_floor(revision)?;
    Ok(found)
}

/// The pairs of `range` at `revision`.
pub(super) fn read_range(
    source: &Source<'_>,
    range: &KeyRange,
    options: &RangeOptions,
    revision: i64,
) -> Result<RangeResult, ReadError> {
    if options.count_only {
        return Ok(RangeResult { count: count(source, range, revision)?, ..RangeResult::default() });
    }
    let mut result = RangeResult::default();
    let mut bytes = 0;
    let direction = if options.descending { Direction::Backward } else { Direction::Forward };
    scan(source, range, direction, revision, &mut |key, kv| {
        result.count += 1;
        if result.more || !options.admits(kv.create_revision, kv.mod_revision) {
            return ControlFlow::Continue(());
        }
        let value = if options.keys_only { &[] } else { kv.value };
        let size = key.len() + value.len();
        let full = options.limit > 0 && result.kvs.len() == options.limit;
        result.cut_by_bytes =
            !full && options.bytes_max > 0 && !result.kvs.is_empty() && bytes + size > options.bytes_max;
        result.more = full || result.cut_by_bytes;
        if !result.more {
            bytes += size;
            result.kvs.push(KvRef { value, ..kv }.to_pair(key));
        } else if options.without_count {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    Ok(result)
}

/// Number of keys of `range` at `revision`.
pub(super) fn count(source: &Source<'_>, range: &KeyRange, revision: i64) -> Result<i64, ReadError> {
    let never_gives_up = &mut || true;
    let count = count_while(source, range, revision, never_gives_up)?;
    Ok(count.expect("it went on to the end"))
}

fn count_while(
    source: &Source<'_>,
    range: &KeyRange,
    revision: i64,
    goes_on: GoesOn<'_>,
) -> Result<Option<i64>, ReadError> {
    let is_long = range.span().is_some_and(|span| !span.is_empty());
    // The writer sees changes that nobody else does.
    if is_long && source.overlay.is_none() {
        let count = source.shared.fences.count(source, range, revision, goes_on)?;
        source.shared.check_floor(revision)?;
        return Ok(count);
    }
    let mut count = 0;
    scan(source, range, Direction::Forward, revision, &mut |_, _| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(Some(count))
}

pub(super) fn scan(
    source: &Source<'_>,
    range: &KeyRange,
    direction: Direction,
    revision: i64,
    visit: &mut dyn FnMut(&[u8], KvRef<'_>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let mut scratch = Vec::new();
    source.newest_in(range, direction, &mut |key, record| {
        let state = source.at_revision(key, record, revision, &mut scratch)?;
        Ok(state.map_or(ControlFlow::Continue(()), |(meta, value)| visit(key, KvRef::new(&meta, value))))
    })?;
    // A stub that vanished on the way would have hidden a key that existed at `revision`.
    source.shared.check_floor(revision)
}

fn pair(key: Bytes, kv: &KvRef<'_>, value: Bytes) -> KeyValue {
    KeyValue {
        key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        lease: kv.lease,
        value,
    }
}
