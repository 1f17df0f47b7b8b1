//! Mistakes of the other end, and what each costs: the connection, or one stream. In the order of RFC 9113.

use super::*;

/// What a mistake costs on a connection whose stream 1 is open, 3 is closed by both, 5 has been reset by the client, and
/// 7 has been ended by the client.
fn costs(bytes: &[u8]) -> Result<(u32, Reason), Reason> {
    let mut server = Server::new();
    let before = [
        post(1),
        post(3),
        data(3, b"x", true),
        post(5),
        frame(frame::RST_STREAM, 0, 5, &[0, 0, 0, 8]),
        post(7),
        data(7, b"x", true),
    ];
    server.says(&before.concat()).expect("good");
    server.core.send_message(3, Bytes::new(), None);
    server.out();
    match server.says(bytes) {
        Err(fault) => Err(fault.reason),
        Ok(_) => {
            let reset = server.only_reset();
            // The connection serves on.
            assert_eq!(server.says(&post(101)), Ok(vec![head_seen(101)]));
            Ok(reset)
        }
    }
}

#[track_caller]
fn connection_error(bytes: &[u8], reason: Reason) {
    assert_eq!(costs(bytes), Err(reason));
}

#[track_caller]
fn stream_error(bytes: &[u8], stream: u32, reason: Reason) {
    assert_eq!(costs(bytes), Ok((stream, reason)));
}

fn headers(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, stream, &block(fields))
}

#[test]
fn the_preface_and_settings_come_first() {
    let mut server = Server { core: Core::new(1), read: BytesMut::new(), second: 0 };
    assert_eq!(server.says(b"GET / HTTP/1.1\r\n").expect_err("not HTTP/2").reason, Reason::PROTOCOL_ERROR);
    for first in [frame(frame::PING, 0, 0, &[0; 8]), frame(frame::SETTINGS, frame::ACK, 0, &[]), post(1)] {
        let mut server = Server { core: Core::new(1), read: BytesMut::new(), second: 0 };
        let fault = server.says(&[PREFACE, &first].concat()).expect_err("no settings");
        assert_eq!(fault.reason, Reason::PROTOCOL_ERROR);
    }
}

#[test]
fn sizes_of_frames() {
    let mut large = frame(frame::DATA, 0, 1, &[]);
    large[..3].copy_from_slice(&[0, 0x40, 1]);
    connection_error(&large, Reason::FRAME_SIZE_ERROR);
    connection_error(&frame(frame::PING, 0, 0, &[0; 7]), Reason::FRAME_SIZE_ERROR);
    connection_error(&frame(frame::RST_STREAM, 0, 1, &[0; 3]), Reason::FRAME_SIZE_ERROR);
    connection_error(&frame(frame::WINDOW_UPDATE, 0, 1, &[0; 5]), Reason::FRAME_SIZE_ERROR);
    connection_error(&frame(frame::SETTINGS, 0, 0, &[0; 5]), Reason::FRAME_SIZE_ERROR);
    connection_error(&frame(frame::SETTINGS, frame::ACK, 0, &[0; 6]), Reason::FRAME_SIZE_ERROR);
    connection_error(&frame(frame::GOAWAY, 0, 0, &[0; 7]), Reason::FRAME_SIZE_ERROR);
    connection_error(&frame(frame::HEADERS, 0x24, 9, &[0; 4]), Reason::FRAME_SIZE_ERROR);
    stream_error(&frame(frame::PRIORITY, 0, 1, &[0; 4]), 1, Reason::FRAME_SIZE_ERROR);
}

#[test]
fn what_is_not_known_is_ignored() {
    let mut server = Server::new();
    let unknown = [frame(0x99, 0xff, 0, b"x"), frame(0x16, 0, 77, b""), setting(0x99, 7), post(1)].concat();
    assert_eq!(server.says(&unknown), Ok(vec![head_seen(1)]));
    // But nothing comes between the parts of a header block.
    let part = frame(frame::HEADERS, 0, 9, &block(&POST));
    for between in [frame(0x99, 0, 0, b""), post(11), frame(frame::PING, 0, 0, &[0; 8]), data(1, b"x", false)] {
        connection_error(&[&part[..], &between].concat(), Reason::PROTOCOL_ERROR);
    }
    let other = frame(frame::CONTINUATION, frame::END_HEADERS, 11, &[]);
    connection_error(&[&part[..], &other].concat(), Reason::PROTOCOL_ERROR);
    connection_error(&frame(frame::CONTINUATION, frame::END_HEADERS, 1, &[]), Reason::PROTOCOL_ERROR);
}

