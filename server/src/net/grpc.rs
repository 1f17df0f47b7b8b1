//! gRPC over one HTTP/2 stream: path, headers and messages in, messages and status out. The only place that knows gRPC's
//! headers; what a method is and does is in `dispatch`, framing in `frames`, texts of errors in [`crate::error`].
//!
//! It stands directly on HTTP/2: a general gRPC stack costs more CPU a call than the store itself. Calls that stream are
//! the same over both of our servers; unary ones take a shorter way over the lean one, whose connection polls them and
//! sends their answers. Over h2 each has a task, and hands over headers, one data frame and trailers at once.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use std::time::{Duration, Instant};

use ::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use ::http::{Response, StatusCode, request};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use h2::RecvStream;
use h2::server::SendResponse;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::compression;
use super::connection::Caller;
use super::dispatch::{Call, MessageStream, Serving, Status};
use super::frames::{self, MessageReader, PREFIX_BYTES};
use super::halves::{Body, Respond, Sending};
use super::lean::{self, put_field};
use super::pings::OpenCall;
use super::{FrontDoor, Thread};
use crate::budget::Budget;
use crate::error::{Code, Error};
use crate::limits;
use crate::request::{Context, Taken};
use crate::rpc::{Rpc, RpcKind, is_service};

/// Serves one stream on a task of its own. `open` is held until it ends. What the headers say is read here, so that the
/// task carries no more of them than it needs: a task is copied several times until it runs.
pub(crate) fn spawn<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    caller: &Caller,
    request: ::http::Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    open: Option<OpenCall>,
) {
    let (head, body) = request.into_parts();
    let opening = match open_parts(&head, caller) {
        Ok(opening) => opening,
        Err(refusal) => return drop(respond.send_response(refusal_head(&refusal), true)),
    };
    let is_gzip = opening.is_gzip;
    let call = Call::open(thread, opening.rpc, opening.context, opening.timeout, Instant::now());
    let body = MessageReader::new(Body::H2(body), thread.options.transport.message_bytes_max, is_gzip);
    match messages(opening.rpc, body) {
        Ok(messages) => {
            tokio::task::spawn_local(async move {
                serve_stream(call, messages, is_gzip, Respond::H2(respond)).await;
                drop(open);
            });
        }
        Err(body) => {
            tokio::task::spawn_local(unary(call, body, is_gzip, respond, open));
        }
    }
}

/// Serves a streaming call of the lean server on a task of its own; `messages` are its body's.
pub(crate) fn spawn_stream<D: FrontDoor>(call: Call<D>, messages: MessageStream, is_gzip: bool, respond: Respond) {
    tokio::task::spawn_local(serve_stream(call, messages, is_gzip, respond));
}

/// What is read of the body of a streaming call; the body itself if the call does not stream.
pub(crate) fn messages(rpc: Rpc, mut body: MessageReader) -> Result<MessageStream, MessageReader> {
    match rpc.kind() {
        RpcKind::Unary => Err(body),
        RpcKind::BidiStream => Ok(body.boxed_local()),
        RpcKind::ServerStream => Ok(stream::once(async move { body.only_message().await }).boxed_local()),
    }
}

/// Bytes of the task that serves one unary call.
#[cfg(test)]
pub(crate) fn task_bytes<D: FrontDoor>() -> usize {
    fn returned<A, B, C, E, F, R>(_: impl Fn(A, B, C, E, F) -> R) -> usize {
        size_of::<R>()
    }
    returned(unary::<D>)
}

/// What the head of a call says.
pub(crate) struct Opening {
    pub rpc: Rpc,
    pub context: Rc<Context>,
    pub timeout: Option<Duration>,
    /// Messages may be compressed with gzip, and so are those of the answer, as in grpc-go.
    pub is_gzip: bool,
}

/// Why a request is refused before anything is done for it.
pub(crate) struct Refusal {
    /// Another one than 200 for what is not gRPC.
    http: StatusCode,
    status: Status,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self { http: StatusCode::OK, status }
    }
}

