//! What the writer knows without asking the backend: the write batch in progress, and the latest records of keys
//! that are changed again and again. Both belong to the apply thread; readers see neither.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hash};
use std::mem;

use bytes::Bytes;
use hashbrown::{HashMap, HashTable};
use rustc_hash::FxBuildHasher;

use super::fences::{Turnover, TurnoverMark};
use super::layout;
use super::range::{KeyRange, RangeEnd};
use super::revision::Revision;
use crate::backend::{Family, Mark, ValueRef, WriteBatch};

/// Room for so many keys is kept from batch to batch.
const KEPT_MAX: usize = 1 << 14;

/// The write batch in progress, made readable. Exact keys are found by hash; an order of keys exists only once a
/// range is read within the batch, so that a plain put does not pay for it.
#[derive(Default)]
pub(super) struct Overlay {
    pub batch: WriteBatch,
    newest: HashMap<Bytes, Newest, FxBuildHasher>,
    /// Ascending.
    undo: Vec<(Revision, ValueRef)>,
    /// Keys that `newest` holds or has held; together complete.
    ordered: BTreeSet<Bytes>,
    unordered: Vec<Bytes>,
    /// None is a deletion.
    tables: BTreeMap<(Family, Vec<u8>), Option<ValueRef>>,
    /// What the transaction in progress has replaced in `newest`, in order.
    replaced: Vec<(Bytes, Option<Newest>)>,
    /// Keys that came and went.
    pub turnover: Turnover,
}

#[derive(Copy, Clone)]
struct Newest {
    at: ValueRef,
    /// Whether the key had a record before this batch: then it is changed repeatedly, and worth caching.
    repeated: bool,
}

/// How far the batch was when a transaction began.
#[derive(Copy, Clone)]
pub(super) struct TxnMark {
    batch: Mark,
    undo: usize,
    turnover: TurnoverMark,
}

impl Overlay {
    pub fn begin(&mut self) -> TxnMark {
        self.replaced.clear();
        TxnMark { batch: self.batch.mark(), undo: self.undo.len(), turnover: self.turnover.mark() }
    }

    /// Takes back everything since `mark`. What remains in the order of keys is only a hint where to look.
    pub fn abort(&mut self, mark: TxnMark) {
        while let Some((key, before)) = self.replaced.pop() {
            match before {
                Some(before) => self.newest.insert(key, before),
                None => self.newest.remove(&key),
            };
        }
        self.undo.truncate(mark.undo);
        self.turnover.cut(mark.turnover);
        self.batch.cut(mark.batch);
    }

    /// Adds a change of `key`: its new record and its undo record.
    pub fn change(&mut self, key: &Bytes, revision: Revision, record: &[u8], undo: &[u8], repeated: bool) {
        let at = self.batch.put(Family::Cur, key, record);
        let before = self.newest.insert(key.clone(), Newest { at, repeated });
        match before {
            // Whether the key is older than the batch is not changed by a second change within it.
            Some(before) => self.newest.get_mut(key).expect("just inserted").repeated = before.repeated,
            None => self.unordered.push(key.clone()),
        }
        self.replaced.push((key.clone(), before));
        let at = self.batch.put(Family::Log, &layout::revision_key(revision), undo);
        self.undo.push((revision, at));
    }

    pub fn newest(&self, key: &[u8]) -> Option<&[u8]> {
        self.newest.get(key).map(|newest| self.batch.value(newest.at))
    }

    pub fn undo(&self, revision: Revision) -> Option<&[u8]> {
        let place = self.undo.binary_search_by_key(&revision, |(revision, _)| *revision).ok()?;
        Some(self.batch.value(self.undo[place].1))
    }

    /// Must be called before a range is read.
    pub fn order(&mut self) {
        self.ordered.extend(self.unordered.drain(..));
    }

    /// Keys of `range` with a record in the batch, in order. [`Overlay::order`] must have been called before.
    pub fn keys_in<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = &'a Bytes> {
        assert!(self.unordered.is_empty(), "the keys are ordered before a range of them is read");
        let from = self.ordered.range(range.start.clone()..);
        let inside = from.take_while(move |key| match &range.end {
            RangeEnd::Point => **key == range.start,
            RangeEnd::Before(end) => *key < end,
            RangeEnd::Open => true,
        });
        inside.filter(|key| self.newest.contains_key(*key))
    }

    /// The same keys with their records.
    pub fn newest_in<'a>(&'a self, range: &'a KeyRange) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
        self.keys_in(range).map(|key| (&key[..], self.newest(key))).collect()
    }

    pub fn table_change(&mut self, family: Family, key: &[u8], value: Option<&[u8]>) {
        let at = match value {
            Some(value) => Some(self.batch.put(family, key, value)),
            None => {
                self.batch.delete(family, key);
                None
            }
        };
        self.tables.insert((family, key.to_vec()), at);
    }

    /// None if the batch does not touch the row; the inner one if it deletes it.
    pub fn table_row(&self, family: Family, key: &[u8]) -> Option<Option<&[u8]>> {
        if self.tables.is_empty() {
            return None;
        }
        let at = self.tables.get(&(family, key.to_vec()))?;
        Some(at.map(|at| self.batch.value(at)))
    }

    pub fn table_rows(&self, family: Family, start: &[u8], end: Option<&[u8]>) -> Vec<(&[u8], Option<&[u8]>)> {
        let from = self.tables.range((family, start.to_vec())..);
        let inside = from.take_while(|((of, key), _)| *of == family && end.is_none_or(|end| &key[..] < end));
        inside.map(|((_, key), at)| (&key[..], at.map(|at| self.batch.value(at)))).collect()
    }

    /// Hands what is worth it to the cache and forgets all that is known of the batch, which itself is left to be
    /// written. Room that an unusually large one has taken is given back.
    pub fn finish(&mut self, cache: &mut Cache) {
        for (key, newest) in self.newest.drain() {
            if newest.repeated {
                cache.insert(&key, self.batch.value(newest.at));
            }
        }
        self.newest.shrink_to(KEPT_MAX);
        self.undo.clear();
        self.undo.shrink_to(KEPT_MAX);
        self.ordered.clear();
        self.unordered.clear();
        self.unordered.shrink_to(KEPT_MAX);
        self.tables.clear();
        self.replaced.clear();
        self.replaced.shrink_to(KEPT_MAX);
    }
}

