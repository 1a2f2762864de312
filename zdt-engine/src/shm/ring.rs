//! A single-producer single-consumer ring of byte records between two processes.
//!
//! Indices count bytes and never wrap; places are taken modulo the capacity. A record is a header of
//! 16 bytes (length, kind, sequence) and its bytes, padded to 16, never split over the end: a
//! padding record fills the rest. Each side keeps its own index to itself and publishes it in
//! batches; what the other side published is cached, and believed only within what is possible.
//! There are no wake-ups in here: they are the caller's.
//!
//! Must not know: what the records say.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::SharedMemory;

#[cfg(test)]
mod tests;

/// Records start at multiples of this, and their headers are this long.
const GRAIN: u64 = 16;

/// The kind of the record that fills the rest before the end.
const PADDING: u32 = u32::MAX;

/// The words and bytes that a ring lives in: shared memory, or a model checker's cells.
///
/// Offsets are below the capacity, and nothing reaches beyond it; implementations check that.
pub trait Memory {
    /// Bytes of data: a power of two.
    fn capacity(&self) -> u64;
    /// Reads the consumer's index (acquire).
    fn load_head(&self) -> u64;
    /// Writes the consumer's index (release).
    fn store_head(&self, head: u64);
    /// Reads the producer's index (acquire).
    fn load_tail(&self) -> u64;
    /// Writes the producer's index (release).
    fn store_tail(&self, tail: u64);
    /// Writes a header.
    fn write_header(&self, offset: u64, header: [u64; 2]);
    /// Reads a header, once.
    fn read_header(&self, offset: u64) -> [u64; 2];
    /// Copies bytes in.
    fn write(&self, offset: u64, bytes: &[u8]);
    /// Replaces `into` by a copy of `len` bytes.
    fn read(&self, offset: u64, len: usize, into: &mut Vec<u8>);
}

/// The ring's indices in shared memory, each on cache lines of its own (128 bytes, since
/// neighbouring lines are fetched in pairs).
#[repr(C, align(128))]
pub(super) struct Indices {
    tail: AtomicU64,
    tail_rest: [u64; 15],
    head: AtomicU64,
    head_rest: [u64; 15],
}

const _: () = assert!(size_of::<Indices>() == 256 && align_of::<Indices>() == 128);

/// A ring's place in shared memory.
pub struct Mapped {
    indices: NonNull<Indices>,
    data: NonNull<u8>,
    capacity: u64,
    /// Keeps both mapped.
    _memory: Arc<SharedMemory>,
}

// SAFETY: the pointers lead into a mapping that lives as long as `_memory` and belongs to no thread;
// everything behind them is accessed by atomics or, as bytes, by raw copies.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Indices at one offset, data at another.
    ///
    /// # Panics
    /// If they are not within the memory and aligned, or the capacity is no power of two, below 64
    /// or beyond 1 GiB.
    pub(super) fn new(memory: &Arc<SharedMemory>, indices: usize, data: usize, len: usize) -> Self {
        assert!(len.is_power_of_two() && (64..=1 << 30).contains(&len));
        let data_start = memory.at::<[u64; 2]>(data, len / 16);
        Self {
            indices: memory.at(indices, 1),
            data: data_start.cast(),
            capacity: len as u64,
            _memory: Arc::clone(memory),
        }
    }

    #[inline]
    fn indices(&self) -> &Indices {
        // SAFETY: `SharedMemory::at` has checked bounds and alignment, the mapping lives as long as
        // `self`, and all fields that are ever accessed are atomics.
        unsafe { self.indices.as_ref() }
    }

    /// The address of `offset`, with room for `len` bytes.
    #[inline]
    fn place(&self, offset: u64, len: usize) -> *mut u8 {
        assert!(offset <= self.capacity && len as u64 <= self.capacity - offset);
        // SAFETY: the offset is within the data part (checked above), which is mapped as long as
        // `self` lives.
        unsafe { self.data.as_ptr().add(offset as usize) }
    }
}

impl Memory for Mapped {
    #[inline]
    fn capacity(&self) -> u64 {
        self.capacity
    }

    #[inline]
    fn load_head(&self) -> u64 {
        self.indices().head.load(Ordering::Acquire)
    }

    #[inline]
    fn store_head(&self, head: u64) {
        self.indices().head.store(head, Ordering::Release);
    }

    #[inline]
    fn load_tail(&self) -> u64 {
        self.indices().tail.load(Ordering::Acquire)
    }

    #[inline]
    fn store_tail(&self, tail: u64) {
        self.indices().tail.store(tail, Ordering::Release);
    }

