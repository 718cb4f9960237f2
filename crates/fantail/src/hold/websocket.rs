//! Held WebSockets: what their clients say, what their origins say, when they end. Everything that happens to one
//! happens here, in order, whoever caused it; the sockets are the pins', the words of the origin's answers
//! `fantail_proto`'s. Never asks an origin: who does is given [`Asking`].

mod far;
mod timers;

use std::rc::Rc;

use bytes::Bytes;
use fantail_pin::{Form, KeepAlive, KeepAliveMode, Outcome, Payload, PinId, Received};
use fantail_proto::{
    grip,
    item::WsKind,
    websocket::{
        close::{self, Close, Code},
        control::{self, Control, Message, Verdict},
        frame::{Frame, Opcode},
        over_http::{Action, Farewell, Session},
        reader::{self, Limits, Reader, Role, Violation},
    },
};
use http::{HeaderMap, StatusCode};

pub use far::{Asking, Call, Far, Link, Next, OverHttp};
use timers::{Delayed, Timers};

use super::{Asked, Hold, HoldKind, Holds, List, Onward};

/// What a WebSocket is besides a pin.
#[derive(Debug)]
pub(super) struct WebSocket {
    reader: Reader,
    far: Far,
    /// The message prefix, when the origin asked for GRIP.
    grip: Option<Box<str>>,
    stage: Stage,
    /// The first so many subscriptions are the target's own: the origin cannot end them.
    implicit: u16,
    debug: bool,
    timers: Timers,
}

/// How far the closing handshake is (RFC 6455 section 7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Open,
    /// The client has sent its close frame and is to get one.
    ClientClosed,
    /// We have sent ours; the client's is awaited.
    Closing,
    /// Both were sent, or there is nothing to wait for: the last bytes go out.
    Over,
}

/// A handshake that succeeded.
#[derive(Debug)]
pub struct Opened {
    pub far: Far,
    /// The message prefix, when the origin asked for GRIP.
    pub grip: Option<Box<str>>,
    /// The 101 that the client gets.
    pub head: Bytes,
    /// permessage-deflate was agreed on; `Coded` when our messages may be compressed, too.
    pub deflate: bool,
    pub form: Form,
    /// The route explains errors to clients.
    pub debug: bool,
    /// The origin's first words.
    pub actions: Vec<Action>,
}

impl Holds {
    /// Subscribes a WebSocket to its target's own channels, queues its 101 and does what the origin said with it.
    /// `None` when there can be no more pins.
    pub fn reserve_websocket(&mut self, asked: Asked, opened: Opened) -> Option<PinId> {
        let Opened { far, grip, head, deflate, form, debug, actions } = opened;
        let socket = WebSocket {
            reader: Reader::new(Role::Server, deflate),
            far,
            grip,
            stage: Stage::Open,
            implicit: u16::try_from(asked.subscriptions.len()).unwrap_or(u16::MAX),
            debug,
            timers: Timers::new(self.now_ms),
        };
        let prefix = asked.prefix.clone();
        let id = self.reserve(asked, form, HoldKind::WebSocket(Box::new(socket)))?;
        if let Some(hold) = self.pins.get_mut(id) {
            hold.prefix = prefix.into_boxed_str();
        }
        match self.far(id) {
            Some(Far::OverHttp(far)) => far.pin.set(Some(id)),
            Some(Far::Native(link)) => link.pin.set(Some(id)),
            _ => {}
        }
        self.pins.set_reading(id, true);
        self.write_to(id, &head);
        self.act(id, actions);
        Some(id)
    }

    /// Gives a reserved WebSocket its socket; `unread` is what the client has said already.
    pub fn attach_websocket(
        &mut self,
        id: PinId,
        socket: std::os::fd::OwnedFd,
        client: crate::client::Client,
        mut unread: Vec<u8>,
    ) {
        self.attach(id, socket, client);
        self.hear(id, &mut unread);
        self.ask(id);
        self.schedule(id);
        self.collect();
    }

