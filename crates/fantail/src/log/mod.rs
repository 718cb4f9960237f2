//! The logs of channels: appended to in the hub's order, read by whoever fills a gap. Owns which channels have one
//! (`[[log]]`), what all of them hold together, and, in `journal`, the files that they survive in. Never delivers an item.

mod files;
mod journal;
mod rings;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use fantail_proto::{
    item::Item,
    log::{Durability, Entry, Limits, Pattern, Place, Start},
    slow::Slow,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::oneshot, time::Instant};

pub use files::OpenError;
use journal::Journal;
use rings::Rings;

use crate::{
    channel::RealmId,
    config::{self, Storage},
    metrics::Process,
    store::StoreError,
};

/// All logs of the process. Shared by all threads; its lock is held for some lookups and copies.
#[derive(Debug)]
pub struct Log {
    rules: ArcSwap<Vec<Arc<Rule>>>,
    rings: Arc<Mutex<Rings>>,
    /// Opened when the first rule wants it.
    journal: OnceLock<Journal>,
    folder: Option<PathBuf>,
    counts: Arc<Process>,
    started: Instant,
}

/// One `[[log]]`.
#[derive(Debug)]
struct Rule {
    /// Its place among the rules.
    place: usize,
    realm: RealmId,
    realm_name: Arc<str>,
    pattern: Pattern,
    limits: Limits,
    total_bytes: usize,
    on_disk: bool,
    durability: Durability,
    slow: Option<Slow>,
}

impl Rule {
    fn fits(&self, realm: RealmId, channel: &str) -> bool {
        self.realm == realm && self.pattern.fits(channel)
    }

    /// Whether items are delivered only when they are kept.
    fn waits(&self) -> bool {
        self.on_disk && self.durability > Durability::Accepted
    }
}

/// Why nothing of a publish was accepted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refused {
    /// The publisher's fault: it asks for what is not configured.
    #[error("channel '{0}' has no log on disk: items on it are accepted, and not more")]
    NoDisk(Box<str>),
    #[error("Not kept: {0}")]
    Disk(StoreError),
}

/// What a log has for a subscriber, as far as that was asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Span {
    /// The position before the first.
    pub after: u64,
    /// The place of the last, or that before the first that there will be.
    pub through: Place,
    /// There is nothing behind it yet.
    pub whole: bool,
}

impl Log {
    /// Without rules. `folder` is `server.data_dir`.
    pub fn new(folder: Option<PathBuf>, counts: Arc<Process>) -> Self {
        Self {
            rules: ArcSwap::default(),
            rings: Arc::new(Mutex::new(Rings::default())),
            journal: OnceLock::new(),
            folder,
            counts,
            started: Instant::now(),
        }
    }

    /// Takes new rules. What no rule keeps any more is gone, also from the disk; what is there is read first, which takes as
    /// long as that takes. Blocks.
    ///
    /// # Errors
    /// There are rules for the disk, or were, and its files cannot be used; the rules stay as they were.
    pub fn configure(
        &self,
        logs: &[config::Log],
        realm: impl Fn(&str) -> Option<RealmId>,
    ) -> Result<(), OpenError> {
        let rule = |(place, log): (usize, &config::Log)| {
            Some(Arc::new(Rule {
                place,
                realm: realm(&log.realm)?,
                realm_name: log.realm.as_str().into(),
                pattern: log.pattern.clone(),
                limits: log.limits,
                total_bytes: log.total_bytes,
                on_disk: log.storage == Storage::Disk,
                durability: log.durability,
                slow: log.slow,
            }))
        };
        let rules: Vec<_> = logs.iter().enumerate().filter_map(rule).collect();
        let on_disk = rules.iter().any(|rule| rule.on_disk);
        let opened = match &self.folder {
            // Files without a rule, too: when one comes again, they would not have what was published meanwhile.
            Some(folder) if self.journal.get().is_none() && (on_disk || journal::has_files(folder)) => {
                Some(journal::open(folder, &self.rings, &self.counts)?)
            }
            _ => None,
        };
        let mut rings = self.rings.lock();
        rings.configure(rules.clone(), self.journal.get());
        if let Some((journal, found)) = opened {
            rings.restore(found, self.now_s(), &journal);
            self.journal.set(journal).ok();
        }
        self.rules.store(Arc::new(rules));
        Ok(())
    }

