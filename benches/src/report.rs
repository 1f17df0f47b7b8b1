//! What a run has shown, as text and as JSON; and what it cost the server and the harness.

use std::{collections::BTreeMap, fmt::Write as _, fs, time::SystemTime};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cli::CommonArgs,
    driver::Outcome,
    histogram::{KindLatency, Latency},
    proc::{Sample, Usage},
    target::{self, Member},
};

/// Use of processors and memory over a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cost {
    pub servers: Vec<ProcessCost>,
    pub harness: ProcessCost,
}

/// Use of one process over a run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ProcessCost {
    pub pid: u32,
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// CPU time in microseconds for each successful operation.
    pub cpu_micros_per_op: f64,
    pub voluntary_switches: u64,
    pub voluntary_switches_per_op: f64,
    /// Bytes that it had the disk write.
    pub written_bytes: u64,
    pub resident_bytes_before: u64,
    pub resident_bytes_after: u64,
    /// Largest since the process began.
    pub resident_bytes_peak: u64,
}

/// The first of two looks.
pub struct Before {
    servers: Vec<(u32, Usage)>,
    harness: Usage,
}

impl Cost {
    /// CPU time of all servers.
    pub fn server_cpu_seconds(&self) -> f64 {
        self.servers.iter().map(|server| server.user_seconds + server.system_seconds).sum()
    }

    pub fn before(pids: &[u32]) -> Result<Before> {
        let servers = pids.iter().map(|&pid| Ok((pid, Usage::of(pid)?))).collect::<Result<_>>()?;
        Ok(Before { servers, harness: Usage::of_self()? })
    }
}

impl Before {
    /// The second look, after `ops` successful operations.
    pub fn after(self, ops: u64) -> Result<Cost> {
        let harness = ProcessCost::between(std::process::id(), self.harness, Usage::of_self()?, ops);
        let server = |(pid, before)| Ok(ProcessCost::between(pid, before, Usage::of(pid)?, ops));
        Ok(Cost { servers: self.servers.into_iter().map(server).collect::<Result<_>>()?, harness })
    }
}

impl ProcessCost {
    fn between(pid: u32, before: Usage, after: Usage, ops: u64) -> Self {
        let per_op = |sum: f64| if ops == 0 { 0.0 } else { sum / ops as f64 };
        // A thread that has ended takes its switches out of the sum.
        let voluntary_switches = after.voluntary_switches.saturating_sub(before.voluntary_switches);
        Self {
            pid,
            user_seconds: after.user_seconds - before.user_seconds,
            system_seconds: after.system_seconds - before.system_seconds,
            cpu_micros_per_op: per_op((after.cpu_seconds() - before.cpu_seconds()) * 1e6),
            voluntary_switches,
            voluntary_switches_per_op: per_op(voluntary_switches as f64),
            written_bytes: after.written_bytes.saturating_sub(before.written_bytes),
            resident_bytes_before: before.resident_bytes,
            resident_bytes_after: after.resident_bytes,
            resident_bytes_peak: after.resident_bytes_peak,
        }
    }
}

/// Everything about one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub command: &'static str,
    pub unix_seconds: u64,
    pub endpoints: Vec<String>,
    pub conns: u32,
    pub clients: u32,
    pub threads: u32,
    /// Scheduled operations per second; 0: closed loop.
    pub rate: f64,
    pub seed: u64,
    /// What only this sub-command has.
    pub settings: Value,
    pub elapsed_seconds: f64,
    pub succeeded: u64,
    pub failed: u64,
    pub per_second: f64,
    pub latency_micros: Latency,
    pub errors: BTreeMap<String, u64>,
    pub answer_bytes: u64,
    pub answer_keys: u64,
    /// How often operations were begun again before they succeeded.
    pub retries: u64,
    pub succeeded_by_second: Vec<u64>,
    /// The longest latency among the operations that ended in each second.
    pub slowest_micros_by_second: Vec<f64>,
    /// Where a load has several kinds of operations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kinds: BTreeMap<&'static str, KindLatency>,
    /// The servers of --pid, all together, at the end of each second.
    pub samples: Vec<Sample>,
    #[serde(flatten)]
    pub cost: Cost,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<WatchReport>,
    /// The servers after the run; empty if they could not be asked.
    pub members: Vec<Member>,
}

/// What watchers saw while puts ran.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WatchReport {
    pub watchers: u32,
    pub streams: u32,
    pub connections: u32,
    pub prefixes: u32,
    pub created_in_seconds: f64,
    pub events: u64,
    pub events_expected: u64,
    pub events_missing: u64,
    pub events_repeated: u64,
    pub events_per_second: f64,
    /// All CPU time of the servers, the puts' included, for each event received; 0 without --pid.
    pub server_cpu_micros_per_event: f64,
    /// From what to what the latencies are.
    pub latency_is: &'static str,
    pub latency_micros: Latency,
}

