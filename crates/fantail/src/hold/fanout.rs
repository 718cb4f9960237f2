//! Delivering a batch of items: who gets which of them, in one write a socket. Sorting subscribers by
//! what they get is cut into chunks as writing is, so that a broadcast does not starve the shard's other
//! work; subscribers are looked up when the batch begins, so one that comes later does not get what was
//! published before it came.

use std::{borrow::Cow, rc::Rc, sync::Arc};

use fantail_pin::{Outcome, Payload, PinId, Tally};
use fantail_proto::{
    filter::{question::Word, template::TemplateError},
    item::WrittenFor,
    render::{Chunk, Message, MessagePart, Rendered, StreamPart},
};
use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

mod alone;
mod answering;
mod slow;
mod variants;

use super::{
    Hold, HoldKind, Holds, List,
    follow::{Parked, Turn},
};
use crate::hub::{Delivery, Receipt};
pub(super) use slow::{Kept, brim};
use variants::{Class, Gotten, Made, Variant};

/// A batch that is being delivered: first all is sorted, then written, then answered. Lists are worked
/// off from their ends.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) batch: Vec<Arc<Delivery>>,
    /// By place in `batch`: the item's channel, if it had subscribers when the batch began, and what happened
    /// so far.
    pub(super) channels: Vec<Option<u32>>,
    receipts: Vec<Receipt>,
    /// The state of subscriptions when the batch began.
    changes: u64,
    sorts: Vec<Sort>,
    writes: Vec<Write>,
    /// Long-polls, a list a channel.
    polls: Vec<Vec<PinId>>,
    /// The place in `writes` of what gets these items.
    by_items: HashMap<(List, Vec<usize>), usize>,
    /// The items are of several channels, and a hold may be on several lists.
    mixed: bool,
    /// Then, of the holds that are looked at one by one, those that were seen to.
    met: HashSet<PinId>,
    /// What filters made of items, each for all subscribers of whom they read the same; items are known by their place
    /// in `batch`, and these by theirs here behind all of those.
    variants: Vec<Variant>,
    by_class: HashMap<Class, Result<Made, TemplateError>>,
    /// Bytes that filters made in this batch and that are still kept.
    made: usize,
    /// Bytes that they had to look at or make, which takes time.
    filtered: usize,
    /// Content of this batch was written for certain filters: all are looked at.
    picky: bool,
    /// Holds that did not get an item because their filters failed, and are told why when all is written.
    failed: Vec<(PinId, TemplateError)>,
    /// It is what a log has for one subscriber, not what was published.
    pub(super) from_log: bool,
    /// It is one item, whose turn has come in a line: what origins have said of it, in the order of the filters that
    /// ask; or why they have not.
    pub(super) turn: Option<Vec<Word>>,
    pub(super) lost: Option<TemplateError>,
    /// What the hold that is being sorted gets.
    gets: Vec<usize>,
    /// Items that wait for streams, or (true) for WebSockets, made once for all.
    parked: HashMap<(bool, usize, Option<usize>), Rc<Parked>>,
    /// Lists of targets to be used again: a broadcast allocates nothing per subscriber.
    spare: Vec<Vec<PinId>>,
}

/// A channel's streams or WebSockets, of which some may get other items than their neighbours.
#[derive(Debug)]
struct Sort {
    list: List,
    targets: Vec<PinId>,
    /// The place in `writes` for those without a filter or another channel.
    plain: usize,
}

/// What an item is to those who get it as it is: to streams and WebSockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Content,
    /// The last thing that they get.
    End,
    /// Their origins are asked.
    Refresh,
}

/// Holds that get the same bytes.
#[derive(Debug)]
struct Write {
    list: List,
    /// In the hub's order; one that ends the holds is the last.
    items: Vec<usize>,
    targets: Vec<PinId>,
    /// Made when the first of them is written to.
    payload: Option<Payload>,
}

impl Holds {
    /// The buffer for the next batch; empty between batches.
    pub fn batch(&mut self) -> &mut Vec<Arc<Delivery>> {
        &mut self.work.batch
    }

