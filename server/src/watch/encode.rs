//! Watch responses as bytes. Events are encoded once for each variant and shared; a response adds a short prefix of its
//! own. Knows nothing of who gets them.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use daymark_api::etcdserverpb as pb;
use daymark_storage::mvcc::{Event, EventKind, KeyValue};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, int64};
use smallvec::{SmallVec, smallvec};

use crate::request::MessageParts;

/// Field numbers of `WatchResponse`, `Event`, `KeyValue` and `ResponseHeader`, see `etcd-contract/wire.md`. All of them
/// stay below 16, so that a field's key takes one byte.
mod field {
    pub const HEADER: u32 = 1;
    pub const WATCH_ID: u32 = 2;
    pub const FRAGMENT: u32 = 7;
    pub const EVENTS: u32 = 11;

    pub const EVENT_TYPE: u32 = 1;
    pub const EVENT_KV: u32 = 2;
    pub const EVENT_PREV_KV: u32 = 3;

    pub const KEY: u32 = 1;
    pub const CREATE_REVISION: u32 = 2;
    pub const MOD_REVISION: u32 = 3;
    pub const VERSION: u32 = 4;
    pub const VALUE: u32 = 5;
    pub const LEASE: u32 = 6;
}

/// One event, encoded when first asked for, with or without its previous pair.
pub struct EventBytes<'a> {
    event: &'a Event,
    plain: Option<Bytes>,
    with_prev: Option<Bytes>,
}

impl<'a> EventBytes<'a> {
    /// Nothing encoded yet.
    pub fn new(event: &'a Event) -> Self {
        Self { event, plain: None, with_prev: None }
    }

    /// The event as field `events` of a response.
    pub fn get(&mut self, with_prev: bool) -> Bytes {
        match self.event.prev.as_ref().filter(|_| with_prev) {
            Some(prev) => self.with_prev.get_or_insert_with(|| encode_event(self.event, Some(prev))).clone(),
            None => self.plain.get_or_insert_with(|| encode_event(self.event, None)).clone(),
        }
    }
}

fn encode_event(event: &Event, prev: Option<&KeyValue>) -> Bytes {
    let kv_len = pair_len(&event.kv);
    let prev_len = prev.map(pair_len);
    let is_delete = event.kind == EventKind::Delete;
    let len = if is_delete { 2 } else { 0 } + nested_len(kv_len) + prev_len.map_or(0, nested_len);
    let mut bytes = BytesMut::with_capacity(nested_len(len));
    begin_nested(field::EVENTS, len, &mut bytes);
    if is_delete {
        encode_key(field::EVENT_TYPE, WireType::Varint, &mut bytes);
        encode_varint(1, &mut bytes);
    }
    begin_nested(field::EVENT_KV, kv_len, &mut bytes);
    encode_pair(&event.kv, &mut bytes);
    if let (Some(prev), Some(prev_len)) = (prev, prev_len) {
        begin_nested(field::EVENT_PREV_KV, prev_len, &mut bytes);
        encode_pair(prev, &mut bytes);
    }
    debug_assert_eq!(bytes.len(), nested_len(len));
    bytes.freeze()
}

/// Bytes of a field that holds `len` bytes.
fn nested_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

fn begin_nested(number: u32, len: usize, bytes: &mut BytesMut) {
    encode_key(number, WireType::LengthDelimited, bytes);
    encode_varint(len as u64, bytes);
}

fn numbers(kv: &KeyValue) -> [(u32, i64); 4] {
    [
        (field::CREATE_REVISION, kv.create_revision),
        (field::MOD_REVISION, kv.mod_revision),
        (field::VERSION, kv.version),
        (field::LEASE, kv.lease),
    ]
}

fn pair_len(kv: &KeyValue) -> usize {
    let bytes = |bytes: &Bytes| if bytes.is_empty() { 0 } else { nested_len(bytes.len()) };
    let number = |(_, value)| if value == 0 { 0 } else { 1 + encoded_len_varint(value as u64) };
    bytes(&kv.key) + bytes(&kv.value) + numbers(kv).into_iter().map(number).sum::<usize>()
}

