//! Delivering a batch of items: who gets which of them, in one write a socket. The work is cut into
//! chunks so that a broadcast does not starve the shard's other work; subscribers are looked up when
//! the batch begins, so one that comes later does not get what was published before it came.

use std::{collections::HashSet, sync::Arc};

use fantail_pin::{Outcome, Payload, PinId, Tally};
use fantail_proto::{
    filter,
    item::HttpResponse,
    render::{Chunk, Rendered, StreamPart},
};
use hashbrown::HashMap;

use super::{Hold, HoldKind, Holds, List};
use crate::hub::{Delivery, Receipt};

/// A batch that is being delivered.
#[derive(Debug, Default)]
pub(super) struct Work {
    batch: Vec<Arc<Delivery>>,
    /// What happened so far, by place in `batch`.
    receipts: Vec<Receipt>,
    tasks: Vec<Task>,
    /// The task at work and how far it is.
    task: usize,
    at: usize,
    /// Lists of targets to be used again: a broadcast allocates nothing per subscriber.
    spare: Vec<Vec<PinId>>,
}

/// One thing to do for many subscribers.
#[derive(Debug)]
struct Task {
    does: Does,
    targets: Vec<PinId>,
}

#[derive(Debug)]
enum Does {
    /// Streams get the same bytes, made of some of the batch's items.
    Write { payload: Payload, items: Vec<usize> },
    /// Streams end.
    Close { item: usize },
    /// Long-polls are answered by an item, or sent to their origins again.
    Answer { item: usize, channel: u32 },
}

impl Holds {
    /// The buffer for the next batch; empty between batches.
    pub fn batch(&mut self) -> &mut Vec<Arc<Delivery>> {
        &mut self.work.batch
    }

    /// Begins to deliver what was put into [`Self::batch`].
    pub fn begin(&mut self) {
        let mut work = std::mem::take(&mut self.work);
        work.receipts.clear();
        work.receipts.resize(work.batch.len(), Receipt::default());
        let channels: Vec<Option<u32>> =
            work.batch.iter().map(|delivery| self.channels.find(delivery.realm, &delivery.channel)).collect();
        self.plan_streams(&mut work, &channels);
        self.plan_polls(&mut work, &channels);
        self.work = work;
    }

    /// Delivers to at most [`CHUNK`] subscribers. False when the batch is done: its receipts are given then.
    pub fn step(&mut self) -> bool {
        let mut work = std::mem::take(&mut self.work);
        let mut budget = CHUNK;
        while let Some(task) = work.tasks.get(work.task)
            && budget > 0
        {
            let targets = &task.targets[work.at..];
            let part = &targets[..targets.len().min(budget)];
            budget -= part.len();
            self.run(&task.does, part, &work.batch, &mut work.receipts);
            work.at += part.len();
            if part.len() == targets.len() {
                work.task += 1;
                work.at = 0;
            }
        }
        let more = work.task < work.tasks.len();
        if !more {
            work.finish();
        }
        self.work = work;
        self.collect();
        more
    }

    fn run(&mut self, does: &Does, part: &[PinId], batch: &[Arc<Delivery>], receipts: &mut [Receipt]) {
        match does {
            Does::Write { payload, items } => {
                let mut tally = Tally::default();
                self.pins.fan_out(part, payload, &mut tally);
                self.count(&tally, items.len() as u64);
                for item in items {
                    add(&mut receipts[*item], &tally);
                }
            }
            Does::Close { item } => {
                for id in part {
                    receipts[*item].delivered += u64::from(self.close_stream(*id));
                }
            }
            Does::Answer { item, channel } => {
                for id in part {
                    self.answer(*id, *channel, &batch[*item].item, &mut receipts[*item]);
                }
            }
        }
    }

    fn count(&self, tally: &Tally, items: u64) {
        self.counters.delivered_stream.add(tally.sent * items);
        self.counters.queued.add(tally.queued * items);
        self.counters.dropped_gone.add(tally.gone * items);
        self.counters.dropped_overflow.add(tally.overflow * items);
        self.counters.bytes_pushed.add(tally.bytes);
    }

    /// Subscribers of one channel and no filter share what that channel's items make. The others are
    /// grouped by the items that they get, so that each gets one write, in the hub's order.
    fn plan_streams(&mut self, work: &mut Work, channels: &[Option<u32>]) {
        let mut by_channel: Vec<(u32, Vec<usize>)> = Vec::new();
        for (item, channel) in channels.iter().enumerate() {
            let (Some(channel), Some(_)) = (*channel, &work.batch[item].item.stream) else { continue };
            match by_channel.iter_mut().find(|(c, _)| *c == channel) {
                Some((_, items)) => items.push(item),
                None => by_channel.push((channel, vec![item])),
            }
        }
        let alone = by_channel.len() == 1;
        let mut mixed: HashMap<Vec<usize>, Vec<PinId>> = HashMap::new();
        let mut met: HashSet<PinId> = HashSet::new();
        for (channel, items) in by_channel {
            let subscribers = self.channels.subscribers(channel, List::Streams);
            let mut targets = work.spare.pop().unwrap_or_default();
            if alone && !self.channels.has_filters(channel) {
                targets.extend_from_slice(subscribers);
            } else {
                for id in subscribers {
                    let Some(hold) = self.pins.get(*id) else { continue };
                    if hold.subs.len() == 1 && hold.filtering.is_none() {
                        targets.push(*id);
                    } else if met.insert(*id) {
                        let gets = self.items_for(hold, work, channels);
                        mixed.entry(gets).or_default().push(*id);
                    }
                }
            }
            work.plan(&items, targets);
        }
        for (items, targets) in mixed {
            work.plan(&items, targets);
        }
    }

