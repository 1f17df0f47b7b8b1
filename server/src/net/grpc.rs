//! gRPC over one HTTP/2 stream: path and headers in, [`Request`] to the front door, [`Reply`] and status out. The only
//! place that knows gRPC's headers; framing is in `frames`, texts of errors in [`crate::error`].
//!
//! It stands directly on h2: a general gRPC stack costs more CPU a call than the store itself. A unary answer is handed
//! to h2 as headers, one data frame and trailers at once; h2 writes the answers of one turn of the runtime together.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use ::http::{Method, Response, StatusCode, request};
use bytes::{Bytes, BytesMut};
use daymark_api::grpc::health::v1 as health;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::frames::{self, MessageReader, Messages, PREFIX_BYTES};
use super::{FrontDoor, Thread};
use crate::error::{Code, Error};
use crate::limits;
use crate::request::{Context, MessageParts, Reply, Request, Sink, Taken};
use crate::rpc::{Rpc, RpcKind, is_service};

/// How a call ends: a code number and a text. Wider than [`Error`], because the transport has words of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Status {
    code: u8,
    text: Cow<'static, str>,
}

impl Status {
    const OK: Self = Self { code: 0, text: Cow::Borrowed("") };

    fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code as u8, text: text.into() }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.text())
    }
}

/// Serves one stream.
pub(crate) async fn handle<D: FrontDoor>(
    thread: Rc<Thread<D>>,
    peer: Option<SocketAddr>,
    request: ::http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let headers = match Headers::read(&head, peer) {
        Ok(headers) => headers,
        Err(refusal) => return refuse(&mut respond, refusal),
    };
    let Some(rpc) = Rpc::from_path(path(&head)) else {
        return send_status(&mut respond, &unknown(path(&head)));
    };
    drop(head);
    let counters = thread.counters.rpc(rpc);
    counters.started.add(1);
    let version = headers.context.client_api_version.as_ref().and_then(|version| version.as_deref().ok());
    thread.counters.client_request(rpc.kind(), version);
    let body = MessageReader::new(body, thread.options.transport.message_bytes_max);
    let status = match rpc.kind() {
        RpcKind::Unary => unary(&thread, rpc, headers, body, &mut respond).await,
        RpcKind::BidiStream | RpcKind::ServerStream => stream(&thread, rpc, headers, body, &mut respond).await,
    };
    let code = usize::from(status.code).min(counters.handled.len() - 1);
    counters.handled[code].add(1);
}

/// The path as sent: gRPC knows no query, so whatever looks like one belongs to the method's name.
fn path(head: &request::Parts) -> &str {
    head.uri.path_and_query().map_or("", |path| path.as_str())
}

/// What the headers of a call say.
struct Headers {
    context: Context,
    timeout: Option<Duration>,
}

/// Why a request is refused before its method is looked at.
enum Refusal {
    /// Not gRPC: an HTTP status.
    Http(StatusCode, Status),
    Grpc(Status),
}

