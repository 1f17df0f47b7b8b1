//! Who calls, and whether they may: the way from a token or a certificate to [`authorize`], which has the rules. With
//! authentication disabled it costs one load of the published table.

use std::ops::ControlFlow;

use bytes::Bytes;

use daymark_api::etcdserverpb as pb;

use super::{Door, check};
use crate::auth::authorize::{self, Streaming};
use crate::auth::table::AuthTable;
use crate::auth::token::TokenProblem;
use crate::command::Identity;
use crate::error::Error;
use crate::limits;
use crate::request::{Context, Reply, Request};
use crate::services::watch::Refusal;
use crate::state::lease;

/// What somebody wants of keys that are attached to leases.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
}

/// Who calls, as far as is known without waiting.
pub(super) enum Known {
    Caller(Option<Identity>),
    /// The token may have been assigned, or rights granted, at a log index that is not applied yet.
    NotYet,
}

impl Door {
    /// Whether the caller may ask for `request`, and as whom it is replicated; nobody while authentication is disabled.
    /// What apply decides is refused here if it is sure to be refused there, so that it costs no log entry.
    pub(super) async fn admit(&self, context: &Context, request: &Request) -> Result<Option<Identity>, Error> {
        if let Known::Caller(caller) = self.admit_now(context, request)? {
            return Ok(caller);
        }
        // Boxed: what is rare must not make every call larger.
        Box::pin(self.admit_late(context, request)).await
    }

    /// As [`Door::admit`] if it can be said without waiting.
    pub(super) fn admit_now(&self, context: &Context, request: &Request) -> Result<Known, Error> {
        if !self.asks_who() || !authorize::needs_identity(request) {
            return Ok(Known::Caller(None));
        }
        let Known::Caller(caller) = self.identify_now(context)? else { return Ok(Known::NotYet) };
        match authorize::request(&self.views().auth.load(), caller.as_ref(), request) {
            Ok(()) => Ok(Known::Caller(caller)),
            Err(refusal) if !check::is_decided_by_apply(request) => Err(refusal),
            Err(_) => Ok(Known::NotYet),
        }
    }

    async fn admit_late(&self, context: &Context, request: &Request) -> Result<Option<Identity>, Error> {
        // Rights that were granted through another member may not be known here yet.
        self.read_barrier().await?;
        let caller = self.identify(context).await?;
        let refused = authorize::request(&self.views().auth.load(), caller.as_ref(), request);
        if refused.is_err() && check::is_write_to_keys(request) {
            check::request_size(request, self.member().settings.max_request_bytes)?;
            // Alarms are told of first, by apply.
            if !self.views().alarms.load().is_empty() {
                return Ok(caller);
            }
        }
        refused.map(|()| caller)
    }

    /// Whether the caller may open a stream, or send a message on it.
    pub async fn admit_stream(&self, context: &Context, stream: Streaming<'_>) -> Result<Option<Identity>, Error> {
        if !self.asks_who() || !stream.needs_identity() {
            return Ok(None);
        }
        let caller = self.identify(context).await?;
        authorize::stream(&self.views().auth.load(), caller.as_ref(), stream)?;
        Ok(caller)
    }

    /// As [`Door::admit_stream`] for a watch, with the refusal as it is told on the stream. Rights that are lost later
    /// do not end a watch, as in etcd.
    pub async fn admit_watch(&self, context: &Context, create: &pb::WatchCreateRequest) -> Result<(), Refusal> {
        let told = match self.admit_stream(context, Streaming::Watch(create)).await {
            Ok(_) => return Ok(()),
            Err(error @ (Error::InvalidAuthToken | Error::OldAuthRevision | Error::UserNameEmpty)) => error,
            Err(_) => Error::PermissionDenied,
        };
        Err(format!("rpc error: code = {:?} desc = {told}", told.code()).into())
    }

    /// After a read: fails if users or rights have changed since the caller was admitted, as what was read may be newer
    /// than the rights it was checked against.
    pub(super) fn confirm(&self, caller: Option<&Identity>) -> Result<(), Error> {
        match caller {
            Some(_) => authorize::confirm(&self.views().auth.load(), caller),
            None => Ok(()),
        }
    }

    /// An answer to a read, if it still may be given.
    pub(super) fn confirmed(&self, caller: Option<Identity>, reply: Reply) -> Result<Reply, Error> {
        self.confirm(caller.as_ref()).map(|()| reply)
    }

    /// Whether authentication is enabled. Most members never go further.
    fn asks_who(&self) -> bool {
        self.views().auth.load().is_enabled()
    }

