//! A shard's holds: streams, long-polls and WebSockets, their channels, and the delivery of items to them. It
//! owns the pins and who subscribes to what. It keeps the route of a WebSocket and never looks at it, and asks
//! no origin; what is for others to do comes out as [`Onward`].

mod asked;
mod beats;
mod channels;
mod ending;
mod fanout;
mod fill;
mod follow;
mod inquiry;
mod joining;
mod onward;
mod poll;
mod reached;
mod rounds;
mod sockjs;
mod standing;
mod updates;
mod watch;
mod websocket;

use std::{collections::VecDeque, io, os::fd::OwnedFd, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use fantail_pin::{Event, FanOut, Form, KeepAlive, Limits, Outcome, Pace, PinId, Pins, Wire};
use fantail_proto::{
    filter::Filter,
    grip,
    websocket::{
        close::Code,
        control,
        deflate::{Deflater, Inflater},
        over_http::Farewell,
    },
};
use hashbrown::HashMap;
use smallvec::SmallVec;

pub use asked::{Asked, GripLink, Subscription, Trail};
use beats::first_beat;
pub use beats::{beats, jitter_ms};
pub use follow::{Fetch, Held, Page};
pub use inquiry::{Question, Wording};
pub use onward::{Onward, Released, Replay, Socket};
pub use poll::{Poll, Shape};
pub use sockjs::{Found, NO_STORE, Receiver, Said, Speech, admit};
pub use websocket::{Asking, Call, Far, Link, Next, Opened, OverHttp};

use crate::{
    client::Client,
    config,
    hub::Hub,
    metrics::{Count, Counters},
    stats::Presence,
};
use channels::{Channels, List};
use fanout::{Kept, Work};
use fill::Fills;
use inquiry::Inquiries;
use reached::Reached;
use rounds::Rounds;
use standing::Standing;
use updates::Updates;
use watch::Watch;
use websocket::WebSocket;

/// All holds of one shard.
#[derive(Debug)]
pub struct Holds {
    pins: Pins<Hold>,
    channels: Channels,
    work: Work,
    fills: Fills,
    gaps: HashMap<PinId, Vec<websocket::Gap>>,
    newest: Kept,
    counters: Arc<Counters>,
    /// Only when somebody watches.
    watch: Option<Watch>,
    events: Vec<Event>,
    onward: Vec<Onward>,
    updates: Updates,
    rounds: Rounds,
    inquiries: Inquiries,
    reached: Reached,
    /// WebSockets whose next deadline is to be found again.
    reschedules: Vec<PinId>,
    now_ms: u64,
    websocket: config::WebSocket,
    subscriptions: Subscriptions,
    inflater: Inflater,
    deflater: Deflater,
    /// WebSockets that take compressed items.
    deflating: usize,
    /// What WebSockets are read into, one at a time.
    buffer: Vec<u8>,
    /// A client may have said more than was read.
    unread: bool,
    /// Sessions that go on without a client.
    partings: usize,
    parting_bytes: usize,
    /// Those that wait until there is room for them: the server drains.
    farewells: VecDeque<Rc<OverHttp>>,
    /// When it may be said again that some are not told.
    silent_until_ms: u64,
    /// Holds that are still to be ended, because the server drains.
    endings: Vec<PinId>,
    drains: bool,
    /// The last keep-alive that an origin asked for: the next is often the same.
    last_beats: Option<(control::KeepAlive, bool, Rc<KeepAlive>)>,
    sockjs: config::SockJs,
    sessions: sockjs::Sessions,
}

/// What a WebSocket may subscribe to: how many channels, and how long their names may be.
#[derive(Clone, Copy, Debug)]
struct Subscriptions {
    most: usize,
    channel_bytes: usize,
}

impl Subscriptions {
    const fn new(config: &config::Grip) -> Self {
        Self { most: config.subscriptions, channel_bytes: config.channel_bytes }
    }
}

impl Holds {
    pub fn new(
        hub: Arc<Hub>,
        shard: usize,
        fan_out: FanOut,
        config: &config::Config,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let limits = Limits {
            queue_bytes: config.client.queue_bytes,
            send_timeout_ms: milliseconds(config.client.send_timeout),
            pace: config.client.pace.map(|pace| Pace {
                bytes: usize::try_from(pace.bytes).unwrap_or(usize::MAX),
                within_ms: milliseconds(pace.within),
            }),
        };
        let mut pins = Pins::new(fan_out, limits, 0)?;
        pins.set_farewell(websocket::close_frame(Code::TRY_AGAIN_LATER, ""));
        Ok(Self {
            pins,
            channels: Channels::new(
                hub,
                shard,
                Arc::clone(&counters),
                config.grip.update_on_first_subscription,
            ),
            watch: None,
            work: Work::default(),
            fills: Fills::default(),
            gaps: HashMap::new(),
            newest: Kept::new(),
            counters,
            events: Vec::new(),
            onward: Vec::new(),
            updates: Updates::new(config),
            rounds: Rounds::default(),
            inquiries: Inquiries::default(),
            reached: Reached::default(),
            reschedules: Vec::new(),
            now_ms: 0,
            websocket: config.websocket.clone(),
            subscriptions: Subscriptions::new(&config.grip),
            deflating: 0,
            inflater: Inflater::new(),
            deflater: Deflater::new(),
            buffer: Vec::new(),
            unread: false,
            partings: 0,
            parting_bytes: 0,
            farewells: VecDeque::new(),
            silent_until_ms: 0,
            endings: Vec::new(),
            drains: false,
            last_beats: None,
            sockjs: config.sockjs.clone(),
            sessions: sockjs::Sessions::default(),
        })
    }

    /// For the shard to wait on: when it is readable, call [`Self::turn`].
    pub fn epoll(&self) -> io::Result<OwnedFd> {
        self.pins.epoll()
    }

    /// Subscribes a stream whose head is still to be written: items wait for [`Self::attach_stream`].
    /// `None`, as for a long-poll, when there can be no more pins.
    /// After a stream that ends in order, its client may use the connection again if `keep_alive`.
    pub fn reserve_stream(&mut self, asked: Asked, form: Form, keep_alive: bool) -> Option<PinId> {
        let keep_alive = keep_alive && form == Form::Coded;
        self.reserve(asked, form, HoldKind::Stream { keep_alive })
    }

    /// Subscribes a long-poll whose socket is not free yet.
    pub fn reserve_poll(&mut self, asked: Asked, poll: Poll) -> Option<PinId> {
        self.reserve(asked, Form::Plain, HoldKind::Poll(Box::new(poll)))
    }

    /// Gives a reserved stream its socket, at the end of what has been written so far, and `unread`, what
    /// the client had sent behind its request.
    pub fn attach_stream(
        &mut self,
        id: PinId,
        wire: impl Into<Wire>,
        client: Client,
        unread: Vec<u8>,
        keep_alive: Option<&grip::KeepAlive>,
    ) {
        if !unread.is_empty()
            && let Some(hold) = self.pins.get_mut(id)
        {
            hold.unread = Some(unread.into_boxed_slice());
        }
        self.attach(id, wire, client);
        if let Some(keep_alive) = keep_alive {
            let beats = beats(keep_alive);
            let first = first_beat(&beats);
            self.pins.set_keep_alive(id, Rc::new(beats), first);
        }
        self.begin_following(id);
    }

    /// Gives a reserved long-poll its socket; it is answered when its time is up, if not before.
    pub fn attach_poll(
        &mut self,
        id: PinId,
        wire: impl Into<Wire>,
        client: Client,
        unread: Vec<u8>,
        timeout_ms: u32,
    ) {
        let mut due = false;
        if let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get_mut(id) {
            poll.unread = unread;
            due = poll.due;
        }
        self.attach(id, wire, client);
        if due && self.updates.may_ask_at_once(self.now_ms) {
            return self.replay(id);
        }
        if due {
            self.updates.push(id, self.now_ms);
        }
        // One that only stands in line has no time of its own.
        if !due || timeout_ms > 0 {
            self.pins.set_deadline(id, timeout_ms);
        }
    }

    /// Ends a hold that got no socket: its client left first.
    pub fn abandon(&mut self, id: PinId) {
        self.drop_pin(id);
    }

    /// Moves the clock on: milliseconds since the shard started.
    pub fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.pins.set_now(now_ms);
        self.channels.set_now(now_ms);
    }

    /// Asks the kernel about the sockets; true when there is more to ask at once.
    pub fn turn(&mut self) -> io::Result<bool> {
        let mut events = std::mem::take(&mut self.events);
        let more = self.pins.turn(&mut events);
        self.events = events;
        self.react();
        Ok(more? | std::mem::take(&mut self.unread))
    }

    /// Keep-alives, time-outs and updates that are due.
    pub fn expire(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        let tally = self.pins.expire(self.now_ms, &mut events);
        self.counters.keep_alives.add(tally.sent + tally.queued);
        self.counters.bytes_pushed.add(tally.bytes);
        self.events = events;
        self.react();
        self.update();
        self.go_on_filling();
        self.reschedule();
        self.end_some();
        self.say_farewells();
    }

    /// When [`Self::expire`] is due, in the shard's milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let more = !self.reschedules.is_empty() || self.is_ending() || self.may_say_farewell();
        let at_once = more.then_some(self.now_ms);
        [self.pins.next_expiry_ms(), self.next_update_ms(), self.next_fill_ms(), at_once]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether origins are still to hear of clients that are gone.
    pub fn has_partings(&self) -> bool {
        self.partings > 0 || !self.farewells.is_empty()
    }

    /// Whether something waits for the shard's loop: what is for others to do, or an end found outside of it, which
    /// the poller does not report.
    pub fn is_waiting(&self) -> bool {
        !self.onward.is_empty() || self.pins.pending_events() > 0 || self.is_filling()
    }

    /// What is for others to do.
    pub fn onward(&mut self) -> impl Iterator<Item = Onward> + '_ {
        self.onward.drain(..)
    }

    pub fn len(&self) -> usize {
        self.pins.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    fn attach(&mut self, id: PinId, wire: impl Into<Wire>, client: Client) {
        if let Some(hold) = self.pins.get_mut(id) {
            hold.client = Some(client);
        }
        self.pins.attach(id, wire);
        self.collect();
    }

    /// Acts on events that were found while writing: the poller is silent about them.
    fn collect(&mut self) {
        if self.pins.pending_events() > 0 {
            let mut events = std::mem::take(&mut self.events);
            self.pins.drain_events(&mut events);
            self.events = events;
            self.react();
        }
    }

    fn react(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        loop {
            for event in events.drain(..) {
                self.react_to(event);
            }
            // Reacting writes, and writing finds more.
            if self.pins.pending_events() == 0 {
                break;
            }
            self.pins.drain_events(&mut events);
        }
        self.events = events;
    }

    fn react_to(&mut self, event: Event) {
        let (id, cause): (_, fn(&Counters) -> &Count) = match event {
            Event::Due(id) => return self.due(id),
            Event::Finished(id) => return self.release(id),
            Event::Readable(id) if self.is_websocket(id) => return self.readable(id),
            Event::Readable(id) => return self.spoken_to(id),
            Event::Drained(id) => return self.drained(id),
            Event::Waiting(id) => return self.feed(id),
            Event::Departed(id) => (id, |counters| &counters.ended_client),
            Event::Overflow(id) => (id, |counters| &counters.ended_overflow),
            Event::Stalled(id) => (id, |counters| &counters.ended_stalled),
        };
        self.count_end(id, cause);
        match event {
            Event::Overflow(_) if self.is_websocket(id) => self.overflowed(id),
            _ => self.drop_pin(id),
        }
    }

    /// A client has taken all that waited for it.
    fn drained(&mut self, id: PinId) {
        self.give_newest(id);
        // If there was something, that comes first.
        if self.reads_log(id) && !self.pins.tell_when_drained(id) {
            self.read_on(id);
        }
        if self.is_websocket(id) { self.go_on_saying(id) } else { self.received(id) }
    }

    fn due(&mut self, id: PinId) {
        match self.pins.get(id).map(|hold| &hold.kind) {
            Some(HoldKind::Stream { .. }) => self.due_stream(id),
            _ if self.is_websocket(id) => self.due_websocket(id),
            _ => self.time_out(id),
        }
    }

    /// Ends a stream in order.
    fn finish_stream(&mut self, id: PinId) -> Outcome {
        self.give_all_newest(id);
        let tail = match self.pins.form(id) {
            Some(Form::Coded) => LAST_CHUNK,
            _ => Bytes::new(),
        };
        self.pins.finish(id, &tail)
    }

    fn close_stream(&mut self, id: PinId) -> Outcome {
        let outcome = self.finish_stream(id);
        self.counters.ended_close.add(u64::from(matches!(outcome, Outcome::Sent | Outcome::Queued)));
        outcome
    }

    fn time_out(&mut self, id: PinId) {
        let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get(id) else { return };
        let response = poll.time_out();
        if matches!(self.finish_poll(id, response), Outcome::Sent | Outcome::Queued) {
            self.counters.ended_timeout.add(1);
        }
    }

    fn finish_poll(&mut self, id: PinId, response: Vec<u8>) -> Outcome {
        if let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get_mut(id) {
            poll.answered = true;
        }
        self.counters.bytes_pushed.add(response.len() as u64);
        self.watch_answer(id, &response);
        self.pins.finish(id, &response.into())
    }

    /// Lets the socket of a finished hold go on, if its client can send another request on it.
    fn release(&mut self, id: PinId) {
        let Some((wire, hold)) = self.unsubscribe(id) else { return };
        let (Some(wire), Some(client)) = (wire, hold.client) else { return };
        let unread = match hold.kind {
            HoldKind::Stream { keep_alive: true } => hold.unread.map(Vec::from).unwrap_or_default(),
            HoldKind::Poll(poll) if poll.shape.keep_alive => poll.unread,
            HoldKind::Receiver(receiver) if receiver.keeps_alive() => receiver.unread,
            // TLS is told of its end, whether there is room at once or not.
            _ if wire.tls.is_some() => return self.onward.push(Onward::Closed(Socket { wire, client })),
            HoldKind::WebSocket(_) => return self.onward.push(Onward::Closed(Socket { wire, client })),
            _ => return self.shut(&wire.socket),
        };
        self.onward.push(Onward::Released(Released { wire, client, unread, replay: None }));
    }

    /// A close that loses nothing of what was written: the sending side first.
    fn shut(&self, socket: &OwnedFd) {
        if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Write) {
            tracing::trace!(%error, "the client left first");
        }
    }

    fn drop_pin(&mut self, id: PinId) {
        drop(self.unsubscribe(id));
    }

    fn unsubscribe(&mut self, id: PinId) -> Option<(Option<Wire>, Hold)> {
        self.leave_session(id);
        self.unfollow(id);
        if let Some(gone) = self.pins.get_mut(id).and_then(|hold| hold.standing.as_mut()?.gone.take()) {
            self.onward.push(Onward::Gone(*gone));
        }
        self.unsubscribe_all(id);
        self.gaps.remove(&id);
        self.newest.remove(&id);
        self.part(id, Farewell::Disconnect);
        self.deflating -= usize::from(self.is_websocket(id) && self.pins.form(id) == Some(Form::Coded));
        let unpinned = self.pins.remove(id)?;
        self.unwatch(&unpinned.value);
        if let Some(sid) = unpinned.value.standing.as_ref().and_then(|standing| standing.session.as_ref()) {
            self.attend(sid, false);
        }
        match &unpinned.value.kind {
            HoldKind::Receiver(_) => self.counters.pins_receiver.add(-1),
            kind => self.gauge(kind.list(), -1),
        }
        Some((unpinned.wire, unpinned.value))
    }

    fn unsubscribe_all(&mut self, id: PinId) {
        while let Some(last) = self.pins.get(id).and_then(|hold| hold.subs.len().checked_sub(1)) {
            self.leave(id, last);
        }
    }

    fn is_websocket(&self, id: PinId) -> bool {
        matches!(self.pins.get(id), Some(Hold { kind: HoldKind::WebSocket(_), .. }))
    }

    fn gauge(&self, list: List, by: i64) {
        match list {
            List::Streams => self.counters.pins_stream.add(by),
            List::Polls => self.counters.pins_poll.add(by),
            List::WebSockets => self.counters.pins_websocket.add(by),
            List::SockJs => self.counters.pins_sockjs.add(by),
        }
    }
}

