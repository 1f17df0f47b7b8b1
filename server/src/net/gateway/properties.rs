//! Properties of the JSON form: any message comes back from it unchanged, another implementation of the same rules agrees
//! with ours in both directions, and no bytes, however hostile, do more than be refused.

use daymark_api::DESCRIPTORS;
use proptest::prelude::*;
use prost::encoding::{encode_key, encode_varint};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::document::Documents;
use super::parse::parse;
use super::print::{Escape, print};
use super::schema::{Field, Kind, MessageId, Schema};

/// What makes a message, by chance.
struct Maker {
    random: StdRng,
}

impl Maker {
    fn message(&mut self, id: MessageId, depth: usize) -> Vec<u8> {
        let mut fields: Vec<&Field> = Schema::get().message(id).fields.iter().collect();
        fields.sort_by_key(|field| field.number);
        let (mut out, mut taken) = (Vec::new(), Vec::new());
        for field in fields {
            if field.oneof.as_ref().is_some_and(|oneof| taken.contains(&oneof.index)) {
                continue;
            }
            if self.random.random_bool(0.4) || (depth > 4 && matches!(field.kind, Kind::Message(_))) {
                continue;
            }
            if field.is_repeated {
                self.list(field, depth, &mut out);
            } else if self.singular(field, depth, &mut out) {
                taken.extend(field.oneof.as_ref().map(|oneof| oneof.index));
            }
        }
        out
    }

    fn list(&mut self, field: &Field, depth: usize, out: &mut Vec<u8>) {
        let length = self.random.random_range(0..4);
        if matches!(field.kind, Kind::Message(_) | Kind::String | Kind::Bytes) {
            for _ in 0..length {
                let value = self.bytes(field.kind, depth);
                put_bytes(field, &value, out);
            }
        } else if length > 0 {
            let mut packed = Vec::new();
            (0..length).for_each(|_| encode_varint(self.number(field.kind), &mut packed));
            put_bytes(field, &packed, out);
        }
    }

    /// False if it would be the same as nothing.
    fn singular(&mut self, field: &Field, depth: usize, out: &mut Vec<u8>) -> bool {
        if matches!(field.kind, Kind::Message(_) | Kind::String | Kind::Bytes) {
            let value = self.bytes(field.kind, depth);
            if value.is_empty() && field.oneof.is_none() && !matches!(field.kind, Kind::Message(_)) {
                return false;
            }
            put_bytes(field, &value, out);
        } else {
            let value = self.number(field.kind);
            if value == 0 && field.oneof.is_none() {
                return false;
            }
            encode_key(field.number, prost::encoding::WireType::Varint, out);
            encode_varint(value, out);
        }
        true
    }

    fn bytes(&mut self, kind: Kind, depth: usize) -> Vec<u8> {
        let length = self.random.random_range(0..12);
        match kind {
            Kind::Message(id) => self.message(id, depth + 1),
            Kind::String => {
                let characters = (0..length).map(|_| match self.random.random_range(0..4) {
                    0 => char::from(self.random.random_range(0..0x80_u8)),
                    1 => ['"', '\\', '<', '\u{2028}', '\u{7f}', '\u{fffd}'][self.random.random_range(0..6)],
                    _ => self.random.random::<char>(),
                });
                characters.collect::<String>().into_bytes()
            }
            _ => (0..length).map(|_| self.random.random()).collect(),
        }
    }

    fn number(&mut self, kind: Kind) -> u64 {
        let any: u64 = match self.random.random_range(0..4) {
            0 => self.random.random_range(0..3),
            1 => i64::MIN as u64,
            2 => u64::MAX,
            _ => self.random.random(),
        };
        match kind {
            Kind::Bool => any & 1,
            Kind::Uint32 => any & u64::from(u32::MAX),
            Kind::Int32 => any as i32 as i64 as u64,
            Kind::Enum(id) => {
                let numbers: Vec<i32> = Schema::get().enumeration(id).numbers().collect();
                let known = numbers.get(any as usize % (numbers.len() + 1)).copied();
                known.unwrap_or(any as i32) as i64 as u64
            }
            _ => any,
        }
    }
}

fn put_bytes(field: &Field, value: &[u8], out: &mut Vec<u8>) {
    encode_key(field.number, prost::encoding::WireType::LengthDelimited, out);
    encode_varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).expect("descriptors")
}

