//! `fan` and `burst`: messages to many streams or WebSockets, each checked on each: did it arrive, once, in order,
//! and how long after it was published.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::latency::Latencies;
use crate::marker::{Entry, Ledger, Marker, Scanner};
use crate::options::Fan;
use crate::process::Processes;
use crate::publisher::{Format, Publisher};
use crate::report::Report;
use crate::socket::{self, Bell, Event, Poller, READ_BYTES, SECOND};
use crate::streams::Streams;

/// Between the last hold and the first message: a server may still be at its books.
const SETTLE: u64 = 3 * SECOND / 2;
/// Without one delivery for so long, the rest is lost.
const QUIET: u64 = 8 * SECOND;
/// The token of the bell, which neither a connection nor a publisher has.
const BELL: u64 = u64::MAX;
/// For the answers to the last publishes.
const LAST_ANSWERS: u64 = SECOND;

/// `window` holds where neither a window nor a rate is given.
pub(crate) fn run(options: &Fan, window: usize) -> Result<Report, Error> {
    socket::reserve_descriptors(options.n)?;
    let poller = Poller::gathering(Duration::from_micros(options.gather))?;
    let mut streams = Streams::new(&options.target, options.websocket);
    let opening = streams.open_up_to(&poller, options.n)?;
    streams.rest(&poller, SETTLE)?;
    let format = if options.websocket { Format::WsMessage } else { Format::HttpStream };
    let window = options.window.unwrap_or(window).max(1);
    let beside = Poller::gathering(Duration::from_micros(options.gather))?;
    let half = streams.split(&poller, &beside)?;
    let mut other = Reader::new(beside, half, options);
    let progress = Progress {
        complete_messages: AtomicU64::new(other.tally.complete_messages),
        delivered: AtomicU64::default(),
        over: AtomicBool::default(),
        bell: Bell::new(&poller, BELL)?,
    };
    let mut round = Round {
        reader: Reader::new(poller, streams, options),
        pace: options.rate.map_or(Pace::Window(window), Pace::Rate),
        publisher: Publisher::new(&options.publish, &format),
        progress: &progress,
        messages: options.m as u64,
        published: 0,
        start: 0,
    };
    let server = Processes(&options.target.pids);
    let (cpu, own) = (server.cpu()?, socket::own_cpu());
    let seconds = thread::scope(|scope| {
        let beside = scope.spawn(|| other.read(&progress));
        let seconds = round.run(options.target.timeout * SECOND);
        progress.over.store(true, Ordering::Relaxed);
        beside.join().expect("a reader does not panic")?;
        seconds
    })?;
    let (cpu, own) = (server.cpu()? - cpu, socket::own_cpu() - own);
    round.last_answers()?;

    let Round { reader: Reader { mut tally, streams, .. }, publisher, published, .. } = round;
    tally.add(&other.tally);
    let mut report = Report::new(options.target.json);
    report.count("open", tally.subscribers as u64);
    let failed = streams.failed + other.streams.failed;
    report.count("failed", failed as u64);
    report.real("opened_per_second", tally.subscribers as f64 / opening);
    report.count("published", published);
    report.count("accepted", publisher.accepted);
    report.count("refused", publisher.refused);
    tally.report(&mut report, seconds, options.publish.pubs == 1);
    if server.named() {
        report.real("server_cpu_seconds", cpu);
        report.real("server_cpu_us_per_delivery", cpu * 1e6 / tally.delivered as f64);
        report.count("server_pss_bytes", server.memory()?.pss);
    }
    report.real("generator_cpu_seconds", own);
    report.passed &= failed == 0 && publisher.refused == 0;
    Ok(report)
}

/// When the next message goes out.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// When fewer than so many are on their way.
    Window(usize),
    /// So many a second, whatever has arrived.
    Rate(f64),
}

