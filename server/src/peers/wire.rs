//! The bytes of questions and answers between members. Frozen; a field more is a tag more.
//!
//! ```text
//! question, answer = format (u8 = 1), tag (u8), fields
//! numbers are varints, texts and lists begin with their length
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use daymark_api::etcdserverpb as pb;
use prost::encoding::{decode_varint, encode_varint};

use super::{Introduction, PeerReply, PeerRequest};
use crate::error::Error;
use crate::limits;
use crate::policy::corruption::{Depth, MemberHash};
use crate::services::reconfigure::{Change, Changed};

const FORMAT: u8 = 1;

const LEASE_RENEW: u8 = 1;
const LEASE_TIME_TO_LIVE: u8 = 2;
const MEMBER_ADD: u8 = 3;
const MEMBER_PROMOTE: u8 = 4;
const MEMBER_REMOVE: u8 = 5;
const HASH: u8 = 6;

const REFUSED: u8 = 1;
const LEASE_RENEWED: u8 = 2;
const LEASE_TIME: u8 = 3;
const CHANGED: u8 = 4;
const HASHED: u8 = 5;

const INTRODUCE: u8 = 1;

/// Why bytes cannot be read.
type Unreadable = &'static str;

pub(super) fn encode_request(request: &PeerRequest) -> Bytes {
    let mut out = begin();
    match request {
        PeerRequest::LeaseRenew { id } => put_numbers(&mut out, LEASE_RENEW, &[*id as u64]),
        PeerRequest::LeaseTimeToLive { id, keys } => {
            put_numbers(&mut out, LEASE_TIME_TO_LIVE, &[*id as u64, u64::from(*keys)]);
        }
        PeerRequest::Change(Change::Add { peer_urls, is_learner }) => {
            put_numbers(&mut out, MEMBER_ADD, &[u64::from(*is_learner)]);
            put_texts(&mut out, peer_urls);
        }
        PeerRequest::Change(Change::Promote { id }) => put_numbers(&mut out, MEMBER_PROMOTE, &[*id]),
        PeerRequest::Change(Change::Remove { id }) => put_numbers(&mut out, MEMBER_REMOVE, &[*id]),
        PeerRequest::Hash { revision, depth } => {
            put_numbers(&mut out, HASH, &[*revision as u64, u64::from(*depth == Depth::Records)]);
        }
    }
    out.freeze()
}

pub(super) fn decode_request(mut bytes: Bytes) -> Result<PeerRequest, Unreadable> {
    let from = &mut bytes;
    let request = match take_tag(from)? {
        LEASE_RENEW => PeerRequest::LeaseRenew { id: take(from)? as i64 },
        LEASE_TIME_TO_LIVE => PeerRequest::LeaseTimeToLive { id: take(from)? as i64, keys: take(from)? != 0 },
        MEMBER_ADD => {
            let is_learner = take(from)? != 0;
            PeerRequest::Change(Change::Add { is_learner, peer_urls: take_texts(from)? })
        }
        MEMBER_PROMOTE => PeerRequest::Change(Change::Promote { id: take(from)? }),
        MEMBER_REMOVE => PeerRequest::Change(Change::Remove { id: take(from)? }),
        HASH => {
            let revision = take(from)? as i64;
            let depth = if take(from)? == 0 { Depth::Kept } else { Depth::Records };
            PeerRequest::Hash { revision, depth }
        }
        _ => return Err("an unknown question: a newer version asks"),
    };
    end(from, request)
}

pub(super) fn encode_reply(reply: &PeerReply) -> Bytes {
    let mut out = begin();
    match reply {
        PeerReply::Refused(error) => {
            out.put_u8(REFUSED);
            put_bytes(&mut out, error.text().as_bytes());
        }
        PeerReply::LeaseRenewed { ttl_secs } => put_numbers(&mut out, LEASE_RENEWED, &[*ttl_secs as u64]),
        PeerReply::LeaseTime { ttl_secs, granted_secs, keys } => {
            put_numbers(&mut out, LEASE_TIME, &[*ttl_secs as u64, *granted_secs as u64, keys.len() as u64]);
            keys.iter().for_each(|key| put_bytes(&mut out, key));
        }
        PeerReply::Changed(changed) => put_numbers(&mut out, CHANGED, &[changed.id, changed.index]),
        PeerReply::Hash(hash) => {
            let [revision, current, compact] =
                [hash.revision, hash.current_revision, hash.compact_revision].map(|number| number as u64);
            put_numbers(&mut out, HASHED, &[revision, current, compact, (hash.sum >> 64) as u64, hash.sum as u64]);
        }
    }
    out.freeze()
}