    /// For items that get their order.
    pub const fn open(&self) -> Appending<'_> {
        Appending { log: self, rings: None, strongest: Durability::Accepted }
    }

    /// Makes the records of items, before any lock is held. `least` is the durability that their publisher wants.
    ///
    /// # Errors
    /// It asks for what cannot be had, or what is promised cannot be kept.
    pub fn prepare(&self, realm: RealmId, items: &[Item], least: Durability) -> Result<Batch, Refused> {
        let rules = self.rules.load();
        let weakest = Durability::Synced;
        let mut batch =
            Batch { records: Vec::new(), strongest: least, weakest, waits: false, on_disk: false };
        if items.is_empty() || (rules.is_empty() && least == Durability::Accepted) {
            return Ok(Batch { strongest: Durability::Accepted, weakest: Durability::Accepted, ..batch });
        }
        for item in items {
            let rule = rules.iter().find(|rule| rule.fits(realm, &item.channel));
            let on_disk = rule.is_some_and(|rule| rule.on_disk);
            batch.on_disk |= on_disk;
            if least > Durability::Accepted && !on_disk {
                return Err(Refused::NoDisk(item.channel.as_str().into()));
            }
            let durability = rule.map_or(Durability::Accepted, |rule| rule.durability.max(least));
            batch.waits |= rule.is_some_and(|rule| rule.waits());
            batch.strongest = batch.strongest.max(durability);
            batch.weakest = batch.weakest.min(durability);
            batch.records.push(rule.map(|rule| Record {
                rule: Arc::clone(rule),
                bytes: item.to_record().into(),
                durability,
            }));
        }
        match self.journal.get().and_then(Journal::refusal) {
            Some(why) if batch.strongest > Durability::Accepted => Err(Refused::Disk(why)),
            _ => Ok(batch),
        }
    }

    /// Where in the log of a channel a subscriber goes on that begins like this, and how far it may be given at once:
    /// one item or more, as long as there are no more than so many and no more bytes. `None`: the log cannot prove that
    /// this is everything, or there is none.
    pub fn span(
        &self,
        realm: RealmId,
        channel: &str,
        from: &Start,
        items: usize,
        bytes: usize,
    ) -> Option<Span> {
        let now_s = self.now_s();
        self.rings.lock().span((realm, channel), from, (items, bytes), now_s)
    }

    /// As [`Self::span`], with all its entries.
    pub fn stretch(
        &self,
        realm: RealmId,
        channel: &str,
        from: &Start,
        most: (usize, usize),
    ) -> Option<(Span, Vec<Entry>)> {
        let now_s = self.now_s();
        // Both under one lock: the log may let go what it had a moment ago.
        let rings = self.rings.lock();
        let span = rings.span((realm, channel), from, most, now_s)?;
        let entries = rings.entries((realm, channel), span);
        Some((span, entries))
    }

    /// What [`Self::span`] has found; nothing if it is gone.
    pub fn entries(&self, realm: RealmId, channel: &str, span: Span) -> Vec<Entry> {
        self.rings.lock().entries((realm, channel), span)
    }

    /// How long ago an entry was published, to a second.
    pub fn age_ms(&self, entry: &Entry) -> u64 {
        u64::from(self.now_s().saturating_sub(entry.at_s)) * 1000
    }

    /// Whether the channel is one that has a log.
    pub fn keeps(&self, realm: RealmId, channel: &str) -> bool {
        self.rules.load().iter().any(|rule| rule.fits(realm, channel))
    }

    /// Whether the channel's log is on disk.
    pub fn survives(&self, realm: RealmId, channel: &str) -> bool {
        self.rules.load().iter().find(|rule| rule.fits(realm, channel)).is_some_and(|rule| rule.on_disk)
    }

    /// The place of the newest item that subscribers may have; of epoch 0 if there is none.
    pub fn end(&self, realm: RealmId, channel: &str) -> Place {
        let newest = self.span(realm, channel, &Start::Last(0), 0, 0);
        newest.map_or(Place { epoch: 0, position: 0 }, |span| span.through)
    }

    /// Calls `each` with the ids that are in logs, the oldest of a channel first, and how many milliseconds ago their items
    /// were published, to a second.
    pub fn ids(&self, mut each: impl FnMut(RealmId, &str, &str, u64)) {
        let now_ms = self.now_ms();
        self.rings.lock().ids(&mut |realm, channel, id, at_s| {
            each(realm, channel, id, now_ms.saturating_sub(u64::from(at_s) * 1000));
        });
    }

    /// Drops what is too old and counts what is there; to be called once a second or so.
    pub fn sweep(&self) {
        let (items, bytes, channels) = {
            let mut rings = self.rings.lock();
            rings.sweep(self.now_s());
            rings.totals()
        };
        self.counts.log_items.set(gauge(items));
        self.counts.log_bytes.set(gauge(bytes));
        self.counts.log_channels.set(gauge(channels));
        if let Some(journal) = self.journal.get() {
            self.counts.log_disk_bytes.set(gauge(journal.disk_bytes()));
        }
    }

    /// Writes what waits, and that the end was in order. Blocks.
    pub fn close(&self) {
        if let Some(journal) = self.journal.get() {
            // Whoever appends meanwhile knows, or is done.
            let rings = self.rings.lock();
            journal.refuse();
            drop(rings);
            journal.close();
        }
    }

    /// Whether a channel's items are delivered only when they are kept.
    pub fn waits(&self, realm: RealmId, channel: &str) -> bool {
        self.rules.load().iter().find(|rule| rule.fits(realm, channel)).is_some_and(|rule| rule.waits())
    }

    /// Seconds of a clock that never goes back and that began long before the process, so that older entries have a time.
    fn now_s(&self) -> u32 {
        u32::try_from(self.now_ms() / 1000).unwrap_or(u32::MAX)
    }

    fn now_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        elapsed.saturating_add(u64::from(rings::START_S) * 1000)
    }
}

