//! How members reach each other: connections over streams that the server opens and accepts. The only part of this crate
//! that knows bytes on a wire; nothing here knows addresses or TLS.
//!
//! ```text
//!  openraft --- network ---+                                  +--- serve --- openraft, calls
//!  follower --- forward ---+--- link --- connection === frame ===+
//!  server ----- call ------+   (opens)   (this end)            (that end)
//! ```
//!
//! Each kind of connection has a socket of its own, opened by whoever asks something: appends from the leader, votes and
//! heartbeats beside them, forwarded batches, calls, snapshots. Bytes are explained in `docs/formats/peer.md`.

mod seam;

mod frame;
mod hello;
mod message;
mod pace;

mod connection;
mod forward;
mod gone;
mod link;
mod network;
mod peers;
mod serve;
pub(crate) mod snapshot;
mod stats;

pub(crate) use forward::{Held, deliver, read_index, refuse};
pub(crate) use frame::Outbox;
pub(crate) use network::Factory;
pub(crate) use peers::Peers;
pub use peers::ask;
pub use seam::{BoxFuture, CallError, CallReply, Calls, Dialer, NoCalls, NoDialer, PeerIo, PeerOptions, PeerStream};
pub use snapshot::{RaftSnapshot, StateAsSnapshot};
pub use stats::{PeerTraffic, ROUND_TRIP_BUCKETS, round_trip_bounds};
