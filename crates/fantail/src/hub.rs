//! The hub: accepts items, drops repeated ids, renders each item once and hands it to every shard and outpost
//! that has a subscriber, in one order for all. It owns the interest of both in channels and their mailboxes.
//! It knows no socket, no HTTP and no bus.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fantail_proto::{
    duplicate::Seen,
    item::{HttpResponse, Item, ResponseBody},
    log::{Durability, Place},
    render::{MessagePart, Rendered, StreamPart},
};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use changes::Changed;
pub use changes::{Change, Changes};
use pledge::Pledge;
pub use pledge::{Broken, Kept};

pub use crate::channel::{ChannelKey, RealmId};
use crate::{
    config,
    log::{self, Log},
    logging,
    metrics::Process,
};

mod changes;
mod pledge;

/// Shared by all threads. Its lock is held for the time of some hash lookups, by publishers and by a
/// shard whose first subscriber of a channel comes or last one goes; never by a delivery.
#[derive(Debug)]
pub struct Hub {
    ledger: Mutex<Ledger>,
    /// A shard each, then an outpost each.
    mailboxes: Box<[Mailbox]>,
    /// Whose items a publisher's answer waits for: a bit a mailbox.
    keepers: u64,
    mailbox_items: usize,
    room: Notify,
    changed: Notify,
    started: Instant,
    digest: [RandomState; 2],
    log: Arc<Log>,
}

impl Hub {
    /// `shards` is at most [`MAX_SHARDS`]. No channel has a log.
    pub fn new(shards: usize, config: &config::Hub) -> Self {
        Self::with_log(shards, config, Arc::new(Log::new(None, Arc::new(Process::default()))))
    }

    /// The ids that are in the log already have been seen.
    pub fn with_log(shards: usize, config: &config::Hub, log: Arc<Log>) -> Self {
        assert!(shards <= MAX_SHARDS, "configuration allows at most {MAX_SHARDS} shards");
        let ttl = u64::try_from(config.id_ttl.as_millis()).unwrap_or(u64::MAX);
        let keepers = Outpost::ALL.iter().zip(shards..).filter(|(outpost, _)| outpost.keeps());
        let digest = [RandomState::new(), RandomState::new()];
        let mut seen = Seen::new(ttl, config.ids);
        log.ids(|realm, channel, id| seen.note(digest_of(&digest, realm, channel, id), 0));
        Self {
            keepers: keepers.fold(0, |bits, (_, place)| bits | 1 << place),
            ledger: Mutex::new(Ledger { interest: HashMap::new(), seen, changed: None }),
            mailboxes: (0..shards + Outpost::ALL.len()).map(|_| Mailbox::default()).collect(),
            mailbox_items: config.mailbox_items,
            room: Notify::new(),
            changed: Notify::new(),
            started: Instant::now(),
            digest,
            log,
        }
    }

    /// The logs of channels.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// As [`Self::publish_at`], for who wants no more of the items than their acceptance.
    pub fn publish(&self, realm: RealmId, items: Vec<Item>, receipts: bool) -> Result<Accepted, Refused> {
        self.publish_at(realm, items, receipts, None)
    }

