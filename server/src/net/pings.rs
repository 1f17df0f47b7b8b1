//! How often a client may ping; the rules are grpc-go's. The lean server counts pings as they come. h2 answers them by
//! itself and tells nobody, so over it they are counted as their bytes pass: looking at the head of each frame costs a few
//! nanoseconds.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::limits;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const FLAG_ACK: u8 = 1;
const FRAME_HEAD_LEN: usize = 9;
const PREFACE_LEN: usize = 24;

/// What an HTTP/2 connection says when it is closed for too many pings; clients look for these words.
pub(crate) const TOO_MANY_PINGS: &[u8] = b"too_many_pings";

/// Judges the pings of one connection.
pub(crate) struct PingPolicy {
    /// Pings may come this often while a call is open.
    min_time: Duration,
    calls: Cell<usize>,
    /// Something has been answered since the last ping, which then does not count.
    has_answered: Cell<bool>,
    last: Cell<Option<Instant>>,
    strikes: Cell<u32>,
    exceeded: Notify,
}

/// An open call of a connection.
pub(crate) struct OpenCall(Rc<PingPolicy>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.calls.set(self.0.calls.get() - 1);
    }
}

impl PingPolicy {
    /// A policy as configured; zero means grpc-go's own distance.
    pub fn new(min_time: Duration) -> Rc<Self> {
        let min_time = if min_time.is_zero() { limits::PING_MIN_TIME_DEFAULT } else { min_time };
        Rc::new(Self {
            min_time,
            calls: Cell::new(0),
            has_answered: Cell::new(false),
            last: Cell::new(None),
            strikes: Cell::new(0),
            exceeded: Notify::new(),
        })
    }

    /// Counts a call as open until it is dropped.
    pub fn call(self: &Rc<Self>) -> OpenCall {
        self.calls.set(self.calls.get() + 1);
        OpenCall(self.clone())
    }

    /// Waits until there have been too many pings.
    pub async fn exceeded(&self) {
        self.exceeded.notified().await;
    }

    /// Something has been sent that no ping asked for.
    pub fn answered(&self) {
        self.has_answered.set(true);
    }

    /// A ping has come; `opens_call` if a call came with it. Returns whether there have been too many.
    pub fn ping(&self, now: Instant, opens_call: bool) -> bool {
        let last = self.last.replace(Some(now));
        if self.has_answered.take() {
            self.strikes.set(0);
            return false;
        }
        let idle = self.calls.get() == 0 && !opens_call;
        // Who has nothing to wait for has no cause to ping.
        let distance = if idle { limits::PING_MIN_TIME_IDLE } else { self.min_time };
        if last.is_some_and(|last| now < last + distance) {
            self.strikes.set(self.strikes.get() + 1);
            if self.strikes.get() > limits::PING_STRIKES_MAX {
                self.exceeded.notify_one();
                return true;
            }
        }
        false
    }
}

/// Looks at the frames of one connection as its bytes pass in both directions.
pub(crate) struct PingScan {
    policy: Rc<PingPolicy>,
    received: Frames,
    sent: Frames,
}

impl PingScan {
    pub fn new(policy: Rc<PingPolicy>) -> Self {
        let received = Frames { skip: PREFACE_LEN, ..Frames::default() };
        Self { policy, received, sent: Frames::default() }
    }

    /// Bytes have come.
    pub fn received(&mut self, bytes: &[u8]) {
        let mut opens_call = false;
        self.received.pass(bytes, |kind, flags| match kind {
            HEADERS => opens_call = true,
            PING if flags & FLAG_ACK == 0 => {
                self.policy.ping(Instant::now(), opens_call);
            }
            _ => {}
        });
    }

    /// Bytes are being sent.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.sent.pass(bytes, |kind, _| {
            if matches!(kind, DATA | HEADERS) {
                self.policy.answered();
            }
        });
    }
}

/// Finds the heads of frames in bytes that come in pieces.
#[derive(Default)]
struct Frames {
    /// Bytes until the next head.
    skip: usize,
    /// The beginning of a head, `partial` bytes of it; fewer than a whole one.
    head: [u8; FRAME_HEAD_LEN],
    partial: usize,
}

