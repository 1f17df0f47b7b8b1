//! The replicated table of users and roles, and the rights that follow from it. Pure: how it is stored and published is
//! `state`'s to know; passwords are bcrypt hashes here and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use daymark_api::authpb::permission::Type;
use daymark_api::authpb::{self, Permission};
use daymark_api::etcdserverpb as pb;

use super::intervals::Intervals;
use crate::error::Error;

/// The user that has to exist before authentication can be enabled.
pub const ROOT_USER: &str = "root";
/// The role that passes every check, and needs no record to be granted.
pub const ROOT_ROLE: &str = "root";

/// A user, with what all of its roles together allow.
#[derive(Clone, Debug)]
pub struct User {
    record: authpb::User,
    is_root: bool,
    read: Intervals,
    write: Intervals,
}

/// Users and roles as of one auth revision. Cloning copies two maps of pointers.
///
/// Invariants: the revision is at least 1 and grows with every change but `enable`; roles of a user are in order, each
/// once; `read` and `write` of a user are the union of the permissions of those of its roles that exist.
#[derive(Clone, Debug)]
pub struct AuthTable {
    enabled: bool,
    revision: u64,
    users: HashMap<Bytes, Arc<User>, FxBuildHasher>,
    roles: BTreeMap<Bytes, Arc<authpb::Role>>,
}

/// What a change has touched, for whoever stores the table. Empty if nothing has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Whether it is enabled, or the revision.
    pub config: bool,
    /// Names of users, also of one that has gone.
    pub users: Vec<Bytes>,
    /// Names of roles, likewise.
    pub roles: Vec<Bytes>,
}

impl Default for AuthTable {
    fn default() -> Self {
        Self { enabled: false, revision: 1, users: HashMap::default(), roles: BTreeMap::new() }
    }
}

impl User {
    /// Whether it has the role that passes every check.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// Whether it may read all keys of a range, in etcd's notation.
    pub fn may_read(&self, key: &[u8], range_end: &[u8]) -> bool {
        self.is_root || self.read.covers(key, range_end)
    }

    /// Whether it may write all keys of a range.
    pub fn may_write(&self, key: &[u8], range_end: &[u8]) -> bool {
        self.is_root || self.write.covers(key, range_end)
    }

    /// Whether there is no key that it may not read.
    pub fn may_read_everything(&self) -> bool {
        self.is_root || self.read.is_everything()
    }

    /// Whether there is no key that it may not write.
    pub fn may_write_everything(&self) -> bool {
        self.is_root || self.write.is_everything()
    }

    /// Names of its roles, in order.
    pub fn roles(&self) -> &[String] {
        &self.record.roles
    }

    /// Only a certificate identifies it.
    pub fn has_no_password(&self) -> bool {
        self.record.options.is_some_and(|options| options.no_password)
    }

    /// Bcrypt's text, which no password matches if it is empty.
    pub fn password_hash(&self) -> &Bytes {
        &self.record.password
    }

    /// As stored.
    pub fn record(&self) -> &authpb::User {
        &self.record
    }
}

impl AuthTable {
    /// Builds the table from what is stored.
    pub fn restore(enabled: bool, revision: u64, users: Vec<authpb::User>, roles: Vec<authpb::Role>) -> Self {
        let roles = roles.into_iter().map(|role| (role.name.clone(), Arc::new(role))).collect();
        let mut table = Self { enabled, revision, users: HashMap::default(), roles };
        for record in users {
            table.put_user(record);
        }
        table
    }

    /// Whether anybody is asked who they are.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Grows with every change of users, roles and permissions.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The user of that name.
    pub fn user(&self, name: &[u8]) -> Option<&User> {
        self.users.get(name).map(Arc::as_ref)
    }

    /// The name itself, shared with the table; `None` if there is no such user.
    pub fn user_name(&self, name: &[u8]) -> Option<Bytes> {
        self.users.get_key_value(name).map(|(name, _)| name.clone())
    }

    /// The role of that name, as stored.
    pub fn role(&self, name: &[u8]) -> Option<&authpb::Role> {
        self.roles.get(name).map(Arc::as_ref)
    }

