//! Channels of which a WebSocket may have missed something, and its origin knows better: it is told of them with the next
//! request that it gets, until it has answered. What is published meanwhile waits, up to a limit, and comes behind what the
//! origin says. Only for those few that no log vouches for.

use std::{mem, rc::Rc};

use fantail_pin::{Outcome, PinId};
use fantail_proto::{
    forward,
    recovery::{self, Reconciled, Step},
    render::{MessagePart, Rendered},
};
use http::HeaderMap;

use super::OverHttp;
use crate::hold::{
    Holds,
    follow::{MAX_WAITING, Parked, ParkedPart, Turn},
    updates::Cause,
};

/// What an origin is to hear of.
#[derive(Debug)]
pub(in crate::hold) struct Gap {
    joined: u32,
    /// As the origin names it.
    channel: Box<str>,
    /// What the client has last.
    id: Box<str>,
    stage: Stage,
    /// Something was missed. If not, only the origin can say so.
    certain: bool,
    /// What was published since. At most [`MAX_WAITING`].
    waiting: Vec<Rc<Parked>>,
    /// There was more, which only the origin has.
    spilt: bool,
    /// Answers that left something open.
    answers: u8,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Due,
    Asked,
    /// It is having its say.
    Answered,
    /// It stands in line to be asked: it has had its say, and what waits does not follow, or many are asked already.
    InLine,
}

impl Holds {
    /// Adds `Grip-Last` for what the client of this session may have missed.
    pub fn write_gaps(&mut self, far: &Rc<OverHttp>, headers: &mut HeaderMap) {
        let gaps = far.pin.get().and_then(|id| self.gaps.get_mut(&id));
        for gap in gaps.into_iter().flatten().filter(|gap| gap.stage != Stage::InLine) {
            forward::append_last_id(headers, &gap.channel, &gap.id);
            gap.stage = Stage::Asked;
        }
    }

    /// The origin is to hear that its client has everything of a channel up to this id, and may have missed what came
    /// then; `certain`: it has. Nothing new if it has just been told, and says so all the same.
    pub(super) fn note_gap(&mut self, pin: PinId, joined: u32, (channel, id): (&str, &str), certain: bool) {
        let gaps = self.gaps.entry(pin).or_default();
        let told_anyway = gaps.iter().any(|gap| gap.stage == Stage::Due);
        let in_line = gaps.iter().any(|gap| gap.stage == Stage::InLine);
        let place = match gaps.iter_mut().position(|gap| gap.joined == joined) {
            Some(place) if gaps[place].stage == Stage::Answered => return,
            Some(place) => {
                let known = &mut gaps[place];
                (known.id, known.stage, known.certain) = (id.into(), Stage::Due, certain);
                place
            }
            None => {
                gaps.push(Gap {
                    joined,
                    channel: channel.into(),
                    id: id.into(),
                    stage: Stage::Due,
                    certain,
                    waiting: Vec::new(),
                    spilt: false,
                    answers: 0,
                });
                gaps.len() - 1
            }
        };
        // It hears of another channel anyway, and a request that says nothing is none.
        if told_anyway {
            return;
        }
        if !in_line && self.updates.may_ask_at_once(self.now_ms) {
            Cause::Gap.count(&self.counters);
            self.refresh(pin);
            return;
        }
        gaps[place].stage = Stage::InLine;
        if !in_line {
            self.stand_in_line(pin, Cause::Gap);
        }
    }

    /// An answer has come, or none: then it is told again.
    pub(super) fn told_of_gaps(&mut self, pin: Option<PinId>, answered: bool) {
        let stage = if answered { Stage::Answered } else { Stage::Due };
        let gaps = pin.and_then(|pin| self.gaps.get_mut(&pin)).into_iter().flatten();
        gaps.filter(|gap| gap.stage == Stage::Asked).for_each(|gap| gap.stage = stage);
    }

