//! Ending many holds at once, in order, when the server drains.
//! What an end means to one hold is decided with its kind.

use fantail_pin::PinId;
use fantail_proto::websocket::close::Code;

use super::{HoldKind, Holds, websocket};

impl Holds {
    /// Ends all holds in order: streams cleanly, long-polls with their time-out answer.
    pub fn drain(&mut self) {
        let all: Vec<PinId> = self.pins.ids().collect();
        for id in all {
            self.end(id);
        }
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
