//! Asking the origins of holds again: what has been missed is repaired, and what may have been is found (spec 4.3).
//! Gathers those that can wait, and lets go as many at a time as origins are to see. Asks nobody itself.

use std::{
    collections::{HashMap, VecDeque},
    mem,
};

use fantail_pin::PinId;
use fantail_proto::{
    recovery::{Means, Repair},
    websocket::close::Code,
};

use super::{GripLink, Hold, HoldKind, Holds, List, Onward, Poll, Released, Replay, websocket};
use crate::{config, hub::RealmId, metrics::Counters};

/// Holds whose turn is yet to come.
#[derive(Debug)]
pub(super) struct Updates {
    waiting: VecDeque<PinId>,
    /// Streams whose links are followed at once.
    pub(super) urgent: Vec<PinId>,
    /// Streams whose missing item may have come.
    pub(super) rejoining: Vec<PinId>,
    /// When the next of them are let go.
    due_ms: u64,
    /// So many, so often.
    batch: usize,
    every_ms: u64,
    /// How many of a share were asked without standing in line, and when it began.
    at_once: usize,
    since_ms: u64,
}

/// Why an origin is asked again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cause {
    Gap,
    Contradiction,
    Hint,
    Recover,
    First,
    Timer,
}

impl Cause {
    pub(super) fn count(self, counters: &Counters) {
        let count = match self {
            Self::Gap => &counters.updates_gap,
            Self::Contradiction => &counters.updates_contradiction,
            Self::Hint => &counters.updates_hint,
            Self::Recover => &counters.updates_recover,
            Self::First => &counters.updates_first,
            Self::Timer => &counters.updates_timer,
        };
        count.add(1);
    }

    /// What was fetched a moment ago does not do.
    const fn is_fresh(self) -> bool {
        matches!(self, Self::Hint | Self::Recover | Self::First)
    }
}

impl Updates {
    pub(super) fn new(config: &config::Config) -> Self {
        let mut updates = Self {
            waiting: VecDeque::new(),
            urgent: Vec::new(),
            rejoining: Vec::new(),
            due_ms: 0,
            batch: 1,
            every_ms: GATHER_MS,
            at_once: 0,
            since_ms: 0,
        };
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

    /// Whether an origin may be asked without standing in line: while nobody does, as many as are let go at a time.
    pub(super) fn may_ask_at_once(&mut self, now_ms: u64) -> bool {
        if !self.waiting.is_empty() || now_ms < self.due_ms {
            return false;
        }
        if now_ms >= self.since_ms + self.every_ms {
            (self.since_ms, self.at_once) = (now_ms, 0);
        }
        if self.at_once >= self.batch {
            self.due_ms = self.since_ms + self.every_ms;
            return false;
        }
        self.at_once += 1;
        true
    }

    pub(super) fn push(&mut self, id: PinId, now_ms: u64) {
        if self.waiting.is_empty() {
            self.due_ms = self.due_ms.max(now_ms + GATHER_MS);
        }
        self.waiting.push_back(id);
    }
}

impl Holds {
    /// Asks the origins of a realm's long-polls and streams with a link again, a few at a time.
    pub fn recover(&mut self, realm: RealmId) {
        let is_of = |id: &PinId| {
            let subs = self.pins.get(*id).map(|hold| &hold.subs);
            subs.is_some_and(|subs| subs.iter().any(|sub| self.channels.key(sub.channel).0 == realm))
        };
        let all: Vec<PinId> = self.pins.ids().filter(is_of).collect();
        for id in all {
            self.line_up(id, Cause::Recover);
        }
    }

    /// Repairs what a hold has missed.
    pub(super) fn mend(&mut self, id: PinId) {
        let Some(hold) = self.pins.get(id) else { return };
        let means = match &hold.kind {
            // It has been found before.
            HoldKind::Poll(poll) if poll.due => return,
            HoldKind::Poll(_) => Means { replay: true, ..Means::default() },
            HoldKind::Stream { .. } => Means { link: hold.has_link(), ..Means::default() },
            HoldKind::WebSocket(_) => Means::default(),
            HoldKind::Receiver(_) => return,
        };
        match means.repair() {
            Repair::Replay => {
                if let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get_mut(id) {
                    poll.doubts = poll.doubts.saturating_add(1);
                }
                self.line_up(id, Cause::Gap);
            }
            Repair::Link => {
                if self.fall_behind(id) {
                    self.stand_in_line(id, Cause::Gap);
                }
            }
            Repair::Close => self.break_off(id),
        }
    }

