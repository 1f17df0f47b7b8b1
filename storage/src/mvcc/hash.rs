//! Hash of the keyspace as it was at a revision, kept up to date by every change, so that asking for it does not read the
//! keyspace. Not a checksum of bytes on disk, and no defence against somebody who picks values for it.
//!
//! ```text
//! hash of a state  = sum of the hashes of its live records, modulo 2^128
//! hash of a record = XXH3-128 of: length of the key (u32, little-endian), key, record as `cur` holds it
//! ```
//! A sum does not depend on the order in which its parts came, so a change takes the old record out and puts the new one
//! in. An older revision is reached from the present one by undoing what has changed since.

use std::collections::HashMap;
use std::ops::ControlFlow;

use rustc_hash::FxBuildHasher;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::layout::{self, Op, Record};
use super::range::KeyRange;
use super::revision::Revision;
use super::rewind::{Source, undecodable};
use super::{Keyspace, ReadError, Shared};
use crate::backend::{Direction, Family, Span};
use crate::error::{Result, StorageError};

/// Hashes of records that were met on the way back and will be needed once more: bounds the memory of one call (3 MiB).
/// What does not fit is looked up.
const MET_MAX: usize = 1 << 16;

/// After so many records a long reading asks whether to go on.
const GIVE_UP_RECORDS: u64 = 1024;

/// Ends long work early when it says so.
pub type GiveUp<'a> = dyn Fn() -> bool + 'a;

/// The keyspace at one revision, in a few bytes. The same on every member for the same revision, whatever each has
/// compacted.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceHash {
    /// The revision that is hashed.
    pub revision: i64,
    /// Compact revision when it was asked for.
    pub compact_revision: i64,
    /// Sum of the hashes of all live records.
    pub sum: u128,
}

impl KeyspaceHash {
    /// As clients get it.
    pub fn to_u32(&self) -> u32 {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&self.sum.to_le_bytes());
        bytes[16..].copy_from_slice(&self.revision.to_le_bytes());
        xxh3_64(&bytes) as u32
    }
}

/// Hash of a live record: `record` is what `cur` holds under `key`. `scratch` is overwritten.
pub fn of_record(key: &[u8], record: &[u8], scratch: &mut Vec<u8>) -> u128 {
    scratch.clear();
    scratch.extend_from_slice(&(key.len() as u32).to_le_bytes());
    scratch.extend_from_slice(key);
    scratch.extend_from_slice(record);
    xxh3_128(scratch)
}

impl Keyspace {
    /// The hash at `revision`, or at the current one if it is 0 or less. Costs as much as has changed since. None if
    /// `give_up` said so.
    pub fn hash(&self, revision: i64, give_up: &GiveUp<'_>) -> std::result::Result<Option<KeyspaceHash>, ReadError> {
        let shared = self.shared();
        let (revision, compact_revision) = hashable(&shared, revision)?;
        // Of what is committed, which may be newer than what is published.
        let (newest, sum) = stored(&shared)?.ok_or_else(|| StorageError::Invariant {
            what: "the hash of the keyspace is missing, although it was there at the start".into(),
        })?;
        let mut unwind = Unwind::new(Source::passing(&shared), revision, sum);
        if !unwind.run(newest, give_up)? {
            return Ok(None);
        }
        shared.check_floor(revision)?;
        Ok(Some(KeyspaceHash { revision, compact_revision, sum: unwind.sum }))
    }

    /// CRC32C of everything that is stored but history, which members may forget at different times. Reads all of it.
    /// Comparable only while nothing is written. None if `give_up` said so.
    pub fn hash_everything(&self, give_up: &GiveUp<'_>) -> Result<Option<u32>> {
        let mut crc = 0;
        let shared = self.shared();
        for family in [Family::Cur, Family::Lease, Family::Meta] {
            crc = crc32c::crc32c_append(crc, family.name().as_bytes());
            let everything = Span { start: b"", end: None };
            let mut cursor = shared.backend.iterate(family, everything, Direction::Forward)?;
            while let Some((key, value)) = cursor.item() {
                if give_up() {
                    return Ok(None);
                }
                if family != Family::Cur || !layout::is_old_stub(value, i64::MAX) {
                    for part in [&(key.len() as u64).to_le_bytes(), key, &(value.len() as u64).to_le_bytes(), value] {
                        crc = crc32c::crc32c_append(crc, part);
                    }
                }
                cursor.advance()?;
            }
        }
        Ok(Some(crc))
    }
}

