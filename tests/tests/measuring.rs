//! The scripts that measure, with numbers so small that they say nothing about speed: that they run to their end against
//! real servers, write what they promise, and leave nothing behind. What is fast is not asked here.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use daymark_tests::{etcd, process::Program, skip};
use serde_json::Value;

/// Seconds until a script is broken off; they take some.
const SCRIPT_SECONDS_MAX: &str = "300";

/// Runs a script with these words and a data directory of its own; returns what it printed and its JSON.
fn script(name: &str, words: &[&str]) -> (String, Value) {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, report) = (dir.path().join("data"), dir.path().join("report.json"));
    std::fs::create_dir(&data).expect("made");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join("scripts");
    let mut command = Command::new("timeout");
    // Interrupted, a script still stops its servers. -B: no compiled copies in the source tree.
    command
        .args(["--signal=INT", "--kill-after=60", SCRIPT_SECONDS_MAX, "python3", "-B"])
        .arg(scripts.join(name))
        .args(words)
        .stdin(Stdio::null());
    command.arg("--dir").arg(&data).arg("--json").arg(&report);
    command.arg("--daymark").arg(Program::daymark().binary);
    let ended = command.output().expect("timeout and python3 are there");
    let (printed, complaints) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{name}: {printed}\n{complaints}");
    let left: Vec<_> = std::fs::read_dir(&data).expect("readable").collect();
    assert!(left.is_empty(), "{name} left {left:?}");
    let json = std::fs::read(&report).expect("a report");
    (printed.into_owned(), serde_json::from_slice(&json).expect("JSON"))
}

fn first(report: &Value, load: &str, figure: &str, side: &str) -> f64 {
    let value = &report["loads"][load][figure][side][0];
    value.as_f64().unwrap_or_else(|| panic!("no {figure} of {side} in {load}: {}", report["loads"][load]))
}

#[test]
fn puts_are_compared_with_their_floor() {
    let words = ["--rounds", "1", "--floor", "5000", "--one-client", "300", "floor"];
    let (printed, report) = script("compare.py", &words);
    assert!(printed.contains("puts keep "), "{printed}");
    let share = report["floor"]["put_to_floor"].as_f64().expect("a share");
    let (put, floor) = (first(&report, "floor", "per_second", "put"), first(&report, "floor", "per_second", "floor"));
    assert!((share - put / floor).abs() < 1e-9, "{share} is not {put} / {floor}");
    assert_eq!(report["floor"]["met"], share >= 0.75);
    assert!(first(&report, "floor-one-client", "p50_us", "floor") > 0.0);
}

#[test]
fn every_other_load_runs_beside_etcd() {
    let Some(oracle) = etcd::any_oracle_or_skip("every_other_load_runs_beside_etcd") else { return };
    let mut loads = vec!["one-client", "gets", "restart", "lists", "keepalives", "leases"];
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok() {
        loads.push("contention");
    } else {
        skip::unable("contention in every_other_load_runs_beside_etcd", "strace is not installed");
    }
    let binary = oracle.binary.to_str().expect("plain path");
    let sizes = "--rounds 1 --total 3000 --reads 1000 --one-client 100 --list-keys 3000 --lists 2 --keepalives 1000 \
                 --renewed-leases 100 --leases 3000 --settle 0.5 --contended 2000";
    let words: Vec<_> = ["--etcd", binary].into_iter().chain(sizes.split_whitespace()).chain(loads).collect();
    let (_, report) = script("compare.py", &words);
    for side in ["etcd", "daymark"] {
        assert_eq!(first(&report, "puts", "errors", side), 0.0);
        assert!(first(&report, "puts", "disk_mb", side) > 0.0);
        for load in ["lists", "lists-restarted"] {
            assert!(first(&report, load, "seconds_per_list", side) > 0.0);
        }
        assert!(first(&report, "counts-restarted", "p50_us", side) > 0.0);
        assert!(first(&report, "keepalives", "per_second", side) > 0.0);
        assert!(first(&report, "leases", "resident_mb", side) > 0.0);
        assert!(first(&report, "restart", "after_kill_seconds", side) > 0.0);
    }
    if words.contains(&"contention") {
        let calls = first(&report, "contention", "all_calls_per_1000", "daymark");
        let waits = first(&report, "contention", "waits_per_1000", "daymark");
        assert!(waits > 0.0 && waits < calls, "{waits} waits of {calls} calls");
    }
}

#[test]
fn a_small_database_is_aged_and_measured() {
    let words = "--size 60M --seconds 2 --rounds 1 --keys 5000 --reads 2000 --hot-keys 1000 --settle 4";
    let (printed, report) = script("aged.py", &words.split_whitespace().collect::<Vec<_>>());
    assert!(report["aged"]["deleted"].as_f64() > Some(0.0), "{printed}");
    let (empty, aged) = (first(&report, "memory", "disk_mb", "empty"), first(&report, "memory", "disk_mb", "aged"));
    assert!(aged > 40.0 && aged > empty, "the aged one takes {aged} MB, the empty one {empty}");
    for side in ["empty", "aged"] {
        assert_eq!(first(&report, "full-load", "errors", side), 0.0);
        assert!(first(&report, "full-load", "p999_us", side) > 0.0);
        assert!(first(&report, "new-keys", "seconds", side) > 0.0);
        assert!(first(&report, "restart", "after_kill_seconds", side) > 0.0);
        assert!(first(&report, "memory", "peak_to_budget", side) > 0.0);
    }
}
