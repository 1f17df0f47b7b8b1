//! The protocol of one HTTP/2 connection, the server's side (RFC 9113): bytes in, events out; what is to be sent is
//! appended to one buffer. No socket, no clock, no lock: whoever drives it reads, writes, and says what time it is.
//!
//! Here is what is received; what is sent is in `send`.
//!
//! ```text
//! bytes -> next() -> Head, Data, Reset, Ping, Pong -> owner of the stream
//! owner -> send_*, reset, release -> queue of the stream -> pump() -> out
//! ```
//!
//! A stream is in `streams` from its head until both sides have ended it or one has reset it. One that the server ends
//! while the other end still sends is reset, and remembered for a while: what was on its way is dropped in silence.
//!
//! Invariants: at most `streams_max` streams; a stream is in `line` at most once, and only with a queue; the other end may
//! send `receive_window` bytes, which together with those received and neither released nor announced are the constant
//! window; `last_stream` only grows.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use hashbrown::{HashMap, HashSet};

use super::frame::{self, FrameHead, HEAD_BYTES, PAYLOAD_BYTES_MAX, Reason, WINDOW_DEFAULT, WINDOW_MAX};
use super::head::Head;
use super::hpack::{Decoder, Effect, Encoder};
use super::send::Queue;
use crate::limits;

/// With these bytes every HTTP/2 connection begins.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What the ping of a graceful end carries.
pub(super) const LAST_CALL: [u8; 8] = *b"lastcall";

/// What the core keeps for each stream without looking at it.
pub(crate) trait Owner: Default {
    /// All that was to be sent on the stream has been sent: there is room for more.
    fn on_room(&self) {}
}

impl Owner for () {}

/// What the other end has done.
#[derive(Debug)]
pub(crate) enum Event<T> {
    /// A new stream.
    Head { stream: u32, head: Rc<Head>, ends: bool },
    /// A part of a body; with `ends` the last, perhaps empty. It counts against the window until it is released.
    Data { stream: u32, data: Bytes, ends: bool },
    /// A stream is no more, by the other end's wish or fault.
    Reset(T),
    /// It wants to know whether somebody is here; it is answered.
    Ping,
    /// Somebody is there: the answer to a ping.
    Pong,
}

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub reason: Reason,
    pub words: &'static str,
}

impl Fault {
    pub(super) const fn new(reason: Reason, words: &'static str) -> Self {
        Self { reason, words }
    }

    const fn protocol(words: &'static str) -> Self {
        Self::new(Reason::PROTOCOL_ERROR, words)
    }

    const fn size(words: &'static str) -> Self {
        Self::new(Reason::FRAME_SIZE_ERROR, words)
    }

    const fn calm(words: &'static str) -> Self {
        Self::new(Reason::ENHANCE_YOUR_CALM, words)
    }
}

/// One stream. Windows are signed: a change of the settings may make one negative.
pub(super) struct Stream<T> {
    pub owner: T,
    /// What may be sent, beside the initial window that the other end has set.
    pub credit: i64,
    /// What the other end may still send.
    pub receive_window: i64,
    /// Received and released, and not announced yet.
    pub released: i64,
    /// The other end has not ended its side.
    pub receives: bool,
    /// What is left of the announced length of the body.
    pub content_left: Option<u64>,
    pub queue: Option<Box<Queue>>,
}

/// A header block that has not come to its end.
struct Block {
    stream: u32,
    ends_stream: bool,
    depends_on_itself: bool,
    bytes: Vec<u8>,
    frames: usize,
}

/// What the other end has set.
pub(super) struct PeerSettings {
    pub initial_window: i64,
    pub payload_max: usize,
}

/// The heads that a client has sent lately, by their bytes. They mean the same as long as the table does not change: of
/// a client that says the same of each call there is one.
#[derive(Default)]
struct Heads {
    known: Vec<(Box<[u8]>, Rc<Head>)>,
    next: usize,
}

