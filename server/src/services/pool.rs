//! The blocking pool as one net thread uses it: for reads that may be long. Bounded at both ends (work under way, callers
//! that wait for their turn), and a caller that goes away takes its work with it. Does not know what is read.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;
use crate::limits;

/// Where the reads of one net thread wait for a thread of the pool.
pub struct Pool {
    turns: Arc<Semaphore>,
    waiting: Cell<usize>,
}

/// Whether whoever asked for the work has gone.
pub struct Caller(Arc<AtomicBool>);

impl Caller {
    /// Fails once nobody wants the result any more.
    pub fn check(&self) -> Result<(), Error> {
        if self.has_gone() { Err(Error::Canceled) } else { Ok(()) }
    }

    /// Nobody wants the result any more.
    pub fn has_gone(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub fn gone() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    #[cfg(test)]
    pub fn waits() -> Self {
        Self(Arc::default())
    }
}

/// Held by the caller as long as it waits.
struct Waits(Arc<AtomicBool>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { turns: Arc::new(Semaphore::new(limits::POOL_READS_MAX)), waiting: Cell::new(0) }
    }
}

impl Pool {
    /// Runs `work` on the pool. It is to ask its [`Caller`] between items and to end early once that has gone.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Caller) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turn().await?;
        let gone = Arc::new(AtomicBool::new(false));
        let _waits = Waits(gone.clone());
        let job = tokio::task::spawn_blocking(move || {
            // Kept to the end of the work, not of the wait for it: a caller that has gone does not make room early.
            let _turn = turn;
            let caller = Caller(gone);
            caller.check()?;
            work(&caller)
        });
        match job.await {
            Ok(result) => result,
            Err(error) if error.is_cancelled() => Err(Error::Stopped),
            Err(error) => Err(Error::Internal(error.to_string())),
        }
    }

    /// Waits for a turn, in order of arrival.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, Error> {
        if let Ok(turn) = self.turns.clone().try_acquire_owned() {
            return Ok(turn);
        }
        if self.waiting.get() >= limits::POOL_WAITERS_MAX {
            return Err(Error::TooManyRequests);
        }
        let _place = Place::take(&self.waiting);
        self.turns.clone().acquire_owned().await.map_err(|_| Error::Stopped)
    }
}

/// One of those who wait; given back also by a caller that goes away.
struct Place<'a>(&'a Cell<usize>);

impl<'a> Place<'a> {
    fn take(waiting: &'a Cell<usize>) -> Self {
        waiting.set(waiting.get() + 1);
        Self(waiting)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    fn on_runtime(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(test);
    }

    #[test]
    fn work_and_waiting_callers_are_bounded() {
        on_runtime(async {
            let pool = Pool::default();
            let (release, held) = mpsc::channel::<()>();
            let held = Arc::new(parking_lot::Mutex::new(held));
            let mut running: Vec<_> = (0..limits::POOL_READS_MAX)
                .map(|_| {
                    let held = held.clone();
                    Box::pin(pool.run(move |_| held.lock().recv().map_err(|_| Error::Stopped)))
                })
                .collect();
            assert!(running.iter_mut().all(|work| work.now_or_never().is_none()));
            let mut waiting: Vec<_> = (0..limits::POOL_WAITERS_MAX).map(|_| Box::pin(pool.run(|_| Ok(())))).collect();
            assert!(waiting.iter_mut().all(|work| work.now_or_never().is_none()));
            assert_eq!(pool.run(|_| Ok(())).now_or_never(), Some(Err(Error::TooManyRequests)));
            waiting.pop();
            let mut next = Box::pin(pool.run(|_| Ok(())));
            assert_eq!((&mut next).now_or_never(), None, "who has gone has made room");
            running.iter().for_each(|_| release.send(()).expect("held"));
            assert!(join_all(running).await.iter().all(Result::is_ok));
            assert!(join_all(waiting).await.iter().all(Result::is_ok));
            assert_eq!(next.await, Ok(()));
        });
    }

    #[test]
    fn work_ends_when_its_caller_goes_away() {
        on_runtime(async {
            let pool = Pool::default();
            let (told, ended) = mpsc::channel();
            let (tell_begun, begun) = mpsc::channel();
            let mut work = Box::pin(pool.run(move |caller| {
                tell_begun.send(()).expect("somebody waits");
                let patience = std::time::Instant::now() + Duration::from_secs(20);
                while !caller.has_gone() && std::time::Instant::now() < patience {
                    std::thread::yield_now();
                }
                told.send(caller.check()).expect("somebody waits");
                Ok(())
            }));
            assert!((&mut work).now_or_never().is_none());
            begun.recv().expect("it begins");
            drop(work);
            assert_eq!(ended.recv().expect("it ends"), Err(Error::Canceled));
        });
    }
}
