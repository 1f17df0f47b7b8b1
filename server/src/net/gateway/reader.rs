//! The messages of a gateway request, read from its body document by document. What a body may take is bounded: its
//! documents in size, the time for which one may trickle in, and what all bodies of a net thread hold together.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{Sleep, sleep};

use super::super::body::RequestBody;
use super::super::dispatch::Status;
use super::document::{Bad, Documents};
use super::parse::{Refusal, parse};
use super::schema::MessageId;
use crate::error::{Code, Error};
use crate::limits;

/// Reads the messages of one body.
pub(crate) struct Reader {
    body: RequestBody,
    documents: Documents,
    message: MessageId,
    message_bytes_max: usize,
    held: Held,
    waits_for_end: bool,
    /// How long a document may take.
    timeout: Duration,
    has_ended: bool,
}

/// Why there is no message.
enum Fault {
    /// The caller has gone.
    Gone,
    Refused(Status),
}

impl Fault {
    fn status(self) -> Status {
        match self {
            Self::Gone => Error::Canceled.into(),
            Self::Refused(status) => status,
        }
    }
}

impl Reader {
    /// Reads messages of that type; `held_bytes` counts what all readers of the thread hold. Whoever wants one message
    /// may wait for the end of the body behind it.
    pub fn new(
        body: RequestBody,
        message: MessageId,
        message_bytes_max: usize,
        held_bytes: Rc<Cell<usize>>,
        waits_for_end: bool,
    ) -> Self {
        let documents = Documents::new(message_bytes_max.saturating_mul(limits::JSON_BYTES_PER_MESSAGE_BYTE));
        let held = Held { all: held_bytes, own: 0 };
        let timeout = limits::BODY_TIMEOUT;
        Self { body, documents, message, message_bytes_max, held, waits_for_end, timeout, has_ended: false }
    }

    /// The one message that a call takes: an empty one if there is no document, the first one if there are several.
    pub async fn only(mut self) -> Result<Bytes, Status> {
        let mut timer = Box::pin(sleep(self.timeout));
        let message = self.next(&mut Some(timer.as_mut())).await.map_err(Fault::status)?.unwrap_or_default();
        // What comes behind it means nothing, but the connection is of no use before it has been read.
        while self.waits_for_end && !self.has_ended {
            self.documents = Documents::new(0);
            self.held.set(0);
            if self.more(&mut Some(timer.as_mut())).await.is_err() {
                break;
            }
        }
        Ok(message)
    }

    /// All messages. One that is none ends the caller's half of the stream in silence, as etcd's gateway does.
    pub fn messages(self) -> impl Stream<Item = Result<Bytes, Error>> + 'static {
        stream::unfold(Some(self), |reader| async {
            let mut reader = reader?;
            match reader.next(&mut None).await {
                Ok(Some(message)) => Some((Ok(message), Some(reader))),
                Ok(None) => None,
                Err(Fault::Gone) => Some((Err(Error::Canceled), None)),
                Err(Fault::Refused(status)) => {
                    tracing::debug!(reason = &*status.text, "a gateway stream takes no more requests");
                    None
                }
            }
        })
    }

    /// The next message; `None` at the end of the body. Without a timer, the time of each document is bounded from its
    /// first byte.
    async fn next(&mut self, timer: &mut Option<Pin<&mut Sleep>>) -> Result<Option<Bytes>, Fault> {
        let mut own_timer = None;
        loop {
            match self.documents.next() {
                Ok(Some(document)) => return self.parse(document).await.map(Some).map_err(Fault::Refused),
                Ok(None) if self.has_ended => return Ok(None),
                Ok(None) => {}
                Err(Bad::Json(text)) => return Err(Fault::Refused(Status::new(Code::InvalidArgument, text))),
                Err(Bad::TooLarge(error)) => return Err(Fault::Refused(error.into())),
            }
            if timer.is_some() {
                self.more(timer).await?;
            } else if self.documents.is_within() {
                let own = own_timer.get_or_insert_with(|| Box::pin(sleep(self.timeout)));
                self.more(&mut Some(own.as_mut())).await?;
            } else {
                self.more(&mut None).await?;
            }
        }
    }

    /// Takes what comes next from the body.
    async fn more(&mut self, timer: &mut Option<Pin<&mut Sleep>>) -> Result<(), Fault> {
        let chunk = poll_fn(|cx| match self.body.poll_next_unpin(cx) {
            Poll::Pending if timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) => {
                Poll::Ready(Some(Err(Error::SlowBody)))
            }
            other => other,
        });
        match chunk.await {
            Some(Ok(chunk)) => {
                self.documents.push(&chunk);
                let held = self.documents.held_bytes();
                if !self.held.set(held) {
                    return Err(Fault::Refused(Error::TooManyRequests.into()));
                }
            }
            Some(Err(Error::Canceled)) => return Err(Fault::Gone),
            Some(Err(error)) => return Err(Fault::Refused(error.into())),
            None => {
                self.has_ended = true;
                self.documents.end();
            }
        }
        Ok(())
    }

    async fn parse(&self, document: Bytes) -> Result<Bytes, Status> {
        let (message, bytes_max) = (self.message, self.message_bytes_max);
        let result = if document.len() <= limits::JSON_INLINE_BYTES_MAX {
            parse(&document, message, bytes_max)
        } else {
            // It would keep the other calls of this thread waiting.
            let work = tokio::task::spawn_blocking(move || parse(&document, message, bytes_max));
            work.await.map_err(|_| Status::from(Error::Stopped))?
        };
        match result {
            Ok(message) => Ok(message.into()),
            Err(Refusal::Unfit(text)) => Err(Status::new(Code::InvalidArgument, text)),
            Err(Refusal::Bound(error)) => Err(error.into()),
        }
    }
}

