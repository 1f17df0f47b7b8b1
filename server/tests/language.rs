//! The language of the scripts: one request a line, and answers as text.
//!
//! ```text
//! put KEY VALUE [lease=ID] [prev] [ignore_value] [ignore_lease]
//! get KEY [END] [rev=N] [limit=N] [sort=none|ascend|descend] [by=key|version|create|mod|value] [keys_only]
//!     [count_only] [serializable] [min_mod=N] [max_mod=N] [min_create=N] [max_create=N]
//! del KEY [END] [prev]
//! txn [ COMPARE , ... ] { OP ; ... } { OP ; ... }     COMPARE = TARGET KEY[..END] = != > < VALUE; OP = put, get, del, txn
//! compact REVISION [physical]      grant ID TTL      revoke ID      expire ID...      ttl ID [keys]      leases      renew ID
//! alarm get|activate|deactivate TYPE [MEMBER]      members [linearizable]      status      defragment
//! member_add|member_learner URL...      member_update ID URL...      member_remove|member_promote|move_leader ID (hex)
//! downgrade validate|enable|cancel VERSION      hash      hash_kv REVISION
//! ```
//! `\0` and `\xNN` stand for bytes, `""` for nothing. An empty list is `[ ]` or `{ }`.

use std::collections::VecDeque;
use std::fmt::Write;

use bytes::Bytes;
use daymark_api::authpb::{Permission, UserAddOptions};
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::compare::TargetUnion;
use daymark_api::etcdserverpb::request_op::Request as Op;
use daymark_api::etcdserverpb::response_op::Response;
use daymark_api::mvccpb;
use daymark_server::request::{Reply, Request};

/// The words of a line that are left.
pub struct Words<'a>(VecDeque<&'a str>);

impl<'a> Words<'a> {
    pub fn new(line: &'a str) -> Self {
        Self(line.split_whitespace().collect())
    }

    pub fn word(&mut self) -> Option<&'a str> {
        self.0.pop_front()
    }

    fn need(&mut self, what: &str) -> &'a str {
        self.word().unwrap_or_else(|| panic!("{what} is missing"))
    }

    fn number(&mut self, what: &str) -> i64 {
        let word = self.need(what);
        word.parse().unwrap_or_else(|_| panic!("{what} is a number, not {word}"))
    }

    /// The id of a member.
    fn id(&mut self) -> u64 {
        u64::from_str_radix(self.need("an id"), 16).expect("a hexadecimal number")
    }

    /// All that are left.
    fn rest(&mut self) -> Vec<String> {
        self.0.drain(..).map(str::to_owned).collect()
    }

    fn expect(&mut self, word: &str) {
        assert_eq!(self.word(), Some(word));
    }

    fn peek(&self) -> Option<&'a str> {
        self.0.front().copied()
    }

    /// The words of one operation or compare: up to one that ends it, which stays.
    fn up_to(&mut self, ends: &[&str]) -> Words<'a> {
        let place = self.0.iter().position(|word| ends.contains(word)).unwrap_or(self.0.len());
        Words(self.0.drain(..place).collect())
    }

    fn end(&self) {
        assert!(self.0.is_empty(), "left over: {:?}", self.0);
    }
}

