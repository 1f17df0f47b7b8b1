//! The naive keyspace: every version of every key, kept for ever, and searched from end to end. Knows the rules that
//! clients see, and nothing of how they are kept.

use std::collections::BTreeMap;

use bytes::Bytes;
use daymark_storage::mvcc::{Event, EventKind, KeyRange, KeyValue, RangeOptions, RangeResult};

/// One version: revision, place within it, and the pair or none for a delete.
type Version = (i64, i64, Option<KeyValue>);

#[derive(Clone)]
pub struct Model {
    pub revision: i64,
    pub compact: i64,
    keys: BTreeMap<Bytes, Vec<Version>>,
    changes: Vec<(i64, i64, Bytes)>,
}

/// A transaction on the model; `Model` itself is the state before it.
pub struct ModelTxn {
    pub state: Model,
    main: i64,
    sub: i64,
}

impl Model {
    pub fn new() -> Self {
        Self { revision: 1, compact: -1, keys: BTreeMap::new(), changes: Vec::new() }
    }

    pub fn begin(&self) -> ModelTxn {
        ModelTxn { state: self.clone(), main: self.revision + 1, sub: 0 }
    }

    pub fn get(&self, key: &[u8], revision: i64) -> Option<KeyValue> {
        let versions = self.keys.get(key)?;
        versions.iter().rev().find(|(main, _, _)| *main <= revision)?.2.clone()
    }

    /// Every pair at a revision, with its place within the revision that it was changed by.
    pub fn live(&self, revision: i64) -> Vec<(i64, KeyValue)> {
        let newest = |versions: &Vec<Version>| {
            versions.iter().rev().find(|(main, _, _)| *main <= revision).map(|(_, sub, kv)| (*sub, kv.clone()))
        };
        self.keys.values().filter_map(newest).filter_map(|(sub, kv)| Some((sub, kv?))).collect()
    }

    pub fn range(&self, range: &KeyRange, options: &RangeOptions, revision: i64) -> RangeResult {
        let inside = self.keys.keys().filter(|key| range.contains(key));
        let mut kvs: Vec<KeyValue> = inside.filter_map(|key| self.get(key, revision)).collect();
        let count = kvs.len() as i64;
        if options.count_only {
            return RangeResult { count, ..RangeResult::default() };
        }
        if options.descending {
            kvs.reverse();
        }
        kvs.retain(|kv| options.min_mod == 0 || kv.mod_revision >= options.min_mod);
        kvs.retain(|kv| options.max_mod == 0 || kv.mod_revision <= options.max_mod);
        kvs.retain(|kv| options.min_create == 0 || kv.create_revision >= options.min_create);
        kvs.retain(|kv| options.max_create == 0 || kv.create_revision <= options.max_create);
        let matching = kvs.len();
        if options.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        if options.limit > 0 {
            kvs.truncate(options.limit);
        }
        let by_limit = kvs.len();
        if options.bytes_max > 0 {
            let mut bytes = 0;
            let fits = kvs.iter().take_while(|kv| {
                bytes += kv.key.len() + kv.value.len();
                bytes <= options.bytes_max
            });
            let fits = fits.count().max(1);
            kvs.truncate(fits);
        }
        RangeResult { count, more: kvs.len() < matching, cut_by_bytes: kvs.len() < by_limit, kvs }
    }

    /// Events from one revision up to another, both included.
    pub fn history(&self, from: i64, to: i64, range: Option<&KeyRange>, with_prev: bool) -> Vec<(i64, Vec<Event>)> {
        let mut found: Vec<(i64, Vec<Event>)> = Vec::new();
        for (main, sub, key) in &self.changes {
            if *main < from || *main > to || range.is_some_and(|range| !range.contains(key)) {
                continue;
            }
            let event = self.event(*main, *sub, key, with_prev && *main > self.compact);
            match found.last_mut() {
                Some((last, events)) if last == main => events.push(event),
                _ => found.push((*main, vec![event])),
            }
        }
        found
    }

    fn event(&self, main: i64, sub: i64, key: &Bytes, with_prev: bool) -> Event {
        let version = self.keys[key].iter().find(|version| (version.0, version.1) == (main, sub));
        let (kind, kv) = match &version.expect("a change made a version").2 {
            Some(kv) => (EventKind::Put, kv.clone()),
            None => (EventKind::Delete, KeyValue { key: key.clone(), mod_revision: main, ..KeyValue::default() }),
        };
        let creates = kind == EventKind::Put && kv.create_revision == kv.mod_revision;
        let prev = if with_prev && !creates { self.get(key, main - 1) } else { None };
        Event { kind, kv, prev, sub }
    }
}

impl ModelTxn {
    pub fn put(&mut self, key: &Bytes, value: &Bytes, lease: i64) -> Option<KeyValue> {
        let previous = self.state.get(key, self.main);
        let kv = KeyValue {
            key: key.clone(),
            create_revision: previous.as_ref().map_or(self.main, |kv| kv.create_revision),
            mod_revision: self.main,
            version: previous.as_ref().map_or(1, |kv| kv.version + 1),
            lease,
            value: value.clone(),
        };
        self.push(key, Some(kv));
        previous
    }

    pub fn delete(&mut self, key: &Bytes) -> Option<KeyValue> {
        let previous = self.state.get(key, self.main)?;
        self.push(key, None);
        Some(previous)
    }

    pub fn delete_range(&mut self, range: &KeyRange) -> Vec<KeyValue> {
        let found = self.state.range(range, &RangeOptions::default(), self.main).kvs;
        found.iter().for_each(|kv| self.push(&kv.key, None));
        found
    }

    pub fn finish(mut self) -> (Model, Vec<Event>) {
        if self.sub > 0 {
            self.state.revision = self.main;
        }
        let events = self.state.history(self.main, self.main, None, true);
        (self.state, events.into_iter().flat_map(|(_, events)| events).collect())
    }

    fn push(&mut self, key: &Bytes, kv: Option<KeyValue>) {
        self.state.keys.entry(key.clone()).or_default().push((self.main, self.sub, kv));
        self.state.changes.push((self.main, self.sub, key.clone()));
        self.sub += 1;
    }
}
