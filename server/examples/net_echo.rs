//! The net layer alone: answers every Put at once, to measure what transport costs. Not a store.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use daymark_api::etcdserverpb as pb;
use daymark_server::config::values::parse_url;
use daymark_server::config::{SocketOptions, TransportOptions};
use daymark_server::error::Error;
use daymark_server::metrics::{Metrics, Sample};
use daymark_server::net::accept::{Role, bind};
use daymark_server::net::{Condition, FrontDoor, NetOptions, NetThreads};
use daymark_server::request::{Context, Reply, Request, RequestStream, Sink, StreamRequest};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Echo;

impl FrontDoor for Echo {
    async fn call(self: &Rc<Self>, _: &Context, request: Request) -> Result<Reply, Error> {
        // As the store: the answer comes in a later turn.
        tokio::task::yield_now().await;
        let header =
            Some(pb::ResponseHeader { cluster_id: 1 << 60, member_id: 1 << 61, revision: 1 << 20, raft_term: 2 });
        match request {
            Request::Put(_) => Ok(Reply::Put(pb::PutResponse { header, prev_kv: None })),
            Request::Status(_) => {
                Ok(Reply::Status(pb::StatusResponse { header, version: "3.7.1".into(), ..Default::default() }))
            }
            _ => Err(Error::NotCapable),
        }
    }

    async fn watch(self: &Rc<Self>, _: Context, _: RequestStream<pb::WatchRequest>, _: Sink) {}

    async fn lease_keep_alive(self: &Rc<Self>, _: Context, _: RequestStream<pb::LeaseKeepAliveRequest>, _: Sink) {}

    async fn stream(self: &Rc<Self>, _: Context, _: StreamRequest, sink: Sink) {
        sink.finish(Ok(()));
    }

    async fn probe(self: &Rc<Self>, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn condition(&self) -> Condition {
        Condition { has_leader: true, ..Condition::default() }
    }
}

fn main() {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok()).unwrap_or(1);
    let url = std::env::args().nth(2).unwrap_or("http://127.0.0.1:12399".into());
    let transport = TransportOptions {
        max_concurrent_streams: 100_000,
        message_bytes_max: 2 << 20,
        keepalive_interval: None,
        keepalive_timeout: Duration::from_secs(20),
        keepalive_min_time: Duration::from_secs(5),
    };
    let options = NetOptions {
        answers: Arc::default(),
        threads,
        transport,
        warning_unary_request: Duration::from_secs(60),
        warning_apply: Duration::from_secs(60),
        cors: Vec::new(),
        host_whitelist: Vec::new(),
        gateway: true,
        grace: Duration::from_secs(1),
        tls: None,
    };
    let metrics = Metrics::new(threads, Arc::new(Sample::default));
    let net = NetThreads::start(options, metrics, |_| Rc::new(Echo)).expect("threads");
    let url = parse_url(&url).expect("url");
    net.listen(bind(&[url], Role::Client, SocketOptions::default()).expect("port"));
    loop {
        std::thread::park();
    }
}
