//! The coarse timer: a ring of buckets, one a tick, in which each pin has at most one link.
//! It knows indices and ticks, neither pins nor milliseconds. Setting and unsetting take constant time; a tick
//! beyond one turn of the ring waits in its bucket until its turn comes. It never calls back: the owner pops.

/// A tick that never comes.
pub(crate) const NEVER: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct Ring {
    links: Vec<Link>,
    /// The first link of each bucket, and of the list of links that are being popped.
    heads: Box<[u32; BUCKETS + 1]>,
    /// A bit for each bucket that has a link.
    occupied: [u64; BUCKETS / 64],
    /// The next tick whose bucket will be opened.
    cursor: u32,
    /// Links that are in a list.
    armed: usize,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    next: u32,
    /// The link before, or `HEAD | list` if this is the first of its list.
    prev: u32,
    /// When it is due; [`NEVER`] if it is in no list.
    tick: u32,
}

impl Ring {
    /// A ring that starts at tick `now`.
    pub(crate) fn new(now: u32) -> Self {
        Self {
            links: Vec::new(),
            heads: Box::new([NIL; BUCKETS + 1]),
            occupied: [0; BUCKETS / 64],
            cursor: now,
            armed: 0,
        }
    }

    /// Sees to it that `index` is popped at `tick` or earlier. A pop that turns out to be early costs its owner
    /// a look and another `arm`, which is cheaper than a move in the ring at each delivery.
    pub(crate) fn arm(&mut self, index: u32, tick: u32) {
        if index as usize >= self.links.len() {
            self.links.resize(index as usize + 1, Link { next: NIL, prev: NIL, tick: NEVER });
        }
        if tick < self.links[index as usize].tick {
            self.disarm(index);
            self.link(index, tick);
        }
    }

    pub(crate) fn disarm(&mut self, index: u32) {
        if self.links.get(index as usize).is_some_and(|link| link.tick != NEVER) {
            self.unlink(index);
        }
    }

    /// Takes out an index that is due at `now`. Each link looked at costs one of `budget`; when that is used
    /// up, what is left is popped by later calls.
    pub(crate) fn pop(&mut self, now: u32, budget: &mut usize) -> Option<u32> {
        // After a leap of more than one turn, one turn still opens every bucket.
        self.cursor = self.cursor.max((now + 1).saturating_sub(BUCKETS as u32));
        while *budget > 0 {
            let first = self.heads[POPPING];
            if first == NIL {
                if self.cursor > now {
                    return None;
                }
                self.open();
                continue;
            }
            *budget -= 1;
            let tick = self.links[first as usize].tick;
            self.unlink(first);
            if tick <= now {
                return Some(first);
            }
            self.link(first, tick);
        }
        None
    }

    /// The tick at which to pop again: not later than the first link is due, perhaps earlier.
    pub(crate) fn next(&self) -> Option<u32> {
        if self.armed == 0 {
            return None;
        }
        if self.heads[POPPING] != NIL {
            return Some(self.cursor - 1);
        }
        let start = self.cursor as usize % BUCKETS;
        let words = self.occupied.len();
        // The word of the cursor is looked at twice: first from the cursor's bit on, last from its start.
        for step in 0..=words {
            let word = (start / 64 + step) % words;
            let mask = if step == 0 { u64::MAX << (start % 64) } else { u64::MAX };
            let bits = self.occupied[word] & mask;
            if bits != 0 {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (bucket + BUCKETS - start) % BUCKETS;
                return Some(self.cursor + ahead as u32);
            }
        }
        None
    }

    /// Moves the links of the cursor's bucket to the list that is popped, and the cursor on.
    fn open(&mut self) {
        debug_assert_eq!(self.heads[POPPING], NIL, "one bucket is popped at a time");
        let bucket = self.cursor as usize % BUCKETS;
        self.cursor += 1;
        let first = std::mem::replace(&mut self.heads[bucket], NIL);
        self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        if first != NIL {
            self.heads[POPPING] = first;
            self.links[first as usize].prev = HEAD | POPPING as u32;
        }
    }

    /// A tick that has passed goes where the cursor comes next.
    fn link(&mut self, index: u32, tick: u32) {
        let bucket = tick.max(self.cursor) as usize % BUCKETS;
        let next = std::mem::replace(&mut self.heads[bucket], index);
        if next != NIL {
            self.links[next as usize].prev = index;
        }
        self.links[index as usize] = Link { next, prev: HEAD | bucket as u32, tick };
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.armed += 1;
    }

    fn unlink(&mut self, index: u32) {
        let Link { next, prev, .. } = self.links[index as usize];
        self.links[index as usize].tick = NEVER;
        self.armed -= 1;
        if next != NIL {
            self.links[next as usize].prev = prev;
        }
        if prev & HEAD == 0 {
            self.links[prev as usize].next = next;
            return;
        }
        let list = (prev & !HEAD) as usize;
        self.heads[list] = next;
        if next == NIL && list != POPPING {
            self.occupied[list / 64] &= !(1 << (list % 64));
        }
    }
}

/// Pins that one table can hold: the high bit of a link says that it names a list.
pub(crate) const MOST: u32 = HEAD - 1;

/// Bytes that a pin's link takes.
pub(crate) const LINK_SIZE: usize = size_of::<Link>();

const HEAD: u32 = 1 << 31;
const NIL: u32 = u32::MAX;
/// At 100 ms a tick one turn is 102 s: the usual keep-alive and long-poll times fit in one.
const BUCKETS: usize = 1024;
const POPPING: usize = BUCKETS;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Clone, Debug)]
    enum Step {
        Arm(u32, u32),
        Disarm(u32),
        Pass { ticks: u32, budget: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..40u32, 0..3000u32).prop_map(|(index, after)| Step::Arm(index, after)),
            1 => (0..40u32).prop_map(Step::Disarm),
            3 => (0..1500u32, 1..30usize).prop_map(|(ticks, budget)| Step::Pass { ticks, budget }),
        ]
    }

    proptest! {
        #[test]
        fn pops_what_is_due_and_nothing_else(steps in prop::collection::vec(step(), 1..200)) {
            let mut now = 5_000_u32;
            let mut ring = Ring::new(now);
            let mut model = BTreeMap::<u32, u32>::new();
            for step in steps {
                match step {
                    Step::Arm(index, after) => {
                        ring.arm(index, now + after);
                        let tick = model.entry(index).or_insert(NEVER);
                        *tick = (*tick).min(now + after);
                    }
                    Step::Disarm(index) => {
                        ring.disarm(index);
                        model.remove(&index);
                    }
                    Step::Pass { ticks, budget } => {
                        now += ticks;
                        let mut left = budget;
                        while let Some(index) = ring.pop(now, &mut left) {
                            let tick = model.remove(&index);
                            prop_assert!(tick.is_some_and(|tick| tick <= now), "{index} at {now}: {tick:?}");
                        }
                        if left > 0 {
                            prop_assert!(model.values().all(|&tick| tick > now), "{model:?} left at {now}");
                        }
                    }
                }
                match (ring.next(), model.values().min()) {
                    (None, None) => {}
                    (Some(next), Some(&first)) => prop_assert!(next <= first.max(now + 1), "{next} for {first}"),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }
}
