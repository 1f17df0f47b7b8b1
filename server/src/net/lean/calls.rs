//! The unary calls under way on one connection. They are polled by the connection itself, and only those that were woken:
//! however many are answered at once, the connection runs once and writes once. The place of a call is used again by a
//! later one, so that a call allocates nothing here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::limits;

/// Who has been woken on one connection. Calls may be woken by other threads.
#[derive(Default)]
pub(super) struct Woken {
    state: Mutex<WokenState>,
}

#[derive(Default)]
struct WokenState {
    places: Vec<u32>,
    /// The connection's task, as long as it has not been woken.
    task: Option<Waker>,
}

/// Wakes one place of one connection.
struct PlaceWaker {
    woken: Arc<Woken>,
    place: u32,
    /// In `places` already.
    is_listed: AtomicBool,
}

impl Wake for PlaceWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_listed.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut state = self.woken.state.lock();
            state.places.push(self.place);
            state.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

impl Woken {
    /// Takes who has been woken since the last time, into an empty list; from now on `task` is woken.
    pub fn take(&self, places: &mut Vec<u32>, task: &Waker) {
        let mut state = self.state.lock();
        std::mem::swap(&mut state.places, places);
        if state.task.is_none() {
            state.task = Some(task.clone());
        }
    }
}

/// Something that is polled only when it was woken.
pub(super) struct Place {
    waker: Waker,
    flag: Arc<PlaceWaker>,
}

impl Place {
    /// A place with a number of its own.
    pub fn new(woken: &Arc<Woken>, place: u32) -> Self {
        let flag = Arc::new(PlaceWaker { woken: woken.clone(), place, is_listed: AtomicBool::new(false) });
        Self { waker: flag.clone().into(), flag }
    }

    /// The waker of whoever is here.
    pub fn waker(&self) -> &Waker {
        &self.waker
    }

    /// From now on it may be woken again.
    pub fn rearm(&self) {
        self.flag.is_listed.store(false, Ordering::Release);
    }
}

/// The calls of one connection, by place.
pub(super) struct Calls<F> {
    woken: Arc<Woken>,
    slots: Vec<Slot<F>>,
    free: Vec<u32>,
}

struct Slot<F> {
    place: Place,
    /// Its memory stays when the call has ended.
    work: Pin<Box<Option<F>>>,
    stream: u32,
}

impl<F: Future> Calls<F> {
    pub fn new(woken: Arc<Woken>) -> Self {
        Self { woken, slots: Vec::new(), free: Vec::new() }
    }

    /// Takes a call and gives it its first turn. Returns its place, or its answer if that is there at once.
    pub fn begin(&mut self, stream: u32, work: F) -> Result<u32, F::Output> {
        let place = self.free.pop().unwrap_or_else(|| {
            let place = self.slots.len() as u32;
            self.slots.push(Slot { place: Place::new(&self.woken, place), work: Box::pin(None), stream: 0 });
            place
        });
        let slot = &mut self.slots[place as usize];
        slot.stream = stream;
        slot.work.set(Some(work));
        match self.poll(place) {
            Some((_, answer)) => Err(answer),
            None => Ok(place),
        }
    }

    /// Gives a call its turn; its stream and answer if it has ended now.
    pub fn poll(&mut self, place: u32) -> Option<(u32, F::Output)> {
        let slot = self.slots.get_mut(place as usize)?;
        slot.place.rearm();
        let polled = slot.work.as_mut().as_pin_mut()?.poll(&mut Context::from_waker(slot.place.waker()));
        let Poll::Ready(answer) = polled else { return None };
        slot.work.set(None);
        self.free.push(place);
        Some((slot.stream, answer))
    }

    /// Gives a call whose caller has gone its last turn, to take note of it.
    pub fn cancel(&mut self, place: u32) {
        if self.poll(place).is_some() {
            return;
        }
        if let Some(slot) = self.slots.get_mut(place as usize).filter(|slot| slot.work.is_some()) {
            slot.work.set(None);
            self.free.push(place);
        }
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Gives back memory that a burst of calls has taken.
    pub fn trim(&mut self) {
        if self.is_empty() && self.slots.len() > limits::CALLS_KEPT_MAX {
            self.slots.truncate(limits::CALLS_KEPT_MAX);
            self.slots.shrink_to_fit();
            self.free = (0..self.slots.len() as u32).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn many_that_are_woken_wake_the_connection_once() {
        let (woken, task) = (Arc::new(Woken::default()), Arc::new(Counted(AtomicUsize::new(0))));
        let waker = Waker::from(task.clone());
        let mut calls = Calls::new(woken.clone());
        let wakers = Arc::new(Mutex::new(Vec::new()));
        for stream in 0..100 {
            let (wakers, mut turns) = (wakers.clone(), 0);
            let call = poll_fn(move |cx| {
                turns += 1;
                wakers.lock().push(cx.waker().clone());
                if turns > 1 { Poll::Ready(stream) } else { Poll::Pending }
            });
            assert_eq!(calls.begin(stream, call), Ok(stream));
        }
        let mut places = Vec::new();
        woken.take(&mut places, &waker);
        assert!(places.is_empty());
        for waker in std::mem::take(&mut *wakers.lock()) {
            waker.wake_by_ref();
            waker.wake();
        }
        assert_eq!(task.0.load(Ordering::SeqCst), 1);
        woken.take(&mut places, &waker);
        assert_eq!(places.len(), 100, "each once");
        for place in places {
            assert_eq!(calls.poll(place), Some((place, place)));
            assert_eq!(calls.poll(place), None, "it has ended");
        }
        calls.trim();
        assert_eq!((calls.slots.len(), calls.free.len()), (limits::CALLS_KEPT_MAX, limits::CALLS_KEPT_MAX));
        // A place that is used again is not the old call's.
        assert!(calls.is_empty());
        for waker in std::mem::take(&mut *wakers.lock()) {
            waker.wake();
        }
        let mut places = Vec::new();
        woken.take(&mut places, &waker);
        assert!(places.into_iter().all(|place| calls.poll(place).is_none()));
    }
}
