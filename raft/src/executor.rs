//! Runs openraft's tasks: on the thread "raft", or on a thread that has just given them work and may as well do it
//! itself. One at a time, so that openraft sees a single thread. Knows no time: timers are tokio's, driven by the thread
//! "raft".
//!
//! ```text
//!  wake -> queue --- the thread "raft" (drive), or a caller (run_here): whoever holds `runner` polls until it is empty
//! ```

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use crossbeam_queue::SegQueue;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::runtime;
use tokio::sync::{Notify, oneshot};

/// Polls after which the thread "raft" looks at its timers.
const POLLS_BETWEEN_TIMERS: usize = 64;

/// Polls that a caller does at most; one command takes about ten.
const POLLS_HERE_MAX: usize = 256;

thread_local! {
    /// Where tasks started on this thread go; set while the thread runs tasks.
    static CURRENT: RefCell<Option<Arc<Executor>>> = const { RefCell::new(None) };
}

/// The tasks of one member's raft.
///
/// # Invariants
///
/// - A task is polled by the holder of `runner` only.
/// - A task in the queue is noticed: `is_running` is set and its holder looks again after it has cleared it, or the
///   thread "raft" has been woken.
pub(crate) struct Executor {
    /// Timers and the context that tasks are polled in.
    timers: runtime::Handle,
    runner: Mutex<()>,
    is_running: AtomicBool,
    queue: SegQueue<Arc<Task>>,
    /// Wakes the thread "raft".
    wake: Notify,
    /// All tasks that have not ended, to be dropped at the end: they and who wakes them hold each other.
    tasks: Mutex<HashMap<u64, Arc<Task>>>,
    next_id: AtomicU64,
    /// Changed and looked at while `tasks` is locked.
    is_closed: AtomicBool,
}

