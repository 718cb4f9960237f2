//! Everything together: what happens, one step after another as the seed has it, and what must be true after each.

use std::{collections::HashSet, path::Path, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use fantail::{
    channel::RealmId,
    config::{self, Storage},
    hub::Hub,
    log::Log,
};
use fantail_proto::{
    item::{HttpStream, Item},
    log::{Durability, Limits, Pattern, Place, Start},
    slow::Step,
};
use tokio::runtime::Runtime;

use super::{
    disk::{self, Crash, Disk},
    pin::{Phase, Pin},
    shadow::Shadow,
};

const R: RealmId = RealmId(0);

pub(crate) struct World {
    dice: Dice,
    runtime: Runtime,
    disk: Disk,
    hub: Hub,
    channels: Vec<Channel>,
    pins: Vec<Pin>,
    figures: Figures,
    aloud: bool,
    /// There is no room on the disk.
    full: bool,
}

struct Channel {
    name: String,
    storage: Storage,
    durability: Durability,
    items: usize,
    shadow: Shadow,
    /// Ids are never used for two items.
    next: u64,
    /// What this process must know to be there already.
    seen: HashSet<u64>,
    /// Items whose publisher had no answer.
    open: Vec<u64>,
    /// What this process has let through last.
    last: Option<u64>,
}

/// What came about, over all seeds: nothing of this may be zero.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    steps: u64,
    published: u64,
    duplicates: u64,
    reversed: u64,
    repeated_after_crash: u64,
    kills: u64,
    power_losses: u64,
    restarts: u64,
    damages: u64,
    begun_anew: u64,
    filled: u64,
    caught_up: u64,
    unproven: u64,
    filled_by_origin: u64,
    origin_gone: u64,
    told: u64,
    overflows: u64,
    passed_over: u64,
    delivered: u64,
    full_disks: u64,
    refused: u64,
}

