//! `hold`: streams or WebSockets opened and left alone. How fast, at what CPU, and how much memory each keeps: the
//! slope between two sizes, so that what a server takes once does not count.

use crate::error::Error;
use crate::options::Hold;
use crate::process::{Memory, Processes, kernel_slab};
use crate::report::Report;
use crate::socket::{self, Poller, SECOND};
use crate::streams::Streams;

/// Memory with so many streams held.
struct Reading {
    open: usize,
    server: Memory,
    slab: u64,
}

pub(crate) fn run(options: &Hold) -> Result<Report, Error> {
    let sizes = &options.n;
    let largest = sizes.iter().copied().max().unwrap_or(0);
    socket::reserve_descriptors(largest)?;
    let server = Processes(&options.target.pids);
    let poller = Poller::new()?;
    let mut streams = Streams::new(&options.target, options.websocket);
    let mut readings = vec![Reading { open: 0, server: server.memory()?, slab: kernel_slab() }];
    let (mut seconds, mut cpu, mut idle) = (0.0, 0.0, 0.0);
    for &size in sizes {
        let before = server.cpu()?;
        seconds += streams.open_up_to(&poller, size)?;
        let opened = server.cpu()?;
        streams.rest(&poller, options.hold * SECOND)?;
        cpu += opened - before;
        idle += server.cpu()? - opened;
        readings.push(Reading { open: streams.open, server: server.memory()?, slab: kernel_slab() });
    }

    let mut report = Report::new(options.target.json);
    let open = streams.open as f64;
    report.count("open", streams.open as u64);
    report.count("failed", streams.failed as u64);
    report.real("seconds", seconds);
    report.real("opened_per_second", open / seconds);
    if server.named() {
        report.real("server_cpu_us_per_setup", cpu * 1e6 / open);
        report.real("server_cpu_seconds_at_rest", idle);
        for reading in &readings {
            report.count(&format!("server_pss_bytes_at_{}", reading.open), reading.server.pss);
        }
        report.real("server_pss_bytes_per_connection", slope(&readings, |reading| reading.server.pss));
        report.real(
            "server_anonymous_bytes_per_connection",
            slope(&readings, |reading| reading.server.anonymous),
        );
    }
    report.real("kernel_slab_bytes_per_connection", slope(&readings, |reading| reading.slab));
    report.passed = streams.failed == 0;
    Ok(report)
}

/// Growth for each connection between the first and the last size; from none, if there is one size.
fn slope(readings: &[Reading], of: impl Fn(&Reading) -> u64) -> f64 {
    let first = if readings.len() > 2 { readings.get(1) } else { readings.first() };
    let (Some(first), Some(last)) = (first, readings.last()) else { return f64::NAN };
    (of(last) as f64 - of(first) as f64) / (last.open as f64 - first.open as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slope_leaves_out_what_is_taken_once() {
        let reading = |open, pss| Reading { open, server: Memory { pss, ..Memory::default() }, slab: 0 };
        let readings = [reading(0, 1_000), reading(10, 9_000), reading(30, 10_000)];
        assert_eq!(slope(&readings, |reading| reading.server.pss), 50.0);
        assert_eq!(slope(&readings[..2], |reading| reading.server.pss), 800.0);
    }
}
