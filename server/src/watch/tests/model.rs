//! Generated sequences of everything at once, against a model that keeps all of history in a list.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::mvccpb;
use daymark_storage::mvcc::{EventKind, KeyValue};
use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom};
use rand::{RngExt, SeedableRng};

use super::world::{Bounds, Change, Client, World};
use crate::watch::ring::AppliedBatch;
use crate::watch::watcher::{Flags, Interest};

const KEYS: [&str; 9] = ["a", "a/1", "a/2", "a/2/x", "b", "b/1", "c", "\u{7f}", "zz"];

/// One event as the contract describes it.
#[derive(Clone, Debug, PartialEq)]
struct Expected {
    kind: EventKind,
    kv: mvccpb::KeyValue,
    prev: Option<mvccpb::KeyValue>,
}

impl Expected {
    fn revision(&self) -> i64 {
        self.kv.mod_revision
    }
}

/// One watcher and what it has received.
struct Watch {
    interest: Interest,
    start: i64,
    created: bool,
    received: Vec<Expected>,
    /// In the middle of a revision that is sent in fragments.
    in_fragments: bool,
    /// Nothing at or below it may come any more.
    progress: i64,
    /// The compact revision it was cancelled with.
    compacted: Option<i64>,
    /// Cancelled by the client, and the answer has been read.
    over: bool,
}

struct Stream {
    client: Client,
    /// By watch id, those whose cancel has not been asked for, and those whose answer is still to come.
    watches: HashMap<i64, Watch>,
    /// Ids in the order of create requests, of which the created response is still to come.
    to_create: Vec<(i64, Watch)>,
    next_id: i64,
}

struct Run {
    seed: u64,
    rng: SmallRng,
    world: World,
    history: Vec<Expected>,
    compact_revision: i64,
    /// A batch that is published, but not yet in the mailbox.
    held: Option<AppliedBatch>,
    streams: Vec<Stream>,
    checked: usize,
}

