//! From a key to the groups that watch it: single keys and prefixes by hash, other intervals in a tree. Knows neither
//! events nor filters.

use std::cmp::Ordering;

use bytes::Bytes;
use daymark_storage::mvcc::{KeyRange, RangeEnd};
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::arena::Key;

/// Groups of one interval: they differ in options only, so they are few.
type Members = SmallVec<[Key; 2]>;

/// Groups by interval of keys.
///
/// A key costs one look-up among the single keys, one for each distinct length of prefix that does not pass the key's
/// own, and one walk through the tree of other intervals, `O(log n + found)`.
#[derive(Default)]
pub struct Matcher {
    points: HashMap<Bytes, Members>,
    /// By length, ascending; no table is empty.
    prefixes: Vec<(usize, HashMap<Bytes, Members>)>,
    intervals: Intervals,
}

/// Where an interval belongs.
enum Place<'a> {
    Point(&'a Bytes),
    Prefix(&'a [u8]),
    Interval(&'a Bytes, Option<&'a Bytes>),
}

impl Matcher {
    /// Adds a group that watches `range`. The same group is not added twice.
    pub fn insert(&mut self, range: &KeyRange, group: Key) {
        let members = match place(range) {
            Place::Point(key) => self.points.entry_ref(key).or_default(),
            Place::Prefix(prefix) => {
                let at = self.prefixes.binary_search_by_key(&prefix.len(), |(length, _)| *length);
                let at = at.unwrap_or_else(|at| {
                    self.prefixes.insert(at, (prefix.len(), HashMap::new()));
                    at
                });
                self.prefixes[at].1.entry(range.start.slice(..prefix.len())).or_default()
            }
            Place::Interval(start, end) => self.intervals.members(start, end),
        };
        debug_assert!(!members.contains(&group));
        members.push(group);
    }

    /// Removes a group that watched `range`.
    pub fn remove(&mut self, range: &KeyRange, group: Key) {
        match place(range) {
            Place::Point(key) => drop_from(&mut self.points, key, group),
            Place::Prefix(prefix) => {
                let found = self.prefixes.binary_search_by_key(&prefix.len(), |(length, _)| *length);
                let Ok(at) = found else { return };
                drop_from(&mut self.prefixes[at].1, prefix, group);
                if self.prefixes[at].1.is_empty() {
                    self.prefixes.remove(at);
                }
            }
            Place::Interval(start, end) => self.intervals.remove(start, end, group),
        }
    }

    /// Calls `found` once for each group whose interval holds `key`, in no particular order.
    pub fn find(&self, key: &[u8], mut found: impl FnMut(Key)) {
        let mut all = |members: &Members| members.iter().for_each(|group| found(*group));
        if !self.points.is_empty()
            && let Some(members) = self.points.get(key)
        {
            all(members);
        }
        for (length, table) in &self.prefixes {
            let Some(prefix) = key.get(..*length) else { break };
            if let Some(members) = table.get(prefix) {
                all(members);
            }
        }
        self.intervals.stab(key, &mut all);
    }
}

fn drop_from(table: &mut HashMap<Bytes, Members>, key: &[u8], group: Key) {
    if let Some(members) = table.get_mut(key) {
        members.retain(|member| *member != group);
        if members.is_empty() {
            table.remove(key);
        }
    }
}

/// Finds the prefix in an interval: `[p, p + 1)`, or everything from bytes on that cannot be incremented.
fn place(range: &KeyRange) -> Place<'_> {
    let start = &range.start;
    match &range.end {
        RangeEnd::Point => Place::Point(start),
        // No key is empty, so that one zero byte is the start of the key space.
        RangeEnd::Open if start[..] == [0] => Place::Prefix(&[]),
        RangeEnd::Open if start.iter().all(|byte| *byte == 0xff) => Place::Prefix(start),
        RangeEnd::Open => Place::Interval(start, None),
        RangeEnd::Before(end) if is_next_of_prefix(start, end) => Place::Prefix(start),
        RangeEnd::Before(end) => Place::Interval(start, Some(end)),
    }
}

/// Whether `end` is what follows every key that begins with `prefix`.
fn is_next_of_prefix(prefix: &[u8], end: &[u8]) -> bool {
    let Some(last) = prefix.iter().rposition(|byte| *byte != 0xff) else { return false };
    end.len() == last + 1 && end[..last] == prefix[..last] && end[last] == prefix[last] + 1
}

/// Intervals that are no prefixes: a treap ordered by `(start, end)`, each node with the greatest end of its subtree.
/// A key is looked for only in subtrees that begin at or before it and end after it.
///
/// Invariants: in order by interval; priorities do not rise from parent to child; no node is without members.
#[derive(Default)]
struct Intervals {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: Link,
    /// How many priorities have been drawn. They have to be unrelated to the order of keys, not unpredictable: a bad
    /// shape costs time only.
    drawn: u64,
}

