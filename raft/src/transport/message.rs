//! What members say to each other on connections `append`, `control`, `forward` and `call`, and the frozen bytes of it
//! (`docs/formats/peer.md`).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, VoteRequest, VoteResponse,
};

use daymark_storage::LogId;
use daymark_storage::wal::{EntryKind, LogEntry};

use super::frame::FrameError;
use crate::batch::ProposeError;
use crate::types::{LeaderId, RaftLogId, RaftVote, TypeConfig, log_id, raft_entry, raft_log_id, wal_entry};

/// Tags of frames. Frozen; those of all kinds of connection are told apart, so that a frame on the wrong one is noticed.
pub(crate) mod tag {
    pub(crate) const PING: u8 = 8;
    pub(crate) const PONG: u8 = 9;
    pub(crate) const APPEND: u8 = 16;
    pub(crate) const APPENDED: u8 = 17;
    pub(crate) const VOTE: u8 = 32;
    pub(crate) const PRE_VOTE: u8 = 33;
    pub(crate) const HEARTBEAT: u8 = 34;
    pub(crate) const TRANSFER: u8 = 35;
    pub(crate) const CONTROLLED: u8 = 36;
    pub(crate) const PROPOSE: u8 = 64;
    pub(crate) const REFUSED: u8 = 65;
    pub(crate) const READ: u8 = 66;
    pub(crate) const READ_AT: u8 = 67;
    pub(crate) const CALL: u8 = 80;
    pub(crate) const CALLED: u8 = 81;
}

/// Bytes of an entry's head: term, index, kind, length.
const ENTRY_HEAD_BYTES: usize = 21;

/// Bytes of the smallest request for an append.
const APPEND_HEAD_BYTES: usize = 8 + 8 + VOTE_BYTES + 1 + 1 + 4;
const VOTE_BYTES: usize = 17;

type Append = AppendEntriesRequest<TypeConfig>;

const CUT: FrameError = FrameError::Malformed("a message that ends too early");
const LEFT_OVER: FrameError = FrameError::Malformed("bytes behind the end of a message");

fn need(rest: &impl Buf, bytes: usize) -> Result<(), FrameError> {
    if rest.remaining() < bytes { Err(CUT) } else { Ok(()) }
}

fn end(rest: &impl Buf) -> Result<(), FrameError> {
    if rest.has_remaining() { Err(LEFT_OVER) } else { Ok(()) }
}

fn put_vote(out: &mut BytesMut, vote: &RaftVote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

fn take_vote(rest: &mut impl Buf) -> Result<RaftVote, FrameError> {
    need(rest, VOTE_BYTES)?;
    let leader_id = LeaderId { term: rest.get_u64_le(), voted_for: rest.get_u64_le() };
    Ok(RaftVote { leader_id, committed: take_bool(rest)? })
}

fn take_bool(rest: &mut impl Buf) -> Result<bool, FrameError> {
    need(rest, 1)?;
    match rest.get_u8() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(FrameError::Malformed("neither yes nor no")),
    }
}

fn put_log_id(out: &mut BytesMut, id: Option<&RaftLogId>) {
    out.put_u8(u8::from(id.is_some()));
    if let Some(id) = id.map(log_id) {
        out.put_u64_le(id.term);
        out.put_u64_le(id.index);
    }
}

fn take_log_id(rest: &mut impl Buf) -> Result<Option<RaftLogId>, FrameError> {
    if !take_bool(rest)? {
        return Ok(None);
    }
    need(rest, 16)?;
    let (term, index) = (rest.get_u64_le(), rest.get_u64_le());
    Ok(Some(raft_log_id(LogId { term, index })))
}

fn take_u64(rest: &mut impl Buf) -> Result<u64, FrameError> {
    need(rest, 8)?;
    Ok(rest.get_u64_le())
}

fn put_append(out: &mut BytesMut, request: &Append) {
    put_vote(out, &request.vote);
    put_log_id(out, request.prev_log_id.as_ref());
    put_log_id(out, request.leader_commit.as_ref());
}

/// A request for an append as the parts of a frame, its entries' payloads uncopied. `session` tells streams on one
/// connection apart, `number` counts up in each.
pub(crate) fn encode_append(session: u64, number: u64, request: Append) -> Vec<Bytes> {
    let mut head = BytesMut::with_capacity(96 + request.entries.len() * ENTRY_HEAD_BYTES);
    head.put_u64_le(session);
    head.put_u64_le(number);
    put_append(&mut head, &request);
    head.put_u32_le(u32::try_from(request.entries.len()).expect("entries of an append are bounded"));
    let mut parts = Vec::with_capacity(1 + request.entries.len());
    parts.push(Bytes::new());
    for entry in request.entries {
        let LogEntry { id, kind, payload } = wal_entry(entry);
        head.put_u64_le(id.term);
        head.put_u64_le(id.index);
        head.put_u8(kind_number(kind));
        head.put_u32_le(u32::try_from(payload.len()).expect("entries are bounded far below"));
        parts.push(payload);
    }
    parts[0] = head.freeze();
    parts
}

