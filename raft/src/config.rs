//! openraft's configuration, field by field, with the reason of each default that is changed; and the bounds of this
//! crate's own queues. Not the command line: durations arrive checked from the server.

use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};

/// Bounds of this crate's queues, all in one place.
pub mod limits {
    use std::time::Duration;

    /// Commands committed but not yet applied, above which new batches are refused (etcd's `maxGapBetweenApplyAndCommitIndex`).
    pub const COMMANDS_AHEAD_MAX: u64 = 5_000;
    /// Command batches that wait for their apply; more are refused.
    pub const PENDING_BATCHES_MAX: usize = 65_536;
    /// Bytes of command batches that wait for their apply; more are refused.
    pub const PENDING_BYTES_MAX: usize = 128 << 20;
    /// Command batches handed over by net threads and not yet taken by the thread "raft".
    pub const INBOX_BATCHES_MAX: usize = 16_384;
    /// Bytes of the same.
    pub const INBOX_BYTES_MAX: usize = 64 << 20;
    /// Bytes of one command batch. A larger one is a mistake of the server, which bounds requests far below; it is
    /// refused because an entry that does not fit into a segment of the log would stop the member.
    pub const BATCH_BYTES_MAX: usize = 32 << 20;
    /// Bytes of entries that wait for the log's thread, above which new batches are refused. An append that the log
    /// refuses stops the member, so `LOG_QUEUE_BYTES_MAX + PENDING_BYTES_MAX` must stay below the log's own bound,
    /// `WalOptions::queue_bytes_max`: what is admitted while the queue is just short of this one fits behind it.
    pub const LOG_QUEUE_BYTES_MAX: u64 = 64 << 20;
    /// Changes of the membership that wait for the one under way; more are refused.
    pub const CHANGES_WAITING_MAX: usize = 64;
    /// How often a leader looks whether new members have caught up, and who answers.
    pub const MEMBERS_INTERVAL: Duration = Duration::from_millis(100);
    /// Log entries that a new member may lack when it gets its vote: they are sent in one or two rounds.
    pub const PROMOTION_LAG_MAX: u64 = 128;
    /// Callers that wait for one read barrier.
    pub const READ_WAITERS_MAX: usize = 65_536;
    /// How long a batch is held that somebody has refused because he does not lead.
    pub const REFUSAL_PAUSE: Duration = Duration::from_millis(10);
    /// How long a batch still waits for its apply when the connection that it went to the leader on is lost: this part of an
    /// election time-out.
    pub const FORWARD_GRACE_SHARE: u32 = 8;
    /// Pause before a leader is asked for its read index again, unless leadership changes before.
    pub const READ_RETRY_PAUSE: Duration = Duration::from_millis(20);
    /// Appends to one follower that it has not answered. openraft takes 64 at a time on the other side.
    pub const APPENDS_IN_FLIGHT_MAX: usize = 64;
    /// Their bytes; one append may pass it.
    pub const APPEND_BYTES_IN_FLIGHT_MAX: usize = 16 << 20;
    /// Bytes of forwarded batches that wait for room on the connection to the leader; one batch may pass it.
    pub const FORWARD_BYTES_MAX: usize = 8 << 20;
    /// Votes, heartbeats and read barriers of one connection that are worked on.
    pub const CONTROLS_MAX: usize = 256;
    /// Calls of one connection that are under way.
    pub const CALLS_MAX: usize = 1024;
    /// Connections of other members: five from each, and some that are about to end.
    pub const PEER_CONNECTIONS_MAX: usize = 256;
    /// Answers that wait for room on a connection of another member, above which nothing more is read from it.
    pub const PEER_OUTBOX_BYTES_MAX: usize = 16 << 20;
    /// How long a new connection may take to say who it is.
    pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
    /// How long a connection of another member may be silent, at least; three election time-outs if that is longer.
    pub const PEER_SILENCE_MIN: Duration = Duration::from_secs(5);
    /// Payload bytes read from the log at once.
    pub const READ_CHUNK_BYTES: u64 = 4 << 20;
    /// Payload bytes handed to apply at once.
    pub const SUBMIT_CHUNK_BYTES: usize = 4 << 20;
    /// Payload bytes handed to apply and not yet applied, above which handing over pauses: a replay after a crash
    /// must not pull the whole log into memory.
    pub const SUBMIT_AHEAD_BYTES_MAX: u64 = 64 << 20;
    /// How often a paused hand-over looks whether apply has moved.
    pub const SUBMIT_PAUSE: Duration = Duration::from_millis(1);
    /// How often deadlines of waiting batches are looked at. Also how late a time-out may be told.
    pub const EXPIRY_INTERVAL: Duration = Duration::from_millis(250);
    /// Bytes of a snapshot's file that are read, sent and written at once.
    pub const SNAPSHOT_PIECE_BYTES: usize = 256 << 10;
    /// How fast a snapshot is sent at most: a gigabit link is a quarter full, and disks have room for everything else.
    pub const SNAPSHOT_BYTES_PER_SEC: u64 = 32 << 20;
    /// How fast it is sent at least, however busy the sender is: it has to come to its end.
    pub const SNAPSHOT_BYTES_PER_SEC_MIN: u64 = 4 << 20;
    /// How often the sender looks whether it hurts its log or its own thread.
    pub const SNAPSHOT_PACE_INTERVAL: Duration = Duration::from_millis(200);
    /// How much later than it asked for the sending thread may be woken before it counts as hurt.
    pub const SNAPSHOT_WAKE_LATE_MAX: Duration = Duration::from_millis(5);
    /// Syncs of the log that are so many times as long as they are on average count as hurt, if they are longer than that
    /// at all.
    pub const SNAPSHOT_SYNC_GROWTH_MAX: u32 = 2;
    pub const SNAPSHOT_SYNC_HURT_MIN: Duration = Duration::from_millis(1);
    /// Niceness of threads that make and check snapshots.
    pub const BACKGROUND_NICE: i32 = 10;
    /// How often progress of a snapshot is logged.
    pub const SNAPSHOT_PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
    /// How often a member that makes, checks or installs a snapshot says that it is at it.
    pub const SNAPSHOT_BUSY_INTERVAL: Duration = Duration::from_secs(1);
    /// A snapshot's connection on which nothing moves for so long is given up.
    pub const SNAPSHOT_SILENCE_MAX: Duration = Duration::from_secs(10);
    /// How often snapshots that nobody sends are looked for.
    pub const SNAPSHOT_TIDY_INTERVAL: Duration = Duration::from_secs(5);
    /// Log that is kept for peers that are behind; one that needs more gets a snapshot.
    pub const LOG_KEPT_FOR_PEERS_BYTES: u64 = 512 << 20;
    /// etcd's base of a proposal's time-out; twice the election time-out is added, so that one leader change fits.
    pub const PROPOSE_TIMEOUT_BASE: Duration = Duration::from_secs(5);
}