#[test]
fn header_blocks_that_are_none() {
    for bad in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0xbe], &[0x40], &[0x3f, 0xff, 0xff, 0x7f]] {
        connection_error(&frame(frame::HEADERS, frame::END_HEADERS, 9, bad), Reason::COMPRESSION_ERROR);
    }
}

#[test]
fn states_of_streams() {
    for idle in [8, 9, 0] {
        connection_error(&data(idle, b"x", true), Reason::PROTOCOL_ERROR);
        connection_error(&frame(frame::RST_STREAM, 0, idle, &[0; 4]), Reason::PROTOCOL_ERROR);
        if idle > 0 {
            connection_error(&window(idle, 1), Reason::PROTOCOL_ERROR);
        }
    }
    // Ended by the client.
    stream_error(&data(7, b"x", false), 7, Reason::STREAM_CLOSED);
    connection_error(&headers(7, &[("a", "b")]), Reason::STREAM_CLOSED);
    // Closed.
    stream_error(&data(3, b"x", false), 3, Reason::STREAM_CLOSED);
    stream_error(&data(5, b"x", false), 5, Reason::STREAM_CLOSED);
    connection_error(&headers(5, &POST), Reason::PROTOCOL_ERROR);
    let mut server = Server::new();
    server.says(&[post(1), data(1, b"", true)].concat()).expect("good");
    server.core.send_message(1, Bytes::new(), None);
    assert_eq!(server.says(&post(1)).expect_err("closed").reason, Reason::STREAM_CLOSED);
    // Numbers.
    connection_error(&post(2), Reason::PROTOCOL_ERROR);
    connection_error(&[post(101), post(99)].concat(), Reason::PROTOCOL_ERROR);
    connection_error(&frame(frame::PUSH_PROMISE, 4, 1, &[0, 0, 0, 2]), Reason::PROTOCOL_ERROR);
    // What may still be on its way is ignored.
    let mut server = Server::new();
    let closed = [post(1), frame(frame::RST_STREAM, 0, 1, &[0; 4])].concat();
    assert_eq!(server.says(&closed), Ok(vec![head_seen(1), Seen::Reset]));
    let late = [window(1, 1), frame(frame::RST_STREAM, 0, 1, &[0; 4]), frame(frame::PRIORITY, 0, 1, &[0; 5])].concat();
    assert_eq!(server.says(&late), Ok(vec![]));
    assert!(server.out().is_empty());
}

#[test]
fn padding() {
    let mut server = Server::new();
    let padded = [&[3][..], &block(&POST), &[0; 3]].concat();
    let body = [&[255][..], b"hello", &[0; 255]].concat();
    let bytes = [
        frame(frame::HEADERS, frame::END_HEADERS | frame::PADDED, 1, &padded),
        frame(frame::DATA, frame::PADDED | frame::END_STREAM, 1, &body),
    ];
    let hello = Seen::Data(1, Bytes::from_static(b"hello"), true);
    assert_eq!(server.says(&bytes.concat()), Ok(vec![head_seen(1), hello]));
    for (kind, flags, stream) in [(frame::DATA, 0x8, 1), (frame::HEADERS, 0xc, 9)] {
        for payload in [&[][..], &[1], &[5, 1, 2, 3, 4]] {
            connection_error(&frame(kind, flags, stream, payload), Reason::PROTOCOL_ERROR);
        }
    }
}

#[test]
fn settings() {
    connection_error(&frame(frame::SETTINGS, 0, 1, &[]), Reason::PROTOCOL_ERROR);
    connection_error(&setting(frame::SETTINGS_ENABLE_PUSH, 2), Reason::PROTOCOL_ERROR);
    connection_error(&setting(frame::SETTINGS_INITIAL_WINDOW_SIZE, 1 << 31), Reason::FLOW_CONTROL_ERROR);
    connection_error(&setting(frame::SETTINGS_MAX_FRAME_SIZE, 16_383), Reason::PROTOCOL_ERROR);
    connection_error(&setting(frame::SETTINGS_MAX_FRAME_SIZE, 1 << 24), Reason::PROTOCOL_ERROR);
    let mut server = Server::new();
    for good in [
        setting(frame::SETTINGS_ENABLE_PUSH, 0),
        setting(frame::SETTINGS_MAX_FRAME_SIZE, (1 << 24) - 1),
        setting(frame::SETTINGS_HEADER_TABLE_SIZE, 0),
        frame(frame::SETTINGS, 0, 0, &[]),
    ] {
        assert_eq!(server.says(&good), Ok(vec![]));
        let out = server.out();
        assert_eq!((kinds(&out), out[0].0.flags, out[0].0.length), (vec![frame::SETTINGS], frame::ACK, 0));
    }
    assert_eq!(server.says(&frame(frame::SETTINGS, frame::ACK, 0, &[])), Ok(vec![]));
    assert!(server.out().is_empty());
}