struct Task {
    id: u64,
    executor: Weak<Executor>,
    is_queued: AtomicBool,
    /// None once it has ended.
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

/// Waits for a task. Dropping it leaves the task alone.
pub struct JoinHandle<T> {
    result: oneshot::Receiver<Result<T, JoinError>>,
    task: Weak<Task>,
}

/// Why a task has no result.
#[derive(Debug)]
pub enum JoinError {
    Panicked(String),
    /// Aborted, or dropped when the member stopped.
    Cancelled,
}

impl Executor {
    /// An executor whose tasks use the timers of `timers`.
    pub(crate) fn new(timers: runtime::Handle) -> Arc<Self> {
        Arc::new(Self {
            timers,
            runner: Mutex::new(()),
            is_running: AtomicBool::new(false),
            queue: SegQueue::new(),
            wake: Notify::new(),
            tasks: Mutex::default(),
            next_id: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Runs tasks whenever there are some, on the thread whose runtime has the timers. Never returns.
    pub(crate) async fn drive(self: &Arc<Self>) {
        loop {
            let is_idle = self.run(POLLS_BETWEEN_TIMERS);
            match is_idle {
                true => self.wake.notified().await,
                false => tokio::task::yield_now().await,
            }
        }
    }

    /// Calls `give`, which makes work for tasks, and does that work before it returns, unless another thread is at it.
    pub(crate) fn run_here(self: &Arc<Self>, give: impl FnOnce()) {
        let Some(guard) = self.runner.try_lock() else { return give() };
        self.is_running.store(true, Ordering::SeqCst);
        {
            let _timers = self.timers.enter();
            let _current = self.enter();
            give();
            self.poll_queued(POLLS_HERE_MAX);
        }
        self.is_running.store(false, Ordering::SeqCst);
        drop(guard);
        if !self.queue.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Drops all tasks. Nothing that they hold is left when it returns.
    pub(crate) fn close(self: &Arc<Self>) {
        let _current = self.enter();
        loop {
            let tasks: Vec<_> = {
                let mut tasks = self.tasks.lock();
                self.is_closed.store(true, Ordering::Relaxed);
                tasks.drain().map(|(_, task)| task).collect()
            };
            if tasks.is_empty() {
                break;
            }
            // Dropping one may start or wake others.
            tasks.iter().for_each(|task| task.cancel());
        }
        while self.queue.pop().is_some() {}
    }

    /// Until the guard is dropped, tasks started on this thread belong to this executor.
    pub(crate) fn enter(self: &Arc<Self>) -> Entered {
        Entered(CURRENT.replace(Some(self.clone())))
    }

    /// Polls at most `polls_max` times. False if there may be more to do.
    fn run(self: &Arc<Self>, polls_max: usize) -> bool {
        // Whoever runs now looks at the queue again when it is done.
        let Some(_guard) = self.runner.try_lock() else { return true };
        self.is_running.store(true, Ordering::SeqCst);
        self.poll_queued(polls_max);
        self.is_running.store(false, Ordering::SeqCst);
        self.queue.is_empty()
    }

    fn poll_queued(&self, polls_max: usize) {
        for _ in 0..polls_max {
            let Some(task) = self.queue.pop() else { return };
            if task.poll() {
                self.tasks.lock().remove(&task.id);
            }
        }
    }

    fn enqueue(&self, task: Arc<Task>) {
        self.queue.push(task);
        if !self.is_running.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }
}

/// Starts a task of the executor that this thread works for.
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let executor = CURRENT.with_borrow(Option::clone).expect("raft's tasks are started by raft's tasks");
    executor.spawn(future)
}

impl Executor {
    /// Starts a task from any thread. After [`close`](Self::close) it is dropped at once.
    pub(crate) fn spawn<F>(self: &Arc<Self>, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (told, result) = oneshot::channel();
        let body = async move {
            let ended = AssertUnwindSafe(future).catch_unwind().await;
            // Nobody may wait for it.
            let _ = told.send(ended.map_err(|panic| JoinError::Panicked(panic_text(&*panic))));
        };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let task = Arc::new(Task {
            id,
            executor: Arc::downgrade(self),
            is_queued: AtomicBool::new(true),
            // tokio's budget belongs to the task of tokio that happens to run this one: counting on it would starve both.
            future: Mutex::new(Some(Box::pin(tokio::task::unconstrained(body)))),
        });
        let handle = JoinHandle { result, task: Arc::downgrade(&task) };
        {
            let mut tasks = self.tasks.lock();
            if self.is_closed.load(Ordering::Relaxed) {
                return handle;
            }
            tasks.insert(id, task.clone());
        }
        self.enqueue(task);
        handle
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// See [`Executor::enter`].
pub(crate) struct Entered(Option<Arc<Executor>>);

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl Task {
    /// True once it has ended.
    fn poll(self: &Arc<Self>) -> bool {
        // Before the poll: what wakes it during the poll has to queue it again.
        self.is_queued.store(false, Ordering::SeqCst);
        let mut slot = self.future.lock();
        let Some(future) = slot.as_mut() else { return true };
        let waker = Waker::from(self.clone());
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if ended {
            *slot = None;
        }
        ended
    }

    /// Drops the future, after the poll that is under way if there is one.
    fn cancel(&self) {
        let future = self.future.lock().take();
        drop(future);
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::SeqCst)
            && let Some(executor) = self.executor.upgrade()
        {
            executor.enqueue(self);
        }
    }
}

impl<T> JoinHandle<T> {
    /// Drops the task if it has not ended. Not for the task itself to call.
    pub(crate) fn abort(&self) {
        if let Some(task) = self.task.upgrade() {
            task.cancel();
            if let Some(executor) = task.executor.upgrade() {
                executor.tasks.lock().remove(&task.id);
            }
        }
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.result.poll_unpin(context).map(|received| received.unwrap_or(Err(JoinError::Cancelled)))
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(text) => write!(formatter, "a task of raft panicked: {text}"),
            Self::Cancelled => formatter.write_str("a task of raft was cancelled"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;
    use crate::runtime;

    fn executor() -> (tokio::runtime::Runtime, Arc<Executor>) {
        let timers = runtime::build().unwrap();
        let executor = Executor::new(timers.handle().clone());
        (timers, executor)
    }

    /// A task that notes on which thread it was given each number.
    fn note(mut numbers: mpsc::UnboundedReceiver<u64>) -> Arc<Mutex<Vec<(u64, thread::ThreadId)>>> {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let ours = noted.clone();
        spawn(async move {
            while let Some(number) = numbers.recv().await {
                ours.lock().push((number, thread::current().id()));
            }
        });
        noted
    }

    #[test]
    fn a_caller_does_the_work_it_gives_unless_another_is_at_it() {
        let (_timers, executor) = executor();
        let (give, numbers) = mpsc::unbounded_channel();
        let noted = {
            let _entered = executor.enter();
            note(numbers)
        };
        executor.run_here(|| give.send(1).unwrap());
        assert_eq!(*noted.lock(), [(1, thread::current().id())]);

        let guard = executor.runner.lock();
        executor.run_here(|| give.send(2).unwrap());
        assert_eq!(noted.lock().len(), 1, "left to the one who runs");
        drop(guard);
        executor.run_here(|| ());
        assert_eq!(noted.lock().len(), 2);
    }

    /// Work given by several threads, some of it done by them, with timers in between: nothing is forgotten.
    #[test]
    fn no_wake_is_lost_between_the_driver_and_callers() {
        let (timers, executor) = executor();
        let (give, numbers) = mpsc::unbounded_channel();
        let count: u64 = 20_000;
        let (done, finished) = oneshot::channel();
        let relayed = Arc::new(AtomicUsize::new(0));
        let body = {
            let relayed = relayed.clone();
            let mut numbers = numbers;
            async move {
                // Through a second task, so that tasks wake tasks.
                let (pass, mut passed) = mpsc::unbounded_channel();
                let last = spawn(async move {
                    let mut sum = 0;
                    for _ in 0..2 * count {
                        sum += passed.recv().await.unwrap();
                    }
                    sum
                });
                while relayed.fetch_add(1, Ordering::Relaxed) < 2 * count as usize {
                    let number: u64 = numbers.recv().await.unwrap();
                    if number.is_multiple_of(4096) {
                        runtime::sleep(Duration::from_millis(1)).await;
                    }
                    pass.send(number).unwrap();
                }
                done.send(last.await.unwrap()).unwrap();
            }
        };
        let givers: Vec<_> = (0..2)
            .map(|_| {
                let (executor, give) = (executor.clone(), give.clone());
                thread::spawn(move || {
                    for number in 0..count {
                        match number % 3 {
                            0 => give.send(number).unwrap(),
                            _ => executor.run_here(|| give.send(number).unwrap()),
                        }
                    }
                })
            })
            .collect();
        let sum = timers.block_on(async {
            let work = async {
                spawn(body);
                tokio::time::timeout(Duration::from_secs(60), finished).await.expect("a wake was lost").unwrap()
            };
            runtime::drive(executor.clone(), work).await
        });
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        assert_eq!(sum, count * (count - 1));
    }

    #[test]
    fn tasks_end_by_result_panic_abort_and_close() {
        let (timers, executor) = executor();
        let held = Arc::new(());
        let keep = |held: &Arc<()>| {
            let held = held.clone();
            async move {
                std::future::pending::<()>().await;
                drop(held);
            }
        };
        let ours = held.clone();
        let left = timers.block_on(runtime::drive(executor.clone(), async move {
            assert_eq!(spawn(async { 7 }).await.unwrap(), 7);
            let panicked = spawn(async { panic!("on purpose") }).await.map(|(): ()| ()).unwrap_err();
            assert_eq!(panicked.to_string(), "a task of raft panicked: on purpose");
            let aborted = spawn(keep(&ours));
            tokio::task::yield_now().await;
            assert_eq!(Arc::strong_count(&ours), 3);
            aborted.abort();
            assert_eq!(Arc::strong_count(&ours), 2);
            assert!(matches!(aborted.await, Err(JoinError::Cancelled)));
            [spawn(keep(&ours))]
        }));
        let [left] = left;
        assert_eq!(Arc::strong_count(&held), 1, "closing drops what is left");
        assert!(matches!(timers.block_on(left), Err(JoinError::Cancelled)));
        assert!(executor.tasks.lock().is_empty() && executor.queue.is_empty());
    }

    #[test]
    fn it_meets_openraft_s_duties_of_a_runtime() {
        openraft::testing::runtime::Suite::<runtime::Runtime>::test_all();
    }
}
