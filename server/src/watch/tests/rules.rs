//! One test for each rule of `etcd-contract/semantics.md` section 8, and for the races between them.

use bytes::Bytes;
use daymark_api::etcdserverpb as pb;
use daymark_api::etcdserverpb::watch_create_request::FilterType;

use super::world::{Bounds, Client, World, on_key, on_range};
use crate::error::Error;
use crate::limits;
use crate::watch::WatchTurn;

fn from(start_revision: i64, create: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { start_revision, ..create }
}

fn with_id(watch_id: i64, create: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { watch_id, ..create }
}

fn filtered(filters: &[FilterType], create: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { filters: filters.iter().map(|filter| *filter as i32).collect(), ..create }
}

fn with_prev(create: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { prev_kv: true, ..create }
}

fn with_progress(create: pb::WatchCreateRequest) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { progress_notify: true, ..create }
}

#[track_caller]
fn reads(client: &Client, lines: &[&str]) {
    assert_eq!(client.read(), lines);
}

// 8.1 stream and watchers

#[test]
fn ids_are_assigned_from_zero_and_skip_those_in_use() {
    let world = World::new();
    let client = world.open();
    client.create(with_id(1, on_key("a")));
    client.create(with_id(-7, on_key("a")));
    for _ in 0..3 {
        client.create(on_key("a"));
    }
    reads(&client, &["created 1 @1", "created -7 @1", "created 0 @1", "created 2 @1", "created 3 @1"]);
    client.cancel(2);
    client.create(on_key("a"));
    client.create(with_id(2, on_key("a")));
    reads(&client, &["canceled 2 @1", "created 4 @1", "created 2 @1"]);
}

/// The bytes of its keys count: here each has a long one, of the same memory.
#[test]
fn watchers_are_bounded_for_a_stream_and_for_all_and_those_that_go_make_room() {
    let mut world = World::new();
    let key = Bytes::from(vec![b'k'; 16 << 20]);
    let long = || pb::WatchCreateRequest { key: key.clone(), ..Default::default() };
    let fits = limits::WATCHERS_OF_STREAM_BYTES_MAX / (key.len() + limits::WATCHER_BYTES);
    let refused =
        format!("refused -1 @1: rpc error: code = ResourceExhausted desc = {}", Error::TooManyWatchers.text());
    let mut clients: Vec<Client> = Vec::new();
    for _ in 0..limits::WATCHERS_OF_THREAD_BYTES_MAX / limits::WATCHERS_OF_STREAM_BYTES_MAX {
        let client = world.open();
        (0..fits).for_each(|_| client.create(long()));
        assert!(client.read().iter().all(|line| line.starts_with("created")));
        client.create(long());
        reads(&client, &[&refused]);
        clients.push(client);
    }
    clients[0].cancel(3);
    clients[0].create(long());
    let next = fits + 1;
    reads(&clients[0], &["canceled 3 @1", &format!("created {next} @1")]);
    // What the streams leave of the bound for all is filled by others.
    let other = world.open();
    let rest = limits::WATCHERS_OF_THREAD_BYTES_MAX - clients.len() * fits * (key.len() + limits::WATCHER_BYTES);
    let whole = rest / (key.len() + limits::WATCHER_BYTES);
    (0..=whole).for_each(|_| other.create(long()));
    assert_eq!(other.read().last(), Some(&refused));
    clients[1].sink.close();
    world.turn();
    other.create(long());
    reads(&other, &[&format!("created {} @1", whole + 1)]);
}

#[test]
fn ids_of_two_streams_have_nothing_to_do_with_each_other() {
    let mut world = World::new();
    let (one, other) = (world.open(), world.open());
    one.create(on_key("a"));
    other.create(on_key("b"));
    world.put("b", "1");
    world.settle();
    reads(&one, &["created 0 @1"]);
    reads(&other, &["created 0 @1", "events 0 @2: b=1 #2"]);
}