/// Reads a line that is a request.
pub fn request(line: &str) -> Option<Request> {
    let mut words = Words::new(line);
    let request = match words.need("a command") {
        "put" => Request::Put(put(&mut words)),
        "get" => Request::Range(get(&mut words)),
        "del" => Request::DeleteRange(del(&mut words)),
        "txn" => Request::Txn(txn(&mut words)),
        "compact" => {
            let revision = words.number("revision");
            Request::Compact(pb::CompactionRequest { revision, physical: flag(&mut words, "physical") })
        }
        "grant" => Request::LeaseGrant(pb::LeaseGrantRequest { id: words.number("id"), ttl: words.number("ttl") }),
        "revoke" => Request::LeaseRevoke(pb::LeaseRevokeRequest { id: words.number("id") }),
        "ttl" => {
            let id = words.number("id");
            Request::LeaseTimeToLive(pb::LeaseTimeToLiveRequest { id, keys: flag(&mut words, "keys") })
        }
        "leases" => Request::LeaseLeases(pb::LeaseLeasesRequest {}),
        "alarm" => Request::Alarm(alarm(&mut words)),
        "members" => Request::MemberList(pb::MemberListRequest { linearizable: flag(&mut words, "linearizable") }),
        "status" => Request::Status(pb::StatusRequest {}),
        "defragment" => Request::Defragment(pb::DefragmentRequest {}),
        add @ ("member_add" | "member_learner") => {
            Request::MemberAdd(pb::MemberAddRequest { peer_ur_ls: words.rest(), is_learner: add == "member_learner" })
        }
        "member_update" => {
            let id = words.id();
            Request::MemberUpdate(pb::MemberUpdateRequest { id, peer_ur_ls: words.rest() })
        }
        "member_remove" => Request::MemberRemove(pb::MemberRemoveRequest { id: words.id() }),
        "member_promote" => Request::MemberPromote(pb::MemberPromoteRequest { id: words.id() }),
        "hash" => Request::Hash(pb::HashRequest {}),
        "hash_kv" => Request::HashKv(pb::HashKvRequest { revision: words.number("revision") }),
        "move_leader" => Request::MoveLeader(pb::MoveLeaderRequest { target_id: words.id() }),
        "downgrade" => {
            let action = named(words.need("an action"), &["validate", "enable", "cancel"]);
            let version = words.word().unwrap_or_default().into();
            Request::Downgrade(pb::DowngradeRequest { action, version })
        }
        "auth" => auth(&mut words),
        "user" => user(&mut words),
        "role" => role(&mut words),
        _ => return None,
    };
    words.end();
    Some(request)
}

fn auth(words: &mut Words<'_>) -> Request {
    match words.need("what to do") {
        "enable" => Request::AuthEnable(pb::AuthEnableRequest {}),
        "disable" => Request::AuthDisable(pb::AuthDisableRequest {}),
        "status" => Request::AuthStatus(pb::AuthStatusRequest {}),
        "login" => {
            let (name, password) = (name(words), name(words));
            Request::Authenticate(pb::AuthenticateRequest { name, password })
        }
        other => panic!("auth does not know {other}"),
    }
}

/// A word, `""` for none.
fn name(words: &mut Words<'_>) -> String {
    String::from_utf8(bytes(words.need("a name")).to_vec()).expect("a name is text")
}

fn user(words: &mut Words<'_>) -> Request {
    match words.need("what to do") {
        "add" => {
            let (name, password) = (name(words), name(words));
            let options = flag(words, "no_password").then_some(UserAddOptions { no_password: true });
            Request::UserAdd(pb::AuthUserAddRequest { name, password, options, hashed_password: String::new() })
        }
        "delete" => Request::UserDelete(pb::AuthUserDeleteRequest { name: name(words) }),
        "get" => Request::UserGet(pb::AuthUserGetRequest { name: name(words) }),
        "list" => Request::UserList(pb::AuthUserListRequest {}),
        "passwd" => {
            let (name, password) = (name(words), name(words));
            let hashed_password = words.word().unwrap_or_default().to_owned();
            Request::UserChangePassword(pb::AuthUserChangePasswordRequest { name, password, hashed_password })
        }
        "grant" => Request::UserGrantRole(pb::AuthUserGrantRoleRequest { user: name(words), role: name(words) }),
        "revoke" => Request::UserRevokeRole(pb::AuthUserRevokeRoleRequest { name: name(words), role: name(words) }),
        other => panic!("user does not know {other}"),
    }
}

