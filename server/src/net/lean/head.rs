//! The head of a request: its fields, and whether they are what HTTP/2 allows (RFC 9113, 8.2 and 8.3). Does not know
//! what they mean, except those that HTTP/2 itself gives a meaning.

use std::ops::Range;

use crate::limits;

/// What a field counts beside its bytes.
const FIELD_OVERHEAD: usize = 32;
/// Only for the one connection that a message came over, which HTTP/2 says in other ways.
const OF_CONNECTIONS: [&[u8]; 5] =
    [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"];

/// A request without its body. Names are lower-case tokens once it has been checked.
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// All names and values.
    text: Vec<u8>,
    /// Where names and values of ordinary fields are.
    fields: Vec<(Range<u32>, Range<u32>)>,
    /// Where the values of `:method`, `:scheme`, `:path` and `:authority` are.
    pseudo: [Option<Range<u32>>; 4],
    content_length: Option<u64>,
    size: usize,
    fault: Option<&'static str>,
}

const METHOD: usize = 0;
const SCHEME: usize = 1;
const PATH: usize = 2;
const AUTHORITY: usize = 3;

impl Head {
    /// A head of nothing, with room for what clients usually say.
    pub(super) fn with_room() -> Self {
        Self { text: Vec::with_capacity(256), fields: Vec::with_capacity(8), ..Self::default() }
    }

    /// Adds the next field. What is beyond the limit is counted and not kept.
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) {
        self.size = self.size.saturating_add(name.len() + value.len() + FIELD_OVERHEAD);
        if self.is_too_large() {
            return;
        }
        if let Err(fault) = self.check(name, value) {
            self.fault.get_or_insert(fault);
        }
    }

    fn check(&mut self, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if !value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)) {
            return Err("a value with a control character");
        }
        if name.first() == Some(&b':') {
            let place = match name {
                b":method" => METHOD,
                b":scheme" => SCHEME,
                b":path" => PATH,
                b":authority" => AUTHORITY,
                _ => return Err("an unknown pseudo-field"),
            };
            if !self.fields.is_empty() {
                return Err("a pseudo-field after a field");
            }
            let value = self.keep(value);
            return match self.pseudo[place].replace(value) {
                None => Ok(()),
                Some(_) => Err("a pseudo-field twice"),
            };
        }
        if name.is_empty() || !name.iter().all(|byte| IN_NAMES[usize::from(*byte)]) {
            return Err("a name that is none");
        }
        if OF_CONNECTIONS.contains(&name) || (name == b"te" && value != b"trailers") {
            return Err("a field of the connection");
        }
        if name == b"content-length" {
            let digits = !value.is_empty() && value.len() < 20 && value.iter().all(u8::is_ascii_digit);
            let length = value.iter().fold(0_u64, |sum, digit| sum.wrapping_mul(10) + u64::from(digit & 15));
            if !digits || self.content_length.is_some_and(|before| before != length) {
                return Err("a content-length that is none");
            }
            self.content_length = Some(length);
        }
        let field = (self.keep(name), self.keep(value));
        self.fields.push(field);
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<u32> {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(bytes);
        start..self.text.len() as u32
    }

    /// What it takes, about, in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether there is more than is accepted.
    pub(super) fn is_too_large(&self) -> bool {
        self.size > limits::HEADER_LIST_BYTES_MAX as usize
    }

    /// Whether the whole is a request.
    pub(super) fn check_request(&self) -> Result<(), &'static str> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let has = |place: usize| self.pseudo[place].is_some();
        let is_complete = match self.method() {
            b"" => false,
            // It names no resource (RFC 9113, 8.5).
            b"CONNECT" => !has(SCHEME) && !has(PATH) && has(AUTHORITY),
            _ => has(SCHEME) && !self.path().is_empty(),
        };
        if is_complete { Ok(()) } else { Err("a request without method, scheme or path") }
    }

    /// Whether the whole is what may follow a body.
    pub(super) fn check_trailers(&self) -> Result<(), &'static str> {
        match self.fault {
            Some(fault) => Err(fault),
            None if self.pseudo.iter().any(Option::is_some) => Err("a pseudo-field in trailers"),
            None => Ok(()),
        }
    }

    /// The announced length of the body.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    fn at(&self, range: &Range<u32>) -> &[u8] {
        &self.text[range.start as usize..range.end as usize]
    }

    fn pseudo(&self, place: usize) -> &[u8] {
        self.pseudo[place].as_ref().map_or(&[], |range| self.at(range))
    }

    pub fn method(&self) -> &[u8] {
        self.pseudo(METHOD)
    }

    pub fn scheme(&self) -> &[u8] {
        self.pseudo(SCHEME)
    }

    /// With the query, as sent.
    pub fn path(&self) -> &[u8] {
        self.pseudo(PATH)
    }

    pub fn authority(&self) -> &[u8] {
        self.pseudo(AUTHORITY)
    }

    /// The ordinary fields.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|(name, value)| (self.at(name), self.at(value)))
    }
}

