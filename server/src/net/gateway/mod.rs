//! The API as JSON over plain HTTP, with the routes, the spellings and the refusals of etcd's gateway: a document in, a
//! document out, or for streams one a line. Documents become the very message bytes that gRPC carries and take the same
//! way from there ([`dispatch`](super::dispatch)), so that a method that gRPC serves is served here.
//!
//! Reading order: this file, `routes`, `metadata` (headers), `document` and `reader` (bodies), `parse` and `print`
//! (messages), `websocket`.

mod document;
mod metadata;
mod parse;
mod print;
mod reader;
mod routes;
mod schema;
mod tokens;
pub(crate) mod websocket;

use std::future::{poll_fn, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{self, Poll};
use std::time::Instant;

use ::http::header::{self, HeaderName, HeaderValue};
use ::http::{HeaderMap, Method, Response, StatusCode};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use super::body::{RequestBody, ResponseBody};
use super::dispatch::{Call, Serving, Status};
use super::frames::PREFIX_BYTES;
use super::{FrontDoor, Thread};
use crate::error::{Code, Error};
use crate::limits;
use crate::request::{Context, MessageParts, Taken};
use crate::rpc::{Rpc, RpcKind};
use metadata::Metadata;
use print::{Escape, print, print_string};
use reader::Reader;
pub(crate) use routes::PREFIX;
use schema::{MessageId, Schema};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// What the gRPC call behind an answer had as its content type: etcd passes it on.
const GRPC_CONTENT_TYPE: (HeaderName, HeaderValue) =
    (HeaderName::from_static("grpc-metadata-content-type"), HeaderValue::from_static("application/grpc"));
const FORM: &str = "application/x-www-form-urlencoded";

/// One request as far as the gateway looks at it.
pub(crate) struct Asked<'a> {
    pub method: &'a Method,
    /// Decoded, and beginning with [`PREFIX`].
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    /// What is known of the caller beside its headers.
    pub context: Context,
    /// The body comes in messages and has no end as long as the answer is waited for.
    pub is_framed: bool,
}

/// Answers one request.
pub(crate) async fn serve<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    asked: Asked<'_>,
    body: RequestBody,
) -> Response<ResponseBody> {
    let Some(rpc) = routes::find(asked.path) else {
        return failure(&Status::new(Code::NotFound, "Not Found"));
    };
    let (is_post, body) = match overriding_method(&asked) {
        // What overrides the method has the body read as a form, so that nothing is left of it.
        Some(method) => (method.eq_ignore_ascii_case("POST"), stream::empty().boxed_local()),
        None => (asked.method == Method::POST, body),
    };
    if !is_post {
        return failure(&Status::new(Code::Unimplemented, "Method Not Allowed"));
    }
    let metadata = match Metadata::read(asked.headers, asked.context) {
        Ok(metadata) => metadata,
        Err(status) => return failure(&status),
    };
    // Every method has its messages: a test of the schema looks at them all.
    let Some((request, response)) = Schema::get().method(rpc.service(), rpc.method()) else {
        return failure(&Error::UnknownMethod(format!("/{}/{}", rpc.service(), rpc.method())).into());
    };
    let (bytes_max, held) = (thread.options.transport.message_bytes_max, thread.gateway_bytes.clone());
    let reader = Reader::new(body, request, bytes_max, held, !asked.is_framed);
    let open =
        |metadata: Metadata| Call::open(thread, rpc, Rc::new(metadata.context), metadata.timeout, Instant::now());
    match rpc.kind() {
        RpcKind::Unary => unary(thread, rpc, metadata, reader, response).await,
        RpcKind::ServerStream => match reader.only().await {
            Ok(message) => {
                let messages = stream::once(ready(Ok(message))).boxed_local();
                begin(open(metadata).stream(messages), response).await
            }
            Err(status) => failure(&status),
        },
        RpcKind::BidiStream => {
            let messages = reader.messages().boxed_local();
            begin(open(metadata).stream(messages), response).await
        }
    }
}

/// Forms may carry the method that is meant in a header.
fn overriding_method<'a>(asked: &Asked<'a>) -> Option<&'a str> {
    let is_form = asked.headers.get(header::CONTENT_TYPE).is_some_and(|value| value == FORM);
    let method = asked.headers.get("x-http-method-override")?.to_str().ok()?;
    (is_form && asked.method == Method::POST && !method.is_empty()).then_some(method)
}

