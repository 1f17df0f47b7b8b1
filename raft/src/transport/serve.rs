//! Connections that other members have opened: greeting, refusals, and what is asked on them. A frame that cannot be read
//! ends its connection, and the fact is logged.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use openraft::async_runtime::watch::WatchReceiver;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::forward;
use super::frame::{Frame, FrameError, FrameReader, Outbox};
use super::gone;
use super::hello::{Answer, HELLO_BYTES_MAX, Hello, Kind, PROTOCOL, Refusal};
use super::message::{self, tag};
use super::peers::{Context, FRAME_BYTES_MAX, Peers};
use super::seam::{CallError, CallReply, PeerStream};
use super::snapshot::{self, Receiver};
use crate::config::limits;
use crate::driver::DaymarkRaft;
use crate::executor;
use crate::runtime;

/// A greeted connection of another member.
pub(crate) struct Guest {
    pub(crate) context: Arc<Context>,
    pub(crate) raft: DaymarkRaft,
    pub(crate) from: u64,
    pub(crate) outbox: Arc<Outbox>,
    /// Requests being worked on.
    busy: AtomicUsize,
}

/// See the file's head.
pub(crate) async fn accept(peers: &Arc<Peers>, raft: Option<DaymarkRaft>, stream: PeerStream) {
    let _counted = Counted::new(&peers.incoming);
    let is_busy = peers.incoming.load(Ordering::Relaxed) > limits::PEER_CONNECTIONS_MAX;
    let (read, write) = tokio::io::split(stream);
    let mut reader = FrameReader::new(read, HELLO_BYTES_MAX);
    let greeting = greet(&peers.context, &mut reader, write, is_busy || raft.is_none());
    let (hello, kind, writer) = match runtime::timeout(limits::HELLO_TIMEOUT, greeting).await {
        Some(Ok(Some(greeted))) => greeted,
        // Refused, and logged there.
        Some(Ok(None)) => return,
        Some(Err(error)) => return tracing::warn!(%error, "closed a connection that did not begin like a member's"),
        None => return tracing::warn!("closed a connection that did not say who it is in time"),
    };
    let Some(raft) = raft else { return };
    reader.set_bound(FRAME_BYTES_MAX);
    peers.note_heard(hello.sender);
    let served = serve(peers, raft, hello.sender, kind, reader, writer).await;
    gone::suspect(peers, hello.sender);
    if let Err(error) = served {
        if let Some(stats) = peers.stats_of_member(hello.sender) {
            stats.received_failures.fetch_add(1, Ordering::Relaxed);
        }
        let (peer, connection) = (format!("{:x}", hello.sender), kind.name());
        tracing::warn!(peer, connection, %error, "closed a connection of a member");
    }
}

/// `None` if the connection is refused.
async fn greet(
    context: &Context,
    reader: &mut FrameReader,
    mut writer: WriteHalf<PeerStream>,
    is_busy: bool,
) -> Result<Option<(Hello, Kind, WriteHalf<PeerStream>)>, FrameError> {
    let frame = reader.next().await?.ok_or(FrameError::Cut)?;
    let hello = Hello::decode(&frame)?;
    let checked = if is_busy { Err(Refusal::Busy) } else { check(context, &hello) };
    let answer = Answer {
        refusal: checked.err(),
        protocol: PROTOCOL,
        cluster_id: context.identity.cluster_id,
        member_id: context.identity.member_id,
        version: context.options.version.clone(),
    };
    writer.write_all(&answer.encode()).await?;
    writer.flush().await?;
    match checked {
        Ok(kind) => Ok(Some((hello, kind, writer))),
        Err(refusal) => {
            let (peer, cluster) = (format!("{:x}", hello.sender), format!("{:x}", hello.cluster_id));
            tracing::warn!(peer, cluster, version = hello.version, ?refusal, "refused a connection of a member");
            // The answer must arrive: a reset would overtake it.
            let _ = writer.shutdown().await;
            Ok(None)
        }
    }
}

