//! Ending many holds at once, in order, when the server drains.
//! What an end means to one hold is decided with its kind.

use fantail_pin::PinId;
use fantail_proto::websocket::close::Code;

use super::{HoldKind, Holds, websocket};

impl Holds {
    /// Begins to end all holds in order: streams cleanly, long-polls with their time-out answer.
    pub fn drain(&mut self) {
        self.drains = true;
        self.endings = self.pins.ids().collect();
    }

    /// Whether there are more of these.
    pub fn is_ending(&self) -> bool {
        !self.endings.is_empty()
    }

    /// Ends some of them.
    pub(super) fn end_some(&mut self) {
        let left = self.endings.len().saturating_sub(ENDING_BATCH);
        for id in self.endings.split_off(left) {
            self.end(id);
        }
    }

    /// How many origins the server's end leaves without word of their WebSockets' end.
    pub fn untold(&self) -> usize {
        self.partings + self.farewells.len()
    }

    /// Ends one hold in order, and its connection with it.
    pub fn end(&mut self, id: PinId) {
        match self.pins.get_mut(id).map(|hold| &mut hold.kind) {
            Some(HoldKind::Stream { keep_alive }) => {
                *keep_alive = false;
                self.close_stream(id);
            }
            Some(HoldKind::Poll(poll)) if !poll.answered => {
                poll.shape.keep_alive = false;
                self.time_out(id);
            }
            Some(HoldKind::WebSocket(_)) => {
                self.close_websocket(id, &websocket::close_frame(Code::GOING_AWAY, ""));
            }
            _ => {}
        }
        self.collect();
    }
}

/// So many are ended between other work: some milliseconds.
const ENDING_BATCH: usize = 500;
