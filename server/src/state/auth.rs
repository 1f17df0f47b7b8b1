//! Users, roles and tokens as commands change them: the [`AuthTable`] with its rows. What the rules are is the table's
//! and `auth::authorize`'s to know.
//!
//! ```text
//! family meta:  "auth/config"      -> format u8 = 1 | enabled u8 | auth revision u64 BE
//!               "auth/role/" name  -> authpb.Role
//!               "auth/user/" name  -> authpb.User
//! ```
//! Frozen, see `docs/formats/tables.md`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use daymark_storage::backend::Family;
use daymark_storage::mvcc::import::Import;
use daymark_storage::mvcc::{Keyspace, PinnedTables, Writer};
use daymark_storage::{Result, StorageError};
use prost::Message;

use daymark_api::authpb;
use daymark_api::etcdserverpb as pb;

use super::header;
use crate::auth::table::{AuthTable, Touched};
use crate::command::{AssignToken, AuthCommand};
use crate::error::Error;
use crate::request::Reply;

const CONFIG: &[u8] = b"auth/config";
const ROLES: &[u8] = b"auth/role/";
const ROLES_END: &[u8] = b"auth/role0";
const USERS: &[u8] = b"auth/user/";
const USERS_END: &[u8] = b"auth/user0";
const FORMAT: u8 = 1;

/// What happens to simple tokens, for whoever keeps them: every member does, in memory.
#[derive(Clone, PartialEq, Eq)]
pub enum TokenChange {
    Assigned { token: String, user: String },
    UserDropped(String),
    AllDropped,
}

/// The replicated table, and what has happened to it since it was published.
#[derive(Default)]
pub struct Auth {
    table: AuthTable,
    is_changed: bool,
}

impl Auth {
    /// Reads what `keyspace` holds.
    pub fn open(keyspace: &Keyspace) -> Result<Self> {
        let (enabled, revision) = match keyspace.meta(CONFIG)? {
            Some(row) => decode_config(&row).ok_or_else(|| broken("auth/config"))?,
            None => {
                let new = AuthTable::default();
                (new.is_enabled(), new.revision())
            }
        };
        let users = read_rows::<authpb::User>(keyspace, USERS, USERS_END)?;
        let roles = read_rows::<authpb::Role>(keyspace, ROLES, ROLES_END)?;
        Ok(Self { table: AuthTable::restore(enabled, revision, users, roles), is_changed: false })
    }

    /// As it is now, with commands that are not published yet.
    pub fn table(&self) -> &AuthTable {
        &self.table
    }

    /// The table to be published, if it has changed since the last call.
    pub fn take_changed(&mut self) -> Option<Arc<AuthTable>> {
        std::mem::take(&mut self.is_changed).then(|| Arc::new(self.table.clone()))
    }

    /// Runs a command whose caller has been checked, in the log entry `index`. A refused one changes nothing.
    pub fn apply(
        &mut self,
        writer: &mut Writer,
        command: AuthCommand,
        index: u64,
        tokens: &mut Vec<TokenChange>,
    ) -> std::result::Result<Reply, Error> {
        let header = header(writer.latest_revision());
        let (touched, reply) = match command {
            AuthCommand::Enable => (self.table.enable()?, Reply::AuthEnable(pb::AuthEnableResponse { header })),
            AuthCommand::Disable => {
                let touched = self.table.disable();
                tokens.extend(touched.config.then_some(TokenChange::AllDropped));
                (touched, Reply::AuthDisable(pb::AuthDisableResponse { header }))
            }
            AuthCommand::AssignToken(assign) => {
                let token = self.assign_token(assign, index, tokens)?;
                (Touched::default(), Reply::Authenticate(pb::AuthenticateResponse { header, token }))
            }
            AuthCommand::UserAdd(request) => {
                (self.table.add_user(&request)?, Reply::UserAdd(pb::AuthUserAddResponse { header }))
            }
            AuthCommand::UserDelete(request) => {
                let touched = self.table.delete_user(&request.name)?;
                tokens.push(TokenChange::UserDropped(request.name));
                (touched, Reply::UserDelete(pb::AuthUserDeleteResponse { header }))
            }
            AuthCommand::UserChangePassword(request) => {
                let touched = self.table.change_password(&request)?;
                tokens.push(TokenChange::UserDropped(request.name));
                (touched, Reply::UserChangePassword(pb::AuthUserChangePasswordResponse { header }))
            }
            AuthCommand::UserGrantRole(request) => {
                let touched = self.table.grant_role(&request.user, &request.role)?;
                (touched, Reply::UserGrantRole(pb::AuthUserGrantRoleResponse { header }))
            }
            AuthCommand::UserRevokeRole(request) => {
                let touched = self.table.revoke_role(&request.name, &request.role)?;
                (touched, Reply::UserRevokeRole(pb::AuthUserRevokeRoleResponse { header }))
            }
            AuthCommand::RoleAdd(request) => {
                (self.table.add_role(&request.name)?, Reply::RoleAdd(pb::AuthRoleAddResponse { header }))
            }
            AuthCommand::RoleDelete(request) => {
                (self.table.delete_role(&request.role)?, Reply::RoleDelete(pb::AuthRoleDeleteResponse { header }))
            }
            AuthCommand::RoleGrantPermission(request) => {
                let touched = self.table.grant_permission(&request)?;
                (touched, Reply::RoleGrantPermission(pb::AuthRoleGrantPermissionResponse { header }))
            }
            AuthCommand::RoleRevokePermission(request) => {
                let touched = self.table.revoke_permission(&request)?;
                (touched, Reply::RoleRevokePermission(pb::AuthRoleRevokePermissionResponse { header }))
            }
        };
        self.keep(writer, &touched);
        Ok(reply)
    }