#[test]
fn refusals_come_in_order_and_the_stream_lives_on() {
    let mut world = World::new();
    world.put("a", "1");
    let client = world.open();
    client.create(with_id(5, on_key("a")));
    client.create(with_id(5, on_key("a")));
    client.create(from(-1, on_key("a")));
    client.create(on_range("b", "a"));
    client.create(on_range("b", "b"));
    client.create(on_key("a"));
    world.put("a", "2");
    world.settle();
    let mut lines = client.read();
    // Events of different watchers have no order between them.
    lines[6..].sort();
    assert_eq!(
        lines,
        [
            "created 5 @2",
            "refused -1 @2: mvcc: duplicate watch ID provided on the WatchStream",
            "refused -1 @2: etcdserver: mvcc: required revision has been compacted",
            "refused -1 @2: mvcc: watcher range is empty",
            "refused -1 @2: mvcc: watcher range is empty",
            "created 0 @2",
            "events 0 @3: a=2 #3",
            "events 5 @3: a=2 #3",
        ]
    );
}

#[test]
fn intervals_follow_the_notation_of_range() {
    let cases: [(&str, &str, &[&str]); 7] = [
        ("b", "", &["b"]),
        ("b", "c", &["b", "ba"]),
        ("b", "ba", &["b"]),
        ("b", "\0", &["b", "ba", "c"]),
        ("", "\0", &["a", "b", "ba", "c"]),
        ("\0", "\0", &["a", "b", "ba", "c"]),
        ("", "", &[]),
    ];
    let mut world = World::new();
    let client = world.open();
    for (number, (key, range_end, _)) in cases.iter().enumerate() {
        client.create(with_id(number as i64 + 1, on_range(key, range_end)));
    }
    client.read();
    for key in ["a", "b", "ba", "c"] {
        world.put(key, "");
    }
    world.settle();
    let responses: Vec<pb::WatchResponse> = std::iter::from_fn(|| client.next()).collect();
    for (number, (key, range_end, expected)) in cases.iter().enumerate() {
        let of_watcher = responses.iter().filter(|response| response.watch_id == number as i64 + 1);
        let pairs = of_watcher.flat_map(|response| &response.events).filter_map(|event| event.kv.as_ref());
        let keys: Vec<&[u8]> = pairs.map(|kv| &kv.key[..]).collect();
        let expected: Vec<&[u8]> = expected.iter().map(|key| key.as_bytes()).collect();
        assert_eq!(keys, expected, "{key:?} {range_end:?}");
    }
}

#[test]
fn from_now_means_after_the_created_header() {
    let mut world = World::new();
    let early = world.open();
    early.create(on_key("a"));
    world.put("a", "1");
    // The cursor stands before revision 2, which is published.
    let client = world.open();
    client.create(on_key("a"));
    world.put("a", "2");
    world.settle();
    reads(&client, &["created 0 @2", "events 0 @3: a=2 #3"]);
    reads(&early, &["created 0 @1", "events 0 @2: a=1 #2", "events 0 @3: a=2 #3"]);
}

#[test]
fn from_a_past_revision_replays_it_inclusively() {
    let mut world = World::new();
    for value in ["1", "2", "3", "4"] {
        world.put("a", value);
    }
    let client = world.open();
    client.create(from(3, on_key("a")));
    reads(&client, &["created 0 @5"]);
    world.settle();
    reads(&client, &["events 0 @5: a=2 #3, a=3 #4, a=4 #5"]);
    world.put("a", "5");
    world.settle();
    reads(&client, &["events 0 @6: a=5 #6"]);
}

#[test]
fn from_the_current_revision_replays_it() {
    let mut world = World::new();
    world.put("a", "1");
    let client = world.open();
    client.create(from(2, on_key("a")));
    world.settle();
    reads(&client, &["created 0 @2", "events 0 @2: a=1 #2"]);
}

#[test]
fn from_a_future_revision_waits_for_it() {
    let mut world = World::new();
    let client = world.open();
    client.create(with_progress(from(4, on_key("a"))));
    world.put("a", "1");
    world.put("a", "2");
    world.settle();
    client.on_progress_timeout();
    client.ask_progress();
    reads(&client, &["created 0 @1"]);
    world.put("a", "3");
    world.put("a", "4");
    world.settle();
    client.ask_progress();
    reads(&client, &["events 0 @4: a=3 #4", "events 0 @5: a=4 #5", "progress -1 @5"]);
}

