//! The load harness behind `daymark bench`. It drives Daymark or etcd over gRPC and reports what clients saw and what it
//! cost the server. It shares its processors with the server it measures, so its request path is kept lean and its own
//! cost is always part of the report.

pub mod cli;
mod driver;
mod floor;
pub mod guard;
mod h2_client;
mod histogram;
mod lease;
mod list;
mod pacing;
mod page;
mod proc;
mod progress;
mod put;
mod range;
mod report;
mod stm;
mod target;
mod txn_mixed;
mod txn_put;
mod watch;
mod watch_get;
mod watch_latency;
mod watchers;
mod workload;
