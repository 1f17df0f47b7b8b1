//! gzip, the only compression that etcd's gRPC knows: of single messages, bounded in what comes out. Knows no framing.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::error::Error;
use crate::limits;

/// The name of the encoding in headers.
pub(crate) const GZIP: &str = "gzip";

/// A message as it was before it was compressed.
pub(crate) fn inflate(compressed: &[u8], bytes_max: usize) -> Result<Bytes, Error> {
    let mut message = Vec::new();
    let read = MultiGzDecoder::new(compressed).take(bytes_max as u64 + 1).read_to_end(&mut message);
    if let Err(error) = read {
        return Err(Error::Protocol(format!("grpc: failed to decompress the message: {error}")));
    }
    if message.len() > bytes_max {
        return Err(Error::InflatedTooLarge(bytes_max));
    }
    Ok(message.into())
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
        for bad in [&b""[..], b"nonsense", &compressed[..20], &compressed[..compressed.len() - 1]] {
            assert!(matches!(inflate(bad, 10_000), Err(Error::Protocol(_))), "{bad:?}");
        }
        assert_eq!(deflate(&[]), None);
        assert_eq!(deflate(&vec![0; limits::DEFLATE_BYTES_MAX + 1]), None);
    }
}