impl Figures {
    fn fields(&mut self) -> [&mut u64; 21] {
        let Self {
            steps,
            published,
            duplicates,
            reversed,
            repeated_after_crash,
            kills,
            power_losses,
            restarts,
            damages,
            begun_anew,
            filled,
            caught_up,
            unproven,
            filled_by_origin,
            origin_gone,
            told,
            overflows,
            passed_over,
            delivered,
            full_disks,
            refused,
        } = self;
        [
            steps,
            published,
            duplicates,
            reversed,
            repeated_after_crash,
            kills,
            power_losses,
            restarts,
            damages,
            begun_anew,
            filled,
            caught_up,
            unproven,
            filled_by_origin,
            origin_gone,
            told,
            overflows,
            passed_over,
            delivered,
            full_disks,
            refused,
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = *other;
        self.fields().into_iter().zip(other.fields()).for_each(|(sum, more)| *sum += *more);
    }

    pub(crate) fn reaches_everything(&self) -> bool {
        let mut copy = *self;
        if disk::fill().is_none() {
            eprintln!("skipped: full disks, because a tmpfs cannot be mounted here");
            (copy.full_disks, copy.refused) = (1, 1);
        }
        copy.fields().iter().all(|count| **count > 0)
    }
}

impl World {
    pub(crate) fn new(seed: u64, aloud: bool) -> Self {
        let mut dice = Dice::new(seed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let kinds = [
            (Storage::Memory, Durability::Accepted),
            (Storage::Disk, Durability::Accepted),
            (Storage::Disk, Durability::Logged),
            (Storage::Disk, Durability::Synced),
        ];
        let channels: Vec<Channel> = (0..2)
            .map(|n| {
                let (storage, durability) = kinds[dice.below(4) as usize];
                let items = [5, 20, 1000][dice.below(3) as usize];
                let (shadow, seen, open) = (Shadow::default(), HashSet::new(), Vec::new());
                let name = format!("c{n}");
                Channel { name, storage, durability, items, shadow, next: 1, seen, open, last: None }
            })
            .collect();
        let pins = (0..PINS).map(|shard| Pin::new(shard % channels.len(), shard)).collect();
        let mut disk = Disk::new();
        let hub = runtime.block_on(async { open(disk.path(), &channels) });
        disk.opened();
        Self { dice, runtime, disk, hub, channels, pins, figures: Figures::default(), aloud, full: false }
    }

    /// As many steps as the seed says, and then everybody comes to the end of everything.
    pub(crate) fn run(mut self) -> Figures {
        for _ in 0..40 + self.dice.below(80) {
            self.step();
            self.figures.steps += 1;
        }
        for pin in 0..self.pins.len() {
            self.pins[pin].stalled = false;
            // Until it is live and has read all: an answer of its origin may be too old.
            while self.pins[pin].phase != Phase::Live
                || !self.pins[pin].waits.is_empty()
                || !self.pins[pin].kept.is_empty()
                || self.pins[pin].behind.is_some()
            {
                self.go_on(pin);
            }
            self.is_complete(pin);
        }
        self.figures
    }

    fn step(&mut self) {
        let pin = self.dice.below(self.pins.len() as u64) as usize;
        let channel = self.dice.below(self.channels.len() as u64) as usize;
        match self.dice.below(100) {
            0..38 => self.publish(channel),
            38..42 => self.repeat(channel),
            42..82 => self.go_on(pin),
            82..86 => self.pins[pin].stalled ^= true,
            86..91 => {
                self.say(|_| format!("pin {pin} leaves"));
                self.leave(pin);
            }
            91..92 => self.begin_anew(channel),
            92..93 => self.full_disk(channel),
            93..95 => self.crash(Crash::Killed, false),
            95..97 => self.crash(Crash::PowerLost, false),
            97..98 => self.crash(Crash::Orderly, false),
            98..99 => self.crash(Crash::Killed, true),
            _ => self.answer_again(channel),
        }
        (0..self.pins.len()).for_each(|pin| self.deliver(pin));
    }

    fn say(&self, what: impl FnOnce(&Self) -> String) {
        if self.aloud {
            println!("{}", what(self));
        }
    }

    fn publish(&mut self, channel: usize) {
        let count = 1 + self.dice.below(3);
        let ids: Vec<u64> = (0..count).map(|n| self.channels[channel].next + n).collect();
        self.channels[channel].next += count;
        // Its answer may get lost on the way.
        let answered = self.dice.below(4) > 0;
        let reversed = self.dice.below(3) == 0;
        self.hand_over(channel, &ids, answered, reversed);
    }

    /// A publisher without an answer tries again.
    fn answer_again(&mut self, channel: usize) {
        let Some(id) = self.channels[channel].open.first().copied() else { return };
        let lost = self.channels[channel].shadow.find(id).is_none();
        // Where less is promised than the crash would ask for, one who has it from before cannot be told from one who has
        // it from its second place in the log.
        let shown = self.pins.iter().any(|pin| pin.channel == channel && pin.last == Some(id));
        if lost && shown {
            return;
        }
        self.figures.repeated_after_crash += u64::from(lost);
        self.hand_over(channel, &[id], true, false);
    }

    /// An item comes twice.
    fn repeat(&mut self, channel: usize) {
        let seen = &self.channels[channel].seen;
        let Some(id) = seen.iter().max().copied() else { return };
        self.hand_over(channel, &[id], true, false);
    }

    /// There is no room on the disk until something was refused. Nobody has seen that, and it may come again.
    fn full_disk(&mut self, channel: usize) {
        let Some(ballast) = disk::fill() else { return };
        self.say(|_| "the disk is full".into());
        let most = if self.channels[channel].durability == Durability::Accepted { 3 } else { 100 };
        for _ in 0..most {
            let id = self.channels[channel].next;
            self.channels[channel].next += 1;
            self.full = true;
            let taken = self.hand_over(channel, &[id], true, false);
            if !taken {
                self.figures.refused += 1;
                break;
            }
        }
        drop(ballast);
        self.figures.full_disks += 1;
        self.full = false;
        // It is tried again when something else is to be written.
        while !(self.is_writable() && self.is_written()) {
            let item = Item { channel: NUDGE.into(), id: None, ..item("", 0) };
            self.hub.publish(R, vec![item], false).unwrap();
            thread::yield_now();
        }
    }

    fn is_writable(&self) -> bool {
        let item = Item { channel: BARRIER.into(), ..item("", 0) };
        self.hub.log().prepare(R, &[item], Durability::Logged).is_ok()
    }

    /// `reversed`: what follows comes before what it follows. False: it was refused.
    fn hand_over(&mut self, channel: usize, ids: &[u64], answered: bool, reversed: bool) -> bool {
        let Channel { name, durability, last, .. } = &self.channels[channel];
        let (name, durability, last) = (name.clone(), *durability, *last);
        let mut items: Vec<Item> = ids.iter().map(|id| item(&name, *id)).collect();
        if reversed {
            items.iter_mut().zip(ids).for_each(|(item, id)| item.prev_id = Some((id - 1).to_string()));
            items.reverse();
            self.figures.reversed += 1;
        }
        let Self { hub, runtime, disk, .. } = self;
        let outcome = runtime.block_on(async {
            let accepted = hub.publish_at(R, items, false, Durability::Accepted).map_err(drop)?;
            let duplicates = accepted.duplicates;
            while hub.waiting() > 0 {
                // Time passes for those that are early.
                drop(tokio::time::timeout(Duration::from_secs(1), hub.keep_time()).await);
            }
            let kept = accepted.on_disk.is_some() || accepted.kept.is_some();
            if let Some(kept) = accepted.on_disk {
                kept.wait().await.map_err(drop)?;
            }
            if let Some(kept) = accepted.kept {
                kept.wait().await.map_err(drop)?;
            }
            if kept && answered {
                disk.promise(durability);
            }
            Ok::<_, ()>(duplicates)
        });
        let Ok(duplicates) = outcome else {
            assert!(self.full && durability > Durability::Accepted, "refused, and there is room");
            assert!(self.witnessed().is_empty(), "refused, and shown");
            self.say(|_| format!("refused {ids:?} on {name}"));
            self.channels[channel].open.extend(ids);
            return false;
        };
        if !self.full {
            self.barrier();
        }
        self.figures.duplicates += duplicates as u64;
        let order = self.witnessed();
        self.say(|_| {
            format!("published {ids:?} on {name} ({durability:?}), answered: {answered}; in order {order:?}")
        });
        let mark = self.disk.mark();
        let channel = &mut self.channels[channel];
        let mut new: Vec<u64> = ids.iter().copied().filter(|id| !channel.seen.contains(id)).collect();
        assert_eq!(new.len() + duplicates, ids.len(), "a repeated id was taken, or a new one was not");
        if !(reversed && last == ids.first().map(|id| id - 1)) {
            new.sort_by_key(|id| order.iter().position(|came| came == id));
        }
        assert_eq!(order, new, "what was accepted did not come, or not in its order");
        for id in ids {
            if channel.seen.contains(id) {
                channel.shadow.find(*id).expect("what was seen is there").acked |= answered;
            }
            channel.open.retain(|open| open != id);
            if !answered {
                channel.open.push(*id);
            }
        }
        for id in order {
            channel.seen.insert(id);
            channel.shadow.push(id, answered, mark);
            channel.last = Some(id);
            self.figures.published += 1;
        }
        true
    }

    /// What one who is always there has got since the last time.
    fn witnessed(&self) -> Vec<u64> {
        let mut batch = Vec::new();
        self.hub.take(PINS, &mut batch);
        batch
            .iter()
            .map(|delivery| delivery.item.id.as_deref().expect("all have one").parse().unwrap())
            .collect()
    }

    /// The rule goes and comes back: the logs of its channels are others.
    fn begin_anew(&mut self, channel: usize) {
        let name = self.channels[channel].name.clone();
        self.say(|_| format!("the log of {name} begins anew"));
        let all = rules(&self.channels);
        let others: Vec<_> = all.iter().filter(|rule| rule.text != name).cloned().collect();
        let Self { hub, runtime, .. } = self;
        runtime.block_on(async {
            hub.log().configure(&others, realm).unwrap();
            hub.log().configure(&all, realm).unwrap();
        });
        self.figures.begun_anew += 1;
        self.barrier();
        self.channels[channel].shadow.0.iter_mut().for_each(|said| said.logged = false);
    }

    /// What nobody waits for is written, too, before anything else happens: else no seed could be replayed. The files say
    /// so when what is on another channel is.
    fn barrier(&mut self) {
        assert!(self.is_written(), "the disk takes it");
    }

    fn is_written(&mut self) -> bool {
        let Self { hub, runtime, disk, .. } = self;
        let written = runtime.block_on(async {
            let item = Item { channel: BARRIER.into(), id: None, ..item("", 0) };
            let Ok(accepted) = hub.publish_at(R, vec![item], false, Durability::Logged) else { return false };
            accepted.on_disk.expect("its log is on disk").wait().await.is_ok()
        });
        if written {
            disk.note();
        }
        written
    }

    fn crash(&mut self, crash: Crash, damage: bool) {
        self.barrier();
        (0..self.pins.len()).for_each(|pin| self.leave(pin));
        if crash == Crash::Orderly {
            self.hub.log().close();
        }
        let after = self.disk.crash(crash, &mut self.dice);
        let damaged = damage && after.damage(&mut self.dice);
        self.say(|_| {
            format!(
                "{crash:?}, damaged: {damaged}; before {:?}, after {:?}",
                self.disk.listing(),
                after.listing()
            )
        });
        let hub = self.runtime.block_on(async { open(after.path(), &self.channels) });
        drop(std::mem::replace(&mut self.hub, hub));
        self.disk = after;
        self.disk.opened();
        // What is of use in damaged files is moved on, a file between two writes.
        for _ in 0..self.disk.files().len() + 2 {
            self.barrier();
        }
        self.disk.opened();
        match crash {
            Crash::Orderly => self.figures.restarts += 1,
            Crash::Killed => self.figures.kills += 1,
            Crash::PowerLost => self.figures.power_losses += 1,
        }
        self.figures.damages += u64::from(damaged);
        for channel in &mut self.channels {
            channel.seen.clear();
            channel.last = None;
        }
        let Self { hub, channels, .. } = self;
        hub.log().ids(|_, name, id, _| {
            let channel =
                channels.iter_mut().find(|channel| channel.name == name).expect("a channel of ours");
            assert!(channel.seen.insert(id.parse().unwrap()), "{id} is twice in the log of {name}");
        });
        channels.iter_mut().for_each(|channel| channel.outlive(crash, damaged));
    }

    fn leave(&mut self, pin: usize) {
        let Pin { channel, shard, phase, .. } = &self.pins[pin];
        let (channel, shard) = (*channel, *shard);
        if *phase != Phase::Away {
            self.hub.leave(shard, R, &self.channels[channel].name, None);
            self.pins[pin].leave();
        }
        self.hub.take(shard, &mut Vec::new());
    }

    fn tell(&mut self, pin: usize) {
        self.say(|_| format!("pin {pin} is told"));
        self.leave(pin);
        self.pins[pin].told();
        self.figures.told += 1;
    }

    /// What a pin does next.
    fn go_on(&mut self, pin: usize) {
        let Pin { channel, shard, phase, last, .. } = &self.pins[pin];
        let (channel, shard, last) = (*channel, *shard, *last);
        match phase.clone() {
            Phase::Away => {
                self.hub.join(shard, R, &self.channels[channel].name);
                if last.is_none() {
                    self.pins[pin].has = self.channels[channel].shadow.end();
                    self.pins[pin].phase = Phase::Live;
                } else {
                    self.pins[pin].phase = Phase::Joining;
                }
                self.say(|world| format!("pin {pin} joins: {:?}", world.pins[pin]));
            }
            Phase::Joining => {
                let id = last.expect("else it would be live").to_string();
                if self.fill(pin, Start::Id(id.into())) {
                    self.figures.filled += 1;
                    self.pins[pin].phase = Phase::Live;
                } else {
                    self.figures.unproven += 1;
                    self.ask(pin);
                }
            }
            Phase::Asking { answer, steps: 0, .. } => self.answered(pin, &answer),
            Phase::Asking { answer, steps } => {
                self.pins[pin].phase = Phase::Asking { answer, steps: steps - 1 };
            }
            Phase::Live if self.pins[pin].stalled => {}
            Phase::Live => match self.pins[pin].behind.filter(|_| self.pins[pin].waits.is_empty()) {
                Some(place) if self.fill(pin, Start::Place(place)) => {
                    self.figures.caught_up += 1;
                    self.pins[pin].behind = None;
                }
                Some(_) => self.leave(pin),
                None => self.read(pin),
            },
        }
    }

    /// From the log, some at a time. False: it cannot prove that this is everything.
    fn fill(&mut self, pin: usize, mut from: Start) -> bool {
        let channel = self.pins[pin].channel;
        let mut got = Vec::new();
        loop {
            let (items, bytes) = (1 + self.dice.below(4) as usize, 1 + self.dice.below(400) as usize);
            let name = &self.channels[channel].name;
            let Some(span) = self.hub.log().span(R, name, &from, items, bytes) else {
                assert!(got.is_empty(), "a log that could prove it cannot any more");
                return false;
            };
            for entry in self.hub.log().entries(R, name, span) {
                let id = entry.id().expect("all have one").parse().unwrap();
                let found = Item::from_record(name, &entry.record).and_then(|item| item.stream);
                assert!(
                    matches!(found, Some(HttpStream::Send(bytes)) if bytes == content(name, id)),
                    "altered"
                );
                got.push(id);
            }
            from = Start::Place(span.through);
            if span.whole {
                self.say(|_| format!("pin {pin} is filled with {got:?}"));
                got.iter().for_each(|id| self.give(pin, *id));
                self.pins[pin].place = Some(span.through);
                self.is_complete(pin);
                return true;
            }
        }
    }

    fn is_complete(&self, pin: usize) {
        let Pin { channel, has, .. } = self.pins[pin];
        let shadow = &self.channels[channel].shadow;
        shadow.must_be_empty(has, shadow.end(), &format!("pin {pin}"));
    }

    /// The origin has everything, but may be slow or gone.
    fn ask(&mut self, pin: usize) {
        let Pin { channel, has, .. } = self.pins[pin];
        let steps = match self.dice.below(4) {
            0 => {
                self.figures.origin_gone += 1;
                return self.tell(pin);
            }
            1 => 1 + self.dice.below(6),
            _ => 0,
        };
        let answer = self.channels[channel].shadow.behind(has).collect();
        self.pins[pin].phase = Phase::Asking { answer, steps };
        self.say(|world| format!("pin {pin} asks: {:?}", world.pins[pin]));
    }

    /// What came live since it joined is behind the answer, or in it.
    fn answered(&mut self, pin: usize, answer: &[u64]) {
        answer.iter().for_each(|id| self.give(pin, *id));
        let Pin { waits, last, phase, .. } = &mut self.pins[pin];
        if let Some(had) = waits.iter().rposition(|(id, _)| Some(*id) == *last) {
            waits.drain(..=had);
        }
        *phase = Phase::Live;
        self.figures.filled_by_origin += 1;
        self.read(pin);
    }

    fn read(&mut self, pin: usize) {
        while let Some((id, place)) = self.pins[pin].waits.pop_front() {
            if !self.pins[pin].knows(place) {
                self.give(pin, id);
                self.pins[pin].place = place;
            }
        }
        while let Some((id, place)) = self.pins[pin].take_kept() {
            let Pin { channel, has, .. } = self.pins[pin];
            let has = self.channels[channel].shadow.later(has, id, &format!("pin {pin}"));
            self.show(channel, has - 1);
            let pin = &mut self.pins[pin];
            (pin.has, pin.last, pin.place) = (has, Some(id), place);
            self.figures.delivered += 1;
        }
    }

    fn give(&mut self, pin: usize, id: u64) {
        let Pin { channel, has, .. } = self.pins[pin];
        let has = self.channels[channel].shadow.next(has, id, &format!("pin {pin}"));
        self.show(channel, has - 1);
        (self.pins[pin].has, self.pins[pin].last) = (has, Some(id));
        self.figures.delivered += 1;
    }

    /// A subscriber has got this. Where a log promises to keep it, it was written before.
    fn show(&mut self, channel: usize, at: usize) {
        let Channel { durability, shadow, .. } = &mut self.channels[channel];
        let said = &mut shadow.0[at];
        said.shown = true;
        if *durability > Durability::Accepted {
            self.disk.show(said.mark);
        }
    }

    /// From the hub into what waits for a pin.
    fn deliver(&mut self, pin: usize) {
        let mut batch = Vec::new();
        self.hub.take(self.pins[pin].shard, &mut batch);
        for delivery in batch {
            // The log has the say.
            if self.pins[pin].behind.is_some() {
                continue;
            }
            let (id, place) =
                (delivery.item.id.as_deref().expect("all have one").parse().unwrap(), delivery.place);
            match self.pins[pin].step(place) {
                Step::Write => self.pins[pin].waits.push_back((id, place)),
                Step::Keep => self.figures.passed_over += u64::from(self.pins[pin].keep(id, place)),
                Step::Repair => {
                    self.say(|_| format!("pin {pin} is behind"));
                    self.figures.overflows += 1;
                    let from = place.map(|place| Place { position: place.position - 1, ..place });
                    self.pins[pin].behind = from;
                }
                Step::Close => {
                    self.say(|_| format!("pin {pin} has too much and is closed"));
                    self.figures.overflows += 1;
                    return self.leave(pin);
                }
            }
        }
    }
}

impl Channel {
    /// Judges what is left of a log, and notes what is not.
    fn outlive(&mut self, crash: Crash, damaged: bool) {
        let least = match crash {
            Crash::Orderly => Durability::Accepted,
            Crash::Killed => Durability::Logged,
            Crash::PowerLost => Durability::Synced,
        };
        let survives = self.storage == Storage::Disk && self.durability >= least && !damaged;
        let Self { name, shadow, seen, items, .. } = self;
        let there: Vec<bool> = shadow.0.iter().map(|said| !said.gone).collect();
        for (at, said) in shadow.0.iter_mut().enumerate() {
            let kept = seen.contains(&said.id);
            let behind = there[at + 1..].iter().filter(|there| **there).count();
            let due = survives && (said.acked || said.shown) && !said.gone && said.logged && behind < *items;
            assert!(
                kept || !due,
                "{} of {name} was acknowledged or shown, and is not in the log after {crash:?}: there are {seen:?}",
                said.id
            );
            said.mark = 0;
            said.gone |= !kept && !said.acked;
            said.logged &= kept;
        }
    }
}

fn realm(name: &str) -> Option<RealmId> {
    (name == "default").then_some(R)
}

fn rules(channels: &[Channel]) -> Vec<config::Log> {
    let rule = |name: &str, items, storage, durability| config::Log {
        text: name.into(),
        pattern: Pattern::new(name),
        realm: "default".into(),
        limits: Limits { items, bytes: 1 << 20, age_s: 600 },
        total_bytes: 1 << 24,
        storage,
        durability,
        slow: None,
    };
    let ours = channels
        .iter()
        .map(|channel| rule(&channel.name, channel.items, channel.storage, channel.durability));
    let barrier = rule(BARRIER, 1, Storage::Disk, Durability::Logged);
    ours.chain([barrier, rule(NUDGE, 1, Storage::Disk, Durability::Accepted)]).collect()
}

fn item(channel: &str, id: u64) -> Item {
    let stream = Some(HttpStream::Send(content(channel, id)));
    Item { channel: channel.into(), id: Some(id.to_string()), stream, ..Item::default() }
}

fn content(channel: &str, id: u64) -> Bytes {
    Bytes::from(format!("{channel}/{id}/{}", "x".repeat((id % 50) as usize)))
}

/// A process begins.
fn open(folder: &Path, channels: &[Channel]) -> Hub {
    let log = Log::new(Some(folder.into()), Arc::default());
    log.configure(&rules(channels), realm).unwrap();
    let config = config::Hub {
        id_ttl: Duration::from_hours(1),
        ids: 100_000,
        order_wait: Duration::from_secs(5),
        linger: Duration::ZERO,
        mailbox_items: 1000,
        id_bytes: 1024,
        meta_bytes: 8192,
    };
    let hub = Hub::with_log(PINS + 1, &config, Arc::new(log));
    for channel in channels {
        hub.join(PINS, R, &channel.name);
    }
    hub
}

/// Numbers that a seed decides (xorshift).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        let mut dice = Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        dice.below(2);
        dice
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }
}

/// Its items mark what was written before them.
const BARRIER: &str = "barrier";
/// Its items have the disk tried again.
const NUDGE: &str = "nudge";
/// Of all channels; each is on a shard of its own.
const PINS: usize = 6;
