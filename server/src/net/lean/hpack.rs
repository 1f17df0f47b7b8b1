//! Header blocks as bytes (RFC 7541): the decoder with its table, and the few blocks that answers are made of. Knows no
//! meaning of any field.

use std::collections::VecDeque;

use super::frame::TABLE_BYTES_DEFAULT;
use super::huffman;

/// What an entry of a table counts beside its bytes.
const ENTRY_OVERHEAD: usize = 32;

/// A header block that breaks the rules. What is in the tables of both ends is not known any more.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct BadBlock(pub &'static str);

/// Decodes the header blocks of one connection, in their order.
pub(super) struct Decoder {
    table: Table,
    /// The other end may not make the table larger than this.
    bytes_max: usize,
    /// For decompressed names and values.
    name: Vec<u8>,
    value: Vec<u8>,
}

/// What a block has done to the table.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: while that stays so, the same bytes mean the same.
    None,
    Changed,
}

impl Default for Decoder {
    fn default() -> Self {
        let table = Table { bytes_max: TABLE_BYTES_DEFAULT, ..Table::default() };
        Self { table, bytes_max: TABLE_BYTES_DEFAULT, name: Vec::new(), value: Vec::new() }
    }
}

impl Decoder {
    /// Calls `field` with name and value of each field of a block.
    pub fn decode(&mut self, block: &[u8], mut field: impl FnMut(&[u8], &[u8])) -> Result<Effect, BadBlock> {
        let (mut rest, mut effect, mut has_fields) = (block, Effect::None, false);
        while let Some(first) = rest.first().copied() {
            if first & 0x80 != 0 {
                let (name, value) = self.table.entry(take_integer(&mut rest, 7)?)?;
                field(name, value);
            } else if first & 0xe0 == 0x20 {
                if has_fields {
                    return Err(BadBlock("size update after a field"));
                }
                self.table.resize(take_integer(&mut rest, 5)?, self.bytes_max)?;
                effect = Effect::Changed;
                continue;
            } else {
                let is_kept = first & 0x40 != 0;
                let index = take_integer(&mut rest, if is_kept { 6 } else { 4 })?;
                self.name.clear();
                match index {
                    0 => take_string(&mut rest, &mut self.name)?,
                    index => self.name.extend_from_slice(self.table.entry(index)?.0),
                }
                self.value.clear();
                take_string(&mut rest, &mut self.value)?;
                field(&self.name, &self.value);
                if is_kept {
                    self.table.insert(&self.name, &self.value);
                    effect = Effect::Changed;
                }
            }
            has_fields = true;
        }
        // A long value must not stay with a connection for ever.
        for scratch in [&mut self.name, &mut self.value] {
            if scratch.capacity() > TABLE_BYTES_DEFAULT {
                *scratch = Vec::new();
            }
        }
        Ok(effect)
    }
}

/// The entries that the other end has added, the newest first.
///
/// Invariant: `bytes`, the sum of their sizes, is at most `bytes_max`.
#[derive(Default)]
struct Table {
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
}

struct Entry {
    text: Box<[u8]>,
    name_len: usize,
}

impl Entry {
    fn size(&self) -> usize {
        self.text.len() + ENTRY_OVERHEAD
    }
}

impl Table {
    fn entry(&self, index: usize) -> Result<(&[u8], &[u8]), BadBlock> {
        if let Some((name, value)) = index.checked_sub(1).and_then(|index| STATIC.get(index)) {
            return Ok((name.as_bytes(), value.as_bytes()));
        }
        let entry = index.checked_sub(STATIC.len() + 1).and_then(|index| self.entries.get(index));
        entry.map(|entry| entry.text.split_at(entry.name_len)).ok_or(BadBlock("no such entry"))
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let entry = Entry { text: [name, value].concat().into(), name_len: name.len() };
        let size = entry.size();
        // One that is too large empties the table, and that is all.
        self.shrink(self.bytes_max.saturating_sub(size));
        if size <= self.bytes_max {
            self.bytes += size;
            self.entries.push_front(entry);
        }
    }

    fn resize(&mut self, bytes: usize, bytes_max: usize) -> Result<(), BadBlock> {
        if bytes > bytes_max {
            return Err(BadBlock("table larger than allowed"));
        }
        self.bytes_max = bytes;
        self.shrink(bytes);
        Ok(())
    }

