//! The same requests to an etcd 3.7.1 and to Daymark get the same answers: generated sequences over the whole key-value,
//! lease and watch API, and a table of everything that must be refused.

mod differential {
    pub mod call;
    pub mod generate;
    pub mod known;
    pub mod refusals;
    pub mod refused_callers;
    pub mod side;
}

use std::time::{Duration, Instant};

use daymark_tests::{
    etcd,
    process::{Dialect, Program, Server},
    seed, setting,
    wire::runtime,
};
use differential::{
    generate::{Repertoire, Request, generate},
    refusals::{self, Expect, Row, Who},
    refused_callers,
    side::{self, Side},
};

/// Tries to make a failing sequence smaller.
const SHRINK_RUNS_MAX: usize = 60;
const SHRINK_TIME_MAX: Duration = Duration::from_secs(120);

/// Characters of a request or an answer that are shown.
const SHOWN_MAX: usize = 1500;

/// Where two servers answered differently.
struct Difference {
    at: usize,
    what: String,
}

#[test]
fn generated_requests_get_the_same_answers() {
    let Some(oracle) = etcd::any_oracle_or_skip("generated_requests_get_the_same_answers") else { return };
    let ours = Program::daymark();
    let seed = seed();
    let count = usize::try_from(setting("DAYMARK_DIFF_REQUESTS", 20_000)).expect("fits");
    let old = oracle.dialect == Dialect::Etcd35;
    let requests = generate(seed, count, if old { Repertoire::Old } else { Repertoire::Full });
    println!("seed {seed}: {count} requests (DAYMARK_SEED={seed} DAYMARK_DIFF_REQUESTS={count} repeats this)");
    let Some(first) = run(&oracle, &ours, &requests) else { return };
    println!("request {}: answers differ\n{}\nlooking for a smaller sequence", first.at, first.what);
    let smallest = shrink(&oracle, &ours, requests[..=first.at].to_vec());
    let last = run(&oracle, &ours, &smallest).map_or_else(|| first.what.clone(), |d| d.what);
    let listing: Vec<_> = smallest.iter().map(|r| format!("  {}", short(r))).collect();
    panic!(
        "seed {seed}, request {}: answers differ\n{}\nsmallest sequence found:\n{}\nwhich gives\n{last}",
        first.at,
        first.what,
        listing.join("\n")
    );
}

/// Sends the sequence to two fresh servers; the first difference.
fn run(oracle: &Program, ours: &Program, requests: &[Request]) -> Option<Difference> {
    let old = oracle.dialect == Dialect::Etcd35;
    // Passwords are hashed as cheaply as can be.
    let theirs = Server::start(oracle, &["--bcrypt-cost=4"]);
    let ours = Server::start(ours, &["--bcrypt-cost=4"]);
    runtime().block_on(compare(&theirs, &ours, requests, old))
}

async fn compare(theirs: &Server, ours: &Server, requests: &[Request], old: bool) -> Option<Difference> {
    let mut left = Side::connect(&theirs.endpoint(), old).await;
    let mut right = Side::connect(&ours.endpoint(), old).await;
    // etcd brings watchers that start in the past up to date ten times a second: to compare what a compaction or a
    // cancel leaves of them, both must be given the time. A cancel also overtakes events that are on their way: etcd puts
    // watchers aside for a while when a stream has more than 128 answers to send.
    let mut behind = false;
    for (at, request) in requests.iter().enumerate() {
        let settle = match request {
            Request::Compact(_) => behind,
            Request::WatchCancel(_) => true,
            _ => false,
        };
        if settle || at % 250 == 249 {
            if let Err(what) = side::settled(&left, &right, behind).await {
                return Some(Difference { at, what });
            }
            behind = false;
        }
        behind |= matches!(request, Request::WatchCreate(create) if create.start_revision != 0);
        // Relative revisions count from what the oracle has reached, which is the same on both until they differ.
        let request = request.resolve(left.revision());
        let (a, b) = futures_util::future::join(left.ask(&request), right.ask(&request)).await;
        if a != b {
            let log = if b.contains("transport error") { ours.log() } else { String::new() };
            let what = format!("{}\n  etcd:    {}\n  daymark: {}\n{log}", short(&request), cut(&a, &b), cut(&b, &a));
            return Some(Difference { at, what });
        }
    }
    let last = side::settled(&left, &right, true).await;
    last.err().map(|what| Difference { at: requests.len().saturating_sub(1), what })
}

