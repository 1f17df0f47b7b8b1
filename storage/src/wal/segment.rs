//! One segment file: its header, and reading its frames. Frozen layout, described in `docs/formats/wal.md`. Does not
//! decide what a bad frame means: that is `recovery`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{crc32c, crc32c_append, put_u32_at, put_u64_at, u32_at, u64_at};
use crate::disk::DiskFile;
use crate::{LogId, Result};

use super::Identity;
use super::frame::{self, FRAME_HEADER_BYTES, FrameHeader};

/// Bytes before the first frame: one sector, so that the header is never rewritten together with frames. Frozen.
pub const SEGMENT_HEADER_BYTES: u64 = 512;

/// Bytes that the reader asks the disk for at once.
const READ_BYTES: usize = 256 * 1024;

const MAGIC: &[u8; 8] = b"DMRKWAL\0";
const FORMAT_VERSION: u32 = 1;
const LAST_PRESENT: u32 = 1;

/// What a segment says about itself and about the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Number of the segment, counted from 1; also its file name.
    pub sequence: u64,
    /// Whose log this is.
    pub identity: Identity,
    /// Position of the file's first byte in the log.
    pub base: u64,
    /// Length of the file.
    pub segment_bytes: u64,
    /// Position where the frames of the segment before end.
    pub previous_end: u64,
    /// Checksum of the last frame (or else the header) of the segment before; 0 in the first segment.
    pub link: u32,
    /// Number of the opening of the log during which the segment was begun.
    pub epoch: u32,
    /// Last entry of the log when the segment was begun.
    pub last: Option<LogId>,
}

impl SegmentHeader {
    /// The header as bytes, and its checksum, which the first frame links to.
    pub fn encode(&self) -> ([u8; SEGMENT_HEADER_BYTES as usize], u32) {
        let mut bytes = [0u8; SEGMENT_HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(MAGIC);
        put_u32_at(&mut bytes, 8, FORMAT_VERSION);
        put_u64_at(&mut bytes, 16, self.sequence);
        put_u64_at(&mut bytes, 24, self.identity.cluster_id);
        put_u64_at(&mut bytes, 32, self.identity.member_id);
        put_u64_at(&mut bytes, 40, self.base);
        put_u64_at(&mut bytes, 48, self.segment_bytes);
        put_u64_at(&mut bytes, 56, self.previous_end);
        put_u32_at(&mut bytes, 64, self.link);
        put_u32_at(&mut bytes, 68, self.epoch);
        if let Some(last) = self.last {
            put_u32_at(&mut bytes, 72, LAST_PRESENT);
            put_u64_at(&mut bytes, 80, last.term);
            put_u64_at(&mut bytes, 88, last.index);
        }
        let crc = header_checksum(&bytes);
        put_u32_at(&mut bytes, 12, crc);
        (bytes, crc)
    }

    /// The header and its checksum; an error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> std::result::Result<(Self, u32), String> {
        if &bytes[..8] != MAGIC {
            return Err("the file is not a segment of a Daymark log (wrong magic)".into());
        }
        let crc = u32_at(bytes, 12);
        if header_checksum(bytes) != crc {
            return Err("the segment header has a wrong checksum".into());
        }
        if u32_at(bytes, 8) != FORMAT_VERSION {
            return Err(format!("the segment has format version {}, not {FORMAT_VERSION}", u32_at(bytes, 8)));
        }
        let last = (u32_at(bytes, 72) & LAST_PRESENT != 0)
            .then(|| LogId { term: u64_at(bytes, 80), index: u64_at(bytes, 88) });
        let header = Self {
            sequence: u64_at(bytes, 16),
            identity: Identity { cluster_id: u64_at(bytes, 24), member_id: u64_at(bytes, 32) },
            base: u64_at(bytes, 40),
            segment_bytes: u64_at(bytes, 48),
            previous_end: u64_at(bytes, 56),
            link: u32_at(bytes, 64),
            epoch: u32_at(bytes, 68),
            last,
        };
        Ok((header, crc))
    }
}

fn header_checksum(bytes: &[u8]) -> u32 {
    crc32c_append(crc32c(&bytes[..12]), &bytes[16..SEGMENT_HEADER_BYTES as usize])
}

/// Name of the segment with that sequence.
pub fn file_name(sequence: u64) -> String {
    format!("{sequence:016x}.wal")
}

/// The sequence in a segment's file name.
pub fn parse_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    let sequence = u64::from_str_radix(digits, 16).ok()?;
    (file_name(sequence) == name).then_some(sequence)
}