    /// What the origin has answered is done: what has waited comes behind it.
    pub(super) fn settle_gaps(&mut self, pin: Option<PinId>) {
        let Some(pin) = pin else { return };
        let Some(gaps) = self.gaps.get_mut(&pin) else { return };
        let answered: Vec<Gap> = gaps.extract_if(.., |gap| gap.stage == Stage::Answered).collect();
        if gaps.is_empty() {
            self.gaps.remove(&pin);
        }
        for mut gap in answered {
            // Where there is a log, only that shows what follows: the origin is believed.
            if self.channels.is_logged(gap.joined) {
                self.untrack(pin, gap.joined);
            }
            let left = self.give_waiting(pin, gap.joined, &gap.waiting);
            let Some(position) = self.pins.get(pin).and_then(|hold| hold.position(gap.joined)) else {
                continue;
            };
            if left.is_empty() && !gap.spilt {
                continue;
            }
            (gap.id, gap.certain) = (position.into(), true);
            gap.answers += 1;
            if gap.answers > MAX_ANSWERS {
                self.break_off(pin);
                return self.collect();
            }
            // What was too much is in its next answer, and all that is older.
            gap.waiting = if mem::take(&mut gap.spilt) { Vec::new() } else { left };
            gap.stage = Stage::InLine;
            self.gaps.entry(pin).or_default().push(gap);
            self.stand_in_line(pin, Cause::Gap);
        }
        self.collect();
    }

    /// The turn of a WebSocket that stands in line has come. False if there is nothing to ask any more.
    pub(in crate::hold) fn ask_of_gaps(&mut self, id: PinId) -> bool {
        let in_line = self.gaps.get_mut(&id).into_iter().flatten().filter(|gap| gap.stage == Stage::InLine);
        let count = in_line.map(|gap| gap.stage = Stage::Due).count();
        count > 0 && self.refresh(id)
    }

    /// An item came that one who stands in line may go on from.
    pub(in crate::hold) fn rejoin_websocket(&mut self, id: PinId) {
        let Some(mut gaps) = self.gaps.remove(&id) else { return };
        gaps.retain_mut(|gap| {
            if gap.stage != Stage::InLine || gap.spilt || !gap.certain {
                return true;
            }
            gap.waiting = self.give_waiting(id, gap.joined, &gap.waiting);
            !gap.waiting.is_empty()
        });
        if !gaps.is_empty() && self.pins.get(id).is_some() {
            self.gaps.insert(id, gaps);
        }
        self.collect();
    }

    /// What an item is to a WebSocket that has something particular.
    pub(in crate::hold) fn turn_of_message(&mut self, id: PinId, channel: u32, item: &Rendered) -> Turn {
        match (&item.message, &item.prev_id) {
            (Some(MessagePart::Refresh), _) | (Some(MessagePart::Close(_)), None) => return Turn::Deliver,
            _ => {}
        }
        if self.gap(id, channel).is_some() {
            return Turn::Wait;
        }
        let hold = self.pins.get(id).filter(|hold| !hold.is_vouched_for(channel));
        let Some(position) = hold.and_then(|hold| hold.position(channel)) else { return Turn::Deliver };
        match recovery::step_live(position, item.id.as_deref(), item.prev_id.as_deref()) {
            Step::Deliver => Turn::Deliver,
            Step::Skip => Turn::Pass,
            Step::Gap => {
                let position = position.to_owned();
                self.miss(id, channel, &position);
                Turn::Wait
            }
        }
    }

    /// Keeps an item for a WebSocket until its origin has answered.
    pub(in crate::hold) fn park_message(&mut self, id: PinId, channel: u32, item: Rc<Parked>) {
        let Some(gap) = self.gap(id, channel) else { return };
        if gap.waiting.len() >= MAX_WAITING {
            gap.spilt = true;
            return;
        }
        let rejoins = [&item.id, &item.prev_id].into_iter().flatten().any(|id| **id == *gap.id);
        gap.waiting.push(item);
        if rejoins && gap.stage == Stage::InLine {
            self.updates.rejoining.push(id);
        }
    }

