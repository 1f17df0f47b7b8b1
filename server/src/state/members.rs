//! Members as clients see them: raft's membership (who takes part, where its peers reach it) joined with what each
//! member says of itself (name, client URLs). Raft's bytes are kept here and understood in `raft`. There is no second
//! list that could differ from raft's: who was removed is what a membership leaves out of the one before.
//!
//! ```text
//! family meta:  "raft/membership"                -> raft's bytes, latest
//!               "member/attributes/" | id u64 BE -> MemberAttributes
//!               "member/peer-urls/"  | id u64 BE -> MemberPeerUrls, if an operator has changed them
//!               "member/removed/"    | id u64 BE -> empty, for ever
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use daymark_raft::{MemberInfo, MembershipInfo};
use daymark_storage::backend::Family;
use daymark_storage::mvcc::import::Import;
use daymark_storage::mvcc::{Keyspace, Writer};
use daymark_storage::{LogId, Result, StorageError};
use prost::Message;

use daymark_api::etcdserverpb as pb;

use crate::command::{MemberAttributes, MemberPeerUrls};
use crate::error::Error;

/// Row of raft's own bytes.
pub const MEMBERSHIP: &[u8] = b"raft/membership";
const ATTRIBUTES: &[u8] = b"member/attributes/";
const ATTRIBUTES_END: &[u8] = b"member/attributes0";
const PEER_URLS: &[u8] = b"member/peer-urls/";
const PEER_URLS_END: &[u8] = b"member/peer-urls0";
const REMOVED: &[u8] = b"member/removed/";
const REMOVED_END: &[u8] = b"member/removed0";

/// The members as published.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberList {
    /// As `MemberList` shows them, ordered by id. One that was added as a voter is no learner, even if it has no vote yet.
    pub members: Vec<pb::Member>,
    /// Ids that never come back.
    pub removed: BTreeSet<u64>,
    /// The log entry of the membership that this was made of.
    pub based_on: Option<LogId>,
}

impl MemberList {
    /// The member of that id.
    pub fn get(&self, id: u64) -> Option<&pb::Member> {
        self.members.iter().find(|member| member.id == id)
    }
}

/// The member table.
#[derive(Default)]
pub struct Members {
    membership: Option<Bytes>,
    based_on: Option<LogId>,
    infos: Vec<MemberInfo>,
    removed: BTreeSet<u64>,
    attributes: BTreeMap<u64, MemberAttributes>,
    /// Instead of those in the membership.
    peer_urls: BTreeMap<u64, MemberPeerUrls>,
}

impl Members {
    /// Reads what `keyspace` holds.
    pub fn open(keyspace: &Keyspace) -> Result<Self> {
        let mut members = Self::default();
        if let Some(bytes) = keyspace.meta(MEMBERSHIP)? {
            let MembershipInfo { id, members: infos } = decode_membership(&bytes)?;
            (members.based_on, members.infos) = (Some(id), infos);
            members.membership = Some(bytes.into());
        }
        members.removed = read_removed(keyspace)?;
        for attributes in read_rows::<MemberAttributes>(keyspace, ATTRIBUTES, ATTRIBUTES_END)? {
            members.attributes.insert(attributes.id, attributes);
        }
        for update in read_rows::<MemberPeerUrls>(keyspace, PEER_URLS, PEER_URLS_END)? {
            members.peer_urls.insert(update.id, update);
        }
        Ok(members)
    }

    /// Raft's bytes, to be given back to it.
    pub fn membership(&self) -> Option<Bytes> {
        self.membership.clone()
    }

    /// Keeps raft's latest membership.
    pub fn set_membership(&mut self, writer: &mut Writer, bytes: Bytes) -> Result<()> {
        let MembershipInfo { id, members } = decode_membership(&bytes)?;
        let left: BTreeSet<u64> = members.iter().map(|info| info.id).collect();
        let before = std::mem::replace(&mut self.infos, members);
        for gone in before.iter().filter(|info| !left.contains(&info.id)) {
            self.forget(writer, gone.id);
        }
        writer.table_put(Family::Meta, MEMBERSHIP, &bytes);
        self.membership = Some(bytes);
        self.based_on = Some(id);
        Ok(())
    }

