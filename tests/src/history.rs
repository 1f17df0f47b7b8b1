//! What clients were promised: the writes that a server acknowledged, kept outside of it, and the check after a crash that
//! none of them is missing. Knows nothing of how the server was crashed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use daymark_client::{
    Client, ClientError, Config, KeyRange,
    kv::PutOptions,
    txn::{Compare, Is, Op, Txn},
    watch::{Update, WatchOptions},
};
use tokio::{sync::Mutex, time::timeout};

const SHARED_KEYS: usize = 4;
const REPLAY_MAX: Duration = Duration::from_secs(20);

/// What one client knows. Its own key holds a counter that only it writes, one write after the other.
#[derive(Clone, Debug, Default)]
struct Writer {
    /// Highest counter that was acknowledged, or seen after a crash.
    acknowledged: u64,
    /// Highest counter that was ever sent.
    attempted: u64,
    /// Keys written once, and acknowledged, since the last check.
    once: Vec<u64>,
    /// All of them that were checked before.
    once_checked: Vec<u64>,
}

/// One event as a watcher sees it: revision, key, value.
type Seen = (i64, String, String);

#[derive(Default)]
struct State {
    writers: Vec<Writer>,
    increments: u64,
    increments_unknown: u64,
    revision: i64,
    /// First revision of this round, and what a watcher saw from it on.
    round_start: i64,
    seen: Vec<Seen>,
    acknowledged: u64,
    /// Whatever is answered from now on was not promised.
    frozen: bool,
    refusals: Vec<String>,
}

/// Acknowledged writes of some concurrent clients, over many crashes.
pub struct History {
    state: Arc<Mutex<State>>,
    clients: usize,
}

impl History {
    /// Nothing promised yet.
    pub fn new(clients: usize) -> Self {
        let state = State { writers: vec![Writer::default(); clients], ..Default::default() };
        Self { state: Arc::new(Mutex::new(state)), clients }
    }

    /// How many writes were acknowledged so far.
    pub async fn acknowledged(&self) -> u64 {
        self.state.lock().await.acknowledged
    }

    /// Writes with all clients at once, until `crash` has returned and every client has noticed.
    pub async fn write_until<F: Future<Output = ()>>(&self, endpoint: &str, crash: impl FnOnce() -> F) {
        let stop = Arc::new(AtomicBool::new(false));
        self.start_round(endpoint).await;
        let watcher = tokio::spawn(watch(endpoint.to_owned(), Arc::clone(&self.state)));
        let writers: Vec<_> = (0..self.clients)
            .map(|n| tokio::spawn(write(endpoint.to_owned(), n, Arc::clone(&self.state), Arc::clone(&stop))))
            .collect();
        crash().await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.expect("a writer does not panic");
        }
        // Whatever was on its way to the watcher is there by now, or is lost with the connection.
        watcher.abort();
        let _ = watcher.await;
    }

    /// From now on answers promise nothing any more, but what they answer to may have happened.
    pub async fn freeze(&self) {
        self.state.lock().await.frozen = true;
    }

    async fn start_round(&self, endpoint: &str) {
        let answer = connect(endpoint).kv().get("round").await.expect("the server is healthy");
        let mut state = self.state.lock().await;
        state.round_start = answer.header.map_or(0, |h| h.revision) + 1;
        state.seen.clear();
        state.frozen = false;
    }

    /// Compares what the server has now with what was promised; what is wrong.
    pub async fn violations(&self, endpoint: &str, everything: bool) -> Vec<String> {
        let client = connect(endpoint);
        let mut wrong = Vec::new();
        let mut state = self.state.lock().await;
        wrong.append(&mut state.refusals);
        check_counters(&client, &mut state, &mut wrong).await;
        check_once(&client, &mut state, everything, &mut wrong).await;
        check_increments(&client, &state, &mut wrong).await;
        check_replay(&client, &state, &mut wrong).await;
        wrong
    }
}

fn connect(endpoint: &str) -> Client {
    let config = Config { request_timeout: Some(Duration::from_secs(5)), read_retries: 0, ..Config::new([endpoint]) };
    Client::new(config).expect("a valid endpoint")
}

