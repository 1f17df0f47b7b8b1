//! Settings of the log as values. Opens nothing.

use std::path::PathBuf;
use std::time::Duration;

use super::flags::Given;
use super::truth;

/// Where and what is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    pub level: LogLevel,
    pub outputs: Vec<LogOutput>,
    /// One JSON object a line, else text for people.
    pub json: bool,
    /// Of the one file among the outputs.
    pub rotation: Option<LogRotation>,
}

/// Least severity that is logged; nothing is logged at panic, and at fatal only what ends the process.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
}

/// One target of log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogOutput {
    Stderr,
    Stdout,
    File(PathBuf),
}

/// When a log file is put aside and what becomes of those that were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// Size at which a file is put aside.
    pub file_bytes_max: u64,
    /// Age at which one that was put aside is removed; `None`: never.
    pub age_max: Option<Duration>,
    /// Files put aside that are kept; `None`: all.
    pub files_max: Option<usize>,
}

impl LogOptions {
    /// Values and warnings, or what is wrong.
    pub(super) fn from_given(given: &Given, warnings: &mut Vec<String>) -> Result<Self, String> {
        match given.text("logger") {
            "zap" => {}
            "capnslog" => return Err("--logger=capnslog is removed in v3.5; use zap".into()),
            other => return Err(format!("unknown logger option {other:?}; --logger takes zap")),
        }
        let mut outputs = outputs(given, warnings)?;
        outputs.sort_by_key(|output| format!("{output:?}"));
        outputs.dedup();
        let rotation = match truth(given, "enable-log-rotation") {
            true => Some(rotation(given.text("log-rotation-config-json"), &outputs, warnings)?),
            false => None,
        };
        let json = match given.text("log-format") {
            "json" | "" => true,
            "console" => false,
            other => {
                return Err(format!("--log-format: unknown log format: {other}, supported values json, console"));
            }
        };
        Ok(Self {
            level: level(given.text("log-level")).map_err(|why| format!("--log-level: {why}"))?,
            outputs,
            json,
            rotation,
        })
    }
}

/// By name, as zap spells them.
pub fn level(text: &str) -> Result<LogLevel, String> {
    match text {
        "debug" | "DEBUG" => Ok(LogLevel::Debug),
        "info" | "INFO" | "" => Ok(LogLevel::Info),
        "warn" | "WARN" => Ok(LogLevel::Warn),
        "error" | "ERROR" => Ok(LogLevel::Error),
        "dpanic" | "DPANIC" | "panic" | "PANIC" | "fatal" | "FATAL" => Ok(LogLevel::Fatal),
        other => Err(format!("unrecognized level: {other:?}")),
    }
}

fn outputs(given: &Given, warnings: &mut Vec<String>) -> Result<Vec<LogOutput>, String> {
    let names: Vec<&str> = given.text("log-outputs").split(',').collect();
    if names.len() > 1 && names.contains(&"default") {
        return Err("multi logoutput for \"default\" is not supported yet; name stderr in --log-outputs".into());
    }
    if names.contains(&"/dev/null") {
        return Ok(Vec::new());
    }
    let mut outputs = Vec::new();
    for name in names {
        outputs.push(match name {
            "default" | "stderr" => LogOutput::Stderr,
            "stdout" => LogOutput::Stdout,
            // Under systemd, standard error is the journal.
            "systemd/journal" => {
                warnings.push("--log-outputs: systemd/journal: standard error is used, which systemd reads".into());
                LogOutput::Stderr
            }
            "" => return Err("--log-outputs: empty output; use stderr, stdout or a file path".into()),
            path => LogOutput::File(PathBuf::from(path)),
        });
    }
    Ok(outputs)
}

