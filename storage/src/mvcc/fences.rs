//! How many keys lie between fences, one fence per some hundred keys, so that counting a long range does not read it. Kept
//! up to date from what the writer notes of keys that come and go, and stored with every flush.
//!
//! ```text
//!  count of [start, end) at R:   [gap: read at R)[fence .. fence)[fence .. fence)[gap: read at R)
//!                                what lies between is right at the table's revision T; to it is added what came and
//!                                went between T and R (pending), or taken back what did between R and T (recent, history)
//! ```
//!
//! Counting changes nothing. Whoever tends the fences brings T along, cuts up what has grown, and makes a table where
//! there is none yet; until then counts read what they count. The writer neither waits nor looks.

mod feed;
mod known;
mod table;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::layout::{self, Op, Record};
use super::range::{KeyRange, RangeEnd};
use super::revision::Revision;
use super::rewind::Source;
use super::{ReadError, Shared, read};
use crate::backend::{Direction, Family, Span, WriteBatch};
use crate::error::Result;

pub(super) use feed::{Feed, Turnover, TurnoverMark};

use feed::KeyBatch;
use known::Known;
use table::{Fence, Table};

/// Keys of an interval when it is made.
const KEYS_PER_FENCE: usize = 256;

/// An interval with so many times that is cut up: reading one at each end of a range is what a count costs.
const GROWTH_MAX: i64 = 4;

/// Above so many fences they lie farther apart. About 100 bytes each, and a key.
const FENCES_MAX: i64 = 1 << 16;

/// Newest changes that stay apart from the table while keys come and go: who counts at a revision of a moment ago then
/// need not take anything back.
const PENDING_KEPT: usize = 1 << 11;

/// Changes that a count looks through at most before it brings the table along itself.
const PENDING_MAX: usize = 1 << 16;

/// The table is brought along in such pieces: so long another who counts may have to wait, some tens of microseconds.
const MERGE_PIECE: usize = 512;

/// Bytes of changes that are remembered once they are in the table, for counts at older revisions.
const RECENT_BYTES_MAX: usize = 2 << 20;

/// Changes of history that are looked at to take an answer back to an older revision: about as long as it takes to count
/// as many keys.
const CHANGES_MAX: usize = 1 << 16;

/// Changes of history that are looked at to bring a stored table along when the store is opened: a few tenths of a second.
const CHANGES_AT_OPEN_MAX: usize = 1 << 18;

/// Changes of history that are looked at where the feed has a gap; beyond it the table is made anew.
const CHANGES_IN_GAP_MAX: usize = 1 << 20;

/// Keys that are read when a store is opened: small ones without a table have one at once, and in others what has grown
/// since it was stored is cut up.
const READS_AT_OPEN: usize = 1 << 12;

/// Calls of `goes_on` are so many keys apart.
const KEYS_PER_QUESTION: i64 = 1024;

/// Asked now and then during a long count: whether anybody still wants to know.
pub type GoesOn<'a> = &'a mut dyn FnMut() -> bool;

/// What is known of live-key counts.
pub(super) struct Fences {
    feed: Feed,
    /// Held for moments only.
    state: Mutex<State>,
    /// Held by who changes the table; nobody else does. Taken before `state`.
    tending: Mutex<Tending>,
    known: Mutex<Known>,
    keys_per_fence: AtomicUsize,
    /// How often the table was found wrong and made anew. Anything but 0 is a defect.
    mended: AtomicU64,
}

/// Invariants: `recent_after <= revision <= reached`; every key that came or went up to `revision` is in the table, and
/// those from there to `reached` are in `pending`.
#[derive(Default)]
struct State {
    /// None: not made yet.
    table: Option<Table>,
    revision: i64,
    /// Behind the table, in order.
    pending: VecDeque<KeyBatch>,
    pending_changes: usize,
    reached: i64,
    /// What comes behind a gap that the feed has left.
    behind_gap: Option<KeyBatch>,
    /// In the table already: all that came or went after `recent_after`, in order.
    recent: VecDeque<KeyBatch>,
    recent_bytes: usize,
    recent_after: i64,
}

