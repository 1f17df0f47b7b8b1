//! Writes files of bbolt's format, which etcd's tools read: named buckets of ordered keys, each a B+ tree of pages. Only
//! from sorted input and from front to back, with one page of each level in memory. Reading them is `reader`'s; neither
//! knows what the buckets hold.
//!
//! ```text
//! page    = id u64, flags u16, count u16, overflow u32, content; 4096 bytes, times 1 + overflow
//! 0, 1    meta: magic, version, page size, flags (u32 each), root bucket (page u64, sequence u64), free list page u64,
//!         pages u64, transaction u64, FNV-1a of these
//! 2       free list, empty
//! 3..     leaf:   flags u32, distance to key u32, key length u32, value length u32; then keys and values
//!         branch: distance to key u32, key length u32, page u64; then keys
//! ```
//! All numbers are little-endian. The root bucket holds each bucket's root page and sequence under its name.

mod reader;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, unnamed_file};
use crate::error::Result;

pub use reader::{BboltReader, Bucket};

/// Size of a page.
pub const PAGE_BYTES: usize = 4096;

const HEADER_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
/// Counts are 16 bits; some readers take the greatest for a mark.
const ELEMENTS_MAX: usize = 0xfffe;
/// With one element a page, each level would need another above it, without end.
const BRANCH_ELEMENTS_MIN: usize = 2;
/// Pages are gathered to so many bytes before they are written.
const WRITE_BYTES: usize = 256 << 10;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const META: u16 = 0x04;
const FREE_LIST: u16 = 0x10;
/// Flag of a leaf element whose value is a bucket.
const IS_BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
const FREE_LIST_PAGE: u64 = 2;
const FIRST_PAGE: u64 = 3;

/// A file under construction. It has no name, so that it goes away with whoever holds it, however that ends.
pub struct BboltWriter {
    file: Arc<dyn DiskFile>,
    /// Next page to be numbered.
    next_page: u64,
    /// Where `pending` belongs in the file.
    offset: u64,
    pending: Vec<u8>,
    roots: BTreeMap<Vec<u8>, u64>,
}

impl BboltWriter {
    /// Begins a file in `dir`.
    pub fn create(disk: &dyn Disk, dir: &Path) -> Result<Self> {
        let file = unnamed_file(disk, dir)?;
        let offset = FIRST_PAGE * PAGE_BYTES as u64;
        Ok(Self { file, next_page: FIRST_PAGE, offset, pending: Vec::new(), roots: BTreeMap::new() })
    }

    /// Begins a bucket. Its name must be new.
    pub fn bucket(&mut self, name: &[u8]) -> BucketWriter<'_> {
        assert!(!self.roots.contains_key(name), "a bucket is written once");
        BucketWriter { tree: Tree::new(self, 0), name: name.to_vec() }
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.offset + self.pending.len() as u64
    }

    /// Whether there is nothing in it but what every file has.
    pub fn is_empty(&self) -> bool {
        self.next_page == FIRST_PAGE
    }

    /// Ends the file; returns it with its length.
    pub fn finish(mut self) -> Result<(Arc<dyn DiskFile>, u64)> {
        let roots = std::mem::take(&mut self.roots);
        let mut tree = Tree::new(&mut self, IS_BUCKET);
        for (name, root) in &roots {
            let mut bucket = [0; 16];
            bucket[..8].copy_from_slice(&root.to_le_bytes());
            tree.put(name, &bucket)?;
        }
        let root = tree.finish()?;
        self.write_out()?;
        let mut first = Vec::with_capacity(FIRST_PAGE as usize * PAGE_BYTES);
        for page in 0..2 {
            put_header(&mut first, page, META, 0, 0);
            put_meta(&mut first, root, self.next_page, page);
            first.resize((page as usize + 1) * PAGE_BYTES, 0);
        }
        put_header(&mut first, FREE_LIST_PAGE, FREE_LIST, 0, 0);
        first.resize(FIRST_PAGE as usize * PAGE_BYTES, 0);
        self.file.write_at(&first, 0)?;
        debug_assert_eq!(self.offset, self.next_page * PAGE_BYTES as u64);
        Ok((self.file, self.offset))
    }

    /// Numbers a page and queues it; returns its number.
    fn add(&mut self, page: &Page, flags: u16) -> Result<u64> {
        let id = self.next_page;
        let start = self.pending.len();
        page.encode(id, flags, &mut self.pending);
        self.next_page += ((self.pending.len() - start) / PAGE_BYTES) as u64;
        if self.pending.len() >= WRITE_BYTES {
            self.write_out()?;
        }
        Ok(id)
    }

    fn write_out(&mut self) -> Result<()> {
        self.file.write_at(&self.pending, self.offset)?;
        self.offset += self.pending.len() as u64;
        self.pending.clear();
        self.pending.shrink_to(2 * WRITE_BYTES);
        Ok(())
    }
}

