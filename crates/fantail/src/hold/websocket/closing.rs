//! How WebSockets end: the closing handshake (RFC 6455 section 7) from either side, faults of either side, and
//! what the other one hears of it. Each end is counted once, by its first cause.

use std::rc::Rc;

use bytes::Bytes;
use fantail_pin::{Outcome, PinId};
use fantail_proto::{
    sockjs,
    websocket::{
        close::{self, Close, Code},
        frame::{Frame, Opcode},
        over_http::Farewell,
        reader::Violation,
    },
};

use super::{Asking, Far, Next, OverHttp, Stage, far::Parting, millis};
use crate::{
    hold::{Holds, Onward},
    metrics::{Count, Counters},
};

impl Holds {
    /// Counts why a hold has ended; for a WebSocket, what happens while it closes is no cause any more.
    pub(in crate::hold) fn count_end(&mut self, id: PinId, cause: impl FnOnce(&Counters) -> &Count) {
        let counted = self.socket(id).is_some_and(|socket| std::mem::replace(&mut socket.counted, true));
        if !counted {
            cause(&self.counters).add(1);
        }
    }

    /// The client is nothing to its origin any more: without a closing handshake, or with one that is ours.
    pub(in crate::hold) fn part(&mut self, id: PinId, farewell: Farewell) {
        let Some(socket) = self.socket(id) else { return };
        match std::mem::replace(&mut socket.far, Far::Detached) {
            Far::OverHttp(far) => self.leave_origin(far, farewell),
            Far::Native(link) => {
                if farewell == Farewell::Close {
                    link.close(None);
                }
                link.end();
            }
            Far::Detached | Far::Echo => {}
        }
    }

    /// The client of a session left before it could be held.
    pub fn part_unheld(&mut self, far: Rc<OverHttp>) {
        self.leave_origin(far, Farewell::Disconnect);
    }

    fn leave_origin(&mut self, far: Rc<OverHttp>, farewell: Farewell) {
        far.pin.set(None);
        let bytes = {
            let mut session = far.session.borrow_mut();
            session.leave(farewell);
            u32::try_from(session.bytes()).unwrap_or(u32::MAX)
        };
        far.parting.set(Parting::Waits(bytes));
        if self.may_part(bytes) {
            self.begin_parting(far, bytes);
        } else if self.drains {
            // It is we who leave: all that waits was there before.
            self.farewells.push_back(far);
        } else {
            // Over the limits, the origin hears nothing: it has to reckon with that anyway.
            self.counters.farewells_dropped.add(1);
            if self.silent_until_ms <= self.now_ms {
                self.silent_until_ms = self.now_ms + SILENCE_MS;
                tracing::warn!(target: "fantail::websocket", "too many clients leave at once: not all of their origins are told");
            }
            far.give_up();
        }
    }

    /// Whether there is room for one more session without a client.
    fn may_part(&self, bytes: u32) -> bool {
        self.partings < MAX_PARTINGS && self.parting_bytes + bytes as usize <= MAX_PARTING_BYTES
    }

    /// Whether the next of those that wait may begin. Alone, one may hold more than the limit.
    pub(in crate::hold) fn may_say_farewell(&self) -> bool {
        let next = self.farewells.front().and_then(|far| far.parting.get().bytes());
        next.is_some_and(|bytes| self.partings == 0 || self.may_part(bytes))
    }

    /// Tells the origins of clients that we have left, as there is room for that.
    pub(in crate::hold) fn say_farewells(&mut self) {
        while self.may_say_farewell()
            && let Some(far) = self.farewells.pop_front()
        {
            let bytes = far.parting.get().bytes().unwrap_or_default();
            self.begin_parting(far, bytes);
        }
    }

    /// The origin has been told, or cannot be.
    pub(super) fn end_parting(&mut self, far: &OverHttp) {
        if let Parting::Begun(bytes) = far.parting.replace(Parting::Not) {
            self.partings -= 1;
            self.parting_bytes -= bytes as usize;
            let Counters { farewells_told, farewells_failed, .. } = &*self.counters;
            if far.heard.get() { farewells_told.add(1) } else { farewells_failed.add(1) }
        }
    }

