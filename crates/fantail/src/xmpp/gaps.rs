//! Who has not got everything of a channel that has a log: all its subscribers, because the XMPP server was away or too
//! slow, or an address that was absent. Owns where each goes on in the log, in memory, and what of that is to be written
//! down. Reads no log and writes no stanza.

use std::collections::VecDeque;

use fantail_proto::{log::Place, xmpp::jid::Jid};
use hashbrown::{HashMap, hash_map::Entry};

use crate::hub::{ChannelKey, RealmId};

/// All gaps, and whose turn it is to be filled.
#[derive(Debug)]
pub(super) struct Gaps {
    channels: HashMap<ChannelKey, Gap>,
    addresses: HashMap<Box<str>, Vec<(ChannelKey, Gap)>>,
    /// Of addresses: in all, and of each realm that has any.
    count: usize,
    counts: HashMap<RealmId, usize>,
    /// How many of addresses there may be: in all, and of one realm.
    most: (usize, usize),
    /// Of each realm that has any.
    turns: HashMap<RealmId, VecDeque<Owed>>,
    changes: Changes,
    /// What becomes true when the server has taken what it is given: of each piece, the oldest first.
    held: VecDeque<Changes>,
}

/// What is to be written down: through where everything was handed over; nothing is owed without a place.
pub(super) type Changes = HashMap<Owed, Option<Place>>;

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
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
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
    pub(super) fn new(most: usize, realm_most: usize) -> Self {
        Self {
            channels: HashMap::new(),
            addresses: HashMap::new(),
            count: 0,
            counts: HashMap::new(),
            most: (most, realm_most),
            turns: HashMap::new(),
            changes: Changes::new(),
            held: VecDeque::new(),
        }
    }

    /// What becomes of an item that is to be copied for the subscribers of its channel.
    pub(super) fn pass(&mut self, channel: (RealmId, &str), place: Option<Place>) -> Fate {
        let Some(gap) = place.and_then(|place| Some(self.channels.get(&channel)?.fate(place))) else {
            return Fate::Give;
        };
        if gap == Fate::Give {
            self.channels.remove(&channel);
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
            self.channels.insert(key(channel), Gap::at(place));
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
            Fate::Give => {
                self.end_address(jid, channel);
                self.note(Owed { channel: key(channel), jid: Some(jid.into()) }, None);
            }
            Fate::Log if gap.missed => self.turn(Owed { channel: key(channel), jid: Some(jid.into()) }),
            Fate::Log => {}
        }
        gap.fate(place) == Fate::Give
    }

    /// A subscriber is absent: it gets the item when it comes back. False if there are too many such to remember it: of
    /// its realm, or in all. Who may still be there has half of the room.
    pub(super) fn absent(
        &mut self,
        jid: &str,
        channel: (RealmId, &str),
        place: Place,
        doubted: bool,
    ) -> bool {
        if let Some(gap) = self.address_mut(jid, channel) {
            gap.missed |= gap.fate(place) == Fate::Give;
            return true;
        }
        let own = self.counts.get(&channel.0).copied().unwrap_or(0);
        if doubted && (self.count >= self.most.0 / 2 || own >= self.most.1 / 2) {
            return false;
        }
        if !self.add(jid.into(), key(channel), Gap::at(place)) {
            return false;
        }
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

    /// All subscribers have got this item, or have their own gaps.
    pub(super) fn hand(&mut self, channel: (RealmId, &str), place: Place) {
        self.note(Owed { channel: key(channel), jid: None }, Some(place));
    }

    /// The channel has its first subscriber, who is owed what comes next.
    pub(super) fn begin(&mut self, channel: ChannelKey, through: Place) {
        self.note_now(Owed { channel, jid: None }, Some(through));
    }

    /// What was given by [`Self::advance`] is on its way: after a restart it is not owed any more.
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
        if self.end_address(jid, channel) {
            self.note_now(Owed { channel: key(channel), jid: Some(jid.into()) }, None);
        }
        if last {
            self.channels.remove(&channel);
            self.note_now(Owed { channel: key(channel), jid: None }, None);
        }
    }

    /// From now on what is noted waits until the server has taken the piece that is made meanwhile.
    pub(super) fn hold(&mut self) {
        self.held.push_back(Changes::new());
    }

    /// The oldest piece has become two, of which the second has all that is to be noted.
    pub(super) fn split(&mut self) {
        self.held.push_front(Changes::new());
    }

    /// The server has the oldest piece.
    pub(super) fn release(&mut self) {
        self.changes.extend(self.held.pop_front().into_iter().flatten());
    }

    /// There was nothing to be made for the server: it is true when all before it is.
    pub(super) fn pass_on(&mut self) {
        let passed = self.held.pop_back().unwrap_or_default();
        self.held.back_mut().unwrap_or(&mut self.changes).extend(passed);
    }

    /// What is to be written down.
    pub(super) fn changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// They could not be written; what has changed since counts. Rows that should go and for which there is no room the next
    /// start finds again, and they are of no use.
    pub(super) fn take_back(&mut self, changes: Changes) {
        for (owed, through) in changes {
            if through.is_some() || self.changes.len() < UNWRITTEN {
                self.changes.entry(owed).or_insert(through);
            }
        }
    }

    /// What was written down, if it can be remembered.
    pub(super) fn restore(&mut self, owed: Owed, through: Place) -> bool {
        let gap = Gap { through, missed: true, queued: false };
        match owed.jid {
            None => drop(self.channels.insert(owed.channel, gap)),
            Some(jid) => return self.add(jid, owed.channel, gap),
        }
        true
    }

    /// One of an address that has none of this channel, if there is room.
    fn add(&mut self, jid: Box<str>, channel: ChannelKey, gap: Gap) -> bool {
        let own = self.counts.get(&channel.realm).copied().unwrap_or(0);
        if self.count >= self.most.0 || own >= self.most.1 {
            return false;
        }
        self.count += 1;
        self.counts.insert(channel.realm, own + 1);
        self.addresses.entry(jid).or_default().push((channel, gap));
        true
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

    /// False if there was none.
    fn end_address(&mut self, jid: &str, channel: (RealmId, &str)) -> bool {
        let Some(gaps) = self.addresses.get_mut(jid) else { return false };
        let at = gaps.iter().position(|(key, _)| is(key, channel));
        if let Some(at) = at {
            gaps.swap_remove(at);
            self.count -= 1;
            if let Entry::Occupied(mut own) = self.counts.entry(channel.0) {
                *own.get_mut() -= 1;
                if *own.get() == 0 {
                    own.remove();
                }
            }
        }
        if gaps.is_empty() {
            self.addresses.remove(jid);
        }
        at.is_some()
    }

    fn note(&mut self, owed: Owed, through: Option<Place>) {
        self.held.back_mut().unwrap_or(&mut self.changes).insert(owed, through);
    }

    /// Whatever the server has taken.
    fn note_now(&mut self, owed: Owed, through: Option<Place>) {
        for held in &mut self.held {
            held.remove(&owed);
        }
        self.changes.insert(owed, through);
    }
}

