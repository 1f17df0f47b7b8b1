//! The state of this member as etcd would keep it: a file of bbolt's format with etcd's buckets, so that etcd's own tools
//! read and restore it. All of one moment, however much is written meanwhile. Does not know who asks for it.
//!
//! ```text
//! key                      revision (main u64 BE, "_", sub u64 BE, "t" for a delete) -> KeyValue
//! lease                    id u64 BE -> Lease{ID 1, TTL 2, RemainingTTL 3}
//! auth authRoles authUsers, alarm, members, members_removed, cluster, meta: a few rows each, see below
//! ```

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use daymark_api::{etcdserverpb as pb, mvccpb};
use daymark_storage::StorageError;
use daymark_storage::bbolt::{BboltWriter, BucketWriter};
use daymark_storage::disk::{Disk, DiskFile};
use daymark_storage::mvcc::{EventKind, KeyRange, Keyspace, Pin, PinnedTables};
use daymark_storage::sorter::{Key, Sorter};
use prost::Message;

use crate::error::Error;
use crate::limits;
use crate::state::members::MemberList;
use crate::state::{alarms, auth, lease};
use crate::version::CLUSTER_VERSION;

/// A finished file.
pub struct Exported {
    pub file: Arc<dyn DiskFile>,
    pub bytes: u64,
    /// Revision of the newest key in it.
    pub revision: i64,
}

/// What goes into a file, and where it is made.
pub struct Export<'a> {
    pub disk: &'a dyn Disk,
    /// For the file itself, and for what is sorted on the way.
    pub dir: &'a Path,
    pub keyspace: &'a Keyspace,
    pub members: &'a MemberList,
    /// Asked now and then; an error ends the export.
    pub may_go_on: &'a dyn Fn() -> Result<(), Error>,
}

/// etcd's record of a lease.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Lease {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// Rows of a small bucket.
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

