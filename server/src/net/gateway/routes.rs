//! The HTTP paths of the API's methods. All of them are asked with POST.

use crate::rpc::Rpc;

/// What every path begins with.
pub(crate) const PREFIX: &str = "/v3/";

/// The method behind a path.
pub(crate) fn find(path: &str) -> Option<Rpc> {
    let path = path.strip_prefix(PREFIX)?;
    ROUTES.iter().find(|route| route.0 == path).map(|route| route.1)
}

/// Paths without [`PREFIX`]. Some methods have two.
const ROUTES: &[(&str, Rpc)] = &[
    ("kv/put", Rpc::Put),
    ("kv/range", Rpc::Range),
    ("kv/txn", Rpc::Txn),
    ("kv/deleterange", Rpc::DeleteRange),
    ("kv/compaction", Rpc::Compact),
    ("watch", Rpc::Watch),
    ("lease/grant", Rpc::LeaseGrant),
    ("lease/revoke", Rpc::LeaseRevoke),
    ("kv/lease/revoke", Rpc::LeaseRevoke),
    ("lease/keepalive", Rpc::LeaseKeepAlive),
    ("lease/timetolive", Rpc::LeaseTimeToLive),
    ("kv/lease/timetolive", Rpc::LeaseTimeToLive),
    ("lease/leases", Rpc::LeaseLeases),
    ("kv/lease/leases", Rpc::LeaseLeases),
    ("cluster/member/add", Rpc::MemberAdd),
    ("cluster/member/remove", Rpc::MemberRemove),
    ("cluster/member/update", Rpc::MemberUpdate),
    ("cluster/member/list", Rpc::MemberList),
    ("cluster/member/promote", Rpc::MemberPromote),
    ("maintenance/alarm", Rpc::Alarm),
    ("maintenance/status", Rpc::Status),
    ("maintenance/defragment", Rpc::Defragment),
    ("maintenance/hash", Rpc::Hash),
    ("maintenance/hashkv", Rpc::HashKv),
    ("maintenance/snapshot", Rpc::Snapshot),
    ("maintenance/transfer-leadership", Rpc::MoveLeader),
    ("maintenance/downgrade", Rpc::Downgrade),
    ("auth/enable", Rpc::AuthEnable),
    ("auth/disable", Rpc::AuthDisable),
    ("auth/status", Rpc::AuthStatus),
    ("auth/authenticate", Rpc::Authenticate),
    ("auth/user/add", Rpc::UserAdd),
    ("auth/user/get", Rpc::UserGet),
    ("auth/user/list", Rpc::UserList),
    ("auth/user/delete", Rpc::UserDelete),
    ("auth/user/changepw", Rpc::UserChangePassword),
    ("auth/user/grant", Rpc::UserGrantRole),
    ("auth/user/revoke", Rpc::UserRevokeRole),
    ("auth/role/add", Rpc::RoleAdd),
    ("auth/role/get", Rpc::RoleGet),
    ("auth/role/list", Rpc::RoleList),
    ("auth/role/delete", Rpc::RoleDelete),
    ("auth/role/grant", Rpc::RoleGrantPermission),
    ("auth/role/revoke", Rpc::RoleRevokePermission),
    ("lock/lock", Rpc::Lock),
    ("lock/unlock", Rpc::Unlock),
    ("election/campaign", Rpc::Campaign),
    ("election/proclaim", Rpc::Proclaim),
    ("election/leader", Rpc::Leader),
    ("election/observe", Rpc::Observe),
    ("election/resign", Rpc::Resign),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_but_those_without_a_path_is_found() {
        for rpc in Rpc::ALL {
            let service = rpc.service();
            let has_path = !service.starts_with("grpc.") && *rpc != Rpc::RangeStream;
            assert_eq!(ROUTES.iter().any(|route| route.1 == *rpc), has_path, "{rpc:?}");
        }
        assert_eq!(find("/v3/kv/lease/revoke"), Some(Rpc::LeaseRevoke));
        assert_eq!((find("/v3/kv/range/"), find("/kv/range"), find("/v3/")), (None, None, None));
    }
}
