//! The connection on which a snapshot goes to a member that needs what the log has not got any more: file by file, at a
//! bounded rate, going on after a broken connection where the receiver says. Works on any stream; how that comes about,
//! and the hello on it, is others' work.
//!
//! ```text
//!  leader                                        receiver
//!    Offer: vote, manifest                 ->      what is there of that very snapshot?
//!                                          <-    Have: file, offset       (or Done: it is past that already)
//!    Data: file, offset, bytes             ->      written as it comes
//!    End                                   ->      synced, checked from end to end, installed
//!                                          <-    Busy, as long as that takes
//!                                          <-    Done: vote               (or Refused: why)
//! ```
//! Bytes are described in `docs/formats/snapshot.md`.

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::errors::{NetworkError, ReplicationClosed, StreamingError, Unreachable};
use openraft::raft::SnapshotResponse;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use daymark_storage::codec::crc32c;
use daymark_storage::snapshot::{Have, MANIFEST_BYTES_MAX, Made, Manifest, Received, SnapshotStore};
use daymark_storage::wal::Wal;
use daymark_storage::{LogId, StorageError};

use super::pace::Pace;
use crate::config::limits;
use crate::membership;
use crate::runtime;
use crate::types::{LeaderId, RaftVote, SnapshotMeta, TypeConfig, raft_log_id};

/// The state as a snapshot. On the side that has it, it stands for what the backend holds and carries nothing: files are
/// made when somebody needs them. On the side that wants it, it is what was received.
#[derive(Default)]
pub struct StateAsSnapshot(Option<Received>);

impl StateAsSnapshot {
    /// What was received, to be installed.
    pub(crate) fn into_received(self) -> Option<Received> {
        self.0
    }
}

pub type RaftSnapshot = openraft::alias::SnapshotOf<TypeConfig, StateAsSnapshot>;

// Frozen numbers of frames.
const OFFER: u8 = 1;
const HAVE: u8 = 2;
const DATA: u8 = 3;
const END: u8 = 4;
const BUSY: u8 = 5;
const DONE: u8 = 6;
const REFUSED: u8 = 7;

/// Length and checksum in front of each frame.
const HEAD_BYTES: usize = 8;
/// The largest frame: an offer.
const FRAME_BYTES_MAX: usize = MANIFEST_BYTES_MAX + 64;
const VOTE_BYTES: usize = 17;

/// What ends a transfer on this side.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The connection; going on later may work.
    #[error("{0}")]
    Connection(#[from] io::Error),
    /// This side's disk.
    #[error("{0}")]
    Storage(#[from] StorageError),
    /// The other side's reason.
    #[error("the other member refused: {0}")]
    Refused(String),
    /// The other side does not follow the protocol.
    #[error("the other member sent {0}")]
    Protocol(&'static str),
}

/// Sends a snapshot with all that `snapshot` stands for, or more, over `stream`, which has said its hello. Ends early when
/// `cancel` says so; what the receiver has got it keeps for a while. Goes slower while that hurts `log`.
pub async fn send<S>(
    mut stream: S,
    store: Arc<SnapshotStore>,
    log: Option<Wal>,
    target: u64,
    vote: RaftVote,
    snapshot: RaftSnapshot,
    cancel: impl Future<Output = ReplicationClosed>,
) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let least = snapshot.meta.last_log_id.as_ref().map(crate::types::log_id);
    let sent = send_all(&mut stream, &store, log.as_ref(), target, vote, least);
    let result = tokio::select! {
        closed = cancel => return Err(closed.into()),
        result = sent => result,
    };
    result.map(SnapshotResponse::new).map_err(|failure| {
        tracing::warn!(peer = format!("{target:x}"), error = %failure, "sending a snapshot ended early");
        match failure {
            Failure::Connection(error) => NetworkError::new(&error).into(),
            // Waits before it is tried again: neither mends itself at once.
            other => Unreachable::from_string(other.to_string()).into(),
        }
    })
}

async fn send_all<S>(
    stream: &mut S,
    store: &Arc<SnapshotStore>,
    log: Option<&Wal>,
    target: u64,
    vote: RaftVote,
    least: Option<LogId>,
) -> Result<RaftVote, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (place, random) = (store.clone(), runtime::random_u64());
    let make = async move { Ok(runtime::in_background(move || place.snapshot(least, random)).await??) };
    let made = busy_while(stream, make).await?;
    let manifest = &made.manifest;
    let (peer, bytes) = (format!("{target:x}"), manifest.total_bytes());
    let mut offer = BytesMut::new();
    put_vote(&mut offer, &vote);
    offer.put_slice(&manifest.encode());
    write_frame(stream, OFFER, &offer).await?;
    let at = match read_frame(stream).await? {
        (HAVE, mut payload) => take_have(&mut payload).ok_or(Failure::Protocol("a place that cannot be read"))?,
        (DONE, payload) => return take_vote(payload),
        (kind, payload) => return Err(unexpected(kind, &payload)),
    };
    let (applied, files) = (manifest.applied, manifest.files.len());
    tracing::info!(peer, %applied, files, bytes, from_file = at.file, from_offset = at.offset, "sending a snapshot");
    let begun = runtime::now();
    send_files(stream, &made, at, Pace::new(bytes, &peer, log)).await?;
    write_frame(stream, END, b"").await?;
    loop {
        match read_frame(stream).await? {
            (BUSY, _) => {}
            (DONE, payload) => {
                let took_ms = begun.elapsed().as_millis() as u64;
                tracing::info!(peer, %applied, bytes, took_ms, "the snapshot is installed");
                return take_vote(payload);
            }
            (kind, payload) => return Err(unexpected(kind, &payload)),
        }
    }
}

