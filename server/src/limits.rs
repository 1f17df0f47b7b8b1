//! Every bound on queues, caches, buffers, streams and connections, and the split of the one memory budget. Only
//! numbers: who owns a queue enforces its bound.

use std::time::Duration;

// Requests.

/// What a message may be larger than the request in it, as in etcd.
pub const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;
/// Largest value of `--max-request-bytes`: a request and what shares its command batch fit into one log entry.
pub const REQUEST_BYTES_MAX: usize = 30 << 20;
/// Above it the member warns at start, as etcd does.
pub const REQUEST_BYTES_RECOMMENDED: usize = 10 << 20;
/// Largest response that protobuf's receivers accept: 2^31 - 1.
pub const RESPONSE_BYTES_MAX: usize = i32::MAX as usize;
/// How long a request may take before it is logged, unless set.
pub const WARNING_UNARY_REQUEST: Duration = Duration::from_millis(300);
/// Size limit of the data if none is given.
pub const QUOTA_BYTES: u64 = 2 << 30;

// Connections.

/// Net threads of one member.
pub const NET_THREADS_MAX: usize = 64;
/// Connections of one member; one more is closed at once. Also bounded by the limit of open files.
pub const CONNECTIONS_MAX: usize = 16_384;
/// Streams of one connection, whatever `--max-concurrent-streams` says.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 131_072;
/// HTTP/2 flow control: what one stream may send before it is read. Above it a large request needs a round trip.
pub const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// What all streams of a connection may send before it is read.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Streams of one connection that the other end cancels in a second; with h2, those that it has cancelled before they were
/// looked at. Callers with short deadlines cancel many at once.
pub const CANCELLED_STREAMS_MAX: usize = 10_000;
/// Streams of one connection that the server has ended early and remembers for a second, so that what is still on its
/// way for them is dropped in silence.
pub const ENDED_STREAMS_REMEMBERED_MAX: usize = 10_000;
/// Faults of the other end that each cost one stream, over the life of a connection; one more closes it. Connections
/// live for months.
pub const STREAM_FAULTS_MAX: usize = 1_000_000;
/// What small data frames that wait in one connection may cost beside their bytes, 256 bytes each: as many requests as
/// one turn of the net thread reads.
pub const FRAME_OVERHEAD_BYTES_MAX: usize = 16 << 20;
/// Data frames without data that may follow one another on a connection.
pub const EMPTY_FRAMES_MAX: usize = 10_000;
/// Settings of the other end, over the life of a connection. Clients say them once, and once more when they have measured
/// the way.
pub const SETTINGS_FRAMES_MAX: usize = 10_000;
/// A header block before it is decompressed, and the frames that it comes in.
pub const HEADER_BLOCK_BYTES_MAX: usize = 256 * 1024;
pub const HEADER_BLOCK_FRAMES_MAX: usize = 64;
/// Heads of one connection that are known by their bytes, and how large they may be.
pub const KNOWN_HEADS_MAX: usize = 8;
pub const KNOWN_HEAD_BYTES_MAX: usize = 4 * 1024;
/// What is read from a connection at once, and the least room there is for it.
pub const READ_BYTES: usize = 32 * 1024;
pub const READ_BYTES_MIN: usize = 8 * 1024;
/// Reads of one connection before others have their turns.
pub const READS_PER_TURN: usize = 2;
/// Streams for which an idle connection keeps memory, some hundred bytes each.
pub const STREAMS_KEPT_MAX: usize = 256;
/// Unary calls for which an idle connection keeps memory, some two kilobytes each.
pub const CALLS_KEPT_MAX: usize = 16;
/// How long the other end may take to hear why its connection ends.
pub const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// Headers of one request, decompressed.
pub const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Bytes on their way into one socket, gathered before a write.
pub const WRITE_BUFFER_BYTES: usize = 64 * 1024;
/// How long a new connection may take to say which protocol it speaks.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head of the first HTTP/1 request of a connection may take.
pub const HTTP1_HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an HTTP/1 connection may wait for its next request, head included. Longer than the usual clients keep idle
/// connections (90 s), so that none sends a request into one that is being closed.
pub const HTTP1_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Head of one HTTP/1 request.
pub const HTTP1_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Connections of one net thread that have not shown yet what they speak; for one more the oldest is closed.
pub const NEWCOMERS_MAX: usize = 1024;
/// What is read, and how long, from a member whose certificate was refused, so that it hears why.
pub const REFUSED_BYTES_READ_MAX: u64 = 64 << 10;
pub const REFUSED_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a TLS handshake may take, as in etcd.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Steps of TLS handshakes in one turn of a net thread. A step may cost a millisecond, for which others wait.
pub const HANDSHAKE_STEPS_PER_TURN: usize = 2;
/// Failed handshakes that a net thread logs in a second; more are counted and summed up in one line.
pub const HANDSHAKE_FAILURES_LOGGED: u64 = 10;
/// Handshakes that wait for a look at the TLS files; more go on with what was read last.
pub const TLS_LOOKS_WAITING_MAX: usize = 4096;
/// How long a handshake waits for a look at the TLS files before it goes on with what was read last.
pub const TLS_LOOK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pings of a client that come too soon and are forgiven, as in grpc-go.
pub const PING_STRIKES_MAX: u32 = 2;
/// Least distance of pings of a client that has no call open, as in grpc-go.
pub const PING_MIN_TIME_IDLE: Duration = Duration::from_secs(2 * 3600);
/// Least distance of pings if none is configured, as in grpc-go.
pub const PING_MIN_TIME_DEFAULT: Duration = Duration::from_secs(300);
/// Looks at a connection in one keepalive interval: a silent one is noticed at most this part of it too late.
pub const KEEPALIVE_LOOKS: u32 = 4;
/// Largest message that is compressed; larger ones would hold up the net thread.
pub const DEFLATE_BYTES_MAX: usize = 256 << 10;
/// Connections that a net thread has been given and has not taken yet.
pub const ACCEPTED_QUEUE_MAX: usize = 1024;
/// Kernel's queue of connections not yet accepted.
pub const LISTEN_BACKLOG: i32 = 1024;

