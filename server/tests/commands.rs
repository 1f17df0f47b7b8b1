//! Generated commands over few keys and leases, so that they get in each other's way.

use daymark_api::authpb::{Permission, UserAddOptions};
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::compare::TargetUnion;
use daymark_api::etcdserverpb::request_op::Request as Op;
use daymark_server::command::{self, AssignToken, Identity, Kind, LeaseCheckpoint, LeaseExpire, MemberAttributes};
use proptest::prelude::*;

/// A command to be encoded.
#[derive(Clone, Debug)]
pub enum Generated {
    Put(pb::PutRequest),
    Delete(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    Grant(pb::LeaseGrantRequest),
    Revoke(pb::LeaseRevokeRequest),
    Expire(LeaseExpire),
    Checkpoint(LeaseCheckpoint),
    Alarm(pb::AlarmRequest),
    Attributes(MemberAttributes),
    Token(AssignToken),
    UserAdd(pb::AuthUserAddRequest),
    UserDelete(pb::AuthUserDeleteRequest),
    UserGrant(pb::AuthUserGrantRoleRequest),
    UserRevoke(pb::AuthUserRevokeRoleRequest),
    RoleAdd(pb::AuthRoleAddRequest),
    RoleDelete(pb::AuthRoleDeleteRequest),
    RoleGrant(pb::AuthRoleGrantPermissionRequest),
    RoleRevoke(pb::AuthRoleRevokePermissionRequest),
    AuthEnable,
    AuthDisable,
    /// With an identity.
    As(Identity, Box<Generated>),
}

impl Generated {
    /// Appends it to a command batch.
    pub fn append(&self, batch: &mut bytes::BytesMut) {
        self.append_as(None, batch);
    }

    fn append_as(&self, who: Option<&Identity>, batch: &mut bytes::BytesMut) {
        match self {
            Self::Put(message) => command::append(batch, Kind::Put, who, message),
            Self::Delete(message) => command::append(batch, Kind::DeleteRange, who, message),
            Self::Txn(message) => command::append(batch, Kind::Txn, who, message),
            Self::Compact(message) => command::append(batch, Kind::Compact, who, message),
            Self::Grant(message) => command::append(batch, Kind::LeaseGrant, who, message),
            Self::Revoke(message) => command::append(batch, Kind::LeaseRevoke, who, message),
            Self::Checkpoint(message) => command::append(batch, Kind::LeaseCheckpoint, who, message),
            Self::Expire(message) => command::append(batch, Kind::LeaseExpire, who, message),
            Self::Alarm(message) => command::append(batch, Kind::Alarm, who, message),
            Self::Attributes(message) => command::append(batch, Kind::MemberAttributes, who, message),
            Self::Token(message) => command::append(batch, Kind::AssignToken, who, message),
            Self::UserAdd(message) => command::append(batch, Kind::UserAdd, who, message),
            Self::UserDelete(message) => command::append(batch, Kind::UserDelete, who, message),
            Self::UserGrant(message) => command::append(batch, Kind::UserGrantRole, who, message),
            Self::UserRevoke(message) => command::append(batch, Kind::UserRevokeRole, who, message),
            Self::RoleAdd(message) => command::append(batch, Kind::RoleAdd, who, message),
            Self::RoleDelete(message) => command::append(batch, Kind::RoleDelete, who, message),
            Self::RoleGrant(message) => command::append(batch, Kind::RoleGrantPermission, who, message),
            Self::RoleRevoke(message) => command::append(batch, Kind::RoleRevokePermission, who, message),
            Self::AuthEnable => command::append(batch, Kind::AuthEnable, who, &pb::AuthEnableRequest {}),
            Self::AuthDisable => command::append(batch, Kind::AuthDisable, who, &pb::AuthDisableRequest {}),
            Self::As(who, command) => command.append_as(Some(who), batch),
        }
    }
}

/// Any command.
pub fn command() -> impl Strategy<Value = Generated> {
    prop_oneof![
        20 => put().prop_map(Generated::Put),
        8 => delete().prop_map(Generated::Delete),
        12 => txn(2).prop_map(Generated::Txn),
        2 => (0..60i64).prop_map(|revision| Generated::Compact(pb::CompactionRequest { revision, physical: false })),
        6 => (lease(), 0..9i64).prop_map(|(id, ttl)| Generated::Grant(pb::LeaseGrantRequest { id, ttl })),
        4 => lease().prop_map(|id| Generated::Revoke(pb::LeaseRevokeRequest { id })),
        3 => (prop::collection::vec(lease(), 0..4), prop::collection::vec(1..8u64, 0..4))
            .prop_map(|(ids, grants)| Generated::Expire(LeaseExpire { ids, grants, term: 0 })),
        3 => prop::collection::vec((lease(), 1..8u64, 0..5i64), 0..4).prop_map(|of| {
            let (ids, grants) = of.iter().map(|(id, grant, _)| (*id, *grant)).unzip();
            let remaining_secs = of.iter().map(|(_, _, remaining)| *remaining).collect();
            Generated::Checkpoint(LeaseCheckpoint { ids, grants, remaining_secs, term: 0 })
        }),
        1 => (0..3i32, 0..2u64, prop_oneof![5 => Just(0), 2 => Just(1)])
            .prop_map(|(action, member_id, alarm)| Generated::Alarm(pb::AlarmRequest { action, member_id, alarm })),
        1 => (1..3u64, "[a-z]{1,4}").prop_map(|(id, name)| {
            Generated::Attributes(MemberAttributes { id, name, client_urls: vec!["http://c".into()] })
        }),
    ]
}

/// What makes a root, two users and their roles, and has everybody say who they are from then on.
pub fn with_users() -> Vec<Generated> {
    let user = |name: &str| pb::AuthUserAddRequest { name: name.into(), ..Default::default() };
    let mut commands: Vec<_> = ["root", "bob", "amy"].map(user).map(Generated::UserAdd).into();
    commands.push(Generated::RoleAdd(pb::AuthRoleAddRequest { name: "r".into() }));
    for (user, role) in [("root", "root"), ("bob", "r")] {
        commands.push(Generated::UserGrant(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }));
    }
    commands.push(Generated::AuthEnable);
    commands
}

