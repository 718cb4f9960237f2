//! What waits for the XMPP server: answers and items in turn, items of all realms in turn, each of which is copied for its
//! subscribers only when the server takes it. Owns the limits of waiting, and what is read of logs in place of items that
//! could not wait; writes no socket.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use fantail_proto::{
    item::Item,
    log::{Place, Start},
    render::Rendered,
    xmpp::{jid::Jid, pubsub, stanza::Stanza},
};
use hashbrown::HashMap;
use tokio::{sync::Notify, time::Instant};

use super::{
    TARGET,
    answers::Answers,
    copies::{Line, Name, WIRE_BYTES, Waiting, World},
    gaps::{Fate, Gaps},
    places::BEGINNING,
    questions::Questions,
    subscribers::Subscribers,
    window::{Blame, Draft, Silence, Window},
};
use crate::{
    config,
    hub::{Delivery, RealmId, Receipt},
    metrics::Process,
};

#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) answers: Answers,
    /// What is made now begins with answers, the next with items.
    answers_turn: bool,
    lines: HashMap<RealmId, Line>,
    /// Realms with something to copy.
    turns: VecDeque<RealmId>,
    /// Of all lines, until the last copy is made.
    items: usize,
    item_bytes: usize,
    /// What was read of logs for all lines, in bytes, until the last copy is made.
    read_bytes: usize,
    pub(super) gaps: Gaps,
    pub(super) questions: Questions,
    /// The server takes what is written.
    joined: bool,
    /// What was made, and the server has not read yet.
    window: Window,
    /// Items that have ended two streams: the last of them.
    given_up: VecDeque<Name>,
    /// Items that were ever taken.
    taken: u64,
    /// How many items, and their bytes: in all, and of one realm.
    limits: [(usize, usize); 2],
    stanza_bytes: usize,
    domain: String,
    counts: Arc<Process>,
    ready: Arc<Notify>,
}

/// The server takes bytes and reads none.
#[derive(Debug)]
pub(super) struct Hung;

impl Outbox {
    pub(super) fn new(config: &config::Xmpp, counts: Arc<Process>) -> Self {
        Self {
            answers: Answers::new(config.sender_bytes),
            answers_turn: false,
            lines: HashMap::new(),
            turns: VecDeque::new(),
            items: 0,
            item_bytes: 0,
            read_bytes: 0,
            gaps: Gaps::new(config.absences, config.realm_absences),
            questions: Questions::default(),
            joined: false,
            window: Window::new(config.unacknowledged_bytes),
            given_up: VecDeque::new(),
            taken: 0,
            limits: [
                (config.queue_items, config.queue_bytes),
                (config.realm_queue_items, config.realm_queue_bytes),
            ],
            stanza_bytes: config.stanza_bytes,
            domain: config.domain.to_string(),
            counts,
            ready: Arc::new(Notify::new()),
        }
    }

    /// Notified when there is something to write.
    pub(super) fn ready(&self) -> Arc<Notify> {
        Arc::clone(&self.ready)
    }

    /// The server takes what is written from now on.
    pub(super) fn join(&mut self) {
        self.joined = true;
        self.window.join();
        self.gaps.resume();
    }

    /// The server is away, or this process ends. What waits and is in a log need not wait.
    pub(super) fn part(&mut self) {
        self.joined = false;
        self.window.part();
        self.release(0);
        for line in self.lines.values_mut() {
            for waiting in std::mem::take(&mut line.items) {
                match waiting.place {
                    Some(place) => {
                        self.items -= 1;
                        self.item_bytes -= waiting.weight;
                        line.bytes -= waiting.weight;
                        self.gaps.miss((waiting.realm, &waiting.channel), place, true);
                    }
                    None => line.items.push_back(waiting),
                }
            }
        }
        self.count();
    }

    /// An entity may be there again.
    pub(super) fn heard(&mut self, from: &Jid) {
        self.gaps.heard(from);
        if self.gaps.has_turns() {
            self.ready.notify_one();
        }
    }

    /// The presence of a bare address is wanted from now on, or not any more.
    pub(super) fn want(&mut self, bare: &str, wanted: bool) {
        self.questions.want(bare, wanted);
        self.ready.notify_one();
    }

