//! Whether this member is healthy, as results that the HTTP routes and the gRPC health service put into their own words.

use daymark_api::etcdserverpb as pb;

use super::Door;
use crate::error::Error;

/// A named check of `/livez` and `/readyz`; an error says why it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub name: &'static str,
    pub result: Result<(), String>,
}

/// Names of the checks of `/livez`.
pub const LIVEZ: &[&str] = &[SERIALIZABLE_READ];
/// Names of the checks of `/readyz`.
pub const READYZ: &[&str] = &[DATA_CORRUPTION, SERIALIZABLE_READ, LINEARIZABLE_READ, NON_LEARNER];

const DATA_CORRUPTION: &str = "data_corruption";
const SERIALIZABLE_READ: &str = "serializable_read";
const LINEARIZABLE_READ: &str = "linearizable_read";
const NON_LEARNER: &str = "non_learner";

impl Door {
    /// `/health`: alarms (but those named in `exclude`), then a leader (unless `serializable`), then a read. An error is
    /// the reason as etcd gives it.
    pub async fn health(&self, exclude: &[String], serializable: bool) -> Result<(), String> {
        for alarm in self.views().alarms.load().iter() {
            let name = pb::AlarmType::try_from(alarm.alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
            if !exclude.iter().any(|excluded| excluded == name) {
                return Err(format!("ALARM {name}"));
            }
        }
        if !serializable && !self.has_leader() {
            return Err("RAFT NO LEADER".into());
        }
        self.probe(serializable).await.map_err(|error| format!("RANGE ERROR:{error}"))
    }

    /// The checks of `/livez` but those named in `exclude`.
    pub async fn livez(&self, exclude: &[String]) -> Vec<Check> {
        self.checks(LIVEZ, exclude).await
    }

    /// The checks of `/readyz` but those named in `exclude`.
    pub async fn readyz(&self, exclude: &[String]) -> Vec<Check> {
        self.checks(READYZ, exclude).await
    }

    /// One check by its name, for `/livez/<check>` and `/readyz/<check>`.
    pub async fn check(&self, name: &str) -> Option<Check> {
        let name = READYZ.iter().find(|known| **known == name)?;
        self.checks(&[name], &[]).await.pop()
    }

    async fn checks(&self, names: &[&'static str], exclude: &[String]) -> Vec<Check> {
        let mut checks = Vec::new();
        for name in names.iter().copied().filter(|name| !exclude.iter().any(|excluded| excluded == name)) {
            let result = match name {
                DATA_CORRUPTION => self.check_corruption(),
                SERIALIZABLE_READ => self.probe(true).await.map_err(|error| error.to_string()),
                LINEARIZABLE_READ => self.probe(false).await.map_err(|error| error.to_string()),
                _ => self.check_learner(),
            };
            checks.push(Check { name, result });
        }
        checks
    }

    fn check_corruption(&self) -> Result<(), String> {
        let corrupt = pb::AlarmType::Corrupt as i32;
        match self.views().alarms.load().iter().any(|alarm| alarm.alarm == corrupt) {
            true => Err("alarm activated: CORRUPT".into()),
            false => Ok(()),
        }
    }

    fn check_learner(&self) -> Result<(), String> {
        let status = self.member().raft.status();
        match status.learners.contains(&status.member_id) {
            true => Err("not supported for learner".into()),
            false => Ok(()),
        }
    }

    /// Reads something that need not exist.
    async fn probe(&self, serializable: bool) -> Result<(), Error> {
        let request = pb::RangeRequest { key: "a".into(), limit: 1, serializable, ..Default::default() };
        self.range(&request).await.map(|_| ())
    }
}
