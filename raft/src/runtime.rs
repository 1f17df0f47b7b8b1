//! The seam for time, tasks and randomness: tokio today, a seeded runtime once whole clusters are simulated. No other
//! file of this crate asks for the time, starts a task or draws a random number by itself.

#![allow(clippy::disallowed_methods, reason = "this is the seam of clock and randomness")]

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use openraft::AsyncRuntime;
use openraft::OptionalSend;
use openraft::impls::TokioRuntime;
use rand::RngExt;

use crate::config::limits;
use crate::executor::{self, Executor, JoinError, JoinHandle};

/// What openraft spawns, sleeps and draws election timeouts with: tokio's timers and channels, our own [`executor`].
#[derive(Debug)]
pub struct Runtime;

impl AsyncRuntime for Runtime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        executor::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &JoinError) -> bool {
        matches!(error, JoinError::Panicked(_))
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    /// Only openraft's own test suite asks for a runtime of its own.
    fn new(_threads: usize) -> Self {
        Self
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        let runtime = build().expect("the system can make one more runtime");
        runtime.block_on(drive(Executor::new(runtime.handle().clone()), future))
    }
}

/// Runs `future`, and beside it all tasks of `executor`, which are dropped when it has ended.
pub(crate) async fn drive<T>(executor: Arc<Executor>, future: impl Future<Output = T>) -> T {
    let _closes = CloseOnDrop(executor.clone());
    let _entered = executor.enter();
    tokio::select! {
        result = future => result,
        () = executor.drive() => unreachable!("it never returns"),
    }
}

/// Tasks are dropped even if the future panics.
struct CloseOnDrop(Arc<Executor>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Tasks that end together: openraft's feeders.
pub(crate) struct Tasks<T>(Vec<JoinHandle<T>>);

impl<T: Send + 'static> Tasks<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn spawn(&mut self, future: impl Future<Output = T> + Send + 'static) {
        self.0.push(executor::spawn(future));
    }

    /// Waits for the first that ends.
    pub(crate) async fn first_to_end(&mut self) -> Result<T, JoinError> {
        let (ended, place, _) = select_all(self.0.iter_mut()).await;
        self.0.swap_remove(place);
        ended
    }
}

impl<T> Drop for Tasks<T> {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// A point in time, for deadlines only.
pub(crate) type Instant = tokio::time::Instant;

/// The runtime of the thread "raft": its timers and the sockets to other members.
pub(crate) fn build() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_time().enable_io().build()
}

pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// The result of `future`, unless it takes longer.
pub(crate) async fn timeout<T>(duration: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(duration, future).await.ok()
}

/// Between nothing and `whole`, by chance.
pub(crate) fn random_part(whole: Duration) -> Duration {
    whole.mul_f64(rand::rng().random::<f64>())
}

/// Where a member's batch sequence starts; see [`BatchId`](crate::batch::BatchId).
pub(crate) fn random_u64() -> u64 {
    rand::rng().random()
}

/// Does something heavy that nobody waits for in a hurry on a thread of its own, below everybody else's priority: a thread
/// cannot get its priority back.
pub(crate) async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    blocking(move || {
        let work = move || {
            // A system that refuses still serves.
            let lowered = rustix::process::setpriority_process(Some(rustix::thread::gettid()), limits::BACKGROUND_NICE);
            if let Err(error) = lowered {
                tracing::debug!(%error, "work in the background runs at normal priority");
            }
            work()
        };
        let thread = std::thread::Builder::new().name("background".into()).spawn(work)?;
        thread.join().map_err(|_| io::Error::other("a thread in the background panicked"))
    })
    .await?
}

/// Does something that waits for a disk on another thread.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}
