//! Plain HTTP beside etcd 3.7.1: the same requests, good, bad and hostile, to both; status, the headers that mean something
//! and the whole body must be the same. Only ids, terms and what is each server's own are taken out.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use daymark_tests::{
    etcd,
    process::{Program, Server, http_get},
};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};

mod http {
    pub mod requests;
}

use http::requests::{Request, table};

/// Until an answer that should be there is given up.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a stream is listened to after its last line, to see that nothing more comes.
const QUIET: Duration = Duration::from_millis(300);
/// Headers that are compared, beside the status and the body.
const HEADERS: &[&str] = &[
    "content-type",
    "grpc-metadata-content-type",
    "www-authenticate",
    "location",
    "allow",
    "x-content-type-options",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "sec-websocket-version",
    "sec-websocket-protocol",
];

/// What a server answered.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    status: u16,
    headers: Vec<String>,
    body: String,
}

fn ask(server: &Server, request: &Request) -> Answer {
    let mut stream = TcpStream::connect(server.endpoint()).expect("connect");
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    if !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head += "Host: localhost\r\n";
    }
    for (name, value) in &request.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", request.body.len());
    stream.write_all(head.as_bytes()).expect("write the head");
    // A server may refuse before it has read all.
    let _ = stream.write_all(&request.body);
    read(&mut stream, request)
}

/// Reads an answer to its end or, of a stream, to the end of its lines.
fn read(stream: &mut TcpStream, request: &Request) -> Answer {
    let begun = Instant::now();
    let mut bytes = Vec::new();
    loop {
        let answer = parse(&bytes, request.method == "HEAD");
        let wait = match &answer {
            Some((_, true)) => break,
            Some((answer, _)) if answer.body.lines().count() >= request.lines => QUIET,
            _ => ANSWER_MAX.saturating_sub(begun.elapsed()),
        };
        if wait.is_zero() {
            panic!("no answer within {ANSWER_MAX:?}: {request}: {}", String::from_utf8_lossy(&bytes));
        }
        stream.set_read_timeout(Some(wait)).expect("a timeout");
        let mut piece = [0; 65_536];
        match stream.read(&mut piece) {
            Ok(0) | Err(_) if request.lines > 0 || answer.is_some() => break,
            Ok(length) if length > 0 => bytes.extend_from_slice(&piece[..length]),
            other => panic!("{request}: {other:?} after {}", String::from_utf8_lossy(&bytes)),
        }
    }
    parse(&bytes, request.method == "HEAD").map(|(answer, _)| answer).unwrap_or_default()
}

/// What has been read so far of an answer, and whether that is all; `None` before the end of its head.
fn parse(bytes: &[u8], is_head: bool) -> Option<(Answer, bool)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let header = |wanted: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned())
    };
    let named = HEADERS.iter().filter_map(|name| header(name).map(|value| format!("{name}: {value}")));
    let headers = named.collect();
    let rest = &bytes[end + 4..];
    let (body, is_all) = match (header("content-length"), header("transfer-encoding")) {
        _ if is_head || status == 101 => (Vec::new(), true),
        (Some(length), _) => (rest.to_vec(), rest.len() >= length.parse::<usize>().ok()?),
        (None, Some(_)) => chunks(rest),
        (None, None) => (rest.to_vec(), false),
    };
    Some((Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() }, is_all))
}

fn chunks(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(&String::from_utf8_lossy(&rest[..end]), 16).unwrap_or(0);
        if length == 0 {
            return (body, true);
        }
        let Some(chunk) = rest.get(end + 2..end + 2 + length) else { break };
        body.extend_from_slice(chunk);
        rest = rest.get(end + 4 + length..).unwrap_or_default();
    }
    (body, false)
}

/// Takes out of a body what is each server's own: ids, terms, sizes, and the spaces with which Go's encoder makes sure
/// that nobody counts on them.
fn normal(body: &str) -> String {
    let mut text = body.replace('\u{a0}', " ").replace(", \"", ",\"");
    for name in [
        "cluster_id",
        "member_id",
        "raft_term",
        "ID",
        "leader",
        "raftIndex",
        "raftTerm",
        "raftAppliedIndex",
        "dbSize",
        "dbSizeInUse",
        "memberID",
        "token",
        "remaining_bytes",
    ] {
        text = without_value(&text, &format!("\"{name}\":\""), '"');
    }
    for name in ["hash", "TTL"] {
        text = without_value(&text, &format!("\"{name}\":"), ',');
    }
    text
}

fn without_value(text: &str, key: &str, end: char) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(key) {
        let value = at + key.len();
        out.push_str(&rest[..value]);
        out.push('_');
        rest = &rest[value..];
        rest = &rest[rest.find([end, '}']).unwrap_or(rest.len())..];
    }
    out + rest
}

#[test]
fn every_route_answers_as_etcd_does() {
    let Some(oracle) = etcd::oracle_or_skip("every_route_answers_as_etcd_does") else { return };
    let (oracle, daymark) = (Server::start(&oracle, &[]), Server::start(&Program::daymark(), &[]));
    let mut wrong = Vec::new();
    let mut tokens = [String::new(), String::new()];
    let requests = table();
    for request in &requests {
        let mut answers = Vec::new();
        for (server, token) in [&oracle, &daymark].into_iter().zip(&mut tokens) {
            let mut answer = ask(server, &request.with_token(token));
            if let Some((_, rest)) = answer.body.split_once("\"token\":\"") {
                *token = rest.split('"').next().unwrap_or_default().to_owned();
            }
            answer.body =
                normal(&answer.body).replace(&server.endpoint(), "CLIENTS").replace(&server.peer_endpoint(), "PEERS");
            answers.push(answer);
        }
        if answers[0] != answers[1] && request.known_difference.is_none() {
            wrong.push(format!("{request}\n   etcd: {:?}\n   here: {:?}", answers[0], answers[1]));
        }
    }
    println!("{} requests compared", requests.len());
    assert!(wrong.is_empty(), "{} of {} requests:\n{}", wrong.len(), requests.len(), wrong.join("\n"));
}

