//! The tree against a sorted map, alone and with readers beside the writer.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex};
use std::thread;

use super::tree::{Arena, BETWEEN, Cursor, Key, Tree};

/// Chunks that stay until the end, as in RocksDB's arena.
#[derive(Default)]
struct Chunks(Mutex<Vec<*mut [u64]>>);

// SAFETY: the pointers own what they point to.
unsafe impl Send for Chunks {}
// SAFETY: there is a lock around them.
unsafe impl Sync for Chunks {}

impl Chunks {
    fn bytes(&self) -> usize {
        self.0.lock().unwrap().iter().map(|chunk| chunk.len() * 8).sum()
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        // SAFETY: they come from boxes, and the tree has gone.
        self.0.get_mut().unwrap().drain(..).for_each(|chunk| drop(unsafe { Box::from_raw(chunk) }));
    }
}

unsafe extern "C" fn allocate(chunks: *mut c_void, bytes: usize) -> *mut u8 {
    // SAFETY: the table below passes its chunks.
    let chunks = unsafe { &*chunks.cast::<Chunks>() };
    // Not zero, because an arena's memory is not.
    let chunk = Box::into_raw(vec![u64::MAX; bytes.div_ceil(8)].into_boxed_slice());
    chunks.0.lock().unwrap().push(chunk);
    chunk.cast()
}

/// A tree with its arena. The tree comes first, so that it ends first.
struct Table {
    tree: Tree,
    chunks: Arc<Chunks>,
}

/// A key as a test writes it.
type Owned = (Vec<u8>, u64);

impl Table {
    fn new() -> Self {
        let chunks = Arc::<Chunks>::default();
        let context = Arc::as_ptr(&chunks).cast_mut().cast();
        // SAFETY: the chunks are behind the tree in the same struct, on the heap.
        let tree = unsafe { Tree::new(Arena { allocate, context }) };
        Self { tree, chunks }
    }

    /// An entry as RocksDB writes it.
    fn insert(&self, user: &[u8], sequence: u64) -> bool {
        let mut entry = Vec::new();
        let mut length = user.len() + 8;
        while length >= 128 {
            entry.push(length as u8 | 128);
            length >>= 7;
        }
        entry.push(length as u8);
        entry.extend_from_slice(user);
        // The type of the change is no part of the order.
        entry.extend_from_slice(&((sequence << 8) | (sequence % 2)).to_le_bytes());
        entry.extend_from_slice(b"\x05value");
        // SAFETY: the same chunks as the tree's; tests have one writer.
        unsafe {
            let place = allocate(Arc::as_ptr(&self.chunks).cast_mut().cast(), entry.len());
            place.copy_from_nonoverlapping(entry.as_ptr(), entry.len());
            self.tree.insert(place)
        }
    }

    fn cursor(&self) -> Cursor {
        // SAFETY: tests keep the table longer.
        unsafe { Cursor::new(&self.tree) }
    }
}

fn at(cursor: &Cursor) -> Option<Owned> {
    cursor.entry().map(owned)
}

fn owned(entry: *const u8) -> Owned {
    // SAFETY: an entry of the table under test.
    let key = unsafe { Key::of_entry(entry) };
    (key.user.to_vec(), key.sequence)
}

fn all(table: &Table) -> Vec<Owned> {
    let (mut cursor, mut found) = (table.cursor(), Vec::new());
    cursor.seek_to_first();
    while let Some(key) = at(&cursor) {
        found.push(key);
        cursor.next();
    }
    found
}

fn all_backward(table: &Table) -> Vec<Owned> {
    let (mut cursor, mut found) = (table.cursor(), Vec::new());
    cursor.seek_to_last();
    while let Some(key) = at(&cursor) {
        found.push(key);
        cursor.prev();
    }
    found
}