/// What a name may consist of: tokens (RFC 9110, 5.6.2) without capitals.
static IN_NAMES: [bool; 256] = {
    let mut known = [false; 256];
    let bytes = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut at = 0;
    while at < bytes.len() {
        known[bytes[at] as usize] = true;
        at += 1;
    }
    known
};

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b")];

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut head = Head::default();
        fields.iter().for_each(|(name, value)| head.add(name.as_bytes(), value.as_bytes()));
        head
    }

    fn request_with(fields: &[(&str, &str)]) -> Result<(), &'static str> {
        head(&[&REQUEST[..], fields].concat()).check_request()
    }

    #[test]
    fn what_is_allowed_is_kept() {
        let more = [(":authority", "http://old:2379"), ("te", "trailers"), ("x", "\t\u{e9}"), ("content-length", "7")];
        let head = head(&[&REQUEST[..], &more].concat());
        assert_eq!(head.check_request(), Ok(()));
        assert_eq!((head.method(), head.path(), head.scheme()), (&b"POST"[..], &b"/a/b"[..], &b"http"[..]));
        assert_eq!((head.authority(), head.content_length()), (&b"http://old:2379"[..], Some(7)));
        let fields: Vec<_> = head.fields().collect();
        assert_eq!(fields[1], (&b"x"[..], "\t\u{e9}".as_bytes()));
        assert_eq!(request_with(&[("content-length", "7"), ("content-length", "7")]), Ok(()));
    }

    #[test]
    fn what_is_not_allowed_is_refused() {
        for bad in [
            ("X-Capital", "a"),
            ("", "a"),
            ("a b", "a"),
            ("a:b", "a"),
            ("connection", "close"),
            ("keep-alive", "a"),
            ("proxy-connection", "a"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "a"),
            ("te", "gzip"),
            ("a", "b\r\nc"),
            ("a", "\0"),
            ("content-length", "-1"),
            ("content-length", ""),
            ("content-length", "100000000000000000000"),
            (":status", "200"),
            (":protocol", "websocket"),
            (":path", "/again"),
        ] {
            assert!(request_with(&[bad]).is_err(), "{bad:?}");
        }
        assert!(request_with(&[("content-length", "7"), ("content-length", "8")]).is_err());
        assert!(request_with(&[("a", "b"), (":authority", "late")]).is_err());
        for missing in 0..3 {
            let mut fields = REQUEST.to_vec();
            fields.remove(missing);
            assert!(head(&fields).check_request().is_err());
        }
        assert!(head(&[(":method", "GET"), (":scheme", "http"), (":path", "")]).check_request().is_err());
        assert_eq!(head(&[(":method", "CONNECT"), (":authority", "a")]).check_request(), Ok(()));
        assert!(head(&[(":method", "CONNECT"), (":authority", "a"), (":path", "/")]).check_request().is_err());
        assert!(head(&REQUEST).check_trailers().is_err());
        assert_eq!(head(&[("grpc-status", "0")]).check_trailers(), Ok(()));
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let mut head = Head::default();
        for _ in 0..100_000 {
            head.add(b"name", &[b'v'; 4000]);
        }
        assert!(head.is_too_large());
        assert!(head.text.capacity() <= 2 * limits::HEADER_LIST_BYTES_MAX as usize);
    }
}
