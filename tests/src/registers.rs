//! What clients of a cluster see, checked while faults happen. Each register has one writer that counts up; readers ask any
//! member. For such registers these checks are linearizability, no less:
//!
//! - a read returns at least what was acknowledged, and what any read had returned, before it began;
//! - a read returns at most what was sent before it ended;
//! - revisions of writes are above, and of reads not below, every revision that was answered before they began.
//!
//! At the end everything is compared with the history: each acknowledged write is there at the revision it was told,
//! nothing is there that was not sent, and watchers of each member saw all of it once and in order.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use daymark_client::{
    Client, Config, KeyRange,
    kv::PutOptions,
    txn::{Compare, Is, Op, Txn},
    watch::{Update, WatchOptions},
};
use rand::RngExt;
use tokio::{task::JoinHandle, time::timeout};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause of each client between its calls, so that the load leaves the machine room to run the cluster.
const PAUSE: Duration = Duration::from_millis(5);
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
const SHARED: usize = 3;

#[derive(Default)]
struct Register {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// Highest that a read has returned.
    seen: AtomicU64,
    /// Counter and revision of each acknowledged write.
    writes: Mutex<Vec<(u64, i64)>>,
}

struct Shared {
    registers: Vec<Register>,
    /// Highest revision that any answer had.
    revision: AtomicI64,
    increments: AtomicU64,
    increments_unknown: AtomicU64,
    checked: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
    wrong: Mutex<Vec<String>>,
}

/// Revision, key, value.
type Event = (i64, String, String);
type Events = Mutex<Vec<Event>>;

/// Clients at work.
pub struct Registers {
    shared: Arc<Shared>,
    endpoints: Vec<String>,
    clients: Vec<JoinHandle<()>>,
    watchers: Vec<(Arc<Events>, JoinHandle<()>)>,
}

/// What there is to say at the end.
#[derive(Debug)]
pub struct Verdict {
    /// Reads and writes that were answered and checked.
    pub checked: u64,
    /// Calls without an answer, or with an error.
    pub failed: u64,
    /// The revision at the end.
    pub revision: i64,
    /// What must not be.
    pub wrong: Vec<String>,
}

impl Registers {
    /// Starts writers, as many readers, some that count together, and a watcher of each member. The cluster must be
    /// healthy.
    pub async fn start(endpoints: &[String], registers: usize) -> Self {
        let shared = Arc::new(Shared::new(registers));
        let client = connect(&endpoints[0]);
        for n in 0..registers {
            client.kv().put(register(n), value(0)).await.expect("a healthy cluster");
        }
        for n in 0..SHARED {
            client.kv().put(format!("shared/{n}"), "0").await.expect("a healthy cluster");
        }
        let mut clients = Vec::new();
        for n in 0..registers {
            clients.push(tokio::spawn(write(shared.clone(), connect_all(endpoints), n)));
            clients.push(tokio::spawn(read(shared.clone(), connect_all(endpoints))));
        }
        for n in 0..SHARED {
            clients.push(tokio::spawn(count(shared.clone(), connect_all(endpoints), n)));
        }
        let watch_one = |endpoint: &String| {
            let events = Arc::<Events>::default();
            (events.clone(), tokio::spawn(watch(connect(endpoint), events)))
        };
        Self { shared, endpoints: endpoints.to_vec(), clients, watchers: endpoints.iter().map(watch_one).collect() }
    }

    /// Calls that were checked so far.
    pub fn checked(&self) -> u64 {
        self.shared.checked.load(Ordering::Relaxed)
    }

    /// Whether something is wrong already.
    pub fn is_wrong(&self) -> bool {
        !self.shared.wrong.lock().expect("no holder panics").is_empty()
    }

    /// Stops the clients without a look at what is there; what was wrong until then.
    pub async fn give_up(self) -> Vec<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.watchers.iter().for_each(|(_, watcher)| watcher.abort());
        for client in self.clients {
            client.await.expect("a client does not panic");
        }
        std::mem::take(&mut *self.shared.wrong.lock().expect("no holder panics"))
    }

    /// Stops the clients; the cluster must be healed. Compares what is there with what they were told.
    pub async fn finish(self) -> Verdict {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("a client does not panic");
        }
        let shared = self.shared;
        let client = connect(&self.endpoints[0]);
        let last = client.kv().put("end", "end").await.expect("a healed cluster").header.map_or(0, |h| h.revision);
        let mut histories = Vec::new();
        for (endpoint, (events, watcher)) in self.endpoints.iter().zip(self.watchers) {
            let live = wait_for_end(&events).await;
            watcher.abort();
            let whole = replay(&connect(endpoint), last).await;
            if live != whole {
                let at = live.iter().zip(&whole).position(|(a, b)| a != b).unwrap_or(live.len().min(whole.len()));
                let (a, b) = (live.get(at), whole.get(at));
                shared.say(format!("the watch of {endpoint} saw {a:?} as event {at}, its history has {b:?}"));
            }
            histories.push(whole);
        }
        if histories.iter().any(|history| *history != histories[0]) {
            shared.say("the members have different histories".into());
        }
        shared.check_history(&histories[0]);
        shared.check_counts(&histories[0]);
        let wrong = std::mem::take(&mut *shared.wrong.lock().expect("no holder panics"));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Verdict { checked: count(&shared.checked), failed: count(&shared.failed), revision: last, wrong }
    }
}