/// Small numbers that look random (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// Keys of a kind, by number.
type Kind = (&'static str, fn(u64) -> Vec<u8>);

const KINDS: [Kind; 5] = [
    ("eight bytes", |n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes().to_vec()),
    ("a long beginning in common", |n| format!("/registry/pods/namespace-{}/name-{n}", n % 7).into_bytes()),
    ("of any length, zero bytes among them", |n| {
        [0, 0, n as u8 % 3, 0, 0, 0, (n >> 8) as u8 % 2, 0, 0, 0, 0, n as u8][..n as usize % 13].to_vec()
    }),
    ("beginnings of each other", |n| vec![b'a'; n as usize % 300]),
    ("few", |n| vec![n as u8 % 4]),
];

/// Sequences count down in the order of entries.
fn expected(model: &BTreeMap<(Vec<u8>, u64), ()>) -> Vec<Owned> {
    model.keys().map(|(user, below)| (user.clone(), u64::MAX - below)).collect()
}

#[test]
fn it_is_a_sorted_map() {
    let rounds = if cfg!(miri) { 100 } else { 6_000 };
    for (kind, key) in KINDS {
        for seed in 0..if cfg!(miri) { 1 } else { 3 } {
            let (table, mut numbers, mut model) = (Table::new(), Numbers(seed), BTreeMap::new());
            for sequence in 1..=rounds {
                let user = key(numbers.next(rounds));
                // Now and then one that is there: it must be refused.
                let sequence = if numbers.next(8) == 0 { numbers.next(sequence) } else { sequence };
                let is_new = model.insert((user.clone(), u64::MAX - sequence), ()).is_none();
                assert_eq!(table.insert(&user, sequence), is_new, "{kind}, seed {seed}, {user:?} at {sequence}");
            }
            let (expected, context) = (expected(&model), format!("{kind}, seed {seed}"));
            assert!(all(&table) == expected, "{context}");
            assert!(all_backward(&table).into_iter().rev().eq(expected.iter().cloned()), "{context}, backward");
            for _ in 0..rounds {
                look_up(&table, &expected, (key(numbers.next(2 * rounds)), numbers.next(rounds + 2)), &context);
            }
        }
    }
}

/// Asks in every way for one key.
fn look_up(table: &Table, expected: &[Owned], asked: Owned, context: &str) {
    let order = |key: &Owned| (key.0.clone(), u64::MAX - key.1);
    let place = expected.partition_point(|key| order(key) < order(&asked));
    let key = Key { user: &asked.0, sequence: asked.1 };
    let mut cursor = table.cursor();
    cursor.seek(&key);
    assert_eq!(at(&cursor).as_ref(), expected.get(place), "{context}: from {asked:?} on");
    if let Some(found) = table.tree.find(&key) {
        assert_eq!(Some(&owned(found)), expected.get(place), "{context}: find {asked:?}");
    }
    cursor.prev();
    let before = if place < expected.len() { place.checked_sub(1) } else { None };
    assert_eq!(at(&cursor).as_ref(), before.map(|place| &expected[place]), "{context}: before {asked:?}");
    let not_behind = expected.partition_point(|key| order(key) <= order(&asked)).checked_sub(1);
    cursor.seek_for_prev(&key);
    assert_eq!(at(&cursor).as_ref(), not_behind.map(|place| &expected[place]), "{context}: not behind {asked:?}");
    cursor.next();
    let next = not_behind.map(|place| place + 1);
    assert_eq!(at(&cursor).as_ref(), next.and_then(|place| expected.get(place)), "{context}: next of it");
}

#[test]
fn keys_in_order_fill_their_leaves() {
    let count = if cfg!(miri) { 400 } else { 100_000u64 };
    let table = Table::new();
    (0..count).for_each(|n| assert!(table.insert(&n.to_be_bytes(), n)));
    assert!(all(&table).into_iter().eq((0..count).map(|n| (n.to_be_bytes().to_vec(), n))));
    let entries = count as usize * 24;
    let bytes = table.chunks.bytes() - entries;
    assert!(bytes < count as usize * 22, "{} bytes of nodes an entry", bytes / count as usize);
}

#[test]
fn an_empty_one_has_nothing() {
    let table = Table::new();
    let mut cursor = table.cursor();
    let key = Key { user: b"k", sequence: 1 };
    for seek in [Cursor::seek_to_first as fn(&mut Cursor), Cursor::seek_to_last, Cursor::next_leaf, Cursor::prev] {
        seek(&mut cursor);
        assert!(cursor.entry().is_none());
    }
    cursor.seek(&key);
    assert!(cursor.entry().is_none());
    cursor.seek_for_prev(&key);
    assert!(cursor.entry().is_none() && table.tree.find(&key).is_none());
}

/// What a reader may ask for, of a key that is there. It gives the entries that it came past, in the order of keys.
type Question = (&'static str, fn(&Table, &Key<'_>) -> Vec<Owned>);

