//! The plain HTTP routes: health, version, metrics, with etcd's bodies and status codes, and what all routes share: allowed
//! hosts and origins, paths in their shortest form. Hands the JSON form of the API to `gateway`.

use std::borrow::Cow;
use std::rc::Rc;

use ::http::header::{self, HeaderValue};
use ::http::{HeaderMap, Method, Request, Response, StatusCode};
use bytes::Bytes;
use hyper::body::Body;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::accept::Role;
use super::body::{self, ResponseBody};
use super::connection::Caller;
use super::gateway::websocket::{self, UpgradeSlot};
use super::{FrontDoor, Thread, debug, gateway};
use crate::request::Context;

/// As etcd has it: whoever shows a certificate would think that its name counts here.
const NAME_IGNORED: &str =
    "CommonName of client sending a request against gateway will be ignored and not used as expected\n";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// The text form of metrics.
const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Kinds of alarm, by their numbers on the wire.
const NO_SPACE: i32 = 1;
const CORRUPT: i32 = 2;
/// What a path spells out only percent-encoded, as Go writes it.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Answers one request, which came over HTTP/1 or, encrypted, over HTTP/2. `upgrade` is where a WebSocket is left to
/// whoever drives the connection, if it can be one.
pub(crate) async fn respond<D: FrontDoor, B: Body<Data = Bytes> + 'static>(
    thread: &Rc<Thread<D>>,
    caller: &Caller,
    upgrade: Option<&UpgradeSlot>,
    request: Request<B>,
) -> Response<ResponseBody> {
    let role = caller.role;
    // A page that was led here by a forged name cannot have been encrypted with our certificate.
    let is_checked = role.serves_http() && !caller.is_secure;
    if is_checked && !host_allowed(&thread.options.host_whitelist, &request) {
        tracing::warn!(host = host(&request), "rejecting HTTP request to prevent DNS rebinding attacks");
        return answer(StatusCode::MISDIRECTED_REQUEST, TEXT, "host is not allowed\n");
    }
    let origin = allowed_origin(&thread.options.cors, request.headers());
    let mut response = match origin {
        _ if role.serves_http() && request.method() == Method::OPTIONS => {
            Response::new(ResponseBody::Whole(Bytes::new()))
        }
        _ => route(thread, caller, upgrade, request).await,
    };
    if let (Some(origin), true) = (origin, role.serves_http()) {
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let names = HeaderValue::from_static("accept, content-type, authorization");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names);
    }
    response
}

async fn route<D: FrontDoor, B: Body<Data = Bytes> + 'static>(
    thread: &Rc<Thread<D>>,
    caller: &Caller,
    upgrade: Option<&UpgradeSlot>,
    request: Request<B>,
) -> Response<ResponseBody> {
    let role = caller.role;
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or("");
    // etcd knows an older prefix of the same routes.
    let path: Cow<'_, str> = match head.uri.path().strip_prefix("/v3beta/") {
        Some(rest) => format!("{}{rest}", gateway::PREFIX).into(),
        None => head.uri.path().into(),
    };
    let has_gateway = role.serves_http() && thread.options.gateway;
    if let Some(shortest) = shortest(&path, has_gateway) {
        return redirect(&head.method, &shortest, query);
    }
    let path = percent_decode_str(&path).decode_utf8_lossy();
    if has_gateway && path.starts_with(gateway::PREFIX) {
        // The name of a certificate stands for nobody here, as in etcd.
        if caller.certificate_name.is_some() && thread.door.condition().auth_enabled {
            return text(StatusCode::BAD_REQUEST, NAME_IGNORED);
        }
        let context = Context { peer: caller.peer, ..Context::default() };
        if let Some(slot) = upgrade.filter(|_| websocket::is_wanted(&head.headers)) {
            return websocket::accept(&head, path.into_owned(), context, slot);
        }
        let asked =
            gateway::Asked { method: &head.method, path: &path, headers: &head.headers, context, is_framed: false };
        return gateway::serve(thread, asked, body::pieces(body)).await;
    }
    plain(thread, role, &head.method, &path, query).await
}

