//! The fences themselves: intervals that cover every possible key, each with the number of keys in it, and sums over
//! them. Knows no revisions: whoever owns it says what it is right at.

use std::mem;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::backend::first_bytes;
use crate::codec::{put_varint, take_varint};
use crate::mvcc::range::{KeyRange, RangeEnd};

/// Fences in one chunk, over which a sum is kept: a count adds so many numbers at most at each end, and one for each chunk
/// between.
const CHUNK_FENCES_MAX: usize = 128;

/// First byte of the stored form.
const FORMAT: u8 = 1;

/// Ordered fences, in chunks.
///
/// Invariants: there is a fence, and the first begins with the empty key; no chunk is empty; a chunk's sum is that of its
/// fences.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table {
    chunks: Vec<Chunk>,
}

#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    /// The first bytes of its first fence: mostly they tell without looking at the fence.
    first: u64,
    count: i64,
    fences: Vec<Fence>,
}

/// The keys from `start` up to the next fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fence {
    /// The first bytes of `start`.
    first: u64,
    pub start: Bytes,
    pub count: i64,
    /// No key of the interval is greater than this one; none if that is not known. Where keys come in ascending order it
    /// tells where the next fence goes without reading.
    pub bound: Option<Bytes>,
}

impl Fence {
    pub fn new(start: Bytes, count: i64) -> Self {
        Self { first: first_bytes(&start), start, count, bound: None }
    }
}

/// What the fences say of a range.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inside {
    /// Keys between the first and the last fence of the range.
    pub count: i64,
    /// From the one to the other.
    pub covered: KeyRange,
    /// What of the range lies outside of them.
    pub gaps: Vec<KeyRange>,
}

/// Place of a fence; one past the last is the first place of a chunk that is not there.
type Place = (usize, usize);

impl Table {
    /// Of fences in order, the first of which begins with the empty key.
    pub fn of(fences: Vec<Fence>) -> Self {
        assert!(fences.first().is_some_and(|first| first.start.is_empty()), "every key lies behind a fence");
        Self { chunks: chunks(fences) }
    }