/// One bucket under construction.
pub struct BucketWriter<'a> {
    tree: Tree<'a>,
    name: Vec<u8>,
}

impl BucketWriter<'_> {
    /// Adds a pair behind all others.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.tree.put(key, value)
    }

    /// Bytes of the file so far.
    pub fn file_len(&self) -> u64 {
        self.tree.out.len()
    }

    /// Ends the bucket.
    pub fn finish(mut self) -> Result<()> {
        let root = self.tree.finish()?;
        self.tree.out.roots.insert(std::mem::take(&mut self.name), root);
        Ok(())
    }
}

/// A B+ tree that grows at its right end: pages that are full are on their way to the file, their first keys in the level
/// above.
struct Tree<'a> {
    out: &'a mut BboltWriter,
    /// Of every leaf element.
    flags: u32,
    leaf: Page,
    /// From the level above the leaves up to the root.
    branches: Vec<Page>,
    last_key: Vec<u8>,
}

impl<'a> Tree<'a> {
    fn new(out: &'a mut BboltWriter, flags: u32) -> Self {
        Self { out, flags, leaf: Page::default(), branches: Vec::new(), last_key: Vec::new() }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        assert!(!key.is_empty() && key > &self.last_key[..], "keys of a bucket ascend");
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        if self.leaf.is_full_for(key.len() + value.len(), 1) {
            let id = self.out.add(&self.leaf, LEAF)?;
            let first = self.leaf.take_first_key();
            self.put_branch(0, &first, id)?;
        }
        self.leaf.push(Element::Leaf { flags: self.flags, value_len: value.len() as u32 }, key, value);
        Ok(())
    }

    fn put_branch(&mut self, level: usize, first_key: &[u8], page: u64) -> Result<()> {
        if level == self.branches.len() {
            self.branches.push(Page::default());
        }
        if self.branches[level].is_full_for(first_key.len(), BRANCH_ELEMENTS_MIN) {
            let id = self.out.add(&self.branches[level], BRANCH)?;
            let first = self.branches[level].take_first_key();
            self.put_branch(level + 1, &first, id)?;
        }
        self.branches[level].push(Element::Branch { page }, first_key, b"");
        Ok(())
    }

    /// Writes what is left of each level; returns the root's page.
    fn finish(&mut self) -> Result<u64> {
        let mut id = self.out.add(&self.leaf, LEAF)?;
        let mut first = self.leaf.take_first_key();
        let mut level = 0;
        while level < self.branches.len() {
            self.put_branch(level, &first, id)?;
            let page = &mut self.branches[level];
            id = self.out.add(page, BRANCH)?;
            first = page.take_first_key();
            level += 1;
        }
        Ok(id)
    }
}

/// What stands in front of a key.
enum Element {
    Leaf { flags: u32, value_len: u32 },
    Branch { page: u64 },
}

/// A page under construction.
#[derive(Default)]
struct Page {
    /// Element, key length, where its key begins in `data`.
    elements: Vec<(Element, u32, u32)>,
    /// Keys, each followed by its value.
    data: Vec<u8>,
}