#[test]
fn pings_and_goodbyes() {
    connection_error(&frame(frame::PING, 0, 1, &[0; 8]), Reason::PROTOCOL_ERROR);
    connection_error(&frame(frame::GOAWAY, 0, 1, &[0; 8]), Reason::PROTOCOL_ERROR);
    let mut server = Server::new();
    assert_eq!(server.says(&frame(frame::PING, 0, 0, b"12345678")), Ok(vec![Seen::Ping]));
    let out = server.out();
    assert_eq!((out[0].0.flags, &out[0].1[..]), (frame::ACK, &b"12345678"[..]));
    assert_eq!(server.says(&frame(frame::PING, frame::ACK, 0, b"12345678")), Ok(vec![Seen::Pong]));
    assert_eq!(server.says(&[frame(frame::GOAWAY, 0, 0, &[0; 20]), post(1)].concat()), Ok(vec![head_seen(1)]));
    assert!(server.out().is_empty());
}

#[test]
fn windows() {
    connection_error(&window(0, 0), Reason::PROTOCOL_ERROR);
    stream_error(&window(1, 0), 1, Reason::PROTOCOL_ERROR);
    connection_error(&window(0, (1 << 31) - 1), Reason::FLOW_CONTROL_ERROR);
    stream_error(&window(1, (1 << 31) - 1), 1, Reason::FLOW_CONTROL_ERROR);
    let grown = [window(1, (1 << 31) - 65_536), setting(frame::SETTINGS_INITIAL_WINDOW_SIZE, 70_000)].concat();
    connection_error(&grown, Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn priorities_are_read_over() {
    connection_error(&frame(frame::PRIORITY, 0, 0, &[0; 5]), Reason::PROTOCOL_ERROR);
    stream_error(&frame(frame::PRIORITY, 0, 1, &[0, 0, 0, 1, 0]), 1, Reason::PROTOCOL_ERROR);
    let on_itself = [&[0, 0, 0, 9, 0][..], &block(&POST)].concat();
    stream_error(&frame(frame::HEADERS, 0x24, 9, &on_itself), 9, Reason::PROTOCOL_ERROR);
    let mut server = Server::new();
    let with_priority = [&[0x80, 0, 0, 0, 255][..], &block(&POST)].concat();
    let bytes = [frame(frame::PRIORITY, 0, 99, &[0; 5]), frame(frame::HEADERS, 0x24, 1, &with_priority)].concat();
    assert_eq!(server.says(&bytes), Ok(vec![head_seen(1)]));
}

#[test]
fn requests_that_are_none_cost_their_stream() {
    let with = |field: (&'static str, &'static str)| [&POST[..], &[field]].concat();
    for field in [("Big", "a"), ("connection", "close"), ("te", "gzip"), (":path", "/late"), (":status", "200")] {
        stream_error(&headers(9, &with(field)), 9, Reason::PROTOCOL_ERROR);
    }
    for missing in 0..3 {
        let mut fields = POST.to_vec();
        fields.remove(missing);
        stream_error(&headers(9, &fields), 9, Reason::PROTOCOL_ERROR);
    }
    // Trailers: with an end, without pseudo-fields.
    stream_error(&frame(frame::HEADERS, frame::END_HEADERS, 1, &block(&[("a", "b")])), 1, Reason::PROTOCOL_ERROR);
    stream_error(&headers(1, &[(":path", "/")]), 1, Reason::PROTOCOL_ERROR);
    let mut server = Server::new();
    let end = Seen::Data(1, Bytes::new(), true);
    assert_eq!(server.says(&[post(1), headers(1, &[("a", "b")])].concat()), Ok(vec![head_seen(1), end]));
}

#[test]
fn bodies_are_as_long_as_announced() {
    let open = |length: &'static str| {
        let fields = [&POST[..], &[("content-length", length)]].concat();
        frame(frame::HEADERS, frame::END_HEADERS, 9, &block(&fields))
    };
    for (length, body) in [("4", &b"hello"[..]), ("6", b"hello"), ("0", b"x")] {
        stream_error(&[open(length), data(9, body, true)].concat(), 9, Reason::PROTOCOL_ERROR);
    }
    stream_error(&[open("6"), data(9, b"hello", false), headers(9, &[("a", "b")])].concat(), 9, Reason::PROTOCOL_ERROR);
    stream_error(&headers(9, &[&POST[..], &[("content-length", "1")]].concat()), 9, Reason::PROTOCOL_ERROR);
    let mut server = Server::new();
    let good = [open("5"), data(9, b"he", false), data(9, b"llo", false), data(9, b"", true)].concat();
    assert_eq!(server.says(&good).map(|seen| seen.len()), Ok(4));
}
