//! Golden scripts: commands and what they answer, as text in `tests/scripts`. Their names are an index of behaviours.
//!
//! A script begins with a sentence of intent behind `#`. A command stands behind `> `, its answer below it. With
//! `DAYMARK_SCRIPTS=write` the answers are written anew; read the difference before keeping it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use daymark_storage::LogId;
use daymark_storage::backend::MemBackend;
use daymark_storage::mvcc::{Event, EventKind, KeyRange, KeyValue, Keyspace, RangeOptions, ReadError, Writer};

#[test]
fn scripts_answer_as_written() {
    let mut scripts: Vec<_> = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    scripts.sort();
    assert!(scripts.len() >= 4);
    for script in scripts {
        let text = fs::read_to_string(&script).unwrap();
        assert!(text.starts_with("# "), "{} begins with its intent", script.display());
        let answered = run(&text);
        if std::env::var("DAYMARK_SCRIPTS").is_ok_and(|mode| mode == "write") {
            fs::write(&script, answered).unwrap();
        } else {
            assert_eq!(answered, text, "{}", script.display());
        }
    }
}

/// The script again, with the answers that its commands give now.
fn run(text: &str) -> String {
    let mut session = Session::new();
    let mut out = String::new();
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            let answer = session.command(command);
            let _ = writeln!(out, "{line}\n{answer}");
        } else if line.is_empty() || line.starts_with('#') {
            let _ = writeln!(out, "{line}");
        }
    }
    out.trim_end().to_owned() + "\n"
}

struct Session {
    backend: Arc<MemBackend>,
    keyspace: Arc<Keyspace>,
    writer: Writer,
    index: u64,
}

impl Session {
    fn new() -> Self {
        let backend = MemBackend::new();
        let (keyspace, writer) = Keyspace::open(backend.clone()).unwrap();
        Self { backend, keyspace, writer, index: 0 }
    }

