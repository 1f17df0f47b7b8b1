//! The seams between raft's connections and the server: streams to other members, and what members ask each other beside
//! raft. Knows no address and no TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// What a connection to another member is made of: a socket, or TLS over one.
pub trait PeerIo: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> PeerIo for T {}

/// An open connection to another member, not greeted yet.
pub type PeerStream = Box<dyn PeerIo>;

/// A future that can be sent to the thread "raft".
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Opens connections to members. Filled by the server, which knows their addresses.
pub trait Dialer: Send + Sync + 'static {
    /// A new connection to a member. The future is polled on the thread "raft", whose runtime has sockets and timers; it
    /// must not block. Whoever asks gives up by dropping it.
    fn dial(&self, member_id: u64) -> BoxFuture<io::Result<PeerStream>>;
}

/// For a member that has no peers and will have none.
pub struct NoDialer;

impl Dialer for NoDialer {
    fn dial(&self, member_id: u64) -> BoxFuture<io::Result<PeerStream>> {
        let why = format!("no address is known of member {member_id:x}");
        Box::pin(async { Err(io::Error::new(io::ErrorKind::NotFound, why)) })
    }
}

/// What a member answers when others ask something beside raft. Filled by the server; called on the thread "raft", so
/// nothing here may block.
pub trait Calls: Send + Sync + 'static {
    /// A request of another member of this cluster, answered now or later; see [`Handle::call`](crate::Handle::call).
    fn serve(&self, from: u64, request: Bytes, reply: CallReply);

    /// A request of somebody who is no member yet and knows no cluster id; see [`ask`](crate::ask).
    fn ask(&self, request: Bytes, reply: CallReply);

    /// Whether a member was removed for good: it is refused and told so.
    fn is_removed(&self, member_id: u64) -> bool;
}

/// How a member takes part in a cluster of several.
#[derive(Clone)]
pub struct PeerOptions {
    /// Opens connections to other members.
    pub dialer: Arc<dyn Dialer>,
    /// Answers what others ask beside raft.
    pub calls: Arc<dyn Calls>,
    /// Daymark's version, told to others for their logs.
    pub version: String,
}

impl PeerOptions {
    /// For a member that has no peers and will have none.
    pub fn none() -> Self {
        Self { dialer: Arc::new(NoDialer), calls: Arc::new(NoCalls), version: String::new() }
    }
}

/// Answers nothing.
pub struct NoCalls;

impl Calls for NoCalls {
    fn serve(&self, _from: u64, _request: Bytes, reply: CallReply) {
        drop(reply);
    }
    fn ask(&self, _request: Bytes, reply: CallReply) {
        drop(reply);
    }
    fn is_removed(&self, _member_id: u64) -> bool {
        false
    }
}

/// The way back for one answer. Dropped unanswered, the caller gets [`CallError::NotServed`].
#[derive(Debug)]
pub struct CallReply(pub(crate) oneshot::Sender<Bytes>);

impl CallReply {
    /// Answers. A caller that has given up does not hear it.
    pub fn send(self, reply: Bytes) {
        // Nobody waits any more: nothing to tell.
        let _ = self.0.send(reply);
    }
}

/// Why a call has no answer. Only [`Unreachable`](Self::Unreachable), [`Busy`](Self::Busy) and
/// [`NotServed`](Self::NotServed) mean that the other member did not act on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It never left this member.
    #[error("member {member_id:x} cannot be reached: {why}")]
    Unreachable { member_id: u64, why: String },
    /// No answer in time, or the connection was lost meanwhile.
    #[error("no answer in time")]
    TimedOut,
    /// Too many calls are under way.
    #[error("too many calls are under way")]
    Busy,
    /// The other member does not know such a request.
    #[error("the other member does not serve this request")]
    NotServed,
    /// This member stops.
    #[error("server stopped")]
    Stopped,
}
