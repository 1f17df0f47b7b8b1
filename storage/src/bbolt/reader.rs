//! Reads files of bbolt's format, whoever wrote them: every length, number and order is checked before it is used, no page is
//! visited twice, and nothing is read at once that is larger than a bound. Does not look at pages that no bucket uses.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{u32_at, u64_at};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::error::{Result, StorageError};

use super::{BRANCH, ELEMENT_BYTES, HEADER_BYTES, IS_BUCKET, LEAF, MAGIC, META, VERSION, fnv_1a};

/// The largest page, with what overflows: a value of etcd is below 2 GiB, and by default below 2 MiB.
const PAGE_BYTES_MAX: u64 = 256 << 20;
/// Sizes of a page that a file may have.
const PAGE_SIZES: std::ops::RangeInclusive<u32> = 512..=65_536;
/// Levels of a tree: with two elements a branch this is far beyond any file.
const LEVELS_MAX: usize = 64;
const META_BYTES: usize = 64;

/// What a key is shown to; an error ends the reading.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<()> + 'a;

/// The same with an element's flags in front.
type VisitElement<'a> = dyn FnMut(u32, &[u8], &[u8]) -> Result<()> + 'a;

/// An open file.
pub struct BboltReader {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    page_bytes: u64,
    /// Pages from here on do not exist.
    pages: u64,
    root: u64,
}

/// A bucket of the root, as [`BboltReader::buckets`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: Vec<u8>,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Page(u64),
    /// A small bucket stands in its parent: header and elements of one leaf.
    Inline(Vec<u8>),
}

impl BboltReader {
    /// Opens a file of which the first `length` bytes count.
    pub fn open(disk: &dyn Disk, path: &Path, length: u64) -> Result<Self> {
        let file = disk.open(path, OpenMode::Read)?;
        let mut newest: Option<(u64, Self)> = None;
        let mut fault = "it is too short".to_string();
        // The size of a page is in the first meta page; if that is damaged, the second is looked for where it may be.
        let places = std::iter::once(0).chain((9..=16).map(|shift| 1_u64 << shift));
        for at in places {
            match read_meta(&file, path, at, length) {
                Ok((transaction, reader)) if newest.as_ref().is_none_or(|(known, _)| *known < transaction) => {
                    newest = Some((transaction, reader));
                }
                Ok(_) => {}
                Err(Fault::Io(error)) => return Err(error),
                Err(Fault::Format(what)) if at == 0 => fault = what,
                Err(Fault::Format(_)) => {}
            }
        }
        let refused = || StorageError::Format {
            path: path.into(),
            what: format!("it is no snapshot of etcd's form, or damaged: {fault}"),
        };
        newest.map(|(_, reader)| reader).ok_or_else(refused)
    }

    /// Size of the database: without free space behind the last page.
    pub fn byte_len(&self) -> u64 {
        self.pages * self.page_bytes
    }

    /// The buckets of the root, by name.
    pub fn buckets(&self) -> Result<Vec<Bucket>> {
        let mut buckets = Vec::new();
        self.walk(&Place::Page(self.root), &mut |flags, name, value| {
            if flags & IS_BUCKET == 0 {
                return Err(self.broken(self.root, "its root holds something that is no bucket"));
            }
            let (head, inline) =
                value.split_at_checked(16).ok_or_else(|| self.broken(self.root, "a bucket has no header"))?;
            let place = match u64_at(head, 0) {
                0 => Place::Inline(inline.to_vec()),
                page => Place::Page(page),
            };
            buckets.push(Bucket { name: name.to_vec(), place });
            Ok(())
        })?;
        Ok(buckets)
    }

    /// Shows all pairs of a bucket in order of keys.
    pub fn for_each(&self, bucket: &Bucket, visit: &mut Visit<'_>) -> Result<()> {
        self.walk(&bucket.place, &mut |flags, key, value| match flags & IS_BUCKET {
            0 => visit(key, value),
            _ => Err(self.broken(0, "a bucket inside a bucket, which etcd does not have")),
        })
    }

    fn walk(&self, place: &Place, visit: &mut VisitElement<'_>) -> Result<()> {
        let mut walk = Walk { reader: self, seen: Vec::new(), last_key: None };
        match place {
            Place::Page(page) => walk.tree(*page, visit),
            Place::Inline(bytes) => {
                let page = Page { id: 0, bytes: bytes.clone() };
                let (flags, _) = page.head().ok_or_else(|| self.broken(0, "a bucket in its parent is cut short"))?;
                if flags != LEAF {
                    return Err(self.broken(0, "a bucket in its parent is no leaf"));
                }
                walk.leaf(&page, visit)
            }
        }
    }

