//! The order of one channel's items (spec 4.2): which item follows which, which has come too early and waits for its
//! predecessor, and which goes out without it when that does not come. Owns neither items nor clocks: items are
//! anything, ids are digests as in [`crate::duplicate`], and the time is an argument.

/// A channel's order, kept while it has a subscriber.
#[derive(Debug)]
pub struct Sequence<T> {
    /// The id of the item that went out last, if it is known.
    last: Option<u128>,
    /// Items that wait, in the order of their arrival: at most [`MAX_EARLY`], no two after the same.
    early: Vec<Early<T>>,
}

#[derive(Debug)]
struct Early<T> {
    id: Option<u128>,
    prev_id: u128,
    due_ms: u64,
    item: T,
}

/// What becomes of an item that has just come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is next: [`Sequence::pass`], and then whatever [`Sequence::follow`] gives.
    Pass,
    /// It is early: [`Sequence::hold`].
    Hold,
    /// It is early, and another item waits for the same predecessor.
    Rival,
    /// It is early, and [`MAX_EARLY`] items wait already.
    Full,
}

impl<T> Default for Sequence<T> {
    fn default() -> Self {
        Self { last: None, early: Vec::new() }
    }
}

impl<T> Sequence<T> {
    /// The first item is always next, and so is one that does not say what it follows.
    pub fn judge(&self, prev_id: Option<u128>) -> Verdict {
        match (self.last, prev_id) {
            (Some(last), Some(prev)) if last != prev => {
                if self.early.iter().any(|early| early.prev_id == prev) {
                    Verdict::Rival
                } else if self.early.len() >= MAX_EARLY {
                    Verdict::Full
                } else {
                    Verdict::Hold
                }
            }
            _ => Verdict::Pass,
        }
    }

    /// An item goes out. One without an id makes the next one, whatever it follows.
    pub fn pass(&mut self, id: Option<u128>) {
        self.last = id;
    }

    /// Keeps an item that is early until `due_ms`. Those that come later are due later.
    pub fn hold(&mut self, id: Option<u128>, prev_id: u128, due_ms: u64, item: T) {
        self.early.push(Early { id, prev_id, due_ms, item });
    }

    /// An item that waits.
    pub fn early_mut(&mut self, id: u128) -> Option<&mut T> {
        let early = self.early.iter_mut().find(|early| early.id == Some(id))?;
        Some(&mut early.item)
    }

    /// The item that waited for the one that went out last: it goes out now.
    pub fn follow(&mut self) -> Option<T> {
        let last = self.last?;
        let place = self.early.iter().position(|early| early.prev_id == last)?;
        Some(self.release(place))
    }

    /// An item that goes out without its predecessor, because it has waited long enough, or one that follows it has:
    /// the order of those that wait is kept. To be followed, and asked for again.
    pub fn expire(&mut self, now_ms: u64) -> Option<T> {
        let mut head = self.early.iter().position(|early| early.due_ms <= now_ms)?;
        // Ids may go around in a circle.
        for _ in 0..self.early.len() {
            let before = Some(self.early[head].prev_id);
            match self.early.iter().position(|early| early.id == before) {
                Some(place) => head = place,
                None => break,
            }
        }
        Some(self.release(head))
    }

    /// When [`Self::expire`] has something.
    pub fn due_ms(&self) -> Option<u64> {
        self.early.first().map(|early| early.due_ms)
    }

    /// When it has all that wait.
    pub fn last_due_ms(&self) -> Option<u64> {
        self.early.last().map(|early| early.due_ms)
    }

    /// The id of the item that went out last, if that is known.
    pub const fn last(&self) -> Option<u128> {
        self.last
    }

    /// Whatever comes next is next.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Nothing is known and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.last.is_none() && self.early.is_empty()
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.early.len()
    }

    pub fn is_empty(&self) -> bool {
        self.early.is_empty()
    }

    /// What waits, in the order of its arrival.
    pub fn early(&self) -> impl Iterator<Item = &T> {
        self.early.iter().map(|early| &early.item)
    }

    fn release(&mut self, place: usize) -> T {
        let early = self.early.remove(place);
        self.last = early.id;
        early.item
    }
}

