//! Placeholder.

pub mod watch;