pub(super) fn decode_reply(mut bytes: Bytes) -> Result<PeerReply, Unreadable> {
    let from = &mut bytes;
    let reply = match take_tag(from)? {
        REFUSED => {
            let text = take_text(from)?;
            // What has no text of its own is a failure of that member, which stops.
            PeerReply::Refused(Error::of_text(&text).unwrap_or(Error::TimedOut))
        }
        LEASE_RENEWED => PeerReply::LeaseRenewed { ttl_secs: take(from)? as i64 },
        LEASE_TIME => {
            let (ttl_secs, granted_secs) = (take(from)? as i64, take(from)? as i64);
            let count = take(from)?;
            let keys = (0..count).map(|_| take_bytes(from)).collect::<Result<_, _>>()?;
            PeerReply::LeaseTime { ttl_secs, granted_secs, keys }
        }
        CHANGED => PeerReply::Changed(Changed { id: take(from)?, index: take(from)? }),
        HASHED => PeerReply::Hash(MemberHash {
            revision: take(from)? as i64,
            current_revision: take(from)? as i64,
            compact_revision: take(from)? as i64,
            sum: u128::from(take(from)?) << 64 | u128::from(take(from)?),
        }),
        _ => return Err("an unknown answer: a newer version answers"),
    };
    end(from, reply)
}

/// What somebody asks who is no member: who takes part.
pub(crate) fn ask_introduction() -> Bytes {
    let mut out = begin();
    out.put_u8(INTRODUCE);
    out.freeze()
}

pub(super) fn is_introduction_asked(mut bytes: Bytes) -> bool {
    take_tag(&mut bytes) == Ok(INTRODUCE) && bytes.is_empty()
}

pub(super) fn encode_introduction(introduction: &Introduction) -> Bytes {
    let mut out = begin();
    let Introduction { cluster_id, members, removed } = introduction;
    put_numbers(&mut out, INTRODUCE, &[*cluster_id, members.len() as u64]);
    for member in members {
        encode_varint(member.id, &mut out);
        encode_varint(u64::from(member.is_learner), &mut out);
        put_bytes(&mut out, member.name.as_bytes());
        put_texts(&mut out, &member.peer_ur_ls);
        put_texts(&mut out, &member.client_ur_ls);
    }
    encode_varint(removed.len() as u64, &mut out);
    removed.iter().for_each(|id| encode_varint(*id, &mut out));
    out.freeze()
}

pub(crate) fn decode_introduction(mut bytes: Bytes) -> Result<Introduction, Unreadable> {
    let from = &mut bytes;
    if take_tag(from)? != INTRODUCE {
        return Err("an unknown answer: a newer version answers");
    }
    let cluster_id = take(from)?;
    let members = (0..take(from)?).map(|_| take_member(from)).collect::<Result<_, _>>()?;
    let removed = (0..take(from)?).map(|_| take(from)).collect::<Result<_, _>>()?;
    end(from, Introduction { cluster_id, members, removed })
}

fn take_member(from: &mut Bytes) -> Result<pb::Member, Unreadable> {
    let (id, is_learner) = (take(from)?, take(from)? != 0);
    let name = take_text(from)?;
    let (peer_ur_ls, client_ur_ls) = (take_texts(from)?, take_texts(from)?);
    Ok(pb::Member { id, name, peer_ur_ls, client_ur_ls, is_learner })
}

fn begin() -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(FORMAT);
    out
}

fn put_numbers(out: &mut BytesMut, tag: u8, numbers: &[u64]) {
    out.put_u8(tag);
    numbers.iter().for_each(|number| encode_varint(*number, out));
}

fn put_texts(out: &mut BytesMut, texts: &[String]) {
    encode_varint(texts.len() as u64, out);
    texts.iter().for_each(|text| put_bytes(out, text.as_bytes()));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    encode_varint(bytes.len() as u64, out);
    out.put_slice(bytes);
}

fn take_tag(from: &mut Bytes) -> Result<u8, Unreadable> {
    if from.len() < 2 {
        return Err("it ends too early");
    }
    if from.get_u8() != FORMAT {
        return Err("its format is unknown: a newer version speaks");
    }
    Ok(from.get_u8())
}

