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

/// Takes a descriptor over that this process was started with. `/dev/null` stays behind in its place,
/// so that nobody else can have it, and no later file gets the number of a standard stream.
///
/// # Errors
/// `EBADF` if the process was started without it.
pub fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: both calls take integers. The first only makes a duplicate; the second replaces a
    // descriptor that this process was started with and that no value here owns, since it is none of
    // its own making (those are close-on-exec and could not have been inherited).
    unsafe {
        if libc::fcntl(number, libc::F_GETFD) & libc::FD_CLOEXEC != 0 {
            return Err(Errno::EBADF.into());
        }
        let duplicate = Errno::result(libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3))?;
        let duplicate = OwnedFd::from_raw_fd(duplicate);
        Errno::result(libc::dup2(null.as_raw_fd(), number))?;
        Ok(duplicate)
    }
}
