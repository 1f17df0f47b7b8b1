//! Plain HTTP over one HTTP/2 stream: adapts streams to what the HTTP routes take and give. Knows no route.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ::http::{Request, Response, header};
use bytes::Bytes;
use hyper::body::Frame;

use super::connection::Caller;
use super::halves::{Body, Respond, Sending};
use super::{FrontDoor, Thread, http};
use crate::error::Error;

/// Serves one stream.
pub(crate) async fn handle<D: FrontDoor>(
    thread: Rc<Thread<D>>,
    caller: Rc<Caller>,
    request: Request<Body>,
    mut respond: Respond,
) {
    let request = request.map(Received);
    let mut answer = pin!(http::respond(&thread, &caller, None, request));
    let response = poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending if respond.poll_gone(cx) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    // Nobody is left to be told of a failure: the other end has gone.
    if let Some(response) = response.await {
        let _ = send(respond, response).await;
    }
}

/// A body as it is received.
struct Received(Body);

impl hyper::body::Body for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let data = ready!(self.0.poll_data(cx));
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

/// `None` if the other end has gone before all was sent.
async fn send<B: hyper::body::Body<Data = Bytes>>(respond: Respond, response: Response<B>) -> Option<()> {
    let (mut head, body) = response.into_parts();
    // HTTP/2 has no such headers.
    for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
        head.headers.remove(name);
    }
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let is_empty = body.is_end_stream();
    let mut stream = respond.send_head(Response::from_parts(head, ()), is_empty)?;
    if is_empty {
        return Some(());
    }
    let mut body = pin!(body);
    loop {
        let frame = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Pending if stream.poll_gone(cx) => Poll::Ready(None),
            other => other.map(Some),
        });
        match frame.await? {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    send_data(&mut stream, data).await?;
                }
            }
            Some(Err(_)) => {
                stream.fail();
                return None;
            }
            None => {
                stream.send_data(Bytes::new(), true);
                return Some(());
            }
        }
    }
}

/// Sends no faster than the other end reads.
async fn send_data(stream: &mut Sending, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        let length = poll_fn(|cx| stream.poll_room(cx, data.len())).await?;
        if !stream.send_data(data.split_to(length), false) {
            return None;
        }
    }
    Some(())
}
