//! Any unary call as bytes, with what turns its answer into text; and the codec that carries bytes through a gRPC client.

use std::fmt;

use bytes::{Buf, BufMut, Bytes};
use daymark_api::{
    authpb::{Permission, UserAddOptions},
    etcdserverpb::{self as pb, ResponseHeader},
    v3electionpb::{LeaderRequest, LeaderResponse},
};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::known;

/// An answer as text, and the revision in its header.
pub type Shown = (String, Option<i64>);

/// A unary call.
#[derive(Clone)]
pub struct Call {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// The encoded message.
    pub message: Bytes,
    /// Reads the answer.
    pub show: fn(&[u8]) -> Shown,
    text: String,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.text)
    }
}

/// What nearly every answer begins with.
#[derive(Clone, PartialEq, Message)]
struct Headed {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
}

/// Any answer as text.
pub fn show<A: Message + Default + fmt::Debug>(bytes: &[u8]) -> Shown {
    let answer = A::decode(bytes).map_or_else(|e| format!("undecodable: {e}"), |answer| format!("{answer:?}"));
    let header = Headed::decode(bytes).ok().and_then(|headed| headed.header);
    (answer, header.map(|header| header.revision))
}

impl Call {
    /// A call whose answer is an `A`.
    pub fn new<A: Message + Default + fmt::Debug>(path: &'static str, message: &(impl Message + fmt::Debug)) -> Self {
        Self { path, message: message.encode_to_vec().into(), show: show::<A>, text: format!("{message:?}") }
    }

    pub fn leader(name: Bytes) -> Self {
        Self::new::<LeaderResponse>("/v3electionpb.Election/Leader", &LeaderRequest { name })
    }

    pub fn status() -> Self {
        Self::new::<pb::StatusResponse>("/etcdserverpb.Maintenance/Status", &pb::StatusRequest {})
    }

    pub fn alarm(request: pb::AlarmRequest) -> Self {
        Self::new::<pb::AlarmResponse>("/etcdserverpb.Maintenance/Alarm", &request)
    }

    pub fn downgrade(action: i32, version: &str) -> Self {
        let request = pb::DowngradeRequest { action, version: version.into() };
        Self::new::<pb::DowngradeResponse>("/etcdserverpb.Maintenance/Downgrade", &request)
    }

    pub fn move_leader(target_id: u64) -> Self {
        let request = pb::MoveLeaderRequest { target_id };
        Self::new::<pb::MoveLeaderResponse>("/etcdserverpb.Maintenance/MoveLeader", &request)
    }

    pub fn member_list(linearizable: bool) -> Self {
        let request = pb::MemberListRequest { linearizable };
        Self::new::<pb::MemberListResponse>("/etcdserverpb.Cluster/MemberList", &request)
    }

    pub fn member_remove(id: u64) -> Self {
        Self::new::<pb::MemberRemoveResponse>("/etcdserverpb.Cluster/MemberRemove", &pb::MemberRemoveRequest { id })
    }

    pub fn member_update(id: u64) -> Self {
        let request = pb::MemberUpdateRequest { id, peer_ur_ls: vec!["http://127.0.0.1:1".into()] };
        Self::new::<pb::MemberUpdateResponse>("/etcdserverpb.Cluster/MemberUpdate", &request)
    }

    pub fn member_promote(id: u64) -> Self {
        Self::new::<pb::MemberPromoteResponse>("/etcdserverpb.Cluster/MemberPromote", &pb::MemberPromoteRequest { id })
    }

    pub fn auth_enable() -> Self {
        Self::new::<pb::AuthEnableResponse>("/etcdserverpb.Auth/AuthEnable", &pb::AuthEnableRequest {})
    }

    pub fn auth_disable() -> Self {
        Self::new::<pb::AuthDisableResponse>("/etcdserverpb.Auth/AuthDisable", &pb::AuthDisableRequest {})
    }

