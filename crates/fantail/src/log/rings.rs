//! The logs in memory: a ring a channel, and the order in which entries of one rule came, by which the oldest go
//! first when they are too old or too many together. Whatever is lost that a log may have promised begins it anew.

mod order;

use std::{hash::BuildHasher as _, sync::Arc};

use fantail_proto::log::{Durability, Entry, Place, Ring, Start};
use hashbrown::HashSet;
use slab::Slab;

use order::{Order, Ticket};

use super::{
    Appended, Rule, Span,
    files::{Found, Logged},
    journal::{Journal, Promise},
};
use crate::channel::{ByName, ChannelKey, RealmId};

#[derive(Debug, Default)]
pub(super) struct Rings {
    by_name: ByName<ChannelKey, u32>,
    all: Slab<Channel>,
    rules: Vec<Shelf>,
    /// Of the log that was begun last.
    epoch: u64,
    /// Hashes of channels that were forgotten since the journal took an entry for the last time: at about [`MAX_REFUSED`]
    /// nothing that it is to keep is taken any more.
    refused: HashSet<u64>,
}

#[derive(Debug)]
struct Channel {
    realm: RealmId,
    name: Arc<str>,
    ring: Ring,
    /// The place of its rule.
    rule: usize,
    /// What its newest entry says on disk that it was promised.
    said: Durability,
    /// The next entry is kept like this at least, whatever its rule promises: as what is pending, which nothing passes, and
    /// as the newest on disk says. Else the log would look whole after an end that cost it the next one alone.
    least: Durability,
}

/// What one rule keeps.
#[derive(Debug)]
struct Shelf {
    rule: Arc<Rule>,
    held: Held,
    /// What its channels take beside their entries: names are free to choose, and a new one may have one small entry.
    channels: usize,
    /// Entries as they came, those that are gone since included.
    order: Order,
}

/// What logs hold together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Held {
    items: usize,
    /// Of records.
    bytes: usize,
    /// Of their channels' names: each entry on disk has one.
    names: usize,
}

impl Held {
    /// One of the logs held `before` and holds `now`.
    const fn change(&mut self, before: Self, now: Self) {
        self.items = self.items + now.items - before.items;
        self.bytes = self.bytes + now.bytes - before.bytes;
        self.names = self.names + now.names - before.names;
    }
}

impl Channel {
    fn held(&self) -> Held {
        let items = self.ring.len();
        Held { items, bytes: self.ring.bytes(), names: items * self.name.len() }
    }
}

impl Shelf {
    fn new(rule: Arc<Rule>) -> Self {
        Self { rule, held: Held::default(), channels: 0, order: Order::default() }
    }
}

impl Rings {
    pub(super) fn configure(&mut self, rules: Vec<Arc<Rule>>, journal: Option<&Journal>) {
        let mut ended = Vec::new();
        for (slot, channel) in &mut self.all {
            let before = self.rules.get(channel.rule).map(|shelf| &shelf.rule);
            match rules.iter().find(|rule| rule.fits(channel.realm, &channel.name)) {
                // Where its entries are is not changed under it.
                Some(rule) if before.is_some_and(|before| before.on_disk == rule.on_disk) => {
                    channel.rule = rule.place;
                }
                _ => ended.push((u32::try_from(slot).unwrap_or(u32::MAX), before.cloned())),
            }
        }
        ended.iter().for_each(|(slot, rule)| self.forget(*slot, rule.as_deref(), journal));
        self.rules = rules.into_iter().map(Shelf::new).collect();
        self.line_up();
    }

    /// What was on disk when it was opened; what of it proves nothing is forgotten there, too.
    pub(super) fn restore(&mut self, found: Found, now_s: u32, journal: &Journal) {
        let Found { logs, epoch, now_ms } = found;
        for Logged { realm, channel, place, entries, promised, proven } in logs {
            let fits = |shelf: &&Shelf| *shelf.rule.realm_name == *realm && shelf.rule.pattern.fits(&channel);
            // By the rule that what comes next goes by, or it would go elsewhere.
            let shelf = self.rules.iter().find(fits);
            let Some(shelf) = shelf.filter(|shelf| shelf.rule.on_disk && proven) else {
                journal.forget(&realm, &channel, place.epoch);
                continue;
            };
            let rule = Arc::clone(&shelf.rule);
            let (mut ring, mut at_s) = (Ring::at(place), 0);
            for (at_ms, record) in entries {
                let age_s = u32::try_from(now_ms.saturating_sub(at_ms) / 1000).unwrap_or(u32::MAX);
                // A clock that was set back does not change their order.
                at_s = now_s.saturating_sub(age_s).max(at_s);
                let at = ring.push(Entry::new(record, at_s));
                ring.keep(at.position);
            }
            ring.trim(&rule.limits, now_s);
            if !ring.is_empty() {
                self.insert(&rule, &channel, ring, promised);
            }
        }
        self.epoch = self.epoch.max(epoch);
        self.line_up();
        self.sweep(now_s);
    }

