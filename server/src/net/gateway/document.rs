//! Cuts a request body into JSON documents, byte by byte and without knowing their meaning, so that a body can be read
//! while it arrives and hostile nesting costs one bit a level. Speaks of bad JSON as Go's decoder does, whose words
//! clients of etcd's gateway see.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::Error;
use crate::limits;

/// Why there is no next document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// It is not JSON; says what and where.
    Json(String),
    /// It is larger than is taken.
    TooLarge(Error),
}

/// What has arrived of a body, and the place up to which it has been looked at.
pub(crate) struct Documents {
    buffer: BytesMut,
    scanned: usize,
    scanner: Scanner,
    bytes_max: usize,
    has_ended: bool,
    /// What went wrong once goes wrong for good.
    bad: Option<Bad>,
}

impl Documents {
    /// An empty body whose documents may have that many bytes.
    pub fn new(bytes_max: usize) -> Self {
        let scanner = Scanner::new();
        Self { buffer: BytesMut::new(), scanned: 0, scanner, bytes_max, has_ended: false, bad: None }
    }

    /// Adds what has arrived.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// Bytes that have arrived and are not taken.
    pub fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Nothing more will arrive.
    pub fn end(&mut self) {
        self.has_ended = true;
    }

    /// Whether part of a document has arrived.
    pub fn is_within(&self) -> bool {
        self.scanner.state != State::BeginValue || !self.scanner.open.is_empty()
    }

    /// The next document without the space around it; `None` if it is not complete, or if there is none.
    pub fn next(&mut self) -> Result<Option<Bytes>, Bad> {
        if let Some(bad) = &self.bad {
            return Err(bad.clone());
        }
        let result = self.scan();
        self.bad = result.as_ref().err().cloned();
        result
    }

