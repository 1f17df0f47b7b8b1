//! The log's worker: drains the queue, writes once, syncs once, tells everybody. A plain function takes one step, so
//! that a simulator can drive it; [`run`] is the thread around it. Makes no decision about entries.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::disk::{DirLock, Disk};
use crate::{LogId, Result, StorageError};

use super::frame::{FrameHeader, FrameType, frame_bytes};
use super::recovery::Found;
use super::segment::{self, SEGMENT_HEADER_BYTES, Segment, SegmentHeader};
use super::setup::{Setup, write_segment};
use super::spare::Spares;
use super::superblock::{Superblock, SuperblockFile};
use super::{
    Counters, Op, Recovered, SYNC_CLASSES, Shared, State, WalOptions, WalStats, control_reserve_bytes, entry_bytes_max,
    invariant,
};

/// Entries of so many bytes end a batch: more in one write would only delay those at its front.
const BATCH_BYTES_MAX: u64 = 8 << 20;

/// What a step did.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// The queue was empty.
    Idle,
    /// So many operations are durable and told.
    Worked(usize),
    /// The log was stopped; there is nothing more to do.
    Stopped,
}

/// The write side of the log. Owns the files; belongs to one thread.
///
/// Invariants: `durable <= end`; `buffer` holds the frames from `end` on; the superblock names a segment before the
/// segment's first frame is written, and everything before a segment is durable before it is begun.
pub struct WalWorker {
    // Fixed.
    shared: Arc<Shared>,
    disk: Arc<dyn Disk>,
    options: WalOptions,
    _lock: DirLock,
    // Files.
    superblock: Superblock,
    superblock_file: SuperblockFile,
    segment: Arc<Segment>,
    /// Segments that are still needed, oldest first, and the greatest index of an entry in each.
    held: VecDeque<(Arc<Segment>, Option<u64>)>,
    spares: Spares,
    // Where the log ends.
    end: u64,
    durable: u64,
    /// Checksum of the last frame, which the next one links to.
    chain: u32,
    /// Last entry and newest released one, as of the last frame.
    last: Option<LogId>,
    released: Option<LogId>,
    // Work in progress; kept between steps for its room.
    buffer: Vec<u8>,
    batch: Vec<Op>,
    placements: Vec<Placement>,
    recycle_due: bool,
    dead: Option<StorageError>,
}

/// Where an entry of the batch was put.
struct Placement {
    index: u64,
    serial: u64,
    position: u64,
}