const QUESTIONS: [Question; 6] = [
    ("find", |table, key| table.tree.find(key).into_iter().map(owned).collect()),
    ("seek and go on", |table, key| {
        let mut cursor = table.cursor();
        cursor.seek(key);
        let mut found = Vec::new();
        while let Some(entry) = at(&cursor) {
            found.push(entry);
            cursor.next();
        }
        found
    }),
    ("seek backward and go on", |table, key| {
        let mut cursor = table.cursor();
        cursor.seek_for_prev(key);
        let mut found = Vec::new();
        while let Some(entry) = at(&cursor) {
            found.push(entry);
            cursor.prev();
        }
        found.reverse();
        found
    }),
    ("what is before", |table, key| {
        let mut cursor = table.cursor();
        cursor.seek(key);
        let here = at(&cursor);
        cursor.prev();
        at(&cursor).into_iter().chain(here).collect()
    }),
    ("all", |table, _| all(table)),
    ("all backward", |table, _| all_backward(table).into_iter().rev().collect()),
];

/// A reader is held up before each of its steps in turn while the writer splits leaves, inner nodes and the root under it.
#[test]
#[cfg_attr(miri, ignore = "it takes hours there")]
fn a_reader_that_is_overtaken_anywhere_sees_what_was_there() {
    // (entries before, entries that overtake): one leaf; two levels; a root that splits; three levels.
    let sizes = [(20, 40), (32, 1), (200, 100), (500, 300), (560, 900), (1200, 400)];
    for (before, overtaking) in sizes {
        for in_order in [false, true] {
            let name = if in_order { "behind all others" } else { "anywhere" };
            // Even numbers before and odd ones later, or all of the later ones behind.
            let old: Vec<u64> = (0..before).map(|n| if in_order { n } else { n * 2 }).collect();
            let new = move |n: u64, asked: u64| if in_order { 1_000_000 + n } else { asked + n * 2 + 1 };
            for asked in [0, 1, before / 2, before - 2, before - 1].map(|n| old[n as usize]) {
                for (question, ask) in QUESTIONS {
                    // What visits every leaf has its turn with the smaller ones.
                    if before > 1000 && !["find", "what is before"].contains(&question) {
                        continue;
                    }
                    let context = format!("{question} {asked} of {before}, then {overtaking} {name}");
                    overtake_everywhere(&old, overtaking, &|n| new(n, asked), asked, ask, &context);
                }
            }
        }
    }
}

