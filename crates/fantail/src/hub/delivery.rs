//! An item on its way: rendered once, shared by all mailboxes that it is in, and told of by its receipt.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use fantail_proto::{item::Item, log::Place, render::Rendered, slow::Slow};

use super::{Broken, Order, RealmId, Receipt, pledge::Pledge, receipt::Ballot};
use crate::{logging, stats::Told};

/// One item on its way to one or more shards. Dropping the last copy completes its receipt.
#[derive(Debug)]
pub struct Delivery {
    /// No other has it, on any shard.
    pub number: u64,
    pub realm: RealmId,
    pub channel: Box<str>,
    pub item: Rendered,
    /// In the log of its channel, if that has one.
    pub place: Option<Place>,
    /// What slow subscribers get, if its channel says so.
    pub slow: Option<Slow>,
    /// About what it holds: every queue that it waits in counts these.
    pub(super) bytes: usize,
    slot: usize,
    ballot: Option<Arc<Ballot>>,
    /// To publishers who wait for those that keep it.
    pub(super) pledge: Option<Arc<Pledge>>,
    /// Who watches is told who got it.
    pub told: Option<Box<Told>>,
    /// On the shards that have delivered.
    receivers: AtomicU64,
    /// Not read from a log.
    published: bool,
    /// The hub knows its id from a log that another process has begun, and those who keep it may have it or not.
    pub inherited: bool,
}

impl Delivery {
    pub(super) fn new(
        realm: RealmId,
        item: Item,
        (ballot, slot): (&Arc<Ballot>, usize),
        told: Option<Box<Told>>,
    ) -> Self {
        let channel: Box<str> = item.channel.as_str().into();
        let item = Rendered::from(item);
        let ballot = ballot.answer.is_some().then(|| Arc::clone(ballot));
        let bytes = item.weight() + channel.len();
        Self {
            number: number(),
            realm,
            channel,
            bytes,
            item,
            place: None,
            slow: None,
            slot,
            ballot,
            pledge: None,
            told,
            receivers: AtomicU64::new(0),
            published: true,
            inherited: false,
        }
    }

    /// An item from a log, on its way to who has missed it. Nobody is told what becomes of it.
    pub fn of_log(realm: RealmId, channel: &str, item: Rendered, place: Place) -> Self {
        let (bytes, channel, place) = (item.weight() + channel.len(), channel.into(), Some(place));
        let (slot, ballot, pledge, told, receivers) = (0, None, None, None, AtomicU64::new(0));
        let number = number();
        Self {
            number,
            realm,
            channel,
            bytes,
            item,
            place,
            slow: None,
            slot,
            ballot,
            pledge,
            told,
            receivers,
            published: false,
            inherited: false,
        }
    }

    /// To be said once by each outpost that keeps items: it has kept this one, or cannot.
    pub fn kept(&self, outcome: &Result<(), Broken>) {
        self.pledge.iter().for_each(|pledge| pledge.settle(outcome));
    }

    /// How it came in its channel's order.
    pub(super) fn say(&self, order: Order) {
        if let Some(ballot) = &self.ballot {
            ballot.add(self.slot, Receipt { order, ..Receipt::default() });
        }
    }

    /// Adds what happened on one shard.
    pub fn report(&self, receipt: Receipt) {
        self.receivers.fetch_add(receipt.receivers(), Relaxed);
        if let Some(ballot) = &self.ballot {
            ballot.add(self.slot, receipt);
        }
    }
}

fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.published {
            logging::published(&self.channel, *self.receivers.get_mut());
        }
    }
}
