//! Who owns an offered connection: one 64-bit word each, {sequence, state}, changed only by
//! compare-and-swap.
//!
//! The arrows are those of the handoff protocol, and there are no others:
//!
//! ```text
//!            offer            adopt             start
//!   FREE  ─────────▶ OFFERED ─────▶ ADOPTED ──────────▶ STARTED ──┐
//!    ▲                │    └─────────┐ └──────────────┐           │ release
//!    │                │ refuse       │ reclaim_offered│ reclaim_adopted_from_dead
//!    │                ▼              ▼                ▼           │
//!    └──────────── REFUSED        RECLAIMED ◀─────────┘           │
//!    └──────────────┴──────────────┴──────────────────────────────┘
//! ```
//!
//! Whoever loses a swap does nothing more with the connection than close its descriptor. The
//! sequence in the word makes a late swap for an earlier connection in the same place fail.
//!
//! Must not know: connections, processes, messages.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::memory::SharedMemory;

#[cfg(test)]
mod tests;

/// Sequences have 56 bits; they start at 1 and are never used twice.
pub const MAX_SEQUENCE: u64 = (1 << 56) - 1;

/// The state of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Nothing is offered here.
    Free = 0,
    /// Blue offers; either may take it.
    Offered = 1,
    /// Green has validated and restored it, and may start.
    Adopted = 2,
    /// Green does I/O; blue lets go.
    Started = 3,
    /// Green does not want it; blue keeps it.
    Refused = 4,
    /// Blue took it back.
    Reclaimed = 5,
}

impl State {
    fn from_bits(bits: u64) -> Option<Self> {
        Some(match bits {
            0 => Self::Free,
            1 => Self::Offered,
            2 => Self::Adopted,
            3 => Self::Started,
            4 => Self::Refused,
            5 => Self::Reclaimed,
            _ => return None,
        })
    }
}

/// The words of a table: shared memory, or a model checker's cells.
pub trait Words {
    /// How many there are.
    fn len(&self) -> usize;
    /// True if there are none, which no table wants.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads a word (acquire).
    fn load(&self, index: usize) -> u64;
    /// Swaps a word if it is still `old` (acquire and release); true if it was.
    fn swap_if(&self, index: usize, old: u64, new: u64) -> bool;
}

/// Words in shared memory.
pub struct MappedWords {
    words: NonNull<AtomicU64>,
    len: usize,
    /// Keeps them mapped.
    _memory: Arc<SharedMemory>,
}

// SAFETY: the pointer leads into a mapping that lives as long as `_memory` and belongs to no thread;
// the words behind it are only accessed as atomics.
unsafe impl Send for MappedWords {}

impl MappedWords {
    /// # Panics
    /// If the words are not within the memory and aligned.
    pub(super) fn new(memory: &Arc<SharedMemory>, offset: usize, len: usize) -> Self {
        Self { words: memory.at(offset, len), len, _memory: Arc::clone(memory) }
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `SharedMemory::at` has checked bounds and alignment for `len` words, the mapping
        // lives as long as `self`, and atomics may change behind a shared reference.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl Words for MappedWords {
    fn len(&self) -> usize {
        self.len
    }

    fn load(&self, index: usize) -> u64 {
        self.words()[index].load(Ordering::Acquire)
    }

    fn swap_if(&self, index: usize, old: u64, new: u64) -> bool {
        self.words()[index].compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A table of ownership words; the place of a sequence is its remainder. Each method is one arrow,
/// at most one swap, and tells whether this side won.
pub struct Table<W: Words = MappedWords> {
    words: W,
}

fn word(sequence: u64, state: State) -> u64 {
    sequence << 8 | state as u64
}

impl<W: Words> Table<W> {
    /// A table over zeroed words.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(words: W) -> Self {
        assert!(!words.is_empty());
        Self { words }
    }

    /// Offers that can be open at once, if their sequences follow each other.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    fn place(&self, sequence: u64) -> usize {
        (sequence % self.words.len() as u64) as usize
    }

    fn go(&self, sequence: u64, from: State, to: State) -> bool {
        sequence <= MAX_SEQUENCE
            && self.words.swap_if(self.place(sequence), word(sequence, from), word(sequence, to))
    }

    /// Blue: FREE → OFFERED. False if the place is taken, was used for this sequence or a later one,
    /// or the sequence is 0 or beyond [`MAX_SEQUENCE`].
    pub fn offer(&self, sequence: u64) -> bool {
        if sequence > MAX_SEQUENCE {
            return false;
        }
        let place = self.place(sequence);
        let before = self.words.load(place);
        // A zeroed word has sequence 0.
        before >> 8 < sequence
            && State::from_bits(before & 0xff) == Some(State::Free)
            && self.words.swap_if(place, before, word(sequence, State::Offered))
    }

    /// Green, after it validated and restored: OFFERED → ADOPTED.
    pub fn adopt(&self, sequence: u64) -> bool {
        self.go(sequence, State::Offered, State::Adopted)
    }

    /// Green, before its first operation that names the socket: ADOPTED → STARTED.
    pub fn start(&self, sequence: u64) -> bool {
        self.go(sequence, State::Adopted, State::Started)
    }

    /// Green, after it closed its descriptor: OFFERED → REFUSED.
    pub fn refuse(&self, sequence: u64) -> bool {
        self.go(sequence, State::Offered, State::Refused)
    }

    /// Blue, when the answer is overdue, at a rollback, or when green is dead: OFFERED → RECLAIMED.
    pub fn reclaim_offered(&self, sequence: u64) -> bool {
        self.go(sequence, State::Offered, State::Reclaimed)
    }

    /// Blue, only once green's pidfd has told its death: ADOPTED → RECLAIMED.
    pub fn reclaim_adopted_from_dead(&self, sequence: u64) -> bool {
        self.go(sequence, State::Adopted, State::Reclaimed)
    }

    /// Blue, when it is done with the offer: STARTED, REFUSED or RECLAIMED → FREE.
    pub fn release(&self, sequence: u64) -> bool {
        [State::Started, State::Refused, State::Reclaimed]
            .into_iter()
            .any(|from| self.go(sequence, from, State::Free))
    }

    /// The state of this very offer; `None` if the place belongs to another one, or the peer wrote
    /// a state that does not exist.
    pub fn state(&self, sequence: u64) -> Option<State> {
        let word = self.words.load(self.place(sequence));
        if word >> 8 != sequence {
            return None;
        }
        State::from_bits(word & 0xff)
    }
}
