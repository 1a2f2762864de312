//! What a child process is made into between fork(2) and execve(2): priority, CPU, limits, control
//! group, and a user without privileges.
//!
//! Everything here happens in the child before the new program has run one instruction, so that there
//! is no moment at which it could do more than it may.
//!
//! Must not know: which program is executed, why it is confined.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::ring::Bequest;

/// See the module. The default changes nothing but that privileges are given up.
#[derive(Debug, Default)]
pub struct Birth {
    /// User and group to become; needs root. Supplementary groups are cleared with it.
    pub user: Option<(u32, u32)>,
    /// Its share of the CPU, and short turns on it.
    pub priority: Option<Priority>,
    /// The one CPU to run on.
    pub cpu: Option<usize>,
    /// Most open descriptors (RLIMIT_NOFILE).
    pub open_files: Option<u64>,
    /// Most private memory (RLIMIT_DATA).
    pub data_bytes: Option<u64>,
    /// `cgroup.procs` of the control group to be in.
    pub group: Option<OwnedFd>,
    /// A ring that its program finds made, at the expense of nobody's locked memory.
    pub ring: Option<Bequest>,
}

/// A thread's claim on the CPU, among ordinary ones (sched_setattr(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Priority {
    /// Nice value: its share of the time, where there is not enough.
    pub nice: i32,
}

/// How long a turn on the CPU is asked for, from Linux 6.12 on; the usual is a few times as much. Who asks
/// for less gets it sooner: a thread that wakes up with a message to answer does not wait for the end of
/// the turn of whoever is compiling, starting or logging beside it. Its share of the time is the same.
const TURN_NS: u64 = 300_000;

/// `struct sched_attr`, of its first version.
#[repr(C)]
struct SchedulingAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

impl Priority {
    /// Gives it to a thread; 0 is the calling one.
    fn give(self, thread: libc::pid_t) -> io::Result<()> {
        // SAFETY: an integer.
        if unsafe { libc::sched_getscheduler(thread) } != libc::SCHED_OTHER {
            return Ok(()); // whoever chose another policy knows better
        }
        let attributes = SchedulingAttributes {
            size: size_of::<SchedulingAttributes>() as u32,
            policy: libc::SCHED_OTHER as u32,
            flags: 0,
            nice: self.nice,
            priority: 0,
            runtime: TURN_NS,
            deadline: 0,
            period: 0,
        };
        // SAFETY: the kernel reads the structure, of which it is told the size, from this stack.
        let result = unsafe {
            libc::syscall(libc::SYS_sched_setattr, thread, &raw const attributes, 0 as libc::c_uint)
        };
        check(if result < 0 { -1 } else { 0 })
    }
}

/// Linux' limit of a capability's number (`CAP_TO_MASK` over two words).
const MAX_CAPABILITIES: libc::c_ulong = 64;

/// _LINUX_CAPABILITY_VERSION_3.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Birth {
    /// Makes the command's child so. Nothing of it is inherited by the caller.
    pub fn of(self, command: &mut Command) {
        let apply = move || self.apply();
        // SAFETY: between fork and exec only async-signal-safe work is allowed: `apply` makes system
        // calls on values that were made before the fork, and neither allocates nor takes a lock.
        unsafe { command.pre_exec(apply) };
    }

    fn apply(&self) -> io::Result<()> {
        if let Some(group) = &self.group {
            // SAFETY: reads one byte of a literal, and writes it to a descriptor that `self` owns.
            let written = unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            check(if written < 0 { -1 } else { 0 })?;
        }
        if let Some(cpu) = self.cpu {
            // SAFETY: an all-zero set is an empty one; `cpu` is checked to be inside it.
            check(unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                if cpu < libc::CPU_SETSIZE as usize {
                    libc::CPU_SET(cpu, &mut set);
                }
                libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
            })?;
        }
        if let Some(limit) = self.open_files {
            set_limit(libc::RLIMIT_NOFILE, limit)?;
        }
        if let Some(limit) = self.data_bytes {
            set_limit(libc::RLIMIT_DATA, limit)?;
        }
        if !self.ring.as_ref().is_some_and(Bequest::leave_behind) {
            lift_locked_memory();
        }
        if let Some(priority) = self.priority {
            priority.give(0)?;
        }
        // A dump would hold what clients sent.
        set_limit(libc::RLIMIT_CORE, 0)?;
        drop_bounding_set()?;
        // SAFETY: integers only. Unsupported before 4.3, which is older than io_uring.
        check(unsafe {
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        })?;
        if let Some((uid, gid)) = self.user {
            // SAFETY: an empty list; integers. Groups first: afterwards there is no right to.
            check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
            // SAFETY: three integers each.
            check(unsafe { libc::setresgid(gid, gid, gid) })?;
            // SAFETY: as above.
            check(unsafe { libc::setresuid(uid, uid, uid) })?;
        }
        clear_capabilities()?;
        // SAFETY: integers only. From here on no executed file gives privileges.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets both the soft and the hard limit; a lower hard one stays.
fn set_limit(resource: libc::__rlimit_resource_t, limit: u64) -> io::Result<()> {
    let mut known = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one rlimit, which lives on this stack.
    check(unsafe { libc::getrlimit(resource, &raw mut known) })?;
    let limit = limit.min(known.rlim_max);
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: reads one rlimit, which lives on this stack.
    check(unsafe { libc::setrlimit(resource, &raw const limit) })
}

