//! The same requests as JSON: what can be asked for over HTTP, and the answer as gRPC would have told it. Streams are left
//! out, and what has no route.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    ask::{Admin, Ask, IDLE_LEASE, NO_ROLE, NOBODY, SOME_ROLE, SOMEBODY, Span, Txn, TxnOp, queue_key},
    oracle::Refusal,
};

const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Asks over a connection of its own; nothing where the gateway has no such request.
pub fn ask(endpoint: &str, token: Option<&Bytes>, ask: &Ask, peer_url: &str) -> Option<Result<(), Refusal>> {
    let (route, document) = document(ask, peer_url)?;
    let (status, body) = post(endpoint, route, token, &document.to_string());
    if status == 200 {
        return Some(Ok(()));
    }
    let error: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{route}: {status} {body}"));
    let code = error["code"].as_u64().and_then(|code| u16::try_from(code).ok()).expect("a code");
    Some(Err((code, error["message"].as_str().expect("a text").to_owned())))
}

fn post(endpoint: &str, route: &str, token: Option<&Bytes>, document: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(endpoint).expect("the server is up");
    stream.set_read_timeout(Some(ANSWER_MAX)).expect("a socket");
    let mut request = format!("POST {route} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n").into_bytes();
    if let Some(token) = token {
        request.extend_from_slice(b"authorization: ");
        request.extend_from_slice(token);
        request.extend_from_slice(b"\r\n");
    }
    let length = document.len();
    request.extend_from_slice(format!("content-length: {length}\r\n\r\n{document}").as_bytes());
    stream.write_all(&request).expect("sent");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}

fn bytes(bytes: &[u8]) -> Value {
    STANDARD.encode(bytes).into()
}

fn span(span: &Span) -> Value {
    json!({ "key": bytes(&span.key), "range_end": bytes(&span.end) })
}

fn put(key: &Span, prev_kv: bool, lease: i64) -> Value {
    json!({ "key": bytes(&key.key), "value": bytes(b"v"), "prev_kv": prev_kv, "lease": lease })
}

fn delete(deleted: &Span, prev_kv: bool) -> Value {
    json!({ "key": bytes(&deleted.key), "range_end": bytes(&deleted.end), "prev_kv": prev_kv })
}

fn txn(txn: &Txn) -> Value {
    let compare = |span: &Span| {
        json!({
            "key": bytes(&span.key), "range_end": bytes(&span.end),
            "target": "VERSION", "result": "GREATER", "version": 0,
        })
    };
    let op = |op: &TxnOp| match op {
        TxnOp::Range(read) => json!({ "request_range": span(read) }),
        TxnOp::Put { key, prev_kv, lease } => json!({ "request_put": put(key, *prev_kv, *lease) }),
        TxnOp::Delete { span, prev_kv } => json!({ "request_delete_range": delete(span, *prev_kv) }),
        TxnOp::Txn(nested) => json!({ "request_txn": self::txn(nested) }),
        TxnOp::Nothing => json!({}),
    };
    json!({
        "compare": txn.compare.iter().map(compare).collect::<Vec<_>>(),
        "success": txn.success.iter().map(op).collect::<Vec<_>>(),
        "failure": txn.failure.iter().map(op).collect::<Vec<_>>(),
    })
}

/// A place in a queue that nobody has.
fn leader(name: &str, lease: i64) -> Value {
    let key = queue_key(name, lease).key;
    json!({ "name": bytes(name.as_bytes()), "key": bytes(&key), "rev": 1_000_000, "lease": lease })
}

