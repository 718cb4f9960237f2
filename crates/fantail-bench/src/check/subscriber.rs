//! A logical subscriber: it comes back after every break and says what it has. Owns its connection and its position;
//! notes what it gets and what it is told, and judges nothing.

use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::dice::Dice;
use super::history::{Class, Fault, Id, Recorder, Transport, What};
use super::origin::{channel_name, channel_of};
use super::payload;
use super::wire::{Chunks, Filled, Wire};
use crate::frame::{self, Opcode, Parsed};
use crate::socket::{self, SECOND};

/// What all threads of a run share.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) recorder: Recorder,
    pub(crate) clients: SocketAddrV4,
    pub(crate) publishers: SocketAddrV4,
    /// Subscribers may leave and stall.
    pub(crate) faults: AtomicBool,
    pub(crate) stop: AtomicBool,
    /// The close code by which a WebSocket is told of a gap.
    pub(crate) gap_code: u16,
}

impl Arena {
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }

    /// Waits, unless the run is over.
    pub(crate) fn pause(&self, milliseconds: u64) {
        let until = socket::now() + milliseconds * 1_000_000;
        while !self.stopped() && socket::now() < until {
            thread::sleep(Duration::from_millis(milliseconds.min(20)));
        }
    }
}

#[derive(Debug)]
pub(crate) struct Subscriber<'a> {
    arena: &'a Arena,
    s: u16,
    transport: Transport,
    channels: Vec<Channel>,
    dice: Dice,
    /// It has left without a word, and is not back yet.
    away: bool,
    /// Returns in a row that were ended without an item.
    fruitless: u32,
    /// Items until it does something of its own accord.
    until_whim: u64,
}

#[derive(Debug)]
struct Channel {
    ch: u16,
    name: String,
    class: Class,
    last: Option<Id>,
    /// [`What::SubOk`] was noted, and no gap since.
    held: bool,
    /// It was subscribed before.
    known: bool,
}

/// Why a conversation goes no further.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// The server, or the network.
    Theirs,
    /// The server says that it cannot go on from the position.
    Gap,
    Ours,
}

impl<'a> Subscriber<'a> {
    pub(crate) fn new(
        arena: &'a Arena,
        s: u16,
        transport: Transport,
        channels: &[(u16, Class)],
        seed: u64,
    ) -> Self {
        let channel = |&(ch, class): &(u16, Class)| Channel {
            ch,
            name: channel_name(class, ch),
            class,
            last: None,
            held: false,
            known: false,
        };
        let channels: Vec<_> = channels.iter().map(channel).collect();
        let mut dice = Dice::new(seed);
        let until_whim = 10 + dice.below(WHIM_ITEMS);
        let chs = channels.iter().map(|channel| channel.ch).collect();
        arena.recorder.note(What::Subscriber { s, tr: transport, chs });
        Self { arena, s, transport, channels, dice, away: false, fruitless: 0, until_whim }
    }

    /// Until the run is over.
    pub(crate) fn run(mut self) {
        while !self.arena.stopped() {
            self.begin();
            let returned = self.channels.iter().any(|channel| channel.last.is_some());
            let before = self.until_whim;
            let (end, open) = match self.transport {
                Transport::Stream => self.stream(),
                Transport::Poll => self.polls(),
                Transport::Websocket => self.websocket(),
            };
            if self.arena.stopped() {
                return;
            }
            self.note(What::Disc { s: self.s });
            let fruitless = open && returned && end == End::Theirs && self.until_whim == before;
            self.fruitless = if fruitless { self.fruitless + 1 } else { 0 };
            if end == End::Gap || self.fruitless == FRUITLESS {
                self.fruitless = 0;
                // An origin that repairs is not given up.
                let told = |index: &usize| end == End::Gap || self.channels[*index].class != Class::Origin;
                for index in (0..self.channels.len()).filter(told).collect::<Vec<_>>() {
                    self.gap(index);
                }
            }
            let pause = 20 + self.dice.below(200);
            self.arena.pause(pause);
        }
    }

    fn note(&self, what: What) {
        self.arena.recorder.note(what);
    }

    /// Says where it goes on, or knows that it cannot.
    fn begin(&mut self) {
        let s = self.s;
        for channel in &mut self.channels {
            if channel.known && (channel.last.is_none() || !channel.class.resumes()) {
                self.arena.recorder.note(What::Gap { s, ch: channel.ch });
                channel.last = None;
                channel.held = false;
            }
            channel.known = !(self.transport == Transport::Poll && channel.last.is_none());
            self.arena.recorder.note(What::SubInvoke { s, ch: channel.ch, after: channel.last });
        }
    }