impl WalWorker {
    /// Makes the log ready for writing: everything that opening changes on disk happens here.
    pub(super) fn start(
        disk: Arc<dyn Disk>,
        options: WalOptions,
        lock: DirLock,
        found: Option<Found>,
    ) -> Result<(Self, Recovered)> {
        let mut setup = Setup::new(disk.clone(), options.clone())?;
        let begun = match found {
            Some(found) => setup.reopen(found)?,
            None => setup.create()?,
        };
        let recovered = Recovered {
            vote: begun.superblock.vote.clone(),
            released: begun.tail.released(),
            last: begun.tail.last(),
            cut: begun.cut,
            identity: begun.superblock.identity,
        };
        let segment = begun.held.back().expect("a started log has a segment").0.clone();
        let state = State {
            ops: VecDeque::new(),
            queue_bytes: 0,
            worker_waits: false,
            ended: None,
            vote: begun.superblock.vote.clone(),
            segments: begun.held.iter().map(|(held, _)| held.clone()).collect(),
            room: segment.limit() - begun.end,
            tail: begun.tail,
        };
        let shared = Arc::new(Shared {
            dir: options.dir.clone(),
            entry_bytes_max: entry_bytes_max(options.segment_bytes),
            queue_bytes_max: options.queue_bytes_max,
            control_reserve_bytes: control_reserve_bytes(options.segment_bytes),
            state: Mutex::new(state),
            wake: Condvar::new(),
            worker: OnceLock::new(),
            full: setup.full,
            counters: Counters::default(),
        });
        let worker = Self {
            shared,
            disk,
            options,
            _lock: lock,
            superblock: begun.superblock,
            superblock_file: begun.superblock_file,
            segment,
            held: begun.held,
            spares: setup.spares,
            end: begun.end,
            durable: begun.end,
            chain: begun.chain,
            last: recovered.last,
            released: recovered.released,
            buffer: Vec::new(),
            batch: Vec::new(),
            placements: Vec::new(),
            recycle_due: true,
            dead: None,
        };
        worker.publish_live_bytes();
        Ok((worker, recovered))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Drains the queue up to and including the first vote (log and vote keep their order), writes it at once, syncs
    /// once, tells everybody. After an error the worker is dead and only returns it.
    pub fn step(&mut self) -> Result<StepOutcome> {
        if let Some(error) = &self.dead {
            return match error {
                StorageError::Stopped => Ok(StepOutcome::Stopped),
                error => Err(error.clone()),
            };
        }
        let worked = self.take_batch();
        let stopped = matches!(self.batch.last(), Some(Op::Stop { .. }));
        let done = if worked { self.perform() } else { Ok(()) };
        let count = self.batch.len();
        if done.is_ok() {
            // One by one: should a `Done` panic, those behind it are still there to be told.
            self.batch.reverse();
            while let Some(op) = self.batch.pop() {
                op.complete(Ok(()));
            }
        }
        if stopped && done.is_ok() {
            self.dead = Some(StorageError::Stopped);
            return Ok(StepOutcome::Stopped);
        }
        // Not before the completions: nobody waits for it.
        match done.and_then(|()| self.look_ahead()) {
            Ok(()) if worked => Ok(StepOutcome::Worked(count)),
            Ok(()) => Ok(StepOutcome::Idle),
            Err(error) => Err(self.die(error)),
        }
    }

    /// Takes operations off the queue; false if there are none.
    fn take_batch(&mut self) -> bool {
        let mut state = self.shared.state.lock();
        let mut bytes = 0;
        while let Some(op) = state.ops.pop_front() {
            bytes += op.bytes();
            let last = matches!(op, Op::Vote { .. } | Op::Stop { .. });
            self.batch.push(op);
            if last || bytes >= BATCH_BYTES_MAX {
                break;
            }
        }
        state.queue_bytes -= bytes;
        !self.batch.is_empty()
    }

    /// Makes the whole batch durable and readable from disk.
    fn perform(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let encoded = batch.iter().try_for_each(|op| self.encode(op));
        self.batch = batch;
        encoded?;
        self.flush()?;
        if let Some(Op::Vote { vote, .. }) = self.batch.last() {
            self.superblock.vote = Some(vote.clone());
            self.store_superblock()?;
        } else if let Some(Op::Stop { .. }) = self.batch.last() {
            self.store_superblock()?;
        }
        self.publish();
        Ok(())
    }

    fn encode(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Append { entries, first_serial, .. } => {
                for (serial, entry) in (*first_serial..).zip(entries) {
                    let position = self.put_frame(entry.kind.into(), entry.id, &entry.payload)?;
                    self.placements.push(Placement { index: entry.id.index, serial, position });
                    self.last = Some(entry.id);
                    let greatest = &mut self.held.back_mut().expect("the current segment is held").1;
                    *greatest = (*greatest).max(Some(entry.id.index));
                }
            }
            Op::Truncate { last_kept, .. } => {
                let frame_type = if last_kept.is_some() { FrameType::TruncateAfter } else { FrameType::TruncateAll };
                self.put_frame(frame_type, last_kept.unwrap_or_default(), &[])?;
                self.last = *last_kept;
            }
            Op::Release { up_to } => {
                self.put_frame(FrameType::Released, *up_to, &[])?;
                self.released = Some(*up_to);
                if self.last.is_none_or(|last| last.index < up_to.index) {
                    self.last = Some(*up_to);
                }
                self.recycle_due = true;
            }
            Op::Vote { .. } | Op::Stop { .. } => {}
        }
        Ok(())
    }

