//! The tests of this crate, in one binary.

mod disk;
mod wal;

mod backend;
mod mvcc;
