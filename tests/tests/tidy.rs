//! The rules of the house that a machine can check: headers, who may name whom, leftovers, sizes, links. Reads the sources
//! only; knows nothing of what they do.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file after which somebody should ask whether it holds two concepts.
const FILE_LINES_MAX: usize = 900;
/// Files that are longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// Crates, and which of ours each may depend on outside its tests.
const CRATES: &[(&str, &[&str])] = &[
    ("storage", &[]),
    ("raft", &["storage"]),
    ("api", &[]),
    ("server", &["api", "raft", "storage", "client", "benches"]),
    ("client", &["api"]),
    ("benches", &["client", "api"]),
    ("tests", &["storage", "raft", "api", "server", "client", "benches"]),
];

/// Names of outside crates, and the only places that may use them.
const CONFINED: &[(&str, &[&str])] = &[
    ("openraft::", &["raft/"]),
    ("rocksdb::", &["storage/src/backend/rocks"]),
    ("tonic::", &["server/src/net/", "client/", "api/", "benches/", "tests/"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Every file with this ending, relative to the workspace, without what is generated or hidden.
fn files(ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if name.ends_with(ending) {
                let relative = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
                found.push((relative, fs::read_to_string(&path).expect("sources are UTF-8")));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {ending} files: the rules would check nothing");
    found
}

/// What remains of a line without its comment. Good enough here: no rule looks for something that holds `//`.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn every_source_file_begins_with_what_it_is() {
    let missing: Vec<_> = files(".rs").into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|f| f.0).collect();
    assert_none("files without a //! header", &missing);
    let empty: Vec<_> =
        files(".rs").into_iter().filter(|(_, text)| text.starts_with("//! Placeholder")).map(|f| f.0).collect();
    assert_none("placeholders", &empty);
}

#[test]
fn crates_depend_in_one_direction() {
    let mut wrong = Vec::new();
    for (name, allowed) in CRATES {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a manifest");
        let mut section = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                section = line;
            }
            let Some(dependency) = line.strip_prefix("daymark-") else { continue };
            let dependency = dependency.split(['.', ' ', '=']).next().unwrap_or_default();
            if section == "[dependencies]" && !allowed.contains(&dependency) {
                wrong.push(format!("{name} depends on {dependency}"));
            }
        }
    }
    assert_none("dependencies against the direction", &wrong);
}

#[test]
fn openraft_rocksdb_and_tonic_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for (path, text) in files(".rs") {
        for (name, places) in CONFINED {
            if path == "tests/tests/tidy.rs" || places.iter().any(|place| path.starts_with(place)) {
                continue;
            }
            let uses = |line: &str| code(line).contains(name) || code(line).trim() == format!("use {}{{", name);
            wrong.extend(
                text.lines().enumerate().filter(|(_, l)| uses(l)).map(|(n, _)| format!("{path}:{}: {name}", n + 1)),
            );
        }
    }
    assert_none("crates named outside their place", &wrong);
}

#[test]
fn nothing_is_left_over() {
    // Put together here, so that this file does not find itself.
    let leftovers = ["FIX", "TO"].map(|start| format!("{start}{}", if start == "FIX" { "ME" } else { "DO" }));
    let mut found = Vec::new();
    for ending in [".rs", ".toml", ".sh", ".md", ".proto"] {
        for (path, text) in files(ending) {
            let hits = text.lines().enumerate().filter(|(_, line)| leftovers.iter().any(|word| line.contains(word)));
            found.extend(hits.map(|(n, line)| format!("{path}:{}: {}", n + 1, line.trim())));
        }
    }
    assert_none("leftovers", &found);
}

#[test]
fn files_are_of_a_size_that_can_be_read() {
    let long = files(".rs").into_iter().map(|(path, text)| (path, text.lines().count()));
    let long =
        long.filter(|(path, lines)| *lines > FILE_LINES_MAX && !LONG_FILES.iter().any(|(known, _)| known == path));
    let long: Vec<_> = long.map(|(path, lines)| format!("{path}: {lines} lines")).collect();
    assert_none("files over the limit without a reason in LONG_FILES", &long);
    for (path, _) in LONG_FILES {
        let lines = fs::read_to_string(root().join(path)).map_or(0, |text| text.lines().count());
        assert!(lines > FILE_LINES_MAX, "{path} is not long any more: take it off LONG_FILES");
    }
}

#[test]
fn links_between_documents_resolve() {
    let mut broken = Vec::new();
    for (path, text) in files(".md") {
        let folder = root().join(&path).parent().expect("a file has a folder").to_path_buf();
        for piece in text.split("](").skip(1) {
            let target = piece.split([')', '#']).next().unwrap_or_default();
            let outside = target.is_empty() || target.contains("://") || target.starts_with("mailto:");
            if !outside && !folder.join(target).exists() {
                broken.push(format!("{path}: {target}"));
            }
        }
    }
    assert_none("links to nowhere", &broken);
}

#[test]
fn the_readme_names_the_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).expect("a README");
    for command in ["./run.sh", "./test.sh"] {
        assert!(readme.contains(command), "README.md does not name {command}");
    }
}

#[test]
fn every_source_file_is_part_of_its_crate() {
    let sources = files(".rs");
    let mut dead = Vec::new();
    for (path, _) in &sources {
        let path = Path::new(path);
        let stem = path.file_stem().expect("a name").to_string_lossy();
        let folder = path.parent().expect("a folder").to_string_lossy().into_owned();
        let is_root = ["lib", "main", "build"].contains(&&*stem)
            || ["/tests", "/benches", "/examples"].iter().any(|roots| folder.ends_with(roots));
        if is_root && !folder.contains("src/") {
            continue;
        }
        let (module, owner) = if stem == "mod" {
            let parent = path.parent().expect("a folder");
            (parent.file_name().expect("a name").to_string_lossy(), parent.parent().expect("nested"))
        } else {
            (stem, path.parent().expect("a folder"))
        };
        let declares = |text: &str| text.lines().any(|l| code(l).trim_end().ends_with(&format!("mod {module};")));
        // The declaring file is in the same folder, or is the folder's own file beside it.
        let named = sources.iter().any(|(other, text)| {
            let other = Path::new(other);
            let beside = other.parent() == Some(owner) || other.with_extension("") == owner;
            beside && other != path && declares(text)
        });
        if !named {
            dead.push(path.display().to_string());
        }
    }
    assert_none("files that no module declares", &dead);
}