    /// Names in order.
    pub fn user_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.users.keys().map(text).collect();
        names.sort_unstable();
        names
    }

    /// Names in order.
    pub fn role_names(&self) -> Vec<String> {
        self.roles.keys().map(text).collect()
    }

    /// What `RoleGet` shows: the root role has no record of what it may do, as it may do everything.
    pub fn permissions(&self, role: &str) -> Result<Vec<Permission>, Error> {
        let record = self.role(role.as_bytes()).ok_or(Error::RoleNotFound)?;
        if role != ROOT_ROLE {
            return Ok(record.key_permission.clone());
        }
        let range_end = Bytes::from_static(&[0]);
        Ok(vec![Permission { perm_type: Type::Readwrite as i32, key: Bytes::new(), range_end }])
    }

    /// Asks everybody who they are from now on. Not a change of users, roles or permissions.
    pub fn enable(&mut self) -> Result<Touched, Error> {
        if self.enabled {
            return Ok(Touched::default());
        }
        let root = self.user(ROOT_USER.as_bytes()).ok_or(Error::RootUserMissing)?;
        if !root.is_root {
            return Err(Error::RootRoleMissing);
        }
        self.enabled = true;
        Ok(Touched { config: true, ..Touched::default() })
    }

    /// The reverse.
    pub fn disable(&mut self) -> Touched {
        if !self.enabled {
            return Touched::default();
        }
        self.enabled = false;
        self.changed(&[], &[])
    }

    /// `password` of the request means nothing: it has been hashed before.
    pub fn add_user(&mut self, request: &pb::AuthUserAddRequest) -> Result<Touched, Error> {
        if request.name.is_empty() {
            return Err(Error::UserNameEmpty);
        }
        if self.user(request.name.as_bytes()).is_some() {
            return Err(Error::UserExists);
        }
        let options = request.options.unwrap_or_default();
        let password = if options.no_password { Bytes::new() } else { decode_hash(&request.hashed_password)? };
        let name = Bytes::copy_from_slice(request.name.as_bytes());
        self.put_user(authpb::User { name: name.clone(), password, roles: Vec::new(), options: Some(options) });
        Ok(self.changed(&[name], &[]))
    }

    /// Ends a user.
    pub fn delete_user(&mut self, name: &str) -> Result<Touched, Error> {
        if self.enabled && name == ROOT_USER {
            return Err(Error::InvalidAuthManagement);
        }
        let (name, _) = self.users.remove_entry(name.as_bytes()).ok_or(Error::UserNotFound)?;
        Ok(self.changed(&[name], &[]))
    }

    /// A user without a password stays one.
    pub fn change_password(&mut self, request: &pb::AuthUserChangePasswordRequest) -> Result<Touched, Error> {
        let user = self.user(request.name.as_bytes()).ok_or(Error::UserNotFound)?;
        let no_password = user.has_no_password();
        let password = if no_password { Bytes::new() } else { decode_hash(&request.hashed_password)? };
        Ok(self.replace_user(authpb::User { password, ..user.record.clone() }))
    }

    /// Granting a role again changes nothing.
    pub fn grant_role(&mut self, user: &str, role: &str) -> Result<Touched, Error> {
        let record = &self.user(user.as_bytes()).ok_or(Error::UserNotFound)?.record;
        if role != ROOT_ROLE && self.role(role.as_bytes()).is_none() {
            return Err(Error::RoleNotFound);
        }
        let Err(place) = record.roles.binary_search_by(|granted| granted.as_str().cmp(role)) else {
            return Ok(Touched::default());
        };
        let mut record = record.clone();
        record.roles.insert(place, role.into());
        Ok(self.replace_user(record))
    }

    /// The root user keeps the root role while authentication is enabled.
    pub fn revoke_role(&mut self, user: &str, role: &str) -> Result<Touched, Error> {
        if self.enabled && user == ROOT_USER && role == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        let record = &self.user(user.as_bytes()).ok_or(Error::UserNotFound)?.record;
        let place = record.roles.iter().position(|granted| granted == role).ok_or(Error::RoleNotGranted)?;
        let mut record = record.clone();
        record.roles.remove(place);
        Ok(self.replace_user(record))
    }

    /// A role without permissions.
    pub fn add_role(&mut self, name: &str) -> Result<Touched, Error> {
        if name.is_empty() {
            return Err(Error::RoleNameEmpty);
        }
        if self.role(name.as_bytes()).is_some() {
            return Err(Error::RoleExists);
        }
        let name = Bytes::copy_from_slice(name.as_bytes());
        let role = authpb::Role { name: name.clone(), key_permission: Vec::new() };
        self.roles.insert(name.clone(), Arc::new(role));
        // A user may have been granted the root role before there was a record of it.
        Ok(self.changed(&[], &[name]))
    }

    /// Ends a role, and takes it from every user that has it.
    pub fn delete_role(&mut self, name: &str) -> Result<Touched, Error> {
        if self.enabled && name == ROOT_ROLE {
            return Err(Error::InvalidAuthManagement);
        }
        let (role, _) = self.roles.remove_entry(name.as_bytes()).ok_or(Error::RoleNotFound)?;
        let holders = self.holders(name);
        for holder in &holders {
            let mut record = self.users[holder].record.clone();
            record.roles.retain(|granted| granted != name);
            self.put_user(record);
        }
        Ok(self.changed(&holders, &[role]))
    }

    /// Adds a permission, or replaces the kind of one with the same range. As in etcd only the first permission of
    /// those that begin with the same key is looked at for that: what is behind it is added once more.
    pub fn grant_permission(&mut self, request: &pb::AuthRoleGrantPermissionRequest) -> Result<Touched, Error> {
        let given = request.perm.as_ref().ok_or(Error::PermissionNotGiven)?;
        if !is_valid_range(&given.key, &given.range_end) {
            return Err(Error::InvalidAuthManagement);
        }
        let mut role = self.role(request.name.as_bytes()).ok_or(Error::RoleNotFound)?.clone();
        let permissions = &mut role.key_permission;
        let place = permissions.partition_point(|known| known.key < given.key);
        match permissions.get_mut(place) {
            Some(known) if known.key == given.key && known.range_end == given.range_end => {
                known.perm_type = given.perm_type;
            }
            _ => {
                permissions.push(given.clone());
                permissions.sort_by(|one, other| one.key.cmp(&other.key));
            }
        }
        Ok(self.replace_role(role))
    }

    /// Takes every permission with exactly that range away.
    pub fn revoke_permission(&mut self, request: &pb::AuthRoleRevokePermissionRequest) -> Result<Touched, Error> {
        let mut role = self.role(request.role.as_bytes()).ok_or(Error::RoleNotFound)?.clone();
        let before = role.key_permission.len();
        role.key_permission.retain(|known| known.key != request.key || known.range_end != request.range_end);
        if role.key_permission.len() == before {
            return Err(Error::PermissionNotGranted);
        }
        Ok(self.replace_role(role))
    }

    fn changed(&mut self, users: &[Bytes], roles: &[Bytes]) -> Touched {
        self.revision += 1;
        Touched { config: true, users: users.to_vec(), roles: roles.to_vec() }
    }

    fn replace_user(&mut self, record: authpb::User) -> Touched {
        let name = record.name.clone();
        self.put_user(record);
        self.changed(&[name], &[])
    }

    fn replace_role(&mut self, role: authpb::Role) -> Touched {
        let name = role.name.clone();
        self.roles.insert(name.clone(), Arc::new(role));
        for holder in self.holders(&text(&name)) {
            let record = self.users[&holder].record.clone();
            self.put_user(record);
        }
        self.changed(&[], &[name])
    }

    /// Names of the users that have a role, in order.
    fn holders(&self, role: &str) -> Vec<Bytes> {
        let has = |user: &User| user.record.roles.iter().any(|granted| granted == role);
        let mut names: Vec<_> = self.users.iter().filter(|(_, user)| has(user)).map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    fn put_user(&mut self, record: authpb::User) {
        let permissions = || {
            let roles = record.roles.iter().filter_map(|role| self.roles.get(role.as_bytes()));
            roles.flat_map(|role| &role.key_permission)
        };
        let rights = |kinds: [Type; 2]| {
            let wanted = permissions().filter(|known| kinds.iter().any(|kind| *kind as i32 == known.perm_type));
            Intervals::union(wanted.map(|known| (&known.key, &known.range_end)))
        };
        let (read, write) = (rights([Type::Read, Type::Readwrite]), rights([Type::Write, Type::Readwrite]));
        let is_root = record.roles.iter().any(|role| role == ROOT_ROLE);
        self.users.insert(record.name.clone(), Arc::new(User { record, is_root, read, write }));
    }
}

