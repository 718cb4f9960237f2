//! `setup`: what it costs to begin. Streams are opened and held; long-polls are answered by a message
//! and asked again on the same connection, over and over.

use crate::answer::Answer;
use crate::error::Error;
use crate::line::{Line, Outcome};
use crate::marker::{Entry, Ledger, Marker, Scanner};
use crate::options::Setup;
use crate::process::Processes;
use crate::publisher::{Format, Publisher};
use crate::report::Report;
use crate::socket::{self, Poller, READ_BYTES, SECOND};
use crate::streams::Streams;

/// A message is published when every poll has been answered, or when none was for so long: those that
/// were not yet held when the message before came are held by then.
const ANSWERS_EBBED: u64 = SECOND / 20;

pub(crate) fn run(options: &Setup) -> Result<Report, Error> {
    socket::reserve_descriptors(options.n)?;
    if options.cycles == 0 { streams(options) } else { polls(options) }
}

fn streams(options: &Setup) -> Result<Report, Error> {
    let (server, poller) = (Processes(&options.target.pids), Poller::new()?);
    let mut streams = Streams::new(&options.target, false);
    let cpu = server.cpu()?;
    let seconds = streams.open_up_to(&poller, options.n)?;
    let cpu = server.cpu()? - cpu;
    let mut report = Report::new(options.target.json);
    report.count("open", streams.open as u64);
    report.count("failed", streams.failed as u64);
    report.real("seconds", seconds);
    report.real("setups_per_second", streams.open as f64 / seconds);
    if server.named() {
        report.real("server_cpu_us_per_setup", cpu * 1e6 / streams.open as f64);
    }
    report.passed = streams.failed == 0;
    Ok(report)
}

fn polls(options: &Setup) -> Result<Report, Error> {
    let server = Processes(&options.target.pids);
    let mut polls = Polls {
        poller: Poller::new()?,
        publisher: Publisher::new(&options.publish, &Format::HttpResponse),
        request: options.target.request(),
        list: (0..options.n as u64).map(|token| Poll::new(Line::new(options.target.sub.0, token))).collect(),
        published: 0,
        answered: 0,
        unanswered: options.n,
        wrong: 0,
        failed: 0,
    };
    let goal = options.cycles * options.n as u64;
    let (cpu, own, start) = (server.cpu()?, socket::own_cpu(), socket::now());
    polls.run(goal, start + options.target.timeout * SECOND)?;
    let seconds = (socket::now() - start) as f64 / 1e9;
    let (cpu, own) = (server.cpu()? - cpu, socket::own_cpu() - own);

    let mut report = Report::new(options.target.json);
    report.count("polls", options.n as u64);
    report.count("answers", polls.answered);
    report.count("wanted", goal);
    report.count("failed", polls.failed);
    report.count("repeated_or_reordered", polls.wrong);
    report.count("published", polls.published);
    report.count("refused", polls.publisher.refused);
    report.real("seconds", seconds);
    report.real("answers_per_second", polls.answered as f64 / seconds);
    if server.named() {
        report.real("server_cpu_us_per_answer", cpu * 1e6 / polls.answered as f64);
    }
    report.real("generator_cpu_seconds", own);
    let faults = polls.failed + polls.wrong + polls.publisher.refused;
    report.passed = polls.answered >= goal && faults == 0;
    Ok(report)
}

struct Polls<'a> {
    poller: Poller,
    publisher: Publisher<'a>,
    request: Vec<u8>,
    list: Vec<Poll>,
    published: u64,
    answered: u64,
    /// Polls that the last message has not answered yet.
    unanswered: usize,
    /// Answers without a message, or with one that is not newer than the one before.
    wrong: u64,
    failed: u64,
}

struct Poll {
    line: Line,
    ledger: Ledger,
}

impl Poll {
    fn new(line: Line) -> Self {
        Self { line, ledger: Ledger::default() }
    }
}

impl Polls<'_> {
    fn run(&mut self, goal: u64, deadline: u64) -> Result<(), Error> {
        for poll in &mut self.list {
            poll.line.ask(&self.poller, |bytes| bytes.extend_from_slice(&self.request))?;
        }
        let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        let mut last = socket::now();
        while self.answered < goal && socket::now() < deadline {
            let now = socket::now();
            if (self.unanswered == 0 || now - last > ANSWERS_EBBED)
                && self.publisher.publish(&self.poller, self.published)?
            {
                self.published += 1;
                self.unanswered = self.list.len();
                last = now;
            }
            self.poller.wait(&mut events, 5)?;
            for event in &events {
                let token = event.data.u64();
                if Publisher::owns(token) {
                    self.publisher.ready(&self.poller, token, &mut buffer)?;
                } else if self.ready(token, &mut buffer)? {
                    last = socket::now();
                }
            }
        }
        Ok(())
    }

    /// Goes on with one poll; asks again after an answer. Returns whether there was one.
    fn ready(&mut self, token: u64, buffer: &mut [u8]) -> Result<bool, Error> {
        let Some(Poll { line, ledger }) = self.list.get_mut(token as usize) else { return Ok(false) };
        let why = match line.ready(&self.poller, buffer)? {
            Outcome::Pending => return Ok(false),
            Outcome::Answered(Answer { status: 200, .. }, bytes) => {
                let mut entry = None;
                Scanner::default().feed(bytes, |Marker { number, .. }| {
                    entry = (number < self.published).then(|| ledger.enter(number));
                });
                self.wrong += u64::from(entry != Some(Entry::InOrder));
                None
            }
            Outcome::Answered(answer, _) => Some(format!("status {}", answer.status)),
            Outcome::Failed(why) => Some(why),
        };
        let answered = why.is_none();
        if let Some(why) = why {
            if self.failed == 0 {
                eprintln!("fantail-bench: the first failed poll: {why}");
            }
            self.failed += 1;
        }
        if answered {
            self.answered += 1;
            self.unanswered = self.unanswered.saturating_sub(1);
        }
        line.ask(&self.poller, |bytes| bytes.extend_from_slice(&self.request))?;
        Ok(answered)
    }
}
