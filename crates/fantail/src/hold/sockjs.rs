//! Clients that speak SockJS. Over a WebSocket one is a WebSocket whose texts are frames of SockJS; otherwise it is a
//! *session*: the same, but its pin has no socket, and what waits for it is taken to whoever receives. It asks
//! nobody; how frames look on the wire is `fantail_proto`'s.

use std::rc::Rc;

use bytes::Bytes;
use fantail_pin::{Form, Payload, PinId, Received};
use fantail_proto::{
    item::WsKind,
    render::{self, Chunk},
    reply::Framing,
    sockjs::{self, Receiving},
    websocket::{
        close::Code,
        control,
        frame::{Frame, Opcode},
        over_http::Farewell,
        reader,
    },
};
use hashbrown::hash_map::Entry;
use http::{HeaderMap, HeaderValue, header};
use tokio::sync::Notify;

use super::{Asked, Hold, HoldKind, Holds, LAST_CHUNK, Opened, Shape, Subs, websocket::close_frame};
use crate::{channel::ByName, stats::Presence};

/// The sessions of a shard, by what their requests name them; without a pin while their origin is asked.
pub(super) type Sessions = ByName<Box<str>, Option<PinId>>;

/// What a WebSocket is besides, if its client speaks SockJS.
#[derive(Debug)]
pub(super) enum SockJs {
    /// Its socket carries frames of SockJS. Of the last one, these messages wait for room.
    Framed(std::vec::IntoIter<String>),
    Session(Session),
}

#[derive(Debug)]
pub(super) struct Session {
    key: Box<str>,
    /// Its client knows that it is open.
    told: bool,
    /// Who gets what there is for it.
    receiver: Option<PinId>,
    /// The last frame, from its end on.
    closed: Option<Box<str>>,
    /// There is room again for what its client says.
    pub(super) room: Rc<Notify>,
}

/// How a client's frames go over the wire.
#[derive(Debug)]
pub enum Speech {
    WebSocket,
    SockJs,
    /// Of a session by this name.
    Session(Box<str>),
}

/// A held request that gets a session's frames.
#[derive(Debug)]
pub struct Receiver {
    pub way: Receiving,
    pub shape: Shape,
    /// `Origin` of the page.
    pub page: Option<HeaderValue>,
    /// What the client had sent behind the request.
    pub unread: Vec<u8>,
    session: Option<PinId>,
    /// Bytes of frames so far.
    sent: usize,
    over: bool,
}

impl Receiver {
    pub fn new(way: Receiving, shape: Shape, page: Option<HeaderValue>) -> Self {
        Self { way, shape, page, unread: Vec::new(), session: None, sent: 0, over: false }
    }

    fn head(&self, framing: Framing) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.way.content_type()));
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        admit(&mut headers, self.page.as_ref());
        self.shape.begin(200, "", &headers, framing, 0)
    }

    /// Whether another request may follow on its connection.
    pub(super) fn keeps_alive(&self) -> bool {
        self.shape.keep_alive && (self.shape.http11 || !self.way.streams())
    }

    fn begin(&self) -> Bytes {
        let framing = if self.shape.http11 { Framing::Chunked } else { Framing::Close };
        let mut out = self.head(framing);
        out.extend_from_slice(&self.part(&self.way.prelude()));
        out.into()
    }

    fn part(&self, content: &[u8]) -> Bytes {
        let chunk = Chunk::new(content);
        if self.shape.http11 { chunk.framed().clone() } else { chunk.content() }
    }
}

/// What a response says to pages of other origins: which of them may open sessions was seen to.
pub fn admit(headers: &mut HeaderMap, page: Option<&HeaderValue>) {
    // Any page can make itself `null`, in a sandboxed frame.
    let page = page.filter(|page| *page != "null");
    headers
        .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, page.cloned().unwrap_or(HeaderValue::from_static("*")));
    if page.is_some() {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    }
}

/// What there is of a session that a request names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found {
    /// It is to be opened now: give it a pin, or [`Holds::forget_session`].
    New,
    There,
    /// There can be no more.
    Full,
}

/// What became of a client's messages.
#[derive(Debug)]
pub enum Said {
    All,
    /// The rest has to wait.
    Full(Rc<Notify>),
    /// There is no such session, or it is over.
    Gone,
}

impl Holds {
    pub fn enter_session(&mut self, key: &str) -> Found {
        let most = self.sockjs.sessions;
        if self.sessions.contains_key(key) {
            return Found::There;
        }
        if self.sessions.len() >= most {
            return Found::Full;
        }
        self.sessions.insert(key.into(), None);
        Found::New
    }

    /// A session that was to be opened is not.
    pub fn forget_session(&mut self, key: &str) {
        if let Some(None) = self.sessions.get(key) {
            self.sessions.remove(key);
        }
    }

