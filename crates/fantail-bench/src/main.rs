//! The program `fantail-bench`: all of it is in the library, which `fantail-check` shares.

use std::process::ExitCode;

fn main() -> ExitCode {
    fantail_bench::bench()
}
