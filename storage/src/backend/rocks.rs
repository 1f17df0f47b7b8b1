//! The backend on RocksDB; the only file that names it. Its own write-ahead log is off: the raft log is the log, and
//! atomic flushes leave after a crash exactly the state of some earlier write batch.

#![allow(clippy::disallowed_methods, reason = "RocksDB has its own files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::compaction_filter::Decision;
use rocksdb::{
    BlockBasedOptions, BlockBasedTablePinningTier, Cache, ColumnFamily, ColumnFamilyDescriptor, CompactOptions, DB,
    DBCompressionType, DBRawIterator, Env, ErrorKind, FlushOptions, LogLevel, Options, ReadOptions, ReadTier, Snapshot,
    WaitForCompactOptions, WriteBufferManager, WriteOptions,
};

use super::{Backend, BackendSize, CopyUse, Cursor, Direction, Family, Span, View, WriteBatch, memtable};
use crate::disk::{Disk, RealDisk};
use crate::error::{Result, StorageError};
use crate::mvcc::{Revision, layout};

/// Size of a file, where what lies below it allows that: few enough files for a large store.
const TARGET_FILE_BYTES: u64 = 64 << 20;
/// Size of the first level below the flushed files; each further one is ten times as large.
const LEVEL_BASE_BYTES: u64 = 256 << 20;
/// About what one merge reads, and so writes before it gives the old files back: files that overlap more than this of
/// the level below are cut smaller (at ten times as much below, to a third of the target). RocksDB's own bound, 25
/// target files, would ask for 1.6 GiB of free space at once. A merge of flushed files into the first level takes all
/// of these that overlap, so no less than that level makes sense.
const MERGE_BYTES_MAX: u64 = LEVEL_BASE_BYTES;

/// Compression by level where flushed files are not compressed.
const FLUSHED_AS_IT_IS: [DBCompressionType; 2] = [DBCompressionType::None, DBCompressionType::Lz4];

/// So many flushed files are merged at once.
const FLUSHED_FILES_MERGED: i32 = 8;

/// How fast writes may go at first when merging has fallen behind by 24 files; RocksDB finds the rate that it can keep from
/// there. The only name of this option is in text.
const DELAYED_WRITE_RATE: &str = "delayed_write_rate=67108864";

/// What looking at a few rows of a copy may take.
const LOOK_BUDGET_BYTES: usize = 8 << 20;

/// How a [`RocksBackend`] is opened.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Its directory; made if missing, then empty or a former backend.
    pub dir: PathBuf,
    /// Bound of block cache and memtables together. Index and filter blocks live in the cache, and memtables are
    /// charged to it, so this is what RocksDB takes but for open iterators and compaction buffers.
    pub memory_budget_bytes: usize,
    /// Bound of open files.
    pub files_open_max: i32,
}

impl RocksOptions {
    /// The budget if nothing else is asked: at small stores all of it is cache for the newest state.
    pub const MEMORY_BUDGET_BYTES: usize = 256 << 20;
    /// Memtables are what a crash makes us replay: some 200,000 puts of 256 B, half a second. Larger ones would merge
    /// less often, smaller ones restart sooner.
    const MEMTABLE_BYTES_MAX: usize = 96 << 20;

    /// Options for a directory with the default budget.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), memory_budget_bytes: Self::MEMORY_BUDGET_BYTES, files_open_max: 512 }
    }

    /// Half of the budget, as long as there is so much to write; otherwise all of it is for reads. Under load a memtable is
    /// flushed at half of this, because the one before is still being written. What it makes is merged with all of the
    /// first level as soon as there are eight, so half as much of this is twice the work.
    fn memtable_bytes(&self) -> usize {
        (self.memory_budget_bytes / 2).clamp(4 << 20, Self::MEMTABLE_BYTES_MAX)
    }
}

