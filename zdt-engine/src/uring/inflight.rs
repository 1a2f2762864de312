//! Send buffers that the kernel may be reading.
//!
//! Must not know: sockets, the kernel's queues.

use super::SendBuffer;

/// Bits of an id: the low 32 are the place, the next 24 count its uses, so that the id of a send
/// that has ended does not name a later one.
pub(super) const ID_BITS: u32 = 56;
const GENERATION_MASK: u32 = (1 << 24) - 1;
const NONE: u32 = u32::MAX;

struct Entry {
    token: u64,
    /// `None` while the place is free.
    buffer: Option<SendBuffer>,
    generation: u32,
    next_free: u32,
}

/// The slab of sends in flight.
pub(super) struct InFlight {
    entries: Vec<Entry>,
    free: u32,
}

impl InFlight {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), free: NONE }
    }

    /// Keeps the buffer until [`InFlight::remove`]; the buffer's bytes do not move meanwhile.
    #[inline]
    pub(super) fn insert(&mut self, token: u64, buffer: SendBuffer) -> u64 {
        let index = self.free;
        if index == NONE {
            return self.insert_new(token, buffer);
        }
        let entry = &mut self.entries[index as usize];
        self.free = entry.next_free;
        entry.token = token;
        entry.buffer = Some(buffer);
        u64::from(entry.generation) << 32 | u64::from(index)
    }

    #[cold]
    fn insert_new(&mut self, token: u64, buffer: SendBuffer) -> u64 {
        let index = self.entries.len() as u32;
        assert!(index != NONE, "fewer than 4 billion sends are in flight");
        self.entries.push(Entry { token, buffer: Some(buffer), generation: 0, next_free: NONE });
        u64::from(index)
    }

    /// Gives token and buffer back. `id` must be that of a send in flight.
    #[inline]
    pub(super) fn remove(&mut self, id: u64) -> (u64, SendBuffer) {
        let index = id as u32;
        let entry = &mut self.entries[index as usize];
        debug_assert_eq!(u64::from(entry.generation), id >> 32);
        let buffer = entry.buffer.take().expect("a completion of a send that is in flight");
        entry.generation = (entry.generation + 1) & GENERATION_MASK;
        entry.next_free = self.free;
        self.free = index;
        (entry.token, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_not_used_twice_in_a_row() {
        let mut sends = InFlight::new();
        let first = sends.insert(7, SendBuffer::Owned(vec![1]));
        let second = sends.insert(8, SendBuffer::Owned(vec![2]));
        assert_ne!(first, second);
        assert_eq!(sends.remove(first).0, 7);
        let third = sends.insert(9, SendBuffer::Owned(vec![3]));
        assert_eq!(third as u32, first as u32, "the place is used again");
        assert_ne!(third, first, "the id is not");
        assert!(third < 1 << ID_BITS);
        let (token, buffer) = sends.remove(second);
        assert_eq!((token, buffer.as_slice()), (8, &[2u8][..]));
    }
}
