//! What the writer knows without asking the backend: the write batch in progress, and the latest records of keys
//! that are changed again and again. Both belong to the apply thread; readers see neither.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hash};
use std::mem;

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Found;
use rustc_hash::FxBuildHasher;

use super::fences::{Turnover, TurnoverMark};
use super::layout;
use super::range::{KeyRange, RangeEnd};
use super::revision::Revision;
use crate::backend::{Family, Mark, ValueRef, WriteBatch};

/// Room for so many keys is kept from batch to batch.
const KEPT_MAX: usize = 1 << 14;

/// And for so many bytes of them.
const KEPT_BYTES_MAX: usize = 64 * KEPT_MAX;

/// Keys, copied one behind the other: that costs less than to hold on to each of them, and they are found near together.
#[derive(Default)]
pub(super) struct Keys {
    bytes: Vec<u8>,
}

/// Where a key is.
#[derive(Copy, Clone)]
pub(super) struct KeyRef {
    start: usize,
    len: u32,
}

impl Keys {
    pub fn push(&mut self, key: &[u8]) -> KeyRef {
        let len = u32::try_from(key.len()).expect("keys are far below 4 GiB");
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        KeyRef { start, len }
    }

    pub fn get(&self, at: KeyRef) -> &[u8] {
        &self.bytes[at.start..][..at.len as usize]
    }

    /// Forgets `at` and what was pushed after it.
    fn cut(&mut self, at: KeyRef) {
        self.bytes.truncate(at.start);
    }

    /// Forgets them all. Room that unusually many have taken is given back.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
    }
}

/// The write batch in progress, made readable. Exact keys are found by hash; an order of keys exists only once a
/// range is read within the batch, so that a plain put does not pay for it.
#[derive(Default)]
pub(super) struct Overlay {
    pub batch: WriteBatch,
    keys: Keys,
    /// In the order in which the keys were first changed.
    newest: Vec<Newest>,
    /// Places in `newest`, by key.
    places: HashTable<u32>,
    /// Ascending.
    undo: Vec<(Revision, ValueRef)>,
    /// The keys of the first so many of `newest`, and perhaps some that it has held.
    ordered: BTreeSet<Bytes>,
    ordered_count: usize,
    /// None is a deletion.
    tables: BTreeMap<(Family, Vec<u8>), Option<ValueRef>>,
    /// Places in `newest` that the transaction in progress has changed, in order, with the record that was there before;
    /// none where it has added the place.
    replaced: Vec<(u32, Option<ValueRef>)>,
    /// Keys that came and went.
    pub turnover: Turnover,
}