// JSON gateway.

/// How deep JSON may nest, as in Go: what is skipped costs a byte a level.
pub const JSON_DEPTH_MAX: usize = 10_000;
/// How deep messages may nest, as gRPC's decoder has it.
pub const MESSAGE_DEPTH_MAX: usize = 100;
/// How much longer than its message a document may be: base64 takes four thirds, names and quotes the rest.
pub const JSON_BYTES_PER_MESSAGE_BYTE: usize = 2;
/// Documents and messages above it are transcoded on the pool.
pub const JSON_INLINE_BYTES_MAX: usize = 256 << 10;
/// How long a document may take from its first byte to its last.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// What the bodies that one net thread is reading may hold together; more are refused.
pub const BODIES_BYTES_MAX: usize = 64 << 20;
/// Messages of one WebSocket that wait to be read.
pub const WEBSOCKET_QUEUE_MAX: usize = 4;

// Streams.

/// Encoded messages that wait in the response half of one stream; its owner stops producing above it.
pub const STREAM_QUEUE_BYTES_MAX: usize = 256 * 1024;
/// Encoded events that wait for a lock, campaign or observer to look at them; one message may pass it.
pub const INNER_WATCH_BYTES_MAX: usize = 64 * 1024;
/// Messages of one stream that are gathered into one frame.
pub const STREAM_GATHER_BYTES: usize = 16 * 1024;

// Write path.

