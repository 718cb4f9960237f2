//! Channels of which a WebSocket may have missed something, and its origin knows better: it is told of them with the next
//! request that it gets, until it has answered. Only for those few that no log vouches for.

use std::rc::Rc;

use fantail_pin::PinId;
use fantail_proto::forward;
use http::HeaderMap;

use super::OverHttp;
use crate::hold::Holds;

/// What an origin is to hear of.
#[derive(Debug)]
pub(in crate::hold) struct Gap {
    /// As the origin names it.
    channel: Box<str>,
    /// What the client has last.
    id: Box<str>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Due,
    Asked,
    /// It is having its say.
    Answered,
}

impl Holds {
    /// Adds `Grip-Last` for what the client of this session may have missed.
    pub fn write_gaps(&mut self, far: &Rc<OverHttp>, headers: &mut HeaderMap) {
        let gaps = far.pin.get().and_then(|id| self.gaps.get_mut(&id));
        for Gap { channel, id, stage } in gaps.into_iter().flatten() {
            forward::append_last_id(headers, channel, id);
            *stage = Stage::Asked;
        }
    }

    /// The origin is to hear that its client has everything of a channel up to this id, and may have missed what came
    /// then. False if it has just been told, and says so all the same.
    pub(super) fn note_gap(&mut self, pin: PinId, channel: &str, id: &str) -> bool {
        let gaps = self.gaps.entry(pin).or_default();
        let gap = Gap { channel: channel.into(), id: id.into(), stage: Stage::Due };
        match gaps.iter_mut().find(|gap| *gap.channel == *channel) {
            Some(known) if known.stage == Stage::Answered => return false,
            Some(known) => *known = gap,
            None => gaps.push(gap),
        }
        true
    }

    /// An answer has come, or none: then it is told again.
    pub(super) fn told_of_gaps(&mut self, pin: Option<PinId>, answered: bool) {
        let stage = if answered { Stage::Answered } else { Stage::Due };
        let gaps = pin.and_then(|pin| self.gaps.get_mut(&pin)).into_iter().flatten();
        gaps.filter(|gap| gap.stage == Stage::Asked).for_each(|gap| gap.stage = stage);
    }

    /// What the origin has answered is done.
    pub(super) fn forget_gaps(&mut self, pin: Option<PinId>) {
        let Some(pin) = pin else { return };
        if let Some(gaps) = self.gaps.get_mut(&pin) {
            gaps.retain(|gap| gap.stage != Stage::Answered);
            if gaps.is_empty() {
                self.gaps.remove(&pin);
            }
        }
    }
}
