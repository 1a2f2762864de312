//! The memory that operations use: the ring of provided receive buffers, and what can be sent.
//!
//! Must not know: which operation uses a buffer, when the kernel is entered.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

/// One entry of the ring that tells the kernel about free buffers (`struct io_uring_buf`). The
/// `reserved` field of the first entry is the ring's tail.
#[repr(C)]
struct BufferRingEntry {
    address: u64,
    bytes: u32,
    id: u16,
    tail: AtomicU16,
}

const _: () = assert!(size_of::<BufferRingEntry>() == 16);
const _: () = assert!(std::mem::offset_of!(BufferRingEntry, tail) == 14);

/// Buffers start on different cache sets: with a power-of-two stride the first lines of all of them
/// would compete for the same few ways of every cache.
const STAGGER_BYTES: usize = 3 * 64;

/// An anonymous private mapping, touched in advance.
struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of
        // this program; `bytes` is not zero (both callers pass at least one entry).
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, bytes })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping that `new` made; the owner (the pool)
        // is gone, and it outlives every handle into the mapping.
        let result = unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0);
    }
}

/// All receive buffers of a ring, and the kernel's list of the free ones.
///
/// Invariant: every buffer id is in exactly one place: between head and tail of the kernel's list,
/// in a completion that was not yet read, or in one live [`RecvBuffer`].
pub(super) struct Pool {
    list: Mapping,
    data: Mapping,
    mask: u16,
    buffer_bytes: u32,
    stride: usize,
    /// The next place in the list; ahead of the tail that the kernel sees until `publish`.
    tail: Cell<u16>,
    published: Cell<u16>,
    lent: Cell<u16>,
}

impl Pool {
    /// Maps `count` buffers (a power of two up to 32,768) of `buffer_bytes` each and lists all as
    /// free.
    pub(super) fn new(count: u16, buffer_bytes: u32) -> io::Result<Rc<Self>> {
        if !count.is_power_of_two() || count > 1 << 15 || buffer_bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let stride = (buffer_bytes as usize).next_multiple_of(64) + STAGGER_BYTES;
        let pool = Self {
            list: Mapping::new(count as usize * size_of::<BufferRingEntry>())?,
            data: Mapping::new(count as usize * stride)?,
            mask: count - 1,
            buffer_bytes,
            stride,
            tail: Cell::new(0),
            published: Cell::new(0),
            lent: Cell::new(count),
        };
        for id in 0..count {
            pool.give_back(id);
        }
        pool.publish();
        Ok(Rc::new(pool))
    }

    /// Address and entries of the list, for the registration.
    pub(super) fn list(&self) -> (u64, u16) {
        (self.list.address.as_ptr() as u64, self.mask + 1)
    }

    fn entry(&self, index: u16) -> *mut BufferRingEntry {
        // SAFETY: the masked index is below the number of entries for which `list` was mapped.
        unsafe {
            self.list.address.as_ptr().cast::<BufferRingEntry>().add(usize::from(index & self.mask))
        }
    }

    fn address(&self, id: u16) -> NonNull<u8> {
        debug_assert!(id <= self.mask);
        // SAFETY: ids are below the number of buffers for which `data` was mapped: `give_back` and
        // `take` are called with ids of this pool only.
        unsafe { self.data.address.add(usize::from(id) * self.stride) }
    }

    /// Puts a buffer at the end of the list; the kernel sees it after the next `publish`.
    #[inline]
    fn give_back(&self, id: u16) {
        let tail = self.tail.get();
        let entry = self.entry(tail);
        // SAFETY: the place lies beyond the published tail and, since there are never more free
        // buffers than places, before the kernel's head plus the number of places: the kernel does
        // not read it. The fields are written one by one because the fourth of entry 0 is the tail.
        unsafe {
            (&raw mut (*entry).address).write(self.address(id).as_ptr() as u64);
            (&raw mut (*entry).bytes).write(self.buffer_bytes);
            (&raw mut (*entry).id).write(id);
        }
        self.tail.set(tail.wrapping_add(1));
        self.lent.set(self.lent.get() - 1);
    }

    /// Lets the kernel see every buffer that came back.
    #[inline]
    pub(super) fn publish(&self) {
        let tail = self.tail.get();
        if tail != self.published.get() {
            // SAFETY: entry 0 is mapped for as long as `self` lives, and its tail field is only ever
            // accessed as an atomic.
            unsafe { &(*self.entry(0)).tail }.store(tail, Ordering::Release);
            self.published.set(tail);
        }
    }

    /// Takes over a buffer that a completion names.
    #[inline]
    pub(super) fn take(self: &Rc<Self>, id: u16, bytes: u32) -> RecvBuffer {
        assert!(
            id <= self.mask && bytes <= self.buffer_bytes,
            "the kernel named no buffer of ours"
        );
        self.lent.set(self.lent.get() + 1);
        RecvBuffer { pool: Rc::clone(self), bytes, id }
    }

    /// Buffers that are not lent to a [`RecvBuffer`].
    pub(super) fn free(&self) -> usize {
        usize::from(self.mask) + 1 - usize::from(self.lent.get())
    }
}

/// Received bytes, in a buffer that goes back to the kernel when this is dropped.
///
/// It may outlive its ring, but as long as it lives the kernel has one buffer less: copy the bytes
/// out before waiting for anything.
pub struct RecvBuffer {
    pool: Rc<Pool>,
    bytes: u32,
    id: u16,
}

impl RecvBuffer {
    /// Forgets all bytes after the first `len`; no effect if there are fewer.
    pub fn truncate(&mut self, len: usize) {
        if len < self.bytes as usize {
            self.bytes = len as u32;
        }
    }
}

impl Deref for RecvBuffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: this handle is the only owner of buffer `id` (invariant of `Pool`), whose memory
        // is mapped, initialised (anonymous pages) and longer than `bytes`; the kernel writes to a
        // buffer only while it is on its list.
        unsafe {
            std::slice::from_raw_parts(self.pool.address(self.id).as_ptr(), self.bytes as usize)
        }
    }
}

impl DerefMut for RecvBuffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow of the only owner makes the slice exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(self.pool.address(self.id).as_ptr(), self.bytes as usize)
        }
    }
}

impl Drop for RecvBuffer {
    #[inline]
    fn drop(&mut self) {
        self.pool.give_back(self.id);
    }
}

impl fmt::Debug for RecvBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecvBuffer({} bytes)", self.bytes)
    }
}

/// What a send operation may own. All of these keep their bytes in place while they are moved.
#[derive(Debug)]
pub enum SendBuffer {
    /// A pooled vector of the caller's; comes back in the completion.
    Owned(Vec<u8>),
    /// A receive buffer whose bytes go out again: an echo without a copy.
    Received(RecvBuffer),
    /// Fixed bytes.
    Static(&'static [u8]),
}

impl SendBuffer {
    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Received(bytes) => bytes,
            Self::Static(bytes) => bytes,
        }
    }
}

impl From<Vec<u8>> for SendBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Owned(bytes)
    }
}

impl From<RecvBuffer> for SendBuffer {
    fn from(bytes: RecvBuffer) -> Self {
        Self::Received(bytes)
    }
}
