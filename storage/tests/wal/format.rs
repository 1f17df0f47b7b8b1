//! The format is frozen: a log written by the first release opens with its content, and is written the same today.

use daymark_storage::sim_disk::SimDisk;

use super::support::*;

/// What the fixture holds.
fn write_fixture(disk: &SimDisk) -> Content {
    let (wal, mut worker, _) = open(disk).unwrap();
    append(&wal, &mut worker, vec![entry(1, 0, 5), entry(1, 1, 0), entry(1, 2, 8)]);
    wal.save_vote(vote(2, Some(0xa), true), ignore()).unwrap();
    wal.truncate_after(Some(id(1, 1)), ignore()).unwrap();
    wal.append(vec![entry(2, 2, 3)], ignore()).unwrap();
    wal.release(id(1, 0)).unwrap();
    drain(&mut worker).unwrap();
    let content = content(&wal).unwrap();
    stop(wal, worker);
    content
}

fn hex(bytes: &[u8]) -> String {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    bytes[..used].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of a file: what the hex says, then zeros.
fn unhex(digits: &str, length: usize) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(|digit| !digit.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    let mut bytes: Vec<u8> = pairs.collect();
    bytes.resize(length, 0);
    bytes
}

const SUPERBLOCK_COPY: &str = "
    444d524b53555052010000009da584230400000000000000c1000000000000000a000000000000000002000000000000
    380300000000000001000000000000000100000000000000010000000700000002000000000000000a
";
const SEGMENT_HEADER: &str = "
    444d524b57414c000100000091fbad850100000000000000c1000000000000000a000000000000000000000000000000
    001000000000000000000000000000000000000001
";
const FRAMES: &str = "
    d173f161050000000300000091fbad850100000000000000000000000000000000020000000000000100000001000000
    1f202122230000009473f67d0000000001000000d173f161010000000000000001000000000000000002000000000000
    0100000001000000eda2a85508000000020000009473f67d010000000000000002000000000000000002000000000000
    01000000010000002d2e2f30313233341410065b0000000010000000eda2a85501000000000000000100000000000000
    a00200000000000001000000010000007cdb2e9e03000000020000001410065b02000000000000000200000000000000
    a00200000000000001000000010000004c4d4e0000000000037d919800000000120000007cdb2e9e0100000000000000
    0000000000000000a0020000000000000100000001
";

fn fixture() -> SimDisk {
    use daymark_storage::disk::Disk;
    let disk = SimDisk::new(1);
    disk.create_dir_all(DIR.as_ref()).unwrap();
    let copy = unhex(SUPERBLOCK_COPY, 16384);
    disk.set_content(&superblock_path(), Some([copy.clone(), copy].concat()));
    let mut segment = unhex(SEGMENT_HEADER, 512);
    segment.extend(unhex(FRAMES, 4096 - 512));
    disk.set_content(&segment_path(1), Some(segment));
    disk
}

#[test]
fn the_first_format_opens() {
    let expected = Content {
        vote: Some(vote(2, Some(0xa), true)),
        released: Some(id(1, 0)),
        last: Some(id(2, 2)),
        entries: vec![entry(1, 1, 0), entry(2, 2, 3)],
    };
    let (wal, _worker, recovered) = open(&fixture()).unwrap();
    assert_eq!(content(&wal).unwrap(), expected);
    assert_eq!((recovered.cut, recovered.identity), (None, IDENTITY));
}

#[test]
fn the_first_format_is_still_written() {
    let disk = SimDisk::new(1);
    write_fixture(&disk);
    let written = disk.contents();
    let copies = &written[&superblock_path()];
    assert_eq!(hex(&copies[..16384]), SUPERBLOCK_COPY.replace(char::is_whitespace, ""));
    assert_eq!(copies[..16384], copies[16384..]);
    let segment = &written[&segment_path(1)];
    assert_eq!(hex(&segment[..512]), SEGMENT_HEADER.replace(char::is_whitespace, ""));
    assert_eq!(hex(&segment[512..]), FRAMES.replace(char::is_whitespace, ""));
}
