//! What the XMPP server was given and has not shown to have read. XEP-0114 acknowledges nothing: so an echo, a ping of the
//! component to itself, follows what is written, and when the server has brought it back it has read all before it. Owns the
//! limit of what is not acknowledged, keeps that for the next stream, and says when to ask. Writes no socket.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::copies::Name;

#[derive(Debug)]
pub(super) struct Window {
    /// In order, from what was written first on.
    wires: VecDeque<Wire>,
    /// How many of them this stream was given, and their bytes.
    written: usize,
    bytes: usize,
    /// Bytes that are given before the first of them are acknowledged.
    limit: usize,
    hearing: Hearing,
    /// Something has come back on this stream.
    heard: bool,
    /// Nobody else knows what this stream's echoes are called.
    token: String,
    number: u64,
    echoes: VecDeque<Echo>,
    /// All wires that were ever acknowledged.
    done: u64,
    /// When this stream was asked last, and heard last.
    asked_at: Option<Instant>,
    heard_at: Option<Instant>,
    /// What was written behind the last echo, and since when.
    unasked: usize,
    unasked_at: Option<Instant>,
    /// What an earlier stream was given is asked about one by one: something of it has ended that.
    doubts: bool,
    /// Something else has come since the first echo that has not.
    spoken: bool,
}

/// Stanzas that are to be written together.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) bytes: Vec<u8>,
    parts: Vec<Part>,
    ended: usize,
}

impl Draft {
    /// What was appended since the last time: copies of one item, or something that one is told.
    pub(super) fn end(&mut self, stanzas: u64, item: Option<Name>) {
        let bytes = self.bytes.len() - self.ended;
        if bytes > 0 {
            self.parts.push(Part { bytes, stanzas, item });
            self.ended = self.bytes.len();
        }
    }
}

#[derive(Debug)]
struct Part {
    bytes: usize,
    stanzas: u64,
    item: Option<Name>,
}

/// Some stanzas that are written together.
#[derive(Debug)]
struct Wire {
    bytes: Bytes,
    parts: Vec<Part>,
    /// An earlier stream was given it.
    again: bool,
    /// Streams that the server ended for what it had read, when this was the first that it had not acknowledged.
    blamed: u8,
}

impl Wire {
    fn stanzas(&self) -> u64 {
        self.parts.iter().map(|part| part.stanzas).sum()
    }

    /// Each part for itself. One without parts stays: others count wires, too.
    fn split(self) -> Vec<Self> {
        if self.parts.is_empty() {
            return vec![self];
        }
        let Self { mut bytes, parts, again, blamed } = self;
        let alone = |part: Part| Self { bytes: bytes.split_to(part.bytes), parts: vec![part], again, blamed };
        parts.into_iter().map(alone).collect()
    }

    /// Takes out the copies of an item. How many.
    fn forget(&mut self, item: &Name) -> u64 {
        let before = self.stanzas();
        let (mut rest, mut from) = (Vec::new(), 0);
        self.parts.retain(|part| {
            let own = from..from + part.bytes;
            from = own.end;
            let stays = part.item.as_ref() != Some(item);
            if stays {
                rest.extend_from_slice(&self.bytes[own]);
            }
            stays
        });
        if self.stanzas() == before {
            return 0;
        }
        if rest.is_empty() {
            // White space is nothing between stanzas, and keeps its place.
            rest.push(b'\n');
        }
        self.bytes = rest.into();
        before - self.stanzas()
    }
}

/// What has ended a stream.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Blame {
    Nobody,
    /// The first that was not acknowledged, which has become so many.
    OneOf(usize),
    /// It is given up: so many stanzas, and all other copies of an item.
    Known {
        stanzas: u64,
        item: Option<Name>,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hearing {
    Unknown,
    /// What the component sends to itself comes back.
    Good,
    /// It does not: what is written counts as read.
    Deaf,
}

#[derive(Debug)]
struct Echo {
    number: u64,
    /// Of all wires, those before it.
    through: u64,
    at: Instant,
}

/// What a server's silence means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Silence {
    /// There is time yet.
    Short,
    /// So many wires count as read, and all that come.
    Deaf(usize),
    /// It reads nothing any more.
    Hung,
}

