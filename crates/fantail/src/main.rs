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

/// What jemalloc reads before `main`. A crowd of new connections takes and gives back buffers of 8 KiB; by default a
/// thread keeps twenty of a size at hand and asks its arena for the others, which was a seventh of all that a set-up
/// does outside of the kernel. Those of 7 and 8 KiB come from slabs of eight and more: by default each is a slab of its own.
#[cfg(feature = "jemalloc")]
const ALLOCATOR_SETTINGS: &[u8] =
    b"tcache_ncached_max:256-14336:512,experimental_tcache_gc:false,tcache_gc_incr_bytes:1048576,slab_sizes:7168-8192:16\0";

/// Their first byte, under the name by which jemalloc finds them.
#[cfg(feature = "jemalloc")]
#[expect(unsafe_code, reason = "a name that nothing else exports, for a C string that is never written to")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static MALLOC_CONF: &u8 = &ALLOCATOR_SETTINGS[0];

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
