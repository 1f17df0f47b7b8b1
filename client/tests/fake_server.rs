//! A gRPC server for tests whose answers the test writes itself, so that it can also answer wrongly, late or not at all.
//! Keeps no keys. Shared by the tests of the client library and of the load harness.

use std::{future::Future, net::SocketAddr, thread};

use bytes::{Buf, Bytes, BytesMut};
use h2::{
    Reason, RecvStream, SendStream,
    server::{self, SendResponse},
};
use http::{HeaderMap, HeaderValue, Response};
use prost::Message;
use tokio::{net::TcpListener, runtime, sync::oneshot};

/// A running server; ends when dropped.
pub struct FakeServer {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl FakeServer {
    /// Starts a server on a free port; `handler` is called for each call, in order of arrival.
    pub fn start<F, Fut>(handler: F) -> Self
    where
        F: Fn(Call) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let (tell, address) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                tell.send(listener.local_addr().expect("bound")).expect("the test waits");
                tokio::select! {
                    () = serve(listener, handler) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address: address.recv().expect("the server starts"), _stop: stop }
    }

    /// `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

async fn serve<F, Fut>(listener: TcpListener, handler: F)
where
    F: Fn(Call) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        let (socket, _) = listener.accept().await.expect("accepts");
        let handler = handler.clone();
        tokio::spawn(async move {
            let Ok(mut connection) = server::handshake(socket).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                let path = request.uri().path().to_owned();
                let header = |name| request.headers().get(name).map(|value| value.to_str().expect("ASCII").to_owned());
                let (token, timeout) = (header("token"), header("grpc-timeout"));
                tokio::spawn(handler(Call {
                    path,
                    token,
                    timeout,
                    incoming: Incoming::new(request.into_body()),
                    respond,
                }));
            }
        });
    }
}

/// One call of a client.
pub struct Call {
    pub path: String,
    /// Who calls.
    #[allow(dead_code, reason = "not every test that shares this file looks at it")]
    pub token: Option<String>,
    /// How long the caller waits.
    #[allow(dead_code, reason = "not every test that shares this file looks at it")]
    pub timeout: Option<String>,
    pub incoming: Incoming,
    respond: SendResponse<Bytes>,
}

impl Call {
    /// Answers with one message.
    pub fn answer(self, message: &impl Message) {
        let mut outgoing = self.open();
        outgoing.send(message);
        outgoing.end();
    }

    /// Answers with an error and nothing else.
    pub fn refuse(mut self, code: u32, text: &str) {
        let mut response = headers();
        response.headers_mut().insert("grpc-status", HeaderValue::from(code));
        response.headers_mut().insert("grpc-message", HeaderValue::from_str(text).expect("plain text"));
        let _ = self.respond.send_response(response, true);
    }

    /// Begins a stream of answers.
    pub fn open(mut self) -> Outgoing {
        let stream = self.respond.send_response(headers(), false).expect("the client is there");
        Outgoing { stream, incoming: self.incoming }
    }
}

fn headers() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("valid")
}

/// What a client sends in a call.
pub struct Incoming {
    body: RecvStream,
    buffer: BytesMut,
}

impl Incoming {
    fn new(body: RecvStream) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next message; none when the client has ended or broken the stream.
    pub async fn message<M: Message + Default>(&mut self) -> Option<M> {
        loop {
            if self.buffer.len() >= 5 {
                let length = u32::from_be_bytes(self.buffer[1..5].try_into().expect("four bytes")) as usize;
                if self.buffer.len() >= 5 + length {
                    self.buffer.advance(5);
                    return Some(M::decode(self.buffer.split_to(length).freeze()).expect("a valid message"));
                }
            }
            let chunk = self.body.data().await?.ok()?;
            self.body.flow_control().release_capacity(chunk.len()).ok()?;
            self.buffer.extend_from_slice(&chunk);
        }
    }
}

/// An answer under way.
pub struct Outgoing {
    stream: SendStream<Bytes>,
    pub incoming: Incoming,
}

impl Outgoing {
    pub fn send(&mut self, message: &impl Message) {
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.encoded_len()).expect("small").to_be_bytes());
        framed.extend_from_slice(&message.encode_to_vec());
        // A client that has gone away is its own affair.
        let _ = self.stream.send_data(framed.into(), false);
    }

    /// Ends the call well.
    pub fn end(mut self) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let _ = self.stream.send_trailers(trailers);
    }

    /// Breaks the stream.
    pub fn reset(mut self) {
        self.stream.send_reset(Reason::INTERNAL_ERROR);
    }
}
