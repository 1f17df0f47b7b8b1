//! What survives: the disk seam, the write-ahead log, the backend and the MVCC keyspace. Knows nothing of raft's
//! rules, of commands, of networks or of clocks.
//!
//! Reading order: [`disk`] (the only way to files), [`wal`] (raft's log and vote), [`backend`] (families of ordered
//! bytes), [`mvcc`] (the keyspace that clients see), [`snapshot`] (all of the state, on its way to another member).

pub mod codec;
pub mod disk;
pub mod error;
pub mod log_id;
pub mod sim_disk;
pub mod wal;

pub mod bbolt;
pub mod sorter;

pub mod backend;
pub mod mvcc;

pub mod snapshot;

pub use error::{Result, StorageError};
pub use log_id::LogId;

/// The allocator that RocksDB is linked with; the binary makes it Rust's too.
#[cfg(feature = "rocksdb")]
pub use tikv_jemallocator::Jemalloc;
