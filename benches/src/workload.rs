//! Which key and value an operation uses. A pure function of seed and operation number, so that runs can be repeated and
//! one sub-command can read what another has written.

use bytes::{Bytes, BytesMut};

use crate::cli::KeyArgs;

/// Random bytes that values are cut from: far larger than what a store compresses at once, so that values that overlap
/// do not look compressible; small enough to stay in the processor's cache.
const VALUE_POOL_BYTES: usize = 1 << 20;

/// The keys of a run.
#[derive(Clone, Debug)]
pub struct Keys {
    seed: u64,
    size: usize,
    /// Number of different keys; 0: a new one for every operation.
    space: u64,
    sequential: bool,
}

impl Keys {
    pub fn new(args: &KeyArgs, seed: u64) -> Self {
        Self { seed, size: args.key_size as usize, space: args.key_space_size, sequential: args.sequential_keys }
    }

    /// The key that operation number `op` uses.
    pub fn for_op(&self, op: u64) -> Bytes {
        let index = match (self.space, self.sequential) {
            (0, _) => op,
            (space, true) => op % space,
            // Scaling keeps the choice uniform also for spaces that do not divide 2^64.
            (space, false) => ((u128::from(mix(self.seed.wrapping_add(1), op)) * u128::from(space)) >> 64) as u64,
        };
        self.at(index)
    }

    /// The keys of the space one after the other, and again from the first: neighbours are different keys.
    pub fn in_turn(&self, number: u64) -> Bytes {
        self.at(if self.space == 0 { number } else { number % self.space })
    }

    /// Key number `index` of the key space. Different numbers give different keys while they fit into the key size.
    pub fn at(&self, index: u64) -> Bytes {
        if self.sequential {
            return fit(&index.to_be_bytes(), self.size);
        }
        let mut key = BytesMut::with_capacity(self.size.next_multiple_of(8));
        let mut word = index;
        while key.len() < self.size {
            word = mix(self.seed, word);
            key.extend_from_slice(&word.to_be_bytes());
        }
        key.truncate(self.size);
        key.freeze()
    }
}

/// The last `size` bytes of a number, with zeros before it if it is shorter.
fn fit(number: &[u8; 8], size: usize) -> Bytes {
    if size <= 8 {
        return Bytes::copy_from_slice(&number[8 - size..]);
    }
    let mut key = vec![0; size];
    key[size - 8..].copy_from_slice(number);
    key.into()
}

/// Values of one size that cannot be compressed.
#[derive(Clone, Debug)]
pub struct Values {
    seed: u64,
    size: usize,
    pool: Bytes,
}

impl Values {
    pub fn new(size: usize, seed: u64) -> Self {
        let mut pool = BytesMut::with_capacity(VALUE_POOL_BYTES + size);
        let mut word = 0_u64;
        while pool.len() < VALUE_POOL_BYTES + size {
            word += 1;
            pool.extend_from_slice(&mix(!seed, word).to_le_bytes());
        }
        Self { seed, size, pool: pool.freeze() }
    }

    /// The value of operation number `op`, without copying.
    pub fn for_op(&self, op: u64) -> Bytes {
        let start = (mix(self.seed.wrapping_add(2), op) % VALUE_POOL_BYTES as u64) as usize;
        self.pool.slice(start..start + self.size)
    }
}

/// A number from 0 to below 1 for each operation, evenly spread.
pub fn fraction(seed: u64, op: u64) -> f64 {
    (mix(seed.wrapping_add(3), op) >> 11) as f64 / (1_u64 << 53) as f64
}

/// `count` different numbers below `space`, for operation number `op`; in no order.
///
/// # Panics
/// If there are fewer numbers than that.
pub fn choose(seed: u64, op: u64, count: usize, space: u64) -> Vec<u64> {
    assert!(count as u64 <= space, "more different numbers than there are");
    let mut chosen = Vec::with_capacity(count);
    // Floyd's way: each step adds one number, whatever has been drawn before.
    for top in space - count as u64..space {
        let word = mix(seed.wrapping_add(4), op.wrapping_mul(space).wrapping_add(top));
        let drawn = ((u128::from(word) * u128::from(top + 1)) >> 64) as u64;
        chosen.push(if chosen.contains(&drawn) { top } else { drawn });
    }
    chosen
}