impl Export<'_> {
    /// Makes the file. Reading the state fails with [`Error::Internal`], writing the file with [`Error::File`].
    pub fn run(&self) -> Result<Exported, Error> {
        (self.may_go_on)()?;
        let pin = self.keyspace.pin();
        let mut out = BboltWriter::create(self.disk, self.dir).map_err(file_error)?;
        let tables = pin.tables()?;
        let (revision, compact) = (tables.current_revision(), tables.compact_revision());
        self.leases(&tables, out.bucket(b"lease"))?;
        for (name, rows) in self.small_buckets(&tables)? {
            let mut bucket = out.bucket(name.as_bytes());
            rows.iter().try_for_each(|(key, value)| bucket.put(key, value)).map_err(file_error)?;
            bucket.finish().map_err(file_error)?;
        }
        drop(tables);
        self.keys(&pin, revision, compact.max(0), out.bucket(b"key"))?;
        let (file, bytes) = out.finish().map_err(file_error)?;
        Ok(Exported { file, bytes, revision })
    }

    /// Every change since the compact revision, and before these the keys as they were then: what etcd keeps.
    fn keys(&self, pin: &Pin, revision: i64, compact: i64, bucket: BucketWriter<'_>) -> Result<(), Error> {
        let mut keys = Keys { bucket, checked_bytes: 0, buffer: Vec::new() };
        if compact > 0 {
            self.keys_before(pin, compact, &mut keys)?;
        }
        let mut next = compact.max(2);
        while next <= revision {
            let chunk = pin.history(next, revision, limits::EXPORT_PIECE_BYTES)?;
            for (main, events) in chunk.events_by_revision {
                for event in events {
                    let is_delete = event.kind == EventKind::Delete;
                    let kv = event.kv;
                    let kv = mvccpb::KeyValue {
                        key: kv.key,
                        create_revision: kv.create_revision,
                        mod_revision: if is_delete { 0 } else { kv.mod_revision },
                        version: kv.version,
                        value: kv.value,
                        lease: kv.lease,
                    };
                    keys.put((main, event.sub as u32), &kv, is_delete)?;
                }
            }
            keys.check(self.may_go_on)?;
            next = chunk.next_revision;
        }
        keys.bucket.finish().map_err(file_error)
    }

    /// The keys at the compact revision that were changed last before it, in order of that change. They are found in order
    /// of keys, so they are sorted.
    fn keys_before(&self, pin: &Pin, compact: i64, keys: &mut Keys<'_>) -> Result<(), Error> {
        let mut sorter = Sorter::new(self.disk, self.dir, limits::EXPORT_SORT_BYTES);
        let (mut buffer, mut failed, mut count) = (Vec::new(), None, 0_u64);
        let read = pin.read(compact).for_each(&KeyRange::all(), &mut |key, kv| {
            count += 1;
            if count.is_multiple_of(limits::EXPORT_CHECK_RECORDS) {
                failed = (self.may_go_on)().err();
            }
            if kv.mod_revision < compact && failed.is_none() {
                buffer.clear();
                let pair = kv.to_pair(key);
                let pair = mvccpb::KeyValue {
                    key: pair.key,
                    create_revision: pair.create_revision,
                    mod_revision: pair.mod_revision,
                    version: pair.version,
                    value: pair.value,
                    lease: pair.lease,
                };
                pair.encode(&mut buffer).expect("a vector has room");
                failed = sorter.push((kv.mod_revision, kv.sub as u32), &buffer).err().map(file_error);
            }
            if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        read?;
        if let Some(error) = failed {
            return Err(error);
        }
        let mut stopped = None;
        let merged = sorter.finish(&mut |key, record| {
            keys.put_encoded(key, record, false)?;
            if let Err(error) = keys.check(self.may_go_on) {
                stopped = Some(error);
                return Err(StorageError::Stopped);
            }
            Ok(())
        });
        match stopped {
            Some(error) => Err(error),
            None => merged.map_err(file_error),
        }
    }

    fn leases(&self, tables: &PinnedTables<'_>, mut bucket: BucketWriter<'_>) -> Result<(), Error> {
        let mut failed = Ok(());
        lease::scan_pinned(tables, &mut |fact| {
            let record = Lease { id: fact.id, ttl: fact.ttl_secs, remaining_ttl: fact.remaining_secs };
            failed = bucket.put(&(fact.id as u64).to_be_bytes(), &record.encode_to_vec());
            if failed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        failed.and_then(|()| bucket.finish()).map_err(file_error)
    }

    fn small_buckets(&self, tables: &PinnedTables<'_>) -> Result<Vec<(&'static str, Rows)>, Error> {
        let users = auth::pinned(tables)?;
        let config = [
            (b"authEnabled".to_vec(), vec![u8::from(users.is_enabled)]),
            (b"authRevision".to_vec(), users.revision.to_be_bytes().to_vec()),
        ];
        let alarms = alarms::pinned(tables)?.into_iter().map(|alarm| (alarm.encode_to_vec(), Vec::new()));
        let cluster = [
            (b"clusterVersion".to_vec(), CLUSTER_VERSION.as_bytes().to_vec()),
            (b"downgrade".to_vec(), br#"{"target-version":"","enabled":false}"#.to_vec()),
        ];
        Ok(vec![
            ("alarm", alarms.collect()),
            ("auth", config.into()),
            ("authRoles", users.roles),
            ("authUsers", users.users),
            ("cluster", cluster.into()),
            ("members", self.members.members.iter().map(member_row).collect()),
            ("members_removed", self.members.removed.iter().map(|id| (hex(*id), b"removed".to_vec())).collect()),
            ("meta", self.meta(tables)),
        ])
    }

    fn meta(&self, tables: &PinnedTables<'_>) -> Rows {
        let applied = tables.applied().unwrap_or_default();
        let ids = |learner: bool| -> Vec<u64> {
            self.members.members.iter().filter(|member| member.is_learner == learner).map(|member| member.id).collect()
        };
        let mut conf_state = serde_json::json!({ "voters": ids(false), "auto_leave": false });
        if !ids(true).is_empty() {
            conf_state["learners"] = ids(true).into();
        }
        let mut meta = Rows::from([
            (b"consistent_index".to_vec(), applied.index.to_be_bytes().to_vec()),
            (b"term".to_vec(), applied.term.to_be_bytes().to_vec()),
            (b"confState".to_vec(), conf_state.to_string().into()),
            (b"storageVersion".to_vec(), CLUSTER_VERSION.into()),
        ]);
        if tables.compact_revision() > 0 {
            let compacted = revision_key((tables.compact_revision(), 0), false);
            meta.insert(b"scheduledCompactRev".to_vec(), compacted.clone());
            meta.insert(b"finishedCompactRev".to_vec(), compacted);
        }
        meta
    }
}

/// The bucket of keys under construction.
struct Keys<'a> {
    bucket: BucketWriter<'a>,
    checked_bytes: u64,
    buffer: Vec<u8>,
}

impl Keys<'_> {
    fn put(&mut self, key: Key, kv: &mvccpb::KeyValue, is_delete: bool) -> Result<(), Error> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        kv.encode(&mut buffer).expect("a vector has room");
        let put = self.put_encoded(key, &buffer, is_delete).map_err(file_error);
        self.buffer = buffer;
        put
    }

    fn put_encoded(&mut self, key: Key, kv: &[u8], is_delete: bool) -> Result<(), StorageError> {
        self.bucket.put(&revision_key(key, is_delete), kv)
    }

    /// Asks whether to go on, once for each piece.
    fn check(&mut self, may_go_on: &dyn Fn() -> Result<(), Error>) -> Result<(), Error> {
        let bytes = self.bucket.file_len();
        if bytes < self.checked_bytes + limits::EXPORT_PIECE_BYTES as u64 {
            return Ok(());
        }
        self.checked_bytes = bytes;
        may_go_on()
    }
}

/// etcd's form of a revision.
fn revision_key((main, sub): Key, is_delete: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(&main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&u64::from(sub).to_be_bytes());
    if is_delete {
        key.push(b't');
    }
    key
}

fn hex(id: u64) -> Vec<u8> {
    format!("{id:x}").into_bytes()
}

fn member_row(member: &pb::Member) -> (Vec<u8>, Vec<u8>) {
    let mut row = serde_json::json!({ "id": member.id, "peerURLs": member.peer_ur_ls });
    if !member.name.is_empty() {
        row["name"] = member.name.clone().into();
    }
    if !member.client_ur_ls.is_empty() {
        row["clientURLs"] = member.client_ur_ls.clone().into();
    }
    if member.is_learner {
        row["isLearner"] = true.into();
    }
    (hex(member.id), row.to_string().into_bytes())
}

/// The file is not what the member lives from: it goes on.
fn file_error(error: StorageError) -> Error {
    match error {
        StorageError::Full { .. } => Error::NoRoomForFile,
        error => Error::File(error.to_string()),
    }
}
