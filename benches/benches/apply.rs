//! Apply without its thread: decoded commands to one write batch, with answers. Over the backend that servers use, and
//! over the model, which shows what is not RocksDB.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use daymark_api::etcdserverpb as pb;
use daymark_raft::{AppliedProgress, Committed, EntryBody};
use daymark_server::apply::Applier;
use daymark_server::command::{self, Kind};
use daymark_server::mailbox::{Mailbox, ReplyTo};
use daymark_server::views::Views;
use daymark_storage::LogId;
use daymark_storage::backend::{Backend, MemBackend, RocksBackend, RocksOptions};
use daymark_storage::mvcc::Keyspace;

const COMMANDS: u64 = 256;
const KEYS: u64 = 200_000;

struct Machine {
    applier: Applier,
    mailbox: Arc<Mailbox>,
    index: u64,
    random: u64,
    value: Bytes,
}

impl Machine {
    fn new(backend: Arc<dyn Backend>) -> Self {
        let mailbox = Mailbox::new(1 << 20);
        let (keyspace, writer) = Keyspace::open(backend).expect("the keyspace opens");
        let views = Views::new(keyspace, 1, 1, vec![mailbox.clone()]);
        let applier = Applier::open(writer, views, AppliedProgress::default()).expect("the state opens");
        Self { applier, mailbox, index: 0, random: 1, value: vec![7; 256].into() }
    }

    fn key(&mut self) -> Bytes {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Bytes::copy_from_slice(&((self.random >> 33) % KEYS).to_be_bytes())
    }

    fn entry(&mut self, mut add: impl FnMut(Bytes, &Bytes, &mut BytesMut)) -> Committed {
        let mut bytes = BytesMut::new();
        for _ in 0..COMMANDS {
            let (key, value) = (self.key(), self.value.clone());
            add(key, &value, &mut bytes);
        }
        self.index += 1;
        let waiter = Box::new(ReplyTo { mailbox: self.mailbox.clone(), batch: self.index });
        let body = EntryBody::Commands { bytes: bytes.freeze(), waiter: Some(waiter) };
        Committed { id: LogId { term: 1, index: self.index }, body }
    }

    fn apply(&mut self, entry: Committed) {
        self.applier.step([entry]).expect("applied");
        assert!(self.mailbox.pop_replies().is_some());
    }
}

fn put(key: Bytes, value: &Bytes, bytes: &mut BytesMut) {
    let put = pb::PutRequest { key, value: value.clone(), ..Default::default() };
    command::append(bytes, Kind::Put, None, &put);
}

/// What Kubernetes does: replace a key if it has not changed, else read it.
fn update(key: Bytes, value: &Bytes, bytes: &mut BytesMut) {
    use pb::compare::TargetUnion;
    use pb::request_op::Request;
    let op = |request| vec![pb::RequestOp { request: Some(request) }];
    let compare = pb::Compare {
        target: pb::compare::CompareTarget::Mod as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(0)),
        ..Default::default()
    };
    let put = pb::PutRequest { key: key.clone(), value: value.clone(), ..Default::default() };
    let txn = pb::TxnRequest {
        compare: vec![compare],
        success: op(Request::RequestPut(put)),
        failure: op(Request::RequestRange(pb::RangeRequest { key, ..Default::default() })),
    };
    command::append(bytes, Kind::Txn, None, &txn);
}

fn bench(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = RocksOptions::new(dir.path().join("state"));
    let rocks = RocksBackend::open(options).expect("the backend opens");
    for (name, backend) in [("rocksdb", rocks as Arc<dyn Backend>), ("memory", MemBackend::new())] {
        let mut machine = Machine::new(backend);
        let mut group = criterion.benchmark_group(format!("apply/{name}"));
        group.throughput(Throughput::Elements(COMMANDS));
        let mut run = |what: &str, add: fn(Bytes, &Bytes, &mut BytesMut)| {
            let machine = std::cell::RefCell::new(&mut machine);
            group.bench_function(what, |bencher| {
                bencher.iter_batched(
                    || machine.borrow_mut().entry(add),
                    |entry| machine.borrow_mut().apply(entry),
                    BatchSize::PerIteration,
                );
            });
        };
        run("put", put);
        run("txn", update);
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