/// A request as text, without the length of long values.
fn short(request: &Request) -> String {
    let text = format!("{request:?}");
    if text.len() > SHOWN_MAX { format!("{}...", text.chars().take(SHOWN_MAX).collect::<String>()) } else { text }
}

/// A long answer from a little before where it differs from the other one.
fn cut(text: &str, other: &str) -> String {
    if text.len() <= SHOWN_MAX {
        return text.to_owned();
    }
    let same = text.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let shown: String = text.chars().skip(same.saturating_sub(SHOWN_MAX / 2)).take(SHOWN_MAX).collect();
    format!("({} bytes, equal up to {same}) ...{shown}...", text.len())
}

/// Leaves out pieces of a failing sequence as long as what remains still fails.
fn shrink(oracle: &Program, ours: &Program, mut requests: Vec<Request>) -> Vec<Request> {
    let started = Instant::now();
    let mut runs = 0;
    let mut piece = requests.len() / 2;
    while piece > 0 && runs < SHRINK_RUNS_MAX && started.elapsed() < SHRINK_TIME_MAX {
        let mut from = 0;
        let mut removed = false;
        while from < requests.len() && runs < SHRINK_RUNS_MAX && started.elapsed() < SHRINK_TIME_MAX {
            let until = (from + piece).min(requests.len());
            let candidate = [&requests[..from], &requests[until..]].concat();
            runs += 1;
            match run(oracle, ours, &candidate) {
                Some(difference) if !candidate.is_empty() => {
                    requests = candidate[..=difference.at].to_vec();
                    removed = true;
                }
                _ => from = until,
            }
        }
        if !removed || piece > 1 {
            piece /= 2;
        }
    }
    requests
}

#[test]
fn what_is_wrong_is_refused_with_the_documented_code_and_text() {
    let ours = Program::daymark();
    if let Some(oracle) = etcd::any_oracle_or_skip("what_is_wrong_is_refused (the table against etcd)") {
        let theirs = Server::start(&oracle, &[]);
        let failures = runtime().block_on(refusals::failures(&theirs.endpoint(), oracle.dialect.into()));
        assert!(failures.is_empty(), "the table itself is wrong, etcd says:\n{}", failures.join("\n"));
    }
    let server = Server::start(&ours, &[]);
    let failures = runtime().block_on(refusals::failures(&server.endpoint(), ours.dialect.into()));
    assert!(failures.is_empty(), "{} refusals are wrong:\n{}", failures.len(), failures.join("\n"));
    assert!(server.is_healthy(), "the server goes on");
}

#[test]
fn callers_without_rights_and_writes_under_an_alarm_are_refused() {
    let ours = Program::daymark();
    let oracle = etcd::oracle_or_skip("callers_without_rights (the table against etcd)");
    for program in oracle.into_iter().chain([ours]) {
        let server = Server::start(&program, &["--bcrypt-cost=4"]);
        let failures = runtime().block_on(refused_callers::failures(&server.endpoint(), program.dialect.into()));
        assert!(failures.is_empty(), "{:?} says otherwise:\n{}", program.dialect, failures.join("\n"));
    }
}

#[test]
fn a_lock_that_lost_its_place_is_told() {
    let oracle = etcd::any_oracle_or_skip("a_lock_that_lost_its_place_is_told");
    for program in oracle.into_iter().chain([Program::daymark()]) {
        let server = Server::start(&program, &[]);
        let told = runtime().block_on(refusals::lost_place_in_a_queue(&server.endpoint()));
        assert_eq!((told.code, &told.message[..]), (Some(2), SESSION_EXPIRED), "{:?}", program.dialect);
    }
}

const SESSION_EXPIRED: &str = "mutex: session is expired";

