//! Giving subscribers what the log of a channel has for them before they get what is published: what they have missed,
//! or its newest items. Owns what is rendered of logs meanwhile, each stretch once for all who need the same. What
//! proves that nothing is missing is the log's to say.

use std::{collections::VecDeque, sync::Arc};

use fantail_pin::PinId;
use fantail_proto::{
    item::{HttpResponse, Item},
    log::{Place, Start},
    render::{MessagePart, Rendered, StreamPart},
};
use hashbrown::HashMap;

use super::{Hold, HoldKind, Holds, List, fanout::Work};
use crate::{hub::Delivery, log::Span};

/// A subscription that the log of its channel vouches for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Behind {
    pub(super) channel: u32,
    /// The subscriber has everything up to here.
    pub(super) through: Place,
    /// What comes next is the log's to give. Else it is what is published.
    reading: bool,
    /// It did not ask for what it has missed, but for the newest items: no closes and no hints.
    late: bool,
}

impl Behind {
    /// Whether the subscriber has an item of this place, or is going to have it from the log.
    pub(super) fn has(&self, place: Option<Place>) -> bool {
        // Items of the log before this one came before it, too.
        let through = (self.through.epoch, self.through.position);
        let known = |place: Place| (place.epoch, place.position) <= through;
        self.reading || place.is_some_and(known)
    }
}

/// What is rendered of logs, and who waits to go on reading.
#[derive(Debug, Default)]
pub(super) struct Fills {
    stretches: HashMap<(Span, bool), Box<Work>>,
    bytes: usize,
    used_ms: u64,
    waiting: VecDeque<PinId>,
}

impl Holds {
    /// Gives a subscriber of a channel what its log has from there on, and then what is published. False if the log
    /// cannot show that this is everything.
    pub(super) fn begin_at(&mut self, id: PinId, channel: u32, from: &Start) -> bool {
        let late = matches!(from, Start::Last(_) | Start::Since(_));
        // The first that is for a long-poll answers it. What follows it is for the next one, and not to be read twice.
        let is_poll = self.pins.get(id).is_some_and(|hold| hold.kind.list() == List::Polls);
        let items = if is_poll { POLLED_ITEMS } else { FILL_ITEMS };
        let Some((span, work)) = self.stretch(channel, from, items, late) else {
            self.counters.fills_unproven.add(1);
            return false;
        };
        self.counters.fills_proven.add(1);
        let behind = Behind { channel, through: span.through, reading: !span.whole, late };
        self.begin_behind(id, behind);
        self.give_span(id, channel, (span, late), work);
        true
    }

    /// A slow subscriber could not be given an item: from that on its log gives it what comes, when it has taken what waits.
    pub(super) fn fall_back(&mut self, id: PinId, channel: u32, item: Place) {
        let through = Place { position: item.position - 1, ..item };
        self.standing(id);
        self.begin_behind(id, Behind { channel, through, reading: true, late: false });
        if !self.pins.tell_when_drained(id) {
            self.fills.waiting.push_back(id);
        }
    }

    /// Whether there is something to do in [`Self::go_on_filling`].
    pub(super) fn is_filling(&self) -> bool {
        !self.fills.waiting.is_empty()
    }

    /// When what was rendered is of no more use.
    pub(super) fn next_fill_ms(&self) -> Option<u64> {
        let keeps = !self.fills.stretches.is_empty();
        let idle = keeps.then_some(self.fills.used_ms + IDLE_MS);
        if self.is_filling() { Some(self.now_ms) } else { idle }
    }

    /// Reads on for some of those who have taken what they were given.
    pub(super) fn go_on_filling(&mut self) {
        for _ in 0..FILLS_AT_ONCE {
            let Some(id) = self.fills.waiting.pop_front() else { break };
            self.read_on(id);
        }
        self.collect();
        if self.fills.used_ms + IDLE_MS <= self.now_ms && !self.fills.stretches.is_empty() {
            self.fills.stretches = HashMap::new();
            self.fills.bytes = 0;
        }
    }

