//! Where the etcds are that answers are compared with, and the etcdctls that are run against them and Daymark. `test.sh`
//! puts etcd 3.5.1 and, where Go is installed, 3.7.1 into cache directories; etcdctl 3.4 is Debian's package.

use std::{
    env,
    path::{Path, PathBuf},
};

use crate::{
    ctl::Etcdctl,
    process::{Dialect, Program},
    skip,
};

const REMEDY_OLD: &str =
    "run ./test.sh, which installs it, or set DAYMARK_ETCD_DIR to a directory with etcd and etcdctl 3.5.1";
const REMEDY_NEW: &str = "install Go and run ./test.sh, which builds it";

/// The etcd 3.7.1 that Daymark must not be told from, or nothing after saying that `test` is skipped. Without Go it
/// cannot be there; with Go its absence is a failure on the gate.
pub fn oracle_or_skip(test: &str) -> Option<Program> {
    let binary = tool("etcd");
    if binary.is_file() {
        return Some(Program { binary, dialect: Dialect::Etcd });
    }
    report_missing(test, &binary);
    None
}

/// etcd 3.7.1, else 3.5.1, which knows less. `test` is reported as skipped when it gets the older one, or none.
pub fn any_oracle_or_skip(test: &str) -> Option<Program> {
    oracle_or_skip(&format!("{test} (against etcd 3.7.1)")).or_else(|| old_oracle_or_skip(test))
}

/// The etcd 3.5.1, or nothing after saying that `test` is skipped.
pub fn old_oracle_or_skip(test: &str) -> Option<Program> {
    let binary = old_directory().join("etcd");
    if !binary.is_file() {
        skip::missing_tool(test, &binary.display().to_string(), REMEDY_OLD);
        return None;
    }
    Some(Program { binary, dialect: Dialect::Etcd35 })
}

/// An etcd with the etcdctls that are run against it and Daymark.
pub struct Setting {
    /// What is compared with.
    pub oracle: Program,
    /// What asks.
    pub ctls: Vec<Etcdctl>,
}

/// Each etcd that is installed with the etcdctls of its time: 3.5.1 with 3.5.1 and Debian's 3.4, 3.7.1 with 3.7.1. The
/// missing ones are reported as skipped.
pub fn settings(test: &str) -> Vec<Setting> {
    let ctls = etcdctls(test);
    let of = |oracle: Option<Program>, versions: &[&str]| {
        let ctls: Vec<_> = ctls.iter().filter(|ctl| versions.contains(&ctl.version)).cloned().collect();
        oracle.map(|oracle| Setting { oracle, ctls })
    };
    let new = oracle_or_skip(&format!("{test} (against etcd 3.7.1)"));
    [of(old_oracle_or_skip(test), &["3.4", "3.5.1"]), of(new, &["3.7.1"])].into_iter().flatten().collect()
}

/// Every etcdctl that is installed: 3.7.1, 3.5.1 and Debian's 3.4. The missing ones are reported as skipped.
pub fn etcdctls(test: &str) -> Vec<Etcdctl> {
    let mut found = Vec::new();
    let older = [
        ("3.5.1", old_directory().join("etcdctl"), REMEDY_OLD),
        ("3.4", "/usr/bin/etcdctl".into(), "apt-get install etcd-client"),
    ];
    for (version, binary, remedy) in older {
        if binary.is_file() {
            found.push(Etcdctl { binary, version });
        } else {
            skip::missing_tool(test, &format!("etcdctl {version} ({})", binary.display()), remedy);
        }
    }
    let binary = tool("etcdctl");
    if binary.is_file() {
        found.push(Etcdctl { binary, version: "3.7.1" });
    } else {
        report_missing(test, &binary);
    }
    found
}

/// A program of etcd 3.7.1: `etcd`, `etcdctl` or `etcdutl`. It may not be there.
pub fn tool(name: &str) -> PathBuf {
    tools_directory().join("etcd-3.7.1").join(name)
}

/// Where Go's command is, if it is installed.
pub fn go() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([PathBuf::from("/usr/local/go/bin")]);
    folders.map(|folder| folder.join("go")).find(|go| go.is_file())
}

/// Where `test.sh` puts what the tests need: `DAYMARK_TOOLS_DIR`, by default `~/.cache/daymark-tools`.
pub fn tools_directory() -> PathBuf {
    if let Some(directory) = env::var_os("DAYMARK_TOOLS_DIR") {
        return directory.into();
    }
    let home = env::var_os("HOME").unwrap_or_else(|| "/root".into());
    Path::new(&home).join(".cache/daymark-tools")
}

fn old_directory() -> PathBuf {
    env::var_os("DAYMARK_ETCD_DIR").map_or_else(|| tools_directory().join("etcd-3.5.1"), PathBuf::from)
}

fn report_missing(test: &str, binary: &Path) {
    let what = binary.display().to_string();
    if go().is_some() {
        skip::missing_tool(test, &what, REMEDY_NEW);
    } else {
        skip::unable(test, &format!("{what} is missing and there is no Go to build it with: {REMEDY_NEW}"));
    }
}