impl Report {
    pub fn new(command: &'static str, args: &CommonArgs, settings: Value, outcome: Outcome) -> Self {
        let Outcome { recorder, elapsed, cost, samples } = outcome;
        Self {
            command,
            unix_seconds: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            endpoints: args.endpoints.clone(),
            conns: args.conns,
            clients: args.clients,
            threads: args.threads,
            rate: args.rate,
            seed: args.seed,
            settings,
            elapsed_seconds: elapsed.as_secs_f64(),
            succeeded: recorder.succeeded,
            failed: recorder.failed(),
            per_second: recorder.succeeded as f64 / elapsed.as_secs_f64(),
            latency_micros: recorder.latency(),
            kinds: recorder.by_kind(),
            slowest_micros_by_second: recorder.slowest.iter().map(|nanos| *nanos as f64 / 1e3).collect(),
            retries: recorder.retries,
            samples,
            errors: recorder.errors,
            answer_bytes: recorder.answer_bytes,
            answer_keys: recorder.answer_keys,
            succeeded_by_second: recorder.seconds,
            cost,
            watch: None,
            members: target::status(args).unwrap_or_default(),
        }
    }

    /// Prints the report, writes the JSON file, and fails if operations failed.
    pub fn publish(&self, args: &CommonArgs) -> Result<()> {
        print!("{}", self.text());
        if let Some(path) = &args.json {
            let json = serde_json::to_vec_pretty(self)?;
            fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if self.failed > 0 && !args.allow_errors {
            bail!("{} of {} operations failed", self.failed, self.failed + self.succeeded);
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, words: String| writeln!(text, "{name:<13}{words}").expect("a String takes all");
        let mode = if self.rate > 0.0 { format!("open loop at {}/s", self.rate) } else { "closed loop".to_owned() };
        line("load", format!("{}, {} connections, {} clients, {mode}", self.command, self.conns, self.clients));
        for m in &self.members {
            line(
                "server",
                format!(
                    "{}: version {}, revision {}, database {} ({} in use)",
                    m.endpoint,
                    m.version,
                    m.revision,
                    mebibytes(m.db_size_bytes.unsigned_abs()),
                    mebibytes(m.db_size_in_use_bytes.unsigned_abs()),
                ),
            );
        }
        line("done", format!("{} operations in {:.2} s", self.succeeded, self.elapsed_seconds));
        line("throughput", format!("{:.0}/s", self.per_second));
        line("latency", self.latency_micros.text());
        for (kind, of_kind) in &self.kinds {
            line(kind, format!("{}: {}", of_kind.succeeded, of_kind.latency_micros.text()));
        }
        if self.retries > 0 {
            line(
                "retries",
                format!("{} ({:.3} per operation)", self.retries, self.retries as f64 / self.succeeded.max(1) as f64),
            );
        }
        if let Some(w) = &self.watch {
            line(
                "watch",
                format!(
                    "{} watchers of {} prefixes, {} streams, {} connections, created in {:.2} s",
                    w.watchers, w.prefixes, w.streams, w.connections, w.created_in_seconds
                ),
            );
            line(
                "events",
                format!(
                    "{} of {} ({:.0}/s), {} missing, {} repeated, {:.1} us server CPU per event",
                    w.events,
                    w.events_expected,
                    w.events_per_second,
                    w.events_missing,
                    w.events_repeated,
                    w.server_cpu_micros_per_event
                ),
            );
            line(w.latency_is, w.latency_micros.text());
        }
        if self.answer_keys > 0 {
            line("answers", format!("{} keys, {}", self.answer_keys, mebibytes(self.answer_bytes)));
        }
        line("errors", self.failed.to_string());
        for (error, count) in &self.errors {
            line("", format!("{count} x {error}"));
        }
        for server in &self.cost.servers {
            line("server", server.text());
        }
        line("harness", self.cost.harness.text());
        if let Some(warning) = self.warning() {
            line("note", warning);
        }
        text
    }

    /// Whether the harness weighed more than what it measured.
    fn warning(&self) -> Option<String> {
        let server: f64 = self.cost.servers.iter().map(|server| server.cpu_micros_per_op).sum();
        let harness = self.cost.harness.cpu_micros_per_op;
        (!self.cost.servers.is_empty() && harness > server).then(|| {
            format!("the harness used more CPU per operation ({harness:.1} us) than the server ({server:.1} us)")
        })
    }
}

impl ProcessCost {
    fn text(&self) -> String {
        format!(
            "pid {}: {:.1} us CPU per operation ({:.2} s user, {:.2} s system), {:.3} voluntary switches per operation, \
             resident {} -> {}, peak {}, {} written",
            self.pid,
            self.cpu_micros_per_op,
            self.user_seconds,
            self.system_seconds,
            self.voluntary_switches_per_op,
            mebibytes(self.resident_bytes_before),
            mebibytes(self.resident_bytes_after),
            mebibytes(self.resident_bytes_peak),
            mebibytes(self.written_bytes),
        )
    }
}

impl Latency {
    fn text(&self) -> String {
        let Self { mean, p50, p90, p99, p999, max } = *self;
        let parts = [("mean", mean), ("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p999), ("max", max)];
        parts.map(|(name, micros)| format!("{name} {:.3} ms", micros / 1e3)).join(", ")
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_the_difference_of_two_looks() {
        let before = Usage { user_seconds: 1.0, system_seconds: 0.5, voluntary_switches: 10, ..Usage::default() };
        let after = Usage { user_seconds: 3.0, system_seconds: 1.5, voluntary_switches: 510, ..before };
        let cost = ProcessCost::between(7, before, after, 100_000);
        assert!((cost.cpu_micros_per_op - 30.0).abs() < 1e-9);
        assert_eq!(cost.voluntary_switches, 500);
        assert_eq!(ProcessCost::between(7, before, after, 0).cpu_micros_per_op, 0.0);
    }
}
