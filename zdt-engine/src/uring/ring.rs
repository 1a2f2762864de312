//! The ring: queueing operations, entering the kernel, reading completions.
//!
//! Must not know: what the operations are for.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::buffers::Pool;
use super::inflight::{ID_BITS, InFlight};
use super::setup::{self, SetupError};
use super::{RecvBuffer, SendBuffer};
use crate::sys::ring::{Blank, Shape};

// The top 8 bits of a user_data say what the operation is; the rest is the token, or a send's id.
const KIND_INTERNAL: u64 = 0;
const KIND_ACCEPT: u64 = 1;
const KIND_RECEIVE: u64 = 2;
const KIND_POLL: u64 = 3;
const KIND_SEND: u64 = 4;
const KIND_SOCKET: u64 = 5;
const KIND_CONNECT: u64 = 6;

const BUFFER_GROUP: u16 = 0;
const ENTER_GETEVENTS: libc::c_uint = 1 << 0;
const ENTER_EXT_ARG: libc::c_uint = 1 << 3;
const ENTER_REGISTERED_RING: libc::c_uint = 1 << 4;
const REGISTER_RING_FDS: libc::c_uint = 20;

/// Rounds of 100 ms that `drop` waits for cancelled operations before it gives their memory up.
const DROP_ROUNDS: u32 = 50;

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct GeteventsArgument {
    signal_mask: u64,
    signal_mask_bytes: u32,
    min_wait_us: u32,
    timespec: u64,
}

/// `struct __kernel_timespec`.
#[repr(C)]
struct KernelTimespec {
    seconds: i64,
    nanoseconds: i64,
}

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct ResourceUpdate {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// Names an operation, for [`Ring::cancel`].
///
/// Accepts, receives and polls are known by their token; a send by what [`Ring::send`] returned,
/// which never names a later send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation(u64);

impl Operation {
    /// The multishot accept with this token.
    pub fn accept(token: u64) -> Self {
        Self::new(KIND_ACCEPT, token)
    }

    /// The multishot receive with this token.
    pub fn receive(token: u64) -> Self {
        Self::new(KIND_RECEIVE, token)
    }

    /// The multishot poll with this token.
    pub fn poll(token: u64) -> Self {
        Self::new(KIND_POLL, token)
    }

    /// The connect with this token.
    pub fn connect(token: u64) -> Self {
        Self::new(KIND_CONNECT, token)
    }

    #[inline]
    fn new(kind: u64, token: u64) -> Self {
        assert!(token >> ID_BITS == 0, "tokens of accepts, receives and polls have 56 bits");
        Self(kind << ID_BITS | token)
    }
}

/// So many bytes, and no buffer more, one multishot receive brings before it must be armed again.
pub const RECEIVE_LIMIT: u32 = 256 << 10;

/// A multishot receive that ends after `limit` bytes; 0 is no limit.
fn recv_multishot(socket: RawFd, limit: u32) -> squeue::Entry {
    /// Of `optlen` in `struct io_uring_sqe`, for which the crate has no name here.
    const OPTLEN_OFFSET: usize = 44;
    const _: () = assert!(size_of::<squeue::Entry>() == 64, "that is the kernel's structure");
    let mut entry = opcode::RecvMulti::new(types::Fd(socket), BUFFER_GROUP).build();
    // SAFETY: an `Entry` is one `io_uring_sqe` and nothing else: the four bytes lie within it, are
    // aligned, and any value of them is valid.
    unsafe { (&raw mut entry).cast::<u8>().add(OPTLEN_OFFSET).cast::<u32>().write(limit) };
    entry
}

/// What has become of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The caller's.
    pub token: u64,
    /// A count of bytes (receive: 0 is the peer's FIN), an event mask (poll), 0 (accept), or a
    /// negative errno: `-ENOBUFS` when a receive found no free buffer, `-ECANCELED` after a cancel.
    pub result: i32,
    /// True while the operation goes on; after the first completion without it, no memory and no
    /// socket is named by the kernel any more, and the operation must be armed again if wanted.
    pub more: bool,
    /// What comes with it.
    pub payload: CompletionPayload,
}

/// See [`Completion::payload`]; also tells the kinds of operations apart.
#[derive(Debug)]
pub enum CompletionPayload {
    /// A poll; or an accept that failed.
    None,
    /// A receive: the bytes, or `None` at a FIN or an error.
    Received(Option<RecvBuffer>),
    /// A send: the buffer comes back, whatever the result.
    Sent(SendBuffer),
    /// A new connection: close-on-exec and non-blocking.
    Accepted(OwnedFd),
    /// A new socket: close-on-exec.
    Made(OwnedFd),
}

