//! Counts the instructions of the hot paths under valgrind, and compares them with `benches/guard.json`: a change that makes
//! a path dearer is noticed on any machine, busy or not. Times are not measured here.
//!
//! `scripts/guard.sh` checks; with `--record` it writes the file anew.
//!
//! Each path is a function `guard_*` that valgrind knows by its name: it counts what runs within it, on its own thread, and
//! nothing else. What is set up before it, and RocksDB's own threads, do not count.

use std::cell::RefCell;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::watch_request::RequestUnion;
use daymark_benches::guard::{self, Counts, Record};
use daymark_raft::{AppliedProgress, Committed, EntryBody};
use daymark_server::apply::Applier;
use daymark_server::command::{self, Kind};
use daymark_server::mailbox::{Mailbox, ReplyTo};
use daymark_server::request::{Sink, Taken};
use daymark_server::views::Views;
use daymark_server::watch::catch_up::Pool;
use daymark_server::watch::ring::AppliedBatch;
use daymark_server::watch::{Engine, Options, WatchTurn};
use daymark_storage::LogId;
use daymark_storage::backend::{MemBackend, RocksBackend, RocksOptions};
use daymark_storage::disk::RealDisk;
use daymark_storage::mvcc::{Event, EventKind, KeyRange, KeyValue, Keyspace, RangeEnd, RangeOptions, Writer};
use daymark_storage::wal::{EntryKind, Identity, LogEntry, Wal, WalOptions, WalWorker};
use prost::Message;

/// Operations of a path in one measurement; the record is for one of them.
const OPS: u64 = 512;
/// Puts in one write batch.
const BATCH: u64 = 128;
/// Keys of the store that is read.
const KEYS: u64 = 156 * BATCH;
/// Keys of a page of a list.
const PAGE: usize = 500;
/// Watched prefixes.
const PREFIXES: u64 = 10_000;
/// Events in a batch.
const EVENTS: u64 = 64;
const VALUE_BYTES: usize = 256;
/// Puts of a client through the whole net layer; the difference of two runs is free of their start.
const CALLS: [u64; 2] = [1_000, 5_000];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if given("--measure") {
        measure();
        return ExitCode::SUCCESS;
    }
    match guard(given("--record")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Counts, and records that or compares it with what is recorded.
fn guard(record: bool) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("guard.json");
    let measured = count_all()?;
    if record {
        let record = Record { tolerance_percent: 8.0, rustc: rustc_version()?, instructions: measured };
        record.write(&file)?;
        println!("recorded in {}", file.display());
        return Ok(());
    }
    let record = Record::read(&file)?;
    let here = rustc_version()?;
    if here != record.rustc {
        println!("note: recorded with {}, compiled here with {here}", record.rustc);
    }
    print!("{}", record.check(&measured)?);
    Ok(())
}

/// Runs this program under valgrind, and the net layer too; instructions for one operation of each path.
fn count_all() -> Result<Counts> {
    let dir = tempfile::tempdir()?;
    let this = std::env::current_exe()?;
    let out = dir.path().join("profile");
    let done = valgrind(&out, &["--toggle-collect=guard_*"])
        .arg(&this)
        .arg("--measure")
        .stdin(Stdio::null())
        .output()
        .context("cannot start valgrind: apt-get install valgrind")?;
    ensure!(done.status.success(), "valgrind failed: {}", String::from_utf8_lossy(&done.stderr));
    let mut counts = Counts::new();
    for (path, total) in guard::parse_profile(&fs::read_to_string(&out)?) {
        let ops = operations(&path).with_context(|| format!("{path} has no number of operations"))?;
        counts.insert(path, (total as f64 / ops as f64).round());
    }
    counts.insert("net_echo_put".into(), count_echo(&this, dir.path())?);
    Ok(counts)
}

fn valgrind(out: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet", "--collect-jumps=no"]);
    command.arg(format!("--callgrind-out-file={}", out.display())).args(flags);
    command
}

