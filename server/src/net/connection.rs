//! One client connection: finds out whether it speaks HTTP/2 or HTTP/1 and drives it until it closes, is idle beyond
//! its keepalive, or the member stops. Does not look into requests.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use h2::{Ping, PingPong};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::accept::{Accepted, Role};
use super::gateway::websocket::{self, UpgradeSlot};
use super::io::{Io, Socket};
use super::{FrontDoor, Thread, grpc, http};
use crate::config::TransportOptions;
use crate::limits;

/// With these bytes every HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves one connection from its first byte.
pub(crate) async fn serve<D: FrontDoor>(thread: Rc<Thread<D>>, accepted: Accepted) {
    let Accepted { socket, peer, role } = accepted;
    let mut socket = match Socket::adopt(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(%error, "rejected connection on client endpoint");
            return;
        }
    };
    let mut stopping = thread.stopping.clone();
    let first = tokio::select! {
        first = tokio::time::timeout(limits::PREFACE_TIMEOUT, first_bytes(&mut socket)) => first,
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    // Neither a silent nor a closed connection is worth a word: probes of load balancers look like that.
    let Ok(Some((is_http2, ahead))) = first else { return };
    match (is_http2, role) {
        (true, Role::Client) => serve_http2(thread, Io::new_http2(socket, ahead), peer).await,
        (true, _) => {}
        (false, _) => serve_http1(thread, Io::new(socket, ahead), role, peer).await,
    }
}

/// Reads until it is clear which protocol it is; `None` if the connection closes before.
async fn first_bytes(socket: &mut Socket) -> Option<(bool, Bytes)> {
    let mut bytes = BytesMut::with_capacity(256);
    loop {
        if socket.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let length = bytes.len().min(PREFACE.len());
        if bytes[..length] != PREFACE[..length] {
            return Some((false, bytes.freeze()));
        }
        if length == PREFACE.len() {
            return Some((true, bytes.freeze()));
        }
    }
}

async fn serve_http1<D: FrontDoor>(thread: Rc<Thread<D>>, io: Io, role: Role, peer: Option<SocketAddr>) {
    let mut stopping = thread.stopping.clone();
    let asked = Rc::new(Cell::new(false));
    let upgrade = UpgradeSlot::default();
    let (seen, slot, served) = (asked.clone(), upgrade.clone(), thread.clone());
    let service = hyper::service::service_fn(move |request| {
        seen.set(true);
        let (thread, slot) = (served.clone(), slot.clone());
        let answer = async move { Ok::<_, Infallible>(http::respond(&thread, role, peer, Some(&slot), request).await) };
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

async fn serve_http2<D: FrontDoor>(thread: Rc<Thread<D>>, io: Io, peer: Option<std::net::SocketAddr>) {
    let transport = thread.options.transport;
    let received = io.received();
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
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = connection.accept() => accepted,
            () = &mut dead => {
                tracing::debug!("closing a connection that does not answer pings");
                return;
            }
            _ = &mut stop, if !draining => {
                draining = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match accepted {
            Some(Ok((request, respond))) => {
                tokio::task::spawn_local(grpc::handle(thread.clone(), peer, request, respond));
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "HTTP/2 connection ended");
                return;
            }
            None => return,
        }
    }
}

/// Pings a connection that has been silent for the keepalive interval; returns when it does not answer in time.
async fn keep_alive(ping: Option<PingPong>, received: Rc<Cell<u64>>, transport: TransportOptions) {
    let (Some(mut ping), Some(interval)) = (ping, transport.keepalive_interval) else {
        return std::future::pending().await;
    };
    loop {
        let before = received.get();
        tokio::time::sleep(interval.max(Duration::from_secs(1))).await;
        if received.get() != before {
            continue;
        }
        if ping.send_ping(Ping::opaque()).is_err() {
            return;
        }
        let pong = poll_fn(|cx| ping.poll_pong(cx));
        if tokio::time::timeout(transport.keepalive_timeout, pong).await.is_err() && received.get() == before {
            return;
        }
    }
}
