//! The leader's timekeeper: when each lease is over. Renewals stay here and are never replicated; the end of leases is
//! proposed. Not the truth about which leases exist: that is the replicated table, whose changes it follows.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daymark_raft::Handle;
use daymark_storage::Result;
use hashbrown::HashMap;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;

use super::wheel::Wheel;
use crate::command::LeaseExpire;
use crate::error::Error;
use crate::limits;
use crate::state::lease::{self, LeaseChange, LeaseFact};
use crate::views::{Room, Views};

/// What a renewal found.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease begins anew with this TTL.
    Renewed { ttl_secs: i64 },
    /// Its time is over and its end is on the way: it is not rescued.
    Over,
    /// There is no such lease.
    Unknown,
}

/// What is known of a lease's time.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Remaining {
    pub granted_secs: i64,
    /// Rounded down; 0 when its time is over.
    pub remaining_secs: i64,
}

/// The timekeeper as net threads share it. Its lock is never taken by apply.
pub struct Lessor {
    views: Arc<Views>,
    /// Added when leadership begins: renewals that the leader before has taken are not known here.
    grace: Duration,
    begin: Instant,
    times: Mutex<Times>,
    counts: Counts,
}

/// What has been done since the start, for metrics.
#[derive(Default)]
struct Counts {
    renewed: AtomicU64,
    expired: AtomicU64,
}

impl Lessor {
    /// A timekeeper of the leases that `views` tells of.
    pub fn new(views: Arc<Views>, election: Duration) -> Arc<Self> {
        Arc::new(Self {
            views,
            grace: election,
            begin: Instant::now(),
            times: Mutex::new(Times::default()),
            counts: Counts::default(),
        })
    }

