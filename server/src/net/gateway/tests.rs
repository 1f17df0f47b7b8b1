//! The gateway over real sockets, with the front door of the transport's tests behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message, WebSocket};

use super::super::tests::Server;

/// One exchange: status, content type, body.
fn post(server: &Server, head: &str, body: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(server.address).expect("connect");
    let head = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).expect("write");
    stream.write_all(body.as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let header = |line: &str| line.strip_prefix("content-type: ").map(str::to_owned);
    (status, head.lines().find_map(header).unwrap_or_default(), body.to_owned())
}

#[test]
fn a_document_in_a_document_out() {
    let server = Server::start();
    for (head, body, wanted) in [
        ("POST /v3/kv/put", r#"{"key":"YQ==","value":"YWJj"}"#, (200, r#"{"header":{"revision":"3"}}"#)),
        ("POST /v3beta/kv/put", r#"{"key":"YQ=="} and more"#, (200, r#"{"header":{}}"#)),
        ("POST /v3/kv/%70ut", "", (200, r#"{"header":{}}"#)),
        (
            "POST /v3/kv/put",
            r#"{"key":"ZXJyb3I="}"#,
            (400, r#"{"code":3,"message":"etcdserver: key is not provided"}"#),
        ),
        ("POST /v3/kv/put", "{", (400, r#"{"code":3,"message":"unexpected EOF"}"#)),
        (
            "POST /v3/kv/put",
            r#"{"key":1}"#,
            (400, r#"{"code":3,"message":"proto: (line 1:8): invalid value for bytes field key: 1"}"#),
        ),
        ("POST /v3/kv/compaction", "{}", (400, r#"{"code":9,"message":"etcdserver: not capable"}"#)),
        ("GET /v3/kv/put", "", (501, r#"{"code":12,"message":"Method Not Allowed"}"#)),
        ("POST /v3/kv/nothing", "", (404, r#"{"code":5,"message":"Not Found"}"#)),
        ("POST /v3//kv/put", "{}", (307, "")),
        ("POST /v3", "{}", (307, "")),
    ] {
        let (status, content_type, answer) = post(&server, &format!("{head} HTTP/1.1"), body);
        assert_eq!((status, &*answer), wanted, "{head} {body}");
        assert_eq!(content_type, if status == 307 { "" } else { "application/json" }, "{head}");
    }
    let token = "POST /v3/kv/put HTTP/1.1\r\nAuthorization: Bearer abc\r\nGrpc-Metadata-hasleader: true";
    let (status, _, answer) = post(&server, token, r#"{"key":"dG9rZW4="}"#);
    assert_eq!((status, &*answer), (500, r#"{"code":13,"message":"abc true None"}"#));
    let late = "POST /v3/kv/put HTTP/1.1\r\nGrpc-Timeout: 20m";
    let (status, _, answer) = post(&server, late, r#"{"key":"bmV2ZXI="}"#);
    assert_eq!((status, &*answer), (504, r#"{"code":4,"message":"context deadline exceeded"}"#));
    assert!(server.threads.stop());
}

#[test]
fn a_message_over_the_limit_is_refused_whatever_its_length_as_json() {
    let server = Server::start();
    let (status, _, answer) =
        post(&server, "POST /v3/kv/put HTTP/1.1", &format!("{{\"key\":\"{}\"}}", "AAAA".repeat(699_051)));
    let text = "grpc: received message larger than max (2097158 vs. 2097152)";
    assert_eq!((status, &*answer), (429, &*format!("{{\"code\":8,\"message\":\"{text}\"}}")));
    let (status, _, answer) = post(&server, "POST /v3/kv/range HTTP/1.1", r#"{"key":"YQ==","limit":1000000}"#);
    assert_eq!(status, 200);
    assert!(answer.len() > 1_333_333 && answer.ends_with("\"}]}"), "{}", answer.len());
    assert!(server.threads.stop());
}

/// Sends a request and leaves the connection open.
fn open(server: &Server, path: &str, body: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(server.address).expect("connect");
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("write");
    chunk(&mut stream, body);
    BufReader::new(stream)
}

fn chunk(stream: &mut TcpStream, body: &str) {
    stream.write_all(format!("{:x}\r\n{body}\r\n", body.len()).as_bytes()).expect("write");
}

/// The next line of a chunked body that is JSON.
fn line(stream: &mut BufReader<TcpStream>) -> String {
    loop {
        let mut line = String::new();
        assert!(stream.read_line(&mut line).expect("read") > 0, "it ended");
        if line.starts_with('{') {
            return line;
        }
    }
}

#[test]
fn a_stream_answers_line_by_line_while_requests_come() {
    let server = Server::start();
    let mut keeper = open(&server, "/v3/lease/keepalive", r#"{"ID":"7"}{"I"#);
    assert_eq!(line(&mut keeper), "{\"result\":{\"ID\":\"7\",\"TTL\":\"5\"}}\n");
    chunk(keeper.get_mut(), "D\":8}");
    assert_eq!(line(&mut keeper), "{\"result\":{\"ID\":\"8\",\"TTL\":\"5\"}}\n");
    keeper.get_mut().write_all(b"0\r\n\r\n").expect("end");
    let mut rest = String::new();
    keeper.read_line(&mut rest).expect("read");
    keeper.read_line(&mut rest).expect("read");
    assert!(rest.ends_with("0\r\n"), "the end of the requests ends this stream: {rest:?}");
    let mut failing = open(&server, "/v3/watch", r#"{"create_request":{"key":"ZW5k"}}"#);
    assert_eq!(line(&mut failing), "{\"error\":{\"code\":14,\"message\":\"etcdserver: no leader\"}}\n");
    assert!(server.threads.stop());
}

fn websocket(server: &Server, path: &str, protocol: Option<&'static str>) -> WebSocket<TcpStream> {
    let mut request = format!("ws://{}{path}", server.address).into_client_request().expect("a request");
    if let Some(protocol) = protocol {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().expect("a header"));
    }
    let stream = TcpStream::connect(server.address).expect("connect");
    let (socket, response) = tungstenite::client(request, stream).expect("handshake");
    let answered = response.headers().get("sec-websocket-protocol").map(|value| value.to_str().expect("text"));
    assert_eq!(answered, protocol.map(|_| "Bearer"));
    socket
}

fn text(socket: &mut WebSocket<TcpStream>) -> String {
    socket.read().expect("a message").into_text().expect("text").to_string()
}

#[test]
fn a_websocket_carries_a_document_a_message() {
    let server = Server::start();
    let mut socket = websocket(&server, "/v3/lease/keepalive?method=GET", None);
    for id in [5, 6] {
        socket.send(Message::text(format!("{{\"ID\":{id}}}"))).expect("send");
        assert_eq!(text(&mut socket), format!("{{\"result\":{{\"ID\":\"{id}\",\"TTL\":\"5\"}}}}"));
    }
    socket.close(None).expect("close");
    let mut unary = websocket(&server, "/v3/kv/put", Some("Bearer, secret"));
    unary.send(Message::binary(r#"{"key":"dG9rZW4="}"#)).expect("send");
    assert_eq!(text(&mut unary), r#"{"code":13,"message":"secret false None"}"#);
    assert!(matches!(unary.read(), Ok(Message::Close(_))));
    let mut nowhere = websocket(&server, "/v3/nowhere", None);
    assert_eq!(text(&mut nowhere), r#"{"code":5,"message":"Not Found"}"#);
    let head = "GET /v3/watch HTTP/1.1\r\nupgrade: websocket\r\nsec-websocket-version: 13";
    assert_eq!(post(&server, head, "").0, 501, "without the other header it is no upgrade, and the method counts");
    assert!(server.threads.stop(), "neither open nor silent sockets keep it");
}

#[test]
fn stopping_ends_streams_and_silent_sockets() {
    let server = Server::start();
    let mut watch = open(&server, "/v3/lease/keepalive", r#"{"ID":"7"}"#);
    line(&mut watch);
    let mut silent = websocket(&server, "/v3/kv/put", None);
    let mut asked = websocket(&server, "/v3/lease/keepalive", None);
    asked.send(Message::text("{}")).expect("send");
    text(&mut asked);
    assert!(server.threads.stop());
    assert!(matches!(silent.read(), Ok(Message::Close(_))), "not broken off at the end of the grace");
    let stopped = "{\"error\":{\"code\":14,\"message\":\"etcdserver: server stopped\"}}";
    assert_eq!(line(&mut watch).trim_end(), stopped);
    assert_eq!(text(&mut asked), stopped);
}
