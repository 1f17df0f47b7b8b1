//! One HTTP/2 connection over which any method is called as anybody: the same connection for all callers, so that what a
//! server remembers of one must not help another. Only what was answered is told, not what a client would make of it.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, HeaderValue, Request};
use percent_encoding::percent_decode;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use crate::wire::frame;

const ANSWER_MAX: Duration = Duration::from_secs(10);

/// When a call counts as answered.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// With its status.
    Unary,
    /// With its first message, or its status.
    ServerStream,
    /// The same, and the caller does not end its half before.
    Bidi,
}

/// What came back: a message, or gRPC's code and text.
pub type Answer = Result<Bytes, (u16, String)>;

/// A connection to one server.
pub struct Connection {
    /// How long an answer may take.
    pub patience: Duration,
    sender: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects without TLS.
    pub async fn open(endpoint: &str) -> Self {
        let stream = TcpStream::connect(endpoint).await.expect("the server is up");
        stream.set_nodelay(true).expect("a socket");
        Self::over(stream).await
    }

    /// Speaks HTTP/2 over this.
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        Self { patience: ANSWER_MAX, sender, driver: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// Calls a method with one message. `headers` are those beside gRPC's own.
    pub async fn ask(&self, path: &str, shape: Shape, headers: &[(&'static str, Bytes)], message: &[u8]) -> Answer {
        match timeout(self.patience, self.exchange(path, shape, headers, message)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(broken)) => Err((0, format!("broken: {broken}"))),
            Err(_) => Err((0, format!("no answer within {:?}", self.patience))),
        }
    }

    async fn exchange(
        &self,
        path: &str,
        shape: Shape,
        headers: &[(&'static str, Bytes)],
        message: &[u8],
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let mut request = Request::post(format!("http://localhost{path}")).body(())?;
        let fields = request.headers_mut();
        fields.insert("content-type", HeaderValue::from_static("application/grpc"));
        fields.insert("te", HeaderValue::from_static("trailers"));
        for (name, value) in headers {
            fields.insert(*name, HeaderValue::from_bytes(value)?);
        }
        let (answer, mut body) = self.sender.clone().ready().await?.send_request(request, false)?;
        // The server may have refused already, and may say so by a reset.
        let _ = body.send_data(frame(0, message), shape != Shape::Bidi);
        let answer = answer.await?;
        match status(answer.headers()) {
            Some((0, _)) => return Ok(Ok(Bytes::new())),
            Some(status) => return Ok(Err(status)),
            None => {}
        }
        let (message, trailers) = read(answer.into_body(), shape).await?;
        Ok(match (message, trailers.as_ref().and_then(status)) {
            (Some(message), None) if shape != Shape::Unary => Ok(message),
            (message, Some((0, _))) => Ok(message.unwrap_or_default()),
            (_, Some(status)) => Err(status),
            (_, None) => Err((0, "no status".to_owned())),
        })
    }
}

/// The first message, and the trailers if that is not enough.
async fn read(mut body: RecvStream, shape: Shape) -> Result<(Option<Bytes>, Option<HeaderMap>), h2::Error> {
    let mut bytes = BytesMut::new();
    let mut message = None;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        if message.is_none() {
            bytes.extend_from_slice(&data);
            message = first_message(&mut bytes);
        }
        if message.is_some() && shape != Shape::Unary {
            return Ok((message, None));
        }
    }
    Ok((message, body.trailers().await?))
}

fn first_message(bytes: &mut BytesMut) -> Option<Bytes> {
    let length = bytes.get(1..5)?.get_u32() as usize;
    (bytes.len() >= 5 + length).then(|| bytes.split_to(5 + length).split_off(5).freeze())
}

fn status(headers: &HeaderMap) -> Option<(u16, String)> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let text = headers.get("grpc-message").map_or(&b""[..], HeaderValue::as_bytes);
    Some((code, percent_decode(text).decode_utf8_lossy().into_owned()))
}