impl Frames {
    /// Calls `frame` with type and flags of each frame that begins in `bytes`.
    fn pass(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, u8)) {
        loop {
            if self.skip >= bytes.len() {
                self.skip -= bytes.len();
                return;
            }
            bytes = &bytes[self.skip..];
            self.skip = 0;
            // Nearly always a head comes whole.
            if let (0, Some((head, rest))) = (self.partial, bytes.split_first_chunk::<FRAME_HEAD_LEN>()) {
                self.skip = length(head);
                bytes = rest;
                frame(head[3], head[4]);
                continue;
            }
            let taken = (FRAME_HEAD_LEN - self.partial).min(bytes.len());
            self.head[self.partial..self.partial + taken].copy_from_slice(&bytes[..taken]);
            self.partial += taken;
            bytes = &bytes[taken..];
            if self.partial < FRAME_HEAD_LEN {
                return;
            }
            self.partial = 0;
            self.skip = length(&self.head);
            frame(self.head[3], self.head[4]);
        }
    }
}

fn length(head: &[u8; FRAME_HEAD_LEN]) -> usize {
    u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize
}

/// The length of an HTTP/2 frame that says goodbye without a reason in words: head, last stream, code.
const GOAWAY_LEN: usize = 17;
const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];

/// If `bytes` end with a goodbye to a client that pings too much, the same bytes with the words that clients look for.
/// h2 lets nobody say more than the code.
pub(crate) fn with_reason(bytes: &[u8]) -> Option<Vec<u8>> {
    let start = bytes.len().checked_sub(GOAWAY_LEN)?;
    let goaway = &bytes[start..];
    if goaway[..9] != [0, 0, 8, 7, 0, 0, 0, 0, 0] || goaway[13..] != ENHANCE_YOUR_CALM {
        return None;
    }
    let mut out = bytes.to_vec();
    out[start + 2] += TOO_MANY_PINGS.len() as u8;
    out.extend_from_slice(TOO_MANY_PINGS);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn heads_of_frames_are_found_however_the_bytes_are_cut() {
        let sent = [frame(4, 0, &[]), frame(1, 4, &[6; 40]), frame(0, 1, &[6; 300]), frame(6, 0, &[6; 8])].concat();
        let bytes = [&[6; PREFACE_LEN][..], &sent].concat();
        for step in 1..bytes.len() {
            let mut frames = Frames { skip: PREFACE_LEN, ..Frames::default() };
            let mut seen = Vec::new();
            bytes.chunks(step).for_each(|chunk| frames.pass(chunk, |kind, flags| seen.push((kind, flags))));
            assert_eq!(seen, [(4, 0), (1, 4), (0, 1), (6, 0)], "in steps of {step}");
        }
    }

    /// How many pings, that many seconds apart, until it is too much; at most 10.
    fn pings_until_exceeded(seconds: u64, prepare: impl Fn(&Rc<PingPolicy>)) -> Option<usize> {
        let policy = PingPolicy::new(Duration::from_secs(5));
        let begin = Instant::now();
        (1..=10).find(|number| {
            prepare(&policy);
            policy.ping(begin + Duration::from_secs(seconds * *number as u64), false);
            policy.strikes.get() > limits::PING_STRIKES_MAX
        })
    }

    #[test]
    fn too_many_pings_are_those_that_come_too_soon_with_nothing_between() {
        let open = |policy: &Rc<PingPolicy>| policy.calls.set(1);
        assert_eq!(pings_until_exceeded(4, open), Some(4), "the first is free, two strikes are forgiven");
        assert_eq!(pings_until_exceeded(5, open), None);
        assert_eq!(pings_until_exceeded(60, |_| {}), Some(4), "without a call");
        assert_eq!(pings_until_exceeded(7200, |_| {}), None);
        assert_eq!(pings_until_exceeded(0, |policy| policy.has_answered.set(true)), None, "after answers");
    }

    #[test]
    fn a_goodbye_gets_its_reason() {
        let goaway = frame(7, 0, &[0, 0, 0, 9, 0, 0, 0, 11]);
        let mut goaway = [&goaway[..5], &[0; 4], &goaway[9..]].concat();
        let before = frame(0, 0, b"xyz");
        let out = with_reason(&[&before[..], &goaway].concat()).expect("a goodbye");
        assert_eq!(out[..before.len()], before);
        assert_eq!(out[before.len()..][..3], [0, 0, 22]);
        assert!(out.ends_with(b"\0\0\0\x0btoo_many_pings"));
        *goaway.last_mut().expect("code") = 0;
        assert_eq!(with_reason(&goaway), None, "for another cause");
        assert_eq!(with_reason(b"short"), None);
    }
}
