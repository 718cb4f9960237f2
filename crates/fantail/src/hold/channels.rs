//! Who subscribes to which channel on this shard: four lists a channel, for streams, long-polls,
//! WebSockets and SockJS, because an item has a body for each. Joining and leaving cost a lookup and a swap.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use fantail_pin::PinId;
use fantail_proto::log::{Entry, Start};
use slab::Slab;

use super::{Sub, Subs, milliseconds};
use crate::{
    channel::ByName,
    hub::{ChannelKey, Hub, RealmId},
    log::Span,
    metrics::Counters,
    stats::Notes,
};

/// A channel's lists of subscribers.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum List {
    Streams,
    Polls,
    WebSockets,
    /// WebSockets and sessions whose clients speak SockJS.
    SockJs,
}

impl List {
    /// Whether its holds get messages.
    pub(super) fn is_spoken_to(self) -> bool {
        matches!(self, Self::WebSockets | Self::SockJs)
    }
}

#[derive(Debug)]
pub(super) struct Channels {
    by_name: ByName<ChannelKey, u32>,
    all: Slab<Channel>,
    hub: Arc<Hub>,
    shard: usize,
    counters: Arc<Counters>,
    notes: Option<Arc<Notes>>,
    changes: u64,
    /// Channels that are new to all shards, and until when: oldest first, and at most those of a second.
    fresh: VecDeque<(u64, ChannelKey)>,
    now_ms: u64,
    /// Whether to note them.
    notes_fresh: bool,
}

#[derive(Debug)]
struct Channel {
    key: (RealmId, Box<str>),
    lists: [Vec<PinId>; 4],
    /// Subscriptions with filters or a position: while there are none, a list is taken whole.
    apart: usize,
    /// When the last long-poll left.
    polled_ms: Option<u64>,
}

impl Channels {
    pub(super) fn new(hub: Arc<Hub>, shard: usize, counters: Arc<Counters>, notes_fresh: bool) -> Self {
        let (by_name, all, fresh) = (ByName::default(), Slab::new(), VecDeque::new());
        Self { by_name, all, hub, shard, counters, notes: None, changes: 0, fresh, now_ms: 0, notes_fresh }
    }

    pub(super) const fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    pub(super) const fn note_fresh(&mut self, notes: bool) {
        self.notes_fresh = notes;
    }

    /// A channel that was new a second ago, and still has subscribers here.
    pub(super) fn pop_fresh(&mut self) -> Option<u32> {
        while let Some((_, key)) = self.fresh.pop_front_if(|(due_ms, _)| *due_ms <= self.now_ms) {
            if let Some(channel) = self.find(key.realm, &key.name) {
                return Some(channel);
            }
        }
        None
    }

    /// When [`Self::pop_fresh`] has something.
    pub(super) fn fresh_ms(&self) -> Option<u64> {
        self.fresh.front().map(|(due_ms, _)| *due_ms)
    }

    /// Whether the item that came last is known to be another than this.
    pub(super) fn contradicts(&self, realm: RealmId, name: &str, prev_id: &str) -> bool {
        self.hub.contradicts(realm, name, prev_id)
    }

    /// An origin insists that another item came last: until the next one no order of a channel counts.
    pub(super) fn forget(&self, channel: u32) {
        let (realm, name) = &self.all[channel as usize].key;
        self.hub.forget(*realm, name);
    }

    /// From now on subscribers are noted.
    pub(super) fn watch(&mut self, notes: Arc<Notes>) {
        self.notes = Some(notes);
    }

    /// Notes how many have a channel now.
    fn note(&self, channel: &Channel, list: List) {
        if let Some(notes) = &self.notes
            && channel.key.0 == RealmId::default()
        {
            let len = |list: List| channel.lists[list as usize].len();
            let count = match list {
                List::WebSockets | List::SockJs => len(List::WebSockets) + len(List::SockJs),
                list => len(list),
            };
            notes.subscribers(list.mode(), &channel.key.1, count);
        }
    }

    pub(super) fn find(&self, realm: RealmId, name: &str) -> Option<u32> {
        self.by_name.get(&(realm, name)).copied()
    }

    pub(super) fn name(&self, channel: u32) -> &str {
        &self.all[channel as usize].key.1
    }

    pub(super) fn key(&self, channel: u32) -> (RealmId, &str) {
        let (realm, name) = &self.all[channel as usize].key;
        (*realm, name)
    }

    /// Whether items of this channel are kept.
    pub(super) fn is_logged(&self, channel: u32) -> bool {
        let (realm, name) = self.key(channel);
        self.hub.log().keeps(realm, name)
    }

