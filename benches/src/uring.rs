//! A small safe layer over io_uring, shared by the load generator and the bare reference servers.
//!
//! One ring (SINGLE_ISSUER, DEFER_TASKRUN) with one ring of provided receive buffers. It stands
//! apart from the engine's own `uring` module on purpose: the generator must not share the code
//! that it measures.
//!
//! Must not know: connections, protocols, what a completion is for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// Top byte of the `user_data` of sends whose bytes the ring owns; see [`Uring::send_owned`].
pub const OWNED_SEND: u8 = 0xf5;

/// A completion, copied out of the ring.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    /// As given with the operation.
    pub user_data: u64,
    /// Result, or a negative errno.
    pub result: i32,
    flags: u32,
}

impl Completion {
    /// Whether a multishot operation goes on.
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The provided buffer that holds the received bytes. It has to be given back.
    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// A socket, by descriptor or by index in the ring's own table.
#[derive(Debug, Clone, Copy)]
pub enum Socket {
    /// An ordinary descriptor.
    Plain(RawFd),
    /// A direct descriptor.
    Direct(u32),
}

/// `$build!(socket, |fd| expression)`: the operation for either kind of descriptor.
macro_rules! for_socket {
    ($socket:expr, |$fd:ident| $operation:expr) => {
        match $socket {
            Socket::Plain(fd) => {
                let $fd = types::Fd(fd);
                $operation
            }
            Socket::Direct(index) => {
                let $fd = types::Fixed(index);
                $operation
            }
        }
    };
}

/// Memory of the provided buffers. Never freed: the kernel may write into it until the ring is
/// gone for good, which `close` does not wait for; a process makes only a handful of rings.
pub struct Buffers {
    memory: *mut u8,
    entries: *mut types::BufRingEntry,
    count: u16,
    bytes: usize,
    tail: u16,
    unpublished: u16,
}

/// See the module documentation.
pub struct Uring {
    ring: IoUring,
    owned: Vec<Vec<u8>>,
    returned: Vec<(u32, Vec<u8>)>,
}

/// An anonymous, populated mapping of whole pages.
fn map_pages(bytes: usize) -> io::Result<*mut u8> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice aliases nothing.
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
    Ok(address.cast())
}

