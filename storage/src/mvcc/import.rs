//! Fills an empty backend with a history that was written elsewhere, change by change in order. Not how a member works: it
//! writes records itself, because what was before the compact revision cannot be done again. Knows no file formats.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use rustc_hash::FxBuildHasher;

use super::Keyspace;
use super::layout::{self, Meta, Op, Position, Record, UndoRecord};
use super::revision::Revision;
use crate::backend::{Backend, Direction, Family, Span, WriteBatch};
use crate::error::{Result, StorageError};
use crate::log_id::LogId;

/// Size of one write batch.
const BATCH_BYTES: usize = 4 << 20;

/// Keys that are read at once when counts are made.
const TEND_READS: usize = 1 << 20;

/// What a change did.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Imported<'a> {
    /// The key got this value.
    Put {
        /// The new value.
        value: &'a [u8],
        /// Main revision of the put that made the key.
        create_revision: i64,
        /// Changes since then.
        version: i64,
        /// Lease, or 0.
        lease: i64,
    },
    /// It is gone.
    Delete,
}

/// A keyspace on its way in.
///
/// Changes up to the compact revision are what is left of them there: the newest of each key. Above it they are all there,
/// without a hole.
pub struct Import {
    backend: Arc<dyn Backend>,
    compact_revision: i64,
    last: Option<Revision>,
    batch: WriteBatch,
    /// Newest records of keys that the batch changes.
    newest: HashMap<Bytes, Vec<u8>, FxBuildHasher>,
    // Buffers.
    before: Vec<u8>,
    record: Vec<u8>,
    undo: Vec<u8>,
}

impl Import {
    /// Begins to fill `backend`, which must be empty. The compact revision is -1 for a history that was never compacted.
    pub fn begin(backend: Arc<dyn Backend>, compact_revision: i64) -> Result<Self> {
        for family in Family::ALL {
            let everything = Span { start: b"", end: None };
            if backend.iterate(family, everything, Direction::Forward)?.item().is_some() {
                return Err(StorageError::Format { path: backend.path().into(), what: "it is not empty".into() });
            }
        }
        let mut batch = WriteBatch::default();
        batch.put(Family::Meta, layout::FORMAT_KEY, &layout::FORMAT_VERSION.to_le_bytes());
        Ok(Self {
            backend,
            compact_revision: compact_revision.max(-1),
            last: None,
            batch,
            newest: HashMap::default(),
            before: Vec::new(),
            record: Vec::new(),
            undo: Vec::new(),
        })
    }