    /// Number of fences.
    pub fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.fences.len()).sum()
    }

    /// Number of keys.
    pub fn total(&self) -> i64 {
        self.chunks.iter().map(|chunk| chunk.count).sum()
    }

    /// `key` came or went. A fence is put before it if it is the greatest of an interval that has `per_fence` keys.
    pub fn add(&mut self, key: &[u8], change: i64, per_fence: i64) {
        let (number, place) = self.fence_of(key);
        let chunk = &mut self.chunks[number];
        chunk.count += change;
        let fence = &mut chunk.fences[place];
        let is_greatest = change > 0 && (fence.count == 0 || fence.bound.as_ref().is_some_and(|bound| bound < key));
        if !is_greatest {
            fence.count += change;
        } else if fence.count < per_fence {
            fence.count += change;
            fence.bound = Some(Bytes::copy_from_slice(key));
        } else {
            let key = Bytes::copy_from_slice(key);
            chunk.fences.insert(place + 1, Fence { bound: Some(key.clone()), ..Fence::new(key, change) });
            self.make_room(number);
        }
    }

    /// What is known of `range`, which is no point; none if it lies between two neighbours.
    pub fn inside(&self, range: &KeyRange) -> Option<Inside> {
        let first = self.first_from(&range.start);
        let last = match &range.end {
            RangeEnd::Open => (self.chunks.len(), 0),
            RangeEnd::Before(end) => self.fence_of(end),
            RangeEnd::Point => return None,
        };
        if first >= last {
            return None;
        }
        let from = self.fence(first)?.start.clone();
        let (mut gaps, mut covered_end) = (Vec::new(), RangeEnd::Open);
        if range.start < from {
            gaps.push(KeyRange { start: range.start.clone(), end: RangeEnd::Before(from.clone()) });
        }
        if let Some(fence) = self.fence(last) {
            covered_end = RangeEnd::Before(fence.start.clone());
            gaps.push(KeyRange { start: fence.start.clone(), end: range.end.clone() });
            gaps.retain(|gap| !gap.is_empty());
        }
        Some(Inside { count: self.sum(first, last), covered: KeyRange { start: from, end: covered_end }, gaps })
    }

    /// The interval with the most keys.
    pub fn largest(&self) -> (KeyRange, i64) {
        let mut found: (Place, i64) = ((0, 0), i64::MIN);
        for (number, chunk) in self.chunks.iter().enumerate() {
            for (place, fence) in chunk.fences.iter().enumerate() {
                if fence.count > found.1 {
                    found = ((number, place), fence.count);
                }
            }
        }
        (self.interval(found.0), found.1)
    }

    /// Puts `parts` in the place of the interval that begins with the first of them. What they count less than it did is
    /// behind the last of them, which gets it.
    pub fn split(&mut self, mut parts: Vec<Fence>) {
        let Some(first) = parts.first() else { return };
        let (number, place) = self.fence_of(&first.start);
        let chunk = &mut self.chunks[number];
        let whole = &mut chunk.fences[place];
        assert_eq!(whole.start, first.start, "an interval is split at its own keys");
        let counted: i64 = parts.iter().map(|part| part.count).sum();
        let last = parts.last_mut().expect("there is a first");
        last.count += whole.count - counted;
        last.bound = whole.bound.take().or(last.bound.take());
        chunk.fences.splice(place..=place, parts);
        self.make_room(number);
    }

    /// Joins neighbours that have few keys together.
    pub fn join(&mut self, count_max: i64) {
        let mut joined: Vec<Fence> = Vec::with_capacity(self.len());
        for fence in self.chunks.drain(..).flat_map(|chunk| chunk.fences) {
            match joined.last_mut() {
                Some(before) if before.count + fence.count <= count_max => {
                    before.bound = if fence.count == 0 { before.bound.take() } else { fence.bound };
                    before.count += fence.count;
                }
                _ => joined.push(fence),
            }
        }
        joined.shrink_to_fit();
        *self = Self::of(joined);
    }

    /// The stored form, see `docs/formats/keyspace.md`.
    pub fn encode(&self, revision: i64) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 16 * self.len());
        out.push(FORMAT);
        out.extend_from_slice(&revision.to_le_bytes());
        put_varint(&mut out, self.len() as u64);
        let mut before: &[u8] = &[];
        for fence in self.chunks.iter().flat_map(|chunk| &chunk.fences) {
            let shared = before.iter().zip(&fence.start[..]).take_while(|(a, b)| a == b).count();
            put_varint(&mut out, shared as u64);
            put_varint(&mut out, (fence.start.len() - shared) as u64);
            out.extend_from_slice(&fence.start[shared..]);
            put_varint(&mut out, fence.count as u64);
            before = &fence.start;
        }
        let sum = xxh3_64(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Revision and table out of the stored form; none if it is not one that this version has written.
    pub fn decode(bytes: &[u8]) -> Option<(i64, Self)> {
        let (bytes, sum) = bytes.split_last_chunk()?;
        let (format, rest) = bytes.split_first()?;
        let (revision, mut rest) = rest.split_first_chunk()?;
        if *format != FORMAT || xxh3_64(bytes) != u64::from_le_bytes(*sum) {
            return None;
        }
        let count = take_varint(&mut rest)?;
        let mut fences: Vec<Fence> = Vec::new();
        for _ in 0..count {
            let [shared, length] = [take_varint(&mut rest)? as usize, take_varint(&mut rest)? as usize];
            let (own, tail) = rest.split_at_checked(length)?;
            let before = fences.last().map_or(&[][..], |fence| &fence.start);
            let start = Bytes::from([before.get(..shared)?, own].concat());
            rest = tail;
            let count = i64::try_from(take_varint(&mut rest)?).ok()?;
            let ascends = fences.last().is_none_or(|before| before.start < start);
            if !ascends || (fences.is_empty() && !start.is_empty()) {
                return None;
            }
            fences.push(Fence::new(start, count));
        }
        let is_whole = rest.is_empty() && !fences.is_empty();
        is_whole.then(|| (i64::from_le_bytes(*revision), Self::of(fences)))
    }

    /// Cuts a chunk that is too large.
    fn make_room(&mut self, number: usize) {
        let chunk = &mut self.chunks[number];
        if chunk.fences.len() > CHUNK_FENCES_MAX {
            let fences = mem::take(&mut chunk.fences);
            self.chunks.splice(number..=number, chunks(fences));
        }
    }

    /// The fence in whose interval `key` lies.
    fn fence_of(&self, key: &[u8]) -> Place {
        let first = first_bytes(key);
        let begins = |of: u64, fence: &Fence| of < first || (of == first && fence.start <= key);
        // Never the first of all: it begins with the empty key.
        let chunk = self.chunks.partition_point(|chunk| begins(chunk.first, &chunk.fences[0])) - 1;
        (chunk, self.chunks[chunk].fences.partition_point(|fence| begins(fence.first, fence)) - 1)
    }

    /// The first fence that begins with `key` or behind it.
    fn first_from(&self, key: &[u8]) -> Place {
        let (chunk, place) = self.fence_of(key);
        if self.chunks[chunk].fences[place].start == key {
            return (chunk, place);
        }
        self.next((chunk, place))
    }

    fn next(&self, (chunk, place): Place) -> Place {
        if place + 1 < self.chunks[chunk].fences.len() { (chunk, place + 1) } else { (chunk + 1, 0) }
    }

    fn fence(&self, (chunk, place): Place) -> Option<&Fence> {
        self.chunks.get(chunk)?.fences.get(place)
    }

    fn interval(&self, place: Place) -> KeyRange {
        let start = self.fence(place).expect("the place of a fence").start.clone();
        let end = self.fence(self.next(place)).map_or(RangeEnd::Open, |next| RangeEnd::Before(next.start.clone()));
        KeyRange { start, end }
    }

    fn sum(&self, first: Place, last: Place) -> i64 {
        let fences = |chunk: usize, from: usize, to: usize| -> i64 {
            self.chunks[chunk].fences[from..to].iter().map(|fence| fence.count).sum()
        };
        if first.0 == last.0 {
            return if first.0 < self.chunks.len() { fences(first.0, first.1, last.1) } else { 0 };
        }
        let between: i64 = self.chunks[first.0 + 1..last.0].iter().map(|chunk| chunk.count).sum();
        let begun = fences(first.0, first.1, self.chunks[first.0].fences.len());
        let ended = if last.1 > 0 { fences(last.0, 0, last.1) } else { 0 };
        begun + between + ended
    }
}