    /// Forgets the oldest entries until the others take at most `bytes`.
    fn shrink(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let entry = self.entries.pop_back().expect("entries take the bytes");
            self.bytes -= entry.size();
        }
    }
}

/// An integer with a prefix of that many bits (RFC 7541, 5.1). Nothing that is meant needs more than four bytes more.
fn take_integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, BadBlock> {
    let cut_off = BadBlock("integer is cut off");
    let mask = (1_u8 << prefix_bits) - 1;
    let (first, mut left) = rest.split_first().ok_or(cut_off)?;
    let mut value = usize::from(first & mask);
    if value == usize::from(mask) {
        let mut shift = 0;
        loop {
            let (byte, after) = left.split_first().ok_or(cut_off)?;
            left = after;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(BadBlock("integer is too large"));
            }
        }
    }
    *rest = left;
    Ok(value)
}

/// Appends a string (RFC 7541, 5.2).
fn take_string(rest: &mut &[u8], out: &mut Vec<u8>) -> Result<(), BadBlock> {
    let is_compressed = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = take_integer(rest, 7)?;
    let (text, left) = rest.split_at_checked(length).ok_or(BadBlock("string is cut off"))?;
    *rest = left;
    if !is_compressed {
        out.extend_from_slice(text);
    } else if !huffman::decode(text, out) {
        return Err(BadBlock("string is compressed wrongly"));
    }
    Ok(())
}

