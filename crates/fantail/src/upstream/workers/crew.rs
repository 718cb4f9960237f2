//! The workers of one target: who is connected, which of them gets the next request, and which session a packet is
//! for. Shards and connections meet here; a lock is held for a few instructions and never while one waits.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use fantail_proto::{
    route::{Protocol, Workers as Address},
    zhttp::{Broken, Content, Packet},
    zmtp::{self, Socket},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout},
};

#[derive(Debug)]
pub(in crate::upstream) struct Crew {
    address: Address,
    /// Who we are to workers, other than any process before us.
    name: String,
    sessions: Mutex<HashMap<u64, Entry>>,
    next_session: AtomicU64,
    /// Who takes requests, the next in turn first.
    takers: Mutex<VecDeque<Peer>>,
    /// Who takes what follows a request, by the name that it has given itself.
    named: Mutex<HashMap<Bytes, Peer>>,
    next_peer: AtomicU64,
    /// Connections that workers of `zhttp` publish answers on.
    heard: AtomicUsize,
    /// Somebody has connected, or has room again.
    news: Notify,
    retired: AtomicBool,
    stop: watch::Sender<bool>,
}

/// What a session hears.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) from: Bytes,
    pub(super) seq: Option<u32>,
    pub(super) credits: u32,
    pub(super) content: Content,
}

/// A session's ear; nobody hears for it when it is dropped.
#[derive(Debug)]
pub(super) struct Ear {
    crew: Arc<Crew>,
    number: u64,
    inbox: mpsc::Receiver<Heard>,
    waiting: Arc<AtomicUsize>,
}

/// Room for one packet that follows a request.
#[derive(Debug)]
pub(super) struct Place(mpsc::OwnedPermit<Bytes>);

impl Place {
    pub(super) fn take(self, packet: &[u8]) {
        self.0.send(zmtp::message(&[b"", packet]));
    }
}

/// A connection to a worker.
#[derive(Clone, Debug)]
struct Peer {
    number: u64,
    since: Instant,
    out: mpsc::Sender<Bytes>,
}

/// A place among the connections, given back by [`Crew::leave`].
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    socket: Socket,
    identity: Bytes,
    /// Ends when another has taken the place.
    pub(super) out: mpsc::Receiver<Bytes>,
    _unsaid: Option<mpsc::Sender<Bytes>>,
}

#[derive(Debug)]
struct Entry {
    inbox: mpsc::Sender<Heard>,
    /// Bytes of bodies in it.
    waiting: Arc<AtomicUsize>,
    /// Who has the request, if the answer comes from there and only there.
    peer: Option<u64>,
}

impl Crew {
    pub(super) fn new(address: Address, stop: watch::Sender<bool>) -> Self {
        let mut random = [0; 6];
        aws_lc_rs::rand::fill(&mut random).expect("the system's generator works: TLS depends on it, too");
        let name = random.iter().fold("fantail-".to_owned(), |name, byte| format!("{name}{byte:02x}"));
        Self {
            address,
            name,
            sessions: Mutex::default(),
            next_session: AtomicU64::new(1),
            takers: Mutex::default(),
            named: Mutex::default(),
            next_peer: AtomicU64::new(1),
            heard: AtomicUsize::new(0),
            news: Notify::new(),
            retired: AtomicBool::new(false),
            stop,
        }
    }

    pub(in crate::upstream) fn address(&self) -> &Address {
        &self.address
    }