    /// A member was removed: only its id is remembered.
    fn forget(&mut self, writer: &mut Writer, id: u64) {
        let row = |table: &[u8]| [table, &id.to_be_bytes()].concat();
        writer.table_put(Family::Meta, &row(REMOVED), &[]);
        self.removed.insert(id);
        if self.attributes.remove(&id).is_some() {
            writer.table_delete(Family::Meta, &row(ATTRIBUTES));
        }
        if self.peer_urls.remove(&id).is_some() {
            writer.table_delete(Family::Meta, &row(PEER_URLS));
        }
    }

    /// Keeps what a member says of itself, unless it has been removed meanwhile.
    pub fn set_attributes(&mut self, writer: &mut Writer, attributes: MemberAttributes) {
        if self.removed.contains(&attributes.id) {
            return;
        }
        let key = [ATTRIBUTES, &attributes.id.to_be_bytes()].concat();
        writer.table_put(Family::Meta, &key, &attributes.encode_to_vec());
        self.attributes.insert(attributes.id, attributes);
    }

    /// Replaces the peer addresses of a member. None of them may be another member's.
    pub fn set_peer_urls(&mut self, writer: &mut Writer, update: MemberPeerUrls) -> std::result::Result<(), Error> {
        if !self.infos.iter().any(|info| info.id == update.id) {
            return Err(Error::MemberNotFound);
        }
        let others = self.infos.iter().filter(|info| info.id != update.id);
        if others.flat_map(|info| self.peer_urls(info)).any(|url| update.peer_urls.contains(url)) {
            return Err(Error::PeerUrlsExist);
        }
        let key = [PEER_URLS, &update.id.to_be_bytes()].concat();
        writer.table_put(Family::Meta, &key, &update.encode_to_vec());
        self.peer_urls.insert(update.id, update);
        Ok(())
    }

    fn peer_urls<'a>(&'a self, info: &'a MemberInfo) -> &'a [String] {
        self.peer_urls.get(&info.id).map_or(&info.peer_urls, |update| &update.peer_urls)
    }

    /// What is published.
    pub fn list(&self) -> Arc<MemberList> {
        let mut members: Vec<_> = self.infos.iter().map(|info| self.member(info)).collect();
        members.sort_by_key(|member| member.id);
        Arc::new(MemberList { members, removed: self.removed.clone(), based_on: self.based_on })
    }

    fn member(&self, info: &MemberInfo) -> pb::Member {
        let attributes = self.attributes.get(&info.id).cloned().unwrap_or_default();
        pb::Member {
            id: info.id,
            name: attributes.name,
            peer_ur_ls: self.peer_urls(info).to_vec(),
            client_ur_ls: attributes.client_urls,
            is_learner: info.is_learner,
        }
    }
}

/// Adds the first members of a cluster to a state that is being imported. What is known of them is what they founded it
/// with; they say the rest themselves.
pub fn import(import: &mut Import, at: LogId, members: &[MemberInfo]) -> Result<()> {
    import.row(Family::Meta, MEMBERSHIP, &daymark_raft::encode_members(at, members))?;
    for info in members {
        let key = [ATTRIBUTES, &info.id.to_be_bytes()].concat();
        let attributes = MemberAttributes { id: info.id, name: info.name.clone(), client_urls: Vec::new() };
        import.row(Family::Meta, &key, &attributes.encode_to_vec())?;
    }
    Ok(())
}

/// The rows of one table, decoded.
fn read_rows<M: Message + Default>(keyspace: &Keyspace, start: &[u8], end: &[u8]) -> Result<Vec<M>> {
    let mut rows = Ok(Vec::new());
    keyspace.table_scan(Family::Meta, start, end, &mut |_, value| {
        match (M::decode(value), &mut rows) {
            (Ok(row), Ok(rows)) => rows.push(row),
            (Err(error), _) => {
                rows = Err(StorageError::Invariant { what: format!("a row of the member table: {error}") });
            }
            _ => {}
        }
        if rows.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    rows
}

fn read_removed(keyspace: &Keyspace) -> Result<BTreeSet<u64>> {
    let mut removed = BTreeSet::new();
    keyspace.table_scan(Family::Meta, REMOVED, REMOVED_END, &mut |key, _| {
        // Written with this length above.
        removed.extend(key.last_chunk().map(|id| u64::from_be_bytes(*id)));
        ControlFlow::Continue(())
    })?;
    Ok(removed)
}

fn decode_membership(bytes: &[u8]) -> Result<MembershipInfo> {
    daymark_raft::membership_of(bytes).map_err(|what| StorageError::Invariant { what: format!("membership: {what}") })
}