    pub fn auth_status() -> Self {
        Self::new::<pb::AuthStatusResponse>("/etcdserverpb.Auth/AuthStatus", &pb::AuthStatusRequest {})
    }

    pub fn user_add(name: &str, password: &str, no_password: bool) -> Self {
        let options = no_password.then_some(UserAddOptions { no_password });
        let password = if no_password { String::new() } else { password.into() };
        let request = pb::AuthUserAddRequest { name: name.into(), password, options, hashed_password: String::new() };
        Self::new::<pb::AuthUserAddResponse>("/etcdserverpb.Auth/UserAdd", &request)
    }

    pub fn user_get(name: &str) -> Self {
        let request = pb::AuthUserGetRequest { name: name.into() };
        Self::new::<pb::AuthUserGetResponse>("/etcdserverpb.Auth/UserGet", &request)
    }

    pub fn user_list() -> Self {
        Self::new::<pb::AuthUserListResponse>("/etcdserverpb.Auth/UserList", &pb::AuthUserListRequest {})
    }

    pub fn user_delete(name: &str) -> Self {
        let request = pb::AuthUserDeleteRequest { name: name.into() };
        Self::new::<pb::AuthUserDeleteResponse>("/etcdserverpb.Auth/UserDelete", &request)
    }

    pub fn user_change_password(name: &str, password: &str) -> Self {
        let (name, password, hashed_password) = (name.into(), password.into(), String::new());
        let request = pb::AuthUserChangePasswordRequest { name, password, hashed_password };
        Self::new::<pb::AuthUserChangePasswordResponse>("/etcdserverpb.Auth/UserChangePassword", &request)
    }

    pub fn user_grant_role(user: &str, role: &str) -> Self {
        let request = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        Self::new::<pb::AuthUserGrantRoleResponse>("/etcdserverpb.Auth/UserGrantRole", &request)
    }

    pub fn user_revoke_role(name: &str, role: &str) -> Self {
        let request = pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() };
        Self::new::<pb::AuthUserRevokeRoleResponse>("/etcdserverpb.Auth/UserRevokeRole", &request)
    }

    pub fn role_add(name: &str) -> Self {
        let request = pb::AuthRoleAddRequest { name: name.into() };
        Self::new::<pb::AuthRoleAddResponse>("/etcdserverpb.Auth/RoleAdd", &request)
    }

    pub fn role_get(role: &str) -> Self {
        let request = pb::AuthRoleGetRequest { role: role.into() };
        let call = Self::new::<pb::AuthRoleGetResponse>("/etcdserverpb.Auth/RoleGet", &request);
        Self { show: known::role, ..call }
    }

    pub fn role_list() -> Self {
        Self::new::<pb::AuthRoleListResponse>("/etcdserverpb.Auth/RoleList", &pb::AuthRoleListRequest {})
    }

    pub fn role_delete(role: &str) -> Self {
        let request = pb::AuthRoleDeleteRequest { role: role.into() };
        Self::new::<pb::AuthRoleDeleteResponse>("/etcdserverpb.Auth/RoleDelete", &request)
    }

    /// With a permission of this type on this range, or with none at all.
    pub fn role_grant(name: &str, permission: Option<(i32, Bytes, Bytes)>) -> Self {
        let perm = permission.map(|(perm_type, key, range_end)| Permission { perm_type, key, range_end });
        let request = pb::AuthRoleGrantPermissionRequest { name: name.into(), perm };
        Self::new::<pb::AuthRoleGrantPermissionResponse>("/etcdserverpb.Auth/RoleGrantPermission", &request)
    }

    pub fn role_revoke(role: &str, key: Bytes, range_end: Bytes) -> Self {
        let request = pb::AuthRoleRevokePermissionRequest { role: role.into(), key, range_end };
        Self::new::<pb::AuthRoleRevokePermissionResponse>("/etcdserverpb.Auth/RoleRevokePermission", &request)
    }
}

/// Messages as their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawCodec;

impl Codec for RawCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
