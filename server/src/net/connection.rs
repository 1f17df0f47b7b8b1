//! One client connection: decrypts it where that is wanted, finds out whether it speaks HTTP/2 or HTTP/1, and drives it
//! until it closes, is idle beyond its keepalive, or the member stops. Does not look into requests.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::CONTENT_TYPE;
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use h2::{Ping, PingPong};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::accept::{Accepted, Role, Security};
use super::gateway::websocket::{self, UpgradeSlot};
use super::halves::{Body, Respond};
use super::io::{Io, Raw, Socket};
use super::lean::PREFACE;
use super::pings::{PingPolicy, PingScan};
use super::{FrontDoor, Thread, grpc, handshake, http, http2, lean};
use crate::config::{Http2Server, TransportOptions};
use crate::limits;

/// In the content type of calls.
const GRPC: &[u8] = b"application/grpc";
/// First byte of a TLS connection: a handshake record. No version of HTTP begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Who is at the other end of a connection, and what it is for.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Absent on unix sockets.
    pub peer: Option<SocketAddr>,
    pub role: Role,
    /// Whether the connection is encrypted.
    pub is_secure: bool,
    /// The user that the client's certificate stands for. Not for calls through the gateway.
    pub certificate_name: Option<Arc<str>>,
}

/// A connection that has shown what it is.
struct Arrived {
    socket: Socket,
    ahead: Bytes,
    is_http2: bool,
    caller: Caller,
}

/// Serves one connection from its first byte.
pub(crate) async fn serve<D: FrontDoor>(thread: Rc<Thread<D>>, accepted: Accepted) {
    let mut stopping = thread.stopping.clone();
    let arrived = tokio::select! {
        arrived = thread.newcomers.run(arrive(&thread, accepted)) => arrived.flatten(),
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    // Neither a silent nor a closed connection is worth a word: probes of load balancers look like that.
    let Some(Arrived { socket, ahead, is_http2, caller }) = arrived else { return };
    let (role, caller) = (caller.role, Rc::new(caller));
    if !is_http2 && role != Role::ClientGrpc {
        serve_http1(thread, Io::new(socket, ahead), caller).await;
    // Unencrypted, only gRPC speaks HTTP/2, as in etcd.
    } else if is_http2 && (role.serves_grpc() || caller.is_secure) {
        let pings = has_ping_policy(&caller).then(|| PingPolicy::new(thread.options.transport.keepalive_min_time));
        if thread.options.transport.http2_server == Http2Server::Lean {
            return lean::serve(thread, socket, ahead, caller, pings).await;
        }
        let io = Io::new_http2(socket, ahead, pings.clone().map(PingScan::new));
        serve_http2(thread, io, caller, pings).await;
    }
}

/// Brings a connection as far as that it is clear what it speaks; `None` if it does not get there.
async fn arrive<D: FrontDoor>(thread: &Rc<Thread<D>>, accepted: Accepted) -> Option<Arrived> {
    let Accepted { socket, peer, role, security } = accepted;
    let mut raw = match Raw::adopt(socket) {
        Ok(raw) => raw,
        Err(error) => {
            tracing::warn!(%error, "rejected connection on client endpoint");
            return None;
        }
    };
    let mut read = BytesMut::new();
    let is_secure = match security {
        Security::Plain => false,
        Security::Tls => true,
        Security::Either => {
            let more = tokio::time::timeout(limits::PREFACE_TIMEOUT, raw.read_buf(&mut read)).await;
            more.ok()?.ok()?;
            *read.first()? == TLS_HANDSHAKE
        }
    };
    let (mut socket, certificate_name) = if is_secure {
        handshake::accept(thread, raw, read.split().freeze(), peer).await?
    } else {
        (Socket::Plain(raw), None)
    };
    let first = tokio::time::timeout(limits::PREFACE_TIMEOUT, first_bytes(&mut socket, read));
    let (is_http2, ahead) = first.await.ok()??;
    Some(Arrived { socket, ahead, is_http2, caller: Caller { peer, role, is_secure, certificate_name } })
}

/// Reads, after what has been read, until it is clear which protocol it is; `None` if the connection closes before.
async fn first_bytes(socket: &mut Socket, mut bytes: BytesMut) -> Option<(bool, Bytes)> {
    loop {
        let length = bytes.len().min(PREFACE.len());
        if bytes[..length] != PREFACE[..length] {
            return Some((false, bytes.freeze()));
        }
        if length == PREFACE.len() {
            return Some((true, bytes.freeze()));
        }
        bytes.reserve(256);
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

async fn serve_http1<D: FrontDoor>(thread: Rc<Thread<D>>, io: Io, caller: Rc<Caller>) {
    let mut stopping = thread.stopping.clone();
    let asked = Rc::new(Cell::new(false));
    let upgrade = UpgradeSlot::default();
    let (seen, slot, served) = (asked.clone(), upgrade.clone(), thread.clone());
    let service = hyper::service::service_fn(move |request| {
        seen.set(true);
        let (thread, caller, slot) = (served.clone(), caller.clone(), slot.clone());
        let answer = async move { Ok::<_, Infallible>(http::respond(&thread, &caller, Some(&slot), request).await) };
        answer.boxed_local()
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // It runs from the end of the request before: this is the time between requests, too.
        .header_read_timeout(limits::HTTP1_IDLE_TIMEOUT)
        .max_buf_size(limits::HTTP1_HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(io), service);
    let never_asks = async {
        tokio::time::sleep(limits::HTTP1_HEADER_TIMEOUT).await;
        if asked.get() {
            std::future::pending::<()>().await;
        }
    };
    // Not shut down by it: the connection may go on as a WebSocket.
    let ended = tokio::select! {
        ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => Some(ended),
        () = never_asks => return,
        _ = stopping.wait_for(|stop| *stop) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP/1 connection ended");
        return;
    }
    let parts = connection.into_parts();
    let mut io = parts.io.into_inner();
    match upgrade.take() {
        Some(upgrade) => websocket::run(&thread, upgrade, io, parts.read_buf).await,
        // Fails only if the other end has gone.
        None => drop(tokio::time::timeout(limits::PREFACE_TIMEOUT, io.shutdown()).await),
    }
}

/// Where gRPC stands directly on the connection; beside HTTP it has no say in pings, as in etcd.
fn has_ping_policy(caller: &Caller) -> bool {
    caller.role == Role::ClientGrpc || !caller.is_secure
}

async fn serve_http2<D: FrontDoor>(thread: Rc<Thread<D>>, io: Io, caller: Rc<Caller>, pings: Option<Rc<PingPolicy>>) {
    let transport = thread.options.transport;
    let (received, says_too_many_pings) = (io.received(), io.says_too_many_pings());
    let handshake = h2::server::Builder::new()
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(transport.max_concurrent_streams)
        .max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(limits::CANCELLED_STREAMS_MAX)
        .max_concurrent_reset_streams(limits::ENDED_STREAMS_REMEMBERED_MAX)
        .max_local_error_reset_streams(Some(limits::STREAM_FAULTS_MAX))
        .data_frame_budget(limits::FRAME_OVERHEAD_BYTES_MAX)
        .handshake::<_, Bytes>(io);
    let mut connection = match tokio::time::timeout(limits::PREFACE_TIMEOUT, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, "HTTP/2 handshake failed");
            return;
        }
        Err(_) => return,
    };
    let ping = connection.ping_pong();
    let mut dead = pin!(keep_alive(ping, received, transport));
    let mut stopping = thread.stopping.clone();
    let mut stop = pin!(stopping.wait_for(|stop| *stop));
    let mut draining = false;
    let mut too_many_pings = pin!(async {
        match &pings {
            Some(pings) => pings.exceeded().await,
            None => std::future::pending().await,
        }
    });
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = &mut dead => {
                tracing::debug!("closing a connection that does not answer pings");
                return;
            }
            () = &mut too_many_pings, if !says_too_many_pings.get() => {
                tracing::debug!("closing a connection that pings too often");
                says_too_many_pings.set(true);
                connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            _ = &mut stop, if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) if caller.is_for_grpc(|| names_grpc(content_type(&request))) => {
                let open = pings.as_ref().map(PingPolicy::call);
                grpc::spawn(&thread, &caller, request, respond, open);
            }
            Some(Ok((request, respond))) => {
                let (request, respond) = (request.map(Body::H2), Respond::H2(respond));
                tokio::task::spawn_local(http2::handle(thread.clone(), caller.clone(), request, respond));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "HTTP/2 connection ended");
                return;
            }
            None => return,
        }
    }
}

