//! The snapshot stream: the whole state in etcd's form, as pieces of a file, and behind them a checksum of these. The file
//! is made first, aside from everything that answers clients, and is gone with the stream.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_storage::disk::Disk;
use prost::Message;
use sha2::{Digest, Sha256};
use smallvec::smallvec;
use tokio::sync::Semaphore;

use super::Door;
use crate::error::Error;
use crate::export::{Export, Exported};
use crate::limits;
use crate::request::Sink;
use crate::version::CLUSTER_VERSION;
use crate::views::Room;

/// Bytes of one piece, as etcd sends them.
const PIECE_BYTES: usize = 32 * 1024;

/// Where snapshots are made, and how many at a time. Shared by all net threads.
pub struct Snapshots {
    pub disk: Arc<dyn Disk>,
    pub dir: PathBuf,
    /// Free space that a snapshot leaves to the member.
    pub free_bytes_min: u64,
    turns: Semaphore,
}

impl Snapshots {
    /// Snapshots made in `dir`, which leave so many bytes of its volume free.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, free_bytes_min: u64) -> Self {
        Self { disk, dir, free_bytes_min, turns: Semaphore::new(limits::SNAPSHOTS_MAX) }
    }
}

/// Tells the thread that makes a file that nobody waits for it any more.
struct Waits(Arc<AtomicBool>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Door {
    pub(super) async fn snapshot(&self, sink: &Sink) -> Result<(), Error> {
        // To the end of the stream: until then the file takes room.
        let _turn = self.member().snapshots.turns.acquire().await.map_err(|_| Error::Stopped)?;
        let begun = Instant::now();
        let made = self.make_snapshot().await?;
        let (total_bytes, revision) = (made.bytes, made.revision);
        tracing::info!(
            total_bytes,
            revision,
            took_ms = begun.elapsed().as_millis() as u64,
            "sending database snapshot"
        );
        if !self.send_snapshot(made, sink).await? {
            return Ok(());
        }
        let took = begun.elapsed();
        self.views().durations.snapshot.observe(took);
        tracing::info!(total_bytes, took_ms = took.as_millis() as u64, "sent database snapshot");
        Ok(())
    }

    async fn make_snapshot(&self) -> Result<Exported, Error> {
        let member = self.member().clone();
        let gone = Arc::new(AtomicBool::new(false));
        let _waits = Waits(gone.clone());
        let work = move || {
            let place = &member.snapshots;
            let may_go_on = || {
                if gone.load(Ordering::Relaxed) {
                    return Err(Error::Canceled);
                }
                let has_room = member.views.room() == Room::Ample
                    && place.disk.free_bytes(&place.dir).is_ok_and(|free| free >= place.free_bytes_min);
                if has_room { Ok(()) } else { Err(Error::NoRoomForFile) }
            };
            Export {
                disk: &*place.disk,
                dir: &place.dir,
                keyspace: &member.views.keyspace,
                members: &member.views.members.load_full(),
                may_go_on: &may_go_on,
            }
            .run()
        };
        self.member().exports.run(work).await
    }

    /// False if the caller has gone meanwhile.
    async fn send_snapshot(&self, made: Exported, sink: &Sink) -> Result<bool, Error> {
        let (mut hasher, mut sent) = (Sha256::new(), 0);
        while sent < made.bytes {
            sink.wait_for_credit().await;
            if sink.is_closed() {
                return Ok(false);
            }
            let length = (made.bytes - sent).min(limits::STREAM_QUEUE_BYTES_MAX as u64) as usize;
            let file = made.file.clone();
            let read = move |_: &super::pool::Caller| {
                let mut bytes = vec![0; length];
                let read = file.read_at(&mut bytes, sent).map_err(|error| Error::File(error.to_string()))?;
                if read < length {
                    return Err(Error::File(format!("the snapshot ends after {} bytes", sent + read as u64)));
                }
                hasher.update(&bytes);
                Ok((Bytes::from(bytes), hasher))
            };
            let (bytes, updated) = self.pool.run(read).await?;
            hasher = updated;
            for at in (0..bytes.len()).step_by(PIECE_BYTES) {
                let blob = bytes.slice(at..(at + PIECE_BYTES).min(bytes.len()));
                sent += blob.len() as u64;
                push(sink, blob, made.bytes - sent);
            }
        }
        push(sink, Bytes::copy_from_slice(&hasher.finalize()), 0);
        Ok(true)
    }
}

/// Without a header, as etcd's.
fn push(sink: &Sink, blob: Bytes, remaining_bytes: u64) {
    let response = pb::SnapshotResponse { header: None, remaining_bytes, blob, version: CLUSTER_VERSION.into() };
    sink.push(smallvec![Bytes::from(response.encode_to_vec())]);
}
