//! Held WebSockets: what their clients say, what their origins say, when they end. Everything that happens to one
//! happens here, in order, whoever caused it; the sockets are the pins', the words of the origin's answers
//! `fantail_proto`'s. Never asks an origin: who does is given [`Asking`].

mod closing;
mod control;
mod far;
mod gaps;
#[cfg(test)]
mod tests;
mod timers;

use std::rc::Rc;

use bytes::Bytes;
use fantail_pin::{Form, Payload, PinId, Received, Wire};
use fantail_proto::{
    item::WsKind,
    render,
    websocket::{
        close::Code,
        control::{Message, Verdict},
        deflate::Window,
        frame::{Frame, Opcode},
        over_http::{Action, Cause, Failure},
        reader::{self, Limits, Reader, Role},
    },
};
use http::{HeaderMap, StatusCode};

pub(super) use closing::close_frame;
use far::Parting;
pub use far::{Asking, Call, Far, Link, Next, OverHttp};
pub(super) use gaps::Gap;
use timers::Timers;

use super::{
    Asked, Hold, HoldKind, Holds, Onward,
    sockjs::{SockJs, Speech},
};
use crate::{client::Client, hub::RealmId};

/// What a WebSocket is besides a pin.
#[derive(Debug)]
pub(super) struct WebSocket {
    reader: Reader,
    far: Far,
    /// The message prefix, when the origin asked for GRIP.
    grip: Option<Box<[u8]>>,
    stage: Stage,
    /// The first so many subscriptions are the target's own: the origin cannot end them.
    implicit: u16,
    debug: bool,
    /// Why it ended has been counted.
    counted: bool,
    /// Of a client that agreed to permessage-deflate.
    window: Option<Window>,
    realm: RealmId,
    /// Most have neither.
    names: Option<Box<Names>>,
    pub(super) timers: Timers,
    /// Of a client that speaks SockJS.
    pub(super) sockjs: Option<Box<SockJs>>,
}

/// The route's prefix, and the URI, as in [`Asked`].
#[derive(Debug)]
struct Names {
    prefix: Box<str>,
    uri: Option<Box<str>>,
}

impl WebSocket {
    fn prefix(&self) -> &str {
        self.names.as_ref().map_or("", |names| &names.prefix)
    }
}

/// How far the closing handshake is (RFC 6455 section 7).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Open,
    /// The client has sent its close frame, with this code, and is to get one.
    ClientClosed(Option<Code>),
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
    pub grip: Option<Bytes>,
    /// The 101 that the client gets.
    pub head: Bytes,
    /// Of a client that agreed to permessage-deflate.
    pub window: Option<Window>,
    /// The route explains errors to clients.
    pub debug: bool,
    /// The origin's first words.
    pub actions: Vec<Action>,
    pub speech: Speech,
}

impl Holds {
    /// Subscribes a WebSocket to its target's own channels, queues its 101 and does what the origin said with it.
    /// `None` when there can be no more pins.
    pub fn reserve_websocket(&mut self, asked: Asked, opened: Opened) -> Option<PinId> {
        let Opened { far, grip, head, window, debug, actions, speech } = opened;
        // Whoever can look back less far than we do is not sent what is compressed for all.
        let form = if window == Some(Window::MAX) { Form::Coded } else { Form::Plain };
        let names = !asked.prefix.is_empty() || asked.uri.is_some();
        let socket = WebSocket {
            reader: Reader::new(Role::Server, window.is_some()),
            far,
            grip: grip.map(|prefix| (*prefix).into()),
            stage: Stage::Open,
            implicit: 0,
            debug,
            counted: false,
            window,
            realm: asked.realm,
            names: names
                .then(|| Box::new(Names { prefix: asked.prefix.as_str().into(), uri: asked.uri.clone() })),
            timers: Timers::new(self.now_ms),
            sockjs: SockJs::of(speech),
        };
        let id = self.reserve(asked, form, HoldKind::WebSocket(Box::new(socket)))?;
        self.watch_websocket(id);
        self.deflating += usize::from(form == Form::Coded);
        if let Some(Hold { subs, kind: HoldKind::WebSocket(socket), .. }) = self.pins.get_mut(id) {
            socket.implicit = u16::try_from(subs.len()).unwrap_or(u16::MAX);
        }
        match self.far(id) {
            Some(Far::OverHttp(far)) => far.pin.set(Some(id)),
            Some(Far::Native(link)) => link.pin.set(Some(id)),
            _ => {}
        }
        self.pins.set_reading(id, true);
        self.write_to(id, &head);
        self.greet(id);
        self.act(id, actions);
        Some(id)
    }

