//! The origin's side of a held WebSocket: asked by POSTs, or connected to. What is shared here between a hold and
//! the task that talks to the origin lives in one thread; the task exists only while there is something to
//! say, or the origin is connected. Never opens a connection itself.

use std::{
    cell::{Cell, RefCell},
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
};

use bytes::Bytes;
use fantail_pin::PinId;
use fantail_proto::{
    link::Place,
    websocket::{
        close::Close,
        frame::{Frame, Opcode},
        over_http::{Action, Cause, Session},
        reader::{self, Reader, Violation},
    },
};
use http::{HeaderMap, StatusCode};
use tokio::sync::Notify;

use super::{BEHIND, Message, Stage, WsKind};
use crate::{
    hold::{Hold, HoldKind, Holds, Trail},
    route::Route,
};

/// Where a WebSocket's messages go.
#[derive(Debug)]
pub enum Far {
    OverHttp(Rc<OverHttp>),
    Native(Rc<Link>),
    /// The built-in origin (spec 2.7): what the client says is what it is told.
    Echo,
    /// The origin is done with it (spec 7.4, `detach`): what the client says is for nobody.
    Detached,
}

/// How an origin is asked about one WebSocket, each time; the hold only keeps it.
#[derive(Debug)]
pub struct Call {
    pub route: Arc<Route>,
    /// Which of the route's targets.
    pub target: u16,
    /// The client came by TLS, as far as routes know.
    pub tls: bool,
    /// The client proved to be another Fantail or a Pushpin, by a signature that is good until then, in Unix
    /// seconds: so long it stands for ours.
    pub trusted_until: Option<NonZeroU32>,
    /// A random UUID, which the origin knows the WebSocket by.
    pub connection_id: [u8; 16],
    /// The client's path and headers, as short as they can be kept.
    pub request: Box<[u8]>,
}

impl Call {
    /// Where links and filters lead from.
    pub(super) fn trail(&self, debug: bool) -> Option<Trail> {
        let mut lines = self.request.split(|byte| *byte == b'\n');
        let path = str::from_utf8(lines.next()?).ok()?;
        let host = lines.find_map(|line| line.strip_prefix(b"host:"))?;
        let home = Place::new(self.tls, str::from_utf8(host).ok()?, path)?;
        Some(Trail { route: Arc::clone(&self.route), target: usize::from(self.target), home, debug })
    }
}

/// A WebSocket that its origin knows as a series of POSTs.
#[derive(Debug)]
pub struct OverHttp {
    pub call: Call,
    pub(super) session: RefCell<Session>,
    /// `None` when the client is gone.
    pub(super) pin: Cell<Option<PinId>>,
    /// A request is on its way, or its task is about to see to the next.
    pub(super) asking: Cell<bool>,
    /// How far it is without its client.
    pub(super) parting: Cell<Parting>,
    /// The last request was answered, if not well.
    pub(super) heard: Cell<bool>,
    gave_up: Cell<bool>,
    giving_up: Notify,
}

/// What becomes of a session whose client is gone, and the bytes that it has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Parting {
    /// Its client is there, or its origin was told that it is not.
    Not,
    Waits(u32),
    /// It is among those whose number has a limit.
    Begun(u32),
}

impl Parting {
    pub(super) const fn bytes(self) -> Option<u32> {
        match self {
            Self::Not => None,
            Self::Waits(bytes) | Self::Begun(bytes) => Some(bytes),
        }
    }
}

impl OverHttp {
    pub fn new(call: Call, session: Session) -> Rc<Self> {
        Rc::new(Self {
            call,
            session: RefCell::new(session),
            pin: Cell::new(None),
            asking: Cell::new(false),
            parting: Cell::new(Parting::Not),
            heard: Cell::new(false),
            gave_up: Cell::new(false),
            giving_up: Notify::new(),
        })
    }

    /// Its hold, while its client is there.
    pub(in crate::hold) fn pin(&self) -> Option<PinId> {
        self.pin.get()
    }

    /// Nobody is to be told anything more.
    pub(super) fn give_up(&self) {
        self.gave_up.set(true);
        self.giving_up.notify_one();
    }

    /// Resolves when there is no more use in asking, and no sooner.
    pub async fn given_up(&self) {
        while !self.gave_up.get() {
            self.giving_up.notified().await;
        }
    }

    /// The body of the next request, if one is due.
    pub fn next(&self, now_ms: u64) -> Option<Bytes> {
        self.session.borrow_mut().next(now_ms)
    }

