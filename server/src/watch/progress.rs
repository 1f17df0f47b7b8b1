//! Progress bookmarks: what a stream is told about revisions that brought it no events. They come from the thread's
//! cursor, never from the published revision, and only when everything before them is out.

use daymark_api::etcdserverpb as pb;

use super::arena::Key;
use super::watcher::{Flags, Stand, Watcher};
use super::{Engine, NO_ID, StreamId};

impl Engine {
    /// A client asks for progress: one answer for the whole stream, if all of its watchers have got everything. Else
    /// none, as in etcd: the client asks again.
    pub(super) fn handle_progress(&mut self, stream: StreamId) {
        // What has been published is in the mailbox already. Taking it now lets somebody who waits for a revision that
        // was acknowledged to him get there with his first question.
        self.take_applied();
        let Some(state) = self.streams.get(stream.0) else { return };
        let told = |key: &Key| self.has_seen_cursor(&self.watchers[*key]);
        if !state.watchers.is_empty() && state.watchers.values().all(told) {
            self.send_progress(stream.0, NO_ID);
        }
    }

    /// The stream's progress interval is over: tells those watchers that want it and have got nothing since the last
    /// time. Without credit they have something better to read.
    pub fn on_progress_timeout(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get(stream.0) else { return };
        let wants = |(_, key): &(&i64, &Key)| self.watchers[**key].flags.has(Flags::PROGRESS);
        let watchers: Vec<(i64, Key)> = state.watchers.iter().filter(wants).map(|(id, key)| (*id, *key)).collect();
        for (watch_id, key) in watchers {
            let watcher = &self.watchers[key];
            let is_due = watcher.flags.has(Flags::QUIET) && self.has_seen_cursor(watcher);
            if is_due && self.streams[stream.0].sink.credit() > 0 {
                self.send_progress(stream.0, watch_id);
            }
            self.watchers[key].flags.set(Flags::QUIET, true);
        }
    }

    /// Whether no event up to the cursor is still to come. A watcher that waits for a revision in the future is not
    /// told of one before it, nor any watcher of one before its created response.
    fn has_seen_cursor(&self, watcher: &Watcher) -> bool {
        let is_future = watcher.flags.has(Flags::FUTURE);
        let least = if is_future { watcher.next_revision } else { watcher.next_revision - 1 };
        matches!(watcher.stand, Stand::Live { .. }) && self.cursor >= least
    }

    fn send_progress(&self, stream: Key, watch_id: i64) {
        let header = Some(self.headers.at(self.cursor));
        self.respond(stream, pb::WatchResponse { header, watch_id, ..Default::default() });
    }
}