fn role(words: &mut Words<'_>) -> Request {
    let what = words.need("what to do");
    if what == "list" {
        return Request::RoleList(pb::AuthRoleListRequest {});
    }
    let role = name(words);
    match what {
        "add" => Request::RoleAdd(pb::AuthRoleAddRequest { name: role }),
        "delete" => Request::RoleDelete(pb::AuthRoleDeleteRequest { role }),
        "get" => Request::RoleGet(pb::AuthRoleGetRequest { role }),
        "grant" => {
            let perm = words.word().map(|kind| {
                let perm_type = named(kind, &["read", "write", "readwrite"]);
                let key = bytes(words.need("a key"));
                Permission { perm_type, key, range_end: words.word().map(bytes).unwrap_or_default() }
            });
            Request::RoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: role, perm })
        }
        "revoke" => {
            let key = bytes(words.need("a key"));
            let range_end = words.word().map(bytes).unwrap_or_default();
            Request::RoleRevokePermission(pb::AuthRoleRevokePermissionRequest { role, key, range_end })
        }
        other => panic!("role does not know {other}"),
    }
}

fn put(words: &mut Words<'_>) -> pb::PutRequest {
    let (key, value) = (bytes(words.need("key")), bytes(words.need("value")));
    let mut put = pb::PutRequest { key, value, ..Default::default() };
    while let Some(option) = words.word() {
        match option.split_once('=') {
            Some(("lease", id)) => put.lease = id.parse().expect("a lease id"),
            None if option == "prev" => put.prev_kv = true,
            None if option == "ignore_value" => put.ignore_value = true,
            None if option == "ignore_lease" => put.ignore_lease = true,
            _ => panic!("put does not know {option}"),
        }
    }
    put
}

fn get(words: &mut Words<'_>) -> pb::RangeRequest {
    let mut get = pb::RangeRequest { key: bytes(words.need("key")), ..Default::default() };
    while let Some(option) = words.word() {
        let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{option}: not a number"));
        match option.split_once('=') {
            Some(("rev", n)) => get.revision = number(n),
            Some(("limit", n)) => get.limit = number(n),
            Some(("sort", order)) => get.sort_order = named(order, &["none", "ascend", "descend"]),
            Some(("by", target)) => get.sort_target = named(target, &["key", "version", "create", "mod", "value"]),
            Some(("min_mod", n)) => get.min_mod_revision = number(n),
            Some(("max_mod", n)) => get.max_mod_revision = number(n),
            Some(("min_create", n)) => get.min_create_revision = number(n),
            Some(("max_create", n)) => get.max_create_revision = number(n),
            None if option == "keys_only" => get.keys_only = true,
            None if option == "count_only" => get.count_only = true,
            None if option == "serializable" => get.serializable = true,
            _ => get.range_end = bytes(option),
        }
    }
    get
}

fn del(words: &mut Words<'_>) -> pb::DeleteRangeRequest {
    let mut del = pb::DeleteRangeRequest { key: bytes(words.need("key")), ..Default::default() };
    while let Some(option) = words.word() {
        match option {
            "prev" => del.prev_kv = true,
            end => del.range_end = bytes(end),
        }
    }
    del
}

fn txn(words: &mut Words<'_>) -> pb::TxnRequest {
    words.expect("[");
    let mut compare = Vec::new();
    while words.peek() != Some("]") {
        compare.push(self::compare(&mut words.up_to(&[",", "]"])));
        if words.peek() == Some(",") {
            words.word();
        }
    }
    words.word();
    let (success, failure) = (branch(words), branch(words));
    pb::TxnRequest { compare, success, failure }
}

fn branch(words: &mut Words<'_>) -> Vec<pb::RequestOp> {
    words.expect("{");
    let mut ops = Vec::new();
    while words.peek() != Some("}") {
        let request = match words.need("an operation") {
            "unset" => None,
            "txn" => Some(Op::RequestTxn(txn(words))),
            op => {
                let mut rest = words.up_to(&[";", "}"]);
                Some(match op {
                    "put" => Op::RequestPut(put(&mut rest)),
                    "get" => Op::RequestRange(get(&mut rest)),
                    "del" => Op::RequestDeleteRange(del(&mut rest)),
                    other => panic!("{other} is no operation of a transaction"),
                })
            }
        };
        ops.push(pb::RequestOp { request });
        if words.peek() == Some(";") {
            words.word();
        }
    }
    words.word();
    ops
}