/// Appends an integer with a prefix of that many bits; the bits above are `first`.
fn put_integer(out: &mut Vec<u8>, first: u8, prefix_bits: u32, value: usize) {
    let mask = (1_usize << prefix_bits) - 1;
    if value < mask {
        return out.push(first | value as u8);
    }
    out.push(first | mask as u8);
    let mut left = value - mask;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// Appends a field that no table keeps.
pub(crate) fn put_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let known = |entry: &&str| *entry == name;
    if let Some(place) = STATIC.iter().position(|entry| entry.0 == name && entry.1.as_bytes() == value) {
        return put_integer(out, 0x80, 7, place + 1);
    }
    match STATIC.iter().position(|entry| known(&entry.0)) {
        Some(place) => put_integer(out, 0, 4, place + 1),
        None => {
            out.push(0);
            put_integer(out, 0, 7, name.len());
            out.extend_from_slice(name.as_bytes());
        }
    }
    put_integer(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

/// Encodes the blocks of answers. Three fields, those of every good answer, are kept in the other end's table from the
/// first time on; all others are spelled out each time.
#[derive(Default)]
pub(super) struct Encoder {
    kept: Kept,
    /// The largest table that the other end allows, if it is to be told that this is known.
    resize_to: Option<usize>,
}

/// What the other end's table holds.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Kept {
    #[default]
    Nothing,
    /// `content-type`.
    Head,
    /// Two more, before it.
    HeadAndTrailers,
    /// It is too small to hold all three.
    Never,
}

const GRPC_TYPE: (&str, &[u8]) = ("content-type", b"application/grpc");
/// What the three fields count in a table.
const KEPT_BYTES: usize = 28 + 12 + 12 + 3 * ENTRY_OVERHEAD;

impl Encoder {
    /// The other end allows another size of its table.
    pub fn allow(&mut self, table_bytes: usize) {
        // More than the default is not needed. Less has to be acknowledged, and so has the default after less.
        let bytes = table_bytes.min(TABLE_BYTES_DEFAULT);
        if bytes < TABLE_BYTES_DEFAULT || self.resize_to.is_some() {
            let least = self.resize_to.unwrap_or(bytes).min(bytes);
            self.resize_to = Some(least);
        }
        if bytes < KEPT_BYTES {
            self.kept = Kept::Never;
        }
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some(bytes) = self.resize_to.take() {
            put_integer(out, 0x20, 5, bytes);
        }
    }

    /// The head of an answer in gRPC: 200, and its type.
    pub fn put_grpc_head(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        // `:status: 200` is entry 8 of the static table, `content-type` 31.
        match self.kept {
            Kept::Head => out.extend_from_slice(&[0x88, 0x80 | 62]),
            Kept::HeadAndTrailers => out.extend_from_slice(&[0x88, 0x80 | 64]),
            Kept::Nothing => {
                out.extend_from_slice(&[0x88, 0x40 | 31, GRPC_TYPE.1.len() as u8]);
                out.extend_from_slice(GRPC_TYPE.1);
                self.kept = Kept::Head;
            }
            Kept::Never => {
                out.push(0x88);
                put_field(out, GRPC_TYPE.0, GRPC_TYPE.1);
            }
        }
    }

    /// The trailers of a good answer.
    pub fn put_ok(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        match self.kept {
            Kept::HeadAndTrailers => out.extend_from_slice(&[0x80 | 63, 0x80 | 62]),
            Kept::Head => {
                out.extend_from_slice(b"\x40\x0bgrpc-status\x010\x40\x0cgrpc-message\x00");
                self.kept = Kept::HeadAndTrailers;
            }
            Kept::Nothing | Kept::Never => {
                put_field(out, "grpc-status", b"0");
                put_field(out, "grpc-message", b"");
            }
        }
    }

    /// Any other fields, encoded by [`put_field`].
    pub fn put_other(&mut self, out: &mut Vec<u8>, fields: &[u8]) {
        self.begin(out);
        out.extend_from_slice(fields);
    }
}

/// RFC 7541, appendix A.
#[rustfmt::skip] // A table reads by its rows.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = Vec<(String, String)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, BadBlock> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits");
        digits.chunks(2).map(byte).collect()
    }

    fn fields(pairs: &[(&str, &str)]) -> Fields {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    /// RFC 7541, C.1.
    #[test]
    fn integers_are_those_of_the_standard() {
        for (prefix, value, wanted) in [(5, 10, "0a"), (5, 1337, "1f9a0a"), (8, 42, "2a")] {
            let mut out = Vec::new();
            put_integer(&mut out, 0, prefix, value);
            assert_eq!(out, bytes(wanted));
            if prefix < 8 {
                assert_eq!(take_integer(&mut &out[..], prefix), Ok(value));
            }
        }
        for value in [0, 30, 31, 32, 126, 127, 128, 255, 16_384, (1 << 28) - 1] {
            for prefix in [4, 5, 6, 7] {
                let mut out = Vec::new();
                put_integer(&mut out, 0, prefix, value);
                let mut rest = &out[..];
                assert_eq!((take_integer(&mut rest, prefix), rest.len()), (Ok(value), 0), "{value} in {prefix} bits");
            }
        }
        for bad in ["", "1f", "1fff", "1fffffffffff00", "1f8080808000"] {
            assert!(take_integer(&mut &bytes(bad)[..], 5).is_err(), "{bad}");
        }
    }

    /// RFC 7541, C.2.
    #[test]
    fn single_fields_of_the_standard() {
        for (block, field, size) in [
            ("400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572", ("custom-key", "custom-header"), 55),
            ("040c 2f73 616d 706c 652f 7061 7468", (":path", "/sample/path"), 0),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", ("password", "secret"), 0),
            ("82", (":method", "GET"), 0),
        ] {
            let mut decoder = Decoder::default();
            assert_eq!(decode(&mut decoder, &bytes(block)), Ok(fields(&[field])));
            assert_eq!(decoder.table.bytes, size);
        }
    }

    /// RFC 7541, C.3 and C.4: the same three requests, plain and compressed.
    #[test]
    fn requests_of_the_standard() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let compressed = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        let get = |scheme, path| vec![(":method", "GET"), (":scheme", scheme), (":path", path)];
        let host = (":authority", "www.example.com");
        let wanted = [
            ([get("http", "/"), vec![host]].concat(), 57),
            ([get("http", "/"), vec![host, ("cache-control", "no-cache")]].concat(), 110),
            ([get("https", "/index.html"), vec![host, ("custom-key", "custom-value")]].concat(), 164),
        ];
        for blocks in [plain, compressed] {
            let mut decoder = Decoder::default();
            for (block, (pairs, size)) in blocks.iter().zip(&wanted) {
                assert_eq!(decode(&mut decoder, &bytes(block)), Ok(fields(pairs)));
                assert_eq!(decoder.table.bytes, *size);
            }
        }
    }

    /// RFC 7541, C.5 and C.6: responses, in a table of 256 bytes that has to forget.
    #[test]
    fn responses_of_the_standard() {
        let plain = [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120
             474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738
             666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33
             3630 303b 2076 6572 7369 6f6e 3d31",
        ];
        let compressed = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718
             63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7
             b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        let location = ("location", "https://www.example.com");
        let (first, later) = (("date", "Mon, 21 Oct 2013 20:13:21 GMT"), ("date", "Mon, 21 Oct 2013 20:13:22 GMT"));
        let cookie = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
        let wanted = [
            (vec![(":status", "302"), ("cache-control", "private"), first, location], 222),
            (vec![(":status", "307"), ("cache-control", "private"), first, location], 222),
            (
                vec![
                    (":status", "200"),
                    ("cache-control", "private"),
                    later,
                    location,
                    ("content-encoding", "gzip"),
                    cookie,
                ],
                215,
            ),
        ];
        for blocks in [plain, compressed] {
            let mut decoder = Decoder::default();
            decoder.table.bytes_max = 256;
            for (block, (pairs, size)) in blocks.iter().zip(&wanted) {
                assert_eq!(decode(&mut decoder, &bytes(block)), Ok(fields(pairs)));
                assert_eq!(decoder.table.bytes, *size);
            }
        }
    }

    #[test]
    fn tables_grow_no_larger_than_allowed() {
        let mut decoder = Decoder::default();
        // 4097 bytes, then an update after a field, then 0 and the whole again.
        assert_eq!(decode(&mut decoder, &bytes("3fe21f")), Err(BadBlock("table larger than allowed")));
        assert_eq!(decode(&mut decoder, &bytes("8220")), Err(BadBlock("size update after a field")));
        assert_eq!(decode(&mut decoder, &bytes("203fe11f82")), Ok(fields(&[(":method", "GET")])));
        for number in 0..1000 {
            let mut block = vec![0x40, 1, b'n', 100];
            block.extend(format!("{number:0100}").bytes());
            decode(&mut decoder, &block).expect("good");
            assert!(decoder.table.bytes <= 4096 && decoder.table.entries.len() <= 30);
        }
        assert!(decode(&mut decoder, &[0x80 | 62]).is_ok());
        // An entry that is larger than the table empties it.
        let mut block = vec![0x40, 1, b'n'];
        put_integer(&mut block, 0, 7, 5000);
        block.extend([b'v'; 5000]);
        decode(&mut decoder, &block).expect("good");
        assert_eq!((decoder.table.bytes, decoder.table.entries.len()), (0, 0));
        for block in ["80", "be", "ff00", "40", "4001", "400161", "40016105", "4081ff", "7f"] {
            assert!(decode(&mut decoder, &bytes(block)).is_err(), "{block}");
        }
    }

    #[test]
    fn answers_are_understood_whatever_the_order_and_the_table() {
        let head = [(":status", "200"), ("content-type", "application/grpc")];
        let ok = [("grpc-status", "0"), ("grpc-message", "")];
        for table in [None, Some(0), Some(KEPT_BYTES - 1), Some(KEPT_BYTES), Some(100_000)] {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            for round in 0..4 {
                if let (1, Some(table)) = (round, table) {
                    encoder.allow(table);
                    decoder.bytes_max = table;
                }
                for put in [Encoder::put_grpc_head, Encoder::put_ok] {
                    let mut out = Vec::new();
                    put(&mut encoder, &mut out);
                    let wanted: &[_] = if out.is_empty() { &[] } else { &head };
                    let decoded = decode(&mut decoder, &out).expect("good");
                    assert!(decoded == fields(wanted) || decoded == fields(&ok), "{decoded:?}");
                }
                let (mut other, mut out) = (Vec::new(), Vec::new());
                put_field(&mut other, "content-type", b"text/plain");
                put_field(&mut other, "x-long", &[b'x'; 300]);
                put_field(&mut other, ":status", b"404");
                encoder.put_other(&mut out, &other);
                let long = "x".repeat(300);
                let wanted = fields(&[("content-type", "text/plain"), ("x-long", &long), (":status", "404")]);
                assert_eq!(decode(&mut decoder, &out), Ok(wanted));
            }
            let mut out = Vec::new();
            encoder.put_grpc_head(&mut out);
            assert_eq!(out.len() == 2, table.is_none_or(|table| table >= KEPT_BYTES), "{table:?}");
        }
    }
}
