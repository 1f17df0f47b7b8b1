//! The keyspace that clients see: keys, values and their history, at revisions. Knows nothing of raft, of leases'
//! time, of watchers or of the wire.
//!
//! Reading order: `revision`, `event`, `range`, `layout` (the bytes), `rewind` and `read` (the way back to a revision),
//! `write` with `cache`, `history`, `pin`, `hash`, `compaction`, `fences`, `import`.

pub mod event;
pub mod hash;
pub mod import;
pub mod layout;
pub mod range;
pub mod revision;

mod cache;
mod compaction;
mod fences;
mod history;
mod pin;
mod read;
mod rewind;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use crate::backend::{self, Backend, BackendSize, Family, Span, VisitRow, WriteBatch};
use crate::error::{Result, StorageError};
use crate::log_id::LogId;

pub use event::{Event, EventKind, KeyValue};
pub use fences::GoesOn;
pub use history::HistoryChunk;
pub use pin::{Pin, PinnedTables};
pub use range::{KeyRange, RangeEnd, RangeOptions, RangeResult};
pub use read::{KvRef, ReadTxn};
pub use revision::Revision;
pub use write::{TxnChanges, TxnOptions, WriteTxn, Writer};

use fences::Fences;
use layout::Position;

/// Why a read could not be answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The revision lies below the compact revision.
    #[error("the revision has been compacted")]
    Compacted,
    /// The revision lies above the current one.
    #[error("the revision is a future one")]
    Future,
    /// Storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// The keyspace as any thread may use it: what is published, and reads of it.
///
/// ```text
///   Writer (apply thread)                          readers (any thread)
///   begin .. finish, begin .. finish, commit  ->   backend: cur, log, fwd
///                                     publish ->   current, compact, applied   -> read at R, history
/// ```
///
/// `cur` holds the newest record of each key, `log` one undo record for each change, which says what the key was
/// before. A reader takes `R`, the published revision or an older one, and undoes what it meets above `R`.
///
/// Invariants:
/// - `history floor <= durable compact revision <= compact_revision <= read revision <= current_revision`;
/// - every change above the history floor has its undo record, which never changes;
/// - `durable applied <= applied`.
///
/// All of it may be replaced by a newer state of the same history, see [`Keyspace::replace`]: reads that have begun end
/// in the old one.
pub struct Keyspace {
    shared: ArcSwap<Shared>,
    /// Bytes of keys and values in the write batches since it was opened.
    written_bytes: AtomicU64,
    cache_bytes_max: usize,
}

/// What readers and the writer have in common.
struct Shared {
    backend: Arc<dyn Backend>,
    // Published by the writer.
    current_revision: AtomicI64,
    compact_revision: AtomicI64,
    applied: ArcSwapOption<LogId>,
    // Raised by whoever drops history.
    history_floor: AtomicI64,
    /// Revisions that the history floor must not pass, with the number of those who hold it there. Held while it moves.
    pins: Mutex<BTreeMap<i64, usize>>,
    // Fed by the writer through a queue, else kept by readers among themselves.
    fences: Fences,
}

impl Keyspace {
    /// Bound of the writer's cache of hot keys, in bytes.
    pub const CACHE_BYTES_MAX: usize = 16 << 20;
    /// How often [`Keyspace::read_current`] reads.
    pub const READ_CURRENT_TRIES: u32 = 8;
    /// Revision of the empty store, and etcd's internal value for "never compacted".
    pub(crate) const EMPTY: Position = Position { applied: None, current_revision: 1, compact_revision: -1 };

    /// Opens what `backend` holds, or makes an empty keyspace. There is one writer, for the apply thread.
    pub fn open(backend: Arc<dyn Backend>) -> Result<(Arc<Self>, Writer)> {
        Self::open_with(backend, Self::CACHE_BYTES_MAX)
    }

    /// As [`Keyspace::open`], with another bound for the writer's cache of hot keys.
    pub fn open_with(backend: Arc<dyn Backend>, cache_bytes_max: usize) -> Result<(Arc<Self>, Writer)> {
        let (shared, position, hash) = Shared::open(backend)?;
        let (shared, written_bytes) = (ArcSwap::from_pointee(shared), AtomicU64::new(0));
        let keyspace = Arc::new(Self { shared, written_bytes, cache_bytes_max });
        let shared = keyspace.shared();
        Ok((keyspace.clone(), Writer::new(keyspace, shared, position, hash, cache_bytes_max)))
    }

    /// From now on what `backend` holds is the keyspace: a later state of the same history. The writer before must not be
    /// used any more. Who reads the old state goes on to do so; its files go with the last of them.
    pub fn replace(self: &Arc<Self>, backend: Arc<dyn Backend>) -> Result<Writer> {
        let (shared, position, hash) = Shared::open(backend)?;
        let current = self.current_revision();
        if position.current_revision < current || position.compact_revision < self.compact_revision() {
            let what = format!(
                "a state at revision {} cannot replace one at revision {current}: it is older",
                position.current_revision
            );
            return Err(StorageError::Invariant { what });
        }
        shared.fences.set_keys_per_fence(self.shared().fences.keys_per_fence());
        let shared = Arc::new(shared);
        let before = self.shared.swap(shared.clone());
        before.backend.retire();
        Ok(Writer::new(self.clone(), shared, position, hash, self.cache_bytes_max))
    }

