//! `daymark bench` against a server whose answers the tests decide.

#[path = "../../client/tests/fake_server.rs"]
mod fake_server;
mod harness;
mod loads;

use clap::Parser;
use daymark_api::etcdserverpb::{ResponseHeader, StatusResponse};
use daymark_benches::cli::{BenchArgs, run};
use fake_server::{Call, FakeServer};
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

/// Runs `bench` with exactly these words.
fn run_words<'a>(words: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
    run(&Cli::try_parse_from(["bench"].into_iter().chain(words))?.bench)
}

/// Runs `bench` with these words; returns its outcome and the JSON report.
fn bench(server: &FakeServer, words: &str) -> (anyhow::Result<()>, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let report = dir.path().join("report.json");
    let address = server.address();
    let fixed = ["--endpoints", &address, "--json", report.to_str().expect("plain path")];
    // An empty key is written ''.
    let words = words.split_whitespace().map(|word| if word == "''" { "" } else { word });
    let outcome = run_words(words.chain(fixed));
    let json = std::fs::read(&report).expect("a report");
    (outcome, serde_json::from_slice(&json).expect("valid JSON"))
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

fn answer_status(call: Call) {
    assert_eq!(call.path, "/etcdserverpb.Maintenance/Status");
    call.answer(&StatusResponse { header: header(1), version: "3.6.0".to_owned(), ..Default::default() });
}
