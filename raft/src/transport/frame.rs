//! Frames: how messages are cut out of a connection's bytes and put into them. Checked and bounded; the content is not
//! known here. Bytes are explained in `docs/formats/peer.md`.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;

use super::seam::PeerStream;
use crate::config::limits;
use crate::runtime;

/// Length, checksum and tag in front of a payload. Frozen.
const HEADER_BYTES: usize = 9;

/// Parts of a frame that are at least this long are not copied together with others.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Parts given to the system in one call.
const WRITE_PARTS_MAX: usize = 64;

/// How long the end of a connection may take to be written.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

/// Room made for one read.
const READ_BYTES: usize = 64 << 10;

/// A message of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) tag: u8,
    pub(crate) payload: Bytes,
}

/// What a connection ends with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("a frame of {bytes} bytes, where at most {limit} are allowed")]
    TooLong { bytes: u64, limit: usize },
    #[error("a frame's checksum does not match")]
    Checksum,
    #[error("the connection ended within a frame")]
    Cut,
    #[error("malformed: {0}")]
    Malformed(&'static str),
}

fn checksum(tag: u8, parts: &[Bytes]) -> u32 {
    parts.iter().fold(crc32c::crc32c(&[tag]), |sum, part| crc32c::crc32c_append(sum, part))
}

fn put_header(out: &mut BytesMut, tag: u8, parts: &[Bytes]) {
    let length: usize = parts.iter().map(Bytes::len).sum();
    out.put_u32_le(u32::try_from(length).expect("frames are bounded far below"));
    out.put_u32_le(checksum(tag, parts));
    out.put_u8(tag);
}

/// A frame as bytes, for what is small.
pub(crate) fn encode(tag: u8, payload: &[u8]) -> Bytes {
    let parts = [Bytes::copy_from_slice(payload)];
    let mut out = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    put_header(&mut out, tag, &parts);
    out.put_slice(payload);
    out.freeze()
}

/// Cuts frames out of what is read.
pub(crate) struct FrameReader {
    stream: ReadHalf<PeerStream>,
    buffer: BytesMut,
    payload_bytes_max: usize,
}

impl FrameReader {
    pub(crate) fn new(stream: ReadHalf<PeerStream>, payload_bytes_max: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), payload_bytes_max }
    }

    /// From the next frame on. Small until the other end has shown who it is.
    pub(crate) fn set_bound(&mut self, payload_bytes_max: usize) {
        self.payload_bytes_max = payload_bytes_max;
    }

    /// The next frame; `None` at the end of the connection. Nothing is lost if this is dropped before it is ready.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.cut()? {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Cut) };
            }
        }
    }

    /// The stream behind the hello, for what does not come in frames.
    pub(crate) fn into_stream(self, writer: WriteHalf<PeerStream>) -> Result<PeerStream, FrameError> {
        if !self.buffer.is_empty() {
            return Err(FrameError::Malformed("something was sent before the hello was answered"));
        }
        Ok(self.stream.unsplit(writer))
    }

    /// Bytes received that make no whole frame yet.
    pub(crate) fn partial_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// A frame that is there already.
    pub(crate) fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let mut header = &header[..];
        let (length, sum, tag) = (header.get_u32_le() as usize, header.get_u32_le(), header.get_u8());
        if length > self.payload_bytes_max {
            return Err(FrameError::TooLong { bytes: length as u64, limit: self.payload_bytes_max });
        }
        if self.buffer.len() < HEADER_BYTES + length {
            // Room for all of it at once, so that a long frame is not moved again and again while it comes in.
            self.buffer.reserve(HEADER_BYTES + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER_BYTES);
        let payload = self.buffer.split_to(length).freeze();
        if checksum(tag, std::slice::from_ref(&payload)) != sum {
            return Err(FrameError::Checksum);
        }
        Ok(Some(Frame { tag, payload }))
    }

    /// Reads what is there; false at the end.
    async fn fill(&mut self) -> Result<bool, FrameError> {
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 4 {
            self.buffer.reserve(READ_BYTES);
        }
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

/// Frames on their way into a connection: put in by anybody, written by the connection's own task, all that are there at
/// once. Bounded by its users, who wait for room.
#[derive(Default)]
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    wake: Notify,
    /// Told when something was written.
    room: Notify,
}

#[derive(Default)]
struct Queue {
    parts: Vec<Bytes>,
    /// Small parts that are gathered behind the last of `parts`.
    tail: BytesMut,
    /// In `parts`, `tail`, and on their way to the system.
    bytes: usize,
    closed: bool,
}