/// Names come out of protobuf strings.
fn text(name: &Bytes) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// A key, and an end behind it if there is one.
fn is_valid_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == [0] || key < range_end)
}

/// Go's standard encoding, which does not look at bits behind the last byte and passes over ends of lines.
fn decode_hash(base64: &str) -> Result<Bytes, Error> {
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical);
    let text = base64.replace(['\r', '\n'], "");
    let decoded = GeneralPurpose::new(&base64::alphabet::STANDARD, config).decode(text);
    decoded.map(Bytes::from).map_err(|_| Error::NoPasswordUser)
}

/// What is replicated of a password.
pub fn encode_hash(hash: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_add(name: &str) -> pb::AuthUserAddRequest {
        pb::AuthUserAddRequest { name: name.into(), hashed_password: encode_hash("hash"), ..Default::default() }
    }

    fn grant(role: &str, kind: Type, key: &str, range_end: &str) -> pb::AuthRoleGrantPermissionRequest {
        let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
        let perm = Some(Permission { perm_type: kind as i32, key, range_end });
        pb::AuthRoleGrantPermissionRequest { name: role.into(), perm }
    }

    fn revoke(role: &str, key: &str, range_end: &str) -> pb::AuthRoleRevokePermissionRequest {
        let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
        pb::AuthRoleRevokePermissionRequest { role: role.into(), key, range_end }
    }

    /// Enabled, with root, bob and the role r, which bob has.
    fn table() -> AuthTable {
        let mut table = AuthTable::default();
        for name in ["root", "bob"] {
            table.add_user(&user_add(name)).expect("a new name");
        }
        table.grant_role("root", "root").expect("needs no record");
        table.add_role("r").expect("a new name");
        table.grant_role("bob", "r").expect("both exist");
        table.enable().expect("root is root");
        assert_eq!(table.revision(), 6);
        table
    }

    #[test]
    fn enabling_needs_root_and_is_no_change() {
        let mut table = AuthTable::default();
        assert_eq!((table.is_enabled(), table.revision()), (false, 1));
        assert_eq!(table.enable(), Err(Error::RootUserMissing));
        table.add_user(&user_add("root")).expect("a new name");
        assert_eq!(table.enable(), Err(Error::RootRoleMissing));
        table.grant_role("root", "root").expect("needs no record");
        assert_eq!(table.enable().map(|touched| touched.config), Ok(true));
        assert_eq!((table.is_enabled(), table.revision()), (true, 3));
        assert_eq!(table.enable(), Ok(Touched::default()), "again");
        assert!(table.disable().config);
        assert_eq!((table.is_enabled(), table.revision()), (false, 4));
        assert_eq!(table.disable(), Touched::default());
        assert_eq!(table.revision(), 4);
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let mut table = table();
        let before = format!("{table:?}");
        let none = || pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
        let password = |name: &str, hash: &str| pb::AuthUserChangePasswordRequest {
            name: name.into(),
            password: String::new(),
            hashed_password: hash.into(),
        };
        let refusals = [
            (table.add_user(&user_add("")), Error::UserNameEmpty),
            (table.add_user(&user_add("bob")), Error::UserExists),
            (
                table.add_user(&pb::AuthUserAddRequest { hashed_password: "*".into(), ..user_add("eve") }),
                Error::NoPasswordUser,
            ),
            (table.delete_user("root"), Error::InvalidAuthManagement),
            (table.delete_user("eve"), Error::UserNotFound),
            (table.change_password(&password("eve", "")), Error::UserNotFound),
            (table.change_password(&password("bob", "*")), Error::NoPasswordUser),
            (table.grant_role("eve", "r"), Error::UserNotFound),
            (table.grant_role("bob", "s"), Error::RoleNotFound),
            (table.grant_role("bob", "r"), Error::Canceled),
            (table.revoke_role("root", "root"), Error::InvalidAuthManagement),
            (table.revoke_role("eve", "r"), Error::UserNotFound),
            (table.revoke_role("bob", "s"), Error::RoleNotGranted),
            (table.add_role(""), Error::RoleNameEmpty),
            (table.add_role("r"), Error::RoleExists),
            (table.delete_role("root"), Error::InvalidAuthManagement),
            (table.delete_role("s"), Error::RoleNotFound),
            (table.grant_permission(&none()), Error::PermissionNotGiven),
            (table.grant_permission(&grant("s", Type::Read, "", "")), Error::InvalidAuthManagement),
            (table.grant_permission(&grant("s", Type::Read, "b", "a")), Error::InvalidAuthManagement),
            (table.grant_permission(&grant("s", Type::Read, "b", "b")), Error::InvalidAuthManagement),
            (table.grant_permission(&grant("s", Type::Read, "a", "b")), Error::RoleNotFound),
            (table.revoke_permission(&revoke("s", "a", "b")), Error::RoleNotFound),
            (table.revoke_permission(&revoke("r", "a", "b")), Error::PermissionNotGranted),
        ];
        for (number, (result, error)) in refusals.into_iter().enumerate() {
            match result {
                // Granted already: neither an error nor a change.
                Ok(touched) => assert_eq!((touched, error), (Touched::default(), Error::Canceled), "{number}"),
                Err(refusal) => assert_eq!(refusal, error, "{number}"),
            }
        }
        assert_eq!(format!("{table:?}"), before);
    }

    #[test]
    fn each_change_is_one_revision_and_names_its_rows() {
        let mut table = table();
        let mut revision = table.revision();
        let mut check = |table: &AuthTable, touched: Result<Touched, Error>, users: &[&str], roles: &[&str]| {
            revision += 1;
            let touched = touched.expect("no refusal");
            assert_eq!((table.revision(), touched.config), (revision, true));
            let texts = |names: &[Bytes]| names.iter().map(text).collect::<Vec<_>>();
            assert_eq!(
                (texts(&touched.users), texts(&touched.roles)),
                (
                    users.iter().map(|name| name.to_string()).collect(),
                    roles.iter().map(|name| name.to_string()).collect()
                )
            );
        };
        let touched = table.add_user(&user_add("amy"));
        check(&table, touched, &["amy"], &[]);
        let touched = table.grant_role("amy", "r");
        check(&table, touched, &["amy"], &[]);
        let touched = table.grant_permission(&grant("r", Type::Read, "a", "b"));
        check(&table, touched, &[], &["r"]);
        assert!(table.user(b"amy").is_some_and(|user| user.may_read(b"a", b"b") && !user.may_write(b"a", b"")));
        let touched = table.revoke_permission(&revoke("r", "a", "b"));
        check(&table, touched, &[], &["r"]);
        assert!(table.user(b"amy").is_some_and(|user| !user.may_read(b"a", b"b")));
        let touched = table.delete_role("r");
        check(&table, touched, &["amy", "bob"], &["r"]);
        assert!(table.user(b"bob").is_some_and(|user| user.roles().is_empty()));
        let touched = table.delete_user("amy");
        check(&table, touched, &["amy"], &[]);
        assert_eq!((table.user_names(), table.role_names()), (vec!["bob".into(), "root".into()], vec![]));
    }

    #[test]
    fn rights_are_the_union_of_all_roles() {
        let mut table = table();
        table.add_role("w").expect("a new name");
        table.grant_permission(&grant("r", Type::Read, "a", "c")).expect("granted");
        table.grant_permission(&grant("w", Type::Readwrite, "c", "e")).expect("granted");
        table.grant_permission(&grant("w", Type::Write, "x", "\0")).expect("granted");
        let bob = |table: &AuthTable| table.user(b"bob").expect("he is there").clone();
        assert!(bob(&table).may_read(b"a", b"c") && !bob(&table).may_read(b"a", b"d"));
        table.grant_role("bob", "w").expect("both exist");
        assert!(bob(&table).may_read(b"a", b"e") && bob(&table).may_write(b"c", b"e"));
        assert!(bob(&table).may_write(b"y", b"\0") && !bob(&table).may_read(b"y", b""));
        assert_eq!(bob(&table).roles(), ["r", "w"]);
        table.revoke_role("bob", "r").expect("he has it");
        assert!(!bob(&table).may_read(b"a", b"c") && bob(&table).may_read(b"c", b"e"));
        assert!(!bob(&table).is_root() && table.user(b"root").is_some_and(|root| root.may_write(b"\0", b"\0")));
    }

    /// What etcd does with permissions that begin with the same key.
    #[test]
    fn only_the_first_permission_of_a_key_is_replaced() {
        let mut table = table();
        let kinds = |table: &AuthTable| -> Vec<_> {
            let permissions = table.permissions("r").expect("it is there");
            permissions.iter().map(|known| (text(&known.range_end), known.perm_type)).collect()
        };
        table.grant_permission(&grant("r", Type::Read, "a", "c")).expect("granted");
        table.grant_permission(&grant("r", Type::Read, "a", "b")).expect("granted");
        table.grant_permission(&grant("r", Type::Readwrite, "a", "c")).expect("replaced");
        assert_eq!(kinds(&table), [("c".into(), 2), ("b".into(), 0)]);
        table.grant_permission(&grant("r", Type::Write, "a", "b")).expect("added");
        assert_eq!(kinds(&table), [("c".into(), 2), ("b".into(), 0), ("b".into(), 1)]);
        table.revoke_permission(&revoke("r", "a", "b")).expect("both");
        assert_eq!(kinds(&table), [("c".into(), 2)]);
    }

    #[test]
    fn the_root_role_shows_everything_once_it_has_a_record() {
        let mut table = table();
        assert_eq!(table.permissions("root"), Err(Error::RoleNotFound));
        table.add_role("root").expect("a new name");
        let everything = Permission { perm_type: 2, key: Bytes::new(), range_end: Bytes::from_static(&[0]) };
        assert_eq!(table.permissions("root"), Ok(vec![everything]));
    }

    #[test]
    fn passwords_are_kept_as_hashes_and_a_user_without_one_stays_so() {
        let mut table = table();
        assert_eq!(table.user(b"bob").expect("he is there").password_hash(), "hash");
        let change = |name: &str| pb::AuthUserChangePasswordRequest {
            name: name.into(),
            password: "in clear".into(),
            hashed_password: encode_hash("other"),
        };
        table.change_password(&change("bob")).expect("changed");
        assert_eq!(table.user(b"bob").expect("he is there").password_hash(), "other");
        let options = Some(authpb::UserAddOptions { no_password: true });
        table.add_user(&pb::AuthUserAddRequest { options, ..user_add("cert") }).expect("a new name");
        table.change_password(&change("cert")).expect("as etcd");
        let cert = table.user(b"cert").expect("it is there");
        assert!(cert.has_no_password() && cert.password_hash().is_empty());
    }

    #[test]
    fn a_table_is_restored_from_its_records() {
        let mut table = table();
        table.grant_permission(&grant("r", Type::Write, "a", "c")).expect("granted");
        let users = table.users.values().map(|user| user.record().clone()).collect();
        let roles = table.roles.values().map(|role| authpb::Role::clone(role)).collect();
        let restored = AuthTable::restore(true, table.revision(), users, roles);
        assert!(restored.user(b"bob").is_some_and(|bob| bob.may_write(b"b", b"c") && !bob.may_read(b"b", b"")));
        assert!(restored.user(b"root").is_some_and(User::is_root));
        assert_eq!((restored.revision(), restored.is_enabled()), (table.revision(), true));
        assert_eq!((restored.user_names(), restored.role_names()), (table.user_names(), table.role_names()));
    }
}
