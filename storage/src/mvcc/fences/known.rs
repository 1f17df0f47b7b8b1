//! Counts that are known because somebody has counted, for who reads a long range page by page: each page leaves the
//! number of keys behind it for the next. At one revision they never change, so that only room bounds them.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::mvcc::range::{KeyRange, RangeEnd};

/// Counts that are remembered, two keys each: as many lists may be under way.
const KNOWN_MAX: usize = 1024;

/// Longer keys are not remembered: bounds the memory (1 MiB).
const KEY_BYTES_MAX: usize = 512;

/// Counts by revision and range; the oldest gives way.
#[derive(Default)]
pub(super) struct Known {
    counts: HashMap<(i64, KeyRange), i64, FxBuildHasher>,
    /// Oldest first.
    order: VecDeque<(i64, KeyRange)>,
}

impl Known {
    pub fn get(&self, revision: i64, range: &KeyRange) -> Option<i64> {
        if self.counts.is_empty() {
            return None;
        }
        self.counts.get(&(revision, range.clone())).copied()
    }

    pub fn note(&mut self, revision: i64, range: &KeyRange, count: i64) {
        let end = match &range.end {
            RangeEnd::Before(end) if end.len() <= KEY_BYTES_MAX => RangeEnd::Before(Bytes::copy_from_slice(end)),
            RangeEnd::Open => RangeEnd::Open,
            RangeEnd::Before(_) | RangeEnd::Point => return,
        };
        if range.start.len() > KEY_BYTES_MAX {
            return;
        }
        // Copies, because the given bytes are slices of whole requests.
        let place = (revision, KeyRange { start: Bytes::copy_from_slice(&range.start), end });
        if self.counts.insert(place.clone(), count).is_none() {
            self.order.push_back(place);
        }
        if self.order.len() > KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.counts.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_remembered_and_nothing_else_is_said() {
        let mut known = Known::default();
        let range = |number: usize| KeyRange { start: format!("{number:05}").into(), end: RangeEnd::Open };
        for number in 0..3 * KNOWN_MAX {
            known.note(7, &range(number), number as i64);
            known.note(7, &range(number), number as i64);
        }
        assert_eq!((known.counts.len(), known.order.len()), (KNOWN_MAX, KNOWN_MAX));
        assert_eq!(known.get(7, &range(3 * KNOWN_MAX - 1)), Some(3 * KNOWN_MAX as i64 - 1));
        assert_eq!(known.get(7, &range(2 * KNOWN_MAX)), Some(2 * KNOWN_MAX as i64));
        assert_eq!(known.get(7, &range(2 * KNOWN_MAX - 1)), None);
        assert_eq!(known.get(8, &range(3 * KNOWN_MAX - 1)), None, "another revision");
        known.note(7, &KeyRange::prefix(&[b'k'; KEY_BYTES_MAX + 1]), 1);
        known.note(7, &KeyRange::point("k"), 1);
        assert_eq!(known.counts.len(), KNOWN_MAX);
    }
}
