//! The watchers of `bench watch`: streams, the watches on them, and what each watch receives. Counts only; what is right
//! is decided in `watch`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use daymark_api::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use prost::Message;
use tokio::{runtime, sync::oneshot, task::JoinSet};

use daymark_client::dial::Dialer;

use crate::{
    h2_client::{Connection, Duplex, frame},
    histogram::Recorder,
    watch::{Board, Watched, digest, read_mark},
};

pub const PATH: &str = "/etcdserverpb.Watch/Watch";

/// How many watchers there are, and where.
pub struct Watchers {
    pub addresses: Vec<Dialer>,
    pub connections: usize,
    pub streams: usize,
    pub watchers: usize,
    /// Whether events carry the previous pair.
    pub prev_kv: bool,
}

impl Watchers {
    /// The prefix of watcher number `watcher`; every stream gets a mixture of them.
    pub fn prefix_of(&self, watcher: usize, prefixes: usize) -> usize {
        (watcher / self.streams + watcher % self.streams) % prefixes
    }
}

/// A watch answer as far as the harness looks at it; decoding skips the rest.
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    #[prost(int64, tag = "2")]
    pub watch_id: i64,
    #[prost(bool, tag = "3")]
    pub created: bool,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    #[prost(message, repeated, tag = "11")]
    pub events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Event {
    #[prost(message, optional, tag = "2")]
    pub kv: Option<Kv>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Kv {
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
}

/// The watches of one stream by id.
type Watches = HashMap<i64, Watched>;

/// Creates the watchers, reports how long that took, and receives until told to stop.
pub fn run(
    plan: &Watchers,
    board: &Arc<Board>,
    recorder: &Arc<Mutex<Recorder>>,
    ready: &mpsc::Sender<Result<Duration>>,
    stop: oneshot::Receiver<()>,
) -> Result<Vec<Watched>> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let begin = Instant::now();
        let streams = match create(plan, board).await {
            Ok(streams) => streams,
            Err(error) => {
                // Whoever waits for the report has the error; there is nothing else to tell.
                let _ = ready.send(Err(error));
                return Ok(Vec::new());
            }
        };
        ready.send(Ok(begin.elapsed())).context("nobody waits for the watchers")?;
        let mut tasks = JoinSet::new();
        let mut received = Vec::new();
        for (stream, watches) in streams {
            let watches = Arc::new(Mutex::new(watches));
            received.push(watches.clone());
            tasks.spawn(receive(stream, watches, board.clone(), recorder.clone()));
        }
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        tokio::select! {
            _ = stop => {}
            () = all_ended => {}
        }
        Ok(received
            .iter()
            .flat_map(|w| w.lock().expect("not poisoned").values().copied().collect::<Vec<_>>())
            .collect())
    })
}

/// Opens the streams and creates the watches on them, all streams at once.
async fn create(plan: &Watchers, board: &Arc<Board>) -> Result<Vec<(Duplex, Watches)>> {
    let mut connections = Vec::new();
    for number in 0..plan.connections {
        let address = &plan.addresses[number % plan.addresses.len()];
        let opened = Connection::open(address).await;
        connections.push(opened.with_context(|| format!("cannot connect to {address}"))?);
    }
    let mut streams = JoinSet::new();
    for stream in 0..plan.streams {
        let prefixes = (stream..plan.watchers).step_by(plan.streams);
        let prefixes = prefixes.map(|watcher| plan.prefix_of(watcher, board.prefixes.len())).collect();
        let connection = connections[stream % connections.len()].clone();
        streams.spawn(open_stream(connection, prefixes, board.clone(), plan.prev_kv));
    }
    let mut opened = Vec::new();
    while let Some(stream) = streams.join_next().await {
        opened.push(stream.context("a watch stream panicked")??);
    }
    Ok(opened)
}

