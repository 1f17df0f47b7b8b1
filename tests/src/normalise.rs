//! What may differ between two servers that agree, taken out of etcdctl's answers before they are compared. Everything
//! that is excused is named here, in one place; whatever is not here must be equal to the byte.

use serde_json::Value;

use crate::ctl::Answer;

/// A difference between etcd and Daymark that is wanted.
struct Difference {
    /// Commands whose answers it may show in.
    applies: fn(&[String]) -> bool,
    /// Why Daymark does not do as this etcd does.
    #[allow(dead_code, reason = "the argument is for the reader")]
    why: &'static str,
    /// JSON members whose values are not compared then.
    members: &'static [&'static str],
    /// Names in the `fields` format whose values are not compared then.
    fields: &'static [&'static str],
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        applies: |args| args.iter().any(|a| a.starts_with("--keys-only")),
        why: "etcd 3.7 answers keys-only reads from its index, where the lease is 0; 3.5.1 reads the record",
        members: &["lease"],
        fields: &["Lease"],
    },
    Difference {
        applies: |args| args.starts_with(&["lease".into(), "timetolive".into()]),
        why: "the remaining time depends on when the command ran",
        members: &["ttl"],
        fields: &["TTL"],
    },
    Difference {
        applies: |args| args.starts_with(&["endpoint".into(), "status".into()]),
        why: "versions, sizes and raft's positions are each server's own",
        members: &[
            "version",
            "dbSize",
            "dbSizeInUse",
            "raftIndex",
            "raftAppliedIndex",
            "raftTerm",
            "storageVersion",
            "dbSizeQuota",
            "downgradeInfo",
        ],
        fields: &[
            "Version",
            "DBSize",
            "DBSizeInUse",
            "RaftIndex",
            "RaftTerm",
            "RaftAppliedIndex",
            "StorageVersion",
            "DBSizeQuota",
            "DowngradeTargetVersion",
            "DowngradeEnabled",
        ],
    },
    Difference {
        applies: |_| true,
        why: "identities are derived from ports, terms count elections, a health check takes its time",
        members: &["cluster_id", "member_id", "raft_term", "took"],
        fields: &["ClusterID", "MemberID", "RaftTerm", "Took"],
    },
];

const ERASED: &str = "#";

/// Texts of one server with the placeholders that stand for them: ids it chose, its addresses.
pub type Names = Vec<(String, String)>;

/// An answer without what may differ.
pub fn answer(args: &[String], answer: &Answer, names: &Names) -> Answer {
    let stderr: String =
        rename(&answer.stderr, names).lines().filter(|l| !is_client_log(l)).map(with_newline).collect();
    // etcdctl itself broke down: where in its memory is not the server's doing.
    let stderr = if stderr.starts_with("panic: ") { "panic\n".to_owned() } else { stderr };
    Answer { code: answer.code, stdout: lines(args, &answer.stdout, names), stderr: cut_durations(&stderr) }
}

/// What a watch printed: its events in order, however they were spread over responses, and everything else it said.
pub fn watch(args: &[String], answer: &Answer, names: &Names) -> Answer {
    let mut events = Vec::new();
    let mut rest = Vec::new();
    for line in answer.stdout.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(Value::Object(response)) => {
                events.extend(response.get("Events").and_then(Value::as_array).cloned().unwrap_or_default());
                if response.get("Canceled") == Some(&Value::Bool(true)) {
                    rest.push(format!("canceled, compact revision {:?}", response.get("CompactRevision")));
                }
            }
            _ => rest.push(line.to_owned()),
        }
    }
    // Several watchers on one stream: the order between them is nobody's promise.
    if args.iter().any(|a| a == "-i") {
        events.sort_by_key(ToString::to_string);
        rest.sort();
    }
    // How often progress is reported is a matter of time; what is reported is not.
    rest.dedup_by(|a, b| a == b && a.starts_with("progress notify"));
    let mut stdout: String = events.iter().map(|e| format!("{e}\n")).collect();
    stdout.extend(rest.iter().map(|l| with_newline(l)));
    self::answer(args, &Answer { stdout, code: None, stderr: answer.stderr.clone() }, names)
}

fn rename(text: &str, names: &Names) -> String {
    names.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// etcdctl's own log lines: texts of its retry loop, with times and addresses.
fn is_client_log(line: &str) -> bool {
    line.starts_with('{')
}

fn with_newline(line: &str) -> String {
    format!("{line}\n")
}

fn lines(args: &[String], stdout: &str, names: &Names) -> String {
    let excused: Vec<_> = DIFFERENCES.iter().filter(|d| (d.applies)(args)).collect();
    let status = args.starts_with(&["endpoint".into(), "status".into()]);
    let mut out = String::new();
    for line in stdout.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(mut value) if value.is_object() || value.is_array() => {
                erase(&mut value, &excused, names);
                out.push_str(&value.to_string());
            }
            _ if status && line.split(", ").count() > 5 => out.push_str(&status_columns(&rename(line, names))),
            _ => out.push_str(&field(&rename(line, names), &excused)),
        }
        out.push('\n');
    }
    cut_durations(&out)
}