async fn plain<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    role: Role,
    method: &Method,
    path: &str,
    query: &str,
) -> Response<ResponseBody> {
    let reads = method == Method::GET;
    match (path, role) {
        ("/version", Role::Client | Role::ClientHttp | Role::Peer) if reads => {
            answer(StatusCode::OK, JSON, crate::version::json())
        }
        ("/version", Role::Client | Role::ClientHttp | Role::Peer) => not_allowed(),
        (_, Role::Peer) => not_found(),
        ("/debug/vars", Role::Client | Role::ClientHttp) if reads => {
            answer(StatusCode::OK, "application/json; charset=utf-8", debug::vars(&thread.door.condition()))
        }
        ("/debug/vars", Role::Client | Role::ClientHttp) => not_allowed(),
        ("/metrics", _) => {
            let text = thread.metrics.text();
            // As in etcd, a scrape is counted once it has been answered.
            thread.counters.scrapes.add(1);
            answer(StatusCode::OK, METRICS, text)
        }
        ("/health", _) if reads => health(thread, query).await,
        ("/health" | "/livez" | "/readyz", _) if !reads => not_allowed(),
        _ => match checks_of(path) {
            Some(_) if !reads => not_allowed(),
            Some((endpoint, checks)) => check(thread, endpoint, checks, query).await,
            None => not_found(),
        },
    }
}

/// The path that means the same without detours, if this is another one.
fn shortest(path: &str, has_gateway: bool) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let mut clean = format!("/{}", parts.join("/"));
    let names_gateway = has_gateway && gateway::PREFIX.strip_suffix('/') == Some(&clean);
    if clean.len() > 1 && (path.ends_with('/') || names_gateway) {
        clean.push('/');
    }
    (clean != path).then_some(clean)
}

/// Go's answer to a path that is not in its shortest form.
fn redirect(method: &Method, path: &str, query: &str) -> Response<ResponseBody> {
    let path = utf8_percent_encode(path, PATH).to_string();
    let location = if query.is_empty() { path } else { format!("{path}?{query}") };
    let is_read = method == Method::GET || method == Method::HEAD;
    let page = match method == Method::GET {
        true => format!("<a href=\"{}\">Temporary Redirect</a>.\n\n", escape_html(&location)),
        false => String::new(),
    };
    let mut response = Response::new(ResponseBody::Whole(page.into()));
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    if is_read {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    }
    // What has been encoded is printable ASCII, and so is a query that the HTTP library has let through.
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}

/// `/health`: alarms, then leader, then a read.
async fn health<D: FrontDoor>(thread: &Rc<Thread<D>>, query: &str) -> Response<ResponseBody> {
    let serializable = values(query, "serializable").next() == Some("true");
    let excluded: Vec<&str> = values(query, "exclude").collect();
    let failure = health_failure(thread, serializable, &excluded).await;
    count(thread, failure.is_none());
    match failure {
        // Without a content type of its own, Go looks at the first bytes and finds text.
        None => answer(StatusCode::OK, TEXT, "{\"health\":\"true\",\"reason\":\"\"}"),
        Some(reason) => {
            let body = serde_json::json!({ "health": "false", "reason": reason });
            text(StatusCode::SERVICE_UNAVAILABLE, format!("{body}\n"))
        }
    }
}

async fn health_failure<D: FrontDoor>(thread: &Rc<Thread<D>>, serializable: bool, excluded: &[&str]) -> Option<String> {
    let condition = thread.door.condition();
    for alarm in &condition.alarms {
        let name = match alarm.alarm {
            NO_SPACE => "NOSPACE",
            CORRUPT => "CORRUPT",
            _ => "UNKNOWN",
        };
        if !excluded.contains(&name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if !serializable && !condition.has_leader {
        return Some("RAFT NO LEADER".into());
    }
    thread.door.probe(serializable).await.err().map(|error| format!("RANGE ERROR:{error}"))
}

/// One thing that `/livez` or `/readyz` looks at.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Check {
    DataCorruption,
    SerializableRead,
    LinearizableRead,
    NonLearner,
}

const LIVE: &[Check] = &[Check::SerializableRead];
const READY: &[Check] = &[Check::DataCorruption, Check::SerializableRead, Check::LinearizableRead, Check::NonLearner];

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::DataCorruption => "data_corruption",
            Self::SerializableRead => "serializable_read",
            Self::LinearizableRead => "linearizable_read",
            Self::NonLearner => "non_learner",
        }
    }

    async fn failure<D: FrontDoor>(self, door: &Rc<D>) -> Option<String> {
        match self {
            Self::DataCorruption => {
                let corrupt = door.condition().alarms.iter().any(|alarm| alarm.alarm == CORRUPT);
                corrupt.then(|| "alarm activated: CORRUPT".into())
            }
            Self::SerializableRead | Self::LinearizableRead => {
                let result = door.probe(self == Self::SerializableRead).await;
                result.err().map(|error| format!("range error: {error}"))
            }
            Self::NonLearner => door.condition().is_learner.then(|| "not supported for learner".into()),
        }
    }
}

