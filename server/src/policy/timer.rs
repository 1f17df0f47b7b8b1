//! A thread that does the same small work again and again until it is stopped or the work fails. Knows no work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use daymark_storage::Result;

/// The running thread.
pub struct Running {
    stop: Arc<AtomicBool>,
    join: JoinHandle<()>,
}

impl Running {
    /// Ends the thread after what it is doing.
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.join.thread().clone();
        thread.unpark();
        if self.join.join().is_err() {
            tracing::error!(thread = thread.name(), "a thread had panicked");
        }
    }
}

/// Starts the thread `name`, which takes a `step`, then pauses for `interval`, and so on. A failure ends it and is given
/// to `on_fatal`.
pub fn start(
    name: &str,
    interval: Duration,
    mut step: impl FnMut() -> Result<()> + Send + 'static,
    on_fatal: Box<dyn FnOnce(String) + Send>,
) -> std::io::Result<Running> {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let join = thread::Builder::new().name(name.into()).spawn(move || {
        while !stopping.load(Ordering::SeqCst) {
            if let Err(error) = step() {
                return on_fatal(error.to_string());
            }
            thread::park_timeout(interval);
        }
    })?;
    Ok(Running { stop, join })
}
