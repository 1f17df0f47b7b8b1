//! Raft over a real log: openraft's own conformance suite, one voter on a real disk and on a failing one, and what it
//! costs. The replicated state is a small one of the tests' own, which forgets at a crash what was not flushed.

#![allow(clippy::disallowed_methods, reason = "tests use real files and real time")]

mod catch_up;
mod cluster;
mod conformance;
mod faults;
mod hostile;
mod net;
mod one_voter;
mod snapshots;
mod speed;
mod support;