    /// Opens a session that was entered.
    pub fn open_session(&mut self, key: &str, asked: Asked, opened: Opened) -> Option<PinId> {
        let id = self.reserve_websocket(asked, Opened { speech: Speech::Session(key.into()), ..opened })?;
        self.sessions.insert(key.into(), Some(id));
        self.expect_receiver(id);
        self.ask(id);
        self.collect();
        Some(id)
    }

    /// Holds a request that gets the frames of a session. `None` when there can be no more pins.
    pub fn reserve_receiver(
        &mut self,
        key: &str,
        receiver: Receiver,
        presence: Option<Rc<Presence>>,
    ) -> Option<PinId> {
        let streams = receiver.way.streams();
        let begin = streams.then(|| receiver.begin());
        let kind = HoldKind::Receiver(Box::new(receiver));
        let hold = Hold { subs: Subs::new(), kind, client: None, standing: None, unread: None, presence };
        let to = self.pins.reserve(Form::Plain, hold)?;
        self.counters.pins_receiver.add(1);
        if let Some(begin) = begin {
            // What a client sends meanwhile is not for this response.
            self.pins.set_reading(to, true);
            self.pins.write_patiently(to, &begin);
        }
        let id = self.sessions.get(key).copied().flatten();
        let now_ms = self.now_ms;
        let Some((id, session)) = id.and_then(|id| Some((id, self.session(id)?))) else {
            self.give(to, &sockjs::close(2010, ANOTHER), true);
            return Some(to);
        };
        if session.receiver.is_some() {
            self.give(to, &sockjs::close(2010, ANOTHER), true);
            return Some(to);
        }
        let told = std::mem::replace(&mut session.told, true);
        session.receiver = Some(to);
        if let Some(Hold { kind: HoldKind::Receiver(receiver), .. }) = self.pins.get_mut(to) {
            receiver.session = Some(id);
        }
        if let Some(socket) = self.socket(id) {
            socket.timers.heard(now_ms);
            socket.timers.absent_by_ms = u64::MAX;
        }
        if !told {
            self.give(to, sockjs::OPEN, false);
        }
        self.feed(id);
        Some(to)
    }

    /// Messages of a session's client, from the front.
    pub fn session_says(&mut self, key: &str, messages: &mut std::vec::IntoIter<String>) -> Said {
        let Some(id) = self.sessions.get(key).copied().flatten() else { return Said::Gone };
        loop {
            let reading = self.pins.is_reading(id);
            match self.session(id) {
                Some(Session { closed: None, room, .. }) if !reading => return Said::Full(Rc::clone(room)),
                Some(Session { closed: None, .. }) => {}
                _ => return Said::Gone,
            }
            let Some(message) = messages.next() else { break };
            self.say(id, WsKind::Text, &message.into());
        }
        self.ask(id);
        self.collect();
        Said::All
    }

    /// Takes what waits for a session to who receives it.
    pub(super) fn feed(&mut self, id: PinId) {
        let Some(to) = self.session(id).and_then(|session| session.receiver) else { return };
        if self.pins.queue_len(to) >= AHEAD {
            return;
        }
        let waiting = self.pins.take_queued(id);
        if let Some(frame) = sockjs::merged(waiting.iter().map(|bytes| &bytes[..])) {
            self.give(to, &frame, false);
            // Its origin may have waited for that.
            self.drained(id);
        }
        let Some(Session { receiver: Some(to), closed: Some(closed), .. }) = self.session(id) else { return };
        let (to, closed) = (*to, closed.clone());
        self.give(to, &closed, true);
    }

    /// Sends a frame to a receiver; its response may end with it.
    fn give(&mut self, to: PinId, frame: &str, last: bool) {
        let most = self.sockjs.stream_bytes;
        let Some(Hold { kind: HoldKind::Receiver(receiver), .. }) = self.pins.get_mut(to) else { return };
        let mut content = Vec::with_capacity(frame.len() + 32);
        receiver.way.wrap(frame, &mut content);
        receiver.sent += content.len();
        let streams = receiver.way.streams();
        receiver.over = last || !streams || receiver.sent >= most;
        let mut bytes = match streams {
            true => receiver.part(&content).to_vec(),
            false => [receiver.head(Framing::Length(content.len() as u64)), content].concat(),
        };
        if !receiver.over {
            self.counters.bytes_pushed.add(bytes.len() as u64);
            self.pins.write_patiently(to, &bytes.into());
            return;
        }
        if streams && receiver.shape.http11 {
            bytes.extend_from_slice(&LAST_CHUNK);
        }
        let session = receiver.session;
        self.counters.bytes_pushed.add(bytes.len() as u64);
        self.pins.finish(to, &bytes.into());
        if let Some(id) = session {
            if let Some(session) = self.session(id) {
                session.receiver = None;
            }
            self.expect_receiver(id);
        }
    }