#[test]
fn a_future_watcher_has_progress_once_the_store_gets_there_without_events() {
    let mut world = World::new();
    let client = world.open();
    client.create(from(3, on_key("a")));
    world.put("x", "");
    world.settle();
    client.ask_progress();
    reads(&client, &["created 0 @1"]);
    world.put("x", "");
    world.settle();
    client.ask_progress();
    reads(&client, &["progress -1 @3"]);
}

#[test]
fn from_a_compacted_revision_is_created_then_cancelled() {
    let mut world = World::new();
    for value in ["1", "2", "3"] {
        world.put("a", value);
    }
    world.compact(3);
    let client = world.open();
    client.create(from(2, on_key("a")));
    client.create(from(3, on_key("a")));
    world.settle();
    let lines = ["created 0 @4", "compacted 0 @0: 3", "created 1 @4", "events 1 @4: a=2 #3, a=3 #4"];
    reads(&client, &lines);
}

#[test]
fn filters_drop_kinds_and_empty_responses() {
    let mut world = World::new();
    let client = world.open();
    client.create(filtered(&[FilterType::Noput], on_key("a")));
    client.create(filtered(&[FilterType::Nodelete], on_key("a")));
    client.create(filtered(&[FilterType::Noput, FilterType::Nodelete], on_key("a")));
    client.create(pb::WatchCreateRequest { filters: vec![17], ..on_key("a") });
    client.read();
    world.put("a", "1");
    world.delete("a");
    world.settle();
    let mut lines = client.read();
    lines.sort();
    let expected = ["events 0 @3: del a #3", "events 1 @2: a=1 #2", "events 3 @2: a=1 #2", "events 3 @3: del a #3"];
    assert_eq!(lines, expected);
}

#[test]
fn filters_hold_while_catching_up() {
    let mut world = World::new();
    world.put("a", "1");
    world.delete("a");
    let client = world.open();
    client.create(filtered(&[FilterType::Noput], from(1, on_key("a"))));
    client.create(filtered(&[FilterType::Nodelete], from(1, on_key("a"))));
    client.read();
    world.settle();
    let mut lines = client.read();
    lines.sort();
    assert_eq!(lines, ["events 0 @3: del a #3", "events 1 @3: a=1 #2"]);
}

#[test]
fn previous_pairs_come_with_updates_and_deletes() {
    let mut world = World::new();
    let client = world.open();
    client.create(with_prev(on_key("a")));
    client.create(on_key("a"));
    client.read();
    let expected = ["a=1 #2", "a=2 #3 was 1", "del a #4 was 2", "a=3 #5"];
    world.put("a", "1");
    world.put("a", "2");
    world.delete("a");
    world.put("a", "3");
    world.settle();
    let lines = client.read();
    let live: Vec<&str> = lines.iter().filter(|line| line.starts_with("events 0")).map(|line| &line[13..]).collect();
    assert_eq!(live, expected);
    assert!(!lines.iter().any(|line| line.starts_with("events 1") && line.contains("was")), "{lines:?}");
    // From the ring, where the events are still, and from history.
    let late = world.open();
    late.create(with_prev(from(2, on_key("a"))));
    world.settle();
    reads(&late, &["created 0 @5", &format!("events 0 @5: {}", expected.join(", "))]);
    world.engine.borrow_mut().ring.clear();
    late.create(with_prev(from(2, on_key("a"))));
    world.settle();
    reads(&late, &["created 1 @5", &format!("events 1 @5: {}", expected.join(", "))]);
}