/// Command batches of one net thread that are proposed and not yet answered. What arrives meanwhile joins the next
/// one: batches grow with load, and a lone client never waits for others.
pub const COMMAND_BATCHES_IN_FLIGHT_MAX: usize = 4;
/// A command batch is closed when it has this many bytes.
pub const COMMAND_BATCH_BYTES_MAX: usize = 1 << 20;
/// A command batch is closed when it has this many commands.
pub const COMMAND_BATCH_COUNT_MAX: usize = 1024;
/// Bytes of commands of one net thread that wait to be proposed; more are refused.
pub const COMMANDS_WAITING_BYTES_MAX: usize = 64 << 20;
/// What revoking leases may wait for on top of that, with the gate PriorityRequest: leases that cannot end keep the work
/// of clients that have gone.
pub const REVOKES_WAITING_BYTES_MAX: usize = 2 * COMMANDS_WAITING_BYTES_MAX;
/// A read barrier that takes longer is logged and counted, as in etcd.
pub const READ_INDEX_SLOW: Duration = Duration::from_millis(500);
/// How often a net thread looks for commands that waited too long and gives watchers a turn without a cause.
pub const NET_TICK: Duration = Duration::from_millis(100);

/// Entries of at most so many bytes may be applied on the thread "raft" when the thread "apply" has nothing to do.
pub const APPLY_HERE_BYTES_MAX: usize = 16 << 10;

/// Size of one write batch at which apply commits it and begins another.
pub const WRITE_BATCH_BYTES_MAX: usize = 8 << 20;
/// Applied batches that wait for one net thread, in bytes; what does not fit is read from history.
pub const APPLIED_BYTES_MAX: usize = 32 << 20;
/// Lease changes that wait for the lessor; when more come it reads the table instead.
pub const LEASE_CHANGES_MAX: usize = 65_536;

/// Bytes of pairs that a Range reads on the net thread; longer ones go to the pool.
pub const RANGE_INLINE_BYTES_MAX: usize = 32 << 10;

/// Bytes of pairs in the answer of a transaction that writes, previous pairs included: apply builds it while everything
/// else waits. The same on every member, whatever its size, and part of what commands mean (docs/formats/commands.md).
pub const TXN_ANSWER_BYTES_MAX: usize = 64 << 20;
/// What a pair takes in memory beside its bytes, while an answer is built.
pub const PAIR_OVERHEAD_BYTES: usize = 256;
/// Encoded answers above it are handed to their connections no faster than the other end reads them.
pub const ANSWER_BYTES_INLINE: usize = 256 << 10;
/// Least and most memory for answers to reads, of all requests under way.
pub const ANSWERS_BYTES_MIN: usize = 256 << 20;
pub const ANSWERS_BYTES_MAX: usize = 16 << 30;

/// Memory for answers to reads: for all, and for one of them. Half of the machine, within bounds: a list of some hundred
/// megabytes is served wherever there is memory for it, and no number of them takes more.
pub fn answer_budget(machine_bytes: u64) -> (usize, usize) {
    let all = usize::try_from(machine_bytes / 2).unwrap_or(usize::MAX).clamp(ANSWERS_BYTES_MIN, ANSWERS_BYTES_MAX);
    (all, all / 2)
}

/// What such a Range reads at once, before it looks whether its caller is still there.
pub const RANGE_PIECE_BYTES: usize = 256 << 10;
/// Pairs in the first piece of a RangeStream, as in etcd: it is read on the net thread and soon there.
pub const STREAM_FIRST_PAIRS: usize = 10;
/// Threads of the blocking pool of one net thread.
pub const POOL_THREADS: usize = 4;
/// Reads on the pool of one net thread. One thread is left for watchers that catch up.
pub const POOL_READS_MAX: usize = POOL_THREADS - 1;
/// Requests of one net thread that wait for the pool; more are refused.
pub const POOL_WAITERS_MAX: usize = 4096;
/// How long a net thread waits at its end for what the pool still does.
pub const POOL_STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a read of the current revision begins, if history is dropped under it each time.
pub const READ_TRIES_MAX: usize = 8;

/// Log bytes applied but not durable in the backend, above which a flush is asked for: bounds the replay after a crash.
pub const REPLAY_BYTES_MAX: u64 = 32 << 20;
/// How often the upkeep looks at what is durable.
pub const UPKEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Looks after which raft is asked again to release a log that it has not released.
pub const RELEASE_LOOKS: u32 = 4;

