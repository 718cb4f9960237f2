//! One item that waits for the XMPP server, and its copies: for whom it is, who has it by now, and who gets it of the log
//! instead. Owns no queue, and writes no socket.

use fantail_proto::{
    log::Place,
    xmpp::stanza::{self, Copies, Stanza},
};

use super::{gaps::Gaps, outbox::World};
use crate::{hub::RealmId, metrics::Process};

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
}

impl Waiting {
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
                let kept = kept.map(|place| gaps.absent(jid, channel, place));
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