    /// Accepts all items or, when a mailbox is full or a log cannot keep them, none. With `receipts`, the answer can be
    /// waited for. When this returns, the items have their places in the order of their channels. `asked` is the least
    /// durability that the publisher wants; none if nobody answers it, and then no log refuses an item.
    pub fn publish_at(
        &self,
        realm: RealmId,
        items: Vec<Item>,
        receipts: bool,
        asked: Option<Durability>,
    ) -> Result<Accepted, Refused> {
        let mut logged = self.log.prepare(realm, &items, asked)?;
        let durability = logged.durability();
        let (ballot, answer) = Ballot::new(items.len(), receipts);
        let (mut woken, mut duplicates) = (0u64, 0);
        let mut pledge = None;
        let on_disk;
        let said = logging::says_channels();
        let mut unheard = Vec::new();
        {
            let mut ledger = self.ledger.lock();
            let fits = items.iter().all(|item| {
                let shards = ledger.interest.get(&(realm, item.channel.as_str())).copied().unwrap_or(0);
                each(shards).all(|shard| self.mailboxes[shard].has_room(items.len(), self.mailbox_items))
            });
            if !fits {
                return Err(Refused::Full(items));
            }
            let now = self.now_ms();
            let mut logs = logged.open();
            for (slot, item) in items.into_iter().enumerate() {
                if let Some(id) = &item.id {
                    let digest = self.digest(realm, &item.channel, id);
                    if ledger.seen.contains(digest, now) {
                        ballot.add(slot, Receipt { duplicate: true, ..Receipt::default() });
                        duplicates += 1;
                        continue;
                    }
                    ledger.seen.note(digest, now);
                }
                let place = logs.append(slot, &item.channel);
                let shards = ledger.interest.get(&(realm, item.channel.as_str())).copied().unwrap_or(0);
                if shards == 0 {
                    unheard.extend(said.then_some(item.channel));
                    continue;
                }
                woken |= shards;
                let pledge = match shards & self.keepers {
                    0 => None,
                    keepers => {
                        let (pledge, _) = pledge.get_or_insert_with(Pledge::new);
                        each(keepers).for_each(|_| pledge.expect());
                        Some(Arc::clone(pledge))
                    }
                };
                let delivery = Arc::new(Delivery::new(realm, item, place, (&ballot, slot), pledge));
                for shard in each(shards) {
                    self.mailboxes[shard].push(Arc::clone(&delivery));
                }
            }
            // A repeated item waits, too: the first may not be on disk yet.
            on_disk = logs.finish();
        }
        each(woken).for_each(|shard| self.mailboxes[shard].mail.notify_one());
        unheard.iter().for_each(|channel| logging::published(channel, 0));
        let kept = pledge.map(|(pledge, kept)| {
            pledge.settle(Ok(()));
            kept
        });
        Ok(Accepted { duplicates, receipts: answer.map(Receipts), kept, durability, on_disk })
    }

