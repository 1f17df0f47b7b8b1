//! The tests of this crate that need more than one part of it, in one binary.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests use real files and real time")]

mod auth;
mod commands;
mod coordination;
mod door;
mod language;
mod leases;
mod maintenance;
mod member;
mod members;
mod pages;
mod process;
mod range_stream;
mod replay;
mod scripts;
mod snapshot;
