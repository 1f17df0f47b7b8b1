//! The net layer over real sockets, with a front door that answers by itself.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ::http::HeaderMap;
use bytes::{BufMut, Bytes, BytesMut};
use daymark_api::etcdserverpb as pb;
use daymark_api::grpc::health::v1 as health;
use futures_util::StreamExt;
use h2::client::SendRequest;
use prost::Message;

use super::accept::{Role, bind};
use super::*;
use crate::budget::Budget;
use crate::config::values::parse_url;
use crate::config::{Http2Server, SocketOptions};
use crate::metrics::Sample;
use crate::request::MessageParts;
use crate::rpc::Rpc;

mod deadlines;
mod large;
mod reflection;
mod stop;
mod tls;
mod transport;

/// Answers by the key of a request; counts what it sees.
struct FakeDoor {
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    calls: AtomicUsize,
    /// Calls and streams whose future has been dropped or has ended.
    ended: AtomicUsize,
    pushed: AtomicUsize,
    corrupt: AtomicUsize,
    /// Whether users have to say who they are.
    auth: AtomicUsize,
    /// Failures of the member itself that a service was given by the transport.
    fatal: AtomicUsize,
}

impl Seen {
    /// As the real door does it: this kind of error stops the member.
    fn look_at(&self, error: &Error) {
        if matches!(error, Error::Internal(_)) {
            self.fatal.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Ended(Arc<Seen>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl FrontDoor for FakeDoor {
    async fn call(self: &Rc<Self>, context: &Context, request: Request) -> Result<Reply, Error> {
        self.seen.calls.fetch_add(1, Ordering::SeqCst);
        let _ended = Ended(self.seen.clone());
        match request {
            Request::Put(put) => match &put.key[..] {
                b"error" => Err(Error::EmptyKey),
                b"odd" => Err(Error::Internal("50% ünderway\n".into())),
                b"never" => std::future::pending().await,
                // The pool has work that does not listen.
                b"deaf" => {
                    let work = tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_secs(30)));
                    work.await.map_err(|_| Error::Stopped)?;
                    Ok(Reply::Put(pb::PutResponse::default()))
                }
                b"later" => {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    Ok(Reply::Put(pb::PutResponse::default()))
                }
                b"who" => {
                    let name = context.certificate_name.clone().unwrap_or("nobody".into());
                    Err(Error::Internal(name.to_string()))
                }
                b"token" => {
                    let text = String::from_utf8_lossy(context.token.as_deref().unwrap_or_default()).into_owned();
                    Err(Error::Internal(format!("{text} {} {:?}", context.requires_leader, context.client_api_version)))
                }
                _ => {
                    let header = pb::ResponseHeader { revision: put.value.len() as i64, ..Default::default() };
                    Ok(Reply::Put(pb::PutResponse { header: Some(header), prev_kv: None }))
                }
            },
            // As many bytes as the limit says.
            Request::Range(range) => {
                let value = Bytes::from(vec![7; range.limit as usize]);
                let kvs = vec![daymark_api::mvccpb::KeyValue { key: range.key, value, ..Default::default() }];
                Ok(Reply::Range(pb::RangeResponse { kvs, ..Default::default() }))
            }
            _ => Err(Error::NotCapable),
        }
    }

    /// A create request with key `flood` starts an endless series of messages of 1000 bytes, as credit allows; one with
    /// key `end` ends the call with an error; any other is echoed.
    async fn watch(self: &Rc<Self>, _: Context, mut requests: RequestStream<pb::WatchRequest>, sink: Sink) {
        let _ended = Ended(self.seen.clone());
        while let Some(request) = requests.next().await {
            let request = match request {
                Ok(request) => request,
                Err(error) => {
                    self.seen.look_at(&error);
                    return sink.finish(Err(error));
                }
            };
            let Some(pb::watch_request::RequestUnion::CreateRequest(create)) = request.request_union else { continue };
            match &create.key[..] {
                b"end" => return sink.finish(Err(Error::NoLeader)),
                b"flood" => self.flood(&sink).await,
                _ => sink.push(MessageParts::from_iter([create.key.slice(..1), create.key.slice(1..)])),
            }
        }
    }

    async fn lease_keep_alive(
        self: &Rc<Self>,
        _: Context,
        mut requests: RequestStream<pb::LeaseKeepAliveRequest>,
        sink: Sink,
    ) {
        while let Some(request) = requests.next().await {
            match request {
                Ok(request) => {
                    let response = pb::LeaseKeepAliveResponse { id: request.id, ttl: 5, ..Default::default() };
                    sink.push(MessageParts::from_iter([response.encode_to_vec().into()]));
                }
                Err(error) => {
                    self.seen.look_at(&error);
                    return sink.finish(Err(error));
                }
            }
        }
    }

    async fn stream(self: &Rc<Self>, _: Context, request: StreamRequest, sink: Sink) {
        match request {
            StreamRequest::RangeStream(range) => sink.push(MessageParts::from_iter([range.key])),
            StreamRequest::Observe(_) | StreamRequest::Snapshot(_) => sink.finish(Err(Error::NotCapable)),
        }
    }

    async fn probe(self: &Rc<Self>, serializable: bool) -> Result<(), Error> {
        if serializable || self.seen.corrupt.load(Ordering::SeqCst) == 0 { Ok(()) } else { Err(Error::TimedOut) }
    }

    fn condition(&self) -> Condition {
        let corrupt = self.seen.corrupt.load(Ordering::SeqCst) > 0;
        let alarms = corrupt.then_some(pb::AlarmMember { member_id: 1, alarm: 2 });
        let auth_enabled = self.seen.auth.load(Ordering::SeqCst) > 0;
        Condition { alarms: alarms.into_iter().collect(), has_leader: true, auth_enabled, ..Condition::default() }
    }
}

impl FakeDoor {
    async fn flood(&self, sink: &Sink) {
        let credit = Rc::new(Notify::new());
        let wake = credit.clone();
        sink.on_credit(Rc::new(move || wake.notify_one()));
        loop {
            while sink.credit() > 0 && !sink.is_closed() {
                sink.push(MessageParts::from_iter([Bytes::from_static(&[1; 1000])]));
                self.seen.pushed.fetch_add(1, Ordering::SeqCst);
            }
            credit.notified().await;
        }
    }
}

/// A running net layer.
pub(super) struct Server {
    pub threads: NetThreads,
    metrics: Arc<Metrics>,
    pub address: SocketAddr,
    answers: Arc<Budget>,
    seen: Arc<Seen>,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(Self::transport())
    }

    fn transport() -> TransportOptions {
        TransportOptions {
            max_concurrent_streams: 10_000,
            message_bytes_max: 2_097_152,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_millis(300),
            keepalive_min_time: Duration::from_secs(5),
            http2_server: Http2Server::Lean,
        }
    }

    fn start_with(transport: TransportOptions) -> Self {
        Self::start_for_origins(transport, Vec::new())
    }

    fn start_for_origins(transport: TransportOptions, cors: Vec<String>) -> Self {
        Self::start_on(&["http://127.0.0.1:0"], transport, cors, None)
    }

    fn start_on(
        urls: &[&str],
        transport: TransportOptions,
        cors: Vec<String>,
        tls: Option<Arc<super::tls::Tls>>,
    ) -> Self {
        let (seen, answers) = (Arc::new(Seen::default()), Arc::new(Budget::default()));
        let options = NetOptions {
            answers: answers.clone(),
            threads: 2,
            transport,
            warning_unary_request: Duration::from_secs(3600),
            warning_apply: Duration::from_secs(3600),
            cors,
            host_whitelist: Vec::new(),
            gateway: true,
            grace: Duration::from_millis(500),
            tls,
        };
        let metrics = Metrics::new(2, Arc::new(Sample::default));
        let door_seen = seen.clone();
        let build = move |_| Rc::new(FakeDoor { seen: door_seen.clone() });
        let threads = NetThreads::start(options, metrics.clone(), build).expect("threads");
        let urls: Vec<_> = urls.iter().map(|url| parse_url(url).expect("url")).collect();
        let listeners = bind(&urls, Role::Client, SocketOptions::default()).expect("port");
        let address = listeners[0].local_address().expect("address");
        threads.listen(listeners);
        Self { threads, metrics, address, answers, seen }
    }

    async fn connect(&self) -> Client {
        Client::over(tokio::net::TcpStream::connect(self.address).await.expect("connect")).await
    }

    /// One HTTP/1 exchange: status and body.
    fn http1(&self, request: &str) -> (String, String) {
        let mut stream = StdTcpStream::connect(self.address).expect("connect");
        let request = format!("{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("write");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("read");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        let status = head.lines().next().and_then(|line| line.split(' ').nth(1)).expect("status");
        (status.to_owned(), body.to_owned())
    }
}

struct Client {
    send: SendRequest<Bytes>,
    driver: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    async fn over<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (send, connection) = h2::client::Builder::new()
            .initial_max_send_streams(100_000)
            // So that one stream that is not read does not use up the connection.
            .initial_connection_window_size(4 << 20)
            .handshake(stream)
            .await
            .expect("handshake");
        let driver = tokio::spawn(connection);
        Self { send, driver }
    }
}

/// What came back: HTTP status, message bytes, gRPC status and text.
#[derive(Debug, PartialEq)]
struct Answer {
    http: u16,
    body: Bytes,
    code: u16,
    text: String,
}

impl Client {
    fn head(path: &str, extra: &[(&'static str, &str)]) -> ::http::Request<()> {
        let mut request = ::http::Request::post(format!("http://localhost{path}")).header("te", "trailers");
        if extra.iter().all(|(name, _)| *name != "content-type") {
            request = request.header("content-type", "application/grpc");
        }
        for (name, value) in extra {
            request = request.header(*name, *value);
        }
        request.body(()).expect("request")
    }

    async fn raw(&self, path: &str, extra: &[(&'static str, &str)], body: Bytes) -> Result<Answer, h2::Error> {
        let mut send = self.send.clone().ready().await?;
        let (response, mut stream) = send.send_request(Self::head(path, extra), body.is_empty())?;
        if !body.is_empty() {
            // The server may have refused the call before it has all of the body.
            let _ = stream.send_data(body, true);
        }
        answer(response.await?).await
    }

    async fn call(&self, path: &str, message: &impl Message) -> Answer {
        self.raw(path, &[], frame(message)).await.expect("call")
    }

    async fn put(&self, key: &str) -> Answer {
        self.call("/etcdserverpb.KV/Put", &put_request(key)).await
    }
}

async fn answer(response: ::http::Response<h2::RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut stream) = response.into_parts();
    let mut body = BytesMut::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk?;
        stream.flow_control().release_capacity(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await?.unwrap_or(head.headers);
    let (code, text) = status(&trailers);
    Ok(Answer { http: head.status.as_u16(), body: body.freeze(), code, text })
}

fn status(headers: &HeaderMap) -> (u16, String) {
    let text = |name| headers.get(name).map(|value| value.to_str().expect("printable").to_owned()).unwrap_or_default();
    (text("grpc-status").parse().expect("grpc-status"), text("grpc-message"))
}

fn frame(message: &impl Message) -> Bytes {
    frames::encode(message)
}

fn put_request(key: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::from_static(b"12345"),
        ..Default::default()
    }
}

fn watch_create(key: &'static str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

/// Runs a test body on its own runtime against a fresh server, once for each of the two that serve HTTP/2.
fn with_server<F: Future<Output = ()>>(test: impl Fn(Rc<Server>) -> F) {
    for http2_server in [Http2Server::Lean, Http2Server::H2] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let server = Rc::new(Server::start_with(TransportOptions { http2_server, ..Server::transport() }));
        runtime.block_on(test(server.clone()));
        let server = Rc::into_inner(server).expect("the test is over");
        assert!(server.threads.stop(), "a net thread panicked");
    }
}

/// Waits for something another thread does; fails after five seconds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within 5 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_unary_call_returns_message_and_status() {
    with_server(async |server| {
        let client = server.connect().await;
        let answer = client.put("k").await;
        assert_eq!((answer.http, answer.code, &*answer.text), (200, 0, ""));
        assert_eq!(answer.body[0], 0, "not compressed");
        let response = pb::PutResponse::decode(answer.body.slice(5..)).expect("message");
        assert_eq!(response.header.expect("header").revision, 5);
        let counters =
            |code: usize| (0..2).map(|n| server.metrics.net(n).rpc(Rpc::Put).handled[code].value()).sum::<u64>();
        eventually("the call is counted", || counters(0) == 1).await;
    });
}

#[test]
fn an_error_is_a_code_and_a_percent_encoded_text() {
    with_server(async |server| {
        let client = server.connect().await;
        let answer = client.put("error").await;
        assert_eq!((answer.code, &*answer.text), (3, "etcdserver: key is not provided"));
        assert!(answer.body.is_empty());
        let answer = client.put("odd").await;
        assert_eq!((answer.code, &*answer.text), (13, "50%25 %C3%BCnderway%0A"));
    });
}

#[test]
fn metadata_reaches_the_services() {
    with_server(async |server| {
        let client = server.connect().await;
        let body = frame(&put_request("token"));
        let path = "/etcdserverpb.KV/Put";
        let all = [
            ("authorization", "Bearer a"),
            ("token", "Bearer b"),
            ("hasleader", "true"),
            ("client-api-version", "3.7"),
        ];
        let answer = client.raw(path, &all, body.clone()).await.expect("call");
        assert_eq!(answer.text, "b true Some(Ok(\"3.7\"))", "token before authorization");
        let answer = client.raw(path, &[("authorization", "c")], body).await.expect("call");
        assert_eq!(answer.text, "c false None");
    });
}

#[test]
fn what_is_malformed_is_refused_and_the_connection_lives_on() {
    with_server(async |server| {
        let client = server.connect().await;
        let put = "/etcdserverpb.KV/Put";
        let framed = |flag: u8, length: u32, bytes: &[u8]| {
            let mut body = BytesMut::new();
            body.put_u8(flag);
            body.put_u32(length);
            body.put_slice(bytes);
            body.freeze()
        };
        let two = [frame(&put_request("a")), frame(&put_request("b"))].concat();
        type Case<'a> = (&'a str, Vec<(&'static str, &'a str)>, Bytes, u16, &'a str);
        let cases: Vec<Case<'_>> = vec![
            (put, vec![], framed(0, 3, b"\xff\xff\xff"), 13, "grpc: error unmarshalling request: "),
            (put, vec![], framed(0, 9, b"abc"), 13, "unexpected EOF"),
            (put, vec![], framed(1, 3, b"abc"), 13, "grpc: compressed flag set with identity or empty encoding"),
            (put, vec![], framed(7, 3, b"abc"), 13, "grpc: received unexpected payload format 7"),
            (put, vec![], Bytes::new(), 13, "cardinality violation: received no request message"),
            (put, vec![], two.into(), 13, "cardinality violation: received multiple request messages"),
            (put, vec![("grpc-timeout", "5")], frame(&put_request("a")), 13, "malformed grpc-timeout"),
            (
                put,
                vec![("grpc-encoding", "zstd")],
                framed(1, 3, b"abc"),
                12,
                "grpc: Decompressor is not installed for grpc-encoding \"zstd\"",
            ),
            (
                "/etcdserverpb.KV/Nothing",
                vec![],
                Bytes::new(),
                12,
                "unknown method Nothing for service etcdserverpb.KV",
            ),
            ("/etcdserverpb.KV/RangeStream", vec![], framed(0, 3, b"\xff\xff\xff"), 13, "grpc: error unmarshalling"),
            ("/etcdserverpb.KV/RangeStream", vec![], Bytes::new(), 13, "cardinality violation: received no request"),
            ("/foo.Bar/Baz", vec![], Bytes::new(), 12, "unknown service foo.Bar"),
            ("/nonsense", vec![], Bytes::new(), 12, "malformed method name: \"/nonsense\""),
        ];
        for (path, headers, body, code, text) in cases {
            let answer =
                client.raw(path, &headers, body).await.unwrap_or_else(|error| panic!("{path} {text}: {error}"));
            assert_eq!((answer.http, answer.code), (200, code), "{answer:?}");
            assert!(answer.text.starts_with(text), "{answer:?} instead of {text}");
        }
        assert_eq!(server.seen.calls.load(Ordering::SeqCst), 0, "nothing of this reached the services");
        assert_eq!(client.put("k").await.code, 0, "the same connection still serves");
    });
}

#[test]
fn what_is_not_grpc_gets_an_http_status() {
    with_server(async |server| {
        let client = server.connect().await;
        let answer =
            client.raw("/etcdserverpb.KV/Put", &[("content-type", "text/html")], Bytes::new()).await.expect("call");
        assert_eq!(answer.http, 415);
        let typed =
            client.raw("/etcdserverpb.KV/Put", &[("content-type", "application/grpc+proto")], frame(&put_request("a")));
        assert_eq!(typed.await.expect("call").code, 0);
    });
}

#[test]
fn a_message_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    with_server(async |server| {
        let client = server.connect().await;
        let limit = 2_097_152;
        let sized = |bytes: usize| {
            let value = Bytes::from(vec![1; bytes - 4 - 1 - 3]);
            let put = pb::PutRequest { key: Bytes::from_static(b"kk"), value, ..Default::default() };
            (put.encoded_len(), frame(&put))
        };
        let (length, body) = sized(limit);
        assert_eq!(length, limit);
        let answer = client.raw("/etcdserverpb.KV/Put", &[], body).await.expect("at the limit");
        assert_eq!((answer.code, &*answer.text), (0, ""));
        let (length, body) = sized(limit + 1);
        assert_eq!(length, limit + 1);
        let answer = client.raw("/etcdserverpb.KV/Put", &[], body).await.expect("over the limit");
        assert_eq!(answer.code, 8);
        assert_eq!(answer.text, "grpc: received message larger than max (2097153 vs. 2097152)");
        assert_eq!(client.put("k").await.code, 0, "the same connection still serves");
    });
}

#[test]
fn a_caller_that_breaks_the_framing_ends_its_call_and_nothing_else() {
    let compressed = "grpc: compressed flag set with identity or empty encoding";
    with_server(async |server| {
        let client = server.connect().await;
        for (body, text) in [
            (&b"\x01\0\0\0\0"[..], compressed),
            (b"\x01\0\0\0\x02\x08\x07", compressed),
            (b"\x02\0\0\0\0", "grpc: received unexpected payload format 2"),
            (b"\0\0\0\0\x09\x08\x07", "unexpected EOF"),
            (b"\0\0", "unexpected EOF"),
        ] {
            for method in ["KV/Put", "Watch/Watch", "Lease/LeaseKeepAlive"] {
                let path = format!("/etcdserverpb.{method}");
                let answer = client.raw(&path, &[], Bytes::from_static(body)).await.expect("call");
                assert_eq!((answer.code, &*answer.text), (13, text), "{method} {body:?}");
            }
        }
        for body in [Bytes::new(), [frame(&put_request("k")), frame(&put_request("k"))].concat().into()] {
            let answer = client.raw("/etcdserverpb.KV/Put", &[], body).await.expect("call");
            assert_eq!(answer.code, 13);
            assert!(answer.text.starts_with("cardinality violation: received "), "{}", answer.text);
        }
        assert_eq!(server.seen.fatal.load(Ordering::SeqCst), 0, "no wire fault is a failure of the member");
        assert_eq!(client.put("k").await.code, 0, "the same connection still serves");
    });
}

#[test]
fn a_caller_that_goes_takes_its_work_along() {
    with_server(async |server| {
        let client = server.connect().await;
        // A reset of one stream.
        let mut send = client.send.clone().ready().await.expect("ready");
        let (response, mut stream) = send.send_request(Client::head("/etcdserverpb.KV/Put", &[]), false).expect("send");
        stream.send_data(frame(&put_request("never")), true).expect("data");
        eventually("the call has begun", || server.seen.calls.load(Ordering::SeqCst) == 1).await;
        stream.send_reset(h2::Reason::CANCEL);
        drop(response);
        eventually("the call is dropped", || server.seen.ended.load(Ordering::SeqCst) == 1).await;
        // The whole connection: a call and a watch.
        let (_response, mut stream) =
            send.send_request(Client::head("/etcdserverpb.KV/Put", &[]), false).expect("send");
        stream.send_data(frame(&put_request("never")), true).expect("data");
        let (_watch, mut stream) =
            send.send_request(Client::head("/etcdserverpb.Watch/Watch", &[]), false).expect("send");
        stream.send_data(frame(&watch_create("flood")), false).expect("data");
        eventually("both have begun", || server.seen.pushed.load(Ordering::SeqCst) > 0).await;
        eventually("both have begun", || server.seen.calls.load(Ordering::SeqCst) == 2).await;
        client.driver.abort();
        eventually("both are dropped", || server.seen.ended.load(Ordering::SeqCst) == 3).await;
        let open = || (0..2).map(|n| server.metrics.net(n).connections.load(Ordering::Relaxed)).sum::<u64>();
        eventually("the connection is forgotten", || open() == 0).await;
    });
}

/// One HTTP/2 frame.
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Headers of a Put, all as literals without indexing.
fn h2_put_headers() -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/etcdserverpb.KV/Put"),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// Reads frames until headers come for a stream; panics if the connection ends before.
fn await_headers(socket: &mut StdTcpStream, wanted: u32) {
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).expect("the connection stands");
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).expect("the connection stands");
        let (kind, stream) = (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        assert_ne!(kind, 7, "GOAWAY {payload:?}");
        if kind == 1 && stream == wanted {
            return;
        }
    }
}

