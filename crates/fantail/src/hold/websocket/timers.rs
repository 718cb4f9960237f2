//! When a WebSocket needs a look: for a message that waits, a close frame that is due, silence. Times are the
//! shard's milliseconds; the pin has one deadline for all of them.

use bytes::Bytes;
use fantail_proto::item::WsKind;

use crate::{
    config,
    hold::{Holds, Subscriptions},
};

#[derive(Debug)]
pub(in crate::hold) struct Timers {
    pub(super) delayed: Option<Box<Delayed>>,
    /// When the other side's close frame must have come.
    pub(super) close_by_ms: u64,
    /// When a session's client must have come back; `u64::MAX`: it is there.
    pub(in crate::hold) absent_by_ms: u64,
    /// When the message that has begun must be complete; `u64::MAX`: none has.
    pub(super) complete_by_ms: u64,
    /// When the client last said something.
    heard_ms: u64,
    pinged: bool,
}

/// A message that waits (spec 7.4, `send-delayed`).
#[derive(Debug)]
pub(super) struct Delayed {
    pub(super) at_ms: u64,
    pub(super) kind: WsKind,
    pub(super) content: Bytes,
}

impl Holds {
    /// Takes over what a reload has changed, for what happens from now on; times also for who waits already.
    pub fn configure(&mut self, config: &config::Config) {
        let times = |websocket: &config::WebSocket| (websocket.idle_timeout, websocket.ping_every);
        if times(&config.websocket) != times(&self.websocket) {
            self.reschedules = self.pins.ids().filter(|id| self.is_websocket(*id)).collect();
        }
        self.websocket = config.websocket.clone();
        self.subscriptions = Subscriptions::new(&config.grip);
        self.updates.configure(config);
        self.channels.note_fresh(config.grip.update_on_first_subscription);
        self.sockjs = config.sockjs.clone();
    }

    /// Finds new deadlines for some of those whose times have changed.
    pub(in crate::hold) fn reschedule(&mut self) {
        let left = self.reschedules.len().saturating_sub(RESCHEDULE_BATCH);
        for id in self.reschedules.split_off(left) {
            self.schedule(id);
        }
    }
}

impl Timers {
    pub(super) const fn new(now_ms: u64) -> Self {
        Self {
            delayed: None,
            close_by_ms: u64::MAX,
            absent_by_ms: u64::MAX,
            complete_by_ms: u64::MAX,
            heard_ms: now_ms,
            pinged: false,
        }
    }

    pub(in crate::hold) const fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.pinged = false;
    }

    /// A message that has begun does not end.
    pub(super) const fn is_late(&self, now_ms: u64) -> bool {
        self.complete_by_ms <= now_ms
    }

    pub(super) fn take_delayed(&mut self, now_ms: u64) -> Option<Box<Delayed>> {
        self.delayed.take_if(|delayed| delayed.at_ms <= now_ms)
    }

    /// Nothing went either way for `idle_ms`; 0: never.
    pub(super) fn is_idle(&self, written_ms: u64, idle_ms: u64, now_ms: u64) -> bool {
        idle_ms > 0 && self.heard_ms.max(written_ms) + idle_ms <= now_ms
    }

    /// A ping was not answered by anything; 0: there are none.
    pub(super) fn is_silent(&self, ping_ms: u64, now_ms: u64) -> bool {
        ping_ms > 0 && self.pinged && self.heard_ms + 2 * ping_ms <= now_ms
    }

    /// Whether to ping; notes that it was done.
    pub(super) const fn wants_ping(&mut self, ping_ms: u64, now_ms: u64) -> bool {
        let due = ping_ms > 0 && !self.pinged && self.heard_ms + ping_ms <= now_ms;
        self.pinged |= due;
        due
    }

    /// When an open one needs a look.
    pub(super) fn next_ms(&self, written_ms: u64, idle_ms: u64, ping_ms: u64) -> Option<u64> {
        let idle = (idle_ms > 0).then(|| self.heard_ms.max(written_ms) + idle_ms);
        let ping = (ping_ms > 0).then(|| self.heard_ms + if self.pinged { 2 * ping_ms } else { ping_ms });
        let delayed = self.delayed.as_ref().map(|delayed| delayed.at_ms);
        let message = (self.complete_by_ms < u64::MAX).then_some(self.complete_by_ms);
        [idle, ping, delayed, message].into_iter().flatten().min()
    }
}

/// So many are looked at between other work: a tenth of a millisecond.
const RESCHEDULE_BATCH: usize = 1000;
