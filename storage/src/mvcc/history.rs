//! Events out of history, in revision order, for watchers that are behind what memory holds. Knows no watchers and
//! no filters but an interval of keys.

use bytes::Bytes;

use super::event::{Event, EventKind, KeyValue};
use super::layout::{self, Op, Record, UndoRecord};
use super::range::KeyRange;
use super::revision::Revision;
use super::rewind::Source;
use super::{Keyspace, ReadError, Shared};
use crate::backend::{Direction, Family, Span};

/// A stretch of history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryChunk {
    /// Revisions that have matching events, each whole, in order.
    pub events_by_revision: Vec<(i64, Vec<Event>)>,
    /// First revision that is not covered; go on from there.
    pub next_revision: i64,
}

impl Keyspace {
    /// The events of `from_revision` up to `to_revision_inclusive` (or up to the current revision, if that is lower),
    /// of the keys of `range` or of all, with the previous pairs or without.
    ///
    /// Ends after the revision with which the events pass `bytes_max`, or with which several times as much was read
    /// without finding any. Only whole revisions, at least one if there is one. A `from_revision` above the current
    /// one gives an empty chunk that goes on there.
    pub fn history(
        &self,
        from_revision: i64,
        to_revision_inclusive: i64,
        range: Option<&KeyRange>,
        with_prev: bool,
        bytes_max: usize,
    ) -> Result<HistoryChunk, ReadError> {
        let shared = self.shared();
        let (current, compact) = shared.revisions();
        if from_revision < compact {
            return Err(ReadError::Compacted);
        }
        let options = Scan { range, with_prev, bytes_max, compact };
        scan(&shared, from_revision, to_revision_inclusive.min(current), &options)
    }
}

/// What a scan of history returns.
pub(super) struct Scan<'a> {
    pub range: Option<&'a KeyRange>,
    pub with_prev: bool,
    pub bytes_max: usize,
    /// Previous pairs up to there are left out.
    pub compact: i64,
}

/// The events of `from_revision` up to `to`, which must be committed.
pub(super) fn scan(
    shared: &Shared,
    from_revision: i64,
    to: i64,
    options: &Scan<'_>,
) -> Result<HistoryChunk, ReadError> {
    let Scan { range, with_prev, bytes_max, compact } = *options;
    // Revision 1 is the empty store: it has no events.
    let from = from_revision.max(2);
    let mut chunk = HistoryChunk { events_by_revision: Vec::new(), next_revision: from_revision.max(to + 1) };
    if from > to {
        return Ok(chunk);
    }
    let [start, end] = [from, to + 1].map(|main| layout::revision_key(Revision::first_of(main)));
    let span = Span { start: &start, end: Some(&end) };
    let reader = Reader { source: Source::new(shared, None), compact, with_prev };
    let mut cursor = shared.backend.iterate(Family::Log, span, Direction::Forward)?;
    let mut expected = Revision::first_of(from);
    let mut bytes = 0;
    let mut read = 0;
    while let Some((key, record)) = cursor.item() {
        let revision = layout::decode_revision_key(key);
        let revision = revision.ok_or_else(|| reader.source.undecodable("key of history", key))?;
        if revision.main != expected.main && expected.sub > 0 {
            if bytes >= bytes_max || read >= bytes_max.saturating_mul(READ_PER_RETURNED) {
                chunk.next_revision = expected.main + 1;
                break;
            }
            expected = Revision::first_of(expected.main + 1);
        }
        if expected.main == compact {
            // What was imported need not have all of the compact revision, or any of it.
            expected = match revision.main {
                main if main == compact => revision,
                _ => Revision::first_of(compact + 1),
            };
        }
        reader.check_unbroken(revision, expected)?;
        expected.sub += 1;
        read += record.len();
        if let Some(event) = reader.event(revision, record, range)? {
            bytes += event.byte_len();
            match chunk.events_by_revision.last_mut() {
                Some((main, events)) if *main == revision.main => events.push(event),
                _ => chunk.events_by_revision.push((revision.main, vec![event])),
            }
        }
        cursor.advance()?;
    }
    let ended = cursor.item().is_none();
    let has_all = (expected.main == to && expected.sub > 0) || to == compact;
    if ended && !has_all {
        shared.check_floor(from)?;
        return Err(reader.source.broken(format!("history ends at revision {} before {to}", expected.main)));
    }
    shared.check_floor(from)?;
    Ok(chunk)
}

