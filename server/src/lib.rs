//! One Daymark member as a library: net threads, services, replicated state and watch. The binary is `main.rs`.
//!
//! Reading order: [`request`] (the boundary to transports), [`services`] (the front door), [`command`] (what is
//! replicated), [`apply`] and [`state`] (what it does), [`views`] and [`mailbox`] (how the result gets back), [`watch`].

pub mod budget;
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
pub mod version;
pub mod views;

pub mod export;

pub mod auth;

pub mod apply;
pub mod state;

pub mod founding;
pub mod peers;
pub mod policy;
pub mod services;
pub mod watch;

pub mod net;
pub mod server;

pub mod tools;

pub use version::{CLUSTER_VERSION, ETCD_VERSION, VERSION};
