//! A JSON document to the bytes of a protobuf message, in one pass and with proto3's JSON rules: both names of a field,
//! numbers as strings, enums by name or number, unknown fields skipped. Says what is wrong as Go's protojson does. The
//! document is known to be JSON; what its strings and numbers hold is not.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::{WireType, encode_varint, encoded_len_varint};
use smallvec::SmallVec;

use super::schema::{Field, Kind, Message, MessageId, Schema};
use super::tokens::{Token, TokenKind, Tokens};
use crate::error::Error;
use crate::limits;

/// Why a document is no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It does not fit the message; says where and how.
    Unfit(String),
    /// It breaks a bound.
    Bound(Error),
}

/// The message that a document describes, of at most `bytes_max` bytes.
pub(crate) fn parse(document: &[u8], message: MessageId, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
    let schema = Schema::get();
    let mut parser = Parser { schema, tokens: Tokens::of(document), out: Vec::new(), padding_bytes: 0, depth: 0 };
    parser.message(schema.message(message))?;
    let bytes = parser.out.len() - parser.padding_bytes;
    if bytes > bytes_max {
        return Err(Refusal::Bound(Error::MessageTooLarge(bytes, bytes_max)));
    }
    Ok(parser.out)
}

/// Bytes that a length takes before it is known: it is written as a varint of this size, padded.
const LENGTH_BYTES: usize = 4;

struct Parser<'a> {
    schema: &'static Schema,
    tokens: Tokens<'a>,
    out: Vec<u8>,
    /// What lengths take more than they need.
    padding_bytes: usize,
    depth: usize,
}

