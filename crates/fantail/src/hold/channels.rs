//! Who subscribes to which channel on this shard: four lists a channel, for streams, long-polls,
//! WebSockets and SockJS, because an item has a body for each. Joining and leaving cost a lookup and a swap.

use std::sync::Arc;

use fantail_pin::PinId;
use hashbrown::HashMap;
use slab::Slab;

use super::{List, Sub, Subs};
use crate::{
    hub::{ChannelKey, Hub, RealmId},
    metrics::Counters,
    stats::Notes,
};

#[derive(Debug)]
pub(super) struct Channels {
    by_name: HashMap<ChannelKey, u32>,
    all: Slab<Channel>,
    hub: Arc<Hub>,
    shard: usize,
    counters: Arc<Counters>,
    notes: Option<Arc<Notes>>,
    changes: u64,
}

#[derive(Debug)]
struct Channel {
    key: (RealmId, Box<str>),
    lists: [Vec<PinId>; 4],
    /// Subscriptions with filters: while there are none, a list is taken whole.
    filtered: usize,
}

impl Channels {
    pub(super) fn new(hub: Arc<Hub>, shard: usize, counters: Arc<Counters>) -> Self {
        let (by_name, all) = (HashMap::new(), Slab::new());
        Self { by_name, all, hub, shard, counters, notes: None, changes: 0 }
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

    pub(super) fn is(&self, channel: u32, realm: RealmId, name: &str) -> bool {
        let (its_realm, its_name) = &self.all[channel as usize].key;
        *its_realm == realm && **its_name == *name
    }

    pub(super) fn subscribers(&self, channel: u32, list: List) -> &[PinId] {
        &self.all[channel as usize].lists[list as usize]
    }

    pub(super) fn has_filters(&self, channel: u32) -> bool {
        self.all[channel as usize].filtered > 0
    }

    /// Adds a subscriber; the hub knows of the channel when this returns.
    pub(super) fn join(&mut self, realm: RealmId, name: &str, list: List, pin: PinId, filtered: bool) -> Sub {
        let index = match self.find(realm, name) {
            Some(index) => index,
            None => self.open(realm, name),
        };
        let channel = &mut self.all[index as usize];
        channel.filtered += usize::from(filtered);
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

    /// A subscriber has filters that it had not, or the other way around.
    pub(super) fn refilter(&mut self, sub: Sub, before: bool, after: bool) {
        let channel = &mut self.all[sub.channel as usize];
        channel.filtered = channel.filtered + usize::from(after) - usize::from(before);
        self.changes += 1;
    }

    /// Removes a subscriber. Returns whose place has changed: the last of the list is at `sub.place` now.
    pub(super) fn leave(&mut self, sub: Sub, list: List, filtered: bool) -> Option<PinId> {
        let channel = &mut self.all[sub.channel as usize];
        channel.filtered -= usize::from(filtered);
        let pins = &mut channel.lists[list as usize];
        pins.swap_remove(sub.place as usize);
        self.changes += u64::from(list.is_spoken_to());
        self.counters.subscriptions.add(-1);
        let moved = pins.get(sub.place as usize).copied();
        let is_over = channel.lists.iter().all(Vec::is_empty);
        self.note(&self.all[sub.channel as usize], list);
        if is_over {
            self.close(sub.channel, list == List::Polls);
        }
        moved
    }

    fn open(&mut self, realm: RealmId, name: &str) -> u32 {
        let channel = Channel { key: (realm, name.into()), lists: Default::default(), filtered: 0 };
        let index = small(self.all.insert(channel));
        self.by_name.insert(ChannelKey { realm, name: name.into() }, index);
        self.hub.join(self.shard, realm, name);
        self.counters.channels.add(1);
        index
    }

    fn close(&mut self, index: u32, poll: bool) {
        let (realm, name) = self.all.remove(index as usize).key;
        self.by_name.remove(&(realm, &*name));
        self.hub.leave(self.shard, realm, &name, poll);
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