    /// Takes an origin's answer to the request on its way.
    pub fn answered(&mut self, far: &Rc<OverHttp>, status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Next {
        let actions = far.session.borrow_mut().answered(status, headers, body, self.now_ms);
        self.heard_back(far, actions)
    }

    /// The request on its way has no answer.
    pub fn unanswered(&mut self, far: &Rc<OverHttp>, failure: fantail_proto::websocket::over_http::Failure) -> Next {
        let jitter = u64::from(super::jitter_ms());
        let actions = far.session.borrow_mut().failed(failure, jitter, self.now_ms);
        self.heard_back(far, actions)
    }

    /// What a session that has no client any more says next.
    pub fn go_on_asking(&mut self, far: &Rc<OverHttp>) -> Next {
        let mut session = far.session.borrow_mut();
        if let Some(body) = session.next(self.now_ms) {
            return Next::Ask(body);
        }
        match session.due_ms() {
            Some(due_ms) if !session.is_ended() => Next::Wait(due_ms.saturating_sub(self.now_ms).max(1)),
            _ => {
                self.partings = self.partings.saturating_sub(1);
                Next::Done
            }
        }
    }

    /// Takes what an origin's own server says.
    pub fn linked(&mut self, link: &Link, event: reader::Event) {
        let Some(id) = link.pin.get() else { return };
        let (kind, content, fragmented) = match event {
            reader::Event::Text { payload, fragmented } => (WsKind::Text, payload, fragmented),
            reader::Event::Binary(payload) => (WsKind::Binary, payload, false),
            reader::Event::Ping(payload) => (WsKind::Ping, payload, false),
            reader::Event::Pong(payload) => (WsKind::Pong, payload, false),
            reader::Event::Close(close) => {
                self.origin_closes(id, close.map(|close| (close.code, close.reason)));
                return self.collect();
            }
        };
        self.from_origin(id, Message { kind, content, fragmented });
        self.collect();
    }

    /// The connection to an origin's own server is over. Without a closing handshake the client sees none either.
    pub fn unlinked(&mut self, link: &Link) {
        let Some(id) = link.pin.take() else { return };
        let Some(socket) = self.socket(id) else { return };
        socket.far = Far::Detached;
        if matches!(socket.stage, Stage::Open | Stage::ClientClosed) {
            self.counters.ended_origin.add(1);
            self.drop_pin(id);
        }
    }

    /// What a native origin is sent has been written: the client may go on.
    pub fn link_has_room(&mut self, link: &Link) {
        if let Some(id) = link.pin.get()
            && link.has_room()
            && self.socket(id).is_some_and(|socket| socket.stage != Stage::ClientClosed)
        {
            self.pins.set_reading(id, true);
        }
    }

    /// Whether so much waits for a link's client that its origin is not to be read.
    pub fn is_behind(&self, link: &Link) -> bool {
        link.pin.get().is_some_and(|id| self.pins.queue_len(id) >= BEHIND)
    }

    pub(super) fn readable(&mut self, id: PinId) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        if let Received::Bytes(read) = self.pins.read(id, &mut buffer) {
            self.hear(id, &mut buffer[..read]);
            self.ask(id);
        }
        self.buffer = buffer;
    }

    /// A slow client has caught up.
    pub(super) fn drained(&mut self, id: PinId) {
        match self.far(id) {
            Some(Far::OverHttp(_)) => self.ask(id),
            Some(Far::Native(link)) => link.drained.notify_one(),
            _ => {}
        }
    }

    /// The client's side is over, without a closing handshake.
    pub(super) fn part(&mut self, id: PinId, farewell: Farewell) {
        let Some(socket) = self.socket(id) else { return };
        socket.timers.clear();
        match std::mem::replace(&mut socket.far, Far::Detached) {
            Far::OverHttp(far) => {
                far.pin.set(None);
                far.session.borrow_mut().leave(farewell);
                if !far.asking.get() && self.partings < MAX_PARTINGS {
                    self.partings += 1;
                    far.asking.set(true);
                    match self.go_on_asking(&far) {
                        Next::Ask(body) => self.onward.push(Onward::Ask(Asking { far, body })),
                        Next::Wait(_) | Next::Done => {}
                    }
                }
            }
            Far::Native(link) => {
                if farewell == Farewell::Close {
                    link.close(None);
                }
                link.end();
            }
            Far::Detached => {}
        }
    }