fn own_key(n: usize) -> String {
    format!("own/{n:03}")
}

async fn write(endpoint: String, n: usize, state: Arc<Mutex<State>>, stop: Arc<AtomicBool>) {
    let client = connect(&endpoint);
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let outcome = match turn % 4 {
            3 => increment(&client, n, &state).await,
            2 => put_once(&client, n, &state).await,
            _ => put_own(&client, n, &state).await,
        };
        match outcome {
            Ok(()) => {}
            Err(error) if error.outcome_unknown() => return,
            Err(error) => return state.lock().await.refusals.push(format!("client {n} was refused: {error}")),
        }
    }
}

async fn put_own(client: &Client, n: usize, state: &Mutex<State>) -> Result<(), ClientError> {
    let counter = {
        let writer = &mut state.lock().await.writers[n];
        writer.attempted += 1;
        writer.attempted
    };
    let answer = client.kv().put(own_key(n), counter.to_string()).await?;
    let mut state = state.lock().await;
    if state.frozen {
        return Ok(());
    }
    state.writers[n].acknowledged = counter;
    state.acknowledged += 1;
    state.revision = state.revision.max(answer.header.map_or(0, |h| h.revision));
    Ok(())
}

async fn put_once(client: &Client, n: usize, state: &Mutex<State>) -> Result<(), ClientError> {
    let counter = {
        let writer = &mut state.lock().await.writers[n];
        writer.attempted += 1;
        writer.attempted
    };
    client.kv().put(format!("once/{n:03}/{counter}"), counter.to_string()).await?;
    let mut state = state.lock().await;
    if !state.frozen {
        state.writers[n].once.push(counter);
        state.acknowledged += 1;
    }
    Ok(())
}

/// Adds one to a key that several clients write, if nobody else was faster.
async fn increment(client: &Client, n: usize, state: &Mutex<State>) -> Result<(), ClientError> {
    let key = format!("shared/{}", n % SHARED_KEYS);
    let before = client.kv().get(key.clone()).await?;
    let kv = before.kvs.first();
    let old: u64 = kv.map_or(0, |kv| number(&kv.value));
    let unchanged = Compare::mod_revision(KeyRange::key(key.clone()), Is::Equal, kv.map_or(0, |kv| kv.mod_revision));
    let put = Op::put(key, (old + 1).to_string(), PutOptions::default());
    let outcome = client.kv().txn(Txn::new().when([unchanged]).then([put])).await;
    let mut state = state.lock().await;
    match outcome {
        Ok(answer) if state.frozen => {
            state.increments_unknown += u64::from(answer.succeeded);
            Ok(())
        }
        Ok(answer) => {
            state.increments += u64::from(answer.succeeded);
            state.acknowledged += u64::from(answer.succeeded);
            Ok(())
        }
        Err(error) => {
            state.increments_unknown += 1;
            Err(error)
        }
    }
}

async fn watch(endpoint: String, state: Arc<Mutex<State>>) {
    let start_revision = state.lock().await.round_start;
    let options = WatchOptions { start_revision, ..Default::default() };
    let Ok(mut watcher) = connect(&endpoint).watch().start(KeyRange::prefix("own/"), options).await else { return };
    while let Ok(Some(update)) = watcher.next().await {
        if let Update::Events(events) = update {
            let mut state = state.lock().await;
            if !state.frozen {
                state.seen.extend(events.iter().map(seen));
            }
        }
    }
}