    #[inline]
    fn write_header(&self, offset: u64, header: [u64; 2]) {
        // SAFETY: `place` has checked the bounds; the copy is unaligned-safe and makes no reference.
        unsafe { self.place(offset, 16).cast::<[u64; 2]>().write_unaligned(header) }
    }

    #[inline]
    fn read_header(&self, offset: u64) -> [u64; 2] {
        let place = self.place(offset, 16).cast::<u64>();
        debug_assert!(place.is_aligned());
        // SAFETY: `place` has checked the bounds; offsets are multiples of 16 (the data part is
        // page-aligned). Volatile: the peer may change the words, so they are read exactly once.
        unsafe { [place.read_volatile(), place.add(1).read_volatile()] }
    }

    #[inline]
    fn write(&self, offset: u64, bytes: &[u8]) {
        let place = self.place(offset, bytes.len());
        // SAFETY: `place` has checked the bounds; `bytes` is private memory of this process, so the
        // two do not overlap, and no reference to shared memory is made.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) }
    }

    #[inline]
    fn read(&self, offset: u64, len: usize, into: &mut Vec<u8>) {
        let place = self.place(offset, len);
        into.clear();
        into.reserve(len);
        // SAFETY: `place` has checked the bounds; the vector has room for `len` bytes, all of which
        // are written before its length says so; the two do not overlap. The peer may write at the
        // same time: the copy then holds some mixture of bytes, which its reader must validate.
        unsafe {
            std::ptr::copy_nonoverlapping(place, into.as_mut_ptr(), len);
            into.set_len(len);
        }
    }
}

/// The peer has written what no correct peer writes. Nothing more can be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring in shared memory is corrupt: {0}")]
pub struct Corrupt(pub &'static str);

/// Why a record was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// There is no room until the consumer has read.
    #[error("the ring is full")]
    Full,
    /// Longer than [`Producer::max_record_bytes`]: it must travel in a memfd.
    #[error("the record is too large for the ring")]
    TooLarge,
    /// See [`Corrupt`].
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// What stands before a record's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// The producer's choice, except `u32::MAX`.
    pub kind: u32,
    /// The producer's choice.
    pub sequence: u64,
}

/// The writing end.
pub struct Producer<M: Memory = Mapped> {
    memory: M,
    tail: u64,
    published_tail: u64,
    cached_head: u64,
    corrupt: Option<Corrupt>,
}

/// The reading end.
pub struct Consumer<M: Memory = Mapped> {
    memory: M,
    head: u64,
    published_head: u64,
    cached_tail: u64,
    corrupt: Option<Corrupt>,
}

#[inline]
fn record_bytes(len: u64) -> u64 {
    GRAIN + len.next_multiple_of(GRAIN)
}

/// Most bytes of one record in a ring of this capacity: a quarter, header included.
#[inline]
fn max_record_bytes(capacity: u64) -> u64 {
    capacity / 4 - GRAIN
}

impl<M: Memory> Producer<M> {
    /// The writing end of a ring whose memory is all zeroes. There must be no other.
    pub fn new(memory: M) -> Self {
        Self { memory, tail: 0, published_tail: 0, cached_head: 0, corrupt: None }
    }

    /// Most bytes of one record.
    pub fn max_record_bytes(&self) -> usize {
        max_record_bytes(self.memory.capacity()) as usize
    }

    /// Bytes that are free by now, headers and paddings included.
    ///
    /// # Errors
    /// If the consumer's index is impossible.
    pub fn free_bytes(&mut self) -> Result<usize, Corrupt> {
        self.refresh_head()?;
        Ok(self.known_free() as usize)
    }

    #[inline]
    fn known_free(&self) -> u64 {
        self.memory.capacity() - self.tail.wrapping_sub(self.cached_head)
    }

    #[cold]
    fn refresh_head(&mut self) -> Result<(), Corrupt> {
        if let Some(corrupt) = self.corrupt {
            return Err(corrupt);
        }
        let head = self.memory.load_head();
        // It moves forward only, and not beyond what was published.
        let advanced = head.wrapping_sub(self.cached_head);
        if advanced > self.published_tail.wrapping_sub(self.cached_head) {
            let corrupt = Corrupt("the consumer's index is beyond the producer's");
            self.corrupt = Some(corrupt);
            return Err(corrupt);
        }
        self.cached_head = head;
        Ok(())
    }

    /// Tells whether a record of `len` bytes has room.
    ///
    /// # Errors
    /// Why not.
    #[inline]
    pub fn try_reserve(&mut self, len: usize) -> Result<(), PushError> {
        let len = len as u64;
        let capacity = self.memory.capacity();
        if len > max_record_bytes(capacity) {
            return Err(PushError::TooLarge);
        }
        let until_end = capacity - (self.tail & (capacity - 1));
        let record = record_bytes(len);
        let wanted = if until_end < record { until_end + record } else { record };
        if self.known_free() < wanted {
            self.refresh_head()?;
            if self.known_free() < wanted {
                return Err(PushError::Full);
            }
        }
        Ok(())
    }

