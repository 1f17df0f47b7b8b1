//! Forgetting history: what the compact revision allows to go. No scan and no pause: whole files are dropped, and
//! RocksDB leaves out old stubs and links when it merges anyway.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::layout::{self, Record, UndoRecord};
use super::revision::Revision;
use super::rewind::undecodable;
use super::{Keyspace, Shared};
use crate::backend::{Direction, Family, Span, WriteBatch};
use crate::error::{Result, StorageError};

/// Size of one write batch of those that shorten history.
const FORGET_BATCH_BYTES: usize = 1 << 20;

/// How often one looks, after a flush, whether the compact revision is durable, and the pause between two looks: RocksDB's
/// flush may come back a moment before the new files are those that are read.
const LOOKS_MAX: usize = 1000;
const LOOK_PAUSE: Duration = Duration::from_millis(1);

impl Keyspace {
    /// Frees what no read and no watch at or above the compact revision asks for. Slow enough to be kept off the
    /// apply thread; harmless to repeat, and to be called once after a start for what was left over.
    ///
    /// What goes, at a history floor `F`:
    /// - records of `log` below `F`: a read at `R >= F` rewinds only changes above `R`, and history begins with `F`;
    /// - in the records of `log` at `F` what keys were before, which only a read below `F` would ask for;
    /// - links of `fwd` from below `F`: they lead to values of events that history no longer shows;
    /// - stubs of `cur` at or below `F`: at `R >= F` the key is gone with or without them. The delete at `F` itself
    ///   is shown to watchers out of `log`.
    ///
    /// The backend forgets durably and at once, the compact revision becomes durable only with a flush. So the floor
    /// follows the durable compact revision: else a crash could bring back a state that may still be asked for what
    /// is gone.
    pub fn drop_history(&self) -> Result<()> {
        let compact = self.compact_revision();
        if compact <= 0 {
            return Ok(());
        }
        let shared = self.shared();
        let compact = shared.compact_revision.load(Ordering::Acquire);
        let mut durable = durable_compact_revision(&shared)?;
        if durable >= compact && shared.fences.would_be_lost(&shared, compact)? {
            shared.flush()?;
        }
        if durable < compact {
            shared.flush()?;
            durable = durable_compact_revision(&shared)?;
        }
        for _ in 0..LOOKS_MAX {
            if durable >= compact {
                break;
            }
            std::thread::park_timeout(LOOK_PAUSE);
            durable = durable_compact_revision(&shared)?;
        }
        if durable < compact {
            let mut bytes = Vec::new();
            let held = match shared.backend.get(Family::Meta, layout::POSITION_KEY, &mut bytes)? {
                true => shared.decode_position(&bytes)?.compact_revision,
                false => -1,
            };
            let what = format!(
                "compact revision {compact} is not durable after a flush, but {durable} is; the backend holds {held}"
            );
            return Err(StorageError::Invariant { what });
        }
        // Told to readers before anything goes, so that a read which misses something knows why.
        let floor = {
            let pins = shared.pins.lock();
            let allowed = pins.keys().next().map_or(compact, |pinned| compact.min(*pinned));
            let floor = shared.history_floor.fetch_max(allowed, Ordering::AcqRel).max(allowed);
            shared.backend.set_history_floor(floor);
            floor
        };
        let first_kept = layout::revision_key(Revision::first_of(floor));
        shared.backend.drop_files_below(Family::Log, &first_kept)?;
        shared.backend.drop_files_below(Family::Fwd, &first_kept)?;
        forget_before(&shared, floor)
    }

    /// Whether a compaction has left history that [`Keyspace::drop_history`] may drop by now.
    pub fn has_history_to_drop(&self) -> bool {
        let pinned = self.shared.load().pins.lock().keys().next().copied();
        let allowed = pinned.unwrap_or(i64::MAX).min(self.compact_revision());
        allowed > self.history_floor()
    }

    /// Drops history and rewrites what else holds space that nothing reads any more: overwritten records, old stubs,
    /// history that shares a file with newer one. Reads and writes go on meanwhile, at the cost of the disk. Takes as
    /// long as the store is large, so it is for those who ask for it.
    pub fn reclaim(&self) -> Result<()> {
        self.drop_history()?;
        self.shared().backend.reclaim()
    }

    /// No read below it can be answered any more.
    pub fn history_floor(&self) -> i64 {
        self.shared.load().history_floor.load(Ordering::Acquire)
    }
}

fn durable_compact_revision(shared: &Shared) -> Result<i64> {
    Ok(shared.durable_position()?.map_or(-1, |position| position.compact_revision))
}

/// What keys were before revision `floor`: nobody rewinds over its changes any more, but one of them may have removed
/// a whole store. The changes themselves stay for history, and values that the same revision had written before.
fn forget_before(shared: &Shared, floor: i64) -> Result<()> {
    let [start, end] = [floor, floor + 1].map(|main| layout::revision_key(Revision::first_of(main)));
    let span = Span { start: &start, end: Some(&end) };
    let mut cursor = shared.backend.iterate(Family::Log, span, Direction::Forward)?;
    let (mut batch, mut shorter) = (WriteBatch::default(), Vec::new());
    while let Some((key, bytes)) = cursor.item() {
        let at = layout::decode_revision_key(key).ok_or_else(|| undecodable(shared, "key of history", key))?;
        let undo = layout::decode_undo(at, bytes).ok_or_else(|| undecodable(shared, "undo record", key))?;
        if matches!(undo.previous, Record::Live(meta, _) if meta.modified.main < floor) {
            shorter.clear();
            layout::encode_undo(&UndoRecord { previous: Record::None, ..undo }, &mut shorter);
            batch.put(Family::Log, key, &shorter);
        }
        if batch.byte_len() >= FORGET_BATCH_BYTES {
            shared.backend.write(&mut batch)?;
        }
        cursor.advance()?;
    }
    if batch.is_empty() { Ok(()) } else { shared.backend.write(&mut batch) }
}