/// A RocksDB database with one column family for each [`Family`].
pub struct RocksBackend {
    // Fixed after construction.
    dir: PathBuf,
    db: DB,
    cache: Cache,
    memtables: WriteBufferManager,
    read: ReadOptions,
    read_durable: ReadOptions,
    write: WriteOptions,
    // Shared with the compaction filters.
    history_floor: Arc<AtomicI64>,
    options: RocksOptions,
    /// Behind `db`, so that the database is closed when its files go.
    retired: Retired,
}

/// Removes a directory if it was asked to.
struct Retired {
    is_set: AtomicBool,
    dir: PathBuf,
}

impl Drop for Retired {
    fn drop(&mut self) {
        if !self.is_set.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = RealDisk::new().remove_dir(&self.dir) {
            tracing::warn!(%error, "the files of a replaced state are left until the next start");
        }
    }
}

impl RocksBackend {
    /// Opens or creates. What is not a whole database is an error, never an empty one.
    pub fn open(options: RocksOptions) -> Result<Arc<Self>> {
        Self::open_in(&RealDisk::new(), options)
    }

    /// As [`RocksBackend::open`], the directory being made through `disk`: RocksDB makes what is in it durable, but not
    /// the directory's own name, which a power cut would take with all of it.
    fn open_in(disk: &dyn Disk, options: RocksOptions) -> Result<Arc<Self>> {
        disk.create_dir_all(&options.dir)?;
        check_families(&options.dir)?;
        Self::open_as(options, CopyUse::Live)
    }

    fn open_as(options: RocksOptions, purpose: CopyUse) -> Result<Arc<Self>> {
        let dir = options.dir.clone();
        let cache = Cache::new_hyper_clock_cache(options.memory_budget_bytes, 0);
        let memtables =
            WriteBufferManager::new_write_buffer_manager_with_cache(options.memtable_bytes(), false, cache.clone());
        let history_floor = Arc::new(AtomicI64::new(0));
        let database = database_options(&options, &memtables).map_err(|error| explain(&dir, error))?;
        let mut families = Vec::new();
        for family in Family::ALL {
            let options = family_options(family, &options, &cache, &history_floor);
            let options = options.map_err(|error| explain(&dir, error))?;
            families.push(ColumnFamilyDescriptor::new(family.name(), options));
        }
        let opened = match purpose {
            CopyUse::Live => DB::open_cf_descriptors(&database, &dir, families),
            CopyUse::Look => DB::open_cf_descriptors_read_only(&database, &dir, families, false),
        };
        let db = opened.map_err(|error| explain(&dir, error))?;
        let mut read_durable = ReadOptions::default();
        read_durable.set_read_tier(ReadTier::Persisted);
        let mut write = WriteOptions::default();
        write.disable_wal(true);
        let read = ReadOptions::default();
        let retired = Retired { is_set: AtomicBool::new(false), dir: dir.clone() };
        Ok(Arc::new(Self { dir, db, cache, memtables, read, read_durable, write, history_floor, options, retired }))
    }

    /// Waits until RocksDB has nothing left to flush or merge.
    pub fn settle(&self) -> Result<()> {
        let waited = self.db.wait_for_compact(&WaitForCompactOptions::default());
        waited.map_err(|error| explain(&self.dir, error))
    }

    /// Merges the newest state completely, which also forgets every stub that the history floor has passed. Rewrites
    /// all of it, so only for who asked to wait until space is free.
    pub fn merge_newest(&self) {
        self.db.compact_range_cf(self.family(Family::Cur), None::<&[u8]>, None::<&[u8]>);
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("every family is made at open and never dropped")
    }

