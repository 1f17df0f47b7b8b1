//! The replicated lease table: which leases exist with what TTL, and which keys are attached to them. Knows no time:
//! when a lease is over is the lessor's to say.
//!
//! ```text
//! family lease:  0 | id u64 BE              -> format u8 = 1 | granted TTL in seconds i64 BE
//!                1 | id u64 BE | user key   -> ()
//! ```
//! Frozen, see `docs/formats/tables.md`. Ids are any number but 0; as `u64` their order does not matter.

use std::ops::ControlFlow;

use bytes::Bytes;
use daymark_storage::backend::Family;
use daymark_storage::mvcc::{Keyspace, PinnedTables, Writer};
use daymark_storage::{Result, StorageError};
use hashbrown::HashSet;
use rustc_hash::FxBuildHasher;

use crate::error::Error;

/// Greatest TTL that may be asked for, in seconds.
pub const TTL_SECS_MAX: i64 = 9_000_000_000;

const RECORD: u8 = 0;
const ATTACHMENT: u8 = 1;
const FORMAT: u8 = 1;

/// A lease as everybody may know it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct LeaseFact {
    pub id: i64,
    pub ttl_secs: i64,
}

/// What happened to a lease, for the lessor.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    Granted(LeaseFact),
    Revoked(i64),
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
/// Invariants: a key is attached to at most one lease; every attachment names a lease of the table.
#[derive(Default)]
pub struct LeaseTable {
    ids: HashSet<i64, FxBuildHasher>,
}

impl LeaseTable {
    /// Reads the records that `keyspace` holds; attachments are not read.
    pub fn open(keyspace: &Keyspace) -> Result<Self> {
        let mut table = Self::default();
        scan_records(keyspace, &mut |fact| {
            table.ids.insert(fact.id);
        })?;
        Ok(table)
    }

    /// Whether the lease exists.
    pub fn contains(&self, id: i64) -> bool {
        self.ids.contains(&id)
    }

    /// Makes a lease. The id is chosen and the TTL raised to the minimum before it is proposed.
    pub fn grant(&mut self, writer: &mut Writer, lease: LeaseFact) -> std::result::Result<(), Error> {
        if lease.id == 0 {
            // Services choose an id for 0. What got here is refused as etcd's lessor does.
            return Err(Error::LeaseNotFound);
        }
        if lease.ttl_secs > TTL_SECS_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        if self.contains(lease.id) {
            return Err(Error::LeaseExists);
        }
        let mut record = [FORMAT; 9];
        record[1..].copy_from_slice(&lease.ttl_secs.to_be_bytes());
        writer.table_put(Family::Lease, &row(RECORD, lease.id), &record);
        self.ids.insert(lease.id);
        Ok(())
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
    match broken {
        Some(key) => Err(StorageError::Invariant { what: format!("the lease record {key:02x?} cannot be decoded") }),
        None => Ok(()),
    }
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
    match broken {
        Some(key) => Err(StorageError::Invariant { what: format!("the lease record {key:02x?} cannot be decoded") }),
        None => Ok(()),
    }
}

/// Keys attached to a lease as committed, in order.
pub fn attached_keys(keyspace: &Keyspace, id: i64) -> Result<Vec<Bytes>> {
    let [start, end] = attachments(id);
    let mut keys = Vec::new();
    keyspace.table_scan(Family::Lease, &start, &end, &mut |row, _| {
        keys.push(Bytes::copy_from_slice(&row[9..]));
        ControlFlow::Continue(())
    })?;
    Ok(keys)
}

/// Calls `visit` for every key that is attached to any lease as committed, until it breaks.
pub fn visit_attached_keys(keyspace: &Keyspace, visit: &mut dyn FnMut(&[u8]) -> ControlFlow<()>) -> Result<()> {
    keyspace.table_scan(Family::Lease, &[ATTACHMENT], &[ATTACHMENT + 1], &mut |row, _| visit(&row[9..]))
}

fn decode_record(key: &[u8], value: &[u8]) -> Option<LeaseFact> {
    let id = u64::from_be_bytes(key.get(1..)?.try_into().ok()?) as i64;
    let (format, ttl) = value.split_first()?;
    let ttl_secs = i64::from_be_bytes(ttl.try_into().ok()?);
    (*format == FORMAT).then_some(LeaseFact { id, ttl_secs })
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