/// Stands for an answer that did not come.
const SILENT: &str = "(nothing)";

/// Sends documents over a WebSocket and returns that many messages of the answer, and whether the other end closes then.
fn converse(server: &Server, path: &str, documents: &[&str], messages: usize) -> (Vec<String>, bool) {
    let request = format!("ws://{}{path}", server.endpoint()).into_client_request().expect("a request");
    let stream = TcpStream::connect(server.endpoint()).expect("connect");
    stream.set_read_timeout(Some(ANSWER_MAX)).expect("a timeout");
    let (mut socket, _) = tungstenite::client(request, stream).expect("handshake");
    for document in documents {
        socket.send(Message::text(*document)).expect("send");
    }
    let text = |message: Message| normal(message.to_text().expect("text"));
    let read = |_| socket.read().map_or_else(|_| SILENT.to_owned(), &text);
    let answers = (0..messages).map(read).collect();
    socket.get_ref().set_read_timeout(Some(QUIET)).expect("a timeout");
    let ends = match socket.read() {
        Ok(Message::Close(_)) | Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::Protocol(_)) => true,
        // etcd just closes the connection.
        Err(tungstenite::Error::Io(error)) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        other => panic!("{path}: one message too many: {other:?}"),
    };
    (answers, ends)
}

#[test]
fn websockets_say_the_same_as_etcds() {
    let Some(oracle) = etcd::oracle_or_skip("websockets_say_the_same_as_etcds") else { return };
    let servers = [Server::start(&oracle, &[]), Server::start(&Program::daymark(), &[])];
    for server in &servers {
        for value in ["MQ==", "Mg=="] {
            let body = format!(r#"{{"key":"YQ==","value":"{value}"}}"#);
            assert_eq!(ask(server, &Request::new("POST", "/v3/kv/put", body)).status, 200);
        }
        assert_eq!(ask(server, &Request::new("POST", "/v3/lease/grant", r#"{"TTL":900,"ID":7}"#)).status, 200);
    }
    let create = r#"{"create_request":{"key":"YQ==","start_revision":2,"prev_kv":true}}"#;
    let cases: &[(&str, &[&str], usize)] = &[
        ("/v3/watch", &[create], 2),
        ("/v3/watch?method=GET", &[create], 2),
        ("/v3/watch", &["{\"create_request\":", "{\"key\":\"Yg==\"}}"], 1),
        (
            "/v3/watch",
            &[r#"{"create_request":{"key":"YQ==","start_revision":-1}}"#, r#"{"create_request":{"key":"YQ=="}}"#],
            2,
        ),
        ("/v3beta/lease/keepalive", &[r#"{"ID":7}"#, r#"{"ID":"8"}"#], 2),
        ("/v3/nowhere", &[], 1),
        ("/v3/kv/range", &["nonsense"], 1),
    ];
    for (path, documents, messages) in cases {
        let [etcd, daymark] = servers.each_ref().map(|server| converse(server, path, documents, *messages));
        assert!(!daymark.0.iter().any(|answer| answer == SILENT), "{path} {documents:?}: {daymark:?}");
        match etcd.0.iter().any(|answer| answer == SILENT) {
            // Its own pipe is closed before it has told the error: sometimes the client hears nothing.
            true => println!("not compared, etcd said nothing: {path} {documents:?}; here: {daymark:?}"),
            false => assert_eq!(daymark, etcd, "{path} {documents:?}"),
        }
    }
}

/// A body that Go may have sent in chunks, in one piece.
fn joined(page: &str) -> String {
    let (mut whole, mut rest) = (String::new(), page);
    while let Some((size, chunk)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { return page.to_owned() };
        whole.push_str(&chunk[..size]);
        rest = &chunk[(size + 2).min(chunk.len())..];
    }
    if whole.is_empty() { page.to_owned() } else { whole }
}

#[test]
fn variables_have_the_names_of_etcds_and_the_gateway_can_be_turned_off() {
    let Some(oracle) = etcd::oracle_or_skip("variables_have_the_names_of_etcds") else { return };
    let off = &["--enable-grpc-gateway=false"][..];
    let pages = [(oracle, off), (Program::daymark(), off)].map(|(program, flags)| {
        let server = Server::start(&program, flags);
        let answer = ask(&server, &Request::new("POST", "/v3/kv/range", r#"{"key":"YQ=="}"#));
        assert_eq!((answer.status, &*answer.body), (404, "404 page not found\n"), "{program:?}");
        let port = server.endpoint().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        let (status, page) = http_get(port, "/debug/vars").expect("variables");
        assert_eq!(status, 200);
        serde_json::from_str::<serde_json::Value>(&joined(&page)).expect("JSON")
    });
    let names = |page: &serde_json::Value| page.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&pages[1]), names(&pages[0]));
    let (here, there) = (&pages[1]["raft.status"], &pages[0]["raft.status"]);
    for name in names(here) {
        assert_eq!(here[&name].is_string(), there[&name].is_string(), "{name}: {here} {there}");
    }
    assert_eq!(here["raftState"], there["raftState"]);
}