    /// Writes a record: its bytes are the parts one after the other. The consumer sees it after
    /// [`Producer::publish`].
    ///
    /// # Errors
    /// Why there is no room; nothing was written.
    ///
    /// # Panics
    /// If `kind` is `u32::MAX`.
    #[inline]
    pub fn push(&mut self, parts: &[&[u8]], kind: u32, sequence: u64) -> Result<(), PushError> {
        assert!(kind != PADDING, "kind u32::MAX is taken");
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        self.try_reserve(len)?;
        let capacity = self.memory.capacity();
        let mut offset = self.tail & (capacity - 1);
        let record = record_bytes(len as u64);
        let until_end = capacity - offset;
        if until_end < record {
            self.memory.write_header(offset, [u64::from(PADDING) << 32 | until_end, 0]);
            self.tail = self.tail.wrapping_add(until_end);
            offset = 0;
        }
        self.memory.write_header(offset, [u64::from(kind) << 32 | len as u64, sequence]);
        let mut place = offset + GRAIN;
        for part in parts {
            self.memory.write(place, part);
            place += part.len() as u64;
        }
        self.tail = self.tail.wrapping_add(record);
        Ok(())
    }

    /// Lets the consumer see all records written so far; true if there was a new one.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let new = self.tail != self.published_tail;
        if new {
            self.memory.store_tail(self.tail);
            self.published_tail = self.tail;
        }
        new
    }

    /// True once the consumer has read, and said so, all that was published.
    ///
    /// # Errors
    /// If the consumer's index is impossible.
    pub fn is_drained(&mut self) -> Result<bool, Corrupt> {
        self.refresh_head()?;
        Ok(self.cached_head == self.published_tail)
    }
}

impl<M: Memory> Consumer<M> {
    /// The reading end of a ring whose memory is all zeroes. There must be no other.
    pub fn new(memory: M) -> Self {
        Self { memory, head: 0, published_head: 0, cached_tail: 0, corrupt: None }
    }

    /// Copies the next record out, replacing `bytes`; `None` if there is none yet. The room of what
    /// was read is given back in batches, at the latest when `None` is returned.
    ///
    /// # Errors
    /// If the producer broke the rules; then for ever.
    #[inline]
    pub fn next(&mut self, bytes: &mut Vec<u8>) -> Result<Option<RecordHead>, Corrupt> {
        loop {
            if self.head == self.cached_tail {
                self.publish();
                self.refresh_tail()?;
                if self.head == self.cached_tail {
                    return Ok(None);
                }
            }
            let capacity = self.memory.capacity();
            let offset = self.head & (capacity - 1);
            let until_end = capacity - offset;
            let available = self.cached_tail.wrapping_sub(self.head);
            let header = self.memory.read_header(offset);
            let (len, kind) = (header[0] & u64::from(u32::MAX), (header[0] >> 32) as u32);
            if kind == PADDING {
                // Never at the start, so that this loop ends.
                if len != until_end || len >= available || offset == 0 {
                    return Err(self.fail("a padding of an impossible length"));
                }
                self.head = self.head.wrapping_add(len);
                continue;
            }
            if len > max_record_bytes(capacity) || record_bytes(len) > available.min(until_end) {
                return Err(self.fail("a record of an impossible length"));
            }
            self.memory.read(offset + GRAIN, len as usize, bytes);
            self.head = self.head.wrapping_add(record_bytes(len));
            if self.head.wrapping_sub(self.published_head) >= capacity / 8 {
                self.publish();
            }
            return Ok(Some(RecordHead { kind, sequence: header[1] }));
        }
    }

    /// Gives the room of what was read back to the producer; true if there was any.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let new = self.head != self.published_head;
        if new {
            self.memory.store_head(self.head);
            self.published_head = self.head;
        }
        new
    }

    #[inline]
    fn refresh_tail(&mut self) -> Result<(), Corrupt> {
        if let Some(corrupt) = self.corrupt {
            return Err(corrupt);
        }
        let tail = self.memory.load_tail();
        let available = tail.wrapping_sub(self.head);
        if available > self.memory.capacity() || !available.is_multiple_of(GRAIN) {
            return Err(self.fail("the producer's index is impossible"));
        }
        self.cached_tail = tail;
        Ok(())
    }

    #[cold]
    fn fail(&mut self, what: &'static str) -> Corrupt {
        let corrupt = Corrupt(what);
        self.corrupt = Some(corrupt);
        // Whatever was seen of the rest is not to be read.
        self.cached_tail = self.head;
        corrupt
    }
}
