//! One key back through its undo records to a revision. Undo records never change, so this needs neither a lock nor
//! a pinned view of the backend.

use std::ops::ControlFlow;

use super::cache::Overlay;
use super::layout::{self, Meta, Record, UndoRecord};
use super::range::KeyRange;
use super::revision::Revision;
use super::{ReadError, Shared};
use crate::backend::{Cursor, Direction, Family};
use crate::error::{Result, StorageError};

/// Is shown key and record of one key after the other, until it breaks or fails.
pub(super) type Visit<'a, E> = dyn FnMut(&[u8], &[u8]) -> std::result::Result<ControlFlow<()>, E> + 'a;

/// Where a read looks: into the backend, and on the apply thread first into the write batch in progress.
#[derive(Copy, Clone)]
pub(super) struct Source<'a> {
    pub shared: &'a Shared,
    pub overlay: Option<&'a Overlay>,
    /// What it reads is worth keeping in memory for others.
    pub is_worth_keeping: bool,
}

impl<'a> Source<'a> {
    /// For who reads what somebody asks for.
    pub fn new(shared: &'a Shared, overlay: Option<&'a Overlay>) -> Self {
        Self { shared, overlay, is_worth_keeping: true }
    }

    /// For upkeep, which passes over much and comes back to nothing.
    pub fn passing(shared: &'a Shared) -> Self {
        Self { shared, overlay: None, is_worth_keeping: false }
    }

    /// The newest record of `key` that this source knows.
    pub fn newest(&self, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        if let Some(record) = self.overlay.and_then(|overlay| overlay.newest(key)) {
            out.clear();
            out.extend_from_slice(record);
            return Ok(true);
        }
        self.shared.backend.get(Family::Cur, key, out)
    }

    /// Calls `visit` with the newest record of each key of `range`, in key order or against it, until it breaks.
    pub fn newest_in(
        &self,
        range: &KeyRange,
        direction: Direction,
        visit: &mut Visit<'_, ReadError>,
    ) -> std::result::Result<(), ReadError> {
        let Some(span) = range.span() else {
            let mut record = Vec::new();
            if self.newest(&range.start, &mut record)? {
                let _ = visit(&range.start, &record)?;
            }
            return Ok(());
        };
        if span.is_empty() {
            return Ok(());
        }
        let mut own = self.overlay.map_or_else(Vec::new, |overlay| overlay.newest_in(range));
        if direction == Direction::Backward {
            own.reverse();
        }
        let cursor = match self.is_worth_keeping {
            true => self.shared.backend.iterate(Family::Cur, span, direction)?,
            false => self.shared.backend.iterate_once(Family::Cur, span, direction)?,
        };
        merge(cursor, &own, direction, visit)
    }

    /// What `key` was at `revision`, given the bytes of a record of it that may be newer. None if it did not exist.
    pub fn at_revision<'b>(
        &self,
        key: &[u8],
        record: &'b [u8],
        revision: i64,
        scratch: &'b mut Vec<u8>,
    ) -> std::result::Result<Option<(Meta, &'b [u8])>, ReadError> {
        let newest = layout::decode_record(record).ok_or_else(|| self.undecodable("record of", key))?;
        let record = match newest.modified() {
            Some(modified) if modified.main > revision => self.rewind(key, modified, revision, scratch)?,
            _ => newest,
        };
        Ok(match record {
            Record::Live(meta, value) => Some((meta, value)),
            Record::Stub(_) | Record::None => None,
        })
    }

    /// The state of `key` before its change `from` and all others above `revision`.
    pub fn rewind<'b>(
        &self,
        key: &[u8],
        from: Revision,
        revision: i64,
        scratch: &'b mut Vec<u8>,
    ) -> std::result::Result<Record<'b>, ReadError> {
        let mut at = from;
        loop {
            let undo = self.undo(at, revision, scratch)?;
            if undo.key != key {
                return Err(self.broken(format!("undo record {at} is of another key than {}", key.escape_ascii())));
            }
            match undo.previous.modified() {
                Some(earlier) if earlier >= at => {
                    return Err(self.broken(format!("undo record {at} links forward to {earlier}")));
                }
                Some(earlier) if earlier.main > revision => at = earlier,
                _ => break,
            }
        }
        // Decoded once more because a borrow cannot leave the loop that goes on overwriting the buffer.
        Ok(layout::decode_undo(at, scratch).map_or(Record::None, |undo| undo.previous))
    }

    /// The undo record `at`, needed by a read at `revision`.
    pub fn undo<'b>(
        &self,
        at: Revision,
        revision: i64,
        scratch: &'b mut Vec<u8>,
    ) -> std::result::Result<UndoRecord<'b>, ReadError> {
        if let Some(record) = self.overlay.and_then(|overlay| overlay.undo(at)) {
            scratch.clear();
            scratch.extend_from_slice(record);
        } else if !self.shared.backend.get(Family::Log, &layout::revision_key(at), scratch)? {
            self.shared.check_floor(revision)?;
            return Err(self.broken(format!("undo record {at} is missing for a read at revision {revision}")));
        }
        layout::decode_undo(at, scratch).ok_or_else(|| self.undecodable("undo record of", at.to_string().as_bytes()))
    }

    pub fn broken(&self, what: String) -> ReadError {
        ReadError::Storage(StorageError::Invariant { what })
    }

    pub fn undecodable(&self, kind: &str, whose: &[u8]) -> ReadError {
        ReadError::Storage(undecodable(self.shared, kind, whose))
    }
}

/// The bytes came out of RocksDB with a good checksum and yet are none of ours.
pub(super) fn undecodable(shared: &Shared, kind: &str, whose: &[u8]) -> StorageError {
    StorageError::corrupt(shared.backend.path(), 0, format!("{kind} {} cannot be decoded", whose.escape_ascii()))
}

/// Items of `cursor` and of `own`, both ordered by `direction`, as one sequence; `own` wins, and hides where it holds
/// nothing.
pub(super) fn merge<E: From<StorageError>>(
    mut cursor: Box<dyn Cursor + '_>,
    own: &[(&[u8], Option<&[u8]>)],
    direction: Direction,
    visit: &mut Visit<'_, E>,
) -> std::result::Result<(), E> {
    let mut own = own.iter().peekable();
    loop {
        let (stored_first, own_first) = match (cursor.item(), own.peek()) {
            (None, None) => return Ok(()),
            (Some(_), None) => (true, false),
            (None, Some(_)) => (false, true),
            (Some((stored, _)), Some((key, _))) => {
                let order = if direction == Direction::Forward { stored.cmp(key) } else { (*key).cmp(stored) };
                (order.is_le(), order.is_ge())
            }
        };
        let flow = if own_first {
            let (key, value) = own.next().expect("peeked");
            value.map_or(Ok(ControlFlow::Continue(())), |value| visit(key, value))?
        } else {
            let (key, value) = cursor.item().expect("the cursor stands on an item");
            visit(key, value)?
        };
        if flow.is_break() {
            return Ok(());
        }
        if stored_first {
            cursor.advance()?;
        }
    }
}