fn compare(words: &mut Words<'_>) -> pb::Compare {
    let target = words.need("a target");
    let keys = words.need("key");
    let (key, range_end) = keys.split_once("..").map_or((keys, Bytes::new()), |(key, end)| (key, bytes(end)));
    let result = match words.need("an operator") {
        "=" => 0,
        ">" => 1,
        "<" => 2,
        "!=" => 3,
        other => other.parse().expect("an operator or a number"),
    };
    let given = words.word();
    let number = || given.map(|given| given.parse().expect("a number"));
    let (target, target_union) = match target {
        "version" => (0, number().map(TargetUnion::Version)),
        "create" => (1, number().map(TargetUnion::CreateRevision)),
        "mod" => (2, number().map(TargetUnion::ModRevision)),
        "value" => (3, given.map(|given| TargetUnion::Value(bytes(given)))),
        "lease" => (4, number().map(TargetUnion::Lease)),
        other => (other.parse().expect("a target or a number"), None),
    };
    words.end();
    pb::Compare { result, target, key: bytes(key), range_end, target_union }
}

fn alarm(words: &mut Words<'_>) -> pb::AlarmRequest {
    let action = named(words.need("an action"), &["get", "activate", "deactivate"]);
    let alarm = named(words.need("a type"), &["none", "nospace", "corrupt"]);
    pb::AlarmRequest { action, alarm, member_id: words.word().map_or(0, |id| id.parse().expect("a member id")) }
}

fn flag(words: &mut Words<'_>, name: &str) -> bool {
    match words.word() {
        None => false,
        Some(word) if word == name => true,
        Some(word) => panic!("{word} is not {name}"),
    }
}

/// An enum value by name, or any number.
fn named(word: &str, names: &[&str]) -> i32 {
    let place = names.iter().position(|name| *name == word);
    place.map_or_else(|| word.parse().unwrap_or_else(|_| panic!("{word} is none of {names:?}")), |place| place as i32)
}

/// Bytes out of a word.
pub fn bytes(word: &str) -> Bytes {
    if word == "\"\"" {
        return Bytes::new();
    }
    let mut out = Vec::new();
    let mut rest = word;
    while let Some(place) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..place]);
        rest = &rest[place + 1..];
        let used = match rest.as_bytes() {
            [b'0', ..] => {
                out.push(0);
                1
            }
            [b'x', ..] => {
                out.push(u8::from_str_radix(&rest[1..3], 16).expect("two hex digits"));
                3
            }
            _ => panic!("unknown escape in {word}"),
        };
        rest = &rest[used..];
    }
    out.extend_from_slice(rest.as_bytes());
    out.into()
}

/// Bytes as a word.
pub fn text(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "\"\"".into();
    }
    let mut out = String::new();
    for byte in bytes {
        match byte {
            0 => out.push_str("\\0"),
            0x21..0x7f if *byte != b'\\' => out.push(char::from(*byte)),
            _ => write!(out, "\\x{byte:02x}").expect("strings grow"),
        }
    }
    out
}

/// A pair as text.
pub fn pair(kv: &mvccpb::KeyValue) -> String {
    let mvccpb::KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
    let lease = if *lease == 0 { String::new() } else { format!(" lease={lease}") };
    format!("{}={} c{create_revision} m{mod_revision} v{version}{lease}", text(key), text(value))
}