async fn send_files<S>(stream: &mut S, made: &Arc<Made>, mut at: Have, mut pace: Pace<'_>) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(file) = made.manifest.files.get(at.file as usize) {
        if at.offset >= file.bytes {
            at = Have { file: at.file + 1, offset: 0 };
            continue;
        }
        let source = made.clone();
        let bytes = runtime::blocking(move || source.read(at, limits::SNAPSHOT_PIECE_BYTES)).await??;
        let mut payload = BytesMut::with_capacity(12 + bytes.len());
        put_have(&mut payload, at);
        payload.put_slice(&bytes);
        pace.wait(bytes.len()).await;
        if let Err(error) = write_frame(stream, DATA, &payload).await {
            // Before it went it may have said why.
            return Err(match read_frame(stream).await {
                Ok((kind, why)) => unexpected(kind, &why),
                Err(_) => error.into(),
            });
        }
        at.offset += bytes.len() as u64;
    }
    Ok(())
}

/// Receives a snapshot over `stream`, which has said its hello, and has it installed.
pub async fn receive<S, I, F>(mut stream: S, store: Arc<SnapshotStore>, peer: u64, member: Receiver<I>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    I: FnOnce(RaftVote, RaftSnapshot) -> F,
    F: Future<Output = Result<RaftVote, String>>,
{
    let peer = format!("{peer:x}");
    let Err(failure) = receive_all(&mut stream, &store, &peer, member).await else { return };
    tracing::warn!(peer, error = %failure, "receiving a snapshot ended early");
    if !matches!(failure, Failure::Connection(_)) {
        let mut why = failure.to_string();
        why.truncate(why.floor_char_boundary(1000));
        // It is told if it still listens.
        let _ = write_frame(&mut stream, REFUSED, why.as_bytes()).await;
    }
}

/// What the receiving side needs of its member.
pub struct Receiver<I> {
    /// The last entry that was handed to apply.
    pub committed_index: Option<u64>,
    /// This member's vote.
    pub vote: RaftVote,
    /// Gives a received snapshot to raft; the vote is what raft answers with.
    pub install: I,
}

async fn receive_all<S, I, F>(
    stream: &mut S,
    store: &Arc<SnapshotStore>,
    peer: &str,
    member: Receiver<I>,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
    I: FnOnce(RaftVote, RaftSnapshot) -> F,
    F: Future<Output = Result<RaftVote, String>>,
{
    let (kind, mut offer) = loop {
        match read_frame(stream).await? {
            // The snapshot is being made.
            (BUSY, _) => {}
            frame => break frame,
        }
    };
    if kind != OFFER || offer.len() < VOTE_BYTES {
        return Err(unexpected(kind, &offer));
    }
    let vote = take_vote(offer.split_to(VOTE_BYTES))?;
    let manifest = Manifest::decode(&offer).map_err(|_| Failure::Protocol("a manifest that cannot be read"))?;
    if member.committed_index >= Some(manifest.applied.index) {
        // What the leader asks for is there: it need only know.
        let mut payload = BytesMut::new();
        put_vote(&mut payload, &member.vote);
        write_frame(stream, DONE, &payload).await?;
        return Ok(());
    }
    let meta = meta_of(&manifest).map_err(|_| Failure::Protocol("a membership that cannot be read"))?;
    let (applied, bytes) = (manifest.applied, manifest.total_bytes());
    let place = store.clone();
    let (turn, at) = runtime::blocking(move || place.receive(manifest)).await??;
    tracing::info!(peer, %applied, bytes, from_file = at.file, from_offset = at.offset, "receiving a snapshot");
    let mut payload = BytesMut::new();
    put_have(&mut payload, at);
    write_frame(stream, HAVE, &payload).await?;
    let begun = runtime::now();
    receive_files(stream, store, turn).await?;
    let place = store.clone();
    let install = async move {
        let received = runtime::in_background(move || place.complete(turn)).await??;
        let place = store.clone();
        let received = runtime::in_background(move || place.check(received)).await??;
        let snapshot = RaftSnapshot { meta, snapshot: StateAsSnapshot(Some(received)) };
        (member.install)(vote, snapshot).await.map_err(|why| Failure::Connection(io::Error::other(why)))
    };
    let vote = busy_while(stream, install).await?;
    let took_ms = begun.elapsed().as_millis() as u64;
    tracing::info!(peer, %applied, bytes, took_ms, "installed a snapshot");
    let mut payload = BytesMut::new();
    put_vote(&mut payload, &vote);
    write_frame(stream, DONE, &payload).await?;
    Ok(())
}

async fn receive_files<S>(stream: &mut S, store: &Arc<SnapshotStore>, turn: u64) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match read_frame(stream).await? {
            (DATA, mut payload) => {
                let at = take_have(&mut payload).ok_or(Failure::Protocol("data without a place"))?;
                let place = store.clone();
                runtime::blocking(move || place.write(turn, at, &payload)).await??;
            }
            (END, _) => return Ok(()),
            (kind, payload) => return Err(unexpected(kind, &payload)),
        }
    }
}

