//! One of the two servers, asked through plain gRPC clients; and its answers in a form that can be compared. What is not
//! promised by etcd (ids, terms, remaining times, the order of equal elements) is levelled here.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use daymark_api::{
    etcdserverpb::{
        self as pb, LeaseKeepAliveRequest, LeaseLeasesRequest, RangeRequest, RangeResponse, ResponseHeader,
        TxnResponse, WatchCancelRequest, WatchRequest, WatchResponse, kv_client::KvClient, lease_client::LeaseClient,
        response_op::Response as OpResponse, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb::{self, KeyValue},
};
use futures_util::{Stream, stream};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::generate::Request;

const ANSWER_MAX: Duration = Duration::from_secs(15);
/// Both must have delivered the same events after this long.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Silence after which a server has delivered what it had; etcd looks after watchers that are behind every 100 ms.
const QUIET: Duration = Duration::from_millis(260);
const QUIET_LIVE: Duration = Duration::from_millis(20);

/// What the watchers of a stream were told, by id.
#[derive(Default)]
struct Watched {
    by_id: BTreeMap<i64, Vec<Line>>,
    /// Revisions that were compacted at.
    compacted: BTreeSet<i64>,
    created: usize,
    canceled: usize,
    last: Option<Instant>,
    ended: Option<String>,
}

/// What a watcher was told, and the revision if it is a delete.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    text: String,
    deleted_at: Option<i64>,
}

/// A connection to one server.
pub struct Side {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    watch: mpsc::Sender<WatchRequest>,
    watched: Arc<Mutex<Watched>>,
    revision: i64,
}

impl Side {
    /// Connects and opens the watch stream.
    pub async fn connect(endpoint: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address").connect().await;
        let channel = channel.expect("the server is up");
        let limit = usize::try_from(i32::MAX).expect("fits");
        let (watch, mut queue) = mpsc::channel(64);
        let outgoing = stream::poll_fn(move |cx| queue.poll_recv(cx));
        let client = WatchClient::new(channel.clone()).max_decoding_message_size(limit);
        let watched = Arc::default();
        // Opened aside: etcd sends the stream's headers only with its first answer.
        tokio::spawn(listen(client, outgoing, Arc::clone(&watched)));
        let kv = KvClient::new(channel.clone()).max_decoding_message_size(limit);
        Self { kv, lease: LeaseClient::new(channel), watch, watched, revision: 1 }
    }

    /// The highest revision that any answer has shown.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Sends a request; its answer, levelled.
    pub async fn ask(&mut self, request: &Request) -> String {
        match timeout(ANSWER_MAX, self.answer(request.clone())).await {
            Ok(Ok(text)) => text,
            Ok(Err(status)) => level_error(request, &status),
            Err(_) => format!("no answer within {ANSWER_MAX:?}"),
        }
    }

