//! Requests that nobody can answer for a moment, kept until somebody can.
//!
//! [`RequestQueue`] holds requests as bytes, in buffers: a global one and one per upstream. It gives
//! them back in the order of their priority, within a priority in the order of their arrival. It is
//! bounded by memory, by count and by age, and says what it gives up. It has no clock: time is an
//! argument, in milliseconds of any monotonic clock.
//!
//! ```
//! use zdt_engine::queue::{Priority, RequestQueue, Request, Scope, Settings};
//!
//! let mut queue = RequestQueue::new(Settings::default());
//! queue.start_buffering();
//! let names = Settings::default().priority_headers;
//! for (text, headers) in [("GET /a", [("x-priority", &b"1"[..])]), ("GET /b", [("x-urgent", b"true")])] {
//!     let priority = Priority::of_headers(&names, headers);
//!     queue.hold(0, Request { priority, ..Request::new(text.as_bytes()) }).unwrap();
//! }
//! let mut order = Vec::new();
//! queue.replay(5, Scope::All, |held, bytes| {
//!     order.push((held.priority.level(), bytes.to_vec()));
//!     true
//! });
//! assert_eq!(order, [(7, b"GET /b".to_vec()), (1, b"GET /a".to_vec())]);
//! ```
//!
//! Cost, with b buffers (usually one to a few), for a request of n bytes:
//!
//! | operation | steps |
//! |---|---|
//! | [`hold`](RequestQueue::hold) | O(n); with `Oldest` O(n + b) for each request that has to go, with `Compress` at most 16 compressions |
//! | [`take`](RequestQueue::take), [`cancel`](RequestQueue::cancel) | O(n); O(n + b) for [`Scope::All`] |
//! | [`pop_expired`](RequestQueue::pop_expired), [`next_expiry_ms`](RequestQueue::next_expiry_ms) | O(b) |
//! | [`requests`](RequestQueue::requests) | O(b) for each |
//! | [`stats`](RequestQueue::stats), [`len`](RequestQueue::len) | O(b), O(1) |
//! | [`flush`](RequestQueue::flush) | O(requests) |
//!
//! Memory per request, besides its bytes: 64 bytes of links, 4 bytes for each block of 128 bytes, and
//! what is left empty in the last block. Nothing is allocated per request.
//!
//! Must not know: sockets, protocols, clocks.

mod blocks;
mod buffer;
mod compress;
mod looking;
mod priority;
mod request;
mod settings;
mod stats;
mod taking;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use blocks::{Blocks, footprint};
use buffer::{Buffer, Entrant, Node, Nodes};
use compress::Codec;

pub use priority::{LEVELS, Priority};
pub use request::{Held, HoldError, Replayed, Request, RequestId, Scope};
pub use settings::{Overflow, Settings};
pub use stats::{BufferStats, Metrics, Stats};

/// Buffers of one queue, at most.
pub const MAX_BUFFERS: usize = 1_024;

/// See the [module](self).
#[derive(Debug)]
pub struct RequestQueue {
    settings: Settings,
    blocks: Blocks,
    nodes: Nodes,
    /// The global one is the first.
    buffers: Vec<Buffer>,
    /// Upstreams of the buffers behind the first, in their order.
    upstreams: Vec<u64>,
    codec: Codec,
    requests: usize,
    next_sequence: u64,
    metrics: Metrics,
    /// Given up for others; the caller has not been told yet.
    displaced: VecDeque<Held>,
    scratch: Vec<u8>,
}

/// What a request costs besides its blocks.
const NODE_BYTES: usize = size_of::<Node>();

impl RequestQueue {
    /// An empty queue that takes nothing in until buffering is started.
    pub fn new(settings: Settings) -> Self {
        Self {
            blocks: Blocks::new(),
            nodes: Nodes::new(),
            buffers: vec![Buffer::new(settings.max_age_ms)],
            upstreams: Vec::new(),
            codec: Codec::new(),
            requests: 0,
            next_sequence: 0,
            metrics: Metrics::default(),
            displaced: VecDeque::new(),
            scratch: Vec::new(),
            settings,
        }
    }

    /// Bounds and rules.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes requests into the global buffer from now on.
    pub fn start_buffering(&mut self) {
        self.buffers[0].open = true;
    }

