//! Passwords: bcrypt on threads of its own, so that a flood of logins costs nobody else anything. Bounded at both ends, and
//! a caller that goes away takes its work with it. Does not know users, and never logs or shows a password.
//!
//! Who comes when there is no room is asked to wait for a moment, tried once more and then refused: answered at once, a
//! flood would only come back faster, and be a burden as requests if not as passwords. Not all wait equally long: a
//! thousand who came together would be answered together, and come back together, and nobody else would get a turn.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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

/// The threads that hash. Their priority is low: what they do is to be slow anyway, and every other thread goes first.
/// Cloning gives another handle; the threads end with the last one.
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
    refusal_delay: Duration,
    queue: Mutex<Queue>,
    work_came: Condvar,
    /// Callers for whom there was no room, at most `PASSWORDS_DELAYED_MAX`.
    delayed: AtomicUsize,
    /// Where in the spread of delays the last of them was put.
    spread: AtomicU32,
}

/// Multiples of the golden ratio, as parts of 2^32: however many there are, they are spread evenly.
const GOLDEN: u32 = 0x9E37_79B9;

impl Shared {
    /// Between a half and one and a half of the delay, for each caller another.
    fn next_delay(&self) -> Duration {
        let place = self.spread.fetch_add(GOLDEN, Ordering::Relaxed);
        self.refusal_delay.mul_f64(0.5 + f64::from(place) / f64::from(u32::MAX))
    }
}

/// Invariants: `jobs.len() <= PASSWORD_QUEUE_MAX`; of one account at most `PASSWORDS_PER_ACCOUNT_MAX`.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Whose password was looked at last.
    served: Option<String>,
    closed: bool,
}

struct Job {
    password: Secret,
    what: What,
    since: Instant,
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

    /// For who has waited too long.
    fn refuse(self) {
        match self.what {
            What::Hash { reply, .. } => drop(reply.send(Err(Error::TooManyRequests))),
            What::Verify { reply, .. } => drop(reply.send(Err(Error::TooManyRequests))),
        }
    }

    /// Nobody is told of a failure whose caller has gone.
    fn run(self) {
        match self.what {
            What::Hash { cost, reply } => drop(reply.send(hash_now(&self.password.0, cost))),
            What::Verify { hash, reply } => drop(reply.send(Ok(verify_now(&self.password.0, &hash)))),
        }
    }
}

impl PasswordPool {
    /// Starts the threads: one for four cores, and one at least.
    pub fn start() -> io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with_threads((cores / 4).clamp(1, limits::PASSWORD_THREADS_MAX), limits::PASSWORD_REFUSAL_DELAY)
    }

    fn with_threads(count: usize, refusal_delay: Duration) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            refusal_delay,
            queue: Mutex::default(),
            work_came: Condvar::new(),
            delayed: AtomicUsize::new(0),
            spread: AtomicU32::new(0),
        });
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

    /// Takes a job, after a moment if there is no room for it, or refuses it.
    async fn enter(&self, job: Job) -> Result<(), Error> {
        let Err(job) = self.submit(job) else { return Ok(()) };
        let _place = Delayed::enter(&self.shared.0.delayed)?;
        tokio::time::sleep(self.shared.0.next_delay()).await;
        self.submit(job).map_err(|_| Error::TooManyRequests)
    }

    /// Takes a job if there is room for it, in all and for its account; else gives it back.
    fn submit(&self, job: Job) -> Result<(), Job> {
        let shared = &self.shared.0;
        let mut queue = shared.queue.lock();
        if queue.is_full_for(&job) {
            // Those who went away have held their places long enough.
            queue.jobs.retain(Job::is_wanted);
            if queue.is_full_for(&job) {
                return Err(job);
            }
        }
        queue.jobs.push_back(job);
        drop(queue);
        shared.work_came.notify_one();
        Ok(())
    }
}

/// One of those who wait to be refused; given back also by a caller that goes away.
struct Delayed<'a>(&'a AtomicUsize);

impl<'a> Delayed<'a> {
    fn enter(delayed: &'a AtomicUsize) -> Result<Self, Error> {
        let more = |count| (count < limits::PASSWORDS_DELAYED_MAX).then_some(count + 1);
        match delayed.try_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(Self(delayed)),
            Err(_) => Err(Error::TooManyRequests),
        }
    }
}

impl Drop for Delayed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    /// The job that came first, but no account twice while another one waits.
    fn next(&mut self) -> Option<Job> {
        let served = self.served.take();
        let other = self.jobs.iter().position(|job| job.account().is_none() || job.account() != served.as_deref());
        let job = self.jobs.remove(other.unwrap_or(0))?;
        self.served = job.account().map(str::to_owned);
        Some(job)
    }

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

