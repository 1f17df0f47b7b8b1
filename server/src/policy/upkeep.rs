//! What keeps a restart short and the disk small: flushes the backend when a replay would take long, tells raft how
//! much of the log is not needed any more, and frees history below the compact revision. Its own thread, because all
//! of this may wait for the disk.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use daymark_raft::Handle;
use daymark_storage::disk::Disk;
use daymark_storage::wal::Wal;
use daymark_storage::{LogId, Result};

use crate::limits;
use crate::views::Views;

/// The work, without the thread.
pub struct Upkeep {
    views: Arc<Views>,
    raft: Handle,
    room: Room,
    replay: ReplayEstimate,
    released: Option<LogId>,
}

/// Where writes go, and how to see that there is room for more.
pub struct Room {
    pub disk: Arc<dyn Disk>,
    pub data_dir: PathBuf,
    pub wal: Wal,
}

impl Room {
    /// Room for the log's next segment, a flush and some merging. Asked before anything is appended, so that neither the
    /// log nor the backend meets the end of the disk.
    fn is_left(&self) -> Result<bool> {
        Ok(self.wal.check_room().is_ok() && self.disk.free_bytes(&self.data_dir)? >= limits::DISK_RESERVE_BYTES)
    }
}

/// The running thread.
pub struct Running {
    stop: Arc<AtomicBool>,
    join: JoinHandle<()>,
}

impl Running {
    /// Ends the thread after what it is doing.
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.join.thread().unpark();
        if self.join.join().is_err() {
            tracing::error!("the upkeep thread had panicked");
        }
    }
}

/// Starts the thread "upkeep". A failure of the backend ends it and is given to `on_fatal`.
pub fn start(
    views: Arc<Views>,
    raft: Handle,
    room: Room,
    on_fatal: Box<dyn FnOnce(String) + Send>,
) -> std::io::Result<Running> {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopping, mut upkeep) = (stop.clone(), Upkeep::new(views, raft, room));
    let join = thread::Builder::new().name("upkeep".into()).spawn(move || {
        while !stopping.load(Ordering::SeqCst) {
            if let Err(error) = upkeep.step() {
                return on_fatal(error.to_string());
            }
            thread::park_timeout(limits::UPKEEP_INTERVAL);
        }
    })?;
    Ok(Running { stop, join })
}

impl Upkeep {
    /// Work on what `views` shows.
    pub fn new(views: Arc<Views>, raft: Handle, room: Room) -> Self {
        Self { views, raft, room, replay: ReplayEstimate::default(), released: None }
    }

    /// One look.
    pub fn step(&mut self) -> Result<()> {
        self.look_at_room()?;
        let keyspace = self.views.keyspace.clone();
        // Bytes first: they may count less than the index covers, never more.
        let bytes = self.views.applied_bytes();
        self.replay.sample(self.views.applied_index(), bytes);
        let mut durable = keyspace.durable_applied()?;
        if self.replay.bytes_behind(durable) > limits::REPLAY_BYTES_MAX {
            keyspace.flush()?;
            durable = keyspace.durable_applied()?;
        }
        if let Some(durable) = durable.filter(|durable| self.released != Some(*durable)) {
            self.raft.release_log(durable);
            self.released = Some(durable);
        }
        if keyspace.compact_revision() > keyspace.history_floor() {
            keyspace.drop_history()?;
        }
        Ok(())
    }
}

impl Upkeep {
    fn look_at_room(&self) -> Result<()> {
        let has_room = self.room.is_left()?;
        let data_dir = self.room.data_dir.display();
        match (self.views.set_room(has_room), has_room) {
            (true, false) => tracing::warn!(%data_dir, "the disk is nearly full: writes that add data are refused"),
            (true, true) => tracing::info!(%data_dir, "the disk has room again: all writes are served"),
            (false, _) => {}
        }
        Ok(())
    }
}

/// How many bytes of commands a crash would make us replay: samples of (applied index, bytes applied so far).
///
/// Invariant: both numbers grow from front to back.
#[derive(Default)]
struct ReplayEstimate {
    samples: VecDeque<(u64, u64)>,
}

impl ReplayEstimate {
    fn sample(&mut self, index: u64, bytes: u64) {
        if self.samples.back().is_none_or(|(last, _)| *last < index) {
            self.samples.push_back((index, bytes));
        }
    }

    /// Forgets what `durable` covers.
    fn bytes_behind(&mut self, durable: Option<LogId>) -> u64 {
        let durable = durable.map_or(0, |id| id.index);
        // The newest sample that is covered stays as the base.
        while self.samples.get(1).is_some_and(|(index, _)| *index <= durable) {
            self.samples.pop_front();
        }
        match (self.samples.front(), self.samples.back()) {
            (Some((index, base)), Some((_, newest))) if *index <= durable => newest - base,
            (_, Some((_, newest))) => *newest,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable(index: u64) -> Option<LogId> {
        Some(LogId { term: 1, index })
    }

    #[test]
    fn bytes_behind_the_durable_index_are_counted_from_the_sample_before_it() {
        let mut replay = ReplayEstimate::default();
        assert_eq!(replay.bytes_behind(None), 0);
        replay.sample(10, 100);
        assert_eq!(replay.bytes_behind(None), 100, "nothing is durable: everything since the start");
        replay.sample(20, 250);
        replay.sample(20, 250);
        replay.sample(30, 300);
        assert_eq!(replay.bytes_behind(durable(5)), 300);
        assert_eq!(replay.bytes_behind(durable(10)), 200);
        assert_eq!(replay.bytes_behind(durable(29)), 50, "from 20 on");
        assert_eq!(replay.bytes_behind(durable(30)), 0);
        replay.sample(40, 900);
        assert_eq!(replay.bytes_behind(durable(30)), 600);
        assert_eq!(replay.samples.len(), 2);
    }
}