    fn begin_parting(&mut self, far: Rc<OverHttp>, bytes: u32) {
        self.partings += 1;
        self.parting_bytes += bytes as usize;
        far.parting.set(Parting::Begun(bytes));
        if !far.asking.replace(true) {
            match self.go_on_asking(&far) {
                Next::Done => {}
                next => self.onward.push(Onward::Ask(Asking { far, next })),
            }
        }
    }

    /// Sends a close frame of our own; the origin hears of a close without a code (spec 7.5).
    pub(in crate::hold) fn close_websocket(&mut self, id: PinId, frame: &Bytes) -> Outcome {
        if self.socket(id).is_none_or(|socket| socket.stage != Stage::Open) {
            return Outcome::Gone;
        }
        self.part(id, Farewell::Close);
        let sent = self.send_close(id, frame);
        self.collect();
        sent
    }

    /// A client's queue is full. It gets what has waited and a close frame, if it reads.
    pub(in crate::hold) fn overflowed(&mut self, id: PinId) {
        if self.is_session(id) {
            return self.drop_pin(id);
        }
        self.part(id, Farewell::Disconnect);
        self.unsubscribe_all(id);
    }

    pub(in crate::hold) fn client_closes(&mut self, id: PinId, close: Option<&Close>) {
        let close_by_ms = self.now_ms + millis(self.websocket.close_timeout);
        let Some(socket) = self.socket(id) else { return };
        let before = socket.stage;
        match &socket.far {
            Far::OverHttp(far) => {
                far.session
                    .borrow_mut()
                    .close(close.map(|close| (close.code.get(), close.reason.as_bytes())));
            }
            Far::Native(link) => link.close(close),
            Far::Detached | Far::Echo => {}
        }
        match before {
            Stage::Open if !matches!(socket.far, Far::Detached | Far::Echo) => {
                socket.stage = Stage::ClientClosed(close.map(|close| close.code));
                socket.timers.close_by_ms = close_by_ms;
                self.pins.set_reading(id, false);
                self.schedule(id);
            }
            // Nobody else is to be asked: the answer is the same again.
            Stage::Open => self.last_close(id, close.map(|close| (close.code, &*close.reason))),
            Stage::Closing => self.over(id, &Bytes::new()),
            Stage::ClientClosed(_) | Stage::Over => {}
        }
    }

    pub(super) fn violated(&mut self, id: PinId, violation: Violation) {
        tracing::debug!(target: "fantail::websocket", %violation, "a client is closed");
        match violation {
            Violation::TooLong => self.counters.over_message_bytes.add(1),
            Violation::TooManyFragments => self.counters.over_fragments.add(1),
            _ => {}
        }
        self.count_end(id, |counters| &counters.ended_violation);
        self.part(id, Farewell::Disconnect);
        let frame = match self.socket(id).map(|socket| socket.stage) {
            // It has had its close frame.
            Some(Stage::Closing) => Bytes::new(),
            _ => close_frame(violation.code(), ""),
        };
        self.over(id, &frame);
    }

    /// Closes for a fault on our side of the connection; a client hears why with debug only.
    pub(in crate::hold) fn fail(&mut self, id: PinId, why: &str) {
        let debug = self.socket(id).is_some_and(|socket| socket.debug);
        self.count_end(id, |counters| &counters.ended_origin);
        self.close_websocket(id, &close_frame(Code::INTERNAL_ERROR, if debug { why } else { "" }));
    }

    pub(super) fn origin_closes(&mut self, id: PinId, close: Option<(Code, &str)>) {
        match self.socket(id).map(|socket| socket.stage) {
            Some(Stage::Open) => {
                let frame = frame_of(close);
                self.send_close(id, &frame);
            }
            Some(Stage::ClientClosed(_)) => self.last_close(id, close),
            _ => {}
        }
    }

    /// The origin is done with a client that stays (spec 7.4).
    pub(super) fn detach(&mut self, id: PinId) {
        self.part(id, Farewell::Close);
        match self.socket(id).map(|socket| socket.stage) {
            // What it says is for nobody, and is read all the same: it may be a close.
            Some(Stage::Open) => self.go_on_reading(id),
            Some(Stage::ClientClosed(code)) => self.last_close(id, code.map(|code| (code, ""))),
            _ => {}
        }
    }

    /// Ends without a close frame, behind what waits for the client.
    pub(super) fn let_go(&mut self, id: PinId) {
        self.part(id, Farewell::Disconnect);
        self.over(id, &Bytes::new());
    }

