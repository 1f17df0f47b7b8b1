//! One of the two servers, asked through plain gRPC clients; and its answers in a form that can be compared. What may differ
//! is taken out by `known.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use daymark_api::{
    etcdserverpb::{
        self as pb, AuthenticateRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, RangeRequest, RangeResponse,
        ResponseHeader, WatchCancelRequest, WatchRequest, WatchResponse, auth_client::AuthClient, kv_client::KvClient,
        lease_client::LeaseClient, watch_client::WatchClient, watch_request::RequestUnion,
    },
    mvccpb,
    v3electionpb::{self, CampaignRequest, LeaderKey, ProclaimRequest, ResignRequest},
    v3lockpb::{self, LockRequest, UnlockRequest},
};
use futures_util::{Stream, stream};
use prost::Message;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{
    Status,
    client::Grpc,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{
    call::{Call, RawCodec},
    generate::{Request, Who},
    known,
};

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
    /// Revisions that were compacted at, if that makes a difference.
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

/// Adds the token of whoever asks at the moment.
#[derive(Clone, Default)]
struct Caller(Arc<Mutex<Option<String>>>);

impl Interceptor for Caller {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = self.0.lock().expect("no panic while held").as_deref() {
            request.metadata_mut().insert("token", AsciiMetadataValue::try_from(token).expect("tokens are ASCII"));
        }
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Caller>;

/// A connection to one server.
pub struct Side {
    service: Service,
    kv: KvClient<Service>,
    lease: LeaseClient<Service>,
    watch: mpsc::Sender<WatchRequest>,
    watched: Arc<Mutex<Watched>>,
    revision: i64,
    /// The server is an etcd 3.5.1, or compared with one.
    old: bool,
    caller: Caller,
    tokens: BTreeMap<Who, String>,
    /// What the last campaign of each lease was answered with.
    leaders: BTreeMap<i64, LeaderKey>,
    /// The member, for calls that name it, and what stands for its names in an answer.
    member_id: u64,
    names: Vec<(String, &'static str)>,
}

impl Side {
    /// Connects and opens the watch stream.
    pub async fn connect(endpoint: &str, old: bool) -> Self {
        let channel = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address").connect().await;
        let channel = channel.expect("the server is up");
        let limit = usize::try_from(i32::MAX).expect("fits");
        let (watch, mut queue) = mpsc::channel(64);
        let outgoing = stream::poll_fn(move |cx| queue.poll_recv(cx));
        let client = WatchClient::new(channel.clone()).max_decoding_message_size(limit);
        let watched = Arc::default();
        // Opened aside: etcd sends the stream's headers only with its first answer.
        tokio::spawn(listen(client, outgoing, Arc::clone(&watched)));
        let caller = Caller::default();
        let service = InterceptedService::new(channel, caller.clone());
        let kv = KvClient::new(service.clone()).max_decoding_message_size(limit);
        let lease = LeaseClient::new(service.clone());
        let (tokens, leaders, names) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let member_id = 0;
        let mut this =
            Self { service, kv, lease, watch, watched, revision: 1, old, caller, tokens, leaders, member_id, names };
        this.learn_names(endpoint).await;
        this
    }

    async fn learn_names(&mut self, endpoint: &str) {
        let list = self.raw(&Call::member_list(false)).await.expect("a member list");
        let list = pb::MemberListResponse::decode(list).expect("a list");
        self.member_id = list.header.map_or(0, |header| header.member_id);
        let peer = list.members.first().and_then(|member| member.peer_ur_ls.first()).cloned().unwrap_or_default();
        self.names = vec![
            (self.member_id.to_string(), "<member>"),
            (endpoint.to_owned(), "<endpoint>"),
            (peer, "<peer endpoint>"),
        ];
    }

    /// The highest revision that any answer has shown.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Sends a request; its answer, levelled.
    pub async fn ask(&mut self, request: &Request) -> String {
        let (who, request) = match request {
            Request::As(who, request) => (Some(*who), &**request),
            request => (None, request),
        };
        let token = who.and_then(|who| match who {
            Who::Garbage => Some("neither-a-token.nor-a-number".to_owned()),
            who => self.tokens.get(&who).cloned(),
        });
        *self.caller.0.lock().expect("no panic while held") = token;
        let answer = match timeout(ANSWER_MAX, self.answer(request.clone())).await {
            Ok(Ok(text)) => known::text(&text, &self.names),
            Ok(Err(status)) => known::error(request, &status, self.old),
            Err(_) => format!("no answer within {ANSWER_MAX:?}"),
        };
        *self.caller.0.lock().expect("no panic while held") = None;
        answer
    }

    async fn answer(&mut self, request: Request) -> Result<String, Status> {
        Ok(match request {
            Request::Range(range) => {
                let mut answer = self.kv.range(range.clone()).await?.into_inner();
                self.level(&mut answer.header);
                known::range(&range, &mut answer, self.old);
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
                known::txn(&txn, &mut answer, self.old);
                format!("{answer:?}")
            }
            Request::Compact(compaction) => {
                let revision = compaction.revision;
                let mut answer = self.kv.compact(compaction).await?.into_inner();
                if self.old {
                    self.watched.lock().expect("no panic while held").compacted.insert(revision);
                }
                self.level(&mut answer.header);
                format!("{answer:?}")
            }
            Request::WatchCreate(create) => self.create_watch(create).await,
            Request::WatchCancel(watch_id) => self.cancel_watch(watch_id).await,
            Request::RangeStream(range) => self.range_stream(range).await?,
            Request::WatchOnce(create) => self.watch_once(create).await?,
            Request::Login(who, password) => self.login(who, password).await?,
            Request::Call(call) => self.call(&call).await?,
            Request::Alarm(alarm) => {
                self.call(&Call::alarm(pb::AlarmRequest { member_id: self.member_id, ..alarm })).await?
            }
            Request::Lock(_)
            | Request::Unlock(_)
            | Request::Campaign(..)
            | Request::Proclaim(..)
            | Request::Resign(_) => self.concurrency(request).await?,
            request => self.lease_answer(request).await?,
        })
    }

    async fn raw(&mut self, call: &Call) -> Result<bytes::Bytes, Status> {
        let mut grpc = Grpc::new(self.service.clone());
        grpc.ready().await.map_err(|e| Status::unknown(format!("transport error: {e}")))?;
        let path = http::uri::PathAndQuery::from_static(call.path);
        Ok(grpc.unary(tonic::Request::new(call.message.clone()), path, RawCodec).await?.into_inner())
    }

    async fn call(&mut self, call: &Call) -> Result<String, Status> {
        let (text, revision) = (call.show)(&self.raw(call).await?);
        self.revision = self.revision.max(revision.unwrap_or_default());
        Ok(text)
    }

    /// The chunks put together, which must be what a Range would have answered, and where the header was.
    async fn range_stream(&mut self, range: RangeRequest) -> Result<String, Status> {
        let mut chunks = self.kv.range_stream(range).await?.into_inner();
        let mut whole = RangeResponse::default();
        let mut headers = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            let chunk = chunk.range_response.unwrap_or_default();
            headers.push(chunk.header.is_some());
            whole.kvs.extend(chunk.kvs);
            whole.more |= chunk.more;
            whole.count += chunk.count;
            whole.header = chunk.header.or(whole.header);
        }
        self.level(&mut whole.header);
        let last_only = headers.iter().rposition(|has| !has).is_none_or(|at| at + 2 == headers.len());
        Ok(format!("header in the last chunk only: {last_only} {whole:?}"))
    }

    async fn watch_once(&mut self, create: pb::WatchCreateRequest) -> Result<String, Status> {
        let mut client = WatchClient::new(self.service.clone());
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = stream::iter([request]);
        // The stream must not be half-closed before it is answered, which some servers take for its end.
        let requests = futures_util::StreamExt::chain(requests, stream::pending());
        let mut answers = client.watch(requests).await?.into_inner();
        let mut first = answers.message().await?.unwrap_or_default();
        self.level(&mut first.header);
        Ok(format!("{first:?}"))
    }

    async fn login(&mut self, who: Who, password: &str) -> Result<String, Status> {
        let request = AuthenticateRequest { name: who.name().into(), password: password.into() };
        let mut answer = AuthClient::new(self.service.clone()).authenticate(request).await?.into_inner();
        self.level(&mut answer.header);
        self.tokens.insert(who, answer.token.clone());
        let form = answer.token.split('.').map(|part| part.len().min(16)).next();
        Ok(format!("{:?} token with {form:?} letters", answer.header))
    }

    async fn concurrency(&mut self, request: Request) -> Result<String, Status> {
        match request {
            Request::Lock(lease) => {
                let request = LockRequest { name: format!("l{lease}").into(), lease };
                self.call(&Call::new::<v3lockpb::LockResponse>("/v3lockpb.Lock/Lock", &request)).await
            }
            Request::Unlock(lease) => {
                let request = UnlockRequest { key: format!("l{lease}/{lease:x}").into() };
                self.call(&Call::new::<v3lockpb::UnlockResponse>("/v3lockpb.Lock/Unlock", &request)).await
            }
            Request::Campaign(lease, value) => {
                let request = CampaignRequest { name: format!("e{lease}").into(), lease, value };
                let call = Call::new::<v3electionpb::CampaignResponse>("/v3electionpb.Election/Campaign", &request);
                let answer = self.raw(&call).await?;
                if let Some(leader) = v3electionpb::CampaignResponse::decode(answer.clone()).ok().and_then(|a| a.leader)
                {
                    self.leaders.insert(lease, leader);
                }
                let (text, revision) = (call.show)(&answer);
                self.revision = self.revision.max(revision.unwrap_or_default());
                Ok(text)
            }
            Request::Proclaim(lease, value) => {
                let request = ProclaimRequest { leader: self.leaders.get(&lease).cloned(), value };
                let path = "/v3electionpb.Election/Proclaim";
                self.call(&Call::new::<v3electionpb::ProclaimResponse>(path, &request)).await
            }
            Request::Resign(lease) => {
                let request = ResignRequest { leader: self.leaders.get(&lease).cloned() };
                self.call(&Call::new::<v3electionpb::ResignResponse>("/v3electionpb.Election/Resign", &request)).await
            }
            other => unreachable!("{other:?} is no call of the lock or election service"),
        }
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

    /// Cancels a watcher and waits until it is gone, so that it sees no later write. Nobody answers for one that there is not.
    async fn cancel_watch(&mut self, watch_id: i64) -> String {
        let stands = |side: &Self| side.watched.lock().expect("no panic while held").stands(watch_id);
        let stood = stands(self);
        self.say(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })).await;
        let limit = Instant::now() + SETTLE_MAX;
        while stood && stands(self) {
            if Instant::now() > limit {
                return "not canceled".to_owned();
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

    /// Whether a watcher was created and has not been cancelled since.
    fn stands(&self, id: i64) -> bool {
        let lines = self.by_id.get(&id).into_iter().flatten();
        let mut told = lines.filter_map(|line| {
            let said = line.text.strip_prefix("created ")?;
            Some(said.starts_with("true canceled false"))
        });
        told.next_back() == Some(true)
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
