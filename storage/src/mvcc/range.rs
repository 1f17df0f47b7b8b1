//! Intervals of keys in etcd's notation, and what can be asked about them. Not how they are read.

use bytes::Bytes;

use super::event::KeyValue;
use crate::backend::Span;

/// Where an interval of keys ends.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum RangeEnd {
    /// It is the single key it starts with.
    Point,
    /// Before this key, which does not belong to it.
    Before(Bytes),
    /// Nowhere: every key from the start on.
    Open,
}

/// An interval of keys.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct KeyRange {
    /// Its first key.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

impl KeyRange {
    /// Follows etcd's notation: no `range_end` means the key alone, one zero byte means every key from `key` on. An
    /// end at or before the start is an interval without keys.
    pub fn from_wire(key: &Bytes, range_end: &Bytes) -> Self {
        let end = match &range_end[..] {
            [] => RangeEnd::Point,
            [0] => RangeEnd::Open,
            _ => RangeEnd::Before(range_end.clone()),
        };
        // No key is less than a zero byte: a range from there has no gap before the first fence to be counted.
        let start = if **key == [0] && end != RangeEnd::Point { Bytes::new() } else { key.clone() };
        Self { start, end }
    }

    /// The single key `key`.
    pub fn point(key: impl Into<Bytes>) -> Self {
        Self { start: key.into(), end: RangeEnd::Point }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: RangeEnd::Open }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let kept = prefix.iter().rposition(|byte| *byte != 0xff);
        let end = kept.map_or(RangeEnd::Open, |last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            RangeEnd::Before(end.into())
        });
        Self { start: Bytes::copy_from_slice(prefix), end }
    }

    /// Whether `key` belongs to it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Point => key == self.start,
            RangeEnd::Before(end) => self.start <= key && key < &end[..],
            RangeEnd::Open => self.start <= key,
        }
    }

    /// Whether no key can belong to it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if end <= &self.start)
    }

    /// Where its keys lie in the backend; none for a single key, which is looked up.
    pub(super) fn span(&self) -> Option<Span<'_>> {
        match &self.end {
            RangeEnd::Point => None,
            RangeEnd::Before(end) => Some(Span { start: &self.start, end: Some(end) }),
            RangeEnd::Open => Some(Span { start: &self.start, end: None }),
        }
    }
}

/// What a range read is to return. The default returns everything in key order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RangeOptions {
    /// Most pairs to return, after the filters; 0 for no bound.
    pub limit: usize,
    /// Leave values empty.
    pub keys_only: bool,
    /// Return no pairs, only their number.
    pub count_only: bool,
    /// Descending key order.
    pub descending: bool,
    /// Least mod revision, inclusive; 0 is off, here and below.
    pub min_mod: i64,
    /// Greatest mod revision.
    pub max_mod: i64,
    /// Least create revision.
    pub min_create: i64,
    /// Greatest create revision.
    pub max_create: i64,
    /// Stop before the pairs returned pass this many bytes, but return at least one; 0 for no bound.
    pub bytes_max: usize,
    /// Do not count what lies behind the last pair returned; `count` is then only what was met. For callers that
    /// read on from there.
    pub without_count: bool,
}

impl RangeOptions {
    pub(super) fn admits(&self, create_revision: i64, mod_revision: i64) -> bool {
        let at_least = |bound: i64, revision: i64| bound == 0 || revision >= bound;
        let at_most = |bound: i64, revision: i64| bound == 0 || revision <= bound;
        at_least(self.min_mod, mod_revision)
            && at_most(self.max_mod, mod_revision)
            && at_least(self.min_create, create_revision)
            && at_most(self.max_create, create_revision)
    }
}

/// What a range read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeResult {
    /// The pairs.
    pub kvs: Vec<KeyValue>,
    /// Keys of the interval at that revision, whatever limit and filters say.
    pub count: i64,
    /// Whether limit or byte bound cut something off.
    pub more: bool,
    /// Whether it was the byte bound: the caller may read on behind the last pair.
    pub cut_by_bytes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_notation() {
        let wire = |key: &'static [u8], end: &'static [u8]| {
            KeyRange::from_wire(&Bytes::from_static(key), &Bytes::from_static(end))
        };
        assert!(wire(b"a", b"").contains(b"a") && !wire(b"a", b"").contains(b"aa"));
        assert!(wire(b"b", b"\0").contains(b"\xff\xff") && !wire(b"b", b"\0").contains(b"a"));
        assert!(wire(b"\0", b"\0").contains(b"\0") && wire(b"\0", b"\0").contains(b"z"));
        assert_eq!(wire(b"\0", b"\0"), KeyRange::all());
        assert!(wire(b"\0", b"").contains(b"\0") && !wire(b"\0", b"").contains(b"a"));
        assert!(wire(b"\0", b"b").contains(b"\0") && !wire(b"\0", b"b").contains(b"b"));
        assert!(wire(b"a", b"c").contains(b"bzz") && !wire(b"a", b"c").contains(b"c"));
        assert!(wire(b"c", b"a").is_empty() && wire(b"a", b"a").is_empty() && !wire(b"c", b"a").contains(b"b"));
    }

    #[test]
    fn prefixes() {
        assert_eq!(KeyRange::prefix(b"a\xff\xff").end, RangeEnd::Before(Bytes::from_static(b"b")));
        assert_eq!(KeyRange::prefix(b"\xff").end, RangeEnd::Open);
        assert_eq!(KeyRange::prefix(b""), KeyRange::all());
    }
}
