//! Who has not got everything of a channel that has a log: all its subscribers, because the XMPP server was away or too
//! slow, or an address that was absent. Owns where each goes on in the log, in memory, and the rows that say so on
//! disk. Reads no log and writes no stanza.

use std::collections::VecDeque;

use fantail_proto::{log::Place, xmpp::jid::Jid};
use hashbrown::HashMap;
use redb::TableDefinition;

use crate::{
    hub::{ChannelKey, RealmId},
    store::{Store, StoreError, Work},
};

/// All gaps, and whose turn it is to be filled.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    channels: HashMap<ChannelKey, Gap>,
    addresses: HashMap<Box<str>, Vec<(ChannelKey, Gap)>>,
    /// Of addresses.
    count: usize,
    /// Of each realm that has any.
    turns: HashMap<RealmId, VecDeque<Owed>>,
    changes: Vec<Change>,
}

/// Where somebody goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Gap {
    /// It has everything up to here, or was never owed it.
    through: Place,
    /// Something behind that was not given; else what is published next is.
    missed: bool,
    /// It is among the turns.
    queued: bool,
}

/// Who is owed something of which channel: one address, or all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Owed {
    pub(super) channel: ChannelKey,
    pub(super) jid: Option<Box<str>>,
}

/// What is to be done with a published item.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    Give,
    /// The log has given it already, or is going to.
    Log,
}

/// A row on disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Change {
    owed: Owed,
    through: Option<Place>,
}

impl Gap {
    const fn at(place: Place) -> Self {
        let through = Place { epoch: place.epoch, position: place.position.saturating_sub(1) };
        Self { through, missed: true, queued: false }
    }

    fn fate(&self, place: Place) -> Fate {
        let given = place.epoch == self.through.epoch && place.position <= self.through.position;
        if given || self.missed { Fate::Log } else { Fate::Give }
    }
}

impl Gaps {
    /// What becomes of an item that is to be copied for the subscribers of its channel.
    pub(super) fn pass(&mut self, channel: (RealmId, &str), place: Option<Place>) -> Fate {
        let Some(gap) = place.and_then(|place| Some(self.channels.get(&channel)?.fate(place))) else {
            return Fate::Give;
        };
        if gap == Fate::Give {
            self.end_channel(channel);
        }
        gap
    }

    /// What would become of it, if it were its turn.
    pub(super) fn foresee(&self, channel: (RealmId, &str), place: Place) -> Fate {
        self.channels.get(&channel).map_or(Fate::Give, |gap| gap.fate(place))
    }

    /// An item is not given to anybody. `waits`: it may be some time until the log can be read for it.
    pub(super) fn miss(&mut self, channel: (RealmId, &str), place: Place, waits: bool) {
        if let Some(gap) = self.channels.get_mut(&channel) {
            gap.missed |= gap.fate(place) == Fate::Give;
        } else {
            let key = key(channel);
            self.channels.insert(key.clone(), Gap::at(place));
            self.note(Owed { channel: key, jid: None }, Some(Gap::at(place).through));
        }
        if !waits {
            self.turn(Owed { channel: key(channel), jid: None });
        }
    }

    /// All that the server was too far away for can be given now.
    pub(super) fn resume(&mut self) {
        let keys: Vec<_> = self.channels.keys().cloned().collect();
        keys.into_iter().for_each(|channel| self.turn(Owed { channel, jid: None }));
    }

    /// What becomes of an item for a subscriber who may have it. True when it is to be written.
    pub(super) fn reach(&mut self, jid: &str, channel: (RealmId, &str), place: Option<Place>) -> bool {
        if self.count == 0 {
            return true;
        }
        let Some((gap, place)) = self.address(jid, channel).copied().zip(place) else { return true };
        match gap.fate(place) {
            Fate::Give => self.end_address(jid, channel),
            Fate::Log if gap.missed => self.turn(Owed { channel: key(channel), jid: Some(jid.into()) }),
            Fate::Log => {}
        }
        gap.fate(place) == Fate::Give
    }

    /// A subscriber is absent: it gets the item when it comes back. False if there are too many such to remember it.
    pub(super) fn absent(&mut self, jid: &str, channel: (RealmId, &str), place: Place) -> bool {
        if let Some(gap) = self.address_mut(jid, channel) {
            gap.missed |= gap.fate(place) == Fate::Give;
            return true;
        }
        if self.count >= ADDRESSES {
            return false;
        }
        self.count += 1;
        self.addresses.entry(jid.into()).or_default().push((key(channel), Gap::at(place)));
        self.note(Owed { channel: key(channel), jid: Some(jid.into()) }, Some(Gap::at(place).through));
        true
    }

    /// An entity has said something of its presence.
    pub(super) fn heard(&mut self, from: &Jid) {
        if self.count == 0 {
            return;
        }
        let bare = from.bare();
        let names = if from.resource().is_some() { vec![bare, from.as_str()] } else { vec![bare] };
        for jid in names {
            let channels: Vec<_> =
                self.addresses.get(jid).into_iter().flatten().map(|(channel, _)| channel.clone()).collect();
            channels.into_iter().for_each(|channel| self.turn(Owed { channel, jid: Some(jid.into()) }));
        }
    }