    /// Sends a close frame of our own; the origin hears of a close without a code (spec 7.5).
    pub(super) fn close_websocket(&mut self, id: PinId, frame: &Bytes) -> bool {
        let Some(socket) = self.socket(id) else { return false };
        if socket.stage != Stage::Open {
            return false;
        }
        self.part(id, Farewell::Close);
        let sent = self.send_close(id, frame);
        self.collect();
        sent
    }

    pub(super) fn due_websocket(&mut self, id: PinId) {
        let now_ms = self.now_ms;
        let written_ms = self.pins.last_write_ms(id).unwrap_or(now_ms);
        let (idle_ms, ping_ms) = (millis(self.websocket.idle_timeout), millis(self.websocket.ping_every));
        let Some(socket) = self.socket(id) else { return };
        if socket.stage != Stage::Open && socket.timers.close_by_ms <= now_ms {
            return self.give_up(id);
        }
        if let Some(delayed) = socket.timers.take_delayed(now_ms) {
            self.write_message(id, delayed.kind, &delayed.content);
        }
        let Some(socket) = self.socket(id) else { return };
        if socket.stage == Stage::Open {
            if socket.timers.is_idle(written_ms, idle_ms, now_ms) {
                self.counters.ended_timeout.add(1);
                self.close_websocket(id, &close_frame(Code::GOING_AWAY, ""));
            } else if socket.timers.is_silent(ping_ms, now_ms) {
                self.counters.ended_stalled.add(1);
                return self.depart(id);
            } else if socket.timers.wants_ping(ping_ms, now_ms) {
                self.write_to(id, &Frame::new(Opcode::Ping, PING).to_bytes());
            }
        }
        self.ask(id);
        self.schedule(id);
    }

    /// Ends a WebSocket whose client is gone: its origin hears of it.
    pub(super) fn depart(&mut self, id: PinId) {
        self.part(id, Farewell::Disconnect);
        self.drop_pin(id);
    }

    /// Asks the origin, even if there is nothing to say (spec 5.6).
    pub(super) fn refresh(&mut self, id: PinId) {
        if let Some(Far::OverHttp(far)) = self.far(id) {
            far.session.borrow_mut().refresh();
            self.ask(id);
        }
    }

    /// Which of a message's forms compressed ones are; asked for each batch, not for each subscriber.
    pub(super) fn payload(&mut self, messages: &[&fantail_proto::render::Message], coded: bool) -> Payload {
        let least = self.websocket.deflate_from;
        let plain = joined(messages.iter().map(|message| message.plain()));
        let coded = match coded {
            true => joined(messages.iter().map(|message| message.deflated(&mut self.deflater, least))),
            false => Bytes::new(),
        };
        Payload { plain, coded }
    }

    /// Reads frames and does what they say.
    fn hear(&mut self, id: PinId, bytes: &mut [u8]) {
        let mut input = bytes;
        let limits = Limits { message: self.websocket.message_bytes, fragments: self.websocket.fragments };
        let now_ms = self.now_ms;
        while !input.is_empty() {
            let Some(hold) = self.pins.get_mut(id) else { return };
            let HoldKind::WebSocket(socket) = &mut hold.kind else { return };
            socket.timers.heard(now_ms);
            match socket.reader.read(&mut input, &limits, &mut self.inflater) {
                Ok(Some(event)) => self.from_client(id, event),
                Ok(None) => return,
                Err(violation) => return self.violated(id, violation),
            }
        }
    }

