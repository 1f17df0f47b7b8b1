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
use crate::command::{LeaseCheckpoint, LeaseExpire};
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

/// A lease whose end is due, and the number of its grant: by the time its end is applied, another may have its id.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    pub id: i64,
    pub grant: u64,
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
        Self::with_checkpoints(views, election, None)
    }

    /// One that also says how much time long leases have left, every `interval`.
    pub fn with_checkpoints(views: Arc<Views>, election: Duration, interval: Option<Duration>) -> Arc<Self> {
        let checkpoint_ms = interval.map(|interval| interval.as_millis() as u64);
        Arc::new(Self {
            views,
            grace: election,
            begin: Instant::now(),
            times: Mutex::new(Times { checkpoint_ms, ..Times::default() }),
            counts: Counts::default(),
        })
    }

    /// Renews a lease, as leader of `term`.
    pub fn renew(&self, id: i64, term: u64) -> Result<Renewal> {
        let now = self.now_ms();
        let mut times = self.times.lock();
        // In this order: a lease that is granted now has no renewals that only another leader knows of.
        times.lead(term, now, self.grace);
        self.follow(&mut times, now)?;
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
        // In this order: a lease that is granted now has no renewals that only another leader knows of.
        times.lead(term, now, self.grace);
        self.follow(&mut times, now)?;
        Ok(times.remaining(id, now))
    }

    /// Takes note of what has been published of leases: the time of those granted begins. As leader of `term`, if this
    /// member leads: what it has granted itself needs no grace.
    pub fn look(&self, term: Option<u64>) -> Result<()> {
        let now = self.now_ms();
        let mut times = self.times.lock();
        if let Some(term) = term {
            times.lead(term, now, self.grace);
        }
        self.follow(&mut times, now)
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

    /// What has to be replicated before the lease is renewed: the checkpoint of it, which a renewal makes wrong.
    pub fn stale_checkpoint(&self, id: i64) -> Result<Option<LeaseCheckpoint>> {
        let mut times = self.times.lock();
        self.follow(&mut times, self.now_ms())?;
        let (true, Some(timed)) = (times.remainders.contains_key(&id), times.leases.get(&id)) else { return Ok(None) };
        let grants = vec![timed.grant];
        Ok(Some(LeaseCheckpoint { ids: vec![id], grants, remaining_secs: vec![0], term: 0 }))
    }

    /// Checkpoints that are due, of at most `max` leases.
    pub fn take_checkpoints(&self, term: u64, max: usize) -> Result<LeaseCheckpoint> {
        let now = self.now_ms();
        let mut times = self.times.lock();
        // In this order: a lease that is granted now has no renewals that only another leader knows of.
        times.lead(term, now, self.grace);
        self.follow(&mut times, now)?;
        Ok(times.take_checkpoints(now, max))
    }

    /// This member does not lead: somebody else keeps the time.
    pub fn rest(&self) {
        self.times.lock().rest();
    }

    /// Leases whose time is over and whose end has not been proposed, at most `max`; ids ascending.
    pub fn take_over(&self, term: u64, max: usize) -> Result<Vec<Due>> {
        let now = self.now_ms();
        let mut times = self.times.lock();
        // In this order: a lease that is granted now has no renewals that only another leader knows of.
        times.lead(term, now, self.grace);
        self.follow(&mut times, now)?;
        Ok(times.take_over(now, max))
    }

    /// The end of these could not be proposed, or it is not known: they are due again.
    pub fn put_back(&self, leases: &[Due]) {
        self.times.lock().put_back(leases);
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

/// What the lessor proposes.
pub enum Proposal {
    Expire(LeaseExpire),
    Checkpoint(LeaseCheckpoint),
}

/// Ends leases whose time is over and notes the time of others, while this member leads; `propose` replicates it. Returns
/// only after a failure of the backend. One proposal at a time, so that the same end is not proposed twice while the
/// first is on its way, and a burst of ends leaves room for others between its log entries.
pub async fn run(
    lessor: Arc<Lessor>,
    raft: Handle,
    propose: impl AsyncFn(Proposal) -> std::result::Result<(), Error>,
    on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
) {
    loop {
        tokio::time::sleep(limits::LEASE_CHECK_INTERVAL).await;
        let status = raft.status();
        if !status.is_leader {
            lessor.rest();
            // What happens to leases is followed all the same, so that to begin to lead takes no time.
            match lessor.look(None) {
                Ok(()) => continue,
                Err(error) => return on_fatal(&error.to_string()),
            }
        }
        // The end of a lease adds to history: it waits until there is room for that.
        if lessor.views.room() == Room::Spent {
            continue;
        }
        let looked = async {
            expire(&lessor, status.term, &propose).await?;
            checkpoint(&lessor, status.term, &propose).await
        };
        if let Err(error) = looked.await {
            return on_fatal(&error.to_string());
        }
    }
}

/// One look's ends of leases: a few log entries at most.
async fn expire(
    lessor: &Lessor,
    term: u64,
    propose: &impl AsyncFn(Proposal) -> std::result::Result<(), Error>,
) -> Result<()> {
    let mut left = limits::LEASES_EXPIRED_AT_ONCE_MAX;
    while left > 0 {
        let due = lessor.take_over(term, left.min(limits::LEASES_PER_COMMAND_MAX))?;
        if due.is_empty() {
            return Ok(());
        }
        left -= due.len();
        let (ids, grants) = due.iter().map(|due| (due.id, due.grant)).unzip();
        match propose(Proposal::Expire(LeaseExpire { ids, grants, term })).await {
            Ok(()) => drop(lessor.counts.expired.fetch_add(due.len() as u64, Ordering::Relaxed)),
            Err(error) => {
                tracing::warn!(%error, leases = due.len(), "ending leases failed, to be tried again");
                lessor.put_back(&due);
                return Ok(());
            }
        }
    }
    Ok(())
}

/// One look's checkpoints. One that fails is made again with the next.
async fn checkpoint(
    lessor: &Lessor,
    term: u64,
    propose: &impl AsyncFn(Proposal) -> std::result::Result<(), Error>,
) -> Result<()> {
    for _ in 0..limits::LEASE_CHECKPOINTS_AT_ONCE_MAX {
        let due = LeaseCheckpoint { term, ..lessor.take_checkpoints(term, limits::LEASES_PER_COMMAND_MAX)? };
        let count = due.ids.len();
        if count == 0 {
            return Ok(());
        }
        if let Err(error) = propose(Proposal::Checkpoint(due)).await {
            tracing::warn!(%error, leases = count, "the checkpoint of leases failed");
            return Ok(());
        }
    }
    Ok(())
}

/// Ticks of the wheel, in milliseconds.
const TICK_MS: u64 = limits::LEASE_CHECK_INTERVAL.as_millis() as u64;
/// Instead of a tick: the time is over, the lease is not in the wheel any more.
const OVER: u64 = u64::MAX;

#[derive(Copy, Clone)]
struct Timed {
    ttl_secs: i64,
    grant: u64,
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
    /// Deadlines are those of this leadership; 0: this member does not lead.
    term: u64,
    /// Every so often it is noted how much time a lease has left. `None`: never.
    checkpoint_ms: Option<u64>,
    /// Leases that get a checkpoint, and when: in order of time, since all wait equally long.
    checkpoints: VecDeque<(u64, Due)>,
    /// What leases had left at their last checkpoint, where there is one and no renewal since.
    remainders: HashMap<i64, i64, FxBuildHasher>,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            leases: HashMap::default(),
            wheel: Wheel::new(0),
            over: VecDeque::new(),
            term: 0,
            checkpoint_ms: None,
            checkpoints: VecDeque::new(),
            remainders: HashMap::default(),
        }
    }
}