/// What there is to do, for who tends.
#[derive(Default)]
struct Tending {
    /// The beginning of a table that is being made.
    begun: Option<Begun>,
    /// Intervals may have become too large.
    has_grown: bool,
    /// Or too small.
    has_shrunk: bool,
    /// What the stored table is right at.
    stored: i64,
}

struct Begun {
    revision: i64,
    fences: Vec<Fence>,
    /// Keys in them.
    count: i64,
    /// What has not been read yet begins here.
    next: Bytes,
}

impl Begun {
    fn at(revision: i64) -> Self {
        Self { revision, fences: Vec::new(), count: 0, next: Bytes::new() }
    }
}

/// The part of a count that is in memory.
struct Looked {
    count: i64,
    /// To be read.
    gaps: Vec<KeyRange>,
    /// History after the revision and up to this one has to be taken back, within that range.
    newer: Option<(i64, KeyRange)>,
}

/// What reading a stretch found: fences with the keys up to the next, and where it ended early.
struct Sections {
    fences: Vec<Fence>,
    next: Option<Bytes>,
}

impl Default for Fences {
    fn default() -> Self {
        Self {
            feed: Feed::default(),
            state: Mutex::default(),
            tending: Mutex::default(),
            known: Mutex::default(),
            keys_per_fence: AtomicUsize::new(KEYS_PER_FENCE),
            mended: AtomicU64::new(0),
        }
    }
}

impl Fences {
    /// For tests with few keys.
    pub fn keys_per_fence(&self) -> usize {
        self.keys_per_fence.load(Ordering::Relaxed)
    }

    pub fn set_keys_per_fence(&self, keys: usize) {
        self.keys_per_fence.store(keys.max(1), Ordering::Relaxed);
        self.tending.lock().has_grown = true;
    }

    /// Where the writer tells of keys that come and go.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// A count that somebody has noted.
    pub fn known(&self, range: &KeyRange, revision: i64) -> Option<i64> {
        self.known.lock().get(revision, range)
    }

    /// Remembers a count for a while: at one revision it never changes.
    pub fn note(&self, range: &KeyRange, revision: i64, count: i64) {
        self.known.lock().note(revision, range, count);
    }

    pub fn mended(&self) -> u64 {
        self.mended.load(Ordering::Relaxed)
    }

    /// At the start of `shared`, at its current revision and before its writer begins: takes over what is stored, or makes
    /// a table of few keys.
    pub fn open(&self, shared: &Shared, current: i64) -> Result<()> {
        self.feed.begin(current);
        let source = Source::passing(shared);
        let mut tending = self.tending.lock();
        let (table, stored) = stored(&source, current, self.distance(0) as i64)?;
        (tending.stored, tending.has_grown) = (stored, true);
        let is_there = table.is_some();
        *self.state.lock() = State { table, ..State::at(current) };
        match is_there {
            true => self.split(&source, &mut tending, READS_AT_OPEN)?,
            false => self.make(&source, &mut tending, READS_AT_OPEN)?,
        };
        Ok(())
    }

    /// Number of keys of `range` at `revision`; none if `goes_on` says no before it is known. The caller has seen that
    /// `revision` can be read.
    pub fn count(
        &self,
        source: &Source<'_>,
        range: &KeyRange,
        revision: i64,
        goes_on: GoesOn<'_>,
    ) -> std::result::Result<Option<i64>, ReadError> {
        let Some(looked) = self.look(range, revision) else { return scan(source, range, revision, goes_on) };
        let mut count = looked.count;
        if let Some((newer, covered)) = looked.newer {
            let taken_back = changes(source, revision, newer, CHANGES_MAX, &mut |_, key, change| {
                count -= if covered.contains(key) { change } else { 0 };
            })?;
            if !taken_back {
                return scan(source, range, revision, goes_on);
            }
        }
        for gap in &looked.gaps {
            let Some(inside) = scan(source, gap, revision, goes_on)? else { return Ok(None) };
            count += inside;
        }
        Ok(Some(count))
    }

