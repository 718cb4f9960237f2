//! Items for clients for whom others wait already: they wait, too, or are left to the log, or give way to newer ones, or
//! end their holds. Which of these it is, is `fantail_proto::slow`'s to say.

use std::sync::Arc;

use bytes::Bytes;
use fantail_pin::{Brim, Outcome, Payload, PinId, Tally};
use fantail_proto::{
    render::MessagePart,
    slow::{Newest, Slow, Step, Subscriber},
};

use super::{Holds, List, Part, Work, add, note};
use crate::hub::{Delivery, Receipt};

/// An item on its way to holds for whom something may wait.
struct Given {
    list: List,
    channel: Option<u32>,
    /// Another of its channel comes right behind it.
    newer: bool,
    from_log: bool,
    payload: Payload,
    delivery: Arc<Delivery>,
}

impl Holds {
    /// Writes the content of some items to those who get the same of them. Returns those who were not given it so, because
    /// something else is to be done: [`Self::give_each`].
    pub(super) fn write_content(
        &mut self,
        work: &mut Work,
        (list, content): (List, &[usize]),
        part: &[PinId],
        payload: &Payload,
    ) -> Vec<PinId> {
        let (mut tally, mut asked) = (Tally::default(), Vec::new());
        if work.from_log {
            part.iter().for_each(|id| self.pins.write_slowly(*id, payload, &mut tally));
        } else {
            let brim = work.brim(content);
            self.give_older_to(part, work, content, brim);
            self.pins.fan_out_or_ask(part, payload, brim, &mut tally, &mut asked);
        }
        self.count(list, &tally, content.len() as u64);
        for place in content {
            let item = work.item(*place);
            add(&mut work.receipts[item], &tally);
        }
        asked
    }

    /// Gives some holds these items one by one, whatever waits for them.
    pub(super) fn give_each(&mut self, work: &mut Work, list: List, items: &[usize], mut ids: Vec<PinId>) {
        let mut closed = 0;
        for (at, place) in items.iter().copied().enumerate() {
            let item = work.item(place);
            let delivery = Arc::clone(&work.batch[item]);
            let Some(part) = work.part(list, place) else { continue };
            if part != Part::Content {
                for id in &ids {
                    let receipt = &mut work.receipts[item];
                    if !self.is_from_log(work.channels[item], &delivery, *id, receipt) {
                        self.act_on(part, list, &delivery, *id, receipt);
                    }
                }
                continue;
            }
            work.receipts[item].dropped_overflow += closed;
            self.counters.dropped_overflow.add(closed);
            let later = |later: &usize| {
                work.channels[work.item(*later)] == work.channels[item]
                    && work.part(list, *later) == Some(Part::Content)
            };
            let given = Given {
                list,
                channel: work.channels[item],
                newer: items[at + 1..].iter().any(later),
                from_log: work.from_log,
                payload: match list {
                    List::WebSockets | List::SockJs => self.frames(work, list, &[place]),
                    List::Streams | List::Polls => work.chunks(&[place]),
                },
                delivery,
            };
            let before = ids.len();
            ids.retain(|id| self.give_one(&given, *id, &mut work.receipts[item]));
            closed += (before - ids.len()) as u64;
        }
    }

