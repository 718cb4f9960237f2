//! `echo`: WebSockets whose origin sends back what they say. Either each waits for the echo before it says
//! more, or one says all that it has without waiting; every message must come back whole, once, in order.

use rustix::fd::OwnedFd;
use rustix::io::Errno;

use crate::error::Error;
use crate::frame::{self, Opcode, Parsed};
use crate::latency::Latencies;
use crate::marker::{Entry, Ledger, Marker, Scanner};
use crate::options::Echo;
use crate::process::Processes;
use crate::report::Report;
use crate::socket::{self, EventFlags, Poller, READ_BYTES, SECOND};

/// Without one echo for so long, the rest is lost.
const QUIET: u64 = 8 * SECOND;
/// With `--pipeline`, so much is made ready for the socket at a time.
const AHEAD_BYTES: usize = 64 * 1024;
/// A longer head of a response is refused.
const HEAD_BYTES: usize = 16 * 1024;
/// Where the marker of a message is looked for: "@", two numbers of 20 digits, ":" and "@".
const LONGEST_MARKER: usize = 43;

pub(crate) fn run(options: &Echo) -> Result<Report, Error> {
    socket::reserve_descriptors(options.n)?;
    let server = Processes(&options.target.pids);
    let mut round = Round {
        poller: Poller::new()?,
        request: options.target.handshake(),
        clients: Vec::new(),
        goal: options.messages,
        pipeline: options.pipeline,
        size: options.size as usize,
        saying: false,
        said: 0,
        tally: Tally::new(),
    };
    round.open(options)?;
    let memory = server.memory()?;
    let (cpu, own, start) = (server.cpu()?, socket::own_cpu(), socket::now());
    let limit = if options.messages.is_some() { options.target.timeout } else { options.duration };
    let seconds = round.run(start, start + limit * SECOND)?;
    let (cpu, own) = (server.cpu()? - cpu, socket::own_cpu() - own);

    let Round { clients, tally, said, .. } = round;
    let open = clients.iter().filter(|client| client.phase == Phase::Open).count();
    // What was on its way when the time was up is not lost.
    let wanted = options.messages.unwrap_or(tally.echoes);
    let missing = wanted.saturating_sub(tally.echoes);
    let mut report = Report::new(options.target.json);
    report.count("open", open as u64);
    report.count("failed", (options.n - open) as u64);
    report.count("said", said);
    report.count("echoes", tally.echoes);
    report.count("missing", missing);
    report.count("duplicates", tally.duplicates);
    report.count("reordered", tally.reordered);
    report.count("altered", tally.altered);
    report.real("seconds", seconds);
    report.real("round_trips_per_second", tally.echoes as f64 / seconds);
    report.latencies(&tally.latencies);
    if server.named() {
        report.real("server_cpu_us_per_round_trip", cpu * 1e6 / tally.echoes as f64);
        report.real("round_trips_per_server_cpu_second", tally.echoes as f64 / cpu);
        let peak = server.memory()?.peak;
        report.count("server_rss_bytes_at_peak", peak);
        report.count("server_rss_bytes_grown", peak.saturating_sub(memory.rss));
    }
    report.real("generator_cpu_seconds", own);
    let faults = missing + tally.duplicates + tally.reordered + tally.altered;
    report.count("faults", faults);
    report.passed = faults == 0 && open == options.n && tally.echoes > 0;
    Ok(report)
}

struct Round {
    poller: Poller,
    request: Vec<u8>,
    clients: Vec<Client>,
    /// Messages in all; without it, as many as there is time for.
    goal: Option<u64>,
    pipeline: bool,
    size: usize,
    /// All are open, and may begin.
    saying: bool,
    said: u64,
    tally: Tally,
}

struct Client {
    socket: Option<OwnedFd>,
    phase: Phase,
    /// For room in the socket, as the poller knows.
    waits: bool,
    input: Vec<u8>,
    output: Vec<u8>,
    ledger: Ledger,
    /// When each message was said, by its number.
    said_at: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    Connecting,
    Asked,
    Open,
    Lost,
}