/// One io_uring with its receive buffers. Not `Send`: it belongs to the thread that made it.
///
/// Descriptors are named at the time of the call and looked up at the next [`Ring::enter`] (or
/// when the queue is full): they must stay open until then. [`Ring::close`] keeps that order.
pub struct Ring {
    uring: IoUring,
    pool: Rc<Pool>,
    sends: InFlight,
    /// Addresses of connects in flight.
    addresses: HashMap<u64, Vec<u8>>,
    /// Completions copied out of the kernel's queue, and the first one that was not yet read.
    batch: Vec<cqueue::Entry>,
    cursor: usize,
    /// Entries written but not yet taken by the kernel.
    queued: u32,
    /// Operations whose last completion is outstanding.
    outstanding: usize,
    /// The kernel can end a multishot receive after so many bytes (since 6.17).
    limits_receives: bool,
    /// What `io_uring_enter` is called with: the registered index, or the descriptor.
    enter_fd: RawFd,
    enter_flags: libc::c_uint,
}

impl Ring {
    /// A ring with `entries` places for submissions between two enters (more are submitted at
    /// once), and `buffer_count` receive buffers of `buffer_bytes` each.
    ///
    /// # Errors
    /// What the kernel lacks or refuses, and what to do about it.
    pub fn new(entries: u32, buffer_count: u16, buffer_bytes: u32) -> Result<Self, SetupError> {
        let blank = setup::make(Shape::new(entries, buffer_count))?;
        Self::furnish(blank, buffer_count, buffer_bytes, &[])
    }

    /// Like [`Ring::new`], and may make and connect sockets, and read files.
    ///
    /// # Errors
    /// As there.
    pub fn new_connecting(
        entries: u32,
        buffer_count: u16,
        buffer_bytes: u32,
    ) -> Result<Self, SetupError> {
        let blank = setup::make(Shape::new(entries, buffer_count))?;
        Self::furnish(blank, buffer_count, buffer_bytes, setup::CONNECTING_OPCODES)
    }

    /// Like [`Ring::new`], or [`Ring::new_connecting`], of one that was made before, of whatever size.
    ///
    /// # Errors
    /// As there.
    pub fn from_blank(
        blank: Blank,
        connecting: bool,
        buffer_count: u16,
        buffer_bytes: u32,
    ) -> Result<Self, SetupError> {
        let further = if connecting { setup::CONNECTING_OPCODES } else { &[] };
        Self::furnish(blank, buffer_count, buffer_bytes, further)
    }

