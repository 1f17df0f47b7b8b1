//! Watches. A [`Watcher`] owns one stream and opens a new one by itself when it breaks, from the first revision that it
//! has not yet handed out: no event is missing, none comes twice. What it cannot mend, compaction above all, it reports.

use std::time::Duration;

use daymark_api::{
    etcdserverpb::{
        WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
        watch_client::WatchClient, watch_create_request::FilterType, watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use futures_util::stream;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

use crate::{
    channel::{ANSWER_BYTES_MAX, Pool},
    error::{ClientError, Result},
    key_range::KeyRange,
    retry,
};

/// Requests on their way to a stream: a create and a few progress requests.
const REQUESTS_MAX: usize = 16;

/// What is watched, and how.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// First revision whose events are wanted; 0: whatever comes after the watch was created.
    pub start_revision: i64,
    /// Each event also carries the pair as it was before.
    pub prev_kv: bool,
    /// The server reports its revision from time to time while there are no events.
    pub progress_notify: bool,
    /// Without put events.
    pub no_put: bool,
    /// Without delete events.
    pub no_delete: bool,
}

/// News from a watcher.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// Events of one or several whole revisions, in order. Never empty.
    Events(Vec<Event>),
    /// Every event up to and including this revision has been handed out.
    Progress(i64),
}

/// Starts watches.
#[derive(Clone, Debug)]
pub struct Watch {
    pool: Pool,
}

/// One watch of a key or range; ends when dropped.
#[derive(Debug)]
pub struct Watcher {
    pool: Pool,
    /// What the watch is, but for its start.
    template: WatchCreateRequest,
    /// Every event before this revision has been handed out. Only grows. 0 until the first stream stands.
    next_revision: i64,
    open: Option<Open>,
    /// Fragments of an answer whose last one has not come yet.
    fragments: Vec<Event>,
    /// Failed attempts since the last answer.
    failures: u32,
}

#[derive(Debug)]
struct Open {
    requests: mpsc::Sender<WatchRequest>,
    answers: Streaming<WatchResponse>,
    watch_id: i64,
}

impl Watch {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Starts a watch; it stands when this returns.
    ///
    /// # Errors
    /// When the server refuses it, or when no member is reachable after as many attempts as a read gets.
    pub async fn start(&self, range: impl Into<KeyRange>, options: WatchOptions) -> Result<Watcher> {
        let mut watcher = Watcher {
            pool: self.pool.clone(),
            next_revision: options.start_revision,
            template: create_request(range.into(), &options),
            open: None,
            fragments: Vec::new(),
            failures: 0,
        };
        while let Err(error) = watcher.open().await {
            let mendable = matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_));
            if !mendable || watcher.failures > self.pool.config().read_retries {
                return Err(error);
            }
        }
        Ok(watcher)
    }
}

