//! The memory of one channel between a blue and a green worker: a ring and an ownership table for
//! each direction.
//!
//! Must not know: what travels, who wakes whom.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::memory::{MapError, SharedMemory};
use super::ownership::{MappedWords, Table};
use super::ring::{Consumer, Indices, Mapped, Producer};

/// Bytes of each ring.
pub const RING_BYTES: usize = 1 << 20;

/// Words of each ownership table.
pub const TABLE_WORDS: usize = 1024;

const MAGIC: u64 = u64::from_le_bytes(*b"zdtchan\n");
const VERSION: u32 = 1;
const PAGE: usize = 4096;

/// At the start of the memory, written by whoever makes it. A build with another layout refuses it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
struct Header {
    magic: u64,
    version: u32,
    header_bytes: u32,
    ring_bytes: u64,
    table_words: u64,
    total_bytes: u64,
}

const HEADER: Header = Header {
    magic: MAGIC,
    version: VERSION,
    header_bytes: size_of::<Header>() as u32,
    ring_bytes: RING_BYTES as u64,
    table_words: TABLE_WORDS as u64,
    total_bytes: TOTAL_BYTES as u64,
};

// First blue's (blue produces, green consumes), then green's.
const INDICES: [usize; 2] = [PAGE, PAGE + size_of::<Indices>()];
const TABLES: [usize; 2] = [2 * PAGE, 2 * PAGE + TABLE_WORDS * 8];
const DATA: [usize; 2] = [TABLES[1] + TABLE_WORDS * 8, TABLES[1] + TABLE_WORDS * 8 + RING_BYTES];
const TOTAL_BYTES: usize = DATA[1] + RING_BYTES;

const _: () = {
    assert!(size_of::<Header>() == 40 && size_of::<Header>() <= PAGE);
    assert!(INDICES[1] + size_of::<Indices>() <= TABLES[0]);
    assert!(TABLES[0].is_multiple_of(PAGE) && TABLES[1].is_multiple_of(PAGE));
    assert!(DATA[0].is_multiple_of(PAGE) && DATA[1].is_multiple_of(PAGE));
    assert!(TOTAL_BYTES.is_multiple_of(PAGE));
    assert!(TOTAL_BYTES == 2 * PAGE + 16 * TABLE_WORDS + 2 * RING_BYTES);
};

/// A channel's memory, mapped.
pub struct ChannelMemory {
    memory: Arc<SharedMemory>,
}

/// What one end has of its channel. Dropping all of it unmaps the memory.
pub struct ChannelEnd {
    /// Writes the records that this end sends.
    pub producer: Producer,
    /// Reads the records that the other end sends.
    pub consumer: Consumer,
    /// Ownership of what this end offers.
    pub outgoing: Table,
    /// Ownership of what the other end offers.
    pub incoming: Table,
}

impl ChannelMemory {
    /// Makes the memory of a new channel; both ends get a duplicate of the descriptor.
    ///
    /// # Errors
    /// When out of memory or descriptors.
    pub fn create() -> io::Result<OwnedFd> {
        let file = SharedMemory::create("zdt-channel", TOTAL_BYTES)?;
        let written = nix::sys::uio::pwrite(&file, bytemuck::bytes_of(&HEADER), 0)?;
        if written != size_of::<Header>() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(file)
    }

    /// Maps it; the descriptor can be closed afterwards.
    ///
    /// # Errors
    /// If it is not the memory of a channel of this layout.
    pub fn map(file: BorrowedFd<'_>) -> Result<Self, MapError> {
        let memory = SharedMemory::map(file, TOTAL_BYTES)?;
        // SAFETY: `at` has checked bounds and alignment; all bit patterns are a `Header`. Volatile:
        // the other end may change it, so it is read exactly once.
        let header = unsafe { memory.at::<Header>(0, 1).as_ptr().read_volatile() };
        if header.magic != MAGIC {
            return Err(MapError::WrongLayout("it is not a channel"));
        }
        if header != HEADER {
            return Err(MapError::WrongLayout("another version of the channel"));
        }
        Ok(Self { memory: Arc::new(memory) })
    }

    /// This process' end. Each end must live in exactly one process, once: it starts with empty
    /// rings.
    pub fn split(self, is_blue: bool) -> ChannelEnd {
        let ring = |index| Mapped::new(&self.memory, INDICES[index], DATA[index], RING_BYTES);
        let table = |index| Table::new(MappedWords::new(&self.memory, TABLES[index], TABLE_WORDS));
        let (mine, theirs) = if is_blue { (0, 1) } else { (1, 0) };
        ChannelEnd {
            producer: Producer::new(ring(mine)),
            consumer: Consumer::new(ring(theirs)),
            outgoing: table(mine),
            incoming: table(theirs),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::shm::ownership::State;

    #[test]
    fn both_ends_meet() {
        let file = ChannelMemory::create().unwrap();
        let mut blue = ChannelMemory::map(file.as_fd()).unwrap().split(true);
        let mut green = ChannelMemory::map(file.as_fd()).unwrap().split(false);
        drop(file);
        let mut bytes = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            let ends = [&mut blue, &mut green];
            let [from, to] = ends.get_disjoint_mut_pair(from, to);
            assert!(from.outgoing.offer(5));
            from.producer.push(&[b"re", b"cord"], 3, 5).unwrap();
            assert!(to.consumer.next(&mut bytes).unwrap().is_none());
            assert!(from.producer.publish());
            let head = to.consumer.next(&mut bytes).unwrap().unwrap();
            assert_eq!((head.kind, head.sequence, &bytes[..]), (3, 5, &b"record"[..]));
            assert_eq!(to.incoming.state(5), Some(State::Offered));
            assert!(to.incoming.adopt(5) && to.incoming.start(5));
            assert_eq!(from.outgoing.state(5), Some(State::Started));
            assert_eq!(from.incoming.state(5).is_some(), to.outgoing.state(5).is_some());
        }
    }

    trait Pair<'a> {
        fn get_disjoint_mut_pair(self, first: usize, second: usize) -> [&'a mut ChannelEnd; 2];
    }

    impl<'a> Pair<'a> for [&'a mut ChannelEnd; 2] {
        fn get_disjoint_mut_pair(self, first: usize, _second: usize) -> [&'a mut ChannelEnd; 2] {
            let [a, b] = self;
            if first == 0 { [a, b] } else { [b, a] }
        }
    }

    #[test]
    fn other_layouts_are_refused() {
        let file = SharedMemory::create("test", TOTAL_BYTES).unwrap();
        let refused = ChannelMemory::map(file.as_fd()).err().unwrap();
        assert!(matches!(refused, MapError::WrongLayout("it is not a channel")));
        for field in 0..size_of::<Header>() {
            let file = ChannelMemory::create().unwrap();
            let mut header = bytemuck::bytes_of(&HEADER).to_vec();
            header[field] ^= 1;
            nix::sys::uio::pwrite(&file, &header, 0).unwrap();
            let refused = ChannelMemory::map(file.as_fd()).err().unwrap();
            assert!(matches!(refused, MapError::WrongLayout(_)), "{field}");
        }
        let file = SharedMemory::create("test", TOTAL_BYTES / 2).unwrap();
        let refused = ChannelMemory::map(file.as_fd()).err().unwrap();
        assert!(matches!(refused, MapError::WrongSize { .. }));
    }
}