/// Latest records of keys that were changed more than once, within a byte bound. Second chance: the hand passes over
/// an entry that was used since its last visit. New keys never enter, so that a stream of them does not sweep out
/// what is hot.
///
/// Invariant: a record here is the newest in the backend, or both are a stub that the backend may have forgotten.
pub(super) struct Cache {
    places: HashTable<u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    hand: usize,
    bytes: usize,
    bytes_max: usize,
}

struct Entry {
    key: Bytes,
    record: Bytes,
    used: bool,
}

impl Entry {
    /// Allocations, the slot and the place in the table beside the bytes themselves.
    const OVERHEAD_BYTES: usize = 128;

    fn charge(&self) -> usize {
        self.key.len() + self.record.len() + Self::OVERHEAD_BYTES
    }
}

impl Cache {
    pub fn new(bytes_max: usize) -> Self {
        Self { places: HashTable::new(), entries: Vec::new(), free: Vec::new(), hand: 0, bytes: 0, bytes_max }
    }

    pub fn get(&mut self, key: &[u8]) -> Option<&Bytes> {
        let place = self.place(key)?;
        let entry = self.entries[place].as_mut()?;
        entry.used = true;
        Some(&entry.record)
    }

    pub fn has(&self, key: &[u8]) -> bool {
        self.place(key).is_some()
    }

    pub fn insert(&mut self, key: &[u8], record: &[u8]) {
        // Copies, because the given bytes are slices of far larger buffers.
        let record = Bytes::copy_from_slice(record);
        if let Some(entry) = self.place(key).and_then(|place| self.entries[place].as_mut()) {
            self.bytes -= entry.charge();
            entry.record = record;
            self.bytes += entry.charge();
        } else {
            let entry = Entry { key: Bytes::copy_from_slice(key), record, used: false };
            self.bytes += entry.charge();
            let place = self.free.pop().unwrap_or_else(|| {
                self.entries.push(None);
                (self.entries.len() - 1) as u32
            });
            self.entries[place as usize] = Some(entry);
            let entries = &self.entries;
            self.places.insert_unique(hash(key), place, |place| hash(&entries[*place as usize].as_ref().unwrap().key));
        }
        while self.bytes > self.bytes_max {
            self.turn();
        }
    }

    fn place(&self, key: &[u8]) -> Option<usize> {
        let is_it = |place: &u32| self.entries[*place as usize].as_ref().is_some_and(|entry| entry.key == key);
        self.places.find(hash(key), is_it).map(|place| *place as usize)
    }

    /// Moves the hand over one entry.
    fn turn(&mut self) {
        let place = self.hand;
        self.hand = (place + 1) % self.entries.len();
        let Some(entry) = &mut self.entries[place] else { return };
        if mem::take(&mut entry.used) {
            return;
        }
        self.bytes -= entry.charge();
        if let Ok(found) = self.places.find_entry(hash(&entry.key), |other| *other as usize == place) {
            found.remove();
        }
        self.entries[place] = None;
        self.free.push(place as u32);
    }
}

fn hash<T: Hash + ?Sized>(key: &T) -> u64 {
    FxBuildHasher.hash_one(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_keeps_what_is_used_within_its_bound() {
        let mut cache = Cache::new(100 * (Entry::OVERHEAD_BYTES + 12));
        for n in 0..10_000u32 {
            cache.insert(&n.to_be_bytes(), b"recorded");
            assert!(cache.bytes <= cache.bytes_max);
            cache.insert(b"hot0", &n.to_be_bytes());
            assert_eq!(cache.get(b"hot0").map(|record| &record[..]), Some(&n.to_be_bytes()[..]));
        }
        let kept = cache.entries.iter().flatten().count();
        assert!(kept == cache.places.len() && (90..=101).contains(&kept), "{kept}");
        assert_eq!(cache.get(&9_999u32.to_be_bytes()).map(|record| &record[..]), Some(&b"recorded"[..]));
        assert_eq!(cache.get(&0u32.to_be_bytes()), None);
    }

    #[test]
    fn abort_restores_the_batch() {
        let mut overlay = Overlay::default();
        let key = Bytes::from_static(b"k");
        overlay.begin();
        overlay.change(&key, Revision::first_of(2), b"one", b"undo", false);
        let mark = overlay.begin();
        overlay.change(&key, Revision::first_of(3), b"two", b"undo", true);
        overlay.change(&Bytes::from_static(b"l"), Revision { main: 3, sub: 1 }, b"two", b"undo", true);
        overlay.abort(mark);
        overlay.order();
        assert_eq!(overlay.newest_in(&KeyRange::all()), [(&b"k"[..], Some(&b"one"[..]))]);
        assert_eq!((overlay.batch.len(), overlay.undo(Revision::first_of(3))), (2, None));
    }
}
