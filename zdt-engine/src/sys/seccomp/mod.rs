//! The system-call filter of a worker (seccomp(2)).
//!
//! A call that `table` does not allow is not executed. It fails with EPERM, and is logged by its name,
//! once for each call; those that no honest worker makes end the process instead. EPERM rather than an
//! end: an unforeseen call of a library costs one request, not the thousands of connections beside it.
//!
//! (The kernel ends a process that has SIGSYS blocked at that moment, as posix_spawn(3) has; hence `table`
//! has a few calls that fail without a word.)
//!
//! Must not know: what a worker does.

mod names;
mod table;
mod violation;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

pub use names::number;
use table::When;

/// What the filter does about a call that it does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// See the module.
    Enforce,
    /// The kernel writes it to its own log, and executes it.
    Log,
}

/// A filter to install.
#[derive(Debug, Clone)]
pub struct Filter {
    /// What happens to a call that is not allowed.
    pub mode: Mode,
    /// The worker makes connections of its own.
    pub outbound: bool,
    /// Names of further calls that are allowed.
    pub also: Vec<String>,
    /// Violations are logged as JSON objects, not as text.
    pub log_json: bool,
}

/// Why a filter could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// A name in [`Filter::also`].
    #[error("there is no system call {0:?} on this machine")]
    UnknownCall(String),
    /// The kernel, or the architecture.
    #[error("seccomp: {0}")]
    Kernel(String),
}

impl Filter {
    /// Installs it for every thread of this process, for good. `no_new_privs` is set with it.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn install(&self) -> Result<(), FilterError> {
        let programs = self.programs()?;
        violation::handle(self.log_json);
        for program in &programs {
            seccompiler::apply_filter_all_threads(program).map_err(kernel)?;
        }
        Ok(())
    }

    /// The programs, of which the kernel runs all and obeys the strictest.
    fn programs(&self) -> Result<Vec<BpfProgram>, FilterError> {
        let architecture: TargetArch = std::env::consts::ARCH.try_into().map_err(kernel)?;
        let otherwise = match self.mode {
            Mode::Enforce => SeccompAction::Trap,
            Mode::Log => SeccompAction::Log,
        };
        let allowed =
            SeccompFilter::new(self.rules()?, otherwise, SeccompAction::Allow, architecture);
        let mut programs = Vec::new();
        if self.mode == Mode::Enforce {
            for &(number, when, errno) in table::ERRORS {
                let rules = when.condition(self.outbound).flatten();
                let rules = rules.map(|(argument, mask, value)| rule(argument, mask, value));
                let rules = rules.into_iter().collect::<Result<_, _>>()?;
                let errors = SeccompFilter::new(
                    BTreeMap::from([(number, rules)]),
                    SeccompAction::Allow,
                    SeccompAction::Errno(errno as u32),
                    architecture,
                );
                programs.push(program(errors)?);
            }
        }
        // Last, since it does not allow another filter.
        programs.push(program(allowed)?);
        Ok(programs)
    }

    fn rules(&self) -> Result<BTreeMap<i64, Vec<SeccompRule>>, FilterError> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        for &(number, when, _) in table::ALLOWED {
            let Some(bits) = when.condition(self.outbound) else { continue };
            let of_call = rules.entry(number).or_default();
            if let Some((argument, mask, value)) = bits {
                of_call.push(rule(argument, mask, value)?);
            }
        }
        for name in &self.also {
            let number = number(name).ok_or_else(|| FilterError::UnknownCall(name.clone()))?;
            // No rule is no condition.
            rules.insert(number, Vec::new());
        }
        Ok(rules)
    }
}

impl When {
    /// `None` for never; `Some(None)` for always; else what must hold: (argument, mask, value).
    fn condition(self, outbound: bool) -> Option<Option<(u8, u64, u64)>> {
        match self {
            When::Always => Some(None),
            When::Bits(argument, mask, value) => Some(Some((argument, mask, value))),
            When::Own => Some(Some((0, u64::from(u32::MAX), u64::from(std::process::id())))),
            When::Outbound => outbound.then_some(None),
            When::OutboundBits(argument, mask, value) => {
                outbound.then_some(Some((argument, mask, value)))
            }
        }
    }
}