    /// Begins to deliver what was put into [`Self::batch`]. Takes the time of copying the lists of
    /// subscribers, which is nothing beside writing to them.
    pub fn begin(&mut self) {
        let mut work = std::mem::take(&mut self.work);
        work.receipts.clear();
        work.receipts.resize(work.batch.len(), Receipt::default());
        work.changes = self.channels.changes();
        work.picky = work.batch.iter().any(|delivery| {
            let WrittenFor { stream, message, .. } = &delivery.item.written_for;
            stream.is_some() || message.is_some()
        });
        work.channels.clear();
        work.channels
            .extend(work.batch.iter().map(|delivery| self.channels.find(delivery.realm, &delivery.channel)));
        self.watch_items(&work);
        work.mixed = false;
        self.list_writes(&mut work, List::Streams);
        self.list_writes(&mut work, List::WebSockets);
        self.list_writes(&mut work, List::SockJs);
        self.list_polls(&mut work);
        self.work = work;
    }

    /// Whether a batch is not done yet.
    pub(super) fn is_delivering(&self) -> bool {
        !self.work.batch.is_empty()
    }

    /// Does as much as [`CHUNK`] writes cost. False when the batch is done: its receipts are given then.
    pub fn step(&mut self) -> bool {
        let mut work = std::mem::take(&mut self.work);
        let mut spent = 0;
        let mut more = true;
        while more && spent < CHUNK {
            if work.made > MADE_BYTES {
                spent += self.write_made(&mut work);
            } else if let Some(mut sort) = work.sorts.pop() {
                while let Some(id) = sort.targets.pop_if(|_| spent < CHUNK && work.made <= MADE_BYTES) {
                    spent += self.sort(&mut work, sort.list, id, sort.plain);
                }
                match sort.targets.is_empty() {
                    true => work.put_by(sort.targets),
                    false => work.sorts.push(sort),
                }
            } else if let Some(mut write) = work.writes.pop() {
                spent += self.write(&mut work, &mut write, CHUNK - spent);
                match write.targets.is_empty() {
                    true => work.put_by(write.targets),
                    false => work.writes.push(write),
                }
            } else if let Some(mut polls) = work.polls.pop() {
                while let Some(id) = polls.pop_if(|_| spent < CHUNK) {
                    spent += self.answer(&mut work, id);
                }
                match polls.is_empty() {
                    true => work.put_by(polls),
                    false => work.polls.push(polls),
                }
            } else {
                self.tell_failures(&mut work);
                work.finish();
                more = false;
            }
        }
        self.work = work;
        self.collect();
        more
    }

    /// Subscribers of one channel and no filter share what that channel's items make. The others are to be
    /// grouped by the items that they get, so that each gets one write, in the hub's order.
    fn list_writes(&self, work: &mut Work, list: List) {
        let mut by_channel: Vec<(u32, Vec<usize>)> = Vec::new();
        for (item, channel) in work.channels.iter().enumerate() {
            let Some(channel) = *channel else { continue };
            match by_channel.iter_mut().find(|(c, _)| *c == channel) {
                Some((_, items)) => work.add(list, items, item),
                None => {
                    let mut items = Vec::new();
                    work.add(list, &mut items, item);
                    by_channel.push((channel, items));
                }
            }
        }
        // Items that are nothing to a hold may show one with a position that it has missed others.
        let counts = |channel| self.channels.is_mixed(channel);
        by_channel.retain(|(channel, items)| !items.is_empty() || counts(*channel));
        let alone = by_channel.len() == 1;
        work.mixed |= by_channel.len() > 1;
        for (channel, items) in by_channel {
            let subscribers = self.channels.subscribers(channel, list);
            if subscribers.is_empty() {
                continue;
            }
            let plain = work.write_of(list, &items);
            if alone && !self.channels.is_mixed(channel) && !work.picky {
                work.writes[plain].targets.extend_from_slice(subscribers);
            } else {
                let targets = work.list(subscribers);
                work.sorts.push(Sort { list, targets, plain });
            }
        }
    }