    fn gap(&mut self, index: usize) {
        let s = self.s;
        if let Some(channel) = self.channels.get_mut(index)
            && channel.last.take().is_some()
        {
            self.arena.recorder.note(What::Gap { s, ch: channel.ch });
            channel.held = false;
            channel.known = false;
        }
    }

    /// From now on nothing may be missed.
    fn held(&mut self) {
        let s = self.s;
        for channel in self.channels.iter_mut().filter(|channel| !channel.held) {
            self.arena.recorder.note(What::SubOk { s, ch: channel.ch });
            channel.held = true;
            channel.known = true;
        }
        self.back();
    }

    fn back(&mut self) {
        if std::mem::take(&mut self.away) {
            self.note(What::Fault { fault: Fault::Cut, s: Some(self.s), on: false });
        }
    }

    /// One line of what a subscriber is shown.
    fn take(&mut self, line: &str) {
        let s = self.s;
        if let Some(name) = line.strip_prefix("gap ") {
            let found = self.channels.iter().position(|channel| channel.name == name);
            return found.into_iter().for_each(|index| self.gap(index));
        }
        if let Some((name, id)) = line.strip_prefix("at ").and_then(|rest| rest.split_once(' ')) {
            for channel in self.channels.iter_mut().filter(|channel| channel.name == name) {
                channel.last = id.parse().ok();
            }
            return self.held();
        }
        self.until_whim = self.until_whim.saturating_sub(1);
        let Some((name, id)) = payload::read(line) else {
            let shown: String = line.chars().take(200).collect();
            eprintln!("fantail-check: subscriber {s} got {shown:?}");
            let ch = self.channels.first().map_or(0, |channel| channel.ch);
            return self.note(What::Recv { s, ch, id: None });
        };
        self.back();
        let Some(channel) = self.channels.iter_mut().find(|channel| channel.name == name) else {
            let ch = channel_of(name).map_or(u16::MAX, |(_, ch)| ch);
            return self.note(What::Recv { s, ch, id: Some(id) });
        };
        channel.last = Some(id);
        self.arena.recorder.note(What::Recv { s, ch: channel.ch, id: Some(id) });
        // A poll that goes on from an item misses nothing from then on.
        if !channel.held && channel.class.resumes() {
            channel.held = true;
            channel.known = true;
            self.arena.recorder.note(What::SubOk { s, ch: channel.ch });
        }
    }

    /// True when it is to leave now. May stall.
    fn whim(&mut self) -> bool {
        if self.until_whim > 0 || !self.arena.faults.load(SeqCst) {
            return false;
        }
        self.until_whim = 10 + self.dice.below(WHIM_ITEMS);
        if self.dice.below(3) > 0 {
            self.away = true;
            self.note(What::Fault { fault: Fault::Cut, s: Some(self.s), on: true });
            return true;
        }
        let (s, pause) = (Some(self.s), 500 + self.dice.below(2500));
        self.note(What::Fault { fault: Fault::Stall, s, on: true });
        self.arena.pause(pause);
        self.note(What::Fault { fault: Fault::Stall, s, on: false });
        false
    }

    fn request(&self, path: &str, more: &str, in_query: bool) -> String {
        let mut query = format!("s={}", self.s);
        for Channel { name, .. } in &self.channels {
            query.push_str(&format!("&ch={name}"));
        }
        let positions: Vec<String> = self
            .channels
            .iter()
            .filter_map(|channel| channel.last.map(|id| format!("{}:{id}", channel.name)))
            .collect();
        let mut header = String::new();
        if in_query {
            positions.iter().for_each(|position| query.push_str(&format!("&after={position}")));
        } else if !positions.is_empty() {
            header = format!("Last-Event-ID: {}\r\n", positions.join(","));
        }
        format!("GET {path}?{query} HTTP/1.1\r\nHost: localhost\r\n{header}{more}\r\n")
    }