impl Caller {
    /// Encrypted connections carry gRPC and the rest of HTTP side by side, told apart as etcd does: by what the content
    /// type names.
    pub fn is_for_grpc(&self, names_grpc: impl FnOnce() -> bool) -> bool {
        match self.role {
            Role::ClientGrpc => true,
            Role::Client => !self.is_secure || names_grpc(),
            Role::ClientHttp | Role::Metrics | Role::Peer => false,
        }
    }
}

/// Whether a content type is one of gRPC.
pub(crate) fn names_grpc(content_type: &[u8]) -> bool {
    content_type.windows(GRPC.len()).any(|window| window == GRPC)
}

fn content_type<B>(request: &::http::Request<B>) -> &[u8] {
    request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes())
}

/// Pings a connection that has been silent for the keepalive interval; returns when it does not answer in time.
async fn keep_alive(ping: Option<PingPong>, received: Rc<Cell<u64>>, transport: TransportOptions) {
    let (Some(mut ping), Some(interval)) = (ping, transport.keepalive_interval) else {
        return std::future::pending().await;
    };
    let mut before = received.get();
    let mut silent = 0;
    loop {
        tokio::time::sleep(interval.max(Duration::from_secs(1)) / limits::KEEPALIVE_LOOKS).await;
        silent += 1;
        if received.get() != before {
            (before, silent) = (received.get(), 0);
        }
        if silent < limits::KEEPALIVE_LOOKS {
            continue;
        }
        silent = 0;
        if ping.send_ping(Ping::opaque()).is_err() {
            return;
        }
        let pong = poll_fn(|cx| ping.poll_pong(cx));
        if tokio::time::timeout(transport.keepalive_timeout, pong).await.is_err() && received.get() == before {
            return;
        }
    }
}
