//! Long-polls of a batch: each is answered with the first item that it gets, or its origin is asked again.

use std::sync::Arc;

use fantail_pin::{Outcome, PinId};
use fantail_proto::{
    item::{HttpResponse, ResponseBody},
    recovery::{self, Step},
    render::Rendered,
};
use hashbrown::HashSet;

use super::{HoldKind, Holds, List, WRITE_BYTES, Work, cost, variants::Answering};
use crate::hold::{Poll, updates::Cause};

impl Holds {
    pub(super) fn list_polls(&self, work: &mut Work) {
        let mut listed = HashSet::new();
        for (delivery, channel) in work.batch.iter().zip(&work.channels) {
            // One that is nothing to them may show that they have missed another.
            if let Some(channel) = *channel
                && (delivery.item.response.is_some() || self.channels.is_mixed(channel))
            {
                listed.insert(channel);
            }
        }
        for channel in listed {
            let polls = work.list(self.channels.subscribers(channel, List::Polls));
            work.polls.push(polls);
        }
    }

    /// Answers a long-poll with the first item that it gets. Returns the cost, in writes.
    pub(in crate::hold) fn answer(&mut self, work: &mut Work, id: PinId) -> usize {
        let Some(hold) = self.pins.get(id) else { return 1 };
        if hold.subs.len() > 1 && !work.met.insert(id) {
            return 1;
        }
        let mut cost = cost(work.batch.len(), hold);
        for item in 0..work.batch.len() {
            let Some(hold) = self.pins.get(id) else { break };
            let HoldKind::Poll(poll) = &hold.kind else { break };
            if poll.answered {
                break;
            }
            let Some(channel) = self.channel_of(hold, work, item) else { continue };
            if !work.from_log && hold.has_from_log(channel, work.batch[item].place) {
                self.leave_to_log(&mut work.receipts[item]);
                continue;
            }
            cost += effort(poll, &work.batch[item].item, !hold.filters(channel).is_empty());
            if !self.stands_behind(work, id, channel, item) {
                self.answer_watched(work, id, channel, item);
            }
        }
        cost
    }

    /// Answers a long-poll with an item, or asks its origin again, or neither.
    pub(in crate::hold) fn answer_with(&mut self, work: &mut Work, id: PinId, channel: u32, place: usize) {
        let delivery = Arc::clone(&work.batch[place]);
        let item = &delivery.item;
        let Some(hold) = self.pins.get(id) else { return };
        let HoldKind::Poll(poll) = &hold.kind else { return };
        let hint = matches!(item.response, Some(HttpResponse::Hint));
        let watched = !hint && !hold.is_vouched_for(channel);
        if let Some(position) = hold.position(channel).filter(|_| watched) {
            match recovery::step(position, item.id.as_deref(), item.prev_id.as_deref()) {
                Step::Deliver => {}
                Step::Skip => return work.receipts[place].recovered += 1,
                Step::Gap => {
                    work.receipts[place].recovered += 1;
                    return self.mend(id);
                }
            }
        }
        if item.response.is_none() {
            return self.pass(id, channel, item);
        }
        if !self.passes(hold, channel, item) {
            return self.keep_from(work, id, channel, place);
        }
        let response = match &item.response {
            Some(HttpResponse::Send(response)) => {
                let body = self.filtered_body(hold, channel, item, poll.body(response), work);
                match body {
                    Ok(Answering::With(body)) => poll.answer(response, &body),
                    Ok(Answering::Not) => return self.keep_from(work, id, channel, place),
                    Ok(Answering::Asks(wording)) => {
                        return self.inquire(work, (id, channel), place, (List::Polls, *wording));
                    }
                    Err(error) => {
                        work.receipts[place].dropped_filter += 1;
                        self.counters.filter_errors.add(1);
                        if !hold.standing.as_ref().is_some_and(|standing| standing.debug) {
                            return;
                        }
                        poll.fail(&format!("filter error: {error}\n"))
                    }
                }
            }
            Some(HttpResponse::Hint) => {
                Cause::Hint.count(&self.counters);
                return self.replay(id);
            }
            // There is nothing in it for a long-poll (spec 5.4), which has it nevertheless.
            Some(HttpResponse::Close | HttpResponse::Refresh) | None => return self.pass(id, channel, item),
        };
        let receipt = &mut work.receipts[place];
        match self.finish_poll(id, response) {
            Outcome::Sent => {
                self.reach(id, channel, item.id.as_deref());
                receipt.delivered += 1;
                self.counters.delivered_poll.add(1);
                self.counters.ended_answered.add(1);
            }
            Outcome::Queued => {
                self.reach(id, channel, item.id.as_deref());
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

    /// A filter keeps an item from a long-poll.
    fn keep_from(&mut self, work: &mut Work, id: PinId, channel: u32, place: usize) {
        work.receipts[place].filtered += 1;
        self.counters.filtered.add(1);
        let delivery = Arc::clone(&work.batch[place]);
        self.pass(id, channel, &delivery.item);
    }

    /// The item was nothing to a long-poll: the next one follows it.
    fn pass(&mut self, id: PinId, channel: u32, item: &Rendered) {
        if let Some(standing) = self.pins.get_mut(id).and_then(|hold| hold.standing.as_mut()) {
            standing.advance(channel, item.id.as_deref());
            self.reach(id, channel, item.id.as_deref());
        }
    }
}

/// What it takes to make a poll's answer of an item, in writes.
fn effort(poll: &Poll, item: &Rendered, filtered: bool) -> usize {
    let Some(HttpResponse::Send(response)) = &item.response else { return 0 };
    match &response.body {
        ResponseBody::Patch(_) => poll.reply.body.len() / PATCHED_BYTES,
        ResponseBody::Whole(body) if filtered => body.len() / WRITE_BYTES,
        ResponseBody::Whole(_) => 0,
    }
}

/// So much of a body is read, patched and written again in the time of a write.
const PATCHED_BYTES: usize = 256;
