//! The one place that decides whether a caller may do what it asks. Every request and every command has a rule, and what
//! has none does not compile. Pure: a table, an identity and a message in, yes or etcd's error out.
//!
//! Two of the rules look at more than these three, and get it from their callers: the keys attached to a lease
//! ([`leases_of`], [`write_key`], [`read_key`]), and whether the auth revision has changed meanwhile ([`confirm`]).

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::alarm_request::AlarmAction;
use daymark_api::etcdserverpb::request_op::Request as Op;
use smallvec::SmallVec;

use super::table::{AuthTable, User};
use crate::command::{AuthCommand, Command, Identity};
use crate::error::Error;
use crate::request::{Request, StreamRequest};

/// A stream as it is opened, or a message on one.
#[derive(Copy, Clone, Debug)]
pub enum Streaming<'a> {
    Watch(&'a pb::WatchCreateRequest),
    /// The keys of the lease come on top.
    LeaseKeepAlive,
    /// A call with one request and a stream of answers.
    Call(&'a StreamRequest),
}

impl Streaming<'_> {
    /// As [`needs_identity`].
    pub fn needs_identity(self) -> bool {
        !matches!(self, Self::Call(StreamRequest::Observe(_)))
    }
}

/// Whether somebody may ask for `request`. What is replicated is decided once more by [`command`], on the state that it
/// meets.
pub fn request(table: &AuthTable, who: Option<&Identity>, request: &Request) -> Result<(), Error> {
    if !table.is_enabled() {
        return Ok(());
    }
    let rules = Rules { table, who };
    match request {
        Request::Range(range) => rules.read(&range.key, &range.range_end),
        Request::Put(put) => rules.put(put),
        Request::DeleteRange(delete) => rules.delete(delete),
        Request::Txn(txn) => rules.txn(txn),
        // The keys of the lease are seen by apply, or by the service.
        Request::LeaseGrant(_) | Request::LeaseRevoke(_) => rules.somebody(),
        Request::LeaseTimeToLive(_) | Request::LeaseLeases(_) => rules.somebody(),
        Request::MemberList(_) | Request::Status(_) => rules.somebody(),
        Request::Alarm(alarm) if alarm.action == AlarmAction::Get as i32 => rules.somebody(),
        Request::Alarm(_) | Request::Compact(_) | Request::Defragment(_) => rules.root(),
        Request::Hash(_) | Request::HashKv(_) | Request::MoveLeader(_) | Request::Downgrade(_) => rules.root(),
        Request::MemberAdd(_) | Request::MemberRemove(_) => rules.root(),
        Request::MemberUpdate(_) | Request::MemberPromote(_) => rules.root(),
        // Each of the requests that they are made of has its rule.
        Request::Lock(_) | Request::Unlock(_) => Ok(()),
        Request::Campaign(_) | Request::Proclaim(_) | Request::Leader(_) | Request::Resign(_) => Ok(()),
        Request::Authenticate(_) | Request::AuthStatus(_) => Ok(()),
        Request::UserGet(get) => rules.own_user(&get.name),
        Request::RoleGet(get) => rules.own_role(&get.role),
        Request::AuthEnable(_) | Request::AuthDisable(_) => rules.root(),
        Request::UserAdd(_) | Request::UserDelete(_) | Request::UserList(_) => rules.root(),
        Request::UserChangePassword(_) | Request::UserGrantRole(_) | Request::UserRevokeRole(_) => rules.root(),
        Request::RoleAdd(_) | Request::RoleDelete(_) | Request::RoleList(_) => rules.root(),
        Request::RoleGrantPermission(_) | Request::RoleRevokePermission(_) => rules.root(),
    }
}

/// Whether somebody may open a stream, or send a message on it.
pub fn stream(table: &AuthTable, who: Option<&Identity>, stream: Streaming<'_>) -> Result<(), Error> {
    if !table.is_enabled() {
        return Ok(());
    }
    let rules = Rules { table, who };
    match stream {
        // No key is the first one.
        Streaming::Watch(create) if create.key.is_empty() => rules.read(&[0], &create.range_end),
        Streaming::Watch(create) => rules.read(&create.key, &create.range_end),
        Streaming::LeaseKeepAlive => rules.somebody(),
        Streaming::Call(StreamRequest::RangeStream(range)) => rules.read(&range.key, &range.range_end),
        // Each of the requests that it is made of has its rule.
        Streaming::Call(StreamRequest::Observe(_)) => Ok(()),
        Streaming::Call(StreamRequest::Snapshot(_)) => rules.root(),
    }
}

