//! gRPC's framing: five bytes (compressed or not, length) before each message, and how messages are taken out of and put
//! into bodies without copying where that can be helped. Knows nothing of methods; compression is in `compression`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::Stream;
use prost::Message;

use super::compression;
use super::halves::Body;
use crate::error::Error;

/// Compressed flag and length.
pub(crate) const PREFIX_BYTES: usize = 5;

/// Takes messages out of a request body.
pub(crate) struct MessageReader {
    body: Body,
    /// Received and not taken. A message within one chunk is a slice of it.
    chunk: Bytes,
    /// A message that spans chunks, prefix included. Grows with what arrives, not with what the prefix promises.
    partial: BytesMut,
    message_bytes_max: usize,
    /// Messages may be compressed with gzip.
    is_gzip: bool,
}

impl MessageReader {
    /// A reader that refuses larger messages.
    pub fn new(body: Body, message_bytes_max: usize, is_gzip: bool) -> Self {
        Self { body, chunk: Bytes::new(), partial: BytesMut::new(), message_bytes_max, is_gzip }
    }

    /// The next message, or `None` at the end of the body.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            match self.take_message() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(chunk)) => self.push(chunk),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None if self.chunk.is_empty() && self.partial.is_empty() => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err(Error::Protocol("unexpected EOF".into())))),
            }
        }
    }

    /// The one message of a unary call. Waits for the end of the body, which official clients send with the message.
    pub async fn only_message(&mut self) -> Result<Bytes, Error> {
        let none = "cardinality violation: received no request message from non-client-streaming RPC";
        let several = "cardinality violation: received multiple request messages for non-client-streaming RPC";
        let message = std::future::poll_fn(|cx| self.poll_message(cx)).await;
        let message = message.unwrap_or_else(|| Err(Error::Protocol(none.into())))?;
        if self.chunk.is_empty() && self.partial.is_empty() && self.body.is_end_stream() {
            return Ok(message);
        }
        match std::future::poll_fn(|cx| self.poll_message(cx)).await {
            None => Ok(message),
            Some(Ok(_)) => Err(Error::Protocol(several.into())),
            Some(Err(error)) => Err(error),
        }
    }

    fn push(&mut self, chunk: Bytes) {
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(&chunk);
        } else if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            self.partial.reserve(self.chunk.len() + chunk.len());
            self.partial.extend_from_slice(&self.chunk);
            self.partial.extend_from_slice(&chunk);
            self.chunk = Bytes::new();
        }
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, Error> {
        let available: &[u8] = if self.partial.is_empty() { &self.chunk } else { &self.partial };
        let Some((is_compressed, length)) = self.prefix(available)? else {
            return Ok(None);
        };
        if available.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        let message = if self.partial.is_empty() {
            self.chunk.advance(PREFIX_BYTES);
            self.chunk.split_to(length)
        } else {
            self.partial.advance(PREFIX_BYTES);
            let message = self.partial.split_to(length).freeze();
            // Not kept in `partial`, or every later message would be copied, too.
            self.chunk = std::mem::take(&mut self.partial).freeze();
            message
        };
        Ok(Some(if is_compressed { compression::inflate(&message, self.message_bytes_max)? } else { message }))
    }

    /// Whether the message is compressed, and the length that its prefix announces; `None` while that is incomplete.
    fn prefix(&self, bytes: &[u8]) -> Result<Option<(bool, usize)>, Error> {
        let [flag, length @ ..] = bytes else { return Ok(None) };
        match flag {
            0 => {}
            1 if self.is_gzip => {}
            1 => return Err(Error::Protocol("grpc: compressed flag set with identity or empty encoding".into())),
            other => return Err(Error::Protocol(format!("grpc: received unexpected payload format {other}"))),
        }
        let Some(length) = length.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > self.message_bytes_max {
            return Err(Error::MessageTooLarge(length, self.message_bytes_max));
        }
        Ok(Some((*flag == 1, length)))
    }
}

/// Whether `body` consists of one message, whole, not compressed and not too large, behind a prefix: nearly always.
pub(crate) fn is_whole_message(body: &[u8], message_bytes_max: usize) -> bool {
    let Some(([0, length @ ..], message)) = body.split_first_chunk::<PREFIX_BYTES>() else { return false };
    let length = u32::from_be_bytes(*length) as usize;
    length == message.len() && length <= message_bytes_max
}

/// Decodes a message; its `bytes` fields are slices of `bytes`.
pub(crate) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Error> {
    M::decode(bytes).map_err(|error| {
        let text = error.to_string();
        // Only transactions nest. The decoder names every level that it went down.
        if text.ends_with("recursion limit reached") { Error::TooManyOps } else { Error::Malformed(text) }
    })
}

/// A message with its prefix.
pub(crate) fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    put_prefix(&mut bytes, length);
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// The prefix of an uncompressed message.
pub(crate) fn put_prefix(bytes: &mut BytesMut, length: usize) {
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
}

/// A message with its prefix, compressed if it is worth it.
pub(crate) fn compressed(framed: &Bytes) -> Bytes {
    let Some(message) = compression::deflate(&framed[PREFIX_BYTES..]) else { return framed.clone() };
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    bytes.put_u8(1);
    bytes.put_u32(message.len() as u32);
    bytes.extend_from_slice(&message);
    bytes.freeze()
}

impl Stream for MessageReader {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_message(cx)
    }
}
