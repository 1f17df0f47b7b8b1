//! Drives one HTTP/2 connection: reads what there is, gives calls their turns, writes what has become ready, with one
//! system call for each of the two in most turns. Unary calls are polled here, all other streams have tasks of their own.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ::http::header::{HeaderName, HeaderValue};
use ::http::{Request, Uri};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::future::LocalBoxFuture;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;

use super::super::connection::{Caller, names_grpc};
use super::super::dispatch::Call;
use super::super::frames::{self, MessageReader, PREFIX_BYTES};
use super::super::grpc::{self, Answer, Opening, Source};
use super::super::halves::{Answering, Body, Respond};
use super::super::io::Socket;
use super::super::pings::{OpenCall, PingPolicy, TOO_MANY_PINGS};
use super::super::{FrontDoor, Thread, http2};
use super::calls::{Calls, Place, Woken};
use super::core::{Core, Event, Owner};
use super::frame::Reason;
use super::head::Head;
use super::pipe::{Pipe, Shared};
use crate::config::TransportOptions;
use crate::limits;
use crate::rpc::RpcKind;

/// What the connection keeps for each stream.
#[derive(Default)]
pub(crate) struct Work {
    state: WorkState,
    /// Counted as long as the stream is open.
    _open: Option<OpenCall>,
}

#[derive(Default)]
enum WorkState {
    /// Nobody waits for more of it.
    #[default]
    None,
    /// A request whose body has not come yet, or its beginning only. Not longer than for one turn.
    Waiting { asked: Rc<Asked>, body: Bytes },
    /// A unary call, and its body if that did not come at once.
    Call { place: u32, pipe: Option<Rc<Pipe>> },
    /// A task.
    Task(Rc<Pipe>),
}

impl Work {
    fn take_waiting(&mut self) -> Option<(Rc<Asked>, Bytes)> {
        match std::mem::take(&mut self.state) {
            WorkState::Waiting { asked, body } => Some((asked, body)),
            other => {
                self.state = other;
                None
            }
        }
    }
}

impl Owner for Work {
    fn on_room(&self) {
        if let WorkState::Task(pipe) = &self.state {
            pipe.on_room();
        }
    }
}

/// What a head asks for. Clients say the same for each of their calls.
enum Asked {
    Call(Opening),
    /// A head in place of an answer.
    Refused(Vec<u8>),
    /// Plain HTTP.
    Http(Rc<Head>),
}

/// Why a connection is not driven any longer.
enum Outcome {
    /// The other end has gone, or does not answer.
    Gone,
    /// All has been said; what could not be written yet still waits.
    Closing,
    /// Likewise, because of a fault: more may come, which nobody reads.
    Failed,
}

/// Places of what is no call.
const OUTPUT: u32 = u32::MAX;
const STOP: u32 = u32::MAX - 1;
const KEEPALIVE: u32 = u32::MAX - 2;

/// Serves a connection of which `ahead`, the preface at least, has been read.
pub(crate) async fn serve<D: FrontDoor>(
    thread: Rc<Thread<D>>,
    socket: Socket,
    ahead: Bytes,
    caller: Rc<Caller>,
    pings: Option<Rc<PingPolicy>>,
) {
    let gone = Rc::new(Cell::new(false));
    let seen = gone.clone();
    // The runtime's budget is for tasks that loop: a call that ends is bounded by itself, and many share this task.
    let make =
        move |call, source, is_gzip| tokio::task::unconstrained(grpc::answer(call, source, is_gzip, seen.clone()));
    let mut driver = Driver::new(thread, socket, &ahead, caller, pings, gone);
    let outcome = poll_fn(|cx| driver.poll(cx, &make)).await;
    driver.end();
    let waits = match outcome {
        Outcome::Gone => return,
        Outcome::Closing => false,
        Outcome::Failed => true,
    };
    let rest = driver.unsent();
    // Who does not listen misses it.
    let _ = tokio::time::timeout(limits::LAST_WORDS_TIMEOUT, driver.socket.say_last(&rest, waits)).await;
}