/// The same numbers as in the log.
fn kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Blank => 0,
        EntryKind::Commands => 1,
        EntryKind::Membership => 2,
    }
}

pub(crate) fn decode_append(payload: Bytes) -> Result<(u64, u64, Append), FrameError> {
    let mut rest = payload;
    need(&rest, APPEND_HEAD_BYTES)?;
    let (session, number) = (rest.get_u64_le(), rest.get_u64_le());
    let vote = take_vote(&mut rest)?;
    let (prev_log_id, leader_commit) = (take_log_id(&mut rest)?, take_log_id(&mut rest)?);
    need(&rest, 4)?;
    let count = rest.get_u32_le() as usize;
    need(&rest, count.saturating_mul(ENTRY_HEAD_BYTES))?;
    let mut heads = rest.split_to(count * ENTRY_HEAD_BYTES);
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let id = LogId { term: heads.get_u64_le(), index: heads.get_u64_le() };
        let kind = match heads.get_u8() {
            0 => EntryKind::Blank,
            1 => EntryKind::Commands,
            2 => EntryKind::Membership,
            _ => return Err(FrameError::Malformed("an entry of an unknown kind")),
        };
        let length = heads.get_u32_le() as usize;
        need(&rest, length)?;
        let entry = LogEntry { id, kind, payload: rest.split_to(length) };
        entries.push(raft_entry(entry).map_err(|_| FrameError::Malformed("an entry whose payload does not fit"))?);
    }
    end(&rest)?;
    check_order(prev_log_id.as_ref(), &entries)?;
    if !vote.committed {
        return Err(FrameError::Malformed("an append of somebody who does not lead"));
    }
    Ok((session, number, Append { vote, prev_log_id, entries, leader_commit }))
}

/// Entries that do not follow each other would be a hole in the log; openraft relies on there being none.
fn check_order(prev: Option<&RaftLogId>, entries: &[crate::types::RaftEntry]) -> Result<(), FrameError> {
    let mut next = prev.map_or(0, |prev| prev.index.saturating_add(1));
    let mut term = prev.map_or(0, |prev| log_id(prev).term);
    for entry in entries {
        let id = log_id(&entry.log_id);
        if id.index != next || id.term < term {
            return Err(FrameError::Malformed("entries that do not follow each other"));
        }
        (next, term) = (next.saturating_add(1), id.term);
    }
    Ok(())
}

/// The answer to one append of a stream.
pub(crate) fn encode_appended(session: u64, number: u64, result: &StreamAppendResult<TypeConfig>) -> BytesMut {
    let mut out = BytesMut::with_capacity(48);
    out.put_u64_le(session);
    out.put_u64_le(number);
    match result {
        Ok(matching) => {
            out.put_u8(0);
            put_log_id(&mut out, matching.as_ref());
        }
        Err(StreamAppendError::Conflict(at)) => {
            out.put_u8(1);
            put_log_id(&mut out, Some(at));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(&mut out, vote);
        }
    }
    out
}

pub(crate) fn decode_appended(payload: Bytes) -> Result<(u64, u64, StreamAppendResult<TypeConfig>), FrameError> {
    let mut rest = payload;
    need(&rest, 17)?;
    let (session, number) = (rest.get_u64_le(), rest.get_u64_le());
    let result = match rest.get_u8() {
        0 => Ok(take_log_id(&mut rest)?),
        1 => Err(StreamAppendError::Conflict(take_log_id(&mut rest)?.ok_or(CUT)?)),
        2 => Err(StreamAppendError::HigherVote(take_vote(&mut rest)?)),
        _ => return Err(FrameError::Malformed("an unknown answer to an append")),
    };
    end(&rest)?;
    Ok((session, number, result))
}

/// A heartbeat: an append without entries.
pub(crate) fn encode_heartbeat(request: &Append) -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    put_append(&mut out, request);
    out
}

pub(crate) fn decode_heartbeat(payload: Bytes) -> Result<Append, FrameError> {
    let mut rest = payload;
    let vote = take_vote(&mut rest)?;
    let (prev_log_id, leader_commit) = (take_log_id(&mut rest)?, take_log_id(&mut rest)?);
    end(&rest)?;
    if !vote.committed {
        return Err(FrameError::Malformed("a heartbeat of somebody who does not lead"));
    }
    Ok(Append { vote, prev_log_id, entries: Vec::new(), leader_commit })
}

