//! Listeners: opened before anything else is touched, so that a taken port leaves no trace; accepting later, on the
//! first net thread, which hands each connection to the thread that has fewest.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};

use super::Job;
use crate::config::SocketOptions;
use crate::config::values::Url;
use crate::limits;
use crate::metrics::Metrics;

/// What is served on a listener.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// gRPC and all of HTTP.
    Client,
    /// gRPC alone, where HTTP has listeners of its own.
    ClientGrpc,
    /// HTTP alone.
    ClientHttp,
    /// Metrics and health.
    Metrics,
    /// Other members; of HTTP the version only.
    Peer,
}

impl Role {
    /// Whether all of HTTP that clients may ask is answered.
    pub(crate) fn serves_http(self) -> bool {
        matches!(self, Self::Client | Self::ClientHttp)
    }

    /// Whether gRPC is answered.
    pub(crate) fn serves_grpc(self) -> bool {
        matches!(self, Self::Client | Self::ClientGrpc)
    }
}

/// How connections of a listener begin.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    Plain,
    Tls,
    /// As the first byte says: the address is listened on with http and with https.
    Either,
}

/// An open listener that does not accept yet.
#[derive(Debug)]
pub struct Bound {
    pub(super) socket: BoundSocket,
    role: Role,
    pub(super) security: Security,
    /// `host:port` or the name of the socket, as configured.
    pub(super) address: String,
}

#[derive(Debug)]
pub(super) enum BoundSocket {
    Tcp(std::net::TcpListener),
    Unix(StdUnixListener, SocketFile),
}

/// The file of a unix socket, removed when nobody listens on it any more.
#[derive(Debug)]
pub(super) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Only tidiness: the next start replaces a dead socket.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Bound {
    /// The address, with the port that the system chose if port 0 was asked for. `None` for sockets in the file system.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match &self.socket {
            BoundSocket::Tcp(listener) => listener.local_addr().ok(),
            BoundSocket::Unix(..) => None,
        }
    }

    /// What is served on it.
    pub fn role(&self) -> Role {
        self.role
    }

    /// `host:port` or the name of the socket, as configured.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether connections may be, or must be, encrypted.
    pub fn is_secure(&self) -> bool {
        self.security != Security::Plain
    }

    /// Whether connections may go unencrypted.
    pub fn is_plain(&self) -> bool {
        self.security != Security::Tls
    }
}

/// A listener could not be opened.
#[derive(Debug)]
pub struct BindError {
    url: String,
    source: io::Error,
}

impl BindError {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self.source.kind() {
            io::ErrorKind::AddrInUse => "stop the process that listens there, or choose another listen URL",
            io::ErrorKind::AddrNotAvailable => "listen on an address of this machine, or on 0.0.0.0",
            io::ErrorKind::PermissionDenied => "choose a port above 1023, or give the process the right to it",
            _ => "correct the listen URL",
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.url, self.source)
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Opens listeners for all URLs, the same address once.
pub fn bind(urls: &[Url], role: Role, options: SocketOptions) -> Result<Vec<Bound>, BindError> {
    let mut bound: Vec<Bound> = Vec::new();
    for url in urls {
        let security = if url.scheme.is_secure() { Security::Tls } else { Security::Plain };
        if let Some(other) = bound.iter_mut().find(|other| other.address == url.address) {
            if other.security != security {
                other.security = Security::Either;
            }
            continue;
        }
        let socket = match url.host_and_port() {
            Some((host, port)) => bind_tcp(host, port, options).map(BoundSocket::Tcp),
            None => {
                let path = PathBuf::from(&url.address);
                bind_unix(&path).map(|listener| BoundSocket::Unix(listener, SocketFile(path)))
            }
        };
        let socket = socket.map_err(|source| BindError { url: url.to_string(), source })?;
        bound.push(Bound { socket, role, security, address: url.address.clone() });
    }
    Ok(bound)
}

fn bind_tcp(host: &str, port: u16, options: SocketOptions) -> io::Result<std::net::TcpListener> {
    if !host.is_empty() {
        return bind_address(resolve(host, port)?, options);
    }
    // No host means all addresses: both families where the machine has both.
    let any6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    bind_address(any6, options).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Err(error),
        _ => bind_address(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port), options),
    })
}

/// IPv4 first, as Go does for `localhost`.
fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    let first = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    first.copied().ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{host} has no address")))
}

