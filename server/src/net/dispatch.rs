//! One call of a method, whichever transport brought it: opened, counted and timed, its message bytes decoded to a
//! [`Request`] for the front door, the [`Reply`] encoded. The only place that matches methods to messages: a new method
//! is served on every transport once it is listed here. Knows no header and no framing of streams.

use std::borrow::Cow;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use daymark_api::grpc::health::v1 as health;
use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::LocalBoxStream;
use prost::Message;
use tokio::time::Sleep;

use super::frames::{self, PREFIX_BYTES};
use super::{FrontDoor, Thread, reflection};
use crate::budget::Budget;
use crate::error::{Code, Error};
use crate::limits;
use crate::request::{Context, MessageParts, Reply, Request, RequestStream, Sink, StreamRequest, Taken};
use crate::rpc::Rpc;

/// How a call ends: a code number and a text. Wider than [`Error`], because transports have words of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub code: u8,
    pub text: Cow<'static, str>,
}

impl Status {
    pub const OK: Self = Self { code: 0, text: Cow::Borrowed("") };

    pub fn new(code: Code, text: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code as u8, text: text.into() }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.text())
    }
}

/// Encoded messages of a caller, in order, without framing. An error is the last item.
pub(crate) type MessageStream = LocalBoxStream<'static, Result<Bytes, Error>>;

/// A call under way. Counted as started when it opens and as handled when it ends, or when it is dropped because its
/// caller has gone.
pub(crate) struct Call<D: FrontDoor> {
    thread: Rc<Thread<D>>,
    rpc: Rpc,
    context: Rc<Context>,
    start: Instant,
    deadline: Option<Instant>,
    is_counted: bool,
    /// A transaction that only reads.
    only_reads: bool,
    /// It may wait for other clients, as long as it likes.
    waits: bool,
}

impl<D: FrontDoor> Drop for Call<D> {
    fn drop(&mut self) {
        if !self.is_counted {
            self.count_end(Code::Canceled as u8);
        }
    }
}

impl<D: FrontDoor> Call<D> {
    /// Opens a call that came at `start` and must end within `timeout`.
    pub fn open(
        thread: &Rc<Thread<D>>,
        rpc: Rpc,
        context: Rc<Context>,
        timeout: Option<Duration>,
        start: Instant,
    ) -> Self {
        thread.counters.rpc(rpc).started.add(1);
        let version = context.client_api_version.as_ref().and_then(|version| version.as_deref().ok());
        thread.counters.client_request(rpc.kind(), version);
        // A caller may ask for more time than a clock has.
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        Self {
            thread: thread.clone(),
            rpc,
            context,
            start,
            deadline,
            is_counted: false,
            only_reads: false,
            waits: false,
        }
    }

    /// What counts answers that wait to be sent.
    pub fn answers(&self) -> &Arc<Budget> {
        &self.thread.options.answers
    }

    fn count_end(&mut self, code: u8) {
        let counters = &self.thread.counters;
        let handled = &counters.rpc(self.rpc).handled;
        handled[usize::from(code).min(handled.len() - 1)].add(1);
        if counters.times_calls() {
            counters.call(self.rpc, self.start.elapsed());
        }
        self.is_counted = true;
    }

    fn count_received(&self, bytes: usize) {
        self.thread.counters.rpc(self.rpc).received.add(1);
        self.thread.counters.received_bytes.add(bytes as u64);
    }

    fn count_sent(&self, bytes: usize) {
        self.thread.counters.rpc(self.rpc).sent.add(1);
        self.thread.counters.sent_bytes.add(bytes as u64);
    }

    /// Nobody waits for it any more. A timer is too coarse to tell.
    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Ends a call that did not get as far as its service.
    pub fn refuse(mut self, status: Status) -> Status {
        self.count_end(status.code);
        status
    }

