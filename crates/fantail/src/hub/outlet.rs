//! Where items leave the hub: who subscribes to what, and the mailboxes. Shared with the thread that keeps logs on disk,
//! because what a log promises to keep is delivered when it is kept, and no sooner.

use std::sync::Arc;

use fantail_proto::log::Durability;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Broken, Delivery, Ledger, RealmId, Waiting, each, mailbox::Mailbox, pledge::Promise};
use crate::{
    log::{self, Appended, Appending, Batch, Record},
    store::StoreError,
};

#[derive(Debug)]
pub(super) struct Outlet {
    pub(super) ledger: Mutex<Ledger>,
    /// A shard each, then an outpost each.
    pub(super) mailboxes: Box<[Mailbox]>,
    /// Whose items a publisher's answer waits for: a bit a mailbox.
    pub(super) keepers: u64,
    pub(super) room: Notify,
}

/// An item that has its place in its channel's order.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) delivery: Box<Delivery>,
    /// To publishers who wait for those that keep it.
    pub(super) promise: Option<Promise>,
    /// Its digest, by which it may be published again if it is not kept.
    pub(super) id: Option<u128>,
}

impl Outlet {
    /// Puts an item into mailboxes. Returns whose.
    fn deliver(&self, parcel: Parcel, shards: u64) -> u64 {
        let Parcel { mut delivery, promise, .. } = parcel;
        if shards != 0 {
            let keepers = each(shards & self.keepers).count();
            delivery.pledge = promise.and_then(|promise| promise.pass_on(keepers));
            let delivery = Arc::new(*delivery);
            each(shards).for_each(|shard| self.mailboxes[shard].push(Arc::clone(&delivery)));
        }
        shards
    }

    pub(super) fn wake(&self, shards: u64) {
        each(shards).for_each(|shard| self.mailboxes[shard].mail.notify_one());
    }

    /// Items have been kept, and go to who subscribes now; or they cannot be, and were never there.
    fn settle(&self, parcels: Vec<Parcel>, outcome: &Result<(), StoreError>) {
        let (mut woken, mut lost) = (0, Vec::new());
        let mut ledger = self.ledger.lock();
        for parcel in parcels {
            ledger.held.remove(parcel.delivery.bytes);
            woken |= self.settle_one(&mut ledger, parcel, outcome, &mut lost);
        }
        ledger.seen.forget(&lost);
        drop(ledger);
        self.wake(woken);
        self.room.notify_waiters();
    }

    /// `lost`: takes the ids that may come again, all of which are to be forgotten at once.
    fn settle_one(
        &self,
        ledger: &mut Ledger,
        parcel: Parcel,
        outcome: &Result<(), StoreError>,
        lost: &mut Vec<u128>,
    ) -> u64 {
        let known = ledger.interest.get_mut(&(parcel.delivery.realm, &*parcel.delivery.channel));
        match outcome {
            Ok(()) => self.deliver(parcel, known.map_or(0, |known| known.shards)),
            Err(error) => {
                // What follows it is not early: nothing has come last.
                known.into_iter().for_each(|known| known.forget());
                lost.extend(parcel.id);
                let broken = Err(Broken(error.to_string().into()));
                parcel.promise.into_iter().for_each(|promise| promise.settle(&broken));
                0
            }
        }
    }
}

/// Items on their way out, while the ledger is locked.
#[derive(Debug)]
pub(super) struct Dispatch<'h> {
    outlet: &'h Arc<Outlet>,
    logs: Appending<'h>,
    /// What is delivered when it is kept, and how.
    lots: Vec<(Durability, Vec<Parcel>)>,
    /// What cannot be kept.
    refused: Vec<Parcel>,
    /// Who has mail.
    woken: u64,
}

impl<'h> Dispatch<'h> {
    pub(super) const fn new(outlet: &'h Arc<Outlet>, logs: Appending<'h>) -> Self {
        Self { outlet, logs, lots: Vec::new(), refused: Vec::new(), woken: 0 }
    }

    /// # Errors
    /// The disk takes nothing.
    pub(super) fn admit(&mut self, batch: &Batch) -> Result<(), log::Refused> {
        self.logs.admit(batch)
    }

    /// An item came again that has its place already.
    pub(super) fn repeat(&mut self, realm: RealmId, channel: &str) {
        self.logs.repeat(realm, channel);
    }

    pub(super) fn said_of(&mut self, realm: RealmId, channel: &str, id: &str) -> Option<Durability> {
        self.logs.said_of(realm, channel, id)
    }

    pub(super) fn newest_id(&mut self, realm: RealmId, channel: &str) -> Option<&str> {
        self.logs.newest_id(realm, channel)
    }

    pub(super) fn append(&mut self, realm: RealmId, channel: &str, record: Option<Record>) -> Appended {
        record.map_or(Appended::Now(None), |record| self.logs.append(realm, channel, record))
    }

    /// Sends an item off, now or when its log has kept it.
    pub(super) fn send(&mut self, held: &mut Waiting, appended: Appended, mut parcel: Parcel, shards: u64) {
        match appended {
            Appended::Now(place) => {
                parcel.delivery.place = place;
                self.woken |= self.outlet.deliver(parcel, shards);
            }
            Appended::When(place, durability) => {
                parcel.delivery.place = Some(place);
                held.add(parcel.delivery.bytes);
                match self.lots.last_mut() {
                    Some((last, lot)) if *last == durability => lot.push(parcel),
                    _ => self.lots.push((durability, vec![parcel])),
                }
            }
            Appended::Never => self.refused.push(parcel),
        }
    }

    /// Somebody waits until all that was appended so far is kept like this.
    pub(super) fn promise(&self, durability: Durability, promise: Promise) {
        if durability > Durability::Accepted {
            self.logs.when(durability, move |outcome: Result<(), StoreError>| {
                promise.settle(&outcome.map_err(|error| Broken(error.to_string().into())));
            });
        }
    }

    /// Returns who has mail, and what the publisher is to wait for.
    pub(super) fn finish(self, ledger: &mut Ledger, strongest: Durability) -> (u64, Option<log::Kept>) {
        let Self { outlet, logs, lots, refused, woken } = self;
        if !refused.is_empty() {
            let outcome = Err(logs.refusal());
            let mut lost = Vec::new();
            for parcel in refused {
                outlet.settle_one(ledger, parcel, &outcome, &mut lost);
            }
            ledger.seen.forget(&lost);
        }
        for (durability, lot) in lots {
            let outlet = Arc::clone(outlet);
            logs.when(durability, move |outcome| outlet.settle(lot, &outcome));
        }
        (woken, logs.finish(strongest))
    }
}