impl Outbox {
    /// Puts a frame in; false if the connection has ended.
    pub(crate) fn push(&self, tag: u8, parts: &[Bytes]) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed {
            return false;
        }
        let wake = queue.parts.is_empty() && queue.tail.is_empty();
        let before = queue.tail.len();
        put_header(&mut queue.tail, tag, parts);
        queue.bytes += queue.tail.len() - before;
        for part in parts {
            queue.bytes += part.len();
            queue.put(part);
        }
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
        true
    }

    /// Puts in a frame that is small.
    pub(crate) fn push_small(&self, tag: u8, payload: BytesMut) -> bool {
        self.push(tag, &[payload.freeze()])
    }

    /// Waits until fewer than `limit` bytes wait, or the connection has ended.
    pub(crate) async fn wait_for_room(&self, limit: usize) {
        loop {
            let room = self.room.notified();
            {
                let queue = self.queue.lock();
                if queue.closed || queue.bytes < limit {
                    return;
                }
            }
            room.await;
        }
    }

    /// Nothing is taken in any more.
    pub(crate) fn close(&self) {
        *self.queue.lock() = Queue { closed: true, ..Queue::default() };
        self.wake.notify_one();
        self.room.notify_waiters();
    }

    /// Writes what is put in until the outbox is closed or the connection breaks. `moved` is told after each write.
    pub(crate) async fn write_to(
        &self,
        mut stream: impl AsyncWrite + Unpin,
        mut moved: impl FnMut(usize),
    ) -> Result<(), FrameError> {
        let mut parts = Vec::new();
        loop {
            let taken = self.take(&mut parts).await;
            if taken == 0 {
                // What was written is with the system; the other end learns of the end by that.
                runtime::timeout(SHUTDOWN_TIMEOUT, stream.shutdown()).await;
                return Ok(());
            }
            let mut left = &mut parts[..];
            while !left.is_empty() {
                let slices: Vec<io::IoSlice> =
                    left.iter().take(WRITE_PARTS_MAX).map(|part| io::IoSlice::new(part)).collect();
                let written = stream.write_vectored(&slices).await?;
                if written == 0 {
                    return Err(FrameError::Io(io::ErrorKind::WriteZero.into()));
                }
                moved(written);
                left = advance(left, written);
            }
            stream.flush().await?;
            parts.clear();
            self.written(taken);
        }
    }

    /// Waits for something and takes all of it; the sum of the bytes, 0 when closed.
    async fn take(&self, parts: &mut Vec<Bytes>) -> usize {
        loop {
            {
                let mut queue = self.queue.lock();
                if queue.closed {
                    return 0;
                }
                queue.end_tail();
                if !queue.parts.is_empty() {
                    std::mem::swap(parts, &mut queue.parts);
                    return parts.iter().map(Bytes::len).sum();
                }
            }
            self.wake.notified().await;
        }
    }

    fn written(&self, bytes: usize) {
        let mut queue = self.queue.lock();
        queue.bytes = queue.bytes.saturating_sub(bytes);
        drop(queue);
        self.room.notify_waiters();
    }
}

impl Queue {
    fn put(&mut self, part: &Bytes) {
        if part.len() < COPY_BYTES_MAX {
            self.tail.put_slice(part);
            return;
        }
        self.end_tail();
        self.parts.push(part.clone());
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.parts.push(self.tail.split().freeze());
        }
    }
}

/// What is left of `parts` after `written` bytes.
fn advance(mut parts: &mut [Bytes], mut written: usize) -> &mut [Bytes] {
    let whole = parts.iter().take_while(|part| {
        let fits = part.len() <= written;
        written -= if fits { part.len() } else { 0 };
        fits
    });
    let whole = whole.count();
    parts = &mut parts[whole..];
    if let Some(first) = parts.first_mut() {
        first.advance(written);
    }
    parts
}

/// Limits of a connection's frames.
pub(crate) const ENTRY_FRAME_BYTES_MAX: usize = limits::BATCH_BYTES_MAX + limits::READ_CHUNK_BYTES as usize + (1 << 20);

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes in in parts of all sizes comes out whole and in order, however the system cuts it.
    #[tokio::test]
    async fn frames_survive_every_cut() {
        for wire_bytes in [1, 7, 64, 5_000, 1 << 20] {
            let (near, far) = tokio::io::duplex(wire_bytes);
            let outbox = Outbox::default();
            let part = |n: usize| Bytes::from(vec![n as u8; [0, 1, 100, 4_095, 4_096, 20_000][n % 6]]);
            let frames: Vec<[Bytes; 3]> = (0..12).map(|n| [part(n), part(n + 1), part(n + 4)]).collect();
            for (number, frame) in frames.iter().enumerate() {
                assert!(outbox.push(number as u8, frame));
            }
            let (read, _write) = tokio::io::split(Box::new(far) as PeerStream);
            let mut reader = FrameReader::new(read, 1 << 20);
            let check = async {
                for (number, frame) in frames.iter().enumerate() {
                    let read = reader.next().await.unwrap().unwrap();
                    assert_eq!((read.tag, &read.payload[..]), (number as u8, &frame.concat()[..]), "{wire_bytes}");
                }
                outbox.wait_for_room(1).await;
                outbox.close();
            };
            let mut written = 0;
            let (ended, ()) = tokio::join!(outbox.write_to(near, |bytes| written += bytes), check);
            ended.unwrap();
            let sum: usize = frames.iter().map(|frame| HEADER_BYTES + frame.concat().len()).sum();
            assert_eq!(written, sum);
            assert!(!outbox.push(1, &[]), "closed");
        }
    }

    #[tokio::test]
    async fn lies_and_cuts_are_told_apart_from_the_end() {
        let whole = encode(9, b"payload");
        let mut flipped = whole.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        let long = [&100u32.to_le_bytes()[..], &[0; 5]].concat();
        type Expected = fn(&Result<Option<Frame>, FrameError>) -> bool;
        let cases: [(&[u8], Expected); 5] = [
            (&whole, |frame| matches!(frame, Ok(Some(_)))),
            (&[], |frame| matches!(frame, Ok(None))),
            (&whole[..whole.len() - 1], |frame| matches!(frame, Err(FrameError::Cut))),
            (&flipped, |frame| matches!(frame, Err(FrameError::Checksum))),
            (&long, |frame| matches!(frame, Err(FrameError::TooLong { bytes: 100, limit: 99 }))),
        ];
        for (bytes, expected) in cases {
            let (mut near, far) = tokio::io::duplex(1 << 10);
            near.write_all(bytes).await.unwrap();
            drop(near);
            let (read, _write) = tokio::io::split(Box::new(far) as PeerStream);
            let frame = FrameReader::new(read, 99).next().await;
            assert!(expected(&frame), "{bytes:?}: {frame:?}");
        }
    }
}
