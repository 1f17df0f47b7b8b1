//! A snapshot of the state: a directory of files, among them a manifest that says what they are. Made from a backend's
//! checkpoint, received file by file, checked, and put in the state's place by one rename. Knows no networks and no raft.
//!
//! ```text
//! member/db               the state, generation 0        member/db-<generation>   a later one: the greatest counts
//! member/snapshot-out-<n> made here, to be sent          member/snapshot-in       being received
//! ```
//! The format is described in `docs/formats/snapshot.md`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::backend::{Backend, CopyUse, Family};
use crate::codec::{crc32c, crc32c_append, put_varint, take_varint};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::mvcc::{Keyspace, layout};
use crate::{LogId, Result, StorageError};

/// Name of the manifest. It stays in the directory when the snapshot has become the state, and then says where it began.
pub const MANIFEST_FILE: &str = "SNAPSHOT";
/// Bytes of an encoded manifest that are read: far more files than a store of many terabytes has.
pub const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Snapshots that may exist at a time to be sent.
pub const MADE_MAX: usize = 2;
/// How long a snapshot is kept for a receiver that may come back for the rest.
pub const LINGER: Duration = Duration::from_secs(60);

const STATE_DIR: &str = "db";
const INCOMING_DIR: &str = "snapshot-in";
const OUTGOING_PREFIX: &str = "snapshot-out-";
const MAGIC: &[u8; 8] = b"DMRKSNAP";
const FORMAT: u8 = 1;
/// A file being received is synced after so many bytes, so that the disk never has much to catch up with at once: others
/// wait for their syncs on it.
const SYNC_BYTES: u64 = 8 << 20;
/// Bytes read at once when a file is checked.
const CHECK_BYTES: usize = 1 << 20;
const FILES_MAX: u64 = 1 << 20;
const NAME_BYTES_MAX: u64 = 255;

/// One file of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFile {
    /// Its name in the directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32C of all of it.
    pub crc: u32,
}

/// What a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Tells it from every other, so that a receiver does not put two together.
    pub id: u64,
    /// Whose state it is.
    pub cluster_id: u64,
    /// The last log entry in it.
    pub applied: LogId,
    /// Revision of its newest change.
    pub revision: i64,
    /// Raft's membership at that entry, in raft's own bytes.
    pub membership: Bytes,
    /// All files but the manifest, in order of names.
    pub files: Vec<SnapshotFile>,
}

impl Manifest {
    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// As it stands in its file and goes to a receiver: a checksum is part of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(FORMAT);
        for field in [self.id, self.cluster_id, self.applied.term, self.applied.index, self.revision as u64] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        put_varint(&mut out, self.membership.len() as u64);
        out.extend_from_slice(&self.membership);
        put_varint(&mut out, self.files.len() as u64);
        for file in &self.files {
            put_varint(&mut out, file.name.len() as u64);
            out.extend_from_slice(file.name.as_bytes());
            put_varint(&mut out, file.bytes);
            out.extend_from_slice(&file.crc.to_le_bytes());
        }
        let crc = crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// The reverse; an error says what is wrong.
    pub fn decode(bytes: &[u8]) -> std::result::Result<Self, &'static str> {
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or("it ends too early")?;
        if crc32c(body) != u32::from_le_bytes(*crc) {
            return Err("its checksum is wrong");
        }
        let rest = body.strip_prefix(MAGIC).ok_or("it is no manifest")?;
        let (format, mut rest) = rest.split_first().ok_or("it ends too early")?;
        if *format != FORMAT {
            return Err("it is of another version of Daymark");
        }
        Self::decode_fields(&mut rest).filter(|_| rest.is_empty()).ok_or("a field of it is not what it should be")
    }

    fn decode_fields(rest: &mut &[u8]) -> Option<Self> {
        let id = take_u64(rest)?;
        let cluster_id = take_u64(rest)?;
        let applied = LogId { term: take_u64(rest)?, index: take_u64(rest)? };
        let revision = take_u64(rest)? as i64;
        let length = usize::try_from(take_varint(rest)?).ok()?;
        let membership = Bytes::copy_from_slice(take(rest, length)?);
        let count = take_varint(rest).filter(|count| *count <= FILES_MAX)?;
        let mut files: Vec<SnapshotFile> = Vec::new();
        for _ in 0..count {
            let length = take_varint(rest).filter(|length| *length <= NAME_BYTES_MAX)?;
            let name = std::str::from_utf8(take(rest, length as usize)?).ok()?;
            let bytes = take_varint(rest)?;
            let crc = u32::from_le_bytes(take(rest, 4)?.try_into().ok()?);
            if !is_file_name(name) || files.last().is_some_and(|last| *last.name >= *name) {
                return None;
            }
            files.push(SnapshotFile { name: name.into(), bytes, crc });
        }
        Some(Self { id, cluster_id, applied, revision, membership, files })
    }

    fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<()> {
        let file = disk.open(&dir.join(MANIFEST_FILE), OpenMode::CreateNew)?;
        file.write_at(&self.encode(), 0)?;
        file.sync_all()?;
        disk.sync_dir(dir)
    }

    /// The manifest in `dir`, if there is one.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST_FILE);
        if !disk.exists(&path)? {
            return Ok(None);
        }
        let file = disk.open(&path, OpenMode::Read)?;
        let length = file.len()?.min(MANIFEST_BYTES_MAX as u64);
        let mut bytes = vec![0; length as usize];
        let count = file.read_at(&mut bytes, 0)?;
        let decoded = Self::decode(&bytes[..count]);
        decoded.map(Some).map_err(|what| StorageError::corrupt(&path, 0, format!("{what}; {REMEDY}")))
    }
}

