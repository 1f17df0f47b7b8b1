//! What openraft sends, put on connections: appends pipelined on one of their own, everything small on another.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use openraft::OptionalSend;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::mpsc;

use super::connection::{Appended, Connection};
use super::frame::FrameError;
use super::hello::Kind;
use super::message::{self, tag};
use super::peers::{Peer, Peers};
use super::snapshot::{self, RaftSnapshot, StateAsSnapshot};
use crate::config::limits;
use crate::membership::MemberNode;
use crate::runtime;
use crate::types::{RaftVote, TypeConfig};

type Append = AppendEntriesRequest<TypeConfig>;
type RpcError = RPCError<TypeConfig>;
type AppendResult = StreamAppendResult<TypeConfig>;

/// Pause of a replication stream after a failure; doubles up to half an election time-out.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// Makes what openraft sends through.
pub(crate) struct Factory(pub(crate) Arc<Peers>);

/// The way to one member. Those made for one member share its connections.
pub(crate) struct Network {
    peers: Arc<Peers>,
    peer: Arc<Peer>,
    /// Streams of appends go with what is small: they are heartbeats.
    is_heartbeat: bool,
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, _node: &MemberNode) -> Network {
        Network { peers: self.0.clone(), peer: self.0.peer(target), is_heartbeat: false }
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &MemberNode) -> Network {
        Network { peers: self.0.clone(), peer: self.0.peer(target), is_heartbeat: true }
    }
}

fn unreachable(why: String) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(why))
}

fn lost(why: impl std::error::Error + 'static) -> RpcError {
    RPCError::Network(NetworkError::new(&why))
}

