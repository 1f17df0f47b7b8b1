//! Certificates, keys, CAs and revocations: read from files, checked, made into what a handshake needs, and read again
//! when a file has changed. Does no handshake and knows no connection.
//!
//! A thread of its own looks at the files, so that a slow disk never holds up a net thread. Each handshake asks it for a
//! look and waits for a bounded time; those that wait share one look. So a rotated certificate counts from the next
//! handshake on, as in etcd. Files that do not fit together (yet) change nothing: what was read last goes on serving.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite};
use tokio::sync::{mpsc, oneshot};

use super::client_certs::{ClientCertificates, Revocations};
use crate::config::tls::{CertificateSource, TlsOptions, Versions};
use crate::limits;

/// TLS for all listeners of a member. Cheap to share; the thread that looks at files ends with the last handle.
#[derive(Debug)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    looks: mpsc::Sender<oneshot::Sender<()>>,
    /// The common name of a client's certificate is a user.
    names_are_users: bool,
}

/// What cannot be used, and what to do about it.
#[derive(Debug)]
pub struct TlsError {
    pub cause: String,
    pub remedy: &'static str,
}

impl TlsError {
    fn new(cause: impl Into<String>, remedy: &'static str) -> Self {
        Self { cause: cause.into(), remedy }
    }

    /// With the names of the flags for members instead of those for clients.
    pub(super) fn of_peers(self) -> Self {
        let cause = match self.cause.strip_prefix("--client-") {
            Some(rest) => format!("--peer-{rest}"),
            None => self.cause.replacen("--", "--peer-", usize::from(self.cause.starts_with("--"))),
        };
        Self { cause, ..self }
    }

    pub(super) fn file(flag: &str, path: &Path, error: impl fmt::Display) -> Self {
        let cause = format!("--{flag} {}: {error}", path.display());
        Self::new(cause, "correct the file or the flag; files are PEM and readable for this user")
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

impl std::error::Error for TlsError {}

/// The files that make up TLS; each is read with the flag's name for errors.
#[derive(Clone, Debug)]
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
    trusted_ca: Option<PathBuf>,
    revocations: Option<PathBuf>,
}

/// What tells one state of a file from another without reading it: device, inode, size, and when content and inode
/// changed. `None` while there is no such file.
pub(super) type Mark = Option<[i64; 7]>;

pub(super) fn mark(path: &Path) -> Mark {
    let file = fs::metadata(path).ok()?;
    let (device, inode) = (file.dev().cast_signed(), file.ino().cast_signed());
    let (size, changed) = (file.size().cast_signed(), [file.mtime(), file.mtime_nsec()]);
    Some([device, inode, size, changed[0], changed[1], file.ctime(), file.ctime_nsec()])
}

impl Tls {
    /// Reads everything once and starts the thread that looks for changes. Makes a certificate where one was asked for.
    pub fn open(options: &TlsOptions) -> Result<Arc<Self>, TlsError> {
        let files = Files::of(options)?;
        let marks = files.marks();
        let current = Arc::new(ArcSwap::from_pointee(files.load(options)?));
        let (looks, asked) = mpsc::channel(limits::TLS_LOOKS_WAITING_MAX);
        let watcher = Watcher { files, options: options.clone(), marks, current: current.clone() };
        let thread = std::thread::Builder::new().name("tls".into()).spawn(move || watcher.run(asked));
        thread.map_err(|error| TlsError::new(error.to_string(), "raise the limit of threads of this user"))?;
        Ok(Arc::new(Self { current, looks, names_are_users: options.names_are_users }))
    }

    /// What a handshake that begins now uses: as the files are, unless looking at them takes too long.
    pub(crate) async fn fresh(&self) -> Arc<ServerConfig> {
        let (done, looked) = oneshot::channel();
        // A full queue means a disk that does not answer: then, too, what was read last is good enough.
        if self.looks.try_send(done).is_ok() {
            let _ = tokio::time::timeout(limits::TLS_LOOK_TIMEOUT, looked).await;
        }
        self.current.load_full()
    }

