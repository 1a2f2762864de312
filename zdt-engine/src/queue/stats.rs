//! What a queue counts.
//!
//! Must not know: how requests are kept.

use serde::{Deserialize, Serialize};

/// One buffer, or all of them together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BufferStats {
    /// Requests held.
    pub requests: u64,
    /// Their bytes as they are kept (after compression).
    pub size_bytes: u64,
    /// How long the oldest one has been held, within a fiftieth of the greatest age.
    pub oldest_age_ms: u64,
    /// True while requests are taken in.
    pub buffering: bool,
}

/// [`RequestQueue::stats`](super::RequestQueue::stats).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// All buffers together; `buffering` if any of them is.
    pub total: BufferStats,
    /// The buffer for requests without an upstream.
    pub global_buffer: BufferStats,
    /// The others, by the number of their upstream.
    pub upstream_buffers: Vec<(u64, BufferStats)>,
    /// Requests by priority, from 0 to 7.
    pub by_priority: [u64; super::LEVELS],
    /// Memory that counts towards the bound: blocks in use, and what a request needs besides.
    pub memory_bytes: u64,
    /// The bound.
    pub max_bytes: u64,
}

/// [`RequestQueue::metrics`](super::RequestQueue::metrics): counters since the queue was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Requests taken in.
    pub held: u64,
    /// Taken out to be sent.
    pub replayed: u64,
    /// Not taken in, for want of room.
    pub rejected: u64,
    /// Given up for a newer one.
    pub displaced: u64,
    /// Held for too long.
    pub expired: u64,
    /// Taken out because their client went away, or for another reason of the caller's.
    pub cancelled: u64,
    /// Thrown away by a flush.
    pub flushed: u64,
    /// Compressed to make room.
    pub compressed: u64,
    /// Bytes that this has saved.
    pub compression_saved_bytes: u64,
    /// Most requests at a time.
    pub peak_requests: u64,
    /// Most memory at a time.
    pub peak_memory_bytes: u64,
    /// Sum of the times for which replayed requests had been held.
    pub replayed_wait_ms: u64,
    /// Longest of them.
    pub longest_wait_ms: u64,
}