    /// A stanza that is complete, and to whom it is.
    pub(super) fn answer(&mut self, to: &str, stanza: Vec<u8>) {
        if !self.answers.add(to, stanza) {
            return self.counts.xmpp_dropped.add(1);
        }
        self.ready.notify_one();
    }

    /// Whether the server has not taken all answers yet.
    pub(super) fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// An item for all who want it.
    pub(super) fn deliver(&mut self, delivery: &Delivery, subscribers: &Subscribers, now_ms: u64) {
        let Delivery { realm, channel, item, place, .. } = delivery;
        let (stanzas, nodes) = subscribers.wanted(*realm, channel);
        let wanted = (stanzas > 0, nodes > 0);
        let Some(waiting) = self.waiting((*realm, channel), item, *place, wanted, subscribers) else {
            return self.pass_over((*realm, channel), *place);
        };
        let has = (waiting.stanza.is_some(), waiting.event.is_some());
        let receivers = subscribers.receivers(*realm, channel, has);
        delivery.report(Receipt { queued: receivers.into(), ..Receipt::default() });
        self.ready.notify_one();
        if let Some(place) = place {
            let key = (*realm, &**channel);
            if !self.joined {
                return self.gaps.miss(key, *place, true);
            }
            if self.gaps.foresee(key, *place) == Fate::Log {
                return;
            }
        }
        if !self.make_room(*realm, waiting.weight) {
            return self.lose(&waiting);
        }
        self.items += 1;
        self.taken += 1;
        let number = self.taken;
        self.item_bytes += waiting.weight;
        let line = self.lines.entry(*realm).or_default();
        line.bytes += waiting.weight;
        line.items.push_back(Waiting { since_ms: now_ms, number, ..waiting });
        self.queue_up(*realm);
        self.count();
    }

    /// There is nothing in an item for anybody. While others of the realm wait it is not known to be the next.
    fn pass_over(&mut self, channel: (RealmId, &str), place: Option<Place>) {
        if let Some(place) = place
            && !self.lines.contains_key(&channel.0)
            && self.gaps.foresee(channel, place) == Fate::Give
        {
            self.gaps.hand(channel, place);
        }
    }

    /// Lets go of the oldest items, those of the realm while it has its part, or those of who has most of what is scarce.
    /// False if what is being copied takes all the room.
    fn make_room(&mut self, realm: RealmId, weight: usize) -> bool {
        let [all, own] = self.limits;
        let over = |(items, bytes): (usize, usize), more: (usize, usize)| {
            items > 0 && (items >= more.0 || bytes.saturating_add(weight) > more.1)
        };
        while self.lines.get(&realm).is_some_and(|line| over((line.count(), line.bytes), own)) {
            if !self.let_go(realm) {
                return false;
            }
        }
        while over((self.items, self.item_bytes), all) {
            // The larger of its parts of both, over the same divisor.
            let part = |line: &Line| line.count().saturating_mul(all.1).max(line.bytes.saturating_mul(all.0));
            let some = self.lines.iter().filter(|(_, line)| !line.items.is_empty());
            let most = some.max_by_key(|(_, line)| part(line)).map(|(realm, _)| *realm);
            if !most.is_some_and(|realm| self.let_go(realm)) {
                return false;
            }
        }
        true
    }

    /// The oldest item of a realm waits no more. False if there is none.
    fn let_go(&mut self, realm: RealmId) -> bool {
        let oldest = self.lines.get_mut(&realm).and_then(|line| line.items.pop_front());
        if let Some(oldest) = &oldest {
            self.finish(oldest);
            self.lose(oldest);
        }
        oldest.is_some()
    }

    /// It is the log's to give, or nobody's.
    fn lose(&mut self, waiting: &Waiting) {
        match waiting.place {
            Some(place) => self.gaps.miss((waiting.realm, &waiting.channel), place, !self.joined),
            None => self.counts.xmpp_dropped.add(1),
        }
    }