/// A half of the connections, each with a thread to read it: one alone would leave a core idle while the last
/// of a message are read.
#[derive(Debug)]
struct Reader<'a> {
    poller: Poller,
    streams: Streams<'a>,
    tally: Tally,
    buffer: Vec<u8>,
}

/// What the thread beside tells the one that publishes, and the other way.
#[derive(Debug)]
struct Progress {
    complete_messages: AtomicU64,
    delivered: AtomicU64,
    over: AtomicBool,
    /// Rung for each message that has reached all of its half.
    bell: Bell,
}

impl<'a> Reader<'a> {
    fn new(poller: Poller, streams: Streams<'a>, options: &Fan) -> Self {
        let tally = Tally::new(options.n, options.m, streams.open);
        Self { poller, streams, tally, buffer: vec![0; READ_BYTES] }
    }

    /// Reads beside the thread that publishes, until that says that it is over.
    fn read(&mut self, progress: &Progress) -> Result<(), Error> {
        let mut events = Vec::new();
        while !progress.over.load(Ordering::Relaxed) {
            self.poller.wait(&mut events, 5)?;
            let complete = self.tally.complete_messages;
            for event in &events {
                self.take(event)?;
            }
            progress.delivered.store(self.tally.delivered, Ordering::Release);
            if self.tally.complete_messages > complete {
                progress.complete_messages.store(self.tally.complete_messages, Ordering::Release);
                progress.bell.ring()?;
            }
        }
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<(), Error> {
        if let Some((index, bytes)) = self.streams.ready(&self.poller, event)? {
            self.tally.take(index, bytes, socket::now());
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Round<'a> {
    reader: Reader<'a>,
    publisher: Publisher<'a>,
    pace: Pace,
    /// The other reader's.
    progress: &'a Progress,
    messages: u64,
    published: u64,
    start: u64,
}

impl Round<'_> {
    /// Publishes and reads until all has arrived, nothing does any more, or the time is up. Returns the
    /// seconds from the start to the last delivery.
    fn run(&mut self, timeout: u64) -> Result<f64, Error> {
        let mut events = Vec::new();
        self.start = socket::now();
        let (mut last, mut delivered) = (self.start, 0);
        loop {
            let (now, complete) = (socket::now(), self.complete());
            let arrived = self.reader.tally.delivered + self.progress.delivered.load(Ordering::Acquire);
            if arrived != delivered {
                (delivered, last) = (arrived, now);
            }
            if complete == self.messages || now - self.start > timeout || now - last > QUIET {
                break;
            }
            while self.due() && self.publisher.publish(&self.reader.poller, self.published)? {
                self.published += 1;
            }
            let wait = match self.pace {
                Pace::Rate(_) => 1,
                Pace::Window(_) => 5,
            };
            self.reader.poller.wait(&mut events, wait)?;
            self.take(&events)?;
        }
        Ok((last - self.start) as f64 / 1e9)
    }

    /// Messages that have reached everybody; if some were lost, at least as many as have.
    fn complete(&self) -> u64 {
        let beside = self.progress.complete_messages.load(Ordering::Acquire);
        self.reader.tally.complete_messages.min(beside)
    }

    fn due(&self) -> bool {
        self.published < self.messages
            && match self.pace {
                Pace::Window(window) => self.published - self.complete() < window as u64,
                Pace::Rate(rate) => (socket::now() - self.start) as f64 / 1e9 * rate >= self.published as f64,
            }
    }

    fn take(&mut self, events: &[Event]) -> Result<(), Error> {
        for event in events {
            let token = event.data.u64();
            if token == BELL {
                continue;
            }
            if Publisher::owns(token) {
                let Reader { poller, buffer, .. } = &mut self.reader;
                self.publisher.ready(poller, token, buffer)?;
            } else {
                self.reader.take(event)?;
            }
        }
        Ok(())
    }

    fn last_answers(&mut self) -> Result<(), Error> {
        let (end, mut events) = (socket::now() + LAST_ANSWERS, Vec::new());
        while self.publisher.in_flight() > 0 && socket::now() < end {
            self.reader.poller.wait(&mut events, 5)?;
            self.take(&events)?;
        }
        Ok(())
    }
}

/// What has arrived, by subscriber and by message.
#[derive(Debug)]
pub(crate) struct Tally {
    subscribers: usize,
    list: Vec<(Scanner, Ledger)>,
    /// Of each message, the subscribers that do not have it.
    left: Vec<usize>,
    pub(crate) complete_messages: u64,
    pub(crate) delivered: u64,
    duplicates: u64,
    reordered: u64,
    latencies: Latencies,
}

impl Tally {
    /// For `subscribers` of `connections` that hold.
    pub(crate) fn new(connections: usize, messages: usize, subscribers: usize) -> Self {
        Self {
            subscribers,
            list: vec![Default::default(); connections],
            left: vec![subscribers; messages],
            // Nobody waits for any.
            complete_messages: if subscribers == 0 { messages as u64 } else { 0 },
            delivered: 0,
            duplicates: 0,
            reordered: 0,
            latencies: Latencies::new(),
        }
    }

    pub(crate) fn take(&mut self, index: usize, bytes: &[u8], now: u64) {
        let Self { left, complete_messages, delivered, duplicates, reordered, latencies, .. } = self;
        let Some((scanner, ledger)) = self.list.get_mut(index) else { return };
        scanner.feed(bytes, |Marker { number, sent }| {
            let Some(left) = usize::try_from(number).ok().and_then(|number| left.get_mut(number)) else {
                return;
            };
            match ledger.enter(number) {
                Entry::Again => {
                    *duplicates += 1;
                    return;
                }
                Entry::Late => *reordered += 1,
                Entry::InOrder => {}
            }
            *delivered += 1;
            *left = left.saturating_sub(1);
            *complete_messages += u64::from(*left == 0);
            latencies.record(now.saturating_sub(sent));
        });
    }

    /// Adds what has arrived at other subscribers, of the same messages.
    fn add(&mut self, other: &Self) {
        self.subscribers += other.subscribers;
        self.delivered += other.delivered;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.latencies.add(&other.latencies);
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete_messages == self.messages()
    }

    pub(crate) fn messages(&self) -> u64 {
        self.left.len() as u64
    }

    pub(crate) fn report(&self, report: &mut Report, seconds: f64, ordered: bool) {
        let expected = (self.subscribers * self.left.len()) as u64;
        let missing = expected.saturating_sub(self.delivered);
        report.count("deliveries", self.delivered);
        report.count("missing", missing);
        report.count("duplicates", self.duplicates);
        report.count("reordered", self.reordered);
        report.real("seconds", seconds);
        report.real("deliveries_per_second", self.delivered as f64 / seconds);
        report.latencies(&self.latencies);
        report.passed &= missing == 0 && self.duplicates == 0 && (self.reordered == 0 || !ordered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_sees_loss_repeats_and_order() {
        let text = |number| Marker { number, sent: 1 }.message(64);
        let table = [
            (&[0, 1, 2][..], true, [0, 0, 0]),
            (&[0, 2], false, [1, 0, 0]),
            (&[0, 1, 1, 2], true, [0, 1, 0]),
            (&[0, 2, 1], true, [0, 0, 1]),
        ];
        for (arrived, complete, counts) in table {
            let mut tally = Tally::new(2, 3, 2);
            (0..3).for_each(|number| tally.take(0, text(number).as_bytes(), 2));
            arrived.iter().for_each(|&number| tally.take(1, text(number).as_bytes(), 2));
            assert_eq!(tally.is_complete(), complete, "{arrived:?}");
            assert_eq!([6 - tally.delivered, tally.duplicates, tally.reordered], counts, "{arrived:?}");
            let mut report = Report::new(false);
            tally.report(&mut report, 1.0, true);
            assert_eq!(report.passed, arrived == [0, 1, 2], "{arrived:?}");
        }
    }
}
