//! What a TLS error between members means: who refused whose certificate, why, and what to do about it. The texts do not
//! change from one attempt to the next, so that a cause is logged once. Checks nothing itself.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use x509_parser::prelude::ASN1Time;

/// The same error with cause and remedy, if it is about certificates.
pub(super) fn explain(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let text = match inner {
        Some(rustls::Error::InvalidCertificate(why)) => refused_here(why),
        Some(rustls::Error::NoCertificatesPresented) => {
            "the other member showed no certificate; give it --peer-cert-file and --peer-key-file".into()
        }
        // The words of the check of names, which are etcd's.
        Some(rustls::Error::General(what)) if what.contains("authentication failed") => format!(
            "{what}: the other member's certificate has none of the names that are allowed here; issue one with such a \
             name, or allow its name by --peer-cert-allowed-cn or --peer-cert-allowed-hostname"
        ),
        Some(rustls::Error::AlertReceived(alert)) => match refused_there(*alert) {
            Some(text) => text,
            None => return error,
        },
        _ => return error,
    };
    io::Error::new(error.kind(), text)
}

/// Why this member does not take the other's certificate.
fn refused_here(why: &CertificateError) -> String {
    let remedy = match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "renew the file of its --peer-cert-file, which it reads again by itself; if it has not expired, set the clock \
             of this machine"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "set the clocks of both machines, or issue it anew"
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority in --peer-trusted-ca-file of this member has issued it: issue it by one of them, or add its \
             authority to that file on all members"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it does not name the host of the peer URL that was dialed: issue it for that host, or correct the URL by \
             `etcdctl member update`"
        }
        CertificateError::Revoked => "it is in --peer-crl-file: issue another one",
        _ => "issue it for servers and clients alike, by an authority in --peer-trusted-ca-file",
    };
    let cause = match why {
        CertificateError::Expired => "it has expired".into(),
        CertificateError::ExpiredContext { not_after, .. } => format!("it expired on {}", day(*not_after)),
        CertificateError::NotValidYet => "it is not valid yet".into(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("it is not valid before {}", day(*not_before))
        }
        other => format!("{other:?}"),
    };
    format!("invalid peer certificate of the other member: {cause}; {remedy}")
}

/// Why the other member does not take this member's certificate; nothing if that is about something else.
fn refused_there(alert: AlertDescription) -> Option<String> {
    let cause = match alert {
        AlertDescription::CertificateExpired => {
            "it has expired; renew the file of this member's --peer-cert-file, which is read again by itself; if it has not \
             expired, set the clock of the other machine"
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "no authority in --peer-trusted-ca-file over there has issued it; issue it by one of them, or add its \
             authority to that file on all members"
        }
        AlertDescription::CertificateRevoked => "it is in --peer-crl-file over there; issue another one",
        AlertDescription::CertificateRequired => "none was shown; give --peer-cert-file and --peer-key-file",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::HandshakeFailure => {
            "the log over there says why; it has to be issued for servers and clients alike, with the hosts of this \
             member's peer URLs and a name that --peer-cert-allowed-cn or --peer-cert-allowed-hostname there allow"
        }
        _ => return None,
    };
    Some(format!("the other member refuses this member's certificate ({alert:?}): {cause}"))
}

fn day(time: UnixTime) -> String {
    let date = i64::try_from(time.as_secs()).ok().and_then(|secs| ASN1Time::from_timestamp(secs).ok());
    date.map_or_else(|| format!("{:?} after 1970", Duration::from_secs(time.as_secs())), |date| date.to_string())
}

/// An encrypted stream whose errors are explained. With TLS 1.3 whoever dials hears only when it reads that its
/// certificate was refused.
pub(super) struct Explained<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll_read(cx, buffer)).map_err(explain))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll_write(cx, bytes)).map_err(explain))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll_write_vectored(cx, parts)).map_err(explain))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(ready!(Pin::new(&mut self.0).poll_flush(cx)).map_err(explain))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: rustls::Error) -> String {
        explain(io::Error::new(io::ErrorKind::InvalidData, error)).to_string()
    }

    #[test]
    fn who_refused_whom_and_what_to_do_is_told() {
        let at = |secs| UnixTime::since_unix_epoch(Duration::from_secs(secs));
        let expired = |now| CertificateError::ExpiredContext { time: at(now), not_after: at(1_600_000_000) };
        for (error, cause, remedy) in [
            (expired(1_700_000_000).into(), "expired on Sep 13 12:26:40 2020", "--peer-cert-file"),
            (CertificateError::UnknownIssuer.into(), "invalid peer certificate", "--peer-trusted-ca-file"),
            (CertificateError::Revoked.into(), "invalid peer certificate", "--peer-crl-file"),
            (rustls::Error::NoCertificatesPresented, "no certificate", "--peer-cert-file"),
            (
                rustls::Error::General("client certificate authentication failed".into()),
                "client certificate authentication failed",
                "--peer-cert-allowed-cn",
            ),
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateExpired),
                "refuses this member's certificate (CertificateExpired): it has expired",
                "--peer-cert-file",
            ),
            (
                rustls::Error::AlertReceived(AlertDescription::UnknownCA),
                "refuses this member's certificate",
                "--peer-trusted-ca-file",
            ),
        ] {
            let told = text(error);
            assert!(told.contains(cause) && told.contains(remedy), "{told}");
        }
        assert_eq!(text(expired(1_700_000_000).into()), text(expired(1_700_000_009).into()), "one cause, one text");
    }

    #[test]
    fn what_is_not_about_certificates_stays_as_it_is() {
        let reset = explain(io::ErrorKind::ConnectionReset.into());
        assert_eq!(reset.kind(), io::ErrorKind::ConnectionReset);
        let alert = rustls::Error::AlertReceived(AlertDescription::InternalError);
        assert_eq!(text(alert.clone()), alert.to_string());
    }
}
