//! Process handles (pidfd), wake-ups between processes (eventfd), limits, CPU affinity.
//!
//! Must not know: why a process is watched.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// A handle on a process, readable once it is dead (pidfd_open(2)).
///
/// Race-free only for a child that was not yet waited for, or for oneself.
///
/// # Errors
/// `ESRCH` if there is no such process.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes two integers and opens a descriptor.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0 as libc::c_uint) };
    let descriptor = Errno::result(result)?;
    // SAFETY: the kernel has just opened this descriptor (always close-on-exec) for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

/// Sends a signal to exactly that process; `None` only asks whether it could be sent.
///
/// # Errors
/// `ESRCH` if the process is gone.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: Option<Signal>) -> io::Result<()> {
    let number = signal.map_or(0, |signal| signal as i32);
    // SAFETY: no memory is passed: without a siginfo the kernel fills one in as kill(2) does.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0 as libc::c_uint,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// True once the process behind the handle has ended (it may still be a zombie).
///
/// # Errors
/// If the descriptor cannot be polled.
pub fn pidfd_has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(pidfd, PollFlags::POLLIN)];
    loop {
        match poll(&mut polled, PollTimeout::ZERO) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A counter that wakes whoever polls it (eventfd(2)), non-blocking and close-on-exec.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one, not signalled.
    ///
    /// # Errors
    /// When out of descriptors or memory.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes two integers and opens a descriptor.
        let result = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        let descriptor = Errno::result(result)?;
        // SAFETY: the kernel has just opened this descriptor for us alone.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Wakes the other side; a wake-up that is already pending is enough.
    ///
    /// # Errors
    /// If the descriptor, received from elsewhere, is no eventfd.
    pub fn signal(&self) -> io::Result<()> {
        match nix::unistd::write(&self.0, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes all pending wake-ups; true if there were any.
    ///
    /// # Errors
    /// If the descriptor, received from elsewhere, is no eventfd.
    pub fn take(&self) -> io::Result<bool> {
        let mut count = [0u8; 8];
        match nix::unistd::read(&self.0, &mut count) {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<OwnedFd> for EventFd {
    /// Takes over a descriptor from another process. It must be non-blocking, as those of
    /// [`EventFd::new`] are.
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> Self {
        event.0
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Raises the soft limit of open files to the hard limit; returns it.
///
/// # Errors
/// What setrlimit(2) says.
pub fn raise_open_files() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How much memory of all processes of this user together may be locked (RLIMIT_MEMLOCK); `None` is all.
///
/// # Errors
/// What getrlimit(2) says.
pub fn locked_memory() -> io::Result<Option<u64>> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    Ok((soft != libc::RLIM_INFINITY).then_some(soft))
}

/// How many more descriptors this process can open: soft limit less the open ones.
///
/// # Errors
/// If `/proc` is not mounted.
pub fn free_descriptors() -> io::Result<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    // The directory itself was open while counting.
    Ok(soft.saturating_sub(open.saturating_sub(1)))
}

/// State letter and used CPU time of a thread (proc_pid_stat(5)).
///
/// # Errors
/// If there is no such thread, or `/proc` is not mounted.
pub fn thread_state(process: u32, thread: u32) -> io::Result<(char, Duration)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_stat(stat: &str) -> Option<(char, Duration)> {
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    // utime is the 14th field, of which the third was the first here.
    let mut ticks = fields.skip(10);
    let (user, system): (u64, u64) = (ticks.next()?.parse().ok()?, ticks.next()?.parse().ok()?);
    // USER_HZ, which is 100 on every architecture that zdt runs on.
    Some((state, Duration::from_millis(10 * (user + system))))
}

/// When a process was started, in clock ticks since the machine was (proc_pid_stat(5)): together with its number
/// a name that no other process of this boot ever has.
///
/// # Errors
/// If there is no such process, or `/proc` is not mounted.
pub fn start_ticks(process: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    parse_start(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_start(stat: &str) -> Option<u64> {
    // The 22nd field; the third is the first behind the name.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// No core dump of this process, and no tracing of it but by root: its memory is its own.
///
/// # Errors
/// What prctl(2) says.
pub fn forbid_dumps() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// The CPUs that this process may use.
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// Ties the calling thread to one CPU.
///
/// # Errors
/// If there is no such CPU for this process.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eventfd_counts_wake_ups_as_one() {
        let event = EventFd::new().unwrap();
        assert!(!event.take().unwrap());
        event.signal().unwrap();
        event.signal().unwrap();
        assert!(event.take().unwrap());
        assert!(!event.take().unwrap());
    }

    #[test]
    fn pidfd_tells_the_end_of_a_child() {
        let mut child = std::process::Command::new("/bin/cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pidfd = pidfd_open(child.id()).unwrap();
        pidfd_send_signal(pidfd.as_fd(), None).unwrap();
        assert!(!pidfd_has_ended(pidfd.as_fd()).unwrap());
        pidfd_send_signal(pidfd.as_fd(), Some(Signal::SIGKILL)).unwrap();
        child.wait().unwrap();
        assert!(pidfd_has_ended(pidfd.as_fd()).unwrap());
        let gone = pidfd_send_signal(pidfd.as_fd(), None).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn the_state_of_a_thread_is_read() {
        let line = "12 (a ) S b) R 1 2 3 4 5 6 7 8 9 10 150 7 0 0 20 0 1";
        assert_eq!(parse_stat(line), Some(('R', Duration::from_millis(1_570))));
        assert_eq!(parse_stat("12 (x) R 1"), None);
        let pid = std::process::id();
        assert_ne!(thread_state(pid, pid).unwrap().0, 'Z');
        assert!(thread_state(pid, 0).is_err());
    }

    #[test]
    fn the_start_of_a_process_is_read() {
        let line = "12 (a ) S b) R 1 2 3 4 5 6 7 8 9 10 150 7 0 0 20 0 1 0 4711 0";
        assert_eq!(parse_start(line), Some(4_711));
        assert_eq!(parse_start("12 (x) R 1"), None);
        let pid = std::process::id();
        assert!(start_ticks(pid).unwrap() > start_ticks(1).unwrap());
        assert!(start_ticks(u32::MAX).is_err());
    }

    #[test]
    fn limits_and_affinity() {
        let limit = raise_open_files().unwrap();
        let free = free_descriptors().unwrap();
        assert!(free > 0 && free < limit);
        std::thread::spawn(|| {
            pin_to_cpu(0).unwrap();
            assert!(pin_to_cpu(100_000).is_err());
        })
        .join()
        .unwrap();
    }
}