    /// The place of a new entry, if it has a log. `asked`: what its publisher was promised, which may be more than its rule
    /// promises by now.
    pub(super) fn append(
        &mut self,
        rule: &Arc<Rule>,
        (realm, channel): (RealmId, &str),
        (record, asked): (Arc<[u8]>, Durability),
        now_s: u32,
        journal: Option<&Journal>,
    ) -> Appended {
        let unkept = if asked > Durability::Accepted { Appended::Never } else { Appended::Now(None) };
        let place = match self.rules.get(rule.place) {
            Some(shelf) if Arc::ptr_eq(&shelf.rule, rule) => rule.place,
            // There are other rules since the record was made.
            _ => match self.rules.iter().position(|shelf| shelf.rule.fits(realm, channel)) {
                Some(place) => place,
                None => return unkept,
            },
        };
        if unkept == Appended::Never && !self.rules[place].rule.on_disk {
            return unkept;
        }
        let known = self.by_name.get(&(realm, channel)).copied();
        let slot = known.unwrap_or_else(|| {
            self.epoch = self.epoch.max(now_ns()) + 1;
            let (rule, ring) = (Arc::clone(&self.rules[place].rule), Ring::new(self.epoch));
            self.insert(&rule, channel, ring, Durability::Accepted)
        });
        let shelf = &mut self.rules[place];
        let rule = Arc::clone(&shelf.rule);
        let Some(log) = self.all.get_mut(slot as usize) else { return unkept };
        let (said, before) = (rule.durability, log.held());
        let promised = said.max(log.least);
        let waits = rule.on_disk && promised > Durability::Accepted;
        if rule.on_disk {
            let at = Place { epoch: log.ring.epoch(), position: log.ring.next() };
            let named = (&rule.realm_name, &log.name, slot);
            let promise = Promise { kept: promised, said };
            let taken =
                journal.is_some_and(|journal| journal.append(named, at, promise, Arc::clone(&record)));
            if !taken && (waits || unkept == Appended::Never) {
                if known.is_none() {
                    self.remove(slot);
                }
                return Appended::Never;
            }
            if !taken {
                // Once is enough while nothing can be written, whatever is published meanwhile.
                let first = self.refused.insert(self.by_name.hasher().hash_one((realm, channel)));
                self.forget(slot, first.then_some(&*rule), journal);
                return Appended::Now(None);
            }
            self.refused.clear();
        }
        let at = log.ring.push(Entry::new(record, now_s));
        (log.said, log.least) = (said, promised);
        if !waits {
            log.ring.keep(at.position);
        }
        log.ring.trim(&rule.limits, now_s);
        shelf.held.change(before, log.held());
        shelf.note(Ticket::new(slot, at), &self.all);
        self.shorten(place, now_s);
        if waits { Appended::When(at, promised) } else { Appended::Now(Some(at)) }
    }

    /// So many channels had to be forgotten that no more can be noted: until the disk takes something again, nothing is to be
    /// accepted that it is to keep.
    pub(super) fn is_full(&self) -> bool {
        self.refused.len() >= MAX_REFUSED
    }

    /// Entries are kept as was promised: they may be given to subscribers.
    pub(super) fn keep(&mut self, slot: u32, at: Place) {
        let Some(log) = self.all.get_mut(slot as usize).filter(|log| log.ring.epoch() == at.epoch) else {
            return;
        };
        let before = log.held();
        log.ring.keep(at.position);
        if !log.ring.has_pending() {
            log.least = log.said;
        }
        let Some(shelf) = self.rules.get_mut(log.rule) else { return };
        // What is too old is swept.
        log.ring.trim(&shelf.rule.limits, 0);
        shelf.held.change(before, log.held());
    }

    /// What is pending cannot be kept: nobody has seen it, and it has never been there.
    pub(super) fn drop_pending(&mut self) {
        let mut empty = Vec::new();
        for (slot, log) in self.all.iter_mut().filter(|(_, log)| log.ring.has_pending()) {
            let before = log.held();
            log.ring.drop_pending();
            log.said = log.least;
            if let Some(shelf) = self.rules.get_mut(log.rule) {
                shelf.held.change(before, log.held());
            }
            empty.extend(log.ring.is_empty().then(|| u32::try_from(slot).unwrap_or(u32::MAX)));
        }
        empty.into_iter().for_each(|slot| _ = self.remove(slot));
    }

