//! Sorts more records than memory holds: sorted runs on disk, merged when they are read. Does not know what it sorts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, unnamed_file};
use crate::error::{Result, StorageError};

/// What one run reads ahead.
const READ_AHEAD_BYTES: usize = 64 << 10;
/// Head of a record in a run: key, length.
const HEAD_BYTES: usize = 16;

/// Takes records in any order. Keys are unique numbers; a record is at most 4 GiB.
pub struct Sorter<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    bytes_max: usize,
    /// Key, place and length in `bytes`.
    records: Vec<(Key, usize, u32)>,
    bytes: Vec<u8>,
    runs: Vec<Arc<dyn DiskFile>>,
}

/// What is sorted by: two numbers, the first one first.
pub type Key = (i64, u32);

impl<'a> Sorter<'a> {
    /// Sorts with about `bytes_max` of memory and files without names in `dir`.
    pub fn new(disk: &'a dyn Disk, dir: &Path, bytes_max: usize) -> Self {
        Self { disk, dir: dir.into(), bytes_max, records: Vec::new(), bytes: Vec::new(), runs: Vec::new() }
    }

    /// Takes a record.
    pub fn push(&mut self, key: Key, record: &[u8]) -> Result<()> {
        let taken = self.bytes.len() + self.records.len() * size_of::<(Key, usize, u32)>();
        if !self.records.is_empty() && taken + record.len() > self.bytes_max {
            self.write_run()?;
        }
        self.records.push((key, self.bytes.len(), record.len() as u32));
        self.bytes.extend_from_slice(record);
        Ok(())
    }

    /// Calls `visit` with every record in order of keys.
    pub fn finish(mut self, visit: &mut dyn FnMut(Key, &[u8]) -> Result<()>) -> Result<()> {
        if self.runs.is_empty() {
            self.records.sort_unstable();
            return self
                .records
                .iter()
                .try_for_each(|(key, at, length)| visit(*key, &self.bytes[*at..][..*length as usize]));
        }
        self.write_run()?;
        self.bytes = Vec::new();
        let mut runs = self.runs.drain(..).map(Run::open).collect::<Result<Vec<_>>>()?;
        let mut heads: BinaryHeap<_> =
            runs.iter().enumerate().filter_map(|(run, at)| Some(Reverse((at.key?, run)))).collect();
        while let Some(Reverse((key, run))) = heads.pop() {
            visit(key, &runs[run].record)?;
            runs[run].advance()?;
            heads.extend(runs[run].key.map(|key| Reverse((key, run))));
        }
        Ok(())
    }

    fn write_run(&mut self) -> Result<()> {
        self.records.sort_unstable();
        let file = unnamed_file(self.disk, &self.dir)?;
        let (mut out, mut offset) = (Vec::with_capacity(READ_AHEAD_BYTES * 2), 0);
        for ((main, sub), at, length) in self.records.drain(..) {
            out.extend_from_slice(&main.to_le_bytes());
            out.extend_from_slice(&sub.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&self.bytes[at..][..length as usize]);
            if out.len() >= READ_AHEAD_BYTES {
                file.write_at(&out, offset)?;
                offset += out.len() as u64;
                out.clear();
            }
        }
        file.write_at(&out, offset)?;
        self.bytes.clear();
        self.runs.push(file);
        Ok(())
    }
}

/// One sorted run, standing on a record.
struct Run {
    file: Arc<dyn DiskFile>,
    offset: u64,
    ahead: Vec<u8>,
    used: usize,
    /// None at the end.
    key: Option<Key>,
    record: Vec<u8>,
}

impl Run {
    fn open(file: Arc<dyn DiskFile>) -> Result<Self> {
        let mut run = Self { file, offset: 0, ahead: Vec::new(), used: 0, key: None, record: Vec::new() };
        run.advance()?;
        Ok(run)
    }

    fn advance(&mut self) -> Result<()> {
        let mut head = [0; HEAD_BYTES];
        if !self.read(&mut head)? {
            self.key = None;
            return Ok(());
        }
        let [main, rest] = [&head[..8], &head[8..]];
        let field = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().expect("four bytes"));
        self.key = Some((i64::from_le_bytes(main.try_into().expect("eight bytes")), field(0)));
        let mut record = std::mem::take(&mut self.record);
        record.resize(field(4) as usize, 0);
        let whole = self.read(&mut record)?;
        self.record = record;
        if whole { Ok(()) } else { Err(StorageError::Invariant { what: "a sorted run ends inside a record".into() }) }
    }

    /// Fills `out`; false at the end of the run.
    fn read(&mut self, mut out: &mut [u8]) -> Result<bool> {
        while !out.is_empty() {
            if self.used == self.ahead.len() {
                self.ahead.resize(READ_AHEAD_BYTES, 0);
                let read = self.file.read_at(&mut self.ahead, self.offset)?;
                self.ahead.truncate(read);
                self.offset += read as u64;
                self.used = 0;
                if read == 0 {
                    return Ok(false);
                }
            }
            let length = out.len().min(self.ahead.len() - self.used);
            let (filled, rest) = out.split_at_mut(length);
            filled.copy_from_slice(&self.ahead[self.used..][..length]);
            self.used += length;
            out = rest;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sim_disk::SimDisk;

    proptest! {
        #[test]
        fn records_come_back_in_order_whatever_the_memory(
            records in prop::collection::btree_map((0..1000_i64, 0..4_u32), 0..300_usize, 0..200),
            bytes_max in 1..20_000_usize,
            order: u64,
        ) {
            let disk = SimDisk::new(1);
            disk.create_dir_all(Path::new("/data")).unwrap();
            let mut shuffled: Vec<_> = records.iter().collect();
            shuffled.sort_by_key(|(key, _)| (key.0 as u64 ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut sorter = Sorter::new(&disk, Path::new("/data"), bytes_max);
            for (key, length) in shuffled {
                sorter.push(*key, &vec![key.1 as u8; *length]).unwrap();
            }
            let mut found = Vec::new();
            sorter.finish(&mut |key, record| {
                assert!(record.iter().all(|byte| *byte == key.1 as u8));
                found.push((key, record.len()));
                Ok(())
            }).unwrap();
            prop_assert_eq!(found, records.into_iter().collect::<Vec<_>>());
            prop_assert!(disk.list(Path::new("/data")).unwrap().is_empty());
        }
    }
}
