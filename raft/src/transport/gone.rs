//! A leader whose process has ended is replaced at once, not after an election time-out: its connections have broken, and
//! where it listened nobody answers a greeting any more. Each follower finds that out for itself and asks for pre-votes
//! only then; whoever still hears the leader refuses his, so that one member's broken network replaces nobody (Raft
//! thesis, section 9.6). A leader that hangs, or whose machine is gone, leaves nothing to be seen: for it the time-out is.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;

use super::frame::FrameError;
use super::hello::Kind;
use super::link::OpenError;
use super::peers::{Context, Peers};
use crate::driver::DaymarkRaft;
use crate::executor;
use crate::runtime;
use crate::types::RaftVote;

/// How often a follower asks for pre-votes before it leaves it to the election time-out: the others may notice later.
const TRIES: u32 = 6;

/// Turns in one election time-out: followers ask one after the other, so that one is elected before the next begins.
const TURNS: u32 = 25;

/// A connection that `member` had opened has ended.
pub(crate) fn suspect(peers: &Arc<Peers>, member: u64) {
    let context = &peers.context;
    let leads = context.shared.published.view().leader == Some(member);
    if !leads || context.shared.is_closed() || peers.looks_for_leader.swap(true, Ordering::Relaxed) {
        return;
    }
    let peers = peers.clone();
    executor::spawn(async move {
        if let Some(raft) = peers.raft()
            && let Err(fatal) = look(&peers.context, &raft, member).await
        {
            // Whoever waits for openraft to end learns of it there.
            tracing::debug!(%fatal, "gave up looking for the leader");
        }
        peers.looks_for_leader.store(false, Ordering::Relaxed);
    });
}

async fn look(
    context: &Context,
    raft: &DaymarkRaft,
    leader: u64,
) -> Result<(), openraft::errors::Fatal<crate::types::TypeConfig>> {
    let vote = vote_of(raft);
    let own = context.identity.member_id;
    let view = context.shared.published.view();
    let is_its_vote = vote.is_committed() && vote.leader_id().voted_for == leader;
    if !is_its_vote || !view.voters.contains(&own) || !has_gone(context, leader).await {
        return Ok(());
    }
    tracing::warn!(leader = format!("{leader:x}"), "the leader's process has ended: asking for votes");
    // Said to be given to the one that has gone, so that nobody takes over by it: all it does here is to end the lease,
    // for which alone a vote would be refused.
    let _ = raft.handle_transfer_leader(TransferLeaderRequest::new(vote, leader, None)).await?;
    let turn = context.election / TURNS;
    let earlier = view.voters.iter().filter(|id| **id != leader && **id < own).count();
    runtime::sleep(turn * u32::try_from(earlier).unwrap_or(TRIES)).await;
    for _ in 0..TRIES {
        if vote_of(raft) != vote {
            break;
        }
        raft.trigger().elect(true).await?;
        runtime::sleep(turn / 2 + runtime::random_part(turn)).await;
    }
    Ok(())
}

fn vote_of(raft: &DaymarkRaft) -> RaftVote {
    raft.metrics().borrow_watched().vote
}

/// Whether nobody is there: connections are refused, or end before the greeting is answered.
async fn has_gone(context: &Context, member: u64) -> bool {
    let is_end =
        |kind| matches!(kind, ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    match context.open(member, Kind::Control).await {
        Err(OpenError::Dial(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Err(OpenError::Ended | OpenError::Frame(FrameError::Cut)) => true,
        Err(OpenError::Frame(FrameError::Io(error))) => is_end(error.kind()),
        _ => false,
    }
}