    fn shared(&self) -> Arc<Shared> {
        self.shared.load_full()
    }

    /// Newest revision that readers see.
    pub fn current_revision(&self) -> i64 {
        self.shared.load().current_revision.load(Ordering::Acquire)
    }

    /// Below it nothing can be read; -1 if never compacted.
    pub fn compact_revision(&self) -> i64 {
        self.shared.load().compact_revision.load(Ordering::Acquire)
    }

    /// Reads at `revision`, or at the current one if it is 0 or less.
    pub fn read(&self, revision: i64) -> std::result::Result<ReadTxn, ReadError> {
        let shared = self.shared.load();
        let (current, compact) = shared.revisions();
        let revision = if revision <= 0 { current } else { revision };
        if revision > current {
            return Err(ReadError::Future);
        }
        if revision < compact {
            return Err(ReadError::Compacted);
        }
        Ok(ReadTxn::new(shared.clone(), revision))
    }

    /// Runs `read` at the current revision, and again at a newer one if meanwhile a compaction above it has dropped
    /// history that `read` needed: who asks for the current revision must not be told that it is compacted. What `read`
    /// had gathered before it is called again is void.
    ///
    /// After [`Keyspace::READ_CURRENT_TRIES`] of these the answer is [`ReadError::Compacted`] all the same: each takes a
    /// compaction and a flush, so `read` is then slower than both.
    pub fn read_current<T>(
        &self,
        mut read: impl FnMut(&ReadTxn) -> std::result::Result<T, ReadError>,
    ) -> std::result::Result<T, ReadError> {
        for _ in 1..Self::READ_CURRENT_TRIES {
            let txn = self.read(0)?;
            match read(&txn) {
                Err(ReadError::Compacted) if txn.is_outrun() => {}
                answer => return answer,
            }
        }
        read(&self.read(0)?)
    }

    /// How many keys lie between the fences that make counting quick, from now on. The default suits all but tests.
    pub fn set_keys_per_fence(&self, keys: usize) {
        self.shared.load().fences.set_keys_per_fence(keys);
    }

    /// The last log entry that readers see the changes of.
    pub fn applied(&self) -> Option<LogId> {
        self.shared.load().applied.load().as_deref().copied()
    }

    /// The last log entry whose changes survive a crash: the log may be released up to it, and is replayed behind it.
    pub fn durable_applied(&self) -> Result<Option<LogId>> {
        Ok(self.shared.load().durable_position()?.and_then(|position| position.applied))
    }

    /// Makes everything committed so far durable.
    pub fn flush(&self) -> Result<()> {
        self.shared().flush()
    }

    /// Brings what makes counting quick along, as far as reading about `reads_max` keys goes; to be called often, by a
    /// thread that may wait for the disk. Whether there is more to do. Without it counts are right, too.
    pub fn tend_fences(&self, reads_max: usize) -> Result<bool> {
        let shared = self.shared();
        shared.fences.tend(&shared, reads_max)
    }

    /// Puts what makes counting quick into the backend, so that a copy of it has that too. A flush does it by itself.
    pub fn store_fences(&self) -> Result<()> {
        let shared = self.shared();
        shared.fences.store(&shared)
    }

    /// How often the fences were found wrong and made anew: anything but 0 is a defect.
    pub fn fences_mended(&self) -> u64 {
        self.shared.load().fences.mended()
    }

    /// Present size.
    pub fn size(&self) -> Result<BackendSize> {
        self.shared().backend.size()
    }

    /// Bytes of keys and values in the write batches since it was opened; only grows. One atomic load.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// The backend underneath, for checkpoints.
    pub fn backend(&self) -> Arc<dyn Backend> {
        self.shared.load().backend.clone()
    }

    /// A row of the family `meta`, as committed.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = Vec::new();
        Ok(self.shared.load().backend.get(Family::Meta, key, &mut value)?.then_some(value))
    }

    /// Calls `visit` for each row of a table from `start` up to `end` (empty: to the last) in key order until it
    /// breaks, as committed when the call began.
    pub fn table_scan(&self, family: Family, start: &[u8], end: &[u8], visit: &mut VisitRow<'_>) -> Result<()> {
        let span = Span { start, end: (!end.is_empty()).then_some(end) };
        backend::for_each(&*self.shared().backend, family, span, visit)
    }
}

