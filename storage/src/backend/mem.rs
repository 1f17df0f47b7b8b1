//! The model of a backend: ordered maps in memory that forget at a crash what was not flushed. For tests and the
//! simulator; the server does not offer it as a place to keep data.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Backend, BackendSize, CopyUse, Cursor, Direction, Family, Span, View, WriteBatch};
use crate::codec::{put_varint, take_varint};
use crate::disk::{Disk, OpenMode, RealDisk};
use crate::error::{Result, StorageError};
use crate::mvcc::layout;

/// What a checkpoint consists of.
const ROWS_FILE: &str = "rows";

type Map = Arc<BTreeMap<Bytes, Bytes>>;

/// Maps behind one lock. Cursors hold the map as it was; the next write then copies it, which is what makes this a
/// model and not a store.
#[derive(Default)]
pub struct MemBackend {
    state: RwLock<State>,
    looked_up: AtomicU64,
}

#[derive(Default)]
struct State {
    live: [Map; 5],
    durable: [Map; 5],
    history_floor: i64,
    /// What was durable before the last flush, and how often that is still read.
    before: [Map; 5],
    late_looks: usize,
}

impl MemBackend {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What a member finds that lost its power now: a new backend at the state of the last flush.
    pub fn crash(&self) -> Arc<Self> {
        let durable = self.state.read().durable.clone();
        let state = RwLock::new(State { live: durable.clone(), durable, ..State::default() });
        Arc::new(Self { state, ..Self::default() })
    }

    /// Lets the next flush be seen by [`Backend::get_durable`] only after so many looks, as RocksDB may.
    pub fn show_flushes_late(&self, looks: usize) {
        self.state.write().late_looks = looks;
    }

    /// How many keys have been looked up, one by one or many at once.
    pub fn looked_up(&self) -> u64 {
        self.looked_up.load(Ordering::Relaxed)
    }

    fn lookup(map: &Map, key: &[u8], out: &mut Vec<u8>) -> bool {
        out.clear();
        let found = map.get(key);
        out.extend_from_slice(found.map(|value| &value[..]).unwrap_or_default());
        found.is_some()
    }
}

impl Backend for MemBackend {
    fn path(&self) -> &Path {
        Path::new("memory")
    }

    fn get(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        Ok(Self::lookup(&self.state.read().live[family as usize], key, out))
    }

    fn get_many(&self, family: Family, keys: &[&[u8]], visit: &mut dyn FnMut(usize, Option<&[u8]>)) -> Result<()> {
        let state = self.state.read();
        let mut out = Vec::new();
        self.looked_up.fetch_add(keys.len() as u64, Ordering::Relaxed);
        for (place, key) in keys.iter().enumerate() {
            let found = Self::lookup(&state.live[family as usize], key, &mut out);
            visit(place, found.then_some(&out[..]));
        }
        Ok(())
    }

    fn get_durable(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        let mut state = self.state.write();
        if state.late_looks == 0 {
            return Ok(Self::lookup(&state.durable[family as usize], key, out));
        }
        state.late_looks -= 1;
        Ok(Self::lookup(&state.before[family as usize], key, out))
    }

    fn iterate(&self, family: Family, span: Span<'_>, direction: Direction) -> Result<Box<dyn Cursor + '_>> {
        let map = self.state.read().live[family as usize].clone();
        Ok(MemCursor::open(map, span, direction))
    }

    fn view(&self) -> Box<dyn View + '_> {
        Box::new(MemView { live: self.state.read().live.clone() })
    }

