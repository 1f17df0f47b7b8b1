//! How a member begins: a new cluster, or back with what is on disk. A lone voter campaigns at once instead of waiting
//! for a time-out, so that it leads within milliseconds of its start. Founders of a cluster all write the same first
//! entry, each for itself.

use std::collections::BTreeMap;

use openraft::Raft;

use daymark_storage::wal::Recovered;

use crate::driver::StartError;
use crate::membership::{MemberInfo, MemberNode};
use crate::state_machine::StateMachine;
use crate::types::TypeConfig;

/// How a member begins.
#[derive(Clone, Debug)]
pub enum Bootstrap {
    /// Nothing was ever in the log: these are the first members.
    New { members: Vec<MemberInfo> },
    /// The log says who takes part.
    Restarted,
}

impl Bootstrap {
    /// What the recovered log asks for. A directory whose log is empty was created by a start that did not get as far as
    /// the first membership; nothing was ever promised from it, so it begins anew.
    pub fn from_recovered(recovered: &Recovered, members: Vec<MemberInfo>) -> Self {
        let untouched = recovered.last.is_none() && recovered.released.is_none();
        if untouched { Self::New { members } } else { Self::Restarted }
    }
}

/// Refuses what cannot work, before anything is written.
pub(crate) async fn check(
    raft: &Raft<TypeConfig, StateMachine>,
    bootstrap: &Bootstrap,
    member_id: u64,
) -> Result<(), StartError> {
    let initialized = raft.is_initialized().await.map_err(|fatal| StartError::Open(fatal.to_string()))?;
    match bootstrap {
        Bootstrap::New { .. } if initialized => Err(StartError::NotNew),
        Bootstrap::New { members } => {
            let all_vote = members.iter().all(|member| !member.is_learner);
            let is_founder = members.iter().any(|member| member.id == member_id);
            if all_vote && is_founder { Ok(()) } else { Err(StartError::Members { member_id }) }
        }
        Bootstrap::Restarted if !initialized => Err(StartError::NotInitialized),
        Bootstrap::Restarted => Ok(()),
    }
}

/// Writes the first membership if there is none, then campaigns if nobody else could.
pub(crate) async fn begin(
    raft: &Raft<TypeConfig, StateMachine>,
    bootstrap: Bootstrap,
    member_id: u64,
) -> Result<(), String> {
    if let Bootstrap::New { members } = bootstrap {
        let nodes: BTreeMap<u64, MemberNode> =
            members.into_iter().map(|member| (member.id, MemberNode { peer_urls: member.peer_urls })).collect();
        raft.initialize(nodes).await.map_err(|error| format!("writing the first membership failed: {error}"))?;
    }
    let voters: Vec<u64> = raft.voter_ids().collect();
    if voters == [member_id] {
        raft.trigger().elect(false).await.map_err(|fatal| fatal.to_string())?;
    }
    Ok(())
}
