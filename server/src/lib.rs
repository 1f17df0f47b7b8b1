//! One Daymark member as a library: net threads, services, replicated state and watch. The binary is `main.rs`.
//!
//! Reading order: [`request`] (the boundary to transports), [`services`] (the front door), [`command`] (what is
//! replicated), [`apply`] and [`state`] (what it does), [`views`] and [`mailbox`] (how the result gets back), [`watch`].

#![deny(clippy::unwrap_used)]

pub mod budget;
pub mod command;
#[allow(clippy::disallowed_methods, reason = "it reads its file")]
pub mod config;
pub mod error;
pub mod limits;
#[allow(clippy::disallowed_methods, reason = "lines have a time, and go to files")]
pub mod logging;
pub mod mailbox;
#[allow(clippy::disallowed_methods, reason = "what the system says of the process is in files")]
pub mod metrics;
pub mod query;
pub mod request;
pub mod rpc;
pub mod version;
pub mod views;

pub mod export;

pub mod auth;

#[allow(clippy::disallowed_methods, reason = "times for metrics and warnings, which decide nothing")]
pub mod apply;
pub mod state;

pub mod founding;
#[allow(clippy::disallowed_methods, reason = "other members take time to answer")]
pub mod peers;
#[allow(clippy::disallowed_methods, reason = "it looks at time and then proposes")]
pub mod policy;
#[allow(
    clippy::disallowed_methods,
    reason = "callers wait, and what needs a clock or chance is decided before it is proposed"
)]
pub mod services;
pub mod watch;

#[allow(clippy::disallowed_methods, reason = "connections have time-outs, and certificates are files")]
pub mod net;
#[allow(clippy::disallowed_methods, reason = "it starts and stops everything")]
pub mod server;
pub mod start_error;

pub mod echo;

pub mod tools;

pub use version::{CLUSTER_VERSION, ETCD_VERSION, VERSION};
