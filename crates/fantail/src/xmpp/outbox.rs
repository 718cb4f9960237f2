//! What waits for the XMPP server: answers first, then items, each of which is copied for its subscribers only when
//! the server takes it. Owns the limits of waiting, and what is read of logs in place of items that could not wait;
//! writes no socket.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fantail_proto::{
    item::Item,
    log::{Place, Start},
    render::Rendered,
    xmpp::{
        jid::Jid,
        pubsub,
        stanza::{self, Copies, Stanza},
    },
};
use tokio::sync::Notify;

use super::{
    gaps::{Fate, Gaps, Owed},
    presence::Presences,
    subscribers::Subscribers,
};
use crate::{
    config,
    hub::{Delivery, RealmId, Receipt},
    log::Log,
    metrics::Process,
};

#[derive(Debug)]
pub(super) struct Outbox {
    answers: VecDeque<Vec<u8>>,
    answer_bytes: usize,
    items: VecDeque<Waiting>,
    item_bytes: usize,
    /// What is being copied.
    current: Option<Waiting>,
    /// What was read of a log, and for whom.
    read: VecDeque<Waiting>,
    filling: Option<Owed>,
    pub(super) gaps: Gaps,
    /// It was a log's turn just now: the next is a published item's.
    turned: bool,
    /// The server takes what is written.
    joined: bool,
    /// What the server takes now. If the stream breaks, the next one begins with it.
    wire: Bytes,
    limits: (usize, usize),
    domain: String,
    counts: Arc<Process>,
    ready: Arc<Notify>,
}

/// An item, and how far it has got.
#[derive(Debug)]
struct Waiting {
    realm: RealmId,
    channel: Box<str>,
    stanza: Option<Box<Stanza>>,
    /// What is in the message to subscribers of the node.
    event: Option<Stanza>,
    place: Option<Place>,
    since_ms: u64,
    weight: usize,
    after: Option<Box<str>>,
    /// Read from its log.
    old: bool,
    /// For one address, not for all.
    only: Option<Box<str>>,
}

/// What is looked at while copies are made.
#[derive(Clone, Copy)]
pub(super) struct World<'w> {
    pub(super) subscribers: &'w Subscribers,
    pub(super) presences: &'w Presences,
    pub(super) log: &'w Log,
    pub(super) now_ms: u64,
}

impl Outbox {
    pub(super) fn new(config: &config::Xmpp, counts: Arc<Process>) -> Self {
        Self {
            answers: VecDeque::new(),
            answer_bytes: 0,
            items: VecDeque::new(),
            item_bytes: 0,
            current: None,
            read: VecDeque::new(),
            filling: None,
            gaps: Gaps::default(),
            turned: false,
            joined: false,
            wire: Bytes::new(),
            limits: (config.queue_items, config.queue_bytes),
            domain: config.domain.to_string(),
            counts,
            ready: Arc::new(Notify::new()),
        }
    }

    /// Notified when there is something to write.
    pub(super) fn ready(&self) -> Arc<Notify> {
        Arc::clone(&self.ready)
    }

    /// The server takes what is written from now on.
    pub(super) fn join(&mut self) {
        self.joined = true;
        self.gaps.resume();
    }

    /// The server is away, or this process ends. What waits and is in a log need not wait.
    pub(super) fn part(&mut self) {
        self.joined = false;
        for waiting in std::mem::take(&mut self.items) {
            match waiting.place {
                Some(place) => {
                    self.item_bytes -= waiting.weight;
                    self.gaps.miss((waiting.realm, &waiting.channel), place, true);
                }
                None => self.items.push_back(waiting),
            }
        }
        self.count();
    }

    /// An entity may be there again.
    pub(super) fn heard(&mut self, from: &Jid) {
        self.gaps.heard(from);
        if self.gaps.has_turns() {
            self.ready.notify_one();
        }
    }

    /// A stanza that is complete.
    pub(super) fn answer(&mut self, stanza: Vec<u8>) {
        if self.answer_bytes + stanza.len() > ANSWER_BYTES {
            return self.counts.xmpp_dropped.add(1);
        }
        self.answer_bytes += stanza.len();
        self.answers.push_back(stanza);
        self.ready.notify_one();
    }

