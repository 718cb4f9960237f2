//! `catch-up`: many clients come back at once, each some items behind, and the server's log has what they have missed. How
//! long until all of them have all of it, and what their origin, which is here, hears of that: each of them once, and
//! nothing more.

use std::fmt::Write as _;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;

use crate::error::Error;
use crate::fan::Tally;
use crate::line::{Line, Outcome};
use crate::marker::Marker;
use crate::options::{self, CatchUp};
use crate::process::Processes;
use crate::report::Report;
use crate::request::{self, Parsed};
use crate::socket::{self, EventFlags, Poller, READ_BYTES, SECOND};
use crate::streams::Streams;

pub(crate) fn run(options: &CatchUp) -> Result<Report, Error> {
    socket::reserve_descriptors(options.n + ORIGIN_CONNECTIONS)?;
    let poller = Poller::new()?;
    publish(options, &poller)?;
    let mut origin = Origin::listen(options.origin.0, &options.channel.0, &poller)?;
    let mut streams = Streams::new(&options.target, false);
    let mut tally = Tally::new(options.n, options.behind as usize, options.n);
    let server = Processes(&options.target.pids);
    let (cpu, own, start) = (server.cpu()?, socket::own_cpu(), socket::now());
    let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    let mut last = start;
    while !tally.is_complete() && socket::now() < start + options.target.timeout * SECOND {
        streams.open_more(&poller, options.n)?;
        poller.wait(&mut events, 10)?;
        for event in &events {
            let token = event.data.u64();
            if token & ORIGIN != 0 {
                origin.ready(&poller, token & !ORIGIN, &mut buffer)?;
            } else if let Some((index, bytes)) = streams.ready(&poller, event)? {
                last = socket::now();
                tally.take(index, bytes, last);
            }
        }
    }
    let (cpu, own) = (server.cpu()? - cpu, socket::own_cpu() - own);

    let mut report = Report::new(options.target.json);
    report.count("open", streams.open as u64);
    report.count("failed", (options.n - streams.open) as u64);
    tally.report(&mut report, (last - start) as f64 / 1e9, true);
    report.count("origin_requests", origin.requests);
    report.count("origin_requests_beyond", origin.requests.saturating_sub(options.n as u64));
    if server.named() {
        report.real("server_cpu_seconds", cpu);
        report.real("server_cpu_us_per_delivery", cpu * 1e6 / tally.delivered as f64);
        report.count("server_pss_bytes", server.memory()?.pss);
    }
    report.real("generator_cpu_seconds", own);
    report.passed &= streams.open == options.n && origin.requests == options.n as u64;
    Ok(report)
}

/// Publishes the item that all clients have, with the id 0, and those that they have not.
fn publish(options: &CatchUp, poller: &Poller) -> Result<(), Error> {
    let options::Channel(channel) = &options.channel;
    let head = options.publish.head();
    let mut line = Line::new(options.publish.address.0, PUBLISHER);
    let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    let ids: Vec<u64> = (0..=u64::from(options.behind)).collect();
    for ids in ids.chunks(ITEMS_AT_ONCE) {
        let mut body = String::from(r#"{"items":["#);
        for id in ids {
            // Nobody is to get the first: its number is none that is counted.
            let number = id.checked_sub(1).unwrap_or(u64::MAX);
            let content = Marker { number, sent: socket::now() }.message(options.publish.size as usize);
            let comma = if body.ends_with('[') { "" } else { "," };
            let formats = format!(r#"{{"http-stream":{{"content":"{content}\n"}}}}"#);
            write!(body, r#"{comma}{{"channel":"{channel}","id":"{id}","formats":{formats}}}"#)
                .unwrap_or_default();
        }
        body.push_str("]}");
        line.ask(poller, |request| {
            for part in [&head, &body.len().to_string(), "\r\n\r\n", &body] {
                request.extend_from_slice(part.as_bytes());
            }
        })?;
        while line.busy {
            poller.wait(&mut events, 10)?;
            if socket::now() > line.asked + options.target.timeout * SECOND {
                return Err(Error::NotPublished { why: "no answer".into() });
            }
            if events.is_empty() {
                continue;
            }
            match line.ready(poller, &mut buffer)? {
                Outcome::Answered(answer, bytes) if answer.status != 200 => {
                    let why = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
                    return Err(Error::NotPublished { why });
                }
                Outcome::Failed(why) => return Err(Error::NotPublished { why }),
                Outcome::Pending | Outcome::Answered(..) => {}
            }
        }
    }
    Ok(())
}

/// Holds whoever asks on the channel, as one who has the first item.
struct Origin {
    listener: OwnedFd,
    answer: Vec<u8>,
    /// By descriptor, with what came of a request that is not whole.
    list: Vec<Option<(OwnedFd, Vec<u8>)>>,
    requests: u64,
}

impl Origin {
    fn listen(address: SocketAddrV4, channel: &str, poller: &Poller) -> Result<Self, Error> {
        let (listener, _) = socket::listen(address).map_err(Error::system("listen"))?;
        poller.add(&listener, ORIGIN | slot(&listener), EventFlags::IN)?;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nGrip-Hold: stream\r\n\
             Grip-Channel: {channel}; prev-id=0\r\nContent-Length: 0\r\n\r\n"
        );
        Ok(Self { listener, answer: answer.into_bytes(), list: Vec::new(), requests: 0 })
    }

    fn ready(&mut self, poller: &Poller, ready: u64, buffer: &mut [u8]) -> Result<(), Error> {
        if ready == slot(&self.listener) {
            return self.accept(poller);
        }
        let Some(place) = self.list.get_mut(ready as usize) else { return Ok(()) };
        let Some((socket, input)) = place else { return Ok(()) };
        match socket::recv(socket, buffer) {
            Err(Errno::AGAIN) => return Ok(()),
            Ok(0) | Err(_) => {
                *place = None;
                return Ok(());
            }
            Ok(taken) => input.extend_from_slice(&buffer[..taken]),
        }
        while let Parsed::Whole(body) = request::parse(input) {
            input.drain(..body.end);
            self.requests += 1;
            // It is small, and one at a time: the socket has room.
            if socket::send(socket, &self.answer) != Ok(self.answer.len()) {
                *place = None;
                return Ok(());
            }
        }
        Ok(())
    }

    fn accept(&mut self, poller: &Poller) -> Result<(), Error> {
        loop {
            let socket = match socket::accept(&self.listener) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(Error::System { what: "accept", errno }),
            };
            let place = slot(&socket);
            poller.add(&socket, ORIGIN | place, EventFlags::IN)?;
            if self.list.len() <= place as usize {
                self.list.resize_with(place as usize + 1, || None);
            }
            self.list[place as usize] = Some((socket, Vec::new()));
        }
    }
}

fn slot(socket: &OwnedFd) -> u64 {
    u64::from(socket.as_raw_fd().unsigned_abs())
}

/// Set in the tokens of the origin's connections, to tell them from clients.
const ORIGIN: u64 = 1 << 40;
const PUBLISHER: u64 = 1 << 41;
/// Room for these besides the clients.
const ORIGIN_CONNECTIONS: usize = 4096;
const ITEMS_AT_ONCE: usize = 100;