/// What one reader holds, as part of what all of the thread hold.
struct Held {
    all: Rc<Cell<usize>>,
    own: usize,
}

impl Held {
    /// Changes what it holds; false if that is too much for all.
    fn set(&mut self, bytes: usize) -> bool {
        let all = self.all.get() - self.own + bytes;
        self.all.set(all);
        self.own = bytes;
        all <= limits::BODIES_BYTES_MAX
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.own);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::super::schema::Schema;
    use super::*;

    fn reader(pieces: Vec<Result<&'static str, Error>>, held: &Rc<Cell<usize>>) -> Reader {
        let body = stream::iter(pieces).map(|piece| piece.map(Bytes::from)).boxed_local();
        Reader::new(body, Schema::get().id_of("etcdserverpb.LeaseKeepAliveRequest"), 100, held.clone(), true)
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(future)
    }

    #[test]
    fn one_message_is_taken_and_the_rest_is_passed_over() {
        let held = Rc::new(Cell::new(0));
        for (pieces, wanted) in [
            (vec![], &[][..]),
            (vec![Ok(" \n")], &[]),
            (vec![Ok("{\"I"), Ok("D\":5}"), Ok(" garbage")], &[8, 5]),
            (vec![Ok("{\"ID\":5}{\"ID\":6}"), Ok("x")], &[8, 5]),
        ] {
            assert_eq!(run(reader(pieces, &held).only()).expect("a message"), wanted);
        }
        let status = run(reader(vec![Ok("{\"ID\""), Err(Error::Canceled)], &held).only()).expect_err("gone");
        assert_eq!(status, Error::Canceled.into());
        assert_eq!(held.get(), 0, "whoever is done holds nothing");
    }

    #[test]
    fn a_stream_of_messages_ends_at_what_is_none() {
        let held = Rc::new(Cell::new(0));
        let pieces = vec![Ok("{\"ID\":5} {\"ID"), Ok("\":6} {\"ID\":true}"), Ok("{\"ID\":7}")];
        let messages: Vec<_> = run(reader(pieces, &held).messages().collect());
        assert_eq!(messages, [Ok(Bytes::from_static(&[8, 5])), Ok(Bytes::from_static(&[8, 6]))]);
    }

    #[test]
    fn a_body_must_come_in_time() {
        let held = Rc::new(Cell::new(0));
        let slow = || {
            let body = stream::iter([Ok(Bytes::from("{"))]).chain(stream::pending()).boxed_local();
            Reader { timeout: Duration::from_millis(30), ..Reader::new(body, 0, 100, held.clone(), true) }
        };
        assert_eq!(run(slow().only()), Err(Error::SlowBody.into()));
        assert_eq!(run(slow().messages().count()), 0);
        let framed = |waits| {
            let body = stream::iter([Ok(Bytes::from("{}"))]).chain(stream::pending()).boxed_local();
            Reader::new(body, 0, 100, Rc::default(), waits)
        };
        assert_eq!(run(async { framed(false).only().now_or_never() }), Some(Ok(Bytes::new())));
        assert_eq!(run(async { framed(true).only().now_or_never() }), None);
    }

    #[test]
    fn all_bodies_together_are_bounded() {
        let held = Rc::new(Cell::new(limits::BODIES_BYTES_MAX - 4));
        assert!(run(reader(vec![Ok("{} ")], &held).only()).is_ok());
        let status = run(reader(vec![Ok("{\"ID\":"), Ok("5}")], &held).only()).expect_err("too much");
        assert_eq!(status, Error::TooManyRequests.into());
        assert_eq!(held.get(), limits::BODIES_BYTES_MAX - 4);
    }
}
