//! Placeholder.
pub mod ring;
