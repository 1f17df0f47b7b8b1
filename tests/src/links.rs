//! The network between members under test: a relay in front of each member's peer port, and directions that can be cut.
//! A relay knows who dialled from the first bytes of a connection, in Daymark's and in etcd's way. Knows no servers.

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::{oneshot, watch},
    time::timeout,
};

/// A connection whose sender is not known by then is passed on, and never cut.
const FIRST_BYTES_MAX: usize = 8 << 10;
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);
const CHUNK_BYTES: usize = 64 << 10;

/// What Daymark's connections begin with, and where in it the sender's id is.
const HELLO: &[u8] = b"DAYMARKP";
const HELLO_SENDER_AT: usize = 19;
/// etcd's header with the sender's id.
const SERVER_FROM: &[u8] = b"x-server-from: ";

/// How a direction is cut.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Bytes wait, as packets that are dropped and sent again do; connections seem to be made and say nothing.
    Silent,
    /// Connections break, new ones too.
    Loud,
}

/// Which directions are cut, shared by the relays. These have a thread of their own, so that what a test does between
/// does not slow the members' network down.
#[derive(Clone)]
pub struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    /// By dialler or sender, and receiver.
    cuts: watch::Sender<HashMap<(usize, usize), Cut>>,
    ids: Mutex<HashMap<u64, usize>>,
    held: AtomicU64,
    runtime: Handle,
    /// The thread ends with it.
    _running: oneshot::Sender<()>,
}

impl Links {
    /// Nothing is cut.
    #[expect(clippy::new_without_default, reason = "relays belong to it")]
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (handle, (running, ended)) = (runtime.handle().clone(), oneshot::channel::<()>());
        std::thread::spawn(move || drop(runtime.block_on(ended)));
        let cuts = watch::Sender::new(HashMap::new());
        let ids = Mutex::default();
        let shared = Shared { cuts, ids, held: AtomicU64::new(0), runtime: handle, _running: running };
        Self { shared: Arc::new(shared) }
    }

    /// Tells which member has which id. Connections of ids that nobody has told yet are passed on.
    pub fn know(&self, id: u64, member: usize) {
        self.shared.ids.lock().expect("no holder panics").insert(id, member);
    }

    /// Cuts what `from` sends to `to`.
    pub fn cut(&self, from: usize, to: usize, how: Cut) {
        self.shared.cuts.send_modify(|cuts| {
            cuts.insert((from, to), how);
        });
    }

    /// Undoes a cut.
    pub fn heal(&self, from: usize, to: usize) {
        self.shared.cuts.send_modify(|cuts| {
            cuts.remove(&(from, to));
        });
    }

    /// Undoes all of them.
    pub fn heal_all(&self) {
        self.shared.cuts.send_modify(HashMap::clear);
    }

    /// How often something that was sent or dialled met a cut.
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Relays what arrives at `relay_port` to member `to`, which listens on `port`.
    ///
    /// # Panics
    /// When the port is taken.
    pub fn relay(&self, relay_port: u16, to: usize, port: u16) {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, relay_port)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket that does not block");
        let weak = Arc::downgrade(&self.shared);
        self.shared.runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("inside of a runtime");
            while let Ok((stream, _)) = listener.accept().await {
                let Some(shared) = weak.upgrade() else { return };
                tokio::spawn(Self { shared }.pass(stream, to, port));
            }
        });
    }

    /// One connection. Errors mean that one of the ends is gone, and so is the other then.
    async fn pass(self, mut dialled: TcpStream, to: usize, port: u16) {
        let mut first = Vec::new();
        let seen = timeout(FIRST_BYTES_TIMEOUT, self.identify(&mut dialled, &mut first)).await;
        let (from, to) = (End::Id(seen.unwrap_or_default()), End::Place(to));
        if !self.wait_open(from, to).await {
            return;
        }
        let Ok(mut target) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
        let _ = (dialled.set_nodelay(true), target.set_nodelay(true));
        if target.write_all(&first).await.is_err() {
            return;
        }
        let ((theirs, to_them), (ours, to_us)) = (tokio::io::split(dialled), tokio::io::split(target));
        tokio::select! {
            () = self.pump(theirs, to_us, from, to) => {}
            () = self.pump(ours, to_them, to, from) => {}
        }
    }

    /// Reads until it is clear who dialled.
    async fn identify(&self, dialled: &mut TcpStream, first: &mut Vec<u8>) -> Option<u64> {
        while first.len() < FIRST_BYTES_MAX {
            if dialled.read_buf(first).await.ok()? == 0 {
                return None;
            }
            if let Some(id) = sender(first) {
                return Some(id);
            }
        }
        None
    }

    async fn pump(&self, mut from: ReadHalf<TcpStream>, mut to: WriteHalf<TcpStream>, sender: End, receiver: End) {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut cuts = self.shared.cuts.subscribe();
        loop {
            let is_loud =
                |cuts: &HashMap<_, _>| self.way(sender, receiver).and_then(|way| cuts.get(&way)) == Some(&Cut::Loud);
            let length = tokio::select! {
                read = from.read(&mut chunk) => read.unwrap_or(0),
                _ = cuts.wait_for(is_loud) => 0,
            };
            if length == 0 || !self.wait_open(sender, receiver).await || to.write_all(&chunk[..length]).await.is_err() {
                return;
            }
        }
    }

    /// Waits while the direction is cut silently; whether it is open then, and not cut loudly.
    async fn wait_open(&self, sender: End, receiver: End) -> bool {
        let Some(way) = self.way(sender, receiver) else { return true };
        let mut cuts = self.shared.cuts.subscribe();
        if let Some(cut) = cuts.borrow().get(&way) {
            self.shared.held.fetch_add(1, Ordering::Relaxed);
            if *cut == Cut::Loud {
                return false;
            }
        }
        let open = cuts.wait_for(|cuts| cuts.get(&way) != Some(&Cut::Silent)).await;
        open.is_ok_and(|cuts| !cuts.contains_key(&way))
    }

    fn way(&self, sender: End, receiver: End) -> Option<(usize, usize)> {
        self.place(sender).zip(self.place(receiver))
    }

    fn place(&self, end: End) -> Option<usize> {
        match end {
            End::Place(place) => Some(place),
            End::Id(id) => self.shared.ids.lock().expect("no holder panics").get(&id?).copied(),
        }
    }
}

