//! Connections that have not shown yet what they want: silent ones, and those within a TLS handshake. Bounds how many of
//! them there are on a net thread, and how much of a turn their arithmetic takes. Knows no protocol.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;

use crate::limits;

/// The newcomers of one net thread, oldest first.
#[derive(Default)]
pub(crate) struct Newcomers {
    waiting: RefCell<VecDeque<(u64, Rc<Notify>)>>,
    next: Cell<u64>,
    /// Steps of handshakes taken in this turn of the thread, at most `HANDSHAKE_STEPS_PER_TURN`.
    steps: Cell<usize>,
    stepping: RefCell<VecDeque<Waker>>,
    turning: Cell<bool>,
}

impl Newcomers {
    /// Runs `arrive` as that of a newcomer. `None` if it had to go for a newer one: whoever means it well is through in
    /// a few round trips, so that the oldest is the one that never will be.
    pub async fn run<T>(&self, arrive: impl Future<Output = T>) -> Option<T> {
        let place = self.enter();
        tokio::select! {
            biased;
            arrived = arrive => Some(arrived),
            () = place.pushed_out.notified() => None,
        }
    }

    fn enter(&self) -> Place<'_> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= limits::NEWCOMERS_MAX
            && let Some((_, oldest)) = waiting.pop_front()
        {
            oldest.notify_one();
        }
        let (number, pushed_out) = (self.next.get(), Rc::new(Notify::new()));
        self.next.set(number + 1);
        waiting.push_back((number, pushed_out.clone()));
        Place { newcomers: self, number, pushed_out }
    }

    /// Runs a handshake, whose steps may each take a millisecond of arithmetic, so that others get their turns between.
    pub async fn paced<T>(self: &Rc<Self>, handshake: impl Future<Output = T>) -> T {
        let mut handshake = pin!(handshake);
        poll_fn(|cx| match self.poll_step(cx) {
            Poll::Ready(()) => handshake.as_mut().poll(cx),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    fn poll_step(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.steps.get() >= limits::HANDSHAKE_STEPS_PER_TURN {
            self.stepping.borrow_mut().push_back(cx.waker().clone());
            return Poll::Pending;
        }
        self.steps.set(self.steps.get() + 1);
        if !self.turning.replace(true) {
            tokio::task::spawn_local(self.clone().turn());
        }
        Poll::Ready(())
    }

    /// Lets the next ones step in each turn of the thread until nobody waits.
    async fn turn(self: Rc<Self>) {
        loop {
            tokio::task::yield_now().await;
            self.steps.set(0);
            let mut stepping = self.stepping.borrow_mut();
            if stepping.is_empty() {
                break;
            }
            let count = stepping.len().min(limits::HANDSHAKE_STEPS_PER_TURN);
            stepping.drain(..count).for_each(Waker::wake);
        }
        self.turning.set(false);
    }
}

/// A newcomer's place in the row, left when dropped.
struct Place<'a> {
    newcomers: &'a Newcomers,
    number: u64,
    pushed_out: Rc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.newcomers.waiting.borrow_mut();
        if let Ok(position) = waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            waiting.remove(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_goes_when_there_are_too_many() {
        let newcomers = Rc::new(Newcomers::default());
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let silent = || {
                    let newcomers = newcomers.clone();
                    tokio::task::spawn_local(async move { newcomers.run(std::future::pending::<()>()).await })
                };
                let first = silent();
                let others: Vec<_> = (1..limits::NEWCOMERS_MAX).map(|_| silent()).collect();
                while newcomers.waiting.borrow().len() < limits::NEWCOMERS_MAX {
                    tokio::task::yield_now().await;
                }
                assert!(!first.is_finished(), "there is room for all of them");
                let arrived = newcomers.run(std::future::ready(7)).await;
                assert_eq!(arrived, Some(7), "one that is through at once");
                assert_eq!(first.await.expect("no panic"), None, "pushed out by it");
                assert!(others.iter().all(|other| !other.is_finished()));
                others.iter().for_each(tokio::task::JoinHandle::abort);
                for other in others {
                    assert!(other.await.expect_err("aborted").is_cancelled());
                }
                assert!(newcomers.waiting.borrow().is_empty(), "places are given back");
            })
            .await;
    }

    #[tokio::test]
    async fn others_get_turns_between_the_steps_of_many_handshakes() {
        let newcomers = Rc::new(Newcomers::default());
        let (steps, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let handshakes: Vec<_> = (0..50)
                    .map(|_| {
                        let (newcomers, steps) = (newcomers.clone(), steps.clone());
                        tokio::task::spawn_local(async move {
                            let mut left = 3;
                            let handshake = poll_fn(|cx| {
                                steps.set(steps.get() + 1);
                                left -= 1;
                                cx.waker().wake_by_ref();
                                if left == 0 { Poll::Ready(()) } else { Poll::Pending }
                            });
                            newcomers.paced(handshake).await;
                        })
                    })
                    .collect();
                let (other_steps, other_most) = (steps.clone(), most.clone());
                let other = tokio::task::spawn_local(async move {
                    loop {
                        let before = other_steps.get();
                        tokio::task::yield_now().await;
                        other_most.set(other_most.get().max(other_steps.get() - before));
                    }
                });
                for handshake in handshakes {
                    handshake.await.expect("no panic");
                }
                other.abort();
            })
            .await;
        assert_eq!(steps.get(), 150, "every handshake came to its end");
        assert!(most.get() <= 2 * limits::HANDSHAKE_STEPS_PER_TURN, "{} steps in one turn", most.get());
    }
}