    /// Adds the change `at`, which comes behind all that were added.
    pub fn change(&mut self, at: Revision, key: &[u8], change: Imported<'_>) -> Result<()> {
        self.check(at, key, &change)?;
        self.read_before(key)?;
        let before = std::mem::take(&mut self.before);
        let previous = layout::decode_record(&before).expect("this import has written it");
        self.add(at, key, change, previous);
        self.before = before;
        self.last = Some(at);
        if self.batch.byte_len() >= BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    /// Sets a row of somebody's table.
    pub fn row(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<()> {
        self.batch.put(family, key, value);
        if self.batch.byte_len() >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    /// The newest revision so far; 1 if there is none.
    pub fn revision(&self) -> i64 {
        self.last.map_or(1, |last| last.main)
    }

    /// Calls `visit` with each key that exists and has a lease, and that lease.
    pub fn leased(&mut self, visit: &mut dyn FnMut(&[u8], i64) -> Result<()>) -> Result<()> {
        self.write()?;
        let everything = Span { start: b"", end: None };
        let mut cursor = self.backend.iterate(Family::Cur, everything, Direction::Forward)?;
        while let Some((key, record)) = cursor.item() {
            if let Some(Record::Live(meta, _)) = layout::decode_record(record)
                && meta.lease != 0
            {
                visit(key, meta.lease)?;
            }
            cursor.advance()?;
        }
        Ok(())
    }

    /// Ends it, durably: as of the entry `applied`, and of `bump` revisions later if that is more than 0. Everything up to
    /// the new revision then counts as compacted.
    pub fn finish(mut self, applied: LogId, bump: i64) -> Result<()> {
        let revision = self.revision().max(self.compact_revision);
        let too_large = || self.wrong(&format!("revision {revision} cannot be raised by {bump}"));
        let current_revision = revision.checked_add(bump).ok_or_else(too_large)?;
        let compact_revision = if bump > 0 { current_revision } else { self.compact_revision };
        let position = Position { applied: Some(applied), current_revision, compact_revision };
        self.batch.put(Family::Meta, layout::POSITION_KEY, &layout::encode_position(&position));
        self.write()?;
        self.backend.flush()?;
        // Also makes the hash, once and for all.
        let (keyspace, writer) = Keyspace::open(self.backend.clone())?;
        drop(writer);
        // Likewise what makes counting quick.
        while keyspace.tend_fences(TEND_READS)? {}
        if bump > 0 {
            keyspace.drop_history()?;
        }
        keyspace.flush()
    }

    fn check(&self, at: Revision, key: &[u8], change: &Imported<'_>) -> Result<()> {
        if key.is_empty() || !(0..i64::from(u32::MAX)).contains(&at.sub) || at.main < 2 {
            return Err(self.wrong(&format!("revision {at} with a key of {} bytes cannot be", key.len())));
        }
        let follows = match self.last {
            Some(last) if last >= at => false,
            _ if at.main <= self.compact_revision => true,
            Some(last) if last.main == at.main => at.sub == last.sub + 1,
            last => {
                let before = last.map_or(1, |last| last.main).max(self.compact_revision);
                at == Revision::first_of(before + 1)
            }
        };
        if !follows {
            let last = self.last.unwrap_or_default();
            return Err(self.wrong(&format!("revision {at} comes after {last}: history is not whole")));
        }
        if let Imported::Put { create_revision, version, .. } = change
            && !((1..=at.main).contains(create_revision) && *version >= 1)
        {
            let what = format!("revision {at} is version {version} of what was created at {create_revision}");
            return Err(self.wrong(&what));
        }
        Ok(())
    }

    fn read_before(&mut self, key: &[u8]) -> Result<()> {
        if let Some(record) = self.newest.get(key) {
            self.before.clone_from(record);
            return Ok(());
        }
        if !self.backend.get(Family::Cur, key, &mut self.before)? {
            self.before.clear();
            layout::encode_record(&Record::None, &mut self.before);
        }
        Ok(())
    }

    fn add(&mut self, at: Revision, key: &[u8], change: Imported<'_>, previous: Record<'_>) {
        let (newest, op) = match change {
            Imported::Put { value, create_revision, version, lease } => {
                let meta = Meta { modified: at, create_revision, version, lease };
                (Record::Live(meta, value), Op::Put(meta))
            }
            // Nobody reads below the compact revision, so that nobody asks for the stub.
            Imported::Delete if at.main <= self.compact_revision => (Record::None, Op::Delete),
            Imported::Delete => (Record::Stub(at), Op::Delete),
        };
        self.record.clear();
        layout::encode_record(&newest, &mut self.record);
        match newest {
            Record::None => self.batch.delete(Family::Cur, key),
            _ => drop(self.batch.put(Family::Cur, key, &self.record)),
        }
        self.newest.insert(Bytes::copy_from_slice(key), self.record.clone());
        if at.main < self.compact_revision {
            return;
        }
        let from = match previous {
            Record::Live(meta, _) if meta.modified.main >= self.compact_revision => Some(meta.modified),
            _ => None,
        };
        let is_kept = at.main > self.compact_revision || from.is_some();
        let previous = if is_kept { previous } else { Record::None };
        self.undo.clear();
        layout::encode_undo(&UndoRecord { key, op, previous }, &mut self.undo);
        self.batch.put(Family::Log, &layout::revision_key(at), &self.undo);
        if let Some(from) = from {
            self.batch.put(Family::Fwd, &layout::revision_key(from), &layout::revision_key(at));
        }
    }

    fn write(&mut self) -> Result<()> {
        self.newest.clear();
        if self.batch.is_empty() { Ok(()) } else { self.backend.write(&mut self.batch) }
    }

    fn wrong(&self, what: &str) -> StorageError {
        StorageError::Format { path: self.backend.path().into(), what: what.into() }
    }
}
