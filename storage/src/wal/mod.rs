//! Raft's log and vote on disk: one queue of appends, votes, truncates and releases in front, one worker behind that
//! drains it with one write and one sync. Knows no rules of raft beyond the order of log ids, and nothing of what
//! entries mean. Format: `docs/formats/wal.md`.

mod frame;
mod recovery;
mod segment;
mod setup;
mod spare;
mod superblock;
mod tail;
mod worker;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::disk::Disk;
use crate::{Result, StorageError};

pub use crate::LogId;
pub use worker::{StepOutcome, WalWorker, run};

use frame::FRAME_HEADER_BYTES;
use segment::{FrameReader, SEGMENT_HEADER_BYTES, Segment};
use tail::{Place, Tail, entry_cost};

/// Smallest segment that may be asked for.
pub const SEGMENT_BYTES_MIN: u64 = 4096;

/// Entries whose places are looked up at once when the log is read from files.
const COLD_READ_ENTRIES: usize = 256;

/// Most bytes of entries that [`Wal::append_here`] writes on the caller's thread: what one client has in flight.
const APPEND_HERE_BYTES_MAX: u64 = 64 << 10;

/// Upper bounds of the classes in which sync durations are counted: 250 us, doubled up to 8 s; one more class is open.
pub const SYNC_CLASSES: usize = 16;

/// A member's vote. Raft forbids it to go back, so it is durable before it is told to anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The newest term that this member has seen.
    pub term: u64,
    /// Whom it voted for in that term.
    pub voted_for: Option<u64>,
    /// Whether a quorum is known to have elected that candidate.
    pub committed: bool,
}

/// What an entry holds. Frozen values.
#[repr(u8)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Nothing: a new leader's first entry.
    Blank = 0,
    /// A command batch.
    Commands = 1,
    /// A membership.
    Membership = 2,
}

/// One place in the log and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Where.
    pub id: LogId,
    /// Which kind of content.
    pub kind: EntryKind,
    /// The content; opaque here.
    pub payload: Bytes,
}

/// Whose log it is.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
}

/// Told once an operation and everything queued before it is durable, or why it never will be. Runs on the thread that
/// made it durable, in the order of the queue, and must not block or call the log.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Directory of the log's files, made if missing.
    pub dir: PathBuf,
    /// Length of new segment files; also the bound of one entry. At least 4 KiB, a multiple of 8.
    pub segment_bytes: u64,
    /// Entries kept in memory, in bytes.
    pub tail_bytes_max: u64,
    /// Entries that wait to be written, in bytes.
    pub queue_bytes_max: u64,
    /// Whose log it must be.
    pub identity: Identity,
    /// Never sync. A power cut then loses acknowledged entries, and usually makes the log refuse to open.
    pub unsafe_no_fsync: bool,
}

impl WalOptions {
    /// The defaults: segments of 64 MiB, 32 MiB in memory, 256 MiB queued.
    pub fn new(dir: impl Into<PathBuf>, identity: Identity) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            tail_bytes_max: 32 << 20,
            queue_bytes_max: 256 << 20,
            identity,
            unsafe_no_fsync: false,
        }
    }
}

/// What was found when the log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The member's vote.
    pub vote: Option<Vote>,
    /// Prefix that is no longer needed.
    pub released: Option<LogId>,
    /// Newest entry, or the newest released one if none is left.
    pub last: Option<LogId>,
    /// The torn write that was cut off, if it left traces.
    pub cut: Option<CutTail>,
    /// Whose log it is.
    pub identity: Identity,
}

/// A torn write at the end of the log. It was never acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTail {
    /// The segment.
    pub path: PathBuf,
    /// Where in the file the log now ends.
    pub offset: u64,
    /// How many bytes behind it still held traces.
    pub bytes: u64,
}

/// Figures about the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Bytes of frames and headers written since the log was opened.
    pub bytes_written_total: u64,
    /// Syncs of log data since the log was opened.
    pub sync_count: u64,
    /// Time spent in them.
    pub sync_total: Duration,
    /// Time spent in writes of log data, before each sync.
    pub write_total: Duration,
    /// Writes by class, like syncs.
    pub write_classes: [u64; SYNC_CLASSES + 1],
    /// Syncs that took at most 250 us, 500 us, ... 8 s, and longer: counts of each class.
    pub sync_classes: [u64; SYNC_CLASSES + 1],
    /// Bytes from the oldest segment that is still needed to the end of the log.
    pub live_bytes: u64,
    /// Operations that wait to be written.
    pub queue_depth: u64,
    /// Bytes of entries that wait to be written.
    pub queue_bytes: u64,
    /// The disk has no room for the next segment.
    pub full: bool,
}