    /// An item for all who want it.
    pub(super) fn deliver(&mut self, delivery: &Delivery, subscribers: &Subscribers, now_ms: u64) {
        let Delivery { realm, channel, item, place, .. } = delivery;
        let (stanzas, nodes) = subscribers.wanted(*realm, channel);
        let Some(waiting) =
            Waiting::of((*realm, channel), item, *place, (stanzas > 0, nodes > 0), subscribers)
        else {
            return;
        };
        let of = |wanted: bool, count: u32| if wanted { u64::from(count) } else { 0 };
        let receivers = of(waiting.stanza.is_some(), stanzas) + of(waiting.event.is_some(), nodes);
        delivery.report(Receipt { queued: receivers, ..Receipt::default() });
        self.ready.notify_one();
        if let Some(place) = place {
            let key = (*realm, &**channel);
            if !self.joined {
                return self.gaps.miss(key, *place, true);
            }
            if self.gaps.foresee(key, *place) == Fate::Log {
                return;
            }
        }
        let (most_items, most_bytes) = self.limits;
        while self.items.len() >= most_items || self.item_bytes + waiting.weight > most_bytes {
            let Some(oldest) = self.items.pop_front() else { break };
            self.item_bytes -= oldest.weight;
            match oldest.place {
                Some(place) => self.gaps.miss((oldest.realm, &oldest.channel), place, !self.joined),
                None => self.counts.xmpp_dropped.add(1),
            }
        }
        self.item_bytes += waiting.weight;
        self.items.push_back(Waiting { since_ms: now_ms, ..waiting });
        self.count();
    }

    /// What is to be written now, some [`WIRE_BYTES`]; empty when nothing waits. The same until it is
    /// [`Self::written`].
    pub(super) fn wire(&mut self, world: World<'_>) -> Bytes {
        if !self.wire.is_empty() {
            return self.wire.clone();
        }
        let mut wire = Vec::new();
        while wire.len() < WIRE_BYTES {
            let Some(answer) = self.answers.pop_front() else { break };
            self.answer_bytes -= answer.len();
            self.counts.xmpp_answered.add(1);
            wire.extend_from_slice(&answer);
        }
        while wire.len() < WIRE_BYTES {
            let Some(mut current) = self.current.take().or_else(|| self.next(world)) else { break };
            if !current.copy(&mut wire, &self.domain, world, &mut self.gaps, &self.counts) {
                self.current = Some(current);
            }
        }
        self.count();
        self.wire = wire.into();
        self.wire.clone()
    }

    pub(super) fn written(&mut self) {
        self.wire = Bytes::new();
    }

    /// The next item to be copied: of what was read of a log, of the queue, or of another log, these two in turn.
    fn next(&mut self, world: World<'_>) -> Option<Waiting> {
        loop {
            if let Some(waiting) = self.read.pop_front() {
                return Some(waiting);
            }
            if let Some(owed) = self.filling.take() {
                self.gaps.settle(owed);
            }
            if self.gaps.has_turns() && (self.items.is_empty() || !self.turned) {
                self.turned = true;
                self.fill(world);
                continue;
            }
            self.turned = false;
            let waiting = self.items.pop_front()?;
            self.item_bytes -= waiting.weight;
            if self.gaps.pass((waiting.realm, &waiting.channel), waiting.place) == Fate::Give {
                return Some(waiting);
            }
        }
    }

    /// Reads on for who is next.
    fn fill(&mut self, World { subscribers, presences, log, now_ms }: World<'_>) {
        let Some((owed, through)) = self.gaps.next() else { return };
        let (realm, channel) = (owed.channel.realm, &*owed.channel.name);
        let wanted = match &owed.jid {
            None => {
                let (stanzas, nodes) = subscribers.wanted(realm, channel);
                (stanzas > 0, nodes > 0)
            }
            Some(jid) => match subscribers.get(realm, channel, jid) {
                Some(terms) if presences.allow(jid, terms.shows) => (terms.stanza, terms.node),
                // It goes on when it is there.
                _ => return,
            },
        };
        let most = (FILL_ITEMS, FILL_BYTES);
        let stretch = log.stretch(realm, channel, &Start::Place(through), most);
        let proven = stretch.is_some();
        // Without proof: whatever there is.
        let all = || log.stretch(realm, channel, &Start::Since(u32::MAX), most);
        let Some((span, entries)) = stretch.or_else(all) else { return };
        let expected = span.through.position - span.after;
        let gone = match (proven, through.epoch == span.through.epoch) {
            (true, _) => 0,
            (false, true) => span.after.saturating_sub(through.position),
            // Nobody knows how many.
            (false, false) => 1,
        };
        self.counts.xmpp_dropped.add(gone + expected.saturating_sub(entries.len() as u64));
        for (entry, position) in entries.iter().zip(span.after + 1..) {
            let place = Some(Place { epoch: span.through.epoch, position });
            let item = Item::from_record(channel, &entry.record).map(Rendered::from);
            let waiting = item.and_then(|i| Waiting::of((realm, channel), &i, place, wanted, subscribers));
            self.read.extend(waiting.map(|waiting| Waiting {
                since_ms: now_ms.saturating_sub(log.age_ms(entry)),
                old: true,
                only: owed.jid.clone(),
                ..waiting
            }));
        }
        self.gaps.advance(&owed, span.through, span.whole);
        self.filling = Some(owed);
    }