    /// What waited takes no room any more.
    fn finish(&mut self, waiting: &Waiting) {
        if waiting.old {
            self.read_bytes -= waiting.weight;
            return;
        }
        self.items -= 1;
        self.item_bytes -= waiting.weight;
        if let Some(line) = self.lines.get_mut(&waiting.realm) {
            line.bytes -= waiting.weight;
        }
    }

    fn queue_up(&mut self, realm: RealmId) {
        let line = self.lines.entry(realm).or_default();
        if !std::mem::replace(&mut line.queued, true) {
            self.turns.push_back(realm);
        }
    }

    /// What is to be written now, some [`WIRE_BYTES`]; empty when nothing waits, or nothing of what was looked at is for
    /// anybody who is there: see [`Self::has_turns`]. The same until it is [`Self::written`].
    pub(super) fn wire(&mut self, world: World<'_>) -> Bytes {
        if self.window.is_full() {
            return Bytes::new();
        }
        if let Some(wire) = self.window.next() {
            return wire;
        }
        let mut draft = Draft::default();
        self.gaps.hold();
        self.questions.hold();
        self.answers_turn = !self.answers_turn;
        if self.answers_turn {
            self.write_answers(&mut draft);
        }
        for _ in 0..QUESTIONS {
            if draft.bytes.len() >= WIRE_BYTES {
                break;
            }
            let Some(question) = self.questions.next(&self.domain) else { break };
            self.counts.xmpp_answered.add(1);
            draft.bytes.extend_from_slice(question.as_bytes());
            draft.end(1, None);
        }
        self.copy(&mut draft, world);
        self.write_answers(&mut draft);
        self.count();
        if draft.bytes.is_empty() {
            self.gaps.pass_on();
            self.questions.pass_on();
            return Bytes::new();
        }
        self.window.add(draft)
    }

    fn write_answers(&mut self, draft: &mut Draft) {
        while draft.bytes.len() < WIRE_BYTES {
            let one = draft.bytes.len() + 1;
            let count = self.answers.take(&mut draft.bytes, one);
            if count == 0 {
                break;
            }
            self.counts.xmpp_answered.add(count);
            draft.end(count, None);
        }
    }

    /// Copies for subscribers, until there is enough to be written, or others have to have the thread.
    fn copy(&mut self, draft: &mut Draft, world: World<'_>) {
        self.gaps.realms().into_iter().for_each(|realm| self.queue_up(realm));
        for _ in 0..TURNS {
            if draft.bytes.len() >= WIRE_BYTES {
                break;
            }
            let Some(realm) = self.turns.pop_front() else { break };
            let next = self.next(realm, world);
            let Some(line) = self.lines.get_mut(&realm) else { continue };
            line.queued = false;
            if let Some(mut waiting) = next {
                let before = self.counts.xmpp_delivered.get();
                let all = waiting.copy(&mut draft.bytes, &self.domain, world, &mut self.gaps, &self.counts);
                draft.end(self.counts.xmpp_delivered.get() - before, Some(waiting.name()));
                if all {
                    self.pass(&waiting);
                } else {
                    line.begun = Some(waiting);
                }
            }
            let Some(line) = self.lines.get(&realm) else { continue };
            if !line.is_empty() || self.gaps.has_turn(realm) {
                self.queue_up(realm);
            } else {
                self.lines.remove(&realm);
            }
        }
    }

    /// No more copies are made of it.
    fn pass(&mut self, waiting: &Waiting) {
        self.finish(waiting);
        if let (Some(place), None) = (waiting.place, &waiting.only) {
            self.gaps.hand((waiting.realm, &waiting.channel), place);
        }
    }

    /// Whether [`Self::wire`] has stopped before everything was looked at.
    pub(super) fn has_turns(&self) -> bool {
        !self.turns.is_empty() && !self.window.is_full()
    }

    pub(super) fn written(&mut self) {
        self.counts.xmpp_repeated.add(self.window.written(Instant::now()));
        let believed = self.window.believed();
        self.release(believed);
    }

