//! TLS handshakes of clients: begun with the certificates as they are now, bounded in time, paced so that others get
//! their turns, and accounted for when they fail.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio_rustls::TlsAcceptor;

use super::client_certs::common_name;
use super::io::{Raw, Rewound, Socket};
use super::{FrontDoor, Thread};
use crate::limits;

/// Makes a connection of which `ahead` has been read an encrypted one. Returns it with the name of the user that the
/// client's certificate stands for, if names are users; `None` if it failed, which has been logged and counted then.
pub(crate) async fn accept<D: FrontDoor>(
    thread: &Thread<D>,
    raw: Raw,
    ahead: Bytes,
    peer: Option<SocketAddr>,
) -> Option<(Socket, Option<Arc<str>>)> {
    let Some(tls) = thread.options.tls.clone() else {
        // Secure listeners are not opened without it.
        tracing::error!("rejected connection on client endpoint: no certificate has been read");
        return None;
    };
    let handshake = async {
        let acceptor = TlsAcceptor::from(tls.fresh().await);
        thread.newcomers.paced(acceptor.accept(Rewound { ahead, raw })).await
    };
    let outcome = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, handshake).await;
    match outcome.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long"))) {
        Ok(stream) => {
            thread.counters.handshakes.add(1);
            let shown = stream.get_ref().1.peer_certificates().and_then(<[CertificateDer<'_>]>::first);
            let name = if tls.names_are_users() { shown.and_then(common_name) } else { None };
            Some((Socket::Tls(Box::new(stream)), name))
        }
        Err(error) => {
            thread.counters.handshake_failures.add(1);
            thread.handshake_log.failed(peer, &error);
            None
        }
    }
}

/// Says why handshakes fail, but not more often than somebody can read.
#[derive(Default)]
pub(crate) struct FailureLog {
    second: Cell<Option<Instant>>,
    in_second: Cell<u64>,
}

impl FailureLog {
    fn failed(&self, peer: Option<SocketAddr>, error: &io::Error) {
        let remote = peer.map(|peer| peer.to_string()).unwrap_or_default();
        // Probes of load balancers just go away again.
        if is_gone(error) {
            tracing::debug!("remote-addr" = remote, %error, "rejected connection on client endpoint");
            return;
        }
        let (logged, unsaid) = self.count(Instant::now());
        if let Some(unsaid) = unsaid {
            tracing::warn!(count = unsaid, "rejected further connections on client endpoint");
        }
        if logged {
            tracing::warn!("remote-addr" = remote, %error, "rejected connection on client endpoint");
        }
    }

    /// Whether this one is logged, and how many of an earlier second were not.
    fn count(&self, now: Instant) -> (bool, Option<u64>) {
        let mut unsaid = None;
        if self.second.get().is_none_or(|second| now - second >= Duration::from_secs(1)) {
            self.second.set(Some(now));
            let before = self.in_second.replace(0);
            unsaid = before.checked_sub(limits::HANDSHAKE_FAILURES_LOGGED).filter(|count| *count > 0);
        }
        self.in_second.set(self.in_second.get() + 1);
        (self.in_second.get() <= limits::HANDSHAKE_FAILURES_LOGGED, unsaid)
    }
}

/// Whether the other end has closed the connection without a word.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_of_failures_is_summed_up() {
        let log = FailureLog::default();
        let begin = Instant::now();
        let logged = (0..100).filter(|_| log.count(begin).0).count() as u64;
        assert_eq!(logged, limits::HANDSHAKE_FAILURES_LOGGED);
        let later = begin + Duration::from_secs(2);
        assert_eq!(log.count(later), (true, Some(100 - limits::HANDSHAKE_FAILURES_LOGGED)));
        assert_eq!(log.count(later), (true, None));
        assert_eq!(log.count(later + Duration::from_secs(2)), (true, None), "none was left out");
    }
}
