//! Who has been found to have the right to every key of a lease, so that attaching the next key does not look at all of
//! them again: without it a lease with n keys costs n looks for each more. Derived from tables and log, never kept.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::command::Identity;
use crate::limits;

/// What was found, by lease.
///
/// Invariants: whoever stands for a lease may write every key that is attached to it, by the table of that revision,
/// because they attached all keys that came since it was looked at; at most `LEASE_RIGHTS_MAX` leases.
#[derive(Default)]
pub struct LeaseRights(BTreeMap<i64, Right>);

struct Right {
    user: Bytes,
    table_revision: u64,
}

impl LeaseRights {
    /// Whether nothing needs to be looked at.
    pub fn has(&self, lease: i64, who: &Identity, table_revision: u64) -> bool {
        let is_whose = |right: &Right| right.user == who.user && right.table_revision == table_revision;
        // A caller with an older view of the rights is told so by the first key.
        who.auth_revision == table_revision && self.0.get(&lease).is_some_and(is_whose)
    }

    /// Notes that all keys were looked at, and that what comes next comes from this caller.
    pub fn found(&mut self, lease: i64, who: &Identity, table_revision: u64) {
        if self.0.len() >= limits::LEASE_RIGHTS_MAX {
            self.0.clear();
        }
        self.0.insert(lease, Right { user: who.user.clone(), table_revision });
    }

    /// Somebody attaches keys whom nobody has looked at.
    pub fn forget(&mut self, lease: i64) {
        self.0.remove(&lease);
    }

    /// Anybody may attach keys.
    pub fn forget_all(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, auth_revision: u64) -> Identity {
        Identity { user: Bytes::copy_from_slice(user.as_bytes()), auth_revision }
    }

    #[test]
    fn a_right_is_one_users_until_rights_change_or_somebody_else_attaches() {
        let mut rights = LeaseRights::default();
        let (alice, bob) = (identity("alice", 3), identity("bob", 3));
        rights.found(1, &alice, 3);
        assert!(rights.has(1, &alice, 3));
        assert!(!rights.has(2, &alice, 3) && !rights.has(1, &bob, 3));
        assert!(!rights.has(1, &alice, 4), "the table has changed");
        assert!(!rights.has(1, &identity("alice", 2), 3), "the caller is behind");
        rights.found(1, &bob, 3);
        assert!(rights.has(1, &bob, 3) && !rights.has(1, &alice, 3));
        rights.forget(1);
        assert!(!rights.has(1, &bob, 3));
    }

    #[test]
    fn they_are_bounded() {
        let (mut rights, alice) = (LeaseRights::default(), identity("alice", 1));
        (0..=limits::LEASE_RIGHTS_MAX as i64).for_each(|lease| rights.found(lease, &alice, 1));
        assert_eq!(rights.0.len(), 1);
    }
}
