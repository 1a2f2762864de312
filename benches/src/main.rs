//! `zdt-load`: zdt's load generator, demo and system bench.
//!
//! Must not know: the engine's insides; it starts the `zdt` command and talks to its ports.
#![deny(unsafe_code)]

mod bench;
mod check;
mod demo;
mod engine;
mod figures;
mod http;
mod io;
mod load;
mod payload;
mod peers;
mod process;
mod ring;
mod secure;
mod traffic;
mod uring;
mod ws;

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

/// Load generator, demo and system bench of zdt.
#[derive(Debug, Parser)]
#[command(name = "zdt-load", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the engine under checked traffic and reload it again and again.
    Demo(demo::Arguments),
    /// Measure: handoff, state, ring, echo, http, steering, memory, queue, proxy, proxy-swap, or all.
    Bench {
        /// Which.
        name: String,
        /// One JSON object for each figure.
        #[arg(long)]
        json: bool,
        /// Short, for CI: shows that everything works.
        #[arg(long)]
        quick: bool,
        /// Over TLS: handoff (beside plain), echo, memory.
        #[arg(long)]
        tls: bool,
        /// Over HTTP/2: http, handoff (beside HTTP/1.1), memory.
        #[arg(long)]
        h2: bool,
        /// The zdt command; beside this program by default.
        #[arg(long)]
        zdt: Option<PathBuf>,
    },
    /// Load a WebSocket echo with as many messages as it takes (closed loop).
    Echo {
        /// Where it listens.
        address: SocketAddrV4,
        /// Path of the echo; without it, raw bytes are sent to a server that sends them back.
        #[arg(long)]
        target: Option<String>,
        /// Payload of a message.
        #[arg(long, default_value_t = 64)]
        bytes: usize,
        /// Connections.
        #[arg(long, default_value_t = 100)]
        connections: usize,
        /// Messages in flight on each.
        #[arg(long, default_value_t = 1)]
        in_flight: usize,
        /// Duration.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Processes whose CPU time counts.
        #[arg(long)]
        pid: Vec<u32>,
    },
    /// Serve as one of the servers that the benches compare with.
    #[command(hide = true)]
    Peer {
        /// Which.
        peer: peers::Builtin,
        /// On loopback.
        #[arg(long)]
        port: u16,
        /// Certificate, for those that speak TLS.
        #[arg(long)]
        tls_cert: Option<PathBuf>,
        /// And its key.
        #[arg(long)]
        tls_key: Option<PathBuf>,
    },
    /// Either process of the bare handoff, or a measurement of it.
    #[command(hide = true)]
    PeerHandoff {
        /// The old process.
        #[arg(long)]
        port: Option<u16>,
        /// The new process.
        #[arg(long)]
        inherited: Vec<i32>,
        /// Hand off so many connections once; prints connections a second.
        #[arg(long)]
        measure: Option<usize>,
    },
    /// Serve the demo's endpoints, with a fault, to try the traffic's checks.
    #[command(hide = true)]
    PeerDemo {
        /// Which fault.
        #[arg(default_value = "none")]
        fault: peers::demo::Fault,
        /// On loopback.
        #[arg(long)]
        port: u16,
    },
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Demo(arguments) => return demo::run(&arguments),
        Command::Bench { name, json, quick, tls, h2, zdt } => {
            let mut report = figures::Report::new(json);
            let settings = bench::Settings { zdt: engine::find_zdt(zdt)?, quick, tls, h2 };
            bench::run(&name, &settings, &mut report)?;
        }
        Command::Echo { address, target, bytes, connections, in_flight, seconds, pid } => {
            let exchange = load::Exchange::echo(target.as_deref(), bytes, in_flight);
            let window = Duration::from_secs_f64(seconds.clamp(0.01, 86_400.0));
            let warm_up = Duration::from_millis(200);
            let sample = load::closed::run(address, &exchange, connections, warm_up, window, &pid)?;
            let (server, client) = sample.busy_percent();
            println!("{:.0} messages/s, client {client:.0} % busy", sample.per_s());
            if !pid.is_empty() {
                let rate = sample.per_server_cpu_s();
                println!(
                    "{rate:.0} messages per second of server CPU, which was {server:.0} % busy"
                );
            }
        }
        Command::Peer { peer, port, tls_cert, tls_key } => {
            peers::serve(peer, port, tls_cert.zip(tls_key))?;
        }
        Command::PeerHandoff { port: Some(port), .. } => peers::handoff::run_old(port)?,
        Command::PeerHandoff { measure: Some(connections), .. } => {
            println!("{:.0}", peers::handoff::measure(connections)?);
        }
        Command::PeerHandoff { inherited, .. } if !inherited.is_empty() => {
            peers::handoff::run_new(&inherited)?;
        }
        Command::PeerHandoff { .. } => bail!("--port, --inherited or --measure is needed"),
        Command::PeerDemo { fault, port } => {
            peers::demo::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?, fault)?;
        }
    }
    Ok(true)
}

fn main() -> ExitCode {
    process::raise_descriptor_limit();
    // The ring's bench starts this program again as its second process.
    match ring::run_child_if_asked() {
        Ok(false) => {}
        Ok(true) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zdt-load: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    let result = run(Arguments::parse().command);
    secure::remove_files();
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("zdt-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}