/// One connection. `F` is a unary call.
struct Driver<D: FrontDoor, F> {
    thread: Rc<Thread<D>>,
    caller: Rc<Caller>,
    pings: Option<Rc<PingPolicy>>,
    socket: Socket,
    shared: Rc<Shared>,
    calls: Calls<F>,
    /// Set while a call is polled whose caller has gone.
    gone: Rc<Cell<bool>>,
    /// Read and not complete: less than a frame.
    partial: Vec<u8>,
    /// On its way into the socket; `written` bytes of it are there.
    writing: Vec<u8>,
    written: usize,
    /// Encryption may hold something back.
    needs_flush: bool,
    /// Streams opened in this turn whose requests are not complete.
    opened: Vec<u32>,
    /// What the latest heads ask for.
    asked: Vec<(Rc<Head>, Rc<Asked>)>,
    next_asked: usize,
    woken: Arc<Woken>,
    /// Who has been woken; empty between turns.
    places: Vec<u32>,
    output: Place,
    stop: Watched,
    keepalive: Watched,
    liveness: Rc<Liveness>,
    /// When what is being handled was read.
    read_at: Instant,
    /// Nothing more is read: the goodbye is being written.
    has_failed: bool,
}

/// Something beside the calls, polled only when it was woken.
struct Watched {
    place: Place,
    future: Option<LocalBoxFuture<'static, ()>>,
}

impl Watched {
    fn new(woken: &Arc<Woken>, place: u32, future: impl Future<Output = ()> + 'static) -> Self {
        Self { place: Place::new(woken, place), future: Some(Box::pin(future)) }
    }

    /// Whether it has ended now.
    fn poll(&mut self) -> bool {
        self.place.rearm();
        let mut cx = Context::from_waker(self.place.waker());
        let has_ended = self.future.as_mut().is_some_and(|future| future.as_mut().poll(&mut cx).is_ready());
        if has_ended {
            self.future = None;
        }
        has_ended
    }
}

/// Whether there is somebody at the other end.
#[derive(Default)]
struct Liveness {
    /// Bytes that have come.
    received: Cell<u64>,
    wants_ping: Cell<bool>,
    pong: Notify,
}

impl<D: FrontDoor, F: Future<Output = Answer>> Driver<D, F> {
    fn new(
        thread: Rc<Thread<D>>,
        socket: Socket,
        ahead: &[u8],
        caller: Rc<Caller>,
        pings: Option<Rc<PingPolicy>>,
        gone: Rc<Cell<bool>>,
    ) -> Self {
        let woken = Arc::new(Woken::default());
        let output = Place::new(&woken, OUTPUT);
        let transport = thread.options.transport;
        let core = Core::new(transport.max_concurrent_streams as usize);
        let shared = Rc::new(Shared { core: RefCell::new(core), output: output.waker().clone() });
        let mut stopping = thread.stopping.clone();
        let stop = Watched::new(&woken, STOP, async move {
            // It fails only when nobody is left who could stop the thread.
            let _ = stopping.wait_for(|stop| *stop).await;
        });
        let liveness = Rc::<Liveness>::default();
        let keepalive = Watched::new(&woken, KEEPALIVE, keep_alive(liveness.clone(), transport));
        let driver = Self {
            calls: Calls::new(woken.clone()),
            thread,
            caller,
            pings,
            socket,
            shared,
            gone,
            partial: ahead.to_vec(),
            writing: Vec::new(),
            written: 0,
            needs_flush: false,
            opened: Vec::new(),
            asked: Vec::new(),
            next_asked: 0,
            woken,
            places: Vec::new(),
            output,
            stop,
            keepalive,
            liveness,
            read_at: Instant::now(),
            has_failed: false,
        };
        // They register with the runtime in their first turn.
        driver.stop.place.waker().wake_by_ref();
        driver.keepalive.place.waker().wake_by_ref();
        driver
    }

    /// One turn: who was woken, what has come, what is to be sent.
    fn poll(&mut self, cx: &mut Context<'_>, make: &impl Fn(Call<D>, Source, bool) -> F) -> Poll<Outcome> {
        self.lend_buffer();
        let outcome = self.turn(cx, make);
        self.take_back_buffer();
        outcome
    }