fn bind_address(address: SocketAddr, options: SocketOptions) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // As Go does always: a restarted member must not wait for old connections to time out. On Linux it does not let two
    // processes listen on one port; that takes the second option.
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// A socket file left behind by a process that has died is replaced; one that answers is in use.
fn bind_unix(path: &Path) -> io::Result<StdUnixListener> {
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::from(io::ErrorKind::AddrInUse));
        }
        std::fs::remove_file(path)?;
    }
    let listener = StdUnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A connection on its way to the thread that will own it.
pub struct Accepted {
    pub(crate) socket: AcceptedSocket,
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) role: Role,
    pub(crate) security: Security,
}

pub(crate) enum AcceptedSocket {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> io::Result<(AcceptedSocket, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((AcceptedSocket::Tcp(stream.into_std()?), Some(peer)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((AcceptedSocket::Unix(stream.into_std()?), None))
            }
        }
    }
}

/// Accepts until the member stops.
pub(crate) async fn run(
    bound: Bound,
    jobs: Vec<mpsc::Sender<Job>>,
    metrics: Arc<Metrics>,
    mut stopping: watch::Receiver<bool>,
) {
    let Bound { socket, role, security, address } = bound;
    // The file is removed also when this thread ends before this function does.
    let (listener, _file) = match socket {
        BoundSocket::Tcp(listener) => (TcpListener::from_std(listener).map(Listener::Tcp), None),
        BoundSocket::Unix(listener, file) => (UnixListener::from_std(listener).map(Listener::Unix), Some(file)),
    };
    match listener {
        Ok(listener) => {
            tokio::select! {
                () = accept_all(&listener, role, security, &jobs, &metrics) => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
        }
        Err(error) => tracing::error!(%error, address, "cannot serve a listener"),
    }
}

async fn accept_all(
    listener: &Listener,
    role: Role,
    security: Security,
    jobs: &[mpsc::Sender<Job>],
    metrics: &Metrics,
) {
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => hand_out(Accepted { socket, peer, role, security }, jobs, metrics),
            Err(error) => {
                // Out of files, mostly: ask again when some may have been closed.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Gives a connection to the thread that has fewest, or drops it when there are too many.
pub(super) fn hand_out(accepted: Accepted, jobs: &[mpsc::Sender<Job>], metrics: &Metrics) {
    let counts = (0..jobs.len()).map(|thread| metrics.net(thread).connections.load(Ordering::Relaxed));
    let counts: Vec<u64> = counts.collect();
    let remote = accepted.peer.map(|peer| peer.to_string()).unwrap_or_default();
    if counts.iter().sum::<u64>() >= limits::CONNECTIONS_MAX as u64 {
        tracing::warn!(remote, limit = limits::CONNECTIONS_MAX as u64, "rejected connection: too many are open");
        return;
    }
    let fewest = (0..counts.len()).min_by_key(|thread| counts[*thread]).unwrap_or(0);
    metrics.net(fewest).connections.fetch_add(1, Ordering::Relaxed);
    if jobs[fewest].try_send(Job::Connection(accepted)).is_err() {
        metrics.net(fewest).connections.fetch_sub(1, Ordering::Relaxed);
        tracing::warn!(remote, "rejected connection: too many are waiting to be served");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::parse_url;

    #[test]
    fn a_taken_port_is_an_error_with_a_remedy() {
        let any = parse_url("http://127.0.0.1:0").expect("url");
        let first = bind(&[any], Role::Client, SocketOptions::default()).expect("free port");
        let port = first[0].local_address().expect("address").port();
        let taken = parse_url(&format!("http://127.0.0.1:{port}")).expect("url");
        let error = bind(&[taken], Role::Client, SocketOptions::default()).expect_err("taken");
        assert!(error.to_string().contains("in use"), "{error}");
        assert!(error.remedy().contains("stop the process"));
    }

    #[test]
    fn a_dead_unix_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("m0");
        drop(bind_unix(&path).expect("first"));
        let live = bind_unix(&path).expect("the file is there, nobody listens");
        assert_eq!(bind_unix(&path).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        drop(live);
    }

    #[test]
    fn localhost_means_ipv4_and_no_host_means_all() {
        assert!(resolve("localhost", 1).expect("localhost").is_ipv4());
        let all = bind_tcp("", 0, SocketOptions::default()).expect("all");
        assert!(all.local_addr().expect("address").ip().is_unspecified());
    }
}
