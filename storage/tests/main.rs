//! The one test binary of the crate.

mod backend;
mod mvcc;
