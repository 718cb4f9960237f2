//! What becomes of the notes: which connections and subscriptions there are, when they are told again, and the
//! packets that say so (spec 9.11). Knows no socket and no clock: who looks says what time it is.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use tokio::time::Instant;

use super::{
    Event, Id, ItemNote, Mode, Side, Stats, Tally, Traffic, Who,
    packet::{Member, encode},
};
use crate::{channel::ByName, config};

/// The state of all that is watched.
#[derive(Debug)]
pub struct Desk {
    stats: Arc<Stats>,
    config: config::Stats,
    linger: Duration,
    from: String,
    /// A note that somebody has left may be lost: who is not there any more is found to be gone all the same.
    /// With their routes.
    connections: HashMap<Id, (Weak<Who>, Arc<str>)>,
    /// When connections are told again, and when their next minute begins; the oldest first.
    again: VecDeque<(Instant, Id)>,
    minutes: VecDeque<(Instant, Id)>,
    subscriptions: ByName<Key, Subscription>,
    due: VecDeque<(Instant, Key)>,
    lingering: VecDeque<(Instant, Key)>,
    /// Their number has changed since it was told.
    changed: HashSet<Key>,
    settled: Instant,
    routes: HashMap<Arc<str>, Route>,
    reported: Instant,
    received: u64,
    keep_alives: u64,
}

type Key = (Mode, Arc<str>);

#[derive(Debug)]
struct Subscription {
    /// By shard.
    counts: Vec<u32>,
    due: Instant,
    /// Nobody is subscribed, and it is told until then.
    ends: Option<Instant>,
}

#[derive(Debug, Default)]
struct Route {
    open: u64,
    /// The most that were open at once since the last report.
    most: u64,
    minutes: u64,
}

/// What is told in one look, to those who want it.
#[expect(missing_debug_implementations, reason = "lives for one look")]
pub struct Telling<'t> {
    pub wants: &'t dyn Fn(&str) -> bool,
    pub packets: Vec<Bytes>,
}

impl Desk {
    /// `linger`: how long a channel is told to be subscribed after its last long-poll.
    pub fn new(stats: &Arc<Stats>, config: &config::Stats, linger: Duration, now: Instant) -> Self {
        Self {
            received: stats.counts.items_accepted.get(),
            stats: Arc::clone(stats),
            config: config.clone(),
            linger,
            from: format!("fantail_{}", std::process::id()),
            connections: HashMap::new(),
            again: VecDeque::new(),
            minutes: VecDeque::new(),
            subscriptions: ByName::default(),
            due: VecDeque::new(),
            lingering: VecDeque::new(),
            changed: HashSet::new(),
            settled: now,
            routes: HashMap::new(),
            reported: now,
            keep_alives: 0,
        }
    }

    /// Whether a connection is there, as of the last look.
    pub fn has(&self, id: Id) -> bool {
        self.connections.get(&id).is_some_and(|(who, _)| who.strong_count() > 0)
    }

    /// Takes all notes. `keep_alives`: how many were written since the start.
    pub fn look(&mut self, now: Instant, keep_alives: u64, telling: &mut Telling<'_>) {
        let mut requests = 0;
        for shard in 0..self.stats.shards.len() {
            let notes = Arc::clone(&self.stats.shards[shard]);
            requests += notes.requests.take();
            let (events, subscribers) = {
                let mut open = notes.open.lock();
                (std::mem::take(&mut open.events), std::mem::take(&mut open.subscribers))
            };
            for event in events {
                match event {
                    Event::Came(who) => self.came(&who, now, telling),
                    Event::Left(who) => self.left(who.id, telling),
                }
            }
            for (mode, subscribers) in Mode::ALL.into_iter().zip(subscribers) {
                for (channel, count) in subscribers {
                    self.count(shard, (mode, channel.into()), count, now, telling);
                }
            }
        }
        let items = std::mem::take(&mut *self.stats.items.lock());
        items.iter().for_each(|item| self.item(item, telling));
        self.activity(requests, keep_alives, telling);
        self.again(now, telling);
        self.settle(now, telling);
        if now - self.reported >= self.config.report_every {
            self.report(now, telling);
        }
        self.tidy();
        self.stats.connected.set(i64::try_from(self.connections.len()).unwrap_or(i64::MAX));
    }