impl Parser<'_> {
    fn message(&mut self, message: &Message) -> Result<(), Refusal> {
        self.depth += 1;
        if self.depth > limits::MESSAGE_DEPTH_MAX {
            // Only transactions nest.
            return Err(Refusal::Bound(Error::TooManyOps));
        }
        let open = self.tokens.next()?;
        if open.kind != TokenKind::ObjectOpen {
            return Err(self.tokens.unexpected(&open));
        }
        let mut seen: SmallVec<[u32; 16]> = SmallVec::new();
        let mut seen_oneofs: SmallVec<[i32; 4]> = SmallVec::new();
        loop {
            let token = self.tokens.next()?;
            let name = match &token.kind {
                TokenKind::ObjectClose => break,
                TokenKind::Name(name) => name,
                _ => return Err(self.tokens.unexpected(&token)),
            };
            let Some(field) = message.field_by_name(name) else {
                self.skip()?;
                continue;
            };
            if seen.contains(&field.number) {
                return Err(self.tokens.fault(token.at, format!("duplicate field {}", token.raw)));
            }
            seen.push(field.number);
            if self.tokens.skip_null() {
                continue;
            }
            if let Some(oneof) = &field.oneof {
                if seen_oneofs.contains(&oneof.index) {
                    let text = format!("error parsing {}, oneof {} is already set", token.raw, oneof.full_name);
                    return Err(self.tokens.fault(token.at, text));
                }
                seen_oneofs.push(oneof.index);
            }
            if field.is_repeated { self.list(field)? } else { self.singular(field)? }
        }
        self.depth -= 1;
        Ok(())
    }

    fn singular(&mut self, field: &Field) -> Result<(), Refusal> {
        match field.kind {
            Kind::Message(id) => self.nested(field, id),
            _ => {
                if let Some(value) = self.scalar(field)? {
                    // Zero is what an absent field means, unless a union says which field is there.
                    if field.oneof.is_some() || !value.is_default() {
                        self.put_key(field, value.wire_type());
                        value.put(&mut self.out);
                    }
                }
                Ok(())
            }
        }
    }

    fn list(&mut self, field: &Field) -> Result<(), Refusal> {
        let open = self.tokens.next()?;
        if open.kind != TokenKind::ArrayOpen {
            return Err(self.tokens.unexpected(&open));
        }
        let is_packed = !matches!(field.kind, Kind::Message(_) | Kind::String | Kind::Bytes);
        let packed = is_packed.then(|| self.open_length(field));
        while !self.tokens.skip_array_close() {
            if let Kind::Message(id) = field.kind {
                self.nested(field, id)?;
            } else if let Some(value) = self.scalar(field)? {
                if packed.is_none() {
                    self.put_key(field, value.wire_type());
                }
                value.put(&mut self.out);
            }
        }
        match packed {
            Some(start) => self.close_length(start),
            None => Ok(()),
        }
    }

    fn nested(&mut self, field: &Field, id: MessageId) -> Result<(), Refusal> {
        let start = self.open_length(field);
        let schema = self.schema;
        self.message(schema.message(id))?;
        self.close_length(start)
    }

    fn put_key(&mut self, field: &Field, wire_type: WireType) {
        encode_varint(u64::from(field.number << 3 | wire_type as u32), &mut self.out);
    }

    /// Begins what has a length before it; returns where.
    fn open_length(&mut self, field: &Field) -> usize {
        self.put_key(field, WireType::LengthDelimited);
        self.out.extend_from_slice(&[0; LENGTH_BYTES]);
        self.out.len()
    }

    fn close_length(&mut self, start: usize) -> Result<(), Refusal> {
        let length = self.out.len() - start;
        if length >= 1 << (7 * LENGTH_BYTES) {
            return Err(Refusal::Bound(Error::RequestTooLarge));
        }
        for place in 0..LENGTH_BYTES {
            let more = if place + 1 < LENGTH_BYTES { 0x80 } else { 0 };
            self.out[start - LENGTH_BYTES + place] = (length >> (7 * place)) as u8 & 0x7f | more;
        }
        self.padding_bytes += LENGTH_BYTES - encoded_len_varint(length as u64);
        Ok(())
    }

    /// A value; `None` for the name of an enum value that does not exist, which counts as absent.
    fn scalar(&mut self, field: &Field) -> Result<Option<Value>, Refusal> {
        let token = self.tokens.next()?;
        let value = match (field.kind, &token.kind) {
            (Kind::Bool, TokenKind::Bool(value)) => Some(Value::Varint(u64::from(*value))),
            (Kind::Int32 | Kind::Int64, _) => {
                let value = integer(&token).and_then(|text| text.parse::<i64>().ok());
                let fits = |value: &i64| field.kind == Kind::Int64 || i32::try_from(*value).is_ok();
                value.filter(fits).map(|value| Value::Varint(value as u64))
            }
            (Kind::Uint32 | Kind::Uint64, _) => {
                let value = integer(&token).and_then(|text| text.parse::<u64>().ok());
                let fits = |value: &u64| field.kind == Kind::Uint64 || u32::try_from(*value).is_ok();
                value.filter(fits).map(Value::Varint)
            }
            (Kind::String, TokenKind::String(text)) => Some(Value::Bytes(text.as_bytes().to_vec())),
            (Kind::Bytes, TokenKind::String(text)) => base64(text).map(Value::Bytes),
            (Kind::Enum(id), TokenKind::String(name)) => match self.schema.enumeration(id).number(name) {
                Some(number) => Some(Value::Varint(i64::from(number) as u64)),
                None => return Ok(None),
            },
            (Kind::Enum(_), TokenKind::Number) => {
                let number = normal_integer(token.raw).and_then(|text| text.parse::<i32>().ok());
                number.map(|number| Value::Varint(i64::from(number) as u64))
            }
            _ => None,
        };
        let fault = || {
            let kind = kind_name(field.kind);
            let text = format!("invalid value for {kind} field {}: {}", field.json_name, token.raw);
            self.tokens.fault(token.at, text)
        };
        value.map(Some).ok_or_else(fault)
    }

    /// Skips one value, however deep, without recursion.
    fn skip(&mut self) -> Result<(), Refusal> {
        let mut open = 0_usize;
        loop {
            match self.tokens.next()?.kind {
                TokenKind::ObjectOpen | TokenKind::ArrayOpen => open += 1,
                TokenKind::ObjectClose | TokenKind::ArrayClose => open -= 1,
                _ => {}
            }
            if open == 0 {
                return Ok(());
            }
        }
    }
}

enum Value {
    Varint(u64),
    Bytes(Vec<u8>),
}

