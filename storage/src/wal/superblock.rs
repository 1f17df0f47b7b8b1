//! The superblock: two copies of vote, identity, known segments and the lower bound of what is durable. Frozen
//! layout, described in `docs/formats/wal.md`. Knows nothing of frames.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{crc32c, put_u32_at, put_u64_at, u32_at, u64_at};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::{LogId, Result, StorageError};

use super::{Identity, Vote, corrupt};

/// Name of the superblock file.
pub const SUPERBLOCK_FILE: &str = "superblock";
/// Name of the superblock file while it is made.
pub const SUPERBLOCK_TMP_FILE: &str = "superblock.tmp";
/// Distance of the two copies, in bytes: no disk tears both with one write. Frozen.
pub const COPY_DISTANCE: u64 = 16 * 1024;
/// Bytes of one copy: one sector. Frozen.
pub const COPY_BYTES: usize = 512;

const MAGIC: &[u8; 8] = b"DMRKSUPR";
const FORMAT_VERSION: u32 = 1;

const VOTE_PRESENT: u8 = 1;
const VOTE_HAS_CANDIDATE: u8 = 2;
const VOTE_COMMITTED: u8 = 4;
const RELEASED_PRESENT: u8 = 8;

/// What the superblock says.
///
/// Invariants: `first_segment <= last_segment + 1`; `epoch_start <= durable_floor`; `write_number`, `epoch`,
/// `durable_floor`, `last_segment` and the vote's term never go down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Grows by one with each write; the valid copy with the greater one counts.
    pub write_number: u64,
    /// Whose log this is.
    pub identity: Identity,
    /// Number of times that the log was opened.
    pub epoch: u32,
    /// Where the log ended when it was last opened: frames from here on are of `epoch`, or they are not valid.
    pub epoch_start: u64,
    /// Everything before this position is durable.
    pub durable_floor: u64,
    /// Oldest segment that is still needed.
    pub first_segment: u64,
    /// Newest segment that may hold frames; 0 while there is none.
    pub last_segment: u64,
    /// Vote of this member.
    pub vote: Option<Vote>,
    /// Prefix that is no longer needed, as known when segments were last recycled.
    pub released: Option<LogId>,
}

impl Superblock {
    /// The superblock of a log that has just been made.
    pub fn new(identity: Identity) -> Self {
        Self {
            write_number: 1,
            identity,
            epoch: 0,
            epoch_start: 0,
            durable_floor: 0,
            first_segment: 1,
            last_segment: 0,
            vote: None,
            released: None,
        }
    }

    fn encode(&self) -> [u8; COPY_BYTES] {
        let mut bytes = [0u8; COPY_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        put_u32_at(&mut bytes, 8, FORMAT_VERSION);
        put_u64_at(&mut bytes, 16, self.write_number);
        put_u64_at(&mut bytes, 24, self.identity.cluster_id);
        put_u64_at(&mut bytes, 32, self.identity.member_id);
        put_u64_at(&mut bytes, 40, self.epoch_start);
        put_u64_at(&mut bytes, 48, self.durable_floor);
        put_u64_at(&mut bytes, 56, self.first_segment);
        put_u64_at(&mut bytes, 64, self.last_segment);
        put_u32_at(&mut bytes, 72, self.epoch);
        let mut flags = 0;
        if let Some(vote) = &self.vote {
            flags |= VOTE_PRESENT;
            put_u64_at(&mut bytes, 80, vote.term);
            if let Some(candidate) = vote.voted_for {
                flags |= VOTE_HAS_CANDIDATE;
                put_u64_at(&mut bytes, 88, candidate);
            }
            if vote.committed {
                flags |= VOTE_COMMITTED;
            }
        }
        if let Some(released) = self.released {
            flags |= RELEASED_PRESENT;
            put_u64_at(&mut bytes, 96, released.term);
            put_u64_at(&mut bytes, 104, released.index);
        }
        bytes[76] = flags;
        let crc = copy_checksum(&bytes);
        put_u32_at(&mut bytes, 12, crc);
        bytes
    }

    /// One copy; an error says what is wrong with it.
    fn decode(bytes: &[u8]) -> std::result::Result<Self, CopyFault> {
        if bytes.len() < COPY_BYTES {
            return Err(CopyFault::Short);
        }
        if &bytes[..8] != MAGIC {
            return Err(CopyFault::Magic);
        }
        if copy_checksum(bytes) != u32_at(bytes, 12) {
            return Err(CopyFault::Checksum);
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return Err(CopyFault::Version(version));
        }
        let flags = bytes[76];
        let vote = (flags & VOTE_PRESENT != 0).then(|| Vote {
            term: u64_at(bytes, 80),
            voted_for: (flags & VOTE_HAS_CANDIDATE != 0).then(|| u64_at(bytes, 88)),
            committed: flags & VOTE_COMMITTED != 0,
        });
        let released =
            (flags & RELEASED_PRESENT != 0).then(|| LogId { term: u64_at(bytes, 96), index: u64_at(bytes, 104) });
        Ok(Self {
            write_number: u64_at(bytes, 16),
            identity: Identity { cluster_id: u64_at(bytes, 24), member_id: u64_at(bytes, 32) },
            epoch: u32_at(bytes, 72),
            epoch_start: u64_at(bytes, 40),
            durable_floor: u64_at(bytes, 48),
            first_segment: u64_at(bytes, 56),
            last_segment: u64_at(bytes, 64),
            vote,
            released,
        })
    }
}

/// What is wrong with one copy.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum CopyFault {
    Short,
    Magic,
    Checksum,
    Version(u32),
}