    /// Forgets when those that have left were to be told again, once there are more of them than others.
    fn tidy(&mut self) {
        let Self { connections, subscriptions, again, minutes, due, lingering, .. } = self;
        for times in [again, minutes] {
            if times.len() > 2 * connections.len() + SLACK {
                times.retain(|(_, id)| connections.contains_key(id));
            }
        }
        if due.len() > 2 * subscriptions.len() + SLACK {
            due.retain(|(due, key)| subscriptions.get(key).is_some_and(|known| known.due == *due));
        }
        if lingering.len() > 2 * subscriptions.len() + SLACK {
            lingering
                .retain(|(ends, key)| subscriptions.get(key).is_some_and(|known| known.ends == Some(*ends)));
        }
    }

    fn came(&mut self, who: &Arc<Who>, now: Instant, telling: &mut Telling<'_>) {
        self.connections.insert(who.id, (Arc::downgrade(who), who.route.clone()));
        self.again.push_back((now + again(self.config.connection_ttl), who.id));
        self.minutes.push_back((now + MINUTE, who.id));
        self.stats.minutes.add(1);
        let route = self.routes.entry(who.route.clone()).or_default();
        route.open += 1;
        route.most = route.most.max(route.open);
        route.minutes += 1;
        self.connection(who, telling);
    }

    fn left(&mut self, id: Id, telling: &mut Telling<'_>) {
        let Some((_, route)) = self.connections.remove(&id) else { return };
        if let Some(route) = self.routes.get_mut(&route) {
            route.open = route.open.saturating_sub(1);
        }
        if self.config.connections {
            let id = id.to_string();
            let mut members = self.members(&route);
            members.extend([("id", Member::from(&*id)), ("unavailable", Member::Truth(true))]);
            self.tell("conn", &members, telling);
        }
    }

    fn connection(&self, who: &Who, telling: &mut Telling<'_>) {
        if !self.config.connections || !(telling.wants)("conn") {
            return;
        }
        let id = who.id.to_string();
        let kind = match who.id {
            Id::Http { .. } => "http",
            Id::WebSocket(_) => "ws",
        };
        let peer = who.peer.map(|peer| peer.to_string());
        let mut members = self.members(&who.route);
        members.extend([("id", Member::from(&*id)), ("type", kind.into())]);
        members.extend(peer.as_deref().map(|peer| ("peer-address", peer.into())));
        members.extend(who.tls.then_some(("ssl", Member::Truth(true))));
        members.push(("ttl", self.config.connection_ttl.as_secs().into()));
        self.tell("conn", &members, telling);
    }

    /// A shard has so many subscribers of a channel.
    fn count(&mut self, shard: usize, key: Key, count: u32, now: Instant, telling: &mut Telling<'_>) {
        let Some(known) = self.subscriptions.get_mut(&key) else {
            if count > 0 {
                let mut counts = vec![0; self.stats.shards.len()];
                counts[shard] = count;
                let due = now + again(self.config.subscription_ttl);
                let subscription = Subscription { counts, due, ends: None };
                self.subscriptions.insert(key.clone(), subscription);
                self.due.push_back((due, key.clone()));
                self.subscription(&key, telling);
            }
            return;
        };
        known.counts[shard] = count;
        let is_empty = known.counts.iter().all(|count| *count == 0);
        if !is_empty {
            known.ends = None;
            self.changed.insert(key);
        } else if key.0 == Mode::Response && !self.linger.is_zero() {
            let ends = now + self.linger;
            known.ends = Some(ends);
            self.lingering.push_back((ends, key));
        } else {
            self.end(&key, telling);
        }
    }

    fn end(&mut self, key: &Key, telling: &mut Telling<'_>) {
        self.subscriptions.remove(key);
        self.changed.remove(key);
        let mut members = self.members("");
        members.extend([("mode", Member::from(mode(key.0))), ("channel", (*key.1).into())]);
        members.push(("unavailable", Member::Truth(true)));
        self.tell("sub", &members, telling);
    }