impl Watcher {
    /// The next news; waits as long as there are none, also while no member is reachable. `None` after the server has
    /// confirmed a cancel. May be dropped and called again without loss.
    ///
    /// # Errors
    /// [`ClientError::Compacted`] when history that is still needed is gone; any other refusal. Both end the watch.
    pub async fn next(&mut self) -> Result<Option<Update>> {
        loop {
            let Some(open) = &mut self.open else {
                match self.open().await {
                    Err(error @ (ClientError::Unavailable(_) | ClientError::TimedOut(_))) => drop(error),
                    outcome => outcome?,
                }
                continue;
            };
            match open.answers.message().await {
                Ok(Some(answer)) => match self.handle_answer(answer)? {
                    Heard::Nothing => {}
                    Heard::Update(update) => return Ok(Some(update)),
                    Heard::End => return Ok(None),
                },
                Ok(None) => self.handle_break(),
                Err(status) if is_break(&status) => self.handle_break(),
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// The first revision that has not been handed out: what to start from to go on after this watcher.
    pub fn next_revision(&self) -> i64 {
        self.next_revision
    }

    /// Asks for an [`Update::Progress`]. It comes only while the watcher is not behind, and not if the stream breaks
    /// meanwhile: ask again.
    pub async fn request_progress(&self) {
        if let Some(open) = &self.open {
            let request = RequestUnion::ProgressRequest(WatchProgressRequest {});
            // A closed queue means a broken stream, which next() mends.
            let _ = open.requests.send(WatchRequest { request_union: Some(request) }).await;
        }
    }

    /// Ends the watch on the server; [`Watcher::next`] hands out what was on its way and then `None`.
    pub async fn cancel(&mut self) {
        if let Some(open) = &self.open {
            let request = RequestUnion::CancelRequest(WatchCancelRequest { watch_id: open.watch_id });
            let _ = open.requests.send(WatchRequest { request_union: Some(request) }).await;
        }
    }

    /// One attempt to open a stream and to create the watch on it, after a pause if attempts failed before.
    async fn open(&mut self) -> Result<()> {
        if self.failures > 0 {
            tokio::time::sleep(self.pool.backoff(self.failures)).await;
        }
        // Counted beforehand, so that a dropped attempt counts too.
        self.failures = self.failures.saturating_add(1);
        let limit = self.pool.config().request_timeout.unwrap_or(Duration::MAX);
        let attempt = retry::with_token(&self.pool, || open_stream(&self.pool, self.create_request()));
        let attempt = tokio::time::timeout(limit, attempt);
        let (open, created_at) = attempt.await.map_err(|_| ClientError::TimedOut(limit))??;
        if self.next_revision == 0 {
            self.next_revision = created_at + 1;
        }
        self.open = Some(open);
        Ok(())
    }

    fn create_request(&self) -> WatchCreateRequest {
        WatchCreateRequest { start_revision: self.next_revision, ..self.template.clone() }
    }

    fn handle_break(&mut self) {
        self.open = None;
        self.fragments.clear();
    }

    fn handle_answer(&mut self, answer: WatchResponse) -> Result<Heard> {
        self.failures = 0;
        if answer.canceled {
            return match refusal(&answer) {
                Some(error) => Err(error),
                None => Ok(Heard::End),
            };
        }
        let revision = answer.header.map_or(0, |header| header.revision);
        self.fragments.extend(answer.events);
        if answer.fragment || answer.created {
            return Ok(Heard::Nothing);
        }
        let events = std::mem::take(&mut self.fragments);
        let Some(last) = events.last() else {
            // An answer without events is a progress report. Headers of other answers are not: they may be ahead.
            self.next_revision = self.next_revision.max(revision + 1);
            return Ok(Heard::Update(Update::Progress(revision)));
        };
        let last = last.kv.as_ref().ok_or(ClientError::Protocol("event without a key"))?;
        self.next_revision = self.next_revision.max(last.mod_revision + 1);
        Ok(Heard::Update(Update::Events(events)))
    }
}

enum Heard {
    Nothing,
    Update(Update),
    End,
}

/// Opens a stream with one watch on it; also returns the revision at which the watch was created.
async fn open_stream(pool: &Pool, create: WatchCreateRequest) -> Result<(Open, i64)> {
    let (requests, mut queue) = mpsc::channel(REQUESTS_MAX);
    // Queued before the call: a server may send its headers only with its first answer.
    let first = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    requests.try_send(first).map_err(|_| ClientError::Protocol("no room for the first request"))?;
    let mut client = WatchClient::new(pool.next()).max_decoding_message_size(ANSWER_BYTES_MAX);
    let outgoing = pool.request(stream::poll_fn(move |cx| queue.poll_recv(cx)));
    let opened = async {
        let mut answers = client.watch(outgoing).await?.into_inner();
        let created = answers.message().await?;
        Ok::<_, Status>((answers, created))
    };
    let (answers, created) = opened.await.map_err(|status| {
        if is_break(&status) { ClientError::Unavailable(status.message().to_owned()) } else { status.into() }
    })?;
    let created = created.ok_or_else(|| ClientError::Unavailable("watch stream ended at its start".to_owned()))?;
    if created.canceled {
        let reason = || ClientError::WatchCanceled(created.cancel_reason.clone());
        return Err(refusal(&created).unwrap_or_else(reason));
    }
    if !created.created {
        return Err(ClientError::Protocol("a watch began with something else than its creation"));
    }
    let revision = created.header.map_or(0, |header| header.revision);
    Ok((Open { requests, answers, watch_id: created.watch_id }, revision))
}

/// Why the server canceled; nothing when it was asked to.
fn refusal(answer: &WatchResponse) -> Option<ClientError> {
    if answer.compact_revision > 0 {
        return Some(ClientError::Compacted { compact_revision: answer.compact_revision });
    }
    (!answer.cancel_reason.is_empty()).then(|| ClientError::WatchCanceled(answer.cancel_reason.clone()))
}

/// Whether another stream may do better. What says that the request itself is wrong ends the watch.
fn is_break(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted
    )
}

fn create_request(range: KeyRange, options: &WatchOptions) -> WatchCreateRequest {
    let (key, range_end) = range.into_wire();
    let mut filters = Vec::new();
    if options.no_put {
        filters.push(FilterType::Noput.into());
    }
    if options.no_delete {
        filters.push(FilterType::Nodelete.into());
    }
    WatchCreateRequest {
        key,
        range_end,
        progress_notify: options.progress_notify,
        prev_kv: options.prev_kv,
        filters,
        // Large revisions come in pieces, which next() puts together again.
        fragment: true,
        ..Default::default()
    }
}
