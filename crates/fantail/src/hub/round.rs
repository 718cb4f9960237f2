//! One publish on its way through the ledger: each item finds its place in its channel's order.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use fantail_proto::{item::Item, log::Durability, sequence::Verdict};

use super::{
    Broken, ChannelKey, Delivery, Hub, Kept, Ledger, MAX_LINGERING, Order, RealmId, Receipt, Waiting, each,
    interest::{Early, Interest},
    outlet::{Dispatch, Parcel},
    pledge::{Pledge, Promise},
    receipt::Ballot,
    unkept::Unkept,
};
use crate::{
    log::{Appended, Record},
    stats::Told,
};

/// One publish on its way through the ledger.
pub(super) struct Round<'h, 'p> {
    pub(super) hub: &'h Hub,
    pub(super) realm: RealmId,
    pub(super) ballot: &'h Arc<Ballot>,
    pub(super) pledge: &'p mut Option<(Arc<Pledge>, Kept)>,
    pub(super) dispatch: Dispatch<'h>,
    /// More is wanted of an item that came again than can be true: its log never had it.
    pub(super) lacks: bool,
    /// What is true of those that came again: their logs may have promised less when they came first.
    pub(super) weakest: Durability,
}

/// What became of one item.
pub(super) enum Fate {
    /// It is in the mailboxes, or waits for its predecessor or for its log.
    Sent,
    /// Nobody has subscribed to its channel.
    Unheard(String),
    /// It is early, and there is no room for it to wait.
    Dropped,
}

/// An item as it comes in.
struct Arrival {
    slot: usize,
    item: Item,
    id: Option<u128>,
    record: Option<Record>,
    told: Option<Box<Told>>,
}

impl Round<'_, '_> {
    /// Finds an item its place in its channel's order, and in its log if there is a record for that. `id` is its digest.
    pub(super) fn take(
        &mut self,
        ledger: &mut Ledger,
        (slot, record): (usize, Option<Record>),
        item: Item,
        id: Option<u128>,
        now_ms: u64,
    ) -> Fate {
        let (hub, realm, ballot) = (self.hub, self.realm, self.ballot);
        let told = hub.told(realm, &item);
        let prev_id = item.prev_id.as_ref().filter(|_| !item.no_seq);
        let prev_id = prev_id.map(|prev_id| hub.digest(realm, &item.channel, prev_id));
        if let Some(prev_id) = prev_id.filter(|_| record.is_some()) {
            self.recall(ledger, &item.channel, prev_id, now_ms);
        }
        let Ledger { interest, looks, waiting, held, unkept, .. } = ledger;
        let arrival = Arrival { slot, item, id, record, told };
        let Some(known) = interest.get_mut(&(realm, arrival.item.channel.as_str())) else {
            return self.send((held, unkept), 0, arrival);
        };
        let shards = known.shards;
        match (known.judge(prev_id), prev_id) {
            (Verdict::Pass, _) => {
                if !arrival.item.no_seq {
                    known.pass(id);
                }
                let fate = self.send((held, unkept), shards, arrival);
                while let Some(early) = known.follow() {
                    hub.release((waiting, held), &mut self.dispatch, early, shards, Order::Held);
                }
                fate
            }
            (Verdict::Hold, Some(prev_id)) if waiting.has_room() => {
                let Arrival { slot, item, id, record, told } = arrival;
                // Somebody may keep it when its time has come: its publisher is answered after that.
                let durability = record.as_ref().map_or(Durability::Accepted, Record::durability);
                let keeps = durability > Durability::Accepted || shards & hub.outlet.keepers != 0;
                let own = keeps.then(|| self.promise_of(unkept, id));
                let promises = keeps.then(|| (self.promise(), durability)).into_iter().collect();
                let delivery = Box::new(Delivery::new(realm, item, (ballot, slot), told));
                let due_ms = now_ms + hub.order_wait_ms;
                known.stay_until(due_ms);
                hub.look_at(looks, realm, &delivery.channel, known, due_ms);
                waiting.add(delivery.bytes);
                known.hold(id, prev_id, due_ms, Early { delivery, own, promises, record, id });
                Fate::Sent
            }
            // What is kept is not lost for want of room: it goes out as it is.
            _ if arrival.record.is_some() => {
                hub.early.late.fetch_add(1, Relaxed);
                ballot.add(slot, Receipt { order: Order::Late, ..Receipt::default() });
                self.send((held, unkept), shards, arrival);
                Fate::Sent
            }
            _ => {
                hub.early.dropped.fetch_add(1, Relaxed);
                Fate::Dropped
            }
        }
    }