const REMEDY: &str = "restore the member from its peers or a snapshot";

/// A plain name: nothing that leads out of the directory, nothing hidden, not the manifest's own.
fn is_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain) && name != MANIFEST_FILE
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest, 8)?.try_into().ok()?))
}

/// Where a member's state is, and what its last installed snapshot was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePlace {
    /// Its directory; need not exist yet.
    pub dir: PathBuf,
    /// The last log entry of the snapshot that it began as. Until the log has been reset to it, the state is lawfully
    /// ahead of the log.
    pub installed: Option<LogId>,
}

/// Finds the state in the directory `member`, and takes away what interrupted transfers and an interrupted swap have left:
/// the swap is one rename, so whichever generation is the greatest is whole.
pub fn recover(disk: &dyn Disk, member: &Path) -> Result<StatePlace> {
    if !disk.exists(member)? {
        return Ok(StatePlace { dir: member.join(STATE_DIR), installed: None });
    }
    let (states, leftovers) = sort_names(disk.list(member)?);
    let newest = states.last().copied().unwrap_or(0);
    let dir = state_dir(member, newest);
    let installed = match newest {
        0 => None,
        _ => Some(installed_manifest(disk, &dir)?.applied),
    };
    let old = states.iter().filter(|generation| **generation < newest).map(|generation| state_dir(member, *generation));
    for dir in leftovers.into_iter().map(|name| member.join(name)).chain(old) {
        tracing::info!(path = %dir.display(), "removing what an interrupted snapshot has left");
        disk.remove_dir(&dir)?;
    }
    disk.sync_dir(member)?;
    Ok(StatePlace { dir, installed })
}

/// Whether there is a state in the directory `member`, of any generation.
pub fn exists(disk: &dyn Disk, member: &Path) -> Result<bool> {
    Ok(disk.exists(member)? && !sort_names(disk.list(member)?).0.is_empty())
}

fn installed_manifest(disk: &dyn Disk, dir: &Path) -> Result<Manifest> {
    let missing = || StorageError::corrupt(&dir.join(MANIFEST_FILE), 0, format!("it is missing; {REMEDY}"));
    Manifest::read(disk, dir)?.ok_or_else(missing)
}

/// Generations of the state, ascending, and names of transfers.
fn sort_names(names: Vec<String>) -> (Vec<u64>, Vec<String>) {
    let (mut states, mut leftovers) = (Vec::new(), Vec::new());
    for name in names {
        match name.strip_prefix(STATE_DIR) {
            Some("") => states.push(0),
            Some(rest) => states.extend(rest.strip_prefix('-').and_then(generation)),
            None if name == INCOMING_DIR || name.starts_with(OUTGOING_PREFIX) => leftovers.push(name),
            None => {}
        }
    }
    states.sort_unstable();
    (states, leftovers)
}

