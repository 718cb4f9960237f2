//! `fantail-check origin`: the backend of a run, a process of its own so that it can be killed. It remembers nothing: a
//! client says what it has, and the origin holds it there. On channels of the class `origin` it knows every item, from a
//! file with each channel's last number, and repairs gaps itself; of others it can only say that there is one.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use super::history::{Class, Id};
use super::payload;
use crate::request::{self, Parsed};

/// The last item of each channel, which its publisher writes before it publishes.
#[derive(Debug)]
pub(crate) struct Heads(File);

impl Heads {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self(file))
    }

    pub(crate) fn set(&self, ch: u16, number: u32) -> io::Result<()> {
        self.0.write_all_at(&number.to_le_bytes(), u64::from(ch) * 4)
    }

    fn get(&self, ch: u16) -> u32 {
        let mut bytes = [0; 4];
        self.0.read_exact_at(&mut bytes, u64::from(ch) * 4).map_or(0, |()| u32::from_le_bytes(bytes))
    }
}

/// Serves until it is killed.
pub(crate) fn serve(listener: &TcpListener, heads: &Heads) -> io::Result<()> {
    thread::scope(|scope| {
        loop {
            let (stream, _) = listener.accept()?;
            scope.spawn(move || drop(converse(stream, heads)));
        }
    })
}

fn converse(mut stream: TcpStream, heads: &Heads) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut input, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        match request::parse(&input) {
            Parsed::Whole(body) => {
                let head = String::from_utf8_lossy(&input[..body.start]).into_owned();
                let answer = Asked::read(&head).answer(&input[body.clone()], &|ch| heads.get(ch));
                input.drain(..body.end);
                stream.write_all(&answer)?;
            }
            Parsed::Malformed => return Ok(()),
            Parsed::Incomplete => match stream.read(&mut buffer)? {
                0 => return Ok(()),
                taken => input.extend_from_slice(&buffer[..taken]),
            },
        }
    }
}

/// A channel's name is its class and its number.
pub(crate) fn channel_name(class: Class, ch: u16) -> String {
    format!("{}-{ch}", class.name())
}

pub(crate) fn channel_of(name: &str) -> Option<(Class, u16)> {
    let (class, ch) = name.split_once('-')?;
    Some((Class::ALL.into_iter().find(|known| known.name() == class)?, ch.parse().ok()?))
}

