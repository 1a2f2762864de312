//! The system bench: figures of the whole engine, each beside its reference, measured in the same run
//! in interleaved pairs.
//!
//! Must not know: how the engine works.

mod echo;
mod handoff;
mod http;
mod http2;
mod memory;
mod proxy;
mod queue;
mod reload;
mod state;
mod steering;
pub mod swap;
mod variants;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::engine::{Engine, Options};
use crate::figures::Report;
use crate::peers::Peer;
use crate::process::server_and_client_cpus;

/// Names of the benches, in the order of `all`.
pub const NAMES: [&str; 11] = [
    "handoff",
    "state",
    "ring",
    "echo",
    "http",
    "steering",
    "memory",
    "queue",
    "reload",
    "proxy",
    "proxy-swap",
];

/// What all benches need.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The `zdt` command.
    pub zdt: PathBuf,
    /// Short: shows that everything works; the figures mean little.
    pub quick: bool,
    /// Over TLS, where that makes sense.
    pub tls: bool,
    /// Over HTTP/2, where that makes sense.
    pub h2: bool,
}

impl Settings {
    /// Interleaved pairs of short measurements.
    pub fn pairs(&self) -> usize {
        if self.quick { 2 } else { 9 }
    }

    /// Warm-up and measurement of one short run.
    pub fn windows(&self) -> (Duration, Duration) {
        let (warm_up, window) = if self.quick { (30, 120) } else { (150, 500) };
        (Duration::from_millis(warm_up), Duration::from_millis(window))
    }

    /// Idle connections of the large benches.
    pub fn connections(&self) -> usize {
        if self.quick { 1000 } else { 9000 }
    }

    /// An engine with one worker.
    pub fn engine(&self, cpu: Option<usize>) -> Result<Engine> {
        Engine::start(Options { cpu, tls: self.tls, ..Options::new(&self.zdt) })
    }

    /// The same without TLS, as the reference of what is measured with it.
    pub fn plain_engine(&self, cpu: Option<usize>) -> Result<Engine> {
        Engine::start(Options { cpu, ..Options::new(&self.zdt) })
    }
}

/// Runs one bench, or `all`.
pub fn run(name: &str, settings: &Settings, report: &mut Report) -> Result<()> {
    if name != "all" {
        return run_one(name, settings, report);
    }
    let mut failed = Vec::new();
    for name in NAMES {
        if let Err(error) = run_one(name, settings, report) {
            report.note(&format!("{name} failed: {error:#}"));
            failed.push(name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn run_one(name: &str, settings: &Settings, report: &mut Report) -> Result<()> {
    if !settings.quick && !crate::process::wait_until_quiet(Duration::from_secs(20)) {
        report.note("others are using this machine: the figures will scatter");
    }
    match name {
        "handoff" => handoff::run(settings, report),
        "state" => state::run(settings, report),
        "ring" => crate::ring::run(settings, report),
        "echo" => echo::run(settings, report),
        "http" if settings.h2 => http2::run(settings, report),
        "http" => http::run(settings, report),
        "steering" => steering::run(settings, report),
        "memory" => memory::run(settings, report),
        "reload" => reload::run(settings, report),
        "queue" => queue::run(settings, report),
        "proxy" => proxy::run(settings, report),
        "proxy-swap" => swap::run(settings, report),
        _ => bail!("no bench {name:?}; there are {}, all", NAMES.join(", ")),
    }
}

/// CPU of the servers; pins the calling thread to the other until the value is dropped.
fn pin_client(report: &Report) -> Result<(usize, crate::process::Pinned)> {
    let (server, client) = server_and_client_cpus();
    report.note(&format!("servers on CPU {server}, client on CPU {client}"));
    if server == client {
        report.note("there is only one CPU: client and servers share it");
    }
    Ok((server, crate::process::Pinned::to(client)?))
}

/// The peers that could be started; says what they run with, or why they are missing.
fn started(report: &Report, peers: Vec<(&str, Result<Peer>)>) -> Vec<Peer> {
    let mut running = Vec::new();
    for (name, peer) in peers {
        match peer {
            Ok(peer) => {
                report.note(&format!("{}: {}", peer.name, peer.configuration));
                running.push(peer);
            }
            Err(error) => report.note(&format!("{name} is skipped: {error:#}")),
        }
    }
    running
}
