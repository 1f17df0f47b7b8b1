//! What apply publishes for readers on other threads: the keyspace's revisions, the applied index, alarms, members and
//! leases. Readers load; only apply stores. Nothing here is a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use crossbeam_queue::ArrayQueue;
use daymark_storage::LogId;
use daymark_storage::mvcc::Keyspace;

use daymark_api::etcdserverpb as pb;

use crate::auth::table::AuthTable;
use crate::auth::token::{TokenSpec, Tokens};
use crate::limits;
use crate::mailbox::Mailbox;
use crate::metrics::{AppliedCounters, FailureCounters, MemberDurations, PromotionCounters};
use crate::policy::size::SizeGauge;
use crate::state::lease::LeaseChange;
use crate::state::members::MemberList;

/// How much room the disks have for more writes, best first.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Room {
    /// Everything is served.
    Ample = 0,
    /// What adds data is refused; deletes go on.
    Scarce = 1,
    /// Deletes are refused as well, and leases do not end: they add to history. Reads, keepalives and compaction go on.
    Spent = 2,
}

impl Room {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Ample,
            1 => Self::Scarce,
            _ => Self::Spent,
        }
    }
}

/// The published state of one member. Shared by all threads behind one `Arc`.
pub struct Views {
    /// Reads at published revisions.
    pub keyspace: Arc<Keyspace>,
    /// This cluster and this member; fixed.
    pub cluster_id: u64,
    pub member_id: u64,
    /// Inboxes of the net threads, by thread number; fixed.
    pub mailboxes: Vec<Arc<Mailbox>>,
    /// Log index up to which `keyspace` and everything below is current. Stored after they are.
    applied_index: AtomicU64,
    applied_term: AtomicU64,
    /// Bytes of commands applied since the start; only grows.
    applied_bytes: AtomicU64,
    /// A [`Room`].
    room: AtomicU8,
    /// How large the data is.
    pub size: SizeGauge,
    /// What apply has done, for metrics.
    pub counters: AppliedCounters,
    /// What went wrong on the way there, likewise.
    pub failures: FailureCounters,
    /// How long maintenance took, for metrics.
    pub durations: MemberDurations,
    /// What became of requests to promote learners, likewise.
    pub promotions: PromotionCounters,
    /// What happened to leases, for the lessor.
    pub leases: LeaseFeed,
    /// Active alarms, ordered by member and type.
    pub alarms: ArcSwap<Vec<pb::AlarmMember>>,
    /// Who takes part, and who no longer does.
    pub members: ArcSwap<MemberList>,
    /// Where members are reached that the list does not know yet: founders before the first entry, and the cluster that
    /// this member joins.
    known_before: ArcSwap<Vec<pb::Member>>,
    /// This member is a learner.
    is_learner: AtomicBool,
    /// Users, roles and whether they are asked for. Stored before the revisions that were made under it, so that nobody
    /// reads something newer than the rights it is checked against.
    pub auth: ArcSwap<AuthTable>,
    /// Who has logged in. Not replicated: every member keeps its own.
    pub tokens: Tokens,
}

impl Views {
    /// Views of a keyspace that has been opened and not yet replayed.
    pub fn new(keyspace: Arc<Keyspace>, cluster_id: u64, member_id: u64, mailboxes: Vec<Arc<Mailbox>>) -> Arc<Self> {
        let tokens = Tokens::new(TokenSpec::default(), limits::SIMPLE_TOKEN_TTL);
        Self::with_tokens(keyspace, cluster_id, member_id, mailboxes, tokens)
    }

    /// As [`Views::new`], with tokens of a certain kind or life.
    pub fn with_tokens(
        keyspace: Arc<Keyspace>,
        cluster_id: u64,
        member_id: u64,
        mailboxes: Vec<Arc<Mailbox>>,
        tokens: Tokens,
    ) -> Arc<Self> {
        Arc::new(Self {
            keyspace,
            cluster_id,
            member_id,
            mailboxes,
            applied_index: AtomicU64::new(0),
            applied_term: AtomicU64::new(0),
            applied_bytes: AtomicU64::new(0),
            room: AtomicU8::new(Room::Ample as u8),
            size: SizeGauge::default(),
            counters: AppliedCounters::default(),
            failures: FailureCounters::default(),
            durations: MemberDurations::default(),
            promotions: PromotionCounters::default(),
            leases: LeaseFeed::new(limits::LEASE_CHANGES_MAX),
            alarms: ArcSwap::default(),
            members: ArcSwap::default(),
            known_before: ArcSwap::default(),
            is_learner: AtomicBool::new(false),
            auth: ArcSwap::default(),
            tokens,
        })
    }