    /// Serves a unary call. The answer is one message with gRPC's prefix. `is_gone` tells whether the caller has left.
    #[expect(clippy::manual_async_fn, reason = "an async fn would keep its arguments twice")]
    pub fn unary(
        &mut self,
        message: impl Future<Output = Result<Bytes, Error>>,
        is_gone: impl FnMut(&mut task::Context<'_>) -> bool,
    ) -> impl Future<Output = Result<Bytes, Status>> {
        async move {
            let deadline = self.deadline;
            let result = until(pin!(self.answer(message)), is_gone, deadline).await;
            self.count_answer(&result);
            result
        }
    }

    fn count_answer(&mut self, result: &Result<Bytes, Status>) {
        let elapsed = self.start.elapsed();
        self.thread.counters.request(self.rpc, self.only_reads, result.is_ok(), elapsed);
        let answer_bytes = result.as_ref().map_or(0, |message| message.len() - PREFIX_BYTES);
        self.warn_of_slow(elapsed, answer_bytes, result.as_ref().err());
        if result.is_ok() {
            self.count_sent(answer_bytes);
        }
        self.count_end(result.as_ref().err().map_or(0, |status| status.code));
    }

    /// Says that a request took long. Never what was asked or answered: both may hold what is secret.
    fn warn_of_slow(&self, took: Duration, answer_bytes: usize, failure: Option<&Status>) {
        let options = &self.thread.options;
        let error = failure.map_or("", |status| &*status.text);
        let reads = self.rpc == Rpc::Range || self.only_reads;
        if reads && took > options.warning_apply {
            self.thread.counters.slow_reads.add(1);
            let (prefix, request) = ("read-only range ", self.rpc.method());
            tracing::warn!(
                ?took, "expected-duration" = ?options.warning_apply, prefix, request, answer_bytes, error,
                "apply request took too long"
            );
        }
        if took > options.warning_unary_request && !self.waits {
            let method = format!("/{}/{}", self.rpc.service(), self.rpc.method());
            tracing::warn!("time spent" = ?took, "response type" = method, "response size" = answer_bytes, error, "request stats");
        }
    }

    async fn answer(&mut self, message: impl Future<Output = Result<Bytes, Error>>) -> Result<Bytes, Status> {
        let request = match self.request(message.await?)? {
            Incoming::Answered(message) => return Ok(message),
            Incoming::Request(request) => request,
        };
        let call = self.thread.door.call(&self.context, request);
        let reply = if self.waits { until_stopped(&self.thread, Box::pin(call)).await? } else { call.await? };
        let message = encode_reply(&reply);
        check_sendable(message.len() - PREFIX_BYTES, limits::RESPONSE_BYTES_MAX)?;
        Ok(message)
    }

    fn request(&mut self, message: Bytes) -> Result<Incoming, Status> {
        self.count_received(message.len());
        if self.is_over() {
            return Err(Error::DeadlineExceeded.into());
        }
        if self.rpc == Rpc::HealthCheck {
            if self.thread.door.condition().is_learner {
                return Err(Error::NotForLearners.into());
            }
            return health_check(frames::decode(message)?).map(Incoming::Answered);
        }
        let request = decode_request(self.rpc, message)?;
        self.waits = request.waits_for_others();
        self.only_reads = matches!(&request, Request::Txn(txn) if !crate::query::contains_write(txn));
        Ok(Incoming::Request(request))
    }

    /// Begins a streaming call; one that only the server streams reads one message of `messages`.
    pub fn stream(self, messages: MessageStream) -> Result<Serving<D>, Status> {
        if self.is_over() {
            return Err(self.refuse(Error::DeadlineExceeded.into()));
        }
        let counted = self.thread.clone();
        let rpc = self.rpc;
        let messages = messages.inspect(move |message| {
            if let Ok(message) = message {
                counted.counters.rpc(rpc).received.add(1);
                counted.counters.received_bytes.add(message.len() as u64);
            }
        });
        let sink = Sink::new(limits::STREAM_QUEUE_BYTES_MAX);
        let context = Context::clone(&self.context);
        let Some(service) = service(&self.thread.door, rpc, context, Box::pin(messages), sink.clone()) else {
            return Err(self.refuse(not_served(rpc).into()));
        };
        let mut stopping = self.thread.stopping.clone();
        let stop = Box::pin(async move {
            // It fails only when nobody is left who could stop the thread.
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let timer = self.deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into())));
        Ok(Serving { call: self, sink, service: Some(service), stop: Some(stop), timer })
    }
}

/// What a message asks for.
enum Incoming {
    /// Nothing that concerns the store.
    Answered(Bytes),
    Request(Request),
}

/// A streaming call that is served. Its transport polls it, sends what it takes, and ends or drops it.
pub(crate) struct Serving<D: FrontDoor> {
    call: Call<D>,
    sink: Sink,
    /// `None` once it has ended; likewise `stop` and `timer`.
    service: Option<LocalBoxFuture<'static, ()>>,
    stop: Option<LocalBoxFuture<'static, ()>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<D: FrontDoor> Drop for Serving<D> {
    fn drop(&mut self) {
        self.sink.close();
    }
}

