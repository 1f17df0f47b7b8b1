//! Where the etcd is that answers are compared with, and the etcdctls that are run against both. `test.sh` puts etcd
//! 3.5.1 into a cache directory; 3.4 is Debian's package.

use std::path::{Path, PathBuf};

use crate::{
    ctl::Etcdctl,
    process::{Dialect, Program},
    skip,
};

const REMEDY: &str =
    "run ./test.sh, which installs it, or set DAYMARK_ETCD_DIR to a directory with etcd and etcdctl 3.5.1";

/// The etcd 3.5.1 that answers are compared with, or nothing after saying that `test` is skipped.
pub fn oracle_or_skip(test: &str) -> Option<Program> {
    let binary = directory().join("etcd");
    if !binary.is_file() {
        skip::missing_tool(test, &binary.display().to_string(), REMEDY);
        return None;
    }
    Some(Program { binary, dialect: Dialect::Etcd })
}

/// Every etcdctl that is installed: 3.5.1 and Debian's 3.4. The missing ones are reported as skipped.
pub fn etcdctls(test: &str) -> Vec<Etcdctl> {
    let newer = directory().join("etcdctl");
    let wanted = [("3.5.1", newer, REMEDY), ("3.4", "/usr/bin/etcdctl".into(), "apt-get install etcd-client")];
    let mut found = Vec::new();
    for (version, binary, remedy) in wanted {
        if binary.is_file() {
            found.push(Etcdctl { binary, version });
        } else {
            skip::missing_tool(test, &format!("etcdctl {version} ({})", binary.display()), remedy);
        }
    }
    found
}

fn directory() -> PathBuf {
    if let Some(directory) = std::env::var_os("DAYMARK_ETCD_DIR") {
        return directory.into();
    }
    let home = std::env::var_os("HOME").unwrap_or_else(|| "/root".into());
    Path::new(&home).join(".cache/daymark-tools/etcd-3.5.1")
}
