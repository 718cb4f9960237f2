//! What the hub knows of one channel: who gets its items, in which order they come, and when something of that is
//! over. Owns the plan of when to look at which channel; does nothing itself.

use std::{cmp::Reverse, collections::BinaryHeap, sync::atomic::AtomicU64};

use fantail_proto::{
    log::Durability,
    sequence::{Sequence, Verdict},
};
use smallvec::SmallVec;

use super::{ChannelKey, Delivery, RealmId, pledge::Promise};
use crate::{channel::ByName, log::Record};

/// A table of a million has room for two, so each of its bytes is two megabytes then.
#[derive(Debug)]
pub(super) struct Interest {
    /// Which shards have a subscriber: bit N for shard N. 0: the channel lingers.
    pub(super) shards: u64,
    /// When it got its first subscription; none: it has had none, and its log has items that wait.
    first_ms: Moment,
    /// Until then it lingers, or would if it had no subscriber any more.
    until_ms: Moment,
    /// When it is looked at next.
    look_ms: Moment,
    /// Only when an item had an id.
    order: Option<Box<Sequence<Early>>>,
}

/// Milliseconds of the hub's clock, or none, in eight bytes: [`u64::MAX`] is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Moment(u64);

/// An item that waits for its predecessor.
#[derive(Debug)]
pub(super) struct Early {
    pub(super) delivery: Box<Delivery>,
    /// To all publishers of it who are promised something: those who keep it do.
    pub(super) own: Option<Promise>,
    /// To each of them: its log has it, and how.
    pub(super) promises: SmallVec<[(Promise, Durability); 1]>,
    /// For its log.
    pub(super) record: Option<Record>,
    pub(super) id: Option<u128>,
}

impl Moment {
    const NONE: Self = Self(u64::MAX);

    const fn get(self) -> Option<u64> {
        if self.0 == Self::NONE.0 { None } else { Some(self.0) }
    }
}

impl From<Option<u64>> for Moment {
    fn from(ms: Option<u64>) -> Self {
        ms.map_or(Self::NONE, Self)
    }
}

impl Interest {
    pub(super) const fn new(shards: u64, first_ms: u64) -> Self {
        let (until_ms, look_ms) = (Moment::NONE, Moment::NONE);
        Self { shards, first_ms: Moment(first_ms), until_ms, look_ms, order: None }
    }

    /// Nobody subscribes, and the item that came last had this id.
    pub(super) fn unheard(last: u128, until_ms: u64) -> Self {
        let (first_ms, look_ms) = (Moment::NONE, Moment::NONE);
        let mut known = Self { shards: 0, first_ms, until_ms: Moment(until_ms), look_ms, order: None };
        known.pass(Some(last));
        known
    }

    /// Whether it has, or has had, a subscriber.
    pub(super) const fn is_heard(&self) -> bool {
        self.first_ms.get().is_some()
    }

    /// A subscriber has come. Says when the first did.
    pub(super) fn hear(&mut self, now_ms: u64) -> u64 {
        let first_ms = self.first_ms.get().unwrap_or_else(|| {
            // It lingered for what is early alone.
            self.until_ms = Moment::NONE;
            now_ms
        });
        self.first_ms = Moment(first_ms);
        first_ms
    }

    /// While it lingers, it does so until then at least.
    pub(super) fn stay_until(&mut self, until_ms: u64) {
        if self.lingers() {
            self.keep_until(until_ms);
        }
    }

    pub(super) fn judge(&self, prev_id: Option<u128>) -> Verdict {
        self.order.as_ref().map_or(Verdict::Pass, |order| order.judge(prev_id))
    }

    pub(super) fn pass(&mut self, id: Option<u128>) {
        match &mut self.order {
            Some(order) => order.pass(id),
            None if id.is_some() => self.order.get_or_insert_default().pass(id),
            None => {}
        }
    }

    pub(super) fn hold(&mut self, id: Option<u128>, prev_id: u128, due_ms: u64, early: Early) {
        self.order.get_or_insert_default().hold(id, prev_id, due_ms, early);
    }

    pub(super) fn early_mut(&mut self, id: u128) -> Option<&mut Early> {
        self.order.as_mut()?.early_mut(id)
    }

    pub(super) fn follow(&mut self) -> Option<Early> {
        self.order.as_mut()?.follow()
    }

    pub(super) fn expire(&mut self, now_ms: u64) -> Option<Early> {
        self.order.as_mut()?.expire(now_ms)
    }

    pub(super) fn last(&self) -> Option<u128> {
        self.order.as_ref()?.last()
    }

    pub(super) fn forget(&mut self) {
        if let Some(order) = &mut self.order {
            order.forget();
        }
        self.order.take_if(|order| order.is_idle());
    }

