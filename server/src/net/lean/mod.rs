//! HTTP/2 for gRPC, the server's side, without a general library: what a small call costs is mostly HTTP/2, and most of
//! that is generality. It keeps the rules of RFC 9113 and RFC 7541 and leaves out what no client of a key-value store
//! uses: nothing is pushed, nothing is prioritised, nothing sent is compressed. Chosen by `--daymark-http2-server`.
//!
//! Reading order: [`frame`], [`huffman`], [`hpack`] and [`head`] are bytes; [`core`] (receiving) and [`send`] are the
//! protocol, without input and output; [`calls`] and [`pipe`] are who serves its streams; [`connection`] drives it all.

mod frame;
mod huffman;

mod hpack;

mod head;

mod core;
mod send;

mod calls;
mod pipe;

mod connection;

use std::cell::Cell;

use bytes::BytesMut;

pub(crate) use self::core::PREFACE;
pub(crate) use connection::serve;
pub(crate) use frame::Reason;
pub(crate) use head::Head;
pub(crate) use hpack::put_field;
pub(crate) use pipe::Pipe;

use crate::limits;

/// Buffers that the connections of a thread use in turn: idle ones keep none, and those in use are in the cache.
#[derive(Default)]
pub(crate) struct Buffers {
    read: Cell<BytesMut>,
    out: Cell<Vec<u8>>,
}

impl Buffers {
    /// An empty buffer with room. What was read out of it before may be in use still.
    fn take_read(&self) -> BytesMut {
        self.read.take()
    }

    fn give_read(&self, mut buffer: BytesMut) {
        buffer.clear();
        self.read.set(buffer);
    }

    fn take_out(&self) -> Vec<u8> {
        self.out.take()
    }

    fn give_out(&self, mut buffer: Vec<u8>) {
        // One large answer must not be kept for ever.
        if (1..=4 * limits::WRITE_BUFFER_BYTES).contains(&buffer.capacity()) {
            buffer.clear();
            self.out.set(buffer);
        }
    }
}

#[cfg(test)]
mod tests;