impl Window {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            wires: VecDeque::new(),
            written: 0,
            bytes: 0,
            limit,
            hearing: Hearing::Unknown,
            heard: false,
            token: String::new(),
            number: 0,
            echoes: VecDeque::new(),
            done: 0,
            asked_at: None,
            heard_at: None,
            unasked: 0,
            unasked_at: None,
            doubts: false,
            spoken: false,
        }
    }

    /// There is a stream: it is given everything that the one before had not acknowledged.
    pub(super) fn join(&mut self) {
        self.part();
        let mut random = [0; 8];
        // The number alone tells one echo from another.
        _ = aws_lc_rs::rand::fill(&mut random);
        self.token = random.iter().map(|byte| format!("{byte:02x}")).collect();
    }

    pub(super) fn part(&mut self) {
        let unheard = self.hearing == Hearing::Good && self.asked_at.is_some() && !self.heard;
        // The next may be a server that was only slow.
        if unheard || self.hearing == Hearing::Deaf {
            self.hearing = Hearing::Unknown;
        }
        self.wires.iter_mut().take(self.written).for_each(|wire| wire.again = true);
        (self.written, self.bytes, self.unasked, self.heard) = (0, 0, 0, false);
        (self.asked_at, self.heard_at, self.unasked_at) = (None, None, None);
        self.spoken = false;
        self.echoes.clear();
    }

    /// The server has ended the stream for what it had read: the first that it has not acknowledged, when each was asked about.
    pub(super) fn blame(&mut self) -> Blame {
        if self.hearing == Hearing::Deaf || self.written == 0 {
            // What it had read is not here any more.
            return Blame::Nobody;
        }
        self.part();
        self.doubts = true;
        let Some(mut first) = self.wires.pop_front() else { return Blame::Nobody };
        first.blamed += 1;
        if first.blamed < MOST_BLAMED || first.parts.len() > 1 {
            let parts = first.split();
            let count = parts.len();
            parts.into_iter().rev().for_each(|part| self.wires.push_front(part));
            return Blame::OneOf(count);
        }
        self.done += 1;
        let mut stanzas = first.stanzas();
        let item = first.parts.pop().and_then(|part| part.item);
        if let Some(item) = &item {
            stanzas += self.wires.iter_mut().map(|wire| wire.forget(item)).sum::<u64>();
        }
        Blame::Known { stanzas, item }
    }

    /// Whether nothing more is given before something is acknowledged.
    pub(super) const fn is_full(&self) -> bool {
        self.bytes >= self.limit
    }

    /// Of all wires that there ever were.
    pub(super) fn end(&self) -> u64 {
        self.done + self.wires.len() as u64
    }

    pub(super) const fn is_done(&self, end: u64) -> bool {
        self.done >= end
    }

    /// Bytes that are written and not acknowledged.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is to be written next, of what there is. The same until it is [`Self::written`].
    pub(super) fn next(&self) -> Option<Bytes> {
        self.wires.get(self.written).map(|wire| wire.bytes.clone())
    }

    pub(super) fn add(&mut self, Draft { bytes, parts, .. }: Draft) -> Bytes {
        let bytes = Bytes::from(bytes);
        self.wires.push_back(Wire { bytes: bytes.clone(), parts, again: false, blamed: 0 });
        bytes
    }

    /// How many stanzas were written once more.
    pub(super) fn written(&mut self, now: Instant) -> u64 {
        let Some(wire) = self.wires.get(self.written) else { return 0 };
        self.written += 1;
        self.bytes += wire.bytes.len();
        self.doubts &= wire.again;
        self.unasked += if self.doubts { ASK_BYTES } else { wire.bytes.len() };
        self.unasked_at.get_or_insert(now);
        if wire.again { wire.stanzas() } else { 0 }
    }

    /// How many wires count as read without being acknowledged.
    pub(super) fn believed(&mut self) -> usize {
        if self.hearing == Hearing::Deaf { self.finish(self.written) } else { 0 }
    }

    /// The echo that is to be written now, if it is time; `flush`: nothing more comes soon.
    pub(super) fn ask(&mut self, now: Instant, flush: bool) -> Option<String> {
        let is_deaf = self.hearing == Hearing::Deaf;
        let is_late =
            self.unasked >= ASK_BYTES || self.unasked_at.is_some_and(|at| flush || at + ASK_AFTER <= now);
        let is_quiet = self.asked_at.is_none_or(|at| at + QUIET <= now);
        if !is_quiet && (is_deaf || !is_late) {
            return None;
        }
        if is_deaf {
            self.echoes.clear();
        }
        self.number += 1;
        let through = self.done + self.written as u64;
        self.echoes.push_back(Echo { number: self.number, through, at: now });
        (self.asked_at, self.unasked, self.unasked_at) = (Some(now), 0, None);
        Some(format!("{PREFIX}{}-{}", self.token, self.number))
    }

    /// Something of the component's own has come back. How many wires are acknowledged by it.
    pub(super) fn hear(&mut self, id: &str, now: Instant) -> usize {
        let number = id.strip_prefix(PREFIX).and_then(|id| id.strip_prefix(&*self.token)?.strip_prefix('-'));
        let number: Option<u64> = number.and_then(|number| number.parse().ok());
        let Some(at) = self.echoes.iter().position(|echo| Some(echo.number) == number) else {
            return 0;
        };
        let through = self.echoes.drain(..=at).next_back().map_or(self.done, |echo| echo.through);
        (self.hearing, self.heard, self.heard_at) = (Hearing::Good, true, Some(now));
        self.finish(usize::try_from(through.saturating_sub(self.done)).unwrap_or(usize::MAX))
    }

    /// The server has brought something else.
    pub(super) fn speak(&mut self) {
        self.spoken |= !self.echoes.is_empty();
    }

    /// What it means that the first echo has not come back yet.
    pub(super) fn silence(&mut self, now: Instant) -> Silence {
        let Some(until) = self.patience() else { return Silence::Short };
        if now < until {
            return Silence::Short;
        }
        if self.hearing == Hearing::Good {
            return Silence::Hung;
        }
        // An echo that comes late is heard all the same.
        self.hearing = Hearing::Deaf;
        Silence::Deaf(self.finish(self.written))
    }

    /// When to ask, or to look at the silence, if nothing happens before.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let quiet = self.asked_at.map_or(now, |at| at + QUIET);
        let late = self.unasked_at.map(|at| at + ASK_AFTER).filter(|_| self.hearing != Hearing::Deaf);
        [late, self.patience()].into_iter().flatten().fold(quiet, Instant::min)
    }

    /// Until when the first echo may stay away.
    fn patience(&self) -> Option<Instant> {
        let patience = match self.hearing {
            Hearing::Unknown if self.spoken => HEAR_WITHIN,
            Hearing::Unknown | Hearing::Good => STALL,
            Hearing::Deaf => return None,
        };
        let asked_at = self.echoes.front()?.at;
        Some(self.heard_at.map_or(asked_at, |heard_at| heard_at.max(asked_at)) + patience)
    }

    fn finish(&mut self, count: usize) -> usize {
        let count = count.min(self.written);
        self.bytes -= self.wires.drain(..count).map(|wire| wire.bytes.len()).sum::<usize>();
        self.written -= count;
        self.done += count as u64;
        count
    }
}