/// How often the fences for counting are brought along.
pub const FENCES_INTERVAL: Duration = Duration::from_millis(50);
/// Keys that are read for that at most each time, some 0.3 us each: a tenth of a core.
pub const FENCE_READS_IDLE: usize = 16_384;
/// The same while clients write: a fiftieth.
pub const FENCE_READS_BUSY: usize = 4096;
/// Revisions between two looks above which they do.
pub const FENCES_BUSY_REVISIONS: i64 = 100;

/// How often free space is looked at: what arrives until the next look has to fit into the reserve.
pub const ROOM_INTERVAL: Duration = Duration::from_millis(100);
/// Free space below which writes that add data are refused: this part of the volume (5 %), but within the bounds below.
pub const DISK_RESERVE_SHARE: u64 = 20;
/// A segment of the log, a flush of the memtables, some merging, and what arrives until the next look.
pub const DISK_RESERVE_BYTES_MIN: u64 = 256 << 20;
/// More is not needed on a large volume.
pub const DISK_RESERVE_BYTES_MAX: u64 = 1 << 30;
/// Free space below which deletes are refused as well, as they add to history: what compaction needs to free some.
pub const DISK_HARD_RESERVE_BYTES: u64 = 128 << 20;

/// How often the lessor looks for leases whose time is over.
pub const LEASE_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Leases that one such look ends at most. etcd ends 500 (1000 a second), each with its own log entry; here many share
/// one, and others have their turn between two of them.
pub const LEASES_EXPIRED_AT_ONCE_MAX: usize = 5_000;
/// Leases that one command ends or notes the time of.
pub const LEASES_PER_COMMAND_MAX: usize = 500;
/// Commands with checkpoints that one look proposes.
pub const LEASE_CHECKPOINTS_AT_ONCE_MAX: usize = 100;
/// How often the time that a lease has left is noted, where that is switched on; as in etcd.
pub const LEASE_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(300);
/// Leases of which apply remembers who has a right to all of their keys, some 100 bytes each.
pub const LEASE_RIGHTS_MAX: usize = 65_536;
/// Bytes of keys of a lease that are looked at on the net thread when it is renewed; more are looked at on the pool.
pub const LEASE_KEYS_INLINE_BYTES_MAX: usize = 64 << 10;
/// Bytes of keys in the answer about one lease.
pub const LEASE_KEYS_BYTES_MAX: usize = 64 << 20;

/// How often a login begins again because users or roles have changed while the password was looked at.
pub const AUTHENTICATE_TRIES_MAX: usize = 8;

/// One file of the log.
pub const WAL_SEGMENT_BYTES: u64 = 64 << 20;
/// Entries that wait for the log, in bytes. Raft admits less than that, so that an append is never refused.
pub const WAL_QUEUE_BYTES_MAX: u64 = 256 << 20;

// Auth.

/// Life of a simple token after its last use, unless set.
pub const SIMPLE_TOKEN_TTL: Duration = Duration::from_secs(300);
/// Simple tokens of one member, some 250 bytes each; one more takes the place of one that was not used lately. With
/// passwords at their default price a core checks fewer than 10,000 within the life of a token.
pub const TOKENS_MAX: usize = 65_536;
/// Requests of one net thread whose token says that it comes from a login which is not known yet. Each may hold the
/// largest message; more are refused at once.
pub const TOKEN_WAITS_MAX: usize = 64;
/// Life of a JSON web token, unless set.
pub const JWT_TTL: Duration = Duration::from_secs(300);
/// Largest JSON web token that is looked at.
pub const JWT_BYTES_MAX: usize = 8 * 1024;
/// JSON web tokens whose signature has been checked and is remembered.
pub const JWT_CACHE_MAX: usize = 4096;
/// Largest key file.
pub const KEY_FILE_BYTES_MAX: u64 = 1 << 20;
/// Threads that hash passwords.
pub const PASSWORD_THREADS_MAX: usize = 4;
/// Their niceness: a core that has something else to do gives them a tenth of its time. Less, and nobody could log in to a
/// member that has its hands full.
pub const PASSWORD_NICE: i32 = 10;
/// How long a password may wait for its turn; who waited longer is refused, as nobody listens any more.
pub const PASSWORD_WAIT_MAX: Duration = Duration::from_secs(10);
/// Passwords that wait to be hashed or checked: what one thread gets done within a request's timeout at the default
/// price, 55 ms each. More are refused, as they would wait in vain.
pub const PASSWORD_QUEUE_MAX: usize = 128;
/// Of them those of one account, so that who guesses at it does not keep the others out.
pub const PASSWORDS_PER_ACCOUNT_MAX: usize = 16;
/// How long a login waits for room before it is refused, so that a flood is not answered faster than it can be borne: on
/// average, some half as long and some half as long again.
pub const PASSWORD_REFUSAL_DELAY: Duration = Duration::from_secs(1);
/// Logins that do so, a few kilobytes each with their streams; more are refused at once.
pub const PASSWORDS_DELAYED_MAX: usize = 4096;

