//! What happens to a call that the filter stopped: the kernel raises SIGSYS instead of executing it,
//! and the handler says which call it was.
//!
//! Whoever has taken over a worker can replace the handler; the call is not executed all the same.
//!
//! Must not know: which calls are allowed.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{names, table};

/// The part of siginfo_t that comes with SIGSYS (sigaction(2)), on 64-bit machines.
#[repr(C)]
struct SystemCallInfo {
    signal: libc::c_int,
    error: libc::c_int,
    code: libc::c_int,
    padding: libc::c_int,
    address: *const libc::c_void,
    number: libc::c_int,
    architecture: libc::c_uint,
}

/// `si_code` of a SIGSYS that a filter raised.
const SYS_SECCOMP: libc::c_int = 1;

static JSON: AtomicBool = AtomicBool::new(false);

/// One bit for each call that was logged already: a loop of violations must not fill the disk.
static LOGGED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// Installs the handler.
pub(super) fn handle(json: bool) {
    JSON.store(json, Ordering::Relaxed);
    // SAFETY: an all-zero sigaction is a valid one: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_violation as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, lives as long as the program, and
    // does nothing that is not async-signal-safe.
    unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
}

extern "C" fn on_violation(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a siginfo_t, which is larger, aligned, and for SIGSYS laid out so.
    let info = unsafe { &*info.cast::<SystemCallInfo>() };
    if info.code != SYS_SECCOMP {
        return;
    }
    let number = libc::c_long::from(info.number);
    let fatal = table::FATAL.contains(&number);
    // SAFETY: the address of this thread's errno, which stays valid; the interrupted code must find it
    // as it was.
    let errno = unsafe { *libc::__errno_location() };
    if fatal || is_first(number) {
        log(number, info.architecture, fatal);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    if fatal {
        // SAFETY: integers, and the default action, whose structure is all zero. It takes effect when
        // this handler returns, before the next instruction of whoever called.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGSYS, &raw const default, std::ptr::null_mut());
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGSYS);
        }
    }
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's context, which is restored
    // when the handler returns.
    unsafe { set_result(&mut *context.cast::<libc::ucontext_t>(), -libc::EPERM) };
}

#[cfg(target_arch = "x86_64")]
fn set_result(context: &mut libc::ucontext_t, result: libc::c_int) {
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = i64::from(result);
}

#[cfg(target_arch = "aarch64")]
fn set_result(context: &mut libc::ucontext_t, result: libc::c_int) {
    context.uc_mcontext.regs[0] = i64::from(result) as u64;
}

/// True the first time for each call; numbers beyond the table share a bit.
fn is_first(number: libc::c_long) -> bool {
    let index = (number as usize).min(LOGGED.len() * 64 - 1);
    let bit = 1 << (index % 64);
    LOGGED[index / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0
}

/// Writes one line to standard error, without allocating.
fn log(number: libc::c_long, architecture: libc::c_uint, fatal: bool) {
    let mut line = [0u8; 512];
    let mut rest = &mut line[..];
    let name = names::name(number);
    let pid = std::process::id();
    let what = if fatal { "ends this worker" } else { "was refused (EPERM)" };
    let (open, close) = if JSON.load(Ordering::Relaxed) {
        ("{\"level\":\"ERROR\",\"message\":\"", "\"}")
    } else {
        ("ERROR ", "")
    };
    let _ = writeln!(
        rest,
        "{open}seccomp: system call {number} ({name}, arch 0x{architecture:x}) of process {pid} {what}; if a \
         service needs it, name it in supervision.seccomp_allow, or give it a row in sys/seccomp/table.rs{close}",
    );
    let left = rest.len();
    let written = line.len() - left;
    // SAFETY: the bytes live on this stack; a short write or an error loses a line of the log.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), written) };
}
