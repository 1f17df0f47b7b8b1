//! The other members, as seen from here: connections to them, and what comes in over theirs.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use daymark_storage::wal::Identity;

use super::seam::{CallError, CallReply, PeerOptions, PeerStream};

/// All connections of this member.
pub(crate) struct Peers {
    identity: Identity,
    options: PeerOptions,
}

impl Peers {
    pub(crate) fn new(identity: Identity, options: PeerOptions) -> Arc<Self> {
        Arc::new(Self { identity, options })
    }

    /// Serves a connection that another member has opened, until it ends.
    pub(crate) async fn accept(&self, stream: PeerStream) {
        tracing::warn!("closed a connection of another member: nothing is served to members yet");
        drop(stream);
    }

    pub(crate) async fn call(&self, member_id: u64, request: Bytes, timeout: Duration) -> Result<Bytes, CallError> {
        if member_id == self.identity.member_id {
            let (reply, answer) = oneshot::channel();
            self.options.calls.serve(member_id, request, CallReply(reply));
            return match tokio::time::timeout(timeout, answer).await {
                Ok(answered) => answered.map_err(|_| CallError::NotServed),
                Err(_) => Err(CallError::TimedOut),
            };
        }
        let why = match tokio::time::timeout(timeout, self.options.dialer.dial(member_id)).await {
            Ok(Ok(_)) => "members do not talk to each other yet".to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long to connect".to_string(),
        };
        Err(CallError::Unreachable { member_id, why })
    }
}

/// Asks a member of some cluster something without being a member oneself; its [`Calls::ask`](super::Calls::ask) answers.
/// For a member that is about to join. Runs on any runtime of tokio that drives the stream.
pub async fn ask(stream: PeerStream, _request: Bytes, _timeout: Duration) -> Result<Bytes, CallError> {
    drop(stream);
    let why = io::Error::from(io::ErrorKind::Unsupported).to_string();
    Err(CallError::Unreachable { member_id: 0, why })
}
