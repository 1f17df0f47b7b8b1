//! Changes of members: etcd's rules about which are allowed, in etcd's order, and the leader's way of making one. What is
//! looked at is the list of the last membership; a change that another one has overtaken is looked at anew.

use std::time::Duration;

use daymark_api::etcdserverpb as pb;
use daymark_raft::{ChangeError, MemberChange};
use sha1::{Digest, Sha1};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Door;
use crate::error::Error;
use crate::limits;
use crate::state::members::MemberList;

/// A member's own changes take turns.
#[derive(Default)]
pub struct Reconfigure(Mutex<()>);

/// A change as an operator asks for it, and as it is passed on to the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Add { peer_urls: Vec<String>, is_learner: bool },
    Promote { id: u64 },
    Remove { id: u64 },
}

/// What a change has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The member that was meant.
    pub id: u64,
    /// The log entry with the new membership.
    pub index: u64,
}

/// What the rules look at.
pub struct Rules<'a> {
    pub list: &'a MemberList,
    pub member_id: u64,
    pub learners_max: usize,
    /// Whether the quorum is looked after.
    pub strict: bool,
    /// How long a member has been answering the leader without a break.
    pub answering_for: &'a dyn Fn(u64) -> Option<Duration>,
}

impl Rules<'_> {
    /// A new member. One that is added as a voter makes the quorum larger once it has caught up; until it is there, it
    /// counts as one that is down.
    pub fn add(&self, id: u64, peer_urls: &[String], is_learner: bool) -> Result<(), Error> {
        let voters = self.voters();
        if self.strict {
            let started = voters.clone().filter(|member| is_started(member)).count();
            let count = voters.clone().count();
            if !is_learner && started < quorum(count + 1) && !(started == 1 && count == 1) {
                return Err(Error::NotEnoughStartedMembers);
            }
            if count != 1 && self.steady(voters) < quorum(count + 1) {
                return Err(Error::Unhealthy);
            }
        }
        if self.list.removed.contains(&id) {
            return Err(Error::MemberNotFound);
        }
        if self.list.get(id).is_some() {
            return Err(Error::MemberExists);
        }
        let mut taken = self.list.members.iter().flat_map(|member| &member.peer_ur_ls);
        if taken.any(|url| peer_urls.contains(url)) {
            return Err(Error::PeerUrlsExist);
        }
        let learners = self.list.members.iter().filter(|member| member.is_learner).count();
        if is_learner && learners >= self.learners_max { Err(Error::TooManyLearners) } else { Ok(()) }
    }

    /// A member goes. One that is down may always go, as far as enough of the others have started.
    pub fn remove(&self, id: u64) -> Result<(), Error> {
        let is_learner = self.list.get(id).is_some_and(|member| member.is_learner);
        if self.strict && !is_learner {
            let rest = self.voters().filter(|member| member.id != id);
            let started = rest.clone().filter(|member| is_started(member)).count();
            if started < quorum(rest.count()) {
                return Err(Error::NotEnoughStartedMembers);
            }
            let is_down = id != self.member_id && (self.answering_for)(id).is_none();
            let voters = self.voters();
            if !is_down && self.steady(voters.clone()) < quorum(voters.count() - 1) + 1 {
                return Err(Error::Unhealthy);
            }
        }
        if self.list.get(id).is_none() { Err(Error::MemberNotFound) } else { Ok(()) }
    }

    /// A learner gets a vote. `matched` is what it has of the log, `last` what the leader has.
    pub fn promote(&self, id: u64, matched: Option<u64>, last: u64) -> Result<(), Error> {
        let Some(matched) = matched else { return Err(Error::MemberNotFound) };
        // etcd's measure of being in sync: nine tenths of the log.
        if matched.saturating_mul(10) < last.saturating_mul(9) {
            return Err(Error::LearnerNotReady);
        }
        let started = self.voters().filter(|member| is_started(member)).count();
        if self.strict && started + 1 < quorum(self.voters().count() + 1) {
            return Err(Error::NotEnoughStartedMembers);
        }
        match self.list.get(id) {
            None => Err(Error::MemberNotFound),
            Some(member) if !member.is_learner => Err(Error::MemberNotLearner),
            Some(_) => Ok(()),
        }
    }

    fn voters(&self) -> impl Iterator<Item = &pb::Member> + Clone {
        self.list.members.iter().filter(|member| !member.is_learner)
    }

    /// Members that have been answering for a while, this one among them.
    fn steady<'a>(&self, members: impl Iterator<Item = &'a pb::Member>) -> usize {
        let is_steady = |id| (self.answering_for)(id).is_some_and(|time| time >= limits::STEADY_MEMBER_TIME);
        members.filter(|member| member.id == self.member_id || is_steady(member.id)).count()
    }
}

