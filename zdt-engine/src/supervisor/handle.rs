//! How the command line, the admin endpoint and signals reach the supervisor.
//!
//! The same requests and replies, a JSON object a line, travel over the control socket.
//!
//! Must not know: how anything is done.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::reload::Verdict;
use crate::config::{Change, RouteTarget, Secret, ShownSetting, Strategy};
use crate::control::{Unmovable, WorkerStatus};

/// Longest line on the control socket.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// A request on the control socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// Replace the workers; answered by any number of `progress`, then `verdict`.
    Reload(ReloadRequest),
    /// Back to the generation before; answered like a reload.
    Rollback,
    /// Answered by `status`.
    Status,
    /// Answered by `config`.
    Config,
    /// Try the handoff of every connection aside; answered by `test_migration`.
    TestMigration,
    /// Say what a reload would do; answered by `plan`.
    Plan,
    /// Drop the requests that are held; answered by `flushed`.
    FlushQueue,
    /// The gateway; answered by `gateway`.
    Gateway(GatewayRequest),
    /// Answered by `stopping`; the connection ends when the supervisor does.
    Stop {
        /// Without draining.
        #[serde(default)]
        now: bool,
    },
}

/// What the gateway can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "gateway", rename_all = "snake_case")]
pub enum GatewayRequest {
    /// Hold a route's requests, or send them again; all routes without a name.
    Hold {
        /// The route.
        route: Option<String>,
        /// Or resume.
        held: bool,
    },
    /// Answer what is held with 503.
    Flush {
        /// Of that route only.
        route: Option<String>,
    },
    /// Replace a route's upstreams, once the new ones answer.
    SetUpstreams {
        /// The route.
        route: String,
        /// Their URLs.
        urls: Vec<String>,
    },
    /// Start the application anew, and swap once it answers.
    ReloadApp,
}

/// What the gateway answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayReply {
    /// The routes in force.
    Routes(Vec<RouteTarget>),
    /// The queues are empty.
    Flushed {
        /// Workers that were told.
        workers: u32,
        /// Requests that were answered with 503.
        #[serde(default)]
        flushed_requests: u64,
        /// Requests that are still held, by other routes or because they came later.
        #[serde(default)]
        buffered_requests: u64,
    },
    /// New upstreams have a route.
    Swapped(Swapped),
}

/// See [`GatewayReply::Swapped`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swapped {
    /// Always true: whatever else is an error.
    pub swap_successful: bool,
    /// The route.
    pub route: String,
    /// Who serves it now.
    pub upstreams: Vec<String>,
    /// Who did, and finishes what it has.
    pub replaced: Vec<String>,
    /// From the request to the first answer of the new ones.
    pub ready_ms: f64,
}

/// How a reload is to be done, as far as it differs from the settings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadRequest {
    /// Go on where green cannot hand connections back.
    pub no_rollback: bool,
    /// Instead of the configured one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// Try green with a share of the new connections first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryRequest>,
}

/// See [`ReloadRequest::canary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryRequest {
    /// How many of 1,000 new connections go to green.
    pub permille: u16,
    /// How long both generations are watched.
    pub for_ms: u64,
}

/// A reply on the control socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// See [`Request::Gateway`].
    Gateway(Box<GatewayReply>),
    /// A reload goes on.
    Progress(Progress),
    /// A reload is over.
    Verdict(Box<Verdict>),
    /// What was asked.
    Status(Box<Status>),
    /// The settings that are in force, and where they came from.
    Config(Vec<ShownSetting>),
    /// What a test of the migration has found.
    TestMigration(Box<TestMigration>),
    /// What a reload would do.
    Plan(Box<Plan>),
    /// What was dropped.
    Flushed(FlushReport),
    /// The stop has begun.
    Stopping {
        /// Workers that are to end.
        workers: u32,
        /// The supervisor's process.
        #[serde(default)]
        pid: u32,
    },
    /// The verdict will come from another supervisor, which takes this one's place. Never sent.
    #[serde(skip)]
    Inherited,
    /// The request was not understood, or could not be served.
    Error {
        /// What, where, what to do.
        message: String,
    },
}