/// What all echoes are called, those of earlier streams, too.
pub(super) const PREFIX: &str = "echo-";
/// It is asked after so many bytes, or so long after the first of them.
const ASK_BYTES: usize = 64 << 10;
const ASK_AFTER: Duration = Duration::from_millis(250);
/// It is asked so often without a reason, so that a server that has vanished is noticed, and no middlebox forgets the
/// connection.
const QUIET: Duration = Duration::from_secs(30);
/// A server that brings other things, and what it was asked not within this time, never will.
const HEAR_WITHIN: Duration = Duration::from_secs(10);
/// One that has brought it back before, and does not any more for so long, does not read. From one that brings nothing at all
/// nothing else is to be expected.
const STALL: Duration = Duration::from_secs(30);
/// It may have been another's fault once.
const MOST_BLAMED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    struct Streams {
        window: Window,
        now: Instant,
    }

    impl Streams {
        fn new(limit: usize) -> Self {
            let mut window = Window::new(limit);
            window.join();
            Self { window, now: Instant::now() }
        }

        fn write(&mut self, text: &str) {
            self.write_all(&[(text, None)]);
        }

        fn write_all(&mut self, parts: &[(&str, Option<Name>)]) {
            let mut draft = Draft::default();
            for (text, item) in parts {
                draft.bytes.extend_from_slice(text.as_bytes());
                draft.end(1, item.clone());
            }
            self.window.add(draft);
            self.window.written(self.now);
        }

        fn ask(&mut self) -> Option<String> {
            self.window.ask(self.now, false)
        }

        /// All that is written to a new stream.
        fn again(&mut self) -> (String, u64) {
            self.window.join();
            let (mut all, mut count) = (String::new(), 0);
            while let Some(wire) = self.window.next() {
                all += str::from_utf8(&wire).unwrap();
                count += self.window.written(self.now);
            }
            (all, count)
        }
    }

    #[test]
    fn what_has_come_back_acknowledges_all_before_it() {
        let mut streams = Streams::new(4);
        let first = streams.ask().expect("at once: does it bring anything back?");
        assert_eq!(streams.ask(), None);
        streams.write("ab");
        assert_eq!((streams.ask(), streams.window.is_full()), (None, false));
        streams.now += ASK_AFTER;
        let second = streams.ask().unwrap();
        streams.write("cd");
        assert!(streams.window.is_full());
        assert_eq!(
            (streams.window.hear(&first, streams.now), streams.window.hear("echo-1", streams.now)),
            (0, 0)
        );
        assert_eq!(
            (streams.window.hear(&second, streams.now), streams.window.hear(&second, streams.now)),
            (1, 0)
        );
        assert!(!streams.window.is_full() && !streams.window.is_done(streams.window.end()));
        let third = streams.window.ask(streams.now, true).unwrap();
        assert_eq!(streams.again(), ("cd".to_owned(), 1));
        assert_eq!(streams.window.hear(&third, streams.now), 0, "of the stream before");
        let last = streams.ask().unwrap();
        streams.write(&"x".repeat(ASK_BYTES));
        assert!(streams.ask().is_some());
        assert_eq!(streams.window.hear(&last, streams.now), 1);
    }

    #[test]
    fn a_server_that_brings_nothing_back_is_believed_after_a_while() {
        let mut streams = Streams::new(1);
        let echo = streams.ask().unwrap();
        streams.write("ab");
        assert_eq!(streams.window.believed(), 0);
        // It may be slow, as long as it says nothing else.
        streams.now += HEAR_WITHIN;
        assert_eq!(streams.window.silence(streams.now), Silence::Short);
        streams.now -= Duration::from_millis(1);
        streams.window.speak();
        assert_eq!(streams.window.silence(streams.now), Silence::Short);
        streams.now = streams.window.due(streams.now).max(streams.now) + Duration::from_millis(1);
        assert_eq!(streams.window.silence(streams.now), Silence::Deaf(1));
        streams.write("cd");
        assert_eq!((streams.ask(), streams.window.believed(), streams.window.is_full()), (None, 1, false));
        // It was slow: from now on nothing is believed.
        assert_eq!(streams.window.hear(&echo, streams.now), 0);
        streams.write("ef");
        assert_eq!(streams.window.believed(), 0);
        // The next stream is asked once more.
        streams.window.join();
        let echo = streams.ask().unwrap();
        streams.write("ef");
        streams.window.hear(&echo, streams.now);
        assert_eq!(streams.window.believed(), 0);
    }

    #[test]
    fn a_server_that_stops_reading_is_noticed() {
        let mut streams = Streams::new(1);
        let echo = streams.ask().unwrap();
        streams.window.hear(&echo, streams.now);
        streams.now = streams.window.due(streams.now);
        assert!(streams.ask().is_some(), "also without anything to write");
        streams.now += STALL;
        assert_eq!(streams.window.silence(streams.now), Silence::Hung);
        // If the next brings nothing back at all, it may be another server.
        streams.window.join();
        streams.ask().unwrap();
        streams.now += STALL;
        assert_eq!(streams.window.silence(streams.now), Silence::Hung);
        streams.window.join();
        streams.ask().unwrap();
        streams.now += STALL - Duration::from_millis(1);
        assert_eq!(streams.window.silence(streams.now), Silence::Short);
        streams.now += Duration::from_millis(1);
        assert_eq!(streams.window.silence(streams.now), Silence::Deaf(0));
        // Nor is the next deaf before it is asked.
        streams.window.join();
        streams.write("ab");
        assert_eq!(streams.window.believed(), 0);
    }

    /// One stanza that a server cannot read must not end all streams to come, nor take others with it.
    #[test]
    fn what_ends_two_streams_is_given_up() {
        let mut streams = Streams::new(99);
        let poison = Name::Numbered(1);
        streams.write("first");
        streams.write_all(&[
            ("answer", None),
            ("poison", Some(poison.clone())),
            ("item", Some(Name::Numbered(2))),
        ]);
        streams.write_all(&[("poison", Some(poison.clone())), ("good", None)]);
        streams.write_all(&[("poison", Some(poison.clone()))]);
        assert_eq!(streams.window.blame(), Blame::OneOf(1));
        // Now each is asked about, and what was before it is known to be read.
        let mut until = |wires: usize| {
            streams.window.join();
            let mut echoes = Vec::new();
            while streams.window.next().is_some() {
                streams.window.written(streams.now);
                echoes.push(streams.window.ask(streams.now, false).expect("one each"));
            }
            echoes.iter().take(wires).for_each(|echo| _ = streams.window.hear(echo, streams.now));
            streams.window.blame()
        };
        assert_eq!(until(1), Blame::OneOf(3));
        assert_eq!(until(1), Blame::Known { stanzas: 3, item: Some(poison) });
        assert_eq!(streams.again(), ("itemgood\n".to_owned(), 2));
        let echo = streams.window.ask(streams.now, true).unwrap();
        streams.window.hear(&echo, streams.now);
        assert!(streams.window.is_done(streams.window.end()));
        // Nothing but what it has read can be it.
        assert_eq!(streams.window.blame(), Blame::Nobody);
    }

    /// What keeps the place of copies that were taken out is a wire like others, also when it is blamed.
    #[test]
    fn what_nothing_is_left_of_is_counted() {
        let mut streams = Streams::new(99);
        let poison = || Some(Name::Numbered(1));
        (0..2).for_each(|_| streams.write_all(&[("poison", poison())]));
        assert_eq!(streams.window.blame(), Blame::OneOf(1));
        assert_eq!(streams.again(), ("poisonpoison".to_owned(), 2));
        assert_eq!(streams.window.blame(), Blame::Known { stanzas: 2, item: poison() });
        for expected in [Blame::OneOf(1), Blame::Known { stanzas: 0, item: None }] {
            assert_eq!(streams.window.end(), 2);
            assert_eq!(streams.again(), ("\n".to_owned(), 0));
            assert_eq!(streams.window.blame(), expected);
        }
        assert!(streams.window.is_done(2) && streams.window.end() == 2);
    }
}
