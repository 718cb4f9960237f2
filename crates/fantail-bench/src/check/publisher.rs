//! A publisher of one channel: numbered items, a few at a time, one request under way. Owns its connection and what it
//! does when there is no good answer: try the same again, or go on.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::dice::Dice;
use super::history::{Class, Id, What};
use super::origin::{Heads, channel_name, push_event};
use super::payload;
use super::subscriber::Arena;
use super::wire::Wire;

#[derive(Debug)]
pub(crate) struct Publisher<'a> {
    pub(crate) arena: &'a Arena,
    pub(crate) ch: u16,
    pub(crate) class: Class,
    pub(crate) publisher: u16,
    /// The channel has no other: its items say which one they follow.
    pub(crate) alone: bool,
    /// Its items are webhooks, too.
    pub(crate) posts: bool,
    /// Tries the same items again until they are acknowledged.
    pub(crate) repeats: bool,
    pub(crate) heads: &'a Heads,
    pub(crate) dice: Dice,
    /// Milliseconds between two requests, on average.
    pub(crate) pace: u64,
}

enum Outcome {
    Accepted,
    Refused,
    /// Nobody knows.
    Lost,
}

impl Publisher<'_> {
    /// Publishes until the run is over. `requests` numbers the requests of all; `phase` is 1 when markers are due.
    pub(crate) fn run(mut self, requests: &AtomicU32, phase: &AtomicU32) {
        let (mut wire, mut number) = (None, 1);
        while !self.arena.stopped() && phase.load(SeqCst) < 2 {
            let marker = phase.load(SeqCst) == 1;
            let last = number + u32::try_from(self.dice.below(3)).unwrap_or(0);
            let items: Vec<Id> =
                (number..=last).map(|number| Id { publisher: self.publisher, number }).collect();
            if self.class == Class::Origin && self.heads.set(self.ch, last).is_err() {
                return;
            }
            loop {
                let request = requests.fetch_add(1, SeqCst);
                for (id, at) in items.iter().zip(0..) {
                    let (ch, id) = (self.ch, *id);
                    self.arena.recorder.note(What::PubInvoke { ch, id, request, at, marker });
                }
                match self.post(&mut wire, &self.body(&items)) {
                    Outcome::Accepted => {
                        self.arena.recorder.note(What::PubOk { request });
                        break;
                    }
                    Outcome::Refused => self.arena.recorder.note(What::PubFail { request }),
                    Outcome::Lost => wire = None,
                }
                if self.arena.stopped() {
                    return;
                }
                self.arena.pause(50);
                if !self.repeats {
                    break;
                }
            }
            number = last + 1;
            let pause = self.dice.below(self.pace * 2);
            self.arena.pause(pause);
        }
    }

    fn body(&self, items: &[Id]) -> String {
        let channel = channel_name(self.class, self.ch);
        let item = |id: &Id| {
            let text = payload::make(&channel, *id);
            let mut event = String::new();
            push_event(&mut event, *id, &text);
            let mut item = serde_json::json!({
                "channel": channel, "id": id,
                "formats": {
                    "http-stream": { "content": event },
                    "http-response": { "body": format!("{text}\n") },
                    "ws-message": { "content": text },
                },
            });
            if self.posts {
                item["formats"]["http-request"] = serde_json::json!({ "body": payload::make(&channel, *id) });
            }
            if self.alone && id.number > 1 {
                item["prev-id"] = Id { number: id.number - 1, ..*id }.to_string().into();
            }
            item
        };
        serde_json::json!({ "items": items.iter().map(item).collect::<Vec<_>>() }).to_string()
    }

    fn post(&self, wire: &mut Option<Wire>, body: &str) -> Outcome {
        let arena = self.arena;
        if wire.is_none() {
            *wire = Wire::connect(arena.publishers).ok();
        }
        // Not even begun.
        let Some(connection) = wire else { return Outcome::Refused };
        let head = format!(
            "POST /publish/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if connection.send(format!("{head}{body}").as_bytes()).is_err() {
            return Outcome::Lost;
        }
        let Some(answer) = connection.answer(ANSWER_SECONDS, || false) else { return Outcome::Lost };
        if !answer.stays {
            *wire = None;
        }
        if (200..300).contains(&answer.status) { Outcome::Accepted } else { Outcome::Refused }
    }
}

/// Longer than a server is stopped.
const ANSWER_SECONDS: u64 = 8;
