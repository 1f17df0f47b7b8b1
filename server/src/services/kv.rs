//! Range, Txn and Compact; Put and DeleteRange need nothing but replication. Reads answer from the published keyspace
//! on the net thread while they are small, else on the pool.

use daymark_storage::mvcc::{KeyRange, RangeEnd, RangeOptions, ReadTxn};
use prost::Message;

use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::request_op::Request as Op;
use daymark_api::etcdserverpb::response_op::Response;

use super::pool::Caller;
use super::scan::Scan;
use super::{Door, header, scan};
use crate::budget::Share;
use crate::command::{Identity, Kind};
use crate::error::Error;
use crate::limits;
use crate::query::{self, Plan};
use crate::request::Reply;

impl Door {
    /// Reads what is published; the barrier, if one is wanted, comes before.
    pub(super) async fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        let mut tries_left = limits::READ_TRIES_MAX;
        loop {
            tries_left -= 1;
            match self.range_now(request).await {
                // What was current has lost its history while it was read: what is current by now has not.
                Err(Error::Compacted) if request.revision <= 0 && tries_left > 0 => {}
                answer => return answer,
            }
        }
    }

    /// Reads one key at once; `None` where more is asked for, or history was lost meanwhile.
    pub(super) fn range_of_one(&self, request: &pb::RangeRequest) -> Option<Result<pb::RangeResponse, Error>> {
        if !request.range_end.is_empty() {
            return None;
        }
        let answer = self.view_at(request.revision).and_then(|(mut view, current)| {
            let response = query::range(&mut view, request)?;
            Ok(pb::RangeResponse { header: header(current), ..response })
        });
        match answer {
            Err(Error::Compacted) if request.revision <= 0 => None,
            answer => Some(answer),
        }
    }

    /// A transaction that only reads.
    pub(super) async fn read_only_txn(
        &self,
        identity: Option<Identity>,
        request: pb::TxnRequest,
    ) -> Result<Reply, Error> {
        let mut tries_left = limits::READ_TRIES_MAX;
        loop {
            tries_left -= 1;
            match self.read_txn(&request).await {
                // As for a Range. One that asks for a compacted revision is refused again before anything is read.
                Err(Error::Compacted) if tries_left > 0 => {}
                answer => return self.confirmed(identity, Reply::Txn(answer?)),
            }
        }
    }

    /// One attempt at a Range.
    async fn range_now(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
        // Who lists goes on to watch from the header's revision + 1: a header newer than the data would hide what
        // happened between. So it is taken first, and what is read is as of then.
        let (view, current) = self.view_at(request.revision)?;
        let mut share = self.member().answers.share();
        let mut response = self.read_range(view, request, self.response_bytes_max(), &mut share).await?;
        response.header = header(current);
        Ok(response)
    }

    /// A view of `revision` (0 or less: the current one), and the current revision.
    pub(super) fn view_at(&self, revision: i64) -> Result<(ReadTxn, i64), Error> {
        let now = self.keyspace().read(0)?;
        let current = now.revision();
        match revision {
            ..=0 => Ok((now, current)),
            revision if revision > current => Err(Error::FutureRevision),
            revision => Ok((self.keyspace().read(revision)?, current)),
        }
    }

    pub(super) async fn compact(
        &self,
        identity: Option<Identity>,
        request: pb::CompactionRequest,
    ) -> Result<Reply, Error> {
        let result = self.propose(Kind::Compact, identity, &request).await;
        // Like etcd also if it has been compacted before: perhaps its removal is still going on.
        if request.physical && matches!(result, Ok(_) | Err(Error::Compacted)) {
            let keyspace = self.member().views.keyspace.clone();
            self.pool.run(move |_| Ok(keyspace.drop_history()?)).await?;
        }
        result
    }

    /// Only ranges, all at one revision unless they name another.
    async fn read_txn(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Error> {
        let mut now = self.keyspace().read(0)?;
        let (revision, compact_revision) = (now.revision(), self.keyspace().compact_revision());
        let succeeded = self.all_hold(&mut now, &request.compare).await?;
        let ops = if succeeded { &request.success } else { &request.failure };
        let ranges = || {
            ops.iter().filter_map(|op| if let Some(Op::RequestRange(range)) = &op.request { Some(range) } else { None })
        };
        for range in ranges() {
            query::check_revision_in_txn(range.revision, revision, compact_revision)?;
        }
        let mut responses = Vec::with_capacity(ops.len());
        let (mut bytes_left, mut share) = (self.response_bytes_max(), self.member().answers.share());
        for range in ranges() {
            let view = if range.revision <= 0 { now.clone() } else { self.keyspace().read(range.revision)? };
            let mut response = self.read_range(view, range, bytes_left, &mut share).await?;
            let bytes = response.encoded_len();
            bytes_left = bytes_left.checked_sub(bytes).ok_or(Error::ResponseTooLarge(bytes, bytes_left))?;
            response.header = header(revision);
            responses.push(pb::ResponseOp { response: Some(Response::ResponseRange(response)) });
        }
        Ok(pb::TxnResponse { header: header(revision), succeeded, responses })
    }

    /// What an answer's pairs may take: the rest of the message needs little.
    fn response_bytes_max(&self) -> usize {
        self.member().settings.response_bytes_max - limits::MESSAGE_OVERHEAD_BYTES
    }

    /// The answer but for its header, of at most about `bytes_max`.
    async fn read_range(
        &self,
        mut view: ReadTxn,
        request: &pb::RangeRequest,
        bytes_max: usize,
        share: &mut Share,
    ) -> Result<pb::RangeResponse, Error> {
        let range = KeyRange::from_wire(&request.key, &request.range_end);
        if range.end == RangeEnd::Point {
            return Ok(query::range(&mut view, request)?);
        }
        let plan = Plan::new(request);
        if !plan.is_plain() {
            return self.scan(view, Scan { range, plan, begun: Vec::new() }, bytes_max, share).await;
        }
        let inline = RangeOptions { bytes_max: limits::RANGE_INLINE_BYTES_MAX, without_count: true, ..plan.options };
        let mut result = view.range(&range, &inline)?;
        let page = match result.cut_by_bytes {
            // What has been read is not read again.
            true => {
                let scan = Scan { range: range.clone(), plan, begun: result.kvs };
                self.scan(view.clone(), scan, bytes_max, share).await?
            }
            false => {
                if let Some(last) = result.kvs.last().filter(|_| result.more) {
                    // Cut by the limit: the pairs are here, the keys behind them still count.
                    let rest = KeyRange { start: query::successor(&last.key), end: range.end.clone() };
                    result.count = match view.known_count(&range) {
                        Some(count) => count,
                        None => result.kvs.len() as i64 + self.count(view.clone(), rest).await?,
                    };
                }
                plan.finish(result)
            }
        };
        if let Some(last) = page.kvs.last().filter(|_| page.more) {
            // Who reads on asks for what is behind, at this very revision.
            let rest = KeyRange { start: query::successor(&last.key), end: range.end };
            view.note_count(&rest, page.count - page.kvs.len() as i64);
        }
        Ok(page)
    }

    async fn count(&self, view: ReadTxn, range: KeyRange) -> Result<i64, Error> {
        self.pool.run(move |caller| scan::count(&view, &range, caller)).await
    }

    async fn scan(
        &self,
        view: ReadTxn,
        scan: Scan,
        bytes_max: usize,
        share: &mut Share,
    ) -> Result<pb::RangeResponse, Error> {
        let mut taken = std::mem::replace(share, self.member().answers.share());
        let work = move |caller: &Caller| {
            let answer = scan::range(&view, scan, bytes_max, &mut taken, caller)?;
            Ok((answer, taken))
        };
        let (answer, taken) = self.pool.run(work).await?;
        *share = taken;
        Ok(answer)
    }

    /// Whether every compare holds; one over a range may have to read all of it.
    async fn all_hold(&self, now: &mut ReadTxn, compares: &[pb::Compare]) -> Result<bool, Error> {
        if compares.iter().all(|compare| compare.range_end.is_empty()) {
            return Ok(query::all_hold(now, compares)?);
        }
        let (mut view, compares) = (now.clone(), compares.to_vec());
        self.pool.run(move |_| Ok(query::all_hold(&mut view, &compares)?)).await
    }
}
