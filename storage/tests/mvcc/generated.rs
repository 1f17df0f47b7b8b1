//! Generated sequences of everything a keyspace is asked to do, compared with the model after each write batch. The
//! same sequences run over both backends.
//!
//! A failing run prints its seed. `DAYMARK_SEED=<seed>` repeats it, `DAYMARK_CASES=<n>` sets how many seeds are run.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use daymark_storage::LogId;
use daymark_storage::backend::{Backend, Family, MemBackend, WriteBatch};
use daymark_storage::mvcc::hash::{self, verify};
use daymark_storage::mvcc::layout::{self, Meta, Record};
use daymark_storage::mvcc::{KeyRange, Keyspace, RangeEnd, RangeOptions, ReadError, Revision, TxnChanges, Writer};

use super::model::Model;

#[test]
fn mem_agrees_with_model() {
    run_seeds(60, 120, || Box::new(MemStore { backend: MemBackend::new() }));
}

#[cfg(feature = "rocksdb")]
#[test]
fn rocks_agrees_with_model() {
    run_seeds(5, 80, || Box::new(rocks::RocksStore::new()));
}

/// A backend that can be opened again, after a stop or a crash.
trait Store {
    fn backend(&self) -> Arc<dyn Backend>;
    /// Must be called with nothing else holding the backend.
    fn reopen(&mut self);
    fn crash(&mut self);
    /// Lets the backend do all of its background work.
    fn settle(&self);
}

struct MemStore {
    backend: Arc<MemBackend>,
}

impl Store for MemStore {
    fn backend(&self) -> Arc<dyn Backend> {
        self.backend.clone()
    }

    fn reopen(&mut self) {}

    fn crash(&mut self) {
        self.backend = self.backend.crash();
    }

    fn settle(&self) {
        self.backend.flush().unwrap();
    }
}

#[cfg(feature = "rocksdb")]
mod rocks {
    use std::path::{Path, PathBuf};

    use daymark_storage::backend::{RocksBackend, RocksOptions};

    use super::*;

    pub struct RocksStore {
        root: tempfile::TempDir,
        generation: u32,
        backend: Option<Arc<RocksBackend>>,
    }

    impl RocksStore {
        pub fn new() -> Self {
            let mut store = Self { root: tempfile::tempdir().unwrap(), generation: 0, backend: None };
            store.open();
            store
        }

        fn dir(&self) -> PathBuf {
            self.root.path().join(self.generation.to_string())
        }

        fn open(&mut self) {
            let options = RocksOptions { memory_budget_bytes: 32 << 20, ..RocksOptions::new(self.dir()) };
            self.backend = Some(RocksBackend::open(options).unwrap());
        }
    }

    impl Store for RocksStore {
        fn backend(&self) -> Arc<dyn Backend> {
            self.backend.clone().unwrap()
        }

        fn reopen(&mut self) {
            assert_eq!(self.backend.take().map(|backend| Arc::strong_count(&backend)), Some(1));
            self.open();
        }

        /// Files at rest are what a crash leaves; the memtables are only in the process.
        fn crash(&mut self) {
            self.backend.as_ref().unwrap().settle().unwrap();
            let from = self.dir();
            self.generation += 1;
            copy_files(&from, &self.dir());
            self.backend = None;
            self.open();
        }

        fn settle(&self) {
            let backend = self.backend.as_ref().unwrap();
            backend.flush().unwrap();
            backend.merge_newest();
            backend.settle().unwrap();
        }
    }