impl Headers {
    /// One pass over the headers; they are few, and looking each name up would hash them all.
    fn read(head: &request::Parts, peer: Option<SocketAddr>) -> Result<Self, Refusal> {
        let mut headers = Self { context: Context { peer, ..Context::default() }, timeout: None };
        let absent = HeaderValue::from_static("");
        let mut content_type = &absent;
        let (mut token, mut authorization, mut encoding) = (None, None, None);
        for (name, value) in &head.headers {
            match name.as_str() {
                "content-type" => content_type = value,
                "grpc-timeout" => {
                    let timeout = parse_timeout(value.as_bytes());
                    let malformed = || Refusal::Grpc(Status::new(Code::Internal, "malformed grpc-timeout"));
                    headers.timeout = Some(timeout.ok_or_else(malformed)?);
                }
                "grpc-encoding" if value != "identity" && !value.is_empty() => encoding = Some(value),
                "token" => token = token.or(Some(value)),
                "authorization" => authorization = authorization.or(Some(value)),
                "hasleader" => headers.context.requires_leader |= value == "true",
                "client-api-version" => {
                    let version = std::str::from_utf8(value.as_bytes()).map(str::to_owned);
                    let version = version.map_err(|_| Bytes::copy_from_slice(value.as_bytes()));
                    headers.context.client_api_version.get_or_insert(version);
                }
                _ => {}
            }
        }
        if head.method != Method::POST {
            let text = format!("Received a HEADERS frame with :method {:?} which should be POST", head.method.as_str());
            return Err(Refusal::Http(StatusCode::METHOD_NOT_ALLOWED, Status::new(Code::Internal, text)));
        }
        if !is_grpc(content_type.as_bytes()) {
            let text = format!("invalid gRPC request content-type {content_type:?}");
            return Err(Refusal::Http(StatusCode::UNSUPPORTED_MEDIA_TYPE, Status::new(Code::InvalidArgument, text)));
        }
        if let Some(encoding) = encoding {
            let name = String::from_utf8_lossy(encoding.as_bytes()).into_owned();
            // An unknown method comes first, as in grpc-go.
            let known = Rpc::from_path(path(head)).is_some();
            let status = if known { Error::Compression(name).into() } else { unknown(path(head)) };
            return Err(Refusal::Grpc(status));
        }
        headers.context.token = token.or(authorization).map(|value| {
            let bytes = value.as_bytes();
            Bytes::copy_from_slice(bytes.strip_prefix(b"Bearer ").unwrap_or(bytes))
        });
        Ok(headers)
    }
}

/// `application/grpc`, perhaps with a sub-type or parameters.
fn is_grpc(content_type: &[u8]) -> bool {
    match content_type.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// At most eight digits and a unit.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(count * 3600)),
        b'M' => Some(Duration::from_secs(count * 60)),
        b'S' => Some(Duration::from_secs(count)),
        b'm' => Some(Duration::from_millis(count)),
        b'u' => Some(Duration::from_micros(count)),
        b'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// grpc-go's words for a path that is no method.
fn unknown(path: &str) -> Status {
    match path.strip_prefix('/').unwrap_or(path).rsplit_once('/') {
        None => Status::new(Code::Unimplemented, format!("malformed method name: {path:?}")),
        Some((service, _)) if !is_service(service) => {
            Status::new(Code::Unimplemented, format!("unknown service {service}"))
        }
        Some(_) => Error::UnknownMethod(path.to_owned()).into(),
    }
}

/// A method that is known and not served.
fn not_served(rpc: Rpc) -> Error {
    Error::UnknownMethod(format!("/{}/{}", rpc.service(), rpc.method()))
}

async fn unary<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    rpc: Rpc,
    headers: Headers,
    mut body: MessageReader,
    respond: &mut SendResponse<Bytes>,
) -> Status {
    let start = Instant::now();
    let deadline = headers.timeout.map(|timeout| start + timeout);
    let work = async {
        let message = body.only_message().await?;
        thread.counters.rpc(rpc).received.add(1);
        thread.counters.received_bytes.add(message.len() as u64);
        if is_over(deadline) {
            // Nobody waits for it any more. The timer is too coarse to tell.
            return Err(Error::DeadlineExceeded.into());
        }
        if rpc == Rpc::HealthCheck {
            return health_check(frames::decode(message)?);
        }
        let request = decode_request(rpc, message)?;
        let reply = thread.door.call(headers.context, request).await?;
        let message = encode_reply(&reply);
        check_sendable(message.len() - PREFIX_BYTES, limits::RESPONSE_BYTES_MAX)?;
        Ok(message)
    };
    let result = guarded(work, respond, deadline).await;
    let elapsed = start.elapsed();
    let durations = if result.is_ok() { &thread.counters.succeeded } else { &thread.counters.failed };
    durations.observe(elapsed);
    if elapsed > thread.options.warning_unary_request {
        tracing::warn!(method = rpc.method(), took_ms = elapsed.as_millis() as u64, "request stats");
    }
    match result {
        Ok(message) => {
            thread.counters.rpc(rpc).sent.add(1);
            thread.counters.sent_bytes.add((message.len() - PREFIX_BYTES) as u64);
            send_message(respond, message);
            Status::OK
        }
        Err(status) => {
            send_status(respond, &status);
            status
        }
    }
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

/// Runs a call until it ends, its deadline passes, or its caller goes.
async fn guarded<T>(
    work: impl Future<Output = Result<T, Status>>,
    respond: &mut SendResponse<Bytes>,
    deadline: Option<Instant>,
) -> Result<T, Status> {
    let mut work = pin!(work);
    let mut timer = None;
    poll_fn(|cx| {
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if respond.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Error::Canceled.into()));
        }
        // A timer costs something: most calls end before they would need one.
        let timer = timer.get_or_insert_with(|| deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into()))));
        if timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(Error::DeadlineExceeded.into()));
        }
        Poll::Pending
    })
    .await
}

