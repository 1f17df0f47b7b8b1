//! What an operator asks of a member: status, alarms, defragmentation, hashes, leadership,
//! downgrades. Snapshots have a file of their own.

use std::time::Instant;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::alarm_request::AlarmAction;
use daymark_api::etcdserverpb::downgrade_request::DowngradeAction;

use super::{Door, header};
use crate::command::{Identity, Kind};
use crate::error::Error;
use crate::request::Reply;
use crate::state::alarms;
use crate::{CLUSTER_VERSION, ETCD_VERSION};

impl Door {
    pub(super) fn status(&self) -> Result<pb::StatusResponse, Error> {
        let (views, raft) = (self.views(), self.member().raft.status());
        let mut errors: Vec<String> = Vec::new();
        if raft.leader.is_none() {
            errors.push(Error::NoLeader.text().into_owned());
        }
        errors.extend(views.alarms.load().iter().map(alarm_text));
        Ok(pb::StatusResponse {
            header: header(views.keyspace.current_revision()),
            version: ETCD_VERSION.into(),
            db_size: views.size.bytes(&views.keyspace) as i64,
            db_size_in_use: views.size.bytes_in_use(&views.keyspace) as i64,
            leader: raft.leader.unwrap_or(0),
            raft_index: raft.committed_index.unwrap_or(0),
            raft_term: raft.term,
            raft_applied_index: views.applied_index(),
            errors,
            is_learner: views.is_learner(),
            storage_version: CLUSTER_VERSION.into(),
            db_size_quota: self.member().settings.quota_bytes,
            downgrade_info: Some(pb::DowngradeInfo::default()),
        })
    }

    /// Listing waits for what was acknowledged before, but needs no log entry.
    pub(super) async fn alarm(&self, identity: Option<Identity>, request: pb::AlarmRequest) -> Result<Reply, Error> {
        if request.action != AlarmAction::Get as i32 {
            return self.propose(Kind::Alarm, identity, &request).await;
        }
        self.read_barrier().await?;
        let alarms = alarms::select(&self.views().alarms.load(), request.alarm);
        Ok(Reply::Alarm(pb::AlarmResponse { header: header(self.keyspace().current_revision()), alarms }))
    }

    /// Gives back the space that compactions and overwriting have left, without stopping anybody. Space comes back by
    /// itself, too, only later: who asks wants to see it now. The answer has no header, as etcd's.
    pub(super) async fn defragment(&self) -> Result<pb::DefragmentResponse, Error> {
        let (member, views) = (self.member(), self.views());
        let begun = Instant::now();
        tracing::info!("starting defragment");
        let keyspace = views.keyspace.clone();
        let before = views.keyspace.written_bytes();
        member.reclaim.run(move || Ok(keyspace.reclaim()?)).await?;
        // What was written meanwhile may have missed the flush.
        views.size.measure(&views.keyspace, views.keyspace.written_bytes().saturating_sub(before))?;
        let took = begun.elapsed();
        views.durations.defrag.observe(took);
        tracing::info!(took_ms = took.as_millis() as u64, "finished defragment");
        Ok(pb::DefragmentResponse { header: None })
    }

    /// The hash of everything that is stored but history. Reads all of it.
    pub(super) async fn hash_all(&self) -> Result<pb::HashResponse, Error> {
        let begun = Instant::now();
        let revision = self.keyspace().current_revision();
        let keyspace = self.views().keyspace.clone();
        let hashed = self.pool.run(move |caller| Ok(keyspace.hash_everything(&|| caller.has_gone())?)).await?;
        self.views().durations.hash.observe(begun.elapsed());
        Ok(pb::HashResponse { header: header(revision), hash: hashed.ok_or(Error::Canceled)? })
    }

    /// The hash of the keys at a revision: kept by the writer, so that it costs what has changed since that revision.
    pub(super) async fn hash_kv(&self, request: &pb::HashKvRequest) -> Result<pb::HashKvResponse, Error> {
        let begun = Instant::now();
        let revision = request.revision;
        let keyspace = self.views().keyspace.clone();
        let hashed = self.pool.run(move |caller| Ok(keyspace.hash(revision, &|| caller.has_gone())?)).await?;
        let hashed = hashed.ok_or(Error::Canceled)?;
        self.views().durations.hash_rev.observe(begun.elapsed());
        Ok(pb::HashKvResponse {
            header: header(self.keyspace().current_revision()),
            hash: hashed.to_u32(),
            compact_revision: hashed.compact_revision,
            hash_revision: hashed.revision,
        })
    }

    /// Only the leader is asked. Whoever leads already needs nothing handed over.
    pub(super) async fn move_leader(&self, request: &pb::MoveLeaderRequest) -> Result<pb::MoveLeaderResponse, Error> {
        let handle = &self.member().raft;
        let raft = handle.status();
        if !raft.is_leader {
            return Err(Error::NotLeader);
        }
        if request.target_id != raft.member_id {
            handle.transfer_leader(Some(request.target_id)).await?;
        }
        Ok(pb::MoveLeaderResponse { header: None })
    }

    /// There is no earlier version of Daymark that reads this one's data, so a downgrade is checked but not begun: it
    /// could never end.
    pub(super) async fn downgrade(&self, request: &pb::DowngradeRequest) -> Result<pb::DowngradeResponse, Error> {
        let action = DowngradeAction::try_from(request.action).map_err(|_| Error::UnknownAction)?;
        let (cluster_major, cluster_minor) = major_minor(CLUSTER_VERSION).ok_or(Error::ClusterVersionUnavailable)?;
        if action != DowngradeAction::Cancel {
            let target = major_minor(&request.version).ok_or(Error::WrongDowngradeVersionFormat)?;
            self.read_barrier().await?;
            if (target.0, target.1 + 1) != (cluster_major, cluster_minor) {
                return Err(Error::InvalidDowngradeTargetVersion);
            }
            if action == DowngradeAction::Enable {
                return Err(Error::DowngradeImpossible);
            }
        }
        let version = format!("{cluster_major}.{cluster_minor}");
        Ok(pb::DowngradeResponse { header: header(self.keyspace().current_revision()), version })
    }
}

fn alarm_text(alarm: &pb::AlarmMember) -> String {
    let name = pb::AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
    format!("memberID:{} alarm:{name}", alarm.member_id)
}

/// Major and minor number of a version `MAJOR.MINOR` or a semantic version.
fn major_minor(version: &str) -> Option<(u64, u64)> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u64>().ok().filter(|number| *number < i64::MAX as u64) } else { None }
    };
    // What follows `-` or `+` says which build it is.
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let mut parts = numbers.split('.');
    let (major, minor) = (number(parts.next()?)?, number(parts.next()?)?);
    match (parts.next(), parts.next()) {
        (Some(patch), None) => number(patch).map(|_| (major, minor)),
        (None, None) if numbers.len() == version.len() => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_etcd_reads_them() {
        for (text, expected) in [
            ("3.6", Some((3, 6))),
            ("3.6.0", Some((3, 6))),
            ("3.6.12", Some((3, 6))),
            ("3.6.0-rc.1", Some((3, 6))),
            ("3.6.0+build", Some((3, 6))),
            ("10.20.30", Some((10, 20))),
            ("3", None),
            ("", None),
            ("3.", None),
            ("3.x", None),
            ("3.6.x", None),
            ("3.6.0.0", None),
            ("v3.6", None),
            ("-3.6", None),
            ("99999999999999999999.1", None),
        ] {
            assert_eq!(major_minor(text), expected, "{text}");
        }
    }
}