    /// Who we are to workers.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn retire(&self, retired: bool) {
        self.retired.store(retired, Relaxed);
    }

    /// Whether no route wants it and nobody waits for it.
    pub(super) fn is_done(&self) -> bool {
        self.retired.load(Relaxed) && self.sessions.lock().is_empty()
    }

    /// Ends all connections and gives the addresses free.
    pub(super) fn close(&self) {
        self.stop.send_replace(true);
    }

    /// Begins a session.
    pub(super) fn listen(self: &Arc<Self>) -> Ear {
        let (sender, inbox) = mpsc::channel(INBOX_PACKETS);
        let waiting = Arc::new(AtomicUsize::new(0));
        let number = self.next_session.fetch_add(1, Relaxed);
        let entry = Entry { inbox: sender, waiting: Arc::clone(&waiting), peer: None };
        self.sessions.lock().insert(number, entry);
        Ear { crew: Arc::clone(self), number, inbox, waiting }
    }

    /// Gives a request to the next worker in turn that has room; waits for one if there is none. False if there
    /// was none in time.
    pub(super) async fn hand_over(&self, ear: &Ear, packet: &[u8], patience: Duration) -> bool {
        let message = match self.address.protocol {
            // An empty frame is what makes it a request for a REP socket.
            Protocol::Whole => zmtp::message(&[b"", packet]),
            Protocol::Streaming => zmtp::message(&[packet]),
        };
        let taken = async {
            loop {
                let mut news = std::pin::pin!(self.news.notified());
                news.as_mut().enable();
                if self.give(ear, &message) {
                    return;
                }
                // Who was not settled may be now.
                drop(timeout(SETTLED, news).await);
            }
        };
        timeout(patience, taken).await.is_ok()
    }

    fn give(&self, ear: &Ear, message: &Bytes) -> bool {
        if self.address.protocol == Protocol::Streaming && !self.can_hear() {
            return false;
        }
        let mut takers = self.takers.lock();
        for _ in 0..takers.len() {
            let Some(peer) = takers.pop_front() else { return false };
            let number = peer.number;
            let taken = peer.out.try_send(message.clone()).is_ok();
            takers.push_back(peer);
            if taken {
                // While the takers are locked, so that whoever leaves now finds it.
                if self.address.protocol == Protocol::Whole
                    && let Some(entry) = self.sessions.lock().get_mut(&ear.number)
                {
                    entry.peer = Some(number);
                }
                return true;
            }
        }
        false
    }

    /// Whether an answer could be heard: a worker that starts may take requests before it has connected all its
    /// sockets. One that has no socket to publish on answers where it is spoken to.
    fn can_hear(&self) -> bool {
        let settled = |peer: &Peer| peer.since.elapsed() >= SETTLED;
        self.heard.load(Relaxed) > 0 || self.named.lock().values().any(settled)
    }

    /// A place for one packet to the worker of this name; `None` if it is not connected or has no room.
    /// [`Self::news`] says when that may have changed.
    pub(super) fn place(&self, name: &Bytes) -> Option<Place> {
        let peer = self.named.lock().get(name).cloned()?;
        peer.out.try_reserve_owned().ok().map(Place)
    }

    /// Resolves when the worker of this name can have a packet.
    pub(super) async fn news(&self, name: &Bytes) {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if self.place(name).is_some() {
                return;
            }
            news.await;
        }
    }

    /// What a worker is told before it says anything on its socket.
    pub(super) fn welcome(&self, socket: Socket) -> Option<Bytes> {
        // The subscription to what it says to us.
        let topic = [b"\x01", self.name.as_bytes(), b" "].concat();
        (socket == Socket::Sub).then(|| zmtp::message(&[&topic]))
    }

    /// A worker has connected to one of the sockets.
    pub(super) fn join(&self, socket: Socket, identity: Bytes) -> Seat {
        let (out, receiver) = mpsc::channel(OUT_MESSAGES);
        let number = self.next_peer.fetch_add(1, Relaxed);
        let mut unsaid = None;
        let peer = Peer { number, since: Instant::now(), out };
        match socket {
            Socket::Push | Socket::Dealer => self.takers.lock().push_back(peer),
            // Who comes later under the same name is the same worker, connected again.
            Socket::Router if !identity.is_empty() => _ = self.named.lock().insert(identity.clone(), peer),
            // Nobody can send it anything.
            Socket::Router | Socket::Pull | Socket::Pub => unsaid = Some(peer.out),
            Socket::Sub => {
                unsaid = Some(peer.out);
                self.heard.fetch_add(1, Relaxed);
            }
        }
        self.news.notify_waiters();
        Seat { number, socket, identity, out: receiver, _unsaid: unsaid }
    }

    /// A connection has ended.
    pub(super) fn leave(&self, seat: &Seat) {
        match seat.socket {
            Socket::Push => self.takers.lock().retain(|peer| peer.number != seat.number),
            Socket::Dealer => {
                self.takers.lock().retain(|peer| peer.number != seat.number);
                self.sessions.lock().retain(|_, entry| entry.peer != Some(seat.number));
            }
            Socket::Router => {
                let mut named = self.named.lock();
                if named.get(&seat.identity).is_some_and(|peer| peer.number == seat.number) {
                    named.remove(&seat.identity);
                }
            }
            Socket::Sub => _ = self.heard.fetch_sub(1, Relaxed),
            Socket::Pull | Socket::Pub => (),
        }
    }

    /// Something was written to a worker: there may be room.
    pub(super) fn written(&self) {
        self.news.notify_waiters();
    }

    /// A message of a worker. What cannot be understood, or is for nobody, is dropped.
    pub(super) fn hear(&self, socket: Socket, frames: &[Bytes]) {
        let Some(last) = frames.last() else { return };
        let packet = match socket {
            Socket::Sub => last.strip_prefix(self.name.as_bytes()).and_then(|rest| rest.strip_prefix(b" ")),
            _ => Some(&last[..]),
        };
        let packet = packet.map(Packet::decode);
        let Some(Ok(packet)) = packet else {
            let why = packet.and_then(Result::err);
            return tracing::debug!(target: "fantail::workers", address = %self.address, ?why, "a worker's packet is dropped");
        };
        let Packet { from, ids, credits, content } = packet;
        for id in ids {
            let Some(number) = str::from_utf8(&id.id).ok().and_then(|id| id.parse().ok()) else { continue };
            let (from, content) = (from.clone(), content.clone());
            self.deliver(number, Heard { from, seq: id.seq, credits, content });
        }
    }

    fn deliver(&self, number: u64, heard: Heard) {
        let mut sessions = self.sessions.lock();
        let Some(entry) = sessions.get(&number) else { return };
        let size = heard.content.body_len();
        let waiting = entry.waiting.fetch_add(size, Relaxed);
        if waiting.saturating_add(size) > MAX_WAITING_BYTES || entry.inbox.try_send(heard).is_err() {
            entry.waiting.store(usize::MAX / 2, Relaxed);
            // Its session hears no more, and why.
            sessions.remove(&number);
        }
    }
}

impl Ear {
    /// The session's name in packets.
    pub(super) fn id(&self) -> String {
        self.number.to_string()
    }

    /// The next that a worker says in this session.
    ///
    /// # Errors
    /// Nothing more will come.
    pub(super) async fn hear(&mut self) -> Result<Heard, Broken> {
        match self.inbox.recv().await {
            Some(heard) => {
                self.waiting.fetch_sub(heard.content.body_len(), Relaxed);
                Ok(heard)
            }
            None if self.waiting.load(Relaxed) > MAX_WAITING_BYTES => Err(Broken::Flood),
            None => Err(Broken::Gone),
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.crew.sessions.lock().remove(&self.number);
    }
}

/// A worker has connected all its sockets by then.
const SETTLED: Duration = Duration::from_millis(500);
/// Messages that wait for one worker: it takes few more than it works on, and what waits may be lost with it.
const OUT_MESSAGES: usize = 1000;
/// Packets that wait for one session; as many small ones as fit into its credits with some sense.
const INBOX_PACKETS: usize = 1 << 14;
/// Bodies that wait for one session: more than the credits, for workers that send a whole answer in one packet
/// without minding them.
pub(super) const MAX_WAITING_BYTES: usize = super::wire::MAX_MESSAGE_BYTES;
