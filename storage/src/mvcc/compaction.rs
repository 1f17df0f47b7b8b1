//! Forgetting history: what the compact revision allows to go. No scan and no pause: whole files are dropped, and
//! RocksDB leaves out old stubs and links when it merges anyway.

use std::sync::atomic::Ordering;

use super::Keyspace;
use super::layout;
use super::revision::Revision;
use crate::backend::Family;
use crate::error::{Result, StorageError};

impl Keyspace {
    /// Frees what no read and no watch at or above the compact revision asks for. Slow enough to be kept off the
    /// apply thread; harmless to repeat, and to be called once after a start for what was left over.
    ///
    /// What goes, at a history floor `F`:
    /// - records of `log` below `F`: a read at `R >= F` rewinds only changes above `R`, and history begins with `F`;
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
        let shared = &self.shared;
        if shared.durable_position()?.is_none_or(|position| position.compact_revision < compact) {
            shared.backend.flush()?;
        }
        let durable = shared.durable_position()?.map_or(-1, |position| position.compact_revision);
        if durable < compact {
            let what = format!("compact revision {compact} is not durable after a flush, but {durable} is");
            return Err(StorageError::Invariant { what });
        }
        // Told to readers before anything goes, so that a read which misses something knows why.
        let floor = shared.history_floor.fetch_max(compact, Ordering::AcqRel).max(compact);
        shared.backend.set_history_floor(floor);
        let first_kept = layout::revision_key(Revision::first_of(floor));
        shared.backend.drop_files_below(Family::Log, &first_kept)?;
        shared.backend.drop_files_below(Family::Fwd, &first_kept)
    }

    /// No read below it can be answered any more.
    pub fn history_floor(&self) -> i64 {
        self.shared.history_floor.load(Ordering::Acquire)
    }
}
