//! A request as replicated: kind, identity, message bytes; and the command batch that one log entry carries. Knows
//! nothing of how commands are applied. The values and layout are frozen, see `docs/formats/commands.md`.
//!
//! ```text
//! batch   = format (u8 = 1), command*
//! command = kind (u8), flags (u8), [user (varint length, bytes), auth revision (varint)] if flags & 1,
//!           length (varint), protobuf message
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use daymark_api::etcdserverpb as pb;

use crate::error::Error;

/// First byte of every batch.
pub const FORMAT: u8 = 1;

const FLAG_IDENTITY: u8 = 1;

/// What a command is. Frozen values.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Put = 1,
    DeleteRange = 2,
    Txn = 3,
    Compact = 4,
    LeaseGrant = 5,
    LeaseRevoke = 6,
    /// Leases whose time is over: one command for many, one revision for each that held keys.
    LeaseExpire = 7,
    Alarm = 8,
    /// A member's name and client URLs, published by itself.
    MemberAttributes = 9,
    /// How much time leases have left, so that a new leader or a restart does not begin it anew.
    LeaseCheckpoint = 10,
    /// New peer addresses of a member.
    MemberUpdate = 13,
    AuthEnable = 20,
    AuthDisable = 21,
    /// A simple token for a user whose password was right.
    AssignToken = 22,
    UserAdd = 23,
    UserDelete = 24,
    UserChangePassword = 25,
    UserGrantRole = 26,
    UserRevokeRole = 27,
    RoleAdd = 28,
    RoleDelete = 29,
    RoleGrantPermission = 30,
    RoleRevokePermission = 31,
}

/// Leases whose time is over.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseExpire {
    /// Ids, ascending.
    #[prost(int64, repeated, tag = "1")]
    pub ids: Vec<i64>,
    /// Numbers of their grants, in the same order: an id may have been revoked and granted again since. Absent in logs of
    /// the first format, which meant whatever lease has the id.
    #[prost(uint64, repeated, tag = "2")]
    pub grants: Vec<u64>,
    /// Term of the leader that has kept the time: in an entry of another term it has no effect, since whoever leads then
    /// may have renewed them. 0: any.
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

/// How much time leases have left.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseCheckpoint {
    #[prost(int64, repeated, tag = "1")]
    pub ids: Vec<i64>,
    /// Numbers of their grants, in the same order.
    #[prost(uint64, repeated, tag = "2")]
    pub grants: Vec<u64>,
    /// Seconds, in the same order; 0: the whole TTL.
    #[prost(int64, repeated, tag = "3")]
    pub remaining_secs: Vec<i64>,
    /// As in [`LeaseExpire`].
    #[prost(uint64, tag = "4")]
    pub term: u64,
}

/// What a member says of itself once it has started.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberAttributes {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub client_urls: Vec<String>,
}

/// Where a member is reached by others, as an operator says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MemberPeerUrls {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(string, repeated, tag = "2")]
    pub peer_urls: Vec<String>,
}

/// A simple token for a user whose password was right. Its text is completed by the index of the log entry.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct AssignToken {
    #[prost(string, tag = "1")]
    pub user: String,
    /// What comes before the dot.
    #[prost(string, tag = "2")]
    pub letters: String,
}

impl std::fmt::Debug for AssignToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AssignToken").field("user", &self.user).finish_non_exhaustive()
    }
}

/// One command, decoded.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // Decoded, applied and dropped one at a time.
pub enum Command {
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    LeaseGrant(pb::LeaseGrantRequest),
    LeaseRevoke(pb::LeaseRevokeRequest),
    LeaseExpire(LeaseExpire),
    LeaseCheckpoint(LeaseCheckpoint),
    Alarm(pb::AlarmRequest),
    MemberAttributes(MemberAttributes),
    MemberUpdate(MemberPeerUrls),
    Auth(AuthCommand),
}

/// A command about users, roles and whether they are asked for. Passwords are hashes in it.
#[derive(Clone, Debug)]
pub enum AuthCommand {
    Enable,
    Disable,
    AssignToken(AssignToken),
    UserAdd(pb::AuthUserAddRequest),
    UserDelete(pb::AuthUserDeleteRequest),
    UserChangePassword(pb::AuthUserChangePasswordRequest),
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    RoleAdd(pb::AuthRoleAddRequest),
    RoleDelete(pb::AuthRoleDeleteRequest),
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
}

/// Who asked, as far as apply must know it. Absent while authentication is disabled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub user: Bytes,
    pub auth_revision: u64,
}

/// Appends one command to a batch under construction; writes the format byte first if the batch is empty.
pub fn append(batch: &mut BytesMut, kind: Kind, identity: Option<&Identity>, message: &impl Message) {
    if batch.is_empty() {
        batch.put_u8(FORMAT);
    }
    let length = message.encoded_len();
    batch.reserve(length + 16);
    batch.put_u8(kind as u8);
    match identity {
        Some(identity) => {
            batch.put_u8(FLAG_IDENTITY);
            prost::encoding::encode_varint(identity.user.len() as u64, batch);
            batch.put_slice(&identity.user);
            prost::encoding::encode_varint(identity.auth_revision, batch);
        }
        None => batch.put_u8(0),
    }
    prost::encoding::encode_varint(length as u64, batch);
    message.encode_raw(batch);
}

/// The commands of a batch, decoded one by one without copying keys and values. An undecodable one is a broken
/// invariant: it was encoded by a member of this cluster. Ends after the first error.
pub struct Commands {
    rest: Bytes,
    failed: Option<Error>,
}

