//! Memory for held requests: blocks of one size, chained; nothing is allocated per request.
//!
//! Requests leave in another order than they came, and some leave early. With blocks of one size
//! there is nothing to fragment and nothing to move: taking and giving back one is a step of the
//! free list. A request wastes less than a block.
//!
//! Must not know: what the bytes are.

/// Bytes of a block. Small enough to waste little, large enough that a typical request has few.
pub const BLOCK_BYTES: usize = 128;

/// Blocks that are allocated at once (256 KiB).
const SEGMENT_BLOCKS: usize = 2_048;

const NONE: u32 = u32::MAX;

/// A chain of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    first: u32,
    /// Bytes in it.
    pub bytes: u32,
}

impl Chain {
    /// Memory that it takes, with its share of the links.
    pub fn footprint(self) -> usize {
        footprint(self.bytes as usize)
    }
}

/// Memory that so many bytes take.
pub fn footprint(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES) * (BLOCK_BYTES + size_of::<u32>())
}

/// All blocks of one queue.
#[derive(Debug)]
pub struct Blocks {
    segments: Vec<Box<[u8]>>,
    /// For each block the one behind it, in its chain or in the free list.
    links: Vec<u32>,
    free: u32,
    used: usize,
}

impl Blocks {
    /// No memory yet.
    pub fn new() -> Self {
        Self { segments: Vec::new(), links: Vec::new(), free: NONE, used: 0 }
    }

    /// Blocks in chains.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Memory that is allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.segments.len() * SEGMENT_BLOCKS * BLOCK_BYTES + self.links.capacity() * 4
    }

    /// Copies the parts, one behind the other, into a new chain.
    pub fn store(&mut self, parts: &[&[u8]]) -> Chain {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        debug_assert!(u32::try_from(bytes).is_ok(), "bounded by the caller");
        let mut chain = Chain { first: NONE, bytes: bytes as u32 };
        let mut last = NONE;
        let mut filled = BLOCK_BYTES;
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                if filled == BLOCK_BYTES {
                    let block = self.take();
                    match last {
                        NONE => chain.first = block,
                        last => self.links[last as usize] = block,
                    }
                    last = block;
                    filled = 0;
                }
                let count = rest.len().min(BLOCK_BYTES - filled);
                self.block_mut(last)[filled..filled + count].copy_from_slice(&rest[..count]);
                filled += count;
                rest = &rest[count..];
            }
        }
        if last != NONE {
            self.links[last as usize] = NONE;
        }
        chain
    }

    /// Appends the chain's bytes to `into`.
    pub fn read(&self, chain: Chain, into: &mut Vec<u8>) {
        into.reserve(chain.bytes as usize);
        let mut left = chain.bytes as usize;
        let mut block = chain.first;
        while left > 0 {
            let count = left.min(BLOCK_BYTES);
            into.extend_from_slice(&self.block(block)[..count]);
            left -= count;
            block = self.links[block as usize];
        }
    }

    /// Gives the chain's blocks back.
    pub fn release(&mut self, chain: Chain) {
        let mut left = (chain.bytes as usize).div_ceil(BLOCK_BYTES);
        self.used -= left;
        let mut block = chain.first;
        while left > 0 {
            left -= 1;
            let next = self.links[block as usize];
            if left == 0 {
                self.links[block as usize] = self.free;
                self.free = chain.first;
            }
            block = next;
        }
    }

    fn take(&mut self) -> u32 {
        if self.free == NONE {
            self.grow();
        }
        let block = self.free;
        self.free = self.links[block as usize];
        self.used += 1;
        block
    }

    fn grow(&mut self) {
        let first = self.links.len() as u32;
        let end = first + SEGMENT_BLOCKS as u32;
        self.segments.push(vec![0; SEGMENT_BLOCKS * BLOCK_BYTES].into_boxed_slice());
        self.links.extend((first + 1..end).chain([NONE]));
        self.free = first;
    }

    fn block(&self, block: u32) -> &[u8; BLOCK_BYTES] {
        let (segment, index) = (block as usize / SEGMENT_BLOCKS, block as usize % SEGMENT_BLOCKS);
        &self.segments[segment].as_chunks().0[index]
    }

    fn block_mut(&mut self, block: u32) -> &mut [u8; BLOCK_BYTES] {
        let (segment, index) = (block as usize / SEGMENT_BLOCKS, block as usize % SEGMENT_BLOCKS);
        &mut self.segments[segment].as_chunks_mut().0[index]
    }
}