/// Items on their way into their logs.
#[derive(Debug)]
pub struct Batch {
    /// Empty if nothing has a log.
    records: Vec<Option<Record>>,
    strongest: Durability,
    weakest: Durability,
    waits: bool,
    on_disk: bool,
}

impl Batch {
    /// What can be said of all items when they are kept.
    pub const fn durability(&self) -> Durability {
        self.weakest
    }

    /// What is to be waited for.
    pub const fn strongest(&self) -> Durability {
        self.strongest
    }

    /// Some items are delivered only when they are kept.
    pub const fn waits(&self) -> bool {
        self.waits
    }

    /// What the log of the item in this slot is to be given.
    pub fn take(&mut self, slot: usize) -> Option<Record> {
        self.records.get_mut(slot)?.take()
    }
}

/// What became of an item on the way into its log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Appended {
    /// It may be delivered, and has this place if it has a log.
    Now(Option<Place>),
    /// It may be delivered when it is kept like this, and no sooner: [`Appending::when`].
    When(Place, Durability),
    /// It will not be kept as was promised: the disk takes nothing, or rules have changed. It is to be refused.
    Never,
}

impl Appended {
    /// What it waits for.
    pub const fn durability(self) -> Durability {
        match self {
            Self::When(_, durability) => durability,
            Self::Now(_) | Self::Never => Durability::Accepted,
        }
    }
}

/// An item as its log keeps it.
#[derive(Debug)]
pub struct Record {
    rule: Arc<Rule>,
    bytes: Arc<[u8]>,
    durability: Durability,
}

impl Record {
    /// What its publisher was promised.
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// Whether that is more than its log promises by itself.
    pub fn asks_more(&self) -> bool {
        self.durability > self.rule.durability
    }

    /// Another publisher of the item is promised this.
    pub fn ask(&mut self, durability: Durability) {
        self.durability = self.durability.max(durability);
    }

    /// Whether its item is delivered only when it is kept.
    pub fn waits(&self) -> bool {
        self.rule.waits()
    }

    /// What slow subscribers of its channel get, if its rule says so.
    pub fn slow(&self) -> Option<Slow> {
        self.rule.slow
    }
}