impl Network {
    /// Asks on the connection for what is small. All of the time that openraft gives is used: heartbeats between distant
    /// members need it.
    async fn control(&self, tag: u8, body: Bytes, option: &RPCOption) -> Result<Bytes, RpcError> {
        let asking = async {
            let connection = self.peer.control.connection().await.map_err(unreachable)?;
            connection.request(tag, body).await.map_err(lost)
        };
        let answer = runtime::timeout(option.hard_ttl(), asking).await;
        let answer = answer.unwrap_or_else(|| Err(unreachable("no answer in time".into())));
        if answer.is_err() {
            self.peer.stats.sent_failures.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// An answer that cannot be read ends the connection: what follows it cannot be trusted either.
    fn read<T>(&self, answer: Result<T, FrameError>) -> Result<T, RpcError> {
        answer.map_err(|error| {
            self.peer.control.close(&error.to_string());
            lost(error)
        })
    }

    async fn heartbeat(&self, request: Append, option: &RPCOption) -> Result<AppendResult, RpcError> {
        let begun = runtime::now();
        let (prev, term) = (request.prev_log_id, request.vote.leader_id.term);
        let answer = self.control(tag::HEARTBEAT, message::encode_heartbeat(&request).freeze(), option).await?;
        self.peer.stats.note_round_trip(runtime::now().duration_since(begun));
        let answer = self.read(message::decode_heartbeat_answer(answer))?;
        if answer.is_conflict() {
            match &prev {
                None => return self.read(Err(FrameError::Malformed("a conflict where nothing can conflict"))),
                Some(prev) => self.peer.note_lacking(term, prev.index()),
            }
        }
        Ok(answer.into_stream_result(prev, prev))
    }

    async fn appends<S>(&self, input: S) -> Result<AppendStream<S>, RpcError> {
        let connection = self.peer.append.connection().await.map_err(unreachable)?;
        let (session, answers) = connection.begin_appends();
        Ok(AppendStream {
            peer: self.peer.clone(),
            term: 0,
            connection,
            session,
            answers,
            input: Some(input),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            sent: 0,
        })
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = StateAsSnapshot;

    /// Not asked for while there are streams; a stream of one.
    async fn append_entries(
        &mut self,
        request: Append,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let mut stream = self.appends(stream::iter([request])).await?;
        let answer = runtime::timeout(option.soft_ttl(), stream.next()).await.flatten();
        answer.unwrap_or_else(|| Err(unreachable("no answer in time".into()))).map(AppendEntriesResponse::from)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<AppendResult, RpcError>>, RpcError>>
    where
        S: Stream<Item = Append> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if !self.is_heartbeat {
                return Ok(self.appends(input).await?.into_stream());
            }
            let Some(request) = input.next().await else { return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>) };
            let answer = self.heartbeat(request, &option).await.inspect_err(|_| {
                self.peer.stats.heartbeat_failures.fetch_add(1, Ordering::Relaxed);
            })?;
            Ok(Box::pin(stream::iter([Ok(answer)])) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let answer = self.control(tag::VOTE, message::encode_vote(&request).freeze(), &option).await?;
        self.read(message::decode_vote_answer(answer))
    }

    /// Spelled out because openraft's default grants the vote of a peer that does not answer.
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let answer = self.control(tag::PRE_VOTE, message::encode_vote(&request).freeze(), &option).await?;
        self.read(message::decode_vote_answer(answer))
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let context = &self.peers.context;
        let Some(store) = context.shared.snapshots.clone() else {
            return Err(Unreachable::from_string("this member makes no snapshots").into());
        };
        let opened = context.open(self.peer.id, Kind::Snapshot).await;
        let opened = opened.and_then(|(reader, writer)| Ok(reader.into_stream(writer)?));
        let stream = opened.map_err(|error| Unreachable::from_string(error.to_string()))?;
        let log = context.shared.log().cloned();
        snapshot::send(stream, store, log, self.peer.id, vote, snapshot, cancel).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let answer = self.control(tag::TRANSFER, message::encode_transfer(&request).freeze(), &option).await?;
        match self.read(message::decode_transfer_answer(answer))? {
            true => Ok(Ok(())),
            false => Err(unreachable("it does not take over: its vote or its log differs".into())),
        }
    }

    fn backoff(&self) -> Option<Backoff> {
        let longest = self.peers.context.election / 2;
        let pauses = std::iter::successors(Some(FIRST_PAUSE), move |pause| Some((*pause * 2).min(longest)));
        Some(Backoff::new(pauses.map(|pause| pause / 2 + runtime::random_part(pause / 2))))
    }
}

/// Appends on their way and their answers, in order. Bounded by count and bytes in flight: what the follower has not
/// answered is still here, so its pace is ours.
struct AppendStream<S> {
    peer: Arc<Peer>,
    /// Of the leader whose entries these are: this member, in one term.
    term: u64,
    connection: Arc<Connection>,
    session: u64,
    answers: mpsc::UnboundedReceiver<Appended>,
    /// `None` at its end.
    input: Option<S>,
    /// Bytes of each append without an answer.
    in_flight: VecDeque<usize>,
    in_flight_bytes: usize,
    sent: u64,
}

impl<S: Stream<Item = Append> + OptionalSend + Unpin + 'static> AppendStream<S> {
    fn into_stream<'s>(self) -> BoxStream<'s, Result<AppendResult, RpcError>> {
        Box::pin(stream::unfold(Some(self), |stream| async move {
            let mut stream = stream?;
            let next = stream.next().await?;
            let goes_on = matches!(next, Ok(Ok(_)));
            Some((next, goes_on.then_some(stream)))
        }))
    }

    /// The next answer; sends what there is meanwhile. `None` when all is sent and answered.
    async fn next(&mut self) -> Option<Result<AppendResult, RpcError>> {
        loop {
            if self.input.is_none() && self.in_flight.is_empty() {
                return None;
            }
            let has_room = self.in_flight.len() < limits::APPENDS_IN_FLIGHT_MAX
                && self.in_flight_bytes < limits::APPEND_BYTES_IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                answer = self.answers.recv() => return Some(self.answered(answer)),
                request = next_of(&mut self.input), if has_room && self.input.is_some() => match request {
                    Some(request) => self.send(request),
                    None => self.input = None,
                },
            }
        }
    }

    fn send(&mut self, request: Append) {
        self.term = request.vote.leader_id.term;
        let parts = message::encode_append(self.session, self.sent, request);
        let bytes = parts.iter().map(Bytes::len).sum();
        self.sent += 1;
        self.in_flight.push_back(bytes);
        self.in_flight_bytes += bytes;
        // If it has ended, so have the answers.
        self.connection.outbox.push(tag::APPEND, &parts);
    }

    fn answered(&mut self, answer: Option<Appended>) -> Result<AppendResult, RpcError> {
        let Some((number, result)) = answer else { return Err(lost(self.connection.lost())) };
        let expected = self.sent - self.in_flight.len() as u64;
        match self.in_flight.pop_front() {
            Some(bytes) if number == expected => {
                self.in_flight_bytes -= bytes;
                self.note(&result);
                Ok(result)
            }
            _ => {
                let error = FrameError::Malformed("an answer to an append that was not asked for next");
                self.connection.close(&error.to_string());
                Err(lost(error))
            }
        }
    }
}

impl<S> AppendStream<S> {
    fn note(&self, result: &AppendResult) {
        match result {
            Ok(matching) => self.peer.note_acknowledged(self.term, matching.as_ref().map_or(0, |id| id.index() + 1)),
            Err(StreamAppendError::Conflict(at)) => self.peer.note_lacking(self.term, at.index()),
            Err(StreamAppendError::HigherVote(_)) => {}
        }
    }
}

async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
}