#[test]
fn the_previous_pair_of_the_compact_revision_is_gone() {
    for keep_ring in [true, false] {
        let mut world = World::new();
        let early = world.open();
        early.create(on_key("x"));
        for value in ["1", "2", "3"] {
            world.put("a", value);
        }
        world.settle();
        world.compact(3);
        if !keep_ring {
            world.engine.borrow_mut().ring.clear();
        }
        let client = world.open();
        client.create(with_prev(from(3, on_key("a"))));
        world.settle();
        reads(&client, &["created 0 @4", "events 0 @4: a=2 #3, a=3 #4 was 2"]);
    }
}

#[test]
fn a_request_without_content_is_ignored() {
    let world = World::new();
    let client = world.open();
    world.engine.borrow_mut().handle_request(client.stream, pb::WatchRequest::default());
    reads(&client, &[]);
    assert!(!client.sink.is_closed());
}

// 8.2 event delivery

#[test]
fn all_events_of_a_revision_come_in_one_response_in_order() {
    let mut world = World::new();
    let client = world.open();
    client.create(on_range("a", "z"));
    let txn: &[(&str, Option<&str>)] = &[("b", Some("1")), ("a", Some("2")), ("b", None), ("x", Some("3"))];
    world.write(&[txn, &[("a", Some("4"))]]);
    world.settle();
    let first = "events 0 @2: b=1 #2, a=2 #2, del b #2, x=3 #2";
    reads(&client, &["created 0 @1", first, "events 0 @3: a=4 #3"]);
}

#[test]
fn a_watcher_that_catches_up_gets_at_most_1000_revisions_a_response() {
    let mut world = World::new();
    for number in 0..2100 {
        world.put("a", &number.to_string());
    }
    let client = world.open();
    client.create(from(2, on_key("a")));
    client.read();
    world.settle();
    let responses: Vec<pb::WatchResponse> = std::iter::from_fn(|| client.next()).collect();
    let sizes: Vec<usize> = responses.iter().map(|response| response.events.len()).collect();
    assert_eq!(sizes, [1000, 1000, 100]);
    let revisions = responses.iter().flat_map(|response| &response.events);
    let revisions: Vec<i64> = revisions.map(|event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision)).collect();
    assert_eq!(revisions, (2..=2101).collect::<Vec<i64>>());
    for response in responses {
        assert_eq!(response.header.map(|header| header.revision), Some(2101), "the store's, not the events'");
    }
}

#[test]
fn large_responses_are_split_if_asked_for() {
    let value = "v".repeat(40);
    let txn: &[(&str, Option<&str>)] = &[("a", Some(&value)), ("b", Some(&value)), ("c", Some(&value))];
    let mut world = World::with(Bounds { fragment_bytes: 130, ..Bounds::default() });
    let client = world.open();
    client.create(pb::WatchCreateRequest { fragment: true, ..on_range("a", "z") });
    client.create(on_range("a", "z"));
    client.create(pb::WatchCreateRequest { fragment: true, ..on_key("a") });
    client.read();
    world.write(&[txn]);
    world.settle();
    let late = world.open();
    late.create(pb::WatchCreateRequest { fragment: true, ..from(2, on_range("a", "z")) });
    late.read();
    world.settle();
    let words = |key: &str| format!("{key}={value} #2");
    let (a, b, c) = (words("a"), words("b"), words("c"));
    let mut lines = client.read();
    lines.sort();
    let split = [format!("events 0 @2 fragment: {a}, {b}"), format!("events 0 @2: {c}")];
    let whole = [format!("events 1 @2: {a}, {b}, {c}"), format!("events 2 @2: {a}")];
    assert_eq!(lines, [&split[..], &whole[..]].concat());
    assert_eq!(late.read(), split);
}

#[test]
fn an_event_larger_than_the_limit_is_sent_alone() {
    let value = "v".repeat(200);
    let mut world = World::with(Bounds { fragment_bytes: 130, ..Bounds::default() });
    let client = world.open();
    client.create(pb::WatchCreateRequest { fragment: true, ..on_range("a", "z") });
    client.read();
    world.write(&[&[("a", Some(&value)), ("b", Some(&value))]]);
    world.settle();
    reads(&client, &[&format!("events 0 @2 fragment: a={value} #2"), &format!("events 0 @2: b={value} #2")]);
}

