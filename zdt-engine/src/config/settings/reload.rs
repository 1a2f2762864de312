//! Section `reload`, and the strategies.
//!
//! Must not know: how a reload proceeds.

use serde::{Deserialize, Serialize};

/// See [`Settings::reload`](super::Settings::reload).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReloadOptions {
    /// From the start of the new workers until all have greeted, are ready, and are proven.
    pub ready_timeout_ms: u64,
    /// From the flip until the old workers stop accepting: at least a round trip to the clients.
    pub settle_ms: u64,
    /// From the flip until every connection has moved or stays; then the reload is undone.
    pub handoff_timeout_ms: u64,
    /// How long the new generation must stay healthy before the old one is let go.
    pub probation_ms: u64,
    /// Workers that one step of a rolling reload replaces.
    pub rolling_batch: u32,
    /// Between two steps of a rolling reload.
    pub rolling_pause_ms: u64,
    /// A canary that has served fewer requests and messages is undone: they say nothing.
    pub canary_min_requests: u64,
    /// A canary may fail so many more of 1,000 requests than the old workers at the same time.
    pub canary_more_errors_permille: u64,
    /// The 99th percentile of the canary's service times may be so much longer, in per cent.
    pub canary_slower_percent: u64,
    /// A shorter difference between those percentiles is noise.
    pub canary_slower_ms: u64,
}

impl Default for ReloadOptions {
    fn default() -> Self {
        Self {
            ready_timeout_ms: 30_000,
            settle_ms: 10,
            handoff_timeout_ms: 30_000,
            probation_ms: 0,
            rolling_batch: 1,
            rolling_pause_ms: 0,
            canary_min_requests: 10,
            canary_more_errors_permille: 10,
            canary_slower_percent: 100,
            canary_slower_ms: 5,
        }
    }
}

/// See [`Settings::strategy`](super::Settings::strategy).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// A whole new generation beside the old one, one flip, all connections handed over.
    #[default]
    BlueGreen,
    /// A few workers at a time, each handing its connections to the one in its place.
    Rolling,
    /// The supervisor is replaced first, by the program that is on disk; the workers follow by
    /// blue-green.
    SocketHandoff,
}

impl Strategy {
    /// The name in configurations and verdicts.
    pub fn name(self) -> &'static str {
        match self {
            Strategy::BlueGreen => "blue-green",
            Strategy::Rolling => "rolling",
            Strategy::SocketHandoff => "socket-handoff",
        }
    }
}
