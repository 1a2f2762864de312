//! An io_uring that nobody uses yet: made for oneself, or for a program that is about to be executed.
//!
//! The kernel counts the memory of rings against RLIMIT_MEMLOCK, for all processes of a user together, unless whoever
//! makes one has CAP_IPC_LOCK; who uses it later does not matter. So a [`Bequest`] makes that of an unprivileged program
//! in the child, between fork(2) and execve(2), while that may still, and leaves it behind, disabled. The program
//! restricts it and enables it, and is its one issuer from there on. It gets no right by that but to the ring, and the
//! limit is not needed for anything else. (A descriptor of io_uring cannot be sent over a socket.)
//!
//! Must not know: what the ring is for.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;

/// `IORING_SETUP_` CQSIZE, CLAMP, R_DISABLED, SUBMIT_ALL, SINGLE_ISSUER and DEFER_TASKRUN.
const FLAGS: u32 = 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 12 | 1 << 13;

/// `struct io_uring_params`, of which only the first words are looked at here: numbers of entries, and flags.
const PARAMETER_WORDS: usize = 30;
const COMPLETIONS_AT: usize = 1;
const FLAGS_AT: usize = 2;

/// What the kernel has filled in about a ring (`struct io_uring_params`).
pub type Parameters = [u32; PARAMETER_WORDS];

/// How large a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    entries: u32,
    completions: u32,
}

impl Shape {
    /// With so many places for submissions, for so many receive buffers.
    pub fn new(entries: u32, buffers: u16) -> Self {
        Self { entries, completions: (entries * 4).max(u32::from(buffers) * 2) }
    }

    /// What one takes of the locked memory that a user has, with its list of receive buffers; about.
    pub fn locked_bytes(self) -> u64 {
        // An entry, and its place in the array beside the completions; those; the list, and what is rounded up to pages.
        u64::from(self.entries) * (64 + 4) + u64::from(self.completions) * 16 + (3 << 12)
    }
}

/// A ring that is disabled, and what is to be known to map it.
#[derive(Debug)]
pub struct Blank {
    descriptor: OwnedFd,
    parameters: Parameters,
}

impl Blank {
    /// Makes one. Neither allocates nor takes a lock.
    ///
    /// # Errors
    /// What io_uring_setup(2) says; `ENOMEM` above all where RLIMIT_MEMLOCK is used up.
    pub fn make(shape: Shape) -> io::Result<Self> {
        let mut parameters = [0; PARAMETER_WORDS];
        parameters[COMPLETIONS_AT] = shape.completions;
        parameters[FLAGS_AT] = FLAGS;
        // SAFETY: the kernel reads and writes one `io_uring_params`, which has 120 bytes and lives on this stack.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_setup,
                shape.entries,
                (&raw mut parameters).cast::<u8>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just opened this descriptor for us alone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(result as RawFd) };
        Ok(Self { descriptor, parameters })
    }

    /// Takes what a [`Bequest`] has left behind for this program; `None` if there was none, or if it could not make one.
    ///
    /// # Errors
    /// If [`VARIABLE`] does not say what [`Bequest::number`] has said.
    pub fn bequeathed() -> io::Result<Option<Self>> {
        let Some(number) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        Self::take(number.ok_or(io::ErrorKind::InvalidInput)?)
    }

    fn take(number: RawFd) -> io::Result<Option<Self>> {
        let mut message = std::fs::File::from(inherited(number)?);
        let mut bytes = [0; MESSAGE_BYTES];
        // It was written in one piece before this program began, or not at all.
        let length = match message.read(&mut bytes) {
            Ok(0) => return Ok(None),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut words = bytes
            .chunks_exact(4)
            .map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        let ring = words.next().unwrap_or_default();
        let parameters: Vec<u32> = words.collect();
        let parameters = Parameters::try_from(parameters)
            .ok()
            .filter(|parameters| length == MESSAGE_BYTES && parameters[FLAGS_AT] == FLAGS)
            .ok_or(io::ErrorKind::InvalidData)?;
        let link = std::fs::read_link(format!("/proc/self/fd/{ring}"))?;
        if link.as_os_str() != "anon_inode:[io_uring]" {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let descriptor = inherited(ring as RawFd)?;
        Ok(Some(Self { descriptor, parameters }))
    }

    /// The descriptor, and what the kernel said of it.
    pub fn into_parts(self) -> (OwnedFd, Parameters) {
        (self.descriptor, self.parameters)
    }
}

/// Takes over a descriptor that this process was started with, which is no standard stream.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: integers; what is owned is a descriptor that this process was started with and that no value here owns,
    // since it is none of its own making (those are close-on-exec).
    unsafe {
        let flags = libc::fcntl(number, libc::F_GETFD);
        if number <= libc::STDERR_FILENO || flags < 0 || flags & libc::FD_CLOEXEC != 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let descriptor = OwnedFd::from_raw_fd(number);
        if libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(descriptor)
    }
}

/// The environment variable that tells a program where to read which ring it has.
pub const VARIABLE: &str = "ZDT_RING_FD";

/// The ring's number in the program, and its parameters.
const MESSAGE_BYTES: usize = 4 + size_of::<Parameters>();

/// See the module.
#[derive(Debug)]
pub struct Bequest {
    shape: Shape,
    /// Where the program reads which ring it has; both ends are closed on exec until it is left behind.
    message: OwnedFd,
    writer: OwnedFd,
}

impl Bequest {
    /// Of a ring of this size, which is yet to be made.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn new(shape: Shape) -> io::Result<Self> {
        let (message, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { shape, message, writer })
    }

    /// What [`VARIABLE`] is to say to the program, for [`Blank::bequeathed`].
    pub fn number(&self) -> RawFd {
        self.message.as_raw_fd()
    }

    /// Makes the ring and leaves it behind, in a child that is about to execute the program. Neither allocates nor takes
    /// a lock. False if there is none: the program is then told so.
    pub(super) fn leave_behind(&self) -> bool {
        // SAFETY: an integer: the descriptor that `self` owns.
        if unsafe { libc::fcntl(self.message.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
            return false; // it finds nothing at that number, which it can tell from no ring
        }
        let Ok(Blank { descriptor, parameters }) = Blank::make(self.shape) else { return false };
        let mut message = [0_u32; 1 + PARAMETER_WORDS];
        message[0] = descriptor.as_raw_fd() as u32;
        message[1..].copy_from_slice(&parameters);
        let bytes = (&raw const message).cast::<libc::c_void>();
        // SAFETY: reads the array on this stack, all of it, and writes to a pipe that `self` owns; then an integer.
        let written = unsafe { libc::write(self.writer.as_raw_fd(), bytes, MESSAGE_BYTES) };
        if written != MESSAGE_BYTES as isize {
            return false;
        }
        // SAFETY: an integer. From here on it is the program's.
        unsafe { libc::fcntl(descriptor.into_raw_fd(), libc::F_SETFD, 0) == 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_that_was_not_left_behind() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&writer, &[7; MESSAGE_BYTES]).unwrap();
        drop(writer);
        assert_eq!(
            Blank::take(reader.into_raw_fd()).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(writer);
        assert!(Blank::take(reader.into_raw_fd()).unwrap().is_none(), "none could be made");
        let own = Blank::make(Shape::new(8, 2)).unwrap();
        let error = Blank::take(own.descriptor.as_raw_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF), "its own, not inherited");
        assert!(Blank::take(-1).is_err());
        assert!(Blank::take(0).is_err());
    }
}
