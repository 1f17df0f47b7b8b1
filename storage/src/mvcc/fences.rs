//! How many keys lie between fences, one fence per some hundred keys, so that counting a long range does not read it.
//! Made by the reads that count, kept up to date from history by the next ones; the writer knows nothing of it, and all
//! of it may be forgotten at any time.
//!
//! ```text
//!  count of [start, end) at R:   [gap: read)[known)[known)[known)[gap: read)     all at the table's revision T >= R
//!                                minus what history says was created between R and T, plus what was deleted
//! ```

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::layout::{self, Op, Record};
use super::range::{KeyRange, RangeEnd};
use super::revision::Revision;
use super::rewind::Source;
use super::{ReadError, read};
use crate::backend::{Direction, Family, Span};

/// Keys of an interval when it is made.
const KEYS_PER_FENCE: usize = 256;

/// An interval that has grown beyond so many times that is forgotten, to be made anew from what it then holds.
const GROWTH_MAX: i64 = 4;

/// Intervals in the table; when there are more, it begins anew. About 100 bytes each, and a key.
const INTERVALS_MAX: usize = 1 << 17;

/// Changes of history that are looked at to bring the table, or an answer, to another revision: about as long as it takes
/// to count as many keys.
const CHANGES_MAX: usize = 1 << 16;

/// Calls of `goes_on` are so many keys apart.
const KEYS_PER_QUESTION: i64 = 1024;

/// Asked now and then during a long count: whether anybody still wants to know.
pub type GoesOn<'a> = &'a mut dyn FnMut() -> bool;

/// What is known of live-key counts. Shared by readers only.
pub(super) struct Fences {
    table: Mutex<Table>,
    keys_per_fence: AtomicUsize,
}

/// Invariants: intervals do not overlap; each count is right at `revision`, which only grows.
#[derive(Default)]
struct Table {
    revision: i64,
    /// By first key.
    intervals: BTreeMap<Bytes, Interval>,
}

struct Interval {
    /// The first key behind it; none: it has no end.
    end: Option<Bytes>,
    count: i64,
}

/// What the table says of a range.
struct Known {
    revision: i64,
    count: i64,
    gaps: Vec<KeyRange>,
}

impl Default for Fences {
    fn default() -> Self {
        Self { table: Mutex::default(), keys_per_fence: AtomicUsize::new(KEYS_PER_FENCE) }
    }
}

impl Fences {
    /// For tests with few keys.
    pub(super) fn keys_per_fence(&self) -> usize {
        self.keys_per_fence.load(Ordering::Relaxed)
    }

    pub(super) fn set_keys_per_fence(&self, keys: usize) {
        self.keys_per_fence.store(keys.max(1), Ordering::Relaxed);
    }

    /// Number of keys of `range` at `revision`; none if `goes_on` says no before it is known. The caller has seen that
    /// `revision` can be read.
    pub(super) fn count(
        &self,
        source: &Source<'_>,
        range: &KeyRange,
        revision: i64,
        goes_on: GoesOn<'_>,
    ) -> Result<Option<i64>, ReadError> {
        let Some(known) = self.look(source, range, revision)? else {
            // Too far back: worth no fence.
            return Ok(self.scan(source, range, revision, goes_on)?.map(|(count, _)| count));
        };
        let mut count = known.count;
        let mut made = Vec::new();
        for gap in &known.gaps {
            let Some((inside, intervals)) = self.scan(source, gap, known.revision, goes_on)? else { return Ok(None) };
            count += inside;
            made.extend(intervals);
        }
        self.learn(source, known.revision, made)?;
        if known.revision > revision {
            let added = changes(source, revision, known.revision, &mut |key, change| {
                count -= if range.contains(key) { change } else { 0 };
            })?;
            if !added {
                return Ok(self.scan(source, range, revision, goes_on)?.map(|(count, _)| count));
            }
        }
        Ok(Some(count))
    }

    /// Brings the table to `revision` or leaves it where it is above that, and looks `range` up. None if it is too far
    /// above.
    fn look(&self, source: &Source<'_>, range: &KeyRange, revision: i64) -> Result<Option<Known>, ReadError> {
        let mut table = self.table.lock();
        if revision > table.revision {
            table.advance(source, revision, self.count_max())?;
        } else if table.revision - revision > CHANGES_MAX as i64 {
            return Ok(None);
        }
        Ok(Some(table.look(range)))
    }

    /// Takes over intervals that were counted at `revision`.
    fn learn(&self, source: &Source<'_>, revision: i64, made: Vec<(Bytes, Interval)>) -> Result<(), ReadError> {
        if made.is_empty() {
            return Ok(());
        }
        let mut new = Table { revision, intervals: made.into_iter().collect() };
        let mut table = self.table.lock();
        if table.revision > revision {
            new.advance(source, table.revision, self.count_max())?;
        }
        if table.intervals.len() + new.intervals.len() > INTERVALS_MAX {
            table.intervals.clear();
        }
        for (start, interval) in new.intervals {
            // Another reader may have been here first.
            if table.is_free(&start, interval.end.as_ref()) {
                table.intervals.insert(start, interval);
            }
        }
        Ok(())
    }