#[test]
fn watchers_get_exactly_what_the_model_says() {
    let mut checked = 0;
    for seed in 0..400 {
        checked += Run::new(seed).run();
    }
    // The run means nothing if hardly anything has been compared.
    assert!(checked > 100_000, "{checked} events compared");
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let small = |rng: &mut SmallRng, small: std::ops::Range<usize>| {
            if rng.random_bool(0.5) { rng.random_range(small) } else { 1 << 20 }
        };
        let bounds = Bounds {
            ring_bytes_max: small(&mut rng, 1..2000),
            mailbox_bytes_max: small(&mut rng, 1..600),
            fragment_bytes: small(&mut rng, 60..300),
        };
        let world = World::with(bounds);
        Self {
            seed,
            rng,
            world,
            history: Vec::new(),
            compact_revision: -1,
            held: None,
            streams: Vec::new(),
            checked: 0,
        }
    }

    fn run(mut self) -> usize {
        for _ in 0..300 {
            match self.rng.random_range(0..20) {
                0..7 => self.write(),
                7..9 => self.create(),
                9 => self.cancel(),
                10..13 => self.read_some(),
                13..15 => _ = self.world.run_job(),
                15..17 => self.world.turn(),
                17 => {
                    self.announce_held();
                    self.ask_progress();
                }
                18 if self.rng.random_bool(0.3) => self.compact(),
                18 => self.open_or_close(),
                _ => self.world.settle(),
            }
        }
        self.finish();
        self.checked
    }

    fn write(&mut self) {
        let mut txns: Vec<Vec<Change<'static>>> = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            let changes = (0..self.rng.random_range(1..4)).map(|_| {
                let key = *KEYS.choose(&mut self.rng).expect("keys");
                let value = ["", "v", "a value of some length"].choose(&mut self.rng).copied();
                (key, value.filter(|_| self.rng.random_bool(0.7)))
            });
            txns.push(changes.collect());
        }
        let before = self.world.keyspace.current_revision();
        assert_eq!(before, self.current());
        self.announce_held();
        let batch = self.world.commit(&txns.iter().map(|txn| &txn[..]).collect::<Vec<_>>());
        let events = batch.events.clone();
        match self.rng.random_range(0..10) {
            0..2 => self.held = Some(batch),
            // As apply does that saw nobody who wants events when it began the batch: it says so, or does not.
            2 => {
                if self.world.mailbox.leave_out(batch.last_revision) {
                    self.world.mailbox.wake();
                }
            }
            3 => self.world.mailbox.wake(),
            _ => _ = self.world.announce(batch),
        }
        let mut state = self.state();
        for of_revision in events.chunk_by(|one, next| one.kv.mod_revision == next.kv.mod_revision) {
            let earlier = state.clone();
            for event in of_revision {
                let kv = pair(&event.kv);
                let is_create = event.kind == EventKind::Put && kv.create_revision == kv.mod_revision;
                let prev = earlier.get(&kv.key).filter(|_| !is_create).cloned();
                match event.kind {
                    EventKind::Put => _ = state.insert(kv.key.clone(), kv.clone()),
                    EventKind::Delete => _ = state.remove(&kv.key),
                }
                self.history.push(Expected { kind: event.kind, kv, prev });
            }
        }
        assert_eq!(self.world.keyspace.current_revision(), self.current());
    }

    fn announce_held(&mut self) {
        if let Some(batch) = self.held.take() {
            self.world.announce(batch);
        }
    }

    fn current(&self) -> i64 {
        self.history.last().map_or(1, Expected::revision)
    }

    /// Live pairs, worked out from the whole of history.
    fn state(&self) -> BTreeMap<Bytes, mvccpb::KeyValue> {
        let mut state = BTreeMap::new();
        for event in &self.history {
            match event.kind {
                EventKind::Put => _ = state.insert(event.kv.key.clone(), event.kv.clone()),
                EventKind::Delete => _ = state.remove(&event.kv.key),
            }
        }
        state
    }

    fn open_or_close(&mut self) {
        if self.streams.len() < 3 || self.rng.random_bool(0.5) {
            let credit = *[1, 150, 1000, 1 << 20].choose(&mut self.rng).expect("sizes");
            let client = self.world.open_with(credit);
            self.streams.push(Stream { client, watches: HashMap::new(), to_create: Vec::new(), next_id: 0 });
        } else {
            let stream = self.streams.swap_remove(self.rng.random_range(0..self.streams.len()));
            stream.client.sink.close();
        }
    }

    fn create(&mut self) {
        let current = self.current();
        let Some(stream) = self.streams.choose_mut(&mut self.rng) else { return self.open_or_close() };
        let rng = &mut self.rng;
        let key = Bytes::from(*KEYS.choose(rng).expect("keys"));
        let range_end = match rng.random_range(0..5) {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"\0"),
            2 | 3 => [&key[..key.len() - 1], &[key[key.len() - 1] + 1]].concat().into(),
            _ => Bytes::from(*KEYS.choose(rng).expect("keys")),
        };
        let start_revision = match rng.random_range(0..4) {
            0 => 0,
            1 => current + rng.random_range(0..4),
            2 => (current - rng.random_range(0..6)).max(0),
            _ => rng.random_range(0..=current),
        };
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision,
            progress_notify: rng.random(),
            filters: (0..2).filter(|_| rng.random_bool(0.2)).collect(),
            prev_kv: rng.random(),
            watch_id: 0,
            fragment: rng.random(),
        };
        if let Ok(interest) = Interest::from_request(&create) {
            let watch = Watch {
                interest,
                start: if start_revision == 0 { current + 1 } else { start_revision },
                created: false,
                received: Vec::new(),
                in_fragments: false,
                progress: 0,
                compacted: None,
                over: false,
            };
            stream.to_create.push((stream.next_id, watch));
            stream.next_id += 1;
        }
        stream.client.create(create);
    }

    fn cancel(&mut self) {
        let Some(stream) = self.streams.choose_mut(&mut self.rng) else { return };
        if stream.next_id > 0 {
            let watch_id = self.rng.random_range(0..stream.next_id);
            stream.client.cancel(watch_id);
        }
    }

    fn ask_progress(&mut self) {
        let Some(stream) = self.streams.choose(&mut self.rng) else { return };
        if self.rng.random() {
            stream.client.ask_progress();
        } else {
            stream.client.on_progress_timeout();
        }
    }

    fn compact(&mut self) {
        let (least, current) = (self.compact_revision.max(0) + 1, self.current());
        if least <= current {
            self.compact_revision = self.rng.random_range(least..=current);
            self.world.compact(self.compact_revision);
        }
    }

    fn read_some(&mut self) {
        if !self.streams.is_empty() {
            let stream = self.rng.random_range(0..self.streams.len());
            let most = self.rng.random_range(1..20);
            self.read(stream, most);
        }
    }

    fn read(&mut self, stream: usize, most: usize) {
        for _ in 0..most {
            let Some(response) = self.streams[stream].client.next() else { return };
            self.check(stream, response);
        }
    }

    /// At the end everybody reads until there is no more, and then nothing may be missing.
    fn finish(&mut self) {
        self.announce_held();
        for _ in 0..10_000 {
            self.world.settle_and_tick();
            let mut read = 0;
            for stream in 0..self.streams.len() {
                while let Some(response) = self.streams[stream].client.next() {
                    read += 1;
                    self.check(stream, response);
                }
            }
            if read == 0 {
                break;
            }
        }
        let seed = self.seed;
        for stream in &self.streams {
            assert!(stream.to_create.is_empty(), "seed {seed}: a create request without an answer");
            for (id, watch) in stream.watches.iter().filter(|(_, watch)| !watch.over) {
                assert!(!watch.in_fragments, "seed {seed}: the last fragment of {id} is missing");
                if watch.compacted.is_none() {
                    let expected = expected(&self.history, watch, i64::MAX);
                    assert_eq!(watch.received.len(), expected.len(), "seed {seed}: {id} has not got everything");
                }
            }
        }
        let stats = self.world.engine.borrow().stats();
        let held = self.streams.iter().flat_map(|stream| stream.watches.values());
        let held = held.filter(|watch| !watch.over && watch.compacted.is_some()).count();
        assert_eq!(stats.behind, held, "seed {seed}: only ids held after a compaction are not live");
    }

    /// Whether a response is legal now, and its events are the next ones of the model.
    fn check(&mut self, stream: usize, response: pb::WatchResponse) {
        let seed = self.seed;
        let current = self.current();
        let Stream { watches, to_create, .. } = &mut self.streams[stream];
        let header = response.header.as_ref().expect("every response has a header").revision;
        let id = response.watch_id;
        if response.created {
            if response.canceled {
                assert_eq!((id, &response.cancel_reason[..]), (-1, "mvcc: watcher range is empty"), "seed {seed}");
                return;
            }
            let (expected_id, mut watch) = to_create.remove(0);
            assert_eq!(id, expected_id, "seed {seed}: created responses come in the order of requests");
            watch.created = true;
            watches.insert(id, watch);
            return;
        }
        if response.canceled {
            let watch = watches.get_mut(&id).expect("cancelled ids were created");
            if response.compact_revision > 0 {
                assert_eq!(header, 0, "seed {seed}");
                assert!(response.compact_revision <= self.compact_revision && watch.compacted.is_none());
                assert!(response.compact_revision > watch.start, "seed {seed}: history it needs is gone");
                let last = watch.received.last().map_or(0, Expected::revision);
                assert!(last < response.compact_revision, "seed {seed}: it has got beyond the compaction already");
                watch.compacted = Some(response.compact_revision);
            } else {
                watch.over = true;
            }
            return;
        }
        assert!(header <= current, "seed {seed}: the header is from the future");
        if response.events.is_empty() {
            for (id, watch) in watches.iter_mut().filter(|(_, watch)| !watch.over) {
                if *id == response.watch_id || response.watch_id == -1 {
                    assert!(watch.compacted.is_none(), "seed {seed}: progress of a compacted watcher");
                    let due = expected(&self.history, watch, header).len();
                    assert_eq!(watch.received.len(), due, "seed {seed}: progress {header} of {id} is not truthful");
                    assert!(header >= watch.start - 1, "seed {seed}: progress before the start");
                    watch.progress = header;
                }
            }
            return;
        }
        let watch = watches.get_mut(&id).expect("events come after the created response");
        self.checked += response.events.len();
        let compact = self.compact_revision;
        check_events(seed, &self.history, compact, watch, &response);
    }
}

