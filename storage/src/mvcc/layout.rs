//! The bytes of the families `cur`, `log` and `fwd`, and of the position record in `meta`. Frozen: a change is a new
//! format version. Described in `docs/formats/keyspace.md`. Knows nothing of how records are found.

use crate::log_id::LogId;

use super::revision::Revision;

/// Format version of the keyspace that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Key in `meta` of the format version: four bytes, little-endian.
pub const FORMAT_KEY: &[u8] = b"mvcc/format";
/// Key in `meta` of the [`Position`].
pub const POSITION_KEY: &[u8] = b"mvcc/position";
/// Key in `meta` of the keyspace's hash, see [`encode_hash`].
pub const HASH_KEY: &[u8] = b"mvcc/hash";
/// Key in `meta` of the fences, as they were at some revision.
pub const FENCES_KEY: &[u8] = b"mvcc/fences";
/// Start of the keys in `meta` that belong to the keyspace itself.
pub const RESERVED_PREFIX: &[u8] = b"mvcc/";

// First byte of a record in `cur`, and of the previous record inside one in `log`.
const NONE: u8 = 0;
const STUB: u8 = 1;
const LIVE: u8 = 2;

// First byte of a record in `log`.
const OP_PUT: u8 = 1;
const OP_DELETE: u8 = 2;

/// Everything about a live key but its value.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Last change.
    pub modified: Revision,
    /// Main revision of the put that made the key.
    pub create_revision: i64,
    /// Changes since creation.
    pub version: i64,
    /// Lease, or 0.
    pub lease: i64,
}

/// A key at some revision, borrowed from stored bytes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Record<'a> {
    /// It never existed, or that is forgotten. Only as the previous record of an undo record.
    None,
    /// It was deleted at this revision.
    Stub(Revision),
    /// It exists.
    Live(Meta, &'a [u8]),
}

impl Record<'_> {
    /// The change that led to it.
    pub fn modified(&self) -> Option<Revision> {
        match self {
            Record::None => None,
            Record::Stub(revision) => Some(*revision),
            Record::Live(meta, _) => Some(meta.modified),
        }
    }
}

/// What a change did to its key.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// The key exists from then on; the revision in the meta is the change's own.
    Put(Meta),
    /// It does not.
    Delete,
}

/// One record of history: a change, and what its key was before.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct UndoRecord<'a> {
    /// What was changed.
    pub key: &'a [u8],
    /// How.
    pub op: Op,
    /// What it replaced.
    pub previous: Record<'a>,
}

/// Where the keyspace stands: one record, so that it is read in one piece.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Position {
    /// Last log entry whose changes are in.
    pub applied: Option<LogId>,
    /// Newest revision.
    pub current_revision: i64,
    /// Compact revision.
    pub compact_revision: i64,
}

/// Appends `record` as `cur` holds it.
pub fn encode_record(record: &Record<'_>, out: &mut Vec<u8>) {
    match record {
        Record::None => out.push(NONE),
        Record::Stub(revision) => {
            out.push(STUB);
            encode_revision(*revision, out);
        }
        Record::Live(meta, value) => {
            out.push(LIVE);
            encode_revision(meta.modified, out);
            encode_meta(meta, out);
            out.extend_from_slice(value);
        }
    }
}

/// Reads a record; none if the bytes are not one. The value is all that follows the meta.
pub fn decode_record(bytes: &[u8]) -> Option<Record<'_>> {
    let (kind, mut rest) = bytes.split_first()?;
    match *kind {
        NONE => rest.is_empty().then_some(Record::None),
        STUB => {
            let revision = decode_revision(&mut rest)?;
            rest.is_empty().then_some(Record::Stub(revision))
        }
        LIVE => {
            let modified = decode_revision(&mut rest)?;
            Some(Record::Live(decode_meta(modified, &mut rest)?, rest))
        }
        _ => None,
    }
}

/// Appends `record` as `log` holds it under `revision`; returns where in `out` its previous record begins.
pub fn encode_undo(record: &UndoRecord<'_>, out: &mut Vec<u8>) -> usize {
    out.push(match record.op {
        Op::Put(_) => OP_PUT,
        Op::Delete => OP_DELETE,
    });
    put_varint(record.key.len() as u64, out);
    out.extend_from_slice(record.key);
    if let Op::Put(meta) = &record.op {
        encode_meta(meta, out);
    }
    let previous_at = out.len();
    encode_record(&record.previous, out);
    previous_at
}