    fn write(&self, batch: &mut WriteBatch) -> Result<()> {
        let mut state = self.state.write();
        batch.drain(|(family, key, value)| {
            let map = Arc::make_mut(&mut state.live[family as usize]);
            match value {
                Some(value) => map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)),
                None => map.remove(key),
            };
        });
        Ok(())
    }

    /// Also does what RocksDB does some time later: forgets stubs that the history floor has passed.
    fn flush(&self) -> Result<()> {
        let mut state = self.state.write();
        let floor = state.history_floor;
        Arc::make_mut(&mut state.live[Family::Cur as usize]).retain(|_, value| !layout::is_old_stub(value, floor));
        Arc::make_mut(&mut state.live[Family::Fwd as usize]).retain(|key, _| !layout::is_old_link(key, floor));
        let live = state.live.clone();
        state.before = std::mem::replace(&mut state.durable, live);
        Ok(())
    }

    fn drop_files_below(&self, family: Family, key: &[u8]) -> Result<()> {
        let mut state = self.state.write();
        let State { live, durable, .. } = &mut *state;
        for maps in [live, durable] {
            let map = Arc::make_mut(&mut maps[family as usize]);
            *map = map.split_off(key);
        }
        Ok(())
    }

    fn set_history_floor(&self, revision: i64) {
        self.state.write().history_floor = revision;
    }

    fn reclaim(&self) -> Result<()> {
        self.flush()
    }

    fn size(&self) -> Result<BackendSize> {
        let state = self.state.read();
        let sum =
            |maps: &[Map; 5]| maps.iter().flat_map(|map| map.iter()).map(|(k, v)| (k.len() + v.len()) as u64).sum();
        let (on_disk_bytes, live_bytes) = (sum(&state.durable), sum(&state.live));
        Ok(BackendSize { on_disk_bytes, memtable_bytes: live_bytes, cache_bytes: 0, live_bytes })
    }

    /// One file with all rows.
    fn checkpoint(&self, dir: &Path) -> Result<()> {
        let disk = RealDisk::new();
        disk.create_dir_all(dir)?;
        let mut rows = Vec::new();
        for (family, map) in self.state.read().live.iter().enumerate() {
            for (key, value) in map.iter() {
                rows.push(family as u8);
                for part in [key, value] {
                    put_varint(&mut rows, part.len() as u64);
                    rows.extend_from_slice(part);
                }
            }
        }
        let file = disk.open(&dir.join(ROWS_FILE), OpenMode::CreateNew)?;
        file.write_at(&rows, 0)?;
        file.sync_all()?;
        disk.sync_dir(dir)
    }

    fn open_copy(&self, dir: &Path, _purpose: CopyUse) -> Result<Arc<dyn Backend>> {
        let path = dir.join(ROWS_FILE);
        let file = RealDisk::new().open(&path, OpenMode::Read)?;
        let mut bytes = vec![0; file.len()? as usize];
        let count = file.read_at(&mut bytes, 0)?;
        let mut rest = &bytes[..count];
        let mut live: [Map; 5] = Default::default();
        while !rest.is_empty() {
            let row = take_row(&mut rest);
            let (family, key, value) = row.ok_or_else(|| StorageError::corrupt(&path, 0, "a row is cut short"))?;
            Arc::make_mut(&mut live[family]).insert(key, value);
        }
        let state = RwLock::new(State { durable: live.clone(), live, ..State::default() });
        Ok(Arc::new(Self { state, ..Self::default() }))
    }

    fn retire(&self) {}
}

fn take_row(rest: &mut &[u8]) -> Option<(usize, Bytes, Bytes)> {
    let (family, behind) = rest.split_first()?;
    *rest = behind;
    let mut part = || {
        let length = usize::try_from(take_varint(rest)?).ok()?;
        let (part, behind) = rest.split_at_checked(length)?;
        *rest = behind;
        Some(Bytes::copy_from_slice(part))
    };
    let (key, value) = (part()?, part()?);
    (usize::from(*family) < Family::ALL.len()).then_some((usize::from(*family), key, value))
}

struct MemView {
    live: [Map; 5],
}

impl View for MemView {
    fn get(&self, family: Family, key: &[u8], out: &mut Vec<u8>) -> Result<bool> {
        Ok(MemBackend::lookup(&self.live[family as usize], key, out))
    }

    fn iterate(&self, family: Family, span: Span<'_>) -> Result<Box<dyn Cursor + '_>> {
        Ok(MemCursor::open(self.live[family as usize].clone(), span, Direction::Forward))
    }
}

struct MemCursor {
    map: Map,
    start: Bound<Bytes>,
    end: Bound<Bytes>,
    direction: Direction,
    here: Option<(Bytes, Bytes)>,
}

impl MemCursor {
    fn open(map: Map, span: Span<'_>, direction: Direction) -> Box<dyn Cursor> {
        let end = span.end.map_or(Bound::Unbounded, |end| Bound::Excluded(Bytes::copy_from_slice(end)));
        let start = Bound::Included(Bytes::copy_from_slice(span.start));
        let mut cursor = MemCursor { map, start, end, direction, here: None };
        if !span.is_empty() {
            cursor.step();
        }
        Box::new(cursor)
    }

    fn step(&mut self) {
        let mut rest = self.map.range((self.start.clone(), self.end.clone()));
        let next = match self.direction {
            Direction::Forward => rest.next(),
            Direction::Backward => rest.next_back(),
        };
        self.here = next.map(|(key, value)| (key.clone(), value.clone()));
    }
}

impl Cursor for MemCursor {
    fn item(&self) -> Option<(&[u8], &[u8])> {
        self.here.as_ref().map(|(key, value)| (&key[..], &value[..]))
    }

    fn advance(&mut self) -> Result<()> {
        let (key, _) = self.here.take().expect("a cursor is not moved past its end");
        match self.direction {
            Direction::Forward => self.start = Bound::Excluded(key),
            Direction::Backward => self.end = Bound::Excluded(key),
        }
        self.step();
        Ok(())
    }
}
