//! What becomes of an item for a subscriber that reads too slowly: its channel or its route says what such subscribers
//! get. Decisions, and what is kept of the newest items; who writes, closes or reads a log is told by them.

use std::collections::VecDeque;

use bytes::Bytes;

/// What a subscriber that reads too slowly gets.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Slow {
    /// Everything, as long as its queue has room; then it is closed.
    #[default]
    Close,
    /// What its queue has no room for comes from the log of the channel, when it has taken what waits.
    Repair,
    /// Of what comes while something waits for it, the newest item of each channel. What that replaces it never gets.
    Newest,
}

impl Slow {
    pub const ALL: [Self; 3] = [Self::Close, Self::Repair, Self::Newest];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Repair => "repair",
            Self::Newest => "newest",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|slow| slow.name() == name)
    }

    /// What is done with an item.
    pub const fn step(self, subscriber: Subscriber) -> Step {
        let Subscriber { waits, room, logged } = subscriber;
        match self {
            _ if !waits => Step::Write,
            Self::Close | Self::Repair if room => Step::Write,
            Self::Newest if room => Step::Keep,
            Self::Repair if logged => Step::Repair,
            Self::Close | Self::Repair | Self::Newest => Step::Close,
        }
    }
}

/// How a subscriber stands when an item comes for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Subscriber {
    /// Something waits for its socket.
    pub waits: bool,
    /// The item may wait, too.
    pub room: bool,
    /// The log of the channel has the item, and can give it later.
    pub logged: bool,
}

/// What is done with an item.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// It is written, behind what waits.
    Write,
    /// It is the newest of its channel: [`Newest::keep`].
    Keep,
    /// From here on the log has the say: when nothing waits any more, it is read from this item on.
    Repair,
    /// The subscriber is closed.
    Close,
}

/// What waits for a slow subscriber that wants the newest item of each channel: behind what its socket has not taken, in
/// the order in which it came. Channels go by numbers of the owner's.
#[derive(Debug, Default)]
pub struct Newest {
    items: VecDeque<(u32, Bytes)>,
    bytes: usize,
}

impl Newest {
    /// Keeps an item. Returns whether an older one of its channel is passed over for it.
    pub fn keep(&mut self, channel: u32, item: Bytes) -> bool {
        let replaces = self.forget(channel);
        self.bytes += item.len();
        self.items.push_back((channel, item));
        replaces
    }

    /// Drops the item of a channel; false if there is none.
    pub fn forget(&mut self, channel: u32) -> bool {
        self.take(channel).is_some()
    }

    /// The item of a channel, out of its turn.
    pub fn take(&mut self, channel: u32) -> Option<Bytes> {
        let place = self.items.iter().position(|(of, _)| *of == channel)?;
        let (_, item) = self.items.remove(place)?;
        self.bytes -= item.len();
        Some(item)
    }

    /// The item that is next, when the socket has taken all before it.
    pub fn pop(&mut self) -> Option<Bytes> {
        let (_, item) = self.items.pop_front()?;
        self.bytes -= item.len();
        Some(item)
    }

    /// The bytes that would wait with an item of this length.
    pub fn bytes_with(&self, channel: u32, len: usize) -> usize {
        let replaced = self.items.iter().find(|(of, _)| *of == channel).map_or(0, |(_, item)| item.len());
        self.bytes - replaced + len
    }

    /// Whether nothing waits of other channels.
    pub fn is_only(&self, channel: u32) -> bool {
        self.items.iter().all(|(of, _)| *of == channel)
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests;
