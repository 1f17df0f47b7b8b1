//! A bound on the memory that answers to reads take while they are built and sent, over all requests of a member. Counts
//! bytes, allocates none: who holds a share says how much it takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::Error;

/// The bound, shared by all net threads.
#[derive(Debug)]
pub struct Budget {
    bytes_max: usize,
    each_bytes_max: usize,
    used: AtomicUsize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_max: usize::MAX, each_bytes_max: usize::MAX, used: AtomicUsize::new(0) }
    }
}

impl Budget {
    /// At most `bytes_max` for all shares together, and `each_bytes_max` for one.
    pub fn new(bytes_max: usize, each_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, each_bytes_max: each_bytes_max.min(bytes_max), used: AtomicUsize::new(0) })
    }

    /// A share of nothing, to be grown.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// What one answer takes; given back when it goes.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Takes more. What was taken stays if there is no more.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let budget = &self.budget;
        if self.bytes.saturating_add(bytes) > budget.each_bytes_max {
            return Err(Error::AnswerTooLarge(budget.each_bytes_max));
        }
        let used = budget.used.fetch_add(bytes, Ordering::Relaxed);
        if used.saturating_add(bytes) > budget.bytes_max {
            budget.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Error::AnswersTooLarge(budget.bytes_max));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Gives some of it back.
    pub fn shrink(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "only what was taken is given back");
        self.bytes -= bytes;
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes more although there may be none: for what is there already and only waits to be sent.
    pub fn note(&mut self, bytes: usize) {
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_bounded_each_and_together_and_given_back() {
        let budget = Budget::new(100, 60);
        let (mut a, mut b) = (budget.share(), budget.share());
        assert_eq!((a.grow(60), a.grow(1)), (Ok(()), Err(Error::AnswerTooLarge(60))));
        assert_eq!((b.grow(41), b.grow(40)), (Err(Error::AnswersTooLarge(100)), Ok(())));
        assert_eq!(budget.used(), 100);
        b.note(40);
        b.shrink(10);
        assert_eq!((budget.used(), budget.share().grow(1)), (130, Err(Error::AnswersTooLarge(100))));
        drop(b);
        assert_eq!((budget.used(), budget.share().grow(40)), (60, Ok(())));
        drop(a);
        assert_eq!(budget.used(), 0);
    }
}