    /// An item came again. If the first waits for its predecessor it is in no log yet, and this publisher waits, too.
    pub(super) fn repeat(
        &mut self,
        ledger: &mut Ledger,
        item: &Item,
        digest: Option<u128>,
        record: Option<Record>,
    ) {
        let channel = item.channel.as_str();
        let durability = record.as_ref().map_or(Durability::Accepted, Record::durability);
        let Ledger { interest, unkept, .. } = ledger;
        let known = interest.get_mut(&(self.realm, channel));
        let Some(early) = known.and_then(|known| known.early_mut(digest?)) else {
            let Some(record) = record else { return };
            self.dispatch.repeat(self.realm, channel);
            if durability > Durability::Accepted {
                let id = item.id.as_deref().unwrap_or_default();
                let said = self.dispatch.said_of(self.realm, channel, id);
                // More than its log promises by itself is true when the disk has all that was appended, if this was.
                match record.asks_more() {
                    true => self.lacks |= said.is_none(),
                    false => self.weakest = self.weakest.min(said.unwrap_or_default()),
                }
            }
            return;
        };
        if early.own.is_none() && durability == Durability::Accepted {
            return;
        }
        early.own.get_or_insert_with(|| self.promise_of(unkept, digest));
        let promise = self.promise();
        if early.promises.len() < MAX_PROMISES {
            early.promises.push((promise, durability));
            // What this one is promised is so only if the log knows.
            match &mut early.record {
                Some(own) => own.ask(durability),
                own @ None => *own = record,
            }
        } else {
            promise.settle(&Err(Broken("too many wait for this item".into())));
        }
    }

    /// An item came again. If those who keep it have not said so yet, this publisher waits for them, too; if they could not,
    /// or another process had it in its log and perhaps no further, they get it once more, and nobody else does.
    pub(super) fn keep_again(&mut self, ledger: &mut Ledger, slot: usize, item: Item, id: u128) {
        let known = ledger.interest.get(&(self.realm, item.channel.as_str()));
        let keepers = known.map_or(0, |known| known.shards) & self.hub.outlet.keepers;
        let first = ledger.unkept.get(id);
        let inherited = first.is_none();
        let promise = match first {
            Some(first) => first.include(self.promise()),
            None => (keepers != 0 && ledger.inherited.take(id)).then(|| self.promise()),
        };
        let Some(promise) = promise else { return };
        let promise = Some(ledger.unkept.note(id, promise));
        let mut delivery = Box::new(Delivery::new(self.realm, item, (self.ballot, slot), None));
        delivery.inherited = inherited;
        self.dispatch.send(
            &mut ledger.held,
            Appended::Now(None),
            Parcel { delivery, promise, id: None },
            keepers,
        );
    }

    /// A channel with a log knows which item came last, also when nobody subscribes: what is early is not to stand in the
    /// log before its predecessor.
    fn recall(&mut self, ledger: &mut Ledger, channel: &str, prev_id: u128, now_ms: u64) {
        let (hub, realm) = (self.hub, self.realm);
        let known = ledger.interest.get_mut(&(realm, channel));
        if known.as_ref().is_some_and(|known| known.last().is_some()) {
            return;
        }
        let Some(last) = self.dispatch.newest_id(realm, channel) else { return };
        let last = hub.digest(realm, channel, last);
        match known {
            Some(known) => known.pass(Some(last)),
            None if last != prev_id && ledger.lingering < MAX_LINGERING => {
                ledger.lingering += 1;
                let until_ms = now_ms + hub.order_wait_ms;
                let mut known = Interest::unheard(last, until_ms);
                hub.look_at(&mut ledger.looks, realm, channel, &mut known, until_ms);
                ledger.interest.insert(ChannelKey { realm, name: channel.into() }, known);
            }
            None => {}
        }
    }

    /// Gives an item its place in its log, and itself to its subscribers.
    fn send(&mut self, (held, unkept): (&mut Waiting, &mut Unkept), shards: u64, arrival: Arrival) -> Fate {
        let Arrival { slot, item, id, record, told } = arrival;
        let slow = record.as_ref().and_then(Record::slow);
        let appended = self.dispatch.append(self.realm, &item.channel, record);
        if shards == 0 && matches!(appended, Appended::Now(_)) {
            return Fate::Unheard(item.channel);
        }
        let waits = each(shards & self.hub.outlet.keepers).next().is_some() || appended == Appended::Never;
        let promise = waits.then(|| self.promise_of(unkept, id));
        let mut delivery = Box::new(Delivery::new(self.realm, item, (self.ballot, slot), told));
        delivery.slow = slow;
        self.dispatch.send(held, appended, Parcel { delivery, promise, id }, shards);
        Fate::Sent
    }

    fn promise(&mut self) -> Promise {
        let (pledge, _) = self.pledge.get_or_insert_with(Pledge::new);
        Promise::of(pledge)
    }

    /// The same, for one item: if it may come again, that is to know what became of this one alone.
    fn promise_of(&mut self, unkept: &mut Unkept, id: Option<u128>) -> Promise {
        let promise = self.promise();
        match id {
            Some(id) => unkept.note(id, promise),
            None => promise,
        }
    }
}

/// Publishers of one item that wait for it together.
const MAX_PROMISES: usize = 64;
