//! Bodies of plain HTTP, whichever version of it and of TLS carries them: what is read of a request, what is written of
//! a response.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, LocalBoxStream};
use hyper::body::{Body, Frame, SizeHint};

use crate::error::Error;

/// The body of a request, piece by piece. The only fault is that the other end has gone.
pub(crate) type RequestBody = LocalBoxStream<'static, Result<Bytes, Error>>;

/// The pieces of a body. Trailers, which nobody wants, are left out.
pub(crate) fn pieces<B: Body<Data = Bytes> + 'static>(body: B) -> RequestBody {
    let mut body = Box::pin(body);
    let pieces = stream::poll_fn(move |cx| {
        loop {
            return match body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => Poll::Ready(Some(Ok(bytes))),
                    Err(_) => continue,
                },
                Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Error::Canceled))),
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            };
        }
    });
    pieces.boxed_local()
}

/// The body of a response.
pub(crate) enum ResponseBody {
    /// Known as a whole; empty once it is taken.
    Whole(Bytes),
    /// Written as it is made, as long as the other end reads.
    Pieces(LocalBoxStream<'static, Bytes>),
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Pieces(pieces) => pieces.poll_next_unpin(cx).map(|piece| piece.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}