/// The revision that is meant, the current one for 0 or less, if it can be hashed; and the compact revision.
fn hashable(shared: &Shared, revision: i64) -> std::result::Result<(i64, i64), ReadError> {
    let (current, compact_revision) = shared.revisions();
    match if revision <= 0 { current } else { revision } {
        revision if revision > current => Err(ReadError::Future),
        revision if revision < compact_revision => Err(ReadError::Compacted),
        revision => Ok((revision, compact_revision)),
    }
}

/// The hash as [`Keyspace::hash`] gives it, but of the records as they are stored now. Reads all of the keyspace. None if
/// `give_up` said so.
pub fn of_records(
    keyspace: &Keyspace,
    revision: i64,
    give_up: &GiveUp<'_>,
) -> std::result::Result<Option<KeyspaceHash>, ReadError> {
    let shared = keyspace.shared();
    let (revision, compact_revision) = hashable(&shared, revision)?;
    let source = Source::passing(&shared);
    let Some(sum) = of_state(&source, revision, give_up)? else { return Ok(None) };
    shared.check_floor(revision)?;
    Ok(Some(KeyspaceHash { revision, compact_revision, sum }))
}

/// Compares the hash that is kept with one that is made of all records at `revision` (0 or less: the current one). An
/// error says what differs. Reads all of the keyspace.
pub fn verify(keyspace: &Keyspace, revision: i64) -> std::result::Result<KeyspaceHash, ReadError> {
    let kept = keyspace.hash(revision, &|| false)?.expect("nobody gives up");
    let sum = of_records(keyspace, kept.revision, &|| false)?.expect("nobody gives up").sum;
    if sum != kept.sum {
        let what = format!(
            "the records at revision {} hash to {sum:032x}, but {:032x} is what was kept of their changes",
            kept.revision, kept.sum
        );
        return Err(ReadError::Storage(StorageError::Invariant { what }));
    }
    Ok(kept)
}

/// The stored hash if it belongs to `current_revision`, else a new one of all records, stored at once. A store that was
/// written by a version without hashes, or by one after it, has none that fits.
pub(super) fn open(shared: &Shared, current_revision: i64) -> Result<u128> {
    if let Some((revision, sum)) = stored(shared)?
        && revision == current_revision
    {
        return Ok(sum);
    }
    let source = Source::passing(shared);
    let sum = of_state(&source, current_revision, &|| false).map_err(|error| match error {
        ReadError::Storage(error) => error,
        other => StorageError::Invariant { what: format!("the newest revision cannot be read: {other}") },
    })?;
    let sum = sum.expect("nobody gives up");
    let mut batch = crate::backend::WriteBatch::default();
    batch.put(Family::Meta, layout::HASH_KEY, &layout::encode_hash(current_revision, sum));
    shared.backend.write(&mut batch)?;
    Ok(sum)
}

fn stored(shared: &Shared) -> Result<Option<(i64, u128)>> {
    let mut bytes = Vec::new();
    if !shared.backend.get(Family::Meta, layout::HASH_KEY, &mut bytes)? {
        return Ok(None);
    }
    let decoded = layout::decode_hash(&bytes);
    decoded.map(Some).ok_or_else(|| undecodable(shared, "record", layout::HASH_KEY))
}

