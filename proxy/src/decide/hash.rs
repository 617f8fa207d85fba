//! The same instance for the same key: on a ring, or by a table (Maglev). A change of the instances moves few keys.

use crate::table::destinations::HashBy;

/// Where keys lead.
#[derive(Debug)]
pub(crate) struct Keyed {
    /// By their hash: points of a ring in their order, or the places of a table without them.
    ring: Vec<(u64, u32)>,
    table: Vec<u32>,
}

impl Keyed {
    /// For candidates that are named, with their weights.
    pub(crate) fn new(by: HashBy, candidates: &[(usize, String, u16)]) -> Self {
        match by {
            HashBy::Ring(points) => Self { ring: ring(points, candidates), table: Vec::new() },
            HashBy::Maglev(places) => Self { ring: Vec::new(), table: table(places, candidates) },
        }
    }

    /// The candidate of a key, or the next one that passes.
    pub(crate) fn pick(&self, key: u64, passes: impl Fn(usize) -> bool) -> Option<usize> {
        let passes = |at: u32| usize::try_from(at).ok().filter(|at| passes(*at));
        if self.ring.is_empty() {
            let length = self.table.len();
            let place = usize::try_from(key % u64::try_from(length.max(1)).unwrap_or(1)).unwrap_or(0);
            return (0..length).find_map(|step| passes(self.table[(place + step) % length]));
        }
        let place = self.ring.partition_point(|(point, _)| *point < key);
        let around = self.ring[place..].iter().chain(&self.ring[..place]);
        around.into_iter().find_map(|(_, at)| passes(*at))
    }
}

/// The hash of a key: FNV-1a of 64 bits, mixed so that short keys differ in all bits.
pub(crate) fn of(key: &[u8]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut hash = key.iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Each candidate has points by its weight, so many together at least.
fn ring(points: usize, candidates: &[(usize, String, u16)]) -> Vec<(u64, u32)> {
    let least = candidates.iter().map(|(.., weight)| *weight).min().unwrap_or(1).max(1);
    let parts = |weight: u16| f64::from(weight) / f64::from(least);
    let sum: f64 = candidates.iter().map(|(.., weight)| parts(*weight)).sum();
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few")]
    // A power of two: one instance more or less leaves the points of the others as they are, mostly.
    let each = ((points as f64 / sum.max(1.0)).ceil() as usize).next_power_of_two();
    let mut ring: Vec<(u64, u32)> = Vec::new();
    for (at, name, weight) in candidates {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "few")]
        let own = ((each as f64 * parts(*weight)).ceil() as usize).min(POINTS_MAX);
        let at = u32::try_from(*at).expect("fewer instances than that");
        ring.extend((0..own).map(|number| (of(format!("{name}_{number}").as_bytes()), at)));
    }
    ring.sort_unstable();
    ring
}

/// Candidates take places of the table in turn, each in an order of its own, by their weights.
fn table(places: usize, candidates: &[(usize, String, u16)]) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let size = u64::try_from(places).unwrap_or(u64::MAX).max(2);
    let most = candidates.iter().map(|(.., weight)| f64::from(*weight)).fold(1.0, f64::max);
    let mut turns: Vec<(u64, u64, f64)> = candidates
        .iter()
        .map(|(_, name, _)| (of(name.as_bytes()) % size, of(format!("{name} step").as_bytes()) % (size - 1) + 1, 0.0))
        .collect();
    let mut table = vec![FREE; if candidates.is_empty() { 0 } else { places }];
    let mut taken = 0;
    while taken < table.len() {
        for ((place, step, credit), (at, _, weight)) in turns.iter_mut().zip(candidates) {
            *credit += f64::from(*weight) / most;
            if *credit < 1.0 || taken == table.len() {
                continue;
            }
            *credit -= 1.0;
            loop {
                let here = usize::try_from(*place).expect("a place of the table");
                *place = (*place + *step) % size;
                if table[here] == FREE {
                    table[here] = u32::try_from(*at).expect("fewer instances than that");
                    taken += 1;
                    break;
                }
            }
        }
    }
    table
}

/// Most points of one instance.
const POINTS_MAX: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn named(count: usize) -> Vec<(usize, String, u16)> {
        (0..count).map(|at| (at, format!("node-{at}/web"), 1)).collect()
    }

    #[test]
    fn few_keys_move_and_none_is_left_out() {
        for by in [HashBy::Ring(1024), HashBy::Maglev(65_537)] {
            let (ten, nine) = (Keyed::new(by, &named(10)), Keyed::new(by, &named(9)));
            let key = |number: u32| of(&number.to_be_bytes());
            let (mut moved, mut counts) = (0, [0; 10]);
            for number in 0..10_000 {
                let before = ten.pick(key(number), |_| true).expect("one");
                counts[before] += 1;
                moved += usize::from(before != 9 && nine.pick(key(number), |_| true) != Some(before));
            }
            assert!(moved < 700, "{by:?}: {moved} keys moved that had no need");
            assert!(counts.iter().all(|count| (400..2000).contains(count)), "{by:?}: {counts:?}");
            let other = ten.pick(key(1), |at| Some(at) != ten.pick(key(1), |_| true));
            assert!(other.is_some() && other != ten.pick(key(1), |_| true));
            assert_eq!(Keyed::new(by, &[]).pick(1, |_| true), None);
        }
    }

    #[test]
    fn weights_are_shares() {
        let candidates = [(0, "a".to_owned(), 1), (1, "b".to_owned(), 3)];
        for by in [HashBy::Ring(4096), HashBy::Maglev(65_537)] {
            let keyed = Keyed::new(by, &candidates);
            let heavy =
                (0..10_000u32).filter(|number| keyed.pick(of(&number.to_be_bytes()), |_| true) == Some(1)).count();
            assert!((7_000..8_000).contains(&heavy), "{by:?}: {heavy}");
        }
    }
}
