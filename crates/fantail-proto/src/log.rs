//! The log of one channel as a value: its newest items in their order, each at a position, and what can be proven
//! from them. Owns positions and limits. Knows no clock, no disk, and nothing of what an entry says but its id.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::item::record;

/// Where an item is in the log of its channel. Positions of different epochs have nothing to do with each other.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Place {
    /// Of the log: another for each that is begun anew, and growing.
    pub epoch: u64,
    /// Start 1, without holes.
    pub position: u64,
}

/// What has happened to an item when its publisher is told that it was accepted.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Durability {
    /// It has its place in the order of its channel.
    #[default]
    Accepted,
    /// The operating system has it: it survives the end of the process.
    Logged,
    /// The disk has it: it survives the end of the machine's power.
    Synced,
}

impl Durability {
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Logged, Self::Synced];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Logged => "logged",
            Self::Synced => "synced",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|durability| durability.name() == name)
    }
}

/// An item that was published: [`crate::item::Item::to_record`].
#[derive(Clone, Debug)]
pub struct Entry {
    pub record: Arc<[u8]>,
    /// Of any one clock that does not go back.
    pub at_s: u32,
    /// Of the id, so that a search looks at few records.
    mark: u32,
}

impl Entry {
    pub fn new(record: Arc<[u8]>, at_s: u32) -> Self {
        let mark = record::id(&record).map_or(0, mark);
        Self { record, at_s, mark }
    }

    pub fn id(&self) -> Option<&str> {
        record::id(&self.record)
    }
}

/// What a log keeps; more than one item only while it is within all of these.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    pub items: usize,
    /// Of records.
    pub bytes: usize,
    pub age_s: u32,
}

/// Where a subscriber begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Start {
    /// It has everything up to this id.
    Id(Box<str>),
    /// It has everything up to this place.
    Place(Place),
    /// It wants the newest so many.
    Last(u32),
    /// It wants what is no older than so many seconds.
    Since(u32),
}

/// `last` or `since` of a subscription that is no number, or no time.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("'last' is no number, or 'since' no time such as 60s, 5m or 1h")]
pub struct Unreadable;

impl Start {
    /// What `last=20` or `since=60s` ask for; a time without a unit is in seconds. Of both the first counts.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn late(last: Option<&str>, since: Option<&str>) -> Result<Option<Self>, Unreadable> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if digits { text.parse::<u32>().map_err(|_| Unreadable) } else { Err(Unreadable) }
        };
        let age = |text: &str| {
            let (digits, unit) = match text.as_bytes().last() {
                Some(b's') => (&text[..text.len() - 1], 1),
                Some(b'm') => (&text[..text.len() - 1], 60),
                Some(b'h') => (&text[..text.len() - 1], 3600),
                _ => (text, 1),
            };
            Ok(number(digits)?.saturating_mul(unit))
        };
        let since = since.map(age).transpose()?;
        let last = last.map(number).transpose()?;
        Ok(last.map(Self::Last).or_else(|| since.map(Self::Since)))
    }
}

/// The newest items of a channel, without holes. The last of them may be pending: the disk does not have them yet, and
/// nobody is given them.
#[derive(Clone, Debug)]
pub struct Ring {
    epoch: u64,
    /// The position of the oldest entry, or of the next one.
    first: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    pending: usize,
    pending_bytes: usize,
}

impl Ring {
    pub const fn new(epoch: u64) -> Self {
        Self::at(Place { epoch, position: 1 })
    }

    /// A log whose next entry gets this place.
    pub const fn at(place: Place) -> Self {
        let Place { epoch, position: first } = place;
        Self { epoch, first, entries: VecDeque::new(), bytes: 0, pending: 0, pending_bytes: 0 }
    }

    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The position of the oldest entry.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The position of the next entry.
    pub fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The position behind the last entry that is not pending.
    pub fn end(&self) -> u64 {
        self.next() - self.pending as u64
    }