    /// The items of the batch that a stream gets, of all its channels.
    fn items_for(&self, hold: &Hold, work: &mut Work, channels: &[Option<u32>]) -> Vec<usize> {
        let mut gets = Vec::new();
        for (item, channel) in channels.iter().enumerate() {
            let Some(channel) = channel.filter(|c| hold.subs.iter().any(|sub| sub.channel == *c)) else {
                continue;
            };
            let rendered = &work.batch[item].item;
            if rendered.stream.is_none() {
                continue;
            }
            if self.passes(hold, channel, rendered) {
                gets.push(item);
            } else {
                work.receipts[item].filtered += 1;
                self.counters.filtered.add(1);
            }
        }
        gets
    }

    fn passes(&self, hold: &Hold, channel: u32, item: &Rendered) -> bool {
        let (Some(filtering), Some(filters)) = (&hold.filtering, hold.filters(channel)) else { return true };
        let names = || hold.subs.iter().map(|sub| self.channels.name(sub.channel));
        let subscribed = |name: &str| names().any(|full| full.strip_prefix(&*filtering.prefix) == Some(name));
        filter::passes(filters, &filtering.meta, &item.meta, subscribed)
    }

    fn plan_polls(&mut self, work: &mut Work, channels: &[Option<u32>]) {
        for (item, channel) in channels.iter().enumerate() {
            let (Some(channel), Some(_)) = (*channel, &work.batch[item].item.response) else { continue };
            let mut targets = work.spare.pop().unwrap_or_default();
            targets.extend_from_slice(self.channels.subscribers(channel, List::Polls));
            work.tasks.push(Task { does: Does::Answer { item, channel }, targets });
        }
    }

    /// Answers a long-poll with an item, or asks its origin again.
    fn answer(&mut self, id: PinId, channel: u32, item: &Rendered, receipt: &mut Receipt) {
        let Some(hold) = self.pins.get(id) else { return };
        let HoldKind::Poll(poll) = &hold.kind else { return };
        // An earlier item was the answer.
        if poll.answered {
            return;
        }
        if !self.passes(hold, channel, item) {
            receipt.filtered += 1;
            self.counters.filtered.add(1);
            return;
        }
        let response = match &item.response {
            Some(HttpResponse::Send(response)) => poll.answer(response),
            Some(HttpResponse::Hint) => return self.replay(id),
            _ => return,
        };
        match self.finish_poll(id, response) {
            Outcome::Sent => {
                receipt.delivered += 1;
                self.counters.delivered_poll.add(1);
                self.counters.ended_answered.add(1);
            }
            Outcome::Queued => {
                receipt.queued += 1;
                self.counters.queued.add(1);
                self.counters.ended_answered.add(1);
            }
            Outcome::Gone | Outcome::Overflow => {
                receipt.dropped_gone += 1;
                self.counters.dropped_gone.add(1);
            }
        }
    }
}

impl Work {
    /// Adds what `items`, in this order, mean for `targets`.
    fn plan(&mut self, items: &[usize], targets: Vec<PinId>) {
        let mut run = Vec::new();
        for item in items {
            match &self.batch[*item].item.stream {
                Some(StreamPart::Send(_)) => run.push(*item),
                Some(StreamPart::Close) => {
                    let mut written = self.spare.pop().unwrap_or_default();
                    written.extend_from_slice(&targets);
                    self.plan_write(run, written);
                    // What comes after the close has nobody to go to.
                    self.tasks.push(Task { does: Does::Close { item: *item }, targets });
                    return;
                }
                // A hint asks the next link, which streams do not follow.
                Some(StreamPart::Hint) | None => {}
            }
        }
        self.plan_write(run, targets);
    }

    fn plan_write(&mut self, items: Vec<usize>, targets: Vec<PinId>) {
        let chunks: Vec<&Chunk> = items
            .iter()
            .filter_map(|item| match &self.batch[*item].item.stream {
                Some(StreamPart::Send(chunk)) => Some(chunk),
                _ => None,
            })
            .collect();
        if chunks.is_empty() {
            self.spare.push(targets);
            return;
        }
        let all = Chunk::concat(&chunks);
        let payload = Payload { coded: all.framed().clone(), plain: all.content() };
        self.tasks.push(Task { does: Does::Write { payload, items }, targets });
    }

    /// Gives the receipts of a batch that is done, and makes ready for the next.
    fn finish(&mut self) {
        for (delivery, receipt) in self.batch.drain(..).zip(&self.receipts) {
            delivery.report(*receipt);
        }
        for Task { mut targets, .. } in self.tasks.drain(..) {
            targets.clear();
            self.spare.push(targets);
        }
        self.spare.truncate(SPARE_LISTS);
        self.task = 0;
    }
}

fn add(receipt: &mut Receipt, tally: &Tally) {
    receipt.delivered += tally.sent;
    receipt.queued += tally.queued;
    receipt.dropped_gone += tally.gone;
    receipt.dropped_overflow += tally.overflow;
}

/// Writes between two looks at the shard's other work: two to three milliseconds.
const CHUNK: usize = 512;
/// A handful of channels is common in a batch; more lists than that are not worth keeping.
const SPARE_LISTS: usize = 16;