fn overtake_everywhere(
    old: &[u64],
    overtaking: u64,
    new: &dyn Fn(u64) -> u64,
    asked: u64,
    ask: fn(&Table, &Key<'_>) -> Vec<Owned>,
    context: &str,
) {
    for step in 0.. {
        let table = Rc::new(Table::new());
        // Mixed, so that nodes are not all as full as those of keys in order.
        (0..old.len()).for_each(|n| assert!(table.insert(&old[n * 7919 % old.len()].to_be_bytes(), 1)));
        let keys: Vec<u64> = (0..overtaking).map(new).collect();
        let (writer, mut left) = (table.clone(), step);
        BETWEEN.set(Some(Box::new(move || {
            if left == 0 {
                for key in &keys {
                    writer.insert(&key.to_be_bytes(), 2);
                }
            }
            left -= 1;
        })));
        let found = ask(&table, &Key { user: &asked.to_be_bytes(), sequence: 1 });
        let is_over = BETWEEN.take().is_some() && all(&table).iter().all(|(_, sequence)| *sequence == 1);
        assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "{context}, step {step}: {found:?}");
        // Of what was there before nothing is left out between the first and the last that was found.
        let found: Vec<u64> = found.iter().map(|(user, _)| u64::from_be_bytes(user[..].try_into().unwrap())).collect();
        let (first, last) = (found[0], found[found.len() - 1]);
        let between: Vec<u64> = old.iter().copied().filter(|key| (first..=last).contains(key)).collect();
        let seen: Vec<u64> = found.iter().copied().filter(|key| old.contains(key)).collect();
        assert!(found.contains(&asked), "{context}, step {step}: {found:?}");
        assert_eq!(seen, between, "{context}, step {step}");
        let (starts, ends) =
            (context.contains("backward") || context.starts_with("all"), context.starts_with("seek and"));
        assert!(!starts || first == old[0], "{context}, step {step}");
        assert!(!(ends || context.starts_with("all")) || last >= old[old.len() - 1], "{context}, step {step}");
        if is_over {
            break;
        }
    }
}

/// Readers see all that was put in before they began, in order, each once, however the writer goes on meanwhile.
#[test]
fn readers_miss_nothing() {
    let count = if cfg!(miri) { 250 } else { 60_000u64 };
    for (kind, key) in &KINDS[..2] {
        for in_order in [false, true] {
            let (table, done) = (Arc::new(Table::new()), Arc::new(AtomicUsize::new(0)));
            let order = move |n: u64| if in_order { n.to_be_bytes().to_vec() } else { key(n) };
            let keys: Arc<Vec<Vec<u8>>> = Arc::new((0..count).map(order).collect());
            let readers: Vec<_> = (0..2)
                .map(|reader| {
                    let (table, done, keys) = (table.clone(), done.clone(), keys.clone());
                    thread::spawn(move || read_beside(&table, &done, &keys, reader))
                })
                .collect();
            for (n, key) in keys.iter().enumerate() {
                assert!(table.insert(key, n as u64));
                done.store(n + 1, Release);
            }
            for reader in readers {
                let rounds = reader.join().unwrap_or_else(|_| panic!("{kind}, in order: {in_order}"));
                assert!(rounds > 0);
            }
        }
    }
}

fn read_beside(table: &Table, done: &AtomicUsize, keys: &[Vec<u8>], reader: u64) -> usize {
    let (mut numbers, mut rounds) = (Numbers(reader), 0);
    loop {
        let inserted = done.load(Acquire);
        for _ in 0..50.min(inserted) {
            let n = numbers.next(inserted as u64);
            let key = Key { user: &keys[n as usize], sequence: n };
            let mut cursor = table.cursor();
            cursor.seek(&key);
            assert_eq!(at(&cursor), Some((keys[n as usize].clone(), n)), "{inserted}");
            if let Some(found) = table.tree.find(&key) {
                assert_eq!(owned(found), (keys[n as usize].clone(), n));
            }
            // Entries that were there before do not hide behind newer ones, in either direction.
            for (step, ascends) in [(Cursor::next as fn(&mut Cursor), true), (Cursor::prev, false)] {
                cursor.seek(&key);
                step(&mut cursor);
                let bound = at(&cursor);
                assert!(bound.is_none_or(|(user, _)| (user > keys[n as usize]) == ascends));
            }
        }
        if rounds % 40 == 0 || inserted == keys.len() {
            let found = all(table);
            assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "each once and in order");
            let old = found.iter().filter(|(_, n)| (*n as usize) < inserted).count();
            assert_eq!(old, inserted, "all that was there");
            let backward = all_backward(table);
            assert!(backward.windows(2).all(|pair| pair[0].0 > pair[1].0));
            assert!(backward.iter().filter(|(_, n)| (*n as usize) < inserted).count() == inserted);
        }
        rounds += 1;
        if inserted == keys.len() {
            return rounds;
        }
    }
}
