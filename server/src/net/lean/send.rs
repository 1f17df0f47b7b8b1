//! What one HTTP/2 connection sends: answers at once where windows and buffer allow it, else from the queues of their
//! streams, a frame of each in turn; resets; goodbyes. Knows no socket: see `core`.

use std::collections::VecDeque;

use bytes::Bytes;

use super::core::{Core, Fault, LAST_CALL, Owner};
use super::frame::{self, HEAD_BYTES, Reason, WINDOW_MAX};
use super::hpack;
use crate::budget::Share;
use crate::limits;

/// What a stream has to send and could not send yet.
#[derive(Default)]
pub(super) struct Queue {
    pieces: VecDeque<Bytes>,
    end: Option<End>,
    /// What the pieces count for, as long as they wait.
    _share: Option<Share>,
    /// The stream is in `line`.
    is_in_line: bool,
}

/// How the server's side of a stream ends.
pub(super) enum End {
    /// With its data.
    Data,
    /// With the trailers of a good answer.
    Ok,
    /// With other trailers, encoded.
    Trailers(Vec<u8>),
}

/// How far a connection is on the way to its end.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Ending {
    #[default]
    Open,
    /// The other end has been told that no new streams are wanted; those on their way are served.
    Announced,
    /// New streams are not served any more.
    Final,
}

impl<T: Owner> Core<T> {
    /// Takes what is to be sent and gives room for more.
    pub fn swap_out(&mut self, empty: &mut Vec<u8>) {
        std::mem::swap(&mut self.out, empty);
    }

    /// Gives a buffer to use while nothing waits; what it holds is lost.
    pub fn lend_out(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() > self.out.capacity() {
            buffer.clear();
            self.out = buffer;
        }
    }

    /// Whether anything but acknowledgements has been sent since the last time.
    pub fn take_has_answered(&mut self) -> bool {
        std::mem::take(&mut self.has_answered)
    }

    /// Bytes that wait to be taken.
    pub fn out_bytes(&self) -> usize {
        self.out.len()
    }

    /// A whole good answer of one message. `share` is what it counts for while it waits.
    pub fn send_message(&mut self, stream: u32, message: Bytes, share: Option<Share>) {
        if !self.streams.contains_key(&stream) {
            return;
        }
        self.put_grpc_head(stream);
        if self.put_at_once(stream, &message) {
            self.put_end(stream, End::Ok);
        } else {
            self.enqueue(stream, message, Some(End::Ok), share);
        }
    }

