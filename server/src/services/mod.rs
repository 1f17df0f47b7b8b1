//! The front door of one net thread: what every request passes (protocol checks, the request's own checks, identity),
//! the service that answers it, and the thread's loop behind the sockets: command batches, answers, waiting readers and
//! the watchers' turn. Knows no transport.
//!
//! Reading order: this file, `calling`, [`batcher`], [`check`], [`identity`], [`pool`], [`scan`], then one file a service.

pub mod batcher;
pub mod check;
pub mod corruption;
pub mod lone;
pub mod pool;
pub mod scan;

pub mod reconfigure;

pub mod identity;

mod calling;

pub mod auth;
pub mod cluster;
pub mod election;
pub mod health;
pub mod inner_watch;
pub mod kv;
pub mod lease;
pub mod lock;
pub mod maintenance;
pub mod queue;
pub mod quota;
pub mod range_stream;
pub mod reclaim;
pub mod snapshot;
pub mod watch;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use daymark_raft::Handle;
use daymark_storage::mvcc::Keyspace;
use futures_util::FutureExt;
use prost::Message;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use daymark_api::etcdserverpb as pb;

use crate::auth::authorize::Streaming;
use crate::auth::password::PasswordPool;
use crate::budget::Budget;
use crate::command::{Identity, Kind, MemberAttributes};
use crate::error::Error;
use crate::limits;
use crate::mailbox::{CommandResult, Mailbox};
use crate::policy::lessor::Lessor;
use crate::request::{Context, Reply, Request, Sink, StreamRequest};
use crate::views::Views;
use crate::watch::{Engine, WatchTurn};

use batcher::{Batcher, Submitted};
use calling::Calling;
use lone::{LoneWrite, LoneWriter};
use pool::Pool;
use reclaim::LongWork;
use reconfigure::Reconfigure;
use snapshot::Snapshots;

/// Values of the configuration that services look at.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Most bytes of a replicated request.
    pub max_request_bytes: usize,
    /// Most bytes of an answer.
    pub response_bytes_max: usize,
    /// Most operations of a transaction.
    pub max_txn_ops: usize,
    /// Election timeout.
    pub election: Duration,
    /// Size of the data at which writes that add to it are refused; less than 0: never.
    pub quota_bytes: i64,
    /// What hashing a password costs, as bcrypt counts.
    pub bcrypt_cost: u32,
    /// Whether leases are revoked even when other commands are refused because too many wait.
    pub revokes_first: bool,
    /// Most learners.
    pub learners_max: usize,
    /// Whether changes of members that endanger the quorum are refused.
    pub strict_changes: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let election = Duration::from_millis(1000);
        Self {
            max_request_bytes: 1_572_864,
            response_bytes_max: limits::RESPONSE_BYTES_MAX,
            max_txn_ops: 128,
            election,
            quota_bytes: 2 << 30,
            bcrypt_cost: 10,
            revokes_first: false,
            learners_max: 1,
            strict_changes: true,
        }
    }
}

impl Settings {
    /// How long a request may wait for raft: one leader change fits in.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * self.election
    }

    /// Shortest TTL that a lease gets, in seconds: it must outlive the choice of a leader.
    pub fn lease_ttl_secs_min(&self) -> i64 {
        (self.election.as_millis() * 3).div_ceil(2000) as i64
    }
}

/// What the doors of all net threads share.
pub struct Member {
    pub views: Arc<Views>,
    pub raft: Handle,
    pub lessor: Arc<Lessor>,
    /// Where passwords are hashed and looked at.
    pub passwords: PasswordPool,
    pub settings: Settings,
    /// Memory for answers to reads.
    pub answers: Arc<Budget>,
    /// What gives space back.
    pub reclaim: LongWork,
    /// What makes snapshots.
    pub exports: LongWork,
    pub snapshots: Snapshots,
    /// Changes of members that this one makes as leader, one at a time.
    pub reconfigure: Reconfigure,
    /// Stops the member, with the facts; may be called more than once.
    pub on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
}

