//! When operations are due in open loop. The schedule does not depend on answers, which is what keeps slow answers from
//! hiding the waiting that they cause (no coordinated omission).

use std::{
    io,
    time::{Duration, Instant},
};

use rustix::{
    io::read,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::io::unix::AsyncFd;

/// Operations fall due in small groups at multiples of this, so that a high rate does not cost a wake-up for each.
const TICK_NANOS: u64 = 100_000;

/// Due times of operations 0, 1, 2 ... at a steady rate, relative to the start.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    per_second: f64,
}

impl Schedule {
    pub fn new(per_second: f64) -> Self {
        assert!(per_second > 0.0, "a schedule needs a rate");
        Self { per_second }
    }

    /// When operation number `op` is due.
    pub fn due(&self, op: u64) -> Duration {
        let nanos = (op as f64 * 1e9 / self.per_second) as u64;
        Duration::from_nanos(nanos - nanos % TICK_NANOS)
    }
}

/// A timer with the resolution that schedules need: tokio's own counts in milliseconds.
pub struct Timer {
    fd: AsyncFd<rustix::fd::OwnedFd>,
}

impl Timer {
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: the OwnedFd is the only owner of the descriptor and lives, unchanged, as long as the AsyncFd around it.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd })
    }

    /// Waits until `deadline`; at once if that is over.
    pub async fn wait_until(&mut self, deadline: Instant) -> io::Result<()> {
        let wait = deadline.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let value = Timespec { tv_sec: wait.as_secs() as _, tv_nsec: wait.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut ready = self.fd.readable().await?;
            let mut expirations = [0_u8; 8];
            match ready.try_io(|fd| Ok(read(fd.get_ref(), &mut expirations)?)) {
                Ok(outcome) => return outcome.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_keeps_the_rate_and_never_runs_backwards() {
        for per_second in [0.5, 1.0, 3_000.0, 123_456.7, 2e6] {
            let schedule = Schedule::new(per_second);
            let due: Vec<_> = (0..10_000).map(|op| schedule.due(op)).collect();
            assert!(due.is_sorted());
            assert_eq!(due[0], Duration::ZERO);
            let ideal = 9_999.0 / per_second;
            let late_by = ideal - due[9_999].as_secs_f64();
            assert!((0.0..=TICK_NANOS as f64 / 1e9 + 1e-9).contains(&late_by), "{per_second}/s: {late_by}");
        }
    }

    #[test]
    fn operations_fall_due_in_groups_at_high_rates() {
        let schedule = Schedule::new(50_000.0);
        assert_eq!((schedule.due(4), schedule.due(5)), (Duration::ZERO, Duration::from_micros(100)));
    }

    #[tokio::test]
    async fn the_timer_does_not_fire_early() {
        let mut timer = Timer::new().expect("a timer");
        for micros in [0, 50, 300, 2_000] {
            let deadline = Instant::now() + Duration::from_micros(micros);
            timer.wait_until(deadline).await.expect("waits");
            assert!(Instant::now() >= deadline, "{micros} us");
        }
    }
}
