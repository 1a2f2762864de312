//! Descriptors over Unix sockets (`SCM_RIGHTS`, unix(7)).
//!
//! Neither call waits. Received descriptors are owned, and closed on exec, from the first moment;
//! a message that lost some of them on the way says so, and never silently.
//!
//! Must not know: what the descriptors are, what the bytes mean.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

#[cfg(test)]
mod tests;

/// Most descriptors that the kernel takes with one message (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// `CMSG_SPACE` of [`MAX_FDS`] descriptors.
const CONTROL_BYTES: usize = {
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) as usize }
};

/// A control buffer, aligned as `struct cmsghdr` wants it.
#[repr(C, align(8))]
struct Control(MaybeUninit<[u8; CONTROL_BYTES]>);

const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>());

/// What [`receive`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the message; 0 is the end of the connection (nobody here sends empty messages).
    pub bytes: usize,
    /// The message was longer than the buffer; the rest is lost.
    pub truncated: bool,
    /// Descriptors were lost: the process is out of them (EMFILE), or the kernel refused one.
    pub control_truncated: bool,
}

/// Sends one message with descriptors, which the caller keeps.
///
/// Returns the bytes sent: all of them on a seqpacket or datagram socket. Descriptors travel with
/// the first byte.
///
/// # Errors
/// `WouldBlock` when the socket's buffer is full; ETOOMANYREFS when too many descriptors are on
/// their way; `InvalidInput` for more than [`MAX_FDS`] descriptors, or descriptors without a byte.
pub fn send(
    socket: BorrowedFd<'_>,
    bytes: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    if fds.len() > MAX_FDS || (!fds.is_empty() && bytes.iter().all(|part| part.is_empty())) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control(MaybeUninit::uninit());
    // SAFETY: all zeroes is a valid msghdr: null pointers with lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // sendmsg does not write through the pointer; IoSlice has the layout of iovec.
    message.msg_iov = bytes.as_ptr().cast_mut().cast();
    message.msg_iovlen = bytes.len() as _;
    if !fds.is_empty() {
        let data_bytes = size_of_val(fds) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE and CMSG_LEN only compute. The control buffer is aligned for a
        // cmsghdr and has room for one with MAX_FDS descriptors (checked above); its padding is
        // zeroed before the kernel reads it. BorrowedFd has the layout of a RawFd
        // (repr(transparent)), so `fds` is an array of descriptors; the data part may be unaligned
        // for them only by byte, and is copied bytewise.
        unsafe {
            let space = libc::CMSG_SPACE(data_bytes) as usize;
            message.msg_control.cast::<u8>().write_bytes(0, space);
            message.msg_controllen = space as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(data_bytes) as _;
            std::ptr::copy_nonoverlapping(
                fds.as_ptr().cast::<u8>(),
                libc::CMSG_DATA(header),
                data_bytes as usize,
            );
        }
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: the message points to `bytes` and `control`, which outlive the call, with their
        // lengths.
        let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        if result >= 0 {
            return Ok(result as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one message. Descriptors are appended to `fds`, in the sender's order; if
/// [`Received::control_truncated`] is set, the last ones are missing.
///
/// # Errors
/// `WouldBlock` when there is no message.
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    // Nothing may fail between the kernel's opening of the descriptors and their being owned.
    fds.reserve(MAX_FDS);
    let mut control = Control(MaybeUninit::uninit());
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    let (bytes, message) = loop {
        // SAFETY: all zeroes is a valid msghdr: null pointers with lengths of 0.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_BYTES as _;
        // SAFETY: the message points to `buffer` and `control`, which are exclusively borrowed for
        // the call, with their lengths.
        let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
        if result >= 0 {
            break (result as usize, message);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: the kernel has filled the first `msg_controllen` bytes of the aligned control buffer
    // with whole control messages (the last may be shorter, and says so in its cmsg_len);
    // CMSG_FIRSTHDR and CMSG_NXTHDR stay within them. An SCM_RIGHTS message holds descriptors that
    // the kernel has just opened for this process and that nobody else knows.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let data_bytes =
                    ((*header).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
                for index in 0..data_bytes / size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok(Received {
        bytes,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        control_truncated: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}
