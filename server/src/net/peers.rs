//! Streams between members: dialed by peer URL, accepted on `--listen-peer-urls`, encrypted where the URL says so. All of it
//! runs on the thread "raft", whose runtime owns these sockets from the first byte on; nothing here blocks it. What members
//! say to each other is raft's.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use daymark_raft::{BoxFuture, Dialer, Handle, PeerStream};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::accept::{Accepted, AcceptedSocket, Bound, BoundSocket, Role, Security, SocketFile};
use super::peer_tls::PeerTls;
use super::peer_trust::{Explained, explain};
use crate::config::values::{self, Url};
use crate::limits;

/// First byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// Where other members are reached: their peer URLs by id.
pub type Addresses = Arc<dyn Fn(u64) -> Vec<String> + Send + Sync>;

/// Gives connections of the peer listener that are no member's to the net threads, once there are some.
pub type Strangers = Arc<OnceLock<Box<dyn Fn(Accepted) + Send + Sync>>>;

/// Dials members.
pub struct PeerDialer {
    addresses: Addresses,
    tls: Option<Arc<PeerTls>>,
}

impl PeerDialer {
    pub fn new(addresses: Addresses, tls: Option<Arc<PeerTls>>) -> Self {
        Self { addresses, tls }
    }
}

impl Dialer for PeerDialer {
    /// Tries each peer URL in turn; the error names them all. Its kind says `ConnectionRefused` if all of them refused.
    fn dial(&self, member_id: u64) -> BoxFuture<io::Result<PeerStream>> {
        let (urls, tls) = ((self.addresses)(member_id), self.tls.clone());
        Box::pin(async move {
            let mut errors = Vec::new();
            let mut kind = if urls.is_empty() { io::ErrorKind::NotConnected } else { io::ErrorKind::ConnectionRefused };
            for url in &urls {
                match dial_url(url, tls.as_deref()).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => {
                        if error.kind() != io::ErrorKind::ConnectionRefused {
                            kind = io::ErrorKind::NotConnected;
                        }
                        errors.push(format!("{url}: {error}"));
                    }
                }
            }
            if errors.is_empty() {
                errors.push(format!("no peer URL is known of member {member_id:x}"));
            }
            Err(io::Error::new(kind, errors.join("; ")))
        })
    }
}

/// A connection to a peer URL, encrypted if it says so. Needs a runtime with sockets and timers.
pub async fn dial_url(url: &str, tls: Option<&PeerTls>) -> io::Result<PeerStream> {
    let url = values::parse_url(url).map_err(io::Error::other)?;
    let connecting = tokio::time::timeout(limits::PEER_CONNECT_TIMEOUT, connect(&url));
    let stream = connecting.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if !url.scheme.is_secure() {
        return Ok(stream);
    }
    let tls = tls.ok_or_else(|| io::Error::other("it needs TLS; give --peer-cert-file and --peer-trusted-ca-file"))?;
    // The name that the other member's certificate must have; sockets in the file system are on this machine.
    let host = url.host_and_port().map_or("localhost", |(host, _)| host).to_owned();
    let name = ServerName::try_from(host).map_err(io::Error::other)?;
    let connector = TlsConnector::from(tls.fresh().await.client);
    let handshake = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, connector.connect(name, stream));
    let late = || io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long");
    let secure = handshake.await.map_err(|_| late())?.map_err(explain)?;
    Ok(Box::new(Explained(secure)))
}

async fn connect(url: &Url) -> io::Result<PeerStream> {
    match url.host_and_port() {
        None => Ok(Box::new(UnixStream::connect(&url.address).await?)),
        Some((host, port)) => {
            let stream = TcpStream::connect((host, port)).await?;
            prepare(&stream)?;
            Ok(Box::new(stream))
        }
    }
}

/// Small frames go out at once, and the system notices a machine that has gone without a word.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(limits::PEER_KEEPALIVE_TIME).with_interval(limits::PEER_KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Accepts members.
pub struct PeerDoor {
    raft: Handle,
    tls: Option<Arc<PeerTls>>,
    strangers: Strangers,
    /// Connections that have not been given to raft yet.
    arriving: AtomicUsize,
    /// The second in which rejections were logged last, and how many.
    logged: Mutex<(Instant, u64)>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, #[expect(dead_code, reason = "removes the file at the end")] SocketFile),
}

enum Arrived {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl PeerDoor {
    pub fn new(raft: Handle, tls: Option<Arc<PeerTls>>, strangers: Strangers) -> Arc<Self> {
        Arc::new(Self { raft, tls, strangers, arriving: AtomicUsize::new(0), logged: Mutex::new((Instant::now(), 0)) })
    }

    /// Accepts on these listeners until raft ends.
    pub fn listen(self: &Arc<Self>, bound: Vec<Bound>) {
        for bound in bound {
            let door = self.clone();
            self.raft.spawn_io(Box::pin(async move {
                let (address, security) = (bound.address, bound.security);
                let listener = match bound.socket {
                    BoundSocket::Tcp(listener) => TcpListener::from_std(listener).map(Listener::Tcp),
                    BoundSocket::Unix(listener, file) => {
                        UnixListener::from_std(listener).map(|listener| Listener::Unix(listener, file))
                    }
                };
                match listener {
                    Ok(listener) => door.accept_all(listener, security).await,
                    Err(error) => tracing::error!(%error, address, "cannot serve a listener of peers"),
                }
            }));
        }
    }