    /// Counts by reading; also returns the intervals that this gives, none for few keys.
    #[allow(clippy::type_complexity)]
    fn scan(
        &self,
        source: &Source<'_>,
        range: &KeyRange,
        revision: i64,
        goes_on: GoesOn<'_>,
    ) -> Result<Option<(i64, Vec<(Bytes, Interval)>)>, ReadError> {
        let per_fence = self.keys_per_fence.load(Ordering::Relaxed) as i64;
        let (mut count, mut went_on) = (0, true);
        let mut made: Vec<(Bytes, Interval)> = Vec::new();
        let mut start = range.start.clone();
        read::scan(source, range, Direction::Forward, revision, &mut |key, _| {
            if count > 0 && count % per_fence == 0 {
                let end = Bytes::copy_from_slice(key);
                made.push((std::mem::replace(&mut start, end.clone()), Interval { end: Some(end), count: per_fence }));
            }
            count += 1;
            went_on = count % KEYS_PER_QUESTION != 0 || goes_on();
            if went_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !went_on {
            return Ok(None);
        }
        if !made.is_empty() {
            let end = match &range.end {
                RangeEnd::Before(end) => Some(end.clone()),
                RangeEnd::Open => None,
                RangeEnd::Point => return Ok(Some((count, Vec::new()))),
            };
            let counted: i64 = made.iter().map(|(_, interval)| interval.count).sum();
            made.push((start, Interval { end, count: count - counted }));
        }
        Ok(Some((count, made)))
    }

    fn count_max(&self) -> i64 {
        self.keys_per_fence.load(Ordering::Relaxed) as i64 * GROWTH_MAX
    }
}

impl Table {
    /// Brings it to `revision`, or empties it if history does not lead there cheaply.
    fn advance(&mut self, source: &Source<'_>, revision: i64, count_max: i64) -> Result<(), ReadError> {
        let intervals = &mut self.intervals;
        let arrived = intervals.is_empty()
            || changes(source, self.revision, revision, &mut |key, change| {
                let found =
                    intervals.range_mut::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key)));
                let Some((_, interval)) = found.into_iter().next_back() else { return };
                if interval.end.as_ref().is_none_or(|end| key < &end[..]) {
                    interval.count += change;
                }
            })?;
        if !arrived {
            intervals.clear();
        }
        intervals.retain(|_, interval| interval.count <= count_max);
        self.revision = revision;
        Ok(())
    }

    fn look(&self, range: &KeyRange) -> Known {
        let end = match &range.end {
            RangeEnd::Before(end) => Some(end),
            RangeEnd::Open | RangeEnd::Point => None,
        };
        let (mut at, mut count, mut gaps) = (range.start.clone(), 0, Vec::new());
        for (start, interval) in self.intervals.range(range.start.clone()..) {
            let fits = match (&interval.end, end) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(inner), Some(end)) => inner <= end,
            };
            if !fits {
                break;
            }
            if at < *start {
                gaps.push(KeyRange { start: at, end: RangeEnd::Before(start.clone()) });
            }
            count += interval.count;
            match &interval.end {
                Some(inner) => at = inner.clone(),
                None => return Known { revision: self.revision, count, gaps },
            }
        }
        if end.is_none_or(|end| at < *end) {
            gaps.push(KeyRange { start: at, end: range.end.clone() });
        }
        Known { revision: self.revision, count, gaps }
    }

    /// Whether no interval has keys from `start` up to `end` (none: without end).
    fn is_free(&self, start: &Bytes, end: Option<&Bytes>) -> bool {
        let before = self.intervals.range(..=start.clone()).next_back();
        let follows = before.is_none_or(|(_, interval)| interval.end.as_ref().is_some_and(|inner| inner <= start));
        let next = self.intervals.range(start.clone()..).next();
        follows && next.is_none_or(|(next, _)| end.is_some_and(|end| end <= next))
    }
}

/// Calls `visit` with each key that was created (1) or deleted (-1) after `from` and up to `to`. False if there is more
/// history than is worth the while, or some of it is gone: then not all were visited.
fn changes(source: &Source<'_>, from: i64, to: i64, visit: &mut dyn FnMut(&[u8], i64)) -> Result<bool, ReadError> {
    if to - from > CHANGES_MAX as i64 {
        return Ok(false);
    }
    let [start, end] = [from + 1, to + 1].map(|main| layout::revision_key(Revision::first_of(main)));
    let span = Span { start: &start, end: Some(&end) };
    let mut cursor = source.shared.backend.iterate(Family::Log, span, Direction::Forward)?;
    for _ in 0..CHANGES_MAX {
        let Some((key, record)) = cursor.item() else {
            return Ok(source.shared.check_floor(from).is_ok());
        };
        let revision = layout::decode_revision_key(key).ok_or_else(|| source.undecodable("key of history", key))?;
        let undo = layout::decode_undo(revision, record);
        let undo = undo.ok_or_else(|| source.undecodable("undo record of", revision.to_string().as_bytes()))?;
        let was_live = matches!(undo.previous, Record::Live(..));
        match undo.op {
            Op::Put(_) if !was_live => visit(undo.key, 1),
            Op::Delete if was_live => visit(undo.key, -1),
            Op::Put(_) | Op::Delete => {}
        }
        cursor.advance()?;
    }
    Ok(false)
}