fn encode_pair(kv: &KeyValue, bytes: &mut BytesMut) {
    for (number, data) in [(field::KEY, &kv.key), (field::VALUE, &kv.value)] {
        if !data.is_empty() {
            begin_nested(number, data.len(), bytes);
            bytes.extend_from_slice(data);
        }
    }
    for (number, value) in numbers(kv) {
        if value != 0 {
            int64::encode(number, &value, bytes);
        }
    }
}

/// Encoded events that go into one response, whole or in fragments.
#[derive(Clone, Default)]
pub struct Payload {
    events: SmallVec<[Bytes; 1]>,
    bytes: usize,
    /// All of `events`, once somebody has asked for them in one piece.
    joined: Option<Bytes>,
}

impl Payload {
    /// Adds an event.
    pub fn push(&mut self, event: Bytes) {
        self.bytes += event.len();
        self.events.push(event);
        self.joined = None;
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Number of its events.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Bytes of its events.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// Puts the events into one piece, to be shared by those who get them all.
    pub fn join(&mut self) {
        if self.joined.is_none() {
            self.joined = Some(match &self.events[..] {
                [only] => only.clone(),
                events => events.concat().into(),
            });
        }
    }

    /// One response. [`Payload::join`] saves the copying where many get it.
    pub fn whole(&self, prefix: Bytes) -> MessageParts {
        let mut parts: MessageParts = smallvec![prefix];
        match &self.joined {
            Some(joined) => parts.push(joined.clone()),
            None => parts.extend(self.events.iter().cloned()),
        }
        parts
    }

    /// One response, or several as etcd splits it: below `bytes_max` where possible, at least one event each, all but
    /// the last marked as fragments.
    pub fn fragments(&self, prefix: Bytes, bytes_max: usize, mut send: impl FnMut(MessageParts)) {
        if prefix.len() + self.bytes < bytes_max || self.events.len() < 2 {
            return send(self.whole(prefix));
        }
        let mark = Bytes::from_static(&[(field::FRAGMENT << 3) as u8, 1]);
        let mut rest = &self.events[..];
        while !rest.is_empty() {
            let mut size = prefix.len() + mark.len() + rest[0].len();
            let mut count = 1;
            while count < rest.len() && size + rest[count].len() < bytes_max {
                size += rest[count].len();
                count += 1;
            }
            let mut parts: MessageParts = smallvec![prefix.clone()];
            if count < rest.len() {
                parts.push(mark.clone());
            }
            parts.extend(rest[..count].iter().cloned());
            send(parts);
            rest = &rest[count..];
        }
    }
}

/// What every response of a member begins with.
#[derive(Clone)]
pub struct Headers {
    pub cluster_id: u64,
    pub member_id: u64,
    pub term: Rc<dyn Fn() -> u64>,
}

impl Headers {
    /// A header with a revision, and with the term of now.
    pub fn at(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: (self.term)(),
        }
    }

    /// What comes before the events of responses at `revision`.
    pub fn prefixes(&self, revision: i64) -> Prefixes {
        // Three numbers of up to 11 bytes, the revision, and what frames them.
        let mut header = BytesMut::with_capacity(48);
        encode_key(field::HEADER, WireType::LengthDelimited, &mut header);
        self.at(revision).encode_length_delimited(&mut header).expect("the buffer grows");
        Prefixes { header: header.freeze(), by_id: Default::default() }
    }
}

/// Header and watch id of responses at one revision. Most streams number their watchers from 0, so that low ids are
/// encoded once for all streams.
pub struct Prefixes {
    header: Bytes,
    by_id: [Option<Bytes>; 8],
}

impl Prefixes {
    /// The prefix for one watcher.
    pub fn get(&mut self, watch_id: i64) -> Bytes {
        let header = &self.header;
        match usize::try_from(watch_id).ok().and_then(|id| self.by_id.get_mut(id)) {
            Some(known) => known.get_or_insert_with(|| prefix(header, watch_id)).clone(),
            None => prefix(header, watch_id),
        }
    }
}

