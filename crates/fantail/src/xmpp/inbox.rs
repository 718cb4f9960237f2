//! What the XMPP server brings: addresses are checked, presence is heard, and the rest waits in a lane for each
//! sender, so that what one sends is done in its order and a slow origin delays nobody else.

use std::{
    collections::HashMap,
    collections::{VecDeque, hash_map::Entry},
    rc::Rc,
};

use fantail_proto::xmpp::{
    answer::Condition,
    jid::Jid,
    request::Request,
    stanza::Kind,
    xml::{Element, Excess},
};

use super::{Component, TARGET, entity, origin, window};

/// By the sender's bare address: what waits behind what is being done.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    waiting: HashMap<Box<str>, VecDeque<Received>>,
    bytes: usize,
}

/// A stanza whose addresses are good.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) stanza: Element,
    pub(super) kind: Kind,
    pub(super) from: Jid,
    pub(super) to: Jid,
    bytes: usize,
}

impl Component {
    /// `bytes` is the size of the stanza on the wire.
    pub(super) fn receive(self: &Rc<Self>, stanza: Element, bytes: usize) {
        let own = Some(self.config.domain.as_str());
        if stanza.name == "iq"
            && (stanza.attr("from"), stanza.attr("to")) == (own, own)
            && let Some(id) = stanza.attr("id").filter(|id| id.starts_with(window::PREFIX))
        {
            // However the server answers: it has read all before it.
            return self.outbox.borrow_mut().acknowledge(id);
        }
        self.counts.xmpp_received.add(1);
        let address = |name| stanza.attr(name).and_then(|text| Jid::parse(text).ok());
        let (Some(kind), Some(from), Some(to)) = (Kind::of(&stanza), address("from"), address("to")) else {
            return self.counts.xmpp_misaddressed.add(1);
        };
        let domain = self.config.domain.domain();
        // The server vouches for all senders but those who claim to be the component itself.
        if to.domain() != domain || from.domain() == domain {
            tracing::debug!(target: TARGET, %from, %to, "a stanza with addresses that cannot be");
            return self.counts.xmpp_misaddressed.add(1);
        }
        if kind == Kind::Presence {
            self.presences.borrow_mut().hear(&from, &to, &stanza);
            self.outbox.borrow_mut().heard(&from);
        }
        if kind != Kind::Iq && stanza.attr("type") == Some("error") {
            self.presences.borrow_mut().leave(&from);
            return self.counts.xmpp_bounced.add(1);
        }
        self.queue(Received { stanza, kind, from, to, bytes });
    }

    pub(super) fn receive_excess(&self, head: &Element, excess: Excess) {
        self.counts.xmpp_received.add(1);
        self.counts.xmpp_oversize.add(1);
        // Of one whose first tag is too long already, nothing is known.
        if Kind::of(head).is_none() {
            return;
        }
        self.refuse(head, Condition::PolicyViolation, &format!("the stanza {excess}"));
    }

    fn queue(self: &Rc<Self>, received: Received) {
        let mut lanes = self.lanes.borrow_mut();
        let crowded = lanes.waiting.len() >= SENDERS;
        let full = lanes.bytes + received.bytes > WAITING_BYTES;
        let bytes = received.bytes;
        match lanes.waiting.entry(received.from.bare().into()) {
            Entry::Occupied(mut lane) if !full && lane.get().len() < self.config.sender_stanzas => {
                lane.get_mut().push_back(received);
            }
            Entry::Vacant(lane) if !full && !crowded => {
                lane.insert(VecDeque::new());
                tokio::task::spawn_local(Rc::clone(self).drain(received));
            }
            _ => {
                drop(lanes);
                self.counts.xmpp_crowded.add(1);
                let text = "too many stanzas wait to be answered";
                return self.refuse(&received.stanza, Condition::ResourceConstraint, text);
            }
        }
        lanes.bytes += bytes;
    }

    /// Does what one sender asks for, one after the other, until there is no more.
    async fn drain(self: Rc<Self>, mut received: Received) {
        loop {
            self.attend(&received).await;
            let mut lanes = self.lanes.borrow_mut();
            lanes.bytes -= received.bytes;
            let sender = received.from.bare();
            match lanes.waiting.get_mut(sender).and_then(VecDeque::pop_front) {
                Some(next) => received = next,
                None => {
                    lanes.waiting.remove(sender);
                    return;
                }
            }
        }
    }

    async fn attend(&self, received: &Received) {
        let Received { stanza, kind, to, .. } = received;
        let ours = to.local().is_none();
        match kind {
            Kind::Iq if matches!(stanza.attr("type"), Some("get" | "set")) => match Request::of(stanza) {
                Request::Unknown => origin::ask(self, received).await,
                request if ours || request == Request::Ping => {
                    entity::answer(self, received, request).await;
                }
                _ => origin::ask(self, received).await,
            },
            Kind::Message => match entity::admin_realm(self, to) {
                Some(realm) => entity::command_by_message(self, received, &realm).await,
                None => origin::ask(self, received).await,
            },
            Kind::Presence if ours => entity::be_present(self, received),
            Kind::Iq | Kind::Presence => origin::ask(self, received).await,
        }
    }
}

/// Senders with something under way.
const SENDERS: usize = 10_000;
/// What all of them have sent, on the wire; in memory it is some times more.
const WAITING_BYTES: usize = 16 << 20;
