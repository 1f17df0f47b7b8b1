//! Who takes part, as raft sees it, and the frozen bytes of it (`docs/formats/raft-entries.md`). Not what clients see:
//! names and client addresses are replicated commands, kept by the server. How it changes is in `changes`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use daymark_storage::LogId;

use crate::types::{RaftMembership, StoredMembership, log_id, raft_log_id};

/// A member as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Never reused, not even after the member is removed.
    pub id: u64,
    /// Human-readable; not part of raft's membership.
    pub name: String,
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; not part of raft's membership.
    pub client_urls: Vec<String>,
    /// Whether it was added as one that takes entries without a vote. One that was added as a voter and has no vote yet,
    /// because it has not caught up, is none.
    pub is_learner: bool,
    /// Whether it has a vote.
    pub has_vote: bool,
}

/// What raft's membership says of one member beside its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberNode {
    /// Where other members reach it.
    pub peer_urls: Vec<String>,
    /// It was added as a voter and gets its vote as soon as it has caught up. Means nothing for one that has it:
    /// openraft wants what is said of a member to stay as it is.
    pub joins_as_voter: bool,
}

/// First byte of an encoded membership without flags of members, which all have none. Frozen; a new layout takes the
/// next number.
const FORMAT: u8 = 1;
/// The same with a byte of flags for each member.
const FORMAT_WITH_FLAGS: u8 = 2;
/// [`MemberNode::joins_as_voter`].
const FLAG_JOINS_AS_VOTER: u8 = 1;

/// Why bytes are not a membership.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum DecodeError {
    #[error("it ends too early")]
    Truncated,
    #[error("bytes are left over behind it")]
    Trailing,
    #[error("format {0} is unknown: it was written by a newer version")]
    Format(u8),
    #[error("an address is not UTF-8")]
    Utf8,
    #[error("a voter has no address record")]
    Unlisted,
    #[error("flags {0:#x} of a member are unknown: they were written by a newer version")]
    Flags(u8),
}

/// The payload of a membership entry.
pub(crate) fn encode(membership: &RaftMembership) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    put_membership(&mut out, membership);
    out.freeze()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<RaftMembership, DecodeError> {
    let mut rest = bytes;
    let membership = take_membership(&mut rest)?;
    if rest.is_empty() { Ok(membership) } else { Err(DecodeError::Trailing) }
}

/// What the state keeps: the membership together with the id of the entry that brought it.
pub(crate) fn encode_stored(id: LogId, membership: &RaftMembership) -> Bytes {
    let mut out = BytesMut::with_capacity(144);
    out.put_u64_le(id.term);
    out.put_u64_le(id.index);
    put_membership(&mut out, membership);
    out.freeze()
}

pub(crate) fn decode_stored(bytes: &[u8]) -> Result<StoredMembership, DecodeError> {
    let mut rest = bytes;
    let term = rest.try_get_u64_le().map_err(|_| DecodeError::Truncated)?;
    let index = rest.try_get_u64_le().map_err(|_| DecodeError::Truncated)?;
    let membership = decode(rest)?;
    Ok(StoredMembership::new(Some(raft_log_id(LogId { term, index })), membership))
}

/// Who takes part since which log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipInfo {
    /// The entry that brought it.
    pub id: LogId,
    /// Everybody, by id; names and client addresses are not known to raft and left empty.
    pub members: Vec<MemberInfo>,
}

/// What the bytes of an [`EntryBody::Membership`](crate::EntryBody::Membership) say. An error says what is wrong with
/// them.
pub fn membership_of(stored: &[u8]) -> Result<MembershipInfo, String> {
    let stored = decode_stored(stored).map_err(|error| error.to_string())?;
    let id = stored_id(&stored).expect("it was stored with the id of its entry");
    Ok(MembershipInfo { id, members: members_in(stored.membership()) })
}

/// Everybody who takes part, by id.
pub(crate) fn members_in(membership: &RaftMembership) -> Vec<MemberInfo> {
    let member = |(id, node): (&u64, &MemberNode)| {
        let has_vote = membership.voter_ids().any(|voter| voter == *id);
        MemberInfo {
            id: *id,
            name: String::new(),
            peer_urls: node.peer_urls.clone(),
            client_urls: Vec::new(),
            is_learner: !has_vote && !node.joins_as_voter,
            has_vote,
        }
    };
    membership.nodes().map(member).collect()
}