    /// Renews a lease, as leader of `term`.
    pub fn renew(&self, id: i64, term: u64) -> Result<Renewal> {
        let now = self.now_ms();
        let mut times = self.times.lock();
        self.follow(&mut times, now)?;
        times.lead(term, now, self.grace);
        let renewal = times.renew(id, now);
        if matches!(renewal, Renewal::Renewed { .. }) {
            self.counts.renewed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(renewal)
    }

    /// Renewals since the start.
    pub fn renewed(&self) -> u64 {
        self.counts.renewed.load(Ordering::Relaxed)
    }

    /// Leases whose time was over and whose end this member has replicated.
    pub fn expired(&self) -> u64 {
        self.counts.expired.load(Ordering::Relaxed)
    }

    /// The time a lease has left, as leader of `term`.
    pub fn remaining(&self, id: i64, term: u64) -> Result<Option<Remaining>> {
        let now = self.now_ms();
        let mut times = self.times.lock();
        self.follow(&mut times, now)?;
        times.lead(term, now, self.grace);
        Ok(times.remaining(id, now))
    }

    /// Takes note of what has been published of leases: the time of those granted begins.
    pub fn look(&self) -> Result<()> {
        self.follow(&mut self.times.lock(), self.now_ms())
    }

    /// Whether the lease is still there.
    pub fn contains(&self, id: i64) -> Result<bool> {
        let mut times = self.times.lock();
        self.follow(&mut times, self.now_ms())?;
        Ok(times.leases.contains_key(&id))
    }

    /// Every lease, those that end first in front.
    pub fn list(&self) -> Result<Vec<i64>> {
        let mut times = self.times.lock();
        self.follow(&mut times, self.now_ms())?;
        let mut leases: Vec<(u64, i64)> = times.leases.iter().map(|(id, timed)| (timed.deadline_ms, *id)).collect();
        drop(times);
        leases.sort_unstable();
        Ok(leases.into_iter().map(|(_, id)| id).collect())
    }

    /// Leases whose time is over and whose end has not been proposed, at most `max`; ids ascending.
    pub fn take_over(&self, term: u64, max: usize) -> Result<Vec<i64>> {
        let now = self.now_ms();
        let mut times = self.times.lock();
        self.follow(&mut times, now)?;
        times.lead(term, now, self.grace);
        Ok(times.take_over(now, max))
    }

    /// The end of these could not be proposed, or it is not known: they are due again.
    pub fn put_back(&self, ids: &[i64]) {
        self.times.lock().put_back(ids);
    }

    fn follow(&self, times: &mut Times, now: u64) -> Result<()> {
        if self.views.leases.take_overflow() {
            while self.views.leases.pop().is_some() {}
            let mut facts = Vec::new();
            lease::scan_records(&self.views.keyspace, &mut |fact| facts.push(fact))?;
            times.replace(facts, now);
        }
        while let Some(change) = self.views.leases.pop() {
            times.handle_change(change, now);
        }
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }
}

/// Ends leases whose time is over, while this member leads; `propose` replicates their end. Returns only after a failure
/// of the backend. One proposal at a time, so that the same end is not proposed twice while the first is on its way.
pub async fn run(
    lessor: Arc<Lessor>,
    raft: Handle,
    propose: impl AsyncFn(LeaseExpire) -> std::result::Result<(), Error>,
    on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
) {
    loop {
        tokio::time::sleep(limits::LEASE_CHECK_INTERVAL).await;
        let status = raft.status();
        // The end of a lease adds to history: it waits until there is room for that.
        if !status.is_leader || lessor.views.room() == Room::Spent {
            continue;
        }
        let ids = match lessor.take_over(status.term, limits::LEASES_EXPIRED_AT_ONCE_MAX) {
            Ok(ids) if ids.is_empty() => continue,
            Ok(ids) => ids,
            Err(error) => return on_fatal(&error.to_string()),
        };
        match propose(LeaseExpire { ids: ids.clone() }).await {
            Ok(()) => drop(lessor.counts.expired.fetch_add(ids.len() as u64, Ordering::Relaxed)),
            Err(error) => {
                tracing::warn!(%error, leases = ids.len(), "ending leases failed, to be tried again");
                lessor.put_back(&ids);
            }
        }
    }
}

/// Ticks of the wheel, in milliseconds.
const TICK_MS: u64 = limits::LEASE_CHECK_INTERVAL.as_millis() as u64;
/// Instead of a tick: the time is over, the lease is not in the wheel any more.
const OVER: u64 = u64::MAX;

#[derive(Copy, Clone)]
struct Timed {
    ttl_secs: i64,
    deadline_ms: u64,
    /// Tick of the one valid entry in the wheel. A renewal leaves it: the entry moves on when its tick comes.
    tick: u64,
}

/// Deadlines in milliseconds of the lessor's clock. Pure: every method is told the time.
struct Times {
    leases: HashMap<i64, Timed, FxBuildHasher>,
    wheel: Wheel,
    /// Ended, but not yet proposed.
    over: VecDeque<i64>,
    /// Deadlines are those of this leadership.
    term: u64,
}

impl Default for Times {
    fn default() -> Self {
        Self { leases: HashMap::default(), wheel: Wheel::new(0), over: VecDeque::new(), term: 0 }
    }
}

impl Times {
    /// A new leadership gives every lease its full TTL and a grace: it can live longer, never shorter.
    fn lead(&mut self, term: u64, now: u64, grace: Duration) {
        if term == self.term {
            return;
        }
        self.term = term;
        self.over.clear();
        self.wheel = Wheel::new(now / TICK_MS);
        let now = now + grace.as_millis() as u64;
        for (id, timed) in &mut self.leases {
            timed.deadline_ms = deadline(now, timed.ttl_secs);
            timed.tick = self.wheel.insert(*id, tick_of(timed.deadline_ms));
        }
    }

    fn handle_change(&mut self, change: LeaseChange, now: u64) {
        match change {
            LeaseChange::Granted(fact) => self.insert(fact, now),
            LeaseChange::Revoked(id) => {
                self.leases.remove(&id);
            }
        }
    }

