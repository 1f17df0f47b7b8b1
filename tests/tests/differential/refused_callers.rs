//! What is refused because of who asks, or because of an alarm: on a server of its own, in an order in which each call finds
//! what it needs. Proved on etcd first, as the rest of the table.

use daymark_api::{
    authpb::{Permission, UserAddOptions},
    etcdserverpb::{
        AlarmRequest, AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
        AuthRoleGetRequest, AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
        AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest, AuthUserGrantRoleRequest,
        AuthUserListRequest, AuthUserRevokeRoleRequest, AuthenticateRequest, CompactionRequest, DeleteRangeRequest,
        LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, Member, MemberAddRequest,
        MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MoveLeaderRequest, PutRequest, RequestOp,
        StatusRequest, TxnRequest, auth_client::AuthClient, cluster_client::ClusterClient, request_op::Request as Op,
    },
};
use daymark_tests::wire::{self, Call};
use tonic::transport::{Channel, Endpoint};

use super::refusals::{
    DATA_LOSS, DENIED, EXHAUSTED, Expect, INVALID, PRECONDITION, Row, Since, UNAUTHENTICATED, UNKNOWN, Who, mismatch,
    put, range, row,
};

/// Asks a fresh server; what was not as expected.
pub async fn failures(endpoint: &str, who: Who) -> Vec<String> {
    let channel = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address").connect().await;
    let channel = channel.expect("the server is up");
    let mut failures = ask(endpoint, who, while_nobody_counts()).await;
    let root = login(&channel, "root", "of root").await;
    let alice = login(&channel, "alice", "of alice").await;
    failures.extend(ask(endpoint, who, while_users_count(&root, &alice)).await);
    let members = ClusterClient::new(channel).member_list(MemberListRequest { linearizable: false }).await;
    let member = members.expect("a member list").into_inner().members.remove(0);
    failures.extend(ask(endpoint, who, alarms(member.id)).await);
    failures.extend(ask(endpoint, who, changes_of(&member)).await);
    failures
}

/// All rows, to see which texts they assert.
pub fn rows() -> Vec<Row> {
    let members = changes_of(&Member::default());
    [while_nobody_counts(), while_users_count("", ""), alarms(0), members].into_iter().flatten().collect()
}

async fn ask(endpoint: &str, who: Who, rows: Vec<Row>) -> Vec<String> {
    let mut failures = Vec::new();
    for row in rows {
        let outcome = wire::call(endpoint, &row.call).await;
        if !row.since.concerns(who) {
            continue;
        }
        if let Some(expected) = mismatch(&row.expect, &outcome) {
            failures.push(format!("{}: {outcome:?} instead of {expected}", row.name));
        }
    }
    failures
}

async fn login(channel: &Channel, name: &str, password: &str) -> String {
    let request = AuthenticateRequest { name: name.into(), password: password.into() };
    AuthClient::new(channel.clone()).authenticate(request).await.expect("a login").into_inner().token
}

fn done(name: &'static str, call: Call) -> Row {
    Row { name, call, expect: Expect::Text(0, String::new()), since: Since::Old }
}

fn raw(name: &'static str, call: Call, code: u16, text: &str) -> Row {
    Row { name, call, expect: Expect::Text(code, text.to_owned()), since: Since::Old }
}

fn user_add(name: &str, password: &str, no_password: bool) -> Call {
    let (name, password, hashed_password) = (name.into(), password.into(), String::new());
    let options = no_password.then_some(UserAddOptions { no_password });
    Call::new("Auth.UserAdd", &AuthUserAddRequest { name, password, options, hashed_password })
}

fn role_add(name: &str) -> Call {
    Call::new("Auth.RoleAdd", &AuthRoleAddRequest { name: name.into() })
}

fn grant(user: &str, role: &str) -> Call {
    Call::new("Auth.UserGrantRole", &AuthUserGrantRoleRequest { user: user.into(), role: role.into() })
}

fn revoke(name: &str, role: &str) -> Call {
    Call::new("Auth.UserRevokeRole", &AuthUserRevokeRoleRequest { name: name.into(), role: role.into() })
}

