//! The tests of this crate, in one binary.

#![allow(clippy::disallowed_methods, reason = "tests use real files and real time")]

mod backend;
mod disk;
mod mvcc;
mod wal;
