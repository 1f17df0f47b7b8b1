//! The two halves of one HTTP/2 stream, whichever of the two servers carries it: the body of a request, and the answer.
//! Knows neither gRPC nor routes.

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ::http::{HeaderMap, Response};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};

use super::lean::{self, Pipe, put_field};
use crate::error::Error;

/// The body of a request.
pub(crate) enum Body {
    H2(RecvStream),
    Lean(Rc<Pipe>),
}

impl Body {
    /// The next piece, whose room the other end may use again. The only fault is that the other end has gone.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let body = match self {
            Self::H2(body) => body,
            Self::Lean(pipe) => return pipe.poll_data(cx),
        };
        let data = ready!(body.poll_data(cx));
        if let Some(Ok(data)) = &data {
            // Fails only on a closed stream, whose end or error the next poll returns.
            let _ = body.flow_control().release_capacity(data.len());
        }
        Poll::Ready(data.map(|data| data.map_err(|_| Error::Canceled)))
    }

    /// Whether all of it has been taken.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::H2(body) => body.is_end_stream(),
            Self::Lean(pipe) => pipe.is_end_stream(),
        }
    }
}

/// What answers a request.
pub(crate) enum Respond {
    H2(SendResponse<Bytes>),
    Lean(Answering),
}

impl Respond {
    /// Whether the other end has gone; if not, the task is woken when it goes.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::H2(respond) => respond.poll_reset(cx).is_ready(),
            Self::Lean(answering) => answering.pipe.poll_gone(cx),
        }
    }

    /// Sends a head, after which the body may be sent unless it `ends` the answer; `None` if the other end has gone.
    pub fn send_head(self, head: Response<()>, ends: bool) -> Option<Sending> {
        match self {
            Self::H2(mut respond) => respond.send_response(head, ends).ok().map(Sending::H2),
            Self::Lean(mut answering) => {
                let mut fields = Vec::new();
                put_field(&mut fields, ":status", head.status().as_str().as_bytes());
                put_fields(&mut fields, head.headers());
                answering.pipe.send_head(&fields, ends);
                answering.has_ended |= ends;
                Some(Sending::Lean(answering))
            }
        }
    }
}

/// The body of an answer.
pub(crate) enum Sending {
    H2(SendStream<Bytes>),
    Lean(Answering),
}

impl Sending {
    /// Whether the other end has gone; if not, the task is woken when it goes.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::H2(stream) => stream.poll_reset(cx).is_ready(),
            Self::Lean(answering) => answering.pipe.poll_gone(cx),
        }
    }

    /// Waits until some of `wanted` bytes can be sent, and says how many; `None` when the other end has gone.
    pub fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Option<usize>> {
        let stream = match self {
            Self::H2(stream) => stream,
            Self::Lean(answering) => return answering.pipe.poll_room(cx).map(|room| room.map(|()| wanted)),
        };
        // Asked for only while there is something to send: it is taken from the whole connection's.
        stream.reserve_capacity(wanted);
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                _ => return Poll::Ready(None),
            }
        }
        Poll::Ready(Some(stream.capacity().min(wanted)))
    }

    /// Sends a piece, and the end if it `ends` there. False if the other end has gone.
    pub fn send_data(&mut self, data: Bytes, ends: bool) -> bool {
        match self {
            Self::H2(stream) => stream.send_data(data, ends).is_ok(),
            Self::Lean(answering) => {
                answering.pipe.send_data(data, ends);
                answering.has_ended |= ends;
                true
            }
        }
    }

    /// Ends the answer with trailers.
    pub fn send_trailers(mut self, trailers: HeaderMap) {
        match &mut self {
            // Fails only if the other end has gone meanwhile.
            Self::H2(stream) => drop(stream.send_trailers(trailers)),
            Self::Lean(answering) => {
                let mut fields = Vec::new();
                put_fields(&mut fields, &trailers);
                answering.pipe.send_trailers(fields);
                answering.has_ended = true;
            }
        }
    }

    /// Gives the answer up because of a failure.
    pub fn fail(mut self) {
        match &mut self {
            Self::H2(stream) => stream.send_reset(h2::Reason::INTERNAL_ERROR),
            Self::Lean(answering) => {
                answering.pipe.reset(lean::Reason::INTERNAL_ERROR);
                answering.has_ended = true;
            }
        }
    }
}

/// An answer over a stream of the lean server. Given up, it resets the stream.
pub(crate) struct Answering {
    pipe: Rc<Pipe>,
    has_ended: bool,
}

impl Answering {
    pub fn new(pipe: Rc<Pipe>) -> Self {
        Self { pipe, has_ended: false }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if !self.has_ended {
            self.pipe.reset(lean::Reason::CANCEL);
        }
    }
}

fn put_fields(fields: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        put_field(fields, name.as_str(), value.as_bytes());
    }
}