/// The id of lease number `number`: positive, as servers want ids.
pub fn lease_id(seed: u64, number: u64) -> i64 {
    (mix(seed.wrapping_add(5), number) >> 1).max(1) as i64
}

/// A one-to-one scrambling of 64-bit numbers for each seed (the finisher of SplitMix64).
fn mix(seed: u64, number: u64) -> u64 {
    let mut z = number.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn keys(size: u32, space: u64, sequential: bool, seed: u64) -> Keys {
        Keys::new(&KeyArgs { key_size: size, key_space_size: space, sequential_keys: sequential }, seed)
    }

    #[test]
    fn random_keys_are_distinct_and_repeatable() {
        let all: HashSet<_> = (0..100_000).map(|op| keys(8, 0, false, 7).for_op(op)).collect();
        assert_eq!(all.len(), 100_000);
        assert_eq!(keys(8, 0, false, 7).for_op(5), keys(8, 0, false, 7).for_op(5));
        assert_ne!(keys(8, 0, false, 7).for_op(5), keys(8, 0, false, 8).for_op(5));
    }

    #[test]
    fn a_key_space_is_the_prefix_of_the_keys_used_once() {
        let written: HashSet<_> = (0..1000).map(|op| keys(8, 0, false, 7).for_op(op)).collect();
        let read: HashSet<_> = (0..20_000).map(|op| keys(8, 1000, false, 7).for_op(op)).collect();
        assert_eq!(read, written, "20 draws a key leave none out with this seed");
    }

    #[test]
    fn sequential_keys_count_up_and_wrap_around() {
        let keys = keys(8, 10, true, 7);
        let sorted: Vec<_> = (0..10).map(|op| keys.for_op(op)).collect();
        assert!(sorted.is_sorted());
        assert_eq!(keys.for_op(13), keys.for_op(3));
    }

    #[test]
    fn keys_have_the_size_asked_for() {
        for size in [1, 7, 8, 9, 100] {
            assert_eq!(keys(size, 0, false, 7).for_op(3).len(), size as usize);
            assert_eq!(keys(size, 0, true, 7).for_op(3).len(), size as usize);
        }
        assert_eq!(&keys(2, 0, true, 7).for_op(0x0102)[..], [1, 2]);
        assert_eq!(&keys(10, 0, true, 7).for_op(0x0102)[..], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn keys_in_turn_repeat_only_after_all_others() {
        let keys = keys(8, 10, false, 7);
        let round: HashSet<_> = (3..13).map(|number| keys.in_turn(number)).collect();
        assert_eq!(round.len(), 10);
        assert_eq!(keys.in_turn(3), keys.in_turn(13));
    }

    #[test]
    fn chosen_numbers_differ_and_all_are_chosen() {
        let mut seen = HashSet::new();
        for op in 0..200 {
            let chosen = choose(7, op, 4, 10);
            assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), 4);
            seen.extend(chosen);
        }
        assert_eq!(seen, (0..10).collect());
        assert_eq!(choose(7, 1, 3, 3).into_iter().collect::<HashSet<_>>().len(), 3);
    }

    #[test]
    fn fractions_are_spread_evenly() {
        let below = (0..10_000).filter(|&op| fraction(7, op) < 0.3).count();
        assert!((2_800..3_200).contains(&below), "{below}");
    }

    #[test]
    fn lease_ids_are_positive_and_differ() {
        let ids: HashSet<_> = (0..100_000).map(|number| lease_id(7, number)).collect();
        assert_eq!(ids.len(), 100_000);
        assert!(ids.iter().all(|id| *id > 0));
    }

    #[test]
    fn values_look_random_and_differ() {
        let values = Values::new(256, 7);
        let value = values.for_op(1);
        assert_eq!(value.len(), 256);
        assert_ne!(value, values.for_op(2));
        assert!(value.iter().collect::<HashSet<_>>().len() > 120, "256 random bytes hold about 162 different ones");
    }
}
