//! RocksDB's memtables, as a B+ tree instead of its skip list: see `tree`. `bridge.cc` is the class that RocksDB wants,
//! `bridge.rs` what it calls.

#[cfg(feature = "rocksdb")]
mod bridge;
#[cfg(test)]
mod tests;
mod tree;

#[cfg(feature = "rocksdb")]
pub(super) use bridge::option;