    /// Gives a hold one item. False if it has not got it and is closed.
    fn give_one(&mut self, given: &Given, id: PinId, receipt: &mut Receipt) -> bool {
        let Given { list, channel, newer, from_log, payload, delivery } = given;
        let (list, Some(channel)) = (*list, *channel) else { return true };
        // It may have left the channel since the batch began.
        let stays = self.pins.get(id).is_some_and(|hold| hold.subs.iter().any(|sub| sub.channel == channel));
        let form = self.pins.form(id).filter(|_| stays && self.pins.is_open(id));
        let Some(bytes) = form.map(|form| payload.in_form(form)) else {
            self.count_one(receipt, list, Outcome::Gone, 0);
            return true;
        };
        if *from_log {
            let outcome = self.pins.write_patiently(id, bytes);
            self.count_one(receipt, list, outcome, bytes.len());
            return true;
        }
        if self.is_from_log(Some(channel), delivery, id, receipt) {
            return true;
        }
        let slow = delivery.slow.unwrap_or_else(|| slow_of(self.pins.brim(id)));
        if slow != Slow::Newest {
            self.give_older(id, channel);
        }
        // What a link leads to is in no log.
        let logged = delivery.place.filter(|_| self.pins.get(id).is_some_and(|hold| !hold.follows()));
        let (outcome, len) = match slow.step(self.stands(id, channel, slow, bytes.len(), logged.is_some())) {
            Step::Write => (self.pins.write(id, bytes), bytes.len()),
            Step::Keep if *newer => {
                receipt.passed_over += 1;
                self.counters.passed_over.add(1);
                (Outcome::Queued, 0)
            }
            Step::Keep => {
                receipt.passed_over += u64::from(self.keep_newest(id, channel, bytes.clone()));
                (Outcome::Queued, 0)
            }
            Step::Repair => {
                if let Some(place) = logged {
                    self.counters.slow_repaired.add(1);
                    self.fall_back(id, channel, place);
                }
                self.leave_to_log(receipt);
                return true;
            }
            Step::Close => {
                self.pins.overflow(id);
                (Outcome::Overflow, 0)
            }
        };
        self.count_one(receipt, list, outcome, len);
        outcome != Outcome::Overflow
    }

    /// Whether the log gives an item to a hold, and notes it then.
    fn is_from_log(
        &self,
        channel: Option<u32>,
        delivery: &Delivery,
        id: PinId,
        receipt: &mut Receipt,
    ) -> bool {
        let hold = self.pins.get(id);
        let has = channel
            .is_some_and(|channel| hold.is_some_and(|hold| hold.has_from_log(channel, delivery.place)));
        if has {
            self.leave_to_log(receipt);
        }
        has
    }

    fn stands(&self, id: PinId, channel: u32, slow: Slow, len: usize, logged: bool) -> Subscriber {
        let newest = self.newest.get(&id);
        let with = match (slow, newest) {
            (Slow::Newest, Some(newest)) => newest.bytes_with(channel, len),
            _ => len,
        };
        // Alone it is kept whatever its length.
        let alone = slow == Slow::Newest && newest.is_none_or(|newest| newest.is_only(channel));
        let room = alone || self.pins.has_room(id, with);
        Subscriber { waits: self.pins.queue_len(id) > 0, room, logged }
    }

    /// Notes that an item comes to a subscriber from the log later, or has come.
    pub(in crate::hold) fn leave_to_log(&self, receipt: &mut Receipt) {
        receipt.left_to_log += 1;
        self.counters.left_to_log.add(1);
    }

    /// Does what an item means that is no content: its channel's holds end, or their origins are asked.
    pub(super) fn act_on(
        &mut self,
        part: Part,
        list: List,
        delivery: &Delivery,
        id: PinId,
        receipt: &mut Receipt,
    ) {
        match (part, &delivery.item.message) {
            (Part::Refresh, _) => receipt.delivered += u64::from(self.refresh(id)),
            (Part::End, Some(MessagePart::Close(frame))) if list.is_spoken_to() => {
                let outcome = self.close_websocket(id, frame);
                note(receipt, outcome);
            }
            (Part::End, _) => {
                let outcome = self.close_stream(id);
                note(receipt, outcome);
            }
            (Part::Content, _) => {}
        }
    }

    fn count_one(&self, receipt: &mut Receipt, list: List, outcome: Outcome, len: usize) {
        let mut tally = Tally::default();
        *match outcome {
            Outcome::Sent => &mut tally.sent,
            Outcome::Queued => &mut tally.queued,
            Outcome::Overflow => &mut tally.overflow,
            Outcome::Gone => &mut tally.gone,
        } = 1;
        if matches!(outcome, Outcome::Sent | Outcome::Queued) {
            tally.bytes = len as u64;
        }
        self.count(list, &tally, 1);
        add(receipt, &tally);
    }