/// A command of somebody: of a user, of nobody, of somebody who looked long ago.
pub fn command_of_somebody() -> impl Strategy<Value = Generated> {
    let any = prop_oneof![3 => command(), 2 => about_users()];
    let who = prop_oneof![6 => Just("root"), 6 => Just("bob"), 2 => Just("amy"), 1 => Just("gone")];
    let revision = prop_oneof![8 => Just(u64::MAX), 1 => 0..30u64];
    (any, prop::option::weighted(0.9, (who, revision))).prop_map(|(command, who)| match who {
        Some((user, auth_revision)) => {
            Generated::As(Identity { user: bytes::Bytes::from_static(user.as_bytes()), auth_revision }, command.into())
        }
        None => command,
    })
}

fn about_users() -> impl Strategy<Value = Generated> {
    let user = || prop_oneof![3 => Just("root".to_owned()), 4 => Just("bob".to_owned()), 2 => "[a-b]".boxed()];
    let role = || prop_oneof![2 => Just("root".to_owned()), 4 => Just("r".to_owned()), 2 => "[s-t]".boxed()];
    let permission =
        (0..4i32, key(), range_end()).prop_map(|(perm_type, key, range_end)| Permission { perm_type, key, range_end });
    prop_oneof![
        2 => user().prop_map(|user| Generated::Token(AssignToken { user, letters: "letters".into() })),
        2 => (user(), any::<bool>()).prop_map(|(name, no_password)| {
            let options = Some(UserAddOptions { no_password });
            Generated::UserAdd(pb::AuthUserAddRequest { name, options, ..Default::default() })
        }),
        2 => user().prop_map(|name| Generated::UserDelete(pb::AuthUserDeleteRequest { name })),
        3 => (user(), role())
            .prop_map(|(user, role)| Generated::UserGrant(pb::AuthUserGrantRoleRequest { user, role })),
        2 => (user(), role())
            .prop_map(|(name, role)| Generated::UserRevoke(pb::AuthUserRevokeRoleRequest { name, role })),
        2 => role().prop_map(|name| Generated::RoleAdd(pb::AuthRoleAddRequest { name })),
        1 => role().prop_map(|role| Generated::RoleDelete(pb::AuthRoleDeleteRequest { role })),
        5 => (role(), prop::option::weighted(0.9, permission))
            .prop_map(|(name, perm)| Generated::RoleGrant(pb::AuthRoleGrantPermissionRequest { name, perm })),
        2 => (role(), key(), range_end()).prop_map(|(role, key, range_end)| {
            Generated::RoleRevoke(pb::AuthRoleRevokePermissionRequest { role, key, range_end })
        }),
        2 => Just(Generated::AuthEnable),
        1 => Just(Generated::AuthDisable),
    ]
}

