//! The client side of a connection: who it is, and its place among the connections of its shard. It
//! travels with the socket, from listener to pin and back.

use std::{
    cell::Cell,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use crate::metrics::Counters;

/// One client's connection.
#[derive(Debug)]
pub struct Client {
    /// `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    pub slot: Slot,
}

/// A shard's count of its connections, pins included.
#[derive(Debug)]
pub struct Connections {
    open: Cell<usize>,
    /// Of all shards.
    all: Arc<AtomicUsize>,
    limit: usize,
    room: Notify,
    counters: Arc<Counters>,
}

impl Connections {
    /// `all` counts the connections of all shards, which `limit` is for.
    pub fn new(limit: usize, all: Arc<AtomicUsize>, counters: Arc<Counters>) -> Rc<Self> {
        Rc::new(Self { open: Cell::new(0), all, limit, room: Notify::new(), counters })
    }

    pub fn open(&self) -> usize {
        self.open.get()
    }

    pub fn is_full(&self) -> bool {
        self.all.load(Relaxed) >= self.limit
    }

    pub fn take(self: &Rc<Self>) -> Slot {
        self.open.set(self.open.get() + 1);
        self.all.fetch_add(1, Relaxed);
        self.counters.accepted.add(1);
        self.counters.connections.add(1);
        Slot(Rc::clone(self))
    }

    /// Resolves when a connection of this shard ended since the last call, or after a moment: one of
    /// another shard may have.
    pub async fn room(&self) {
        drop(timeout(OTHERS, self.room.notified()).await);
    }
}

/// A place among a shard's connections, given back on drop.
#[derive(Debug)]
pub struct Slot(Rc<Connections>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.all.fetch_sub(1, Relaxed);
        self.0.counters.connections.add(-1);
        self.0.room.notify_one();
    }
}

/// How late a shard sees room that another made.
const OTHERS: Duration = Duration::from_millis(50);
