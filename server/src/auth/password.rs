//! Passwords: bcrypt on threads of its own, so that a flood of logins costs nobody else anything. Bounded at both ends, and
//! a caller that goes away takes its work with it. Does not know users, and never logs or shows a password.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::limits;

/// Longest password that bcrypt looks at; etcd refuses to hash a longer one.
const PASSWORD_BYTES_MAX: usize = 72;
/// Lowest and highest price of a hash, as powers of two.
const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
/// The price etcd falls back to.
const COST_DEFAULT: u32 = 10;

/// The threads that hash. They have the lowest priority of all but idle ones: what they do is to be slow anyway, and every
/// other thread goes first. Cloning gives another handle; the threads end with the last one.
#[derive(Clone)]
pub struct PasswordPool {
    shared: Arc<Handle>,
}

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.queue.lock().closed = true;
        self.0.work_came.notify_all();
    }
}

struct Shared {
    queue: Mutex<Queue>,
    work_came: Condvar,
}

/// Invariants: `jobs.len() <= PASSWORD_QUEUE_MAX`; of one account at most `PASSWORDS_PER_ACCOUNT_MAX`.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Job {
    password: Zeroizing<String>,
    what: What,
}

enum What {
    Hash { cost: u32, reply: oneshot::Sender<Result<String, Error>> },
    Verify { hash: String, reply: oneshot::Sender<Result<bool, Error>> },
}

impl Job {
    fn is_wanted(&self) -> bool {
        match &self.what {
            What::Hash { reply, .. } => !reply.is_closed(),
            What::Verify { reply, .. } => !reply.is_closed(),
        }
    }

    /// Whose password is checked: salted, so that no two accounts have the same.
    fn account(&self) -> Option<&str> {
        match &self.what {
            What::Hash { .. } => None,
            What::Verify { hash, .. } => Some(hash),
        }
    }

    /// Nobody is told of a failure whose caller has gone.
    fn run(self) {
        match self.what {
            What::Hash { cost, reply } => drop(reply.send(hash_now(&self.password, cost))),
            What::Verify { hash, reply } => drop(reply.send(Ok(verify_now(&self.password, &hash)))),
        }
    }
}

impl PasswordPool {
    /// Starts the threads: one for four cores, and one at least.
    pub fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads((cores / 4).clamp(1, limits::PASSWORD_THREADS_MAX))
    }

    fn with_threads(count: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), work_came: Condvar::new() });
        let pool = Self { shared: Arc::new(Handle(shared.clone())) };
        for number in 0..count {
            let shared = shared.clone();
            thread::Builder::new().name(format!("password-{number}")).spawn(move || {
                lower_priority();
                work(&shared);
            })?;
        }
        Ok(pool)
    }

    /// Takes a job if there is room for it, in all and for its account.
    fn submit(&self, job: Job) -> Result<(), Error> {
        let shared = &self.shared.0;
        let mut queue = shared.queue.lock();
        if queue.is_full_for(&job) {
            // Those who went away have held their places long enough.
            queue.jobs.retain(Job::is_wanted);
            if queue.is_full_for(&job) {
                return Err(Error::TooManyRequests);
            }
        }
        queue.jobs.push_back(job);
        drop(queue);
        shared.work_came.notify_one();
        Ok(())
    }
}

impl Queue {
    fn is_full_for(&self, job: &Job) -> bool {
        if self.jobs.len() >= limits::PASSWORD_QUEUE_MAX {
            return true;
        }
        let Some(account) = job.account() else { return false };
        self.jobs.iter().filter(|other| other.account() == Some(account)).count() >= limits::PASSWORDS_PER_ACCOUNT_MAX
    }
}

/// A price that bcrypt accepts: `cost`, or etcd's default if it is out of bounds.
pub fn effective_cost(cost: u32) -> u32 {
    if COSTS.contains(&cost) { cost } else { COST_DEFAULT }
}

/// The bcrypt text of a password. A `cost` out of bounds counts as 10.
///
/// # Errors
/// [`Error::PasswordTooLong`]; [`Error::TooManyRequests`] when too many wait already.
pub async fn hash(pool: &PasswordPool, password: String, cost: u32) -> Result<String, Error> {
    let password = Zeroizing::new(password);
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Error::PasswordTooLong);
    }
    let (reply, answer) = oneshot::channel();
    pool.submit(Job { password, what: What::Hash { cost: effective_cost(cost), reply } })?;
    answer.await.unwrap_or(Err(Error::Stopped))
}

/// Whether this is the password that `hash` was made of. A text that is no bcrypt text belongs to no password.
///
/// # Errors
/// [`Error::TooManyRequests`] when too many wait already, in all or for this account.
pub async fn verify(pool: &PasswordPool, password: String, hash: String) -> Result<bool, Error> {
    let (reply, answer) = oneshot::channel();
    pool.submit(Job { password: Zeroizing::new(password), what: What::Verify { hash, reply } })?;
    answer.await.unwrap_or(Err(Error::Stopped))
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock();
        let job = loop {
            if queue.closed {
                queue.jobs.clear();
                return;
            }
            match queue.jobs.pop_front() {
                Some(job) => break job,
                None => shared.work_came.wait(&mut queue),
            }
        };
        drop(queue);
        if job.is_wanted() {
            job.run();
        }
    }
}