    /// Whether it was open, too.
    fn stream(&mut self) -> (End, bool) {
        let Ok(mut wire) = Wire::connect(self.arena.clients) else { return (End::Theirs, false) };
        let request = self.request("/stream", "Accept: text/event-stream\r\n", false);
        let arena = self.arena;
        if wire.send(request.as_bytes()).is_err() || wire.head(HEAD_SECONDS, || arena.stopped()) != Some(200)
        {
            return (End::Theirs, false);
        }
        self.held();
        let (mut chunks, mut text) = (Chunks::default(), Vec::new());
        let mut heard = socket::now();
        loop {
            chunks.input.append(&mut wire.input);
            let Some(content) = chunks.take() else {
                self.take("not chunked");
                return (End::Theirs, true);
            };
            text.extend_from_slice(&content);
            while let Some(end) = memchr::memchr(b'\n', &text) {
                let line: Vec<u8> = text.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line[..end]).into_owned();
                match line.strip_prefix("data: ") {
                    Some(data) => self.take(data),
                    // What was the last id is none any more.
                    None if line == "id" => (0..self.channels.len()).for_each(|index| self.gap(index)),
                    None if line.is_empty() || line.starts_with(':') || line.starts_with("id: ") => {}
                    None => self.take(&line),
                }
            }
            if self.arena.stopped() || self.whim() {
                return (End::Ours, true);
            }
            match wire.fill() {
                Filled::More => heard = socket::now(),
                // Its keep-alive comes every five seconds.
                Filled::Nothing if socket::now() - heard > QUIET => return (End::Theirs, true),
                Filled::Nothing if chunks.ended => return (End::Theirs, true),
                Filled::Nothing => {}
                Filled::End => return (End::Theirs, true),
            }
        }
    }

    fn polls(&mut self) -> (End, bool) {
        let Ok(mut wire) = Wire::connect(self.arena.clients) else { return (End::Theirs, false) };
        let arena = self.arena;
        let mut first = true;
        loop {
            if !std::mem::take(&mut first) {
                self.again();
            }
            let request = self.request("/poll", "", true);
            if wire.send(request.as_bytes()).is_err() {
                return (End::Theirs, false);
            }
            let Some(answer) = wire.answer(POLL_SECONDS, || arena.stopped()) else {
                return (End::Theirs, false);
            };
            if answer.status != 200 {
                return (End::Theirs, false);
            }
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            text.lines().for_each(|line| self.take(line));
            if self.arena.stopped() || self.whim() || !answer.stays {
                return (End::Ours, true);
            }
        }
    }

    /// The next poll on the same connection, from where the last one led.
    fn again(&self) {
        for channel in
            self.channels.iter().filter(|channel| channel.last.is_some() && channel.class.resumes())
        {
            self.note(What::SubInvoke { s: self.s, ch: channel.ch, after: channel.last });
        }
    }

    fn websocket(&mut self) -> (End, bool) {
        let Ok(mut wire) = Wire::connect(self.arena.clients) else { return (End::Theirs, false) };
        let request = self.request("/ws", HANDSHAKE, true);
        let arena = self.arena;
        if wire.send(request.as_bytes()).is_err() || wire.head(HEAD_SECONDS, || arena.stopped()) != Some(101)
        {
            return (End::Theirs, false);
        }
        loop {
            let (mut used, mut out) = (0, Vec::new());
            loop {
                match frame::parse(&wire.input[used..]) {
                    Parsed::Incomplete => break,
                    Parsed::Whole(Opcode::Text, place) => {
                        let text = String::from_utf8_lossy(&wire.input[used..][place.clone()]).into_owned();
                        used += place.end;
                        if text == "ready" { self.held() } else { self.take(&text) }
                    }
                    Parsed::Whole(Opcode::Ping, place) => {
                        frame::append(Opcode::Pong, &wire.input[used..][place.clone()], &mut out);
                        used += place.end;
                    }
                    Parsed::Whole(Opcode::Pong, place) => used += place.end,
                    Parsed::Whole(Opcode::Close, place) => {
                        let code =
                            wire.input[used..][place].first_chunk().map(|code| u16::from_be_bytes(*code));
                        return (
                            if code == Some(self.arena.gap_code) { End::Gap } else { End::Theirs },
                            true,
                        );
                    }
                    Parsed::Unexpected => {
                        self.take("an unexpected frame");
                        return (End::Theirs, true);
                    }
                }
            }
            wire.input.drain(..used);
            if wire.send(&out).is_err() {
                return (End::Theirs, true);
            }
            if self.arena.stopped() || self.whim() {
                return (End::Ours, true);
            }
            if wire.fill() == Filled::End {
                return (End::Theirs, true);
            }
        }
    }
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const HEAD_SECONDS: u64 = 15;
/// A poll times out after eight.
const POLL_SECONDS: u64 = 20;
/// Without a byte of a stream.
const QUIET: u64 = 12 * SECOND;
/// After so many, a subscriber takes it that its position is of no use.
const FRUITLESS: u32 = 3;
/// Items between two whims of a subscriber, at most and not counting ten.
const WHIM_ITEMS: u64 = 600;
