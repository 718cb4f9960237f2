//! The one thread that delivers webhooks: takes items from the hub, has them written to disk, sends what is due and
//! decides what becomes of it. Owns the lines, the numbers and the time; what is on disk it changes in batches.

mod changes;
mod intake;
mod tries;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use fantail_proto::webhook::retry::MAX_DELAY;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{self, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};

use super::{
    Order, Replayed, StartError,
    book::{self, Change, Edit, Page, Salt},
    courier::Courier,
    endpoint::{Endpoint, Id},
    letters::Letters,
    lines::{Class, Limits, Lines},
    taken::Taken,
};
use crate::{
    config::Webhooks,
    hub::{Delivery, Hub, Outpost, RealmId},
    metrics::Process,
    realm::Realms,
    snapshot::Snapshot,
    store::{Store, StoreError},
};
use tries::{Flight, Landing};

pub(super) struct Desk {
    store: Store,
    salt: Salt,
    hub: Arc<Hub>,
    place: usize,
    snapshot: Arc<ArcSwap<Snapshot>>,
    config: Webhooks,
    counts: Arc<Process>,
    courier: Rc<Courier>,
    lines: Lines,
    clock: Clock,
    dice: u64,
    /// The next number that is free.
    next: u64,
    letters: Letters,
    taken: Taken,
    /// Items that are still to be addressed, of each realm one in its turn.
    pending: VecDeque<Arc<Delivery>>,
    /// Endpoints whose last try failed: since when, in Unix milliseconds, and how often.
    ailing: HashMap<Id, (u64, u32)>,
    /// Endpoints that were disabled, and are not so on disk yet.
    dismissed: HashSet<Id>,
    /// Failed tries that the disk does not know of yet.
    tries: HashMap<(Id, u64), u32>,
    /// Of realms that have an endpoint: their numbers on disk.
    numbers: HashMap<RealmId, u32>,
    seen: Arc<Realms>,
    /// What is to be written of deliveries, in order.
    changes: Vec<Change>,
    /// Endpoints that somebody has enabled or removed while changes were being written.
    pardoned: HashSet<Id>,
    /// When changes are written again, at the soonest.
    flush_at: u64,
    events: mpsc::Sender<Event>,
    heard: Option<mpsc::Receiver<Event>>,
    /// Batches of new deliveries that are being written.
    writing: usize,
    /// What they say, in bytes.
    writing_bytes: usize,
    /// Bytes of dead letters that the batch at hand makes for want of room.
    overflowed: usize,
    flushing: bool,
    flights: JoinSet<Landing>,
    /// What each of them is about, for those that do not land.
    aloft: HashMap<task::Id, Flight>,
    errands: JoinSet<()>,
    /// Realms whose endpoints are asked with a challenge: each has one owner more than there are.
    asking: HashMap<String, Rc<()>>,
    /// Where the search for endpoints whose time is over goes on.
    swept: u128,
}

/// What the disk says; at most one for each batch being written.
enum Event {
    /// New deliveries are kept, or not.
    Kept { to: Vec<(u64, Vec<Id>)>, bytes: usize, good: bool },
    /// Changes are on disk, or not.
    Flushed { changes: Arc<Vec<Change>>, good: bool },
}

/// Wall time as it was at the start, and what has passed since: no step of the clock is seen while the process lives.
#[derive(Clone, Copy, Debug)]
struct Clock {
    started: Instant,
    unix_ms: u64,
}

