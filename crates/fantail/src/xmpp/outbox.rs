//! What waits for the XMPP server: answers first, then items, each of which is copied for its subscribers only when
//! the server takes it. Owns the limits of waiting; writes no socket.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fantail_proto::xmpp::{
    pubsub,
    stanza::{self, Copies, Stanza},
};
use tokio::sync::Notify;

use super::{presence::Presences, subscribers::Subscribers};
use crate::{
    config,
    hub::{Delivery, RealmId, Receipt},
    metrics::Process,
};

#[derive(Debug)]
pub(super) struct Outbox {
    answers: VecDeque<Vec<u8>>,
    answer_bytes: usize,
    items: VecDeque<Waiting>,
    item_bytes: usize,
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
    since_ms: u64,
    weight: usize,
    after: Option<Box<str>>,
}

impl Outbox {
    pub(super) fn new(config: &config::Xmpp, counts: Arc<Process>) -> Self {
        Self {
            answers: VecDeque::new(),
            answer_bytes: 0,
            items: VecDeque::new(),
            item_bytes: 0,
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
        let Delivery { realm, channel, item, .. } = delivery;
        let (stanzas, nodes) = subscribers.wanted(*realm, channel);
        let stanza = item.stanza.clone().filter(|_| stanzas > 0);
        let event = if nodes == 0 { None } else { pubsub::payload(item) };
        let event = event.map(|payload| {
            let node = pubsub::node(subscribers.realm_name(*realm), channel);
            Stanza::message(&pubsub::event(&node, item.id.as_deref(), &payload))
        });
        let of = |wanted: bool, count: u32| if wanted { u64::from(count) } else { 0 };
        let receivers = of(stanza.is_some(), stanzas) + of(event.is_some(), nodes);
        if receivers == 0 {
            return;
        }
        let weight = stanza.as_ref().map_or(0, |stanza| stanza.weight())
            + event.as_ref().map_or(0, Stanza::weight)
            + channel.len();
        delivery.report(Receipt { queued: receivers, ..Receipt::default() });
        let (most_items, most_bytes) = self.limits;
        while self.items.len() >= most_items || self.item_bytes + weight > most_bytes {
            let Some(oldest) = self.items.pop_front() else { break };
            self.item_bytes -= oldest.weight;
            self.counts.xmpp_dropped.add(1);
        }
        self.item_bytes += weight;
        let channel = channel.clone();
        let waiting =
            Waiting { realm: *realm, channel, stanza, event, since_ms: now_ms, weight, after: None };
        self.items.push_back(waiting);
        self.counts.xmpp_queued.set(i64::try_from(self.items.len()).unwrap_or(i64::MAX));
        self.ready.notify_one();
    }

    /// What is to be written now, some [`WIRE_BYTES`]; empty when nothing waits. The same until it is
    /// [`Self::written`].
    pub(super) fn wire(&mut self, subscribers: &Subscribers, presences: &Presences, now_ms: u64) -> Bytes {
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
            let Some(waiting) = self.items.front_mut() else { break };
            let counts = &self.counts;
            if waiting.copy(&mut wire, &self.domain, (subscribers, presences), now_ms, counts) {
                self.item_bytes -= waiting.weight;
                self.items.pop_front();
                self.counts.xmpp_queued.set(i64::try_from(self.items.len()).unwrap_or(i64::MAX));
            }
        }
        self.wire = wire.into();
        self.wire.clone()
    }

    pub(super) fn written(&mut self) {
        self.wire = Bytes::new();
    }
}

impl Waiting {
    /// Copies for the next subscribers, as many as there is room for. True when that were all.
    fn copy(
        &mut self,
        wire: &mut Vec<u8>,
        domain: &str,
        (subscribers, presences): (&Subscribers, &Presences),
        now_ms: u64,
        counts: &Process,
    ) -> bool {
        let late = now_ms.saturating_sub(self.since_ms) > LATE_MS;
        let delay = if late { stanza::delay(domain, self.since_ms) } else { String::new() };
        let sealed = |stanza: &Stanza| {
            // Only messages and presence are delayed by a server.
            let delay = if stanza.kind() == stanza::Kind::Iq { "" } else { &delay };
            let own = stanza.from.as_ref().filter(|from| from.domain() == domain);
            stanza.sealed(own.map_or(domain, |from| from.as_str()), delay)
        };
        let stanza = self.stanza.as_deref().map(sealed);
        let event = self.event.as_ref().map(sealed);
        let mut last = None;
        let (mut sent, mut absent, mut count) = (0, 0, 0);
        let mut page = subscribers.page(self.realm, &self.channel, self.after.as_deref(), PAGE);
        let more = loop {
            let Some((jid, terms)) = page.next() else { break false };
            count += 1;
            last = Some(jid);
            let write = |copies: &Option<Copies>, wanted: bool, wire: &mut Vec<u8>| match copies {
                Some(copies) if wanted => {
                    copies.write(jid, wire);
                    1
                }
                _ => 0,
            };
            if presences.allow(jid, terms.shows) {
                sent += write(&stanza, terms.stanza, wire) + write(&event, terms.node, wire);
            } else {
                absent += 1;
            }
            if wire.len() >= WIRE_BYTES {
                break true;
            }
        };
        drop(page);
        counts.xmpp_delivered.add(sent);
        counts.xmpp_absent.add(absent);
        if let Some(last) = last {
            self.after = Some(last.into());
        }
        !more && count < PAGE
    }
}

/// Answers that wait: some thousands.
const ANSWER_BYTES: usize = 16 << 20;
/// What is made at once: enough for one write, and little to keep if the stream breaks.
const WIRE_BYTES: usize = 64 << 10;
/// Subscribers that are looked at before others have their turn.
const PAGE: usize = 1024;
/// From then on an item says when it was published.
const LATE_MS: u64 = 2000;