impl WalStats {
    /// Upper bound of that class of sync durations; `None` for the open one.
    pub fn sync_class_bound(class: usize) -> Option<Duration> {
        (class < SYNC_CLASSES).then(|| Duration::from_micros(250) * (1 << class))
    }
}

/// The log: queue side and reader side. Clones are handles of the same log; when the last one is gone, the worker
/// stops as if told to.
///
/// ```text
/// append, save_vote, truncate_after, release        entries, last, vote (any thread)
///        |                                               ^
///        v                                               |  newest entries; older ones from the segment files
///      queue  --- WalWorker::step: drain, one write, one sync, Done in order
/// ```
///
/// Invariants: the order of calls is the order on disk; what a call has added can be read when it returns; a `Done`
/// is told of success only after everything before it is durable; after a failed write or sync nothing is written
/// again and every `Done`, waiting or new, is told of that failure.
#[derive(Clone)]
pub struct Wal {
    shared: Arc<Shared>,
    _stop_when_unused: Arc<StopWhenUnused>,
}

impl Wal {
    /// Opens the log, making it if there is none. What a crash cannot explain is [`StorageError::Corrupt`], and then
    /// nothing on disk is changed.
    pub fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<(Wal, WalWorker, Recovered)> {
        if options.segment_bytes < SEGMENT_BYTES_MIN || !options.segment_bytes.is_multiple_of(8) {
            let what = format!("segments of {} bytes: at least {SEGMENT_BYTES_MIN}, by 8", options.segment_bytes);
            return Err(invariant(what));
        }
        disk.create_dir_all(&options.dir)?;
        let lock = disk.lock(&options.dir)?;
        let found = recovery::recover(&*disk, &options)?;
        let (worker, recovered) = WalWorker::start(disk, options, lock, found)?;
        let shared = worker.shared().clone();
        let stop = Arc::new(StopWhenUnused { shared: shared.clone() });
        Ok((Wal { shared, _stop_when_unused: stop }, worker, recovered))
    }

    /// Whose log is in `dir`; `None` if there is none yet. Takes no lock.
    pub fn identity_on_disk(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>> {
        recovery::identity_on_disk(disk, dir)
    }

    /// Adds entries behind the last one. They can be read when this returns. An error means that nothing was added
    /// and `done` is never called.
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) -> Result<()> {
        let mut state = self.shared.lock_running()?;
        self.shared.queue_append(&mut state, entries, done)?;
        self.shared.wake_worker(&mut state);
        Ok(())
    }

    /// Like [`Wal::append`]; but if the worker's thread has nothing to do and the entries are few bytes, they are written
    /// and synced here, on the calling thread, and `done` is told before this returns. Saves a lone writer the way to
    /// the worker's thread and back, which costs as much as a fast disk's sync. For callers that may wait for the disk.
    pub fn append_here(&self, entries: Vec<LogEntry>, done: Done) -> Result<()> {
        let mut state = self.shared.lock_running()?;
        let bytes = self.shared.queue_append(&mut state, entries, done)?;
        if !state.worker_waits || state.ops.len() > 1 || bytes > APPEND_HERE_BYTES_MAX {
            self.shared.wake_worker(&mut state);
            return Ok(());
        }
        drop(state);
        self.shared.step_here();
        Ok(())
    }

    /// Saves the vote, after everything queued before it.
    pub fn save_vote(&self, vote: Vote, done: Done) -> Result<()> {
        let mut state = self.shared.lock_running()?;
        if let Some(current) = state.vote.as_ref().filter(|current| current.term > vote.term) {
            return Err(invariant(format!("the vote cannot go back from term {} to {}", current.term, vote.term)));
        }
        state.vote = Some(vote.clone());
        self.shared.enqueue(&mut state, Op::Vote { vote, done });
        Ok(())
    }

