//! Users, roles and permissions, and whether they matter: the calls of an administrator. How a client itself logs in is
//! set in its configuration.

use daymark_api::{
    authpb::{Permission, UserAddOptions, permission::Type},
    etcdserverpb::{
        AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
        AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest,
        AuthStatusRequest, AuthStatusResponse, AuthUserAddRequest, AuthUserChangePasswordRequest,
        AuthUserDeleteRequest, AuthUserGetRequest, AuthUserGrantRoleRequest, AuthUserListRequest,
        AuthUserRevokeRoleRequest, auth_client::AuthClient,
    },
};
use tonic::transport::Channel;

use crate::{channel::Pool, error::Result, key_range::KeyRange, retry};

/// What a permission allows.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading and watching.
    Read,
    /// Putting and deleting.
    Write,
    /// Both.
    ReadWrite,
}

/// Users, roles and permissions.
#[derive(Clone, Debug)]
pub struct Auth {
    pool: Pool,
}

impl Auth {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// From now on every call needs an identity. There must be a user `root` with the role `root`.
    pub async fn enable(&self) -> Result<()> {
        self.write(AuthEnableRequest {}, |mut client, request| async move { client.auth_enable(request).await }).await
    }

    /// From now on everybody may do everything. All simple tokens are void.
    pub async fn disable(&self) -> Result<()> {
        self.write(AuthDisableRequest {}, |mut client, request| async move { client.auth_disable(request).await }).await
    }

    /// Whether authentication is enabled, and its revision, which grows with every change of users and roles.
    pub async fn status(&self) -> Result<AuthStatusResponse> {
        self.read(AuthStatusRequest {}, |mut client, request| async move { client.auth_status(request).await }).await
    }

    /// A new user without roles.
    pub async fn user_add(&self, name: &str, password: &str) -> Result<()> {
        let add = AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
        self.write(add, |mut client, request| async move { client.user_add(request).await }).await
    }

    /// A new user who cannot log in and is known by a certificate only.
    pub async fn user_add_without_password(&self, name: &str) -> Result<()> {
        let options = Some(UserAddOptions { no_password: true });
        let add = AuthUserAddRequest { name: name.into(), options, ..Default::default() };
        self.write(add, |mut client, request| async move { client.user_add(request).await }).await
    }

    /// The roles of a user. Without the role `root` only for oneself.
    pub async fn user_get(&self, name: &str) -> Result<Vec<String>> {
        let get = AuthUserGetRequest { name: name.into() };
        let answer = self.read(get, |mut client, request| async move { client.user_get(request).await }).await?;
        Ok(answer.roles)
    }

    /// The names of all users.
    pub async fn user_list(&self) -> Result<Vec<String>> {
        let list = AuthUserListRequest {};
        let answer = self.read(list, |mut client, request| async move { client.user_list(request).await }).await?;
        Ok(answer.users)
    }

    /// Removes a user; their simple tokens are void.
    pub async fn user_delete(&self, name: &str) -> Result<()> {
        let delete = AuthUserDeleteRequest { name: name.into() };
        self.write(delete, |mut client, request| async move { client.user_delete(request).await }).await
    }

    /// Sets a password; simple tokens of the user are void.
    pub async fn user_change_password(&self, name: &str, password: &str) -> Result<()> {
        let change = AuthUserChangePasswordRequest {
            name: name.into(),
            password: password.into(),
            hashed_password: String::new(),
        };
        self.write(change, |mut client, request| async move { client.user_change_password(request).await }).await
    }

    /// Gives a user a role.
    pub async fn user_grant_role(&self, user: &str, role: &str) -> Result<()> {
        let grant = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        self.write(grant, |mut client, request| async move { client.user_grant_role(request).await }).await
    }

    /// Takes a role from a user.
    pub async fn user_revoke_role(&self, user: &str, role: &str) -> Result<()> {
        let revoke = AuthUserRevokeRoleRequest { name: user.into(), role: role.into() };
        self.write(revoke, |mut client, request| async move { client.user_revoke_role(request).await }).await
    }

    /// A new role without permissions.
    pub async fn role_add(&self, role: &str) -> Result<()> {
        let add = AuthRoleAddRequest { name: role.into() };
        self.write(add, |mut client, request| async move { client.role_add(request).await }).await
    }

    /// The permissions of a role. Without the role `root` only for one's own.
    pub async fn role_get(&self, role: &str) -> Result<Vec<Permission>> {
        let get = AuthRoleGetRequest { role: role.into() };
        let read = self.read(get, |mut client, request| async move { client.role_get(request).await });
        let AuthRoleGetResponse { perm, .. } = read.await?;
        Ok(perm)
    }

    /// The names of all roles.
    pub async fn role_list(&self) -> Result<Vec<String>> {
        let list = AuthRoleListRequest {};
        let answer = self.read(list, |mut client, request| async move { client.role_list(request).await }).await?;
        Ok(answer.roles)
    }

    /// Removes a role, also from all users.
    pub async fn role_delete(&self, role: &str) -> Result<()> {
        let delete = AuthRoleDeleteRequest { role: role.into() };
        self.write(delete, |mut client, request| async move { client.role_delete(request).await }).await
    }

    /// Allows a role to access a key or range; replaces what it was allowed for exactly this range.
    pub async fn role_grant_permission(&self, role: &str, access: Access, range: impl Into<KeyRange>) -> Result<()> {
        let (key, range_end) = range.into().into_wire();
        let perm_type = match access {
            Access::Read => Type::Read,
            Access::Write => Type::Write,
            Access::ReadWrite => Type::Readwrite,
        };
        let perm = Some(Permission { perm_type: perm_type.into(), key, range_end });
        let grant = AuthRoleGrantPermissionRequest { name: role.into(), perm };
        self.write(grant, |mut client, request| async move { client.role_grant_permission(request).await }).await
    }

    /// Takes back what a role was granted for exactly this key or range.
    pub async fn role_revoke_permission(&self, role: &str, range: impl Into<KeyRange>) -> Result<()> {
        let (key, range_end) = range.into().into_wire();
        let revoke = AuthRoleRevokePermissionRequest { role: role.into(), key, range_end };
        self.write(revoke, |mut client, request| async move { client.role_revoke_permission(request).await }).await
    }

    async fn read<M: Clone, T, Fut>(
        &self,
        message: M,
        call: impl Fn(AuthClient<Channel>, tonic::Request<M>) -> Fut,
    ) -> Result<T>
    where
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let send = |channel| call(AuthClient::new(channel), self.pool.request(message.clone()));
        retry::read(&self.pool, send).await
    }

    async fn write<M: Clone, T, Fut>(
        &self,
        message: M,
        call: impl Fn(AuthClient<Channel>, tonic::Request<M>) -> Fut,
    ) -> Result<()>
    where
        Fut: Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>,
    {
        let send = |channel| call(AuthClient::new(channel), self.pool.request(message.clone()));
        retry::write(&self.pool, send).await.map(|_| ())
    }
}