/// As JSON: `maxsize` in MB, `maxage` in days, `maxbackups`, `localtime`, `compress`.
fn rotation(text: &str, outputs: &[LogOutput], warnings: &mut Vec<String>) -> Result<LogRotation, String> {
    let files = outputs.iter().filter(|output| matches!(output, LogOutput::File(_))).count();
    if files != 1 {
        return Err("--log-outputs requires a single file path when --log-rotate-config-json is defined".into());
    }
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| {
        format!("improperly formatted log rotation config: {error}; correct --log-rotation-config-json")
    })?;
    let fields = value.as_object().ok_or("invalid log rotation config: not an object")?;
    let number = |name: &str| match fields.get(name) {
        None | Some(serde_json::Value::Null) => Ok(0),
        Some(value) => {
            value.as_u64().ok_or(format!("invalid log rotation config: {name} must be a whole number: {value}"))
        }
    };
    for name in ["localtime", "compress"] {
        match fields.get(name) {
            None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => {}
            Some(serde_json::Value::Bool(true)) => {
                warnings.push(format!(
                    "--log-rotation-config-json: {name} has no effect: names are in UTC and files stay as they are"
                ));
            }
            Some(value) => return Err(format!("invalid log rotation config: {name} must be true or false: {value}")),
        }
    }
    let file_megabytes = match number("maxsize")? {
        0 => DEFAULT_FILE_MEGABYTES,
        given => given,
    };
    Ok(LogRotation {
        file_bytes_max: file_megabytes.saturating_mul(1024 * 1024),
        age_max: Some(number("maxage")?)
            .filter(|days| *days > 0)
            .map(|days| Duration::from_secs(days.saturating_mul(86_400))),
        files_max: Some(number("maxbackups")?).filter(|count| *count > 0).map(|count| count as usize),
    })
}

/// etcd's, where the size is left out.
const DEFAULT_FILE_MEGABYTES: u64 = 100;

#[cfg(test)]
mod tests {
    use super::super::flags::{Parsed, parse};
    use super::*;

    fn options(arguments: &[&str]) -> Result<(LogOptions, Vec<String>), String> {
        let Ok(Parsed::Start(given)) = parse(arguments.iter().map(|a| (*a).to_owned())) else {
            panic!("{arguments:?}")
        };
        let mut warnings = Vec::new();
        LogOptions::from_given(&given, &mut warnings).map(|options| (options, warnings))
    }

    #[test]
    fn outputs_are_sorted_and_each_is_there_once() {
        let (options, _) = options(&["--log-outputs=stdout,stderr,stdout,f", "--log-format=console"]).expect("options");
        assert_eq!(options.outputs, [LogOutput::File("f".into()), LogOutput::Stderr, LogOutput::Stdout]);
        assert!(!options.json && options.rotation.is_none());
        assert_eq!(self::options(&["--log-outputs=a,/dev/null"]).expect("nowhere").0.outputs, []);
    }

    #[test]
    fn what_is_wrong_is_said_in_etcds_words() {
        for (arguments, words) in [
            (&["--logger=x"][..], "unknown logger option \"x\""),
            (&["--log-format=x"], "unknown log format: x"),
            (&["--log-outputs=default,stdout"], "multi logoutput for \"default\""),
            (&["--log-outputs=a,"], "empty output"),
            (&["--enable-log-rotation"], "requires a single file path"),
            (&["--enable-log-rotation", "--log-outputs=a,b"], "requires a single file path"),
            (&["--enable-log-rotation", "--log-outputs=a", "--log-rotation-config-json={"], "improperly formatted"),
            (
                &["--enable-log-rotation", "--log-outputs=a", "--log-rotation-config-json={\"maxsize\":true}"],
                "invalid log rotation config: maxsize",
            ),
        ] {
            let error = options(arguments).expect_err(words);
            assert!(error.contains(words), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn rotation_has_etcds_units() {
        let json = "--log-rotation-config-json={\"maxsize\":2,\"maxage\":3,\"maxbackups\":4,\"compress\":true}";
        let (options, warnings) = options(&["--enable-log-rotation", "--log-outputs=a", json]).expect("options");
        let rotation = options.rotation.expect("rotation");
        assert_eq!(rotation.file_bytes_max, 2 << 20);
        assert_eq!(rotation.age_max, Some(Duration::from_secs(3 * 86_400)));
        assert_eq!(rotation.files_max, Some(4));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let (options, _) = self::options(&["--enable-log-rotation", "--log-outputs=a"]).expect("defaults");
        let unlimited = LogRotation { file_bytes_max: 100 << 20, age_max: None, files_max: None };
        assert_eq!(options.rotation, Some(unlimited));
    }
}
