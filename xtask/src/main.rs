//! Developer commands: `cargo xtask run`, `test`, `demo`, `bench`, `ebpf`, `dist`.
//!
//! Must not know: how the engine works; it builds things and starts them.

mod clients;
mod dist;
mod ebpf;
mod process;
mod run;
mod sources;
mod strip;
mod test;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of zdt")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build zdt and start it, by sudo where this is not root: `zdt serve ARGUMENTS`
    Run {
        /// Passed to `zdt serve`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run all tests, and say which had to be skipped
    Test(test::Options),
    /// Reload a running engine under load and count what was lost: `zdt-load demo ARGUMENTS`
    Demo {
        /// Passed to the load generator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measure: `zdt-load bench NAME ARGUMENTS`
    Bench {
        /// Passed to the load generator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Rebuild the eBPF program
    Ebpf(ebpf::Options),
    /// Build a release archive in target/dist
    Dist,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Run { arguments } => run::serve(&arguments),
        Command::Test(options) => test::run(&options),
        Command::Demo { arguments } => run::load("demo", &arguments),
        Command::Bench { arguments } => run::load("bench", &arguments),
        Command::Ebpf(options) => ebpf::run(&options),
        Command::Dist => dist::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
