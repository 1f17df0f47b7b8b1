//! What a connection does beside its calls: compression of messages, pings.

use super::super::compression::{deflate, inflate};
use super::*;

const GZIP: [(&str, &str); 1] = [("grpc-encoding", "gzip")];

/// A message with gRPC's prefix, said to be compressed.
fn compressed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::new();
    framed.put_u8(1);
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

#[test]
fn compressed_calls_get_compressed_answers() {
    with_server(|server| async move {
        let client = server.connect().await;
        let put = compressed(&deflate(&put_request("k").encode_to_vec()).expect("compressed"));
        let mut send = client.send.clone().ready().await.expect("ready");
        let head = Client::head("/etcdserverpb.KV/Put", &GZIP);
        let (response, mut stream) = send.send_request(head, false).expect("send");
        stream.send_data(put, true).expect("send");
        let response = response.await.expect("headers");
        assert_eq!(response.headers()["grpc-encoding"], "gzip");
        let answer = answer(response).await.expect("answer");
        assert_eq!((answer.code, answer.body[0]), (0, 1), "compressed");
        let message = inflate(&answer.body[PREFIX..], 1000).expect("gzip");
        assert_eq!(pb::PutResponse::decode(message).expect("message").header.expect("header").revision, 5);
        // What says that it may be compressed need not be.
        let answer = client.raw("/etcdserverpb.KV/Put", &GZIP, frame(&put_request("k"))).await.expect("call");
        assert_eq!((answer.code, answer.body[0]), (0, 1));
        // An answer too large to be compressed on the net thread goes as it is.
        let range = pb::RangeRequest { key: "k".into(), limit: 1 << 20, ..Default::default() };
        let answer = client.raw("/etcdserverpb.KV/Range", &GZIP, frame(&range)).await.expect("call");
        assert_eq!((answer.code, answer.body[0], answer.body.len() > 1 << 20), (0, 0, true));
    });
}

#[test]
fn what_is_compressed_badly_or_too_well_ends_its_call_and_nothing_else() {
    with_server(|server| async move {
        let client = server.connect().await;
        // 100 MiB of zeros in 100 KiB, in pieces that each are a whole gzip file.
        let piece = deflate(&[0; 256 << 10]).expect("compressed");
        let bomb = compressed(&piece.repeat(400));
        let rubbish = compressed(b"no gzip at all");
        for (body, code, text) in [
            (bomb, 8, "grpc: received message after decompression larger than max 2097152"),
            (rubbish, 13, "grpc: failed to decompress the message: gzip: invalid header"),
        ] {
            let answer = client.raw("/etcdserverpb.KV/Put", &GZIP, body).await.expect("call");
            assert_eq!(answer.code, code, "{answer:?}");
            assert!(answer.text.starts_with(text), "{answer:?}");
        }
        assert_eq!(client.put("k").await.code, 0);
        assert_eq!(server.seen.calls.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn streams_are_compressed_as_well() {
    with_server(|server| async move {
        let client = server.connect().await;
        let mut send = client.send.clone().ready().await.expect("ready");
        let head = Client::head("/etcdserverpb.Watch/Watch", &GZIP);
        let (response, mut stream) = send.send_request(head, false).expect("send");
        for key in ["echo", "again"] {
            let message = deflate(&watch_create(key).encode_to_vec()).expect("compressed");
            stream.send_data(compressed(&message), false).expect("send");
        }
        stream.send_data(frame(&watch_create("end")), true).expect("send");
        let answer = answer(response.await.expect("headers")).await.expect("answer");
        assert_eq!(answer.code, 14);
        let mut messages = Vec::new();
        let mut rest = answer.body;
        while !rest.is_empty() {
            let length = u32::from_be_bytes(*rest[1..].first_chunk().expect("a prefix")) as usize;
            assert_eq!(rest[0], 1, "compressed");
            messages.push(inflate(&rest[PREFIX..PREFIX + length], 100).expect("gzip"));
            rest = rest.slice(PREFIX + length..);
        }
        assert_eq!(messages, ["echo", "again"]);
    });
}

const PREFIX: usize = 5;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingping";

/// What the server says until it closes, or nothing comes for a while.
fn says(stream: &mut StdTcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
    let mut said = Vec::new();
    // It ends with an error if nothing comes.
    let _ = stream.read_to_end(&mut said);
    said
}

#[test]
fn a_client_that_pings_too_often_is_told_so_and_closed() {
    let server = Server::start();
    for (pings, is_too_much) in [(3, false), (4, true)] {
        let mut stream = StdTcpStream::connect(server.address).expect("connect");
        stream.write_all(PREFACE).expect("write");
        for _ in 0..pings {
            stream.write_all(PING).expect("write");
            std::thread::sleep(Duration::from_millis(20));
        }
        let said = says(&mut stream);
        let answered = said.windows(8).filter(|window| window == b"pingping").count();
        assert!(answered >= 3, "the pings are answered: {said:?}");
        // Goodbye, of 22 bytes, after no stream, because of ENHANCE_YOUR_CALM.
        let goodbye = b"\0\0\x16\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0btoo_many_pings";
        assert_eq!(said.ends_with(goodbye), is_too_much, "{pings} pings: {said:?}");
    }
    assert!(server.threads.stop());
}

#[test]
fn pings_between_answers_do_not_count() {
    with_server(|server| async move {
        let stream = tokio::net::TcpStream::connect(server.address).await.expect("connect");
        let (send, mut connection) = h2::client::handshake(stream).await.expect("handshake");
        let mut ping = connection.ping_pong().expect("first");
        let driver = tokio::spawn(connection);
        let client = Client { send, driver };
        for _ in 0..10 {
            ping.ping(h2::Ping::opaque()).await.expect("answered");
            assert_eq!(client.put("k").await.code, 0);
        }
        for _ in 0..3 {
            ping.ping(h2::Ping::opaque()).await.expect("answered");
        }
        // The last answer covered the first of them; two are forgiven; now it is too much.
        let _ = ping.ping(h2::Ping::opaque()).await;
        let closed = client.driver.await.expect("no panic").expect_err("closed");
        assert_eq!(closed.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    });
}

#[test]
fn a_connection_that_does_not_answer_pings_is_closed() {
    let transport = TransportOptions {
        max_concurrent_streams: 100,
        message_bytes_max: 1 << 20,
        keepalive_interval: Some(Duration::from_secs(1)),
        keepalive_timeout: Duration::from_millis(200),
        keepalive_min_time: Duration::from_secs(5),
        http2_server: Http2Server::Lean,
    };
    let server = Server::start_with(transport);
    let mut dead = StdTcpStream::connect(server.address).expect("connect");
    // Preface and empty settings, then silence: pings go unanswered.
    dead.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").expect("write");
    dead.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    let start = Instant::now();
    let mut bytes = Vec::new();
    dead.read_to_end(&mut bytes).expect("the server closes");
    assert!(start.elapsed() >= Duration::from_secs(1), "not before the interval");
    assert!(server.threads.stop());
}
