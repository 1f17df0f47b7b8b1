//! Scripts of etcdctl commands, run step by step against two servers whose answers must be the same. The text of a script
//! holds no expected output: the other server is the expectation.
//!
//! ```text
//! # a comment
//! put a 'two words' --prev-kv       any etcdctl command; $NAME and $NAME+1 are replaced
//! txn << ... >>                     a command with the lines in between as its input
//! revision R                        remembers the current revision as $R
//! grant L 100                       grants a lease of 100 s and remembers its id as $L
//! start W watch a --prefix          starts a command in the background
//! say W progress                    types a line to it
//! stop W                            waits until it is quiet, ends it, compares what it printed
//! sleep 2500                        waits, in milliseconds
//! @3.5.1 endpoint status            a command for this etcdctl only
//! ```

use std::{collections::HashMap, thread, time::Duration};

use serde_json::Value;

use crate::{
    ctl::{Answer, Background, Etcdctl},
    normalise::{self, Names},
    process::Server,
};

/// etcdctl does not say when its watch stands.
const WATCH_STANDS_AFTER: Duration = Duration::from_millis(400);

#[derive(Debug)]
enum Step {
    Run { args: Vec<String>, stdin: String, only: Option<String> },
    Revision(String),
    Grant { name: String, ttl: String },
    Start { name: String, args: Vec<String> },
    Say { name: String, line: String },
    Stop(String),
    Sleep(u64),
}

/// A parsed script.
#[derive(Debug)]
pub struct Script {
    steps: Vec<(usize, Step)>,
}

impl Script {
    /// Reads a script. Panics at what it does not understand.
    pub fn parse(text: &str) -> Self {
        let mut lines = text.lines().enumerate();
        let mut steps = Vec::new();
        while let Some((number, line)) = lines.next() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let stdin = if line.ends_with("<<") {
                let input = lines.by_ref().map(|(_, line)| line.trim()).take_while(|line| *line != ">>");
                input.map(|line| format!("{line}\n")).collect()
            } else {
                String::new()
            };
            steps.push((number + 1, parse_step(line.trim_end_matches("<<").trim(), stdin)));
        }
        Self { steps }
    }
}

fn parse_step(line: &str, stdin: String) -> Step {
    let mut words = words(line);
    let only = words[0].strip_prefix('@').map(str::to_owned);
    if only.is_some() {
        words.remove(0);
    }
    match (words[0].as_str(), words.len()) {
        ("revision", 2) => Step::Revision(words.remove(1)),
        ("grant", 3) => Step::Grant { ttl: words.remove(2), name: words.remove(1) },
        ("start", 3..) => Step::Start { name: words.remove(1), args: words.split_off(1) },
        ("say", 3..) => Step::Say { name: words.remove(1), line: words[1..].join(" ") },
        ("stop", 2) => Step::Stop(words.remove(1)),
        ("sleep", 2) => Step::Sleep(words[1].parse().expect("milliseconds")),
        _ => Step::Run { args: words, stdin, only },
    }
}

/// Splits at blanks outside single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "a quote is not closed: {line}");
    words.extend(word);
    words
}

/// One server with what the script has learned from it.
pub struct Side<'a> {
    /// For messages.
    pub label: &'static str,
    server: &'a Server,
    ctl: &'a Etcdctl,
    format: &'static str,
    variables: HashMap<String, i64>,
    names: Names,
    background: HashMap<String, (Vec<String>, Background)>,
}

impl<'a> Side<'a> {
    /// A server to be asked through this etcdctl in this output format.
    pub fn new(label: &'static str, server: &'a Server, ctl: &'a Etcdctl, format: &'static str) -> Self {
        let names =
            vec![(server.endpoint(), "<endpoint>".to_owned()), (server.peer_endpoint(), "<peer endpoint>".to_owned())];
        let background = HashMap::new();
        let mut side = Self { label, server, ctl, format, variables: HashMap::new(), names, background };
        let header = side.json(&["member", "list"]);
        let member = header["header"]["member_id"].as_u64().expect("a member id");
        side.name_id(member, "<member>");
        side
    }

    fn json(&self, args: &[&str]) -> Value {
        let mut args: Vec<_> = args.iter().map(ToString::to_string).collect();
        args.extend(["-w".to_owned(), "json".to_owned()]);
        let answer = self.ctl.run(&self.server.endpoint(), &args, "");
        serde_json::from_str(&answer.stdout).unwrap_or_else(|e| panic!("{}: {args:?}: {e}: {answer:?}", self.label))
    }