impl Shared {
    fn open(backend: Arc<dyn Backend>) -> Result<(Self, Position, u128)> {
        check_format(&*backend)?;
        let shared = Self {
            backend,
            current_revision: AtomicI64::new(0),
            compact_revision: AtomicI64::new(0),
            applied: ArcSwapOption::empty(),
            history_floor: AtomicI64::new(0),
            pins: Mutex::default(),
            fences: Fences::default(),
        };
        let mut bytes = Vec::new();
        let position = match shared.backend.get(Family::Meta, layout::POSITION_KEY, &mut bytes)? {
            true => shared.decode_position(&bytes)?,
            false => Keyspace::EMPTY,
        };
        check_history_end(&shared, &position)?;
        let floor = shared.durable_position()?.map_or(0, |position| position.compact_revision).max(0);
        shared.history_floor.store(floor, Ordering::Release);
        shared.backend.set_history_floor(floor);
        shared.publish(&position);
        let hash = hash::open(&shared, position.current_revision)?;
        shared.fences.open(&shared, position.current_revision)?;
        Ok((shared, position, hash))
    }

    /// Current and compact revision of one moment, as far as it matters: the second is never above the first.
    fn revisions(&self) -> (i64, i64) {
        loop {
            let current = self.current_revision.load(Ordering::Acquire);
            let compact = self.compact_revision.load(Ordering::Acquire);
            // A publish in between may have raised the compact revision beyond the older current one.
            if compact <= current {
                return (current, compact);
            }
        }
    }

    fn publish(&self, position: &Position) {
        assert!(position.compact_revision <= position.current_revision);
        assert!(self.current_revision.load(Ordering::Relaxed) <= position.current_revision);
        self.current_revision.store(position.current_revision, Ordering::Release);
        self.compact_revision.store(position.compact_revision, Ordering::Release);
        if self.applied.load().as_deref() != position.applied.as_ref() {
            self.applied.store(position.applied.map(Arc::new));
        }
    }

    fn flush(&self) -> Result<()> {
        self.fences.store(self)?;
        self.backend.flush()
    }

    /// Whether what a read at `revision` needs is still there. To be asked after the read: it may have missed things.
    fn check_floor(&self, revision: i64) -> std::result::Result<(), ReadError> {
        if self.history_floor.load(Ordering::Acquire) > revision { Err(ReadError::Compacted) } else { Ok(()) }
    }

    fn durable_position(&self) -> Result<Option<Position>> {
        let mut bytes = Vec::new();
        match self.backend.get_durable(Family::Meta, layout::POSITION_KEY, &mut bytes)? {
            true => self.decode_position(&bytes).map(Some),
            false => Ok(None),
        }
    }

    fn decode_position(&self, bytes: &[u8]) -> Result<Position> {
        layout::decode_position(bytes).ok_or_else(|| rewind::undecodable(self, "record", layout::POSITION_KEY))
    }
}

/// A store without a format version is new, and gets one; any other than ours is refused.
fn check_format(backend: &dyn Backend) -> Result<()> {
    let refuse = |what: String| Err(StorageError::Format { path: backend.path().into(), what });
    let mut bytes = Vec::new();
    if backend.get(Family::Meta, layout::FORMAT_KEY, &mut bytes)? {
        let ours = layout::FORMAT_VERSION;
        return match <[u8; 4]>::try_from(&bytes[..]).map(u32::from_le_bytes) {
            Ok(version) if version == ours => Ok(()),
            Ok(version) => refuse(format!("its format version is {version}, this program reads and writes {ours}")),
            Err(_) => refuse("its format version cannot be read".into()),
        };
    }
    for family in Family::ALL {
        let everything = Span { start: b"", end: None };
        if backend.iterate(family, everything, backend::Direction::Forward)?.item().is_some() {
            return refuse(format!("it has no format version, but data in {}", family.name()));
        }
    }
    let mut batch = WriteBatch::default();
    batch.put(Family::Meta, layout::FORMAT_KEY, &layout::FORMAT_VERSION.to_le_bytes());
    backend.write(&mut batch)
}

/// The newest undo record is of the current revision: otherwise the families are of different moments. Only what was
/// imported as compacted up to its newest revision has no record of that one.
fn check_history_end(shared: &Shared, position: &Position) -> Result<()> {
    let everything = Span { start: b"", end: None };
    let cursor = shared.backend.iterate(Family::Log, everything, backend::Direction::Backward)?;
    let found = match cursor.item() {
        None => 1,
        Some((key, _)) => {
            let revision = layout::decode_revision_key(key);
            revision.ok_or_else(|| rewind::undecodable(shared, "key of history", key))?.main
        }
    };
    let current_revision = position.current_revision;
    let nothing_above = position.compact_revision == current_revision && found < current_revision;
    if found != current_revision && !nothing_above {
        let what = format!("history ends at revision {found}, but the current revision is {current_revision}");
        return Err(StorageError::Invariant { what });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The writer moves to the apply thread; everybody shares the keyspace and hands reads to other threads.
    #[test]
    fn parts_go_where_they_are_used() {
        fn sent<T: Send + 'static>() {}
        fn shared<T: Send + Sync + 'static>() {}
        sent::<Writer>();
        shared::<Keyspace>();
        shared::<ReadTxn>();
    }
}
