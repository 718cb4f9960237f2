//! `fantail-check`: publishes and subscribes over public interfaces while processes are killed, stopped and started
//! again, writes down what happens, and proves from that what was promised. Exit status: 0 when all promises were kept,
//! 1 when not, 2 when it could not be found out.
//!
//! Modules in reading order: [`trial`] (a run) → [`faults`], [`publisher`], [`subscriber`], [`receiver`], [`origin`]
//! (its parts) → [`wire`] (a connection) → [`history`], [`payload`], [`judge`], [`webhook`], [`verdict`], [`seeded`],
//! [`dice`] (pure).

mod dice;
mod faults;
mod history;
mod judge;
mod origin;
mod payload;
mod publisher;
mod receiver;
mod seeded;
mod subscriber;
mod trial;
mod verdict;
mod webhook;
mod wire;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use self::history::{Class, Fault};
use self::judge::{Limits, judge};
use crate::options::Loopback;
use crate::socket::SECOND;

/// Proves what a push server delivers while it is killed.
#[derive(Debug, Parser)]
#[command(name = "fantail-check", version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server, drive it through faults, judge what came of it
    Run(Trial),
    /// Judge a history that was kept
    Judge { file: PathBuf },
    /// Judge histories with and without defects: each defect must be seen
    SelfTest {
        #[arg(long, default_value_t = 50)]
        seeds: u64,
    },
    /// Serve: the origin of a run
    Origin {
        #[arg(long)]
        listen: Loopback,
        /// The file with each channel's last number
        #[arg(long)]
        heads: PathBuf,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Trial {
    /// Where the server listens for clients
    #[arg(long, default_value = "127.0.0.1:7999")]
    sub: Loopback,
    /// Where it listens for publishers
    #[arg(long = "pub", default_value = "127.0.0.1:5561")]
    publish: Loopback,
    /// Where its route must lead: the origin listens here
    #[arg(long, default_value = "127.0.0.1:7998")]
    origin: Loopback,
    /// With faults
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the channels CLASS-N are promised: plain, origin, accepted, logged, synced
    #[arg(long, value_delimiter = ',', value_parser = class, default_value = "plain,origin,accepted,logged,synced")]
    classes: Vec<Class>,
    /// Which faults: kill, restart, stop, origin_kill, origin_stop, cut (subscribers leave and stall)
    #[arg(long, value_delimiter = ',', value_parser = fault, default_value = "kill,restart,stop,origin_kill,origin_stop,cut")]
    faults: Vec<Fault>,
    /// Milliseconds between two requests of a publisher, on average
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pace: u64,
    /// Subscribers of each transport on each channel
    #[arg(long, default_value_t = 2)]
    subscribers: u16,
    /// The close code that tells a WebSocket of a gap
    #[arg(long, default_value_t = 4000)]
    gap_code: u16,
    /// Where webhooks arrive: channels of their own have endpoints here, one plain-N, and one of logged and synced each
    #[arg(long)]
    hooks: Option<Loopback>,
    /// Keep the history here
    #[arg(long)]
    history: Option<PathBuf>,
    /// Keep what the server writes here
    #[arg(long)]
    log: Option<PathBuf>,
    /// The server, and its arguments: started, killed and started again
    #[arg(last = true, required = true)]
    server: Vec<String>,
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
    #[error("the server does not answer with its origin behind it{0}")]
    NotReady(&'static str),
    #[error("{0} judgements were wrong")]
    SelfTest(usize),
}

impl Failure {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io { what, error }
    }
}

/// The program `fantail-check`.
pub fn run() -> ExitCode {
    match command(Options::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("fantail-check: {failure}");
            ExitCode::from(2)
        }
    }
}

fn command(command: Command) -> Result<bool, Failure> {
    let history = match command {
        Command::Run(options) => {
            let history = trial::run(&options)?;
            if let Some(path) = &options.history {
                history::write(path, &history).map_err(Failure::io("keep the history"))?;
            }
            history
        }
        Command::Judge { file } => history::read(&file).map_err(Failure::io("read the history"))?,
        Command::SelfTest { seeds } => {
            let mut wrong = seeded::self_test(seeds);
            wrong.extend(webhook::self_test(seeds));
            wrong.iter().for_each(|text| println!("{text}"));
            let defects = seeded::Defect::ALL.len() as u64 + webhook::LIES_COUNT;
            println!(
                "{seeds} honest histories, {} with a defect, {} judged wrongly",
                seeds * defects,
                wrong.len()
            );
            return if wrong.is_empty() { Ok(true) } else { Err(Failure::SelfTest(wrong.len())) };
        }
        Command::Origin { listen, heads } => {
            let listener = TcpListener::bind(listen.0).map_err(Failure::io("listen"))?;
            let heads = origin::Heads::open(&heads).map_err(Failure::io("open the heads"))?;
            origin::serve(&listener, &heads).map_err(Failure::io("accept"))?;
            return Ok(true);
        }
    };
    let verdict = judge(&history, LIMITS);
    print!("{verdict}");
    Ok(verdict.passed())
}

fn class(text: &str) -> Result<Class, serde_json::Error> {
    serde_json::from_value(text.into())
}

fn fault(text: &str) -> Result<Fault, serde_json::Error> {
    serde_json::from_value(text.into())
}

/// In undisturbed times an item is there within two seconds, also on a machine that does other things.
const LIMITS: Limits = Limits { stale: 2 * SECOND, settle: 10 * SECOND };

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
        let line =
            ["fantail-check", "run", "--faults", "origin_kill,cut", "--classes", "plain", "--", "true"];
        let Command::Run(trial) = Options::parse_from(line).command else { panic!("not run") };
        assert_eq!((trial.faults, trial.classes), (vec![Fault::OriginKill, Fault::Cut], vec![Class::Plain]));
    }
}