fn check(context: &Context, hello: &Hello) -> Result<Kind, Refusal> {
    if hello.protocol != PROTOCOL {
        return Err(Refusal::Protocol);
    }
    let kind = hello.kind.map_err(|_| Refusal::Kind)?;
    if kind == Kind::Ask {
        return Ok(kind);
    }
    if hello.cluster_id != context.identity.cluster_id {
        return Err(Refusal::OtherCluster);
    }
    if hello.target != context.identity.member_id || hello.sender == context.identity.member_id {
        return Err(Refusal::OtherTarget);
    }
    if context.options.calls.is_removed(hello.sender) {
        return Err(Refusal::Removed);
    }
    Ok(kind)
}

async fn serve(
    peers: &Arc<Peers>,
    raft: DaymarkRaft,
    from: u64,
    kind: Kind,
    mut reader: FrameReader,
    writer: WriteHalf<PeerStream>,
) -> Result<(), FrameError> {
    if kind == Kind::Snapshot {
        return receive_snapshot(&peers.context, raft, from, reader.into_stream(writer)?).await;
    }
    let outbox = Arc::new(Outbox::default());
    let context = peers.context.clone();
    let guest = Arc::new(Guest { context, raft, from, outbox, busy: AtomicUsize::new(0) });
    let _close = CloseOnDrop(guest.clone());
    let stats = peers.stats_of_member(from);
    let note = |bytes: usize| {
        if let Some(stats) = &stats {
            stats.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        written = guest.outbox.write_to(writer, note) => written,
        read = guest.read(kind, &mut reader, |bytes| {
            if let Some(stats) = &stats {
                stats.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }) => read,
    }
}

async fn receive_snapshot(
    context: &Context,
    raft: DaymarkRaft,
    from: u64,
    stream: PeerStream,
) -> Result<(), FrameError> {
    let Some(store) = context.shared.snapshots.clone() else {
        return Err(FrameError::Malformed("a snapshot, though this member takes none"));
    };
    let vote = raft.metrics().borrow_watched().vote;
    let install = |vote, snapshot| async move {
        let installed = raft.install_full_snapshot(vote, snapshot).await;
        installed.map(|response| response.vote).map_err(|fatal| fatal.to_string())
    };
    let member = Receiver { committed_index: context.shared.committed_index(), vote, install };
    snapshot::receive(stream, store, from, member).await;
    Ok(())
}

impl Guest {
    async fn read(
        self: &Arc<Self>,
        kind: Kind,
        reader: &mut FrameReader,
        note: impl Fn(usize),
    ) -> Result<(), FrameError> {
        let mut appends = Appends::default();
        // The other end pings several times within its election time-out, which is about ours.
        let silence_max = (3 * self.context.election).max(limits::PEER_SILENCE_MIN);
        loop {
            let frame = match reader.cut()? {
                Some(frame) => frame,
                None => match self.next(reader, silence_max).await? {
                    Some(frame) => frame,
                    None => return Ok(()),
                },
            };
            note(frame.payload.len());
            if frame.tag == tag::PING {
                self.outbox.push(tag::PONG, &[]);
                continue;
            }
            // Answers that nobody reads must not pile up.
            self.outbox.wait_for_room(limits::PEER_OUTBOX_BYTES_MAX).await;
            match kind {
                Kind::Append => appends.take(self, frame).await?,
                Kind::Control => self.control(frame).await?,
                Kind::Forward => forward::take(self, frame).await?,
                Kind::Call | Kind::Ask => self.call(kind, frame)?,
                Kind::Snapshot => return Err(FrameError::Malformed("not a connection for frames")),
            }
        }
    }

    async fn next(&self, reader: &mut FrameReader, silence_max: Duration) -> Result<Option<Frame>, FrameError> {
        loop {
            let before = reader.partial_bytes();
            match runtime::timeout(silence_max, reader.next()).await {
                Some(frame) => return frame,
                // A long frame may take longer on a slow link.
                None if reader.partial_bytes() > before => {}
                None => {
                    let text = format!("nothing was heard for {silence_max:?}");
                    return Err(FrameError::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, text)));
                }
            }
        }
    }

    /// Works on a request in a task of its own, unless there are too many: then it is left unanswered, which the other
    /// end takes for a loss.
    pub(crate) fn work<F>(self: &Arc<Self>, busy_max: usize, work: F) -> bool
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if self.busy.load(Ordering::Relaxed) >= busy_max {
            return false;
        }
        let counted = Busy::new(self.clone());
        executor::spawn(async move {
            work.await;
            drop(counted);
        });
        true
    }

    /// Answers the request with this number.
    pub(crate) fn answer(&self, tag: u8, number: u64, body: &[u8]) {
        let mut out = BytesMut::with_capacity(8 + body.len());
        out.put_u64_le(number);
        out.put_slice(body);
        self.outbox.push_small(tag, out);
    }

    async fn control(self: &Arc<Self>, frame: Frame) -> Result<(), FrameError> {
        let (number, body) = numbered(frame.payload)?;
        let guest = self.clone();
        match frame.tag {
            tag::HEARTBEAT => {
                let request = message::decode_heartbeat(body)?;
                self.work(limits::CONTROLS_MAX, async move {
                    let leader = request.vote.leader_id.voted_for;
                    let Ok(answer) = guest.raft.append_entries(request).await else { return };
                    if !matches!(answer, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                        guest.context.shared.note_leader_heard(leader);
                    }
                    guest.answer(tag::CONTROLLED, number, &message::encode_heartbeat_answer(&answer));
                });
            }
            tag::VOTE | tag::PRE_VOTE => {
                let request = message::decode_vote(body)?;
                self.work(limits::CONTROLS_MAX, async move {
                    let answer = match frame.tag {
                        tag::VOTE => guest.raft.vote(request).await,
                        _ => guest.raft.pre_vote(request).await,
                    };
                    let Ok(answer) = answer else { return };
                    guest.answer(tag::CONTROLLED, number, &message::encode_vote_answer(&answer));
                });
            }
            tag::TRANSFER => {
                let request = message::decode_transfer(body)?;
                self.work(limits::CONTROLS_MAX, async move {
                    let Ok(answer) = guest.raft.handle_transfer_leader(request).await else { return };
                    if let Err(why) = &answer {
                        tracing::info!(%why, "does not take over as leader");
                    }
                    guest.answer(tag::CONTROLLED, number, &message::encode_transfer_answer(&answer));
                });
            }
            _ => return Err(FrameError::Malformed("a request of an unknown kind")),
        }
        Ok(())
    }

    fn call(self: &Arc<Self>, kind: Kind, frame: Frame) -> Result<(), FrameError> {
        if frame.tag != tag::CALL {
            return Err(FrameError::Malformed("a request of an unknown kind"));
        }
        let (number, body) = numbered(frame.payload)?;
        let (reply, answer) = oneshot::channel();
        let guest = self.clone();
        let taken = self.work(limits::CALLS_MAX, async move {
            match answer.await {
                Ok(body) => guest.answer_call(number, CALL_ANSWERED, body),
                Err(_) => guest.answer_call(number, CALL_NOT_SERVED, Bytes::new()),
            }
        });
        let calls = &self.context.options.calls;
        match (taken, kind) {
            (false, _) => self.answer_call(number, CALL_BUSY, Bytes::new()),
            (true, Kind::Ask) => calls.ask(body, CallReply(reply)),
            (true, _) => calls.serve(self.from, body, CallReply(reply)),
        }
        Ok(())
    }

    fn answer_call(&self, number: u64, outcome: u8, body: Bytes) {
        let mut head = BytesMut::with_capacity(9);
        head.put_u64_le(number);
        head.put_u8(outcome);
        self.outbox.push(tag::CALLED, &[head.freeze(), body]);
    }
}