impl Times {
    /// A new leadership gives every lease its full TTL, or what a checkpoint says, and a grace: it can live longer, never
    /// shorter.
    fn lead(&mut self, term: u64, now: u64, grace: Duration) {
        if term == self.term {
            return;
        }
        self.rest();
        self.term = term;
        self.wheel = Wheel::new(now / TICK_MS);
        let begin = now + grace.as_millis() as u64;
        let mut leases = std::mem::take(&mut self.leases);
        for (id, timed) in &mut leases {
            let left = self.remainders.get(id).copied().unwrap_or(timed.ttl_secs);
            timed.deadline_ms = deadline(begin, left);
            timed.tick = self.wheel.insert(*id, tick_of(timed.deadline_ms));
            self.schedule_checkpoint(Due { id: *id, grant: timed.grant }, left, now);
        }
        self.leases = leases;
    }

    fn rest(&mut self) {
        if self.term != 0 {
            self.wheel = Wheel::new(0);
        }
        self.term = 0;
        self.over.clear();
        self.checkpoints.clear();
    }

    /// Short leases need none: they would be over, or renewed, before it.
    fn schedule_checkpoint(&mut self, lease: Due, left_secs: i64, now: u64) {
        let Some(interval) = self.checkpoint_ms else { return };
        if self.term != 0 && (left_secs.max(0) as u64).saturating_mul(1000) > interval {
            self.checkpoints.push_back((now + interval, lease));
        }
    }