/// An answer as text, a line for each thing in it.
pub fn reply(reply: &Reply) -> String {
    let mut out = String::new();
    match reply {
        Reply::Range(range) => self::range(range, "", &mut out),
        Reply::Put(put) => self::put_reply(put, "", &mut out),
        Reply::DeleteRange(deleted) => self::deleted(deleted, "", &mut out),
        Reply::Txn(txn) => self::txn_reply(txn, "", &mut out),
        Reply::Compact(compact) => line(&mut out, "", &compact.header, "compacted"),
        Reply::LeaseGrant(grant) => line(&mut out, "", &grant.header, &format!("lease {} ttl {}", grant.id, grant.ttl)),
        Reply::LeaseRevoke(revoke) => line(&mut out, "", &revoke.header, "revoked"),
        Reply::LeaseTimeToLive(ttl) => {
            let keys: Vec<_> = ttl.keys.iter().map(|key| text(key)).collect();
            // What is left depends on how long the script took.
            let left = if ttl.ttl >= 0 { "running" } else { "unknown" };
            let words = format!("lease {} {left} granted {} keys {keys:?}", ttl.id, ttl.granted_ttl);
            line(&mut out, "", &ttl.header, &words);
        }
        Reply::LeaseLeases(leases) => {
            let ids: Vec<_> = leases.leases.iter().map(|lease| lease.id).collect();
            line(&mut out, "", &leases.header, &format!("leases {ids:?}"));
        }
        Reply::MemberList(list) => members(&list.header, &list.members, &mut out),
        Reply::MemberAdd(add) => members(&add.header, &add.members, &mut out),
        Reply::MemberRemove(remove) => members(&remove.header, &remove.members, &mut out),
        Reply::MemberUpdate(update) => members(&update.header, &update.members, &mut out),
        Reply::MemberPromote(promote) => members(&promote.header, &promote.members, &mut out),
        Reply::Hash(hash) => line(&mut out, "", &hash.header, &format!("hash {}", hash.hash > 0)),
        Reply::HashKv(hash) => {
            let words = format!("hash {:08x} at {} compacted {}", hash.hash, hash.hash_revision, hash.compact_revision);
            line(&mut out, "", &hash.header, &words);
        }
        Reply::MoveLeader(moved) => line(&mut out, "", &moved.header, "moved"),
        Reply::Downgrade(downgrade) => line(&mut out, "", &downgrade.header, &format!("version {}", downgrade.version)),
        Reply::Alarm(alarm) => {
            let alarms: Vec<_> = alarm.alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm)).collect();
            line(&mut out, "", &alarm.header, &format!("alarms {alarms:?}"));
        }
        Reply::Status(status) => {
            let pb::StatusResponse { version, leader, errors, is_learner, storage_version, .. } = status;
            let words = format!("version {version} storage {storage_version} leader {leader:x} learner={is_learner}");
            line(&mut out, "", &status.header, &words);
            let sizes = (status.db_size > 0, status.db_size_quota, status.downgrade_info.is_some());
            let indexes = status.raft_applied_index > 0 && status.raft_index >= status.raft_applied_index;
            writeln!(out, "  errors {errors:?} sizes {sizes:?} indexes={indexes} term={}", status.raft_term > 0)
                .expect("grows");
        }
        Reply::Defragment(defragment) => line(&mut out, "", &defragment.header, "done"),
        Reply::AuthEnable(reply) => line(&mut out, "", &reply.header, "enabled"),
        Reply::AuthDisable(reply) => line(&mut out, "", &reply.header, "disabled"),
        Reply::AuthStatus(reply) => {
            let words = format!("enabled {} auth revision {}", reply.enabled, reply.auth_revision);
            line(&mut out, "", &reply.header, &words);
        }
        Reply::Authenticate(reply) => {
            // Letters by chance, then the index of a log entry.
            let (letters, index) = reply.token.split_once('.').expect("a simple token");
            assert!(letters.len() == 16 && letters.bytes().all(|letter| letter.is_ascii_alphabetic()));
            assert!(index.parse::<u64>().is_ok_and(|index| index > 0));
            line(&mut out, "", &reply.header, "logged in");
        }
        Reply::UserAdd(reply) => line(&mut out, "", &reply.header, "user added"),
        Reply::UserGet(reply) => line(&mut out, "", &reply.header, &format!("roles {:?}", reply.roles)),
        Reply::UserList(reply) => line(&mut out, "", &reply.header, &format!("users {:?}", reply.users)),
        Reply::UserDelete(reply) => line(&mut out, "", &reply.header, "user deleted"),
        Reply::UserChangePassword(reply) => line(&mut out, "", &reply.header, "password changed"),
        Reply::UserGrantRole(reply) => line(&mut out, "", &reply.header, "role granted"),
        Reply::UserRevokeRole(reply) => line(&mut out, "", &reply.header, "role revoked"),
        Reply::RoleAdd(reply) => line(&mut out, "", &reply.header, "role added"),
        Reply::RoleGet(reply) => {
            line(&mut out, "", &reply.header, "role");
            for Permission { perm_type, key, range_end } in &reply.perm {
                writeln!(out, "  {perm_type} {} {}", text(key), text(range_end)).expect("strings grow");
            }
        }
        Reply::RoleList(reply) => line(&mut out, "", &reply.header, &format!("roles {:?}", reply.roles)),
        Reply::RoleDelete(reply) => line(&mut out, "", &reply.header, "role deleted"),
        Reply::RoleGrantPermission(reply) => line(&mut out, "", &reply.header, "permission granted"),
        Reply::RoleRevokePermission(reply) => line(&mut out, "", &reply.header, "permission revoked"),
        other => writeln!(out, "{other:?}").expect("strings grow"),
    }
    out
}