    fn lookup(&self, family: Family, key: &[u8], out: &mut Vec<u8>, options: &ReadOptions) -> Result<bool> {
        out.clear();
        match self.db.get_pinned_cf_opt(self.family(family), key, options) {
            Ok(Some(value)) => {
                out.extend_from_slice(&value);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(explain(&self.dir, error)),
        }
    }

    fn cursor(
        &self,
        family: Family,
        span: Span<'_>,
        direction: Direction,
        mut options: ReadOptions,
    ) -> Result<Box<dyn Cursor + '_>> {
        if span.is_empty() {
            return Ok(Box::new(EmptyCursor));
        }
        options.set_iterate_lower_bound(span.start);
        if let Some(end) = span.end {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.db.raw_iterator_cf_opt(self.family(family), options);
        match direction {
            Direction::Forward => iterator.seek_to_first(),
            Direction::Backward => iterator.seek_to_last(),
        }
        let cursor = RocksCursor { iterator, direction, dir: &self.dir };
        cursor.check()?;
        Ok(Box::new(cursor))
    }

    fn sum_property(&self, name: &'static str) -> Result<u64> {
        let mut sum = 0;
        for family in Family::ALL {
            let value = self.db.property_int_value_cf(self.family(family), name);
            sum += value.map_err(|error| explain(&self.dir, error))?.unwrap_or(0);
        }
        Ok(sum)
    }
}

impl Backend for RocksBackend {
    fn path(&self) -> &Path {
        &self.dir
    }

    fn get(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        self.lookup(family, key, out, &self.read)
    }

    fn get_many(&self, family: Family, keys: &[&[u8]], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<()> {
        let found = self.db.batched_multi_get_cf_opt(self.family(family), keys.iter().copied(), true, &self.read);
        for (place, value) in found.into_iter().enumerate() {
            visit(place, value.map_err(|error| explain(&self.dir, error))?.as_deref());
        }
        Ok(())
    }

    fn get_durable(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        self.lookup(family, key, out, &self.read_durable)
    }

    fn iterate(&self, family: Family, span: Span<'_>, direction: Direction) -> Result<Box<dyn Cursor + '_>> {
        self.cursor(family, span, direction, ReadOptions::default())
    }

    fn iterate_once(&self, family: Family, span: Span<'_>, direction: Direction) -> Result<Box<dyn Cursor + '_>> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        self.cursor(family, span, direction, options)
    }

    fn view(&self) -> Box<dyn View + '_> {
        Box::new(RocksView { backend: self, snapshot: self.db.snapshot() })
    }

    fn write(&self, batch: &mut WriteBatch) -> Result<()> {
        // Per change: a tag, the family's number and two lengths.
        let mut native = rocksdb::WriteBatch::with_capacity_bytes(batch.byte_len() + 12 * batch.len() + 16);
        let families = Family::ALL.map(|family| self.family(family));
        // In the order of keys a memtable finds the places of many at the cost of few.
        batch.sort(Family::Cur);
        batch.drain(|(family, key, value)| match value {
            Some(value) => native.put_cf(&families[family as usize], key, value),
            None => native.delete_cf(&families[family as usize], key),
        });
        self.db.write_opt(native, &self.write).map_err(|error| explain(&self.dir, error))
    }

    fn flush(&self) -> Result<()> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        let families = Family::ALL.map(|family| self.family(family));
        self.db.flush_cfs_opt(&families, &options).map_err(|error| explain(&self.dir, error))
    }

    fn drop_files_below(&self, family: Family, key: &[u8]) -> Result<()> {
        // RocksDB drops files that lie within the interval, its end included; `key` itself must stay.
        let Some(end) = last_below(key) else { return Ok(()) };
        let dropped = self.db.delete_file_in_range_cf(self.family(family), &[][..], &end[..]);
        dropped.map_err(|error| explain(&self.dir, error))
    }

    fn set_history_floor(&self, revision: i64) {
        self.history_floor.store(revision, Ordering::Release);
    }