impl Round {
    /// Opens all clients, some at a time. An error if none is open when the time is up.
    fn open(&mut self, options: &Echo) -> Result<(), Error> {
        let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        let deadline = socket::now() + options.target.timeout * SECOND;
        let mut refusal = None;
        loop {
            let opening = self
                .clients
                .iter()
                .filter(|client| matches!(client.phase, Phase::Connecting | Phase::Asked))
                .count();
            let more = options.n - self.clients.len();
            if opening + more == 0 || socket::now() > deadline {
                break;
            }
            for index in self.clients.len()..self.clients.len() + more.min(options.target.opening - opening) {
                let socket =
                    socket::connect(options.target.sub.0, index).map_err(Error::system("connect"))?;
                socket::no_delay(&socket).map_err(Error::system("send without delay"))?;
                self.poller.add(&socket, index as u64, EventFlags::OUT)?;
                self.clients.push(Client::new(socket));
            }
            self.poller.wait(&mut events, 10)?;
            for event in &events {
                let index = event.data.u64() as usize;
                self.ready(index, &mut buffer)?;
                if let Some(client) = self.clients.get(index)
                    && client.phase == Phase::Lost
                {
                    let shown = &client.input[..client.input.len().min(200)];
                    refusal.get_or_insert_with(|| String::from_utf8_lossy(shown).into_owned());
                }
            }
        }
        if self.clients.iter().any(|client| client.phase == Phase::Open) {
            return Ok(());
        }
        Err(Error::NothingHeld { refusal })
    }

    /// Says and hears until all has come back, nothing does any more, or the time is up. Returns the seconds
    /// from the start to the last echo.
    fn run(&mut self, start: u64, deadline: u64) -> Result<f64, Error> {
        let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        self.saying = true;
        for index in 0..self.clients.len() {
            self.say(index);
            self.write(index)?;
        }
        let (mut last, mut echoes) = (start, 0);
        loop {
            let now = socket::now();
            let complete = self.goal.is_some_and(|goal| self.tally.echoes >= goal);
            if complete || now > deadline || now - last > QUIET {
                return Ok((last - start) as f64 / 1e9);
            }
            self.poller.wait(&mut events, 10)?;
            for event in &events {
                self.ready(event.data.u64() as usize, &mut buffer)?;
            }
            if self.tally.echoes != echoes {
                echoes = self.tally.echoes;
                last = socket::now();
            }
        }
    }

    fn ready(&mut self, index: usize, buffer: &mut [u8]) -> Result<(), Error> {
        let Some(client) = self.clients.get_mut(index) else { return Ok(()) };
        let Some(socket) = &client.socket else { return Ok(()) };
        if client.phase == Phase::Connecting {
            client.phase = Phase::Asked;
            client.output.extend_from_slice(&self.request);
            return self.write(index);
        }
        match socket::recv(socket, buffer) {
            Err(Errno::AGAIN) => {}
            Ok(0) | Err(_) => client.lose(),
            Ok(taken) => {
                client.input.extend_from_slice(&buffer[..taken]);
                self.hear(index);
            }
        }
        self.write(index)
    }

    fn hear(&mut self, index: usize) {
        let mut used = 0;
        loop {
            let Some(client) = self.clients.get_mut(index) else { return };
            let input = &client.input[used..];
            if client.phase == Phase::Asked {
                match memchr::memmem::find(input, b"\r\n\r\n") {
                    Some(end) if input.get(..12).is_some_and(|start| start.ends_with(b" 101")) => {
                        client.phase = Phase::Open;
                        used += end + 4;
                        continue;
                    }
                    None if input.len() < HEAD_BYTES => return,
                    _ => return client.lose(),
                }
            }
            match frame::parse(input) {
                Parsed::Incomplete => break,
                Parsed::Whole(Opcode::Text, payload) => {
                    let end = payload.end;
                    self.tally.enter(&mut client.ledger, &client.said_at, &input[payload], self.size);
                    used += end;
                    if !self.pipeline {
                        self.say(index);
                    }
                }
                Parsed::Whole(Opcode::Ping, payload) => {
                    frame::append(Opcode::Pong, &input[payload.clone()], &mut client.output);
                    used += payload.end;
                }
                Parsed::Whole(Opcode::Pong, payload) => used += payload.end,
                Parsed::Whole(Opcode::Close, _) | Parsed::Unexpected => return client.lose(),
            }
        }
        if let Some(client) = self.clients.get_mut(index) {
            client.input.drain(..used);
        }
    }

