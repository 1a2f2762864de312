//! Generations, their places and their workers, as data.
//!
//! A *place* is an index in a generation: it keeps its listeners when its worker dies, and the next
//! worker there gets them.
//!
//! Must not know: how workers are started or what they are told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::link::Link;
use super::process::{Executable, Process, User};
use super::watch::Pulse;
use crate::config::WorkerConfig;
use crate::control::{Hello, Identity};
use crate::credentials::Credentials;
use crate::supervisor::WorkerId;
use crate::supervisor::sockets::listeners::ListenerId;
use crate::sys::cgroup::Group;

/// What a generation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Green: it takes part in a reload that is not decided.
    Green,
    /// It serves, and crashed workers are restarted.
    Serving,
    /// It serves what stayed behind, until this time.
    Draining {
        /// The deadline.
        until: Instant,
    },
}

/// One generation.
#[derive(Debug)]
pub struct Generation {
    /// Its number.
    pub number: u32,
    /// Its bank of slots.
    pub bank: u32,
    /// What it is for.
    pub phase: Phase,
    /// What its workers are told.
    pub config: WorkerConfig,
    /// Certificates and keys for them; absent without TLS, and after a take-over until one is needed.
    pub credentials: Option<Credentials>,
    /// The program that they run.
    pub executable: Executable,
    /// Whom they run as.
    pub user: User,
    /// The public addresses, with their real ports.
    pub listen: Vec<SocketAddr>,
    /// By index.
    pub places: Vec<Place>,
    /// Why connections stayed behind, by reason code.
    pub drain_reasons: BTreeMap<String, u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Place {
    /// Who is there.
    pub worker: Option<WorkerId>,
    /// The place's own listeners (or its share of the shared ones).
    pub own: Vec<ListenerId>,
    /// Listeners of earlier generations that it accepts from, too.
    pub foreign: Vec<ListenerId>,
    /// Its worker ended too often, in these words; a neighbour has the listeners.
    pub given_up: Option<String>,
}

impl Generation {
    /// The workers that live.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.places.iter().filter_map(|place| place.worker)
    }

    /// The name of the phase.
    pub fn phase_name(&self) -> &'static str {
        match self.phase {
            Phase::Green => "starting",
            Phase::Serving => "serving",
            Phase::Draining { .. } => "draining",
        }
    }
}

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerPhase {
    /// Its process runs; it has not greeted.
    Starting,
    /// It is configured, and waits to be given its listeners.
    Greeted,
    /// It was given its listeners, and has not said that it is ready.
    Arming,
    /// It accepts.
    Serving,
    /// It serves what it has.
    Draining,
    /// It was told to exit, or killed.
    Ending,
}

impl WorkerPhase {
    /// For the status.
    pub fn name(self) -> &'static str {
        match self {
            WorkerPhase::Starting | WorkerPhase::Greeted | WorkerPhase::Arming => "starting",
            WorkerPhase::Serving => "serving",
            WorkerPhase::Draining => "draining",
            WorkerPhase::Ending => "ending",
        }
    }
}

/// One worker.
#[derive(Debug)]
pub struct Worker {
    /// Who it is.
    pub identity: Identity,
    /// Its process.
    pub process: Process,
    /// The connection to it.
    pub link: Link,
    /// What it said first.
    pub hello: Option<Hello>,
    /// What it does.
    pub phase: WorkerPhase,
    /// `Listen` messages that it has not answered.
    pub unanswered_listens: u32,
    /// When it is killed, unless it is gone by then.
    pub kill_at: Option<Instant>,
    /// Why it ends, where that is known better than from its exit status.
    pub why: Option<String>,
    /// The control group that limits it.
    pub group: Option<Group>,
    /// By when it has to serve; a reload has its own bound.
    pub ready_by: Option<Instant>,
    /// Whether it comes round.
    pub pulse: Pulse,
    /// Its counters when the present reload flipped: moved out, adopted in.
    pub baseline: (u64, u64),
}

impl Worker {
    /// It is killed then, or earlier if that was to be.
    pub fn kill_by(&mut self, at: Instant) {
        self.kill_at = Some(self.kill_at.map_or(at, |known| known.min(at)));
    }
}

/// The real addresses for the configured ones: port 0 means whatever port a known address of the
/// same IP has, if there is one.
pub fn resolve_addresses(configured: &[SocketAddr], known: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut resolved: Vec<SocketAddr> = Vec::with_capacity(configured.len());
    for address in configured {
        let found = known.iter().find(|candidate| {
            address.port() == 0
                && candidate.ip() == address.ip()
                && !resolved.contains(candidate)
                && !configured.contains(candidate)
        });
        resolved.push(*found.unwrap_or(address));
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn port_zero_keeps_the_port_it_got() {
        let configured = addresses(&["127.0.0.1:0", "[::1]:0", "127.0.0.1:0", "127.0.0.1:80"]);
        assert_eq!(resolve_addresses(&configured, &[]), configured);
        let known = addresses(&["127.0.0.1:80", "127.0.0.1:81", "127.0.0.1:82", "[::1]:81"]);
        let resolved = resolve_addresses(&configured, &known);
        assert_eq!(
            resolved,
            addresses(&["127.0.0.1:81", "[::1]:81", "127.0.0.1:82", "127.0.0.1:80"])
        );
    }
}