    /// What the component is to ask itself now, by its name; `flush`: nothing more is written soon. An error if the server does
    /// not read any more.
    pub(super) fn echo(&mut self, flush: bool) -> Result<Option<String>, Hung> {
        let now = Instant::now();
        match self.window.silence(now) {
            Silence::Short => {}
            Silence::Deaf(believed) => {
                tracing::warn!(
                    target: TARGET,
                    "the XMPP server does not bring back what the component sends to itself: what it had not read \
                     when a stream broke, or Fantail ended, is lost"
                );
                self.release(believed);
            }
            Silence::Hung => return Err(Hung),
        }
        Ok(self.window.ask(now, flush))
    }

    /// When to look for the next echo, if nothing else happens.
    pub(super) fn due(&self) -> Instant {
        self.window.due(Instant::now())
    }

    /// The server has brought back an echo.
    pub(super) fn acknowledge(&mut self, id: &str) {
        let read = self.window.hear(id, Instant::now());
        self.release(read);
        self.ready.notify_one();
    }

    /// The server has brought something that is no echo.
    pub(super) fn speak(&mut self) {
        self.window.speak();
    }

    /// Up to where the server has to read all that there is now; `None` while there is more than it may be given.
    pub(super) fn end(&self) -> Option<u64> {
        if self.window.is_full() { None } else { Some(self.window.end()) }
    }

    /// The server has read all up to there, or counts as if.
    pub(super) fn is_acknowledged(&self, end: u64) -> bool {
        self.window.is_done(end)
    }

    /// The server has ended the stream for what it has read. True if that is given up.
    pub(super) fn blame(&mut self) -> bool {
        match self.window.blame() {
            Blame::Nobody => false,
            Blame::OneOf(wires) => {
                for _ in 1..wires {
                    self.gaps.split();
                    self.questions.split();
                }
                false
            }
            Blame::Known { stanzas, item } => {
                tracing::error!(target: TARGET, stanzas, ?item, "what has ended two streams is not written again");
                self.counts.xmpp_dropped.add(stanzas);
                if let Some(item) = item {
                    self.given_up.push_back(item);
                    if self.given_up.len() > GIVEN_UP {
                        self.given_up.pop_front();
                    }
                }
                self.release(1);
                true
            }
        }
    }

    fn is_given_up(&self, waiting: &Waiting) -> bool {
        !self.given_up.is_empty() && self.given_up.contains(&waiting.name())
    }

    /// Nobody else gets it.
    fn give_up(&mut self, waiting: &Waiting, subscribers: &Subscribers) {
        self.counts.xmpp_dropped.add(waiting.rest(subscribers));
        self.pass(waiting);
    }

    fn release(&mut self, wires: usize) {
        for _ in 0..wires {
            self.gaps.release();
            self.questions.release();
        }
        let bytes = i64::try_from(self.window.bytes()).unwrap_or(i64::MAX);
        self.counts.xmpp_unacknowledged.set(bytes);
    }

    /// The next item of a realm to be copied: what is begun, of what was read of a log, of the queue, or of another log,
    /// these two in turn.
    fn next(&mut self, realm: RealmId, world: World<'_>) -> Option<Waiting> {
        loop {
            let line = self.lines.get_mut(&realm)?;
            if let Some(waiting) = line.begun.take().or_else(|| line.read.pop_front()) {
                if self.is_given_up(&waiting) {
                    self.give_up(&waiting, world.subscribers);
                    continue;
                }
                return Some(waiting);
            }
            if let Some(owed) = line.filling.take() {
                self.gaps.settle(owed);
            }
            // While others have read enough they are copied first: their turns come all the same.
            let may_read = self.read_bytes < READ_BYTES;
            if may_read && self.gaps.has_turn(realm) && (line.items.is_empty() || !line.turned) {
                line.turned = true;
                self.fill(realm, world);
                continue;
            }
            line.turned = false;
            let waiting = line.items.pop_front()?;
            if self.gaps.pass((waiting.realm, &waiting.channel), waiting.place) == Fate::Log {
                self.finish(&waiting);
            } else if self.is_given_up(&waiting) {
                self.give_up(&waiting, world.subscribers);
            } else {
                return Some(waiting);
            }
        }
    }

