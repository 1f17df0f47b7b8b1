//! What the tests with real processes share: starting and killing servers, finding the etcd that answers are compared
//! with, running etcdctl, calling methods as anybody, remembering acknowledged writes, cutting the power of a file system. No tests here.

pub mod certificates;
pub mod changing;
pub mod cluster;
pub mod connection;
pub mod ctl;
pub mod etcd;
pub mod history;
pub mod liar;
pub mod links;
pub mod nemesis;
pub mod normalise;
pub mod pki;
pub mod ports;
pub mod powercut;
pub mod process;
pub mod registers;
pub mod script;
pub mod skip;
pub mod tree;
pub mod wire;

/// A number out of the environment, or its default. Panics on nonsense: a mistyped setting must not weaken a test.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// The seed of a generated test: `DAYMARK_SEED`, else a new one. Print it, so that a failure can be repeated.
pub fn seed() -> u64 {
    match setting("DAYMARK_SEED", 0) {
        0 => rand::random(),
        seed => seed,
    }
}
