//! What can be asked for: every method of the API in a form from which both its bytes and the rights that it needs can be
//! read. Knows neither callers nor answers.

use std::fmt;

use bytes::Bytes;
use daymark_api::{
    etcdserverpb::{self as pb, request_op::Request as Op},
    v3electionpb as election, v3lockpb as lock,
};
use daymark_tests::connection::Shape;
use prost::Message;

/// Keys from `key` up to `end`, noted as on the wire: no end is one key, a zero byte no end.
#[derive(Clone, PartialEq, Eq)]
pub struct Span {
    pub key: Bytes,
    pub end: Bytes,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end[..] {
            [] => write!(f, "{:?}", self.key),
            _ => write!(f, "[{:?}, {:?})", self.key, self.end),
        }
    }
}

/// One key.
pub fn at(key: impl AsRef<[u8]>) -> Span {
    Span { key: Bytes::copy_from_slice(key.as_ref()), end: Bytes::new() }
}

/// All keys from one up to another.
pub fn span(key: impl AsRef<[u8]>, end: impl AsRef<[u8]>) -> Span {
    Span { key: Bytes::copy_from_slice(key.as_ref()), end: Bytes::copy_from_slice(end.as_ref()) }
}

/// All keys that begin so.
pub fn prefix(text: &str) -> Span {
    let mut end = text.as_bytes().to_vec();
    *end.last_mut().expect("not empty") += 1;
    span(text, end)
}

/// An operation of a transaction.
#[derive(Clone, Debug)]
pub enum TxnOp {
    Range(Span),
    Put {
        key: Span,
        prev_kv: bool,
        lease: i64,
    },
    Delete {
        span: Span,
        prev_kv: bool,
    },
    Txn(Txn),
    /// Its union is not set.
    Nothing,
}

/// A transaction.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compare: Vec<Span>,
    pub success: Vec<TxnOp>,
    pub failure: Vec<TxnOp>,
}

impl Txn {
    /// Asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.compare.is_empty() && self.success.is_empty() && self.failure.is_empty()
    }
}

/// Methods that only root may call, with arguments that change nothing when root does.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Admin {
    Compact,
    MemberAdd,
    MemberRemove,
    MemberUpdate,
    MemberPromote,
    AlarmActivate,
    AlarmDeactivate,
    Defragment,
    Hash,
    HashKv,
    Snapshot,
    MoveLeader,
    Downgrade,
    AuthEnable,
    AuthDisable,
    UserAdd,
    UserList,
    UserDelete,
    UserChangePassword,
    UserGrantRole,
    UserRevokeRole,
    RoleAdd,
    RoleList,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
}