    /// What its log has for a subscriber, at most so much; none if it cannot show that this is everything.
    pub(super) fn span(&self, channel: u32, from: &Start, items: usize, bytes: usize) -> Option<Span> {
        let (realm, name) = self.key(channel);
        self.hub.log().span(realm, name, from, items, bytes)
    }

    /// The same, with its entries.
    pub(super) fn stretch(
        &self,
        channel: u32,
        from: &Start,
        items: usize,
        bytes: usize,
    ) -> Option<(Span, Vec<Entry>)> {
        let (realm, name) = self.key(channel);
        self.hub.log().stretch(realm, name, from, (items, bytes))
    }

    pub(super) fn is(&self, channel: u32, realm: RealmId, name: &str) -> bool {
        let (its_realm, its_name) = &self.all[channel as usize].key;
        *its_realm == realm && **its_name == *name
    }

    pub(super) fn subscribers(&self, channel: u32, list: List) -> &[PinId] {
        &self.all[channel as usize].lists[list as usize]
    }

    /// Whether its subscribers are to be looked at one by one.
    pub(super) fn is_mixed(&self, channel: u32) -> bool {
        self.all[channel as usize].apart > 0
    }

    /// Adds a subscriber; the hub knows of the channel when this returns.
    pub(super) fn join(&mut self, realm: RealmId, name: &str, list: List, pin: PinId, apart: bool) -> Sub {
        let index = match self.find(realm, name) {
            Some(index) => index,
            None => self.open(realm, name),
        };
        let channel = &mut self.all[index as usize];
        channel.apart += usize::from(apart);
        let pins = &mut channel.lists[list as usize];
        pins.push(pin);
        self.counters.subscriptions.add(1);
        let sub = Sub { channel: index, place: small(pins.len() - 1) };
        self.note(&self.all[index as usize], list);
        sub
    }

    /// Grows whenever a WebSocket leaves a channel or gets other filters.
    pub(super) const fn changes(&self) -> u64 {
        self.changes
    }

    /// A subscriber is to be looked at and was not, or the other way around.
    pub(super) fn refilter(&mut self, sub: Sub, before: bool, after: bool) {
        let channel = &mut self.all[sub.channel as usize];
        channel.apart = channel.apart + usize::from(after) - usize::from(before);
        self.changes += 1;
    }

    /// A subscriber that was looked at need not be any more, unless it stays `apart`: it is given the same.
    pub(super) fn settle(&mut self, sub: Sub, apart: bool) {
        self.all[sub.channel as usize].apart -= usize::from(!apart);
    }

    /// Removes a subscriber. Returns whose place has changed: the last of the list is at `sub.place` now.
    pub(super) fn leave(&mut self, sub: Sub, list: List, apart: bool) -> Option<PinId> {
        let channel = &mut self.all[sub.channel as usize];
        channel.apart -= usize::from(apart);
        let pins = &mut channel.lists[list as usize];
        pins.swap_remove(sub.place as usize);
        if list == List::Polls {
            channel.polled_ms = Some(self.now_ms);
        }
        self.changes += u64::from(list.is_spoken_to());
        self.counters.subscriptions.add(-1);
        let moved = pins.get(sub.place as usize).copied();
        let is_over = channel.lists.iter().all(Vec::is_empty);
        self.note(&self.all[sub.channel as usize], list);
        if is_over {
            self.close(sub.channel);
        }
        moved
    }

    fn open(&mut self, realm: RealmId, name: &str) -> u32 {
        let channel =
            Channel { key: (realm, name.into()), lists: Default::default(), apart: 0, polled_ms: None };
        let index = small(self.all.insert(channel));
        self.by_name.insert(ChannelKey { realm, name: name.into() }, index);
        if let Some(left) = self.hub.join(self.shard, realm, name)
            && self.notes_fresh
        {
            let due_ms = self.now_ms + u64::from(milliseconds(left));
            self.fresh.push_back((due_ms, ChannelKey { realm, name: name.into() }));
        }
        self.counters.channels.add(1);
        index
    }

    fn close(&mut self, index: u32) {
        let Channel { key: (realm, name), polled_ms, .. } = self.all.remove(index as usize);
        self.by_name.remove(&(realm, &*name));
        let polled = polled_ms.map(|polled_ms| Duration::from_millis(self.now_ms.saturating_sub(polled_ms)));
        self.hub.leave(self.shard, realm, &name, polled);
        self.counters.channels.add(-1);
    }
}

/// Points a subscription that [`Channels::leave`] has moved at its new place.
pub(super) fn moved(subs: &mut Subs, to: Sub) {
    if let Some(sub) = subs.iter_mut().find(|sub| sub.channel == to.channel) {
        sub.place = to.place;
    }
}

/// A shard never has 2^32 of anything: descriptors end first.
fn small(n: usize) -> u32 {
    u32::try_from(n).expect("fewer than 2^32 pins and channels")
}
