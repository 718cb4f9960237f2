//! One publish on its way through the ledger: each item finds its place in its channel's order.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use fantail_proto::{item::Item, log::Durability, sequence::Verdict};

use super::{
    Delivery, Hub, Kept, Ledger, Order, RealmId, Receipt, each,
    interest::Early,
    pledge::{Pledge, Promise},
    receipt::Ballot,
};
use crate::{
    log::{Appending, Record},
    stats::Told,
};

/// One publish on its way through the ledger.
pub(super) struct Round<'h, 'p> {
    pub(super) hub: &'h Hub,
    pub(super) realm: RealmId,
    pub(super) ballot: &'h Arc<Ballot>,
    pub(super) pledge: &'p mut Option<(Arc<Pledge>, Kept)>,
    pub(super) logs: Appending<'h>,
    /// Who has mail.
    pub(super) woken: u64,
}

/// What became of one item.
pub(super) enum Taken {
    /// It is in the mailboxes, or waits for its predecessor.
    Sent,
    /// Nobody has subscribed to its channel.
    Unheard(String),
    /// It is early, and there is no room for it to wait.
    Dropped,
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
    ) -> Taken {
        let (hub, realm, ballot) = (self.hub, self.realm, self.ballot);
        let told = hub.told(realm, &item);
        let Ledger { interest, looks, waiting, .. } = ledger;
        let Some(known) = interest.get_mut(&(realm, item.channel.as_str())) else {
            record.and_then(|record| self.logs.append(realm, &item.channel, record));
            return Taken::Unheard(item.channel);
        };
        let prev_id = item.prev_id.as_ref().map(|prev_id| hub.digest(realm, &item.channel, prev_id));
        let shards = known.shards;
        match (if item.no_seq { Verdict::Pass } else { known.judge(prev_id) }, prev_id) {
            (Verdict::Pass, _) => {
                if !item.no_seq {
                    known.pass(id);
                }
                let unheard = (shards == 0).then(|| item.channel.clone());
                self.send(shards, (slot, record), item, told);
                while let Some(early) = known.follow() {
                    hub.release(waiting, &mut self.logs, early, shards, Order::Held);
                }
                unheard.map_or(Taken::Sent, Taken::Unheard)
            }
            (Verdict::Hold, Some(prev_id)) if waiting.has_room() => {
                // Somebody may keep it when its time has come: its publisher is answered after that.
                let keeps = record.as_ref().is_some_and(|record| record.durability() > Durability::Accepted);
                let promise = (keeps || shards & hub.keepers != 0).then(|| self.promise());
                let delivery = Box::new(Delivery::new(realm, item, (ballot, slot), None, told));
                let due_ms = now_ms + hub.order_wait_ms;
                hub.look_at(looks, realm, &delivery.channel, known, due_ms);
                let early = Early { delivery, promise, record };
                waiting.add(&early);
                known.hold(id, prev_id, due_ms, early);
                Taken::Sent
            }
            // What is kept is not lost for want of room: it goes out as it is.
            _ if record.is_some() => {
                hub.early.late.fetch_add(1, Relaxed);
                ballot.add(slot, Receipt { order: Order::Late, ..Receipt::default() });
                self.send(shards, (slot, record), item, told);
                Taken::Sent
            }
            _ => {
                hub.early.dropped.fetch_add(1, Relaxed);
                Taken::Dropped
            }
        }
    }

    /// Gives an item its place in its log, and itself to its subscribers.
    fn send(
        &mut self,
        shards: u64,
        (slot, record): (usize, Option<Record>),
        item: Item,
        told: Option<Box<Told>>,
    ) {
        let (hub, realm) = (self.hub, self.realm);
        let slow = record.as_ref().and_then(Record::slow);
        let place = record.and_then(|record| self.logs.append(realm, &item.channel, record));
        if shards != 0 {
            let pledge = self.pledge(each(shards & hub.keepers).count());
            let mut delivery = Delivery::new(realm, item, (self.ballot, slot), pledge, told);
            (delivery.place, delivery.slow) = (place, slow);
            hub.send(delivery, shards);
        }
        self.woken |= shards;
    }

    /// What so many keepers are to say that they have kept an item, if any are.
    fn pledge(&mut self, keepers: usize) -> Option<Arc<Pledge>> {
        if keepers == 0 {
            return None;
        }
        let (pledge, _) = self.pledge.get_or_insert_with(Pledge::new);
        (0..keepers).for_each(|_| pledge.expect());
        Some(Arc::clone(pledge))
    }

    fn promise(&mut self) -> Promise {
        let (pledge, _) = self.pledge.get_or_insert_with(Pledge::new);
        Promise::of(pledge)
    }
}