    /// Reads on for who is next.
    fn fill(&mut self, realm: RealmId, World { subscribers, presences, log, now_ms }: World<'_>) {
        let Some((owed, through)) = self.gaps.next(realm) else { return };
        let channel = &*owed.channel.name;
        let wanted = match &owed.jid {
            None => {
                let (stanzas, nodes) = subscribers.wanted(realm, channel);
                (stanzas > 0, nodes > 0)
            }
            Some(jid) => match subscribers.get(realm, channel, jid) {
                Some(terms) if presences.confirm(jid, terms.shows) => (terms.stanza, terms.node),
                // It goes on when it is there.
                _ => return,
            },
        };
        let most = (FILL_ITEMS, FILL_BYTES);
        let stretch = log.stretch(realm, channel, &Start::Place(through), most);
        let proven = stretch.is_some();
        // Without proof: whatever there is.
        let all = || log.stretch(realm, channel, &Start::Since(u32::MAX), most);
        let Some((span, entries)) = stretch.or_else(all) else { return };
        let expected = span.through.position - span.after;
        let gone = match (proven, through.epoch == span.through.epoch) {
            (true, _) => 0,
            // Of a log that began later nothing was given.
            (false, false) if through == BEGINNING => span.after,
            (false, true) => span.after.saturating_sub(through.position),
            // Nobody knows how many.
            (false, false) => 1,
        };
        self.counts.xmpp_dropped.add(gone + expected.saturating_sub(entries.len() as u64));
        let mut read = Vec::new();
        for (entry, position) in entries.iter().zip(span.after + 1..) {
            let place = Some(Place { epoch: span.through.epoch, position });
            let item = Item::from_record(channel, &entry.record).map(Rendered::from);
            let waiting = item.and_then(|i| self.waiting((realm, channel), &i, place, wanted, subscribers));
            let Some(waiting) = waiting else { continue };
            self.read_bytes += waiting.weight;
            read.push(Waiting {
                since_ms: now_ms.saturating_sub(log.age_ms(entry)),
                old: true,
                only: owed.jid.clone(),
                ..waiting
            });
        }
        self.gaps.advance(&owed, span.through, span.whole);
        let line = self.lines.entry(realm).or_default();
        line.read.extend(read);
        line.filling = Some(owed);
    }

    /// `None` if there is nothing in it for anybody.
    fn waiting(
        &self,
        (realm, channel): (RealmId, &str),
        item: &Rendered,
        place: Option<Place>,
        (stanzas, nodes): (bool, bool),
        subscribers: &Subscribers,
    ) -> Option<Waiting> {
        // The log may have it from a time with another limit.
        let fits = |stanza: &Stanza| {
            let fits = stanza.bytes() <= self.stanza_bytes;
            self.counts.xmpp_unsent_item.add(u64::from(!fits));
            fits
        };
        let stanza = item.stanza.clone().filter(|_| stanzas).filter(|stanza| fits(stanza));
        let event = if nodes { pubsub::payload(item) } else { None };
        let event = event.map(|payload| {
            let node = pubsub::node(subscribers.realm_name(realm), channel);
            Stanza::message(&pubsub::event(&node, item.id.as_deref(), &payload))
        });
        let event = event.filter(fits);
        if stanza.is_none() && event.is_none() {
            return None;
        }
        let weight = stanza.as_ref().map_or(0, |stanza| stanza.weight())
            + event.as_ref().map_or(0, Stanza::weight)
            + channel.len();
        let channel = channel.into();
        let (since_ms, after, old, only, number) = (0, None, false, None, 0);
        Some(Waiting { realm, channel, stanza, event, place, since_ms, weight, after, old, only, number })
    }

    fn count(&self) {
        self.counts.xmpp_queued.set(i64::try_from(self.items).unwrap_or(i64::MAX));
    }
}

/// Of presence, before items have their turn.
const QUESTIONS: usize = 100;
/// Items that are looked at before others have the thread.
const TURNS: usize = 256;
/// What is read of a log before others have their turn.
const FILL_ITEMS: usize = 256;
const FILL_BYTES: usize = 256 << 10;
/// And what all realms have read and not copied yet: beyond that none reads on.
const READ_BYTES: usize = 4 << 20;
/// Items that are not written again, nor read of their logs for those who were absent.
const GIVEN_UP: usize = 100;

