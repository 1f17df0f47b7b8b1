//! The one place of versions: what clients are told, what the cluster agrees on, and Daymark's own name. Nothing here is
//! compared or negotiated.

/// The etcd release whose API is served: Status, `/version`, metrics and the first line of `--version`.
pub const ETCD_VERSION: &str = "3.7.1";
/// What clusters of that release agree on, always without a patch number; also the version of the storage schema.
pub const CLUSTER_VERSION: &str = "3.7.0";
/// The name of this server where it speaks of itself.
pub const NAME: &str = "Daymark";
/// Daymark's own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this was built from, if the build was told.
pub fn git_sha() -> &'static str {
    option_env!("DAYMARK_GIT_SHA").unwrap_or("Not provided")
}

/// The text of `--version`: etcd's four lines, as tools parse them, then our own.
pub fn text() -> String {
    let (sha, system, machine) = (git_sha(), std::env::consts::OS, machine());
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: {sha}\nGo Version: none, written in Rust\nGo OS/Arch: \
         {system}/{machine}\n{NAME} Version: {VERSION}\n"
    )
}

/// The body of `/version`.
pub fn json() -> String {
    format!(
        "{{\"etcdserver\":\"{ETCD_VERSION}\",\"etcdcluster\":\"{CLUSTER_VERSION}\",\"storage\":\"{CLUSTER_VERSION}\"}}"
    )
}

/// The machine as Go spells it.
fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_in_etcds_form() {
        let text = text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "etcd Version: 3.7.1");
        assert!(lines[1].starts_with("Git SHA: ") && lines[2].starts_with("Go Version: "), "{text}");
        assert!(lines[3].starts_with("Go OS/Arch: linux/"), "{text}");
        assert_eq!(lines[4], format!("Daymark Version: {VERSION}"));
        let json: serde_json::Value = serde_json::from_str(&json()).expect("JSON");
        assert_eq!(json["etcdserver"], ETCD_VERSION);
        assert_eq!(json["etcdcluster"], "3.7.0");
    }

    #[test]
    fn the_cluster_version_is_the_release_without_its_patch() {
        let release = |text: &str| text.rsplit_once('.').expect("three parts").0.to_owned();
        assert_eq!(release(ETCD_VERSION), release(CLUSTER_VERSION));
        assert!(CLUSTER_VERSION.ends_with(".0"));
    }
}