fn prefix(header: &Bytes, watch_id: i64) -> Bytes {
    if watch_id == 0 {
        return header.clone();
    }
    let mut bytes = BytesMut::with_capacity(header.len() + 11);
    bytes.extend_from_slice(header);
    int64::encode(field::WATCH_ID, &watch_id, &mut bytes);
    bytes.freeze()
}

/// A response without events.
pub fn message(response: &pb::WatchResponse) -> MessageParts {
    smallvec![Bytes::from(response.encode_to_vec())]
}

#[cfg(test)]
mod tests {
    use daymark_api::mvccpb;
    use proptest::prelude::*;

    use super::*;

    fn pair() -> impl Strategy<Value = KeyValue> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let number = || prop_oneof![Just(0), Just(1), Just(i64::MAX), any::<i64>()];
        (bytes(), number(), number(), number(), number(), bytes()).prop_map(
            |(key, create_revision, mod_revision, version, lease, value)| KeyValue {
                key,
                create_revision,
                mod_revision,
                version,
                lease,
                value,
            },
        )
    }

    fn event() -> impl Strategy<Value = Event> {
        let kind = prop_oneof![Just(EventKind::Put), Just(EventKind::Delete)];
        (kind, pair(), prop::option::of(pair())).prop_map(|(kind, kv, prev)| Event { kind, kv, prev, sub: 0 })
    }

    fn message_pair(kv: &KeyValue) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: kv.key.clone(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: kv.value.clone(),
            lease: kv.lease,
        }
    }

    fn message_event(event: &Event, with_prev: bool) -> mvccpb::Event {
        let kind = match event.kind {
            EventKind::Put => mvccpb::event::EventType::Put,
            EventKind::Delete => mvccpb::event::EventType::Delete,
        };
        mvccpb::Event {
            r#type: kind as i32,
            kv: Some(message_pair(&event.kv)),
            prev_kv: event.prev.as_ref().filter(|_| with_prev).map(message_pair),
        }
    }

    proptest! {
        #[test]
        fn bytes_mean_what_prost_would_have_written(
            events in prop::collection::vec(event(), 1..5),
            with_prev: bool,
            watch_id in prop_oneof![-2i64..12, any::<i64>()],
            revision: i64,
            term: u64,
            fragment_bytes in 0usize..2000,
        ) {
            let headers = Headers { cluster_id: u64::MAX, member_id: 3, term: Rc::new(move || term) };
            let mut prefixes = headers.prefixes(revision);
            let mut payload = Payload::default();
            events.iter().for_each(|event| payload.push(EventBytes::new(event).get(with_prev)));
            let expected = pb::WatchResponse {
                header: Some(headers.at(revision)),
                watch_id,
                events: events.iter().map(|event| message_event(event, with_prev)).collect(),
                ..Default::default()
            };
            for _ in 0..2 {
                let bytes = payload.whole(prefixes.get(watch_id)).concat();
                prop_assert_eq!(bytes.len(), expected.encoded_len());
                prop_assert_eq!(pb::WatchResponse::decode(&bytes[..]).unwrap(), expected.clone());
                payload.join();
            }
            let mut fragments = Vec::new();
            payload.fragments(prefixes.get(watch_id), fragment_bytes, |parts| fragments.push(parts.concat()));
            let splits = expected.encoded_len() >= fragment_bytes && events.len() > 1;
            prop_assert!(splits || fragments.len() == 1);
            let mut sent = Vec::new();
            for (number, bytes) in fragments.iter().enumerate() {
                let mut response = pb::WatchResponse::decode(&bytes[..]).unwrap();
                prop_assert!(bytes.len() < fragment_bytes || response.events.len() == 1 || !splits);
                prop_assert_eq!(response.fragment, number + 1 < fragments.len());
                sent.append(&mut response.events);
                response.fragment = false;
                prop_assert_eq!(response, pb::WatchResponse { events: Vec::new(), ..expected.clone() });
            }
            prop_assert_eq!(sent, expected.events);
        }
    }
}