    fn command(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            // Steps divided by `;` are one transaction; the last one may be `abort`.
            "txn" => self.txn(line.trim_start_matches("txn").trim()),
            "commit" => self.commit(),
            "get" => self.get(words[1], &words[2..]),
            "range" => self.range(words[1], words[2], &words[3..]),
            "history" => self.history(&words[1..]),
            "compact" => match self.writer.compact(number(words[1])) {
                Ok(()) => "compacted in this batch".into(),
                Err(error) => error.to_string(),
            },
            "drop" => {
                self.keyspace.drop_history().unwrap();
                self.keyspace.flush().unwrap();
                format!("history floor {}", self.keyspace.history_floor())
            }
            "flush" => {
                self.keyspace.flush().unwrap();
                format!("durable {:?}", self.keyspace.durable_applied().unwrap().map(|id| id.index))
            }
            "crash" => {
                self.backend = self.backend.crash();
                (self.keyspace, self.writer) = Keyspace::open(self.backend.clone()).unwrap();
                self.index = self.keyspace.applied().map_or(0, |id| id.index);
                self.state()
            }
            other => panic!("no command {other}"),
        }
    }

    fn txn(&mut self, steps: &str) -> String {
        let mut txn = self.writer.begin();
        for step in steps.split(';') {
            let words: Vec<&str> = step.split_whitespace().collect();
            match words[..] {
                ["put", key, value] => drop(txn.put(bytes(key), bytes(value), 0).unwrap()),
                ["put", key, value, lease] => drop(txn.put(bytes(key), bytes(value), number(lease)).unwrap()),
                ["del", key] => drop(txn.delete(key.as_bytes()).unwrap()),
                ["delrange", start, end] => drop(txn.delete_range(&range(start, end)).unwrap()),
                ["abort"] => return "aborted".into(),
                _ => panic!("no step {step}"),
            }
        }
        let changes = txn.finish();
        let events = changes.events.iter().map(|event| format!("\n  {}", show_event(event)));
        format!("revision {}{}", changes.revision, events.collect::<String>())
    }

    fn commit(&mut self) -> String {
        self.index += 1;
        self.writer.commit(LogId { term: 1, index: self.index }).unwrap();
        self.writer.publish();
        self.state()
    }

    fn state(&self) -> String {
        let (current, compact) = (self.keyspace.current_revision(), self.keyspace.compact_revision());
        format!(
            "revision {current}, compact revision {compact}, applied {:?}",
            self.keyspace.applied().map(|id| id.index)
        )
    }

    fn get(&self, key: &str, rest: &[&str]) -> String {
        let found = self.keyspace.read(revision(rest)).and_then(|read| read.get(key.as_bytes()));
        answer(found, |kv| kv.map_or("none".into(), |kv| show(&kv)))
    }

    fn range(&self, start: &str, end: &str, rest: &[&str]) -> String {
        let mut options = RangeOptions::default();
        for word in rest.iter().filter(|word| !word.starts_with('@')) {
            match word.split_once('=') {
                None if *word == "descending" => options.descending = true,
                None if *word == "keys_only" => options.keys_only = true,
                None if *word == "count_only" => options.count_only = true,
                Some(("limit", n)) => options.limit = number(n) as usize,
                Some(("bytes_max", n)) => options.bytes_max = number(n) as usize,
                Some(("min_mod", n)) => options.min_mod = number(n),
                Some(("max_mod", n)) => options.max_mod = number(n),
                Some(("min_create", n)) => options.min_create = number(n),
                Some(("max_create", n)) => options.max_create = number(n),
                _ => panic!("no option {word}"),
            }
        }
        let found = self.keyspace.read(revision(rest)).and_then(|read| read.range(&range(start, end), &options));
        answer(found, |found| {
            let kvs = found.kvs.iter().map(|kv| format!("\n  {}", show(kv)));
            format!("count {}, more {}{}", found.count, found.more, kvs.collect::<String>())
        })
    }

    fn history(&self, words: &[&str]) -> String {
        let found =
            self.keyspace.history(number(words[0]), number(words[1]), None, words.contains(&"prev"), usize::MAX);
        answer(found, |chunk| {
            let mut text = format!("next revision {}", chunk.next_revision);
            for (revision, events) in &chunk.events_by_revision {
                let _ = write!(text, "\n  {revision}:");
                events.iter().for_each(|event| text += &format!(" {};", show_event(event)));
            }
            text
        })
    }
}

fn answer<T>(result: Result<T, ReadError>, show: impl FnOnce(T) -> String) -> String {
    result.map_or_else(|error| error.to_string(), show)
}

fn show(kv: &KeyValue) -> String {
    let lease = if kv.lease == 0 { String::new() } else { format!(" lease {}", kv.lease) };
    let (key, value) = (kv.key.escape_ascii(), kv.value.escape_ascii());
    format!("{key}={value} (create {} mod {} version {}{lease})", kv.create_revision, kv.mod_revision, kv.version)
}

fn show_event(event: &Event) -> String {
    let prev = event.prev.as_ref().map_or(String::new(), |kv| format!(", before {}", show(kv)));
    match event.kind {
        EventKind::Put => format!("put {}{prev}", show(&event.kv)),
        EventKind::Delete => format!("delete {} (mod {}){prev}", event.kv.key.escape_ascii(), event.kv.mod_revision),
    }
}

fn number(word: &str) -> i64 {
    word.parse().unwrap_or_else(|_| panic!("{word} is not a number"))
}

fn revision(words: &[&str]) -> i64 {
    words.iter().find_map(|word| word.strip_prefix('@')).map_or(0, number)
}

fn bytes(word: &str) -> Bytes {
    Bytes::copy_from_slice(word.as_bytes())
}

/// `-` is an empty end, `0` is one zero byte, as a key and as an end.
fn range(start: &str, end: &str) -> KeyRange {
    let wire = |word: &str| match word {
        "-" => Bytes::new(),
        "0" => Bytes::from_static(&[0]),
        _ => bytes(word),
    };
    KeyRange::from_wire(&wire(start), &wire(end))
}