/// The checks of `/livez`, `/readyz`, or one of their sub-paths.
fn checks_of(path: &str) -> Option<(&'static str, &'static [Check])> {
    for (endpoint, checks) in [("/livez", LIVE), ("/readyz", READY)] {
        let Some(rest) = path.strip_prefix(endpoint) else { continue };
        if rest.is_empty() {
            return Some((endpoint, checks));
        }
        let position = checks.iter().position(|check| rest.strip_prefix('/') == Some(check.name()))?;
        return Some((endpoint, &checks[position..=position]));
    }
    None
}

async fn check<D: FrontDoor>(
    thread: &Rc<Thread<D>>,
    endpoint: &str,
    checks: &[Check],
    query: &str,
) -> Response<ResponseBody> {
    let excluded: Vec<&str> = values(query, "exclude").collect();
    for name in excluded.iter().filter(|name| checks.iter().all(|check| check.name() != **name)) {
        tracing::warn!(endpoint, name, "some health checks cannot be excluded: no such check");
    }
    let (mut lines, mut healthy) = (String::new(), true);
    for check in checks.iter().filter(|check| !excluded.contains(&check.name())) {
        let failure = check.failure(&thread.door).await;
        let is_readyz = endpoint == "/readyz";
        thread.counters.check(is_readyz, check.name(), failure.is_none());
        thread.metrics.set_check(is_readyz, check.name(), failure.is_none());
        match failure {
            None => lines.push_str(&format!("[+]{} ok\n", check.name())),
            Some(reason) => {
                healthy = false;
                lines.push_str(&format!("[-]{} failed: {reason}\n", check.name()));
            }
        }
    }
    count(thread, healthy);
    if !healthy {
        return text(StatusCode::SERVICE_UNAVAILABLE, format!("{lines}\n"));
    }
    let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    text(StatusCode::OK, if verbose { format!("{lines}ok\n") } else { "ok\n".into() })
}

fn count<D>(thread: &Thread<D>, healthy: bool) {
    let counter = if healthy { &thread.counters.health_success } else { &thread.counters.health_failures };
    counter.add(1);
}

/// Values of one parameter; none of those in use needs decoding.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query
        .split('&')
        .filter_map(move |part| part.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// The host that a request is for, without port.
fn host<B>(request: &Request<B>) -> &str {
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    // HTTP/2 has no such header.
    let host = header.or(request.uri().authority().map(|authority| authority.as_str())).unwrap_or("");
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a request is for an allowed host; an empty list allows all.
fn host_allowed<B>(allowed: &[String], request: &Request<B>) -> bool {
    allowed.is_empty() || allowed.iter().any(|allowed| allowed == host(request))
}

/// What `Access-Control-Allow-Origin` says: `*` where all are allowed, the origin where it is listed, else nothing.
fn allowed_origin(allowed: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    if allowed.is_empty() {
        return Some(HeaderValue::from_static("*"));
    }
    let origin = headers.get(header::ORIGIN)?;
    allowed.iter().any(|allowed| origin == allowed.as_str()).then(|| origin.clone())
}

fn not_found() -> Response<ResponseBody> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

fn not_allowed() -> Response<ResponseBody> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
    response
}

/// A text that must not be taken for anything else.
fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = answer(status, TEXT, text);
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Whole(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
