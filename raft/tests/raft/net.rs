//! A network in memory between the members of a test: streams with a switch for each direction. What is sent into a cut
//! is not lost but waits, as TCP does; a connection that is opened across one waits as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use daymark_raft::{BoxFuture, Dialer, Handle, PeerStream};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// What a socket's buffers would hold.
const WIRE_BYTES: usize = 256 << 10;

/// The kind of a connection in its hello, and appends among them; see `docs/formats/peer.md`.
const KIND_AT: usize = 19;
const APPENDS: u8 = 1;

#[derive(Default)]
struct Switches {
    /// From and to.
    cut: BTreeSet<(u64, u64)>,
    waiting: Vec<Waker>,
    /// Pairs between which connections break and are refused.
    broken: BTreeSet<(u64, u64)>,
    /// Who reads from which wire.
    readers: BTreeMap<u64, Waker>,
    wires: u64,
    /// Members that take no more appends.
    clogged: BTreeSet<u64>,
    members: BTreeMap<u64, Handle>,
    dialed: u64,
}

#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<Switches>>);

impl Net {
    pub fn join(&self, id: u64, handle: Handle) {
        self.0.lock().unwrap().members.insert(id, handle);
    }

    pub fn leave(&self, id: u64) {
        self.0.lock().unwrap().members.remove(&id);
    }

    /// Nothing arrives any more that `from` sends to `to`.
    pub fn cut(&self, from: u64, to: u64) {
        self.0.lock().unwrap().cut.insert((from, to));
    }

    pub fn cut_both(&self, one: u64, other: u64) {
        self.cut(one, other);
        self.cut(other, one);
    }

    /// Ends the connections between two members and refuses new ones.
    pub fn break_between(&self, one: u64, other: u64) {
        let readers = {
            let mut switches = self.0.lock().unwrap();
            switches.broken.extend([(one, other), (other, one)]);
            std::mem::take(&mut switches.readers)
        };
        readers.into_values().for_each(Waker::wake);
    }

    /// Appends to this member get stuck, up to what the wires hold; all else passes.
    pub fn clog(&self, to: u64) {
        self.0.lock().unwrap().clogged.insert(to);
    }

    pub fn heal(&self) {
        let waiting = {
            let mut switches = self.0.lock().unwrap();
            switches.cut.clear();
            switches.clogged.clear();
            switches.broken.clear();
            std::mem::take(&mut switches.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn is_broken(&self, from: u64, to: u64) -> bool {
        self.0.lock().unwrap().broken.contains(&(from, to))
    }

    /// How often somebody has tried to connect.
    pub fn dialed(&self) -> u64 {
        self.0.lock().unwrap().dialed
    }

    pub fn dialer(&self, own: u64) -> Arc<dyn Dialer> {
        Arc::new(Port { net: self.clone(), own })
    }

    fn poll_open(&self, from: u64, to: u64, context: &Context<'_>) -> Poll<()> {
        let mut switches = self.0.lock().unwrap();
        if switches.cut.contains(&(from, to)) {
            switches.waiting.push(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn poll_unclogged(&self, to: u64, kind: u8, context: &Context<'_>) -> Poll<()> {
        let mut switches = self.0.lock().unwrap();
        if kind == APPENDS && switches.clogged.contains(&to) {
            switches.waiting.push(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Both ends of a connection that `from` opens to `to`.
    pub fn wires(&self, from: u64, to: u64) -> (PeerStream, PeerStream) {
        let (near, far) = tokio::io::duplex(WIRE_BYTES);
        let kind = Arc::new(AtomicU8::new(0));
        let wire = |inner, from, to| {
            let mut switches = self.0.lock().unwrap();
            switches.wires += 1;
            let (net, kind, number) = (self.clone(), kind.clone(), switches.wires);
            Box::new(Wire { inner, net, kind, number, from, to }) as PeerStream
        };
        (wire(near, to, from), wire(far, from, to))
    }
}

struct Port {
    net: Net,
    own: u64,
}

impl Dialer for Port {
    fn dial(&self, to: u64) -> BoxFuture<io::Result<PeerStream>> {
        let (net, from) = (self.net.clone(), self.own);
        net.0.lock().unwrap().dialed += 1;
        Box::pin(async move {
            std::future::poll_fn(|context| net.poll_open(from, to, context)).await;
            std::future::poll_fn(|context| net.poll_open(to, from, context)).await;
            let handle = net.0.lock().unwrap().members.get(&to).cloned();
            let handle = handle.filter(|_| !net.is_broken(from, to));
            let handle = handle.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            let (near, far) = net.wires(from, to);
            handle.accept_peer(far);
            Ok(near)
        })
    }
}

/// One end: what `from` sends is read here by `to`.
struct Wire {
    inner: DuplexStream,
    net: Net,
    /// Of the connection, once its hello was written.
    kind: Arc<AtomicU8>,
    number: u64,
    from: u64,
    to: u64,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.net.0.lock().unwrap().readers.remove(&self.number);
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.net.is_broken(self.from, self.to) {
            return Poll::Ready(Ok(()));
        }
        self.net.0.lock().unwrap().readers.insert(self.number, cx.waker().clone());
        std::task::ready!(self.net.poll_open(self.from, self.to, cx));
        std::task::ready!(self.net.poll_unclogged(self.to, self.kind.load(Ordering::Relaxed), cx));
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.net.is_broken(self.from, self.to) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // The one who opens it writes first.
        if self.kind.load(Ordering::Relaxed) == 0 {
            self.kind.store(bytes.get(KIND_AT).copied().unwrap_or(0), Ordering::Relaxed);
        }
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