    fn from_client(&mut self, id: PinId, event: reader::Event) {
        let (kind, payload) = match event {
            reader::Event::Text { payload, .. } => (WsKind::Text, payload),
            reader::Event::Binary(payload) => (WsKind::Binary, payload),
            reader::Event::Ping(payload) => (WsKind::Ping, payload),
            reader::Event::Pong(payload) if payload == PING => return,
            reader::Event::Pong(payload) => (WsKind::Pong, payload),
            reader::Event::Close(close) => return self.client_closes(id, close.as_ref()),
        };
        self.counters.messages_client.add(1);
        let has_room = match self.far(id) {
            Some(Far::OverHttp(far)) => far.session.borrow_mut().push(kind, &payload),
            Some(Far::Native(link)) => {
                link.send(kind.into(), &payload);
                link.has_room()
            }
            Some(Far::Detached) | None => true,
        };
        if !has_room {
            self.pins.set_reading(id, false);
        }
    }

    fn client_closes(&mut self, id: PinId, close: Option<&Close>) {
        let close_by_ms = self.now_ms + millis(self.websocket.close_timeout);
        let Some(socket) = self.socket(id) else { return };
        let before = socket.stage;
        match &socket.far {
            Far::OverHttp(far) => {
                far.session.borrow_mut().close(close.map(|close| (close.code.get(), close.reason.as_bytes())));
            }
            Far::Native(link) => link.close(close),
            Far::Detached => {}
        }
        match before {
            Stage::Open if !matches!(socket.far, Far::Detached) => {
                socket.stage = Stage::ClientClosed;
                socket.timers.close_by_ms = close_by_ms;
                self.pins.set_reading(id, false);
                self.schedule(id);
            }
            // Nobody else is to be asked: the answer is the same again.
            Stage::Open => self.last_close(id, close.map(|close| (close.code, &*close.reason))),
            Stage::Closing => self.over(id, &Bytes::new()),
            Stage::ClientClosed | Stage::Over => {}
        }
    }

    fn violated(&mut self, id: PinId, violation: Violation) {
        tracing::debug!(target: "fantail::websocket", %violation, "a client is closed");
        self.counters.ended_violation.add(1);
        self.part(id, Farewell::Disconnect);
        let frame = match self.socket(id).map(|socket| socket.stage) {
            // It has had its close frame.
            Some(Stage::Closing) => Bytes::new(),
            _ => close_frame(violation.code(), ""),
        };
        self.over(id, &frame);
    }

