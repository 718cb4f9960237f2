//! Batches over Unix pairs, against what a subscriber would work out for itself.

use std::{
    io::{ErrorKind, Read},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use fantail_pin::{FanOut, Form};
use fantail_proto::{
    filter::Filter,
    grip::Reply,
    item::{HttpResponse, HttpStream, Item, Response, ResponseBody, WsKind, WsMessage},
    slow::Slow,
};
use proptest::prelude::*;

use super::*;
use crate::{
    client::{Client, Connections, Crowd},
    config,
    hold::{Asked, Poll, Shape, Subscription},
    hub::{Hub, RealmId},
    log::Log,
    metrics::Counters,
};

mod slow;

struct Shard {
    hub: Arc<Hub>,
    holds: Holds,
    connections: Rc<Connections>,
}

impl Shard {
    fn new() -> Self {
        Self::with(FanOut::Send, &[], |_| {})
    }

    fn with(fan_out: FanOut, logs: &[config::Log], change: impl FnOnce(&mut config::Config)) -> Self {
        let (id_ttl, order_wait, linger) = (Duration::from_mins(1), Duration::from_secs(5), Duration::ZERO);
        let config = config::Hub {
            id_ttl,
            ids: 10,
            order_wait,
            linger,
            mailbox_items: 1000,
            id_bytes: 1024,
            meta_bytes: 8192,
        };
        let log = Log::new(None, Arc::default());
        log.configure(logs, |_| Some(RealmId(0))).unwrap();
        let hub = Arc::new(Hub::with_log(1, &config, Arc::new(log)));
        let counters = Arc::new(Counters::default());
        let mut config = config::Config::default();
        change(&mut config);
        let holds = Holds::new(Arc::clone(&hub), 0, fan_out, &config, Arc::clone(&counters)).unwrap();
        let connections = Connections::new(Crowd::new(usize::MAX, 0), counters);
        Self { hub, holds, connections }
    }

    fn client(&self) -> Client {
        self.connections.take(None).unwrap()
    }

    fn stream(&mut self, who: &Subscriber) -> (PinId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = self.holds.reserve_stream(who.asked(), Form::Plain, false).unwrap();
        let client = self.client();
        self.holds.attach_stream(id, OwnedFd::from(ours), client, Vec::new(), None);
        theirs.set_nonblocking(true).unwrap();
        (id, theirs)
    }

    /// A stream whose client reads beside all others, until it has had 100 kB.
    fn reader(&mut self, asked: Asked) -> std::thread::JoinHandle<Vec<u8>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let id = self.holds.reserve_stream(asked, Form::Plain, false).unwrap();
        let client = self.client();
        self.holds.attach_stream(id, OwnedFd::from(ours), client, Vec::new(), None);
        std::thread::spawn(move || {
            let mut got = vec![0; 100_000];
            theirs.read_exact(&mut got).unwrap();
            got
        })
    }

    fn poll(&mut self, who: &Subscriber) -> (PinId, UnixStream) {
        self.poll_with(who, Bytes::new())
    }

    fn poll_with(&mut self, who: &Subscriber, body: Bytes) -> (PinId, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let reply = Reply { code: 200, reason: "OK".into(), headers: http::HeaderMap::new(), body };
        let shape = Shape { http11: true, head: false, keep_alive: false };
        let poll = Poll {
            reply,
            request: Vec::new(),
            unread: Vec::new(),
            shape,
            answered: false,
            due: false,
            missed: Vec::new(),
            doubts: 0,
            cors: None,
            jsonp: None,
        };
        let id = self.holds.reserve_poll(who.asked(), poll).unwrap();
        let client = self.client();
        self.holds.attach_poll(id, OwnedFd::from(ours), client, Vec::new(), 60_000);
        theirs.set_nonblocking(true).unwrap();
        (id, theirs)
    }

    /// Takes the mail and delivers it. Between two steps, `meanwhile`. Returns the number of steps.
    fn deliver(&mut self, mut meanwhile: impl FnMut(&mut Holds)) -> usize {
        self.hub.take(0, self.holds.batch());
        self.holds.begin();
        let mut steps = 1;
        while self.holds.step() {
            meanwhile(&mut self.holds);
            steps += 1;
        }
        steps
    }
}

/// Channels are 0 to 3; with a filter, the item that says `skip_users: u` does not come.
#[derive(Clone, Debug)]
struct Subscriber {
    channels: Vec<(u8, bool)>,
}