impl<D: FrontDoor> Serving<D> {
    /// Gives the service its turn; ends the call when its deadline has passed or the member stops.
    pub fn poll_turn(&mut self, cx: &mut task::Context<'_>) {
        if is_done(&mut self.service, cx) {
            self.sink.finish(Ok(()));
        }
        if is_done(&mut self.stop, cx) {
            self.sink.finish(Err(Error::Stopped));
        }
        if is_done(&mut self.timer, cx) {
            self.sink.finish(Err(Error::DeadlineExceeded));
        }
    }

    /// The next message or the end, after a turn.
    pub fn take(&mut self, cx: &mut task::Context<'_>) -> Taken {
        let taken = self.sink.take(cx.waker());
        if let Taken::Message(parts) = &taken {
            self.call.count_sent(parts.iter().map(Bytes::len).sum());
        }
        taken
    }

    /// Ends the call once its end has been taken.
    pub fn end(mut self, end: Result<(), Error>) -> Status {
        let status = end.map_or_else(Status::from, |()| Status::OK);
        self.call.count_end(status.code);
        status
    }
}

/// Whether something that is still to come has come; it is forgotten then.
fn is_done<F: Future<Output = ()> + ?Sized>(slot: &mut Option<Pin<Box<F>>>, cx: &mut task::Context<'_>) -> bool {
    let done = slot.as_mut().is_some_and(|future| future.as_mut().poll(cx).is_ready());
    if done {
        *slot = None;
    }
    done
}

/// Runs a call until it ends, its deadline passes, or its caller goes. The call stays where its caller has it: moved
/// into here it would take its room twice.
async fn until<T>(
    mut work: Pin<&mut impl Future<Output = Result<T, Status>>>,
    mut is_gone: impl FnMut(&mut task::Context<'_>) -> bool,
    deadline: Option<Instant>,
) -> Result<T, Status> {
    let mut timer = None;
    poll_fn(|cx| {
        if let Poll::Ready(result) = work.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if is_gone(cx) {
            return Poll::Ready(Err(Error::Canceled.into()));
        }
        // A timer costs something: most calls end before they would need one.
        let timer = timer.get_or_insert_with(|| deadline.map(|at| Box::pin(tokio::time::sleep_until(at.into()))));
        if timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Err(Error::DeadlineExceeded.into()));
        }
        Poll::Pending
    })
    .await
}

/// Answers a call that may wait for other clients, unless the member stops meanwhile.
async fn until_stopped<D>(
    thread: &Thread<D>,
    call: impl Future<Output = Result<Reply, Error>>,
) -> Result<Reply, Error> {
    let mut stopping = thread.stopping.clone();
    tokio::select! {
        biased;
        answer = call => answer,
        _ = stopping.wait_for(|stop| *stop) => Err(Error::Stopped),
    }
}

/// A method that is known and not served.
fn not_served(rpc: Rpc) -> Error {
    Error::UnknownMethod(format!("/{}/{}", rpc.service(), rpc.method()))
}

