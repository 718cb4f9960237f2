//! What happens to clients, noted for whoever watches: the statistics socket, Prometheus under Pushpin's names, and
//! commands that name a connection. Owns the notes between two looks of the [`Desk`], with a limit, and what is to be
//! done for a connection; knows no socket. Where nobody watches there is no [`Stats`], and nothing is noted.

use std::{
    fmt,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use fantail_proto::item::{HttpResponse, HttpStream, Item, ResponseBody, WsMessage};
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::{
    channel::ByName,
    metrics::{Count, Gauge, Process},
};

mod desk;
mod packet;

pub use desk::{Desk, Telling};

/// Shared by all threads.
#[derive(Debug)]
pub struct Stats {
    shards: Box<[Arc<Notes>]>,
    items: Mutex<Vec<ItemNote>>,
    /// 0: nothing is counted in blocks.
    block_bytes: u64,
    blocks_received: Tally,
    /// Minutes that clients have begun to be connected.
    pub minutes: Count,
    pub connected: Gauge,
    counts: Arc<Process>,
}

/// What a shard has noted since the last look.
#[derive(Debug)]
pub struct Notes {
    shard: usize,
    requests: Tally,
    number: AtomicU64,
    open: Mutex<Open>,
    errands: Mutex<Vec<Errand>>,
    knock: Notify,
    counts: Arc<Process>,
}

#[derive(Debug, Default)]
struct Open {
    events: Vec<Event>,
    /// By [`Mode`]; the last state counts. Each is a channel that has subscribers, or had since the last look.
    subscribers: [ByName<Box<str>, u32>; 3],
    /// One a route with an id, and one without a name for all others.
    routes: HashMap<Arc<str>, Arc<Traffic>>,
}

#[derive(Debug)]
enum Event {
    Came(Arc<Who>),
    Left(Arc<Who>),
}

/// A connection as it is told: a request until it is answered, or a WebSocket.
#[derive(Debug)]
pub struct Who {
    pub id: Id,
    /// `None` on a Unix socket.
    pub peer: Option<IpAddr>,
    pub tls: bool,
    /// Its explicit id, or empty.
    pub route: Arc<str>,
}

/// By what a connection is known.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Id {
    Http {
        shard: usize,
        number: u64,
    },
    /// Its `Connection-Id`.
    WebSocket(u128),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { shard, number } => write!(f, "fantail:{shard}-{number}"),
            Self::WebSocket(id) => {
                let hex = format!("{id:032x}");
                let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
                f.write_str(&parts.join("-"))
            }
        }
    }
}

impl Id {
    /// What [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let id = match text.strip_prefix("fantail:") {
            Some(rest) => {
                let (shard, number) = rest.split_once('-')?;
                Self::Http { shard: shard.parse().ok()?, number: number.parse().ok()? }
            }
            None => Self::WebSocket(u128::from_str_radix(&text.replace('-', ""), 16).ok()?),
        };
        (id.to_string() == text).then_some(id)
    }
}

/// Its hold, or its request, is there while this is.
#[derive(Debug)]
pub struct Presence {
    who: Arc<Who>,
    traffic: Arc<Traffic>,
    notes: Arc<Notes>,
}

impl Presence {
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    pub fn id(&self) -> Id {
        self.who.id
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.notes.push(Event::Left(Arc::clone(&self.who)));
    }
}

/// To what kind of hold an item goes; in Pushpin's words.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Mode {
    Stream,
    Response,
    WebSocket,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Stream, Self::Response, Self::WebSocket];
}

/// What has been counted since it was last taken.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    fn take(&self) -> u64 {
        self.0.swap(0, Relaxed)
    }
}

/// What goes through one route, on one shard.
#[derive(Debug, Default)]
pub struct Traffic {
    pub activity: Tally,
    /// Items to subscribers.
    pub sent: Tally,
    pub responses_sent: Tally,
    pub blocks_sent: Tally,
    pub client: Side,
    pub server: Side,
}

/// As seen from Fantail: received from there, sent there.
#[derive(Debug, Default)]
pub struct Side {
    pub header_received: Tally,
    pub header_sent: Tally,
    pub content_received: Tally,
    pub content_sent: Tally,
    pub messages_received: Tally,
    pub messages_sent: Tally,
}