type Link = Option<u32>;

struct Node {
    start: Bytes,
    /// None: no end, which is greater than any other.
    end: Option<Bytes>,
    end_max: Option<Bytes>,
    priority: u64,
    left: Link,
    right: Link,
    members: Members,
}

impl Intervals {
    /// The members of an interval, which is added if it is new.
    fn members(&mut self, start: &Bytes, end: Option<&Bytes>) -> &mut Members {
        let node = self.look_up(start, end).unwrap_or_else(|| self.add(start, end));
        &mut self.nodes[node as usize].members
    }

    fn remove(&mut self, start: &Bytes, end: Option<&Bytes>, group: Key) {
        let Some(node) = self.look_up(start, end) else { return };
        let members = &mut self.nodes[node as usize].members;
        members.retain(|member| *member != group);
        if members.is_empty() {
            self.root = self.without(self.root, node);
            self.free.push(node);
        }
    }

    /// Calls `found` with the members of each interval that holds `key`.
    fn stab(&self, key: &[u8], found: &mut impl FnMut(&Members)) {
        let mut ahead: SmallVec<[u32; 32]> = self.root.into_iter().collect();
        while let Some(node) = ahead.pop() {
            let node = &self.nodes[node as usize];
            if !ends_after(&node.end_max, key) {
                continue;
            }
            ahead.extend(node.left);
            if node.start[..] <= *key {
                if ends_after(&node.end, key) {
                    found(&node.members);
                }
                ahead.extend(node.right);
            }
        }
    }

    fn look_up(&self, start: &Bytes, end: Option<&Bytes>) -> Link {
        let mut at = self.root;
        while let Some(index) = at {
            let node = &self.nodes[index as usize];
            at = match compare((start, end), (&node.start, node.end.as_ref())) {
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
                Ordering::Equal => return at,
            };
        }
        None
    }

    fn add(&mut self, start: &Bytes, end: Option<&Bytes>) -> u32 {
        self.drawn += 1;
        let node = Node {
            start: start.clone(),
            end: end.cloned(),
            end_max: end.cloned(),
            priority: scramble(self.drawn),
            left: None,
            right: None,
            members: Members::new(),
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = node;
                index
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("memory ends before 2^32 intervals")
            }
        };
        let (before, after) = self.split(self.root, (start, end));
        let with = self.merge(before, Some(index));
        self.root = self.merge(with, after);
        index
    }

    /// The subtree without `target`, which is in it.
    fn without(&mut self, at: Link, target: u32) -> Link {
        let index = at.expect("the interval was found");
        let node = &self.nodes[index as usize];
        let (left, right) = (node.left, node.right);
        if index == target {
            return self.merge(left, right);
        }
        let wanted = &self.nodes[target as usize];
        let order = compare((&wanted.start, wanted.end.as_ref()), (&node.start, node.end.as_ref()));
        if order == Ordering::Less {
            self.nodes[index as usize].left = self.without(left, target);
        } else {
            self.nodes[index as usize].right = self.without(right, target);
        }
        self.refresh(index);
        at
    }

    /// What comes before an interval, and what does not.
    fn split(&mut self, at: Link, by: (&Bytes, Option<&Bytes>)) -> (Link, Link) {
        let Some(index) = at else { return (None, None) };
        let node = &self.nodes[index as usize];
        let (left, right) = (node.left, node.right);
        let halves = if compare((&node.start, node.end.as_ref()), by) == Ordering::Less {
            let (before, after) = self.split(right, by);
            self.nodes[index as usize].right = before;
            (at, after)
        } else {
            let (before, after) = self.split(left, by);
            self.nodes[index as usize].left = after;
            (before, at)
        };
        self.refresh(index);
        halves
    }

    /// One tree of two, of which the first lies before the second.
    fn merge(&mut self, left: Link, right: Link) -> Link {
        let (Some(first), Some(second)) = (left, right) else { return left.or(right) };
        if self.nodes[first as usize].priority > self.nodes[second as usize].priority {
            self.nodes[first as usize].right = self.merge(self.nodes[first as usize].right, right);
            self.refresh(first);
            left
        } else {
            self.nodes[second as usize].left = self.merge(left, self.nodes[second as usize].left);
            self.refresh(second);
            right
        }
    }

    /// Works out the greatest end anew after a child has changed.
    fn refresh(&mut self, index: u32) {
        let node = &self.nodes[index as usize];
        let mut end_max = node.end.as_ref();
        for child in [node.left, node.right].into_iter().flatten() {
            let other = self.nodes[child as usize].end_max.as_ref();
            if compare_ends(other, end_max) == Ordering::Greater {
                end_max = other;
            }
        }
        self.nodes[index as usize].end_max = end_max.cloned();
    }
}

