//! Daymark's use of openraft, and the only crate that names its types: a member with a real and durable vote, log,
//! membership and applied id, alone or among others. Commands are opaque bytes here; keys, revisions and clients are unknown.
//!
//! Reading order: `handle` (all that the server may ask), `batch` and `pending` (from a command batch to an entry
//! and back to whoever waits for it), `read_barrier`, `log_store` and `state_machine` (the two duties openraft
//! gives us, both only enqueue), `driver` (the thread "raft"), `transport` (how members reach each other).
//!
//! # Invariants
//!
//! - `released <= applied id durable in the backend <= applied <= committed <= last_index`
//! - A waiter is told its outcome at most once: by apply, which takes it out of `pending`, or by a [`ProposeError`].
//! - The thread "raft" never syncs a file and never calls the backend.

mod types;

mod config;
mod executor;
mod runtime;

mod handle;

mod batch;
mod pending;
mod read_barrier;

mod log_store;
mod state_machine;

mod changes;
mod membership;

mod alone;
mod bootstrap;
mod driver;
mod status;
mod transport;

pub use batch::{BatchId, CommandBatch, ProposeError, Waiter};
pub use bootstrap::Bootstrap;
pub use changes::{ChangeError, MemberChange};
pub use config::limits;
pub use driver::{RaftOptions, StartError, start};
pub use handle::{Handle, TransferError};
pub use membership::{MemberInfo, MembershipInfo, encode_members, membership_of};
pub use pending::AppliedProgress;
pub use state_machine::{Applied, Apply, Committed, EntryBody, Installed};
pub use status::RaftStatus;
pub use transport::{
    BoxFuture, CallError, CallReply, Calls, Dialer, NoCalls, NoDialer, PeerIo, PeerOptions, PeerStream, PeerTraffic,
    ROUND_TRIP_BUCKETS, ask, round_trip_bounds,
};

/// What openraft's own conformance suite needs to see of us. Not for the server: nothing outside of this crate's tests
/// may name openraft's types.
#[doc(hidden)]
pub mod internals {
    pub use crate::driver::Shared;
    pub use crate::log_store::{LogReader, LogStore};
    pub use crate::membership::MemberNode;
    pub use crate::state_machine::{SnapshotBuilder, StateMachine};
    pub use crate::transport::snapshot::{RaftSnapshot, Receiver, StateAsSnapshot, receive, send};
    pub use crate::types::{RaftVote, TypeConfig};
}
