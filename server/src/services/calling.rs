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
        let state = match door.ready(context, &request) {
            Ok(Some((identity, cost))) => door.begin_usual(identity, request, cost),
            Ok(None) => Ok(State::Rest(Box::pin(door.answer(context, request)))),
            Err(error) => Err(error),
        };
        Self { door, state: state.unwrap_or_else(|error| State::Answered(Some(Err(error)))) }
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
    /// Who asks and what it may add to the data, if it can be begun without waiting and is what is asked for most.
    fn ready(&self, context: &Context, request: &Request) -> Result<Option<(Option<Identity>, u64)>, Error> {
        if !is_usual(request) {
            return Ok(None);
        }
        let Some(cost) = self.check(context, request)? else { return Ok(None) };
        // Rights are part of what is read.
        if check::reads_what_is_current(request) && !self.is_current() {
            return Ok(None);
        }
        match self.admit_now(context, request)? {
            Known::Caller(identity) => Ok(Some((identity, cost))),
            Known::NotYet => Ok(None),
        }
    }

    /// Begins what is asked for most, for a caller who may.
    fn begin_usual(&self, identity: Option<Identity>, request: Request, cost: u64) -> Result<State<'_>, Error> {
        let proposed = match request {
            Request::Put(put) => self.submit(Kind::Put, identity, &put)?,
            Request::DeleteRange(delete) => self.submit(Kind::DeleteRange, identity, &delete)?,
            Request::Txn(txn) => self.submit(Kind::Txn, identity, &txn)?,
            Request::Range(range) => {
                let Some(response) = self.range_of_one(&range) else {
                    return Ok(State::Rest(Box::pin(async move {
                        let response = self.range(&range).await?;
                        self.confirmed(identity, Reply::Range(response)).map(|reply| self.with_header(reply))
                    })));
                };
                let reply = self.confirmed(identity, Reply::Range(response?))?;
                return Ok(State::Answered(Some(Ok(self.with_header(reply)))));
            }
            other => unreachable!("{other:?} is not usual"),
        };
        Ok(State::Proposed(proposed, cost))
    }

    /// The same for a call that had to wait before it could begin.
    pub(super) async fn answer_usual(
        &self,
        identity: Option<Identity>,
        request: Request,
        cost: u64,
    ) -> Result<Reply, Error> {
        Calling { door: self, state: self.begin_usual(identity, request, cost)? }.await
    }

    pub(super) fn with_header(&self, mut reply: Reply) -> Reply {
        self.fill_header(&mut reply);
        reply
    }
}

/// What is asked for most.
pub(super) fn is_usual(request: &Request) -> bool {
    match request {
        Request::Put(_) | Request::DeleteRange(_) => true,
        Request::Txn(txn) => !check::is_read_only(txn),
        Request::Range(range) => range.range_end.is_empty(),
        _ => false,
    }
}