    fn insert(&mut self, fact: LeaseFact, now: u64) {
        let deadline_ms = deadline(now, fact.ttl_secs);
        let tick = self.wheel.insert(fact.id, tick_of(deadline_ms));
        self.leases.insert(fact.id, Timed { ttl_secs: fact.ttl_secs, deadline_ms, tick });
    }

    /// Changes were left out. A lease of a known id and TTL may have ended and been granted again meanwhile, so each
    /// begins anew: it can live longer, never shorter, and one whose end is on its way is not taken for ended.
    fn replace(&mut self, facts: Vec<LeaseFact>, now: u64) {
        self.leases.clear();
        self.over.clear();
        self.wheel = Wheel::new(now / TICK_MS);
        for fact in facts {
            self.insert(fact, now);
        }
    }

    fn renew(&mut self, id: i64, now: u64) -> Renewal {
        match self.leases.get_mut(&id) {
            None => Renewal::Unknown,
            Some(timed) if timed.tick == OVER || timed.deadline_ms <= now => Renewal::Over,
            Some(timed) => {
                timed.deadline_ms = deadline(now, timed.ttl_secs);
                Renewal::Renewed { ttl_secs: timed.ttl_secs }
            }
        }
    }

    fn remaining(&self, id: i64, now: u64) -> Option<Remaining> {
        let timed = self.leases.get(&id)?;
        let remaining_secs = (timed.deadline_ms.saturating_sub(now) / 1000) as i64;
        Some(Remaining { granted_secs: timed.ttl_secs, remaining_secs })
    }