/// One end of a connection: the member that it was relayed to, or whoever has dialled, whose place may become known while
/// the connection stands.
#[derive(Copy, Clone)]
enum End {
    Place(usize),
    Id(Option<u64>),
}

/// Whose connection begins like this, as far as it can be told yet.
fn sender(first: &[u8]) -> Option<u64> {
    let find = |wanted: &[u8]| first.windows(wanted.len()).position(|at| at.eq_ignore_ascii_case(wanted));
    if let Some(hello) = find(HELLO) {
        let id = first.get(hello + HELLO_SENDER_AT..)?.first_chunk()?;
        return Some(u64::from_le_bytes(*id));
    }
    let value = &first[find(SERVER_FROM)? + SERVER_FROM.len()..];
    let end = value.iter().position(|byte| *byte == b'\r')?;
    u64::from_str_radix(std::str::from_utf8(&value[..end]).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo(listener: TcpListener) {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    }

    #[tokio::test]
    async fn one_direction_is_held_and_delivered_later_and_loud_cuts_break() {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (target_port, relay_port) = (target.local_addr().unwrap().port(), crate::ports::free());
        tokio::spawn(echo(target));
        let links = Links::new();
        links.relay(relay_port, 0, target_port);
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, relay_port)).await.unwrap();
        let hello = b"GET / HTTP/1.1\r\nX-Server-From: ab\r\n\r\n";
        let mut answer = vec![0; hello.len()];
        stream.write_all(hello).await.unwrap();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, hello);
        // Told late, and counts for connections that stand.
        links.know(0xab, 1);
        // What the target answers is held.
        links.cut(0, 1, Cut::Silent);
        stream.write_all(b"later").await.unwrap();
        let mut late = [0; 5];
        let early = timeout(Duration::from_millis(50), stream.read_exact(&mut late)).await;
        assert!(early.is_err() && links.held() > 0);
        links.heal(0, 1);
        stream.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"later");
        links.cut(1, 0, Cut::Loud);
        assert!(matches!(stream.read(&mut late).await, Ok(0) | Err(_)));
    }

    #[test]
    fn who_dials_is_seen_in_the_first_bytes() {
        let mut hello = [&[9; 9][..], b"DAYMARKP", &[1, 0, 4], &[7, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(sender(&hello), None);
        hello.extend([8, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sender(&hello), Some(0x108));
        assert_eq!(sender(b"GET / HTTP/1.1\r\nX-Server-From: ff01"), None);
        assert_eq!(sender(b"GET / HTTP/1.1\r\nX-Server-From: ff01\r\n"), Some(0xff01));
    }
}
