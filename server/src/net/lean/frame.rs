//! HTTP/2 frames as bytes (RFC 9113, 4 and 6): how heads are read and frames are written. Knows no connection, and no
//! stream beyond its number.

/// What every frame begins with.
pub(super) const HEAD_BYTES: usize = 9;
/// The largest payload before the other end has said otherwise, and the largest that is received.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16_384;
/// The largest that anybody may allow.
pub(super) const PAYLOAD_BYTES_LIMIT: usize = (1 << 24) - 1;
/// The largest flow-control window.
pub(super) const WINDOW_MAX: i64 = (1 << 31) - 1;
/// Windows before anything is said about them.
pub(super) const WINDOW_DEFAULT: i64 = 65_535;
/// Size of the header tables before anything is said about them. Ours stays at it.
pub(super) const TABLE_BYTES_DEFAULT: usize = 4096;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const HAS_PRIORITY: u8 = 0x20;

pub(super) const SETTINGS_HEADER_TABLE_SIZE: u16 = 1;
pub(super) const SETTINGS_ENABLE_PUSH: u16 = 2;
pub(super) const SETTINGS_MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const SETTINGS_INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const SETTINGS_MAX_FRAME_SIZE: u16 = 5;
pub(super) const SETTINGS_MAX_HEADER_LIST_SIZE: u16 = 6;

/// Why a stream or a connection ends, as the other end is told (RFC 9113, 7).
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason(pub u32);

impl Reason {
    pub const NO_ERROR: Self = Self(0);
    pub const PROTOCOL_ERROR: Self = Self(1);
    pub const INTERNAL_ERROR: Self = Self(2);
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    pub const STREAM_CLOSED: Self = Self(5);
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    pub const REFUSED_STREAM: Self = Self(7);
    pub const CANCEL: Self = Self(8);
    pub const COMPRESSION_ERROR: Self = Self(9);
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

/// The head of a frame.
#[derive(Copy, Clone, Debug)]
pub(super) struct FrameHead {
    /// Of the payload, in bytes.
    pub length: usize,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl FrameHead {
    /// The head that `bytes` begin with; `None` if they are too few.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, d, e, f, g] = *bytes.first_chunk::<HEAD_BYTES>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Some(Self { length, kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]) })
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Writes the head of a frame.
pub(super) fn put_head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, d, e, f, g]);
}

/// Writes a frame with a payload.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    put_head(out, payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
}

/// Writes a frame whose payload is one number.
pub(super) fn put_number(out: &mut Vec<u8>, kind: u8, stream: u32, number: u32) {
    put(out, kind, 0, stream, &number.to_be_bytes());
}

/// Writes the end of a connection.
pub(super) fn put_goaway(out: &mut Vec<u8>, last_stream: u32, reason: Reason, words: &[u8]) {
    put_head(out, 8 + words.len(), GOAWAY, 0, 0);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&reason.0.to_be_bytes());
    out.extend_from_slice(words);
}

/// Writes settings.
pub(super) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    put_head(out, 6 * settings.len(), SETTINGS, 0, 0);
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Writes a header block, in as many frames as the other end wants.
pub(super) fn put_block(out: &mut Vec<u8>, stream: u32, block: &[u8], ends_stream: bool, payload_max: usize) {
    let end = if ends_stream { END_STREAM } else { 0 };
    if block.len() <= payload_max {
        return put(out, HEADERS, end | END_HEADERS, stream, block);
    }
    let (mut kind, mut flags, last) = (HEADERS, end, (block.len() - 1) / payload_max);
    for (number, piece) in block.chunks(payload_max).enumerate() {
        if number == last {
            flags |= END_HEADERS;
        }
        put(out, kind, flags, stream, piece);
        (kind, flags) = (CONTINUATION, 0);
    }
}

/// The payload without its padding; `None` if the padding is longer than what it pads.
pub(super) fn without_padding<'a>(head: &FrameHead, payload: &'a [u8]) -> Option<&'a [u8]> {
    if !head.has(PADDED) {
        return Some(payload);
    }
    let (length, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(*length))?)
}
