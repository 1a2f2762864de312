//! Small system calls: clocks, process handles, wake-ups, limits, privileges, sockets, what the kernel
//! can do.
//!
//! Must not know: protocols, processes' roles.
#![allow(unsafe_code)]

pub mod birth;
pub mod cgroup;
pub mod clock;
pub mod file;
pub mod kernel;
pub mod notify;
pub mod process;
mod random;
pub mod ring;
pub mod seccomp;
pub mod socket;
pub mod unix;

pub use clock::{boot_id, boottime_ns, monotonic_ns, wall_clock_s};
pub use process::{EventFd, pidfd_open, pidfd_send_signal};
pub use random::random_bytes;