#[cfg(test)]
mod tests {
    use std::slice;

    use fantail_proto::{
        log::{Durability, Limits, Pattern},
        xmpp::pubsub::Shows,
    };

    use super::*;
    use crate::{
        config::Secret,
        log::{Appended, Log},
        xmpp::{Terms, presence::Presences, subscribers},
    };

    fn outbox(queue_items: usize, realm_queue_items: usize) -> (Outbox, Arc<Process>) {
        limited(|config| (config.queue_items, config.realm_queue_items) = (queue_items, realm_queue_items))
    }

    fn limited(limit: impl FnOnce(&mut config::Xmpp)) -> (Outbox, Arc<Process>) {
        let counts = Arc::new(Process::default());
        let mut config = config::Xmpp {
            server: String::new(),
            domain: Jid::parse("push.test").unwrap(),
            secret: Secret::Bytes(Vec::new()),
            admins: Vec::new(),
            open_realms: Vec::new(),
            subscriptions: 0,
            realm_subscriptions: 0,
            subscriptions_per_jid: 0,
            absences: 10,
            realm_absences: 10,
            queue_items: 100,
            queue_bytes: 1 << 20,
            realm_queue_items: 100,
            realm_queue_bytes: 1 << 20,
            origin_requests: 1,
            realm_origin_requests: 1,
            sender_stanzas: 1,
            unacknowledged_bytes: usize::MAX,
            sender_bytes: 1 << 20,
            stanza_bytes: 10_000,
        };
        limit(&mut config);
        (Outbox::new(&config, Arc::clone(&counts)), counts)
    }

    fn subscribe(subscribers: &mut Subscribers, realm: u32, count: usize) {
        let place = subscribers::Place {
            realm: RealmId(realm),
            realm_name: format!("r{realm}"),
            channel: "c".into(),
        };
        let terms = Terms { stanza: true, node: false, shows: Shows::ALWAYS };
        (0..count).for_each(|n| _ = subscribers.set(&place, &format!("user{n:05}@r{realm}.test"), terms));
    }

    fn decoded(body: &str) -> Item {
        let content = format!("<message><body>{body}</body></message>");
        let item =
            serde_json::json!({ "items": [{ "channel": "c", "xmpp-stanza": { "content": content } }] });
        fantail_proto::item::decode(item.to_string().as_bytes(), None).unwrap().remove(0)
    }

    fn delivery(realm: u32, body: &str) -> Delivery {
        let place = Place { epoch: 1, position: 1 };
        let mut delivery = Delivery::of_log(RealmId(realm), "c", decoded(body).into(), place);
        delivery.place = None;
        delivery
    }

    /// All that is written, in pieces.
    fn wires(outbox: &mut Outbox, subscribers: &Subscribers, log: &Log) -> Vec<String> {
        let presences = Presences::default();
        let mut all = Vec::new();
        loop {
            let wire = outbox.wire(World { subscribers, presences: &presences, log, now_ms: 0 });
            if wire.is_empty() {
                return all;
            }
            all.push(String::from_utf8(wire.to_vec()).unwrap());
            outbox.written();
        }
    }

    /// However much somebody is told, items are not kept waiting by it, nor it by items.
    #[test]
    fn answers_and_items_have_their_turns() {
        let (mut outbox, counts) = outbox(10, 10);
        let log = Log::new(None, counts);
        let mut subscribers = Subscribers::default();
        subscribe(&mut subscribers, 1, 10_000);
        outbox.join();
        (0..8).for_each(|_| outbox.answer("a@b", vec![b'-'; 2 * WIRE_BYTES]));
        outbox.deliver(&delivery(1, "item"), &subscribers, 0);
        outbox.answer("c@d", b"last".to_vec());
        let wires = wires(&mut outbox, &subscribers, &log);
        assert!(wires.len() > 18, "{}", wires.len());
        let of_items: Vec<bool> = wires.iter().take(16).map(|wire| wire.contains("item")).collect();
        assert_eq!(of_items, [false, true].repeat(8));
    }

