//! The first frame in each direction: who speaks, to whom, in which cluster, and what the connection is for; and the
//! refusals. Bytes are explained in `docs/formats/peer.md`.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{self, Frame, FrameError};

/// First bytes of every hello. Frozen.
pub(crate) const MAGIC: [u8; 8] = *b"DAYMARKP";

/// What this version speaks. A member that is asked for more answers with what it speaks.
pub(crate) const PROTOCOL: u16 = 1;

/// A hello is short: nobody has shown yet that he may send more.
pub(crate) const HELLO_BYTES_MAX: usize = 1024;

const TAG_HELLO: u8 = 1;
const TAG_ANSWER: u8 = 2;
const VERSION_BYTES_MAX: usize = 255;

/// What a connection is for. Frozen numbers.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Entries of the log, from the leader.
    Append = 1,
    /// Votes, heartbeats, leader transfer: never behind bulk.
    Control = 2,
    /// One snapshot.
    Snapshot = 3,
    /// Command batches and read barriers, to the leader.
    Forward = 4,
    /// Requests of the server.
    Call = 5,
    /// Requests of the server of somebody who is no member yet.
    Ask = 6,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        [Self::Append, Self::Control, Self::Snapshot, Self::Forward, Self::Call, Self::Ask]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Control => "control",
            Self::Snapshot => "snapshot",
            Self::Forward => "forward",
            Self::Call => "call",
            Self::Ask => "ask",
        }
    }
}

/// Who speaks, to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) protocol: u16,
    /// `Err` with a number that this version does not know.
    pub(crate) kind: Result<Kind, u8>,
    pub(crate) cluster_id: u64,
    pub(crate) sender: u64,
    pub(crate) target: u64,
    pub(crate) version: String,
}

/// Why a connection is refused. Frozen numbers.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    OtherCluster = 1,
    OtherTarget = 2,
    Removed = 3,
    Protocol = 4,
    Kind = 5,
    Busy = 6,
}

impl Refusal {
    fn of(number: u8) -> Option<Self> {
        [Self::OtherCluster, Self::OtherTarget, Self::Removed, Self::Protocol, Self::Kind, Self::Busy]
            .into_iter()
            .find(|refusal| *refusal as u8 == number)
    }

    /// What to do about it.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::OtherCluster => "let the peer URLs of a cluster lead to its own members only",
            Self::OtherTarget => "give each member a peer URL of its own, and correct the URL with a member update",
            Self::Removed => "add it as a new member, with an empty data directory",
            Self::Protocol | Self::Kind => "run versions of daymark that are at most one release apart",
            Self::Busy => "it is tried again; raise the limit of connections if it goes on",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherCluster => "the member belongs to another cluster",
            Self::OtherTarget => "another member answers at this address",
            Self::Removed => "this member was removed from the cluster",
            Self::Protocol => "the member does not speak this protocol version",
            Self::Kind => "the member does not know this kind of connection",
            Self::Busy => "the member has too many connections",
        })
    }
}

/// What the other end says to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) refusal: Option<Refusal>,
    pub(crate) protocol: u16,
    pub(crate) cluster_id: u64,
    pub(crate) member_id: u64,
    pub(crate) version: String,
}

impl Hello {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_slice(&MAGIC);
        out.put_u16_le(self.protocol);
        out.put_u8(self.kind.map_or_else(|number| number, |kind| kind as u8));
        out.put_u64_le(self.cluster_id);
        out.put_u64_le(self.sender);
        out.put_u64_le(self.target);
        put_version(&mut out, &self.version);
        frame::encode(TAG_HELLO, &out)
    }

    /// What follows the version is of a later protocol and skipped.
    pub(crate) fn decode(frame: &Frame) -> Result<Self, FrameError> {
        let mut rest = check(frame, TAG_HELLO, 35)?;
        let protocol = rest.get_u16_le();
        let kind = rest.get_u8();
        let (cluster_id, sender, target) = (rest.get_u64_le(), rest.get_u64_le(), rest.get_u64_le());
        let version = take_version(&mut rest)?;
        Ok(Self { protocol, kind: Kind::of(kind).ok_or(kind), cluster_id, sender, target, version })
    }
}

