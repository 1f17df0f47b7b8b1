//! The way to one member for one kind of connection: opened when somebody needs it, kept, opened again after a loss, with
//! pauses that grow up to an election time-out.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::connection::Connection;
use super::frame::{FrameError, FrameReader};
use super::hello::{self, Answer, HELLO_BYTES_MAX, Hello, Kind, PROTOCOL, Refusal};
use super::peers::{Context, FRAME_BYTES_MAX};
use super::seam::PeerStream;
use super::stats::PeerStats;
use crate::batch::ProposeError;
use crate::config::limits;
use crate::executor;
use crate::runtime::{self, Instant};

/// Pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// See the file's head.
pub(crate) struct Link {
    context: Arc<Context>,
    stats: Arc<PeerStats>,
    target: u64,
    kind: Kind,
    state: Mutex<State>,
    changed: Notify,
}

enum State {
    /// Not needed yet, or lost: not tried again before `until`.
    Down {
        until: Instant,
        failures: u32,
        why: String,
    },
    Opening,
    Up(Arc<Connection>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("connecting failed: {0}")]
    Dial(std::io::Error),
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("it ended the connection before it answered")]
    Ended,
    #[error("{refusal} (it is member {member_id:x} of cluster {cluster_id:x}, version {version}); {}", refusal.remedy())]
    Refused { refusal: Refusal, member_id: u64, cluster_id: u64, version: String },
}

impl Link {
    pub(crate) fn new(context: Arc<Context>, stats: Arc<PeerStats>, target: u64, kind: Kind) -> Arc<Self> {
        let state = State::Down { until: runtime::now(), failures: 0, why: "not tried yet".into() };
        Arc::new(Self { context, stats, target, kind, state: Mutex::new(state), changed: Notify::new() })
    }

    /// The open connection. Opens one, unless that has failed a moment ago; waits as long as that takes, which is bounded
    /// by twice the election time-out. An error says why there is none.
    pub(crate) async fn connection(self: &Arc<Self>) -> Result<Arc<Connection>, String> {
        let mut has_waited = false;
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                match &*state {
                    State::Up(connection) if connection.is_open() => return Ok(connection.clone()),
                    State::Up(_) => {}
                    State::Opening => {}
                    State::Down { until, why, .. } if has_waited || runtime::now() < *until => {
                        return Err(why.clone());
                    }
                    State::Down { failures, .. } => {
                        let failures = *failures;
                        *state = State::Opening;
                        let link = self.clone();
                        executor::spawn(async move { link.open_and_run(failures).await });
                    }
                }
            }
            changed.await;
            has_waited = true;
        }
    }

    /// The open connection, if there is one.
    pub(crate) fn up(&self) -> Option<Arc<Connection>> {
        match &*self.state.lock() {
            State::Up(connection) if connection.is_open() => Some(connection.clone()),
            _ => None,
        }
    }

    /// The other member has shown that it lives: a pause is over.
    pub(crate) fn try_again(&self) {
        if let State::Down { until, .. } = &mut *self.state.lock() {
            *until = runtime::now();
        }
    }

    /// Ends the connection that is open.
    pub(crate) fn close(&self, why: &str) {
        if let Some(connection) = self.up() {
            connection.close(why);
        }
    }

    async fn open_and_run(self: Arc<Self>, failures: u32) {
        let opened = self.context.open(self.target, self.kind).await;
        let (reader, stream) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.stats.sent_failures.fetch_add(1, Ordering::Relaxed);
                self.context.note_failure(self.target, &error);
                let pause = self.context.pause(FIRST_PAUSE, failures);
                return self.set(State::Down {
                    until: runtime::now() + pause,
                    failures: failures.saturating_add(1),
                    why: error.to_string(),
                });
            }
        };
        let number = self.context.next_connection();
        let connection = Connection::new(number, self.stats.clone(), self.context.pending.clone());
        self.context.note_open(self.target, &self.stats);
        self.set(State::Up(connection.clone()));
        let why = connection.run(reader, stream, self.context.silence_max).await;
        self.context.note_lost(self.target, self.kind, &self.stats, &why);
        self.end_batches(number);
        // At once, but not in a circle with one that takes connections and drops them.
        let until = runtime::now() + self.context.pause(FIRST_PAUSE, 0);
        self.set(State::Down { until, failures: 1, why });
    }

    /// Batches that went on a connection that has ended: nobody can tell whether they were proposed. Those that were are
    /// applied soon, as a rule; the others are told.
    fn end_batches(&self, connection: u64) {
        let (pending, grace) = (self.context.pending.clone(), self.context.election / limits::FORWARD_GRACE_SHARE);
        if pending.has_sent_on(connection) {
            executor::spawn(async move {
                runtime::sleep(grace).await;
                pending.fail_sent_on(connection, ProposeError::ConnectionLost);
            });
        }
    }

    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_waiters();
    }
}

/// Greets on a fresh stream; what comes back is ready for frames.
pub(crate) async fn greet(
    stream: PeerStream,
    hello: &Hello,
) -> Result<(FrameReader, tokio::io::WriteHalf<PeerStream>, Answer), OpenError> {
    use tokio::io::AsyncWriteExt;
    let (read, mut write) = tokio::io::split(stream);
    write.write_all(&hello.encode()).await.map_err(FrameError::Io)?;
    write.flush().await.map_err(FrameError::Io)?;
    let mut reader = FrameReader::new(read, HELLO_BYTES_MAX);
    let frame = reader.next().await?.ok_or(OpenError::Ended)?;
    let answer = Answer::decode(&frame)?;
    let Answer { refusal, member_id, cluster_id, .. } = answer.clone();
    if let Some(refusal) = refusal {
        return Err(OpenError::Refused { refusal, member_id, cluster_id, version: answer.version });
    }
    if answer.protocol > PROTOCOL {
        return Err(FrameError::Malformed("it answers with a protocol version that was not asked for").into());
    }
    reader.set_bound(FRAME_BYTES_MAX);
    Ok((reader, write, answer))
}

/// What the hello of this version says.
pub(crate) fn hello(context: &Context, target: u64, kind: Kind) -> Hello {
    hello::Hello {
        protocol: PROTOCOL,
        kind: Ok(kind),
        cluster_id: context.identity.cluster_id,
        sender: context.identity.member_id,
        target,
        version: context.options.version.clone(),
    }
}