    fn take_checkpoints(&mut self, now: u64, max: usize) -> LeaseCheckpoint {
        let mut due = LeaseCheckpoint::default();
        while due.ids.len() < max
            && let Some((_, lease)) = self.checkpoints.pop_front_if(|(at, _)| *at <= now)
        {
            let Some(timed) = self.leases.get(&lease.id).filter(|timed| timed.grant == lease.grant) else { continue };
            if timed.tick == OVER || timed.deadline_ms <= now {
                continue;
            }
            let (ttl_secs, left) = (timed.ttl_secs, (timed.deadline_ms - now).div_ceil(1000) as i64);
            if left >= ttl_secs {
                // Just renewed: nothing to note yet.
                self.schedule_checkpoint(lease, left, now);
                continue;
            }
            due.ids.push(lease.id);
            due.grants.push(lease.grant);
            due.remaining_secs.push(left);
        }
        due
    }

    fn handle_change(&mut self, change: LeaseChange, now: u64) {
        match change {
            LeaseChange::Granted(fact) => self.insert(fact, now),
            LeaseChange::Revoked(id) => {
                self.leases.remove(&id);
                self.remainders.remove(&id);
            }
            LeaseChange::Checkpointed(fact) => self.note_checkpoint(fact, now),
        }
    }

    fn insert(&mut self, fact: LeaseFact, now: u64) {
        let left = if fact.remaining_secs > 0 { fact.remaining_secs } else { fact.ttl_secs };
        let deadline_ms = deadline(now, left);
        // A member that does not lead turns no wheel: it would only grow.
        let tick = if self.term == 0 { 0 } else { self.wheel.insert(fact.id, tick_of(deadline_ms)) };
        self.leases.insert(fact.id, Timed { ttl_secs: fact.ttl_secs, grant: fact.grant, deadline_ms, tick });
        self.note_remainder(fact);
        self.schedule_checkpoint(Due { id: fact.id, grant: fact.grant }, left, now);
    }

    fn note_remainder(&mut self, fact: LeaseFact) {
        match fact.remaining_secs {
            0 => drop(self.remainders.remove(&fact.id)),
            left => drop(self.remainders.insert(fact.id, left)),
        }
    }

    /// What was noted is applied; the lease waits for its next one.
    fn note_checkpoint(&mut self, fact: LeaseFact, now: u64) {
        if self.leases.get(&fact.id).is_some_and(|timed| timed.grant == fact.grant) {
            self.note_remainder(fact);
            let left = if fact.remaining_secs > 0 { fact.remaining_secs } else { fact.ttl_secs };
            self.schedule_checkpoint(Due { id: fact.id, grant: fact.grant }, left, now);
        }
    }