fn decode_request(rpc: Rpc, message: Bytes) -> Result<Request, Error> {
    Ok(match rpc {
        Rpc::Range => Request::Range(frames::decode(message)?),
        Rpc::Put => Request::Put(frames::decode(message)?),
        Rpc::DeleteRange => Request::DeleteRange(frames::decode(message)?),
        Rpc::Txn => Request::Txn(frames::decode(message)?),
        Rpc::Compact => Request::Compact(frames::decode(message)?),
        Rpc::LeaseGrant => Request::LeaseGrant(frames::decode(message)?),
        Rpc::LeaseRevoke => Request::LeaseRevoke(frames::decode(message)?),
        Rpc::LeaseTimeToLive => Request::LeaseTimeToLive(frames::decode(message)?),
        Rpc::LeaseLeases => Request::LeaseLeases(frames::decode(message)?),
        Rpc::MemberAdd => Request::MemberAdd(frames::decode(message)?),
        Rpc::MemberRemove => Request::MemberRemove(frames::decode(message)?),
        Rpc::MemberUpdate => Request::MemberUpdate(frames::decode(message)?),
        Rpc::MemberPromote => Request::MemberPromote(frames::decode(message)?),
        Rpc::MemberList => Request::MemberList(frames::decode(message)?),
        Rpc::Alarm => Request::Alarm(frames::decode(message)?),
        Rpc::Status => Request::Status(frames::decode(message)?),
        Rpc::Defragment => Request::Defragment(frames::decode(message)?),
        Rpc::Hash => Request::Hash(frames::decode(message)?),
        Rpc::HashKv => Request::HashKv(frames::decode(message)?),
        Rpc::MoveLeader => Request::MoveLeader(frames::decode(message)?),
        Rpc::Downgrade => Request::Downgrade(frames::decode(message)?),
        Rpc::Lock => Request::Lock(frames::decode(message)?),
        Rpc::Unlock => Request::Unlock(frames::decode(message)?),
        Rpc::Campaign => Request::Campaign(frames::decode(message)?),
        Rpc::Proclaim => Request::Proclaim(frames::decode(message)?),
        Rpc::Leader => Request::Leader(frames::decode(message)?),
        Rpc::Resign => Request::Resign(frames::decode(message)?),
        Rpc::AuthEnable => Request::AuthEnable(frames::decode(message)?),
        Rpc::AuthDisable => Request::AuthDisable(frames::decode(message)?),
        Rpc::AuthStatus => Request::AuthStatus(frames::decode(message)?),
        Rpc::Authenticate => Request::Authenticate(frames::decode(message)?),
        Rpc::UserAdd => Request::UserAdd(frames::decode(message)?),
        Rpc::UserGet => Request::UserGet(frames::decode(message)?),
        Rpc::UserList => Request::UserList(frames::decode(message)?),
        Rpc::UserDelete => Request::UserDelete(frames::decode(message)?),
        Rpc::UserChangePassword => Request::UserChangePassword(frames::decode(message)?),
        Rpc::UserGrantRole => Request::UserGrantRole(frames::decode(message)?),
        Rpc::UserRevokeRole => Request::UserRevokeRole(frames::decode(message)?),
        Rpc::RoleAdd => Request::RoleAdd(frames::decode(message)?),
        Rpc::RoleGet => Request::RoleGet(frames::decode(message)?),
        Rpc::RoleList => Request::RoleList(frames::decode(message)?),
        Rpc::RoleDelete => Request::RoleDelete(frames::decode(message)?),
        Rpc::RoleGrantPermission => Request::RoleGrantPermission(frames::decode(message)?),
        Rpc::RoleRevokePermission => Request::RoleRevokePermission(frames::decode(message)?),
        _ => return Err(not_served(rpc)),
    })
}

fn encode_reply(reply: &Reply) -> Bytes {
    match reply {
        Reply::Range(message) => frames::encode(message),
        Reply::Put(message) => frames::encode(message),
        Reply::DeleteRange(message) => frames::encode(message),
        Reply::Txn(message) => frames::encode(message),
        Reply::Compact(message) => frames::encode(message),
        Reply::LeaseGrant(message) => frames::encode(message),
        Reply::LeaseRevoke(message) => frames::encode(message),
        Reply::LeaseTimeToLive(message) => frames::encode(message),
        Reply::LeaseLeases(message) => frames::encode(message),
        Reply::MemberAdd(message) => frames::encode(message),
        Reply::MemberRemove(message) => frames::encode(message),
        Reply::MemberUpdate(message) => frames::encode(message),
        Reply::MemberPromote(message) => frames::encode(message),
        Reply::MemberList(message) => frames::encode(message),
        Reply::Alarm(message) => frames::encode(message),
        Reply::Status(message) => frames::encode(message),
        Reply::Defragment(message) => frames::encode(message),
        Reply::Hash(message) => frames::encode(message),
        Reply::HashKv(message) => frames::encode(message),
        Reply::MoveLeader(message) => frames::encode(message),
        Reply::Downgrade(message) => frames::encode(message),
        Reply::Lock(message) => frames::encode(message),
        Reply::Unlock(message) => frames::encode(message),
        Reply::Campaign(message) => frames::encode(message),
        Reply::Proclaim(message) => frames::encode(message),
        Reply::Leader(message) => frames::encode(message),
        Reply::Resign(message) => frames::encode(message),
        Reply::AuthEnable(message) => frames::encode(message),
        Reply::AuthDisable(message) => frames::encode(message),
        Reply::AuthStatus(message) => frames::encode(message),
        Reply::Authenticate(message) => frames::encode(message),
        Reply::UserAdd(message) => frames::encode(message),
        Reply::UserGet(message) => frames::encode(message),
        Reply::UserList(message) => frames::encode(message),
        Reply::UserDelete(message) => frames::encode(message),
        Reply::UserChangePassword(message) => frames::encode(message),
        Reply::UserGrantRole(message) => frames::encode(message),
        Reply::UserRevokeRole(message) => frames::encode(message),
        Reply::RoleAdd(message) => frames::encode(message),
        Reply::RoleGet(message) => frames::encode(message),
        Reply::RoleList(message) => frames::encode(message),
        Reply::RoleDelete(message) => frames::encode(message),
        Reply::RoleGrantPermission(message) => frames::encode(message),
        Reply::RoleRevokePermission(message) => frames::encode(message),
    }
}