    /// However many subscribers an item of one realm has, those of another realm do not wait for all of them.
    #[test]
    fn realms_have_their_turns() {
        let (mut outbox, counts) = outbox(10, 10);
        let log = Log::new(None, counts);
        let mut subscribers = Subscribers::default();
        subscribe(&mut subscribers, 1, 5000);
        subscribe(&mut subscribers, 2, 1);
        outbox.join();
        for body in ["a1", "a2", "a3"] {
            outbox.deliver(&delivery(1, body), &subscribers, 0);
        }
        outbox.deliver(&delivery(2, "b1"), &subscribers, 0);
        outbox.deliver(&delivery(2, "b2"), &subscribers, 0);
        let wires = wires(&mut outbox, &subscribers, &log);
        let at = |text: &str| wires.iter().position(|wire| wire.contains(text));
        let early = |text: &str, most: usize| at(text).is_some_and(|at| at <= most);
        assert!(wires.len() > 10 && early(">b1<", 1) && early(">b2<", 2), "{:?}", at(">b2<"));
        let all = wires.concat();
        for n in [0, 1234, 4999] {
            let to = format!("to='user{n:05}@r1.test'");
            let mine = all.split("</message>").filter(|stanza| stanza.contains(&to));
            let bodies: Vec<&str> =
                mine.filter_map(|stanza| stanza.get(stanza.find("<body>")? + 6..)).collect();
            assert_eq!(bodies, ["a1</body>", "a2</body>", "a3</body>"]);
        }
        assert_eq!((outbox.items, outbox.item_bytes, outbox.lines.len()), (0, 0, 0));
    }

    /// A realm that has its part loses its own oldest; when all is full, it is the one that has most.
    #[test]
    fn a_full_realm_takes_nothing_from_others() {
        let (mut outbox, counts) = outbox(4, 3);
        let log = Log::new(None, Arc::clone(&counts));
        let mut subscribers = Subscribers::default();
        (1..=3).for_each(|realm| subscribe(&mut subscribers, realm, 1));
        outbox.deliver(&delivery(2, "b1"), &subscribers, 0);
        for n in 1..=5 {
            outbox.deliver(&delivery(1, &format!("a{n}")), &subscribers, 0);
        }
        outbox.deliver(&delivery(3, "c1"), &subscribers, 0);
        assert_eq!((outbox.items, counts.xmpp_dropped.get()), (4, 3));
        outbox.join();
        let all = wires(&mut outbox, &subscribers, &log).concat();
        let kept: Vec<&str> = ["a1", "a2", "a3", "a4", "a5", "b1", "c1"]
            .into_iter()
            .filter(|body| all.contains(body))
            .collect();
        assert_eq!(kept, ["a4", "a5", "b1", "c1"]);
    }

    /// Realms with long logs take their turns to read them, too: what all of them have read at once has a limit.
    #[test]
    fn what_is_read_of_logs_has_a_limit() {
        let (mut outbox, counts) = outbox(10, 10);
        let log = Log::new(None, counts);
        let rule = |realm: u32| config::Log {
            text: "*".into(),
            pattern: Pattern::new("*"),
            realm: realm.to_string(),
            limits: Limits { items: 1000, bytes: 1 << 20, age_s: 600 },
            total_bytes: 1 << 24,
            storage: config::Storage::Memory,
            durability: Durability::Accepted,
            slow: None,
        };
        let rules: Vec<_> = (0..REALMS).map(rule).collect();
        log.configure(&rules, |realm| realm.parse().ok().map(RealmId)).unwrap();
        let mut subscribers = Subscribers::default();
        for realm in 0..REALMS {
            subscribe(&mut subscribers, realm, 1);
            for _ in 0..200 {
                let item = decoded(&"x".repeat(1000));
                let mut batch =
                    log.prepare(RealmId(realm), slice::from_ref(&item), Durability::Accepted).unwrap();
                let mut logs = log.open();
                let Appended::Now(Some(place)) = logs.append(RealmId(realm), "c", batch.take(0).unwrap())
                else {
                    panic!("it is kept in memory");
                };
                drop(logs);
                outbox.deliver(&Delivery::of_log(RealmId(realm), "c", item.into(), place), &subscribers, 0);
            }
        }
        outbox.join();
        let presences = Presences::default();
        let (mut copies, mut most) = (0, 0);
        loop {
            let world = World { subscribers: &subscribers, presences: &presences, log: &log, now_ms: 0 };
            let wire = outbox.wire(world);
            if wire.is_empty() {
                break;
            }
            copies += str::from_utf8(&wire).unwrap().matches("</message>").count();
            most = most.max(outbox.read_bytes);
            outbox.written();
        }
        assert_eq!((copies, outbox.read_bytes), (200 * REALMS as usize, 0));
        assert!(most > READ_BYTES / 2 && most < READ_BYTES + 2 * FILL_BYTES, "{most}");
    }