    /// What a channel's pending entries wait for, if there are any.
    pub(super) fn pending(&self, channel: (RealmId, &str)) -> Option<Durability> {
        let log = self.all.get(*self.by_name.get(&channel)? as usize)?;
        log.ring.has_pending().then_some(log.least)
    }

    /// The id of a channel's newest entry, pending or not.
    pub(super) fn newest_id(&self, channel: (RealmId, &str)) -> Option<&str> {
        self.ring(channel)?.newest_id()
    }

    /// What the newest entry of a channel's log says that it was promised, if the log has an item of this id, pending or
    /// not, or may have had it.
    pub(super) fn said_of(&self, channel: (RealmId, &str), id: &str) -> Option<Durability> {
        let log = self.all.get(*self.by_name.get(&channel)? as usize)?;
        log.ring.may_have_had(id).then_some(log.said)
    }

    pub(super) fn span(
        &self,
        channel: (RealmId, &str),
        from: &Start,
        (items, bytes): (usize, usize),
        now_s: u32,
    ) -> Option<Span> {
        let ring = self.ring(channel).or_else(|| {
            // One who wants the newest of a log that has none gets none.
            let late = matches!(from, Start::Last(_) | Start::Since(_));
            late.then_some(&NOTHING)
        })?;
        let after = ring.after(from, now_s)?;
        let (mut count, mut size) = (0, 0);
        for entry in ring.behind(after).take(items) {
            size += entry.record.len();
            if count > 0 && size > bytes {
                break;
            }
            count += 1;
        }
        let position = after + count;
        let through = Place { epoch: ring.epoch(), position };
        Some(Span { after, through, whole: position + 1 == ring.end() })
    }

    pub(super) fn entries(&self, channel: (RealmId, &str), span: Span) -> Vec<Entry> {
        let ring = self.ring(channel).filter(|ring| ring.epoch() == span.through.epoch);
        let count = usize::try_from(span.through.position - span.after).unwrap_or(usize::MAX);
        ring.map(|ring| ring.behind(span.after).take(count).cloned().collect()).unwrap_or_default()
    }

    fn ring(&self, (realm, channel): (RealmId, &str)) -> Option<&Ring> {
        let slot = self.by_name.get(&(realm, channel))?;
        Some(&self.all.get(*slot as usize)?.ring)
    }

    /// With the times of their entries.
    pub(super) fn ids(&self, each: &mut dyn FnMut(RealmId, &str, &str, u32)) {
        for (_, log) in &self.all {
            let entries = log.ring.behind(log.ring.first() - 1);
            let ids = entries.filter_map(|entry| Some((entry.id()?, entry.at_s)));
            ids.for_each(|(id, at_s)| each(log.realm, &log.name, id, at_s));
        }
    }

    /// Drops what is too old.
    pub(super) fn sweep(&mut self, now_s: u32) {
        (0..self.rules.len()).for_each(|place| self.shorten(place, now_s));
    }

    /// Items, bytes of records, channels.
    pub(super) fn totals(&self) -> (usize, usize, usize) {
        let items = self.rules.iter().map(|shelf| shelf.held.items).sum();
        (items, self.rules.iter().map(|shelf| shelf.held.bytes).sum(), self.all.len())
    }

    #[cfg(test)]
    pub(super) fn tickets(&self) -> usize {
        self.rules.iter().map(|shelf| shelf.order.len()).sum()
    }

