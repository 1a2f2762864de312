//! Bounds and rules of a queue.
//!
//! Must not know: how they are kept.

use serde::{Deserialize, Serialize};

/// What happens to a request for which there is no room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overflow {
    /// It is not taken.
    #[default]
    Reject,
    /// The oldest ones are given up for it.
    Oldest,
    /// Held ones are compressed (zstd) to make room; if that does not suffice, it is not taken.
    Compress,
}

/// Bounds and rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Memory for held requests, over all buffers: what they take, not what they contain.
    pub max_bytes: usize,
    /// Requests in each buffer.
    pub max_requests_per_buffer: usize,
    /// Longest time that a request is held. It may end up to a fiftieth earlier.
    pub max_age_ms: u64,
    /// Beyond the bounds.
    pub overflow: Overflow,
    /// Names of the fields that say how urgent a request is.
    pub priority_headers: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            max_requests_per_buffer: 100_000,
            max_age_ms: 30_000,
            overflow: Overflow::Reject,
            priority_headers: vec!["x-priority".to_owned(), "x-urgent".to_owned()],
        }
    }
}
