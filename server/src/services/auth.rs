//! Users, roles, and logging in. What needs a clock, chance or long work is done here before anything is proposed:
//! passwords are hashed, tokens are chosen, so that the log holds neither a password nor anything to be decided.

use std::time::SystemTime;

use daymark_api::etcdserverpb as pb;

use super::{Door, header};
use crate::auth::password;
use crate::auth::table;
use crate::command::{AssignToken, Identity, Kind};
use crate::error::Error;
use crate::limits;
use crate::request::{Reply, Request};

impl Door {
    /// Answers a request of the auth service, whose caller has been admitted.
    pub(super) async fn auth(&self, who: Option<Identity>, request: Request) -> Result<Reply, Error> {
        match request {
            Request::Authenticate(request) => self.authenticate(request).await.map(Reply::Authenticate),
            Request::AuthStatus(_) => Ok(Reply::AuthStatus(self.auth_status())),
            Request::UserAdd(request) => self.user_add(who, request).await,
            Request::UserChangePassword(request) => self.user_change_password(who, request).await,
            Request::AuthEnable(request) => self.propose(Kind::AuthEnable, who, &request).await,
            Request::AuthDisable(request) => self.propose(Kind::AuthDisable, who, &request).await,
            Request::UserDelete(request) => self.propose(Kind::UserDelete, who, &request).await,
            Request::UserGrantRole(request) => self.propose(Kind::UserGrantRole, who, &request).await,
            Request::UserRevokeRole(request) => self.propose(Kind::UserRevokeRole, who, &request).await,
            Request::RoleAdd(request) => self.propose(Kind::RoleAdd, who, &request).await,
            Request::RoleDelete(request) => self.propose(Kind::RoleDelete, who, &request).await,
            Request::RoleGrantPermission(request) => self.propose(Kind::RoleGrantPermission, who, &request).await,
            Request::RoleRevokePermission(request) => self.propose(Kind::RoleRevokePermission, who, &request).await,
            Request::UserGet(request) => self.user_get(&request),
            Request::UserList(_) => Ok(self.user_list()),
            Request::RoleGet(request) => self.role_get(&request),
            Request::RoleList(_) => Ok(self.role_list()),
            other => Err(Error::Internal(format!("{other:?} is not a request of the auth service"))),
        }
    }
}

impl Door {
    /// Looks at the password, then has a token made known to every member; a signed token needs nobody's knowledge.
    /// What has changed meanwhile counts: the password may be another one by now.
    async fn authenticate(&self, request: pb::AuthenticateRequest) -> Result<pb::AuthenticateResponse, Error> {
        let pb::AuthenticateRequest { name, password } = request;
        let password = password::Secret::from(password);
        for _ in 0..limits::AUTHENTICATE_TRIES_MAX {
            let (auth_revision, hash) = self.password_hash(&name)?;
            if !password::verify(&self.member().passwords, password.clone(), hash).await? {
                tracing::info!(user = name, "invalid password");
                return Err(Error::AuthenticationFailed);
            }
            let response = match self.views().tokens.new_simple_text() {
                Some(letters) => self.assign_token(AssignToken { user: name.clone(), letters }).await?,
                None => {
                    let token = self.views().tokens.issue_jwt(&name, auth_revision, SystemTime::now())?;
                    pb::AuthenticateResponse { header: header(self.keyspace().current_revision()), token }
                }
            };
            if self.views().auth.load().revision() == auth_revision {
                return Ok(response);
            }
        }
        Err(Error::OldAuthRevision)
    }

    /// Bcrypt's text for a user who may log in, with the auth revision under which it counts.
    fn password_hash(&self, name: &str) -> Result<(u64, String), Error> {
        let table = self.views().auth.load();
        if !table.is_enabled() {
            return Err(Error::AuthNotEnabled);
        }
        let user = table.user(name.as_bytes()).ok_or(Error::AuthenticationFailed)?;
        if user.has_no_password() {
            return Err(Error::NoPasswordUser);
        }
        Ok((table.revision(), String::from_utf8_lossy(user.password_hash()).into_owned()))
    }

    async fn assign_token(&self, assign: AssignToken) -> Result<pb::AuthenticateResponse, Error> {
        match self.propose(Kind::AssignToken, None, &assign).await? {
            Reply::Authenticate(response) => Ok(response),
            other => Err(Error::Internal(format!("a login was answered with {other:?}"))),
        }
    }

    fn auth_status(&self) -> pb::AuthStatusResponse {
        let table = self.views().auth.load();
        let header = header(self.keyspace().current_revision());
        pb::AuthStatusResponse { header, enabled: table.is_enabled(), auth_revision: table.revision() }
    }

    /// As in etcd a hash that the caller sends is not taken: the password is what counts, even an empty one.
    async fn user_add(&self, who: Option<Identity>, mut request: pb::AuthUserAddRequest) -> Result<Reply, Error> {
        let password = std::mem::take(&mut request.password);
        if !request.options.is_some_and(|options| options.no_password) {
            request.hashed_password = self.hash(password).await?;
        }
        self.propose(Kind::UserAdd, who, &request).await
    }

    /// As in etcd a hash that the caller sends is taken if there is no password beside it.
    async fn user_change_password(
        &self,
        who: Option<Identity>,
        mut request: pb::AuthUserChangePasswordRequest,
    ) -> Result<Reply, Error> {
        let password = std::mem::take(&mut request.password);
        if !password.is_empty() {
            request.hashed_password = self.hash(password).await?;
        }
        self.propose(Kind::UserChangePassword, who, &request).await
    }

    async fn hash(&self, password: String) -> Result<String, Error> {
        let member = self.member();
        let hash = password::hash(&member.passwords, password, member.settings.bcrypt_cost).await?;
        Ok(table::encode_hash(&hash))
    }

    fn user_get(&self, request: &pb::AuthUserGetRequest) -> Result<Reply, Error> {
        let table = self.views().auth.load();
        let user = table.user(request.name.as_bytes()).ok_or(Error::UserNotFound)?;
        let header = header(self.keyspace().current_revision());
        Ok(Reply::UserGet(pb::AuthUserGetResponse { header, roles: user.roles().to_vec() }))
    }

    fn user_list(&self) -> Reply {
        let (header, users) = (header(self.keyspace().current_revision()), self.views().auth.load().user_names());
        Reply::UserList(pb::AuthUserListResponse { header, users })
    }

    fn role_get(&self, request: &pb::AuthRoleGetRequest) -> Result<Reply, Error> {
        let perm = self.views().auth.load().permissions(&request.role)?;
        let header = header(self.keyspace().current_revision());
        Ok(Reply::RoleGet(pb::AuthRoleGetResponse { header, perm }))
    }

    fn role_list(&self) -> Reply {
        let (header, roles) = (header(self.keyspace().current_revision()), self.views().auth.load().role_names());
        Reply::RoleList(pb::AuthRoleListResponse { header, roles })
    }
}