/// Route and document.
fn document(ask: &Ask, peer_url: &str) -> Option<(&'static str, Value)> {
    Some(match ask {
        Ask::Range(read) => ("/v3/kv/range", span(read)),
        Ask::SerializableRange(read) => {
            let range = json!({ "key": bytes(&read.key), "range_end": bytes(&read.end), "serializable": true });
            ("/v3/kv/range", range)
        }
        Ask::Put { key, prev_kv, lease } => ("/v3/kv/put", put(key, *prev_kv, *lease)),
        Ask::Delete { span, prev_kv } => ("/v3/kv/deleterange", delete(span, *prev_kv)),
        Ask::Txn(request) => ("/v3/kv/txn", txn(request)),
        Ask::LeaseGrant => ("/v3/lease/grant", json!({ "TTL": 600, "ID": IDLE_LEASE })),
        Ask::LeaseRevoke(id) => ("/v3/lease/revoke", json!({ "ID": id })),
        Ask::LeaseTimeToLive { id, keys } => ("/v3/lease/timetolive", json!({ "ID": id, "keys": keys })),
        Ask::LeaseLeases => ("/v3/lease/leases", json!({})),
        Ask::MemberList { linearizable } => ("/v3/cluster/member/list", json!({ "linearizable": linearizable })),
        Ask::Status => ("/v3/maintenance/status", json!({})),
        Ask::AlarmGet => ("/v3/maintenance/alarm", json!({})),
        Ask::AuthStatus => ("/v3/auth/status", json!({})),
        Ask::Authenticate => ("/v3/auth/authenticate", json!({ "name": SOMEBODY, "password": "wrong" })),
        Ask::UserGet(name) => ("/v3/auth/user/get", json!({ "name": name })),
        Ask::RoleGet(role) => ("/v3/auth/role/get", json!({ "role": role })),
        Ask::Lock { name, lease } => ("/v3/lock/lock", json!({ "name": bytes(name.as_bytes()), "lease": lease })),
        Ask::Unlock(key) => ("/v3/lock/unlock", json!({ "key": bytes(&key.key) })),
        Ask::Campaign { name, lease } => {
            let campaign = json!({ "name": bytes(name.as_bytes()), "lease": lease, "value": bytes(b"me") });
            ("/v3/election/campaign", campaign)
        }
        Ask::Proclaim { name, lease } => {
            ("/v3/election/proclaim", json!({ "leader": leader(name, *lease), "value": bytes(b"me") }))
        }
        Ask::Leader(name) => ("/v3/election/leader", json!({ "name": bytes(name.as_bytes()) })),
        Ask::Resign { name, lease } => ("/v3/election/resign", json!({ "leader": leader(name, *lease) })),
        Ask::Admin(admin) => return administration(*admin, peer_url),
        Ask::RangeStream(_) | Ask::Watch(_) | Ask::LeaseKeepAlive(_) | Ask::Observe(_) => return None,
        Ask::HealthCheck | Ask::HealthWatch => return None,
    })
}

fn administration(admin: Admin, peer_url: &str) -> Option<(&'static str, Value)> {
    Some(match admin {
        Admin::Compact => ("/v3/kv/compaction", json!({ "revision": 1_i64 << 50 })),
        Admin::MemberAdd => ("/v3/cluster/member/add", json!({ "peerURLs": [peer_url], "isLearner": true })),
        Admin::MemberRemove => ("/v3/cluster/member/remove", json!({ "ID": 77 })),
        Admin::MemberUpdate => ("/v3/cluster/member/update", json!({ "ID": 77, "peerURLs": ["http://127.0.0.1:1"] })),
        Admin::MemberPromote => ("/v3/cluster/member/promote", json!({ "ID": 77 })),
        Admin::AlarmActivate => ("/v3/maintenance/alarm", json!({ "action": "ACTIVATE" })),
        Admin::AlarmDeactivate => ("/v3/maintenance/alarm", json!({ "action": "DEACTIVATE" })),
        Admin::Defragment => ("/v3/maintenance/defragment", json!({})),
        Admin::Hash => return None,
        Admin::HashKv => ("/v3/maintenance/hash", json!({})),
        Admin::Snapshot => return None,
        Admin::MoveLeader => ("/v3/maintenance/transfer-leadership", json!({ "targetID": 77 })),
        Admin::Downgrade => ("/v3/maintenance/downgrade", json!({ "action": "VALIDATE", "version": "x" })),
        Admin::AuthEnable => ("/v3/auth/enable", json!({})),
        Admin::AuthDisable => ("/v3/auth/disable", json!({})),
        Admin::UserAdd => ("/v3/auth/user/add", json!({ "name": SOMEBODY, "password": "x" })),
        Admin::UserList => ("/v3/auth/user/list", json!({})),
        Admin::UserDelete => ("/v3/auth/user/delete", json!({ "name": NOBODY })),
        Admin::UserChangePassword => ("/v3/auth/user/changepw", json!({ "name": NOBODY, "password": "x" })),
        Admin::UserGrantRole => ("/v3/auth/user/grant", json!({ "user": NOBODY, "role": SOME_ROLE })),
        Admin::UserRevokeRole => ("/v3/auth/user/revoke", json!({ "name": NOBODY, "role": SOME_ROLE })),
        Admin::RoleAdd => ("/v3/auth/role/add", json!({ "name": SOME_ROLE })),
        Admin::RoleList => ("/v3/auth/role/list", json!({})),
        Admin::RoleDelete => ("/v3/auth/role/delete", json!({ "role": NO_ROLE })),
        Admin::RoleGrantPermission => {
            ("/v3/auth/role/grant", json!({ "name": NO_ROLE, "perm": { "key": bytes(b"k") } }))
        }
        Admin::RoleRevokePermission => ("/v3/auth/role/revoke", json!({ "role": NO_ROLE, "key": bytes(b"k") })),
    })
}
