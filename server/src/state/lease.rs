//! The replicated lease table: which leases exist with what TTL, and which keys are attached to them. Knows no time:
//! when a lease is over is the lessor's to say.
//!
//! ```text
//! family lease:  0 | id u64 BE              -> format u8 = 2 | granted TTL in seconds i64 BE | number of the grant u64 BE |
//!                                             remaining seconds at the last checkpoint i64 BE, 0 for all
//!                1 | id u64 BE | user key   -> ()
//!                2                          -> number of the last grant u64 BE
//! ```
//! Frozen, see `docs/formats/tables.md`. Ids are any number but 0; as `u64` their order does not matter.

use std::ops::ControlFlow;

use bytes::Bytes;
use daymark_storage::backend::Family;
use daymark_storage::mvcc::import::Import;
use daymark_storage::mvcc::{Keyspace, PinnedTables, Writer};
use daymark_storage::{Result, StorageError};
use hashbrown::HashSet;
use rustc_hash::FxBuildHasher;

use crate::error::Error;

/// Greatest TTL that may be asked for, in seconds.
pub const TTL_SECS_MAX: i64 = 9_000_000_000;

const RECORD: u8 = 0;
const ATTACHMENT: u8 = 1;
const LAST_GRANT: u8 = 2;
/// Format 1 was the TTL alone.
const FORMAT: u8 = 2;
const RECORD_BYTES: usize = 25;

/// A lease as everybody may know it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LeaseFact {
    pub id: i64,
    pub ttl_secs: i64,
    /// Tells it from an earlier lease of the same id. 0 for those granted before grants had numbers.
    pub grant: u64,
    /// What was left at the last checkpoint; 0 if there is none: the whole TTL.
    pub remaining_secs: i64,
}

/// What happened to a lease, for the lessor.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    Granted(LeaseFact),
    Revoked(i64),
    Checkpointed(LeaseFact),
}

/// A key that goes from one lease to another; 0 is none.
#[derive(Debug)]
pub struct LeaseMove {
    pub key: Bytes,
    pub from: i64,
    pub to: i64,
}

/// The table. In memory: ids only, nine bytes or a little more each; TTLs and attachments are rows.
///
/// Invariants: a key is attached to at most one lease; every attachment names a lease of the table; no two grants have
/// the same number.
#[derive(Default)]
pub struct LeaseTable {
    ids: HashSet<i64, FxBuildHasher>,
    last_grant: u64,
}

impl LeaseTable {
    /// Reads the records that `keyspace` holds; attachments are not read.
    pub fn open(keyspace: &Keyspace) -> Result<Self> {
        let mut table = Self::default();
        scan_records(keyspace, &mut |fact| {
            table.ids.insert(fact.id);
        })?;
        table.last_grant = read_last_grant(keyspace)?;
        Ok(table)
    }

    /// Whether the lease exists.
    pub fn contains(&self, id: i64) -> bool {
        self.ids.contains(&id)
    }

    /// Makes a lease. The id is chosen and the TTL raised to the minimum before it is proposed.
    pub fn grant(&mut self, writer: &mut Writer, id: i64, ttl_secs: i64) -> std::result::Result<LeaseFact, Error> {
        if id == 0 {
            // Services choose an id for 0. What got here is refused as etcd's lessor does.
            return Err(Error::LeaseNotFound);
        }
        if ttl_secs > TTL_SECS_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.contains(id) {
            return Err(Error::LeaseExists);
        }
        self.last_grant += 1;
        let lease = LeaseFact { id, ttl_secs, grant: self.last_grant, remaining_secs: 0 };
        writer.table_put(Family::Lease, &[LAST_GRANT], &self.last_grant.to_be_bytes());
        write_record(writer, lease);
        self.ids.insert(id);
        Ok(lease)
    }

    /// The lease of that id, if it is the one that was granted under that number.
    pub fn granted_as(&self, writer: &Writer, id: i64, grant: u64) -> Result<Option<LeaseFact>> {
        if !self.contains(id) {
            return Ok(None);
        }
        let key = row(RECORD, id);
        let record = writer.table_get(Family::Lease, &key)?.unwrap_or_default();
        let fact = decode_record(&key, &record).ok_or_else(|| undecodable(&key))?;
        Ok((fact.grant == grant).then_some(fact))
    }

