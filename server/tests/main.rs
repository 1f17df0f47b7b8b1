//! The tests of this crate that need more than one part of it, in one binary.

mod commands;
mod door;
mod language;
mod member;
mod process;
mod replay;
mod scripts;