/// What serves a streaming method; `None` if nothing does.
fn service<D: FrontDoor>(
    door: &Rc<D>,
    rpc: Rpc,
    context: Context,
    messages: MessageStream,
    sink: Sink,
) -> Option<LocalBoxFuture<'static, ()>> {
    let door = door.clone();
    Some(match rpc {
        Rpc::Watch => Box::pin(async move { door.watch(context, decoded(messages), sink).await }),
        Rpc::LeaseKeepAlive => Box::pin(async move { door.lease_keep_alive(context, decoded(messages), sink).await }),
        Rpc::RangeStream => Box::pin(async move {
            match only(messages).await {
                Ok(request) => door.stream(context, StreamRequest::RangeStream(request), sink).await,
                Err(error) => sink.finish(Err(error)),
            }
        }),
        Rpc::Observe => Box::pin(async move {
            match only(messages).await {
                Ok(request) => door.stream(context, StreamRequest::Observe(request), sink).await,
                Err(error) => sink.finish(Err(error)),
            }
        }),
        Rpc::Snapshot => Box::pin(async move {
            match only(messages).await {
                Ok(request) => door.stream(context, StreamRequest::Snapshot(request), sink).await,
                Err(error) => sink.finish(Err(error)),
            }
        }),
        Rpc::ReflectionV1 | Rpc::ReflectionV1Alpha => {
            Box::pin(async move { reflection::serve(decoded(messages), sink).await })
        }
        Rpc::HealthWatch => Box::pin(async move {
            match only(messages).await {
                Ok(request) => health_watch(&request, &sink).await,
                Err(error) => sink.finish(Err(error)),
            }
        }),
        _ => return None,
    })
}

/// The messages of a call on which the caller streams.
fn decoded<M: Message + Default + 'static>(messages: MessageStream) -> RequestStream<M> {
    messages.map(|message| message.and_then(frames::decode)).boxed_local()
}

/// The message of a call on which only the server streams.
async fn only<M: Message + Default>(mut messages: MessageStream) -> Result<M, Error> {
    // A transport ends this stream early only with an error.
    messages.next().await.unwrap_or(Err(Error::Canceled)).and_then(frames::decode)
}

/// Receivers refuse what is larger, and the whole connection with it.
fn check_sendable(bytes: usize, bytes_max: usize) -> Result<(), Error> {
    if bytes > bytes_max { Err(Error::ResponseTooLarge(bytes, bytes_max)) } else { Ok(()) }
}

/// Only the empty service name is registered; it serves as long as the port does.
fn health_check(request: health::HealthCheckRequest) -> Result<Bytes, Status> {
    if !request.service.is_empty() {
        return Err(Status::new(Code::NotFound, "unknown service"));
    }
    let status = health::health_check_response::ServingStatus::Serving as i32;
    Ok(frames::encode(&health::HealthCheckResponse { status }))
}

/// Says how things are and stays open: they do not change while the port serves.
async fn health_watch(request: &health::HealthCheckRequest, sink: &Sink) {
    use health::health_check_response::ServingStatus;
    let status = if request.service.is_empty() { ServingStatus::Serving } else { ServingStatus::ServiceUnknown };
    let response = health::HealthCheckResponse { status: status as i32 };
    sink.push(MessageParts::from_iter([response.encode_to_vec().into()]));
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_above_what_receivers_accept_is_not_sent() {
        let max = limits::RESPONSE_BYTES_MAX;
        assert_eq!(check_sendable(max, max), Ok(()));
        let status = Status::from(check_sendable(max + 1, max).expect_err("too large"));
        assert_eq!(status.code, 8);
        assert_eq!(status.text, "grpc: trying to send message larger than max (2147483648 vs. 2147483647)");
    }
}