    /// Reads a page with what overflows.
    fn page(&self, id: u64) -> Result<Page> {
        if id < 2 || id >= self.pages {
            return Err(self.broken(id, "it does not exist"));
        }
        let mut bytes = vec![0; self.page_bytes as usize];
        self.read(id, &mut bytes, 0)?;
        if u64_at(&bytes, 0) != id {
            return Err(self.broken(id, "it calls itself another"));
        }
        let overflow = u64::from(u32_at(&bytes, 12));
        let length = (1 + overflow) * self.page_bytes;
        if id + overflow >= self.pages || length > PAGE_BYTES_MAX {
            return Err(self.broken(id, "it is larger than it can be"));
        }
        let first = bytes.len();
        bytes.resize(length as usize, 0);
        self.read(id, &mut bytes, first)?;
        Ok(Page { id, bytes })
    }

    /// Fills `bytes` from `from` on.
    fn read(&self, id: u64, bytes: &mut [u8], from: usize) -> Result<()> {
        let at = id * self.page_bytes + from as u64;
        if self.file.read_at(&mut bytes[from..], at)? < bytes.len() - from {
            return Err(self.broken(id, "the file ends in it"));
        }
        Ok(())
    }

    fn broken(&self, page: u64, what: &str) -> StorageError {
        StorageError::corrupt(&self.path, page * self.page_bytes, format!("page {page}: {what}"))
    }
}

enum Fault {
    Io(StorageError),
    Format(String),
}

/// The meta page at `at`, if there is a good one: transaction, and what to read by it.
fn read_meta(
    file: &Arc<dyn DiskFile>,
    path: &Path,
    at: u64,
    length: u64,
) -> std::result::Result<(u64, BboltReader), Fault> {
    let mut bytes = [0; HEADER_BYTES + META_BYTES];
    let count = file.read_at(&mut bytes, at).map_err(Fault::Io)?;
    let wrong = |what: &str| Fault::Format(what.to_string());
    if count < bytes.len() || at + bytes.len() as u64 > length {
        return Err(wrong("it is too short"));
    }
    let meta = &bytes[HEADER_BYTES..];
    if u32_at(meta, 0) != MAGIC || u16_at(&bytes, 8) != META {
        return Err(wrong("it has no meta page"));
    }
    if fnv_1a(&meta[..56]) != u64_at(meta, 56) {
        return Err(wrong("its meta page has a wrong checksum"));
    }
    let (version, page_bytes) = (u32_at(meta, 4), u32_at(meta, 8));
    if version != VERSION || !page_bytes.is_power_of_two() || !PAGE_SIZES.contains(&page_bytes) {
        return Err(Fault::Format(format!("version {version} with pages of {page_bytes} bytes is not known")));
    }
    let (page_bytes, root, pages) = (u64::from(page_bytes), u64_at(meta, 16), u64_at(meta, 40));
    if pages.checked_mul(page_bytes).is_none_or(|bytes| bytes > length) {
        return Err(Fault::Format(format!("it is cut short: {length} bytes of {pages} pages of {page_bytes}")));
    }
    let reader = BboltReader { file: file.clone(), path: path.into(), page_bytes, pages, root };
    Ok((u64_at(meta, 48), reader))
}

/// A page in memory.
struct Page {
    id: u64,
    bytes: Vec<u8>,
}

impl Page {
    /// Flags and count; none if the bytes have no room for these or for the heads of that many elements.
    fn head(&self) -> Option<(u16, usize)> {
        if self.bytes.len() < HEADER_BYTES {
            return None;
        }
        let count = usize::from(u16_at(&self.bytes, 10));
        (HEADER_BYTES + count * ELEMENT_BYTES <= self.bytes.len()).then(|| (u16_at(&self.bytes, 8), count))
    }

    /// Flags, key and value of a leaf's element.
    fn leaf(&self, place: usize) -> Option<(u32, &[u8], &[u8])> {
        let element = HEADER_BYTES + place * ELEMENT_BYTES;
        let [flags, distance, key_len, value_len] = [0, 4, 8, 12].map(|at| u32_at(&self.bytes, element + at));
        let start = element.checked_add(distance as usize)?;
        let middle = start.checked_add(key_len as usize)?;
        let end = middle.checked_add(value_len as usize)?;
        Some((flags, self.bytes.get(start..middle)?, self.bytes.get(middle..end)?))
    }

