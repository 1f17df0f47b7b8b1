//! The protocol core, fed with bytes: what RFC 9113 says of each mistake, windows, endings, floods, and random frames.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::core::{Core, Event, Fault, Owner, PREFACE};
use super::frame::{self, FrameHead, HEAD_BYTES, Reason};
use super::hpack::put_field;
use crate::limits;

mod hostile;
mod rules;

/// What the user of the core keeps for a stream here.
#[derive(Debug, Default)]
struct Room(Rc<std::cell::Cell<usize>>);

impl Owner for Room {
    fn on_room(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// A core with what has been said to it and not been understood yet.
struct Server {
    core: Core<Room>,
    read: BytesMut,
    second: u64,
}

/// An event, without what cannot be compared.
#[derive(Debug, PartialEq)]
enum Seen {
    Head(u32, String, bool),
    Data(u32, Bytes, bool),
    Reset,
    Ping,
    Pong,
}

impl Server {
    /// A connection on which the preface and empty settings have come, and what it said first has been read.
    fn new() -> Self {
        Self::with_streams(100)
    }

    fn with_streams(streams_max: usize) -> Self {
        let mut server = Self { core: Core::new(streams_max), read: BytesMut::new(), second: 0 };
        assert_eq!(server.says(&[PREFACE, &frame(frame::SETTINGS, 0, 0, &[])].concat()), Ok(vec![]));
        let out = server.out();
        assert_eq!(kinds(&out), [frame::SETTINGS, frame::WINDOW_UPDATE, frame::SETTINGS]);
        server
    }

    fn says(&mut self, bytes: &[u8]) -> Result<Vec<Seen>, Fault> {
        self.read.extend_from_slice(bytes);
        let mut seen = Vec::new();
        while let Some(event) = self.core.next(&mut self.read, self.second)? {
            seen.push(match event {
                Event::Head { stream, head, ends } => {
                    Seen::Head(stream, String::from_utf8_lossy(head.path()).into_owned(), ends)
                }
                Event::Data { stream, data, ends } => Seen::Data(stream, data, ends),
                Event::Reset(_) => Seen::Reset,
                Event::Ping => Seen::Ping,
                Event::Pong => Seen::Pong,
            });
        }
        Ok(seen)
    }

    /// What has been sent since the last time.
    fn out(&mut self) -> Vec<(FrameHead, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            self.core.pump();
            let mut bytes = Vec::new();
            self.core.swap_out(&mut bytes);
            if bytes.is_empty() {
                return all;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let head = FrameHead::read(rest).expect("a head");
                all.push((head, rest[HEAD_BYTES..HEAD_BYTES + head.length].to_vec()));
                rest = &rest[HEAD_BYTES + head.length..];
            }
        }
    }

    /// The stream that has been reset, and why; panics if anything else was sent.
    fn only_reset(&mut self) -> (u32, Reason) {
        let out = self.out();
        let [(head, payload)] = &out[..] else { panic!("{out:?}") };
        assert_eq!(head.kind, frame::RST_STREAM);
        (head.stream, Reason(u32::from_be_bytes(*payload.first_chunk().expect("a reason"))))
    }
}

fn kinds(out: &[(FrameHead, Vec<u8>)]) -> Vec<u8> {
    out.iter().map(|(head, _)| head.kind).collect()
}

/// The bytes of a frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, kind, flags, stream, payload);
    out
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(name, value)| put_field(&mut out, name, value.as_bytes()));
    out
}

const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/a.B/C"), ("content-type", "application/grpc")];

/// The head of a request, which goes on.
fn post(stream: u32) -> Vec<u8> {
    frame(frame::HEADERS, frame::END_HEADERS, stream, &block(&POST))
}