fn take(from: &mut Bytes) -> Result<u64, Unreadable> {
    decode_varint(from).map_err(|_| "it ends too early")
}

fn take_bytes(from: &mut Bytes) -> Result<Bytes, Unreadable> {
    let length = take(from)? as usize;
    if length > from.len() {
        return Err("it ends too early");
    }
    Ok(from.split_to(length))
}

fn take_text(from: &mut Bytes) -> Result<String, Unreadable> {
    String::from_utf8(take_bytes(from)?.to_vec()).map_err(|_| "a text is not UTF-8")
}

fn take_texts(from: &mut Bytes) -> Result<Vec<String>, Unreadable> {
    let count = take(from)?;
    if count > limits::PEER_URLS_MAX as u64 {
        return Err("a list is too long");
    }
    (0..count).map(|_| take_text(from)).collect()
}

fn end<T>(from: &Bytes, read: T) -> Result<T, Unreadable> {
    if from.is_empty() { Ok(read) } else { Err("bytes are left over behind it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, is_learner: bool) -> pb::Member {
        let peer_ur_ls = vec![format!("http://{id}:1"), "unix://x".into()];
        pb::Member { id, name: format!("m{id}"), peer_ur_ls, client_ur_ls: vec!["http://c".into()], is_learner }
    }

    #[test]
    fn questions_come_back_and_their_bytes_are_frozen() {
        let add = |is_learner| Change::Add { is_learner, peer_urls: vec!["a".into(), "bc".into()] };
        for (request, bytes) in [
            (PeerRequest::LeaseRenew { id: 300 }, &[1, 1, 0xac, 2][..]),
            (PeerRequest::LeaseTimeToLive { id: 5, keys: true }, &[1, 2, 5, 1]),
            (PeerRequest::Change(add(true)), &[1, 3, 1, 2, 1, b'a', 2, b'b', b'c']),
            (PeerRequest::Change(Change::Promote { id: 7 }), &[1, 4, 7]),
            (PeerRequest::Change(Change::Remove { id: 8 }), &[1, 5, 8]),
            (PeerRequest::Hash { revision: 300, depth: Depth::Records }, &[1, 6, 0xac, 2, 1]),
        ] {
            assert_eq!(encode_request(&request), bytes);
            assert_eq!(decode_request(Bytes::copy_from_slice(bytes)), Ok(request.clone()));
            for cut in 0..bytes.len() {
                assert!(decode_request(Bytes::copy_from_slice(&bytes[..cut])).is_err(), "{request:?} cut to {cut}");
            }
        }
        assert!(decode_request(Bytes::from_static(&[1, 99, 0])).is_err());
        assert!(decode_request(Bytes::from_static(&[1, 4, 7, 0])).is_err(), "bytes left over");
    }

    #[test]
    fn answers_come_back() {
        let keys = vec![Bytes::from_static(b"k"), Bytes::from_static(b"\0")];
        for reply in [
            PeerReply::Refused(Error::TooManyLearners),
            PeerReply::LeaseRenewed { ttl_secs: 60 },
            PeerReply::LeaseTime { ttl_secs: -1, granted_secs: 0, keys: Vec::new() },
            PeerReply::LeaseTime { ttl_secs: 3, granted_secs: 9, keys },
            PeerReply::Changed(Changed { id: u64::MAX, index: 12 }),
            PeerReply::Hash(MemberHash { revision: 3, current_revision: 9, compact_revision: -1, sum: u128::MAX - 7 }),
        ] {
            assert_eq!(decode_reply(encode_reply(&reply)), Ok(reply));
        }
        let broken = encode_reply(&PeerReply::Refused(Error::Internal("the disk".into())));
        assert_eq!(decode_reply(broken), Ok(PeerReply::Refused(Error::TimedOut)), "nothing of its inside is told");
    }

    #[test]
    fn an_introduction_comes_back() {
        let introduction =
            Introduction { cluster_id: 9, members: vec![member(1, false), member(2, true)], removed: vec![3, 4] };
        let bytes = encode_introduction(&introduction);
        for cut in 0..bytes.len() {
            assert!(decode_introduction(bytes.slice(..cut)).is_err(), "cut to {cut}");
        }
        assert_eq!(decode_introduction(bytes), Ok(introduction));
        assert!(is_introduction_asked(ask_introduction()));
        assert!(!is_introduction_asked(Bytes::from_static(&[1, 2])));
    }
}
