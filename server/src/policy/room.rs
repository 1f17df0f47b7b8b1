//! How much room is left where this member writes. Looked at by a thread of its own, which does nothing that could wait for
//! a disk, so that a long flush does not hide that the disk fills up. Frees nothing: that is the upkeep's work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use daymark_storage::Result;

use crate::limits;
use crate::views::{Room, Views};

/// A directory that is written to.
pub struct Directory {
    pub path: PathBuf,
    /// Free space below which what adds data is refused.
    pub reserve_bytes: u64,
}

impl Directory {
    /// On a volume of this size.
    pub fn on_volume(path: PathBuf, volume_bytes: u64) -> Self {
        let share = volume_bytes / limits::DISK_RESERVE_SHARE;
        let reserve_bytes = share.clamp(limits::DISK_RESERVE_BYTES_MIN, limits::DISK_RESERVE_BYTES_MAX);
        Self { path, reserve_bytes }
    }

    fn room(&self, free_bytes: u64) -> Room {
        if free_bytes < limits::DISK_HARD_RESERVE_BYTES {
            Room::Spent
        } else if free_bytes < self.reserve_bytes {
            Room::Scarce
        } else {
            Room::Ample
        }
    }
}

/// Asks for the free space of a directory's volume.
pub type FreeBytes = Box<dyn Fn(&Path) -> Result<u64> + Send>;

/// The look, without the thread. Asked before anything is appended, so that neither the log nor the backend meets the
/// end of the disk.
pub struct RoomWatch {
    pub views: Arc<Views>,
    pub directories: Vec<Directory>,
    pub free_bytes: FreeBytes,
    /// Whether the log has its next segment, or can make it.
    pub log_has_room: Box<dyn Fn() -> bool + Send>,
}

impl RoomWatch {
    /// One look.
    pub fn step(&self) -> Result<()> {
        let mut worst = if (self.log_has_room)() { Room::Ample } else { Room::Spent };
        let mut at = None;
        for directory in &self.directories {
            let free_bytes = (self.free_bytes)(&directory.path)?;
            let room = directory.room(free_bytes);
            if room > worst {
                (worst, at) = (room, Some((directory, free_bytes)));
            }
        }
        if self.views.set_room(worst) != worst {
            report(worst, at);
        }
        Ok(())
    }
}

fn report(room: Room, at: Option<(&Directory, u64)>) {
    let directory = at.map(|(directory, _)| directory.path.display().to_string());
    let free_bytes = at.map(|(_, free_bytes)| free_bytes);
    match room {
        Room::Ample => tracing::info!("the disk has room again: all writes are served"),
        Room::Scarce => {
            tracing::warn!(directory, free_bytes, "the disk is nearly full: writes that add data are refused")
        }
        Room::Spent => {
            tracing::warn!(directory, free_bytes, "the disk is full: all writes but compactions are refused")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use daymark_storage::backend::MemBackend;
    use daymark_storage::mvcc::Keyspace;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_reserve_is_a_share_of_the_volume_within_bounds() {
        for (volume_mib, reserve_mib) in [(100, 256), (5120, 256), (10_240, 512), (20_480, 1024), (1 << 22, 1024)] {
            let directory = Directory::on_volume("/data".into(), volume_mib * MIB);
            assert_eq!(directory.reserve_bytes, reserve_mib * MIB, "of {volume_mib} MiB");
        }
    }

    #[test]
    fn the_directory_with_least_room_decides_and_so_does_the_log() {
        let (keyspace, _writer) = Keyspace::open(MemBackend::new()).expect("an empty keyspace");
        let views = Views::new(keyspace, 1, 1, Vec::new());
        let (data, log) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let log_has_room = Arc::new(AtomicBool::new(true));
        let (data_free, log_free, log_answer) = (data.clone(), log.clone(), log_has_room.clone());
        let watch = RoomWatch {
            views: views.clone(),
            directories: ["/data", "/log"].map(|path| Directory::on_volume(path.into(), 10_240 * MIB)).into(),
            free_bytes: Box::new(move |path| {
                let free = if path == Path::new("/log") { &log_free } else { &data_free };
                Ok(free.load(Ordering::SeqCst))
            }),
            log_has_room: Box::new(move || log_answer.load(Ordering::SeqCst)),
        };
        for (data_mib, log_mib, room) in [
            (512, 512, Room::Ample),
            (511, 512, Room::Scarce),
            (512, 511, Room::Scarce),
            (128, 128, Room::Scarce),
            (127, 600, Room::Spent),
            (600, 127, Room::Spent),
            (127, 300, Room::Spent),
            (512, 512, Room::Ample),
        ] {
            data.store(data_mib * MIB, Ordering::SeqCst);
            log.store(log_mib * MIB, Ordering::SeqCst);
            watch.step().expect("a look");
            assert_eq!(views.room(), room, "data {data_mib} MiB, log {log_mib} MiB");
        }
        log_has_room.store(false, Ordering::SeqCst);
        watch.step().expect("a look");
        assert_eq!(views.room(), Room::Spent, "the log has no next segment");
    }
}
