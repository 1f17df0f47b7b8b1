//! The requests that both servers get, in order, on one store: every route with a good body, then what can be wrong with
//! bodies, headers, methods and paths, then the plain routes, then all with users.

use std::fmt;

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Lines to wait for if the answer has no end.
    pub lines: usize,
    /// Why the two answers are not compared.
    pub known_difference: Option<&'static str>,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let body: String = body.chars().take(120).collect();
        write!(f, "{} {} {:?} {body}", self.method, self.path, self.headers)
    }
}

impl Request {
    /// One without headers.
    pub fn new(method: &'static str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: body.into(), lines: 0, known_difference: None }
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn lines(self, lines: usize) -> Self {
        Self { lines, ..self }
    }

    fn differs(self, why: &'static str) -> Self {
        Self { known_difference: Some(why), ..self }
    }

    /// With the server's own token where it stands for one.
    pub fn with_token(&self, token: &str) -> Self {
        let headers = self.headers.iter().map(|(name, value)| (*name, value.replace("TOKEN", token)));
        Self { headers: headers.collect(), ..self.clone() }
    }
}

fn post(path: &str, body: &str) -> Request {
    Request::new("POST", path, body)
}

fn get(path: &str) -> Request {
    Request::new("GET", path, "")
}

/// All of them.
pub fn table() -> Vec<Request> {
    [routes(), documents(), envelopes(), paths(), plain(), users()].concat()
}

/// Every route, with what it is for.
fn routes() -> Vec<Request> {
    let mut all: Vec<Request> = [
        ("/v3/kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
        ("/v3/kv/put", r#"{"key":"Zm9v","value":"/++/","prev_kv":true}"#),
        ("/v3/kv/put", r#"{"key":"Zm9w","value":"_--_","lease":"0","prevKv":true}"#),
        ("/v3/kv/put", r#"{"key":"Zm9w","ignore_value":true,"value":"eA=="}"#),
        ("/v3/kv/put", r#"{"key":"bm90aGluZw==","ignore_value":true}"#),
        ("/v3/kv/put", r#"{"key":"Zm9w","lease":99}"#),
        ("/v3/kv/range", r#"{"key":"Zm9v"}"#),
        ("/v3/kv/range", r#"{"key":"Zg==","range_end":"Zw=="}"#),
        ("/v3/kv/range", r#"{"key":"AA==","rangeEnd":"AA==","limit":1,"sort_order":"DESCEND","sortTarget":"MOD"}"#),
        ("/v3/kv/range", r#"{"key":"AA==","range_end":"AA==","count_only":true}"#),
        ("/v3/kv/range", r#"{"key":"Zm9v","revision":"1"}"#),
        ("/v3/kv/range", r#"{"key":"Zm9v","revision":1000}"#),
        ("/v3/kv/range", r#"{"key":"Zm9v","sort_order":7}"#),
        ("/v3/kv/range", r#"{"key":"Zm9v","sort_order":"NOSUCH"}"#),
        ("/v3/kv/txn", "{}"),
        (
            "/v3/kv/txn",
            r#"{"compare":[{"key":"Zm9v","target":"VALUE","result":"EQUAL","value":"/++/"},{"key":"Zm9v","target":0,"version":"2"}],
                "success":[{"request_range":{"key":"Zm9v"}},{"requestPut":{"key":"bmV3","value":"MQ==","prev_kv":true}},
                {"request_delete_range":{"key":"Zm9w","prev_kv":true}},{"request_txn":{"failure":[{"request_put":{"key":"eA=="}}]}}],
                "failure":[{"request_put":{"key":"ZmFpbA=="}}]}"#,
        ),
        ("/v3/kv/txn", r#"{"compare":[{"key":"Zm9v","createRevision":"9"}],"failure":[{"requestRange":{"key":"bmV3"}}]}"#),
        ("/v3/kv/txn", r#"{"success":[{"request_put":{"key":"YQ=="}},{"request_put":{"key":"YQ=="}}]}"#),
        ("/v3/kv/txn", r#"{"success":[{}]}"#),
        ("/v3/kv/deleterange", r#"{"key":"bmV3","prev_kv":true}"#),
        ("/v3/kv/deleterange", r#"{"key":"bmV3"}"#),
        ("/v3/kv/deleterange", "{}"),
        ("/v3/kv/compaction", r#"{"revision":3}"#),
        ("/v3/kv/compaction", r#"{"revision":"3","physical":true}"#),
        ("/v3/kv/compaction", r#"{"revision":1000}"#),
        ("/v3/kv/range", r#"{"key":"Zm9v","revision":2}"#),
        ("/v3/lease/grant", r#"{"TTL":600,"ID":7587}"#),
        ("/v3/lease/grant", r#"{"TTL":"600","ID":"7587"}"#),
        ("/v3/lease/grant", r#"{"TTL":9000000001,"ID":5}"#),
        ("/v3/lease/grant", r#"{"TTL":"50"}"#),
        ("/v3/kv/put", r#"{"key":"bGVhc2Vk","lease":"7587"}"#),
        ("/v3/lease/timetolive", r#"{"ID":7587,"keys":true}"#),
        ("/v3/kv/lease/timetolive", r#"{"ID":1}"#),
        ("/v3/lease/leases", "{}"),
        ("/v3/kv/lease/leases", ""),
        ("/v3/lease/revoke", r#"{"ID":7587}"#),
        ("/v3/kv/lease/revoke", r#"{"ID":7587}"#),
        ("/v3/cluster/member/list", "{}"),
        ("/v3/cluster/member/list", r#"{"linearizable":true}"#),
        ("/v3/cluster/member/add", r#"{"peerURLs":["nonsense"]}"#),
        ("/v3/cluster/member/remove", r#"{"ID":"1"}"#),
        ("/v3/cluster/member/update", r#"{"ID":1,"peerURLs":["http://127.0.0.1:1"]}"#),
        ("/v3/cluster/member/promote", r#"{"ID":"18446744073709551615"}"#),
        ("/v3/maintenance/alarm", "{}"),
        ("/v3/maintenance/alarm", r#"{"action":"ACTIVATE","memberID":"77","alarm":"CORRUPT"}"#),
        ("/v3/maintenance/alarm", r#"{"action":"DEACTIVATE","memberID":77,"alarm":2}"#),
        ("/v3/maintenance/status", ""),
        ("/v3/maintenance/defragment", "{}"),
        ("/v3/maintenance/hash", "{}"),
        ("/v3/maintenance/hashkv", r#"{"revision":0}"#),
        ("/v3/maintenance/hashkv", r#"{"revision":100000}"#),
        ("/v3/maintenance/transfer-leadership", r#"{"targetID":1}"#),
        ("/v3/maintenance/downgrade", r#"{"action":"VALIDATE","version":"nonsense"}"#),
        ("/v3/maintenance/downgrade", r#"{"action":9,"version":"3.6"}"#),
        ("/v3/auth/status", "{}"),
        ("/v3/auth/enable", "{}"),
        ("/v3/auth/disable", "{}"),
        ("/v3/auth/authenticate", r#"{"name":"a","password":"b"}"#),
        ("/v3/auth/user/add", r#"{"name":""}"#),
        ("/v3/auth/user/add", r#"{"name":"ann","password":"pass"}"#),
        ("/v3/auth/user/add", r#"{"name":"bob","options":{"no_password":true}}"#),
        ("/v3/auth/user/get", r#"{"name":"ann"}"#),
        ("/v3/auth/user/get", r#"{"name":"nobody"}"#),
        ("/v3/auth/user/list", ""),
        ("/v3/auth/user/changepw", r#"{"name":"ann","password":"new"}"#),
        ("/v3/auth/role/add", r#"{"name":"reader"}"#),
        ("/v3/auth/role/add", r#"{"name":"reader"}"#),
        ("/v3/auth/role/grant", r#"{"name":"reader","perm":{"permType":"READ","key":"Zm9v","range_end":"AA=="}}"#),
        ("/v3/auth/role/grant", r#"{"name":"reader","perm":{"key":"Zm9v"}}"#),
        ("/v3/auth/role/grant", r#"{"name":"reader"}"#),
        ("/v3/auth/role/get", r#"{"role":"reader"}"#),
        ("/v3/auth/role/list", "{}"),
        ("/v3/auth/user/grant", r#"{"user":"ann","role":"reader"}"#),
        ("/v3/auth/user/revoke", r#"{"name":"ann","role":"nothing"}"#),
        ("/v3/auth/role/revoke", r#"{"role":"reader","key":"Zm9v"}"#),
        ("/v3/auth/role/delete", r#"{"role":"nothing"}"#),
        ("/v3/auth/user/delete", r#"{"name":"bob"}"#),
        ("/v3/lease/grant", r#"{"TTL":600,"ID":11}"#),
        ("/v3/lock/lock", r#"{"name":"bXV0ZXg=","lease":"11"}"#),
        ("/v3/lock/lock", r#"{"name":"bXV0ZXg=","lease":"12"}"#),
        ("/v3/lock/unlock", r#"{"key":"bXV0ZXgvYg=="}"#),
        ("/v3/election/campaign", r#"{"name":"ZWxlY3Q=","lease":11,"value":"bWU="}"#),
        ("/v3/election/leader", r#"{"name":"ZWxlY3Q="}"#),
        ("/v3/election/leader", r#"{"name":"bm9ib2R5"}"#),
        ("/v3/election/proclaim", "{}"),
        ("/v3/election/proclaim", r#"{"leader":{"name":"ZWxlY3Q=","key":"ZWxlY3QvYg==","rev":"1","lease":"11"},"value":"eA=="}"#),
        ("/v3/election/resign", r#"{"leader":{"name":"ZWxlY3Q=","key":"ZWxlY3QvYg==","rev":1}}"#),
    ]
    .into_iter()
    .map(|(path, body)| post(path, body))
    .collect();
    all.extend([
        post("/v3/election/observe", r#"{"name":"ZWxlY3Q="}"#).lines(1),
        post("/v3/lease/keepalive", r#"{"ID":11}"#).lines(1),
        post("/v3/lease/keepalive", r#"{"ID":"11"}{"ID":4040}  {"ID":11}"#).lines(3),
        post("/v3/lease/keepalive", r#"{"ID":11}nonsense"#).lines(1),
        post("/v3/lease/keepalive", ""),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":"4"}}"#).lines(2),
        post("/v3/watch", r#"{"create_request":{"key":"AA==","rangeEnd":"AA==","startRevision":4,"prev_kv":true,"filters":["NODELETE"]}}"#)
            .lines(2),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":1}}"#).lines(2),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v","start_revision":-1}}"#).lines(1),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v","range_end":"YQ=="}}"#).lines(1),
        post("/v3/watch", r#"{"create_request":{"key":"Zm9v","watch_id":"7"}} {"cancel_request":{"watch_id":7}}"#).lines(2),
        post("/v3/watch", r#"{"progress_request":{}}"#).lines(1),
    ]);
    all
}

/// What can be wrong, or only strange, with a document.
fn documents() -> Vec<Request> {
    let bodies: &[&[u8]] = &[
        b"",
        b" \n\t ",
        b"null",
        b"[]",
        b"5",
        b"\"x\"",
        b"true",
        b"{",
        b"}",
        b"{\"key\":",
        b"{key:1}",
        b"{'key':1}",
        b"{\"key\":\"Zm9v\",}",
        b"{\"key\":\"Zm9v\"} garbage",
        b"{\"key\":\"Zm9v\"}{\"key\":\"YQ==\"}",
        b"{\"key\":\"Zm9v\"]",
        b"{\"key\" \"Zm9v\"}",
        b"{\"key\":\"Zm9v\" \"limit\":1}",
        b"{\"key\":null}",
        b"{\"key\":5}",
        b"{\"key\":true}",
        b"{\"key\":{}}",
        b"{\"key\":[\"Zm9v\"]}",
        b"{\"key\":\"Zm9\"}",
        b"{\"key\":\"Zm9v=\"}",
        b"{\"key\":\"Zm9vZg\"}",
        b"{\"key\":\"Zm9vZh==\"}",
        b"{\"key\":\"Z!9v\"}",
        b"{\"key\":\"Zm\\n9v\"}",
        b"{\"key\":\"_-8=\"}",
        b"{\"key\":\"+-8=\"}",
        b"{\"key\":\"\\u005a\\u006d9v\"}",
        b"{\"key\":\"\\ud83d\\ude00\"}",
        b"{\"key\":\"\\ud83d\"}",
        b"{\"key\":\"\\ud83dabcdefgh\"}",
        b"{\"key\":\"\\x\"}",
        b"{\"key\":\"\\u12g4\"}",
        b"{\"key\":\"a\nb\"}",
        b"{\"key\":\"\xff\xfe\"}",
        b"{\"k\xff\":1}",
        b"{\"unknown\":\"\xff\"}",
        b"{\"unknown\":{\"a\":[1,{\"b\":null}]},\"key\":\"Zm9v\"}",
        b"{\"[ext]\":1,\"key\":\"Zm9v\"}",
        b"{\"@type\":1,\"key\":\"Zm9v\"}",
        b"{\"key\":\"Zm9v\",\"key\":\"Zm9v\"}",
        b"{\"range_end\":\"Zm9v\",\"rangeEnd\":\"Zm9v\"}",
        b"{\"Key\":\"Zm9v\"}",
        b"{\"key\":\"Zm9v\",\"limit\":\"1\"}",
        b"{\"key\":\"Zm9v\",\"limit\":1.0}",
        b"{\"key\":\"Zm9v\",\"limit\":1e0}",
        b"{\"key\":\"Zm9v\",\"limit\":\"1e2\"}",
        b"{\"key\":\"Zm9v\",\"limit\":1.5}",
        b"{\"key\":\"Zm9v\",\"limit\":\" 1\"}",
        b"{\"key\":\"Zm9v\",\"limit\":\"1 2\"}",
        b"{\"key\":\"Zm9v\",\"limit\":\"\"}",
        b"{\"key\":\"Zm9v\",\"limit\":\"x\"}",
        b"{\"key\":\"Zm9v\",\"limit\":01}",
        b"{\"key\":\"Zm9v\",\"limit\":-}",
        b"{\"key\":\"Zm9v\",\"limit\":1.}",
        b"{\"key\":\"Zm9v\",\"limit\":1e}",
        b"{\"key\":\"Zm9v\",\"limit\":9223372036854775807}",
        b"{\"key\":\"Zm9v\",\"limit\":9223372036854775808}",
        b"{\"key\":\"Zm9v\",\"limit\":1e400}",
        b"{\"key\":\"Zm9v\",\"limit\":true}",
        b"{\"key\":\"Zm9v\",\"serializable\":1}",
        b"{\"key\":\"Zm9v\",\"serializable\":\"true\"}",
        b"{\"key\":\"Zm9v\",\"serializable\":tru}",
        b"{\"key\":\"Zm9v\",\"sort_order\":1.5}",
        b"{\"key\":\"Zm9v\",\"sort_order\":\"ascend\"}",
        b"{\"key\":\"Zm9v\",\"sort_order\":99999999999}",
        b"{\"key\":\"Zm9v\",\"sort_order\":true}",
        b"{\"key\":\"Zm9v\",\"sort_order\":null,\"limit\":null}",
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"nul",
        b"nulx",
        b"-x",
        b"\x80",
        b"{\"key\":\"Zm9v\",\n\"limit\":\n  \"z\"}",
        b"{\"\xc3\xa9\":1, \"limit\":{}}",
    ];
    let mut all: Vec<_> = bodies.iter().map(|body| Request::new("POST", "/v3/kv/range", *body)).collect();
    let nested =
        |depth: usize| [r#"{"success":[{"request_txn":"#.repeat(depth), "{}".into(), "}]}".repeat(depth)].concat();
    all.extend([
        post("/v3/kv/txn", r#"{"compare":[{"version":1,"lease":1}]}"#),
        post("/v3/kv/txn", r#"{"success":[{"request_put":{},"request_range":{}}]}"#),
        post("/v3/kv/txn", r#"{"success":{"request_put":{}}}"#),
        post("/v3/kv/txn", r#"{"success":[1]}"#),
        post("/v3/kv/txn", r#"{"success":[null]}"#),
        post("/v3/kv/txn", r#"{"success":null}"#),
        post("/v3/kv/txn", &nested(20)),
        post("/v3/kv/txn", &nested(48)),
        post("/v3/kv/txn", &nested(3000)),
        post("/v3/kv/range", &format!("{{\"x\":{}{}}}", "[".repeat(9_990), "]".repeat(9_990))),
        post("/v3/kv/range", &"[".repeat(10_001)),
        post("/v3/cluster/member/add", r#"{"peerURLs":"http://127.0.0.1:1"}"#),
        post("/v3/cluster/member/add", r#"{"peerURLs":[5]}"#),
        post("/v3/watch", "nonsense").lines(1).differs("both are silent until the caller goes: nothing to compare"),
        post("/v3/kv/put", &format!("{{\"key\":\"YmlnCg==\",\"value\":\"{}\"}}", "QUFB".repeat(400_000))),
        post("/v3/kv/put", &format!("{{\"key\":\"YmlnCg==\",\"value\":\"{}\"}}", "QUFB".repeat(524_000))),
        post("/v3/kv/put", &format!("{{\"key\":\"YmlnCg==\",\"value\":\"{}\"}}", "QUFB".repeat(700_000))),
    ]);
    all.retain(|request| request.known_difference.is_none());
    all
}

/// Headers and methods.
fn envelopes() -> Vec<Request> {
    let range = || post("/v3/kv/range", r#"{"key":"Zm9v","count_only":true}"#);
    let mut all: Vec<_> = ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "FOO"]
        .into_iter()
        .flat_map(|method| ["/v3/kv/range", "/v3/nowhere"].map(|path| Request::new(method, path, "")))
        .collect();
    for value in ["5S", "1n", "0S", "-1S", "5x", "5", "", "99999999999999999999S"] {
        all.push(range().header("Grpc-Timeout", value));
    }
    for (name, value) in [
        ("Grpc-Metadata-X-Bin", "!!"),
        ("Grpc-Metadata-X-Bin", "AAE="),
        ("Grpc-Metadata-Hasleader", "true"),
        ("Grpc-Metadata-Client-Api-Version", "3.7"),
        ("Authorization", "whatever"),
        ("Authorization", "Bearer whatever"),
        ("Content-Type", "application/json"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Content-Type", "nonsense;;"),
        ("Accept", "text/html"),
        ("TE", "trailers"),
        ("Origin", "http://elsewhere"),
        ("Host", "elsewhere"),
        ("Host", "elsewhere:99"),
        ("Upgrade", "websocket"),
        ("Expect", "100-continue"),
    ] {
        if name != "Expect" {
            all.push(range().header(name, value));
        }
    }
    for method in ["GET", "post", "PUT"] {
        let form = range().header("Content-Type", "application/x-www-form-urlencoded");
        all.push(form.header("X-HTTP-Method-Override", method));
        all.push(range().header("X-HTTP-Method-Override", method));
    }
    // Hand-shakes that are none.
    let socket = |method, key: &str, version: &str| {
        let request = Request::new(method, "/v3/watch", "").header("Connection", "Upgrade");
        let request = request.header("Upgrade", "websocket").header("Sec-WebSocket-Version", version);
        if key.is_empty() { request } else { request.header("Sec-WebSocket-Key", key) }
    };
    all.extend([
        socket("POST", "dGhlIHNhbXBsZSBub25jZQ==", "13"),
        socket("GET", "", "13"),
        socket("GET", "dGhlIHNhbXBsZSBub25jZQ==", "12"),
    ]);
    all
}

/// Paths that are not quite those of a route.
fn paths() -> Vec<Request> {
    let paths = [
        "/v3",
        "/v3/",
        "/v3//kv/range",
        "/v3/kv/../kv/range",
        "/v3/./kv/range",
        "/v3/kv/range/",
        "/v3/kv/%72ange",
        "/v3/kv%2Frange",
        "/v3/KV/range",
        "/v3/kv/range?x=y",
        "/v3//kv/range?x=y&z=%20",
        "/v3beta/kv/range",
        "/v3beta/nowhere",
        "/v3beta",
        "/v3alpha/kv/range",
        "/v3/health",
        "/v2/keys",
        "/",
        "//",
        "/nowhere",
        "/health/",
        "/etcdserverpb.KV/Range",
        "/v3/kv/range:verb",
        "/v3/kv",
        "/members",
        "/debug",
        "/debug/pprof/",
        "/debug/pprof",
        "/debug/requests",
        "/config/local/log",
    ];
    paths.iter().flat_map(|path| [post(path, r#"{"key":"Zm9v","count_only":true}"#), get(path)]).collect()
}

/// Health and version in every verb and with every parameter.
fn plain() -> Vec<Request> {
    let paths = [
        "/health",
        "/health?serializable=true",
        "/health?serializable=false",
        "/health?exclude=NOSPACE",
        "/health?exclude=NOSPACE&exclude=CORRUPT",
        "/health?exclude=",
        "/health?serializable=%74rue",
        "/livez",
        "/livez?verbose",
        "/livez?verbose=true",
        "/livez?exclude=serializable_read&verbose",
        "/livez?exclude=nonsense",
        "/livez/serializable_read",
        "/livez/serializable_read?verbose",
        "/livez/data_corruption",
        "/livez/",
        "/readyz",
        "/readyz/data_corruption?verbose",
        "/readyz/linearizable_read?verbose=",
        "/readyz/non_learner?verbose",
        "/readyz/serializable_read?verbose",
        "/readyz/nonsense",
        "/readyz?exclude=data_corruption",
        "/version",
        "/version/",
    ];
    let mut all: Vec<_> = paths.iter().map(|path| get(path)).collect();
    for method in ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"] {
        all.extend(["/health", "/livez", "/readyz/non_learner", "/version"].map(|path| Request::new(method, path, "")));
    }
    let alarm = |action: &str, alarm: &str| {
        post("/v3/maintenance/alarm", &format!(r#"{{"action":"{action}","memberID":"77","alarm":"{alarm}"}}"#))
    };
    for kind in ["NOSPACE", "CORRUPT"] {
        all.push(alarm("ACTIVATE", kind));
        let paths =
            ["/health", "/health?exclude=NOSPACE", "/health?exclude=CORRUPT", "/livez", "/readyz/data_corruption"];
        all.extend(paths.map(get));
        all.push(post("/v3/kv/put", r#"{"key":"YQ=="}"#));
        all.push(alarm("DEACTIVATE", kind));
    }
    all
}

/// With users: who may what, and how a refusal looks.
fn users() -> Vec<Request> {
    let range = |path: &str| post(path, r#"{"key":"Zm9v","count_only":true}"#);
    let mut all: Vec<Request> = [
        ("/v3/auth/user/add", r#"{"name":"root","password":"root"}"#),
        ("/v3/auth/role/add", r#"{"name":"root"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/enable", "{}"),
        ("/v3/auth/status", "{}"),
        ("/v3/auth/authenticate", r#"{"name":"root","password":"wrong"}"#),
        ("/v3/auth/authenticate", r#"{"name":"ann","password":"new"}"#),
    ]
    .into_iter()
    .map(|(path, body)| post(path, body))
    .collect();
    let watch = || post("/v3/watch", r#"{"create_request":{"key":"eA=="}}"#);
    all.extend([
        range("/v3/kv/range"),
        range("/v3/kv/range").header("Authorization", "nonsense"),
        range("/v3/kv/range").header("Authorization", "TOKEN"),
        range("/v3/kv/range").header("Authorization", "Bearer TOKEN"),
        range("/v3/kv/range").header("Grpc-Metadata-Token", "TOKEN"),
        range("/v3/kv/deleterange").header("Authorization", "TOKEN"),
        post("/v3/auth/user/list", "{}").header("Authorization", "TOKEN"),
        post("/v3/lease/keepalive", r#"{"ID":11}"#),
        post("/v3/lease/keepalive", r#"{"ID":11}"#).header("Authorization", "nonsense"),
        post("/v3/maintenance/snapshot", "{}").header("Authorization", "TOKEN"),
        post("/v3/maintenance/snapshot", "{}").header("Authorization", "nonsense"),
        post("/v3/election/observe", r#"{"name":"ZWxlY3Q="}"#)
            .header("Authorization", "nonsense")
            .lines(1)
            .differs("etcd ends a refused Observe without a word, which looks like the end of an election"),
        watch().lines(1),
        watch().header("Authorization", "TOKEN").lines(1),
        watch().header("Authorization", "nonsense").lines(1),
        post("/v3/auth/authenticate", r#"{"name":"root","password":"root"}"#),
        watch().header("Authorization", "TOKEN").lines(1),
        post("/v3/auth/disable", "{}").header("Authorization", "TOKEN"),
        range("/v3/kv/range"),
    ]);
    all
}
