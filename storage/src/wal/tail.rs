//! The log as memory knows it: where each entry that is not released stands, and the newest entries themselves, so
//! that reading the log rarely means a file. Never touches a file.

use std::collections::VecDeque;

use crate::{LogId, Result};

use super::frame::frame_bytes;
use super::{LogEntry, invariant};

/// Set in a slot whose entry is not on disk yet; the other bits are its serial number.
const QUEUED: u64 = 1 << 63;

/// Where an entry is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Not on disk yet.
    Queued,
    /// At this position of the log.
    At(u64),
}

/// Entries that are not released.
///
/// Invariants: `released < first live index`; live indexes are consecutive and end with `last`; terms never go down
/// along the log; `entries` is a suffix of the live entries and holds each one that is not on disk yet.
#[derive(Debug)]
pub struct Tail {
    released: Option<LogId>,
    last: Option<LogId>,
    /// Index of the first slot's entry.
    first: u64,
    /// Position on disk, or `QUEUED` and a serial number; 8 bytes an entry.
    slots: VecDeque<u64>,
    /// First index and term of each run of entries of one term.
    terms: VecDeque<(u64, u64)>,
    /// The newest entries.
    entries: VecDeque<LogEntry>,
    entry_bytes: u64,
    entry_bytes_max: u64,
    next_serial: u64,
}

impl Tail {
    /// An empty log that keeps about `entry_bytes_max` bytes of entries in memory.
    pub fn new(entry_bytes_max: u64) -> Self {
        Self {
            released: None,
            last: None,
            first: 0,
            slots: VecDeque::new(),
            terms: VecDeque::new(),
            entries: VecDeque::new(),
            entry_bytes: 0,
            entry_bytes_max,
            next_serial: 0,
        }
    }

    /// Says that the last entry of this empty log, now gone, was `last`.
    pub fn begin_after(&mut self, last: Option<LogId>) {
        assert!(self.slots.is_empty(), "only an empty log can begin");
        self.last = last;
    }

    /// Newest entry; the newest released one if none is left.
    pub fn last(&self) -> Option<LogId> {
        self.last
    }

    /// Newest entry that is no longer needed.
    pub fn released(&self) -> Option<LogId> {
        self.released
    }

    /// Index of the oldest live entry, if there is one.
    pub fn first_index(&self) -> Option<u64> {
        (!self.slots.is_empty()).then_some(self.first)
    }

    /// One past the newest live index.
    fn next_index(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// Log id of the entry with that index, if it is live or the newest released one.
    pub fn log_id(&self, index: u64) -> Option<LogId> {
        if let Some(released) = self.released.filter(|released| released.index == index) {
            return Some(released);
        }
        if self.slots.is_empty() || index < self.first || index >= self.next_index() {
            return None;
        }
        let run = self.terms.partition_point(|(first, _)| *first <= index);
        Some(LogId { term: self.terms[run - 1].1, index })
    }

    /// Whether an entry with that id may follow `last`.
    pub fn check_next(last: Option<LogId>, next: LogId) -> Result<()> {
        match last {
            Some(last) if next.index != last.index + 1 || next.term < last.term => {
                Err(invariant(format!("entry {next} cannot follow {last}")))
            }
            _ => Ok(()),
        }
    }

    /// Adds an entry that has passed [`check_next`](Self::check_next) and is in no file yet; returns its serial.
    pub fn push_queued(&mut self, entry: LogEntry) -> u64 {
        let serial = self.next_serial;
        self.next_serial += 1;
        self.push_slot(entry.id, QUEUED | serial);
        self.entry_bytes += entry_cost(&entry);
        self.entries.push_back(entry);
        serial
    }

    /// Adds an entry that stands at `position`.
    pub fn push_placed(&mut self, id: LogId, position: u64) {
        debug_assert!(self.entries.is_empty());
        self.push_slot(id, position);
    }

    fn push_slot(&mut self, id: LogId, slot: u64) {
        if self.slots.is_empty() {
            self.first = id.index;
            self.terms.clear();
        }
        if self.terms.back().is_none_or(|(_, term)| *term != id.term) {
            self.terms.push_back((id.index, id.term));
        }
        self.slots.push_back(slot);
        self.last = Some(id);
    }

    /// Notes where the entry with that index and serial stands; it may have been truncated or released meanwhile.
    pub fn place(&mut self, index: u64, serial: u64, position: u64) {
        let Some(at) = index.checked_sub(self.first) else { return };
        if let Some(slot) = self.slots.get_mut(at as usize).filter(|slot| **slot == QUEUED | serial) {
            *slot = position;
        }
    }

    /// Drops the oldest entries from memory while there are too many bytes and they can be read from a file.
    pub fn evict(&mut self) {
        while self.entry_bytes > self.entry_bytes_max {
            let oldest = self.slots.len() - self.entries.len();
            if self.slots.get(oldest).is_none_or(|slot| slot & QUEUED != 0) {
                return;
            }
            self.drop_oldest_entry();
        }
    }

    fn drop_oldest_entry(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.entry_bytes -= entry_cost(&entry);
        }
    }

    /// Whether the log may be truncated there: what is kept must be live, or the newest released entry.
    pub fn check_truncate(&self, last_kept: Option<LogId>) -> Result<()> {
        let known = match last_kept {
            Some(kept) => self.log_id(kept.index) == Some(kept),
            None => self.released.is_none(),
        };
        if known {
            return Ok(());
        }
        let kept = last_kept.map_or("nothing".to_string(), |kept| kept.to_string());
        Err(invariant(format!("cannot truncate the log after {kept}: not in the log, or released")))
    }