    fn subscription(&self, key: &Key, telling: &mut Telling<'_>) {
        let Some(subscription) = self.subscriptions.get(key) else { return };
        let subscribers: u64 = subscription.counts.iter().map(|count| u64::from(*count)).sum();
        let mut members = self.members("");
        members.extend([("mode", Member::from(mode(key.0))), ("channel", (*key.1).into())]);
        members.push(("ttl", self.config.subscription_ttl.as_secs().into()));
        members.push(("subscribers", subscribers.into()));
        self.tell("sub", &members, telling);
    }

    fn item(&self, item: &ItemNote, telling: &mut Telling<'_>) {
        for mode in Mode::ALL {
            let (receivers, blocks) = (item.receivers[mode as usize], item.blocks[mode as usize]);
            if receivers == 0 {
                continue;
            }
            let transport = match mode {
                Mode::Stream => "http-stream",
                Mode::Response => "http-response",
                Mode::WebSocket => "ws-message",
            };
            let mut members = self.members("");
            members.push(("channel", (*item.channel).into()));
            members.extend(item.id.as_deref().map(|id| ("item-id", id.into())));
            members.extend([("count", u64::from(receivers).into()), ("transport", transport.into())]);
            members.extend((self.stats.block_bytes > 0).then_some(("blocks", blocks.into())));
            self.tell("message", &members, telling);
        }
    }

    fn activity(&mut self, requests: u64, keep_alives: u64, telling: &mut Telling<'_>) {
        let mut counts: HashMap<Arc<str>, u64> = HashMap::new();
        for notes in &self.stats.shards {
            for (route, traffic) in &notes.open.lock().routes {
                match traffic.activity.take() {
                    0 => {}
                    count => *counts.entry(route.clone()).or_default() += count,
                }
            }
        }
        // Who they went to is not noted.
        let beats = keep_alives.saturating_sub(std::mem::replace(&mut self.keep_alives, keep_alives));
        if beats > 0 {
            *counts.entry("".into()).or_default() += beats;
        }
        for (route, count) in counts {
            let mut members = self.members(&route);
            members.push(("count", count.into()));
            self.tell("activity", &members, telling);
        }
        if requests > 0 {
            let mut members = self.members("");
            members.push(("requests-received", requests.into()));
            self.tell("counts", &members, telling);
        }
    }

    /// What is told again, and the minutes that begin.
    fn again(&mut self, now: Instant, telling: &mut Telling<'_>) {
        while let Some((_, id)) = self.again.pop_front_if(|(due, _)| *due <= now) {
            match self.connections.get(&id).map(|(who, _)| who.upgrade()) {
                Some(Some(who)) => {
                    self.again.push_back((now + again(self.config.connection_ttl), id));
                    self.connection(&who, telling);
                }
                // There was no room to note that.
                Some(None) => self.left(id, telling),
                None => {}
            }
        }
        while let Some((_, id)) = self.minutes.pop_front_if(|(due, _)| *due <= now) {
            let Some(who) = self.connections.get(&id).and_then(|(who, _)| who.upgrade()) else { continue };
            self.minutes.push_back((now + MINUTE, id));
            self.stats.minutes.add(1);
            self.routes.entry(who.route.clone()).or_default().minutes += 1;
        }
        while let Some((due, key)) = self.due.pop_front_if(|(due, _)| *due <= now) {
            let Some(subscription) = self.subscriptions.get_mut(&key).filter(|known| known.due == due) else {
                continue;
            };
            subscription.due = now + again(self.config.subscription_ttl);
            self.due.push_back((subscription.due, key.clone()));
            self.changed.remove(&key);
            self.subscription(&key, telling);
        }
        while let Some((ends, key)) = self.lingering.pop_front_if(|(ends, _)| *ends <= now) {
            if self.subscriptions.get(&key).is_some_and(|known| known.ends == Some(ends)) {
                self.end(&key, telling);
            }
        }
    }

