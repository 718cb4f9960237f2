//! An item that is being copied for its subscribers, some at a time: who of them gets it, and who is owed it of the log. Owns no
//! queue and no limit.

use std::collections::VecDeque;

use fantail_proto::{
    log::Place,
    xmpp::stanza::{self, Copies, Kind, Stanza},
};

use super::{
    Terms,
    gaps::{Gaps, Owed},
    presence::Presences,
    subscribers::Subscribers,
};
use crate::{hub::RealmId, log::Log, metrics::Process};

/// What is to be copied of one realm.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) items: VecDeque<Waiting>,
    pub(super) bytes: usize,
    /// What is being copied.
    pub(super) begun: Option<Waiting>,
    /// What was read of a log, and for whom.
    pub(super) read: VecDeque<Waiting>,
    pub(super) filling: Option<Owed>,
    /// It was a log's turn just now: the next is a published item's.
    pub(super) turned: bool,
    /// It stands in the turns.
    pub(super) queued: bool,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.begun.is_none() && self.read.is_empty() && self.filling.is_none()
    }

    /// Its items that are in the limits.
    pub(super) fn count(&self) -> usize {
        self.items.len() + usize::from(self.begun.as_ref().is_some_and(|begun| !begun.old))
    }
}

/// An item, and how far it has got.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) realm: RealmId,
    pub(super) channel: Box<str>,
    pub(super) stanza: Option<Box<Stanza>>,
    /// What is in the message to subscribers of the node.
    pub(super) event: Option<Stanza>,
    pub(super) place: Option<Place>,
    pub(super) since_ms: u64,
    pub(super) weight: usize,
    pub(super) after: Option<Box<str>>,
    /// Read from its log.
    pub(super) old: bool,
    /// For one address, not for all.
    pub(super) only: Option<Box<str>>,
    /// What it is called without a log.
    pub(super) number: u64,
}

/// What an item is called, for who has to find its copies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Name {
    /// In its log, whoever it was read for.
    Logged(RealmId, Box<str>, Place),
    Numbered(u64),
}

/// What is looked at while copies are made.
#[derive(Clone, Copy)]
pub(super) struct World<'w> {
    pub(super) subscribers: &'w Subscribers,
    pub(super) presences: &'w Presences,
    pub(super) log: &'w Log,
    pub(super) now_ms: u64,
}

impl Waiting {
    pub(super) fn name(&self) -> Name {
        let logged = |place| Name::Logged(self.realm, self.channel.clone(), place);
        self.place.map_or(Name::Numbered(self.number), logged)
    }

    /// How many copies are not made yet.
    pub(super) fn rest(&self, subscribers: &Subscribers) -> u64 {
        let of = |terms: Terms| {
            u64::from(self.stanza.is_some() && terms.stanza) + u64::from(self.event.is_some() && terms.node)
        };
        match &self.only {
            Some(jid) => subscribers.get(self.realm, &self.channel, jid).map_or(0, of),
            None => {
                let rest = subscribers.page(self.realm, &self.channel, self.after.as_deref(), usize::MAX);
                rest.map(|(_, terms)| of(terms)).sum()
            }
        }
    }

    /// Copies for the next subscribers, as many as there is room for. True when that were all.
    pub(super) fn copy(
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
            let delay = if stanza.kind() == Kind::Iq { "" } else { &delay };
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
        let (mut sent, mut absent, mut lost) = (0, 0, 0);
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
                let is_there = presences.allow(jid, terms.shows);
                // Who may have left meanwhile gets it of the log when that is clear, if there is room to remember it.
                let kept = self.place.filter(|_| !is_there || !presences.confirm(jid, terms.shows));
                let kept = kept.map(|place| gaps.absent(jid, channel, place, is_there));
                if !is_there || kept == Some(true) {
                    absent += 1;
                    // Without a log it is lost to it, as it wished.
                    lost += u64::from(kept == Some(false));
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
        counts.xmpp_dropped.add(lost);
        done
    }
}

/// What is made at once: enough for one write, and little to keep if the stream breaks.
pub(super) const WIRE_BYTES: usize = 64 << 10;
/// Subscribers that are looked at before others have their turn.
const PAGE: usize = 1024;
/// From then on an item says when it was published.
const LATE_MS: u64 = 2000;