    pub(super) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    pub(super) fn has_turn(&self, realm: RealmId) -> bool {
        self.turns.contains_key(&realm)
    }

    /// Those in which somebody is to be given something.
    pub(super) fn realms(&self) -> Vec<RealmId> {
        self.turns.keys().copied().collect()
    }

    /// Who of a realm is to be given something next, and from where on; not again before [`Self::turn`].
    pub(super) fn next(&mut self, realm: RealmId) -> Option<(Owed, Place)> {
        loop {
            let turns = self.turns.get_mut(&realm)?;
            let owed = turns.pop_front();
            if turns.is_empty() {
                self.turns.remove(&realm);
            }
            let owed = owed?;
            if let Some(gap) = self.get_mut(&owed) {
                gap.queued = false;
                if gap.missed {
                    let through = gap.through;
                    return Some((owed, through));
                }
            }
        }
    }

    /// The log has given all up to there; `whole`: there was nothing behind it.
    pub(super) fn advance(&mut self, owed: &Owed, through: Place, whole: bool) {
        if let Some(gap) = self.get_mut(owed) {
            (gap.through, gap.missed) = (through, !whole);
            if !whole {
                self.turn(owed.clone());
            }
        }
    }

    /// What was given by [`Self::advance`] is written: after a restart it is not owed any more.
    pub(super) fn settle(&mut self, owed: Owed) {
        if let Some(gap) = self.get_mut(&owed).copied() {
            self.note(owed, Some(gap.through));
        }
    }

    pub(super) fn turn(&mut self, owed: Owed) {
        if let Some(gap) = self.get_mut(&owed)
            && !std::mem::replace(&mut gap.queued, true)
        {
            self.turns.entry(owed.channel.realm).or_default().push_back(owed);
        }
    }

    /// The subscription is over; with `last`, nobody subscribes to the channel any more.
    pub(super) fn forget(&mut self, jid: &str, channel: (RealmId, &str), last: bool) {
        self.end_address(jid, channel);
        if last {
            self.end_channel(channel);
        }
    }

    /// What is to be written down.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// What was written down.
    pub(super) fn restore(&mut self, owed: Owed, through: Place) {
        let gap = Gap { through, missed: true, queued: false };
        match owed.jid {
            None => drop(self.channels.insert(owed.channel, gap)),
            Some(_) if self.count >= ADDRESSES => {}
            Some(jid) => {
                self.count += 1;
                self.addresses.entry(jid).or_default().push((owed.channel, gap));
            }
        }
    }

    fn get_mut(&mut self, owed: &Owed) -> Option<&mut Gap> {
        let channel = (owed.channel.realm, &*owed.channel.name);
        match &owed.jid {
            Some(jid) => self.address_mut(jid, channel),
            None => self.channels.get_mut(&channel),
        }
    }

    fn address(&self, jid: &str, channel: (RealmId, &str)) -> Option<&Gap> {
        let gaps = self.addresses.get(jid)?;
        gaps.iter().find(|(key, _)| is(key, channel)).map(|(_, gap)| gap)
    }

    fn address_mut(&mut self, jid: &str, channel: (RealmId, &str)) -> Option<&mut Gap> {
        let gaps = self.addresses.get_mut(jid)?;
        gaps.iter_mut().find(|(key, _)| is(key, channel)).map(|(_, gap)| gap)
    }

    fn end_address(&mut self, jid: &str, channel: (RealmId, &str)) {
        let Some(gaps) = self.addresses.get_mut(jid) else { return };
        let at = gaps.iter().position(|(key, _)| is(key, channel));
        if let Some(at) = at {
            gaps.swap_remove(at);
            self.count -= 1;
        }
        if gaps.is_empty() {
            self.addresses.remove(jid);
        }
        if at.is_some() {
            self.note(Owed { channel: key(channel), jid: Some(jid.into()) }, None);
        }
    }

    fn end_channel(&mut self, channel: (RealmId, &str)) {
        if self.channels.remove(&channel).is_some() {
            self.note(Owed { channel: key(channel), jid: None }, None);
        }
    }

    fn note(&mut self, owed: Owed, through: Option<Place>) {
        self.changes.push(Change { owed, through });
    }
}

fn key((realm, name): (RealmId, &str)) -> ChannelKey {
    ChannelKey { realm, name: name.into() }
}

fn is(key: &ChannelKey, (realm, name): (RealmId, &str)) -> bool {
    key.realm == realm && *key.name == *name
}

/// By address, which is empty for all, realm and channel: epoch and position.
const TABLE: TableDefinition<'_, (&str, &str, &str), (u64, u64)> = TableDefinition::new("gaps");

