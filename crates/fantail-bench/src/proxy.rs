//! `proxy`: plain requests on keep-alive connections, the next when the last is answered.

use crate::error::Error;
use crate::latency::Latencies;
use crate::line::{Line, Outcome};
use crate::options::Proxy;
use crate::process::Processes;
use crate::report::Report;
use crate::socket::{self, Poller, READ_BYTES, SECOND};

pub(crate) fn run(options: &Proxy) -> Result<Report, Error> {
    socket::reserve_descriptors(options.n)?;
    let (server, poller) = (Processes(&options.target.pids), Poller::new()?);
    let request = options.target.request();
    let mut lines: Vec<_> =
        (0..options.n as u64).map(|token| Line::new(options.target.sub.0, token)).collect();
    let (mut latencies, mut answers, mut failed) = (Latencies::new(), 0, 0);
    let (mut events, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    let (cpu, own, start) = (server.cpu()?, socket::own_cpu(), socket::now());
    for line in &mut lines {
        line.ask(&poller, |bytes| bytes.extend_from_slice(&request))?;
    }
    while socket::now() - start < options.duration * SECOND {
        poller.wait(&mut events, 10)?;
        for event in &events {
            let Some(line) = lines.get_mut(event.data.u64() as usize) else { continue };
            let asked = line.asked;
            let why = match line.ready(&poller, &mut buffer)? {
                Outcome::Pending => continue,
                Outcome::Answered(answer, _) if answer.status == 200 => {
                    answers += 1;
                    latencies.record(socket::now() - asked);
                    None
                }
                Outcome::Answered(answer, _) => Some(format!("status {}", answer.status)),
                Outcome::Failed(why) => Some(why),
            };
            if let Some(why) = why {
                if failed == 0 {
                    eprintln!("fantail-bench: the first failed request: {why}");
                }
                failed += 1;
            }
            line.ask(&poller, |bytes| bytes.extend_from_slice(&request))?;
        }
    }
    let seconds = (socket::now() - start) as f64 / 1e9;
    let (cpu, own) = (server.cpu()? - cpu, socket::own_cpu() - own);

    let mut report = Report::new(options.target.json);
    report.count("answers", answers);
    report.count("failed", failed);
    report.real("seconds", seconds);
    report.real("requests_per_second", answers as f64 / seconds);
    report.latencies(&latencies);
    if server.named() {
        report.real("server_cpu_us_per_request", cpu * 1e6 / answers as f64);
    }
    report.real("generator_cpu_seconds", own);
    report.passed = failed == 0 && answers > 0;
    Ok(report)
}
