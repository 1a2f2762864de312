//! Deadlines of many connections, cheap to move back.
//!
//! A deadline that moves later, as keep-alive deadlines do at every request, leaves the heap alone:
//! the old place comes up, the connection says what its deadline is by now, and only then a new place
//! is made. A heap entry therefore is a reason to ask, never a verdict.
//!
//! Must not know: what the deadlines are for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// See the module.
#[derive(Debug, Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(u64, u32, u32)>>,
}

impl Timers {
    /// Asks for connection `index` (with the check value `tag`) to be looked at.
    pub fn schedule(&mut self, due_ms: u64, index: usize, tag: u32) {
        self.heap.push(Reverse((due_ms, index as u32, tag)));
    }

    /// When the next one is due.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse((due_ms, _, _))| *due_ms)
    }

    /// Takes one that is due.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<(usize, u32)> {
        if self.next_due_ms()? > now_ms {
            return None;
        }
        let Reverse((_, index, tag)) = self.heap.pop()?;
        Some((index as usize, tag))
    }

    /// Frees memory that a burst of connections left behind.
    pub fn shrink(&mut self) {
        if self.heap.capacity() > 4 * self.heap.len().max(1024) {
            self.heap.shrink_to_fit();
        }
    }
}