    /// Keeps an item until its client has taken what waits, and none that is older. Returns whether there was one.
    fn keep_newest(&mut self, id: PinId, channel: u32, bytes: Bytes) -> bool {
        if !self.newest.contains_key(&id) {
            self.counters.slow_newest.add(1);
            self.pins.tell_when_drained(id);
        }
        let replaces = self.newest.entry(id).or_default().keep(channel, bytes);
        self.counters.passed_over.add(u64::from(replaces));
        replaces
    }

    /// A client has taken what waited: it gets the newest items that were kept for it, as far as it takes them.
    pub(in crate::hold) fn give_newest(&mut self, id: PinId) {
        let Some(mut newest) = self.newest.remove(&id) else { return };
        while self.pins.queue_len(id) == 0 {
            let Some(bytes) = newest.pop() else { return };
            self.write_kept(id, &bytes);
        }
        if !newest.is_empty() {
            self.pins.tell_when_drained(id);
            self.newest.insert(id, newest);
        }
    }

    /// Nothing follows any more what waits for a client: it gets all that was kept for it.
    pub(in crate::hold) fn give_all_newest(&mut self, id: PinId) {
        // Nobody is slow, as a rule.
        let Some(mut newest) = self.newest.remove(&id) else { return };
        while let Some(bytes) = newest.pop() {
            self.write_kept(id, &bytes);
        }
    }

    fn write_kept(&mut self, id: PinId, bytes: &Bytes) {
        match self.pins.write_patiently(id, bytes) {
            Outcome::Sent | Outcome::Queued => self.counters.bytes_pushed.add(bytes.len() as u64),
            Outcome::Gone | Outcome::Overflow => self.counters.dropped_gone.add(1),
        }
    }

    /// Who is given these items whatever waits gets first what was kept of their channels: when that came, they had another
    /// policy.
    fn give_older_to(&mut self, part: &[PinId], work: &Work, content: &[usize], brim: Option<Brim>) {
        // Nobody is slow, as a rule.
        if self.newest.is_empty() {
            return;
        }
        for id in part.iter().copied().filter(|id| self.newest.contains_key(id)).collect::<Vec<_>>() {
            if brim.unwrap_or_else(|| self.pins.brim(id)) != Brim::AskAtOnce {
                let channels = content.iter().filter_map(|place| work.channels[work.item(*place)]);
                channels.for_each(|channel| self.give_older(id, channel));
            }
        }
    }

    fn give_older(&mut self, id: PinId, channel: u32) {
        let Some(newest) = self.newest.get_mut(&id) else { return };
        let older = newest.take(channel);
        if newest.is_empty() {
            self.newest.remove(&id);
        }
        older.iter().for_each(|bytes| self.write_kept(id, bytes));
    }

    /// A hold leaves a channel: what was kept of it is for nobody.
    pub(in crate::hold) fn forget_newest(&mut self, id: PinId, channel: u32) {
        if let Some(newest) = self.newest.get_mut(&id) {
            self.counters.dropped_gone.add(u64::from(newest.forget(channel)));
            if newest.is_empty() {
                self.newest.remove(&id);
            }
        }
    }
}

impl Work {
    /// What is to be done with holds for whom something waits, if the channels of these items say so.
    fn brim(&self, content: &[usize]) -> Option<Brim> {
        let mut says = content.iter().map(|place| self.batch[self.item(*place)].slow);
        let first = says.next()?;
        match says.all(|slow| slow == first) {
            true => first.map(brim),
            // Each is looked at.
            false => Some(Brim::AskAtOnce),
        }
    }
}

/// What the table is told of a policy; it is kept there, where there is room for it.
pub(in crate::hold) const fn brim(slow: Slow) -> Brim {
    match slow {
        Slow::Close => Brim::End,
        Slow::Repair => Brim::Ask,
        Slow::Newest => Brim::AskAtOnce,
    }
}

const fn slow_of(brim: Brim) -> Slow {
    match brim {
        Brim::End => Slow::Close,
        Brim::Ask => Slow::Repair,
        Brim::AskAtOnce => Slow::Newest,
    }
}

/// What is kept for clients that are slow, and want only the newest.
pub(in crate::hold) type Kept = hashbrown::HashMap<PinId, Newest>;
