//! Log lines as etcd writes them: one JSON object a line (or text for people), on stderr, stdout or into files. Not a
//! place where anything is decided. What writes them is in `sink.rs`.

mod sink;

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogLevel, LogOptions, LogOutput};
use crate::limits;
use sink::Sink;

/// The sink of the process, and whether it writes to stderr.
static SINK: OnceLock<(Sink, bool)> = OnceLock::new();

/// Starts logging for the whole process. Fails if a log file cannot be opened or logging has been started before.
pub fn init(options: &LogOptions) -> io::Result<()> {
    let sink = Sink::start(&options.outputs, options.rotation.as_ref())?;
    let layer = LogLayer { level: level_filter(options.level), json: options.json, sink: sink.clone() };
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))
        .map_err(|error| io::Error::other(error.to_string()))?;
    // Only the first one gets here.
    let _ = SINK.set((sink, options.outputs.contains(&LogOutput::Stderr)));
    Ok(())
}

/// Waits until what was logged is written, before the process ends; not for long.
pub fn flush() {
    if let Some((sink, _)) = SINK.get() {
        sink.flush(limits::LOG_FLUSH_TIMEOUT);
    }
}

/// Lines that were given up because the outputs were too slow.
pub fn dropped_lines() -> u64 {
    SINK.get().map_or(0, |(sink, _)| sink.dropped())
}

/// Writes one line of level `fatal` to the outputs and in any case on stderr, whether or not logging has been started,
/// and waits until it is written: the process is about to end.
pub fn fatal(message: &str, error: &str, remedy: &str) {
    let mut line = format!("{{\"level\":\"fatal\",\"ts\":\"{}\",\"msg\":", timestamp(SystemTime::now()));
    push_json(&mut line, message);
    for (name, value) in [("error", error), ("remedy", remedy)] {
        if !value.is_empty() {
            let _ = write!(line, ",\"{name}\":");
            push_json(&mut line, value);
        }
    }
    line.push_str("}\n");
    let on_stderr = SINK.get().is_some_and(|(sink, on_stderr)| {
        sink.push(line.clone());
        sink.flush(limits::LOG_FLUSH_TIMEOUT) && *on_stderr
    });
    if !on_stderr {
        // Nobody is left to be told that stderr is gone.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// `2006-01-02T15:04:05.000000Z`, in UTC.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar (Hinnant's algorithm: years begin in March
/// so that the leap day comes last).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn level_filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        // What ends the process does not go through here.
        LogLevel::Fatal => LevelFilter::OFF,
    }
}

struct LogLayer {
    level: LevelFilter,
    json: bool,
    sink: Sink,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    /// Libraries speak of their inner life at info and below: they are heard from warnings on, except at debug level. What
    /// openraft warns of is every single attempt that did not reach a member, several times a second; the connections
    /// say it once.
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let target = metadata.target();
        let level = match () {
            () if target.starts_with("daymark") || self.level == LevelFilter::DEBUG => self.level,
            () if target.starts_with("openraft") => self.level.min(LevelFilter::ERROR),
            () => self.level.min(LevelFilter::WARN),
        };
        metadata.is_event() && *metadata.level() <= level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let now = timestamp(SystemTime::now());
        self.sink.push(if self.json { json_line(event, &now) } else { console_line(event, &now) });
    }
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// File and line; the file with its directory only, as zap does.
fn caller(metadata: &Metadata<'_>) -> String {
    let file = metadata.file().unwrap_or("unknown");
    let start = file.rmatch_indices('/').nth(1).map_or(0, |(position, _)| position + 1);
    format!("{}:{}", &file[start..], metadata.line().unwrap_or(0))
}

fn json_line(event: &Event<'_>, now: &str) -> String {
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let level = level_name(*metadata.level());
    let mut line = format!("{{\"level\":\"{level}\",\"ts\":\"{now}\",\"caller\":");
    push_json(&mut line, &caller(metadata));
    line.push_str(",\"msg\":");
    push_json(&mut line, &fields.message);
    line.push_str(&fields.json);
    line.push_str("}\n");
    line
}

fn console_line(event: &Event<'_>, now: &str) -> String {
    let metadata = event.metadata();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let rest = fields.json.strip_prefix(',').map(|json| format!("\t{{{json}}}")).unwrap_or_default();
    let message = fields.message.replace('\n', " ");
    format!("{now}\t{}\t{}\t{message}{rest}\n", level_name(*metadata.level()), caller(metadata))
}

fn push_json(line: &mut String, text: &str) {
    // A string always is JSON.
    line.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// Fields of one event: the message, and the others as `,"name":value`.
#[derive(Default)]
struct Fields {
    message: String,
    json: String,
}

impl Fields {
    fn raw(&mut self, field: &Field, value: impl std::fmt::Display) {
        let _ = write!(self.json, ",\"{}\":{value}", field.name());
    }

    fn text(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            let _ = write!(self.json, ",\"{}\":", field.name());
            push_json(&mut self.json, value);
        }
    }
}

impl Visit for Fields {
    /// A list of texts, as Rust shows it, is JSON, too.
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        match serde_json::from_str::<Vec<String>>(&text) {
            Ok(list) => self.raw(field, serde_json::Value::from(list)),
            Err(_) => self.text(field, &text),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.raw(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.raw(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.raw(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.raw(field, value);
        } else {
            self.text(field, &value.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_164_799, "2024-02-28T23:59:59.000000Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        assert!(timestamp(UNIX_EPOCH + Duration::from_micros(1_000_042)).ends_with(":01.000042Z"));
    }

    fn lines(json: bool, level: LogLevel, log: impl FnOnce()) -> Vec<String> {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let sink = Sink::start(&[LogOutput::File(path.clone())], None).expect("starts");
        let layer = LogLayer { level: level_filter(level), json, sink: sink.clone() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        assert!(sink.flush(Duration::from_secs(10)), "written");
        std::fs::read_to_string(path).expect("log").lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_line_is_one_json_object_with_typed_fields() {
        let lines = lines(true, LogLevel::Info, || {
            tracing::info!(target: "daymark_server", count = 3_u64, on = true, error = %"a \"b\"\nc", urls = ?["a", "b"], "it \"works\"");
        });
        assert_eq!(lines.len(), 1);
        let value: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
        assert_eq!(value["level"], "info");
        assert_eq!(value["msg"], "it \"works\"");
        assert_eq!(value["count"], 3);
        assert_eq!(value["on"], true);
        assert_eq!(value["urls"], serde_json::json!(["a", "b"]));
        assert_eq!(value["error"], "a \"b\"\nc");
        assert!(value["caller"].as_str().expect("caller").starts_with("logging/mod.rs:"), "{value}");
        let order: Vec<_> =
            ["level", "ts", "caller", "msg"].iter().map(|key| lines[0].find(&format!("\"{key}\""))).collect();
        assert!(order.is_sorted(), "{}", lines[0]);
    }

    #[test]
    fn levels_filter_and_libraries_are_heard_from_warnings_on() {
        let lines = lines(false, LogLevel::Info, || {
            tracing::debug!(target: "daymark_server", "too low");
            tracing::info!(target: "openraft", "a library's inner life");
            tracing::warn!(target: "openraft", "a peer that was not reached once more");
            tracing::warn!(target: "rustls", "a library's warning");
            tracing::error!(target: "daymark_raft", code = 7, "ours");
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].ends_with("\ta library's warning"));
        assert!(lines[1].contains("\terror\t") && lines[1].ends_with("\tours\t{\"code\":7}"), "{}", lines[1]);
    }
}