#[test]
fn a_burst_of_cancelled_or_of_tiny_calls_does_not_cost_the_connection() {
    let server = Server::start();
    let mut socket = StdTcpStream::connect(server.address).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let (headers, message) = (h2_put_headers(), frame(&put_request("k")));
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(h2_frame(4, 0, 0, &[]));
    for number in 0..3_000 {
        bytes.extend(h2_frame(1, 4, 2 * number + 1, &headers));
        bytes.extend(h2_frame(3, 0, 2 * number + 1, &[0, 0, 0, 8]));
    }
    let tiny = 3_000..12_000;
    for number in tiny.clone() {
        bytes.extend(h2_frame(1, 4, 2 * number + 1, &headers));
        bytes.extend(h2_frame(0, 1, 2 * number + 1, &message));
    }
    let mut writer = socket.try_clone().expect("clone");
    let writing = std::thread::spawn(move || writer.write_all(&bytes).expect("the connection stands"));
    await_headers(&mut socket, 2 * (tiny.end - 1) + 1);
    writing.join().expect("written");
    drop(socket);
    assert!(server.threads.stop());
}

/// A transaction that nests `depth` others.
fn nested(depth: usize) -> pb::TxnRequest {
    (0..depth).fold(pb::TxnRequest::default(), |inner, _| {
        let request = Some(pb::request_op::Request::RequestTxn(inner));
        pb::TxnRequest { success: vec![pb::RequestOp { request }], ..Default::default() }
    })
}