/// Reads the record that `log` holds under `revision`; none if the bytes are not one.
pub fn decode_undo(revision: Revision, bytes: &[u8]) -> Option<UndoRecord<'_>> {
    let (op, mut rest) = bytes.split_first()?;
    let key_len = take_varint(&mut rest)? as usize;
    let (key, mut rest) = rest.split_at_checked(key_len)?;
    let op = match *op {
        OP_PUT => Op::Put(decode_meta(revision, &mut rest)?),
        OP_DELETE => Op::Delete,
        _ => return None,
    };
    Some(UndoRecord { key, op, previous: decode_record(rest)? })
}

/// A revision as a key of `log` and `fwd` and as a value of `fwd`: it sorts as the revision does.
pub fn revision_key(revision: Revision) -> [u8; 12] {
    debug_assert!(revision.main >= 0 && (0..u32::MAX as i64).contains(&revision.sub));
    let mut key = [0; 12];
    key[..8].copy_from_slice(&(revision.main as u64).to_be_bytes());
    key[8..].copy_from_slice(&(revision.sub as u32).to_be_bytes());
    key
}

/// The reverse of [`revision_key`].
pub fn decode_revision_key(key: &[u8]) -> Option<Revision> {
    let (main, sub) = key.split_at_checked(8)?;
    let main = u64::from_be_bytes(main.try_into().ok()?);
    let sub = u32::from_be_bytes(sub.try_into().ok()?);
    Some(Revision { main: i64::try_from(main).ok()?, sub: sub.into() })
}

/// Whether a record of `cur` is a stub that nobody at or above the history floor `floor` asks for: reads there find
/// the key deleted with or without it. The event of the delete itself is in `log`.
pub fn is_old_stub(record: &[u8], floor: i64) -> bool {
    matches!(record.first(), Some(&STUB))
        && matches!(decode_record(record), Some(Record::Stub(revision)) if revision.main <= floor)
}

/// Whether a key of `fwd` links from an event below the history floor `floor`.
pub fn is_old_link(key: &[u8], floor: i64) -> bool {
    decode_revision_key(key).is_some_and(|revision| revision.main < floor)
}

/// The position record: a flag, then term, index, current and compact revision, eight bytes each, little-endian.
pub fn encode_position(position: &Position) -> [u8; 33] {
    let mut bytes = [0; 33];
    let applied = position.applied.unwrap_or_default();
    let fields = [applied.term, applied.index, position.current_revision as u64, position.compact_revision as u64];
    bytes[0] = position.applied.is_some().into();
    for (field, place) in fields.iter().zip(bytes[1..].chunks_exact_mut(8)) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    bytes
}

/// The reverse of [`encode_position`].
pub fn decode_position(bytes: &[u8]) -> Option<Position> {
    let bytes: &[u8; 33] = bytes.try_into().ok()?;
    let field = |place: usize| u64::from_le_bytes(bytes[1 + 8 * place..][..8].try_into().expect("eight bytes"));
    let applied = match bytes[0] {
        0 => None,
        1 => Some(LogId { term: field(0), index: field(1) }),
        _ => return None,
    };
    Some(Position { applied, current_revision: field(2) as i64, compact_revision: field(3) as i64 })
}

/// First byte of the record of the keyspace's hash.
const HASH_FORMAT: u8 = 1;

