//! The judge of the performance guard: instruction counts of hot paths beside those that were recorded. Counting itself is
//! `benches/guard.rs`, under valgrind: on a machine without hardware counters nothing else repeats to a percent.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What the functions are called whose instructions are counted.
pub const FUNCTION_PREFIX: &str = "guard_";

/// Instructions for one operation of each path.
pub type Counts = BTreeMap<String, f64>;

/// The recorded counts, as a file of the repository.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Growth in percent that passes.
    pub tolerance_percent: f64,
    /// What the code was compiled with: another compiler counts anew.
    pub rustc: String,
    pub instructions: Counts,
}

impl Record {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or is no record.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no record of counts", path.display()))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Compares what was measured with what is recorded: a line for each path.
    ///
    /// # Errors
    /// A path costs more than its tolerance allows, or is not measured, or not recorded.
    pub fn check(&self, measured: &Counts) -> Result<String> {
        let (mut lines, mut grown) = (String::new(), Vec::new());
        for (path, &now) in measured {
            let Some(&then) = self.instructions.get(path) else {
                grown.push(format!("{path} is not recorded"));
                continue;
            };
            let percent = (now / then - 1.0) * 100.0;
            let verdict = match percent {
                grew if grew > self.tolerance_percent => "GREW",
                fell if fell < -self.tolerance_percent => "fell: record it, so that it stays",
                _ => "",
            };
            writeln!(lines, "{path:28} {then:12.0} -> {now:12.0} {percent:+7.2} %  {verdict}")?;
            if percent > self.tolerance_percent {
                grown.push(format!("{path} takes {now:.0} instructions instead of {then:.0} ({percent:+.2} %)"));
            }
        }
        let gone = self.instructions.keys().filter(|path| !measured.contains_key(*path));
        grown.extend(gone.map(|path| format!("{path} was not measured")));
        if grown.is_empty() {
            return Ok(lines);
        }
        bail!(
            "{lines}\n{}\nMake it cheaper again; or, where the cost is wanted, record it with `scripts/guard.sh --record` and \
             say in the commit what it is for.",
            grown.join("\n")
        );
    }
}

/// Instructions that ran within each of our functions, with those that it called, out of a profile of callgrind.
///
/// A function's part begins with `fn=(id) name`, or `fn=(id)` where the name was told before. Its lines are a place and a
/// number; the line after `calls=` is what the call took in all.
pub fn parse_profile(profile: &str) -> BTreeMap<String, u64> {
    let (mut names, mut counts) = (BTreeMap::new(), BTreeMap::new());
    let mut path = None;
    for line in profile.lines() {
        if let Some(function) = line.strip_prefix("fn=").or_else(|| line.strip_prefix("cfn=")) {
            let (id, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(id.to_owned(), name.to_owned());
            }
            if line.starts_with("fn=") {
                let name = names.get(id).and_then(|name| name.strip_prefix(FUNCTION_PREFIX));
                path = name.map(str::to_owned);
            }
        } else if let (Some(path), true) = (&path, line.starts_with(|first: char| "0123456789+-*".contains(first))) {
            let count: Option<u64> = line.split_ascii_whitespace().nth(1).and_then(|count| count.parse().ok());
            *counts.entry(path.clone()).or_default() += count.unwrap_or(0);
        }
    }
    counts
}

/// All instructions of a profile.
pub fn total(profile: &str) -> Option<u64> {
    let field = |name: &str| profile.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    field("summary:").or_else(|| field("totals:"))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, f64)]) -> Counts {
        pairs.iter().map(|(path, count)| ((*path).to_owned(), *count)).collect()
    }

    fn record() -> Record {
        let instructions = counts(&[("get", 2000.0), ("put", 1000.0)]);
        Record { tolerance_percent: 5.0, rustc: "1".into(), instructions }
    }

    #[test]
    fn what_grew_beyond_the_tolerance_is_named() {
        record().check(&counts(&[("get", 2099.0), ("put", 1000.0)])).expect("within the tolerance");
        let refused = record().check(&counts(&[("get", 2101.0), ("put", 1000.0)])).expect_err("too slow").to_string();
        assert!(refused.contains("get takes 2101 instructions instead of 2000 (+5.05 %)"), "{refused}");
        assert!(refused.contains("scripts/guard.sh --record") && !refused.contains("put takes"), "{refused}");
    }

    #[test]
    fn what_fell_passes_and_asks_to_be_recorded() {
        let passed = record().check(&counts(&[("get", 1000.0), ("put", 1000.0)])).expect("faster");
        assert!(passed.contains("-50.00 %  fell: record it"), "{passed}");
    }

    #[test]
    fn a_path_that_is_missing_on_either_side_is_refused() {
        let refused = record().check(&counts(&[("get", 2000.0)])).expect_err("missing").to_string();
        assert!(refused.contains("put was not measured"), "{refused}");
        let more = counts(&[("get", 2000.0), ("put", 1000.0), ("new", 1.0)]);
        assert!(record().check(&more).expect_err("unknown").to_string().contains("new is not recorded"));
    }

    #[test]
    fn profiles_tell_what_ran_within_each_function() {
        let profile = "# callgrind format\nevents: Ir\n\nfl=(1) a.rs\nfn=(1) main\n5 900\ncfn=(2) guard_put\ncalls=1 0 \n5 350\n\n\
                       fn=(2)\n0 100\n+3 40\ncfn=(3) encode\ncalls=7 0 \n* 210\n\nfn=(4) guard_get\n12 60\n\nfn=(3)\n1 210\n\n\
                       fn=(2)\n-2 5\ntotals: 1800\n";
        let expected = [("get".to_owned(), 60), ("put".to_owned(), 355)];
        assert_eq!(parse_profile(profile), expected.into());
        assert_eq!(total(profile), Some(1800));
        assert_eq!(total("events: Ir\n"), None);
    }
}