    /// Like [`Hub::publish`], but waits for room, at most `patience`.
    pub async fn publish_within(
        &self,
        realm: RealmId,
        mut items: Vec<Item>,
        receipts: bool,
        asked: Option<Durability>,
        patience: Duration,
    ) -> Result<Accepted, Refused> {
        let deadline = Instant::now() + patience;
        loop {
            let mut room = pin!(self.room.notified());
            // Before asking: room that is made in between then wakes us.
            room.as_mut().enable();
            items = match self.publish_at(realm, items, receipts, asked) {
                Err(Refused::Full(items)) => items,
                outcome => return outcome,
            };
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(Refused::Full(items));
            }
        }
    }

    /// Lets an item be published again whose publisher was told that it is not kept.
    pub fn forget(&self, realm: RealmId, channel: &str, id: &str) {
        let digest = self.digest(realm, channel, id);
        self.ledger.lock().seen.forget(digest);
    }

    /// Replays every held long-poll to its origin, a few at a time (spec 5.2, `/recover`).
    pub fn recover(&self) {
        for mailbox in &self.mailboxes {
            mailbox.queue.lock().recover = true;
            mailbox.mail.notify_one();
        }
    }

    /// The place of an outpost among the shards: what [`Hub::join`], [`Hub::leave`], [`Hub::mail`] and [`Hub::take`]
    /// know it by.
    pub fn place(&self, outpost: Outpost) -> usize {
        self.mailboxes.len() - Outpost::ALL.len() + outpost as usize
    }

    /// From now on `shard` gets the items of this channel: to be called before a client can know that
    /// it is subscribed.
    pub fn join(&self, shard: usize, realm: RealmId, channel: &str) {
        let mut ledger = self.ledger.lock();
        match ledger.interest.get_mut(&(realm, channel)) {
            Some(shards) => *shards |= 1 << shard,
            None => {
                ledger.interest.insert(ChannelKey { realm, name: channel.into() }, 1 << shard);
                self.note(&mut ledger, realm, channel, false);
            }
        }
    }

    /// `poll`: the last subscriber here was a long-poll, whose client may be about to ask again.
    pub fn leave(&self, shard: usize, realm: RealmId, channel: &str, poll: bool) {
        let mut ledger = self.ledger.lock();
        let key = &(realm, channel);
        if let Some(shards) = ledger.interest.get_mut(key) {
            *shards &= !(1 << shard);
            if *shards == 0 {
                ledger.interest.remove(key);
                self.note(&mut ledger, realm, channel, poll);
            }
        }
    }

    /// From now on, [`Self::changes`] tells which channels of the realm get their first subscriber or lose their last.
    pub fn follow(&self, realm: RealmId) {
        self.ledger.lock().changed = Some(Changed::new(realm));
    }

    /// What has changed since the last call, when there is something; for one who follows. Only the last state of a
    /// channel is told.
    pub async fn changes(&self) -> Changes {
        loop {
            self.changed.notified().await;
            let mut ledger = self.ledger.lock();
            let Ledger { interest, changed, .. } = &mut *ledger;
            if let Some(changes) = changed.as_mut().and_then(|changed| changed.take(interest)) {
                return changes;
            }
        }
    }

    /// Channels with a subscriber anywhere.
    pub fn channels(&self) -> usize {
        self.ledger.lock().interest.len()
    }

    /// Resolves when there is mail for `shard`.
    pub async fn mail(&self, shard: usize) {
        self.mailboxes[shard].mail.notified().await;
    }

    /// Moves the next batch of `shard` into `batch`; there is mail again if that was not all. A batch is
    /// so small that, coalesced, it does not overflow the queue of a connection that reads. True when
    /// somebody asked for [`Hub::recover`].
    pub fn take(&self, shard: usize, batch: &mut Vec<Arc<Delivery>>) -> bool {
        let recover = self.mailboxes[shard].take(batch);
        if !batch.is_empty() {
            self.room.notify_waiters();
        }
        recover
    }

    fn note(&self, ledger: &mut Ledger, realm: RealmId, channel: &str, poll: bool) {
        if let Some(changed) = &mut ledger.changed
            && changed.note(realm, channel, poll)
        {
            self.changed.notify_one();
        }
    }

    fn digest(&self, realm: RealmId, channel: &str, id: &str) -> u128 {
        digest_of(&self.digest, realm, channel, id)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Subscribers that are no shard's: they take their items on the control runtime.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outpost {
    Webhooks,
    Xmpp,
}

impl Outpost {
    const ALL: [Self; 2] = [Self::Webhooks, Self::Xmpp];

    /// Whether a publisher is answered only when this one has said [`Delivery::kept`].
    const fn keeps(self) -> bool {
        matches!(self, Self::Webhooks)
    }
}

/// One item on its way to one or more shards. Dropping the last copy completes its receipt.
#[derive(Debug)]
pub struct Delivery {
    pub realm: RealmId,
    pub channel: Box<str>,
    pub item: Rendered,
    /// In the log of its channel, if that has one.
    pub place: Option<Place>,
    bytes: usize,
    slot: usize,
    ballot: Option<Arc<Ballot>>,
    pledge: Option<Arc<Pledge>>,
    /// On the shards that have delivered.
    receivers: AtomicU64,
}

impl Delivery {
    fn new(
        realm: RealmId,
        item: Item,
        place: Option<Place>,
        (ballot, slot): (&Arc<Ballot>, usize),
        pledge: Option<Arc<Pledge>>,
    ) -> Self {
        let channel = item.channel.as_str().into();
        let item = Rendered::from(item);
        let ballot = ballot.answer.is_some().then(|| Arc::clone(ballot));
        let bytes = weight(&item);
        Self { realm, channel, bytes, item, place, slot, ballot, pledge, receivers: AtomicU64::new(0) }
    }