    fn reclaim(&self) -> Result<()> {
        self.flush()?;
        let floor = self.history_floor.load(Ordering::Acquire);
        let above_floor = layout::revision_key(Revision::first_of(floor + 1));
        let mut options = CompactOptions::default();
        // Merges that keep up with writes go on beside it.
        options.set_exclusive_manual_compaction(false);
        for family in Family::ALL {
            // Of history only the files that hold some of what is to go.
            let end = matches!(family, Family::Log | Family::Fwd).then_some(&above_floor[..]);
            self.db.compact_range_cf_opt(self.family(family), None::<&[u8]>, end, &options);
        }
        Ok(())
    }

    fn size(&self) -> Result<BackendSize> {
        Ok(BackendSize {
            on_disk_bytes: self.sum_property("rocksdb.live-sst-files-size")?,
            memtable_bytes: self.memtables.get_usage() as u64,
            cache_bytes: self.cache.get_usage() as u64,
            live_bytes: self.sum_property("rocksdb.estimate-live-data-size")?,
        })
    }

    fn checkpoint(&self, dir: &Path) -> Result<()> {
        let made = Checkpoint::new(&self.db).and_then(|checkpoint| checkpoint.create_checkpoint(dir));
        made.map_err(|error| explain(&self.dir, error))
    }

    fn open_copy(&self, dir: &Path, purpose: CopyUse) -> Result<Arc<dyn Backend>> {
        let options = RocksOptions { dir: dir.into(), ..self.options.clone() };
        match purpose {
            CopyUse::Live => Ok(Self::open(options)?),
            CopyUse::Look => {
                let options = RocksOptions { memory_budget_bytes: LOOK_BUDGET_BYTES, ..options };
                Ok(Self::open_as(options, purpose)?)
            }
        }
    }

    fn retire(&self) {
        self.retired.is_set.store(true, Ordering::Release);
    }
}

struct RocksView<'a> {
    backend: &'a RocksBackend,
    snapshot: Snapshot<'a>,
}

impl View for RocksView<'_> {
    fn get(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        out.clear();
        let found = self.snapshot.get_cf(self.backend.family(family), key);
        match found.map_err(|error| explain(&self.backend.dir, error))? {
            Some(value) => {
                out.extend_from_slice(&value);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn iterate(&self, family: Family, span: Span<'_>) -> Result<Box<dyn Cursor + '_>> {
        if span.is_empty() {
            return Ok(Box::new(EmptyCursor));
        }
        let mut options = ReadOptions::default();
        // Who wants a view reads all of it, once.
        options.fill_cache(false);
        options.set_iterate_lower_bound(span.start);
        if let Some(end) = span.end {
            options.set_iterate_upper_bound(end);
        }
        let mut iterator = self.snapshot.raw_iterator_cf_opt(self.backend.family(family), options);
        iterator.seek_to_first();
        let cursor = RocksCursor { iterator, direction: Direction::Forward, dir: &self.backend.dir };
        cursor.check()?;
        Ok(Box::new(cursor))
    }
}

struct RocksCursor<'a> {
    iterator: DBRawIterator<'a>,
    direction: Direction,
    dir: &'a Path,
}

impl RocksCursor<'_> {
    /// An iterator that met a damaged block just ends; only its status tells.
    fn check(&self) -> Result<()> {
        if self.iterator.valid() {
            return Ok(());
        }
        self.iterator.status().map_err(|error| explain(self.dir, error))
    }
}

impl Cursor for RocksCursor<'_> {
    fn item(&self) -> Option<(&[u8], &[u8])> {
        self.iterator.item()
    }

    fn advance(&mut self) -> Result<()> {
        assert!(self.iterator.valid(), "a cursor is not moved past its end");
        match self.direction {
            Direction::Forward => self.iterator.next(),
            Direction::Backward => self.iterator.prev(),
        }
        self.check()
    }
}

struct EmptyCursor;

impl Cursor for EmptyCursor {
    fn item(&self) -> Option<(&[u8], &[u8])> {
        None
    }

    fn advance(&mut self) -> Result<()> {
        unreachable!("an empty cursor stands at its end")
    }
}

