//! The methods of the client API by name, for dispatch and for metrics. Not their messages.

/// How a method streams.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum RpcKind {
    Unary,
    ServerStream,
    BidiStream,
}

impl RpcKind {
    /// As metrics call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

macro_rules! rpcs {
    ($($name:ident $kind:ident $service:literal $method:literal;)*) => {
        /// A method of the client API, served or not.
        #[derive(Copy, Clone, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Rpc { $($name,)* }

        impl Rpc {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The method of an HTTP path.
            pub fn from_path(path: &str) -> Option<Self> {
                match path {
                    $(concat!("/", $service, "/", $method) => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Protobuf package and service.
            pub fn service(self) -> &'static str {
                match self { $(Self::$name => $service,)* }
            }

            /// Name within the service.
            pub fn method(self) -> &'static str {
                match self { $(Self::$name => $method,)* }
            }

            /// How it streams.
            pub fn kind(self) -> RpcKind {
                match self { $(Self::$name => RpcKind::$kind,)* }
            }
        }
    };
}

// The most frequent first: paths are compared in this order.
rpcs! {
    Put Unary "etcdserverpb.KV" "Put";
    Range Unary "etcdserverpb.KV" "Range";
    Txn Unary "etcdserverpb.KV" "Txn";
    DeleteRange Unary "etcdserverpb.KV" "DeleteRange";
    Compact Unary "etcdserverpb.KV" "Compact";
    RangeStream ServerStream "etcdserverpb.KV" "RangeStream";
    Watch BidiStream "etcdserverpb.Watch" "Watch";
    LeaseGrant Unary "etcdserverpb.Lease" "LeaseGrant";
    LeaseRevoke Unary "etcdserverpb.Lease" "LeaseRevoke";
    LeaseKeepAlive BidiStream "etcdserverpb.Lease" "LeaseKeepAlive";
    LeaseTimeToLive Unary "etcdserverpb.Lease" "LeaseTimeToLive";
    LeaseLeases Unary "etcdserverpb.Lease" "LeaseLeases";
    MemberAdd Unary "etcdserverpb.Cluster" "MemberAdd";
    MemberRemove Unary "etcdserverpb.Cluster" "MemberRemove";
    MemberUpdate Unary "etcdserverpb.Cluster" "MemberUpdate";
    MemberList Unary "etcdserverpb.Cluster" "MemberList";
    MemberPromote Unary "etcdserverpb.Cluster" "MemberPromote";
    Alarm Unary "etcdserverpb.Maintenance" "Alarm";
    Status Unary "etcdserverpb.Maintenance" "Status";
    Defragment Unary "etcdserverpb.Maintenance" "Defragment";
    Hash Unary "etcdserverpb.Maintenance" "Hash";
    HashKv Unary "etcdserverpb.Maintenance" "HashKV";
    Snapshot ServerStream "etcdserverpb.Maintenance" "Snapshot";
    MoveLeader Unary "etcdserverpb.Maintenance" "MoveLeader";
    Downgrade Unary "etcdserverpb.Maintenance" "Downgrade";
    AuthEnable Unary "etcdserverpb.Auth" "AuthEnable";
    AuthDisable Unary "etcdserverpb.Auth" "AuthDisable";
    AuthStatus Unary "etcdserverpb.Auth" "AuthStatus";
    Authenticate Unary "etcdserverpb.Auth" "Authenticate";
    UserAdd Unary "etcdserverpb.Auth" "UserAdd";
    UserGet Unary "etcdserverpb.Auth" "UserGet";
    UserList Unary "etcdserverpb.Auth" "UserList";
    UserDelete Unary "etcdserverpb.Auth" "UserDelete";
    UserChangePassword Unary "etcdserverpb.Auth" "UserChangePassword";
    UserGrantRole Unary "etcdserverpb.Auth" "UserGrantRole";
    UserRevokeRole Unary "etcdserverpb.Auth" "UserRevokeRole";
    RoleAdd Unary "etcdserverpb.Auth" "RoleAdd";
    RoleGet Unary "etcdserverpb.Auth" "RoleGet";
    RoleList Unary "etcdserverpb.Auth" "RoleList";
    RoleDelete Unary "etcdserverpb.Auth" "RoleDelete";
    RoleGrantPermission Unary "etcdserverpb.Auth" "RoleGrantPermission";
    RoleRevokePermission Unary "etcdserverpb.Auth" "RoleRevokePermission";
    Lock Unary "v3lockpb.Lock" "Lock";
    Unlock Unary "v3lockpb.Lock" "Unlock";
    Campaign Unary "v3electionpb.Election" "Campaign";
    Proclaim Unary "v3electionpb.Election" "Proclaim";
    Leader Unary "v3electionpb.Election" "Leader";
    Observe ServerStream "v3electionpb.Election" "Observe";
    Resign Unary "v3electionpb.Election" "Resign";
    HealthCheck Unary "grpc.health.v1.Health" "Check";
    HealthWatch ServerStream "grpc.health.v1.Health" "Watch";
    ReflectionV1 BidiStream "grpc.reflection.v1.ServerReflection" "ServerReflectionInfo";
    ReflectionV1Alpha BidiStream "grpc.reflection.v1alpha.ServerReflection" "ServerReflectionInfo";
}

/// Whether some method of that service exists.
pub fn is_service(name: &str) -> bool {
    Rpc::ALL.iter().any(|rpc| rpc.service() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_paths_and_names_agree() {
        for (number, rpc) in Rpc::ALL.iter().enumerate() {
            assert_eq!(*rpc as usize, number);
            assert_eq!(Rpc::from_path(&format!("/{}/{}", rpc.service(), rpc.method())), Some(*rpc));
        }
        assert_eq!(Rpc::from_path("/etcdserverpb.KV/Nothing"), None);
        assert!(is_service("etcdserverpb.Auth") && !is_service("etcdserverpb"));
    }
}