/// Begins to decode a batch.
pub fn commands(mut batch: Bytes) -> Commands {
    let mut failed = None;
    if batch.has_remaining() {
        let format = batch.get_u8();
        if format != FORMAT {
            failed = Some(broken(format!("command batch has format {format}, this version reads {FORMAT}")));
        }
    }
    Commands { rest: batch, failed }
}

impl Iterator for Commands {
    type Item = Result<(Option<Identity>, Command), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            self.rest = Bytes::new();
            return Some(Err(error));
        }
        if self.rest.is_empty() {
            return None;
        }
        let command = decode_one(&mut self.rest);
        if command.is_err() {
            self.rest = Bytes::new();
        }
        Some(command)
    }
}

fn decode_one(batch: &mut Bytes) -> Result<(Option<Identity>, Command), Error> {
    if batch.remaining() < 2 {
        return Err(broken("command batch ends inside a command".into()));
    }
    let kind = batch.get_u8();
    let flags = batch.get_u8();
    let identity = if flags & FLAG_IDENTITY != 0 {
        let user = take(batch)?;
        Some(Identity { user, auth_revision: varint(batch)? })
    } else {
        None
    };
    let message = take(batch)?;
    let command = match kind {
        1 => Command::Put(parse(message)?),
        2 => Command::DeleteRange(parse(message)?),
        3 => Command::Txn(parse(message)?),
        4 => Command::Compact(parse(message)?),
        5 => Command::LeaseGrant(parse(message)?),
        6 => Command::LeaseRevoke(parse(message)?),
        7 => Command::LeaseExpire(parse(message)?),
        8 => Command::Alarm(parse(message)?),
        9 => Command::MemberAttributes(parse(message)?),
        10 => Command::LeaseCheckpoint(parse(message)?),
        13 => Command::MemberUpdate(parse(message)?),
        20..=31 => Command::Auth(parse_auth(kind, message)?),
        other => return Err(broken(format!("command of unknown kind {other}"))),
    };
    Ok((identity, command))
}

fn parse_auth(kind: u8, message: Bytes) -> Result<AuthCommand, Error> {
    Ok(match kind {
        20 => AuthCommand::Enable,
        21 => AuthCommand::Disable,
        22 => AuthCommand::AssignToken(parse(message)?),
        23 => AuthCommand::UserAdd(parse(message)?),
        24 => AuthCommand::UserDelete(parse(message)?),
        25 => AuthCommand::UserChangePassword(parse(message)?),
        26 => AuthCommand::UserGrantRole(parse(message)?),
        27 => AuthCommand::UserRevokeRole(parse(message)?),
        28 => AuthCommand::RoleAdd(parse(message)?),
        29 => AuthCommand::RoleDelete(parse(message)?),
        30 => AuthCommand::RoleGrantPermission(parse(message)?),
        31 => AuthCommand::RoleRevokePermission(parse(message)?),
        other => return Err(broken(format!("command of unknown kind {other}"))),
    })
}

fn parse<M: Message + Default>(message: Bytes) -> Result<M, Error> {
    M::decode(message).map_err(|error| broken(format!("command message: {error}")))
}

fn varint(batch: &mut Bytes) -> Result<u64, Error> {
    prost::encoding::decode_varint(batch).map_err(|error| broken(format!("command batch: {error}")))
}

fn take(batch: &mut Bytes) -> Result<Bytes, Error> {
    let length = varint(batch)? as usize;
    if length > batch.remaining() {
        return Err(broken("command batch ends inside a command".into()));
    }
    Ok(batch.split_to(length))
}

fn broken(what: String) -> Error {
    Error::Internal(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(batch: Bytes) -> Result<Vec<(Option<Identity>, Command)>, Error> {
        commands(batch).collect()
    }

    fn put(value: &'static [u8]) -> pb::PutRequest {
        pb::PutRequest { key: Bytes::from_static(b"k"), value: Bytes::from_static(value), ..Default::default() }
    }

    #[test]
    fn the_bytes_of_a_batch_are_frozen() {
        let mut batch = BytesMut::new();
        append(&mut batch, Kind::Put, None, &put(b"v"));
        let identity = Identity { user: Bytes::from_static(b"eve"), auth_revision: 300 };
        append(&mut batch, Kind::LeaseRevoke, Some(&identity), &pb::LeaseRevokeRequest { id: 5 });
        let put = [1, 0, 6, 0x0a, 1, b'k', 0x12, 1, b'v'];
        let revoke = [6, 1, 3, b'e', b'v', b'e', 0xac, 2, 2, 8, 5];
        assert_eq!(batch[..], [&[1][..], &put, &revoke].concat());
        let commands = decode(batch.freeze()).expect("decodes");
        assert!(matches!(&commands[0], (None, Command::Put(put)) if put.value == "v"));
        assert!(
            matches!(&commands[1], (Some(who), Command::LeaseRevoke(revoke)) if *who == identity && revoke.id == 5)
        );
    }

    #[test]
    fn every_cut_is_an_error_or_a_prefix_of_the_commands() {
        let mut batch = BytesMut::new();
        append(&mut batch, Kind::Put, None, &put(b"one"));
        let first = batch.len();
        append(&mut batch, Kind::Put, None, &put(b"two"));
        let batch = batch.freeze();
        for length in 0..batch.len() {
            let decoded = decode(batch.slice(..length));
            let whole = match length {
                0 | 1 => Some(0),
                _ if length == first => Some(1),
                _ => None,
            };
            assert_eq!(decoded.ok().map(|commands| commands.len()), whole, "cut to {length} bytes");
        }
        let mut unknown = batch.to_vec();
        unknown[1] = 200;
        assert!(decode(unknown.into()).is_err());
    }
}
