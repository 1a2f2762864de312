//! The status: what there is, and what has been counted.
//!
//! Must not know: where the figures come from.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Progress;
use crate::control::WorkerStatus;
use crate::supervisor::reload::Verdict;

/// The state of everything; the fields of the original library's `getStats` and `getHealthStatus`
/// among them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// `healthy`, `reloading` or `degraded`.
    pub status: String,
    /// What is degraded.
    pub problems: Vec<String>,
    /// By component.
    pub components: Components,
    /// A reload is going on.
    pub reload_in_progress: bool,
    /// Its progress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload: Option<Progress>,
    /// The strategy.
    pub strategy: String,
    /// Open connections of all generations.
    pub active_connections: u64,
    /// Held requests.
    pub buffered_requests: u64,
    /// Sessions whose clients are away.
    #[serde(default)]
    pub parked_sessions: u64,
    /// By worker id.
    pub worker_stats: BTreeMap<u32, WorkerStats>,
    /// The public sockets.
    pub socket_stats: SocketStats,
    /// How the workers of the serving generation are confined.
    pub confinement: Confined,
    /// Since the supervisor took over.
    pub uptime_seconds: f64,
    /// Resident memory of the supervisor and all workers.
    pub memory_usage_mb: f64,
    /// The supervisor's process.
    pub pid: u32,
    /// Its build.
    pub version: String,
    /// The generation that serves.
    pub generation: u32,
    /// All that live.
    pub generations: Vec<GenerationStats>,
    /// Since the service began, over supervisors.
    pub totals: Totals,
    /// Since the service began, over all workers that it ever had.
    pub counters: Counters,
    /// Of the last reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_reload: Option<Verdict>,
    /// Those that the gateway has started.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applications: Vec<ApplicationStats>,
}

/// An application that the gateway has started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ApplicationStats {
    /// The process that leads its group.
    pub pid: u32,
    /// The swap that brought it.
    pub generation: u64,
    /// Where it listens.
    pub url: String,
    /// `starting`, `serving` or `ending`.
    pub state: String,
}

/// See [`Status::components`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Components {
    /// The handoff.
    pub connection_migration: MigrationComponent,
    /// Held requests.
    pub request_buffering: BufferingComponent,
}

/// See [`Components::connection_migration`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationComponent {
    /// `healthy`, `reloading`, `degraded` or `disabled`.
    pub status: String,
    /// Open connections.
    pub active_connections: u64,
}

/// See [`Components::request_buffering`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BufferingComponent {
    /// `idle`.
    pub status: String,
    /// Held requests.
    pub buffered_requests: u64,
}

/// One worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStats {
    /// Its generation.
    pub generation: u32,
    /// Its index there.
    pub index: u32,
    /// Its slot in the steering maps.
    pub slot: u32,
    /// `starting`, `serving`, `draining` or `ending`.
    pub state: String,
    /// Resident memory.
    pub memory_usage_mb: f64,
    /// False if it did not answer in time; then what follows is from the scoreboard or zero.
    pub answers: bool,
    /// Its own figures.
    #[serde(flatten)]
    pub figures: WorkerStatus,
}

/// The public sockets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketStats {
    /// `ebpf` or `plain`.
    pub steering: String,
    /// The addresses.
    pub addresses: Vec<SocketAddr>,
    /// Listening sockets, those that linger after a reload included.
    pub listeners: u32,
    /// The steering program's counters, by address and slot.
    pub counters: serde_json::Value,
}

/// How workers are confined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confined {
    /// What enforces the limit on memory: `cgroup`, `rlimit`, or `none` where there is no limit.
    pub memory: String,
    /// The same for CPU time: `cgroup`, `pacing` (the worker itself) or `none`.
    pub cpu: String,
    /// The same for descriptors: `rlimit` or `none`.
    pub open_files: String,
    /// Why there are no control groups, where a limit would use them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_cgroup_because: Option<String>,
    /// `enforce`, `log` or `off`.
    pub seccomp: String,
    /// Each worker is tied to one CPU.
    pub pinned_cpus: bool,
}

