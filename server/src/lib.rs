//! One Daymark member as a library: net threads, services, replicated state and watch. The binary is `main.rs`.
//!
//! Reading order: [`request`] (the boundary to transports), [`services`] (the front door), [`command`] (what is
//! replicated), [`apply`] and [`state`] (what it does), [`views`] and [`mailbox`] (how the result gets back), [`watch`].

pub mod config;
pub mod limits;
pub mod error;
pub mod metrics;
pub mod request;
pub mod command;
pub mod views;
pub mod mailbox;
pub mod query;

pub mod apply;
pub mod state;

pub mod services;
pub mod watch;
pub mod policy;

pub mod net;
pub mod server;
