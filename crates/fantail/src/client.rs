//! The client side of a connection: who it is, and its place among the connections of its shard. It
//! travels with the socket, from listener to pin and back.

use std::{
    cell::Cell,
    net::{IpAddr, Ipv6Addr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hashbrown::hash_map::Entry;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use crate::{channel::ByName, metrics::Counters};

/// One client's connection, and its place among all of them, which is given back on drop.
#[derive(Debug)]
pub struct Client {
    /// `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    connections: Rc<Connections>,
    /// Its place among all is with a [`Traveller`].
    travels: bool,
}

impl Client {
    /// Leaves its shard, but not its place among all.
    pub fn travel(mut self) -> Traveller {
        self.travels = true;
        Traveller { peer: self.peer, all: Some(Arc::clone(&self.connections.all)) }
    }
}

/// A client between two shards.
#[derive(Debug)]
pub struct Traveller {
    peer: Option<IpAddr>,
    /// Until it has arrived.
    all: Option<Arc<Crowd>>,
}

impl Drop for Traveller {
    fn drop(&mut self) {
        if let Some(all) = self.all.take() {
            all.leave(self.peer);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let Connections { open, all, room, counters, .. } = &*self.connections;
        open.set(open.get() - 1);
        if !self.travels {
            all.leave(self.peer);
        }
        counters.connections.add(-1);
        room.notify_one();
    }
}

/// A shard's count of its connections, pins included.
#[derive(Debug)]
pub struct Connections {
    open: Cell<usize>,
    all: Arc<Crowd>,
    room: Notify,
    counters: Arc<Counters>,
}

impl Connections {
    pub fn new(all: Arc<Crowd>, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self { open: Cell::new(0), all, room: Notify::new(), counters })
    }

    pub fn open(&self) -> usize {
        self.open.get()
    }

    pub fn is_full(&self) -> bool {
        self.all.is_full()
    }

    /// A place for a connection; `None` when its address has as many as it may.
    pub fn take(self: &Rc<Self>, peer: Option<IpAddr>) -> Option<Client> {
        self.counters.accepted.add(1);
        if !self.all.enter(peer) {
            self.counters.crowded.add(1);
            return None;
        }
        self.open.set(self.open.get() + 1);
        self.counters.connections.add(1);
        Some(Client { peer, connections: Rc::clone(self), travels: false })
    }

    /// Takes in a client of another shard's.
    pub fn admit(self: &Rc<Self>, mut traveller: Traveller) -> Client {
        traveller.all = None;
        self.open.set(self.open.get() + 1);
        self.counters.connections.add(1);
        Client { peer: traveller.peer, connections: Rc::clone(self), travels: false }
    }

    /// A place for a connection that lasts as long as a client's own, to its origin; `None` when there is no room.
    pub fn second(self: &Rc<Self>) -> Option<Place> {
        if self.is_full() {
            return None;
        }
        self.all.open.fetch_add(1, Relaxed);
        Some(Place(Arc::clone(&self.all)))
    }

    /// Resolves when a connection of this shard ended since the last call, or after a moment: one of
    /// another shard may have.
    pub async fn room(&self) {
        drop(timeout(OTHERS, self.room.notified()).await);
    }
}

/// A descriptor among those of all clients, given back on drop.
#[derive(Debug)]
pub struct Place(Arc<Crowd>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave(None);
    }
}

/// The connections of all shards, and the limits for them.
#[derive(Debug)]
pub struct Crowd {
    open: AtomicUsize,
    limit: usize,
    /// 0: no limit, and `by_network` is not used.
    per_network: usize,
    by_network: Mutex<ByName<IpAddr, usize>>,
}

impl Crowd {
    /// At most `limit` connections, and at most `per_address` from one address unless that is 0.
    pub fn new(limit: usize, per_address: usize) -> Arc<Self> {
        let by_network = Mutex::default();
        Arc::new(Self { open: AtomicUsize::new(0), limit, per_network: per_address, by_network })
    }

    fn is_full(&self) -> bool {
        self.open.load(Relaxed) >= self.limit
    }

    fn enter(&self, peer: Option<IpAddr>) -> bool {
        if let Some(peer) = peer
            && self.per_network > 0
        {
            let mut by_network = self.by_network.lock();
            let open = by_network.entry(network(peer)).or_insert(0);
            if *open >= self.per_network {
                return false;
            }
            *open += 1;
        }
        self.open.fetch_add(1, Relaxed);
        true
    }

    fn leave(&self, peer: Option<IpAddr>) {
        self.open.fetch_sub(1, Relaxed);
        if let Some(peer) = peer
            && self.per_network > 0
            && let Entry::Occupied(mut open) = self.by_network.lock().entry(network(peer))
        {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }
}

/// What counts as one address: of IPv6 the 64 bits that one customer has (RFC 6177).
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
    }
}

/// How late a shard sees room that another made.
const OTHERS: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_limit_and_gets_its_places_back() {
        let counters = Arc::new(Counters::default());
        let crowd = Crowd::new(100, 2);
        let shards = [(); 2].map(|()| Connections::new(Arc::clone(&crowd), Arc::clone(&counters)));
        let take = |shard: usize, peer: &str| shards[shard].take(Some(peer.parse().unwrap()));
        let (first, second) = (take(0, "2001:db8::1"), take(1, "2001:db8::ffff:1"));
        assert!(first.is_some() && second.is_some());
        assert!(take(0, "2001:db8::2").is_none(), "the same /64, whatever the shard");
        let others =
            [take(0, "2001:db8:0:1::1"), take(0, "192.0.2.1"), take(0, "192.0.2.2"), shards[0].take(None)];
        assert!(others.iter().all(Option::is_some));
        drop(first);
        let again = take(1, "2001:db8::3");
        assert!(again.is_some());
        assert_eq!(counters.crowded.get(), 1);
        drop((second, again, others));
        assert!(crowd.by_network.lock().is_empty() && shards.iter().all(|shard| shard.open() == 0));
    }
}
