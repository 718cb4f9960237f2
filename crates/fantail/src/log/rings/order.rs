//! The order in which the entries of a rule came, channels mixed. Owns no entry: it names them, also those that are gone.

use std::collections::VecDeque;

use fantail_proto::log::{Place, Ring};

/// In pieces: a long one is not copied to grow, which would leave as much memory behind again.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// None is empty, but one that is alone.
    pieces: VecDeque<VecDeque<Ticket>>,
    len: usize,
}

/// An entry: its channel's slot, and of its place what tells it from those that had the slot before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ticket {
    pub(super) channel: u32,
    /// The low half of epoch and position together. Epochs are far apart in it: also those that follow each other by one,
    /// because the clock was set back.
    place: u32,
}

impl Order {
    pub(super) fn push(&mut self, ticket: Ticket) {
        self.len += 1;
        match self.pieces.back_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push_back(ticket),
            None => self.pieces.push_back(VecDeque::from([ticket])),
        }
    }

    pub(super) fn first(&self) -> Option<Ticket> {
        self.pieces.front()?.front().copied()
    }

    pub(super) fn pop(&mut self) {
        let Some(piece) = self.pieces.front_mut() else { return };
        self.len -= usize::from(piece.pop_front().is_some());
        if piece.is_empty() && self.pieces.len() > 1 {
            self.pieces.pop_front();
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Ticket) -> bool) {
        let pieces = std::mem::take(self).pieces;
        pieces.into_iter().flatten().filter(keep).for_each(|ticket| self.push(ticket));
    }
}

impl FromIterator<Ticket> for Order {
    fn from_iter<I: IntoIterator<Item = Ticket>>(tickets: I) -> Self {
        let mut order = Self::default();
        tickets.into_iter().for_each(|ticket| order.push(ticket));
        order
    }
}

impl Ticket {
    pub(super) const fn new(channel: u32, at: Place) -> Self {
        Self { channel, place: at.epoch.wrapping_mul(SPREAD).wrapping_add(at.position) as u32 }
    }

    /// How far behind the oldest entry of a log it stands, if it is of this log and not gone.
    fn behind(self, ring: &Ring) -> Option<usize> {
        let Self { place: first, .. } = Self::new(0, Place { epoch: ring.epoch(), position: ring.first() });
        let behind = self.place.wrapping_sub(first) as usize;
        (behind < ring.len()).then_some(behind)
    }

    /// Whether it names an entry that this log has.
    pub(super) fn is_of(self, ring: &Ring) -> bool {
        self.behind(ring).is_some()
    }

    /// Whether it names the oldest entry of this log.
    pub(super) fn is_first_of(self, ring: &Ring) -> bool {
        self.behind(ring) == Some(0)
    }
}

/// By the golden ratio: multiples of it keep away from each other, and from 0.
const SPREAD: u64 = 0x9e37_79b1;
/// Tickets of one piece: 8 KB.
const PIECE: usize = 1024;

/// What the order of the logs costs for each entry.
const _: () = assert!(size_of::<Ticket>() == 8);

#[cfg(test)]
mod tests {
    use fantail_proto::log::Entry;

    use super::*;

    fn ticket(channel: u32, epoch: u64, position: u64) -> Ticket {
        Ticket::new(channel, Place { epoch, position })
    }

    #[test]
    fn pieces_are_one_queue() {
        let mut order = Order::default();
        let tickets: Vec<_> = (0..3000).map(|n| ticket(n, 1, 1)).collect();
        for round in 0..2 {
            tickets.iter().for_each(|ticket| order.push(*ticket));
            order.retain(|ticket| ticket.channel % 3 != 0);
            let left: Vec<_> = tickets.iter().filter(|ticket| ticket.channel % 3 != 0).collect();
            assert_eq!(order.len(), left.len());
            for ticket in left {
                assert_eq!(order.first(), Some(*ticket), "{round}");
                order.pop();
            }
            order.pop();
            assert_eq!((order.len(), order.first()), (0, None));
        }
    }

    #[test]
    fn a_ticket_is_of_one_log() {
        let mut ring = Ring::at(Place { epoch: u64::from(u32::MAX), position: 2 });
        (0..3).for_each(|_| _ = ring.push(Entry::new(Vec::new().into(), 0)));
        let of = |epoch, position| ticket(0, epoch, position).is_of(&ring);
        assert_eq!([1, 2, 4, 5].map(|position| of(ring.epoch(), position)), [false, true, true, false]);
        for apart in [1, 2, 3, 1000, 1_000_000] {
            let others = [ring.epoch() + apart, ring.epoch() - apart];
            assert!(
                others.into_iter().all(|epoch| (1..2000).all(|position| !of(epoch, position))),
                "{apart}"
            );
        }
        assert!(
            ticket(0, ring.epoch(), 2).is_first_of(&ring) && !ticket(0, ring.epoch(), 3).is_first_of(&ring)
        );
    }
}