impl Clock {
    fn new() -> Self {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), unix_ms: ms(unix) }
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        ms(self.started.elapsed())
    }

    fn unix_ms(&self) -> u64 {
        self.unix_ms.saturating_add(self.now())
    }

    fn unix(&self) -> u64 {
        self.unix_ms() / 1000
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What a desk is made of.
pub(super) struct Parts {
    pub store: Store,
    pub hub: Arc<Hub>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub config: Webhooks,
    pub counts: Arc<Process>,
}

impl Desk {
    /// Reads what waits, and tells the hub which channels are subscribed to.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) async fn open(parts: Parts) -> Result<Self, StartError> {
        let Parts { store, hub, snapshot, config, counts } = parts;
        let salt = book::prepare(&store).await?;
        let (events, heard) = mpsc::channel(EVENTS);
        let clock = Clock::new();
        let limits = Limits {
            queue: config.queue_items,
            realm_queue: config.realm_queue_items,
            endpoint_queue: config.endpoint_queue_items,
            concurrency: config.concurrency,
            realm_concurrency: config.realm_concurrency,
            endpoint_concurrency: config.endpoint_concurrency,
        };
        let mut desk = Self {
            place: hub.place(Outpost::Webhooks),
            courier: Rc::new(Courier::new(&config)),
            lines: Lines::new(limits),
            clock,
            dice: clock.unix_ms | 1,
            next: 1,
            letters: Letters::new((config.queue_bytes, config.realm_queue_bytes)),
            taken: {
                let hub = &snapshot.load().config.hub;
                Taken::new(salt, ms(hub.id_ttl), hub.ids)
            },
            pending: VecDeque::new(),
            ailing: HashMap::new(),
            dismissed: HashSet::new(),
            tries: HashMap::new(),
            numbers: HashMap::new(),
            seen: Arc::clone(&snapshot.load().realms),
            changes: Vec::new(),
            pardoned: HashSet::new(),
            flush_at: 0,
            events,
            heard: Some(heard),
            writing: 0,
            writing_bytes: 0,
            overflowed: 0,
            flushing: false,
            flights: JoinSet::new(),
            aloft: HashMap::new(),
            errands: JoinSet::new(),
            asking: HashMap::new(),
            swept: 0,
            store,
            salt,
            hub,
            snapshot,
            config,
            counts,
        };
        desk.load().map_err(StoreError::from)?;
        Ok(desk)
    }

    pub(super) fn salt(&self) -> Salt {
        self.salt
    }

    fn load(&mut self) -> Result<(), redb::Error> {
        let page = Page::open(&self.store).map_err(lost)?;
        self.next = page.next()?;
        self.counts.webhook_endpoints.set(i64::try_from(page.endpoints()?).unwrap_or(i64::MAX));
        let (now, unix_ms) = (self.clock.now(), self.clock.unix_ms());
        let mut last: Option<(Id, bool)> = None;
        let mut waits = Vec::new();
        page.failing(|id, health| _ = self.ailing.insert(id, health))?;
        page.queue(|id, seq, failed, due| waits.push((id, seq, failed, due)))?;
        for (id, seq, failed, due) in waits {
            let ordered = match last {
                Some((before, ordered)) if before == id => ordered,
                _ => page.endpoint(id)?.is_some_and(|endpoint: Endpoint| endpoint.ordered),
            };
            self.lines.reserve(id, ordered);
            if !matches!(last, Some((before, _)) if before == id) && self.ailing.contains_key(&id) {
                self.lines.set_class(id, Class::Failing);
            }
            last = Some((id, ordered));
            self.letters.expect(seq, id.realm());
            let left = ms(self.config.retry.left(due, unix_ms));
            match failed {
                0 => self.lines.ready(id, seq),
                // Overdue tries of a long sleep do not come all at once.
                _ => {
                    let spread = u64::from(self.roll()) % OVERDUE_SPREAD_MS;
                    self.lines.wait(id, seq, now + left.max(if left == 0 { spread } else { 0 }));
                }
            }
        }
        page.letters(|seq, bytes| self.letters.weigh(seq, bytes))?;
        let mut rows = Vec::new();
        page.taken(|number, at, digests| rows.push((number, unix_ms.saturating_sub(at), digests)))?;
        self.taken.restore(rows);
        let seen = Arc::clone(&self.seen);
        self.join_realms(&page, &seen, None)
    }

    /// Joins the channels of realms that the configuration has, but not of those that it had before.
    fn join_realms(
        &mut self,
        page: &Page,
        realms: &Realms,
        before: Option<&Realms>,
    ) -> Result<(), redb::Error> {
        for (name, number) in page.realms()? {
            let Some(realm) = realms.get(&name) else { continue };
            self.numbers.insert(realm, number);
            if before.is_none_or(|before| before.get(&name).is_none()) {
                page.channels(Id::of_realm(number), |channel| {
                    self.hub.join(self.place, realm, channel);
                })?;
            }
        }
        Ok(())
    }

    /// Delivers until it is told to stop, and then writes down what it knows.
    pub(super) async fn run(mut self, mut orders: mpsc::Receiver<Order>, mut stop: watch::Receiver<bool>) {
        let Some(mut heard) = self.heard.take() else { return };
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopped = std::pin::pin!(async move { drop(stop.wait_for(|stop| *stop).await) });
        let store = self.store.clone();
        let mut ended = std::pin::pin!(store.ended());
        loop {
            let more = self.launch();
            self.flush();
            self.counts.webhook_queued.set(i64::try_from(self.lines.waiting()).unwrap_or(i64::MAX));
            self.counts.webhook_queue_bytes.set(i64::try_from(self.letters.bytes()).unwrap_or(i64::MAX));
            self.counts.webhook_flying.set(i64::try_from(self.lines.flying()).unwrap_or(i64::MAX));
            let flush_at = Some(self.flush_at).filter(|_| !self.flushing && !self.changes.is_empty());
            let due = self.lines.next_due().into_iter().chain(flush_at).min();
            let due = due.map_or_else(
                || Instant::now() + MAX_DELAY,
                |at| self.clock.started + Duration::from_millis(at),
            );
            tokio::select! {
                () = &mut stopped => break,
                () = &mut ended => {
                    return tracing::error!("what writes the webhooks' file has failed: nothing is kept any more");
                }
                () = self.hub.mail(self.place), if self.pending.is_empty() && self.may_take() => { self.take(); }
                // Tries under way have their turn between two slices.
                () = task::yield_now(), if !self.pending.is_empty() && self.may_take() => { self.take(); }
                Some(event) = heard.recv() => self.hear(event),
                Some(landed) = self.flights.join_next_with_id(), if !self.flights.is_empty() => self.land(landed),
                Some(order) = orders.recv() => self.obey(order),
                Some(ended) = self.errands.join_next(), if !self.errands.is_empty() => drop(ended),
                _ = tick.tick() => self.tick(),
                () = task::yield_now(), if more => {}
                () = sleep_until(due) => {}
            }
            while let Ok(event) = heard.try_recv() {
                self.hear(event);
            }
            for _ in 0..LANDINGS {
                let Some(landed) = self.flights.try_join_next_with_id() else { break };
                self.land(landed);
            }
        }
        tokio::select! {
            () = self.take_all(&mut heard) => {}
            () = &mut ended => return tracing::error!("what writes the webhooks' file has failed"),
        }
        let deadline = Instant::now() + LAST_TRIES;
        while let Ok(Some(landed)) = timeout_at(deadline, self.flights.join_next_with_id()).await {
            self.land(landed);
        }
        let changes = std::mem::take(&mut self.changes);
        if let Err(error) = self.store.write(Box::new(move |tx| book::apply_possible(tx, &changes))).await {
            tracing::error!(%error, "webhooks that were delivered will be delivered again");
        }
    }

    /// Nobody publishes any more: takes what is still in the mailbox, and waits until all that is on disk.
    async fn take_all(&mut self, heard: &mut mpsc::Receiver<Event>) {
        loop {
            if self.may_take() && self.take() {
                continue;
            }
            if self.writing == 0 {
                return;
            }
            let Some(event) = heard.recv().await else { return };
            self.hear(event);
        }
    }

    fn may_take(&self) -> bool {
        self.writing < WRITING && self.writing_bytes < WRITING_BYTES
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Flushed { changes, good } => self.flushed(changes, good),
            Event::Kept { to, bytes, good } => {
                self.writing -= 1;
                self.writing_bytes -= bytes;
                for (seq, ids) in to {
                    if !good {
                        self.letters.forget(seq);
                    }
                    for id in ids {
                        if good { self.lines.ready(id, seq) } else { self.lines.release(id) }
                    }
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Look { realm, channel, done } => {
                self.look(&realm, &channel);
                _ = done.send(());
            }
            Order::Gone { id } => {
                self.pardon(id);
                // It has been subscribed again meanwhile, or may have been: what waits may have been published since. If it
                // was not, its turn finds nobody.
                let page = Page::open(&self.store).map_err(lost);
                if page.and_then(|page| page.endpoint(id)).map_or(true, |found| found.is_some()) {
                    return;
                }
                for seq in self.lines.drain(id) {
                    self.done(id, seq);
                }
                self.ailing.remove(&id);
            }
            Order::Enabled { id } => {
                self.pardon(id);
                if self.ailing.remove(&id).is_some() {
                    self.changes.push(Change::Healthy { id });
                }
                self.lines.set_class(id, Class::New);
            }
            Order::Verify { realm, url, query, challenge, done } => {
                self.asking.retain(|_, own| Rc::strong_count(own) > 1);
                let (courier, own) =
                    (Rc::clone(&self.courier), Rc::clone(self.asking.entry(realm).or_default()));
                // Who waits is told when `done` is gone.
                if self.errands.len() < ERRANDS && Rc::strong_count(&own) <= 1 + REALM_ERRANDS {
                    self.errands.spawn_local(async move {
                        _ = done.send(courier.verify(&url, &query, &challenge).await);
                        drop(own);
                    });
                }
            }
            Order::Replay { id, one, since, done } => {
                if let Err(error) = self.replay(id, one, since, done) {
                    tracing::error!(%error, "dead letters cannot be read");
                }
            }
        }
    }

    /// Joins or leaves a channel, as there are endpoints of it on disk: asked after every change, and only here.
    fn look(&mut self, realm: &str, channel: &str) {
        let found = Page::open(&self.store).map_err(lost).and_then(|page| {
            let Some(number) = page.realm(realm)? else { return Ok(None) };
            let some = page.some(Id::of_channel(number, self.salt.0, channel), Some(channel), 1)?;
            self.counts.webhook_endpoints.set(i64::try_from(page.endpoints()?).unwrap_or(i64::MAX));
            Ok(Some((number, !some.is_empty())))
        });
        let Some(id) = self.snapshot.load().realms.get(realm) else { return };
        match found {
            Ok(Some((number, true))) => {
                self.numbers.insert(id, number);
                self.hub.join(self.place, id, channel);
            }
            Ok(_) => self.hub.leave(self.place, id, channel, None),
            Err(error) => tracing::error!(%error, "webhook endpoints cannot be read"),
        }
    }

    /// Puts dead letters back into the queue, as many as there is room for.
    fn replay(
        &mut self,
        id: Id,
        one: Option<u64>,
        since: u64,
        done: oneshot::Sender<Result<Replayed, StoreError>>,
    ) -> Result<(), redb::Error> {
        if self.writing >= 2 * WRITING {
            _ = done.send(Err(StoreError::Full));
            return Ok(());
        }
        let page = Page::open(&self.store).map_err(lost)?;
        let most = if one.is_some() { 1 } else { usize::MAX };
        let dead = page.dead(id, one.unwrap_or(0), most)?;
        let ordered = page.endpoint(id)?.is_some_and(|endpoint| endpoint.ordered);
        let (mut changes, mut to) = (Vec::new(), Vec::new());
        let mut outcome = Replayed::default();
        for (number, death, letter) in dead {
            if one.is_some_and(|one| one != number) || death.at < since {
                continue;
            }
            let room = self.lines.endpoint_has_room(id)
                && self.lines.realm_has_room(id.realm(), 1)
                && self.letters.has_room(id.realm(), letter.bytes);
            if !room {
                outcome.left += 1;
                continue;
            }
            let seq = self.number();
            self.letters.expect(seq, id.realm());
            self.letters.weigh(seq, letter.bytes);
            self.lines.reserve(id, ordered);
            changes.push(Change::Replay { id, dead: number, seq, due: self.clock.unix_ms() });
            to.push((seq, vec![id]));
            outcome.replayed += 1;
        }
        self.write(changes, to, move |result| drop(done.send(result.map(|()| outcome))));
        Ok(())
    }

    /// Writes new deliveries; they start when they are on disk.
    fn write(
        &mut self,
        mut changes: Vec<Change>,
        to: Vec<(u64, Vec<Id>)>,
        then: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) {
        changes.push(Change::Next(self.next));
        let bytes = changes.iter().map(Change::bytes).sum();
        self.writing += 1;
        self.writing_bytes += bytes;
        let events = self.events.clone();
        let done = move |outcome: Result<(), StoreError>| {
            _ = events.try_send(Event::Kept { to, bytes, good: outcome.is_ok() });
            then(outcome);
        };
        self.store.submit(Box::new(move |tx| book::apply(tx, &changes)), Box::new(done));
    }

    fn tick(&mut self) {
        self.courier.sweep();
        self.taken.expire(self.clock.now());
        let realms = Arc::clone(&self.snapshot.load().realms);
        if !Arc::ptr_eq(&realms, &self.seen) {
            let before = std::mem::replace(&mut self.seen, Arc::clone(&realms));
            let joined = Page::open(&self.store)
                .map_err(lost)
                .and_then(|page| self.join_realms(&page, &realms, Some(&before)));
            if let Err(error) = joined {
                tracing::error!(%error, "webhook endpoints cannot be read");
            }
        }
        if let Err(error) = self.sweep() {
            tracing::error!(%error, "webhook endpoints cannot be read");
        }
    }

    /// Looks at some endpoints and removes those whose time is over; what is over gets nothing before that, either.
    fn sweep(&mut self) -> Result<(), redb::Error> {
        let page = Page::open(&self.store).map_err(lost)?;
        self.counts.webhook_endpoints.set(i64::try_from(page.endpoints()?).unwrap_or(i64::MAX));
        let some = page.some((Id(self.swept), Id(u128::MAX)), None, SWEEP)?;
        self.swept = some.last().filter(|_| some.len() == SWEEP).map_or(0, |(id, _)| id.0 + 1);
        let now = self.clock.unix();
        let names: HashMap<u32, String> =
            page.realms()?.into_iter().map(|(name, number)| (number, name)).collect();
        let over =
            |(id, endpoint): &(Id, Endpoint)| endpoint.has_expired(now) && names.contains_key(&id.realm());
        let over: Vec<(Id, Endpoint)> = some.into_iter().filter(over).collect();
        let ids: HashSet<Id> = over.iter().map(|(id, _)| *id).collect();
        for (id, seq) in self.lines.drain_all(&ids) {
            self.done(id, seq);
        }
        for (id, endpoint) in over {
            let Some(realm) = names.get(&id.realm()).cloned() else { continue };
            self.ailing.remove(&id);
            let (store, place, hub) = (self.store.clone(), self.place, Arc::clone(&self.hub));
            let (salt, snapshot, channel) = (self.salt, Arc::clone(&self.snapshot), endpoint.channel.clone());
            let name = realm.clone();
            self.errands.spawn_local(async move {
                let removed = store.write(Box::new(move |tx| {
                    book::edit(tx, &name, id, now, |row, _, _| match row {
                        Some(_) => Edit::Keep,
                        None => Edit::Remove,
                    })
                }));
                let alone = removed.await.and_then(|()| {
                    let some = Page::open(&store)?.some(
                        Id::of_channel(id.realm(), salt.0, &channel),
                        Some(&channel),
                        1,
                    )?;
                    Ok(some.is_empty())
                });
                if let (Ok(true), Some(realm)) = (alone, snapshot.load().realms.get(&realm)) {
                    hub.leave(place, realm, &channel, None);
                }
            });
        }
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// A number that need not be hard to guess (xorshift).
    fn roll(&mut self) -> u32 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        u32::try_from(self.dice >> 32).unwrap_or(u32::MAX)
    }
}

/// A store that cannot be read, as the tables say it.
fn lost(error: StoreError) -> redb::Error {
    match error {
        StoreError::Full => redb::Error::Corrupted("the disk is too slow".into()),
        StoreError::Disk(text) => redb::Error::Corrupted(text.as_ref().into()),
    }
}

/// Connections are swept, realms and endpoints looked at, so often.
const TICK: Duration = Duration::from_secs(1);
/// Endpoints that are looked at each time: some milliseconds.
const SWEEP: usize = 1000;
/// Batches that wait for the disk; then the hub's mailbox fills, and publishers wait.
const WRITING: usize = 64;
/// And what they say.
const WRITING_BYTES: usize = 16 << 20;
/// [`Event`]s that can be under way: one for each batch, two times [`WRITING`] of them, and one for what is flushed.
const EVENTS: usize = 2 * WRITING + 1;
/// Tries that have ended, before others have their turn.
const LANDINGS: usize = 64;
/// Challenges under way at once.
const ERRANDS: usize = 1024;
/// Of one realm's.
const REALM_ERRANDS: usize = 64;
/// Tries that are under way when the process stops.
const LAST_TRIES: Duration = Duration::from_millis(500);
/// After a restart.
const OVERDUE_SPREAD_MS: u64 = 5000;
