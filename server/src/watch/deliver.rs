//! Live delivery: one applied batch to the watchers that have got everything before it. Not catching up.

use std::mem;

use super::Engine;
use super::arena::{Arena, Key};
use super::encode::{EventBytes, Prefixes};
use super::ring::AppliedBatch;
use super::watcher::{Flags, Groups, Stand, Watcher};

impl Engine {
    /// Hands the revisions of `batch` above the cursor to live watchers: one response for each revision and watcher.
    pub(super) fn deliver(&mut self, batch: &AppliedBatch) {
        let mut touched = Vec::new();
        for events in batch.events.chunk_by(|one, next| one.kv.mod_revision == next.kv.mod_revision) {
            let revision = events[0].kv.mod_revision;
            debug_assert!((batch.first_revision..=batch.last_revision).contains(&revision));
            // Read from history already. Its watchers would leave it out, but that is known before matching.
            if revision <= self.cursor {
                continue;
            }
            let Groups { rows, matcher, .. } = &mut self.groups;
            for event in events {
                let mut bytes = EventBytes::new(event);
                matcher.find(&event.kv.key, |key| {
                    let group = &mut rows[key];
                    let flags = group.interest.flags;
                    if group.live.is_empty() || !flags.admits(event.kind) {
                        return;
                    }
                    if group.pending.is_empty() {
                        touched.push(key);
                    }
                    group.pending.push(bytes.get(flags.has(Flags::PREV_KV)));
                });
            }
            if !touched.is_empty() {
                let mut prefixes = self.headers.prefixes(revision);
                for group in touched.drain(..) {
                    self.deliver_to_group(group, revision, &mut prefixes);
                }
            }
        }
    }

    fn deliver_to_group(&mut self, group: Key, revision: i64, prefixes: &mut Prefixes) {
        let mut payload = mem::take(&mut self.groups.rows[group].pending);
        let fragment_bytes = self.fragment_bytes(group);
        if payload.byte_len() < fragment_bytes {
            payload.join();
        }
        let mut place = 0;
        while let Some(&key) = self.groups.rows[group].live.get(place) {
            let watcher = &mut self.watchers[key];
            if watcher.next_revision > revision {
                place += 1;
                continue;
            }
            let stream = &mut self.streams[watcher.stream];
            if stream.sink.credit() == 0 {
                watcher.next_revision = revision;
                stream.parked.push(key);
                leave_live(&mut self.groups, &mut self.watchers, key);
                self.watchers[key].stand = Stand::Parked;
                continue;
            }
            watcher.next_revision = revision + 1;
            watcher.flags.set(Flags::QUIET, false);
            watcher.flags.set(Flags::FUTURE, false);
            let prefix = prefixes.get(watcher.watch_id);
            self.events_sent += payload.len() as u64;
            payload.fragments(prefix, fragment_bytes, |parts| stream.sink.push(parts));
            place += 1;
        }
    }

    /// From which size on responses of a group are split.
    pub(super) fn fragment_bytes(&self, group: Key) -> usize {
        let splits = self.groups.rows[group].interest.flags.has(Flags::FRAGMENT);
        if splits { self.options.fragment_bytes } else { usize::MAX }
    }

    /// Moves the cursor over revisions whose events did not come: live watchers fall behind, all but those that wait
    /// for later revisions.
    pub(super) fn skip_to(&mut self, revision: i64) {
        let first_missing = self.cursor + 1;
        self.cursor = revision;
        let groups: Vec<Key> = self.groups.rows.keys().collect();
        for group in groups {
            for key in mem::take(&mut self.groups.rows[group].live) {
                let watcher = &mut self.watchers[key];
                watcher.next_revision = watcher.next_revision.max(first_missing);
                self.settle(key);
            }
        }
    }

    /// Notices batches that were left out when no later one follows that would show the gap. To be called when the
    /// mailbox is empty.
    ///
    /// Apply says what it leaves out. Beyond that, the published revision may be ahead of the mailbox for a moment; if
    /// it stays ahead over several turns, its events are read from history, too.
    pub(super) fn notice_gap(&mut self) {
        let published = self.keyspace.current_revision();
        if self.watchers.is_empty() || published <= self.cursor {
            self.unexplained = None;
            return;
        }
        let left_out = self.mailbox.left_out();
        if left_out > self.cursor {
            self.unexplained = None;
            return self.skip_to(left_out);
        }
        let (revision, turns) = self.unexplained.unwrap_or((published, 0));
        if turns + 1 < UNEXPLAINED_TURNS_MAX {
            self.unexplained = Some((revision, turns + 1));
        } else {
            self.unexplained = None;
            self.skip_to(revision);
        }
    }
}

/// How many turns in a row the published revision may be ahead of the mailbox.
const UNEXPLAINED_TURNS_MAX: u32 = 3;

/// Takes a watcher out of its group's live ones. Its stand is then stale.
pub(super) fn leave_live(groups: &mut Groups, watchers: &mut Arena<Watcher>, key: Key) {
    let watcher = &watchers[key];
    let Stand::Live { place } = watcher.stand else { unreachable!("only a live watcher leaves") };
    let live = &mut groups.rows[watcher.group].live;
    assert_eq!(live.swap_remove(place as usize), key);
    if let Some(moved) = live.get(place as usize) {
        watchers[*moved].stand = Stand::Live { place };
    }
}