fn generation(digits: &str) -> Option<u64> {
    let number = u64::from_str_radix(digits, 16).ok().filter(|number| *number > 0)?;
    (format!("{number:016x}") == digits).then_some(number)
}

fn state_dir(member: &Path, generation: u64) -> PathBuf {
    match generation {
        0 => member.join(STATE_DIR),
        number => member.join(format!("{STATE_DIR}-{number:016x}")),
    }
}

/// Makes snapshots of a state and takes those of others in. Everything here may wait for the disk.
pub struct SnapshotStore {
    // Fixed.
    disk: Arc<dyn Disk>,
    /// Where the state's directory is.
    member: PathBuf,
    cluster_id: u64,
    keyspace: Arc<Keyspace>,
    /// The row of the family `meta` that holds raft's membership.
    membership_row: &'static [u8],
    /// Free space that making or receiving one leaves.
    free_bytes_min: u64,
    // Shared, by locks that are held for moments only.
    made: Mutex<Vec<Arc<Made>>>,
    incoming: Mutex<Slot>,
    numbers: AtomicU64,
    /// One is made at a time.
    making: Mutex<()>,
}

#[derive(Default)]
struct Slot {
    /// Number of the transfer that may write.
    turn: u64,
    incoming: Option<Incoming>,
}

/// A snapshot that was made here. Its files go with the last who holds it.
pub struct Made {
    /// What it is.
    pub manifest: Manifest,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// When somebody last asked for it, by the disk's clock.
    used: Mutex<Duration>,
}

