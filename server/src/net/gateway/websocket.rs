//! WebSockets before the gateway, as etcd has them: each message of the client is a piece of a request body, each line of
//! the response a message. Browsers can set no headers here, so a token may come as a sub-protocol or a cookie.

use std::cell::Cell;
use std::rc::Rc;

use ::http::header::{self, HeaderValue};
use ::http::{HeaderMap, Method, Response, StatusCode, request};
use bytes::Bytes;
use futures_util::{SinkExt, Stream, StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, Utf8Bytes};

use super::super::body::ResponseBody;
use super::super::{FrontDoor, Thread};
use super::Asked;
use crate::error::Error;
use crate::limits;
use crate::request::Context;

/// A connection that will be a WebSocket once its response is out.
pub(crate) struct Upgrade {
    path: String,
    headers: HeaderMap,
    context: Context,
}

/// Where the upgrade of an HTTP/1 connection is left for whoever drives it.
pub(crate) type UpgradeSlot = Rc<Cell<Option<Upgrade>>>;

/// Whether a request asks for a WebSocket.
pub(crate) fn is_wanted(headers: &HeaderMap) -> bool {
    has_token(headers, header::CONNECTION, "upgrade") && has_token(headers, header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name);
    let mut values = values.iter().filter_map(|value| value.to_str().ok());
    values.any(|value| value.split(',').any(|token| token.trim().eq_ignore_ascii_case(wanted)))
}

/// Answers a request for a WebSocket; leaves what to do with the connection in the slot.
pub(crate) fn accept(
    head: &request::Parts,
    path: String,
    context: Context,
    slot: &UpgradeSlot,
) -> Response<ResponseBody> {
    let key = head.headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty());
    let refusal = match key {
        _ if head.method != Method::GET => StatusCode::METHOD_NOT_ALLOWED,
        Some(_) if !has_token(&head.headers, header::SEC_WEBSOCKET_VERSION, "13") => StatusCode::BAD_REQUEST,
        None => StatusCode::BAD_REQUEST,
        Some(key) => {
            slot.set(Some(Upgrade { path, headers: forwarded(&head.headers), context }));
            return switching(key, &head.headers);
        }
    };
    let text = format!("{}\n", refusal.canonical_reason().unwrap_or_default());
    let mut response = Response::new(ResponseBody::Whole(text.into()));
    *response.status_mut() = refusal;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

fn switching(key: &HeaderValue, asked: &HeaderMap) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Whole(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    // Base64, which is always a header.
    if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if asked.get(header::SEC_WEBSOCKET_PROTOCOL).is_some_and(|value| value.as_bytes().starts_with(b"Bearer")) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The headers that a request through a WebSocket has.
fn forwarded(asked: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in [header::ORIGIN, header::REFERER] {
        if let Some(value) = asked.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    let protocol = asked.get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    let bearer = protocol.and_then(|value| value.split_once("Bearer,")).map(|(_, token)| token.trim());
    let cookies = asked.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let cookie = cookies.flat_map(|value| value.split(';')).find_map(|pair| pair.trim().strip_prefix("token="));
    // As in etcd, the cookie wins.
    if let Some(token) = cookie.or(bearer)
        && let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}"))
    {
        headers.insert(header::AUTHORIZATION, value);
    }
    headers
}

/// Serves a WebSocket until either side ends it. `ahead` has been read already.
pub(crate) async fn run<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    upgrade: Upgrade,
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    ahead: Bytes,
) {
    let bytes_max = thread.options.transport.message_bytes_max * limits::JSON_BYTES_PER_MESSAGE_BYTE;
    let config = WebSocketConfig::default()
        .max_message_size(Some(bytes_max))
        .max_frame_size(Some(bytes_max))
        .read_buffer_size(4096);
    let socket = WebSocketStream::from_partially_read(io, ahead.to_vec(), Role::Server, Some(config)).await;
    let (mut out, messages) = socket.split();
    let (sender, receiver) = mpsc::channel(limits::WEBSOCKET_QUEUE_MAX);
    let has_asked = Cell::new(false);
    let write = async {
        let body = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message: Bytes| (Ok::<_, Error>(message), receiver))
        });
        let Upgrade { path, headers, context } = upgrade;
        let asked = Asked { method: &Method::POST, path: &path, headers: &headers, context, is_framed: true };
        let response = super::serve(thread, asked, body.boxed_local()).await;
        // Fails if the other end has gone.
        let _ = send_lines(&mut out, response.into_body()).await;
    };
    let mut stopping = thread.stopping.clone();
    let stop_unasked = async {
        let _ = stopping.wait_for(|stop| *stop).await;
        // A call under way ends by itself.
        if has_asked.get() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = receive(messages, sender, &has_asked) => {}
        () = write => {}
        () = stop_unasked => {}
    }
    // Says or answers goodbye, if anybody is left to hear it.
    let _ = tokio::time::timeout(limits::PREFACE_TIMEOUT, out.close()).await;
}