    const REALMS: u32 = 40;

    /// It is what is scarce that counts: few large items do not make room for many small ones.
    #[test]
    fn who_has_most_of_what_is_scarce_makes_room() {
        let (mut outbox, counts) = outbox(4, 4);
        let log = Log::new(None, counts);
        let mut subscribers = Subscribers::default();
        (1..=3).for_each(|realm| subscribe(&mut subscribers, realm, 1));
        outbox.deliver(&delivery(2, &"large".repeat(1000)), &subscribers, 0);
        for body in ["a1", "a2", "a3"] {
            outbox.deliver(&delivery(1, body), &subscribers, 0);
        }
        outbox.deliver(&delivery(3, "c1"), &subscribers, 0);
        outbox.join();
        let all = wires(&mut outbox, &subscribers, &log).concat();
        let kept: Vec<&str> =
            ["large", "a1", "a2", "a3", "c1"].into_iter().filter(|body| all.contains(body)).collect();
        assert_eq!(kept, ["large", "a2", "a3", "c1"]);
    }

    /// What is being copied has its part of the limits until the last copy is made, and is not let go.
    #[test]
    fn what_is_begun_takes_room() {
        for (limit, kept) in [(2, ["a1", "a3"].as_slice()), (1, &["a1"])] {
            for limits in [(limit, 10), (10, limit)] {
                let (mut outbox, counts) = outbox(limits.0, limits.1);
                let log = Log::new(None, Arc::clone(&counts));
                let mut subscribers = Subscribers::default();
                subscribe(&mut subscribers, 1, 2000);
                outbox.join();
                outbox.deliver(&delivery(1, "a1"), &subscribers, 0);
                let presences = Presences::default();
                let world = World { subscribers: &subscribers, presences: &presences, log: &log, now_ms: 0 };
                let first = String::from_utf8(outbox.wire(world).to_vec()).unwrap();
                outbox.written();
                assert_eq!((outbox.items, outbox.item_bytes > 0), (1, true));
                for body in ["a2", "a3"] {
                    outbox.deliver(&delivery(1, body), &subscribers, 0);
                }
                assert_eq!((outbox.items, counts.xmpp_dropped.get()), (limit, 3 - limit as u64));
                let all = first + &wires(&mut outbox, &subscribers, &log).concat();
                let found: Vec<_> =
                    ["a1", "a2", "a3"].into_iter().filter(|body| all.contains(body)).collect();
                assert_eq!(found, kept);
                assert_eq!((outbox.items, outbox.item_bytes, outbox.lines.len()), (0, 0, 0));
            }
        }
    }

    #[test]
    fn bytes_have_limits_too() {
        for all in [true, false] {
            let (mut outbox, counts) = limited(|config| {
                *(if all { &mut config.queue_bytes } else { &mut config.realm_queue_bytes }) = 5000;
            });
            let log = Log::new(None, Arc::clone(&counts));
            let mut subscribers = Subscribers::default();
            subscribe(&mut subscribers, 1, 1);
            for body in ["a", "b", "c"] {
                outbox.deliver(&delivery(1, &body.repeat(1000)), &subscribers, 0);
            }
            assert!(outbox.item_bytes <= 5000 && counts.xmpp_dropped.get() == 1, "{}", outbox.item_bytes);
            outbox.join();
            let all = wires(&mut outbox, &subscribers, &log).concat();
            assert!(!all.contains("aaa") && all.contains("bbb") && all.contains("ccc"));
        }
    }
}
