//! Which letters wait, how many endpoints for each, and how many bytes of disk that is, in all and of one realm. Numbers
//! and sizes only; what a letter says is on disk.

use std::collections::HashMap;

/// All letters that wait.
#[derive(Debug)]
pub(super) struct Letters {
    shares: HashMap<u64, Share>,
    realms: HashMap<u32, usize>,
    bytes: usize,
    /// In all, and of one realm.
    limits: (usize, usize),
}

#[derive(Clone, Copy, Debug)]
struct Share {
    realm: u32,
    /// Endpoints that wait for it.
    left: u32,
    bytes: usize,
}

impl Letters {
    pub(super) fn new(limits: (usize, usize)) -> Self {
        Self { shares: HashMap::new(), realms: HashMap::new(), bytes: 0, limits }
    }

    /// Whether a realm may have a letter of so many bytes more. A first one is taken whatever it has.
    pub(super) fn has_room(&self, realm: u32, bytes: usize) -> bool {
        let own = self.realms.get(&realm).copied().unwrap_or_default();
        let fits = |have: usize, limit: usize| have == 0 || have.saturating_add(bytes) <= limit;
        fits(self.bytes, self.limits.0) && fits(own, self.limits.1)
    }

    /// One more endpoint waits for a letter.
    pub(super) fn expect(&mut self, seq: u64, realm: u32) {
        self.shares.entry(seq).or_insert(Share { realm, left: 0, bytes: 0 }).left += 1;
    }

    /// How long an expected letter is. False: nobody expects it.
    pub(super) fn weigh(&mut self, seq: u64, bytes: usize) -> bool {
        let Some(share) = self.shares.get_mut(&seq) else { return false };
        let before = std::mem::replace(&mut share.bytes, bytes);
        let own = self.realms.entry(share.realm).or_default();
        *own = *own + bytes - before;
        self.bytes = self.bytes + bytes - before;
        true
    }

    /// How long a letter that waits is.
    pub(super) fn size(&self, seq: u64) -> usize {
        self.shares.get(&seq).map_or(0, |share| share.bytes)
    }

    /// An endpoint waits no more. True when nobody else does.
    pub(super) fn done(&mut self, seq: u64) -> bool {
        let Some(share) = self.shares.get_mut(&seq) else { return true };
        share.left = share.left.saturating_sub(1);
        if share.left > 0 {
            return false;
        }
        self.forget(seq);
        true
    }

    /// A letter is not on disk.
    pub(super) fn forget(&mut self, seq: u64) {
        let Some(share) = self.shares.remove(&seq) else { return };
        self.bytes -= share.bytes;
        if let Some(own) = self.realms.get_mut(&share.realm) {
            *own -= share.bytes;
            if *own == 0 {
                self.realms.remove(&share.realm);
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As docs/configuration.md says.
    #[test]
    fn a_letter_takes_some_bytes() {
        let mut letters = Letters::new((0, 0));
        (0..100_000).for_each(|seq| letters.expect(seq, 1));
        // An eighth of the table is always empty, and each place has a byte of its own.
        let bytes = letters.shares.capacity() / 7 * 8 * (size_of::<(u64, Share)>() + 1);
        assert!((28..=57).contains(&(bytes / 100_000)), "{bytes}");
    }

    #[test]
    fn letters_are_counted_once_and_have_limits() {
        let mut letters = Letters::new((100, 60));
        for (seq, realm, bytes) in [(1, 7, 40), (2, 8, 50)] {
            letters.expect(seq, realm);
            letters.expect(seq, realm);
            letters.weigh(seq, bytes);
        }
        assert!(letters.has_room(7, 10) && !letters.has_room(7, 11), "of all");
        assert!(letters.has_room(9, 10) && !letters.has_room(9, 11));
        assert!(!letters.done(2) && letters.done(2));
        assert!(letters.has_room(7, 20) && !letters.has_room(7, 21), "of the realm");
        assert!(letters.has_room(8, 60) && !letters.has_room(8, 61));
        letters.forget(1);
        assert_eq!((letters.bytes(), letters.shares.len(), letters.realms.len()), (0, 0, 0));
        assert!(letters.has_room(7, 1000), "one is always taken");
        assert!(letters.done(1), "nobody waits for what is not there");
    }
}