/// The front door of one net thread. Whoever accepts connections calls [`Door::call`] for each request and keeps
/// [`Door::run`] running beside.
pub struct Door {
    member: Arc<Member>,
    mailbox: Arc<Mailbox>,
    batcher: Batcher,
    lone_writer: LoneWriter,
    pool: Pool,
    /// Readers that wait until the applied index reaches theirs.
    readers: RefCell<Vec<(u64, Waker)>>,
    /// Watches of this thread.
    engine: RefCell<Option<Rc<RefCell<Engine>>>>,
    /// Candidates for locks and elections that wait on this thread.
    waiting: queue::Waiting,
    /// Room for callers whose token nobody knows yet.
    token_waits: Semaphore,
    /// Told when streams that want a leader are to end.
    leaderless: Notify,
    /// Itself, for work that outlives the call that it belongs to.
    this: Weak<Self>,
}

/// A command on its way to apply.
struct Proposed {
    submitted: Submitted,
    write: LoneWrite,
}

impl Door {
    /// The door of net thread number `thread`.
    pub fn new(member: Arc<Member>, thread: usize) -> Rc<Self> {
        let mailbox = member.views.mailboxes[thread].clone();
        let raft = member.raft.clone();
        let timeout = member.settings.request_timeout();
        let revokes_first = member.settings.revokes_first;
        let batcher = Batcher::new(mailbox.clone(), timeout, Box::new(move |batch| raft.propose(batch)));
        let batcher = batcher.with_revokes_first(revokes_first);
        Rc::new_cyclic(|this| Self {
            member,
            mailbox,
            batcher,
            lone_writer: LoneWriter::default(),
            pool: Pool::default(),
            readers: RefCell::default(),
            engine: RefCell::default(),
            waiting: queue::Waiting::default(),
            token_waits: Semaphore::new(limits::TOKEN_WAITS_MAX),
            leaderless: Notify::new(),
            this: this.clone(),
        })
    }

    /// Sets who gets applied batches and a turn after them. Locks and elections wait by its watches.
    pub fn attach_watch(&self, engine: Rc<RefCell<Engine>>) {
        *self.engine.borrow_mut() = Some(engine);
    }

    fn engine(&self) -> Rc<RefCell<Engine>> {
        self.engine.borrow().clone().expect("watches are attached before anybody is served")
    }

    fn this(&self) -> Weak<Self> {
        self.this.clone()
    }

    /// The member behind it.
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// What is published.
    pub fn views(&self) -> &Arc<Views> {
        &self.member.views
    }

    /// The thread's loop: seals command batches, hands out answers, wakes readers, gives watchers their turn. Never
    /// returns.
    pub async fn run(&self) {
        let tick = async {
            loop {
                tokio::time::sleep(limits::NET_TICK).await;
                self.batcher.expire(Instant::now());
                self.turn();
            }
        };
        let mail = async {
            loop {
                if self.mailbox.wait().now_or_never().is_some() {
                    // Woken again since the last round: other tasks have their share first.
                    tokio::task::yield_now().await;
                } else {
                    self.mailbox.wait().await;
                }
                self.handle_mail();
            }
        };
        tokio::join!(self.batcher.run(), mail, tick);
    }

    /// Waits until this member leads and has applied what was in its log when it began to, or has applied what another
    /// leader had committed. Nobody may be served before: a read could see a state older than one that was seen before the
    /// restart.
    pub async fn wait_joined(&self) -> Result<(), Error> {
        let index = self.member.raft.wait_ready().await?;
        self.wait_applied(index).await;
        Ok(())
    }

