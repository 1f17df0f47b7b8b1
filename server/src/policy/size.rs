//! How large the data is, cheap enough to be asked for each write: measured now and then by the upkeep, and since then
//! estimated from what was written. Does not decide what is too large.

use std::sync::atomic::{AtomicI64, Ordering};

use daymark_storage::Result;
use daymark_storage::mvcc::Keyspace;

/// The size as everybody may ask for it. Grows at once with what is written, by as much as it will take on disk at most;
/// shrinks when it is measured after a flush or a merge.
#[derive(Default)]
pub struct SizeGauge {
    /// Files on disk and what is not flushed yet, less what had been written by then: see [`Keyspace::written_bytes`].
    bytes: AtomicI64,
    /// Likewise, of these what the newest state and its history need, as an estimate.
    in_use_bytes: AtomicI64,
}

impl SizeGauge {
    /// Physical size: files, and what will be in them with the next flush.
    pub fn bytes(&self, keyspace: &Keyspace) -> u64 {
        with_written(&self.bytes, keyspace)
    }

    /// What of it is in use.
    pub fn bytes_in_use(&self, keyspace: &Keyspace) -> u64 {
        with_written(&self.in_use_bytes, keyspace)
    }

    /// Measures; `unflushed_bytes` of what was written are not durable.
    pub fn measure(&self, keyspace: &Keyspace, unflushed_bytes: u64) -> Result<()> {
        // First: what is written meanwhile may count twice until the next measurement, but is never left out.
        let written_bytes = keyspace.written_bytes();
        let size = keyspace.size()?;
        let bytes = size.on_disk_bytes + unflushed_bytes;
        let in_use_bytes = (size.live_bytes + unflushed_bytes).min(bytes);
        self.bytes.store(bytes as i64 - written_bytes as i64, Ordering::Release);
        self.in_use_bytes.store(in_use_bytes as i64 - written_bytes as i64, Ordering::Release);
        Ok(())
    }
}

fn with_written(measured: &AtomicI64, keyspace: &Keyspace) -> u64 {
    // First: what had been written when it was measured is then seen here as well.
    let measured = measured.load(Ordering::Acquire);
    u64::try_from(measured + keyspace.written_bytes() as i64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use daymark_storage::LogId;
    use daymark_storage::backend::MemBackend;

    use super::*;

    #[test]
    fn it_grows_with_each_write_and_follows_a_measurement() {
        let (keyspace, mut writer) = Keyspace::open(MemBackend::new()).expect("an empty keyspace");
        let gauge = SizeGauge::default();
        gauge.measure(&keyspace, 0).expect("measured");
        let mut last = gauge.bytes(&keyspace);
        for index in 1..10 {
            let mut txn = writer.begin();
            txn.put(vec![index as u8].into(), vec![0; 1000].into(), 0).expect("put");
            txn.finish();
            writer.commit(LogId { term: 1, index }).expect("committed");
            let now = gauge.bytes(&keyspace);
            assert!(now >= last + 1000, "{now} after {last}");
            last = now;
        }
        keyspace.flush().expect("flushed");
        gauge.measure(&keyspace, 0).expect("measured");
        let size = keyspace.size().expect("the size").on_disk_bytes;
        assert_eq!((gauge.bytes(&keyspace), gauge.bytes_in_use(&keyspace)), (size, size));
    }
}