// Outcomes of calls. Frozen.
const CALL_ANSWERED: u8 = 0;
const CALL_NOT_SERVED: u8 = 1;
const CALL_BUSY: u8 = 2;

/// What came back for a call, behind its number.
pub(crate) fn call_answer(mut answer: Bytes) -> Result<Bytes, CallError> {
    if answer.is_empty() {
        return Err(CallError::NotServed);
    }
    match answer.get_u8() {
        CALL_ANSWERED => Ok(answer),
        CALL_BUSY => Err(CallError::Busy),
        _ => Err(CallError::NotServed),
    }
}

/// One call on a connection that is for nothing else.
pub(crate) async fn ask_once(
    reader: &mut FrameReader,
    mut writer: WriteHalf<PeerStream>,
    request: Bytes,
) -> Result<Bytes, CallError> {
    let mut body = BytesMut::with_capacity(8 + request.len());
    body.put_u64_le(0);
    body.put_slice(&request);
    let unreachable = |why: String| CallError::Unreachable { member_id: 0, why };
    let write = async {
        writer.write_all(&super::frame::encode(tag::CALL, &body)).await?;
        writer.flush().await
    };
    write.await.map_err(|error| unreachable(error.to_string()))?;
    match reader.next().await {
        Ok(Some(frame)) if frame.tag == tag::CALLED && frame.payload.len() > 8 => call_answer(frame.payload.slice(8..)),
        Ok(_) => Err(CallError::NotServed),
        Err(error) => Err(unreachable(error.to_string())),
    }
}