    /// Adds a frame to the buffer, beginning a new segment if it does not fit. Returns its position.
    fn put_frame(&mut self, frame_type: FrameType, id: LogId, payload: &[u8]) -> Result<u64> {
        let bytes = frame_bytes(payload.len()) as u64;
        if self.end + self.buffer.len() as u64 + bytes > self.segment.limit() {
            self.flush()?;
            self.begin_segment()?;
        }
        let position = self.end + self.buffer.len() as u64;
        let sequence = self.segment.header.sequence;
        let header = FrameHeader {
            length: payload.len() as u32,
            frame_type,
            link: self.chain,
            id,
            durable_before: self.durable,
            segment: sequence as u32,
            epoch: self.superblock.epoch,
        };
        self.chain = header.encode(&mut self.buffer, sequence, position, payload);
        Ok(position)
    }

    /// Writes and syncs what the buffer holds.
    fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let counters = &self.shared.counters;
        let started = self.disk.now();
        self.segment.file.write_at(&self.buffer, self.end - self.segment.header.base)?;
        let written = self.disk.now();
        counters.count_write(written.saturating_sub(started));
        if !self.options.unsafe_no_fsync {
            self.segment.file.sync_data()?;
            counters.count_sync(self.disk.now().saturating_sub(written));
        }
        let written = self.buffer.len() as u64;
        self.shared.counters.bytes_written.fetch_add(written, Ordering::Relaxed);
        self.end += written;
        self.durable = self.end;
        self.buffer.clear();
        if self.buffer.capacity() > 2 * BATCH_BYTES_MAX as usize {
            self.buffer = Vec::new();
        }
        Ok(())
    }

    /// Goes on in a new segment; everything before is durable.
    fn begin_segment(&mut self) -> Result<()> {
        let before = &self.segment.header;
        let header = SegmentHeader {
            sequence: before.sequence + 1,
            identity: before.identity,
            base: self.segment.limit(),
            segment_bytes: self.options.segment_bytes,
            previous_end: self.end,
            link: self.chain,
            epoch: self.superblock.epoch,
            last: self.last,
        };
        let begun = write_segment(&*self.disk, &self.options, &mut self.spares, header)?;
        self.end = begun.frames_start();
        self.durable = self.end;
        self.chain = begun.header_crc;
        self.superblock.last_segment = begun.header.sequence;
        self.store_superblock()?;
        self.shared.counters.bytes_written.fetch_add(SEGMENT_HEADER_BYTES, Ordering::Relaxed);
        self.segment = Arc::new(begun);
        self.held.push_back((self.segment.clone(), None));
        // Readers learn of the segment before they learn of a place in it.
        self.shared.state.lock().segments.push_back(self.segment.clone());
        Ok(())
    }

    fn store_superblock(&mut self) -> Result<()> {
        self.superblock.write_number += 1;
        self.superblock.durable_floor = self.durable;
        self.superblock_file.store(&self.superblock, !self.options.unsafe_no_fsync)
    }

    /// Lets readers find the batch's entries in the files, and those in memory make room.
    fn publish(&mut self) {
        let mut state = self.shared.state.lock();
        for placement in self.placements.drain(..) {
            state.tail.place(placement.index, placement.serial, placement.position);
        }
        state.tail.evict();
        state.room = self.segment.limit() - self.end;
        drop(state);
        self.publish_live_bytes();
    }

    fn publish_live_bytes(&self) {
        let first = self.held.front().map_or(self.end, |(segment, _)| segment.header.base);
        self.shared.counters.live_bytes.store(self.end - first, Ordering::Relaxed);
    }

    /// Gives released segments back and has the next one made ready.
    fn look_ahead(&mut self) -> Result<()> {
        if self.recycle_due {
            self.recycle()?;
            self.recycle_due = false;
        }
        if self.end - self.segment.header.base > self.segment.header.segment_bytes / 2 {
            self.spares.want();
        }
        self.spares.step()
    }

    /// Gives back the oldest segments all of whose entries are released, the current one excepted. The superblock
    /// stops naming them before their files change.
    fn recycle(&mut self) -> Result<()> {
        let released = self.released.map(|released| released.index);
        let unneeded = self.held.iter().take(self.held.len() - 1);
        let count = unneeded.take_while(|(_, greatest)| *greatest <= released).count();
        if count == 0 {
            return Ok(());
        }
        self.superblock.first_segment += count as u64;
        self.superblock.released = self.released;
        self.store_superblock()?;
        self.shared.state.lock().segments.drain(..count);
        for (segment, _) in self.held.drain(..count) {
            let name = segment::file_name(segment.header.sequence);
            if segment.header.segment_bytes == self.options.segment_bytes {
                self.spares.recycle(&name)?;
            } else {
                self.disk.remove(&segment.path)?;
            }
        }
        self.publish_live_bytes();
        match self.options.unsafe_no_fsync {
            true => Ok(()),
            false => self.disk.sync_dir(&self.options.dir),
        }
    }

    /// Ends the worker with that error: everybody who waits, and everybody who comes, is told.
    fn die(&mut self, error: StorageError) -> StorageError {
        self.dead = Some(error.clone());
        let mut state = self.shared.state.lock();
        state.ended = Some(error.clone());
        state.queue_bytes = 0;
        let waiting = std::mem::take(&mut state.ops);
        drop(state);
        for op in self.batch.drain(..).chain(waiting) {
            op.complete(Err(error.clone()));
        }
        error
    }
}

