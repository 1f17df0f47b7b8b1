//! Faults that come and go at random, some at once, from a seed. A fault counts when it was seen to happen: a process is
//! gone or stopped, a message met a cut.

use std::{
    fmt,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{cluster::Cluster, links::Cut};

/// Most faults at one time.
const AT_ONCE_MAX: usize = 2;
const LASTS_MILLIS: std::ops::Range<u64> = 200..4000;
const NEXT_MILLIS: std::ops::Range<u64> = 100..2500;
const POLL: Duration = Duration::from_millis(20);

/// What can happen. Places are members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill(Vec<usize>),
    /// SIGTERM.
    Terminate(usize),
    /// SIGSTOP.
    Pause(usize),
    /// Both directions to all others.
    Isolate(usize, Cut),
    /// One direction of one link.
    OneWay(usize, usize, Cut),
    /// What one member sends to all others.
    Mute(usize),
    /// What all others send to one member.
    Deaf(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

struct Active {
    fault: Fault,
    until: Instant,
    held_before: u64,
    seen: bool,
}

/// Makes faults, and undoes them.
pub struct Nemesis {
    rng: StdRng,
    active: Vec<Active>,
    next: Instant,
    /// Faults that were seen to happen, in order.
    pub seen: Vec<Fault>,
    /// Faults that were made.
    pub made: usize,
}

impl Nemesis {
    /// The same seed makes the same choices, as far as the same member leads.
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), active: Vec::new(), next: Instant::now(), seen: Vec::new(), made: 0 }
    }

    /// Makes faults for so long, then undoes all of them.
    pub async fn run(&mut self, cluster: &mut Cluster, duration: Duration, give_up: impl Fn() -> bool) {
        let end = Instant::now() + duration;
        while Instant::now() < end && !give_up() {
            self.look(cluster);
            self.undo_due(cluster, Instant::now());
            if Instant::now() >= self.next && self.active.len() < AT_ONCE_MAX {
                self.make(cluster).await;
                self.next = Instant::now() + self.millis(NEXT_MILLIS);
            }
            for place in 0..cluster.size() {
                cluster.runs(place);
            }
            tokio::time::sleep(POLL).await;
        }
        self.look(cluster);
        self.undo_due(cluster, end + Duration::from_secs(3600));
        cluster.links.heal_all();
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.rng.random_range(range))
    }

    async fn make(&mut self, cluster: &mut Cluster) {
        let size = cluster.size();
        // The leader half of the time: losing it is what costs most.
        let leader = cluster.leader().await;
        let place = match leader {
            Some(leader) if self.rng.random() => leader,
            _ => self.rng.random_range(0..size),
        };
        let other = (place + self.rng.random_range(1..size)) % size;
        let how = if self.rng.random() { Cut::Silent } else { Cut::Loud };
        let fault = match self.rng.random_range(0..100) {
            0..25 => Fault::Kill(vec![place]),
            25..30 => Fault::Kill((0..size).filter(|place| cluster.is_awake(*place)).collect()),
            30..35 => Fault::Terminate(place),
            35..55 => Fault::Pause(place),
            55..75 => Fault::Isolate(place, how),
            75..85 => Fault::OneWay(place, other, how),
            85..93 => Fault::Mute(place),
            _ => Fault::Deaf(place),
        };
        let Some(seen) = begin(cluster, &fault).await else { return };
        self.made += 1;
        let until = Instant::now() + self.millis(LASTS_MILLIS);
        self.active.push(Active { fault, until, held_before: cluster.links.held(), seen });
    }

    /// Whether cuts have met something.
    fn look(&mut self, cluster: &Cluster) {
        for active in self.active.iter_mut().filter(|active| !active.seen) {
            active.seen = cluster.links.held() > active.held_before;
        }
    }

    fn undo_due(&mut self, cluster: &mut Cluster, now: Instant) {
        for active in self.active.extract_if(.., |active| active.until <= now).collect::<Vec<_>>() {
            undo(cluster, &active.fault);
            if active.seen {
                self.seen.push(active.fault);
            }
        }
    }
}

/// Whether it is seen at once; nothing if it cannot be made now.
async fn begin(cluster: &mut Cluster, fault: &Fault) -> Option<bool> {
    let others = |place: usize| (0..cluster.size()).filter(move |other| *other != place).collect::<Vec<_>>();
    match fault {
        Fault::Kill(places) if !places.is_empty() && places.iter().all(|place| cluster.is_awake(*place)) => {
            places.iter().for_each(|place| cluster.kill(*place));
            Some(true)
        }
        Fault::Terminate(place) if cluster.is_awake(*place) => {
            cluster.terminate(*place).await;
            Some(true)
        }
        Fault::Pause(place) if cluster.is_awake(*place) => {
            cluster.pause(*place);
            Some(is_stopped(cluster.pid(*place)?).await)
        }
        Fault::Kill(_) | Fault::Terminate(_) | Fault::Pause(_) => None,
        Fault::Isolate(place, how) => {
            cluster.isolate(*place, *how);
            Some(false)
        }
        Fault::OneWay(from, to, how) => {
            cluster.links.cut(*from, *to, *how);
            Some(false)
        }
        Fault::Mute(place) => {
            others(*place).into_iter().for_each(|other| cluster.links.cut(*place, other, Cut::Silent));
            Some(false)
        }
        Fault::Deaf(place) => {
            others(*place).into_iter().for_each(|other| cluster.links.cut(other, *place, Cut::Silent));
            Some(false)
        }
    }
}

fn undo(cluster: &mut Cluster, fault: &Fault) {
    match fault {
        Fault::Kill(places) => places.iter().for_each(|place| cluster.restart(*place)),
        Fault::Terminate(place) => cluster.restart(*place),
        Fault::Pause(place) => cluster.resume(*place),
        Fault::OneWay(from, to, _) => cluster.links.heal(*from, *to),
        Fault::Isolate(place, _) | Fault::Mute(place) | Fault::Deaf(place) => {
            for other in (0..cluster.size()).filter(|other| other != place) {
                cluster.links.heal(*place, other);
                cluster.links.heal(other, *place);
            }
        }
    }
}

/// A signal takes a moment to be acted on.
async fn is_stopped(pid: u32) -> bool {
    for _ in 0..100 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    false
}
