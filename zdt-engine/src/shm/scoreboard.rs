//! Figures that workers write and others read at any time: the scoreboard (for the supervisor) and
//! the load array (for the steering program).
//!
//! Must not know: what is done with the figures.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::memory::{MapError, SharedMemory};

/// The figures of one slot, on cache lines of its own. Written by one worker, with relaxed order:
/// they are figures, nothing follows from two of them together.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct SlotFigures {
    /// Open connections.
    pub connections: AtomicU64,
    /// Connections accepted from a listener, in all.
    pub accepted: AtomicU64,
    /// Connections handed to other workers, in all.
    pub moved_out: AtomicU64,
    /// Connections adopted from other workers, in all.
    pub adopted_in: AtomicU64,
    /// Connections closed, in all.
    pub closed: AtomicU64,
    /// CLOCK_MONOTONIC milliseconds when the worker's loop last came round.
    pub heartbeat_ms: AtomicU64,
    /// For later figures; zero.
    pub reserved: [AtomicU64; 2],
}

const _: () = assert!(size_of::<SlotFigures>() == 64);

impl SlotFigures {
    /// Sets everything to zero, for a new worker in the slot.
    pub fn clear(&self) {
        for figure in [
            &self.connections,
            &self.accepted,
            &self.moved_out,
            &self.adopted_in,
            &self.closed,
            &self.heartbeat_ms,
        ] {
            figure.store(0, Ordering::Relaxed);
        }
    }
}

/// What the worker of a slot has counted since its start, on cache lines of its own. Kept here so that the
/// counts outlive a worker that is killed.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct SlotTotals {
    /// Connections closed because a limit was reached.
    pub rejected: AtomicU64,
    /// HTTP requests.
    pub requests: AtomicU64,
    /// WebSocket messages received.
    pub messages_received: AtomicU64,
    /// WebSocket messages sent.
    pub messages_sent: AtomicU64,
    /// Bytes received from clients.
    pub bytes_received: AtomicU64,
    /// Bytes sent to clients.
    pub bytes_sent: AtomicU64,
    /// Requests that a gateway has held.
    pub held: AtomicU64,
    /// Held requests that were sent.
    pub replayed: AtomicU64,
    /// Requests for which there was no room.
    pub not_held: AtomicU64,
    /// Held requests that were given up for newer ones.
    pub displaced: AtomicU64,
    /// Held requests whose time was over.
    pub expired: AtomicU64,
    /// Held requests whose client went away.
    pub abandoned: AtomicU64,
    /// How often a connection was not received from because all of them together held too much.
    pub squeezed: AtomicU64,
    /// Connections given up because nothing else helped.
    pub shed: AtomicU64,
    /// Held requests whose bodies have gone to the disk in part.
    pub spilled: AtomicU64,
    /// Held requests whose bodies found no room there.
    pub unspilled: AtomicU64,
}

const _: () = assert!(size_of::<SlotTotals>() == 128);

impl SlotTotals {
    /// Sets everything to zero, for a new worker in the slot.
    pub fn clear(&self) {
        let Self {
            rejected,
            requests,
            messages_received,
            messages_sent,
            bytes_received,
            bytes_sent,
            held,
            replayed,
            not_held,
            displaced,
            expired,
            abandoned,
            squeezed,
            shed,
            spilled,
            unspilled,
        } = self;
        let of_all =
            [rejected, requests, messages_received, messages_sent, bytes_received, bytes_sent];
        let of_gateways = [held, replayed, not_held, displaced, expired, abandoned];
        let of_memory = [squeezed, shed, spilled, unspilled];
        for total in of_all.into_iter().chain(of_gateways).chain(of_memory) {
            total.store(0, Ordering::Relaxed);
        }
    }
}

/// The figures of all slots, in a memfd that the supervisor makes and every worker maps. The totals of all
/// slots may follow them; who does not know of those maps them as slots that it has no use for.
#[derive(Debug)]
pub struct Scoreboard {
    memory: SharedMemory,
    slots: usize,
    has_totals: bool,
}

/// Slots come in this number, so that both parts begin at a page.
const SLOTS_A_PAGE: usize = 4096 / size_of::<SlotFigures>();

impl Scoreboard {
    /// Makes the memory for `slots` slots (at least one).
    ///
    /// # Errors
    /// When out of memory or descriptors.
    pub fn create(slots: usize) -> io::Result<OwnedFd> {
        SharedMemory::create("zdt-scoreboard", Self::bytes(slots))
    }

    /// Makes the memory for at least `slots` slots with totals.
    ///
    /// # Errors
    /// When out of memory or descriptors.
    pub fn create_with_totals(slots: usize) -> io::Result<OwnedFd> {
        let slots = slots.max(1).next_multiple_of(SLOTS_A_PAGE);
        SharedMemory::create("zdt-scoreboard", slots * Self::BYTES_WITH_TOTALS)
    }