    async fn answer(&mut self, request: Request) -> Result<String, Status> {
        Ok(match request {
            Request::Range(range) => {
                let mut answer = self.kv.range(range.clone()).await?.into_inner();
                self.level(&mut answer.header);
                level_range(&range, &mut answer);
                format!("{answer:?}")
            }
            Request::Put(put) => {
                let mut answer = self.kv.put(put).await?.into_inner();
                self.level(&mut answer.header);
                format!("{answer:?}")
            }
            Request::Delete(delete) => {
                let mut answer = self.kv.delete_range(delete).await?.into_inner();
                self.level(&mut answer.header);
                format!("{answer:?}")
            }
            Request::Txn(txn) => {
                let mut answer = self.kv.txn(txn.clone()).await?.into_inner();
                self.level(&mut answer.header);
                level_txn(&txn, &mut answer);
                format!("{answer:?}")
            }
            Request::Compact(compaction) => {
                let revision = compaction.revision;
                let mut answer = self.kv.compact(compaction).await?.into_inner();
                self.watched.lock().expect("no panic while held").compacted.insert(revision);
                self.level(&mut answer.header);
                format!("{answer:?}")
            }
            Request::WatchCreate(create) => self.create_watch(create).await,
            Request::WatchCancel(watch_id) => {
                self.say(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
                String::new()
            }
            request => self.lease_answer(request).await?,
        })
    }

    async fn lease_answer(&mut self, request: Request) -> Result<String, Status> {
        Ok(match request {
            Request::Grant(grant) => {
                let mut answer = self.lease.lease_grant(grant).await?.into_inner();
                self.level(&mut answer.header);
                format!("{answer:?}")
            }
            Request::Revoke(revoke) => {
                let mut answer = self.lease.lease_revoke(revoke).await?.into_inner();
                self.level(&mut answer.header);
                format!("{answer:?}")
            }
            Request::TimeToLive(ask) => {
                let mut answer = self.lease.lease_time_to_live(ask).await?.into_inner();
                self.level(&mut answer.header);
                answer.ttl = answer.ttl.signum();
                answer.keys.sort();
                format!("{answer:?}")
            }
            Request::KeepAlive(id) => {
                let once = stream::iter([LeaseKeepAliveRequest { id }]);
                let mut answers = self.lease.lease_keep_alive(once).await?.into_inner();
                let mut answer = answers.message().await?.unwrap_or_default();
                self.level(&mut answer.header);
                format!("{answer:?}")
            }
            _ => {
                let mut answer = self.lease.lease_leases(LeaseLeasesRequest {}).await?.into_inner();
                self.level(&mut answer.header);
                answer.leases.sort_by_key(|lease| lease.id);
                format!("{answer:?}")
            }
        })
    }

    /// Creates a watcher and waits until it stands, so that it misses no later write.
    async fn create_watch(&mut self, create: pb::WatchCreateRequest) -> String {
        let before = self.watched.lock().expect("no panic while held").created;
        self.say(RequestUnion::CreateRequest(create)).await;
        let limit = Instant::now() + SETTLE_MAX;
        while self.watched.lock().expect("no panic while held").created == before {
            if Instant::now() > limit {
                return "not created".to_owned();
            }
            sleep(Duration::from_micros(200)).await;
        }
        String::new()
    }

    /// Everything that the watchers were told, once the server has been silent for a while.
    pub async fn told(&self) -> Vec<String> {
        sleep(QUIET * 2).await;
        let watched = self.watched.lock().expect("no panic while held");
        watched.by_id.iter().flat_map(|(id, log)| log.iter().map(move |line| format!("{id}: {}", line.text))).collect()
    }

    async fn say(&self, request: RequestUnion) {
        // A closed queue means an ended stream, which settled() reports.
        let _ = self.watch.send(WatchRequest { request_union: Some(request) }).await;
    }

    fn level(&mut self, header: &mut Option<ResponseHeader>) {
        if let Some(header) = header {
            self.revision = self.revision.max(header.revision);
            *header = ResponseHeader { revision: header.revision, ..Default::default() };
        }
    }
}

async fn listen(
    mut client: WatchClient<Channel>,
    requests: impl Stream<Item = WatchRequest> + Send + 'static,
    watched: Arc<Mutex<Watched>>,
) {
    let outcome = async {
        let mut answers = client.watch(requests).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            watched.lock().expect("no panic while held").handle(answer);
        }
        Ok::<_, Status>(())
    };
    let ended = outcome.await.map_or_else(|status| status.to_string(), |()| "by the server".to_owned());
    watched.lock().expect("no panic while held").ended = Some(ended);
}

impl Watched {
    fn handle(&mut self, answer: WatchResponse) {
        self.last = Some(Instant::now());
        self.created += usize::from(answer.created);
        self.canceled += usize::from(answer.canceled);
        let log = self.by_id.entry(answer.watch_id).or_default();
        if answer.created || answer.canceled {
            let WatchResponse { created, canceled, compact_revision, cancel_reason, .. } = &answer;
            let text = format!("created {created} canceled {canceled} at {compact_revision}: {cancel_reason}");
            log.push(Line { text, deleted_at: None });
        }
        log.extend(answer.events.iter().map(|event| {
            let is_delete = event.r#type() == mvccpb::event::EventType::Delete;
            let deleted_at = event.kv.as_ref().filter(|_| is_delete).map(|kv| kv.mod_revision);
            Line { text: format!("{event:?}"), deleted_at }
        }));
    }

    /// What is compared of a watcher. 3.5.1 forgets a delete at the very revision that is compacted at; present etcd keeps
    /// it, so that a watch which starts there still sees it.
    fn comparable(&self, id: i64) -> Vec<&str> {
        let lines = self.by_id.get(&id).into_iter().flatten();
        let kept = lines.filter(|line| line.deleted_at.is_none_or(|at| !self.compacted.contains(&at)));
        kept.map(|line| line.text.as_str()).collect()
    }

    fn is_quiet(&self, quiet: Duration) -> bool {
        self.last.is_none_or(|last| last.elapsed() >= quiet)
    }
}

