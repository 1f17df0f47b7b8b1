//! The backend seam: five families of ordered bytes, changed by atomic write batches. Knows nothing of revisions
//! except the history floor, below which it may forget stubs, and nothing of the raft log that makes it durable.

#[cfg(any(feature = "rocksdb", test))]
mod memtable;
#[cfg(feature = "rocksdb")]
pub mod rocks;

pub mod mem;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

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

/// A backend as it was at one moment, for as long as it is held. What is forgotten by age, history and stubs, may be
/// missing in it all the same.
pub trait View {
    /// As [`Backend::get`].
    fn get(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool>;
    /// As [`Backend::iterate`], ascending.
    fn iterate(&self, family: Family, span: Span<'_>) -> Result<Box<dyn Cursor + '_>>;
}

/// How large a backend is, in bytes.
#[derive(Copy, Clone, Default, PartialEq, Eq, Debug)]
pub struct BackendSize {
    /// Files on disk, without those that are kept only for cursors that are still open.
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
    /// Calls `visit` with the place and the value of each of `keys`, which ascend, in their order. Costs less than as many
    /// [`Backend::get`].
    fn get_many(&self, family: Family, keys: &[&[u8]], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<()>;
    /// As [`Backend::get`], but sees only what would survive a crash now.
    fn get_durable(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool>;
    /// A cursor on the first (or, backward, last) item of `span`.
    fn iterate(&self, family: Family, span: Span<'_>, direction: Direction) -> Result<Box<dyn Cursor + '_>>;
    /// The same for who passes over much that nobody will ask for soon: it is not kept in memory.
    fn iterate_once(&self, family: Family, span: Span<'_>, direction: Direction) -> Result<Box<dyn Cursor + '_>> {
        self.iterate(family, span, direction)
    }
    /// All families at one moment.
    fn view(&self) -> Box<dyn View + '_>;
    /// Applies all of `batch` or nothing, over all families, and empties it either way, so that a large one need not be
    /// in memory twice. Visible on return; durable after a flush.
    fn write(&self, batch: &mut WriteBatch) -> Result<()>;
    /// Makes everything written so far durable.
    fn flush(&self) -> Result<()>;
    /// Frees space that only keys below `key` take, as far as that is cheap. What is freed is gone durably, so the
    /// caller must have made durable that nobody asks for it.
    fn drop_files_below(&self, family: Family, key: &[u8]) -> Result<()>;
    /// From now on stubs at or below `revision`, and links from below it, may be forgotten. The same duty for the
    /// caller.
    fn set_history_floor(&self, revision: i64);
    /// Rewrites whatever holds space that only forgotten or overwritten items take. Slow; reads and writes go on.
    fn reclaim(&self) -> Result<()>;
    /// Present size.
    fn size(&self) -> Result<BackendSize>;
    /// Writes a consistent copy, all that was written included, into the new directory `dir`.
    fn checkpoint(&self, dir: &Path) -> Result<()>;
    /// Opens such a copy in `dir`, with the settings of this backend.
    fn open_copy(&self, dir: &Path, purpose: CopyUse) -> Result<Arc<dyn Backend>>;
    /// Another backend has taken its place: once nobody uses this one any more, its files are removed.
    fn retire(&self);
}

/// What a copy is opened for.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum CopyUse {
    /// To read a few rows; nothing in the directory changes.
    Look,
    /// To be the state from now on.
    Live,
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

/// What a place in a write batch holds; valid until the batch is cut before it or emptied.
#[derive(Copy, Clone, Debug)]
pub struct ValueRef {
    block: u32,
    start: u32,
    len: u32,
}

#[derive(Copy, Clone, Debug)]
struct Change {
    family: Family,
    block: u32,
    /// Where the key begins in its block; the value follows it.
    start: u32,
    key_len: u32,
    /// [`DELETED`] deletes.
    value_len: u32,
}

/// Stands in for the length of a value.
const DELETED: u32 = u32::MAX;

/// Size of a block, but for one whose only change is larger.
const BLOCK_BYTES: usize = 1 << 20;

/// Room for so many changes is kept from batch to batch.
const CHANGES_KEPT_MAX: usize = 1 << 16;

/// Changes in order, of which later ones of a key win. In blocks, of which the first is reused from batch to batch: a
/// large batch then never has to be moved to a larger buffer, and can be given back piece by piece.
#[derive(Default)]
pub struct WriteBatch {
    blocks: Vec<Vec<u8>>,
    changes: Vec<Change>,
    byte_len: usize,
}

/// One change of a write batch: family, key, and the new value or none for a deletion.
pub type ChangeRef<'a> = (Family, &'a [u8], Option<&'a [u8]>);

/// A length of a write batch to which it can be cut back.
#[derive(Copy, Clone, Debug)]
pub struct Mark {
    blocks: usize,
    /// In the last of these blocks.
    bytes: usize,
    changes: usize,
    byte_len: usize,
}

impl WriteBatch {
    /// Adds a change that sets `key`.
    pub fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> ValueRef {
        let len = u32::try_from(value.len()).ok().filter(|len| *len != DELETED);
        self.push(family, key, value, len.expect("values are far below 4 GiB"))
    }

    /// Adds a change that removes `key`.
    pub fn delete(&mut self, family: Family, key: &[u8]) {
        self.push(family, key, &[], DELETED);
    }

    /// What a put of this batch stored.
    pub fn value(&self, at: ValueRef) -> &[u8] {
        &self.blocks[at.block as usize][at.start as usize..][..at.len as usize]
    }

    /// The changes in order.
    pub fn changes(&self) -> impl Iterator<Item = ChangeRef<'_>> {
        self.changes.iter().map(|change| change.read(&self.blocks[change.block as usize]))
    }

    /// Calls `visit` with the changes in order, and forgets them on the way.
    pub fn drain(&mut self, mut visit: impl FnMut(ChangeRef<'_>)) {
        let mut reached = 0;
        for change in &self.changes {
            let block = change.block as usize;
            while reached < block {
                self.blocks[reached] = Vec::new();
                reached += 1;
            }
            visit(change.read(&self.blocks[block]));
        }
        self.clear();
    }

    /// Brings the changes of `family` into the order of their keys, behind all others; those of one key keep theirs. Not
    /// where there are several blocks, which are given back in the order in which they were filled.
    pub fn sort(&mut self, family: Family) {
        if self.blocks.len() != 1 {
            return;
        }
        let block = &self.blocks[0];
        let key = |change: &Change| change.read(block).1;
        // Mostly the first bytes decide, and then nothing has to be fetched.
        let own = self.changes.iter().filter(|change| change.family == family);
        let mut sorted: Vec<_> = own.map(|change| (first_bytes(key(change)), *change)).collect();
        sorted.sort_by(|(a_first, a), (b_first, b)| a_first.cmp(b_first).then_with(|| key(a).cmp(key(b))));
        self.changes.retain(|change| change.family != family);
        self.changes.extend(sorted.into_iter().map(|(_, change)| change));
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
        self.byte_len
    }

    /// The present length.
    pub fn mark(&self) -> Mark {
        let bytes = self.blocks.last().map_or(0, Vec::len);
        Mark { blocks: self.blocks.len(), bytes, changes: self.changes.len(), byte_len: self.byte_len }
    }

    /// Forgets every change added after `mark`.
    pub fn cut(&mut self, mark: Mark) {
        assert!(mark.byte_len <= self.byte_len && mark.changes <= self.changes.len());
        self.blocks.truncate(mark.blocks);
        if let Some(last) = self.blocks.last_mut() {
            last.truncate(mark.bytes);
        }
        self.changes.truncate(mark.changes);
        self.byte_len = mark.byte_len;
    }

    /// Forgets every change. Room that an unusually large batch has taken is given back.
    pub fn clear(&mut self) {
        self.blocks.truncate(1);
        if let Some(first) = self.blocks.first_mut() {
            first.clear();
            first.shrink_to(BLOCK_BYTES);
        }
        self.changes.clear();
        self.changes.shrink_to(CHANGES_KEPT_MAX);
        self.byte_len = 0;
    }

    fn push(&mut self, family: Family, key: &[u8], value: &[u8], value_len: u32) -> ValueRef {
        let bytes = key.len() + value.len();
        if self.blocks.last().is_none_or(|last| !last.is_empty() && last.len() + bytes > BLOCK_BYTES) {
            // The first block grows as needed, and stays as large as that: most batches are small.
            let capacity = if self.blocks.is_empty() { 0 } else { BLOCK_BYTES.max(bytes) };
            self.blocks.push(Vec::with_capacity(capacity));
        }
        let block = self.blocks.len() - 1;
        let filled = &mut self.blocks[block];
        let start = filled.len() as u32;
        filled.extend_from_slice(key);
        filled.extend_from_slice(value);
        self.byte_len += bytes;
        let key_len = u32::try_from(key.len()).expect("keys are far below 4 GiB");
        let block = block as u32;
        self.changes.push(Change { family, block, start, key_len, value_len });
        ValueRef { block, start: start + key_len, len: value.len() as u32 }
    }
}

/// The first eight bytes as a number that orders keys as they do.
pub(crate) fn first_bytes(key: &[u8]) -> u64 {
    let mut first = [0; 8];
    let len = key.len().min(8);
    first[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(first)
}

impl Change {
    fn read<'a>(&self, block: &'a [u8]) -> ChangeRef<'a> {
        let (key, rest) = block[self.start as usize..].split_at(self.key_len as usize);
        (self.family, key, (self.value_len != DELETED).then(|| &rest[..self.value_len as usize]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Owned = (Family, Vec<u8>, Option<Vec<u8>>);

    fn owned((family, key, value): ChangeRef<'_>) -> Owned {
        (family, key.to_vec(), value.map(<[u8]>::to_vec))
    }

    /// Large and small changes, of which some fill a block alone.
    fn fill(batch: &mut WriteBatch, from: usize, to: usize) -> Vec<(Owned, Option<ValueRef>)> {
        let change = |number: usize| {
            let key = number.to_be_bytes();
            if number % 7 == 3 {
                batch.delete(Family::Fwd, &key);
                return ((Family::Fwd, key.to_vec(), None), None);
            }
            let value = vec![number as u8; [0, 10, BLOCK_BYTES / 3, 2 * BLOCK_BYTES][number % 4]];
            let at = batch.put(Family::Cur, &key, &value);
            ((Family::Cur, key.to_vec(), Some(value)), Some(at))
        };
        (from..to).map(change).collect()
    }

    #[test]
    fn changes_come_back_in_order_from_any_block() {
        let mut batch = WriteBatch::default();
        // Again and again, because an emptied batch keeps its first block.
        for round in 1..4 {
            let kept = fill(&mut batch, round, 20);
            let mark = batch.mark();
            fill(&mut batch, 20, 30);
            batch.cut(mark);
            for ((_, _, value), at) in &kept {
                assert_eq!(at.map(|at| batch.value(at)), value.as_deref());
            }
            let expected: Vec<Owned> = kept.into_iter().map(|(change, _)| change).collect();
            let bytes = expected.iter().map(|(_, key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
            assert_eq!((batch.len(), batch.byte_len()), (expected.len(), bytes));
            assert!(batch.changes().map(owned).eq(expected.iter().cloned()));
            let mut drained = Vec::new();
            batch.drain(|change| drained.push(owned(change)));
            assert!(drained == expected && batch.is_empty() && batch.byte_len() == 0);
            assert!(batch.blocks.iter().map(Vec::capacity).sum::<usize>() <= 2 * BLOCK_BYTES);
        }
    }

    #[test]
    fn changes_of_one_family_are_brought_into_order() {
        let mut batch = WriteBatch::default();
        let keys: [&[u8]; 8] = [b"b", b"a", b"b", b"", b"a\0", b"12345678b", b"12345678a", b"\xff"];
        for (number, key) in keys.iter().enumerate() {
            batch.put(Family::Cur, key, &[number as u8]);
            batch.put(Family::Log, &[9 - number as u8], b"log");
        }
        batch.delete(Family::Cur, b"a");
        batch.sort(Family::Cur);
        let got: Vec<Owned> = batch.changes().map(owned).collect();
        assert!(got[..8].iter().enumerate().all(|(n, change)| change.0 == Family::Log && change.1 == [9 - n as u8]));
        let cur: Vec<_> = got[8..].iter().map(|(_, key, value)| (&key[..], value.as_ref().map(|v| v[0]))).collect();
        let expected: [(&[u8], Option<u8>); 9] = [
            (b"", Some(3)),
            (b"12345678a", Some(6)),
            (b"12345678b", Some(5)),
            (b"a", Some(1)),
            (b"a", None),
            (b"a\0", Some(4)),
            (b"b", Some(0)),
            (b"b", Some(2)),
            (b"\xff", Some(7)),
        ];
        assert_eq!(cur, expected, "and of one key the later one stays later");
    }

    #[test]
    fn a_batch_of_several_blocks_stays_as_it_is() {
        let mut batch = WriteBatch::default();
        fill(&mut batch, 1, 20);
        let before: Vec<Owned> = batch.changes().map(owned).collect();
        batch.sort(Family::Cur);
        assert!(batch.changes().map(owned).eq(before));
    }

    #[test]
    fn a_mark_at_the_start_cuts_everything() {
        let mut batch = WriteBatch::default();
        let mark = batch.mark();
        fill(&mut batch, 0, 9);
        batch.cut(mark);
        assert!(batch.is_empty() && batch.changes().next().is_none());
        fill(&mut batch, 0, 9);
        assert_eq!(batch.len(), 9);
    }
}