/// Number and rest of a request.
pub(crate) fn numbered(mut payload: Bytes) -> Result<(u64, Bytes), FrameError> {
    if payload.len() < 8 {
        return Err(FrameError::Malformed("a request without a number"));
    }
    let number = payload.get_u64_le();
    Ok((number, payload))
}

/// The stream of appends that a connection carries: one at a time, told apart by its number.
#[derive(Default)]
struct Appends {
    session: Option<u64>,
    requests: Option<mpsc::Sender<openraft::raft::AppendEntriesRequest<crate::types::TypeConfig>>>,
}

impl Appends {
    async fn take(&mut self, guest: &Arc<Guest>, frame: Frame) -> Result<(), FrameError> {
        if frame.tag != tag::APPEND {
            return Err(FrameError::Malformed("not an append"));
        }
        let (session, number, request) = message::decode_append(frame.payload)?;
        if self.session != Some(session) {
            // More than the leader has in flight: a follower that is slow must not keep pings from being read.
            let (sender, receiver) = mpsc::channel(2 * limits::APPENDS_IN_FLIGHT_MAX);
            (self.session, self.requests) = (Some(session), Some(sender));
            let leader = request.vote.leader_id.voted_for;
            executor::spawn(answer_appends(guest.clone(), session, number, leader, receiver));
        }
        // A stream ends with its first error; what the leader had in flight behind it has no answer.
        if let Some(requests) = &self.requests
            && requests.send(request).await.is_err()
        {
            self.requests = None;
        }
        Ok(())
    }
}

async fn answer_appends(
    guest: Arc<Guest>,
    session: u64,
    first: u64,
    leader: u64,
    mut requests: mpsc::Receiver<openraft::raft::AppendEntriesRequest<crate::types::TypeConfig>>,
) {
    let input = stream::poll_fn(move |cx| requests.poll_recv(cx));
    let mut results = std::pin::pin!(guest.raft.stream_append(input));
    let mut number = first;
    while let Some(Ok(result)) = results.next().await {
        if !matches!(result, Err(openraft::raft::StreamAppendError::HigherVote(_))) {
            guest.context.shared.note_leader_heard(leader);
        }
        guest.outbox.push_small(tag::APPENDED, message::encode_appended(session, number, &result));
        number += 1;
    }
}

/// Counts a connection as long as it is served.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a request as long as it is worked on.
struct Busy(Arc<Guest>);

impl Busy {
    fn new(guest: Arc<Guest>) -> Self {
        guest.busy.fetch_add(1, Ordering::Relaxed);
        Self(guest)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tasks that still work for a connection that has ended do so in vain, but hold nothing.
struct CloseOnDrop(Arc<Guest>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.outbox.close();
    }
}