/// What bcrypt looks at of a password, and forgets when dropped: who waits for an answer must not hold a megabyte.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl From<String> for Secret {
    fn from(password: String) -> Self {
        let password = Zeroizing::new(password.into_bytes());
        Self(Zeroizing::new(password[..password.len().min(PASSWORD_BYTES_MAX)].to_vec()))
    }
}

/// The bcrypt text of a password. A `cost` out of bounds counts as 10.
///
/// # Errors
/// [`Error::PasswordTooLong`]; [`Error::TooManyRequests`] when too many wait already.
pub async fn hash(pool: &PasswordPool, password: String, cost: u32) -> Result<String, Error> {
    let is_too_long = password.len() > PASSWORD_BYTES_MAX;
    let password = Secret::from(password);
    if is_too_long {
        return Err(Error::PasswordTooLong);
    }
    let (reply, answer) = oneshot::channel();
    let what = What::Hash { cost: effective_cost(cost), reply };
    pool.enter(Job { password, what, since: Instant::now() }).await?;
    answer.await.unwrap_or(Err(Error::Stopped))
}

/// Whether this is the password that `hash` was made of. A text that is no bcrypt text belongs to no password.
///
/// # Errors
/// [`Error::TooManyRequests`] when too many wait already, in all or for this account.
pub async fn verify(pool: &PasswordPool, password: Secret, hash: String) -> Result<bool, Error> {
    let (reply, answer) = oneshot::channel();
    pool.enter(Job { password, what: What::Verify { hash, reply }, since: Instant::now() }).await?;
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
            match queue.next() {
                Some(job) => break job,
                None => shared.work_came.wait(&mut queue),
            }
        };
        drop(queue);
        if job.since.elapsed() > limits::PASSWORD_WAIT_MAX {
            job.refuse();
        } else if job.is_wanted() {
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
fn hash_now(password: &[u8], cost: u32) -> Result<String, Error> {
    let parts = bcrypt::hash_with_result(password, cost);
    let parts = parts.map_err(|error| Error::Internal(format!("bcrypt: {error}")))?;
    Ok(parts.format_for_version(bcrypt::Version::TwoA))
}

fn verify_now(password: &[u8], hash: &str) -> bool {
    bcrypt::verify(password, hash).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;

    const DELAY: Duration = Duration::from_millis(50);

    fn secret(password: &str) -> Secret {
        password.to_owned().into()
    }

    fn on_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime").block_on(test)
    }

    /// A pool whose jobs nobody does.
    fn idle() -> PasswordPool {
        PasswordPool::with_threads(0, DELAY).expect("no threads")
    }

    #[test]
    fn a_password_verifies_against_its_hash_only() {
        on_runtime(async {
            let pool = PasswordPool::start().expect("threads");
            let text = hash(&pool, "correct horse".into(), 4).await.expect("hashes");
            assert!(text.starts_with("$2a$04$") && text.len() == 60, "{text}");
            assert_eq!(verify(&pool, secret("correct horse"), text.clone()).await, Ok(true));
            for wrong in ["", "correct hors", "correct horse ", "Correct horse"] {
                assert_eq!(verify(&pool, secret(wrong), text.clone()).await, Ok(false), "{wrong:?}");
            }
            let again = hash(&pool, "correct horse".into(), 4).await.expect("hashes");
            assert_ne!(text, again, "salted");
            for broken in ["", "$2a$04$", "plain", "$2a$99$xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"] {
                assert_eq!(verify(&pool, secret("correct horse"), broken.into()).await, Ok(false), "{broken:?}");
            }
        });
    }

    #[test]
    fn hashes_are_those_of_other_implementations() {
        // Of the test vectors that came with the original implementation.
        assert!(verify_now(b"U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"));
        assert!(verify_now(b"", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"));
        assert!(!verify_now(b"U*V", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"));
    }

    #[test]
    fn lengths_and_prices_are_those_of_etcd() {
        on_runtime(async {
            let pool = PasswordPool::start().expect("threads");
            let longest = "x".repeat(PASSWORD_BYTES_MAX);
            let text = hash(&pool, longest.clone(), 4).await.expect("72 bytes are fine");
            assert_eq!(verify(&pool, secret(&longest), text.clone()).await, Ok(true));
            assert_eq!(
                verify(&pool, secret(&format!("{longest}y")), text).await,
                Ok(true),
                "the rest is not looked at"
            );
            assert_eq!(hash(&pool, format!("{longest}y"), 4).await, Err(Error::PasswordTooLong));
        });
        assert_eq!([0, 3, 4, 10, 31, 32].map(effective_cost), [10, 10, 4, 10, 31, 10]);
    }

    #[test]
    fn those_who_wait_are_bounded_and_one_account_does_not_take_all_places() {
        on_runtime(async {
            let pool = idle();
            let mut first: Vec<_> = (0..limits::PASSWORDS_PER_ACCOUNT_MAX)
                .map(|_| Box::pin(verify(&pool, secret("x"), "alice".into())))
                .collect();
            assert!(first.iter_mut().all(|waits| waits.now_or_never().is_none()));
            let alice = || verify(&pool, secret("x"), "alice".into());
            assert_eq!(alice().await, Err(Error::TooManyRequests));
            let mut others: Vec<_> = (limits::PASSWORDS_PER_ACCOUNT_MAX..limits::PASSWORD_QUEUE_MAX)
                .map(|number| Box::pin(verify(&pool, secret("x"), number.to_string())))
                .collect();
            assert!(others.iter_mut().all(|waits| waits.now_or_never().is_none()), "places are left for others");
            assert_eq!(verify(&pool, secret("x"), "bob".into()).await, Err(Error::TooManyRequests));
            assert_eq!(hash(&pool, "x".into(), 4).await, Err(Error::TooManyRequests));
            first.pop();
            let mut next = Box::pin(alice());
            assert_eq!((&mut next).now_or_never(), None, "who has gone has made room");
            assert_eq!(pool.shared.0.delayed.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn who_is_refused_has_waited_unless_too_many_do() {
        on_runtime(async {
            let pool = idle();
            let mut places: Vec<_> = (0..limits::PASSWORDS_PER_ACCOUNT_MAX)
                .map(|_| Box::pin(verify(&pool, secret("x"), "alice".into())))
                .collect();
            assert!(places.iter_mut().all(|waits| waits.now_or_never().is_none()));
            let begun = tokio::time::Instant::now();
            let crowd = (0..limits::PASSWORDS_DELAYED_MAX).map(|_| verify(&pool, secret("x"), "alice".into()));
            let mut crowd: Vec<_> = crowd.map(Box::pin).collect();
            assert!(crowd.iter_mut().all(|waits| waits.now_or_never().is_none()));
            let one_more = verify(&pool, secret("x"), "alice".into()).now_or_never();
            assert_eq!(one_more, Some(Err(Error::TooManyRequests)), "at once");
            let refused = join_all(crowd).await;
            assert!(refused.iter().all(|result| result == &Err(Error::TooManyRequests)));
            assert!(begun.elapsed() >= DELAY, "the last of them has waited longer than most");
            assert_eq!(pool.shared.0.delayed.load(Ordering::Relaxed), 0);
        });
    }

    #[test]
    fn refusals_are_spread_over_time() {
        let pool = idle();
        let mut delays: Vec<_> = (0..1000).map(|_| pool.shared.0.next_delay()).collect();
        delays.sort_unstable();
        assert!(delays[0] >= DELAY / 2 && delays[999] <= DELAY * 3 / 2, "{delays:?}");
        let together = delays.windows(10).map(|ten| ten[9] - ten[0]).min();
        assert!(together >= Some(DELAY / 200), "{together:?} for ten of a thousand");
    }

    #[test]
    fn accounts_take_turns() {
        let (mut queue, mut waiting) = (Queue::default(), Vec::new());
        for hash in ["a", "a", "a", "b", "c", "a", "b"] {
            let (reply, answer) = oneshot::channel();
            waiting.push(answer);
            let what = What::Verify { hash: hash.into(), reply };
            queue.jobs.push_back(Job { password: Secret::default(), what, since: Instant::now() });
        }
        let order: Vec<_> =
            std::iter::from_fn(|| queue.next()).filter_map(|job| job.account().map(str::to_owned)).collect();
        assert_eq!(order, ["a", "b", "a", "c", "a", "b", "a"], "the first of another account than the last one's");
    }

    #[test]
    fn nobody_waits_for_a_pool_that_has_gone_and_its_threads_end() {
        on_runtime(async {
            let pool = PasswordPool::start().expect("threads");
            let shared = Arc::downgrade(&pool.shared.0);
            let waiting: Vec<_> = (0..50).map(|number| verify(&pool, secret("x"), format!("{number}"))).collect();
            assert!(join_all(waiting).await.iter().all(|result| result == &Ok(false)));
            drop(pool);
            let patience = Instant::now() + Duration::from_secs(20);
            while shared.strong_count() > 0 {
                assert!(Instant::now() < patience, "a thread is still there");
                thread::yield_now();
            }
        });
    }
}
