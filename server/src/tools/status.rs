//! `daymark snapshot status`: reads all of a file, which checks it, and tells what `etcdutl snapshot status` tells, the hash
//! included.

use std::path::Path;

use daymark_storage::codec::crc32c_append;
use hashbrown::HashSet;

use super::etcd_file::EtcdFile;

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of all names, keys and values.
    pub hash: u32,
    pub revision: i64,
    pub total_keys: usize,
    /// Bytes of the database.
    pub total_bytes: u64,
    /// Version of the schema; empty if the file does not say.
    pub version: String,
}

/// Reads the file.
pub fn status(path: &Path) -> anyhow::Result<Status> {
    let (file, _) = EtcdFile::open(path, false)?;
    let mut hash = 0;
    for bucket in &file.buckets {
        hash = crc32c_append(hash, &bucket.name);
        file.reader.for_each(bucket, &mut |key, value| {
            hash = crc32c_append(crc32c_append(hash, key), value);
            Ok(())
        })?;
    }
    let (mut revision, mut keys) = (0, HashSet::new());
    file.changes(|change| {
        revision = change.at.main;
        if change.is_delete {
            keys.remove(&change.kv.key);
        } else {
            keys.insert(change.kv.key);
        }
        Ok(())
    })?;
    let (total_keys, version) = (keys.len(), file.version()?.unwrap_or_default());
    Ok(Status { hash, revision, total_keys, total_bytes: file.reader.byte_len(), version })
}

impl Status {
    fn row(&self) -> [String; 5] {
        [
            format!("{:x}", self.hash),
            self.revision.to_string(),
            self.total_keys.to_string(),
            size(self.total_bytes),
            self.version.clone(),
        ]
    }

    /// One line.
    pub fn simple(&self) -> String {
        self.row().join(", ")
    }

    /// As etcdutl prints it.
    pub fn json(&self) -> String {
        format!(
            "{{\"hash\":{},\"revision\":{},\"totalKey\":{},\"totalSize\":{},\"version\":{}}}",
            self.hash,
            self.revision,
            self.total_keys,
            self.total_bytes,
            serde_json::Value::from(self.version.clone())
        )
    }

    /// With lines around it.
    pub fn table(&self) -> String {
        let heads = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"];
        let row = self.row();
        let widths: Vec<usize> = heads.iter().zip(&row).map(|(head, cell)| head.len().max(cell.len())).collect();
        let line = |[left, middle, right]: [&str; 3]| {
            let bars: Vec<_> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
            format!("{left}{}{right}", bars.join(middle))
        };
        let centred: Vec<_> = heads.iter().zip(&widths).map(|(head, width)| format!(" {head:^width$} ")).collect();
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:>width$} ")).collect();
        let rows = [
            line(["┌", "┬", "┐"]),
            format!("│{}│", centred.join("│")),
            line(["├", "┼", "┤"]),
            format!("│{}│", cells.join("│")),
            line(["└", "┴", "┘"]),
        ];
        rows.join("\n")
    }
}

/// Bytes for people, in steps of a thousand: `25 kB`, `1.2 MB`.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let unit = (bytes.ilog10() / 3) as usize;
    let value = (bytes as f64 / 1000_f64.powi(unit as i32) * 10.0 + 0.5).floor() / 10.0;
    if value < 10.0 { format!("{value:.1} {}", UNITS[unit]) } else { format!("{value:.0} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_etcdutl_writes_them() {
        let cases = [(0, "0 B"), (9, "9 B"), (10, "10 B"), (999, "999 B"), (1000, "1.0 kB"), (9_949, "9.9 kB")];
        for (bytes, text) in cases.into_iter().chain([(20_480, "20 kB"), (25_600, "26 kB"), (1_234_567, "1.2 MB")]) {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn forms() {
        let status = Status { hash: 0xabc, revision: 7, total_keys: 3, total_bytes: 20_480, version: "3.7.0".into() };
        assert_eq!(status.simple(), "abc, 7, 3, 20 kB, 3.7.0");
        assert_eq!(status.json(), r#"{"hash":2748,"revision":7,"totalKey":3,"totalSize":20480,"version":"3.7.0"}"#);
        let lines: Vec<usize> = status.table().lines().map(|line| line.chars().count()).collect();
        assert_eq!(lines, [lines[0]; 5]);
    }
}
