//! How a connection is opened: to a TCP address or a unix socket, encrypted or not. Knows nothing of what it carries.

use std::{
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use tonic::codegen::{Service, http::Uri};

use crate::{
    config::Tls,
    error::{ClientError, Result},
};

/// An open connection.
pub type Stream = Box<dyn Socket>;

/// What connections have in common.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A server's address, and how to connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialer {
    place: Place,
    /// `None`: unencrypted.
    tls: Option<Tls>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// `host:port`.
    Tcp(String),
    Unix(PathBuf),
}

impl Dialer {
    /// Reads an address: `http://host:port`, `https://host:port`, `host:port` (encrypted if there is something to do it
    /// with), `unix:path` and `unixs:path`, which may have two slashes.
    ///
    /// # Errors
    /// An address of another form, or an encrypted one without `tls`.
    pub fn new(endpoint: &str, tls: Option<&Tls>) -> Result<Self> {
        let refused = |why: &str| ClientError::Config(format!("endpoint {endpoint:?}: {why}"));
        let (scheme, rest) = match endpoint.split_once(':') {
            Some((scheme @ ("http" | "https"), rest)) => {
                (scheme, rest.strip_prefix("//").ok_or_else(|| refused("no // behind the scheme"))?)
            }
            Some((scheme @ ("unix" | "unixs"), rest)) => (scheme, rest.strip_prefix("//").unwrap_or(rest)),
            Some(_) if endpoint.contains("://") => return Err(refused("the scheme is not supported")),
            _ if tls.is_some() => ("https", endpoint),
            _ => ("http", endpoint),
        };
        let tls = match scheme {
            "http" | "unix" => None,
            _ => Some(tls.ok_or_else(|| refused("an encrypted endpoint needs TLS settings"))?.clone()),
        };
        let place = if scheme.starts_with("unix") {
            if rest.is_empty() {
                return Err(refused("names no socket"));
            }
            Place::Unix(rest.into())
        } else {
            let address = rest.trim_end_matches('/');
            let (host, port) = address.rsplit_once(':').ok_or_else(|| refused("not host:port"))?;
            let is_host = !host.is_empty() && !host.contains(['/', ' ', '@']);
            if !is_host || port.parse::<u16>().is_err() {
                return Err(refused("not host:port"));
            }
            Place::Tcp(address.to_owned())
        };
        let dialer = Self { place, tls };
        dialer.uri().parse::<Uri>().map_err(|error| refused(&error.to_string()))?;
        if let Some(tls) = &dialer.tls {
            client_config(tls)?;
            dialer.server_name().map_err(|error| refused(&error.to_string()))?;
        }
        Ok(dialer)
    }

    /// What requests name as the server: `host:port`, or `localhost` on a unix socket.
    #[must_use]
    pub fn authority(&self) -> &str {
        match &self.place {
            Place::Tcp(address) => address,
            Place::Unix(_) => "localhost",
        }
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    fn uri(&self) -> String {
        format!("{}://{}", self.scheme(), self.authority())
    }

    fn server_name(&self) -> io::Result<ServerName<'static>> {
        let host = match &self.place {
            Place::Tcp(address) => address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host),
            Place::Unix(_) => "localhost",
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        ServerName::try_from(host.to_owned()).map_err(io::Error::other)
    }

    /// Opens a connection. Certificates are read anew, so that rotated ones count.
    ///
    /// # Errors
    /// Whatever the system or the handshake says.
    pub async fn connect(&self) -> io::Result<Stream> {
        match &self.place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                self.encrypt(stream).await
            }
            Place::Unix(path) => self.encrypt(UnixStream::connect(path).await?).await,
        }
    }

    async fn encrypt(&self, stream: impl Socket + 'static) -> io::Result<Stream> {
        let Some(tls) = self.tls.clone() else { return Ok(Box::new(stream)) };
        let read = tokio::task::spawn_blocking(move || client_config(&tls)).await;
        let config = read.map_err(io::Error::other)?.map_err(io::Error::other)?;
        Ok(Box::new(TlsConnector::from(config).connect(self.server_name()?, stream).await?))
    }
}

impl fmt::Display for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(address) => f.write_str(address),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// For tonic, which names no place: a dialer knows one only.
impl Service<Uri> for Dialer {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Stream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move { dialer.connect().await.map(TokioIo::new) })
    }
}

fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>> {
    let refused = |path: &Path, error: &dyn fmt::Display| ClientError::Config(format!("{}: {error}", path.display()));
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(path).map_err(|error| refused(path, &error))?;
        read.collect::<std::result::Result<_, _>>().map_err(|error| refused(path, &error))
    };
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| ClientError::Config(e.to_string()))?;
    let builder = if tls.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
    } else {
        let Some(path) = &tls.cacert else {
            return Err(ClientError::Config("TLS needs a CA certificate, or to skip verification".to_owned()));
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| refused(path, &error))?;
        }
        builder.with_root_certificates(roots)
    };
    let mut config = match (&tls.cert, &tls.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| refused(key, &error))?;
            builder.with_client_auth_cert(certificates(cert)?, private).map_err(|error| refused(cert, &error))?
        }
        _ => return Err(ClientError::Config("a client certificate and its key are needed together".to_owned())),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Believes any server that has the key of the certificate it shows.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_say_where_and_whether_encrypted() {
        let tls = Tls { insecure_skip_verify: true, ..Tls::default() };
        for (endpoint, uri, shown) in [
            ("127.0.0.1:1", "http://127.0.0.1:1", "127.0.0.1:1"),
            ("http://[::1]:80/", "http://[::1]:80", "[::1]:80"),
            ("unix:///run/x.sock", "http://localhost", "unix:/run/x.sock"),
            ("unix:x.sock", "http://localhost", "unix:x.sock"),
        ] {
            let dialer = Dialer::new(endpoint, None).expect(endpoint);
            assert_eq!((dialer.uri().as_str(), dialer.to_string().as_str()), (uri, shown));
        }
        for (endpoint, secure) in
            [("127.0.0.1:1", true), ("http://h:1", false), ("https://h:1", true), ("unixs:x", true), ("unix:x", false)]
        {
            let dialer = Dialer::new(endpoint, Some(&tls)).expect(endpoint);
            assert_eq!(dialer.scheme() == "https", secure, "{endpoint}");
        }
        for bad in ["", "127.0.0.1", "https://127.0.0.1:1", "http:h:1", ":1", "h:99999", "ftp://h:1", "unix:", "a b:1"]
        {
            assert!(matches!(Dialer::new(bad, None), Err(ClientError::Config(_))), "{bad:?} was accepted");
        }
    }

    #[test]
    fn certificates_are_checked_before_anything_connects() {
        let missing = Some(PathBuf::from("/nonexistent/ca.pem"));
        for bad in [
            Tls::default(),
            Tls { cacert: missing.clone(), ..Tls::default() },
            Tls { cert: missing, insecure_skip_verify: true, ..Tls::default() },
        ] {
            assert!(matches!(Dialer::new("h:1", Some(&bad)), Err(ClientError::Config(_))), "{bad:?}");
        }
    }
}