fn decode_request(rpc: Rpc, message: Bytes) -> Result<Request, Error> {
    Ok(match rpc {
        Rpc::Range => Request::Range(frames::decode(message)?),
        Rpc::Put => Request::Put(frames::decode(message)?),
        Rpc::DeleteRange => Request::DeleteRange(frames::decode(message)?),
        Rpc::Txn => Request::Txn(frames::decode(message)?),
        Rpc::Compact => Request::Compact(frames::decode(message)?),
        Rpc::LeaseGrant => Request::LeaseGrant(frames::decode(message)?),
        Rpc::LeaseRevoke => Request::LeaseRevoke(frames::decode(message)?),
        Rpc::LeaseTimeToLive => Request::LeaseTimeToLive(frames::decode(message)?),
        Rpc::LeaseLeases => Request::LeaseLeases(frames::decode(message)?),
        Rpc::MemberList => Request::MemberList(frames::decode(message)?),
        Rpc::Alarm => Request::Alarm(frames::decode(message)?),
        Rpc::Status => Request::Status(frames::decode(message)?),
        Rpc::Defragment => Request::Defragment(frames::decode(message)?),
        _ => return Err(not_served(rpc)),
    })
}

/// Receivers refuse what is larger, and the whole connection with it.
fn check_sendable(bytes: usize, bytes_max: usize) -> Result<(), Error> {
    if bytes > bytes_max { Err(Error::ResponseTooLarge(bytes, bytes_max)) } else { Ok(()) }
}

fn encode_reply(reply: &Reply) -> Bytes {
    match reply {
        Reply::Range(message) => frames::encode(message),
        Reply::Put(message) => frames::encode(message),
        Reply::DeleteRange(message) => frames::encode(message),
        Reply::Txn(message) => frames::encode(message),
        Reply::Compact(message) => frames::encode(message),
        Reply::LeaseGrant(message) => frames::encode(message),
        Reply::LeaseRevoke(message) => frames::encode(message),
        Reply::LeaseTimeToLive(message) => frames::encode(message),
        Reply::LeaseLeases(message) => frames::encode(message),
        Reply::MemberList(message) => frames::encode(message),
        Reply::Alarm(message) => frames::encode(message),
        Reply::Status(message) => frames::encode(message),
        Reply::Defragment(message) => frames::encode(message),
    }
}

/// Only the empty service name is registered; it serves as long as the port does.
fn health_check(request: health::HealthCheckRequest) -> Result<Bytes, Status> {
    if !request.service.is_empty() {
        return Err(Status::new(Code::NotFound, "unknown service"));
    }
    let status = health::health_check_response::ServingStatus::Serving as i32;
    Ok(frames::encode(&health::HealthCheckResponse { status }))
}