    /// Nobody receives a session: somebody has to soon.
    fn expect_receiver(&mut self, id: PinId) {
        let by_ms = self.now_ms + super::websocket::millis(self.sockjs.disconnect_timeout);
        if let Some(socket) = self.socket(id) {
            socket.timers.absent_by_ms = by_ms;
            self.schedule(id);
        }
    }

    /// A receiver or a session is about to go.
    pub(super) fn leave_session(&mut self, id: PinId) {
        match self.pins.get_mut(id).map(|hold| &mut hold.kind) {
            Some(HoldKind::Receiver(receiver)) if !receiver.over => {
                receiver.over = true;
                let Some(id) = receiver.session else { return };
                if let Some(session) = self.session(id) {
                    session.receiver = None;
                }
                self.count_end(id, |counters| &counters.ended_client);
                self.part(id, Farewell::Disconnect);
                self.end_session(id, sockjs::close(1002, INTERRUPTED));
            }
            Some(HoldKind::WebSocket(_)) => {
                let Some(session) = self.session(id) else { return };
                session.room.notify_waiters();
                let (key, receiver) = (std::mem::take(&mut session.key), session.receiver.take());
                if let Entry::Occupied(known) = self.sessions.entry(key)
                    && *known.get() == Some(id)
                {
                    known.remove();
                }
                if let Some(Hold { kind: HoldKind::Receiver(receiver), .. }) =
                    receiver.and_then(|receiver| self.pins.get_mut(receiver))
                {
                    receiver.over = true;
                }
                if let Some(receiver) = receiver {
                    self.drop_pin(receiver);
                }
            }
            _ => {}
        }
    }

    /// A close for a session, from our side: its client needs to answer nothing.
    pub(super) fn close_session(&mut self, id: PinId, frame: &Bytes) {
        self.end_session(id, sockjs::close_of(frame));
    }

    /// Nothing but `closed` follows what waits for a session. It stays as long as its client may ask.
    pub(super) fn end_session(&mut self, id: PinId, closed: String) {
        let Some(session) = self.session(id) else { return };
        session.closed.get_or_insert_with(|| closed.into());
        session.room.notify_waiters();
        self.rest(id);
        self.unsubscribe_all(id);
        self.pins.clear_keep_alive(id);
        self.expect_receiver(id);
        self.feed(id);
    }

    /// Sends what an origin says as SockJS has it; what has no place there is answered for the client.
    pub(super) fn write_frame(&mut self, id: PinId, kind: WsKind, content: &Bytes) {
        match kind {
            WsKind::Text | WsKind::Binary => {
                let frame = sockjs::message(content);
                self.write_to(id, &Frame::new(Opcode::Text, frame.as_bytes()).to_bytes());
            }
            WsKind::Ping => {
                self.say(id, WsKind::Pong, content);
                self.ask(id);
            }
            WsKind::Pong => {}
        }
    }

    /// What a client says in frames of SockJS over its WebSocket.
    pub(super) fn frame_says(&mut self, id: PinId, event: reader::Event) {
        let payload = match event {
            reader::Event::Text { payload, .. } if payload.is_empty() => return,
            reader::Event::Text { payload, .. } => payload,
            reader::Event::Binary(_) | reader::Event::Part { .. } => return self.misspoken(id),
            reader::Event::Ping(payload) => {
                return self.write_to(id, &Frame::new(Opcode::Pong, &payload).to_bytes());
            }
            reader::Event::Pong(_) => return,
            reader::Event::Close(close) => return self.client_closes(id, close.as_ref()),
        };
        match sockjs::messages(&payload) {
            Ok(messages) => {
                if let Some(SockJs::Framed(unsaid)) =
                    self.socket(id).and_then(|socket| socket.sockjs.as_deref_mut())
                {
                    *unsaid = messages.into_iter();
                }
                self.say_on(id);
            }
            Err(_) => self.misspoken(id),
        }
    }

    /// Says the messages of a frame, as long as there is room for them.
    pub(super) fn say_on(&mut self, id: PinId) {
        while self.pins.is_reading(id)
            && let Some(socket) = self.socket(id)
            && let Some(SockJs::Framed(unsaid)) = socket.sockjs.as_deref_mut()
            && let Some(message) = unsaid.next()
        {
            self.say(id, WsKind::Text, &message.into());
        }
    }

    fn misspoken(&mut self, id: PinId) {
        self.count_end(id, |counters| &counters.ended_violation);
        self.part(id, Farewell::Disconnect);
        self.over(id, &close_frame(Code::INVALID_DATA, ""));
    }