    /// Changes were left out. A lease of a known id and TTL may have ended and been granted again meanwhile, so each
    /// begins anew: it can live longer, never shorter, and one whose end is on its way is not taken for ended.
    fn replace(&mut self, facts: Vec<LeaseFact>, now: u64) {
        self.leases.clear();
        self.remainders.clear();
        self.checkpoints.clear();
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

    fn take_over(&mut self, now: u64, max: usize) -> Vec<Due> {
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
        let still_over = |id: i64| {
            let timed = leases.get(&id).filter(|timed| timed.tick == OVER)?;
            Some(Due { id, grant: timed.grant })
        };
        let mut due: Vec<Due> = self.over.drain(..count).filter_map(still_over).collect();
        due.sort_unstable();
        due.dedup();
        due
    }

    fn put_back(&mut self, due: &[Due]) {
        let leases = &self.leases;
        let still_over = |due: &&Due| {
            let same = |timed: &&Timed| timed.tick == OVER && timed.grant == due.grant;
            leases.get(&due.id).filter(same).is_some()
        };
        self.over.extend(due.iter().filter(still_over).map(|due| due.id));
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

    fn fact(id: i64, ttl_secs: i64) -> LeaseFact {
        LeaseFact { id, ttl_secs, grant: 1, remaining_secs: 0 }
    }

    fn due(id: i64) -> Due {
        Due { id, grant: 1 }
    }

    fn over(times: &mut Times, now: u64, max: usize) -> Vec<i64> {
        times.take_over(now, max).into_iter().map(|due| due.id).collect()
    }

    fn times(leases: &[(i64, i64)]) -> Times {
        let mut times = Times::default();
        times.lead(1, 0, Duration::ZERO);
        for (id, ttl_secs) in leases {
            times.insert(fact(*id, *ttl_secs), 0);
        }
        times
    }

    #[test]
    fn leases_end_at_their_deadline_and_not_before() {
        let mut times = times(&[(1, 2), (2, 3), (3, 9_000_000_000)]);
        assert_eq!(over(&mut times, 1999, 10), [0; 0]);
        assert_eq!(over(&mut times, 2000, 10), [1]);
        assert_eq!(over(&mut times, 2600, 10), [0; 0], "its end is proposed once");
        assert_eq!(over(&mut times, 60_000_000, 10), [2]);
        assert_eq!(times.remaining(3, 60_000_000).map(|left| left.remaining_secs), Some(8_999_940_000));
    }

    #[test]
    fn a_renewal_begins_the_time_anew() {
        let mut times = times(&[(1, 2)]);
        for now in (500..20_000).step_by(500) {
            assert_eq!(times.renew(1, now), Renewal::Renewed { ttl_secs: 2 });
            assert_eq!(over(&mut times, now, 10), [0; 0]);
        }
        assert_eq!(over(&mut times, 21_400, 10), [0; 0]);
        assert_eq!(over(&mut times, 21_500, 10), [1]);
    }

    #[test]
    fn what_is_over_is_not_rescued() {
        let mut times = times(&[(1, 2)]);
        assert_eq!(times.renew(1, 2000), Renewal::Over, "not yet looked at, but over");
        assert_eq!(over(&mut times, 2000, 10), [1]);
        assert_eq!(times.renew(1, 2001), Renewal::Over);
        assert_eq!(times.remaining(1, 2001), Some(Remaining { granted_secs: 2, remaining_secs: 0 }));
        times.handle_change(LeaseChange::Revoked(1), 2002);
        assert_eq!(times.renew(1, 2003), Renewal::Unknown);
    }

    #[test]
    fn a_failed_proposal_is_made_again_unless_the_lease_has_gone() {
        let mut times = times(&[(1, 2), (2, 2)]);
        assert_eq!(over(&mut times, 2000, 10), [1, 2]);
        times.handle_change(LeaseChange::Revoked(1), 2100);
        times.put_back(&[due(1), due(2)]);
        assert_eq!(over(&mut times, 2500, 10), [2]);
    }

    #[test]
    fn an_id_granted_again_does_not_inherit_the_old_deadline() {
        let mut times = times(&[(1, 2)]);
        times.handle_change(LeaseChange::Revoked(1), 1000);
        times.handle_change(LeaseChange::Granted(LeaseFact { grant: 2, ..fact(1, 2) }), 1900);
        assert_eq!(over(&mut times, 3899, 10), [0; 0]);
        assert_eq!(over(&mut times, 4000, 10), [1]);
    }

    #[test]
    fn a_new_leadership_gives_the_full_time_and_a_grace() {
        let mut times = times(&[(1, 2)]);
        times.lead(2, 1900, Duration::from_millis(1000));
        assert_eq!(over(&mut times, 4899, 10), [0; 0]);
        assert_eq!(over(&mut times, 5000, 10), [1]);
        times.lead(3, 5000, Duration::ZERO);
        assert_eq!(times.renew(1, 5001), Renewal::Renewed { ttl_secs: 2 }, "its end was not replicated");
    }

    /// The end of lease 1 and its grant were among the changes that were left out; lease 2 was renewed as ever.
    #[test]
    fn after_left_out_changes_every_lease_has_its_full_time_and_ends() {
        let mut times = times(&[(1, 2), (2, 3), (3, 2)]);
        assert_eq!(over(&mut times, 2000, 10), [1, 3]);
        times.put_back(&[due(3)]);
        let facts = [(1, 2), (2, 3)].map(|(id, ttl_secs)| fact(id, ttl_secs));
        times.replace(facts.to_vec(), 2900);
        assert_eq!(times.renew(3, 2900), Renewal::Unknown);
        assert_eq!(times.renew(1, 2900), Renewal::Renewed { ttl_secs: 2 }, "it was granted again");
        assert_eq!(over(&mut times, 4899, 10), [0; 0], "none ends early");
        assert_eq!(over(&mut times, 5000, 10), [1]);
        assert_eq!(over(&mut times, 5899, 10), [0; 0]);
        assert_eq!(over(&mut times, 6000, 10), [2]);
    }

    #[test]
    fn a_burst_is_ended_in_pieces_oldest_first() {
        let leases: Vec<_> = (0..10).map(|id| (id + 1, 12 - id)).collect();
        let mut times = times(&leases);
        assert_eq!(over(&mut times, 100_000, 4), [7, 8, 9, 10]);
        assert_eq!(over(&mut times, 100_000, 4), [3, 4, 5, 6]);
        assert_eq!(over(&mut times, 100_000, 4), [1, 2]);
        assert_eq!(over(&mut times, 100_000, 4), [0; 0]);
    }

    #[test]
    fn the_end_of_a_lease_is_not_that_of_the_next_with_its_id() {
        let mut times = times(&[(1, 2)]);
        assert_eq!(times.take_over(2000, 10), [due(1)]);
        times.handle_change(LeaseChange::Revoked(1), 2100);
        times.handle_change(LeaseChange::Granted(LeaseFact { grant: 2, ..fact(1, 2) }), 2100);
        times.put_back(&[due(1)]);
        assert_eq!(times.take_over(4000, 10), [], "not yet");
        assert_eq!(times.take_over(4500, 10), [Due { id: 1, grant: 2 }]);
    }

    fn with_checkpoints(leases: &[(i64, i64)]) -> Times {
        let mut times = Times { checkpoint_ms: Some(300_000), ..Times::default() };
        times.lead(1, 0, Duration::ZERO);
        leases.iter().for_each(|(id, ttl_secs)| times.insert(fact(*id, *ttl_secs), 0));
        times
    }

    #[test]
    fn long_leases_are_noted_from_time_to_time_and_short_ones_never() {
        let mut times = with_checkpoints(&[(1, 1000), (2, 300), (3, 2000), (4, 1000)]);
        assert_eq!(times.take_checkpoints(299_999, 10).ids, [0; 0]);
        assert_eq!(times.renew(4, 300_000), Renewal::Renewed { ttl_secs: 1000 });
        let noted = times.take_checkpoints(300_000, 10);
        assert_eq!((noted.ids, noted.grants, noted.remaining_secs), (vec![1, 3], vec![1, 1], vec![700, 1700]));
        assert_eq!(times.take_checkpoints(500_000, 10).ids, [0; 0], "not before it is applied");
        times.handle_change(LeaseChange::Checkpointed(LeaseFact { remaining_secs: 700, ..fact(1, 1000) }), 310_000);
        assert_eq!(times.take_checkpoints(600_000, 10).ids, [4], "renewed, and so noted later");
        assert_eq!(times.take_checkpoints(610_000, 10).remaining_secs, [390]);
        let mut without = self::times(&[(1, 1000)]);
        assert_eq!(without.take_checkpoints(1_000_000, 10).ids, [0; 0]);
    }

    #[test]
    fn a_new_leadership_goes_on_from_the_checkpoint() {
        let mut times = with_checkpoints(&[(1, 1000), (2, 1000)]);
        let noted = LeaseFact { remaining_secs: 400, ..fact(1, 1000) };
        times.handle_change(LeaseChange::Checkpointed(noted), 600_000);
        times.handle_change(LeaseChange::Checkpointed(LeaseFact { grant: 7, ..noted }), 600_000);
        times.lead(2, 600_000, Duration::from_millis(1000));
        let left = |times: &Times, id| times.remaining(id, 601_000).map(|left| left.remaining_secs);
        assert_eq!((left(&times, 1), left(&times, 2)), (Some(400), Some(1000)));
        times.handle_change(LeaseChange::Checkpointed(fact(1, 1000)), 700_000);
        times.lead(3, 700_000, Duration::ZERO);
        assert_eq!(left(&times, 1), Some(1099), "renewed since: the whole time");
        let facts = vec![LeaseFact { remaining_secs: 5, ..fact(1, 1000) }];
        times.replace(facts, 800_000);
        assert_eq!(times.remaining(1, 800_000).map(|left| left.remaining_secs), Some(5), "as read after a restart");
    }
}