/// Linux has priorities of threads, not only of processes. A system that refuses still serves.
fn lower_priority() {
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), limits::PASSWORD_NICE) {
        tracing::warn!(%error, "password threads run at normal priority");
    }
}

/// With the version letter that etcd writes.
fn hash_now(password: &str, cost: u32) -> Result<String, Error> {
    let parts = bcrypt::hash_with_result(password, cost);
    let parts = parts.map_err(|error| Error::Internal(format!("bcrypt: {error}")))?;
    Ok(parts.format_for_version(bcrypt::Version::TwoA))
}

fn verify_now(password: &str, hash: &str) -> bool {
    bcrypt::verify(password, hash).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    fn on_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(test)
    }

    /// A pool whose jobs nobody does.
    fn idle() -> PasswordPool {
        PasswordPool::with_threads(0).expect("no threads")
    }

    #[test]
    fn a_password_verifies_against_its_hash_only() {
        on_runtime(async {
            let pool = PasswordPool::start().expect("threads");
            let text = hash(&pool, "correct horse".into(), 4).await.expect("hashes");
            assert!(text.starts_with("$2a$04$") && text.len() == 60, "{text}");
            assert_eq!(verify(&pool, "correct horse".into(), text.clone()).await, Ok(true));
            for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
                assert_eq!(verify(&pool, wrong.into(), text.clone()).await, Ok(false), "{wrong:?}");
            }
            let again = hash(&pool, "correct horse".into(), 4).await.expect("hashes");
            assert_ne!(text, again, "salted");
            for broken in ["", "$2a$04$", "plain", "$2a$99$xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"] {
                assert_eq!(verify(&pool, "correct horse".into(), broken.into()).await, Ok(false), "{broken:?}");
            }
        });
    }

    #[test]
    fn hashes_are_those_of_other_implementations() {
        // Of the test vectors that came with the original implementation.
        assert!(verify_now("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"));
        assert!(verify_now("", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"));
        assert!(!verify_now("U*V", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"));
    }

    #[test]
    fn lengths_and_prices_are_those_of_etcd() {
        on_runtime(async {
            let pool = PasswordPool::start().expect("threads");
            let longest = "x".repeat(PASSWORD_BYTES_MAX);
            let text = hash(&pool, longest.clone(), 4).await.expect("72 bytes are fine");
            assert_eq!(verify(&pool, longest.clone(), text.clone()).await, Ok(true));
            assert_eq!(verify(&pool, format!("{longest}y"), text).await, Ok(true), "the rest is not looked at");
            assert_eq!(hash(&pool, format!("{longest}y"), 4).await, Err(Error::PasswordTooLong));
        });
        assert_eq!([0, 3, 4, 10, 31, 32].map(effective_cost), [10, 10, 4, 10, 31, 10]);
    }

    #[test]
    fn those_who_wait_are_bounded_and_one_account_does_not_take_all_places() {
        on_runtime(async {
            let pool = idle();
            let mut first: Vec<_> = (0..limits::PASSWORDS_PER_ACCOUNT_MAX)
                .map(|_| Box::pin(verify(&pool, "x".into(), "alice".into())))
                .collect();
            assert!(first.iter_mut().all(|waits| waits.now_or_never().is_none()));
            let alice = || verify(&pool, "x".into(), "alice".into());
            assert_eq!(alice().now_or_never(), Some(Err(Error::TooManyRequests)));
            let mut others: Vec<_> = (limits::PASSWORDS_PER_ACCOUNT_MAX..limits::PASSWORD_QUEUE_MAX)
                .map(|number| Box::pin(verify(&pool, "x".into(), number.to_string())))
                .collect();
            assert!(others.iter_mut().all(|waits| waits.now_or_never().is_none()), "places are left for others");
            assert_eq!(verify(&pool, "x".into(), "bob".into()).now_or_never(), Some(Err(Error::TooManyRequests)));
            assert_eq!(hash(&pool, "x".into(), 4).now_or_never(), Some(Err(Error::TooManyRequests)));
            first.pop();
            let mut next = Box::pin(alice());
            assert_eq!((&mut next).now_or_never(), None, "who has gone has made room");
        });
    }

    #[test]
    fn nobody_waits_for_a_pool_that_has_gone_and_its_threads_end() {
        on_runtime(async {
            let pool = PasswordPool::start().expect("threads");
            let shared = Arc::downgrade(&pool.shared.0);
            let waiting: Vec<_> = (0..50).map(|number| verify(&pool, "x".into(), format!("{number}"))).collect();
            assert!(join_all(waiting).await.iter().all(|result| result == &Ok(false)));
            drop(pool);
            let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while shared.strong_count() > 0 {
                assert!(std::time::Instant::now() < patience, "a thread is still there");
                thread::yield_now();
            }
        });
    }
}
