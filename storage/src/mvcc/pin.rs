//! The keyspace with all of its history as of one moment, for who reads it from end to end while others write and compact.
//! Holds history back as long as it is held, so not for who may never end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::history::{self, HistoryChunk};
use super::layout::{self, Position};
use super::read::ReadTxn;
use super::{Keyspace, ReadError, Shared, rewind};
use crate::backend::{Direction, Family, Span, View, VisitRow};
use crate::error::Result;
use crate::log_id::LogId;

/// Keeps the history floor from passing a revision.
pub struct Pin {
    shared: Arc<Shared>,
    floor: i64,
}

/// Where the keyspace stood at one moment, and the tables of that very moment.
pub struct PinnedTables<'a> {
    view: Box<dyn View + 'a>,
    position: Position,
}

impl Keyspace {
    /// From now on what can be read now can be read through the pin, whatever is compacted.
    pub fn pin(&self) -> Pin {
        let shared = self.shared();
        let mut pins = shared.pins.lock();
        // Published, and so not below the floor, which cannot move while the lock is held.
        let floor = shared.compact_revision.load(Ordering::Acquire).max(0);
        *pins.entry(floor).or_insert(0) += 1;
        drop(pins);
        Pin { shared, floor }
    }
}

impl Pin {
    /// Position and tables of one moment, which is now.
    pub fn tables(&self) -> Result<PinnedTables<'_>> {
        let view = self.shared.backend.view();
        let mut bytes = Vec::new();
        let position = match view.get(Family::Meta, layout::POSITION_KEY, &mut bytes)? {
            true => self.shared.decode_position(&bytes)?,
            false => Keyspace::EMPTY,
        };
        Ok(PinnedTables { view, position })
    }

    /// Reads at `revision`, which must lie between the compact revision when the pin was made and one that is committed.
    pub fn read(&self, revision: i64) -> ReadTxn {
        assert!(revision >= self.floor, "a pin holds what is above {}", self.floor);
        ReadTxn::new(self.shared.clone(), revision)
    }

    /// As [`Keyspace::history`], without previous pairs, up to `to_revision_inclusive`, which must be committed.
    pub fn history(
        &self,
        from_revision: i64,
        to_revision_inclusive: i64,
        bytes_max: usize,
    ) -> std::result::Result<HistoryChunk, ReadError> {
        assert!(from_revision >= self.floor, "a pin holds what is above {}", self.floor);
        let options = history::Scan { range: None, with_prev: false, bytes_max, compact: self.floor };
        history::scan(&self.shared, from_revision, to_revision_inclusive, &options)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.shared.pins.lock();
        let left = pins.get_mut(&self.floor).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            pins.remove(&self.floor);
        }
    }
}

impl PinnedTables<'_> {
    /// Last log entry in it.
    pub fn applied(&self) -> Option<LogId> {
        self.position.applied
    }

    /// Newest revision.
    pub fn current_revision(&self) -> i64 {
        self.position.current_revision
    }

    /// Compact revision; -1 if never compacted.
    pub fn compact_revision(&self) -> i64 {
        self.position.compact_revision
    }

    /// As [`Keyspace::meta`].
    pub fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = Vec::new();
        Ok(self.view.get(Family::Meta, key, &mut value)?.then_some(value))
    }

    /// As [`Keyspace::table_scan`].
    pub fn scan(&self, family: Family, start: &[u8], end: &[u8], visit: &mut VisitRow<'_>) -> Result<()> {
        let span = Span { start, end: (!end.is_empty()).then_some(end) };
        let cursor = self.view.iterate(family, span)?;
        rewind::merge(cursor, &[], Direction::Forward, &mut |key, value| {
            Ok::<ControlFlow<()>, crate::error::StorageError>(visit(key, value))
        })
    }
}
