//! Asking the origins of holds again: what has been missed is repaired, and what may have been is found (spec 4.3).
//! Gathers those that can wait, and lets go as many at a time as origins are to see. Asks nobody itself.

use std::collections::VecDeque;

use bytes::Bytes;
use fantail_pin::{Form, PinId};
use fantail_proto::{
    recovery::{Means, Repair},
    websocket::close::Code,
};

use super::{Hold, HoldKind, Holds, LAST_CHUNK, List, Onward, Poll, Released, Replay, websocket};
use crate::{
    config,
    metrics::{Count, Counters},
};

/// Holds whose turn is yet to come.
#[derive(Debug)]
pub(super) struct Updates {
    waiting: VecDeque<PinId>,
    /// When the next of them are let go.
    due_ms: u64,
    /// So many, so often.
    batch: usize,
    every_ms: u64,
}

impl Updates {
    pub(super) fn new(config: &config::Config) -> Self {
        let mut updates = Self { waiting: VecDeque::new(), due_ms: 0, batch: 1, every_ms: GATHER_MS };
        updates.configure(config);
        updates
    }

    /// Each shard has its share of the rate.
    pub(super) fn configure(&mut self, config: &config::Config) {
        let (rate, shards) = (u64::from(config.grip.updates_per_second), config.server.shards.max(1) as u64);
        let batch = (rate * GATHER_MS / 1000 / shards).max(1);
        self.batch = usize::try_from(batch).unwrap_or(usize::MAX);
        self.every_ms = (batch * shards * 1000).div_ceil(rate).max(GATHER_MS);
    }
}

impl Holds {
    /// Asks all origins of long-polls again, a few at a time.
    pub fn recover(&mut self) {
        let all: Vec<PinId> = self.pins.ids().collect();
        for id in all {
            self.line_up(id, |counters| &counters.updates_recover);
        }
    }

    /// Repairs what a hold has missed of a channel.
    pub(super) fn mend(&mut self, id: PinId, channel: u32) {
        let Some(hold) = self.pins.get(id) else { return };
        let means = match &hold.kind {
            // It has been found before.
            HoldKind::Poll(poll) if poll.due => return,
            HoldKind::Poll(_) => Means { replay: true, ..Means::default() },
            HoldKind::Stream { .. } | HoldKind::WebSocket(_) | HoldKind::Receiver(_) => Means::default(),
        };
        self.channels.forget(channel);
        match means.repair() {
            Repair::Replay => self.line_up(id, |counters| &counters.updates_gap),
            Repair::Link => {}
            Repair::Close => self.break_off(id),
        }
    }

    /// Nothing can repair what a hold has missed: its client is to hear of that.
    fn break_off(&mut self, id: PinId) {
        self.count_end(id, |counters| &counters.ended_gap);
        if self.is_websocket(id) {
            self.close_websocket(id, &websocket::close_frame(Code::TRY_AGAIN_LATER, ""));
        } else if self.pins.form(id).is_some() {
            let tail = if self.pins.form(id) == Some(Form::Coded) { LAST_CHUNK } else { Bytes::new() };
            self.pins.finish(id, &tail);
        }
    }

    /// Of these channels it is not known whether a new hold has missed something: no log shows that it has not.
    pub(super) fn unproven(&mut self, id: PinId, logged: &[u32]) {
        let Some(hold) = self.pins.get(id) else { return };
        let Some(standing) = &hold.standing else { return };
        let prev_id = |channel| standing.position(channel);
        if let HoldKind::Stream { .. } = hold.kind
            && let Some(channel) = logged.iter().copied().find(|channel| prev_id(*channel).is_some())
        {
            return self.mend(id, channel);
        }
        let contradicts = |(channel, prev_id): (u32, &str)| {
            let (realm, name) = self.channels.key(channel);
            !hold.is_vouched_for(channel) && self.channels.contradicts(realm, name, prev_id)
        };
        // Each is asked: it is forgotten there, too.
        if standing.positions().map(contradicts).fold(false, |any, one| any | one) {
            self.contradicted(id);
        }
    }

    /// What a hold says that its client has is not what came last: its origin is asked again at once.
    pub(super) fn contradicted(&mut self, id: PinId) {
        if let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get_mut(id) {
            // As soon as it has its socket.
            poll.due = true;
            self.counters.updates_contradiction.add(1);
        }
    }

    /// Lets go those whose turn has come.
    pub(super) fn update(&mut self) {
        while let Some(channel) = self.channels.pop_fresh() {
            for id in self.channels.subscribers(channel, List::Polls).to_vec() {
                self.line_up(id, |counters| &counters.updates_first);
            }
        }
        if !self.updates.waiting.is_empty() && self.updates.due_ms <= self.now_ms {
            self.updates.due_ms = self.now_ms + self.updates.every_ms;
            for _ in 0..self.updates.batch {
                let Some(id) = self.updates.waiting.pop_front() else { break };
                self.replay(id);
            }
        }
    }

    /// When [`Self::update`] has something to do.
    pub(super) fn next_update_ms(&self) -> Option<u64> {
        let waiting = (!self.updates.waiting.is_empty()).then_some(self.updates.due_ms);
        waiting.into_iter().chain(self.channels.fresh_ms()).min()
    }

    /// Sends a long-poll's request to its origin once more.
    pub(super) fn replay(&mut self, id: PinId) {
        let last_ids = match self.pins.get(id) {
            // One that has been answered may still have bytes of its answer to write.
            Some(hold @ Hold { kind: HoldKind::Poll(poll), client: Some(_), .. }) if !poll.answered => {
                self.last_ids(hold)
            }
            _ => return,
        };
        let Some((Some(wire), hold)) = self.unsubscribe(id) else { return };
        if let (HoldKind::Poll(poll), Some(client)) = (hold.kind, hold.client) {
            let Poll { mut request, unread, .. } = *poll;
            request.extend_from_slice(&unread);
            let replay = Some(Replay { last_ids });
            self.onward.push(Onward::Released(Released { wire, client, unread: request, replay }));
        }
    }

    /// Puts a hold in the line of those whose origins are asked again, unless it stands there.
    fn line_up(&mut self, id: PinId, cause: fn(&Counters) -> &Count) {
        match self.pins.get_mut(id) {
            Some(Hold { kind: HoldKind::Poll(poll), .. }) if !poll.due && !poll.answered => poll.due = true,
            _ => return,
        }
        if self.updates.waiting.is_empty() {
            self.updates.due_ms = self.updates.due_ms.max(self.now_ms + GATHER_MS);
        }
        self.updates.waiting.push_back(id);
        cause(&self.counters).add(1);
    }

    /// For `Grip-Last`: channels as the origin names them, and where the client is in them.
    fn last_ids(&self, hold: &Hold) -> Vec<(String, String)> {
        let Some(standing) = &hold.standing else { return Vec::new() };
        let name = |channel| {
            let name = self.channels.name(channel);
            name.strip_prefix(&*standing.prefix).unwrap_or(name).to_owned()
        };
        standing.positions().map(|(channel, id)| (name(channel), id.to_owned())).collect()
    }
}

/// For so long updates are gathered, and so often are they let go (spec 4.3).
const GATHER_MS: u64 = 100;