/// What a request says.
#[derive(Debug, Default)]
struct Asked<'a> {
    path: &'a str,
    channels: Vec<&'a str>,
    /// What the client has, by channel; what the server knows that it has is better.
    after: Vec<(&'a str, Id)>,
    /// The server could not go on from there.
    broken: Vec<(&'a str, Id)>,
}

impl<'a> Asked<'a> {
    fn read(head: &'a str) -> Self {
        let mut lines = head.split("\r\n");
        let target = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut asked = Self { path, ..Self::default() };
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "ch" => asked.channels.push(value),
                "after" => asked.after.extend(position(value, ':')),
                _ => {}
            }
        }
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            if name.eq_ignore_ascii_case("last-event-id") {
                asked.after.extend(value.split(',').filter_map(|each| position(each, ':')));
            } else if name.eq_ignore_ascii_case("grip-last") {
                let channel = value.split(';').next().unwrap_or_default().trim();
                let id = value.split("last-id=").nth(1).and_then(|id| id.trim().parse().ok());
                asked.broken.extend(id.map(|id| (channel, id)));
            }
        }
        asked
    }

    fn after(&self, channel: &str) -> Option<Id> {
        let of = |list: &[(&str, Id)]| list.iter().find(|(name, _)| *name == channel).map(|(_, id)| *id);
        of(&self.broken).or_else(|| of(&self.after))
    }

    fn answer(&self, body: &[u8], heads: &dyn Fn(u16) -> u32) -> Vec<u8> {
        let states: Vec<State<'_>> =
            self.channels.iter().filter_map(|name| self.state(name, heads)).collect();
        match self.path {
            "/stream" | "/next" => self.stream(&states),
            "/poll" => Self::poll(&states),
            "/ws" => self.websocket(&states, body),
            _ => response("", "up\n"),
        }
    }

    /// What is to be said about a channel.
    fn state(&self, name: &'a str, heads: &dyn Fn(u16) -> u32) -> Option<State<'a>> {
        let (class, ch) = channel_of(name)?;
        let after = self.after(name);
        let mut state = State { name, after, missed: Vec::new(), broken: false, first: false };
        if class == Class::Origin {
            let head = heads(ch);
            let from = after.map_or(head, |id| id.number);
            state.missed = (from + 1..=head).map(|number| Id { publisher: 0, number }).collect();
            state.first = after.is_none();
            state.after = Some(Id { publisher: 0, number: head });
        } else if self.broken.iter().any(|(broken, _)| *broken == name) {
            (state.after, state.broken) = (None, true);
        }
        Some(state)
    }

    fn stream(&self, states: &[State<'_>]) -> Vec<u8> {
        let mut body = String::from(":\n\n");
        for state in states {
            for id in &state.missed {
                push_event(&mut body, *id, &payload::make(state.name, *id));
            }
            if state.broken {
                body.push_str(&format!("data: gap {}\n\n", state.name));
            }
        }
        let mut head = String::from("Content-Type: text/event-stream\r\nGrip-Hold: stream\r\n");
        head.push_str("Grip-Keep-Alive: :\\n\\n; format=cstring; timeout=5\r\n");
        states.iter().for_each(|state| state.push_hold(&mut head));
        if states.iter().all(|state| channel_of(state.name).is_some_and(|(class, _)| class == Class::Origin))
        {
            let query: Vec<String> = states.iter().map(State::query).collect();
            head.push_str(&format!("Grip-Link: </next?{}>; rel=next; timeout=600\r\n", query.join("&")));
        }
        response(&head, &body)
    }

    /// Everything that was missed at once; else a hold.
    fn poll(states: &[State<'_>]) -> Vec<u8> {
        let mut body = String::new();
        for state in states {
            for id in state.missed.iter().take(POLL_ITEMS) {
                body.push_str(&payload::make(state.name, *id));
                body.push('\n');
            }
            if state.first
                && let Some(id) = state.after
            {
                body.push_str(&format!("at {} {id}\n", state.name));
            }
            if state.broken {
                body.push_str(&format!("gap {}\n", state.name));
            }
        }
        if !body.is_empty() {
            return response("Content-Type: text/plain\r\n", &body);
        }
        let mut head = String::from("Content-Type: text/plain\r\nGrip-Hold: response\r\nGrip-Timeout: 8\r\n");
        states.iter().for_each(|state| state.push_hold(&mut head));
        response(&head, "")
    }

    fn websocket(&self, states: &[State<'_>], events: &[u8]) -> Vec<u8> {
        let mut body = String::new();
        let opening = events.starts_with(b"OPEN\r\n");
        if opening {
            body.push_str("OPEN\r\n");
        }
        let told = states.iter().any(|state| state.broken);
        // Of what is open already, only what the server asks for is missing.
        let asked = |name: &str| opening || self.broken.iter().any(|(broken, _)| *broken == name);
        if opening || events.is_empty() {
            for state in states.iter().filter(|state| asked(state.name)) {
                state
                    .missed
                    .iter()
                    .for_each(|id| push_text(&mut body, &format!("m:{}", payload::make(state.name, *id))));
                if state.broken {
                    push_text(&mut body, &format!("m:gap {}", state.name));
                }
                let prev = state.after.map(|id| format!(r#","prev-id":"{id}""#)).unwrap_or_default();
                if opening || state.broken || !state.missed.is_empty() {
                    push_text(
                        &mut body,
                        &format!(r#"c:{{"type":"subscribe","channel":"{}"{prev}}}"#, state.name),
                    );
                }
            }
            if opening || told {
                push_text(&mut body, "m:ready");
            }
        }
        response("Content-Type: application/websocket-events\r\nSec-WebSocket-Extensions: grip\r\n", &body)
    }
}

#[derive(Debug)]
struct State<'a> {
    name: &'a str,
    /// Where the hold goes on.
    after: Option<Id>,
    missed: Vec<Id>,
    broken: bool,
    /// The client had no position yet.
    first: bool,
}

impl State<'_> {
    fn push_hold(&self, head: &mut String) {
        head.push_str(&format!("Grip-Channel: {}", self.name));
        if let Some(id) = self.after {
            head.push_str(&format!("; prev-id={id}"));
        }
        head.push_str("\r\n");
    }

    fn query(&self) -> String {
        let after = self.after.map(|id| format!("&after={}:{id}", self.name)).unwrap_or_default();
        format!("ch={}{after}", self.name)
    }
}

pub(crate) fn push_event(out: &mut String, id: Id, payload: &str) {
    out.push_str(&format!("id: {id}\ndata: {payload}\n\n"));
}

fn push_text(out: &mut String, text: &str) {
    write!(out, "TEXT {:x}\r\n{text}\r\n", text.len()).expect("a string takes all");
}

fn response(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn position(text: &str, between: char) -> Option<(&str, Id)> {
    let (channel, id) = text.split_once(between)?;
    Some((channel, id.parse().ok()?))
}

/// Of one answer to a poll: a client that was away for long asks again for the rest.
const POLL_ITEMS: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(head: &str, body: &str) -> String {
        String::from_utf8(Asked::read(head).answer(body.as_bytes(), &|ch| u32::from(ch) * 10)).unwrap()
    }

    #[test]
    fn an_origin_fills_what_it_has_and_says_what_it_has_not() {
        let held = answer("GET /poll?ch=logged-1&after=logged-1:0.7 HTTP/1.1\r\n", "");
        assert!(
            held.contains("Grip-Hold: response") && held.contains("Grip-Channel: logged-1; prev-id=0.7\r\n")
        );
        let told = answer(
            "GET /poll?ch=logged-1&after=logged-1:0.7 HTTP/1.1\r\nGrip-Last: logged-1; last-id=0.7\r\n",
            "",
        );
        assert!(told.ends_with("\r\n\r\ngap logged-1\n"), "{told}");
        let filled = answer("GET /stream?ch=origin-1 HTTP/1.1\r\nLast-Event-ID: origin-1:0.8\r\n", "");
        let item = |number| payload::make("origin-1", Id { publisher: 0, number });
        assert!(filled.contains(&format!(
            ":\n\nid: 0.9\ndata: {}\n\nid: 0.10\ndata: {}\n\n",
            item(9),
            item(10)
        )));
        assert!(
            filled.contains("; prev-id=0.10\r\n")
                && filled.contains("/next?ch=origin-1&after=origin-1:0.10>")
        );
        let opened = answer("POST /ws?ch=origin-1&after=origin-1:0.9 HTTP/1.1\r\n", "OPEN\r\n");
        assert!(opened.contains(&item(10)) && opened.contains(r#""channel":"origin-1","prev-id":"0.10"}"#));
        assert!(opened.ends_with("m:ready\r\n"));
        let asked = "POST /ws?ch=origin-1&after=origin-1:0.2&ch=origin-2&after=origin-2:0.1 HTTP/1.1\r\n\
                     Grip-Last: origin-1; last-id=0.9\r\n";
        let told = answer(asked, "");
        assert!(told.contains(&item(10)) && !told.contains(&item(9)) && !told.contains("origin-2"), "{told}");
        let first = answer("GET /poll?ch=origin-1 HTTP/1.1\r\n", "");
        assert!(first.ends_with("\r\n\r\nat origin-1 0.10\n"), "{first}");
    }
}