fn names() -> Vec<(&'static str, MessageId)> {
    // gRPC's own services have no JSON form here.
    let mut names: Vec<_> = Schema::get().names().filter(|(name, _)| !name.starts_with("grpc.")).collect();
    names.sort_unstable();
    names
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn any_message_survives_its_json_form(seed: u64) {
        let (pool, mut maker) = (pool(), Maker { random: StdRng::seed_from_u64(seed) });
        for (name, id) in names() {
            let bytes = maker.message(id, 0);
            let descriptor = pool.get_message_by_name(name).expect("a message");
            let message = DynamicMessage::decode(descriptor.clone(), &*bytes).expect("well-formed");
            let read = |json: &str| {
                let bytes = parse(json.as_bytes(), id, 1 << 20).unwrap_or_else(|refusal| panic!("{json}: {refusal:?}"));
                DynamicMessage::decode(descriptor.clone(), &*bytes).expect("well-formed")
            };
            for escape in [Escape::Json, Escape::Html] {
                let mut json = String::new();
                print(&mut json, id, &bytes, escape);
                prop_assert_eq!(&read(&json), &message, "{} as {}", name, json);
            }
            let mut ours = String::new();
            print(&mut ours, id, &bytes, Escape::Json);
            // Another implementation prints and names the same.
            for by_proto_name in [true, false] {
                let options = SerializeOptions::new().use_proto_field_name(by_proto_name);
                let theirs = message.serialize_with_options(serde_json::value::Serializer, &options).expect("json");
                prop_assert_eq!(&read(&theirs.to_string()), &message, "{} as {}", name, theirs);
                if by_proto_name {
                    let ours: serde_json::Value = serde_json::from_str(&ours).expect("json");
                    prop_assert_eq!(ours, theirs);
                }
            }
        }
    }

    /// Documents that were fine before something happened to them.
    #[test]
    fn broken_documents_are_refused_and_nothing_worse(seed: u64) {
        let mut maker = Maker { random: StdRng::seed_from_u64(seed) };
        for (_, id) in names() {
            let mut json = String::new();
            print(&mut json, id, &maker.message(id, 0), Escape::Json);
            let mut bytes = json.into_bytes();
            for _ in 0..maker.random.random_range(1..4) {
                let at = maker.random.random_range(0..=bytes.len());
                match maker.random.random_range(0..4) {
                    0 => bytes.truncate(at),
                    1 if at < bytes.len() => drop(bytes.remove(at)),
                    2 => bytes.insert(at, b"{}[],:\"\\0-.eE9u\x00\xff"[maker.random.random_range(0..17)]),
                    _ if at < bytes.len() => bytes[at] = maker.random.random(),
                    _ => {}
                }
            }
            check(&bytes, id)?;
        }
    }

    #[test]
    fn any_bytes_are_refused_and_nothing_worse(bytes: Vec<u8>) {
        for (_, id) in names() {
            check(&bytes, id)?;
        }
    }
}

/// Reads a body as the gateway does, in two pieces, and looks at what comes out.
fn check(body: &[u8], id: MessageId) -> Result<(), TestCaseError> {
    let mut documents = Documents::new(1 << 20);
    let (first, second) = body.split_at(body.len() / 2);
    documents.push(first);
    let mut found = Vec::new();
    let mut take = |documents: &mut Documents| {
        while let Ok(Some(document)) = documents.next() {
            found.push(document);
        }
    };
    take(&mut documents);
    documents.push(second);
    documents.end();
    take(&mut documents);
    for document in found {
        // Another reader of JSON has to agree that it is JSON, where both look: at syntax, in UTF-8.
        if let Ok(text) = std::str::from_utf8(&document) {
            let other = serde_json::from_str::<serde::de::IgnoredAny>(text);
            let is_deep = other.as_ref().is_err_and(|error| error.to_string().contains("recursion"));
            prop_assert!(other.is_ok() || is_deep, "{text}: {other:?}");
        }
        if let Ok(message) = parse(&document, id, 1 << 16) {
            // Lengths are padded to four bytes, and a name that is cut short costs six.
            prop_assert!(message.len() <= 8 * document.len(), "{} of {}", message.len(), document.len());
        }
    }
    Ok(())
}

#[test]
fn what_is_hostile_costs_little() {
    let range = Schema::get().id_of("etcdserverpb.RangeRequest");
    let long = 1 << 20;
    for body in [
        "[".repeat(long),
        "{\"a\":".repeat(long / 5),
        format!("{{\"x\":{}{}}}", "[".repeat(9000), "]".repeat(9000)),
        format!("{{\"limit\":{}}}", "9".repeat(long)),
        format!("{{\"limit\":1e{}}}", "9".repeat(long)),
        format!("{{\"limit\":0.{}1}}", "0".repeat(long)),
        format!("{{\"key\":\"{}\"}}", "\\u0000".repeat(long / 6)),
        format!("{{\"{}\":1}}", "k".repeat(long)),
        format!("{{{}\"z\":0}}", (0..long / 16).map(|n| format!("\"k{n}\":0,")).collect::<String>()),
        "\"".repeat(long),
        "\\".repeat(long),
    ] {
        let begun = std::time::Instant::now();
        check(body.as_bytes(), range).expect("bounded");
        // Far more than it takes on a busy machine, far less than a second for each byte more.
        assert!(begun.elapsed().as_secs() < 5, "{} took {:?}", &body[..20], begun.elapsed());
    }
    for twice in [r#"{"key":"","key":""}"#, r#"{"range_end":"","rangeEnd":""}"#] {
        assert!(parse(twice.as_bytes(), range, 100).is_err(), "{twice}");
    }
}
