//! The binary: reads the command line and the configuration, starts the log, and runs. Decides nothing.

use std::process::ExitCode;

use fantail::{
    cli::{self, Command},
    config::Config,
    logging, server,
};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match Command::from_args() {
        Command::Serve(flags) => serve(&flags),
        Command::Check(flags) => cli::check(&flags),
        Command::Convert(convert) => cli::convert(&convert),
        Command::Publish(publish) => cli::publish(&publish),
    }
}

fn serve(flags: &cli::Flags) -> ExitCode {
    let config = match Config::load(flags.sources()) {
        Ok(config) => config,
        Err(problems) => return cli::refuse(problems.0),
    };
    let output = match logging::init(&config.logging) {
        Ok(output) => output,
        Err(why) => return cli::refuse([format!("the log cannot be started: {why}")]),
    };
    let code = server::run(config, &output);
    output.finish();
    code
}