    /// When there is a next request without any other cause.
    pub fn due_ms(&self) -> Option<u64> {
        self.session.borrow().due_ms()
    }

    /// What an answer means while nothing is held yet.
    pub fn answered(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: &Bytes,
        now_ms: u64,
    ) -> Vec<Action> {
        self.session.borrow_mut().answered(status, headers, body, now_ms)
    }

    /// The first answer began and cannot be had whole, while nothing is held yet.
    pub fn spoilt(&self, cause: Cause) {
        // There is no client of a hold to do anything for.
        drop(self.session.borrow_mut().spoilt(cause));
    }

    /// Headers that the session adds to the request on its way.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        self.session.borrow().write_headers(headers);
    }
}

/// A connection to an origin's own WebSocket server: what the client says waits here for the task that writes it.
#[derive(Debug)]
pub struct Link {
    pub(super) pin: Cell<Option<PinId>>,
    out: RefCell<Vec<u8>>,
    /// Nothing more will be written behind what is in `out`.
    ended: Cell<bool>,
    /// The last of that is a close frame, which the origin is to answer.
    closed: Cell<bool>,
    left: Notify,
    written: Notify,
    pub(super) drained: Notify,
    limit: usize,
    takes_parts: bool,
    /// Where filters ask from.
    pub(super) trail: Option<Rc<Trail>>,
}

impl Link {
    /// `limit`: bytes of frames that may wait before the client is read no more. `takes_parts`: the origin takes messages
    /// in more than one frame.
    pub fn new(limit: usize, takes_parts: bool, trail: Option<Rc<Trail>>) -> Rc<Self> {
        Rc::new(Self {
            pin: Cell::new(None),
            out: RefCell::default(),
            ended: Cell::new(false),
            closed: Cell::new(false),
            left: Notify::new(),
            written: Notify::new(),
            drained: Notify::new(),
            limit,
            trail,
            takes_parts,
        })
    }

    pub(super) fn takes_parts(&self) -> bool {
        self.takes_parts
    }

    /// What is to be written to the origin next; `None` when that was all for ever. Waits.
    pub async fn next(&self) -> Option<Vec<u8>> {
        loop {
            let out = self.out.take();
            if !out.is_empty() {
                return Some(out);
            }
            if self.ended.get() {
                return None;
            }
            self.written.notified().await;
        }
    }

    /// Resolves when the client has left, and no sooner.
    pub async fn left(&self) {
        while !self.ended.get() {
            self.left.notified().await;
        }
    }

    /// Whether the origin was sent a close frame.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Resolves when the client's queue has become shorter, or the client has left.
    pub async fn drained(&self) {
        if self.pin.get().is_some() {
            self.drained.notified().await;
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.out.borrow().len() < self.limit
    }

    pub(super) fn send(&self, opcode: Opcode, payload: &[u8]) {
        self.send_frame(Frame::new(opcode, payload));
    }

    pub(super) fn send_frame(&self, frame: Frame<'_>) {
        if !self.ended.get() {
            frame.append_masked(key(), &mut self.out.borrow_mut());
            self.written.notify_one();
        }
    }

    /// Writes a close frame, the last.
    pub(super) fn close(&self, close: Option<&Close>) {
        self.send(Opcode::Close, &close.map(Close::payload).unwrap_or_default());
        self.closed.set(true);
    }

    /// The client is gone: the connection ends when what waits is written.
    pub(super) fn end(&self) {
        self.pin.set(None);
        self.ended.set(true);
        self.written.notify_one();
        self.drained.notify_one();
        self.left.notify_one();
    }
}

impl Holds {
    /// Takes what an origin's own server says.
    ///
    /// # Errors
    /// The origin broke the protocol or a limit; its client has been closed.
    pub fn hear_link(
        &mut self,
        link: &Link,
        reader: &mut Reader,
        mut bytes: &mut [u8],
    ) -> Result<(), Violation> {
        let limits = self.limits();
        while !bytes.is_empty() {
            reader.relay(link.pin.get().is_some_and(|id| self.is_verbatim(id)));
            match reader.read(&mut bytes, &limits, &mut self.inflater) {
                Ok(Some(event)) => self.linked(link, event),
                Ok(None) => break,
                Err(violation) => {
                    tracing::info!(target: "fantail::websocket", %violation, "an origin breaks the protocol");
                    if let Some(id) = link.pin.get() {
                        self.fail(id, &format!("the origin broke the protocol: {violation}"));
                    }
                    self.collect();
                    return Err(violation);
                }
            }
        }
        self.collect();
        Ok(())
    }

