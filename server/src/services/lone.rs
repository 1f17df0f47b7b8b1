//! Whether a net thread serves one writer and nobody else. The thread then does the whole write itself, disk included,
//! instead of waking three others one after the other: for a lone writer that takes longer than a fast disk's sync.
//!
//! It takes a run of writes that came strictly one after the other and were all answered quickly. Any other call on this
//! thread, and any slow answer, ends the run: nobody else has to wait behind a disk.

use std::cell::Cell;
use std::time::Duration;

/// Writes one after the other before the thread begins to do them itself.
const RUN_MIN: u32 = 32;

/// An answer that takes longer ends the run: on a slow disk a wake costs nothing.
const ANSWER_TIME_MAX: Duration = Duration::from_millis(1);

/// The run of lone writes on one net thread.
#[derive(Default)]
pub struct LoneWriter {
    /// Calls of any kind begun on this thread.
    calls: Cell<u64>,
    run: Cell<u32>,
}

/// One write, as seen by [`LoneWriter`].
pub struct LoneWrite {
    calls: u64,
}

impl LoneWriter {
    /// A call of any kind begins.
    pub fn on_call(&self) {
        self.calls.set(self.calls.get().wrapping_add(1));
    }

    /// A write begins.
    pub fn begin(&self) -> LoneWrite {
        LoneWrite { calls: self.calls.get() }
    }

    /// Whether the thread may do the write that has just begun itself.
    pub fn may_wait(&self) -> bool {
        self.run.get() >= RUN_MIN
    }

    /// The write was answered after that time, which is looked at only where nobody else has called.
    pub fn end(&self, write: &LoneWrite, answer_time: impl FnOnce() -> Duration) {
        let is_lone = self.calls.get() == write.calls && answer_time() <= ANSWER_TIME_MAX;
        self.run.set(if is_lone { self.run.get().saturating_add(1) } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(writer: &LoneWriter) {
        writer.on_call();
        writer.end(&writer.begin(), || ANSWER_TIME_MAX);
    }

    #[test]
    fn it_takes_a_run_of_quick_writes_without_anybody_else() {
        let writer = LoneWriter::default();
        for _ in 0..RUN_MIN {
            assert!(!writer.may_wait());
            write(&writer);
        }
        assert!(writer.may_wait());

        writer.on_call();
        writer.end(&writer.begin(), || 2 * ANSWER_TIME_MAX);
        assert!(!writer.may_wait(), "after a slow answer");

        (0..RUN_MIN).for_each(|_| write(&writer));
        writer.on_call();
        let disturbed = writer.begin();
        writer.on_call();
        writer.end(&disturbed, || unreachable!("it was disturbed"));
        assert!(!writer.may_wait(), "after somebody else's call");
    }
}
