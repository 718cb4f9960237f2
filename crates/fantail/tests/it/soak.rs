//! A long mixed load: streams, long-polls and WebSockets of both kinds come, listen and go in every way, while items
//! are published, the configuration is reloaded and an origin is killed again and again. One publisher numbers its
//! items, so each subscriber must see them one after another: none lost, repeated, late, altered or another's.
//! Run by `./test --soak`; `SOAK_SECONDS` says how long.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use fantail_proto::websocket::{events::Event, frame::Opcode};
use serde_json::json;
use tokio::time::Instant;

use crate::harness::{
    Client, JSON, Origin, Request, Said, TestServer, WebSocket, hold,
    websocket::{close, events, events_of, message, native, opened, subscribe},
};

#[test]
#[ignore = "takes minutes: ./test --soak"]
fn everything_at_once_for_long() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT);
    let steady = Origin::answering(answer_one);
    let mortal = Origin::answering(answer_one);
    let sockets = native("grip", talk);
    let routes = [
        format!("*,path_beg=/mortal {mortal},over_http"),
        format!("*,path_beg=/native {sockets}"),
        format!("* {steady},over_http"),
    ];
    let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
    let server = TestServer::start(&routes, |o| {
        o.set("server.shards", "2").set("logging.access", "false").config("");
    });
    let run = Run {
        server: &server,
        until: Instant::now() + Duration::from_secs(seconds),
        invoked: AtomicU64::new(0),
        over: AtomicBool::new(false),
        counts: Mutex::default(),
    };
    let mut early = None;
    thread::scope(|scope| {
        let subscribers: Vec<_> = (0..EACH)
            .flat_map(|n| (0..5).map(move |kind| (n, kind)))
            .map(|(n, kind)| {
                let mut dice = Dice(1 + n * 5 + kind);
                let run = &run;
                scope.spawn(move || {
                    while Instant::now() < run.until {
                        match kind {
                            0 => run.stream(&mut dice),
                            1 => run.polls(&mut dice),
                            2 => run.websocket("/steady", "over http", &mut dice, false),
                            3 => run.websocket("/native", "native", &mut dice, false),
                            _ => run.websocket("/mortal", "mortal", &mut dice, true),
                        }
                    }
                })
            })
            .collect();
        let publisher = scope.spawn(|| run.publish());
        let killer = scope.spawn(|| run.kill(&mortal));
        let reloader = scope.spawn(|| run.reload());
        while !subscribers.iter().all(|subscriber| subscriber.is_finished()) {
            steady.forget();
            sockets.forget();
            thread::park_timeout(Duration::from_millis(500));
            if early.is_none() && Instant::now() + Duration::from_secs(seconds * 2 / 3) > run.until {
                early = Some((server.memory(), server.open_files()));
            }
        }
        // What a subscriber found is told when the scope ends; the others are let go.
        run.over.store(true, SeqCst);
        drop((publisher, killer, reloader));
    });
    let (memory, files) = early.expect("a third of the time has passed");
    for gauge in ["fantail_subscriptions", "fantail_channels", "fantail_connections", "fantail_pins"] {
        server.wait_metric(gauge, &[], 0.0);
    }
    let grown = server.memory().saturating_sub(memory);
    println!(
        "{seconds} s, {} items, {:?}; {grown} bytes and {} files more than after a third",
        run.invoked.load(SeqCst),
        run.counts.lock().expect("no panic holds it"),
        server.open_files().saturating_sub(files)
    );
    assert!(grown < 16 << 20, "{grown} bytes more than after a third of the time");
}

struct Run<'s> {
    server: &'s TestServer,
    until: Instant,
    /// The last item that somebody began to publish.
    invoked: AtomicU64,
    over: AtomicBool,
    /// What was heard, by kind: conversations and items.
    counts: Mutex<std::collections::BTreeMap<&'static str, (u64, u64)>>,
}