    /// Finds out what a hold gets. Returns the cost, in writes.
    fn sort(&mut self, work: &mut Work, list: List, id: PinId, plain: usize) -> usize {
        if work.met.contains(&id) {
            return 1;
        }
        let several = |hold: &&Hold| hold.subs.len() > 1 || hold.standing.is_some() || work.picky;
        // Of one that has left since the batch began, the write takes note.
        let Some(hold) = self.pins.get(id).filter(several) else {
            work.writes[plain].targets.push(id);
            return 1;
        };
        // However many channels it has left: it may have left some since the batch began.
        if work.mixed {
            work.met.insert(id);
        }
        let cost = cost(work.batch.len(), hold);
        let mut gets = std::mem::take(&mut work.gets);
        gets.clear();
        for item in 0..work.batch.len() {
            let Some(hold) = self.pins.get(id) else { break };
            let Some(channel) = self.channel_of(hold, work, item) else { continue };
            if self.is_left_to_log(work, id, channel, item) || self.stands_behind(work, id, channel, item) {
                continue;
            }
            let looks = !work.from_log && self.has_standing(id);
            let turn =
                if looks { self.turn_in(list, id, channel, &work.batch[item].item) } else { Turn::Deliver };
            let part = work.part(list, item);
            if turn == Turn::Pass {
                work.receipts[item].recovered += 1;
                continue;
            }
            let Some(gotten) = self.gotten(work, list, (id, channel), item) else { continue };
            if turn == Turn::Wait {
                // What is lost to an error is missing, and found to be.
                if let Ok(place) = gotten {
                    let parked = work.parked(list, item, place);
                    self.set_aside(list, id, channel, parked);
                    work.receipts[item].recovered += u64::from(part.is_some());
                }
                continue;
            }
            match gotten {
                Ok(Some(place)) => {
                    work.add(list, &mut gets, place);
                    if looks && list == List::Streams {
                        self.heard(id, channel);
                    }
                }
                Ok(None) if part.is_none() => {}
                Ok(None) => {
                    work.receipts[item].filtered += 1;
                    self.counters.filtered.add(1);
                }
                Err(ref error) => {
                    work.receipts[item].dropped_filter += 1;
                    self.counters.filter_errors.add(1);
                    work.failed.push((id, error.clone()));
                }
            }
            // What was lost to an error was not given.
            if gotten.is_ok()
                && let Some(standing) = self.pins.get_mut(id).and_then(|hold| hold.standing.as_mut())
            {
                let id_of_item = work.batch[item].item.id.as_deref();
                standing.advance(channel, id_of_item);
                self.reach(id, channel, id_of_item);
            }
        }
        if !gets.is_empty() {
            let write = work.write_of(list, &gets);
            work.writes[write].targets.push(id);
        }
        work.gets = gets;
        cost + std::mem::take(&mut work.filtered) / WRITE_BYTES
    }

    /// What a hold gets of an item; `None` when its origin is asked about it first.
    fn gotten(
        &mut self,
        work: &mut Work,
        list: List,
        (id, channel): (PinId, u32),
        item: usize,
    ) -> Option<Result<Option<usize>, TemplateError>> {
        let Some(hold) = self.pins.get(id).filter(|_| work.part(list, item).is_some()) else {
            return Some(Ok(None));
        };
        Some(match self.filtered(work, list, hold, channel, item) {
            Ok(Gotten::Place(place)) => Ok(Some(place)),
            Ok(Gotten::Nothing) => Ok(None),
            Ok(Gotten::Asks(wording)) => {
                self.inquire(work, (id, channel), item, (list, *wording));
                return None;
            }
            Err(error) => Err(error),
        })
    }

    /// What an item is to a hold that has something particular.
    fn turn_in(&mut self, list: List, id: PinId, channel: u32, item: &Rendered) -> Turn {
        match list {
            List::Streams => self.turn_of(id, channel, item),
            List::WebSockets | List::SockJs => self.turn_of_message(id, channel, item),
            List::Polls => Turn::Deliver,
        }
    }

    fn set_aside(&mut self, list: List, id: PinId, channel: u32, item: Rc<Parked>) {
        match list.is_spoken_to() {
            true => self.park_message(id, channel, item),
            false => self.park(id, channel, item),
        }
    }

    /// The channel that an item of the batch came on, if a hold has it. A WebSocket may have left it since, and
    /// its number may be another's.
    fn channel_of(&self, hold: &Hold, work: &Work, item: usize) -> Option<u32> {
        let channel = work.channels[item]?;
        let has = hold.subs.iter().any(|sub| sub.channel == channel);
        let Delivery { realm, channel: name, .. } = &*work.batch[item];
        (has && self.channels.is(channel, *realm, name)).then_some(channel)
    }

