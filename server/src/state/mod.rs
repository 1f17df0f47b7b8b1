//! The replicated state: what a command does. Deterministic and synchronous: the same commands in the same order give
//! the same state and the same answers on every member, however they are grouped into write batches. Knows no clock,
//! no randomness, no configuration, no raft and no watchers.
//!
//! Reading order: this file (one command), [`txn`], the tables [`lease`], [`alarms`], [`members`], [`auth`].

pub mod alarms;
pub mod auth;
pub mod lease;
mod lease_rights;
pub mod members;
pub mod txn;

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use daymark_storage::mvcc::{Event, KeyRange, KeyValue, Keyspace, ReadError, TxnChanges, TxnOptions, WriteTxn, Writer};
use daymark_storage::{LogId, Result, StorageError};

use daymark_api::etcdserverpb as pb;

use crate::auth::authorize;
use crate::auth::table::AuthTable;
use crate::command::{Command, Identity, LeaseCheckpoint, LeaseExpire, MemberPeerUrls};
use crate::error::Error;
use crate::limits;
use crate::mailbox::CommandResult;
use crate::query::{self, Meter};
use crate::request::Reply;

use alarms::Alarms;
use auth::{Auth, TokenChange};
use lease::{LeaseChange, LeaseFact, LeaseMove, LeaseTable};
use lease_rights::LeaseRights;
use members::{MemberList, Members};

/// What a command failed with: the client's error, the same on every member; or one of this machine, which stops it.
#[derive(Debug)]
pub enum Failure {
    Client(Error),
    Machine(StorageError),
}

/// What commands did beside their answers, gathered until the write batch is committed.
#[derive(Default)]
pub struct Effects {
    /// Changes of keys, in order. Empty unless they were asked for.
    pub events: Vec<Event>,
    /// Bytes of keys and values that were put.
    pub put_bytes: u64,
    /// Keys that went with their leases.
    pub keys_revoked: u64,
    /// Changes of the lease table, in order.
    pub leases: Vec<LeaseChange>,
    /// The alarm set, if it has changed.
    pub alarms: Option<Arc<Vec<pb::AlarmMember>>>,
    /// The member list, if it has changed.
    pub members: Option<Arc<MemberList>>,
    /// Users and roles, if they have changed.
    pub auth: Option<Arc<AuthTable>>,
    /// Changes of simple tokens, in order.
    pub tokens: Vec<TokenChange>,
}

/// Tables beside the keyspace, and the rules of every command.
///
/// Invariants: what is in memory here is what the tables hold with the write batch in progress; a key is attached to
/// the lease that its newest record names, and to no other.
pub struct State {
    leases: LeaseTable,
    alarms: Alarms,
    members: Members,
    auth: Auth,
    /// The log entry whose commands are applied.
    entry: LogId,
    effects: Effects,
    wants_events: bool,
    /// Attachments that the command in progress changes; written once it is certain.
    moves: Vec<LeaseMove>,
    lease_rights: LeaseRights,
}

impl State {
    /// Reads the tables that `keyspace` holds.
    pub fn open(keyspace: &Keyspace) -> Result<Self> {
        Ok(Self {
            leases: LeaseTable::open(keyspace)?,
            alarms: Alarms::open(keyspace)?,
            members: Members::open(keyspace)?,
            auth: Auth::open(keyspace)?,
            entry: LogId::default(),
            effects: Effects::default(),
            wants_events: true,
            moves: Vec::new(),
            lease_rights: LeaseRights::default(),
        })
    }

    /// Whether events are gathered for watchers.
    pub fn want_events(&mut self, want: bool) {
        self.wants_events = want;
    }

    /// The log entry whose commands come next.
    pub fn begin_entry(&mut self, entry: LogId) {
        self.entry = entry;
    }

    /// Whether what a leader of `term` has said of time counts in this entry.
    fn is_of_term(&self, term: u64) -> bool {
        term == 0 || term == self.entry.term
    }

    /// What was done since the last call.
    pub fn take_effects(&mut self) -> Effects {
        self.effects.auth = self.auth.take_changed();
        mem::take(&mut self.effects)
    }

