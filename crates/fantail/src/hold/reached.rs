//! What clients of sessions have been given (spec 10.1), for the server that keeps them. Owns what is to be said at the
//! next look, a line a session and channel; asks nobody.

use std::collections::BTreeMap;

use fantail_pin::PinId;
use fantail_proto::session::LastIds;

use super::{Holds, Sub};
use crate::channel::ByName;

/// By session and channel. No more than the holds of sessions that there are, or were since the last look.
#[derive(Debug, Default)]
pub(super) struct Reached {
    ids: ByName<String, BTreeMap<String, String>>,
    /// How many holds each session has.
    sessions: ByName<String, usize>,
    touched_ms: u64,
}

impl Holds {
    /// What has come to clients of sessions; now and then all sessions that are there, so that they are kept.
    pub fn take_reached(&mut self) -> Vec<(String, LastIds)> {
        let reached = &mut self.reached;
        if self.now_ms - reached.touched_ms >= TOUCH_EVERY_MS {
            reached.touched_ms = self.now_ms;
            for sid in reached.sessions.keys() {
                reached.ids.entry_ref(sid).or_default();
            }
        }
        let ids = std::mem::take(&mut reached.ids).into_iter();
        ids.map(|(sid, ids)| (sid, ids.into_iter().collect())).collect()
    }

    /// A hold of a session begins, or ends.
    pub(super) fn attend(&mut self, sid: &str, comes: bool) {
        let holds = self.reached.sessions.entry_ref(sid).or_default();
        if comes {
            *holds += 1;
        } else if *holds > 1 {
            *holds -= 1;
        } else {
            self.reached.sessions.remove(sid);
        }
    }

    /// An origin says whose a WebSocket is (spec 7.4).
    pub(super) fn set_session(&mut self, id: PinId, sid: Option<&str>) {
        let Some(hold) = self.pins.get_mut(id) else { return };
        let before: Vec<(Sub, bool)> =
            hold.subs.iter().map(|sub| (*sub, hold.is_apart(sub.channel))).collect();
        let Some(standing) = &mut hold.standing else { return };
        let old = std::mem::replace(&mut standing.session, sid.map(Into::into));
        for (sub, before) in before {
            self.channels.refilter(sub, before, hold.is_apart(sub.channel));
        }
        old.iter().for_each(|sid| self.attend(sid, false));
        sid.into_iter().for_each(|sid| self.attend(sid, true));
    }

    /// An item has come to a hold.
    pub(super) fn reach(&mut self, pin: PinId, channel: u32, id: Option<&str>) {
        let (Some(id), Some(hold)) = (id, self.pins.get(pin)) else { return };
        let Some(standing) = &hold.standing else { return };
        let Some(sid) = &standing.session else { return };
        let name = self.channels.name(channel);
        let name = name.strip_prefix(&*standing.prefix).unwrap_or(name);
        self.reached.ids.entry_ref(&**sid).or_default().insert(name.to_owned(), id.to_owned());
    }
}

/// In three quarters of the time that Pushpin's server is told connections live (spec 9.2).
const TOUCH_EVERY_MS: u64 = 90_000;