    /// Sends data in one frame if windows and buffer allow it and nothing waits before it.
    fn put_at_once(&mut self, stream: u32, data: &[u8]) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else { return false };
        let length = data.len() as i64;
        let window = self.send_window.min(state.credit + self.peer.initial_window);
        let has_room = data.len() <= self.peer.payload_max && self.out.len() < limits::WRITE_BUFFER_BYTES;
        if state.queue.is_some() || length > window || !has_room {
            return false;
        }
        state.credit -= length;
        self.send_window -= length;
        self.has_answered = true;
        frame::put(&mut self.out, frame::DATA, 0, stream, data);
        true
    }

    fn put_grpc_head(&mut self, stream: u32) {
        self.has_answered = true;
        // The length is known afterwards.
        let at = self.out.len();
        frame::put_head(&mut self.out, 0, frame::HEADERS, frame::END_HEADERS, stream);
        self.encoder.put_grpc_head(&mut self.out);
        self.set_length(at);
    }

    /// Any head, encoded by `hpack::put_field`.
    pub fn send_head(&mut self, stream: u32, fields: &[u8], ends: bool) {
        if !self.streams.contains_key(&stream) {
            return;
        }
        self.put_fields(stream, fields, ends);
        if ends {
            self.finish(stream);
        }
    }

    /// Data, and with `ends` the end.
    pub fn send_data(&mut self, stream: u32, data: Bytes, ends: bool) {
        if !ends && self.put_at_once(stream, &data) {
            return;
        }
        self.enqueue(stream, data, ends.then_some(End::Data), None);
    }

    /// Trailers, encoded by `hpack::put_field`.
    pub fn send_trailers(&mut self, stream: u32, fields: Vec<u8>) {
        self.enqueue(stream, Bytes::new(), Some(End::Trailers(fields)), None);
    }

    /// Whether a stream has sent everything and may send more; `None` if there is no such stream.
    pub fn has_room(&self, stream: u32) -> Option<bool> {
        let state = self.streams.get(&stream)?;
        Some(state.queue.is_none() && state.credit + self.peer.initial_window > 0)
    }

    /// Ends a stream before its time. Gives back what its owner keeps.
    pub fn reset(&mut self, stream: u32, reason: Reason) -> Option<T> {
        self.put_reset(stream, reason);
        self.streams.remove(&stream).map(|stream| stream.owner)
    }

    pub(super) fn put_reset(&mut self, stream: u32, reason: Reason) {
        frame::put_number(&mut self.out, frame::RST_STREAM, stream, reason.0);
        self.remember(stream);
    }

    /// Asks whether somebody is there.
    pub fn ping(&mut self) {
        frame::put(&mut self.out, frame::PING, 0, 0, b"daymark?");
    }

    /// Begins to end the connection: the other end is asked to open no more streams, and a ping tells when it has heard so.
    pub fn announce_end(&mut self) {
        if self.end == Ending::Open {
            self.end = Ending::Announced;
            frame::put_goaway(&mut self.out, WINDOW_MAX as u32, Reason::NO_ERROR, b"");
            frame::put(&mut self.out, frame::PING, 0, 0, &LAST_CALL);
        }
    }

    pub(super) fn on_last_call(&mut self) {
        if self.end == Ending::Announced {
            self.end_now(Reason::NO_ERROR, b"");
        }
    }

    /// Ends the connection because of a fault.
    pub fn fail(&mut self, fault: &Fault) {
        self.end_now(fault.reason, fault.words.as_bytes());
    }

    /// Ends the connection with words that the other end looks for.
    pub fn end_now(&mut self, reason: Reason, words: &[u8]) {
        frame::put_goaway(&mut self.out, self.last_stream, reason, words);
        self.accepts_up_to = self.last_stream;
        self.end = Ending::Final;
    }

    /// Nothing is open and nothing will be opened.
    pub fn is_over(&self) -> bool {
        self.end == Ending::Final && self.streams.is_empty()
    }

    /// The answer to headers that are too large, as other servers give it.
    pub(super) fn send_too_large(&mut self, stream: u32) {
        let mut fields = Vec::new();
        hpack::put_field(&mut fields, ":status", b"431");
        self.send_head(stream, &fields, true);
    }

    /// Another initial window counts for all streams, also those that wait for one.
    pub(super) fn set_initial_window(&mut self, window: i64) -> Result<(), Fault> {
        let grows = window > self.peer.initial_window;
        self.peer.initial_window = window;
        if !grows {
            return Ok(());
        }
        let too_large = Fault::new(Reason::FLOW_CONTROL_ERROR, "a window larger than allowed");
        let mut ready = Vec::new();
        for (id, stream) in &self.streams {
            if stream.credit + window > WINDOW_MAX {
                return Err(too_large);
            }
            if stream.credit + window > 0 {
                ready.push(*id);
            }
        }
        // In the order of the streams, so that the same bytes always have the same effect.
        ready.sort_unstable();
        ready.into_iter().for_each(|stream| self.on_window(stream));
        Ok(())
    }

    /// A stream has a window, perhaps since now.
    pub(super) fn on_window(&mut self, stream: u32) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        if state.credit + self.peer.initial_window <= 0 {
            return;
        }
        match &mut state.queue {
            None => state.owner.on_room(),
            Some(queue) if !queue.is_in_line => {
                queue.is_in_line = true;
                self.line.push_back(stream);
            }
            Some(_) => {}
        }
    }

    fn enqueue(&mut self, stream: u32, data: Bytes, end: Option<End>, share: Option<Share>) {
        let Some(state) = self.streams.get_mut(&stream) else { return };
        // Ends need no window.
        let end = match end {
            Some(end) if data.is_empty() && state.queue.is_none() => return self.put_end(stream, end),
            end => end,
        };
        let queue = state.queue.get_or_insert_default();
        if !data.is_empty() {
            queue.pieces.push_back(data);
        }
        if end.is_some() {
            queue.end = end;
        }
        if share.is_some() {
            queue._share = share;
        }
        if !queue.is_in_line {
            queue.is_in_line = true;
            self.line.push_back(stream);
        }
    }

    /// Moves what waits into the buffer, as far as windows and buffer allow: a frame of each stream in turn.
    pub fn pump(&mut self) {
        while self.out.len() < limits::WRITE_BUFFER_BYTES {
            let Some(stream) = self.line.pop_front() else { return };
            if !self.pump_stream(stream) {
                // The connection's window is used up: nobody else gets further either, except ends without data.
                self.line.push_front(stream);
                return;
            }
        }
    }

    /// Sends one frame of a stream. False if the connection's window does not allow it.
    fn pump_stream(&mut self, stream: u32) -> bool {
        let Some(state) = self.streams.get_mut(&stream) else { return true };
        let Some(queue) = &mut state.queue else { return true };
        let Some(piece) = queue.pieces.front_mut() else {
            let end = queue.end.take();
            state.queue = None;
            match end {
                Some(end) => self.put_end(stream, end),
                None => state.owner.on_room(),
            }
            return true;
        };
        let window = state.credit + self.peer.initial_window;
        if window <= 0 {
            // It comes back with a window.
            queue.is_in_line = false;
            return true;
        }
        if self.send_window <= 0 {
            return false;
        }
        let length = piece.len().min(self.peer.payload_max).min(limits::WRITE_BUFFER_BYTES);
        let length = length.min(window.min(self.send_window) as usize);
        self.has_answered = true;
        frame::put(&mut self.out, frame::DATA, 0, stream, &piece[..length]);
        if length == piece.len() {
            queue.pieces.pop_front();
        } else {
            bytes::Buf::advance(piece, length);
        }
        state.credit -= length as i64;
        self.send_window -= length as i64;
        self.line.push_back(stream);
        true
    }

    fn put_end(&mut self, stream: u32, end: End) {
        match end {
            End::Data => frame::put_head(&mut self.out, 0, frame::DATA, frame::END_STREAM, stream),
            End::Trailers(fields) => self.put_fields(stream, &fields, true),
            End::Ok => {
                let at = self.out.len();
                let flags = frame::END_HEADERS | frame::END_STREAM;
                frame::put_head(&mut self.out, 0, frame::HEADERS, flags, stream);
                self.encoder.put_ok(&mut self.out);
                self.set_length(at);
            }
        }
        self.finish(stream);
    }

    fn put_fields(&mut self, stream: u32, fields: &[u8], ends: bool) {
        self.has_answered = true;
        let mut block = Vec::with_capacity(fields.len() + 4);
        self.encoder.put_other(&mut block, fields);
        frame::put_block(&mut self.out, stream, &block, ends, self.peer.payload_max);
    }

    /// Writes the length of the frame that began there.
    fn set_length(&mut self, at: usize) {
        let length = (self.out.len() - at - HEAD_BYTES) as u32;
        self.out[at..at + 3].copy_from_slice(&length.to_be_bytes()[1..]);
    }

    /// The server has ended its side.
    fn finish(&mut self, stream: u32) {
        let Some(state) = self.streams.remove(&stream) else { return };
        if state.receives {
            // What else it sends is of no use (RFC 9113, 8.1).
            self.put_reset(stream, Reason::NO_ERROR);
        }
        // Whoever still waits for more of the request sees the end of its stream.
        state.owner.on_room();
    }
}