/// How many bytes of history are read for each byte that may be returned, before a scan that finds nothing pauses.
const READ_PER_RETURNED: usize = 8;

struct Reader<'a> {
    source: Source<'a>,
    compact: i64,
    with_prev: bool,
}

impl Reader<'_> {
    /// Every revision has a record for each of its changes: a hole is lost data, unless history was dropped just now.
    fn check_unbroken(&self, found: Revision, expected: Revision) -> Result<(), ReadError> {
        if found == expected {
            return Ok(());
        }
        self.source.shared.check_floor(expected.main)?;
        Err(self.source.broken(format!("history has no record of revision {expected}, the next is {found}")))
    }

    fn event(&self, at: Revision, record: &[u8], range: Option<&KeyRange>) -> Result<Option<Event>, ReadError> {
        let undo = layout::decode_undo(at, record);
        let undo = undo.ok_or_else(|| self.source.undecodable("undo record of", at.to_string().as_bytes()))?;
        if range.is_some_and(|range| !range.contains(undo.key)) {
            return Ok(None);
        }
        let key = Bytes::copy_from_slice(undo.key);
        let (kind, kv) = match undo.op {
            Op::Put(meta) => {
                let kv = KeyValue {
                    value: self.value(undo.key, at)?,
                    key: key.clone(),
                    create_revision: meta.create_revision,
                    mod_revision: at.main,
                    version: meta.version,
                    lease: meta.lease,
                };
                (EventKind::Put, kv)
            }
            Op::Delete => {
                (EventKind::Delete, KeyValue { key: key.clone(), mod_revision: at.main, ..KeyValue::default() })
            }
        };
        let mut event = Event { kind, kv, prev: None, sub: at.sub };
        if self.with_prev && !event.is_create() && at.main > self.compact {
            event.prev = self.previous(key, at, &undo)?;
        }
        Ok(Some(event))
    }

    /// The value that the change `at` gave `key`: in `cur` while it is the newest, else in the undo record of the
    /// change that superseded it.
    fn value(&self, key: &[u8], at: Revision) -> Result<Bytes, ReadError> {
        let backend = &self.source.shared.backend;
        let mut bytes = Vec::new();
        if backend.get(Family::Cur, key, &mut bytes)? {
            match layout::decode_record(&bytes) {
                Some(Record::Live(meta, value)) if meta.modified == at => return Ok(Bytes::copy_from_slice(value)),
                Some(_) => {}
                None => return Err(self.source.undecodable("record of", key)),
            }
        }
        if !backend.get(Family::Fwd, &layout::revision_key(at), &mut bytes)? {
            self.source.shared.check_floor(at.main)?;
            return Err(self.source.broken(format!("nothing tells what superseded the change {at}")));
        }
        let by = layout::decode_revision_key(&bytes);
        let by = by.ok_or_else(|| self.source.undecodable("link from", at.to_string().as_bytes()))?;
        match self.source.undo(by, at.main, &mut bytes)?.previous {
            Record::Live(meta, value) if meta.modified == at => Ok(Bytes::copy_from_slice(value)),
            _ => Err(self.source.broken(format!("change {by} does not hold what the change {at} had written"))),
        }
    }

    /// The pair of the revision before.
    fn previous(&self, key: Bytes, at: Revision, undo: &UndoRecord<'_>) -> Result<Option<KeyValue>, ReadError> {
        let mut scratch = Vec::new();
        let mut previous = undo.previous;
        if let Some(modified) = previous.modified().filter(|modified| modified.main == at.main) {
            previous = self.source.rewind(&key, modified, at.main - 1, &mut scratch)?;
        }
        Ok(match previous {
            Record::Live(meta, value) => Some(KeyValue {
                key,
                create_revision: meta.create_revision,
                mod_revision: meta.modified.main,
                version: meta.version,
                lease: meta.lease,
                value: Bytes::copy_from_slice(value),
            }),
            Record::Stub(_) | Record::None => None,
        })
    }
}
