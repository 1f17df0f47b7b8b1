//! openraft's log storage over the write-ahead log. Everything here only enqueues: `append` is told durable from the
//! log's own thread, and only `save_vote` waits, because openraft wants the vote on disk before it goes on.
//!
//! # Duties met (openraft, `RaftLogStorage`)
//!
//! - Writes of votes and entries are serialized: both go through the log's one queue.
//! - Entries are readable when `append` returns: the log keeps its newest entries in memory.
//! - No holes: the log refuses an append that does not follow its last entry.
//! - `save_committed` is not stored. The state keeps its applied id durably, and nobody is served before everything that
//!   was in the log at start is applied (`Handle::wait_ready`), which is what openraft asks for in that case.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::{Stream, stream};
use openraft::OptionalSend;
use openraft::entry::EntryPayload;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use daymark_storage::StorageError;
use daymark_storage::wal::{LogEntry, Wal};

use crate::config::limits;
use crate::driver::Shared;
use crate::membership;
use crate::runtime;
use crate::types::{
    RaftEntry, RaftLogId, RaftVote, TypeConfig, log_id, raft_entry, raft_log_id, raft_vote, wal_entry, wal_vote,
};

/// The writing side, owned by openraft's core.
pub struct LogStore {
    wal: Wal,
    shared: Arc<Shared>,
}

/// The reading side; openraft makes one for apply and one for each peer.
pub struct LogReader {
    wal: Wal,
}

impl LogStore {
    /// `shared` belongs to the same member as `wal`.
    pub fn new(wal: Wal, shared: Arc<Shared>) -> Self {
        Self { wal, shared }
    }

    fn wal_entries<I: IntoIterator<Item = RaftEntry>>(&self, entries: I) -> Vec<LogEntry> {
        let convert = |entry: RaftEntry| {
            if let EntryPayload::Membership(members) = &entry.payload
                && !membership::is_alone(members, self.shared.member_id)
            {
                self.shared.read_gate.distrust(entry.log_id.index);
            }
            wal_entry(entry)
        };
        entries.into_iter().map(convert).collect()
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let released = self.wal.released();
        let last = self.wal.last().max(released);
        Ok(LogState { last_purged_log_id: released.map(raft_log_id), last_log_id: last.map(raft_log_id) })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader { wal: self.wal.clone() }
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        let report = move |result| {
            // The core only goes away when the member stops; nobody is left to be told then.
            let _ = done.send(result);
        };
        self.wal.save_vote(wal_vote(vote), Box::new(report)).map_err(io_error)?;
        durable.await.unwrap_or(Err(StorageError::Stopped)).map_err(io_error)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = self.wal_entries(entries);
        let report = move |result: Result<(), StorageError>| callback.io_completed(result.map_err(io_error));
        let appended = match self.shared.may_wait_for_disk() {
            true => self.wal.append_here(entries, Box::new(report)),
            false => self.wal.append(entries, Box::new(report)),
        };
        appended.map_err(io_error)
    }

    async fn truncate_after(&mut self, last_kept: Option<RaftLogId>) -> io::Result<()> {
        let last_kept = last_kept.as_ref().map(log_id);
        if last_kept >= self.wal.last() {
            return Ok(());
        }
        let report = |result: Result<(), StorageError>| {
            // The log stops itself on a failed write, and with it every later append; nothing to add here.
            if let Err(error) = result {
                tracing::error!(%error, "truncating the log failed");
            }
        };
        self.wal.truncate_after(last_kept, Box::new(report)).map_err(io_error)
    }

    async fn purge(&mut self, up_to: RaftLogId) -> io::Result<()> {
        self.wal.release(log_id(&up_to)).map_err(io_error)
    }
}

impl LogReader {
    /// The entries of `[from, to)` that the log holds, at least one if there is any, about `bytes_max` at most.
    fn read(&self, from: u64, to: u64, bytes_max: u64) -> io::Result<Vec<RaftEntry>> {
        let Some(last) = self.wal.last() else { return Ok(Vec::new()) };
        let from = from.max(self.wal.released().map_or(0, |released| released.index + 1));
        let to = to.min(last.index + 1);
        // One look in memory. More than one only in a log that begins behind what was asked for, without a release.
        let Some(from) = (from..to).find(|index| self.wal.log_id(*index).is_some()) else { return Ok(Vec::new()) };
        let entries = self.wal.entries(from, to, bytes_max).map_err(io_error)?;
        entries.into_iter().map(raft_entry).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    /// In chunks, because a replay after a crash may cover more than fits into memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = bounds(&range);
        let reader = LogReader { wal: self.wal.clone() };
        let state = (reader, from, Vec::new().into_iter());
        stream::unfold(Some(state), move |state| async move {
            let (reader, from, mut chunk) = state?;
            if let Some(entry) = chunk.next() {
                return Some((Ok(entry), Some((reader, from, chunk))));
            }
            match reader.read(from, to, limits::READ_CHUNK_BYTES) {
                Err(error) => Some((Err(error), None)),
                Ok(entries) => {
                    let next = entries.last()?.log_id.index + 1;
                    let mut chunk = entries.into_iter();
                    let entry = chunk.next()?;
                    Some((Ok(entry), Some((reader, next, chunk))))
                }
            }
        })
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut from, to) = bounds(&range);
        let mut all = Vec::new();
        loop {
            let chunk = self.read(from, to, limits::READ_CHUNK_BYTES)?;
            let Some(last) = chunk.last() else { return Ok(all) };
            from = last.log_id.index + 1;
            if all.is_empty() {
                all = chunk;
            } else {
                all.extend(chunk);
            }
        }
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        self.wal.vote().map(raft_vote).transpose()
    }

    /// One append to a follower: bounded by bytes here, by count in the configuration. Of one that is far behind the
    /// entries are in files: heartbeats of all others must not wait for those.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<RaftEntry>> {
        if self.wal.is_in_memory(start) {
            return self.read(start, end, limits::READ_CHUNK_BYTES);
        }
        let reader = LogReader { wal: self.wal.clone() };
        runtime::blocking(move || reader.read(start, end, limits::READ_CHUNK_BYTES)).await?
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(index) => index + 1,
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// openraft speaks `io::Error`; the cause stays inside and its words reach `on_fatal`.
pub(crate) fn io_error(error: StorageError) -> io::Error {
    io::Error::other(error)
}