/// Does something long and lets the other side know meanwhile that it is being done.
async fn busy_while<S, T>(stream: &mut S, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = runtime::sleep(limits::SNAPSHOT_BUSY_INTERVAL) => {}
        }
        // What was begun is ended, whether somebody waits for it or not.
        if write_frame(stream, BUSY, b"").await.is_err() {
            return work.await;
        }
    }
}

/// What raft wants to know of a snapshot.
pub(crate) fn meta_of(manifest: &Manifest) -> Result<SnapshotMeta, membership::DecodeError> {
    let last_membership = membership::decode_stored(&manifest.membership)?;
    Ok(SnapshotMeta { last_log_id: Some(raft_log_id(manifest.applied)), last_membership })
}

fn unexpected(kind: u8, payload: &[u8]) -> Failure {
    match kind {
        REFUSED => Failure::Refused(String::from_utf8_lossy(payload).into_owned()),
        _ => Failure::Protocol("a frame that is not due"),
    }
}

fn put_vote(out: &mut BytesMut, vote: &RaftVote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

fn take_vote(mut payload: Bytes) -> Result<RaftVote, Failure> {
    if payload.len() != VOTE_BYTES {
        return Err(Failure::Protocol("a vote that cannot be read"));
    }
    let leader_id = LeaderId { term: payload.get_u64_le(), voted_for: payload.get_u64_le() };
    Ok(RaftVote { leader_id, committed: payload.get_u8() == 1 })
}

fn put_have(out: &mut BytesMut, have: Have) {
    out.put_u32_le(have.file);
    out.put_u64_le(have.offset);
}

fn take_have(payload: &mut Bytes) -> Option<Have> {
    (payload.len() >= 12).then(|| Have { file: payload.get_u32_le(), offset: payload.get_u64_le() })
}

/// Length of kind and payload, CRC-32C of both, kind, payload.
async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + 1 + payload.len());
    frame.put_u32_le(1 + payload.len() as u32);
    frame.put_u32_le(0);
    frame.put_u8(kind);
    frame.put_slice(payload);
    let crc = crc32c(&frame[HEAD_BYTES..]);
    frame[4..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    in_time(async {
        stream.write_all(&frame).await?;
        stream.flush().await
    })
    .await
}

async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<(u8, Bytes)> {
    in_time(async {
        let length = stream.read_u32_le().await? as usize;
        let crc = stream.read_u32_le().await?;
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
        if !(1..=FRAME_BYTES_MAX).contains(&length) {
            return Err(wrong("a frame of an impossible length"));
        }
        // Grows as bytes come, so that a length alone takes no memory.
        let mut body = Vec::with_capacity(length.min(2 * limits::SNAPSHOT_PIECE_BYTES));
        stream.take(length as u64).read_to_end(&mut body).await?;
        if body.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if crc32c(&body) != crc {
            return Err(wrong("a frame with a wrong checksum"));
        }
        let mut body = Bytes::from(body);
        Ok((body.get_u8(), body))
    })
    .await
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::select! {
        done = work => done,
        () = runtime::sleep(limits::SNAPSHOT_SILENCE_MAX) => Err(io::ErrorKind::TimedOut.into()),
    }
}