    /// Makes a client's next message ready, if there is one.
    fn say(&mut self, index: usize) {
        if !self.has_more() {
            return;
        }
        let Some(client) = self.clients.get_mut(index).filter(|client| client.phase == Phase::Open) else {
            return;
        };
        let marker = Marker { number: client.said_at.len() as u64, sent: socket::now() };
        client.said_at.push(marker.sent);
        frame::append(Opcode::Text, marker.message(self.size).as_bytes(), &mut client.output);
        self.said += 1;
    }

    /// Writes what is ready, with `--pipeline` some more; watches for room while there is something left.
    fn write(&mut self, index: usize) -> Result<(), Error> {
        while self.pipeline
            && self.has_more()
            && self
                .clients
                .get(index)
                .is_some_and(|client| client.phase == Phase::Open && client.output.len() < AHEAD_BYTES)
        {
            self.say(index);
        }
        let more = self.pipeline && self.has_more();
        let Some(client) = self.clients.get_mut(index) else { return Ok(()) };
        let Some(socket) = &client.socket else { return Ok(()) };
        if !client.output.is_empty() {
            match socket::send(socket, &client.output) {
                Ok(sent) => drop(client.output.drain(..sent)),
                Err(Errno::AGAIN) => {}
                Err(_) => {
                    client.lose();
                    return Ok(());
                }
            }
        }
        let waits = more || !client.output.is_empty();
        if waits != client.waits {
            client.waits = waits;
            let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            self.poller.modify(socket, index as u64, flags)?;
        }
        Ok(())
    }

    fn has_more(&self) -> bool {
        self.saying && self.goal.is_none_or(|goal| self.said < goal)
    }
}

impl Client {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Some(socket),
            phase: Phase::Connecting,
            waits: true,
            input: Vec::new(),
            output: Vec::new(),
            ledger: Ledger::default(),
            said_at: Vec::new(),
        }
    }

    fn lose(&mut self) {
        self.socket = None;
        self.phase = Phase::Lost;
    }
}

/// What has come back.
#[derive(Debug)]
struct Tally {
    /// Each message once.
    echoes: u64,
    duplicates: u64,
    reordered: u64,
    /// What nobody has said.
    altered: u64,
    latencies: Latencies,
}

impl Tally {
    fn new() -> Self {
        Self { echoes: 0, duplicates: 0, reordered: 0, altered: 0, latencies: Latencies::new() }
    }

    fn enter(&mut self, ledger: &mut Ledger, said_at: &[u64], echo: &[u8], size: usize) {
        let mut marker = None;
        Scanner::default().feed(&echo[..echo.len().min(LONGEST_MARKER)], |found| marker = Some(found));
        let said = marker.filter(|Marker { number, sent }| {
            let said = usize::try_from(*number).ok().and_then(|number| said_at.get(number));
            said == Some(sent)
        });
        let Some(marker) = said.filter(|marker| marker.message(size).as_bytes() == echo) else {
            self.altered += 1;
            return;
        };
        match ledger.enter(marker.number) {
            Entry::Again => {
                self.duplicates += 1;
                return;
            }
            Entry::Late => self.reordered += 1,
            Entry::InOrder => {}
        }
        self.echoes += 1;
        self.latencies.record(socket::now().saturating_sub(marker.sent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_is_what_was_said() {
        let said_at = [10, 11, 12];
        let text = |number, sent, size| Marker { number, sent }.message(size);
        let table = [
            (vec![text(0, 10, 64), text(1, 11, 64), text(2, 12, 64)], [3, 0, 0, 0]),
            (vec![text(0, 10, 64), text(2, 12, 64), text(1, 11, 64)], [3, 0, 1, 0]),
            (vec![text(0, 10, 64), text(0, 10, 64)], [1, 1, 0, 0]),
            (vec![text(0, 11, 64), text(3, 13, 64), text(1, 11, 63), "x".repeat(64)], [0, 0, 0, 4]),
            (vec![text(0, 10, 64).replacen('x', "y", 1), String::new()], [0, 0, 0, 2]),
        ];
        for (echoes, counts) in table {
            let (mut tally, mut ledger) = (Tally::new(), Ledger::default());
            echoes.iter().for_each(|echo| tally.enter(&mut ledger, &said_at, echo.as_bytes(), 64));
            let Tally { echoes: whole, duplicates, reordered, altered, .. } = tally;
            assert_eq!([whole, duplicates, reordered, altered], counts, "{echoes:?}");
        }
    }
}