/// Instructions that a whole server without a store spends on one put of one client.
fn count_echo(this: &Path, dir: &Path) -> Result<f64> {
    let daymark = this.parent().and_then(Path::parent).context("no target directory")?.join("daymark");
    ensure!(daymark.exists(), "{} is not there: build it first, as scripts/guard.sh does", daymark.display());
    let mut totals = Vec::new();
    for calls in CALLS {
        let out = dir.join(format!("echo-{calls}"));
        let program = wrapper(&dir.join(format!("echo-{calls}.sh")), &out, &daymark)?;
        let done = Command::new(&daymark)
            .args(["bench", "floor", "--net-threads=1", "--stall-timeout=120", &format!("--total={calls}")])
            .arg("--program")
            .arg(program)
            .stdin(Stdio::null())
            .output()?;
        ensure!(done.status.success(), "bench floor failed: {}", String::from_utf8_lossy(&done.stderr));
        let profile = fs::read_to_string(&out).with_context(|| format!("no profile in {}", out.display()))?;
        totals.push(guard::total(&profile).context("a profile without a total")? as f64);
    }
    let [few, many] = CALLS;
    Ok(((totals[1] - totals[0]) / (many - few) as f64).round())
}

/// A program that runs `daymark` under valgrind, for `bench floor` to start.
fn wrapper(script: &Path, out: &Path, daymark: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let line = valgrind(out, &[]);
    let words: Vec<_> = line.get_args().map(|word| format!("'{}'", word.to_string_lossy())).collect();
    fs::write(script, format!("#!/bin/sh\nexec valgrind {} '{}' \"$@\"\n", words.join(" "), daymark.display()))?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
    Ok(script.to_owned())
}

fn rustc_version() -> Result<String> {
    let done = Command::new("rustc").arg("--version").output().context("cannot run rustc")?;
    match done.status.success() {
        true => Ok(String::from_utf8(done.stdout)?.trim().to_owned()),
        false => bail!("rustc --version failed"),
    }
}

/// How many operations one call of a path's function does.
fn operations(path: &str) -> Option<u64> {
    match path {
        "put_decode" | "put_answer" | "batch_decode" | "mvcc_put" | "mvcc_get" | "apply_put" | "wal_append" => {
            Some(OPS)
        }
        "list_page" => Some(PAGE as u64),
        "watch_match" => Some(EVENTS),
        _ => None,
    }
}

/// What runs under valgrind: each path once to warm it, and once counted.
fn measure() {
    measure_wire();
    measure_store();
    measure_apply();
    measure_wal();
    measure_watch();
}

/// Keys in no order; the first `KEYS` numbers give each key once.
fn key(number: u64) -> Bytes {
    numbered(number.wrapping_mul(7919) % KEYS)
}

fn numbered(number: u64) -> Bytes {
    format!("/registry/pods/default/{number:010}").into()
}

fn value(number: u64) -> Bytes {
    vec![number as u8; VALUE_BYTES].into()
}

fn put(number: u64) -> pb::PutRequest {
    pb::PutRequest { key: key(number), value: value(number), ..Default::default() }
}

fn measure_wire() {
    let requests: Vec<Bytes> = (0..OPS).map(|number| put(number).encode_to_vec().into()).collect();
    let mut batch = BytesMut::with_capacity(OPS as usize * 512);
    guard_put_decode(&requests, &mut batch);
    guard_batch_decode(&batch.freeze());
    let header = Some(pb::ResponseHeader { cluster_id: 1 << 60, member_id: 1 << 61, revision: 1 << 20, raft_term: 2 });
    guard_put_answer(&pb::PutResponse { header, prev_kv: None });
}

/// Bytes of a client to the bytes of a command.
#[inline(never)]
#[unsafe(no_mangle)]
fn guard_put_decode(requests: &[Bytes], batch: &mut BytesMut) {
    for request in requests {
        let put = pb::PutRequest::decode(request.clone()).expect("a put");
        command::append(batch, Kind::Put, None, &put);
    }
}

/// Bytes of an entry to its commands.
#[inline(never)]
#[unsafe(no_mangle)]
fn guard_batch_decode(batch: &Bytes) {
    let mut count = 0;
    for command in command::commands(batch.clone()) {
        black_box(command.expect("a command"));
        count += 1;
    }
    assert_eq!(count, OPS);
}

/// An answer to its bytes.
#[inline(never)]
#[unsafe(no_mangle)]
fn guard_put_answer(answer: &pb::PutResponse) {
    for _ in 0..OPS {
        black_box(black_box(answer).encode_to_vec());
    }
}

