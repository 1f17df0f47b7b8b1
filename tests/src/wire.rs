//! gRPC below the generated clients: one call as bytes over a fresh HTTP/2 connection, so that requests can be wrong in
//! every way that a client library would prevent.

use std::{io, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request};
use percent_encoding::percent_decode;
use tokio::{net::TcpStream, runtime::Runtime, time::timeout};

const CALL_MAX: Duration = Duration::from_secs(10);

/// A runtime for the thread that calls this.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A call as it goes over the wire.
#[derive(Clone, Debug)]
pub struct Call {
    /// `/package.Service/Method`.
    pub path: String,
    /// Headers beside gRPC's own; one of these names replaces it.
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// Everything that is sent as the body.
    pub body: Bytes,
}

impl Call {
    /// A call of a method of an etcd service with one message.
    pub fn new(method: &str, message: &impl prost::Message) -> Self {
        Self::raw(method, message.encode_to_vec())
    }

    /// The same with bytes in the message's place.
    pub fn raw(method: &str, message: impl Into<Bytes>) -> Self {
        Self::at(&format!("etcdserverpb.{method}"), message)
    }

    /// The same of a service of any package: `package.Service.Method`.
    pub fn at(method: &str, message: impl Into<Bytes>) -> Self {
        let (service, method) = method.rsplit_once('.').expect("package, service and method");
        let path = format!("/{service}/{method}");
        Self { path, headers: Vec::new(), body: frame(0, &message.into()) }
    }

    /// Adds or replaces a header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Replaces the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

/// A message in gRPC's frame: compressed flag, length, bytes.
pub fn frame(flag: u8, message: &[u8]) -> Bytes {
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(flag);
    body.put_u32(u32::try_from(message.len()).expect("messages are small"));
    body.put_slice(message);
    body.freeze()
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// HTTP status; 0 when there was no answer.
    pub http: u16,
    /// gRPC status; `None` when there was none.
    pub code: Option<u16>,
    /// gRPC message, or what broke the stream.
    pub message: String,
}

/// Makes a call over a connection of its own.
pub async fn call(endpoint: &str, call: &Call) -> Outcome {
    let attempt = timeout(CALL_MAX, attempt(endpoint, call)).await;
    match attempt.unwrap_or_else(|_| Err(io::Error::other("no answer in time"))) {
        Ok(outcome) => outcome,
        Err(error) => Outcome { http: 0, code: None, message: error.to_string() },
    }
}

async fn attempt(endpoint: &str, call: &Call) -> io::Result<Outcome> {
    let stream = TcpStream::connect(endpoint).await?;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let driver = tokio::spawn(connection);
    let outcome = exchange(sender, endpoint, call).await;
    driver.abort();
    outcome.map_err(io::Error::other)
}

async fn exchange(
    sender: h2::client::SendRequest<Bytes>,
    endpoint: &str,
    call: &Call,
) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
    let mut request = Request::post(format!("http://{endpoint}{}", call.path)).body(())?;
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    for (name, value) in &call.headers {
        headers.insert(*name, HeaderValue::from_bytes(value)?);
    }
    let mut sender = sender.ready().await?;
    let (answer, mut body) = sender.send_request(request, false)?;
    // The server may have refused already, and may say so by a reset.
    let _ = body.send_data(call.body.clone(), true);
    let answer = answer.await?;
    let http = answer.status().as_u16();
    if let Some(outcome) = status(http, answer.headers()) {
        return Ok(outcome);
    }
    let mut body = answer.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        let _ = body.flow_control().release_capacity(length);
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(status(http, &trailers).unwrap_or(Outcome { http, code: None, message: String::new() }))
}

fn status(http: u16, headers: &HeaderMap) -> Option<Outcome> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    let message = headers.get("grpc-message").map_or(&b""[..], HeaderValue::as_bytes);
    Some(Outcome { http, code, message: percent_decode(message).decode_utf8_lossy().into_owned() })
}
