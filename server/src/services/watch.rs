//! The watch service: one call to one stream of the engine. Reads requests no faster than the client reads answers.

use std::borrow::Cow;
use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::watch_request::RequestUnion;
use futures_util::future::{LocalBoxFuture, ready};
use futures_util::{Stream, StreamExt};
use rand::RngExt;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::error::Error;
use crate::request::{Context, Sink};
use crate::watch::{Engine, StreamId};

/// Why a caller may not watch a range: the text of `cancel_reason`, see `etcd-contract/errors.md` 3.7.
pub type Refusal = Cow<'static, str>;

/// Decides whether the caller may read what a create request names. It may have to wait for the caller's token.
pub type Permission =
    dyn for<'a> Fn(&'a Context, &'a pb::WatchCreateRequest) -> LocalBoxFuture<'a, Result<(), Refusal>>;

/// Serves one call for whom everything is permitted.
pub async fn serve(
    engine: Rc<RefCell<Engine>>,
    context: Context,
    requests: impl Stream<Item = Result<pb::WatchRequest, Error>>,
    sink: Sink,
) {
    serve_permitted(engine, context, requests, sink, Rc::new(|_, _| Box::pin(ready(Ok(()))))).await;
}

/// Serves one call. Ends when the transport has gone, when a request cannot be read, or when the engine ends the
/// stream; not when the client has sent its last request.
pub async fn serve_permitted(
    engine: Rc<RefCell<Engine>>,
    context: Context,
    requests: impl Stream<Item = Result<pb::WatchRequest, Error>>,
    sink: Sink,
    permission: Rc<Permission>,
) {
    let call = Call::open(engine, &context, sink);
    let Some(changed) = call.engine.borrow().changed(call.stream) else { return };
    let mut requests = pin!(requests);
    let mut half_closed = false;
    let mut progress = progress_ticks(call.engine.borrow().progress_interval());
    while !call.sink.is_closed() {
        let reads = !half_closed && call.sink.credit() > 0;
        tokio::select! {
            request = requests.next(), if reads => match request {
                Some(Ok(request)) => call.handle(&context, request, &*permission).await,
                Some(Err(error)) => call.sink.finish(Err(error)),
                None => half_closed = true,
            },
            () = changed.notified() => {}
            _ = progress.tick() => call.engine.borrow_mut().on_progress_timeout(call.stream),
        }
    }
}

/// A stream of the engine, closed when this goes.
struct Call {
    engine: Rc<RefCell<Engine>>,
    stream: StreamId,
    sink: Sink,
}

impl Call {
    fn open(engine: Rc<RefCell<Engine>>, context: &Context, sink: Sink) -> Self {
        let stream = engine.borrow_mut().open(sink.clone());
        if context.requires_leader {
            engine.borrow_mut().require_leader(stream);
        }
        Self { engine, stream, sink }
    }

    async fn handle(&self, context: &Context, request: pb::WatchRequest, permission: &Permission) {
        // A start before all revisions is refused by the engine, whoever asks.
        if let Some(RequestUnion::CreateRequest(create)) = &request.request_union
            && create.start_revision >= 0
            && let Err(refusal) = permission(context, create).await
        {
            return self.engine.borrow_mut().refuse(self.stream, refusal);
        }
        self.engine.borrow_mut().handle_request(self.stream, request);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // The engine never runs a call's future, so that nobody else has borrowed it now.
        self.engine.borrow_mut().close(self.stream);
    }
}

