//! The tests of this crate, in one binary.

mod backend;
mod disk;
mod mvcc;
mod wal;