    /// The page that a branch's element leads to, and the first key there.
    fn branch(&self, place: usize) -> Option<(u64, &[u8])> {
        let element = HEADER_BYTES + place * ELEMENT_BYTES;
        let start = element.checked_add(u32_at(&self.bytes, element) as usize)?;
        let end = start.checked_add(u32_at(&self.bytes, element + 4) as usize)?;
        Some((u64_at(&self.bytes, element + 8), self.bytes.get(start..end)?))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// One tree, from left to right.
struct Walk<'a> {
    reader: &'a BboltReader,
    /// A bit for each page of the file that was visited.
    seen: Vec<u64>,
    last_key: Option<Vec<u8>>,
}

impl Walk<'_> {
    fn tree(&mut self, root: u64, visit: &mut VisitElement<'_>) -> Result<()> {
        // Branches from the root down, each with the element that comes next.
        let mut path: Vec<(Page, usize)> = Vec::new();
        let mut next = Some(root);
        loop {
            if let Some(id) = next.take() {
                let page = self.visit_page(id)?;
                let (flags, _) = page.head().ok_or_else(|| self.reader.broken(id, "it holds less than it counts"))?;
                match flags {
                    LEAF => self.leaf(&page, visit)?,
                    BRANCH if path.len() < LEVELS_MAX => path.push((page, 0)),
                    _ => return Err(self.reader.broken(id, "it is neither leaf nor branch, or too deep")),
                }
            }
            let Some((page, place)) = path.last_mut() else { return Ok(()) };
            if page.head().is_some_and(|(_, count)| *place < count) {
                let (below, _) =
                    page.branch(*place).ok_or_else(|| self.reader.broken(page.id, "an element leads out of it"))?;
                *place += 1;
                next = Some(below);
            } else {
                path.pop();
            }
        }
    }

    fn visit_page(&mut self, id: u64) -> Result<Page> {
        let page = self.reader.page(id)?;
        let overflow = (page.bytes.len() as u64 / self.reader.page_bytes).max(1);
        if self.seen.is_empty() {
            self.seen.resize(self.reader.pages.div_ceil(64) as usize, 0);
        }
        for number in id..id + overflow {
            let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
            if self.seen[word] & bit != 0 {
                return Err(self.reader.broken(number, "two ways lead to it"));
            }
            self.seen[word] |= bit;
        }
        Ok(page)
    }

    fn leaf(&mut self, page: &Page, visit: &mut VisitElement<'_>) -> Result<()> {
        let broken = |what| self.reader.broken(page.id, what);
        let (_, count) = page.head().ok_or_else(|| broken("it holds less than it counts"))?;
        for place in 0..count {
            let (flags, key, value) = page.leaf(place).ok_or_else(|| broken("an element leads out of it"))?;
            if self.last_key.as_ref().is_some_and(|last| &last[..] >= key) {
                return Err(broken("its keys are not in order"));
            }
            visit(flags, key, value)?;
            let last = self.last_key.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::{BboltWriter, PAGE_BYTES};
    use super::*;
    use crate::sim_disk::SimDisk;

    type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

    fn file() -> &'static Path {
        Path::new("/data/snapshot")
    }

    fn disk_with(bytes: Vec<u8>) -> SimDisk {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("/data")).unwrap();
        disk.set_content(file(), Some(bytes));
        disk
    }

    fn written(buckets: &BTreeMap<Vec<u8>, Pairs>) -> Vec<u8> {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("/data")).unwrap();
        let mut writer = BboltWriter::create(&disk, Path::new("/data")).unwrap();
        for (name, pairs) in buckets {
            let mut bucket = writer.bucket(name);
            pairs.iter().for_each(|(key, value)| bucket.put(key, value).unwrap());
            bucket.finish().unwrap();
        }
        let (written, length) = writer.finish().unwrap();
        let mut bytes = vec![0; length as usize];
        written.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<BTreeMap<Vec<u8>, Pairs>> {
        let length = bytes.len() as u64;
        let reader = BboltReader::open(&disk_with(bytes), file(), length)?;
        let mut found = BTreeMap::new();
        for bucket in reader.buckets()? {
            let mut pairs = Pairs::new();
            reader.for_each(&bucket, &mut |key, value| {
                pairs.insert(key.to_vec(), value.to_vec());
                Ok(())
            })?;
            found.insert(bucket.name, pairs);
        }
        Ok(found)
    }

