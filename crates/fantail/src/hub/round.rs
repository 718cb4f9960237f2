//! One publish on its way through the ledger: each item finds its place in its channel's order.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use fantail_proto::{item::Item, sequence::Verdict};

use super::{
    Delivery, Hub, Kept, Ledger, Order, RealmId, each,
    interest::Early,
    pledge::{Pledge, Promise},
    receipt::Ballot,
};

/// One publish on its way through the ledger.
pub(super) struct Round<'h> {
    pub(super) hub: &'h Hub,
    pub(super) realm: RealmId,
    pub(super) ballot: &'h Arc<Ballot>,
    pub(super) pledge: &'h mut Option<(Arc<Pledge>, Kept)>,
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

impl Round<'_> {
    /// Finds an item its place in its channel's order. `id` is its digest.
    pub(super) fn take(
        &mut self,
        ledger: &mut Ledger,
        slot: usize,
        item: Item,
        id: Option<u128>,
        now_ms: u64,
    ) -> Taken {
        let (hub, realm, ballot) = (self.hub, self.realm, self.ballot);
        let told = hub.told(realm, &item);
        let Ledger { interest, looks, waiting, .. } = ledger;
        let Some(known) = interest.get_mut(&(realm, item.channel.as_str())) else {
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
                if unheard.is_none() {
                    let pledge = self.pledge(each(shards & hub.keepers).count());
                    hub.send(Delivery::new(realm, item, (ballot, slot), pledge, told), shards);
                }
                while let Some(early) = known.follow() {
                    hub.release(waiting, early, shards, Order::Held);
                }
                self.woken |= shards;
                unheard.map_or(Taken::Sent, Taken::Unheard)
            }
            (Verdict::Hold, Some(prev_id)) if waiting.has_room() => {
                // Somebody may keep it when its time has come: its publisher is answered after that.
                let promise = (shards & hub.keepers != 0).then(|| self.promise());
                let delivery = Box::new(Delivery::new(realm, item, (ballot, slot), None, told));
                let due_ms = now_ms + hub.order_wait_ms;
                hub.look_at(looks, realm, &delivery.channel, known, due_ms);
                let early = Early { delivery, promise };
                waiting.add(&early);
                known.hold(id, prev_id, due_ms, early);
                Taken::Sent
            }
            _ => {
                hub.early.dropped.fetch_add(1, Relaxed);
                Taken::Dropped
            }
        }
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