    fn turn(&mut self, cx: &mut Context<'_>, make: &impl Fn(Call<D>, Source, bool) -> F) -> Poll<Outcome> {
        if !self.run_woken(cx) {
            return Poll::Ready(Outcome::Gone);
        }
        let mut has_more = true;
        for _ in 0..limits::READS_PER_TURN {
            // Who does not read what he is told is told nothing more.
            let is_full = self.backlog() >= limits::WRITE_BUFFER_BYTES;
            let read = if is_full || self.has_failed { Poll::Pending } else { self.poll_read(cx, make) };
            match read {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(Outcome::Gone),
                Poll::Pending => match self.poll_write(cx) {
                    Err(_) => return Poll::Ready(Outcome::Gone),
                    Ok(true) if is_full => {}
                    Ok(_) => {
                        has_more = false;
                        break;
                    }
                },
            }
        }
        if has_more {
            if self.poll_write(cx).is_err() {
                return Poll::Ready(Outcome::Gone);
            }
            // Others have their turns first.
            cx.waker().wake_by_ref();
        }
        if self.has_failed {
            return Poll::Ready(Outcome::Failed);
        }
        if self.shared.core.borrow().is_over() {
            return Poll::Ready(Outcome::Closing);
        }
        self.calls.trim();
        self.shared.core.borrow_mut().trim();
        Poll::Pending
    }

    /// Lets the core write into the thread's buffer.
    fn lend_buffer(&mut self) {
        let mut core = self.shared.core.borrow_mut();
        if core.out_bytes() == 0 {
            core.lend_out(self.thread.buffers.take_out());
        }
    }

    /// Most connections have nothing to send most of the time.
    fn take_back_buffer(&mut self) {
        let mut core = self.shared.core.borrow_mut();
        if core.out_bytes() == 0 {
            let mut buffer = Vec::new();
            core.swap_out(&mut buffer);
            self.thread.buffers.give_out(buffer);
        }
    }

    /// Bytes that the other end has not taken.
    fn backlog(&self) -> usize {
        self.writing.len() - self.written + self.shared.core.borrow().out_bytes()
    }

    /// Gives all that were woken their turns. False if the other end does not answer.
    fn run_woken(&mut self, cx: &mut Context<'_>) -> bool {
        let mut places = std::mem::take(&mut self.places);
        self.woken.take(&mut places, cx.waker());
        let mut is_alive = true;
        for place in places.drain(..) {
            match place {
                OUTPUT => self.output.rearm(),
                STOP => {
                    if self.stop.poll() {
                        self.shared.core.borrow_mut().announce_end();
                    }
                }
                KEEPALIVE => {
                    is_alive &= !self.keepalive.poll();
                    if self.liveness.wants_ping.take() {
                        self.shared.core.borrow_mut().ping();
                    }
                }
                place => {
                    if let Some((stream, answer)) = self.calls.poll(place) {
                        self.answer(stream, answer);
                    }
                }
            }
        }
        self.places = places;
        if !is_alive {
            tracing::debug!("closing a connection that does not answer pings");
        }
        is_alive
    }