/// A keyspace on RocksDB, with all keys flushed, so that reads go through its files.
struct Store {
    _dir: tempfile::TempDir,
    keyspace: Arc<Keyspace>,
    writer: Writer,
    index: u64,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let backend = RocksBackend::open(RocksOptions::new(dir.path())).expect("the store opens");
        let (keyspace, writer) = Keyspace::open(backend).expect("the keyspace opens");
        let mut store = Self { _dir: dir, keyspace, writer, index: 0 };
        for batch in 0..KEYS / BATCH {
            store.put_batch((batch * BATCH..(batch + 1) * BATCH).map(put).collect());
        }
        store.keyspace.flush().expect("flushed");
        store
    }

    fn put_batch(&mut self, puts: Vec<pb::PutRequest>) {
        for put in puts {
            let mut txn = self.writer.begin();
            txn.put(put.key, put.value, 0).expect("the put succeeds");
            black_box(txn.finish());
        }
        self.index += 1;
        self.writer.commit(LogId { term: 1, index: self.index }).expect("written");
        self.writer.publish();
    }
}

fn measure_store() {
    let mut store = Store::new();
    let keys: Vec<Bytes> = (0..OPS).map(|number| key(number * 31)).collect();
    // As many keys as a page has: what is behind it would be counted, too.
    let page = KeyRange { start: numbered(0), end: RangeEnd::Before(numbered(PAGE as u64)) };
    read_keys(&store.keyspace, &keys);
    guard_mvcc_get(&store.keyspace, &keys);
    read_page(&store.keyspace, &page);
    guard_list_page(&store.keyspace, &page);
    let mut batches: Vec<Vec<_>> =
        (0..2 * OPS / BATCH).map(|batch| (batch * BATCH..(batch + 1) * BATCH).map(put).collect()).collect();
    let counted = batches.split_off(batches.len() / 2);
    batches.into_iter().for_each(|batch| store.put_batch(batch));
    guard_mvcc_put(&mut store, counted);
}

fn read_keys(keyspace: &Keyspace, keys: &[Bytes]) {
    for key in keys {
        let read = keyspace.read(0).expect("readable");
        black_box(read.get(key).expect("the read succeeds").expect("the key exists"));
    }
}

fn read_page(keyspace: &Keyspace, page: &KeyRange) {
    let options = RangeOptions { limit: PAGE, ..RangeOptions::default() };
    let found = keyspace.read(0).expect("readable").range(page, &options).expect("the read succeeds");
    assert_eq!(found.kvs.len(), PAGE);
    black_box(found);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn guard_mvcc_get(keyspace: &Keyspace, keys: &[Bytes]) {
    read_keys(keyspace, keys);
}

#[inline(never)]
#[unsafe(no_mangle)]
fn guard_list_page(keyspace: &Keyspace, page: &KeyRange) {
    read_page(keyspace, page);
}

/// Updates of keys that are on disk.
#[inline(never)]
#[unsafe(no_mangle)]
fn guard_mvcc_put(store: &mut Store, batches: Vec<Vec<pb::PutRequest>>) {
    batches.into_iter().for_each(|batch| store.put_batch(batch));
}

/// The replicated state over the model of the backend: what is not RocksDB.
struct Machine {
    applier: Applier,
    mailbox: Arc<Mailbox>,
    index: u64,
}

impl Machine {
    fn new() -> Self {
        let mailbox = Mailbox::new(1 << 20);
        let (keyspace, writer) = Keyspace::open(MemBackend::new()).expect("the keyspace opens");
        let views = Views::new(keyspace, 1, 1, vec![mailbox.clone()]);
        let applier = Applier::open(writer, views, AppliedProgress::default()).expect("the state opens");
        Self { applier, mailbox, index: 0 }
    }

    fn entry(&mut self) -> Committed {
        let mut bytes = BytesMut::new();
        (0..OPS).for_each(|number| command::append(&mut bytes, Kind::Put, None, &put(number)));
        self.index += 1;
        let waiter = Box::new(ReplyTo { mailbox: self.mailbox.clone(), batch: self.index });
        let body = EntryBody::Commands { bytes: bytes.freeze(), waiter: Some(waiter) };
        Committed { id: LogId { term: 1, index: self.index }, body }
    }

    fn apply(&mut self, entry: Committed) {
        self.applier.step([entry]).expect("applied");
        assert!(self.mailbox.pop_replies().is_some());
    }
}

fn measure_apply() {
    let mut machine = Machine::new();
    let entry = machine.entry();
    machine.apply(entry);
    let entry = machine.entry();
    guard_apply_put(&mut machine, entry);
}

/// An entry of puts to one write batch, with answers.
#[inline(never)]
#[unsafe(no_mangle)]
fn guard_apply_put(machine: &mut Machine, entry: Committed) {
    machine.apply(entry);
}

fn measure_wal() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = WalOptions { unsafe_no_fsync: true, ..WalOptions::new(dir.path().join("wal"), Identity::default()) };
    let (wal, mut worker, _) = Wal::open(Arc::new(RealDisk::new()), options).expect("a fresh directory");
    let entries = |from: u64| -> Vec<LogEntry> {
        let entry = |index| LogEntry { id: LogId { term: 1, index }, kind: EntryKind::Commands, payload: value(index) };
        (from..from + OPS).map(entry).collect()
    };
    append(&wal, &mut worker, entries(0));
    guard_wal_append(&wal, &mut worker, entries(OPS));
}