/// The bytes of a membership, as of the entry `at`, for a state that is made without raft: these are the members.
pub fn encode_members(at: LogId, members: &[MemberInfo]) -> Bytes {
    let voters = members.iter().filter(|member| !member.is_learner).map(|member| member.id).collect();
    let node = |member: &MemberInfo| MemberNode { peer_urls: member.peer_urls.clone(), joins_as_voter: false };
    let nodes: BTreeMap<u64, MemberNode> = members.iter().map(|member| (member.id, node(member))).collect();
    let membership = RaftMembership::new(vec![voters], nodes).expect("every voter is one of the members");
    encode_stored(at, &membership)
}

/// Whether `member_id` is the only voter, with no change under way.
pub(crate) fn is_sole_voter(membership: &RaftMembership, member_id: u64) -> bool {
    let mut voters = membership.voter_ids();
    voters.next() == Some(member_id) && voters.next().is_none()
}

/// Whether nobody else takes part, not even without a vote.
pub(crate) fn is_alone(membership: &RaftMembership, member_id: u64) -> bool {
    is_sole_voter(membership, member_id) && membership.nodes().count() == 1
}

/// The id of the entry that a stored membership came from.
pub(crate) fn stored_id(stored: &StoredMembership) -> Option<LogId> {
    stored.log_id().as_ref().map(log_id)
}

