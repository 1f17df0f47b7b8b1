//! A server between clients and a member that lies to them on purpose: what checks answers has to notice it. Passes calls
//! on as they are, but for those that the lie is about.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use daymark_api::etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader, TxnResponse};
use h2::{RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::net::{TcpListener, TcpStream};

use crate::wire::frame;

const RANGE: &str = "/etcdserverpb.KV/Range";
const TXN: &str = "/etcdserverpb.KV/Txn";
/// One of so many writes is forgotten.
const FORGETS_EACH: u64 = 10;

/// What is not true.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Reads are answered from what the member has, however old that is.
    StaleReads,
    /// Now and then a transaction is acknowledged that nobody gets to see.
    ForgottenWrites,
    /// Answers to reads say that they are of an earlier revision.
    OldRevisions,
}

struct Liar {
    target: String,
    lie: Lie,
    revision: AtomicI64,
    writes: AtomicU64,
}

/// Starts one in front of `target`: where it listens. It ends with the runtime.
pub async fn start(target: &str, lie: Lie) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let endpoint = listener.local_addr().expect("it is bound").to_string();
    let (revision, writes) = (AtomicI64::new(0), AtomicU64::new(0));
    let liar = Arc::new(Liar { target: target.to_owned(), lie, revision, writes });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Errors end the connection, which its client notices.
            tokio::spawn(liar.clone().serve(stream));
        }
    });
    endpoint
}

type Outcome = Result<(), h2::Error>;

impl Liar {
    async fn serve(self: Arc<Self>, stream: TcpStream) -> Outcome {
        let _ = stream.set_nodelay(true);
        let target = TcpStream::connect(&self.target).await.map_err(|_| h2::Error::from(h2::Reason::CONNECT_ERROR))?;
        let _ = target.set_nodelay(true);
        let (sender, connection) = h2::client::handshake(target).await?;
        tokio::spawn(async move { drop(connection.await) });
        let mut calls = h2::server::handshake(stream).await?;
        while let Some(call) = calls.accept().await {
            let (request, respond) = call?;
            tokio::spawn(self.clone().pass(request, respond, sender.clone()));
        }
        Ok(())
    }

    async fn pass(
        self: Arc<Self>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        sender: SendRequest<Bytes>,
    ) -> Outcome {
        let path = request.uri().path().to_owned();
        match &path[..] {
            RANGE | TXN => self.pass_unary(&path, request, respond, sender).await,
            _ => pass_stream(request, respond, sender).await,
        }
    }

    async fn pass_unary(
        &self,
        path: &str,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        sender: SendRequest<Bytes>,
    ) -> Outcome {
        let (head, body) = request.into_parts();
        let asked = self.falsify_request(path, read(body).await?.0);
        if path == TXN && self.forgets() {
            let header = ResponseHeader { revision: self.revision.load(Ordering::SeqCst) + 1, ..Default::default() };
            let answer = TxnResponse { header: Some(header), succeeded: true, ..Default::default() };
            let head = Response::builder().header("content-type", "application/grpc").body(()).expect("well formed");
            let mut out = respond.send_response(head, false)?;
            out.send_data(frame(0, &answer.encode_to_vec()), false)?;
            let trailers =
                HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().expect("ASCII"))]);
            return out.send_trailers(trailers);
        }
        let (answer, mut body) = sender.ready().await?.send_request(Request::from_parts(head, ()), false)?;
        body.send_data(asked, true)?;
        let (head, body) = answer.await?.into_parts();
        if body.is_end_stream() {
            return respond.send_response(Response::from_parts(head, ()), true).map(drop);
        }
        let (answer, trailers) = read(body).await?;
        let mut out = respond.send_response(Response::from_parts(head, ()), false)?;
        out.send_data(self.falsify_answer(path, answer), false)?;
        out.send_trailers(trailers)
    }

    fn forgets(&self) -> bool {
        self.lie == Lie::ForgottenWrites
            && self.writes.fetch_add(1, Ordering::SeqCst) % FORGETS_EACH == FORGETS_EACH - 1
    }

    fn falsify_request(&self, path: &str, body: Bytes) -> Bytes {
        if (self.lie, path) != (Lie::StaleReads, RANGE) {
            return body;
        }
        let asked = RangeRequest::decode(&body[5..]).expect("a client's message");
        frame(0, &RangeRequest { serializable: true, ..asked }.encode_to_vec())
    }

    fn falsify_answer(&self, path: &str, body: Bytes) -> Bytes {
        let Some(message) = body.get(5..).filter(|_| path == RANGE) else { return body };
        let mut answer = RangeResponse::decode(message).expect("a member's message");
        let Some(header) = &mut answer.header else { return body };
        self.revision.fetch_max(header.revision, Ordering::SeqCst);
        if self.lie != Lie::OldRevisions {
            return body;
        }
        header.revision = (header.revision / 2).max(1);
        frame(0, &answer.encode_to_vec())
    }
}

/// All of a body, and what came behind it.
async fn read(mut body: RecvStream) -> Result<(Bytes, HeaderMap), h2::Error> {
    let mut whole = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data?;
        let _ = body.flow_control().release_capacity(data.len());
        whole.extend_from_slice(&data);
    }
    Ok((whole.freeze(), body.trailers().await?.unwrap_or_default()))
}

/// A call in which both halves stay open.
async fn pass_stream(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    sender: SendRequest<Bytes>,
) -> Outcome {
    let (head, from_client) = request.into_parts();
    let (answer, to_member) = sender.ready().await?.send_request(Request::from_parts(head, ()), false)?;
    tokio::spawn(pump(from_client, to_member));
    let (head, from_member) = answer.await?.into_parts();
    if from_member.is_end_stream() {
        return respond.send_response(Response::from_parts(head, ()), true).map(drop);
    }
    let to_client = respond.send_response(Response::from_parts(head, ()), false)?;
    pump(from_member, to_client).await
}

async fn pump(mut from: RecvStream, mut to: SendStream<Bytes>) -> Outcome {
    while let Some(data) = from.data().await {
        let data = data?;
        let _ = from.flow_control().release_capacity(data.len());
        to.send_data(data, false)?;
    }
    match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(Bytes::new(), true),
    }
}