    /// Bytes on disk that are of use.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        let of = |Shelf { rule, held, .. }: &Shelf| {
            held.bytes + held.names + held.items * (rule.realm_name.len() + RECORD_COST)
        };
        self.rules.iter().filter(|shelf| shelf.rule.on_disk).map(|shelf| of(shelf) as u64).sum()
    }

    /// Whether an entry on disk is one that is here.
    pub(super) fn has(&self, realm: &str, channel: &str, at: Place) -> bool {
        let rule = self.rules.iter().find(|shelf| *shelf.rule.realm_name == *realm);
        let slot = rule.and_then(|shelf| self.by_name.get(&(shelf.rule.realm, channel)));
        let ring = slot.and_then(|slot| self.all.get(*slot as usize)).map(|log| &log.ring);
        ring.is_some_and(|ring| {
            ring.epoch() == at.epoch && (ring.first()..ring.next()).contains(&at.position)
        })
    }

    /// `said`: by its newest entry on disk.
    fn insert(&mut self, rule: &Rule, channel: &str, ring: Ring, said: Durability) -> u32 {
        let key = ChannelKey { realm: rule.realm, name: channel.into() };
        let (realm, name) = (rule.realm, channel.into());
        let log = Channel { realm, name, ring, rule: rule.place, said, least: said };
        let slot = u32::try_from(self.all.insert(log)).expect("fewer than 2^32 channels: memory ends first");
        self.by_name.insert(key, slot);
        if let Some(shelf) = self.rules.get_mut(rule.place) {
            shelf.channels += channel_cost(channel);
        }
        slot
    }

    fn remove(&mut self, slot: u32) -> Option<Channel> {
        let log = self.all.try_remove(slot as usize)?;
        self.by_name.remove(&(log.realm, &*log.name));
        if let Some(shelf) = self.rules.get_mut(log.rule) {
            shelf.held.change(log.held(), Held::default());
            shelf.channels = shelf.channels.saturating_sub(channel_cost(&log.name));
        }
        Some(log)
    }

    /// What comes next may not follow what is there: the log ends.
    fn forget(&mut self, slot: u32, rule: Option<&Rule>, journal: Option<&Journal>) {
        let Some(log) = self.remove(slot) else { return };
        if let (Some(rule), Some(journal)) = (rule.filter(|rule| rule.on_disk), journal) {
            journal.forget(&rule.realm_name, &log.name, log.ring.epoch());
        }
    }

    /// Drops the oldest of a rule's entries while they are too old or too many together.
    fn shorten(&mut self, place: usize, now_s: u32) {
        loop {
            let shelf = &mut self.rules[place];
            let Some(ticket) = shelf.order.first() else { break };
            let log = self.all.get_mut(ticket.channel as usize).filter(|log| log.rule == place);
            if let Some(log) = log.filter(|log| ticket.is_first_of(&log.ring)) {
                let (Some(oldest), before) = (log.ring.oldest(), log.held()) else { break };
                let old = now_s.saturating_sub(oldest.at_s) >= shelf.rule.limits.age_s;
                if !old && shelf.held.bytes + shelf.channels <= shelf.rule.total_bytes {
                    break;
                }
                log.ring.drop_oldest();
                shelf.held.change(before, log.held());
                if log.ring.is_empty() {
                    self.remove(ticket.channel);
                }
            }
            self.rules[place].order.pop();
        }
    }

    /// Puts all entries in order of their times; those of one second channel by channel.
    fn line_up(&mut self) {
        let mut all: Vec<Vec<(u32, Ticket)>> = self.rules.iter().map(|_| Vec::new()).collect();
        for shelf in &mut self.rules {
            *shelf = Shelf::new(Arc::clone(&shelf.rule));
        }
        for (slot, log) in &self.all {
            let slot = u32::try_from(slot).unwrap_or(u32::MAX);
            let first = log.ring.first();
            self.rules[log.rule].held.change(Held::default(), log.held());
            self.rules[log.rule].channels += channel_cost(&log.name);
            all[log.rule].extend(log.ring.all().zip(first..).map(|(entry, position)| {
                (entry.at_s, Ticket::new(slot, Place { epoch: log.ring.epoch(), position }))
            }));
        }
        for (shelf, mut tickets) in self.rules.iter_mut().zip(all) {
            tickets.sort_by_key(|(at_s, _)| *at_s);
            shelf.order = tickets.into_iter().map(|(_, ticket)| ticket).collect();
        }
    }
}

impl Shelf {
    fn note(&mut self, ticket: Ticket, logs: &Slab<Channel>) {
        // A quiet channel's entry stays in front of a busy one's, most of which are gone.
        if self.order.len() > 2 * self.held.items + GONE {
            self.order.retain(|ticket| {
                logs.get(ticket.channel as usize).is_some_and(|log| ticket.is_of(&log.ring))
            });
        }
        self.order.push(ticket);
    }
}

/// What a channel takes in memory beside its entries.
pub(super) fn channel_cost(name: &str) -> usize {
    // Its name is in two maps.
    CHANNEL_COST + 2 * name.len()
}

/// Epochs grow from one run of the process to the next, even if nothing is left of the last.
fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(0)
}

/// Of a channel without items.
static NOTHING: Ring = Ring::new(0);

/// When the process starts, on the clock of entries.
pub(super) const START_S: u32 = 1 << 31;
/// A channel without its name and entries: places in maps, a ring.
const CHANNEL_COST: usize = 352;
/// A record on disk beside the item's own and the names: numbers, checksum.
const RECORD_COST: usize = 64;
/// Channels that are forgotten while the disk takes nothing; each is a record to write, with its name, and a hash.
pub(super) const MAX_REFUSED: usize = 65_536;
/// Tickets of entries that are gone, beyond one for each that is there.
const GONE: usize = 64;
