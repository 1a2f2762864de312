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
mod priority;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use blocks::{Blocks, footprint};
use buffer::{Buffer, Entrant, Node, Nodes};
use compress::Codec;

pub use priority::{LEVELS, Priority};
pub use stats::{BufferStats, Metrics, Stats};

/// Buffers of one queue, at most.
pub const MAX_BUFFERS: usize = 1_024;

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

/// A request to be held.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Its bytes: these, one behind the other.
    pub parts: [&'a [u8]; 2],
    /// The upstream that it is for; `None` if any will do.
    pub upstream: Option<u64>,
    /// See [`Priority`].
    pub priority: Priority,
    /// Anything by which the caller knows it.
    pub tag: u64,
    /// The application may have seen it already.
    pub may_have_been_sent: bool,
}

impl<'a> Request<'a> {
    /// These bytes, without priority, for any upstream.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self {
            parts: [bytes, &[]],
            upstream: None,
            priority: Priority::LOWEST,
            tag: 0,
            may_have_been_sent: false,
        }
    }
}

/// Names a held request, for [`RequestQueue::cancel`]. Never names a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId {
    index: u32,
    sequence: u64,
}

/// What is known of a held request besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub id: RequestId,
    /// The caller's.
    pub tag: u64,
    /// See [`Request::upstream`].
    pub upstream: Option<u64>,
    /// See [`Priority`].
    pub priority: Priority,
    /// How long it has been held.
    pub age_ms: u64,
    /// See [`Request::may_have_been_sent`].
    pub may_have_been_sent: bool,
    /// Length of its bytes.
    pub bytes: usize,
}

/// Which buffers are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every one.
    All,
    /// The one for requests without an upstream.
    Global,
    /// The one of that upstream.
    Upstream(u64),
}

/// Why a request is not held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HoldError {
    /// Neither the global buffer nor that of its upstream takes requests.
    #[error("buffering is not switched on for this request")]
    NotBuffering,
    /// The bounds are reached, and the overflow rule does not make room.
    #[error("the request queue is full")]
    Full,
    /// It alone is larger than the bound.
    #[error("the request has {bytes} bytes, more than the whole queue may hold")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
}

/// What [`RequestQueue::replay`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Requests given out.
    pub replayed_requests: u64,
    /// Requests still held in that scope.
    pub remaining_requests: u64,
}

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

    /// Memory that counts towards [`Settings::max_bytes`].
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