impl Value {
    fn is_default(&self) -> bool {
        match self {
            Self::Varint(value) => *value == 0,
            Self::Bytes(value) => value.is_empty(),
        }
    }

    fn wire_type(&self) -> WireType {
        match self {
            Self::Varint(_) => WireType::Varint,
            Self::Bytes(_) => WireType::LengthDelimited,
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Varint(value) => encode_varint(value, out),
            Self::Bytes(value) => {
                encode_varint(value.len() as u64, out);
                out.extend_from_slice(&value);
            }
        }
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Bool => "bool",
        Kind::Int32 => "int32",
        Kind::Int64 => "int64",
        Kind::Uint32 => "uint32",
        Kind::Uint64 => "uint64",
        Kind::String => "string",
        Kind::Bytes => "bytes",
        Kind::Enum(_) => "enum",
        Kind::Message(_) => "message",
    }
}

/// The integer that a token stands for, as digits: a number, or a string that begins with one.
fn integer(token: &Token<'_>) -> Option<String> {
    match &token.kind {
        TokenKind::Number => normal_integer(token.raw),
        TokenKind::String(text) if text.trim() == text => normal_integer(leading_number(text)?),
        _ => None,
    }
}

/// The number at the beginning of a text, if a delimiter or nothing follows it.
fn leading_number(text: &str) -> Option<&str> {
    let is_part = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'_') || byte.is_ascii_alphanumeric();
    let end = text.bytes().position(|byte| !is_part(&byte)).unwrap_or(text.len());
    let number = &text[..end];
    let (_, digits, fraction, exponent) = split_number(number)?;
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let leads = digits == "0" || (is_digits(digits) && !digits.starts_with('0'));
    let exponent = exponent.map(|text| text.strip_prefix(['+', '-']).unwrap_or(text));
    (leads && fraction.is_none_or(is_digits) && exponent.is_none_or(is_digits)).then_some(number)
}

/// Sign, integer part, fraction and exponent of a number.
fn split_number(number: &str) -> Option<(bool, &str, Option<&str>, Option<&str>)> {
    let (is_negative, rest) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (mantissa, exponent) = match rest.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (rest, None),
    };
    let (digits, fraction) = match mantissa.split_once('.') {
        Some((digits, fraction)) => (digits, Some(fraction)),
        None => (mantissa, None),
    };
    (!digits.is_empty()).then_some((is_negative, digits, fraction, exponent))
}

/// A number without its exponent and fraction, if it is an integer that may fit into 64 bits.
fn normal_integer(number: &str) -> Option<String> {
    /// Digits of the largest integer.
    const DIGITS_MAX: usize = 20;
    let (is_negative, digits, fraction, exponent) = split_number(number)?;
    let digits = if digits == "0" { "" } else { digits };
    let fraction = fraction.unwrap_or_default().trim_end_matches('0');
    if digits.is_empty() && fraction.is_empty() {
        return Some("0".into());
    }
    let exponent: i32 = exponent.map_or(Some(0), |text| text.parse().ok())?;
    let sign = if is_negative { "-" } else { "" };
    if exponent >= 0 {
        let exponent = exponent as usize;
        if fraction.len() > exponent || digits.len().checked_add(exponent)? > DIGITS_MAX {
            return None;
        }
        let zeros = "0".repeat(exponent - fraction.len());
        return Some(format!("{sign}{digits}{fraction}{zeros}"));
    }
    let kept = digits.len().checked_sub(exponent.unsigned_abs() as usize)?;
    let is_whole = fraction.is_empty() && digits[kept..].bytes().all(|byte| byte == b'0');
    is_whole.then(|| format!("{sign}{}", &digits[..kept]))
}

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
const PADDED: GeneralPurposeConfig = LENIENT.with_decode_padding_mode(DecodePaddingMode::RequireCanonical);
const BARE: GeneralPurposeConfig = LENIENT.with_decode_padding_mode(DecodePaddingMode::RequireNone);
const STANDARD_PADDED: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, PADDED);
const STANDARD_BARE: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, BARE);
const URL_PADDED: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, PADDED);
const URL_BARE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, BARE);