/// The greatest key of `key`'s length below it; none if it is all zero bytes. The families that drop files have keys
/// of one length.
fn last_below(key: &[u8]) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    for byte in key.iter_mut().rev() {
        let (less, borrowed) = byte.overflowing_sub(1);
        *byte = less;
        if !borrowed {
            return Some(key);
        }
    }
    None
}

/// RocksDB makes a new, empty database where CURRENT is missing, and opens one without families it does not know
/// about: both would look like fewer keys.
fn check_families(dir: &Path) -> Result<()> {
    let format = |what: String| Err(StorageError::Format { path: dir.into(), what });
    let list = fs::read_dir(dir).map_err(|source| StorageError::io("listing the directory", dir, source))?;
    let mut has_current = false;
    let mut has_tables = false;
    for entry in list {
        let entry = entry.map_err(|source| StorageError::io("listing the directory", dir, source))?;
        has_current |= entry.file_name() == "CURRENT";
        has_tables |= entry.path().extension().is_some_and(|extension| extension == "sst");
    }
    match (has_current, has_tables) {
        (false, false) => Ok(()),
        (false, true) => format("the file CURRENT is missing; restore the member from its peers or a snapshot".into()),
        (true, _) => {
            let found = DB::list_cf(&Options::default(), dir).map_err(|error| explain(dir, error))?;
            let known = |name: &str| name == "default" || Family::ALL.iter().any(|family| family.name() == name);
            if let Some(unknown) = found.iter().find(|name| !known(name)) {
                return format(format!("it has a family {unknown}, which this version does not know"));
            }
            let missing = Family::ALL.iter().find(|family| !found.iter().any(|name| name == family.name()));
            match missing {
                // Creation makes one family after the other and was cut short before anything was written.
                Some(family) if has_tables => format(format!("it has no family {}", family.name())),
                _ => Ok(()),
            }
        }
    }
}

fn database_options(
    options: &RocksOptions,
    memtables: &WriteBufferManager,
) -> std::result::Result<Options, rocksdb::Error> {
    let mut o = Options::default().get_options_from_string(DELAYED_WRITE_RATE)?;
    o.create_if_missing(true);
    o.create_missing_column_families(true);
    // One state for all families after a crash, which is what makes replay from the applied id right.
    o.set_atomic_flush(true);
    o.set_write_buffer_manager(memtables);
    o.set_paranoid_checks(true);
    // One flush and one compaction, with the priority of everything else: one that gives way to all others gets nothing
    // on a machine that is busy, flushed files pile up, and then writes stop until they are merged.
    let mut env = Env::new()?;
    env.set_high_priority_background_threads(1);
    env.set_low_priority_background_threads(1);
    o.set_env(&env);
    o.set_max_background_jobs(2);
    // One thread writes: locks and hints for several would only cost.
    o.set_allow_concurrent_memtable_write(false);
    o.set_enable_write_thread_adaptive_yield(false);
    o.set_unordered_write(false);
    o.set_max_open_files(options.files_open_max);
    o.set_bytes_per_sync(1 << 20);
    // Small enough to stay in a core's own cache between being filled and being written.
    o.set_writable_file_max_buffer_size(64 << 10);
    o.set_max_manifest_file_size(16 << 20);
    // Start reads no table: time to open must not grow with the number of files.
    o.set_skip_stats_update_on_db_open(true);
    // RocksDB's own diary: small, and warnings only.
    o.set_log_level(LogLevel::Warn);
    o.set_max_log_file_size(1 << 20);
    o.set_keep_log_file_num(2);
    o.set_stats_dump_period_sec(0);
    o.set_stats_persist_period_sec(0);
    Ok(o)
}