/// One connection. `T` is what its user keeps for each stream.
pub(crate) struct Core<T> {
    // Fixed.
    streams_max: usize,
    // Receiving.
    preface_left: usize,
    has_settings: bool,
    decoder: Decoder,
    block: Option<Block>,
    heads: Heads,
    /// The highest stream that the other end has opened.
    pub(super) last_stream: u32,
    /// Streams above it are ignored.
    pub(super) accepts_up_to: u32,
    receive_window: i64,
    released: i64,
    /// Streams that the server has reset, the oldest first.
    remembered: VecDeque<u32>,
    is_remembered: HashSet<u32>,
    // What the other end does more often than anybody needs.
    faults: usize,
    settings_frames: usize,
    empty_frames: usize,
    second: u64,
    cancelled_in_second: usize,
    // Both.
    pub(super) streams: HashMap<u32, Stream<T>>,
    // Sending.
    pub(super) peer: PeerSettings,
    pub(super) encoder: Encoder,
    pub(super) send_window: i64,
    /// Streams that have something to send, and a window for it.
    pub(super) line: VecDeque<u32>,
    pub(super) out: Vec<u8>,
    /// Data or headers have been sent since somebody asked.
    pub(super) has_answered: bool,
    pub(super) end: super::send::Ending,
}

impl<T: Owner> Core<T> {
    /// A connection that begins. What it says first is in the buffer.
    pub fn new(streams_max: usize) -> Self {
        let mut out = Vec::new();
        frame::put_settings(
            &mut out,
            &[
                (frame::SETTINGS_MAX_CONCURRENT_STREAMS, streams_max as u32),
                (frame::SETTINGS_INITIAL_WINDOW_SIZE, limits::STREAM_WINDOW_BYTES),
                (frame::SETTINGS_MAX_HEADER_LIST_SIZE, limits::HEADER_LIST_BYTES_MAX),
            ],
        );
        let more = limits::CONNECTION_WINDOW_BYTES - WINDOW_DEFAULT as u32;
        frame::put_number(&mut out, frame::WINDOW_UPDATE, 0, more);
        Self {
            streams_max,
            preface_left: PREFACE.len(),
            has_settings: false,
            decoder: Decoder::default(),
            block: None,
            heads: Heads::default(),
            last_stream: 0,
            accepts_up_to: u32::MAX,
            receive_window: i64::from(limits::CONNECTION_WINDOW_BYTES),
            released: 0,
            remembered: VecDeque::new(),
            is_remembered: HashSet::new(),
            faults: 0,
            settings_frames: 0,
            empty_frames: 0,
            second: 0,
            cancelled_in_second: 0,
            streams: HashMap::new(),
            peer: PeerSettings { initial_window: WINDOW_DEFAULT, payload_max: PAYLOAD_BYTES_MAX },
            encoder: Encoder::default(),
            send_window: WINDOW_DEFAULT,
            line: VecDeque::new(),
            out,
            has_answered: false,
            end: super::send::Ending::default(),
        }
    }

    /// What the owner of an open stream keeps.
    pub fn owner_mut(&mut self, stream: u32) -> Option<&mut T> {
        self.streams.get_mut(&stream).map(|stream| &mut stream.owner)
    }

