//! Watchers and their groups: who wants what, and how far it has got. Knows no streams' contents and no bytes.

use bytes::Bytes;
use daymark_api::etcdserverpb::WatchCreateRequest;
use daymark_api::etcdserverpb::watch_create_request::FilterType;
use daymark_storage::mvcc::{EventKind, KeyRange, RangeEnd};
use hashbrown::HashMap;

use super::arena::{Arena, Key};
use super::encode::Payload;
use super::matcher::Matcher;
use crate::limits;

/// Something that is true or false of a watcher or a group, one bit each.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// Group: leaves out puts.
    pub const NO_PUT: Self = Self(1);
    /// Group: leaves out deletes.
    pub const NO_DELETE: Self = Self(2);
    /// Group: events carry the previous pair.
    pub const PREV_KV: Self = Self(4);
    /// Group: responses may be split.
    pub const FRAGMENT: Self = Self(8);
    /// Watcher: wants periodic progress.
    pub const PROGRESS: Self = Self(16);
    /// Watcher: has got nothing since the last progress time-out, so it is told at the next one.
    pub const QUIET: Self = Self(32);
    /// Watcher: begins at a revision that did not exist when it was created, and has not been behind or got anything yet.
    pub const FUTURE: Self = Self(64);

    /// Whether all bits of `other` are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets or clears the bits of `other`.
    pub fn set(&mut self, other: Self, on: bool) {
        self.0 = if on { self.0 | other.0 } else { self.0 & !other.0 };
    }

    /// Whether an event of this kind passes a group's filters.
    pub fn admits(self, kind: EventKind) -> bool {
        match kind {
            EventKind::Put => !self.has(Self::NO_PUT),
            EventKind::Delete => !self.has(Self::NO_DELETE),
        }
    }
}

/// Where a watcher stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Gets every applied batch as it comes; named in its group at `place`.
    Live { place: u32 },
    /// Behind, and waits in the queue for its turn.
    Queued,
    /// Behind, and part of a scan of history that runs now.
    Scanned,
    /// Behind, and its stream has no credit.
    Parked,
    /// Cancelled by a compaction: only its id is still held.
    Compacted,
}

/// One interest of one stream. Tens of bytes: what it waits for lies in the ring or in history.
///
/// Invariants: `next_revision` only grows; all matching events below it have been handed to the stream; a live one has
/// also got everything up to the thread's cursor.
#[derive(Debug)]
pub struct Watcher {
    // Fixed.
    pub stream: Key,
    pub group: Key,
    pub watch_id: i64,
    // Changes.
    pub next_revision: i64,
    pub stand: Stand,
    pub flags: Flags,
}

/// What the watchers of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interest {
    pub range: KeyRange,
    /// Only the flags of groups.
    pub flags: Flags,
}

/// Why an interval is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct EmptyRange;

impl Interest {
    /// Reads a create request: no key means the first one there can be, unknown filters are ignored.
    pub fn from_request(create: &WatchCreateRequest) -> Result<Self, EmptyRange> {
        let key = if create.key.is_empty() { Bytes::from_static(&[0]) } else { create.key.clone() };
        let range = KeyRange::from_wire(&key, &create.range_end);
        if range.is_empty() {
            return Err(EmptyRange);
        }
        let mut flags = Flags::default();
        flags.set(Flags::NO_PUT, create.filters.contains(&(FilterType::Noput as i32)));
        flags.set(Flags::NO_DELETE, create.filters.contains(&(FilterType::Nodelete as i32)));
        flags.set(Flags::PREV_KV, create.prev_kv);
        flags.set(Flags::FRAGMENT, create.fragment);
        Ok(Self { range, flags })
    }

    /// What a watcher of it takes, at most: those of one interest share some of it.
    pub fn bytes(&self) -> usize {
        let end = if let RangeEnd::Before(end) = &self.range.end { end.len() } else { 0 };
        limits::WATCHER_BYTES + self.range.start.len() + end
    }
}

/// Watchers of one interest: they share matching and encoding.
pub struct Group {
    pub interest: Interest,
    /// Its live watchers, in no order.
    pub live: Vec<Key>,
    /// All of its watchers; the group ends with the last.
    pub watchers: u32,
    /// Encoded events of the revision that is being delivered to live watchers.
    pub pending: Payload,
    /// While a scan is handed out of which the group is part: its encoded events, with their revisions.
    pub scanned: Option<Vec<(i64, Bytes)>>,
}

/// All groups of a thread, by interest and by key.
#[derive(Default)]
pub struct Groups {
    pub rows: Arena<Group>,
    pub matcher: Matcher,
    by_interest: HashMap<Interest, Key>,
}

impl Groups {
    /// The group of an interest, with one watcher more.
    pub fn join(&mut self, interest: Interest) -> Key {
        if let Some(key) = self.by_interest.get(&interest) {
            self.rows[*key].watchers += 1;
            return *key;
        }
        let group = Group {
            interest: interest.clone(),
            live: Vec::new(),
            watchers: 1,
            pending: Payload::default(),
            scanned: None,
        };
        let key = self.rows.insert(group);
        self.matcher.insert(&interest.range, key);
        self.by_interest.insert(interest, key);
        key
    }

    /// One watcher less.
    pub fn leave(&mut self, key: Key) {
        self.rows[key].watchers -= 1;
        if self.rows[key].watchers == 0 {
            let group = self.rows.remove(key).expect("its last watcher leaves it now");
            assert!(group.live.is_empty());
            self.matcher.remove(&group.interest.range, key);
            self.by_interest.remove(&group.interest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_takes_tens_of_bytes() {
        assert!(size_of::<Watcher>() <= 48, "{}", size_of::<Watcher>());
    }

    #[test]
    fn groups_end_with_their_last_watcher() {
        let mut groups = Groups::default();
        let interest = Interest { range: KeyRange::prefix(b"a"), flags: Flags::PREV_KV };
        let group = groups.join(interest.clone());
        assert_eq!(groups.join(interest.clone()), group);
        assert_ne!(groups.join(Interest { flags: Flags::default(), ..interest.clone() }), group);
        groups.leave(group);
        assert!(groups.rows.get(group).is_some());
        groups.leave(group);
        assert!(groups.rows.get(group).is_none() && groups.rows.len() == 1);
        assert_ne!(groups.join(interest), group, "a new group has a new name");
    }
}