async fn stream<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    rpc: Rpc,
    headers: Headers,
    mut body: MessageReader,
    respond: &mut SendResponse<Bytes>,
) -> Status {
    if !matches!(rpc, Rpc::Watch | Rpc::LeaseKeepAlive | Rpc::HealthWatch) {
        let status = not_served(rpc).into();
        send_status(respond, &status);
        return status;
    }
    let deadline = headers.timeout.map(|timeout| Instant::now() + timeout);
    if is_over(deadline) {
        let status = Error::DeadlineExceeded.into();
        send_status(respond, &status);
        return status;
    }
    let Ok(send) = respond.send_response(response_head(), false) else { return Error::Canceled.into() };
    let sink = Sink::new(limits::STREAM_QUEUE_BYTES_MAX);
    let pump = Pump::new(thread, rpc, sink.clone(), send);
    let counters = thread.counters.clone();
    let received = move |length: usize| {
        counters.rpc(rpc).received.add(1);
        counters.received_bytes.add(length as u64);
    };
    match rpc {
        Rpc::Watch => {
            let service = thread.door.watch(headers.context, Box::pin(Messages::new(body, received)), sink);
            pump.run(service, deadline).await
        }
        Rpc::LeaseKeepAlive => {
            let requests = Box::pin(Messages::new(body, received));
            let service = thread.door.lease_keep_alive(headers.context, requests, sink);
            pump.run(service, deadline).await
        }
        _ => {
            let service = async move {
                match body.only_message().await.and_then(frames::decode::<health::HealthCheckRequest>) {
                    Ok(request) => health_watch(&request, &sink).await,
                    Err(error) => sink.finish(Err(error)),
                }
            };
            pump.run(service, deadline).await
        }
    }
}

/// Says how things are and stays open: they do not change while the port serves.
async fn health_watch(request: &health::HealthCheckRequest, sink: &Sink) {
    use health::health_check_response::ServingStatus;
    let status = if request.service.is_empty() { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
    let response = health::HealthCheckResponse { status: status as i32 };
    sink.push(MessageParts::from_iter([prost::Message::encode_to_vec(&response).into()]));
    std::future::pending().await
}

/// Drains the sink of one streaming call into its HTTP/2 stream, no faster than the other end reads.
struct Pump<'a, D> {
    thread: &'a Rc<Thread<D>>,
    rpc: Rpc,
    sink: Sink,
    send: SendStream<Bytes>,
    /// Taken from the sink, framed, not yet given to h2.
    chunks: VecDeque<Bytes>,
    /// Sum of the lengths in `chunks`.
    chunk_bytes: usize,
    end: Option<Result<(), Error>>,
}

impl<D> Drop for Pump<'_, D> {
    fn drop(&mut self) {
        self.sink.close();
    }
}

impl<'a, D: FrontDoor> Pump<'a, D> {
    fn new(thread: &'a Rc<Thread<D>>, rpc: Rpc, sink: Sink, send: SendStream<Bytes>) -> Self {
        Self { thread, rpc, sink, send, chunks: VecDeque::new(), chunk_bytes: 0, end: None }
    }