async fn open_stream(
    connection: Arc<Connection>,
    prefixes: Vec<usize>,
    board: Arc<Board>,
    prev_kv: bool,
) -> Result<(Duplex, Watches)> {
    let mut requests = prefixes.iter().map(|&prefix| create_request(&board.prefixes[prefix].text, prev_kv));
    let first = requests.next().context("a stream without watchers")?;
    let mut sender = connection.sender().await;
    let mut stream = sender.stream(&connection.head(PATH), first).await.context("cannot open a watch stream")?;
    for request in requests {
        stream.send(request).context("cannot create a watch")?;
    }
    let mut watches = Watches::with_capacity(prefixes.len());
    // Creations are answered in the order in which they were asked for.
    for prefix in prefixes {
        let answer = stream.next().await.context("cannot create a watch")?.context("watch stream ended")?;
        let answer = Answer::decode(answer).context("watch answer cannot be decoded")?;
        if answer.canceled {
            bail!("watch refused: {}", answer.cancel_reason);
        }
        ensure!(answer.created, "a watch sent something else before all were created");
        let fresh = watches.insert(answer.watch_id, Watched { prefix, ..Watched::default() }).is_none();
        ensure!(fresh, "two watches of one stream have the same id");
    }
    Ok((stream, watches))
}

fn create_request(prefix: &str, prev_kv: bool) -> Bytes {
    let key = Bytes::copy_from_slice(prefix.as_bytes());
    let mut end = prefix.as_bytes().to_vec();
    // Prefixes end in a slash, whose successor is a single byte too.
    *end.last_mut().expect("not empty") += 1;
    let create = WatchCreateRequest { key, range_end: end.into(), prev_kv, ..Default::default() };
    frame(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })
}

async fn receive(mut stream: Duplex, watches: Arc<Mutex<Watches>>, board: Arc<Board>, recorder: Arc<Mutex<Recorder>>) {
    let fail = |text: String| recorder.lock().expect("not poisoned").fail(text);
    loop {
        let message = match stream.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return fail("watch stream ended".to_owned()),
            Err(error) => return fail(format!("watch stream: {error}")),
        };
        let Ok(answer) = Answer::decode(message) else {
            return fail("watch answer cannot be decoded".to_owned());
        };
        if answer.canceled {
            fail(format!("watch canceled: {}", answer.cancel_reason));
        }
        let mut watches = watches.lock().expect("not poisoned");
        match watches.get_mut(&answer.watch_id) {
            Some(watched) => take_events(watched, &answer.events, &board, &mut recorder.lock().expect("not poisoned")),
            None => fail("event for a watch that does not exist".to_owned()),
        }
    }
}

fn take_events(watched: &mut Watched, events: &[Event], board: &Board, recorder: &mut Recorder) {
    let now = board.now();
    for event in events {
        let Some((kv, (sent, op))) = event.kv.as_ref().and_then(|kv| Some((kv, read_mark(&kv.value)?))) else {
            recorder.fail("event that this run has not caused");
            continue;
        };
        if kv.mod_revision <= watched.last_revision {
            watched.repeated += 1;
            continue;
        }
        watched.last_revision = kv.mod_revision;
        watched.events += 1;
        watched.digest = watched.digest.wrapping_add(digest(op));
        recorder.succeed(Duration::from_nanos(now.saturating_sub(sent)), Duration::from_nanos(now));
    }
    board.received.fetch_add(events.len() as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchers_are_spread_evenly_over_prefixes_and_within_streams() {
        let plan = Watchers { addresses: Vec::new(), connections: 1, streams: 10, watchers: 1000, prev_kv: false };
        let mut by_prefix = vec![0; 10];
        for watcher in 0..plan.watchers {
            by_prefix[plan.prefix_of(watcher, 10)] += 1;
        }
        assert_eq!(by_prefix, vec![100; 10]);
        let of_first_stream: std::collections::HashSet<_> =
            (0..1000).step_by(10).map(|watcher| plan.prefix_of(watcher, 10)).collect();
        assert_eq!(of_first_stream.len(), 10);
    }
}