    /// Nothing can repair what a hold has missed: its client is to hear of that.
    pub(super) fn break_off(&mut self, id: PinId) {
        self.count_end(id, |counters| &counters.ended_gap);
        if self.is_websocket(id) {
            self.close_websocket(id, &websocket::close_frame(Code::TRY_AGAIN_LATER, ""));
        } else {
            self.finish_stream(id);
        }
    }

    /// Of these channels it is not known whether a new hold has missed something: no log shows that it has not.
    /// `events`: its client comes back with the id that it has last, unless it is told that this is of no use.
    pub(super) fn unproven(&mut self, id: PinId, logged: &[u32], events: bool, again: Option<&Replay>) {
        let Some(hold) = self.pins.get(id) else { return };
        let Some(standing) = &hold.standing else { return };
        let prev_id = |channel| standing.position(channel);
        if let HoldKind::Stream { .. } = hold.kind
            && logged.iter().any(|channel| prev_id(*channel).is_some())
        {
            if events && !hold.has_link() {
                self.write_page(&[id], NO_ID);
            }
            return self.mend(id);
        }
        // An origin that was asked because of an item, and says the same, is believed; one that says something else each time
        // is, too, in the end.
        let insists = |name: &str, prev_id: &str| {
            let name = name.strip_prefix(&*standing.prefix).unwrap_or(name);
            let same = |(channel, id): &(String, String)| channel == name && id == prev_id;
            again.is_some_and(|again| {
                again.doubts >= MOST_DOUBTS || again.doubts > 0 && again.last_ids.iter().any(same)
            })
        };
        let (mut doubted, mut agrees) = (false, true);
        for (channel, prev_id) in standing.positions() {
            let (realm, name) = self.channels.key(channel);
            let contradicts =
                !hold.is_vouched_for(channel) && self.channels.contradicts(realm, name, prev_id);
            if !contradicts && !logged.contains(&channel) {
                continue;
            }
            agrees = false;
            if !insists(name, prev_id) {
                doubted = true;
            } else if contradicts {
                self.channels.forget(channel);
            }
        }
        if doubted {
            return self.contradicted(id);
        }
        if agrees && let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get_mut(id) {
            poll.doubts = 0;
        }
    }

    /// What a hold says that its client has is not what came last: its origin is asked again.
    pub(super) fn contradicted(&mut self, id: PinId) {
        if self.fall_behind(id) {
            return self.stand_in_line(id, Cause::Contradiction);
        }
        if let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get_mut(id) {
            // As soon as it has its socket.
            poll.due = true;
            poll.doubts = poll.doubts.saturating_add(1);
            Cause::Contradiction.count(&self.counters);
        }
    }

    /// Lets go those whose turn has come.
    pub(super) fn update(&mut self) {
        while let Some(channel) = self.channels.pop_fresh() {
            for list in [List::Polls, List::Streams] {
                for id in self.channels.subscribers(channel, list).to_vec() {
                    self.line_up(id, Cause::First);
                }
            }
        }
        // A page must not come before items that a batch is still to write; and those who miss the same are found in one
        // batch: when it is done, one fetch serves them all.
        if self.is_delivering() {
            return;
        }
        for id in mem::take(&mut self.updates.rejoining) {
            self.rejoin(id);
        }
        if !self.updates.urgent.is_empty() {
            let mut fetches = HashMap::new();
            for id in mem::take(&mut self.updates.urgent) {
                self.gather(id, &mut fetches, true, true);
            }
            self.send_for(fetches);
        }
        if !self.updates.waiting.is_empty() && self.updates.due_ms <= self.now_ms {
            self.serve_line();
        }
    }

