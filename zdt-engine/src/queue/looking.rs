//! Looking at what is held, without changing it.
//!
//! Must not know: who looks.

use super::blocks::{self, Blocks, footprint};
use super::buffer::Buffer;
use super::{BufferStats, Held, LEVELS, Metrics, NODE_BYTES, RequestQueue, Scope, Stats};

impl RequestQueue {
    /// All requests of a scope in the order in which they would be replayed; they stay.
    pub fn requests(&self, now_ms: u64, scope: Scope) -> impl Iterator<Item = Held> + '_ {
        let mut cursors: Vec<(usize, Option<u32>)> =
            self.positions(scope).map(|position| (position, None)).collect();
        let mut level = LEVELS;
        std::iter::from_fn(move || {
            loop {
                let next = cursors
                    .iter_mut()
                    .filter(|(_, at)| at.is_some())
                    .min_by_key(|(_, at)| at.map(|index| self.nodes.at(index).sequence));
                if let Some((_, at)) = next {
                    let index = (*at)?;
                    *at = Buffer::next(&self.nodes, index);
                    return Some(self.describe(now_ms, index));
                }
                level = level.checked_sub(1)?;
                for (position, at) in &mut cursors {
                    *at = self.buffers[*position].first_of(level);
                }
            }
        })
    }

    /// Requests held.
    pub fn len(&self) -> usize {
        self.requests
    }

    /// True when none is held.
    pub fn is_empty(&self) -> bool {
        self.requests == 0
    }

    /// Requests held in that scope.
    pub fn count(&self, scope: Scope) -> usize {
        match scope {
            Scope::All => self.requests,
            _ => self.positions(scope).map(|position| self.buffers[position].requests).sum(),
        }
    }

    /// Memory that counts towards [`Settings::max_bytes`](super::Settings::max_bytes).
    pub fn memory(&self) -> usize {
        footprint(blocks::BLOCK_BYTES) * self.blocks.used() + NODE_BYTES * self.requests
    }

    /// Gives the memory of an empty queue back; otherwise it is kept for the next requests. Does
    /// nothing while something is held.
    pub fn shrink(&mut self) {
        if self.requests == 0 {
            self.blocks = Blocks::new();
            self.nodes.clear();
            self.codec.clear();
        }
    }

    /// Memory that is allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.blocks.allocated_bytes() + self.nodes.allocated_bytes()
    }

    /// What is held, and where.
    pub fn stats(&self, now_ms: u64) -> Stats {
        let of = |buffer: &Buffer| BufferStats {
            requests: buffer.requests as u64,
            size_bytes: buffer.bytes as u64,
            oldest_age_ms: buffer
                .oldest()
                .map_or(0, |index| now_ms.saturating_sub(self.nodes.at(index).since_ms)),
            buffering: buffer.open,
        };
        let mut stats = Stats {
            global_buffer: of(&self.buffers[0]),
            memory_bytes: self.memory() as u64,
            max_bytes: self.settings.max_bytes as u64,
            ..Stats::default()
        };
        for (upstream, buffer) in self.upstreams.iter().zip(&self.buffers[1..]) {
            stats.upstream_buffers.push((*upstream, of(buffer)));
        }
        for buffer in &self.buffers {
            let one = of(buffer);
            stats.total.requests += one.requests;
            stats.total.size_bytes += one.size_bytes;
            stats.total.oldest_age_ms = stats.total.oldest_age_ms.max(one.oldest_age_ms);
            stats.total.buffering |= one.buffering;
            for (level, count) in stats.by_priority.iter_mut().enumerate() {
                *count += buffer.requests_of(level) as u64;
            }
        }
        stats
    }

    /// Counters since the queue was made.
    pub fn metrics(&self) -> Metrics {
        self.metrics
    }
}
