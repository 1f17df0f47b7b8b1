//! The keyspace: against a naive model, under concurrent readers, and through crashes.

mod concurrency;
mod generated;
mod model;
mod rules;
#[cfg(feature = "rocksdb")]
mod space;