/// For a ring that the program has to make itself: it is counted as locked memory, for all processes of a user together, and
/// by default there is no room for those of forty. Without CAP_SYS_RESOURCE the limit stays, of which [`crate::uring`] tells.
fn lift_locked_memory() {
    let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: reads one rlimit, which lives on this stack.
    let _ = check(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const all) });
}

/// Nothing that is executed later can get a capability back. Without CAP_SETPCAP the set stays;
/// `no_new_privs` keeps it without effect.
fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..MAX_CAPABILITIES {
        // SAFETY: integers only.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EINVAL) => return Ok(()), // past the last one that the kernel knows
                Some(libc::EPERM) => return Ok(()),
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

fn clear_capabilities() -> io::Result<()> {
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let nothing = [CapabilityData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: version 3 reads a header and two data structures, both of which live on this stack.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, nothing.as_ptr()) };
    check(if result < 0 { -1 } else { 0 })
}

/// The nice value of this process.
pub fn own_nice() -> i32 {
    // SAFETY: two integers. An error cannot occur for the own process, and -1 is a valid answer.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Whether this process could give another one, of any user, this nice value (again): lowering one
/// needs CAP_SYS_NICE, or a limit (RLIMIT_NICE) that allows it.
pub fn may_set_nice(nice: i32) -> bool {
    const CAP_SYS_NICE: u32 = 23;
    let capable = super::kernel::effective_capabilities()
        .is_ok_and(|capabilities| capabilities >> CAP_SYS_NICE & 1 == 1);
    let allowed = || {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: writes one rlimit, which lives on this stack.
        let result = unsafe { libc::getrlimit(libc::RLIMIT_NICE, &raw mut limit) };
        // setpriority(2): the limit is 20 - nice.
        result == 0 && i64::try_from(limit.rlim_cur).is_ok_and(|most| most >= i64::from(20 - nice))
    };
    capable || allowed()
}

/// Gives every thread of a process this priority: to Linux it belongs to the thread.
///
/// # Errors
/// `EACCES` or `EPERM` without the right to; a thread, or process, that is gone is none.
pub fn set_priority(pid: u32, priority: Priority) -> io::Result<()> {
    let threads = match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(threads) => threads,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for thread in threads.flatten() {
        let Some(id) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match priority.give(id) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    fn status_of(birth: Birth) -> std::collections::BTreeMap<String, String> {
        let mut command = Command::new("/bin/cat");
        command.arg("/proc/self/status").stdin(Stdio::null());
        birth.of(&mut command);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    #[test]
    fn a_child_has_no_privileges() {
        let root = nix::unistd::geteuid().is_root();
        let user = root.then_some((65_534, 65_534));
        let status = status_of(Birth { user, ..Birth::default() });
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set}");
        }
        assert_eq!(status["NoNewPrivs"], "1");
        if root {
            assert_eq!(status["CapBnd"], "0000000000000000");
            assert_eq!(status["Uid"], "65534\t65534\t65534\t65534");
            assert_eq!(status["Gid"], "65534\t65534\t65534\t65534");
            assert_eq!(status["Groups"], "");
        }
    }

    #[test]
    fn root_without_another_user_has_no_privileges_either() {
        if nix::unistd::geteuid().is_root() {
            let status = status_of(Birth::default());
            assert_eq!(status["CapEff"], "0000000000000000");
            assert_eq!(status["Uid"], "0\t0\t0\t0");
        }
    }

    #[test]
    fn a_child_has_the_ring_that_was_made_for_it() {
        use crate::sys::ring::Shape;
        let bequest = Bequest::new(Shape::new(8, 2)).unwrap();
        let number = bequest.number();
        let mut command = Command::new("/bin/sh");
        let script = format!("readlink /proc/$$/fd/*; head -c 124 <&{number} | wc -c");
        command.args(["-c", &script]).stdin(Stdio::null());
        let user = nix::unistd::geteuid().is_root().then_some((65_534, 65_534));
        Birth { ring: Some(bequest), user, ..Birth::default() }.of(&mut command);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(text.matches("anon_inode:[io_uring]\n").count(), 1, "{text}");
        assert!(text.ends_with("\n124\n"), "{text}");
    }

    #[test]
    fn a_child_has_its_cpu_and_its_limits() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "ulimit -n; ulimit -d; exec cat /proc/self/status"]);
        let birth = Birth {
            cpu: Some(0),
            open_files: Some(77),
            data_bytes: Some(64 << 20),
            ..Birth::default()
        };
        birth.of(&mut command);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("77\n65536\n"), "{text}");
        assert!(text.contains("Cpus_allowed_list:\t0\n"), "{text}");
    }

    #[test]
    fn priority_is_lowered_and_raised_again() {
        let nice_of = |pid: u32| -> i32 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
            fields[16].parse().unwrap()
        };
        let own = own_nice();
        let mut command = Command::new("/bin/cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let lower = Priority { nice: own + 3 };
        let normal = Priority { nice: own };
        Birth { priority: Some(lower), ..Birth::default() }.of(&mut command);
        let mut child = command.spawn().unwrap();
        assert_eq!(nice_of(child.id()), own + 3);
        if may_set_nice(own) {
            set_priority(child.id(), normal).unwrap();
            assert_eq!(nice_of(child.id()), own);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        set_priority(child.id(), normal).unwrap();
    }
}
