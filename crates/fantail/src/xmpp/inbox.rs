//! What the XMPP server brings: addresses are checked, presence is heard, and the rest waits in a lane for each
//! sender, so that what one sends is done in its order and a slow origin delays nobody else.

use std::{
    collections::HashMap,
    collections::{VecDeque, hash_map::Entry},
    rc::Rc,
};

use fantail_proto::xmpp::{
    CLIENT,
    answer::{self, Condition},
    jid::Jid,
    request::Request,
    stanza::Kind,
    xml::{Element, Excess},
};

use super::{Component, TARGET, entity, origin};

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
        self.counts.xmpp_received.add(1);
        let address = |name| stanza.attr(name).and_then(|text| Jid::parse(text).ok());
        let (Some(kind), Some(from), Some(to)) = (Kind::of(&stanza), address("from"), address("to")) else {
            if stanza.is(CLIENT, "iq") {
                // The server knows it as an address.
                self.refuse(&stanza, Condition::JidMalformed, "");
            }
            return self.counts.xmpp_misaddressed.add(1);
        };
        let domain = self.config.domain.domain();
        // The server vouches for all senders but those who claim to be the component itself.
        if to.domain() != domain || from.domain() == domain {
            tracing::debug!(target: TARGET, %from, %to, "a stanza with addresses that cannot be");
            return self.counts.xmpp_misaddressed.add(1);
        }
        if kind == Kind::Presence {
            let watched = self.subscribers.borrow().watches(from.bare());
            self.presences.borrow_mut().hear(&from, &to, &stanza, watched);
            self.outbox.borrow_mut().heard(&from);
        }
        if kind != Kind::Iq && stanza.attr("type") == Some("error") {
            self.presences.borrow_mut().leave(&from, &to);
            self.counts.xmpp_bounced.add(1);
            if !answer::is_for_good(&stanza) {
                return;
            }
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
        let asks = matches!(stanza.attr("type"), Some("get" | "set"));
        match kind {
            Kind::Message | Kind::Presence if stanza.attr("type") == Some("error") => {
                entity::end_subscriptions(self, received).await;
            }
            Kind::Iq if asks && stanza.children().count() != 1 => {
                self.refuse(stanza, Condition::BadRequest, "");
            }
            Kind::Iq if asks => match Request::of(stanza) {
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
