//! The program `fantail-check`: all of it is in the library, which `fantail-bench` shares.

use std::process::ExitCode;

fn main() -> ExitCode {
    fantail_bench::check()
}