    /// What the table says of `range` at `revision`; none if it does not know.
    fn look(&self, range: &KeyRange, revision: i64) -> Option<Looked> {
        // Loaded first: what was pushed until then is found below, or was left out.
        let last = self.feed.last();
        let mut state = self.state.lock();
        state.table.as_ref()?;
        state.drain(&self.feed);
        if state.pending_changes > PENDING_MAX {
            drop(state);
            if let Some(mut tending) = self.tending.try_lock() {
                self.merge(&mut tending, PENDING_KEPT);
            }
            state = self.state.lock();
        }
        if state.reached < last && revision > state.reached {
            return None;
        }
        state.look(range, revision)
    }

    /// Brings the fences along, as far as reading `reads_max` keys goes. Whether there is more to do.
    pub fn tend(&self, shared: &Shared, reads_max: usize) -> Result<bool> {
        let source = Source::passing(shared);
        let Some(mut tending) = self.tending.try_lock() else { return Ok(false) };
        if self.state.lock().table.is_none() {
            return self.make(&source, &mut tending, reads_max);
        }
        self.close_gap(&source)?;
        let kept = if self.is_quiet() { 0 } else { PENDING_KEPT };
        self.merge(&mut tending, kept);
        if std::mem::take(&mut tending.has_shrunk) {
            self.join();
        }
        self.split(&source, &mut tending, reads_max)
    }

    /// Writes the table down, to become durable with the next flush.
    pub fn store(&self, shared: &Shared) -> Result<()> {
        let mut tending = self.tending.lock();
        if self.state.lock().table.is_none() {
            return Ok(());
        }
        self.close_gap(&Source::passing(shared))?;
        self.merge(&mut tending, 0);
        let mut state = self.state.lock();
        state.settle(&self.feed, shared.current_revision.load(Ordering::Acquire));
        let (revision, Some(table)) = (state.revision, &state.table) else { return Ok(()) };
        if revision == tending.stored {
            return Ok(());
        }
        let bytes = table.encode(revision);
        drop(state);
        // What it is right at was written before it: a crash never leaves it ahead of the state.
        let mut batch = WriteBatch::default();
        batch.put(Family::Meta, layout::FENCES_KEY, &bytes);
        shared.backend.write(&mut batch)?;
        tending.stored = revision;
        Ok(())
    }

    /// Whether a crash now would leave a table that history no longer leads on from, if it is dropped below `floor`.
    pub fn would_be_lost(&self, shared: &Shared, floor: i64) -> Result<bool> {
        let mut bytes = Vec::new();
        let durable = match shared.backend.get_durable(Family::Meta, layout::FENCES_KEY, &mut bytes)? {
            true => Table::decode(&bytes).map_or(0, |(at, _)| at),
            false => 0,
        };
        Ok(durable < floor && self.state.lock().table.is_some())
    }

    /// Goes on with a table that is being made, or begins one. Whether there is more to do.
    fn make(&self, source: &Source<'_>, tending: &mut Tending, reads_max: usize) -> Result<bool> {
        let now = source.shared.current_revision.load(Ordering::Acquire);
        let begun = tending.begun.get_or_insert_with(|| Begun::at(now));
        let rest = KeyRange { start: begun.next.clone(), end: RangeEnd::Open };
        let per_fence = self.distance(begun.count);
        let Some(read) = unless_compacted(sections(source, &rest, begun.revision, per_fence, reads_max))? else {
            // Begins anew at a newer revision.
            tending.begun = None;
            return Ok(true);
        };
        begun.count += read.fences.iter().map(|fence| fence.count).sum::<i64>();
        begun.fences.extend(read.fences);
        if let Some(next) = read.next {
            begun.next = next;
            return Ok(true);
        }
        let Some(made) = tending.begun.take() else { return Ok(false) };
        let mut state = self.state.lock();
        let table = Some(Table::of(made.fences));
        *state = State { table, ..State::at(made.revision) };
        tending.has_grown = true;
        Ok(true)
    }