    /// Messages one after another, for clients that speak SockJS.
    pub(super) fn frames_payload(messages: &[&render::Message]) -> Payload {
        let plain = match messages {
            [only] => only.sockjs().clone(),
            all => all.iter().flat_map(|message| message.sockjs().iter().copied()).collect(),
        };
        Payload { plain, coded: Bytes::new() }
    }

    /// What a client that speaks SockJS hears first.
    pub(super) fn greet(&mut self, id: PinId) {
        if !self.is_sockjs(id) {
            return;
        }
        if !self.is_session(id) {
            self.write_to(id, &Frame::new(Opcode::Text, sockjs::OPEN.as_bytes()).to_bytes());
        }
        self.heartbeat(id);
    }

    /// What is sent by the clock when nothing else is.
    pub(super) fn heartbeat(&mut self, id: PinId) {
        let every = self.sockjs.heartbeat;
        let asked = control::KeepAlive {
            kind: WsKind::Ping,
            content: Bytes::new(),
            timeout: every,
            mode: fantail_proto::grip::KeepAliveMode::Idle,
        };
        let beats = self.beats(asked, true);
        let first = beats.every_ms;
        self.pins.set_keep_alive(id, beats, first);
    }

    /// A receiver that streams has something to read: no request may come before its response has ended.
    pub(super) fn spoken_to(&mut self, id: PinId) {
        let mut byte = [0; 1];
        if matches!(self.pins.read(id, &mut byte), Received::Bytes(_)) {
            self.drop_pin(id);
        }
    }

    /// The session of a receiver whose queue has become empty.
    pub(super) fn received(&mut self, id: PinId) {
        if let Some(Hold { kind: HoldKind::Receiver(receiver), .. }) = self.pins.get(id)
            && let Some(session) = receiver.session
        {
            let waits = self.pins.queue_len(session) > 0;
            self.feed(session);
            if !waits {
                // Its origin may have waited for the receiver alone.
                self.drained(session);
            }
        }
    }

    pub(super) fn is_sockjs(&self, id: PinId) -> bool {
        matches!(self.pins.get(id), Some(Hold { kind: HoldKind::WebSocket(socket), .. }) if socket.sockjs.is_some())
    }

    pub(super) fn is_session(&self, id: PinId) -> bool {
        matches!(
            self.pins.get(id),
            Some(Hold { kind: HoldKind::WebSocket(socket), .. })
                if matches!(socket.sockjs.as_deref(), Some(SockJs::Session(_)))
        )
    }

    pub(super) fn session(&mut self, id: PinId) -> Option<&mut Session> {
        match self.socket(id)?.sockjs.as_deref_mut() {
            Some(SockJs::Session(session)) => Some(session),
            _ => None,
        }
    }

    /// Bytes that wait for a client, wherever.
    pub(super) fn behind(&self, id: PinId) -> usize {
        let receiver = match self.pins.get(id).map(|hold| &hold.kind) {
            Some(HoldKind::WebSocket(socket)) => match socket.sockjs.as_deref() {
                Some(SockJs::Session(session)) => session.receiver,
                _ => None,
            },
            _ => None,
        };
        self.pins.queue_len(id) + receiver.map_or(0, |receiver| self.pins.queue_len(receiver))
    }

    /// Gives a reserved receiver its socket.
    pub fn attach_receiver(
        &mut self,
        id: PinId,
        wire: impl Into<fantail_pin::Wire>,
        client: crate::client::Client,
        unread: Vec<u8>,
    ) {
        if let Some(Hold { kind: HoldKind::Receiver(receiver), .. }) = self.pins.get_mut(id) {
            receiver.unread = unread;
        }
        self.attach(id, wire, client);
    }
}

impl SockJs {
    pub(super) fn of(speech: Speech) -> Option<Box<Self>> {
        match speech {
            Speech::WebSocket => None,
            Speech::SockJs => Some(Box::new(Self::Framed(Vec::new().into_iter()))),
            Speech::Session(key) => Some(Box::new(Self::Session(Session {
                key,
                told: false,
                receiver: None,
                closed: None,
                room: Rc::new(Notify::new()),
            }))),
        }
    }
}

/// What a keep-alive of an origin's is to such a client.
pub(super) fn beat(asked: &control::KeepAlive) -> Bytes {
    let frame = match asked.kind {
        WsKind::Text | WsKind::Binary => sockjs::message(&asked.content),
        WsKind::Ping | WsKind::Pong => sockjs::HEARTBEAT.to_owned(),
    };
    Frame::new(Opcode::Text, frame.as_bytes()).to_bytes()
}

pub const NO_STORE: HeaderValue =
    HeaderValue::from_static("no-store, no-cache, no-transform, must-revalidate, max-age=0");
/// What waits for a receiver's socket before its session is left to wait itself.
const AHEAD: usize = 64 << 10;
const ANOTHER: &str = "Another connection still open";
const INTERRUPTED: &str = "Connection interrupted";