fn seen(event: &daymark_client::api::mvccpb::Event) -> Seen {
    let kv = event.kv.clone().unwrap_or_default();
    (kv.mod_revision, text(&kv.key), text(&kv.value))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn number(bytes: &[u8]) -> u64 {
    text(bytes).parse().expect("only numbers were written")
}

/// Own counters: not below what was acknowledged, not above what was sent; and the revision does not go back.
async fn check_counters(client: &Client, state: &mut State, wrong: &mut Vec<String>) {
    let answer = client.kv().get(KeyRange::prefix("own/")).await.expect("the server is healthy");
    let now: BTreeMap<_, _> = answer.kvs.iter().map(|kv| (text(&kv.key), number(&kv.value))).collect();
    let revision = answer.header.map_or(0, |h| h.revision);
    if revision < state.revision {
        wrong.push(format!("revision {revision} after {} was acknowledged", state.revision));
    }
    state.revision = revision.max(state.revision);
    for (n, writer) in state.writers.iter_mut().enumerate() {
        let found = now.get(&own_key(n)).copied().unwrap_or(0);
        if found < writer.acknowledged || found > writer.attempted {
            let (from, to) = (writer.acknowledged, writer.attempted);
            wrong.push(format!("{} holds {found}, acknowledged {from}, sent {to}", own_key(n)));
        }
        writer.acknowledged = found.max(writer.acknowledged);
    }
}

/// Keys written once: all there. Those of earlier rounds only when `everything` is asked for.
async fn check_once(client: &Client, state: &mut State, everything: bool, wrong: &mut Vec<String>) {
    for (n, writer) in state.writers.iter_mut().enumerate() {
        let range = KeyRange::prefix(format!("once/{n:03}/"));
        if everything {
            writer.once.append(&mut writer.once_checked);
        }
        let found = client.kv().get(range).await.expect("the server is healthy");
        let found: BTreeMap<_, _> = found.kvs.iter().map(|kv| (text(&kv.key), number(&kv.value))).collect();
        let lost = writer.once.iter().filter(|c| found.get(&format!("once/{n:03}/{c}")) != Some(c)).count();
        if lost > 0 {
            wrong.push(format!("{lost} of {} keys that client {n} wrote once are missing", writer.once.len()));
        }
        writer.once_checked.append(&mut writer.once);
    }
}

async fn check_increments(client: &Client, state: &State, wrong: &mut Vec<String>) {
    let found = client.kv().get(KeyRange::prefix("shared/")).await.expect("the server is healthy");
    let sum: u64 = found.kvs.iter().map(|kv| number(&kv.value)).sum();
    let most = state.increments + state.increments_unknown;
    if sum < state.increments || sum > most {
        wrong.push(format!("shared counters sum up to {sum}, acknowledged {}, possible {most}", state.increments));
    }
}

/// A watch from the start of the round tells again what was told before the crash, and goes on to the present.
async fn check_replay(client: &Client, state: &State, wrong: &mut Vec<String>) {
    let present = client.kv().get(KeyRange::prefix("own/")).await.expect("the server is healthy");
    let last = present.kvs.iter().map(|kv| kv.mod_revision).max().unwrap_or(0);
    if last < state.round_start {
        if !state.seen.is_empty() {
            wrong.push(format!("{} events were seen of which nothing is left", state.seen.len()));
        }
        return;
    }
    let mut replayed: Vec<Seen> = Vec::new();
    let replay = async {
        let options = WatchOptions { start_revision: state.round_start, ..Default::default() };
        let mut watcher = client.watch().start(KeyRange::prefix("own/"), options).await?;
        while replayed.last().is_none_or(|(revision, ..)| *revision < last) {
            if let Some(Update::Events(events)) = watcher.next().await? {
                replayed.extend(events.iter().map(seen));
            }
        }
        Ok::<_, ClientError>(())
    };
    match timeout(REPLAY_MAX, replay).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return wrong.push(format!("replay: {error}")),
        Err(_) => return wrong.push(format!("replay did not reach revision {last}")),
    }
    if !replayed.starts_with(&state.seen) {
        let at = replayed.iter().zip(&state.seen).position(|(a, b)| a != b).unwrap_or(replayed.len());
        wrong.push(format!("replay differs at event {at}: {:?}, seen {:?}", replayed.get(at), state.seen.get(at)));
    }
    let latest: BTreeMap<_, _> = replayed.iter().map(|(_, key, value)| (key, value)).collect();
    for kv in present.kvs.iter().filter(|kv| kv.mod_revision >= state.round_start) {
        if latest.get(&text(&kv.key)) != Some(&&text(&kv.value)) {
            wrong.push(format!("replay does not end in what {} holds", text(&kv.key)));
        }
    }
}