fn erase(value: &mut Value, excused: &[&Difference], names: &Names) {
    match value {
        Value::Object(object) => {
            object.retain(|name, _| !excused.iter().any(|d| d.members.contains(&name.as_str())));
            object.values_mut().for_each(|value| erase(value, excused, names));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| erase(item, excused, names)),
        Value::String(text) => *text = rename(text, names),
        Value::Number(number) => {
            let text = number.to_string();
            if let Some((_, placeholder)) = names.iter().find(|(name, _)| *name == text) {
                *value = Value::String(placeholder.clone());
            }
        }
        _ => {}
    }
}

/// A line `"Name" : value` of the `fields` format.
fn field(line: &str, excused: &[&Difference]) -> String {
    let Some((name, _)) = line.split_once(" : ") else { return line.to_owned() };
    let bare = name.trim().trim_matches('"');
    let erased = excused.iter().any(|d| d.fields.contains(&bare));
    if erased { format!("{name} : {ERASED}") } else { line.to_owned() }
}

/// What must be equal of `endpoint, id, version, size, leader, learner, term, index, applied, errors`, or of the sixteen
/// columns that 3.7 makes of them.
fn status_columns(line: &str) -> String {
    let columns: Vec<_> = line.split(", ").collect();
    let kept = match columns.len() {
        16 => &[0, 1, 8, 9, 13, 14, 15][..],
        _ => &[0, 1, 4, 5],
    };
    let kept: Vec<_> = kept.iter().map(|i| columns.get(*i).copied().unwrap_or("missing")).collect();
    format!("{} columns: {}", columns.len(), kept.join(", "))
}

/// `took = 1.5ms` and `already expired` times differ from run to run.
fn cut_durations(text: &str) -> String {
    let cut = |line: &str| cut_took(&cut_after(&cut_remaining(line), "took = "));
    text.lines().map(|line| with_newline(&cut(line))).collect()
}

fn cut_after(line: &str, marker: &str) -> String {
    line.find(marker).map_or_else(|| line.to_owned(), |at| format!("{}{marker}{ERASED}", &line[..at]))
}

/// `took 704.3us. (the rest)`.
fn cut_took(line: &str) -> String {
    let Some((before, after)) = line.split_once("took ") else { return line.to_owned() };
    match after.split_once(". (") {
        Some((_, rest)) => format!("{before}took {ERASED}. ({rest}"),
        None => line.to_owned(),
    }
}

/// `granted with TTL(100s), remaining(99s)`.
fn cut_remaining(line: &str) -> String {
    let Some((before, after)) = line.split_once("remaining(") else { return line.to_owned() };
    let rest = after.split_once(')').map_or("", |(_, rest)| rest);
    format!("{before}remaining({ERASED}){rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn normal(command: &str, stdout: &str) -> String {
        let given = Answer { code: Some(0), stdout: stdout.into(), stderr: String::new() };
        answer(&args(command), &given, &vec![("abc".into(), "<lease L>".into())]).stdout
    }

    #[test]
    fn ids_and_terms_go_and_revisions_stay() {
        let json = r#"{"header":{"cluster_id":1,"member_id":2,"revision":5,"raft_term":2},"kvs":[{"lease":7}]}"#;
        assert_eq!(normal("get a", json), "{\"header\":{\"revision\":5},\"kvs\":[{\"lease\":7}]}\n");
        assert_eq!(normal("get a --keys-only", json), "{\"header\":{\"revision\":5},\"kvs\":[{}]}\n");
    }

    #[test]
    fn field_lines_keep_the_version_of_a_key_but_not_of_a_server() {
        assert_eq!(normal("get a", "\"Version\" : 3"), "\"Version\" : 3\n");
        assert_eq!(normal("endpoint status", "\"Version\" : \"3.5.1\""), "\"Version\" : #\n");
    }

    #[test]
    fn names_and_times_are_replaced() {
        let line = "lease abc granted with TTL(100s), remaining(99s)";
        assert_eq!(normal("lease timetolive", line), "lease <lease L> granted with TTL(100s), remaining(#)\n");
        assert_eq!(normal("endpoint health", "x is healthy: took = 1.2ms"), "x is healthy: took = #\n");
    }

    #[test]
    fn watch_responses_are_compared_by_their_events() {
        let one = "{\"Header\":{\"revision\":3},\"Events\":[1,2]}\n";
        let two = "{\"Header\":{\"revision\":2},\"Events\":[1]}\n{\"Header\":{\"revision\":3},\"Events\":[2]}\n";
        let of = |text: &str| {
            let given = Answer { code: None, stdout: text.into(), stderr: String::new() };
            watch(&args("watch a"), &given, &Vec::new()).stdout
        };
        assert_eq!(of(one), of(two));
        assert_ne!(of(one), of("{\"Events\":[2,1]}\n"));
    }
}
