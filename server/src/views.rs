//! What apply publishes for readers on other threads: the keyspace's revisions, the applied index, alarms, members and
//! leases. Readers load; only apply stores. Nothing here is a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use daymark_storage::LogId;
use daymark_storage::mvcc::Keyspace;

use daymark_api::etcdserverpb as pb;

use crate::mailbox::Mailbox;

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
    /// Active alarms, ordered by member and type.
    pub alarms: ArcSwap<Vec<pb::AlarmMember>>,
    /// Members by id, as `MemberList` shows them.
    pub members: ArcSwap<Vec<pb::Member>>,
}

impl Views {
    /// Views of a keyspace that has been opened and not yet replayed.
    pub fn new(keyspace: Arc<Keyspace>, cluster_id: u64, member_id: u64, mailboxes: Vec<Arc<Mailbox>>) -> Arc<Self> {
        Arc::new(Self {
            keyspace,
            cluster_id,
            member_id,
            mailboxes,
            applied_index: AtomicU64::new(0),
            applied_term: AtomicU64::new(0),
            alarms: ArcSwap::default(),
            members: ArcSwap::default(),
        })
    }

    /// Log index up to which the published state is current.
    pub fn applied_index(&self) -> u64 {
        self.applied_index.load(Ordering::SeqCst)
    }

    /// Term of the entry at [`Views::applied_index`].
    pub fn applied_term(&self) -> u64 {
        self.applied_term.load(Ordering::Relaxed)
    }

    /// Apply only: everything up to `id` is published.
    pub fn set_applied(&self, id: LogId) {
        self.applied_term.store(id.term, Ordering::Relaxed);
        self.applied_index.store(id.index, Ordering::SeqCst);
    }
}
