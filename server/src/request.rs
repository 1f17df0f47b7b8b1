//! The boundary between transports and services: what was asked ([`Request`], [`Context`]), what is answered
//! ([`Reply`]) and how a stream is written ([`Sink`]). No transport type appears here, and no raft, storage or state.
//!
//! Everything here belongs to one net thread; nothing is `Send`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::{v3electionpb, v3lockpb};
use futures_util::stream::LocalBoxStream;
use smallvec::SmallVec;

use crate::error::Error;

/// Who asks and how, as far as a transport can tell.
#[derive(Clone, Default)]
pub struct Context {
    /// Address of the other end; absent on unix sockets and in simulations.
    pub peer: Option<SocketAddr>,
    /// Auth token (`token` metadata, else `authorization` without `Bearer `).
    pub token: Option<Bytes>,
    /// Common name of the client certificate that this connection was accepted with, verified; absent on connections
    /// without one and on calls that came through the JSON gateway. As in etcd it identifies a user where no token does.
    pub certificate_name: Option<Arc<str>>,
    /// The caller wants "no leader" instead of waiting (`hasleader: true`).
    pub requires_leader: bool,
    /// `client-api-version` metadata; `Err` holds bytes that are not UTF-8.
    pub client_api_version: Option<Result<String, Bytes>>,
}

impl std::fmt::Debug for Context {
    /// Without the token, which is as good as a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Context");
        shown.field("peer", &self.peer).field("has_token", &self.token.is_some());
        shown.field("certificate_name", &self.certificate_name).finish_non_exhaustive()
    }
}

/// A unary call: a variant per method, holding etcd's message.
#[derive(Clone, Debug)]
pub enum Request {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    LeaseGrant(pb::LeaseGrantRequest),
    LeaseRevoke(pb::LeaseRevokeRequest),
    LeaseTimeToLive(pb::LeaseTimeToLiveRequest),
    LeaseLeases(pb::LeaseLeasesRequest),
    MemberAdd(pb::MemberAddRequest),
    MemberRemove(pb::MemberRemoveRequest),
    MemberUpdate(pb::MemberUpdateRequest),
    MemberPromote(pb::MemberPromoteRequest),
    MemberList(pb::MemberListRequest),
    Alarm(pb::AlarmRequest),
    Status(pb::StatusRequest),
    Defragment(pb::DefragmentRequest),
    Hash(pb::HashRequest),
    HashKv(pb::HashKvRequest),
    MoveLeader(pb::MoveLeaderRequest),
    Downgrade(pb::DowngradeRequest),
    Lock(v3lockpb::LockRequest),
    Unlock(v3lockpb::UnlockRequest),
    Campaign(v3electionpb::CampaignRequest),
    Proclaim(v3electionpb::ProclaimRequest),
    Leader(v3electionpb::LeaderRequest),
    Resign(v3electionpb::ResignRequest),
    AuthEnable(pb::AuthEnableRequest),
    AuthDisable(pb::AuthDisableRequest),
    AuthStatus(pb::AuthStatusRequest),
    Authenticate(pb::AuthenticateRequest),
    UserAdd(pb::AuthUserAddRequest),
    UserGet(pb::AuthUserGetRequest),
    UserList(pb::AuthUserListRequest),
    UserDelete(pb::AuthUserDeleteRequest),
    UserChangePassword(pb::AuthUserChangePasswordRequest),
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    RoleAdd(pb::AuthRoleAddRequest),
    RoleGet(pb::AuthRoleGetRequest),
    RoleList(pb::AuthRoleListRequest),
    RoleDelete(pb::AuthRoleDeleteRequest),
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
}

impl Request {
    /// Whether its answer may take as long as others like: it ends when the member stops.
    pub fn waits_for_others(&self) -> bool {
        matches!(self, Self::Lock(_) | Self::Campaign(_))
    }
}

/// A call with one request and a stream of answers: a variant per method, holding etcd's message.
#[derive(Clone, Debug)]
pub enum StreamRequest {
    RangeStream(pb::RangeRequest),
    Observe(v3electionpb::LeaderRequest),
    Snapshot(pb::SnapshotRequest),
}

