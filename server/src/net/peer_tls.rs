//! TLS between members, in both roles: what a handshake needs, read from files and read again when one has changed, and
//! whether a member's certificate fits the address it comes from. Opens no connection.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::tls::{self, Files, Mark, TlsError};
use crate::config::tls::PeerTlsOptions;
use crate::limits;

/// What handshakes use.
#[derive(Clone)]
pub(super) struct Current {
    pub server: Arc<ServerConfig>,
    pub client: Arc<ClientConfig>,
}

/// TLS of a member towards the others.
pub struct PeerTls {
    options: PeerTlsOptions,
    files: Files,
    state: Mutex<State>,
}

struct State {
    current: Current,
    /// As the files were when they were read last, whether or not they could be used.
    marks: Vec<Mark>,
}

impl PeerTls {
    /// Reads everything once. Makes a certificate where one was asked for.
    pub fn open(options: &PeerTlsOptions) -> Result<Arc<Self>, TlsError> {
        let files = Files::of(&options.server).map_err(TlsError::of_peers)?;
        let marks = marks(&files, options);
        let current = load(&files, options).map_err(TlsError::of_peers)?;
        Ok(Arc::new(Self { options: options.clone(), files, state: Mutex::new(State { current, marks }) }))
    }

    /// What a handshake that begins now uses: as the files are, unless looking at them takes too long. Connections between
    /// members live long, so that a look for each is no burden.
    pub(super) async fn fresh(self: &PeerTls) -> Current
    where
        Self: Sized,
    {
        let (files, options) = (self.files.clone(), self.options.clone());
        let known = self.state.lock().marks.clone();
        let look = tokio::task::spawn_blocking(move || {
            let marks = marks(&files, &options);
            (marks != known).then(|| (load(&files, &options), marks))
        });
        if let Ok(Ok(Some((loaded, marks)))) = tokio::time::timeout(limits::TLS_LOOK_TIMEOUT, look).await {
            let mut state = self.state.lock();
            state.marks = marks;
            match loaded {
                Ok(current) => {
                    state.current = current;
                    tracing::info!(files = %self.files, "reloaded TLS certificates of members");
                }
                Err(error) => {
                    let error = error.of_peers().to_string();
                    tracing::warn!(error, "changed TLS files cannot be used (yet); serving with those read before");
                }
            }
        }
        self.state.lock().current.clone()
    }

    /// As in etcd, a certificate that names addresses or hosts must name the one that it comes from, unless that is
    /// switched off.
    pub(super) async fn check_origin(&self, certificate: &CertificateDer<'_>, remote: IpAddr) -> std::io::Result<()> {
        if self.options.skip_origin_check {
            return Ok(());
        }
        let (addresses, hosts) = names(certificate).map_err(std::io::Error::other)?;
        if addresses.is_empty() && hosts.is_empty() || addresses.contains(&remote.to_canonical()) {
            return Ok(());
        }
        for host in hosts.iter().filter(|host| !host.starts_with("*.")) {
            if let Ok(mut found) = tokio::net::lookup_host((host.as_str(), 0)).await
                && found.any(|found| found.ip().to_canonical() == remote.to_canonical())
            {
                return Ok(());
            }
        }
        Err(std::io::Error::other(format!(
            "the member's certificate names {addresses:?} and {hosts:?} but it comes from {remote}; correct the \
             certificate or give --peer-skip-client-san-verification"
        )))
    }
}

fn marks(files: &Files, options: &PeerTlsOptions) -> Vec<Mark> {
    let mut marks = files.marks().to_vec();
    if let Some((certificate, key)) = &options.client_certificate {
        marks.extend([tls::mark(certificate), tls::mark(key)]);
    }
    marks
}

fn load(files: &Files, options: &PeerTlsOptions) -> Result<Current, TlsError> {
    let mut server = files.load(&options.server)?;
    server.alpn_protocols.clear();
    let (certificate, key): (PathBuf, PathBuf) = match &options.client_certificate {
        Some(files) => files.clone(),
        None => files.own(),
    };
    let chain = tls::certificates("cert-file", &certificate)?;
    let private = PrivateKeyDer::from_pem_file(&key).map_err(|error| TlsError::file("key-file", &key, error))?;
    let provider = Arc::new(tls::provider(&options.server));
    let refused = |error: rustls::Error| TlsError::file("cert-file", &certificate, error);
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_protocol_versions(&tls::versions(options.server.versions)).map_err(refused)?;
    let builder = match &options.server.trusted_ca {
        Some(path) => builder.with_root_certificates(tls::roots(path)?),
        None => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unchecked(provider))),
    };
    let mut client = builder.with_client_auth_cert(chain, private).map_err(refused)?;
    client.resumption = rustls::client::Resumption::disabled();
    Ok(Current { server: Arc::new(server), client: Arc::new(client) })
}

/// Addresses and host names in a certificate.
fn names(certificate: &CertificateDer<'_>) -> Result<(Vec<IpAddr>, Vec<String>), String> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let Some(names) = certificate.subject_alternative_name().map_err(|error| error.to_string())? else {
        return Ok((Vec::new(), Vec::new()));
    };
    let (mut addresses, mut hosts) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        match name {
            GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                addresses.extend(v4.or(<[u8; 16]>::try_from(*bytes).map(IpAddr::from)));
            }
            _ => {}
        }
    }
    Ok((addresses, hosts))
}

/// For self-made certificates (`--peer-auto-tls`): nobody else vouches for them, so that connections are encrypted and
/// nothing more. As in etcd.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