#[test]
fn a_slow_stream_holds_nobody_up_and_loses_nothing() {
    for ring_bytes_max in [1 << 20, 1] {
        let mut world = World::with(Bounds { ring_bytes_max, ..Bounds::default() });
        let (slow, quick) = (world.open_with(100), world.open());
        slow.create(on_key("a"));
        quick.create(on_key("a"));
        quick.read();
        for number in 0..50 {
            world.put("a", &number.to_string());
            world.settle();
            assert_eq!(quick.read().len(), 1);
        }
        assert_eq!(world.engine.borrow().stats().behind, 1);
        let mut values = Vec::new();
        while let Some(response) = slow.next() {
            values.extend(response.events.into_iter().filter_map(|event| event.kv).map(|kv| kv.value));
            world.settle();
        }
        let expected: Vec<Bytes> = (0..50).map(|number: i32| number.to_string().into()).collect();
        assert_eq!(values, expected);
        assert_eq!(world.engine.borrow().stats().behind, 0);
    }
}

#[test]
fn many_watchers_behind_share_one_scan() {
    let mut world = World::new();
    for number in 0..100 {
        world.put(&format!("k{number}"), "v");
    }
    let client = world.open();
    for number in 0..100 {
        client.create(from(2 + number, on_key(&format!("k{number}"))));
    }
    client.read();
    world.turn();
    assert!(world.run_job() && !world.run_job(), "one job");
    world.turn();
    assert_eq!(client.read().len(), 100);
    assert_eq!(world.engine.borrow().stats().behind, 0);
}

// Races

#[test]
fn events_during_a_scan_are_neither_lost_nor_repeated() {
    let mut world = World::new();
    world.put("a", "1");
    let client = world.open();
    client.create(from(2, on_key("a")));
    world.turn();
    world.put("a", "2");
    world.turn();
    assert!(world.run_job());
    world.put("a", "3");
    // Published, but not announced when the scan comes home.
    let late = world.commit(&[&[("a", Some("4"))]]);
    world.turn();
    world.announce(late);
    world.settle();
    let expected = ["created 0 @2", "events 0 @5: a=1 #2", "events 0 @5: a=2 #3, a=3 #4", "events 0 @5: a=4 #5"];
    reads(&client, &expected);
}

#[test]
fn a_batch_that_was_published_before_the_first_watcher_is_not_repeated() {
    let mut world = World::new();
    let batch = world.commit(&[&[("a", Some("1"))]]);
    let client = world.open();
    client.create(on_key("a"));
    world.announce(batch);
    world.put("a", "2");
    world.settle();
    reads(&client, &["created 0 @2", "events 0 @3: a=2 #3"]);
}

#[test]
fn compaction_during_a_scan_cancels_what_needs_the_lost_history() {
    let mut world = World::new();
    for value in ["1", "2", "3"] {
        world.put("a", value);
    }
    let client = world.open();
    client.create(from(2, on_key("a")));
    client.create(from(4, on_key("a")));
    client.read();
    world.turn();
    world.compact(4);
    world.settle();
    let mut lines = client.read();
    lines.sort();
    assert_eq!(lines, ["compacted 0 @0: 4", "events 1 @4: a=3 #4"]);
}

#[test]
fn compaction_cancels_a_queued_watcher_even_if_memory_still_holds_its_events() {
    let mut world = World::new();
    let (early, late) = (world.open(), world.open());
    early.create(on_key("a"));
    for value in ["1", "2", "3"] {
        world.put("a", value);
    }
    world.settle();
    late.create(from(2, on_key("a")));
    late.create(from(4, on_key("a")));
    world.compact(4);
    world.settle();
    reads(&late, &["created 0 @4", "created 1 @4", "compacted 0 @0: 4", "events 1 @4: a=3 #4"]);
}

#[test]
fn compaction_under_a_stream_without_credit_cancels_when_it_reads_again() {
    let mut world = World::new();
    let client = world.open_with(1);
    client.create(on_key("a"));
    world.put("a", "1");
    world.put("a", "2");
    world.settle();
    world.compact(3);
    world.settle();
    reads(&client, &["created 0 @1"]);
    world.settle();
    reads(&client, &["compacted 0 @0: 3"]);
    world.put("a", "3");
    world.settle();
    reads(&client, &[]);
}

