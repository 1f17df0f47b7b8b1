//! RangeStream: the answer of a Range in pieces, so that neither side holds more than a piece of it, however long it is.
//! All pieces are of one revision. Not a Range: nothing is sorted and nothing is left out.

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_storage::mvcc::{KeyRange, RangeEnd, RangeOptions, ReadTxn};
use prost::Message;
use smallvec::smallvec;

use super::{Door, scan};
use crate::command::Identity;
use crate::error::Error;
use crate::limits;
use crate::query::{self, Plan};
use crate::request::Sink;

/// Where a stream stands.
struct Progress {
    view: ReadTxn,
    plan: Plan,
    /// What is still to be read.
    rest: KeyRange,
    /// Revision of the header: the current one when the stream began, whichever is read.
    current: i64,
    /// Pairs sent.
    sent: usize,
}

impl Door {
    /// Sends the answer to `request`; header, count and `more` come with the last piece only. The barrier, if one is
    /// wanted, comes before.
    pub(super) async fn range_stream(
        &self,
        caller: Option<Identity>,
        request: pb::RangeRequest,
        sink: &Sink,
    ) -> Result<(), Error> {
        let (mut progress, mut piece) = self.begin_stream(&request).await?;
        let mut share = self.member().answers.share();
        if piece.header.is_none() {
            // There is more: as much as waits here at any time.
            share.grow(limits::STREAM_QUEUE_BYTES_MAX + 2 * limits::RANGE_PIECE_BYTES)?;
        }
        loop {
            self.confirm(caller.as_ref())?;
            let is_last = piece.header.is_some();
            let response = pb::RangeStreamResponse { range_response: Some(piece) };
            sink.push(smallvec![Bytes::from(response.encode_to_vec())]);
            if is_last {
                return Ok(());
            }
            // The caller reads no faster than this is read: one piece waits here, and what the sink holds.
            sink.wait_for_credit().await;
            if sink.is_closed() {
                return Ok(());
            }
            piece = self.next_piece(&mut progress).await?;
        }
    }

    /// The first piece. Who asks for what is current is not told that it has been compacted while it was read.
    async fn begin_stream(&self, request: &pb::RangeRequest) -> Result<(Progress, pb::RangeResponse), Error> {
        let mut tries_left = limits::READ_TRIES_MAX;
        loop {
            tries_left -= 1;
            let (view, current) = self.view_at(request.revision)?;
            let plan = Plan::new(&pb::RangeRequest { sort_order: 0, sort_target: 0, ..request.clone() });
            let rest = KeyRange::from_wire(&request.key, &request.range_end);
            let mut progress = Progress { view, plan, rest, current, sent: 0 };
            match self.next_piece(&mut progress).await {
                Err(Error::Compacted) if request.revision <= 0 && tries_left > 0 => {}
                piece => return piece.map(|piece| (progress, piece)),
            }
        }
    }

    async fn next_piece(&self, progress: &mut Progress) -> Result<pb::RangeResponse, Error> {
        // Clients are told so whether the bytes are gone or not.
        if progress.view.revision() < self.keyspace().compact_revision() {
            return Err(Error::Compacted);
        }
        if progress.plan.options.count_only {
            let count = self.count_rest(progress).await?;
            return Ok(pb::RangeResponse { header: Some(self.header(progress.current)), count, ..Default::default() });
        }
        let left = match progress.plan.options.limit {
            0 => usize::MAX,
            limit => limit - progress.sent,
        };
        let is_first = progress.sent == 0;
        let options = RangeOptions {
            limit: if is_first { left.min(limits::STREAM_FIRST_PAIRS) } else { left },
            bytes_max: if is_first { limits::RANGE_INLINE_BYTES_MAX } else { limits::RANGE_PIECE_BYTES },
            without_count: true,
            ..progress.plan.options
        };
        let (view, range) = (progress.view.clone(), progress.rest.clone());
        let found = match is_first {
            true => view.range(&range, &options)?,
            false => self.pool.run(move |_| Ok(view.range(&range, &options)?)).await?,
        };
        progress.sent += found.kvs.len();
        if let Some(last) = found.kvs.last().filter(|_| progress.rest.end != RangeEnd::Point) {
            progress.rest.start = query::successor(&last.key);
        }
        let (more, cut_by_limit) = (found.more, found.more && found.kvs.len() == left);
        let mut piece = progress.plan.finish(found);
        (piece.count, piece.more) = (0, false);
        if more && !cut_by_limit {
            return Ok(piece);
        }
        let behind = if more { self.count_rest(progress).await? } else { 0 };
        (piece.count, piece.more) = (progress.sent as i64 + behind, more);
        piece.header = Some(self.header(progress.current));
        Ok(piece)
    }

    async fn count_rest(&self, progress: &Progress) -> Result<i64, Error> {
        let (view, rest) = (progress.view.clone(), progress.rest.clone());
        self.pool.run(move |caller| scan::count(&view, &rest, caller)).await
    }
}