impl SnapshotStore {
    /// For the state below `member`, which `keyspace` is.
    pub fn new(
        disk: Arc<dyn Disk>,
        member: impl Into<PathBuf>,
        cluster_id: u64,
        keyspace: Arc<Keyspace>,
        membership_row: &'static [u8],
        free_bytes_min: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            disk,
            member: member.into(),
            cluster_id,
            keyspace,
            membership_row,
            free_bytes_min,
            made: Mutex::default(),
            incoming: Mutex::default(),
            numbers: AtomicU64::new(0),
            making: Mutex::default(),
        })
    }

    /// A snapshot with at least the entry `least` in it: one that is kept already, else a new one, which takes as long as a
    /// flush and reading all files once. `random` becomes the id of a new one.
    pub fn snapshot(&self, least: Option<LogId>, random: u64) -> Result<Arc<Made>> {
        let _turn = self.making.lock();
        if let Some(made) = self.kept(least) {
            return Ok(made);
        }
        let made = Arc::new(self.make(random)?);
        if Some(made.manifest.applied) < least {
            let what = format!("a snapshot made at entry {} has to have {least:?} in it", made.manifest.applied);
            return Err(StorageError::Invariant { what });
        }
        self.made.lock().push(made.clone());
        Ok(made)
    }

    fn kept(&self, least: Option<LogId>) -> Option<Arc<Made>> {
        let made = self.made.lock();
        let newest = made.last().filter(|made| Some(made.manifest.applied) >= least)?;
        *newest.used.lock() = self.disk.now();
        Some(newest.clone())
    }

    /// Gives up snapshots that nobody sends and nobody has asked for in [`LINGER`]. To be called now and then.
    pub fn tidy(&self) {
        let now = self.disk.now();
        let is_needed = |made: &Arc<Made>| {
            if Arc::strong_count(made) > 1 {
                *made.used.lock() = now;
            }
            now.saturating_sub(*made.used.lock()) < LINGER
        };
        let mut made = self.made.lock();
        let (needed, gone) = made.drain(..).partition(is_needed);
        *made = needed;
        drop(made);
        // Their files are removed here, without the lock.
        let gone: Vec<Arc<Made>> = gone;
        drop(gone);
    }

    /// The entry behind which the log is needed by who receives a snapshot now.
    pub fn oldest_in_use(&self) -> Option<LogId> {
        let made = self.made.lock();
        made.iter().filter(|made| Arc::strong_count(made) > 1).map(|made| made.manifest.applied).min()
    }

    /// The same, for who may come back for the rest as well.
    pub fn oldest_kept(&self) -> Option<LogId> {
        self.made.lock().iter().map(|made| made.manifest.applied).min()
    }

    /// What the newest snapshot is whose files are there.
    pub fn newest_made(&self) -> Option<Manifest> {
        self.made.lock().last().map(|made| made.manifest.clone())
    }

    fn make(&self, id: u64) -> Result<Made> {
        self.make_place()?;
        self.check_room(self.keyspace.size()?.memtable_bytes)?;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let dir = self.member.join(format!("{OUTGOING_PREFIX}{number}"));
        let backend = self.keyspace.backend();
        let leftover = RemoveOnDrop { disk: self.disk.clone(), dir: Some(dir.clone()) };
        self.keyspace.store_fences()?;
        backend.checkpoint(&dir)?;
        let manifest = self.describe(&*backend, &dir, id)?;
        manifest.write(&*self.disk, &dir)?;
        leftover.keep();
        Ok(Made { manifest, disk: self.disk.clone(), dir, used: Mutex::new(self.disk.now()) })
    }

    /// At its bound, the oldest that nobody sends makes place.
    fn make_place(&self) -> Result<()> {
        let mut made = self.made.lock();
        if made.len() < MADE_MAX {
            return Ok(());
        }
        let Some(idle) = made.iter().position(|made| Arc::strong_count(made) == 1) else {
            return Err(StorageError::Backend { what: format!("{MADE_MAX} snapshots are being sent already") });
        };
        made.remove(idle);
        Ok(())
    }

    fn check_room(&self, bytes: u64) -> Result<()> {
        match self.disk.free_bytes(&self.member)? >= bytes.saturating_add(self.free_bytes_min) {
            true => Ok(()),
            false => Err(StorageError::Full { path: self.member.clone() }),
        }
    }

    /// Reads the copy itself: what the original holds may be newer.
    fn describe(&self, backend: &dyn Backend, dir: &Path, id: u64) -> Result<Manifest> {
        let copy = backend.open_copy(dir, CopyUse::Look)?;
        let (position, membership) = read_position(&*copy, self.membership_row)?;
        drop(copy);
        let nothing = || StorageError::Invariant { what: "a snapshot of a state without entries was asked for".into() };
        let (applied, membership) = (position.applied.ok_or_else(nothing)?, membership.ok_or_else(nothing)?);
        let mut files = Vec::new();
        for name in self.disk.list(dir)? {
            let path = dir.join(&name);
            if !is_file_name(&name) {
                return Err(StorageError::Format { path, what: "a checkpoint has no file of such a name".into() });
            }
            let file = self.disk.open(&path, OpenMode::Read)?;
            let bytes = file.len()?;
            files.push(SnapshotFile { name, bytes, crc: checksum(&*file, bytes)? });
        }
        let (cluster_id, revision) = (self.cluster_id, position.current_revision);
        Ok(Manifest { id, cluster_id, applied, revision, membership: membership.into(), files })
    }

    /// Begins to receive a snapshot, or goes on with it: then what is there is kept. Whoever was receiving one before
    /// cannot write any more. Returns the number that [`SnapshotStore::write`] wants, and where to go on.
    pub fn receive(&self, manifest: Manifest) -> Result<(u64, Have)> {
        if manifest.cluster_id != self.cluster_id {
            let what = format!(
                "a snapshot of cluster {:x} was sent to a member of cluster {:x}",
                manifest.cluster_id, self.cluster_id
            );
            return Err(StorageError::Invariant { what });
        }
        let mut slot = self.incoming.lock();
        slot.turn += 1;
        if slot.incoming.as_ref().is_none_or(|incoming| incoming.manifest != manifest) {
            slot.incoming = None;
            self.check_room(manifest.total_bytes())?;
            slot.incoming = Some(Incoming::begin(self.disk.clone(), &self.member, manifest)?);
        }
        let have = slot.incoming.as_ref().map(Incoming::have).unwrap_or_default();
        Ok((slot.turn, have))
    }

    /// Adds the bytes at a place, which must be the one that is next.
    pub fn write(&self, turn: u64, at: Have, bytes: &[u8]) -> Result<()> {
        let mut slot = self.incoming.lock();
        slot.mine(turn)?.write(at, bytes)
    }

    /// Everything has been received: makes it durable and checks it from end to end, which reads all of it.
    pub fn complete(&self, turn: u64) -> Result<Received> {
        let incoming = {
            let mut slot = self.incoming.lock();
            slot.mine(turn)?;
            slot.incoming.take()
        };
        incoming.ok_or(StorageError::Stopped)?.complete()
    }

    /// Opens what was received and looks whether it holds what its manifest says.
    pub fn check(&self, received: Received) -> Result<Received> {
        let copy = self.keyspace.backend().open_copy(&received.dir(), CopyUse::Look)?;
        received.check(&*copy, self.membership_row)?;
        Ok(received)
    }
}