    /// Looks up in history what the feed has left out.
    fn close_gap(&self, source: &Source<'_>) -> Result<()> {
        let published = source.shared.current_revision.load(Ordering::Acquire);
        let last = self.feed.last();
        let (after, to) = {
            let mut state = self.state.lock();
            state.drain(&self.feed);
            if state.reached >= last && state.behind_gap.is_none() {
                return Ok(());
            }
            (state.reached, state.behind_gap.as_ref().map_or(published, |batch| batch.after))
        };
        if to <= after {
            // Left out, but not published: later.
            return Ok(());
        }
        let closed = KeyBatch::of_history(after, to, |note| changes(source, after, to, CHANGES_IN_GAP_MAX, note));
        let closed = unless_compacted(closed)?.flatten();
        let mut state = self.state.lock();
        match closed {
            Some(batch) => state.close_gap(batch),
            None => *state = State::default(),
        }
        Ok(())
    }

    /// Takes pending changes into the table until no more than `kept` are left.
    fn merge(&self, tending: &mut Tending, kept: usize) {
        loop {
            let mut state = self.state.lock();
            state.drain(&self.feed);
            let per_fence = self.distance(state.keys()) as i64;
            let grown = state.merge_some(kept, per_fence, tending);
            if !grown {
                return;
            }
        }
    }

    /// Whether no key has come or gone lately.
    fn is_quiet(&self) -> bool {
        let mut state = self.state.lock();
        let before = state.reached;
        state.drain(&self.feed);
        before == state.reached
    }

    fn join(&self) {
        let mut state = self.state.lock();
        let Some(table) = &mut state.table else { return };
        let (total, per_fence) = (table.total(), self.distance(table.total()) as i64);
        if table.len() as i64 > 2 * (total / per_fence + 1) {
            table.join(per_fence);
        }
    }

    /// Cuts up what has grown too large, the largest first. Whether there is more of it.
    fn split(&self, source: &Source<'_>, tending: &mut Tending, reads_max: usize) -> Result<bool> {
        let mut left = reads_max;
        while tending.has_grown {
            let (revision, interval, count, per_fence) = {
                let mut state = self.state.lock();
                state.settle(&self.feed, source.shared.current_revision.load(Ordering::Acquire));
                let Some(table) = &state.table else { return Ok(true) };
                let ((interval, count), per_fence) = (table.largest(), self.distance(table.total()));
                (state.revision, interval, count, per_fence)
            };
            if count <= per_fence as i64 * GROWTH_MAX {
                tending.has_grown = false;
                return Ok(false);
            }
            if left == 0 {
                return Ok(true);
            }
            let reads = left.max(2 * per_fence);
            let Some(read) = unless_compacted(sections(source, &interval, revision, per_fence, reads))? else {
                // The table is older than what can be read: on to what is pending.
                self.merge(tending, 0);
                return Ok(true);
            };
            let counted: i64 = read.fences.iter().map(|fence| fence.count).sum();
            left = left.saturating_sub(counted.max(1) as usize);
            let mut state = self.state.lock();
            if read.next.is_none() && counted != count {
                tracing::error!(counted, count, "the fences of the keyspace were wrong and are made anew");
                self.mended.fetch_add(1, Ordering::Relaxed);
                *state = State::default();
                return Ok(true);
            }
            let mut fences = read.fences;
            fences.extend(read.next.map(|start| Fence::new(start, 0)));
            if let Some(table) = &mut state.table {
                table.split(fences);
            }
        }
        Ok(false)
    }

    /// How many keys lie between fences, of so many.
    fn distance(&self, keys: i64) -> usize {
        self.keys_per_fence.load(Ordering::Relaxed).max((keys / FENCES_MAX) as usize)
    }
}