/// An open segment.
pub struct Segment {
    /// What its header says.
    pub header: SegmentHeader,
    /// Checksum of the header.
    pub header_crc: u32,
    /// Where it is.
    pub path: PathBuf,
    /// The file.
    pub file: Arc<dyn DiskFile>,
}

impl Segment {
    /// Reads the header of an open file. The inner error says what is wrong with it.
    pub fn open(file: Arc<dyn DiskFile>, path: &Path) -> Result<std::result::Result<Self, String>> {
        let mut bytes = [0u8; SEGMENT_HEADER_BYTES as usize];
        if file.read_at(&mut bytes, 0)? < bytes.len() {
            return Ok(Err("the file is too short for a segment header".into()));
        }
        let decoded = SegmentHeader::decode(&bytes);
        Ok(decoded.map(|(header, header_crc)| Self { header, header_crc, path: path.into(), file }))
    }

    /// Position behind the file's last byte.
    pub fn limit(&self) -> u64 {
        self.header.base + self.header.segment_bytes
    }

    /// Position of the first frame.
    pub fn frames_start(&self) -> u64 {
        self.header.base + SEGMENT_HEADER_BYTES
    }
}

/// A frame as it stands in the file, checksum verified.
pub struct Frame<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// Its checksum.
    pub crc: u32,
    /// Bytes it takes in the file.
    pub bytes: u64,
    /// Its payload.
    pub payload: &'a [u8],
}

/// Reads frames of one segment, asking the disk for large pieces.
pub struct FrameReader {
    segment: Arc<Segment>,
    buffer: Vec<u8>,
    /// Position of the buffer's first byte.
    buffer_start: u64,
}

impl FrameReader {
    /// A reader of that segment.
    pub fn new(segment: Arc<Segment>) -> Self {
        Self { segment, buffer: Vec::new(), buffer_start: 0 }
    }

    /// The segment that is read.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// The header at `position` if it looks like one of this segment and its frame fits; checksum not verified.
    pub fn header(&mut self, position: u64) -> Result<std::result::Result<FrameHeader, &'static str>> {
        let (sequence, limit) = (self.segment.header.sequence, self.segment.limit());
        let Some(bytes) = self.bytes(position, FRAME_HEADER_BYTES)? else {
            return Ok(Err("no room for a frame header before the end of the segment"));
        };
        let Some(header) = FrameHeader::decode(bytes) else { return Ok(Err("no frame header")) };
        if header.segment != sequence as u32 {
            return Ok(Err("the frame is of another segment"));
        }
        if position + frame::frame_bytes(header.length as usize) as u64 > limit {
            return Ok(Err("the frame reaches beyond its segment"));
        }
        Ok(Ok(header))
    }

    /// The frame at `position`, its checksum verified. The inner error says what is wrong with it.
    pub fn frame(&mut self, position: u64) -> Result<std::result::Result<Frame<'_>, &'static str>> {
        let header = match self.header(position)? {
            Ok(header) => header,
            Err(fault) => return Ok(Err(fault)),
        };
        let sequence = self.segment.header.sequence;
        let length = frame::frame_bytes(header.length as usize);
        let Some(bytes) = self.bytes(position, length)? else { return Ok(Err("the file ends within the frame")) };
        let crc = u32_at(bytes, 0);
        if frame::checksum(bytes, sequence, position) != crc {
            return Ok(Err("wrong checksum"));
        }
        let payload = &bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.length as usize];
        Ok(Ok(Frame { header, crc, bytes: length as u64, payload }))
    }

    /// `length` bytes at `position`; `None` if the segment or the file ends before.
    fn bytes(&mut self, position: u64, length: usize) -> Result<Option<&[u8]>> {
        if position + length as u64 > self.segment.limit() {
            return Ok(None);
        }
        let buffered =
            self.buffer_start <= position && position + length as u64 <= self.buffer_start + self.buffer.len() as u64;
        if !buffered {
            let offset = position - self.segment.header.base;
            self.buffer.resize(length.max(READ_BYTES), 0);
            let count = self.segment.file.read_at(&mut self.buffer, offset)?;
            self.buffer.truncate(count);
            self.buffer_start = position;
            if count < length {
                return Ok(None);
            }
        }
        let at = (position - self.buffer_start) as usize;
        Ok(Some(&self.buffer[at..at + length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact() {
        assert_eq!(file_name(0x2a), "000000000000002a.wal");
        assert_eq!(parse_file_name("000000000000002a.wal"), Some(42));
        for name in ["2a.wal", "000000000000002A.wal", "000000000000002a.tmp", "+00000000000002a.wal"] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