/// How far a reload is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Number of the reload; 0 while it waits.
    pub reload: u64,
    /// Name of the stage.
    pub stage: String,
    /// Connections that have moved.
    pub moved: u64,
    /// Connections that are still to move.
    pub remaining: u64,
}

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

/// What a test of the migration has found: the state of every connection was taken, restored aside, saved
/// again and compared, without its client noticing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TestMigration {
    /// Every connection could be moved, and every worker has answered.
    pub test_successful: bool,
    /// Connections whose state was taken.
    pub tested_connections: u64,
    /// Those that a reload could move.
    pub movable_connections: u64,
    /// Why the others would drain, by reason code.
    pub drain_reasons: BTreeMap<String, u64>,
    /// Which ones: at most 64 of each worker.
    pub would_drain: Vec<UnmovableConnection>,
    /// Those that are not named.
    pub unnamed: u64,
    /// False if `migrate_connections` is: then all drain, whatever the test says.
    pub migration_enabled: bool,
    /// Bytes of all records.
    pub bytes: u64,
    /// Bytes of the largest.
    pub largest_bytes: u64,
    /// Workers that have answered.
    pub workers: u32,
    /// Workers that died or did not answer in time.
    pub silent_workers: Vec<u32>,
    /// From the request to the last answer.
    pub duration_ms: f64,
    /// The longest that it kept one worker's loop busy, in slices of a millisecond.
    pub longest_busy_ms: f64,
}

/// A connection that would drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmovableConnection {
    /// Its worker.
    pub worker: u32,
    /// Which one, and why.
    #[serde(flatten)]
    pub connection: Unmovable,
}

/// What a reload would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Plan {
    /// Nothing is known that would stop it before it began.
    pub ready: bool,
    /// What would.
    pub problems: Vec<String>,
    /// The generation that serves.
    pub generation: u32,
    /// The one that a reload would start.
    pub next_generation: u32,
    /// How.
    pub strategy: String,
    /// Whether connections would be handed over.
    pub migrates: bool,
    /// Workers that serve.
    pub workers: u32,
    /// Workers that would be started.
    pub next_workers: u32,
    /// The program that workers would be started from.
    pub executable: String,
    /// The program that they run.
    pub running_executable: String,
    /// It is another file, or was changed.
    pub executable_changed: bool,
    /// Settings that are others than those in force.
    pub changes: Vec<Change>,
    /// Those of them that a reload cannot bring about.
    pub restart_required: Vec<String>,
}

/// What a flush of the queue of held requests has dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlushReport {
    /// Requests that were answered with an error instead of being replayed.
    pub flushed_requests: u64,
    /// Requests that are still held.
    pub buffered_requests: u64,
}

/// A request to the supervisor from within its process.
#[derive(Debug)]
pub enum Command {
    /// See [`Request::Reload`]. The verdict is the last reply.
    Reload {
        /// See [`Request::Reload`].
        request: ReloadRequest,
        /// Where replies go; nobody has to listen.
        replies: mpsc::Sender<Reply>,
    },
    /// See [`Request::Rollback`]. The verdict is the last reply.
    Rollback {
        /// Where replies go; nobody has to listen.
        replies: mpsc::Sender<Reply>,
    },
    /// See [`Request::Status`].
    Status {
        /// Where it goes.
        reply: oneshot::Sender<Box<Status>>,
    },
    /// See [`Request::TestMigration`].
    TestMigration {
        /// Where it goes; an error if it cannot be done now.
        reply: oneshot::Sender<Result<TestMigration, String>>,
    },
    /// See [`Request::Plan`].
    Plan {
        /// Where it goes.
        reply: oneshot::Sender<Box<Plan>>,
    },
    /// See [`Request::Gateway`].
    Gateway {
        /// What.
        request: GatewayRequest,
        /// Where the answer goes.
        reply: oneshot::Sender<Result<GatewayReply, String>>,
    },
    /// See [`Request::FlushQueue`].
    FlushQueue {
        /// Where it goes.
        reply: oneshot::Sender<FlushReport>,
    },
    /// See [`Request::Config`].
    Config {
        /// Where it goes.
        reply: oneshot::Sender<Vec<ShownSetting>>,
    },
    /// See [`Request::Stop`].
    Stop {
        /// See [`Request::Stop`].
        now: bool,
        /// Where the number of workers goes.
        reply: oneshot::Sender<u32>,
    },
}

