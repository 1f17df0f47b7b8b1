//! Old gRPC clients (Go's until etcd 3.4) send an endpoint with its scheme as `:authority`, `http://host:2379`. HTTP/2
//! allows no scheme there and h2 resets such a stream before anybody sees the request; etcd serves it. So the scheme is
//! taken out of the first header block of a connection, the only one that spells the authority out: later ones refer to
//! it by its place in the table. Looks at nothing else and leaves alone what it does not understand.
//!
//! The decoder's table then holds an entry that is a few bytes smaller than the encoder believes. It evicts later than
//! the encoder, never earlier, and places count from the newest entry, so both keep meaning the same.

use bytes::{Buf, Bytes, BytesMut};

/// Bytes of the preface that every HTTP/2 connection begins with.
const PREFACE_LEN: usize = 24;
const FRAME_HEAD_LEN: usize = 9;
/// Before the settings are exchanged no frame may be larger (RFC 9113, 4.2).
const FRAME_LEN_MAX: usize = 16_384;
const HEADERS: u8 = 1;
const FLAG_PADDED: u8 = 0x8;
const FLAG_PRIORITY: u8 = 0x20;
/// `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// Holds back bytes until the first header block is complete, then lets everything through.
pub(crate) struct Filter {
    held: BytesMut,
    preface_is_out: bool,
    is_done: bool,
}

impl Filter {
    pub fn new() -> Self {
        Self { held: BytesMut::new(), preface_is_out: false, is_done: false }
    }

    /// Whether it has nothing left to do.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Takes what was read and gives back what may be passed on, which may be nothing yet.
    pub fn pass(&mut self, read: &[u8]) -> Bytes {
        self.held.extend_from_slice(read);
        let mut out = BytesMut::new();
        if !self.preface_is_out && self.held.len() >= PREFACE_LEN {
            out.extend_from_slice(&self.held.split_to(PREFACE_LEN));
            self.preface_is_out = true;
        }
        while self.preface_is_out && !self.is_done && self.held.len() >= FRAME_HEAD_LEN {
            let length = u32::from_be_bytes([0, self.held[0], self.held[1], self.held[2]]) as usize;
            if length > FRAME_LEN_MAX {
                self.is_done = true;
            } else if self.held.len() < FRAME_HEAD_LEN + length {
                break;
            } else {
                let frame = self.held.split_to(FRAME_HEAD_LEN + length);
                self.is_done = frame[3] == HEADERS;
                match self.is_done.then(|| without_scheme(&frame)).flatten() {
                    Some(frame) => out.extend_from_slice(&frame),
                    None => out.extend_from_slice(&frame),
                }
            }
        }
        if self.is_done {
            out.extend_from_slice(&std::mem::take(&mut self.held));
        }
        out.freeze()
    }
}

