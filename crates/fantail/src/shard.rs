//! A shard: one core's thread, with its requests, pins and connections to origins. This is the state
//! that they share, for that thread alone, and the loop that delivers mail and minds the pins. It does
//! not accept and does not read: a socket that goes on after a hold is given to whoever does.

use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, RandomState},
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use fantail_pin::Wire;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, sleep_until},
};

use crate::{
    client::{Connections, Traveller},
    hold::{Holds, Onward},
    hub::Hub,
    logging::AccessLog,
    metrics::Counters,
    session::Sessions,
    sign::Tokens,
    snapshot::Snapshot,
    stats::{Errand, Notes},
    upstream::{Flights, Pages, Upstream, Workers},
};

#[derive(Debug)]
pub struct Shard {
    pub index: usize,
    pub hub: Arc<Hub>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub upstream: Upstream,
    pub counters: Arc<Counters>,
    pub connections: Rc<Connections>,
    pub access: RefCell<AccessLog>,
    /// Only where somebody may keep them.
    pub sessions: Option<Arc<Sessions>>,
    /// Only when somebody watches.
    pub notes: Option<Arc<Notes>>,
    pub tokens: RefCell<Tokens>,
    pub flights: Flights,
    /// All shards'.
    pub pages: Arc<Pages>,
    /// Origins that are being told of holds that are gone, and their turns.
    pub departures: Cell<usize>,
    pub departing: Semaphore,
    /// Origins that are asked about WebSockets whose clients have left meanwhile.
    pub lone: Cell<usize>,
    /// Turns at asking origins about items.
    pub asking: Semaphore,
    pub neighbours: Neighbours,
    /// Turns at the arithmetic of handshakes.
    pub handshakes: Semaphore,
    /// What origins of WebSockets are read into, one at a time.
    pub scratch: RefCell<Vec<u8>>,
    holds: RefCell<Holds>,
    /// The snapshot that was current at the last [`Self::tidy`].
    tidied: RefCell<Arc<Snapshot>>,
    started: Instant,
    /// The expiry that the loop sleeps until.
    awaited: Cell<Option<u64>>,
    /// Wakes the loop for what the poller does not say.
    stir: Notify,
    draining: Cell<bool>,
    drain: Notify,
}

/// What a shard is made of.
#[derive(Debug)]
pub struct Parts {
    pub index: usize,
    pub hub: Arc<Hub>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub counters: Arc<Counters>,
    pub connections: Rc<Connections>,
    pub access: AccessLog,
    pub holds: Holds,
    pub workers: Arc<Workers>,
    pub pages: Arc<Pages>,
    pub sessions: Option<Arc<Sessions>>,
    pub neighbours: Neighbours,
}

/// All shards, to whom connections move whose requests are theirs to answer.
#[derive(Clone, Debug)]
pub struct Neighbours {
    doors: Arc<[mpsc::Sender<Moved>]>,
    /// Unforeseeable, so that nobody can choose a shard.
    seed: RandomState,
}

/// A connection on its way to another shard, between two requests.
#[derive(Debug)]
pub struct Moved {
    pub wire: Wire,
    pub traveller: Traveller,
    /// Its next request, whole, and what came behind it.
    pub unread: Vec<u8>,
}

impl Neighbours {
    /// With what each of so many shards takes in.
    pub fn new(shards: usize) -> (Self, Vec<mpsc::Receiver<Moved>>) {
        let (doors, takers): (Vec<_>, Vec<_>) = (0..shards).map(|_| mpsc::channel(MOVING)).unzip();
        (Self { doors: doors.into(), seed: RandomState::new() }, takers)
    }

    /// The shard that something named so belongs to.
    pub fn owner(&self, name: &str) -> usize {
        let shards = u64::try_from(self.doors.len()).unwrap_or(u64::MAX);
        usize::try_from(self.seed.hash_one(name) % shards).unwrap_or_default()
    }

    /// Whether a connection is on its way to a shard, or has a place for that.
    fn expects(&self, shard: usize) -> bool {
        self.doors.get(shard).is_some_and(|door| door.capacity() < door.max_capacity())
    }

    /// A place on the way to a shard, when there is one; `None` if that is gone.
    pub async fn place(&self, shard: usize) -> Option<mpsc::OwnedPermit<Moved>> {
        self.doors.get(shard)?.clone().reserve_owned().await.ok()
    }
}

impl Shard {
    pub fn new(parts: Parts) -> Rc<Self> {
        Rc::new(Self {
            index: parts.index,
            hub: parts.hub,
            tidied: RefCell::new(parts.snapshot.load_full()),
            snapshot: parts.snapshot,
            upstream: Upstream::new(Arc::clone(&parts.counters), parts.workers),
            counters: parts.counters,
            connections: parts.connections,
            access: RefCell::new(parts.access),
            notes: parts.holds.notes(),
            sessions: parts.sessions,
            tokens: RefCell::default(),
            flights: Flights::default(),
            pages: parts.pages,
            departures: Cell::new(0),
            departing: Semaphore::new(DEPARTURES_AT_ONCE),
            lone: Cell::new(0),
            asking: Semaphore::new(QUESTIONS_AT_ONCE),
            neighbours: parts.neighbours,
            handshakes: Semaphore::new(HANDSHAKES_AT_ONCE),
            scratch: RefCell::default(),
            holds: RefCell::new(parts.holds),
            started: Instant::now(),
            awaited: Cell::new(None),
            stir: Notify::new(),
            draining: Cell::new(false),
            drain: Notify::new(),
        })
    }