/// The logs, while items are appended to them: locked from the first on.
#[derive(Debug)]
pub struct Appending<'l> {
    log: &'l Log,
    rings: Option<MutexGuard<'l, Rings>>,
    /// What the items wait for, if that is more than their publisher was promised: rules have changed.
    strongest: Durability,
}

impl Appending<'_> {
    fn rings(&mut self) -> &mut Rings {
        let log = self.log;
        self.rings.get_or_insert_with(|| log.rings.lock())
    }

    /// To be called before the items of a batch are appended: from then on the disk does not refuse those that wait for it.
    ///
    /// # Errors
    /// It does.
    pub fn admit(&mut self, batch: &Batch) -> Result<(), Refused> {
        if !batch.on_disk {
            return Ok(());
        }
        let waits = batch.waits || batch.strongest > Durability::Accepted;
        if !waits && !self.rings().is_full() {
            return Ok(());
        }
        self.rings();
        let refusal = self.log.journal.get().and_then(Journal::refusal);
        refusal.map_or(Ok(()), |why| Err(Refused::Disk(why)))
    }

    /// Why an item was [`Appended::Never`].
    pub fn refusal(&self) -> StoreError {
        let why = self.log.journal.get().and_then(Journal::refusal);
        why.unwrap_or_else(|| StoreError::Disk("the log was changed".into()))
    }

    /// What becomes of an item that has its place in the order of its channel.
    pub fn append(&mut self, realm: RealmId, channel: &str, record: Record) -> Appended {
        let (now_s, journal) = (self.log.now_s(), self.log.journal.get());
        let Record { rule, bytes, durability } = record;
        let appended = self.rings().append(&rule, (realm, channel), (bytes, durability), now_s, journal);
        self.strongest = self.strongest.max(appended.durability());
        appended
    }

    /// An item came again that has its place already: its publisher waits for as much as the first one's.
    pub fn repeat(&mut self, realm: RealmId, channel: &str) {
        let pending = self.rings().pending((realm, channel));
        self.strongest = self.strongest.max(pending.unwrap_or_default());
    }

    /// What the log of a channel promises by itself, as its newest entry says, if it has an item of this id, is to have it,
    /// or may have had it.
    pub fn said_of(&mut self, realm: RealmId, channel: &str, id: &str) -> Option<Durability> {
        self.rings().said_of((realm, channel), id)
    }

    /// The id of the item that came last on a channel with a log, if it had one.
    pub fn newest_id(&mut self, realm: RealmId, channel: &str) -> Option<&str> {
        self.rings().newest_id((realm, channel))
    }

    /// Calls `done` when all that was appended so far is kept like this, or cannot be; in the order of these calls, and on
    /// another thread, unless there is nothing to wait for.
    pub fn when(&self, durability: Durability, done: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        match self.log.journal.get().filter(|_| durability > Durability::Accepted) {
            Some(journal) => journal.wait(durability, Box::new(done)),
            None => done(Ok(())),
        }
    }

    /// What the publisher is to wait for, if more than acceptance was promised.
    pub fn finish(self, strongest: Durability) -> Option<Kept> {
        let journal = self.log.journal.get()?;
        let strongest = strongest.max(self.strongest);
        if strongest == Durability::Accepted {
            if self.rings.is_some() {
                drop(self.rings);
                journal.wake();
            }
            return None;
        }
        // Still locked: were the entries refused before this waits, it would wait for nothing, and all would seem well.
        let (sender, receiver) = oneshot::channel();
        // The publisher may have gone.
        journal.wait(strongest, Box::new(move |outcome| drop(sender.send(outcome))));
        Some(Kept(receiver))
    }
}

/// The promise that items survive.
#[derive(Debug)]
pub struct Kept(oneshot::Receiver<Result<(), StoreError>>);

impl Kept {
    /// Resolves when they do.
    ///
    /// # Errors
    /// They may not. Those whose log promises that they would were not delivered either.
    pub async fn wait(self) -> Result<(), StoreError> {
        self.0.await.unwrap_or_else(|_| Err(StoreError::Disk("the server is stopping".into())))
    }
}

fn gauge(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// How often [`Log::sweep`] is to be called.
pub const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
