//! The hub: accepts items, drops repeated ids, lets early ones wait, renders each item once and hands it to every
//! shard and outpost that has a subscriber, in one order for all. It owns the interest of both in channels and their
//! mailboxes. It knows no socket, no HTTP and no bus.

use std::{
    hash::{BuildHasher, RandomState},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use fantail_proto::{duplicate::Seen, item::Item, log::Durability};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

pub use answer::{Accepted, Refused};
use changes::Changed;
pub use changes::{Change, Changes};
pub use delivery::Delivery;
use feed::Feed;
pub use feed::{Cursor, Turn};
pub use inherited::INEXACT_MS;
use inherited::Inherited;
pub use interest::EarlyCounts;
use interest::{Interest, Looks};
use mailbox::Mailbox;
use outlet::{Dispatch, Outlet};
pub use pledge::{Broken, Kept};
use receipt::Ballot;
pub use receipt::{Order, Receipt, Receipts};
use round::{Fate, Round};
use unkept::Unkept;

pub use crate::channel::{ChannelKey, RealmId};
use crate::{
    channel::ByName,
    config,
    log::Log,
    logging,
    metrics::Process,
    stats::{Stats, Told},
};

mod answer;
mod changes;
mod delivery;
mod early;
mod feed;
mod inherited;
mod interest;
mod mailbox;
mod outlet;
mod pledge;
mod receipt;
mod round;
mod unkept;

/// Shared by all threads. Its lock is held for the time of some hash lookups, by publishers and by a
/// shard whose first subscriber of a channel comes or last one goes; never by a delivery.
#[derive(Debug)]
pub struct Hub {
    outlet: Arc<Outlet>,
    mailbox_items: usize,
    changed: Notify,
    turned: Notify,
    /// Something is over sooner than [`Hub::keep_time`] would look.
    sooner: Notify,
    order_wait_ms: u64,
    linger_ms: u64,
    early: EarlyCounts,
    started: Instant,
    /// What its clock says at the start: ids of logs have times before that.
    start_ms: u64,
    digest: [RandomState; 2],
    log: Arc<Log>,
    /// Of the default realm's items, if anybody watches.
    stats: Option<Arc<Stats>>,
}

impl Hub {
    /// `shards` is at most [`MAX_SHARDS`]. No channel has a log.
    pub fn new(shards: usize, config: &config::Hub) -> Self {
        Self::with_log(shards, config, Arc::new(Log::new(None, Arc::new(Process::default()))))
    }

    /// The ids that are in the log already have been seen, when their items were published.
    pub fn with_log(shards: usize, config: &config::Hub, log: Arc<Log>) -> Self {
        assert!(shards <= MAX_SHARDS, "configuration allows at most {MAX_SHARDS} shards");
        let keepers = Outpost::ALL.iter().zip(shards..).filter(|(outpost, _)| outpost.keeps());
        let digest = [RandomState::new(), RandomState::new()];
        let window_ms = milliseconds(config.id_ttl).min(MAX_WINDOW_MS);
        let mut seen = Seen::new(window_ms, config.ids);
        let digest_of = |realm, channel: &str, id: &str| digest_of(&digest, realm, channel, id);
        let inherited = Inherited::note(&log, &mut seen, (window_ms, config.ids), digest_of);
        let outlet = Outlet {
            keepers: keepers.fold(0, |bits, (_, place)| bits | 1 << place),
            ledger: Mutex::new(Ledger {
                interest: ByName::default(),
                seen,
                changed: None,
                feeds: HashMap::new(),
                looks: Looks::default(),
                waiting: Waiting::default(),
                held: Waiting::default(),
                unkept: Unkept::default(),
                inherited,
                lingering: 0,
            }),
            mailboxes: (0..shards + Outpost::ALL.len()).map(|_| Mailbox::default()).collect(),
            room: Notify::new(),
        };
        Self {
            outlet: Arc::new(outlet),
            mailbox_items: config.mailbox_items,
            changed: Notify::new(),
            turned: Notify::new(),
            sooner: Notify::new(),
            order_wait_ms: milliseconds(config.order_wait),
            linger_ms: milliseconds(config.linger),
            early: EarlyCounts::default(),
            started: Instant::now(),
            start_ms: window_ms,
            digest,
            log,
            stats: None,
        }
    }

    /// From now on items are noted for who watches.
    #[must_use]
    pub fn watched(self, stats: Option<Arc<Stats>>) -> Self {
        Self { stats, ..self }
    }

    /// Notes an item that is accepted, for who watches.
    fn told(&self, realm: RealmId, item: &Item) -> Option<Box<Told>> {
        let stats = self.stats.as_ref().filter(|_| realm == RealmId::default())?;
        Some(stats.accept(item))
    }

    /// The logs of channels.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// As [`Self::publish_at`], for who wants no more of the items than their acceptance.
    pub fn publish(&self, realm: RealmId, items: Vec<Item>, receipts: bool) -> Result<Accepted, Refused> {
        self.publish_at(realm, items, receipts, Durability::Accepted)
    }

    /// Accepts all items or, when a mailbox is full or a log cannot keep them, none. With `receipts`, the answer can be
    /// waited for. When this returns, the items have their places in the order of their channels. `least` is the durability
    /// that the publisher wants, if their logs do not promise more.
    pub fn publish_at(
        &self,
        realm: RealmId,
        items: Vec<Item>,
        receipts: bool,
        least: Durability,
    ) -> Result<Accepted, Refused> {
        let mut logged = match self.log.prepare(realm, &items, least) {
            Ok(logged) => logged,
            Err(refused) => return Err(Refused::Log(refused, items)),
        };
        let (ballot, answer) = Ballot::new(items.len(), receipts);
        let mut pledge = None;
        let dispatch = self.dispatch();
        let mut round = Round {
            hub: self,
            realm,
            ballot: &ballot,
            pledge: &mut pledge,
            dispatch,
            lacks: false,
            weakest: logged.durability(),
        };
        let (mut duplicates, mut dropped) = (0, 0);
        let said = logging::says_channels();
        let mut unheard = Vec::new();
        let mut ledger = self.outlet.ledger.lock();
        let fits = items.iter().all(|item| {
            let shards = ledger.interest.get(&(realm, item.channel.as_str())).map_or(0, |known| known.shards);
            each(shards).all(|shard| self.outlet.mailboxes[shard].has_room(items.len(), self.mailbox_items))
        });
        // What waits for the disk comes into mailboxes later.
        let held = &ledger.held;
        let waits = logged.waits() && held.items > 0;
        if !fits || waits && (held.items + items.len() > self.mailbox_items || held.bytes >= MAX_HELD_BYTES) {
            return Err(Refused::Full(items));
        }
        if let Err(refused) = round.dispatch.admit(&logged) {
            return Err(Refused::Log(refused, items));
        }
        let now = self.now_ms();
        ledger.inherited.expire(now);
        for (slot, item) in items.into_iter().enumerate() {
            let id = item.id.as_ref().map(|id| self.digest(realm, &item.channel, id));
            if id.is_some_and(|id| ledger.seen.contains(id, now)) {
                ballot.add(slot, Receipt { duplicate: true, ..Receipt::default() });
                duplicates += 1;
                round.repeat(&mut ledger, &item, id, logged.take(slot));
                if let Some(id) = id {
                    round.keep_again(&mut ledger, slot, item, id);
                }
                continue;
            }
            match round.take(&mut ledger, (slot, logged.take(slot)), item, id, now) {
                Fate::Sent => {}
                Fate::Unheard(channel) => unheard.extend(said.then_some(channel)),
                Fate::Dropped => {
                    ballot.add(slot, Receipt { order: Order::Dropped, ..Receipt::default() });
                    dropped += 1;
                    // It may be published again.
                    continue;
                }
            }
            id.into_iter().for_each(|id| ledger.seen.note(id, now));
        }
        let Round { dispatch, lacks, weakest: durability, .. } = round;
        // A repeated item waits, too: the first may not be on disk yet.
        let (woken, on_disk) = dispatch.finish(&mut ledger, logged.strongest());
        ledger.sweep_unkept(now);
        drop(ledger);
        self.outlet.wake(woken);
        unheard.iter().for_each(|channel| logging::published(channel, 0));
        let kept = pledge.map(|(pledge, kept)| {
            pledge.settle(&Ok(()));
            kept
        });
        // What else is of this publish is kept all the same.
        let kept = if lacks { Some(Kept::broken("the log does not have it")) } else { kept };
        Ok(Accepted { duplicates, dropped, receipts: answer.map(Receipts), kept, durability, on_disk })
    }

    /// Like [`Hub::publish`], but waits for room, at most `patience`.
    pub async fn publish_within(
        &self,
        realm: RealmId,
        mut items: Vec<Item>,
        receipts: bool,
        least: Durability,
        patience: Duration,
    ) -> Result<Accepted, Refused> {
        let deadline = Instant::now() + patience;
        loop {
            let mut room = pin!(self.outlet.room.notified());
            // Before asking: room that is made in between then wakes us.
            room.as_mut().enable();
            items = match self.publish_at(realm, items, receipts, least) {
                Err(Refused::Full(items)) => items,
                outcome => return outcome,
            };
            if timeout_at(deadline, room).await.is_err() {
                return Err(Refused::Full(items));
            }
        }
    }

    /// Asks the origins of all holds of a realm again, a few at a time; no order of before counts (spec 5.2, `/recover`).
    pub fn recover(&self, realm: RealmId) {
        for (key, known) in &mut self.outlet.ledger.lock().interest {
            if key.realm == realm {
                known.forget();
            }
        }
        self.outlet.mailboxes.iter().for_each(|mailbox| mailbox.recover(realm));
    }

    /// The place of an outpost among the shards: what [`Hub::join`], [`Hub::leave`], [`Hub::mail`] and [`Hub::take`]
    /// know it by.
    pub fn place(&self, outpost: Outpost) -> usize {
        self.outlet.mailboxes.len() - Outpost::ALL.len() + outpost as usize
    }

    /// From now on `shard` gets the items of this channel: to be called before a client can know that
    /// it is subscribed. Says for how long yet the channel counts as having got its first subscription
    /// (spec 4.3), if it does.
    pub fn join(&self, shard: usize, realm: RealmId, channel: &str) -> Option<Duration> {
        let now = self.now_ms();
        let mut ledger = self.outlet.ledger.lock();
        let Ledger { interest, lingering, .. } = &mut *ledger;
        let left_ms = match interest.get_mut(&(realm, channel)) {
            Some(known) => {
                *lingering -= usize::from(known.lingers());
                known.shards |= 1 << shard;
                let is_first = !known.is_heard();
                let left_ms = (known.hear(now) + FIRST_MS).saturating_sub(now);
                if is_first {
                    self.note(&mut ledger, realm, channel);
                }
                left_ms
            }
            None => {
                interest.insert(ChannelKey { realm, name: channel.into() }, Interest::new(1 << shard, now));
                self.note(&mut ledger, realm, channel);
                FIRST_MS
            }
        };
        (left_ms > 0).then(|| Duration::from_millis(left_ms))
    }

    /// `polled`: so long ago the last long-poll here left, whose client may be about to ask again: meanwhile the channel
    /// keeps its order, whoever leaves last. It does so, too, while items wait for their predecessors that its log is to have.
    pub fn leave(&self, shard: usize, realm: RealmId, channel: &str, polled: Option<Duration>) {
        let mut dispatch = self.dispatch();
        let mut ledger = self.outlet.ledger.lock();
        let Ledger { interest, lingering, looks, .. } = &mut *ledger;
        let Some(known) = interest.get_mut(&(realm, channel)) else { return };
        if known.shards & (1 << shard) == 0 {
            return;
        }
        known.shards &= !(1 << shard);
        let now_ms = self.now_ms();
        if let Some(polled) = polled {
            known.keep_until((now_ms + self.linger_ms).saturating_sub(milliseconds(polled)));
        }
        if !known.lingers() {
            return;
        }
        let (may, heard) = (*lingering < MAX_LINGERING, known.is_heard());
        if may && let Some(until_ms) = known.linger(now_ms) {
            *lingering += 1;
            self.look_at(looks, realm, channel, known, until_ms);
        } else if may && known.linger_unheard() {
            *lingering += 1;
            if heard {
                self.note(&mut ledger, realm, channel);
            }
        } else {
            self.close(&mut ledger, &mut dispatch, realm, channel);
            dispatch.finish(&mut ledger, Durability::Accepted);
        }
    }

    /// Whether the item that came last on a channel is known to be another than this: the origin of what is held then is
    /// asked again.
    pub fn contradicts(&self, realm: RealmId, channel: &str, prev_id: &str) -> bool {
        let digest = self.digest(realm, channel, prev_id);
        let ledger = self.outlet.ledger.lock();
        let last = ledger.interest.get(&(realm, channel)).and_then(Interest::last);
        last.is_some_and(|last| last != digest)
    }

    /// An origin insists that another item came last: until the next one no order counts.
    pub fn forget(&self, realm: RealmId, channel: &str) {
        if let Some(known) = self.outlet.ledger.lock().interest.get_mut(&(realm, channel)) {
            known.forget();
        }
    }

    /// Lets items go that have waited for their predecessors long enough, and channels that nobody has come back to.
    /// Never returns.
    pub async fn keep_time(&self) {
        loop {
            let mut sooner = pin!(self.sooner.notified());
            sooner.as_mut().enable();
            match self.look(self.now_ms()) {
                Some(due_ms) => {
                    let due = Duration::from_millis(due_ms.saturating_sub(self.start_ms));
                    _ = timeout_at(self.started + due, sooner).await;
                }
                None => sooner.await,
            }
        }
    }

    /// How long a publish may take longer because an item of it is early.
    pub fn order_wait(&self) -> Duration {
        Duration::from_millis(self.order_wait_ms)
    }

    /// What became of early items so far.
    pub const fn early(&self) -> &EarlyCounts {
        &self.early
    }

    /// Items that wait for their predecessors.
    pub fn waiting(&self) -> usize {
        self.outlet.ledger.lock().waiting.items
    }

    /// From now on, [`Self::changes`] tells which channels of the realm get their first subscriber or lose their last.
    pub fn follow(&self, realm: RealmId) {
        self.outlet.ledger.lock().changed = Some(Changed::new(realm));
    }

    /// What has changed since the last call, when there is something; for one who follows. Only the last state of a
    /// channel is told.
    pub async fn changes(&self) -> Changes {
        loop {
            self.changed.notified().await;
            let mut ledger = self.outlet.ledger.lock();
            let Ledger { interest, changed, .. } = &mut *ledger;
            if let Some(changes) = changed.as_mut().and_then(|changed| changed.take(interest)) {
                return changes;
            }
        }
    }

    /// Channels with a subscriber anywhere.
    pub fn channels(&self) -> usize {
        let ledger = self.outlet.ledger.lock();
        ledger.interest.len() - ledger.lingering
    }

    /// Resolves when there is mail for `shard`.
    pub async fn mail(&self, shard: usize) {
        self.outlet.mailboxes[shard].mail.notified().await;
    }

    /// Moves the next batch of `shard` into `batch`; there is mail again if that was not all. A batch is
    /// so small that, coalesced, it does not overflow the queue of a connection that reads. Says for which
    /// realms somebody asked for [`Hub::recover`].
    pub fn take(&self, shard: usize, batch: &mut Vec<Arc<Delivery>>) -> Vec<RealmId> {
        let recover = self.outlet.mailboxes[shard].take(batch);
        if !batch.is_empty() {
            self.outlet.room.notify_waiters();
        }
        recover
    }

    /// Does what is due, within a limit, and says when more is.
    fn look(&self, now_ms: u64) -> Option<u64> {
        let mut dispatch = self.dispatch();
        let mut ledger = self.outlet.ledger.lock();
        for _ in 0..LOOKS {
            let Ledger { interest, looks, waiting, held, .. } = &mut *ledger;
            let Some((realm, name)) = looks.pop(now_ms, interest) else { break };
            let Some(known) = interest.get_mut(&(realm, &*name)) else { continue };
            while let Some(early) = known.expire(now_ms) {
                self.release((waiting, held), &mut dispatch, early, known.shards, Order::Late);
                while let Some(early) = known.follow() {
                    self.release((waiting, held), &mut dispatch, early, known.shards, Order::Held);
                }
            }
            if known.is_over(now_ms) {
                ledger.lingering -= 1;
                self.close(&mut ledger, &mut dispatch, realm, &name);
            } else if let Some(due_ms) = known.next_ms() {
                self.look_at(looks, realm, &name, known, due_ms);
            }
        }
        let next = ledger.looks.next_ms();
        let (woken, _) = dispatch.finish(&mut ledger, Durability::Accepted);
        drop(ledger);
        self.outlet.wake(woken);
        next
    }

    /// Sees to it that a channel is looked at by then.
    fn look_at(&self, looks: &mut Looks, realm: RealmId, channel: &str, known: &mut Interest, due_ms: u64) {
        if looks.plan(realm, channel, known, due_ms) {
            self.sooner.notify_one();
        }
    }

    /// Forgets a channel. Nobody is left to give to what waits for it, but for its log.
    fn close(&self, ledger: &mut Ledger, dispatch: &mut Dispatch<'_>, realm: RealmId, channel: &str) {
        let Some(mut known) = ledger.interest.remove(&(realm, channel)) else { return };
        let is_heard = known.is_heard();
        while let Some(early) = known.follow().or_else(|| known.expire(u64::MAX)) {
            if early.record.is_some() {
                let Ledger { waiting, held, .. } = &mut *ledger;
                self.release((waiting, held), dispatch, early, 0, Order::Late);
                continue;
            }
            ledger.waiting.remove(early.delivery.bytes);
            self.early.dropped.fetch_add(1, Relaxed);
            early.delivery.say(Order::Dropped);
        }
        if is_heard {
            self.note(ledger, realm, channel);
        }
    }

    fn dispatch(&self) -> Dispatch<'_> {
        Dispatch::new(&self.outlet, self.log.open())
    }

    fn note(&self, ledger: &mut Ledger, realm: RealmId, channel: &str) {
        if let Some(changed) = &mut ledger.changed
            && changed.note(realm, channel)
        {
            self.changed.notify_one();
        }
        let subscribed = ledger.interest.get(&(realm, channel)).is_some_and(Interest::is_heard);
        if let Some(feed) = ledger.feeds.get_mut(&realm) {
            feed.note(channel, subscribed);
            self.turned.notify_waiters();
        }
    }

    fn digest(&self, realm: RealmId, channel: &str, id: &str) -> u128 {
        digest_of(&self.digest, realm, channel, id)
    }

    fn now_ms(&self) -> u64 {
        milliseconds(self.started.elapsed()).saturating_add(self.start_ms)
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

#[derive(Debug)]
struct Ledger {
    interest: ByName<ChannelKey, Interest>,
    seen: Seen,
    /// Only while somebody follows.
    changed: Option<Changed>,
    /// Of realms for which somebody has asked.
    feeds: HashMap<RealmId, Feed>,
    looks: Looks,
    waiting: Waiting,
    /// What waits for its log to keep it.
    held: Waiting,
    /// What its keepers have not kept.
    unkept: Unkept,
    /// What its logs have, and those who keep items perhaps not.
    inherited: Inherited,
    /// Channels that have no subscriber and keep their order for a while.
    lingering: usize,
}

/// Items of all channels that are still to be delivered.
#[derive(Debug, Default)]
struct Waiting {
    items: usize,
    bytes: usize,
}

impl Waiting {
    const fn has_room(&self) -> bool {
        self.items < MAX_WAITING && self.bytes < MAX_WAITING_BYTES
    }

    const fn add(&mut self, bytes: usize) {
        self.items += 1;
        self.bytes += bytes;
    }

    const fn remove(&mut self, bytes: usize) {
        self.items -= 1;
        self.bytes -= bytes;
    }
}

fn digest_of(hashes: &[RandomState; 2], realm: RealmId, channel: &str, id: &str) -> u128 {
    let [high, low] = hashes.each_ref().map(|hash| hash.hash_one((realm, channel, id)));
    u128::from(high) << 64 | u128::from(low)
}

fn each(mut shards: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let shard = shards.trailing_zeros();
        shards &= shards.wrapping_sub(1);
        (shard < u64::BITS).then_some(shard as usize)
    })
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Ids are not remembered for longer: 30 years.
const MAX_WINDOW_MS: u64 = 1 << 40;
/// For so long after its first subscription a channel's holds are to be asked about again (spec 4.3).
const FIRST_MS: u64 = 1000;
/// Channels that may keep their order without a subscriber, some hundred bytes each.
const MAX_LINGERING: usize = 200_000;
/// Early items of all channels together, besides the limit of each.
const MAX_WAITING: usize = 65_536;
const MAX_WAITING_BYTES: usize = 64 << 20;
/// What waits for the disk before it is delivered, besides `hub.mailbox_items`: a mailbox's worth.
const MAX_HELD_BYTES: usize = 64 << 20;
/// Channels that are looked at under one lock.
const LOOKS: usize = 256;
/// Interest is a bit a shard, and one for each outpost.
pub const MAX_SHARDS: usize = config::MAX_SHARDS;
#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fantail_proto::{
        item::HttpRequest,
        log::{Limits, Pattern},
    };
    use http::Method;

    use super::*;

    fn settings() -> config::Hub {
        config::Hub {
            id_ttl: Duration::from_mins(1),
            ids: 100,
            order_wait: Duration::from_secs(5),
            linger: Duration::from_mins(1),
            mailbox_items: 1000,
            id_bytes: 1024,
            meta_bytes: 8192,
        }
    }

    fn hub(shards: usize, mailbox_items: usize) -> Hub {
        Hub::new(shards, &config::Hub { mailbox_items, ..settings() })
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
        hub.leave(0, R, "a", None);
        hub.publish(R, vec![item("a", None)], false).unwrap();
        assert!(taken(&hub, 0).is_empty());
        assert_eq!(hub.channels(), 2);
        hub.leave(2, R, "a", None);
        assert_eq!(hub.channels(), 1);
    }

    /// What webhooks say fills a mailbox as anything else does.
    #[test]
    fn a_mailbox_is_full_by_bytes() {
        let hub = hub(1, 1000);
        hub.join(hub.place(Outpost::Webhooks), R, "a");
        let large = || {
            let body = vec![0; 40 << 20].into();
            let request = HttpRequest { method: Method::POST, headers: Vec::new(), body };
            vec![Item { request: Some(request), ..item("a", None) }]
        };
        hub.publish(R, large(), false).unwrap();
        hub.publish(R, large(), false).unwrap();
        assert!(matches!(hub.publish(R, large(), false), Err(Refused::Full(_))));
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
        let publish = || {
            hub.publish_within(R, vec![item("a", None)], false, Durability::Accepted, Duration::from_secs(5))
        };
        publish().await.unwrap();
        let make_room = async {
            tokio::time::advance(Duration::from_secs(1)).await;
            taken(&hub, 0)
        };
        assert!(tokio::join!(publish(), make_room).0.unwrap().receipts.is_none());
        assert!(publish().await.is_err());
    }

    fn after(channel: &str, id: &str, prev_id: &str) -> Item {
        Item { prev_id: Some(prev_id.into()), ..item(channel, Some(id)) }
    }

    #[test]
    fn early_items_wait_for_their_predecessors() {
        let hub = hub(1, 1000);
        hub.join(0, R, "c");
        let publish = |items| hub.publish(R, items, false).unwrap();
        publish(vec![item("c", Some("a")), after("c", "d", "c"), after("c", "c", "b")]);
        assert_eq!((taken(&hub, 0), hub.waiting()), (vec!["c:a".into()], 2));
        assert_eq!(publish(vec![after("c", "x", "c")]).dropped, 1, "another waits for the same");
        assert_eq!(publish(vec![Item { no_seq: true, ..after("c", "z", "y") }]).dropped, 0);
        publish(vec![after("c", "b", "a")]);
        assert_eq!(taken(&hub, 0), ["c:z", "c:b", "c:c", "c:d"]);
        assert_eq!((hub.waiting(), hub.early().in_turn.load(Relaxed)), (0, 2));
        assert_eq!(publish(vec![after("c", "x", "d")]).duplicates, 0, "what was dropped may come again");
        assert_eq!(taken(&hub, 0), ["c:x"]);
    }

    fn rule(storage: config::Storage) -> config::Log {
        config::Log {
            text: "*".into(),
            pattern: Pattern::new("*"),
            realm: "default".into(),
            limits: Limits { items: 100, bytes: 1 << 20, age_s: 600 },
            total_bytes: 1 << 20,
            storage,
            durability: Durability::Accepted,
            slow: None,
        }
    }

    /// A hub whose channels have logs, and what is in that of the channel "c".
    fn logged(linger: Duration) -> Hub {
        let log = Log::new(None, Arc::default());
        log.configure(&[rule(config::Storage::Memory)], |_| Some(R)).unwrap();
        with(log, linger)
    }

    fn with(log: Log, linger: Duration) -> Hub {
        Hub::with_log(1, &config::Hub { linger, ..settings() }, Arc::new(log))
    }

    fn in_log(hub: &Hub) -> String {
        let mut ids = String::new();
        hub.log().ids(|_, _, id, _| ids += id);
        ids
    }

    /// What a log is to have goes on waiting for its predecessor when the last subscriber leaves.
    #[tokio::test(start_paused = true)]
    async fn a_log_keeps_its_order_when_nobody_listens_any_more() {
        for poll in [None, Some(Duration::ZERO)] {
            let hub = logged(Duration::from_secs(1));
            let pass = async |time| _ = tokio::time::timeout(time, hub.keep_time()).await;
            let publish = |items| _ = hub.publish(R, items, false).unwrap();
            hub.join(0, R, "c");
            publish(vec![item("c", Some("a")), after("c", "d", "c"), after("c", "c", "b")]);
            hub.leave(0, R, "c", poll);
            pass(Duration::from_secs(2)).await;
            assert_eq!((in_log(&hub), hub.channels(), hub.waiting()), ("a".into(), 0, 2));
            publish(vec![after("c", "b", "a")]);
            assert_eq!((in_log(&hub), hub.waiting()), ("abcd".into(), 0));
            pass(Duration::from_secs(4)).await;
            assert_eq!(hub.outlet.ledger.lock().lingering, 0);
            // What does not come is not waited for any longer than with a subscriber.
            hub.join(0, R, "c");
            publish(vec![after("c", "g", "f"), after("c", "f", "e")]);
            hub.leave(0, R, "c", poll);
            hub.join(0, R, "c");
            hub.leave(0, R, "c", poll);
            pass(Duration::from_millis(4900)).await;
            assert_eq!(in_log(&hub), "abcd");
            pass(Duration::from_millis(200)).await;
            let lingering = hub.outlet.ledger.lock().lingering;
            assert_eq!((in_log(&hub), hub.waiting(), lingering), ("abcdfg".into(), 0, 0), "{poll:?}");
        }
    }

    /// Its publisher has been told that its log has it after the process's end.
    #[test]
    fn what_is_early_at_the_end_is_in_its_log() {
        let hub = logged(Duration::ZERO);
        hub.join(0, R, "c");
        let items = vec![item("c", Some("a")), after("c", "d", "c"), after("c", "c", "b")];
        hub.publish(R, items, false).unwrap();
        assert_eq!((in_log(&hub), hub.waiting()), ("a".into(), 2));
        hub.release_all();
        assert_eq!((in_log(&hub), hub.waiting()), ("acd".into(), 0));
        assert_eq!(taken(&hub, 0), ["c:a", "c:c", "c:d"]);
    }

    /// What is early gets into its log when rules may be others. Who was promised that it is on disk hears that it is not,
    /// and may publish it again.
    #[tokio::test]
    async fn what_is_early_is_kept_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let log = Log::new(Some(folder.path().into()), Arc::default());
        let hub = with(log, Duration::ZERO);
        let configure = |logs: &[config::Log]| hub.log().configure(logs, |_| Some(R)).unwrap();
        let disk = [rule(config::Storage::Disk)];
        configure(&disk);
        hub.join(0, R, "c");
        let publish = |items, asked| hub.publish_at(R, items, false, asked).unwrap();
        let early = || vec![after("c", "c", "b")];
        // The first asks for it, or one that repeats the item.
        for first in [Durability::Synced, Durability::Accepted] {
            configure(&disk);
            hub.forget(R, "c");
            publish(vec![item("c", None), item("c", Some("a"))], Durability::Accepted);
            let kept = [first, Durability::Synced].map(|asked| publish(early(), asked).kept);
            configure(&[]);
            hub.release_all();
            let mut broken = 0;
            for kept in kept.into_iter().flatten() {
                broken += usize::from(kept.wait().await.is_err());
            }
            assert_eq!(broken, if first == Durability::Synced { 2 } else { 1 });
            assert!(!taken(&hub, 0).contains(&"c:c".into()));
            assert_eq!(hub.waiting(), 0);
            hub.outlet.ledger.lock().seen.forget(&[hub.digest(R, "c", "a")]);
        }
        // Rules may be made meanwhile, too: then it gets into the log.
        publish(vec![item("c", Some("a"))], Durability::Accepted);
        publish(early(), Durability::Accepted);
        configure(&disk);
        let kept = publish(early(), Durability::Synced).kept.unwrap();
        hub.release_all();
        assert_eq!((kept.wait().await, in_log(&hub)), (Ok(()), "c".into()));
        assert_eq!(taken(&hub, 0), ["c:a", "c:c"]);
    }

    /// If too many channels linger, a log gets at once what it is to have, in its order.
    #[test]
    fn a_log_that_does_not_wait_keeps_its_order() {
        let hub = logged(Duration::ZERO);
        hub.join(0, R, "c");
        let items = vec![item("c", Some("a")), after("c", "d", "c"), after("c", "c", "b")];
        hub.publish(R, items, false).unwrap();
        hub.outlet.ledger.lock().lingering = MAX_LINGERING;
        hub.leave(0, R, "c", None);
        assert_eq!(in_log(&hub), "acd");
    }

    #[test]
    fn only_channels_with_a_subscription_have_an_order() {
        let hub = hub(1, 1000);
        let publish = |items| hub.publish(R, items, false).unwrap();
        publish(vec![item("c", Some("1"))]);
        hub.join(0, R, "c");
        publish(vec![after("c", "3", "2")]);
        assert_eq!(taken(&hub, 0), ["c:3"]);
        publish(vec![after("c", "5", "4")]);
        hub.leave(0, R, "c", None);
        assert_eq!((hub.waiting(), hub.early().dropped.load(Relaxed), hub.channels()), (0, 1, 0));
        hub.join(0, R, "c");
        publish(vec![after("c", "9", "8")]);
        assert_eq!(taken(&hub, 0), ["c:9"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_over_ends() {
        let hub = hub(1, 1000);
        let pass = async |time| _ = tokio::time::timeout(time, hub.keep_time()).await;
        hub.join(0, R, "c");
        hub.publish(R, vec![item("c", Some("a")), after("c", "c", "b")], false).unwrap();
        taken(&hub, 0);
        pass(Duration::from_millis(4990)).await;
        assert!(taken(&hub, 0).is_empty());
        let receipts = hub.publish(R, vec![after("c", "d", "c")], true).unwrap().receipts.unwrap();
        pass(Duration::from_millis(20)).await;
        assert_eq!((taken(&hub, 0), hub.early().late.load(Relaxed)), (vec!["c:c".into(), "c:d".into()], 1));
        assert_eq!(receipts.wait().await.unwrap()[0].order, Order::Held);

        hub.leave(0, R, "c", Some(Duration::ZERO));
        pass(Duration::from_secs(50)).await;
        assert!(hub.contradicts(R, "c", "c"), "a channel keeps its order after a long-poll");
        assert!(hub.contradicts(R, "c", "c"), "whoever asks");
        hub.forget(R, "c");
        assert!(!hub.contradicts(R, "c", "c"));
        assert_eq!(hub.channels(), 0);
        assert_eq!(hub.join(0, R, "c"), None, "not its first subscription");
        hub.leave(0, R, "c", Some(Duration::ZERO));
        hub.publish(R, vec![item("c", Some("y")), after("c", "z", "x")], false).unwrap();
        pass(Duration::from_secs(61)).await;
        assert_eq!(hub.waiting(), 0);
        assert_eq!(hub.join(0, R, "c"), Some(Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_publisher_of_an_early_item_waits_for_who_keeps_it() {
        let hub = hub(1, 10);
        let webhooks = hub.place(Outpost::Webhooks);
        hub.join(webhooks, R, "c");
        let mut first =
            hub.publish(R, vec![item("c", Some("a")), after("c", "c", "b")], false).unwrap().kept.unwrap();
        let settle = || {
            let mut batch = Vec::new();
            hub.take(webhooks, &mut batch);
            batch.iter().for_each(|delivery| delivery.kept(&Ok(())));
        };
        settle();
        assert!(tokio::time::timeout(Duration::ZERO, &mut first.0).await.is_err());
        hub.publish(R, vec![after("c", "b", "a")], false).unwrap();
        settle();
        assert_eq!(first.wait().await, Ok(()));
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
            batch.iter().zip(outcomes).for_each(|(delivery, outcome)| delivery.kept(&outcome));
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
        let named = hub.publish(R, vec![item("a", Some("1"))], false).unwrap().kept.unwrap();
        drop(hub);
        assert!(kept.wait().await.is_err() && named.wait().await.is_err());
    }

    /// What of a publish was kept is so, whatever became of the rest of it.
    #[tokio::test]
    async fn only_what_is_not_kept_is_kept_again() {
        let hub = hub(1, 10);
        let webhooks = hub.place(Outpost::Webhooks);
        hub.join(webhooks, R, "c");
        let publish = |ids: [&str; 3]| {
            hub.publish(R, ids.map(|id| item("c", Some(id))).into(), false).unwrap().kept.unwrap()
        };
        let mail = || {
            let mut batch = Vec::new();
            hub.take(webhooks, &mut batch);
            batch
        };
        let ids = |batch: &[Arc<Delivery>]| -> String {
            batch.iter().filter_map(|delivery| delivery.item.id.as_deref()).collect()
        };
        let broken = Broken("too many wait".into());
        let first = publish(["1", "2", "3"]);
        let batch = mail();
        batch[0].kept(&Ok(()));
        batch[1].kept(&Err(broken.clone()));
        assert_eq!(first.wait().await, Err(broken.clone()));
        // It repeats all before the last of them is kept.
        let mut second = publish(["1", "2", "3"]);
        let again = mail();
        assert_eq!(ids(&again), "2");
        again[0].kept(&Ok(()));
        assert!(tokio::time::timeout(Duration::ZERO, &mut second.0).await.is_err());
        batch[2].kept(&Ok(()));
        assert_eq!(second.wait().await, Ok(()));
        // A new one beside them is this publish's alone.
        let third = publish(["1", "4", "3"]);
        let new = mail();
        assert_eq!(ids(&new), "4");
        new[0].kept(&Err(broken.clone()));
        assert_eq!(third.wait().await, Err(broken));
        let fourth = hub.publish(R, vec![item("c", Some("1")), item("c", Some("3"))], false).unwrap();
        assert!(fourth.kept.is_none() && mail().is_empty());
    }

    #[tokio::test]
    async fn who_repeats_an_item_waits_for_who_keeps_it() {
        let hub = hub(1, 10);
        let webhooks = hub.place(Outpost::Webhooks);
        hub.join(0, R, "c");
        hub.join(webhooks, R, "c");
        let publish = || hub.publish(R, vec![item("c", Some("1"))], false).unwrap().kept;
        let settle = |outcome: Result<(), Broken>| {
            let mut batch = Vec::new();
            hub.take(webhooks, &mut batch);
            batch.iter().for_each(|delivery| delivery.kept(&outcome));
            batch.len()
        };
        let first = publish().unwrap();
        assert_eq!(taken(&hub, 0), ["c:1"]);
        let mut second = publish().unwrap();
        assert!(tokio::time::timeout(Duration::ZERO, &mut second.0).await.is_err());
        // Nobody waits for the first any more.
        drop(first);
        let broken = Broken("the disk is full".into());
        assert_eq!(settle(Err(broken.clone())), 1);
        assert_eq!(second.wait().await, Err(broken.clone()));
        for outcome in [Err(broken), Ok(())] {
            let again = publish().unwrap();
            assert_eq!(settle(outcome.clone()), 1, "it is to be kept once more");
            assert_eq!(again.wait().await, outcome);
        }
        assert!(publish().is_none());
        assert_eq!(settle(Ok(())), 0);
        assert!(taken(&hub, 0).is_empty(), "subscribers have it");
    }

    /// A log of the last process, with these items of a channel each.
    fn found(folder: &std::path::Path, channels: &[(&str, &[&str])]) -> Log {
        let open = || {
            let log = Log::new(Some(folder.into()), Arc::default());
            log.configure(&[rule(config::Storage::Disk)], |_| Some(R)).unwrap();
            log
        };
        let hub = with(open(), Duration::ZERO);
        for (channel, ids) in channels {
            ids.iter().for_each(|id| drop(hub.publish(R, vec![item(channel, Some(id))], false).unwrap()));
        }
        hub.log().close();
        drop(hub);
        open()
    }

    /// What its log has from another process, who keeps items may not have.
    #[tokio::test]
    async fn what_only_a_log_is_known_to_have_is_kept_again() {
        let folder = tempfile::tempdir().unwrap();
        let hub = with(found(folder.path(), &[("c", &["1", "2"])]), Duration::ZERO);
        let webhooks = hub.place(Outpost::Webhooks);
        hub.join(0, R, "c");
        let publish = |id| hub.publish(R, vec![item("c", Some(id))], false).unwrap();
        let settle = |outcome: Result<(), Broken>| {
            let mut batch = Vec::new();
            hub.take(webhooks, &mut batch);
            batch.iter().for_each(|delivery| delivery.kept(&outcome));
            batch.len()
        };
        let none = publish("1");
        assert_eq!((none.duplicates, none.kept.is_none()), (1, true), "nobody keeps it");
        hub.join(webhooks, R, "c");
        for outcome in [Err(Broken("the disk is full".into())), Ok(())] {
            let again = publish("1");
            assert_eq!((again.duplicates, settle(outcome.clone())), (1, 1));
            assert_eq!(again.kept.unwrap().wait().await, outcome);
        }
        assert!(publish("1").kept.is_none(), "it is kept");
        assert!(publish("2").kept.is_some());
        assert!(taken(&hub, 0).is_empty(), "subscribers have them");
    }

    /// If there are more than are remembered, the newest of all channels are, in whatever order these are looked through.
    #[tokio::test(start_paused = true)]
    async fn of_many_ids_of_logs_the_newest_count() {
        let log = Log::new(None, Arc::default());
        let limits = Limits { items: 200, bytes: 1 << 20, age_s: 600 };
        let rule = config::Log { limits, ..rule(config::Storage::Memory) };
        log.configure(&[rule], |_| Some(R)).unwrap();
        let log = Arc::new(log);
        let open = || Hub::with_log(1, &settings(), Arc::clone(&log));
        let publish = |hub: &Hub, channel: &str, ids: std::ops::Range<u32>| {
            let repeated = |id: u32| {
                hub.publish(R, vec![item(channel, Some(&id.to_string()))], false).unwrap().duplicates
            };
            ids.map(repeated).sum::<usize>()
        };
        let first = open();
        // It is the first that is looked through, and they are more than are sorted at once.
        assert_eq!(publish(&first, "new", 1000..1001), 0);
        (0..10).for_each(|n| assert_eq!(publish(&first, &format!("old {n}"), 0..150), 0));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(publish(&first, "new", 0..100), 0);
        assert_eq!(publish(&open(), "new", 0..100), 100);
        assert_eq!(publish(&open(), "old 5", 0..150), 0);
    }

    /// An id of a log counts from when its item was published, as every other does.
    #[tokio::test(start_paused = true)]
    async fn ids_of_logs_grow_old() {
        let log = Log::new(None, Arc::default());
        log.configure(&[rule(config::Storage::Memory)], |_| Some(R)).unwrap();
        let log = Arc::new(log);
        let config = config::Hub { ids: 100, id_ttl: Duration::from_mins(1), ..settings() };
        let open = || Hub::with_log(1, &config, Arc::clone(&log));
        let first = open();
        let publish = |hub: &Hub, id| hub.publish(R, vec![item("c", Some(id))], false).unwrap().duplicates;
        assert_eq!(publish(&first, "old"), 0);
        tokio::time::advance(Duration::from_secs(45)).await;
        assert_eq!(publish(&first, "new"), 0);
        let second = open();
        assert_eq!([publish(&second, "old"), publish(&second, "new")], [1, 1]);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!([publish(&second, "old"), publish(&second, "new")], [0, 1]);
        let third = open();
        assert_eq!([publish(&third, "new")], [1]);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(publish(&open(), "new"), 0, "it is too old at the start");
    }

    /// Logs know times to a second, and no id of theirs is forgotten before its time for that.
    #[tokio::test(start_paused = true)]
    async fn no_id_of_a_log_is_forgotten_early() {
        for (before, after) in [(900, 100), (0, 900)] {
            let pass = |ms| tokio::time::advance(Duration::from_millis(ms));
            let log = Log::new(None, Arc::default());
            log.configure(&[rule(config::Storage::Memory)], |_| Some(R)).unwrap();
            let log = Arc::new(log);
            let open = || Hub::with_log(1, &settings(), Arc::clone(&log));
            let publish = |hub: &Hub| hub.publish(R, vec![item("c", Some("1"))], false).unwrap().duplicates;
            pass(before).await;
            assert_eq!(publish(&open()), 0);
            pass(after).await;
            let next = open();
            pass(59_999 - after).await;
            assert_eq!(publish(&next), 1, "{before}");
            pass(INEXACT_MS + 1).await;
            assert_eq!(publish(&next), 0, "{before}");
        }
    }

    /// What the log of a channel promises by now is not what it promised of an item from before a reload.
    #[tokio::test]
    async fn a_repeat_is_not_said_to_be_more_than_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let hub = with(Log::new(Some(folder.path().into()), Arc::default()), Duration::ZERO);
        let configure = |durability| {
            let rule = config::Log { durability, ..rule(config::Storage::Disk) };
            hub.log().configure(&[rule], |_| Some(R)).unwrap();
        };
        let publish = async |id| {
            let told = hub.publish(R, vec![item("c", Some(id))], false).unwrap();
            if let Some(on_disk) = told.on_disk {
                on_disk.wait().await.unwrap();
            }
            (told.duplicates, told.durability)
        };
        publish("no log has it").await;
        configure(Durability::Accepted);
        publish("1").await;
        configure(Durability::Synced);
        assert_eq!(publish("1").await, (1, Durability::Accepted));
        assert_eq!(publish("2").await, (0, Durability::Synced));
        // The log is as durable as its newest item, with all before that.
        assert_eq!(publish("1").await, (1, Durability::Synced));
        assert_eq!(publish("no log has it").await, (1, Durability::Accepted));
    }

    /// Who asks for more than the log of a channel promises is told so only of what that has.
    #[tokio::test]
    async fn a_repeat_is_not_said_to_be_where_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let hub = with(Log::new(Some(folder.path().into()), Arc::default()), Duration::ZERO);
        let configure = |logs: &[config::Log]| hub.log().configure(logs, |_| Some(R)).unwrap();
        let publish = |id, asked| hub.publish_at(R, vec![item("c", Some(id))], false, asked).unwrap();
        publish("before", Durability::Accepted);
        configure(&[rule(config::Storage::Disk)]);
        publish("in it", Durability::Accepted);
        assert!(publish("before", Durability::Accepted).kept.is_none());
        let lie = publish("before", Durability::Synced);
        assert!(lie.duplicates == 1 && lie.kept.unwrap().wait().await.is_err());
        // Who keeps what else is in the publish has it, and gets it once.
        let webhooks = hub.place(Outpost::Webhooks);
        hub.join(webhooks, R, "c");
        for (round, new) in [1, 0].into_iter().enumerate() {
            let items = vec![item("c", Some("before")), item("c", Some("beside"))];
            let both = hub.publish_at(R, items, false, Durability::Synced).unwrap();
            let mut batch = Vec::new();
            while batch.len() < new {
                hub.mail(webhooks).await;
                hub.take(webhooks, &mut batch);
            }
            batch.iter().for_each(|delivery| delivery.kept(&Ok(())));
            assert!(both.kept.unwrap().wait().await.is_err(), "{round}");
            if let Some(on_disk) = both.on_disk {
                on_disk.wait().await.unwrap();
            }
            hub.take(webhooks, &mut batch);
            assert_eq!(batch.len(), new, "{round}");
        }
        hub.leave(webhooks, R, "c", None);
        let truth = publish("in it", Durability::Synced);
        assert_eq!((truth.duplicates, truth.durability), (1, Durability::Synced));
        assert!(truth.kept.is_none());
        truth.on_disk.unwrap().wait().await.unwrap();
    }

    #[test]
    fn what_is_kept_is_forgotten() {
        let hub = hub(1, 10_000);
        let webhooks = hub.place(Outpost::Webhooks);
        hub.join(webhooks, R, "c");
        for n in 0..10_000 {
            hub.publish(R, vec![item("c", Some(&n.to_string()))], false).unwrap();
            let mut batch = Vec::new();
            hub.take(webhooks, &mut batch);
            // Every other one is not kept; of these, no more than ids are.
            let outcome = if n % 2 == 0 { Ok(()) } else { Err(Broken("the disk is full".into())) };
            batch.iter().for_each(|delivery| delivery.kept(&outcome));
        }
        assert!(hub.outlet.ledger.lock().unkept.len() <= 2 * 1024);
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