fn ends_after(end: &Option<Bytes>, key: &[u8]) -> bool {
    end.as_ref().is_none_or(|end| *key < end[..])
}

fn compare(one: (&Bytes, Option<&Bytes>), other: (&Bytes, Option<&Bytes>)) -> Ordering {
    one.0.cmp(other.0).then_with(|| compare_ends(one.1, other.1))
}

fn compare_ends(one: Option<&Bytes>, other: Option<&Bytes>) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) => one.cmp(other),
        _ => one.is_none().cmp(&other.is_none()),
    }
}

/// A number without visible relation to its neighbours' (the finisher of splitmix64).
fn scramble(number: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::arena::Arena;
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    fn key(rng: &mut SmallRng) -> Bytes {
        // Few letters, so that intervals meet; 0x00 and 0xff, because they have meanings.
        let letters = [0, b'a', b'b', 0xfe, 0xff];
        (0..rng.random_range(1..4)).map(|_| letters[rng.random_range(0..letters.len())]).collect()
    }

    fn range(rng: &mut SmallRng) -> KeyRange {
        let start = key(rng);
        match rng.random_range(0..5) {
            0 => KeyRange::point(start),
            1 => KeyRange { start, end: RangeEnd::Open },
            2 => KeyRange::prefix(&start),
            3 => KeyRange { start: Bytes::from_static(&[0]), end: RangeEnd::Open },
            _ => KeyRange { start, end: RangeEnd::Before(key(rng)) },
        }
    }

    #[test]
    fn finds_what_comparing_with_every_interval_finds() {
        for seed in 0..60 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut names = Arena::default();
            let mut matcher = Matcher::default();
            let mut model: Vec<(KeyRange, Key)> = Vec::new();
            for _ in 0..400 {
                if model.is_empty() || rng.random_range(0..5) < 3 {
                    let entry = (range(&mut rng), names.insert(()));
                    matcher.insert(&entry.0, entry.1);
                    model.push(entry);
                } else {
                    let (range, group) = model.swap_remove(rng.random_range(0..model.len()));
                    matcher.remove(&range, group);
                }
                let key = key(&mut rng);
                let mut found = Vec::new();
                matcher.find(&key, |group| found.push(group));
                found.sort();
                let contains = |(range, group): &(KeyRange, Key)| range.contains(&key).then_some(*group);
                let mut expected: Vec<Key> = model.iter().filter_map(contains).collect();
                expected.sort();
                assert_eq!(found, expected, "seed {seed}, key {key:?}, {model:?}");
            }
            for (range, group) in model {
                matcher.remove(&range, group);
            }
            let intervals = &matcher.intervals;
            assert!(matcher.points.is_empty() && matcher.prefixes.is_empty() && intervals.root.is_none());
            assert_eq!(intervals.free.len(), intervals.nodes.len());
        }
    }

    #[test]
    fn intervals_that_are_prefixes_are_kept_as_such() {
        let whole = KeyRange::from_wire(&Bytes::from_static(&[0]), &Bytes::from_static(&[0]));
        for range in [whole, KeyRange::prefix(b"a"), KeyRange::prefix(b"a\xff"), KeyRange::prefix(b"\xff\xff")] {
            assert!(matches!(place(&range), Place::Prefix(_)), "{range:?}");
        }
        let before = |start: &'static [u8], end: &'static [u8]| KeyRange {
            start: Bytes::from_static(start),
            end: RangeEnd::Before(Bytes::from_static(end)),
        };
        for range in [before(b"a", b"c"), before(b"ab", b"b"), before(b"a", b"b\0"), before(b"\xff", b"\xff\xff")] {
            assert!(matches!(place(&range), Place::Interval(..)), "{range:?}");
        }
    }

    #[test]
    fn the_tree_of_sorted_intervals_stays_shallow() {
        let mut names = Arena::default();
        let mut intervals = Intervals::default();
        for number in 0..10_000u32 {
            let start = Bytes::copy_from_slice(&number.to_be_bytes());
            intervals.members(&start, None).push(names.insert(()));
        }
        fn depth(intervals: &Intervals, at: Link) -> usize {
            at.map_or(0, |at| {
                let node = &intervals.nodes[at as usize];
                1 + depth(intervals, node.left).max(depth(intervals, node.right))
            })
        }
        assert!(depth(&intervals, intervals.root) < 60, "{}", depth(&intervals, intervals.root));
    }
}
