//! The backend seam: five families of ordered bytes, changed by atomic write batches. Knows nothing of revisions
//! except the history floor, below which it may forget stubs, and nothing of the raft log that makes it durable.

#[cfg(feature = "rocksdb")]
pub mod rocks;

pub mod mem;

use std::ops::ControlFlow;
use std::path::Path;

use crate::error::Result;

pub use mem::MemBackend;
#[cfg(feature = "rocksdb")]
pub use rocks::{RocksBackend, RocksOptions};

/// One ordered map of bytes. The numbers are indexes into arrays, not stored anywhere; the names are (frozen).
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Family {
    /// User key to its newest record.
    Cur = 0,
    /// Revision to undo record.
    Log = 1,
    /// Superseded revision to superseding revision.
    Fwd = 2,
    /// Leases and the keys attached to them.
    Lease = 3,
    /// Everything small: position, format version, tables of other owners.
    Meta = 4,
}

impl Family {
    /// Every family, in the order of their numbers.
    pub const ALL: [Family; 5] = [Family::Cur, Family::Log, Family::Fwd, Family::Lease, Family::Meta];

    /// Name on disk. Frozen.
    pub fn name(self) -> &'static str {
        match self {
            Family::Cur => "cur",
            Family::Log => "log",
            Family::Fwd => "fwd",
            Family::Lease => "lease",
            Family::Meta => "meta",
        }
    }
}

/// Direction of an iteration.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

/// A half-open interval of raw keys: from `start`, up to but without `end` (to the last key if absent).
#[derive(Copy, Clone, Debug)]
pub struct Span<'a> {
    /// First key that may be met.
    pub start: &'a [u8],
    /// First key that is no longer met.
    pub end: Option<&'a [u8]>,
}

impl Span<'_> {
    /// Whether no key can lie inside.
    pub fn is_empty(&self) -> bool {
        self.end.is_some_and(|end| end <= self.start)
    }
}

/// A position in an iteration over a consistent view, taken when the cursor was made. Standing on an item or at the
/// end; a backend that could not read on says so instead of pretending that there are no more keys.
pub trait Cursor {
    /// Key and value here, or none at the end.
    fn item(&self) -> Option<(&[u8], &[u8])>;
    /// Moves on. Must not be called at the end.
    fn advance(&mut self) -> Result<()>;
}

/// How large a backend is, in bytes.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub struct BackendSize {
    /// Files on disk.
    pub on_disk_bytes: u64,
    /// Not yet flushed changes in memory.
    pub memtable_bytes: u64,
    /// Blocks held in memory, the charge for the memtables included.
    pub cache_bytes: u64,
    /// Estimate of what the newest state needs of the files.
    pub live_bytes: u64,
}

/// An ordered store of bytes whose writes are atomic but not synced: after a crash it is at some earlier batch, and
/// the raft log brings it back.
pub trait Backend: Send + Sync + 'static {
    /// Where it lives; only for messages.
    fn path(&self) -> &Path;
    /// Replaces `out` by the value of `key`; false and an empty `out` if there is none.
    fn get(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool>;
    /// As [`Backend::get`], but sees only what would survive a crash now.
    fn get_durable(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool>;
    /// A cursor on the first (or, backward, last) item of `span`.
    fn iterate(&self, family: Family, span: Span<'_>, direction: Direction) -> Result<Box<dyn Cursor + '_>>;
    /// Applies all of `batch` or nothing, over all families. Visible on return; durable after a flush.
    fn write(&self, batch: &WriteBatch) -> Result<()>;
    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;
    /// Frees space that only keys below `key` take, as far as that is cheap. What is freed is gone durably, so the
    /// caller must have made durable that nobody asks for it.
    fn drop_files_below(&self, family: Family, key: &[u8]) -> Result<()>;
    /// From now on stubs at or below `revision`, and links from below it, may be forgotten. The same duty for the
    /// caller.
    fn set_history_floor(&self, revision: i64);
    /// Present size.
    fn size(&self) -> Result<BackendSize>;
    /// Writes a consistent copy, all that was written included, into the new directory `dir`.
    fn checkpoint(&self, dir: &Path) -> Result<()>;
}

/// Is shown key and value of one row after the other, until it breaks.
pub type VisitRow<'a> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'a;

/// Calls `visit` for each item of `span` in order until it breaks.
pub fn for_each(backend: &dyn Backend, family: Family, span: Span<'_>, visit: &mut VisitRow<'_>) -> Result<()> {
    let mut cursor = backend.iterate(family, span, Direction::Forward)?;
    while let Some((key, value)) = cursor.item() {
        if visit(key, value).is_break() {
            break;
        }
        cursor.advance()?;
    }
    Ok(())
}

/// What a place in a write batch holds; valid until the batch is cut before it or cleared.
#[derive(Copy, Clone, Debug)]
pub struct ValueRef {
    start: usize,
    len: u32,
}

#[derive(Copy, Clone, Debug)]
struct Change {
    family: Family,
    /// Where the key begins in `bytes`; the value follows it.
    start: usize,
    key_len: u32,
    /// None deletes.
    value_len: Option<u32>,
}

/// Changes in order, in one growing buffer that is reused from batch to batch. Later changes of a key win.
#[derive(Default)]
pub struct WriteBatch {
    bytes: Vec<u8>,
    changes: Vec<Change>,
}

/// One change of a write batch: family, key, and the new value or none for a deletion.
pub type ChangeRef<'a> = (Family, &'a [u8], Option<&'a [u8]>);

/// A length of a write batch to which it can be cut back.
#[derive(Copy, Clone, Debug)]
pub struct Mark {
    bytes: usize,
    changes: usize,
}

impl WriteBatch {
    /// Adds a change that sets `key`.
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> ValueRef {
        self.push(family, key, Some(value))
    }

    /// Adds a change that removes `key`.
    pub fn delete(&mut self, family: Family, key: &[u8]) {
        self.push(family, key, None);
    }

    /// What a put of this batch stored.
    pub fn value(&self, at: ValueRef) -> &[u8] {
        &self.bytes[at.start..][..at.len as usize]
    }

    /// The changes in order.
    pub fn changes(&self) -> impl Iterator<Item = ChangeRef<'_>> {
        self.changes.iter().map(|change| {
            let rest = &self.bytes[change.start..];
            let (key, rest) = rest.split_at(change.key_len as usize);
            (change.family, key, change.value_len.map(|len| &rest[..len as usize]))
        })
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes of keys and values.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The present length.
    pub fn mark(&self) -> Mark {
        Mark { bytes: self.bytes.len(), changes: self.changes.len() }
    }

    /// Forgets every change added after `mark`.
    pub fn cut(&mut self, mark: Mark) {
        assert!(mark.bytes <= self.bytes.len() && mark.changes <= self.changes.len());
        self.bytes.truncate(mark.bytes);
        self.changes.truncate(mark.changes);
    }

    /// Forgets every change. A buffer that an unusually large batch has grown is given back.
    pub fn clear(&mut self) {
        const KEPT_BYTES_MAX: usize = 8 << 20;
        self.changes.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            *self = Self::default();
        }
    }

    fn push(&mut self, family: Family, key: &[u8], value: Option<&[u8]>) -> ValueRef {
        let start = self.bytes.len();
        let value_start = start + key.len();
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value.unwrap_or_default());
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB");
        let value_len = value.map(len);
        self.changes.push(Change { family, start, key_len: len(key), value_len });
        ValueRef { start: value_start, len: value_len.unwrap_or(0) }
    }
}