/// Writes changes down; `name` is a realm's.
pub(super) fn write(changes: Vec<Change>, name: impl Fn(RealmId) -> String) -> Work {
    let rows: Vec<_> = changes.into_iter().map(|change| (name(change.owed.channel.realm), change)).collect();
    Box::new(move |transaction| {
        let mut table = transaction.open_table(TABLE)?;
        for (realm, Change { owed, through }) in &rows {
            let key = (owed.jid.as_deref().unwrap_or_default(), realm.as_str(), &*owed.channel.name);
            match through {
                Some(place) => drop(table.insert(key, (place.epoch, place.position))?),
                None => drop(table.remove(key)?),
            }
        }
        Ok(())
    })
}

/// Calls `each` for what is on disk: address, realm, channel. Blocks.
pub(super) fn load(store: &Store, mut each: impl FnMut(&str, &str, &str, Place)) -> Result<(), StoreError> {
    let mut read = || -> Result<(), redb::Error> {
        let transaction = store.read().map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let table = match transaction.open_table(TABLE) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            table => table?,
        };
        for row in redb::ReadableTable::iter(&table)? {
            let (key, place) = row?;
            let ((jid, realm, channel), (epoch, position)) = (key.value(), place.value());
            each(jid, realm, channel, Place { epoch, position });
        }
        Ok(())
    };
    Ok(read()?)
}

/// Absent addresses whose place in a log is remembered, some 200 bytes each. What others miss is lost to them.
const ADDRESSES: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    const C: (RealmId, &str) = (RealmId(0), "c");

    fn at(position: u64) -> Place {
        Place { epoch: 7, position }
    }

    fn all() -> Owed {
        Owed { channel: key(C), jid: None }
    }

    fn one(jid: &str) -> Owed {
        Owed { jid: Some(jid.into()), ..all() }
    }

    #[test]
    fn what_a_channel_missed_is_the_logs_to_give() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.pass(C, Some(at(4))), Fate::Give);
        gaps.miss(C, at(5), true);
        gaps.miss(C, at(6), true);
        assert!(!gaps.has_turns() && gaps.pass(C, Some(at(7))) == Fate::Log);
        gaps.resume();
        assert_eq!(gaps.next(RealmId(0)), Some((all(), at(4))));
        gaps.advance(&all(), at(6), false);
        assert_eq!(gaps.next(RealmId(0)), Some((all(), at(6))));
        gaps.advance(&all(), at(8), true);
        assert_eq!(gaps.next(RealmId(0)), None);
        // What is still on its way was in the log already.
        assert_eq!((gaps.pass(C, Some(at(7))), gaps.pass(C, Some(at(8)))), (Fate::Log, Fate::Log));
        assert_eq!(gaps.foresee(C, at(9)), Fate::Give);
        gaps.miss(C, at(9), false);
        assert_eq!(gaps.next(RealmId(0)), Some((all(), at(8))), "dropped again before its turn");
        gaps.advance(&all(), at(9), true);
        assert_eq!(gaps.pass(C, Some(at(10))), Fate::Give);
        assert_eq!(gaps.pass(C, Some(at(9))), Fate::Give, "nothing is remembered");
    }

    #[test]
    fn who_was_absent_goes_on_where_it_was() {
        let mut gaps = Gaps::default();
        assert!(
            gaps.absent("a@b", C, at(3)) && gaps.absent("a@b", C, at(5)) && gaps.absent("a@b/r", C, at(5))
        );
        assert!(gaps.reach("b@b", C, Some(at(5))) && gaps.reach("a@b", C, None));
        assert!(!gaps.reach("a@b", C, Some(at(6))), "that would be out of order");
        gaps.heard(&Jid::parse("a@b/r").unwrap());
        assert_eq!(gaps.next(RealmId(0)), Some((one("a@b"), at(2))));
        gaps.advance(&one("a@b"), at(6), true);
        assert_eq!(gaps.next(RealmId(0)), Some((one("a@b/r"), at(4))));
        assert!(!gaps.reach("a@b", C, Some(at(6))) && gaps.reach("a@b", C, Some(at(7))));
        assert!(gaps.reach("a@b", C, Some(at(7))));
        gaps.forget("a@b/r", C, true);
        assert_eq!((gaps.count, gaps.addresses.len()), (0, 0));
    }

    #[tokio::test]
    async fn gaps_are_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&folder.path().join("x.redb"), 1 << 20).unwrap();
        let mut gaps = Gaps::default();
        gaps.miss(C, at(5), true);
        gaps.absent("a@b", C, at(3));
        gaps.absent("c@d", C, at(3));
        gaps.forget("c@d", C, false);
        gaps.advance(&one("a@b"), at(9), true);
        gaps.settle(one("a@b"));
        store.write(write(gaps.changes(), |_| "r".into())).await.unwrap();
        let mut found = Vec::new();
        load(&store, |jid, realm, channel, at| {
            found.push((jid.to_owned(), format!("{realm}/{channel}"), at))
        })
        .unwrap();
        assert_eq!(found, [(String::new(), "r/c".into(), at(4)), ("a@b".into(), "r/c".into(), at(9))]);
    }
}