    /// Whether common names of clients' certificates are users.
    pub(crate) fn names_are_users(&self) -> bool {
        self.names_are_users
    }
}

/// The thread that looks at the files.
struct Watcher {
    files: Files,
    options: TlsOptions,
    /// As they were when the files were read last, whether or not they could be used.
    marks: [Mark; 4],
    current: Arc<ArcSwap<ServerConfig>>,
}

impl Watcher {
    fn run(mut self, mut asked: mpsc::Receiver<oneshot::Sender<()>>) {
        let mut waiting = Vec::new();
        while asked.blocking_recv_many(&mut waiting, limits::TLS_LOOKS_WAITING_MAX) > 0 {
            self.look();
            // Whoever has stopped waiting needs no answer.
            for done in waiting.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn look(&mut self) {
        let marks = self.files.marks();
        if marks == self.marks {
            return;
        }
        // Taken before the files are read: a change in between is seen by the next look.
        self.marks = marks;
        match self.files.load(&self.options) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                tracing::info!(files = %self.files, "reloaded TLS certificates");
            }
            Err(error) => {
                let error = error.to_string();
                tracing::warn!(error, "changed TLS files cannot be used (yet); serving with those read before");
            }
        }
    }
}

impl Files {
    pub(super) fn of(options: &TlsOptions) -> Result<Self, TlsError> {
        let (certificate, key) = match &options.certificate {
            CertificateSource::Files { certificate, key } => (certificate.clone(), key.clone()),
            CertificateSource::SelfMade { directory, hosts, validity_years } => {
                super::self_made::certificate(directory, hosts, *validity_years)?
            }
        };
        let (trusted_ca, revocations) = (options.trusted_ca.clone(), options.revocations.clone());
        Ok(Self { certificate, key, trusted_ca, revocations })
    }

    /// Certificate and key.
    pub(super) fn own(&self) -> (PathBuf, PathBuf) {
        (self.certificate.clone(), self.key.clone())
    }

    pub(super) fn marks(&self) -> [Mark; 4] {
        let optional = |path: &Option<PathBuf>| path.as_deref().and_then(mark);
        [mark(&self.certificate), mark(&self.key), optional(&self.trusted_ca), optional(&self.revocations)]
    }

    pub(super) fn load(&self, options: &TlsOptions) -> Result<ServerConfig, TlsError> {
        let chain = certificates("cert-file", &self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key);
        let key = key.map_err(|error| TlsError::file("key-file", &self.key, error))?;
        let provider = Arc::new(provider(options));
        let versions = versions(options.versions);
        let refused = |error: rustls::Error| {
            let (certificate, key) = (self.certificate.display(), self.key.display());
            let cause = format!("certificate {certificate} with key {key}: {error}");
            TlsError::new(
                cause,
                "give a certificate and its key: RSA of 2048 to 4096 bits, ECDSA P-256 or P-384, Ed25519",
            )
        };
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_protocol_versions(&versions).map_err(refused)?;
        let builder = match &self.trusted_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let revocations = self.revocations.as_deref().map(Revocations::read).transpose()?;
                let verifier = ClientCertificates::new(path, roots(path)?, provider, revocations, options)?;
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
        };
        let mut config = builder.with_single_cert(chain, key).map_err(refused)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // No session is resumed: each connection is checked against what is revoked and expired now. Connections live
        // for months, and official clients do not ask for it.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl fmt::Display for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.certificate.display(), self.key.display())?;
        for path in self.trusted_ca.iter().chain(&self.revocations) {
            write!(f, ", {}", path.display())?;
        }
        Ok(())
    }
}

/// All certificates of a file; at least one.
pub(super) fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refused = |error: &dyn fmt::Display| TlsError::file(flag, path, error);
    let read = CertificateDer::pem_file_iter(path).map_err(|error| refused(&error))?;
    let all = read.collect::<Result<Vec<_>, _>>().map_err(|error| refused(&error))?;
    if all.is_empty() { Err(refused(&"there is no certificate in it")) } else { Ok(all) }
}

pub(super) fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("trusted-ca-file", path)? {
        roots.add(certificate).map_err(|error| TlsError::file("trusted-ca-file", path, error))?;
    }
    Ok(roots)
}

pub(super) fn versions(versions: Versions) -> Vec<&'static rustls::SupportedProtocolVersion> {
    let tls12 = versions.tls12.then_some(&rustls::version::TLS12);
    versions.tls13.then_some(&rustls::version::TLS13).into_iter().chain(tls12).collect()
}

/// Ring's algorithms, with those suites of TLS 1.2 that were asked for.
pub(super) fn provider(options: &TlsOptions) -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    let wanted = |suite: &SupportedCipherSuite| match suite {
        SupportedCipherSuite::Tls13(_) => true,
        SupportedCipherSuite::Tls12(suite) => {
            let name = format!("{:?}", suite.common.suite);
            options.cipher_suites.is_empty() || options.cipher_suites.contains(&name.as_str())
        }
    };
    // Where only suites of TLS 1.3 are named, none of TLS 1.2 is left, as in Go.
    provider.cipher_suites.retain(wanted);
    provider
}
