//! Requests and replies on the control socket, a JSON object a line.
//!
//! Must not know: how anything is done.

use serde::{Deserialize, Serialize};

use super::{Plan, Status, TestMigration};
use crate::config::{RouteTarget, ShownSetting, Strategy};
use crate::supervisor::reload::Verdict;

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

/// What a flush of the queue of held requests has dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FlushReport {
    /// Requests that were answered with an error instead of being replayed.
    pub flushed_requests: u64,
    /// Requests that are still held.
    pub buffered_requests: u64,
}