/// Whether a command takes effect, the keys of [`leases_of`] aside. Commands that only members themselves make have
/// no identity and need none; for the others a missing identity is nobody's.
pub fn command(table: &AuthTable, who: Option<&Identity>, command: &Command) -> Result<(), Error> {
    if !table.is_enabled() {
        return Ok(());
    }
    let rules = Rules { table, who };
    match command {
        Command::Put(put) => rules.put(put),
        Command::DeleteRange(delete) => rules.delete(delete),
        Command::Txn(txn) => rules.txn(txn),
        // Decided by the front door, as in etcd: what is left of it are the keys of the lease.
        Command::LeaseGrant(_) | Command::LeaseRevoke(_) => Ok(()),
        // Members compact and raise alarms by themselves.
        Command::Compact(_) | Command::Alarm(_) if who.is_none() => Ok(()),
        Command::Compact(_) | Command::Alarm(_) | Command::MemberUpdate(_) => rules.root(),
        Command::LeaseExpire(_) | Command::LeaseCheckpoint(_) | Command::MemberAttributes(_) => Ok(()),
        // The password has been looked at, and the answer goes to who gave it.
        Command::Auth(AuthCommand::AssignToken(_)) => Ok(()),
        Command::Auth(_) => rules.root(),
    }
}

/// Leases whose attached keys the caller has to be allowed to write, for the command to take effect.
pub fn leases_of(command: &Command) -> SmallVec<[i64; 2]> {
    let mut leases = SmallVec::new();
    match command {
        Command::Put(put) => leases.push(put.lease),
        Command::Txn(txn) => leases_in(txn, &mut leases),
        Command::LeaseRevoke(revoke) => leases.push(revoke.id),
        Command::DeleteRange(_) | Command::Compact(_) | Command::LeaseGrant(_) => {}
        Command::LeaseExpire(_) | Command::LeaseCheckpoint(_) => {}
        Command::Alarm(_) | Command::MemberAttributes(_) | Command::MemberUpdate(_) | Command::Auth(_) => {}
    }
    leases.retain(|lease| *lease != 0);
    // The keys of each are looked at once, however many operations name it.
    leases.sort_unstable();
    leases.dedup();
    leases
}

fn leases_in(txn: &pb::TxnRequest, leases: &mut SmallVec<[i64; 2]>) {
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Op::RequestPut(put)) => leases.push(put.lease),
            Some(Op::RequestTxn(nested)) => leases_in(nested, leases),
            Some(Op::RequestRange(_) | Op::RequestDeleteRange(_)) | None => {}
        }
    }
}

/// Whether the caller is looked at before the request is served. Who logs in has no identity yet, and in the services
/// that are clients of the others it is one of their steps that fails.
pub fn needs_identity(request: &Request) -> bool {
    !matches!(
        request,
        Request::Authenticate(_)
            | Request::Lock(_)
            | Request::Unlock(_)
            | Request::Campaign(_)
            | Request::Proclaim(_)
            | Request::Leader(_)
            | Request::Resign(_)
    )
}

/// Whether a caller need not be looked at key by key. As in etcd, the revision of its identity does not matter then.
pub fn is_root(table: &AuthTable, who: Option<&Identity>) -> bool {
    !table.is_enabled() || Rules { table, who }.root().is_ok()
}

/// Whether somebody may write one key.
pub fn write_key(table: &AuthTable, who: Option<&Identity>, key: &[u8]) -> Result<(), Error> {
    Rules { table, who }.write(key, &[])
}

/// Whether somebody may read one key.
pub fn read_key(table: &AuthTable, who: Option<&Identity>, key: &[u8]) -> Result<(), Error> {
    Rules { table, who }.read(key, &[])
}

