//! What the driver of a connection and the answering of its requests tell each other: whether a request
//! is being answered, and that it is to be held.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    rc::Rc,
};

use fantail_pin::{PinId, Wire};
use fantail_proto::grip::KeepAlive;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::link::Farewell;
use crate::{
    client::Client,
    hold::Replay,
    listen::guard::State,
    shard::{Moved, Shard},
    stats::{Presence, Traffic},
};

/// One client's connection, as its requests see it.
#[derive(Debug)]
pub struct Conversation {
    shard: Rc<Shard>,
    state: Rc<State>,
    peer: Option<IpAddr>,
    /// Of the request: the peer, or whom the request says.
    client: Cell<Option<IpAddr>>,
    tls: bool,
    /// For the first request only.
    replay: RefCell<Option<Replay>>,
    farewell: RefCell<Option<Box<Farewell>>>,
    stage: Cell<Stage>,
    parked: RefCell<Option<Parked>>,
    uploaded: Cell<u64>,
    /// Of the request, only when somebody watches.
    presence: RefCell<Option<Rc<Presence>>>,
    /// The request's body, when its origin was done with it before its end.
    unread: RefCell<Option<Incoming>>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    Idle,
    /// The origin is being asked.
    Asking,
    /// hyper has the response and is not done with it.
    Answering,
    /// The request is held: the driver may take the socket when all is flushed.
    Parked,
}

impl Conversation {
    pub fn new(
        shard: Rc<Shard>,
        state: Rc<State>,
        peer: Option<IpAddr>,
        tls: bool,
        replay: Option<Replay>,
    ) -> Rc<Self> {
        let mut replay = replay;
        let gone = replay.as_mut().and_then(|replay| replay.gone.take());
        let farewell = gone.map(|gone| Box::new(Farewell::new(Rc::clone(&shard), gone)));
        Rc::new(Self {
            shard,
            state,
            peer,
            client: Cell::new(peer),
            tls,
            replay: RefCell::new(replay),
            farewell: RefCell::new(farewell),
            stage: Cell::new(Stage::Idle),
            parked: RefCell::default(),
            uploaded: Cell::new(0),
            presence: RefCell::default(),
            unread: RefCell::default(),
        })
    }

    pub fn shard(&self) -> &Rc<Shard> {
        &self.shard
    }

    /// A request is being answered.
    pub fn is_busy(&self) -> bool {
        self.stage.get() != Stage::Idle
    }

    /// hyper has begun to write a response.
    pub fn is_answering(&self) -> bool {
        self.stage.get() == Stage::Answering
    }

    pub fn is_parked(&self) -> bool {
        self.stage.get() == Stage::Parked
    }

