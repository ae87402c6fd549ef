//! The program `serin-runtime`: parses the command line and hands over to [`serin_runtime::run`].

use clap::Parser;
use std::process::ExitCode;

/// Request buffers of many sizes come and go on many threads; mimalloc keeps both latency and memory lower there than
/// the C library's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let serin_runtime::args::Command::Serve(args) = serin_runtime::args::Args::parse().command;
    match serin_runtime::run::serve(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
