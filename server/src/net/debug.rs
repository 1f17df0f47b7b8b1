//! `/debug/vars` in the form of Go's expvar: how the process was started, its memory and its place in raft. Only what
//! exists here: Go's memory statistics are mostly about its garbage collector.

use std::fmt::Write;

use serde_json::json;

use super::Condition;
use crate::metrics::process::Process;

/// The page.
pub(crate) fn vars(condition: &Condition) -> String {
    let process = Process::read();
    let arguments: Vec<String> = std::env::args_os().map(|text| text.to_string_lossy().into_owned()).collect();
    let raft = &condition.raft;
    let status = json!({
        "id": format!("{:x}", raft.member_id),
        "term": raft.term,
        "commit": raft.committed_index,
        "lead": format!("{:x}", raft.leader),
        "raftState": if raft.is_leader { "StateLeader" } else { "StateFollower" },
        "applied": raft.applied_index,
    });
    let mut page = String::from("{\n");
    for (name, value, end) in [
        ("cmdline", json!(arguments), ",\n"),
        ("file_descriptor_limit", json!(process.files_max), ",\n"),
        ("memstats", json!({ "Sys": process.resident_bytes }), ",\n"),
        ("raft.status", status, "\n}\n"),
    ] {
        // Writing to a string does not fail.
        let _ = write!(page, "\"{name}\": {value}{end}");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::super::RaftCondition;
    use super::*;

    #[test]
    fn the_page_is_json_with_the_usual_names() {
        let raft = RaftCondition {
            member_id: 0xab,
            term: 3,
            committed_index: 9,
            applied_index: 8,
            leader: 0,
            is_leader: false,
        };
        let page = vars(&Condition { raft, ..Condition::default() });
        let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        let names: Vec<&String> = page.as_object().expect("an object").keys().collect();
        assert_eq!(names, ["cmdline", "file_descriptor_limit", "memstats", "raft.status"]);
        let status = r#"{"id":"ab","term":3,"commit":9,"lead":"0","raftState":"StateFollower","applied":8}"#;
        assert_eq!(page["raft.status"], serde_json::from_str::<serde_json::Value>(status).expect("JSON"));
        assert!(page["memstats"]["Sys"].as_u64() > Some(1 << 20) && page["file_descriptor_limit"].as_u64() > Some(0));
    }
}