/// Ticks at the progress interval plus up to a tenth, so that streams opened together do not speak together.
fn progress_ticks(interval: Duration) -> Interval {
    let interval = interval.max(PROGRESS_INTERVAL_MIN);
    let period = interval.mul_f64(1.0 + rand::rng().random_range(0.0..0.1));
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Shorter intervals are raised to it, as in etcd.
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Waker;

    use bytes::Bytes;
    use daymark_storage::backend::mem::MemBackend;
    use daymark_storage::mvcc::Keyspace;
    use futures_util::poll;
    use prost::Message;
    use tokio::sync::mpsc;

    use super::*;
    use crate::mailbox::Mailbox;
    use crate::request::Taken;
    use crate::watch::{Options, WatchTurn};

    type Requests = mpsc::UnboundedSender<Result<pb::WatchRequest, Error>>;

    fn engine() -> Rc<RefCell<Engine>> {
        let (keyspace, _) = Keyspace::open(MemBackend::new()).expect("an empty keyspace");
        let options =
            Options { ring_bytes_max: 1000, fragment_bytes: 1000, progress_interval: Duration::from_secs(600) };
        let pool = Rc::new(tokio::runtime::Handle::current());
        Engine::new(keyspace, Mailbox::new(1000), 1, 2, || 3, options, pool)
    }

    fn requests() -> (Requests, impl Stream<Item = Result<pb::WatchRequest, Error>>) {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        (sender, futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)))
    }

    fn create() -> pb::WatchRequest {
        let create = pb::WatchCreateRequest { key: Bytes::from_static(b"a"), ..Default::default() };
        pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
    }

    fn read(sink: &Sink) -> Option<pb::WatchResponse> {
        match sink.take(Waker::noop()) {
            Taken::Message(parts) => Some(pb::WatchResponse::decode(&parts.concat()[..]).expect("a response")),
            Taken::End(_) | Taken::Pending => None,
        }
    }

    /// Lets the call run until it waits; true if it has ended.
    async fn runs(call: &mut Pin<&mut impl Future<Output = ()>>) -> bool {
        // Twice: the first poll may end with a branch that asks to be polled again.
        poll!(&mut *call).is_ready() || poll!(&mut *call).is_ready()
    }

    fn block_on(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(test);
    }

    #[test]
    fn half_close_leaves_the_stream_open() {
        block_on(async {
            let (engine, sink, (sender, stream)) = (engine(), Sink::new(1000), requests());
            let mut call = pin!(serve(engine.clone(), Context::default(), stream, sink.clone()));
            sender.send(Ok(create())).expect("the call listens");
            drop(sender);
            assert!(!runs(&mut call).await && read(&sink).is_some_and(|response| response.created));
            assert_eq!((sink.is_closed(), engine.borrow().stats().watchers), (false, 1));
            sink.close();
            assert!(runs(&mut call).await, "the transport has gone");
        });
    }

    #[test]
    fn a_dropped_call_leaves_nothing_behind() {
        block_on(async {
            let (engine, sink, (sender, stream)) = (engine(), Sink::new(1000), requests());
            {
                let mut call = pin!(serve(engine.clone(), Context::default(), stream, sink.clone()));
                sender.send(Ok(create())).expect("the call listens");
                assert!(!runs(&mut call).await);
                assert_eq!(engine.borrow().stats().watchers, 1);
            }
            let stats = engine.borrow().stats();
            assert_eq!((stats.streams, stats.watchers, stats.groups), (0, 0, 0));
        });
    }

    #[test]
    fn a_client_that_does_not_read_is_not_read() {
        block_on(async {
            let (engine, sink, (sender, stream)) = (engine(), Sink::new(1), requests());
            let mut call = pin!(serve(engine.clone(), Context::default(), stream, sink.clone()));
            for _ in 0..3 {
                sender.send(Ok(create())).expect("the call listens");
            }
            for watchers in 1..=3 {
                assert!(!runs(&mut call).await);
                assert_eq!(engine.borrow().stats().watchers, watchers);
                assert!(read(&sink).is_some() && read(&sink).is_none());
            }
        });
    }

    #[test]
    fn a_watch_without_permission_is_refused_in_band() {
        block_on(async {
            let (engine, sink, (sender, stream)) = (engine(), Sink::new(1000), requests());
            let reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
            let forbid: Rc<Permission> = Rc::new(move |_, _| Box::pin(ready(Err(Refusal::from(reason)))));
            let context = Context::default();
            let mut call = pin!(serve_permitted(engine.clone(), context, stream, sink.clone(), forbid));
            sender.send(Ok(create())).expect("the call listens");
            assert!(!runs(&mut call).await);
            let refused = read(&sink).expect("an answer");
            assert!(refused.created && refused.canceled && refused.watch_id == -1);
            assert_eq!((&refused.cancel_reason[..], engine.borrow().stats().watchers), (reason, 0));
        });
    }

    #[test]
    fn a_request_that_cannot_be_read_and_the_loss_of_the_leader_end_the_call() {
        block_on(async {
            let (engine, sink, (sender, stream)) = (engine(), Sink::new(1000), requests());
            let mut call = pin!(serve(engine.clone(), Context::default(), stream, sink.clone()));
            sender.send(Err(Error::Malformed("bits".into()))).expect("the call listens");
            assert!(runs(&mut call).await);
            let end = sink.take(Waker::noop());
            assert!(matches!(end, Taken::End(Err(Error::Malformed(_)))));

            let (sink, (_sender, stream)) = (Sink::new(1000), requests());
            let context = Context { requires_leader: true, ..Context::default() };
            let mut call = pin!(serve(engine.clone(), context, stream, sink.clone()));
            assert!(!runs(&mut call).await);
            engine.borrow_mut().cut_leaderless();
            engine.borrow_mut().turn();
            assert!(runs(&mut call).await);
            assert!(matches!(sink.take(Waker::noop()), Taken::End(Err(Error::NoLeader))));
        });
    }
}