    /// Whether a log is still to give a subscriber something before it gets what is published.
    pub(super) fn reads_log(&self, id: PinId) -> bool {
        let standing = self.pins.get(id).and_then(|hold| hold.standing.as_ref());
        standing.is_some_and(|standing| standing.behind.iter().any(|behind| behind.reading))
    }

    /// Gives a subscriber the next of what its logs have for it, when others have had their turn.
    pub(super) fn read_on_soon(&mut self, id: PinId) {
        if self.reads_log(id) && !self.pins.tell_when_drained(id) {
            self.fills.waiting.push_back(id);
        }
    }

    /// Gives a subscriber the next of what its logs have for it.
    pub(super) fn read_on(&mut self, id: PinId) {
        let standing = self.pins.get(id).and_then(|hold| hold.standing.as_ref());
        // What stands in a line comes first; when it is done, it is looked at again.
        let next = standing.and_then(|standing| {
            standing.behind.iter().find(|behind| behind.reading && !self.is_in_line(id, behind.channel))
        });
        let Some(Behind { channel, through, late, .. }) = next.copied() else { return };
        let from = Start::Place(through);
        let Some((span, work)) = self.stretch(channel, &from, FILL_ITEMS, late) else {
            // It was too slow: the log has let go what it needs.
            self.counters.fills_unproven.add(1);
            self.end_behind(id, channel);
            return self.mend(id);
        };
        if let Some(behind) = self.behind_mut(id, channel) {
            (behind.through, behind.reading) = (span.through, !span.whole);
        }
        self.give_span(id, channel, (span, late), work);
    }

    fn give_span(&mut self, id: PinId, channel: u32, (span, late): (Span, bool), mut work: Box<Work>) {
        self.fills.used_ms = self.now_ms;
        if span.through.position > span.after {
            self.counters.fill_items.add(work.len() as u64);
            work.begin_alone(channel, self.channels.changes());
            match self.pins.get(id).map(|hold| hold.kind.list()) {
                Some(List::Polls) => _ = self.answer(&mut work, id),
                Some(list) => self.write_alone(&mut work, list, id),
                None => {}
            }
            self.fills.stretches.insert((span, late), work);
        }
        // Who has a line goes on when it has come to its end.
        if self.reads_log(id) && !self.is_in_line(id, channel) && !self.pins.tell_when_drained(id) {
            self.fills.waiting.push_back(id);
        }
    }

    /// What the log has for a subscriber now, and the items of that, rendered once for all: had before anything is promised,
    /// because the log may let them go at any time.
    fn stretch(&mut self, channel: u32, from: &Start, items: usize, late: bool) -> Option<(Span, Box<Work>)> {
        let span = self.channels.span(channel, from, items, FILL_BYTES)?;
        if let Some(work) = self.fills.stretches.remove(&(span, late)) {
            return Some((span, work));
        }
        // An id is looked for once.
        let from = Start::Place(Place { position: span.after, ..span.through });
        let (span, entries) = self.channels.stretch(channel, &from, items, FILL_BYTES)?;
        self.counters.fill_reads.add(u64::from(!entries.is_empty()));
        let (realm, name) = self.channels.key(channel);
        let bytes: usize = entries.iter().map(|entry| entry.record.len()).sum();
        let items = entries.iter().zip(span.after + 1..).filter_map(|(entry, position)| {
            let item = Item::from_record(name, &entry.record)?;
            let mut rendered = Rendered::from(item);
            if late {
                only_content(&mut rendered);
            }
            let place = Place { epoch: span.through.epoch, position };
            Some(Arc::new(Delivery::of_log(realm, name, rendered, place)))
        });
        let work = Box::new(Work::of_log(items.collect()));
        if self.fills.bytes + bytes > KEPT_BYTES {
            self.fills.stretches.clear();
            self.fills.bytes = 0;
        }
        self.fills.bytes += bytes;
        Some((span, work))
    }

