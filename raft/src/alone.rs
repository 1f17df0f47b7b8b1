//! What is left of a cluster that has lost its quorum for good: one member that goes on without the others. Writes into its
//! log, before openraft reads that, what no quorum can decide any more. Everything in the log stays, also what was perhaps
//! never committed.

use std::io;

use daymark_storage::LogId;
use daymark_storage::wal::{Done, EntryKind, LogEntry, Vote, Wal};
use tokio::sync::oneshot;

use crate::config::limits;
use crate::membership::{self, MemberNode};
use crate::state_machine::Applied;
use crate::types::RaftMembership;

/// Appends a membership of this member alone, in a term of its own, unless that is what the log says already. The others
/// are then removed like any other member: they are refused if they come back.
pub(crate) async fn make(wal: &Wal, applied: &Applied, member_id: u64) -> Result<(), String> {
    let newest = newest_membership(wal, applied)?;
    if membership::is_alone(&newest, member_id) {
        tracing::warn!("--force-new-cluster has nothing to do: this member is alone; take the flag away");
        return Ok(());
    }
    let node = newest.get_node(&member_id).cloned();
    let node = node.ok_or_else(|| "this member does not take part in its cluster any more".to_owned())?;
    let last = wal.last().max(wal.released());
    let last = last.ok_or_else(|| "there is nothing in the log to go on with".to_owned())?;
    let voted = wal.vote().map_or(0, |vote| vote.term);
    let term = voted.max(last.term) + 1;
    let alone = RaftMembership::new(
        vec![[member_id].into()],
        std::collections::BTreeMap::from([(member_id, MemberNode { joins_as_voter: false, ..node })]),
    );
    let payload = membership::encode(&alone.map_err(|error| error.to_string())?);
    let id = LogId { term, index: last.index + 1 };
    let entry = LogEntry { id, kind: EntryKind::Membership, payload };
    finish("the vote", |done| wal.save_vote(Vote { term, voted_for: Some(member_id), committed: true }, done)).await?;
    finish("the membership", |done| wal.append(vec![entry], done)).await?;
    tracing::warn!(entry = %id, "goes on alone: every other member of the cluster is removed");
    Ok(())
}

/// The last one in the log, else the one in the state.
fn newest_membership(wal: &Wal, applied: &Applied) -> Result<RaftMembership, String> {
    let unreadable = |error: &dyn std::fmt::Display| format!("who takes part cannot be read: {error}");
    let mut newest = match &applied.membership {
        Some(bytes) => {
            let stored = membership::decode_stored(bytes).map_err(|error| unreadable(&error))?;
            stored.membership().clone()
        }
        None => RaftMembership::default(),
    };
    let end = wal.last().map_or(0, |last| last.index + 1);
    let mut next = applied.id.max(wal.released()).map_or(0, |id| id.index + 1);
    while next < end {
        let entries = wal.entries(next, end, limits::READ_CHUNK_BYTES).map_err(|error| unreadable(&error))?;
        let Some(last) = entries.last() else { return Err(unreadable(&"the log has a gap")) };
        next = last.id.index + 1;
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Membership) {
            newest = membership::decode(&entry.payload).map_err(|error| unreadable(&error))?;
        }
    }
    Ok(newest)
}

/// Waits for the log's thread.
async fn finish(what: &str, begin: impl FnOnce(Done) -> daymark_storage::Result<()>) -> Result<(), String> {
    let (told, finished) = oneshot::channel();
    // Awaited below.
    let done: Done = Box::new(move |result| drop(told.send(result)));
    let failed = |error: &dyn std::fmt::Display| format!("writing {what} failed: {error}");
    begin(done).map_err(|error| failed(&error))?;
    match finished.await {
        Ok(written) => written.map_err(|error| failed(&error)),
        Err(_) => Err(failed(&io::Error::from(io::ErrorKind::BrokenPipe))),
    }
}