impl std::fmt::Display for CopyFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Short => f.write_str("cut short"),
            Self::Magic => f.write_str("not a superblock"),
            Self::Checksum => f.write_str("wrong checksum"),
            Self::Version(version) => write!(f, "format version {version}"),
        }
    }
}

/// The open superblock file.
pub struct SuperblockFile {
    file: Arc<dyn DiskFile>,
    /// The copy that is older or damaged: written first, so that the better one stands until the other is durable.
    weak_copy: u64,
}

impl SuperblockFile {
    /// Makes the file: complete under a temporary name first, so that a crash leaves either none or a whole one.
    pub fn create(disk: &dyn Disk, dir: &Path, superblock: &Superblock, sync: bool) -> Result<Self> {
        let tmp = dir.join(SUPERBLOCK_TMP_FILE);
        if disk.exists(&tmp)? {
            disk.remove(&tmp)?;
        }
        let mut created = Self { file: disk.open(&tmp, OpenMode::CreateNew)?, weak_copy: 0 };
        created.file.allocate(2 * COPY_DISTANCE)?;
        created.store(superblock, sync)?;
        if sync {
            created.file.sync_all()?;
        }
        disk.rename(&tmp, &dir.join(SUPERBLOCK_FILE))?;
        if sync {
            disk.sync_dir(dir)?;
        }
        Ok(created)
    }

    /// Reads both copies and takes the newer valid one.
    pub fn load(disk: &dyn Disk, dir: &Path, mode: OpenMode) -> Result<(Self, Superblock)> {
        let path: PathBuf = dir.join(SUPERBLOCK_FILE);
        let file = disk.open(&path, mode)?;
        let first = read_copy(&*file, 0)?;
        let second = read_copy(&*file, 1)?;
        let (superblock, weak_copy) = match (first, second) {
            (Ok(first), Ok(second)) if first.write_number == second.write_number && first != second => {
                return Err(corrupt(&path, 0, "the two copies contradict each other"));
            }
            (Ok(first), Ok(second)) if second.write_number > first.write_number => (second, 0),
            (Ok(first), Ok(_)) => (first, 1),
            (Ok(first), Err(fault)) => {
                warn_of_copy(&path, COPY_DISTANCE, fault);
                (first, 1)
            }
            (Err(fault), Ok(second)) => {
                warn_of_copy(&path, 0, fault);
                (second, 0)
            }
            (Err(CopyFault::Version(version)), Err(_)) | (Err(_), Err(CopyFault::Version(version))) => {
                let what =
                    format!("its format version is {version}, this program reads {FORMAT_VERSION}: use a newer one");
                return Err(StorageError::Format { path, what });
            }
            (Err(first), Err(second)) => {
                let what = format!("neither copy is valid (at 0: {first}, at {COPY_DISTANCE}: {second})");
                return Err(corrupt(&path, 0, what));
            }
        };
        Ok((Self { file, weak_copy }, superblock))
    }

    /// Writes and syncs both copies, one after the other: a crash damages at most one, and once this returns, damage
    /// to either one loses nothing.
    pub fn store(&mut self, superblock: &Superblock, sync: bool) -> Result<()> {
        let bytes = superblock.encode();
        for copy in [self.weak_copy, 1 - self.weak_copy] {
            self.file.write_at(&bytes, copy * COPY_DISTANCE)?;
            if sync {
                self.file.sync_data()?;
            }
        }
        Ok(())
    }
}

fn read_copy(file: &dyn DiskFile, copy: u64) -> Result<std::result::Result<Superblock, CopyFault>> {
    let mut bytes = [0u8; COPY_BYTES];
    let count = file.read_at(&mut bytes, copy * COPY_DISTANCE)?;
    Ok(Superblock::decode(&bytes[..count]))
}

fn warn_of_copy(path: &Path, offset: u64, fault: CopyFault) {
    tracing::warn!(path = %path.display(), offset, %fault, "one copy of the superblock is damaged, using the other");
}

fn copy_checksum(bytes: &[u8]) -> u32 {
    crate::codec::crc32c_append(crc32c(&bytes[..12]), &bytes[16..COPY_BYTES])
}
