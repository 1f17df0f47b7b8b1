//! A sorted table of entries that lie in an arena: a B+ tree for one writer and any number of readers, who take no lock.
//! It is what RocksDB keeps unflushed rows in; it knows the layout of an entry's key, and nothing else of RocksDB.
//!
//! ```text
//!  entry   varint32 length | user key | tag, 8 bytes little-endian: sequence << 8 | type | ... value
//!  order   user keys ascending by bytes; of one user key the newest sequence first
//! ```
//!
//! Readers are optimistic (Leis et al., "The ART of practical synchronization", DaMoN 2016): each node has a version, odd
//! while the writer changes it. A reader looks at the version, reads, and looks again; if it has changed, what was read
//! may be nonsense and the reader begins anew. A split locks the parent with the child, so that who has come to the child
//! by the parent's old state notices. Nothing is ever removed or given back, so every pointer that was ever read leads to
//! an entry or to a node.
//!
//! Each node has eight bytes of each of its keys: those behind the bytes that all keys between the node's bounds begin
//! with. Most searches look at no entry at all, which is what a skip list spends its time with: entries are far apart, and
//! each one is a cache miss.
//!
//! Invariants: entries of a leaf ascend, and lie between its bounds; a leaf but the first has its lower bound as its first
//! entry, and no leaf but that of an empty tree is empty; bounds only come closer; children of an inner node are one more
//! than its entries.

use std::cell::Cell;
use std::cmp::Ordering;
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU16, AtomicU32, AtomicU64, Ordering::*, fence};

/// Entries of a node.
pub(super) const SLOTS: usize = 32;
/// Nodes on the way to a leaf: with half-filled nodes more keys than memory has bytes.
const DEPTH_MAX: usize = 16;
/// How often a reader looks whether the writer has done before it lets others run.
const SPINS: u32 = 64;

/// Bytes of an entry's tag.
const TAG_BYTES: usize = 8;

/// Gives out memory that stays until the table goes.
#[derive(Copy, Clone)]
pub(super) struct Arena {
    /// Aligned for a pointer; never null.
    pub allocate: unsafe extern "C" fn(context: *mut c_void, bytes: usize) -> *mut u8,
    pub context: *mut c_void,
}

/// What entries are ordered by.
#[derive(Copy, Clone)]
pub(super) struct Key<'a> {
    pub user: &'a [u8],
    pub sequence: u64,
}

impl<'a> Key<'a> {
    /// Out of a user key with a tag.
    pub fn of_internal(bytes: &'a [u8]) -> Self {
        let (user, tag) = bytes.split_at(bytes.len() - TAG_BYTES);
        let tag = u64::from_le_bytes(tag.try_into().expect("eight bytes were split off"));
        Self { user, sequence: tag >> 8 }
    }

    /// Of an entry, or of anything that begins like one.
    ///
    /// # Safety
    /// `entry` must be one, and live and unchanged for `'a`.
    pub unsafe fn of_entry(entry: *const u8) -> Self {
        let (mut length, mut shift, mut at) = (0, 0, entry);
        loop {
            // SAFETY: a varint ends within the entry.
            let byte = unsafe { *at };
            // SAFETY: the key follows it.
            at = unsafe { at.add(1) };
            length |= usize::from(byte & 127) << shift;
            if byte < 128 {
                break;
            }
            shift += 7;
        }
        // SAFETY: so many bytes follow the length.
        Self::of_internal(unsafe { std::slice::from_raw_parts(at, length) })
    }

    /// Whether it is the same key at the same sequence.
    pub fn is(&self, other: &Key<'_>) -> bool {
        self.compare(other).is_eq()
    }

    fn compare(&self, other: &Key<'_>) -> Ordering {
        self.user.cmp(other.user).then(other.sequence.cmp(&self.sequence))
    }

    /// The eight bytes behind the first `skip`, as a number that orders as they do. Where two are equal the keys may not be.
    fn word(&self, skip: usize) -> u64 {
        let rest = self.user.get(skip..).unwrap_or_default();
        if let Some(first) = rest.first_chunk() {
            return u64::from_be_bytes(*first);
        }
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        u64::from_be_bytes(word)
    }
}