    async fn accept_all(self: Arc<Self>, listener: Listener, security: Security) {
        loop {
            let arrived = match &listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Arrived::Tcp(stream, peer)),
                Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Arrived::Unix(stream)),
            };
            match arrived {
                Ok(arrived) => self.take(arrived, security),
                Err(error) => {
                    // Out of files, mostly: ask again when some may have been closed.
                    tracing::warn!(%error, "cannot accept a connection of a member");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn take(self: &Arc<Self>, arrived: Arrived, security: Security) {
        if self.arriving.fetch_add(1, Ordering::Relaxed) >= limits::PEERS_ARRIVING_MAX {
            self.arriving.fetch_sub(1, Ordering::Relaxed);
            let limit = limits::PEERS_ARRIVING_MAX as u64;
            return tracing::warn!(limit, "rejected connection on peer endpoint: too many have not said who they are");
        }
        let door = self.clone();
        self.raft.spawn_io(Box::pin(async move {
            let remote = match &arrived {
                Arrived::Tcp(_, remote) => remote.to_string(),
                Arrived::Unix(_) => String::new(),
            };
            match door.arrive(arrived, security).await {
                Ok(Some(stream)) => door.raft.accept_peer(stream),
                Ok(None) => {}
                Err(error) => door.log_rejected(&remote, &error),
            }
            door.arriving.fetch_sub(1, Ordering::Relaxed);
        }));
    }

    /// Not more often than somebody can read.
    fn log_rejected(&self, remote: &str, error: &io::Error) {
        let mut logged = self.logged.lock();
        if logged.0.elapsed() >= Duration::from_secs(1) {
            *logged = (Instant::now(), 0);
        }
        logged.1 += 1;
        if logged.1 <= limits::HANDSHAKE_FAILURES_LOGGED {
            tracing::warn!("remote-addr" = remote, %error, "rejected connection on peer endpoint");
        }
    }

    /// Brings a connection as far as that raft can greet it; `None` if it is somebody else's.
    async fn arrive(&self, arrived: Arrived, security: Security) -> io::Result<Option<PeerStream>> {
        let (stream, remote) = match arrived {
            Arrived::Unix(stream) if security == Security::Plain => return Ok(Some(Box::new(stream))),
            Arrived::Unix(stream) => return self.secure(stream, None).await.map(Some),
            Arrived::Tcp(stream, remote) => (stream, remote),
        };
        prepare(&stream)?;
        if security == Security::Tls {
            return self.secure(stream, Some(remote)).await.map(Some);
        }
        let looking = tokio::time::timeout(limits::PREFACE_TIMEOUT, first_bytes(&stream));
        let first = looking.await.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "it said nothing"))??;
        match first {
            [TLS_HANDSHAKE, ..] if security == Security::Either => self.secure(stream, Some(remote)).await.map(Some),
            // The length of a hello, which is short; text looks different.
            [_, _, 0, 0] => Ok(Some(Box::new(stream))),
            _ => {
                let socket = AcceptedSocket::Tcp(stream.into_std()?);
                if let Some(give) = self.strangers.get() {
                    give(Accepted { socket, peer: Some(remote), role: Role::Peer, security: Security::Plain });
                }
                Ok(None)
            }
        }
    }

    async fn secure<S>(&self, stream: S, remote: Option<SocketAddr>) -> io::Result<PeerStream>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let tls = self.tls.as_ref().ok_or_else(|| io::Error::other("no certificate for members has been read"))?;
        let acceptor = TlsAcceptor::from(tls.fresh().await.server);
        let accepting = acceptor.accept(stream).into_fallible();
        let handshake = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, accepting);
        let late = || io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long");
        let stream = match handshake.await.map_err(|_| late())? {
            Ok(stream) => stream,
            Err((error, refused)) => {
                hang_up(refused).await;
                return Err(explain(error));
            }
        };
        if let Some(remote) = remote
            && let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first())
        {
            let checking = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, tls.check_origin(certificate, remote.ip()));
            checking.await.map_err(|_| late())??;
        }
        Ok(Box::new(Explained(stream)))
    }
}

/// Ends a connection so that the other end reads the alert that says why: a reset for what it has sent since would
/// overtake it.
async fn hang_up(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ending = async {
        stream.shutdown().await?;
        let mut rest = stream.take(limits::REFUSED_BYTES_READ_MAX);
        tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
    };
    // Whoever does not listen need not hear it.
    let _ = tokio::time::timeout(limits::REFUSED_TIMEOUT, ending).await;
}

/// The first four bytes, left where they are.
async fn first_bytes(stream: &TcpStream) -> io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    loop {
        match stream.peek(&mut bytes).await? {
            4.. => return Ok(bytes),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            // What is there is there to be read: waiting for more is up to us.
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}
