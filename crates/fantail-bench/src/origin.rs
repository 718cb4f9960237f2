//! `events-origin`: a backend of WebSockets over HTTP that opens each, subscribes it and echoes what it says.
//! One loop, keep-alive connections, nothing kept of a WebSocket: it should never be what a run waits for,
//! unless it is told to answer late.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

use crate::error::Error;
use crate::events::Grip;
use crate::options::EventsOrigin;
use crate::report::Report;
use crate::request::{self, Parsed};
use crate::socket::{self, EventFlags, Poller, READ_BYTES};

const REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Serves until it is killed. Its address is the first line that it prints.
pub(crate) fn run(options: &EventsOrigin) -> Result<Report, Error> {
    socket::reserve_descriptors(0)?;
    let (listener, address) = socket::listen(options.listen.0).map_err(Error::system("listen"))?;
    println!("origin {address}");
    let poller = Poller::new()?;
    let listening = token(&listener);
    poller.add(&listener, listening, EventFlags::IN)?;
    let mut origin = Origin {
        poller,
        grip: Grip::new(options.subscribe.as_ref().map(|channel| channel.0.as_str())),
        delay: options.delay * 1_000_000,
        list: Vec::new(),
        accepted: 0,
        late: VecDeque::new(),
        body: Vec::new(),
    };
    let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    loop {
        let wait = origin.answer_late()?;
        origin.poller.wait(&mut events, wait)?;
        for event in &events {
            match event.data.u64() {
                ready if ready == listening => origin.accept(&listener)?,
                ready => origin.ready(ready as usize, &mut buffer)?,
            }
        }
    }
}

struct Origin {
    poller: Poller,
    grip: Grip,
    /// Nanoseconds between a request and its answer.
    delay: u64,
    /// By descriptor: small numbers, given again when closed.
    list: Vec<Option<Connection>>,
    accepted: u64,
    /// Answers that wait for their time, in its order.
    late: VecDeque<Late>,
    body: Vec<u8>,
}

struct Connection {
    socket: OwnedFd,
    /// Tells it from another of the same descriptor.
    number: u64,
    input: Vec<u8>,
    /// What the socket has not taken yet.
    output: Vec<u8>,
}

struct Late {
    due: u64,
    slot: usize,
    number: u64,
    answer: Vec<u8>,
}

impl Origin {
    fn accept(&mut self, listener: &OwnedFd) -> Result<(), Error> {
        loop {
            let socket = match socket::accept(listener) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(Error::System { what: "accept", errno }),
            };
            self.poller.add(&socket, token(&socket), EventFlags::IN)?;
            let slot = token(&socket) as usize;
            if self.list.len() <= slot {
                self.list.resize_with(slot + 1, || None);
            }
            self.accepted += 1;
            let number = self.accepted;
            self.list[slot] = Some(Connection { socket, number, input: Vec::new(), output: Vec::new() });
        }
    }

    /// Goes on with a connection: writes what is left, reads, answers what is whole.
    fn ready(&mut self, slot: usize, buffer: &mut [u8]) -> Result<(), Error> {
        self.write(slot, Vec::new())?;
        let Some(Some(connection)) = self.list.get_mut(slot) else { return Ok(()) };
        match socket::recv(&connection.socket, buffer) {
            Err(Errno::AGAIN) => return Ok(()),
            Ok(0) | Err(_) => {
                self.list[slot] = None;
                return Ok(());
            }
            Ok(taken) => connection.input.extend_from_slice(&buffer[..taken]),
        }
        let (mut input, number) = (std::mem::take(&mut connection.input), connection.number);
        let mut used = 0;
        loop {
            let answer = match request::parse(&input[used..]) {
                Parsed::Incomplete => break,
                Parsed::Whole(body) => {
                    let end = used + body.end;
                    let answer = self.answer(&input[used + body.start..end]);
                    used = end;
                    answer
                }
                Parsed::Malformed => None,
            };
            let Some(answer) = answer else {
                self.write(slot, REFUSED.to_vec())?;
                self.list[slot] = None;
                return Ok(());
            };
            if self.delay == 0 {
                self.write(slot, answer)?;
            } else {
                self.late.push_back(Late { due: socket::now() + self.delay, slot, number, answer });
            }
        }
        input.drain(..used);
        if let Some(Some(connection)) = self.list.get_mut(slot) {
            connection.input = input;
        }
        Ok(())
    }

    fn answer(&mut self, events: &[u8]) -> Option<Vec<u8>> {
        self.body.clear();
        self.grip.answer(events, &mut self.body)?;
        let extension = if self.grip.subscribe.is_some() { "Sec-WebSocket-Extensions: grip\r\n" } else { "" };
        let length = self.body.len();
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/websocket-events\r\n{extension}\
             Content-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        answer.extend_from_slice(&self.body);
        Some(answer)
    }

    /// Sends the answers whose time has come. Returns the milliseconds until the next, or -1.
    fn answer_late(&mut self) -> Result<i64, Error> {
        let now = socket::now();
        while let Some(Late { due, .. }) = self.late.front() {
            if *due > now {
                return Ok(i64::try_from((*due - now).div_ceil(1_000_000)).unwrap_or(i64::MAX));
            }
            let Some(Late { slot, number, answer, .. }) = self.late.pop_front() else { break };
            if self.list.get(slot).and_then(Option::as_ref).is_some_and(|there| there.number == number) {
                self.write(slot, answer)?;
            }
        }
        Ok(-1)
    }

    /// Writes behind what waits; watches for room while some is left.
    fn write(&mut self, slot: usize, bytes: Vec<u8>) -> Result<(), Error> {
        let Some(Some(connection)) = self.list.get_mut(slot) else { return Ok(()) };
        let waited = !connection.output.is_empty();
        if waited {
            connection.output.extend_from_slice(&bytes);
        } else {
            connection.output = bytes;
        }
        if connection.output.is_empty() {
            return Ok(());
        }
        match socket::send(&connection.socket, &connection.output) {
            Ok(sent) => drop(connection.output.drain(..sent)),
            Err(Errno::AGAIN) => {}
            Err(_) => {
                self.list[slot] = None;
                return Ok(());
            }
        }
        let waits = !connection.output.is_empty();
        if waits != waited {
            let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            self.poller.modify(&connection.socket, slot as u64, flags)?;
        }
        Ok(())
    }
}

fn token(socket: &OwnedFd) -> u64 {
    u64::from(socket.as_raw_fd().unsigned_abs())
}
