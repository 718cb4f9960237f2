//! The statistics socket: who subscribes to which packets, and the task that looks at the desk and tells them. A
//! subscriber that does not read loses packets, counted; it never keeps others waiting.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use fantail_proto::zmtp;
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::{
    config,
    metrics::{Counters, Process},
    stats::{Desk, Id, Stats, Telling},
};

/// Where packets go.
#[derive(Debug)]
pub struct Board {
    stats: Arc<Stats>,
    desk: Mutex<Desk>,
    shards: Vec<Arc<Counters>>,
    readers: Mutex<Vec<Arc<Reader>>>,
    counts: Arc<Process>,
}

/// A peer of the socket.
#[derive(Debug)]
pub(super) struct Reader {
    topics: Mutex<Vec<Bytes>>,
    packets: mpsc::Sender<Bytes>,
    waiting: AtomicUsize,
}

impl Board {
    pub fn new(
        stats: &Arc<Stats>,
        config: &config::Stats,
        linger: Duration,
        shards: Vec<Arc<Counters>>,
        counts: &Arc<Process>,
    ) -> Arc<Self> {
        let desk = Mutex::new(Desk::new(stats, config, linger, Instant::now()));
        let (stats, counts) = (Arc::clone(stats), Arc::clone(counts));
        Arc::new(Self { stats, desk, shards, readers: Mutex::default(), counts })
    }

    /// Looks again and again; never returns.
    pub(super) async fn keep(&self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.look();
        }
    }

    /// Which of these connections are there now.
    pub(super) fn present(&self, ids: &[&str]) -> Vec<bool> {
        self.look();
        let desk = self.desk.lock();
        ids.iter().map(|id| Id::parse(id).is_some_and(|id| desk.has(id))).collect()
    }

    /// Has the origin of a WebSocket asked. False: it is not here.
    pub(super) async fn refresh(&self, id: &str) -> bool {
        match Id::parse(id) {
            Some(Id::WebSocket(connection)) => self.stats.refresh(connection).await,
            _ => false,
        }
    }

    pub(super) fn join(&self) -> (Arc<Reader>, mpsc::Receiver<Bytes>) {
        let (packets, receiver) = mpsc::channel(MOST_WAITING);
        let reader = Arc::new(Reader { topics: Mutex::default(), packets, waiting: AtomicUsize::new(0) });
        self.readers.lock().push(Arc::clone(&reader));
        (reader, receiver)
    }

    fn look(&self) {
        let keep_alives = self.shards.iter().map(|shard| shard.keep_alives.get()).sum();
        let readers = {
            let mut readers = self.readers.lock();
            readers.retain(|reader| !reader.packets.is_closed());
            readers.clone()
        };
        let wants = |kind: &str| readers.iter().any(|reader| reader.may_want(kind.as_bytes()));
        let share = BYTES_WAITING.min(BYTES_OF_ALL / readers.len().max(1));
        let mut telling = Telling { wants: &wants, packets: Vec::new() };
        // Held while packets are handed out, so that they keep their order.
        let mut desk = self.desk.lock();
        desk.look(Instant::now(), keep_alives, &mut telling);
        for packet in telling.packets {
            let message = zmtp::message(&[&packet[..]]);
            for reader in readers.iter().filter(|reader| reader.wants(&packet)) {
                self.counts.stats_dropped.add(u64::from(!reader.give(&message, share)));
            }
        }
    }
}

impl Reader {
    /// A message of the peer: from now on it wants packets that begin so, or does not any more. False if it has too
    /// many wishes, or this is none.
    pub(super) fn hear(&self, message: &[Bytes]) -> bool {
        let [wish] = message else { return false };
        let Some((sign, topic)) = wish.split_first() else { return false };
        let mut topics = self.topics.lock();
        match sign {
            1 if topics.len() < MOST_TOPICS && topic.len() <= TOPIC_BYTES => {
                topics.push(Bytes::copy_from_slice(topic));
                true
            }
            0 => {
                if let Some(at) = topics.iter().position(|known| known == topic) {
                    topics.swap_remove(at);
                }
                true
            }
            _ => false,
        }
    }

    /// What was given has been written.
    pub(super) fn taken(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Relaxed);
    }

    fn wants(&self, packet: &[u8]) -> bool {
        self.topics.lock().iter().any(|topic| packet.starts_with(topic))
    }

    /// Whether it can want a packet of this type.
    fn may_want(&self, kind: &[u8]) -> bool {
        self.topics.lock().iter().any(|topic| kind.starts_with(topic) || topic.starts_with(kind))
    }

    /// `share`: bytes that it may be behind.
    fn give(&self, message: &Bytes, share: usize) -> bool {
        if self.waiting.fetch_add(message.len(), Relaxed) < share
            && self.packets.try_send(message.clone()).is_ok()
        {
            return true;
        }
        self.waiting.fetch_sub(message.len(), Relaxed);
        false
    }
}

/// Pushpin's for counts, which are told every 100 ms.
const TICK: Duration = Duration::from_millis(100);
/// Packets that one peer may be behind: Pushpin's.
const MOST_WAITING: usize = 200_000;
const BYTES_WAITING: usize = 64 << 20;
/// All peers together, each an equal part.
const BYTES_OF_ALL: usize = 512 << 20;
/// Of one peer: six types are enough for most.
const MOST_TOPICS: usize = 1000;
const TOPIC_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_what_it_wants_until_it_is_too_far_behind() {
        let stats = Stats::new(1, 0, &Arc::default());
        let config = config::Config::default().stats;
        let board = Board::new(&stats, &config, Duration::ZERO, Vec::new(), &Arc::default());
        let (reader, _packets) = board.join();
        assert!(!reader.may_want(b"conn"));
        let wish = |wish: &'static [u8]| reader.hear(&[Bytes::from_static(wish)]);
        assert!(wish(b"\x01conn ") && wish(b"\x01sub J{\"channel\":\"a\""));
        assert!(reader.may_want(b"conn") && reader.may_want(b"sub") && !reader.may_want(b"counts"));
        assert!(reader.wants(b"conn T") && !reader.wants(b"conn-max T") && !reader.wants(b"sub J{}"));
        assert!(wish(b"\x00conn ") && wish(b"\x00nothing") && !wish(b"\x02") && !wish(b""));
        assert!(!reader.wants(b"conn T"));
        let packet = Bytes::from(vec![0; 1 << 20]);
        assert_eq!((0..100).filter(|_| reader.give(&packet, BYTES_WAITING)).count(), 64);
        reader.taken(1 << 20);
        assert!(!reader.give(&packet, BYTES_WAITING / 2) && reader.give(&packet, BYTES_WAITING));
    }
}