    /// To be said once by each outpost that keeps items: it has kept this one, or cannot.
    pub fn kept(&self, outcome: Result<(), Broken>) {
        if let Some(pledge) = &self.pledge {
            pledge.settle(outcome);
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

impl Drop for Delivery {
    fn drop(&mut self) {
        logging::published(&self.channel, *self.receivers.get_mut());
    }
}

/// What became of one published item, summed over all shards.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Receipt {
    /// The id was seen within `hub.id_ttl`; nothing else happened.
    pub duplicate: bool,
    /// Written whole to the socket (or answered, for a long-poll).
    pub delivered: u64,
    /// Waits, whole or in part, in the connection's queue.
    pub queued: u64,
    pub filtered: u64,
    /// The client left before the item was written.
    pub dropped_gone: u64,
    /// The queue was over its limit; the connection was closed.
    pub dropped_overflow: u64,
    /// A filter of the subscriber's could not be applied, or the content was written for others.
    pub dropped_filter: u64,
}

impl Receipt {
    /// Subscribers that it was meant for.
    fn receivers(&self) -> u64 {
        self.delivered + self.queued + self.filtered + self.dropped_gone + self.dropped_overflow
    }
}

/// A publish that the hub has taken.
#[derive(Debug)]
pub struct Accepted {
    /// Items whose id was seen within `hub.id_ttl`; nothing else happened to them.
    pub duplicates: usize,
    /// If they were asked for.
    pub receipts: Option<Receipts>,
    /// What to wait for before the publisher is answered.
    pub kept: Option<Kept>,
    /// This, too: the logs have the items as was promised.
    pub on_disk: Option<log::Kept>,
    /// What can then be said of all of them.
    pub durability: Durability,
}

/// Nothing of the request was accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The items come back.
    #[error("a mailbox is full")]
    Full(Vec<Item>),
    #[error(transparent)]
    Log(#[from] log::Refused),
}

/// Receipts of one publish, in the order of its items; ready when every shard has delivered.
#[derive(Debug)]
pub struct Receipts(oneshot::Receiver<Vec<Receipt>>);

impl Receipts {
    /// `None` when the process stops first.
    pub async fn wait(self) -> Option<Vec<Receipt>> {
        self.0.await.ok()
    }
}

#[derive(Debug)]
struct Ledger {
    /// Which shards have a subscriber: bit N for shard N, never 0.
    interest: HashMap<ChannelKey, u64>,
    seen: Seen,
    /// Only while somebody follows.
    changed: Option<Changed>,
}

/// What waits for one shard.
#[derive(Debug, Default)]
struct Mailbox {
    queue: Mutex<Queue>,
    mail: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    deliveries: VecDeque<Arc<Delivery>>,
    bytes: usize,
    recover: bool,
}

impl Mailbox {
    /// A request that is larger than a whole mailbox is taken when the mailbox is empty.
    fn has_room(&self, items: usize, limit: usize) -> bool {
        let queue = self.queue.lock();
        queue.deliveries.is_empty()
            || (queue.deliveries.len() + items <= limit && queue.bytes < MAILBOX_BYTES)
    }

    fn push(&self, delivery: Arc<Delivery>) {
        let mut queue = self.queue.lock();
        queue.bytes += delivery.bytes;
        queue.deliveries.push_back(delivery);
    }

    fn take(&self, batch: &mut Vec<Arc<Delivery>>) -> bool {
        let mut queue = self.queue.lock();
        let mut bytes = 0;
        while batch.len() < BATCH_ITEMS && bytes < BATCH_BYTES {
            let Some(delivery) = queue.deliveries.pop_front() else { break };
            bytes += delivery.bytes;
            batch.push(delivery);
        }
        queue.bytes -= bytes;
        if !queue.deliveries.is_empty() {
            self.mail.notify_one();
        }
        std::mem::take(&mut queue.recover)
    }
}

/// The receipts of one publish while shards deliver it; sent when the last delivery is dropped.
#[derive(Debug)]
struct Ballot {
    receipts: Mutex<Vec<Receipt>>,
    /// Taken on drop.
    answer: Option<oneshot::Sender<Vec<Receipt>>>,
}

impl Ballot {
    fn new(items: usize, wanted: bool) -> (Arc<Self>, Option<oneshot::Receiver<Vec<Receipt>>>) {
        if !wanted {
            return (Arc::new(Self { receipts: Mutex::default(), answer: None }), None);
        }
        let (sender, receiver) = oneshot::channel();
        let receipts = Mutex::new(vec![Receipt::default(); items]);
        (Arc::new(Self { receipts, answer: Some(sender) }), Some(receiver))
    }

    fn add(&self, slot: usize, part: Receipt) {
        if let Some(receipt) = self.receipts.lock().get_mut(slot) {
            receipt.duplicate |= part.duplicate;
            receipt.delivered += part.delivered;
            receipt.queued += part.queued;
            receipt.filtered += part.filtered;
            receipt.dropped_gone += part.dropped_gone;
            receipt.dropped_overflow += part.dropped_overflow;
            receipt.dropped_filter += part.dropped_filter;
        }
    }
}

impl Drop for Ballot {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            // The publisher may have gone: then nobody wants the receipts.
            drop(answer.send(std::mem::take(self.receipts.get_mut())));
        }
    }
}