    /// Gives a reserved WebSocket its socket; `unread` is what the client has said already.
    pub fn attach_websocket(&mut self, id: PinId, wire: Wire, client: Client, mut unread: Vec<u8>) {
        self.attach(id, wire, client);
        self.hear(id, &mut unread);
        self.ask(id);
        self.schedule(id);
        self.collect();
    }

    /// Takes an origin's answer to the request on its way.
    pub fn answered(
        &mut self,
        far: &Rc<OverHttp>,
        status: StatusCode,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Next {
        far.heard.set(true);
        let actions = far.session.borrow_mut().answered(status, headers, body, self.now_ms);
        let pin = far.pin.get();
        self.told_of_gaps(pin, status.is_success());
        let next = self.heard_back(far, actions);
        self.settle_gaps(pin);
        next
    }

    /// The request on its way has no answer.
    pub fn unanswered(&mut self, far: &Rc<OverHttp>, failure: Failure) -> Next {
        far.heard.set(false);
        let jitter = u64::from(super::jitter_ms());
        let actions = far.session.borrow_mut().failed(failure, jitter, self.now_ms);
        self.told_of_gaps(far.pin.get(), false);
        self.heard_back(far, actions)
    }

    /// The answer to the request on its way cannot be had whole.
    pub fn spoilt(&mut self, far: &Rc<OverHttp>, cause: Cause) -> Next {
        far.heard.set(true);
        let actions = far.session.borrow_mut().spoilt(cause);
        self.heard_back(far, actions)
    }

    /// What a session that has no client any more says next.
    pub fn go_on_asking(&mut self, far: &Rc<OverHttp>) -> Next {
        if !matches!(far.parting.get(), Parting::Begun(_)) {
            // Its turn is to come, or never will.
            far.asking.set(false);
            return Next::Done;
        }
        let mut session = far.session.borrow_mut();
        if let Some(body) = session.next(self.now_ms) {
            return Next::Ask(body);
        }
        match session.due_ms() {
            Some(due_ms) if !session.is_ended() => Next::Wait(due_ms.saturating_sub(self.now_ms).max(1)),
            _ => {
                drop(session);
                self.end_parting(far);
                Next::Done
            }
        }
    }

    pub(super) fn readable(&mut self, id: PinId) {
        // What is left of an earlier read comes first.
        if !self.pins.is_reading(id) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(BUFFER, 0);
        if let Received::Bytes(read) = self.pins.read(id, &mut buffer) {
            self.hear(id, &mut buffer[..read]);
            self.ask(id);
            self.unread |= read == BUFFER;
        }
        self.buffer = buffer;
    }

    /// A slow client has caught up: its far side may go on.
    pub(super) fn go_on_saying(&mut self, id: PinId) {
        match self.far(id) {
            Some(Far::OverHttp(_)) => self.ask(id),
            Some(Far::Native(link)) => link.drained.notify_one(),
            Some(Far::Echo) => self.go_on_reading(id),
            _ => {}
        }
    }

    pub(super) fn due_websocket(&mut self, id: PinId) {
        let now_ms = self.now_ms;
        let written_ms = self.pins.last_write_ms(id).unwrap_or(now_ms);
        let (idle_ms, ping_ms) = (millis(self.websocket.idle_timeout), millis(self.websocket.ping_every));
        let Some(socket) = self.socket(id) else { return };
        if socket.timers.absent_by_ms <= now_ms {
            self.count_end(id, |counters| &counters.ended_client);
            return self.drop_pin(id);
        }
        let ping_ms = if self.is_session(id) { 0 } else { ping_ms };
        let Some(socket) = self.socket(id) else { return };
        if socket.stage != Stage::Open && socket.timers.close_by_ms <= now_ms {
            return self.give_up(id);
        }
        if socket.timers.is_late(now_ms) && !self.part_message(id) {
            self.counters.over_message_timeout.add(1);
            self.count_end(id, |counters| &counters.ended_violation);
            self.close_websocket(id, &close_frame(Code::POLICY, ""));
            return self.collect();
        }
        let Some(socket) = self.socket(id) else { return };
        if let Some(delayed) = socket.timers.take_delayed(now_ms) {
            self.write_message(id, delayed.kind, &delayed.content);
        }
        let paused = !self.pins.is_reading(id);
        let Some(socket) = self.socket(id) else { return };
        if socket.stage == Stage::Open {
            if paused {
                // Whoever is not read cannot be heard.
                socket.timers.heard(now_ms);
                socket.timers.complete_by_ms = u64::MAX;
            }
            if socket.timers.is_idle(written_ms, idle_ms, now_ms) {
                self.count_end(id, |counters| &counters.ended_timeout);
                self.close_websocket(id, &close_frame(Code::GOING_AWAY, ""));
            } else if socket.timers.is_silent(ping_ms, now_ms) {
                self.count_end(id, |counters| &counters.ended_stalled);
                return self.drop_pin(id);
            } else if socket.timers.wants_ping(ping_ms, now_ms) {
                self.write_to(id, &Frame::new(Opcode::Ping, PING).to_bytes());
            }
        }
        self.ask(id);
        self.schedule(id);
    }

    /// Has the origin asked, even if there is nothing to say (spec 5.6). False if it is not one to be asked.
    pub(super) fn refresh(&mut self, id: PinId) -> bool {
        let Some(Far::OverHttp(far)) = self.far(id) else { return false };
        let open = far.session.borrow_mut().refresh();
        self.ask(id);
        open
    }

    /// Messages one after another, in both forms if there is any client for the second.
    pub(super) fn payload(&mut self, messages: &[&render::Message]) -> Payload {
        let Self { deflater, websocket, deflating, .. } = self;
        let plain = joined(&messages.iter().map(|message| message.plain()).collect::<Vec<_>>());
        let coded = if *deflating > 0 {
            let least = websocket.deflate_from;
            joined(&messages.iter().map(|message| message.deflated(deflater, least)).collect::<Vec<_>>())
        } else {
            Bytes::new()
        };
        Payload { plain, coded }
    }

    fn limits(&self) -> Limits {
        Limits { message: self.websocket.message_bytes, fragments: self.websocket.fragments }
    }

    /// Reads frames and does what they say, as long as there is room for what follows from them.
    fn hear(&mut self, id: PinId, bytes: &mut [u8]) {
        let mut input = bytes;
        let limits = self.limits();
        let now_ms = self.now_ms;
        while !input.is_empty() {
            let has_room = self.pins.is_reading(id);
            let Some(hold) = self.pins.get_mut(id) else { return };
            let HoldKind::WebSocket(socket) = &mut hold.kind else { return };
            if !has_room && !socket.reader.is_ended() {
                hold.unread = Some((&*input).into());
                return;
            }
            socket.timers.heard(now_ms);
            let relays =
                socket.sockjs.is_none() && matches!(&socket.far, Far::Native(link) if link.takes_parts());
            socket.reader.relay(relays);
            match socket.reader.read(&mut input, &limits, &mut self.inflater) {
                Ok(Some(event)) => {
                    socket.timers.complete_by_ms = u64::MAX;
                    self.client_says(id, event);
                }
                Ok(None) if socket.reader.is_partial() && socket.timers.complete_by_ms == u64::MAX => {
                    socket.timers.complete_by_ms =
                        now_ms.saturating_add(millis(self.websocket.message_timeout));
                    return self.schedule(id);
                }
                Ok(None) => return,
                Err(violation) => return self.violated(id, violation),
            }
        }
    }

    /// Reads the client, and first what of it has been read already.
    fn go_on_reading(&mut self, id: PinId) {
        self.pins.set_reading(id, true);
        if let Some(session) = self.session(id) {
            session.room.notify_waiters();
        }
        self.say_on(id);
        if self.pins.is_reading(id)
            && let Some(mut unread) = self.pins.get_mut(id).and_then(|hold| hold.unread.take())
        {
            self.hear(id, &mut unread);
        }
    }

    fn client_says(&mut self, id: PinId, event: reader::Event) {
        if self.is_sockjs(id) {
            return self.frame_says(id, event);
        }
        let (kind, payload) = match event {
            reader::Event::Text { payload, .. } => (WsKind::Text, payload),
            reader::Event::Binary(payload) => (WsKind::Binary, payload),
            reader::Event::Ping(payload) => (WsKind::Ping, payload),
            reader::Event::Pong(payload) if payload == PING => return,
            reader::Event::Pong(payload) => (WsKind::Pong, payload),
            reader::Event::Close(close) => return self.client_closes(id, close.as_ref()),
            reader::Event::Part { opcode, payload, last } => {
                return self.say_part(id, opcode, &payload, last);
            }
        };
        self.say(id, kind, &payload);
    }

    /// Gives what a client says to the far side.
    pub(super) fn say(&mut self, id: PinId, kind: WsKind, payload: &Bytes) {
        self.counters.messages_client.add(1);
        self.watch_message(id, payload.len());
        let has_room = match self.far(id) {
            Some(Far::OverHttp(far)) => far.session.borrow_mut().push(kind, payload),
            Some(Far::Native(link)) => {
                link.send(kind.into(), payload);
                link.has_room()
            }
            Some(Far::Echo) => return self.echo(id, kind, payload),
            Some(Far::Detached) | None => true,
        };
        if !has_room {
            self.pins.set_reading(id, false);
        }
    }

    fn echo(&mut self, id: PinId, kind: WsKind, payload: &Bytes) {
        match kind {
            WsKind::Pong => {}
            WsKind::Ping => self.write_message(id, WsKind::Pong, payload),
            kind => self.write_message(id, kind, payload),
        }
        if self.behind(id) >= BEHIND {
            self.pins.set_reading(id, false);
        }
    }

    /// Does what an origin's answer says, in its order.
    fn act(&mut self, id: PinId, actions: Vec<Action>) {
        for action in actions {
            // It may have closed, or be done with the client, by what it said before.
            if matches!(self.far(id), None | Some(Far::Detached)) {
                return;
            }
            match action {
                Action::Open | Action::Reject => {}
                Action::Message(kind, content) => {
                    self.origin_says(id, Message { kind, content, fragmented: false });
                }
                Action::Close(Some((code, reason))) => {
                    let reason = String::from_utf8_lossy(&reason);
                    self.origin_closes(id, Some((Code::sendable(code), &reason)));
                }
                // The answer to a close may be without a code; a close of the origin's own is a normal one.
                Action::Close(None) => {
                    let own = self.socket(id).is_some_and(|socket| socket.stage == Stage::Open);
                    self.origin_closes(id, own.then_some((Code::NORMAL, "")));
                }
                Action::Drop(cause) => {
                    tracing::info!(target: "fantail::websocket", %cause, "a client is let go");
                    self.count_end(id, |counters| &counters.ended_origin);
                    // The session knows, and may have something to say to that.
                    self.let_go(id);
                }
            }
        }
    }

    fn origin_says(&mut self, id: PinId, message: Message) {
        let kind = message.kind;
        self.counters.messages_origin.add(1);
        self.watch_word(id, message.content.len());
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

    fn write_message(&mut self, id: PinId, kind: WsKind, content: &Bytes) {
        self.watch_passed(id, content.len());
        if self.is_sockjs(id) {
            return self.write_frame(id, kind, content);
        }
        let opcode = Opcode::from(kind);
        let least = self.websocket.deflate_from;
        let window = self.socket(id).and_then(|socket| socket.window);
        let deflates = !opcode.is_control()
            && content.len() >= least
            && window.is_some_and(|window| window.fits(content.len()));
        let deflated = if deflates { self.deflater.deflate(content) } else { None };
        let frame =
            deflated.map_or_else(|| Frame::new(opcode, content), |content| Frame::deflated(opcode, content));
        let frame = frame.to_bytes();
        self.write_to(id, &frame);
    }

    /// What an origin says is not dropped for a slow client: the origin waits for it.
    pub(super) fn write_to(&mut self, id: PinId, bytes: &Bytes) {
        self.pins.write_patiently(id, bytes);
        self.counters.bytes_pushed.add(bytes.len() as u64);
    }

    /// Asks the origin if there is something to ask.
    pub(super) fn ask(&mut self, id: PinId) {
        let Some(Far::OverHttp(far)) = self.far(id) else { return };
        let far = Rc::clone(far);
        if far.asking.get() || self.behind(id) >= BEHIND {
            return;
        }
        let body = far.session.borrow_mut().next(self.now_ms);
        if let Some(body) = body {
            far.asking.set(true);
            self.onward.push(Onward::Ask(Asking { far, next: Next::Ask(body) }));
        }
    }

    fn heard_back(&mut self, far: &Rc<OverHttp>, actions: Vec<Action>) -> Next {
        if let Some(id) = far.pin.get() {
            self.act(id, actions);
            self.collect();
        }
        if let Some(id) = far.pin.get()
            && far.session.borrow().has_room()
            && self.socket(id).is_some_and(|socket| !matches!(socket.stage, Stage::ClientClosed(_)))
        {
            self.go_on_reading(id);
            self.collect();
        }
        // What it said, or the client, may have ended it.
        let Some(id) = far.pin.get() else { return self.go_on_asking(far) };
        let ended = far.session.borrow().is_ended();
        if !ended && self.behind(id) < BEHIND {
            let body = far.session.borrow_mut().next(self.now_ms);
            if let Some(body) = body {
                return Next::Ask(body);
            }
        }
        far.asking.set(false);
        self.schedule(id);
        Next::Done
    }

    /// Sets the pin's deadline to whatever is due next.
    pub(super) fn schedule(&mut self, id: PinId) {
        let now_ms = self.now_ms;
        let written_ms = self.pins.last_write_ms(id).unwrap_or(now_ms);
        let (idle_ms, ping_ms) = (millis(self.websocket.idle_timeout), millis(self.websocket.ping_every));
        let ping_ms = if self.is_session(id) { 0 } else { ping_ms };
        let Some(socket) = self.socket(id) else { return };
        let poll_ms = match &socket.far {
            Far::OverHttp(far) if !far.asking.get() => far.session.borrow().due_ms(),
            _ => None,
        };
        let timers = match socket.stage {
            Stage::Over => None,
            Stage::Open => socket.timers.next_ms(written_ms, idle_ms, ping_ms),
            Stage::ClientClosed(_) | Stage::Closing => Some(socket.timers.close_by_ms),
        };
        let absent = Some(socket.timers.absent_by_ms).filter(|by_ms| *by_ms < u64::MAX);
        if let Some(due_ms) = [poll_ms, timers, absent].into_iter().flatten().min() {
            let after_ms = u32::try_from(due_ms.saturating_sub(now_ms)).unwrap_or(u32::MAX);
            self.pins.set_deadline(id, after_ms);
        }
    }

    pub(super) fn socket(&mut self, id: PinId) -> Option<&mut WebSocket> {
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

/// Frames one after another; a single one is shared, not copied.
fn joined(frames: &[&Bytes]) -> Bytes {
    match frames {
        [only] => (*only).clone(),
        all => {
            let mut bytes = Vec::with_capacity(all.iter().map(|frame| frame.len()).sum());
            all.iter().for_each(|frame| bytes.extend_from_slice(frame));
            bytes.into()
        }
    }
}

pub(super) fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// One read of a client: few system calls for a fast one, little memory for the shard.
const BUFFER: usize = 64 << 10;
/// So much that waits for a slow client keeps its origin waiting, too (spec 7.2.5).
const BEHIND: usize = 200_000;
/// The content of our own pings, so that their pongs are not taken for the client's words.
const PING: &[u8] = &[0x9e, 0x17, 0xc3, 0x42];

/// The price of an idle WebSocket over HTTP beside its pin and its request.
const _: () = assert!(size_of::<WebSocket>() <= 128 && size_of::<OverHttp>() <= 208);