fn rule(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, FilterError> {
    let width =
        if mask > u64::from(u32::MAX) { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
    let operator = SeccompCmpOp::MaskedEq(mask);
    let condition = SeccompCondition::new(argument, width, operator, value).map_err(kernel)?;
    SeccompRule::new(vec![condition]).map_err(kernel)
}

fn program(
    filter: Result<SeccompFilter, seccompiler::BackendError>,
) -> Result<BpfProgram, FilterError> {
    filter.and_then(BpfProgram::try_from).map_err(kernel)
}

fn kernel(error: impl std::fmt::Display) -> FilterError {
    FilterError::Kernel(error.to_string())
}

/// Whether this kernel has filters, and tells what they refuse.
pub fn is_supported() -> bool {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    actions.is_ok_and(|actions| actions.split_whitespace().any(|action| action == "trap"))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    fn filter() -> Filter {
        Filter { mode: Mode::Enforce, outbound: false, also: Vec::new(), log_json: false }
    }

    /// Runs `test` in a thread of its own under the filter, which stays with that thread.
    fn under(filter: &Filter, test: impl FnOnce() + Send) {
        let programs = filter.programs().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                violation::handle(false);
                for program in &programs {
                    seccompiler::apply_filter(program).unwrap();
                }
                test();
            });
        });
    }

    #[test]
    fn what_a_worker_does_is_allowed() {
        under(&filter(), || {
            let words = std::thread::spawn(|| "from a thread".to_owned()).join().unwrap();
            assert_eq!(words.len(), 13);
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() > 2);
            assert!(!std::fs::read_to_string("/proc/self/status").unwrap().is_empty());
            let large = vec![1u8; 64 << 20];
            assert_eq!(large.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 64 << 20);
            let (sender, receiver) = std::sync::mpsc::channel();
            std::thread::spawn(move || sender.send(1)).join().unwrap().unwrap();
            assert_eq!(receiver.recv(), Ok(1));
            std::panic::catch_unwind(|| panic!("on purpose, under the filter")).unwrap_err();
        });
    }

    #[test]
    fn what_it_does_not_do_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        under(&filter(), || {
            let refused = |error: std::io::Error| {
                assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            };
            refused(TcpStream::connect(address).unwrap_err());
            refused(TcpListener::bind("127.0.0.1:0").unwrap_err());
            // What others hold as well: it stays non-blocking, steered, and open to everybody.
            refused(listener.set_nonblocking(false).unwrap_err());
            use nix::fcntl::{FcntlArg, OFlag, fcntl};
            refused(fcntl(&listener, FcntlArg::F_SETFL(OFlag::empty())).unwrap_err().into());
            fcntl(&listener, FcntlArg::F_GETFL).unwrap();
            listener.try_clone().unwrap();
            for option in [libc::SO_ATTACH_FILTER, libc::SO_ATTACH_REUSEPORT_CBPF, 68] {
                // SAFETY: the option's value, a whole `sock_fprog`, is of zeros, and not looked at.
                let result = unsafe {
                    let value = [0u64; 2];
                    let (at, bytes) = (value.as_ptr().cast(), size_of_val(&value) as u32);
                    libc::setsockopt(listener.as_raw_fd(), libc::SOL_SOCKET, option, at, bytes)
                };
                assert_eq!(result, -1);
                refused(std::io::Error::last_os_error());
            }
            refused(std::fs::write(dir.path().join("new"), "").unwrap_err());
            refused(std::fs::create_dir(dir.path().join("sub")).unwrap_err());
            refused(std::process::Command::new("/bin/true").spawn().unwrap_err());
            // SAFETY: an anonymous mapping at no fixed address.
            let executable = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_eq!(executable, libc::MAP_FAILED);
        });
        TcpStream::connect(address).expect("other threads are as they were");
    }

    #[test]
    fn a_gateway_connects() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        under(&Filter { outbound: true, ..filter() }, || {
            TcpStream::connect(address).unwrap();
            assert!(
                nix::sys::socket::socket(
                    nix::sys::socket::AddressFamily::Netlink,
                    nix::sys::socket::SockType::Raw,
                    nix::sys::socket::SockFlag::empty(),
                    None
                )
                .is_err()
            );
        });
    }

    #[test]
    fn more_can_be_allowed_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let also = vec!["mkdir".to_owned(), "mkdirat".to_owned()];
        under(&Filter { also, ..filter() }, || {
            std::fs::create_dir(dir.path().join("sub")).unwrap();
        });
        let wrong = Filter { also: vec!["no_such_call".to_owned()], ..filter() };
        assert!(wrong.programs().unwrap_err().to_string().contains("no_such_call"));
    }

    #[test]
    fn in_log_mode_everything_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        under(&Filter { mode: Mode::Log, ..filter() }, || {
            std::fs::create_dir(dir.path().join("sub")).unwrap();
        });
    }
}
