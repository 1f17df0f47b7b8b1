//! openraft's own suite for log stores and state machines, over our log on a real disk and our apply shim.
//!
//! Its tests are called one by one because one of them (`transfer_snapshot`) hands a snapshot over without the files that
//! ours consist of; `snapshots.rs` sends real ones, and the refusal is tested below.

use std::sync::Arc;
use std::time::Duration;

use openraft::StorageError;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use daymark_raft::internals::{LogStore, Shared, StateAsSnapshot, StateMachine, TypeConfig};
use daymark_storage::disk::RealDisk;

use crate::support::{MEMBER, State, open_log, wal_options};

struct Builder;

/// Keeps the directory until the test has ended.
type Guard = TempDir;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("a directory");
        let (wal, _worker, _recovered) = open_log(Arc::new(RealDisk::new()), wal_options(dir.path()));
        let state = Flushing(State::default());
        let shared = Arc::new(Shared::new(MEMBER, Duration::from_secs(5), state.0.progress.clone()));
        Ok((dir, LogStore::new(wal, shared.clone()), StateMachine::new(Box::new(state), shared)))
    }
}

/// The suite looks at what is applied right after it was applied, as if every apply were flushed.
struct Flushing(State);

impl daymark_raft::Apply for Flushing {
    fn applied(&mut self) -> Result<daymark_raft::Applied, daymark_storage::StorageError> {
        self.0.applied()
    }
    fn submit(&mut self, entries: Vec<daymark_raft::Committed>) -> Result<(), daymark_storage::StorageError> {
        self.0.submit(entries)?;
        self.0.flush();
        Ok(())
    }
}

type S = Suite<TypeConfig, LogStore, StateMachine, Builder, Guard>;

macro_rules! suite {
    ($($name:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $name() {
            let (_guard, store, state_machine) = Builder.build().await.unwrap();
            S::$name(store, state_machine).await.unwrap();
        }
    )*};
}

suite! {
    last_membership_in_log_initial,
    last_membership_in_log,
    last_membership_in_log_multi_step,
    get_membership_initial,
    get_membership_from_log_and_empty_sm,
    get_membership_from_empty_log_and_sm,
    get_membership_from_log_le_sm_last_applied,
    get_membership_from_log_gt_sm_last_applied_1,
    get_membership_from_log_gt_sm_last_applied_2,
    get_initial_state_without_init,
    get_initial_state_membership_from_empty_log_and_sm,
    get_initial_state_membership_from_sm_inlog_is_smaller,
    get_initial_state_membership_from_log_insm_is_smaller,
    get_initial_state_with_state,
    get_initial_state_last_log_gt_sm,
    get_initial_state_last_log_lt_sm,
    get_initial_state_inverted_log_order,
    get_initial_state_conflict_at_same_index,
    get_initial_state_log_ids,
    get_initial_state_re_apply_committed,
    save_vote,
    get_log_entries,
    limited_get_log_entries,
    leader_bounded_stream,
    entries_stream,
    try_get_log_entry,
    log_reader_reads_new_entries,
    initial_logs,
    get_log_state,
    get_log_id,
    last_id_in_log,
    last_applied_state,
    purge_logs_upto_0,
    purge_logs_upto_5,
    purge_logs_upto_20,
    delete_logs_after_11,
    delete_logs_after_5,
    delete_logs_after_0,
    delete_logs_after_none,
    append_to_log,
    snapshot_meta,
    snapshot_meta_optional,
    apply_single,
    apply_multiple,
}

/// In place of the suite's `transfer_snapshot`: the refusal must be an error, never a success that did nothing.
#[tokio::test]
async fn installing_a_snapshot_without_files_is_refused() {
    let (_guard, _store, mut state_machine) = Builder.build().await.unwrap();
    assert!(state_machine.get_current_snapshot().await.unwrap().is_none());
    let forced = state_machine.try_create_snapshot_builder(true).await.unwrap().build_snapshot().await.unwrap();
    assert_eq!(forced.meta.last_log_id, None, "an empty state covers nothing of the log");
    let refused = state_machine
        .install_snapshot(&openraft::SnapshotMeta::default(), StateAsSnapshot::default())
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("without files"), "{refused}");
    assert_eq!(state_machine.applied_state().await.unwrap().0, None);
}