fn family_options(
    family: Family,
    options: &RocksOptions,
    cache: &Cache,
    floor: &Arc<AtomicI64>,
) -> std::result::Result<Options, rocksdb::Error> {
    let mut o = Options::default().get_options_from_string(memtable::option())?;
    // The write buffer manager decides over all families together; no family flushes alone before it.
    o.set_write_buffer_size(options.memtable_bytes());
    // One filling, one being flushed, one waiting: what a slow disk may add to the replay after a crash.
    o.set_max_write_buffer_number(3);
    o.set_compression_type(DBCompressionType::Lz4);
    o.set_level_compaction_dynamic_level_bytes(true);
    o.set_target_file_size_base(TARGET_FILE_BYTES);
    o.set_max_bytes_for_level_base(LEVEL_BASE_BYTES);
    o.set_max_compaction_bytes(MERGE_BYTES_MAX);
    // Each flush makes a file in every family. Only those of `cur` are large and overlap: the others must not stop writes
    // while the one thread that merges is at work on it.
    let files = if family == Family::Cur { 24 } else { 240 };
    // Each merge into the level below rewrites most of that: half as many cost a point read four filters more.
    o.set_level_zero_file_num_compaction_trigger(FLUSHED_FILES_MERGED);
    o.set_level_zero_slowdown_writes_trigger(files);
    o.set_level_zero_stop_writes_trigger(files + 16);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_cache_index_and_filter_blocks_with_high_priority(true);
    table.set_unpartitioned_pinning_tier(BlockBasedTablePinningTier::FlushAndSimilar);
    table.set_format_version(6);
    let floor = floor.clone();
    match family {
        Family::Cur => {
            // What is flushed is soon merged, and compressed then. Files of the other families are moved down as they are,
            // which needs the same compression everywhere.
            o.set_compression_per_level(&FLUSHED_AS_IT_IS);
            // New keys are looked up before they are written: filters answer that without touching a block, but for one
            // in 700. At 10 bits it is one in 100 for each file on the way, and under a load of new keys such blocks,
            // which nobody asked for, were most of what the cache held.
            table.set_bloom_filter(14.0, false);
            table.set_whole_key_filtering(true);
            table.set_optimize_filters_for_memory(true);
            o.set_memtable_whole_key_filtering(true);
            o.set_memtable_prefix_bloom_ratio(0.03);
            // Small enough for point reads, large enough that a listing of neighbours touches few blocks.
            table.set_block_size(8 << 10);
            o.set_compaction_filter(
                "daymark.stubs",
                move |_level, _key: &[u8], value: &[u8]| match layout::is_old_stub(value, floor.load(Ordering::Acquire))
                {
                    true => Decision::Remove,
                    false => Decision::Keep,
                },
            );
        }
        // Written in key order, so files do not overlap and are moved down without being read. History reads them in
        // order, but a read at an old revision takes single records out of them.
        Family::Log => {
            table.set_block_size(8 << 10);
            o.set_compaction_filter("daymark.history", move |_level, key: &[u8], _value: &[u8]| {
                match layout::is_old_link(key, floor.load(Ordering::Acquire)) {
                    true => Decision::Remove,
                    false => Decision::Keep,
                }
            });
        }
        Family::Fwd => {
            table.set_bloom_filter(10.0, false);
            table.set_block_size(16 << 10);
            o.set_compaction_filter(
                "daymark.links",
                move |_level, key: &[u8], _value: &[u8]| match layout::is_old_link(key, floor.load(Ordering::Acquire)) {
                    true => Decision::Remove,
                    false => Decision::Keep,
                },
            );
        }
        Family::Lease | Family::Meta => {}
    }
    o.set_block_based_table_factory(&table);
    Ok(o)
}

/// RocksDB's errors in our words.
fn explain(dir: &Path, error: rocksdb::Error) -> StorageError {
    let message = error.to_string();
    match error.kind() {
        ErrorKind::Corruption => {
            let (path, offset) = place_of_damage(&message).unwrap_or((dir.into(), 0));
            let what = format!("{message}; restore the member from its peers or a snapshot");
            StorageError::Corrupt { path, offset, what }
        }
        ErrorKind::IOError if message.contains("No space left") => StorageError::Full { path: dir.into() },
        ErrorKind::IOError if message.contains("lock") && message.contains("LOCK") => {
            StorageError::InUse { path: dir.into() }
        }
        _ => StorageError::Backend { what: format!("{}: {message}", dir.display()) },
    }
}

