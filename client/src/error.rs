//! Every way a call can fail, seen from the caller: did the server refuse, is the outcome unknown, is it worth a repeat.

use std::time::Duration;

use tonic::{Code, Status};

/// Result of a client call.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// The configuration cannot be used.
    #[error("bad client configuration: {0}")]
    Config(String),
    /// The server answered with an error.
    #[error("{message} ({code:?})")]
    Refused {
        /// gRPC code.
        code: Code,
        /// The server's words; etcd's texts are byte-exact and may be matched.
        message: String,
    },
    /// No member could serve the call now, or the connection broke. The outcome of a write is unknown.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// No answer in time. The outcome of a write is unknown.
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    /// The history that a watch needs is gone. Read the current state and watch from there, or accept the gap and start
    /// at `compact_revision`.
    #[error("revisions before {compact_revision} have been compacted")]
    Compacted {
        /// Oldest revision that can still be watched.
        compact_revision: i64,
    },
    /// The server refused a watch, or ended it for a reason of its own.
    #[error("watch canceled: {0}")]
    WatchCanceled(String),
    /// The lease does not exist, or not any more.
    #[error("lease {0:x} not found")]
    LeaseNotFound(i64),
    /// What was received could not be kept.
    #[error("{0}")]
    Local(String),
    /// An answer that breaks the protocol.
    #[error("unexpected answer: {0}")]
    Protocol(&'static str),
}

impl ClientError {
    /// Whether a write that failed so may nevertheless have happened.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::TimedOut(_) | Self::Protocol(_) => true,
            Self::Refused { code, .. } => {
                matches!(code, Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal)
            }
            _ => false,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        match status.code() {
            Code::Unavailable => Self::Unavailable(describe(&status)),
            code => Self::Refused { code, message: describe(&status) },
        }
    }
}

/// The status' text with its causes: a connection failure says nothing useful without them.
fn describe(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_writes_have_an_unknown_outcome_and_refused_ones_have_not() {
        assert!(ClientError::from(Status::unavailable("etcdserver: request timed out")).outcome_unknown());
        assert!(ClientError::TimedOut(Duration::from_secs(1)).outcome_unknown());
        let refused = ClientError::from(Status::invalid_argument("etcdserver: key is not provided"));
        assert!(!refused.outcome_unknown());
        assert_eq!(refused.to_string(), "etcdserver: key is not provided (InvalidArgument)");
    }
}