    fn some_buckets() -> BTreeMap<Vec<u8>, Pairs> {
        let small: Pairs = (0..3000_u32).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; 40])).collect();
        let large = (0..5_u8).map(|n| (vec![n + 1; 30], vec![n; 5000 * usize::from(n)])).collect();
        [("small", small), ("large", large), ("empty", Pairs::new())].map(|(name, pairs)| (name.into(), pairs)).into()
    }

    #[test]
    fn what_is_written_is_read() {
        let buckets = some_buckets();
        assert!(read(written(&buckets)).unwrap() == buckets);
    }

    /// bbolt keeps small buckets in their parent.
    #[test]
    fn a_bucket_in_its_parent_is_read() {
        let disk = disk_with(Vec::new());
        let mut inline = vec![0; 16];
        inline.extend_from_slice(&[0; 8]);
        inline.extend_from_slice(&LEAF.to_le_bytes());
        inline.extend_from_slice(&1_u16.to_le_bytes());
        inline.extend_from_slice(&[0; 4]);
        for field in [0_u32, 16, 3, 5] {
            inline.extend_from_slice(&field.to_le_bytes());
        }
        inline.extend_from_slice(b"keyvalue");
        let reader = BboltReader {
            file: disk.open(file(), OpenMode::Read).unwrap(),
            path: file().into(),
            page_bytes: 4096,
            pages: 4,
            root: 3,
        };
        let read_inline = |inline: &[u8]| {
            let bucket = Bucket { name: b"b".to_vec(), place: Place::Inline(inline[16..].to_vec()) };
            let mut pairs = Vec::new();
            reader
                .for_each(&bucket, &mut |key, value| {
                    pairs.push((key.to_vec(), value.to_vec()));
                    Ok(())
                })
                .map(|()| pairs)
        };
        assert_eq!(read_inline(&inline).unwrap(), [(b"key".to_vec(), b"value".to_vec())]);
        for length in 16..inline.len() {
            read_inline(&inline[..length]).unwrap_err();
        }
    }

    #[test]
    fn the_newer_good_meta_page_counts() {
        let whole = written(&some_buckets());
        for damaged in [0, 1] {
            let mut bytes = whole.clone();
            bytes[damaged * PAGE_BYTES + HEADER_BYTES + 20] ^= 1;
            assert!(read(bytes).is_ok(), "meta page {damaged} alone is damaged");
        }
        let mut bytes = whole.clone();
        bytes[HEADER_BYTES + 20] ^= 1;
        bytes[PAGE_BYTES + HEADER_BYTES + 20] ^= 1;
        assert!(matches!(read(bytes), Err(StorageError::Format { .. })));
        for length in [0, 10, PAGE_BYTES, whole.len() - PAGE_BYTES, whole.len() - 1] {
            assert!(matches!(read(whole[..length].to_vec()), Err(StorageError::Format { .. })), "{length}");
        }
    }

    /// A page that leads back to one above it would be read for ever.
    #[test]
    fn a_circle_of_pages_is_an_error() {
        let whole = written(&some_buckets());
        let root = u64_at(&whole, PAGE_BYTES + HEADER_BYTES + 16);
        let mut circles = 0;
        for page in 3..whole.len() / PAGE_BYTES {
            let at = page * PAGE_BYTES;
            if u64_at(&whole, at) == page as u64 && u16_at(&whole, at + 8) == BRANCH {
                let mut bytes = whole.clone();
                bytes[at + HEADER_BYTES + 8..][..8].copy_from_slice(&(page as u64).to_le_bytes());
                let error = read(bytes).unwrap_err();
                assert!(error.to_string().contains("two ways lead to it"), "{error}");
                circles += 1;
            }
        }
        assert!(circles > 0 && root > 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Nothing that is in a file makes the reader panic, and if it reads something it ends.
        #[test]
        fn damage_never_panics(places in prop::collection::vec((0..1_000_000_usize, any::<u8>()), 1..30), headers: bool) {
            let mut bytes = SHARED.with(Clone::clone);
            for (place, byte) in places {
                // Half of them where pages begin, which matters most.
                let at = if headers { place % (bytes.len() / PAGE_BYTES) * PAGE_BYTES + place % 64 } else { place % bytes.len() };
                bytes[at] = byte;
            }
            // Meta pages that fit again, so that what is behind them is reached.
            for page in 0..2 {
                let meta = page * PAGE_BYTES + HEADER_BYTES;
                let sum = fnv_1a(&bytes[meta..meta + 56]);
                bytes[meta + 56..meta + 64].copy_from_slice(&sum.to_le_bytes());
            }
            let _ = read(bytes);
        }
    }

    thread_local! {
        static SHARED: Vec<u8> = written(&some_buckets());
    }
}