    /// Answers one unary call, which has begun when this returns.
    pub fn call<'a>(
        &'a self,
        context: &'a Context,
        request: Request,
    ) -> impl Future<Output = Result<Reply, Error>> + use<'a> {
        self.lone_writer.on_call();
        Calling::begin(self, context, request)
    }

    /// What was answered, on its way to the caller.
    fn note_answer(&self, result: &Result<Reply, Error>) {
        if let Err(Error::Internal(facts)) = result {
            // The backend could not be read: what it says next is not to be trusted either.
            (self.member.on_fatal)(facts);
        }
    }

    /// Serves a call that is answered with a stream.
    pub async fn serve_stream(&self, context: Context, request: StreamRequest, sink: Sink) {
        self.lone_writer.on_call();
        // As in etcd a snapshot is sent to its end: it is what the member has, whoever leads.
        let is_cut = context.requires_leader && !matches!(request, StreamRequest::Snapshot(_));
        let served = self.answer_with_stream(context, request, &sink);
        let end = if is_cut { self.while_led(served).await } else { served.await };
        if let Err(Error::Internal(facts)) = &end {
            (self.member.on_fatal)(facts);
        }
        sink.finish(end);
    }

    /// Serves a stream that wants a leader until there has been none for a while.
    pub async fn while_led(&self, serving: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        tokio::select! {
            served = serving => served,
            () = self.leaderless.notified() => Err(Error::NoLeader),
        }
    }

    /// Ends streams that want a leader: there has been none for a while.
    pub fn end_leaderless(&self) {
        self.leaderless.notify_waiters();
        if let Some(engine) = &*self.engine.borrow() {
            engine.borrow_mut().cut_leaderless();
        }
    }

    async fn answer_with_stream(&self, context: Context, request: StreamRequest, sink: &Sink) -> Result<(), Error> {
        match &request {
            StreamRequest::Snapshot(_) => self.check_context(&context)?,
            _ => self.check_stream_context(&context)?,
        }
        check::stream(&request)?;
        if check::streams_what_is_current(&request) {
            self.read_barrier().await?;
        }
        let caller = self.admit_stream(&context, Streaming::Call(&request)).await?;
        match request {
            StreamRequest::RangeStream(request) => self.range_stream(caller, request, sink).await,
            StreamRequest::Snapshot(_) => self.snapshot(sink).await,
            StreamRequest::Observe(request) => self.observe(&context, request, sink).await.map_err(Error::inside),
        }
    }

    /// What is looked at before anything else. What the request may add to the data, in bytes; none if it does not fit.
    fn check(&self, context: &Context, request: &Request) -> Result<Option<u64>, Error> {
        if self.is_learner() && !check::is_for_learners(request) {
            return Err(Error::NotForLearners);
        }
        self.check_context(context)?;
        // Both before the request's own checks, as in etcd.
        check::room(request, self.member.views.room())?;
        let cost = quota::cost(request);
        if cost > 0 && !self.fits(cost) {
            return Ok(None);
        }
        self.check_request(request)?;
        Ok(Some(cost))
    }

    /// The way of every call that has to wait for something before it is even begun, or that is rare.
    async fn answer(&self, context: &Context, request: Request) -> Result<Reply, Error> {
        let Some(cost) = self.check(context, &request)? else { return Err(self.refuse_for_quota().await) };
        // Rights are part of what is read.
        if check::reads_what_is_current(&request) {
            self.read_barrier().await?;
        }
        let identity = self.admit(context, &request).await?;
        let reply = match request {
            request if calling::is_usual(&request) => return self.answer_usual(identity, request, cost).await,
            Request::Range(range) => {
                let response = Box::pin(self.range(&range)).await?;
                self.confirmed(identity, Reply::Range(response))?
            }
            request if is_in_steps(&request) => {
                return Box::pin(self.answer_in_steps(context, request)).await.map_err(Error::inside);
            }
            request => Box::pin(self.answer_rest(identity, request)).await?,
        };
        if cost > 0 && !self.fits(0) {
            // It stays, but whoever made the data pass its limit is told so.
            return Err(self.refuse_for_quota().await);
        }
        Ok(self.with_header(reply))
    }

    /// What is asked for less often.
    async fn answer_rest(&self, identity: Option<Identity>, request: Request) -> Result<Reply, Error> {
        Ok(match request {
            Request::Txn(txn) => self.read_only_txn(identity, txn).await?,
            Request::Compact(compact) => self.compact(identity, compact).await?,
            Request::LeaseGrant(grant) => self.lease_grant(identity, grant).await?,
            Request::LeaseRevoke(revoke) => self.propose(Kind::LeaseRevoke, identity, &revoke).await?,
            Request::LeaseTimeToLive(request) => {
                Reply::LeaseTimeToLive(self.lease_time_to_live(identity.as_ref(), &request).await?)
            }
            Request::LeaseLeases(_) => Reply::LeaseLeases(self.lease_leases(identity.as_ref()).await?),
            Request::MemberAdd(request) => self.member_add(request).await?,
            Request::MemberRemove(request) => self.member_remove(&request).await?,
            Request::MemberUpdate(request) => self.member_update(identity, request).await?,
            Request::MemberPromote(request) => self.member_promote(&request).await?,
            Request::MemberList(request) => Reply::MemberList(self.member_list(&request).await?),
            Request::Alarm(alarm) => self.alarm(identity, alarm).await?,
            Request::Status(_) => Reply::Status(self.status()?),
            Request::Defragment(_) => Reply::Defragment(self.defragment().await?),
            Request::Hash(_) => Reply::Hash(self.hash_all().await?),
            Request::HashKv(request) => Reply::HashKv(self.hash_kv(&request).await?),
            Request::MoveLeader(request) => Reply::MoveLeader(self.move_leader(&request).await?),
            Request::Downgrade(request) => Reply::Downgrade(self.downgrade(&request).await?),
            request => self.auth(identity, request).await?,
        })
    }

    /// The services that are clients of the others.
    async fn answer_in_steps(&self, context: &Context, request: Request) -> Result<Reply, Error> {
        Ok(match request {
            Request::Lock(request) => Reply::Lock(self.lock(context, request).await?),
            Request::Unlock(request) => Reply::Unlock(self.unlock(context, request).await?),
            Request::Campaign(request) => Reply::Campaign(self.campaign(context, request).await?),
            Request::Proclaim(request) => Reply::Proclaim(self.proclaim(context, request).await?),
            Request::Leader(request) => Reply::Leader(self.leader(context, request).await?),
            Request::Resign(request) => Reply::Resign(self.resign(context, request).await?),
            other => unreachable!("{other:?} is answered at once"),
        })
    }

    /// What is checked before any call or stream: client API version, then whether a leader is wanted.
    pub fn check_context(&self, context: &Context) -> Result<(), Error> {
        if matches!(context.client_api_version, Some(Err(_))) {
            return Err(Error::InvalidClientApiVersion);
        }
        if context.requires_leader && !self.has_leader() {
            return Err(Error::NoLeader);
        }
        Ok(())
    }

    /// The same for a stream that a learner does not serve.
    pub fn check_stream_context(&self, context: &Context) -> Result<(), Error> {
        if self.is_learner() { Err(Error::NotForLearners) } else { self.check_context(context) }
    }

    /// A whole response header.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        let views = &self.member.views;
        pb::ResponseHeader {
            cluster_id: views.cluster_id,
            member_id: views.member_id,
            revision,
            raft_term: self.member.raft.term(),
        }
    }

    /// Publishes this member's name and client URLs.
    pub async fn publish_attributes(&self, attributes: &MemberAttributes) -> Result<(), Error> {
        self.propose(Kind::MemberAttributes, None, attributes).await.map(|_| ())
    }

    /// Replicates a command; resolves to what apply answered.
    pub async fn propose(&self, kind: Kind, identity: Option<Identity>, message: &impl Message) -> CommandResult {
        let mut proposed = self.submit(kind, identity, message)?;
        let result = (&mut proposed.submitted).await;
        self.note_result(&proposed, result)
    }

    /// Adds a command to the tick's batch, or does what a lone writer asks for at once.
    fn submit(&self, kind: Kind, identity: Option<Identity>, message: &impl Message) -> Result<Proposed, Error> {
        check::size(message, self.member.settings.max_request_bytes)?;
        let write = self.lone_writer.begin();
        let submitted = self.batcher.submit(kind, identity.as_ref(), message)?;
        if self.lone_writer.may_wait()
            && let Some(batch) = self.batcher.take_lone()
        {
            self.mailbox.without_wakes(|| self.member.raft.propose_here(batch));
            self.handle_mail();
        }
        Ok(Proposed { submitted, write })
    }

    /// What apply answered, or why nobody knows.
    fn note_result(&self, proposed: &Proposed, result: CommandResult) -> CommandResult {
        let since = proposed.submitted.since();
        self.lone_writer.end(&proposed.write, || since.elapsed());
        self.count_failed(&result);
        match result {
            Err(Error::TimedOut) => Err(self.why_timed_out(since.elapsed())),
            result => result,
        }
    }

    /// What a command is told that has waited for so long: as etcd does, by what is known of the leader.
    fn why_timed_out(&self, waited: Duration) -> Error {
        let raft = self.member.raft.status();
        why_timed_out(waited, raft.leader_for, raft.leader_came_back, self.member.settings.election)
    }

    /// Replicates a command of this member's own, which no client's limit binds.
    pub async fn propose_own(&self, kind: Kind, message: &impl Message) -> CommandResult {
        let result = self.batcher.submit(kind, None, message)?.await;
        self.count_failed(&result);
        result
    }

    /// Counts a command that did not get as far as apply, or of which nobody knows.
    fn count_failed(&self, result: &CommandResult) {
        if let Err(Error::NoLeader | Error::LeaderChanged | Error::TimedOut | Error::Stopped) = result {
            self.member.views.failures.proposal();
        }
    }

    fn check_request(&self, request: &Request) -> Result<(), Error> {
        match request {
            Request::Range(range) => check::range(range),
            Request::Put(put) => check::put(put),
            Request::DeleteRange(delete) => check::delete_range(delete),
            Request::MemberAdd(add) => check::member_add(add),
            Request::Txn(txn) => check::txn(txn, self.member.settings.max_txn_ops),
            _ => Ok(()),
        }
    }

    fn keyspace(&self) -> &Keyspace {
        &self.member.views.keyspace
    }

    /// Waits until the published state holds everything that was acknowledged before this call, on any member.
    async fn read_barrier(&self) -> Result<(), Error> {
        if self.is_current() {
            return Ok(());
        }
        // Boxed: a lone voter's calls must not carry it.
        Box::pin(self.ask_for_read_index()).await
    }

    /// Whether a lone voter leads: what is published is enough then, from moments after the start.
    fn is_current(&self) -> bool {
        let index = self.member.raft.read_barrier_now();
        index.is_some_and(|index| self.member.views.applied_index() >= index)
    }

    async fn ask_for_read_index(&self) -> Result<(), Error> {
        let confirmed = async {
            let index = self.member.raft.read_barrier().await?;
            self.wait_applied(index).await;
            Ok(())
        };
        let timeout = self.member.settings.request_timeout();
        let begun = Instant::now();
        let result = tokio::time::timeout(timeout, confirmed).await.unwrap_or(Err(Error::TimedOut));
        let failures = &self.member.views.failures;
        if begun.elapsed() > limits::READ_INDEX_SLOW {
            failures.slow_read_index();
            tracing::warn!(took = ?begun.elapsed(), "waiting for ReadIndex response took too long");
        }
        if result.is_err() {
            failures.read_index();
        }
        result
    }

    /// Waits until the applied index reaches `index`.
    async fn wait_applied(&self, index: u64) {
        poll_fn(|context| {
            if self.member.views.applied_index() >= index {
                return Poll::Ready(());
            }
            self.readers.borrow_mut().push((index, context.waker().clone()));
            self.mailbox.want_applied(true);
            // Apply may have passed it before it saw that somebody waits. A waker left behind wakes for nothing, once.
            match self.member.views.applied_index() >= index {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    fn handle_mail(&self) {
        while let Some(replies) = self.mailbox.pop_replies() {
            self.batcher.handle_replies(replies);
        }
        self.wake_readers();
        let watch = self.engine.borrow().clone();
        while let Some(batch) = self.mailbox.pop_applied() {
            if let Some(watch) = &watch {
                watch.borrow_mut().handle_applied(batch);
            }
        }
        self.turn();
    }

    fn turn(&self) {
        let watch = self.engine.borrow().clone();
        if let Some(watch) = watch {
            watch.borrow_mut().turn();
        }
    }

    fn wake_readers(&self) {
        let mut readers = self.readers.borrow_mut();
        if readers.is_empty() {
            return;
        }
        let applied = self.member.views.applied_index();
        readers.extract_if(.., |(index, _)| *index <= applied).for_each(|(_, waker)| waker.wake());
        if readers.is_empty() {
            self.mailbox.want_applied(false);
        }
    }

    /// Ids and term of this member; the revision came with the reply.
    fn fill_header(&self, reply: &mut Reply) {
        let header = match reply {
            Reply::Range(reply) => &mut reply.header,
            Reply::Put(reply) => &mut reply.header,
            Reply::DeleteRange(reply) => &mut reply.header,
            Reply::Txn(reply) => &mut reply.header,
            Reply::Compact(reply) => &mut reply.header,
            Reply::LeaseGrant(reply) => &mut reply.header,
            Reply::LeaseRevoke(reply) => &mut reply.header,
            Reply::LeaseTimeToLive(reply) => &mut reply.header,
            Reply::LeaseLeases(reply) => &mut reply.header,
            Reply::MemberAdd(reply) => &mut reply.header,
            Reply::MemberRemove(reply) => &mut reply.header,
            Reply::MemberUpdate(reply) => &mut reply.header,
            Reply::MemberPromote(reply) => &mut reply.header,
            Reply::MemberList(reply) => &mut reply.header,
            Reply::Alarm(reply) => &mut reply.header,
            Reply::Status(reply) => &mut reply.header,
            Reply::Defragment(reply) => &mut reply.header,
            Reply::Hash(reply) => &mut reply.header,
            Reply::HashKv(reply) => &mut reply.header,
            Reply::AuthEnable(reply) => &mut reply.header,
            Reply::AuthDisable(reply) => &mut reply.header,
            Reply::AuthStatus(reply) => &mut reply.header,
            Reply::Authenticate(reply) => &mut reply.header,
            Reply::UserAdd(reply) => &mut reply.header,
            Reply::UserGet(reply) => &mut reply.header,
            Reply::UserList(reply) => &mut reply.header,
            Reply::UserDelete(reply) => &mut reply.header,
            Reply::UserChangePassword(reply) => &mut reply.header,
            Reply::UserGrantRole(reply) => &mut reply.header,
            Reply::UserRevokeRole(reply) => &mut reply.header,
            Reply::RoleAdd(reply) => &mut reply.header,
            Reply::RoleGet(reply) => &mut reply.header,
            Reply::RoleList(reply) => &mut reply.header,
            Reply::RoleDelete(reply) => &mut reply.header,
            Reply::RoleGrantPermission(reply) => &mut reply.header,
            Reply::RoleRevokePermission(reply) => &mut reply.header,
            Reply::MoveLeader(reply) => &mut reply.header,
            Reply::Downgrade(reply) => &mut reply.header,
            // Those of the requests inside, as they were.
            Reply::Lock(_)
            | Reply::Unlock(_)
            | Reply::Campaign(_)
            | Reply::Proclaim(_)
            | Reply::Leader(_)
            | Reply::Resign(_) => return,
        };
        if let Some(header) = header {
            *header = self.header(header.revision);
        }
    }
}

/// Whether it is answered by a client of the other services.
fn is_in_steps(request: &Request) -> bool {
    matches!(
        request,
        Request::Lock(_)
            | Request::Unlock(_)
            | Request::Campaign(_)
            | Request::Proclaim(_)
            | Request::Leader(_)
            | Request::Resign(_)
    )
}

/// A leader that was elected while it waited, or soon after it began, may have taken over from one that failed with it.
fn why_timed_out(waited: Duration, leader_for: Option<Duration>, came_back: bool, election: Duration) -> Error {
    match leader_for.and_then(|time| waited.checked_sub(time)) {
        Some(_) if came_back => Error::TimedOutByConnection,
        Some(without) if without <= 2 * election => Error::TimedOutByLeaderLoss,
        _ => Error::TimedOut,
    }
}

/// A header with a revision only; [`Door::call`] fills in the rest.
fn header(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waited_too_long_is_told_what_etcd_would_tell() {
        let secs = Duration::from_secs;
        for (leader_for, came_back, error) in [
            (None, false, Error::TimedOut),
            (Some(100), false, Error::TimedOut),
            (Some(100), true, Error::TimedOut),
            (Some(6), false, Error::TimedOutByLeaderLoss),
            (Some(5), false, Error::TimedOutByLeaderLoss),
            (Some(4), false, Error::TimedOut),
            (Some(4), true, Error::TimedOutByConnection),
        ] {
            assert_eq!(why_timed_out(secs(7), leader_for.map(secs), came_back, secs(1)), error, "{leader_for:?}");
        }
    }
}