    /// Users and roles, likewise published at start.
    pub fn auth(&self) -> &AuthTable {
        self.auth.table()
    }

    /// Alarms, which are published at start.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// Members, likewise.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Keeps raft's latest membership.
    pub fn set_membership(&mut self, writer: &mut Writer, bytes: Bytes) -> Result<()> {
        self.members.set_membership(writer, bytes)?;
        self.effects.members = Some(self.members.list());
        Ok(())
    }

    /// Applies one command. The outer error stops the member; the inner result is the answer, its header holding the
    /// revision only. A command that is refused leaves no trace.
    pub fn apply(
        &mut self,
        writer: &mut Writer,
        identity: Option<&Identity>,
        command: Command,
    ) -> Result<CommandResult> {
        if let Err(refusal) = self.permit(writer, identity, &command) {
            return answer(Err(refusal));
        }
        let result = match command {
            Command::Put(put) => self.put(writer, put),
            Command::DeleteRange(delete) => self.delete_range(writer, delete),
            Command::Txn(txn) => self.txn(writer, txn),
            Command::Compact(compact) => self.compact(writer, &compact),
            Command::LeaseGrant(grant) => self.lease_grant(writer, &grant),
            Command::LeaseRevoke(revoke) => self.lease_revoke(writer, revoke.id),
            Command::LeaseExpire(expire) => self.lease_expire(writer, &expire),
            Command::LeaseCheckpoint(checkpoint) => self.lease_checkpoint(writer, &checkpoint),
            Command::Alarm(alarm) => self.alarm(writer, &alarm),
            Command::MemberAttributes(attributes) => {
                self.members.set_attributes(writer, attributes);
                let members = self.show_members();
                Ok(Reply::MemberList(pb::MemberListResponse { header: header(0), members }))
            }
            Command::MemberUpdate(update) => self.member_update(writer, update),
            Command::Auth(command) => {
                let tokens = &mut self.effects.tokens;
                self.auth.apply(writer, command, self.entry.index, tokens).map_err(Failure::Client)
            }
        };
        answer(result)
    }

    /// Whether the caller may do it by now: rights may have changed since the front door looked, and some hang on what
    /// is attached to a lease.
    fn permit(
        &mut self,
        writer: &Writer,
        who: Option<&Identity>,
        command: &Command,
    ) -> std::result::Result<(), Failure> {
        let table = self.auth.table();
        if !table.is_enabled() {
            self.lease_rights.forget_all();
            return Ok(());
        }
        let by_request = authorize::command(table, who, command).map_err(Failure::Client);
        let permitted = by_request.and_then(|()| self.permit_leases(writer, who, command));
        if let Err(Failure::Client(_)) = permitted {
            // Alarms are told of first.
            match command {
                Command::Put(_) => self.refuse_for_alarms(true)?,
                Command::Txn(txn) => self.refuse_for_alarms(query::contains_put(txn))?,
                Command::DeleteRange(_) | Command::LeaseRevoke(_) => self.refuse_for_alarms(false)?,
                _ => {}
            }
        }
        permitted
    }