    const BYTES_WITH_TOTALS: usize = size_of::<SlotFigures>() + size_of::<SlotTotals>();

    /// Maps what [`Scoreboard::create_with_totals`] has made.
    ///
    /// # Errors
    /// If it is not sealed, or of a size that it never has.
    pub fn map_with_totals(file: BorrowedFd<'_>) -> Result<Self, MapError> {
        let bytes = nix::sys::stat::fstat(file)?.st_size as u64;
        let unit = (SLOTS_A_PAGE * Self::BYTES_WITH_TOTALS) as u64;
        if bytes == 0 || bytes > 16 << 20 || !bytes.is_multiple_of(unit) {
            return Err(MapError::WrongSize { expected: unit, actual: bytes });
        }
        let memory = SharedMemory::map(file, bytes as usize)?;
        let slots = bytes as usize / Self::BYTES_WITH_TOTALS;
        Ok(Self { memory, slots, has_totals: true })
    }

    fn bytes(slots: usize) -> usize {
        (slots.max(1) * size_of::<SlotFigures>()).next_multiple_of(4096)
    }

    /// Maps it.
    ///
    /// # Errors
    /// If it is not sealed, or not of the size for `slots`.
    pub fn map(file: BorrowedFd<'_>, slots: usize) -> Result<Self, MapError> {
        let memory = SharedMemory::map(file, Self::bytes(slots))?;
        Ok(Self { memory, slots, has_totals: false })
    }

    /// Maps it with as many slots as it has (a worker does not know how many the supervisor made).
    ///
    /// # Errors
    /// If it is not sealed, empty or larger than 16 MiB.
    pub fn map_all(file: BorrowedFd<'_>) -> Result<Self, MapError> {
        let bytes = nix::sys::stat::fstat(file)?.st_size as u64;
        if bytes == 0 || bytes > 16 << 20 || !bytes.is_multiple_of(4096) {
            return Err(MapError::WrongSize { expected: 4096, actual: bytes });
        }
        Self::map(file, bytes as usize / size_of::<SlotFigures>())
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The figures of one slot, if there is such a slot.
    pub fn slot(&self, slot: usize) -> Option<&SlotFigures> {
        if slot >= self.slots {
            return None;
        }
        let offset = slot * size_of::<SlotFigures>();
        // SAFETY: `at` has checked bounds and alignment; the mapping lives as long as `self`; all
        // fields are atomics, which may change behind a shared reference, and every bit pattern is
        // a valid one.
        Some(unsafe { self.memory.at::<SlotFigures>(offset, 1).as_ref() })
    }

    /// The totals of one slot, if there is such a slot and it has any.
    pub fn totals(&self, slot: usize) -> Option<&SlotTotals> {
        if slot >= self.slots || !self.has_totals {
            return None;
        }
        let offset = self.slots * size_of::<SlotFigures>() + slot * size_of::<SlotTotals>();
        // SAFETY: `at` has checked bounds and alignment; the mapping lives as long as `self`; all
        // fields are atomics, which may change behind a shared reference, and every bit pattern is
        // a valid one.
        Some(unsafe { self.memory.at::<SlotTotals>(offset, 1).as_ref() })
    }
}

/// The steering program's load array: one u32 a slot, 8 bytes apart, as the kernel lays out an
/// array map that can be mapped (BPF_F_MMAPABLE).
#[derive(Debug)]
pub struct LoadMap {
    mapping: MmapRaw,
    slots: usize,
}

const LOAD_STRIDE: usize = 8;

impl LoadMap {
    /// Maps the array of `slots` elements. The descriptor must be that of a BPF map (or a sealed
    /// memfd): a file that shrinks under its mapping ends the process (SIGBUS).
    ///
    /// # Errors
    /// If the map has fewer elements or cannot be mapped.
    pub fn map(map: BorrowedFd<'_>, slots: usize) -> io::Result<Self> {
        let bytes = (slots.max(1) * LOAD_STRIDE).next_multiple_of(page_bytes());
        let mapping = MmapOptions::new().len(bytes).map_raw(&map)?;
        Ok(Self { mapping, slots })
    }

    fn element(&self, slot: usize) -> Option<&AtomicU32> {
        if slot >= self.slots {
            return None;
        }
        let address = NonNull::new(self.mapping.as_mut_ptr())?;
        // SAFETY: the slot is below the number for which the mapping was made, the mapping is
        // page-aligned and elements 8 bytes apart, and it lives as long as `self`. A BPF map cannot
        // shrink.
        Some(unsafe { address.add(slot * LOAD_STRIDE).cast::<AtomicU32>().as_ref() })
    }

    /// Tells the steering program the load of a slot; no effect if there is no such slot.
    pub fn store(&self, slot: usize, load: u32) {
        if let Some(element) = self.element(slot) {
            element.store(load, Ordering::Relaxed);
        }
    }

