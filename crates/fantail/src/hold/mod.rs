//! A shard's holds: streams and long-polls, their channels, and the delivery of items to them. It owns
//! the pins and who subscribes to what. It never reads from a client and knows no route and no origin;
//! a socket whose hold has ended comes out as [`Released`].

mod channels;
mod fanout;
mod poll;

use std::{collections::VecDeque, io, os::fd::OwnedFd, rc::Rc, sync::Arc};

use bytes::Bytes;
use fantail_pin::{Event, FanOut, Form, KeepAlive, KeepAliveMode, Limits, Outcome, Payload, PinId, Pins};
use fantail_proto::{filter::Filter, grip, render::Chunk};
use smallvec::SmallVec;

pub use poll::{Poll, Shape};

use crate::{
    client::Client,
    hub::{Hub, RealmId},
    metrics::Counters,
};
use channels::Channels;
use fanout::Work;

/// All holds of one shard.
#[derive(Debug)]
pub struct Holds {
    pins: Pins<Hold>,
    channels: Channels,
    work: Work,
    counters: Arc<Counters>,
    events: Vec<Event>,
    released: Vec<Released>,
    /// Long-polls that wait to be replayed to their origins, and when the next of them are due.
    replays: VecDeque<PinId>,
    replay_at_ms: u64,
    now_ms: u64,
}

/// A new hold: who, and subscribed to what.
#[derive(Debug)]
pub struct Asked {
    pub realm: RealmId,
    pub subscriptions: Vec<Subscription>,
    /// What filters know of the subscriber.
    pub meta: Vec<(String, String)>,
    /// The route's, which filters leave out of channel names.
    pub prefix: String,
}

/// One channel of a new hold.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// In full: with the route's prefix.
    pub channel: String,
    pub filters: Vec<Filter>,
}

/// A socket whose hold has ended and that lives on.
#[derive(Debug)]
pub struct Released {
    pub socket: OwnedFd,
    pub client: Client,
    /// Bytes to be read before those of the socket.
    pub unread: Vec<u8>,
    /// The first request in `unread` is one that was held, to be sent to its origin again.
    pub replay: Option<Replay>,
}

/// A held request that is asked again, and what its hold knew: `Grip-Last` names and ids.
#[derive(Debug)]
pub struct Replay {
    pub last_ids: Vec<(String, String)>,
}