impl Drop for WalWorker {
    fn drop(&mut self) {
        let error = self.dead.clone().unwrap_or(StorageError::Stopped);
        self.die(error);
    }
}

/// Runs the worker on a thread of its own, "wal", until the log is stopped; another one makes spare segments. A failure,
/// or a panic, is told once. The directory's lock is given back when the thread ends.
///
/// From here on [`Wal::append_here`](super::Wal::append_here) may take single steps on other threads.
pub fn run(worker: WalWorker, on_fatal: impl FnOnce(StorageError) + Send + 'static) -> thread::JoinHandle<()> {
    let shared = worker.shared.clone();
    let worker = Arc::new(Mutex::new(worker));
    shared.worker.set(Arc::downgrade(&worker)).expect("one thread runs the worker");
    let body = move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            worker.lock().start_spares()?;
            loop {
                shared.wait_for_work();
                if worker.lock().step()? == StepOutcome::Stopped {
                    return Ok(());
                }
            }
        }));
        let error = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => invariant("the log worker panicked".into()),
        };
        worker.lock().die(error.clone());
        on_fatal(error);
    };
    thread::Builder::new().name("wal".into()).spawn(body).expect("the system can start one more thread")
}

impl WalWorker {
    fn start_spares(&mut self) -> Result<()> {
        let failed = |error| StorageError::io("starting the thread for spare segments", &self.options.dir, error);
        self.spares.start_thread().map_err(failed)
    }
}

impl Shared {
    /// Waits until something is queued, or the log has ended.
    fn wait_for_work(&self) {
        let mut state = self.state.lock();
        while state.ops.is_empty() && state.ended.is_none() {
            state.worker_waits = true;
            self.wake.wait(&mut state);
            state.worker_waits = false;
        }
    }

    /// Takes one step on the calling thread, for an operation that was queued without waking the worker. The worker's
    /// thread is the one to tell of a failure.
    pub(super) fn step_here(&self) {
        let stepped = self.worker.get().and_then(Weak::upgrade).is_some_and(|worker| {
            let mut worker = worker.lock();
            let outcome = catch_unwind(AssertUnwindSafe(|| worker.step()));
            match outcome {
                Ok(outcome) => outcome.is_ok(),
                Err(panic) => {
                    // What it had in hand may be half done: nobody may go on from there.
                    worker.die(invariant("the log worker panicked".into()));
                    self.wake.notify_one();
                    resume_unwind(panic);
                }
            }
        });
        if !stepped {
            self.wake.notify_one();
        }
    }
}

impl Counters {
    fn count_write(&self, took: Duration) {
        self.write_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.write_classes[class_of(took)].fetch_add(1, Ordering::Relaxed);
    }

    fn count_sync(&self, took: Duration) {
        let class = class_of(took);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        self.sync_classes[class].fetch_add(1, Ordering::Relaxed);
    }
}

/// The first class whose bound holds the duration; the open one if none does.
fn class_of(took: Duration) -> usize {
    (0..SYNC_CLASSES)
        .find(|class| WalStats::sync_class_bound(*class).is_some_and(|bound| took <= bound))
        .unwrap_or(SYNC_CLASSES)
}
