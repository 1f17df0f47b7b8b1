//! A hashed timing wheel: ids at ticks, cheap to insert, visited when their tick comes. Knows no clock and no leases,
//! and cannot remove: the owner ignores an id that it has given another tick since.

/// Slots; an entry farther away than this many ticks is met once a turn of the wheel and stays.
const SLOTS: u64 = 4096;

/// The wheel.
///
/// Invariant: an entry of slot `s` has a tick above `now` that is `s` modulo the number of slots.
pub struct Wheel {
    slots: Vec<Vec<(i64, u64)>>,
    /// Every entry up to this tick has been given out.
    now: u64,
}

impl Wheel {
    /// An empty wheel that has given out everything up to tick `now`.
    pub fn new(now: u64) -> Self {
        Self { slots: vec![Vec::new(); SLOTS as usize], now }
    }

    /// Adds an entry; returns its tick, which is the next one if `tick` has passed.
    pub fn insert(&mut self, id: i64, tick: u64) -> u64 {
        let tick = tick.max(self.now + 1);
        self.slots[(tick % SLOTS) as usize].push((id, tick));
        tick
    }

    /// Gives out every entry up to tick `to`: slot by slot, so roughly in order.
    pub fn advance(&mut self, to: u64, due: &mut Vec<(i64, u64)>) {
        if to <= self.now {
            return;
        }
        // One turn meets every slot.
        let first = (self.now + 1).max(to.saturating_sub(SLOTS - 1));
        for tick in first..=to {
            let slot = &mut self.slots[(tick % SLOTS) as usize];
            due.extend(slot.extract_if(.., |(_, tick)| *tick <= to));
            if slot.is_empty() {
                *slot = Vec::new();
            }
        }
        self.now = to;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(i64, u64),
        Advance(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..50i64, prop_oneof![0..40u64, 0..20_000u64]).prop_map(|(id, ahead)| Step::Insert(id, ahead)),
            2 => prop_oneof![0..30u64, 0..9_000u64].prop_map(Step::Advance),
        ]
    }

    proptest! {
        /// Against a sorted set: each entry comes out once, with the first advance that reaches its tick.
        #[test]
        fn every_entry_comes_out_exactly_when_its_tick_is_reached(
            start in 0..10_000u64,
            steps in prop::collection::vec(step(), 1..200),
        ) {
            let mut wheel = Wheel::new(start);
            let mut model: Vec<(u64, i64)> = Vec::new();
            let mut now = start;
            for step in steps {
                match step {
                    Step::Insert(id, ahead) => {
                        let tick = wheel.insert(id, now + ahead);
                        prop_assert_eq!(tick, (now + ahead).max(now + 1));
                        model.push((tick, id));
                    }
                    Step::Advance(by) => {
                        now += by;
                        let mut due = Vec::new();
                        wheel.advance(now, &mut due);
                        let mut due: Vec<_> = due.into_iter().map(|(id, tick)| (tick, id)).collect();
                        due.sort_unstable();
                        let mut expected: Vec<_> = model.extract_if(.., |(tick, _)| *tick <= now).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(due, expected);
                    }
                }
            }
            let mut rest = Vec::new();
            wheel.advance(now + 30_000, &mut rest);
            let rest: BTreeSet<_> = rest.into_iter().map(|(id, tick)| (tick, id)).collect();
            prop_assert_eq!(rest, model.into_iter().collect::<BTreeSet<_>>());
        }
    }
}
