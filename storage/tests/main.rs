//! The tests of this crate, in one binary.

#![allow(clippy::disallowed_methods, reason = "tests use real files and real time")]

mod backend;
mod disk;
mod mvcc;
mod snapshot;
mod wal;

/// As in the server, so that what is measured of memory is what it takes.
#[cfg(feature = "rocksdb")]
#[global_allocator]
static ALLOCATOR: daymark_storage::Jemalloc = daymark_storage::Jemalloc;