    /// Takes no more into the global buffer; what it has stays.
    pub fn stop_buffering(&mut self) {
        self.buffers[0].open = false;
    }

    /// Takes requests into the buffer of that upstream from now on. False if there are
    /// [`MAX_BUFFERS`] already.
    pub fn start_upstream_buffering(&mut self, upstream: u64) -> bool {
        match self.position(upstream) {
            Some(position) => self.buffers[position].open = true,
            None if self.buffers.len() == MAX_BUFFERS => return false,
            None => {
                let mut buffer = Buffer::new(self.settings.max_age_ms);
                buffer.open = true;
                self.buffers.push(buffer);
                self.upstreams.push(upstream);
            }
        }
        true
    }

    /// Takes no more into the buffer of that upstream; what it has stays.
    pub fn stop_upstream_buffering(&mut self, upstream: u64) {
        if let Some(position) = self.position(upstream) {
            self.buffers[position].open = false;
        }
    }

    /// True if a request for that upstream, or for any, would be taken while there is room.
    pub fn is_buffering(&self, upstream: Option<u64>) -> bool {
        self.buffers[0].open
            || upstream.is_some_and(|upstream| {
                self.position(upstream).is_some_and(|position| self.buffers[position].open)
            })
    }

    /// Holds a request: in its upstream's buffer where that takes requests, else in the global one.
    ///
    /// With [`Overflow::Oldest`] others may have had to go: ask [`RequestQueue::pop_displaced`] before
    /// the next one is held.
    ///
    /// # Errors
    /// It is not held then, and nothing else has changed, except that others may be compressed now.
    pub fn hold(&mut self, now_ms: u64, request: Request<'_>) -> Result<RequestId, HoldError> {
        self.displaced.clear();
        let position = request.upstream.and_then(|upstream| self.position(upstream));
        let position = match position {
            Some(position) if self.buffers[position].open => position,
            _ if self.buffers[0].open => 0,
            _ => return Err(HoldError::NotBuffering),
        };
        let bytes = request.parts[0].len() + request.parts[1].len();
        let needed = footprint(bytes) + NODE_BYTES;
        if needed > self.settings.max_bytes || u32::try_from(bytes).is_err() {
            self.metrics.rejected += 1;
            return Err(HoldError::TooLarge { bytes });
        }
        let has_room = self.memory() + needed <= self.settings.max_bytes
            && self.buffers[position].requests < self.settings.max_requests_per_buffer;
        if !has_room && !self.make_room(now_ms, position, needed) {
            self.metrics.rejected += 1;
            return Err(HoldError::Full);
        }
        Ok(self.insert(position, now_ms, request, bytes))
    }

    /// Holds a request that was held for `age_ms` elsewhere. What was accepted once is not dropped:
    /// the bounds and the switches do not apply, so that it may take some time until new ones are
    /// taken again.
    pub fn adopt(&mut self, now_ms: u64, request: Request<'_>, age_ms: u64) -> RequestId {
        let position = match request.upstream {
            None => 0,
            Some(upstream) => match self.position(upstream) {
                Some(position) => position,
                None => {
                    self.start_upstream_buffering(upstream);
                    self.stop_upstream_buffering(upstream);
                    self.position(upstream).unwrap_or(0)
                }
            },
        };
        let bytes = request.parts[0].len() + request.parts[1].len();
        self.insert(position, now_ms.saturating_sub(age_ms), request, bytes)
    }

    fn insert(
        &mut self,
        position: usize,
        since_ms: u64,
        request: Request<'_>,
        bytes: usize,
    ) -> RequestId {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let entrant = Entrant {
            sequence,
            since_ms,
            tag: request.tag,
            chain: self.blocks.store(&request.parts),
            raw_bytes: bytes as u32,
            buffer: position as u16,
            level: request.priority.level() as u8,
            compressed: false,
            may_have_been_sent: request.may_have_been_sent,
        };
        let index = self.buffers[position].insert(&mut self.nodes, entrant);
        self.requests += 1;
        if self.settings.overflow == Overflow::Compress {
            self.codec.add(&self.nodes, index, sequence);
        }
        self.metrics.held += 1;
        self.metrics.peak_requests = self.metrics.peak_requests.max(self.requests as u64);
        self.metrics.peak_memory_bytes = self.metrics.peak_memory_bytes.max(self.memory() as u64);
        RequestId { index, sequence }
    }