#[test]
fn transactions_nested_deeper_than_is_decoded_are_refused_in_one_short_line() {
    with_server(async |server| {
        let client = server.connect().await;
        // The door of this test knows no transactions: it has been asked.
        assert_eq!(client.call("/etcdserverpb.KV/Txn", &nested(40)).await.text, "etcdserver: not capable");
        for depth in [60, 1000] {
            let answer = client.call("/etcdserverpb.KV/Txn", &nested(depth)).await;
            assert_eq!((answer.code, &*answer.text), (3, "etcdserver: too many operations in txn request"), "{depth}");
        }
    });
}

#[test]
fn a_path_with_a_query_is_no_method() {
    with_server(async |server| {
        let client = server.connect().await;
        let body = frame(&put_request("k"));
        let answer = client.raw("/etcdserverpb.KV/Put?x=1", &[], body).await.expect("call");
        assert_eq!((answer.code, &*answer.text), (12, "unknown method Put?x=1 for service etcdserverpb.KV"));
    });
}

#[test]
fn a_preflight_is_answered_to_all_and_allows_only_listed_origins() {
    let server = Server::start_for_origins(Server::transport(), vec!["http://good".into()]);
    for (origin, allowed) in [("http://good", true), ("http://bad", false)] {
        let mut socket = StdTcpStream::connect(server.address).expect("connect");
        let request =
            format!("OPTIONS /v3/kv/put HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).expect("write");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("read");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(answer.contains(&format!("access-control-allow-origin: {origin}\r\n")), allowed, "{answer}");
        assert_eq!(answer.contains("access-control-allow-methods"), allowed, "{answer}");
    }
    assert!(server.threads.stop());
}

#[test]
fn a_stream_answers_in_order_and_ends_with_a_status() {
    with_server(async |server| {
        let client = server.connect().await;
        let mut send = client.send.clone().ready().await.expect("ready");
        let (response, mut stream) =
            send.send_request(Client::head("/etcdserverpb.Watch/Watch", &[]), false).expect("send");
        // Headers come before the first message, so that a client knows that the stream stands.
        let response = response.await.expect("headers");
        let two = [frame(&watch_create("one")), frame(&watch_create("three"))].concat();
        let (first, second) = two.split_at(11);
        stream.send_data(Bytes::copy_from_slice(first), false).expect("data");
        stream.send_data(Bytes::copy_from_slice(second), false).expect("data");
        stream.send_data(frame(&watch_create("end")), false).expect("data");
        let answer = answer(response).await.expect("answer");
        assert_eq!(&answer.body[..], b"\0\0\0\0\x03one\0\0\0\0\x05three");
        assert_eq!((answer.code, &*answer.text), (14, "etcdserver: no leader"));
    });
}

#[test]
fn the_end_of_requests_ends_a_keepalive_stream() {
    with_server(async |server| {
        let client = server.connect().await;
        let body = [7, 8].map(|id| frame(&pb::LeaseKeepAliveRequest { id })).concat();
        let answer = client.raw("/etcdserverpb.Lease/LeaseKeepAlive", &[], body.into()).await.expect("call");
        assert_eq!(answer.code, 0);
        let length = 5 + usize::from(answer.body[4]);
        let first = pb::LeaseKeepAliveResponse::decode(answer.body.slice(5..length)).expect("message");
        let second = pb::LeaseKeepAliveResponse::decode(answer.body.slice(length + 5..)).expect("message");
        assert_eq!((first.id, second.id), (7, 8));
    });
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer() {
    with_server(async |server| {
        let client = server.connect().await;
        let mut send = client.send.clone().ready().await.expect("ready");
        let (response, mut stream) =
            send.send_request(Client::head("/etcdserverpb.Watch/Watch", &[]), false).expect("send");
        stream.send_data(frame(&watch_create("flood")), false).expect("data");
        let mut body = response.await.expect("headers").into_body();
        // Window of the client (64 KiB), queue of the sink (256 KiB), one gathered frame: no more is ever produced.
        let bound = (65_535 + limits::STREAM_QUEUE_BYTES_MAX + 2 * limits::STREAM_GATHER_BYTES) / 1000 + 2;
        let pushed = || server.seen.pushed.load(Ordering::SeqCst);
        eventually("the writer has filled everything", || pushed() > limits::STREAM_QUEUE_BYTES_MAX / 1000).await;
        let stalled = Cell::new(0);
        eventually("the writer has stopped", || stalled.replace(pushed()) == pushed()).await;
        assert!(pushed() <= bound, "{} messages, expected at most {bound}", pushed());
        assert_eq!(client.put("k").await.code, 0, "other calls of the connection go on");
        // A reader makes it go on.
        let mut read = 0;
        while read < 2_000_000 {
            let chunk = body.data().await.expect("endless").expect("data");
            body.flow_control().release_capacity(chunk.len()).expect("release");
            read += chunk.len();
        }
        assert!(pushed() >= 1900, "{}", pushed());
        // Dropped with the connection: stopping the server must not wait for it.
    });
}

#[test]
fn a_thousand_calls_at_once_on_one_connection() {
    with_server(async |server| {
        let client = Rc::new(server.connect().await);
        let calls = (0..1000).map(|number| {
            let client = client.clone();
            async move { client.put(if number % 3 == 0 { "later" } else { "k" }).await.code }
        });
        let codes = futures_util::future::join_all(calls).await;
        assert!(codes.iter().all(|code| *code == 0));
        assert_eq!(server.seen.calls.load(Ordering::SeqCst), 1000);
    });
}

#[test]
fn connections_are_dealt_out_evenly() {
    with_server(async |server| {
        let mut clients = Vec::new();
        for _ in 0..10 {
            let client = server.connect().await;
            assert_eq!(client.put("k").await.code, 0);
            clients.push(client);
        }
        for thread in 0..2 {
            assert_eq!(server.metrics.net(thread).connections.load(Ordering::Relaxed), 5, "thread {thread}");
        }
    });
}

#[test]
fn grpc_health_knows_the_empty_service_only() {
    with_server(async |server| {
        let client = server.connect().await;
        let check = |service: &str| health::HealthCheckRequest { service: service.into() };
        let answer = client.call("/grpc.health.v1.Health/Check", &check("")).await;
        assert_eq!(health::HealthCheckResponse::decode(answer.body.slice(5..)).expect("message").status, 1);
        let answer = client.call("/grpc.health.v1.Health/Check", &check("x")).await;
        assert_eq!((answer.code, &*answer.text), (5, "unknown service"));
        let mut send = client.send.clone().ready().await.expect("ready");
        let (response, mut stream) =
            send.send_request(Client::head("/grpc.health.v1.Health/Watch", &[]), false).expect("send");
        stream.send_data(frame(&check("x")), true).expect("data");
        let mut body = response.await.expect("headers").into_body();
        assert_eq!(&body.data().await.expect("message").expect("data")[..], b"\0\0\0\0\x02\x08\x03");
    });
}

#[test]
fn http_routes_are_served_on_the_same_port() {
    with_server(async |server| {
        let version = "{\"etcdserver\":\"3.7.1\",\"etcdcluster\":\"3.7.0\",\"storage\":\"3.7.0\"}";
        for (request, status, body) in [
            ("GET /version", "200", version),
            ("POST /version", "405", "Method Not Allowed\n"),
            ("GET /health", "200", "{\"health\":\"true\",\"reason\":\"\"}"),
            ("POST /health", "405", "Method Not Allowed\n"),
            ("GET /livez", "200", "ok\n"),
            ("GET /readyz", "200", "ok\n"),
            ("PUT /readyz", "405", "Method Not Allowed\n"),
            ("GET /livez?verbose", "200", "[+]serializable_read ok\nok\n"),
            ("GET /livez/serializable_read", "200", "ok\n"),
            ("GET /livez/non_learner", "404", "404 page not found\n"),
            ("GET /readyz/non_learner?verbose", "200", "[+]non_learner ok\nok\n"),
            ("GET /livezz", "404", "404 page not found\n"),
            ("GET /", "404", "404 page not found\n"),
        ] {
            assert_eq!(server.http1(request), (status.to_owned(), body.to_owned()), "{request}");
        }
        let (status, text) = server.http1("GET /metrics");
        assert_eq!(status, "200");
        assert!(text.contains("\netcd_server_health_success 6\n"), "{text}");
    });
}

#[test]
fn health_says_what_is_wrong() {
    with_server(async |server| {
        server.seen.corrupt.store(1, Ordering::SeqCst);
        let unhealthy =
            |reason: &str| ("503".to_owned(), format!("{{\"health\":\"false\",\"reason\":\"{reason}\"}}\n"));
        assert_eq!(server.http1("GET /health"), unhealthy("ALARM CORRUPT"));
        let range_error = "RANGE ERROR:etcdserver: request timed out";
        assert_eq!(server.http1("GET /health?exclude=CORRUPT"), unhealthy(range_error));
        assert_eq!(server.http1("GET /health?exclude=CORRUPT&serializable=true").0, "200");
        assert_eq!(server.http1("GET /livez").0, "200");
        let (status, body) = server.http1("GET /readyz");
        assert_eq!(status, "503");
        let lines = "[-]data_corruption failed: alarm activated: CORRUPT\n[+]serializable_read ok\n\
                     [-]linearizable_read failed: range error: etcdserver: request timed out\n[+]non_learner ok\n\n";
        assert_eq!(body, lines);
        let (status, _) =
            server.http1("GET /readyz?exclude=data_corruption&exclude=linearizable_read&exclude=nonsense");
        assert_eq!(status, "200");
    });
}