/// One generation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationStats {
    /// Its number.
    pub number: u32,
    /// `starting`, `serving` or `draining`.
    pub state: String,
    /// The program that it runs.
    pub executable: String,
    /// Its workers.
    pub workers: Vec<u32>,
    /// Connections that could not be handed off, by reason code.
    pub drain_reasons: BTreeMap<String, u64>,
    /// Until it is ended, if it drains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_ms_left: Option<u64>,
}

/// What workers count, all of them together. None of these ever falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Connections accepted from a listener, the supervisor's own probes included.
    pub accepted: u64,
    /// Connections closed because a limit was reached.
    pub rejected: u64,
    /// Connections adopted from other workers.
    pub adopted: u64,
    /// Connections handed to other workers.
    pub moved: u64,
    /// HTTP requests.
    pub requests: u64,
    /// WebSocket messages received.
    pub messages_received: u64,
    /// WebSocket messages sent.
    pub messages_sent: u64,
    /// Bytes received from clients.
    pub bytes_received: u64,
    /// Bytes sent to clients.
    pub bytes_sent: u64,
    /// Requests that the gateway has held.
    pub held_requests: u64,
    /// Held requests that were sent.
    pub replayed_requests: u64,
    /// Requests that it could not hold for want of room.
    pub unheld_requests: u64,
    /// Held requests that were given up for newer ones.
    pub displaced_requests: u64,
    /// Held requests whose time was over.
    pub expired_requests: u64,
    /// Held requests whose client went away.
    pub abandoned_requests: u64,
    /// How often a connection was not received from because all of its worker's held too much.
    pub squeezed: u64,
    /// Connections given up because nothing else helped.
    pub shed: u64,
    /// Held requests whose bodies have gone to the disk in part.
    pub spilled_requests: u64,
    /// Held requests whose bodies found no room there.
    pub unspilled_requests: u64,
}

impl Counters {
    /// Adds another worker's.
    pub fn add(&mut self, other: &Counters) {
        let Counters {
            accepted,
            rejected,
            adopted,
            moved,
            requests,
            messages_received,
            messages_sent,
            bytes_received,
            bytes_sent,
            held_requests,
            replayed_requests,
            unheld_requests,
            displaced_requests,
            expired_requests,
            abandoned_requests,
            squeezed,
            shed,
            spilled_requests,
            unspilled_requests,
        } = self;
        for (sum, part) in [
            (accepted, other.accepted),
            (rejected, other.rejected),
            (adopted, other.adopted),
            (moved, other.moved),
            (requests, other.requests),
            (messages_received, other.messages_received),
            (messages_sent, other.messages_sent),
            (bytes_received, other.bytes_received),
            (bytes_sent, other.bytes_sent),
            (held_requests, other.held_requests),
            (replayed_requests, other.replayed_requests),
            (unheld_requests, other.unheld_requests),
            (displaced_requests, other.displaced_requests),
            (expired_requests, other.expired_requests),
            (abandoned_requests, other.abandoned_requests),
            (squeezed, other.squeezed),
            (shed, other.shed),
            (spilled_requests, other.spilled_requests),
            (unspilled_requests, other.unspilled_requests),
        ] {
            *sum = sum.saturating_add(part);
        }
    }
}

/// Counted since the service began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Reloads that were committed.
    pub reloads: u64,
    /// Reloads that were not.
    pub failed_reloads: u64,
    /// Workers that died after they had served.
    pub crashes: u64,
    /// Workers that died before they could serve.
    pub failed_starts: u64,
    /// Workers that did not come round and were killed.
    pub hung: u64,
    /// Workers that were restarted.
    pub respawns: u64,
    /// Connections that died with a worker.
    pub lost_connections: u64,
    /// Connections that changed their generation.
    pub migrated_connections: u64,
}