/// An item on its way: its receivers are told when it is dropped.
#[derive(Debug)]
pub struct Told {
    channel: Box<str>,
    id: Option<Box<str>>,
    /// By [`Mode`].
    receivers: [AtomicU32; 3],
    blocks: [u64; 3],
    stats: Arc<Stats>,
}

#[derive(Debug)]
struct ItemNote {
    channel: Box<str>,
    id: Option<Box<str>>,
    receivers: [u32; 3],
    blocks: [u64; 3],
}

/// A WebSocket whose origin is to be asked; who finds it says so.
#[derive(Debug)]
pub struct Errand {
    pub connection: u128,
    pub found: mpsc::Sender<()>,
}

impl Stats {
    /// `block_bytes`: 0, or how many bytes of content are a block.
    pub fn new(shards: usize, block_bytes: u64, counts: &Arc<Process>) -> Arc<Self> {
        let notes = |shard| Arc::new(Notes::new(shard, counts));
        Arc::new(Self {
            shards: (0..shards).map(notes).collect(),
            items: Mutex::default(),
            block_bytes,
            blocks_received: Tally::default(),
            minutes: Count::default(),
            connected: Gauge::default(),
            counts: Arc::clone(counts),
        })
    }

    pub fn shard(&self, index: usize) -> Arc<Notes> {
        Arc::clone(&self.shards[index])
    }

    /// Notes an item that was accepted.
    pub fn accept(self: &Arc<Self>, item: &Item) -> Box<Told> {
        let blocks = if self.block_bytes == 0 { [0; 3] } else { self.blocks(item) };
        self.blocks_received.add(blocks.into_iter().max().unwrap_or(0));
        Box::new(Told {
            channel: item.channel.as_str().into(),
            id: item.id.as_deref().map(Into::into),
            receivers: Default::default(),
            blocks,
            stats: Arc::clone(self),
        })
    }

    /// Has the origin of a WebSocket asked. False if no shard has it, or too many wait already.
    pub async fn refresh(&self, connection: u128) -> bool {
        let (found, mut answer) = mpsc::channel(1);
        for notes in &self.shards {
            let mut errands = notes.errands.lock();
            if errands.len() < MAX_ERRANDS {
                errands.push(Errand { connection, found: found.clone() });
                drop(errands);
                notes.knock.notify_one();
            }
        }
        drop(found);
        answer.recv().await.is_some()
    }

    /// One for each begun block of what each format has.
    fn blocks(&self, item: &Item) -> [u64; 3] {
        let stream = item.stream.as_ref().map(|stream| match stream {
            HttpStream::Send(content) => content.len(),
            _ => 0,
        });
        let response = item.response.as_ref().map(|response| match response {
            HttpResponse::Send(response) => match &response.body {
                ResponseBody::Whole(body) => body.len(),
                ResponseBody::Patch(_) => 0,
            },
            _ => 0,
        });
        let message = item.message.as_ref().map(|message| match message {
            WsMessage::Send { content, .. } => content.len(),
            _ => 0,
        });
        [stream, response, message].map(|bytes| {
            let bytes = bytes.map(|bytes| item.size.unwrap_or(bytes as u64));
            bytes.map_or(0, |bytes| bytes.div_ceil(self.block_bytes))
        })
    }
}

impl Notes {
    fn new(shard: usize, counts: &Arc<Process>) -> Self {
        Self {
            shard,
            requests: Tally::default(),
            number: AtomicU64::new(0),
            open: Mutex::default(),
            errands: Mutex::default(),
            knock: Notify::new(),
            counts: Arc::clone(counts),
        }
    }

    /// A request has come, whatever becomes of it.
    pub fn request(&self) {
        self.requests.add(1);
    }

    /// A request is to be answered, or a WebSocket of this id is open. `route`: its explicit id.
    pub fn arrive(
        self: &Arc<Self>,
        websocket: Option<u128>,
        (peer, tls): (Option<IpAddr>, bool),
        route: &str,
    ) -> Rc<Presence> {
        let id = match websocket {
            Some(id) => Id::WebSocket(id),
            None => Id::Http { shard: self.shard, number: self.number.fetch_add(1, Relaxed) },
        };
        let mut open = self.open.lock();
        let (route, traffic) = match open.routes.get_key_value(route) {
            Some((route, traffic)) => (Arc::clone(route), Arc::clone(traffic)),
            None => {
                let (route, traffic) = (Arc::<str>::from(route), Arc::<Traffic>::default());
                open.routes.insert(Arc::clone(&route), Arc::clone(&traffic));
                (route, traffic)
            }
        };
        drop(open);
        traffic.activity.add(1);
        let who = Arc::new(Who { id, peer, tls, route });
        self.push(Event::Came(Arc::clone(&who)));
        Rc::new(Presence { who, traffic, notes: Arc::clone(self) })
    }

