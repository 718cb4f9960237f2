//! Items that came before their predecessors, on their way out: to their logs, their subscribers and those who keep them.
//! Decides nothing about when.

use std::sync::atomic::Ordering::Relaxed;

use fantail_proto::log::Durability;

use super::{
    Hub, Ledger, Order, Waiting,
    interest::Early,
    outlet::{Dispatch, Parcel},
};
use crate::log::Record;

impl Hub {
    /// Lets all go that wait for their predecessors: the process ends, and some of their publishers were told already that
    /// their logs have them after that.
    pub fn release_all(&self) {
        let mut dispatch = self.dispatch();
        let mut ledger = self.outlet.ledger.lock();
        let Ledger { interest, waiting, held, .. } = &mut *ledger;
        for known in interest.values_mut() {
            while let Some(early) = known.follow().or_else(|| known.expire(u64::MAX)) {
                self.release((waiting, held), &mut dispatch, early, known.shards, Order::Late);
            }
        }
        let (woken, _) = dispatch.finish(&mut ledger, Durability::Accepted);
        drop(ledger);
        self.outlet.wake(woken);
    }

    /// Gives an item that was early to its subscribers, or to its log first.
    pub(super) fn release(
        &self,
        (waiting, held): (&mut Waiting, &mut Waiting),
        dispatch: &mut Dispatch<'_>,
        early: Early,
        shards: u64,
        order: Order,
    ) {
        let Early { mut delivery, own, promises, record, id } = early;
        waiting.remove(delivery.bytes);
        let count = if order == Order::Late { &self.early.late } else { &self.early.in_turn };
        count.fetch_add(1, Relaxed);
        delivery.say(order);
        delivery.slow = record.as_ref().and_then(Record::slow);
        let appended = dispatch.append(delivery.realm, &delivery.channel, record);
        // Its publishers may wait for more than its subscribers do, or for less: rules have changed.
        let least = appended.durability();
        promises.into_iter().for_each(|(promise, asked)| dispatch.promise(least.max(asked), promise));
        dispatch.send(held, appended, Parcel { delivery, promise: own, id }, shards);
    }
}
