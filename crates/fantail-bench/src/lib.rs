//! `fantail-bench`, a load generator for push servers, and `fantail-check`, which proves what they deliver
//! ([`check`](mod@check)). They know nothing of the server that they drive: a request to hold and a body to publish are
//! options. Every published message carries a number and a time, so loss, repeats, order and latency are
//! measured on every connection. One epoll loop, loopback only. Exit status: 0 when all arrived once and in
//! order, 1 when not, 2 when it could not be measured.
//!
//! Modules in reading order: [`options`] → [`hold`], [`fan`], [`setup`], [`catch_up`], [`proxy`], [`echo`], [`keep`],
//! [`webhooks`], [`floor`], [`origin`] (one a subcommand) → [`streams`], [`line`] and [`publisher`] (the connections) → [`marker`],
//! [`answer`], [`request`], [`frame`], [`events`], [`latency`] (pure) → [`socket`], [`process`] (the system)
//! → [`report`], [`error`].

mod answer;
mod catch_up;
mod check;
mod echo;
mod error;
mod events;
mod fan;
mod floor;
mod frame;
mod hold;
mod keep;
mod latency;
mod line;
mod marker;
mod options;
mod origin;
mod process;
mod proxy;
mod publisher;
mod report;
mod request;
mod setup;
mod socket;
mod streams;
mod webhooks;

use std::process::ExitCode;

use clap::Parser;

pub use check::run as check;
use error::Error;
use options::{Command, Options};
use report::Report;

/// The program `fantail-bench`.
pub fn bench() -> ExitCode {
    match run(Options::parse()) {
        Ok(report) => {
            print!("{report}");
            if report.passed { ExitCode::SUCCESS } else { ExitCode::from(1) }
        }
        Err(error) => {
            eprintln!("fantail-bench: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Result<Report, Error> {
    match options.command {
        Command::Hold(hold) => hold::run(&hold),
        Command::Fan(fan) => fan::run(&fan, 1),
        Command::Burst(fan) => fan::run(&fan, 64),
        Command::Setup(setup) => setup::run(&setup),
        Command::CatchUp(catch_up) => catch_up::run(&catch_up),
        Command::Proxy(proxy) => proxy::run(&proxy),
        Command::Echo(echo) => echo::run(&echo),
        Command::Webhooks(webhooks) => webhooks::run(&webhooks),
        Command::Keep(keep) => keep::run(&keep),
        Command::Floor(floor) => floor::run(&floor),
        Command::EventsOrigin(origin) => origin::run(&origin),
    }
}
