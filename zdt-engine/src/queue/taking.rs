//! Requests that leave the queue: in their turn, by name, because of their age, or all at once.
//!
//! Must not know: why somebody wants them.

use super::blocks::Blocks;
use super::buffer::Buffer;
use super::{Held, Replayed, RequestId, RequestQueue, Scope};

impl RequestQueue {
    /// A request that was given up for the one held last; those given up first come first.
    pub fn pop_displaced(&mut self) -> Option<Held> {
        self.displaced.pop_front()
    }

    /// Takes the next request out, highest priority first, and appends its bytes to `into`.
    pub fn take(&mut self, now_ms: u64, scope: Scope, into: &mut Vec<u8>) -> Option<Held> {
        let index = self.first(scope)?;
        let held = self.describe(now_ms, index);
        self.read_at(index, into);
        self.remove(index);
        self.metrics.replayed += 1;
        self.metrics.replayed_wait_ms += held.age_ms;
        self.metrics.longest_wait_ms = self.metrics.longest_wait_ms.max(held.age_ms);
        Some(held)
    }

    /// Gives requests out, highest priority first, until there are none or `deliver` returns false.
    /// A request counts as delivered whatever is returned for it.
    pub fn replay(
        &mut self,
        now_ms: u64,
        scope: Scope,
        mut deliver: impl FnMut(&Held, &[u8]) -> bool,
    ) -> Replayed {
        let mut bytes = std::mem::take(&mut self.scratch);
        let mut replayed_requests = 0;
        while let Some(held) = self.take(now_ms, scope, &mut bytes) {
            replayed_requests += 1;
            let goes_on = deliver(&held, &bytes);
            bytes.clear();
            if !goes_on {
                break;
            }
        }
        bytes.shrink_to(64 << 10);
        self.scratch = bytes;
        Replayed { replayed_requests, remaining_requests: self.count(scope) as u64 }
    }

    /// Takes a request out that is not wanted any more. False if it has gone already.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        if self.nodes.find(id.index, id.sequence).is_none() {
            return false;
        }
        self.remove(id.index);
        self.metrics.cancelled += 1;
        true
    }

    /// Takes a particular request out with its bytes, to be held elsewhere.
    pub fn extract(&mut self, now_ms: u64, id: RequestId, into: &mut Vec<u8>) -> Option<Held> {
        let held = self.peek(now_ms, id)?;
        self.read_at(id.index, into);
        self.remove(id.index);
        self.metrics.cancelled += 1;
        Some(held)
    }

    /// What is known of a request, if it is still held.
    pub fn peek(&self, now_ms: u64, id: RequestId) -> Option<Held> {
        self.nodes.find(id.index, id.sequence)?;
        Some(self.describe(now_ms, id.index))
    }

    /// Appends the bytes of a held request to `into`; it stays. False if it has gone.
    pub fn read(&mut self, id: RequestId, into: &mut Vec<u8>) -> bool {
        let is_there = self.nodes.find(id.index, id.sequence).is_some();
        if is_there {
            self.read_at(id.index, into);
        }
        is_there
    }

    /// Takes out a request that has been held for too long.
    pub fn pop_expired(&mut self, now_ms: u64) -> Option<Held> {
        for position in 0..self.buffers.len() {
            if let Some(index) = self.buffers[position].expired(&mut self.nodes, now_ms) {
                let held = self.describe(now_ms, index);
                self.remove(index);
                self.metrics.expired += 1;
                return Some(held);
            }
        }
        None
    }

    /// The requests that [`RequestQueue::pop_expired`] would take, without taking them.
    pub fn expired(&self, now_ms: u64) -> Vec<Held> {
        let mut found = Vec::new();
        for buffer in &self.buffers {
            buffer.each_expired(&self.nodes, now_ms, &mut |index| {
                found.push(self.describe(now_ms, index));
            });
        }
        found
    }

    /// When [`RequestQueue::pop_expired`] should be asked next.
    pub fn next_expiry_ms(&self) -> Option<u64> {
        self.buffers.iter().filter_map(Buffer::next_expiry_ms).min()
    }

    /// Throws everything away; returns how many requests that were.
    pub fn flush(&mut self) -> usize {
        let count = self.requests;
        for buffer in &mut self.buffers {
            let open = buffer.open;
            *buffer = Buffer::new(self.settings.max_age_ms);
            buffer.open = open;
        }
        self.blocks = Blocks::new();
        self.nodes.clear();
        self.codec.clear();
        self.requests = 0;
        self.metrics.flushed += count as u64;
        count
    }

    /// Empties one scope and returns what was in it, in the order of priority.
    pub fn flush_buffer(&mut self, now_ms: u64, scope: Scope) -> Vec<(Held, Vec<u8>)> {
        let mut all = Vec::with_capacity(self.count(scope));
        while let Some(index) = self.first(scope) {
            let held = self.describe(now_ms, index);
            let mut bytes = Vec::with_capacity(held.bytes);
            self.read_at(index, &mut bytes);
            self.remove(index);
            self.metrics.flushed += 1;
            all.push((held, bytes));
        }
        all
    }
}
