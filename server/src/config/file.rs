//! Settings out of a YAML file (JSON is a subset), with etcd's keys and types: the low form, like flags and environment,
//! which are ignored beside a file. Knows no meaning of values.

use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::flags::{Given, Kind, Source};
use super::table::{self, Flag};
use super::values::parse_signed;

/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Deepest nesting; etcd's keys need three levels.
const DEPTH_MAX: usize = 16;

/// Reads a file. Returns the settings, and warnings about keys that mean nothing.
pub fn read(path: &Path) -> Result<(Given, Vec<String>), String> {
    let of_file = |why: &dyn std::fmt::Display| format!("--config-file {}: {why}", path.display());
    let size = std::fs::metadata(path).map_err(|error| of_file(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(of_file(&format!("{size} bytes are more than a configuration has, {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| of_file(&error))?;
    parse(&text).map_err(|why| of_file(&why))
}

/// The settings in a text.
pub fn parse(text: &str) -> Result<(Given, Vec<String>), String> {
    let mut reader = Reader { given: Given::new(Source::File), warnings: Vec::new() };
    match document(text)? {
        Node::Null => {}
        Node::Map(entries) => reader.top(entries)?,
        other => return Err(format!("a configuration is a list of keys with values, not {}", other.kind())),
    }
    Ok((reader.given, reader.warnings))
}

/// Keys of `client-transport-security` and `peer-transport-security`, with the flags they stand for.
const SECURITY: &[(&str, &str, &str)] = &[
    ("cert-file", "cert-file", "peer-cert-file"),
    ("key-file", "key-file", "peer-key-file"),
    ("client-cert-file", "client-cert-file", "peer-client-cert-file"),
    ("client-key-file", "client-key-file", "peer-client-key-file"),
    ("client-cert-auth", "client-cert-auth", "peer-client-cert-auth"),
    ("trusted-ca-file", "trusted-ca-file", "peer-trusted-ca-file"),
    ("auto-tls", "auto-tls", "peer-auto-tls"),
    ("allowed-cn", "client-cert-allowed-cn", "peer-cert-allowed-cn"),
    ("allowed-hostname", "client-cert-allowed-hostname", "peer-cert-allowed-hostname"),
    // Has no meaning for clients, as in etcd.
    ("skip-client-san-verification", "", "peer-skip-client-san-verification"),
];

/// Flags whose place in a file is below another key, with that key.
const BELOW: &[(&str, &str)] = &[
    ("socket-reuse-port", "socket-options: reuse-port"),
    ("socket-reuse-address", "socket-options: reuse-address"),
    ("discovery-token", "discovery-config: token"),
    ("discovery-endpoints", "discovery-config: client: endpoints"),
];

/// Settings that are lists in a file.
const LISTS: &[&str] = &[
    "cipher-suites",
    "log-outputs",
    "client-cert-allowed-cn",
    "client-cert-allowed-hostname",
    "peer-cert-allowed-cn",
    "peer-cert-allowed-hostname",
];

/// Settings for which an empty text means: not set.
const EMPTY_IS_ABSENT: &[&str] = &[
    "listen-peer-urls",
    "listen-client-urls",
    "listen-client-http-urls",
    "listen-metrics-urls",
    "initial-advertise-peer-urls",
    "advertise-client-urls",
    "initial-cluster",
    "initial-cluster-state",
    "auto-compaction-retention",
    "cors",
    "host-whitelist",
    "feature-gates",
];

struct Reader {
    given: Given,
    warnings: Vec<String>,
}

impl Reader {
    fn top(&mut self, entries: Vec<(String, Node)>) -> Result<(), String> {
        for (key, node) in entries {
            // etcd, too, compares keys without regard to case.
            let name = key.to_ascii_lowercase();
            match name.as_str() {
                "client-transport-security" => self.security(&name, node, |row| row.1)?,
                "peer-transport-security" => self.security(&name, node, |row| row.2)?,
                "socket-options" => self.nested(
                    &name,
                    node,
                    &[("reuse-port", "socket-reuse-port"), ("reuse-address", "socket-reuse-address")],
                )?,
                "discovery-config" => self.discovery(node)?,
                _ => match table::find(&name).filter(|flag| is_top_level(flag)) {
                    Some(flag) => self.set(&name, flag, node)?,
                    None => self.ignore(&name),
                },
            }
        }
        Ok(())
    }

    /// A key that etcd ignores in silence; a mistyped one deserves a word.
    fn ignore(&mut self, name: &str) {
        let place = BELOW.iter().find(|(flag, _)| *flag == name).map(|(_, place)| (*place).to_owned());
        let security = SECURITY.iter().find_map(|(key, client, peer)| match name {
            _ if name == *client => Some(format!("client-transport-security: {key}")),
            _ if name == *peer => Some(format!("peer-transport-security: {key}")),
            _ => None,
        });
        self.warnings.push(match place.or(security) {
            Some(place) => format!("configuration key {name:?} is ignored: its place is {place}"),
            None => format!("configuration key {name:?} is ignored: there is none of that name"),
        });
    }

    fn security(
        &mut self,
        parent: &str,
        node: Node,
        side: fn(&(&'static str, &'static str, &'static str)) -> &'static str,
    ) -> Result<(), String> {
        let names: Vec<(&str, &str)> = SECURITY.iter().map(|row| (row.0, side(row))).collect();
        self.nested(parent, node, &names)
    }

    /// Settings below a key; an empty name means that the key is known and does nothing.
    fn nested(&mut self, parent: &str, node: Node, names: &[(&str, &str)]) -> Result<(), String> {
        for (key, node) in map(parent, node)? {
            let (name, path) = (key.to_ascii_lowercase(), format!("{parent}: {key}"));
            match names.iter().find(|(known, _)| *known == name).map(|(_, flag)| *flag) {
                None => {
                    self.warnings.push(format!("configuration key {path:?} is ignored: there is none of that name"))
                }
                Some("") => {}
                Some(flag) => match table::find_setting(flag) {
                    Some(flag) => self.set(&path, flag, node)?,
                    None => unreachable!("{flag} is in the table"),
                },
            }
        }
        Ok(())
    }

    /// Discovery is refused as a whole, so only what asks for it is read.
    fn discovery(&mut self, node: Node) -> Result<(), String> {
        for (key, node) in map("discovery-config", node)? {
            let asks = match (key.as_str(), node) {
                ("token", Node::Text(token)) if !token.is_empty() => Some(("discovery-token", token)),
                ("client", Node::Map(entries)) => entries.into_iter().find_map(|(key, node)| match node {
                    Node::List(endpoints) if key == "endpoints" && !endpoints.is_empty() => Some((
                        "discovery-endpoints",
                        texts("discovery-config: client: endpoints", endpoints).ok()?.join(","),
                    )),
                    _ => None,
                }),
                _ => None,
            };
            if let Some((flag, value)) = asks.and_then(|(name, value)| Some((table::find(name)?, value))) {
                self.given.set(flag, value)?;
            }
        }
        Ok(())
    }

    fn set(&mut self, path: &str, flag: &'static Flag, node: Node) -> Result<(), String> {
        let must = |what: &str, node: &Node| Err(format!("{path}: must be {what}, not {}", node.kind()));
        let value = match (flag.kind, node) {
            // A key without a value is not set.
            (_, Node::Null) => return Ok(()),
            (_, Node::List(items)) if LISTS.contains(&flag.name) => texts(path, items)?.join(","),
            (_, node) if LISTS.contains(&flag.name) => return must("a list, as in [a, b]", &node),
            (Kind::Bool, Node::Bool(value)) => value.to_string(),
            (Kind::Bool, node) => return must("true or false without quotes", &node),
            (Kind::Unsigned | Kind::Unsigned32 | Kind::Signed, Node::Number(digits)) => digits,
            (Kind::Unsigned | Kind::Unsigned32 | Kind::Signed, node) => {
                return must("a whole number without quotes", &node);
            }
            (Kind::Duration, Node::Number(digits)) => match parse_signed(&digits) {
                Ok(nanos) => format!("{nanos}ns"),
                Err(_) => return Err(format!("{path}: {digits} is no whole number of nanoseconds")),
            },
            (Kind::Duration, node) => {
                return must("a whole number of nanoseconds without quotes, as in 600000000000 for 10m", &node);
            }
            (_, Node::Text(text)) if text.is_empty() && EMPTY_IS_ABSENT.contains(&flag.name) => return Ok(()),
            (_, Node::Text(text)) => text,
            (_, node) => return must("a text; put it in quotes", &node),
        };
        self.given.set(flag, value.clone()).map_err(|why| format!("{path}: invalid value {value:?}: {why}"))
    }
}

/// Whether a flag has a key of its own name. etcd has none for revocation lists; ignoring one would let revoked
/// certificates in, so here there are.
fn is_top_level(flag: &Flag) -> bool {
    let nested = BELOW.iter().any(|(name, _)| *name == flag.name)
        || SECURITY.iter().any(|(_, client, peer)| [*client, *peer].contains(&flag.name))
        || flag.name.starts_with("discovery-") && !flag.name.starts_with("discovery-srv");
    let of_the_line = matches!(flag.name, "version" | "config-file" | "raft-read-timeout" | "raft-write-timeout");
    !nested && !of_the_line && flag.kind != Kind::Ignored && !flag.name.starts_with("experimental-")
}

/// What a YAML text holds, as far as settings need it.
#[derive(Debug, PartialEq)]
enum Node {
    Null,
    Bool(bool),
    /// In decimal digits if it is whole.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    fn kind(&self) -> String {
        match self {
            Self::Null => "nothing".into(),
            Self::Bool(value) => format!("the truth value {value}"),
            Self::Number(digits) => format!("the number {digits}"),
            Self::Text(text) => format!("the text {text:?}"),
            Self::List(_) => "a list".into(),
            Self::Map(_) => "keys with values".into(),
        }
    }
}

fn map(path: &str, node: Node) -> Result<Vec<(String, Node)>, String> {
    match node {
        Node::Null => Ok(Vec::new()),
        Node::Map(entries) => Ok(entries),
        other => Err(format!("{path}: must be keys with values, not {}", other.kind())),
    }
}

fn texts(path: &str, nodes: Vec<Node>) -> Result<Vec<String>, String> {
    let text = |node| match node {
        Node::Text(text) => Ok(text),
        other => Err(format!("{path}: each item must be a text, not {}", other.kind())),
    };
    nodes.into_iter().map(text).collect()
}

/// The first document of a text.
fn document(text: &str) -> Result<Node, String> {
    let mut events = Parser::new_from_str(text);
    loop {
        match next(&mut events)? {
            None | Some(Event::StreamEnd) => return Ok(Node::Null),
            Some(Event::StreamStart | Event::DocumentStart(_) | Event::Nothing) => {}
            Some(event) => return node(event, &mut events, 0),
        }
    }
}

type Events<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

fn next<'a>(events: &mut Events<'a>) -> Result<Option<Event<'a>>, String> {
    match events.next() {
        None => Ok(None),
        Some(Ok((event, _))) => Ok(Some(event)),
        Some(Err(error)) => Err(format!("this is no YAML: {error}")),
    }
}

fn node(event: Event<'_>, events: &mut Events<'_>, depth: usize) -> Result<Node, String> {
    if depth > DEPTH_MAX {
        return Err(format!("nested more than {DEPTH_MAX} deep"));
    }
    let cut = || "the text ends too early".to_owned();
    match event {
        Event::Scalar(text, style, _, tag) => Ok(scalar(&text, style == ScalarStyle::Plain && tag.is_none())),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match next(events)?.ok_or_else(cut)? {
                    Event::SequenceEnd => return Ok(Node::List(items)),
                    event => items.push(node(event, events, depth + 1)?),
                }
            }
        }
        Event::MappingStart(..) => {
            let mut entries = Vec::new();
            loop {
                let key = match next(events)?.ok_or_else(cut)? {
                    Event::MappingEnd => return Ok(Node::Map(entries)),
                    Event::Scalar(key, ..) => key.into_owned(),
                    _ => return Err("a key must be a word".into()),
                };
                let event = next(events)?.ok_or_else(cut)?;
                entries.push((key, node(event, events, depth + 1)?));
            }
        }
        Event::Alias(_) => Err("aliases (*name) are not read; write the value out".into()),
        other => Err(format!("unexpected {other:?}")),
    }
}

/// The words and numbers of YAML 1.1, which etcd's library reads; a quoted scalar is a text.
fn scalar(text: &str, plain: bool) -> Node {
    if !plain {
        return Node::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Node::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => Node::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => Node::Bool(false),
        _ => number(text).map_or_else(|| Node::Text(text.to_owned()), Node::Number),
    }
}

/// A number in decimal digits, whole where it is: `0x10` is 16 and `1e2` is 100.
fn number(text: &str) -> Option<String> {
    if let Ok(whole) = parse_signed(text) {
        return Some(whole.to_string());
    }
    let starts = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    let float = text.parse::<f64>().ok().filter(|float| starts && float.is_finite())?;
    // Beyond 2^53 a float no longer holds every whole number, and may well be a large integer that is to be refused.
    let exact = float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0;
    Some(if exact { format!("{float:.0}") } else { text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Given {
        let (given, warnings) = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(warnings.is_empty(), "{warnings:?}");
        given
    }

    /// The form of etcd's own sample, with every kind of value.
    #[test]
    fn keys_are_etcds() {
        let given = given(
            "# comment\nname: 'm1'\ndata-dir: \"/x\"\nwal-dir:\nsnapshot-count: 10000\nheartbeat-interval: 100\n\
             quota-backend-bytes: 0\nlisten-client-urls: http://127.0.0.1:1,http://127.0.0.1:2\ncors:\npre-vote: yes\n\
             watch-progress-notify-interval: 60000000000\nauto-compaction-retention: \"1\"\nlog-outputs: [stderr, f]\n\
             socket-options:\n  reuse-port: true\nclient-transport-security:\n  cert-file: a\n  client-cert-auth: true\n  \
             allowed-hostname:\n    - x\n    - z\n  allowed-cn: [c]\npeer-transport-security:\n  auto-tls: false\n  \
             skip-client-san-verification: true\ncipher-suites:\nfeature-gates: PriorityRequest=true\nenable-pprof: off\n",
        );
        for (name, value) in [
            ("name", "m1"),
            ("data-dir", "/x"),
            ("wal-dir", ""),
            ("snapshot-count", "10000"),
            ("heartbeat-interval", "100"),
            ("listen-client-urls", "http://127.0.0.1:1,http://127.0.0.1:2"),
            ("cors", "*"),
            ("pre-vote", "true"),
            ("watch-progress-notify-interval", "60000000000ns"),
            ("auto-compaction-retention", "1"),
            ("log-outputs", "stderr,f"),
            ("socket-reuse-port", "true"),
            ("cert-file", "a"),
            ("client-cert-auth", "true"),
            ("client-cert-allowed-hostname", "x,z"),
            ("client-cert-allowed-cn", "c"),
            ("peer-auto-tls", "false"),
            ("peer-skip-client-san-verification", "true"),
            ("feature-gates", "PriorityRequest=true"),
            ("enable-pprof", "false"),
        ] {
            assert_eq!(given.text(name), value, "{name}");
        }
        assert!(!given.has("wal-dir") && !given.has("cors"), "a key without a value is not set");
    }

    #[test]
    fn json_is_yaml_and_an_empty_file_sets_nothing() {
        assert_eq!(given("{\"name\": \"a\", \"max-txn-ops\": 7}").text("max-txn-ops"), "7");
        assert_eq!(given("").names().count(), 0);
        assert_eq!(given("---\n# nothing\n").names().count(), 0);
        assert_eq!(given("NAME: a\n").text("name"), "a", "case does not matter, as in etcd");
        for (number, value) in [("0x10", "16"), ("017", "15"), ("1_000", "1000"), ("1e2", "100"), ("+5", "5")] {
            assert_eq!(given(&format!("election-timeout: {number}\n")).text("election-timeout"), value, "{number}");
        }
        assert_eq!(given("name: a\nname: b\n").text("name"), "b", "the last one wins");
    }

    #[test]
    fn values_of_another_type_are_refused_with_their_key() {
        for (text, words) in [
            (
                "heartbeat-interval: 100ms",
                "heartbeat-interval: must be a whole number without quotes, not the text \"100ms\"",
            ),
            ("watch-progress-notify-interval: 10m", "must be a whole number of nanoseconds"),
            ("watch-progress-notify-interval: 1.5", "no whole number of nanoseconds"),
            ("pre-vote: \"true\"", "pre-vote: must be true or false without quotes"),
            ("pre-vote: 1", "pre-vote: must be true or false"),
            ("pre-vote: tRUE", "pre-vote: must be true or false"),
            ("election-timeout: .5", "election-timeout: invalid value \".5\": parse error"),
            ("quota-backend-bytes: \"5\"", "must be a whole number"),
            ("auto-compaction-retention: 1", "auto-compaction-retention: must be a text; put it in quotes"),
            ("log-outputs: stderr", "log-outputs: must be a list"),
            ("log-outputs: [1]", "each item must be a text"),
            ("client-transport-security: x", "client-transport-security: must be keys with values"),
            ("peer-transport-security:\n  allowed-cn: a", "peer-transport-security: allowed-cn: must be a list"),
            ("listen-client-urls: nonsense", "listen-client-urls: invalid value \"nonsense\": URL scheme must be"),
            ("feature-gates: X=true", "unrecognized feature gate: X"),
            ("heartbeat-interval: 99999999999999999999", "value out of range"),
            ("[a", "this is no YAML"),
            ("a", "a configuration is a list of keys with values, not the text \"a\""),
            ("name: &x a\ndata-dir: *x", "aliases (*name) are not read"),
            ("? [a]\n: b", "a key must be a word"),
        ] {
            let error = parse(text).map(|_| ()).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
        let deep = "{\"name\": ".to_owned() + &"[".repeat(40) + &"]".repeat(40) + "}";
        assert!(parse(&deep).map(|_| ()).expect_err("deep").contains("nested"));
    }

    #[test]
    fn keys_that_mean_nothing_are_warned_of_with_their_place() {
        let (given, warnings) =
            parse("nonsense: 1\ncert-file: a\nsocket-reuse-port: true\npeer-cert-file: b\nversion: true\n")
                .expect("parsed");
        assert_eq!(given.names().count(), 0);
        for (warning, words) in warnings.iter().zip([
            "\"nonsense\" is ignored: there is none of that name",
            "\"cert-file\" is ignored: its place is client-transport-security: cert-file",
            "its place is socket-options: reuse-port",
            "its place is peer-transport-security: cert-file",
            "\"version\" is ignored",
        ]) {
            assert!(warning.contains(words), "{warning}");
        }
        assert_eq!(warnings.len(), 5);
    }

    #[test]
    fn discovery_is_noticed() {
        assert_eq!(given("discovery-config:\n  token: t\n").text("discovery-token"), "t");
        let given = given("discovery-config:\n  client:\n    endpoints: [http://a:1]\n    dial-timeout: 1\n");
        assert_eq!(given.text("discovery-endpoints"), "http://a:1");
    }

    /// Each key that is looked for is a setting.
    #[test]
    fn the_tables_name_settings() {
        for name in SECURITY.iter().flat_map(|row| [row.1, row.2]).filter(|name| !name.is_empty()) {
            assert!(table::find_setting(name).is_some(), "{name}");
        }
        for name in BELOW.iter().map(|row| row.0).chain(LISTS.iter().copied()).chain(EMPTY_IS_ABSENT.iter().copied()) {
            assert!(table::find_setting(name).is_some(), "{name}");
        }
    }
}
