//! Members as clients see them: raft's membership (who takes part, where its peers reach it) joined with what each
//! member says of itself (name, client URLs). Raft's bytes are kept here and understood in `raft`.
//!
//! ```text
//! family meta:  "raft/membership"                -> raft's bytes, latest
//!               "member/attributes/" | id u64 BE -> MemberAttributes
//! ```

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use daymark_raft::MemberInfo;
use daymark_storage::backend::Family;
use daymark_storage::mvcc::{Keyspace, Writer};
use daymark_storage::{Result, StorageError};
use prost::Message;

use daymark_api::etcdserverpb as pb;

use crate::command::MemberAttributes;

const MEMBERSHIP: &[u8] = b"raft/membership";
const ATTRIBUTES: &[u8] = b"member/attributes/";
const ATTRIBUTES_END: &[u8] = b"member/attributes0";

/// The member table.
#[derive(Default)]
pub struct Members {
    membership: Option<Bytes>,
    infos: Vec<MemberInfo>,
    attributes: BTreeMap<u64, MemberAttributes>,
}

impl Members {
    /// Reads what `keyspace` holds.
    pub fn open(keyspace: &Keyspace) -> Result<Self> {
        let mut members = Self::default();
        if let Some(bytes) = keyspace.meta(MEMBERSHIP)? {
            members.infos = decode_membership(&bytes)?;
            members.membership = Some(bytes.into());
        }
        let mut broken = None;
        keyspace.table_scan(
            Family::Meta,
            ATTRIBUTES,
            ATTRIBUTES_END,
            &mut |_, value| match MemberAttributes::decode(value) {
                Ok(attributes) => {
                    members.attributes.insert(attributes.id, attributes);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    broken = Some(error);
                    ControlFlow::Break(())
                }
            },
        )?;
        match broken {
            Some(error) => Err(StorageError::Invariant { what: format!("attributes of a member: {error}") }),
            None => Ok(members),
        }
    }

    /// Raft's bytes, to be given back to it.
    pub fn membership(&self) -> Option<Bytes> {
        self.membership.clone()
    }

    /// Keeps raft's latest membership.
    pub fn set_membership(&mut self, writer: &mut Writer, bytes: Bytes) -> Result<()> {
        self.infos = decode_membership(&bytes)?;
        writer.table_put(Family::Meta, MEMBERSHIP, &bytes);
        self.membership = Some(bytes);
        Ok(())
    }

    /// Keeps what a member says of itself.
    pub fn set_attributes(&mut self, writer: &mut Writer, attributes: MemberAttributes) {
        let key = [ATTRIBUTES, &attributes.id.to_be_bytes()].concat();
        writer.table_put(Family::Meta, &key, &attributes.encode_to_vec());
        self.attributes.insert(attributes.id, attributes);
    }

    /// As `MemberList` shows them, ordered by id.
    pub fn list(&self) -> Arc<Vec<pb::Member>> {
        let mut members: Vec<_> = self.infos.iter().map(|info| self.member(info)).collect();
        members.sort_by_key(|member| member.id);
        Arc::new(members)
    }

    fn member(&self, info: &MemberInfo) -> pb::Member {
        let attributes = self.attributes.get(&info.id).cloned().unwrap_or_default();
        pb::Member {
            id: info.id,
            name: attributes.name,
            peer_ur_ls: info.peer_urls.clone(),
            client_ur_ls: attributes.client_urls,
            is_learner: info.is_learner,
        }
    }
}

fn decode_membership(bytes: &[u8]) -> Result<Vec<MemberInfo>> {
    daymark_raft::members_of(bytes).map_err(|what| StorageError::Invariant { what: format!("membership: {what}") })
}