/// What is known when a read begins: its answer must not be older.
#[derive(Copy, Clone)]
struct Before {
    acknowledged: u64,
    seen: u64,
    revision: i64,
}

impl Shared {
    fn new(registers: usize) -> Self {
        Self {
            registers: (0..registers).map(|_| Register::default()).collect(),
            revision: AtomicI64::new(0),
            increments: AtomicU64::new(0),
            increments_unknown: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
        }
    }

    fn before(&self, n: usize) -> Before {
        let state = &self.registers[n];
        Before {
            acknowledged: state.acknowledged.load(Ordering::SeqCst),
            seen: state.seen.load(Ordering::SeqCst),
            revision: self.revision.load(Ordering::SeqCst),
        }
    }

    /// The answer to a read of register `n` that began with `before`.
    fn check_read(&self, n: usize, before: &Before, found: &str, revision: i64) {
        let (state, Before { acknowledged, seen, revision: lowest }) = (&self.registers[n], *before);
        let sent = state.sent.load(Ordering::SeqCst);
        let counter: u64 = found.parse().unwrap_or(u64::MAX);
        if counter < acknowledged.max(seen) || counter > sent || revision < lowest {
            let key = register(n);
            self.say(format!(
                "{key} read as {found:?} at revision {revision}; acknowledged {acknowledged}, read before {seen}, sent \
                 {sent}, revision before {lowest}"
            ));
        }
        state.seen.fetch_max(counter.min(sent), Ordering::SeqCst);
        self.revision.fetch_max(revision, Ordering::SeqCst);
        self.checked.fetch_add(1, Ordering::Relaxed);
    }

    /// The answer to a write of register `n`, with the highest revision that had been answered when it began.
    fn check_write(&self, n: usize, counter: u64, before: i64, succeeded: bool, revision: i64) {
        let (key, state) = (register(n), &self.registers[n]);
        if !succeeded {
            self.say(format!("{key}: {counter} was refused, though only its writer writes, and upwards"));
        } else if revision <= before {
            self.say(format!("{key}: {counter} got revision {revision} after {before} had been answered"));
        }
        state.writes.lock().expect("no holder panics").push((counter, revision));
        state.acknowledged.fetch_max(counter, Ordering::SeqCst);
        self.revision.fetch_max(revision, Ordering::SeqCst);
        self.checked.fetch_add(1, Ordering::Relaxed);
    }

    fn say(&self, wrong: String) {
        let mut all = self.wrong.lock().expect("no holder panics");
        if all.len() < 20 {
            all.push(wrong);
        }
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn check_history(&self, history: &[Event]) {
        let mut by_key = BTreeMap::<&str, Vec<(u64, i64)>>::new();
        for (revision, key, value) in history.iter().filter(|(_, key, _)| key.starts_with("register/")) {
            by_key.entry(key).or_default().push((value.parse().expect("only numbers were written"), *revision));
        }
        for (n, state) in self.registers.iter().enumerate() {
            let key = register(n);
            let there = by_key.remove(&key[..]).unwrap_or_default();
            if !there.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1) {
                self.say(format!("{key} went back, or was written twice"));
            }
            let sent = state.sent.load(Ordering::Relaxed);
            if there.last().is_some_and(|(counter, _)| *counter > sent) {
                self.say(format!("{key} has a value that nobody sent"));
            }
            let there: BTreeMap<_, _> = there.into_iter().collect();
            for (counter, revision) in state.writes.lock().expect("no holder panics").iter() {
                if there.get(counter) != Some(revision) {
                    let found = there.get(counter);
                    self.say(format!("{key}: {counter} was acknowledged at revision {revision}, it is at {found:?}"));
                }
            }
        }
    }

    fn check_counts(&self, history: &[Event]) {
        let last: BTreeMap<_, _> = history.iter().map(|(_, key, value)| (key, value)).collect();
        let shared = last.iter().filter(|(key, _)| key.starts_with("shared/"));
        let sum: u64 = shared.map(|(_, value)| value.parse::<u64>().expect("a number")).sum();
        let least = self.increments.load(Ordering::Relaxed);
        let most = least + self.increments_unknown.load(Ordering::Relaxed);
        if sum < least || sum > most {
            self.say(format!("the shared counters are {sum} together, acknowledged {least}, possible {most}"));
        }
    }
}