/// The frame with the scheme taken out of its authority; `None` if there is none to take out.
fn without_scheme(frame: &[u8]) -> Option<Vec<u8>> {
    let (head, mut payload) = frame.split_at(FRAME_HEAD_LEN);
    let mut flags = head[4];
    if flags & FLAG_PADDED != 0 {
        let padding = usize::from(*payload.first()?);
        payload = payload.get(1..payload.len().checked_sub(padding)?)?;
        flags &= !FLAG_PADDED;
    }
    let (priority, block) = payload.split_at_checked(if flags & FLAG_PRIORITY != 0 { 5 } else { 0 })?;
    let (start, end, authority) = find_authority(block)?;
    let mut out = Vec::with_capacity(frame.len() + 32);
    out.extend_from_slice(head);
    out[4] = flags;
    out.extend_from_slice(priority);
    out.extend_from_slice(&block[..start]);
    // A plain string of less than 127 bytes: its length is one byte.
    out.push(u8::try_from(authority.len()).ok().filter(|length| *length < 127)?);
    out.extend_from_slice(authority.as_bytes());
    out.extend_from_slice(&block[end..]);
    let length = (out.len() - FRAME_HEAD_LEN) as u32;
    out[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    Some(out)
}

/// Where the value of `:authority` stands in a header block, and what it should be, if it has a scheme.
fn find_authority(block: &[u8]) -> Option<(usize, usize, String)> {
    let mut rest = block;
    while let Some(first) = rest.first().copied() {
        let (prefix_bits, is_literal) = match first {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let index = take_integer(&mut rest, prefix_bits)?;
        if !is_literal {
            continue;
        }
        if index == 0 {
            take_string(&mut rest)?;
        }
        let start = block.len() - rest.len();
        let (is_huffman, value) = take_string(&mut rest)?;
        if index != AUTHORITY {
            continue;
        }
        let value = if is_huffman { decode_huffman(value)? } else { value.to_vec() };
        let value = String::from_utf8(value).ok()?;
        let (_, authority) = value.split_once("://")?;
        let authority = authority.split('/').next().filter(|host| !host.is_empty()).unwrap_or("localhost");
        return Some((start, block.len() - rest.len(), authority.to_owned()));
    }
    None
}

/// An integer with a prefix of that many bits (RFC 7541, 5.1); `None` if it is cut off or absurd.
fn take_integer(rest: &mut &[u8], prefix_bits: u32) -> Option<usize> {
    let mask = (1 << prefix_bits) - 1;
    let mut value = usize::from(*rest.first()? & mask);
    rest.advance(1);
    if value < usize::from(mask) {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = *rest.first()?;
        rest.advance(1);
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A string and whether it is compressed (RFC 7541, 5.2).
fn take_string<'a>(rest: &mut &'a [u8]) -> Option<(bool, &'a [u8])> {
    let is_huffman = rest.first()? & 0x80 != 0;
    let length = take_integer(rest, 7)?;
    let (value, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some((is_huffman, value))
}

/// Symbols by the length of their codes, which are canonical: within a length they count up in this order, and each
/// length begins where the one before ended (RFC 7541, appendix B). Longer codes do not occur in addresses.
const CODES: [(u32, &[u8]); 8] = [
    (5, b"012aceiost"),
    (6, b" %-./3456789=A_bdfghlmnpru"),
    (7, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, b"&*,;XZ"),
    (10, b"!\"()?"),
    (11, b"'+|"),
    (12, b"#>"),
    (13, b"\0$@[]~"),
];

/// `None` if there is a symbol that addresses do not have.
fn decode_huffman(bytes: &[u8]) -> Option<Vec<u8>> {
    let bit = |at: u32| u32::from(bytes[at as usize / 8] >> (7 - at % 8) & 1);
    let total = bytes.len() as u32 * 8;
    let (mut at, mut out) = (0, Vec::new());
    'symbols: while at < total {
        let (mut code, mut length, mut first) = (0, 0, 0);
        for (next_length, symbols) in CODES {
            first <<= next_length - length;
            while length < next_length {
                if at + length == total {
                    // What is left must be padding: the beginning of the code of all ones.
                    return (length < 8 && code == (1 << length) - 1).then_some(out);
                }
                code = code << 1 | bit(at + length);
                length += 1;
            }
            if let Some(symbol) = symbols.get((code - first) as usize) {
                out.push(*symbol);
                at += length;
                continue 'symbols;
            }
            first += symbols.len() as u32;
        }
        return None;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn encode_huffman(text: &[u8]) -> Vec<u8> {
        let mut bits = String::new();
        for symbol in text {
            let (mut length, mut first) = (0, 0);
            for (next_length, symbols) in CODES {
                first <<= next_length - length;
                length = next_length;
                if let Some(place) = symbols.iter().position(|known| known == symbol) {
                    bits += &format!("{:0width$b}", first as usize + place, width = length as usize);
                    break;
                }
                first += symbols.len() as u32;
            }
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes().chunks(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | (bit - b'0'))).collect()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A block as Go's client sends it: POST, http, a path, the authority, more.
    fn block(huffman: bool, authority: &str) -> Vec<u8> {
        let value = if huffman { encode_huffman(authority.as_bytes()) } else { authority.into() };
        let mark = if huffman { 0x80 } else { 0 };
        let mut block = vec![0x83, 0x86, 0x44, 2, b'/', b'a', 0x41, mark | value.len() as u8];
        block.extend(value);
        block.extend([0x40, 1, b'x', 1, b'y', 0x82]);
        block
    }

    fn through(connection: &[u8], step: usize) -> Vec<u8> {
        let mut filter = Filter::new();
        let out = connection.chunks(step).flat_map(|read| filter.pass(read)).collect();
        assert!(filter.is_done());
        out
    }

    /// Examples C.4.1 and C.6.1 of RFC 7541.
    #[test]
    fn the_codes_are_those_of_the_standard() {
        let authority = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decode_huffman(&authority).as_deref(), Some(&b"www.example.com"[..]));
        let date = [
            0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b, 0x81, 0x66, 0xe0, 0x82,
            0xa6, 0x2d, 0x1b, 0xff,
        ];
        assert_eq!(decode_huffman(&date).as_deref(), Some(&b"Mon, 21 Oct 2013 20:13:21 GMT"[..]));
        assert_eq!(encode_huffman(b"www.example.com"), authority);
        let all: Vec<u8> = CODES.iter().flat_map(|(_, symbols)| symbols.iter().copied()).collect();
        assert_eq!(decode_huffman(&encode_huffman(&all)), Some(all));
    }

    #[test]
    fn a_scheme_is_taken_out_of_the_first_header_block() {
        for (given, wanted) in [
            ("http://127.0.0.1:2379", "127.0.0.1:2379"),
            ("https://etcd-0.example.com:2379", "etcd-0.example.com:2379"),
            ("http://[::1]:2379", "[::1]:2379"),
            ("unix:///run/daymark.sock", "localhost"),
        ] {
            for huffman in [false, true] {
                let first = frame(1, 0x4, &block(huffman, given));
                let padded = [&[3], &block(huffman, given)[..], &[0, 0, 0]].concat();
                let second = frame(1, 0x4, &block(huffman, "http://second"));
                let settings = frame(4, 0, &[]);
                for first in [first, frame(1, 0x4 | 0x8, &padded)] {
                    let connection = [PREFACE, &settings, &first, &second].concat();
                    let expected = [PREFACE, &settings, &frame(1, 0x4, &block(false, wanted)), &second].concat();
                    for step in [1, 7, connection.len()] {
                        assert_eq!(through(&connection, step), expected, "{given} in steps of {step}");
                    }
                }
            }
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        let fine = frame(1, 0x4, &block(true, "127.0.0.1:2379"));
        let cut_off = frame(1, 0, &block(true, "http://127.0.0.1:2379")[..12]);
        let bad_padding = frame(1, 0x8, &[200, 1, 2]);
        let mut huge = frame(0, 0, b"");
        huge[0] = 0xff;
        for first in [fine, cut_off, bad_padding, huge, frame(1, 0x4, &[])] {
            let connection = [PREFACE, &first, b"and so on"].concat();
            for step in [1, connection.len()] {
                assert_eq!(through(&connection, step), connection);
            }
        }
    }
}
