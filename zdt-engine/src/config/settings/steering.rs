//! Who gets a new connection.
//!
//! Must not know: eBPF.

use serde::{Deserialize, Serialize};

/// See [`Settings::steering`](super::Settings::steering).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SteeringMode {
    /// eBPF where it is allowed, plain sockets otherwise.
    #[default]
    Auto,
    /// eBPF, or an error.
    Ebpf,
    /// Plain sockets.
    Off,
}

/// See [`Settings::policy`](super::Settings::policy).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// By the connection's hash.
    #[default]
    Hash,
    /// In turn.
    RoundRobin,
    /// The less loaded of two.
    LeastLoaded,
}
