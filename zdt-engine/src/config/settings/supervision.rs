//! Sections `respawn` and `supervision`: what becomes of workers that die or hang, and how they are
//! started.
//!
//! Must not know: processes.

use serde::{Deserialize, Serialize};

use crate::config::SeccompMode;

/// See [`Settings::respawn`](super::Settings::respawn).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RespawnOptions {
    /// Restart a worker that died.
    pub enabled: bool,
    /// So many times within the window; after that a live worker takes its listeners.
    pub limit: u32,
    /// The window.
    pub window_ms: u64,
}

impl Default for RespawnOptions {
    fn default() -> Self {
        Self { enabled: true, limit: 5, window_ms: 300_000 }
    }
}

/// See [`Settings::supervision`](super::Settings::supervision).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisionOptions {
    /// A worker whose loop has not come round for so long hangs: it is killed and replaced. 0 is never.
    pub heartbeat_timeout_ms: u64,
    /// By how much the CPU priority of a reload's new workers is lower until they are proven (nice(2)):
    /// blue serves every client meanwhile. 0 is not at all.
    pub green_nice: u8,
    /// The filter of system calls in workers.
    pub seccomp: SeccompMode,
    /// Names of system calls that are allowed besides, for what a service does.
    pub seccomp_allow: Vec<String>,
}

impl Default for SupervisionOptions {
    fn default() -> Self {
        Self {
            heartbeat_timeout_ms: 10_000,
            green_nice: 10,
            seccomp: SeccompMode::Enforce,
            seccomp_allow: Vec::new(),
        }
    }
}