    fn begin_behind(&mut self, id: PinId, behind: Behind) {
        let Some(hold) = self.pins.get_mut(id) else { return };
        let Some(sub) = hold.subs.iter().find(|sub| sub.channel == behind.channel).copied() else { return };
        let before = hold.is_apart(behind.channel);
        if let Some(standing) = &mut hold.standing {
            standing.behind.retain(|old| old.channel != behind.channel);
            standing.behind.push(behind);
            self.channels.refilter(sub, before, true);
        }
    }

    fn end_behind(&mut self, id: PinId, channel: u32) {
        let Some(hold) = self.pins.get_mut(id) else { return };
        let Some(sub) = hold.subs.iter().find(|sub| sub.channel == channel).copied() else { return };
        if let Some(standing) = &mut hold.standing {
            standing.behind.retain(|behind| behind.channel != channel);
            let after = hold.is_apart(channel);
            self.channels.settle(sub, after);
        }
    }

    fn behind_mut(&mut self, id: PinId, channel: u32) -> Option<&mut Behind> {
        let standing = self.pins.get_mut(id)?.standing.as_mut()?;
        standing.behind.iter_mut().find(|behind| behind.channel == channel)
    }

    /// A subscriber whose log vouched for it has got what is published: nothing particular is left of the log, unless its
    /// position is watched, too.
    pub(super) fn caught_up(&mut self, id: PinId, channel: u32) {
        let Some(hold) = self.pins.get(id) else { return };
        let Some(standing) = &hold.standing else { return };
        let done = |behind: &&Behind| behind.channel == channel && !behind.reading;
        if standing.position(channel).is_none() && standing.behind.iter().any(|behind| done(&behind)) {
            self.end_behind(id, channel);
            if let Some(hold) = self.pins.get_mut(id)
                && !matches!(hold.kind, HoldKind::WebSocket(_))
            {
                hold.standing.take_if(|standing| standing.is_empty());
            }
        }
    }
}

impl Hold {
    /// Whether a published item is nothing for this subscriber: it has it from the log, or is going to.
    pub(super) fn has_from_log(&self, channel: u32, place: Option<Place>) -> bool {
        let standing = self.standing.as_ref();
        standing.is_some_and(|s| s.behind.iter().any(|behind| behind.channel == channel && behind.has(place)))
    }

    /// Whether the log has shown that nothing can be missing.
    pub(super) fn is_vouched_for(&self, channel: u32) -> bool {
        self.standing.as_ref().is_some_and(|s| s.behind.iter().any(|behind| behind.channel == channel))
    }
}

fn only_content(item: &mut Rendered) {
    item.stream.take_if(|part| !matches!(part, StreamPart::Send(_)));
    item.response.take_if(|part| !matches!(part, HttpResponse::Send(_)));
    item.message.take_if(|part| !matches!(part, MessagePart::Send(_)));
}

/// What one subscriber is given at once, at most: then others have their turn, and a slow one takes it first.
pub(super) const FILL_ITEMS: usize = 256;
/// What a long-poll is given at first: some may be nothing for it.
const POLLED_ITEMS: usize = 4;
const FILL_BYTES: usize = 256 << 10;
const FILLS_AT_ONCE: usize = 32;
/// What is kept rendered of logs, in bytes of their records.
const KEPT_BYTES: usize = 16 << 20;
/// So long after it was of use for the last time: clients that lose their connections together come back together.
const IDLE_MS: u64 = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_logs_items_are_had() {
        let place = |epoch, position| Place { epoch, position };
        let behind = Behind { channel: 0, through: place(5, 2), reading: false, late: false };
        assert!([place(5, 1), place(5, 2), place(4, 9)].into_iter().all(|place| behind.has(Some(place))));
        assert!(!behind.has(Some(place(5, 3))) && !behind.has(Some(place(6, 1))) && !behind.has(None));
    }
}
