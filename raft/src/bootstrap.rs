//! How a member begins: with the founders of a new cluster, as one that a cluster has added, or back with what is on disk.
//! A lone voter campaigns at once instead of waiting for a time-out, so that it leads within milliseconds of its start.

use std::collections::BTreeMap;

use openraft::Raft;
use openraft::errors::{InitializeError, RaftError};

use daymark_storage::wal::Recovered;

use crate::driver::StartError;
use crate::membership::{MemberInfo, MemberNode};
use crate::state_machine::StateMachine;
use crate::types::TypeConfig;

/// How a member begins.
#[derive(Clone, Debug)]
pub enum Bootstrap {
    /// Nothing was ever in the log: these are the first members, the same on each of them. All have a vote.
    New { members: Vec<MemberInfo> },
    /// Nothing was ever in the log: a cluster has added this member and sends it what it has.
    Joining,
    /// The log says who takes part.
    Restarted,
    /// The same, but all others are lost and removed.
    Alone,
}

impl Bootstrap {
    /// What the recovered log asks for. A directory whose log is empty was created by a start that did not get as far as
    /// the first membership; nothing was ever promised from it, so it begins as `anew` says.
    ///
    /// A vote without a log was given to another founder, who has the first membership and sends it.
    pub fn from_recovered(recovered: &Recovered, anew: Self) -> Self {
        let untouched = recovered.last.is_none() && recovered.released.is_none();
        let has_voted = recovered.vote.as_ref().is_some_and(|vote| vote.term > 0);
        match (untouched, has_voted) {
            (false, _) => Self::Restarted,
            (true, true) => Self::Joining,
            (true, false) => anew,
        }
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
            let is_founder = members.iter().any(|member| member.id == member_id);
            match is_founder && members.iter().all(|member| member.has_vote) {
                true => Ok(()),
                false => Err(StartError::Members { member_id }),
            }
        }
        Bootstrap::Joining => Ok(()),
        Bootstrap::Restarted | Bootstrap::Alone if !initialized => Err(StartError::NotInitialized),
        Bootstrap::Restarted | Bootstrap::Alone => Ok(()),
    }
}

/// Writes the first membership if there is none, then campaigns where nobody else has to be waited for.
pub(crate) async fn begin(
    raft: &Raft<TypeConfig, StateMachine>,
    bootstrap: Bootstrap,
    member_id: u64,
) -> Result<(), String> {
    let is_new = matches!(bootstrap, Bootstrap::New { .. });
    if let Bootstrap::New { members } = bootstrap {
        write_first_membership(raft, members).await?;
    }
    let voters: Vec<u64> = raft.voter_ids().collect();
    // Of the founders one goes first, so that they do not all campaign after the same time-out. If the others are not
    // there yet, that is all the same.
    let goes_first = voters == [member_id] || (is_new && voters.first() == Some(&member_id));
    if goes_first {
        let asks_before = voters.len() > 1;
        raft.trigger().elect(asks_before).await.map_err(|fatal| fatal.to_string())?;
    }
    Ok(())
}

/// Each founder writes the same first entry. One that another founder has reached before has it, or gets it, from there.
async fn write_first_membership(raft: &Raft<TypeConfig, StateMachine>, members: Vec<MemberInfo>) -> Result<(), String> {
    let node = |mut peer_urls: Vec<String>| {
        peer_urls.sort();
        MemberNode { peer_urls, joins_as_voter: false }
    };
    let nodes: BTreeMap<u64, MemberNode> =
        members.into_iter().map(|member| (member.id, node(member.peer_urls))).collect();
    match raft.initialize(nodes).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(format!("writing the first membership failed: {error}")),
    }
}