    fn name_id(&mut self, id: u64, placeholder: &str) {
        self.names.push((format!("{id}"), placeholder.to_owned()));
        self.names.push((format!("{id:016x}"), placeholder.to_owned()));
        self.names.push((format!("{id:x}"), placeholder.to_owned()));
    }

    /// Runs a step; what it answered, ready to be compared.
    fn run(&mut self, step: &Step) -> Answer {
        let mut said = Answer { code: Some(0), stdout: String::new(), stderr: String::new() };
        match step {
            Step::Run { only: Some(version), .. } if version != self.ctl.version => {}
            Step::Run { args, stdin, .. } => {
                let args = self.fill(args);
                let full = [args.clone(), vec!["-w".into(), self.format.into()]].concat();
                let answer = self.ctl.run(&self.server.endpoint(), &full, &self.fill_text(stdin));
                return normalise::answer(&args, &answer, &self.names);
            }
            Step::Revision(name) => {
                let revision = self.json(&["get", "x"])["header"]["revision"].as_i64().expect("a revision");
                self.variables.insert(name.clone(), revision);
                said.stdout = revision.to_string();
            }
            Step::Grant { name, ttl } => {
                let granted = self.json(&["lease", "grant", ttl]);
                let id = granted["ID"].as_i64().expect("a lease id");
                self.variables.insert(name.clone(), id);
                self.name_id(id.unsigned_abs(), &format!("<lease {name}>"));
                said.stdout = granted["TTL"].to_string();
            }
            Step::Start { name, args } => {
                let args = self.fill(args);
                let full = [args.clone(), vec!["-w".into(), self.format.into()]].concat();
                let background = self.ctl.start(&self.server.endpoint(), &full);
                self.background.insert(name.clone(), (args, background));
            }
            Step::Say { name, line } => {
                let line = self.fill_text(line);
                self.background.get_mut(name).expect("started before").1.say(&line);
            }
            Step::Stop(name) => {
                let (args, background) = self.background.remove(name).expect("started before");
                return normalise::watch(&args, &background.stop(), &self.names);
            }
            Step::Sleep(_) => {}
        }
        said
    }

    fn fill(&self, args: &[String]) -> Vec<String> {
        args.iter().map(|arg| self.fill_text(arg)).collect()
    }

    /// Replaces `$NAME`, `$NAME+n` and `$NAME-n`. Leases are written in hex, revisions in decimal.
    fn fill_text(&self, text: &str) -> String {
        let mut pieces = text.split('$');
        let mut out = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let end = piece.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(piece.len());
            let (name, rest) = piece.split_at(end);
            let value = *self.variables.get(name).unwrap_or_else(|| panic!("${name} is not set"));
            let digits = rest.get(1..).map_or(0, |r| r.find(|c: char| !c.is_ascii_digit()).unwrap_or(r.len()));
            if name.starts_with('L') {
                out.push_str(&format!("{value:x}{rest}"));
            } else if digits > 0 && rest.starts_with(['+', '-']) {
                let offset: i64 = rest[..=digits].parse().expect("a small number");
                out.push_str(&format!("{}{}", value + offset, &rest[digits + 1..]));
            } else {
                out.push_str(&format!("{value}{rest}"));
            }
        }
        out
    }
}

/// Runs a script on both sides; the differences, each with its line number.
pub fn differences(script: &Script, left: &mut Side, right: &mut Side) -> Vec<String> {
    let mut found = Vec::new();
    for (line, step) in &script.steps {
        let (a, b) = (left.run(step), right.run(step));
        match step {
            Step::Start { .. } | Step::Say { .. } => thread::sleep(WATCH_STANDS_AFTER),
            Step::Sleep(millis) => thread::sleep(Duration::from_millis(*millis)),
            _ => {}
        }
        if a != b {
            found.push(format!("line {line}: {step:?}\n  {}: {a:#?}\n  {}: {b:#?}", left.label, right.label));
        }
    }
    found
}

/// How many steps of a script answer something that is compared.
pub fn compared_steps(script: &Script) -> usize {
    let silent = |step: &Step| matches!(step, Step::Start { .. } | Step::Say { .. } | Step::Sleep(_));
    script.steps.iter().filter(|(_, step)| !silent(step)).count()
}
