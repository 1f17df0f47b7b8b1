//! Snapshots on their way between two members, over a stream in memory: whole, broken off and gone on with, refused,
//! cancelled. Storage and files are real; there is no raft, whose part is played by the tests.

use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::{io, pin::Pin};

use bytes::Bytes;
use openraft::errors::{ReplicationClosed, StreamingError};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

use daymark_raft::internals::{RaftSnapshot, RaftVote, Receiver, StateAsSnapshot, TypeConfig, receive, send};
use daymark_storage::LogId;
use daymark_storage::backend::{Family, MemBackend};
use daymark_storage::disk::{Disk, RealDisk};
use daymark_storage::mvcc::Keyspace;
use daymark_storage::snapshot::SnapshotStore;

const ROW: &[u8] = b"raft/membership";
/// Members 1 and 2 vote, as of entry 3 of term 1.
const MEMBERSHIP: &[u8] = &[
    1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0,
    1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// A member with `keys` keys of 1000 bytes, up to entry `keys` of term 1.
fn store(dir: &Path, cluster_id: u64, keys: u64) -> Arc<SnapshotStore> {
    let (keyspace, mut writer) = Keyspace::open(MemBackend::new()).unwrap();
    for number in 1..=keys {
        let mut txn = writer.begin();
        txn.put(Bytes::from(number.to_be_bytes().to_vec()), Bytes::from(vec![number as u8; 1000]), 0).unwrap();
        txn.finish();
        writer.table_put(Family::Meta, ROW, MEMBERSHIP);
        writer.commit(LogId { term: 1, index: number }).unwrap();
        writer.publish();
    }
    let disk = Arc::new(RealDisk::new());
    disk.create_dir_all(dir).unwrap();
    SnapshotStore::new(disk, dir, cluster_id, keyspace, ROW, 0)
}

fn vote(term: u64) -> RaftVote {
    openraft::Vote::new_committed(term, 1)
}

/// What openraft gives to the sender: the snapshot that the log was released for.
fn asked() -> RaftSnapshot {
    RaftSnapshot { meta: openraft::SnapshotMeta::default(), snapshot: StateAsSnapshot::default() }
}

type Answer = Result<openraft::raft::SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>;

async fn send_over(stream: impl AsyncRead + AsyncWrite + Unpin, from: &Arc<SnapshotStore>) -> Answer {
    send(stream, from.clone(), None, 2, vote(4), asked(), pending::<ReplicationClosed>()).await
}

/// Receives; what is installed is counted and dropped.
async fn receive_over(stream: DuplexStream, to: &Arc<SnapshotStore>, installed: &AtomicUsize, committed: Option<u64>) {
    let install = async |of: RaftVote, snapshot: RaftSnapshot| {
        assert_eq!(of, vote(4));
        let last = snapshot.meta.last_log_id.unwrap();
        assert_eq!((last.index(), snapshot.meta.last_membership.log_id().unwrap().index()), (3000, 3));
        installed.fetch_add(1, Ordering::Relaxed);
        Ok(vote(5))
    };
    receive(stream, to.clone(), 1, Receiver { committed_index: committed, vote: vote(3), install }).await;
}

/// A stream that ends after so many bytes were read from it.
struct Breaks {
    inner: DuplexStream,
    left: usize,
}

impl AsyncRead for Breaks {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Breaks {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let length = bytes.len().min(self.left);
        if length == 0 {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let written = Pin::new(&mut self.inner).poll_write(cx, &bytes[..length]);
        if let Poll::Ready(Ok(count)) = &written {
            self.left -= count;
        }
        written
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_snapshot_arrives_however_often_the_connection_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (store(&dir.path().join("a"), 7, 3000), store(&dir.path().join("b"), 7, 2));
    let (installed, mut broken, mut bytes) = (AtomicUsize::new(0), 0, 0);
    let answer = loop {
        let (here, there) = duplex(64 << 10);
        let left = 700_000 + broken * 10_007;
        let (sent, ()) = tokio::join!(
            async { send_over(Breaks { inner: here, left }, &from).await },
            receive_over(there, &to, &installed, Some(2))
        );
        bytes += left;
        match sent {
            Err(error) => assert!(matches!(error, StreamingError::Network(_)), "{error}"),
            Ok(answer) => break answer,
        }
        broken += 1;
        assert!(broken < 20, "it begins anew each time");
    };
    assert_eq!((answer.vote, installed.load(Ordering::Relaxed)), (vote(5), 1));
    let total = from.newest_made().unwrap().total_bytes();
    assert!(broken >= 3 && (bytes as u64) < total + 2_000_000, "{broken} {bytes} {total}");
}

#[tokio::test]
async fn a_member_that_is_past_it_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (store(&dir.path().join("a"), 7, 3000), store(&dir.path().join("b"), 7, 2));
    let installed = AtomicUsize::new(0);
    let (here, there) = duplex(64 << 10);
    let (sent, ()) = tokio::join!(
        send_over(Breaks { inner: here, left: 4000 }, &from),
        receive_over(there, &to, &installed, Some(3000))
    );
    assert_eq!((sent.unwrap().vote, installed.load(Ordering::Relaxed)), (vote(3), 0));
}

#[tokio::test]
async fn a_refusal_reaches_the_sender_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (store(&dir.path().join("a"), 7, 3000), store(&dir.path().join("b"), 8, 2));
    let installed = AtomicUsize::new(0);
    let (here, there) = duplex(64 << 10);
    let (sent, ()) = tokio::join!(send_over(here, &from), receive_over(there, &to, &installed, None));
    let error = sent.unwrap_err();
    assert!(matches!(&error, StreamingError::Unreachable(_)), "openraft waits before it tries again: {error}");
    assert!(error.to_string().contains("was sent to a member of cluster 8"), "{error}");
    assert_eq!(installed.load(Ordering::Relaxed), 0);
    // Nothing to send is as little a reason to stop.
    let empty = store(&dir.path().join("c"), 7, 0);
    let (here, _there) = duplex(64 << 10);
    let error = send_over(here, &empty).await.unwrap_err();
    assert!(error.to_string().contains("without entries"), "{error}");
}

#[tokio::test]
async fn openraft_may_cancel_a_transfer() {
    let dir = tempfile::tempdir().unwrap();
    let from = store(&dir.path().join("a"), 7, 3000);
    let (here, mut there) = duplex(64 << 10);
    let cancel = async {
        // Nobody answers, so that it would wait.
        tokio::io::AsyncReadExt::read_u8(&mut there).await.unwrap();
        ReplicationClosed::new("enough")
    };
    let error = send(here, from.clone(), None, 2, vote(4), asked(), cancel).await.unwrap_err();
    assert!(matches!(&error, StreamingError::Closed(_)), "{error}");
}

/// Whatever comes instead of a snapshot ends the connection, with an answer where it can be read.
#[tokio::test]
async fn hostile_bytes_end_the_connection() {
    let dir = tempfile::tempdir().unwrap();
    let to = store(&dir.path().join("b"), 7, 2);
    let frame = |kind: u8, payload: &[u8]| {
        let body = [&[kind], payload].concat();
        let crc = daymark_storage::codec::crc32c(&body);
        [&(body.len() as u32).to_le_bytes()[..], &crc.to_le_bytes(), &body].concat()
    };
    let mut wrong_sum = frame(1, &[0; 40]);
    wrong_sum[12] ^= 1;
    let cases =
        [frame(1, &[0; 40]), frame(1, &[0; 3]), frame(4, b""), frame(9, b""), wrong_sum, vec![0xff; 100], vec![0; 8]];
    for (number, case) in cases.iter().enumerate() {
        let installed = AtomicUsize::new(0);
        let (mut here, there) = duplex(64 << 10);
        here.write_all(case).await.unwrap();
        tokio::io::AsyncWriteExt::shutdown(&mut here).await.unwrap();
        receive_over(there, &to, &installed, None).await;
        assert_eq!(installed.load(Ordering::Relaxed), 0, "case {number}");
    }
}