    /// Numbers that have changed are told once a second.
    fn settle(&mut self, now: Instant, telling: &mut Telling<'_>) {
        if now - self.settled >= SETTLE {
            self.settled = now;
            for key in std::mem::take(&mut self.changed) {
                self.subscription(&key, telling);
            }
        }
    }

    fn report(&mut self, now: Instant, telling: &mut Telling<'_>) {
        let duration = u64::try_from((now - self.reported).as_millis()).unwrap_or(u64::MAX);
        self.reported = now;
        let total = self.stats.counts.items_accepted.get();
        let received = total - std::mem::replace(&mut self.received, total);
        let blocks_received = self.stats.blocks_received.take();
        let mut sums: HashMap<Arc<str>, Sums> = HashMap::new();
        for notes in &self.stats.shards {
            notes.open.lock().routes.retain(|route, traffic| {
                let sum = Sums::take(traffic);
                let is_used = Arc::strong_count(traffic) > 1 || sum != Sums::default();
                sums.entry(route.clone()).or_default().add(&sum);
                is_used
            });
        }
        if received > 0 || blocks_received > 0 {
            sums.entry("".into()).or_default();
        }
        for (name, sum) in sums {
            let is_global = name.is_empty();
            let route = self.routes.remove(&name).unwrap_or_default();
            let got = if is_global { received } else { 0 };
            if route.most == 0 && route.minutes == 0 && got == 0 && sum == Sums::default() {
                continue;
            }
            let mut members = self.members(&name);
            members.extend([("connections", route.most.into()), ("minutes", Member::from(route.minutes))]);
            members.extend([("received", got.into()), ("sent", Member::from(sum.sent))]);
            members.push(("http-response-sent", sum.responses_sent.into()));
            if self.stats.block_bytes > 0 {
                let got = if is_global { blocks_received } else { 0 };
                members.extend([("blocks-received", got.into()), ("blocks-sent", sum.blocks_sent.into())]);
            }
            members.push(("duration", duration.into()));
            let names = CLIENT.into_iter().chain(SERVER);
            let counted = sum.client.into_iter().chain(sum.server);
            members.extend(names.zip(counted).map(|(name, count)| (name, count.into())));
            self.tell("report", &members, telling);
            if route.open > 0 {
                self.routes.insert(name, Route { open: route.open, most: route.open, minutes: 0 });
            }
        }
    }

    /// The members that all packets have.
    fn members<'m>(&'m self, route: &'m str) -> Vec<(&'static str, Member<'m>)> {
        let mut members = Vec::with_capacity(8);
        members.push(("from", (&*self.from).into()));
        members.extend((!route.is_empty()).then_some(("route", route.into())));
        members
    }

    fn tell(&self, kind: &str, members: &[(&str, Member<'_>)], telling: &mut Telling<'_>) {
        if (telling.wants)(kind) {
            telling.packets.push(encode(kind, members, self.config.format));
        }
    }
}

/// One route's traffic, all shards together.
#[derive(Debug, Default, Eq, PartialEq)]
struct Sums {
    sent: u64,
    responses_sent: u64,
    blocks_sent: u64,
    /// In the order of [`CLIENT`] and [`SERVER`].
    client: [u64; 6],
    server: [u64; 6],
}

impl Sums {
    fn take(traffic: &Traffic) -> Self {
        let side = |side: &Side| {
            [
                &side.header_received,
                &side.header_sent,
                &side.content_received,
                &side.content_sent,
                &side.messages_received,
                &side.messages_sent,
            ]
            .map(Tally::take)
        };
        Self {
            sent: traffic.sent.take(),
            responses_sent: traffic.responses_sent.take(),
            blocks_sent: traffic.blocks_sent.take(),
            client: side(&traffic.client),
            server: side(&traffic.server),
        }
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.responses_sent += other.responses_sent;
        self.blocks_sent += other.blocks_sent;
        for (own, other) in [(&mut self.client, &other.client), (&mut self.server, &other.server)] {
            own.iter_mut().zip(other).for_each(|(own, other)| *own += other);
        }
    }
}

/// When something is to be told again that is good for so long.
fn again(ttl: Duration) -> Duration {
    ttl / 4 * 3
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Stream => "stream",
        Mode::Response => "response",
        Mode::WebSocket => "ws",
    }
}