/// Bytes from either alphabet; padded if the length says so. Line breaks in between do not count, as in Go.
fn base64(text: &str) -> Option<Vec<u8>> {
    let is_url = text.contains(['-', '_']);
    let engine = match (is_url, text.len().is_multiple_of(4)) {
        (false, true) => STANDARD_PADDED,
        (false, false) => STANDARD_BARE,
        (true, true) => URL_PADDED,
        (true, false) => URL_BARE,
    };
    let text = match text.contains(['\r', '\n']) {
        true => Cow::Owned(text.replace(['\r', '\n'], "")),
        false => Cow::Borrowed(text),
    };
    engine.decode(&*text).ok()
}

#[cfg(test)]
mod tests {
    use daymark_api::{etcdserverpb as pb, v3lockpb};

    use super::*;

    fn parsed<M: prost::Message + Default>(name: &str, json: &str) -> M {
        let id = Schema::get().id_of(name);
        let bytes = parse(json.as_bytes(), id, 1 << 20).unwrap_or_else(|refusal| panic!("{json}: {refusal:?}"));
        M::decode(&*bytes).expect("protobuf")
    }

    fn range(json: &str) -> pb::RangeRequest {
        parsed("etcdserverpb.RangeRequest", json)
    }

    fn refused(json: &str) -> String {
        let id = Schema::get().id_of("etcdserverpb.TxnRequest");
        match parse(json.as_bytes(), id, 1 << 20) {
            Err(Refusal::Unfit(text)) => text,
            other => panic!("{json}: {other:?}"),
        }
    }

