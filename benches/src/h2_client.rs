//! A gRPC client for the hot path: HTTP/2 by `h2`, gRPC's framing by hand, no layers and no tasks per call. Unary calls
//! and open streams, without compression, deadlines or metadata.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use daymark_client::dial::{Dialer, Stream};
use h2::{
    RecvStream, SendStream,
    client::{Builder, SendRequest},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header, request::Parts};
use percent_encoding::percent_decode;
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Mutex,
    time,
};

/// Windows large enough that a server never waits for the harness.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a broken connection is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes before each gRPC message: a compression flag and the length.
const PREFIX_BYTES: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The server's answer.
    Status { code: u32, message: String },
    /// The connection or the stream broke.
    Broken(String),
    /// An answer that is not gRPC.
    Protocol(&'static str),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status { code, message } => write!(f, "{message} (code {code})"),
            Self::Broken(what) => write!(f, "connection: {what}"),
            Self::Protocol(what) => write!(f, "protocol: {what}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<h2::Error> for CallError {
    fn from(error: h2::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// One HTTP/2 connection, opened again when it breaks.
pub struct Connection {
    dialer: Dialer,
    current: Mutex<Sender>,
}

/// A handle on a connection as it was when it was opened last.
#[derive(Clone)]
pub struct Sender {
    requests: SendRequest<Bytes>,
    generation: u64,
}

impl Connection {
    /// Connects to a server.
    pub async fn open(dialer: &Dialer) -> Result<Arc<Self>, CallError> {
        let requests = connect(dialer).await?;
        Ok(Arc::new(Self { dialer: dialer.clone(), current: Mutex::new(Sender { requests, generation: 0 }) }))
    }

    pub async fn sender(&self) -> Sender {
        self.current.lock().await.clone()
    }

    /// Replaces a sender that broke: the first who asks connects, the others get its connection.
    pub async fn reopen(&self, broken: &mut Sender) -> Result<(), CallError> {
        let mut current = self.current.lock().await;
        if current.generation == broken.generation {
            time::sleep(RECONNECT_PAUSE).await;
            let requests = connect(&self.dialer).await?;
            *current = Sender { requests, generation: broken.generation + 1 };
        }
        *broken = current.clone();
        Ok(())
    }

    /// The head of every request of one method, prepared once.
    pub fn head(&self, path: &str) -> Parts {
        let uri = Uri::builder().scheme(self.dialer.scheme()).authority(self.dialer.authority()).path_and_query(path);
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri.build().expect("address and path were checked");
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        request.into_parts().0
    }
}

/// A socket that takes one buffer at a time. Where it can take several, `h2` writes each message of more than 256 bytes by
/// itself; so messages of up to 1024 bytes are copied, and all that are ready go out at once.
struct OneBuffer(Stream);

impl AsyncRead for OneBuffer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for OneBuffer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

async fn connect(dialer: &Dialer) -> Result<SendRequest<Bytes>, CallError> {
    let attempt = async {
        let socket = dialer.connect().await.map_err(|e| CallError::Broken(e.to_string()))?;
        let (requests, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(OneBuffer(socket))
            .await?;
        // Its failure reaches every call that is under way.
        tokio::spawn(connection);
        Ok(requests)
    };
    let outcome = time::timeout(CONNECT_TIMEOUT, attempt).await;
    outcome.unwrap_or_else(|_| Err(CallError::Broken(format!("no connection within {CONNECT_TIMEOUT:?}"))))
}

/// A message as it goes over the wire.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + length);
    bytes.push(0);
    bytes.extend_from_slice(&u32::try_from(length).expect("messages are far below 4 GiB").to_be_bytes());
    message.encode_raw(&mut bytes);
    bytes.into()
}

impl Sender {
    /// Sends one framed message and returns the bytes of the message that answers it.
    pub async fn unary(&mut self, head: &Parts, framed: Bytes) -> Result<Bytes, CallError> {
        let (answer, mut upload) = self.start(head, false).await?;
        upload.send_data(framed, true)?;
        let (parts, mut body) = answer.await?.into_parts();
        if parts.headers.contains_key(GRPC_STATUS) {
            check_status(&parts.headers)?;
        }
        let mut received = Bytes::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            received = join(received, chunk);
        }
        let trailers = body.trailers().await?.ok_or(CallError::Protocol("answer without trailers"))?;
        check_status(&trailers)?;
        message_of(received)
    }

    /// Opens a stream in both directions.
    pub async fn stream(&mut self, head: &Parts, first: Bytes) -> Result<Duplex, CallError> {
        let (answer, mut upload) = self.start(head, false).await?;
        // Sent before the answer is awaited: a server may send its headers only with its first message.
        upload.send_data(first, false)?;
        let (parts, body) = answer.await?.into_parts();
        if parts.headers.contains_key(GRPC_STATUS) {
            check_status(&parts.headers)?;
        }
        Ok(Duplex { upload, body, buffer: BytesMut::new() })
    }

    async fn start(
        &mut self,
        head: &Parts,
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), CallError> {
        poll_fn(|cx| self.requests.poll_ready(cx)).await?;
        Ok(self.requests.send_request(Request::from_parts(head.clone(), ()), end)?)
    }
}

/// An open stream.
pub struct Duplex {
    upload: SendStream<Bytes>,
    body: RecvStream,
    /// Received, not yet handed out.
    buffer: BytesMut,
}

impl Duplex {
    pub fn send(&mut self, framed: Bytes) -> Result<(), CallError> {
        Ok(self.upload.send_data(framed, false)?)
    }

    /// The next message; none after the server has ended the stream well.
    pub async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = take_message(&mut self.buffer)? {
                return Ok(Some(message));
            }
            let Some(chunk) = self.body.data().await else {
                let trailers = self.body.trailers().await?.ok_or(CallError::Protocol("stream without trailers"))?;
                return check_status(&trailers).map(|()| None);
            };
            let chunk = chunk?;
            self.body.flow_control().release_capacity(chunk.len())?;
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

/// Two chunks as one; nearly always the first is empty and nothing is copied.
fn join(left: Bytes, right: Bytes) -> Bytes {
    if left.is_empty() {
        return right;
    }
    let mut both = BytesMut::with_capacity(left.len() + right.len());
    both.extend_from_slice(&left);
    both.extend_from_slice(&right);
    both.freeze()
}

/// The only message of a unary answer.
fn message_of(mut framed: Bytes) -> Result<Bytes, CallError> {
    match length_of(&framed)? {
        Some(length) if framed.len() == PREFIX_BYTES + length => {
            framed.advance(PREFIX_BYTES);
            Ok(framed)
        }
        _ => Err(CallError::Protocol("answer is not one whole message")),
    }
}

fn take_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, CallError> {
    match length_of(buffer)? {
        Some(length) if buffer.len() >= PREFIX_BYTES + length => {
            buffer.advance(PREFIX_BYTES);
            Ok(Some(buffer.split_to(length).freeze()))
        }
        _ => Ok(None),
    }
}

/// Length of the message that begins here, once its prefix is complete.
fn length_of(framed: &[u8]) -> Result<Option<usize>, CallError> {
    match framed {
        [0, a, b, c, d, ..] => Ok(Some(u32::from_be_bytes([*a, *b, *c, *d]) as usize)),
        [0, ..] | [] => Ok(None),
        _ => Err(CallError::Protocol("compressed answer")),
    }
}

fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let status = headers.get(GRPC_STATUS).ok_or(CallError::Protocol("answer without grpc-status"))?;
    if status.as_bytes() == b"0" {
        return Ok(());
    }
    let code = status.to_str().ok().and_then(|text| text.parse().ok());
    let message = headers.get(GRPC_MESSAGE).map_or(&b""[..], HeaderValue::as_bytes);
    Err(CallError::Status {
        code: code.ok_or(CallError::Protocol("grpc-status is not a number"))?,
        message: percent_decode(message).decode_utf8_lossy().into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_out_of_any_chunks() {
        let mut wire = BytesMut::new();
        for text in ["", "a", "longer than a prefix"] {
            wire.extend_from_slice(&frame(&text.to_owned()));
        }
        let (mut buffer, mut messages) = (BytesMut::new(), Vec::new());
        for byte in wire {
            buffer.extend_from_slice(&[byte]);
            while let Some(message) = take_message(&mut buffer).expect("valid") {
                messages.push(String::decode(message).expect("a string message"));
            }
        }
        assert_eq!(messages, ["", "a", "longer than a prefix"]);
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_unary_answer_is_exactly_one_message() {
        let framed = frame(&"x".to_owned());
        assert_eq!(message_of(framed.clone()).map(|m| m.len()), Ok(3));
        assert!(message_of(framed.slice(..framed.len() - 1)).is_err());
        assert!(message_of(join(framed.clone(), framed)).is_err());
        assert!(message_of(Bytes::new()).is_err());
        assert!(message_of(Bytes::from_static(&[1, 0, 0, 0, 0])).is_err(), "compressed");
    }

    #[test]
    fn status_carries_the_servers_words() {
        let mut headers = HeaderMap::new();
        assert!(check_status(&headers).is_err());
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert_eq!(check_status(&headers), Ok(()));
        headers.insert("grpc-status", HeaderValue::from_static("3"));
        headers.insert("grpc-message", HeaderValue::from_static("etcdserver: 100%25 wrong"));
        let expected = CallError::Status { code: 3, message: "etcdserver: 100% wrong".to_owned() };
        assert_eq!(check_status(&headers), Err(expected));
    }
}
