//! Active alarms: who raised which. Replicated, so that one member's alarm acts on the whole cluster. Does not raise
//! any.
//!
//! ```text
//! family meta:  "alarm/" | member id u64 BE | type u32 BE -> ()
//! ```

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::alarm_request::AlarmAction;
use daymark_storage::backend::Family;
use daymark_storage::mvcc::import::Import;
use daymark_storage::mvcc::{Keyspace, PinnedTables, Writer};
use daymark_storage::{Result, StorageError};

const PREFIX: &[u8] = b"alarm/";
const PREFIX_END: &[u8] = b"alarm0";

/// The alarm set.
#[derive(Default)]
pub struct Alarms {
    /// Member id and type, ordered.
    active: BTreeSet<(u64, i32)>,
    no_space: bool,
    corrupt: bool,
}

impl Alarms {
    /// Reads what `keyspace` holds.
    pub fn open(keyspace: &Keyspace) -> Result<Self> {
        let mut alarms = Self::default();
        let mut broken = false;
        keyspace.table_scan(Family::Meta, PREFIX, PREFIX_END, &mut |key, _| match decode(key) {
            Some(alarm) => {
                alarms.active.insert(alarm);
                ControlFlow::Continue(())
            }
            None => {
                broken = true;
                ControlFlow::Break(())
            }
        })?;
        if broken {
            return Err(StorageError::Invariant { what: "a row of the alarm table cannot be decoded".into() });
        }
        alarms.note_types();
        Ok(alarms)
    }

    /// Writes that take space are refused.
    pub fn no_space(&self) -> bool {
        self.no_space
    }

    /// Writes are refused.
    pub fn corrupt(&self) -> bool {
        self.corrupt
    }

    /// Ordered by member and type.
    pub fn list(&self) -> Arc<Vec<pb::AlarmMember>> {
        Arc::new(self.active.iter().map(|(member_id, alarm)| member(*member_id, *alarm)).collect())
    }

    /// Does what is asked; returns the alarms that the answer shows, and whether the set has changed.
    pub fn apply(&mut self, writer: &mut Writer, request: &pb::AlarmRequest) -> (Vec<pb::AlarmMember>, bool) {
        let alarm = (request.member_id, request.alarm);
        let none = pb::AlarmType::None as i32;
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => (select(&self.list(), request.alarm), false),
            Ok(AlarmAction::Activate) if request.alarm != none => {
                let is_new = self.active.insert(alarm);
                if is_new {
                    writer.table_put(Family::Meta, &key(alarm), &[]);
                    self.note_types();
                }
                (vec![member(alarm.0, alarm.1)], is_new)
            }
            Ok(AlarmAction::Deactivate) if self.active.remove(&alarm) => {
                writer.table_delete(Family::Meta, &key(alarm));
                self.note_types();
                (vec![member(alarm.0, alarm.1)], true)
            }
            _ => (Vec::new(), false),
        }
    }

    fn note_types(&mut self) {
        let has = |wanted: pb::AlarmType| self.active.iter().any(|(_, alarm)| *alarm == wanted as i32);
        (self.no_space, self.corrupt) = (has(pb::AlarmType::Nospace), has(pb::AlarmType::Corrupt));
    }
}

/// The set as of one moment.
pub fn pinned(tables: &PinnedTables<'_>) -> Result<Vec<pb::AlarmMember>> {
    let mut found = Vec::new();
    tables.scan(Family::Meta, PREFIX, PREFIX_END, &mut |key, _| {
        found.push(decode(key));
        ControlFlow::Continue(())
    })?;
    let alarms = found.into_iter().map(|alarm| alarm.map(|(member_id, alarm)| member(member_id, alarm)));
    let broken = || StorageError::Invariant { what: "a row of the alarm table cannot be decoded".into() };
    alarms.collect::<Option<_>>().ok_or_else(broken)
}

/// Adds an alarm to a state that is being imported.
pub fn import(import: &mut Import, alarm: &pb::AlarmMember) -> Result<()> {
    import.row(Family::Meta, &key((alarm.member_id, alarm.alarm)), &[])
}

/// The alarms of one type, or all for `NONE`.
pub fn select(alarms: &[pb::AlarmMember], alarm: i32) -> Vec<pb::AlarmMember> {
    let all = alarm == pb::AlarmType::None as i32;
    alarms.iter().filter(|member| all || member.alarm == alarm).cloned().collect()
}

fn member(member_id: u64, alarm: i32) -> pb::AlarmMember {
    pb::AlarmMember { member_id, alarm }
}

fn key((member_id, alarm): (u64, i32)) -> Vec<u8> {
    [PREFIX, &member_id.to_be_bytes(), &alarm.to_be_bytes()].concat()
}

fn decode(key: &[u8]) -> Option<(u64, i32)> {
    let (member_id, alarm) = key.strip_prefix(PREFIX)?.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*member_id), i32::from_be_bytes(alarm.try_into().ok()?)))
}