fn permit(role: &str, key: &'static str, end: &'static str) -> Call {
    let perm = Some(Permission { perm_type: 2, key: key.into(), range_end: end.into() });
    Call::new("Auth.RoleGrantPermission", &AuthRoleGrantPermissionRequest { name: role.into(), perm })
}

fn forbid(role: &str, key: &'static str) -> Call {
    let (key, range_end) = (key.into(), Default::default());
    Call::new("Auth.RoleRevokePermission", &AuthRoleRevokePermissionRequest { role: role.into(), key, range_end })
}

fn authenticate(name: &str, password: &str) -> Call {
    Call::new("Auth.Authenticate", &AuthenticateRequest { name: name.into(), password: password.into() })
}

fn change_password(name: &str, password: &str) -> Call {
    let (name, password, hashed_password) = (name.into(), password.into(), String::new());
    Call::new("Auth.UserChangePassword", &AuthUserChangePasswordRequest { name, password, hashed_password })
}

fn enable() -> Call {
    Call::new("Auth.AuthEnable", &AuthEnableRequest {})
}

/// Users and roles are made; at the end users count.
fn while_nobody_counts() -> Vec<Row> {
    let delete_user = |name: &str| Call::new("Auth.UserDelete", &AuthUserDeleteRequest { name: name.into() });
    let get_user = |name: &str| Call::new("Auth.UserGet", &AuthUserGetRequest { name: name.into() });
    let delete_role = |role: &str| Call::new("Auth.RoleDelete", &AuthRoleDeleteRequest { role: role.into() });
    let get_role = |role: &str| Call::new("Auth.RoleGet", &AuthRoleGetRequest { role: role.into() });
    let no_permission = AuthRoleGrantPermissionRequest { name: "alice".into(), perm: None };
    let (no_user, no_role) = ("user name not found", "role name not found");
    vec![
        row("users count without root", enable(), PRECONDITION, "root user does not exist"),
        row("login while nobody counts", authenticate("root", "x"), PRECONDITION, "authentication is not enabled"),
        row("user without a name", user_add("", "x", false), INVALID, "user name is empty"),
        raw(
            "password of 73 bytes",
            user_add("long", &"x".repeat(73), false),
            UNKNOWN,
            "bcrypt: password length exceeds 72 bytes",
        ),
        done("root", user_add("root", "of root", false)),
        row("users count with a root of no role", enable(), PRECONDITION, "root user does not have root role"),
        row("second user of a name", user_add("root", "x", false), PRECONDITION, "user name already exists"),
        row("unknown user deleted", delete_user("nobody"), PRECONDITION, no_user),
        row("unknown user shown", get_user("nobody"), PRECONDITION, no_user),
        row("unknown user's password", change_password("nobody", "x"), PRECONDITION, no_user),
        row("unknown user given a role", grant("nobody", "root"), PRECONDITION, no_user),
        row("role taken from an unknown user", revoke("nobody", "root"), PRECONDITION, no_user),
        row("unknown role given", grant("root", "nothing"), PRECONDITION, no_role),
        row(
            "role taken that was not given",
            revoke("root", "nothing"),
            PRECONDITION,
            "role is not granted to the user",
        ),
        row("role without a name", role_add(""), INVALID, "role name is empty"),
        done("role of alice", role_add("alice")),
        row("second role of a name", role_add("alice"), PRECONDITION, "role name already exists"),
        row("unknown role deleted", delete_role("nothing"), PRECONDITION, no_role),
        row("unknown role shown", get_role("nothing"), PRECONDITION, no_role),
        row("unknown role permitted", permit("nothing", "a", ""), PRECONDITION, no_role),
        row("unknown role forbidden", forbid("nothing", "a"), PRECONDITION, no_role),
        row(
            "no permission given",
            Call::new("Auth.RoleGrantPermission", &no_permission),
            INVALID,
            "permission not given",
        ),
        row("permission on nothing", permit("alice", "b", "a"), INVALID, "invalid auth management"),
        row("permission never given", forbid("alice", "a"), PRECONDITION, "permission is not granted to the role"),
        done("role root", role_add("root")),
        done("root is root", grant("root", "root")),
        done("alice", user_add("alice", "of alice", false)),
        done("someone without a password", user_add("silent", "", true)),
        done("alice has her role", grant("alice", "alice")),
        done("alice below alice/", permit("alice", "alice/", "alice0")),
        done("a lease", Call::new("Lease.LeaseGrant", &LeaseGrantRequest { ttl: 1000, id: 7 })),
        done("a key of others with it", Call::new("KV.Put", &PutRequest { lease: 7, ..put("bob/key", "1") })),
        done("users count", enable()),
    ]
}