    fn furnish(
        blank: Blank,
        buffer_count: u16,
        buffer_bytes: u32,
        further: &[(u8, &str)],
    ) -> Result<Self, SetupError> {
        let uring = setup::map(blank, further)?;
        let pool = Pool::new(buffer_count, buffer_bytes).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => SetupError::InvalidSize,
            _ => SetupError::from_io("mapping receive buffers", error),
        })?;
        let (list, list_entries) = pool.list();
        // SAFETY: the list is page-aligned, has `list_entries` entries, and stays mapped for as
        // long as `pool` lives, which `Ring` drops after `uring`; all its operations have ended by
        // then (see `drop`), or both are leaked.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(list, list_entries, BUFFER_GROUP, 0)
        }
        .map_err(|error| SetupError::from_io("REGISTER_PBUF_RING", error))?;
        let registered = register_ring_fd(uring.as_raw_fd());
        setup::restrict_and_enable(&uring, further)?;
        let (enter_fd, enter_flags) = match registered {
            Some(index) => (index, ENTER_REGISTERED_RING),
            None => (uring.as_raw_fd(), 0),
        };
        let batch = Vec::with_capacity(uring.params().cq_entries() as usize);
        let mut ring = Self {
            uring,
            limits_receives: false,
            pool,
            sends: InFlight::new(),
            addresses: HashMap::new(),
            batch,
            cursor: 0,
            queued: 0,
            outstanding: 0,
            enter_fd,
            enter_flags,
        };
        ring.limits_receives = ring.knows_receive_limit();
        Ok(ring)
    }

    /// Whether [`RECEIVE_LIMIT`] holds.
    pub fn limits_receives(&self) -> bool {
        self.limits_receives
    }

    /// Asks the kernel: a receive on no socket fails for want of the socket only if all else about it is
    /// understood.
    fn knows_receive_limit(&mut self) -> bool {
        let entry = recv_multishot(-1, RECEIVE_LIMIT).user_data(KIND_INTERNAL << ID_BITS);
        // SAFETY: as for `recv_multishot`; and it ends at once.
        unsafe { self.push(&entry) };
        let asked = self.enter_raw(1, ENTER_GETEVENTS, Some(Duration::from_secs(1)));
        let answer = self.uring.completion().next().map(|entry| entry.result());
        asked.is_ok() && answer == Some(-libc::EBADF)
    }

    /// Accepts connections until cancelled. The listener may or may not be non-blocking.
    pub fn accept_multishot(&mut self, listener: BorrowedFd<'_>, token: u64) -> Operation {
        let operation = Operation::accept(token);
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build()
            .user_data(operation.0);
        // SAFETY: the operation names no memory of this process.
        unsafe { self.push_operation(&entry) };
        operation
    }

    /// Receives into the ring's buffers until cancelled, a FIN, an error, no free buffer, or, where the
    /// kernel knows that, [`RECEIVE_LIMIT`] bytes: it reads on as long as there is something, ahead of
    /// whoever looks at it.
    pub fn recv_multishot(&mut self, socket: BorrowedFd<'_>, token: u64) -> Operation {
        let operation = Operation::receive(token);
        let limit = if self.limits_receives { RECEIVE_LIMIT } else { 0 };
        let entry = recv_multishot(socket.as_raw_fd(), limit).user_data(operation.0);
        // SAFETY: the kernel writes to buffers of group 0 only, which are the pool's; they stay
        // mapped until the last operation has ended (see `drop`).
        unsafe { self.push_operation(&entry) };
        operation
    }

    /// Sends the buffer's bytes from `range_start` on. The completion's result is the number of
    /// bytes sent, or a negative errno if there were none.
    ///
    /// With `dont_wait` the send takes what fits the socket's buffer now (possibly `-EAGAIN`);
    /// without, it ends when all is sent, at an error, or when cancelled: it then tells how much
    /// had been sent. Two sends on one socket may overtake each other: wait for the first.
    ///
    /// # Panics
    /// If `range_start` is beyond the buffer's end.
    #[inline]
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        token: u64,
        buffer: SendBuffer,
        range_start: usize,
        dont_wait: bool,
    ) -> Operation {
        self.send_part(socket, token, buffer, range_start, usize::MAX, dont_wait)
    }

    /// Like [`Ring::send`], for `most` bytes from `range_start` on, or as many as there are.
    ///
    /// # Panics
    /// If `range_start` is beyond the buffer's end.
    #[inline]
    pub fn send_part(
        &mut self,
        socket: BorrowedFd<'_>,
        token: u64,
        buffer: SendBuffer,
        range_start: usize,
        most: usize,
        dont_wait: bool,
    ) -> Operation {
        let bytes = &buffer.as_slice()[range_start..];
        // Larger ones are sent in part; the caller sees the count.
        let len = bytes.len().min(most).min(i32::MAX as usize) as u32;
        let address = bytes.as_ptr();
        let wait = if dont_wait { libc::MSG_DONTWAIT } else { libc::MSG_WAITALL };
        let operation = Operation(KIND_SEND << ID_BITS | self.sends.insert(token, buffer));
        let entry = opcode::Send::new(types::Fd(socket.as_raw_fd()), address, len)
            .flags(libc::MSG_NOSIGNAL | wait)
            .build()
            .user_data(operation.0);
        // SAFETY: `address` points to `len` initialised bytes of a buffer that `self.sends` owns
        // from here to the operation's only completion; moving a `SendBuffer` does not move its
        // bytes, and nobody can reach it to change them.
        unsafe { self.push_operation(&entry) };
        operation
    }

    /// Makes a stream socket of that address family, not connected. Needs [`Ring::new_connecting`].
    pub fn socket(&mut self, family: i32, token: u64) {
        let entry = opcode::Socket::new(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)
            .build()
            .user_data(Operation::new(KIND_SOCKET, token).0);
        // SAFETY: the operation names no memory of this process.
        unsafe { self.push_operation(&entry) };
    }

    /// Connects a socket to an address, which is a `sockaddr` as bytes. Needs
    /// [`Ring::new_connecting`]. At most one with a token at a time.
    pub fn connect(&mut self, socket: BorrowedFd<'_>, token: u64, address: Vec<u8>) -> Operation {
        let operation = Operation::connect(token);
        let length = address.len() as libc::socklen_t;
        let address = self.addresses.entry(token).insert_entry(address);
        let entry = opcode::Connect::new(
            types::Fd(socket.as_raw_fd()),
            address.get().as_ptr().cast::<libc::sockaddr>(),
            length,
        )
        .build()
        .user_data(operation.0);
        // SAFETY: the address is `length` bytes of a vector that `self.addresses` owns until the
        // operation's only completion; the kernel copies it byte by byte, so it needs no alignment, and
        // checks its length against its family.
        unsafe { self.push_operation(&entry) };
        operation
    }

    /// Writes the buffer's bytes from `range_start` on, to where the file stands (or to its end, if it was
    /// opened so). Completes as a send does; a file may take some of them only.
    ///
    /// # Panics
    /// If `range_start` is beyond the buffer's end.
    pub fn write(
        &mut self,
        file: BorrowedFd<'_>,
        token: u64,
        buffer: SendBuffer,
        range_start: usize,
    ) -> Operation {
        // "Where it stands", to the kernel.
        self.write_at(file, token, buffer, range_start, u64::MAX)
    }

    /// Like [`Ring::write`], to that place of the file.
    ///
    /// # Panics
    /// As there.
    pub fn write_at(
        &mut self,
        file: BorrowedFd<'_>,
        token: u64,
        buffer: SendBuffer,
        range_start: usize,
        offset: u64,
    ) -> Operation {
        let bytes = &buffer.as_slice()[range_start..];
        let len = bytes.len().min(i32::MAX as usize) as u32;
        let address = bytes.as_ptr();
        let operation = Operation(KIND_SEND << ID_BITS | self.sends.insert(token, buffer));
        let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), address, len)
            .offset(offset)
            .build()
            .user_data(operation.0);
        // SAFETY: `address` points to `len` initialised bytes of a buffer that `self.sends` owns
        // from here to the operation's only completion; moving a `SendBuffer` does not move its
        // bytes, and nobody can reach it to change them.
        unsafe { self.push_operation(&entry) };
        operation
    }

    /// Reads from that place of the file over the buffer's bytes. The buffer comes back as that of a send
    /// does; the completion's result says how many of its bytes are the file's, 0 at its end. Needs
    /// [`Ring::new_connecting`].
    pub fn read_at(
        &mut self,
        file: BorrowedFd<'_>,
        token: u64,
        mut buffer: Vec<u8>,
        offset: u64,
    ) -> Operation {
        let len = buffer.len().min(i32::MAX as usize) as u32;
        let address = buffer.as_mut_ptr();
        let buffer = SendBuffer::Owned(buffer);
        let operation = Operation(KIND_SEND << ID_BITS | self.sends.insert(token, buffer));
        let entry = opcode::Read::new(types::Fd(file.as_raw_fd()), address, len)
            .offset(offset)
            .build()
            .user_data(operation.0);
        // SAFETY: `address` points to `len` initialised bytes of a vector that `self.sends` owns from
        // here to the operation's only completion; moving a vector does not move its bytes, and nobody
        // can reach it to look at them meanwhile.
        unsafe { self.push_operation(&entry) };
        operation
    }

    /// Reports when the descriptor becomes readable, until cancelled.
    ///
    /// Edge-triggered in effect: read until there is nothing left before expecting another report.
    pub fn poll_multishot(&mut self, descriptor: BorrowedFd<'_>, token: u64) -> Operation {
        let operation = Operation::poll(token);
        let entry = opcode::PollAdd::new(types::Fd(descriptor.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(operation.0);
        // SAFETY: the operation names no memory of this process.
        unsafe { self.push_operation(&entry) };
        operation
    }

    /// Asks the kernel to end an operation. Only the operation's own completion without `more`
    /// says that it has ended, and completions before that count. The cancel itself reports
    /// nothing, nor does a cancel of what has already ended.
    pub fn cancel(&mut self, operation: Operation) {
        let entry = opcode::AsyncCancel::new(operation.0)
            .build()
            .user_data(KIND_INTERNAL << ID_BITS)
            .flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: the operation names no memory of this process.
        unsafe { self.push(&entry) };
    }

    /// Closes the descriptor at the next enter, after all that was queued before. No completion.
    pub fn close(&mut self, descriptor: OwnedFd) {
        let entry = opcode::Close::new(types::Fd(descriptor.into_raw_fd()))
            .build()
            .user_data(KIND_INTERNAL << ID_BITS)
            .flags(squeue::Flags::SKIP_SUCCESS);
        // SAFETY: the operation names no memory of this process; the descriptor was owned, so that
        // nobody else closes it.
        unsafe { self.push(&entry) };
    }

    /// Like [`Ring::close`], by a thread of the kernel's: to give up a large file without a name takes a
    /// while. Needs [`Ring::new_connecting`].
    pub fn close_aside(&mut self, descriptor: OwnedFd) {
        let entry = opcode::Close::new(types::Fd(descriptor.into_raw_fd()))
            .build()
            .user_data(KIND_INTERNAL << ID_BITS)
            .flags(squeue::Flags::SKIP_SUCCESS | squeue::Flags::ASYNC);
        // SAFETY: as for `close`.
        unsafe { self.push(&entry) };
    }

    /// Buffers that no [`RecvBuffer`] holds: those that the kernel can fill, or has filled.
    pub fn buffers_free(&self) -> usize {
        self.pool.free()
    }

    /// Operations whose last completion was not yet read.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Submits what is queued, lets the kernel run what is due, and waits until `want` completions
    /// are there or the time is over. A signal ends the wait. Returns at once if completions are
    /// left from before.
    ///
    /// # Errors
    /// What `io_uring_enter` says, except EINTR, ETIME, EBUSY and EAGAIN, which are no errors here:
    /// read the completions and enter again.
    pub fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.pool.publish();
        let want = if self.cursor < self.batch.len() { 0 } else { want };
        match self.enter_raw(want, ENTER_GETEVENTS, timeout) {
            Ok(()) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The next completion, if there is one. Never enters the kernel.
    #[inline]
    pub fn next_completion(&mut self) -> Option<Completion> {
        loop {
            if self.cursor == self.batch.len() && !self.refill() {
                return None;
            }
            let entry = &self.batch[self.cursor];
            self.cursor += 1;
            let (user_data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
            if let Some(completion) = self.decode(user_data, result, flags) {
                return Some(completion);
            }
        }
    }

    /// Copies the kernel's completions out, so that one access to its indices serves many.
    #[inline]
    fn refill(&mut self) -> bool {
        self.batch.clear();
        self.cursor = 0;
        self.take_completions();
        !self.batch.is_empty()
    }

    fn take_completions(&mut self) {
        let queue = self.uring.completion();
        self.batch.extend(queue);
    }

    #[inline]
    fn decode(&mut self, user_data: u64, result: i32, flags: u32) -> Option<Completion> {
        let more = cqueue::more(flags);
        let kind = user_data >> ID_BITS;
        let mut token = user_data & ((1 << ID_BITS) - 1);
        if kind != KIND_INTERNAL && !more {
            self.outstanding -= 1;
        }
        let mut result = result;
        let payload = match kind {
            KIND_RECEIVE => {
                let buffer =
                    cqueue::buffer_select(flags).map(|id| self.pool.take(id, result.max(0) as u32));
                // A buffer that came with a FIN or an error goes straight back.
                CompletionPayload::Received(buffer.filter(|buffer| !buffer.is_empty()))
            }
            KIND_SEND => {
                let (sender, buffer) = self.sends.remove(token);
                token = sender;
                CompletionPayload::Sent(buffer)
            }
            KIND_ACCEPT if result >= 0 => {
                // SAFETY: the kernel has just opened this descriptor for this accept (it is not
                // a direct one), and this is the only place that learns of it.
                let socket = unsafe { OwnedFd::from_raw_fd(result) };
                result = 0;
                CompletionPayload::Accepted(socket)
            }
            KIND_SOCKET if result >= 0 => {
                // SAFETY: the kernel has just opened this descriptor for this operation, and this is
                // the only place that learns of it.
                let socket = unsafe { OwnedFd::from_raw_fd(result) };
                result = 0;
                CompletionPayload::Made(socket)
            }
            KIND_CONNECT => {
                self.addresses.remove(&token);
                CompletionPayload::None
            }
            KIND_ACCEPT | KIND_POLL | KIND_SOCKET => CompletionPayload::None,
            // A cancel that found nothing, a close that failed: nothing can be done about either.
            _ => return None,
        };
        Some(Completion { token, result, more, payload })
    }

    /// # Safety
    /// As for [`Ring::push`]; the operation posts completions up to one without `more`.
    #[inline]
    unsafe fn push_operation(&mut self, entry: &squeue::Entry) {
        self.outstanding += 1;
        // SAFETY: passed on to the caller.
        unsafe { self.push(entry) };
    }

    /// # Safety
    /// Memory that the entry names must stay valid, and unchanged if the kernel reads it, until the
    /// operation's last completion.
    #[inline]
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: passed on to the caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                self.queued += 1;
                return;
            }
            self.submit_full_queue();
        }
    }

    #[cold]
    fn submit_full_queue(&mut self) {
        self.pool.publish();
        match self.enter_raw(0, 0, None) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => {}
                // The kernel wants its completions read first; they are kept for later.
                Some(libc::EBUSY) => {
                    self.take_completions();
                    let _ = self.enter_raw(0, ENTER_GETEVENTS, None);
                }
                _ => panic!("io_uring_enter with a full queue: {error}"),
            },
        }
    }

    fn enter_raw(
        &mut self,
        want: u32,
        flags: libc::c_uint,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let timespec;
        let argument;
        let (argument_address, argument_bytes, argument_flag) = match timeout {
            Some(timeout) if want > 0 => {
                timespec = KernelTimespec {
                    seconds: timeout.as_secs().min(i64::MAX as u64) as i64,
                    nanoseconds: i64::from(timeout.subsec_nanos()),
                };
                argument = GeteventsArgument {
                    signal_mask: 0,
                    signal_mask_bytes: 0,
                    min_wait_us: 0,
                    timespec: &raw const timespec as u64,
                };
                (&raw const argument, size_of::<GeteventsArgument>(), ENTER_EXT_ARG)
            }
            _ => (std::ptr::null(), 0, 0),
        };
        // SAFETY: the descriptor is this ring's, or its index among this thread's registered ones
        // (`Ring` is not `Send`); `queued` entries were written by `push`, whose callers vouch for
        // their memory; the argument and the timespec it points to live until the call returns.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                self.queued,
                want,
                flags | self.enter_flags | argument_flag,
                argument_address,
                argument_bytes,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        self.queued -= result as u32;
        Ok(())
    }

    /// Ends every operation and reads every completion; false if some would not end.
    fn shut_down(&mut self) -> bool {
        for _ in 0..DROP_ROUNDS {
            while self.next_completion().is_some() {}
            if self.outstanding == 0 && self.queued == 0 {
                return true;
            }
            if self.outstanding > 0 {
                let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any().all())
                    .build()
                    .user_data(KIND_INTERNAL << ID_BITS)
                    .flags(squeue::Flags::SKIP_SUCCESS);
                // SAFETY: the operation names no memory of this process.
                unsafe { self.push(&entry) };
            }
            let want = u32::from(self.outstanding > 0);
            if self.enter(want, Some(Duration::from_millis(100))).is_err() {
                return false;
            }
        }
        false
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if !self.shut_down() {
            // The kernel may still read or write the buffers: rather lose their memory.
            std::mem::forget(std::mem::replace(&mut self.sends, InFlight::new()));
            std::mem::forget(Rc::clone(&self.pool));
        }
        if self.enter_flags & ENTER_REGISTERED_RING != 0 {
            // The registration would keep the ring alive until the thread ends.
            update_ring_fds(self.uring.as_raw_fd(), setup::UNREGISTER_RING_FDS, self.enter_fd);
        }
    }
}

/// Saves the kernel a descriptor look-up at each enter; `None` where it is not to be had.
fn register_ring_fd(ring: RawFd) -> Option<RawFd> {
    update_ring_fds(ring, REGISTER_RING_FDS, -1)
}

/// Registers the ring (`place` -1: any) or unregisters the one at `place`, for this thread.
fn update_ring_fds(ring: RawFd, opcode: libc::c_uint, place: RawFd) -> Option<RawFd> {
    let data = if opcode == REGISTER_RING_FDS { ring as u64 } else { 0 };
    let mut update = ResourceUpdate { offset: place as u32, reserved: 0, data };
    // SAFETY: the argument points to one `io_uring_rsrc_update`, which the call reads and fills in.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring, opcode, &raw mut update, 1 as libc::c_uint)
    };
    (result == 1).then_some(update.offset as RawFd)
}