    /// Does what an origin's answer says, in its order.
    fn act(&mut self, id: PinId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Open | Action::Reject => {}
                Action::Message(kind, content) => {
                    self.from_origin(id, Message { kind, content, fragmented: false });
                }
                Action::Close(close) => {
                    let close = close.map(|(code, reason)| {
                        (Code::sendable(code), String::from_utf8_lossy(&reason).into_owned())
                    });
                    self.origin_closes(id, close);
                }
                Action::Drop(cause) => {
                    tracing::info!(target: "fantail::websocket", %cause, "a client is let go");
                    self.counters.ended_origin.add(1);
                    // The session knows already.
                    if let Some(Far::OverHttp(far)) = self.far(id) {
                        far.pin.set(None);
                    }
                    self.drop_pin(id);
                }
            }
        }
    }

    fn from_origin(&mut self, id: PinId, message: Message) {
        let kind = message.kind;
        self.counters.messages_origin.add(1);
        let Some(socket) = self.socket(id) else { return };
        match message.classify(socket.grip.as_deref()) {
            Verdict::Data(content) if kind == WsKind::Text && std::str::from_utf8(&content).is_err() => {
                tracing::info!(target: "fantail::websocket", "a text of the origin is not UTF-8");
                self.fail(id, "a text message is not UTF-8");
            }
            Verdict::Data(content) => self.write_message(id, kind, &content),
            Verdict::Control(control) => self.obey(id, control),
            Verdict::Dropped(why) => {
                self.counters.messages_dropped.add(1);
                tracing::debug!(target: "fantail::websocket", %why, "a message of the origin is dropped");
            }
            Verdict::Close(error) => {
                tracing::info!(target: "fantail::websocket", %error, "a client is closed");
                self.fail(id, &error.to_string());
            }
        }
    }

    /// Closes for a fault on our side of the connection; a client hears why with debug only.
    fn fail(&mut self, id: PinId, why: &str) {
        let debug = self.socket(id).is_some_and(|socket| socket.debug);
        self.close_websocket(id, &close_frame(Code::INTERNAL_ERROR, if debug { why } else { "" }));
    }

    fn origin_closes(&mut self, id: PinId, close: Option<(Code, String)>) {
        let close = close.as_ref().map(|(code, reason)| (*code, &**reason));
        match self.socket(id).map(|socket| socket.stage) {
            Some(Stage::Open) => {
                let frame = frame_of(close);
                self.send_close(id, &frame);
            }
            Some(Stage::ClientClosed) => self.last_close(id, close),
            _ => {}
        }
    }

    /// Sends a close frame and waits for the client's.
    fn send_close(&mut self, id: PinId, frame: &Bytes) -> bool {
        let close_by_ms = self.now_ms + millis(self.websocket.close_timeout);
        self.flush_delayed(id);
        let sent = matches!(self.pins.write(id, frame), Outcome::Sent | Outcome::Queued);
        self.pins.clear_keep_alive(id);
        if let Some(socket) = self.socket(id) {
            socket.stage = Stage::Closing;
            socket.timers.close_by_ms = close_by_ms;
            self.pins.set_reading(id, true);
            self.unsubscribe_all(id);
            self.schedule(id);
        }
        self.counters.ended_close.add(u64::from(sent));
        sent
    }

    /// Answers the client's close frame, and that is all.
    fn last_close(&mut self, id: PinId, close: Option<(Code, &str)>) {
        self.counters.ended_client.add(1);
        self.over(id, &frame_of(close));
    }

    /// Writes the last bytes; the connection ends when they are out.
    fn over(&mut self, id: PinId, tail: &Bytes) {
        if let Some(socket) = self.socket(id) {
            socket.stage = Stage::Over;
            self.unsubscribe_all(id);
            self.pins.finish(id, tail);
        }
    }

    /// The close frame that was waited for has not come.
    fn give_up(&mut self, id: PinId) {
        match self.socket(id).map(|socket| socket.stage) {
            Some(Stage::ClientClosed) => {
                self.part(id, Farewell::Disconnect);
                self.last_close(id, None);
            }
            _ => self.depart(id),
        }
    }

    fn obey(&mut self, id: PinId, control: Control) {
        match control {
            Control::Subscribe { channel, filters, prev_id: _ } => self.subscribe(id, &channel, filters),
            Control::Unsubscribe { channel } => self.leave_channel(id, &channel),
            Control::Detach => self.part(id, Farewell::Close),
            // There is no session service.
            Control::Session { id: _ } => {}
            Control::SetMeta { name, value } => self.set_meta(id, name, value),
            Control::KeepAlive(None) => self.pins.clear_keep_alive(id),
            Control::KeepAlive(Some(keep_alive)) => {
                let beats = self.beats(keep_alive);
                let first = beats.every_ms.saturating_sub(super::jitter_ms());
                self.pins.set_keep_alive(id, beats, first);
            }
            Control::SendDelayed { kind, content, after } => {
                self.flush_delayed(id);
                let at_ms = self.now_ms + millis(after);
                if let Some(socket) = self.socket(id) {
                    socket.timers.delayed = Some(Box::new(Delayed { at_ms, kind, content }));
                    self.schedule(id);
                }
            }
            Control::FlushDelayed => self.flush_delayed(id),
        }
    }

    fn flush_delayed(&mut self, id: PinId) {
        if let Some(delayed) = self.socket(id).and_then(|socket| socket.timers.delayed.take()) {
            self.write_message(id, delayed.kind, &delayed.content);
        }
    }

    /// Many clients are asked to have the same keep-alive: they share it.
    fn beats(&mut self, asked: control::KeepAlive) -> Rc<KeepAlive> {
        if let Some((last, beats)) = &self.last_beats
            && *last == asked
        {
            return Rc::clone(beats);
        }
        let frame = Frame::new(asked.kind.into(), &asked.content).to_bytes();
        let beats = Rc::new(KeepAlive {
            payload: Payload { plain: frame.clone(), coded: frame },
            every_ms: u32::try_from(asked.timeout.as_millis()).unwrap_or(u32::MAX),
            mode: match asked.mode {
                grip::KeepAliveMode::Idle => KeepAliveMode::Idle,
                grip::KeepAliveMode::Interval => KeepAliveMode::Interval,
            },
        });
        self.last_beats = Some((asked, Rc::clone(&beats)));
        beats
    }

    fn write_message(&mut self, id: PinId, kind: WsKind, content: &Bytes) {
        let opcode = Opcode::from(kind);
        let coded = !opcode.is_control()
            && content.len() >= self.websocket.deflate_from
            && self.pins.form(id) == Some(Form::Coded);
        let frame = if coded {
            Frame::deflated(opcode, &self.deflater.deflate(content)).to_bytes()
        } else {
            Frame::new(opcode, content).to_bytes()
        };
        self.write_to(id, &frame);
    }

    /// What an origin says is not dropped for a slow client: the origin waits for it.
    fn write_to(&mut self, id: PinId, bytes: &Bytes) {
        self.pins.write_patiently(id, bytes);
        self.counters.bytes_pushed.add(bytes.len() as u64);
    }

    /// Asks the origin if there is something to ask, and reads the client again if there is room.
    fn ask(&mut self, id: PinId) {
        let Some(Far::OverHttp(far)) = self.far(id) else { return };
        let far = Rc::clone(far);
        if far.asking.get() || self.pins.queue_len(id) >= BEHIND {
            return;
        }
        let body = far.session.borrow_mut().next(self.now_ms);
        if let Some(body) = body {
            far.asking.set(true);
            self.onward.push(Onward::Ask(Asking { far, body }));
        }
    }

    fn heard_back(&mut self, far: &Rc<OverHttp>, actions: Vec<Action>) -> Next {
        let Some(id) = far.pin.get() else {
            return self.go_on_asking_parted(far);
        };
        self.act(id, actions);
        self.collect();
        // Doing so may have ended it.
        if far.pin.get().is_none() || self.socket(id).is_none() {
            return self.go_on_asking_parted(far);
        }
        let (has_room, ended) = {
            let session = far.session.borrow();
            (session.has_room(), session.is_ended())
        };
        if has_room && self.socket(id).is_some_and(|socket| matches!(socket.stage, Stage::Open | Stage::Closing)) {
            self.pins.set_reading(id, true);
        }
        if !ended && self.pins.queue_len(id) < BEHIND {
            let body = far.session.borrow_mut().next(self.now_ms);
            if let Some(body) = body {
                return Next::Ask(body);
            }
        }
        far.asking.set(false);
        self.schedule(id);
        Next::Done
    }

    /// A session whose client left while it was asking is one of those that go on alone.
    fn go_on_asking_parted(&mut self, far: &Rc<OverHttp>) -> Next {
        if !far.alone.replace(true) {
            self.partings += 1;
        }
        self.go_on_asking(far)
    }

    /// Sets the pin's deadline to whatever is due next.
    fn schedule(&mut self, id: PinId) {
        let now_ms = self.now_ms;
        let written_ms = self.pins.last_write_ms(id).unwrap_or(now_ms);
        let (idle_ms, ping_ms) = (millis(self.websocket.idle_timeout), millis(self.websocket.ping_every));
        let Some(socket) = self.socket(id) else { return };
        let poll_ms = match &socket.far {
            Far::OverHttp(far) if !far.asking.get() => far.session.borrow().due_ms(),
            _ => None,
        };
        let timers = match socket.stage {
            Stage::Over => None,
            Stage::Open => socket.timers.next_ms(written_ms, idle_ms, ping_ms),
            Stage::ClientClosed | Stage::Closing => Some(socket.timers.close_by_ms),
        };
        if let Some(due_ms) = [poll_ms, timers].into_iter().flatten().min() {
            let after_ms = u32::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(u32::MAX);
            self.pins.set_deadline(id, after_ms);
        }
    }

    fn subscribe(&mut self, id: PinId, channel: &str, filters: Vec<fantail_proto::filter::Filter>) {
        let limits = self.subscription_limits;
        let Some(Hold { prefix, subs, realm, .. }) = self.pins.get(id) else { return };
        let (name, realm) = (format!("{prefix}{channel}"), *realm);
        if subs.len() >= limits.subscriptions || name.len() > limits.channel_bytes {
            tracing::debug!(target: "fantail::websocket", name, "a subscription over the limit is ignored");
            return;
        }
        self.join(id, realm, &name, List::WebSockets, filters);
    }

    fn leave_channel(&mut self, id: PinId, channel: &str) {
        let Some(Hold { prefix, subs, kind: HoldKind::WebSocket(socket), .. }) = self.pins.get(id) else { return };
        let name = format!("{prefix}{channel}");
        let place = subs.iter().position(|sub| self.channels.name(sub.channel) == name);
        if let Some(place) = place.filter(|place| *place >= usize::from(socket.implicit)) {
            self.leave(id, place);
        }
    }

    fn unsubscribe_all(&mut self, id: PinId) {
        while let Some(last) = self.pins.get(id).and_then(|hold| hold.subs.len().checked_sub(1)) {
            self.leave(id, last);
        }
    }

    fn set_meta(&mut self, id: PinId, name: String, value: Option<String>) {
        let Some(hold) = self.pins.get_mut(id) else { return };
        let meta = &mut hold.filtering().meta;
        let bytes: usize = meta.iter().map(|(name, value)| name.len() + value.len()).sum();
        meta.retain(|(known, _)| *known != name);
        if let Some(value) = value
            && meta.len() < MAX_META
            && bytes + name.len() + value.len() <= MAX_META_BYTES
        {
            meta.push((name, value));
        }
    }

    fn socket(&mut self, id: PinId) -> Option<&mut WebSocket> {
        match &mut self.pins.get_mut(id)?.kind {
            HoldKind::WebSocket(socket) => Some(socket),
            _ => None,
        }
    }

    fn far(&self, id: PinId) -> Option<&Far> {
        match &self.pins.get(id)?.kind {
            HoldKind::WebSocket(socket) => Some(&socket.far),
            _ => None,
        }
    }
}