    /// Reads once, and handles what has come. Ready with false when the other end has gone.
    fn poll_read(&mut self, cx: &mut Context<'_>, make: &impl Fn(Call<D>, Source, bool) -> F) -> Poll<bool> {
        let mut buffer = self.thread.buffers.take_read();
        let room = self.partial.len() + limits::READ_BYTES_MIN;
        if buffer.capacity() < room {
            buffer.reserve(room.max(limits::READ_BYTES));
        }
        buffer.extend_from_slice(&self.partial);
        let read = match self.is_first_turn() {
            true => Poll::Ready(Ok(self.partial.len())),
            false => pin!(self.socket.read_buf(&mut buffer)).poll(cx),
        };
        let outcome = match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(false),
            Poll::Ready(Ok(bytes)) => {
                self.liveness.received.set(self.liveness.received.get() + bytes as u64);
                self.handle(&mut buffer, make);
                self.partial.clear();
                self.partial.extend_from_slice(&buffer);
                Poll::Ready(true)
            }
        };
        self.thread.buffers.give_read(buffer);
        outcome
    }

    /// Whether `partial` is what was read before the connection was known to be one of HTTP/2.
    fn is_first_turn(&self) -> bool {
        self.liveness.received.get() == 0
    }

    /// Handles all complete frames.
    fn handle(&mut self, buffer: &mut BytesMut, make: &impl Fn(Call<D>, Source, bool) -> F) {
        self.read_at = Instant::now();
        let second = (self.read_at - self.thread.begun).as_secs();
        while !self.has_failed {
            let event = self.shared.core.borrow_mut().next(buffer, second);
            match event {
                Ok(Some(event)) => self.handle_event(event, make),
                Ok(None) => break,
                Err(fault) => {
                    tracing::debug!(reason = fault.reason.0, words = fault.words, "HTTP/2 connection ended");
                    self.shared.core.borrow_mut().fail(&fault);
                    self.has_failed = true;
                }
            }
        }
        // The rest of these requests may take as long as it likes; their deadlines count from now.
        for stream in std::mem::take(&mut self.opened) {
            let mut core = self.shared.core.borrow_mut();
            let Some(work) = core.owner_mut(stream) else { continue };
            if let Some((asked, body)) = work.take_waiting() {
                drop(core);
                self.begin(stream, &asked, body, false, make);
            }
        }
    }

    fn handle_event(&mut self, event: Event<Work>, make: &impl Fn(Call<D>, Source, bool) -> F) {
        match event {
            Event::Head { stream, head, ends } => {
                let asked = self.asked(&head);
                let is_call = !matches!(&*asked, Asked::Http(_));
                let open = self.pings.as_ref().filter(|_| is_call).map(PingPolicy::call);
                let mut core = self.shared.core.borrow_mut();
                let Some(work) = core.owner_mut(stream) else { return };
                work._open = open;
                if ends {
                    drop(core);
                    return self.begin(stream, &asked, Bytes::new(), true, make);
                }
                work.state = WorkState::Waiting { asked, body: Bytes::new() };
                self.opened.push(stream);
            }
            Event::Data { stream, data, ends } => self.handle_data(stream, data, ends, make),
            Event::Reset(work) => self.give_up(work),
            Event::Ping => self.handle_ping(),
            Event::Pong => self.liveness.pong.notify_one(),
        }
    }

    fn handle_data(&mut self, stream: u32, data: Bytes, ends: bool, make: &impl Fn(Call<D>, Source, bool) -> F) {
        let mut core = self.shared.core.borrow_mut();
        let Some(work) = core.owner_mut(stream) else { return };
        match &mut work.state {
            WorkState::Waiting { body, .. } if body.is_empty() && !ends => return *body = data,
            WorkState::Call { pipe: Some(pipe), .. } | WorkState::Task(pipe) => return pipe.push(&data, ends),
            WorkState::Call { pipe: None, .. } | WorkState::None => return core.release(stream, data.len()),
            WorkState::Waiting { .. } => {}
        }
        let Some((asked, before)) = work.take_waiting() else { return };
        drop(core);
        if before.is_empty() {
            self.begin(stream, &asked, data, ends, make);
        } else if data.is_empty() {
            self.begin(stream, &asked, before, ends, make);
        } else {
            self.begin(stream, &asked, before, false, make);
            self.handle_data(stream, data, ends, make);
        }
    }

    /// Begins to serve a request whose body so far is `body`; all of it if it is `complete`.
    fn begin(
        &mut self,
        stream: u32,
        asked: &Asked,
        mut body: Bytes,
        complete: bool,
        make: &impl Fn(Call<D>, Source, bool) -> F,
    ) {
        let opening = match asked {
            Asked::Call(opening) => opening,
            Asked::Refused(fields) => {
                self.shared.core.borrow_mut().send_head(stream, fields, true);
                return;
            }
            Asked::Http(head) => {
                let pipe = self.pipe(stream, &body, complete);
                return self.begin_http(stream, head, pipe);
            }
        };
        let message_bytes_max = self.thread.options.transport.message_bytes_max;
        let is_gzip = opening.is_gzip;
        let call = Call::open(&self.thread, opening.rpc, opening.context.clone(), opening.timeout, self.read_at);
        let is_unary = opening.rpc.kind() == RpcKind::Unary;
        let (source, pipe) = if complete && is_unary && frames::is_whole_message(&body, message_bytes_max) {
            self.shared.core.borrow_mut().release(stream, body.len());
            body.advance(PREFIX_BYTES);
            (Source::Message(body), None)
        } else {
            let pipe = self.pipe(stream, &body, complete);
            let reader = MessageReader::new(Body::Lean(pipe.clone()), message_bytes_max, is_gzip);
            match grpc::messages(opening.rpc, reader) {
                Ok(messages) => {
                    let respond = Respond::Lean(Answering::new(pipe));
                    return grpc::spawn_stream(call, messages, is_gzip, respond);
                }
                Err(reader) => (Source::Body(Box::new(reader)), Some(pipe)),
            }
        };
        match self.calls.begin(stream, make(call, source, is_gzip)) {
            Ok(place) => {
                if let Some(work) = self.shared.core.borrow_mut().owner_mut(stream) {
                    work.state = WorkState::Call { place, pipe };
                }
            }
            Err(answer) => self.answer(stream, answer),
        }
    }

    /// A pipe for a stream, with what has come of its body.
    fn pipe(&self, stream: u32, body: &[u8], complete: bool) -> Rc<Pipe> {
        let pipe = Pipe::new(&self.shared, stream);
        pipe.push(body, complete);
        if let Some(work) = self.shared.core.borrow_mut().owner_mut(stream) {
            work.state = WorkState::Task(pipe.clone());
        }
        pipe
    }

    fn begin_http(&mut self, stream: u32, head: &Head, pipe: Rc<Pipe>) {
        let Some(request) = http_request(head) else {
            drop(self.shared.core.borrow_mut().reset(stream, Reason::PROTOCOL_ERROR));
            return;
        };
        let request = request.map(|()| Body::Lean(pipe.clone()));
        let respond = Respond::Lean(Answering::new(pipe));
        tokio::task::spawn_local(http2::handle(self.thread.clone(), self.caller.clone(), request, respond));
    }

    /// Sends the answer to a unary call.
    fn answer(&mut self, stream: u32, answer: Answer) {
        let mut core = self.shared.core.borrow_mut();
        if let Some(work) = core.owner_mut(stream) {
            // The call's place is free: another may have it while this answer is still being sent.
            work.state = WorkState::None;
        }
        match answer {
            Answer::Message { framed, is_gzip: false } => {
                let share = (framed.len() > limits::ANSWER_BYTES_INLINE).then(|| {
                    let mut share = self.thread.options.answers.share();
                    share.note(framed.len());
                    share
                });
                core.send_message(stream, framed, share);
            }
            Answer::Message { framed, is_gzip: true } => {
                core.send_head(stream, &grpc::gzip_fields(), false);
                core.send_data(stream, framed, false);
                core.send_trailers(stream, grpc::ok_fields());
            }
            Answer::Status(status) => core.send_head(stream, &grpc::status_fields(&status), true),
        }
    }

    fn handle_ping(&mut self) {
        let Some(pings) = &self.pings else { return };
        if self.shared.core.borrow_mut().take_has_answered() {
            pings.answered();
        }
        if pings.ping(Instant::now(), false) {
            tracing::debug!("closing a connection that pings too often");
            self.shared.core.borrow_mut().end_now(Reason::ENHANCE_YOUR_CALM, TOO_MANY_PINGS);
            self.has_failed = true;
        }
    }

    /// Ends what was done for a stream that is no more.
    fn give_up(&mut self, work: Work) {
        match work.state {
            WorkState::None | WorkState::Waiting { .. } => {}
            WorkState::Task(pipe) => pipe.give_up(),
            WorkState::Call { place, pipe } => {
                if let Some(pipe) = pipe {
                    pipe.give_up();
                }
                self.gone.set(true);
                self.calls.cancel(place);
                self.gone.set(false);
            }
        }
    }

    /// What a head asks for; known if it is one of the latest.
    fn asked(&mut self, head: &Rc<Head>) -> Rc<Asked> {
        if let Some((_, asked)) = self.asked.iter().find(|(known, _)| Rc::ptr_eq(known, head)) {
            return asked.clone();
        }
        let content_type =
            head.fields().find(|(name, _)| *name == b"content-type").map_or(&b""[..], |(_, value)| value);
        let asked = if self.caller.is_for_grpc(|| names_grpc(content_type)) {
            match grpc::open_head(head, &self.caller) {
                Ok(opening) => Asked::Call(opening),
                Err(refusal) => Asked::Refused(grpc::refusal_fields(&refusal)),
            }
        } else {
            Asked::Http(head.clone())
        };
        let asked = Rc::new(asked);
        // Only those that the core keeps can come again.
        if Rc::strong_count(head) > 1 {
            let entry = (head.clone(), asked.clone());
            if self.asked.len() < limits::KNOWN_HEADS_MAX {
                self.asked.push(entry);
            } else {
                self.asked[self.next_asked] = entry;
                self.next_asked = (self.next_asked + 1) % limits::KNOWN_HEADS_MAX;
            }
        }
        asked
    }

    /// Writes what there is. True if nothing is left.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> std::io::Result<bool> {
        loop {
            if self.written == self.writing.len() {
                self.recycle();
                let mut core = self.shared.core.borrow_mut();
                core.pump();
                if core.out_bytes() == 0 {
                    drop(core);
                    break;
                }
                core.swap_out(&mut self.writing);
            }
            match self.socket.poll_write(cx, &self.writing[self.written..]) {
                Poll::Ready(Ok(0)) => return Err(std::io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => self.written += bytes,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => return Ok(false),
            }
            self.needs_flush = true;
        }
        if !self.needs_flush {
            return Ok(true);
        }
        match self.socket.poll_flush(cx) {
            Poll::Ready(flushed) => flushed.map(|()| {
                self.needs_flush = false;
                true
            }),
            Poll::Pending => Ok(false),
        }
    }

    /// Gives buffers back that are not in use.
    fn recycle(&mut self) {
        if self.writing.capacity() > 0 {
            self.thread.buffers.give_out(std::mem::take(&mut self.writing));
        }
        self.written = 0;
    }

    /// What has not been written yet, all of it.
    fn unsent(&mut self) -> Vec<u8> {
        let mut more = Vec::new();
        self.shared.core.borrow_mut().swap_out(&mut more);
        let mut rest = self.writing.split_off(self.written);
        rest.append(&mut more);
        rest
    }

    /// The connection is over: whatever is still done for it ends.
    fn end(&mut self) {
        let abandoned = self.shared.core.borrow_mut().abandon();
        abandoned.into_iter().for_each(|work| self.give_up(work));
    }
}

