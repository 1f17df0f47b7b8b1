//! A stream as the task sees that serves it: streaming calls, requests whose body comes in pieces, plain HTTP. Between it
//! and the connection; both are on one thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};

use super::connection::Work;
use super::core::Core;
use super::frame::Reason;
use crate::error::Error;

/// What a connection and the tasks of its streams share.
pub(crate) struct Shared {
    pub core: RefCell<Core<Work>>,
    /// Wakes the connection, which sends what there is.
    pub output: Waker,
}

/// One stream.
pub(crate) struct Pipe {
    shared: Rc<Shared>,
    stream: u32,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// Received and not taken. Copied together: a small piece must not hold the large buffer that it came in, and what
    /// is not taken counts against the windows.
    received: BytesMut,
    has_ended: bool,
    is_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    pub fn new(shared: &Rc<Shared>, stream: u32) -> Rc<Self> {
        Rc::new(Self { shared: shared.clone(), stream, state: RefCell::default() })
    }

    /// Connection: more of the body, and with `ends` its end.
    pub(super) fn push(&self, data: &[u8], ends: bool) {
        let mut state = self.state.borrow_mut();
        state.received.extend_from_slice(data);
        state.has_ended |= ends;
        wake(&mut state.reader);
    }

    /// Connection: the other end has given the stream up, or is gone.
    pub(super) fn give_up(&self) {
        let mut state = self.state.borrow_mut();
        state.is_gone = true;
        wake(&mut state.reader);
        wake(&mut state.writer);
    }

    /// Connection: everything has been sent.
    pub(super) fn on_room(&self) {
        wake(&mut self.state.borrow_mut().writer);
    }

    /// The next piece of the body, whose room the other end may use again. The only fault is that the other end has gone.
    pub fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let data = {
            let mut state = self.state.borrow_mut();
            if state.received.is_empty() {
                if state.has_ended {
                    return Poll::Ready(None);
                }
                if state.is_gone {
                    return Poll::Ready(Some(Err(Error::Canceled)));
                }
                keep(&mut state.reader, cx);
                return Poll::Pending;
            }
            std::mem::take(&mut state.received).freeze()
        };
        let announces = {
            let mut core = self.shared.core.borrow_mut();
            let before = core.out_bytes();
            core.release(self.stream, data.len());
            core.out_bytes() > before
        };
        if announces {
            self.shared.output.wake_by_ref();
        }
        Poll::Ready(Some(Ok(data)))
    }

    /// Whether all of the body has been taken.
    pub fn is_end_stream(&self) -> bool {
        let state = self.state.borrow();
        state.has_ended && state.received.is_empty()
    }

    /// Whether the other end has gone; if not, the task is woken when it goes.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> bool {
        let mut state = self.state.borrow_mut();
        keep(&mut state.writer, cx);
        state.is_gone
    }

    /// Waits until all that was sent is on its way; `None` when the other end has gone.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        if self.poll_gone(cx) {
            return Poll::Ready(None);
        }
        match self.shared.core.borrow().has_room(self.stream) {
            None => Poll::Ready(None),
            Some(true) => Poll::Ready(Some(())),
            Some(false) => Poll::Pending,
        }
    }

    /// Sends a head of fields encoded by `put_field`; with `ends` nothing follows.
    pub fn send_head(&self, fields: &[u8], ends: bool) {
        self.send(|core| core.send_head(self.stream, fields, ends));
    }

    pub fn send_data(&self, data: Bytes, ends: bool) {
        self.send(|core| core.send_data(self.stream, data, ends));
    }

    /// Sends trailers, encoded by `put_field`.
    pub fn send_trailers(&self, fields: Vec<u8>) {
        self.send(|core| core.send_trailers(self.stream, fields));
    }

    /// Ends the stream before its time.
    pub fn reset(&self, reason: Reason) {
        if self.shared.core.borrow().is_open(self.stream) {
            self.send(|core| drop(core.reset(self.stream, reason)));
        }
    }

    fn send(&self, send: impl FnOnce(&mut Core<Work>)) {
        send(&mut self.shared.core.borrow_mut());
        self.shared.output.wake_by_ref();
    }
}

fn keep(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

fn wake(slot: &mut Option<Waker>) {
    if let Some(waker) = slot.take() {
        waker.wake();
    }
}