fn register(n: usize) -> String {
    format!("register/{n:02}")
}

/// Of one length, so that values compare like their numbers.
fn value(counter: u64) -> String {
    format!("{counter:012}")
}

fn connect(endpoint: &str) -> Client {
    let config = Config::new([endpoint]);
    let config = Config { request_timeout: Some(REQUEST_TIMEOUT), connect_timeout: CONNECT_TIMEOUT, ..config };
    Client::new(Config { read_retries: 0, ..config }).expect("a valid endpoint")
}

fn connect_all(endpoints: &[String]) -> Vec<Client> {
    endpoints.iter().map(|endpoint| connect(endpoint)).collect()
}

fn any(clients: &[Client]) -> &Client {
    &clients[rand::rng().random_range(0..clients.len())]
}

/// Counts up. The write asks for a lower value to be there: one of unknown outcome that comes late has no effect then.
async fn write(shared: Arc<Shared>, clients: Vec<Client>, n: usize) {
    let (key, state) = (register(n), &shared.registers[n]);
    for counter in 1.. {
        if shared.is_over() {
            return;
        }
        state.sent.store(counter, Ordering::SeqCst);
        let before = shared.revision.load(Ordering::SeqCst);
        let lower = Compare::value(KeyRange::key(key.clone()), Is::Less, value(counter));
        let put = Op::put(key.clone(), value(counter), PutOptions::default());
        match any(&clients).kv().txn(Txn::new().when([lower]).then([put])).await {
            Ok(answer) => {
                let revision = answer.header.map_or(0, |header| header.revision);
                shared.check_write(n, counter, before, answer.succeeded, revision);
            }
            Err(_) => drop(shared.failed.fetch_add(1, Ordering::Relaxed)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn read(shared: Arc<Shared>, clients: Vec<Client>) {
    while !shared.is_over() {
        let n = rand::rng().random_range(0..shared.registers.len());
        let before = shared.before(n);
        match any(&clients).kv().get(register(n)).await {
            Ok(answer) => {
                let revision = answer.header.map_or(0, |header| header.revision);
                let found =
                    answer.kvs.first().map_or(String::new(), |kv| String::from_utf8_lossy(&kv.value).into_owned());
                shared.check_read(n, &before, &found, revision);
            }
            Err(_) => drop(shared.failed.fetch_add(1, Ordering::Relaxed)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Adds one to a counter that all of these clients write, if nobody else was faster.
async fn count(shared: Arc<Shared>, clients: Vec<Client>, n: usize) {
    for turn in n.. {
        if shared.is_over() {
            return;
        }
        tokio::time::sleep(4 * PAUSE).await;
        let key = format!("shared/{}", turn % SHARED);
        let Ok(before) = any(&clients).kv().get(key.clone()).await else { continue };
        let Some(kv) = before.kvs.first() else {
            shared.say(format!("{key} is not there"));
            continue;
        };
        let old: u64 = String::from_utf8_lossy(&kv.value).parse().expect("only numbers were written");
        let unchanged = Compare::mod_revision(KeyRange::key(key.clone()), Is::Equal, kv.mod_revision);
        let put = Op::put(key, (old + 1).to_string(), PutOptions::default());
        match any(&clients).kv().txn(Txn::new().when([unchanged]).then([put])).await {
            Ok(answer) => {
                shared.increments.fetch_add(u64::from(answer.succeeded), Ordering::Relaxed);
                shared.checked.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => drop(shared.increments_unknown.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// From the first revision on, for as long as it is let; the client goes on by itself where it was after a break.
async fn watch(client: Client, events: Arc<Events>) {
    loop {
        let start_revision = events.lock().expect("no holder panics").last().map_or(1, |(revision, ..)| revision + 1);
        let options = WatchOptions { start_revision, ..Default::default() };
        let Ok(mut watcher) = client.watch().start(KeyRange::prefix(""), options).await else {
            tokio::time::sleep(10 * PAUSE).await;
            continue;
        };
        while let Ok(Some(update)) = watcher.next().await {
            if let Update::Events(new) = update {
                events.lock().expect("no holder panics").extend(new.iter().map(seen));
            }
        }
    }
}

fn seen(event: &daymark_client::api::mvccpb::Event) -> Event {
    let kv = event.kv.clone().unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (kv.mod_revision, text(&kv.key), text(&kv.value))
}

async fn wait_for_end(events: &Events) -> Vec<Event> {
    let there = || events.lock().expect("no holder panics").last().is_some_and(|(_, key, _)| key == "end");
    let waited = timeout(CATCH_UP_MAX, async {
        while !there() {
            tokio::time::sleep(PAUSE).await;
        }
    });
    // What is missing then is told by the comparison.
    let _ = waited.await;
    events.lock().expect("no holder panics").clone()
}

/// The whole history as a member has it.
async fn replay(client: &Client, last: i64) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let reading = async {
        let options = WatchOptions { start_revision: 1, ..Default::default() };
        let mut watcher = client.watch().start(KeyRange::prefix(""), options).await?;
        while events.last().is_none_or(|(revision, ..)| *revision < last) {
            if let Some(Update::Events(new)) = watcher.next().await? {
                events.extend(new.iter().map(seen));
            }
        }
        Ok::<_, daymark_client::ClientError>(())
    };
    timeout(CATCH_UP_MAX, reading).await.expect("a healed member has its history in time").expect("a healed member");
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One register, whose writer was told that 1, 2 and 4 are at revisions 10, 11 and 13; what became of 3 is unknown.
    fn told() -> Shared {
        let shared = Shared::new(1);
        shared.registers[0].sent.store(4, Ordering::SeqCst);
        for (counter, revision) in [(1, 10), (2, 11), (4, 13)] {
            shared.check_write(0, counter, revision - 1, true, revision);
        }
        shared.increments.store(2, Ordering::SeqCst);
        shared.increments_unknown.store(1, Ordering::SeqCst);
        shared
    }

    fn history(events: &[(i64, u64)]) -> Vec<Event> {
        events.iter().map(|(revision, counter)| (*revision, register(0), value(*counter))).collect()
    }

    fn wrong(shared: &Shared) -> Vec<String> {
        shared.wrong.lock().unwrap().clone()
    }

    #[test]
    fn histories_that_contradict_what_was_told_are_found_out() {
        let honest: [&[(i64, u64)]; 2] =
            [&[(5, 0), (10, 1), (11, 2), (12, 3), (13, 4)], &[(5, 0), (10, 1), (11, 2), (13, 4)]];
        for events in honest {
            let shared = told();
            shared.check_history(&history(events));
            assert_eq!(wrong(&shared), Vec::<String>::new(), "{events:?}");
        }
        let lies: [(&str, &[(i64, u64)]); 6] = [
            ("an acknowledged write is lost", &[(5, 0), (10, 1), (13, 4)]),
            ("all are lost", &[]),
            ("one is at another revision", &[(5, 0), (10, 1), (12, 2), (13, 4)]),
            ("it goes back", &[(5, 0), (10, 1), (11, 2), (13, 4), (14, 3)]),
            ("one is written twice", &[(5, 0), (10, 1), (11, 2), (12, 2), (13, 4)]),
            ("nobody sent that", &[(5, 0), (10, 1), (11, 2), (13, 4), (14, 5)]),
        ];
        for (what, events) in lies {
            let shared = told();
            shared.check_history(&history(events));
            assert!(!wrong(&shared).is_empty(), "{what}");
        }
    }

    #[test]
    fn counters_that_lost_or_invented_an_increment_are_found_out() {
        let counters = |last: &[u64]| -> Vec<Event> {
            last.iter().enumerate().map(|(n, sum)| (20 + n as i64, format!("shared/{n}"), sum.to_string())).collect()
        };
        for (last, is_honest) in [(&[1_u64, 1][..], true), (&[2, 1], true), (&[1, 0], false), (&[3, 1], false)] {
            let shared = told();
            shared.check_counts(&counters(last));
            assert_eq!(wrong(&shared).is_empty(), is_honest, "{last:?}");
        }
    }

    #[test]
    fn answers_that_are_stale_or_invented_are_found_out() {
        for (found, revision, is_honest) in [
            ("000000000004", 13, true),
            ("000000000004", 20, true),
            // Older than what was acknowledged.
            ("000000000002", 13, false),
            // Of a revision that has passed.
            ("000000000004", 12, false),
            // Never sent, or nothing at all.
            ("000000000005", 14, false),
            ("", 14, false),
        ] {
            let shared = told();
            shared.check_read(0, &shared.before(0), found, revision);
            assert_eq!(wrong(&shared).is_empty(), is_honest, "{found:?} at {revision}");
        }
        // Read once, it must be read again, though nobody was told that it was written.
        let shared = told();
        shared.registers[0].sent.store(5, Ordering::SeqCst);
        shared.check_read(0, &shared.before(0), "000000000005", 14);
        assert!(wrong(&shared).is_empty());
        shared.check_read(0, &shared.before(0), "000000000004", 14);
        assert_eq!(wrong(&shared).len(), 1);
    }

    #[test]
    fn writes_that_are_answered_in_the_past_or_refused_are_found_out() {
        for (succeeded, revision, is_honest) in
            [(true, 14, true), (true, 13, false), (true, 9, false), (false, 14, false)]
        {
            let shared = told();
            shared.check_write(0, 5, 13, succeeded, revision);
            assert_eq!(wrong(&shared).is_empty(), is_honest, "{succeeded} {revision}");
        }
    }
}
