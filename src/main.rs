//! Runs the command line and picks the exit code; the only place that prints an error.

use std::process::ExitCode;

use clap::Parser;
use itpipe::cli::Cli;

fn main() -> ExitCode {
    match itpipe::command::run(Cli::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            itpipe::progress::say(format_args!("itpipe: {error}"));
            ExitCode::from(error.code)
        }
    }
}