fn put_membership(out: &mut BytesMut, membership: &RaftMembership) {
    let has_flags = membership.nodes().any(|(_, node)| node.joins_as_voter);
    out.put_u8(if has_flags { FORMAT_WITH_FLAGS } else { FORMAT });
    let configs = membership.get_joint_config();
    out.put_u8(u8::try_from(configs.len()).expect("raft has one voter set, or two while it changes"));
    for voters in configs {
        put_count(out, voters.len());
        for id in voters {
            out.put_u64_le(*id);
        }
    }
    put_count(out, membership.nodes().count());
    for (id, node) in membership.nodes() {
        out.put_u64_le(*id);
        if has_flags {
            out.put_u8(if node.joins_as_voter { FLAG_JOINS_AS_VOTER } else { 0 });
        }
        put_count(out, node.peer_urls.len());
        for url in &node.peer_urls {
            put_count(out, url.len());
            out.put_slice(url.as_bytes());
        }
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u16_le(u16::try_from(count).expect("the server bounds members, addresses and their lengths"));
}

fn take_membership(rest: &mut &[u8]) -> Result<RaftMembership, DecodeError> {
    let format = take_u8(rest)?;
    if format != FORMAT && format != FORMAT_WITH_FLAGS {
        return Err(DecodeError::Format(format));
    }
    let mut configs = Vec::new();
    for _ in 0..take_u8(rest)? {
        let mut voters = BTreeSet::new();
        for _ in 0..take_count(rest)? {
            voters.insert(take_id(rest)?);
        }
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..take_count(rest)? {
        let id = take_id(rest)?;
        let mut node = MemberNode::default();
        if format == FORMAT_WITH_FLAGS {
            node.joins_as_voter = take_flags(rest)?;
        }
        for _ in 0..take_count(rest)? {
            node.peer_urls.push(take_string(rest)?);
        }
        nodes.insert(id, node);
    }
    RaftMembership::new(configs, nodes).map_err(|_| DecodeError::Unlisted)
}

fn take_u8(rest: &mut &[u8]) -> Result<u8, DecodeError> {
    rest.try_get_u8().map_err(|_| DecodeError::Truncated)
}

fn take_flags(rest: &mut &[u8]) -> Result<bool, DecodeError> {
    match take_u8(rest)? {
        0 => Ok(false),
        FLAG_JOINS_AS_VOTER => Ok(true),
        other => Err(DecodeError::Flags(other)),
    }
}

fn take_count(rest: &mut &[u8]) -> Result<usize, DecodeError> {
    rest.try_get_u16_le().map(usize::from).map_err(|_| DecodeError::Truncated)
}

fn take_id(rest: &mut &[u8]) -> Result<u64, DecodeError> {
    rest.try_get_u64_le().map_err(|_| DecodeError::Truncated)
}

fn take_string(rest: &mut &[u8]) -> Result<String, DecodeError> {
    let length = take_count(rest)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(DecodeError::Truncated)?;
    *rest = behind;
    std::str::from_utf8(text).map(str::to_owned).map_err(|_| DecodeError::Utf8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> RaftMembership {
        let nodes = BTreeMap::from([
            (1, node("http://a:2380", false)),
            (2, node("http://b:2380", false)),
            (9, MemberNode::default()),
        ]);
        RaftMembership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], nodes).unwrap()
    }

    fn node(url: &str, joins_as_voter: bool) -> MemberNode {
        MemberNode { peer_urls: vec![url.to_string()], joins_as_voter }
    }

    /// A voter, one that is to be one, and a learner.
    fn growing() -> RaftMembership {
        let nodes = BTreeMap::from([(5, node("http://a", false)), (6, node("b", true)), (7, node("c", false))]);
        RaftMembership::new(vec![BTreeSet::from([5])], nodes).unwrap()
    }

    #[test]
    fn a_joint_membership_with_a_learner_comes_back() {
        let id = LogId { term: 3, index: 77 };
        let stored = decode_stored(&encode_stored(id, &joint())).unwrap();
        assert_eq!(stored_id(&stored), Some(id));
        assert_eq!(stored.membership(), &joint());
        assert_eq!(decode(&encode(&joint())).unwrap(), joint());
    }

    #[test]
    fn the_bytes_of_a_lone_voter_are_frozen() {
        let nodes = BTreeMap::from([(5, node("http://a", false))]);
        let lone = RaftMembership::new(vec![BTreeSet::from([5])], nodes).unwrap();
        let mut expected = vec![1, 1, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 8, 0];
        expected.extend_from_slice(b"http://a");
        assert_eq!(encode(&lone), expected);
    }

    #[test]
    fn the_bytes_of_members_with_flags_are_frozen() {
        let mut expected = vec![2, 1, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 3, 0];
        expected.extend_from_slice(b"\x05\0\0\0\0\0\0\0\x00\x01\0\x08\0http://a");
        expected.extend_from_slice(b"\x06\0\0\0\0\0\0\0\x01\x01\0\x01\0b");
        expected.extend_from_slice(b"\x07\0\0\0\0\0\0\0\x00\x01\0\x01\0c");
        assert_eq!(encode(&growing()), expected);
        assert_eq!(decode(&expected), Ok(growing()));
        expected[22] = 2;
        assert_eq!(decode(&expected), Err(DecodeError::Flags(2)));
    }

    #[test]
    fn who_is_to_be_a_voter_is_no_learner() {
        let id = LogId { term: 2, index: 9 };
        let told = membership_of(&encode_stored(id, &growing())).unwrap();
        let kinds: Vec<_> = told.members.iter().map(|member| (member.id, member.is_learner, member.has_vote)).collect();
        assert_eq!((told.id, kinds), (id, vec![(5, false, true), (6, false, false), (7, true, false)]));
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        for membership in [joint(), growing()] {
            let whole = encode(&membership);
            for length in 0..whole.len() {
                assert!(decode(&whole[..length]).is_err(), "cut to {length} bytes");
            }
            let mut longer = whole.to_vec();
            longer.push(0);
            assert_eq!(decode(&longer), Err(DecodeError::Trailing));
            longer[0] = 3;
            assert_eq!(decode(&longer), Err(DecodeError::Format(3)));
        }
    }

    #[test]
    fn only_one_voter_in_one_set_is_a_sole_voter() {
        assert!(!is_sole_voter(&joint(), 1));
        let lone = RaftMembership::new_with_defaults(vec![BTreeSet::from([1])], [4]);
        assert!(is_sole_voter(&lone, 1), "learners do not vote");
        assert!(!is_alone(&lone, 1), "but they take part");
        assert!(!is_sole_voter(&lone, 2));
    }
}
