//! What every caller must hear, worked out anew from the description of etcd's rules and nothing else: no code of the
//! server's is used, and coverage of a range is decided key by key instead of by merging intervals. Slow, short, obvious.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::ask::{Admin, Ask, Span, Txn, TxnOp, at, prefix, queue_key};

/// Which accesses a grant is for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
    Both,
}

/// Who calls, as the server must see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// No token, no certificate.
    Nobody,
    /// A token that stands for nobody.
    Invalid,
    /// Somebody who may exist or not.
    User(String),
    /// The same, by a token of an older auth revision.
    Outdated(String),
}

/// gRPC's code and text. Code 0: told within a stream that goes on.
pub type Refusal = (u16, String);

/// Users, roles and leases.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub users: BTreeMap<String, BTreeSet<String>>,
    pub roles: BTreeMap<String, Vec<(Right, Span)>>,
    /// Keys by lease.
    pub leases: BTreeMap<i64, BTreeSet<Bytes>>,
    /// Whether who may not observe an election is sent away without a word, as by etcd, which calls that a success.
    pub observe_is_silent: bool,
    /// Whether a watch without an end is looked at as a watch of its first key, which lets etcd's users see keys that
    /// they may not read.
    pub open_watch_is_one_key: bool,
}

/// Something that has to be allowed, in the order in which it is looked at.
enum Need {
    Somebody,
    Root,
    Read(Span),
    Write(Span),
    /// Of every key of a lease.
    ReadLease(i64),
    WriteLease(i64),
    ReadAllLeases,
    Oneself(&'static str),
    OwnRole(&'static str),
}

const INVALID_ARGUMENT: u16 = 3;
const PERMISSION_DENIED: u16 = 7;
const FAILED_PRECONDITION: u16 = 9;
const UNAUTHENTICATED: u16 = 16;

fn refuse(code: u16, text: &str) -> Result<(), Refusal> {
    Err((code, format!("etcdserver: {text}")))
}

impl Model {
    /// What the caller hears: nothing but yes, or a refusal.
    pub fn expect(&self, who: &Who, ask: &Ask) -> Result<(), Refusal> {
        if !ask.asks_who() {
            return outcome(ask);
        }
        let verdict = malformed(ask).and_then(|()| self.allowed(who, ask)).and_then(|()| self.found(ask));
        match ask {
            Ask::Watch(_) => verdict.map_err(|(code, text)| (0, in_band(code, &text))),
            Ask::Lock { .. } | Ask::Unlock(_) | Ask::Campaign { .. } | Ask::Proclaim { .. } => unknown(verdict),
            Ask::Leader(_) | Ask::Resign { .. } => unknown(verdict),
            // A stream that ends well before it has said anything.
            Ask::Observe(_) if self.observe_is_silent => verdict.map_err(|_| (0, "ended".to_owned())),
            Ask::Observe(_) => unknown(verdict),
            _ => verdict,
        }
    }

    fn found(&self, ask: &Ask) -> Result<(), Refusal> {
        match ask {
            Ask::RoleGet(role) if !self.roles.contains_key(*role) => refuse(FAILED_PRECONDITION, "role name not found"),
            Ask::UserGet(name) if !self.users.contains_key(*name) => refuse(FAILED_PRECONDITION, "user name not found"),
            _ => outcome(ask),
        }
    }

    fn allowed(&self, who: &Who, ask: &Ask) -> Result<(), Refusal> {
        if *who == Who::Invalid {
            return refuse(UNAUTHENTICATED, "invalid auth token");
        }
        self.needs(ask).iter().try_for_each(|need| self.grants(who, need))?;
        // What was read is not handed out under an older revision, be it nothing at all.
        match (who, ask) {
            (Who::Outdated(_), Ask::Txn(txn)) if txn.is_empty() => {
                refuse(INVALID_ARGUMENT, "revision of auth store is old")
            }
            _ => Ok(()),
        }
    }

    fn needs(&self, ask: &Ask) -> Vec<Need> {
        match ask {
            Ask::Range(span) | Ask::SerializableRange(span) | Ask::RangeStream(span) => vec![Need::Read(span.clone())],
            Ask::Put { key, prev_kv, lease } => put_needs(key, *prev_kv, *lease),
            Ask::Delete { span, prev_kv } => delete_needs(span, *prev_kv),
            Ask::Txn(txn) => txn_needs(txn),
            Ask::Watch(span) => vec![Need::Read(self.watched(span))],
            Ask::LeaseGrant | Ask::Status | Ask::AlarmGet | Ask::MemberList { .. } => vec![Need::Somebody],
            Ask::LeaseRevoke(id) | Ask::LeaseKeepAlive(id) => vec![Need::Somebody, Need::WriteLease(*id)],
            Ask::LeaseTimeToLive { keys: false, .. } => vec![Need::Somebody],
            Ask::LeaseTimeToLive { id, keys: true } => vec![Need::Somebody, Need::ReadLease(*id)],
            Ask::LeaseLeases => vec![Need::Somebody, Need::ReadAllLeases],
            Ask::UserGet(name) => vec![Need::Oneself(name)],
            Ask::RoleGet(role) => vec![Need::OwnRole(role)],
            Ask::Admin(_) => vec![Need::Root],
            Ask::Lock { name, lease } | Ask::Campaign { name, lease } => {
                let key = queue_key(name, *lease);
                let mut needs = vec![Need::Read(key.clone())];
                needs.extend(put_needs(&key, false, *lease));
                needs.push(Need::Read(prefix(&format!("{name}/"))));
                needs
            }
            Ask::Unlock(key) => vec![Need::Write(key.clone())],
            Ask::Proclaim { name, lease } => {
                let key = queue_key(name, *lease);
                let mut needs = vec![Need::Read(key.clone())];
                needs.extend(put_needs(&key, false, *lease));
                needs
            }
            Ask::Resign { name, lease } => {
                let key = queue_key(name, *lease);
                vec![Need::Read(key.clone()), Need::Write(key)]
            }
            Ask::Leader(name) | Ask::Observe(name) => vec![Need::Read(prefix(&format!("{name}/")))],
            Ask::AuthStatus | Ask::Authenticate | Ask::HealthCheck | Ask::HealthWatch => Vec::new(),
        }
    }

    fn watched(&self, span: &Span) -> Span {
        let key = if span.key.is_empty() { Bytes::from_static(b"\0") } else { span.key.clone() };
        if self.open_watch_is_one_key && span.end == "\0" { at(key) } else { Span { key, end: span.end.clone() } }
    }

    fn grants(&self, who: &Who, need: &Need) -> Result<(), Refusal> {
        match need {
            Need::Somebody if *who == Who::Nobody => refuse(INVALID_ARGUMENT, "user name is empty"),
            Need::Somebody => Ok(()),
            Need::Root => self.root(who),
            Need::Read(span) => self.may(who, Right::Read, span),
            Need::Write(span) => self.may(who, Right::Write, span),
            Need::ReadLease(id) => self.may_all(who, Right::Read, self.leases.get(id).into_iter().flatten()),
            Need::WriteLease(id) => self.may_all(who, Right::Write, self.leases.get(id).into_iter().flatten()),
            Need::ReadAllLeases => self.may_all(who, Right::Read, self.leases.values().flatten()),
            // Root, or the user itself; who is nobody has the empty name.
            Need::Oneself(name) if who.name() == *name => Ok(()),
            Need::OwnRole(role) if self.roles_of(who).contains(*role) => Ok(()),
            Need::Oneself(_) | Need::OwnRole(_) => self.root(who),
        }
    }

    fn root(&self, who: &Who) -> Result<(), Refusal> {
        match self.users.get(who.name()) {
            _ if who.name().is_empty() => refuse(INVALID_ARGUMENT, "user name is empty"),
            None => refuse(FAILED_PRECONDITION, "user name not found"),
            Some(roles) if roles.contains("root") => Ok(()),
            Some(_) => refuse(PERMISSION_DENIED, "permission denied"),
        }
    }

    fn may_all<'a>(&self, who: &Who, right: Right, mut keys: impl Iterator<Item = &'a Bytes>) -> Result<(), Refusal> {
        match self.root(who) {
            Ok(()) => Ok(()),
            Err(_) => keys.try_for_each(|key| self.may(who, right, &at(key))),
        }
    }

    fn may(&self, who: &Who, right: Right, wanted: &Span) -> Result<(), Refusal> {
        if *who == Who::Nobody {
            return refuse(INVALID_ARGUMENT, "user name is empty");
        }
        if matches!(who, Who::Outdated(_)) {
            return refuse(INVALID_ARGUMENT, "revision of auth store is old");
        }
        let roles = self.roles_of(who);
        let granted: Vec<&Span> = roles
            .iter()
            .filter_map(|role| self.roles.get(role))
            .flatten()
            .filter(|(given, _)| *given == right || *given == Right::Both)
            .map(|(_, span)| span)
            .collect();
        if roles.contains("root") || covers(&granted, wanted) {
            return Ok(());
        }
        refuse(PERMISSION_DENIED, "permission denied")
    }

    fn roles_of(&self, who: &Who) -> BTreeSet<String> {
        self.users.get(who.name()).cloned().unwrap_or_default()
    }
}

impl Who {
    fn name(&self) -> &str {
        match self {
            Self::Nobody | Self::Invalid => "",
            Self::User(name) | Self::Outdated(name) => name,
        }
    }
}

impl Ask {
    /// Whether the server looks at a token that comes with it.
    fn asks_who(&self) -> bool {
        !matches!(self, Self::Authenticate | Self::HealthCheck | Self::HealthWatch)
    }
}

fn put_needs(key: &Span, prev_kv: bool, lease: i64) -> Vec<Need> {
    let mut needs = vec![Need::Write(key.clone()), Need::WriteLease(lease)];
    needs.extend(prev_kv.then(|| Need::Read(key.clone())));
    needs
}

fn delete_needs(span: &Span, prev_kv: bool) -> Vec<Need> {
    let mut needs = vec![Need::Write(span.clone())];
    needs.extend(prev_kv.then(|| Need::Read(span.clone())));
    needs
}

fn txn_needs(txn: &Txn) -> Vec<Need> {
    let compares = txn.compare.iter().map(|span| Need::Read(span.clone()));
    let ops = txn.success.iter().chain(&txn.failure).flat_map(|op| match op {
        TxnOp::Range(span) => vec![Need::Read(span.clone())],
        TxnOp::Put { key, prev_kv, lease } => put_needs(key, *prev_kv, *lease),
        TxnOp::Delete { span, prev_kv } => delete_needs(span, *prev_kv),
        TxnOp::Txn(txn) => txn_needs(txn),
        TxnOp::Nothing => Vec::new(),
    });
    compares.chain(ops).collect()
}

/// Whether every key of the wanted span lies in a granted one. Coverage can only change where a granted span begins or
/// ends, so these keys and the first one stand for all.
///
/// A range that holds no key counts as its first key.
fn covers(granted: &[&Span], wanted: &Span) -> bool {
    if is_empty(wanted) {
        return covers(granted, &at(&wanted.key));
    }
    let mut tried: Vec<Bytes> = vec![wanted.key.clone()];
    tried.extend(granted.iter().flat_map(|span| [span.key.clone(), after(span)]));
    tried.iter().filter(|key| holds(wanted, key)).all(|key| granted.iter().any(|span| holds(span, key)))
}

/// Where a span ends; for one without an end a key after all that are used here.
fn after(span: &Span) -> Bytes {
    match &span.end[..] {
        [] => [&span.key[..], b"\0"].concat().into(),
        [0] => Bytes::from_static(&[0xff; 64]),
        end => Bytes::copy_from_slice(end),
    }
}

fn holds(span: &Span, key: &[u8]) -> bool {
    match &span.end[..] {
        [] => span.key == key,
        [0] => key >= &span.key[..],
        end => key >= &span.key[..] && key < end,
    }
}

/// What is wrong with the request itself, which is said before anybody asks who calls.
fn malformed(ask: &Ask) -> Result<(), Refusal> {
    match ask {
        Ask::Range(span) | Ask::SerializableRange(span) | Ask::RangeStream(span) | Ask::Delete { span, .. } => {
            needs_key(span)
        }
        Ask::Put { key, .. } => needs_key(key),
        Ask::Txn(txn) => malformed_txn(txn),
        _ => Ok(()),
    }
}

fn needs_key(span: &Span) -> Result<(), Refusal> {
    if span.key.is_empty() { refuse(INVALID_ARGUMENT, "key is not provided") } else { Ok(()) }
}

fn malformed_txn(txn: &Txn) -> Result<(), Refusal> {
    txn.compare.iter().try_for_each(needs_key)?;
    txn.success.iter().chain(&txn.failure).try_for_each(|op| match op {
        TxnOp::Range(span) | TxnOp::Delete { span, .. } => needs_key(span),
        TxnOp::Put { key, .. } => needs_key(key),
        TxnOp::Txn(txn) => malformed_txn(txn),
        TxnOp::Nothing => refuse(INVALID_ARGUMENT, "key not found"),
    })?;
    let puts = |ops: &[TxnOp]| {
        let keys =
            ops.iter().filter_map(|op| if let TxnOp::Put { key, .. } = op { Some(key.key.clone()) } else { None });
        let keys: Vec<_> = keys.collect();
        keys.iter().collect::<BTreeSet<_>>().len() < keys.len()
    };
    if puts(&txn.success) || puts(&txn.failure) {
        return refuse(INVALID_ARGUMENT, "duplicate key given in txn request");
    }
    Ok(())
}

/// What those hear who may: the arguments are chosen so that the answer is always the same.
fn outcome(ask: &Ask) -> Result<(), Refusal> {
    match ask {
        Ask::LeaseGrant => refuse(FAILED_PRECONDITION, "lease already exists"),
        Ask::Authenticate => refuse(INVALID_ARGUMENT, "authentication failed, invalid user ID or password"),
        Ask::Proclaim { .. } => Err((2, "election: not leader".to_owned())),
        Ask::Watch(span) if is_empty(span) => Err((0, "mvcc: watcher range is empty".to_owned())),
        Ask::Admin(admin) => admin_outcome(*admin),
        _ => Ok(()),
    }
}

fn admin_outcome(admin: Admin) -> Result<(), Refusal> {
    match admin {
        Admin::Compact => refuse(11, "mvcc: required revision is a future revision"),
        Admin::MemberAdd => refuse(FAILED_PRECONDITION, "Peer URLs already exists"),
        Admin::MemberRemove | Admin::MemberUpdate | Admin::MemberPromote => refuse(5, "member not found"),
        Admin::MoveLeader => refuse(FAILED_PRECONDITION, "bad leader transferee"),
        Admin::Downgrade => refuse(INVALID_ARGUMENT, "wrong downgrade target version format"),
        Admin::UserAdd => refuse(FAILED_PRECONDITION, "user name already exists"),
        Admin::UserDelete | Admin::UserChangePassword => refuse(FAILED_PRECONDITION, "user name not found"),
        Admin::UserGrantRole | Admin::UserRevokeRole => refuse(FAILED_PRECONDITION, "user name not found"),
        Admin::RoleAdd => refuse(FAILED_PRECONDITION, "role name already exists"),
        Admin::RoleDelete => refuse(FAILED_PRECONDITION, "role name not found"),
        Admin::RoleGrantPermission | Admin::RoleRevokePermission => refuse(FAILED_PRECONDITION, "role name not found"),
        Admin::AlarmActivate | Admin::AlarmDeactivate | Admin::Defragment | Admin::Hash | Admin::HashKv => Ok(()),
        Admin::Snapshot | Admin::AuthEnable | Admin::AuthDisable | Admin::UserList | Admin::RoleList => Ok(()),
    }
}

/// No key lies in it.
fn is_empty(span: &Span) -> bool {
    !matches!(&span.end[..], [] | [0]) && span.end <= span.key
}

/// How a watch that is refused is told so, on a stream that goes on.
fn in_band(code: u16, text: &str) -> String {
    let name = match code {
        0 => return text.to_owned(),
        INVALID_ARGUMENT => "InvalidArgument",
        UNAUTHENTICATED => "Unauthenticated",
        _ => "PermissionDenied",
    };
    format!("rpc error: code = {name} desc = {text}")
}

/// Lock and Election do not pass codes on.
fn unknown(verdict: Result<(), Refusal>) -> Result<(), Refusal> {
    verdict.map_err(|(_, text)| (2, text))
}
