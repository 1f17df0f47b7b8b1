//! The keyspace: against a naive model, under concurrent readers, and through crashes.

mod concurrency;
mod counts;
mod generated;
mod hashes;
#[cfg(feature = "rocksdb")]
mod killed;
#[cfg(feature = "rocksdb")]
mod memory;
mod model;
mod rules;
mod scripts;
#[cfg(feature = "rocksdb")]
mod space;