fn check_events(seed: u64, history: &[Expected], compact: i64, watch: &mut Watch, response: &pb::WatchResponse) {
    let header = response.header.as_ref().map_or(0, |header| header.revision);
    assert!(!watch.over && watch.compacted.is_none(), "seed {seed}: events after the end");
    let splits = watch.interest.flags.has(Flags::FRAGMENT);
    assert!(splits || !response.fragment, "seed {seed}: a fragment nobody asked for");
    let last = watch.received.last().map_or(0, Expected::revision);
    let all = expected(history, watch, i64::MAX);
    let mut revisions = Vec::new();
    for event in &response.events {
        let got = received(event);
        let next = all.get(watch.received.len()).unwrap_or_else(|| panic!("seed {seed}: one too many: {got:?}"));
        assert_eq!((got.kind, &got.kv), (next.kind, &next.kv), "seed {seed}");
        let wants_prev = watch.interest.flags.has(Flags::PREV_KV);
        let may_lack_prev = !wants_prev || got.revision() <= compact;
        assert!(got.prev.is_none() || wants_prev, "seed {seed}: a previous pair nobody asked for");
        assert!(got.prev == next.prev || (got.prev.is_none() && may_lack_prev), "seed {seed}: {got:?}, not {next:?}");
        assert!(got.revision() > watch.progress, "seed {seed}: an event after progress {}", watch.progress);
        assert!(got.revision() > last || watch.in_fragments, "seed {seed}: a revision in two responses");
        assert!(got.revision() <= header, "seed {seed}: an event above its header");
        revisions.push(got.revision());
        watch.received.push(got);
    }
    revisions.dedup();
    assert!(revisions.len() <= 1000, "seed {seed}");
    watch.in_fragments = response.fragment;
}

/// What a watcher has to get up to a revision.
fn expected(history: &[Expected], watch: &Watch, up_to: i64) -> Vec<Expected> {
    let Interest { range, flags } = &watch.interest;
    let wanted = |event: &&Expected| {
        (watch.start..=up_to).contains(&event.revision()) && flags.admits(event.kind) && range.contains(&event.kv.key)
    };
    history.iter().filter(wanted).cloned().collect()
}

fn received(event: &mvccpb::Event) -> Expected {
    let kind = match event.r#type() {
        mvccpb::event::EventType::Put => EventKind::Put,
        mvccpb::event::EventType::Delete => EventKind::Delete,
    };
    Expected { kind, kv: event.kv.clone().expect("every event has a pair"), prev: event.prev_kv.clone() }
}

fn pair(kv: &KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key.clone(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value.clone(),
        lease: kv.lease,
    }
}