impl State {
    fn at(revision: i64) -> Self {
        Self { revision, reached: revision, recent_after: revision, ..Self::default() }
    }

    /// Takes over what the feed has, up to a gap.
    fn drain(&mut self, feed: &Feed) {
        while self.behind_gap.is_none()
            && let Some(batch) = feed.pop()
        {
            if batch.last <= self.reached {
                // Known already, from records or from history.
                continue;
            }
            match batch.after > self.reached {
                true => self.behind_gap = Some(batch),
                false => self.push(batch),
            }
        }
    }

    /// Keys in the table.
    fn keys(&self) -> i64 {
        self.table.as_ref().map_or(0, Table::total)
    }

    fn push(&mut self, batch: KeyBatch) {
        self.reached = batch.last;
        self.pending_changes += batch.len();
        self.pending.push_back(batch);
    }

    /// Takes over what history says of a gap, and what was behind it.
    fn close_gap(&mut self, batch: KeyBatch) {
        self.push(batch);
        match self.behind_gap.take() {
            Some(batch) if batch.last > self.reached => self.push(batch),
            _ => {}
        }
    }

    /// Takes a piece of what is pending into the table; false if no more than `kept` is left.
    fn merge_some(&mut self, kept: usize, per_fence: i64, tending: &mut Tending) -> bool {
        let Some(table) = &mut self.table else { return false };
        let mut merged = 0;
        while (self.pending_changes > kept || kept == 0) && merged < MERGE_PIECE {
            let Some(batch) = self.pending.pop_front() else { break };
            for (_, key, change) in batch.changes() {
                table.add(key, change, per_fence);
                tending.has_grown |= change > 0;
                tending.has_shrunk |= change < 0;
            }
            merged += batch.len().max(1);
            self.pending_changes -= batch.len();
            self.revision = batch.last;
            self.recent_bytes += batch.bytes();
            self.recent.push_back(batch);
        }
        while self.recent_bytes > RECENT_BYTES_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_bytes -= oldest.bytes();
            self.recent_after = oldest.last;
        }
        merged > 0
    }

    /// Nothing is pending and nothing left out: then the table is right at `published` as well.
    fn settle(&mut self, feed: &Feed, published: i64) {
        let last = feed.last();
        self.drain(feed);
        if self.pending.is_empty() && self.behind_gap.is_none() && last <= self.reached && published > self.revision {
            (self.revision, self.reached) = (published, self.reached.max(published));
        }
    }

    fn look(&self, range: &KeyRange, revision: i64) -> Option<Looked> {
        let Some(inside) = self.table.as_ref()?.inside(range) else {
            return Some(Looked { count: 0, gaps: vec![range.clone()], newer: None });
        };
        let (mut count, mut newer, covered) = (inside.count, None, inside.covered);
        if revision >= self.revision {
            for batch in self.pending.iter().take_while(|batch| batch.after < revision) {
                let until = batch.changes().take_while(|(at, _, _)| *at <= revision);
                count += until.filter(|(_, key, _)| covered.contains(key)).map(|(_, _, change)| change).sum::<i64>();
            }
        } else if revision >= self.recent_after {
            for batch in self.recent.iter().rev().take_while(|batch| batch.last > revision) {
                let since = batch.changes().filter(|(at, _, _)| *at > revision);
                count -= since.filter(|(_, key, _)| covered.contains(key)).map(|(_, _, change)| change).sum::<i64>();
            }
        } else {
            newer = Some((self.revision, covered));
        }
        Some(Looked { count, gaps: inside.gaps, newer })
    }
}