/// After a read: what was allowed may not be any more, and what was read may be newer than that.
pub fn confirm(table: &AuthTable, who: Option<&Identity>) -> Result<(), Error> {
    match who {
        Some(who) if who.auth_revision != table.revision() => Err(Error::OldAuthRevision),
        _ => Ok(()),
    }
}

/// The rules for one caller, with authentication enabled.
struct Rules<'a> {
    table: &'a AuthTable,
    who: Option<&'a Identity>,
}

impl Rules<'_> {
    /// An identity is enough, whatever it may do.
    fn somebody(&self) -> Result<(), Error> {
        self.who.map(|_| ()).ok_or(Error::UserNameEmpty)
    }

    fn root(&self) -> Result<(), Error> {
        let who = self.who.filter(|who| !who.user.is_empty()).ok_or(Error::UserNameEmpty)?;
        let user = self.table.user(&who.user).ok_or(Error::UserNotFound)?;
        if user.is_root() { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// The user of a caller whose identity is not older than the table.
    fn user(&self) -> Result<&User, Error> {
        // A token may hold revision 0, which no table has had.
        let who = self.who.filter(|who| who.auth_revision != 0).ok_or(Error::UserNameEmpty)?;
        if who.auth_revision < self.table.revision() {
            return Err(Error::OldAuthRevision);
        }
        self.table.user(&who.user).ok_or(Error::PermissionDenied)
    }

    fn read(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        if self.user()?.may_read(key, range_end) { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    fn write(&self, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        if self.user()?.may_write(key, range_end) { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    fn put(&self, put: &pb::PutRequest) -> Result<(), Error> {
        self.write(&put.key, &[])?;
        if put.prev_kv { self.read(&put.key, &[]) } else { Ok(()) }
    }

    fn delete(&self, delete: &pb::DeleteRangeRequest) -> Result<(), Error> {
        self.write(&delete.key, &delete.range_end)?;
        if delete.prev_kv { self.read(&delete.key, &delete.range_end) } else { Ok(()) }
    }

    /// Both branches: which one is taken would tell the outcome of the compares. One that asks for nothing needs
    /// nobody.
    fn txn(&self, txn: &pb::TxnRequest) -> Result<(), Error> {
        txn.compare.iter().try_for_each(|compare| self.read(&compare.key, &compare.range_end))?;
        txn.success.iter().chain(&txn.failure).try_for_each(|op| match &op.request {
            Some(Op::RequestRange(range)) => self.read(&range.key, &range.range_end),
            Some(Op::RequestPut(put)) => self.put(put),
            Some(Op::RequestDeleteRange(delete)) => self.delete(delete),
            Some(Op::RequestTxn(nested)) => self.txn(nested),
            None => Ok(()),
        })
    }

    fn own_user(&self, name: &str) -> Result<(), Error> {
        let refused = self.root();
        if name.as_bytes() == self.name() { Ok(()) } else { refused }
    }

    fn own_role(&self, role: &str) -> Result<(), Error> {
        let refused = self.root();
        let has = |user: &User| user.roles().iter().any(|granted| granted == role);
        if self.table.user(self.name()).is_some_and(has) { Ok(()) } else { refused }
    }

    fn name(&self) -> &[u8] {
        self.who.map_or(&[], |who| &who.user)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use daymark_api::authpb::{Permission, permission::Type};

    use super::*;

    const OLD: u64 = 1;

    /// Users root, bob (reads a to c, writes b to d) and poor (no role); enabled.
    fn table() -> AuthTable {
        let mut table = AuthTable::default();
        for name in ["root", "bob", "poor"] {
            table.add_user(&pb::AuthUserAddRequest { name: name.into(), ..Default::default() }).expect("new");
        }
        table.grant_role("root", "root").expect("needs no record");
        table.add_role("r").expect("new");
        table.grant_role("bob", "r").expect("both exist");
        for (kind, key, range_end) in [(Type::Read, "a", "c"), (Type::Write, "b", "d")] {
            let perm = Some(Permission { perm_type: kind as i32, key: key.into(), range_end: range_end.into() });
            table.grant_permission(&pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm }).expect("valid");
        }
        table.enable().expect("root is root");
        table
    }

    fn who(table: &AuthTable, user: &'static str) -> Option<Identity> {
        Some(Identity { user: Bytes::from_static(user.as_bytes()), auth_revision: table.revision() })
    }

    fn range(key: &'static str, range_end: &'static str) -> pb::RangeRequest {
        pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
    }

    fn put(key: &'static str, prev_kv: bool) -> pb::PutRequest {
        pb::PutRequest { key: key.into(), prev_kv, ..Default::default() }
    }

    fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> pb::DeleteRangeRequest {
        pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv }
    }

    fn op(request: Op) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn nested(txn: pb::TxnRequest) -> pb::TxnRequest {
        pb::TxnRequest { failure: vec![op(Op::RequestTxn(txn))], ..Default::default() }
    }

    /// Everything that root alone may do.
    fn for_root() -> Vec<Request> {
        vec![
            Request::Compact(Default::default()),
            Request::Defragment(Default::default()),
            Request::MoveLeader(Default::default()),
            Request::Downgrade(Default::default()),
            Request::MemberAdd(Default::default()),
            Request::MemberRemove(Default::default()),
            Request::MemberUpdate(Default::default()),
            Request::MemberPromote(Default::default()),
            Request::Alarm(pb::AlarmRequest { action: 1, ..Default::default() }),
            Request::Alarm(pb::AlarmRequest { action: 2, ..Default::default() }),
            Request::AuthEnable(Default::default()),
            Request::AuthDisable(Default::default()),
            Request::UserAdd(Default::default()),
            Request::UserDelete(Default::default()),
            Request::UserList(Default::default()),
            Request::UserChangePassword(Default::default()),
            Request::UserGrantRole(Default::default()),
            Request::UserRevokeRole(Default::default()),
            Request::RoleAdd(Default::default()),
            Request::RoleDelete(Default::default()),
            Request::RoleList(Default::default()),
            Request::RoleGrantPermission(Default::default()),
            Request::RoleRevokePermission(Default::default()),
            Request::UserGet(pb::AuthUserGetRequest { name: "root".into() }),
            Request::RoleGet(pb::AuthRoleGetRequest { role: "other".into() }),
        ]
    }

    /// Everything that any user may do.
    fn for_somebody() -> Vec<Request> {
        vec![
            Request::LeaseGrant(Default::default()),
            Request::LeaseRevoke(Default::default()),
            Request::LeaseTimeToLive(Default::default()),
            Request::LeaseLeases(Default::default()),
            Request::MemberList(Default::default()),
            Request::Status(Default::default()),
            Request::Alarm(pb::AlarmRequest { action: 0, ..Default::default() }),
        ]
    }

    #[test]
    fn every_caller_gets_etcds_answer() {
        let table = table();
        let ask = |caller: Option<Identity>, asked: &Request| request(&table, caller.as_ref(), asked);
        for asked in for_root() {
            assert_eq!(ask(who(&table, "root"), &asked), Ok(()), "{asked:?}");
            assert_eq!(ask(who(&table, "bob"), &asked), Err(Error::PermissionDenied), "{asked:?}");
            assert_eq!(ask(who(&table, "gone"), &asked), Err(Error::UserNotFound), "{asked:?}");
            assert_eq!(ask(who(&table, ""), &asked), Err(Error::UserNameEmpty), "{asked:?}");
            assert_eq!(ask(None, &asked), Err(Error::UserNameEmpty), "{asked:?}");
            let old = Identity { user: "root".into(), auth_revision: OLD };
            assert_eq!(ask(Some(old), &asked), Ok(()), "root is root: {asked:?}");
        }
        for asked in for_somebody() {
            for user in ["root", "bob", "poor", "gone"] {
                assert_eq!(ask(who(&table, user), &asked), Ok(()), "{asked:?}");
            }
            assert_eq!(ask(None, &asked), Err(Error::UserNameEmpty), "{asked:?}");
        }
        for asked in [Request::Authenticate(Default::default()), Request::AuthStatus(Default::default())] {
            assert_eq!(ask(None, &asked), Ok(()), "{asked:?}");
        }
    }

    #[test]
    fn nobody_is_asked_while_authentication_is_disabled() {
        let mut table = table();
        table.disable();
        for asked in for_root().into_iter().chain(for_somebody()).chain([Request::Range(range("z", ""))]) {
            assert_eq!(request(&table, None, &asked), Ok(()), "{asked:?}");
        }
        assert_eq!(stream(&table, None, Streaming::LeaseKeepAlive), Ok(()));
        assert_eq!(command(&table, None, &Command::Put(put("z", true))), Ok(()));
        assert!(is_root(&table, None));
    }

    #[test]
    fn keys_are_looked_at_in_every_part_of_a_request() {
        let table = table();
        let (yes, no) = (Ok(()), Err(Error::PermissionDenied));
        let txn = |compare: &'static str, inner: Op| pb::TxnRequest {
            compare: vec![pb::Compare { key: compare.into(), ..Default::default() }],
            success: vec![op(inner)],
            ..Default::default()
        };
        let get = |key, end| Op::RequestRange(range(key, end));
        let cases = [
            (Request::Range(range("a", "c")), &yes),
            (Request::Range(range("a", "c\0")), &no),
            (Request::Range(range("a", "\0")), &no),
            (Request::Range(range("c", "")), &no),
            (Request::Put(put("b", false)), &yes),
            (Request::Put(put("b", true)), &yes),
            (Request::Put(put("c", false)), &yes),
            (Request::Put(put("c", true)), &no),
            (Request::Put(put("a", false)), &no),
            (Request::DeleteRange(delete("b", "d", false)), &yes),
            (Request::DeleteRange(delete("b", "c", true)), &yes),
            (Request::DeleteRange(delete("b", "d", true)), &no),
            (Request::DeleteRange(delete("a", "d", false)), &no),
            (Request::Txn(pb::TxnRequest::default()), &yes),
            (Request::Txn(txn("a", get("b", ""))), &yes),
            (Request::Txn(txn("c", get("b", ""))), &no),
            (Request::Txn(txn("a", get("a", "d"))), &no),
            (Request::Txn(txn("a", Op::RequestPut(put("c", true)))), &no),
            (Request::Txn(txn("a", Op::RequestDeleteRange(delete("c", "", true)))), &no),
            (Request::Txn(nested(txn("a", Op::RequestPut(put("c", false))))), &yes),
            (Request::Txn(nested(nested(txn("a", Op::RequestPut(put("a", false)))))), &no),
            (Request::Txn(nested(nested(txn("d", get("a", ""))))), &no),
        ];
        for (asked, answer) in &cases {
            assert_eq!(&request(&table, who(&table, "bob").as_ref(), asked), *answer, "{asked:?}");
            assert_eq!(request(&table, who(&table, "root").as_ref(), asked), Ok(()), "{asked:?}");
            if matches!(asked, Request::Txn(txn) if *txn == pb::TxnRequest::default()) {
                // Nothing is asked for.
                continue;
            }
            assert_eq!(request(&table, who(&table, "poor").as_ref(), asked), no, "{asked:?}");
            assert_eq!(request(&table, who(&table, "gone").as_ref(), asked), no, "{asked:?}");
            assert_eq!(request(&table, None, asked), Err(Error::UserNameEmpty), "{asked:?}");
            for user in ["root", "bob"] {
                let old = Identity { user: user.into(), auth_revision: OLD };
                assert_eq!(request(&table, Some(&old), asked), Err(Error::OldAuthRevision), "{asked:?}");
            }
        }
    }

    #[test]
    fn users_see_themselves_and_their_roles() {
        let table = table();
        let user = |name: &str| Request::UserGet(pb::AuthUserGetRequest { name: name.into() });
        let role = |name: &str| Request::RoleGet(pb::AuthRoleGetRequest { role: name.into() });
        let bob = who(&table, "bob");
        let ask = |asked: Request| request(&table, bob.as_ref(), &asked);
        assert_eq!((ask(user("bob")), ask(user("poor"))), (Ok(()), Err(Error::PermissionDenied)));
        assert_eq!((ask(role("r")), ask(role("root"))), (Ok(()), Err(Error::PermissionDenied)));
        assert_eq!(request(&table, None, &user("bob")), Err(Error::UserNameEmpty));
        assert_eq!(request(&table, None, &role("r")), Err(Error::UserNameEmpty));
    }

    #[test]
    fn streams_have_the_rules_of_what_they_read() {
        let table = table();
        let bob = who(&table, "bob");
        let watch = |key: &'static str, range_end: &'static str| {
            let create = pb::WatchCreateRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
            stream(&table, bob.as_ref(), Streaming::Watch(&create))
        };
        let no = Err(Error::PermissionDenied);
        assert_eq!((watch("a", "c"), watch("a", "\0"), watch("", "c")), (Ok(()), no.clone(), no.clone()));
        let call = |request| stream(&table, bob.as_ref(), Streaming::Call(&request));
        assert_eq!(call(StreamRequest::RangeStream(range("a", "c"))), Ok(()));
        assert_eq!(call(StreamRequest::RangeStream(range("a", "d"))), no);
        assert_eq!(call(StreamRequest::Observe(Default::default())), Ok(()), "its steps are asked for");
        assert_eq!(stream(&table, bob.as_ref(), Streaming::LeaseKeepAlive), Ok(()));
        assert_eq!(stream(&table, None, Streaming::LeaseKeepAlive), Err(Error::UserNameEmpty));
    }

    #[test]
    fn commands_are_looked_at_again_and_those_of_members_are_not() {
        let table = table();
        let bob = who(&table, "bob");
        let nobody = Err(Error::UserNameEmpty);
        assert_eq!(command(&table, bob.as_ref(), &Command::Put(put("b", false))), Ok(()));
        assert_eq!(command(&table, bob.as_ref(), &Command::Put(put("a", false))), Err(Error::PermissionDenied));
        assert_eq!(command(&table, None, &Command::Put(put("b", false))), nobody);
        assert_eq!(command(&table, None, &Command::DeleteRange(delete("b", "", false))), nobody);
        assert_eq!(command(&table, None, &Command::Auth(AuthCommand::Disable)), nobody);
        assert_eq!(command(&table, bob.as_ref(), &Command::Auth(AuthCommand::Disable)), Err(Error::PermissionDenied));
        let compact = || Command::Compact(Default::default());
        assert_eq!(command(&table, None, &compact()), Ok(()), "a member's own");
        assert_eq!(command(&table, bob.as_ref(), &compact()), Err(Error::PermissionDenied));
        assert_eq!(command(&table, None, &Command::LeaseExpire(Default::default())), Ok(()));
        assert_eq!(command(&table, None, &Command::Auth(AuthCommand::AssignToken(Default::default()))), Ok(()));
    }

    #[test]
    fn leases_are_found_at_any_depth() {
        let lease_put = |lease| op(Op::RequestPut(pb::PutRequest { lease, ..Default::default() }));
        let inner = pb::TxnRequest { success: vec![lease_put(3)], failure: vec![lease_put(4)], ..Default::default() };
        let mut txn = nested(inner);
        txn.success = vec![lease_put(1), lease_put(0)];
        assert_eq!(leases_of(&Command::Txn(txn))[..], [1, 3, 4]);
        assert_eq!(leases_of(&Command::LeaseRevoke(pb::LeaseRevokeRequest { id: 9 }))[..], [9]);
        assert!(leases_of(&Command::Put(put("a", false))).is_empty());
    }

    #[test]
    fn what_was_read_counts_only_under_the_same_revision() {
        let mut table = table();
        let bob = who(&table, "bob");
        assert_eq!((confirm(&table, bob.as_ref()), confirm(&table, None)), (Ok(()), Ok(())));
        table.add_role("s").expect("new");
        assert_eq!(confirm(&table, bob.as_ref()), Err(Error::OldAuthRevision));
        let newer = Identity { user: "bob".into(), auth_revision: table.revision() + 1 };
        assert_eq!(request(&table, Some(&newer), &Request::Range(range("a", "c"))), Ok(()));
        assert_eq!(confirm(&table, Some(&newer)), Err(Error::OldAuthRevision), "as etcd");
    }
}