impl Buffers {
    /// Maps `count` (a power of two) buffers and registers them with the ring.
    fn register(ring: &IoUring, count: u16, bytes: usize) -> io::Result<Self> {
        if !count.is_power_of_two() || bytes == 0 {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let memory = map_pages(usize::from(count) * bytes)?;
        let entries = map_pages(usize::from(count) * size_of::<types::BufRingEntry>())?.cast();
        // SAFETY: `entries` points at `count` zeroed, page-aligned entries that are never unmapped.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(entries as u64, count, 0, 0)?;
        }
        let mut buffers = Self { memory, entries, count, bytes, tail: 0, unpublished: 0 };
        for buffer in 0..count {
            buffers.give(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The first `length` bytes of a buffer that a completion has named and that was not given back.
    pub fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        assert!(buffer < self.count && length <= self.bytes);
        // SAFETY: in bounds by the assertion; the kernel writes into a buffer only between `give`
        // (which needs `&mut self`, so no slice is alive) and the completion that names it.
        unsafe {
            std::slice::from_raw_parts(self.memory.add(usize::from(buffer) * self.bytes), length)
        }
    }

    /// Lends the buffer to the kernel, which sees it after [`Buffers::publish`].
    pub fn give(&mut self, buffer: u16) {
        assert!(buffer < self.count);
        let index = self.tail.wrapping_add(self.unpublished) & (self.count - 1);
        // SAFETY: `index` is in bounds; the kernel reads an entry only below the published tail, and
        // this one is above it. Addresses stay valid for ever.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(index));
            entry.set_addr(self.memory.add(usize::from(buffer) * self.bytes) as u64);
            entry.set_len(self.bytes as u32);
            entry.set_bid(buffer);
        }
        self.unpublished += 1;
    }

    /// Makes the given buffers visible.
    pub fn publish(&mut self) {
        if self.unpublished == 0 {
            return;
        }
        self.tail = self.tail.wrapping_add(self.unpublished);
        self.unpublished = 0;
        // SAFETY: the tail lies in the reserved field of the first entry, is 2-byte aligned and only
        // written here; the kernel reads it with acquire semantics.
        unsafe {
            let tail = types::BufRingEntry::tail(self.entries).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Uring {
    /// A ring and its provided buffers.
    pub fn new(
        entries: u32,
        buffer_count: u16,
        buffer_bytes: usize,
    ) -> io::Result<(Self, Buffers)> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_cqsize(65536)
            .build(entries)?;
        let buffers = Buffers::register(&ring, buffer_count, buffer_bytes)?;
        Ok((Self { ring, owned: Vec::new(), returned: Vec::new() }, buffers))
    }

    /// Makes room for direct descriptors.
    pub fn register_direct_descriptors(&mut self, count: u32) -> io::Result<()> {
        self.ring.submitter().register_files_sparse(count)
    }

    fn push(&mut self, entry: squeue::Entry, user_data: u64) {
        let entry = entry.user_data(user_data);
        loop {
            // SAFETY: every caller builds entries whose memory outlives the operation: provided
            // buffers and statics live for ever, owned sends until their completion, and a
            // `sockaddr` is read while the entry is submitted.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // Full: EBUSY and EINTR free nothing now, but the next try may.
            let _ = self.ring.submit();
        }
    }

    /// Receives into provided buffers until cancelled.
    pub fn receive_multishot(&mut self, socket: Socket, user_data: u64) {
        self.push(for_socket!(socket, |fd| opcode::RecvMulti::new(fd, 0).build()), user_data);
    }

    /// Receives once, at most `limit` bytes (0: a whole buffer).
    pub fn receive_once(&mut self, socket: Socket, limit: u32, user_data: u64) {
        let entry = for_socket!(socket, |fd| opcode::Recv::new(fd, std::ptr::null_mut(), limit)
            .buf_group(0)
            .build());
        self.push(entry.flags(squeue::Flags::BUFFER_SELECT), user_data);
    }

    /// Accepts until cancelled; the sockets become direct descriptors if `direct`.
    pub fn accept_multishot(&mut self, listener: RawFd, direct: bool, user_data: u64) {
        let entry =
            opcode::AcceptMulti::new(types::Fd(listener)).allocate_file_index(direct).build();
        self.push(entry, user_data);
    }

    /// Connects to an address that is kept by the caller for ever.
    pub fn connect(&mut self, fd: RawFd, address: &'static libc::sockaddr_in, user_data: u64) {
        let entry = opcode::Connect::new(
            types::Fd(fd),
            std::ptr::from_ref(address).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        );
        self.push(entry.build(), user_data);
    }

    fn send(&mut self, socket: Socket, bytes: *const u8, length: usize, user_data: u64) {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = for_socket!(socket, |fd| opcode::Send::new(fd, bytes, length as u32)
            .flags(flags)
            .build());
        self.push(entry, user_data);
    }

    /// Sends all of it.
    pub fn send_static(&mut self, socket: Socket, bytes: &'static [u8], user_data: u64) {
        self.send(socket, bytes.as_ptr(), bytes.len(), user_data);
    }

    /// Sends from a provided buffer, which the caller gives back after the completion, not before
    /// (else the peer gets other bytes; the memory itself stays valid).
    pub fn send_buffer(
        &mut self,
        socket: Socket,
        buffers: &Buffers,
        buffer: u16,
        length: usize,
        user_data: u64,
    ) {
        let bytes = buffers.bytes(buffer, length);
        self.send(socket, bytes.as_ptr(), length, user_data);
    }

    /// Sends all of `bytes`, which [`Uring::take_returned`] gives back after the completion. At most
    /// one such send for each `key` at a time; its `user_data` is [`owned_send`]`(key)`.
    pub fn send_owned(&mut self, socket: Socket, bytes: Vec<u8>, key: u32) {
        let index = key as usize;
        if self.owned.len() <= index {
            self.owned.resize_with(index + 1, Vec::new);
        }
        assert!(self.owned[index].is_empty() && !bytes.is_empty(), "one send at a time");
        let (address, length) = (bytes.as_ptr(), bytes.len());
        self.owned[index] = bytes;
        self.send(socket, address, length, owned_send(key));
    }

    /// Buffers of the owned sends that have completed.
    pub fn take_returned(&mut self) -> Option<(u32, Vec<u8>)> {
        self.returned.pop()
    }

    /// Cancels by `user_data`; no completion of its own unless there was nothing to cancel.
    pub fn cancel(&mut self, target: u64, user_data: u64) {
        let entry = opcode::AsyncCancel::new(target).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS), user_data);
    }

    /// Closes a direct descriptor.
    pub fn close_direct(&mut self, index: u32, user_data: u64) {
        let entry = opcode::Close::new(types::Fixed(index)).build();
        self.push(entry.flags(squeue::Flags::SKIP_SUCCESS), user_data);
    }

    /// Submits what is queued without waiting.
    pub fn submit(&mut self) {
        let _ = self.ring.submit();
    }

    /// Submits, and waits for a completion or the end of `timeout` (`None`: for ever).
    pub fn enter(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let result = match timeout {
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let time =
                    types::Timespec::new().sec(timeout.as_secs()).nsec(timeout.subsec_nanos());
                self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Moves all completions into `out`.
    pub fn drain(&mut self, out: &mut Vec<Completion>) {
        for entry in self.ring.completion() {
            let user_data = entry.user_data();
            if (user_data >> 56) as u8 == OWNED_SEND {
                let key = user_data as u32;
                self.returned.push((key, std::mem::take(&mut self.owned[key as usize])));
            }
            out.push(Completion { user_data, result: entry.result(), flags: entry.flags() });
        }
    }
}

/// `user_data` of an owned send.
pub fn owned_send(key: u32) -> u64 {
    u64::from(OWNED_SEND) << 56 | u64::from(key)
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may read the bytes of sends in flight for a moment longer than the ring lives.
        for bytes in self.owned.drain(..) {
            if !bytes.is_empty() {
                std::mem::forget(bytes);
            }
        }
    }
}