impl Answer {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_slice(&MAGIC);
        out.put_u8(self.refusal.map_or(0, |refusal| refusal as u8));
        out.put_u16_le(self.protocol);
        out.put_u64_le(self.cluster_id);
        out.put_u64_le(self.member_id);
        put_version(&mut out, &self.version);
        frame::encode(TAG_ANSWER, &out)
    }

    pub(crate) fn decode(frame: &Frame) -> Result<Self, FrameError> {
        let mut rest = check(frame, TAG_ANSWER, 27)?;
        let refusal = match rest.get_u8() {
            0 => None,
            number => Some(Refusal::of(number).ok_or(FrameError::Malformed("a refusal with an unknown number"))?),
        };
        let (protocol, cluster_id, member_id) = (rest.get_u16_le(), rest.get_u64_le(), rest.get_u64_le());
        let version = take_version(&mut rest)?;
        Ok(Self { refusal, protocol, cluster_id, member_id, version })
    }
}

/// The bytes behind the magic; at least `bytes_min`, magic included.
fn check(frame: &Frame, tag: u8, bytes_min: usize) -> Result<&[u8], FrameError> {
    match frame.payload.strip_prefix(&MAGIC) {
        Some(rest) if frame.tag == tag && frame.payload.len() > bytes_min => Ok(rest),
        Some(_) => Err(FrameError::Malformed("a hello of another shape")),
        None => Err(FrameError::Malformed("it does not begin like a member of Daymark")),
    }
}

fn put_version(out: &mut BytesMut, version: &str) {
    let bytes = version.as_bytes();
    let bytes = &bytes[..bytes.len().min(VERSION_BYTES_MAX)];
    out.put_u8(bytes.len() as u8);
    out.put_slice(bytes);
}

fn take_version(rest: &mut &[u8]) -> Result<String, FrameError> {
    let cut = FrameError::Malformed("a hello that ends too early");
    let Some((length, behind)) = rest.split_first() else { return Err(cut) };
    let Some((text, behind)) = behind.split_at_checked(usize::from(*length)) else { return Err(cut) };
    *rest = behind;
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(bytes: &Bytes) -> Frame {
        Frame { tag: bytes[8], payload: bytes.slice(9..) }
    }

    #[test]
    fn hellos_and_answers_come_back_and_their_bytes_are_frozen() {
        let hello =
            Hello { protocol: 1, kind: Ok(Kind::Forward), cluster_id: 7, sender: 8, target: 9, version: "0.1".into() };
        let bytes = hello.encode();
        assert_eq!(Hello::decode(&frame(&bytes)).unwrap(), hello);
        let mut expected = b"DAYMARKP\x01\x00\x04".to_vec();
        for id in [7, 8, 9] {
            expected.extend_from_slice(&[id, 0, 0, 0, 0, 0, 0, 0]);
        }
        expected.extend_from_slice(b"\x030.1");
        assert_eq!(bytes[9..], expected);
        for refusal in [None, Some(Refusal::Removed), Some(Refusal::Busy)] {
            let answer = Answer { refusal, protocol: 1, cluster_id: 7, member_id: 9, version: "é".into() };
            assert_eq!(Answer::decode(&frame(&answer.encode())).unwrap(), answer);
        }
    }

    #[test]
    fn cuts_and_strangers_are_refused_and_later_kinds_are_told_apart() {
        let hello = Hello { protocol: 2, kind: Err(77), cluster_id: 1, sender: 2, target: 3, version: "9".repeat(300) };
        let bytes = hello.encode();
        let decoded = Hello::decode(&frame(&bytes)).unwrap();
        assert_eq!((decoded.kind, decoded.version.len()), (Err(77), 255));
        for length in 9..bytes.len() {
            assert!(Hello::decode(&frame(&bytes.slice(..length))).is_err(), "cut to {length}");
        }
        assert!(Hello::decode(&Frame { tag: 1, payload: Bytes::from_static(b"GET / HTTP/1.1") }).is_err());
        assert!(Answer::decode(&frame(&bytes)).is_err(), "a hello is no answer");
    }
}
