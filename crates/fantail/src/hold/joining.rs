//! Holds and their channels: a new hold, its subscriptions, and where they begin.

use fantail_pin::{Form, PinId};

use super::{
    Asked, Hold, HoldKind, Holds, List, Standing, Subs, Subscription, channels, fanout::brim, follow::Follow,
};
use crate::hub::RealmId;

impl Holds {
    pub(super) fn reserve(&mut self, mut asked: Asked, form: Form, kind: HoldKind) -> Option<PinId> {
        let list = kind.list();
        let particular = |s: &Subscription| !s.filters.is_empty() || s.prev_id.is_some() || s.late.is_some();
        let linked = asked.next.is_some() || asked.gone.is_some();
        let standing = (linked || asked.session.is_some() || asked.subscriptions.iter().any(particular))
            .then(|| {
                let Asked { meta, prefix, debug, next, gone, trail, session, .. } = &asked;
                Box::new(Standing {
                    meta: meta.clone(),
                    debug: *debug,
                    follow: next.clone().map(|next| Box::new(Follow::new(next, asked.continues))),
                    gone: gone.clone().map(Box::new),
                    trail: trail.clone(),
                    session: session.clone().map(String::into_boxed_str),
                    ..Standing::new(prefix)
                })
            });
        let presence = asked.presence.take();
        let hold = Hold { subs: Subs::new(), kind, client: None, standing, unread: None, presence };
        let id = self.pins.reserve(form, hold)?;
        self.pins.set_brim(id, brim(asked.slow));
        if !asked.begin.is_empty() {
            self.pins.write_patiently(id, &asked.begin);
        }
        self.gauge(list, 1);
        asked.session.iter().for_each(|sid| self.attend(sid, true));
        let mut unproven = Vec::new();
        for subscription in asked.subscriptions {
            asked.uri.iter().for_each(|uri| crate::logging::subscribed(uri, &subscription.channel));
            let start = subscription.start();
            // From here on nothing is missed.
            let Some(channel) = self.join(id, asked.realm, list, subscription) else { continue };
            if let Some(start) = start.filter(|_| self.channels.is_logged(channel))
                && !self.begin_at(id, channel, &start)
            {
                unproven.push(channel);
            }
        }
        self.unproven(id, &unproven, asked.events, asked.again.as_deref());
        Some(id)
    }

    /// Subscribes a hold to a channel that it does not have, or gives it other filters and another position there.
    pub(super) fn join(
        &mut self,
        id: PinId,
        realm: RealmId,
        list: List,
        subscription: Subscription,
    ) -> Option<u32> {
        let Subscription { channel: name, filters, prev_id, late: _ } = subscription;
        let known = self.channels.find(realm, &name);
        let hold = self.pins.get_mut(id)?;
        let known = known.and_then(|known| hold.subs.iter().find(|sub| sub.channel == known)).copied();
        let before = known.is_some_and(|sub| hold.is_apart(sub.channel));
        let after = !filters.is_empty() || prev_id.is_some() || hold.is_wholly_apart();
        let mut other = false;
        let sub = match known {
            Some(sub) => {
                self.channels.refilter(sub, before, after);
                sub
            }
            None => {
                let sub = self.channels.join(realm, &name, list, id, after);
                hold.subs.push(sub);
                sub
            }
        };
        if let Some(standing) = &mut hold.standing {
            other = standing.filters_of(sub.channel) != filters;
            standing.set(sub.channel, filters, prev_id);
        }
        if other {
            self.turn_again(id, sub.channel);
        }
        Some(sub.channel)
    }

    /// Ends the subscription at a place among those of a hold.
    pub(super) fn leave(&mut self, id: PinId, place: usize) {
        let Some(hold) = self.pins.get_mut(id) else { return };
        let list = hold.kind.list();
        let sub = hold.subs.remove(place);
        let apart = hold.is_apart(sub.channel);
        let line = hold.standing.as_mut().and_then(|standing| {
            standing.remove(sub.channel);
            standing.take_line(sub.channel)
        });
        if line.is_some() {
            // The logs of its other channels may have waited for that line.
            self.read_on_soon(id);
        }
        self.disperse(line, list);
        self.leave_gap(id, sub.channel);
        let moved = self.channels.leave(sub, list, apart);
        if let Some(hold) = moved.and_then(|moved| self.pins.get_mut(moved)) {
            channels::moved(&mut hold.subs, sub);
        }
        self.forget_newest(id, sub.channel);
    }
}