fn key((realm, name): (RealmId, &str)) -> ChannelKey {
    ChannelKey { realm, name: name.into() }
}

fn is(key: &ChannelKey, (realm, name): (RealmId, &str)) -> bool {
    key.realm == realm && *key.name == *name
}

/// Rows that a disk that fails has not let go.
const UNWRITTEN: usize = 100_000;

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
        let mut gaps = Gaps::new(3, 2);
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
        let mut gaps = Gaps::new(3, 2);
        assert!(
            gaps.absent("a@b", C, at(3), false)
                && gaps.absent("a@b", C, at(5), false)
                && gaps.absent("a@b/r", C, at(5), false)
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
        assert_eq!((gaps.count, gaps.counts.len(), gaps.addresses.len()), (0, 0, 0));
    }

    /// One realm leaves room for the places of others.
    #[test]
    fn places_of_the_absent_have_limits() {
        let mut gaps = Gaps::new(3, 2);
        let mut absent = |jid: &str, realm: u32| gaps.absent(jid, (RealmId(realm), "c"), at(3), false);
        assert!(absent("a@b", 0) && absent("b@b", 0) && !absent("c@b", 0) && absent("a@b", 0));
        assert!(absent("a@b", 1) && !absent("b@b", 1));
        gaps.forget("b@b", C, false);
        let of = |jid: &str, realm: u32| Owed {
            channel: ChannelKey { realm: RealmId(realm), name: "c".into() },
            jid: Some(jid.into()),
        };
        assert!(gaps.restore(of("b@b", 1), at(2)) && !gaps.restore(of("c@b", 2), at(2)));
        gaps.forget("a@b", C, false);
        assert!(!gaps.restore(of("c@b", 1), at(2)) && gaps.restore(of("c@b", 2), at(2)));
    }

    /// Who is only doubted leaves room for who is absent.
    #[test]
    fn the_doubted_have_half_of_the_room() {
        for most in [(4, 9), (9, 4)] {
            let mut gaps = Gaps::new(most.0, most.1);
            let mut absent = |jid: &str, doubted: bool| gaps.absent(jid, C, at(3), doubted);
            assert!(
                absent("a@b", true) && absent("b@b", true) && !absent("c@b", true) && absent("a@b", true)
            );
            assert!(absent("c@b", false) && absent("d@b", false) && !absent("e@b", false));
        }
    }

    /// What is written down is never ahead of what the server has.
    #[test]
    fn what_is_made_counts_when_it_is_taken() {
        let mut gaps = Gaps::new(3, 2);
        gaps.begin(key(C), at(2));
        gaps.hold();
        gaps.hand(C, at(3));
        gaps.absent("a@b", C, at(3), false);
        assert_eq!(gaps.changes().into_iter().collect::<Vec<_>>(), [(all(), Some(at(2)))]);
        gaps.release();
        gaps.hand(C, at(4));
        let taken = gaps.changes();
        assert_eq!((taken.get(&all()), taken.get(&one("a@b"))), (Some(&Some(at(4))), Some(&Some(at(2)))));
        gaps.hand(C, at(5));
        gaps.take_back(taken);
        assert_eq!((gaps.changes.get(&all()), gaps.changes.len()), (Some(&Some(at(5))), 2));
        gaps.hold();
        gaps.hand(C, at(6));
        gaps.forget("a@b", C, true);
        gaps.release();
        let taken = gaps.changes();
        assert_eq!((taken.get(&all()), taken.get(&one("a@b"))), (Some(&None), Some(&None)));
        // One piece after the other, and what was for nobody with the one before it.
        for position in 7..=9 {
            gaps.hold();
            gaps.hand(C, at(position));
            if position == 8 {
                gaps.pass_on();
            }
        }
        assert!(gaps.changes().is_empty());
        gaps.release();
        assert_eq!(gaps.changes().get(&all()), Some(&Some(at(8))));
        gaps.release();
        assert_eq!(gaps.changes().get(&all()), Some(&Some(at(9))));
        gaps.take_back((0..2 * UNWRITTEN).map(|n| (one(&n.to_string()), None)).collect());
        assert_eq!(gaps.changes().len(), UNWRITTEN);
    }
}