    pub fn take_parked(&self) -> Option<Parked> {
        self.parked.take()
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn peer(&self) -> Option<IpAddr> {
        self.peer
    }

    /// Who the request is from, as logs and statistics say it (spec 1.9).
    pub(super) fn client(&self) -> Option<IpAddr> {
        self.client.get()
    }

    pub(super) fn set_client(&self, client: Option<IpAddr>) {
        self.client.set(client);
    }

    /// Whether the client speaks TLS to us.
    pub(super) fn is_tls(&self) -> bool {
        self.tls
    }

    /// A request begins; if it is one that was held before, what its hold knew.
    pub(super) fn begin(&self) -> Option<Replay> {
        self.stage.set(Stage::Asking);
        self.uploaded.set(0);
        self.unread.take();
        self.replay.take()
    }

    pub(super) fn take_farewell(&self) -> Option<Box<Farewell>> {
        self.farewell.take()
    }

    pub(super) fn respond(&self) {
        self.unread.take();
        self.stage.set(Stage::Answering);
    }

    /// The response is complete.
    pub(super) fn end(&self) {
        self.presence.take();
        self.stage.set(Stage::Idle);
        self.state.message_done();
    }

    /// Notes a request, by the id of its route.
    pub(super) fn arrive(&self, route: &str, head: u64) {
        let Some(notes) = &self.shard.notes else { return };
        let presence = notes.arrive(None, (self.client(), self.tls), route);
        presence.traffic().client.header_received.add(head);
        self.presence.replace(Some(presence));
    }

    /// What somebody who watches knows the request by, for its hold.
    pub(super) fn presence(&self) -> Option<Rc<Presence>> {
        self.presence.borrow().clone()
    }

    /// Counts what goes through the request's route, if somebody watches.
    pub(super) fn tally(&self, count: impl FnOnce(&Traffic)) {
        if let Some(presence) = &*self.presence.borrow() {
            count(presence.traffic());
        }
    }

    /// Bytes of the request's body that went to the origin.
    pub(super) fn uploaded(&self) -> u64 {
        self.uploaded.get()
    }

    pub(super) fn upload(&self, bytes: usize) {
        self.uploaded.set(self.uploaded.get() + bytes as u64);
        self.tally(|traffic| {
            traffic.client.content_received.add(bytes as u64);
            traffic.server.content_sent.add(bytes as u64);
        });
    }

    /// Keeps what the origin did not read, while it can still be of use: hyper waits for whoever has it.
    pub(super) fn leave_unread(&self, body: Incoming) {
        if self.stage.get() == Stage::Asking {
            self.unread.replace(Some(body));
        }
    }

    pub(super) fn take_unread(&self) -> Option<Incoming> {
        self.unread.take()
    }

    /// Makes the request a hold, as soon as [`Self::park`] says that its response is written so far.
    pub(super) fn will_park(&self, parked: Parked) {
        self.parked.replace(Some(parked));
    }

    pub(super) fn park(&self) {
        self.stage.set(Stage::Parked);
    }
}

/// A hold that waits for its socket.
#[derive(Debug)]
pub enum Parked {
    Stream {
        reserved: Reserved,
        keep_alive: Option<KeepAlive>,
    },
    Poll {
        reserved: Reserved,
        timeout_ms: u32,
    },
    WebSocket {
        reserved: Reserved,
    },
    /// It gets what a session of SockJS is sent.
    Receiver {
        reserved: Reserved,
    },
    /// Its request, as it came, is another shard's to answer.
    Moved {
        place: mpsc::OwnedPermit<Moved>,
        record: Vec<u8>,
    },
}

impl Parked {
    /// Gives the hold its socket, and what the client had sent behind the request.
    pub fn pin(self, shard: &Shard, wire: Wire, client: Client, unread: Vec<u8>) {
        if let Self::Moved { place, mut record } = self {
            record.extend_from_slice(&unread);
            place.send(Moved { wire, traveller: client.travel(), unread: record });
            return;
        }
        shard.holds(|holds| {
            let id = match self {
                Self::Stream { reserved, keep_alive } => {
                    let id = reserved.keep();
                    holds.attach_stream(id, wire, client, unread, keep_alive.as_ref());
                    id
                }
                Self::Poll { reserved, timeout_ms } => {
                    let id = reserved.keep();
                    holds.attach_poll(id, wire, client, unread, timeout_ms);
                    id
                }
                Self::WebSocket { reserved } => {
                    let id = reserved.keep();
                    holds.attach_websocket(id, wire, client, unread);
                    id
                }
                Self::Receiver { reserved } => {
                    let id = reserved.keep();
                    holds.attach_receiver(id, wire, client, unread);
                    id
                }
                Self::Moved { .. } => return,
            };
            // Those that were there when draining began have been ended then.
            if shard.is_draining() {
                holds.end(id);
            }
        });
    }
}

/// A hold without a socket: it is given up when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    shard: Rc<Shard>,
    id: Option<PinId>,
}

impl Reserved {
    pub(super) fn new(shard: Rc<Shard>, id: PinId) -> Self {
        Self { shard, id: Some(id) }
    }

    fn keep(mut self) -> PinId {
        self.id.take().expect("taken here only, and self ends here")
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shard.holds(|holds| holds.abandon(id));
        }
    }
}
