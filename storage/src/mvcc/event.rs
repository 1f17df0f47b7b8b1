//! Pairs and events as clients know them. Not how they are stored: that is `layout`.

use bytes::Bytes;

/// A key with its value and what is known about it, as of some revision.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// The key; never empty.
    pub key: Bytes,
    /// Revision of the put that made the key.
    pub create_revision: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Changes since creation, itself included.
    pub version: i64,
    /// The lease it is attached to, or 0.
    pub lease: i64,
    /// The value; empty where only keys were asked for.
    pub value: Bytes,
}

/// What happened to a key.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// It was created or overwritten.
    Put,
    /// It was deleted.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Put: the new pair. Delete: key and mod revision only, as in etcd.
    pub kv: KeyValue,
    /// The pair as of the revision before the event's, which is what etcd shows: absent for a put that created the
    /// key, and if that revision is compacted.
    pub prev: Option<KeyValue>,
    /// Place within the revision.
    pub sub: i64,
}

impl Event {
    /// Whether it is a put that made the key.
    pub fn is_create(&self) -> bool {
        self.kind == EventKind::Put && self.kv.create_revision == self.kv.mod_revision
    }

    /// Bytes of its keys and values.
    pub fn byte_len(&self) -> usize {
        let pair = |kv: &KeyValue| kv.key.len() + kv.value.len();
        pair(&self.kv) + self.prev.as_ref().map_or(0, pair)
    }
}