/// Half full, so that there is room for more.
fn chunks(fences: Vec<Fence>) -> Vec<Chunk> {
    let mut chunks = Vec::with_capacity(fences.len().div_ceil(CHUNK_FENCES_MAX / 2));
    let mut fences = fences.into_iter().peekable();
    while fences.peek().is_some() {
        let fences: Vec<Fence> = fences.by_ref().take(CHUNK_FENCES_MAX / 2).collect();
        let (first, count) = (fences[0].first, fences.iter().map(|fence| fence.count).sum());
        chunks.push(Chunk { first, count, fences });
    }
    chunks
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xff)], 0..5)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (key(), prop::option::of(key())).prop_map(|(start, end)| {
            let end = end.map_or(RangeEnd::Open, |end| RangeEnd::Before(end.into()));
            KeyRange { start: start.into(), end }
        })
    }

    /// Splits at every key that is there until no interval has more than `count_max`.
    fn split_all(table: &mut Table, keys: &std::collections::BTreeSet<Vec<u8>>, count_max: i64) {
        loop {
            let (interval, count) = table.largest();
            if count <= count_max {
                return;
            }
            let inside: Vec<_> = keys.iter().filter(|key| interval.contains(key)).collect();
            assert_eq!(inside.len() as i64, count, "{interval:?}");
            let half = inside.len() / 2;
            let second = Bytes::copy_from_slice(inside[half]);
            table.split(vec![Fence::new(interval.start, half as i64), Fence::new(second, 0)]);
        }
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_keys(
            changes in prop::collection::vec((key(), any::<bool>()), 0..300),
            ranges in prop::collection::vec(range(), 20),
            count_max in 1..5i64,
        ) {
            let (mut table, mut keys) = (empty(), std::collections::BTreeSet::new());
            for (number, (key, comes)) in changes.into_iter().enumerate() {
                match comes {
                    true if keys.insert(key.clone()) => table.add(&key, 1, count_max),
                    false if keys.remove(&key) => table.add(&key, -1, count_max),
                    _ => {}
                }
                match number % 10 {
                    3 => split_all(&mut table, &keys, count_max),
                    7 => table.join(2),
                    _ => {}
                }
            }
            prop_assert_eq!(table.total(), keys.len() as i64);
            prop_assert_eq!(Table::decode(&table.encode(7)), Some((7, Table::of(fences(&table)))));
            for range in ranges {
                let all = keys.iter().filter(|key| range.contains(key)).count() as i64;
                let Some(inside) = table.inside(&range) else { continue };
                let count = |range: &KeyRange| keys.iter().filter(|key| range.contains(key)).count() as i64;
                prop_assert_eq!(inside.count, count(&inside.covered));
                prop_assert_eq!(inside.count + inside.gaps.iter().map(count).sum::<i64>(), all, "{:?}", range);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes: Vec<u8>, seal: bool) {
            if seal {
                bytes.insert(0, FORMAT);
                let sum = xxh3_64(&bytes);
                bytes.extend_from_slice(&sum.to_le_bytes());
            }
            let _ = Table::decode(&bytes);
        }
    }

    fn empty() -> Table {
        Table::of(vec![Fence::new(Bytes::new(), 0)])
    }

    fn fences(table: &Table) -> Vec<Fence> {
        let stored = |fence: &Fence| Fence { bound: None, ..fence.clone() };
        table.chunks.iter().flat_map(|chunk| chunk.fences.iter().map(stored)).collect()
    }

    #[test]
    fn many_fences_are_found_and_stored() {
        let start = |number: i64| if number == 0 { Bytes::new() } else { format!("/registry/{number:08}").into() };
        let table = Table::of((0..10_000).map(|number| Fence::new(start(number), number % 7)).collect());
        assert_eq!((table.len(), table.total()), (10_000, (0..10_000).map(|number| number % 7).sum()));
        for (from, to) in [(0, 1), (5, 9_999), (63, 64), (64, 128), (1_000, 1_001)] {
            let range = KeyRange { start: start(from), end: RangeEnd::Before(start(to)) };
            let inside = table.inside(&range).unwrap();
            assert_eq!((inside.count, inside.gaps.len()), ((from..to).map(|number| number % 7).sum(), 0));
        }
        let bytes = table.encode(1 << 40);
        assert!(bytes.len() < 10_000 * 12, "{} bytes", bytes.len());
        assert_eq!(Table::decode(&bytes), Some((1 << 40, table)));
        assert_eq!(Table::decode(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn keys_in_ascending_order_are_fenced_as_they_come() {
        let (mut table, mut keys) = (empty(), std::collections::BTreeSet::new());
        let mut add = |table: &mut Table, key: String| {
            table.add(key.as_bytes(), 1, 100);
            keys.insert(key.into_bytes());
        };
        (0..5_000).for_each(|number| add(&mut table, format!("a{number:05}")));
        assert!(table.largest().1 <= 100 && table.len() == 50, "{} fences", table.len());
        // Between others: nobody knows which of them are greater.
        (0..500).for_each(|number| add(&mut table, format!("a00010/{number:05}")));
        assert_eq!((table.largest().1, table.len()), (600, 50));
        split_all(&mut table, &keys, 100);
        (5_000..6_000).for_each(|number| table.add(format!("a{number:05}").as_bytes(), 1, 100));
        assert!(table.largest().1 <= 100 && table.total() == 6_500, "{:?}", table.largest());
    }

    /// The bytes of the first format, so that a change by accident is noticed.
    #[test]
    fn frozen_bytes() {
        let fence = |start: &'static str, count| Fence::new(start.into(), count);
        let table = Table::of(vec![fence("", 3), fence("ab", 300), fence("ac", 0)]);
        let bytes = table.encode(5);
        let body = [1, 5, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 3, 0, 2, b'a', b'b', 0xac, 2, 1, 1, b'c', 0];
        assert_eq!(bytes[..bytes.len() - 8], body);
        assert_eq!(bytes[bytes.len() - 8..], xxh3_64(&body).to_le_bytes());
    }
}
