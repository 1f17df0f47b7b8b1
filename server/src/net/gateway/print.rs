//! The bytes of a protobuf message to JSON, as etcd's gateway prints it: declared names, absent and zero fields left out,
//! 64-bit integers as strings, bytes as base64, enums by name. The messages are our own and well-formed.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use smallvec::SmallVec;

use super::schema::{Field, Kind, MessageId, Schema};

/// How strings are written.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Escape {
    /// What JSON demands.
    Json,
    /// Also what could be taken for markup; etcd's streams come out of another encoder than its single answers.
    Html,
}

/// Appends a message.
pub(crate) fn print(out: &mut String, message: MessageId, bytes: &[u8], escape: Escape) {
    Printer { schema: Schema::get(), out, escape }.message(message, bytes);
}

/// Appends a string with its quotes.
pub(crate) fn print_string(out: &mut String, text: &str, escape: Escape) {
    out.push('"');
    let mut plain = 0;
    for (at, character) in text.char_indices() {
        let is_markup = escape == Escape::Html && matches!(character, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        if character >= ' ' && character != '"' && character != '\\' && !is_markup {
            continue;
        }
        out.push_str(&text[plain..at]);
        plain = at + character.len_utf8();
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a string does not fail.
            other => drop(write!(out, "\\u{:04x}", other as u32)),
        }
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// A field as it stands in the bytes.
enum Wire<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

struct Printer<'a> {
    schema: &'static Schema,
    out: &'a mut String,
    escape: Escape,
}

impl Printer<'_> {
    fn message(&mut self, id: MessageId, bytes: &[u8]) {
        let message = self.schema.message(id);
        let mut found: SmallVec<[(usize, Wire<'_>); 8]> = SmallVec::new();
        let mut rest = bytes;
        while let Some((number, value)) = take_field(&mut rest) {
            found.extend(message.place_of(number).map(|place| (place, value)));
        }
        // Mostly they are: fields are written in the order of their numbers.
        if !found.is_sorted_by_key(|(place, _)| *place) {
            found.sort_by_key(|(place, _)| *place);
        }
        self.out.push('{');
        let start = self.out.len();
        for run in found.chunk_by(|one, other| one.0 == other.0) {
            let field = &message.fields[run[0].0];
            if field.is_repeated {
                self.list(field, run, start);
            } else if let Some((_, value)) = run.last()
                && (field.oneof.is_some() || !is_default(field, value))
            {
                self.name(field, start);
                self.value(field.kind, value);
            }
        }
        self.out.push('}');
    }

    fn name(&mut self, field: &Field, start: usize) {
        if self.out.len() > start {
            self.out.push(',');
        }
        self.out.push('"');
        self.out.push_str(&field.name);
        self.out.push_str("\":");
    }

    fn list(&mut self, field: &Field, run: &[(usize, Wire<'_>)], start: usize) {
        let is_scalar = !matches!(field.kind, Kind::Message(_) | Kind::String | Kind::Bytes);
        if is_scalar && run.iter().all(|(_, value)| matches!(value, Wire::Bytes([]))) {
            return;
        }
        self.name(field, start);
        self.out.push('[');
        let start = self.out.len();
        for (_, value) in run {
            match value {
                Wire::Bytes(packed) if is_scalar => {
                    let mut packed = *packed;
                    while let Some(value) = take_varint(&mut packed) {
                        self.comma(start);
                        self.value(field.kind, &Wire::Varint(value));
                    }
                }
                value => {
                    self.comma(start);
                    self.value(field.kind, value);
                }
            }
        }
        self.out.push(']');
    }

    fn comma(&mut self, start: usize) {
        if self.out.len() > start {
            self.out.push(',');
        }
    }

    fn value(&mut self, kind: Kind, value: &Wire<'_>) {
        // Writing to a string does not fail.
        match (kind, value) {
            (Kind::Bool, Wire::Varint(value)) => self.out.push_str(if *value == 0 { "false" } else { "true" }),
            (Kind::Int32, Wire::Varint(value)) => drop(write!(self.out, "{}", *value as i32)),
            (Kind::Uint32, Wire::Varint(value)) => drop(write!(self.out, "{}", *value as u32)),
            (Kind::Int64, Wire::Varint(value)) => drop(write!(self.out, "\"{}\"", *value as i64)),
            (Kind::Uint64, Wire::Varint(value)) => drop(write!(self.out, "\"{value}\"")),
            (Kind::Enum(id), Wire::Varint(value)) => match self.schema.enumeration(id).name(*value as i32) {
                Some(name) => drop(write!(self.out, "\"{name}\"")),
                None => drop(write!(self.out, "{}", *value as i32)),
            },
            (Kind::String, Wire::Bytes(text)) => print_string(self.out, &String::from_utf8_lossy(text), self.escape),
            (Kind::Bytes, Wire::Bytes(bytes)) => {
                self.out.push('"');
                STANDARD.encode_string(bytes, self.out);
                self.out.push('"');
            }
            (Kind::Message(id), Wire::Bytes(bytes)) => self.message(id, bytes),
            // Our own messages have the wire types of their fields.
            _ => self.out.push_str("null"),
        }
    }
}

/// Zero is what an absent field means.
fn is_default(field: &Field, value: &Wire<'_>) -> bool {
    match value {
        Wire::Varint(value) => *value == 0,
        Wire::Bytes(bytes) => bytes.is_empty() && !matches!(field.kind, Kind::Message(_)),
    }
}

/// Takes the next field of a message; `None` at its end, or where it is malformed.
fn take_field<'a>(rest: &mut &'a [u8]) -> Option<(u32, Wire<'a>)> {
    let key = take_varint(rest)?;
    let number = (key >> 3) as u32;
    match key & 7 {
        0 => Some((number, Wire::Varint(take_varint(rest)?))),
        2 => {
            let length = usize::try_from(take_varint(rest)?).ok()?;
            let (value, left) = rest.split_at_checked(length)?;
            *rest = left;
            Some((number, Wire::Bytes(value)))
        }
        _ => None,
    }
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    if rest.is_empty() { None } else { prost::encoding::decode_varint(rest).ok() }
}

#[cfg(test)]
mod tests {
    use daymark_api::{etcdserverpb as pb, mvccpb};

    use super::*;

    fn printed(name: &str, message: &impl prost::Message) -> String {
        let mut text = String::new();
        print(&mut text, Schema::get().id_of(name), &message.encode_to_vec(), Escape::Json);
        text
    }

    /// Taken from answers of etcd's gateway.
    #[test]
    fn answers_look_as_usual() {
        let header = pb::ResponseHeader { cluster_id: u64::MAX, member_id: 2, revision: 3, raft_term: 0 };
        let kv = mvccpb::KeyValue {
            key: "foo".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 1,
            value: vec![0xff, 0xef, 0xbe].into(),
            lease: 0,
        };
        let range =
            pb::RangeResponse { header: Some(header), kvs: vec![kv.clone(), Default::default()], more: true, count: 2 };
        assert_eq!(
            printed("etcdserverpb.RangeResponse", &range),
            "{\"header\":{\"cluster_id\":\"18446744073709551615\",\"member_id\":\"2\",\"revision\":\"3\"},\"kvs\":[{\"key\":\
             \"Zm9v\",\"create_revision\":\"2\",\"mod_revision\":\"3\",\"version\":\"1\",\"value\":\"/+++\"},{}],\"more\":true,\
             \"count\":\"2\"}"
        );
        let event = mvccpb::Event { r#type: 1, kv: Some(kv), prev_kv: None };
        let watch = pb::WatchResponse { canceled: true, watch_id: -1, events: vec![event], ..Default::default() };
        let text = printed("etcdserverpb.WatchResponse", &watch);
        assert!(
            text.starts_with("{\"watch_id\":\"-1\",\"canceled\":true,\"events\":[{\"type\":\"DELETE\",\"kv\":{"),
            "{text}"
        );
        assert_eq!(printed("etcdserverpb.DefragmentResponse", &pb::DefragmentResponse::default()), "{}");
        let alarm = pb::AlarmMember { member_id: 0, alarm: 7 };
        assert_eq!(printed("etcdserverpb.AlarmMember", &alarm), "{\"alarm\":7}", "an enum value without a name");
    }

    #[test]
    fn strings_are_escaped_as_far_as_needed() {
        let mut text = String::new();
        print_string(&mut text, "a\"b\\c\n\u{1}<é\u{2028}>", Escape::Json);
        assert_eq!(text, "\"a\\\"b\\\\c\\n\\u0001<é\u{2028}>\"");
        text.clear();
        print_string(&mut text, "<&>\u{2028}", Escape::Html);
        assert_eq!(text, "\"\\u003c\\u0026\\u003e\\u2028\"");
    }
}