/// Something was read while the writer changed it.
struct Changed;

#[cfg(test)]
thread_local! {
    /// What happens between two steps of a reader, so that tests can have the writer overtake it anywhere.
    pub(super) static BETWEEN: std::cell::RefCell<Option<Box<dyn FnMut()>>> = const { std::cell::RefCell::new(None) };
}

/// A reader is about to look at what the writer may have changed since it last did.
fn between() {
    #[cfg(test)]
    if let Some(mut happens) = BETWEEN.take() {
        happens();
        BETWEEN.set(Some(happens));
    }
}

/// A leaf, or an inner node.
struct Node {
    version: AtomicU32,
    len: AtomicU16,
    /// 0 is a leaf. Constant.
    level: u16,
    /// Bytes that all keys between the bounds begin with.
    skip: AtomicU32,
    /// Of a leaf the one behind it, of an inner node the child before its first entry.
    link: AtomicPtr<Node>,
    /// Of an inner node, null in a leaf. Constant.
    children: *const Children,
    words: [AtomicU64; SLOTS],
    entries: [AtomicPtr<u8>; SLOTS],
}

/// Each one is behind the entry of the same number.
type Children = [AtomicPtr<Node>; SLOTS];

/// A node's bounds; none are open.
#[derive(Copy, Clone)]
struct Bounds {
    low: *const u8,
    high: *const u8,
}

impl Bounds {
    const OPEN: Self = Self { low: ptr::null(), high: ptr::null() };

    /// What all keys between the bounds begin with.
    fn shared(&self) -> usize {
        if self.low.is_null() || self.high.is_null() {
            return 0;
        }
        // SAFETY: bounds are entries of the tree.
        let (low, high) = unsafe { (Key::of_entry(self.low), Key::of_entry(self.high)) };
        low.user.iter().zip(high.user).take_while(|(a, b)| a == b).count()
    }
}

impl Node {
    fn is_leaf(&self) -> bool {
        self.level == 0
    }

    fn children(&self) -> &Children {
        // SAFETY: null, or allocated with the node for as long.
        unsafe { self.children.as_ref() }.expect("a leaf has no children")
    }

    fn len(&self) -> usize {
        between();
        usize::from(self.len.load(Acquire)).min(SLOTS)
    }

    fn entry(&self, place: usize) -> Result<*const u8, Changed> {
        let entry = self.entries[place].load(Acquire);
        if entry.is_null() { Err(Changed) } else { Ok(entry) }
    }

    /// The child behind `place` entries.
    fn child(&self, place: usize) -> Result<&Node, Changed> {
        between();
        let child = match place.checked_sub(1) {
            None => self.link.load(Acquire),
            Some(before) => self.children()[before].load(Acquire),
        };
        // SAFETY: nodes stay as long as the tree, which outlives the borrow of this one.
        unsafe { child.as_ref() }.ok_or(Changed)
    }