    /// Who attaches a key to a lease decides when it goes, and who revokes a lease deletes its keys: both need to be
    /// allowed to write every key that is attached already.
    fn permit_leases(
        &mut self,
        writer: &Writer,
        who: Option<&Identity>,
        command: &Command,
    ) -> std::result::Result<(), Failure> {
        let table = self.auth.table();
        let leases = authorize::leases_of(command);
        if leases.is_empty() {
            return Ok(());
        }
        if authorize::is_root(table, who) {
            leases.iter().for_each(|id| self.lease_rights.forget(*id));
            return Ok(());
        }
        for id in leases {
            if who.is_some_and(|who| self.lease_rights.has(id, who, table.revision())) {
                continue;
            }
            let mut permitted = Ok(());
            self.leases.visit_keys(writer, id, &mut |key| {
                permitted = authorize::write_key(table, who, key);
                if permitted.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            permitted.map_err(Failure::Client)?;
            if let Some(who) = who.filter(|who| who.auth_revision == table.revision()) {
                self.lease_rights.found(id, who, table.revision());
            }
        }
        Ok(())
    }

    fn put(&mut self, writer: &mut Writer, put: pb::PutRequest) -> std::result::Result<Reply, Failure> {
        self.refuse_for_alarms(true)?;
        let mut txn = writer.begin_with(self.txn_options());
        let wants_prev = put.prev_kv;
        check_put(&self.leases, &mut txn, &put)?;
        let previous = do_put(&mut txn, put, &mut self.moves)?;
        let prev_kv = if wants_prev { previous.map(query::pair) } else { None };
        let changes = txn.finish();
        let revision = self.keep(writer, changes);
        Ok(Reply::Put(pb::PutResponse { header: header(revision), prev_kv }))
    }

    fn delete_range(
        &mut self,
        writer: &mut Writer,
        delete: pb::DeleteRangeRequest,
    ) -> std::result::Result<Reply, Failure> {
        self.refuse_for_alarms(false)?;
        let mut txn = writer.begin_with(self.txn_options());
        let mut room = AnswerRoom::default();
        let deleted = do_delete(&mut txn, &delete, &mut self.moves, &mut room);
        let mut response = match deleted {
            Ok(response) => response,
            Err(failure) => {
                // As a transaction: nothing of it stays.
                self.moves.clear();
                return Err(failure);
            }
        };
        let changes = txn.finish();
        response.header = header(self.keep(writer, changes));
        Ok(Reply::DeleteRange(response))
    }

    fn txn(&mut self, writer: &mut Writer, request: pb::TxnRequest) -> std::result::Result<Reply, Failure> {
        self.refuse_for_alarms(query::contains_put(&request))?;
        let compact_revision = writer.latest_compact_revision();
        let mut txn = writer.begin_with(self.txn_options());
        let executed = txn::execute(&mut txn, request, &self.leases, compact_revision, &mut self.moves);
        let mut response = match executed {
            Ok(response) => response,
            Err(failure) => {
                // The transaction is dropped, and with it whatever it had written.
                self.moves.clear();
                return Err(failure);
            }
        };
        let changes = txn.finish();
        response.header = header(self.keep(writer, changes));
        Ok(Reply::Txn(response))
    }

    fn compact(&mut self, writer: &mut Writer, request: &pb::CompactionRequest) -> std::result::Result<Reply, Failure> {
        self.refuse_for_alarms(false)?;
        writer.compact(request.revision)?;
        Ok(Reply::Compact(pb::CompactionResponse { header: header(writer.latest_revision()) }))
    }

    fn lease_grant(
        &mut self,
        writer: &mut Writer,
        request: &pb::LeaseGrantRequest,
    ) -> std::result::Result<Reply, Failure> {
        self.refuse_for_alarms(true)?;
        let lease = self.leases.grant(writer, request.id, request.ttl).map_err(Failure::Client)?;
        self.effects.leases.push(LeaseChange::Granted(lease));
        let header = header(writer.latest_revision());
        let (id, ttl, error) = (lease.id, lease.ttl_secs, String::new());
        Ok(Reply::LeaseGrant(pb::LeaseGrantResponse { header, id, ttl, error }))
    }

    fn lease_revoke(&mut self, writer: &mut Writer, id: i64) -> std::result::Result<Reply, Failure> {
        self.refuse_for_alarms(false)?;
        if !self.leases.contains(id) {
            return Err(Failure::Client(Error::LeaseNotFound));
        }
        self.revoke(writer, id)?;
        Ok(Reply::LeaseRevoke(pb::LeaseRevokeResponse { header: header(writer.latest_revision()) }))
    }

    /// Leases that have gone meanwhile are left out, and so are others that have got their ids: the lessor may say the same
    /// thing twice, and what it says is older than what is applied.
    fn lease_expire(&mut self, writer: &mut Writer, expire: &LeaseExpire) -> std::result::Result<Reply, Failure> {
        self.refuse_for_alarms(false)?;
        let counts = self.is_of_term(expire.term);
        for (place, id) in expire.ids.iter().enumerate().filter(|_| counts) {
            let is_meant = match expire.grants.get(place) {
                Some(grant) => self.leases.granted_as(writer, *id, *grant)?.is_some(),
                None => self.leases.contains(*id),
            };
            if is_meant {
                self.revoke(writer, *id)?;
            }
        }
        Ok(Reply::LeaseRevoke(pb::LeaseRevokeResponse { header: header(writer.latest_revision()) }))
    }

    /// Notes how much time leases have left; those that have gone meanwhile are left out.
    fn lease_checkpoint(
        &mut self,
        writer: &mut Writer,
        checkpoint: &LeaseCheckpoint,
    ) -> std::result::Result<Reply, Failure> {
        let LeaseCheckpoint { ids, grants, remaining_secs, term } = checkpoint;
        let counts = self.is_of_term(*term);
        for ((id, grant), remaining_secs) in ids.iter().zip(grants).zip(remaining_secs).filter(|_| counts) {
            if let Some(lease) = self.leases.granted_as(writer, *id, *grant)? {
                let lease = LeaseFact { remaining_secs: *remaining_secs, ..lease };
                self.leases.checkpoint(writer, lease);
                self.effects.leases.push(LeaseChange::Checkpointed(lease));
            }
        }
        // Nobody is told: it has no answer of its own.
        Ok(Reply::LeaseRevoke(pb::LeaseRevokeResponse { header: header(writer.latest_revision()) }))
    }

    /// Ends a lease that exists: all of its keys go in one revision, in order.
    fn revoke(&mut self, writer: &mut Writer, id: i64) -> Result<()> {
        let keys = self.leases.revoke(writer, id)?;
        self.effects.leases.push(LeaseChange::Revoked(id));
        if keys.is_empty() {
            return Ok(());
        }
        let mut txn = writer.begin_with(self.txn_options());
        for key in &keys {
            let previous = txn.delete(key)?;
            match previous {
                Some(previous) if previous.lease == id => detach(previous, &mut self.moves),
                other => {
                    let what = format!("key {key:?} is attached to lease {id:x}, but its record says {other:?}");
                    return Err(StorageError::Invariant { what });
                }
            }
        }
        let changes = txn.finish();
        self.effects.keys_revoked += keys.len() as u64;
        self.keep(writer, changes);
        Ok(())
    }

    fn alarm(&mut self, writer: &mut Writer, request: &pb::AlarmRequest) -> std::result::Result<Reply, Failure> {
        let (alarms, changed) = self.alarms.apply(writer, request);
        if changed {
            self.effects.alarms = Some(self.alarms.list());
        }
        Ok(Reply::Alarm(pb::AlarmResponse { header: header(writer.latest_revision()), alarms }))
    }

    fn member_update(&mut self, writer: &mut Writer, update: MemberPeerUrls) -> std::result::Result<Reply, Failure> {
        self.members.set_peer_urls(writer, update).map_err(Failure::Client)?;
        let members = self.show_members();
        Ok(Reply::MemberUpdate(pb::MemberUpdateResponse { header: header(0), members }))
    }

    /// The member list has changed.
    fn show_members(&mut self) -> Vec<pb::Member> {
        let members = self.members.list();
        self.effects.members = Some(members.clone());
        members.members.clone()
    }

    /// CORRUPT refuses every write, NOSPACE those that take space.
    fn refuse_for_alarms(&self, takes_space: bool) -> std::result::Result<(), Failure> {
        if self.alarms.corrupt() {
            return Err(Failure::Client(Error::Corrupt));
        }
        if takes_space && self.alarms.no_space() {
            return Err(Failure::Client(Error::NoSpace));
        }
        Ok(())
    }

    /// Takes over what a transaction has done; returns the revision.
    fn keep(&mut self, writer: &mut Writer, changes: TxnChanges) -> i64 {
        if !self.moves.is_empty() {
            self.leases.move_keys(writer, &mut self.moves);
        }
        self.effects.events.extend(changes.events);
        self.effects.put_bytes += changes.put_bytes;
        changes.revision
    }

    fn txn_options(&self) -> TxnOptions {
        TxnOptions { without_events: !self.wants_events }
    }
}

/// What a command answers: a client's error is an answer, one of this machine is not.
fn answer(result: std::result::Result<Reply, Failure>) -> Result<CommandResult> {
    match result {
        Ok(reply) => Ok(Ok(reply)),
        Err(Failure::Client(error)) => Ok(Err(error)),
        Err(Failure::Machine(error)) => Err(error),
    }
}

/// A header as apply makes it: the net thread fills in the rest.
fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

/// What a put needs to find: its lease, and its key if it keeps something of it.
fn check_put(leases: &LeaseTable, txn: &mut WriteTxn<'_>, put: &pb::PutRequest) -> std::result::Result<(), Failure> {
    if put.lease != 0 && !leases.contains(put.lease) {
        return Err(Failure::Client(Error::LeaseNotFound));
    }
    if (put.ignore_value || put.ignore_lease) && txn.get(&put.key)?.is_none() {
        return Err(Failure::Client(Error::KeyNotFound));
    }
    Ok(())
}

fn do_put(
    txn: &mut WriteTxn<'_>,
    put: pb::PutRequest,
    moves: &mut Vec<LeaseMove>,
) -> std::result::Result<Option<KeyValue>, Failure> {
    let (mut value, mut lease) = (put.value, put.lease);
    if put.ignore_value || put.ignore_lease {
        // Gone since the check only if the same transaction has deleted it; etcd crashes there.
        let kept = txn.get(&put.key)?.ok_or(Failure::Client(Error::KeyNotFound))?;
        if put.ignore_value {
            value = kept.value;
        }
        if put.ignore_lease {
            lease = kept.lease;
        }
    }
    let previous = txn.put(put.key.clone(), value, lease)?;
    let from = previous.as_ref().map_or(0, |previous| previous.lease);
    if from != lease {
        moves.push(LeaseMove { key: put.key, from, to: lease });
    }
    Ok(previous)
}

fn do_delete(
    txn: &mut WriteTxn<'_>,
    delete: &pb::DeleteRangeRequest,
    moves: &mut Vec<LeaseMove>,
    room: &mut AnswerRoom,
) -> std::result::Result<pb::DeleteRangeResponse, Failure> {
    let mut response = pb::DeleteRangeResponse::default();
    let mut has_room = Ok(());
    let mut take_gone = |gone: KeyValue| {
        response.deleted += 1;
        if delete.prev_kv && has_room.is_ok() {
            has_room = room.charge(query::encoded_len(&gone));
            response.prev_kvs.push(query::pair(gone.clone()));
        }
        detach(gone, moves);
    };
    match delete.range_end.is_empty() {
        true => txn.delete(&delete.key)?.into_iter().for_each(take_gone),
        false => drop(txn.delete_each(&KeyRange::from_wire(&delete.key, &delete.range_end), &mut take_gone)?),
    }
    has_room?;
    Ok(response)
}

/// What is left for the answer of one command. The same on every member: it knows no memory but a constant.
struct AnswerRoom {
    bytes_left: usize,
}

impl Default for AnswerRoom {
    fn default() -> Self {
        Self { bytes_left: limits::TXN_ANSWER_BYTES_MAX }
    }
}

impl Meter for AnswerRoom {
    fn charge(&mut self, bytes: usize) -> std::result::Result<(), Error> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or(Error::AnswerTooLarge(limits::TXN_ANSWER_BYTES_MAX))?;
        Ok(())
    }

    fn give_back(&mut self, bytes: usize) {
        self.bytes_left += bytes;
    }

    fn check(&self) -> std::result::Result<(), Error> {
        Ok(())
    }
}

fn detach(gone: KeyValue, moves: &mut Vec<LeaseMove>) {
    if gone.lease != 0 {
        moves.push(LeaseMove { key: gone.key, from: gone.lease, to: 0 });
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            // Words of the backend.
            Error::Internal(what) => Self::Machine(StorageError::Invariant { what }),
            error => Self::Client(error),
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Machine(error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted => Self::Client(Error::Compacted),
            ReadError::Future => Self::Client(Error::FutureRevision),
            ReadError::Storage(error) => Self::Machine(error),
        }
    }
}