pub(crate) fn encode_heartbeat_answer(answer: &AppendEntriesResponse<TypeConfig>) -> BytesMut {
    let mut out = BytesMut::with_capacity(32);
    match answer {
        AppendEntriesResponse::Success => out.put_u8(0),
        AppendEntriesResponse::PartialSuccess(matching) => {
            out.put_u8(1);
            put_log_id(&mut out, matching.as_ref());
        }
        AppendEntriesResponse::Conflict => out.put_u8(2),
        AppendEntriesResponse::HigherVote(vote) => {
            out.put_u8(3);
            put_vote(&mut out, vote);
        }
    }
    out
}

pub(crate) fn decode_heartbeat_answer(payload: Bytes) -> Result<AppendEntriesResponse<TypeConfig>, FrameError> {
    let mut rest = payload;
    need(&rest, 1)?;
    let answer = match rest.get_u8() {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(take_log_id(&mut rest)?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(take_vote(&mut rest)?),
        _ => return Err(FrameError::Malformed("an unknown answer to a heartbeat")),
    };
    end(&rest)?;
    Ok(answer)
}

pub(crate) fn encode_vote(request: &VoteRequest<TypeConfig>) -> BytesMut {
    let mut out = BytesMut::with_capacity(48);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out
}

pub(crate) fn decode_vote(payload: Bytes) -> Result<VoteRequest<TypeConfig>, FrameError> {
    let mut rest = payload;
    let mut request = VoteRequest::new(take_vote(&mut rest)?, take_log_id(&mut rest)?);
    request.leadership_transfer = take_bool(&mut rest)?;
    end(&rest)?;
    Ok(request)
}

pub(crate) fn encode_vote_answer(answer: &VoteResponse<TypeConfig>) -> BytesMut {
    let mut out = BytesMut::with_capacity(48);
    put_vote(&mut out, &answer.vote);
    out.put_u8(u8::from(answer.vote_granted));
    put_log_id(&mut out, answer.last_log_id.as_ref());
    out
}

pub(crate) fn decode_vote_answer(payload: Bytes) -> Result<VoteResponse<TypeConfig>, FrameError> {
    let mut rest = payload;
    let vote = take_vote(&mut rest)?;
    let granted = take_bool(&mut rest)?;
    let last_log_id = take_log_id(&mut rest)?;
    end(&rest)?;
    Ok(VoteResponse::new(vote, last_log_id, granted))
}

pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> BytesMut {
    let mut out = BytesMut::with_capacity(48);
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_log_id(&mut out, request.last_log_id());
    out
}

pub(crate) fn decode_transfer(payload: Bytes) -> Result<TransferLeaderRequest<TypeConfig>, FrameError> {
    let mut rest = payload;
    let from = take_vote(&mut rest)?;
    let to = take_u64(&mut rest)?;
    let last_log_id = take_log_id(&mut rest)?;
    end(&rest)?;
    Ok(TransferLeaderRequest::new(from, to, last_log_id))
}

/// Only whether it goes ahead: what differs is logged where it was found.
pub(crate) fn encode_transfer_answer(answer: &Result<(), TransferLeaderError<TypeConfig>>) -> BytesMut {
    BytesMut::from(&[u8::from(answer.is_ok())][..])
}

pub(crate) fn decode_transfer_answer(payload: Bytes) -> Result<bool, FrameError> {
    let mut rest = payload;
    let fine = take_bool(&mut rest)?;
    end(&rest)?;
    Ok(fine)
}

fn why_number(why: ProposeError) -> u8 {
    match why {
        ProposeError::NoLeader => 1,
        ProposeError::LeaderChanged => 2,
        // Nobody is told by the other end that it was lost.
        ProposeError::TimedOut | ProposeError::ConnectionLost => 3,
        ProposeError::TooManyRequests => 4,
        ProposeError::Stopped => 5,
    }
}

fn why_of(number: u8) -> Result<ProposeError, FrameError> {
    Ok(match number {
        1 => ProposeError::NoLeader,
        2 => ProposeError::LeaderChanged,
        3 => ProposeError::TimedOut,
        4 => ProposeError::TooManyRequests,
        // The leader stops, not this member.
        5 => ProposeError::LeaderChanged,
        _ => return Err(FrameError::Malformed("an unknown reason")),
    })
}

/// A forwarded batch has no result on the leader.
pub(crate) fn encode_refused(sequence: u64, why: ProposeError) -> BytesMut {
    let mut out = BytesMut::with_capacity(9);
    out.put_u64_le(sequence);
    out.put_u8(why_number(why));
    out
}

pub(crate) fn decode_refused(payload: Bytes) -> Result<(u64, ProposeError), FrameError> {
    let mut rest = payload;
    need(&rest, 9)?;
    let sequence = rest.get_u64_le();
    let why = why_of(rest.get_u8())?;
    end(&rest)?;
    Ok((sequence, why))
}

pub(crate) fn encode_read_at(answer: Result<u64, ProposeError>) -> BytesMut {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(answer.map_or_else(why_number, |_| 0));
    out.put_u64_le(answer.unwrap_or_default());
    out
}

pub(crate) fn decode_read_at(payload: Bytes) -> Result<Result<u64, ProposeError>, FrameError> {
    let mut rest = payload;
    need(&rest, 9)?;
    let (why, index) = (rest.get_u8(), rest.get_u64_le());
    end(&rest)?;
    Ok(if why == 0 { Ok(index) } else { Err(why_of(why)?) })
}

#[cfg(test)]
mod tests {
    use openraft::entry::EntryPayload;

    use super::*;
    use crate::types::{RaftEntry, SealedBatch};

    fn id(term: u64, index: u64) -> RaftLogId {
        raft_log_id(LogId { term, index })
    }

    fn vote(committed: bool) -> RaftVote {
        RaftVote { leader_id: LeaderId { term: 3, voted_for: 9 }, committed }
    }

    fn append() -> Append {
        let batch = SealedBatch::from_payload(Bytes::from(vec![7; 5000])).unwrap();
        let entries = vec![
            RaftEntry { log_id: id(2, 6), payload: EntryPayload::Blank },
            RaftEntry { log_id: id(3, 7), payload: EntryPayload::Normal(batch) },
        ];
        Append { vote: vote(true), prev_log_id: Some(id(2, 5)), entries, leader_commit: None }
    }

    fn whole(parts: Vec<Bytes>) -> Bytes {
        Bytes::from(parts.concat())
    }

    #[test]
    fn an_append_comes_back_and_every_cut_is_noticed() {
        let bytes = whole(encode_append(4, 5, append()));
        let (session, number, request) = decode_append(bytes.clone()).unwrap();
        assert_eq!((session, number, format!("{request:?}")), (4, 5, format!("{:?}", append())));
        for length in (0..200).chain(bytes.len() - 10..bytes.len()) {
            assert!(decode_append(bytes.slice(..length)).is_err(), "cut to {length}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(decode_append(longer.into()).is_err());
    }

    #[test]
    fn entries_with_a_hole_or_a_falling_term_are_malformed() {
        let mut hole = append();
        hole.prev_log_id = Some(id(2, 4));
        assert!(decode_append(whole(encode_append(0, 0, hole))).is_err());
        let mut falling = append();
        falling.prev_log_id = Some(id(4, 5));
        assert!(decode_append(whole(encode_append(0, 0, falling))).is_err());
    }

    #[test]
    fn answers_and_votes_come_back() {
        for result in [
            Ok(None),
            Ok(Some(id(1, 2))),
            Err(StreamAppendError::Conflict(id(3, 4))),
            Err(StreamAppendError::HigherVote(vote(false))),
        ] {
            let bytes = encode_appended(1, 2, &result).freeze();
            assert_eq!(decode_appended(bytes.clone()).unwrap(), (1, 2, result));
            assert!((0..bytes.len()).all(|length| decode_appended(bytes.slice(..length)).is_err()));
        }
        for answer in [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(Some(id(1, 2))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(vote(true)),
        ] {
            assert_eq!(decode_heartbeat_answer(encode_heartbeat_answer(&answer).freeze()).unwrap(), answer);
        }
        let mut request = VoteRequest::new(vote(false), Some(id(2, 8)));
        request.leadership_transfer = true;
        assert_eq!(decode_vote(encode_vote(&request).freeze()).unwrap(), request);
        let answer = VoteResponse::new(vote(true), None, true);
        assert_eq!(decode_vote_answer(encode_vote_answer(&answer).freeze()).unwrap(), answer);
        let transfer = TransferLeaderRequest::new(vote(true), 4, Some(id(3, 9)));
        assert_eq!(decode_transfer(encode_transfer(&transfer).freeze()).unwrap(), transfer);
        assert_eq!(decode_read_at(encode_read_at(Ok(7)).freeze()).unwrap(), Ok(7));
        let refused = decode_read_at(encode_read_at(Err(ProposeError::NoLeader)).freeze()).unwrap();
        assert_eq!(refused, Err(ProposeError::NoLeader));
        let refused = encode_refused(8, ProposeError::TooManyRequests).freeze();
        assert_eq!(decode_refused(refused).unwrap(), (8, ProposeError::TooManyRequests));
    }
}