fn data(stream: u32, bytes: &[u8], ends: bool) -> Vec<u8> {
    frame(frame::DATA, if ends { frame::END_STREAM } else { 0 }, stream, bytes)
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    frame(frame::SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn window(stream: u32, more: u32) -> Vec<u8> {
    frame(frame::WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}

fn head_seen(stream: u32) -> Seen {
    Seen::Head(stream, "/a.B/C".into(), false)
}

#[test]
fn a_call_comes_and_is_answered_however_its_bytes_are_cut() {
    let bytes = [post(1), data(1, b"hello", true), post(3), data(3, b"", true)].concat();
    for step in 1..bytes.len() {
        let mut server = Server::new();
        let mut seen = Vec::new();
        bytes.chunks(step).for_each(|chunk| seen.extend(server.says(chunk).expect("good")));
        let hello = Seen::Data(1, Bytes::from_static(b"hello"), true);
        assert_eq!(seen, [head_seen(1), hello, head_seen(3), Seen::Data(3, Bytes::new(), true)]);
        server.core.send_message(1, Bytes::from_static(b"\0\0\0\0\0"), None);
        let out = server.out();
        assert_eq!(kinds(&out), [frame::HEADERS, frame::DATA, frame::HEADERS]);
        assert_eq!((out[0].0.flags, out[1].0.flags, out[2].0.flags), (4, 0, 5));
        server.core.send_message(3, Bytes::from_static(b"\0\0\0\0\0"), None);
        let again = server.out();
        assert!(again[0].1.len() == 2 && again[2].1.len() == 2, "what repeats is short: {again:?}");
        assert!(!server.core.is_open(1) && !server.core.is_open(3));
    }
}

#[test]
fn equal_heads_are_decoded_once_and_a_changed_table_is_noticed() {
    let mut server = Server::new();
    let mut head = |bytes: &[u8]| {
        server.read.extend_from_slice(bytes);
        match server.core.next(&mut server.read, 0) {
            Ok(Some(Event::Head { head, .. })) => head,
            other => panic!("{other:?}"),
        }
    };
    let path = |value: &str| [&[0x44, value.len() as u8], value.as_bytes()].concat();
    let add = |value: &str| [&[0x83, 0x86][..], &path(value)].concat();
    let (first, second) = (add("/first"), add("/second"));
    let indexed = [0x83, 0x86, 0x80 | 62];
    let open = |stream, block: &[u8]| frame(frame::HEADERS, frame::END_HEADERS, stream, block);
    assert_eq!(head(&open(1, &first)).path(), b"/first");
    let one = head(&open(3, &indexed));
    let two = head(&open(5, &indexed));
    assert!(Rc::ptr_eq(&one, &two) && one.path() == b"/first");
    assert_eq!(head(&open(7, &second)).path(), b"/second");
    assert_eq!(head(&open(9, &indexed)).path(), b"/second", "the same bytes mean something else now");
}

#[test]
fn windows_bound_what_is_sent_and_streams_take_turns() {
    let mut server = Server::new();
    let large = Bytes::from(vec![7; 100_000]);
    server.says(&[post(1), data(1, b"x", true), post(3), data(3, b"x", true)].concat()).expect("good");
    server.core.send_message(1, large.clone(), None);
    server.core.send_message(3, large.clone(), None);
    let sent = |out: &[(FrameHead, Vec<u8>)], stream: u32| -> usize {
        let of_stream = out.iter().filter(|(head, _)| head.stream == stream && head.kind == frame::DATA);
        of_stream.map(|(head, _)| head.length).sum()
    };
    let out = server.out();
    assert_eq!(sent(&out, 1) + sent(&out, 3), 65_535, "the connection's window");
    assert!(sent(&out, 1) < 40_000 && sent(&out, 3) < 40_000, "both have their share");
    assert!(out.iter().all(|(head, _)| head.length <= 16_384));
    let before = (sent(&out, 1), sent(&out, 3));
    server.says(&window(0, 1_000_000)).expect("good");
    let out = server.out();
    assert_eq!((before.0 + sent(&out, 1), before.1 + sent(&out, 3)), (65_535, 65_535), "the streams' windows");
    server.says(&window(1, 1_000_000)).expect("good");
    let out = server.out();
    assert_eq!(sent(&out, 1), 100_000 - 65_535);
    assert_eq!(out.last().map(|(head, _)| (head.kind, head.flags)), Some((frame::HEADERS, 5)));
    // A larger initial window counts for streams that are open, a smaller one may make a window negative.
    server.says(&setting(frame::SETTINGS_INITIAL_WINDOW_SIZE, 70_000)).expect("good");
    assert_eq!(sent(&server.out(), 3), 70_000 - 65_535);
    server.says(&setting(frame::SETTINGS_INITIAL_WINDOW_SIZE, 0)).expect("good");
    server.says(&window(3, 70_000)).expect("good");
    assert_eq!(sent(&server.out(), 3), 0);
    server.says(&window(3, 1)).expect("good");
    assert_eq!(sent(&server.out(), 3), 1);
    server.says(&setting(frame::SETTINGS_INITIAL_WINDOW_SIZE, 70_000)).expect("good");
    assert_eq!(sent(&server.out(), 3), 100_000 - 70_001);
    assert!(!server.core.is_open(3));
}

#[test]
fn the_end_of_one_answer_does_not_wait_for_the_window_of_another() {
    let mut server = Server::new();
    server.says(&[post(1), data(1, b"x", true), post(3), data(3, b"x", true)].concat()).expect("good");
    server.core.send_message(1, Bytes::from(vec![7; 100_000]), None);
    server.out();
    server.core.send_head(3, &block(&[(":status", "200"), ("grpc-status", "5")]), true);
    assert_eq!(kinds(&server.out()), [frame::HEADERS]);
}

#[test]
fn room_is_announced_when_all_is_sent() {
    let mut server = Server::new();
    server.says(&[post(1), data(1, b"x", true)].concat()).expect("good");
    let rooms = server.core.owner_mut(1).expect("open").0.clone();
    server.core.send_head(1, &block(&[(":status", "200")]), false);
    server.core.send_data(1, Bytes::from(vec![7; 60_000]), false);
    assert_eq!(server.core.has_room(1), Some(false));
    server.out();
    assert_eq!((server.core.has_room(1), rooms.get()), (Some(true), 1));
    server.core.send_data(1, Bytes::from(vec![7; 10_000]), false);
    server.out();
    assert_eq!((server.core.has_room(1), rooms.get()), (Some(false), 1), "the window is used up");
    server.says(&[window(0, 100_000), window(1, 100_000)].concat()).expect("good");
    server.out();
    assert_eq!((server.core.has_room(1), rooms.get()), (Some(true), 2));
    server.core.send_data(1, Bytes::from_static(b"end"), true);
    let out = server.out();
    assert_eq!(out.last().map(|(head, _)| (head.kind, head.flags)), Some((frame::DATA, 1)));
    assert_eq!(server.core.has_room(1), None);
}

#[test]
fn what_is_received_counts_until_it_is_released() {
    let mut server = Server::with_streams(1000);
    server.says(&post(1)).expect("good");
    let chunk = vec![1; 16_384];
    let in_window = limits::STREAM_WINDOW_BYTES as usize / chunk.len();
    for _ in 0..in_window {
        server.says(&data(1, &chunk, false)).expect("good");
    }
    assert!(server.out().is_empty());
    // Half of the window is given back at once, for the stream; the connection's is larger.
    for _ in 0..in_window / 2 {
        assert!(server.out().is_empty());
        server.core.release(1, chunk.len());
    }
    let out = server.out();
    assert_eq!((kinds(&out), out[0].0.stream), (vec![frame::WINDOW_UPDATE], 1));
    assert_eq!(out[0].1, (limits::STREAM_WINDOW_BYTES / 2).to_be_bytes());
    for _ in 0..in_window / 2 {
        server.says(&data(1, &chunk, false)).expect("good");
    }
    assert_eq!(server.says(&data(1, b"x", false)), Ok(vec![Seen::Reset]), "more than the window");
    assert_eq!(server.only_reset(), (1, Reason::FLOW_CONTROL_ERROR));
    // Nothing was released for the connection but the half, until its window is used up as well.
    let mut stream = 3;
    let fault = loop {
        server.says(&post(stream)).expect("good");
        match server.says(&data(stream, &chunk, true)) {
            Ok(seen) => assert_eq!(seen.len(), 1),
            Err(fault) => break fault,
        }
        stream += 2;
    };
    assert_eq!(fault.reason, Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn an_early_end_resets_and_drops_what_is_on_its_way() {
    let mut server = Server::new();
    server.says(&post(1)).expect("good");
    server.core.send_head(1, &block(&[(":status", "200"), ("grpc-status", "12")]), true);
    let out = server.out();
    assert_eq!(kinds(&out), [frame::HEADERS, frame::RST_STREAM]);
    assert_eq!(out[1].1, [0; 4], "no error");
    let late = [data(1, b"late", false), window(1, 5), frame(frame::HEADERS, 5, 1, &block(&[("a", "b")]))].concat();
    assert_eq!(server.says(&late), Ok(vec![]));
    assert!(server.out().is_empty());
    assert_eq!(server.says(&post(3)), Ok(vec![head_seen(3)]));
}

#[test]
fn a_graceful_end_serves_what_is_on_its_way() {
    let mut server = Server::new();
    server.says(&[post(1), data(1, b"x", true)].concat()).expect("good");
    server.core.announce_end();
    let out = server.out();
    assert_eq!(kinds(&out), [frame::GOAWAY, frame::PING]);
    assert_eq!(out[0].1[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(server.says(&post(3)), Ok(vec![head_seen(3)]), "it had not heard so");
    let pong = frame(frame::PING, frame::ACK, 0, &out[1].1);
    assert_eq!(server.says(&pong), Ok(vec![Seen::Pong]));
    let out = server.out();
    assert_eq!((kinds(&out), &out[0].1[..8]), (vec![frame::GOAWAY], &[0, 0, 0, 3, 0, 0, 0, 0][..]));
    assert_eq!(server.says(&[post(5), data(5, b"x", false), window(5, 1)].concat()), Ok(vec![]), "too late");
    assert!(!server.core.is_over());
    server.says(&data(3, b"x", true)).expect("good");
    for stream in [1, 3] {
        server.core.send_message(stream, Bytes::new(), None);
    }
    assert!(server.core.is_over());
}

#[test]
fn streams_above_the_limit_are_refused() {
    let mut server = Server::with_streams(2);
    assert_eq!(server.says(&[post(1), post(3), post(5)].concat()), Ok(vec![head_seen(1), head_seen(3)]));
    assert_eq!(server.only_reset(), (5, Reason::REFUSED_STREAM));
    assert_eq!(server.says(&data(5, b"x", true)), Ok(vec![]), "it did not know");
    server.core.send_message(1, Bytes::new(), None);
    assert_eq!(server.says(&post(7)), Ok(vec![head_seen(7)]));
}

#[test]
fn headers_that_are_too_large_get_an_answer() {
    let mut server = Server::new();
    let large = "x".repeat(16_000);
    let mut fields = POST.to_vec();
    fields.extend([("a", &*large); 5]);
    let block = block(&fields);
    let mut pieces = block.chunks(16_000);
    let mut bytes = frame(frame::HEADERS, frame::END_STREAM, 1, pieces.next().expect("some"));
    pieces.for_each(|piece| bytes.extend(frame(frame::CONTINUATION, 0, 1, piece)));
    bytes.extend(frame(frame::CONTINUATION, frame::END_HEADERS, 1, &[]));
    assert_eq!(server.says(&bytes), Ok(vec![]));
    let out = server.out();
    assert!(kinds(&out) == [frame::HEADERS] && out[0].1.ends_with(b"431"), "{out:?}");
    assert_eq!(server.says(&post(3)), Ok(vec![head_seen(3)]));
}

#[test]
fn long_blocks_are_sent_in_pieces() {
    let mut server = Server::new();
    server.says(&[post(1), data(1, b"x", true)].concat()).expect("good");
    server.core.send_head(1, &block(&[(":status", "200"), ("grpc-message", &"x".repeat(40_000))]), true);
    let out = server.out();
    assert_eq!(kinds(&out), [frame::HEADERS, frame::CONTINUATION, frame::CONTINUATION]);
    assert_eq!(out.iter().map(|(head, _)| head.flags).collect::<Vec<_>>(), [1, 0, 4]);
}
