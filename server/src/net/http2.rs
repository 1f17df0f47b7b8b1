//! Plain HTTP over one HTTP/2 stream: adapts h2's streams to what the HTTP routes take and give. Knows no route.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ::http::{Request, Response, header};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use hyper::body::{Body, Frame};

use super::connection::Caller;
use super::{FrontDoor, Thread, http};

/// Serves one stream.
pub(crate) async fn handle<D: FrontDoor>(
    thread: Rc<Thread<D>>,
    caller: Rc<Caller>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let request = request.map(Received);
    let mut answer = pin!(http::respond(&thread, &caller, None, request));
    let response = poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending if respond.poll_reset(cx).is_ready() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    // Nobody is left to be told of a failure: the other end has gone.
    if let Some(response) = response.await {
        let _ = send(respond, response).await;
    }
}

/// A body as h2 receives it.
struct Received(RecvStream);

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(data) = ready!(self.0.poll_data(cx)?) else { return Poll::Ready(None) };
        // Fails only on a closed stream, whose end or error the next poll returns.
        let _ = self.0.flow_control().release_capacity(data.len());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

async fn send<B: Body<Data = Bytes>>(mut respond: SendResponse<Bytes>, response: Response<B>) -> Result<(), h2::Error> {
    let (mut head, body) = response.into_parts();
    // HTTP/2 has no such headers.
    for name in [header::CONNECTION, header::TRANSFER_ENCODING] {
        head.headers.remove(name);
    }
    if let Some(length) = body.size_hint().exact() {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let is_empty = body.is_end_stream();
    let mut stream = respond.send_response(Response::from_parts(head, ()), is_empty)?;
    if is_empty {
        return Ok(());
    }
    let mut body = pin!(body);
    loop {
        let frame = poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Pending if stream.poll_reset(cx).is_ready() => Poll::Ready(None),
            other => other.map(Some),
        });
        match frame.await {
            Some(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    send_data(&mut stream, data).await?;
                }
            }
            Some(None) => return stream.send_data(Bytes::new(), true),
            Some(Some(Err(_))) => {
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => return Ok(()),
        }
    }
}

/// Sends no faster than the other end reads.
async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(capacity) => capacity?,
                None => return Ok(()),
            };
        }
        let length = stream.capacity().min(data.len());
        stream.send_data(data.split_to(length), false)?;
    }
    Ok(())
}