/// How long a batch may wait for its apply before it is told [`TimedOut`](crate::ProposeError::TimedOut).
pub(crate) fn propose_timeout(election: Duration) -> Duration {
    limits::PROPOSE_TIMEOUT_BASE + 2 * election
}

/// How long a leader counts on a quorum that has confirmed it.
pub(crate) fn leader_lease(election: Duration) -> Duration {
    election * 13 / 20
}

/// `heartbeat` and `election` have the meaning of etcd's flags: a silent leader is given up after about one `election`.
pub(crate) fn openraft_config(cluster_id: u64, heartbeat: Duration, election: Duration) -> Result<Config, ConfigError> {
    let heartbeat_ms = millis(heartbeat);
    let election_ms = millis(election);
    let lease_ms = millis(leader_lease(election));
    // The whole struct is spelled out so that an upgrade that adds a field does not compile until it was looked at.
    #[expect(deprecated, reason = "the field exists and a literal has to name it")]
    let config = Config {
        // Only a label in openraft's own log lines.
        cluster_name: format!("{cluster_id:x}"),
        // openraft campaigns after `max + rand(min, max)`, not after `rand(min, max)`: with these after 0.9 to 1.3 election
        // time-outs, where etcd's span is 1 to 2: with two followers writes pause no longer than there by median either.
        // `max` is the leader lease as well.
        election_timeout_min: (election_ms / 4).max(heartbeat_ms + 1),
        election_timeout_max: lease_ms,
        heartbeat_interval: heartbeat_ms,
        // No suppression: `election_timeout_min` leaves no room for a heartbeat that comes late by design.
        heartbeat_min_interval: Some(0),
        // Snapshots are not shipped by openraft's chunks but file by file; one file may take this long.
        install_snapshot_timeout: 60_000,
        send_snapshot_timeout: 0,
        // Entries per append to a follower. One entry is a command batch of up to some hundred kB, so the count is kept
        // low; the byte limit is in `LogReader::limited_get_log_entries`.
        max_payload_entries: 64,
        // Entries per append to our own log. The log's thread groups commits itself, so this only bounds one hand-over.
        max_append_entries: Some(1024),
        // Only how close a learner must come before a blocking `add_learner` returns; to be looked at with members.
        replication_lag_threshold: 5000,
        // openraft counts entries, we count bytes and time: the backend's durable applied id drives it.
        snapshot_policy: SnapshotPolicy::Never,
        // Unused: snapshots are not cut into openraft's chunks.
        snapshot_max_chunk_size: 3 << 20,
        // `Handle::release_log` says exactly what may go; openraft adds no margin of its own.
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        // Bounded by our own inbox already; the defaults are above it.
        api_channel_size: Some(65_536),
        api_batch_capacity: 4096,
        // Batches are gathered by net threads per tick; waiting here would only add latency.
        api_batch_linger_ms: 0,
        notification_channel_size: Some(65_536),
        state_machine_channel_size: Some(1024),
        log_stage_capacity: None,
        // Overlaps sync and replication at some cost per batch; to be measured.
        broadcast_submitted_on_append: None,
        enable_tick: true,
        enable_heartbeat: true,
        enable_elect: true,
        // A removed leader hands over and steps down once its followers had time to learn of the commit.
        removed_leader_step_down: openraft::StepDownPolicy::After(election_ms),
        // A leader that lost its quorum refuses reads by ReadIndex and writes by its lease; that it is quiet for a while
        // as well lets those that hear it, but are not heard by it, elect another one. The least that openraft allows.
        quorum_loss_probe_interval: Some(2 * lease_ms),
        // A member that was cut off must not disturb a healthy leader with a higher term when it comes back.
        enable_pre_vote: Some(true),
        backoff: "100ms 200ms ..1s".to_string(),
        reset_backoff_on_transfer_leader: None,
        // A member whose log went backwards has lost acknowledged entries. Else openraft would send it what it cannot take,
        // again and again without a pause; it is told in the log by `Peer::note_lacking`.
        allow_log_reversion: Some(true),
        // `save_committed` is not stored and apply is asynchronous, the two conditions under which a restored leader
        // could serve a state older than one it served before. An election costs a lone voter milliseconds.
        enable_leader_restore: Some(false),
    };
    config.validate()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_default_timing_is_accepted() {
        let config = openraft_config(7, Duration::from_millis(100), Duration::from_millis(1000)).unwrap();
        assert_eq!((config.election_timeout_min, config.election_timeout_max), (250, 650));
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
    }

    #[test]
    fn an_election_shorter_than_the_heartbeat_is_refused() {
        assert!(openraft_config(7, Duration::from_millis(100), Duration::from_millis(100)).is_err());
    }
}