impl OverHttp {
    /// What was said while the handshake went on.
    pub fn session(self: &Rc<Self>) -> std::cell::RefMut<'_, Session> {
        self.session.borrow_mut()
    }
}

/// A close frame.
pub(super) fn close_frame(code: Code, reason: &str) -> Bytes {
    Frame::new(Opcode::Close, &close::payload(code, reason)).to_bytes()
}

fn frame_of(close: Option<(Code, &str)>) -> Bytes {
    match close {
        Some((code, reason)) => close_frame(code, reason),
        None => Frame::new(Opcode::Close, &[]).to_bytes(),
    }
}

/// Frames one after another; a single one is shared, not copied.
fn joined<'f>(mut frames: impl Iterator<Item = &'f Bytes> + Clone) -> Bytes {
    let all = frames.clone();
    match (frames.next(), frames.next()) {
        (Some(only), None) => only.clone(),
        _ => {
            let mut bytes = Vec::with_capacity(all.clone().map(Bytes::len).sum());
            all.for_each(|frame| bytes.extend_from_slice(frame));
            bytes.into()
        }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One read of a client: few system calls for a fast one, little memory for the shard.
const BUFFER: usize = 64 << 10;
/// So much that waits for a slow client keeps its origin waiting, too (spec 7.2.5).
const BEHIND: usize = 200_000;
/// Sessions without a client that still have something to tell their origins.
const MAX_PARTINGS: usize = 10_000;
/// What an origin may note of a subscriber for filters.
const MAX_META: usize = 64;
const MAX_META_BYTES: usize = 8192;
/// The content of our own pings, so that their pongs are not taken for the client's words.
const PING: &[u8] = &[0x9e, 0x17, 0xc3, 0x42];
