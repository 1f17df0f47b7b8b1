//! Long work on the store that an operator has asked for, each on a thread of its own and one at a time: what answers
//! clients must not wait behind it. Does not know what the work is.

use std::sync::Arc;
use std::thread;

use tokio::sync::{Mutex, oneshot};

use crate::error::Error;

/// Where such work waits for its turn. Shared by all net threads.
#[derive(Default)]
pub struct LongWork {
    turn: Arc<Mutex<()>>,
}

impl LongWork {
    /// Runs `work` on the thread "reclaim" once the work before it has ended. Work that has begun goes on when its caller
    /// goes away.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let turn = self.turn.clone().lock_owned().await;
        let (answer, result) = oneshot::channel();
        let spawned = thread::Builder::new().name("reclaim".into()).spawn(move || {
            let result = work();
            drop(turn);
            // Nobody waits any more if the caller has gone.
            let _ = answer.send(result);
        });
        spawned.map_err(|error| Error::Internal(format!("the thread \"reclaim\" could not be started: {error}")))?;
        match result.await {
            Ok(result) => result,
            Err(_) => Err(Error::Internal("the thread \"reclaim\" has panicked".into())),
        }
    }

    /// Whether work is under way or waits.
    pub fn is_busy(&self) -> bool {
        self.turn.try_lock().is_err()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_at_a_time_and_to_its_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let long = LongWork::default();
            let (release, held) = mpsc::channel::<()>();
            let (told, done) = mpsc::channel();
            let mut first = Box::pin(long.run(move || {
                held.recv().expect("released");
                told.send("first").expect("somebody waits");
                Ok(())
            }));
            assert_eq!((&mut first).now_or_never(), None);
            assert!(long.is_busy());
            let mut second = Box::pin(long.run(|| Ok(())));
            assert_eq!((&mut second).now_or_never(), None);
            drop(first);
            assert_eq!((&mut second).now_or_never(), None, "the first goes on without its caller");
            release.send(()).expect("it waits");
            assert_eq!(second.await, Ok(()));
            assert_eq!(done.recv(), Ok("first"));
            assert!(!long.is_busy());
        });
    }
}
