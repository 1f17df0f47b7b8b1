//! What the report reads: the JSON of `scripts/compare.py`, of `scripts/aged.py` and of the commands of `daymark bench`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

/// All of the files.
#[derive(Debug, Default)]
pub struct Inputs {
    pub comparisons: Vec<Comparison>,
    pub runs: Vec<Run>,
}

/// Values of all rounds, by side.
pub type Sides = BTreeMap<String, Vec<f64>>;

/// What `compare.py` and `aged.py` write.
#[derive(Clone, Debug, Deserialize)]
pub struct Comparison {
    #[serde(default)]
    pub compare: About,
    /// By load and figure.
    pub loads: BTreeMap<String, BTreeMap<String, Sides>>,
    /// Operations in each second, by load and side.
    #[serde(default)]
    pub series: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
    #[serde(default)]
    pub floor: Option<Floor>,
}

/// When and with what.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct About {
    #[serde(default)]
    pub rounds: u32,
    #[serde(default)]
    pub cores: u32,
    #[serde(default)]
    pub kernel: String,
    #[serde(default)]
    pub unix_seconds: u64,
    #[serde(default)]
    pub daymark: String,
    #[serde(default)]
    pub etcd: Option<String>,
}

/// Puts beside a server that answers at once.
#[derive(Clone, Debug, Deserialize)]
pub struct Floor {
    pub put_to_floor: f64,
    pub gate: f64,
    pub met: bool,
}

/// One run of a command of `daymark bench`.
#[derive(Clone, Debug, Deserialize)]
pub struct Run {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    pub command: String,
    pub unix_seconds: u64,
    pub conns: u32,
    pub clients: u32,
    pub elapsed_seconds: f64,
    pub succeeded: u64,
    pub failed: u64,
    pub per_second: f64,
    pub latency_micros: Latency,
    pub succeeded_by_second: Vec<f64>,
    #[serde(default)]
    pub slowest_micros_by_second: Vec<f64>,
    #[serde(default)]
    pub samples: Vec<Sample>,
    #[serde(default)]
    pub servers: Vec<Cost>,
    pub harness: Cost,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Sample {
    pub at_seconds: f64,
    pub cpu_seconds: f64,
    pub resident_bytes: f64,
    #[serde(default)]
    pub written_bytes: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Cost {
    pub cpu_micros_per_op: f64,
    #[serde(default)]
    pub resident_bytes_after: f64,
    #[serde(default)]
    pub written_bytes: f64,
}

impl Inputs {
    /// Reads the files, whichever of the forms each has.
    ///
    /// # Errors
    /// A file that cannot be read, or is of none of them.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut inputs = Self::default();
        for path in paths {
            let path = path.as_ref();
            let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            inputs.add(&name, &text).with_context(|| path.display().to_string())?;
        }
        Ok(inputs)
    }

    fn add(&mut self, name: &str, text: &[u8]) -> Result<()> {
        let value: Value = serde_json::from_slice(text).context("not JSON")?;
        match &value {
            Value::Object(fields) if fields.contains_key("loads") => {
                self.comparisons.push(serde_json::from_value(value).context("not as compare.py writes it")?);
            }
            Value::Object(fields) if fields.contains_key("command") => {
                let run: Run = serde_json::from_value(value).context("not as daymark bench writes it")?;
                self.runs.push(Run { name: name.to_owned(), ..run });
            }
            _ => bail!("neither of scripts/compare.py nor of daymark bench"),
        }
        Ok(())
    }
}

impl Comparison {
    /// The loads, those that everybody looks for first.
    pub fn load_names(&self) -> Vec<&str> {
        const FIRST: [&str; 4] = ["one-client", "puts", "gets", "serializable-gets"];
        let known = FIRST.into_iter().filter(|load| self.loads.contains_key(*load));
        let others = self.loads.keys().map(String::as_str).filter(|load| !FIRST.contains(load));
        known.chain(others).collect()
    }

    /// The sides of a load: the one that is compared with first.
    pub fn sides(&self, load: &str) -> Vec<String> {
        let mut names: Vec<String> = self.loads[load].values().flat_map(|sides| sides.keys().cloned()).collect();
        names.sort_by_key(|name| (place(name), name.clone()));
        names.dedup();
        names
    }

    /// Median over the rounds.
    pub fn median(&self, load: &str, figure: &str, side: &str) -> Option<f64> {
        median(self.loads.get(load)?.get(figure)?.get(side)?)
    }
}

/// Order of the sides: what is compared with, then Daymark.
fn place(side: &str) -> u8 {
    match side {
        "etcd" | "floor" | "empty" => 0,
        "daymark" | "put" | "aged" => 1,
        _ => 2,
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_those_of_an_even_or_odd_number() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn files_are_told_apart_by_their_form() {
        let mut inputs = Inputs::default();
        let compared =
            br#"{"compare": {"rounds": 1}, "loads": {"puts": {"p50_us": {"daymark": [1.0], "etcd": [3.0, 2.0]}},
            "one-client": {}}, "series": {"puts": {"etcd": [5, 6]}}}"#;
        inputs.add("c", compared).expect("a comparison");
        let comparison = &inputs.comparisons[0];
        assert_eq!(comparison.load_names(), ["one-client", "puts"]);
        assert_eq!(comparison.sides("puts"), ["etcd", "daymark"]);
        assert_eq!(comparison.median("puts", "p50_us", "etcd"), Some(2.5));
        assert_eq!(comparison.median("puts", "p50_us", "other"), None);
        for bad in [&b"[]"[..], b"{}", b"{\"loads\": 7}", b"{\"command\": \"put\"}", b"no"] {
            assert!(inputs.add("x", bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