    /// So many holds of this shard have the channel now.
    pub fn subscribers(&self, mode: Mode, channel: &str, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let subscribers = &mut self.open.lock().subscribers[mode as usize];
        if let Some(known) = subscribers.get_mut(channel) {
            *known = count;
        } else if subscribers.len() < MAX_CHANNELS {
            subscribers.insert(channel.into(), count);
        } else {
            self.counts.stats_dropped.add(1);
        }
    }

    /// What is to be done, when there is something.
    pub async fn errands(&self) -> Vec<Errand> {
        self.knock.notified().await;
        std::mem::take(&mut *self.errands.lock())
    }

    fn push(&self, event: Event) {
        let mut open = self.open.lock();
        if open.events.len() < MAX_EVENTS {
            open.events.push(event);
        } else {
            self.counts.stats_dropped.add(1);
        }
    }
}

impl Told {
    /// So many more subscribers have it coming.
    pub fn heard(&self, mode: Mode, receivers: usize) {
        let receivers = u32::try_from(receivers).unwrap_or(u32::MAX);
        self.receivers[mode as usize].fetch_add(receivers, Relaxed);
    }

    pub fn blocks(&self, mode: Mode) -> u64 {
        self.blocks[mode as usize]
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let receivers = self.receivers.each_mut().map(|receivers| *receivers.get_mut());
        if receivers == [0; 3] {
            return;
        }
        let mut items = self.stats.items.lock();
        if items.len() < MAX_EVENTS {
            let channel = std::mem::take(&mut self.channel);
            items.push(ItemNote { channel, id: self.id.take(), receivers, blocks: self.blocks });
        } else {
            self.stats.counts.stats_dropped.add(1);
        }
    }
}

/// Between two looks, a tenth of a second: more than a shard does. Each is some dozens of bytes.
const MAX_EVENTS: usize = 1 << 17;
/// The most channels that are told of a shard.
const MAX_CHANNELS: usize = 1 << 20;
/// Of one shard, which sees to them within milliseconds.
const MAX_ERRANDS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written() {
        for id in [Id::Http { shard: 3, number: 70 }, Id::WebSocket(7), Id::WebSocket(u128::MAX)] {
            assert_eq!(Id::parse(&id.to_string()), Some(id), "{id}");
        }
        for text in ["", "x", "fantail:1", "fantail:01-2", "fantail:1-+2", "7"] {
            assert_eq!(Id::parse(text), None, "{text}");
        }
    }

    #[tokio::test]
    async fn an_errand_is_found_by_one_shard_or_none() {
        let stats = Stats::new(2, 0, &Arc::default());
        let find = async |shard: usize, connection: u128| {
            for errand in stats.shard(shard).errands().await {
                if errand.connection == connection {
                    errand.found.try_send(()).expect("room for one");
                }
            }
        };
        assert!(tokio::join!(stats.refresh(7), find(0, 8), find(1, 7)).0);
        assert!(!tokio::join!(stats.refresh(7), find(0, 8), find(1, 8)).0);
    }

    #[test]
    fn notes_have_a_limit() {
        let counts = Arc::<Process>::default();
        let notes = Arc::new(Notes::new(0, &counts));
        for _ in 0..=MAX_EVENTS / 2 {
            drop(notes.arrive(None, (None, false), ""));
        }
        assert_eq!(notes.open.lock().events.len(), MAX_EVENTS);
        assert_eq!(counts.stats_dropped.get(), 2);
    }

    #[test]
    fn blocks_are_begun_ones_of_the_content_or_the_size() {
        let stats = Stats::new(1, 4, &Arc::default());
        let mut item = Item {
            stream: Some(HttpStream::Send("12345".into())),
            message: Some(WsMessage::Refresh),
            ..Item::default()
        };
        assert_eq!(stats.blocks(&item), [2, 0, 0]);
        item.size = Some(9);
        assert_eq!(stats.blocks(&item), [3, 0, 3]);
    }
}
