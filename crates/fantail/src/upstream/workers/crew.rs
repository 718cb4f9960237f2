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
    time::{Instant, timeout, timeout_at},
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

/// What becomes of a session.
#[derive(Debug)]
enum Note {
    Heard(Heard),
    /// Who had its request in a queue has gone, and nothing of it was written.
    Untaken,
}

/// A session's ear; nobody hears for it when it is dropped.
#[derive(Debug)]
pub(super) struct Ear {
    crew: Arc<Crew>,
    number: u64,
    inbox: mpsc::Receiver<Note>,
    waiting: Arc<AtomicUsize>,
    /// The request, until somebody speaks of it, and until when it may look for a worker.
    request: Option<(Bytes, Instant)>,
    /// Nobody has it any more.
    is_untaken: bool,
}

/// A message that waits for one worker.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) message: Bytes,
    /// The session that it begins.
    request_of: Option<u64>,
}

/// Room for one packet that follows a request.
#[derive(Debug)]
pub(super) struct Place(mpsc::OwnedPermit<Outgoing>);

impl Place {
    pub(super) fn take(self, packet: &[u8]) {
        self.0.send(Outgoing { message: zmtp::message(&[b"", packet]), request_of: None });
    }
}

/// A connection to a worker.
#[derive(Clone, Debug)]
struct Peer {
    number: u64,
    since: Instant,
    out: mpsc::Sender<Outgoing>,
}

/// A place among the connections, given back by [`Crew::leave`].
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    socket: Socket,
    identity: Bytes,
    /// Ends when another has taken the place.
    pub(super) out: mpsc::Receiver<Outgoing>,
    _unsaid: Option<mpsc::Sender<Outgoing>>,
}