    /// Notes how much time a lease has left.
    pub fn checkpoint(&mut self, writer: &mut Writer, lease: LeaseFact) {
        assert!(self.contains(lease.id), "the caller has looked lease {} up", lease.id);
        write_record(writer, lease);
    }

    /// Removes a lease that exists; returns its keys in order, which the caller deletes (and so detaches).
    pub fn revoke(&mut self, writer: &mut Writer, id: i64) -> Result<Vec<Bytes>> {
        let known = self.ids.remove(&id);
        assert!(known, "the caller has looked lease {id} up");
        writer.table_delete(Family::Lease, &row(RECORD, id));
        let [start, end] = attachments(id);
        let mut keys = Vec::new();
        writer.table_scan(Family::Lease, &start, &end, &mut |row, _| {
            keys.push(Bytes::copy_from_slice(&row[9..]));
            ControlFlow::Continue(())
        })?;
        Ok(keys)
    }

    /// Calls `visit` for the keys attached to a lease, in order, until it breaks. None if there is no such lease.
    pub fn visit_keys(&self, writer: &Writer, id: i64, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<()> {
        if !self.contains(id) {
            return Ok(());
        }
        let [start, end] = attachments(id);
        writer.table_scan(Family::Lease, &start, &end, &mut |row, _| visit(&row[9..]))
    }

    /// Attaches and detaches, in order.
    pub fn move_keys(&mut self, writer: &mut Writer, moves: &mut Vec<LeaseMove>) {
        let mut row = Vec::new();
        for LeaseMove { key, from, to } in moves.drain(..) {
            if from != 0 {
                attachment(from, &key, &mut row);
                writer.table_delete(Family::Lease, &row);
            }
            if to != 0 {
                attachment(to, &key, &mut row);
                writer.table_put(Family::Lease, &row, &[]);
            }
        }
    }
}

/// Every lease that is committed, for those who missed changes.
pub fn scan_records(keyspace: &Keyspace, visit: &mut dyn FnMut(LeaseFact)) -> Result<()> {
    let mut broken = None;
    keyspace.table_scan(Family::Lease, &[RECORD], &[RECORD + 1], &mut |key, value| {
        match decode_record(key, value) {
            Some(fact) => visit(fact),
            None => broken = Some(key.to_vec()),
        }
        if broken.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    broken.map_or(Ok(()), |key| Err(undecodable(&key)))
}

/// The records as of one moment, in order of ids, until `visit` breaks.
pub fn scan_pinned(tables: &PinnedTables<'_>, visit: &mut dyn FnMut(LeaseFact) -> ControlFlow<()>) -> Result<()> {
    let mut broken = None;
    tables.scan(Family::Lease, &[RECORD], &[RECORD + 1], &mut |key, value| match decode_record(key, value) {
        Some(fact) => visit(fact),
        None => {
            broken = Some(key.to_vec());
            ControlFlow::Break(())
        }
    })?;
    broken.map_or(Ok(()), |key| Err(undecodable(&key)))
}

fn undecodable(key: &[u8]) -> StorageError {
    StorageError::Invariant { what: format!("the lease record {key:02x?} cannot be decoded") }
}

fn read_last_grant(keyspace: &Keyspace) -> Result<u64> {
    let mut found = Ok(0);
    keyspace.table_scan(Family::Lease, &[LAST_GRANT], &[LAST_GRANT + 1], &mut |key, value| {
        found = value.try_into().map(u64::from_be_bytes).map_err(|_| undecodable(key));
        ControlFlow::Break(())
    })?;
    found
}

fn write_record(writer: &mut Writer, lease: LeaseFact) {
    writer.table_put(Family::Lease, &row(RECORD, lease.id), &encode_record(&lease));
}

fn encode_record(lease: &LeaseFact) -> [u8; RECORD_BYTES] {
    let mut record = [FORMAT; RECORD_BYTES];
    record[1..9].copy_from_slice(&lease.ttl_secs.to_be_bytes());
    record[9..17].copy_from_slice(&lease.grant.to_be_bytes());
    record[17..].copy_from_slice(&lease.remaining_secs.to_be_bytes());
    record
}

/// Adds a lease to a state that is being imported. Grants ascend from call to call.
pub fn import(import: &mut Import, lease: LeaseFact) -> Result<()> {
    import.row(Family::Lease, &row(RECORD, lease.id), &encode_record(&lease))?;
    import.row(Family::Lease, &[LAST_GRANT], &lease.grant.to_be_bytes())
}

/// Attaches a key, whose newest record names that lease, which was added.
pub fn import_attachment(import: &mut Import, id: i64, key: &[u8]) -> Result<()> {
    let mut row = Vec::new();
    attachment(id, key, &mut row);
    import.row(Family::Lease, &row, &[])
}

/// Keys attached to a lease as committed, in order; none if they take more than `bytes_max`.
pub fn attached_keys(keyspace: &Keyspace, id: i64, bytes_max: usize) -> Result<Option<Vec<Bytes>>> {
    let [start, end] = attachments(id);
    let mut keys = Vec::new();
    let mut bytes = 0;
    keyspace.table_scan(Family::Lease, &start, &end, &mut |row, _| {
        keys.push(Bytes::copy_from_slice(&row[9..]));
        bytes += row.len() + size_of::<Bytes>();
        if bytes > bytes_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok((bytes <= bytes_max).then_some(keys))
}

/// Calls `visit` for every key that is attached to any lease as committed, until it breaks.
pub fn visit_attached_keys(keyspace: &Keyspace, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<()> {
    keyspace.table_scan(Family::Lease, &[ATTACHMENT], &[ATTACHMENT + 1], &mut |row, _| visit(&row[9..]))
}

fn decode_record(key: &[u8], value: &[u8]) -> Option<LeaseFact> {
    let id = u64::from_be_bytes(key.get(1..)?.try_into().ok()?) as i64;
    let (format, rest) = value.split_first()?;
    let (ttl_secs, rest) = rest.split_first_chunk()?;
    let ttl_secs = i64::from_be_bytes(*ttl_secs);
    if *format == 1 && rest.is_empty() {
        return Some(LeaseFact { id, ttl_secs, grant: 0, remaining_secs: 0 });
    }
    let (grant, remaining) = rest.split_first_chunk()?;
    let (grant, remaining_secs) = (u64::from_be_bytes(*grant), i64::from_be_bytes(remaining.try_into().ok()?));
    (*format == FORMAT).then_some(LeaseFact { id, ttl_secs, grant, remaining_secs })
}

fn row(kind: u8, id: i64) -> [u8; 9] {
    let mut row = [kind; 9];
    row[1..].copy_from_slice(&(id as u64).to_be_bytes());
    row
}

fn attachment(id: i64, key: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&row(ATTACHMENT, id));
    out.extend_from_slice(key);
}

/// First row of a lease's attachments, and the first behind them.
fn attachments(id: i64) -> [Vec<u8>; 2] {
    let start = row(ATTACHMENT, id).to_vec();
    let end = match (id as u64).checked_add(1) {
        Some(next) => row(ATTACHMENT, next as i64).to_vec(),
        None => vec![ATTACHMENT + 1],
    };
    [start, end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_both_formats_are_read() {
        let key = row(RECORD, -5);
        let first = [&[1][..], &7i64.to_be_bytes()].concat();
        let second = [&[2][..], &7i64.to_be_bytes(), &9u64.to_be_bytes(), &3i64.to_be_bytes()].concat();
        let fact = |grant, remaining_secs| Some(LeaseFact { id: -5, ttl_secs: 7, grant, remaining_secs });
        assert_eq!(decode_record(&key, &first), fact(0, 0));
        assert_eq!(decode_record(&key, &second), fact(9, 3));
        assert_eq!(second.len(), RECORD_BYTES);
        for length in 0..second.len() {
            assert_eq!(decode_record(&key, &second[..length]), None, "{length}");
        }
        assert_eq!(decode_record(&key, &[&[3][..], &second[1..]].concat()), None, "a later format");
    }
}
