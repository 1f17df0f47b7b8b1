//! A connection that this member has opened and that has been greeted: requests and their answers by number, a stream of
//! appends, pings where nothing moves. Does not open anything and serves nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::StreamAppendResult;
use parking_lot::Mutex;
use tokio::io::WriteHalf;
use tokio::sync::{mpsc, oneshot, watch};

use super::frame::{Frame, FrameError, FrameReader, Outbox};
use super::message::{self, tag};
use super::seam::PeerStream;
use super::stats::PeerStats;
use crate::pending::Pending;
use crate::runtime;
use crate::types::TypeConfig;

/// Looks at a connection in one election time-out. One that moves nothing for all of them is given up.
const LOOKS: u32 = 4;

/// Writes below this are pings or as good as: that the system has taken them does not show that anybody listens.
const SHOWS_LIFE_BYTES: usize = 512;

/// An answer to one append of a stream: its number there, and the result.
pub(crate) type Appended = (u64, StreamAppendResult<TypeConfig>);

/// See the file's head.
pub(crate) struct Connection {
    // Fixed.
    /// Tells it from all others of this member, ever.
    pub(crate) number: u64,
    stats: Arc<PeerStats>,
    pending: Arc<Pending>,

    // Shared by its users and its tasks.
    pub(crate) outbox: Outbox,
    /// `None` once it has ended.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Bytes>>>>,
    appends: Mutex<Option<Appends>>,
    next_number: AtomicU64,
    /// Why it has ended.
    ended: watch::Sender<Option<String>>,
}

struct Appends {
    session: u64,
    answers: mpsc::UnboundedSender<Appended>,
}

/// The connection ended before an answer came.
#[derive(Debug, thiserror::Error)]
#[error("the connection was lost: {0}")]
pub(crate) struct Lost(pub(crate) String);

impl Connection {
    pub(crate) fn new(number: u64, stats: Arc<PeerStats>, pending: Arc<Pending>) -> Arc<Self> {
        Arc::new(Self {
            number,
            stats,
            pending,
            outbox: Outbox::default(),
            waiting: Mutex::new(Some(HashMap::new())),
            appends: Mutex::new(None),
            next_number: AtomicU64::new(0),
            ended: watch::Sender::new(None),
        })
    }

    pub(crate) fn is_open(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// What those who wait are told once it has ended.
    pub(crate) fn lost(&self) -> Lost {
        Lost(self.ended.borrow().clone().unwrap_or_else(|| "it is closing".into()))
    }

    /// Ends it; what waits is told.
    pub(crate) fn close(&self, why: &str) {
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert_with(|| why.to_string());
            is_first
        });
        self.outbox.close();
        // Their senders are dropped: whoever waits learns of it.
        self.waiting.lock().take();
        self.appends.lock().take();
    }

    /// Asks and waits for the answer. Whoever gives up drops this.
    pub(crate) async fn request(&self, tag: u8, body: Bytes) -> Result<Bytes, Lost> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let (tell, answer) = oneshot::channel();
        match &mut *self.waiting.lock() {
            Some(waiting) => waiting.insert(number, tell),
            None => return Err(self.lost()),
        };
        let _forget = Forget { connection: self, number };
        let mut head = BytesMut::with_capacity(8);
        head.put_u64_le(number);
        self.outbox.push(tag, &[head.freeze(), body]);
        answer.await.map_err(|_| self.lost())
    }

    /// Requests that wait for an answer.
    pub(crate) fn requests_waiting(&self) -> usize {
        self.waiting.lock().as_ref().map_or(0, HashMap::len)
    }

    /// Begins a stream of appends; answers to earlier ones on this connection are dropped.
    pub(crate) fn begin_appends(&self) -> (u64, mpsc::UnboundedReceiver<Appended>) {
        let session = self.next_number.fetch_add(1, Ordering::Relaxed);
        // Bounded by the appends in flight, which the sender bounds.
        let (answers, receiver) = mpsc::unbounded_channel();
        if self.is_open() {
            *self.appends.lock() = Some(Appends { session, answers });
        }
        if !self.is_open() {
            // It ended between the two looks.
            self.appends.lock().take();
        }
        (session, receiver)
    }

    /// Reads and writes until it ends; says why.
    pub(crate) async fn run(
        self: &Arc<Self>,
        reader: FrameReader,
        writer: WriteHalf<PeerStream>,
        silence_max: Duration,
    ) -> String {
        let moved = AtomicU64::new(0);
        let note_written = |bytes: usize| {
            self.stats.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            if bytes >= SHOWS_LIFE_BYTES {
                moved.fetch_add(1, Ordering::Relaxed);
            }
        };
        let why = tokio::select! {
            result = self.outbox.write_to(writer, note_written) => result.err(),
            result = self.read(reader, &moved) => result.err(),
            () = self.watch(&moved, silence_max / LOOKS) => Some(silence(silence_max)),
        };
        let why = why.map_or_else(|| "closed by the other member".to_string(), |why| why.to_string());
        self.close(&why);
        why
    }

    async fn read(&self, mut reader: FrameReader, moved: &AtomicU64) -> Result<(), FrameError> {
        while let Some(frame) = reader.next().await? {
            moved.fetch_add(1, Ordering::Relaxed);
            self.stats.received_bytes.fetch_add(frame.payload.len() as u64, Ordering::Relaxed);
            self.take(frame)?;
        }
        Ok(())
    }

    /// Comes back when nothing has moved for some looks, though the other end was asked to say something.
    async fn watch(&self, moved: &AtomicU64, interval: Duration) {
        let (mut last, mut silent) = (0, 0);
        while silent < LOOKS {
            runtime::sleep(interval).await;
            let now = moved.load(Ordering::Relaxed);
            if now == last {
                silent += 1;
                self.outbox.push(tag::PING, &[]);
            } else {
                (last, silent) = (now, 0);
            }
        }
    }

    fn take(&self, frame: Frame) -> Result<(), FrameError> {
        let mut payload = frame.payload;
        match frame.tag {
            tag::PONG => {}
            tag::APPENDED => {
                let (session, number, result) = message::decode_appended(payload)?;
                if let Some(appends) = &*self.appends.lock()
                    && appends.session == session
                {
                    // The stream may have ended on our side.
                    let _ = appends.answers.send((number, result));
                }
            }
            tag::CONTROLLED | tag::READ_AT | tag::CALLED => {
                if payload.len() < 8 {
                    return Err(FrameError::Malformed("an answer without a number"));
                }
                let number = payload.get_u64_le();
                let asked = self.waiting.lock().as_mut().and_then(|waiting| waiting.remove(&number));
                if let Some(asked) = asked {
                    // Whoever asked may have given up this moment.
                    let _ = asked.send(payload);
                }
            }
            tag::REFUSED => {
                let (sequence, why) = message::decode_refused(payload)?;
                self.pending.refused(sequence, why);
            }
            _ => return Err(FrameError::Malformed("an answer of an unknown kind")),
        }
        Ok(())
    }
}

fn silence(silence_max: Duration) -> FrameError {
    let text = format!("nothing was heard for {silence_max:?}");
    FrameError::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
}

/// Takes a request off the table, answered or not.
struct Forget<'a> {
    connection: &'a Connection,
    number: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = &mut *self.connection.waiting.lock() {
            waiting.remove(&self.number);
        }
    }
}
