//! The one thread that delivers webhooks: takes items from the hub, has them written to disk, sends what is due and
//! decides what becomes of it. Owns the lines, the numbers and the time; what is on disk it changes in batches.

mod changes;
mod intake;
mod realms;
mod replay;
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
    sync::{mpsc, watch},
    task::{self, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at},
};

use super::{
    Order, StartError,
    book::{self, Change, Edit, Page, Salt},
    courier::Courier,
    endpoint::{Endpoint, Id},
    ids::{Ids, Row},
    letters::Letters,
    lines::{Limits, Lines, Load},
};
use crate::{
    config::Webhooks,
    hub::{Delivery, Hub, Outpost, RealmId},
    metrics::Process,
    realm::Realms,
    snapshot::Snapshot,
    store::{Store, StoreError},
};
pub(super) use realms::join;
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
    /// The file cannot be read: nothing is started before that.
    unread_until: u64,
    clock: Clock,
    dice: u64,
    /// The next number that is free.
    next: u64,
    letters: Letters,
    ids: Ids,
    /// Items that are still to be addressed, of each realm one in its turn.
    pending: VecDeque<Arc<Delivery>>,
    /// Endpoints whose last try failed: since when, by [`Clock::steady_ms`], and how often.
    ailing: HashMap<Id, (u64, u32)>,
    /// Endpoints that were disabled, and are not so on disk yet.
    dismissed: HashSet<Id>,
    /// Failed tries that the disk does not know of yet.
    tries: HashMap<(Id, u64), u32>,
    /// Of realms that have an endpoint: their numbers on disk.
    numbers: HashMap<RealmId, u32>,
    seen: Arc<Realms>,
    /// What is to be written of deliveries, in order.
    changes: VecDeque<Change>,
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
    /// New deliveries are kept, or not, and the ids of their items.
    Kept { to: Vec<(u64, Vec<Id>)>, row: Option<Row>, bytes: usize, good: bool },
    /// Changes are on disk, or not.
    Flushed { changes: Arc<Vec<Change>>, good: bool },
}

/// The machine's clock, by which owners and other processes go, and what has passed since the start, which no step of that
/// clock changes: waits go by it.
#[derive(Clone, Copy, Debug)]
struct Clock {
    started: Instant,
    started_unix_ms: u64,
}

impl Clock {
    fn new() -> Self {
        Self { started: Instant::now(), started_unix_ms: unix_ms() }
    }

    /// Milliseconds since the start.
    fn now(&self) -> u64 {
        ms(self.started.elapsed())
    }

    /// Of the machine's clock.
    fn unix_ms(self) -> u64 {
        unix_ms()
    }

    fn unix(self) -> u64 {
        unix_ms() / 1000
    }

    /// The clock of the start, as it would be without steps.
    fn steady_ms(&self) -> u64 {
        self.started_unix_ms.saturating_add(self.now())
    }

    /// What the machine's clock would have said then, set as it is now.
    fn wall(&self, steady_ms: u64) -> u64 {
        unix_ms().saturating_sub(self.steady_ms().saturating_sub(steady_ms))
    }
}