fn while_users_count(root: &str, alice: &str) -> Vec<Row> {
    let by_root = |call: Call| call.header("token", root);
    let by_alice = |call: Call| call.header("token", alice);
    let wrong = "authentication failed, invalid user ID or password";
    let (denied, management, nobody) = ("permission denied", "invalid auth management", "user name is empty");
    let get = || Call::new("KV.Range", &range("alice/key"));
    let inner = TxnRequest {
        success: vec![RequestOp { request: Some(Op::RequestRange(range("bob/key"))) }],
        ..Default::default()
    };
    let nested = TxnRequest { success: vec![RequestOp { request: Some(Op::RequestTxn(inner)) }], ..Default::default() };
    let compact = CompactionRequest { revision: 1, physical: false };
    let everything = DeleteRangeRequest { key: "a".into(), range_end: "z".into(), prev_kv: false };
    let keys_of_lease = LeaseTimeToLiveRequest { id: 7, keys: true };
    vec![
        row("wrong password", authenticate("alice", "wrong"), INVALID, wrong),
        row("login of nobody", authenticate("nobody", "x"), INVALID, wrong),
        raw(
            "password of someone without one",
            authenticate("silent", "x"),
            UNKNOWN,
            "auth: authentication failed, password was given for no password user",
        ),
        row("range by nobody", get(), INVALID, nobody),
        row("put by nobody", Call::new("KV.Put", &put("alice/key", "1")), INVALID, nobody),
        row("status by nobody", Call::new("Maintenance.Status", &StatusRequest {}), INVALID, nobody),
        row("grant by nobody", Call::new("Lease.LeaseGrant", &LeaseGrantRequest { ttl: 100, id: 0 }), INVALID, nobody),
        row("garbage for a token", get().header("token", "x.1"), UNAUTHENTICATED, "invalid auth token"),
        row(
            "a token of another kind",
            get().header("authorization", "Bearer eyJ.e30.c2ln"),
            UNAUTHENTICATED,
            "invalid auth token",
        ),
        done("alice reads", by_alice(get())),
        row("range of others", by_alice(Call::new("KV.Range", &range("bob/key"))), DENIED, denied),
        row("put for others", by_alice(Call::new("KV.Put", &put("bob/key", "1"))), DENIED, denied),
        row("deletion of everything", by_alice(Call::new("KV.DeleteRange", &everything)), DENIED, denied),
        row("range of others in a nested txn", by_alice(Call::new("KV.Txn", &nested)), DENIED, denied),
        row("compaction by a user", by_alice(Call::new("KV.Compact", &compact)), DENIED, denied),
        row(
            "lease with keys of others revoked",
            by_alice(Call::new("Lease.LeaseRevoke", &LeaseRevokeRequest { id: 7 })),
            DENIED,
            denied,
        ),
        row(
            "put with a lease that holds keys of others",
            by_alice(Call::new("KV.Put", &PutRequest { lease: 7, ..put("alice/key", "1") })),
            DENIED,
            denied,
        ),
        row("keys of a lease of others", by_alice(Call::new("Lease.LeaseTimeToLive", &keys_of_lease)), DENIED, denied),
        Row {
            since: Since::Newer,
            ..row("all leases", by_alice(Call::new("Lease.LeaseLeases", &LeaseLeasesRequest {})), DENIED, denied)
        },
        row("users shown to a user", by_alice(Call::new("Auth.UserList", &AuthUserListRequest {})), DENIED, denied),
        row("user added by a user", by_alice(user_add("x", "x", false)), DENIED, denied),
        row(
            "users disregarded by a user",
            by_alice(Call::new("Auth.AuthDisable", &AuthDisableRequest {})),
            DENIED,
            denied,
        ),
        row(
            "leader moved by a user",
            by_alice(Call::new("Maintenance.MoveLeader", &MoveLeaderRequest { target_id: 1 })),
            DENIED,
            denied,
        ),
        row(
            "member removed by a user",
            by_alice(Call::new("Cluster.MemberRemove", &MemberRemoveRequest { id: 1 })),
            DENIED,
            denied,
        ),
        row(
            "root deleted",
            by_root(Call::new("Auth.UserDelete", &AuthUserDeleteRequest { name: "root".into() })),
            INVALID,
            management,
        ),
        row(
            "role root deleted",
            by_root(Call::new("Auth.RoleDelete", &AuthRoleDeleteRequest { role: "root".into() })),
            INVALID,
            management,
        ),
        row("role root taken from root", by_root(revoke("root", "root")), INVALID, management),
        done("new password of alice", by_root(change_password("alice", "changed"))),
        row("token from before that", by_alice(get()), UNAUTHENTICATED, "invalid auth token"),
        done("nobody counts again", by_root(Call::new("Auth.AuthDisable", &AuthDisableRequest {}))),
    ]
}

