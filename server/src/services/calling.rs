//! One unary call under way. What is asked for most is begun and answered without a future of its own: thousands of these
//! calls wait at a time, and what each carries is fetched from far away when its answer comes. Whatever has to wait
//! before it can be begun, or is rare, goes the long way of [`Door::answer`], in a box.

use std::future::Future;
use std::pin::Pin;
use std::task::{self, Poll, ready};

use futures_util::future::LocalBoxFuture;

use super::identity::Known;
use super::{Door, Proposed, check};
use crate::command::{Identity, Kind};
use crate::error::Error;
use crate::request::{Context, Reply, Request};

/// A call; resolves to its answer.
pub(super) struct Calling<'a> {
    door: &'a Door,
    state: State<'a>,
}

enum State<'a> {
    /// None once it was taken.
    Answered(Option<Result<Reply, Error>>),
    /// A command that may have added so many bytes to the data.
    Proposed(Proposed, u64),
    Rest(LocalBoxFuture<'a, Result<Reply, Error>>),
}

impl<'a> Calling<'a> {
    /// Begins a call.
    pub fn begin(door: &'a Door, context: &'a Context, request: Request) -> Self {
        let state = match door.begin(context, &request) {
            Ok(Some(state)) => state,
            Ok(None) => State::Rest(Box::pin(door.answer(context, request))),
            Err(error) => State::Answered(Some(Err(error))),
        };
        Self { door, state }
    }
}

impl Future for Calling<'_> {
    type Output = Result<Reply, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let door = self.door;
        let result = loop {
            match &mut self.state {
                State::Answered(result) => break result.take().expect("polled after it was ready"),
                State::Rest(rest) => break ready!(rest.as_mut().poll(cx)),
                State::Proposed(proposed, cost) => {
                    let result = ready!(Pin::new(&mut proposed.submitted).poll(cx));
                    let result = door.note_result(proposed, result);
                    if result.is_err() || *cost == 0 || door.fits(0) {
                        break result.map(|reply| door.with_header(reply));
                    }
                    // It stays, but whoever made the data pass its limit is told so.
                    self.state = State::Rest(Box::pin(async move { Err(door.refuse_for_quota().await) }));
                }
            }
        };
        door.note_answer(&result);
        Poll::Ready(result)
    }
}

impl Door {
    /// Begins what is asked for most, unless it has to wait for something before; none if it has, or is another request.
    fn begin(&self, context: &Context, request: &Request) -> Result<Option<State<'static>>, Error> {
        let is_usual = match request {
            Request::Put(_) | Request::DeleteRange(_) => true,
            Request::Txn(txn) => !check::is_read_only(txn),
            Request::Range(range) => range.range_end.is_empty(),
            _ => false,
        };
        if !is_usual {
            return Ok(None);
        }
        let Some(cost) = self.check(context, request)? else { return Ok(None) };
        // Rights are part of what is read.
        if check::reads_what_is_current(request) && !self.is_current() {
            return Ok(None);
        }
        let Known::Caller(identity) = self.admit_now(context, request)? else { return Ok(None) };
        self.begin_usual(identity, request, cost)
    }

    fn begin_usual(
        &self,
        identity: Option<Identity>,
        request: &Request,
        cost: u64,
    ) -> Result<Option<State<'static>>, Error> {
        let proposed = match request {
            Request::Put(put) => self.submit(Kind::Put, identity, put)?,
            Request::DeleteRange(delete) => self.submit(Kind::DeleteRange, identity, delete)?,
            Request::Txn(txn) => self.submit(Kind::Txn, identity, txn)?,
            Request::Range(range) => {
                let Some(response) = self.range_of_one(range) else { return Ok(None) };
                let reply = self.confirmed(identity, Reply::Range(response?))?;
                return Ok(Some(State::Answered(Some(Ok(self.with_header(reply))))));
            }
            other => unreachable!("{other:?} is not usual"),
        };
        Ok(Some(State::Proposed(proposed, cost)))
    }

    fn with_header(&self, mut reply: Reply) -> Reply {
        self.fill_header(&mut reply);
        reply
    }
}