/// What is held, and for whom.
#[derive(Debug)]
struct Hold {
    subs: Subs,
    kind: HoldKind,
    /// Comes with the socket.
    client: Option<Client>,
    /// Only when there is something of it.
    standing: Option<Box<Standing>>,
    /// What a stream's client had sent behind its request, or what a WebSocket's has said and there is no room for.
    unread: Option<Box<[u8]>>,
    /// Only when somebody watches.
    presence: Option<Rc<Presence>>,
}

type Subs = SmallVec<[Sub; 1]>;

/// A subscription: its channel, and its place in the channel's list.
#[derive(Clone, Copy, Debug)]
struct Sub {
    channel: u32,
    place: u32,
}

#[derive(Debug)]
enum HoldKind {
    Stream {
        keep_alive: bool,
    },
    Poll(Box<Poll>),
    WebSocket(Box<WebSocket>),
    /// Gets what a session of SockJS is sent.
    Receiver(Box<Receiver>),
}

impl HoldKind {
    fn list(&self) -> List {
        match self {
            Self::Stream { .. } => List::Streams,
            Self::Poll(_) => List::Polls,
            Self::WebSocket(socket) if socket.sockjs.is_none() => List::WebSockets,
            Self::WebSocket(_) | Self::Receiver(_) => List::SockJs,
        }
    }
}

impl Hold {
    fn filters(&self, channel: u32) -> &[Filter] {
        self.standing.as_ref().map_or(&[], |standing| standing.filters_of(channel))
    }

    /// Whether items of a channel are to be looked at for this hold alone.
    fn is_apart(&self, channel: u32) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.is_apart(channel))
    }

    /// Whether it follows links, or did.
    fn follows(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.follow.is_some())
    }

    /// Whether items of all its channels are.
    fn is_wholly_apart(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.is_wholly_apart())
    }

    /// Whether it has a link to follow.
    fn has_link(&self) -> bool {
        self.standing
            .as_ref()
            .and_then(|standing| standing.follow.as_ref())
            .is_some_and(|follow| follow.has_link())
    }

    /// Where its client is in a channel, if its origin keeps track.
    fn position(&self, channel: u32) -> Option<&str> {
        self.standing.as_ref()?.position(channel)
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");