/// Waits until both servers have told their watchers the same.
///
/// # Errors
/// What differs when they have not after some seconds.
pub async fn settled(left: &Side, right: &Side, behind: bool) -> Result<(), String> {
    let quiet = if behind { QUIET } else { QUIET_LIVE };
    let started = Instant::now();
    // Silence counts from now on: nothing may have been sent yet.
    sleep(quiet).await;
    loop {
        let difference = {
            let (a, b) = (left.watched.lock().expect("not held"), right.watched.lock().expect("not held"));
            if let Some(ended) = a.ended.as_ref().or(b.ended.as_ref()) {
                return Err(format!("a watch stream ended: {ended}"));
            }
            let still = a.is_quiet(quiet) && b.is_quiet(quiet);
            if still { first_difference(&a, &b) } else { Some("events still arrive".to_owned()) }
        };
        match difference {
            None => return Ok(()),
            Some(what) if started.elapsed() > SETTLE_MAX => return Err(what),
            Some(_) => sleep(Duration::from_millis(5)).await,
        }
    }
}

fn first_difference(a: &Watched, b: &Watched) -> Option<String> {
    let ids = a.by_id.keys().chain(b.by_id.keys());
    for id in ids {
        let (a, b) = (a.comparable(*id), b.comparable(*id));
        if a != b {
            let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
            let (a, b) = (a.get(at), b.get(at));
            return Some(format!("watcher {id}, message {at}:\n  etcd:    {a:?}\n  daymark: {b:?}"));
        }
    }
    None
}

/// A transaction of which several steps are impossible: 3.5.1 looks at its puts first and at keys before leases, present
/// etcd goes by the order of the steps and looks at leases first. One mistake at a time is in the refusals.
fn level_error(request: &Request, status: &Status) -> String {
    const IMPOSSIBLE: [&str; 4] = [
        "etcdserver: key not found",
        "etcdserver: requested lease not found",
        "etcdserver: mvcc: required revision has been compacted",
        "etcdserver: mvcc: required revision is a future revision",
    ];
    if matches!(request, Request::Txn(_)) && IMPOSSIBLE.contains(&status.message()) {
        return "a step is impossible".to_owned();
    }
    format!("{:?}: {}", status.code(), status.message())
}

/// Equal elements of a sorted answer come in any order, and a limit picks any of them.
fn level_range(request: &RangeRequest, answer: &mut RangeResponse) {
    if request.keys_only {
        // etcd 3.7 answers from its index, without leases; 3.5.1 reads the record.
        answer.kvs.iter_mut().for_each(|kv| kv.lease = 0);
    }
    let target = request.sort_target;
    if target == 0 {
        return;
    }
    let limited = request.limit > 0 && answer.more;
    let order = |a: &KeyValue, b: &KeyValue| match target {
        1 => a.version.cmp(&b.version),
        2 => a.create_revision.cmp(&b.create_revision),
        3 => a.mod_revision.cmp(&b.mod_revision),
        _ => a.value.cmp(&b.value),
    };
    if request.keys_only && target == 4 {
        // Sorted by values that are not in the answer.
        answer.kvs.sort_by(|a, b| a.key.cmp(&b.key));
        if limited {
            answer.kvs.iter_mut().for_each(|kv| *kv = KeyValue::default());
        }
        return;
    }
    let mut from = 0;
    while from < answer.kvs.len() {
        let first = &answer.kvs[from];
        let equal = answer.kvs[from..].iter().take_while(|kv| order(first, kv) == Ordering::Equal).count();
        let group = &mut answer.kvs[from..from + equal];
        group.sort_by(|a, b| a.key.cmp(&b.key));
        if limited && from + equal == answer.kvs.len() {
            answer.kvs[from..].iter_mut().for_each(|kv| erase_identity(kv, target));
        }
        from += equal;
    }
}

/// Leaves of a pair only what it was sorted by.
fn erase_identity(kv: &mut KeyValue, target: i32) {
    let old = std::mem::take(kv);
    match target {
        1 => kv.version = old.version,
        2 => kv.create_revision = old.create_revision,
        3 => kv.mod_revision = old.mod_revision,
        _ => kv.value = old.value,
    }
}

fn level_txn(request: &pb::TxnRequest, answer: &mut TxnResponse) {
    let branch = if answer.succeeded { &request.success } else { &request.failure };
    for (op, response) in branch.iter().zip(&mut answer.responses) {
        match (&op.request, &mut response.response) {
            (Some(pb::request_op::Request::RequestRange(range)), Some(OpResponse::ResponseRange(answer))) => {
                level_range(range, answer);
            }
            (Some(pb::request_op::Request::RequestTxn(txn)), Some(OpResponse::ResponseTxn(answer))) => {
                level_txn(txn, answer);
            }
            _ => {}
        }
    }
}