/// The table that was stored, at the current revision, and what revision it was stored at. None if there is none, or if
/// it costs less to make one.
fn stored(source: &Source<'_>, current: i64, per_fence: i64) -> Result<(Option<Table>, i64)> {
    let mut bytes = Vec::new();
    if !source.shared.backend.get(Family::Meta, layout::FENCES_KEY, &mut bytes)? {
        return Ok((None, 0));
    }
    let Some((at, mut table)) = Table::decode(&bytes).filter(|(at, _)| *at <= current) else {
        tracing::warn!("the stored fences are not of this version; they are made anew");
        return Ok((None, 0));
    };
    let mut bring = |_, key: &[u8], change| table.add(key, change, per_fence);
    let brought = unless_compacted(changes(source, at, current, CHANGES_AT_OPEN_MAX, &mut bring))?;
    Ok(if brought == Some(true) { (Some(table), at) } else { (None, 0) })
}

/// Counts by reading.
fn scan(
    source: &Source<'_>,
    range: &KeyRange,
    revision: i64,
    goes_on: GoesOn<'_>,
) -> std::result::Result<Option<i64>, ReadError> {
    let (mut count, mut went_on) = (0, true);
    read::scan(source, range, Direction::Forward, revision, &mut |_, _| {
        count += 1;
        went_on = count % KEYS_PER_QUESTION != 0 || goes_on();
        if went_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(went_on.then_some(count))
}

/// Fences `per_fence` keys apart, from the beginning of `range` on, out of about `reads_max` keys at most.
fn sections(
    source: &Source<'_>,
    range: &KeyRange,
    revision: i64,
    per_fence: usize,
    reads_max: usize,
) -> std::result::Result<Sections, ReadError> {
    let mut fences = vec![Fence::new(range.start.clone(), 0)];
    let (mut reads, mut next, mut last) = (0, None, Vec::new());
    read::scan(source, range, Direction::Forward, revision, &mut |key, _| {
        let section = fences.last_mut().expect("there is a first one");
        if section.count < per_fence as i64 {
            section.count += 1;
        } else if reads >= reads_max {
            next = Some(Bytes::copy_from_slice(key));
            return ControlFlow::Break(());
        } else {
            fences.push(Fence::new(Bytes::copy_from_slice(key), 1));
        }
        reads += 1;
        last.clear();
        last.extend_from_slice(key);
        ControlFlow::Continue(())
    })?;
    if next.is_none() && !last.is_empty() {
        fences.last_mut().expect("there is a first one").bound = Some(last.into());
    }
    Ok(Sections { fences, next })
}

/// Calls `visit` with revision and key of each key that came (1) or went (-1) after `from` and up to `to`. False if there
/// is more history than `changes_max`, or some of it is gone: then not all were visited.
fn changes(
    source: &Source<'_>,
    from: i64,
    to: i64,
    changes_max: usize,
    visit: &mut dyn FnMut(i64, &[u8], i64),
) -> std::result::Result<bool, ReadError> {
    if to - from > changes_max as i64 {
        return Ok(false);
    }
    let [start, end] = [from + 1, to + 1].map(|main| layout::revision_key(Revision::first_of(main)));
    let span = Span { start: &start, end: Some(&end) };
    let mut cursor = source.shared.backend.iterate_once(Family::Log, span, Direction::Forward)?;
    for _ in 0..=changes_max {
        let Some((key, record)) = cursor.item() else {
            return Ok(source.shared.check_floor(from).is_ok());
        };
        let revision = layout::decode_revision_key(key).ok_or_else(|| source.undecodable("key of history", key))?;
        let undo = layout::decode_undo(revision, record);
        let undo = undo.ok_or_else(|| source.undecodable("undo record of", revision.to_string().as_bytes()))?;
        let was_live = matches!(undo.previous, Record::Live(..));
        match undo.op {
            Op::Put(_) if !was_live => visit(revision.main, undo.key, 1),
            Op::Delete if was_live => visit(revision.main, undo.key, -1),
            Op::Put(_) | Op::Delete => {}
        }
        cursor.advance()?;
    }
    Ok(false)
}

/// None for what is compacted meanwhile: whoever tends tries again at a newer revision.
fn unless_compacted<T>(result: std::result::Result<T, ReadError>) -> Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(ReadError::Storage(error)) => Err(error),
        Err(ReadError::Compacted | ReadError::Future) => Ok(None),
    }
}