    /// How many entries come before `key`; with `or_equal` also those that are equal to it.
    fn before(&self, key: &Key<'_>, or_equal: bool) -> Result<usize, Changed> {
        let (len, word) = (self.len(), key.word(self.skip.load(Relaxed) as usize));
        between();
        let words = &self.words[..len];
        let mut low = words.partition_point(|other| other.load(Relaxed) < word);
        let mut high = low + words[low..].partition_point(|other| other.load(Relaxed) == word);
        while low < high {
            let middle = low + (high - low) / 2;
            // SAFETY: it is an entry, whatever place it had.
            let other = unsafe { Key::of_entry(self.entry(middle)?) };
            match other.compare(key) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal if or_equal => low = middle + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    // What readers do.

    /// The version, once the writer is not at work here.
    fn stable(&self) -> u32 {
        between();
        let mut spins = 0;
        loop {
            let version = self.version.load(Acquire);
            if version.is_multiple_of(2) {
                return version;
            }
            spins += 1;
            if spins % SPINS == 0 {
                // The writer may have lost its processor in the middle of it.
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }

    /// Whether what was read since then is what was there.
    fn check(&self, version: u32) -> Result<(), Changed> {
        between();
        fence(Acquire);
        if self.version.load(Relaxed) == version { Ok(()) } else { Err(Changed) }
    }

    // What the writer does.

    /// Whether `key` is the one at `place`. Looks at the entry, which is far away, only if that may be.
    fn has(&self, place: usize, key: &Key<'_>) -> bool {
        let may_be =
            place < self.len() && self.words[place].load(Relaxed) == key.word(self.skip.load(Relaxed) as usize);
        // SAFETY: the writer's own entries.
        may_be && unsafe { Key::of_entry(self.entries[place].load(Relaxed)) }.is(key)
    }

    fn lock(&self) {
        self.version.store(self.version.load(Relaxed) + 1, Relaxed);
        fence(Release);
    }

    fn unlock(&self) {
        self.version.store(self.version.load(Relaxed).wrapping_add(1), Release);
    }

    fn set(&self, place: usize, word: u64, entry: *const u8) {
        self.words[place].store(word, Relaxed);
        self.entries[place].store(entry.cast_mut(), Release);
    }

    fn set_len(&self, len: usize) {
        self.len.store(len as u16, Release);
    }

    /// Makes room at `place`. The node must be locked, and not full.
    fn shift(&self, place: usize) {
        for at in (place..self.len()).rev() {
            self.set(at + 1, self.words[at].load(Relaxed), self.entries[at].load(Relaxed));
        }
    }

    /// Takes over bounds that have come closer. The node must be locked, or not linked yet.
    fn narrow(&self, bounds: Bounds) {
        let shared = bounds.shared();
        if self.skip.load(Relaxed) as usize == shared {
            return;
        }
        self.skip.store(shared as u32, Relaxed);
        for place in 0..self.len() {
            // SAFETY: the writer's own entries.
            let key = unsafe { Key::of_entry(self.entries[place].load(Relaxed)) };
            self.words[place].store(key.word(shared), Relaxed);
        }
    }

    /// Puts in an entry with the child behind it. The node must be an inner one, locked, and not full.
    fn insert_child(&self, place: usize, entry: *const u8, child: *mut Node) {
        // SAFETY: an entry of the tree.
        let word = unsafe { Key::of_entry(entry) }.word(self.skip.load(Relaxed) as usize);
        let children = self.children();
        self.shift(place);
        for at in (place..self.len()).rev() {
            children[at + 1].store(children[at].load(Relaxed), Release);
        }
        children[place].store(child, Release);
        self.set(place, word, entry);
        self.set_len(self.len() + 1);
    }
}

/// The table.
pub(super) struct Tree {
    arena: Arena,
    root: AtomicPtr<Node>,
    /// Never changes: a split leaves the lower half where it is.
    first: *const Node,
    /// The writer's: where keys go that come in order.
    last: Cell<*const Node>,
}

// SAFETY: readers touch atomics and what is constant; `last` belongs to the one who calls `insert`, one at a time.
unsafe impl Sync for Tree {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Tree {}

/// A place on the writer's way to a leaf: the child of `node` behind `place` entries was taken.
#[derive(Copy, Clone)]
struct Step<'a> {
    node: &'a Node,
    place: usize,
    bounds: Bounds,
}

impl Tree {
    /// An empty one.
    ///
    /// # Safety
    /// The arena must live as long as the tree, and give memory to nobody but its one writer at a time.
    pub unsafe fn new(arena: Arena) -> Self {
        let first = allocate_node(arena, 0);
        Self { arena, root: AtomicPtr::new(first), first, last: Cell::new(first) }
    }

    /// Puts in an entry; false if one with its key and its sequence is there.
    ///
    /// # Safety
    /// `entry` must be one, in the arena, and never change again. No two calls at the same time.
    pub unsafe fn insert(&self, entry: *const u8) -> bool {
        // SAFETY: as above.
        let key = unsafe { Key::of_entry(entry) };
        // SAFETY: the arena keeps nodes as long as the tree.
        let last = unsafe { &*self.last.get() };
        let len = last.len();
        if len > 0 && len < SLOTS {
            // SAFETY: the writer's own entries.
            let tail = unsafe { Key::of_entry(last.entries[len - 1].load(Relaxed)) };
            if tail.compare(&key).is_lt() {
                self.put(last, len, &key, entry);
                return true;
            }
        }
        loop {
            let (leaf, place) =
                alone(self.leaf_for(&key, false).and_then(|(leaf, _)| Ok((leaf, leaf.before(&key, false)?))));
            if leaf.has(place, &key) {
                return false;
            }
            if leaf.len() < SLOTS {
                self.put(leaf, place, &key, entry);
                return true;
            }
            let (way, bounds) = self.way(&key);
            let is_append = place == SLOTS && bounds.high.is_null();
            if self.split(&way, leaf, bounds, is_append.then_some(entry)) {
                return true;
            }
        }
    }

    /// Puts an entry into a leaf that has room.
    fn put(&self, leaf: &Node, place: usize, key: &Key<'_>, entry: *const u8) {
        let (len, word) = (leaf.len(), key.word(leaf.skip.load(Relaxed) as usize));
        if place == len {
            // Whoever reads meanwhile sees it or does not.
            leaf.set(place, word, entry);
            leaf.set_len(len + 1);
            return;
        }
        leaf.lock();
        leaf.shift(place);
        leaf.set(place, word, entry);
        leaf.set_len(len + 1);
        leaf.unlock();
    }

    /// The inner nodes on the way to the leaf where `key` belongs, from the root on, and the leaf's bounds. The writer's.
    fn way(&self, key: &Key<'_>) -> (Vec<Step<'_>>, Bounds) {
        let mut way = Vec::with_capacity(DEPTH_MAX);
        // SAFETY: the arena keeps nodes as long as the tree.
        let mut node = unsafe { &*self.root.load(Relaxed) };
        let mut bounds = Bounds::OPEN;
        while !node.is_leaf() {
            let place = alone(node.before(key, true));
            let child = alone(node.child(place));
            way.push(Step { node, place, bounds });
            if place > 0 {
                bounds.low = node.entries[place - 1].load(Relaxed);
            }
            if place < node.len() {
                bounds.high = node.entries[place].load(Relaxed);
            }
            node = child;
        }
        (way, bounds)
    }

    /// Makes room in a full leaf, or in the topmost of the full nodes above it. With `appended`, which comes behind all
    /// others, a split of the leaf takes it in; whether that was done.
    fn split(&self, way: &[Step<'_>], leaf: &Node, bounds: Bounds, appended: Option<*const u8>) -> bool {
        // The first step of the way down behind which everything is full.
        let open = way.iter().rposition(|step| step.node.len() < SLOTS);
        let Some(open) = open else {
            self.grow();
            return false;
        };
        let parent = &way[open];
        match way.get(open + 1) {
            Some(child) => {
                self.split_inner(parent, child.node, child.bounds);
                false
            }
            None => {
                self.split_leaf(parent, leaf, bounds, appended);
                appended.is_some()
            }
        }
    }

    /// A new root above the present one.
    fn grow(&self) {
        let root = self.root.load(Relaxed);
        // SAFETY: the arena keeps nodes as long as the tree.
        let level = unsafe { (*root).level } + 1;
        assert!(usize::from(level) < DEPTH_MAX, "more keys than memory has bytes");
        let new = allocate_node(self.arena, level);
        // SAFETY: made just now.
        unsafe { (*new).link.store(root, Relaxed) };
        self.root.store(new, Release);
    }

    fn split_leaf(&self, parent: &Step<'_>, leaf: &Node, bounds: Bounds, appended: Option<*const u8>) {
        let made = allocate_node(self.arena, 0);
        // SAFETY: made just now, known to nobody.
        let right = unsafe { &*made };
        let kept = if appended.is_some() { SLOTS } else { SLOTS / 2 };
        for place in kept..SLOTS {
            right.set(place - kept, leaf.words[place].load(Relaxed), leaf.entries[place].load(Relaxed));
        }
        right.skip.store(leaf.skip.load(Relaxed), Relaxed);
        right.set_len(SLOTS - kept);
        if let Some(entry) = appended {
            // SAFETY: an entry of the tree.
            right.set(0, unsafe { Key::of_entry(entry) }.word(right.skip.load(Relaxed) as usize), entry);
            right.set_len(1);
        }
        let border = right.entries[0].load(Relaxed).cast_const();
        right.narrow(Bounds { low: border, ..bounds });
        right.link.store(leaf.link.load(Relaxed), Relaxed);

        parent.node.lock();
        leaf.lock();
        leaf.set_len(kept);
        leaf.narrow(Bounds { high: border, ..bounds });
        leaf.link.store(made, Release);
        parent.node.insert_child(parent.place, border, made);
        leaf.unlock();
        parent.node.unlock();
        if ptr::eq(leaf, self.last.get()) {
            self.last.set(made);
        }
    }

    fn split_inner(&self, parent: &Step<'_>, node: &Node, bounds: Bounds) {
        const KEPT: usize = SLOTS / 2;
        let made = allocate_node(self.arena, node.level);
        // SAFETY: made just now, known to nobody.
        let right = unsafe { &*made };
        let (from, to) = (node.children(), right.children());
        // The entry in the middle goes up; its child is the first one of the right half.
        let border = node.entries[KEPT].load(Relaxed).cast_const();
        right.link.store(from[KEPT].load(Relaxed), Relaxed);
        for (at, (place, child)) in from.iter().enumerate().skip(KEPT + 1).enumerate() {
            right.set(at, node.words[place].load(Relaxed), node.entries[place].load(Relaxed));
            to[at].store(child.load(Relaxed), Relaxed);
        }
        right.skip.store(node.skip.load(Relaxed), Relaxed);
        right.set_len(SLOTS - KEPT - 1);
        right.narrow(Bounds { low: border, ..bounds });

        parent.node.lock();
        node.lock();
        node.set_len(KEPT);
        node.narrow(Bounds { high: border, ..bounds });
        parent.node.insert_child(parent.place, border, made);
        node.unlock();
        parent.node.unlock();
    }

    /// The leaf between whose bounds `key` lies, and its version. With `strictly` the upper bound counts as inside and the
    /// lower one does not: the leaf has what comes before `key`.
    fn leaf_for(&self, key: &Key<'_>, strictly: bool) -> Result<(&Node, u32), Changed> {
        self.descend(|node| node.before(key, !strictly))
    }

    /// The leaf that is reached by taking the child behind as many entries as `choose` says.
    fn descend(&self, choose: impl Fn(&Node) -> Result<usize, Changed>) -> Result<(&Node, u32), Changed> {
        let root = self.root.load(Acquire);
        // SAFETY: the arena keeps nodes as long as the tree.
        let mut node = unsafe { &*root };
        let mut version = node.stable();
        if self.root.load(Acquire) != root {
            return Err(Changed);
        }
        while !node.is_leaf() {
            let child = node.child(choose(node)?)?;
            let below = child.stable();
            node.check(version)?;
            (node, version) = (child, below);
        }
        Ok((node, version))
    }

    /// The first entry that is not before `key`, without a cursor. None also if it may be in a further leaf.
    pub fn find(&self, key: &Key<'_>) -> Option<*const u8> {
        again(|| {
            let (leaf, version) = self.leaf_for(key, false)?;
            let place = leaf.before(key, false)?;
            let entry = if place < leaf.len() { Some(leaf.entry(place)?) } else { None };
            leaf.check(version)?;
            Ok(entry)
        })
    }
}

/// Tries until nothing was changed meanwhile.
fn again<T>(mut attempt: impl FnMut() -> Result<T, Changed>) -> T {
    loop {
        if let Ok(done) = attempt() {
            return done;
        }
    }
}

/// What the writer reads: nobody else changes it.
fn alone<T>(read: Result<T, Changed>) -> T {
    read.unwrap_or_else(|_| unreachable!("only the writer changes nodes"))
}

fn allocate_node(arena: Arena, level: u16) -> *mut Node {
    let bytes = size_of::<Node>() + if level == 0 { 0 } else { size_of::<Children>() };
    // SAFETY: the arena gives memory that is aligned and of that size. All zero is an empty leaf with nothing behind it, and
    // children that are not there yet.
    unsafe {
        let node = (arena.allocate)(arena.context, bytes).cast::<Node>();
        ptr::write_bytes(node.cast::<u8>(), 0, bytes);
        if level > 0 {
            (&raw mut (*node).level).write(level);
            (&raw mut (*node).children).write(node.add(1).cast());
        }
        node
    }
}

/// A place in the table. It has a copy of one leaf as that was when the cursor came there: who iterates sees a state that
/// has all that was put in before it began. The bridge knows the layout.
#[repr(C)]
pub(super) struct Cursor {
    tree: *const Tree,
    /// Behind the leaf that was copied.
    next: *const Node,
    /// Where it stands; `len` is nowhere.
    place: u32,
    len: u32,
    entries: [*const u8; SLOTS],
}

impl Cursor {
    /// Stands nowhere.
    ///
    /// # Safety
    /// The tree must outlive it.
    pub unsafe fn new(tree: *const Tree) -> Self {
        Self { tree, next: ptr::null(), place: 0, len: 0, entries: [ptr::null(); SLOTS] }
    }

    /// The entry where it stands.
    pub fn entry(&self) -> Option<*const u8> {
        self.entries[..self.len as usize].get(self.place as usize).copied()
    }

    fn tree<'a>(&self) -> &'a Tree {
        // SAFETY: promised by whoever made it.
        unsafe { &*self.tree }
    }

    /// The first entry.
    pub fn seek_to_first(&mut self) {
        self.take(self.tree().first);
        self.place = 0;
    }

    /// The last entry.
    pub fn seek_to_last(&mut self) {
        let tree = self.tree();
        again(|| {
            let (leaf, version) = tree.descend(|node| Ok(node.len()))?;
            self.copy(leaf, version)
        });
        self.place = self.len.saturating_sub(1);
    }

    /// The first entry that is not before `key`.
    pub fn seek(&mut self, key: &Key<'_>) {
        let tree = self.tree();
        self.place = again(|| {
            let (leaf, version) = tree.leaf_for(key, false)?;
            let place = leaf.before(key, false)?;
            self.copy(leaf, version)?;
            Ok(place as u32)
        });
        if self.place >= self.len {
            self.next_leaf();
        }
    }

    /// The last entry that is not behind `key`.
    pub fn seek_for_prev(&mut self, key: &Key<'_>) {
        self.seek_before(key, true);
    }

    /// One entry further.
    pub fn next(&mut self) {
        self.place += 1;
        if self.place >= self.len {
            self.next_leaf();
        }
    }

    /// The first entry of the next leaf.
    pub fn next_leaf(&mut self) {
        match self.next.is_null() {
            true => self.len = 0,
            false => {
                self.take(self.next);
                self.fetch();
            }
        }
        self.place = 0;
    }

    /// One entry back.
    pub fn prev(&mut self) {
        if self.place > 0 {
            self.place -= 1;
            return;
        }
        let Some(entry) = self.entry() else { return };
        // SAFETY: entries stay as long as the tree.
        let key = unsafe { Key::of_entry(entry) };
        self.seek_before(&key, false);
    }

    /// The last entry before `key`, or equal to it.
    fn seek_before(&mut self, key: &Key<'_>, or_equal: bool) {
        let tree = self.tree();
        let before = again(|| {
            let (leaf, version) = tree.leaf_for(key, !or_equal)?;
            let before = leaf.before(key, or_equal)?;
            self.copy(leaf, version)?;
            Ok(before as u32)
        });
        match before.checked_sub(1) {
            Some(place) => self.place = place,
            // Only the first leaf may have nothing that is small enough.
            None => (self.place, self.len, self.next) = (0, 0, ptr::null()),
        }
    }

    /// Has the beginnings of all entries fetched at once: who goes from leaf to leaf wants most of them.
    fn fetch(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for entry in &self.entries[..self.len as usize] {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(entry.cast()) };
        }
    }

    fn take(&mut self, leaf: *const Node) {
        // SAFETY: the arena keeps nodes as long as the tree.
        let leaf = unsafe { &*leaf };
        again(|| self.copy(leaf, leaf.stable()));
    }

    fn copy(&mut self, leaf: &Node, version: u32) -> Result<(), Changed> {
        let len = leaf.len();
        between();
        for (to, from) in self.entries[..len].iter_mut().zip(&leaf.entries) {
            *to = from.load(Acquire);
        }
        between();
        self.next = leaf.link.load(Acquire);
        leaf.check(version)?;
        self.len = len as u32;
        Ok(())
    }
}