// Snapshots.

/// Snapshots that are made or sent at a time; others wait.
pub const SNAPSHOTS_MAX: usize = 2;
/// What is read of history at once while one is made, and how often its maker looks whether to go on.
pub const EXPORT_PIECE_BYTES: usize = 4 << 20;
/// The same for keys that do not go into the file yet.
pub const EXPORT_CHECK_RECORDS: u64 = 4096;
/// Memory in which keys are sorted; more go through files.
pub const EXPORT_SORT_BYTES: usize = 32 << 20;

// Members.

/// How long a connection to a member may take to be opened; raft gives up after twice the election time-out anyway.
pub const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence after which the system asks whether the other machine is still there. Raft itself asks more often.
pub const PEER_KEEPALIVE_TIME: Duration = Duration::from_secs(10);
/// Distance of such questions.
pub const PEER_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Connections on the peer listener that have not shown yet what they are; more are rejected.
pub const PEERS_ARRIVING_MAX: usize = 256;
/// How long a member must have been answering to count when members change, as in etcd.
pub const STEADY_MEMBER_TIME: Duration = Duration::from_secs(5);
/// Pause before a change of members that another has overtaken is tried again.
pub const CHANGE_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long a member whose question about a change got no answer looks whether it has been made.
pub const CHANGE_SEEN_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a member that is asked for the hash of a revision waits until it has that.
pub const HASH_WAIT: Duration = Duration::from_secs(2);
/// How long another member may take to read all of its records.
pub const HASH_RECORDS_WAIT: Duration = Duration::from_secs(3600);
/// How often somebody who waits for a leader looks.
pub const LEADER_POLL: Duration = Duration::from_millis(20);
/// Questions of other members that wait for an answer; more are not served.
pub const PEER_QUESTIONS_MAX: usize = 4096;
/// How long a member that was removed goes on, so that whoever asked for it hears of it; as in etcd.
pub const REMOVED_GRACE: Duration = Duration::from_secs(1);
/// Pause before a member tries again to tell the cluster who it is.
pub const PUBLISH_RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long one peer may take to say who takes part, as in etcd.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for a founder, which does not need the answer.
pub const ASK_TIMEOUT_OF_FOUNDERS: Duration = Duration::from_secs(1);

/// Peer addresses of one member.
pub const PEER_URLS_MAX: usize = 64;
/// Length of one of them.
pub const PEER_URL_BYTES_MAX: usize = 1024;

// Log lines.

/// Lines that wait for the outputs of the log; more are given up and counted.
pub const LOG_LINES_WAITING_MAX: usize = 16_384;
/// The same in bytes.
pub const LOG_WAITING_BYTES_MAX: usize = 8 << 20;
/// How long the end of the process waits for the outputs of the log.
pub const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

// Watch.