impl Run<'_> {
    fn publish(&self) {
        let host = self.server.control.to_string();
        let fields = [("Host", host.as_str()), JSON[0]];
        let mut client = Client::connect(self.server.control);
        for number in 1.. {
            if self.over.load(SeqCst) {
                return;
            }
            let content = text_of(number);
            let formats = json!({
                "http-stream": { "content": content }, "http-response": { "body": content },
                "ws-message": { "content": content },
            });
            let items = json!({ "items": [{ "channel": "soak", "formats": formats }] }).to_string();
            self.invoked.store(number, SeqCst);
            let answer = client.request("POST", "/publish/", &fields, items.as_bytes()).response();
            assert_eq!(answer.status(), 200, "{}", answer.text());
            thread::park_timeout(PACE);
        }
    }

    /// An origin dies and comes back.
    fn kill(&self, mortal: &Origin) {
        let pause = || {
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until && !self.over.load(SeqCst) {
                thread::park_timeout(Duration::from_millis(100));
            }
        };
        pause();
        mortal.stop();
        while !self.over.load(SeqCst) {
            pause();
            let reborn = Origin::reborn(mortal.address(), answer_one);
            pause();
            drop(reborn);
        }
    }

    fn reload(&self) {
        let file = self.server.folder.path().join("fantail.toml");
        let fresh = self.server.folder.path().join("fresh");
        for ping in ["0s", "1s"].iter().cycle() {
            if self.over.load(SeqCst) {
                return;
            }
            std::fs::write(&fresh, format!("[websocket]\nping_every = \"{ping}\"\n")).expect("a folder");
            std::fs::rename(&fresh, &file).expect("a folder");
            thread::park_timeout(Duration::from_secs(1));
        }
    }

    /// Everything published from now on must come.
    fn ledger(&self) -> Ledger {
        Ledger { due: self.invoked.load(SeqCst) + 1, last: None, items: 0 }
    }

    fn count(&self, kind: &'static str, items: u64) {
        let mut counts = self.counts.lock().expect("no panic holds it");
        let (conversations, heard) = counts.entry(kind).or_default();
        *conversations += 1;
        *heard += items;
    }

    fn stream(&self, dice: &mut Dice) {
        let mut client = self.server.stream("/stream");
        let mut ledger = self.ledger();
        for _ in 0..dice.below(400) {
            ledger.enter(&String::from_utf8_lossy(&client.content(text_of(0).len())));
        }
        self.count("stream", ledger.items);
        if dice.below(2) == 0 {
            client.reset();
        }
    }

    /// What is published between an answer and the next request is nobody's to promise.
    fn polls(&self, dice: &mut Dice) {
        let mut client = self.server.connect();
        let (mut last, rounds) = (0, dice.below(60));
        for _ in 0..rounds {
            let answer = client.get("/poll").response();
            assert_eq!(answer.status(), 200, "{answer:?}");
            let number = number_of(&answer.text());
            assert!(number > last, "{number} after {last}");
            last = number;
        }
        self.count("long-poll", rounds);
        // One that is held when its client leaves.
        client.get("/poll");
    }

    fn websocket(&self, path: &str, kind: &'static str, dice: &mut Dice, may_go: bool) {
        let mut client = match WebSocket::try_open(self.server.client, path, &[]) {
            Ok(client) => client,
            Err(refused) if may_go && refused.status() == 502 => {
                return thread::park_timeout(Duration::from_millis(50));
            }
            Err(refused) => panic!("{kind}: {refused:?}"),
        };
        let mut ledger = Ledger { due: u64::MAX, last: None, items: 0 };
        let (mut spoken, mut echoed) = (0_u64, 0_u64);
        let rounds = dice.below(400);
        let mut closing = false;
        loop {
            match client.next() {
                Said::Text(text) if text == "ready" => ledger.due = self.ledger().due,
                Said::Text(text) => match text.strip_prefix("echo ") {
                    Some(number) => {
                        assert_eq!(number.parse(), Ok(echoed), "{kind}");
                        echoed += 1;
                    }
                    None => ledger.enter(&text),
                },
                Said::Ping(content) => drop(client.send(Opcode::Pong, content)),
                said @ Said::Close(_) if closing => {
                    // An origin that is dead for too long has its say for it: the code alone.
                    assert!(
                        said == close(1000, "bye") || may_go && said == close(1000, ""),
                        "{kind}: {said:?}"
                    );
                    assert!(may_go || echoed == spoken, "{kind}: {echoed} of {spoken} came back");
                    client.expect(Said::Gone);
                    break;
                }
                Said::Gone if may_go => break,
                other => panic!("{kind}: {other:?} after {} items", ledger.items),
            }
            if ledger.items % 7 == 3 && !closing {
                client.text(&format!("echo {spoken}"));
                spoken += 1;
            }
            if ledger.items >= rounds && !closing {
                match dice.below(3) {
                    0 => break,
                    1 => {
                        self.count(kind, ledger.items);
                        return client.reset();
                    }
                    _ => {
                        client.close(1000, "bye");
                        closing = true;
                    }
                }
            }
        }
        self.count(kind, ledger.items);
    }
}

/// What one subscriber has got.
struct Ledger {
    /// The first item must not be a later one.
    due: u64,
    last: Option<u64>,
    items: u64,
}

impl Ledger {
    fn enter(&mut self, text: &str) {
        let number = number_of(text);
        match self.last {
            Some(last) => assert_eq!(number, last + 1, "lost, repeated or out of order"),
            None => assert!(number <= self.due, "{number} is the first, and {} was lost", self.due),
        }
        self.last = Some(number);
        self.items += 1;
    }
}

/// Every item has the same length and says twice who it is.
fn text_of(number: u64) -> String {
    format!("<{number:010}:{:016x}>", number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn number_of(text: &str) -> u64 {
    let number = text.get(1..11).and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{text:?}"));
    assert_eq!(text, text_of(number), "altered");
    number
}

fn answer_one(request: &Request) -> Vec<u8> {
    match request.target() {
        "/stream" => return hold("stream", "soak", &[], ""),
        "/poll" => return hold("response", "soak", &[], "timed out"),
        _ => {}
    }
    let said = events_of(request);
    if said == [Event::Open] {
        return opened(&[subscribe("soak"), message("m:ready")]);
    }
    let back = said.into_iter().filter_map(|event| match event {
        Event::Message(kind, content) => Some(Event::Message(kind, [b"m:", &*content].concat().into())),
        Event::Close(close) => Some(Event::Close(close)),
        Event::Open | Event::Disconnect => None,
    });
    events(&back.collect::<Vec<_>>())
}

/// An origin's own server, which says the same.
fn talk(mut client: WebSocket) {
    client.wire.patience = Duration::from_secs(3600);
    client.text(r#"c:{"type":"subscribe","channel":"soak"}"#).text("m:ready");
    loop {
        match client.next() {
            Said::Text(content) => drop(client.text(&format!("m:{content}"))),
            Said::Close(Some((code, reason))) => drop(client.close(code, &reason)),
            Said::Gone => return,
            other => panic!("{other:?}"),
        }
    }
}

/// Numbers that are the same in each run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

const DEFAULT: u64 = 120;
/// Subscribers of each kind.
const EACH: u64 = 8;
/// Between two items.
const PACE: Duration = Duration::from_millis(4);