    /// Removes the entries after `last_kept`; it must be in the log, or the newest released one.
    pub fn truncate_after(&self, last_kept: Option<LogId>, done: Done) -> Result<()> {
        let mut state = self.shared.lock_running()?;
        state.tail.check_truncate(last_kept)?;
        state.tail.truncate_after(last_kept);
        self.shared.enqueue(&mut state, Op::Truncate { last_kept, done });
        Ok(())
    }

    /// Says that entries up to `up_to` are no longer needed; it may lie beyond the last one (after a snapshot). Does
    /// nothing if there are no such entries any more.
    pub fn release(&self, up_to: LogId) -> Result<()> {
        let mut state = self.shared.lock_running()?;
        let before_all = state.tail.first_index().is_some_and(|first| up_to.index + 1 < first);
        if before_all || state.tail.released().is_some_and(|released| released.index >= up_to.index) {
            return Ok(());
        }
        state.tail.release(up_to);
        self.shared.enqueue(&mut state, Op::Release { up_to });
        Ok(())
    }

    /// Ends the worker after everything queued before; later calls are refused.
    pub fn stop(&self, done: Done) {
        self.shared.stop(done);
    }

    /// The newest vote, maybe not durable yet.
    pub fn vote(&self) -> Option<Vote> {
        self.shared.state.lock().vote.clone()
    }

    /// Newest entry that is no longer needed.
    pub fn released(&self) -> Option<LogId> {
        self.shared.state.lock().tail.released()
    }

    /// Newest entry, maybe not durable yet; the newest released one if none is left.
    pub fn last(&self) -> Option<LogId> {
        self.shared.state.lock().tail.last()
    }

    /// Log id of the entry with that index, if it is in the log or is the newest released one. Never reads a file.
    pub fn log_id(&self, index: u64) -> Option<LogId> {
        self.shared.state.lock().tail.log_id(index)
    }

    /// Whether that entry can be read without a file.
    pub fn is_in_memory(&self, index: u64) -> bool {
        self.shared.state.lock().tail.entry(index).is_some()
    }

    /// Consecutive entries beginning with index `from`, before `to_exclusive`, of about `bytes_max` bytes in all (each
    /// counts as its frame); at least one if `from` is in the log, none if it is not.
    pub fn entries(&self, from: u64, to_exclusive: u64, bytes_max: u64) -> Result<Vec<LogEntry>> {
        let mut out = Answer { entries: Vec::new(), bytes: 0, bytes_max };
        loop {
            let next = from + out.entries.len() as u64;
            let cold = self.shared.collect(next, to_exclusive, &mut out);
            if cold.is_empty() || !self.shared.read_cold(next, &cold, &mut out)? {
                return Ok(out.entries);
            }
        }
    }

    /// Whether the next segment can be made. `Full` while it cannot: writes should be refused before the current
    /// segment, which is the reserve, is used up.
    pub fn check_room(&self) -> Result<()> {
        match self.shared.full.load(Ordering::Relaxed) {
            true => Err(StorageError::Full { path: self.shared.dir.clone() }),
            false => Ok(()),
        }
    }

    /// Figures about the log.
    pub fn stats(&self) -> WalStats {
        let (queue_depth, queue_bytes) = {
            let state = self.shared.state.lock();
            (state.ops.len() as u64, state.queue_bytes)
        };
        let counters = &self.shared.counters;
        WalStats {
            bytes_written_total: counters.bytes_written.load(Ordering::Relaxed),
            sync_count: counters.syncs.load(Ordering::Relaxed),
            sync_total: Duration::from_nanos(counters.sync_nanos.load(Ordering::Relaxed)),
            write_total: Duration::from_nanos(counters.write_nanos.load(Ordering::Relaxed)),
            write_classes: std::array::from_fn(|class| counters.write_classes[class].load(Ordering::Relaxed)),
            sync_classes: std::array::from_fn(|class| counters.sync_classes[class].load(Ordering::Relaxed)),
            live_bytes: counters.live_bytes.load(Ordering::Relaxed),
            queue_depth,
            queue_bytes,
            full: self.shared.full.load(Ordering::Relaxed),
        }
    }
}

/// Stops the worker when the last handle is gone.
struct StopWhenUnused {
    shared: Arc<Shared>,
}

