//! A directory as a value, to see whether a server that refused to start has changed anything.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Relative paths, each with mode and, for a file, its bytes; without times of access.
#[derive(Clone, PartialEq, Eq)]
pub struct Tree(BTreeMap<PathBuf, (u32, Vec<u8>)>);

impl Tree {
    /// Reads everything below `root`. A missing root is an empty tree.
    pub fn read(root: &Path) -> Self {
        let mut entries = BTreeMap::new();
        if root.exists() {
            walk(root, root, &mut entries);
        }
        Self(entries)
    }

    /// The paths that are in one only, or differ.
    pub fn differences(&self, other: &Self) -> Vec<PathBuf> {
        let all = self.0.keys().chain(other.0.keys());
        let mut changed: Vec<_> = all.filter(|path| self.0.get(*path) != other.0.get(*path)).cloned().collect();
        changed.sort();
        changed.dedup();
        changed
    }
}

fn walk(root: &Path, path: &Path, entries: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let relative = path.strip_prefix(root).expect("below the root").to_path_buf();
    if metadata.is_dir() {
        entries.insert(relative, (metadata.mode(), Vec::new()));
        for entry in fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
            walk(root, &entry.expect("readable entry").path(), entries);
        }
    } else {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        entries.insert(relative, (metadata.mode(), bytes));
    }
}