#[test]
fn batches_that_did_not_fit_into_the_mailbox_are_read_from_history() {
    let mut world = World::with(Bounds { mailbox_bytes_max: 1, ..Bounds::default() });
    let client = world.open();
    client.create(on_key("a"));
    client.create(from(6, on_key("a")));
    client.read();
    // The first fits, the others do not; no later one tells that they are missing.
    for value in ["1", "2", "3"] {
        world.put("a", value);
    }
    world.settle();
    reads(&client, &["events 0 @2: a=1 #2", "events 0 @4: a=2 #3, a=3 #4"]);
    // Here a later one does.
    world.put("a", "4");
    world.put("a", "5");
    let first = world.mailbox.pop_applied().expect("the one that fits");
    world.engine.borrow_mut().handle_applied(first);
    world.put("a", "6");
    world.settle();
    let mut lines = client.read();
    lines.sort();
    let expected = ["events 0 @5: a=4 #5", "events 0 @7: a=5 #6, a=6 #7", "events 1 @7: a=5 #6, a=6 #7"];
    assert_eq!(lines, expected);
}

#[test]
fn a_batch_without_events_that_began_before_the_first_watcher_is_read_from_history() {
    for is_said in [true, false] {
        let mut world = World::new();
        let client = world.open();
        client.create(on_key("a"));
        // Apply looked before the watcher came, published after, and has no events to hand over.
        let batch = world.commit(&[&[("a", Some("1"))]]);
        if is_said {
            assert!(world.mailbox.leave_out(batch.last_revision));
            world.mailbox.wake();
            world.settle();
        } else {
            world.settle_and_tick();
        }
        reads(&client, &["created 0 @1", "events 0 @2: a=1 #2"]);
    }
}

#[test]
fn a_revision_published_ahead_of_its_batch_is_no_gap() {
    let mut world = World::new();
    let client = world.open();
    client.create(on_key("a"));
    let batch = world.commit(&[&[("a", Some("1"))]]);
    world.turn();
    world.turn();
    assert_eq!(world.engine.borrow().stats().behind, 0);
    world.announce(batch);
    world.turn();
    assert!(!world.run_job(), "nothing had to be read");
    reads(&client, &["created 0 @1", "events 0 @2: a=1 #2"]);
}

#[test]
fn a_watcher_that_is_cancelled_during_its_scan_gets_nothing_more() {
    let mut world = World::new();
    world.put("a", "1");
    let client = world.open();
    client.create(from(2, on_key("a")));
    world.turn();
    client.cancel(0);
    client.create(with_id(0, on_key("b")));
    world.settle();
    reads(&client, &["created 0 @2", "canceled 0 @2", "created 1 @2"]);
}

#[test]
fn a_pool_that_stops_ends_the_streams_that_wait_for_it() {
    let mut world = World::new();
    world.put("a", "1");
    let (waits, other) = (world.open(), world.open());
    waits.create(from(2, on_key("a")));
    other.create(on_key("a"));
    world.turn();
    world.drop_jobs();
    world.settle();
    reads(&waits, &["created 0 @2"]);
    assert!(matches!(waits.end(), Some(Err(Error::Internal(_)))));
    world.put("a", "2");
    world.settle();
    reads(&other, &["created 0 @2", "events 0 @3: a=2 #3"]);
}

#[test]
fn one_far_behind_does_not_keep_others_waiting() {
    let mut world = World::with(Bounds { ring_bytes_max: 1, ..Bounds::default() });
    let value = "v".repeat(10 << 10);
    for _ in 0..1000 {
        world.put("a", &value);
    }
    let client = world.open();
    for start in [2, 400, 990] {
        client.create(from(start, on_key("a")));
    }
    client.read();
    world.turn();
    for _ in 0..4 {
        assert!(world.run_job());
        world.turn();
    }
    let ids: Vec<i64> = std::iter::from_fn(|| client.next()).map(|response| response.watch_id).collect();
    assert!((0..3).all(|id| ids.contains(&id)), "{ids:?}");
}

