//! `webhooks`: subscribes URLs of its own to a channel, publishes, and takes what is posted: did each endpoint get each
//! message, and how long after it was published. Dead endpoints take connections and never answer.

use std::os::fd::{AsRawFd, OwnedFd};

use memchr::memchr;
use rustix::io::Errno;

use crate::error::Error;
use crate::fan::Tally;
use crate::line::{Line, Outcome};
use crate::options::Webhooks;
use crate::process::Processes;
use crate::publisher::{Format, Publisher};
use crate::report::Report;
use crate::request::{self, Parsed};
use crate::socket::{self, Event, EventFlags, Poller, READ_BYTES, SECOND};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
/// In the tokens of lines that subscribe; those that publish have bit 32.
const SUBSCRIBER: u64 = 1 << 33;
/// Lines that subscribe.
const LINES: u64 = 64;
/// At most, from a server that sends to many endpoints at once.
const CONNECTIONS: usize = 10_000;
/// Without one delivery for so long, the rest is lost.
const QUIET: u64 = 30 * SECOND;

pub(crate) fn run(options: &Webhooks) -> Result<Report, Error> {
    // Endpoints share an address, and a server has some thousand requests under way.
    socket::reserve_descriptors((options.n + options.dead).min(CONNECTIONS))?;
    let poller = Poller::new()?;
    let (listener, address) = socket::listen(options.listen.0).map_err(Error::system("listen"))?;
    poller.add(&listener, token(&listener), EventFlags::IN)?;
    let server = Processes(&options.pids);
    let before = if server.named() { server.memory()?.pss } else { 0 };
    let mut round = Round {
        receiver: Receiver { listener, list: Vec::new() },
        tally: Tally::new(options.n, options.m, options.n),
        publisher: Publisher::new(&options.publish, &Format::HttpRequest),
        poller,
        published: 0,
        window: options.window.max(1) as u64,
        rate: options.rate,
        start: 0,
    };
    let mut report = Report::new(options.json);
    if !options.subscribed {
        let (subscribed, seconds) = subscribe(options, &round.poller, &format!("http://{address}"))?;
        report.count("subscribed", subscribed);
        report.real("subscriptions_per_second", subscribed as f64 / seconds);
        report.passed &= subscribed == (options.n + options.dead) as u64;
    }
    if server.named() {
        report.count("server_pss_bytes_before", before);
        report.count("server_pss_bytes_subscribed", server.memory()?.pss);
    }
    let (cpu, own) = (server.cpu()?, socket::own_cpu());
    let seconds = round.run(options.timeout * SECOND)?;
    let (cpu, own) = (server.cpu()? - cpu, socket::own_cpu() - own);
    report.count("published", round.published);
    report.count("refused", round.publisher.refused);
    if options.m > 0 {
        round.tally.report(&mut report, seconds, false);
    }
    if server.named() {
        report.real("server_cpu_seconds", cpu);
        report.count("server_pss_bytes", server.memory()?.pss);
    }
    report.real("generator_cpu_seconds", own);
    report.passed &= round.publisher.refused == 0;
    Ok(report)
}

/// Subscribes all endpoints. Returns how many, and in how many seconds.
fn subscribe(options: &Webhooks, poller: &Poller, base: &str) -> Result<(u64, f64), Error> {
    let start = socket::now();
    let all = options.n + options.dead;
    let (mut next, mut done, mut refused) = (0, 0, 0);
    let mut lines: Vec<Line> =
        (0..LINES).map(|index| Line::new(options.publish.address.0, SUBSCRIBER | index)).collect();
    let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    while done + refused < all as u64 {
        for line in lines.iter_mut().filter(|line| !line.busy).take(all - next) {
            let path = if next < options.n { format!("/e{next}") } else { format!("/dead{next}") };
            let channel = if options.apart { format!("test-{next}") } else { "test".to_owned() };
            let form = format!("url={base}{path}");
            line.ask(poller, |request| {
                let head = format!(
                    "POST /channel/{channel}/hrq-subscriptions/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
                     Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}",
                    form.len()
                );
                request.extend_from_slice(head.as_bytes());
            })?;
            next += 1;
        }
        poller.wait(&mut events, 5)?;
        for event in &events {
            let token = event.data.u64();
            let Some(line) =
                lines.get_mut((token & !SUBSCRIBER) as usize).filter(|_| token & SUBSCRIBER != 0)
            else {
                continue;
            };
            match line.ready(poller, &mut buffer)? {
                Outcome::Pending => {}
                Outcome::Answered(answer, _) if answer.status == 200 => done += 1,
                Outcome::Answered(_, bytes) => {
                    eprintln!("fantail-bench: not subscribed: {}", String::from_utf8_lossy(bytes));
                    refused += 1;
                }
                Outcome::Failed(why) => {
                    eprintln!("fantail-bench: not subscribed: {why}");
                    refused += 1;
                }
            }
        }
    }
    Ok((done, (socket::now() - start) as f64 / 1e9))
}