/// What the machine's clock says, as another process will see it.
fn unix_ms() -> u64 {
    ms(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
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
            queue: Load { items: config.queue_items, bytes: config.queue_bytes },
            realm_queue: Load { items: config.realm_queue_items, bytes: config.realm_queue_bytes },
            endpoint_queue: Load { items: config.endpoint_queue_items, bytes: config.endpoint_queue_bytes },
            concurrency: config.concurrency,
            realm_concurrency: config.realm_concurrency,
            endpoint_concurrency: config.endpoint_concurrency,
        };
        let mut desk = Self {
            place: hub.place(Outpost::Webhooks),
            courier: Rc::new(Courier::new(&config)),
            lines: Lines::new(limits),
            unread_until: 0,
            clock,
            dice: clock.started_unix_ms | 1,
            next: 1,
            letters: Letters::new((config.queue_bytes, config.realm_queue_bytes)),
            ids: {
                let hub = &snapshot.load().config.hub;
                Ids::new(salt, ms(hub.id_ttl), hub.ids)
            },
            pending: VecDeque::new(),
            ailing: HashMap::new(),
            dismissed: HashSet::new(),
            tries: HashMap::new(),
            numbers: HashMap::new(),
            seen: Arc::clone(&snapshot.load().realms),
            changes: VecDeque::new(),
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
        waits.iter().for_each(|(id, seq, ..)| self.letters.expect(*seq, id.realm()));
        page.letters(|seq, bytes| {
            if !self.letters.weigh(seq, bytes) {
                // Its endpoint is gone, and the process ended before the desk had heard.
                self.changes.push_back(Change::Done { id: Id(0), seq, last: true });
            }
        })?;
        for (id, seq, failed, due) in waits {
            let ordered = match last {
                Some((before, ordered)) if before == id => ordered,
                _ => page.endpoint(id)?.is_some_and(|endpoint: Endpoint| endpoint.ordered),
            };
            self.lines.reserve(id, ordered, self.letters.size(seq));
            if !matches!(last, Some((before, _)) if before == id)
                && let Some((_, failures)) = self.ailing.get(&id)
            {
                self.lines.recall(id, *failures);
            }
            last = Some((id, ordered));
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
        page.pauses(|id, until| {
            let left = self.config.retry.left(until, unix_ms);
            self.lines.pause(id, now.saturating_add(ms(left)));
        })?;
        let mut rows = Vec::new();
        page.ids(|number, at, digests| rows.push((number, unix_ms.saturating_sub(at), digests)))?;
        self.ids.restore(rows);
        self.numbers = join(&self.hub, &page, &self.seen, None)?;
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
            let next = self.lines.next_due().map(|at| at.max(self.unread_until));
            let again = Some(self.unread_until).filter(|at| *at > self.clock.now());
            let due = next.into_iter().chain(again).chain(flush_at).min();
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
        let changes = Vec::from(std::mem::take(&mut self.changes));
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
            Event::Kept { to, row, bytes, good } => {
                self.writing -= 1;
                self.writing_bytes -= bytes;
                row.filter(|_| good).into_iter().for_each(|row| self.ids.push(row));
                for (seq, ids) in to {
                    let bytes = self.letters.size(seq);
                    if !good {
                        self.letters.forget(seq);
                    }
                    for id in ids {
                        if good { self.lines.ready(id, seq) } else { self.lines.release(id, bytes) }
                    }
                }
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Look { realm, channel, number, done } => {
                self.look(&realm, &channel, number);
                _ = done.send(());
            }
            Order::Gone { id } => {
                self.pardon(id);
                self.let_go(id);
                self.ailing.remove(&id);
            }
            Order::Enabled { id } => {
                self.pardon(id);
                // It may be another than the one for which something waits.
                self.let_go(id);
                let known = Page::open(&self.store).map_err(lost).and_then(|page| page.last_fault(id));
                if self.ailing.remove(&id).is_some() || self.flushing || !matches!(known, Ok(None)) {
                    self.changes.push_back(Change::Healthy { id });
                }
                self.lines.forgive(id);
            }
            Order::Ordered { id, ordered } => self.lines.set_ordered(id, ordered),
            Order::Retry { id } => self.lines.hurry(id),
            Order::Verify { realm, challenge, done } => {
                self.asking.retain(|_, own| Rc::strong_count(own) > 1);
                let asking: usize = self.asking.values().map(|own| Rc::strong_count(own) - 1).sum();
                let number =
                    self.snapshot.load().realms.get(&realm).and_then(|realm| self.numbers.get(&realm));
                // One that has no endpoint yet has no number.
                let number = number.copied().unwrap_or(u32::MAX);
                let (courier, own) =
                    (Rc::clone(&self.courier), Rc::clone(self.asking.entry(realm).or_default()));
                // Who waits is told when `done` is gone.
                if asking < CHALLENGES && Rc::strong_count(&own) <= 1 + REALM_CHALLENGES {
                    self.errands.spawn_local(async move {
                        _ = done.send(courier.verify(number, challenge).await);
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

    /// Lets go of what waited for an endpoint that is gone from the disk, whoever has been subscribed in its place. If the
    /// disk cannot be read, it finds nobody at its turn.
    fn let_go(&mut self, id: Id) {
        let Ok(page) = Page::open(&self.store) else { return };
        for seq in self.lines.sieve(id, |seq| matches!(page.failed(id, seq), Ok(None))) {
            self.done(id, seq);
        }
    }

    /// Writes new deliveries; they start when they are on disk.
    fn write(
        &mut self,
        mut changes: Vec<Change>,
        (to, row): (Vec<(u64, Vec<Id>)>, Option<Row>),
        then: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) {
        changes.push(Change::Next(self.next));
        let bytes = changes.iter().map(Change::bytes).sum();
        self.writing += 1;
        self.writing_bytes += bytes;
        let events = self.events.clone();
        let done = move |outcome: Result<(), StoreError>| {
            _ = events.try_send(Event::Kept { to, row, bytes, good: outcome.is_ok() });
            then(outcome);
        };
        self.store.submit(Box::new(move |tx| book::apply(tx, &changes)), Box::new(done));
    }

    fn tick(&mut self) {
        self.courier.sweep();
        self.ids.expire(self.clock.now());
        let looked = Page::open(&self.store).map_err(lost).and_then(|page| {
            self.see_realms(&page)?;
            self.sweep(&page)
        });
        if let Err(error) = looked {
            tracing::error!(%error, "webhook endpoints cannot be read");
        }
    }

    /// Looks at some endpoints and removes those whose time is over; what is over gets nothing before that, either.
    fn sweep(&mut self, page: &Page) -> Result<(), redb::Error> {
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
pub(super) const CHALLENGES: usize = 1024;
/// Of one realm's.
const REALM_CHALLENGES: usize = 64;
/// Tries that are under way when the process stops.
const LAST_TRIES: Duration = Duration::from_millis(500);
/// After a restart.
const OVERDUE_SPREAD_MS: u64 = 5000;
