//! The net layer alone: a server that answers every Put at once, to measure what transport costs (`daymark bench floor`).
//! Not a store: it keeps nothing and serves nothing else but Status.

use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use daymark_api::etcdserverpb as pb;

use crate::config::flags::Given;
use crate::config::values::parse_url;
use crate::config::{Config, Http2Server, SocketOptions, TransportOptions};
use crate::error::Error;
use crate::metrics::{Metrics, Sample};
use crate::net::accept::{Role, bind};
use crate::net::{Condition, FrontDoor, NetOptions, NetThreads};
use crate::request::{Context, Reply, Request, RequestStream, Sink, StreamRequest};
use crate::server::net_threads;
use crate::version;

struct Echo;

impl FrontDoor for Echo {
    async fn call(self: &Rc<Self>, _: &Context, request: Request) -> Result<Reply, Error> {
        // As with the store, the answer comes in a later turn.
        tokio::task::yield_now().await;
        let header =
            Some(pb::ResponseHeader { cluster_id: 1 << 60, member_id: 1 << 61, revision: 1 << 20, raft_term: 2 });
        match request {
            Request::Put(_) => Ok(Reply::Put(pb::PutResponse { header, prev_kv: None })),
            Request::Status(_) => {
                let version = version::ETCD_VERSION.into();
                Ok(Reply::Status(pb::StatusResponse { header, version, ..Default::default() }))
            }
            _ => Err(Error::NotCapable),
        }
    }

    async fn watch(self: &Rc<Self>, _: Context, _: RequestStream<pb::WatchRequest>, sink: Sink) {
        sink.finish(Err(Error::NotCapable));
    }

    async fn lease_keep_alive(self: &Rc<Self>, _: Context, _: RequestStream<pb::LeaseKeepAliveRequest>, sink: Sink) {
        sink.finish(Err(Error::NotCapable));
    }

    async fn stream(self: &Rc<Self>, _: Context, _: StreamRequest, sink: Sink) {
        sink.finish(Err(Error::NotCapable));
    }

    async fn probe(self: &Rc<Self>, _: bool) -> Result<(), Error> {
        Ok(())
    }

    fn condition(&self) -> Condition {
        Condition { has_leader: true, ..Condition::default() }
    }
}

/// Serves on `url` with a member's default settings and as many net threads (0: as many as a member takes by itself),
/// prints `listening HOST:PORT`, and returns when standard input ends: so it never outlives who started it.
///
/// # Errors
/// A bad or taken address; no threads.
pub fn run(url: &str, threads: usize, http2_server: Http2Server) -> Result<()> {
    let (config, _) = Config::from_given(&Given::default()).map_err(|error| anyhow!("default settings: {error}"))?;
    let threads = net_threads(threads);
    let options = NetOptions {
        answers: Arc::default(),
        threads,
        transport: TransportOptions { http2_server, ..config.transport },
        warning_unary_request: config.warning_unary_request,
        warning_apply: config.warning_apply,
        cors: config.cors,
        host_whitelist: config.host_whitelist,
        gateway: config.gateway,
        grace: Duration::from_secs(1),
        tls: None,
    };
    let url = parse_url(url).map_err(|error| anyhow!("--listen: {error}"))?;
    let bound = bind(&[url], Role::Client, SocketOptions::default())?;
    let address = bound.first().and_then(|bound| bound.local_address()).context("--listen: not a TCP address")?;
    let metrics = Metrics::new(threads, Arc::new(Sample::default));
    let net = NetThreads::start(options, metrics, |_| Rc::new(Echo))?;
    net.listen(bound);
    println!("listening {address}");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    net.stop();
    Ok(())
}
