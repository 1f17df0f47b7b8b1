//! The engine driven by hand, on a real keyspace: every rule of etcd's watch, and a comparison with a naive model over
//! generated sequences. No threads, no sleeps.

mod model;
mod rules;
mod world;
