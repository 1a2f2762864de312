//! Clocks, and the name of this boot.
//!
//! Must not know: deadlines, timers.

use std::io;

use nix::time::{ClockId, clock_gettime};

fn read_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("the kernel has this clock");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Seconds since 1970, as people count them: it may jump. As of the kernel's last tick, which costs no look at
/// the clock's hardware (CLOCK_REALTIME_COARSE, clock_gettime(2)).
pub fn wall_clock_s() -> u64 {
    read_ns(ClockId::CLOCK_REALTIME_COARSE) / 1_000_000_000
}

/// Nanoseconds of CLOCK_MONOTONIC: the same for all processes, stands still while suspended.
pub fn monotonic_ns() -> u64 {
    read_ns(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds of CLOCK_BOOTTIME: the same for all processes, goes on while suspended.
pub fn boottime_ns() -> u64 {
    read_ns(ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds of CPU time that all threads of this process have used.
pub fn process_cpu_ns() -> u64 {
    read_ns(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// The random id of this boot (random(4)): two readings of [`boottime_ns`] can be compared only if
/// it is the same.
///
/// # Errors
/// If `/proc` is not mounted or does not hold a UUID there.
pub fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    parse_uuid(text.trim()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut digits =
        text.bytes().filter(|byte| *byte != b'-').map(|byte| (byte as char).to_digit(16));
    let mut id = [0u8; 16];
    for byte in &mut id {
        *byte = (digits.next()?? << 4 | digits.next()??) as u8;
    }
    digits.next().is_none().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_advance() {
        let (monotonic, boottime) = (monotonic_ns(), boottime_ns());
        assert!(monotonic > 0 && boottime >= monotonic, "boottime includes the time suspended");
        assert!(process_cpu_ns() > 0);
        let exact = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(exact.as_secs().abs_diff(wall_clock_s()) <= 1, "no more than a tick behind");
        assert!(monotonic_ns() >= monotonic && boottime_ns() >= boottime);
    }

    #[test]
    fn boot_id_is_stable() {
        let id = boot_id().unwrap();
        assert_eq!(id, boot_id().unwrap());
        assert_ne!(id, [0; 16]);
        assert_eq!(parse_uuid("00010203-0405-0607-0809-0a0b0c0d0e0f").unwrap()[15], 15);
        assert_eq!(parse_uuid("0001"), None);
        assert_eq!(parse_uuid("00010203-0405-0607-0809-0a0b0c0d0e0f00"), None);
        assert_eq!(parse_uuid("0001020g-0405-0607-0809-0a0b0c0d0e0f"), None);
    }
}