/// One request.
#[derive(Clone, Debug)]
pub enum Ask {
    Range(Span),
    SerializableRange(Span),
    RangeStream(Span),
    Put { key: Span, prev_kv: bool, lease: i64 },
    Delete { span: Span, prev_kv: bool },
    Txn(Txn),
    Watch(Span),
    LeaseGrant,
    LeaseRevoke(i64),
    LeaseKeepAlive(i64),
    LeaseTimeToLive { id: i64, keys: bool },
    LeaseLeases,
    MemberList { linearizable: bool },
    Status,
    AlarmGet,
    AuthStatus,
    Authenticate,
    HealthCheck,
    HealthWatch,
    UserGet(&'static str),
    RoleGet(&'static str),
    Admin(Admin),
    Lock { name: &'static str, lease: i64 },
    Unlock(Span),
    Campaign { name: &'static str, lease: i64 },
    Proclaim { name: &'static str, lease: i64 },
    Leader(&'static str),
    Observe(&'static str),
    Resign { name: &'static str, lease: i64 },
}

/// A user that exists in every world, and one that never does.
pub const SOMEBODY: &str = "reader";
pub const NOBODY: &str = "nobody-of-that-name";
/// A role that exists in every world, and one that never does.
pub const SOME_ROLE: &str = "reader";
pub const NO_ROLE: &str = "no-role-of-that-name";
/// A lease that exists in every world and holds no keys.
pub const IDLE_LEASE: i64 = 1004;
/// A lease that never exists.
pub const NO_LEASE: i64 = 1999;

impl Ask {
    /// Path, streaming and message.
    pub fn encode(&self, peer_url: &str) -> (&'static str, Shape, Vec<u8>) {
        let unary = |path, message: Vec<u8>| (path, Shape::Unary, message);
        match self {
            Self::Range(span) => unary("/etcdserverpb.KV/Range", range(span, false).encode_to_vec()),
            Self::SerializableRange(span) => unary("/etcdserverpb.KV/Range", range(span, true).encode_to_vec()),
            Self::RangeStream(span) => {
                ("/etcdserverpb.KV/RangeStream", Shape::ServerStream, range(span, false).encode_to_vec())
            }
            Self::Put { key, prev_kv, lease } => {
                unary("/etcdserverpb.KV/Put", put(key, *prev_kv, *lease).encode_to_vec())
            }
            Self::Delete { span, prev_kv } => {
                unary("/etcdserverpb.KV/DeleteRange", delete(span, *prev_kv).encode_to_vec())
            }
            Self::Txn(txn) => unary("/etcdserverpb.KV/Txn", encode_txn(txn).encode_to_vec()),
            Self::Watch(span) => ("/etcdserverpb.Watch/Watch", Shape::Bidi, watch(span).encode_to_vec()),
            Self::LeaseGrant => {
                // An id that is taken: whoever may grant hears just that.
                let grant = pb::LeaseGrantRequest { ttl: 600, id: IDLE_LEASE };
                unary("/etcdserverpb.Lease/LeaseGrant", grant.encode_to_vec())
            }
            Self::LeaseRevoke(id) => {
                unary("/etcdserverpb.Lease/LeaseRevoke", pb::LeaseRevokeRequest { id: *id }.encode_to_vec())
            }
            Self::LeaseKeepAlive(id) => {
                let renewal = pb::LeaseKeepAliveRequest { id: *id };
                ("/etcdserverpb.Lease/LeaseKeepAlive", Shape::Bidi, renewal.encode_to_vec())
            }
            Self::LeaseTimeToLive { id, keys } => {
                let ask = pb::LeaseTimeToLiveRequest { id: *id, keys: *keys };
                unary("/etcdserverpb.Lease/LeaseTimeToLive", ask.encode_to_vec())
            }
            Self::LeaseLeases => unary("/etcdserverpb.Lease/LeaseLeases", Vec::new()),
            Self::MemberList { linearizable } => unary(
                "/etcdserverpb.Cluster/MemberList",
                pb::MemberListRequest { linearizable: *linearizable }.encode_to_vec(),
            ),
            Self::Status => unary("/etcdserverpb.Maintenance/Status", Vec::new()),
            Self::AlarmGet => unary("/etcdserverpb.Maintenance/Alarm", Vec::new()),
            Self::AuthStatus => unary("/etcdserverpb.Auth/AuthStatus", Vec::new()),
            Self::Authenticate => {
                let login = pb::AuthenticateRequest { name: SOMEBODY.into(), password: "wrong".into() };
                unary("/etcdserverpb.Auth/Authenticate", login.encode_to_vec())
            }
            Self::HealthCheck => unary("/grpc.health.v1.Health/Check", Vec::new()),
            Self::HealthWatch => ("/grpc.health.v1.Health/Watch", Shape::ServerStream, Vec::new()),
            Self::UserGet(name) => {
                unary("/etcdserverpb.Auth/UserGet", pb::AuthUserGetRequest { name: (*name).into() }.encode_to_vec())
            }
            Self::RoleGet(role) => {
                unary("/etcdserverpb.Auth/RoleGet", pb::AuthRoleGetRequest { role: (*role).into() }.encode_to_vec())
            }
            Self::Admin(Admin::Snapshot) => ("/etcdserverpb.Maintenance/Snapshot", Shape::ServerStream, Vec::new()),
            Self::Admin(admin) => {
                let (path, message) = admin.encode(peer_url);
                unary(path, message)
            }
            Self::Observe(name) => {
                ("/v3electionpb.Election/Observe", Shape::ServerStream, leader_request(name).encode_to_vec())
            }
            _ => {
                let (path, message) = self.encode_queueing();
                unary(path, message)
            }
        }
    }

    /// Lock and Election.
    fn encode_queueing(&self) -> (&'static str, Vec<u8>) {
        match self {
            Self::Lock { name, lease } => {
                let lock = lock::LockRequest { name: (*name).into(), lease: *lease };
                ("/v3lockpb.Lock/Lock", lock.encode_to_vec())
            }
            Self::Unlock(span) => {
                ("/v3lockpb.Lock/Unlock", lock::UnlockRequest { key: span.key.clone() }.encode_to_vec())
            }
            Self::Campaign { name, lease } => {
                let campaign =
                    election::CampaignRequest { name: (*name).into(), lease: *lease, value: Bytes::from_static(b"me") };
                ("/v3electionpb.Election/Campaign", campaign.encode_to_vec())
            }
            Self::Proclaim { name, lease } => {
                let leader = Some(leader_key(name, *lease));
                let proclaim = election::ProclaimRequest { leader, value: Bytes::from_static(b"me") };
                ("/v3electionpb.Election/Proclaim", proclaim.encode_to_vec())
            }
            Self::Leader(name) => ("/v3electionpb.Election/Leader", leader_request(name).encode_to_vec()),
            Self::Resign { name, lease } => {
                let resign = election::ResignRequest { leader: Some(leader_key(name, *lease)) };
                ("/v3electionpb.Election/Resign", resign.encode_to_vec())
            }
            other => panic!("{other:?} has a form of its own"),
        }
    }
}

/// The key with which somebody stands in a queue.
pub fn queue_key(name: &str, lease: i64) -> Span {
    at(format!("{name}/{lease:x}"))
}

/// A place in a queue that nobody has.
fn leader_key(name: &str, lease: i64) -> election::LeaderKey {
    election::LeaderKey {
        name: Bytes::copy_from_slice(name.as_bytes()),
        key: queue_key(name, lease).key,
        rev: 1_000_000,
        lease,
    }
}

fn leader_request(name: &str) -> election::LeaderRequest {
    election::LeaderRequest { name: Bytes::copy_from_slice(name.as_bytes()) }
}

fn range(span: &Span, serializable: bool) -> pb::RangeRequest {
    pb::RangeRequest { key: span.key.clone(), range_end: span.end.clone(), serializable, ..Default::default() }
}

fn put(key: &Span, prev_kv: bool, lease: i64) -> pb::PutRequest {
    pb::PutRequest { key: key.key.clone(), value: Bytes::from_static(b"v"), prev_kv, lease, ..Default::default() }
}

fn delete(span: &Span, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: span.key.clone(), range_end: span.end.clone(), prev_kv }
}

fn watch(span: &Span) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { key: span.key.clone(), range_end: span.end.clone(), ..Default::default() };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

fn encode_txn(txn: &Txn) -> pb::TxnRequest {
    let compare = |span: &Span| pb::Compare {
        key: span.key.clone(),
        range_end: span.end.clone(),
        target: pb::compare::CompareTarget::Version.into(),
        result: pb::compare::CompareResult::Greater.into(),
        target_union: Some(pb::compare::TargetUnion::Version(0)),
    };
    pb::TxnRequest {
        compare: txn.compare.iter().map(compare).collect(),
        success: txn.success.iter().map(encode_op).collect(),
        failure: txn.failure.iter().map(encode_op).collect(),
    }
}

fn encode_op(op: &TxnOp) -> pb::RequestOp {
    let request = match op {
        TxnOp::Range(span) => Some(Op::RequestRange(range(span, false))),
        TxnOp::Put { key, prev_kv, lease } => Some(Op::RequestPut(put(key, *prev_kv, *lease))),
        TxnOp::Delete { span, prev_kv } => Some(Op::RequestDeleteRange(delete(span, *prev_kv))),
        TxnOp::Txn(txn) => Some(Op::RequestTxn(encode_txn(txn))),
        TxnOp::Nothing => None,
    };
    pb::RequestOp { request }
}

impl Admin {
    /// All of them.
    pub const ALL: [Self; 26] = [
        Self::Compact,
        Self::MemberAdd,
        Self::MemberRemove,
        Self::MemberUpdate,
        Self::MemberPromote,
        Self::AlarmActivate,
        Self::AlarmDeactivate,
        Self::Defragment,
        Self::Hash,
        Self::HashKv,
        Self::Snapshot,
        Self::MoveLeader,
        Self::Downgrade,
        Self::AuthEnable,
        Self::AuthDisable,
        Self::UserAdd,
        Self::UserList,
        Self::UserDelete,
        Self::UserChangePassword,
        Self::UserGrantRole,
        Self::UserRevokeRole,
        Self::RoleAdd,
        Self::RoleList,
        Self::RoleDelete,
        Self::RoleGrantPermission,
        Self::RoleRevokePermission,
    ];

    fn encode(self, peer_url: &str) -> (&'static str, Vec<u8>) {
        match self {
            Self::Compact => (
                "/etcdserverpb.KV/Compact",
                pb::CompactionRequest { revision: 1 << 50, physical: false }.encode_to_vec(),
            ),
            // The URL of the member that is there: a second one is refused.
            Self::MemberAdd => (
                "/etcdserverpb.Cluster/MemberAdd",
                pb::MemberAddRequest { peer_ur_ls: vec![peer_url.into()], is_learner: true }.encode_to_vec(),
            ),
            Self::MemberRemove => {
                ("/etcdserverpb.Cluster/MemberRemove", pb::MemberRemoveRequest { id: 77 }.encode_to_vec())
            }
            Self::MemberUpdate => (
                "/etcdserverpb.Cluster/MemberUpdate",
                pb::MemberUpdateRequest { id: 77, peer_ur_ls: vec!["http://127.0.0.1:1".into()] }.encode_to_vec(),
            ),
            Self::MemberPromote => {
                ("/etcdserverpb.Cluster/MemberPromote", pb::MemberPromoteRequest { id: 77 }.encode_to_vec())
            }
            Self::AlarmActivate => ("/etcdserverpb.Maintenance/Alarm", alarm(1)),
            Self::AlarmDeactivate => ("/etcdserverpb.Maintenance/Alarm", alarm(2)),
            Self::Defragment => ("/etcdserverpb.Maintenance/Defragment", Vec::new()),
            Self::Hash => ("/etcdserverpb.Maintenance/Hash", Vec::new()),
            Self::HashKv => ("/etcdserverpb.Maintenance/HashKV", Vec::new()),
            Self::Snapshot => ("/etcdserverpb.Maintenance/Snapshot", Vec::new()),
            Self::MoveLeader => {
                ("/etcdserverpb.Maintenance/MoveLeader", pb::MoveLeaderRequest { target_id: 77 }.encode_to_vec())
            }
            Self::Downgrade => (
                "/etcdserverpb.Maintenance/Downgrade",
                pb::DowngradeRequest { action: 0, version: "x".into() }.encode_to_vec(),
            ),
            _ => self.encode_management(),
        }
    }

    fn encode_management(self) -> (&'static str, Vec<u8>) {
        let nobody = || NOBODY.to_owned();
        let no_role = || NO_ROLE.to_owned();
        match self {
            Self::AuthEnable => ("/etcdserverpb.Auth/AuthEnable", Vec::new()),
            Self::AuthDisable => ("/etcdserverpb.Auth/AuthDisable", Vec::new()),
            Self::UserAdd => {
                let add = pb::AuthUserAddRequest { name: SOMEBODY.into(), password: "x".into(), ..Default::default() };
                ("/etcdserverpb.Auth/UserAdd", add.encode_to_vec())
            }
            Self::UserList => ("/etcdserverpb.Auth/UserList", Vec::new()),
            Self::UserDelete => {
                ("/etcdserverpb.Auth/UserDelete", pb::AuthUserDeleteRequest { name: nobody() }.encode_to_vec())
            }
            Self::UserChangePassword => {
                let change = pb::AuthUserChangePasswordRequest {
                    name: nobody(),
                    password: "x".into(),
                    hashed_password: String::new(),
                };
                ("/etcdserverpb.Auth/UserChangePassword", change.encode_to_vec())
            }
            Self::UserGrantRole => {
                let grant = pb::AuthUserGrantRoleRequest { user: nobody(), role: SOME_ROLE.into() };
                ("/etcdserverpb.Auth/UserGrantRole", grant.encode_to_vec())
            }
            Self::UserRevokeRole => {
                let revoke = pb::AuthUserRevokeRoleRequest { name: nobody(), role: SOME_ROLE.into() };
                ("/etcdserverpb.Auth/UserRevokeRole", revoke.encode_to_vec())
            }
            Self::RoleAdd => {
                ("/etcdserverpb.Auth/RoleAdd", pb::AuthRoleAddRequest { name: SOME_ROLE.into() }.encode_to_vec())
            }
            Self::RoleList => ("/etcdserverpb.Auth/RoleList", Vec::new()),
            Self::RoleDelete => {
                ("/etcdserverpb.Auth/RoleDelete", pb::AuthRoleDeleteRequest { role: no_role() }.encode_to_vec())
            }
            Self::RoleGrantPermission => {
                let perm = daymark_api::authpb::Permission { key: Bytes::from_static(b"k"), ..Default::default() };
                let grant = pb::AuthRoleGrantPermissionRequest { name: no_role(), perm: Some(perm) };
                ("/etcdserverpb.Auth/RoleGrantPermission", grant.encode_to_vec())
            }
            Self::RoleRevokePermission => {
                let revoke = pb::AuthRoleRevokePermissionRequest {
                    role: no_role(),
                    key: Bytes::from_static(b"k"),
                    range_end: Bytes::new(),
                };
                ("/etcdserverpb.Auth/RoleRevokePermission", revoke.encode_to_vec())
            }
            other => panic!("{other:?} is no part of the management of users"),
        }
    }
}

fn alarm(action: i32) -> Vec<u8> {
    pb::AlarmRequest { action, ..Default::default() }.encode_to_vec()
}
