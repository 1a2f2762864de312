//! The system calls that a worker may make, each with its reason.
//!
//! To allow another one, add a row. What io_uring may do stands elsewhere (`uring::NEEDED_OPCODES`):
//! the filter does not see it.
//!
//! Must not know: how the filter is built or installed.

use libc::*;

/// When a call is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Whatever its arguments are.
    Always,
    /// The masked bits of an argument have this value: (argument, mask, value).
    Bits(u8, u64, u64),
    /// The first argument is the own process.
    Own,
    /// As `Always`, in a worker that connects to upstreams.
    Outbound,
    /// As `Bits`, in a worker that connects to upstreams.
    OutboundBits(u8, u64, u64),
}

use When::{Always, Bits, Outbound, OutboundBits, Own};

/// One way in which a call is allowed; a call may have several rows.
pub type Row = (c_long, When, &'static str);

const WHOLE: u64 = u32::MAX as u64;
const OPEN_BITS: u64 = (O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND) as u64;
const TEMPORARY: u64 = O_TMPFILE as u64;

/// See the module.
#[rustfmt::skip]
pub const ALLOWED: &[Row] = &[
    // The loop.
    (SYS_io_uring_enter, Always, "the loop itself"),
    (SYS_io_uring_register, Always, "the ring gives its descriptor back; restrictions are in place"),
    (SYS_read, Always, "wake-ups (eventfd), small files of /proc"),
    (SYS_write, Always, "wake-ups (eventfd), the log"),
    (SYS_writev, Always, "the log"),
    (SYS_close, Always, "descriptors"),
    (SYS_ppoll, Always, "looks whether a peer has ended"),
    (SYS_clock_gettime, Always, "time, where the vDSO has no clock"),
    (SYS_gettimeofday, Always, "as above"),
    (SYS_getrandom, Always, "hash seeds, masks, nonces"),
    // Sockets and descriptors.
    (SYS_accept4, Always, "takes what is queued on a listener"),
    (SYS_shutdown, Always, "ends a connection that a duplicate may hold open"),
    (SYS_sendmsg, Always, "descriptors to another worker; control messages"),
    (SYS_recvmsg, Always, "the same, received"),
    (SYS_sendto, Always, "plain sends of a service's threads"),
    (SYS_recvfrom, Always, "plain receives of a service's threads"),
    (SYS_getpeername, Always, "who a client is"),
    (SYS_getsockname, Always, "which address it came to"),
    (SYS_getsockopt, Always, "socket errors; credentials of a later supervisor"),
    (SYS_setsockopt, Always, "options of connections"),
    // Not F_SETFL: the flags are those of whoever holds a duplicate, too, and somebody may wait where nobody should.
    (SYS_fcntl, Bits(1, WHOLE, F_DUPFD_CLOEXEC as u64), "duplicates"),
    (SYS_fcntl, Bits(1, WHOLE, F_DUPFD as u64), "the same"),
    (SYS_fcntl, Bits(1, WHOLE, F_GETFD as u64), "whether it is open"),
    (SYS_fcntl, Bits(1, WHOLE, F_SETFD as u64), "closed on exec"),
    (SYS_fcntl, Bits(1, WHOLE, F_GETFL as u64), "what it is open for"),
    (SYS_fcntl, Bits(1, WHOLE, F_ADD_SEALS as u64), "seals of shared memory"),
    (SYS_fcntl, Bits(1, WHOLE, F_GET_SEALS as u64), "the same"),
    (SYS_dup, Always, "duplicates"),
    (SYS_eventfd2, Always, "wake-ups between threads of a service"),
    (SYS_socket, OutboundBits(0, WHOLE, AF_INET as u64), "a gateway connects to upstreams"),
    (SYS_socket, OutboundBits(0, WHOLE, AF_INET6 as u64), "the same"),
    (SYS_socket, OutboundBits(0, WHOLE, AF_UNIX as u64), "the same"),
    (SYS_connect, Outbound, "the same"),
    (SYS_bind, Outbound, "the source address of such a connection"),
    // Memory. None of it can become executable.
    (SYS_mmap, Bits(2, PROT_EXEC as u64, 0), "rings of a handoff, allocations, stacks"),
    (SYS_mprotect, Bits(2, PROT_EXEC as u64, 0), "guard pages of stacks, growth of arenas"),
    (SYS_munmap, Always, "the same, given back"),
    (SYS_mremap, Always, "large allocations grow"),
    (SYS_madvise, Always, "memory given back or fetched ahead"),
    (SYS_brk, Always, "allocations"),
    (SYS_mlock, Always, "keys that must not be swapped out"),
    (SYS_munlock, Always, "the same"),
    (SYS_mincore, Always, "stack bounds in a panic"),
    (SYS_membarrier, Always, "concurrent queues of a service's threads"),
    (SYS_memfd_create, Always, "records too large for the ring"),
    (SYS_ftruncate, Always, "the size of those; spill files"),
    // Files: read what is there, write what has no name.
    (SYS_openat, Bits(2, OPEN_BITS, O_RDONLY as u64), "/proc/self/fd; what a service serves"),
    (SYS_openat, Bits(2, TEMPORARY, TEMPORARY), "spill files without a name"),
    (SYS_newfstatat, Always, "sizes of files"),
    (SYS_fstat, Always, "size of shared memory"),
    (SYS_statx, Always, "sizes of files"),
    (SYS_statfs, Always, "room for spill files"),
    (SYS_fstatfs, Always, "the same"),
    (SYS_lseek, Always, "files of a service"),
    (SYS_readv, Always, "the same"),
    (SYS_pread64, Always, "spill files, records in memory files"),
    (SYS_pwrite64, Always, "the same"),
    (SYS_preadv, Always, "the same"),
    (SYS_pwritev, Always, "the same"),
    (SYS_fallocate, Always, "room of a spill file"),
    (SYS_sendfile, Always, "files of a service"),
    (SYS_copy_file_range, Always, "the same"),
    (SYS_getdents64, Always, "counts the open descriptors"),
    (SYS_readlinkat, Always, "paths in a panic's trace"),
    (SYS_getcwd, Always, "the same"),
    (SYS_faccessat, Always, "files of a service"),
    (SYS_faccessat2, Always, "the same"),
    // Threads that a service starts.
    (SYS_clone, Always, "threads; no processes, see `ERRORS`"),
    (SYS_clone3, Always, "the same"),
    (SYS_set_robust_list, Always, "the start of a thread"),
    (SYS_rseq, Always, "the same"),
    (SYS_set_tid_address, Always, "the same"),
    (SYS_sigaltstack, Always, "the same"),
    (SYS_prctl, Bits(0, WHOLE, PR_SET_NAME as u64), "names of threads"),
    (SYS_prctl, Bits(0, WHOLE, 0x5356_4d41), "names of memory (PR_SET_VMA)"),
    (SYS_futex, Always, "locks, channels, join"),
    (SYS_sched_yield, Always, "spinning locks"),
    (SYS_sched_getaffinity, Always, "how many threads make sense"),
    (SYS_getcpu, Always, "the same"),
    (SYS_nanosleep, Always, "a service's thread sleeps"),
    (SYS_clock_nanosleep, Always, "the same"),
    (SYS_clock_getres, Always, "timers of a service"),
    (SYS_epoll_create1, Always, "an event loop in a service's thread"),
    (SYS_epoll_ctl, Always, "the same"),
    (SYS_epoll_pwait, Always, "the same"),
    (SYS_timerfd_create, Always, "the same"),
    (SYS_timerfd_settime, Always, "the same"),
    (SYS_pipe2, Always, "the same"),
    (SYS_socketpair, Always, "the same"),
    (SYS_exit, Always, "the end of a thread"),
    // The process about itself.
    (SYS_getpid, Always, "the process about itself"),
    (SYS_gettid, Always, "the same"),
    (SYS_getuid, Always, "the same"),
    (SYS_geteuid, Always, "the same"),
    (SYS_getgid, Always, "the same"),
    (SYS_getegid, Always, "the same"),
    (SYS_uname, Always, "the same"),
    (SYS_sysinfo, Always, "the same"),
    (SYS_getrusage, Always, "the CPU time that it has used"),
    (SYS_prlimit64, Bits(2, u64::MAX, 0), "reads limits; sets none"),
    (SYS_rt_sigaction, Always, "handlers of a service"),
    (SYS_rt_sigprocmask, Always, "threads start with signals blocked"),
    (SYS_rt_sigreturn, Always, "the end of a handler"),
    (SYS_tgkill, Own, "abort(3)"),
    (SYS_kill, Own, "fault points of tests"),
    (SYS_restart_syscall, Always, "goes on after a stop"),
    (SYS_exit_group, Always, "the end"),
    // Older forms of the above.
    #[cfg(target_arch = "x86_64")]
    (SYS_poll, Always, "looks whether a peer has ended"),
    #[cfg(target_arch = "x86_64")]
    (SYS_epoll_wait, Always, "an event loop in a service's thread"),
    #[cfg(target_arch = "x86_64")]
    (SYS_readlink, Always, "paths in a panic's trace"),
    #[cfg(target_arch = "x86_64")]
    (SYS_access, Always, "files of a service"),
    #[cfg(target_arch = "x86_64")]
    (SYS_stat, Always, "files of a service"),
    #[cfg(target_arch = "x86_64")]
    (SYS_lstat, Always, "the same"),
    #[cfg(target_arch = "x86_64")]
    (SYS_open, Bits(1, OPEN_BITS, O_RDONLY as u64), "files of a service"),
    #[cfg(target_arch = "x86_64")]
    (SYS_time, Always, "time, where the vDSO has no clock"),
];

/// Calls that fail, without a word: what is allowed above counts only where it does not stand here.
#[rustfmt::skip]
pub const ERRORS: &[(c_long, When, c_int)] = &[
    // Its flags lie in memory, where a filter cannot look: the C library falls back to clone(2).
    (SYS_clone3, Always, ENOSYS),
    // A process rather than a thread.
    (SYS_clone, Bits(0, CLONE_THREAD as u64, 0), EPERM),
    // Who gets what comes to a listener, which others have as well.
    (SYS_setsockopt, Bits(2, WHOLE, SO_ATTACH_FILTER as u64), EPERM),
    (SYS_setsockopt, Bits(2, WHOLE, SO_ATTACH_BPF as u64), EPERM),
    (SYS_setsockopt, Bits(2, WHOLE, SO_ATTACH_REUSEPORT_CBPF as u64), EPERM),
    (SYS_setsockopt, Bits(2, WHOLE, SO_ATTACH_REUSEPORT_EBPF as u64), EPERM),
    (SYS_setsockopt, Bits(2, WHOLE, SO_DETACH_REUSEPORT_BPF), EPERM),
];

/// Which libc does not have.
const SO_DETACH_REUSEPORT_BPF: u64 = 68;

/// Calls that no honest worker makes: the process ends at once.
pub const FATAL: &[c_long] = &[
    SYS_execve,
    SYS_execveat,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_pidfd_getfd,
    SYS_bpf,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_perf_event_open,
    SYS_keyctl,
    SYS_add_key,
    SYS_request_key,
    SYS_unshare,
    SYS_setns,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
    SYS_reboot,
    SYS_setuid,
    SYS_setgid,
    SYS_setresuid,
    SYS_setresgid,
    SYS_setreuid,
    SYS_setregid,
    SYS_setgroups,
    SYS_capset,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_reason_and_none_is_fatal() {
        for (number, when, why) in ALLOWED {
            assert!(!why.is_empty(), "{number}");
            assert!(!FATAL.contains(number), "{number}");
            let same = ALLOWED.iter().filter(|(other, at, _)| (other, at) == (number, when));
            assert_eq!(same.count(), 1, "{number} {when:?} is there twice");
        }
    }
}