/// Items of one channel that may wait for their predecessors (spec 4.2).
pub const MAX_EARLY: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::recovery::{Step, step};

    /// A channel as the hub has it: what goes out, by id, and whether its predecessor was given up.
    #[derive(Default)]
    struct Channel {
        sequence: Sequence<u128>,
        out: Vec<u128>,
        late: usize,
        dropped: Vec<u128>,
    }

    impl Channel {
        fn offer(&mut self, id: u128, prev_id: Option<u128>, now: u64) {
            match self.sequence.judge(prev_id) {
                Verdict::Pass => {
                    self.sequence.pass(Some(id));
                    self.out.push(id);
                    self.follow();
                }
                Verdict::Hold => self.sequence.hold(Some(id), prev_id.unwrap(), now + WAIT, id),
                Verdict::Rival | Verdict::Full => self.dropped.push(id),
            }
        }

        fn expire(&mut self, now: u64) {
            while let Some(item) = self.sequence.expire(now) {
                self.out.push(item);
                self.late += 1;
                self.follow();
            }
        }

        fn follow(&mut self) {
            while let Some(item) = self.sequence.follow() {
                self.out.push(item);
            }
        }
    }

    const WAIT: u64 = 5000;

    fn chain(order: &[u128]) -> Channel {
        let mut channel = Channel::default();
        order.iter().for_each(|id| channel.offer(*id, id.checked_sub(1), 0));
        channel
    }

    #[test]
    fn a_chain_comes_out_in_order() {
        assert_eq!(chain(&[0, 4, 3, 2, 1]).out, [0, 1, 2, 3, 4]);
        assert_eq!(chain(&[2, 1, 3]).out, [2, 3], "the first is next, whatever it follows");
    }

    #[test]
    fn what_waits_goes_out_when_its_time_is_up() {
        let mut channel = chain(&[0]);
        channel.offer(4, Some(3), 1000);
        channel.offer(3, Some(2), 2000);
        assert_eq!(channel.sequence.due_ms(), Some(6000));
        channel.expire(5999);
        assert_eq!(channel.out, [0]);
        channel.expire(6000);
        assert_eq!(
            (&channel.out[..], channel.late),
            (&[0, 3, 4][..], 1),
            "the chain's order, not the arrival's"
        );
        channel.offer(5, Some(4), 6000);
        assert_eq!(channel.out, [0, 3, 4, 5]);
    }

    #[test]
    fn one_item_waits_for_a_predecessor_and_a_hundred_for_a_channel() {
        let mut channel = chain(&[0]);
        channel.offer(10, Some(9), 0);
        channel.offer(11, Some(9), 0);
        assert_eq!(channel.dropped, [11]);
        (1..200).for_each(|n| channel.offer(100 + 2 * n, Some(99 + 2 * n), 0));
        assert_eq!(channel.sequence.len(), MAX_EARLY);
        assert_eq!(channel.sequence.judge(Some(7)), Verdict::Full);
        assert_eq!(channel.sequence.judge(Some(0)), Verdict::Pass);
    }

    #[test]
    fn an_item_without_an_id_makes_the_next_one_next() {
        let mut channel = chain(&[0]);
        channel.sequence.pass(None);
        channel.offer(9, Some(8), 0);
        assert_eq!(channel.out, [0, 9]);
        channel.sequence.forget();
        channel.offer(20, Some(19), 0);
        assert_eq!(channel.out, [0, 9, 20]);
    }

    #[test]
    fn ids_may_go_around() {
        let mut channel = chain(&[0]);
        channel.offer(7, Some(8), 0);
        channel.offer(8, Some(7), 0);
        channel.expire(WAIT);
        assert_eq!(channel.out.len(), 3);
        assert!(channel.sequence.is_empty());
    }

    proptest! {
        /// Whatever the order and the pauses, everything that is accepted goes out once, and who follows by position
        /// has a stretch without a hole until a break that it is told of.
        #[test]
        fn any_interleaving_is_in_order_or_announces_a_break(
            order in Just((1..40_u128).collect::<Vec<_>>()).prop_shuffle(),
            pauses in prop::collection::vec(0..4000_u64, 39),
            lost in prop::collection::hash_set(1..40_u128, 0..4),
        ) {
            let mut channel = chain(&[0]);
            let mut now = 0;
            for (id, pause) in order.iter().zip(pauses) {
                if !lost.contains(id) {
                    channel.offer(*id, Some(id - 1), now);
                }
                now += pause;
                channel.expire(now);
            }
            channel.expire(now + WAIT);
            prop_assert!(channel.sequence.is_empty());
            let mut out = channel.out.clone();
            out.sort_unstable();
            out.dedup();
            prop_assert_eq!(out.len(), channel.out.len(), "nothing twice");
            prop_assert_eq!(out.len() + channel.dropped.len() + lost.len(), 40, "nothing silently away");

            let ids: Vec<(String, String)> =
                channel.out.iter().map(|id| (id.to_string(), id.wrapping_sub(1).to_string())).collect();
            let mut position = ids[0].0.as_str();
            let mut expected = 1;
            for (id, prev_id) in &ids[1..] {
                match step(position, Some(id), Some(prev_id)) {
                    Step::Deliver => {
                        prop_assert_eq!(id, &expected.to_string());
                        expected += 1;
                        position = id;
                    }
                    Step::Gap => break,
                    Step::Skip => prop_assert!(false, "nothing comes twice"),
                }
            }
            if channel.late == 0 && channel.dropped.is_empty() {
                prop_assert_eq!(expected, 40, "all came in time");
            }
        }

        #[test]
        fn nothing_is_late_when_all_come_in_time(
            order in Just((1..60_u128).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut channel = chain(&[0]);
            order.iter().for_each(|id| channel.offer(*id, Some(id - 1), 0));
            prop_assert_eq!(channel.out, (0..60).collect::<Vec<_>>());
        }
    }
}
