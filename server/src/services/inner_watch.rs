//! A watch as another service of this thread uses it: one range, its responses decoded. Goes through the engine like a
//! client's stream, so that live delivery, catching up and compaction are one piece of code. Asks for no permission: who
//! opens it has just been allowed to read the range.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::watch_request::RequestUnion;
use prost::Message;

use crate::limits;
use crate::request::{Sink, Taken};
use crate::watch::{Engine, StreamId};

/// One watcher on a stream of its own, gone when this goes.
pub struct InnerWatch {
    engine: Rc<RefCell<Engine>>,
    stream: StreamId,
    sink: Sink,
}

impl InnerWatch {
    /// Watches what `create` names.
    pub fn open(engine: Rc<RefCell<Engine>>, create: pb::WatchCreateRequest) -> Self {
        let sink = Sink::new(limits::INNER_WATCH_BYTES_MAX);
        let stream = engine.borrow_mut().open(sink.clone());
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        engine.borrow_mut().handle_request(stream, request);
        Self { engine, stream, sink }
    }

    /// The next response that holds events; none once the watch has ended, be it because its history was compacted.
    pub async fn next(&self) -> Option<pb::WatchResponse> {
        loop {
            let response = pb::WatchResponse::decode(self.take().await?).ok()?;
            if response.canceled {
                return None;
            }
            if !response.events.is_empty() {
                return Some(response);
            }
        }
    }

    async fn take(&self) -> Option<Bytes> {
        poll_fn(|context| match self.sink.take(context.waker()) {
            Taken::Message(parts) => Poll::Ready(Some(parts.concat().into())),
            Taken::End(_) => Poll::Ready(None),
            Taken::Pending => Poll::Pending,
        })
        .await
    }
}

impl Drop for InnerWatch {
    fn drop(&mut self) {
        // The engine never runs the future that holds this, so that nobody else has borrowed it now.
        self.engine.borrow_mut().close(self.stream);
    }
}