fn digest_of(hashes: &[RandomState; 2], realm: RealmId, channel: &str, id: &str) -> u128 {
    let [high, low] = hashes.each_ref().map(|hash| hash.hash_one((realm, channel, id)));
    u128::from(high) << 64 | u128::from(low)
}

/// What an item holds of a mailbox's bytes.
fn weight(item: &Rendered) -> usize {
    let stream = match &item.stream {
        Some(StreamPart::Send(chunk)) => chunk.framed().len(),
        _ => 0,
    };
    let response = match &item.response {
        Some(HttpResponse::Send(response)) => match &response.body {
            ResponseBody::Whole(body) => body.len(),
            ResponseBody::Patch(_) => 0,
        },
        _ => 0,
    };
    let message = match &item.message {
        Some(MessagePart::Send(message)) => message.plain().len(),
        _ => 0,
    };
    stream.max(response).max(message)
}

fn each(mut shards: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let shard = shards.trailing_zeros();
        shards &= shards.wrapping_sub(1);
        (shard < u64::BITS).then_some(shard as usize)
    })
}

/// Interest is a bit a shard, and one for each outpost.
pub const MAX_SHARDS: usize = config::MAX_SHARDS;
/// What may wait for one shard besides the number of items: 64 of the largest publishes.
const MAILBOX_BYTES: usize = 64 << 20;
/// One batch, coalesced, is at most this and one item more: a quarter of the default `client.queue_bytes`.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ITEMS: usize = 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hub(shards: usize, mailbox_items: usize) -> Hub {
        Hub::new(shards, &config::Hub { id_ttl: Duration::from_mins(1), ids: 100, mailbox_items })
    }

    fn item(channel: &str, id: Option<&str>) -> Item {
        Item { channel: channel.into(), id: id.map(Into::into), ..Item::default() }
    }

    fn taken(hub: &Hub, shard: usize) -> Vec<String> {
        let mut batch = Vec::new();
        hub.take(shard, &mut batch);
        batch.iter().map(|d| format!("{}:{}", d.channel, d.item.id.as_deref().unwrap_or_default())).collect()
    }

    const R: RealmId = RealmId(0);

    #[test]
    fn items_go_to_the_shards_that_joined() {
        let hub = hub(3, 10);
        hub.join(0, R, "a");
        hub.join(2, R, "a");
        hub.join(1, R, "b");
        hub.publish(R, vec![item("a", Some("1")), item("b", None), item("c", None)], false).unwrap();
        assert_eq!(taken(&hub, 0), ["a:1"]);
        assert_eq!(taken(&hub, 1), ["b:"]);
        assert_eq!(taken(&hub, 2), ["a:1"]);
        hub.leave(0, R, "a", false);
        hub.publish(R, vec![item("a", None)], false).unwrap();
        assert!(taken(&hub, 0).is_empty());
        assert_eq!(hub.channels(), 2);
        hub.leave(2, R, "a", false);
        assert_eq!(hub.channels(), 1);
    }

    #[test]
    fn realms_do_not_meet() {
        let hub = hub(1, 10);
        hub.join(0, RealmId(1), "a");
        hub.publish(R, vec![item("a", Some("1"))], false).unwrap();
        assert!(taken(&hub, 0).is_empty());
        hub.publish(RealmId(1), vec![item("a", Some("1"))], false).unwrap();
        assert_eq!(taken(&hub, 0), ["a:1"]);
    }

    #[test]
    fn a_full_mailbox_refuses_the_whole_request_until_there_is_room() {
        let hub = hub(1, 2);
        hub.join(0, R, "a");
        hub.publish(R, vec![item("a", None)], false).unwrap();
        let two = || vec![item("b", Some("1")), item("a", None)];
        let Err(Refused::Full(items)) = hub.publish(R, two(), false) else { panic!("it is full") };
        assert_eq!(items.len(), 2);
        taken(&hub, 0);
        hub.publish(R, two(), false).unwrap();
        assert_eq!(taken(&hub, 0).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_publisher_waits_for_room_and_gives_up() {
        let hub = hub(1, 1);
        hub.join(0, R, "a");
        let publish = || hub.publish_within(R, vec![item("a", None)], false, None, Duration::from_secs(5));
        publish().await.unwrap();
        let make_room = async {
            tokio::time::advance(Duration::from_secs(1)).await;
            taken(&hub, 0)
        };
        assert!(tokio::join!(publish(), make_room).0.unwrap().receipts.is_none());
        assert!(publish().await.is_err());
    }

    #[tokio::test]
    async fn a_publisher_waits_for_who_keeps_its_items() {
        let hub = hub(1, 10);
        let (webhooks, xmpp) = (hub.place(Outpost::Webhooks), hub.place(Outpost::Xmpp));
        hub.join(0, R, "a");
        hub.join(xmpp, R, "a");
        assert!(hub.publish(R, vec![item("a", None)], false).unwrap().kept.is_none());
        hub.join(webhooks, R, "a");
        hub.join(webhooks, R, "b");
        let publish = || hub.publish(R, vec![item("a", None), item("b", None)], false).unwrap().kept.unwrap();
        let settle = |outcomes: [Result<(), Broken>; 2]| {
            let mut batch = Vec::new();
            hub.take(webhooks, &mut batch);
            batch.iter().zip(outcomes).for_each(|(delivery, outcome)| delivery.kept(outcome));
        };
        let mut kept = publish();
        assert!(tokio::time::timeout(Duration::ZERO, &mut kept.0).await.is_err());
        settle([Ok(()), Ok(())]);
        assert_eq!(kept.wait().await, Ok(()));
        let broken = Broken("disk full".into());
        let kept = publish();
        settle([Err(broken.clone()), Ok(())]);
        assert_eq!(kept.wait().await, Err(broken));
        let kept = publish();
        drop(hub);
        assert!(kept.wait().await.is_err());
    }

    #[tokio::test]
    async fn receipts_are_ready_when_every_shard_has_dropped_the_delivery() {
        let hub = hub(2, 10);
        hub.join(0, R, "a");
        hub.join(1, R, "a");
        let items = vec![item("a", Some("1")), item("a", Some("1"))];
        let mut receipts = hub.publish(R, items, true).unwrap().receipts.unwrap();
        for shard in 0..2 {
            let mut batch = Vec::new();
            hub.take(shard, &mut batch);
            batch[0].report(Receipt { delivered: 2, ..Receipt::default() });
            assert!(receipts.0.try_recv().is_err());
        }
        let [first, second] = receipts.wait().await.unwrap()[..] else { panic!("two items, two receipts") };
        assert_eq!((first.delivered, first.duplicate), (4, false));
        assert_eq!((second.delivered, second.duplicate), (0, true));
    }
}