/// How often a net thread looks whether its streams still have a leader, and shows what is watched.
pub const STREAM_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// What the watchers of one stream may take: each `WATCHER_BYTES` and the bytes of its key and end, so that it is some
/// 800,000 with usual keys. One more is refused.
pub const WATCHERS_OF_STREAM_BYTES_MAX: usize = 256 << 20;
/// The same for all streams of one net thread.
pub const WATCHERS_OF_THREAD_BYTES_MAX: usize = 1 << 30;
/// What a watcher takes beside its key and end, with its places in the tables.
pub const WATCHER_BYTES: usize = 256;

/// Distance of progress bookmarks, unless set.
pub const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(600);
pub const WATCH_PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// How the memory budget is split. The parts are [`CACHED_FIFTHS`] of it; the rest is for the program, its connections, usual
/// requests, merging, and what the allocator has not given back yet. What unusual requests need comes on top and is
/// bounded above.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MemorySplit {
    /// RocksDB's block cache and memtables.
    pub backend_bytes: u64,
    /// The keyspace's cache of hot records.
    pub record_cache_bytes: u64,
    /// Newest log entries kept in memory.
    pub wal_tail_bytes: u64,
    /// Applied batches kept for watchers, of each net thread.
    pub ring_bytes: u64,
}

/// Least memory budget: below it RocksDB stalls.
pub const MEMORY_BUDGET_BYTES_MIN: u64 = 96 << 20;
/// Most that is taken if no budget is given.
pub const MEMORY_BUDGET_BYTES_DEFAULT: u64 = 400 << 20;
/// So many fifths of the budget are caches and buffers. Under full load, with a large store, the process takes up to 145 MiB
/// beside them.
pub const CACHED_FIFTHS: u64 = 3;
/// Most of the log's end that is kept in memory: what was not long ago on its way to other members, some 50,000 small
/// puts. What lies further back is in the system's file cache.
pub const WAL_TAIL_BYTES_MAX: u64 = 16 << 20;

/// The budget in force: as given, else a quarter of the machine, within bounds.
pub fn memory_budget(given_bytes: u64, machine_bytes: u64) -> u64 {
    let wanted = match given_bytes {
        0 => (machine_bytes / 4).min(MEMORY_BUDGET_BYTES_DEFAULT),
        given => given,
    };
    wanted.max(MEMORY_BUDGET_BYTES_MIN)
}

/// Splits a budget: of the cached part a quarter for hot records, an eighth for the rings together, no more than that for the
/// log's tail, and the rest for the backend. A record takes a thirtieth of the block that it would be looked up in.
pub fn split_memory(budget_bytes: u64, net_threads: usize) -> MemorySplit {
    let cached = budget_bytes / 5 * CACHED_FIFTHS;
    let (record_cache_bytes, rings_bytes) = (cached / 4, cached / 8);
    let wal_tail_bytes = (cached / 8).min(WAL_TAIL_BYTES_MAX);
    MemorySplit {
        backend_bytes: cached - record_cache_bytes - rings_bytes - wal_tail_bytes,
        record_cache_bytes,
        wal_tail_bytes,
        ring_bytes: rings_bytes / net_threads.max(1) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_stay_within_the_budget() {
        for budget in [MEMORY_BUDGET_BYTES_MIN, MEMORY_BUDGET_BYTES_DEFAULT, (1 << 30) + 7] {
            for threads in [0, 1, 2, 3, 64] {
                let split = split_memory(budget, threads);
                let rings = split.ring_bytes * threads.max(1) as u64;
                let sum = split.backend_bytes + split.record_cache_bytes + split.wal_tail_bytes + rings;
                let cached = budget / 5 * CACHED_FIFTHS;
                assert!(sum <= cached && sum + 64 >= cached, "{budget} {threads}: {split:?}");
            }
        }
    }

    #[test]
    fn the_budget_follows_the_machine_within_bounds() {
        assert_eq!(memory_budget(0, 64 << 30), MEMORY_BUDGET_BYTES_DEFAULT);
        assert_eq!(memory_budget(0, 1 << 30), 256 << 20);
        assert_eq!(memory_budget(0, 1 << 20), MEMORY_BUDGET_BYTES_MIN);
        assert_eq!(memory_budget(1 << 30, 1 << 20), 1 << 30);
    }
}