    /// A long-poll has left, and its client may come back until then.
    pub(super) fn keep_until(&mut self, until_ms: u64) {
        self.until_ms = self.until_ms.get().max(Some(until_ms)).into();
    }

    /// The last subscriber has left, and a long-poll may come back: until when. What waits for its predecessor and is to be
    /// kept goes on waiting.
    pub(super) fn linger(&mut self, now_ms: u64) -> Option<u64> {
        let until_ms = self.until_ms.get().filter(|until_ms| *until_ms > now_ms)?;
        self.until_ms = self.early_until_ms().max(Some(until_ms)).into();
        Some(until_ms)
    }

    /// The last subscriber has left, and only what is to be kept goes on waiting for its predecessor. False: there is none.
    pub(super) fn linger_unheard(&mut self) -> bool {
        let until_ms = self.early_until_ms();
        if until_ms.is_some() {
            (self.first_ms, self.until_ms) = (Moment::NONE, until_ms.into());
        }
        until_ms.is_some()
    }

    /// When the last of what waits for its predecessor goes into its log without it.
    fn early_until_ms(&self) -> Option<u64> {
        let order = self.order.as_ref()?;
        order.early().any(|early| early.record.is_some()).then(|| order.last_due_ms()).flatten()
    }

    /// Nobody subscribes.
    pub(super) const fn lingers(&self) -> bool {
        self.shards == 0
    }

    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        self.lingers() && self.until_ms.get().is_some_and(|until_ms| until_ms <= now_ms)
    }

    /// When something of it is over.
    pub(super) fn next_ms(&self) -> Option<u64> {
        let due_ms = self.order.as_ref().and_then(|order| order.due_ms());
        due_ms.into_iter().chain(self.until_ms.get().filter(|_| self.lingers())).min()
    }
}

/// When to look at which channel: for each at most once in advance, but for looks that were put forward.
#[derive(Debug, Default)]
pub(super) struct Looks(BinaryHeap<Reverse<(u64, RealmId, Box<str>)>>);

impl Looks {
    /// Plans a look at a channel, if none is planned before. True when it is the first of all.
    pub(super) fn plan(&mut self, realm: RealmId, channel: &str, known: &mut Interest, due_ms: u64) -> bool {
        if known.look_ms.get().is_some_and(|own| own <= due_ms) {
            return false;
        }
        known.look_ms = Moment(due_ms);
        let first = self.next_ms().is_none_or(|next| due_ms < next);
        self.0.push(Reverse((due_ms, realm, channel.into())));
        first
    }

    /// A channel whose look is due: from now on it has none. It passes over [`STALE`] others at most, because that is
    /// done under the hub's lock.
    pub(super) fn pop(
        &mut self,
        now_ms: u64,
        interest: &mut ByName<ChannelKey, Interest>,
    ) -> Option<(RealmId, Box<str>)> {
        for _ in 0..STALE {
            self.next_ms().filter(|due_ms| *due_ms <= now_ms)?;
            let Reverse((due_ms, realm, name)) = self.0.pop()?;
            // One that was put forward, or whose channel is gone, is passed over.
            if let Some(known) = interest.get_mut(&(realm, &*name))
                && known.look_ms == Moment(due_ms)
            {
                known.look_ms = Moment::NONE;
                return Some((realm, name));
            }
        }
        None
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.0.peek().map(|Reverse((due_ms, ..))| *due_ms)
    }
}

/// What became of items that came before their predecessors.
#[derive(Debug, Default)]
pub struct EarlyCounts {
    /// Their predecessors came.
    pub in_turn: AtomicU64,
    /// They went out without them.
    pub late: AtomicU64,
    /// There was no room for them, or nobody left who subscribed.
    pub dropped: AtomicU64,
}

/// Looks at what is gone that are passed over at a time: each polled channel that comes and goes leaves one.
const STALE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_small() {
        assert!(size_of::<(ChannelKey, Interest)>() <= 64);
    }

    #[test]
    fn looks_at_what_is_gone_do_not_come_all_at_once() {
        let (mut looks, mut interest) = (Looks::default(), ByName::default());
        for n in 0..=3 * STALE {
            looks.plan(RealmId(0), &n.to_string(), &mut Interest::new(1, 0), 5);
        }
        for _ in 0..3 {
            assert_eq!((looks.pop(9, &mut interest), looks.next_ms()), (None, Some(5)));
        }
        let mut known = Interest::new(1, 0);
        looks.plan(RealmId(0), "there", &mut known, 6);
        interest.insert(ChannelKey { realm: RealmId(0), name: "there".into() }, known);
        assert_eq!(looks.pop(9, &mut interest), Some((RealmId(0), "there".into())));
    }
}