    /// The close frame that was waited for has not come.
    pub(super) fn give_up(&mut self, id: PinId) {
        let waits = self.pins.queue_len(id) > 0;
        let close_by_ms = self.now_ms + millis(self.websocket.close_timeout);
        match self.socket(id).map(|socket| (socket.stage, &mut socket.timers)) {
            // It cannot answer what it has not got: the pace of its reading is watched elsewhere.
            Some((Stage::Closing, timers)) if waits => {
                timers.close_by_ms = close_by_ms;
                return self.schedule(id);
            }
            _ => {}
        }
        match self.socket(id).map(|socket| socket.stage) {
            // Nobody says better: its own code comes back (RFC 6455 section 5.5.1).
            Some(Stage::ClientClosed(code)) => {
                self.part(id, Farewell::Disconnect);
                self.last_close(id, code.map(|code| (code, "")));
            }
            _ => self.drop_pin(id),
        }
    }

    /// Sends a close frame and waits for the client's.
    fn send_close(&mut self, id: PinId, frame: &Bytes) -> Outcome {
        let close_by_ms = self.now_ms + millis(self.websocket.close_timeout);
        self.flush_delayed(id);
        self.give_all_newest(id);
        if self.is_session(id) {
            self.count_end(id, |counters| &counters.ended_close);
            self.close_session(id, frame);
            return Outcome::Queued;
        }
        let outcome = match self.is_sockjs(id) {
            true => self.pins.seal(id, &announced(frame)),
            false => self.pins.seal(id, frame),
        };
        if matches!(outcome, Outcome::Sent | Outcome::Queued) {
            self.count_end(id, |counters| &counters.ended_close);
        }
        if let Some(socket) = self.socket(id) {
            socket.stage = Stage::Closing;
            socket.timers.close_by_ms = close_by_ms;
            self.unsubscribe_all(id);
            self.go_on_reading(id);
            self.schedule(id);
        }
        outcome
    }

    /// A session has ended: its client has nothing to say to that, so its origin hears of it at once.
    pub(in crate::hold) fn rest(&mut self, id: PinId) {
        let Some(socket) = self.socket(id) else { return };
        if socket.stage == Stage::Open {
            match &socket.far {
                Far::OverHttp(far) => far.session.borrow_mut().close(None),
                Far::Native(link) => link.close(None),
                Far::Detached | Far::Echo => {}
            }
        }
        socket.stage = Stage::Over;
        self.ask(id);
    }

    /// Answers the client's close frame, and that is all.
    fn last_close(&mut self, id: PinId, close: Option<(Code, &str)>) {
        self.count_end(id, |counters| &counters.ended_client);
        self.over(id, &frame_of(close));
    }

    /// Writes the last bytes; the connection ends when they are out.
    pub(in crate::hold) fn over(&mut self, id: PinId, tail: &Bytes) {
        if self.is_session(id) {
            return self.end_session(id, sockjs::close_of(if tail.is_empty() { INTERRUPTED } else { tail }));
        }
        if let Some(socket) = self.socket(id) {
            socket.stage = Stage::Over;
            self.unsubscribe_all(id);
            self.pins.finish(id, tail);
        }
    }
}

/// A close frame.
pub(in crate::hold) fn close_frame(code: Code, reason: &str) -> Bytes {
    Frame::new(Opcode::Close, &close::payload(code, reason)).to_bytes()
}

/// A close frame behind the frame of SockJS that says the same.
fn announced(frame: &Bytes) -> Bytes {
    let said = sockjs::close_of(frame);
    [&Frame::new(Opcode::Text, said.as_bytes()).to_bytes(), &frame[..]].concat().into()
}

fn frame_of(close: Option<(Code, &str)>) -> Bytes {
    match close {
        Some((code, reason)) => close_frame(code, reason),
        None => Frame::new(Opcode::Close, &[]).to_bytes(),
    }
}

/// 1002 and why.
const INTERRUPTED: &[u8] = b"\x88\x18\x03\xeaConnection interrupted";
/// So long it is not said again that some are not told.
const SILENCE_MS: u64 = 60_000;
/// Sessions without a client that still have something to tell their origins.
pub(super) const MAX_PARTINGS: usize = 10_000;
/// What these may hold: a client must not leave much behind by leaving.
const MAX_PARTING_BYTES: usize = 32 << 20;
