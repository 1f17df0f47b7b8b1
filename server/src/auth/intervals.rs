//! Sets of keys as permissions name them: merged once, asked for every request. Not the intervals of a read.

use bytes::Bytes;

/// Keys from `start` on, up to but without `end`; `None` is the end of the key space.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Interval {
    start: Bytes,
    end: Option<Bytes>,
}

/// A set of keys.
///
/// Invariants: intervals are in order, none is empty, and there is a gap between each two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intervals {
    merged: Vec<Interval>,
}

impl Interval {
    /// Etcd's notation: no `range_end` is the key alone, one zero byte is no end.
    fn from_wire(key: &Bytes, range_end: &Bytes) -> Self {
        let end = match &range_end[..] {
            [] => Some([&key[..], &[0]].concat().into()),
            [0] => None,
            _ => Some(range_end.clone()),
        };
        Self { start: key.clone(), end }
    }

    fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Overlaps or touches what begins at `start`, which is not before this.
    fn reaches(&self, start: &Bytes) -> bool {
        self.end.as_ref().is_none_or(|end| end >= start)
    }

    fn extend(&mut self, end: Option<Bytes>) {
        self.end = match (self.end.take(), end) {
            (Some(one), Some(other)) => Some(one.max(other)),
            _ => None,
        };
    }
}

impl Intervals {
    /// The union of ranges, each as key and range end. Ranges that touch count as one: what is asked for may reach
    /// over both.
    pub fn union<'a>(ranges: impl IntoIterator<Item = (&'a Bytes, &'a Bytes)>) -> Self {
        let mut single: Vec<_> = ranges.into_iter().map(|(key, end)| Interval::from_wire(key, end)).collect();
        single.retain(|interval| !interval.is_empty());
        single.sort_by(|one, other| one.start.cmp(&other.start));
        let mut merged: Vec<Interval> = Vec::with_capacity(single.len());
        for next in single {
            match merged.last_mut() {
                Some(last) if last.reaches(&next.start) => last.extend(next.end),
                _ => merged.push(next),
            }
        }
        merged.shrink_to_fit();
        Self { merged }
    }

    /// Whether all keys of a range belong to the set. As in etcd a range without keys (its end is not behind its key)
    /// needs its key. Neither allocates nor copies.
    pub fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let behind = self.merged.partition_point(|interval| interval.start[..] <= *key);
        let Some(interval) = behind.checked_sub(1).map(|place| &self.merged[place]) else { return false };
        let Some(end) = &interval.end else { return true };
        key < &end[..] && range_end != [0] && range_end <= &end[..]
    }

    /// Whether no key is outside, the empty one aside.
    pub fn is_everything(&self) -> bool {
        self.covers(&[0], &[0])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(&str, &str)]) -> Intervals {
        let ranges: Vec<(Bytes, Bytes)> =
            ranges.iter().map(|(key, end)| (key.to_string().into(), end.to_string().into())).collect();
        Intervals::union(ranges.iter().map(|(key, end)| (key, end)))
    }

    #[test]
    fn ranges_that_touch_or_overlap_are_one() {
        assert_eq!(set(&[("a", "c"), ("b", "d")]), set(&[("a", "d")]));
        assert_eq!(set(&[("c", "d"), ("a", "c")]), set(&[("a", "d")]));
        assert_eq!(set(&[("a", ""), ("a\0", "")]), set(&[("a", "a\0\0")]));
        assert_eq!(set(&[("a", "z"), ("b", "c")]), set(&[("a", "z")]));
        assert_eq!(set(&[("b", "\0"), ("a", "c"), ("x", "z")]), set(&[("a", "\0")]));
        assert_eq!(set(&[("a", "b"), ("c", "d")]).merged.len(), 2);
        assert_eq!(set(&[("b", "a"), ("b", "b")]), Intervals::default());
    }

    #[test]
    fn what_is_asked_for_has_to_be_covered_as_a_whole() {
        let rights = set(&[("a", "c"), ("c", "e"), ("k", ""), ("x", "\0")]);
        for (key, range_end, covered) in [
            ("a", "", true),
            ("d", "", true),
            ("e", "", false),
            ("a", "e", true),
            ("a", "e\0", false),
            ("b", "d", true),
            ("A", "b", false),
            ("a", "\0", false),
            ("k", "", true),
            ("k", "k\0", true),
            ("k", "l", false),
            ("k\0", "", false),
            ("x", "\0", true),
            ("zzz", "\0", true),
            ("w", "\0", false),
            ("y", "z", true),
            // Without keys: the first one counts.
            ("d", "b", true),
            ("l", "b", false),
            ("y", "a", true),
        ] {
            assert_eq!(rights.covers(key.as_bytes(), range_end.as_bytes()), covered, "{key:?} {range_end:?}");
        }
        assert!(set(&[("\0", "\0")]).is_everything() && !rights.is_everything());
        assert!(!Intervals::default().covers(b"a", b""));
    }

    /// Every key of one to three letters of a small alphabet, zero included.
    fn all_keys() -> Vec<Vec<u8>> {
        let letters = [0u8, b'a', b'b', b'c'];
        let mut keys: Vec<Vec<u8>> = letters.iter().map(|letter| vec![*letter]).collect();
        for length in 1..3 {
            let longer: Vec<Vec<u8>> = keys
                .iter()
                .filter(|key| key.len() == length)
                .flat_map(|key| letters.iter().map(|letter| [&key[..], &[*letter]].concat()))
                .collect();
            keys.extend(longer);
        }
        keys
    }

    fn holds(key: &[u8], start: &[u8], end: &[u8]) -> bool {
        match end {
            [] => key == start,
            [0] => key >= start,
            end => start <= key && key < end,
        }
    }

    fn bytes_of() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(b'c')], 1..3).prop_map(Bytes::from)
    }

    fn end_of() -> impl Strategy<Value = Bytes> {
        prop_oneof![2 => Just(Bytes::new()), 1 => Just(Bytes::from_static(&[0])), 4 => bytes_of()]
    }

    proptest! {
        /// Against the list of single ranges, key by key.
        #[test]
        fn a_union_covers_what_its_ranges_cover(
            ranges in prop::collection::vec((bytes_of(), end_of()), 0..8),
            asked in prop::collection::vec((bytes_of(), end_of()), 1..20),
        ) {
            let union = Intervals::union(ranges.iter().map(|(key, end)| (key, end)));
            let keys = all_keys();
            for key in &keys {
                let covered = ranges.iter().any(|(start, end)| holds(key, start, end));
                prop_assert_eq!(union.covers(key, b""), covered, "{:?}", key);
            }
            for (key, end) in &asked {
                if !union.covers(key, end) {
                    continue;
                }
                let missed = keys.iter().find(|one| holds(one, key, end) && !union.covers(one, b""));
                prop_assert!(missed.is_none(), "{:?} {:?} covers {:?}", key, end, missed);
            }
            // The other way: what is covered key by key is covered at once, where the keys here tell all there is.
            for (start, end) in &ranges {
                if end[..] == [0] || end.is_empty() || end > start {
                    prop_assert!(union.covers(start, end), "{:?} {:?}", start, end);
                }
            }
            for pair in union.merged.windows(2) {
                prop_assert!(pair[0].end.as_ref().is_some_and(|end| *end < pair[1].start));
            }
        }
    }
}