    fn scan(&mut self) -> Result<Option<Bytes>, Bad> {
        while self.scanned < self.buffer.len() {
            if self.scanner.state == State::String {
                // Values are long: what means nothing in a string is passed over at once.
                let rest = &self.buffer[self.scanned..];
                self.scanned +=
                    rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len());
            }
            let Some(byte) = self.buffer.get(self.scanned).copied() else { break };
            if !self.is_within() && is_space(byte) {
                self.buffer.advance(self.scanned + 1);
                self.scanned = 0;
                continue;
            }
            match self.scanner.step(byte).map_err(Bad::Json)? {
                Step::More => self.scanned += 1,
                Step::Last => {
                    self.scanned += 1;
                    self.check_size()?;
                    return Ok(Some(self.take()));
                }
                Step::Over => return Ok(Some(self.take())),
            }
            self.check_size()?;
        }
        self.check_size()?;
        if !self.has_ended || !self.is_within() {
            return Ok(None);
        }
        // A number at the end of the body has no byte behind it that ends it.
        match self.scanner.step(b' ') {
            Ok(Step::Over) => Ok(Some(self.take())),
            _ => Err(Bad::Json("unexpected EOF".into())),
        }
    }

    fn check_size(&self) -> Result<(), Bad> {
        if self.scanned > self.bytes_max {
            return Err(Bad::TooLarge(Error::MessageTooLarge(self.scanned, self.bytes_max)));
        }
        Ok(())
    }

    fn take(&mut self) -> Bytes {
        self.scanner = Scanner::new();
        self.buffer.split_to(std::mem::take(&mut self.scanned)).freeze()
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// What a byte means for the document.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    More,
    /// It was the last one.
    Last,
    /// The document ended before it.
    Over,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Scope {
    Key,
    Value,
    Array,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum State {
    BeginValue,
    BeginValueOrEnd,
    BeginKey,
    BeginKeyOrEnd,
    EndValue,
    String,
    Escape,
    /// Hexadecimal digits that are still to come.
    Hex(u8),
    Minus,
    /// After a leading zero.
    Zero,
    Digits,
    Dot,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
    /// Of `true`, `false` or `null`: the word and how much of it has been seen.
    Word(&'static str, u8),
}

/// The state machine of one document.
struct Scanner {
    state: State,
    open: Vec<Scope>,
}

impl Scanner {
    fn new() -> Self {
        Self { state: State::BeginValue, open: Vec::new() }
    }

    fn step(&mut self, byte: u8) -> Result<Step, String> {
        match self.state {
            State::BeginValue => self.begin_value(byte),
            State::BeginValueOrEnd if byte == b']' => self.close(),
            State::BeginValueOrEnd => self.begin_value(byte),
            State::BeginKey => self.begin_key(byte),
            State::BeginKeyOrEnd if byte == b'}' => self.close(),
            State::BeginKeyOrEnd => self.begin_key(byte),
            State::EndValue => self.end_value(byte),
            State::String => self.in_string(byte),
            State::Escape => match byte {
                b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => self.go(State::String),
                b'u' => self.go(State::Hex(4)),
                _ => bad(byte, "in string escape code"),
            },
            State::Hex(left) if byte.is_ascii_hexdigit() => {
                self.go(if left == 1 { State::String } else { State::Hex(left - 1) })
            }
            State::Hex(_) => bad(byte, "in \\u hexadecimal character escape"),
            State::Word(word, seen) => self.in_word(byte, word, seen),
            _ => self.in_number(byte),
        }
    }

    fn go(&mut self, state: State) -> Result<Step, String> {
        self.state = state;
        Ok(Step::More)
    }

    fn open(&mut self, byte: u8, scope: Scope, state: State) -> Result<Step, String> {
        self.open.push(scope);
        if self.open.len() > limits::JSON_DEPTH_MAX {
            return bad(byte, "exceeded max depth");
        }
        self.go(state)
    }

    fn close(&mut self) -> Result<Step, String> {
        self.open.pop();
        self.state = State::EndValue;
        Ok(if self.open.is_empty() { Step::Last } else { Step::More })
    }

    fn begin_value(&mut self, byte: u8) -> Result<Step, String> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => Ok(Step::More),
            b'{' => self.open(byte, Scope::Key, State::BeginKeyOrEnd),
            b'[' => self.open(byte, Scope::Array, State::BeginValueOrEnd),
            b'"' => self.go(State::String),
            b'-' => self.go(State::Minus),
            b'0' => self.go(State::Zero),
            b'1'..=b'9' => self.go(State::Digits),
            b't' => self.go(State::Word("true", 1)),
            b'f' => self.go(State::Word("false", 1)),
            b'n' => self.go(State::Word("null", 1)),
            _ => bad(byte, "looking for beginning of value"),
        }
    }

    fn begin_key(&mut self, byte: u8) -> Result<Step, String> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => Ok(Step::More),
            b'"' => self.go(State::String),
            _ => bad(byte, "looking for beginning of object key string"),
        }
    }

    fn end_value(&mut self, byte: u8) -> Result<Step, String> {
        let Some(scope) = self.open.last_mut() else { return Ok(Step::Over) };
        if is_space(byte) {
            return self.go(State::EndValue);
        }
        match (*scope, byte) {
            (Scope::Key, b':') => {
                *scope = Scope::Value;
                self.go(State::BeginValue)
            }
            (Scope::Key, _) => bad(byte, "after object key"),
            (Scope::Value, b',') => {
                *scope = Scope::Key;
                self.go(State::BeginKey)
            }
            (Scope::Value, b'}') | (Scope::Array, b']') => self.close(),
            (Scope::Value, _) => bad(byte, "after object key:value pair"),
            (Scope::Array, b',') => self.go(State::BeginValue),
            (Scope::Array, _) => bad(byte, "after array element"),
        }
    }

    fn in_string(&mut self, byte: u8) -> Result<Step, String> {
        match byte {
            b'"' => {
                self.state = State::EndValue;
                Ok(if self.open.is_empty() { Step::Last } else { Step::More })
            }
            b'\\' => self.go(State::Escape),
            0..0x20 => bad(byte, "in string literal"),
            _ => Ok(Step::More),
        }
    }

    fn in_word(&mut self, byte: u8, word: &'static str, seen: u8) -> Result<Step, String> {
        let wanted = word.as_bytes()[usize::from(seen)];
        if byte != wanted {
            return bad(byte, &format!("in literal {word} (expecting '{}')", wanted as char));
        }
        self.go(if usize::from(seen) + 1 == word.len() { State::EndValue } else { State::Word(word, seen + 1) })
    }

    fn in_number(&mut self, byte: u8) -> Result<Step, String> {
        match (self.state, byte) {
            (State::Minus, b'0') => self.go(State::Zero),
            (State::Minus, b'1'..=b'9') => self.go(State::Digits),
            (State::Minus, _) => bad(byte, "in numeric literal"),
            (State::Digits, b'0'..=b'9') | (State::Fraction | State::ExponentDigits, b'0'..=b'9') => Ok(Step::More),
            (State::Zero | State::Digits, b'.') => self.go(State::Dot),
            (State::Zero | State::Digits | State::Fraction, b'e' | b'E') => self.go(State::Exponent),
            (State::Dot, b'0'..=b'9') => self.go(State::Fraction),
            (State::Dot, _) => bad(byte, "after decimal point in numeric literal"),
            (State::Exponent, b'+' | b'-') => self.go(State::ExponentSign),
            (State::Exponent | State::ExponentSign, b'0'..=b'9') => self.go(State::ExponentDigits),
            (State::Exponent | State::ExponentSign, _) => bad(byte, "in exponent of numeric literal"),
            _ => self.end_value(byte),
        }
    }
}

