//! `keep`: publishers who wait for the answer that their items are kept: how many items a second, how late the answers
//! are, and by how much the server's memory grows for each. Beside that, how long the disk takes for an fsync.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;

use crate::error::Error;
use crate::latency::Latencies;
use crate::line::{Line, Outcome};
use crate::options::{self, Keep};
use crate::process::Processes;
use crate::report::Report;
use crate::socket::{self, Poller, READ_BYTES, SECOND};

pub(crate) fn run(options: &Keep) -> Result<Report, Error> {
    socket::reserve_descriptors(options.publish.pubs as usize)?;
    let fsync = options.fsync.as_deref().map(fsync_times).transpose()?;
    let (server, poller) = (Processes(&options.target.pids), Poller::new()?);
    let lines = (0..u64::from(options.publish.pubs)).map(|token| Line::new(options.publish.address.0, token));
    let mut round = Round { options, poller, lines: lines.collect(), head: options.publish.head(), asked: 0 };
    let memory = server.memory()?;
    let (cpu, own, start) = (server.cpu()?, socket::own_cpu(), socket::now());
    let Tally { kept, failed, latencies } = round.run(start)?;
    let seconds = (socket::now() - start) as f64 / 1e9;
    let (cpu, own) = (server.cpu()? - cpu, socket::own_cpu() - own);

    let mut report = Report::new(options.target.json);
    report.count("items", kept);
    report.count("failed", failed);
    report.real("seconds", seconds);
    report.real("items_per_second", kept as f64 / seconds);
    report.latencies(&latencies);
    if let Some(fsync) = fsync {
        report.real("fsync_us_p50", fsync.percentile(50.0));
        report.real("fsync_us_p99", fsync.percentile(99.0));
    }
    if server.named() {
        let grown = server.memory()?.anonymous as f64 - memory.anonymous as f64;
        report.real("server_cpu_us_per_item", cpu * 1e6 / kept as f64);
        report.real(
            "server_bytes_per_item_beyond_its_own",
            grown / kept as f64 - f64::from(options.publish.size),
        );
    }
    report.real("generator_cpu_seconds", own);
    report.passed = failed == 0 && kept > 0;
    Ok(report)
}

struct Round<'a> {
    options: &'a Keep,
    poller: Poller,
    lines: Vec<Line>,
    head: String,
    /// Items that were posted.
    asked: u64,
}

struct Tally {
    kept: u64,
    failed: u64,
    latencies: Latencies,
}

impl Round<'_> {
    fn run(&mut self, start: u64) -> Result<Tally, Error> {
        let mut tally = Tally { kept: 0, failed: 0, latencies: Latencies::new() };
        let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
        let limit =
            if self.options.m.is_some() { self.options.target.timeout } else { self.options.duration };
        let end = start + limit * SECOND;
        for index in 0..self.lines.len() {
            self.ask(index)?;
        }
        while socket::now() < end && self.lines.iter().any(|line| line.busy) {
            self.poller.wait(&mut events, 10)?;
            for event in &events {
                let index = event.data.u64() as usize;
                let Some(line) = self.lines.get_mut(index) else { continue };
                let asked = line.asked;
                let why = match line.ready(&self.poller, &mut buffer)? {
                    Outcome::Pending => continue,
                    Outcome::Answered(answer, _) if answer.status == 200 => {
                        tally.kept += u64::from(self.options.items);
                        tally.latencies.record(socket::now() - asked);
                        None
                    }
                    Outcome::Answered(_, bytes) => {
                        Some(String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned())
                    }
                    Outcome::Failed(why) => Some(why),
                };
                if let Some(why) = why {
                    if tally.failed == 0 {
                        eprintln!("fantail-bench: the first failed publish: {why}");
                    }
                    tally.failed += 1;
                }
                self.ask(index)?;
            }
        }
        Ok(tally)
    }

    /// Posts the next items, if there are any.
    fn ask(&mut self, index: usize) -> Result<(), Error> {
        let Keep { items, channel: options::Channel(name), channels, m, publish, without_ids, .. } =
            self.options;
        if m.is_some_and(|most| self.asked >= most) {
            return Ok(());
        }
        let content = "x".repeat(publish.size as usize);
        let mut body = String::from(r#"{"items":["#);
        for n in 0..*items {
            let (number, comma) = (self.asked + u64::from(n), if n == 0 { "" } else { "," });
            let channel = number % u64::from(*channels);
            let formats = format!(r#"{{"http-stream":{{"content":"{content}"}}}}"#);
            let id = if *without_ids { String::new() } else { format!(r#""id":"{number}","#) };
            write!(body, r#"{comma}{{"channel":"{name}{channel}",{id}"formats":{formats}}}"#)
                .unwrap_or_default();
        }
        body.push_str("]}");
        self.asked += u64::from(*items);
        let Some(line) = self.lines.get_mut(index) else { return Ok(()) };
        line.ask(&self.poller, |request| {
            for part in [&self.head, &body.len().to_string(), "\r\n\r\n", &body] {
                request.extend_from_slice(part.as_bytes());
            }
        })
    }
}

/// How long the disk takes to have 4 KiB more of a file.
fn fsync_times(folder: &std::path::Path) -> Result<Latencies, Error> {
    let path = folder.join("fantail-bench-fsync");
    let failed = |error| Error::Disk { path: path.clone(), error };
    let mut file = File::create(&path).map_err(failed)?;
    let mut latencies = Latencies::new();
    for _ in 0..FSYNCS {
        file.write_all(&[b'x'; 4096]).map_err(failed)?;
        let start = socket::now();
        file.sync_data().map_err(failed)?;
        latencies.record(socket::now() - start);
    }
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(latencies)
}

const FSYNCS: usize = 300;
