//! What an operator asks of a member: status, alarms, and a defragmentation for which there is nothing to do.

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::alarm_request::AlarmAction;

use super::{Door, header};
use crate::command::{Identity, Kind};
use crate::error::Error;
use crate::request::Reply;
use crate::state::alarms;
use crate::{CLUSTER_VERSION, ETCD_VERSION};

impl Door {
    pub(super) fn status(&self) -> Result<pb::StatusResponse, Error> {
        let (views, raft) = (self.views(), self.member().raft.status());
        let size = views.keyspace.size()?;
        let mut errors: Vec<String> = Vec::new();
        if raft.leader.is_none() {
            errors.push(Error::NoLeader.text().into_owned());
        }
        errors.extend(views.alarms.load().iter().map(alarm_text));
        Ok(pb::StatusResponse {
            header: header(views.keyspace.current_revision()),
            version: ETCD_VERSION.into(),
            // What is only in memory yet will be on disk with the next flush.
            db_size: (size.on_disk_bytes + size.memtable_bytes) as i64,
            db_size_in_use: size.live_bytes as i64,
            leader: raft.leader.unwrap_or(0),
            raft_index: raft.committed_index.unwrap_or(0),
            raft_term: raft.term,
            raft_applied_index: views.applied_index(),
            errors,
            is_learner: raft.learners.contains(&raft.member_id),
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

    /// Space is given back as it becomes free; the answer has no header, as etcd's.
    pub(super) fn defragment(&self) -> pb::DefragmentResponse {
        pb::DefragmentResponse { header: None }
    }
}

fn alarm_text(alarm: &pb::AlarmMember) -> String {
    let name = pb::AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
    format!("memberID:{} alarm:{name}", alarm.member_id)
}
