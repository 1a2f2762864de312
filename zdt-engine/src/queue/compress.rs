//! What [`Overflow::Compress`](super::Overflow::Compress) does: zstd on what is held, oldest first.
//!
//! Must not know: priorities, bounds.

use super::blocks::{Blocks, footprint};
use super::buffer::Nodes;
use std::collections::VecDeque;

/// zstd's fastest level: the requests are small, and the worker has other things to do.
const LEVEL: i32 = 1;

/// Requests that are compressed to make room for one: what a request may cost at most.
pub const MAX_PER_REQUEST: usize = 16;

/// Compressor and decompressor, made when first needed.
pub struct Codec {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    /// Requests that have not been tried yet, in the order of their arrival.
    candidates: VecDeque<(u32, u64)>,
    raw: Vec<u8>,
    packed: Vec<u8>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Codec").field("candidates", &self.candidates.len()).finish()
    }
}

impl Codec {
    pub fn new() -> Self {
        Self {
            compressor: None,
            decompressor: None,
            candidates: VecDeque::new(),
            raw: Vec::new(),
            packed: Vec::new(),
        }
    }

    /// Remembers a request that could be compressed. Forgets those at the front that are gone.
    pub fn add(&mut self, nodes: &Nodes, index: u32, sequence: u64) {
        while let Some(&(index, sequence)) = self.candidates.front()
            && nodes.find(index, sequence).is_none()
        {
            self.candidates.pop_front();
        }
        self.candidates.push_back((index, sequence));
    }

    /// The next request to be tried.
    pub fn next(&mut self, nodes: &Nodes) -> Option<u32> {
        loop {
            let (index, sequence) = self.candidates.pop_front()?;
            if nodes.find(index, sequence).is_some_and(|node| !node.compressed) {
                return Some(index);
            }
        }
    }

    /// Compresses a request where it is, unless that would not free a block.
    pub fn compress(
        &mut self,
        nodes: &mut Nodes,
        blocks: &mut Blocks,
        index: u32,
    ) -> Option<usize> {
        let chain = nodes.at(index).chain;
        self.raw.clear();
        blocks.read(chain, &mut self.raw);
        let packed = self.pack()?;
        if footprint(packed) >= chain.footprint() {
            return None;
        }
        blocks.release(chain);
        let node = nodes.at_mut(index);
        node.chain = blocks.store(&[&self.packed]);
        node.compressed = true;
        Some(chain.bytes as usize)
    }

    fn pack(&mut self) -> Option<usize> {
        if self.compressor.is_none() {
            self.compressor = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.raw.len()));
        self.compressor.as_mut()?.compress_to_buffer(&self.raw, &mut self.packed).ok()
    }

    /// Appends the original of a compressed chain to `into`.
    pub fn decompress(&mut self, packed: &[u8], raw_bytes: usize, into: &mut Vec<u8>) {
        let decompressor = self.decompressor.get_or_insert_with(|| {
            zstd::bulk::Decompressor::new().expect("a context without options needs memory only")
        });
        self.raw.clear();
        self.raw.reserve(raw_bytes);
        decompressor
            .decompress_to_buffer(packed, &mut self.raw)
            .expect("this process compressed it and nobody has touched it since");
        into.extend_from_slice(&self.raw);
    }

    pub fn clear(&mut self) {
        *self = Self::new();
    }
}
