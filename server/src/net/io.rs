//! The bytes of one connection: what has been read ahead to find out the protocol, and small writes gathered into one.
//! Knows no protocol.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::accept::AcceptedSocket;
use super::authority::Filter;
use super::pings::{self, PingScan};
use crate::limits;

/// A connection of a client, encrypted or not.
pub(crate) enum Socket {
    Plain(Raw),
    Tls(Box<TlsStream<Rewound>>),
}

/// A socket of a client as the system knows it.
pub(crate) enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Raw {
    /// Registers a socket with this thread's runtime.
    pub fn adopt(socket: AcceptedSocket) -> io::Result<Self> {
        match socket {
            AcceptedSocket::Tcp(stream) => TcpStream::from_std(stream).map(Self::Tcp),
            AcceptedSocket::Unix(stream) => UnixStream::from_std(stream).map(Self::Unix),
        }
    }
}

impl AsyncRead for Raw {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Raw {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// There is nothing between us and the kernel.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A socket of which something has been read already, which is read again.
pub(crate) struct Rewound {
    pub ahead: Bytes,
    pub raw: Raw,
}

impl AsyncRead for Rewound {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.raw).poll_read(cx, buffer);
        }
        let length = this.ahead.len().min(buffer.remaining());
        buffer.put_slice(&this.ahead.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().raw).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().raw).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().raw).poll_shutdown(cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(raw) => Pin::new(raw).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl Socket {
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(raw) => Pin::new(raw).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// Gives the system what encryption may hold back.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(raw) => Pin::new(raw).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    /// Writes the end of a connection. With `waits` it also waits until the other end closes it: else the system throws
    /// away what the other end has not read yet, if it has sent something meanwhile that nobody reads.
    pub async fn say_last(&mut self, bytes: &[u8], waits: bool) -> io::Result<()> {
        let mut written = 0;
        while written < bytes.len() {
            match poll_fn(|cx| self.poll_write(cx, &bytes[written..])).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                more => written += more,
            }
        }
        poll_fn(|cx| self.poll_flush(cx)).await?;
        poll_fn(|cx| self.poll_shutdown(cx)).await?;
        let mut rest = [0; 4096];
        while waits && self.read(&mut rest).await? > 0 {}
        Ok(())
    }
}

/// A connection. It declares that it does not write vectors: then h2 copies frames of up to 1 KiB into its own buffer
/// and writes many replies at once, instead of one a system call.
pub(crate) struct Io {
    socket: Socket,
    /// Read ahead and not consumed yet.
    ahead: Bytes,
    /// At the beginning of an HTTP/2 connection: everything that is read goes through it.
    filter: Option<Filter>,
    /// Written and not yet given to the socket.
    out: BytesMut,
    /// Looks at the frames of an HTTP/2 connection whose client may not ping as it likes.
    scan: Option<PingScan>,
    /// The connection is closed for too many pings once this is set, and says so.
    says_too_many_pings: Rc<Cell<bool>>,
    /// Bytes read so far, for whoever wants to know whether the other end is alive.
    received: Rc<Cell<u64>>,
}

impl Io {
    /// A connection of which `ahead` has been read.
    pub fn new(socket: Socket, ahead: Bytes) -> Self {
        Self {
            socket,
            ahead,
            filter: None,
            out: BytesMut::new(),
            scan: None,
            says_too_many_pings: Rc::default(),
            received: Rc::default(),
        }
    }

    /// A connection that has begun as HTTP/2 with `ahead`.
    pub fn new_http2(socket: Socket, ahead: Bytes, mut scan: Option<PingScan>) -> Self {
        if let Some(scan) = &mut scan {
            scan.received(&ahead);
        }
        let mut filter = Filter::new();
        let ahead = filter.pass(&ahead);
        Self { filter: Some(filter).filter(|filter| !filter.is_done()), scan, ..Self::new(socket, ahead) }
    }

    /// The running count of bytes read.
    pub fn received(&self) -> Rc<Cell<u64>> {
        self.received.clone()
    }

    /// Set by whoever closes the connection for too many pings.
    pub fn says_too_many_pings(&self) -> Rc<Cell<bool>> {
        self.says_too_many_pings.clone()
    }

    /// Bytes have come from the other end.
    fn note_received(&mut self, bytes: &[u8]) {
        self.received.set(self.received.get() + bytes.len() as u64);
        if let Some(scan) = &mut self.scan {
            scan.received(bytes);
        }
    }

    /// Reads through the filter into `ahead`; false at the end of the connection.
    fn poll_filter(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut bytes = [0; 1024];
        let mut read = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
        let read = read.filled();
        self.note_received(read);
        if let Some(filter) = &mut self.filter {
            self.ahead = filter.pass(read);
            if filter.is_done() {
                self.filter = None;
            }
        }
        Poll::Ready(Ok(!read.is_empty()))
    }

    /// Takes bytes to be written, as many as it says.
    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.says_too_many_pings.get() {
            // The last words: what h2 writes now is small.
            let with_reason = pings::with_reason(bytes);
            self.out.extend_from_slice(with_reason.as_deref().unwrap_or(bytes));
            return Poll::Ready(Ok(bytes.len()));
        }
        // What is large on its own, or follows nothing, needs no copy.
        if self.out.is_empty() && bytes.len() >= 4096 {
            return self.socket.poll_write(cx, bytes);
        }
        if self.out.len() + bytes.len() > limits::WRITE_BUFFER_BYTES {
            ready!(self.poll_drain(cx))?;
            if bytes.len() > limits::WRITE_BUFFER_BYTES {
                return self.socket.poll_write(cx, bytes);
            }
        }
        self.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(self.socket.poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        // Thousands of idle connections must not each keep a buffer.
        if self.out.capacity() > 4096 {
            self.out = BytesMut::new();
        }
        self.socket.poll_flush(cx)
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() && self.filter.is_some() {
            if !ready!(self.poll_filter(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buffer))?;
        self.note_received(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(self.poll_take(cx, bytes))?;
        if let Some(scan) = &mut self.scan {
            scan.sent(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        self.socket.poll_shutdown(cx)
    }
}
