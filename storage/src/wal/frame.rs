//! One frame of the log as bytes: header, payload, padding. Frozen values, described in `docs/formats/wal.md`. Knows
//! nothing of files; the reader of files is in `segment`.

use crate::LogId;
use crate::codec::{crc32c, crc32c_append, put_u32_at, put_u64_at, u32_at, u64_at};

use super::EntryKind;

/// Bytes before the payload. Frozen.
pub const FRAME_HEADER_BYTES: usize = 48;

/// Frames start at multiples of this. Frozen.
pub const FRAME_ALIGNMENT: usize = 8;

/// What a frame says. Frozen values.
#[repr(u8)]
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum FrameType {
    /// An entry without content.
    Blank = 1,
    /// An entry holding a command batch.
    Commands = 2,
    /// An entry holding a membership.
    Membership = 3,
    /// Entries after the log id in the header are no longer part of the log.
    TruncateAfter = 16,
    /// No entry before this frame is part of the log.
    TruncateAll = 17,
    /// Entries up to the log id in the header are no longer needed.
    Released = 18,
}

impl FrameType {
    /// The type that stands for this value on disk.
    pub fn from_byte(byte: u8) -> Option<Self> {
        let all =
            [Self::Blank, Self::Commands, Self::Membership, Self::TruncateAfter, Self::TruncateAll, Self::Released];
        all.into_iter().find(|frame_type| *frame_type as u8 == byte)
    }

    /// The kind of entry that the frame holds, if it holds one.
    pub fn entry_kind(self) -> Option<EntryKind> {
        match self {
            Self::Blank => Some(EntryKind::Blank),
            Self::Commands => Some(EntryKind::Commands),
            Self::Membership => Some(EntryKind::Membership),
            Self::TruncateAfter | Self::TruncateAll | Self::Released => None,
        }
    }
}

impl From<EntryKind> for FrameType {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Blank => Self::Blank,
            EntryKind::Commands => Self::Commands,
            EntryKind::Membership => Self::Membership,
        }
    }
}

/// A frame's header, decoded.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Payload bytes, without padding.
    pub length: u32,
    /// What the frame says.
    pub frame_type: FrameType,
    /// Checksum of the frame before, or of the segment header for the first frame of a segment.
    pub link: u32,
    /// The entry's id, or what a control frame refers to.
    pub id: LogId,
    /// Everything before this position was durable when the frame was written. At most the frame's own position.
    pub durable_before: u64,
    /// Low 32 bits of the sequence of the segment that the frame was written to.
    pub segment: u32,
    /// Number of the opening of the log during which the frame was written.
    pub epoch: u32,
}

/// Bytes that a frame with that payload takes, padding included.
pub fn frame_bytes(payload: usize) -> usize {
    FRAME_HEADER_BYTES + payload.next_multiple_of(FRAME_ALIGNMENT)
}

impl FrameHeader {
    /// Appends the frame and returns its checksum. `sequence` and `position` go into the checksum only, so that the
    /// same bytes at another place or in a recycled file never pass.
    pub fn encode(&self, out: &mut Vec<u8>, sequence: u64, position: u64, payload: &[u8]) -> u32 {
        let mut header = [0u8; FRAME_HEADER_BYTES];
        put_u32_at(&mut header, 4, self.length);
        header[8] = self.frame_type as u8;
        put_u32_at(&mut header, 12, self.link);
        put_u64_at(&mut header, 16, self.id.term);
        put_u64_at(&mut header, 24, self.id.index);
        put_u64_at(&mut header, 32, self.durable_before);
        put_u32_at(&mut header, 40, self.segment);
        put_u32_at(&mut header, 44, self.epoch);
        let start = out.len();
        out.extend_from_slice(&header);
        out.extend_from_slice(payload);
        out.resize(start + frame_bytes(payload.len()), 0);
        let crc = checksum(&out[start..], sequence, position);
        put_u32_at(out, start, crc);
        crc
    }

    /// The header at the front of `bytes`, if it looks like one. Says nothing about the checksum.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let frame_type = FrameType::from_byte(bytes[8])?;
        if bytes[9..12] != [0; 3] {
            return None;
        }
        Some(Self {
            length: u32_at(bytes, 4),
            frame_type,
            link: u32_at(bytes, 12),
            id: LogId { term: u64_at(bytes, 16), index: u64_at(bytes, 24) },
            durable_before: u64_at(bytes, 32),
            segment: u32_at(bytes, 40),
            epoch: u32_at(bytes, 44),
        })
    }
}

/// Checksum of a whole frame (its own field excluded), seeded with where it stands.
pub fn checksum(frame: &[u8], sequence: u64, position: u64) -> u32 {
    let mut seed = [0u8; 16];
    put_u64_at(&mut seed, 0, sequence);
    put_u64_at(&mut seed, 8, position);
    crc32c_append(crc32c(&seed), &frame[4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        FrameHeader {
            length: 5,
            frame_type: FrameType::Commands,
            link: 7,
            id: LogId { term: 3, index: 9 },
            durable_before: 512,
            segment: 1,
            epoch: 2,
        }
    }

    #[test]
    fn a_frame_reads_back_and_passes_only_at_its_place() {
        let mut bytes = vec![0xaa; 8];
        let crc = header().encode(&mut bytes, 1, 600, b"hello");
        let frame = &bytes[8..];
        assert_eq!(frame.len(), frame_bytes(5));
        assert_eq!(FrameHeader::decode(frame), Some(header()));
        assert_eq!(crate::codec::u32_at(frame, 0), crc);
        assert_eq!(checksum(frame, 1, 600), crc);
        assert_ne!(checksum(frame, 2, 600), crc, "another segment");
        assert_ne!(checksum(frame, 1, 608), crc, "another place");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut bytes = Vec::new();
        header().encode(&mut bytes, 1, 600, b"hello");
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            let stored = crate::codec::u32_at(&bytes, 0);
            assert_ne!(checksum(&bytes, 1, 600), stored, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