/// The answer to a [`Request`] of the same name.
#[derive(Clone, Debug)]
pub enum Reply {
    Range(pb::RangeResponse),
    Put(pb::PutResponse),
    DeleteRange(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    LeaseGrant(pb::LeaseGrantResponse),
    LeaseRevoke(pb::LeaseRevokeResponse),
    LeaseTimeToLive(pb::LeaseTimeToLiveResponse),
    LeaseLeases(pb::LeaseLeasesResponse),
    MemberAdd(pb::MemberAddResponse),
    MemberRemove(pb::MemberRemoveResponse),
    MemberUpdate(pb::MemberUpdateResponse),
    MemberPromote(pb::MemberPromoteResponse),
    MemberList(pb::MemberListResponse),
    Alarm(pb::AlarmResponse),
    Status(pb::StatusResponse),
    Defragment(pb::DefragmentResponse),
    Hash(pb::HashResponse),
    HashKv(pb::HashKvResponse),
    MoveLeader(pb::MoveLeaderResponse),
    Downgrade(pb::DowngradeResponse),
    Lock(v3lockpb::LockResponse),
    Unlock(v3lockpb::UnlockResponse),
    Campaign(v3electionpb::CampaignResponse),
    Proclaim(v3electionpb::ProclaimResponse),
    Leader(v3electionpb::LeaderResponse),
    Resign(v3electionpb::ResignResponse),
    AuthEnable(pb::AuthEnableResponse),
    AuthDisable(pb::AuthDisableResponse),
    AuthStatus(pb::AuthStatusResponse),
    Authenticate(pb::AuthenticateResponse),
    UserAdd(pb::AuthUserAddResponse),
    UserGet(pb::AuthUserGetResponse),
    UserList(pb::AuthUserListResponse),
    UserDelete(pb::AuthUserDeleteResponse),
    UserChangePassword(pb::AuthUserChangePasswordResponse),
    UserGrantRole(pb::AuthUserGrantRoleResponse),
    UserRevokeRole(pb::AuthUserRevokeRoleResponse),
    RoleAdd(pb::AuthRoleAddResponse),
    RoleGet(pb::AuthRoleGetResponse),
    RoleList(pb::AuthRoleListResponse),
    RoleDelete(pb::AuthRoleDeleteResponse),
    RoleGrantPermission(pb::AuthRoleGrantPermissionResponse),
    RoleRevokePermission(pb::AuthRoleRevokePermissionResponse),
}

/// What comes in on a streaming call, message by message; `None` when the caller has ended its half. An error means that
/// the message could not be decoded or that the caller has gone, and is the last item.
pub type RequestStream<T> = LocalBoxStream<'static, Result<T, Error>>;

/// One encoded message in parts, so that parts can be shared between streams (an event is encoded once for all of its
/// watchers). Concatenated they are the protobuf bytes; the transport adds its own framing.
pub type MessageParts = SmallVec<[Bytes; 3]>;

/// The response half of a streaming call: a queue of encoded messages, bounded in bytes by its user through
/// [`Sink::credit`]. Cloning gives another handle to the same half.
#[derive(Clone)]
pub struct Sink {
    shared: Rc<RefCell<SinkState>>,
}

struct SinkState {
    /// `queued_bytes` is the sum of the lengths in `queue`.
    queue: VecDeque<MessageParts>,
    queued_bytes: usize,
    bytes_max: usize,
    /// The transport has gone: nothing more will be sent.
    closed: bool,
    /// Set once: how the call ends after the queue is empty.
    end: Option<Result<(), Error>>,
    /// The transport waits for messages.
    reader: Option<Waker>,
    /// Told when credit returns after it was used up, and when the transport goes.
    on_credit: Option<Rc<dyn Fn()>>,
    starved: bool,
}

/// What the transport takes from a [`Sink`].
pub enum Taken {
    /// The next message.
    Message(MessageParts),
    /// The call has ended.
    End(Result<(), Error>),
    /// Nothing yet; the given waker is called.
    Pending,
}

impl Sink {
    /// A sink that holds at most about `bytes_max` bytes (one message may pass it).
    pub fn new(bytes_max: usize) -> Self {
        Self {
            shared: Rc::new(RefCell::new(SinkState {
                queue: VecDeque::new(),
                queued_bytes: 0,
                bytes_max,
                closed: false,
                end: None,
                reader: None,
                on_credit: None,
                starved: false,
            })),
        }
    }

    /// Bytes that may be pushed now; 0 means wait for the credit call-back.
    pub fn credit(&self) -> usize {
        let mut state = self.shared.borrow_mut();
        let credit = state.bytes_max.saturating_sub(state.queued_bytes);
        state.starved |= credit == 0;
        credit
    }

    /// Queues one message. Dropped silently when the transport has gone or the call has ended.
    pub fn push(&self, parts: MessageParts) {
        let waker = {
            let mut state = self.shared.borrow_mut();
            if state.closed || state.end.is_some() {
                return;
            }
            state.queued_bytes += parts.iter().map(Bytes::len).sum::<usize>();
            state.queue.push_back(parts);
            state.reader.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the call after what is queued. The first end counts.
    pub fn finish(&self, end: Result<(), Error>) {
        let waker = {
            let mut state = self.shared.borrow_mut();
            if state.end.is_none() {
                state.end = Some(end);
            }
            state.reader.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// True once the transport has gone or the call has ended.
    pub fn is_closed(&self) -> bool {
        let state = self.shared.borrow();
        state.closed || state.end.is_some()
    }

    /// Sets what is called when credit returns after it was 0, and when the transport goes.
    pub fn on_credit(&self, call: Rc<dyn Fn()>) {
        self.shared.borrow_mut().on_credit = Some(call);
    }

    /// Waits until something may be pushed, or nothing will ever be sent any more. For streams with one producer, which
    /// then sets no call-back of its own.
    pub async fn wait_for_credit(&self) {
        poll_fn(|context| {
            if self.is_closed() || self.credit() > 0 {
                return Poll::Ready(());
            }
            let waker = context.waker().clone();
            self.on_credit(Rc::new(move || waker.wake_by_ref()));
            Poll::Pending
        })
        .await;
    }

    /// Transport side: the next message, the end, or nothing yet.
    pub fn take(&self, waker: &Waker) -> Taken {
        let (taken, call) = {
            let mut state = self.shared.borrow_mut();
            match state.queue.pop_front() {
                Some(parts) => {
                    state.queued_bytes -= parts.iter().map(Bytes::len).sum::<usize>();
                    let refill = state.starved && state.queued_bytes <= state.bytes_max / 2;
                    let call = if refill { state.on_credit.clone() } else { None };
                    state.starved &= !refill;
                    (Taken::Message(parts), call)
                }
                None => match &state.end {
                    Some(end) => (Taken::End(end.clone()), None),
                    None => {
                        state.reader = Some(waker.clone());
                        (Taken::Pending, None)
                    }
                },
            }
        };
        if let Some(call) = call {
            call();
        }
        taken
    }

    /// Transport side: the other end has gone.
    pub fn close(&self) {
        let call = {
            let mut state = self.shared.borrow_mut();
            state.closed = true;
            state.queue.clear();
            state.queued_bytes = 0;
            state.on_credit.clone()
        };
        if let Some(call) = call {
            call();
        }
    }
}