// 8.3 cancel and compaction

#[test]
fn what_was_published_before_a_cancel_comes_before_its_answer() {
    let mut world = World::new();
    let client = world.open();
    client.create(on_key("a"));
    world.turn();
    reads(&client, &["created 0 @1"]);
    world.put("a", "1");
    // The thread has not looked into its mailbox yet.
    client.cancel(0);
    reads(&client, &["events 0 @2: a=1 #2", "canceled 0 @2"]);
}

#[test]
fn cancel_is_answered_once_and_ends_the_events() {
    let mut world = World::new();
    let client = world.open();
    client.create(on_key("a"));
    world.put("a", "1");
    world.settle();
    client.cancel(0);
    client.cancel(0);
    client.cancel(9);
    world.put("a", "2");
    world.settle();
    reads(&client, &["created 0 @1", "events 0 @2: a=1 #2", "canceled 0 @2"]);
}

#[test]
fn the_id_of_a_compacted_watcher_is_held_until_the_client_cancels_it() {
    let mut world = World::new();
    world.put("a", "1");
    world.put("a", "2");
    world.compact(3);
    let client = world.open();
    client.create(with_id(7, from(2, on_key("a"))));
    client.create(with_id(7, on_key("a")));
    client.ask_progress();
    client.cancel(7);
    client.create(with_id(7, on_key("a")));
    client.ask_progress();
    let lines = [
        "created 7 @3",
        "compacted 7 @0: 3",
        "refused -1 @3: mvcc: duplicate watch ID provided on the WatchStream",
        "canceled 7 @3",
        "created 7 @3",
        "progress -1 @3",
    ];
    reads(&client, &lines);
}

#[test]
fn the_end_of_a_stream_leaves_nothing_behind() {
    let mut world = World::new();
    world.put("a", "1");
    let client = world.open_with(1);
    client.create(on_key("a"));
    client.create(from(2, on_key("a")));
    client.create(from(9, on_range("a", "c")));
    world.turn();
    client.sink.close();
    world.settle();
    let stats = world.engine.borrow().stats();
    assert_eq!((stats.streams, stats.watchers, stats.groups, stats.behind), (0, 0, 0, 0));
    assert!(!world.mailbox.push_applied(&std::sync::Arc::new(super::super::ring::AppliedBatch {
        first_revision: 3,
        last_revision: 3,
        events: Vec::new(),
        bytes: 0,
    })));
}

#[test]
fn only_streams_that_ask_for_a_leader_are_cut() {
    let mut world = World::new();
    let (cut, stays) = (world.open(), world.open());
    world.engine.borrow_mut().require_leader(cut.stream);
    cut.create(on_key("a"));
    stays.create(on_key("a"));
    world.engine.borrow_mut().cut_leaderless();
    world.put("a", "1");
    world.settle();
    reads(&cut, &["created 0 @1"]);
    assert_eq!(cut.end(), Some(Err(Error::NoLeader)));
    reads(&stays, &["created 0 @1", "events 0 @2: a=1 #2"]);
}

// 8.4 progress

#[test]
fn manual_progress_needs_every_watcher_of_the_stream_to_be_synced() {
    let mut world = World::new();
    world.put("a", "1");
    let (client, other) = (world.open(), world.open());
    client.ask_progress();
    reads(&client, &[]);
    client.create(on_key("b"));
    client.ask_progress();
    reads(&client, &["created 0 @2", "progress -1 @2"]);
    client.create(from(2, on_key("a")));
    client.ask_progress();
    other.create(on_key("a"));
    other.ask_progress();
    reads(&client, &["created 1 @2"]);
    reads(&other, &["created 0 @2", "progress -1 @2"]);
    world.settle();
    client.ask_progress();
    reads(&client, &["events 1 @2: a=1 #2", "progress -1 @2"]);
}