/// Whether it has said who it is.
fn is_started(member: &pb::Member) -> bool {
    !member.name.is_empty()
}

fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// The id of a member that is added to a running cluster, as etcd derives it.
fn added_id(peer_urls: &[String], unix_secs: u64) -> u64 {
    let mut hash = Sha1::new();
    peer_urls.iter().for_each(|url| hash.update(url));
    hash.update(unix_secs.to_string());
    crate::founding::first_u64(&hash.finalize())
}

fn unix_secs() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Door {
    /// Makes a change as leader. [`Error::NotLeader`] means that nothing was proposed.
    pub async fn lead_change(&self, change: &Change) -> Result<Changed, Error> {
        let member = self.member().clone();
        let _turn = member.reconfigure.0.lock().await;
        let deadline = Instant::now() + member.settings.request_timeout();
        loop {
            // From here on the list is as new as anything acknowledged before.
            self.lead().await.map_err(|error| match error {
                Error::NotPrimaryLessor => Error::NotLeader,
                error => error,
            })?;
            let list = member.views.members.load_full();
            let (id, allowed) = self.allow(change, &list)?;
            let Some(based_on) = list.based_on else { return Err(Error::NotLeader) };
            if self.lags_behind(&allowed) {
                // The quorum would have to wait for it.
                if Instant::now() >= deadline {
                    return Err(Error::LearnerNotReady);
                }
                tokio::time::sleep(limits::CHANGE_RETRY_PAUSE).await;
                continue;
            }
            match member.raft.change_members(allowed, based_on).await {
                Ok(entry) => {
                    self.wait_applied(entry.index).await;
                    return Ok(Changed { id, index: entry.index });
                }
                // Overtaken by another change, or by a vote that the leader has given.
                Err(ChangeError::Stale | ChangeError::Busy) if Instant::now() < deadline => {
                    tokio::time::sleep(limits::CHANGE_RETRY_PAUSE).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether it gives a vote to a member that lacks more of the log than is sent in a moment.
    fn lags_behind(&self, change: &MemberChange) -> bool {
        let raft = &self.member().raft;
        let MemberChange::Promote { id } = change else { return false };
        let committed = raft.status().committed_index.unwrap_or(0);
        raft.matched_index(*id).unwrap_or(0) + daymark_raft::limits::PROMOTION_LAG_MAX < committed
    }

    /// The change as raft makes it, or why not.
    fn allow(&self, change: &Change, list: &MemberList) -> Result<(u64, MemberChange), Error> {
        let raft = &self.member().raft;
        let settings = &self.member().settings;
        let rules = Rules {
            list,
            member_id: self.views().member_id,
            learners_max: settings.learners_max,
            strict: settings.strict_changes,
            answering_for: &|id| raft.answering_for(id),
        };
        Ok(match change {
            Change::Add { peer_urls, is_learner } => {
                let (id, peer_urls) = (added_id(peer_urls, unix_secs()), peer_urls.clone());
                rules.add(id, &peer_urls, *is_learner)?;
                match is_learner {
                    true => (id, MemberChange::AddLearner { id, peer_urls }),
                    false => (id, MemberChange::AddVoter { id, peer_urls }),
                }
            }
            Change::Promote { id } => {
                let last = raft.status().last_index.unwrap_or(0);
                let matched = if *id == rules.member_id { Some(last) } else { raft.matched_index(*id) };
                rules.promote(*id, matched, last)?;
                (*id, MemberChange::Promote { id: *id })
            }
            Change::Remove { id } => {
                rules.remove(*id)?;
                (*id, MemberChange::Remove { id: *id })
            }
        })
    }
}