    #[test]
    fn both_spellings_of_names_numbers_and_enums_are_read() {
        let wanted = pb::RangeRequest {
            key: "foo".into(),
            range_end: vec![0xff, 0xef].into(),
            limit: 12,
            sort_order: 1,
            keys_only: true,
            ..Default::default()
        };
        for json in [
            r#"{"key":"Zm9v","range_end":"/+8=","limit":"12","sort_order":"ASCEND","keys_only":true}"#,
            r#"{"key":"Zm9v","rangeEnd":"_-8","limit":12,"sortOrder":1,"keysOnly":true,"nonsense":[{"a":[]}]}"#,
            "{ \"key\" : \"Zm9\\u0076\" , \"rangeEnd\":\"/+8=\",\"limit\":1.2e1,\"sortOrder\":\"ASCEND\",\"keysOnly\":true}",
            r#"{"key":"Zm9v","rangeEnd":"/+8","limit":"120e-1","sort_order":"ASCEND","keys_only":true,"revision":null}"#,
        ] {
            assert_eq!(range(json), wanted, "{json}");
        }
        assert_eq!(range(r#"{"sort_order":"SIDEWAYS"}"#), pb::RangeRequest::default());
        assert_eq!(range(r#"{"limit":"-9223372036854775808"}"#).limit, i64::MIN);
        assert_eq!(range(r#"{"sort_order":-1}"#).sort_order, -1);
        let lock: v3lockpb::LockRequest = parsed("v3lockpb.LockRequest", r#"{"name":"bQ==","lease":"7"}"#);
        assert_eq!((&lock.name[..], lock.lease), (&b"m"[..], 7));
    }

    #[test]
    fn messages_lists_and_unions_nest() {
        let txn: pb::TxnRequest = parsed(
            "etcdserverpb.TxnRequest",
            r#"{"compare":[{"target":"VERSION","key":"YQ==","version":"0","result":"GREATER"}],
                "success":[{"request_txn":{"success":[{"requestPut":{"key":"YQ==","value":"Yg=="}}]}}],"failure":[{}]}"#,
        );
        let compare = &txn.compare[0];
        assert_eq!(compare.target_union, Some(pb::compare::TargetUnion::Version(0)), "a zero in a union is there");
        assert_eq!((compare.result, txn.success.len(), txn.failure.len()), (1, 1, 1));
        let watch: pb::WatchRequest =
            parsed("etcdserverpb.WatchRequest", r#"{"create_request":{"filters":["NODELETE",0,"NOPUT"]}}"#);
        let Some(pb::watch_request::RequestUnion::CreateRequest(create)) = watch.request_union else { panic!() };
        assert_eq!(create.filters, [1, 0, 0]);
        let member: pb::MemberAddRequest =
            parsed("etcdserverpb.MemberAddRequest", r#"{"peerURLs":["http://a:1","\"\ud83d\ude00\n"]}"#);
        assert_eq!(member.peer_ur_ls, ["http://a:1", "\"\u{1f600}\n"]);
    }

    #[test]
    fn what_does_not_fit_is_described_with_its_place() {
        for (json, wanted) in [
            ("null", "proto: syntax error (line 1:1): unexpected token null"),
            ("[]", "proto: syntax error (line 1:1): unexpected token ["),
            ("\"x\"", "proto: syntax error (line 1:1): unexpected token \"x\""),
            (r#"{"compare":{}}"#, "proto: syntax error (line 1:12): unexpected token {"),
            (r#"{"compare":[1]}"#, "proto: syntax error (line 1:13): unexpected token 1"),
            (r#"{"compare":[],"compare":[]}"#, "proto: (line 1:15): duplicate field \"compare\""),
            ("{\"compare\":[\n {\"kéy\":1, \"key\":5}]}", "proto: (line 2:18): invalid value for bytes field key: 5"),
            (
                r#"{"compare":[{"create_revision":"1 "}]}"#,
                "proto: (line 1:32): invalid value for int64 field createRevision: \"1 \"",
            ),
            (
                r#"{"compare":[{"version":1,"lease":1}]}"#,
                "proto: (line 1:26): error parsing \"lease\", oneof etcdserverpb.Compare.target_union is already set",
            ),
            (r#"{"compare":[{"key":"\ud800"}]}"#, "proto: unexpected EOF"),
            (
                r#"{"compare":[{"key":"\ud800abcdef"}]}"#,
                "proto: syntax error (line 1:20): invalid escape code \"abcdef\" in string",
            ),
        ] {
            assert_eq!(refused(json), wanted, "{json}");
        }
        let id = Schema::get().id_of("etcdserverpb.PutRequest");
        let refusal = parse(b"{\"key\":\"\xff\"}", id, 100).expect_err("not UTF-8");
        assert_eq!(refusal, Refusal::Unfit("proto: syntax error (line 1:8): invalid UTF-8 in string".into()));
    }

    #[test]
    fn numbers_are_read_exactly_or_not_at_all() {
        for (text, wanted) in [
            ("0", Some("0")),
            ("-0", Some("0")),
            ("0.0e9", Some("0")),
            ("1.50e1", Some("15")),
            ("100e-2", Some("1")),
            ("1e19", Some("10000000000000000000")),
            ("1e20", None),
            ("1e99999999999", None),
            ("1.5", None),
            ("15e-1", None),
            ("-7e0", Some("-7")),
        ] {
            assert_eq!(normal_integer(text).as_deref(), wanted, "{text}");
        }
        for (text, wanted) in [
            ("12", Some("12")),
            ("12 34", Some("12")),
            ("12,", Some("12")),
            ("12a", None),
            ("01", None),
            ("", None),
            ("1.", None),
            ("-", None),
        ] {
            assert_eq!(leading_number(text), wanted, "{text}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let id = Schema::get().id_of("etcdserverpb.PutRequest");
        assert_eq!(parse(br#"{"key":"Zm9v"}"#, id, 5).map(|bytes| bytes.len()), Ok(5));
        assert_eq!(parse(br#"{"key":"Zm9v"}"#, id, 4), Err(Refusal::Bound(Error::MessageTooLarge(5, 4))));
        let txn = Schema::get().id_of("etcdserverpb.TxnRequest");
        // The size that counts is that of the message, not of its padded lengths.
        let nested = br#"{"success":[{"request_put":{"key":"Zm9v"}}]}"#;
        assert_eq!(parse(nested, txn, 8).err(), Some(Refusal::Bound(Error::MessageTooLarge(9, 8))));
        assert!(parse(nested, txn, 9).is_ok());
        let deep = [r#"{"success":[{"request_txn":"#.repeat(3000), "{}".into(), "}]}".repeat(3000)].concat();
        assert_eq!(parse(deep.as_bytes(), txn, 1 << 20), Err(Refusal::Bound(Error::TooManyOps)));
    }
}
