//! A file of etcd's snapshot form as typed content: changes, leases, users, alarms, positions. Checks what a page cannot tell;
//! the pages themselves are `storage::bbolt`'s. Format: `docs/formats/etcd-snapshot.md`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use daymark_api::{authpb, etcdserverpb as pb, mvccpb};
use daymark_storage::StorageError;
use daymark_storage::bbolt::{BboltReader, Bucket};
use daymark_storage::disk::{Disk, OpenMode, RealDisk};
use daymark_storage::mvcc::Revision;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::export;
use crate::limits;
use crate::state::auth::PinnedAuth;

/// What is behind the database in a saved file.
const CHECKSUM_BYTES: u64 = 32;
/// A database is a multiple of this, so that a checksum behind it shows.
const SECTOR_BYTES: u64 = 512;

/// An open file.
pub struct EtcdFile {
    pub reader: BboltReader,
    pub buckets: Vec<Bucket>,
    path: PathBuf,
}

/// A row of the bucket of changes.
pub struct Change {
    pub at: Revision,
    pub kv: mvccpb::KeyValue,
    pub is_delete: bool,
}

/// Whether a saved file is what was sent.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// Its checksum is right.
    Checked,
    /// It has none, or it is not looked at.
    Unknown,
}

impl EtcdFile {
    /// Opens a file. With `check` its checksum must be there and right.
    pub fn open(path: &Path, check: bool) -> anyhow::Result<(Self, Integrity)> {
        let disk = RealDisk::new();
        let file = disk.open(path, OpenMode::Read)?;
        let length = file.len()?;
        let has_checksum = length % SECTOR_BYTES == CHECKSUM_BYTES;
        let database = if has_checksum { length - CHECKSUM_BYTES } else { length };
        if check {
            ensure!(
                has_checksum,
                "snapshot missing hash but --skip-hash-check=false; a file that was copied out of a data directory has none, \
                 give --skip-hash-check for one"
            );
            let (found, expected) = checksums(&*file, database)?;
            ensure!(
                found == expected,
                "expected sha256 {}, got {}; the file is not what was sent: save it again",
                hex(&expected),
                hex(&found)
            );
        }
        let reader = BboltReader::open(&disk, path, database)?;
        let buckets = reader.buckets()?;
        let integrity = if check { Integrity::Checked } else { Integrity::Unknown };
        Ok((Self { reader, buckets, path: path.into() }, integrity))
    }

    fn bucket(&self, name: &str) -> Option<&Bucket> {
        self.buckets.iter().find(|bucket| bucket.name == name.as_bytes())
    }

    /// All pairs of a bucket; none if there is no such bucket.
    fn rows(&self, name: &str, mut visit: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Some(bucket) = self.bucket(name) else { return Ok(()) };
        let mut refused = None;
        let read = self.reader.for_each(bucket, &mut |key, value| {
            visit(key, value).map_err(|error| {
                refused = Some(error);
                StorageError::Stopped
            })
        });
        match refused {
            Some(error) => Err(error.context(format!("bucket {name} of {}", self.path.display()))),
            None => Ok(read?),
        }
    }

    /// All changes in order.
    pub fn changes(&self, mut visit: impl FnMut(Change) -> anyhow::Result<()>) -> anyhow::Result<()> {
        ensure!(self.bucket("key").is_some(), "{} has no bucket of keys: it is no snapshot", self.path.display());
        self.rows("key", |key, value| {
            let (at, is_delete) = revision(key).with_context(|| format!("{key:02x?} is no revision"))?;
            let kv = mvccpb::KeyValue::decode(value).with_context(|| format!("the record of revision {at}"))?;
            visit(Change { at, kv, is_delete })
        })
    }

    /// The revision that is compacted, or is to be; -1: none.
    pub fn compact_revision(&self) -> anyhow::Result<i64> {
        let mut compact = -1;
        self.rows("meta", |key, value| {
            if key == b"scheduledCompactRev" || key == b"finishedCompactRev" {
                compact = compact.max(revision(value).context("the compact revision cannot be read")?.0.main);
            }
            Ok(())
        })?;
        Ok(compact)
    }