impl Subscriber {
    fn asked(&self) -> Asked {
        let subscription = |(channel, filtered): &(u8, bool)| Subscription {
            channel: channel.to_string(),
            filters: if *filtered { vec![Filter::SkipUsers] } else { Vec::new() },
            prev_id: None,
            late: None,
        };
        Asked {
            begin: Bytes::new(),
            presence: None,
            realm: RealmId(0),
            subscriptions: self.channels.iter().map(subscription).collect(),
            meta: vec![("user".into(), "u".into())],
            prefix: String::new(),
            uri: None,
            debug: false,
            next: None,
            continues: false,
            gone: None,
            trail: None,
            session: None,
            events: false,
            slow: Slow::default(),
            again: None,
        }
    }

    /// Whether it gets an item, or why not.
    fn gets(&self, item: &Published) -> Gets {
        match self.channels.iter().find(|(channel, _)| *channel == item.channel) {
            None => Gets::NotItsChannel,
            Some((_, true)) if item.skip => Gets::Filtered,
            Some(_) => Gets::Yes,
        }
    }
}

/// Patching large bodies takes time, and the shard's other work comes between.
#[test]
fn patches_are_paid_for() {
    let mut shard = Shard::new();
    let body = Bytes::from(format!("{{\"a\":\"{}\"}}", "x".repeat(100_000)));
    let who = Subscriber { channels: vec![(0, false)] };
    let clients: Vec<_> = (0..20).map(|_| shard.poll_with(&who, body.clone())).collect();
    let patch =
        r#"{"items":[{"channel":"0","http-response":{"body-patch":[{"op":"add","path":"/b","value":1}]}}]}"#;
    let items = fantail_proto::item::decode(patch.as_bytes(), None).unwrap();
    shard.hub.publish(RealmId(0), items, false).unwrap();
    let steps = shard.deliver(|_| {});
    assert!(steps >= clients.len() / 2, "{steps}");
    for (_, mut client) in clients {
        let mut got = [0; 12];
        client.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"HTTP/1.1 200");
    }
}

/// For a crowd of whom everybody gets something else, what filters make is written in pieces.
#[test]
fn what_filters_make_is_not_kept_for_all() {
    const CROWD: usize = 200;
    let content = format!("%(user)s{}", "x".repeat(100_000));
    let mut shard = Shard::new();
    let clients: Vec<_> = (0..CROWD)
        .map(|n| {
            let mut asked = Subscriber { channels: vec![(0, true)] }.asked();
            asked.subscriptions[0].filters = vec![Filter::VarSubst];
            asked.meta = vec![("user".into(), n.to_string())];
            shard.reader(asked)
        })
        .collect();
    let item =
        Item { channel: "0".into(), stream: Some(HttpStream::Send(content.into())), ..Item::default() };
    shard.hub.publish(RealmId(0), vec![item], false).unwrap();
    let mut most = 0;
    shard.deliver(|holds| most = most.max(holds.work.made));
    assert!((MADE_BYTES / 2..MADE_BYTES * 5 / 4).contains(&most), "{most}");
    for (n, client) in clients.into_iter().enumerate() {
        let got = client.join().unwrap();
        assert!(got.windows(8).any(|part| part.starts_with(format!("{n}xxx").as_bytes())), "{n}");
    }
}

#[derive(Debug, PartialEq)]
enum Gets {
    Yes,
    Filtered,
    NotItsChannel,
}

#[derive(Clone, Debug)]
struct Published {
    channel: u8,
    skip: bool,
    close: bool,
}

impl Published {
    fn item(&self, number: usize) -> Item {
        let content = Bytes::from(format!("[{number}]"));
        Item {
            channel: self.channel.to_string(),
            meta: if self.skip { vec![("skip_users".into(), "u".into())] } else { Vec::new() },
            stream: Some(if self.close { HttpStream::Close } else { HttpStream::Send(content.clone()) }),
            response: Some(HttpResponse::Send(Response {
                code: 200,
                reason: "OK".into(),
                body: ResponseBody::Whole(content),
                headers: Vec::new(),
                expose: None,
            })),
            ..Item::default()
        }
    }
}

fn read(client: &mut UnixStream) -> String {
    let mut got = Vec::new();
    match client.read_to_end(&mut got) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    String::from_utf8(got).unwrap()
}

/// What a stream of `who` reads, and into `receipts` what it adds to them.
fn stream_of(who: &Subscriber, items: &[Published], receipts: &mut [Receipt]) -> String {
    let mut text = String::new();
    let mut ended = false;
    for (number, item) in items.iter().enumerate() {
        match who.gets(item) {
            Gets::Yes if !ended => {
                receipts[number].delivered += 1;
                ended = item.close;
                if !ended {
                    text.push_str(&format!("[{number}]"));
                }
            }
            Gets::Filtered => receipts[number].filtered += 1,
            Gets::Yes | Gets::NotItsChannel => {}
        }
    }
    text
}