impl Slot {
    fn mine(&mut self, turn: u64) -> Result<&mut Incoming> {
        let is_mine = self.turn == turn;
        self.incoming.as_mut().filter(|_| is_mine).ok_or(StorageError::Stopped)
    }
}

impl Made {
    /// Reads from a file, for the receiver.
    pub fn read(&self, at: Have, bytes_max: usize) -> Result<Vec<u8>> {
        let Some(entry) = self.manifest.files.get(at.file as usize) else { return Ok(Vec::new()) };
        let path = self.dir.join(&entry.name);
        let file = self.disk.open(&path, OpenMode::Read)?;
        let length = entry.bytes.saturating_sub(at.offset).min(bytes_max as u64);
        let mut bytes = vec![0; length as usize];
        if file.read_at(&mut bytes, at.offset)? < bytes.len() {
            return Err(StorageError::corrupt(&path, at.offset, "a file of a snapshot became shorter"));
        }
        Ok(bytes)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        remove(&*self.disk, &self.dir);
    }
}

fn remove(disk: &dyn Disk, dir: &Path) {
    if let Err(error) = disk.remove_dir(dir) {
        tracing::warn!(%error, "a snapshot's files are left until the next start");
    }
}

struct RemoveOnDrop {
    disk: Arc<dyn Disk>,
    dir: Option<PathBuf>,
}

impl RemoveOnDrop {
    fn keep(mut self) {
        self.dir = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir
            && self.disk.exists(dir).unwrap_or(false)
        {
            remove(&*self.disk, dir);
        }
    }
}

/// A place in a snapshot: everything before it is there.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// Number of the file in the manifest.
    pub file: u32,
    /// Bytes of it.
    pub offset: u64,
}

/// A snapshot on its way here.
struct Incoming {
    manifest: Manifest,
    disk: Arc<dyn Disk>,
    member: PathBuf,
    at: Have,
    open: Option<Arc<dyn DiskFile>>,
    /// False once the directory is another's to look after.
    is_mine: bool,
}

impl Incoming {
    fn begin(disk: Arc<dyn Disk>, member: &Path, manifest: Manifest) -> Result<Self> {
        let dir = member.join(INCOMING_DIR);
        if disk.exists(&dir)? {
            disk.remove_dir(&dir)?;
        }
        disk.create_dir_all(&dir)?;
        manifest.write(&*disk, &dir)?;
        let mut begun = Self { manifest, disk, member: member.into(), at: Have::default(), open: None, is_mine: true };
        begun.skip_complete()?;
        Ok(begun)
    }

    fn dir(&self) -> PathBuf {
        self.member.join(INCOMING_DIR)
    }

    fn have(&self) -> Have {
        self.at
    }

    fn write(&mut self, at: Have, bytes: &[u8]) -> Result<()> {
        let entry = self.manifest.files.get(at.file as usize);
        let fits = entry.is_some_and(|entry| at.offset + bytes.len() as u64 <= entry.bytes);
        if at != self.at || !fits {
            let what = format!("bytes at {at:?} of a snapshot came when those at {:?} were due", self.at);
            return Err(StorageError::Invariant { what });
        }
        let file = match &self.open {
            Some(file) => file.clone(),
            None => self.create(at.file)?,
        };
        file.write_at(bytes, at.offset)?;
        self.at.offset += bytes.len() as u64;
        if self.at.offset / SYNC_BYTES != at.offset / SYNC_BYTES {
            file.sync_data()?;
        }
        self.skip_complete()
    }

    fn create(&mut self, number: u32) -> Result<Arc<dyn DiskFile>> {
        let path = self.dir().join(&self.manifest.files[number as usize].name);
        let file = self.disk.open(&path, OpenMode::CreateNew)?;
        self.open = Some(file.clone());
        Ok(file)
    }