impl Holds {
    pub fn new(
        hub: Arc<Hub>,
        shard: usize,
        fan_out: FanOut,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        Ok(Self {
            pins: Pins::new(fan_out, limits, 0)?,
            channels: Channels::new(hub, shard, Arc::clone(&counters)),
            work: Work::default(),
            counters,
            events: Vec::new(),
            released: Vec::new(),
            replays: VecDeque::new(),
            replay_at_ms: 0,
            now_ms: 0,
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
        socket: OwnedFd,
        client: Client,
        unread: Vec<u8>,
        keep_alive: Option<&grip::KeepAlive>,
    ) {
        if !unread.is_empty()
            && let Some(hold) = self.pins.get_mut(id)
        {
            hold.unread = Some(unread.into_boxed_slice());
        }
        self.attach(id, socket, client);
        if let Some(keep_alive) = keep_alive {
            let every_ms = u32::try_from(keep_alive.timeout.as_millis()).unwrap_or(u32::MAX);
            let chunk = Chunk::new(&keep_alive.content);
            let payload = Payload { coded: chunk.framed().clone(), plain: chunk.content() };
            let mode = match keep_alive.mode {
                grip::KeepAliveMode::Idle => KeepAliveMode::Idle,
                grip::KeepAliveMode::Interval => KeepAliveMode::Interval,
            };
            let first = every_ms.saturating_sub(jitter_ms());
            self.pins.set_keep_alive(id, Rc::new(KeepAlive { payload, every_ms, mode }), first);
        }
    }

    /// Gives a reserved long-poll its socket; it is answered when its time is up, if not before.
    pub fn attach_poll(
        &mut self,
        id: PinId,
        socket: OwnedFd,
        client: Client,
        unread: Vec<u8>,
        timeout_ms: u32,
    ) {
        if let Some(Hold { kind: HoldKind::Poll(poll), .. }) = self.pins.get_mut(id) {
            poll.unread = unread;
        }
        self.attach(id, socket, client);
        self.pins.set_deadline(id, timeout_ms);
    }

    /// Ends a hold that got no socket: its client left first.
    pub fn abandon(&mut self, id: PinId) {
        self.drop_pin(id);
    }

    /// Moves the clock on: milliseconds since the shard started.
    pub fn set_now(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        self.pins.set_now(now_ms);
    }

    /// Asks the kernel about the sockets; true when there is more to ask at once.
    pub fn turn(&mut self) -> io::Result<bool> {
        let mut events = std::mem::take(&mut self.events);
        let more = self.pins.turn(&mut events);
        self.events = events;
        self.react();
        more
    }

    /// Keep-alives, time-outs and replays that are due.
    pub fn expire(&mut self) {
        let mut events = std::mem::take(&mut self.events);
        let tally = self.pins.expire(self.now_ms, &mut events);
        self.counters.keep_alives.add(tally.sent + tally.queued);
        self.counters.bytes_pushed.add(tally.bytes);
        self.events = events;
        self.react();
        if !self.replays.is_empty() && self.replay_at_ms <= self.now_ms {
            self.replay_at_ms = self.now_ms + REPLAY_EVERY_MS;
            for _ in 0..REPLAY_BATCH {
                let Some(id) = self.replays.pop_front() else { break };
                self.replay(id);
            }
        }
    }

    /// When [`Self::expire`] is due, in the shard's milliseconds.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        let replay = (!self.replays.is_empty()).then_some(self.replay_at_ms);
        [self.pins.next_expiry_ms(), replay].into_iter().flatten().min()
    }

    /// Asks all origins of long-polls again, a few at a time.
    pub fn recover(&mut self) {
        let polls = self
            .pins
            .ids()
            .filter(|id| matches!(self.pins.get(*id), Some(Hold { kind: HoldKind::Poll(_), .. })));
        self.replays = polls.collect();
    }

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
            _ => {}
        }
        self.collect();
    }

    pub fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Sockets that go on without a hold.
    pub fn released(&mut self) -> impl Iterator<Item = Released> + '_ {
        self.released.drain(..)
    }

    pub fn len(&self) -> usize {
        self.pins.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    fn reserve(&mut self, asked: Asked, form: Form, kind: HoldKind) -> Option<PinId> {
        let list = kind.list();
        let hold = Hold { subs: Subs::new(), kind, client: None, filtering: None, unread: None };
        let id = self.pins.reserve(form, hold)?;
        self.gauge(list, 1);
        let mut filters = Vec::new();
        let mut subs = Subs::new();
        for subscription in asked.subscriptions {
            let filtered = !subscription.filters.is_empty();
            let sub = self.channels.join(asked.realm, &subscription.channel, list, id, filtered);
            subs.push(sub);
            if filtered {
                filters.push((sub.channel, subscription.filters));
            }
        }
        if let Some(hold) = self.pins.get_mut(id) {
            hold.subs = subs;
            if !filters.is_empty() {
                hold.filtering =
                    Some(Box::new(Filtering { filters, meta: asked.meta, prefix: asked.prefix }));
            }
        }
        Some(id)
    }

    fn attach(&mut self, id: PinId, socket: OwnedFd, client: Client) {
        if let Some(hold) = self.pins.get_mut(id) {
            hold.client = Some(client);
        }
        self.pins.attach(id, socket);
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
        let (id, cause) = match event {
            Event::Due(id) => return self.time_out(id),
            Event::Finished(id) => return self.release(id),
            Event::Departed(id) => (id, &self.counters.ended_client),
            Event::Overflow(id) => (id, &self.counters.ended_overflow),
            Event::Stalled(id) => (id, &self.counters.ended_stalled),
            Event::Readable(_) | Event::Drained(_) => return,
        };
        cause.add(1);
        self.drop_pin(id);
    }

    fn close_stream(&mut self, id: PinId) -> bool {
        let tail = match self.pins.form(id) {
            Some(Form::Coded) => LAST_CHUNK,
            _ => Bytes::new(),
        };
        let closed = matches!(self.pins.finish(id, &tail), Outcome::Sent | Outcome::Queued);
        self.counters.ended_close.add(u64::from(closed));
        closed
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
        self.pins.finish(id, &response.into())
    }

    /// Lets the socket of a finished hold go on, if its client can send another request on it.
    fn release(&mut self, id: PinId) {
        let Some((socket, hold)) = self.unsubscribe(id) else { return };
        let (Some(socket), Some(client)) = (socket, hold.client) else { return };
        let unread = match hold.kind {
            HoldKind::Stream { keep_alive: true } => hold.unread.map(Vec::from).unwrap_or_default(),
            HoldKind::Poll(poll) if poll.shape.keep_alive => poll.unread,
            _ => return self.shut(&socket),
        };
        self.released.push(Released { socket, client, unread, replay: None });
    }

    /// A close that loses nothing of what was written: the sending side first.
    fn shut(&self, socket: &OwnedFd) {
        if let Err(error) = rustix::net::shutdown(socket, rustix::net::Shutdown::Write) {
            tracing::trace!(%error, "the client left first");
        }
    }

    /// Sends a long-poll's request to its origin once more.
    fn replay(&mut self, id: PinId) {
        match self.pins.get(id) {
            // One that has been answered may still have bytes of its answer to write.
            Some(Hold { kind: HoldKind::Poll(poll), client: Some(_), .. }) if !poll.answered => {}
            _ => return,
        }
        let Some((Some(socket), hold)) = self.unsubscribe(id) else { return };
        if let (HoldKind::Poll(poll), Some(client)) = (hold.kind, hold.client) {
            let Poll { mut request, unread, last_ids, .. } = *poll;
            request.extend_from_slice(&unread);
            let replay = Some(Replay { last_ids });
            self.released.push(Released { socket, client, unread: request, replay });
        }
    }

    fn drop_pin(&mut self, id: PinId) {
        drop(self.unsubscribe(id));
    }

    fn unsubscribe(&mut self, id: PinId) -> Option<(Option<OwnedFd>, Hold)> {
        let unpinned = self.pins.remove(id)?;
        let hold = unpinned.value;
        let list = hold.kind.list();
        self.gauge(list, -1);
        for sub in &hold.subs {
            let moved = self.channels.leave(*sub, list, hold.filters(sub.channel).is_some());
            if let Some(hold) = moved.and_then(|moved| self.pins.get_mut(moved)) {
                channels::moved(&mut hold.subs, *sub);
            }
        }
        Some((unpinned.socket, hold))
    }

    fn gauge(&self, list: List, by: i64) {
        match list {
            List::Streams => self.counters.pins_stream.add(by),
            List::Polls => self.counters.pins_poll.add(by),
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
    /// Only when a filter was given.
    filtering: Option<Box<Filtering>>,
    /// What a stream's client had sent behind its request.
    unread: Option<Box<[u8]>>,
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
    Stream { keep_alive: bool },
    Poll(Box<Poll>),
}

/// A channel's lists of subscribers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum List {
    Streams,
    Polls,
}

impl HoldKind {
    fn list(&self) -> List {
        match self {
            Self::Stream { .. } => List::Streams,
            Self::Poll(_) => List::Polls,
        }
    }
}

#[derive(Debug)]
struct Filtering {
    /// By channel; a channel without filters is not here.
    filters: Vec<(u32, Vec<Filter>)>,
    meta: Vec<(String, String)>,
    prefix: String,
}

impl Hold {
    fn filters(&self, channel: u32) -> Option<&[Filter]> {
        let found = self.filtering.as_ref()?.filters.iter().find(|(c, _)| *c == channel)?;
        Some(&found.1)
    }
}

/// Spreads keep-alives of holds that were made together (spec 3.6): up to a second early.
fn jitter_ms() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    u32::try_from(RandomState::new().hash_one(()) % 1000).unwrap_or(0)
}

const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");
/// Updates of low priority (spec 4.3): a hundred holds, ten times a second.
const REPLAY_BATCH: usize = 100;
const REPLAY_EVERY_MS: u64 = 100;