    /// Those that are pending included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub const fn has_pending(&self) -> bool {
        self.pending > 0
    }

    /// Of the newest, pending or not.
    pub fn newest_id(&self) -> Option<&str> {
        self.entries.back()?.id()
    }

    /// Of records.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the newest, pending; what is over the limits is for [`Self::trim`].
    pub fn push(&mut self, entry: Entry) -> Place {
        let position = self.next();
        self.bytes += entry.record.len();
        self.pending_bytes += entry.record.len();
        if self.entries.len() == self.entries.capacity() {
            // Doubling would hold as much again for nothing.
            self.entries.reserve_exact(self.entries.len() / 8 + 4);
        }
        self.entries.push_back(entry);
        self.pending += 1;
        Place { epoch: self.epoch, position }
    }

    /// Nothing up to this position is pending any more.
    pub fn keep(&mut self, position: u64) {
        let left = usize::try_from(self.next().saturating_sub(position + 1)).unwrap_or(usize::MAX);
        let (from, left) = (self.entries.len() - self.pending, self.pending.min(left));
        let kept = self.entries.range(from..self.entries.len() - left);
        self.pending_bytes -= kept.map(|entry| entry.record.len()).sum::<usize>();
        self.pending = left;
    }

    /// Drops what is pending; returns how many entries that were, and their bytes.
    pub fn drop_pending(&mut self) -> (usize, usize) {
        self.entries.truncate(self.entries.len() - self.pending);
        self.bytes -= self.pending_bytes;
        (std::mem::take(&mut self.pending), std::mem::take(&mut self.pending_bytes))
    }

    /// Drops the oldest while there is too much of them; returns the bytes that are free then. The newest stays, unless
    /// it is too old, and so does what is pending.
    pub fn trim(&mut self, limits: &Limits, now_s: u32) -> usize {
        let before = self.bytes;
        // What is dropped for pending entries would be missed if they are not kept.
        while let Some(oldest) = self.oldest() {
            let (count, bytes) = (self.entries.len() - self.pending, self.bytes - self.pending_bytes);
            let much = count > 1 && (count > limits.items || bytes > limits.bytes);
            if !much && now_s.saturating_sub(oldest.at_s) < limits.age_s {
                break;
            }
            self.drop_oldest();
        }
        before - self.bytes
    }

    /// The oldest, if it is not pending.
    pub fn oldest(&self) -> Option<&Entry> {
        self.entries.front().filter(|_| self.entries.len() > self.pending)
    }

    /// Drops the oldest, if it is not pending; returns the bytes that are free then.
    pub fn drop_oldest(&mut self) -> usize {
        if self.oldest().is_none() {
            return 0;
        }
        let Some(entry) = self.entries.pop_front() else { return 0 };
        self.first += 1;
        self.bytes -= entry.record.len();
        entry.record.len()
    }

    /// The position after which such a subscriber goes on: what it has not got of this log is exactly what comes
    /// behind. `None`: that cannot be proven.
    pub fn after(&self, from: &Start, now_s: u32) -> Option<u64> {
        let newest = self.end() - 1;
        let shown = self.entries.len() - self.pending;
        match from {
            Start::Id(id) => {
                let mark = mark(id);
                let is_it = |entry: &&Entry| entry.mark == mark && entry.id() == Some(id);
                let back = self.entries.range(..shown).rev().enumerate().find(|(_, entry)| is_it(entry));
                back.map(|(back, _)| newest - back as u64)
            }
            Start::Place(place) => (place.epoch == self.epoch
                && (self.first..=newest + 1).contains(&(place.position + 1)))
            .then_some(place.position),
            Start::Last(count) => Some(newest.saturating_sub(u64::from(*count)).max(self.first - 1)),
            Start::Since(age_s) => {
                let old = |entry: &Entry| now_s.saturating_sub(entry.at_s) > *age_s;
                Some(self.first - 1 + self.entries.partition_point(old).min(shown) as u64)
            }
        }
    }

    /// The entries behind a position, up to those that are pending; none if some of them are gone.
    pub fn behind(&self, position: u64) -> impl Iterator<Item = &Entry> {
        let skipped = usize::try_from(position + 1 - self.first.min(position + 1)).unwrap_or(usize::MAX);
        let (shown, holds) = (self.entries.len() - self.pending, position + 1 >= self.first);
        self.entries.range(skipped.min(shown)..shown).take(if holds { usize::MAX } else { 0 })
    }

    /// Whether it has an item of this id, pending or not, or may have had it: it has let go of some, or has more than are
    /// looked through.
    pub fn may_have_had(&self, id: &str) -> bool {
        let mark = mark(id);
        self.first > 1
            || self.entries.len() > LOOKED_THROUGH
            || self.entries.iter().rev().any(|entry| entry.mark == mark && entry.id() == Some(id))
    }

    /// All entries, those that are pending included.
    pub fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

/// Entries that are looked through for an id, for each of many items while others wait for the log.
const LOOKED_THROUGH: usize = 1000;

/// Names with `*` for any characters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern(Box<str>);

impl Pattern {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// Takes time in proportion to both lengths, whatever they say.
    pub fn fits(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// Never 0, which stands for no id.
fn mark(id: &str) -> u32 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish() as u32 | 1
}

/// The price of an entry besides its record and the count of its owners.
const _: () = assert!(size_of::<Entry>() == 24);

#[cfg(test)]
mod tests;
