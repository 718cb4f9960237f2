//! Clients that stop and go on reading while items are published: what they get is what their channels or their routes
//! say, whatever comes when.

use fantail_proto::log::{Durability, Limits, Pattern, Start};
use rustix::net::sockopt::set_socket_send_buffer_size;

use super::*;
use crate::{
    config::Storage,
    hold::{Far, Opened, Speech},
};

/// A channel: what it says of slow clients, and how many items its log keeps, if it has one.
#[derive(Clone, Copy, Debug)]
struct Kind {
    says: Option<Slow>,
    log: Option<usize>,
}

impl Kind {
    /// What a client of a route gets.
    fn policy(self, own: Slow) -> Slow {
        match self.says.filter(|_| self.log.is_some()).unwrap_or(own) {
            Slow::Repair if self.log.is_none() => Slow::Close,
            slow => slow,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Happens {
    /// So many items of so many bytes, at once.
    Publish { channel: usize, items: usize, len: usize },
    /// The client reads at most so much.
    Read(usize),
    /// The channels say something else from now on.
    Reload([Option<Slow>; 2]),
}

struct Run {
    shard: Shard,
    client: UnixStream,
    websocket: bool,
    got: Vec<u8>,
    ended: bool,
    published: [u32; 2],
    /// Items that were for nobody.
    unheard: u64,
}

impl Run {
    fn new(own: Slow, kinds: [Kind; 2], websocket: bool, fan_out: FanOut) -> Self {
        let mut shard = Shard::with(fan_out, &logs(kinds), |config| config.client.queue_bytes = QUEUE_BYTES);
        let who = Subscriber { channels: vec![(0, false), (1, false)] };
        let asked = Asked { slow: own, ..who.asked() };
        let (ours, client) = UnixStream::pair().unwrap();
        set_socket_send_buffer_size(&ours, 4096).unwrap();
        client.set_nonblocking(true).unwrap();
        let (place, ours) = (shard.client(), OwnedFd::from(ours));
        if websocket {
            let (far, speech) = (Far::Echo, Speech::WebSocket);
            let (head, actions) = (Bytes::new(), Vec::new());
            let opened = Opened { far, grip: None, head, window: None, debug: false, actions, speech };
            let id = shard.holds.reserve_websocket(asked, opened).unwrap();
            shard.holds.attach_websocket(id, ours.into(), place, Vec::new());
        } else {
            let id = shard.holds.reserve_stream(asked, Form::Plain, false).unwrap();
            shard.holds.attach_stream(id, ours, place, Vec::new(), None);
        }
        Self { shard, client, websocket, got: Vec::new(), ended: false, published: [0; 2], unheard: 0 }
    }

    fn publish(&mut self, channel: usize, items: usize, len: usize) {
        let first = self.published[channel];
        self.published[channel] += items as u32;
        let items = (first..self.published[channel]).map(|number| {
            let content = Bytes::from(format!("<{channel}:{number}:{}>", "x".repeat(len)));
            let message = Some(WsMessage::Send { kind: WsKind::Text, content: content.clone() });
            let stream = Some(HttpStream::Send(content));
            Item { channel: channel.to_string(), stream, message, ..Item::default() }
        });
        let answer = self.shard.hub.publish(RealmId(0), items.collect(), true).unwrap().receipts.unwrap();
        self.shard.deliver(|_| {});
        for receipt in waited(answer.wait()).unwrap() {
            let Receipt { delivered, queued, left_to_log, dropped_gone, dropped_overflow, .. } = receipt;
            let total = delivered + queued + left_to_log + dropped_gone + dropped_overflow;
            assert!(total <= 1, "{receipt:?}");
            assert!(receipt.passed_over <= 1 && (receipt.passed_over == 0 || queued == 1), "{receipt:?}");
            self.unheard += u64::from(total == 0);
        }
    }

    /// The channels that have a log say this of slow clients.
    fn reload(&self, kinds: [Kind; 2], says: [Option<Slow>; 2]) {
        let kinds = [Kind { says: says[0], ..kinds[0] }, Kind { says: says[1], ..kinds[1] }];
        self.shard.hub.log().configure(&logs(kinds), |_| Some(RealmId(0))).unwrap();
    }

    fn read(&mut self, mut most: usize) -> bool {
        let before = self.got.len();
        while most > 0 && !self.ended {
            let mut buffer = vec![0; most.min(4096)];
            match self.client.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(read) => {
                    self.got.extend_from_slice(&buffer[..read]);
                    most -= read;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.ended = true,
            }
        }
        self.got.len() > before
    }

    /// What the shard's loop does.
    fn turn(&mut self) -> bool {
        let more = self.shard.holds.turn().unwrap();
        self.shard.holds.expire();
        drop(self.shard.holds.onward().collect::<Vec<_>>());
        more
    }

    fn finish(&mut self) {
        let mut idle = 0;
        while idle < 3 {
            let (read, turned) = (self.read(usize::MAX), self.turn());
            idle = if read || turned { 0 } else { idle + 1 };
        }
        if self.websocket {
            // A close frame of ours is the end.
            self.ended |= self.got.windows(2).any(|bytes| bytes == [0x88, 2]);
        }
    }

    /// The numbers of the items of a channel that came whole.
    fn numbers(&self, channel: usize) -> Vec<u32> {
        let text = String::from_utf8_lossy(&self.got);
        let items = text.split('<').filter_map(|item| item.split_once('>')?.0.split_once(':'));
        let items = items.filter(|(of, _)| *of == channel.to_string());
        items.map(|(_, rest)| rest.split_once(':').unwrap().0.parse().unwrap()).collect()
    }
}

fn logs(kinds: [Kind; 2]) -> Vec<config::Log> {
    let rule = |(channel, kind): (usize, &Kind)| {
        let (name, items) = (channel.to_string(), kind.log?);
        Some(config::Log {
            pattern: Pattern::new(&name),
            text: name,
            realm: "default".into(),
            limits: Limits { items, bytes: 1 << 30, age_s: 600 },
            total_bytes: 1 << 30,
            storage: Storage::Memory,
            durability: Durability::Accepted,
            slow: kind.says,
        })
    };
    kinds.iter().enumerate().filter_map(rule).collect()
}

fn kind() -> impl Strategy<Value = Kind> {
    let says = prop::option::of(prop::sample::select(&Slow::ALL[..]));
    let log = prop::option::weighted(0.8, prop_oneof![Just(5_usize), Just(1000)]);
    (says, log).prop_map(|(says, log)| Kind { says, log })
}

fn happenings() -> impl Strategy<Value = Vec<Happens>> {
    let publish = (0..2_usize, 1..6_usize, 1..1000_usize)
        .prop_map(|(channel, items, len)| Happens::Publish { channel, items, len });
    let read = (1..8000_usize).prop_map(Happens::Read);
    prop::collection::vec(prop_oneof![3 => publish, 1 => read], 1..80)
}

fn happenings_with_reloads() -> impl Strategy<Value = Vec<Happens>> {
    let says = || prop::option::of(prop::sample::select(&Slow::ALL[..]));
    let reload = (says(), says()).prop_map(|(a, b)| Happens::Reload([a, b]));
    let mixed = (happenings(), prop::collection::vec((any::<prop::sample::Index>(), reload), 0..8));
    mixed.prop_map(|(mut happenings, reloads)| {
        reloads.into_iter().for_each(|(at, reload)| happenings.insert(at.index(happenings.len()), reload));
        happenings
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn a_slow_client_has_no_hole_but_by_choice(
        own in prop::sample::select(&Slow::ALL[..]),
        kinds in [kind(), kind()],
        websocket in any::<bool>(),
        uring in any::<bool>(),
        happenings in happenings(),
    ) {
        let uring = uring && fantail_pin::io_uring_available();
        let fan_out = if uring { FanOut::IoUring } else { FanOut::Send };
        let mut run = Run::new(own, kinds, websocket, fan_out);
        for happens in happenings {
            match happens {
                Happens::Publish { channel, items, len } => run.publish(channel, items, len),
                Happens::Read(most) => {
                    run.read(most);
                    run.turn();
                }
                Happens::Reload(_) => {}
            }
        }
        run.finish();
        prop_assert!(run.ended || run.unheard == 0);
        let policies = kinds.map(|kind| kind.policy(own));
        for (channel, policy) in policies.into_iter().enumerate() {
            let (got, all) = (run.numbers(channel), run.published[channel]);
            if policy == Slow::Newest {
                prop_assert!(got.is_sorted_by(|a, b| a < b), "{:?}", got);
                prop_assert!(run.ended || got.last().copied() == all.checked_sub(1), "{:?} of {}", got, all);
            } else {
                prop_assert_eq!(&got, &(0..got.len() as u32).collect::<Vec<_>>());
                prop_assert!(run.ended || got.len() as u32 == all, "{:?} of {}", got, all);
            }
        }
        let lasts = |(kind, policy): (&Kind, &Slow)| match policy {
            Slow::Close => false,
            Slow::Repair => kind.log.is_some_and(|items| items >= 1000),
            Slow::Newest => true,
        };
        if kinds.iter().zip(&policies).all(lasts) {
            prop_assert!(!run.ended, "nothing ends such a client");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever the channels come to say of slow clients, what such a client gets is in order, and ends with the newest.
    #[test]
    fn a_change_of_mind_keeps_the_order(
        own in prop::sample::select(&Slow::ALL[..]),
        kinds in [kind(), kind()],
        websocket in any::<bool>(),
        happenings in happenings_with_reloads(),
    ) {
        let mut run = Run::new(own, kinds, websocket, FanOut::Send);
        for happens in happenings {
            match happens {
                Happens::Publish { channel, items, len } => run.publish(channel, items, len),
                Happens::Read(most) => {
                    run.read(most);
                    run.turn();
                }
                Happens::Reload(says) => run.reload(kinds, says),
            }
        }
        run.finish();
        for channel in 0..2 {
            let (got, all) = (run.numbers(channel), run.published[channel]);
            prop_assert!(got.is_sorted_by(|a, b| a < b), "{:?}", got);
            prop_assert!(run.ended || got.last().copied() == all.checked_sub(1), "{:?} of {}", got, all);
        }
    }
}

/// A client that is found to be gone while its log is read on is let go at once.
#[test]
fn a_client_that_is_gone_is_let_go() {
    let mut shard = Shard::with(FanOut::Send, &logs([Kind { says: None, log: Some(1000) }; 2]), |_| {});
    for n in 0..600 {
        let stream = Some(HttpStream::Send(Bytes::from(n.to_string())));
        let item = Item { channel: "0".into(), stream, ..Item::default() };
        shard.hub.publish(RealmId(0), vec![item], false).unwrap();
    }
    let mut asked = Subscriber { channels: vec![(0, false)] }.asked();
    asked.subscriptions[0].late = Some(Start::Last(600));
    let (ours, client) = UnixStream::pair().unwrap();
    let id = shard.holds.reserve_stream(asked, Form::Plain, false).unwrap();
    let place = shard.client();
    shard.holds.attach_stream(id, OwnedFd::from(ours), place, Vec::new(), None);
    shard.holds.turn().unwrap();
    assert!(shard.holds.is_filling(), "there is more to read");
    drop(client);
    shard.holds.expire();
    assert_eq!(shard.holds.len(), 0);
}

/// What was kept as the newest comes before what follows it when all is wanted again.
#[test]
fn what_was_kept_is_not_passed() {
    for (websocket, says) in
        [(false, Slow::Close), (true, Slow::Close), (false, Slow::Repair), (true, Slow::Repair)]
    {
        let kinds = [Kind { says: Some(Slow::Newest), log: Some(1000) }; 2];
        let mut run = Run::new(Slow::Close, kinds, websocket, FanOut::Send);
        for _ in 0..20 {
            run.publish(0, 1, 2000);
        }
        run.reload(kinds, [Some(says), Some(Slow::Newest)]);
        run.publish(0, 2, 10);
        run.finish();
        let got = run.numbers(0);
        assert!(got.len() < 15 && got.ends_with(&[19, 20, 21]) && !run.ended, "{got:?}");
    }
}

/// One that wants the newest gets what was the newest when it is closed, and no more.
#[test]
fn the_newest_item_comes_before_an_end() {
    for websocket in [false, true] {
        let kinds = [Kind { says: None, log: None }; 2];
        let mut run = Run::new(Slow::Newest, kinds, websocket, FanOut::Send);
        for _ in 0..20 {
            run.publish(0, 1, 2000);
        }
        run.publish(1, 1, 10);
        let message = Some(WsMessage::Close { code: None, reason: String::new() });
        let item = Item { channel: "0".into(), stream: Some(HttpStream::Close), message, ..Item::default() };
        run.shard.hub.publish(RealmId(0), vec![item], false).unwrap();
        run.shard.deliver(|_| {});
        run.finish();
        let got = run.numbers(0);
        assert!(got.len() < 15 && got.ends_with(&[19]) && run.ended, "{got:?}");
        assert_eq!(run.numbers(1), [0]);
    }
}

const QUEUE_BYTES: usize = 20_000;