    fn serve_line(&mut self) {
        let (mut fetches, mut asked) = (HashMap::new(), 0);
        for _ in 0..LOOKS {
            let Some(id) = self.updates.waiting.pop_front() else { break };
            let more = asked + fetches.len() < self.updates.batch;
            if self.is_poll(id) {
                if more {
                    asked += 1;
                    self.replay(id);
                    continue;
                }
            } else if self.is_websocket(id) {
                if more {
                    asked += usize::from(self.ask_of_gaps(id));
                    continue;
                }
            } else if self.gather(id, &mut fetches, false, more) {
                continue;
            }
            self.updates.waiting.push_front(id);
            break;
        }
        asked += self.send_for(fetches);
        // A turn that was cut short goes on soon, with what is left of its share.
        let share = (asked as u64 * self.updates.every_ms).div_ceil(self.updates.batch as u64);
        self.updates.due_ms = self.now_ms + share.max(1);
    }

    fn is_poll(&self, id: PinId) -> bool {
        matches!(self.pins.get(id), Some(Hold { kind: HoldKind::Poll(_), .. }))
    }

    /// When [`Self::update`] has something to do.
    pub(super) fn next_update_ms(&self) -> Option<u64> {
        let waiting = (!self.updates.waiting.is_empty()).then_some(self.updates.due_ms);
        let Updates { urgent, rejoining, .. } = &self.updates;
        let at_once = (!urgent.is_empty() || !rejoining.is_empty()).then_some(self.now_ms);
        waiting.into_iter().chain(self.channels.fresh_ms()).chain(at_once).min()
    }

    /// Sends a long-poll's request to its origin once more.
    pub(super) fn replay(&mut self, id: PinId) {
        let last_ids = match self.pins.get_mut(id) {
            // As soon as it has its socket.
            Some(Hold { kind: HoldKind::Poll(poll), client: None, .. }) => return poll.due = true,
            _ => self.pins.get(id),
        };
        let last_ids = match last_ids {
            // One that has been answered may still have bytes of its answer to write.
            Some(hold @ Hold { kind: HoldKind::Poll(poll), client: Some(_), .. }) if !poll.answered => {
                self.last_ids(hold)
            }
            _ => return,
        };
        let gone = self.pins.get_mut(id).and_then(|hold| hold.standing.as_mut()?.gone.take());
        let Some((Some(wire), hold)) = self.unsubscribe(id) else { return };
        if let (HoldKind::Poll(poll), Some(client)) = (hold.kind, hold.client) {
            let Poll { mut request, unread, missed, doubts, .. } = *poll;
            request.extend_from_slice(&unread);
            let last_ids = if missed.is_empty() { last_ids } else { missed };
            let replay = Some(Replay { last_ids, gone: gone.map(|gone| *gone), doubts });
            self.onward.push(Onward::Released(Released { wire, client, unread: request, replay }));
        }
    }

    /// A hold that was let go is gone.
    pub fn say_gone(&mut self, link: GripLink) {
        self.onward.push(Onward::Gone(link));
    }

    /// Puts a hold in the line of those whose origins are asked again, unless it stands there.
    pub(super) fn line_up(&mut self, id: PinId, cause: Cause) {
        let joins = match self.pins.get_mut(id) {
            Some(Hold { kind: HoldKind::Poll(poll), .. }) => {
                !poll.answered && !mem::replace(&mut poll.due, true)
            }
            _ => self.is_due(id, cause.is_fresh()),
        };
        if joins {
            self.stand_in_line(id, cause);
        }
    }

    /// For `Grip-Last`: channels as the origin names them, and where the client is in them.
    pub(super) fn last_ids(&self, hold: &Hold) -> Vec<(String, String)> {
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
/// What makes a client of events forget the id that it has last (HTML section 9.2.6), whatever line stands before.
const NO_ID: &[u8] = b"\nid\n\n";
/// After so many contradictions an origin is believed, whatever it says.
const MOST_DOUBTS: u8 = 3;
/// Holds that are looked at in one turn.
const LOOKS: usize = 4096;