    /// Runs the service beside the pump until the call has ended or the caller has gone; drops the service then.
    async fn run(mut self, service: impl Future<Output = ()>, deadline: Option<Instant>) -> Status {
        let mut service = pin!(service);
        let mut served = false;
        let mut stopping = self.thread.stopping.clone();
        let mut stop = pin!(stopping.wait_for(|stop| *stop));
        let mut stopped = false;
        let mut timer: Option<Pin<Box<_>>> = deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        poll_fn(|cx| {
            if !served && service.as_mut().poll(cx).is_ready() {
                served = true;
                self.sink.finish(Ok(()));
            }
            if !stopped && stop.as_mut().poll(cx).is_ready() {
                stopped = true;
                self.sink.finish(Err(Error::Stopped));
            }
            if timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
                timer = None;
                self.sink.finish(Err(Error::DeadlineExceeded));
            }
            self.poll_pump(cx)
        })
        .await
    }

    fn poll_pump(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Status> {
        loop {
            if self.send.poll_reset(cx).is_ready() {
                return Poll::Ready(Error::Canceled.into());
            }
            if self.chunks.is_empty() {
                self.gather(cx);
            }
            if self.chunks.is_empty() {
                let Some(end) = self.end.take() else { return Poll::Pending };
                let status = end.map_or_else(Status::from, |()| Status::OK);
                // Fails only if the other end has gone meanwhile.
                let _ = self.send.send_trailers(trailers(&status));
                return Poll::Ready(status);
            }
            // Capacity is asked for only while there is something to send: it is taken from the whole connection's.
            self.send.reserve_capacity(self.chunk_bytes);
            while self.send.capacity() == 0 {
                match self.send.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(Error::Canceled.into()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            self.chunk_bytes = 0;
            for chunk in self.chunks.drain(..) {
                if self.send.send_data(chunk, false).is_err() {
                    return Poll::Ready(Error::Canceled.into());
                }
            }
        }
    }

    /// Takes messages until a frame is full: small parts are copied together, large ones are passed on.
    fn gather(&mut self, cx: &mut std::task::Context<'_>) {
        let mut small = BytesMut::new();
        while self.end.is_none() && self.chunk_bytes < limits::STREAM_GATHER_BYTES {
            let parts = match self.sink.take(cx.waker()) {
                Taken::Message(parts) => parts,
                Taken::End(end) => {
                    self.end = Some(end);
                    break;
                }
                Taken::Pending => break,
            };
            let length = parts.iter().map(Bytes::len).sum::<usize>();
            frames::put_prefix(&mut small, length);
            for part in parts {
                if part.len() < 4096 {
                    small.extend_from_slice(&part);
                } else {
                    self.chunks.push_back(small.split().freeze());
                    self.chunks.push_back(part);
                }
            }
            self.chunk_bytes += PREFIX_BYTES + length;
            self.thread.counters.rpc(self.rpc).sent.add(1);
            self.thread.counters.sent_bytes.add(length as u64);
        }
        if !small.is_empty() {
            self.chunks.push_back(small.freeze());
        }
    }
}

/// Characters that `grpc-message` holds only percent-encoded: all but printable ASCII, and the percent sign.
const MESSAGE_ENCODED: &AsciiSet = &CONTROLS.add(b'%');

fn response_head() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    put_status(&mut trailers, status);
    trailers
}

fn put_status(headers: &mut HeaderMap, status: &Status) {
    let code = if status.code == 0 { HeaderValue::from_static("0") } else { u16::from(status.code).into() };
    headers.insert("grpc-status", code);
    let message = if status.text.is_empty() {
        HeaderValue::from_static("")
    } else {
        let encoded = utf8_percent_encode(&status.text, MESSAGE_ENCODED).to_string();
        // What has been encoded is printable ASCII.
        HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""))
    };
    headers.insert("grpc-message", message);
}

/// One message and "OK". Errors mean that the other end has gone.
fn send_message(respond: &mut SendResponse<Bytes>, message: Bytes) {
    let Ok(mut stream) = respond.send_response(response_head(), false) else { return };
    if stream.send_data(message, false).is_ok() {
        let _ = stream.send_trailers(trailers(&Status::OK));
    }
}

/// A status alone, in one frame of headers.
fn send_status(respond: &mut SendResponse<Bytes>, status: &Status) {
    let mut response = response_head();
    put_status(response.headers_mut(), status);
    let _ = respond.send_response(response, true);
}

fn refuse(respond: &mut SendResponse<Bytes>, refusal: Refusal) {
    match refusal {
        Refusal::Grpc(status) => send_status(respond, &status),
        Refusal::Http(code, status) => {
            let mut response = response_head();
            *response.status_mut() = code;
            put_status(response.headers_mut(), &status);
            let _ = respond.send_response(response, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_above_what_receivers_accept_is_not_sent() {
        let max = limits::RESPONSE_BYTES_MAX;
        assert_eq!(check_sendable(max, max), Ok(()));
        let status = Status::from(check_sendable(max + 1, max).expect_err("too large"));
        assert_eq!(status.code, 8);
        assert_eq!(status.text, "grpc: trying to send message larger than max (2147483648 vs. 2147483647)");
    }
}