    fn count(&self) {
        self.counts.xmpp_queued.set(i64::try_from(self.items.len()).unwrap_or(i64::MAX));
    }
}

impl Waiting {
    /// `None` if there is nothing in it for anybody.
    fn of(
        (realm, channel): (RealmId, &str),
        item: &Rendered,
        place: Option<Place>,
        (stanzas, nodes): (bool, bool),
        subscribers: &Subscribers,
    ) -> Option<Self> {
        let stanza = item.stanza.clone().filter(|_| stanzas);
        let event = if nodes { pubsub::payload(item) } else { None };
        let event = event.map(|payload| {
            let node = pubsub::node(subscribers.realm_name(realm), channel);
            Stanza::message(&pubsub::event(&node, item.id.as_deref(), &payload))
        });
        if stanza.is_none() && event.is_none() {
            return None;
        }
        let weight = stanza.as_ref().map_or(0, |stanza| stanza.weight())
            + event.as_ref().map_or(0, Stanza::weight)
            + channel.len();
        let channel = channel.into();
        let (since_ms, after, old, only) = (0, None, false, None);
        Some(Self { realm, channel, stanza, event, place, since_ms, weight, after, old, only })
    }

    /// Copies for the next subscribers, as many as there is room for. True when that were all.
    fn copy(
        &mut self,
        wire: &mut Vec<u8>,
        domain: &str,
        World { subscribers, presences, now_ms, .. }: World<'_>,
        gaps: &mut Gaps,
        counts: &Process,
    ) -> bool {
        let late = self.old || now_ms.saturating_sub(self.since_ms) > LATE_MS;
        let delay = if late { stanza::delay(domain, self.since_ms) } else { String::new() };
        let sealed = |stanza: &Stanza| {
            // Only messages and presence are delayed by a server.
            let delay = if stanza.kind() == stanza::Kind::Iq { "" } else { &delay };
            let own = stanza.from.as_ref().filter(|from| from.domain() == domain);
            stanza.sealed(own.map_or(domain, |from| from.as_str()), delay)
        };
        let stanza = self.stanza.as_deref().map(sealed);
        let event = self.event.as_ref().map(sealed);
        let write = |jid: &str, copies: &Option<Copies>, wanted: bool, wire: &mut Vec<u8>| match copies {
            Some(copies) if wanted => {
                copies.write(jid, wire);
                1
            }
            _ => 0,
        };
        let channel = (self.realm, &*self.channel);
        let (mut sent, mut absent) = (0, 0);
        let done = if let Some(jid) = &self.only {
            let terms = subscribers.get(self.realm, &self.channel, jid).unwrap_or_default();
            sent += write(jid, &stanza, terms.stanza, wire) + write(jid, &event, terms.node, wire);
            true
        } else {
            let mut last = None;
            let mut count = 0;
            let page = subscribers.page(self.realm, &self.channel, self.after.as_deref(), PAGE);
            let mut more = false;
            for (jid, terms) in page {
                count += 1;
                last = Some(jid);
                if !presences.allow(jid, terms.shows) {
                    absent += 1;
                    // Without a log it is lost to it, as it wished.
                    if let Some(place) = self.place {
                        gaps.absent(jid, channel, place);
                    }
                } else if gaps.reach(jid, channel, self.place) {
                    sent += write(jid, &stanza, terms.stanza, wire) + write(jid, &event, terms.node, wire);
                }
                if wire.len() >= WIRE_BYTES {
                    more = true;
                    break;
                }
            }
            if let Some(last) = last {
                self.after = Some(last.into());
            }
            !more && count < PAGE
        };
        counts.xmpp_delivered.add(sent);
        counts.xmpp_filled.add(if self.old { sent } else { 0 });
        counts.xmpp_absent.add(absent);
        done
    }
}

/// Answers that wait: some thousands.
const ANSWER_BYTES: usize = 16 << 20;
/// What is made at once: enough for one write, and little to keep if the stream breaks.
const WIRE_BYTES: usize = 64 << 10;
/// What is read of a log before others have their turn.
const FILL_ITEMS: usize = 256;
const FILL_BYTES: usize = 256 << 10;
/// Subscribers that are looked at before others have their turn.
const PAGE: usize = 1024;
/// From then on an item says when it was published.
const LATE_MS: u64 = 2000;
