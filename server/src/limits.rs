//! Every bound on queues, caches, buffers, streams and connections of the server, in one place.

use std::time::Duration;

/// Command batches of one net thread that are proposed and not yet answered. What arrives meanwhile joins the next
/// one: batches grow with load, and a lone client never waits for others.
pub const COMMAND_BATCHES_IN_FLIGHT_MAX: usize = 4;
/// A command batch is closed when it has this many bytes.
pub const COMMAND_BATCH_BYTES_MAX: usize = 1 << 20;
/// A command batch is closed when it has this many commands.
pub const COMMAND_BATCH_COUNT_MAX: usize = 1024;
/// Bytes of commands of one net thread that wait to be proposed; more are refused.
pub const COMMANDS_WAITING_BYTES_MAX: usize = 64 << 20;
/// How often a net thread looks for commands that waited too long and gives watchers a turn without a cause.
pub const NET_TICK: Duration = Duration::from_millis(100);

/// Size of one write batch at which apply commits it and begins another.
pub const WRITE_BATCH_BYTES_MAX: usize = 8 << 20;
/// Applied batches that wait for one net thread, in bytes; what does not fit is read from history.
pub const APPLIED_BYTES_MAX: usize = 32 << 20;
/// Lease changes that wait for the lessor; when more come it reads the table instead.
pub const LEASE_CHANGES_MAX: usize = 65_536;

/// Bytes of pairs that a Range reads on the net thread; longer ones go to the pool.
pub const RANGE_INLINE_BYTES_MAX: usize = 32 << 10;

/// Log bytes applied but not durable in the backend, above which a flush is asked for: bounds the replay after a crash.
pub const REPLAY_BYTES_MAX: u64 = 32 << 20;
/// How often the upkeep looks at what is durable.
pub const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);

/// How often the lessor looks for leases whose time is over.
pub const LEASE_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Leases that one such look ends at most. etcd ends 500 (1000 a second), each with its own log entry; here they share
/// one, so that a burst of expiries is bounded by the size of one write batch instead.
pub const LEASES_EXPIRED_AT_ONCE_MAX: usize = 5_000;