    /// The load of a slot.
    pub fn load(&self, slot: usize) -> Option<u32> {
        self.element(slot).map(|element| element.load(Ordering::Relaxed))
    }
}

fn page_bytes() -> usize {
    // SAFETY: sysconf takes an integer and touches no memory of ours.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd, FromRawFd};

    use super::*;

    #[test]
    fn figures_are_shared() {
        let file = Scoreboard::create(100).unwrap();
        let worker = Scoreboard::map_all(file.as_fd()).unwrap();
        let supervisor = Scoreboard::map(file.as_fd(), 100).unwrap();
        assert!(worker.slots() >= 100);
        worker.slot(99).unwrap().accepted.store(7, Ordering::Relaxed);
        assert_eq!(supervisor.slot(99).unwrap().accepted.load(Ordering::Relaxed), 7);
        assert_eq!(supervisor.slot(98).unwrap().accepted.load(Ordering::Relaxed), 0);
        worker.slot(99).unwrap().clear();
        assert_eq!(supervisor.slot(99).unwrap().accepted.load(Ordering::Relaxed), 0);
        assert!(supervisor.slot(100).is_none());
        assert!(Scoreboard::map(file.as_fd(), 1000).is_err());
        let other = SharedMemory::create("test", 100).unwrap();
        assert!(Scoreboard::map_all(other.as_fd()).is_err());
    }

    #[test]
    fn totals_lie_behind_the_figures() {
        let file = Scoreboard::create_with_totals(100).unwrap();
        let worker = Scoreboard::map_with_totals(file.as_fd()).unwrap();
        let supervisor = Scoreboard::map_with_totals(file.as_fd()).unwrap();
        assert_eq!(worker.slots(), 128);
        for slot in 0..128 {
            worker.slot(slot).unwrap().accepted.store(1, Ordering::Relaxed);
            worker.totals(slot).unwrap().requests.store(slot as u64, Ordering::Relaxed);
        }
        assert_eq!(supervisor.totals(127).unwrap().requests.load(Ordering::Relaxed), 127);
        supervisor.totals(127).unwrap().clear();
        assert_eq!(worker.totals(127).unwrap().requests.load(Ordering::Relaxed), 0);
        assert_eq!(worker.totals(126).unwrap().requests.load(Ordering::Relaxed), 126);
        assert!(worker.totals(128).is_none());
        // A build without totals finds its figures at the same place.
        let older = Scoreboard::map_all(file.as_fd()).unwrap();
        assert_eq!(older.slot(127).unwrap().accepted.load(Ordering::Relaxed), 1);
        assert!(older.totals(0).is_none());
        let without = Scoreboard::create(1).unwrap();
        assert!(Scoreboard::map_with_totals(without.as_fd()).is_err());
    }

    #[test]
    fn loads_are_eight_bytes_apart() {
        // The kernel's own layout, where maps can be made (root); the same file layout otherwise.
        let file = bpf_array(600).unwrap_or_else(|| SharedMemory::create("test", 8192).unwrap());
        let writer = LoadMap::map(file.as_fd(), 600).unwrap();
        let reader = LoadMap::map(file.as_fd(), 600).unwrap();
        for slot in 0..600 {
            writer.store(slot, slot as u32 + 1);
        }
        writer.store(600, 9);
        assert!((0..600).all(|slot| reader.load(slot) == Some(slot as u32 + 1)));
        assert_eq!(reader.load(600), None);
        if let Some(value) = bpf_lookup(&file, 599) {
            assert_eq!(value, 600, "the program sees what was stored");
        }
    }

    /// `BPF_MAP_CREATE` of a mappable array of u32; `None` without the privilege.
    fn bpf_array(entries: u32) -> Option<OwnedFd> {
        let attributes: [u32; 32] = {
            let mut attributes = [0; 32];
            // map_type BPF_MAP_TYPE_ARRAY, key_size, value_size, max_entries, BPF_F_MMAPABLE.
            attributes[..5].copy_from_slice(&[2, 4, 4, entries, 1 << 10]);
            attributes
        };
        // SAFETY: command 0 reads the attributes, of which it is given the length.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, 0, attributes.as_ptr(), size_of_val(&attributes))
        };
        // SAFETY: the kernel has just opened this descriptor for us alone.
        (result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(result as i32) })
    }

    /// `BPF_MAP_LOOKUP_ELEM`; `None` where the descriptor is no map.
    fn bpf_lookup(map: &OwnedFd, key: u32) -> Option<u32> {
        let mut value = 0u32;
        let attributes =
            [map.as_raw_fd() as u64, &raw const key as u64, &raw mut value as u64, 0u64];
        // SAFETY: command 1 reads the attributes and the key, and writes 4 bytes (the value size of
        // the map made above) to `value`.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, 1, attributes.as_ptr(), size_of_val(&attributes))
        };
        (result == 0).then_some(value)
    }
}
