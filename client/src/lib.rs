//! Client library for Daymark and etcd: keys, transactions, watches that resume by themselves, leases, locks, elections,
//! users. Speaks etcd's gRPC API and knows nothing of how a server works.
//!
//! ```no_run
//! # async fn example() -> daymark_client::Result<()> {
//! use daymark_client::{Client, Config, KeyRange};
//!
//! let client = Client::new(Config::new(["127.0.0.1:2379"]))?;
//! client.kv().put("jobs/1", "waiting").await?;
//! let mut watcher = client.watch().start(KeyRange::prefix("jobs/"), Default::default()).await?;
//! while let Some(update) = watcher.next().await? {
//!     println!("{update:?}");
//! }
//! # Ok(())
//! # }
//! ```

pub mod auth;
pub mod channel;
pub mod cluster;
pub mod config;
pub mod dial;
pub mod election;
pub mod error;
pub mod key_range;
pub mod kv;
pub mod lease;
pub mod lock;
mod login;
pub mod maintenance;
mod retry;
pub mod txn;
pub mod watch;

pub use config::Config;
pub use daymark_api as api;
pub use error::{ClientError, Result};
pub use key_range::KeyRange;

use crate::channel::Pool;

/// A client of one cluster. Cloning is cheap; clones share the connections.
#[derive(Clone, Debug)]
pub struct Client {
    pool: Pool,
}

impl Client {
    /// A client that connects when it is first used. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError::Config`] for an endpoint that cannot be parsed, or when there is none.
    pub fn new(config: Config) -> Result<Self> {
        Ok(Self { pool: Pool::new(config)? })
    }

    /// Keys and transactions.
    pub fn kv(&self) -> kv::Kv {
        kv::Kv::new(self.pool.clone())
    }

    /// Watches.
    pub fn watch(&self) -> watch::Watch {
        watch::Watch::new(self.pool.clone())
    }

    /// Leases.
    pub fn lease(&self) -> lease::Lease {
        lease::Lease::new(self.pool.clone())
    }

    /// Users, roles and permissions.
    pub fn auth(&self) -> auth::Auth {
        auth::Auth::new(self.pool.clone())
    }

    /// Locks.
    pub fn lock(&self) -> lock::Lock {
        lock::Lock::new(self.pool.clone())
    }

    /// Elections.
    pub fn election(&self) -> election::Election {
        election::Election::new(self.pool.clone())
    }

    /// The members of the cluster.
    pub fn cluster(&self) -> cluster::Cluster {
        cluster::Cluster::new(self.pool.clone())
    }

    /// State and alarms of single members.
    pub fn maintenance(&self) -> maintenance::Maintenance {
        maintenance::Maintenance::new(self.pool.clone())
    }
}