fn append(wal: &Wal, worker: &mut WalWorker, entries: Vec<LogEntry>) {
    for entry in entries {
        wal.append(vec![entry], Box::new(|result| result.expect("written"))).expect("accepted");
    }
    black_box(worker.step().expect("written"));
}

/// Entries to frames, and one write of all of them.
#[inline(never)]
#[unsafe(no_mangle)]
fn guard_wal_append(wal: &Wal, worker: &mut WalWorker, entries: Vec<LogEntry>) {
    append(wal, worker, entries);
}

/// Nobody is behind here.
struct NoPool;

impl Pool for NoPool {
    fn run(&self, _: Box<dyn FnOnce() + Send>) {
        panic!("no watcher may fall behind");
    }
}

fn measure_watch() {
    let (keyspace, _writer) = Keyspace::open(MemBackend::new()).expect("an empty keyspace");
    let options =
        Options { ring_bytes_max: 16 << 20, fragment_bytes: 2 << 20, progress_interval: Duration::from_secs(600) };
    let mut revision = keyspace.current_revision();
    let engine = Engine::new(keyspace, Mailbox::new(1 << 20), 1 << 60, 1 << 61, || 7, options, Rc::new(NoPool));
    let sink = Sink::new(1 << 30);
    let stream = engine.borrow_mut().open(sink.clone());
    for number in 0..PREFIXES {
        let range = KeyRange::prefix(format!("/registry/{number:06}/").as_bytes());
        let RangeEnd::Before(range_end) = range.end else { panic!("a prefix has an end") };
        let create = pb::WatchCreateRequest { key: range.start, range_end, ..Default::default() };
        let request = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        engine.borrow_mut().handle_request(stream, request);
    }
    empty(&sink);
    engine.borrow_mut().handle_applied(events(&mut revision));
    assert_eq!(empty(&sink), EVENTS);
    guard_watch_match(&engine, events(&mut revision));
    assert_eq!(empty(&sink), EVENTS);
}

/// A batch of events, each under one of the watched prefixes.
fn events(revision: &mut i64) -> Arc<AppliedBatch> {
    let first_revision = *revision + 1;
    let event = |number: u64| {
        *revision += 1;
        let kv = KeyValue {
            key: format!("/registry/{:06}/object", number * 7919 % PREFIXES).into(),
            create_revision: 2,
            mod_revision: *revision,
            version: 3,
            lease: 0,
            value: value(number),
        };
        Event { kind: EventKind::Put, kv, prev: None, sub: 0 }
    };
    let events: Vec<Event> = (0..EVENTS).map(event).collect();
    let bytes = events.iter().map(Event::byte_len).sum();
    Arc::new(AppliedBatch { first_revision, last_revision: *revision, events, bytes })
}

/// Takes what has been pushed; the number of messages.
fn empty(sink: &Sink) -> u64 {
    let mut messages = 0;
    while let Taken::Message(parts) = sink.take(Waker::noop()) {
        black_box(parts);
        messages += 1;
    }
    messages
}

/// Events to the streams of those who watch them.
#[inline(never)]
#[unsafe(no_mangle)]
fn guard_watch_match(engine: &Rc<RefCell<Engine>>, batch: Arc<AppliedBatch>) {
    engine.borrow_mut().handle_applied(batch);
}
