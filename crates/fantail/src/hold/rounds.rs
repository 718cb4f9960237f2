//! When links are followed without a cause (spec 3.10). Owns the rounds and who goes with them; follows nothing itself.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use super::GripLink;

/// When links are followed without a cause: streams with the same link and time go in one round, which began with the
/// first of them.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// By what makes them the same: when it began, and how many go with it.
    rounds: HashMap<u64, (u64, usize)>,
    hash: RandomState,
}

impl Rounds {
    /// Joins a round. Returns which.
    pub(super) fn join(&mut self, link: &GripLink, now_ms: u64) -> u64 {
        let trail = (Arc::as_ptr(&link.trail.route).addr(), link.place.authority(), link.place.path());
        let round = self.hash.hash_one((trail, link.timeout_ms));
        self.rounds.entry(round).or_insert((now_ms, 0)).1 += 1;
        round
    }

    pub(super) fn leave(&mut self, round: u64) {
        if let Some((_, streams)) = self.rounds.get_mut(&round) {
            *streams -= 1;
            if *streams == 0 {
                self.rounds.remove(&round);
            }
        }
    }

    /// From `now_ms` to its next turn.
    pub(super) fn left_ms(&self, round: u64, timeout_ms: u32, now_ms: u64) -> u32 {
        let began_ms = self.rounds.get(&round).map_or(now_ms, |(began_ms, _)| *began_ms);
        let into = (now_ms - began_ms) % u64::from(timeout_ms.max(1));
        // Less than the time-out.
        timeout_ms - u32::try_from(into).unwrap_or(0)
    }
}
