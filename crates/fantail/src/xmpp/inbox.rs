//! What the XMPP server brings: addresses are checked, presence is heard, pings and discovery are answered, and the rest waits
//! in a lane for each sender, so that what one sends is done in its order and a slow origin delays nobody else.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
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
use tokio::sync::Notify;

use super::{Component, TARGET, entity, origin, window};

/// By the sender's bare address: what waits behind what is being done.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_sender: HashMap<Box<str>, Lane>,
    by_domain: HashMap<Box<str>, Share>,
    bytes: usize,
    /// This process ends: nothing new is begun.
    closed: bool,
    /// Nor is anything waited for.
    cut: Rc<Notify>,
}

/// Of one sender. Its bytes include what is being done.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Received>,
    bytes: usize,
}

/// What a domain's senders have.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    senders: usize,
    bytes: usize,
}

/// What becomes of a stanza.
enum Queued {
    Waits,
    /// Nothing of its sender is before it.
    Begins(Received),
    Refused(Received),
}

impl Lanes {
    /// `stanzas` and `bytes` are what one sender may have.
    fn add(&mut self, received: Received, stanzas: usize, bytes: usize) -> Queued {
        let (sender, domain, more) = (received.from.bare(), received.from.domain(), received.bytes);
        let mut share = self.by_domain.get(domain).copied().unwrap_or_default();
        let full = self.bytes + more > WAITING_BYTES || share.bytes + more > part(WAITING_BYTES);
        let fits = match self.by_sender.get(sender) {
            Some(lane) => lane.waiting.len() < stanzas && lane.bytes + more <= bytes,
            None => self.by_sender.len() < SENDERS && share.senders < part(SENDERS),
        };
        if self.closed || full || !fits {
            return Queued::Refused(received);
        }
        self.bytes += more;
        share.bytes += more;
        let mut begins = false;
        let lane = self.by_sender.entry(sender.into()).or_insert_with(|| {
            begins = true;
            Lane::default()
        });
        lane.bytes += more;
        share.senders += usize::from(begins);
        self.by_domain.insert(domain.into(), share);
        if begins {
            return Queued::Begins(received);
        }
        lane.waiting.push_back(received);
        Queued::Waits
    }

    /// A sender's stanza is done. The next of its, if there is one.
    fn next(&mut self, done: &Received) -> Option<Received> {
        let (sender, domain) = (done.from.bare(), done.from.domain());
        let lane = self.by_sender.get_mut(sender)?;
        lane.bytes -= done.bytes;
        let next = lane.waiting.pop_front();
        if next.is_none() {
            self.by_sender.remove(sender);
        }
        self.bytes -= done.bytes;
        if let Entry::Occupied(mut share) = self.by_domain.entry(domain.into()) {
            share.get_mut().bytes -= done.bytes;
            share.get_mut().senders -= usize::from(next.is_none());
            if share.get().senders == 0 {
                share.remove();
            }
        }
        next
    }

    /// Nothing new is begun. What has waited.
    fn close(&mut self) -> Vec<Received> {
        self.closed = true;
        let mut all = Vec::new();
        for lane in self.by_sender.values_mut() {
            all.extend(lane.waiting.drain(..));
        }
        for gone in &all {
            self.bytes -= gone.bytes;
            if let Some(lane) = self.by_sender.get_mut(gone.from.bare()) {
                lane.bytes -= gone.bytes;
            }
            if let Some(share) = self.by_domain.get_mut(gone.from.domain()) {
                share.bytes -= gone.bytes;
            }
        }
        all
    }
}

/// What one domain may have of all.
const fn part(all: usize) -> usize {
    all - all / 4
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

impl Received {
    /// It is an iq that wants an answer.
    fn asks(&self) -> bool {
        self.kind == Kind::Iq && matches!(self.stanza.attr("type"), Some("get" | "set"))
    }
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
        self.outbox.borrow_mut().speak();
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
        let received = Received { stanza, kind, from, to, bytes };
        let ours = received.to.local().is_none();
        let request =
            Some(&received).filter(|received| received.asks()).map(|asked| Request::of(&asked.stanza));
        match request {
            // What needs nobody else waits behind nothing.
            Some(request @ Request::Ping) => self.answer_now(received, request),
            Some(request @ (Request::Info { .. } | Request::Items { .. })) if ours => {
                self.answer_now(received, request);
            }
            _ => self.queue(received),
        }
    }

    fn answer_now(self: &Rc<Self>, received: Received, request: Request) {
        let component = Rc::clone(self);
        tokio::task::spawn_local(async move { entity::answer(&component, &received, request).await });
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
        let config = &self.config;
        match self.lanes.borrow_mut().add(received, config.sender_stanzas, config.sender_bytes) {
            Queued::Waits => {}
            Queued::Begins(received) => drop(tokio::task::spawn_local(Rc::clone(self).drain(received))),
            Queued::Refused(received) => self.turn_away(&received),
        }
    }

    fn turn_away(&self, received: &Received) {
        self.counts.xmpp_crowded.add(1);
        let text = "too many stanzas wait to be answered";
        self.refuse(&received.stanza, Condition::ResourceConstraint, text);
    }

    /// Does what one sender asks for, one after the other, until there is no more.
    async fn drain(self: Rc<Self>, mut received: Received) {
        let cut = Rc::clone(&self.lanes.borrow().cut);
        loop {
            tokio::select! {
                () = self.attend(&received) => {}
                () = cut.notified() => {
                    self.counts.xmpp_origin_failed.add(1);
                    self.refuse(&received.stanza, Condition::RemoteServerTimeout, "");
                }
            }
            // Who asks for much does not ask for more before it has that.
            self.told().await;
            match self.lanes.borrow_mut().next(&received) {
                Some(next) => received = next,
                None => break,
            }
        }
        // The end may have waited for it.
        self.outbox.borrow().ready().notify_one();
    }

    /// This process ends: what waits is refused, and what comes.
    pub(super) fn close_lanes(&self) {
        let refused = self.lanes.borrow_mut().close();
        refused.iter().for_each(|received| self.turn_away(received));
    }

    /// No origin is waited for any more.
    pub(super) fn cut_lanes(&self) {
        self.lanes.borrow().cut.notify_waiters();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.lanes.borrow().by_sender.is_empty()
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