/// Each alarm is raised, met and taken back.
fn alarms(member_id: u64) -> Vec<Row> {
    let alarm = |action, alarm| Call::new("Maintenance.Alarm", &AlarmRequest { action, member_id, alarm });
    let (space, corrupt) = ("mvcc: database space exceeded", "corrupt cluster");
    let write = || Call::new("KV.Put", &put("x", "1"));
    let delete = || Call::new("KV.DeleteRange", &DeleteRangeRequest { key: "x".into(), ..Default::default() });
    let lease = || Call::new("Lease.LeaseGrant", &LeaseGrantRequest { ttl: 100, id: 0 });
    let txn = || {
        let success = vec![RequestOp { request: Some(Op::RequestPut(put("x", "1"))) }];
        Call::new("KV.Txn", &TxnRequest { success, ..Default::default() })
    };
    vec![
        done("no space", alarm(1, 1)),
        row("put without space", write(), EXHAUSTED, space),
        row("txn without space", txn(), EXHAUSTED, space),
        row("lease without space", lease(), EXHAUSTED, space),
        done("deletion without space", delete()),
        done("space again", alarm(2, 1)),
        done("corrupt", alarm(1, 2)),
        row("put when corrupt", write(), DATA_LOSS, corrupt),
        row("txn when corrupt", txn(), DATA_LOSS, corrupt),
        row("deletion when corrupt", delete(), DATA_LOSS, corrupt),
        row("lease when corrupt", lease(), DATA_LOSS, corrupt),
        row(
            "compaction when corrupt",
            Call::new("KV.Compact", &CompactionRequest { revision: 1, physical: false }),
            DATA_LOSS,
            corrupt,
        ),
        done("sound again", alarm(2, 2)),
        done("put", write()),
    ]
}

/// Of the one member that there is.
fn changes_of(member: &Member) -> Vec<Row> {
    let add = MemberAddRequest { peer_ur_ls: member.peer_ur_ls.clone(), is_learner: false };
    let (promote, remove) = (MemberPromoteRequest { id: member.id }, MemberRemoveRequest { id: member.id });
    vec![
        row(
            "second member at one place",
            Call::new("Cluster.MemberAdd", &add),
            PRECONDITION,
            "Peer URLs already exists",
        ),
        row(
            "voter promoted",
            Call::new("Cluster.MemberPromote", &promote),
            PRECONDITION,
            "can only promote a learner member",
        ),
        row(
            "only member removed",
            Call::new("Cluster.MemberRemove", &remove),
            UNKNOWN,
            "re-configuration failed due to not enough started members",
        ),
    ]
}