/// The record of the keyspace's hash: format, the revision that it is of, the hash; little-endian.
pub fn encode_hash(revision: i64, sum: u128) -> [u8; 25] {
    let mut bytes = [HASH_FORMAT; 25];
    bytes[1..9].copy_from_slice(&revision.to_le_bytes());
    bytes[9..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The reverse of [`encode_hash`].
pub fn decode_hash(bytes: &[u8]) -> Option<(i64, u128)> {
    let bytes: &[u8; 25] = bytes.try_into().ok()?;
    let revision = i64::from_le_bytes(bytes[1..9].try_into().ok()?);
    let sum = u128::from_le_bytes(bytes[9..].try_into().ok()?);
    (bytes[0] == HASH_FORMAT).then_some((revision, sum))
}

fn encode_revision(revision: Revision, out: &mut Vec<u8>) {
    put_varint(revision.main as u64, out);
    put_varint(revision.sub as u64, out);
}

fn decode_revision(rest: &mut &[u8]) -> Option<Revision> {
    let main = i64::try_from(take_varint(rest)?).ok()?;
    let sub = i64::try_from(take_varint(rest)?).ok()?;
    Some(Revision { main, sub })
}

/// Without the revision, which stands before it or is the record's key. Creation is stored as the distance from it.
fn encode_meta(meta: &Meta, out: &mut Vec<u8>) {
    debug_assert!(meta.create_revision <= meta.modified.main && meta.version > 0);
    put_varint((meta.modified.main - meta.create_revision) as u64, out);
    put_varint(meta.version as u64, out);
    put_varint(meta.lease as u64, out);
}

fn decode_meta(modified: Revision, rest: &mut &[u8]) -> Option<Meta> {
    let age = i64::try_from(take_varint(rest)?).ok()?;
    let version = i64::try_from(take_varint(rest)?).ok()?;
    let lease = take_varint(rest)? as i64;
    Some(Meta { modified, create_revision: modified.main.checked_sub(age)?, version, lease })
}

/// Seven bits a byte, low ones first, the top bit set on all but the last: as in protobuf.
fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn meta() -> impl Strategy<Value = Meta> {
        (1..i64::MAX, 0..1000i64, 1..i64::MAX, any::<i64>(), any::<u32>()).prop_map(
            |(main, age, version, lease, sub)| {
                let modified = Revision { main, sub: sub.into() };
                Meta { modified, create_revision: (main - age).max(0), version, lease }
            },
        )
    }

    fn encoded(record: &Record<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_record(record, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn records_round_trip(meta in meta(), value: Vec<u8>, key: Vec<u8>) {
            for record in [Record::None, Record::Stub(meta.modified), Record::Live(meta, &value)] {
                let bytes = encoded(&record);
                prop_assert_eq!(decode_record(&bytes), Some(record));
                for op in [Op::Put(meta), Op::Delete] {
                    let undo = UndoRecord { key: &key, op, previous: record };
                    let mut bytes = Vec::new();
                    encode_undo(&undo, &mut bytes);
                    prop_assert_eq!(decode_undo(meta.modified, &bytes), Some(undo));
                }
            }
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes: Vec<u8>) {
            let _ = (decode_record(&bytes), decode_undo(Revision::first_of(3), &bytes), decode_position(&bytes));
            let _ = (decode_revision_key(&bytes), is_old_stub(&bytes, 5), is_old_link(&bytes, 5));
        }

        #[test]
        fn revision_keys_sort_as_revisions(a in (0..i64::MAX, 0..u32::MAX), b in (0..i64::MAX, 0..u32::MAX)) {
            let [a, b] = [a, b].map(|(main, sub)| Revision { main, sub: sub.into() });
            prop_assert_eq!(revision_key(a).cmp(&revision_key(b)), a.cmp(&b));
            prop_assert_eq!(decode_revision_key(&revision_key(a)), Some(a));
        }
    }

    #[test]
    fn old_stubs_and_links() {
        let stub = encoded(&Record::Stub(Revision { main: 7, sub: 1 }));
        assert!(is_old_stub(&stub, 7) && !is_old_stub(&stub, 6));
        let meta = Meta { modified: Revision::first_of(7), create_revision: 7, version: 1, lease: 0 };
        assert!(!is_old_stub(&encoded(&Record::Live(meta, b"")), 9));
        let link = revision_key(Revision { main: 7, sub: 3 });
        assert!(is_old_link(&link, 8) && !is_old_link(&link, 7));
    }

    #[test]
    fn position_round_trips() {
        for applied in [None, Some(LogId { term: 3, index: u64::MAX })] {
            let position = Position { applied, current_revision: 9, compact_revision: -1 };
            assert_eq!(decode_position(&encode_position(&position)), Some(position));
        }
    }

    #[test]
    fn hash_round_trips() {
        let bytes = encode_hash(7, 3 << 100);
        assert_eq!(decode_hash(&bytes), Some((7, 3 << 100)));
        assert_eq!(bytes[..10], [1, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut unknown = bytes;
        unknown[0] = 2;
        assert_eq!((decode_hash(&unknown), decode_hash(&bytes[..24])), (None, None));
    }

    /// The bytes of format version 1, so that a change by accident is noticed.
    #[test]
    fn frozen_bytes() {
        let modified = Revision { main: 300, sub: 2 };
        let meta = Meta { modified, create_revision: 299, version: 2, lease: -1 };
        let lease = [0xff; 9].into_iter().chain([1]);
        let live: Vec<u8> = [2, 0xac, 2, 2, 1, 2].into_iter().chain(lease).chain(*b"v").collect();
        assert_eq!(encoded(&Record::Live(meta, b"v")), live);
        assert_eq!(encoded(&Record::Stub(modified)), [1, 0xac, 2, 2]);
        let mut undo = Vec::new();
        let previous = Record::Stub(Revision::first_of(4));
        encode_undo(&UndoRecord { key: b"k", op: Op::Delete, previous }, &mut undo);
        assert_eq!(undo, [2, 1, b'k', 1, 4, 0]);
    }
}