    /// Completes a simple token. Its password was right for a table that may have changed since.
    fn assign_token(
        &self,
        assign: AssignToken,
        index: u64,
        tokens: &mut Vec<TokenChange>,
    ) -> std::result::Result<String, Error> {
        if !self.table.is_enabled() {
            return Err(Error::AuthNotEnabled);
        }
        let user = self.table.user(assign.user.as_bytes()).ok_or(Error::AuthenticationFailed)?;
        if user.has_no_password() {
            return Err(Error::AuthenticationFailed);
        }
        let token = format!("{}.{index}", assign.letters);
        tokens.push(TokenChange::Assigned { token: token.clone(), user: assign.user });
        Ok(token)
    }

    fn keep(&mut self, writer: &mut Writer, touched: &Touched) {
        if !touched.config {
            return;
        }
        self.is_changed = true;
        let config = encode_config(self.table.is_enabled(), self.table.revision());
        writer.table_put(Family::Meta, CONFIG, &config);
        for name in &touched.users {
            let record = self.table.user(name).map(|user| user.record().encode_to_vec());
            put_row(writer, &[USERS, name].concat(), record);
        }
        for name in &touched.roles {
            let record = self.table.role(name).map(Message::encode_to_vec);
            put_row(writer, &[ROLES, name].concat(), record);
        }
    }
}

fn put_row(writer: &mut Writer, key: &[u8], record: Option<Vec<u8>>) {
    match record {
        Some(record) => writer.table_put(Family::Meta, key, &record),
        None => writer.table_delete(Family::Meta, key),
    }
}

fn read_rows<M: Message + Default>(keyspace: &Keyspace, start: &[u8], end: &[u8]) -> Result<Vec<M>> {
    let mut records = Vec::new();
    let mut failed = false;
    keyspace.table_scan(Family::Meta, start, end, &mut |_, value| match M::decode(value) {
        Ok(record) => {
            records.push(record);
            ControlFlow::Continue(())
        }
        Err(_) => {
            failed = true;
            ControlFlow::Break(())
        }
    })?;
    if failed { Err(broken(&String::from_utf8_lossy(start))) } else { Ok(records) }
}

/// The rows of one moment, as they are stored: names with etcd's own messages.
pub struct PinnedAuth {
    pub is_enabled: bool,
    pub revision: u64,
    pub users: BTreeMap<Vec<u8>, Vec<u8>>,
    pub roles: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The rows as of one moment.
pub fn pinned(tables: &PinnedTables<'_>) -> Result<PinnedAuth> {
    let (is_enabled, revision) = match tables.meta(CONFIG)? {
        Some(row) => decode_config(&row).ok_or_else(|| broken("auth/config"))?,
        None => (AuthTable::default().is_enabled(), AuthTable::default().revision()),
    };
    let rows = |prefix: &[u8], end: &[u8]| -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let mut rows = BTreeMap::new();
        tables.scan(Family::Meta, prefix, end, &mut |key, value| {
            rows.insert(key[prefix.len()..].to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    };
    Ok(PinnedAuth { is_enabled, revision, users: rows(USERS, USERS_END)?, roles: rows(ROLES, ROLES_END)? })
}

/// Adds all rows to a state that is being imported.
pub fn import(import: &mut Import, auth: &PinnedAuth) -> Result<()> {
    import.row(Family::Meta, CONFIG, &encode_config(auth.is_enabled, auth.revision))?;
    for (prefix, rows) in [(USERS, &auth.users), (ROLES, &auth.roles)] {
        for (name, record) in rows {
            import.row(Family::Meta, &[prefix, name].concat(), record)?;
        }
    }
    Ok(())
}

fn encode_config(enabled: bool, revision: u64) -> [u8; 10] {
    let mut config = [FORMAT; 10];
    config[1] = u8::from(enabled);
    config[2..].copy_from_slice(&revision.to_be_bytes());
    config
}

fn decode_config(row: &[u8]) -> Option<(bool, u64)> {
    let ([format, enabled], revision) = row.split_first_chunk::<2>()?;
    let revision = u64::from_be_bytes(revision.try_into().ok()?);
    (*format == FORMAT && *enabled <= 1).then_some((*enabled == 1, revision))
}

fn broken(row: &str) -> StorageError {
    StorageError::Invariant { what: format!("a row of the table of users and roles cannot be decoded: {row}") }
}
