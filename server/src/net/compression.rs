//! gzip, the only compression that etcd's gRPC knows: of single messages, bounded in what comes out. Knows no framing.

use std::io::{ErrorKind, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::error::Error;
use crate::limits;

/// The name of the encoding in headers.
pub(crate) const GZIP: &str = "gzip";

const HEAD_BYTES: usize = 10;

/// A message as it was before it was compressed.
pub(crate) fn inflate(compressed: &[u8], bytes_max: usize) -> Result<Bytes, Error> {
    check_head(compressed).map_err(|why| Error::Protocol(format!("grpc: failed to decompress the message: {why}")))?;
    let mut message = Vec::new();
    let read = MultiGzDecoder::new(compressed).take(bytes_max as u64 + 1).read_to_end(&mut message);
    if let Err(error) = read {
        let why = match error.kind() {
            ErrorKind::UnexpectedEof => "unexpected EOF".to_owned(),
            _ => error.to_string(),
        };
        return Err(Error::Protocol(format!("grpc: failed to read decompressed data: {why}")));
    }
    if message.len() > bytes_max {
        return Err(Error::InflatedTooLarge(bytes_max));
    }
    Ok(message.into())
}

/// What Go's reader says of a head that is none.
fn check_head(compressed: &[u8]) -> Result<(), &'static str> {
    match compressed {
        [] => Err("EOF"),
        _ if compressed.len() < HEAD_BYTES => Err("unexpected EOF"),
        [0x1f, 0x8b, 8, ..] => Ok(()),
        _ => Err("gzip: invalid header"),
    }
}

/// A message compressed, or `None` if it is sent as it is: an empty one, as grpc-go does, and one that would hold up the
/// net thread.
pub(crate) fn deflate(message: &[u8]) -> Option<Bytes> {
    if message.is_empty() || message.len() > limits::DEFLATE_BYTES_MAX {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(message.len() / 2 + 32), Compression::fast());
    // Writing into memory does not fail.
    encoder.write_all(message).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_comes_out_as_it_was_and_no_larger_than_allowed() {
        let message = [7_u8; 10_000];
        let compressed = deflate(&message).expect("compressed");
        assert!(compressed.len() < 100);
        assert_eq!(inflate(&compressed, 10_000).expect("at the limit"), &message[..]);
        assert_eq!(inflate(&compressed, 9_999), Err(Error::InflatedTooLarge(9_999)));
        for (bad, words) in [
            (&b""[..], "grpc: failed to decompress the message: EOF"),
            (b"no gzip at all", "grpc: failed to decompress the message: gzip: invalid header"),
            (&compressed[..9], "grpc: failed to decompress the message: unexpected EOF"),
            (&compressed[..20], "grpc: failed to read decompressed data: unexpected EOF"),
            (&compressed[..compressed.len() - 1], "grpc: failed to read decompressed data: unexpected EOF"),
        ] {
            assert_eq!(inflate(bad, 10_000), Err(Error::Protocol(words.into())), "{bad:?}");
        }
        let mut damaged = compressed.to_vec();
        *damaged.last_mut().expect("a length") ^= 1;
        assert!(matches!(inflate(&damaged, 10_000), Err(Error::Protocol(_))));
        assert_eq!(deflate(&[]), None);
        assert_eq!(deflate(&vec![0; limits::DEFLATE_BYTES_MAX + 1]), None);
    }
}
