//! Threads beside that of the writers: what they do must not look like a slow write.

use std::thread::{self, JoinHandle};

use daymark_tests::wire::runtime;

/// Niceness of threads that make a crowd.
const CROWD_NICE: i32 = 10;

/// Runs this on a thread of its own.
pub fn aside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    thread::spawn(move || runtime().block_on(work))
}

/// The same for what would come from other machines: the cores that it takes to make a crowd are not the server's fault.
pub fn far_away<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    thread::spawn(move || {
        rustix::process::setpriority_process(Some(rustix::thread::gettid()), CROWD_NICE).expect("lower is allowed");
        runtime().block_on(work)
    })
}
