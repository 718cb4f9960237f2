//! One who holds a channel: what it has, what waits for it, and how it goes on after a break.

use std::collections::VecDeque;

use fantail_proto::log::Place;

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

#[derive(Clone, Debug)]
pub(crate) struct Pin {
    pub(crate) channel: usize,
    /// Its shard.
    pub(crate) shard: usize,
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
    /// Some of what came live was dropped: it is behind.
    pub(crate) behind: bool,
}

impl Pin {
    pub(crate) fn new(channel: usize, shard: usize) -> Self {
        Self {
            channel,
            shard,
            phase: Phase::Away,
            last: None,
            place: None,
            has: 0,
            stalled: false,
            waits: VecDeque::new(),
            behind: false,
        }
    }

    /// The connection ends; what the client has, it has.
    pub(crate) fn leave(&mut self) {
        self.phase = Phase::Away;
        self.waits.clear();
        self.place = None;
        (self.stalled, self.behind) = (false, false);
    }

    /// It knows that it has missed something: whatever it had is of no use.
    pub(crate) fn told(&mut self) {
        self.leave();
        self.last = None;
    }

    /// Whether an item that came live was in what was read before.
    pub(crate) fn knows(&self, place: Option<Place>) -> bool {
        matches!((self.place, place), (Some(has), Some(new)) if has.epoch == new.epoch && new.position <= has.position)
    }
}

/// What may wait for one that does not read.
pub(crate) const QUEUE_ITEMS: usize = 6;