/// Hands on messages until the other end closes, goes, or breaks the protocol.
async fn receive(
    mut messages: impl Stream<Item = Result<Message, SocketError>> + Unpin,
    sender: mpsc::Sender<Bytes>,
    has_asked: &Cell<bool>,
) {
    while let Some(message) = messages.next().await {
        let piece: Bytes = match message {
            Ok(Message::Text(text)) => text.into(),
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Close(_)) => return,
            Ok(_) => continue,
            Err(error) => return tracing::debug!(%error, "a WebSocket ended"),
        };
        has_asked.set(true);
        for piece in [piece, Bytes::from_static(b"\n")] {
            if sender.send(piece).await.is_err() {
                // Nothing reads requests any more; what is left to say still goes out, as long as the other end is there.
                while let Some(Ok(_)) = messages.next().await {}
                return;
            }
        }
    }
}

async fn send_lines(
    out: &mut (impl SinkExt<Message, Error = SocketError> + Unpin),
    body: ResponseBody,
) -> Result<(), SocketError> {
    let mut pieces = match body {
        ResponseBody::Whole(bytes) => stream::iter([bytes]).boxed_local(),
        ResponseBody::Pieces(pieces) => pieces,
    };
    while let Some(piece) = pieces.next().await {
        // One line each, and JSON is UTF-8.
        let line = piece.slice(..piece.len() - usize::from(piece.ends_with(b"\n")));
        if let Ok(text) = Utf8Bytes::try_from(line)
            && !text.is_empty()
        {
            out.send(Message::Text(text)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs =
            pairs.iter().map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        pairs.collect()
    }

    #[test]
    fn tokens_come_as_a_sub_protocol_or_a_cookie() {
        for (given, wanted) in [
            (&[][..], None),
            (&[("sec-websocket-protocol", "Bearer, abc")], Some("Bearer abc")),
            (&[("sec-websocket-protocol", "Bearer,abc")], Some("Bearer abc")),
            (&[("sec-websocket-protocol", "chat")], None),
            (&[("cookie", "a=b; token=xyz")], Some("Bearer xyz")),
            (&[("cookie", "token=xyz"), ("sec-websocket-protocol", "Bearer, abc")], Some("Bearer xyz")),
            (&[("authorization", "abc")], None),
        ] {
            let forwarded = forwarded(&headers(given));
            let authorization = forwarded.get(header::AUTHORIZATION).map(|value| value.to_str().expect("text"));
            assert_eq!(authorization, wanted, "{given:?}");
        }
    }

    #[test]
    fn an_upgrade_needs_both_headers() {
        assert!(is_wanted(&headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket")])));
        assert!(!is_wanted(&headers(&[("connection", "keep-alive"), ("upgrade", "websocket")])));
        assert!(!is_wanted(&headers(&[("connection", "upgrade"), ("upgrade", "h2c")])));
    }
}