    /// Closes files that are whole, durably; empty ones are made on the way.
    fn skip_complete(&mut self) -> Result<()> {
        while let Some(entry) = self.manifest.files.get(self.at.file as usize) {
            if self.at.offset < entry.bytes {
                return Ok(());
            }
            let file = match self.open.take() {
                Some(file) => file,
                None => self.create(self.at.file)?,
            };
            file.sync_all()?;
            self.open = None;
            self.at = Have { file: self.at.file + 1, offset: 0 };
        }
        Ok(())
    }

    fn complete(mut self) -> Result<Received> {
        if (self.at.file as usize) < self.manifest.files.len() {
            let what = format!("a snapshot was called whole when it had come up to {:?}", self.at);
            return Err(StorageError::Invariant { what });
        }
        let dir = self.dir();
        self.disk.sync_dir(&dir)?;
        for entry in &self.manifest.files {
            let path = dir.join(&entry.name);
            let file = self.disk.open(&path, OpenMode::Read)?;
            if file.len()? != entry.bytes || checksum(&*file, entry.bytes)? != entry.crc {
                return Err(StorageError::corrupt(&path, 0, "it is not what its sender's manifest says"));
            }
        }
        self.is_mine = false;
        let (manifest, disk, member) = (self.manifest.clone(), self.disk.clone(), self.member.clone());
        Ok(Received { manifest, disk, member, is_installed: false })
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.is_mine {
            self.open = None;
            remove(&*self.disk, &self.dir());
        }
    }
}

/// A snapshot that is here as a whole, durable and checked. Its files go with it unless it is installed.
pub struct Received {
    manifest: Manifest,
    disk: Arc<dyn Disk>,
    member: PathBuf,
    is_installed: bool,
}

impl Received {
    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where its files are.
    pub fn dir(&self) -> PathBuf {
        self.member.join(INCOMING_DIR)
    }

    /// Whether `copy`, which is it opened, holds what the manifest says.
    fn check(&self, copy: &dyn Backend, membership_row: &[u8]) -> Result<()> {
        let (position, membership) = read_position(copy, membership_row)?;
        let (applied, revision) = (Some(self.manifest.applied), self.manifest.revision);
        if (position.applied, position.current_revision) == (applied, revision)
            && membership.as_deref() == Some(&self.manifest.membership[..])
        {
            return Ok(());
        }
        let what = format!(
            "a snapshot holds entry {:?} and revision {}, its manifest says {applied:?} and {revision}",
            position.applied, position.current_revision
        );
        Err(StorageError::Invariant { what })
    }

    /// Puts it in the state's place: from here on a start finds it, whatever happens. Returns its new directory. What was
    /// the state before is left as it is, for those who still read it.
    pub fn install(mut self) -> Result<PathBuf> {
        let (states, _) = sort_names(self.disk.list(&self.member)?);
        let place = state_dir(&self.member, states.last().copied().unwrap_or(0) + 1);
        // What has changed in it since it was received.
        self.disk.sync_dir(&self.dir())?;
        self.disk.rename(&self.dir(), &place)?;
        self.is_installed = true;
        self.disk.sync_dir(&self.member)?;
        Ok(place)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.is_installed {
            remove(&*self.disk, &self.dir());
        }
    }
}

fn read_position(backend: &dyn Backend, membership_row: &[u8]) -> Result<(layout::Position, Option<Vec<u8>>)> {
    let mut bytes = Vec::new();
    if !backend.get(Family::Meta, layout::POSITION_KEY, &mut bytes)? {
        return Ok((Keyspace::EMPTY, None));
    }
    let unreadable = || StorageError::corrupt(backend.path(), 0, "its position cannot be read");
    let position = layout::decode_position(&bytes).ok_or_else(unreadable)?;
    let has_membership = backend.get(Family::Meta, membership_row, &mut bytes)?;
    Ok((position, has_membership.then_some(bytes)))
}

fn checksum(file: &dyn DiskFile, length: u64) -> Result<u32> {
    let mut buffer = vec![0; CHECK_BYTES.min(length as usize)];
    let (mut crc, mut at) = (0, 0);
    while at < length {
        let wanted = buffer.len().min((length - at) as usize);
        let count = file.read_at(&mut buffer[..wanted], at)?;
        if count == 0 {
            break;
        }
        crc = crc32c_append(crc, &buffer[..count]);
        at += count as u64;
    }
    Ok(crc)
}
