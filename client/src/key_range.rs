//! Which keys a call means, in words; and etcd's notation for it.

use bytes::Bytes;

/// One key or a set of neighbouring keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRange {
    /// Exactly this key.
    Key(Bytes),
    /// Every key that begins so; the empty prefix means all keys.
    Prefix(Bytes),
    /// Every key from the first on and before the second.
    Between(Bytes, Bytes),
    /// Every key from this one on.
    From(Bytes),
    /// Every key.
    All,
}

impl KeyRange {
    /// Exactly this key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self::Key(key.into())
    }

    /// Every key that begins so.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self::Prefix(prefix.into())
    }

    /// Every key from `start` on and before `end`.
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self::Between(start.into(), end.into())
    }

    /// `key` and `range_end` as they go over the wire.
    pub fn into_wire(self) -> (Bytes, Bytes) {
        const ZERO: Bytes = Bytes::from_static(&[0]);
        match self {
            Self::Key(key) => (key, Bytes::new()),
            Self::Prefix(prefix) if prefix.is_empty() => (ZERO, ZERO),
            Self::Prefix(prefix) => {
                let end = prefix_end(&prefix).unwrap_or(ZERO);
                (prefix, end)
            }
            Self::Between(start, end) => (start, end),
            Self::From(start) if start.is_empty() => (ZERO, ZERO),
            Self::From(start) => (start, ZERO),
            Self::All => (ZERO, ZERO),
        }
    }
}

impl From<&'static str> for KeyRange {
    fn from(key: &'static str) -> Self {
        Self::key(key)
    }
}

impl From<String> for KeyRange {
    fn from(key: String) -> Self {
        Self::key(key)
    }
}

impl From<Bytes> for KeyRange {
    fn from(key: Bytes) -> Self {
        Self::key(key)
    }
}

/// The first key behind all keys with this prefix; none if the prefix is all 0xff.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_etcds_notation() {
        let cases: [(KeyRange, &[u8], &[u8]); 9] = [
            (KeyRange::key("a"), b"a", b""),
            (KeyRange::prefix("a"), b"a", b"b"),
            (KeyRange::prefix("a\x7f"), b"a\x7f", b"a\x80"),
            (KeyRange::Prefix(Bytes::from_static(b"a\xff\xff")), b"a\xff\xff", b"b"),
            (KeyRange::Prefix(Bytes::from_static(b"\xff")), b"\xff", b"\0"),
            (KeyRange::prefix(""), b"\0", b"\0"),
            (KeyRange::between("a", "c"), b"a", b"c"),
            (KeyRange::From(Bytes::from_static(b"m")), b"m", b"\0"),
            (KeyRange::All, b"\0", b"\0"),
        ];
        for (range, key, end) in cases {
            let shown = format!("{range:?}");
            assert_eq!(range.into_wire(), (Bytes::from_static(key), Bytes::from_static(end)), "{shown}");
        }
    }
}