impl Drop for StopWhenUnused {
    fn drop(&mut self) {
        self.shared.stop(Box::new(|_| {}));
    }
}

/// One operation in the queue.
enum Op {
    Append { entries: Vec<LogEntry>, first_serial: u64, bytes: u64, done: Done },
    Vote { vote: Vote, done: Done },
    Truncate { last_kept: Option<LogId>, done: Done },
    Release { up_to: LogId },
    Stop { done: Done },
}

impl Op {
    /// Tells who waits for it, if anybody does.
    fn complete(self, result: Result<()>) {
        match self {
            Self::Append { done, .. } | Self::Vote { done, .. } | Self::Truncate { done, .. } | Self::Stop { done } => {
                done(result);
            }
            Self::Release { .. } => {}
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Append { bytes, .. } => *bytes,
            _ => 0,
        }
    }
}

/// What handles and worker share.
struct Shared {
    // Fixed.
    dir: PathBuf,
    entry_bytes_max: u64,
    queue_bytes_max: u64,
    /// Room in the last segment of a full disk that entries leave to truncations and to the releases that end it.
    control_reserve_bytes: u64,
    // Protected by the lock, held for moments only: never while a file is touched or a `Done` runs.
    state: Mutex<State>,
    /// The worker's thread waits on it for operations.
    wake: Condvar,
    /// The worker, once a thread runs it. Locked for a whole step, and never while `state` is.
    worker: OnceLock<Weak<Mutex<WalWorker>>>,
    // Single values.
    full: Arc<AtomicBool>,
    counters: Counters,
}

/// Queue and what can be read.
struct State {
    ops: VecDeque<Op>,
    queue_bytes: u64,
    worker_waits: bool,
    /// Set once nothing more is accepted: the failure, or `Stopped`.
    ended: Option<StorageError>,
    tail: Tail,
    vote: Option<Vote>,
    /// Segments that entries may be read from, oldest first.
    segments: VecDeque<Arc<Segment>>,
    /// Bytes left in the current segment when the worker last looked.
    room: u64,
}

#[derive(Default)]
struct Counters {
    bytes_written: AtomicU64,
    syncs: AtomicU64,
    write_nanos: AtomicU64,
    write_classes: [AtomicU64; SYNC_CLASSES + 1],
    sync_nanos: AtomicU64,
    sync_classes: [AtomicU64; SYNC_CLASSES + 1],
    live_bytes: AtomicU64,
}

