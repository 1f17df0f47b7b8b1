//! Runs every script in `scripts/` against a member of its own. A script is a text with lines of commands, then `---`,
//! then what the commands answer, up to an empty line. With `UPDATE_SCRIPTS=1` the answers are written anew, to be
//! read before they are kept.
//!
//! Commands beside those of [`language`](crate::language): `flush`, `kill`, `cut_power SEED` (the member goes on after
//! them), `events FROM` (history), `publish NAME`, `expire ID...`, `renew ID`, `raw_api_version REQUEST`,
//! `need_leader REQUEST`, `put_bytes KEY BYTES`, `fill PREFIX COUNT BYTES`, `digest KEY ...` (a get of many pairs),
//! `watch KEY [END]` (whether it is permitted). `login NAME PASSWORD` keeps a token for commands that begin with `as NAME`;
//! `as_token TEXT` and `as_certificate NAME` work likewise.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs};

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_server::command::{Kind, LeaseExpire};
use daymark_server::error::Error;
use daymark_server::request::{Context, Reply, Request};
use daymark_server::services::Settings;
use daymark_storage::mvcc::{EventKind, ReadError};

use crate::language::{self, Words};
use crate::member::TestMember;

#[test]
fn every_script_gets_the_answers_that_it_names() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&dir).expect("scripts").map(|entry| entry.expect("entry").path()).collect();
    paths.sort();
    assert!(paths.len() > 10, "only {} scripts in {}", paths.len(), dir.display());
    let mut wrong = Vec::new();
    for path in paths {
        let script = fs::read_to_string(&path).expect("a script");
        let played = play(&script);
        if played == script {
            continue;
        }
        if env::var_os("UPDATE_SCRIPTS").is_some() {
            fs::write(&path, &played).expect("the script is ours");
        } else {
            wrong.push(format!("{}:\n{}", path.display(), differences(&script, &played)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The script with the answers that the member gave.
fn play(script: &str) -> String {
    // Low, so that logging in takes no time.
    let mut member = TestMember::with_settings(Settings { bcrypt_cost: 4, ..Settings::default() });
    let mut tokens = Tokens::new();
    let mut out = String::new();
    let mut answers = String::new();
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        writeln!(out, "{line}").expect("strings grow");
        if line == "---" {
            out.push_str(&std::mem::take(&mut answers));
            if lines.by_ref().any(|line| line.is_empty()) {
                out.push('\n');
            }
        } else if !line.is_empty() && !line.starts_with('#') {
            let answer;
            (member, answer) = run_as(member, &mut tokens, line);
            answers.push_str(&answer);
        }
    }
    assert!(answers.is_empty(), "the last commands have no answers");
    member.stop();
    out
}

/// Tokens of those who have logged in.
type Tokens = HashMap<String, Bytes>;

/// Commands may begin with who asks.
fn run_as(member: TestMember, tokens: &mut Tokens, line: &str) -> (TestMember, String) {
    let mut words = line.splitn(3, ' ');
    let (who, name, rest) = (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next());
    let mut context = Context::default();
    match (who, rest) {
        ("login", Some(password)) => {
            let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
            let reply = member.call(Request::Authenticate(request));
            if let Ok(Reply::Authenticate(response)) = &reply {
                tokens.insert(name.into(), response.token.clone().into());
            }
            (member, answer(reply))
        }
        ("as", Some(rest)) => {
            context.token = Some(tokens.get(name).expect("somebody who has logged in").clone());
            run(member, context, rest)
        }
        ("as_token", Some(rest)) => {
            context.token = Some(language::bytes(name));
            run(member, context, rest)
        }
        ("as_certificate", Some(rest)) => {
            context.certificate_name = Some(name.into());
            run(member, context, rest)
        }
        _ => run(member, context, line),
    }
}

fn run(member: TestMember, caller: Context, line: &str) -> (TestMember, String) {
    let mut words = Words::new(line);
    let answer = match words.word().expect("the line is not empty") {
        "kill" => return (member.kill(), "started again\n".into()),
        "cut_power" => {
            let seed = words.word().expect("a seed").parse().expect("a number");
            return (member.cut_power(seed), "started again\n".into());
        }
        "flush" => {
            member.flush();
            "flushed\n".into()
        }
        "events" => events(&member, words.word().expect("a revision").parse().expect("a number")),
        "publish" => match member.publish(words.word().expect("a name")) {
            Ok(()) => "published\n".into(),
            Err(error) => failed(&error),
        },
        "expire" => {
            let ids = std::iter::from_fn(|| words.word()).map(|id| id.parse().expect("an id")).collect();
            match member.wait(async |door| {
                door.propose_own(Kind::LeaseExpire, &LeaseExpire { ids, ..Default::default() }).await
            }) {
                Ok(reply) => language::reply(&reply),
                Err(error) => failed(&error),
            }
        }
        "renew" => {
            let request = pb::LeaseKeepAliveRequest { id: words.word().expect("an id").parse().expect("a number") };
            match member.wait(async |door| door.keep_alive(&caller, request).await) {
                Ok(renewed) => format!(
                    "@{} lease {} ttl {}\n",
                    renewed.header.map_or(-1, |header| header.revision),
                    renewed.id,
                    renewed.ttl
                ),
                Err(error) => failed(&error),
            }
        }
        "watch" => {
            let key = language::bytes(words.word().expect("a key"));
            let range_end = words.word().map(language::bytes).unwrap_or_default();
            let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
            match member.wait(async |door| door.admit_watch(&caller, &create).await) {
                Ok(()) => "watched\n".into(),
                Err(reason) => format!("{reason}\n"),
            }
        }
        "raw_api_version" => {
            let client_api_version = Some(Err(Bytes::from_static(&[0xff])));
            let context = Context { client_api_version, ..Context::default() };
            answer(member.call_as(context, language::request(&line["raw_api_version ".len()..]).expect("a request")))
        }
        "need_leader" => {
            let context = Context { requires_leader: true, ..Context::default() };
            answer(member.call_as(context, language::request(&line["need_leader ".len()..]).expect("a request")))
        }
        "put_bytes" => {
            let (key, bytes) = (words.word().expect("a key"), words.word().expect("a size"));
            let value = vec![b'v'; bytes.parse().expect("a number")].into();
            answer(member.call(Request::Put(pb::PutRequest { key: language::bytes(key), value, ..Default::default() })))
        }
        "fill" => fill(&member, &mut words),
        "digest" => digest(member.call(language::request(&line.replacen("digest", "get", 1)).expect("a get"))),
        _ => {
            let request = language::request(line).unwrap_or_else(|| panic!("unknown command: {line}"));
            answer(member.call_as(caller, request))
        }
    };
    (member, answer)
}

fn answer(result: Result<Reply, Error>) -> String {
    result.map_or_else(|error| failed(&error), |reply| language::reply(&reply))
}

/// `fill PREFIX COUNT BYTES`: keys with four digits behind the prefix, each with a value of its own.
fn fill(member: &TestMember, words: &mut Words<'_>) -> String {
    let prefix = words.word().expect("a prefix");
    let mut number = || words.word().expect("a number").parse::<usize>().expect("a number");
    let (count, bytes) = (number(), number());
    for n in 0..count {
        let value = format!("{:0bytes$}", n * 7919 % count).into();
        let put = pb::PutRequest { key: format!("{prefix}{n:04}").into(), value, ..Default::default() };
        member.call(Request::Put(put)).expect("a put");
    }
    format!("{count} keys\n")
}

/// Of many pairs: how many, the first and the last, and whether they are in key order.
fn digest(result: Result<Reply, Error>) -> String {
    let Ok(Reply::Range(range)) = result else { return answer(result) };
    let key =
        |place: Option<&daymark_api::mvccpb::KeyValue>| place.map(|kv| language::text(&kv.key)).unwrap_or_default();
    let (first, last) = (key(range.kvs.first()), key(range.kvs.last()));
    let bytes: usize = range.kvs.iter().map(|kv| kv.value.len()).sum();
    let ordered = range.kvs.is_sorted_by(|a, b| a.key < b.key);
    let (count, more, kvs) = (range.count, range.more, range.kvs.len());
    format!("count {count} more={more} pairs {kvs} from {first} to {last}, {bytes} bytes, ascending={ordered}\n")
}

fn failed(error: &Error) -> String {
    format!("{:?}: {error}\n", error.code())
}

fn events(member: &TestMember, from: i64) -> String {
    let keyspace = &member.door.views().keyspace;
    let chunk = match keyspace.history(from, i64::MAX - 1, None, true, usize::MAX) {
        Ok(chunk) => chunk,
        Err(ReadError::Compacted) => return "compacted\n".into(),
        Err(error) => panic!("{error}"),
    };
    let mut out = String::new();
    for (revision, events) in chunk.events_by_revision {
        for event in events {
            let pair = |kv| language::pair(&daymark_server::query::pair(kv));
            let what = match event.kind {
                EventKind::Put => format!("put {}", pair(event.kv)),
                EventKind::Delete => format!("delete {}", language::text(&event.kv.key)),
            };
            let was = event.prev.map(|kv| format!(", was {}", pair(kv))).unwrap_or_default();
            writeln!(out, "{revision}.{} {what}{was}", event.sub).expect("strings grow");
        }
    }
    if out.is_empty() { "no events\n".into() } else { out }
}

fn differences(script: &str, played: &str) -> String {
    let mut out = String::new();
    let (mut expected, mut found) = (script.lines(), played.lines());
    for number in 1.. {
        match (expected.next(), found.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => {
                let [a, b] = [a, b].map(|line| line.unwrap_or("(nothing)"));
                writeln!(out, "  line {number}: expected {a}\n            found {b}").expect("strings grow");
            }
        }
    }
    out
}
