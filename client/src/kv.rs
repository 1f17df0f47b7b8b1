//! Keys: put, get, delete, transactions, compaction. Answers are the wire messages.

use bytes::Bytes;
use daymark_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnResponse,
    kv_client::KvClient,
    range_request::{SortOrder, SortTarget},
};
use tonic::{Streaming, transport::Channel};

use crate::{
    channel::{ANSWER_BYTES_MAX, Pool},
    error::Result,
    key_range::KeyRange,
    retry,
    txn::Txn,
};

/// How a get answers. The default is linearizable, at the current revision, without limit.
#[derive(Clone, Debug, Default)]
pub struct GetOptions {
    /// Most pairs in the answer; 0: all.
    pub limit: i64,
    /// The revision to read at; 0: the current one.
    pub revision: i64,
    /// Order of the answer, and by what.
    pub sort: Option<(SortTarget, SortOrder)>,
    /// Answered by the member that is asked, from what it has: faster, perhaps older.
    pub serializable: bool,
    /// Without values.
    pub keys_only: bool,
    /// Only the number of keys.
    pub count_only: bool,
    /// Pairs last changed before this revision are left out; 0: none.
    pub min_mod_revision: i64,
    /// Pairs last changed after this revision are left out; 0: none.
    pub max_mod_revision: i64,
    /// Pairs created before this revision are left out; 0: none.
    pub min_create_revision: i64,
    /// Pairs created after this revision are left out; 0: none.
    pub max_create_revision: i64,
}

/// How a put is done.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// Lease to attach to; 0: none.
    pub lease: i64,
    /// Answer with the pair as it was before.
    pub prev_kv: bool,
    /// Keep the value, change the lease only.
    pub ignore_value: bool,
    /// Keep the lease, change the value only.
    pub ignore_lease: bool,
}

/// How a delete answers.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Answer with the pairs as they were before.
    pub prev_kv: bool,
}

/// Keys and transactions.
#[derive(Clone, Debug)]
pub struct Kv {
    pool: Pool,
}

impl Kv {
    pub(crate) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// The current state of a key or range, linearizable.
    pub async fn get(&self, range: impl Into<KeyRange>) -> Result<RangeResponse> {
        self.get_with(range, GetOptions::default()).await
    }

    /// A key or range, as the options say. Repeated on other members while unavailable.
    pub async fn get_with(&self, range: impl Into<KeyRange>, options: GetOptions) -> Result<RangeResponse> {
        let message = range_request(range.into(), options);
        retry::read(&self.pool, |channel| {
            let request = self.pool.request(message.clone());
            async move { client(channel).range(request).await }
        })
        .await
    }

    /// A key or range in pieces, in ascending order of keys: for ranges whose answer would be too large for one message.
    /// All pieces are of one revision. Sorting and bounds on revisions are refused by the server.
    pub async fn range_stream(&self, range: impl Into<KeyRange>, options: GetOptions) -> Result<Pieces> {
        let request = self.pool.request(range_request(range.into(), options));
        Ok(Pieces { answers: client(self.pool.next()).range_stream(request).await?.into_inner() })
    }

    /// Sets a key.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<PutResponse> {
        self.put_with(key, value, PutOptions::default()).await
    }

    /// Sets a key, as the options say.
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<PutResponse> {
        let message = put_request(key.into(), value.into(), options);
        retry::write(&self.pool, |channel| {
            let request = self.pool.request(message.clone());
            async move { client(channel).put(request).await }
        })
        .await
    }

    /// Removes a key or range.
    pub async fn delete(&self, range: impl Into<KeyRange>) -> Result<DeleteRangeResponse> {
        self.delete_with(range, DeleteOptions::default()).await
    }

    /// Removes a key or range, as the options say.
    pub async fn delete_with(&self, range: impl Into<KeyRange>, options: DeleteOptions) -> Result<DeleteRangeResponse> {
        let message = delete_request(range.into(), options);
        retry::write(&self.pool, |channel| {
            let request = self.pool.request(message.clone());
            async move { client(channel).delete_range(request).await }
        })
        .await
    }

    /// Runs a transaction. Not repeated, even when it only reads.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        let message = txn.into_wire();
        retry::write(&self.pool, |channel| {
            let request = self.pool.request(message.clone());
            async move { client(channel).txn(request).await }
        })
        .await
    }

    /// Gives up the history before `revision`. With `physical` the answer waits until its space is free, which may take
    /// long and is not bounded by the request timeout.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<CompactionResponse> {
        let call = |channel| {
            let request = self.pool.request(CompactionRequest { revision, physical });
            async move { client(channel).compact(request).await }
        };
        if !physical {
            return retry::write(&self.pool, call).await;
        }
        retry::with_token(&self.pool, || async { Ok(call(self.pool.next()).await?.into_inner()) }).await
    }
}

/// The answer of a streamed range; ends it when dropped. A failure half way is told once and is the end: whoever needs
/// the rest begins again behind the last key, at the same revision.
#[derive(Debug)]
pub struct Pieces {
    answers: Streaming<RangeStreamResponse>,
}

impl Pieces {
    /// The next pairs; `None` after the last. Header, count and `more` come with the last piece only.
    pub async fn next(&mut self) -> Result<Option<RangeResponse>> {
        Ok(self.answers.message().await?.map(|piece| piece.range_response.unwrap_or_default()))
    }

    /// All pieces that are left, put together: the answer that a get would have had.
    pub async fn collect(mut self) -> Result<RangeResponse> {
        let mut whole = RangeResponse::default();
        while let Some(piece) = self.next().await? {
            whole.kvs.extend(piece.kvs);
            (whole.header, whole.count, whole.more) = (piece.header, piece.count, piece.more);
        }
        Ok(whole)
    }
}

pub(crate) fn range_request(range: KeyRange, options: GetOptions) -> RangeRequest {
    let (key, range_end) = range.into_wire();
    let (target, order) = options.sort.unwrap_or((SortTarget::Key, SortOrder::None));
    RangeRequest {
        key,
        range_end,
        limit: options.limit,
        revision: options.revision,
        sort_order: order.into(),
        sort_target: target.into(),
        serializable: options.serializable,
        keys_only: options.keys_only,
        count_only: options.count_only,
        min_mod_revision: options.min_mod_revision,
        max_mod_revision: options.max_mod_revision,
        min_create_revision: options.min_create_revision,
        max_create_revision: options.max_create_revision,
    }
}

pub(crate) fn put_request(key: Bytes, value: Bytes, options: PutOptions) -> PutRequest {
    let PutOptions { lease, prev_kv, ignore_value, ignore_lease } = options;
    PutRequest { key, value, lease, prev_kv, ignore_value, ignore_lease }
}

pub(crate) fn delete_request(range: KeyRange, options: DeleteOptions) -> DeleteRangeRequest {
    let (key, range_end) = range.into_wire();
    DeleteRangeRequest { key, range_end, prev_kv: options.prev_kv }
}

fn client(channel: Channel) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}