fn bad(byte: u8, place: &str) -> Result<Step, String> {
    Err(format!("invalid character {} {place}", quote(byte)))
}

/// A byte as Go quotes the character of that number.
fn quote(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".into(),
        b'\\' => "'\\\\'".into(),
        7 => "'\\a'".into(),
        8 => "'\\b'".into(),
        9 => "'\\t'".into(),
        10 => "'\\n'".into(),
        11 => "'\\v'".into(),
        12 => "'\\f'".into(),
        13 => "'\\r'".into(),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        // Not printable in Go's tables: controls, no-break space, soft hyphen.
        0x80..=0xa0 | 0xad => format!("'\\u{byte:04x}'"),
        _ => format!("'{}'", byte as char),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes out of a body that arrives in pieces of that size.
    fn all(body: &[u8], piece: usize) -> (Vec<String>, Option<String>) {
        let (mut documents, mut found) = (Documents::new(1 << 20), Vec::new());
        let mut pieces = body.chunks(piece);
        loop {
            match documents.next() {
                Ok(Some(document)) => found.push(String::from_utf8_lossy(&document).into_owned()),
                Ok(None) => match pieces.next() {
                    Some(piece) => documents.push(piece),
                    None if documents.has_ended => return (found, None),
                    None => documents.end(),
                },
                Err(Bad::Json(text)) => return (found, Some(text)),
                Err(Bad::TooLarge(error)) => return (found, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn documents_are_cut_out_of_a_body() {
        for (body, wanted) in [
            ("", vec![]),
            (" \n\t\r ", vec![]),
            (" {} ", vec!["{}"]),
            ("{}{} \n[1]", vec!["{}", "{}", "[1]"]),
            ("1 22", vec!["1", "22"]),
            ("-1.5e+7\"x\"null", vec!["-1.5e+7", "\"x\"", "null"]),
            ("true0", vec!["true", "0"]),
            (r#"{"a":"}\"]","b":[{},[],0.1E-2]}x"#, vec![r#"{"a":"}\"]","b":[{},[],0.1E-2]}"#]),
        ] {
            for piece in [1, 3, 1000] {
                let (found, bad) = all(body.as_bytes(), piece);
                assert_eq!(found, wanted, "{body}");
                assert_eq!(bad.is_some(), body.ends_with('x'), "{body}");
            }
        }
    }

    #[test]
    fn bad_json_is_described_in_the_usual_words() {
        for (body, wanted) in [
            ("{", "unexpected EOF"),
            ("\"ab", "unexpected EOF"),
            ("-", "unexpected EOF"),
            ("tru", "unexpected EOF"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("'", r"invalid character '\'' looking for beginning of value"),
            ("\u{7}", r"invalid character '\a' looking for beginning of value"),
            ("{1", "invalid character '1' looking for beginning of object key string"),
            ("{\"a\" 1", "invalid character '1' after object key"),
            ("{\"a\":1 1", "invalid character '1' after object key:value pair"),
            ("[1 1", "invalid character '1' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("\"\n", r"invalid character '\n' in string literal"),
            ("\"\\x", "invalid character 'x' in string escape code"),
            ("\"\\u00g", "invalid character 'g' in \\u hexadecimal character escape"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1e+x", "invalid character 'x' in exponent of numeric literal"),
            ("trve", "invalid character 'v' in literal true (expecting 'u')"),
        ] {
            assert_eq!(all(body.as_bytes(), 2).1.as_deref(), Some(wanted), "{body}");
        }
        assert_eq!(all(b"\x80", 1).1.as_deref(), Some(r"invalid character '\u0080' looking for beginning of value"));
    }

    #[test]
    fn nesting_and_size_have_an_end() {
        let deep = "[".repeat(limits::JSON_DEPTH_MAX + 1);
        assert_eq!(all(deep.as_bytes(), 999).1.as_deref(), Some("invalid character '[' exceeded max depth"));
        let mut documents = Documents::new(10);
        documents.push(b"          \"12345678\"");
        assert_eq!(documents.next(), Ok(Some("\"12345678\"".into())));
        documents.push(b"\"123456789");
        assert_eq!(documents.next(), Ok(None));
        documents.push(b"\"");
        assert!(matches!(documents.next(), Err(Bad::TooLarge(_))));
    }

    #[test]
    fn after_a_fault_there_is_nothing_more() {
        let mut documents = Documents::new(100);
        documents.push(b"x {}");
        let bad = documents.next().expect_err("not JSON");
        documents.push(b" {}");
        assert_eq!(documents.next(), Err(bad));
    }
}
