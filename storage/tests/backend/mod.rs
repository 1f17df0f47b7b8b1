//! One suite over both backends, and what only files can suffer.

#[cfg(feature = "rocksdb")]
mod damage;

use std::sync::Arc;

use daymark_storage::backend::{Backend, Direction, Family, MemBackend, Span, WriteBatch};

#[test]
fn mem_fulfils_the_seam() {
    suite(MemBackend::new());
}

#[cfg(feature = "rocksdb")]
#[test]
fn rocks_fulfils_the_seam() {
    use daymark_storage::backend::{RocksBackend, RocksOptions};
    let dir = tempfile::tempdir().unwrap();
    suite(RocksBackend::open(RocksOptions::new(dir.path())).unwrap());
}

fn suite(backend: Arc<dyn Backend>) {
    batches_are_ordered_and_span_families(&*backend);
    cursors_respect_spans_and_direction(&*backend);
    a_cursor_keeps_its_view(&*backend);
    durable_reads_see_the_last_flush(&*backend);
    files_are_dropped_only_below(&*backend);
}

fn put(backend: &dyn Backend, family: Family, key: &[u8], value: &[u8]) {
    let mut batch = WriteBatch::default();
    batch.put(family, key, value);
    backend.write(&mut batch).unwrap();
}

fn get(backend: &dyn Backend, family: Family, key: &[u8]) -> Option<Vec<u8>> {
    let mut value = b"rest of another value".to_vec();
    let found = backend.get(family, key, &mut value).unwrap();
    assert!(found || value.is_empty());
    found.then_some(value)
}

fn keys(backend: &dyn Backend, family: Family, span: Span<'_>, direction: Direction) -> Vec<Vec<u8>> {
    let mut cursor = backend.iterate(family, span, direction).unwrap();
    let mut keys = Vec::new();
    while let Some((key, _)) = cursor.item() {
        keys.push(key.to_vec());
        cursor.advance().unwrap();
    }
    keys
}

fn batches_are_ordered_and_span_families(backend: &dyn Backend) {
    let mut batch = WriteBatch::default();
    batch.put(Family::Cur, b"a", b"1");
    batch.put(Family::Log, b"a", b"2");
    batch.delete(Family::Cur, b"a");
    let mark = batch.mark();
    batch.put(Family::Meta, b"cut", b"off");
    batch.cut(mark);
    let at = batch.put(Family::Cur, b"a", b"");
    assert_eq!((batch.value(at), batch.len()), (&b""[..], 4));
    backend.write(&mut batch).unwrap();
    assert_eq!(get(backend, Family::Cur, b"a"), Some(vec![]));
    assert_eq!(get(backend, Family::Log, b"a"), Some(b"2".to_vec()));
    assert_eq!(get(backend, Family::Meta, b"cut"), None);
}

fn cursors_respect_spans_and_direction(backend: &dyn Backend) {
    for key in [&b"k"[..], b"k\0", b"k\xff", b"l", b"m"] {
        put(backend, Family::Lease, key, b"v");
    }
    let span = |start, end| Span { start, end };
    let forward = |start, end| keys(backend, Family::Lease, span(start, end), Direction::Forward);
    assert_eq!(forward(b"k\0", Some(b"m")), [&b"k\0"[..], b"k\xff", b"l"]);
    assert_eq!(forward(b"", None).len(), 5);
    assert_eq!(forward(b"m\0", None).len(), 0);
    for (start, end) in [(&b"l"[..], &b"k"[..]), (b"l", b"l")] {
        assert!(forward(start, Some(end)).is_empty());
        assert!(keys(backend, Family::Lease, span(start, Some(end)), Direction::Backward).is_empty());
    }
    let backward = keys(backend, Family::Lease, span(b"k", Some(b"l")), Direction::Backward);
    assert_eq!(backward, [&b"k\xff"[..], b"k\0", b"k"]);
    assert_eq!(keys(backend, Family::Lease, span(b"l", None), Direction::Backward), [b"m", b"l"]);
}

fn a_cursor_keeps_its_view(backend: &dyn Backend) {
    put(backend, Family::Meta, b"x1", b"old");
    let mut cursor = backend.iterate(Family::Meta, Span { start: b"x", end: None }, Direction::Forward).unwrap();
    put(backend, Family::Meta, b"x1", b"new");
    put(backend, Family::Meta, b"x2", b"new");
    assert_eq!(cursor.item(), Some((&b"x1"[..], &b"old"[..])));
    cursor.advance().unwrap();
    assert_eq!(cursor.item(), None);
}

fn durable_reads_see_the_last_flush(backend: &dyn Backend) {
    let durable = |key: &[u8]| {
        let mut value = Vec::new();
        backend.get_durable(Family::Meta, key, &mut value).unwrap().then_some(value)
    };
    put(backend, Family::Meta, b"d", b"1");
    assert_eq!(durable(b"d"), None);
    backend.flush().unwrap();
    put(backend, Family::Meta, b"d", b"2");
    assert_eq!(durable(b"d"), Some(b"1".to_vec()));
    assert_eq!(get(backend, Family::Meta, b"d"), Some(b"2".to_vec()));
}

fn files_are_dropped_only_below(backend: &dyn Backend) {
    for number in 0..50u8 {
        put(backend, Family::Log, &[1, number], b"v");
        backend.flush().unwrap();
    }
    backend.drop_files_below(Family::Log, &[1, 30]).unwrap();
    let kept = keys(backend, Family::Log, Span { start: &[1, 30], end: Some(&[2]) }, Direction::Forward);
    assert_eq!(kept.len(), 20);
}