async fn unary<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    rpc: Rpc,
    metadata: Metadata,
    reader: Reader,
    response: MessageId,
) -> Response<ResponseBody> {
    let message = match reader.only().await {
        Ok(message) => message,
        Err(status) => return failure(&status),
    };
    let mut call = Call::open(thread, rpc, Rc::new(metadata.context), metadata.timeout, Instant::now());
    // Whoever drives the connection drops this call when its caller goes.
    match call.unary(ready(Ok(message)), |_| false).await {
        Ok(framed) => {
            let (name, value) = GRPC_CONTENT_TYPE;
            let mut answer = answer(StatusCode::OK, printed(response, framed.slice(PREFIX_BYTES..)).await);
            answer.headers_mut().insert(name, value);
            answer
        }
        Err(status) => failure(&status),
    }
}

/// A message as JSON. What is large is printed where it keeps nobody waiting.
async fn printed(id: MessageId, message: Bytes) -> Bytes {
    let is_large = message.len() > limits::JSON_INLINE_BYTES_MAX;
    let print = move || {
        let mut text = String::with_capacity(message.len() * 3 / 2);
        print(&mut text, id, &message, Escape::Json);
        Bytes::from(text)
    };
    if !is_large {
        return print();
    }
    // Fails only when the runtime ends, and then nobody hears the answer.
    tokio::task::spawn_blocking(print).await.unwrap_or_default()
}

/// Waits for the beginning of a stream, which decides how it is answered, and passes on the rest as it comes.
async fn begin<D: FrontDoor>(serving: Result<Serving<D>, Status>, response: MessageId) -> Response<ResponseBody> {
    let mut serving = match serving {
        Ok(serving) => serving,
        Err(status) => return stream_failure(&status),
    };
    let first = poll_fn(|cx| {
        serving.poll_turn(cx);
        match serving.take(cx) {
            Taken::Pending => Poll::Pending,
            taken => Poll::Ready(taken),
        }
    });
    let line = match first.await {
        Taken::Message(parts) => result_line(response, &parts),
        Taken::End(Err(error)) => return stream_failure(&serving.end(Err(error))),
        Taken::End(Ok(())) | Taken::Pending => {
            serving.end(Ok(()));
            return Response::new(ResponseBody::Whole(Bytes::new()));
        }
    };
    let lines = stream::once(ready(line)).chain(Lines { serving: Some(serving), response });
    let mut answer = Response::new(ResponseBody::Pieces(lines.boxed_local()));
    let (name, value) = GRPC_CONTENT_TYPE;
    answer.headers_mut().insert(header::CONTENT_TYPE, JSON);
    answer.headers_mut().insert(name, value);
    answer
}

/// The messages of a stream as JSON, one a line, an error last.
struct Lines<D: FrontDoor> {
    /// `None` once it has ended.
    serving: Option<Serving<D>>,
    response: MessageId,
}

impl<D: FrontDoor> Stream for Lines<D> {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Bytes>> {
        let Some(serving) = &mut self.serving else { return Poll::Ready(None) };
        serving.poll_turn(cx);
        match serving.take(cx) {
            Taken::Message(parts) => Poll::Ready(Some(result_line(self.response, &parts))),
            Taken::End(end) => {
                let status = self.serving.take().map(|serving| serving.end(end));
                Poll::Ready(status.filter(|status| *status != Status::OK).map(|status| error_line(&status)))
            }
            Taken::Pending => Poll::Pending,
        }
    }
}

impl<D: FrontDoor> Unpin for Lines<D> {}

fn result_line(id: MessageId, parts: &MessageParts) -> Bytes {
    let message = match &parts[..] {
        [part] => part.clone(),
        parts => Bytes::from(parts.concat()),
    };
    let mut line = String::with_capacity(message.len() * 3 / 2 + 16);
    line.push_str("{\"result\":");
    print(&mut line, id, &message, Escape::Html);
    line.push_str("}\n");
    line.into()
}

fn error_line(status: &Status) -> Bytes {
    let mut line = String::from("{\"error\":");
    print_status(&mut line, status, Escape::Html);
    line.push_str("}\n");
    line.into()
}

fn print_status(out: &mut String, status: &Status, escape: Escape) {
    out.push_str(&format!("{{\"code\":{}", status.code));
    if !status.text.is_empty() {
        out.push_str(",\"message\":");
        print_string(out, &status.text, escape);
    }
    out.push('}');
}

/// The answer to a call that has failed, or that there is none for.
fn failure(status: &Status) -> Response<ResponseBody> {
    let mut text = String::new();
    print_status(&mut text, status, Escape::Json);
    let mut answer = answer(http_status(status.code), text.into());
    if status.code == Code::Unauthenticated as u8
        && let Ok(challenge) = HeaderValue::from_str(&status.text)
    {
        answer.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    answer
}

/// The same for a stream that has not begun.
fn stream_failure(status: &Status) -> Response<ResponseBody> {
    answer(http_status(status.code), error_line(status))
}

fn answer(status: StatusCode, body: Bytes) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

/// The usual HTTP status of a gRPC code.
fn http_status(code: u8) -> StatusCode {
    let status = match code {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