/// File and offset out of a message such as "block checksum mismatch: stored = 1, computed = 2, type = 4 in
/// /data/000123.sst offset 4096 size 8192".
fn place_of_damage(message: &str) -> Option<(PathBuf, u64)> {
    let (before, after) = message.rsplit_once(" offset ")?;
    let (_, file) = before.rsplit_once(" in ")?;
    let offset = after.split(|c: char| !c.is_ascii_digit()).next()?;
    Some((file.into(), offset.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim_disk::SimDisk;

    #[test]
    fn damage_is_located() {
        let message =
            "Corruption: block checksum mismatch: stored = 1, type = 4 in /data dir/01.sst offset 4096 size 9";
        assert_eq!(place_of_damage(message), Some(("/data dir/01.sst".into(), 4096)));
        assert_eq!(place_of_damage("Corruption: bad magic number"), None);
    }

    /// RocksDB writes down what it runs with.
    #[test]
    fn merges_are_bounded_in_every_family() {
        let dir = tempfile::tempdir().unwrap();
        drop(RocksBackend::open(RocksOptions::new(dir.path())).unwrap());
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let written = names.filter(|path| path.to_string_lossy().contains("OPTIONS-")).max().unwrap();
        let text = fs::read_to_string(written).unwrap();
        for family in Family::ALL {
            let section = text.split_once(&format!("[CFOptions \"{}\"]", family.name())).unwrap().1;
            let section = section.split_once("\n[").unwrap().0;
            let bytes = |name: &str| -> u64 {
                let line = section.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
                line.unwrap().parse().unwrap()
            };
            let (merge, level) = (bytes("max_compaction_bytes"), bytes("max_bytes_for_level_base"));
            assert_eq!(merge, 256 << 20, "{family:?}");
            assert!(level <= merge && 2 * bytes("target_file_size_base") <= level, "{family:?}");
        }
    }

    /// What has the least priority gets nothing while others want all: writes stopped for minutes until that was merged
    /// which had piled up.
    #[test]
    fn merging_has_the_priority_of_everything_else() {
        let nice = |task: &Path| -> i64 {
            let stat = fs::read_to_string(task.join("stat")).unwrap();
            let behind_name = stat.rsplit_once(')').unwrap().1;
            behind_name.split_whitespace().nth(16).unwrap().parse().unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let _backend = RocksBackend::open(RocksOptions::new(dir.path())).unwrap();
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap().path());
        let is_merger =
            |task: &PathBuf| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "rocksdb:low\n");
        let mergers: Vec<_> = tasks.filter(is_merger).collect();
        assert!(!mergers.is_empty(), "RocksDB names its threads");
        let own = nice(Path::new("/proc/self"));
        assert!(mergers.iter().all(|task| nice(task) == own));
    }

    #[test]
    fn the_directory_is_made_through_the_disk_which_makes_it_durable() {
        let sim = SimDisk::new(1);
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("db");
        // The simulated disk makes no directories for RocksDB, so what follows cannot work.
        assert!(RocksBackend::open_in(&sim, RocksOptions::new(&dir)).is_err());
        assert!(sim.exists(&dir).unwrap() && !dir.exists());
        drop(RocksBackend::open(RocksOptions::new(&dir)).unwrap());
        assert!(dir.join("CURRENT").exists());
    }

    #[test]
    fn last_below_borrows() {
        assert_eq!(last_below(&[1, 0, 0]), Some(vec![0, 255, 255]));
        assert_eq!(last_below(&[0, 7]), Some(vec![0, 6]));
        assert_eq!(last_below(&[0, 0]), None);
    }
}