    fn take_over(&mut self, now: u64, max: usize) -> Vec<i64> {
        let mut reached = Vec::new();
        self.wheel.advance(now / TICK_MS, &mut reached);
        // Those that waited longest go first.
        reached.sort_unstable_by_key(|(id, tick)| (Reverse(*tick), Reverse(*id)));
        while let Some((id, tick)) = reached.pop() {
            let Some(timed) = self.leases.get_mut(&id).filter(|timed| timed.tick == tick) else { continue };
            if timed.deadline_ms <= now {
                timed.tick = OVER;
                self.over.push_back(id);
            } else {
                timed.tick = self.wheel.insert(id, tick_of(timed.deadline_ms));
            }
        }
        let count = self.over.len().min(max);
        let leases = &self.leases;
        let still_over = |id: &i64| leases.get(id).is_some_and(|timed| timed.tick == OVER);
        let mut ids: Vec<i64> = self.over.drain(..count).filter(still_over).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn put_back(&mut self, ids: &[i64]) {
        let leases = &self.leases;
        self.over.extend(ids.iter().filter(|id| leases.get(*id).is_some_and(|timed| timed.tick == OVER)));
    }
}

fn deadline(now: u64, ttl_secs: i64) -> u64 {
    now.saturating_add((ttl_secs.max(0) as u64).saturating_mul(1000))
}

/// The first tick at which the deadline has passed.
fn tick_of(deadline_ms: u64) -> u64 {
    deadline_ms.div_ceil(TICK_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(leases: &[(i64, i64)]) -> Times {
        let mut times = Times::default();
        times.lead(1, 0, Duration::ZERO);
        for (id, ttl_secs) in leases {
            times.insert(LeaseFact { id: *id, ttl_secs: *ttl_secs }, 0);
        }
        times
    }

    #[test]
    fn leases_end_at_their_deadline_and_not_before() {
        let mut times = times(&[(1, 2), (2, 3), (3, 9_000_000_000)]);
        assert_eq!(times.take_over(1999, 10), [0; 0]);
        assert_eq!(times.take_over(2000, 10), [1]);
        assert_eq!(times.take_over(2600, 10), [0; 0], "its end is proposed once");
        assert_eq!(times.take_over(60_000_000, 10), [2]);
        assert_eq!(times.remaining(3, 60_000_000).map(|left| left.remaining_secs), Some(8_999_940_000));
    }

    #[test]
    fn a_renewal_begins_the_time_anew() {
        let mut times = times(&[(1, 2)]);
        for now in (500..20_000).step_by(500) {
            assert_eq!(times.renew(1, now), Renewal::Renewed { ttl_secs: 2 });
            assert_eq!(times.take_over(now, 10), [0; 0]);
        }
        assert_eq!(times.take_over(21_400, 10), [0; 0]);
        assert_eq!(times.take_over(21_500, 10), [1]);
    }

    #[test]
    fn what_is_over_is_not_rescued() {
        let mut times = times(&[(1, 2)]);
        assert_eq!(times.renew(1, 2000), Renewal::Over, "not yet looked at, but over");
        assert_eq!(times.take_over(2000, 10), [1]);
        assert_eq!(times.renew(1, 2001), Renewal::Over);
        assert_eq!(times.remaining(1, 2001), Some(Remaining { granted_secs: 2, remaining_secs: 0 }));
        times.handle_change(LeaseChange::Revoked(1), 2002);
        assert_eq!(times.renew(1, 2003), Renewal::Unknown);
    }

    #[test]
    fn a_failed_proposal_is_made_again_unless_the_lease_has_gone() {
        let mut times = times(&[(1, 2), (2, 2)]);
        assert_eq!(times.take_over(2000, 10), [1, 2]);
        times.handle_change(LeaseChange::Revoked(1), 2100);
        times.put_back(&[1, 2]);
        assert_eq!(times.take_over(2500, 10), [2]);
    }

    #[test]
    fn an_id_granted_again_does_not_inherit_the_old_deadline() {
        let mut times = times(&[(1, 2)]);
        times.handle_change(LeaseChange::Revoked(1), 1000);
        times.handle_change(LeaseChange::Granted(LeaseFact { id: 1, ttl_secs: 2 }), 1900);
        assert_eq!(times.take_over(3899, 10), [0; 0]);
        assert_eq!(times.take_over(4000, 10), [1]);
    }

    #[test]
    fn a_new_leadership_gives_the_full_time_and_a_grace() {
        let mut times = times(&[(1, 2)]);
        times.lead(2, 1900, Duration::from_millis(1000));
        assert_eq!(times.take_over(4899, 10), [0; 0]);
        assert_eq!(times.take_over(5000, 10), [1]);
        times.lead(3, 5000, Duration::ZERO);
        assert_eq!(times.renew(1, 5001), Renewal::Renewed { ttl_secs: 2 }, "its end was not replicated");
    }

    /// The end of lease 1 and its grant were among the changes that were left out; lease 2 was renewed as ever.
    #[test]
    fn after_left_out_changes_every_lease_has_its_full_time_and_ends() {
        let mut times = times(&[(1, 2), (2, 3), (3, 2)]);
        assert_eq!(times.take_over(2000, 10), [1, 3]);
        times.put_back(&[3]);
        let facts = [(1, 2), (2, 3)].map(|(id, ttl_secs)| LeaseFact { id, ttl_secs });
        times.replace(facts.to_vec(), 2900);
        assert_eq!(times.renew(3, 2900), Renewal::Unknown);
        assert_eq!(times.renew(1, 2900), Renewal::Renewed { ttl_secs: 2 }, "it was granted again");
        assert_eq!(times.take_over(4899, 10), [0; 0], "none ends early");
        assert_eq!(times.take_over(5000, 10), [1]);
        assert_eq!(times.take_over(5899, 10), [0; 0]);
        assert_eq!(times.take_over(6000, 10), [2]);
    }

    #[test]
    fn a_burst_is_ended_in_pieces_oldest_first() {
        let leases: Vec<_> = (0..10).map(|id| (id + 1, 12 - id)).collect();
        let mut times = times(&leases);
        assert_eq!(times.take_over(100_000, 4), [7, 8, 9, 10]);
        assert_eq!(times.take_over(100_000, 4), [3, 4, 5, 6]);
        assert_eq!(times.take_over(100_000, 4), [1, 2]);
        assert_eq!(times.take_over(100_000, 4), [0; 0]);
    }
}