    fn make_room(&mut self, now_ms: u64, position: usize, needed: usize) -> bool {
        let count_is_full =
            self.buffers[position].requests >= self.settings.max_requests_per_buffer;
        match self.settings.overflow {
            Overflow::Reject => false,
            Overflow::Oldest => {
                if count_is_full {
                    match self.buffers[position].oldest() {
                        Some(oldest) => self.displace(now_ms, oldest),
                        None => return false, // a bound of 0
                    }
                }
                while self.memory() + needed > self.settings.max_bytes {
                    let Some(oldest) = self.oldest() else { return false };
                    self.displace(now_ms, oldest);
                }
                true
            }
            Overflow::Compress if count_is_full => false,
            Overflow::Compress => {
                for _ in 0..compress::MAX_PER_REQUEST {
                    if self.memory() + needed <= self.settings.max_bytes {
                        break;
                    }
                    let Some(index) = self.codec.next(&self.nodes) else { break };
                    let packed = self.codec.compress(&mut self.nodes, &mut self.blocks, index);
                    if let Some(before) = packed {
                        let node = self.nodes.at(index);
                        let after = node.chain.bytes as usize;
                        self.buffers[usize::from(node.buffer)].account(before, after);
                        self.metrics.compressed += 1;
                        self.metrics.compression_saved_bytes += (before - after) as u64;
                    }
                }
                self.memory() + needed <= self.settings.max_bytes
            }
        }
    }

    fn displace(&mut self, now_ms: u64, index: u32) {
        let held = self.describe(now_ms, index);
        self.remove(index);
        self.metrics.displaced += 1;
        self.displaced.push_back(held);
    }

    fn position(&self, upstream: u64) -> Option<usize> {
        self.upstreams.iter().position(|&known| known == upstream).map(|position| position + 1)
    }

    fn positions(&self, scope: Scope) -> std::ops::Range<usize> {
        match scope {
            Scope::All => 0..self.buffers.len(),
            Scope::Global => 0..1,
            Scope::Upstream(upstream) => {
                self.position(upstream).map_or(0..0, |position| position..position + 1)
            }
        }
    }

    /// The request that goes first.
    fn first(&self, scope: Scope) -> Option<u32> {
        let positions = self.positions(scope);
        if positions.len() == 1 {
            return self.buffers[positions.start].first();
        }
        positions.filter_map(|position| self.buffers[position].first()).min_by_key(|&index| {
            let node = self.nodes.at(index);
            (std::cmp::Reverse(node.level), node.sequence)
        })
    }

    fn oldest(&self) -> Option<u32> {
        let oldest = self.buffers.iter().filter_map(Buffer::oldest);
        oldest.min_by_key(|&index| self.nodes.at(index).since_ms)
    }

    fn describe(&self, now_ms: u64, index: u32) -> Held {
        let node = self.nodes.at(index);
        let position = usize::from(node.buffer);
        Held {
            id: RequestId { index, sequence: node.sequence },
            tag: node.tag,
            upstream: position.checked_sub(1).map(|upstream| self.upstreams[upstream]),
            priority: Priority::new(u64::from(node.level)),
            age_ms: now_ms.saturating_sub(node.since_ms),
            may_have_been_sent: node.may_have_been_sent,
            bytes: node.raw_bytes as usize,
        }
    }

    fn read_at(&mut self, index: u32, into: &mut Vec<u8>) {
        let node = self.nodes.at(index);
        if !node.compressed {
            return self.blocks.read(node.chain, into);
        }
        let mut packed = Vec::with_capacity(node.chain.bytes as usize);
        self.blocks.read(node.chain, &mut packed);
        self.codec.decompress(&packed, node.raw_bytes as usize, into);
    }

    fn remove(&mut self, index: u32) {
        let position = usize::from(self.nodes.at(index).buffer);
        let node = self.buffers[position].remove(&mut self.nodes, index);
        self.blocks.release(node.chain);
        self.requests -= 1;
    }
}