    /// Writes to as many holds as `budget` allows, at least one. Returns the cost, in writes.
    fn write(&mut self, work: &mut Work, write: &mut Write, budget: usize) -> usize {
        if write.targets.is_empty() {
            return 0;
        }
        let from = write.targets.len().saturating_sub(budget.max(1));
        if write.list.is_spoken_to() && self.channels.changes() != work.changes {
            self.sort_out(work, write, from);
        }
        let from = from.min(write.targets.len());
        let mut spent = 0;
        if write.list == List::WebSockets && self.deflating > 0 {
            // A log's outlives the moment: when it was made nobody may have wanted it compressed.
            write.payload.take_if(|payload| payload.coded.is_empty());
        }
        let payload = write.payload.get_or_insert_with(|| {
            spent += write.items.len() / CONSIDERED;
            match write.list {
                List::WebSockets | List::SockJs => self.frames(work, write.list, &write.items),
                List::Streams | List::Polls => work.chunks(&write.items),
            }
        });
        let part = &write.targets[from..];
        let content = write.items.iter().filter(|item| work.part(write.list, **item) == Some(Part::Content));
        let content: SmallVec<[usize; 8]> = content.copied().collect();
        let mut asked = Vec::new();
        if !content.is_empty() {
            asked = self.write_content(work, (write.list, &content), part, payload);
        }
        let given = without(part, &asked);
        if !content.is_empty() {
            let items = content.iter().map(|place| &*work.batch[work.item(*place)]);
            self.watch_write(&given, write.list, items, payload.plain.len());
        }
        for item in write.items.iter().filter(|place| **place < work.batch.len()) {
            let Some(part @ (Part::End | Part::Refresh)) = work.part(write.list, *item) else { continue };
            let delivery = Arc::clone(&work.batch[*item]);
            for id in given.iter() {
                self.act_on(part, write.list, &delivery, *id, &mut work.receipts[*item]);
            }
        }
        spent += part.len() + asked.len() * (1 + write.items.len() / CONSIDERED);
        self.give_each(work, write.list, &write.items, asked);
        write.targets.truncate(from);
        spent
    }

    /// Writes what filters made, and lets go of it: a batch for a crowd of whom everybody gets something else is not in
    /// memory at once.
    fn write_made(&mut self, work: &mut Work) -> usize {
        let mut spent = 0;
        for place in 0..work.writes.len() {
            if work.is_made(&work.writes[place].items) {
                let mut write = work.writes[place].take();
                spent += self.write(work, &mut write, usize::MAX);
                work.put_by(write.targets);
            }
        }
        work.forget_made();
        spent
    }

    /// Takes out those of the last targets of a write that have left a channel of its items since the batch began,
    /// or have other filters, and gives them what they still get.
    fn sort_out(&mut self, work: &mut Work, write: &mut Write, from: usize) {
        let mut at = from;
        while at < write.targets.len() {
            let id = write.targets[at];
            let gets = |place: &usize| {
                let item = work.item(*place);
                self.pins.get(id).is_some_and(|hold| {
                    self.channel_of(hold, work, item).is_some_and(|channel| {
                        let Delivery { item, place, .. } = &*work.batch[item];
                        (work.from_log || !hold.has_from_log(channel, *place))
                            && self.passes(hold, channel, item)
                    })
                })
            };
            let left: Vec<usize> = write.items.iter().copied().filter(gets).collect();
            if left.len() == write.items.len() {
                at += 1;
                continue;
            }
            write.targets.swap_remove(at);
            self.give_each(work, write.list, &left, vec![id]);
        }
    }

    /// Messages one after another, compressed too if somebody wants them so.
    fn frames(&mut self, work: &Work, list: List, items: &[usize]) -> Payload {
        let messages: Vec<&Message> = items.iter().filter_map(|place| work.message(*place)).collect();
        if list == List::SockJs { Self::frames_payload(&messages) } else { self.payload(&messages) }
    }

    fn count(&self, list: List, tally: &Tally, items: u64) {
        let delivered = match list {
            List::WebSockets => &self.counters.delivered_websocket,
            List::SockJs => &self.counters.delivered_sockjs,
            List::Streams | List::Polls => &self.counters.delivered_stream,
        };
        delivered.add(tally.sent * items);
        self.counters.queued.add(tally.queued * items);
        self.counters.dropped_gone.add(tally.gone * items);
        self.counters.dropped_overflow.add(tally.overflow * items);
        self.counters.bytes_pushed.add(tally.bytes);
    }
}

impl Write {
    /// Leaves an empty one in its place, which others know it by.
    fn take(&mut self) -> Self {
        let Self { list, items, targets, payload } = self;
        let (items, targets) = (std::mem::take(items), std::mem::take(targets));
        Self { list: *list, items, targets, payload: payload.take() }
    }
}

