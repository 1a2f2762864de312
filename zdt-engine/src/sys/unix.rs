//! Unix sockets that listen.
//!
//! Must not know: who connects, and why.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, accept4};

/// Takes a connection out of a non-blocking listener's queue; `None` when it is empty. The
/// connection is non-blocking and close-on-exec.
///
/// # Errors
/// What accept4(2) says, except EINTR and errors of connections that are gone.
pub fn accept_unix(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
            Ok(descriptor) => {
                // SAFETY: the kernel has just opened this descriptor for us alone.
                return Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }));
            }
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