const MINUTE: Duration = Duration::from_mins(1);
const SETTLE: Duration = Duration::from_secs(1);
/// Times of those that have left that are not worth a look.
const SLACK: usize = 4096;
const CLIENT: [&str; 6] = [
    "client-header-bytes-received",
    "client-header-bytes-sent",
    "client-content-bytes-received",
    "client-content-bytes-sent",
    "client-messages-received",
    "client-messages-sent",
];
const SERVER: [&str; 6] = [
    "server-header-bytes-received",
    "server-header-bytes-sent",
    "server-content-bytes-received",
    "server-content-bytes-sent",
    "server-messages-received",
    "server-messages-sent",
];

#[cfg(test)]
mod tests {
    use super::*;

    struct Room {
        stats: Arc<Stats>,
        desk: Desk,
        now: Instant,
    }

    impl Room {
        fn new() -> Self {
            let stats = Stats::new(2, 4, &Arc::default());
            let config =
                config::Stats { format: config::StatsFormat::Json, ..config::Config::default().stats };
            let now = Instant::now();
            let desk = Desk::new(&stats, &config, Duration::from_secs(60), now);
            Self { stats, desk, now }
        }

        /// What is told when so many milliseconds have passed, without who tells it.
        fn after(&mut self, ms: u64) -> Vec<String> {
            self.now += Duration::from_millis(ms);
            let mut telling = Telling { wants: &|_| true, packets: Vec::new() };
            self.desk.look(self.now, 0, &mut telling);
            let from = format!(r#""from":"{}","#, self.desk.from);
            let text = |packet: &Bytes| str::from_utf8(packet).unwrap().replace(&from, "");
            telling.packets.iter().map(text).collect()
        }
    }