    /// Removes the entries after `last_kept`.
    pub fn truncate_after(&mut self, last_kept: Option<LogId>) {
        let keep = last_kept.map_or(0, |kept| (kept.index + 1).saturating_sub(self.first)) as usize;
        while self.slots.len() > keep {
            self.slots.pop_back();
            if let Some(entry) = self.entries.pop_back() {
                self.entry_bytes -= entry_cost(&entry);
            }
        }
        let next = self.next_index();
        while self.terms.back().is_some_and(|(first, _)| *first >= next) {
            self.terms.pop_back();
        }
        self.last = last_kept;
    }

    /// Removes the entries up to `up_to`, which may lie beyond the last one.
    pub fn release(&mut self, up_to: LogId) {
        if self.released.is_some_and(|released| released.index >= up_to.index) {
            return;
        }
        self.released = Some(up_to);
        while !self.slots.is_empty() && self.first <= up_to.index {
            if self.entries.len() == self.slots.len() {
                self.drop_oldest_entry();
            }
            self.slots.pop_front();
            self.first += 1;
        }
        while self.terms.len() > 1 && self.terms[1].0 <= self.first {
            self.terms.pop_front();
        }
        if self.last.is_none_or(|last| last.index < up_to.index) {
            self.last = Some(up_to);
        }
    }

    /// Where the entry with that index is, if it is live.
    pub fn find(&self, index: u64) -> Option<Place> {
        let slot = *self.slots.get(index.checked_sub(self.first)? as usize)?;
        Some(if slot & QUEUED != 0 { Place::Queued } else { Place::At(slot) })
    }

    /// The entry with that index, if it is in memory.
    pub fn entry(&self, index: u64) -> Option<&LogEntry> {
        let at = index.checked_sub(self.first + (self.slots.len() - self.entries.len()) as u64)?;
        self.entries.get(at as usize)
    }

    /// Checks what must hold between replays: the live entries follow what is released.
    pub fn check_start(&self) -> std::result::Result<(), String> {
        match (self.released, self.first_index()) {
            (Some(released), Some(first)) if first != released.index + 1 => {
                Err(format!("the log begins with index {first}, but was released only up to {released}"))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes that an entry counts for, in memory and in answers: those of its frame.
pub fn entry_cost(entry: &LogEntry) -> u64 {
    frame_bytes(entry.payload.len()) as u64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::EntryKind;
    use super::*;

    fn entry(term: u64, index: u64) -> LogEntry {
        LogEntry { id: LogId { term, index }, kind: EntryKind::Blank, payload: Bytes::new() }
    }

    fn tail_of(entries: &[(u64, u64)]) -> Tail {
        let mut tail = Tail::new(96);
        for (term, index) in entries {
            tail.push_queued(entry(*term, *index));
        }
        tail
    }

    #[test]
    fn terms_are_found_after_truncate_and_release() {
        let mut tail = tail_of(&[(1, 0), (1, 1), (2, 2), (2, 3), (5, 4)]);
        tail.truncate_after(Some(LogId { term: 2, index: 3 }));
        assert_eq!(tail.log_id(4), None);
        tail.push_queued(entry(6, 4));
        tail.release(LogId { term: 1, index: 1 });
        assert_eq!(tail.log_id(0), None);
        assert_eq!(tail.log_id(1), Some(LogId { term: 1, index: 1 }));
        assert_eq!(tail.log_id(2), Some(LogId { term: 2, index: 2 }));
        assert_eq!(tail.log_id(4), Some(LogId { term: 6, index: 4 }));
        assert!(tail.check_truncate(Some(LogId { term: 1, index: 2 })).is_err(), "wrong term");
        assert!(tail.check_truncate(None).is_err(), "below what is released");
        assert!(tail.check_truncate(Some(LogId { term: 1, index: 1 })).is_ok());
    }

    #[test]
    fn only_entries_on_disk_leave_memory() {
        let mut tail = tail_of(&[(1, 0), (1, 1), (1, 2), (1, 3)]);
        tail.evict();
        assert!(tail.entry(0).is_some(), "not on disk yet");
        for index in 0..3 {
            tail.place(index, index, 512 + 48 * index);
        }
        tail.evict();
        assert!(tail.entry(1).is_none());
        assert_eq!(tail.find(1), Some(Place::At(560)));
        assert_eq!(tail.find(3), Some(Place::Queued));
        assert!(tail.entry(2).is_some());
    }

    #[test]
    fn a_place_is_not_given_to_a_later_entry_of_the_same_index() {
        let mut tail = tail_of(&[(1, 0), (1, 1)]);
        tail.truncate_after(Some(LogId { term: 1, index: 0 }));
        tail.push_queued(entry(2, 1));
        tail.place(1, 1, 560);
        assert_eq!(tail.find(1), Some(Place::Queued));
        tail.place(1, 2, 700);
        assert_eq!(tail.find(1), Some(Place::At(700)));
    }

    #[test]
    fn release_beyond_the_end_leaves_an_empty_log() {
        let mut tail = tail_of(&[(1, 0), (1, 1)]);
        tail.release(LogId { term: 3, index: 9 });
        assert_eq!((tail.last(), tail.first_index()), (Some(LogId { term: 3, index: 9 }), None));
        assert!(Tail::check_next(tail.last(), LogId { term: 3, index: 2 }).is_err());
        tail.push_queued(entry(3, 10));
        assert_eq!(tail.first_index(), Some(10));
    }
}