impl Page {
    /// Whether one more would not fit. The first `least` are taken whatever their size.
    fn is_full_for(&self, bytes: usize, least: usize) -> bool {
        let filled = HEADER_BYTES + (self.elements.len() + 1) * ELEMENT_BYTES + self.data.len() + bytes;
        self.elements.len() >= least && (filled > PAGE_BYTES || self.elements.len() == ELEMENTS_MAX)
    }

    fn push(&mut self, element: Element, key: &[u8], value: &[u8]) {
        self.elements.push((element, key.len() as u32, self.data.len() as u32));
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value);
    }

    /// Empties the page.
    fn take_first_key(&mut self) -> Vec<u8> {
        let first = self.elements.first().map_or(0, |(_, key_len, _)| *key_len as usize);
        let key = self.data[..first].to_vec();
        self.elements.clear();
        self.data.clear();
        self.data.shrink_to(2 * PAGE_BYTES);
        key
    }

    fn encode(&self, id: u64, flags: u16, out: &mut Vec<u8>) {
        let start = out.len();
        let heads = self.elements.len() * ELEMENT_BYTES;
        let pages = (HEADER_BYTES + heads + self.data.len()).div_ceil(PAGE_BYTES);
        put_header(out, id, flags, self.elements.len() as u16, pages as u32 - 1);
        for (place, (element, key_len, key_at)) in self.elements.iter().enumerate() {
            // From the element to its key.
            let distance = (heads - place * ELEMENT_BYTES) as u32 + key_at;
            match element {
                Element::Leaf { flags, value_len } => {
                    for field in [*flags, distance, *key_len, *value_len] {
                        out.extend_from_slice(&field.to_le_bytes());
                    }
                }
                Element::Branch { page } => {
                    out.extend_from_slice(&distance.to_le_bytes());
                    out.extend_from_slice(&key_len.to_le_bytes());
                    out.extend_from_slice(&page.to_le_bytes());
                }
            }
        }
        out.extend_from_slice(&self.data);
        out.resize(start + pages * PAGE_BYTES, 0);
    }
}

fn put_header(out: &mut Vec<u8>, id: u64, flags: u16, count: u16, overflow: u32) {
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&overflow.to_le_bytes());
}

fn put_meta(out: &mut Vec<u8>, root: u64, pages: u64, transaction: u64) {
    let start = out.len();
    for field in [MAGIC, VERSION, PAGE_BYTES as u32, 0] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for field in [root, 0, FREE_LIST_PAGE, pages, transaction] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    let checksum = fnv_1a(&out[start..]);
    out.extend_from_slice(&checksum.to_le_bytes());
}

fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sim_disk::SimDisk;

    type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;

    fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
        bytes[at..at + length].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Reads a tree as the format says, from its root down; checks ids and the order of keys on the way.
    fn read_tree(file: &[u8], page: u64, pages_seen: &mut Vec<u64>) -> Vec<(u32, Vec<u8>, Vec<u8>)> {
        let at = page as usize * PAGE_BYTES;
        let (id, flags, count) = (number(file, at, 8), number(file, at + 8, 2), number(file, at + 10, 2));
        assert_eq!(id, page);
        pages_seen.extend(page..=page + number(file, at + 12, 4));
        let mut pairs = Vec::new();
        for place in 0..count as usize {
            let element = at + HEADER_BYTES + place * ELEMENT_BYTES;
            let field = |n: usize| number(file, element + 4 * n, 4) as usize;
            if flags == u64::from(LEAF) {
                let key_at = element + field(1);
                let (key, value) = file[key_at..][..field(2) + field(3)].split_at(field(2));
                pairs.push((field(0) as u32, key.to_vec(), value.to_vec()));
            } else {
                assert_eq!(flags, u64::from(BRANCH));
                let key = &file[element + field(0)..][..field(1)];
                let below = read_tree(file, number(file, element + 8, 8), pages_seen);
                assert_eq!(below[0].1, key, "a branch knows the first key below");
                pairs.extend(below);
            }
        }
        assert!(pairs.is_sorted_by(|a, b| a.1 < b.1));
        pairs
    }

    fn read_file(file: &[u8]) -> BTreeMap<Vec<u8>, Pairs> {
        let mut pages_seen = vec![0, 1, 2];
        for page in [0, 1] {
            let meta = &file[page * PAGE_BYTES + HEADER_BYTES..][..64];
            assert_eq!(number(meta, 0, 4), u64::from(MAGIC));
            assert_eq!(number(meta, 40, 8) as usize * PAGE_BYTES, file.len());
            assert_eq!((number(meta, 48, 8), number(meta, 56, 8)), (page as u64, fnv_1a(&meta[..56])));
        }
        let root = number(file, PAGE_BYTES + HEADER_BYTES + 16, 8);
        let mut buckets = BTreeMap::new();
        for (flags, name, bucket) in read_tree(file, root, &mut pages_seen) {
            assert_eq!((flags, bucket.len(), number(&bucket, 8, 8)), (IS_BUCKET, 16, 0));
            let pairs = read_tree(file, number(&bucket, 0, 8), &mut pages_seen);
            assert!(pairs.iter().all(|(flags, _, _)| *flags == 0));
            buckets.insert(name, pairs.into_iter().map(|(_, key, value)| (key, value)).collect());
        }
        pages_seen.sort_unstable();
        assert_eq!(pages_seen, (0..(file.len() / PAGE_BYTES) as u64).collect::<Vec<_>>(), "each page is used once");
        buckets
    }

    fn written(buckets: &BTreeMap<Vec<u8>, Pairs>) -> Vec<u8> {
        let disk = SimDisk::new(1);
        let dir = Path::new("/data");
        disk.create_dir_all(dir).unwrap();
        let mut writer = BboltWriter::create(&disk, dir).unwrap();
        assert!(disk.list(dir).unwrap().is_empty(), "it is gone with whoever holds it");
        // Not in the order of names.
        for (name, pairs) in buckets.iter().rev() {
            let mut bucket = writer.bucket(name);
            pairs.iter().for_each(|(key, value)| bucket.put(key, value).unwrap());
            bucket.finish().unwrap();
        }
        let (file, length) = writer.finish().unwrap();
        let mut bytes = vec![0; length as usize];
        assert_eq!((file.read_at(&mut bytes, 0).unwrap() as u64, file.len().unwrap()), (length, length));
        bytes
    }

    #[test]
    fn three_levels_and_large_values_are_read_back() {
        let small: Pairs = (0..20_000_u32).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; 40])).collect();
        let large = (0..9_u8).map(|n| (vec![n + 1; 3000], vec![n; 1000 * usize::from(n) * usize::from(n)])).collect();
        let full = (0..300_u16).map(|n| (n.to_be_bytes().to_vec(), vec![1; PAGE_BYTES - 34])).collect();
        let buckets = [("small", small), ("large", large), ("full", full), ("empty", Pairs::new())];
        let buckets = buckets.map(|(name, pairs)| (name.as_bytes().to_vec(), pairs)).into();
        assert!(read_file(&written(&buckets)) == buckets);
    }

    proptest! {
        // Each case writes up to a megabyte to the simulated disk.
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn whatever_is_put_is_read_back(sizes in prop::collection::vec((1..9000_usize, 0..20_000_usize), 0..40)) {
            let pair = |(n, (key, value)): (usize, &(usize, usize))| {
                ([&(n as u16).to_be_bytes()[..], &vec![7; *key]].concat(), vec![n as u8; *value])
            };
            let pairs: Pairs = sizes.iter().enumerate().map(pair).collect();
            let buckets = BTreeMap::from([(b"only".to_vec(), pairs)]);
            prop_assert!(read_file(&written(&buckets)) == buckets);
        }

        #[test]
        fn any_number_of_pairs_is_read_back(count in 0..3000_u32, value in 0..200_usize) {
            let pairs: Pairs = (0..count).map(|n| (n.to_be_bytes().to_vec(), vec![n as u8; value])).collect();
            let buckets = BTreeMap::from([(b"only".to_vec(), pairs)]);
            prop_assert!(read_file(&written(&buckets)) == buckets);
        }
    }
}