/// What whoever asks the admin endpoint has to show, if anything.
pub type AdminToken = Option<Secret>;

/// The supervisor, from within its process.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    readiness: tokio::sync::watch::Receiver<Readiness>,
    admin_token: tokio::sync::watch::Receiver<AdminToken>,
}

/// Whether new connections are welcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet.
    #[default]
    Starting,
    /// They are.
    Ready,
    /// They are, although a place has no worker any more.
    Degraded,
    /// No worker accepts.
    NoWorker,
    /// Not any more.
    Stopping,
    /// They are, and another supervisor looks after them: what waits here is passed on to it.
    HandedOver,
}

impl Handle {
    pub(super) fn new(
        commands: mpsc::Sender<Command>,
        readiness: tokio::sync::watch::Receiver<Readiness>,
        admin_token: tokio::sync::watch::Receiver<AdminToken>,
    ) -> Self {
        Self { commands, readiness, admin_token }
    }

    /// The admin endpoint's token, which a reload may change.
    pub fn admin_token(&self) -> tokio::sync::watch::Receiver<AdminToken> {
        self.admin_token.clone()
    }

    /// Whether new connections are welcome.
    pub fn readiness(&self) -> Readiness {
        *self.readiness.borrow()
    }

    /// Waits until another supervisor has taken over, or this one ends.
    pub async fn handed_over(&self) -> bool {
        let mut readiness = self.readiness.clone();
        readiness.wait_for(|now| *now == Readiness::HandedOver).await.is_ok()
    }

    /// Asks for the status; `None` if the supervisor is ending.
    pub async fn status(&self) -> Option<Box<Status>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Status { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Tries the handoff of every connection aside; `None` if the supervisor is ending.
    pub async fn test_migration(&self) -> Option<Result<TestMigration, String>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::TestMigration { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Asks what a reload would do; `None` if the supervisor is ending.
    pub async fn plan(&self) -> Option<Box<Plan>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Plan { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Drops the requests that are held; `None` if the supervisor is ending.
    pub async fn flush_queue(&self) -> Option<FlushReport> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::FlushQueue { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Tells the gateway something; `None` if the supervisor is ending.
    pub async fn gateway(&self, request: GatewayRequest) -> Option<Result<GatewayReply, String>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Gateway { request, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Asks for the settings that are in force; `None` if the supervisor is ending.
    pub async fn config(&self) -> Option<Vec<ShownSetting>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Config { reply }).await.ok()?;
        answer.await.ok()
    }

    /// Begins a reload; the verdict is the last reply. `None` if the supervisor is ending.
    pub async fn reload(&self, request: ReloadRequest) -> Option<mpsc::Receiver<Reply>> {
        let (replies, answers) = mpsc::channel(64);
        self.commands.send(Command::Reload { request, replies }).await.ok()?;
        Some(answers)
    }

    /// Goes back to the generation before; the verdict is the last reply. `None` if the supervisor is
    /// ending.
    pub async fn rollback(&self) -> Option<mpsc::Receiver<Reply>> {
        let (replies, answers) = mpsc::channel(64);
        self.commands.send(Command::Rollback { replies }).await.ok()?;
        Some(answers)
    }

    /// Begins a stop; how many workers are to end. `None` if the supervisor is ending.
    pub async fn stop(&self, now: bool) -> Option<u32> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Stop { now, reply }).await.ok()?;
        answer.await.ok()
    }
}