fn open_parts(head: &request::Parts, caller: &Caller) -> Result<Opening, Refusal> {
    let fields = head.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
    // The path as sent: gRPC knows no query, so whatever looks like one belongs to the method's name.
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    open(head.method.as_str(), path, fields, caller)
}

/// Reads the head of a request to the lean server.
pub(crate) fn open_head(head: &lean::Head, caller: &Caller) -> Result<Opening, Refusal> {
    open(&String::from_utf8_lossy(head.method()), &String::from_utf8_lossy(head.path()), head.fields(), caller)
}

/// One pass over the fields; they are few, and looking each name up would hash them all.
fn open<'a>(
    method: &str,
    path: &str,
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    caller: &Caller,
) -> Result<Opening, Refusal> {
    let certificate_name = caller.certificate_name.clone();
    let mut context = Context { peer: caller.peer, certificate_name, ..Context::default() };
    let (mut timeout, mut is_gzip, mut content_type) = (None, false, &b""[..]);
    let (mut token, mut authorization, mut encoding) = (None, None, None);
    for (name, value) in fields {
        match name {
            b"content-type" => content_type = value,
            b"grpc-timeout" => {
                let malformed = || Status::new(Code::Internal, "malformed grpc-timeout");
                timeout = Some(parse_timeout(value).ok_or_else(malformed)?);
            }
            b"grpc-encoding" if value == compression::GZIP.as_bytes() => is_gzip = true,
            b"grpc-encoding" if value != b"identity" && !value.is_empty() => encoding = Some(value),
            b"token" => token = token.or(Some(value)),
            b"authorization" => authorization = authorization.or(Some(value)),
            // A gateway asks for somebody else: its own certificate must not speak for them.
            b"grpcgateway-accept" => context.certificate_name = None,
            b"hasleader" => context.requires_leader |= value == b"true",
            b"client-api-version" => {
                let version = std::str::from_utf8(value).map(str::to_owned);
                let version = version.map_err(|_| Bytes::copy_from_slice(value));
                context.client_api_version.get_or_insert(version);
            }
            _ => {}
        }
    }
    if method != "POST" {
        let text = format!("Received a HEADERS frame with :method {method:?} which should be POST");
        return Err(Refusal { http: StatusCode::METHOD_NOT_ALLOWED, status: Status::new(Code::Internal, text) });
    }
    if !is_grpc(content_type) {
        let shown = HeaderValue::from_bytes(content_type).unwrap_or(HeaderValue::from_static(""));
        let text = format!("invalid gRPC request content-type {shown:?}");
        let status = Status::new(Code::InvalidArgument, text);
        return Err(Refusal { http: StatusCode::UNSUPPORTED_MEDIA_TYPE, status });
    }
    // An unknown method comes before an unknown encoding, as in grpc-go.
    let rpc = Rpc::from_path(path).ok_or_else(|| unknown(path))?;
    if let Some(encoding) = encoding {
        return Err(Status::from(Error::Compression(String::from_utf8_lossy(encoding).into_owned())).into());
    }
    context.token =
        token.or(authorization).map(|value| Bytes::copy_from_slice(value.strip_prefix(b"Bearer ").unwrap_or(value)));
    Ok(Opening { rpc, context: Rc::new(context), timeout, is_gzip })
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

#[expect(clippy::manual_async_fn, reason = "an async fn would keep its arguments twice")]
fn unary<D: FrontDoor>(
    mut call: Call<D>,
    mut body: MessageReader,
    is_gzip: bool,
    mut respond: SendResponse<Bytes>,
    open: Option<OpenCall>,
) -> impl Future<Output = ()> {
    async move {
        let result = call.unary(body.only_message(), |cx| respond.poll_reset(cx).is_ready()).await;
        match result {
            Ok(message) if is_gzip => send_message(&mut respond, frames::compressed(&message), true),
            Ok(message) if message.len() > limits::ANSWER_BYTES_INLINE => {
                // Boxed: what is rare must not make the task of every call larger.
                Box::pin(send_large(&mut respond, message, call.answers())).await;
            }
            Ok(message) => send_message(&mut respond, message, false),
            Err(status) => send_status(&mut respond, &status),
        }
        drop((call, open));
    }
}

/// Where the one message of a unary call comes from.
pub(crate) enum Source {
    /// It is there.
    Message(Bytes),
    Body(Box<MessageReader>),
}

/// The answer to a unary call.
pub(crate) enum Answer {
    /// A message with its prefix.
    Message {
        framed: Bytes,
        is_gzip: bool,
    },
    Status(Status),
}

/// Serves a unary call of the lean server, which sends the answer. `gone` is set while it has its last turn.
#[expect(clippy::manual_async_fn, reason = "an async fn would keep its arguments twice")]
pub(crate) fn answer<D: FrontDoor>(
    mut call: Call<D>,
    source: Source,
    is_gzip: bool,
    gone: Rc<Cell<bool>>,
) -> impl Future<Output = Answer> {
    async move {
        let message = async {
            match source {
                Source::Message(message) => Ok(message),
                Source::Body(mut body) => body.only_message().await,
            }
        };
        match call.unary(message, |_| gone.get()).await {
            Ok(framed) if is_gzip => Answer::Message { framed: frames::compressed(&framed), is_gzip },
            Ok(framed) => Answer::Message { framed, is_gzip },
            Err(status) => Answer::Status(status),
        }
    }
}

/// The head of a refusal, which is all of it, for the lean server.
pub(crate) fn refusal_fields(refusal: &Refusal) -> Vec<u8> {
    fields_of(&refusal_head(refusal))
}

/// The head of an answer that is only a status.
pub(crate) fn status_fields(status: &Status) -> Vec<u8> {
    fields_of(&status_head(status))
}

/// The head of an answer whose messages are compressed.
pub(crate) fn gzip_fields() -> Vec<u8> {
    fields_of(&head_of_messages(true))
}

/// The trailers of a good answer.
pub(crate) fn ok_fields() -> Vec<u8> {
    let mut fields = Vec::new();
    put_headers(&mut fields, &trailers(&Status::OK));
    fields
}

fn fields_of(head: &Response<()>) -> Vec<u8> {
    let mut fields = Vec::new();
    put_field(&mut fields, ":status", head.status().as_str().as_bytes());
    put_headers(&mut fields, head.headers());
    fields
}

fn put_headers(fields: &mut Vec<u8>, headers: &HeaderMap) {
    headers.iter().for_each(|(name, value)| put_field(fields, name.as_str(), value.as_bytes()));
}

async fn serve_stream<D: FrontDoor>(call: Call<D>, messages: MessageStream, is_gzip: bool, respond: Respond) {
    let serving = match call.stream(messages) {
        Ok(serving) => serving,
        Err(status) => return drop(respond.send_head(status_head(&status), true)),
    };
    if let Some(send) = respond.send_head(head_of_messages(is_gzip), false) {
        Pump { serving, send, is_gzip, chunks: VecDeque::new(), chunk_bytes: 0, end: None }.run().await;
    }
}

/// Sends the messages of one streaming call, no faster than the other end reads.
struct Pump<D: FrontDoor> {
    serving: Serving<D>,
    send: Sending,
    is_gzip: bool,
    /// Taken from the call, framed, not yet sent.
    chunks: VecDeque<Bytes>,
    /// Sum of the lengths in `chunks`.
    chunk_bytes: usize,
    end: Option<Result<(), Error>>,
}

impl<D: FrontDoor> Pump<D> {
    /// Runs until the call has ended or the caller has gone.
    async fn run(mut self) {
        let Some(end) = poll_fn(|cx| {
            self.serving.poll_turn(cx);
            self.poll_pump(cx)
        })
        .await
        else {
            return;
        };
        let status = self.serving.end(end);
        self.send.send_trailers(trailers(&status));
    }

    /// How the call ended, once all of it is sent; `None` when the caller has gone.
    fn poll_pump(&mut self, cx: &mut task::Context<'_>) -> Poll<Option<Result<(), Error>>> {
        loop {
            if self.send.poll_gone(cx) {
                return Poll::Ready(None);
            }
            if self.chunks.is_empty() {
                self.gather(cx);
            }
            if self.chunks.is_empty() {
                return self.end.take().map_or(Poll::Pending, |end| Poll::Ready(Some(end)));
            }
            if ready!(self.send.poll_room(cx, self.chunk_bytes)).is_none() {
                return Poll::Ready(None);
            }
            self.chunk_bytes = 0;
            for chunk in self.chunks.drain(..) {
                if !self.send.send_data(chunk, false) {
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Takes messages until a frame is full: small parts are copied together, large ones are passed on.
    fn gather(&mut self, cx: &mut task::Context<'_>) {
        let mut small = BytesMut::new();
        while self.end.is_none() && self.chunk_bytes < limits::STREAM_GATHER_BYTES {
            let parts = match self.serving.take(cx) {
                Taken::Message(parts) => parts,
                Taken::End(end) => {
                    self.end = Some(end);
                    break;
                }
                Taken::Pending => break,
            };
            let length = parts.iter().map(Bytes::len).sum::<usize>();
            if self.is_gzip {
                let mut framed = BytesMut::with_capacity(PREFIX_BYTES + length);
                frames::put_prefix(&mut framed, length);
                parts.iter().for_each(|part| framed.extend_from_slice(part));
                let framed = frames::compressed(&framed.freeze());
                self.chunk_bytes += framed.len();
                small.extend_from_slice(&framed);
                continue;
            }
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
        }
        if !small.is_empty() {
            self.chunks.push_back(small.freeze());
        }
    }
}

/// Characters that `grpc-message` holds only percent-encoded: all but printable ASCII, and the percent sign.
const MESSAGE_ENCODED: &AsciiSet = &CONTROLS.add(b'%');

/// Of a response that holds messages, which may be compressed.
fn head_of_messages(is_gzip: bool) -> Response<()> {
    let mut response = response_head();
    if is_gzip {
        response.headers_mut().insert("grpc-encoding", HeaderValue::from_static(compression::GZIP));
    }
    response
}

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
fn send_message(respond: &mut SendResponse<Bytes>, message: Bytes, is_gzip: bool) {
    let Ok(mut stream) = respond.send_response(head_of_messages(is_gzip), false) else { return };
    if stream.send_data(message, false).is_ok() {
        let _ = stream.send_trailers(trailers(&Status::OK));
    }
}

/// As [`send_message`], but no faster than the other end reads: what h2 was given would be in memory once more, and would
/// not count. Returns early when the other end has gone.
async fn send_large(respond: &mut SendResponse<Bytes>, mut message: Bytes, answers: &Arc<Budget>) {
    let mut share = answers.share();
    share.note(message.len());
    let Ok(mut stream) = respond.send_response(response_head(), false) else { return };
    while !message.is_empty() {
        stream.reserve_capacity(message.len().min(limits::ANSWER_BYTES_INLINE));
        let has_room = poll_fn(|cx| {
            if stream.poll_reset(cx).is_ready() {
                return Poll::Ready(false);
            }
            while stream.capacity() == 0 {
                match stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(_) => return Poll::Ready(false),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(true)
        });
        if !has_room.await {
            return;
        }
        let piece = message.split_to(stream.capacity().min(message.len()));
        if stream.send_data(piece, false).is_err() {
            return;
        }
    }
    let _ = stream.send_trailers(trailers(&Status::OK));
}

/// A status alone, in one frame of headers.
fn send_status(respond: &mut SendResponse<Bytes>, status: &Status) {
    let _ = respond.send_response(status_head(status), true);
}

fn status_head(status: &Status) -> Response<()> {
    let mut response = response_head();
    put_status(response.headers_mut(), status);
    response
}

fn refusal_head(refusal: &Refusal) -> Response<()> {
    let mut response = status_head(&refusal.status);
    *response.status_mut() = refusal.http;
    response
}