#[test]
fn manual_progress_covers_what_was_acknowledged_before_it_was_asked_for() {
    let mut world = World::new();
    let client = world.open();
    client.create(on_key("a"));
    world.put("x", "1");
    world.put("a", "2");
    client.ask_progress();
    reads(&client, &["created 0 @1", "events 0 @3: a=2 #3", "progress -1 @3"]);
}

#[test]
fn progress_comes_from_the_cursor_not_from_the_published_revision() {
    let mut world = World::new();
    let client = world.open();
    client.create(on_key("a"));
    let batch = world.commit(&[&[("a", Some("1"))]]);
    client.ask_progress();
    reads(&client, &["created 0 @1", "progress -1 @1"]);
    world.announce(batch);
    client.ask_progress();
    reads(&client, &["events 0 @2: a=1 #2", "progress -1 @2"]);
}

#[test]
fn progress_does_not_go_back_behind_the_created_header() {
    let mut world = World::new();
    let early = world.open();
    early.create(on_key("a"));
    let batch = world.commit(&[&[("a", Some("1"))]]);
    let client = world.open();
    client.create(on_key("a"));
    client.ask_progress();
    reads(&client, &["created 0 @2"]);
    world.announce(batch);
    client.ask_progress();
    reads(&client, &["progress -1 @2"]);
}

#[test]
fn periodic_progress_goes_to_quiet_synced_watchers_that_want_it() {
    let mut world = World::new();
    let client = world.open();
    client.create(with_progress(on_key("a")));
    client.create(on_key("b"));
    client.read();
    client.on_progress_timeout();
    reads(&client, &["progress 0 @1"]);
    world.put("a", "1");
    world.settle();
    client.on_progress_timeout();
    reads(&client, &["events 0 @2: a=1 #2"]);
    world.put("x", "1");
    world.settle();
    client.on_progress_timeout();
    client.on_progress_timeout();
    reads(&client, &["progress 0 @3", "progress 0 @3"]);
}

#[test]
fn a_watcher_that_is_behind_has_no_progress() {
    let mut world = World::new();
    world.put("a", "1");
    let client = world.open();
    client.create(with_progress(from(2, on_key("a"))));
    client.on_progress_timeout();
    reads(&client, &["created 0 @2"]);
    world.settle();
    client.on_progress_timeout();
    client.on_progress_timeout();
    reads(&client, &["events 0 @2: a=1 #2", "progress 0 @2"]);
}

// A snapshot that replaces the state

/// Two worlds with the same history, of which the second goes on alone.
fn apart(behind: &mut World, ahead: &mut World) {
    for world in [behind, &mut *ahead] {
        world.put("a", "1");
        world.put("b", "2");
    }
    ahead.put("a", "3");
    ahead.delete("b");
    ahead.put("c", "4");
}

#[test]
fn a_live_watcher_goes_on_in_the_history_of_a_snapshot() {
    let (mut world, mut ahead) = (World::new(), World::new());
    let client = world.open();
    client.create(with_prev(on_range("a", "z")));
    client.create(on_key("b"));
    apart(&mut world, &mut ahead);
    world.settle();
    client.read();
    world.replace_by(ahead);
    world.put("b", "5");
    world.settle_and_tick();
    let mut lines = client.read();
    lines.sort();
    assert_eq!(lines, ["events 0 @7: a=3 #4 was 1, del b #5 was 2, c=4 #6, b=5 #7", "events 1 @7: del b #5, b=5 #7",]);
}

#[test]
fn a_watcher_is_told_that_a_snapshot_has_no_history_for_it() {
    let (mut world, mut ahead) = (World::new(), World::new());
    let client = world.open();
    client.create(on_range("a", "z"));
    apart(&mut world, &mut ahead);
    world.settle();
    client.read();
    ahead.compact(6);
    world.replace_by(ahead);
    world.settle_and_tick();
    reads(&client, &["compacted 0 @0: 6"]);
    client.create(from(6, on_range("a", "z")));
    world.settle_and_tick();
    reads(&client, &["created 1 @6", "events 1 @6: c=4 #6"]);
}