    fn copy_files(from: &Path, to: &Path) {
        std::fs::create_dir(to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

fn run_seeds(cases: u64, batches: u64, store: impl Fn() -> Box<dyn Store>) {
    let variable = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let cases = variable("DAYMARK_CASES").unwrap_or(cases);
    let seeds = variable("DAYMARK_SEED").map_or(0..cases, |seed| seed..seed + 1);
    for seed in seeds {
        let run = std::panic::AssertUnwindSafe(|| Run::new(seed, store()).run(batches));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("failed with seed {seed}; repeat with DAYMARK_SEED={seed} and the name of the test");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A small generator of its own, so that a seed means the same for ever (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).max(1) as u64) as i64
    }

    /// Few keys, some of which are prefixes of others, with the bytes that are special in ranges.
    fn key(&mut self) -> Bytes {
        const PARTS: [&[u8]; 6] = [b"a", b"b", b"\0", b"\xff", b"k/", b"lease"];
        let mut key = Vec::new();
        for _ in 0..1 + self.below(3) {
            key.extend_from_slice(PARTS[self.below(6) as usize]);
        }
        key.into()
    }

    fn value(&mut self) -> Bytes {
        let len = if self.one_in(20) { 5000 } else { self.below(40) as usize };
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn range(&mut self) -> KeyRange {
        match self.below(6) {
            0 => KeyRange::all(),
            1 => KeyRange::point(self.key()),
            2 => KeyRange::prefix(&self.key()),
            3 => KeyRange { start: self.key(), end: RangeEnd::Open },
            _ => KeyRange { start: self.key(), end: RangeEnd::Before(self.key()) },
        }
    }

    fn options(&mut self, revision: i64) -> RangeOptions {
        let bound = |random: &mut Self| if random.one_in(4) { random.between(1, revision + 1) } else { 0 };
        RangeOptions {
            min_mod: bound(self),
            max_mod: bound(self),
            min_create: bound(self),
            max_create: bound(self),
            limit: if self.one_in(2) { self.below(6) as usize } else { 0 },
            keys_only: self.one_in(4),
            count_only: self.one_in(5),
            descending: self.one_in(3),
            bytes_max: if self.one_in(4) { 1 + self.below(200) as usize } else { 0 },
            without_count: false,
        }
    }
}

/// What the log carries; enough to do the same again.
#[derive(Clone, Debug)]
enum Command {
    Txn { steps: Vec<Step>, abort: bool },
    Compact(i64),
    Row(Bytes, Option<Bytes>),
}

#[derive(Clone, Debug)]
enum Step {
    Put(Bytes, Bytes, i64),
    Delete(Bytes),
    DeleteRange(KeyRange),
    Get(Bytes),
    Range(KeyRange, RangeOptions, i64),
}

struct Run {
    random: Random,
    store: Box<dyn Store>,
    open: Option<(Arc<Keyspace>, Writer)>,
    model: Model,
    rows: std::collections::BTreeMap<Bytes, Bytes>,
    /// Write batches by log index, from 1 on, with what their transactions did.
    log: Vec<(Vec<Command>, Vec<TxnChanges>)>,
}

impl Run {
    fn new(seed: u64, store: Box<dyn Store>) -> Self {
        let open = open(&*store);
        let rows = Default::default();
        Self { random: Random(seed), store, open: Some(open), model: Model::new(), rows, log: Vec::new() }
    }

    fn run(mut self, batches: u64) {
        for _ in 0..batches {
            self.write_batch();
            if self.random.one_in(3) {
                // Fences are right whenever, however far and by whom they are brought along.
                let reads_max = 1 + self.random.below(20) as usize;
                self.keyspace().tend_fences(reads_max).unwrap();
            }
            self.check_reads();
            self.check_history();
            self.check_hash();
            match self.random.below(24) {
                0 | 1 => self.keyspace().flush().unwrap(),
                2 | 3 => self.keyspace().drop_history().unwrap(),
                4 => self.store.settle(),
                5 | 6 => self.restart(true),
                7 => self.restart(false),
                _ => {}
            }
        }
        self.check_everything();
        self.restart(true);
        self.check_everything();
    }

    fn keyspace(&self) -> &Arc<Keyspace> {
        &self.open.as_ref().unwrap().0
    }

    fn write_batch(&mut self) {
        let mut commands = Vec::new();
        let mut changes = Vec::new();
        for _ in 0..self.random.below(5) {
            let command = self.command();
            let expected = self.expected_keys(&command);
            let (_, writer) = self.open.as_mut().unwrap();
            if let Some(keys) = expected {
                writer.read_ahead(keys.into_iter()).unwrap();
            }
            changes.extend(apply(writer, &command, Some(&mut self.model)));
            if let Command::Row(key, value) = &command {
                match value {
                    Some(value) => self.rows.insert(key.clone(), value.clone()),
                    None => self.rows.remove(key),
                };
                assert_rows(writer, &self.rows);
            }
            commands.push(command);
        }
        self.log.push((commands, changes));
        let (keyspace, writer) = self.open.as_mut().unwrap();
        let before = (keyspace.current_revision(), keyspace.compact_revision());
        let applied = LogId { term: 1, index: self.log.len() as u64 };
        writer.commit(applied).unwrap();
        assert_eq!((keyspace.current_revision(), keyspace.compact_revision()), before, "commit does not publish");
        if before.0 >= before.1 {
            // Readers at the old revision do not notice what is committed but not published.
            let read = keyspace.read(before.0).unwrap();
            let expected = self.model.range(&KeyRange::all(), &RangeOptions::default(), before.0);
            assert_eq!(read.range(&KeyRange::all(), &RangeOptions::default()).unwrap(), expected);
        }
        writer.publish();
        assert_eq!(keyspace.current_revision(), self.model.revision);
        assert_eq!(keyspace.compact_revision(), self.model.compact);
        assert_eq!(keyspace.applied(), Some(applied));
    }

    /// Sometimes, what a command is going to put, and perhaps some of the batch before it, not always in that order.
    fn expected_keys(&mut self, command: &Command) -> Option<Vec<Bytes>> {
        let Command::Txn { steps, .. } = command else { return None };
        let puts = steps.iter().filter_map(|step| match step {
            Step::Put(key, ..) => Some(key.clone()),
            _ => None,
        });
        let mut keys: Vec<Bytes> = puts.collect();
        match self.random.below(4) {
            0 => return None,
            1 => keys.reverse(),
            2 => keys.insert(0, Bytes::from_static(b"of a command that was refused")),
            _ => {}
        }
        Some(keys)
    }

    fn command(&mut self) -> Command {
        let (random, model) = (&mut self.random, &self.model);
        match random.below(14) {
            0 => Command::Compact(random.between(model.compact - 1, model.revision + 1)),
            1 => Command::Row(random.key(), (!random.one_in(3)).then(|| random.value())),
            _ => {
                let count = if random.one_in(2) { 1 } else { 1 + random.below(6) };
                let steps = (0..count).map(|_| step(random, model.revision)).collect();
                Command::Txn { steps, abort: random.one_in(6) }
            }
        }
    }

    fn check_reads(&mut self) {
        for _ in 0..4 {
            let (current, compact) = (self.model.revision, self.model.compact);
            let revision = self.random.between(compact - 2, current + 1);
            let (range, options) = (self.random.range(), self.random.options(current));
            let key = self.random.key();
            let read = self.keyspace().read(revision);
            if revision > current {
                assert!(matches!(read, Err(ReadError::Future)));
            } else if revision > 0 && revision < compact {
                assert!(matches!(read, Err(ReadError::Compacted)));
            } else {
                let read = read.unwrap();
                let revision = if revision <= 0 { current } else { revision };
                assert_eq!(read.revision(), revision);
                let expected = self.model.range(&range, &options, revision);
                assert_eq!(read.range(&range, &options).unwrap(), expected, "{range:?} {options:?} at {revision}");
                assert_eq!(read.get(&key).unwrap(), self.model.get(&key, revision), "{key:?} at {revision}");
                assert_eq!(read.count(&range).unwrap(), expected.count);
                for _ in 0..4 {
                    let range = self.random.range();
                    let count = self.model.range(&range, &RangeOptions::default(), revision).count;
                    let read = self.keyspace().read(revision).unwrap();
                    assert_eq!(read.count(&range).unwrap(), count, "{range:?} at {revision}");
                }
            }
        }
    }

    /// The hash that is kept is that of the model's pairs, at any revision that can be read.
    fn check_hash(&mut self) {
        let (current, compact) = (self.model.revision, self.model.compact);
        let revision = self.random.between(compact - 2, current + 1);
        let hash = self.keyspace().hash(revision, &|| false);
        if revision > current {
            assert!(matches!(hash, Err(ReadError::Future)));
        } else if revision > 0 && revision < compact {
            assert!(matches!(hash, Err(ReadError::Compacted)));
        } else {
            let hash = hash.unwrap().unwrap();
            let at = if revision <= 0 { current } else { revision };
            assert_eq!((hash.revision, hash.compact_revision), (at, compact));
            assert_eq!(hash.sum, model_hash(&self.model, at), "at {at}");
            assert_eq!(verify(self.keyspace(), revision).unwrap(), hash);
        }
    }

    fn check_history(&mut self) {
        let (current, compact) = (self.model.revision, self.model.compact);
        let from = self.random.between(compact - 2, current + 2);
        let to = self.random.between(from, current + 2);
        let range = (!self.random.one_in(3)).then(|| self.random.range());
        let with_prev = self.random.one_in(2);
        let bytes_max = if self.random.one_in(2) { usize::MAX } else { self.random.below(300) as usize };
        if from < compact {
            let chunk = self.keyspace().history(from, to, range.as_ref(), with_prev, bytes_max);
            assert!(matches!(chunk, Err(ReadError::Compacted)));
            return;
        }
        let mut found = Vec::new();
        let mut next = from;
        while next <= to.min(current) {
            let chunk = self.keyspace().history(next, to, range.as_ref(), with_prev, bytes_max).unwrap();
            assert!(chunk.next_revision > next, "each chunk gets on");
            assert!(chunk.events_by_revision.iter().all(|(main, _)| *main < chunk.next_revision));
            next = chunk.next_revision;
            found.extend(chunk.events_by_revision);
        }
        let expected = self.model.history(from, to.min(current), range.as_ref(), with_prev);
        assert_eq!(found, expected, "from {from} to {to} {range:?} prev {with_prev}");
    }

    /// Every readable revision, and all of history.
    fn check_everything(&self) {
        let keyspace = self.keyspace();
        for revision in self.model.compact.max(1)..=self.model.revision {
            let found = keyspace.read(revision).unwrap().range(&KeyRange::all(), &RangeOptions::default()).unwrap();
            assert_eq!(found, self.model.range(&KeyRange::all(), &RangeOptions::default(), revision));
        }
        let (from, to) = (self.model.compact, self.model.revision);
        assert_eq!(keyspace.fences_mended(), 0);
        let chunk = keyspace.history(from, to, None, true, usize::MAX).unwrap();
        assert_eq!(chunk.events_by_revision, self.model.history(from, to, None, true));
        assert_eq!(chunk.next_revision, to + 1);
    }

    fn overwrite_fences(&self, row: Option<&[u8]>) {
        let mut batch = WriteBatch::default();
        match row {
            Some(row) => drop(batch.put(Family::Meta, layout::FENCES_KEY, row)),
            None => batch.delete(Family::Meta, layout::FENCES_KEY),
        }
        self.store.backend().write(&mut batch).unwrap();
    }

    /// Opens again and replays the log behind what is found, which must do the same as it did the first time.
    fn restart(&mut self, crash: bool) {
        let durable = self.keyspace().durable_applied().unwrap();
        self.open = None;
        if self.random.one_in(4) {
            // As a version without hashes has left it.
            let mut batch = WriteBatch::default();
            batch.delete(Family::Meta, layout::HASH_KEY);
            self.store.backend().write(&mut batch).unwrap();
        }
        match self.random.below(8) {
            // As a version without fences has left it, or one that stores them in another way.
            0 => self.overwrite_fences(None),
            1 => self.overwrite_fences(Some(&[9, 9, 9])),
            _ => {}
        }
        if crash {
            self.store.crash()
        } else {
            self.store.reopen()
        }
        let (keyspace, mut writer) = open(&*self.store);
        assert!(keyspace.applied() >= durable, "what was durable is there");
        if crash {
            assert_eq!(keyspace.applied(), durable, "what was not is not");
            assert_eq!(keyspace.durable_applied().unwrap(), durable);
        }
        let first = keyspace.applied().map_or(0, |applied| applied.index as usize);
        for (place, (commands, changes)) in self.log.iter().enumerate().skip(first) {
            let again: Vec<TxnChanges> =
                commands.iter().flat_map(|command| apply(&mut writer, command, None)).collect();
            assert_eq!(&again, changes, "entry {} does the same again", place + 1);
            writer.commit(LogId { term: 1, index: place as u64 + 1 }).unwrap();
        }
        writer.publish();
        assert_eq!(keyspace.current_revision(), self.model.revision);
        assert_eq!(keyspace.compact_revision(), self.model.compact);
        assert_rows(&writer, &self.rows);
        self.open = Some((keyspace, writer));
    }
}

/// The sum of the hashes of all pairs at a revision.
fn model_hash(model: &Model, revision: i64) -> u128 {
    let mut sum = 0_u128;
    for (sub, kv) in model.live(revision) {
        let modified = Revision { main: kv.mod_revision, sub };
        let (create_revision, version, lease) = (kv.create_revision, kv.version, kv.lease);
        let mut record = Vec::new();
        layout::encode_record(
            &Record::Live(Meta { modified, create_revision, version, lease }, &kv.value),
            &mut record,
        );
        sum = sum.wrapping_add(hash::of_record(&kv.key, &record, &mut Vec::new()));
    }
    sum
}

/// A cache so small that it evicts all the time, and fences between few keys.
fn open(store: &dyn Store) -> (Arc<Keyspace>, Writer) {
    let (keyspace, writer) = Keyspace::open_with(store.backend(), 1000).unwrap();
    keyspace.set_keys_per_fence(2);
    (keyspace, writer)
}

fn step(random: &mut Random, revision: i64) -> Step {
    match random.below(10) {
        0..=4 => {
            let lease = if random.one_in(4) { random.between(-2, 9) } else { 0 };
            Step::Put(random.key(), random.value(), lease)
        }
        5 => Step::Delete(random.key()),
        6 => Step::DeleteRange(random.range()),
        7 => Step::Get(random.key()),
        _ => {
            let at = if random.one_in(2) { 0 } else { random.between(0, revision + 1) };
            Step::Range(random.range(), random.options(revision), at)
        }
    }
}

/// Applies `command` and, if there is a model, does the same there and compares all answers.
fn apply(writer: &mut Writer, command: &Command, model: Option<&mut Model>) -> Option<TxnChanges> {
    match command {
        Command::Row(key, Some(value)) => writer.table_put(Family::Lease, key, value),
        Command::Row(key, None) => writer.table_delete(Family::Lease, key),
        Command::Compact(revision) => {
            let result = writer.compact(*revision);
            if let Some(model) = model {
                if *revision <= model.compact {
                    assert!(matches!(result, Err(ReadError::Compacted)));
                } else if *revision > model.revision {
                    assert!(matches!(result, Err(ReadError::Future)));
                } else {
                    result.unwrap();
                    model.compact = *revision;
                }
            }
        }
        Command::Txn { steps, abort } => return apply_txn(writer, steps, *abort, model),
    }
    None
}

fn apply_txn(writer: &mut Writer, steps: &[Step], abort: bool, model: Option<&mut Model>) -> Option<TxnChanges> {
    let mut shadow = model.as_ref().map(|model| model.begin());
    let mut txn = writer.begin();
    for step in steps {
        apply_step(&mut txn, step, model.as_deref(), shadow.as_mut());
    }
    if abort {
        drop(txn);
        return None;
    }
    let changes = txn.finish();
    if let (Some(model), Some(shadow)) = (model, shadow) {
        let (state, events) = shadow.finish();
        *model = state;
        let put_bytes = changes.put_bytes;
        assert_eq!(changes, TxnChanges { revision: model.revision, events, put_bytes });
    }
    Some(changes)
}

fn apply_step(
    txn: &mut daymark_storage::mvcc::WriteTxn<'_>,
    step: &Step,
    before: Option<&Model>,
    shadow: Option<&mut super::model::ModelTxn>,
) {
    match step {
        Step::Put(key, value, lease) => {
            let previous = txn.put(key.clone(), value.clone(), *lease).unwrap();
            if let Some(shadow) = shadow {
                assert_eq!(previous, shadow.put(key, value, *lease));
            }
        }
        Step::Delete(key) => {
            let previous = txn.delete(key).unwrap();
            if let Some(shadow) = shadow {
                assert_eq!(previous, shadow.delete(key));
            }
        }
        Step::DeleteRange(range) => {
            let previous = txn.delete_range(range).unwrap();
            if let Some(shadow) = shadow {
                assert_eq!(previous, shadow.delete_range(range));
            }
        }
        Step::Get(key) => {
            let found = txn.get(key).unwrap();
            if let Some(shadow) = shadow {
                assert_eq!(found, shadow.state.get(key, i64::MAX));
            }
        }
        Step::Range(range, options, revision) => {
            let found = txn.range(range, options, *revision);
            if let (Some(before), Some(shadow)) = (before, shadow) {
                if *revision <= 0 {
                    assert_eq!(found.unwrap(), shadow.state.range(range, options, i64::MAX));
                } else if *revision > before.revision {
                    assert!(matches!(found, Err(ReadError::Future)));
                } else if *revision < before.compact {
                    assert!(matches!(found, Err(ReadError::Compacted)));
                } else {
                    assert_eq!(found.unwrap(), before.range(range, options, *revision));
                }
            }
        }
    }
}

fn assert_rows(writer: &Writer, rows: &std::collections::BTreeMap<Bytes, Bytes>) {
    let mut found = Vec::new();
    let scanned = writer.table_scan(Family::Lease, b"", b"", &mut |key, value| {
        found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    });
    scanned.unwrap();
    assert!(found.iter().map(|(key, value)| (key, value)).eq(rows.iter()));
    for (key, value) in rows {
        assert_eq!(writer.table_get(Family::Lease, key).unwrap().as_deref(), Some(&value[..]));
    }
}