    /// Changes holds, with the clock set, and lets the loop see to what follows. `change` must not wait.
    pub fn holds<R>(&self, change: impl FnOnce(&mut Holds) -> R) -> R {
        let mut holds = self.holds.borrow_mut();
        holds.set_now(self.now_ms());
        let result = change(&mut holds);
        let expiry = holds.next_expiry_ms();
        let sooner = expiry.is_some_and(|expiry| self.awaited.get().is_none_or(|awaited| expiry < awaited));
        if holds.is_waiting() || sooner {
            self.stir.notify_one();
        }
        result
    }

    /// Delivers mail and minds the pins until it is dropped. `go_on` gets what is for others.
    pub async fn run(&self, go_on: impl Fn(Onward)) -> io::Result<()> {
        #[expect(deprecated, reason = "sound for a descriptor that is owned; what replaces it is unsafe")]
        let epoll = AsyncFd::with_interest(self.holds.borrow().epoll()?, Interest::READABLE)?;
        loop {
            self.awaited.set(self.holds.borrow().next_expiry_ms());
            let expiry = self.awaited.get().map(|ms| self.started + Duration::from_millis(ms));
            let expired = async { sleep_until(expiry.unwrap_or_else(Instant::now)).await };
            tokio::select! {
                () = self.hub.mail(self.index) => self.deliver(&go_on).await,
                ready = epoll.readable() => {
                    if self.turn(ready?)? {
                        tokio::task::yield_now().await;
                    }
                }
                () = expired, if expiry.is_some() => {}
                () = self.stir.notified() => {}
                errands = self.errands() => {
                    let mut holds = self.holds.borrow_mut();
                    holds.set_now(self.now_ms());
                    errands.iter().for_each(|errand| holds.run(errand));
                }
            }
            let is_ending = {
                let mut holds = self.holds.borrow_mut();
                holds.set_now(self.now_ms());
                holds.expire();
                holds.onward().for_each(&go_on);
                holds.is_ending()
            };
            if is_ending {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Writes access lines and closes idle connections to origins; to be called a few times a second.
    pub fn tidy(&self) {
        self.access.borrow_mut().flush();
        if let Some(sessions) = &self.sessions {
            let reached = self.holds(Holds::take_reached);
            if !reached.is_empty() {
                sessions.update(&reached);
            }
        }
        let snapshot = self.snapshot.load();
        self.upstream.sweep(snapshot.config.origin.keep_alive);
        self.pages.sweep();
        if !Arc::ptr_eq(&snapshot, &self.tidied.borrow()) {
            self.upstream.forget();
            self.holds(|holds| holds.configure(&snapshot.config));
            self.tidied.replace(Arc::clone(&snapshot));
        }
    }

    /// From now on connections end after the answer they are at, and holds in order.
    pub fn start_draining(&self) {
        self.draining.set(true);
        self.drain.notify_waiters();
        self.holds(Holds::drain);
    }

    /// How many origins were not told that their WebSockets have ended.
    pub fn untold(&self) -> usize {
        self.holds.borrow().untold()
    }

    /// Whether a client is still there or on its way here, or an origin is still to hear of one.
    pub fn is_busy(&self) -> bool {
        let told = self.holds.borrow().has_partings() || self.departures.get() > 0 || self.lone.get() > 0;
        self.connections.open() > 0 || told || self.neighbours.expects(self.index)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Resolves when draining starts.
    pub async fn drained(&self) {
        self.drain.notified().await;
    }

    async fn deliver(&self, go_on: &impl Fn(Onward)) {
        {
            let mut holds = self.holds.borrow_mut();
            for realm in self.hub.take(self.index, holds.batch()) {
                holds.recover(realm);
            }
            holds.begin();
        }
        while self.step(go_on) {
            tokio::task::yield_now().await;
        }
    }

    async fn errands(&self) -> Vec<Errand> {
        match &self.notes {
            Some(notes) => notes.errands().await,
            None => std::future::pending().await,
        }
    }

    fn step(&self, go_on: &impl Fn(Onward)) -> bool {
        let mut holds = self.holds.borrow_mut();
        holds.set_now(self.now_ms());
        let more = holds.step();
        // Between chunks others have their turn, and this task is the one that sees to the pins.
        if let Err(error) = holds.turn() {
            tracing::error!(%error, "the poller");
        }
        holds.expire();
        holds.onward().for_each(go_on);
        more
    }

    fn turn(&self, mut ready: tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>) -> io::Result<bool> {
        let mut holds = self.holds.borrow_mut();
        holds.set_now(self.now_ms());
        let more = holds.turn()?;
        if !more {
            // The inner poller was empty when it was asked last; what comes later is a new edge.
            ready.clear_ready();
        }
        Ok(more)
    }

    /// The clock of the shard's holds, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Connections on their way to one shard.
const MOVING: usize = 1024;
/// Handshakes whose arithmetic is done between two looks at all else: each takes up to a millisecond of RSA.
const HANDSHAKES_AT_ONCE: usize = 8;
/// Requests about holds that are gone: an origin has more to do.
const DEPARTURES_AT_ONCE: usize = 32;
/// Requests about items, for filters that ask.
const QUESTIONS_AT_ONCE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// What has left one shard is another's before that takes it in.
    #[tokio::test]
    async fn a_connection_on_its_way_is_expected() {
        let (neighbours, _takers) = Neighbours::new(2);
        let place = neighbours.place(1).await.unwrap();
        assert!(neighbours.expects(1) && !neighbours.expects(0));
        drop(place);
        assert!(!neighbours.expects(1));
    }
}
