//! The tokens of one JSON document, with their places for whoever finds fault with them. The document is known to be JSON;
//! only what its strings hold is still to be seen.

use std::borrow::Cow;

use super::parse::Refusal;

/// What a token is.
#[derive(Debug, PartialEq)]
pub(crate) enum TokenKind<'a> {
    ObjectOpen,
    ObjectClose,
    ArrayOpen,
    ArrayClose,
    /// A string before a colon.
    Name(Cow<'a, str>),
    String(Cow<'a, str>),
    Number,
    Bool(bool),
    Null,
    End,
}

/// A token and its place.
pub(crate) struct Token<'a> {
    pub kind: TokenKind<'a>,
    /// As it stands in the document.
    pub raw: &'a str,
    pub at: usize,
}

/// The tokens of a document that is known to be JSON, so that commas and colons need no look.
pub(crate) struct Tokens<'a> {
    document: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    /// The tokens of a document.
    pub fn of(document: &'a [u8]) -> Self {
        Self { document, at: 0 }
    }

    fn skip_separators(&mut self) {
        let rest = &self.document[self.at..];
        let separators = rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b',' | b':'));
        self.at += separators.count();
    }

    /// The next token.
    pub fn next(&mut self) -> Result<Token<'a>, Refusal> {
        self.skip_separators();
        let at = self.at;
        let Some(byte) = self.document.get(at) else { return Ok(Token { kind: TokenKind::End, raw: "", at }) };
        if *byte == b'"' {
            return self.string();
        }
        let rest = &self.document[at..];
        let length = match byte {
            b'{' | b'}' | b'[' | b']' => 1,
            _ => rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte)).count(),
        };
        self.at += length;
        // ASCII, or the document would not be JSON.
        let raw = std::str::from_utf8(&rest[..length]).unwrap_or_default();
        let kind = match raw {
            "{" => TokenKind::ObjectOpen,
            "}" => TokenKind::ObjectClose,
            "[" => TokenKind::ArrayOpen,
            "]" => TokenKind::ArrayClose,
            "null" => TokenKind::Null,
            "true" => TokenKind::Bool(true),
            "false" => TokenKind::Bool(false),
            _ => TokenKind::Number,
        };
        Ok(Token { kind, raw, at })
    }

    fn string(&mut self) -> Result<Token<'a>, Refusal> {
        let at = self.at;
        let (text, length) = self.unescape(&self.document[at..])?;
        self.at += length;
        let raw = std::str::from_utf8(&self.document[at..at + length]).unwrap_or_default();
        let after = self.document[self.at..].iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
        let kind = if after == Some(&b':') { TokenKind::Name(text) } else { TokenKind::String(text) };
        Ok(Token { kind, raw, at })
    }

    /// The text of the string that `rest` begins with, and its length in the document.
    fn unescape(&self, rest: &'a [u8]) -> Result<(Cow<'a, str>, usize), Refusal> {
        let mut text = Cow::Borrowed("");
        let mut at = 1;
        loop {
            let plain = rest[at..].iter().take_while(|byte| !matches!(byte, b'"' | b'\\')).count();
            let piece = std::str::from_utf8(&rest[at..at + plain])
                .map_err(|_| self.syntax(self.at, "invalid UTF-8 in string".into()))?;
            if text.is_empty() {
                text = Cow::Borrowed(piece)
            } else {
                text.to_mut().push_str(piece)
            }
            at += plain;
            if rest.get(at) != Some(&b'\\') {
                // The closing quote: the document is JSON.
                return Ok((text, at + 1));
            }
            let (character, length) = self.escape(&rest[at..])?;
            text.to_mut().push(character);
            at += length;
        }
    }

    /// The character of an escape sequence and its length.
    fn escape(&self, rest: &[u8]) -> Result<(char, usize), Refusal> {
        let character = match rest.get(1) {
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(rest),
            Some(other) => char::from(*other),
            None => return Err(Refusal::Unfit("proto: unexpected EOF".into())),
        };
        Ok((character, 2))
    }

    fn unicode_escape(&self, rest: &[u8]) -> Result<(char, usize), Refusal> {
        let unit = |at: usize| {
            let digits = rest.get(at..at + 6).and_then(|sequence| sequence.strip_prefix(b"\\u"))?;
            u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let first = unit(0).unwrap_or_default();
        let Some(character) = char::from_u32(u32::from(first)) else {
            if rest.len() < 12 {
                return Err(Refusal::Unfit("proto: unexpected EOF".into()));
            }
            let second = unit(6).unwrap_or_default();
            let pair = char::decode_utf16([first, second]).next().and_then(Result::ok);
            let quoted = || {
                let sequence = String::from_utf8_lossy(rest.get(6..12).unwrap_or_default());
                self.syntax(self.at, format!("invalid escape code {sequence:?} in string"))
            };
            return pair.map(|character| (character, 12)).ok_or_else(quoted);
        };
        Ok((character, 6))
    }

    /// Passes over `null`, if it is next.
    pub fn skip_null(&mut self) -> bool {
        self.skip_separators();
        let is_null = self.document[self.at..].starts_with(b"null");
        self.at += if is_null { 4 } else { 0 };
        is_null
    }

    /// Passes over the end of an array, if it is next.
    pub fn skip_array_close(&mut self) -> bool {
        self.skip_separators();
        let is_close = self.document.get(self.at).is_none_or(|byte| *byte == b']');
        self.at += usize::from(is_close && self.at < self.document.len());
        is_close
    }

    /// Line and column of a place, both from 1, the column in characters.
    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.document[..at];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        (line, String::from_utf8_lossy(&before[start..]).chars().count() + 1)
    }

    /// What does not fit, with its place.
    pub fn fault(&self, at: usize, text: String) -> Refusal {
        let (line, column) = self.position(at);
        Refusal::Unfit(format!("proto: (line {line}:{column}): {text}"))
    }

    fn syntax(&self, at: usize, text: String) -> Refusal {
        let (line, column) = self.position(at);
        Refusal::Unfit(format!("proto: syntax error (line {line}:{column}): {text}"))
    }

    /// A token that must not be there.
    pub fn unexpected(&self, token: &Token<'_>) -> Refusal {
        self.syntax(token.at, format!("unexpected token {}", token.raw))
    }
}