    /// Whether the caller has a right on every one of `keys`, which are attached to a lease.
    pub(super) fn permit_keys<'a>(
        &self,
        caller: Option<&Identity>,
        right: Right,
        keys: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), Error> {
        if caller.is_none() {
            return Ok(());
        }
        let table = self.views().auth.load();
        if authorize::is_root(&table, caller) {
            return Ok(());
        }
        keys.into_iter().try_for_each(|key| permit_key(&table, caller, right, key))?;
        self.unchanged(&table)
    }

    /// Whether the caller may write every key that is attached to a lease, and so decide how long they live.
    pub(super) async fn permit_renewal(&self, caller: Option<&Identity>, id: i64) -> Result<(), Error> {
        if caller.is_none() || authorize::is_root(&self.views().auth.load(), caller) {
            return Ok(());
        }
        let keys = match lease::attached_keys(self.keyspace(), id, limits::LEASE_KEYS_INLINE_BYTES_MAX)? {
            Some(keys) => Some(keys),
            None => {
                let keyspace = self.views().keyspace.clone();
                self.pool.run(move |_| Ok(lease::attached_keys(&keyspace, id, limits::LEASE_KEYS_BYTES_MAX)?)).await?
            }
        };
        // Not looked at is not permitted.
        let keys = keys.ok_or(Error::ResponseTooLarge(limits::LEASE_KEYS_BYTES_MAX, limits::LEASE_KEYS_BYTES_MAX))?;
        self.permit_keys(caller, Right::Write, keys.iter().map(|key| &key[..]))
    }

    /// Whether the caller may read every key that is attached to any lease.
    pub(super) async fn permit_list_of_leases(&self, caller: Option<&Identity>) -> Result<(), Error> {
        if caller.is_none() {
            return Ok(());
        }
        let table = self.views().auth.load_full();
        let reads_all = |who: &Identity| table.user(&who.user).is_some_and(|user| user.may_read_everything());
        if authorize::is_root(&table, caller) {
            return Ok(());
        }
        let is_current = authorize::confirm(&table, caller).is_ok();
        if !(is_current && caller.is_some_and(reads_all)) {
            let (keyspace, caller, table) = (self.views().keyspace.clone(), caller.cloned(), table.clone());
            self.pool
                .run(move |waits| {
                    let mut permitted = Ok(());
                    lease::visit_attached_keys(&keyspace, &mut |key| {
                        permitted = waits.check();
                        if permitted.is_ok() {
                            permitted = permit_key(&table, caller.as_ref(), Right::Read, key);
                        }
                        if permitted.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    })?;
                    permitted
                })
                .await?;
        }
        self.unchanged(&table)
    }

    /// Fails if users or rights have changed since `table` was looked at. How old the caller's token is does not matter as
    /// long as no key was asked for, as in etcd.
    fn unchanged(&self, table: &AuthTable) -> Result<(), Error> {
        if self.views().auth.load().revision() == table.revision() { Ok(()) } else { Err(Error::OldAuthRevision) }
    }

    /// Who calls: by token, else by certificate. Nobody while authentication is disabled; a caller who has been admitted
    /// as nobody therefore needs no rights.
    async fn identify(&self, context: &Context) -> Result<Option<Identity>, Error> {
        if let Known::Caller(caller) = self.identify_now(context)? {
            return Ok(caller);
        }
        // A token that exists has been assigned by an entry that is committed by now.
        self.read_barrier().await?;
        if let Known::Caller(caller) = self.identify_now(context)? {
            return Ok(caller);
        }
        // This one does not. As etcd, which waits for its index as long as the caller does, but not for ever, and not
        // for any number of callers: they need no password for it, and their requests wait with them.
        let Ok(_place) = self.token_waits.try_acquire() else { return Err(Error::InvalidAuthToken) };
        tokio::time::sleep(self.member().settings.request_timeout()).await;
        Err(Error::InvalidAuthToken)
    }

    fn identify_now(&self, context: &Context) -> Result<Known, Error> {
        let views = self.views();
        let table = views.auth.load();
        if !table.is_enabled() {
            return Ok(Known::Caller(None));
        }
        let Some(token) = &context.token else {
            return Ok(Known::Caller(by_certificate(&table, context)));
        };
        match views.tokens.identify(token, table.revision(), views.applied_index()) {
            Ok(verified) => {
                let identity = Identity { user: verified.user, auth_revision: verified.auth_revision };
                Ok(Known::Caller(Some(identity)))
            }
            Err(TokenProblem::Invalid) => Err(Error::InvalidAuthToken),
            Err(TokenProblem::WaitFor(_)) => Ok(Known::NotYet),
        }
    }
}

fn by_certificate(table: &AuthTable, context: &Context) -> Option<Identity> {
    let name = context.certificate_name.as_ref()?.as_bytes();
    // The table's own copy, so that a request costs no allocation.
    let user = table.user_name(name).unwrap_or_else(|| Bytes::copy_from_slice(name));
    Some(Identity { user, auth_revision: table.revision() })
}

fn permit_key(table: &AuthTable, caller: Option<&Identity>, right: Right, key: &[u8]) -> Result<(), Error> {
    match right {
        Right::Read => authorize::read_key(table, caller, key),
        Right::Write => authorize::write_key(table, caller, key),
    }
}
