//! What this kernel is and can do, for `doctor`.
//!
//! Must not know: what is done about a missing feature.

use std::io;

/// Major and minor version of the running kernel.
///
/// # Errors
/// If uname(2) gives no version.
pub fn version() -> io::Result<(u32, u32)> {
    let name = nix::sys::utsname::uname()?;
    name.release().to_str().and_then(parse_version).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Effective capabilities of this process, as the kernel's bit mask (capabilities(7)).
///
/// # Errors
/// If `/proc` is not mounted.
pub fn effective_capabilities() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether memory that this process has the kernel lock is not counted against RLIMIT_MEMLOCK (CAP_IPC_LOCK).
pub fn may_lock_memory() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    effective_capabilities().is_ok_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
}

/// The value of a sysctl, such as `kernel.io_uring_disabled`; `None` where it does not exist.
///
/// # Errors
/// Any other error of reading it.
pub fn sysctl(name: &str) -> io::Result<Option<String>> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    match std::fs::read_to_string(path) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(parse_version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_version("5.10.0+"), Some((5, 10)));
        assert_eq!(parse_version("6.1"), Some((6, 1)));
        assert_eq!(parse_version("six"), None);
        assert!(version().unwrap() >= (6, 1));
    }

    #[test]
    fn proc_is_read() {
        effective_capabilities().unwrap();
        assert!(sysctl("kernel.pid_max").unwrap().unwrap().parse::<u32>().unwrap() > 0);
        assert_eq!(sysctl("kernel.no_such_thing").unwrap(), None);
    }
}