struct Round<'a> {
    receiver: Receiver,
    tally: Tally,
    publisher: Publisher<'a>,
    poller: Poller,
    published: u64,
    window: u64,
    rate: Option<f64>,
    start: u64,
}

impl Round<'_> {
    /// Publishes and takes until all has arrived, nothing does any more, or the time is up. Returns the seconds from
    /// the start to the last delivery.
    fn run(&mut self, timeout: u64) -> Result<f64, Error> {
        let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        self.start = socket::now();
        let (mut last, mut delivered) = (self.start, 0);
        loop {
            let now = socket::now();
            if self.tally.is_complete() || now - self.start > timeout || now - last > QUIET {
                return Ok((last - self.start) as f64 / 1e9);
            }
            while self.due(now) && self.publisher.publish(&self.poller, self.published)? {
                self.published += 1;
            }
            self.poller.wait(&mut events, if self.rate.is_some() { 1 } else { 5 })?;
            for event in &events {
                self.take(event, &mut buffer)?;
            }
            if self.tally.delivered != delivered {
                delivered = self.tally.delivered;
                last = socket::now();
            }
        }
    }

    fn due(&self, now: u64) -> bool {
        self.published < self.tally.messages()
            && match self.rate {
                Some(rate) => (now - self.start) as f64 / 1e9 * rate >= self.published as f64,
                None => self.published - self.tally.complete_messages < self.window,
            }
    }

    fn take(&mut self, event: &Event, buffer: &mut [u8]) -> Result<(), Error> {
        let ready = event.data.u64();
        if Publisher::owns(ready) {
            return self.publisher.ready(&self.poller, ready, buffer);
        }
        if ready == token(&self.receiver.listener) {
            return self.receiver.accept(&self.poller);
        }
        self.receiver.ready(&self.poller, ready as usize, buffer, &mut self.tally)
    }
}

/// The endpoints, all of them at one address.
struct Receiver {
    listener: OwnedFd,
    /// By descriptor.
    list: Vec<Option<Connection>>,
}

struct Connection {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Receiver {
    fn accept(&mut self, poller: &Poller) -> Result<(), Error> {
        loop {
            let socket = match socket::accept(&self.listener) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(Error::System { what: "accept", errno }),
            };
            poller.add(&socket, token(&socket), EventFlags::IN)?;
            let slot = token(&socket) as usize;
            if self.list.len() <= slot {
                self.list.resize_with(slot + 1, || None);
            }
            self.list[slot] = Some(Connection { socket, input: Vec::new(), output: Vec::new() });
        }
    }

    /// Reads webhooks, and answers those that are for the living.
    fn ready(
        &mut self,
        poller: &Poller,
        slot: usize,
        buffer: &mut [u8],
        tally: &mut Tally,
    ) -> Result<(), Error> {
        let Some(Some(connection)) = self.list.get_mut(slot) else { return Ok(()) };
        match socket::recv(&connection.socket, buffer) {
            Ok(0) => {
                self.list[slot] = None;
                return Ok(());
            }
            Ok(taken) => connection.input.extend_from_slice(&buffer[..taken]),
            Err(Errno::AGAIN) => {}
            Err(_) => {
                self.list[slot] = None;
                return Ok(());
            }
        }
        let mut used = 0;
        while let Parsed::Whole(body) = request::parse(&connection.input[used..]) {
            let whole = &connection.input[used..used + body.end];
            if let Some(index) = endpoint(whole) {
                tally.take(index, &whole[body.start..], socket::now());
                connection.output.extend_from_slice(ANSWER);
            }
            used += body.end;
        }
        connection.input.drain(..used);
        let waited = connection.output.len();
        if let Ok(sent) = socket::send(&connection.socket, &connection.output) {
            connection.output.drain(..sent);
        }
        if !connection.output.is_empty() && waited > 0 {
            poller.modify(&connection.socket, slot as u64, EventFlags::IN | EventFlags::OUT)?;
        }
        Ok(())
    }
}

/// The number in `POST /e7 HTTP/1.1`; none of an endpoint that is dead.
fn endpoint(request: &[u8]) -> Option<usize> {
    let path = &request[memchr(b' ', request)? + 1..];
    let path = &path[..memchr(b' ', path)?];
    str::from_utf8(path.strip_prefix(b"/e")?).ok()?.parse().ok()
}

fn token(socket: &OwnedFd) -> u64 {
    u64::from(socket.as_raw_fd().unsigned_abs())
}