fn members(header: &Option<pb::ResponseHeader>, members: &[pb::Member], out: &mut String) {
    line(out, "", header, "members");
    for member in members {
        let pb::Member { id, name, peer_ur_ls, client_ur_ls, is_learner } = member;
        writeln!(out, "  {id:x} {name:?} {peer_ur_ls:?} {client_ur_ls:?} learner={is_learner}").expect("grows");
    }
}

fn line(out: &mut String, indent: &str, header: &Option<pb::ResponseHeader>, words: &str) {
    match header {
        Some(header) => writeln!(out, "{indent}@{} {words}", header.revision),
        None => writeln!(out, "{indent}no header: {words}"),
    }
    .expect("strings grow");
}

fn range(range: &pb::RangeResponse, indent: &str, out: &mut String) {
    let more = if range.more { " more" } else { "" };
    line(out, indent, &range.header, &format!("count {}{more}", range.count));
    for kv in &range.kvs {
        writeln!(out, "{indent}  {}", pair(kv)).expect("strings grow");
    }
}

fn put_reply(put: &pb::PutResponse, indent: &str, out: &mut String) {
    let prev = put.prev_kv.as_ref().map(|kv| format!(", was {}", pair(kv))).unwrap_or_default();
    line(out, indent, &put.header, &format!("put{prev}"));
}

fn deleted(deleted: &pb::DeleteRangeResponse, indent: &str, out: &mut String) {
    line(out, indent, &deleted.header, &format!("deleted {}", deleted.deleted));
    for kv in &deleted.prev_kvs {
        writeln!(out, "{indent}  {}", pair(kv)).expect("strings grow");
    }
}

fn txn_reply(txn: &pb::TxnResponse, indent: &str, out: &mut String) {
    line(out, indent, &txn.header, if txn.succeeded { "success" } else { "failure" });
    let indent = format!("{indent}  ");
    for response in &txn.responses {
        match &response.response {
            Some(Response::ResponseRange(range)) => self::range(range, &indent, out),
            Some(Response::ResponsePut(put)) => self::put_reply(put, &indent, out),
            Some(Response::ResponseDeleteRange(deleted)) => self::deleted(deleted, &indent, out),
            Some(Response::ResponseTxn(txn)) => self::txn_reply(txn, &indent, out),
            None => writeln!(out, "{indent}nothing").expect("strings grow"),
        }
    }
}
