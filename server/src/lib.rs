//! One Daymark member as a library: net threads, services, replicated state and watch. The binary is `main.rs`.
//!
//! Reading order: [`request`] (the boundary to transports), [`services`] (the front door), [`command`] (what is
//! replicated), [`apply`] and [`state`] (what it does), [`views`] and [`mailbox`] (how the result gets back), [`watch`].

pub mod command;
pub mod config;
pub mod error;
pub mod limits;
pub mod logging;
pub mod mailbox;
pub mod metrics;
pub mod query;
pub mod request;
pub mod rpc;
pub mod views;

pub mod apply;
pub mod auth;
pub mod state;

pub mod policy;
pub mod services;
pub mod watch;

pub mod net;
pub mod server;

/// The etcd release whose API is served.
pub const ETCD_VERSION: &str = "3.7.1";
/// What clusters of that release agree on.
pub const CLUSTER_VERSION: &str = "3.7.0";
/// Daymark's own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