    /// From now on it is known where a client is in a channel.
    pub(super) fn track(&mut self, id: PinId, channel: u32, position: &str) {
        let Some(hold) = self.pins.get_mut(id) else { return };
        let Some(sub) = hold.subs.iter().find(|sub| sub.channel == channel).copied() else { return };
        let before = hold.is_apart(channel);
        if let Some(standing) = &mut hold.standing {
            standing.positions.retain(|(of, _)| *of != channel);
            standing.positions.push((channel, Some(position.to_owned())));
            self.channels.refilter(sub, before, true);
        }
    }

    fn untrack(&mut self, id: PinId, channel: u32) {
        let Some(hold) = self.pins.get_mut(id) else { return };
        let Some(sub) = hold.subs.iter().find(|sub| sub.channel == channel).copied() else { return };
        let before = hold.is_apart(channel);
        if let Some(standing) = &mut hold.standing {
            standing.positions.retain(|(of, _)| *of != channel);
            let after = hold.is_apart(channel);
            self.channels.refilter(sub, before, after);
        }
    }

    /// A subscription has ended, and what its origin was to hear of it is nothing any more.
    pub(in crate::hold) fn leave_gap(&mut self, id: PinId, channel: u32) {
        if let Some(gaps) = self.gaps.get_mut(&id) {
            gaps.retain(|gap| gap.joined != channel);
        }
    }

    fn gap(&mut self, id: PinId, channel: u32) -> Option<&mut Gap> {
        self.gaps.get_mut(&id)?.iter_mut().find(|gap| gap.joined == channel)
    }

    /// What was published does not follow what a client has: its origin knows what is missing.
    fn miss(&mut self, id: PinId, channel: u32, position: &str) {
        let prefix = self.pins.get(id).and_then(|hold| Some(hold.standing.as_ref()?.prefix.clone()));
        let name = self.channels.name(channel);
        let own = name.strip_prefix(&*prefix.unwrap_or_default()).unwrap_or(name).to_owned();
        self.note_gap(id, channel, (&own, position), true);
    }

    /// Writes what has waited and follows. Returns what does not.
    fn give_waiting(&mut self, id: PinId, channel: u32, waiting: &[Rc<Parked>]) -> Vec<Rc<Parked>> {
        let Some(hold) = self.pins.get(id) else { return Vec::new() };
        let ids: Vec<_> = waiting.iter().map(|item| (item.id.as_deref(), item.prev_id.as_deref())).collect();
        let found = match hold.position(channel) {
            Some(position) => recovery::reconcile_live(position, &ids),
            None => Reconciled { deliver: (0..waiting.len()).collect(), left: Vec::new() },
        };
        let sockjs = self.is_sockjs(id);
        for place in found.deliver {
            let item = &waiting[place];
            let Some(hold) = self.pins.get_mut(id) else { return Vec::new() };
            if hold.has_from_log(channel, item.place) {
                continue;
            }
            if let Some(standing) = &mut hold.standing {
                standing.advance(channel, item.id.as_deref());
            }
            match &item.part {
                Some(ParkedPart::Message(message)) => {
                    let bytes = if sockjs { message.sockjs() } else { message.plain() };
                    if matches!(self.pins.write(id, bytes), Outcome::Sent | Outcome::Queued) {
                        let delivered = match sockjs {
                            true => &self.counters.delivered_sockjs,
                            false => &self.counters.delivered_websocket,
                        };
                        delivered.add(1);
                        self.counters.bytes_pushed.add(bytes.len() as u64);
                    }
                }
                Some(ParkedPart::Close(frame)) => {
                    self.close_websocket(id, frame);
                    return Vec::new();
                }
                Some(ParkedPart::Content(_) | ParkedPart::End) | None => {}
            }
        }
        found.left.into_iter().map(|place| Rc::clone(&waiting[place])).collect()
    }
}

/// So often an origin is asked about a gap that its answers do not close, a tenth of a second apart or more: then its client
/// is told by a close.
const MAX_ANSWERS: u8 = 8;