fn poll_of(who: &Subscriber, items: &[Published], receipts: &mut [Receipt]) -> String {
    for (number, item) in items.iter().enumerate() {
        match who.gets(item) {
            Gets::Yes => {
                receipts[number].delivered += 1;
                return format!("[{number}]");
            }
            Gets::Filtered => receipts[number].filtered += 1,
            Gets::NotItsChannel => {}
        }
    }
    String::new()
}

fn subscribers(most: usize) -> impl Strategy<Value = Vec<Subscriber>> {
    let channels = proptest::collection::btree_map(0..4u8, any::<bool>(), 1..4);
    let one = channels.prop_map(|channels| Subscriber { channels: channels.into_iter().collect() });
    proptest::collection::vec(one, 0..most)
}

fn items() -> impl Strategy<Value = Vec<Published>> {
    let one = (0..5u8, any::<bool>(), proptest::bool::weighted(0.1))
        .prop_map(|(channel, skip, close)| Published { channel, skip, close });
    proptest::collection::vec(one, 1..12)
}

fn waited<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_gets_its_items_in_the_hubs_order_and_receipts_add_up(
        streams in subscribers(40),
        polls in subscribers(20),
        items in items(),
    ) {
        let mut shard = Shard::new();
        let stream_clients: Vec<_> = streams.iter().map(|who| shard.stream(who)).collect();
        let poll_clients: Vec<_> = polls.iter().map(|who| shard.poll(who)).collect();
        let published = items.iter().enumerate().map(|(number, item)| item.item(number)).collect();
        let receipts = shard.hub.publish(RealmId(0), published, true).unwrap().receipts.unwrap();
        shard.deliver(|_| {});
        let mut wanted = vec![Receipt::default(); items.len()];
        for (who, (_, mut client)) in streams.iter().zip(stream_clients) {
            prop_assert_eq!(read(&mut client), stream_of(who, &items, &mut wanted));
        }
        for (who, (_, mut client)) in polls.iter().zip(poll_clients) {
            let body = poll_of(who, &items, &mut wanted);
            let answer = read(&mut client);
            prop_assert_eq!(answer.rsplit("\r\n").next().unwrap_or_default(), body);
        }
        prop_assert_eq!(waited(receipts.wait()).unwrap(), wanted);
    }
}

/// Sorting yields as writing does, and who leaves meanwhile is counted and nobody else is touched.
#[test]
fn a_batch_for_sorted_streams_is_cut_into_chunks() {
    let mut shard = Shard::new();
    let count = 3 * CHUNK;
    let who = Subscriber { channels: vec![(0, true), (1, false)] };
    let mut clients: Vec<_> = (0..count).map(|_| shard.stream(&who)).collect();
    let item = Published { channel: 0, skip: false, close: false };
    let accepted = shard.hub.publish(RealmId(0), vec![item.item(7)], true).unwrap();
    let mut leaving: Vec<PinId> = [0, 1, count - 1].map(|place| clients[place].0).into();
    let steps = shard.deliver(|holds| leaving.drain(..).for_each(|id| holds.abandon(id)));
    assert!(steps >= 6, "{steps} steps for sorting and writing {count} streams by {CHUNK}");
    let receipt = waited(accepted.receipts.unwrap().wait()).unwrap()[0];
    assert_eq!((receipt.delivered, receipt.dropped_gone), (count as u64 - 3, 3));
    for (place, (_, client)) in clients.iter_mut().enumerate() {
        let wanted = if [0, 1, count - 1].contains(&place) { "" } else { "[7]" };
        assert_eq!(read(client), wanted);
    }
}

/// It is on the lists of both channels, whatever it has left since these were made.
#[test]
fn who_leaves_a_channel_while_a_batch_is_sorted_gets_the_other_once() {
    let mut shard = Shard::new();
    let (id, mut client) = shard.stream(&Subscriber { channels: vec![(0, true), (1, true)] });
    // Sorted before it, so that there is time to leave.
    let crowd = Subscriber { channels: vec![(1, true)] };
    let crowd: Vec<_> = (0..2 * CHUNK).map(|_| shard.stream(&crowd)).collect();
    let items = [0, 1].map(|channel| Published { channel, skip: false, close: false }.item(channel.into()));
    let accepted = shard.hub.publish(RealmId(0), items.into(), true).unwrap();
    let mut leaving = Some(id);
    shard.deliver(|holds| leaving.take().into_iter().for_each(|id| holds.leave(id, 0)));
    assert_eq!(read(&mut client), "[1]");
    let receipts = waited(accepted.receipts.unwrap().wait()).unwrap();
    assert_eq!(receipts[1].delivered, crowd.len() as u64 + 1);
}