/// A request of plain HTTP; `None` if its address is none.
fn http_request(head: &Head) -> Option<Request<()>> {
    let mut uri = Uri::builder().path_and_query(head.path());
    if !head.authority().is_empty() {
        uri = uri.authority(head.authority()).scheme(head.scheme());
    }
    let mut request = Request::builder().version(::http::Version::HTTP_2).method(head.method()).uri(uri.build().ok()?);
    let headers = request.headers_mut()?;
    for (name, value) in head.fields() {
        headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    request.body(()).ok()
}

/// Asks a connection that has been silent for the keepalive interval whether somebody is there; returns when nobody
/// answers in time.
async fn keep_alive(liveness: Rc<Liveness>, transport: TransportOptions) {
    let Some(interval) = transport.keepalive_interval else { return std::future::pending().await };
    let mut before = liveness.received.get();
    let mut silent = 0;
    loop {
        tokio::time::sleep(interval.max(Duration::from_secs(1)) / limits::KEEPALIVE_LOOKS).await;
        silent += 1;
        if liveness.received.get() != before {
            (before, silent) = (liveness.received.get(), 0);
        }
        if silent < limits::KEEPALIVE_LOOKS {
            continue;
        }
        silent = 0;
        // Sent when this has had its turn.
        liveness.wants_ping.set(true);
        let pong = tokio::time::timeout(transport.keepalive_timeout, liveness.pong.notified()).await;
        if pong.is_err() && liveness.received.get() == before {
            return;
        }
    }
}