#[derive(Debug)]
struct Entry {
    inbox: mpsc::Sender<Note>,
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
        Ear { crew: Arc::clone(self), number, inbox, waiting, request: None, is_untaken: false }
    }

    /// Gives a session's request to the next worker in turn that has room; waits for one if there is none. False if
    /// there was none in time. May be given up.
    async fn hand_over(&self, session: u64, message: &Bytes, until: Instant) -> bool {
        let taken = async {
            loop {
                let mut news = std::pin::pin!(self.news.notified());
                news.as_mut().enable();
                if self.give(session, message) {
                    return;
                }
                // Who was not settled may be now.
                drop(timeout(SETTLED, news).await);
            }
        };
        timeout_at(until, taken).await.is_ok()
    }

    fn give(&self, session: u64, message: &Bytes) -> bool {
        if self.address.protocol == Protocol::Streaming && !self.can_hear() {
            return false;
        }
        let mut takers = self.takers.lock();
        for _ in 0..takers.len() {
            let Some(peer) = takers.pop_front() else { return false };
            let number = peer.number;
            let outgoing = Outgoing { message: message.clone(), request_of: Some(session) };
            let taken = peer.out.try_send(outgoing).is_ok();
            takers.push_back(peer);
            if taken {
                // While the takers are locked, so that whoever leaves now finds it.
                if self.address.protocol == Protocol::Whole
                    && let Some(entry) = self.sessions.lock().get_mut(&session)
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

    /// A connection has ended. `unwritten`: the message that was next, of which nothing was written.
    pub(super) fn leave(&self, seat: &mut Seat, unwritten: Option<Outgoing>) {
        match seat.socket {
            Socket::Push | Socket::Dealer => {
                self.takers.lock().retain(|peer| peer.number != seat.number);
                let mut sessions = self.sessions.lock();
                // What has not been written is another's; what has been may have been done.
                for request in unwritten.into_iter().chain(std::iter::from_fn(|| seat.out.try_recv().ok())) {
                    if let Some(entry) = request.request_of.and_then(|session| sessions.get_mut(&session))
                        && entry.inbox.try_send(Note::Untaken).is_ok()
                    {
                        entry.peer = None;
                    }
                }
                if seat.socket == Socket::Dealer {
                    sessions.retain(|_, entry| entry.peer != Some(seat.number));
                }
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
        if waiting.saturating_add(size) > MAX_WAITING_BYTES
            || entry.inbox.try_send(Note::Heard(heard)).is_err()
        {
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

    /// Gives the request to a worker; false if there is none in time.
    pub(super) async fn ask(&mut self, packet: &[u8], patience: Duration) -> bool {
        let message = match self.crew.address.protocol {
            // An empty frame is what makes it a request for a REP socket.
            Protocol::Whole => zmtp::message(&[b"", packet]),
            Protocol::Streaming => zmtp::message(&[packet]),
        };
        let until = Instant::now() + patience;
        let taken = self.crew.hand_over(self.number, &message, until).await;
        self.request = Some((message, until));
        taken
    }

    /// The next that a worker says in this session. A request that nobody has taken goes to the next worker meanwhile.
    /// May be given up at any time.
    ///
    /// # Errors
    /// Nothing more will come.
    pub(super) async fn hear(&mut self) -> Result<Heard, Broken> {
        loop {
            if self.is_untaken {
                let Some((message, until)) = &self.request else { return Err(Broken::Gone) };
                if !self.crew.hand_over(self.number, message, *until).await {
                    return Err(Broken::Untaken);
                }
                self.is_untaken = false;
            }
            match self.inbox.recv().await {
                Some(Note::Heard(heard)) => {
                    self.request = None;
                    self.waiting.fetch_sub(heard.content.body_len(), Relaxed);
                    return Ok(heard);
                }
                Some(Note::Untaken) => self.is_untaken = true,
                None if self.waiting.load(Relaxed) > MAX_WAITING_BYTES => return Err(Broken::Flood),
                None => return Err(Broken::Gone),
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn crew(protocol: Protocol) -> Arc<Crew> {
        let at = fantail_proto::route::Meeting::Ipc("/nowhere".into());
        Arc::new(Crew::new(Address { protocol, at }, watch::channel(false).0))
    }

    /// What a worker is given, and an answer to it.
    async fn serve(crew: &Crew, seat: &mut Seat, id: &str) {
        let given = seat.out.recv().await.expect("it is given something");
        assert!(given.message.ends_with(b"request"), "{given:?}");
        crew.hear(
            seat.socket,
            &[Bytes::from(format!("T{}:2:id,{}:{id},4:code,3:200#}}", 21 + id.len(), id.len()))],
        );
    }

    /// What has not been written to a worker that goes away is the next one's, whoever that is.
    #[tokio::test(start_paused = true)]
    async fn what_was_not_written_is_given_to_another() {
        for (protocol, socket) in [(Protocol::Whole, Socket::Dealer), (Protocol::Streaming, Socket::Push)] {
            let crew = crew(protocol);
            let _heard = crew.join(Socket::Sub, Bytes::new());
            let mut first = crew.join(socket, Bytes::new());
            let mut ears = [crew.listen(), crew.listen()];
            for ear in &mut ears {
                assert!(ear.ask(b"request", PATIENCE).await);
            }
            // One is in its connection's hand, one in the queue.
            let in_hand = first.out.recv().await;
            crew.leave(&mut first, in_hand);
            let mut second = crew.join(socket, Bytes::new());
            for ear in &mut ears {
                let id = ear.id();
                let (heard, ()) = tokio::join!(ear.hear(), serve(&crew, &mut second, &id));
                assert!(matches!(heard.expect("answered").content, Content::Data { .. }), "{protocol:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_reached_nobody() {
        let crew = crew(Protocol::Whole);
        let mut only = crew.join(Socket::Dealer, Bytes::new());
        let mut ear = crew.listen();
        assert!(ear.ask(b"request", PATIENCE).await);
        crew.leave(&mut only, None);
        assert_eq!(ear.hear().await.expect_err("nobody is there"), Broken::Untaken);
    }

    /// What has been written may have been done.
    #[tokio::test(start_paused = true)]
    async fn what_was_written_is_given_to_nobody_else() {
        let crew = crew(Protocol::Whole);
        let mut first = crew.join(Socket::Dealer, Bytes::new());
        let mut ear = crew.listen();
        assert!(ear.ask(b"request", PATIENCE).await);
        drop(first.out.recv().await);
        let mut second = crew.join(Socket::Dealer, Bytes::new());
        crew.leave(&mut first, None);
        assert_eq!(ear.hear().await.expect_err("its worker has gone"), Broken::Gone);
        assert!(second.out.try_recv().is_err());
    }
}
