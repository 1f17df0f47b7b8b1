//! Which keys came and went: from the writer, which only notes them, to those who count. Bounded, and the writer never
//! waits: what finds no room is left out, and whoever counts notices the gap and reads history instead.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use crossbeam_queue::SegQueue;

/// Bytes that one write batch, and all of them together, may have waiting. More than a second's worth of new keys under
/// full load; a deletion of a whole store does not fit and need not.
const FEED_BYTES_MAX: usize = 4 << 20;

/// Of a change, before its key: revision, and length of the key with [`GONE`].
const HEAD_BYTES: usize = 12;

/// Set in the length of a key that was deleted.
const GONE: u32 = 1 << 31;

/// What the write batch in progress has made and deleted. Belongs to the writer.
#[derive(Default)]
pub(in crate::mvcc) struct Turnover {
    bytes: Vec<u8>,
    changes: usize,
    /// There was more than it may hold.
    is_cut: bool,
}

/// How far a turnover was when a transaction began.
#[derive(Copy, Clone)]
pub(in crate::mvcc) struct TurnoverMark {
    bytes: usize,
    changes: usize,
    is_cut: bool,
}

impl Turnover {
    /// A key came (1) or went (-1).
    pub fn note(&mut self, revision: i64, key: &[u8], change: i64) {
        self.is_cut |= self.bytes.len() + HEAD_BYTES + key.len() > FEED_BYTES_MAX;
        if self.is_cut {
            return;
        }
        let gone = if change < 0 { GONE } else { 0 };
        self.bytes.extend_from_slice(&revision.to_le_bytes());
        self.bytes.extend_from_slice(&(key.len() as u32 | gone).to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.changes += 1;
    }

    pub fn mark(&self) -> TurnoverMark {
        TurnoverMark { bytes: self.bytes.len(), changes: self.changes, is_cut: self.is_cut }
    }

    /// Forgets what was noted since `mark`.
    pub fn cut(&mut self, mark: TurnoverMark) {
        self.bytes.truncate(mark.bytes);
        (self.changes, self.is_cut) = (mark.changes, mark.is_cut);
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(FEED_BYTES_MAX / 16);
        (self.changes, self.is_cut) = (0, false);
    }
}

/// The queue between them.
///
/// Invariant: every batch up to the published revision has been pushed or left out, and `last` says so.
#[derive(Default)]
pub(in crate::mvcc) struct Feed {
    batches: SegQueue<KeyBatch>,
    bytes: AtomicUsize,
    /// Last revision of the newest write batch in which keys came or went.
    last: AtomicI64,
}

impl Feed {
    /// Before anything is pushed: the table, if there is one, holds everything up to `revision`.
    pub fn begin(&self, revision: i64) {
        self.last.store(revision, Ordering::Release);
    }

    /// Writer, once a batch is in the backend and before its revisions are published; `last` is the newest of them.
    pub fn push(&self, last: i64, turnover: &mut Turnover) {
        if turnover.changes == 0 && !turnover.is_cut {
            return;
        }
        let (len, after) = (turnover.bytes.len(), self.last.load(Ordering::Relaxed));
        if !turnover.is_cut && self.bytes.load(Ordering::Relaxed) + len <= FEED_BYTES_MAX {
            self.bytes.fetch_add(len, Ordering::Relaxed);
            self.batches.push(KeyBatch { after, last, bytes: turnover.bytes[..].into(), changes: turnover.changes });
        }
        // Behind the push: who sees it finds the batch, or that it was left out.
        self.last.store(last, Ordering::Release);
        turnover.clear();
    }

    /// Last revision in which keys came or went, of those pushed or left out.
    pub fn last(&self) -> i64 {
        self.last.load(Ordering::Acquire)
    }

    pub fn pop(&self) -> Option<KeyBatch> {
        let batch = self.batches.pop()?;
        self.bytes.fetch_sub(batch.bytes.len(), Ordering::Relaxed);
        Some(batch)
    }
}

/// Keys that came and went within some revisions, in order of revisions.
pub(in crate::mvcc) struct KeyBatch {
    /// No key came or went between this revision, not included, and the batch.
    pub after: i64,
    /// The last revision of it.
    pub last: i64,
    bytes: Box<[u8]>,
    changes: usize,
}

impl KeyBatch {
    /// What `read` says of the revisions behind `after` up to `last`.
    pub fn of_history<E>(
        after: i64,
        last: i64,
        read: impl FnOnce(&mut dyn FnMut(i64, &[u8], i64)) -> Result<bool, E>,
    ) -> Result<Option<Self>, E> {
        let mut all = Turnover::default();
        let mut bytes = Vec::new();
        let mut changes = 0;
        let complete = read(&mut |revision, key, change| {
            all.note(revision, key, change);
            bytes.append(&mut all.bytes);
            changes += 1;
        })?;
        Ok(complete.then(|| Self { after, last, bytes: bytes.into(), changes }))
    }

    pub fn len(&self) -> usize {
        self.changes
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + size_of::<Self>()
    }

    /// Revision, key, and whether it came (1) or went (-1).
    pub fn changes(&self) -> impl Iterator<Item = (i64, &[u8], i64)> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_at_checked(HEAD_BYTES)?;
            let revision = i64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
            let length = u32::from_le_bytes(head[8..].try_into().expect("four bytes"));
            let (key, tail) = tail.split_at((length & !GONE) as usize);
            rest = tail;
            Some((revision, key, if length & GONE == 0 { 1 } else { -1 }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_comes_out_and_what_was_taken_back_does_not() {
        let (feed, mut turnover) = (Feed::default(), Turnover::default());
        feed.begin(5);
        turnover.note(6, b"a", 1);
        let mark = turnover.mark();
        turnover.note(7, b"b", 1);
        turnover.cut(mark);
        turnover.note(7, b"", -1);
        feed.push(8, &mut turnover);
        feed.push(9, &mut turnover);
        assert_eq!(feed.last(), 8, "nothing came or went in the second");
        let batch = feed.pop().unwrap();
        assert_eq!((batch.after, batch.last, batch.len()), (5, 8, 2));
        assert_eq!(batch.changes().collect::<Vec<_>>(), [(6, &b"a"[..], 1), (7, &b""[..], -1)]);
        assert!(feed.pop().is_none());
    }

    #[test]
    fn what_finds_no_room_leaves_a_gap() {
        let (feed, mut turnover) = (Feed::default(), Turnover::default());
        let key = vec![b'k'; FEED_BYTES_MAX / 2];
        for revision in 1..4 {
            turnover.note(revision, &key, 1);
            feed.push(revision, &mut turnover);
        }
        assert_eq!(feed.last(), 3);
        let first = feed.pop().unwrap();
        assert_eq!((first.after, first.last), (0, 1));
        turnover.note(4, b"k", 1);
        let mark = turnover.mark();
        (0..2).for_each(|_| turnover.note(5, &key, 1));
        turnover.cut(mark);
        feed.push(5, &mut turnover);
        let next = feed.pop().unwrap();
        assert_eq!((next.after, next.last, next.len()), (3, 5, 1), "what came between was left out");
        (0..2).for_each(|_| turnover.note(6, &key, -1));
        feed.push(6, &mut turnover);
        assert!(feed.pop().is_none() && feed.last() == 6, "one that is too large by itself");
    }
}