    /// Version of the schema, if the file says.
    pub fn version(&self) -> anyhow::Result<Option<String>> {
        let mut version = None;
        self.rows("meta", |key, value| {
            if key == b"storageVersion" {
                version = Some(String::from_utf8_lossy(value).into_owned());
            }
            Ok(())
        })?;
        Ok(version)
    }

    /// All leases in order of their ids as unsigned numbers.
    pub fn leases(&self) -> anyhow::Result<Vec<export::Lease>> {
        let mut leases = Vec::new();
        self.rows("lease", |key, value| {
            let lease = export::Lease::decode(value).context("a lease cannot be read")?;
            ensure!(
                key == lease.id.to_be_bytes() && lease.id != 0,
                "a lease under {key:02x?} calls itself {:x}",
                lease.id
            );
            ensure!(lease.ttl > 0 && lease.remaining_ttl >= 0, "lease {:x} lasts {} seconds", lease.id, lease.ttl);
            leases.push(lease);
            Ok(())
        })?;
        Ok(leases)
    }

    /// Users, roles, and whether they are asked for.
    pub fn auth(&self) -> anyhow::Result<PinnedAuth> {
        let mut auth =
            PinnedAuth { is_enabled: false, revision: 1, users: Default::default(), roles: Default::default() };
        self.rows("auth", |key, value| {
            match key {
                b"authEnabled" => auth.is_enabled = value == [1],
                b"authRevision" => {
                    auth.revision = u64::from_be_bytes(value.try_into().context("the auth revision cannot be read")?);
                }
                _ => {}
            }
            Ok(())
        })?;
        self.rows("authUsers", |name, value| {
            let user = authpb::User::decode(value).context("a user cannot be read")?;
            ensure!(user.name == name, "a user is kept under another's name");
            auth.users.insert(name.to_vec(), value.to_vec());
            Ok(())
        })?;
        self.rows("authRoles", |name, value| {
            let role = authpb::Role::decode(value).context("a role cannot be read")?;
            ensure!(role.name == name, "a role is kept under another's name");
            auth.roles.insert(name.to_vec(), value.to_vec());
            Ok(())
        })?;
        Ok(auth)
    }

    /// Alarms that were raised.
    pub fn alarms(&self) -> anyhow::Result<Vec<pb::AlarmMember>> {
        let mut alarms = Vec::new();
        self.rows("alarm", |key, _| {
            alarms.push(pb::AlarmMember::decode(key).context("an alarm cannot be read")?);
            Ok(())
        })?;
        Ok(alarms)
    }
}

/// SHA-256 of the database, and the one behind it.
fn checksums(file: &dyn daymark_storage::disk::DiskFile, length: u64) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let bar = super::progress("checking", length);
    let (mut hasher, mut at) = (Sha256::new(), 0);
    let mut buffer = vec![0; limits::EXPORT_PIECE_BYTES];
    while at < length {
        let wanted = buffer.len().min((length - at) as usize);
        let count = file.read_at(&mut buffer[..wanted], at)?;
        if count == 0 {
            bail!("the file became shorter while it was read");
        }
        hasher.update(&buffer[..count]);
        at += count as u64;
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    let mut expected = vec![0; CHECKSUM_BYTES as usize];
    file.read_at(&mut expected, length)?;
    Ok((hasher.finalize().to_vec(), expected))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// etcd's form of a revision: main, `_`, sub, and `t` for a delete.
fn revision(key: &[u8]) -> Option<(Revision, bool)> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (sub, rest) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
    let number = |bytes: &[u8; 8]| i64::try_from(u64::from_be_bytes(*bytes)).ok();
    let at = Revision { main: number(main)?, sub: number(sub)? };
    match rest {
        b"" => Some((at, false)),
        b"t" => Some((at, true)),
        _ => None,
    }
}