impl Shared {
    fn lock_running(&self) -> Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.state.lock();
        match &state.ended {
            Some(error) => Err(error.clone()),
            None => Ok(state),
        }
    }

    /// Checks what an append must not do; returns what its entries cost.
    fn admit(&self, state: &State, entries: &[LogEntry]) -> Result<u64> {
        let (mut last, mut bytes) = (state.tail.last(), 0);
        for entry in entries {
            Tail::check_next(last, entry.id)?;
            let cost = entry_cost(entry);
            if cost > self.entry_bytes_max || entry.payload.len() > u32::MAX as usize {
                let bytes_max = self.entry_bytes_max - FRAME_HEADER_BYTES as u64;
                return Err(StorageError::TooLarge { bytes: entry.payload.len() as u64, bytes_max });
            }
            last = Some(entry.id);
            bytes += cost;
        }
        if !state.ops.is_empty() && state.queue_bytes + bytes > self.queue_bytes_max {
            return Err(StorageError::QueueFull { bytes: state.queue_bytes });
        }
        let needed = state.queue_bytes + bytes + self.control_reserve_bytes;
        if self.full.load(Ordering::Relaxed) && needed > state.room {
            return Err(StorageError::Full { path: self.dir.clone() });
        }
        Ok(bytes)
    }

    /// Puts an append into the queue without waking the worker; returns what it costs.
    fn queue_append(&self, state: &mut State, entries: Vec<LogEntry>, done: Done) -> Result<u64> {
        let bytes = self.admit(state, &entries)?;
        let mut first_serial = None;
        for entry in &entries {
            let serial = state.tail.push_queued(entry.clone());
            first_serial.get_or_insert(serial);
        }
        state.queue_bytes += bytes;
        let first_serial = first_serial.unwrap_or_default();
        state.ops.push_back(Op::Append { entries, first_serial, bytes, done });
        Ok(bytes)
    }

    fn enqueue(&self, state: &mut State, op: Op) {
        state.ops.push_back(op);
        self.wake_worker(state);
    }

    fn wake_worker(&self, state: &mut State) {
        if state.worker_waits {
            state.worker_waits = false;
            self.wake.notify_one();
        }
    }

    fn stop(&self, done: Done) {
        let mut state = self.state.lock();
        let Some(error) = state.ended.clone() else {
            state.ended = Some(StorageError::Stopped);
            self.enqueue(&mut state, Op::Stop { done });
            return;
        };
        drop(state);
        done(match error {
            StorageError::Stopped => Ok(()),
            error => Err(error),
        });
    }

    /// Adds the entries from `next` on that are in memory, or returns where the first of them stand on disk.
    fn collect(&self, next: u64, to_exclusive: u64, out: &mut Answer) -> Vec<(u64, Arc<Segment>)> {
        let state = self.state.lock();
        let mut cold = Vec::new();
        for index in next..to_exclusive {
            match (state.tail.entry(index), state.tail.find(index)) {
                (Some(entry), _) if cold.is_empty() => {
                    if !out.add(entry_cost(entry), || entry.clone()) {
                        break;
                    }
                }
                (None, Some(Place::At(position))) if cold.len() < COLD_READ_ENTRIES => {
                    let Some(segment) = state.segment_at(position) else { break };
                    cold.push((position, segment.clone()));
                }
                _ => break,
            }
        }
        cold
    }

    /// Reads entries from `first` on from files. False once the answer is full, or the entries are gone.
    fn read_cold(&self, first: u64, cold: &[(u64, Arc<Segment>)], out: &mut Answer) -> Result<bool> {
        let mut reader = FrameReader::new(cold[0].1.clone());
        for (index, (position, segment)) in (first..).zip(cold) {
            if !Arc::ptr_eq(reader.segment(), segment) {
                reader = FrameReader::new(segment.clone());
            }
            let frame = reader.frame(*position)?;
            let fault = match &frame {
                Ok(frame) => match frame.header.frame_type.entry_kind() {
                    Some(kind) if frame.header.id.index == index => {
                        let payload = || Bytes::copy_from_slice(frame.payload);
                        if !out.add(frame.bytes, || LogEntry { id: frame.header.id, kind, payload: payload() }) {
                            return Ok(false);
                        }
                        continue;
                    }
                    _ => "the frame holds another entry",
                },
                Err(fault) => fault,
            };
            // Released and recycled while it was being read: not an error. Still in the log: damage.
            if self.state.lock().tail.find(index) == Some(Place::At(*position)) {
                return Err(corrupt(&segment.path, position - segment.header.base, fault));
            }
            return Ok(false);
        }
        Ok(true)
    }
}

impl State {
    fn segment_at(&self, position: u64) -> Option<&Arc<Segment>> {
        let behind = self.segments.partition_point(|segment| segment.header.base <= position);
        self.segments.get(behind.checked_sub(1)?)
    }
}

/// Entries being gathered for a reader.
struct Answer {
    entries: Vec<LogEntry>,
    bytes: u64,
    bytes_max: u64,
}

impl Answer {
    /// Adds an entry, unless there are some already and it would be too much.
    fn add(&mut self, cost: u64, entry: impl FnOnce() -> LogEntry) -> bool {
        if !self.entries.is_empty() && self.bytes + cost > self.bytes_max {
            return false;
        }
        self.bytes += cost;
        self.entries.push(entry());
        true
    }
}

/// Bytes of the largest frame that a segment holds.
fn entry_bytes_max(segment_bytes: u64) -> u64 {
    segment_bytes - SEGMENT_HEADER_BYTES
}

/// See [`Shared::control_reserve_bytes`]: over a thousand control frames in a segment of the usual size.
fn control_reserve_bytes(segment_bytes: u64) -> u64 {
    (segment_bytes / 8).min(64 * 1024)
}

/// A fault of the log's files, with the remedy.
fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> StorageError {
    let what = what.into();
    let remedy = "nothing was changed; restore this member from the other members or from a snapshot";
    StorageError::corrupt(path, offset, format!("{what}; {remedy}"))
}

/// A rule of the log that the caller has broken.
fn invariant(what: String) -> StorageError {
    StorageError::Invariant { what }
}