    /// Log index up to which the published state is current.
    pub fn applied_index(&self) -> u64 {
        self.applied_index.load(Ordering::SeqCst)
    }

    /// Apply only, and whoever installs a state: the member list has changed.
    pub fn publish_members(&self, members: Arc<MemberList>) {
        let is_learner = members.get(self.member_id).is_some_and(|member| member.is_learner);
        self.members.store(members);
        self.is_learner.store(is_learner, Ordering::Release);
    }

    /// At start: where members are reached until the list says so.
    pub fn know_before(&self, members: Vec<pb::Member>) {
        self.known_before.store(Arc::new(members));
    }

    /// Whether this member is a learner: one atomic load.
    pub fn is_learner(&self) -> bool {
        self.is_learner.load(Ordering::Acquire)
    }

    /// Whether this member no longer takes part, for good.
    pub fn was_removed(&self) -> bool {
        self.members.load().removed.contains(&self.member_id)
    }

    /// Where other members reach this one; nothing for one that was removed or is not known.
    pub fn peer_urls(&self, id: u64) -> Vec<String> {
        let members = self.members.load();
        if let Some(member) = members.get(id) {
            return member.peer_ur_ls.clone();
        }
        if members.removed.contains(&id) {
            return Vec::new();
        }
        let before = self.known_before.load();
        before.iter().find(|member| member.id == id).map(|member| member.peer_ur_ls.clone()).unwrap_or_default()
    }

    /// Term of the entry at [`Views::applied_index`].
    pub fn applied_term(&self) -> u64 {
        self.applied_term.load(Ordering::Relaxed)
    }

    /// How much room the disks have.
    pub fn room(&self) -> Room {
        Room::from_u8(self.room.load(Ordering::Relaxed))
    }

    /// Whoever looks at the disks: how much room they have. Returns what was known before.
    pub fn set_room(&self, room: Room) -> Room {
        Room::from_u8(self.room.swap(room as u8, Ordering::Relaxed))
    }

    /// Bytes of commands applied since the start.
    pub fn applied_bytes(&self) -> u64 {
        self.applied_bytes.load(Ordering::Relaxed)
    }

    /// Apply only: counts applied bytes.
    pub fn add_applied_bytes(&self, bytes: u64) {
        self.applied_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Apply only: everything up to `id` is published.
    pub fn set_applied(&self, id: LogId) {
        self.applied_term.store(id.term, Ordering::Relaxed);
        self.applied_index.store(id.index, Ordering::SeqCst);
    }
}

/// Lease changes on their way from apply to the lessor. Bounded, and apply never waits: when it is full, changes are
/// left out and the lessor is told to read the table.
pub struct LeaseFeed {
    changes: ArrayQueue<LeaseChange>,
    overflowed: AtomicBool,
}

impl LeaseFeed {
    fn new(capacity: usize) -> Self {
        Self { changes: ArrayQueue::new(capacity), overflowed: AtomicBool::new(false) }
    }

    /// Apply, before the first change: the lessor has to read the table as it is.
    pub fn begin(&self) {
        self.overflowed.store(true, Ordering::SeqCst);
    }

    /// Apply, once the change is published.
    pub fn push(&self, change: LeaseChange) {
        if self.changes.push(change).is_err() {
            self.overflowed.store(true, Ordering::SeqCst);
        }
    }

    /// Lessor: the next change.
    pub fn pop(&self) -> Option<LeaseChange> {
        self.changes.pop()
    }

    /// Lessor: whether changes were left out since the last call. If so it empties the queue and then reads the table,
    /// in this order: what is pushed after that may repeat what the table held already, which is harmless.
    pub fn take_overflow(&self) -> bool {
        self.overflowed.swap(false, Ordering::SeqCst)
    }
}