    /// Whether there is such a stream.
    pub fn is_open(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Gives back memory that a burst of streams has taken.
    pub fn trim(&mut self) {
        if self.streams.is_empty() && self.streams.capacity() > limits::STREAMS_KEPT_MAX {
            self.streams.shrink_to(limits::STREAMS_KEPT_MAX / 2);
        }
    }

    /// Ends all streams because the connection has gone, and hands out what their owners keep.
    pub fn abandon(&mut self) -> Vec<T> {
        self.line.clear();
        self.streams.drain().map(|(_, stream)| stream.owner).collect()
    }

    /// The next thing that the other end has done, out of `read`; `None` if that takes more bytes. `second` is a clock's.
    /// A fault ends the connection.
    pub fn next(&mut self, read: &mut BytesMut, second: u64) -> Result<Option<Event<T>>, Fault> {
        if self.preface_left > 0 && !self.take_preface(read)? {
            return Ok(None);
        }
        loop {
            let Some(head) = FrameHead::read(read) else { return Ok(None) };
            if head.length > PAYLOAD_BYTES_MAX {
                return Err(Fault::size("a frame larger than allowed"));
            }
            if !self.has_settings && (head.kind != frame::SETTINGS || head.has(frame::ACK)) {
                return Err(Fault::protocol("a connection that does not begin with settings"));
            }
            if let Some(block) = &self.block
                && (head.kind != frame::CONTINUATION || head.stream != block.stream)
            {
                return Err(Fault::protocol("a frame within a header block"));
            }
            if read.len() < HEAD_BYTES + head.length {
                return Ok(None);
            }
            let event = match head.kind {
                frame::DATA => {
                    read.advance(HEAD_BYTES);
                    let payload = read.split_to(head.length).freeze();
                    self.handle_data(&head, payload)?
                }
                _ => {
                    let event = self.handle_frame(&head, &read[HEAD_BYTES..HEAD_BYTES + head.length], second);
                    read.advance(HEAD_BYTES + head.length);
                    event?
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Whether the preface is complete; false if it takes more bytes.
    fn take_preface(&mut self, read: &mut BytesMut) -> Result<bool, Fault> {
        let start = PREFACE.len() - self.preface_left;
        let length = self.preface_left.min(read.len());
        if read[..length] != PREFACE[start..start + length] {
            return Err(Fault::protocol("not the beginning of HTTP/2"));
        }
        read.advance(length);
        self.preface_left -= length;
        Ok(self.preface_left == 0)
    }

    fn handle_frame(&mut self, head: &FrameHead, payload: &[u8], second: u64) -> Result<Option<Event<T>>, Fault> {
        match head.kind {
            frame::HEADERS => self.handle_headers(head, payload),
            frame::CONTINUATION => self.handle_continuation(head, payload),
            frame::RST_STREAM => self.handle_reset(head, payload, second),
            frame::WINDOW_UPDATE => self.handle_window_update(head, payload),
            frame::SETTINGS => self.handle_settings(head, payload).map(|()| None),
            frame::PING => self.handle_ping(head, payload),
            frame::PRIORITY => self.handle_priority(head, payload),
            frame::GOAWAY if head.stream != 0 => Err(Fault::protocol("a goodbye on a stream")),
            frame::GOAWAY if payload.len() < 8 => Err(Fault::size("a short goodbye")),
            // Nothing is pushed: there is nothing to hold back.
            frame::GOAWAY => Ok(None),
            frame::PUSH_PROMISE => Err(Fault::protocol("a promise of a client")),
            // What is not known is ignored.
            _ => Ok(None),
        }
    }

    fn handle_data(&mut self, head: &FrameHead, payload: Bytes) -> Result<Option<Event<T>>, Fault> {
        let length = payload.len() as i64;
        let Some(data) = frame::without_padding(head, &payload) else {
            return Err(Fault::protocol("more padding than frame"));
        };
        if self.is_idle(head.stream) {
            return Err(Fault::protocol("data on an idle stream"));
        }
        let data = payload.slice_ref(data);
        let ends = head.has(frame::END_STREAM);
        if data.is_empty() && !ends {
            self.empty_frames += 1;
            if self.empty_frames > limits::EMPTY_FRAMES_MAX {
                return Err(Fault::calm("too many empty frames"));
            }
        } else {
            self.empty_frames = 0;
        }
        if length > self.receive_window {
            return Err(Fault::new(Reason::FLOW_CONTROL_ERROR, "more data than the connection's window"));
        }
        self.receive_window -= length;
        let Some(stream) = self.streams.get_mut(&head.stream).filter(|stream| stream.receives) else {
            self.release_connection(length);
            return self.on_closed(head.stream);
        };
        if length > stream.receive_window {
            self.release_connection(length);
            return self.fail_stream(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        stream.receive_window -= length;
        stream.receives = !ends;
        if let Some(left) = &mut stream.content_left {
            match left.checked_sub(data.len() as u64) {
                Some(rest) if rest == 0 || !ends => *left = rest,
                _ => {
                    self.release_connection(length);
                    return self.fail_stream(head.stream, Reason::PROTOCOL_ERROR);
                }
            }
        }
        // Padding is for nobody.
        let padding = length - data.len() as i64;
        if padding > 0 {
            self.release(head.stream, padding as usize);
        }
        if data.is_empty() && !ends {
            return Ok(None);
        }
        Ok(Some(Event::Data { stream: head.stream, data, ends }))
    }

    fn handle_headers(&mut self, head: &FrameHead, payload: &[u8]) -> Result<Option<Event<T>>, Fault> {
        if head.stream.is_multiple_of(2) {
            return Err(Fault::protocol("headers on a stream that clients cannot open"));
        }
        let Some(mut block) = frame::without_padding(head, payload) else {
            return Err(Fault::protocol("more padding than frame"));
        };
        let mut depends_on_itself = false;
        if head.has(frame::HAS_PRIORITY) {
            let Some((priority, rest)) = block.split_first_chunk::<5>() else {
                return Err(Fault::size("headers too short for their priority"));
            };
            depends_on_itself = depends_on(priority) == head.stream;
            block = rest;
        }
        let ends_stream = head.has(frame::END_STREAM);
        if head.has(frame::END_HEADERS) {
            return self.handle_block(head.stream, ends_stream, depends_on_itself, block);
        }
        let bytes = block.to_vec();
        self.block = Some(Block { stream: head.stream, ends_stream, depends_on_itself, bytes, frames: 1 });
        Ok(None)
    }

    fn handle_continuation(&mut self, head: &FrameHead, payload: &[u8]) -> Result<Option<Event<T>>, Fault> {
        // One that continues another stream's block has been refused already.
        let Some(block) = &mut self.block else {
            return Err(Fault::protocol("a continuation of nothing"));
        };
        block.bytes.extend_from_slice(payload);
        block.frames += 1;
        if block.bytes.len() > limits::HEADER_BLOCK_BYTES_MAX || block.frames > limits::HEADER_BLOCK_FRAMES_MAX {
            return Err(Fault::calm("headers without end"));
        }
        if !head.has(frame::END_HEADERS) {
            return Ok(None);
        }
        let Some(block) = self.block.take() else { return Ok(None) };
        self.handle_block(block.stream, block.ends_stream, block.depends_on_itself, &block.bytes)
    }

    /// A complete header block. It is decoded whatever becomes of it, as later ones build on it.
    fn handle_block(
        &mut self,
        id: u32,
        ends: bool,
        depends_on_itself: bool,
        block: &[u8],
    ) -> Result<Option<Event<T>>, Fault> {
        let head = self.head(block)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            if !stream.receives {
                return Err(Fault::new(Reason::STREAM_CLOSED, "headers on a stream that has ended"));
            }
            let is_short = stream.content_left.is_some_and(|left| left > 0);
            if !ends || is_short || head.check_trailers().is_err() || head.is_too_large() {
                return self.fail_stream(id, Reason::PROTOCOL_ERROR);
            }
            stream.receives = false;
            return Ok(Some(Event::Data { stream: id, data: Bytes::new(), ends: true }));
        }
        if id <= self.last_stream {
            return match self.is_remembered.contains(&id) {
                true => Ok(None),
                false if id == self.last_stream => {
                    Err(Fault::new(Reason::STREAM_CLOSED, "headers on a stream that is closed"))
                }
                false => Err(Fault::protocol("headers on a stream older than the last")),
            };
        }
        if id > self.accepts_up_to {
            return Ok(None);
        }
        self.last_stream = id;
        if depends_on_itself {
            return self.fail_stream(id, Reason::PROTOCOL_ERROR);
        }
        if self.streams.len() >= self.streams_max {
            self.put_reset(id, Reason::REFUSED_STREAM);
            return Ok(None);
        }
        if head.is_too_large() {
            self.open_stream(id, ends, None);
            self.send_too_large(id);
            return Ok(None);
        }
        let length = head.content_length();
        if head.check_request().is_err() || (ends && length.is_some_and(|length| length > 0)) {
            return self.fail_stream(id, Reason::PROTOCOL_ERROR);
        }
        self.open_stream(id, ends, length);
        Ok(Some(Event::Head { stream: id, head, ends }))
    }

    fn open_stream(&mut self, id: u32, ends: bool, content_left: Option<u64>) {
        let stream = Stream {
            owner: T::default(),
            credit: 0,
            receive_window: i64::from(limits::STREAM_WINDOW_BYTES),
            released: 0,
            receives: !ends,
            content_left,
            queue: None,
        };
        self.streams.insert(id, stream);
    }

    fn head(&mut self, block: &[u8]) -> Result<Rc<Head>, Fault> {
        if let Some((_, head)) = self.heads.known.iter().find(|(known, _)| **known == *block) {
            return Ok(head.clone());
        }
        let mut head = Head::with_room();
        let effect = self.decoder.decode(block, |name, value| head.add(name, value));
        let effect = effect.map_err(|bad| Fault::new(Reason::COMPRESSION_ERROR, bad.0))?;
        let head = Rc::new(head);
        match effect {
            Effect::Changed => self.heads.known.clear(),
            Effect::None if head.size() <= limits::KNOWN_HEAD_BYTES_MAX => self.heads.keep(block, &head),
            Effect::None => {}
        }
        Ok(head)
    }

    fn handle_reset(&mut self, head: &FrameHead, payload: &[u8], second: u64) -> Result<Option<Event<T>>, Fault> {
        if payload.len() != 4 {
            return Err(Fault::size("a reset of another length"));
        }
        if self.is_idle(head.stream) {
            return Err(Fault::protocol("a reset of an idle stream"));
        }
        if self.second != second {
            (self.second, self.cancelled_in_second) = (second, 0);
        }
        self.cancelled_in_second += 1;
        if self.cancelled_in_second > limits::CANCELLED_STREAMS_MAX {
            return Err(Fault::calm("too many resets"));
        }
        let removed = self.streams.remove(&head.stream);
        Ok(removed.map(|stream| Event::Reset(stream.owner)))
    }

    fn handle_window_update(&mut self, head: &FrameHead, payload: &[u8]) -> Result<Option<Event<T>>, Fault> {
        let Ok(more) = <[u8; 4]>::try_from(payload) else {
            return Err(Fault::size("a window update of another length"));
        };
        let more = i64::from(u32::from_be_bytes(more) & 0x7fff_ffff);
        if head.stream == 0 {
            if more == 0 {
                return Err(Fault::protocol("a window update of nothing"));
            }
            self.send_window += more;
            if self.send_window > WINDOW_MAX {
                return Err(Fault::new(Reason::FLOW_CONTROL_ERROR, "a window larger than allowed"));
            }
            return Ok(None);
        }
        if self.is_idle(head.stream) {
            return Err(Fault::protocol("a window update of an idle stream"));
        }
        let Some(stream) = self.streams.get_mut(&head.stream) else { return Ok(None) };
        if more == 0 {
            return self.fail_stream(head.stream, Reason::PROTOCOL_ERROR);
        }
        stream.credit += more;
        if stream.credit + self.peer.initial_window > WINDOW_MAX {
            return self.fail_stream(head.stream, Reason::FLOW_CONTROL_ERROR);
        }
        self.on_window(head.stream);
        Ok(None)
    }

    fn handle_settings(&mut self, head: &FrameHead, payload: &[u8]) -> Result<(), Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("settings on a stream"));
        }
        if head.has(frame::ACK) {
            return if payload.is_empty() { Ok(()) } else { Err(Fault::size("settings with an answer")) };
        }
        if !payload.len().is_multiple_of(6) {
            return Err(Fault::size("settings of another length"));
        }
        self.settings_frames += 1;
        if self.settings_frames > limits::SETTINGS_FRAMES_MAX {
            return Err(Fault::calm("too many settings"));
        }
        self.has_settings = true;
        for setting in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            self.handle_setting(name, value)?;
        }
        frame::put_head(&mut self.out, 0, frame::SETTINGS, frame::ACK, 0);
        Ok(())
    }

    fn handle_setting(&mut self, name: u16, value: u32) -> Result<(), Fault> {
        match name {
            frame::SETTINGS_HEADER_TABLE_SIZE => self.encoder.allow(value as usize),
            frame::SETTINGS_ENABLE_PUSH if value > 1 => return Err(Fault::protocol("a setting that is no truth")),
            frame::SETTINGS_INITIAL_WINDOW_SIZE => {
                if i64::from(value) > WINDOW_MAX {
                    return Err(Fault::new(Reason::FLOW_CONTROL_ERROR, "a window larger than allowed"));
                }
                self.set_initial_window(i64::from(value))?;
            }
            frame::SETTINGS_MAX_FRAME_SIZE => {
                let payload_max = value as usize;
                if !(PAYLOAD_BYTES_MAX..=frame::PAYLOAD_BYTES_LIMIT).contains(&payload_max) {
                    return Err(Fault::protocol("a frame size that is not allowed"));
                }
                self.peer.payload_max = payload_max;
            }
            _ => {}
        }
        Ok(())
    }

    fn handle_ping(&mut self, head: &FrameHead, payload: &[u8]) -> Result<Option<Event<T>>, Fault> {
        if head.stream != 0 {
            return Err(Fault::protocol("a ping on a stream"));
        }
        if payload.len() != 8 {
            return Err(Fault::size("a ping of another length"));
        }
        if !head.has(frame::ACK) {
            frame::put(&mut self.out, frame::PING, frame::ACK, 0, payload);
            return Ok(Some(Event::Ping));
        }
        if payload == LAST_CALL {
            self.on_last_call();
        }
        Ok(Some(Event::Pong))
    }

    fn handle_priority(&mut self, head: &FrameHead, payload: &[u8]) -> Result<Option<Event<T>>, Fault> {
        if head.stream == 0 {
            return Err(Fault::protocol("a priority of the connection"));
        }
        let fault = match payload.first_chunk::<5>() {
            Some(priority) if payload.len() == 5 && depends_on(priority) != head.stream => return Ok(None),
            Some(_) if payload.len() == 5 => Reason::PROTOCOL_ERROR,
            _ => Reason::FRAME_SIZE_ERROR,
        };
        self.fail_stream(head.stream, fault)
    }

    /// A stream that nobody has opened.
    fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || (stream > self.last_stream && stream <= self.accepts_up_to)
    }

    /// Something came for a stream that has ended.
    fn on_closed(&mut self, stream: u32) -> Result<Option<Event<T>>, Fault> {
        if stream > self.accepts_up_to || self.is_remembered.contains(&stream) {
            return Ok(None);
        }
        self.fail_stream(stream, Reason::STREAM_CLOSED)
    }

    /// The other end has made a mistake that costs it a stream.
    fn fail_stream(&mut self, stream: u32, reason: Reason) -> Result<Option<Event<T>>, Fault> {
        self.faults += 1;
        if self.faults > limits::STREAM_FAULTS_MAX {
            return Err(Fault::calm("too many faults"));
        }
        let owner = self.reset(stream, reason);
        Ok(owner.map(Event::Reset))
    }

    /// What was received is not needed any more: the other end may send as much again.
    pub fn release(&mut self, stream: u32, bytes: usize) {
        self.release_connection(bytes as i64);
        let Some(state) = self.streams.get_mut(&stream).filter(|stream| stream.receives) else { return };
        state.released += bytes as i64;
        if state.released >= i64::from(limits::STREAM_WINDOW_BYTES / 2) {
            let released = std::mem::take(&mut state.released);
            state.receive_window += released;
            frame::put_number(&mut self.out, frame::WINDOW_UPDATE, stream, released as u32);
        }
    }

    fn release_connection(&mut self, bytes: i64) {
        self.released += bytes;
        if self.released >= i64::from(limits::CONNECTION_WINDOW_BYTES / 2) {
            let released = std::mem::take(&mut self.released);
            self.receive_window += released;
            frame::put_number(&mut self.out, frame::WINDOW_UPDATE, 0, released as u32);
        }
    }

    /// Streams that the server has reset and remembers.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        assert_eq!(self.remembered.len(), self.is_remembered.len());
        self.remembered.len()
    }

    /// Remembers a stream that the server has reset.
    pub(super) fn remember(&mut self, stream: u32) {
        if !self.is_remembered.insert(stream) {
            return;
        }
        self.remembered.push_back(stream);
        if self.remembered.len() > limits::ENDED_STREAMS_REMEMBERED_MAX
            && let Some(oldest) = self.remembered.pop_front()
        {
            self.is_remembered.remove(&oldest);
        }
    }
}

impl Heads {
    fn keep(&mut self, block: &[u8], head: &Rc<Head>) {
        let entry = (block.into(), head.clone());
        if self.known.len() < limits::KNOWN_HEADS_MAX {
            return self.known.push(entry);
        }
        self.known[self.next] = entry;
        self.next = (self.next + 1) % limits::KNOWN_HEADS_MAX;
    }
}

/// The stream that a priority names.
fn depends_on(priority: &[u8; 5]) -> u32 {
    u32::from_be_bytes([priority[0] & 0x7f, priority[1], priority[2], priority[3]])
}