/// Texts of `server/src/error.rs` that no row asks for, each with the reason.
const NOT_ASKED: &[(&str, &str)] = &[
    ("daymark: a reflection request must ask something", "etcd has no reflection"),
    (SESSION_EXPIRED, "a test of its own: a_lock_that_lost_its_place_is_told"),
    ("etcdserver: too many requests", "needs an apply thread that is 5000 entries behind"),
    ("not a primary lessor", "needs a leader without its quorum, so several members"),
    ("etcdserver: watch canceled", "told to a client that has cancelled, which reads no more"),
    ("etcdserver: no leader", "needs several members"),
    ("etcdserver: not leader", "needs several members"),
    ("etcdserver: leader changed", "needs several members"),
    ("etcdserver: not capable", "needs members of several versions"),
    ("etcdserver: server stopped", "told between SIGTERM and the end, which no client can time"),
    ("etcdserver: request timed out", "needs a disk that hangs, or a lost quorum"),
    ("auth: token signing attempted with verify-only key", "needs JSON web tokens: server/src/auth has the test"),
    ("etcdserver: revision of auth store is old", "needs JSON web tokens, or a change between two steps of a request"),
    ("context deadline exceeded", "etcd's gRPC library resets the stream then, and the client has its own clock"),
    ("etcdserver: cluster version not found during downgrade", "needs a member that has not joined"),
    (
        "daymark: the body of the request did not arrive within a minute: send it at once",
        "takes a minute: server/src/net",
    ),
    (
        "daymark: no earlier version of Daymark can read this data: to go back to etcd, restore a snapshot with etcdutl",
        "Daymark's own: etcd does as it is told; server/tests/scripts",
    ),
    (
        "etcdserver: member ID already exist",
        "the same addresses in the same second: server/src/services/reconfigure.rs",
    ),
    (
        "etcdserver: can only promote a learner member which is in sync with leader",
        "needs several members: server/tests/members.rs",
    ),
    ("etcdserver: too many learner members in cluster", "needs several members: server/tests/members.rs"),
    (
        "etcdserver: request timed out, possibly due to previous leader failure",
        "needs several members: server/src/services/mod.rs",
    ),
    (
        "etcdserver: request timed out, possibly due to connection lost",
        "needs several members: server/src/services/mod.rs",
    ),
    ("etcdserver: unhealthy cluster", "needs several members: server/tests/members.rs"),
    ("etcdserver: rpc not supported for learner", "needs several members: tests/tests/cluster.rs"),
    ("etcdserver: request timed out, leader transfer took too long", "needs several members that do not answer"),
    (
        "daymark: the disk has not enough room to make a snapshot: free some, or back up with less history after a compaction",
        "needs a full disk: server/tests",
    ),
    (
        "daymark: too many watchers: cancel some, or spread them over connections and members",
        "Daymark's own: etcd has no bound; server/src/watch/tests",
    ),
    ("context canceled", "told to a client that has cancelled, which reads no more"),
];

/// Every text that clients can be told is asked for, or stands in the list with the reason why not; and nothing else does.
#[test]
fn every_text_of_the_error_table_is_asked_for() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/src/error.rs");
    let source = std::fs::read_to_string(source).expect("the table of errors");
    let texts: Vec<_> = source.lines().filter_map(table_text).collect();
    assert!(texts.len() > 60, "the table was found: {} texts", texts.len());
    let mut asked: Vec<String> = refusals::rows().iter().chain(&refused_callers::rows()).filter_map(asserted).collect();
    asked.sort();
    let mut wrong = Vec::new();
    for text in &texts {
        let (is_asked, is_listed) = (asked.contains(text), NOT_ASKED.iter().any(|(listed, _)| listed == text));
        if is_asked == is_listed {
            wrong.push(format!("{text:?}: asked for: {is_asked}, listed as not asked for: {is_listed}"));
        }
    }
    let gone = NOT_ASKED.iter().filter(|(listed, _)| !texts.iter().any(|text| text == listed));
    wrong.extend(gone.map(|(listed, _)| format!("{listed:?} is listed but not in the table")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The text of a line `Name, Code, "text";`.
fn table_text(line: &str) -> Option<String> {
    let (_, rest) = line.trim().split_once(", ")?;
    let (code, text) = rest.split_once(", \"")?;
    let text = text.strip_suffix("\";")?;
    code.chars().all(|c| c.is_ascii_alphabetic()).then(|| text.replace("\\\"", "\""))
}

fn asserted(row: &Row) -> Option<String> {
    match &row.expect {
        Expect::Text(_, text) if row.since.concerns(Who::Daymark) => Some(text.clone()),
        _ => None,
    }
}

#[test]
fn refused_watchers_are_told_on_their_stream() {
    let Some(oracle) = etcd::any_oracle_or_skip("refused_watchers_are_told_on_their_stream") else { return };
    let theirs = Server::start(&oracle, &[]);
    let ours = Server::start(&Program::daymark(), &[]);
    let expected = runtime().block_on(refusals::watch_refusals(&theirs.endpoint()));
    let told = runtime().block_on(refusals::watch_refusals(&ours.endpoint()));
    assert!(expected.len() > 12, "the script says something: {expected:#?}");
    assert_eq!(told, expected);
    if Program::daymark().dialect == Dialect::Daymark {
        let told = runtime().block_on(refusals::watch_from_below_zero(&ours.endpoint()));
        let refused = "-1: created true canceled true at 0: etcdserver: mvcc: required revision has been compacted";
        assert_eq!(told, [refused]);
    }
}
