//! One who holds a channel: what it has, what waits for it, and how it goes on after a break.

use std::collections::VecDeque;

use bytes::Bytes;
use fantail_proto::{
    log::Place,
    slow::{Newest, Slow, Step, Subscriber},
};

/// Where it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// Not connected.
    Away,
    /// Subscribed; what it has missed was not read yet. Live items wait.
    Joining,
    /// Its origin was asked, and answers in so many steps what it knew then.
    Asking {
        answer: Vec<u64>,
        steps: u64,
    },
    Live,
}

#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) channel: usize,
    /// Its shard.
    pub(crate) shard: usize,
    /// What it gets when it is slow.
    pub(crate) slow: Slow,
    pub(crate) phase: Phase,
    /// The last item that it has.
    pub(crate) last: Option<u64>,
    /// Where that is in the log, as long as the process lives.
    pub(crate) place: Option<Place>,
    /// It has everything before this place of the shadow.
    pub(crate) has: usize,
    /// It does not read.
    pub(crate) stalled: bool,
    /// What came live and was not given to it yet.
    pub(crate) waits: VecDeque<(u64, Option<Place>)>,
    /// The newest that came behind that, of one that wants only this.
    pub(crate) kept: Newest,
    /// What comes next from the log, when it has read what waits.
    pub(crate) behind: Option<Place>,
}

impl Pin {
    pub(crate) fn new(channel: usize, shard: usize) -> Self {
        Self {
            channel,
            shard,
            slow: Slow::ALL[shard % Slow::ALL.len()],
            phase: Phase::Away,
            last: None,
            place: None,
            has: 0,
            stalled: false,
            waits: VecDeque::new(),
            kept: Newest::default(),
            behind: None,
        }
    }

    /// The connection ends; what the client has, it has.
    pub(crate) fn leave(&mut self) {
        self.phase = Phase::Away;
        self.waits.clear();
        self.place = None;
        (self.stalled, self.behind, self.kept) = (false, None, Newest::default());
    }

    /// It knows that it has missed something: whatever it had is of no use.
    pub(crate) fn told(&mut self) {
        self.leave();
        self.last = None;
    }

    /// What is done with an item that comes live.
    pub(crate) fn step(&self, place: Option<Place>) -> Step {
        let (waits, room) = (!self.waits.is_empty(), self.waits.len() < QUEUE_ITEMS);
        // As long as it joins, all wait.
        let slow = if self.phase == Phase::Live { self.slow } else { Slow::Close };
        slow.step(Subscriber { waits, room, logged: place.is_some() })
    }

    /// Keeps an item instead of an older one. Returns whether there was one.
    pub(crate) fn keep(&mut self, id: u64, place: Option<Place>) -> bool {
        let place = place.map_or((0, 0), |place| (place.epoch, place.position));
        self.kept.keep(0, Bytes::from(format!("{id} {} {}", place.0, place.1)))
    }

    /// What was kept.
    pub(crate) fn take_kept(&mut self) -> Option<(u64, Option<Place>)> {
        let item = self.kept.pop()?;
        let numbers: Vec<u64> =
            String::from_utf8_lossy(&item).split(' ').map(|n| n.parse().unwrap()).collect();
        let place = Place { epoch: numbers[1], position: numbers[2] };
        Some((numbers[0], (place.position > 0).then_some(place)))
    }

    /// Whether an item that came live was in what was read before.
    pub(crate) fn knows(&self, place: Option<Place>) -> bool {
        matches!((self.place, place), (Some(has), Some(new)) if has.epoch == new.epoch && new.position <= has.position)
    }
}

/// What may wait for one that does not read.
const QUEUE_ITEMS: usize = 6;