impl Work {
    /// What an item is to the holds of a list, if anything.
    fn part(&self, list: List, item: usize) -> Option<Part> {
        let item = &self.batch[self.item(item)].item;
        match list {
            List::Streams => match item.stream.as_ref()? {
                StreamPart::Send(_) => Some(Part::Content),
                StreamPart::Close => Some(Part::End),
                // A hint is for the link, and found before.
                StreamPart::Hint => None,
            },
            List::WebSockets | List::SockJs => Some(match item.message.as_ref()? {
                MessagePart::Send(_) => Part::Content,
                MessagePart::Close(_) => Part::End,
                MessagePart::Refresh => Part::Refresh,
            }),
            List::Polls => None,
        }
    }

    /// Adds an item to what a hold gets, if it means something to one and no earlier item ended it.
    fn add(&self, list: List, gets: &mut Vec<usize>, item: usize) {
        let ended = gets.last().is_some_and(|last| self.part(list, *last) == Some(Part::End));
        if !ended && self.part(list, item).is_some() {
            gets.push(item);
        }
    }

    /// Whether there is something in an item for the holds of a list.
    pub(super) fn means_something(&self, list: List, item: usize) -> bool {
        self.part(list, item).is_some() || list == List::Polls && self.batch[item].item.response.is_some()
    }

    pub(super) fn receipt(&mut self, item: usize) -> &mut Receipt {
        &mut self.receipts[item]
    }

    /// The place of what writes these items.
    fn write_of(&mut self, list: List, items: &[usize]) -> usize {
        let key = (list, items.to_vec());
        if let Some(place) = self.by_items.get(&key) {
            return *place;
        }
        let place = self.writes.len();
        let targets = self.list(&[]);
        self.writes.push(Write { list, items: items.to_vec(), targets, payload: None });
        self.by_items.insert(key, place);
        place
    }

    fn chunks(&self, items: &[usize]) -> Payload {
        let chunks: Vec<&Chunk> = items.iter().filter_map(|place| self.chunk(*place)).collect();
        let all = Chunk::concat(&chunks);
        Payload { coded: all.framed().clone(), plain: all.content() }
    }

    fn list(&mut self, targets: &[PinId]) -> Vec<PinId> {
        let mut list = self.spare.pop().unwrap_or_default();
        list.extend_from_slice(targets);
        list
    }

    /// Keeps an empty list for the next batch.
    fn put_by(&mut self, list: Vec<PinId>) {
        if self.spare.len() < SPARE_LISTS {
            self.spare.push(list);
        }
    }

    /// Gives the receipts of a batch that is done, and makes ready for the next.
    pub(super) fn finish(&mut self) {
        for (delivery, receipt) in self.batch.drain(..).zip(&self.receipts) {
            delivery.report(*receipt);
        }
        self.by_items.clear();
        self.met.clear();
        self.parked.clear();
        self.forget_made();
    }
}

/// What it costs, in writes, to look at all items for a hold.
fn cost(items: usize, hold: &Hold) -> usize {
    1 + items * hold.subs.len() / CONSIDERED
}

/// Those of `all`, in their order, that are not among `some` of them, which are in that order, too.
fn without<'a>(all: &'a [PinId], some: &[PinId]) -> Cow<'a, [PinId]> {
    if some.is_empty() {
        return Cow::Borrowed(all);
    }
    let mut some = some.iter().peekable();
    all.iter().copied().filter(|id| some.next_if_eq(&id).is_none()).collect()
}

fn note(receipt: &mut Receipt, outcome: Outcome) {
    *match outcome {
        Outcome::Sent => &mut receipt.delivered,
        Outcome::Queued => &mut receipt.queued,
        Outcome::Gone => &mut receipt.dropped_gone,
        Outcome::Overflow => &mut receipt.dropped_overflow,
    } += 1;
}

fn add(receipt: &mut Receipt, tally: &Tally) {
    receipt.delivered += tally.sent;
    receipt.queued += tally.queued;
    receipt.dropped_gone += tally.gone;
    receipt.dropped_overflow += tally.overflow;
}

/// Writes between two looks at the shard's other work: two to three milliseconds.
const CHUNK: usize = 512;
/// So many times an item is compared with a subscription, filters and all, in the time of a write.
const CONSIDERED: usize = 32;
/// So many bytes are looked at or made by filters in the time of a write.
const WRITE_BYTES: usize = 4096;
/// What filters make of a batch is written when it has this many bytes, and made again for whom else it is.
const MADE_BYTES: usize = 8 << 20;
/// A handful of channels is common in a batch; more lists than that are not worth keeping.
const SPARE_LISTS: usize = 16;

#[cfg(test)]
mod tests;
