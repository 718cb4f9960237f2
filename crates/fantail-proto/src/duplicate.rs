//! Which ids were seen lately (spec 4.2, 1). The window starts at first sight and is not extended.
//! Keys are digests: 128 bits of a keyed hash of channel and id, made by the caller.

use std::collections::{HashSet, VecDeque};

/// A bounded memory of ids; when full, the oldest is forgotten first.
#[derive(Debug)]
pub struct Seen {
    ttl_ms: u64,
    capacity: usize,
    order: VecDeque<(u64, u128)>,
    /// Invariant: the same digests as in `order`, each once.
    digests: HashSet<u128>,
}

impl Seen {
    /// A `ttl_ms` or `capacity` of 0 remembers nothing.
    pub fn new(ttl_ms: u64, capacity: usize) -> Self {
        Self { ttl_ms, capacity, order: VecDeque::new(), digests: HashSet::new() }
    }

    /// True when `digest` was noted less than the window ago.
    pub fn contains(&mut self, digest: u128, now_ms: u64) -> bool {
        self.expire(now_ms);
        self.digests.contains(&digest)
    }

    /// Remembers `digest` from now on; a digest that is in the window keeps its time.
    pub fn note(&mut self, digest: u128, now_ms: u64) {
        if self.ttl_ms == 0 || self.capacity == 0 || !self.digests.insert(digest) {
            return;
        }
        if self.order.len() == self.capacity {
            self.forget_oldest();
        }
        self.order.push_back((now_ms, digest));
    }

    /// As if these had not been noted. Looks at all that is remembered, once.
    pub fn forget(&mut self, digests: &[u128]) {
        let gone: HashSet<u128> =
            digests.iter().copied().filter(|digest| self.digests.remove(digest)).collect();
        if !gone.is_empty() {
            // They may be noted again: then their first time must not end the second window.
            self.order.retain(|(_, noted)| !gone.contains(noted));
        }
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    fn expire(&mut self, now_ms: u64) {
        while self.order.front().is_some_and(|(at, _)| now_ms.saturating_sub(*at) >= self.ttl_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, digest)) = self.order.pop_front() {
            self.digests.remove(&digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn the_window_starts_at_first_sight() {
        let mut seen = Seen::new(60_000, 10);
        seen.note(1, 0);
        assert!(seen.contains(1, 59_999));
        seen.note(1, 59_999);
        assert!(!seen.contains(1, 60_000));
    }

    #[test]
    fn the_oldest_is_forgotten_when_full() {
        let mut seen = Seen::new(60_000, 2);
        for digest in 1..=3 {
            seen.note(digest, 0);
        }
        assert_eq!([1, 2, 3].map(|d| seen.contains(d, 1)), [false, true, true]);
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn what_is_forgotten_may_come_again() {
        let mut seen = Seen::new(60_000, 10);
        seen.note(1, 0);
        seen.note(3, 0);
        seen.forget(&[1, 2]);
        assert!(seen.contains(3, 1));
        assert!(!seen.contains(1, 1));
        seen.note(1, 30_000);
        assert!(seen.contains(1, 60_000) && !seen.contains(1, 90_000));
    }

    #[test]
    fn nothing_is_remembered_without_a_window() {
        let mut seen = Seen::new(0, 10);
        seen.note(1, 0);
        assert!(!seen.contains(1, 0) && seen.is_empty());
    }
}