#[derive(Copy, Clone)]
struct Newest {
    key: KeyRef,
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
        while let Some((place, before)) = self.replaced.pop() {
            match before {
                Some(before) => self.newest[place as usize].at = before,
                None => self.forget_last(place),
            }
        }
        self.ordered_count = self.ordered_count.min(self.newest.len());
        self.undo.truncate(mark.undo);
        self.turnover.cut(mark.turnover);
        self.batch.cut(mark.batch);
    }

    /// Forgets the key that was added last, which has that place.
    fn forget_last(&mut self, place: u32) {
        let last = self.newest.pop().expect("what was added is there");
        debug_assert_eq!(self.newest.len(), place as usize);
        if let Ok(found) = self.places.find_entry(hash(self.keys.get(last.key)), |other| *other == place) {
            found.remove();
        }
        self.keys.cut(last.key);
    }

    /// Adds a change of `key`: its new record and its undo record.
    pub fn change(&mut self, key: &[u8], revision: Revision, record: &[u8], undo: &[u8], repeated: bool) {
        let at = self.batch.put(Family::Cur, key, record);
        let (keys, newest) = (&mut self.keys, &mut self.newest);
        let is_it = |place: &u32| keys.get(newest[*place as usize].key) == key;
        let rehash = |place: &u32| hash(keys.get(newest[*place as usize].key));
        match self.places.entry(hash(key), is_it, rehash) {
            // Whether the key is older than the batch is not changed by a second change within it.
            Found::Occupied(place) => {
                let before = mem::replace(&mut newest[*place.get() as usize].at, at);
                self.replaced.push((*place.get(), Some(before)));
            }
            Found::Vacant(room) => {
                let place = u32::try_from(newest.len()).expect("a batch has far fewer keys than 2^32");
                room.insert(place);
                newest.push(Newest { key: keys.push(key), at, repeated });
                self.replaced.push((place, None));
            }
        }
        let at = self.batch.put(Family::Log, &layout::revision_key(revision), undo);
        self.undo.push((revision, at));
    }

    pub fn newest(&self, key: &[u8]) -> Option<&[u8]> {
        if self.newest.is_empty() {
            return None;
        }
        let is_it = |place: &u32| self.keys.get(self.newest[*place as usize].key) == key;
        let place = self.places.find(hash(key), is_it)?;
        Some(self.batch.value(self.newest[*place as usize].at))
    }

    pub fn undo(&self, revision: Revision) -> Option<&[u8]> {
        let place = self.undo.binary_search_by_key(&revision, |(revision, _)| *revision).ok()?;
        Some(self.batch.value(self.undo[place].1))
    }

    /// Must be called before a range is read.
    pub fn order(&mut self) {
        let unordered = &self.newest[self.ordered_count..];
        self.ordered.extend(unordered.iter().map(|newest| Bytes::copy_from_slice(self.keys.get(newest.key))));
        self.ordered_count = self.newest.len();
    }

    /// Keys of `range` with a record in the batch, in order. [`Overlay::order`] must have been called before.
    pub fn keys_in<'a>(&'a self, range: &'a KeyRange) -> impl Iterator<Item = &'a Bytes> {
        assert!(self.ordered_count == self.newest.len(), "the keys are ordered before a range of them is read");
        let from = self.ordered.range(range.start.clone()..);
        let inside = from.take_while(move |key| match &range.end {
            RangeEnd::Point => **key == range.start,
            RangeEnd::Before(end) => *key < end,
            RangeEnd::Open => true,
        });
        inside.filter(|key| self.newest(key).is_some())
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
        for newest in self.newest.iter().filter(|newest| newest.repeated) {
            cache.insert(self.keys.get(newest.key), self.batch.value(newest.at));
        }
        self.keys.clear();
        self.newest.clear();
        self.newest.shrink_to(KEPT_MAX);
        self.places.clear();
        self.places.shrink_to(KEPT_MAX, |_| unreachable!("it is empty"));
        self.undo.clear();
        self.undo.shrink_to(KEPT_MAX);
        self.ordered.clear();
        self.ordered_count = 0;
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
        overlay.begin();
        overlay.change(b"k", Revision::first_of(2), b"one", b"undo", false);
        for is_read in [false, true] {
            let mark = overlay.begin();
            overlay.change(b"k", Revision::first_of(3), b"two", b"undo", true);
            overlay.change(b"l", Revision { main: 3, sub: 1 }, b"two", b"undo", true);
            overlay.change(b"l", Revision { main: 3, sub: 2 }, b"three", b"undo", true);
            if is_read {
                overlay.order();
                assert_eq!(overlay.newest_in(&KeyRange::all()).len(), 2);
            }
            overlay.change(b"m", Revision { main: 3, sub: 3 }, b"two", b"undo", true);
            overlay.abort(mark);
            assert_eq!(
                (overlay.newest(b"k"), overlay.newest(b"l"), overlay.newest(b"m")),
                (Some(&b"one"[..]), None, None)
            );
            overlay.order();
            assert_eq!(overlay.newest_in(&KeyRange::all()), [(&b"k"[..], Some(&b"one"[..]))]);
            assert_eq!((overlay.batch.len(), overlay.undo(Revision::first_of(3))), (2, None));
        }
        overlay.begin();
        overlay.change(b"m", Revision::first_of(3), b"three", b"undo", true);
        overlay.order();
        let all = [(&b"k"[..], Some(&b"one"[..])), (&b"m"[..], Some(&b"three"[..]))];
        assert_eq!(overlay.newest_in(&KeyRange::all()), all);
        let mut cache = Cache::new(1 << 20);
        overlay.finish(&mut cache);
        assert_eq!(cache.get(b"k"), None);
        assert_eq!(cache.get(b"m").map(|record| &record[..]), Some(&b"three"[..]));
    }
}