    #[test]
    fn connections_come_are_told_again_and_leave() {
        let mut room = Room::new();
        let notes = room.stats.shard(0);
        notes.request();
        let peer = (Some("10.0.0.1".parse().unwrap()), true);
        let presence = notes.arrive(None, peer, "r");
        let came = r#"conn J{"id":"fantail:0-0","peer-address":"10.0.0.1","route":"r","ssl":true,"ttl":120,"type":"http"}"#;
        let told = room.after(100);
        assert_eq!(told[0], came);
        assert_eq!(told[1], r#"activity J{"count":1,"route":"r"}"#);
        assert_eq!(told[2..], [r#"counts J{"requests-received":1}"#]);
        assert!(room.desk.has(presence.id()));
        assert!(room.after(89_000).iter().all(|told| !told.starts_with("conn")));
        assert_eq!(room.after(1100)[0], came);
        assert_eq!(room.stats.minutes.get(), 2);
        let id = presence.id();
        drop(presence);
        assert_eq!(room.after(100), [r#"conn J{"id":"fantail:0-0","route":"r","unavailable":true}"#]);
        assert!(!room.desk.has(id));
    }

    #[test]
    fn a_connection_whose_end_was_not_noted_is_found_to_be_gone() {
        let mut room = Room::new();
        drop(room.stats.shard(0).arrive(Some(7), (None, false), ""));
        room.stats.shard(0).open.lock().events.truncate(1);
        assert!(room.after(0)[0].contains(r#""type":"ws""#));
        let told = room.after(90_000);
        assert!(
            told.iter().any(|told| told.starts_with("conn ") && told.contains("unavailable")),
            "{told:?}"
        );
        assert!(room.desk.connections.is_empty());
        assert!(room.desk.routes.get("").is_none_or(|route| route.open == 0));
    }

    /// What comes and goes faster than it is told again leaves nothing behind.
    #[test]
    fn who_has_left_is_forgotten() {
        let mut room = Room::new();
        let notes = room.stats.shard(0);
        let stays = notes.arrive(None, (None, false), "");
        notes.subscribers(Mode::Response, "stays", 1);
        for round in 0..20 {
            for n in 0..SLACK {
                drop(notes.arrive(None, (None, false), ""));
                notes.subscribers(Mode::Stream, &format!("{n}"), 1);
                notes.subscribers(Mode::Response, &format!("{n}"), round % 2);
            }
            room.after(100);
            (0..SLACK).for_each(|n| notes.subscribers(Mode::Stream, &format!("{n}"), 0));
            room.after(100);
        }
        let Desk { again, minutes, due, lingering, .. } = &room.desk;
        for (count, most) in [(again.len(), 2), (minutes.len(), 2), (due.len(), 4), (lingering.len(), 4)] {
            assert!(count <= most * SLACK + 2 * SLACK, "{count}");
        }
        let told = room.after(90_000);
        let told = |part: &str| told.iter().any(|told| told.contains(part));
        assert!(told(&stays.id().to_string()) && told(r#""channel":"stays""#));
    }

    #[test]
    fn subscriptions_add_up_over_shards_and_linger_after_polls() {
        let mut room = Room::new();
        let (one, two) = (room.stats.shard(0), room.stats.shard(1));
        one.subscribers(Mode::Response, "a", 1);
        one.subscribers(Mode::Stream, "a", 1);
        let told = |mode: &str, count: u64| {
            format!(r#"sub J{{"channel":"a","mode":"{mode}","subscribers":{count},"ttl":60}}"#)
        };
        let look = |room: &mut Room, ms| {
            let mut told = room.after(ms);
            told.retain(|told| told.starts_with("sub"));
            told.sort();
            told
        };
        assert_eq!(look(&mut room, 100), [told("response", 1), told("stream", 1)]);
        two.subscribers(Mode::Stream, "a", 2);
        assert!(look(&mut room, 100).is_empty(), "within a second");
        assert_eq!(look(&mut room, 1000), [told("stream", 3)]);
        one.subscribers(Mode::Stream, "a", 0);
        two.subscribers(Mode::Stream, "a", 0);
        one.subscribers(Mode::Response, "a", 0);
        let gone = |mode: &str| format!(r#"sub J{{"channel":"a","mode":"{mode}","unavailable":true}}"#);
        assert_eq!(look(&mut room, 100), [gone("stream")]);
        assert_eq!(look(&mut room, 45_000), [told("response", 0)]);
        assert_eq!(look(&mut room, 20_000), [gone("response")]);
        assert!(look(&mut room, 200_000).is_empty() && room.desk.subscriptions.is_empty());
    }

    #[test]
    fn items_are_told_by_transport() {
        use fantail_proto::item::{HttpStream, Item};
        let mut room = Room::new();
        let stream = Some(HttpStream::Send("12345".into()));
        let item = Item { channel: "c".into(), id: Some("7".into()), stream, ..Item::default() };
        let told = room.stats.accept(&item);
        told.heard(Mode::Stream, 2);
        told.heard(Mode::Stream, 1);
        assert!(room.after(0).is_empty());
        drop(told);
        drop(room.stats.accept(&item));
        assert_eq!(
            room.after(100),
            [r#"message J{"blocks":2,"channel":"c","count":3,"item-id":"7","transport":"http-stream"}"#]
        );
    }

    #[test]
    fn routes_that_are_idle_are_not_reported() {
        let mut room = Room::new();
        let presence = room.stats.shard(0).arrive(None, (None, false), "r");
        presence.traffic().client.content_sent.add(5);
        presence.traffic().sent.add(2);
        let report = |room: &mut Room| {
            let told = room.after(10_000);
            told.into_iter().filter(|told| told.starts_with("report")).collect::<Vec<_>>()
        };
        let [first] = &report(&mut room)[..] else { panic!("one report") };
        for member in
            [r#""connections":1"#, r#""minutes":1"#, r#""sent":2"#, r#""client-content-bytes-sent":5"#]
        {
            assert!(first.contains(member), "{member} is not in {first}");
        }
        let [second] = &report(&mut room)[..] else { panic!("one report") };
        assert!(second.contains(r#""connections":1"#) && second.contains(r#""sent":0"#), "{second}");
        drop(presence);
        // It was there in this time, too.
        assert_eq!(report(&mut room).len(), 1);
        assert!(report(&mut room).is_empty());
        assert_eq!(room.stats.shard(0).open.lock().routes.len(), 0);
    }
}