    fn linked(&mut self, link: &Link, event: reader::Event) {
        let Some(id) = link.pin.get() else { return };
        let (kind, content, fragmented) = match event {
            reader::Event::Text { payload, fragmented } => (WsKind::Text, payload, fragmented),
            reader::Event::Binary(payload) => (WsKind::Binary, payload, false),
            reader::Event::Ping(payload) => (WsKind::Ping, payload, false),
            reader::Event::Pong(payload) => (WsKind::Pong, payload, false),
            reader::Event::Close(close) => {
                return self.origin_closes(id, close.as_ref().map(|close| (close.code, &*close.reason)));
            }
            reader::Event::Part { opcode, payload, last } => {
                if last {
                    self.counters.messages_origin.add(1);
                    self.watch_word(id, payload.len());
                }
                return self.write_to(id, &Frame::part(opcode, &payload, last).to_bytes());
            }
        };
        self.origin_says(id, Message { kind, content, fragmented });
    }

    /// The connection to an origin's own server is over. Without a closing handshake the client sees none either.
    pub fn unlinked(&mut self, link: &Link) {
        let Some(id) = link.pin.take() else { return };
        let Some(socket) = self.socket(id) else { return };
        socket.far = Far::Detached;
        if matches!(socket.stage, Stage::Open | Stage::ClientClosed(_)) {
            self.count_end(id, |counters| &counters.ended_origin);
            self.let_go(id);
        }
    }

    /// What a native origin is sent has been written: the client may go on.
    pub fn link_has_room(&mut self, link: &Link) {
        if let Some(id) = link.pin.get()
            && link.has_room()
            && self.socket(id).is_some_and(|socket| !matches!(socket.stage, Stage::ClientClosed(_)))
        {
            self.go_on_reading(id);
            self.collect();
        }
    }

    /// Passes on a part of a message, which has begun when it comes to an end.
    pub(super) fn say_part(&mut self, id: PinId, opcode: Opcode, payload: &Bytes, last: bool) {
        if last {
            self.counters.messages_client.add(1);
            self.watch_message(id, payload.len());
        }
        if let Some(Far::Native(link)) = self.far(id) {
            link.send_frame(Frame::part(opcode, payload, last));
            if !link.has_room() {
                self.pins.set_reading(id, false);
            }
        }
    }

    /// What a client's message has so far is passed on, if it may be. False if it must be had whole.
    pub(super) fn part_message(&mut self, id: PinId) -> bool {
        let Some(socket) = self.socket(id) else { return false };
        if !socket.reader.may_part() {
            return false;
        }
        socket.timers.complete_by_ms = u64::MAX;
        if let Some(part) = socket.reader.take_part() {
            self.client_says(id, part);
        }
        true
    }

    /// Whether what its origin says goes to the client as it is, and nothing else does: then a message may come in parts.
    fn is_verbatim(&self, id: PinId) -> bool {
        let Some(Hold { subs, kind: HoldKind::WebSocket(socket), .. }) = self.pins.get(id) else {
            return false;
        };
        socket.grip.is_none() && socket.sockjs.is_none() && socket.stage == Stage::Open && subs.is_empty()
    }

    /// Whether so much waits for a link's client that its origin is not to be read.
    pub fn is_behind(&self, link: &Link) -> bool {
        link.pin.get().is_some_and(|id| self.behind(id) >= BEHIND)
    }
}

/// A mask's key, unforeseeable (RFC 6455 section 10.3).
fn key() -> [u8; 4] {
    let mut key = [0; 4];
    aws_lc_rs::rand::fill(&mut key).expect("the system's generator works: TLS depends on it, too");
    key
}

/// What is to be done outside of the holds for a WebSocket whose origin is asked by POSTs.
#[derive(Debug)]
pub struct Asking {
    pub far: Rc<OverHttp>,
    /// What to begin with.
    pub next: Next,
}

/// What a session that is being asked for does next.
#[derive(Debug)]
pub enum Next {
    /// A request with this body.
    Ask(Bytes),
    /// The client is gone, and the origin is to hear of it again so many milliseconds later.
    Wait(u64),
    /// Nothing for now: the hold says when.
    Done,
}
