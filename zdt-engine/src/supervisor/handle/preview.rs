//! What a reload would do, and what it could not move.
//!
//! Must not know: where the figures come from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::Change;
use crate::control::Unmovable;

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