fn key() -> impl Strategy<Value = bytes::Bytes> {
    "[a-d]{1,2}".prop_map(bytes::Bytes::from)
}

fn range_end() -> impl Strategy<Value = bytes::Bytes> {
    prop_oneof![4 => Just(bytes::Bytes::new()), 1 => Just(bytes::Bytes::from_static(&[0])), 3 => key()]
}

fn lease() -> impl Strategy<Value = i64> {
    prop_oneof![1..6i64, Just(-3i64), Just(-1i64)]
}

fn put() -> impl Strategy<Value = pb::PutRequest> {
    let lease = prop_oneof![4 => Just(0), 3 => lease()];
    (key(), "[x-z]{0,3}", lease, any::<bool>(), 0..10u8).prop_map(|(key, value, lease, prev_kv, ignore)| {
        let (ignore_value, ignore_lease) = (ignore == 0, ignore == 1);
        pb::PutRequest {
            key,
            value: if ignore_value { bytes::Bytes::new() } else { value.into() },
            lease: if ignore_lease { 0 } else { lease },
            prev_kv,
            ignore_value,
            ignore_lease,
        }
    })
}

fn delete() -> impl Strategy<Value = pb::DeleteRangeRequest> {
    (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| pb::DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    })
}

fn range() -> impl Strategy<Value = pb::RangeRequest> {
    let revision = prop_oneof![6 => Just(0i64), 1 => -1..40i64];
    (key(), range_end(), revision, 0..3i64, 0..3i32, 0..5i32).prop_map(
        |(key, range_end, revision, limit, sort_order, sort_target)| pb::RangeRequest {
            key,
            range_end,
            revision,
            limit,
            sort_order,
            sort_target,
            ..Default::default()
        },
    )
}

fn compare() -> impl Strategy<Value = pb::Compare> {
    let union = prop_oneof![
        Just(None),
        (0..4i64).prop_map(|n| Some(TargetUnion::Version(n))),
        (0..30i64).prop_map(|n| Some(TargetUnion::ModRevision(n))),
        "[x-z]{0,2}".prop_map(|value| Some(TargetUnion::Value(value.into()))),
        lease().prop_map(|id| Some(TargetUnion::Lease(id))),
    ];
    (0..5i32, 0..6i32, key(), range_end(), union).prop_map(|(result, target, key, range_end, target_union)| {
        pb::Compare { result, target, key, range_end, target_union }
    })
}

/// Duplicate keys included, which services refuse: apply has to stay consistent whatever is in the log.
fn txn(depth: u32) -> BoxedStrategy<pb::TxnRequest> {
    let branch = || prop::collection::vec(op(depth), 0..4);
    (prop::collection::vec(compare(), 0..3), branch(), branch())
        .prop_map(|(compare, success, failure)| pb::TxnRequest { compare, success, failure })
        .boxed()
}

fn op(depth: u32) -> BoxedStrategy<pb::RequestOp> {
    let simple = prop_oneof![
        range().prop_map(Op::RequestRange),
        put().prop_map(Op::RequestPut),
        delete().prop_map(Op::RequestDeleteRange),
    ];
    let any = if depth == 0 {
        simple.boxed()
    } else {
        prop_oneof![4 => simple, 1 => txn(depth - 1).prop_map(Op::RequestTxn)].boxed()
    };
    any.prop_map(|request| pb::RequestOp { request: Some(request) }).boxed()
}