/// The hash of all records at `revision`, the long way; none if `give_up` said so.
fn of_state(source: &Source<'_>, revision: i64, give_up: &GiveUp<'_>) -> std::result::Result<Option<u128>, ReadError> {
    let (mut sum, mut count, mut given_up) = (0_u128, 0_u64, false);
    let (mut rewound, mut record, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    source.newest_in(&KeyRange::all(), Direction::Forward, &mut |key, newest| {
        if let Some((meta, value)) = source.at_revision(key, newest, revision, &mut rewound)? {
            record.clear();
            layout::encode_record(&Record::Live(meta, value), &mut record);
            sum = sum.wrapping_add(of_record(key, &record, &mut scratch));
        }
        count += 1;
        given_up = count.is_multiple_of(GIVE_UP_RECORDS) && give_up();
        Ok(if given_up { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok((!given_up).then_some(sum))
}

/// The way from the newest hash back to a revision.
struct Unwind<'a> {
    source: Source<'a>,
    revision: i64,
    sum: u128,
    /// Records that were replaced by changes met before, by the change that had made them. That change comes later on the
    /// way and then needs no lookup.
    met: HashMap<Revision, u128, FxBuildHasher>,
    // Buffers.
    record: Vec<u8>,
    scratch: Vec<u8>,
}

impl<'a> Unwind<'a> {
    fn new(source: Source<'a>, revision: i64, sum: u128) -> Self {
        Self { source, revision, sum, met: HashMap::default(), record: Vec::new(), scratch: Vec::new() }
    }

    /// Undoes all changes from `newest` down to those above the revision; false if `give_up` said so.
    fn run(&mut self, newest: i64, give_up: &GiveUp<'_>) -> std::result::Result<bool, ReadError> {
        let [start, end] = [self.revision + 1, newest + 1].map(|main| layout::revision_key(Revision::first_of(main)));
        let span = Span { start: &start, end: Some(&end) };
        let mut cursor = self.source.shared.backend.iterate(Family::Log, span, Direction::Backward)?;
        let mut above = Revision::first_of(newest + 1);
        while let Some((key, bytes)) = cursor.item() {
            if give_up() {
                return Ok(false);
            }
            let at = layout::decode_revision_key(key);
            let at = at.ok_or_else(|| self.source.undecodable("key of history", key))?;
            self.check_unbroken(at, above)?;
            self.undo(at, bytes)?;
            above = at;
            cursor.advance()?;
        }
        if above != Revision::first_of(self.revision + 1) {
            return Err(self.hole(above));
        }
        Ok(true)
    }

    /// Every change has its record, so one before `above` is the last of the revision before or the one before in its own.
    fn check_unbroken(&self, at: Revision, above: Revision) -> std::result::Result<(), ReadError> {
        let follows = match above.sub {
            0 => at.main == above.main - 1,
            sub => at == Revision { main: above.main, sub: sub - 1 },
        };
        if follows { Ok(()) } else { Err(self.hole(above)) }
    }

    fn hole(&self, above: Revision) -> ReadError {
        match self.source.shared.check_floor(self.revision) {
            Err(compacted) => compacted,
            Ok(()) => self.source.broken(format!("history has no record before that of revision {above}")),
        }
    }

    fn undo(&mut self, at: Revision, bytes: &[u8]) -> std::result::Result<(), ReadError> {
        let undo = layout::decode_undo(at, bytes);
        let undo = undo.ok_or_else(|| self.source.undecodable("undo record of", at.to_string().as_bytes()))?;
        if let Op::Put(_) = undo.op {
            let made = match self.met.remove(&at) {
                Some(made) => made,
                None => self.look_up(undo.key, at)?,
            };
            self.sum = self.sum.wrapping_sub(made);
        }
        if let Record::Live(meta, _) = undo.previous {
            let replaced = self.hash(undo.key, &undo.previous);
            self.sum = self.sum.wrapping_add(replaced);
            if meta.modified.main > self.revision && self.met.len() < MET_MAX {
                self.met.insert(meta.modified, replaced);
            }
        }
        Ok(())
    }

    /// The hash of what the change `at` made of `key`: in `cur` while it is the newest, else in the undo record of the
    /// change that superseded it.
    fn look_up(&mut self, key: &[u8], at: Revision) -> std::result::Result<u128, ReadError> {
        let backend = &self.source.shared.backend;
        let mut bytes = Vec::new();
        if backend.get(Family::Cur, key, &mut bytes)?
            && let Some(Record::Live(meta, _)) = layout::decode_record(&bytes)
            && meta.modified == at
        {
            return Ok(of_record(key, &bytes, &mut self.scratch));
        }
        if !backend.get(Family::Fwd, &layout::revision_key(at), &mut bytes)? {
            self.source.shared.check_floor(self.revision)?;
            return Err(self.source.broken(format!("nothing tells what superseded the change {at}")));
        }
        let by = layout::decode_revision_key(&bytes);
        let by = by.ok_or_else(|| self.source.undecodable("link from", at.to_string().as_bytes()))?;
        let previous = self.source.undo(by, self.revision, &mut bytes)?.previous;
        match previous {
            Record::Live(meta, _) if meta.modified == at => Ok(self.hash(key, &previous)),
            _ => Err(self.source.broken(format!("change {by} does not hold what the change {at} had written"))),
        }
    }

    fn hash(&mut self, key: &[u8], record: &Record<'_>) -> u128 {
        self.record.clear();
        layout::encode_record(record, &mut self.record);
        of_record(key, &self.record, &mut self.scratch)
    }
}
